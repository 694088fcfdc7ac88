package swap

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Mistakes that other implementations of tabs between peers made, and lost money
// or peers by. Each test shows one that we do not make, and fails where the
// guard against it is taken out.

// "double Apply or Cleanup books twice"
func TestMistake_DoubleApplyBooksTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		p := testPeer(1)
		for _, ends := range []func(Hold) error{
			func(h Hold) error { return h.Commit(10) },
			Hold.Release,
			Hold.Lost,
		} {
			h, err := n.TryReserve(t.Context(), p, "store", Serve, 10)
			if err != nil {
				t.Fatal(err)
			}
			again := h // a copy is the same hold
			if err := ends(h); err != nil {
				t.Fatal(err)
			}
			before := n.tab(p)
			for _, twice := range []error{h.Commit(10), again.Commit(10), h.Release(), again.Lost(), (Hold{}).Commit(10)} {
				if !errors.Is(twice, ErrDone) {
					t.Errorf("the second end says %v", twice)
				}
			}
			if after := n.tab(p); after != before {
				t.Errorf("the second end changed the tab: %s, was %s", describe(&after), describe(&before))
			}
			n.check()
		}
		if l := n.tab(p); l.served != 10 || l.shadow != 0 {
			t.Errorf("one commit of 10 left %s", describe(&l))
		}
	})
}

// "a payment result of an old session booked on a new one"
func TestMistake_OldResultOnNewSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		w := wireUp(t, a, b)
		var first *Ack
		w.ask(func(_ *node, m Message) (bool, error) {
			if ack, ok := m.(*Ack); ok && first == nil {
				first = ack
				return false, nil
			}
			return true, nil
		})
		mustServe(t, a, b, 20, 5)
		synctest.Wait()
		w.redial() // the handshake brings the ack, the settlement is over
		synctest.Wait()
		mustServe(t, a, b, 20, 4)
		w.ask(func(_ *node, m Message) (bool, error) { _, ack := m.(*Ack); return !ack, nil })
		mustServe(t, a, b, 20, 1) // the second cheque waits for its ack
		synctest.Wait()
		before := a.tab(b.id)
		if before.settle != settlePending || before.sentSerial != 2 {
			t.Fatalf("not what the test wants: %s", describe(&before))
		}
		for _, late := range []Message{first, &Refusal{Serial: 1, Code: RefusalUncovered}} {
			if err := a.Receive(t.Context(), b.id, late); err != nil {
				t.Errorf("late %T: %v", late, err)
			}
			if after := a.tab(b.id); after != before {
				t.Errorf("late %T changed the tab: %s, was %s", late, describe(&after), describe(&before))
			}
		}
	})
}

// "crash plus reconnect forgives debt"
func TestMistake_CrashForgivesDebt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		w := wireUp(t, a, b)
		mustServe(t, a, b, 20, 4)
		time.Sleep(time.Second) // bubble: written behind
		for _, n := range []*node{a, b} {
			n.die()
			w.redial()
			synctest.Wait()
			if got := b.row(a).Balance; got != 80 {
				t.Errorf("after the crash of %s it owes %d of 80", n.name, got)
			}
			agree(t, a, b)
		}
		w.hangUp() // and without a crash
		w.dial()
		if got := b.row(a).Balance; got != 80 {
			t.Errorf("after a reconnect it owes %d of 80", got)
		}
	})
}

// "own price counted twice so it settles early"
func TestMistake_OwnPriceCountedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		w := wireUp(t, a, b)
		if err := a.Credit(b.id, "store", 40); err != nil {
			t.Fatal(err)
		}
		h, err := a.TryReserve(t.Context(), b.id, "store", Consume, 55)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Commit(55); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := messages[*Cheque](w, a); len(got) != 0 {
			t.Errorf("a debt of 95 under a threshold of 100 sent a cheque over %d", got[0].Cumulative)
		}
		if h, err = a.TryReserve(t.Context(), b.id, "store", Consume, 5); err != nil {
			t.Fatalf("40 + 55 + 5 fit a threshold of 100: %v", err)
		}
		if err := h.Commit(5); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := messages[*Cheque](w, a); len(got) != 1 || got[0].Cumulative != 100 {
			t.Errorf("a debt of 100 sent %d cheques: %+v", len(got), got)
		}
	})
}

