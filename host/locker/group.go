package locker

import (
	"github.com/tallystick/tally/paystream/lock"
)

// group is what its items, which are stepped together, are about.
type group struct {
	n     int
	alone bool
	lanes map[uint64]bool
	freed bool // one of the lanes is open: an offer could take it
}

// admits reports whether an item may be stepped with those before it, and adds it.
func (g *group) admits(l *line, it *item) bool {
	lane, one := l.slots.LaneOf(&it.ev)
	offer := !it.tell && !one && it.ev.Kind == lock.EvOffer && !it.ev.Long
	alone := it.tell || !one && !offer
	switch {
	case g.n == 0:
	case alone, g.alone, one && g.lanes[lane], offer && g.freed:
		return false
	}
	g.n++
	g.alone = alone
	if one && !alone {
		g.take(lane)
	}
	return true
}

func (g *group) take(lane uint64) {
	if g.lanes == nil {
		g.lanes = make(map[uint64]bool)
	}
	g.lanes[lane] = true
}

// stepped notes what an item of the group has asked for.
func (g *group) stepped(l *line, fx []lock.Effect) {
	for i := range fx {
		g.take(fx[i].Lane) // that of an offer is known now
	}
	for lane := range g.lanes {
		g.freed = g.freed || l.slots.IsOpen(lane)
	}
}
