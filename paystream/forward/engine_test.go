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
							a.Up("b", 10)
							b.Up("a", 10)
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
