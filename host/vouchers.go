package host

import (
	"context"
	"errors"
	"fmt"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/settler"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paystream/hold"
)

// linker tells which channel settles the tab with a peer; *settler.Settler does.
type linker interface {
	Linked(p peer.ID, out bool) (ch address.Address, owner string, ok bool)
}

// voucherChannels is hold.Channels over the channel manager and the chain. A unit is
// settler.AttoPerUnit; where that does not divide, what promises less is said.
type voucherChannels struct {
	manager *paych.Manager
	chain   paych.Chain
	links   linker
}

var _ hold.Channels = (*voucherChannels)(nil)

// vouchers is what the holds of a node on c buy, sell and take vouchers with. Without
// backing no tab has a channel.
func (c *chain) vouchers() hold.Channels {
	if c.settler == nil {
		return nil
	}
	return &voucherChannels{manager: c.manager, chain: c.link, links: c.settler}
}

// guardSlack is what the heads of payee and holder may differ by, in epochs.
const guardSlack = 2

// Times implements hold.Chain. The margin is that of locks.
func (v *voucherChannels) Times() hold.ChainTimes {
	r, p := v.manager.Rules(), v.chain.Params()
	return hold.ChainTimes{
		Inclusion: int64(r.SubmitMargin), EpochMS: max(1, p.Epoch.Milliseconds()),
		Furthest: int64(r.SettleDelay+r.MaxSettleExtension) - guardSlack,
		Margin:   max(int64(r.SettleDelay)/3, int64(r.SubmitMargin)+int64(p.Finality)+1),
	}
}

func channelAddress(channel string) (address.Address, error) {
	a, err := address.NewFromString(channel)
	if err != nil || a.Protocol() != address.Actor {
		return address.Undef, fmt.Errorf("%w: %q is no channel's address", hold.ErrChannel, channel)
	}
	return a, nil
}

// View implements hold.Chain.
func (v *voucherChannels) View(ctx context.Context, channel string, lane uint64) (hold.ChannelView, error) {
	ch, err := channelAddress(channel)
	if err != nil {
		return hold.ChannelView{}, err
	}
	head, err := v.chain.Head(ctx)
	if err != nil {
		return hold.ChannelView{}, fmt.Errorf("look at channel %s: %w", channel, err)
	}
	finality := v.chain.Params().Finality
	view := hold.ChannelView{Height: int64(head), Final: int64(head - finality)}
	now, has, err := v.chain.Channel(ctx, ch, 0)
	switch {
	case errors.Is(err, paych.ErrCollected):
		view.Gone = true
		return view, nil
	case errors.Is(err, paych.ErrNotFound):
		return view, fmt.Errorf("%w: %s is not on the chain", hold.ErrChannel, channel)
	case err != nil:
		return view, fmt.Errorf("look at channel %s: %w", channel, err)
	}
	from, err := v.chain.ResolveKey(ctx, now.From)
	if err != nil {
		return view, fmt.Errorf("look at channel %s: %w", channel, err)
	}
	view.From = from.String()
	view.ToSend, view.Settling = unitsUp(now.ToSend), now.SettlingAt != 0
	l, used := now.Lane(lane)
	view.Used = used
	final, had, err := v.chain.Channel(ctx, ch, finality)
	switch {
	case errors.Is(err, paych.ErrNotFound):
		return view, nil // nothing of it is final
	case err != nil:
		return view, fmt.Errorf("look at channel %s: %w", channel, err)
	}
	view.Balance = unitsDown(big.Min(has, had))
	view.ToSend = max(view.ToSend, unitsUp(final.ToSend))
	view.MinSettle = int64(min(now.MinSettleHeight, final.MinSettleHeight))
	view.Settling = view.Settling || final.SettlingAt != 0
	if f, ok := final.Lane(lane); ok && used {
		view.Redeemed = unitsDown(big.Min(f.Redeemed, l.Redeemed))
	}
	return view, nil
}

// Read implements hold.Chain.
func (v *voucherChannels) Read(raw []byte) (hold.Voucher, error) {
	sv, err := paych.DecodeVoucher(raw)
	if err != nil {
		return hold.Voucher{}, fmt.Errorf("%w: %w", hold.ErrVoucher, err)
	}
	signer, err := paych.Signer(sv)
	switch {
	case err != nil:
		return hold.Voucher{}, fmt.Errorf("%w: %w", hold.ErrVoucher, err)
	case sv.Extra != nil || len(sv.Merges) != 0 || sv.TimeLockMin != 0:
		return hold.Voucher{}, fmt.Errorf("%w: it has a call, merges lanes, or is good later only", hold.ErrVoucher)
	case sv.Amount.Int == nil || len(sv.SecretHash) != 0 && len(sv.SecretHash) != tally.HashlockSize:
		return hold.Voucher{}, fmt.Errorf("%w: no amount, or a hash of %d bytes", hold.ErrVoucher, len(sv.SecretHash))
	}
	amount := unitsDown(sv.Amount)
	if !toAtto(amount).Equals(sv.Amount) {
		return hold.Voucher{}, fmt.Errorf("%w: its amount is no whole units", hold.ErrVoucher)
	}
	out := hold.Voucher{
		Channel: sv.ChannelAddr.String(), Lane: sv.Lane, Nonce: sv.Nonce, Amount: amount,
		Expires: int64(sv.TimeLockMax), MinSettle: int64(sv.MinSettleHeight), Signer: signer.String(), Raw: raw,
	}
	if len(sv.SecretHash) != 0 {
		out.Locked, out.Hash = true, tally.Hashlock(sv.SecretHash)
	}
	return out, nil
}

