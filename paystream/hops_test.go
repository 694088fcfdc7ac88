package paystream_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/paystreamtest"
)

// The tests of this file join endpoints by real hop engines, each with endpoint,
// journal and tab on one disk, and a wire that is in memory.

// hopMost is the largest packet that a tab of these tests takes.
const hopMost = 4000

// savedTabs are tabs without limits but hopMost, whose balances lie on the disk.
type savedTabs struct {
	store   *durable.Store
	mu      sync.Mutex
	balance map[peer.ID]tally.Balance
	held    map[string]tally.Amount
	dirty   map[peer.ID]bool
}

const tabPrefix = "/test/tab/"

func tabKey(p peer.ID) string { return tabPrefix + durable.KeyID([]byte(p)) }

func holdName(p peer.ID, id uint64, dir forward.Dir) string { return fmt.Sprint(p, id, dir) }

func (t *savedTabs) Hold(p peer.ID, id uint64, dir forward.Dir, n tally.Amount) error {
	if n > hopMost {
		return &forward.HeadroomError{Code: forward.CodeTooLarge, Headroom: hopMost, Cause: errors.New("test")}
	}
	t.held[holdName(p, id, dir)] = n
	return nil
}

func (t *savedTabs) Commit(p peer.ID, id uint64, dir forward.Dir) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok := t.held[holdName(p, id, dir)]
	if !ok {
		return errors.New("not held")
	}
	delete(t.held, holdName(p, id, dir))
	if dir == forward.Out {
		t.balance[p] -= tally.Balance(n)
	} else {
		t.balance[p] += tally.Balance(n)
	}
	t.dirty[p] = true
	return nil
}

func (t *savedTabs) Release(p peer.ID, id uint64, dir forward.Dir) error {
	delete(t.held, holdName(p, id, dir))
	return nil
}

func (t *savedTabs) Restore(held []forward.Held) error {
	for _, h := range held {
		t.held[holdName(h.Peer, h.ID, h.Dir)] = h.Units
	}
	return t.store.Scan(context.Background(), tabPrefix, "", func(key string, v []byte) error {
		raw, err := durable.ParseKeyID(key[len(tabPrefix):])
		t.balance[peer.ID(raw)] = tally.Balance(binary.BigEndian.Uint64(v))
		return err
	})
}

func (t *savedTabs) Save(b *durable.Batch) {
	for p := range t.dirty {
		b.Put(tabKey(p), binary.BigEndian.AppendUint64(nil, uint64(t.balance[p])))
	}
}

func (t *savedTabs) Done(error) { clear(t.dirty) }

func (t *savedTabs) with(p peer.ID) tally.Balance {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.balance[p]
}

// hopWire is the sessions of one node.
type hopWire struct {
	self peer.ID
	mu   sync.Mutex
	up   map[peer.ID]*forward.Engine
	gen  map[peer.ID]int // of the session
	last time.Time       // when the newest message arrives
	// bare drops the data of fulfils, as a session does that repeats one, or that
	// has much unread.
	bare bool
}

func (w *hopWire) Send(p peer.ID, m *forward.Msg) {
	w.mu.Lock()
	to, bare, gen := w.up[p], w.bare, w.gen[p]
	// One after the other, so that each is a batch of its own at the other end.
	w.last = w.last.Add(100 * time.Microsecond)
	if soonest := time.Now().Add(2 * time.Millisecond); w.last.Before(soonest) {
		w.last = soonest
	}
	wait := time.Until(w.last)
	w.mu.Unlock()
	if to == nil {
		return
	}
	cp := *m
	cp.Data = append([]byte(nil), m.Data...)
	cp.Token = append([]byte(nil), m.Token...)
	cp.Via = append([]peer.ID(nil), m.Via...)
	cp.Live, cp.Fulfilled = append([]uint64(nil), m.Live...), append([]uint64(nil), m.Fulfilled...)
	if bare && m.Kind == forward.MsgFulfil {
		cp.Data = nil
	}
	time.AfterFunc(wait, func() {
		w.mu.Lock()
		ended := w.gen[p] != gen
		w.mu.Unlock()
		if !ended {
			to.Receive(&forward.Batch{Peer: w.self, Msgs: []forward.Msg{cp}, Recycle: func(*forward.Batch) {}})
		}
	})
}
func (w *hopWire) Flush()               {}
func (w *hopWire) Reset(peer.ID, error) {}

