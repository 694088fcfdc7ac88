package forward

import (
	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/inflight"
)

// circuit is one packet at this node.
//
//	            offered                fulfilled
//	prepare ──▶ both sides held ──▶ both sides booked, fulfil sent ──▶ acked: gone
//	                  │
//	                  └──▶ rejected, timed out: both released, gone
//
// A packet of our own has no in side and is gone once it is decided; where its
// sender keeps it, what became of it stays until that is forgotten. A packet for us
// has no out side; where its endpoint keeps it, it waits on disk until it is decided.
type circuit struct {
	// key names the record in the journal; where there is an out side it is the
	// packet's id there.
	key uint64

	in        *link // nil: our own packet
	inID      uint64
	amountIn  tally.Amount
	expiresIn int64

	out        *link // nil: for us
	amountOut  tally.Amount
	expiresOut int64
	// mark is the number of syncs we had asked for when the packet left: a
	// later one has to know it.
	mark uint64

	size      int // of the data, of a packet that we offered
	condition Condition
	part      PartID
	fulfilled bool
	// kept: of a packet for us, that its endpoint decides it, and no clock before
	// the late hold is over; of one of our own, that its result is kept.
	kept bool
	// preimage of a packet that was fulfilled; of one of our own, what its sender
	// expects, if anything.
	preimage tally.Preimage
	ref      uint64  // of a packet of our own; 0: sent before a restart
	lk       *locked // nil: both sides are on credit
}

// expects reports whether p is what the sender of a packet of our own said.
func (c *circuit) expects(p *tally.Preimage) bool {
	return c.preimage == *p && c.preimage != tally.Preimage{}
}

// ends is when a packet for us that nobody decides is rejected.
func (c *circuit) ends() int64 {
	if c.kept {
		return c.expiresIn + lateHold
	}
	return c.expiresIn
}

func (h *Hop) newCircuit() *circuit {
	if n := len(h.spare); n > 0 {
		c := h.spare[n-1]
		h.spare = h.spare[:n-1]
		return c
	}
	return new(circuit)
}

// maxSpare bounds the circuits that are kept for reuse: about 1 MiB.
const maxSpare = 4096

func (h *Hop) recycle(c *circuit) {
	if len(h.spare) < maxSpare {
		*c = circuit{}
		h.spare = append(h.spare, c)
	}
}

// circuits are those of one neighbour in one direction, by the id of the packet there.
type circuits struct{ inflight.Map[*circuit] }

// at returns the circuit of a packet, or nil.
func (c *circuits) at(id uint64) *circuit {
	found, _ := c.Get(id)
	return found
}
