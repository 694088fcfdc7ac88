package locker

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/adaptor"
	"github.com/tallystick/tally/paystream/lock"
)

// Locks go up and down between two that talk, and the channel pays what they came
// to.
func TestLocksOfAChannel(t *testing.T) {
	inRigs(t, func(t *testing.T, r *rig) {
		r.payee.decide = func(s *side, l lock.Lock) {
			if l.ID%3 == 0 {
				gives(s, l)
				return
			}
			fulfils(s, l)
		}
		var sum tally.Amount
		want := map[uint64]string{}
		for id := uint64(1); id <= 9; id++ {
			if err := r.offer(id, 10*tally.Amount(id), r.head()+26); err != nil {
				t.Fatal(err)
			}
			want[id] = "failed"
			if id%3 != 0 {
				want[id] = "paid"
				sum += 10 * tally.Amount(id)
			}
		}
		r.pass(2)
		r.expect(r.payer, want)
		r.expect(r.payee, want)
		if n := len(r.payer.locker.List()) + len(r.payee.locker.List()); n != 0 {
			t.Errorf("%d locks are not over", n)
		}
		if paid := r.finish(r.payee); paid != sum {
			t.Errorf("the chain paid %d, the locks %d", paid, sum)
		}
		if n := len(r.payer.locker.lines) + len(r.payee.locker.lines); n != 0 {
			t.Errorf("%d channels that are gone are kept", n)
		}
	})
}

// The payer vanishes when it has the preimage: the payee is paid by the chain, by
// itself.
func TestPayerVanishes(t *testing.T) {
	inRigs(t, func(t *testing.T, r *rig) {
		r.payee.decide = fulfils
		before := r.payee.balance()
		r.onSend = func(from *side, _ int) (bool, bool) { return false, from == r.payer } // the fulfil is lost
		if err := r.offer(1, 700, r.head()+26); err != nil {
			t.Fatal(err)
		}
		r.pass(1)
		r.hangUp()
		r.payer.close() // for good
		r.pass(40)
		r.expect(r.payee, map[uint64]string{1: "paid"})
		if paid := r.finish(r.payee); paid != 700 {
			t.Errorf("the chain paid %d", paid)
		}
		if got := big.Sub(r.payee.balance(), before); !got.Equals(atto(700)) {
			t.Errorf("the payee got %v", got)
		}
	})
}

// The payee takes its money from the chain and says nothing: the payer learns the
// preimage there, by itself, also when it was not running.
func TestPayerLearnsFromTheChain(t *testing.T) {
	for name, away := range map[string]bool{"running": false, "away": true} {
		t.Run(name, func(t *testing.T) {
			inRigs(t, func(t *testing.T, r *rig) {
				r.payee.decide = fulfils
				r.onSend = func(from *side, _ int) (bool, bool) { return false, from == r.payer }
				if err := r.offer(1, 700, r.head()+26); err != nil {
					t.Fatal(err)
				}
				r.pass(1)
				r.hangUp()
				if away {
					r.payer.close()
				}
				r.pass(30)
				if away {
					r.payer.open()
				}
				r.pass(5)
				r.expect(r.payer, map[uint64]string{1: "paid"})
				if n := len(r.payer.locker.List()); n != 0 {
					t.Errorf("%d locks are not over", n)
				}
			})
		})
	}
}

// The payee vanishes with a lock live: it ends without a message to the chain, and
// the payer has its money again, when the chain is final beyond it and not before.
func TestPayeeVanishes(t *testing.T) {
	inRigs(t, func(t *testing.T, r *rig) {
		until := r.head() + 26
		if err := r.offer(1, 700, until); err != nil {
			t.Fatal(err)
		}
		r.pass(1)
		r.hangUp()
		r.payee.close()
		messages := len(r.chain.Published())
		for r.head() < until+1 {
			r.pass(1)
		}
		r.expect(r.payer, map[uint64]string{1: ""})
		r.pass(4)
		r.expect(r.payer, map[uint64]string{1: "failed"})
		if n := len(r.chain.Published()); n != messages {
			t.Errorf("%d messages went to the chain", n-messages)
		}
		info, err := r.payer.manager.PaychInfo(context.Background(), r.ch)
		if err != nil || !info.Funds.Free().Equals(atto(deposit)) {
			t.Errorf("free %v %v", info.Funds.Free(), err)
		}
		r.payee.open()
		r.dial()
		r.pass(2)
		r.payee.decide = fulfils
		if err := r.offer(2, 60, r.head()+26); err != nil {
			t.Fatal(err)
		}
		r.pass(2)
		r.expect(r.payer, map[uint64]string{2: "paid"})
	})
}

