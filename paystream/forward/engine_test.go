package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the disks that tests break say so
	goleak.VerifyTestMain(m)
}

// testTabs are fakeTabs that an engine can save.
type testTabs struct {
	*fakeTabs
	saves int
}

func (t *testTabs) Restore(held []Held) error { t.restore(held); return nil }
func (t *testTabs) Save(*durable.Batch)       { t.saves++ }
func (t *testTabs) Done(error)                {}

// pairWire joins two engines without a network.
type pairWire struct {
	self, other peer.ID
	to          *Engine

	mu   sync.Mutex
	sent []MsgKind
}

func (w *pairWire) Send(p peer.ID, m *Msg) {
	w.mu.Lock()
	w.sent = append(w.sent, m.Kind)
	to := w.to
	w.mu.Unlock()
	if to == nil || p != w.other {
		return
	}
	cp := *m
	cp.Data = bytes.Clone(m.Data)
	to.Receive(&Batch{Peer: w.self, Msgs: []Msg{cp}, Recycle: func(*Batch) {}})
}
func (w *pairWire) Flush()               {}
func (w *pairWire) Reset(peer.ID, error) {}

// retarget joins the other engine's next life.
func (w *pairWire) retarget(to *Engine) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.to = to
}

func (w *pairWire) kinds() []MsgKind {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]MsgKind(nil), w.sent...)
}

type echo struct{}

func (echo) Packet(d *Delivery) (Decision, bool) {
	switch string(d.Data) {
	case "refuse":
		return Decision{Code: CodeApplication, Data: []byte("no")}, true
	case "wrong":
		return Decision{Fulfil: true}, true
	case "wait":
		return Decision{}, false
	}
	return Decision{Fulfil: true, Preimage: testSecret, Data: d.Data}, true
}

func newTestEngine(t *testing.T, self peer.ID, store *durable.Store, h Handler) (*Engine, *testTabs) {
	t.Helper()
	tabs := &testTabs{fakeTabs: newFakeTabs(map[peer.ID]tally.Balance{})}
	e, err := New(t.Context(), Config{Self: self, Tabs: tabs, Store: store, Memory: store == nil, Handler: h})
	if err != nil {
		t.Fatal(err)
	}
	return e, tabs
}

func testPacket(data string) *Packet {
	return &Packet{Dest: "b", Amount: 10, Expires: time.Now().Add(30 * time.Second), Condition: Blake2b(testSecret.Hashlock()), Data: []byte(data)}
}

