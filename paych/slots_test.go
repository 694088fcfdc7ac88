package paych_test

import (
	"errors"
	"testing"

	"github.com/filecoin-project/go-state-types/abi"
	filbig "github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally/paych"
)

// What lock slots ask of a channel: nonces that leave some out, money beside what is
// reserved, cancels also of what was never taken, and lanes that are closed to
// others.
func TestSlotsOfAnOwnedChannel(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		const tag = "locks"
		own := paych.WithTag(w.ctx, tag)
		for _, n := range [...]*node{p, q} {
			if _, err := n.PaychInfo(w.ctx, ch); err != nil {
				t.Fatal(err)
			}
			if err := n.PaychOwn(w.ctx, ch, tag); err != nil {
				t.Fatal(err)
			}
		}
		secret := preimage(1)
		hash := secret.Hashlock()
		until := w.head() + 50
		spec := paych.VoucherSpec{Lane: 1, Nonce: 5, Amount: atto(30), Lock: &hash, TimeLockMax: until, Beside: true, Again: true}

		// Reserved money is for others.
		if _, err := p.PaychReserveFunds(w.ctx, ch, atto(80)); err != nil {
			t.Fatal(err)
		}
		r, err := p.PaychVoucherCreateSpec(own, ch, spec)
		if err != nil || r.Voucher != nil || !r.Shortfall.Equals(atto(10)) {
			t.Fatalf("a lock took what is reserved: %+v %v", r, err)
		}
		if err := p.PaychReleaseFunds(w.ctx, ch, atto(50)); err != nil {
			t.Fatal(err)
		}
		create := func(n *node, s paych.VoucherSpec) *paych.SignedVoucher {
			t.Helper()
			r, err := n.PaychVoucherCreateSpec(own, ch, s)
			if err != nil || r.Voucher == nil {
				t.Fatalf("%+v %v", r, err)
			}
			return r.Voucher
		}
		lock := create(p, spec)
		p.funds(ch, 100, 30, 30, 40)
		if again := create(p, spec); lock.Nonce != 5 || again.Nonce != 5 || string(again.Signature.Data) != string(lock.Signature.Data) {
			t.Errorf("nonces %d and %d, want the same bytes at 5", lock.Nonce, again.Nonce)
		}
		if _, err := p.PaychVoucherCreateSpec(own, ch, paych.VoucherSpec{Lane: 1, Nonce: 5, Amount: atto(31)}); !errors.Is(err, paych.ErrNonce) {
			t.Errorf("a nonce twice: %v", err)
		}

		// A slot is in books of its own, which nobody else may put a voucher past.
		if _, err := q.PaychVoucherAdd(w.ctx, ch, lock, nil, filbig.Zero()); !errors.Is(err, paych.ErrOwned) {
			t.Errorf("a voucher on a slot without the tag: %v", err)
		}
		if _, err := p.PaychVoucherCreate(w.ctx, ch, atto(50), 2); !errors.Is(err, paych.ErrOwned) {
			t.Errorf("another's voucher on a slot: %v", err)
		}
		if lane, err := p.PaychAllocateLane(w.ctx, ch); err != nil || lane != p.Rules().SlotLanes+2 {
			t.Errorf("lane %d is given out: %v", lane, err)
		}

		// The payee never took the lock, and gives it up: nonce 6 at 0.
		cancel := create(q, paych.VoucherSpec{Lane: 1, Nonce: 6, Amount: atto(0), Again: true})
		if _, err := p.PaychVoucherAdd(own, ch, cancel, nil, filbig.Zero()); err != nil {
			t.Fatal(err)
		}
		if sv, err := p.PaychVoucherAt(w.ctx, ch, 1, 6); err != nil || sv == nil || sv.Nonce != 6 {
			t.Errorf("the cancel is not kept: %v %v", sv, err)
		}
		// It is paid up to 20 then; no cancel falls below what was agreed.
		take := func(sv *paych.SignedVoucher) {
			t.Helper()
			if _, err := q.PaychVoucherAdd(own, ch, sv, nil, filbig.Zero()); err != nil {
				t.Fatal(err)
			}
		}
		take(create(p, paych.VoucherSpec{Lane: 1, Nonce: 8, Amount: atto(20), Beside: true}))
		if _, err := q.PaychVoucherCreateSpec(own, ch, paych.VoucherSpec{Lane: 1, Nonce: 10, Amount: atto(19)}); !errors.Is(err, paych.ErrAmount) {
			t.Errorf("a cancel below the base: %v", err)
		}
		create(q, paych.VoucherSpec{Lane: 1, Nonce: 10, Amount: atto(20)})

		// The chain's view has the nonce, also once the channel is gone.
		q.settle(ch)
		w.pass(60)
		for _, n := range [...]*node{p, q} {
			n.down()
			n.start()
			head, final, err := n.PaychViews(w.ctx, ch)
			if err != nil || !head.Gone || !final.Gone || len(head.Lanes) != 1 || head.Lanes[0].Nonce != 8 || !head.Lanes[0].Redeemed.Equals(atto(20)) {
				t.Errorf("%+v %+v %v", head, final, err)
			}
		}
	})
}

// The view of a live channel is at the head and at finality.
func TestViews(t *testing.T) {
	inTown(t, func(w *town) {
		ch := w.open(100)
		w.payee.takes(ch, w.payer.give(ch, 10, 1), 10)
		w.payee.settle(ch)
		w.pass(1)
		head, final, err := w.payer.PaychViews(w.ctx, ch)
		if err != nil || head.SettlingAt == 0 || head.Height != w.head() || final.Height != w.head()-abi.ChainEpoch(2) || head.Gone {
			t.Errorf("%+v %+v %v", head, final, err)
		}
	})
}
