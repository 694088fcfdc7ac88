package paystream

import (
	"fmt"
	"time"

	"github.com/tallystick/tally"
)

// answer is the end of a packet of ours.
func (c *Conn) answer(a *Answer, sent *Outgoing) Record {
	now := c.e.now()
	c.mu.Lock()
	if sent.at < 0 { // its socket was dropped, and all of it that was no money
		c.mu.Unlock()
		return nil
	}
	c.lands(sent)
	o := &sent.flight
	if o.pair == c.pairs && o.seq != 0 && o.seq == c.tellSeq {
		c.telling--
	}
	p, known := c.readReply(a, o, now)
	if known {
		c.heardStreams(p, false)
		c.introduced(o)
		c.meetPeer(p, 0)
	}
	c.landedStreams(o, now, p, known)
	c.finish(a, o, now, p, known)
	if c.sess.Confirmed() && o.kind == outOpen {
		c.tellAt = 0
	}
	money := o.kind == outMoney
	reuse(sent)
	// What follows is sent by another goroutine: it is much, and one look does for all
	// packets that are answered together.
	c.lookSoon()
	gone := c.closed != nil && c.landed()
	c.mu.Unlock()
	if gone {
		c.drop()
	}
	if money {
		return c.records
	}
	return nil
}

// readReply authenticates the payee's part of an answer.
func (c *Conn) readReply(a *Answer, o *flight, now time.Duration) (p *Packet, known bool) {
	if len(a.Data) == 0 || o.old {
		return nil, false
	}
	want := KindReject
	if a.Fulfilled {
		want = KindFulfil
	}
	p = &c.in
	op, err := c.sess.Open(c.plain[:0], a.Data, SessionID{}) // a reply begins no pair at a server
	if err != nil {
		inner, err := c.sess.OpenReopen(c.plain[:0], a.Data)
		if err != nil || p.Decode(inner) != nil || p.RequestID != o.request {
			return nil, false
		}
		c.turnedAway(p.Code)
		return p, false
	}
	c.plain = op.Inner
	if op.Header.Kind != want || p.Decode(op.Inner) != nil || p.Kind != want || p.RequestID != o.request {
		return nil, false
	}
	if o.kind == outOpen && c.turnedAway(p.Code) {
		return p, false
	}
	c.usedAt = now
	c.again = c.again || o.asks
	c.doubt = c.doubt && !op.Fresh
	if op.Began {
		c.began()
	}
	if op.Fresh {
		c.hear(p, o)
	}
	return p, op.Fresh
}

// turnedAway handles an answer of a server that keeps no session for it: the one
// it was sealed in is gone already, so the client begins anew, or not at all.
func (c *Conn) turnedAway(code Code) bool {
	switch {
	case c.ident.role != RoleClient:
		return false
	case code == CodeClosed:
		c.finished(fmt.Errorf("%w: the peer refused the socket", ErrSpent))
	case code == CodeReopen, code == CodeBusy:
		if err := c.sess.Renew(c.e.entropy.id()); err != nil {
			c.stop(err)
		}
		c.resetStreams()
		if code == CodeReopen {
			c.openAt = 0
		}
	default:
		return false
	}
	return true
}

// finish books the end of a packet and tells the control.
func (c *Conn) finish(a *Answer, o *flight, now time.Duration, p *Packet, known bool) {
	var arrived tally.Amount
	if known {
		arrived = p.Amount
	}
	switch o.kind {
	case outProbe:
		c.ctl.Probed(o.amount, arrived, known, a.Most)
		return
	case outMoney:
	default:
		return
	}
	c.dirty = true
	if c.records != nil {
		c.decided = append(c.decided, a.ID)
	}
	ev := Event{Kind: EvRejected, ID: a.ID}
	if a.Fulfilled {
		ev = Event{Kind: EvFulfilled, ID: a.ID, Arrived: arrived, Known: known}
	}
	if _, err := c.sock.Step(&ev); err != nil {
		c.stop(err)
		return
	}
	c.budgetSettle(o.amount, a.Fulfilled)
	c.e.count.decided(o.amount, a.Fulfilled)
	if a.Fulfilled && o.load != nil {
		c.streams.Share(o.load.shares, o.amount, false)
	}
	c.notify()
	if o.old {
		return
	}
	if a.Fulfilled {
		c.ctl.Fulfilled(now, o.amount, arrived, known)
		c.tellAt = max(c.tellAt, now+newsDelay)
		if r := c.ctl.Rate(); known && r.Known() {
			if _, err := c.sock.Step(&Event{Kind: EvRate, Rate: r}); err != nil {
				c.stop(err)
			}
		}
		return
	}
	kind := a.Kind
	if known {
		kind = RejectLimit
	}
	c.ctl.Rejected(now, o.amount, kind, a.Most, c.e.entropy.uint32())
}