func TestEngines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := durabletest.NewMem()
		a, tabs := newTestEngine(t, "a", store, nil)
		b, _ := newTestEngine(t, "b", nil, echo{})
		a.Start(&pairWire{self: "a", other: "b", to: b})
		b.Start(&pairWire{self: "b", other: "a", to: a})
		a.Up("b", 10)
		b.Up("a", 10)
		synctest.Wait()

		recorded := false
		p := testPacket("hello")
		p.Record = func(*durable.Batch) { recorded = true }
		r, err := a.SendWait(t.Context(), p)
		if err != nil || string(r.Data) != "hello" || r.Preimage != testSecret || !recorded {
			t.Fatalf("%v, %+v, recorded %v", err, r, recorded)
		}
		var rejected *RejectError
		for data, want := range map[string]Code{"refuse": CodeApplication, "wrong": CodeRefused} {
			if _, err := a.SendWait(t.Context(), testPacket(data)); !errors.As(err, &rejected) || rejected.Code != want {
				t.Fatalf("%s: %v, want %v", data, err, want)
			}
		}
		// Nobody decides: the payee rejects it when its time is over.
		if _, err := a.SendWait(t.Context(), testPacket("wait")); !errors.As(err, &rejected) || rejected.Code != CodeRefused {
			t.Fatalf("undecided: %v", err)
		}
		notHeld := make(chan error, 1)
		if err := b.Decide("a", 12345, &Decision{}, func(err error) { notHeld <- err }); err != nil {
			t.Fatal(err)
		}
		if err := <-notHeld; !errors.Is(err, ErrNotHeld) {
			t.Fatalf("a decision about nothing: %v", err)
		}
		if err := a.Send(&Packet{Data: make([]byte, MaxData+1)}, nil); err == nil {
			t.Fatal("too much data is taken")
		}
		if err := errors.Join(a.Close(), b.Close()); err != nil {
			t.Fatal(err)
		}
		if err := a.Send(testPacket("late"), nil); !errors.Is(err, ErrClosed) {
			t.Fatalf("after close: %v", err)
		}
		if tabs.balance["b"] != -10 || len(tabs.held) != 0 {
			t.Fatalf("balance %d, held %v", tabs.balance["b"], tabs.held)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestDecidedSharesTheBatch: the sender's record of a result is on disk with the
// end of the journal's, whatever a crash cuts, and so is that of a result which
// comes after a restart. A record of a result that lies in a batch of its own
// would be there without the other after one of these crashes.
func TestDecidedSharesTheBatch(t *testing.T) {
	for name, fulfil := range map[string]bool{"fulfilled": true, "rejected": false} {
		data := "hello"
		if !fulfil {
			data = "refuse"
		}
		for at := 1; at <= 4; at++ {
			for _, after := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/commit=%d/after=%v", name, at, after), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						disk := durabletest.NewMemCrash()
						if after {
							disk.CrashAfter(disk.Commits() + at)
						} else {
							disk.CrashBefore(disk.Commits() + at)
						}
						a, _ := newTestEngine(t, "a", disk.Store, nil)
						b, _ := newTestEngine(t, "b", nil, echo{})
						a.Start(&pairWire{self: "a", other: "b", to: b})
						wb := &pairWire{self: "b", other: "a", to: a}
						b.Start(wb)
						a.Up("b", 10)
						b.Up("a", 10)
						synctest.Wait()
						told := 0
						p := testPacket(data)
						p.Record = func(batch *durable.Batch) { batch.Put("/sender/hold", []byte{1}) }
						decided := func(r *Result) func(*durable.Batch) {
							if told++; r.Fulfilled != fulfil && r.Code != CodeLinkLost {
								t.Errorf("told %+v", r)
							}
							return func(batch *durable.Batch) {
								batch.Delete("/sender/hold")
								batch.Put("/sender/done", []byte{1})
							}
						}
						p.Decided = decided
						if err := a.Send(p, nil); err != nil {
							t.Fatal(err)
						}
						time.Sleep(3 * time.Second) // bubble: a tick saves what was waiting
						_ = a.Close()               // its disk may be broken
						clone := disk.Clone()
						_ = disk.Close()
						check := func() (live bool) {
							t.Helper()
							got, err := durabletest.Records(t.Context(), clone.Store)
							if err != nil {
								t.Fatal(err)
							}
							_, hold := got["/sender/hold"]
							_, done := got["/sender/done"]
							delete(got, journalKey(counterKey))
							for key := range got {
								live = live || strings.HasPrefix(key, keyPrefix)
							}
							if hold != live || hold && done {
								t.Errorf("journal %v, hold %v, done %v", live, hold, done)
							}
							return live
						}
						if check() {
							a, err := New(t.Context(), Config{
								Self: "a", Tabs: &testTabs{fakeTabs: newFakeTabs(map[peer.ID]tally.Balance{})}, Store: clone.Store, Orphan: decided,
							})
							if err != nil {
								t.Fatal(err)
							}
							b.Down("a")
							wb.retarget(a)
							a.Start(&pairWire{self: "a", other: "b", to: b})
							// This wire loses what comes before the other side is up, as no
							// stream does: in the second session both are.
							for range 2 {
								a.Up("b", 10)
								b.Up("a", 10)
								synctest.Wait()
							}
							time.Sleep(3 * time.Second) // bubble
							if err := a.Close(); err != nil {
								t.Fatal(err)
							}
							if check() || told == 0 {
								t.Fatal("the packet is not decided after the restart")
							}
						}
						if err := errors.Join(b.Close(), clone.Close()); err != nil {
							t.Fatal(err)
						}
					})
				})
			}
		}
	}
}

// keeper keeps every packet, as an endpoint does that decides later.
type keeper struct {
	mu    sync.Mutex
	seen  map[PartID]Delivery
	again int
	kept  []PartID
}

func (k *keeper) Packet(d *Delivery) (Decision, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.seen == nil {
		k.seen = make(map[PartID]Delivery)
	}
	k.seen[d.Part] = *d
	if d.Again {
		k.again++
	}
	return Decision{Kept: func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.kept = append(k.kept, d.Part)
	}}, false
}

func (k *keeper) figures() (again, kept int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.again, len(k.kept)
}

