package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych"
)

// LotusMethods are the methods under Lotus' names, with its parameters, results
// and permissions.
var LotusMethods = []Method{
	{"PaychGet", PermSign, []string{"from", "to", "amt", "opts"}, "Gets or creates the channel between two addresses and reserves amt in it, which brings a message only where too little is free. WaitSentinel is null where there is none. With OffChain nothing is sent: an error instead. While the channel is being created by another call it waits for that, without a limit of time."},
	{"PaychFund", PermSign, []string{"from", "to", "amt"}, "Gets or creates the channel and adds amt to it, unreserved."},
	{"PaychGetWaitReady", PermSign, []string{"sentinel"}, "Waits for the receipt of a message, without a limit of time, and returns the channel. Few calls may wait at a time; code busy says so."},
	{"PaychAvailableFunds", PermSign, []string{"ch"}, "The funds of a channel."},
	{"PaychAvailableFundsByFromTo", PermSign, []string{"from", "to"}, "The funds of the channel between two addresses, of one that is being created too; without any, zeros and Channel null."},
	{"PaychList", PermRead, nil, "The addresses of all channels."},
	{"PaychStatus", PermRead, []string{"ch"}, "Our side of a channel and its direction, 1 inbound, 2 outbound."},
	{"PaychSettle", PermSign, []string{"ch"}, "As Tally.PaychSettle."},
	{"PaychCollect", PermSign, []string{"ch"}, "As Tally.PaychCollect."},
	{"PaychAllocateLane", PermSign, []string{"ch"}, "As Tally.PaychAllocateLane."},
	{"PaychNewPayment", PermSign, []string{"from", "to", "vouchers"}, "PaychGet for the last amount, a lane, and a voucher on it for each spec, whose amounts rise. Where a message is needed it waits for its receipt, which Lotus leaves to the caller. Vouchers with Extra are refused."},
	{"PaychVoucherCheckValid", PermRead, []string{"ch", "sv"}, "As Tally.PaychVoucherCheckValid."},
	{"PaychVoucherCheckSpendable", PermRead, []string{"ch", "sv", "secret", "proof"}, "As Tally.PaychVoucherCheckSpendable."},
	{"PaychVoucherCreate", PermSign, []string{"ch", "amt", "lane"}, "As Tally.PaychVoucherCreate."},
	{"PaychVoucherAdd", PermWrite, []string{"ch", "sv", "proof", "minDelta"}, "As Tally.PaychVoucherAdd; proof is the secret."},
	{"PaychVoucherList", PermWrite, []string{"ch"}, "As Tally.PaychVoucherList."},
	{"PaychVoucherSubmit", PermSign, []string{"ch", "sv", "secret", "proof"}, "As Tally.PaychVoucherSubmit."},
}

// LotusGetOpts are the options of PaychGet.
type LotusGetOpts struct {
	OffChain bool `json:"OffChain"`
}

// LotusChannelInfo is the answer of PaychGet.
type LotusChannelInfo struct {
	// Channel is empty while the channel is being created.
	Channel      address.Address `json:"Channel"`
	WaitSentinel cid.Cid         `json:"WaitSentinel"`
}

// LotusAvailableFunds is the answer of PaychAvailableFunds.
type LotusAvailableFunds struct {
	Channel             *address.Address `json:"Channel"`
	From                address.Address  `json:"From"`
	To                  address.Address  `json:"To"`
	ConfirmedAmt        big.Int          `json:"ConfirmedAmt"`
	PendingAmt          big.Int          `json:"PendingAmt"`
	NonReservedAmt      big.Int          `json:"NonReservedAmt"`
	PendingAvailableAmt big.Int          `json:"PendingAvailableAmt"`
	PendingWaitSentinel *cid.Cid         `json:"PendingWaitSentinel"`
	QueuedAmt           big.Int          `json:"QueuedAmt"`
	// Versions of Lotus spell the last key in two ways.
	VoucherReedeemedAmt big.Int `json:"VoucherReedeemedAmt"`
	VoucherRedeemedAmt  big.Int `json:"VoucherRedeemedAmt"`
}