// The channel settles under live locks: the payee claims what it has shown, the rest
// goes back. Either side settles.
func TestSettleWhileLocked(t *testing.T) {
	for _, who := range [...]string{"payer", "payee"} {
		t.Run(who, func(t *testing.T) {
			inRigs(t, func(t *testing.T, r *rig) {
				ctx := context.Background()
				r.payee.decide = func(s *side, l lock.Lock) {
					if l.ID == 1 {
						fulfils(s, l)
					}
				}
				for id := uint64(1); id <= 3; id++ {
					if err := r.offer(id, 100*tally.Amount(id), r.head()+26); err != nil {
						t.Fatal(err)
					}
				}
				r.pass(1)
				s := r.payer
				if who == "payee" {
					s = r.payee
				}
				if _, err := s.manager.PaychSettle(ctx, r.ch); err != nil {
					t.Fatal(err)
				}
				r.pass(3)
				if err := r.offer(4, 10, r.head()+20); err == nil {
					t.Error("a lock on a channel that settles")
				}
				// The preimage of 2 comes while it settles, 3 is given up.
				if err := r.payee.locker.Fulfil(ctx, r.payer.id, 2, pre(2), true, nil); err != nil {
					t.Fatal(err)
				}
				gives(r.payee, lock.Lock{ID: 3})
				if paid := r.finish(r.payee); paid != 300 {
					t.Errorf("the chain paid %d, want 100 and 200", paid)
				}
				want := map[uint64]string{1: "paid", 2: "paid", 3: "failed"}
				r.expect(r.payer, want)
				r.expect(r.payee, want)
			})
		})
	}
}

// A payee that gave a lock up redeems it all the same: the payer answers by itself
// with the CANCEL, also after the slot has gone on, and pays for what was agreed.
func TestStaleRedemption(t *testing.T) {
	inRigs(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		if err := r.offer(1, 700, r.head()+26); err != nil {
			t.Fatal(err)
		}
		r.pass(1)
		secret := pre(1)
		shown := secret[:]
		stale, err := r.payee.manager.PaychVoucherAt(ctx, r.ch, 1, 1)
		if r.points {
			y := adaptor.Secret(secret)
			p, err2 := r.payee.manager.PaychPointLockAt(ctx, r.ch, 1, 1)
			if err2 != nil || p == nil || stale != nil {
				t.Fatalf("no LOCK to keep: %v %v", p, err2)
			}
			shown = nil
			stale, err = p.Complete(&y)
		}
		if err != nil || stale == nil {
			t.Fatalf("no LOCK to keep: %v %v", stale, err)
		}
		gives(r.payee, lock.Lock{ID: 1})
		r.pass(1)
		r.expect(r.payer, map[uint64]string{1: "failed"})
		// The slot goes on.
		r.payee.decide = fulfils
		if err := r.offer(2, 50, r.head()+26); err != nil {
			t.Fatal(err)
		}
		r.pass(1)
		if _, err := r.payee.manager.PaychVoucherSubmit(paych.WithTag(ctx, r.payee.tag), r.ch, stale, shown, nil); err != nil {
			t.Fatal(err)
		}
		r.pass(1)
		head, _, err := r.payer.manager.PaychViews(ctx, r.ch)
		if err != nil || len(head.Lanes) != 1 {
			t.Fatalf("%+v %v", head, err)
		}
		r.pass(8)
		r.expect(r.payer, map[uint64]string{1: "failed", 2: "paid"})
		if paid := r.finish(r.payee); paid != 50 {
			t.Errorf("the chain paid %d, want 50", paid)
		}
	})
}