// TestKept: a packet that waits at its payee waits over a restart, past its expiry,
// and what became of it is told to its sender until that forgets it.
func TestKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stores := [2]*durabletest.Crash{durabletest.NewMemCrash(), durabletest.NewMemCrash()}
		var told []Result
		k := new(keeper)
		var tabs [2]*testTabs
		var wires [2]*pairWire
		start := func() (engines [2]*Engine) {
			for i, name := range []peer.ID{"a", "b"} {
				saved := map[peer.ID]tally.Balance{}
				if tabs[i] != nil {
					saved = tabs[i].balance
				}
				tabs[i] = &testTabs{fakeTabs: newFakeTabs(saved)}
				cfg := Config{Self: name, Tabs: tabs[i], Store: stores[i].Store, Handler: k}
				if i == 0 {
					cfg.Kept = func(r *Result) { told = append(told, *r) }
				}
				e, err := New(t.Context(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				engines[i] = e
			}
			for i, name := range []peer.ID{"a", "b"} {
				other := []peer.ID{"b", "a"}[i]
				wires[i] = &pairWire{self: name, other: other, to: engines[1-i]}
			}
			return engines
		}
		run := func(e [2]*Engine) {
			e[0].Start(wires[0])
			e[1].Start(wires[1])
			e[0].Up("b", 10)
			e[1].Up("a", 10)
			synctest.Wait()
		}
		restart := func(e [2]*Engine) [2]*Engine {
			if err := errors.Join(e[0].Close(), e[1].Close()); err != nil {
				t.Fatal(err)
			}
			for i := range stores {
				clone := stores[i].Clone()
				_ = stores[i].Close()
				stores[i] = clone
			}
			return start()
		}
		e := start()
		run(e)
		p := testPacket("wait")
		p.Keep, p.Part = true, PartID{1}
		long := testPacket(strings.Repeat("x", MaxKept+1))
		long.Keep, long.Part = true, PartID{2}
		if err := errors.Join(e[0].Send(p, nil), e[0].Send(long, nil)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, kept := k.figures(); kept != 1 || len(told) != 1 || told[0].Part != long.Part || told[0].Code != CodeRefused || told[0].Hop != 1 {
			t.Fatalf("%d kept, told %+v", kept, told)
		}
		if err := e[0].Forget(long.Part); err != nil {
			t.Fatal(err)
		}
		time.Sleep(40 * time.Second) // bubble: it expires
		e = restart(e)
		if sent, waiting := e[0].Sent(), e[1].Waiting(); len(sent) != 1 || sent[0] != p.Part || len(waiting) != 1 || waiting[0].Part != p.Part || waiting[0].From != "a" {
			t.Fatalf("sent %v, waiting %v", sent, waiting)
		}
		run(e)
		time.Sleep(10 * time.Second) // bubble: syncs come and go
		if again, kept := k.figures(); again != 1 || kept != 2 {
			t.Fatalf("%d again, %d kept", again, kept)
		}
		d := k.seen[p.Part]
		decided := make(chan error, 1)
		if err := e[1].Decide(d.From, d.ID, &Decision{Fulfil: true, Preimage: testSecret}, func(err error) { decided <- err }); err != nil {
			t.Fatal(err)
		}
		if err := <-decided; err != nil {
			t.Fatalf("a late claim: %v", err)
		}
		synctest.Wait()
		for range 2 {
			last := told[len(told)-1]
			if last.Part != p.Part || !last.Fulfilled || last.Preimage != testSecret {
				t.Fatalf("told %+v", told)
			}
			e = restart(e)
			if sent := e[0].Sent(); len(sent) != 1 || len(e[1].Waiting()) != 0 {
				t.Fatalf("sent %v", sent)
			}
			run(e)
		}
		if len(told) != 4 { // the long one, the fulfil, and twice again
			t.Fatalf("told %+v", told)
		}
		if err := e[0].Forget(p.Part); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second) // bubble: a tick saves it
		e = restart(e)
		if sent := e[0].Sent(); len(sent) != 0 {
			t.Fatalf("forgotten, and there: %v", sent)
		}
		run(e)
		if tabs[0].balance["b"] != -10 || tabs[1].balance["a"] != 10 || len(tabs[0].held)+len(tabs[1].held) != 0 {
			t.Fatalf("balances %v and %v", tabs[0].balance, tabs[1].balance)
		}
		if err := errors.Join(e[0].Close(), e[1].Close(), stores[0].Close(), stores[1].Close()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestSave: a record that belongs to no packet lies behind those before it.
func TestSave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := durabletest.NewMem()
		a, _ := newTestEngine(t, "a", store, nil)
		a.Start(&pairWire{self: "a", other: "b"})
		for _, v := range []byte{1, 2, 3} {
			if err := a.Save(func(b *durable.Batch) { b.Put("/sender/x", []byte{v}) }); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if v, err := store.Get(t.Context(), "/sender/x"); err != nil || v[0] != 3 {
			t.Fatal(v, err)
		}
		if err := errors.Join(a.Close(), store.Close()); err != nil {
			t.Fatal(err)
		}
	})
}

// What is not on disk does not leave, and an engine whose disk failed stops.
func TestDiskFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := durabletest.NewMemCrash()
		disk.CrashBefore(disk.Commits() + 1)
		a, _ := newTestEngine(t, "a", disk.Store, nil)
		w := &pairWire{self: "a", other: "b"}
		a.Start(w)
		a.Up("b", 10)
		synctest.Wait()
		before := len(w.kinds())
		if err := a.Send(testPacket("x"), func(*Result) { t.Error("decided") }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if sent := w.kinds(); len(sent) != before {
			t.Fatalf("sent %v before it was on disk", sent[before:])
		}
		if err := a.Send(testPacket("x"), nil); !errors.Is(err, ErrStopped) || !errors.Is(err, durable.ErrFailed) {
			t.Fatalf("after the disk failed: %v", err)
		}
		if err := a.Close(); !errors.Is(err, ErrStopped) {
			t.Fatalf("close: %v", err)
		}
		_ = disk.Close() // it is broken
	})
}

func TestNewRefuses(t *testing.T) {
	tabs := &testTabs{fakeTabs: newFakeTabs(nil)}
	for name, cfg := range map[string]Config{
		"no tabs":   {Memory: true},
		"no store":  {Tabs: tabs},
		"bad rules": {Tabs: tabs, Memory: true, Rules: Rules{FeePPM: 1 << 30}},
	} {
		if _, err := New(context.Background(), cfg); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
