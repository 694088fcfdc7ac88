package sim

import (
	"container/heap"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/swap"
)

// Options of Run. The zero value is a short run with every fault.
type Options struct {
	// Peers is the number of books. Default: 2 to 5, by the seed.
	Peers int
	// Steps is how many events the seed makes before all is healed.
	// Default 400.
	Steps int
	// Faults are what may happen. Default: AllFaults.
	Faults Faults
	// Hostile is the number of peers, of Peers, that lie and do not pay.
	// Default 0.
	Hostile int
	// Pebble puts the books on Pebble over a file system in memory, where a
	// crash may tear a write. By default they are on a store in memory whose
	// writes are there or not.
	Pebble bool
	// Policy of all books. Default swap.DefaultPolicy.
	Policy swap.Policy
	// Log takes the events, one a line. Nil is allowed.
	Log io.Writer

	// spoil breaks the world on purpose, so that a test can show that an
	// invariant fails.
	spoil func(w *world)
}

// Faults turns kinds of faults on. The zero value means AllFaults; NoFaults is a
// run on a good day.
type Faults uint

// Faults of network and disk.
const (
	// Loss loses messages while their session lives on.
	Loss Faults = 1 << iota
	// Repeat delivers messages twice.
	Repeat
	// Reorder delivers messages of a session in another order.
	Reorder
	// Flap ends sessions, with all that is on the way.
	Flap
	// Partition keeps two peers apart for a time.
	Partition
	// Crash stops a book at any moment, and at any write.
	Crash
	// NoFaults is none of them.
	NoFaults Faults = 1 << 31
)

// AllFaults is all of them. What a session carries stays in order: that is what
// swapnet promises to a book. Reorder has to be asked for.
const AllFaults = Loss | Repeat | Flap | Partition | Crash

// Report is what a run saw.
type Report struct {
	Seed     uint64
	Peers    int
	Events   int
	Hash     string // SHA-256 of the event log
	Elapsed  time.Duration
	Units    tally.Amount // that reached a client
	Cheques  int          // acked
	Sessions int
	Crashes  int
	Lost     int // messages that never came
	// Forgiven is what crashes cost the creditors, all tabs together; Lossy is
	// the largest loss to a hostile peer.
	Forgiven, Lossy tally.Amount
	// Unresolved counts tabs whose books differ at the end because the peer's
	// allowance was used up: an operator has to look at them.
	Unresolved int
}

// Violation is an invariant that did not hold.
type Violation struct {
	Seed   uint64
	At     time.Duration // since the begin of the run
	Event  string        // after which it was found
	Broken string
}

func (v *Violation) Error() string {
	return fmt.Sprintf("sim: seed %d, at %v, after %q: %s\nreplay: go test ./testnet/sim -run TestSim -v -sim.seed=%d",
		v.Seed, v.At, v.Event, v.Broken, v.Seed)
}

// Run makes one run. An error is a *Violation, or says that the world itself
// failed; the report is valid either way as far as it goes.
//
// The process runs on one processor meanwhile: on two, a book's own flush may or
// may not come before that of a caller at the same instant, and which write is
// the sixth depends on it.
func Run(t *testing.T, seed uint64, opt Options) (report Report, err error) {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	synctest.Test(t, func(t *testing.T) { report, err = run(t.Context(), seed, opt) })
	return report, err
}

// Times of the world.
const (
	// minDelay and maxDelay bound how long a message is on the way.
	minDelay, maxDelay = time.Millisecond, 200 * time.Millisecond
	// answerWithin is how long a client waits for an answer.
	answerWithin = 10 * time.Second
	// healFor is how long the world is left alone at the end: longer than the
	// longest back-off of a cheque and than a block.
	healFor = 20 * time.Minute
)

// world is one run.
type world struct {
	opt    Options
	seed   uint64
	rng    *rand.Rand
	ctx    context.Context
	begin  time.Time
	policy swap.Policy

	parties []*party
	links   map[[2]int]*link
	queue   queue
	order   uint64 // of events that were planned

	mail   mailbox
	digest hash.Hash
	last   string // event
	healed bool
	report Report
	truth  map[[2]int]*truth

	// remains, where set, is the disk after a crash; served is called after a
	// service was booked. Only Options.spoil sets them.
	remains func(p *party) *durabletest.Crash
	served  func(r *request)
}

// party is a peer: a book, or a liar.
type party struct {
	index int
	name  string
	key   crypto.PrivKey
	id    peer.ID

	disk    *durabletest.Crash
	book    *swap.Book // nil while it is down
	life    int
	crashes int
	liar    *liar
}

