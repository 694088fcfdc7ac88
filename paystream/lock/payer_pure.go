package lock

import (
	"fmt"

	"github.com/tallystick/tally"
)

// offer makes a lock. What it takes is saved before the LOCK is signed, so that
// after a crash the same one is signed again, or none.
func (s *Slots) offer(now int64, ev *Event, fx []Effect) ([]Effect, error) {
	if l := s.of(ev.ID); l != nil {
		if l.amount != ev.Amount || l.hash != ev.Hash || l.point != ev.Point || l.expires != ev.Expires {
			return fx, fmt.Errorf("%w: %d", ErrConflict, ev.ID)
		}
		return s.resend(l, fx), nil
	}
	t := &s.terms
	long := ev.Expires > t.Horizon(now)-t.Skew
	switch {
	case !t.takes(ev.Point):
		return fx, ErrPoint
	case s.head.SettlingAt != 0 || s.head.Gone:
		return fx, ErrSettling
	case ev.Amount == 0 || ev.Amount >= maxTotal:
		return fx, fmt.Errorf("%w: %d", ErrAmount, ev.Amount)
	case ev.Expires < now+t.Least()+t.Skew:
		return fx, fmt.Errorf("%w: until %d, the payee needs %d from %d on", ErrTooSoon, ev.Expires, t.Least()+t.Skew, now)
	case long && (!ev.Long || ev.Expires > t.Furthest(now)-t.Skew):
		return fx, fmt.Errorf("%w: until %d, at most %d", ErrTooFar, ev.Expires, t.Horizon(now)-t.Skew)
	}
	var l *slot
	for i := range s.slots {
		if s.slots[i].open() && s.slots[i].crowded <= now {
			l = &s.slots[i]
			break
		}
	}
	if l == nil {
		return fx, ErrFull
	}
	if total, err := l.base.Add(ev.Amount); err != nil || total >= maxTotal {
		return fx, fmt.Errorf("%w: %d on top of %d", ErrAmount, ev.Amount, l.base)
	}
	l.move(Locked)
	l.id, l.amount, l.hash, l.point, l.expires, l.unsent = ev.ID, ev.Amount, ev.Hash, ev.Point, ev.Expires, true
	fx = append(fx, Effect{Kind: FxSave, Lane: l.lane, ID: l.id})
	if long {
		if l.guard = t.Hold(ev.Expires); l.guard > s.guardHeight {
			s.guardNonce, s.guardHeight, s.guardRaw = s.guardNonce+1, l.guard, ""
			fx = append(fx, Effect{Kind: FxSave, Lane: t.Guard()})
		}
	}
	return s.sign(l, fx), nil
}

// sign asks for what the slot's lock needs signed, the guard first.
func (s *Slots) sign(l *slot, fx []Effect) []Effect {
	if l.phase == Opened {
		return append(fx, Effect{Kind: FxSign, Lane: l.lane, ID: l.id, Voucher: l.unlock()})
	}
	if l.guard != 0 && s.guardRaw == "" {
		fx = append(fx, Effect{Kind: FxSign, Lane: s.terms.Guard(), ID: l.id, Voucher: s.guardVoucher()})
	}
	return append(fx, Effect{Kind: FxSign, Lane: l.lane, ID: l.id, Voucher: l.lockVoucher()})
}

func (s *Slots) guardVoucher() Voucher {
	return Voucher{Lane: s.terms.Guard(), Nonce: s.guardNonce, MinSettle: s.guardHeight, Raw: s.guardRaw}
}

func (s *Slots) signedPayer(_ int64, ev *Event, fx []Effect) ([]Effect, error) {
	v := &ev.Voucher
	if v.Lane == s.terms.Guard() {
		if v.Nonce == s.guardNonce {
			s.guardRaw = v.Raw
		}
		return fx, nil
	}
	l, err := s.at(v.Lane)
	if err != nil {
		return fx, err
	}
	if l.phase == Locked && v.Nonce == l.nonce+1 || l.phase == Opened && v.Nonce == l.nonce+2 {
		l.raw, l.acked, l.unsent = v.Raw, false, false
		if s.complete(l) {
			return s.resend(l, fx), nil
		}
	}
	return fx, nil // the lock went on meanwhile
}

