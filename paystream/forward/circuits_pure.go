package forward

import "github.com/tallystick/tally/internal/inflight"

// circuits are those of one neighbour in one direction, by the id of the packet there.
type circuits struct{ inflight.Map[*circuit] }

// at returns the circuit of a packet, or nil.
func (c *circuits) at(id uint64) *circuit {
	found, _ := c.Get(id)
	return found
}