// "two concurrent issues end at 100, 100 instead of 200"
func TestMistake_ConcurrentIssuesOverwrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &vault{}
		wait := make(chan struct{})
		v.before = func(peer.ID, tally.Amount) error { <-wait; return nil }
		a, b := newNode(t, 0, hard(v)), newNode(t, 1, hard(&vault{}))
		w := wireUp(t, a, b)
		for i := range 20 { // 200 in all, while the first cheque is being issued
			_ = a.Credit(b.id, "store", 10)
			_ = b.Debit(a.id, "store", 10)
			if i == 0 {
				if err := a.Settle(t.Context(), b.id); err != nil {
					t.Fatal(err)
				}
			}
			go func() { _ = a.Settle(context.Background(), b.id) }()
		}
		synctest.Wait()
		close(wait)
		synctest.Wait()
		var sums []tally.Amount
		for _, c := range messages[*Cheque](w, a) {
			sums = append(sums, c.Cumulative)
		}
		if fmt.Sprint(sums) != "[10 200]" || fmt.Sprint(v.issues()) != "[10 200]" {
			t.Errorf("cheques %v, asked for %v", sums, v.issues())
		}
		if got := b.row(a).Received; got != 200 {
			t.Errorf("received %d of 200", got)
		}
		agree(t, a, b)
	})
}

// "an ambiguous send makes the next cheque worthless"
func TestMistake_AmbiguousSend(t *testing.T) {
	for _, arrived := range []bool{false, true} {
		t.Run(fmt.Sprintf("arrived=%v", arrived), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newNode(t, 0), newNode(t, 1)
				w := wireUp(t, a, b)
				failed := false
				w.ask(func(_ *node, m Message) (bool, error) {
					c, ok := m.(*Cheque)
					if !ok || failed {
						return true, nil
					}
					failed = true
					if arrived {
						go func() { _ = b.Receive(context.Background(), a.id, c) }()
					}
					return false, errors.New("i/o timeout")
				})
				mustServe(t, a, b, 20, 5)
				time.Sleep(15 * time.Second) // bubble
				mustServe(t, a, b, 20, 5)
				time.Sleep(15 * time.Second) // bubble
				agree(t, a, b)
				if r := b.row(a); r.Received != 200 || r.Balance != 0 {
					t.Errorf("received %d of 200, balance %d", r.Received, r.Balance)
				}
				text := map[uint64]string{}
				for _, c := range messages[*Cheque](w, a) {
					if old, ok := text[c.Serial]; ok && old != string(c.Signature) {
						t.Errorf("cheque %d was signed again", c.Serial)
					}
					text[c.Serial] = string(c.Signature)
				}
			})
		})
	}
}

// "no maximum on an announced threshold"
func TestMistake_ThresholdWithoutMaximum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newNode(t, 0, withPolicy(Policy{MaxDebt: 1 << 50}))
		p := testPeer(1)
		h := &Handshake{Realm: a.Realm(), Terms: Terms{PaymentThreshold: math.MaxUint64, Mode: ModeMock, Native: true}}
		if err := a.BeginSession(t.Context(), p, h, true); err != nil {
			t.Fatal(err)
		}
		if room, err := a.Headroom(p, Consume); err != nil || room != 1_000_000 {
			t.Errorf("headroom %d, %v", room, err)
		}
		if _, err := a.TryReserve(t.Context(), p, "store", Consume, 1_000_001); !errors.Is(err, ErrTooLarge) {
			t.Errorf("a reservation over the bound: %v", err)
		}
		// And what we let ourselves owe has a bound of its own.
		b := newNode(t, 2)
		if err := b.BeginSession(t.Context(), p, h, true); err != nil {
			t.Fatal(err)
		}
		if room, err := b.Headroom(p, Consume); err != nil || room != 1000 {
			t.Errorf("headroom under max debt %d, %v", room, err)
		}
	})
}

