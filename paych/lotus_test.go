package paych_test

import (
	"context"
	"errors"
	"testing"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/actor"
)

// The tests of this file are named after the behaviours that Lotus' own payment
// channel tests check (paychmgr/paych_test.go, paychget_test.go, settle_test.go),
// told again on this API.

// refuses checks that a voucher is refused for the right reason and changes
// nothing that anybody can see.
func (n *node) refuses(ch address.Address, sv *paych.SignedVoucher, want error) {
	n.t.Helper()
	before := n.state(ch)
	if err := n.PaychVoucherCheckValid(n.w.ctx, ch, sv); !errors.Is(err, want) {
		n.t.Errorf("check: got %v, want %v", err, want)
	}
	if _, err := n.PaychVoucherAdd(n.w.ctx, ch, sv, nil, big.Zero()); !errors.Is(err, want) {
		n.t.Errorf("add: got %v, want %v", err, want)
	}
	if after := n.state(ch); after != before {
		n.t.Errorf("a refused voucher changed\n%s to\n%s", before, after)
	}
}

// sign makes a voucher without a manager, as a payer could who has none.
func (n *node) sign(sv paych.SignedVoucher) *paych.SignedVoucher {
	n.t.Helper()
	signed, err := paych.Sign(n.w.ctx, n.wallet, n.key, &sv)
	if err != nil {
		n.t.Fatal(err)
	}
	return signed
}

// submit brings a voucher on the chain.
func (n *node) submit(ch address.Address, sv *paych.SignedVoucher) {
	n.t.Helper()
	id, err := n.PaychVoucherSubmit(n.w.ctx, ch, sv, nil, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	n.ready(id)
}

func TestCheckVoucherValid(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		// Lane 1 has nonce 2 and 30 on the chain.
		first := p.sign(paych.SignedVoucher{ChannelAddr: ch, Lane: 1, Nonce: 2, Amount: atto(30)})
		q.takes(ch, first, 30)
		q.submit(ch, first)
		plain := func(lane, nonce uint64, amount int64) paych.SignedVoucher {
			return paych.SignedVoucher{ChannelAddr: ch, Lane: lane, Nonce: nonce, Amount: atto(amount)}
		}
		for name, sv := range map[string]paych.SignedVoucher{
			"amount below the balance": plain(2, 1, 5),
			"all of the balance":       plain(2, 1, 70),
			"nonce above":              plain(1, 3, 40),
		} {
			if err := q.PaychVoucherCheckValid(w.ctx, ch, p.sign(sv)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		q.refuses(ch, p.sign(plain(2, 1, 71)), paych.ErrOverBalance)
		q.refuses(ch, q.sign(plain(2, 1, 5)), paych.ErrSigner)
		q.refuses(ch, p.sign(plain(1, 2, 40)), paych.ErrNonce)
		q.refuses(ch, p.sign(plain(1, 1, 40)), paych.ErrNonce)
		q.refuses(ch, p.sign(plain(1, 3, 30)), paych.ErrAmount)
		q.refuses(ch, p.sign(plain(1, 3, 29)), paych.ErrAmount)
		other := plain(2, 1, 5)
		other.ChannelAddr = w.open(10)
		q.refuses(ch, p.sign(other), paych.ErrChannel)
		unsigned := plain(2, 1, 5)
		q.refuses(ch, &unsigned, paych.ErrSigner)
		bent := p.sign(plain(2, 1, 5))
		bent.Amount = atto(6)
		q.refuses(ch, bent, paych.ErrSigner)
		bls := p.sign(plain(2, 1, 5))
		bls.Signature = &crypto.Signature{Type: crypto.SigTypeBLS, Data: make([]byte, 96)}
		q.refuses(ch, bls, paych.ErrSigner)
		// A voucher that is held is valid again, and on the chain's side spent.
		q.takes(ch, p.sign(plain(1, 9, 60)), 30)
		if err := q.PaychVoucherCheckValid(w.ctx, ch, p.sign(plain(1, 9, 60))); err != nil {
			t.Error(err)
		}
		// The payer checks its own by the same rules.
		if err := p.PaychVoucherCheckValid(w.ctx, ch, p.give(ch, 70, 1)); err != nil {
			t.Error(err)
		}
		if err := p.PaychVoucherCheckValid(w.ctx, ch, p.sign(plain(2, 1, 71))); !errors.Is(err, paych.ErrOverBalance) {
			t.Error(err)
		}
	})
}

func TestCheckVoucherValidCountingAllLanes(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(50)
		sv := func(lane, nonce uint64, amount int64) *paych.SignedVoucher {
			return p.sign(paych.SignedVoucher{ChannelAddr: ch, Lane: lane, Nonce: nonce, Amount: atto(amount)})
		}
		q.takes(ch, sv(1, 2, 10), 10)
		q.takes(ch, sv(2, 1, 15), 15)
		q.submit(ch, sv(2, 1, 15))
		q.refuses(ch, sv(1, 3, 36), paych.ErrOverBalance)
		q.takes(ch, sv(1, 3, 35), 25)
		q.refuses(ch, sv(2, 2, 16), paych.ErrOverBalance)
		if st, err := q.PaychStatus(w.ctx, ch); err != nil || !st.VoucherReedeemedAmt.Equals(atto(50)) {
			t.Errorf("%+v %v", st, err)
		}
	})
}

