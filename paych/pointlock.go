package paych

import (
	"context"
	"errors"
	"fmt"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych/adaptor"
)

// ErrPointWallet: the wallet cannot sign under a point. Point locks are taken all the
// same: that needs no key.
var ErrPointWallet = errors.New("paych: this wallet cannot sign under a point: to give point locks, use a wallet that holds its keys on this machine")

// PointWallet is a wallet that can sign under a point. One that cannot, such as a
// remote node's, gives no point locks (ErrPointWallet).
type PointWallet interface {
	// SignUnder signs the BLAKE2b-256 digest of msg with the key of a, encrypted
	// under y, and returns the public key of a.
	SignUnder(ctx context.Context, a address.Address, msg []byte, y adaptor.Point) (adaptor.Signature, adaptor.Point, error)
}

// SignPointLock gives the point lock of t. It is called once for a nonce of a slot:
// the result is saved before it leaves, and what is sent again is the same bytes.
func SignPointLock(ctx context.Context, w PointWallet, t *PointTerms) (*PointLock, error) {
	sv, err := t.Voucher()
	if err != nil {
		return nil, err
	}
	msg, err := SigningBytes(sv)
	if err != nil {
		return nil, err
	}
	sig, payer, err := w.SignUnder(ctx, t.From, msg, t.Point)
	if err != nil {
		return nil, fmt.Errorf("paych: sign point lock with %s: %w", t.From, err)
	}
	l := &PointLock{Voucher: *sv, Payer: payer, Point: t.Point, Adaptor: sig}
	// What does not verify would cost a nonce at the payee and look like an attack.
	if err := l.Check(t); err != nil {
		return nil, fmt.Errorf("paych: wallet signed a point lock for %s: %w", t.From, err)
	}
	return l, nil
}

// PaychPointLocks is nil where point locks can be given, else ErrPointWallet.
func (m *Manager) PaychPointLocks() error {
	if _, ok := m.wallet.(PointWallet); !ok {
		return ErrPointWallet
	}
	return nil
}

