package paystream

import (
	"errors"
	"time"

	"github.com/tallystick/tally"
)

// Times and steps of the control of one direction of a socket.
const (
	// probeTime is the longest that finding the rate may take.
	probeTime = 10 * time.Second
	// stallTime: after so long without progress a sender stops.
	stallTime = 10 * time.Second
	// PacketTime is the expiry of a packet at its sender.
	PacketTime = 30 * time.Second
	// IdleTime: after so long without an authentic packet a socket leaves memory.
	IdleTime = 60 * time.Second

	minRetry = 50 * time.Millisecond
	maxRetry = 5 * time.Second

	// firstWindow doubles each round trip until the first temporary error, which
	// halves it; from then on it grows by one a round trip. It is at most maxHolds.
	firstWindow = 8

	// countedPackets: the share of rejects is taken over so many packets, and
	// maxRejected of them are the end.
	countedPackets = 200
	maxRejected    = 198

	// defaultSlippage, in parts of 10 000, is how far below the rate measured at
	// open the floor price lies.
	defaultSlippage = 100

	// growAfter is how long a hop's word about its largest packet is believed.
	growAfter = 10 * time.Second

	// minPacket is where the packet cap stops halving.
	minPacket = 1
)

// probes are the amounts that find the rate, all under way at once.
var probes = [...]tally.Amount{1, 1e3, 1e6, 1e9}

// Ends of the control.
var (
	// ErrStalled: nothing has moved for 10 s.
	ErrStalled = errors.New("paystream: no progress for 10 s; the peer or the way is gone, or the price fell below the floor")
	// ErrAllRejected: nearly every packet is rejected.
	ErrAllRejected = errors.New("paystream: 99 % of 200 packets rejected")
	// ErrNoRate: no probe came back with an amount.
	ErrNoRate = errors.New("paystream: no rate within 10 s; is there a way to the peer?")
)

// Control decides how much of what is due leaves when: it finds the rate, and
// keeps a window in value and in packets. It is pure; times are since any fixed
// moment.
type Control struct {
	rate Rate

	// probing: which probes are out (a bit each), and the amounts tried after
	// them.
	probing  uint8
	refine   tally.Amount
	refining bool
	probedAt time.Duration // 0: not begun
	samples  [len(probes) + 2]sample
	sampled  int
	attempts int

	window  uint32
	round   uint32 // fulfils until a window of them has passed; 0: the next begins one
	slow    bool
	packets uint32       // in flight
	value   tally.Amount // in flight
	room    tally.Amount // most value in flight; 0: no limit but the carrier's
	cap     tally.Amount // largest packet now
	ceiling tally.Amount // what cap never grows over
	// loweredAt is when a hop last said that a packet was too large.
	loweredAt time.Duration

	progressAt time.Duration
	active     bool // something is due or in flight since progressAt was set
	recent     [countedPackets]bool
	recentN    int
	rejected   int

	failures uint8
	retryAt  time.Duration
	cutAt    time.Duration
}

type sample struct{ sent, arrived tally.Amount }

// NewControl returns a control whose packets are at most largest (0: no limit).
func NewControl(largest tally.Amount) *Control {
	if largest == 0 {
		largest = maxTotal
	}
	return &Control{window: firstWindow, slow: true, cap: largest, ceiling: largest}
}

// Probe returns the next amount to probe with; ok is false where no probe is to
// be sent now.
func (c *Control) Probe(now time.Duration) (n tally.Amount, ok bool) {
	if c.probedAt == 0 {
		c.probedAt = max(now, 1)
	}
	if c.rate.Known() && c.probing == 0 && !c.refining && c.refine == 0 {
		return 0, false
	}
	if c.attempts < len(probes) {
		n = probes[c.attempts]
		c.probing |= 1 << c.attempts
		c.attempts++
		return n, true
	}
	if c.refine != 0 && !c.refining {
		c.refining = true
		return c.refine, true
	}
	return 0, false
}