func TestAddVoucherDelta(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		low := p.give(ch, 1, 1)
		got, err := q.PaychVoucherAdd(w.ctx, ch, low, nil, atto(2))
		var delta *paych.DeltaError
		if !errors.As(err, &delta) || !errors.Is(err, paych.ErrDelta) || !got.Equals(atto(1)) || !delta.Min.Equals(atto(2)) {
			t.Fatalf("%v %v", got, err)
		}
		if list, err := q.PaychVoucherList(w.ctx, ch); err != nil || len(list) != 0 {
			t.Errorf("a voucher that was refused is listed: %v %v", list, err)
		}
		for _, x := range []struct{ amount, delta int64 }{{2, 2}, {5, 3}, {100, 95}} {
			got, err := q.PaychVoucherAdd(w.ctx, ch, p.give(ch, x.amount, 1), nil, atto(x.delta))
			if err != nil || !got.Equals(atto(x.delta)) {
				t.Errorf("%d: %v %v", x.amount, got, err)
			}
		}
	})
}

func TestAddVoucherNextLaneAndAllocateLane(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		lane := func() uint64 {
			t.Helper()
			l, err := p.PaychAllocateLane(w.ctx, ch)
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		if a, b := lane(), lane(); a != 0 || b != 1 {
			t.Errorf("lanes %d and %d", a, b)
		}
		p.give(ch, 1, 2) // without asking for a lane
		p.give(ch, 1, 7)
		if l := lane(); l != 3 {
			t.Errorf("lane %d", l)
		}
		p.down()
		p.start()
		if l := lane(); l != 4 {
			t.Errorf("after a restart lane %d", l)
		}
		// A lane that only the chain knows is taken.
		sv := p.sign(paych.SignedVoucher{ChannelAddr: ch, Lane: 5, Nonce: 1, Amount: atto(1)})
		q.takes(ch, sv, 1)
		q.submit(ch, sv)
		w.pass(3)
		if l := lane(); l != 6 {
			t.Errorf("lane %d", l)
		}
	})
}

