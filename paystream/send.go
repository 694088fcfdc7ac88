package paystream

import (
	"sync"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// outKind says what a packet of ours is for.
type outKind uint8

const (
	outOpen outKind = iota + 1
	outProbe
	outNews
	outMoney
	outCall
)

// flight is what we know of a packet in flight.
type flight struct {
	kind    outKind
	old     bool // from before a restart: its reply cannot be read
	request uint64
	seq     uint64 // the state that it told, of the pair
	pair    uint32
	amount  tally.Amount
	arrived tally.Amount // what we had counted as arrived when it left
	sure    tally.Amount // and what of that the peer had told
	load    *load        // what it carries of streams, if anything
	asks    bool         // it asks a peer that was silent for long
	asset   bool         // it tells our asset
	way     uint64       // and which way back; 0: none
}

// pumpAtOnce bounds the packets that one look makes, so that the first leaves while the
// others are sealed, and that answers are not kept waiting for the lock.
const pumpAtOnce = 16

// pump sends money as long as some is due and the windows are open.
func (c *Conn) pump(list []*Outgoing, now time.Duration) []*Outgoing {
	due := c.sock.Due()
	if due == 0 {
		if c.sock.holds.Len() == 0 {
			c.ctl.Idle()
		}
		return list
	}
	before := len(list)
	c.ctl.Due(now)
	if r := c.e.roomer.Load(); r != nil {
		if n, ok := (*r).Room(Dest{Peer: c.ident.dest, Via: c.ident.via}); ok {
			c.ctl.SetRoom(n)
		}
	}
	for {
		if len(list)-before >= pumpAtOnce {
			c.lookSoon()
			return list
		}
		if err := c.ctl.Stopped(now); err != nil {
			c.stop(err)
			return list
		}
		room := c.ctl.Room(now)
		if room == 0 || c.sock.Due() == 0 {
			return list
		}
		id := PacketID(c.e.entropy.id())
		fx, err := c.sock.Step(&Event{Kind: EvPump, ID: id, Amount: room})
		if err != nil {
			return list
		}
		send := fx[1]
		c.dirty = true
		if err := c.budgetHold(now, send.Amount); err != nil {
			// Another socket of this token was faster.
			if _, err := c.sock.Step(&Event{Kind: EvRejected, ID: id}); err != nil {
				c.stop(err)
			}
			c.stop(err)
			return list
		}
		c.ctl.Sent(now, send.Amount)
		c.pkt.Reset()
		c.pkt.Amount = send.Least
		list = c.seal(list, now, outMoney, send.Amount, id)
	}
}

// maxAsked bounds the proposals, and the questions for receipts, of one packet; the
// next one has others. With the frames of streams they are within maxFrames.
const maxAsked = 8

// mustTell reports whether the peer has to hear something that no packet in
// flight tells.
func (c *Conn) mustTell(now time.Duration) bool {
	if !c.sess.Confirmed() {
		return false
	}
	if len(c.asked) > 0 || len(c.wanted) > 0 || len(c.answers) > 0 || len(c.requests) > 0 {
		return true
	}
	if c.wayTold != c.way || c.streams.Live() && now >= c.usedAt+keepAlive {
		return true
	}
	unsure := c.sock.Unsure()
	if !c.sock.Untold() && !unsure && !c.doubt && !c.late(now) {
		c.tellTries = 0
		return false
	}
	seq, _, _ := c.sock.State()
	if !unsure {
		return c.tellSeq != seq || c.telling == 0
	}
	for _, o := range c.out { // nothing with money is among them
		if f := &o.flight; f.pair == c.pairs && f.seq == seq && f.arrived == c.sock.arrived {
			return false
		}
	}
	return true
}

// news sends a packet without money that carries the state, and what else there
// is to say.
func (c *Conn) news(list []*Outgoing, now time.Duration) []*Outgoing {
	if !c.sess.Confirmed() {
		return list
	}
	asks := c.late(now)
	c.tellTries = min(c.tellTries+1, 20)
	c.tellAt = now + Backoff(c.tellTries, c.e.entropy.uint32())
	c.pkt.Reset()
	for _, st := range c.asked {
		if !st.decided && len(c.pkt.Proposals) < maxAsked {
			c.pkt.Proposals = append(c.pkt.Proposals, st.frame)
		}
	}
	for nonce, r := range c.wanted {
		if r.Signature == nil && len(c.pkt.Requests) < maxAsked {
			c.pkt.Requests = append(c.pkt.Requests, ReceiptRequestFrame{Nonce: nonce})
		}
	}
	if c.closing {
		c.pkt.Has |= HasClose
		c.pkt.Close = CloseFrame{Sent: c.sock.sent, Received: c.sock.received}
	}
	sealed := len(list)
	list = c.seal(list, now, outNews, 0, PacketID(c.e.entropy.id()))
	for _, o := range list[sealed:] {
		o.flight.asks = asks
	}
	return list
}

// wayBack writes where packets for us go.
func (c *Conn) wayBack(v *ViaFrame) {
	for i := len(c.ident.via) - 1; i >= 0; i-- {
		v.Add([]byte(c.ident.via[i]))
	}
	v.Add([]byte(c.e.cfg.Self))
}

// seal finishes c.pkt as a prepare and adds it to the list.
func (c *Conn) seal(list []*Outgoing, now time.Duration, kind outKind, n tally.Amount, id PacketID) []*Outgoing {
	p := &c.pkt
	p.Kind, p.RequestID, p.Sent = KindPrepare, c.sess.NextCounter(), n
	var seq uint64
	if c.sess.Confirmed() {
		seq = c.state(p)
	}
	p.Replies = append(p.Replies, c.answers...)
	c.answers = c.answers[:0]
	o := c.outgoing()
	f := &o.flight
	*f = flight{kind: kind, request: p.RequestID, seq: seq, pair: c.pairs, amount: n, arrived: c.sock.arrived, sure: c.sock.sure}
	if seq != 0 {
		c.introduce(p, f)
	}
	c.inner = p.Append(c.inner[:0])
	if seq != 0 {
		f.load = c.streams.Fill(p, now, MaxInner-len(c.inner), kind == outMoney)
	}
	if f.load != nil {
		c.inner = p.Append(c.inner[:0])
	}
	env, err := c.sess.Seal(o.Data[:0], KindPrepare, c.inner)
	if err != nil {
		c.stop(err)
		return list
	}
	o.ID, o.Amount, o.Expires, o.Data = id, n, c.e.at(now+PacketTime), env
	o.Dest = Dest{Peer: c.ident.dest, Via: c.ident.via}
	if c.ident.role == RoleClient {
		o.Dest.Token = c.ident.token[:]
	}
	o.Record = nil
	if kind == outMoney {
		o.Preimage, o.Condition = c.sess.Condition(env)
		if c.records != nil {
			h, _ := c.sock.holds.Get(id)
			o.Record = func(b *durable.Batch) { c.recordHold(b, o, h) }
		}
	} else {
		a, b := c.e.entropy.id(), c.e.entropy.id()
		copy(o.Condition[:16], a[:])
		copy(o.Condition[16:], b[:])
	}
	if seq != 0 {
		if c.tellSeq != seq {
			c.tellSeq, c.telling = seq, 0
		}
		c.telling++
	}
	c.flies(o)
	return append(list, o)
}

// outgoings are packets that are decided, for their memory.
var outgoings = sync.Pool{New: func() any { return new(Outgoing) }}

func (c *Conn) outgoing() *Outgoing {
	o := outgoings.Get().(*Outgoing)
	o.conn = c
	return o
}

// flies notes that o is in flight.
func (c *Conn) flies(o *Outgoing) {
	o.at = len(c.out)
	c.out = append(c.out, o)
}

// lands notes that o is decided.
func (c *Conn) lands(o *Outgoing) {
	last := c.out[len(c.out)-1]
	c.out[o.at], last.at = last, o.at
	c.out[len(c.out)-1] = nil
	c.out = c.out[:len(c.out)-1]
	o.at = -1
}

// maxSpareData bounds the envelope that is kept with a packet, or with a socket, for its
// memory.
const maxSpareData = 512

// reuse gives back a packet that was decided, and that its carrier does not hold any
// more. The record of one may still be called, and asks whether it was.
func reuse(o *Outgoing) {
	if cap(o.Data) <= maxSpareData && o.Record == nil {
		*o = Outgoing{Data: o.Data[:0], at: -1}
		outgoings.Put(o)
	}
}

// state writes our totals into p.
func (c *Conn) state(p *Packet) (seq uint64) {
	p.Has |= HasState
	p.State.Seq, p.State.Seen, p.State.Totals = c.sock.State()
	p.State.Received = c.sock.received
	return p.State.Seq
}