// A guard keeps the channel open for a lock that ends beyond the settling.
func TestGuardOnTheChain(t *testing.T) {
	inRigs(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		until := r.head() + 60 // a settle delay is 40
		if err := r.offer(1, 700, until); err != nil {
			t.Fatal(err)
		}
		r.pass(1)
		if _, err := r.payer.manager.PaychSettle(ctx, r.ch); err != nil {
			t.Fatal(err)
		}
		for r.head() < until-12 {
			r.pass(1)
		}
		if err := r.payee.locker.Fulfil(ctx, r.payer.id, 1, pre(1), true, nil); err != nil {
			t.Fatal(err)
		}
		if paid := r.finish(r.payee); paid != 700 {
			t.Errorf("the chain paid %d", paid)
		}
		r.expect(r.payer, map[uint64]string{1: "paid"})
	})
}

// News of heads reach two neighbours, and two channels of one, at different times. A lock
// that ends as late as the newest head allows is made and taken all the same.
func TestLockAheadOfTheNews(t *testing.T) {
	for name, payerKnows := range map[string]bool{"of the payee": true, "of the payer's channel": false} {
		t.Run(name, func(t *testing.T) {
			inRigs(t, func(t *testing.T, r *rig) {
				k, ctx := r.payer.locker, context.Background()
				terms := k.Terms()
				if err := r.offer(1, 10, r.head()+26); err != nil {
					t.Fatal(err)
				}
				r.pass(1)                          // it is there
				time.Sleep(500 * time.Millisecond) // bubble: between two blocks
				r.chain.Mute(true)
				r.pass(int(terms.Skew) + 1)
				if payerKnows {
					if err := r.payer.manager.PaychLook(ctx, r.ch); err != nil {
						t.Fatal(err)
					}
				} else {
					k.saw(r.head()) // another channel of its was looked at
				}
				o := r.offerOf(2, 10, terms.Horizon(r.head())-terms.Skew)
				o.Long = false
				if err := k.Offer(ctx, r.payee.id, o); err != nil {
					t.Fatal(err)
				}
				r.pass(1)
				for _, s := range []*side{r.payer, r.payee} {
					for _, x := range s.locker.List() {
						if x.ID == 2 && x.Phase != lock.Locked {
							t.Errorf("the lock is %v at the %s", x.Phase, s.name)
						}
					}
				}
				r.expect(r.payer, map[uint64]string{1: "", 2: ""})
				r.chain.Mute(false)
			})
		})
	}
}

// A LOCK beyond the horizon costs the payee one look at the chain in an epoch.
func TestLooksAheadOnceAnEpoch(t *testing.T) {
	inRig(t, func(r *rig) {
		if err := r.offer(1, 10, r.head()+26); err != nil {
			t.Fatal(err)
		}
		r.pass(1)                          // it is there
		time.Sleep(500 * time.Millisecond) // bubble: between two blocks
		r.chain.Mute(true)
		l := r.payee.locker.known(r.payer.id, r.ch)
		seen := func() int64 {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.now
		}
		r.pass(1) // what was told is seen
		was := seen()
		r.pass(1)
		far := r.payee.locker.terms.Horizon(r.head())
		if l.catchUp(far - 10); seen() != was {
			t.Fatal("within the horizon there is nothing to look for")
		}
		l.catchUp(far)
		first := seen()
		if first != r.head() {
			t.Fatalf("%d was seen of %d", first, r.head())
		}
		time.Sleep(100 * time.Millisecond) // bubble: the same epoch
		now := r.head()
		l.catchUp(far + 50)
		if seen() != first {
			t.Fatal("it looked twice in an epoch")
		}
		r.pass(1)
		if l.catchUp(far + 50); seen() <= now {
			t.Fatal("it looks again in the next")
		}
		r.chain.Mute(false)
	})
}

