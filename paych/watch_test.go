package paych_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/exitcode"

	"github.com/tallystick/tally/paych"
)

func (w *town) head() abi.ChainEpoch {
	h, err := w.chain.Head(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// onChain is what a channel will pay, and when.
func (w *town) onChain(ch address.Address) (toSend int64, settlingAt abi.ChainEpoch) {
	w.t.Helper()
	st, _, err := w.chain.Channel(w.ctx, ch, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return st.ToSend.Int64(), st.SettlingAt
}

// paid checks the final result on a side, and what both accounts hold.
func (w *town) paid(ch address.Address, amount int64) {
	w.t.Helper()
	for _, n := range []*node{w.payer, w.payee} {
		if n.Manager == nil {
			continue
		}
		info, err := n.PaychInfo(w.ctx, ch)
		if err != nil {
			w.t.Fatal(err)
		}
		if info.Phase != paych.PhaseCollected || info.Final == nil || !info.Final.ToSend.Equals(atto(amount)) {
			w.t.Errorf("%v, final %+v, want %d", info.Phase, info.Final, amount)
		}
		if !info.VoucherReedeemedAmt.Equals(atto(amount)) {
			w.t.Errorf("status says %v", info.VoucherReedeemedAmt)
		}
	}
	if got := w.payee.balance(); got != fund+amount {
		w.t.Errorf("payee has %d, want %d", got, fund+amount)
	}
	if got := w.payer.balance(); got != fund-amount {
		w.t.Errorf("payer has %d, want %d", got, fund-amount)
	}
}

func (n *node) settle(ch address.Address) {
	n.t.Helper()
	id, err := n.PaychSettle(n.w.ctx, ch)
	if err != nil {
		n.t.Fatal(err)
	}
	n.ready(id)
}

// The payer settles while the payee is away. Back in time, the payee submits the
// best voucher of every lane, with the secret where one is needed, and collects.
func TestPayeeComesBackToASettlingChannel(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		q.takes(ch, p.give(ch, 10, 0), 10)
		q.takes(ch, p.give(ch, 25, 0), 15)
		q.takes(ch, p.give(ch, 20, 7), 20)
		secret := preimage(1)
		lock := secret.Hashlock()
		q.takes(ch, p.giveSpec(ch, paych.VoucherSpec{Lane: 3, Amount: atto(5), Lock: &lock}), 0)
		other := preimage(2).Hashlock()
		q.takes(ch, p.giveSpec(ch, paych.VoucherSpec{Lane: 4, Amount: atto(6), Lock: &other}), 0)
		if d, err := q.PaychVoucherSecret(w.ctx, ch, secret); err != nil || !d.Equals(atto(5)) {
			t.Errorf("%v %v", d, err)
		}
		q.down()
		p.settle(ch)
		w.pass(20)
		q.start()
		w.pass(40)
		w.paid(ch, 50)
	})
}

// A payee that is away beyond SettlingAt has lost what it did not submit.
func TestPayeeComesBackTooLate(t *testing.T) {
	inTownWith(t, paych.Config{NoAutoCollect: true}, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		q.takes(ch, p.give(ch, 10, 0), 10)
		q.down()
		p.settle(ch)
		w.pass(60)
		before := len(w.chain.Published())
		q.start()
		w.pass(5)
		if n := len(w.chain.Published()); n != before {
			t.Errorf("%d messages that must fail were published", n-before)
		}
		id, err := p.PaychCollect(w.ctx, ch)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := p.PaychCollect(w.ctx, ch); err != nil || again != id {
			t.Errorf("%v %v", again, err)
		}
		p.ready(id)
		w.pass(5)
		w.paid(ch, 0)
		if _, err := q.PaychCollect(w.ctx, ch); !errors.Is(err, paych.ErrCollected) {
			t.Error(err)
		}
		if _, err := q.PaychVoucherAdd(w.ctx, ch, p.anyVoucher(ch), nil, atto(0)); !errors.Is(err, paych.ErrCollected) {
			t.Error(err)
		}
	})
}

func (n *node) anyVoucher(ch address.Address) *paych.SignedVoucher {
	n.t.Helper()
	list, err := n.PaychVoucherList(n.w.ctx, ch)
	if err != nil || len(list) == 0 {
		n.t.Fatalf("%v %v", list, err)
	}
	return list[0]
}

