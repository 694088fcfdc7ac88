package lock

import (
	"errors"
	"fmt"
	"slices"
)

// take holds the payer's LOCK. One that follows the slot but cannot be held is
// given up at once: without a CANCEL the payer would have to wait for its end.
func (s *Slots) take(now int64, ev *Event, fx []Effect) ([]Effect, error) {
	v := &ev.Voucher
	if err := s.terms.formLock(v); err != nil {
		return fx, err
	}
	l, err := s.at(v.Lane)
	if err != nil {
		return fx, err
	}
	switch {
	case v.Nonce%2 == 0 || v.Nonce >= maxNonce:
		return fx, fmt.Errorf("%w: LOCK with the nonce %d", ErrNonce, v.Nonce)
	case v.Nonce <= l.nonce:
		return fx, nil // of a lock that is over
	case l.phase != Free && v.Nonce == l.nonce+1:
		return s.again(l, ev, fx)
	case l.retired, l.phase == Opened, l.phase == Locked && now <= l.expires:
		return fx, fmt.Errorf("%w: slot %d is %s", ErrNonce, l.lane, l.phase)
	}
	// The slot is free; or the payer has our CANCEL, or knows that the lock's time
	// is over. Nonces that it left out were of locks that never reached us.
	next := *l
	if next.phase != Free {
		next.rest(false)
	}
	next.nonce = v.Nonce - 1
	held, err := s.hold(now, &next, ev, fx)
	if err != nil {
		return fx, err
	}
	if l.phase == Locked { // in the batch of the new one
		i := slices.IndexFunc(held, func(e Effect) bool { return e.Kind == FxSave })
		held = slices.Insert(held, i+1, Effect{Kind: FxEnded, Lane: l.lane, ID: l.id, Err: ErrLate})
	}
	*l = next
	return held, nil
}

// maxNonce bounds nonces, so that no sum of them overflows.
const maxNonce = 1 << 62

// again answers a LOCK that we have had.
func (s *Slots) again(l *slot, ev *Event, fx []Effect) ([]Effect, error) {
	v, have := &ev.Voucher, l.lockVoucher()
	if ev.ID != l.id || v.Amount != have.Amount || v.Hash != have.Hash || v.Point != have.Point || v.Expires != have.Expires || ev.Amount != l.amount {
		return fx, fmt.Errorf("%w: %d", ErrConflict, ev.ID)
	}
	if l.phase == Given {
		return s.sendCancel(l, fx), nil
	}
	return append(fx, Effect{Kind: FxSend, Lane: l.lane, ID: l.id, Send: SendLockAck}), nil
}

func (s *Slots) hold(now int64, l *slot, ev *Event, fx []Effect) ([]Effect, error) {
	v, t := &ev.Voucher, &s.terms
	total, err := l.base.Add(ev.Amount)
	switch {
	case ev.Amount == 0 || err != nil || total >= maxTotal:
		return fx, fmt.Errorf("%w: %d on top of %d", ErrAmount, ev.Amount, l.base)
	case v.Amount != total:
		return fx, fmt.Errorf("%w: LOCK over %d, the slot's is over %d", ErrNonce, v.Amount, total)
	case s.of(ev.ID) != nil:
		return fx, fmt.Errorf("%w: %d", ErrConflict, ev.ID)
	}
	guard, err := s.checkGuard(now, ev)
	if err != nil && !errors.Is(err, ErrGuard) {
		return fx, err
	}
	l.id, l.amount, l.hash, l.point, l.expires = ev.ID, ev.Amount, v.Hash, v.Point, v.Expires
	if err == nil {
		err = s.fits(now, v.Expires)
	}
	if err != nil {
		return s.giveUp(l, fx, err), nil
	}
	l.move(Locked)
	if guard {
		fx = append(fx, Effect{Kind: FxKeep, Lane: t.Guard(), ID: l.id, Voucher: ev.Guard})
	}
	fx = append(fx, Effect{Kind: FxKeep, Lane: l.lane, ID: l.id, Voucher: *v})
	if v.Expires > t.Horizon(now) {
		l.guard = t.Hold(v.Expires)
	}
	if guard {
		s.guardNonce, s.guardHeight = ev.Guard.Nonce, ev.Guard.MinSettle
		fx = append(fx, Effect{Kind: FxSave, Lane: t.Guard(), ID: l.id})
	}
	return append(fx,
		Effect{Kind: FxSave, Lane: l.lane, ID: l.id},
		Effect{Kind: FxSend, Lane: l.lane, ID: l.id, Send: SendLockAck},
		Effect{Kind: FxTaken, Lane: l.lane, ID: l.id},
	), nil
}

// fits is what a payee needs of a lock's end.
func (s *Slots) fits(now, expires int64) error {
	t := &s.terms
	switch {
	case s.head.SettlingAt != 0 || s.head.Gone:
		return ErrSettling
	case expires < now+t.Least():
		return fmt.Errorf("%w: until %d, %d epochs are needed from %d on", ErrTooSoon, expires, t.Least(), now)
	}
	return nil
}

