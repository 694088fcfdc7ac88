package paych_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/filecoin-project/go-address"

	"github.com/tallystick/tally/paych"
)

// A message that offers too little is replaced, twice here, until it is mined. It
// stays one message, known by every cid that it had.
func TestMessageIsOfferedForMore(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		w.chain.Fees(4, 100)
		id, err := p.PaychCreate(w.ctx, p.key, w.payee.key, atto(100))
		if err != nil {
			t.Fatal(err)
		}
		w.pass(3)
		p.down() // the replacement is on disk
		p.start()
		ch := p.ready(id)
		p.funds(ch, 100, 0, 0, 100)
		st, err := p.PaychStatusByMsg(w.ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if st.State != "done" || st.Cid != id || len(st.Cids) != 3 || st.Cids[2] != id || st.Mined == nil || *st.Mined != st.Cids[0] {
			t.Errorf("%+v", st)
		}
		p.down()
		p.start()
		for _, x := range st.Cids {
			if again, err := p.PaychStatusByMsg(w.ctx, x); err != nil || again.Cid != id {
				t.Errorf("%s: %+v %v", x, again, err)
			}
		}
		if got := p.balance(); got != fund-100 {
			t.Errorf("payer has %d", got)
		}
	})
}

// Nothing is offered above the limit, and nothing while there is no block.
func TestFeeHasALimit(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		w.chain.Fees(1000, 8)
		id, err := p.PaychCreate(w.ctx, p.key, w.payee.key, atto(100))
		if err != nil {
			t.Fatal(err)
		}
		w.pass(60)
		st, err := p.PaychStatusByMsg(w.ctx, id)
		if err != nil || st.State != "published" || len(st.Cids) != 4 || !strings.Contains(st.Error, paych.ErrFeeCap.Error()) {
			t.Errorf("%+v %v", st, err)
		}
		w.chain.Fees(8, 8)
		p.ready(id)
	})
	inTown(t, func(w *town) {
		p := w.payer
		id, err := p.PaychCreate(w.ctx, p.key, w.payee.key, atto(100))
		if err != nil {
			t.Fatal(err)
		}
		w.halt()
		w.pass(200)
		if st, err := p.PaychStatusByMsg(w.ctx, id); err != nil || len(st.Cids) != 1 {
			t.Errorf("%+v %v", st, err)
		}
	})
}

// Another program that uses the key takes a message's nonce. Once that is final
// the message has failed, with all that waited for it; the sender's other messages
// do not wait so long.
func TestMessageThatLostItsNonce(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ch := w.open(100)
		type result struct {
			err error
		}
		done := make(chan result, 1)
		id, err := p.PaychReserveFunds(w.ctx, ch, atto(150))
		if err != nil {
			t.Fatal(err)
		}
		go func() { // waits behind it
			_, err := p.PaychAddFunds(w.ctx, ch, atto(7))
			done <- result{err}
		}()
		w.chain.Steal(p.key)
		w.pass(1)
		other := w.open(10) // before it is final
		_, err = p.PaychWaitReady(w.ctx, id)
		var failed *paych.MessageError
		if !errors.As(err, &failed) || !failed.Lost || !errors.Is(err, paych.ErrNonceTaken) ||
			!errors.Is(err, paych.ErrTopUpFailed) || !errors.Is(err, paych.ErrMessageFailed) {
			t.Fatal(err)
		}
		if r := <-done; r.err != nil {
			t.Error(r.err)
		}
		w.pass(10)
		p.funds(ch, 107, 0, 0, 107)
		p.funds(other, 10, 0, 0, 10)
		for range 2 {
			if st, err := p.PaychStatusByMsg(w.ctx, id); err != nil || st.State != "lost" || st.Error == "" {
				t.Errorf("%+v %v", st, err)
			}
			p.down()
			p.start()
		}
	})
}

// The message that took the nonce is reverted: ours is mined after all.
func TestStolenNonceIsReverted(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ch := w.open(100)
		id, err := p.PaychAddFunds(w.ctx, ch, atto(50))
		if err != nil {
			t.Fatal(err)
		}
		w.chain.Steal(p.key)
		w.pass(1)
		w.chain.Revert(1)
		w.chain.DropPool()
		p.ready(id)
		p.funds(ch, 150, 0, 0, 150)
	})
}

// A create that lost its nonce frees its tag.
func TestCreateThatLostItsNonce(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ctx := paych.WithTag(w.ctx, "peer")
		id, err := p.PaychCreate(ctx, p.key, w.payee.key, atto(100))
		if err != nil {
			t.Fatal(err)
		}
		w.chain.Steal(p.key)
		if _, err := p.PaychWaitReady(w.ctx, id); !errors.Is(err, paych.ErrCreateFailed) || !errors.Is(err, paych.ErrNonceTaken) {
			t.Fatal(err)
		}
		again, err := p.PaychCreate(ctx, p.key, w.payee.key, atto(100))
		if err != nil || again == id {
			t.Fatalf("%v %v", again, err)
		}
		p.ready(again)
	})
}

