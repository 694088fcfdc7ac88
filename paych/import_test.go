package paych_test

import (
	"errors"
	"testing"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/paychtest"
)

// A payer whose store is older than what it gave is shown its own vouchers: they
// count again, and it goes on above them.
func TestImportOfOwnVouchers(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ch := w.open(100)
		first := p.give(ch, 10, 0)
		lost := p.sign(paych.SignedVoucher{ChannelAddr: ch, Lane: 0, Nonce: 7, Amount: atto(40)})
		p.funds(ch, 100, 10, 0, 90)
		imports := func(sv *paych.SignedVoucher, v int64) {
			t.Helper()
			if err := p.PaychVoucherImport(w.ctx, ch, sv); err != nil {
				t.Fatal(err)
			}
			p.funds(ch, 100, v, 0, 100-v)
		}
		imports(lost, 40)
		before := p.state(ch)
		for _, sv := range []*paych.SignedVoucher{lost, first} {
			imports(sv, 40)
		}
		if after := p.state(ch); after != before {
			t.Errorf("what is known changed\n%s to\n%s", before, after)
		}
		p.down()
		p.start()
		p.funds(ch, 100, 40, 0, 60)
		next := p.give(ch, 45, 0)
		if next.Nonce != 8 {
			t.Errorf("nonce %d", next.Nonce)
		}
		// One below what was given since, yet over more: the payee may take it.
		imports(p.sign(paych.SignedVoucher{ChannelAddr: ch, Lane: 0, Nonce: 8, Amount: atto(60)}), 60)
		if _, err := p.PaychVoucherCreate(w.ctx, ch, atto(60), 0); !errors.Is(err, paych.ErrAmount) {
			t.Error(err)
		}
		secret := preimage(1)
		lock := secret.Hashlock()
		imports(p.sign(paych.SignedVoucher{ChannelAddr: ch, Lane: 3, Nonce: 2, Amount: atto(25), SecretHash: lock[:]}), 85)
		p.down()
		p.start()
		p.funds(ch, 100, 85, 0, 15)
		// More than there is: it can be taken only once the money is there.
		imports(p.sign(paych.SignedVoucher{ChannelAddr: ch, Lane: 4, Nonce: 1, Amount: atto(35)}), 120)
		p.funds(ch, 100, 120, 0, -20)

		stranger := &node{t: t, w: w, wallet: paychtest.NewWallet("stranger")}
		stranger.key = stranger.wallet.MustNew()
		for name, x := range map[string]struct {
			sv   *paych.SignedVoucher
			want error
		}{
			"nil":          {nil, paych.ErrChannel},
			"a stranger's": {stranger.sign(paych.SignedVoucher{ChannelAddr: ch, Lane: 0, Nonce: 9, Amount: atto(1)}), paych.ErrSigner},
			"unsigned":     {&paych.SignedVoucher{ChannelAddr: ch, Lane: 9, Nonce: 1, Amount: atto(1)}, paych.ErrSigner},
			"another's":    {p.sign(paych.SignedVoucher{ChannelAddr: w.open(1), Lane: 9, Nonce: 1, Amount: atto(1)}), paych.ErrChannel},
			"merging":      {p.sign(paych.SignedVoucher{ChannelAddr: ch, Lane: 9, Nonce: 1, Amount: atto(1), Merges: []paych.Merge{{Lane: 0, Nonce: 9}}}), paych.ErrMerges},
		} {
			before := p.state(ch)
			if err := p.PaychVoucherImport(w.ctx, ch, x.sv); !errors.Is(err, x.want) {
				t.Errorf("%s: %v", name, err)
			}
			if after := p.state(ch); after != before {
				t.Errorf("%s changed\n%s to\n%s", name, before, after)
			}
		}
	})
}

// A payee that lost them takes the payer's voucher and its own refund.
func TestImportByThePayee(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		sv := p.give(ch, 50, 0)
		if err := q.PaychVoucherImport(w.ctx, ch, sv); err != nil {
			t.Fatal(err)
		}
		q.covers(ch, 0, 50, 50)
		refund := q.sign(paych.SignedVoucher{ChannelAddr: ch, Lane: 0, Nonce: 4, Amount: atto(20)})
		p.takes(ch, refund, 0)
		for range 2 {
			if err := q.PaychVoucherImport(w.ctx, ch, refund); err != nil {
				t.Fatal(err)
			}
			q.covers(ch, 0, 20, 20)
		}
		q.down()
		q.start()
		q.covers(ch, 0, 20, 20)
		if next := q.give(ch, 10, 0); next.Nonce != 5 {
			t.Errorf("nonce %d", next.Nonce)
		}
	})
}