func (p *party) up() bool { return p.book != nil || p.liar != nil }

// link is the session between two parties, the lower index first.
type link struct {
	a, b  *party
	epoch int // of the session; messages of an older one never come
	up    bool
	begun [2]bool // by a, by b
	until time.Duration
	// due is when the last message of each way comes: a session keeps order.
	due [2]time.Duration
	// open are requests under way.
	open map[int]*request
}

func (l *link) side(p *party) int {
	if p == l.a {
		return 0
	}
	return 1
}

// truth is what really happened between a client and a server.
type truth struct {
	tried    tally.Amount // units that the server began to book
	answered tally.Amount // and that left it
	arrived  tally.Amount // and reached the client
	acked    tally.Amount // the highest cumulative that an ack of the server named
	promised tally.Amount // the highest cumulative of the client's cheques
}

// request is one use of a service.
type request struct {
	number         int
	client, server *party
	units          tally.Amount
	hold           swap.Hold
	life           int // of the client
}

func run(ctx context.Context, seed uint64, opt Options) (Report, error) {
	w := newWorld(ctx, seed, opt)
	defer w.close()
	err := w.play()
	w.report.Hash = hex.EncodeToString(w.digest.Sum(nil))
	w.report.Elapsed = w.now()
	return w.report, err
}

func newWorld(ctx context.Context, seed uint64, opt Options) *world {
	w := &world{
		opt: opt, seed: seed, rng: rand.New(rand.NewPCG(seed, 0x7461_6c6c_79)), ctx: ctx, begin: time.Now(),
		links: make(map[[2]int]*link), digest: sha256.New(), truth: make(map[[2]int]*truth), policy: opt.Policy.Complete(),
	}
	if w.opt.Peers == 0 {
		w.opt.Peers = 2 + w.rng.IntN(4)
	}
	if w.opt.Steps == 0 {
		w.opt.Steps = 400
	}
	if w.opt.Faults == 0 {
		w.opt.Faults = AllFaults
	}
	w.report = Report{Seed: seed, Peers: w.opt.Peers}
	w.mail.world = w
	return w
}

// has reports whether a fault may happen now.
func (w *world) has(f Faults) bool { return !w.healed && w.opt.Faults&f != 0 }

func (w *world) chance(percent int) bool { return w.rng.IntN(100) < percent }

func (w *world) now() time.Duration { return time.Since(w.begin) }

// logf writes one line of the event log.
func (w *world) logf(format string, args ...any) {
	line := fmt.Sprintf("%12d ", w.now().Nanoseconds()) + fmt.Sprintf(format, args...) + "\n"
	_, _ = w.digest.Write([]byte(line)) // never fails
	if w.opt.Log != nil {
		_, _ = io.WriteString(w.opt.Log, line)
	}
	w.report.Events++
}

func (w *world) play() error {
	for i := range w.opt.Peers {
		if err := w.addParty(i); err != nil {
			return err
		}
	}
	for i, a := range w.parties {
		for _, b := range w.parties[i+1:] {
			if a.liar != nil && b.liar != nil {
				continue
			}
			w.links[[2]int{i, b.index}] = &link{a: a, b: b, open: make(map[int]*request)}
			w.plan(w.someTime(time.Second), "connect", func() { w.connect(a, b) })
		}
	}
	if w.opt.spoil != nil {
		w.opt.spoil(w)
	}
	for range w.opt.Steps {
		step := w.planStep()
		for done := false; !done; { // what is due before it comes first
			done = w.queue[0] == step
			if err := w.next(); err != nil {
				return err
			}
		}
	}
	return w.heal()
}

// addParty makes a peer with a key of its own.
func (w *world) addParty(i int) error {
	var raw [ed25519.SeedSize]byte
	binary.BigEndian.PutUint64(raw[:], w.seed)
	raw[31] = byte(i + 1)
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(raw[:]))
	if err != nil {
		return err
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return err
	}
	p := &party{index: i, name: string(rune('a' + i)), key: key, id: id}
	w.parties = append(w.parties, p)
	if i >= w.opt.Peers-w.opt.Hostile {
		p.liar = newLiar(w, p)
		return nil
	}
	if w.opt.Pebble {
		p.disk = durabletest.NewCrash()
	} else {
		p.disk = durabletest.NewMemCrash()
	}
	return w.open(p)
}