// LotusStatus is the answer of PaychStatus.
type LotusStatus struct {
	ControlAddr address.Address `json:"ControlAddr"`
	Direction   int             `json:"Direction"`
}

// LotusVoucherSpec is one voucher of PaychNewPayment.
type LotusVoucherSpec struct {
	Amount      big.Int                `json:"Amount"`
	TimeLockMin abi.ChainEpoch         `json:"TimeLockMin"`
	TimeLockMax abi.ChainEpoch         `json:"TimeLockMax"`
	MinSettle   abi.ChainEpoch         `json:"MinSettle"`
	Extra       *paych.ModVerifyParams `json:"Extra"`
}

// LotusPaymentInfo is the answer of PaychNewPayment.
type LotusPaymentInfo struct {
	Channel      address.Address        `json:"Channel"`
	WaitSentinel cid.Cid                `json:"WaitSentinel"`
	Vouchers     []*paych.SignedVoucher `json:"Vouchers"`
}

// LotusVoucherResult is the answer of PaychVoucherCreate.
type LotusVoucherResult struct {
	Voucher   *paych.SignedVoucher `json:"Voucher"`
	Shortfall big.Int              `json:"Shortfall"`
}

// maxNewPayment bounds the vouchers of one PaychNewPayment: each is signed and
// saved.
const maxNewPayment = 256

// lotusAPI is what go-jsonrpc serves under Lotus' names.
type lotusAPI struct{ a *api }

// pairTurns gives the calls that may create a channel between two addresses their
// turn, so that two at a time do not create two.
type pairTurns struct {
	// mu guards the fields below.
	mu    sync.Mutex
	turns map[pair]*pairTurn
}

type pair struct{ from, to address.Address }

type pairTurn struct {
	free chan struct{} // capacity 1
	used int           // calls that have it or wait; the last one removes it
}

