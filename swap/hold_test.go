package swap

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// reserved returns a reservation that must succeed.
func reserved(t testing.TB, n *node, p peer.ID, dir Direction, units tally.Amount) Hold {
	t.Helper()
	h, err := n.TryReserve(context.Background(), p, "store", dir, units)
	if err != nil {
		t.Fatalf("%s: %v %d: %v", n.name, dir, units, err)
	}
	return h
}

// flying checks what is in flight on a tab.
func flying(t testing.TB, n *node, p peer.ID, reserved, shadow, unanswered tally.Amount) {
	t.Helper()
	n.check()
	if l := n.tab(p); l.reserved != reserved || l.shadow != shadow || l.unanswered != unanswered {
		t.Errorf("%s: in flight %d and %d, unanswered %d; want %d, %d, %d", n.name, l.reserved, l.shadow, l.unanswered, reserved, shadow, unanswered)
	}
}

func TestHoldEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		wireUp(t, a, b)
		for _, tc := range []struct {
			name       string
			dir        Direction
			end        func(Hold) error
			booked     tally.Amount
			unanswered tally.Amount
		}{
			{"serve, commit", Serve, func(h Hold) error { return h.Commit(10) }, 10, 0},
			{"serve, commit less", Serve, func(h Hold) error { return h.Commit(4) }, 4, 0},
			{"serve, commit nothing", Serve, func(h Hold) error { return h.Commit(0) }, 0, 0},
			{"serve, commit more", Serve, func(h Hold) error { return h.Commit(12) }, 12, 0},
			{"serve, release", Serve, Hold.Release, 0, 0},
			{"serve, lost", Serve, Hold.Lost, 0, 0},
			{"consume, commit", Consume, func(h Hold) error { return h.Commit(10) }, 10, 0},
			{"consume, commit less", Consume, func(h Hold) error { return h.Commit(3) }, 3, 0},
			{"consume, commit more", Consume, func(h Hold) error { return h.Commit(11) }, 11, 0},
			{"consume, release", Consume, Hold.Release, 0, 0},
			{"consume, lost", Consume, Hold.Lost, 0, 10},
		} {
			before := a.tab(b.id)
			h := reserved(t, a, b.id, tc.dir, 10)
			if h.Units() != 10 {
				t.Errorf("%s: units %d", tc.name, h.Units())
			}
			if tc.dir == Serve {
				flying(t, a, b.id, 0, 10, before.unanswered)
			} else {
				flying(t, a, b.id, 10, 0, before.unanswered)
			}
			if err := tc.end(h); err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
			flying(t, a, b.id, 0, 0, before.unanswered+tc.unanswered)
			after := a.tab(b.id)
			if got := after.served - before.served + after.consumed - before.consumed; got != tc.booked {
				t.Errorf("%s: booked %d, want %d", tc.name, got, tc.booked)
			}
			if err := h.Commit(1); !errors.Is(err, ErrDone) || h.Units() != 0 {
				t.Errorf("%s: a second end says %v, units %d", tc.name, err, h.Units())
			}
		}
		if got := a.Stats().Holds; got != 0 {
			t.Errorf("%d live holds", got)
		}
	})
}

// A commit that does not fit the ledger is refused, and leaves nothing in flight.
func TestHoldOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		wireUp(t, a, b)
		for _, dir := range []Direction{Serve, Consume} {
			h := reserved(t, a, b.id, dir, 10)
			if err := h.Commit(tally.MaxAmount); !errors.Is(err, tally.ErrOverflow) {
				t.Errorf("%v: %v", dir, err)
			}
			flying(t, a, b.id, 0, 0, 0)
		}
	})
}

