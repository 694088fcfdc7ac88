package swap

import (
	"context"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Debit books units that we served without a reservation: the peer owes us
// more. It always books, because delivered is delivered. ErrOverThreshold tells
// that there is no headroom left now, so that the service should stop; the
// units are booked all the same.
func (b *Book) Debit(p peer.ID, service string, units tally.Amount) error {
	return b.bookNow(p, service, Serve, units)
}

// Credit books units that we consumed without a reservation: we owe the peer
// more. Like Debit it always books, and tells ErrOverThreshold where nothing
// should be consumed any more until a settlement.
func (b *Book) Credit(p peer.ID, service string, units tally.Amount) error {
	return b.bookNow(p, service, Consume, units)
}

func (b *Book) bookNow(p peer.ID, service string, dir Direction, units tally.Amount) error {
	if err := b.usable(); err != nil {
		return err
	}
	s, a, err := b.lock(p)
	if err != nil {
		return err
	}
	ev := Event{Kind: EvCommit, Dir: dir, Units: units}
	return b.bookLocked(s, a, service, &ev, true)
}

// bookLocked applies a commit and unlocks the shard. The message path ends
// here in the common case: one step, no allocation. tellFull asks for
// ErrOverThreshold where the tab is at its limit now.
func (b *Book) bookLocked(s *shard, a *account, service string, ev *Event, tellFull bool) error {
	now := b.now()
	fx, err := b.apply(s, a, now, ev)
	if err != nil {
		if ev.Held > 0 { // the hold is done, so its room comes back all the same
			back := Event{Kind: EvRelease, Dir: ev.Dir, Held: ev.Held}
			_, _ = b.apply(s, a, now, &back) // has no error
		}
		s.mu.Unlock()
		return err
	}
	a.countService(service, ev.Dir, ev.Units)
	b.markDirty(s, a) // a commit out of a reservation has no dirty units, and still has to be saved
	if ev.Dir == Serve {
		a.wakeAll() // what the peer owes us adds to what we may consume
	}
	mustFlush := a.ledger.MustFlush()
	full := tellFull && b.fullLocked(a, now, ev.Dir)
	if full && ev.Dir == Serve {
		b.denied(s, a, now) // a service that counts afterwards refuses by this error
	}
	p := a.peer
	s.mu.Unlock()

	if fx != nil {
		b.afterBooking(p, fx)
	}
	if mustFlush {
		ctx, cancel := context.WithTimeout(b.ctx, saveWithin)
		defer cancel()
		if err := b.flushPeer(ctx, p, (*Ledger).MustFlush); err != nil {
			return err
		}
	}
	if full {
		return ErrOverThreshold
	}
	return nil
}

// fullLocked reports that the tab is at its limit, for callers that count after
// the fact.
func (b *Book) fullLocked(a *account, now Instant, dir Direction) bool {
	if b.policy.Mode == ModeSoft {
		return false
	}
	if dir == Serve {
		return b.headroomServe(a, now) == 0
	}
	return a.ledger.HeadroomConsume() == 0
}

// afterBooking carries out the effects of a commit: a settlement that begins,
// or a flush that is due.
func (b *Book) afterBooking(p peer.ID, fx []Effect) {
	for i := range fx {
		switch fx[i].Kind {
		case FxFlush:
			b.kick()
		case FxIssue:
			b.issueSoon(p, fx[i])
		}
	}
}

// headroomServe is what the peer may still take, under its own tab and under
// what all peers share.
func (b *Book) headroomServe(a *account, now Instant) tally.Amount {
	room := a.ledger.HeadroomServe(now)
	if b.policy.Mode == ModeSoft {
		return room
	}
	// A prepaid peer brings no exposure until its money is used up.
	prepaid := a.ledger.Balance().Debt()
	return min(room, b.pool.room(&b.policy, a.ledger.Stranger()).SaturatingAdd(prepaid))
}

// Headroom returns how many units of a direction fit the tab with p now.
func (b *Book) Headroom(p peer.ID, dir Direction) (tally.Amount, error) {
	s, a, err := b.lock(p)
	if err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	if dir != Serve {
		return a.ledger.HeadroomConsume(), nil
	}
	now := b.now()
	room := b.headroomServe(a, now)
	if room == 0 {
		b.denied(s, a, now) // nobody asks for headroom that is not there
	}
	return room, nil
}

// countService adds to the counts per service.
func (a *account) countService(name string, dir Direction, units tally.Amount) {
	a.newServices = true
	if len(name) > maxNameLen {
		name = name[:maxNameLen]
	}
	if dir == Serve {
		a.services = addService(a.services, name, units, 0)
	} else {
		a.services = addService(a.services, name, 0, units)
	}
}