// "peers never evicted (5,001 entries for one live peer)"
func TestMistake_PeersNeverEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		live := testPeer(9999)
		h := &Handshake{Realm: n.Realm(), Terms: Terms{PaymentThreshold: 100, Mode: ModeMock, Native: true}}
		if err := n.BeginSession(t.Context(), live, h, true); err != nil {
			t.Fatal(err)
		}
		const gone = 5000
		for i := range uint16(gone) {
			p := testPeer(i)
			if err := n.BeginSession(t.Context(), p, h, true); err != nil {
				t.Fatal(err)
			}
			if err := n.Debit(p, "store", 1); err != nil {
				t.Fatal(err)
			}
			n.EndSession(p)
		}
		if got := n.Stats().Accounts; got != gone+1 {
			t.Fatalf("%d accounts", got)
		}
		time.Sleep(evictAfter + 2*shardCount*tickEvery) // bubble
		if got := n.Stats().Accounts; got != 1 {
			t.Errorf("%d accounts for one live peer", got)
		}
		n.check() // what left memory still counts
		if got := n.Stats().Exposure; got != gone {
			t.Errorf("exposure %d of %d", got, gone)
		}
		if got := n.tab(testPeer(7)).served; got != 1 {
			t.Errorf("a peer that left memory is on disk with %d", got)
		}
	})
}

// "clock back one hour blocks an honest peer"
func TestMistake_ClockBackBlocksHonestPeer(t *testing.T) {
	for _, shift := range []int64{3600, -3600} {
		t.Run(fmt.Sprint(shift), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var back atomic.Int64
				clock := func(c *Config) { c.clock = func() int64 { return time.Now().Unix() - back.Load() } }
				a, b := newNode(t, 0, clock), newNode(t, 1, clock)
				w := wireUp(t, a, b)
				w.ask(func(_ *node, m Message) (bool, error) { _, cheque := m.(*Cheque); return !cheque, nil })
				for range 13 {
					_ = a.Credit(b.id, "store", 10)
					_ = b.Debit(a.id, "store", 10)
				}
				if _, err := b.TryReserve(t.Context(), a.id, "store", Serve, 1); !errors.Is(err, ErrOverThreshold) {
					t.Fatalf("at the disconnect threshold: %v", err)
				}
				// Its cheque is late, but comes within the 30 s.
				back.Store(shift)
				time.Sleep(5 * time.Second) // bubble
				w.ask(nil)
				time.Sleep(15 * time.Second) // bubble
				if r := b.row(a); r.BlockedFor != 0 || b.noticed(NoticeBlocked) != 0 {
					t.Errorf("blocked for %v", r.BlockedFor)
				}
				mustServe(t, a, b, 20, 10)
				synctest.Wait()
				agree(t, a, b)
				b.stop()
				a.stop()
				w.redial()
				mustServe(t, a, b, 20, 10)
			})
		})
	}
}

// "cheque stored but not credited after a crash in between, and the reverse"
func TestMistake_StoredButNotCredited(t *testing.T) {
	for n := 1; n <= 4; n++ { // a write-behind or two, then the cheque
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("commit=%d,after=%v", n, after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { storedAndCredited(t, n, after) })
			})
		}
	}
}

func storedAndCredited(t *testing.T, n int, after bool) {
	a, b := newNode(t, 0), newNode(t, 1)
	w := wireUp(t, a, b)
	mustServe(t, a, b, 20, 4)
	time.Sleep(time.Second) // bubble
	breakAt(b, b.disk.Commits()+n, after)
	for b.disk.Failed() == nil {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_ = serve(ctx, a, b, 20)
		cancel()
		synctest.Wait()
	}
	w.hangUp()
	b.revive()
	l, _ := b.onDisk(a.id)
	cheque, err := b.getCheque(shelfChequeReceived, a.id)
	if err != nil {
		t.Fatal(err)
	}
	ack, err := b.getAck(shelfAckGiven, a.id)
	if err != nil {
		t.Fatal(err)
	}
	credited := l.received > 0
	if (cheque != nil) != credited || (ack != nil) != credited || (l.receivedSerial > 0) != credited {
		t.Errorf("cheque stored %v, ack stored %v, credited %d", cheque != nil, ack != nil, l.received)
	}
	w.dial()
	time.Sleep(15 * time.Second) // bubble
	agree(t, a, b)
	if got := b.row(a).Received; got < 100 {
		t.Errorf("credited %d of 100", got)
	}
}