// PaychPointLockCreate gives the point lock of t on an outbound channel; its Channel and
// From are those of ch, whatever t says. Its money comes from what is free, beside what is
// reserved. The encrypted signature is on disk before it is returned, and the same terms
// get the same bytes again, also after a restart. ErrNonce for other terms under a nonce
// that was given, ErrPointWallet, ErrPointLock for terms that no lock has, ErrInbound,
// ErrOwned, and a ShortfallError where the channel holds too little.
func (m *Manager) PaychPointLockCreate(ctx context.Context, ch address.Address, t PointTerms) (*PointLock, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return nil, err
	}
	w, ok := m.wallet.(PointWallet)
	if !ok {
		return nil, ErrPointWallet
	}
	t.Channel, t.From = ch, a.ch.From
	sv, err := t.Voucher()
	if err != nil {
		return nil, err
	}
	if _, err := adaptor.ParsePoint(t.Point[:]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPointLock, err)
	}
	if _, err := m.now(ctx); err != nil {
		return nil, err
	}
	select {
	case a.again <- struct{}{}: // two such calls at one time give one lock
		defer func() { <-a.again }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	fx, err := m.draft(ctx, a, evDraft{Point: t.Point, Spec: VoucherSpec{
		Lane: t.Lane, Nonce: t.Nonce, Amount: sv.Amount, TimeLockMax: t.Until, Beside: true,
	}})
	if err != nil {
		return nil, err
	}
	l := fx.Under
	if fx.Kind == FxSign {
		l, err = SignPointLock(ctx, w, &t)
		a.mu.Lock()
		if err != nil {
			defer a.mu.Unlock()
			_, _ = m.step(a, evUnsigned{Lane: t.Lane, Nonce: t.Nonce}) // never fails
			return nil, err
		}
		_, err = m.step(a, evSigned{Voucher: clone(&l.Voucher), Under: l})
		a.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
	if err := m.save(a); err != nil {
		return nil, err
	}
	return l.clone(), nil
}

// PaychPointLockAdd takes the point lock that was agreed as t, on an inbound channel; its
// Channel and From are those of ch, whatever t says. It counts for nothing until
// PaychVoucherSecret has the secret of its point. ErrPointLock and ErrSignature where it is
// another lock or cannot be completed, ErrOutbound, and what PaychVoucherAdd says. One that
// we hold changes nothing.
func (m *Manager) PaychPointLockAdd(ctx context.Context, ch address.Address, t PointTerms, l *PointLock) error {
	a, err := m.account(ctx, ch)
	if err != nil {
		return err
	}
	switch {
	case a.ch.Direction != PCHInbound:
		return ErrOutbound
	case l == nil:
		return fmt.Errorf("%w: no lock", ErrPointLock)
	}
	t.Channel, t.From = ch, a.ch.From
	if err := l.Check(&t); err != nil {
		return err
	}
	l = l.clone()
	sv := clone(&l.Voucher)
	if err := m.check(ctx, a, sv, l, big.Zero()); err != nil && !errors.Is(err, errHeld) {
		return err
	}
	_, err = m.do(a, evReceive{Voucher: sv, Under: l, Owner: tagOf(ctx) == a.ch.Tag})
	return err
}

// PaychPointLockImport takes back a point lock that we gave and lost, as PaychVoucherImport
// takes vouchers: the payee shows it. ErrPointLock and ErrSignature where it is none of
// ours, ErrInbound.
func (m *Manager) PaychPointLockImport(ctx context.Context, ch address.Address, l *PointLock) error {
	a, err := m.account(ctx, ch)
	if err != nil {
		return err
	}
	switch {
	case a.ch.Direction != PCHOutbound:
		return ErrInbound
	case l == nil:
		return fmt.Errorf("%w: no lock", ErrPointLock)
	}
	t := l.terms()
	t.Channel, t.From = ch, a.ch.From
	if err := l.Check(&t); err != nil {
		return err
	}
	l = l.clone()
	_, err = m.do(a, evImport{Voucher: clone(&l.Voucher), Under: l})
	return err
}

// PaychPointLockAt returns the point lock of a lane and nonce that may still be completed,
// given or taken. Nil where there is none.
func (m *Manager) PaychPointLockAt(ctx context.Context, ch address.Address, lane, nonce uint64) (*PointLock, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.ch.Lanes[lane]; l != nil {
		if cl := l.find(nonce); cl != nil && cl.Under != nil {
			return cl.Under.clone(), nil
		}
	}
	return nil, nil
}

// completed is the event of a secret, with the locks that it is the secret of the point
// of. Those of a payee are completed here, with no lock held.
func (a *account) completed(secret tally.Preimage) (evSecret, error) {
	ev := evSecret{Preimage: secret}
	a.mu.Lock()
	under, payee := a.ch.closed(), a.ch.Direction == PCHInbound
	a.mu.Unlock()
	if len(under) == 0 {
		return ev, nil
	}
	y := adaptor.Secret(secret)
	point, err := y.Point()
	if err != nil {
		return ev, nil // it may be a preimage all the same
	}
	ev.Under = make(map[*PointLock]*SignedVoucher)
	for _, l := range under {
		if l.Point != point {
			continue
		}
		var sv *SignedVoucher
		if payee {
			if sv, err = l.Complete(&y); err != nil {
				return ev, err
			}
		}
		ev.Under[l] = sv
	}
	return ev, nil
}

// recovered is the event of the secret that a voucher on the chain shows, where it is that
// of one of our locks. Of a voucher that we signed twice, for we had lost the first, any
// lock may be the one that it was completed from.
func recovered(sv *SignedVoucher, under []*PointLock) (evSecret, bool) {
	for _, l := range under {
		if l.Voucher.Lane != sv.Lane || l.Voucher.Nonce != sv.Nonce {
			continue
		}
		y, err := l.Recover(sv)
		if err != nil {
			continue // of a lock that we know nothing of
		}
		ev := evSecret{Preimage: tally.Preimage(y), Under: make(map[*PointLock]*SignedVoucher)}
		for _, other := range under {
			if other.Point == l.Point {
				ev.Under[other] = nil
			}
		}
		return ev, true
	}
	return evSecret{}, false
}