// Probed notes what a probe brought: arrived from an authentic reply, or, where it
// was too large for a hop, most: what the hop said it carries. That figure comes
// from anybody on the way, so it only ever lowers.
func (c *Control) Probed(sent, arrived tally.Amount, known bool, most tally.Amount) {
	refined := c.refining && sent == c.refine
	if refined {
		c.refine, c.refining = 0, false
	}
	for i, p := range probes {
		if p == sent {
			c.probing &^= 1 << i
		}
	}
	if !known {
		if most > 0 && most < sent {
			c.Lower(most)
			if most > c.largest() && c.refine == 0 {
				c.refine = most
			}
		}
		return
	}
	if c.sampled < len(c.samples) {
		c.samples[c.sampled] = sample{sent, arrived}
		c.sampled++
	}
	// One amount that got through does not tell a fixed fee from one that grows:
	// half of it does. Else a last small packet would seem to lose too much.
	if half := sent / 2; refined && half > sent-arrived && arrived < sent && c.through() == 1 {
		c.refine = half
	}
}

// through counts the probes that brought anything.
func (c *Control) through() (n int) {
	for _, s := range c.samples[:c.sampled] {
		if s.arrived > 0 {
			n++
		}
	}
	return n
}

// largest returns the largest amount that a probe brought through.
func (c *Control) largest() (n tally.Amount) {
	for _, s := range c.samples[:c.sampled] {
		n = max(n, s.sent)
	}
	return n
}

// ProbesDone reports whether all probes are answered, or their time is over, and
// the rate that they make. The largest one gives it; what smaller ones fall short
// of it is the hops' fixed fee.
func (c *Control) ProbesDone(now time.Duration) (r Rate, done bool, err error) {
	if c.rate.Known() {
		return c.rate, true, nil
	}
	late := c.probedAt != 0 && now-c.probedAt >= probeTime
	if !late && (c.attempts < len(probes) || c.probing != 0 || c.refine != 0) {
		return Rate{}, false, nil
	}
	r = rateOf(c.samples[:c.sampled])
	if !r.Known() {
		if !late {
			// Every probe was lost or too large: begin again, until the time is up.
			c.attempts, c.probing, c.sampled = 0, 0, 0
			return Rate{}, false, nil
		}
		return Rate{}, true, ErrNoRate
	}
	c.rate = r
	return r, true, nil
}

// rateOf fits floor(sent × r) − base to the samples.
func rateOf(list []sample) Rate {
	var big, small sample
	for _, s := range list {
		if s.sent > big.sent && s.arrived > 0 {
			big = s
		}
	}
	if big.sent == 0 {
		return Rate{}
	}
	r := Rate{}.Observe(big.sent, big.arrived)
	for _, s := range list {
		if s.sent < big.sent && s.arrived > 0 && (small.sent == 0 || s.sent < small.sent) {
			small = s
		}
	}
	if small.sent == 0 {
		return r
	}
	// The slope between the two is free of the base; the base is what the small
	// one lacks of it. It is taken twice because the base changes the slope.
	slope := Ratio{Num: uint64(big.arrived - min(big.arrived, small.arrived)), Den: uint64(big.sent - small.sent)}
	if !slope.Valid() {
		return r
	}
	base := slope.floorSat(small.sent).SaturatingSub(small.arrived)
	return Rate{Base: base}.Observe(big.sent, big.arrived)
}

// Rate returns the rate as packets have shown it.
func (c *Control) Rate() Rate { return c.rate }

// SetRoom sets how much more value may be in flight: what the first hop's tab has
// headroom for. One packet may always be: its reject begins the settlement.
func (c *Control) SetRoom(more tally.Amount) { c.room = max(1, c.value.SaturatingAdd(more)) }

// Lower takes a hop's word that it carries no more than most in one packet. Raising
// is done by trying.
func (c *Control) Lower(most tally.Amount) { c.cap = max(min(c.cap, most), minPacket) }

// Room returns how large a packet may leave now: 0 while the window is full or a
// retry waits.
func (c *Control) Room(now time.Duration) tally.Amount {
	if c.packets >= c.window || now < c.retryAt {
		return 0
	}
	if c.room != 0 && c.packets > 0 {
		return min(c.cap, c.room.SaturatingSub(c.value))
	}
	return c.cap
}

// RetryAt returns when Room may grow by the passing of time alone; 0: now.
func (c *Control) RetryAt() time.Duration { return c.retryAt }

// Sent notes a packet that leaves.
func (c *Control) Sent(now time.Duration, n tally.Amount) {
	if !c.active {
		c.active, c.progressAt = true, now
	}
	c.packets++
	c.value += n
}

