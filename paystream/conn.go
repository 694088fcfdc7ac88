package paystream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// ErrIncompatible: the limits of the two sides cannot meet.
var ErrIncompatible = errors.New("paystream: limits cannot meet")

// newsDelay is how long a change of state that nobody waits for may wait for a
// packet to travel in.
const newsDelay = 200 * time.Millisecond

// doubtEvery is how often recordings of packets can make a client ask its server
// whether it is still there.
const doubtEvery = time.Second

// Conn is one end of a live socket. Its methods may be called from any goroutine.
type Conn struct {
	e     *Endpoint
	ident identity
	grant Grant // of a server
	// tokenID is that of a server's token: whose budget it is.
	tokenID TokenID

	// mu guards the fields below. It is not held over disk or carrier, and no
	// other lock is wanted under it but the budgets'.
	mu      sync.Mutex
	sess    *Session
	sock    *Socket
	ctl     *Control
	out     []*Outgoing // in flight, each at its own Outgoing.at
	decided []PacketID  // holds that are decided, on disk still
	nextVia []peer.ID   // the way back of an Open that is not confirmed
	nextTo  peer.ID
	nextIn  string // and its asset

	told      uint64 // the state of the newest news
	tellAt    time.Duration
	tellTries uint8
	openAt    time.Duration
	openTries uint8
	// calls: a server's end that was read from disk asks its client to open again.
	calls bool
	// doubtAt is when the peer was last seen to know less of the session than we
	// do, doubt that no answer has come since.
	doubtAt time.Duration
	doubt   bool
	// again: the peer was asked once more since anything new was heard of it, and has
	// answered.
	again   bool
	usedAt  time.Duration
	stopped error // why nothing is sent
	closed  error
	changed chan struct{} // closed at the next change; nil where nobody waits
	timer   *time.Timer

	proposals map[[16]byte]bool // of the peer, with our answers
	answers   []ProposalReplyFrame
	asked     map[[16]byte]*proposalState // ours
	requests  [][16]byte                  // receipts that the peer asks for
	wanted    map[[16]byte]*Receipt       // receipts that we ask for
	closing   bool
	opened    bool // Config.Opened was told
	over      bool // closed for good: the record goes, too
	dirty     bool // what is on disk is older
	written   bool // there is a record on disk

	in, pkt, reply Packet // scratch
	// records is c.record, bound once; nil where nothing is kept.
	records Record
	looking bool // Endpoint.lookAt was called, and look was not yet
	// telling is how many packets in flight tell the state tellSeq of the pair, the
	// newest that any of them tells; pairs counts pairs.
	tellSeq uint64
	telling int
	pairs   uint32
	// armed is when the timer goes off; 0: it does not.
	armed   time.Duration
	plain   []byte
	inner   []byte
	sealed  []byte // the last reply
	streams Streams

	peerAsset Asset
	assetTold bool   // of a client, in this pair
	way       uint64 // counts the ways of a client, wayTold which of them its server has
	wayTold   uint64
	wayAt     uint64 // of a server: one above the packet that told the way back
}

func (e *Endpoint) newConn(i identity, s *Socket) (*Conn, error) {
	sess, err := NewSession(i.psk, i.kdf, i.id, i.role, e.entropy.id())
	if err != nil {
		return nil, err
	}
	c := &Conn{
		e: e, ident: i, sess: sess, sock: s, ctl: NewControl(e.cfg.LargestPacket),
		proposals: make(map[[16]byte]bool),
		asked:     make(map[[16]byte]*proposalState), wanted: make(map[[16]byte]*Receipt), usedAt: e.now(),
		streams: newStreams(i.role, e.memory),
	}
	if e.cfg.Store != nil {
		c.records = c.record
	}
	if i.role == RoleServer {
		c.tokenID = i.token.ID()
	}
	return c, nil
}

// now is the time since the start; at is the clock's time then.
func (e *Endpoint) now() time.Duration { return time.Since(e.began) + 1 }

func (e *Endpoint) at(now time.Duration) time.Time { return e.began.Add(now - 1) }

