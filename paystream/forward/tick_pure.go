package forward

import (
	"maps"
	"slices"
)

// tick ends what time ends.
func (h *Hop) tick(now int64, fx []Effect) []Effect {
	for _, p := range slices.Sorted(maps.Keys(h.links)) { // the same in every run
		l := h.links[p]
		if l == nil {
			continue // an undo before it was its last
		}
		fx = h.sendAcks(l, fx)
		late, over := false, false
		for _, c := range l.out.All() {
			late = late || now >= c.expiresOut
			over = over || now >= c.expiresOut+lateHold
		}
		if over {
			for _, id := range l.out.IDs() {
				if c := l.out.at(id); now >= c.expiresOut+lateHold {
					fx = h.undo(c, h.timeout(), fx)
				}
			}
		}
		if late && l.out.Len() > 0 && l.up && l.answered == l.asked {
			fx = h.ask(l, fx)
		}
		fx = h.tickIn(now, l, fx)
		h.drop(l)
	}
	return fx
}

// tickIn ends the packets of a neighbour whose time is over and that no other
// node decides.
func (h *Hop) tickIn(now int64, l *link, fx []Effect) []Effect {
	over := func(c *circuit) bool {
		return c.fulfilled && now >= c.expiresIn+lateHold || !c.fulfilled && c.out == nil && now >= c.ends()
	}
	var due []uint64
	for id, c := range l.in.All() {
		if over(c) {
			due = append(due, id)
		}
	}
	for _, id := range due {
		c := l.in.at(id)
		if c.fulfilled {
			// Nobody honours it any more. The tab keeps it; the next statement
			// closes the difference.
			fx = h.acked(l, id, fx)
			continue
		}
		m := h.message(MsgReject, id)
		m.Code, m.Part = CodeRefused, c.part
		kept := c.kept
		if fx, _ = h.rejectOurs(&Event{Peer: l.peer, ID: id, Msg: m}, fx); kept { // it is ours and live
			fx = append(fx, Effect{Kind: FxGone, Msg: m})
		}
	}
	return fx
}
