package settler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/swap"
)

// Accept implements swap.Settler. The first voucher of a peer binds its channel;
// from then on no other peer, channel, origin or base is taken for it.
func (s *Settler) Accept(ctx context.Context, p peer.ID, c swap.Claim, raw swap.Backing) (tally.Amount, error) {
	b, err := decodeBacking(raw)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", swap.ErrBacking, err)
	}
	if err := s.checkFee(ctx); err != nil {
		return 0, err
	}
	r := s.relation(p)
	if err := r.take(ctx); err != nil {
		return 0, err
	}
	defer r.give()
	claimed := link{state: linkBound, channel: b.voucher.ChannelAddr, origin: b.origin, base: b.base}
	if err := checkVoucher(&claimed, c, b.voucher); err != nil {
		return 0, fmt.Errorf("%w: %w", swap.ErrBacking, err)
	}
	if err := s.bind(ctx, r, c, claimed, b.voucher); err != nil {
		return 0, err
	}
	ctx = paych.WithTag(ctx, tagIn(p, claimed.channel))
	if _, err := s.paych.PaychVoucherAdd(ctx, claimed.channel, b.voucher, nil, big.Zero()); err != nil {
		return 0, refusal(err)
	}
	st, err := s.standing(ctx, &r.in)
	if err == nil && st.Covered < c.Cumulative {
		// The view may be of a while ago: the payer saw its top-up, so should we.
		if err = s.paych.PaychLook(ctx, claimed.channel); err == nil {
			st, err = s.standing(ctx, &r.in)
		}
	}
	if err != nil {
		return 0, err
	}
	return min(st.Covered, c.Cumulative), nil
}

// checkVoucher is what can be said without a look at the channel.
func checkVoucher(l *link, c swap.Claim, sv *paych.SignedVoucher) error {
	amount, err := l.atto(c.Cumulative)
	switch {
	case err != nil:
		return err
	case sv.Lane != laneTab:
		return fmt.Errorf("voucher on lane %d; lane %d settles the tab", sv.Lane, laneTab)
	case len(sv.SecretHash) != 0 || sv.TimeLockMin != 0 || sv.TimeLockMax != 0 || sv.MinSettleHeight != 0 || sv.Extra != nil || len(sv.Merges) != 0:
		return errors.New("the voucher of a tab says an amount and nothing else")
	case !sv.Amount.Equals(amount):
		return fmt.Errorf("voucher over %v attoFIL, a cumulative of %d needs %v", sv.Amount, c.Cumulative, amount)
	default:
		return nil
	}
}

// bind ties the channel to the peer, or makes sure that it is the one it is tied
// to.
func (s *Settler) bind(ctx context.Context, r *relation, c swap.Claim, claimed link, sv *paych.SignedVoucher) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %w", swap.ErrBacking, fmt.Errorf(format, args...))
	}
	if w, taken := s.owner(claimed.channel); taken && w != (way{r.peer, swap.Serve}) {
		return bad("channel %s belongs to another peer", claimed.channel)
	}
	if r.in.state == linkBound {
		switch {
		case r.in.channel != claimed.channel:
			return bad("cheques are backed by channel %s until that is collected, not by %s", r.in.channel, claimed.channel)
		case r.in.origin != claimed.origin || !r.in.base.Equals(claimed.base):
			return bad("channel %s counts from %d and %v, not from %d and %v", r.in.channel, r.in.origin, r.in.base, claimed.origin, claimed.base)
		}
		return nil
	}
	if r.address == address.Undef {
		return fmt.Errorf("%w: shake hands again", ErrNoPayout)
	}
	if claimed.origin > c.Credited {
		return bad("origin %d is beyond the %d that we credited", claimed.origin, c.Credited)
	}
	info, err := s.paych.PaychInfo(ctx, claimed.channel)
	if err != nil {
		return refusal(err)
	}
	switch {
	case info.Direction != paych.PCHInbound || info.To != s.self:
		return bad("channel %s is not one to our payout address %s", claimed.channel, s.self)
	case info.From != r.address:
		return bad("channel %s is paid from %s, the peer is bound to %s", claimed.channel, info.From, r.address)
	case info.Phase != paych.PhaseOpen:
		return bad("channel %s is %v", claimed.channel, info.Phase)
	}
	// What lane 0 was worth to us for other reasons pays for no cheque.
	before, held, err := s.laneWorth(ctx, claimed.channel, sv)
	if err != nil {
		return err
	}
	if claimed.base.LessThan(before) && !held {
		return bad("lane %d of channel %s is worth %v already, the base is %v", laneTab, claimed.channel, before, claimed.base)
	}
	// The signature is checked before anything is kept.
	if err := s.paych.PaychVoucherCheckValid(ctx, claimed.channel, sv); err != nil {
		return refusal(err)
	}
	if err := s.paych.PaychOwn(ctx, claimed.channel, tagIn(r.peer, claimed.channel)); err != nil {
		return refusal(err)
	}
	return s.save(r, func(r *relation) { r.in = claimed })
}

