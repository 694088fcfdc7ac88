package forward

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
)

// fulfil books a packet that the next node showed the preimage of, and passes
// the preimage on. The tabs and the record are saved first.
func (h *Hop) fulfil(now int64, l *link, m *Msg, fx []Effect) ([]Effect, error) {
	c := l.out.at(m.ID)
	if c == nil {
		// Decided before, or after the late hold: in both cases nothing is left
		// to be booked, and the neighbour may stop repeating it.
		return h.ack(l, m.ID, fx), nil
	}
	if now >= c.expiresOut+lateHold {
		return h.undo(c, h.timeout(), fx), nil // who repeats it is acked
	}
	if !c.expects(&m.Preimage) && !h.opens(&c.condition, &m.Preimage) {
		return fx, errPreimage
	}
	if c.in != nil && !c.lockedIn() {
		if err := h.account.Commit(c.in.peer, c.inID, In); err != nil {
			return fx, fmt.Errorf("forward: book packet %d of %s: %w", c.inID, c.in.peer, err)
		}
	}
	if err := h.account.Commit(l.peer, m.ID, Out); err != nil {
		return fx, fmt.Errorf("forward: book packet %d to %s: %w", m.ID, l.peer, err)
	}
	id := m.ID
	l.take(c)
	delete(h.parts, c.part)
	if c.in != nil {
		return h.ack(l, id, h.settle(c, m, fx)), nil
	}
	return h.ack(l, id, h.paid(c, m, fx)), nil
}

// paid ends a packet of our own that was fulfilled.
func (h *Hop) paid(c *circuit, m *Msg, fx []Effect) []Effect {
	m.Part = c.part
	if fx = h.keepResult(c, m, fx); h.journal && !c.kept { // with the tab, in one batch
		fx = append(fx, Effect{Kind: FxSave, Key: c.key})
	}
	fx = append(fx, Effect{Kind: FxResult, Ref: c.ref, Kept: c.kept, Msg: m})
	h.recycle(c)
	return fx
}

// settle ends the out side of a circuit and tells the in side.
func (h *Hop) settle(c *circuit, m *Msg, fx []Effect) []Effect {
	c.fulfilled, c.preimage = true, m.Preimage
	if c.out != nil {
		h.earned += c.amountIn - c.amountOut
		if c.amountIn != c.amountOut && h.journal {
			fx = append(fx, Effect{Kind: FxSave, Key: counterKey, Record: h.counterRecord()})
		}
	}
	c.out = nil
	fx = h.save(c, fx)
	if c.lockedIn() {
		return h.show(c, m, fx)
	}
	m.Kind, m.ID = MsgFulfil, c.inID
	return append(fx, Effect{Kind: FxSend, Peer: c.in.peer, Msg: m})
}

// ack tells that a fulfil was booked, with the next packet to the same neighbour or the
// next tick: nobody waits for it, and a message of its own would cost both nodes more
// than what it says.
func (h *Hop) ack(l *link, id uint64, fx []Effect) []Effect {
	if l.acks = append(l.acks, id); len(l.acks) >= MaxAckIDs {
		return h.sendAcks(l, fx)
	}
	return fx
}

// sendAcks comes before each prepare, so that the neighbour never sees more in flight
// than it takes.
func (h *Hop) sendAcks(l *link, fx []Effect) []Effect {
	if len(l.acks) == 0 {
		return fx
	}
	m := h.message(MsgFulfilAck, l.acks[0])
	m.Fulfilled = append(m.Fulfilled, l.acks[1:]...)
	l.acks = l.acks[:0]
	return append(fx, Effect{Kind: FxSend, Peer: l.peer, Msg: m})
}

// acked: the debtor has booked a packet, and nothing of it is left to do.
func (h *Hop) acked(l *link, id uint64, fx []Effect) []Effect {
	c := l.in.at(id)
	if c == nil || !c.fulfilled {
		return fx
	}
	l.in.Delete(id)
	fx = h.forget(c, fx)
	h.recycle(c)
	return fx
}

// undo releases a packet that we offered and passes m, a reject, on.
func (h *Hop) undo(c *circuit, m *Msg, fx []Effect) []Effect {
	if c.lockedOut() {
		delete(c.out.locks.out, c.key)
	} else {
		h.release(c.out.peer, c.key, Out)
		c.out.take(c)
	}
	delete(h.parts, c.part)
	h.drop(c.out)
	m.Kind, m.Part = MsgReject, c.part
	if fx = h.keepResult(c, m, fx); c.in != nil || !c.kept {
		fx = h.forget(c, fx)
	}
	if c.in == nil {
		fx = append(fx, Effect{Kind: FxResult, Ref: c.ref, Kept: c.kept, Msg: m})
	} else {
		if m.Hop != hopUnknown {
			m.Hop++ // it is one more for who gets it
		}
		if c.lockedIn() {
			fx = h.give(c, m, fx)
			h.recycle(c)
			return fx
		}
		h.release(c.in.peer, c.inID, In)
		c.in.in.Delete(c.inID)
		h.drop(c.in)
		m.ID = c.inID
		fx = append(fx, Effect{Kind: FxSend, Peer: c.in.peer, Msg: m})
	}
	h.recycle(c)
	return fx
}

// release gives room back that this core took. The tab may have lost it in a
// restore; then there is nothing to give.
func (h *Hop) release(p peer.ID, id uint64, dir Dir) { _ = h.account.Release(p, id, dir) }

func (h *Hop) timeout() *Msg {
	m := h.message(MsgReject, 0)
	m.Code, m.Hop = CodeTimeout, hopIn
	return m
}