// What is locked is beside what cheques have reserved.
func TestFunds(t *testing.T) {
	inRig(t, func(r *rig) {
		ctx := paych.WithTag(context.Background(), r.payer.tag)
		if _, err := r.payer.manager.PaychReserveFunds(ctx, r.ch, atto(9_000)); err != nil {
			t.Fatal(err)
		}
		err := r.offer(1, 1_001, r.head()+26)
		if e, ok := err.(*FundsError); !ok || e.Free != 1_000 {
			t.Errorf("got %v", err)
		}
		if err := r.offer(2, 1_000, r.head()+26); err != nil {
			t.Error(err)
		}
	})
}

// Locks that are given up leave vouchers on their lane until their end, and the channel's
// account keeps so many. One lock is refused for it, and the next goes to another lane.
func TestCrowdedLane(t *testing.T) {
	inRig(t, func(r *rig) {
		r.payee.decide = gives
		refused := 0
		for id := uint64(1); id <= 140; id++ {
			err := r.offer(id, 10, r.head()+26)
			if errors.Is(err, paych.ErrTooMany) {
				refused++
				continue
			}
			if err != nil {
				t.Fatal(id, err)
			}
			synctest.Wait() // given up, and it has the CANCEL
			if l := r.payer.locker.List(); len(l) != 0 {
				t.Fatalf("%+v", l)
			}
		}
		if refused != 2 {
			t.Errorf("%d of 140 locks were refused: one for each lane that got crowded is 2", refused)
		}
		r.pass(30)
		if err := r.offer(1000, 10, r.head()+26); err != nil {
			t.Fatal(err)
		}
		if l := r.payer.locker.List(); len(l) != 1 || l[0].Lane != 1 {
			t.Errorf("the first lane is free again: %+v", l)
		}
	})
}

// Slots are bounded, and a channel whose slots are full is counted until one ends.
func TestFull(t *testing.T) {
	inRig(t, func(r *rig) {
		k := r.payer.locker
		slots := k.Terms().Slots
		for id := range slots {
			if n := k.Full(); n != 0 {
				t.Fatalf("%d channels are full under %d locks", n, id)
			}
			if err := r.offer(id+1, 10, r.head()+26); err != nil {
				t.Fatal(err)
			}
		}
		if n := k.Full(); n != 1 {
			t.Errorf("%d channels are full", n)
		}
		if n := r.payee.locker.Full(); n != 0 {
			t.Errorf("the slots of a channel to us count: %d", n)
		}
		if err := r.offer(slots+1, 10, r.head()+26); !errors.Is(err, lock.ErrFull) {
			t.Errorf("one more: %v", err)
		}
		r.pass(1)
		if err := r.payee.locker.Give(context.Background(), r.payer.id, 1, nil); err != nil {
			t.Fatal(err)
		}
		r.pass(1)
		if n := k.Full(); n != 0 {
			t.Errorf("%d channels are full after a lock ended", n)
		}
	})
}

// Who does not wait for a lock has it all the same, and who offers another under its
// id has none.
func TestOfferPending(t *testing.T) {
	inRig(t, func(r *rig) {
		ctx, cancel := context.WithCancel(context.Background())
		o := Offer{ID: 1, Amount: 10, Hash: pre(1).Hashlock(), Expires: r.head() + 24}
		o.Record = func(*durable.Batch) { cancel() }
		if err := r.offer(2, 20, r.head()+26); err != nil { // the channel was seen
			t.Fatal(err)
		}
		if err := r.payer.locker.Offer(ctx, r.payee.id, o); err != nil && !errors.Is(err, ErrPending) {
			t.Fatalf("got %v", err)
		}
		r.pass(1)
		if !r.payer.locker.lines[r.ch].has(1) {
			t.Error("the lock is not there")
		}
		o.Amount++
		if err := r.payer.locker.Offer(context.Background(), r.payee.id, o); !errors.Is(err, lock.ErrConflict) || errors.Is(err, ErrPending) {
			t.Errorf("another lock under the id: %v", err)
		}
	})
}