// "one global lock over chain calls"
func TestMistake_GlobalLockOverChainCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slow peer.ID
		hang := make(chan struct{})
		v := &vault{}
		wait := func(p peer.ID) {
			if p == slow {
				<-hang
			}
		}
		v.before = func(p peer.ID, _ tally.Amount) error { wait(p); return nil }
		a := newNode(t, 0, hard(v))
		b, c := newNode(t, 1, hard(&vault{})), newNode(t, 2, hard(&vault{}))
		slow = b.id
		wb, wc := wireUpTo(t, a, b, c)
		mustServe(t, a, b, 20, 5) // its cheque hangs in the settler
		synctest.Wait()
		mustServe(t, a, c, 20, 20)
		synctest.Wait()
		if got := len(messages[*Ack](wc, c)); got != 4 {
			t.Errorf("%d settlements with another peer while one hangs in the settler", got)
		}
		// The very peer: its tab is booked and read, and time goes on for it.
		if err := errors.Join(a.Debit(b.id, "store", 7), b.Credit(a.id, "store", 7)); err != nil {
			t.Error(err)
		}
		h, err := a.TryReserve(t.Context(), b.id, "store", Serve, 3)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(holdFor + time.Second) // bubble
		if r := a.row(b); r.Balance != -93 || r.Shadow != 0 || len(messages[*Cheque](wb, a)) != 0 {
			t.Errorf("balance %d, shadow %d", r.Balance, r.Shadow)
		}
		_ = h.Release()
		close(hang)
		time.Sleep(20 * time.Second) // bubble
		if got := len(messages[*Ack](wb, b)); got != 1 {
			t.Errorf("%d acks once the settler answers", got)
		}
	})
}

// wireUpTo joins a with b and with c.
func wireUpTo(t testing.TB, a, b, c *node) (ab, ac *wire) {
	ab = wireUp(t, a, b)
	first := *a.courier.Load()
	ac = wireUp(t, a, c)
	a.Bind(fork{b.id, first, *a.courier.Load()})
	return ab, ac
}

// fork is a courier to one peer by one wire and to all others by another.
type fork struct {
	p       peer.ID
	to, all Courier
}

func (f fork) way(p peer.ID) Courier {
	if p == f.p {
		return f.to
	}
	return f.all
}

func (f fork) Send(ctx context.Context, p peer.ID, m Message) error { return f.way(p).Send(ctx, p, m) }
func (f fork) Disconnect(p peer.ID) error                           { return f.way(p).Disconnect(p) }

// "a network call under the peer lock"
func TestMistake_NetworkCallUnderPeerLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := newNode(t, 0), newNode(t, 1), newNode(t, 2)
		wb, wc := wireUpTo(t, a, b, c)
		hang := make(chan struct{})
		wb.ask(func(from *node, _ Message) (bool, error) {
			if from == a {
				<-hang
			}
			return true, nil
		})
		for range 10 { // a cheque and, later, statements hang in the courier
			_ = a.Credit(b.id, "store", 10)
			_ = b.Debit(a.id, "store", 10)
		}
		synctest.Wait()
		for range 50 {
			if err := a.Debit(b.id, "store", 1); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // bubble: ticks come and go
		}
		h, err := a.TryReserve(t.Context(), b.id, "store", Serve, 3)
		if err != nil {
			t.Fatal(err)
		}
		other, err := a.TryReserve(t.Context(), c.id, "store", Serve, 3)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(holdFor + 2*time.Second) // bubble
		if rb, rc := a.row(b), a.row(c); rb.Shadow != 0 || rc.Shadow != 0 || rb.Balance != -50 {
			t.Errorf("time stands still behind a courier that hangs: shadow %d and %d, balance %d", rb.Shadow, rc.Shadow, rb.Balance)
		}
		_ = errors.Join(h.Release(), other.Release())
		mustServe(t, a, c, 20, 10)
		synctest.Wait()
		if got := len(messages[*Ack](wc, c)); got != 2 {
			t.Errorf("%d settlements with another peer", got)
		}
		// Callers that only want to book or look never wait for the network;
		// those that are stuck are as many as the book allows one peer.
		close(hang)
		time.Sleep(30 * time.Second) // bubble
		if got := b.row(a).Received; got != 100 {
			t.Errorf("received %d of 100 once the courier goes on", got)
		}
	})
}

