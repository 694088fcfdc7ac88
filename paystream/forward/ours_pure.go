package forward

import (
	"errors"
	"fmt"
)

// ErrNotHeld: a decision about a packet that is not here, or not any more: it
// was decided, or its time was over.
var ErrNotHeld = errors.New("forward: no such packet is waiting for a decision")

func (h *Hop) ours(ev *Event) *circuit {
	l := h.links[ev.Peer]
	if l == nil {
		return nil
	}
	c := l.in.at(ev.ID)
	if c == nil && l.locks != nil {
		c = l.locks.in[ev.ID]
	}
	if c == nil || c.out != nil || c.fulfilled || c.lk != nil && c.lk.shown {
		return nil
	}
	return c
}

// keepOurs lets a packet that is for us wait on disk.
func (h *Hop) keepOurs(ev *Event, fx []Effect) ([]Effect, error) {
	c := h.ours(ev)
	if c == nil || c.kept || len(ev.Msg.Data)+len(ev.Msg.Token) > MaxKept {
		return fx, ErrNotHeld
	}
	c.kept = true
	if !h.journal {
		return fx, nil
	}
	c.key, fx = h.takeID(fx)
	return h.saveKept(c, ev.Msg, fx), nil
}

// keepResult saves what became of a packet of our own that its sender keeps, in
// the place of the packet.
func (h *Hop) keepResult(c *circuit, m *Msg, fx []Effect) []Effect {
	if c.in != nil || !c.kept || !h.journal {
		return fx
	}
	h.results[c.part] = c.key
	return append(fx, Effect{Kind: FxSave, Key: c.key, Record: resultRecord(m)})
}

func (h *Hop) forgetResult(part PartID, fx []Effect) []Effect {
	key, ok := h.results[part]
	if !ok {
		return fx
	}
	delete(h.results, part)
	return append(fx, Effect{Kind: FxDelete, Key: key})
}

// fulfilOurs shows the preimage of a packet that is for us. One that is kept may be
// shown late: its endpoint had claimed it in time, and stopped before it said so.
func (h *Hop) fulfilOurs(now int64, ev *Event, fx []Effect) ([]Effect, error) {
	c := h.ours(ev)
	switch {
	case c == nil:
		return fx, ErrNotHeld
	case c.lockedIn():
		return h.fulfilLocked(c, ev, fx)
	case now >= c.ends():
		return fx, ErrNotHeld // tick rejects what is over
	}
	if !ev.Opens && !h.opens(&c.condition, &ev.Msg.Preimage) {
		return fx, errPreimage
	}
	if err := h.account.Commit(ev.Peer, ev.ID, In); err != nil {
		return fx, fmt.Errorf("forward: book packet %d of %s: %w", ev.ID, ev.Peer, err)
	}
	delete(h.parts, c.part)
	if h.journal && c.key == 0 {
		c.key, fx = h.takeID(fx)
	}
	return h.settle(c, ev.Msg, fx), nil
}

func (h *Hop) rejectOurs(ev *Event, fx []Effect) ([]Effect, error) {
	c := h.ours(ev)
	if c == nil {
		return fx, ErrNotHeld
	}
	delete(h.parts, c.part)
	if c.key != 0 { // synced: a packet that came back would be claimed in vain
		fx = append(fx, Effect{Kind: FxSave, Key: c.key})
	}
	if c.lockedIn() {
		ev.Msg.Hop = hopOut
		return h.give(c, ev.Msg, fx), nil
	}
	h.release(ev.Peer, ev.ID, In)
	l := c.in
	l.in.Delete(ev.ID)
	h.drop(l)
	h.recycle(c)
	ev.Msg.Kind, ev.Msg.ID, ev.Msg.Hop = MsgReject, ev.ID, hopOut
	return append(fx, Effect{Kind: FxSend, Peer: ev.Peer, Msg: ev.Msg}), nil
}