func TestCreateVoucher(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ch := w.open(10)
		sv := p.give(ch, 5, 1)
		if sv.Lane != 1 || sv.Nonce != 1 || !sv.Amount.Equals(atto(5)) || sv.ChannelAddr != ch || paych.Verify(sv, p.key) != nil {
			t.Errorf("%+v", sv)
		}
		if sv = p.give(ch, 6, 1); sv.Nonce != 2 {
			t.Errorf("nonce %d", sv.Nonce)
		}
		if sv = p.give(ch, 3, 2); sv.Nonce != 1 {
			t.Errorf("nonce %d", sv.Nonce)
		}
		before := p.state(ch)
		r, err := p.PaychVoucherCreate(w.ctx, ch, atto(7), 3)
		if err != nil || r.Voucher != nil || !r.Shortfall.Equals(atto(6)) {
			t.Errorf("%+v %v", r, err)
		}
		if after := p.state(ch); after != before {
			t.Errorf("a shortfall changed\n%s to\n%s", before, after)
		}
	})
}

// Lotus: TestPaychAddVoucherAfterAddFunds.
func TestVoucherAfterAddFunds(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ch := w.open(10)
		p.give(ch, 10, 0)
		r, err := p.PaychVoucherCreate(w.ctx, ch, atto(15), 0)
		if err != nil || r.Voucher != nil || !r.Shortfall.Equals(atto(5)) {
			t.Fatalf("%+v %v", r, err)
		}
		id, err := p.PaychAddFunds(w.ctx, ch, r.Shortfall)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := p.PaychVoucherCreate(w.ctx, ch, atto(15), 0); err != nil || r.Voucher != nil {
			t.Errorf("before the money is there: %+v %v", r, err)
		}
		p.ready(id)
		p.give(ch, 15, 0)
		p.funds(ch, 15, 15, 0, 0)
	})
}

func TestBestVoucherIsSpendable(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		secret := preimage(1)
		lock := secret.Hashlock()
		one, two := p.give(ch, 5, 1), p.give(ch, 9, 1)
		locked := p.giveSpec(ch, paych.VoucherSpec{Lane: 2, Amount: atto(8), Lock: &lock})
		for _, sv := range []*paych.SignedVoucher{one, two, locked} {
			if _, err := q.PaychVoucherAdd(w.ctx, ch, sv, nil, big.Zero()); err != nil {
				t.Fatal(err)
			}
		}
		spendable := func(sv *paych.SignedVoucher, secret, proof []byte, want bool) {
			t.Helper()
			if ok, err := q.PaychVoucherCheckSpendable(w.ctx, ch, sv, secret, proof); ok != want || err != nil {
				t.Errorf("lane %d nonce %d: %v %v", sv.Lane, sv.Nonce, ok, err)
			}
		}
		spendable(one, nil, nil, true)
		spendable(two, nil, nil, true)
		spendable(locked, nil, nil, false)
		spendable(locked, []byte("another"), nil, false)
		spendable(locked, secret[:], nil, true)
		spendable(locked, nil, secret[:], true)
		q.submit(ch, two)
		spendable(one, nil, nil, false)
		spendable(two, nil, nil, false)
		if _, err := q.PaychVoucherSecret(w.ctx, ch, secret); err != nil {
			t.Fatal(err)
		}
		spendable(locked, nil, nil, true)
	})
}

