package swap

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

// The rig of the shell's tests: nodes are books on disks that can crash, and a
// wire carries their messages as swapnet does. Most tests run in a synctest
// bubble, where the time of all of them is exact; the stores in memory have no
// goroutine but their committer and live there.

// node is one book of a test.
type node struct {
	*Book
	t    testing.TB
	name string
	key  crypto.PrivKey
	id   peer.ID
	disk *durabletest.Crash
	cfg  Config
	// onRevive, where set, gets the disk that the next life begins on, once.
	onRevive func(*durabletest.Crash)

	// mu guards the fields below.
	mu      sync.Mutex
	remains *durabletest.Crash // what a dead process left on its disk
	notices []Notice
}

// testKey returns the same key for the same seed.
func testKey(seed uint16) crypto.PrivKey {
	raw := ed25519.NewKeyFromSeed([]byte{31: byte(seed), 30: byte(seed >> 8)})
	key, err := crypto.UnmarshalEd25519PrivateKey(raw)
	if err != nil {
		panic(err)
	}
	return key
}

// testPeer returns a peer id that nobody in the test has the book of.
func testPeer(seed uint16) peer.ID {
	id, err := peer.IDFromPrivateKey(testKey(seed))
	if err != nil {
		panic(err)
	}
	return id
}

// quiet is a logger for tests that break things on purpose.
var quiet = slog.New(slog.DiscardHandler)

// newNode opens a book on a new disk. It is closed when the test ends.
func newNode(t testing.TB, seed uint16, change ...func(*Config)) *node {
	t.Helper()
	return newNodeOn(t, durabletest.NewMemCrash(), seed, change...)
}

func newNodeOn(t testing.TB, disk *durabletest.Crash, seed uint16, change ...func(*Config)) *node {
	t.Helper()
	n := &node{t: t, name: string(rune('a' + seed)), key: testKey(seed), id: testPeer(seed), disk: disk}
	n.cfg = Config{Key: n.key, Realm: Realm{Network: "test", Asset: "karma"}, Logger: quiet}
	n.cfg.Notify = func(x Notice) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.notices = append(n.notices, x)
	}
	for _, f := range change {
		f(&n.cfg)
	}
	n.open()
	t.Cleanup(n.end)
	return n
}

// withPolicy is a change for newNode.
func withPolicy(p Policy) func(*Config) { return func(c *Config) { c.Policy = p } }

func (n *node) open() {
	n.t.Helper()
	b, err := Open(context.Background(), n.disk.Store, n.cfg)
	if err != nil {
		n.t.Fatalf("open %s: %v", n.name, err)
	}
	n.Book = b
}

// end closes book and disk; a book on a broken disk may complain.
func (n *node) end() {
	if err := n.Close(); err != nil && n.disk.Failed() == nil {
		n.t.Errorf("close %s: %v", n.name, err)
	}
	if err := n.disk.Close(); err != nil && n.disk.Failed() == nil {
		n.t.Errorf("close the disk of %s: %v", n.name, err)
	}
}

// stop is a clean stop of the process, and a start on the same disk.
func (n *node) stop() {
	n.t.Helper()
	if err := n.Close(); err != nil {
		n.t.Fatalf("close %s: %v", n.name, err)
	}
	disk := n.disk.Clone()
	n.end()
	n.disk = disk
	n.open()
}

// die ends the process at this moment: what is on disk now is all that is left.
// The book goes on in memory, as a ghost that nobody hears.
func (n *node) die() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.remains == nil {
		n.remains = n.disk.Clone()
	}
}

func (n *node) dead() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.remains != nil || n.disk.Failed() != nil
}

// revive starts a dead node on what its disk kept.
func (n *node) revive() {
	n.t.Helper()
	n.die()
	n.end()
	n.disk, n.remains = n.remains, nil
	if f := n.onRevive; f != nil {
		n.onRevive = nil
		f(n.disk)
	}
	n.open()
}

// restore ends the process and starts one on another disk: an old backup, or an
// empty one.
func (n *node) restore(disk *durabletest.Crash) {
	n.t.Helper()
	n.end()
	n.disk = disk
	n.open()
}

// row returns the tab with another node.
func (n *node) row(with *node) Row {
	n.t.Helper()
	r, err := n.Row(with.id)
	if err != nil {
		n.t.Fatalf("row of %s with %s: %v", n.name, with.name, err)
	}
	return r
}

// tab returns the ledger of a peer as it is in memory or on disk.
func (n *node) tab(p peer.ID) Ledger {
	n.t.Helper()
	var l Ledger
	if err := n.look(p, func(a *account) { l = a.ledger }); err != nil {
		n.t.Fatalf("tab of %s: %v", n.name, err)
	}
	return l
}