// A stop at any point of a replacement, or of a message that loses its nonce,
// changes nothing of how it ends.
func TestCrashWhileMessagesAreStuck(t *testing.T) {
	if testing.Short() {
		t.Skip("plays each script once for each stop")
	}
	open := func(r *crashRun) {
		p := r.payer
		spec := paych.CreateSpec{From: p.key, To: r.payee.key, Amount: atto(100), Tag: "peer"}
		r.step(p, func(ctx context.Context) error {
			id, err := p.PaychCreateSpec(ctx, spec)
			if err == nil {
				r.ch, err = p.PaychWaitReady(ctx, id)
			}
			return err
		})
	}
	topUp := func(r *crashRun, want int64) {
		p := r.payer
		r.step(p, func(ctx context.Context) error {
			if f := r.status(p); f.PendingAmt.Sign() > 0 || f.Funds.Confirmed.GreaterThanEqual(atto(want)) {
				return nil
			}
			_, err := p.PaychAddFunds(ctx, r.ch, atto(50))
			return err
		})
	}
	judge := func(r *crashRun, confirmed int64) {
		r.t.Helper()
		r.settled(r.payer)
		if f := r.status(r.payer); !f.Funds.Confirmed.Equals(atto(confirmed)) || f.PendingAmt.Sign() != 0 {
			r.t.Errorf("%+v", f)
		}
		if got, err := r.chain.Balance(r.t.Context(), r.payer.key); err != nil || !got.Equals(atto(fund-confirmed)) {
			r.t.Errorf("payer has %v, want %d", got, fund-confirmed)
		}
		if list, err := r.payer.PaychList(r.payer.ctx); err != nil || len(list) != 1 || list[0] == address.Undef {
			r.t.Errorf("channels %v, %v", list, err)
		}
	}
	t.Run("replaced", func(t *testing.T) {
		crashMatrix(t, func(r *crashRun) {
			r.chain.Fees(4, 100)
			open(r)
			topUp(r, 150)
			judge(r, 150)
		})
	})
	t.Run("lost", func(t *testing.T) {
		crashMatrix(t, func(r *crashRun) {
			open(r)
			topUp(r, 150)
			if r.status(r.payer).Funds.Confirmed.Equals(atto(100)) {
				r.chain.Steal(r.payer.key)
				judge(r, 100)
			}
			topUp(r, 150)
			judge(r, 150)
		})
	})
}

// A message whose nonce was gone before a node took it does not hold up the others
// of its sender until that is final.
func TestLostNonceFreesTheTurn(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ch, other := w.open(100), w.open(100)
		first := true
		w.chain.OnPublish(func(int, *paych.SignedMessage) (bool, error) {
			if first {
				first = false
				w.chain.Steal(p.key)
				w.chain.Mine(1)
			}
			return true, nil
		})
		id, err := p.PaychAddFunds(w.ctx, ch, atto(1))
		if !errors.Is(err, paych.ErrNonceTaken) || !id.Defined() {
			t.Errorf("%v %v", id, err)
		}
		ctx, cancel := context.WithTimeout(w.ctx, 100*time.Millisecond)
		defer cancel()
		if _, err := p.PaychAddFunds(ctx, other, atto(1)); err != nil {
			t.Error(err)
		}
		if _, err := p.PaychWaitReady(w.ctx, id); !errors.Is(err, paych.ErrTopUpFailed) {
			t.Error(err)
		}
	})
}

// A reorganisation deeper than finality takes a message that is booked, and whose
// bytes are gone. What came after it does not wait for its nonce for ever, also
// where several are missing, and where the manager was away.
func TestNoncesLostBelowFinality(t *testing.T) {
	for _, restart := range []bool{false, true} {
		inTown(t, func(w *town) {
			p := w.payer
			ch := w.open(100)
			w.pass(10)
			start := w.head()
			for range 2 {
				id, err := p.PaychAddFunds(w.ctx, ch, atto(10))
				if err != nil {
					t.Fatal(err)
				}
				p.ready(id)
			}
			if _, err := p.PaychAddFunds(w.ctx, ch, atto(50)); err != nil {
				t.Fatal(err)
			}
			w.pass(1)
			if restart {
				p.down()
			}
			w.chain.Revert(int(w.head() - start))
			w.chain.DropPool()
			if restart {
				p.start()
			}
			w.pass(200)
			p.funds(ch, 150, 0, 0, 150) // both lost top-ups are seen to be gone
			if n, err := w.chain.Nonce(w.ctx, p.key, 0); err != nil || n != 4 {
				t.Errorf("nonce %d, %v: an empty message too many or too few", n, err)
			}
		})
	}
}
