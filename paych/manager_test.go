package paych_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych"
)

func dump(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b) + "\n"
}

func TestCreate(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		id, err := p.PaychCreate(w.ctx, p.key, w.payee.key, atto(100))
		if err != nil {
			t.Fatal(err)
		}
		// It is never invisible.
		st, err := p.PaychStatusByMsg(w.ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if st.State != "published" || st.Phase != paych.PhaseCreating || !st.Channel.PendingAmt.Equals(atto(100)) ||
			st.Channel.PendingChainMessage == nil || *st.Channel.PendingChainMessage != id {
			t.Errorf("%+v", st)
		}
		if list, _ := p.PaychPending(w.ctx); len(list) != 1 || list[0].Cid != id {
			t.Errorf("pending: %v", list)
		}
		ch := p.ready(id)
		p.funds(ch, 100, 0, 0, 100)
		got, err := p.PaychStatus(w.ctx, ch)
		if err != nil {
			t.Fatal(err)
		}
		if got.Direction != paych.PCHOutbound || got.ControlAddr != p.key || got.From != p.key || got.To != w.payee.key ||
			got.Channel != ch || got.PendingChainMessage != nil || got.PendingAmt.Sign() != 0 {
			t.Errorf("%+v", got)
		}
		if list, _ := p.PaychPending(w.ctx); len(list) != 0 {
			t.Errorf("pending: %v", list)
		}
		other := w.open(50)
		if other == ch {
			t.Error("a second create gave the same channel")
		}
		if list, err := p.PaychList(w.ctx); err != nil || len(list) != 2 || list[0] != ch || list[1] != other {
			t.Errorf("%v %v", list, err)
		}
		if found, err := p.PaychLookup(w.ctx, p.id, w.payee.id); err != nil || found != ch {
			t.Errorf("lookup: %v %v", found, err)
		}
		if _, err := p.PaychLookup(w.ctx, w.payee.key, p.key); !errors.Is(err, paych.ErrNoChannel) {
			t.Errorf("lookup: %v", err)
		}
	})
}

func TestCreateIsRefused(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		for name, c := range map[string]struct {
			spec paych.CreateSpec
			want error
		}{
			"zero":        {paych.CreateSpec{From: p.key, To: w.payee.key, Amount: atto(0)}, paych.ErrZeroAmount},
			"no key":      {paych.CreateSpec{From: w.payee.key, To: p.key, Amount: atto(1)}, paych.ErrNoKey},
			"balance":     {paych.CreateSpec{From: p.key, To: w.payee.key, Amount: atto(fund + 1)}, paych.ErrBalance},
			"owned by no": {paych.CreateSpec{From: p.key, To: w.payee.key, Amount: atto(1), Owned: true}, paych.ErrOwned},
		} {
			if id, err := p.PaychCreateSpec(w.ctx, c.spec); !errors.Is(err, c.want) || id.Defined() {
				t.Errorf("%s: %v %v", name, id, err)
			}
		}
		if n := len(w.chain.Published()); n != 0 {
			t.Errorf("%d messages were published", n)
		}
	})
}

func TestCreateThatFailsOnTheChain(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		w.chain.FailNext(exitcode.SysErrOutOfGas)
		ctx := paych.WithTag(w.ctx, "peer")
		id, err := p.PaychCreate(ctx, p.key, w.payee.key, atto(100))
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.PaychWaitReady(w.ctx, id)
		var failed *paych.MessageError
		if !errors.As(err, &failed) || failed.Exit != exitcode.SysErrOutOfGas || !errors.Is(err, paych.ErrCreateFailed) {
			t.Fatal(err)
		}
		st, err := p.PaychStatusByMsg(w.ctx, id)
		if err != nil || st.State != "failed" || st.Phase != paych.PhaseFailed || st.Error == "" {
			t.Errorf("%+v %v", st, err)
		}
		again, err := p.PaychCreate(ctx, p.key, w.payee.key, atto(100))
		if err != nil || again == id {
			t.Fatalf("the tag is used up: %v %v", again, err)
		}
		p.ready(again)
	})
}