// onDisk returns the ledger that the disk holds, and whether it holds one.
func (n *node) onDisk(p peer.ID) (Ledger, bool) {
	n.t.Helper()
	key := n.keys.of(shelfLedger, p)
	rec, err := n.store.Get(context.Background(), key)
	if errors.Is(err, durable.ErrNotFound) {
		return Ledger{}, false
	}
	if err != nil {
		n.t.Fatalf("record of %s: %v", n.name, err)
	}
	l, _, err := n.unsealLedger(key, rec)
	if err != nil {
		n.t.Fatalf("record of %s: %v", n.name, err)
	}
	return l, true
}

// check fails the test where the book is not whole. It is for bubbles: a save
// under way is waited for.
func (n *node) check() {
	n.t.Helper()
	synctest.Wait()
	if err := n.Check(context.Background()); err != nil {
		n.t.Errorf("book %s: %v", n.name, err)
	}
}

// noticed counts the notices of a kind.
func (n *node) noticed(kind NoticeKind) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for _, x := range n.notices {
		if x.Kind == kind {
			count++
		}
	}
	return count
}

// wire joins two nodes. Each way has a queue and a goroutine that hands the
// messages over in order while the session lives.
type wire struct {
	t    testing.TB
	a, b *node

	// mu guards the fields below.
	mu    sync.Mutex
	queue map[peer.ID]chan Message // by receiver; nil while hung up
	log   []carried
	// onSend, where set, is asked before a message is put on the wire, without
	// lock. It returns false to lose the message, or an error for the sender.
	onSend func(from *node, m Message) (bool, error)
	// onReceive, where set, is asked before a message is handed over.
	onReceive func(to *node, m Message) bool

	readers sync.WaitGroup
}

// carried is one message that was put on the wire.
type carried struct {
	from *node
	m    Message
}

func (w *wire) other(n *node) *node {
	if n == w.a {
		return w.b
	}
	return w.a
}

// end is one side's Courier.
type end struct {
	w    *wire
	from *node
	book *Book // the process that it belongs to
}

