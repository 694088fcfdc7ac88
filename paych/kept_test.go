package paych_test

import (
	"errors"
	"testing"

	filbig "github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally/paych"
)

// What a payee keeps free of a channel goes to the vouchers that it was kept for, and
// to those also while the channel settles.
func TestKeep(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		q.takes(ch, p.give(ch, 30, 0), 30)
		at, err := q.PaychKeep(w.ctx, ch, atto(50))
		if err != nil || !at.Balance.Equals(atto(100)) || !at.Total.Equals(atto(30)) || !at.Kept.Equals(atto(50)) {
			t.Fatalf("%+v %v", at, err)
		}
		q.takes(ch, p.give(ch, 50, 0), 20)
		if _, err := q.PaychVoucherAdd(w.ctx, ch, p.give(ch, 51, 0), nil, filbig.Zero()); !errors.Is(err, paych.ErrOverBalance) {
			t.Fatalf("a voucher took what is kept: %v", err)
		}
		secret := preimage(1)
		hash := secret.Hashlock()
		locked := func(lane uint64, amount int64) *paych.SignedVoucher {
			return p.giveSpec(ch, paych.VoucherSpec{Lane: lane, Amount: atto(amount), Lock: &hash, TimeLockMax: w.head() + 200})
		}
		first, second := locked(1<<62, 20), locked(1<<62+1, 25)
		if _, err := q.PaychVoucherAdd(w.ctx, ch, first, secret[:], filbig.Zero()); !errors.Is(err, paych.ErrOverBalance) {
			t.Fatalf("taken without a draw: %v", err)
		}
		if _, err := q.PaychVoucherAddKept(w.ctx, ch, first, secret[:], atto(19)); !errors.Is(err, paych.ErrOverBalance) {
			t.Fatalf("taken with too small a draw: %v", err)
		}
		if d, err := q.PaychVoucherAddKept(w.ctx, ch, first, secret[:], atto(20)); err != nil || !d.Equals(atto(20)) {
			t.Fatal(d, err)
		}
		// It took 20 of the 50, once.
		if d, err := q.PaychVoucherAddKept(w.ctx, ch, first, secret[:], atto(20)); err != nil || !d.Equals(atto(0)) {
			t.Fatal(d, err)
		}
		if _, err := q.PaychVoucherAdd(w.ctx, ch, second, secret[:], filbig.Zero()); !errors.Is(err, paych.ErrOverBalance) {
			t.Fatalf("the rest is kept no more: %v", err)
		}
		// The payer settles while the payee is away.
		p.settle(ch)
		if _, err := q.PaychVoucherAdd(w.ctx, ch, second, secret[:], filbig.Zero()); !errors.Is(err, paych.ErrSettling) {
			t.Fatal(err)
		}
		if d, err := q.PaychVoucherAddKept(w.ctx, ch, second, secret[:], atto(30)); err != nil || !d.Equals(atto(25)) {
			t.Fatal(d, err)
		}
		w.pass(200)
		if got := q.balance(); got != fund+50+20+25 {
			t.Fatalf("the payee has %d", got)
		}
		for _, err := range [...]error{
			func() error { _, err := p.PaychKeep(w.ctx, ch, atto(1)); return err }(),
			func() error { _, err := q.PaychKeep(w.ctx, ch, atto(-1)); return err }(),
			func() error { _, err := q.PaychVoucherAddKept(w.ctx, ch, second, nil, atto(-1)); return err }(),
		} {
			if err == nil {
				t.Error("taken")
			}
		}
	})
}