// checkGuard is nil where the lock ends within the horizon, or under a guard that
// holds the channel open until it has. fresh: the guard is a new one.
func (s *Slots) checkGuard(now int64, ev *Event) (fresh bool, err error) {
	t, g := &s.terms, &ev.Guard
	if *g != (Voucher{}) && g.Nonce > s.guardNonce {
		if err := t.form(g, KindGuard); err != nil {
			return false, err
		}
		if g.MinSettle < s.guardHeight {
			return false, fmt.Errorf("%w: guard %d at %d lowers %d", ErrNonce, g.Nonce, g.MinSettle, s.guardHeight)
		}
		fresh = true
	}
	if ev.Voucher.Expires <= t.Horizon(now) {
		return fresh, nil
	}
	if ev.Voucher.Expires > t.Furthest(now) {
		return fresh, fmt.Errorf("%w: until %d, at most %d under a guard", errFurthest, ev.Voucher.Expires, t.Furthest(now))
	}
	height := max(s.guardHeight, s.head.MinSettle)
	if fresh {
		height = max(height, g.MinSettle)
	}
	if need := t.Hold(ev.Voucher.Expires); height < need {
		return fresh, fmt.Errorf("%w: until %d needs a settle height of %d, it has %d", ErrGuard, ev.Voucher.Expires, need, height)
	}
	return fresh, nil
}

var errFurthest = fmt.Errorf("%w: %w", ErrGuard, ErrTooFar)

// giveUp is on disk before the CANCEL is signed.
func (s *Slots) giveUp(l *slot, fx []Effect, why error) []Effect {
	l.move(Given)
	l.raw, l.acked = "", false
	return append(fx,
		Effect{Kind: FxSave, Lane: l.lane, ID: l.id},
		Effect{Kind: FxEnded, Lane: l.lane, ID: l.id, Err: why},
		Effect{Kind: FxSign, Lane: l.lane, ID: l.id, Voucher: l.cancel(), Err: why},
	)
}

// refused gives a LOCK up that the channel's account would not keep.
func (s *Slots) refused(_ int64, ev *Event, fx []Effect) ([]Effect, error) {
	l := s.of(ev.ID)
	if l == nil || l.phase != Locked {
		return fx, ErrUnknown
	}
	return s.giveUp(l, fx, ErrAmount), nil
}

// fulfil shows the preimage, once that is on disk and the chain's watcher has it.
func (s *Slots) fulfil(now int64, ev *Event, fx []Effect) ([]Effect, error) {
	l := s.of(ev.ID)
	switch {
	case l == nil:
		return fx, fmt.Errorf("%w: %d", ErrUnknown, ev.ID)
	case l.phase == Given:
		return fx, ErrGivenUp
	case l.phase == Opened:
		return s.sendFulfil(l, fx), nil
	case !s.terms.opens(l.point, l.hash, ev.Preimage):
		return fx, ErrPreimage
	case !ev.Owed && l.expires < now+s.terms.Inclusion+1:
		// Who shows it later may be paid by nobody.
		return fx, fmt.Errorf("%w: until %d, epoch is %d", ErrLate, l.expires, now)
	}
	l.move(Opened)
	l.preimage = ev.Preimage
	fx = append(fx,
		Effect{Kind: FxSave, Lane: l.lane, ID: l.id},
		Effect{Kind: FxSecret, Lane: l.lane, ID: l.id, Preimage: l.preimage},
	)
	return s.sendFulfil(l, fx), nil
}

func (s *Slots) sendFulfil(l *slot, fx []Effect) []Effect {
	return append(fx, Effect{Kind: FxSend, Lane: l.lane, ID: l.id, Send: SendFulfil, Preimage: l.preimage})
}

// give gives a lock up that nothing was shown of.
func (s *Slots) give(_ int64, ev *Event, fx []Effect) ([]Effect, error) {
	l := s.of(ev.ID)
	switch {
	case l == nil || l.phase == Opened:
		return fx, fmt.Errorf("%w: %d", ErrUnknown, ev.ID)
	case l.phase == Given:
		return s.sendCancel(l, fx), nil
	}
	return s.giveUp(l, fx, nil), nil
}

// cancelAcked ends a lock that we gave up: the payer has our signature.
func (s *Slots) cancelAcked(_ int64, ev *Event, fx []Effect) ([]Effect, error) {
	l := s.of(ev.ID)
	if l == nil || l.phase != Given {
		return fx, nil
	}
	l.rest(false)
	return append(fx, Effect{Kind: FxForget, Lane: l.lane}), nil
}