// "blocklist on every disconnect"
func TestMistake_BlockedOnDisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		w := wireUp(t, a, b)
		mustServe(t, a, b, 20, 4)
		for range 20 {
			w.hangUp()
			time.Sleep(10 * time.Second) // bubble
			w.dial()
		}
		if r := b.row(a); r.BlockedFor != 0 || b.noticed(NoticeBlocked) != 0 {
			t.Errorf("blocked for %v", r.BlockedFor)
		}
		mustServe(t, a, b, 20, 10) // and it is served as before
	})
}

// "replayed cheque credited (nwaku)"
func TestMistake_ReplayedChequeCredited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		w := wireUp(t, a, b)
		mustServe(t, a, b, 20, 15)
		synctest.Wait()
		w.hangUp()
		before := b.tab(a.id)
		for _, c := range messages[*Cheque](w, a) {
			for range 3 {
				err := b.Receive(t.Context(), a.id, c)
				if c.Serial == before.receivedSerial && err != nil || c.Serial != before.receivedSerial && !errors.Is(err, ErrStale) {
					t.Errorf("cheque %d again: %v", c.Serial, err)
				}
			}
		}
		b.stop()
		w.dial()
		synctest.Wait()
		acks := len(messages[*Ack](w, b))
		for _, c := range messages[*Cheque](w, a) {
			_ = b.Receive(t.Context(), a.id, c)
		}
		after := b.tab(a.id)
		if after.received != before.received || after.Balance() != before.Balance() {
			t.Errorf("replays changed the tab: %s, was %s", describe(&after), describe(&before))
		}
		synctest.Wait()
		if got := len(messages[*Ack](w, b)); got != acks+1 {
			t.Errorf("%d acks for the replay of the last cheque", got-acks)
		}
	})
}

// "cheque credited although redeeming failed (nwaku)"
func TestMistake_CreditedAlthoughRedeemFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mended atomic.Bool
		vb := &vault{accept: func(_ peer.ID, covered tally.Amount) (tally.Amount, error) {
			if !mended.Load() {
				return 0, errors.New("the voucher bounced")
			}
			return covered, nil
		}}
		a, b := newNode(t, 0, hard(&vault{})), newNode(t, 1, hard(vb))
		w := wireUp(t, a, b)
		mustServe(t, a, b, 20, 5)
		synctest.Wait()
		if l := b.tab(a.id); l.received != 0 || l.Balance() != 100 || l.receivedSerial != 0 {
			t.Errorf("credited all the same: %s", describe(&l))
		}
		if list := messages[*Refusal](w, b); len(list) != 1 || list[0].Serial != 1 {
			t.Errorf("refusals: %+v", list)
		}
		if _, err := a.TryReserve(t.Context(), b.id, "store", Consume, 1); !errors.Is(err, ErrPaymentRefused) {
			t.Errorf("consumption after a refused cheque: %v", err)
		}
		mended.Store(true)
		time.Sleep(time.Minute) // bubble: the identical cheque comes again
		if l := b.tab(a.id); l.received != 100 {
			t.Errorf("credited %d once it is covered", l.received)
		}
		agree(t, a, b)
	})
}

// "delivered units never booked because the connection flapped"
func TestMistake_DeliveredNotBooked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		w := wireUp(t, a, b)
		for i := range 5 {
			ctx, cancel := context.WithCancel(t.Context())
			take, err := a.Reserve(ctx, b.id, "store", Consume, 10)
			if err != nil {
				t.Fatal(err)
			}
			give, err := b.Reserve(ctx, a.id, "store", Serve, 10)
			if err != nil {
				t.Fatal(err)
			}
			switch i {
			case 1:
				w.hangUp()
			case 2:
				w.redial()
			case 3:
				cancel()
				synctest.Wait()
			case 4:
				time.Sleep(holdFor + time.Second) // bubble
			}
			if err := errors.Join(give.Commit(10), take.Commit(10)); err != nil {
				t.Errorf("flap %d: %v", i, err)
			}
			cancel()
			if i == 1 {
				w.dial()
			}
			synctest.Wait()
		}
		a.check()
		b.check()
		agree(t, a, b)
		if r := a.row(b); r.Consumed != 50 || r.Unanswered != 0 {
			t.Errorf("consumed %d of 50, %d unanswered", r.Consumed, r.Unanswered)
		}
	})
}
