package host

import (
	"math/bits"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
	"github.com/tallystick/tally/paystream/payments/route"
	"github.com/tallystick/tally/protocols/packetnet"
	"github.com/tallystick/tally/swap"
)

// lockWays tells what locks need of time.
type lockWays interface {
	// lockTime is what the hops of a way, the first neighbour at its begin, add to the
	// time of a part that this neighbour takes under a lock alone, as it does under a
	// point; else 0.
	lockTime(way []peer.ID, amount tally.Amount, point bool) time.Duration
	// lockCertainBy is when a part under a lock is decided that expires then.
	lockCertainBy(expires time.Time) time.Time
}

var _ lockWays = (*Node)(nil)

// lockTime sums what neighbours say of their hop deltas: the first in its hello, the
// others in adverts. None counts for less than ours.
func (n *Node) lockTime(way []peer.ID, amount tally.Amount, point bool) time.Duration {
	room, err := n.book.HeadroomPacket(way[0], swap.Consume)
	lane, ok := n.locks.Way(way[0])
	if err != nil || !ok || amount <= room && !point || amount > lane.Free || amount < n.locks.Least() {
		return 0
	}
	terms, epoch := n.locks.Terms(), n.locks.epoch()
	least := time.Duration(terms.Delta()) * epoch
	info, _ := n.packets.Info(way[0])
	sum := max(least, time.Duration(info.LockDelta)*epoch)
	for i := range way[1:] {
		hop := least
		if n.adverts != nil {
			hop = max(hop, n.adverts.lockDelta(way[i], way[i+1]))
		}
		sum += hop
	}
	// Heads differ, and epochs begin late: both take from both ends of each hop.
	return sum + time.Duration(len(way))*time.Duration(terms.Skew+1)*epoch
}

func (n *Node) lockCertainBy(expires time.Time) time.Time {
	terms, clock, ok := n.locks.Times()
	if !ok {
		return expires
	}
	until := clock.At(expires.UnixMilli()) + terms.Least() + terms.Skew
	return time.UnixMilli(clock.Over(until + terms.Finality)).Add(certainSlack)
}

// lockedTo reports whether a neighbour has a channel to us and takes locks.
func (n *Node) lockedTo(p peer.ID, info packetnet.Info) bool {
	if n.locks == nil || info.LockDelta == 0 {
		return false
	}
	_, _, ok := n.locks.links.Linked(p, false)
	return ok
}

// advertise says in an advert of ours what its neighbour takes under locks.
func (l *Locks) advertise(ad *route.Advert) {
	way, ok := l.Way(ad.To)
	if !ok {
		return
	}
	terms := l.Terms()
	ad.Modes |= route.ModeLock
	ad.Capacity = max(ad.Capacity, coarse(min(way.Free, payments.MaxTotal-1)))
	ad.HopDelta = uint32((time.Duration(terms.Delta()) * l.every).Milliseconds())
}

// coarse rounds down to three bits, so that an advert does not change with every lock.
func coarse(n tally.Amount) tally.Amount {
	if bits := bits.Len64(uint64(n)); bits > 3 {
		return n >> (bits - 3) << (bits - 3)
	}
	return n
}

// longest is what a lock of ours to p can carry, and until when a packet that is our own
// may last under it, in milliseconds since 1970.
func (l *Locks) longest(p peer.ID) (tally.Amount, int64) {
	way, ok := l.Way(p)
	terms, clock, seen := l.Times()
	if !ok || !seen {
		return 0, 0
	}
	// The lock outlasts its packet by what the payee needs; heads differ at both ends.
	return way.Free, clock.Begins(terms.Furthest(clock.Head) - terms.Least() - 2*terms.Skew - 2)
}

// between is by how much a lock of ours ends later than one that is paid out of it, in
// wall time: the hop delta, and what heads differ by.
func (l *Locks) between() time.Duration {
	terms := l.Terms()
	return time.Duration(terms.Delta()+2*terms.Skew+2) * l.every
}