// realm is what all signatures are bound to.
var realm = swap.Realm{Network: "sim", Asset: "karma"}

func (w *world) open(p *party) error {
	b, err := swap.Open(w.ctx, p.disk.Store, swap.Config{
		Key: p.key, Realm: realm, Policy: w.policy, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return fmt.Errorf("sim: open the book of %s: %w", p.name, err)
	}
	b.Bind(&courier{box: &w.mail, from: p, life: p.life})
	p.book = b
	return nil
}

func (w *world) close() {
	for _, p := range w.parties {
		if p.book != nil {
			_ = p.book.Close() // its disk may be dead
		}
		if p.disk != nil {
			_ = p.disk.Close()
		}
	}
}

// someTime is a random time from now, never the same twice: what happens at one
// instant would have no order.
func (w *world) someTime(within time.Duration) time.Duration {
	return time.Duration(w.rng.Int64N(int64(within))) + time.Duration(1+w.rng.Int64N(999_983))
}

// task is something that will happen.
type task struct {
	at    time.Duration
	order uint64
	name  string
	do    func()
}

type queue []*task

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(*task)) }
func (q *queue) Pop() any {
	old := *q
	t := old[len(old)-1]
	*q = old[:len(old)-1]
	return t
}

func (w *world) plan(in time.Duration, name string, do func()) *task {
	return w.planAt(w.now()+in, name, do)
}

func (w *world) planAt(at time.Duration, name string, do func()) *task {
	w.order++
	t := &task{at: at, order: w.order, name: name, do: do}
	heap.Push(&w.queue, t)
	return t
}

// next does the next task, lets the books come to rest, carries what they sent,
// and looks at every invariant.
func (w *world) next() error {
	if len(w.queue) == 0 {
		return errors.New("sim: nothing is left to happen")
	}
	t := heap.Pop(&w.queue).(*task)
	w.last = t.name
	if wait := t.at - w.now(); wait > 0 {
		time.Sleep(wait)
	}
	synctest.Wait() // a timer of a book may have struck at the same instant
	w.carry()
	t.do()
	synctest.Wait()
	w.carry()
	w.bury()
	return w.check()
}

// planStep decides what the world does next beside what is under way.
func (w *world) planStep() *task {
	in := w.someTime(300 * time.Millisecond)
	l := w.someLink()
	switch roll := w.rng.IntN(100); {
	case roll < 72:
		client, server := l.a, l.b
		if server.liar != nil || w.chance(30) && client.liar == nil {
			client, server = server, client
		}
		units := tally.Amount(1 + w.rng.IntN(25))
		return w.plan(in, "use", func() { w.use(l, client, server, units) })
	case roll < 76:
		p := l.a
		if w.chance(50) {
			p = l.b
		}
		return w.plan(in, "settle", func() { w.settle(l, p) })
	case roll < 82 && w.has(Flap):
		return w.plan(in, "flap", func() { w.hangUp(l, "flap"); w.reconnect(l, w.someTime(time.Second)) })
	case roll < 84 && w.has(Partition):
		d := w.someTime(20 * time.Second)
		return w.plan(in, "partition", func() {
			l.until = w.now() + d
			w.hangUp(l, "partition")
			w.reconnect(l, d+w.someTime(time.Second))
		})
	case roll < 88 && w.has(Crash):
		p := l.a
		if p.liar != nil || w.chance(50) && l.b.liar == nil {
			p = l.b
		}
		n, after, seed := 1+w.rng.IntN(6), w.chance(50), w.rng.Uint64()
		if w.chance(50) {
			return w.plan(in, "crash", func() { w.crash(p, seed) })
		}
		return w.plan(in, "crash at a write", func() { w.crashAt(p, n, after) })
	case roll < 90: // a pause: timers strike
		return w.plan(w.someTime(30*time.Second), "pause", func() {})
	default:
		return w.plan(in, "pass", func() {})
	}
}

func (w *world) someLink() *link {
	for {
		i, j := w.rng.IntN(len(w.parties)), w.rng.IntN(len(w.parties))
		if l := w.links[[2]int{min(i, j), max(i, j)}]; l != nil {
			return l
		}
	}
}

func (w *world) truthOf(client, server *party) *truth {
	key := [2]int{client.index, server.index}
	t := w.truth[key]
	if t == nil {
		t = &truth{}
		w.truth[key] = t
	}
	return t
}