// Two calls with one tag, at the same time and later, make one channel.
func TestCreateWithTag(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ctx := paych.WithTag(w.ctx, "peer")
		ids := make(chan cid.Cid, 3)
		for range cap(ids) {
			go func() {
				id, err := p.PaychCreate(ctx, p.key, w.payee.key, atto(100))
				if err != nil {
					t.Error(err)
				}
				ids <- id
			}()
		}
		first := <-ids
		for range cap(ids) - 1 {
			if id := <-ids; id != first {
				t.Errorf("%v and %v", first, id)
			}
		}
		p.ready(first)
		p.down()
		p.start()
		if id, err := p.PaychCreate(ctx, p.key, w.payee.key, atto(1)); err != nil || id != first {
			t.Errorf("after a restart %v, %v", id, err)
		}
		if list, _ := p.PaychList(w.ctx); len(list) != 1 {
			t.Errorf("%d channels", len(list))
		}
	})
}

func TestVoucherBothSides(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		lane, err := p.PaychAllocateLane(w.ctx, ch)
		if err != nil {
			t.Fatal(err)
		}
		sv := p.give(ch, 30, lane)
		p.funds(ch, 100, 30, 0, 70)
		q.takes(ch, sv, 30)
		q.takes(ch, sv, 0) // again
		sv = p.give(ch, 45, lane)
		q.takes(ch, sv, 15)
		st, err := q.PaychStatus(w.ctx, ch)
		if err != nil || st.Direction != paych.PCHInbound || !st.VoucherReedeemedAmt.Equals(atto(45)) {
			t.Fatalf("%+v %v", st, err)
		}
		r, err := p.PaychVoucherCreate(w.ctx, ch, atto(120), lane)
		if err != nil || r.Voucher != nil || !r.Shortfall.Equals(atto(20)) {
			t.Fatalf("%+v %v", r, err)
		}
		if list, err := q.PaychVoucherList(w.ctx, ch); err != nil || len(list) != 2 || list[1].Nonce != 2 {
			t.Errorf("%v %v", list, err)
		}
		for _, n := range []*node{p, q} {
			before := n.state(ch)
			n.down()
			n.start()
			if after := n.state(ch); after != before {
				t.Errorf("after a restart\n%s, before\n%s", after, before)
			}
		}
	})
}

func TestSettleAndCollect(t *testing.T) {
	inTown(t, func(w *town) {
		p, q := w.payer, w.payee
		ch := w.open(100)
		q.takes(ch, p.give(ch, 30, 0), 30)
		q.takes(ch, p.give(ch, 20, 1), 20)
		if _, err := p.PaychCollect(w.ctx, ch); !errors.Is(err, paych.ErrNotSettling) {
			t.Errorf("collect: %v", err)
		}
		id, err := p.PaychSettle(w.ctx, ch)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := p.PaychSettle(w.ctx, ch); err != nil || again != id {
			t.Errorf("again: %v %v", again, err)
		}
		p.ready(id)
		if again, err := p.PaychSettle(w.ctx, ch); err != nil || again != id {
			t.Errorf("again: %v %v", again, err)
		}
		if _, err := q.PaychSettle(w.ctx, ch); !errors.Is(err, paych.ErrSettling) {
			t.Errorf("the other side: %v", err)
		}
		if _, err := p.PaychCollect(w.ctx, ch); !errors.Is(err, paych.ErrTooEarly) {
			t.Errorf("collect: %v", err)
		}
		if _, err := p.PaychVoucherCreate(w.ctx, ch, atto(60), 0); !errors.Is(err, paych.ErrSettling) {
			t.Errorf("voucher: %v", err)
		}
		w.pass(60)
		for _, n := range []*node{p, q} {
			info, err := n.PaychInfo(w.ctx, ch)
			if err != nil || info.Phase != paych.PhaseCollected || info.Final == nil || !info.Final.ToSend.Equals(atto(50)) ||
				!info.Final.Rest.Equals(atto(50)) {
				t.Errorf("%+v %v", info, err)
			}
		}
		if p.balance() != fund-50 || q.balance() != fund+50 {
			t.Errorf("payer has %d, payee %d", p.balance(), q.balance())
		}
	})
}

