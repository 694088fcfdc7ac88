package envelope

import (
	"crypto/sha256"
	"errors"
	"iter"
	"maps"
)

// MaxUndecided is the default bound of a Guard: the packets that one endpoint may
// have on the way.
const MaxUndecided = 4096

// ErrGuardFull: more packets are undecided than the guard may hold. Wait for one
// to be decided.
var ErrGuardFull = errors.New("envelope: too many undecided packets: wait for one to be decided")

// Mark names an envelope of ours: its SHA-256.
type Mark [sha256.Size]byte

// MarkOf returns the mark of an envelope.
func MarkOf(envelope []byte) Mark { return sha256.Sum256(envelope) }

// Guard knows the envelopes that we sent and that are undecided, and so refuses
// them when they come back.
//
// The attack: the keys of both directions are the same, so a hop that got our
// packet of 1000 may send us a packet of 990 with the same envelope and condition.
// An endpoint without a guard takes it for the peer's, fulfils it, and so hands
// the hop the fulfilment that claims the 1000.
//
//	Add(envelope) → Mark     the caller saves the mark, then sends
//	Reflected(envelope)      asked for each incoming envelope, before it is opened
//	Remove(mark)             fulfilled, rejected, or expired with the next hop's
//	                         word: then the fulfilment is worth nothing to a hop
//	Restore(marks…)          after a restart, from where they were saved
//
// A Guard is not safe for use at the same time; its owner locks.
type Guard struct {
	limit int
	marks map[Mark]struct{}
}

// NewGuard returns a guard of at most limit undecided envelopes.
func NewGuard(limit int) *Guard {
	return &Guard{limit: limit, marks: make(map[Mark]struct{})}
}

// Add remembers an envelope that is about to be sent.
func (g *Guard) Add(envelope []byte) (Mark, error) {
	if len(g.marks) >= g.limit {
		return Mark{}, ErrGuardFull
	}
	m := MarkOf(envelope)
	g.marks[m] = struct{}{}
	return m, nil
}

// Remove forgets an envelope that was decided.
func (g *Guard) Remove(m Mark) { delete(g.marks, m) }

// Reflected reports whether the envelope is an undecided one of our own.
func (g *Guard) Reflected(envelope []byte) bool {
	if len(g.marks) == 0 {
		return false
	}
	_, ok := g.marks[MarkOf(envelope)]
	return ok
}

// Len returns how many envelopes are undecided.
func (g *Guard) Len() int { return len(g.marks) }

// Restore adds the marks that were saved and not decided before a restart. All
// are taken, past the bound too: a mark left out would be money at risk.
func (g *Guard) Restore(marks iter.Seq[Mark]) { maps.Insert(g.marks, pairs(marks)) }

func pairs(marks iter.Seq[Mark]) iter.Seq2[Mark, struct{}] {
	return func(yield func(Mark, struct{}) bool) {
		for m := range marks {
			if !yield(m, struct{}{}) {
				return
			}
		}
	}
}