// use is one request of a metered service, as storenet makes it.
func (w *world) use(l *link, client, server *party, units tally.Amount) {
	if !client.up() || !server.up() || !l.up || server.liar != nil {
		w.logf("use %s%s: not connected", client.name, server.name)
		return
	}
	r := &request{number: w.report.Events, client: client, server: server, units: units, life: client.life}
	if client.book != nil {
		hold, err := client.book.TryReserve(w.ctx, server.id, "sim", swap.Consume, units)
		if err != nil {
			w.logf("use %s%s %d: %v", client.name, server.name, units, cause(err))
			return
		}
		r.hold = hold
	}
	w.logf("use %s%s %d: asked", client.name, server.name, units)
	l.open[r.number] = r
	epoch := l.epoch
	if w.has(Loss) && w.chance(3) {
		w.report.Lost++
		w.logf("request %d lost", r.number)
	} else {
		w.plan(w.delay(), "request", func() { w.serve(l, epoch, r) })
	}
	w.plan(answerWithin, "timeout", func() { w.giveUp(l, r, "timeout") })
}

func (w *world) delay() time.Duration { return minDelay + w.someTime(maxDelay-minDelay) }

// serve is the server's half.
func (w *world) serve(l *link, epoch int, r *request) {
	if l.epoch != epoch || !l.up || r.server.book == nil {
		return
	}
	hold, err := r.server.book.TryReserve(w.ctx, r.client.id, "sim", swap.Serve, r.units)
	if err == nil {
		// A crash may strike after the booking and before the answer.
		w.truthOf(r.client, r.server).tried += r.units
		err = hold.Commit(r.units)
		if w.served != nil {
			w.served(r)
		}
	}
	w.logf("serve %s%s %d: %v", r.client.name, r.server.name, r.units, cause(err))
	if err != nil && !isRefusal(err) {
		return // the disk is dead: nothing leaves any more
	}
	if err == nil {
		w.truthOf(r.client, r.server).answered += r.units
	}
	if w.has(Loss) && w.chance(3) {
		w.report.Lost++
		w.logf("answer %d lost", r.number)
		return
	}
	served := err == nil
	w.plan(w.delay(), "answer", func() { w.answered(l, epoch, r, served) })
}

// answered is the client's half.
func (w *world) answered(l *link, epoch int, r *request, served bool) {
	if l.epoch != epoch || l.open[r.number] == nil {
		return
	}
	delete(l.open, r.number)
	if served {
		w.truthOf(r.client, r.server).arrived += r.units
		w.report.Units += r.units
	}
	if r.client.liar != nil {
		if served {
			r.client.liar.got(r.server, r.units)
		}
		return
	}
	if r.client.book == nil || r.client.life != r.life {
		return
	}
	var err error
	if served {
		err = r.hold.Commit(r.units)
	} else {
		err = r.hold.Release()
	}
	w.logf("answer %s%s %d %v: %v", r.client.name, r.server.name, r.units, served, cause(err))
}

// giveUp ends a request without an answer.
func (w *world) giveUp(l *link, r *request, why string) {
	if l.open[r.number] == nil {
		return
	}
	delete(l.open, r.number)
	if r.client.book == nil || r.client.life != r.life {
		return
	}
	w.logf("give up %s%s %d, %s: %v", r.client.name, r.server.name, r.units, why, cause(r.hold.Lost()))
}

func (w *world) settle(l *link, p *party) {
	other := l.a
	if p == l.a {
		other = l.b
	}
	if p.book == nil {
		return
	}
	w.logf("settle %s%s: %v", p.name, other.name, cause(p.book.Settle(w.ctx, other.id)))
}

// cause names an error in words that are the same in every run.
func cause(err error) string {
	if err == nil {
		return "ok"
	}
	for _, known := range [...]error{
		swap.ErrOverThreshold, swap.ErrTooLarge, swap.ErrNoSession, swap.ErrPeerThreshold, swap.ErrPaymentRefused,
		swap.ErrBlocked, swap.ErrSkew, swap.ErrStranger, swap.ErrExposure, swap.ErrTooManyHolds, swap.ErrDone,
		swap.ErrNothingOwed, swap.ErrClosed, durabletest.ErrCrashed, swap.ErrStale, swap.ErrLowerCumulative,
		swap.ErrBadAck, swap.ErrSignature, swap.ErrMalformed, swap.ErrBeneficiary, swap.ErrNetwork,
	} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return err.Error()
}

// isRefusal tells a refusal from a book that can do nothing any more.
func isRefusal(err error) bool {
	_, ok := errors.AsType[*swap.RefusedError](err)
	return ok
}