// complete reports whether all is signed that the lock's next message carries.
func (s *Slots) complete(l *slot) bool {
	return l.raw != "" && (l.phase == Opened || l.guard == 0 || s.guardRaw != "")
}

// resend sends what we signed of the lock, or has it signed.
func (s *Slots) resend(l *slot, fx []Effect) []Effect {
	if l.phase != Locked && l.phase != Opened {
		return fx
	}
	if !s.complete(l) {
		return s.sign(l, fx)
	}
	e := Effect{Kind: FxSend, Lane: l.lane, ID: l.id, Send: SendLock, Voucher: l.lockVoucher()}
	if l.phase == Opened {
		e.Send, e.Voucher = SendUnlock, l.unlock()
	} else if l.guard != 0 {
		e.Guard = s.guardVoucher()
	}
	e.Voucher.Raw = l.raw
	return append(fx, e)
}

// unsigned takes a lock back of which nothing left us. Its nonces count as used.
// After a restart nobody can say so, and it waits for its end. The next lock goes to
// another lane than one that is crowded, until this one's end, when those before it
// have ended.
func (s *Slots) unsigned(_ int64, ev *Event, fx []Effect) ([]Effect, error) {
	l := s.of(ev.ID)
	if l == nil || !l.unsent {
		return fx, ErrUnknown
	}
	id, why := l.id, ErrAmount
	if ev.Crowded && ev.Voucher.Lane == l.lane {
		l.crowded, why = l.expires, ErrFull
	}
	l.rest(false)
	return append(fx, Effect{Kind: FxSave, Lane: l.lane}, Effect{Kind: FxFailed, ID: id, Err: why}), nil
}

func (s *Slots) acked(_ int64, ev *Event, fx []Effect) ([]Effect, error) {
	if l := s.of(ev.ID); l != nil && l.phase == Locked {
		l.acked = true
	}
	return fx, nil
}

// opened takes the preimage. Off the chain it counts up to the lock's end: later
// the payee can have nothing for it, unless the chain shows that it has.
func (s *Slots) opened(now int64, ev *Event, fx []Effect) ([]Effect, error) {
	l := s.of(ev.ID)
	if l == nil {
		return fx, fmt.Errorf("%w: %d", ErrUnknown, ev.ID)
	}
	if l.phase == Opened {
		return s.resend(l, fx), nil
	}
	switch {
	case !s.terms.opens(l.point, l.hash, ev.Preimage):
		return fx, ErrPreimage
	case !ev.OnChain && now > l.expires:
		return fx, fmt.Errorf("%w: the lock ended at %d", ErrLate, l.expires)
	}
	l.move(Opened)
	l.preimage, l.raw, l.acked = ev.Preimage, "", false
	fx = append(fx, Effect{Kind: FxSave, Lane: l.lane, ID: l.id}, Effect{Kind: FxFulfilled, ID: l.id, Preimage: l.preimage})
	return s.sign(l, fx), nil
}