func (s *Slots) sendCancel(l *slot, fx []Effect) []Effect {
	v := l.cancel()
	if l.raw == "" {
		return append(fx, Effect{Kind: FxSign, Lane: l.lane, ID: l.id, Voucher: v})
	}
	v.Raw = l.raw
	return append(fx, Effect{Kind: FxSend, Lane: l.lane, ID: l.id, Send: SendCancel, Voucher: v})
}

func (s *Slots) signedPayee(_ int64, ev *Event, fx []Effect) ([]Effect, error) {
	l, err := s.at(ev.Voucher.Lane)
	if err != nil {
		return fx, err
	}
	if l.phase != Given || ev.Voucher.Nonce != l.nonce+2 {
		return fx, nil
	}
	l.raw = ev.Voucher.Raw
	return s.sendCancel(l, fx), nil
}

// unlocked takes the payer's UNLOCK, the end of a lock that is paid. One above what
// we know is welcome too, as after a restore of our store: it is a plain promise.
func (s *Slots) unlocked(_ int64, ev *Event, fx []Effect) ([]Effect, error) {
	v := &ev.Voucher
	if err := s.terms.form(v, KindPlain); err != nil {
		return fx, err
	}
	l, err := s.at(v.Lane)
	if err != nil {
		return fx, err
	}
	ack := Effect{Kind: FxSend, Lane: l.lane, ID: ev.ID, Send: SendUnlockAck}
	switch {
	case v.Nonce <= l.nonce:
		return append(fx, ack), nil // again
	case (l.phase == Opened || l.phase == Locked) && v.Nonce == l.nonce+2 && v.Amount == l.total():
		// Locked: the payer learned the preimage elsewhere. Money is money.
		id, preimage := l.id, l.preimage
		l.rest(true)
		return append(fx,
			Effect{Kind: FxKeep, Lane: l.lane, ID: id, Voucher: *v},
			Effect{Kind: FxSave, Lane: l.lane, ID: id},
			Effect{Kind: FxEnded, Lane: l.lane, ID: id, Preimage: preimage},
			ack,
		), nil
	case l.phase == Free && v.Nonce > l.nonce && v.Nonce%2 == 0 && v.Amount > l.base && v.Amount < maxTotal:
		l.nonce, l.paid, l.base = v.Nonce, v.Nonce, v.Amount
		return append(fx,
			Effect{Kind: FxKeep, Lane: l.lane, ID: ev.ID, Voucher: *v},
			Effect{Kind: FxSave, Lane: l.lane, ID: ev.ID},
			ack,
		), nil
	}
	return fx, fmt.Errorf("%w: UNLOCK %d over %d, slot %d is %s at %d over %d", ErrNonce, v.Nonce, v.Amount, l.lane, l.phase, l.nonce, l.base)
}

// chainPayee looks at the chain: what nobody answered goes there in time, the guard
// when the channel settles, and what is over is over.
func (s *Slots) chainPayee(_ int64, ev *Event, fx []Effect) ([]Effect, error) {
	h := &ev.Head
	s.head = *h
	s.head.Lanes = nil
	guard := false
	for i := range s.slots {
		l := &s.slots[i]
		if l.phase == Opened && l.redeemed(&ev.Final) {
			id, preimage := l.id, l.preimage
			l.rest(true)
			fx = append(fx, Effect{Kind: FxSave, Lane: l.lane, ID: id}, Effect{Kind: FxEnded, Lane: l.lane, ID: id, Preimage: preimage})
			continue
		}
		if l.phase == Opened && l.past(&ev.Final) {
			id := l.id
			l.rest(false)
			fx = append(fx, Effect{Kind: FxSave, Lane: l.lane, ID: id}, Effect{Kind: FxLost, Lane: l.lane, ID: id, Err: ErrLate})
			continue
		}
		if l.phase == Locked && (h.Height > l.expires || h.Gone) {
			id := l.id
			l.rest(false)
			fx = append(fx, Effect{Kind: FxSave, Lane: l.lane, ID: id}, Effect{Kind: FxEnded, Lane: l.lane, ID: id, Err: ErrLate})
			continue
		}
		if l.phase == Given && l.raw == "" {
			fx = s.sendCancel(l, fx) // it could not be signed before
		}
		if l.phase != Locked && l.phase != Opened {
			continue
		}
		guard = guard || l.guard != 0
		due := h.SettlingAt != 0 || h.Height >= s.terms.Claim(l.expires, h.SettlingAt)
		if l.phase == Opened && due && !l.redeemed(h) && !l.past(h) {
			fx = append(fx, Effect{Kind: FxSubmit, Lane: l.lane, ID: l.id, Voucher: l.lockVoucher(), Preimage: l.preimage})
		}
	}
	if guard && h.SettlingAt != 0 && h.SettlingAt < s.guardHeight && h.Height+1 < h.SettlingAt {
		fx = append(fx, Effect{Kind: FxSubmit, Lane: s.terms.Guard(), Voucher: s.guardVoucher()})
	}
	return fx, nil
}