func (p *pairTurns) take(ctx context.Context, key pair) (release func(), err error) {
	p.mu.Lock()
	t := p.turns[key]
	if t == nil {
		if p.turns == nil {
			p.turns = make(map[pair]*pairTurn)
		}
		t = &pairTurn{free: make(chan struct{}, 1)}
		p.turns[key] = t
	}
	t.used++
	p.mu.Unlock()
	leave := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if t.used--; t.used == 0 {
			delete(p.turns, key)
		}
	}
	select {
	case t.free <- struct{}{}:
		return func() { <-t.free; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// lotusCall is onChannels under Lotus' names. Where long is set the call may wait
// for the chain: it has no deadline, and takes a place among those that wait.
func lotusCall[T any](ctx context.Context, l *lotusAPI, method string, long bool, fn func(context.Context, *Channels) (T, error)) (T, error) {
	if !long {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.a.timeout)
		defer cancel()
	}
	return run(ctx, l.a, LotusNamespace, LotusMethods, method, func(ctx context.Context) (T, error) {
		var zero T
		c, err := l.a.channels()
		if err != nil {
			return zero, err
		}
		if !long {
			return fn(ctx, c)
		}
		release, err := l.a.waitPlace()
		if err != nil {
			return zero, err
		}
		defer release()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(l.a.stop, cancel)()
		return fn(ctx, c)
	})
}

// between returns the outbound channels from from to to that no other part owns:
// the open one with the most free funds and one that is being created, nil where
// there is none.
func (c *Channels) between(ctx context.Context, key pair) (open, creating *paych.ChannelInfo, err error) {
	all, err := c.Manager.PaychInfos(ctx)
	if err != nil {
		return nil, nil, err
	}
	for i := range all {
		in := &all[i]
		if in.Owned || in.Direction != paych.PCHOutbound || in.From != key.from || in.To != key.to {
			continue
		}
		settling := false
		for j := range in.Pending {
			settling = settling || in.Pending[j].Kind == "settle"
		}
		switch {
		case in.Phase == paych.PhaseCreating && in.Created != nil:
			creating = in
		case in.Phase == paych.PhaseOpen && !settling && (open == nil || in.Funds.Free().GreaterThan(open.Funds.Free())):
			open = in
		}
	}
	return open, creating, nil
}

// pair returns the key addresses of both sides.
func (c *Channels) pair(ctx context.Context, from, to address.Address) (key pair, err error) {
	if key.from, err = c.key(ctx, from); err != nil {
		return key, err
	}
	key.to, err = c.key(ctx, to)
	return key, err
}

func (c *Channels) key(ctx context.Context, a address.Address) (address.Address, error) {
	if a.Protocol() != address.ID || a == address.Undef {
		return a, nil
	}
	key, err := c.Chain.ResolveKey(ctx, a)
	if err != nil {
		return address.Undef, fmt.Errorf("key of %s: %w", a, err)
	}
	return key, nil
}

// get finds or creates the channel between two addresses and asks for money in
// it. A channel that another call creates is waited for, as Lotus does.
func (l *lotusAPI) get(ctx context.Context, c *Channels, from, to address.Address, amt big.Int, reserve, offChain bool) (LotusChannelInfo, error) {
	var none LotusChannelInfo
	if amt.Int == nil || amt.Sign() < 0 || amt.Sign() == 0 && !reserve {
		return none, paych.ErrZeroAmount
	}
	key, err := c.pair(ctx, from, to)
	if err != nil {
		return none, err
	}
	release, err := l.a.pairs.take(ctx, key)
	if err != nil {
		return none, err
	}
	defer func() { release() }()
	for {
		open, creating, err := c.between(ctx, key)
		if err != nil {
			return none, err
		}
		switch {
		case open != nil:
			release() // the channel itself orders what comes now
			release = func() {}
			return c.into(ctx, open, amt, reserve, offChain)
		case creating != nil:
			if _, err := c.Manager.PaychWaitReady(ctx, *creating.Created); err != nil && !errors.Is(err, paych.ErrCreateFailed) {
				return none, err
			}
		case offChain || amt.Sign() == 0:
			return none, fmt.Errorf("%w: from %s to %s", paych.ErrNoChannel, from, to)
		default:
			id, err := c.Manager.PaychCreateSpec(ctx, paych.CreateSpec{From: key.from, To: key.to, Amount: amt, Reserve: reserve})
			return LotusChannelInfo{WaitSentinel: id}, sentError(id, err)
		}
	}
}

// into asks for money in an open channel.
func (c *Channels) into(ctx context.Context, open *paych.ChannelInfo, amt big.Int, reserve, offChain bool) (LotusChannelInfo, error) {
	info := LotusChannelInfo{Channel: open.Channel}
	if amt.Sign() == 0 {
		return info, nil
	}
	if free := open.Funds.Free(); offChain && free.LessThan(amt) {
		return LotusChannelInfo{}, &paych.ShortfallError{Shortfall: big.Sub(amt, free)}
	}
	ask := c.Manager.PaychAddFunds
	if reserve {
		ask = c.Manager.PaychReserveFunds
	}
	id, err := ask(ctx, open.Channel, amt)
	info.WaitSentinel = id
	return info, sentError(id, err)
}

// sentError names the message in an error that came although it is made.
func sentError(id cid.Cid, err error) error {
	e := channelError(err)
	if err == nil || e == nil || !id.Defined() {
		return err
	}
	d := Details{}
	if e.Details != nil {
		d = *e.Details
	}
	d.Cid = id.String()
	e.Details = &d
	return e
}

// PaychGet is described in LotusMethods, as are the others.
func (l *lotusAPI) PaychGet(ctx context.Context, from, to address.Address, amt big.Int, opts LotusGetOpts) (*LotusChannelInfo, error) {
	return lotusCall(ctx, l, "PaychGet", true, func(ctx context.Context, c *Channels) (*LotusChannelInfo, error) {
		info, err := l.get(ctx, c, from, to, amt, true, opts.OffChain)
		return &info, err
	})
}

func (l *lotusAPI) PaychFund(ctx context.Context, from, to address.Address, amt big.Int) (*LotusChannelInfo, error) {
	return lotusCall(ctx, l, "PaychFund", true, func(ctx context.Context, c *Channels) (*LotusChannelInfo, error) {
		info, err := l.get(ctx, c, from, to, amt, false, false)
		return &info, err
	})
}

func (l *lotusAPI) PaychGetWaitReady(ctx context.Context, sentinel cid.Cid) (address.Address, error) {
	return lotusCall(ctx, l, "PaychGetWaitReady", true, func(ctx context.Context, c *Channels) (address.Address, error) {
		return c.Manager.PaychWaitReady(ctx, sentinel)
	})
}

func availableFunds(in *paych.ChannelInfo) *LotusAvailableFunds {
	f := &LotusAvailableFunds{
		From: in.From, To: in.To, ConfirmedAmt: in.ConfirmedAmt, PendingAmt: in.PendingAmt,
		NonReservedAmt: big.Max(big.Zero(), in.Funds.Free()), PendingAvailableAmt: in.PendingFree,
		PendingWaitSentinel: in.PendingChainMessage, QueuedAmt: in.QueuedAmt,
		VoucherReedeemedAmt: in.VoucherReedeemedAmt, VoucherRedeemedAmt: in.VoucherReedeemedAmt,
	}
	if in.Channel != address.Undef {
		f.Channel = &in.Channel
	}
	return f
}

func (l *lotusAPI) PaychAvailableFunds(ctx context.Context, ch address.Address) (*LotusAvailableFunds, error) {
	return lotusCall(ctx, l, "PaychAvailableFunds", false, func(ctx context.Context, c *Channels) (*LotusAvailableFunds, error) {
		info, err := c.Manager.PaychInfo(ctx, ch)
		if err != nil {
			return nil, err
		}
		return availableFunds(info), nil
	})
}

func (l *lotusAPI) PaychAvailableFundsByFromTo(ctx context.Context, from, to address.Address) (*LotusAvailableFunds, error) {
	return lotusCall(ctx, l, "PaychAvailableFundsByFromTo", false, func(ctx context.Context, c *Channels) (*LotusAvailableFunds, error) {
		key, err := c.pair(ctx, from, to)
		if err != nil {
			return nil, err
		}
		open, creating, err := c.between(ctx, key)
		switch {
		case err != nil:
			return nil, err
		case open != nil:
			return availableFunds(open), nil
		case creating != nil:
			return availableFunds(creating), nil
		}
		zero := big.Zero()
		return &LotusAvailableFunds{
			From: key.from, To: key.to, ConfirmedAmt: zero, PendingAmt: zero, NonReservedAmt: zero, PendingAvailableAmt: zero,
			QueuedAmt: zero, VoucherReedeemedAmt: zero, VoucherRedeemedAmt: zero,
		}, nil
	})
}

func (l *lotusAPI) PaychList(ctx context.Context) ([]address.Address, error) {
	return lotusCall(ctx, l, "PaychList", false, func(ctx context.Context, c *Channels) ([]address.Address, error) {
		all, err := c.Manager.PaychList(ctx)
		return list(all), err
	})
}

func (l *lotusAPI) PaychStatus(ctx context.Context, ch address.Address) (*LotusStatus, error) {
	return lotusCall(ctx, l, "PaychStatus", false, func(ctx context.Context, c *Channels) (*LotusStatus, error) {
		st, err := c.Manager.PaychStatus(ctx, ch)
		if err != nil {
			return nil, err
		}
		return &LotusStatus{ControlAddr: st.ControlAddr, Direction: int(st.Direction)}, nil
	})
}

// lotusSend is a call that sends a message; its deadline is that of any call.
func (l *lotusAPI) lotusSend(ctx context.Context, method string, fn func(context.Context, *Channels) (cid.Cid, error)) (cid.Cid, error) {
	return lotusCall(ctx, l, method, false, func(ctx context.Context, c *Channels) (cid.Cid, error) {
		id, err := l.a.send(func() (cid.Cid, error) { return fn(ctx, c) })
		return id, sentError(id, err)
	})
}

func (l *lotusAPI) PaychSettle(ctx context.Context, ch address.Address) (cid.Cid, error) {
	return l.lotusSend(ctx, "PaychSettle", func(ctx context.Context, c *Channels) (cid.Cid, error) { return c.Manager.PaychSettle(ctx, ch) })
}

func (l *lotusAPI) PaychCollect(ctx context.Context, ch address.Address) (cid.Cid, error) {
	return l.lotusSend(ctx, "PaychCollect", func(ctx context.Context, c *Channels) (cid.Cid, error) { return c.Manager.PaychCollect(ctx, ch) })
}

func (l *lotusAPI) PaychAllocateLane(ctx context.Context, ch address.Address) (uint64, error) {
	return lotusCall(ctx, l, "PaychAllocateLane", false, func(ctx context.Context, c *Channels) (uint64, error) {
		return c.Manager.PaychAllocateLane(ctx, ch)
	})
}

func (l *lotusAPI) PaychNewPayment(ctx context.Context, from, to address.Address, vouchers []LotusVoucherSpec) (*LotusPaymentInfo, error) {
	return lotusCall(ctx, l, "PaychNewPayment", true, func(ctx context.Context, c *Channels) (*LotusPaymentInfo, error) {
		if len(vouchers) == 0 || len(vouchers) > maxNewPayment {
			return nil, NewError(CodeBadArgument, "%d vouchers: want 1 to %d", len(vouchers), maxNewPayment)
		}
		last := big.Zero()
		for _, v := range vouchers {
			switch {
			case v.Extra != nil:
				return nil, paych.ErrExtra
			case v.Amount.Int == nil || v.Amount.Sign() <= 0:
				return nil, paych.ErrZeroAmount
			case v.Amount.LessThanEqual(last):
				return nil, fmt.Errorf("%w: %v after %v", paych.ErrAmount, v.Amount, last)
			}
			last = v.Amount
		}
		got, err := l.get(ctx, c, from, to, last, true, false)
		if err != nil {
			return nil, err
		}
		info := &LotusPaymentInfo{Channel: got.Channel, WaitSentinel: got.WaitSentinel}
		if got.WaitSentinel.Defined() {
			if info.Channel, err = c.Manager.PaychWaitReady(ctx, got.WaitSentinel); err != nil {
				return nil, err
			}
		}
		made, drawn, err := c.payOn(ctx, info.Channel, vouchers)
		info.Vouchers = made
		if err != nil {
			// What the vouchers did not draw is free again.
			if rest := big.Sub(last, drawn); rest.Sign() > 0 {
				err = errors.Join(err, c.Manager.PaychReleaseFunds(context.WithoutCancel(ctx), info.Channel, rest))
			}
			return nil, err
		}
		return info, nil
	})
}

// payOn makes the vouchers on a lane of their own, and returns what they drew.
func (c *Channels) payOn(ctx context.Context, ch address.Address, specs []LotusVoucherSpec) ([]*paych.SignedVoucher, big.Int, error) {
	drawn := big.Zero()
	lane, err := c.Manager.PaychAllocateLane(ctx, ch)
	if err != nil {
		return nil, drawn, err
	}
	vouchers := make([]*paych.SignedVoucher, 0, len(specs))
	for _, s := range specs {
		r, err := c.Manager.PaychVoucherCreateSpec(ctx, ch, paych.VoucherSpec{
			Lane: lane, Amount: s.Amount, TimeLockMin: s.TimeLockMin, TimeLockMax: s.TimeLockMax, MinSettleHeight: s.MinSettle,
		})
		switch {
		case err != nil:
			return nil, drawn, err
		case r.Voucher == nil:
			return nil, drawn, &paych.ShortfallError{Shortfall: r.Shortfall}
		}
		drawn = s.Amount
		vouchers = append(vouchers, r.Voucher)
	}
	return vouchers, drawn, nil
}

// wellFormed returns the voucher as its own bytes have it: JSON can say what no
// voucher says, a missing amount for one.
func wellFormed(sv *paych.SignedVoucher) (*paych.SignedVoucher, error) {
	if sv == nil || sv.Amount.Int == nil {
		return nil, fmt.Errorf("%w: no voucher, or one without an amount", paych.ErrVoucherFormat)
	}
	data, err := paych.EncodeVoucher(sv)
	if err != nil {
		return nil, err
	}
	return paych.DecodeVoucher(data)
}

// lotusVoucher is lotusCall for one voucher.
func lotusVoucher[T any](ctx context.Context, l *lotusAPI, method string, sv *paych.SignedVoucher, fn func(context.Context, *Channels, *paych.SignedVoucher) (T, error)) (T, error) {
	return lotusCall(ctx, l, method, false, func(ctx context.Context, c *Channels) (T, error) {
		sv, err := wellFormed(sv)
		if err != nil {
			var zero T
			return zero, err
		}
		return fn(ctx, c, sv)
	})
}

func (l *lotusAPI) PaychVoucherCheckValid(ctx context.Context, ch address.Address, sv *paych.SignedVoucher) error {
	_, err := lotusVoucher(ctx, l, "PaychVoucherCheckValid", sv, func(ctx context.Context, c *Channels, sv *paych.SignedVoucher) (struct{}, error) {
		return struct{}{}, c.Manager.PaychVoucherCheckValid(ctx, ch, sv)
	})
	return err
}

func (l *lotusAPI) PaychVoucherCheckSpendable(ctx context.Context, ch address.Address, sv *paych.SignedVoucher, secret, proof []byte) (bool, error) {
	return lotusVoucher(ctx, l, "PaychVoucherCheckSpendable", sv, func(ctx context.Context, c *Channels, sv *paych.SignedVoucher) (bool, error) {
		return c.Manager.PaychVoucherCheckSpendable(ctx, ch, sv, secret, proof)
	})
}

func (l *lotusAPI) PaychVoucherCreate(ctx context.Context, ch address.Address, amt big.Int, lane uint64) (*LotusVoucherResult, error) {
	return lotusCall(ctx, l, "PaychVoucherCreate", false, func(ctx context.Context, c *Channels) (*LotusVoucherResult, error) {
		r, err := c.Manager.PaychVoucherCreate(ctx, ch, amt, lane)
		if err != nil {
			return nil, err
		}
		return &LotusVoucherResult{Voucher: r.Voucher, Shortfall: r.Shortfall}, nil
	})
}

func (l *lotusAPI) PaychVoucherAdd(ctx context.Context, ch address.Address, sv *paych.SignedVoucher, proof []byte, minDelta big.Int) (big.Int, error) {
	return lotusVoucher(ctx, l, "PaychVoucherAdd", sv, func(ctx context.Context, c *Channels, sv *paych.SignedVoucher) (big.Int, error) {
		if minDelta.Int == nil {
			minDelta = big.Zero()
		}
		return c.Manager.PaychVoucherAdd(ctx, ch, sv, proof, minDelta)
	})
}

func (l *lotusAPI) PaychVoucherList(ctx context.Context, ch address.Address) ([]*paych.SignedVoucher, error) {
	return lotusCall(ctx, l, "PaychVoucherList", false, func(ctx context.Context, c *Channels) ([]*paych.SignedVoucher, error) {
		all, err := c.Manager.PaychVoucherList(ctx, ch)
		return list(all), err
	})
}

func (l *lotusAPI) PaychVoucherSubmit(ctx context.Context, ch address.Address, sv *paych.SignedVoucher, secret, proof []byte) (cid.Cid, error) {
	return lotusVoucher(ctx, l, "PaychVoucherSubmit", sv, func(ctx context.Context, c *Channels, sv *paych.SignedVoucher) (cid.Cid, error) {
		id, err := l.a.send(func() (cid.Cid, error) { return c.Manager.PaychVoucherSubmit(ctx, ch, sv, secret, proof) })
		return id, sentError(id, err)
	})
}
