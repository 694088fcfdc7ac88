package paych

import (
	"errors"
	"fmt"

	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally/paych/adaptor"
)

// A lock under a point in the account of a channel. It is a claim as that of a hash
// lock is: its money counts from the moment at which its nonce is taken, it is worth
// something to the payee when the secret is known, and a later nonce or a refund stands
// over it. What is its own:
//
//	payer   being signed ── the encrypted signature, saved ──▶ given ── the chain shows
//	                                                                    the plain one: y
//	payee                                    taken, checked ── y: the plain one, saved ─▶
//	                                                                    submitted
//
// Its nonce is given once. Who asks for the same again has the same bytes, and who asks
// for anything else under it is refused, so that no two encrypted signatures of one
// voucher leave us, nor one beside a plain one: with one nonce of the signature they
// give the key away, and of two the payer could not tell which the chain shows.

// given returns the lock of ours that says what s asks for, under y, or nil.
// ErrUnderWay where one is being signed.
func (l *Lane) given(s *VoucherSpec, y adaptor.Point) (*PointLock, error) {
	for i := range l.Claims {
		cl := &l.Claims[i]
		switch {
		case cl.Nonce != s.Nonce:
		case cl.Voucher == nil:
			return nil, fmt.Errorf("%w: it is being signed", ErrUnderWay)
		case cl.Under != nil && cl.Under.Point == y && cl.Voucher.Amount.Equals(s.Amount) && cl.Voucher.TimeLockMax == s.TimeLockMax:
			return cl.Under, nil
		}
	}
	return nil, nil
}

// holdsUnder reports whether p is one of the lane's locks, to the last bit.
func (l *Lane) holdsUnder(p *PointLock) bool {
	if p == nil {
		return false
	}
	for i := range l.Claims {
		if have := l.Claims[i].Under; have != nil && have.same(p) {
			return true
		}
	}
	return false
}

// clone returns a lock that shares nothing with l.
func (l *PointLock) clone() *PointLock {
	cp := *l
	cp.Voucher = *clone(&l.Voucher)
	return &cp
}

// terms are those that the lock itself says.
func (l *PointLock) terms() PointTerms {
	return PointTerms{
		Lane: l.Voucher.Lane, Nonce: l.Voucher.Nonce, Base: big.Zero(), Amount: l.Voucher.Amount,
		Until: l.Voucher.TimeLockMax, Point: l.Point,
	}
}

func (l *PointLock) same(p *PointLock) bool {
	return l.Point == p.Point && l.Payer == p.Payer && l.Adaptor == p.Adaptor && sameBody(&l.Voucher, &p.Voucher)
}

// pointed returns the lane's claim under a point that an unsigned voucher is of, or nil.
func (l *Lane) pointed(sv *SignedVoucher) *Claim {
	for i := range l.Claims {
		if cl := &l.Claims[i]; cl.Under != nil && sameBody(&cl.Under.Voucher, sv) {
			return cl
		}
	}
	return nil
}

// closed are the locks under points whose secret is unknown.
func (c *Channel) closed() []*PointLock {
	var list []*PointLock
	for _, l := range c.Lanes {
		for i := range l.Claims {
			if cl := &l.Claims[i]; cl.Under != nil && cl.Secret == nil {
				list = append(list, cl.Under)
			}
		}
	}
	return list
}

// checkUnder is the invariant of a claim under a point: locked until its secret is
// known, and its voucher signed then, at the payee alone.
func (c *Channel) checkUnder(cl *Claim) error {
	if cl.Under == nil {
		return nil
	}
	if !cl.Locked || cl.Voucher == nil || !sameBody(cl.Voucher, &cl.Under.Voucher) {
		return errors.New("under a point, and not the voucher of its lock")
	}
	if signed := cl.Voucher.Signature != nil; signed != (c.Direction == PCHInbound && cl.Secret != nil) {
		return fmt.Errorf("under a point, %s, signed %v, secret known %v", c.Direction, signed, cl.Secret != nil)
	}
	return nil
}