func TestReserve(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ch := w.open(100)
		id, err := p.PaychReserveFunds(w.ctx, ch, atto(60))
		if err != nil || id.Defined() {
			t.Fatalf("%v %v", id, err)
		}
		p.funds(ch, 100, 0, 60, 40)
		id, err = p.PaychReserveFunds(w.ctx, ch, atto(100))
		if err != nil || !id.Defined() {
			t.Fatalf("%v %v", id, err)
		}
		st, err := p.PaychStatus(w.ctx, ch)
		if err != nil || !st.PendingAmt.Equals(atto(60)) || !st.ReservedAmt.Equals(atto(100)) || *st.PendingChainMessage != id {
			t.Errorf("%+v %v", st, err)
		}
		p.ready(id)
		p.funds(ch, 160, 0, 160, 0)
		if err := p.PaychReleaseFunds(w.ctx, ch, atto(161)); !errors.Is(err, paych.ErrNotReserved) {
			t.Error(err)
		}
		p.give(ch, 100, 0) // draws on the reservations
		p.funds(ch, 160, 100, 60, 0)
		if err := p.PaychReleaseFunds(w.ctx, ch, atto(60)); err != nil {
			t.Error(err)
		}
		p.funds(ch, 160, 100, 0, 60)
	})
}

func TestMergedAddFunds(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ch := w.open(100)
		first, err := p.PaychAddFunds(w.ctx, ch, atto(1))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(w.ctx)
		type result struct {
			id  cid.Cid
			err error
		}
		results := make(chan result, 3)
		add := func(ctx context.Context, n int64) {
			id, err := p.PaychAddFunds(ctx, ch, atto(n))
			results <- result{id, err}
		}
		go add(w.ctx, 10)
		go add(w.ctx, 20)
		go add(ctx, 40)
		w.pass(0)
		st, err := p.PaychStatus(w.ctx, ch)
		if err != nil || !st.QueuedAmt.Equals(atto(70)) || !st.PendingAmt.Equals(atto(1)) {
			t.Errorf("%+v %v", st, err)
		}
		cancel()
		if r := <-results; !errors.Is(r.err, context.Canceled) {
			t.Errorf("%v", r)
		}
		p.ready(first)
		r1, r2 := <-results, <-results
		if r1.err != nil || r2.err != nil || r1.id != r2.id || r1.id == first {
			t.Fatalf("%v %v", r1, r2)
		}
		p.ready(r1.id)
		p.funds(ch, 131, 0, 0, 131)
	})
}

// A channel that is made for a reservation has none of its money free, from the
// first moment; and a channel without an address is in the list.
func TestCreateReserved(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		id, err := p.PaychCreateSpec(w.ctx, paych.CreateSpec{From: p.key, To: w.payee.key, Amount: atto(100), Reserve: true})
		if err != nil {
			t.Fatal(err)
		}
		list, err := p.PaychInfos(w.ctx)
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		info := list[0]
		if info.Channel != address.Undef || info.Phase != paych.PhaseCreating || !info.PendingAmt.Equals(atto(100)) || info.PendingFree.Sign() != 0 {
			t.Errorf("creating: %+v", info)
		}
		if len(info.Pending) != 1 || info.Pending[0].Cid != id || !info.Pending[0].Late.After(info.Pending[0].Since) {
			t.Errorf("pending: %+v", info.Pending)
		}
		p.down()
		p.start()
		ch := p.ready(id)
		p.funds(ch, 100, 0, 100, 0)
		p.give(ch, 30, 0)
		p.funds(ch, 100, 30, 70, 0)
		if err := p.PaychReleaseFunds(w.ctx, ch, atto(70)); err != nil {
			t.Fatal(err)
		}
		p.funds(ch, 100, 30, 0, 70)
	})
}

// Why the newest message failed stays visible after it left the list of those
// that are pending.
func TestLastError(t *testing.T) {
	inTown(t, func(w *town) {
		p := w.payer
		ch := w.open(100)
		w.chain.FailNext(exitcode.SysErrOutOfGas)
		id, err := p.PaychAddFunds(w.ctx, ch, atto(5))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.PaychWaitReady(w.ctx, id); !errors.Is(err, paych.ErrTopUpFailed) {
			t.Fatal(err)
		}
		info, err := p.PaychInfo(w.ctx, ch)
		if err != nil || len(info.Pending) != 0 || !strings.Contains(info.LastError, id.String()) {
			t.Errorf("%+v, %v", info, err)
		}
	})
}