func TestSubmitVoucher(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		sv := p.give(ch, 10, 0)
		if _, err := p.PaychVoucherSubmit(w.ctx, ch, sv, nil, nil); !errors.Is(err, paych.ErrOwnVoucher) {
			t.Errorf("the payer's own: %v", err)
		}
		q.takes(ch, sv, 10)
		id, err := q.PaychVoucherSubmit(w.ctx, ch, sv, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := q.PaychVoucherSubmit(w.ctx, ch, sv, nil, nil); err != nil || again != id {
			t.Errorf("again: %v %v", again, err)
		}
		redeemed := func() bool {
			list, err := q.PaychVoucherRecords(w.ctx, ch)
			if err != nil || len(list) != 1 {
				t.Fatal(list, err)
			}
			return list[0].Redeemed
		}
		if redeemed() {
			t.Error("redeemed before there is a receipt")
		}
		q.ready(id)
		if !redeemed() {
			t.Error("not redeemed after the receipt")
		}
		if _, err := q.PaychVoucherSubmit(w.ctx, ch, sv, nil, nil); !errors.Is(err, paych.ErrNotSpendable) {
			t.Errorf("after the receipt: %v", err)
		}
		n := len(w.chain.Published())
		for name, bad := range map[string]*paych.SignedVoucher{
			"extra":   p.sign(paych.SignedVoucher{ChannelAddr: ch, Nonce: 2, Amount: atto(11), Extra: &paych.ModVerifyParams{Actor: ch}}),
			"merges":  p.sign(paych.SignedVoucher{ChannelAddr: ch, Nonce: 2, Amount: atto(11), Merges: []paych.Merge{{Lane: 3, Nonce: 1}}}),
			"over":    p.sign(paych.SignedVoucher{ChannelAddr: ch, Nonce: 2, Amount: atto(101)}),
			"lane":    p.sign(paych.SignedVoucher{ChannelAddr: ch, Lane: actor.MaxLane + 1, Nonce: 2, Amount: atto(1)}),
			"expired": p.sign(paych.SignedVoucher{ChannelAddr: ch, Nonce: 2, Amount: atto(11), TimeLockMax: 1}),
		} {
			if id, err := q.PaychVoucherSubmit(w.ctx, ch, bad, nil, nil); err == nil {
				t.Errorf("%s: submitted as %v", name, id)
			}
		}
		if len(w.chain.Published()) != n {
			t.Error("a voucher that must fail reached the chain")
		}
	})
}

// Lotus: TestPaychGetRestartAfterCreateChannelMsg.
func TestRestartAfterCreateMessage(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		id, err := p.PaychCreate(w.ctx, p.key, w.payee.key, atto(10))
		if err != nil {
			t.Fatal(err)
		}
		p.down()
		w.chain.DropPool() // the node was restarted as well
		p.start()
		st, err := p.PaychStatusByMsg(w.ctx, id)
		if err != nil || st.Phase != paych.PhaseCreating || !st.Channel.PendingAmt.Equals(atto(10)) {
			t.Fatalf("%+v %v", st, err)
		}
		p.funds(p.ready(id), 10, 0, 0, 10)
	})
}

// Lotus: TestPaychGetRestartAfterAddFundsMsg.
func TestRestartAfterAddFundsMessage(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ch := w.open(10)
		add, err := p.PaychReserveFunds(w.ctx, ch, atto(15))
		if err != nil || !add.Defined() {
			t.Fatal(add, err)
		}
		p.down()
		w.chain.DropPool()
		p.start()
		st, err := p.PaychStatus(w.ctx, ch)
		if err != nil || !st.PendingAmt.Equals(atto(5)) || st.PendingChainMessage == nil || *st.PendingChainMessage != add ||
			!st.ReservedAmt.Equals(atto(10)) {
			t.Fatalf("%+v %v", st, err)
		}
		p.ready(add)
		p.funds(ch, 15, 0, 15, 0)
	})
}

// Lotus: TestPaychGetMergeAddFundsCtxCancelAll.
func TestMergedAddFundsAllTakenBack(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ch := w.open(10)
		first, err := p.PaychAddFunds(w.ctx, ch, atto(1))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(w.ctx)
		errs := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := p.PaychReserveFunds(ctx, ch, atto(50))
				errs <- err
			}()
		}
		w.pass(0)
		cancel()
		for range 2 {
			if err := <-errs; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		p.ready(first)
		w.pass(10)
		p.funds(ch, 11, 0, 0, 11)
		if n := len(w.chain.Published()); n != 2 {
			t.Errorf("%d messages", n)
		}
	})
}