// A message of the watcher that fails is sent again, and so is Collect.
func TestWatcherTriesAgain(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		q.takes(ch, p.give(ch, 10, 0), 10)
		p.settle(ch)
		w.chain.FailNext(exitcode.SysErrOutOfGas, exitcode.SysErrOutOfGas)
		w.pass(25)
		if got, _ := w.onChain(ch); got != 10 {
			t.Errorf("to send %d", got)
		}
		w.pass(12)
		w.chain.FailNext(exitcode.SysErrOutOfGas)
		w.pass(20)
		w.paid(ch, 10)
	})
}

// The chain's node is away while the channel settles.
func TestWatcherOutlivesANodeThatIsDown(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		q.takes(ch, p.give(ch, 10, 0), 10)
		p.settle(ch)
		w.chain.Down(errors.New("no route to the node"))
		w.pass(15)
		w.chain.Down(nil)
		w.pass(90)
		w.paid(ch, 10)
	})
}

// A refund that the payee signed counts although the payee, by malice or because
// it lost its store, submits the voucher before it.
func TestPayerAnswersAnOldVoucher(t *testing.T) {
	for name, settle := range map[string]bool{"before settling": false, "when settling": true} {
		t.Run(name, func(t *testing.T) {
			inTown(t, func(w *town) {
				p, q := w.payer, w.payee
				ch := w.open(100)
				old := p.give(ch, 80, 0)
				q.takes(ch, old, 80)
				refund := q.give(ch, 30, 0)
				p.takes(ch, refund, 0)
				p.funds(ch, 100, 80, 0, 20) // V falls when the refund is final
				if settle {
					q.settle(ch)
				} else if _, err := q.PaychVoucherSubmit(w.ctx, ch, old, nil, nil); err != nil {
					t.Fatal(err)
				}
				w.pass(15)
				if got, _ := w.onChain(ch); got != 30 {
					t.Errorf("to send %d", got)
				}
				p.funds(ch, 100, 30, 0, 70)
				if !settle {
					p.settle(ch)
				}
				w.pass(60)
				w.paid(ch, 30)
			})
		})
	}
}

// A payer that was away answers when it is back.
func TestPayerComesBackToAnOldVoucher(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		old := p.give(ch, 80, 0)
		q.takes(ch, old, 80)
		p.takes(ch, q.give(ch, 30, 0), 0)
		p.down()
		if _, err := q.PaychVoucherSubmit(w.ctx, ch, old, nil, nil); err != nil {
			t.Fatal(err)
		}
		q.settle(ch)
		w.pass(15)
		p.start()
		w.pass(50)
		w.paid(ch, 30)
	})
}

// A lock counts in full while it may be used. Its cancel is submitted when the
// payee uses it all the same; after its time lock is past finality it is free.
func TestLocksGivenCountUntilTheyCannotBeUsed(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		q.takes(ch, p.give(ch, 10, 1), 10)
		secret := preimage(1)
		lock := secret.Hashlock()
		expires := w.head() + 20
		locked := p.giveSpec(ch, paych.VoucherSpec{Lane: 1, Amount: atto(50), Lock: &lock, TimeLockMax: expires})
		q.takes(ch, locked, 0)
		p.funds(ch, 100, 50, 0, 50)
		cancel := q.give(ch, 10, 1)
		p.takes(ch, cancel, 0)
		p.funds(ch, 100, 50, 0, 50)
		if st, err := q.PaychStatus(w.ctx, ch); err != nil || !st.VoucherReedeemedAmt.Equals(atto(10)) {
			t.Errorf("%+v %v", st, err)
		}
		w.pass(int(expires-w.head()) + 1)
		p.funds(ch, 100, 50, 0, 50) // not past finality
		w.pass(3)
		p.funds(ch, 100, 10, 0, 90)
	})
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		secret := preimage(1)
		lock := secret.Hashlock()
		locked := p.giveSpec(ch, paych.VoucherSpec{Lane: 1, Amount: atto(50), Lock: &lock, TimeLockMax: w.head() + 30})
		q.takes(ch, locked, 0)
		p.takes(ch, q.give(ch, 0, 1), 0)
		if _, err := q.PaychVoucherSubmit(w.ctx, ch, locked, secret[:], nil); err != nil {
			t.Fatal(err)
		}
		w.pass(12)
		if got, _ := w.onChain(ch); got != 0 {
			t.Errorf("to send %d", got)
		}
		p.funds(ch, 100, 0, 0, 100)
	})
}

