package swap

import (
	"sync/atomic"

	"github.com/tallystick/tally"
)

// pool holds the sums that all peers share: what all together could make us
// lose, and what those that never paid could.
type pool struct {
	total, strangers atomic.Uint64
}

// move replaces one peer's exposure in the sums.
func (p *pool) move(before, after tally.Amount, wasStranger, isStranger bool) {
	p.total.Add(uint64(after - before)) // wraps for less, as the sum is meant to
	if wasStranger {
		p.strangers.Add(-uint64(before))
	}
	if isStranger {
		p.strangers.Add(uint64(after))
	}
}

// room is how much more exposure a peer may bring.
func (p *pool) room(policy *Policy, stranger bool) tally.Amount {
	room := policy.MaxExposureTotal.SaturatingSub(tally.Amount(p.total.Load()))
	if stranger {
		room = min(room, policy.StrangersExposure.SaturatingSub(tally.Amount(p.strangers.Load())))
	}
	return room
}

// check reports which cap is passed now.
func (p *pool) check(policy *Policy, stranger bool) error {
	if stranger && tally.Amount(p.strangers.Load()) > policy.StrangersExposure {
		return ErrStranger
	}
	if tally.Amount(p.total.Load()) > policy.MaxExposureTotal {
		return ErrExposure
	}
	return nil
}