// Fulfilled notes a packet that got through, with what arrived of it where known.
func (c *Control) Fulfilled(now time.Duration, n, arrived tally.Amount, known bool) {
	c.done(n, false)
	c.progressAt, c.failures = now, 0
	// What left before the last cut proves nothing about now: the retry stays, or
	// those that are rejected until cutAt would be sent again at once.
	c.retryAt = min(c.retryAt, now+minRetry)
	c.cutAt = min(c.cutAt, c.retryAt)
	if known {
		c.rate = c.rate.Observe(n, arrived)
	}
	if c.round == 0 {
		c.round = c.window
	}
	c.round--
	if c.slow || c.round == 0 {
		c.window = min(c.window+1, maxHolds)
	}
	// A cap that a hop's word lowered grows back by trying, but not at once: a
	// window of packets that are too large is a round trip lost.
	if c.round == 0 && now-c.loweredAt >= growAfter {
		c.cap = min(c.cap.SaturatingAdd(max(1, c.cap/8)), c.ceiling)
	}
}

// RejectKind is what a reject means for the pace.
type RejectKind uint8

const (
	// RejectTemporary: no headroom on the way, no answer in time: slow down.
	RejectTemporary RejectKind = iota
	// RejectLarge: too large for a hop.
	RejectLarge
	// RejectLimit: the peer's limits, or the price: slowing down does not help,
	// but what it told may.
	RejectLimit
)

// Rejected notes a packet that did not get through; jitter is random, and spreads
// the retry over half of its time.
func (c *Control) Rejected(now time.Duration, n tally.Amount, kind RejectKind, most tally.Amount, jitter uint32) {
	if kind == RejectLarge {
		// It says nothing about whether smaller ones get through.
		c.landed(n)
		c.loweredAt = now
		if most == 0 || most >= n {
			most = n / 2
		}
		c.Lower(most)
		return
	}
	// One cut a round trip: the packets of one window fail together, and count as one.
	// A tab that settles somewhere on the way rejects hundreds at once.
	if kind == RejectTemporary && now < c.cutAt {
		c.landed(n)
	} else {
		c.done(n, true)
	}
	if now >= c.cutAt {
		c.window, c.slow, c.round = max(c.window/2, 1), false, 0
		c.failures = min(c.failures+1, 20)
		c.retryAt = now + Backoff(c.failures, jitter)
		c.cutAt = c.retryAt
		return
	}
	c.retryAt = max(c.retryAt, c.cutAt) // a resume in between took the wait away
}

func (c *Control) landed(n tally.Amount) {
	if c.packets > 0 {
		c.packets--
	}
	c.value = c.value.SaturatingSub(n)
}

func (c *Control) done(n tally.Amount, rejected bool) {
	c.landed(n)
	at := c.recentN % countedPackets
	if c.recentN >= countedPackets && c.recent[at] {
		c.rejected--
	}
	c.recent[at] = rejected
	if rejected {
		c.rejected++
	}
	c.recentN++
}

// Idle notes that nothing is due and nothing in flight: there is no progress to
// be made.
func (c *Control) Idle() { c.active = false }

// Due notes that something is due.
func (c *Control) Due(now time.Duration) {
	if !c.active {
		c.active, c.progressAt = true, now
	}
}

// Stopped returns why the sender has to stop, or nil.
func (c *Control) Stopped(now time.Duration) error {
	switch {
	case c.recentN >= countedPackets && c.rejected >= maxRejected:
		return ErrAllRejected
	case c.active && now-c.progressAt >= stallTime:
		return ErrStalled
	default:
		return nil
	}
}

// Resume forgets that the sender had to stop: a limit was changed, or the peer
// spoke.
func (c *Control) Resume(now time.Duration) {
	c.active, c.progressAt, c.recentN, c.rejected, c.failures, c.retryAt = false, now, 0, 0, 0, 0
	c.recent = [countedPackets]bool{}
}

// Backoff returns the wait before try n (from 1): 50 ms doubling to 5 s, of which
// jitter takes up to half.
func Backoff(n uint8, jitter uint32) time.Duration {
	d := maxRetry
	if n < 8 {
		d = min(minRetry<<(max(n, 1)-1), maxRetry)
	}
	return d - time.Duration(uint64(d/2)*uint64(jitter)>>32)
}