// A lock whose secret the payee knows is submitted before it expires, and the
// payer reads the secret from the chain.
func TestLockIsClaimedInTime(t *testing.T) {
	var notices []paych.Notice
	cfg := paych.Config{Notify: func(n paych.Notice) { notices = append(notices, n) }}
	inTownWith(t, cfg, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		secret := preimage(1)
		lock := secret.Hashlock()
		expires := w.head() + 30
		locked := p.giveSpec(ch, paych.VoucherSpec{Lane: 1, Amount: atto(50), Lock: &lock, TimeLockMax: expires})
		d, err := q.PaychVoucherAdd(w.ctx, ch, locked, secret[:], atto(50))
		if err != nil || !d.Equals(atto(50)) {
			t.Fatalf("%v %v", d, err)
		}
		w.pass(10)
		if got, _ := w.onChain(ch); got != 0 {
			t.Errorf("claimed early: %d", got)
		}
		w.pass(20)
		if got, _ := w.onChain(ch); got != 50 {
			t.Errorf("to send %d", got)
		}
		p.funds(ch, 100, 50, 0, 50)
		if !slices.ContainsFunc(notices, func(n paych.Notice) bool {
			return n.Kind == paych.NoticeSecret && n.Secret != nil && *n.Secret == secret
		}) {
			t.Errorf("the payer was not told the secret: %v", notices)
		}
	})
}

// The guard keeps the channel open for a lock that outlives the settling time.
func TestGuardIsSubmittedWhenSettling(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		until := w.head() + 70
		q.takes(ch, p.giveSpec(ch, paych.VoucherSpec{Lane: 65, Amount: atto(0), MinSettleHeight: until}), 0)
		p.settle(ch)
		w.pass(10)
		if _, at := w.onChain(ch); at != until {
			t.Errorf("settles at %d, want %d", at, until)
		}
	})
}

// Settle is reverted: the channel is open again, and settles when Settle is mined
// again.
func TestSettleIsReverted(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		q.takes(ch, p.give(ch, 10, 0), 10)
		if _, err := p.PaychSettle(w.ctx, ch); err != nil {
			t.Fatal(err)
		}
		w.pass(1)
		if _, at := w.onChain(ch); at == 0 {
			t.Fatal("not settling")
		}
		w.chain.Revert(1)
		w.pass(0)
		if info, err := q.PaychInfo(w.ctx, ch); err != nil || info.Phase != paych.PhaseOpen {
			t.Errorf("%v %v", info.Phase, err)
		}
		q.takes(ch, p.give(ch, 15, 0), 5)
		w.pass(70)
		w.paid(ch, 15)
	})
}

// Nothing is taken from a channel whose money is not final.
func TestTopUpIsReverted(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		id, err := p.PaychAddFunds(w.ctx, ch, atto(100))
		if err != nil {
			t.Fatal(err)
		}
		w.pass(1)
		p.funds(ch, 100, 0, 0, 100)
		w.chain.Revert(1)
		w.chain.DropPool()
		w.pass(8)
		// The node forgot it; the same bytes are published again, within the eight
		// epochs or after them.
		if st, err := p.PaychStatusByMsg(w.ctx, id); err != nil || st.State != "published" && st.State != "done" {
			t.Errorf("%+v %v", st, err)
		}
		p.ready(id)
		p.funds(ch, 200, 0, 0, 200)
		q.takes(ch, p.give(ch, 150, 0), 150)
	})
}

// A channel that the other side collected is archived with what it paid, even if
// both sides' last look is older than the last voucher on the chain.
func TestFinalResultOfAChannelCollectedWhileAway(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		q.takes(ch, p.give(ch, 35, 0), 35)
		p.down()
		q.settle(ch)
		w.pass(60)
		p.start()
		w.pass(5)
		w.paid(ch, 35)
		if _, err := p.PaychSettle(w.ctx, ch); !errors.Is(err, paych.ErrCollected) {
			t.Error(err)
		}
		p.down()
		p.start()
		w.pass(5)
		w.paid(ch, 35)
	})
}