func (w *hopWire) set(p peer.ID, e *forward.Engine) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.up[p] = e
	w.gen[p]++
}

// hopNode is one node: endpoint, engine, tabs, on one disk.
type hopNode struct {
	*paystream.Endpoint
	id     peer.ID
	disk   *durabletest.Crash
	engine *forward.Engine
	tabs   *savedTabs
	wire   *hopWire
}

// handlerOf and carrierOf are the adapter of package host, in short.
type handlerOf struct{ e *paystream.Endpoint }

func (h handlerOf) Packet(d *forward.Delivery) (forward.Decision, bool) {
	got := h.e.Packet(&paystream.Incoming{
		ID: paystream.PacketID(d.Part), From: d.From, Token: d.Token, Amount: d.Amount, Expires: d.Expires,
		Condition: d.Condition.Digest, Data: d.Data,
	})
	return forward.Decision{Fulfil: got.Fulfil, Preimage: got.Preimage, Code: forward.CodeApplication, Data: got.Data, Record: got.Record}, true
}

func answerOf(e *paystream.Endpoint, r *forward.Result) func(*durable.Batch) {
	sent, _ := r.Owner.(*paystream.Outgoing)
	a := &paystream.Answer{ID: paystream.PacketID(r.Part), Sent: sent, Fulfilled: r.Fulfilled, Data: r.Data}
	switch r.Code {
	case forward.CodeTooLarge:
		a.Kind, a.Most = paystream.RejectLarge, r.Headroom
	case forward.CodeApplication, forward.CodeRefused:
		a.Kind = paystream.RejectLimit
	}
	return e.Answer(a)
}

type carrierOf struct{ n *hopNode }

func (c carrierOf) Send(p *paystream.Outgoing) error {
	return c.n.engine.Send(&forward.Packet{
		Dest: p.Dest.Peer, Token: p.Dest.Token, Via: p.Dest.Via, Amount: p.Amount, Expires: p.Expires,
		Condition: forward.Blake2b(p.Condition), Part: forward.PartID(p.ID), Data: p.Data, Record: p.Record, Owner: p,
		Decided: func(r *forward.Result) func(*durable.Batch) { return answerOf(c.n.Endpoint, r) },
	}, nil)
}

func (c carrierOf) Save(r paystream.Record) error { return c.n.engine.Save(r) }

