package locker

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/tallystick/tally/paystream/lock"
)

// together puts items into a line's inbox at one time.
func (l *line) together(items ...item) {
	l.mu.Lock()
	l.inbox = append(l.inbox, items...)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// TestSecondMessageOvertakesNoSave: a FULFIL that comes twice has the UNLOCK asked for
// twice, and the second demand does not let it leave before the first has saved that the
// lock is paid. A payer that died in between would not know the preimage any more that it
// has paid for. The wire of the rig looks at the disk when an UNLOCK leaves.
func TestSecondMessageOvertakesNoSave(t *testing.T) {
	inRigs(t, func(t *testing.T, r *rig) {
		if err := r.offer(1, 500, r.head()+26); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		fulfil := item{ev: lock.Event{Kind: lock.EvPreimage, ID: 1, Preimage: pre(1)}}
		r.payer.locker.known(r.payee.id, r.ch).together(fulfil, fulfil, fulfil)
		r.pass(1)
		r.expect(r.payer, map[uint64]string{1: "paid"})
	})
}

// TestOfferTakesNoLaneThatIsNotSaved: a lane that an acknowledgement frees is taken by an
// offer beside it when its end is saved, and both locks live.
func TestOfferTakesNoLaneThatIsNotSaved(t *testing.T) {
	inRigs(t, func(t *testing.T, r *rig) {
		r.payee.decide = fulfils
		until := r.head() + 26
		for id := uint64(1); id <= 3; id++ {
			if err := r.offer(id, 100, until); err != nil {
				t.Fatal(err)
			}
			r.pass(1)
		}
		l := r.payer.locker.known(r.payee.id, r.ch)
		var got []error
		offer := func(id uint64) item {
			first, x := r.condition(id)
			return item{
				ev:   lock.Event{Kind: lock.EvOffer, ID: id, Amount: 100, Hash: x, Point: first, Expires: until},
				done: func(err error) { got = append(got, err) },
			}
		}
		r.payee.mu.Lock()
		r.payee.decide = nil
		r.payee.mu.Unlock()
		if err := r.payer.locker.Offer(context.Background(), r.payee.id, r.offerOf(4, 100, until)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		l.together(
			item{ev: lock.Event{Kind: lock.EvPreimage, ID: 4, Preimage: pre(4)}},
			item{ev: lock.Event{Kind: lock.EvUnlockAcked, ID: 4}},
			offer(5), offer(6), offer(5),
		)
		r.pass(1)
		if len(got) != 3 || got[0] != nil || got[1] != nil || got[2] != nil {
			t.Fatal(got)
		}
		lanes := make(map[uint64]uint64)
		for _, x := range r.payer.locker.List() {
			if other, ok := lanes[x.Lane]; ok {
				t.Errorf("locks %d and %d on lane %d", other, x.ID, x.Lane)
			}
			lanes[x.Lane] = x.ID
		}
		r.expect(r.payer, map[uint64]string{4: "paid", 5: "", 6: ""})
		if len(lanes) != 2 {
			t.Errorf("%v", lanes)
		}
	})
}