// cancelled takes the payee's CANCEL, and only then lets the way in fail. Where the
// channel ends so soon that the CANCEL would not reach the chain any more, it is
// worth nothing: the lock waits for its end.
func (s *Slots) cancelled(now int64, ev *Event, fx []Effect) ([]Effect, error) {
	v := &ev.Voucher
	if err := s.terms.form(v, KindPlain); err != nil {
		return fx, err
	}
	l, err := s.at(v.Lane)
	if err != nil {
		return fx, err
	}
	if l.phase != Locked || l.id != ev.ID {
		if v.Nonce <= l.nonce {
			return append(fx, Effect{Kind: FxSend, Lane: l.lane, ID: ev.ID, Send: SendCancelAck}), nil // again
		}
		return fx, fmt.Errorf("%w: %d", ErrUnknown, ev.ID)
	}
	if want := l.cancel(); v.Nonce != want.Nonce || v.Amount != want.Amount {
		return fx, fmt.Errorf("%w: CANCEL %d over %d, the slot's is %d over %d", ErrNonce, v.Nonce, v.Amount, want.Nonce, want.Amount)
	}
	settling := s.head.SettlingAt
	if settling != 0 && now+s.terms.Inclusion >= settling {
		return fx, fmt.Errorf("%w: CANCEL at %d, the channel ends at %d", ErrLate, now, settling)
	}
	id := l.id
	l.cancelNonce, l.cancelAmount, l.until = v.Nonce, v.Amount, max(l.until, l.expires)
	l.rest(false)
	fx = append(fx,
		Effect{Kind: FxKeep, Lane: l.lane, ID: id, Voucher: *v},
		Effect{Kind: FxSave, Lane: l.lane, ID: id},
		Effect{Kind: FxFailed, ID: id, Err: ErrGivenUp},
	)
	if settling != 0 && l.until > settling-s.terms.Margin {
		fx = append(fx, Effect{Kind: FxSubmit, Lane: l.lane, Voucher: *v})
	}
	return append(fx, Effect{Kind: FxSend, Lane: l.lane, ID: id, Send: SendCancelAck}), nil
}

func (s *Slots) unlockAcked(_ int64, ev *Event, fx []Effect) ([]Effect, error) {
	l := s.of(ev.ID)
	if l == nil || l.phase != Opened || l.raw == "" {
		return fx, nil // again, or of a lock that is over
	}
	l.rest(true)
	return append(fx, Effect{Kind: FxForget, Lane: l.lane}), nil
}

// chainPayer looks at the chain: locks that it can take no more fail, those that it
// has taken are paid, and a LOCK that was given up and came there all the same is
// answered.
func (s *Slots) chainPayer(_ int64, ev *Event, fx []Effect) ([]Effect, error) {
	s.head = ev.Head
	s.head.Lanes = nil
	for i := range s.slots {
		l := &s.slots[i]
		switch {
		case l.phase == Locked && l.past(&ev.Final) && !l.redeemed(&ev.Final):
			id := l.id
			l.rest(false)
			fx = append(fx, Effect{Kind: FxSave, Lane: l.lane, ID: id}, Effect{Kind: FxFailed, ID: id, Err: ErrLate})
		case l.phase == Opened && l.redeemed(&ev.Final):
			l.rest(true)
			fx = append(fx, Effect{Kind: FxForget, Lane: l.lane})
		case l.phase == Opened && l.raw == "":
			fx = s.sign(l, fx) // it could not be signed before
		}
		fx = s.answer(l, ev, fx)
	}
	return fx, nil
}

// answer submits the CANCEL where a LOCK that it gives up is on the chain, or where
// one could come there so late that the answer would not.
func (s *Slots) answer(l *slot, ev *Event, fx []Effect) []Effect {
	h := &ev.Head
	if l.cancelNonce == 0 || h.Gone {
		return fx
	}
	seen, known := h.lane(l.lane)
	if known && seen.Nonce >= l.cancelNonce {
		return fx
	}
	stale := known && seen.Redeemed > l.cancelAmount
	late := h.SettlingAt != 0 && l.until >= h.Height && l.until > h.SettlingAt-s.terms.Margin
	if !stale && !late || h.SettlingAt != 0 && h.Height+1 >= h.SettlingAt {
		return fx
	}
	return append(fx, Effect{Kind: FxSubmit, Lane: l.lane, Voucher: Voucher{Lane: l.lane, Nonce: l.cancelNonce, Amount: l.cancelAmount}})
}

// Open returns the lock of ours that a preimage opens, for one that the chain
// showed.
func (s *Slots) Open(p *tally.Preimage) (id uint64, ok bool) {
	for i := range s.slots {
		if l := &s.slots[i]; l.phase == Locked && s.terms.opens(l.point, l.hash, *p) {
			return l.id, true
		}
	}
	return 0, false
}