// laneWorth is the highest voucher that we hold of lane 0. held: sv is one of those
// that we hold; then the link was lost between two saves, and is made again as it
// was.
func (s *Settler) laneWorth(ctx context.Context, ch address.Address, sv *paych.SignedVoucher) (most big.Int, held bool, err error) {
	list, err := s.paych.PaychVoucherList(ctx, ch)
	if err != nil {
		return big.Zero(), false, err
	}
	most = big.Zero()
	for _, have := range list {
		if have.Lane != laneTab {
			continue
		}
		most = big.Max(most, have.Amount)
		held = held || have.Nonce == sv.Nonce && have.Amount.Equals(sv.Amount)
	}
	return most, held, nil
}

// permanent are the refusals of the channel manager that no waiting mends.
var permanent = [...]error{
	paych.ErrChannel, paych.ErrSigner, paych.ErrExtra, paych.ErrMerges, paych.ErrLane, paych.ErrLock, paych.ErrTimeLock,
	paych.ErrNonce, paych.ErrAmount, paych.ErrMinSettleHeight, paych.ErrZeroAmount, paych.ErrVoucherFormat, paych.ErrOwned,
}

// refusal sorts an error of the channel manager: not covered, never acceptable,
// or of the moment.
func refusal(err error) error {
	for _, e := range [...]error{paych.ErrOverBalance, paych.ErrSettling, paych.ErrCollected} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", swap.ErrUncovered, err)
		}
	}
	for _, e := range permanent {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", swap.ErrBacking, err)
		}
	}
	return err
}

// checkFee refuses to be paid with what we could not cash. What was enough a moment
// ago is enough: a cheque costs no call to the chain, and none is refused because
// the chain is away for a while.
func (s *Settler) checkFee(ctx context.Context) error {
	if s.cfg.RedeemFee == nil {
		return nil
	}
	s.feeMu.Lock()
	age := time.Since(s.feeAt)
	known := !s.feeAt.IsZero()
	s.feeMu.Unlock()
	if known && age < feeFresh {
		return nil
	}
	err := s.askFee(ctx)
	if err != nil && !errors.Is(err, ErrFee) && known && age < feeStale {
		return nil
	}
	if err != nil {
		return err
	}
	s.feeMu.Lock()
	s.feeAt = time.Now()
	s.feeMu.Unlock()
	return nil
}

// askFee holds what cashing in costs against what the payout address has.
func (s *Settler) askFee(ctx context.Context) error {
	fee, err := s.cfg.RedeemFee(ctx)
	if err != nil {
		return fmt.Errorf("settler: fee for cashing in: %w", err)
	}
	if fee.Sign() <= 0 {
		return nil
	}
	have, err := s.chain.Balance(ctx, s.self)
	if err != nil {
		return fmt.Errorf("settler: balance of %s: %w", s.self, err)
	}
	if have.LessThan(fee) {
		return fmt.Errorf("%w: %s has %v attoFIL, submit, settle and collect cost %v; send it some", ErrFee, s.self, have, fee)
	}
	return nil
}

// Standing implements swap.PayoutSettler.
func (s *Settler) Standing(ctx context.Context, p peer.ID) (swap.Standing, bool) {
	r := s.relation(p)
	s.mu.Lock()
	l := r.in
	s.mu.Unlock()
	if l.state != linkBound {
		return swap.Standing{}, false
	}
	st, err := s.standing(ctx, &l)
	return st, err == nil
}

func (s *Settler) standing(ctx context.Context, l *link) (swap.Standing, error) {
	cover, err := s.paych.PaychCover(ctx, l.channel, laneTab)
	if err != nil {
		return swap.Standing{}, fmt.Errorf("settler: cover of channel %s: %w", l.channel, err)
	}
	least := big.Min(cover.Deep, cover.Head)
	return swap.Standing{
		Covered: l.units(least), Redeemed: l.units(cover.Redeemed), Uncashed: toUnits(big.Sub(cover.Head, cover.Redeemed)),
	}, nil
}