// Linked implements hold.Channels.
func (v *voucherChannels) Linked(p peer.ID, out bool) (string, error) {
	ch, _, ok := v.links.Linked(p, out)
	if !ok {
		return "", fmt.Errorf("%w: the first settlement of a tab opens one", hold.ErrChannel)
	}
	return ch.String(), nil
}

// Sign implements hold.Channels. The money is what nobody has a claim on: what is
// reserved is for cheques.
func (v *voucherChannels) Sign(ctx context.Context, want *hold.Voucher) ([]byte, error) {
	ch, err := channelAddress(want.Channel)
	if err != nil {
		return nil, err
	}
	spec := paych.VoucherSpec{
		Lane: want.Lane, Nonce: want.Nonce, Amount: toAtto(want.Amount), TimeLockMax: abi.ChainEpoch(want.Expires),
		MinSettleHeight: abi.ChainEpoch(want.MinSettle), Beside: true, Again: true,
	}
	if want.Locked {
		hash := want.Hash
		spec.Lock = &hash
	}
	r, err := v.manager.PaychVoucherCreateSpec(ctx, ch, spec)
	switch {
	case errors.Is(err, paych.ErrMinSettleHeight):
		return nil, fmt.Errorf("%w: %w", hold.ErrTerms, err)
	case errors.Is(err, paych.ErrSettling) || errors.Is(err, paych.ErrCollected):
		return nil, fmt.Errorf("%w: %w", hold.ErrChannel, err)
	case err != nil:
		return nil, err
	case r.Voucher == nil:
		return nil, fmt.Errorf("%w: %d units are missing", hold.ErrLaneRoom, unitsUp(r.Shortfall))
	}
	return paych.EncodeVoucher(r.Voucher)
}

// Submit implements hold.Channels.
func (v *voucherChannels) Submit(ctx context.Context, channel string, guard []byte) error {
	ch, err := channelAddress(channel)
	if err != nil {
		return err
	}
	sv, err := paych.DecodeVoucher(guard)
	if err != nil {
		return fmt.Errorf("%w: %w", hold.ErrVoucher, err)
	}
	if _, err := v.manager.PaychVoucherAdd(ctx, ch, sv, nil, big.Zero()); err != nil {
		return fmt.Errorf("keep the guard of channel %s: %w", channel, err)
	}
	// One that is on the chain already would be refused there.
	if now, _, err := v.chain.Channel(ctx, ch, 0); err != nil || now.MinSettleHeight >= sv.MinSettleHeight {
		return err
	}
	if _, err := v.manager.PaychVoucherSubmit(ctx, ch, sv, nil, nil); err != nil {
		return fmt.Errorf("submit the guard of channel %s: %w", channel, err)
	}
	return nil
}

// Keep implements hold.Channels.
func (v *voucherChannels) Keep(ctx context.Context, channel string, room tally.Amount) (balance, total tally.Amount, err error) {
	ch, err := channelAddress(channel)
	if err != nil {
		return 0, 0, err
	}
	at, err := v.manager.PaychKeep(ctx, ch, toAtto(room))
	if err != nil {
		return 0, 0, fmt.Errorf("keep room of channel %s: %w", channel, err)
	}
	return unitsDown(at.Balance), unitsUp(at.Total), nil
}

// Take implements hold.Channels.
func (v *voucherChannels) Take(ctx context.Context, channel string, voucher []byte, preimage tally.Preimage, draws tally.Amount) error {
	ch, err := channelAddress(channel)
	if err != nil {
		return err
	}
	sv, err := paych.DecodeVoucher(voucher)
	if err != nil {
		return fmt.Errorf("%w: %w", hold.ErrVoucher, err)
	}
	_, err = v.manager.PaychVoucherAddKept(ctx, ch, sv, preimage[:], toAtto(draws))
	switch {
	case errors.Is(err, paych.ErrOverBalance):
		return fmt.Errorf("%w: %w", hold.ErrLaneRoom, err)
	case errors.Is(err, paych.ErrSettling), errors.Is(err, paych.ErrCollected):
		return fmt.Errorf("%w: %w", hold.ErrChannel, err)
	case errors.Is(err, paych.ErrTimeLock):
		return fmt.Errorf("%w: too late: %w", hold.ErrMail, err)
	}
	return err
}

func toAtto(n tally.Amount) big.Int {
	return big.Mul(big.NewIntUnsigned(uint64(n)), big.NewInt(settler.AttoPerUnit))
}

func unitsDown(atto big.Int) tally.Amount {
	if atto.Int == nil || atto.Sign() <= 0 {
		return 0
	}
	n := big.Div(atto, big.NewInt(settler.AttoPerUnit))
	if !n.IsUint64() {
		return tally.MaxAmount
	}
	return tally.Amount(n.Uint64())
}

func unitsUp(atto big.Int) tally.Amount {
	n := unitsDown(atto)
	if n != tally.MaxAmount && atto.Int != nil && atto.GreaterThan(toAtto(n)) {
		n++
	}
	return n
}
