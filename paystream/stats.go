package paystream

import (
	"sync/atomic"

	"github.com/tallystick/tally"
)

// counters are of packets with money.
type counters struct {
	sent, received                      atomic.Uint64 // units
	fulfilled, rejected, taken, refused atomic.Uint64
}

// Stats are counts since the start, over all sockets. Nothing in them tells of one
// peer.
type Stats struct {
	// Sockets in memory, and records of others.
	Sockets, Stored int
	// Sent and Received are units of packets that were fulfilled.
	Sent, Received tally.Amount
	// Packets of ours that were fulfilled and rejected, and of peers that we took
	// and refused.
	Fulfilled, Rejected, Taken, Refused uint64
}

// Stats returns the counts.
func (e *Endpoint) Stats() Stats {
	e.mu.Lock()
	s := Stats{Sockets: len(e.conns), Stored: len(e.stored)}
	e.mu.Unlock()
	s.Sent, s.Received = tally.Amount(e.count.sent.Load()), tally.Amount(e.count.received.Load())
	s.Fulfilled, s.Rejected = e.count.fulfilled.Load(), e.count.rejected.Load()
	s.Taken, s.Refused = e.count.taken.Load(), e.count.refused.Load()
	return s
}

// decided counts a packet of ours.
func (c *counters) decided(n tally.Amount, ok bool) {
	if !ok {
		c.rejected.Add(1)
		return
	}
	c.fulfilled.Add(1)
	c.sent.Add(uint64(n))
}

// arrived counts a packet of a peer.
func (c *counters) arrived(n tally.Amount, ok bool) {
	if !ok {
		c.refused.Add(1)
		return
	}
	c.taken.Add(1)
	c.received.Add(uint64(n))
}
