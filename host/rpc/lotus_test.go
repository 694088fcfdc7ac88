package rpc

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-jsonrpc"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	paychtypes "github.com/filecoin-project/go-state-types/builtin/v8/paych"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych"
)

// lotusClient is written after the API of Lotus, with its types and without ours,
// as the client of a program that knows Lotus alone.
type lotusClient struct {
	PaychGet                    func(ctx context.Context, from, to address.Address, amt big.Int, opts lotusOpts) (*lotusInfo, error)
	PaychFund                   func(ctx context.Context, from, to address.Address, amt big.Int) (*lotusInfo, error)
	PaychGetWaitReady           func(context.Context, cid.Cid) (address.Address, error)
	PaychAvailableFunds         func(ctx context.Context, ch address.Address) (*lotusFunds, error)
	PaychAvailableFundsByFromTo func(ctx context.Context, from, to address.Address) (*lotusFunds, error)
	PaychList                   func(context.Context) ([]address.Address, error)
	PaychStatus                 func(context.Context, address.Address) (*lotusStatus, error)
	PaychSettle                 func(context.Context, address.Address) (cid.Cid, error)
	PaychCollect                func(context.Context, address.Address) (cid.Cid, error)
	PaychAllocateLane           func(ctx context.Context, ch address.Address) (uint64, error)
	PaychNewPayment             func(ctx context.Context, from, to address.Address, vouchers []lotusSpec) (*lotusPayment, error)
	PaychVoucherCheckValid      func(context.Context, address.Address, *paychtypes.SignedVoucher) error
	PaychVoucherCheckSpendable  func(context.Context, address.Address, *paychtypes.SignedVoucher, []byte, []byte) (bool, error)
	PaychVoucherCreate          func(context.Context, address.Address, big.Int, uint64) (*lotusVoucherResult, error)
	PaychVoucherAdd             func(context.Context, address.Address, *paychtypes.SignedVoucher, []byte, big.Int) (big.Int, error)
	PaychVoucherList            func(context.Context, address.Address) ([]*paychtypes.SignedVoucher, error)
	PaychVoucherSubmit          func(context.Context, address.Address, *paychtypes.SignedVoucher, []byte, []byte) (cid.Cid, error)
}

type (
	lotusOpts struct{ OffChain bool }
	lotusInfo struct {
		Channel      address.Address
		WaitSentinel cid.Cid
	}
	lotusFunds struct {
		Channel                                                       *address.Address
		From, To                                                      address.Address
		ConfirmedAmt, PendingAmt, NonReservedAmt, PendingAvailableAmt big.Int
		PendingWaitSentinel                                           *cid.Cid
		QueuedAmt, VoucherReedeemedAmt                                big.Int
	}
	lotusStatus struct {
		ControlAddr address.Address
		Direction   int
	}
	lotusSpec struct {
		Amount                              big.Int
		TimeLockMin, TimeLockMax, MinSettle abi.ChainEpoch
		Extra                               *paychtypes.ModVerifyParams
	}
	lotusPayment struct {
		Channel      address.Address
		WaitSentinel cid.Cid
		Vouchers     []*paychtypes.SignedVoucher
	}
	lotusVoucherResult struct {
		Voucher   *paychtypes.SignedVoucher
		Shortfall big.Int
	}
)

func dialLotus(t *testing.T, addr string, tok Secret) *lotusClient {
	t.Helper()
	c := &lotusClient{}
	transport := &http.Transport{}
	stop, err := jsonrpc.NewMergeClient(t.Context(), "http://"+addr+Path, "Filecoin", []any{c},
		http.Header{"Authorization": {"Bearer " + tok.Reveal()}}, jsonrpc.WithErrors(wireErrors()),
		jsonrpc.WithHTTPClient(&http.Client{Transport: transport}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(); transport.CloseIdleConnections() })
	return c
}