func startHop(t testing.TB, seed byte, disk *durabletest.Crash) *hopNode {
	t.Helper()
	key, id := keyOf(t, seed)
	n := &hopNode{id: id, disk: disk}
	var err error
	n.Endpoint, err = paystream.Open(t.Context(), paystream.Config{
		Self: id, Key: paystream.ServerKey{seed}, Store: disk.Store, Sign: key.Sign, Logger: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	n.tabs = &savedTabs{store: disk.Store, balance: make(map[peer.ID]tally.Balance), held: make(map[string]tally.Amount), dirty: make(map[peer.ID]bool)}
	n.wire = &hopWire{self: id, up: make(map[peer.ID]*forward.Engine), gen: make(map[peer.ID]int)}
	n.engine, err = forward.New(t.Context(), forward.Config{
		Self: id, Tabs: n.tabs, Store: disk.Store, Handler: handlerOf{n.Endpoint}, Logger: quiet,
		Orphan: func(r *forward.Result) func(*durable.Batch) { return answerOf(n.Endpoint, r) },
	})
	if err != nil {
		t.Fatal(err)
	}
	n.engine.Start(n.wire)
	n.Start(carrierOf{n})
	return n
}

// meet begins a session of two nodes.
func meet(a, b *hopNode) {
	a.wire.set(b.id, b.engine)
	b.wire.set(a.id, a.engine)
	a.engine.Up(b.id, 1000)
	b.engine.Up(a.id, 1000)
}

// part ends it.
func part(a, b *hopNode) {
	a.wire.set(b.id, nil)
	b.wire.set(a.id, nil)
	a.engine.Down(b.id)
	b.engine.Down(a.id)
}

// stop ends a process. Its disk may be broken.
func (n *hopNode) stop() {
	_ = n.Close()
	_ = n.engine.Close()
	_ = n.disk.Close()
}

// left returns what a disk still has of packets.
func (n *hopNode) left(t *testing.T) (holds, packets int) {
	t.Helper()
	all, err := durabletest.Records(t.Context(), n.disk.Store)
	if err != nil {
		t.Fatal(err)
	}
	for key := range all {
		switch {
		case strings.HasPrefix(key, "/paystream/hold/"):
			holds++
		case strings.HasPrefix(key, "/packet/hop/"):
			packets++
		}
	}
	return holds, packets - 1 // one is the engine's count of ids
}

// flow is a use of a socket, in turns: the client sets its limits, and both sides
// come to rest with this balance of the client's.
type flow struct {
	name  string
	grant paystream.Grant
	terms paystream.Terms
	turns []turn
}

type turn struct {
	low, high paystream.Limit
	want      tally.Balance
}

const hopSum = 50_000

// goesOnWithin is less than the time after which an end asks again that has heard
// nothing: who restarts comes back by itself.
const goesOnWithin = 20 * time.Second

var flows = []flow{
	{
		"invoice",
		paystream.Grant{Use: paystream.UseInvoice, Min: at(hopSum), Max: at(hopSum)},
		paystream.Terms{Min: at(-hopSum), Max: at(0)},
		[]turn{{at(-hopSum), at(0), -hopSum}},
	},
	{ // the server pays, and it is never asked twice
		"voucher",
		paystream.Grant{Use: paystream.UseVoucher, Min: at(-hopSum), Max: at(0)},
		paystream.Terms{Min: at(hopSum), Max: at(hopSum)},
		[]turn{{at(hopSum), at(hopSum), hopSum}},
	},
	{ // what went there comes back
		"refund",
		paystream.Grant{Use: paystream.UseAccount, Min: at(0), Max: paystream.NoMax, Refunds: true},
		paystream.Terms{Min: at(-hopSum), Max: at(-hopSum), Refunds: true},
		[]turn{{at(-hopSum), at(-hopSum), -hopSum}, {at(0), at(0), 0}},
	},
}

// crash is a power loss of one of the nodes (0 client, 1 hop, 2 server), at one of
// its commits after a turn has begun.
type crash struct {
	victim, turn int
	arm          func(*durabletest.Crash)
}

// hopRun plays a flow over three engines. Where it crashes, the victim starts again
// on what its disk kept, and nobody tells its socket to go on. In the end sockets
// and tabs agree to the unit, and no disk holds anything for ever. It returns the
// commits of each node in each turn.
func hopRun(t *testing.T, f *flow, change func(nodes []*hopNode), cr *crash) (commits [][3]int) {
	synctest.Test(t, func(t *testing.T) {
		var nodes []*hopNode
		for i := range 3 {
			nodes = append(nodes, startHop(t, byte(i+1), durabletest.NewMemCrash()))
		}
		defer func() { // also where the test fails: a bubble waits for its goroutines
			for _, n := range nodes {
				n.stop()
			}
		}()
		meet(nodes[0], nodes[1])
		meet(nodes[1], nodes[2])
		if change != nil {
			change(nodes)
		}
		u, err := nodes[2].Issue(f.grant)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
		defer cancel()
		client, err := nodes[0].Dial(ctx, u, []peer.ID{nodes[1].id}, f.terms)
		if err != nil {
			t.Fatal(err)
		}
		id := client.ID()
		ends := func() (client, server *paystream.Conn) {
			c, err := nodes[0].Conn(id)
			s, err2 := nodes[2].Conn(id)
			if err != nil || err2 != nil {
				t.Fatalf("client: %v, server: %v", err, err2)
			}
			return c, s
		}
		for i, turn := range f.turns {
			var before [3]int
			for k, n := range nodes {
				before[k] = n.disk.Commits()
			}
			hit := cr != nil && cr.turn == i
			if hit {
				cr.arm(nodes[cr.victim].disk)
			}
			if i > 0 {
				if err := client.SetLimits(turn.low, turn.high); err != nil {
					t.Fatal(err)
				}
			}
			if hit {
				crashNode(t, nodes, cr.victim)
				if client, err = nodes[0].Conn(id); err != nil {
					return // nothing was saved: the socket has not moved anything
				}
				if low, high := client.Report().Min, client.Report().Max; i > 0 && low != turn.low && high != turn.high {
					// The order was not saved. Who gave it has seen no answer.
					if err := client.SetLimits(turn.low, turn.high); err != nil {
						t.Fatal(err)
					}
				}
			}
			within := goesOnWithin
			if _, err := nodes[2].Conn(id); err != nil {
				within = paystream.IdleTime // it saved nothing, and has to be asked again
			}
			soon, cancel := context.WithTimeout(ctx, within)
			err := client.WaitBalance(soon, turn.want)
			cancel()
			if err != nil {
				t.Fatalf("turn %d: %v: %+v", i, err, client.Report())
			}
			time.Sleep(5 * time.Second) // bubble: what is in flight lands, and ticks save
			var all [3]int
			for k, n := range nodes {
				all[k] = n.disk.Commits() - before[k]
			}
			commits = append(commits, all)
			client, server := ends()
			c, s := client.Report(), server.Report()
			if s.Balance != -turn.want || c.Balance != turn.want || c.Sent != s.Received || s.Sent != c.Received || c.HoldOut+s.HoldOut != 0 {
				t.Errorf("turn %d: client %+v\nserver %+v", i, c, s)
			}
			// R4, R5: figures only grow, so none was ever above what it is here.
			if max(c.Sent, s.Sent) > hopSum {
				t.Errorf("turn %d: sent %d and %d", i, c.Sent, s.Sent)
			}
			for k := range 2 {
				if x, y := nodes[k].tabs.with(nodes[k+1].id), nodes[k+1].tabs.with(nodes[k].id); x != turn.want || y != -turn.want {
					t.Errorf("turn %d: tabs %d and %d", i, x, y)
				}
			}
		}
		for k, n := range nodes {
			if holds, packets := n.left(t); holds != 0 || packets != 0 {
				t.Errorf("the disk of node %d keeps %d holds and %d packets", k, holds, packets)
			}
		}
	})
	return commits
}

// crashNode waits until the disk of a node breaks, and starts the node again.
func crashNode(t *testing.T, nodes []*hopNode, victim int) {
	t.Helper()
	old := nodes[victim]
	select {
	case <-old.disk.Broken():
	case <-time.After(30 * time.Second): // bubble: the commit never came
	}
	synctest.Wait()
	near := func(do func(a, b *hopNode)) {
		for k := range 2 {
			if k == victim || k+1 == victim {
				do(nodes[k], nodes[k+1])
			}
		}
	}
	near(part)
	clone := old.disk.Clone()
	old.stop()
	nodes[victim] = startHop(t, byte(victim+1), clone)
	time.Sleep(time.Second) // bubble
	near(meet)
}

// every is the step through the matrix: all of it with TALLY_LONG=1.
func every() int {
	if os.Getenv("TALLY_LONG") != "" {
		return 1
	}
	return 4
}

// TestCrashWithEngine is attack 6 on the whole: endpoint, hop engine and tab on one
// disk, which loses power before and after each of its commits, at client, hop and
// server, while either of them pays. Every socket goes on by itself.
func TestCrashWithEngine(t *testing.T) {
	for i := range flows {
		f := &flows[i]
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			for turn, commits := range hopRun(t, f, nil, nil) {
				for victim, n := range commits {
					if n < 5 {
						t.Fatalf("only %d commits of node %d", n, victim)
					}
					for k := 1; k <= n; k += every() {
						for _, after := range []bool{false, true} {
							t.Run(fmt.Sprintf("turn=%d/node=%d/commit=%d/after=%v", turn, victim, k, after), func(t *testing.T) {
								hopRun(t, f, nil, &crash{victim, turn, func(c *durabletest.Crash) {
									if after {
										c.CrashAfter(c.Commits() + k)
									} else {
										c.CrashBefore(c.Commits() + k)
									}
								}})
							})
						}
					}
				}
			}
		})
	}
}