// What ends a reservation, and that what is delivered all the same is booked.
func TestHoldReservationEnds(t *testing.T) {
	ends := map[string]func(a, b *node, w *wire, cancel func()){
		"30 s":      func(_, _ *node, _ *wire, _ func()) { time.Sleep(holdFor + tickEvery) }, // bubble
		"ctx":       func(_, _ *node, _ *wire, cancel func()) { cancel() },
		"hung up":   func(_, _ *node, w *wire, _ func()) { w.hangUp() },
		"reconnect": func(_, _ *node, w *wire, _ func()) { w.redial() },
		"evicted":   func(_, _ *node, w *wire, _ func()) { w.hangUp(); time.Sleep(20 * time.Minute) }, // bubble
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newNode(t, 0), newNode(t, 1)
				w := wireUp(t, a, b)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var holds []Hold
				for _, dir := range []Direction{Serve, Consume, Serve, Consume, Consume} {
					h, err := a.TryReserve(ctx, b.id, "store", dir, 10)
					if err != nil {
						t.Fatal(err)
					}
					holds = append(holds, h)
				}
				flying(t, a, b.id, 30, 20, 0)
				end(a, b, w, cancel)
				synctest.Wait()
				unanswered := a.tab(b.id).unanswered
				flying(t, a, b.id, 0, 0, unanswered)
				if name != "reconnect" && unanswered != 30 { // a statement of the new session explains them
					t.Errorf("%d unanswered", unanswered)
				}
				before := a.tab(b.id)
				for _, err := range []error{holds[0].Commit(10), holds[1].Commit(10), holds[2].Release(), holds[3].Release(), holds[4].Lost()} {
					if err != nil {
						t.Error(err)
					}
				}
				after := a.tab(b.id)
				if after.served-before.served != 10 || after.consumed-before.consumed != 10 {
					t.Errorf("late commits left %s, was %s", describe(&after), describe(&before))
				}
				for _, h := range holds {
					if err := h.Commit(1); !errors.Is(err, ErrDone) {
						t.Errorf("after the end: %v", err)
					}
				}
				flying(t, a, b.id, 0, 0, after.unanswered)
			})
		})
	}
}

// The reservation lasts exactly 30 s, to the tick.
func TestHoldTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		p := testPeer(1)
		time.Sleep(tickEvery / 2) // bubble: between two ticks
		h := reserved(t, n, p, Serve, 10)
		time.Sleep(holdFor - tickEvery/4) // bubble
		flying(t, n, p, 0, 10, 0)
		time.Sleep(tickEvery) // bubble
		flying(t, n, p, 0, 0, 0)
		if err := h.Commit(10); err != nil {
			t.Error(err)
		}
		if l := n.tab(p); l.served != 10 {
			t.Errorf("served %d", l.served)
		}
	})
}

func TestHoldCaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0, withPolicy(Policy{PaymentThreshold: 1 << 20}))
		var holds []Hold
		for i := range maxHolds / maxHoldsPerPeer {
			p := testPeer(uint16(i))
			for range maxHoldsPerPeer {
				holds = append(holds, reserved(t, n, p, Serve, 1))
			}
			if i > 0 {
				continue
			}
			if _, err := n.TryReserve(t.Context(), p, "store", Serve, 1); !errors.Is(err, ErrTooManyHolds) {
				t.Fatalf("hold %d of a peer: %v", len(holds)+1, err)
			}
		}
		n.check()
		_, err := n.TryReserve(t.Context(), testPeer(999), "store", Serve, 1)
		var refused *RefusedError
		if !errors.As(err, &refused) || !errors.Is(err, ErrTooManyHolds) {
			t.Fatalf("hold %d of all: %v", len(holds)+1, err)
		}
		// The cap of all is no reason to wait: holds of others wake nobody here.
		begin := time.Now()
		if _, err := n.Reserve(t.Context(), testPeer(999), "store", Consume, 1); !errors.Is(err, ErrTooManyHolds) || time.Since(begin) != 0 {
			t.Errorf("waited %v for %v", time.Since(begin), err)
		}
		for _, h := range holds {
			if err := h.Release(); err != nil {
				t.Fatal(err)
			}
		}
		n.check()
		if got := n.Stats().Holds; got != 0 {
			t.Errorf("%d live holds", got)
		}
		_ = reserved(t, n, testPeer(999), Serve, 1).Release()
	})
}