// ID returns the socket's id, and Role which end this is.
func (c *Conn) ID() SocketID { return c.ident.id }

// Role returns whether this end opened the socket.
func (c *Conn) Role() Role { return c.ident.role }

// Peer returns the other end: of a server's end, as the client told it, and empty
// until the session is confirmed.
func (c *Conn) Peer() peer.ID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ident.dest
}

// Grant returns what the socket's token gives its bearer; of a server's end only.
func (c *Conn) Grant() Grant { return c.grant }

// Report returns the socket's figures.
func (c *Conn) Report() Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sock.Report()
}

// Err returns why the socket has stopped sending, or nil.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed != nil {
		return c.closed
	}
	return c.stopped
}

// SetLimits sets both limits, also over what "no refund" has raised.
func (c *Conn) SetLimits(low, high Limit) error {
	return c.limits(func() (Limit, Limit, error) { return low, high, nil })
}

// Pay pushes n more.
func (c *Conn) Pay(n tally.Amount) error {
	return c.limits(func() (Limit, Limit, error) { return c.sock.AfterPay(n) })
}

// Charge asks for n more.
func (c *Conn) Charge(n tally.Amount) error {
	return c.limits(func() (Limit, Limit, error) { return c.sock.AfterCharge(n) })
}

// PayUpTo gives up to n more when it is asked for.
func (c *Conn) PayUpTo(n tally.Amount) error {
	return c.limits(func() (Limit, Limit, error) { return c.sock.AfterPayUpTo(n) })
}

// ChargeUpTo takes up to n more when it comes.
func (c *Conn) ChargeUpTo(n tally.Amount) error {
	return c.limits(func() (Limit, Limit, error) { return c.sock.AfterChargeUpTo(n) })
}

func (c *Conn) limits(after func() (Limit, Limit, error)) error {
	c.mu.Lock()
	if c.closed != nil {
		defer c.mu.Unlock()
		return c.closed
	}
	low, high, err := after()
	if err == nil {
		_, err = c.sock.Step(&Event{Kind: EvLimits, Min: low, Max: high})
		c.dirty = true
	}
	if err != nil {
		c.mu.Unlock()
		return err
	}
	c.resume()
	c.tellAt, c.again, c.calls = 0, false, true
	c.notify()
	c.mu.Unlock()
	c.e.save(c.record)
	c.kick()
	return nil
}

// resume lets a sender that had stopped try again. Called with mu held.
func (c *Conn) resume() {
	c.stopped = nil
	c.ctl.Resume(c.e.now())
}

// Resume lets a socket that has stopped, or has been idle, go on. Those whose money
// was to move still go on by themselves after a restart.
func (c *Conn) Resume() {
	c.mu.Lock()
	c.resume()
	c.usedAt = c.e.now()
	c.openAt, c.calls = 0, true
	c.mu.Unlock()
	c.kick()
}

// Settled reports whether no money is going to move.
func (c *Conn) Settled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.settled()
}

func (c *Conn) settled() bool { return c.sock.Settled() && !c.sock.Untold() && !c.sock.Unsure() }

// WaitSettled returns nil once the socket is settled, or why it cannot be: it
// stopped sending, was closed, or ctx ended.
func (c *Conn) WaitSettled(ctx context.Context) error { return c.wait(ctx, c.settled) }

// WaitBalance returns nil once the balance is b.
func (c *Conn) WaitBalance(ctx context.Context, b tally.Balance) error {
	return c.wait(ctx, func() bool { return c.sock.Balance() == b })
}

// WaitUntil returns nil once the socket's figures are as cond wants them. It is
// called again and again, and must not call the socket.
func (c *Conn) WaitUntil(ctx context.Context, cond func(*Report) bool) error {
	return c.wait(ctx, func() bool {
		r := c.sock.Report()
		return cond(&r)
	})
}

