package paystream_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/forward"
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
	gen  int       // of the session
	last time.Time // when the newest message arrives
	// bare drops the data of fulfils, as a session does that repeats one, or that
	// has much unread.
	bare bool
}

func (w *hopWire) Send(p peer.ID, m *forward.Msg) {
	w.mu.Lock()
	to, bare, gen := w.up[p], w.bare, w.gen
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
		ended := w.gen != gen
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
	w.gen++
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
	a := &paystream.Answer{ID: paystream.PacketID(r.Part), Fulfilled: r.Fulfilled, Data: r.Data}
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
		Condition: forward.Blake2b(p.Condition), Part: forward.PartID(p.ID), Data: p.Data, Record: p.Record,
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
	n.wire = &hopWire{self: id, up: make(map[peer.ID]*forward.Engine)}
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

// hopRun pays 50 000 over two engines, stops one side at a commit and starts it
// again on what its disk kept. In the end sockets and tabs agree to the unit, and
// neither disk holds anything for ever.
func hopRun(t *testing.T, server bool, change func(a, b *hopNode), arm func(*durabletest.Crash)) (commits int) {
	const sum = 50_000
	synctest.Test(t, func(t *testing.T) {
		nodes := [2]*hopNode{startHop(t, 1, durabletest.NewMemCrash()), startHop(t, 2, durabletest.NewMemCrash())}
		a, b := &nodes[0], &nodes[1]
		defer func() { // also where the test fails: a bubble waits for its goroutines
			(*a).stop()
			(*b).stop()
		}()
		meet(*a, *b)
		if change != nil {
			change(*a, *b)
		}
		side := 0
		if server {
			side = 1
		}
		u, err := (*b).Issue(paystream.Grant{Use: paystream.UseInvoice, Min: at(sum), Max: at(sum)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
		defer cancel()
		client, err := (*a).Dial(ctx, u, nil, paystream.Terms{Min: at(-sum), Max: at(0)})
		if err != nil {
			t.Fatal(err)
		}
		id := client.ID()
		before := nodes[side].disk.Commits()
		if arm != nil {
			old := nodes[side]
			arm(old.disk)
			select {
			case <-old.disk.Broken():
			case <-time.After(30 * time.Second): // bubble: the commit never came
			}
			synctest.Wait()
			part(*a, *b)
			clone := old.disk.Clone()
			old.stop()
			nodes[side] = startHop(t, byte(side+1), clone)
			time.Sleep(time.Second) // bubble
			meet(*a, *b)
			if client, err = (*a).Conn(id); err != nil {
				return // nothing was saved: the socket has not moved anything
			}
			client.Resume()
		}
		if err := client.WaitBalance(ctx, -sum); err != nil {
			t.Fatalf("%v: %+v", err, client.Report())
		}
		time.Sleep(5 * time.Second) // bubble: what is in flight lands, and ticks save
		commits = nodes[side].disk.Commits() - before
		end, err := (*b).Conn(id)
		if err != nil {
			t.Fatal(err)
		}
		if got := end.Report(); got.Balance != sum || got.Received != sum {
			t.Errorf("the payee has %+v", got)
		}
		if got := client.Report(); got.Sent != sum || got.HoldOut != 0 {
			t.Errorf("the payer has %+v", got)
		}
		if x, y := (*a).tabs.with((*b).id), (*b).tabs.with((*a).id); x != -sum || y != sum {
			t.Errorf("tabs %d and %d", x, y)
		}
		for _, n := range nodes {
			if holds, packets := n.left(t); holds != 0 || packets != 0 {
				t.Errorf("a disk keeps %d holds and %d packets", holds, packets)
			}
		}
	})
	return commits
}

// TestCrashWithEngine is attack 6 on the whole: endpoint, hop engine and tab on
// one disk, which loses power before and after each of its commits, at the payer
// and at the payee.
func TestCrashWithEngine(t *testing.T) {
	for _, server := range []bool{false, true} {
		n := hopRun(t, server, nil, nil)
		if n < 5 {
			t.Fatalf("only %d commits", n)
		}
		for k := 1; k <= n; k++ {
			for _, after := range []bool{false, true} {
				t.Run(fmt.Sprintf("server=%v/commit=%d/after=%v", server, k, after), func(t *testing.T) {
					hopRun(t, server, nil, func(c *durabletest.Crash) {
						if after {
							c.CrashAfter(c.Commits() + k)
						} else {
							c.CrashBefore(c.Commits() + k)
						}
					})
				})
			}
		}
	}
}

// TestFulfilsWithoutData: a fulfil that is repeated after a reconnect has the
// preimage alone. What arrived is then known from the next state only, and the
// payer still pays what was asked for, to the unit.
func TestFulfilsWithoutData(t *testing.T) {
	hopRun(t, false, func(a, b *hopNode) {
		b.wire.mu.Lock()
		b.wire.bare = true
		b.wire.mu.Unlock()
	}, nil)
}

// TestReconnects: sessions that end every few milliseconds lose prepares, fulfils
// and rejects.
func TestReconnects(t *testing.T) {
	hopRun(t, false, func(a, b *hopNode) {
		go func() { // ends after 20 reconnects
			for range 20 {
				time.Sleep(time.Millisecond) // bubble
				part(a, b)
				time.Sleep(20 * time.Millisecond) // bubble
				meet(a, b)
			}
		}()
	}, nil)
}