// A merged top-up that fails fails all that were merged, and those behind it go on.
func TestMergedAddFundsThatFail(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ch := w.open(10)
		first, err := p.PaychReserveFunds(w.ctx, ch, atto(15))
		if err != nil {
			t.Fatal(err)
		}
		w.chain.FailNext(7)
		type result struct {
			id  cid.Cid
			err error
		}
		behind := make(chan result)
		go func() {
			id, err := p.PaychReserveFunds(w.ctx, ch, atto(12))
			behind <- result{id, err}
		}()
		_, err = p.PaychWaitReady(w.ctx, first)
		if !errors.Is(err, paych.ErrTopUpFailed) {
			t.Errorf("%v", err)
		}
		r := <-behind
		if r.err != nil {
			t.Fatal(r.err)
		}
		p.ready(r.id)
		p.funds(ch, 12, 0, 12, 0)
		// Nothing can be sent: the call fails, and what it held is free again.
		if _, err := p.PaychReserveFunds(w.ctx, ch, atto(2*fund)); !errors.Is(err, paych.ErrBalance) {
			t.Error(err)
		}
		p.funds(ch, 12, 0, 12, 0)
	})
}

// Money that somebody else sent to the channel is found and used.
func TestFundsFromElsewhere(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(10)
		msg, err := w.chain.Prepare(w.ctx, paych.Message{From: q.key, To: ch, Value: atto(30)})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.chain.Publish(w.ctx, msg); err != nil {
			t.Fatal(err)
		}
		w.pass(5)
		if id, err := p.PaychReserveFunds(w.ctx, ch, atto(40)); err != nil || id.Defined() {
			t.Errorf("%v %v", id, err)
		}
	})
}

// Lanes of tab, slots and guard of an owned channel take the owner's calls only.
func TestOwnedChannel(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		owner := paych.WithTag(w.ctx, "peer")
		id, err := p.PaychCreateSpec(w.ctx, paych.CreateSpec{From: p.key, To: q.key, Amount: atto(100), Tag: "peer", Owned: true})
		if err != nil {
			t.Fatal(err)
		}
		ch := p.ready(id)
		for _, lane := range []uint64{0, 1, 64, 65} {
			if _, err := p.PaychVoucherCreate(w.ctx, ch, atto(1), lane); !errors.Is(err, paych.ErrOwned) {
				t.Errorf("lane %d: %v", lane, err)
			}
		}
		if lane, err := p.PaychAllocateLane(w.ctx, ch); err != nil || lane != 66 {
			t.Errorf("lane %d %v", lane, err)
		}
		r, err := p.PaychVoucherCreate(owner, ch, atto(10), 0)
		if err != nil || r.Voucher == nil {
			t.Fatal(err)
		}
		if err := q.PaychOwn(w.ctx, ch, "peer"); err != nil {
			t.Fatal(err)
		}
		if err := q.PaychOwn(w.ctx, ch, "other"); !errors.Is(err, paych.ErrOwned) {
			t.Error(err)
		}
		q.takes(ch, r.Voucher, 10)
		if _, err := q.PaychVoucherCreate(w.ctx, ch, atto(1), 0); !errors.Is(err, paych.ErrOwned) {
			t.Error(err)
		}
		if _, err := q.PaychVoucherCreate(owner, ch, atto(1), 0); err != nil {
			t.Error(err)
		}
	})
}

// A wallet that cannot sign leaves no claim behind.
func TestVoucherThatCannotBeSigned(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ch := w.open(100)
		if _, err := p.PaychReserveFunds(w.ctx, ch, atto(60)); err != nil {
			t.Fatal(err)
		}
		p.give(ch, 10, 0)
		locked := errors.New("wallet is locked")
		p.wallet.Fail(locked)
		if _, err := p.PaychVoucherCreate(w.ctx, ch, atto(90), 0); !errors.Is(err, locked) {
			t.Error(err)
		}
		p.wallet.Fail(nil)
		p.funds(ch, 100, 10, 50, 40)
		if sv := p.give(ch, 20, 0); sv.Nonce != 3 {
			t.Errorf("nonce %d: one that may have been seen is used again", sv.Nonce)
		}
		p.funds(ch, 100, 20, 40, 40)
	})
}