// waiter calls Reserve and tells when it returned.
type waiter struct {
	returned chan struct{} // closed after the fields below are set
	hold     Hold
	err      error
	at       time.Time
}

func (w *waiter) done() bool {
	select {
	case <-w.returned:
		return true
	default:
		return false
	}
}

func (n *node) wait(ctx context.Context, p peer.ID, units tally.Amount) *waiter {
	w := &waiter{returned: make(chan struct{})}
	go func() { // ends with the wait
		w.hold, w.err = n.Reserve(ctx, p, "store", Consume, units)
		w.at = time.Now()
		close(w.returned)
	}()
	synctest.Wait()
	return w
}

func TestReserveWaitsForAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		w := wireUp(t, a, b)
		mustServe(t, a, b, 20, 4)
		w.ask(func(_ *node, m Message) (bool, error) {
			if _, ack := m.(*Ack); ack {
				time.Sleep(3 * time.Second) // bubble: a slow answer
			}
			return true, nil
		})
		begin := time.Now()
		var all []*waiter
		for range 4 {
			all = append(all, a.wait(t.Context(), b.id, 25))
		}
		time.Sleep(5 * time.Second) // bubble
		synctest.Wait()
		for i, x := range all {
			if !x.done() || x.err != nil || x.at.Sub(begin) != 3*time.Second {
				t.Errorf("waiter %d: done %v", i, x.done())
				continue
			}
			_ = x.hold.Release()
		}
		// The refusal itself began the settlement, of the exact debt.
		if got := messages[*Cheque](w, a); len(got) != 1 || got[0].Cumulative != 80 {
			t.Errorf("%d cheques", len(got))
		}
		a.check()
	})
}

// Everything that makes room, or a place, wakes who waits for it, at once.
func TestReserveIsWoken(t *testing.T) {
	type situation struct {
		a, b *node
		w    *wire
		full []Hold
	}
	for name, tc := range map[string]struct {
		units tally.Amount // the waiter asks for
		fill  int          // holds of units each that fill the tab
		size  tally.Amount
		wake  func(s *situation) error
	}{
		"release":         {20, 5, 20, func(s *situation) error { return s.full[0].Release() }},
		"commit of less":  {15, 5, 20, func(s *situation) error { return s.full[0].Commit(5) }},
		"lost":            {20, 5, 20, func(s *situation) error { return s.full[0].Lost() }},
		"place by commit": {1, maxHoldsPerPeer, 0, func(s *situation) error { return s.full[0].Commit(0) }},
		"we serve":        {20, 5, 20, func(s *situation) error { return s.a.Debit(s.b.id, "store", 20) }},
		"30 s": {20, 5, 20, func(*situation) error {
			time.Sleep(29 * time.Second) // bubble: the holds are older than the wait
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &situation{a: newNode(t, 0), b: newNode(t, 1)}
				s.w = wireUp(t, s.a, s.b)
				for range tc.fill {
					s.full = append(s.full, reserved(t, s.a, s.b.id, Consume, tc.size))
				}
				time.Sleep(2 * time.Second) // bubble
				x := s.a.wait(t.Context(), s.b.id, tc.units)
				if x.done() {
					t.Fatalf("did not wait: %v", x.err)
				}
				if err := tc.wake(s); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if !x.done() || x.err != nil {
					t.Fatalf("was not woken: done %v", x.done())
				}
				_ = x.hold.Release()
				s.a.check()
			})
		})
	}
}

func TestReserveWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		begin := time.Now()
		noSession := a.wait(t.Context(), b.id, 10)
		late := a.wait(t.Context(), testPeer(7), 10)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		short := a.wait(ctx, b.id, 10)
		tooMuch := a.wait(t.Context(), b.id, 10_000)
		time.Sleep(5 * time.Second) // bubble
		synctest.Wait()
		if !short.done() || !errors.Is(short.err, context.DeadlineExceeded) || !errors.Is(short.err, ErrNoSession) || short.at.Sub(begin) != 2*time.Second {
			t.Errorf("ctx: %v after %v", short.err, short.at.Sub(begin))
		}
		wireUp(t, a, b)
		synctest.Wait()
		if !noSession.done() || noSession.err != nil {
			t.Errorf("the handshake did not wake: %v", noSession.err)
		}
		if !tooMuch.done() || !errors.Is(tooMuch.err, ErrTooLarge) {
			t.Errorf("waited for what can never fit: %v", tooMuch.err)
		}
		time.Sleep(waitFor) // bubble
		synctest.Wait()
		if !late.done() || !errors.Is(late.err, ErrNoSession) || late.at.Sub(begin) != waitFor {
			t.Errorf("without a deadline: %v after %v", late.err, late.at.Sub(begin))
		}
		last := a.wait(t.Context(), testPeer(8), 10)
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if !last.done() || !errors.Is(last.err, ErrClosed) {
			t.Errorf("Close left a caller waiting: %v", last.err)
		}
		for _, err := range []error{
			noSession.hold.Commit(1), a.Debit(b.id, "", 1), a.Settle(t.Context(), b.id),
			a.BeginSession(t.Context(), b.id, &Handshake{}, false), a.Receive(t.Context(), b.id, &Statement{}),
		} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		}
	})
}

func TestWaitersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		ctx, cancel := context.WithCancel(t.Context())
		var all []*waiter
		for range maxWaiters + 1 {
			all = append(all, n.wait(ctx, testPeer(1), 10))
		}
		if last := all[maxWaiters]; !last.done() || !errors.Is(last.err, ErrTooManyHolds) {
			t.Errorf("one waiter too many: %v", last.err)
		}
		cancel()
		synctest.Wait()
		time.Sleep(2 * time.Minute) // bubble
		if got := n.Stats().Accounts; got != 0 {
			t.Errorf("%d accounts stay for callers that are gone", got)
		}
	})
}

// A refusal names the figures and what helps.
func TestRefusedError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		p := testPeer(1)
		h := reserved(t, n, p, Serve, 100)
		_, err := n.TryReserve(t.Context(), p, "store", Serve, 26)
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Headroom != 25 || refused.Limit != 125 || refused.Units != 26 {
			t.Errorf("%+v", refused)
		}
		const want = "swap: over threshold: serve 26 units, the peer owes 0 of 125, headroom 25: it has to send a cheque"
		if err.Error() != want {
			t.Errorf("%q", err.Error())
		}
		_ = h.Release()
		if _, err := n.TryReserve(t.Context(), p, "store", Serve, 126); !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
		if _, err := n.TryReserve(t.Context(), p, "store", Consume, 1); !errors.Is(err, ErrNoSession) {
			t.Error(err)
		}
		if _, err := n.TryReserve(t.Context(), "", "store", Serve, 1); err == nil {
			t.Error("a peer without id")
		}
	})
}

// Many goroutines on few tabs: no counter drifts. Meant for the race detector.
func TestHoldsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := newNode(t, 0), newNode(t, 1), newNode(t, 2)
		wb, wc := wireUpTo(t, a, b, c)
		for i := range 8 {
			go func() { // ends after its rounds
				for k := range 60 {
					with, w := b, wb
					if (i+k)%3 == 0 {
						with, w = c, wc
					}
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(50+k)*time.Millisecond)
					if i%2 == 0 {
						_ = serve(ctx, a, with, tally.Amount(1+k%30))
					} else {
						_ = serve(ctx, with, a, tally.Amount(1+k%20))
					}
					if i == 0 && k%20 == 19 {
						w.mu.Lock()
						up := w.queue != nil
						w.mu.Unlock()
						if up {
							w.hangUp()
							w.dial()
						}
					}
					cancel()
				}
			}()
		}
		time.Sleep(10 * time.Minute) // bubble
		for _, n := range []*node{a, b, c} {
			n.check()
			if got := n.Stats().Holds; got != 0 {
				t.Errorf("%s: %d live holds", n.name, got)
			}
		}
		agree(t, a, b)
		agree(t, a, c)
	})
}