// TestFulfilsWithoutData: a fulfil that is repeated after a reconnect has the
// preimage alone. What arrived is then known from the next state only, and the
// payer still pays what was asked for, to the unit.
func TestFulfilsWithoutData(t *testing.T) {
	hopRun(t, &flows[0], func(nodes []*hopNode) {
		for _, n := range nodes[1:] {
			n.wire.mu.Lock()
			n.wire.bare = true
			n.wire.mu.Unlock()
		}
	}, nil)
}

// TestReconnects: sessions that end every few milliseconds lose prepares, fulfils
// and rejects.
func TestReconnects(t *testing.T) {
	hopRun(t, &flows[0], func(nodes []*hopNode) {
		go func() { // ends after 20 reconnects
			for range 20 {
				time.Sleep(time.Millisecond) // bubble
				part(nodes[0], nodes[1])
				time.Sleep(20 * time.Millisecond) // bubble
				meet(nodes[0], nodes[1])
			}
		}()
	}, nil)
}

// TestIdleAfterRestart: a socket that is read from disk and whose peer does not
// answer leaves memory like any other, and the next restart leaves it where it is.
func TestIdleAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := durabletest.NewMemCrash()
		payer, payee := startHop(t, 1, disk), startHop(t, 2, durabletest.NewMemCrash())
		defer func() {
			payer.stop()
			payee.stop()
		}()
		meet(payer, payee)
		u, err := payee.Issue(paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: paystream.NoMax})
		if err != nil {
			t.Fatal(err)
		}
		client, err := payer.Dial(t.Context(), u, nil, paystream.Terms{Min: at(-hopSum), Max: at(-hopSum)})
		if err != nil {
			t.Fatal(err)
		}
		for client.Report().Sent == 0 {
			time.Sleep(time.Millisecond) // bubble
		}
		synctest.Wait() // the disk has it as well: what has sent nothing is not kept
		again := func() {
			part(payer, payee)
			clone := payer.disk.Clone()
			payer.stop()
			payer = startHop(t, 1, clone)
		}
		again()
		if n := len(payer.Sockets()); n != 1 {
			t.Fatalf("%d sockets go on, want 1", n)
		}
		// Packets that nobody decides end with their late hold.
		time.Sleep(forward.LateHold + 3*paystream.IdleTime) // bubble
		if n := len(payer.Sockets()); n != 0 {
			t.Fatalf("%d sockets are still waited for", n)
		}
		again()
		if n := len(payer.Sockets()); n != 0 {
			t.Fatalf("%d idle sockets go on", n)
		}
		if _, err := payer.Conn(client.ID()); err != nil {
			t.Fatalf("the idle socket is gone: %v", err)
		}
	})
}