func (e end) Send(_ context.Context, p peer.ID, m Message) error {
	w := e.w
	if e.from.Book != e.book || e.from.dead() {
		return ErrNoSession // a ghost speaks
	}
	w.mu.Lock()
	ask := w.onSend
	up := w.queue != nil
	w.mu.Unlock()
	if !up || p != w.other(e.from).id {
		return ErrNoSession
	}
	e.from.savedFirst(p, m)
	if ask != nil {
		if carry, err := ask(e.from, m); err != nil || !carry {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, carried{e.from, m})
	if w.queue != nil {
		w.queue[p] <- m
	}
	return nil
}

// savedFirst fails the test where a message leaves before the disk holds what it
// says. It is asked for every message of every test.
func (n *node) savedFirst(to peer.ID, m Message) {
	switch m := m.(type) {
	case *Cheque:
		l, _ := n.onDisk(to)
		c, err := n.getCheque(shelfChequeSent, to)
		if err != nil || c == nil || c.Serial < m.Serial || l.sentSerial < m.Serial || l.issued < m.Cumulative {
			n.t.Errorf("%s sends cheque %d over %d before it is on disk: %s, %v", n.name, m.Serial, m.Cumulative, describe(&l), err)
		}
	case *Ack:
		l, _ := n.onDisk(to)
		c, err := n.getCheque(shelfChequeReceived, to)
		if err != nil || c == nil || c.Serial < m.Serial || l.received < m.Credited {
			n.t.Errorf("%s acks %d up to %d before it is on disk: %s, %v", n.name, m.Serial, m.Credited, describe(&l), err)
		}
	}
}

func (e end) Disconnect(peer.ID) error { return nil }

// wireUp joins two nodes and shakes hands. The wire is hung up when the test
// ends.
func wireUp(t testing.TB, a, b *node) *wire {
	t.Helper()
	w := &wire{t: t, a: a, b: b}
	t.Cleanup(w.hangUp)
	w.dial()
	return w
}

// dial shakes hands both ways. A node that dies in it leaves no session.
func (w *wire) dial() {
	w.t.Helper()
	ctx := context.Background()
	w.mu.Lock()
	w.queue = map[peer.ID]chan Message{w.a.id: make(chan Message, 4096), w.b.id: make(chan Message, 4096)}
	w.mu.Unlock()
	hello := map[*node]*Handshake{}
	for _, n := range []*node{w.a, w.b} {
		n.Bind(end{w, n, n.Book})
		h, err := n.Hello(ctx, w.other(n).id)
		if err != nil {
			w.t.Fatalf("hello of %s: %v", n.name, err)
		}
		hello[n] = h
	}
	for _, n := range []*node{w.b, w.a} {
		from := w.other(n)
		if err := n.BeginSession(ctx, from.id, hello[from], true); err != nil {
			if n.dead() {
				continue
			}
			w.t.Fatalf("session of %s: %v", n.name, err)
		}
		w.read(n, from)
	}
}

// read hands over what is for n while the wire is up, and refuses as swapnet
// does.
func (w *wire) read(n, from *node) {
	book := n.Book
	w.mu.Lock()
	in := w.queue[n.id]
	w.mu.Unlock()
	w.readers.Go(func() { // ends when the wire is hung up
		for m := range in {
			if n.dead() {
				continue
			}
			w.mu.Lock()
			ask := w.onReceive
			w.mu.Unlock()
			if ask != nil && !ask(n, m) {
				continue
			}
			err := book.Receive(context.Background(), from.id, m)
			if c, ok := m.(*Cheque); ok && err != nil {
				_ = end{w, n, book}.Send(context.Background(), from.id, &Refusal{Serial: c.Serial, Code: RefusalFor(err)})
			}
		}
	})
}

// hangUp ends the session; what is on the wire is handed over first.
func (w *wire) hangUp() {
	w.mu.Lock()
	queue := w.queue
	w.queue = nil
	w.mu.Unlock()
	if queue == nil {
		return
	}
	for _, q := range queue {
		close(q)
	}
	w.readers.Wait()
	w.a.EndSession(w.b.id)
	w.b.EndSession(w.a.id)
}

// redial hangs up, starts who is dead, and shakes hands again.
func (w *wire) redial() {
	w.t.Helper()
	w.hangUp()
	for _, n := range []*node{w.a, w.b} {
		if n.dead() {
			n.revive()
		}
	}
	w.dial()
}

// carried returns the messages of type M that a node put on the wire.
func messages[M Message](w *wire, from *node) []M {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []M
	for _, c := range w.log {
		if m, ok := c.m.(M); ok && c.from == from {
			list = append(list, m)
		}
	}
	return list
}

// ask sets the hook of the wire.
func (w *wire) ask(f func(from *node, m Message) (bool, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onSend = f
}

// serve moves units of one request from server to client, as storenet does.
func serve(ctx context.Context, client, server *node, units tally.Amount) error {
	take, err := client.Reserve(ctx, server.id, "store", Consume, units)
	if err != nil {
		return err
	}
	give, err := server.TryReserve(ctx, client.id, "store", Serve, units)
	if err != nil {
		return errors.Join(err, take.Release())
	}
	if err := give.Commit(units); err != nil {
		return errors.Join(err, take.Lost())
	}
	return take.Commit(units)
}

// mustServe is serve of n requests that all succeed.
func mustServe(t testing.TB, client, server *node, units tally.Amount, n int) {
	t.Helper()
	for range n {
		if err := serve(context.Background(), client, server, units); err != nil {
			t.Fatalf("%s consumes %d from %s: %v", client.name, units, server.name, err)
		}
	}
}

// agree fails the test where two books at rest are not negatives of each other.
func agree(t testing.TB, a, b *node) {
	t.Helper()
	ra, rb := a.row(b), b.row(a)
	if ra.Balance != -rb.Balance || ra.Served != rb.Consumed || ra.Consumed != rb.Served ||
		ra.Paid != rb.Received || ra.Received != rb.Paid {
		t.Errorf("the books differ:\n%s %+v\n%s %+v", a.name, ra, b.name, rb)
	}
}

// vault is a settler with a store of its own: it remembers what it issued, gives
// the same backing for the same cumulative, and can be told to wait or fail.
type vault struct {
	before func(p peer.ID, cumulative tally.Amount) error // asked on each Issue
	accept func(p peer.ID, cumulative tally.Amount) (tally.Amount, error)

	// mu guards the fields below.
	mu    sync.Mutex
	asked []tally.Amount // every Issue
}

var _ Settler = (*vault)(nil)

func (v *vault) Issue(_ context.Context, p peer.ID, c Claim) (Backing, error) {
	cumulative := c.Cumulative
	if v.before != nil {
		if err := v.before(p, cumulative); err != nil {
			return nil, err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked = append(v.asked, cumulative)
	return ThresholdBytes(cumulative), nil
}

func (v *vault) Accept(_ context.Context, p peer.ID, c Claim, backing Backing) (tally.Amount, error) {
	cumulative := c.Cumulative
	covered, err := ClampThreshold(backing)
	if err != nil {
		return 0, err
	}
	if v.accept != nil {
		return v.accept(p, covered)
	}
	return min(covered, cumulative), nil
}

func (v *vault) issues() []tally.Amount {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.asked)
}

// hard makes a node settle with a vault.
func hard(v *vault) func(*Config) {
	return func(c *Config) { c.Policy.Mode, c.Settler = ModeHard, v }
}

// eventually yields until cond holds; what it waits for happens without further
// help. In a bubble use synctest.Wait.
func eventually(t testing.TB, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatal("the condition did not come to hold")
		}
		runtime.Gosched()
	}
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(killChildEnv); dir != "" {
		killChild(dir)
	}
	slog.SetDefault(quiet) // the disks that tests break say so
	goleak.VerifyTestMain(m)
}