// A program that knows Lotus alone creates, funds, pays, settles and collects.
func TestLotusClientDrivesAChannel(t *testing.T) {
	w := newTown(t)
	ctx := t.Context()
	p, q := dialLotus(t, w.payer.addr, w.all), dialLotus(t, w.payee.addr, w.all)
	from, to := w.payer.key, w.payee.key

	if f, err := p.PaychAvailableFundsByFromTo(ctx, from, to); err != nil || f.Channel != nil || f.From != from || f.ConfirmedAmt.Sign() != 0 {
		t.Fatal("before there is a channel:", f, err)
	}
	if _, err := p.PaychGet(ctx, from, to, atto(100), lotusOpts{OffChain: true}); codeOf(err) != CodeNoChannel {
		t.Fatal("off chain, without a channel:", err)
	}
	info, err := p.PaychGet(ctx, from, to, atto(100), lotusOpts{})
	if err != nil || info.Channel != address.Undef || !info.WaitSentinel.Defined() {
		t.Fatal("create:", info, err)
	}
	f, err := p.PaychAvailableFundsByFromTo(ctx, from, to)
	if err != nil || f.Channel != nil || f.PendingAmt.Int64() != 100 || f.PendingAvailableAmt.Sign() != 0 ||
		f.PendingWaitSentinel == nil || *f.PendingWaitSentinel != info.WaitSentinel {
		t.Fatal("while it is created:", f, err)
	}
	waited := make(chan address.Address, 1)
	go func() { // ends with the receipt
		ch, err := p.PaychGetWaitReady(ctx, info.WaitSentinel)
		if err != nil {
			t.Error(err)
		}
		waited <- ch
	}()
	w.chain.Mine(3)
	ch := <-waited

	// What the create brought is reserved; a second Get brings what is missing, a
	// third finds enough, and Fund adds what is free.
	w.lotusFunds(p, ch, 100, 0, 0)
	again, err := p.PaychGet(ctx, from, to, atto(50), lotusOpts{})
	if err != nil || again.Channel != ch || !again.WaitSentinel.Defined() {
		t.Fatal("top up:", again, err)
	}
	w.mined(p, again.WaitSentinel)
	w.lotusFunds(p, ch, 150, 0, 0)
	added, err := p.PaychFund(ctx, from, to, atto(70))
	if err != nil || added.Channel != ch {
		t.Fatal("fund:", added, err)
	}
	w.mined(p, added.WaitSentinel)
	w.lotusFunds(p, ch, 220, 70, 0)
	if _, err := p.PaychGet(ctx, from, to, atto(71), lotusOpts{OffChain: true}); codeOf(err) != CodeShortfall || Explain(err).Details.Shortfall != "1" {
		t.Fatal("off chain, without the funds:", err)
	}
	enough, err := p.PaychGet(ctx, from, to, atto(30), lotusOpts{OffChain: true})
	if err != nil || enough.Channel != ch || enough.WaitSentinel.Defined() {
		t.Fatal("enough is free:", enough, err)
	}
	w.lotusFunds(p, ch, 220, 40, 0)

	if list, err := p.PaychList(ctx); err != nil || len(list) != 1 || list[0] != ch {
		t.Error(list, err)
	}
	if st, err := p.PaychStatus(ctx, ch); err != nil || st.ControlAddr != from || st.Direction != 2 {
		t.Error(st, err)
	}
	if st, err := q.PaychStatus(ctx, ch); err != nil || st.ControlAddr != to || st.Direction != 1 {
		t.Error(st, err)
	}

	lane, err := p.PaychAllocateLane(ctx, ch)
	if err != nil {
		t.Fatal(err)
	}
	made, err := p.PaychVoucherCreate(ctx, ch, atto(60), lane)
	if err != nil || made.Voucher == nil || made.Voucher.Lane != lane || made.Shortfall.Sign() != 0 {
		t.Fatal(made, err)
	}
	short, err := p.PaychVoucherCreate(ctx, ch, atto(500), lane)
	if err != nil || short.Voucher != nil || short.Shortfall.Int64() != 280 {
		t.Fatal("shortfall:", short, err)
	}
	if err := q.PaychVoucherCheckValid(ctx, ch, made.Voucher); err != nil {
		t.Error(err)
	}
	if ok, err := q.PaychVoucherCheckSpendable(ctx, ch, made.Voucher, nil, nil); err != nil || !ok {
		t.Error(ok, err)
	}
	if delta, err := q.PaychVoucherAdd(ctx, ch, made.Voucher, nil, big.Zero()); err != nil || delta.Int64() != 60 {
		t.Error(delta, err)
	}
	if list, err := q.PaychVoucherList(ctx, ch); err != nil || len(list) != 1 || list[0].Amount.Int64() != 60 {
		t.Error(list, err)
	}

	// A payment of two vouchers needs 90, of which 40 are free.
	done := make(chan *lotusPayment, 1)
	go func() { // ends with the receipt of the top-up
		pay, err := p.PaychNewPayment(ctx, from, to, []lotusSpec{{Amount: atto(20)}, {Amount: atto(90)}})
		if err != nil {
			t.Error(err)
		}
		done <- pay
	}()
	w.pending(w.payer, 1)
	w.chain.Mine(3)
	pay := <-done
	if pay == nil || pay.Channel != ch || len(pay.Vouchers) != 2 || pay.Vouchers[1].Amount.Int64() != 90 || pay.Vouchers[0].Lane == lane {
		t.Fatalf("%+v", pay)
	}
	for i, want := range []int64{20, 70} {
		if delta, err := q.PaychVoucherAdd(ctx, ch, pay.Vouchers[i], nil, big.Zero()); err != nil || delta.Int64() != want {
			t.Error(delta, err)
		}
	}
	sent, err := q.PaychVoucherSubmit(ctx, ch, made.Voucher, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.mined(q, sent)
	settled, err := p.PaychSettle(ctx, ch)
	if err != nil {
		t.Fatal(err)
	}
	w.mined(p, settled)
	if _, err := p.PaychCollect(ctx, ch); codeOf(err) != CodeCollectTooEarly {
		t.Error("too early:", err)
	}
	w.untilSubmitted(ch, 150)
	w.chain.Mine(45)
	w.untilState(w.payer, ch, func(r ChannelRow) bool { return r.SettlingLeft == 0 })
	collected, err := p.PaychCollect(ctx, ch)
	if err != nil {
		t.Fatal(err)
	}
	w.mined(p, collected)
	row := w.untilState(w.payer, ch, func(r ChannelRow) bool { return r.Result != nil })
	if row.State != "collected" || row.Result.Paid != "150" || row.Result.Returned != "120" {
		t.Errorf("%+v", row.Result)
	}
	// 50 more were brought for the payment than were free: 220 + 50.
	if _, err := p.PaychVoucherCreate(ctx, ch, atto(61), lane); codeOf(err) != CodeCollected {
		t.Error("after all:", err)
	}
}

// Two calls for one pair of addresses at a time make one channel.
func TestLotusGetMakesOneChannel(t *testing.T) {
	w := newTown(t)
	p := dialLotus(t, w.payer.addr, w.all)
	const callers = 4
	infos := make(chan *lotusInfo, callers)
	for range callers {
		go func() { // ends with the receipts
			info, err := p.PaychGet(t.Context(), w.payer.key, w.payee.key, atto(10), lotusOpts{})
			if err != nil {
				t.Error(err)
			}
			infos <- info
		}()
	}
	creates := 0
	for range callers {
		for {
			select {
			case info := <-infos:
				if info != nil && info.Channel == address.Undef {
					creates++
				}
			case <-w.tick.C:
				w.chain.Mine(1)
				continue
			}
			break
		}
	}
	if list, err := p.PaychList(t.Context()); err != nil || len(list) != 1 || creates != 1 {
		t.Errorf("%d creates, %v, %v", creates, list, err)
	}
}

// The words on the wire are Lotus' own.
func TestLotusJSON(t *testing.T) {
	w := newTown(t)
	key := w.payer.key.String()
	funds := LotusAvailableFunds{
		From: w.payer.key, To: w.payer.key, ConfirmedAmt: atto(1), PendingAmt: atto(2), NonReservedAmt: atto(3),
		PendingAvailableAmt: atto(4), QueuedAmt: atto(5), VoucherReedeemedAmt: atto(6), VoucherRedeemedAmt: atto(6),
	}
	for _, x := range []struct {
		v    any
		want string
	}{
		{LotusChannelInfo{Channel: w.payer.key}, `{"Channel":"` + key + `","WaitSentinel":null}`},
		{LotusStatus{w.payer.key, 1}, `{"ControlAddr":"` + key + `","Direction":1}`},
		{LotusVoucherResult{Shortfall: atto(5)}, `{"Voucher":null,"Shortfall":"5"}`},
		{funds, `{"Channel":null,"From":"` + key + `","To":"` + key + `","ConfirmedAmt":"1","PendingAmt":"2","NonReservedAmt":"3",` +
			`"PendingAvailableAmt":"4","PendingWaitSentinel":null,"QueuedAmt":"5","VoucherReedeemedAmt":"6","VoucherRedeemedAmt":"6"}`},
	} {
		data, err := json.Marshal(x.v)
		if err != nil || string(data) != x.want {
			t.Errorf("%s\n%s %v", data, x.want, err)
		}
	}
}

// What JSON can say and no voucher says is refused before the manager sees it.
func TestLotusOddVouchers(t *testing.T) {
	w := newTown(t)
	ch := w.open(100)
	p := dialLotus(t, w.payer.addr, w.all)
	for name, sv := range map[string]*paych.SignedVoucher{
		"none": nil, "no amount": {ChannelAddr: ch}, "no channel": {Amount: atto(1)},
		"too large": {ChannelAddr: ch, Amount: atto(1), Merges: make([]paych.Merge, 5000)},
	} {
		if err := p.PaychVoucherCheckValid(t.Context(), ch, sv); err == nil || codeOf(err) == CodeFailed {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, specs := range map[string][]lotusSpec{
		"none": nil, "extra": {{Amount: atto(1), Extra: &paychtypes.ModVerifyParams{Actor: ch}}}, "falls": {{Amount: atto(2)}, {Amount: atto(1)}},
		"zero": {{Amount: atto(0)}},
	} {
		before := w.state(w.payer, ch)
		if _, err := p.PaychNewPayment(t.Context(), w.payer.key, w.payee.key, specs); err == nil || codeOf(err) == CodeFailed {
			t.Errorf("%s: %v", name, err)
		}
		if after := w.state(w.payer, ch); after != before {
			t.Errorf("%s changed\n%s\n%s", name, before, after)
		}
	}
}
