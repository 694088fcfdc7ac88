package paych

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych/adaptor"
)

// What whoever keeps locks in the slots of an owned channel needs beside vouchers:
// the rules that they have to fit, and the lanes as the chain shows them.

// Rules are the times and lanes that the manager's channels go by.
func (m *Manager) Rules() Rules { return m.rules }

// LaneAt is one lane as the chain shows it. Amounts are attoFIL.
type LaneAt struct {
	Lane, Nonce uint64
	Redeemed    big.Int
}

// ViewAt is a channel as the chain shows it at one height.
type ViewAt struct {
	Height, SettlingAt, MinSettle abi.ChainEpoch
	// Gone: the channel is collected; Lanes are those that it ended with.
	Gone bool
	// Lanes that a voucher was submitted on, by rising number.
	Lanes []LaneAt
}

// PaychViews returns a channel at the head and at finality, not older than the
// head. What it shows at finality no reorganisation changes.
func (m *Manager) PaychViews(ctx context.Context, ch address.Address) (head, final ViewAt, err error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return ViewAt{}, ViewAt{}, err
	}
	if err := m.peek(ctx, a); err != nil && !errors.Is(err, ErrCollected) {
		return ViewAt{}, ViewAt{}, err
	}
	now, err := m.now(ctx)
	if err != nil {
		return ViewAt{}, ViewAt{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return ViewAt{}, ViewAt{}, a.broken
	}
	head, final = a.ch.viewAt(&a.ch.Head, (*Lane).headView), a.ch.viewAt(&a.ch.Deep, (*Lane).deepView)
	if a.ch.Phase == PhaseCollected && a.ch.Final != nil {
		head = a.ch.Final.view(now)
		if a.ch.Buried {
			final = a.ch.Final.view(now - m.params.Finality)
		}
	}
	return head, final, nil
}

func (l *Lane) headView() *LaneView { return &l.Head }
func (l *Lane) deepView() *LaneView { return &l.Deep }

func (c *Channel) viewAt(v *View, pick func(*Lane) *LaneView) ViewAt {
	at := ViewAt{Height: v.Height, SettlingAt: v.SettlingAt, MinSettle: v.MinSettling}
	for _, id := range slices.Sorted(maps.Keys(c.Lanes)) {
		if lv := pick(c.Lanes[id]); lv.Known {
			at.Lanes = append(at.Lanes, LaneAt{Lane: id, Nonce: lv.Nonce, Redeemed: lv.Redeemed})
		}
	}
	return at
}

func (f *Final) view(height abi.ChainEpoch) ViewAt {
	at := ViewAt{Height: height, Gone: true}
	for _, l := range f.Lanes {
		at.Lanes = append(at.Lanes, LaneAt{Lane: l.Lane, Nonce: l.Nonce, Redeemed: l.Redeemed})
	}
	return at
}

// PaychSecretOf returns the preimage of a lock of the channel where it is known: on
// an outbound channel, because the chain showed it.
func (m *Manager) PaychSecretOf(ctx context.Context, ch address.Address, hash tally.Hashlock) (*tally.Preimage, error) {
	return m.secretWhere(ctx, ch, func(cl *Claim) bool { return cl.Locked && cl.Under == nil && cl.Lock == hash })
}

// PaychSecretOfPoint is PaychSecretOf for a lock under a point: on an outbound channel
// its secret is known because the chain showed a completed signature.
func (m *Manager) PaychSecretOfPoint(ctx context.Context, ch address.Address, y adaptor.Point) (*tally.Preimage, error) {
	return m.secretWhere(ctx, ch, func(cl *Claim) bool { return cl.Under != nil && cl.Under.Point == y })
}

func (m *Manager) secretWhere(ctx context.Context, ch address.Address, is func(*Claim) bool) (*tally.Preimage, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.ch.Lanes {
		for i := range l.Claims {
			if cl := &l.Claims[i]; cl.Secret != nil && is(cl) {
				secret := *cl.Secret
				return &secret, nil
			}
		}
	}
	return nil, nil
}

// PaychVoucherAt returns the voucher of a lane and nonce that can still bring
// something, ours or the other side's: a claim, or a refund of the payee. Nil where
// there is none, or only a lock under a point that is not completed.
func (m *Manager) PaychVoucherAt(ctx context.Context, ch address.Address, lane, nonce uint64) (*SignedVoucher, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.ch.Lanes[lane]
	if l == nil {
		return nil, nil
	}
	if l.Refund != nil && l.Refund.Nonce == nonce {
		return clone(l.Refund), nil
	}
	if cl := l.find(nonce); cl != nil && cl.Voucher != nil && cl.Voucher.Signature != nil {
		return clone(cl.Voucher), nil
	}
	return nil, nil
}
