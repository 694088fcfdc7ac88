package lock

import (
	"errors"
	"fmt"

	"github.com/tallystick/tally"
)

// ErrInvariant is wrapped by every error of Check.
var ErrInvariant = errors.New("lock: invariant broken")

// Check returns the first broken invariant, by name: a bug of ours.
func (s *Slots) Check() error {
	ids := make(map[uint64]uint64, len(s.slots))
	for i := range s.slots {
		l := &s.slots[i]
		if err := s.checkSlot(l); err != nil {
			return err
		}
		if l.guard > s.guardHeight && s.role == Payer {
			return broken("guard-covers", "lane %d needs height %d, the guard has %d", l.lane, l.guard, s.guardHeight)
		}
		if l.phase == Free {
			continue
		}
		if other, twice := ids[l.id]; twice {
			return broken("one-slot-a-lock", "lock %d is on lanes %d and %d", l.id, other, l.lane)
		}
		ids[l.id] = l.lane
	}
	return nil
}

func broken(name, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %w", ErrInvariant, name, fmt.Errorf(format, args...))
}

func (s *Slots) checkSlot(l *slot) error {
	zero := tally.Preimage{}
	switch {
	case l.nonce%2 != 0 || l.paid%2 != 0 || l.paid > l.nonce:
		return broken("nonce-pairs", "lane %d rests at nonce %d, paid at %d: a lock takes two", l.lane, l.nonce, l.paid)
	case l.base >= maxTotal || l.amount >= maxTotal || l.total() >= maxTotal:
		return broken("bounded-totals", "lane %d: %d and %d", l.lane, l.base, l.amount)
	case !s.terms.takes(l.point), l.phase == Free && l.point != 0:
		return broken("point-or-hash", "lane %d is %s under a lock of kind %d", l.lane, l.phase, l.point)
	case l.phase == Free && (l.id != 0 || l.amount != 0 || l.expires != 0 || l.hash != tally.Hashlock{} || l.raw != ""):
		return broken("rest-is-empty", "lane %d is free and has lock %d", l.lane, l.id)
	case l.phase != Free && (l.amount == 0 || l.expires <= 0):
		return broken("lock-is-whole", "lane %d is %s with %d until %d", l.lane, l.phase, l.amount, l.expires)
	case l.phase == Opened && !s.terms.opens(l.point, l.hash, l.preimage), l.phase != Opened && l.preimage != zero:
		return broken("opened-by-preimage", "lane %d is %s", l.lane, l.phase)
	case s.role == Payer && l.phase == Given, s.role == Payee && l.cancelNonce != 0:
		return broken("payee-cancels", "lane %d of the %s is %s, cancel %d", l.lane, s.role, l.phase, l.cancelNonce)
	case l.cancelNonce > l.nonce || l.cancelAmount > l.base:
		return broken("cancel-is-past", "lane %d: cancel %d over %d, rest %d over %d", l.lane, l.cancelNonce, l.cancelAmount, l.nonce, l.base)
	}
	return nil
}
