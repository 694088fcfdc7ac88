package lock

import (
	"errors"
	"fmt"

	"github.com/tallystick/tally"
)

// Terms are the times of a channel's chain and what an operator decided, in epochs.
type Terms struct {
	// Finality is R: how deep a fact of the chain counts.
	Finality int64
	// Inclusion is S: how long a message may take to be mined.
	Inclusion int64
	// Grace is G: how long two neighbours may take to say to each other what the
	// chain showed one of them.
	Grace int64
	// SettleDelay is how long a channel settles.
	SettleDelay int64
	// Margin is M: how long before the end of the settling the last lock has to be
	// over, so that a cancel still reaches the chain. At least S + R + 1: a lock may
	// be redeemed in its last epoch, in a block that takes the place of one that we
	// have seen.
	Margin int64
	// Extension is how far beyond the settle delay a guard may keep a channel open.
	Extension int64
	// Skew is what the heads of two neighbours may differ by. Who offers a lock
	// leaves it as room at both ends.
	Skew int64
	// Slots is N.
	Slots uint64
	// OpensPoint reports whether a secret is that of a compressed point; nil: point
	// locks are neither made nor taken.
	OpensPoint func(y [33]byte, secret tally.Preimage) bool
}

// MaxSlots bounds the slots of a channel: each may cost the payee a message when
// the channel settles.
const MaxSlots = 64

// ErrOff: no lock fits a channel of this chain. Its errors say why.
var ErrOff = errors.New("lock: no lock fits the chain")

// Guard is the lane of the guard.
func (t *Terms) Guard() uint64 { return t.Slots + 1 }

// Delta is D: by how much earlier a lock ends on its way out of a hop than on its
// way in. The way out may be redeemed at its last epoch T; that is final R later;
// G later the way in is fulfilled, and S before its end it goes to the chain.
func (t *Terms) Delta() int64 { return t.Finality + t.Grace + t.Inclusion + 1 }

// Least is the time that a payee needs before the end of a lock, to be paid by it
// or, else, by the chain.
func (t *Terms) Least() int64 { return t.Grace + t.Inclusion + 1 }

// Horizon is the last epoch in which a lock may end that is made at now: whoever
// settles the channel, the lock is over M before the settling is.
func (t *Terms) Horizon(now int64) int64 { return now + t.SettleDelay - t.Margin }

// Furthest is the horizon under a guard.
func (t *Terms) Furthest(now int64) int64 { return t.Horizon(now) + t.Extension }

// Hold is the guard's height for a lock until expires.
func (t *Terms) Hold(expires int64) int64 { return expires + t.Margin }

// Claim is the epoch in which an unanswered preimage goes to the chain, for a lock
// until expires on a channel that settles at settlingAt, or 0.
func (t *Terms) Claim(expires, settlingAt int64) int64 {
	if settlingAt != 0 {
		expires = min(expires, settlingAt-1)
	}
	return expires - t.Inclusion
}

// Validate reports the first term that cannot be.
func (t *Terms) Validate() error {
	switch {
	case t.Finality < 0 || t.Inclusion < 1 || t.Grace < 1 || t.Skew < 0 || t.Extension < 0:
		return fmt.Errorf("lock: finality %d, inclusion %d, grace %d, skew %d, extension %d: none is below 0, inclusion and grace are at least 1",
			t.Finality, t.Inclusion, t.Grace, t.Skew, t.Extension)
	case t.Slots < 1 || t.Slots > MaxSlots:
		return fmt.Errorf("lock: %d slots are not between 1 and %d", t.Slots, MaxSlots)
	case t.Margin <= t.Inclusion+t.Finality:
		return fmt.Errorf("lock: a margin of %d epochs leaves no time to submit a cancel: at least %d", t.Margin, t.Inclusion+t.Finality+1)
	}
	return nil
}

// Fits is nil where a lock that crosses one hop finds a place, else an ErrOff.
func (t *Terms) Fits() error {
	if err := t.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrOff, err)
	}
	need := t.Least() + t.Delta() + 2*t.Skew
	if have := t.Horizon(0); have < need {
		return fmt.Errorf("%w: a settle delay of %d epochs and a margin of %d leave %d, a lock over one hop needs %d (finality %d, grace %d, inclusion %d)",
			ErrOff, t.SettleDelay, t.Margin, have, need, t.Finality, t.Grace, t.Inclusion)
	}
	return nil
}

// Clock ties epochs to the wall clock: Head was the chain's head at HeadMS,
// milliseconds since 1970, and an epoch takes EpochMS.
type Clock struct {
	Head    int64
	HeadMS  int64
	EpochMS int64
}

// Begins is when an epoch begins at the earliest.
func (c *Clock) Begins(epoch int64) int64 { return c.HeadMS + (epoch-c.Head)*c.EpochMS }

// Over is when an epoch is over at the latest.
func (c *Clock) Over(epoch int64) int64 { return c.Begins(epoch + 2) }

// At is the epoch that a moment falls into at the latest: the head may have been
// told nearly an epoch after it began.
func (c *Clock) At(ms int64) int64 {
	epochs := (ms - c.HeadMS) / c.EpochMS
	if ms > c.HeadMS+epochs*c.EpochMS {
		epochs++
	}
	return c.Head + epochs + 1
}

// LastOver is the last epoch that is surely over at a moment.
func (c *Clock) LastOver(ms int64) int64 {
	epochs := (ms - c.HeadMS) / c.EpochMS
	if ms < c.HeadMS+epochs*c.EpochMS {
		epochs--
	}
	return c.Head + epochs - 2
}

// What a hop needs between its two sides, so that it is never paid too late for
// what it pays. Each returns nil or an ErrTooSoon.

// LockAfterLock is for a lock out until out that comes in under one until in.
func (t *Terms) LockAfterLock(in, out int64) error {
	if in < out+t.Delta() {
		return fmt.Errorf("%w: a lock in until %d and one out until %d; %d between them", ErrTooSoon, in, out, t.Delta())
	}
	return nil
}

// LockAfterCredit is for a lock out until out that comes in on credit, decided by
// its payer until inMS. That has to outlive the lock by D in wall time.
func (t *Terms) LockAfterCredit(c *Clock, inMS, out int64) error {
	if need := c.Over(out + t.Delta()); inMS < need {
		return fmt.Errorf("%w: credit in until %d ms, a lock out until epoch %d needs %d ms", ErrTooSoon, inMS, out, need)
	}
	return nil
}

// CreditAfterLock is for a packet out on credit until outMS that comes in under a
// lock until in. It may be fulfilled lateMS beyond its end.
func (t *Terms) CreditAfterLock(c *Clock, in, outMS, lateMS int64) error {
	if need := c.At(outMS+lateMS) + t.Least(); in < need {
		return fmt.Errorf("%w: a lock in until %d, credit out until %d ms needs one until %d", ErrTooSoon, in, outMS, need)
	}
	return nil
}