// TestPlayedCalls: a hop that plays packets of an earlier life of the server makes
// the client ask the server once a second, and nothing else.
func TestPlayedCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(3)
		a, b := start(t, net, 1, nil, nil), start(t, net, 2, nil, nil)
		defer a.Close()
		defer b.Close()
		u := issue(t, b, paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: paystream.NoMax})
		client, err := a.Dial(t.Context(), u, nil, paystream.Terms{Min: at(-10), Max: at(-10)})
		if err != nil {
			t.Fatal(err)
		}
		if err := client.WaitBalance(t.Context(), -10); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // bubble: all is told
		// What a server says that has restarted, which is also what a recording is.
		secret := u.Secret
		old, err := paystream.NewSession(secret, paystream.KDFShared, client.ID(), paystream.RoleServer, paystream.SessionID{9})
		if err != nil {
			t.Fatal(err)
		}
		inner := paystream.Packet{Kind: paystream.KindPrepare}
		env, err := old.Seal(nil, paystream.KindPrepare, inner.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		var asked atomic.Int64
		net.SetWay(a.id, b.id, paystreamtest.Way{Tamper: func(*paystream.Incoming) *paystream.Answer {
			asked.Add(1)
			return nil
		}})
		for range 1000 { // three seconds
			d := a.Packet(&paystream.Incoming{ID: paystream.PacketID{1}, From: b.id, Expires: time.Now().Add(time.Minute), Data: env})
			if d.Fulfil || d.Data == nil {
				t.Fatalf("%+v", d)
			}
			time.Sleep(3 * time.Millisecond) // bubble
		}
		if n := asked.Load(); n < 2 || n > 4 {
			t.Errorf("asked the server %d times in 3 s", n)
		}
		if err := client.Pay(5); err != nil {
			t.Fatal(err)
		}
		if err := client.WaitBalance(t.Context(), -15); err != nil {
			t.Fatalf("%v: %+v", err, client.Report())
		}
	})
}