// wait returns nil once cond, which is called with mu held, is true.
func (c *Conn) wait(ctx context.Context, cond func() bool) error {
	for {
		c.mu.Lock()
		ok, err, changed := cond(), c.closed, c.watch()
		if err == nil {
			err = c.stopped
		}
		c.mu.Unlock()
		switch {
		case ok:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watch returns what is closed at the next change. Called with mu held.
func (c *Conn) watch() chan struct{} {
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	return c.changed
}

// notify wakes those who wait. Called with mu held.
func (c *Conn) notify() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

func (c *Conn) stop(err error) {
	c.stopped = err
	c.notify()
}

// Close tells the peer, and ends the socket at both ends for good. What is in
// flight is still booked when it is answered.
func (c *Conn) Close() {
	c.mu.Lock()
	if c.closed != nil {
		c.mu.Unlock()
		return
	}
	c.closing = true
	list := c.news(nil, c.e.now())
	c.finished(ErrClosed)
	c.mu.Unlock()
	c.e.enqueue(list)
	c.drop()
}

// end stops the socket; drop takes it out of memory as well.
func (c *Conn) end(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLocked(why)
}

func (c *Conn) endLocked(why error) {
	if c.closed == nil {
		c.closed = why
		if c.timer != nil {
			c.timer.Stop()
		}
		c.streams.End(why)
		c.notify()
	}
}

// finished ends the socket for good. Called with mu held; drop has to follow.
func (c *Conn) finished(why error) {
	c.over = true
	c.endLocked(why)
}

// landed reports whether nothing of ours is in flight that has to be booked.
func (c *Conn) landed() bool {
	for _, o := range c.out {
		if o.flight.kind == outMoney {
			return false
		}
	}
	return true
}

// gone reports whether a socket that has ended can be dropped.
func (c *Conn) gone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed != nil && c.landed()
}

// drop takes a socket that has ended out of memory, unless holds wait to be
// decided: then the last of them does it. Of one that is over nothing stays.
func (c *Conn) drop() {
	e := c.e
	if c.ident.role == RoleServer {
		e.leave(c.tokenID, c.ident.id)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conns[c.ident.id] != c {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.landed() {
		return
	}
	for _, o := range c.out {
		o.at = -1
	}
	c.out = nil
	delete(e.conns, c.ident.id)
	switch {
	case !c.over && c.sock.sent|c.sock.received != 0:
		live := c.ident.live
		c.ident.live = false
		s := storedOf(&c.ident, appendConn(nil, &c.ident, c.sock))
		e.stored[c.ident.id] = s
		if live && c.written { // it is idle, and stays so over a restart
			e.saveLater(e.idler(c.ident.id, s.rec))
		}
		return // it still counts
	case c.written:
		e.saveLater(e.eraser([]SocketID{c.ident.id}, nil))
	}
	e.uncount(c.ident.from)
}

// abandon gives up a socket that never opened.
func (c *Conn) abandon(why error) {
	c.mu.Lock()
	c.finished(why)
	c.mu.Unlock()
	c.drop()
}

// kick does what is due: opens, probes, pays, tells.
func (c *Conn) kick() {
	c.e.send(c.look(nil))
}

// lookSoon has another goroutine look, once for all that is done until then. Called with
// mu held.
func (c *Conn) lookSoon() {
	if !c.looking {
		c.looking = true
		c.e.lookAt(c)
	}
}

// look adds what is due to list, and sets the timer.
func (c *Conn) look(list []*Outgoing) []*Outgoing {
	now := c.e.now()
	c.mu.Lock()
	c.looking = false
	if c.armed <= now {
		c.armed = 0
	}
	list = c.due(list, now)
	idle := c.arm(now)
	c.mu.Unlock()
	if idle {
		c.end(fmt.Errorf("%w: idle for %v", ErrClosed, IdleTime))
		c.drop()
	}
	return list
}

// due collects what is to be sent. Called with mu held.
func (c *Conn) due(list []*Outgoing, now time.Duration) []*Outgoing {
	if c.closed != nil {
		return list
	}
	if !c.sess.Confirmed() {
		return c.begin(list, now)
	}
	for {
		n, ok := c.ctl.Probe(now)
		if !ok {
			break
		}
		c.pkt.Reset()
		list = c.seal(list, now, outProbe, n, PacketID(c.e.entropy.id()))
	}
	if !c.sock.rate.Known() {
		switch r, done, err := c.ctl.ProbesDone(now); {
		case err != nil:
			c.stop(err)
		case done:
			if _, err := c.sock.Step(&Event{Kind: EvRate, Rate: r, Slip: defaultSlippage}); err != nil {
				c.stop(err)
			}
			c.notify()
		}
	}
	if c.stopped == nil {
		list = c.pump(list, now)
	}
	if c.mustTell(now) && now >= c.tellAt {
		list = c.news(list, now)
	}
	return c.dataDue(list, now)
}

// begin sends what leads to a confirmed pair: the client's Open; or, of a server
// that was read from disk, a call: a packet in a session that its client does not
// know, and which says nothing else. Called with mu held.
func (c *Conn) begin(list []*Outgoing, now time.Duration) []*Outgoing {
	client := c.ident.role == RoleClient
	if now < c.openAt || !client && (!c.calls || c.ident.dest == "") {
		return list
	}
	c.openTries = min(c.openTries+1, 20)
	c.openAt = now + Backoff(c.openTries+3, c.e.entropy.uint32())
	c.pkt.Reset()
	if !client {
		return c.seal(list, now, outCall, 0, PacketID(c.e.entropy.id()))
	}
	c.pkt.Has |= HasOpen
	c.pkt.Open = OpenFrame{Asset: c.e.assetCode, Suite: SuiteNative, Idle: uint32(IdleTime / time.Second)}
	c.wayBack(&c.pkt.Open.ViaFrame)
	return c.seal(list, now, outOpen, 0, PacketID(c.e.entropy.id()))
}

// suspect is called at a client with an authentic packet of a session that it does
// not know: the server has restarted, or somebody plays a recording. An answer to a
// packet of ours tells which, because a server that has restarted answers reopen.
// Called with mu held.
func (c *Conn) suspect(now time.Duration) {
	if c.ident.role != RoleClient || c.doubtAt != 0 && now-c.doubtAt < doubtEvery {
		return
	}
	c.doubtAt, c.doubt = now, true
	c.tellAt, c.openAt = 0, 0
}

// late reports that we ask for money, and that nothing was heard for half the time
// after which a socket is idle. The peer has seen what we ask, and may have
// restarted without having kept it, or may have stopped, so it is asked once more, until
// it answers. Called with mu held.
func (c *Conn) late(now time.Duration) bool {
	return !c.again && c.asks() && now-c.usedAt >= IdleTime/2
}

func (c *Conn) asks() bool {
	low, _ := c.sock.Limits()
	return low.over(c.sock.Balance()).N > 0
}

// arm sets the timer to the next moment at which something is due by time alone,
// and reports whether the socket has been idle for too long. Called with mu held.
func (c *Conn) arm(now time.Duration) (idle bool) {
	if c.closed != nil {
		return false
	}
	next := c.usedAt + IdleTime
	if now >= next && len(c.out) == 0 {
		return true
	}
	sooner := func(at time.Duration) {
		if at > now {
			next = min(next, at)
		}
	}
	if !c.sess.Confirmed() {
		sooner(c.openAt)
	}
	sooner(c.ctl.RetryAt())
	if c.mustTell(now) {
		sooner(c.tellAt)
	}
	if c.sess.Confirmed() && !c.again && c.asks() {
		sooner(c.usedAt + IdleTime/2)
	}
	if c.sess.Confirmed() {
		sooner(c.streams.RetryAt())
		sooner(c.streams.Late(now, 0))
		if c.streams.Live() {
			sooner(c.usedAt + keepAlive)
			sooner(c.tellAt)
		}
	}
	if c.sock.Due() > 0 || !c.sock.rate.Known() {
		sooner(now + time.Second) // the control's clocks: probes, progress
	}
	// A timer that goes off earlier does no harm: it comes here again. Setting one
	// for each packet would cost more than the packet.
	if c.armed > now && c.armed <= next {
		return false
	}
	next = max(next, now+time.Millisecond)
	c.armed = next
	if c.timer == nil {
		c.timer = time.AfterFunc(next-now, c.kick)
	} else {
		c.timer.Reset(next - now)
	}
	return false
}
