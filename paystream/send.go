package paystream

import (
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

// outgoing is what we know of a packet in flight.
type outgoing struct {
	kind    outKind
	old     bool // from before a restart: its reply cannot be read
	request uint64
	seq     uint64 // the state that it told, of the pair
	pair    uint32
	amount  tally.Amount
	arrived tally.Amount // what we had counted as arrived when it left
	sure    tally.Amount // and what of that the peer had told
	load    *load        // what it carries of streams, if anything
	asset   bool         // it tells our asset
	way     uint64       // and which way back; 0: none
}

// pump sends money as long as some is due and the windows are open.
func (c *Conn) pump(list []*Outgoing, now time.Duration) []*Outgoing {
	due := c.sock.Due()
	if due == 0 {
		if len(c.sock.holds) == 0 {
			c.ctl.Idle()
		}
		return list
	}
	c.ctl.Due(now)
	if r := c.e.roomer.Load(); r != nil {
		if n, ok := (*r).Room(Dest{Peer: c.ident.dest, Via: c.ident.via}); ok {
			c.ctl.SetRoom(n)
		}
	}
	for {
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
		if err := c.budgetHold(send.Amount); err != nil {
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
		list = c.seal(list, outMoney, send.Amount, id)
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
		if o.pair == c.pairs && o.seq == seq && o.arrived == c.sock.arrived {
			return false
		}
	}
	return true
}

// news sends a packet without money that carries the state, and what else there
// is to say.
func (c *Conn) news(list []*Outgoing) []*Outgoing {
	if !c.sess.Confirmed() {
		return list
	}
	c.again = c.again || c.late(c.e.now())
	c.tellTries = min(c.tellTries+1, 20)
	c.tellAt = c.e.now() + Backoff(c.tellTries, jitter(c.e))
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
	return c.seal(list, outNews, 0, PacketID(c.e.entropy.id()))
}

// wayBack writes where packets for us go.
func (c *Conn) wayBack(v *ViaFrame) {
	for i := len(c.ident.via) - 1; i >= 0; i-- {
		v.Add([]byte(c.ident.via[i]))
	}
	v.Add([]byte(c.e.cfg.Self))
}

// seal finishes c.pkt as a prepare and adds it to the list.
func (c *Conn) seal(list []*Outgoing, kind outKind, n tally.Amount, id PacketID) []*Outgoing {
	p := &c.pkt
	p.Kind, p.RequestID, p.Sent = KindPrepare, c.sess.NextCounter(), n
	var seq uint64
	if c.sess.Confirmed() {
		seq = c.state(p)
	}
	p.Replies = append(p.Replies, c.answers...)
	c.answers = c.answers[:0]
	out := outgoing{kind: kind, request: p.RequestID, seq: seq, pair: c.pairs, amount: n, arrived: c.sock.arrived, sure: c.sock.sure}
	if seq != 0 {
		c.introduce(p, &out)
	}
	c.inner = p.Append(c.inner[:0])
	if seq != 0 {
		out.load = c.streams.Fill(p, c.e.now(), MaxInner-len(c.inner), kind == outMoney)
	}
	if out.load != nil {
		c.inner = p.Append(c.inner[:0])
	}
	env, err := c.sess.Seal(nil, KindPrepare, c.inner)
	if err != nil {
		c.stop(err)
		return list
	}
	o := &Outgoing{
		ID: id, Dest: Dest{Peer: c.ident.dest, Via: c.ident.via}, Amount: n,
		Expires: time.Now().Add(PacketTime), Data: env,
	}
	if c.ident.role == RoleClient {
		o.Dest.Token = c.ident.token[:]
	}
	if kind == outMoney {
		o.Condition = c.sess.Condition(env)
		if c.records != nil {
			h := c.sock.holds[id]
			o.Record = func(b *durable.Batch) { c.recordHold(b, id, h) }
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
	c.out[id] = out
	c.e.packetMu.Lock()
	c.e.packets[id] = c
	c.e.packetMu.Unlock()
	return append(list, o)
}

// state writes our totals into p.
func (c *Conn) state(p *Packet) (seq uint64) {
	p.Has |= HasState
	p.State.Seq, p.State.Seen, p.State.Totals = c.sock.State()
	p.State.Received = c.sock.received
	return p.State.Seq
}

// jitter spreads retries.
func jitter(e *Endpoint) uint32 {
	id := e.entropy.id()
	return uint32(id[0])<<24 | uint32(id[1])<<16 | uint32(id[2])<<8
}
