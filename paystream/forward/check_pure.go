package forward

import (
	"errors"
	"fmt"
)

// ErrInvariant is wrapped by every error of Check.
var ErrInvariant = errors.New("forward: invariant broken")

// Check returns the first broken invariant, by name.
func (h *Hop) Check() error {
	broken := func(name, format string, args ...any) error {
		return fmt.Errorf("%w: %s: %w", ErrInvariant, name, fmt.Errorf(format, args...))
	}
	live := 0
	for p, l := range h.links {
		if l.in.Len() > h.rules.MaxInFlight || l.out.Len() > MaxInFlight {
			return broken("in-flight", "%s: %d in, %d out", p, l.in.Len(), l.out.Len())
		}
		if l.answered > l.asked {
			return broken("sync-rounds", "%s: %d answers to %d asks", p, l.answered, l.asked)
		}
		bytes := 0
		for id, c := range l.out.All() {
			bytes += c.size
			if c.out != l || c.key != id || c.fulfilled {
				return broken("out-side", "%s: packet %d", p, id)
			}
			if c.condition.Kind == ConditionPoint {
				return broken("points-under-locks", "%s: packet %d left on credit", p, id)
			}
			if c.lockedIn() {
				if c.in.lockIn(c.inID) != c || c.amountIn < c.amountOut {
					return broken("both-sides", "%s: packet %d under a lock", p, id)
				}
			} else if c.in != nil && (c.in.in.at(c.inID) != c || c.amountIn < c.amountOut || c.expiresIn < c.expiresOut+h.rules.HopDelta.Milliseconds()) {
				return broken("both-sides", "%s: packet %d: %d until %d in, %d until %d out", p, id, c.amountIn, c.expiresIn, c.amountOut, c.expiresOut)
			}
			live++
		}
		if bytes != l.outBytes || bytes > maxOutBytes {
			return broken("out-bytes", "%s: kept %d, counted %d", p, l.outBytes, bytes)
		}
		for id, c := range l.in.All() {
			if c.in != l || c.inID != id {
				return broken("in-side", "%s: packet %d", p, id)
			}
			if c.fulfilled && (c.out != nil || !h.opens(&c.condition, &c.preimage)) {
				return broken("fulfilled", "%s: packet %d", p, id)
			}
			if c.condition.Kind == ConditionPoint {
				return broken("points-under-locks", "%s: packet %d came on credit", p, id)
			}
			if !c.fulfilled && c.out == nil {
				live++
			}
		}
		n, err := h.checkLocks(l)
		if err != nil {
			return broken("locked-sides", "%s: %w", p, err)
		}
		live += n
	}
	if live != len(h.parts) {
		return broken("parts", "%d live packets, %d part ids", live, len(h.parts))
	}
	for part := range h.results {
		if _, lives := h.parts[part]; lives {
			return broken("one-result", "packet %x lives and has a result", part)
		}
	}
	return nil
}
