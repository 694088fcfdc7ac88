package settler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/swap"
)

// CashoutPolicy says when the best voucher of a peer is submitted to the chain
// without being asked. It need not be for safety: when a channel settles, all
// that is left is submitted in time anyway. What is cashed is on the chain; it is
// paid out when the channel is collected.
type CashoutPolicy struct {
	// Amount: at this many uncashed units; 0 for never.
	Amount tally.Amount
	// Age: when something is uncashed for so long; 0 for never.
	Age time.Duration
	// FeeRatio: only where the uncashed amount is at least so many times what
	// submitting costs. Default 100.
	FeeRatio uint64
}

// ErrNothingToCash: the peer's cheques are on the chain already, or there are none.
var ErrNothingToCash = errors.New("settler: nothing to cash")

// Cashed is one cash-out.
type Cashed struct {
	Peer    peer.ID
	Channel address.Address
	Units   tally.Amount // that are on the chain with it, and were not before
	Message cid.Cid
}

// Cashout submits the best voucher of p to the chain. With least above 0 it leaves
// less than that many uncashed units alone (ErrNothingToCash). It returns when the
// message is published.
func (s *Settler) Cashout(ctx context.Context, p peer.ID, least tally.Amount) (Cashed, error) {
	r := s.relation(p)
	s.mu.Lock()
	l := r.in
	s.mu.Unlock()
	if l.state != linkBound {
		return Cashed{}, fmt.Errorf("%w: no channel of %s", ErrNothingToCash, p)
	}
	st, err := s.standing(ctx, &l)
	if err != nil {
		return Cashed{}, err
	}
	if st.Uncashed == 0 || st.Uncashed < least {
		return Cashed{}, fmt.Errorf("%w: %d uncashed units of %s", ErrNothingToCash, st.Uncashed, p)
	}
	sv, err := s.bestVoucher(ctx, l.channel)
	if err != nil {
		return Cashed{}, err
	}
	id, err := s.paych.PaychVoucherSubmit(ctx, l.channel, sv, nil, nil)
	if err != nil {
		return Cashed{}, fmt.Errorf("submit the voucher of %s: %w", p, err)
	}
	return Cashed{Peer: p, Channel: l.channel, Units: st.Uncashed, Message: id}, nil
}

// CashoutAll is Cashout for every peer. The first error ends it; what was done
// before is returned with it.
func (s *Settler) CashoutAll(ctx context.Context, least tally.Amount) ([]Cashed, error) {
	var all []Cashed
	for p := range s.incoming() {
		c, err := s.Cashout(ctx, p, least)
		if errors.Is(err, ErrNothingToCash) {
			continue
		}
		if err != nil {
			return all, err
		}
		all = append(all, c)
	}
	return all, nil
}

func (s *Settler) bestVoucher(ctx context.Context, ch address.Address) (*paych.SignedVoucher, error) {
	list, err := s.paych.PaychVoucherRecords(ctx, ch)
	if err != nil {
		return nil, err
	}
	var best *paych.SignedVoucher
	for i := range list {
		v := &list[i]
		if v.Live && v.Origin == paych.OriginReceived && v.Voucher.Lane == laneTab &&
			(best == nil || v.Voucher.Nonce > best.Nonce) {
			best = v.Voucher
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%w: channel %s has no live voucher", ErrNothingToCash, ch)
	}
	return best, nil
}

// incoming copies the links of the peers' channels.
func (s *Settler) incoming() map[peer.ID]link {
	s.mu.Lock()
	defer s.mu.Unlock()
	links := make(map[peer.ID]link)
	for p, r := range s.relations {
		if r.in.state == linkBound {
			links[p] = r.in
		}
	}
	return links
}

// cashDue follows the policy. since has when each peer's cheques were last all
// cashed.
func (s *Settler) cashDue(since map[peer.ID]time.Time) {
	policy := s.cfg.Cashout
	if policy.Amount == 0 && policy.Age == 0 {
		return
	}
	links := s.incoming()
	for p := range since {
		if _, ok := links[p]; !ok {
			delete(since, p)
		}
	}
	for p, l := range links {
		st, err := s.standing(s.ctx, &l)
		if err != nil {
			continue // the chain is away: later
		}
		begun, waiting := since[p]
		if st.Uncashed == 0 {
			delete(since, p)
			continue
		}
		if !waiting {
			begun = time.Now()
			since[p] = begun
		}
		due := policy.Amount > 0 && st.Uncashed >= policy.Amount || policy.Age > 0 && time.Since(begun) >= policy.Age
		if !due || !s.worthFee(st.Uncashed) {
			continue
		}
		c, err := s.Cashout(s.ctx, p, 0)
		if err != nil {
			s.log.Warn("cheques could not be cashed; it will be tried again", "peer", p, "uncashed", st.Uncashed, "err", err)
			since[p] = time.Now()
			continue
		}
		s.log.Info("cheques cashed", "peer", p, "channel", c.Channel, "units", c.Units, "message", c.Message)
		since[p] = time.Now()
	}
}

// worthFee holds an amount against what submitting costs.
func (s *Settler) worthFee(units tally.Amount) bool {
	if s.cfg.RedeemFee == nil {
		return true
	}
	fee, err := s.cfg.RedeemFee(s.ctx)
	if err != nil {
		return false
	}
	ratio := tally.Amount(s.cfg.Cashout.FeeRatio)
	if ratio == 0 {
		ratio = 100
	}
	least := times(toUnits(fee), ratio)
	return units >= least
}

// LinkInfo is the channel behind one direction of a relation.
type LinkInfo struct {
	Peer      peer.ID
	Direction swap.Direction // Serve: the peer pays us
	State     string         // opening, bound
	Channel   address.Address
	Payout    address.Address // of the peer
	Origin    tally.Amount
	Standing  *swap.Standing // of the peer's cheques; nil for ours, or while the chain is away
}

// Links lists the channels behind cheques.
func (s *Settler) Links(ctx context.Context) []LinkInfo {
	s.mu.Lock()
	var all []LinkInfo
	for p, r := range s.relations {
		for _, dir := range [...]swap.Direction{swap.Serve, swap.Consume} {
			if l := r.link(dir); l.state != linkNone {
				all = append(all, LinkInfo{
					Peer: p, Direction: dir, State: l.state.String(), Channel: l.channel, Payout: r.address, Origin: l.origin,
				})
			}
		}
	}
	s.mu.Unlock()
	for i := range all {
		if all[i].Direction == swap.Serve {
			if st, ok := s.Standing(ctx, all[i].Peer); ok {
				all[i].Standing = &st
			}
		}
	}
	return all
}
