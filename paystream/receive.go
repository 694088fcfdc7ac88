package paystream

import (
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// packet is a prepare for this socket.
func (c *Conn) packet(in *Incoming) Decision {
	now := c.e.now()
	c.mu.Lock()
	d := c.handle(in, now)
	tell := c.ident.role == RoleServer && !c.opened && c.sess.Confirmed()
	c.opened = c.opened || tell
	list := c.due(nil, now)
	c.arm(now)
	gone := c.closed != nil && c.landed()
	c.mu.Unlock()
	if gone {
		c.drop()
	}
	if tell && c.e.cfg.Opened != nil {
		c.e.cfg.Opened(c)
	}
	c.e.enqueue(list)
	return d
}

// handle answers a prepare. Called with mu held; the reply is sealed before
// another packet can change the pair.
func (c *Conn) handle(in *Incoming, now time.Duration) Decision {
	var fresh SessionID // drawn only for a packet that may begin a pair
	if c.ident.role == RoleServer && unaddressed(in.Data) {
		fresh = c.e.entropy.id()
	}
	o, err := c.sess.Open(c.plain[:0], in.Data, fresh)
	if err != nil && !errors.Is(err, ErrReopen) {
		return Decision{}
	}
	c.plain = o.Inner
	p := &c.in
	if bad := p.Decode(o.Inner); bad != nil {
		return Decision{}
	}
	reply := &c.reply
	reply.Reset()
	reply.Kind, reply.Code, reply.RequestID, reply.Amount = KindReject, CodeRead, o.Header.Counter, in.Amount
	if err != nil {
		c.suspect(now)
		reply.Code = CodeReopen
		data, err := c.sess.SealReopen(nil, &o, c.e.entropy.id(), reply.Append(nil))
		if err != nil {
			return Decision{}
		}
		return Decision{Data: data}
	}
	c.usedAt = now
	if p.Has&HasOpen != 0 && c.ident.role == RoleServer && !o.Seen {
		// The way back counts once the client has echoed us: an old Open that is
		// played again moves nothing.
		c.nextTo, c.nextVia = lastOf(&p.Open.ViaFrame)
		c.nextIn = string(p.Open.Asset)
	}
	if o.Began {
		c.began()
		if c.nextTo != "" {
			c.ident.dest, c.ident.via, c.dirty = c.nextTo, c.nextVia, true
			c.peerAsset = Asset{Code: c.nextIn}
		}
	}
	if o.Fresh {
		c.hear(p, nil)
	}
	if o.Fresh && !o.Seen && c.closed == nil {
		if c.stopped != nil {
			c.resume() // the peer still wants something of us, new or not
		}
		c.meetPeer(p, o.Header.Counter)
		reply.Again = c.heardStreams(p, true)
		c.streams.Answer(reply, p)
		if p.Has&HasAssetDetails != 0 && c.e.cfg.Asset.Code != "" {
			c.asset(reply)
		}
	}
	d := Decision{}
	if c.closed != nil {
		reply.Code = CodeClosed
	} else if in.Amount > 0 && o.Fresh && p.Amount > 0 {
		reply.Code = c.receive(in, now, p, &o, &d)
		c.e.count.arrived(in.Amount, d.Fulfil)
		if d.Fulfil {
			reply.Kind = KindFulfil
		}
	}
	if o.Fresh {
		c.state(reply)
		reply.Replies = append(reply.Replies, c.answers...)
		c.answers = c.answers[:0]
		c.sign(reply)
	}
	c.inner = reply.Append(c.inner[:0])
	if cap(c.sealed) > maxSpareData {
		c.sealed = nil
	}
	if c.sealed, err = c.sess.SealReply(c.sealed[:0], &o, reply.Kind, c.inner); err != nil && !d.Fulfil {
		return Decision{}
	}
	d.Data = c.sealed
	return d
}

// unaddressed reports whether an envelope names no session of its receiver.
func unaddressed(env []byte) bool {
	h, err := ParseHeader(env)
	return err == nil && h.Receiver == SessionID{}
}

func lastOf(v *ViaFrame) (to peer.ID, via []peer.ID) {
	for _, id := range v.Via() {
		via = append(via, peer.ID(id))
	}
	if n := len(via); n > 0 {
		return via[n-1], via[:n-1]
	}
	return "", nil
}

// began starts a session whose pair is confirmed.
func (c *Conn) began() {
	if _, err := c.sock.Step(&Event{Kind: EvSession}); err != nil {
		c.stop(err)
	}
	c.told, c.tellAt, c.tellTries = 0, 0, 0
	c.assetTold, c.wayAt = false, 0
	c.pairs++
	c.tellSeq, c.telling = 0, 0
	c.doubt, c.calls, c.again, c.openTries = false, false, false, 0
	c.resume()
	c.resetStreams()
}

// receive is R5, first the socket's and then the token's.
func (c *Conn) receive(in *Incoming, now time.Duration, p *Packet, o *Opened, d *Decision) Code {
	fx, err := c.sock.Step(&Event{
		Kind: EvArrive, ID: in.ID, Amount: in.Amount, Least: p.Amount, Sent: p.Sent,
		Seen: o.Seen, Expired: !c.e.at(now).Before(in.Expires), Opens: o.Preimage.Opens(in.Condition),
	})
	if err == nil && len(fx) > 0 {
		err = fx[0].Err
	} else if err == nil {
		if err = c.budgetReceive(now, in.Amount, c.sock.tolerance(in.Amount)); err != nil {
			if _, err := c.sock.Step(&Event{Kind: EvDrop, ID: in.ID}); err != nil {
				c.stop(err)
			}
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, ErrTooLittle):
		return CodeTooLittle
	case errors.Is(err, ErrFull), errors.Is(err, ErrSpent):
		return CodeFull
	case errors.Is(err, ErrThin):
		return CodeThin
	case errors.Is(err, ErrBusy):
		return CodeBusy
	default:
		return CodeRefused
	}
	if _, err := c.sock.Step(&Event{Kind: EvTake, ID: in.ID}); err != nil {
		return CodeRefused
	}
	c.tellAt, c.dirty = max(c.tellAt, now+newsDelay), true
	c.streams.Share(p.Money, in.Amount, true)
	c.streamNews()
	d.Fulfil, d.Preimage, d.Record = true, o.Preimage, c.records
	c.notify()
	return CodeUnset
}

// hear takes what a packet of a confirmed session tells; o is the packet of ours
// that it answers, if any.
func (c *Conn) hear(p *Packet, o *flight) {
	if p.Has&HasState != 0 && o != nil && p.State.Received < o.sure {
		c.finished(ErrForgotten)
		return
	}
	if p.Has&HasState != 0 {
		ev := Event{Kind: EvState, Seq: p.State.Seq, SeenSeq: p.State.Seen, Totals: p.State.Totals}
		if o != nil {
			ev.Known, ev.Amount, ev.Arrived = true, p.State.Received, o.arrived
		}
		_, err := c.sock.Step(&ev)
		if err == nil {
			c.again = false
			if c.stopped != nil {
				c.resume() // the peer spoke
			}
		}
		if err == nil || errors.Is(err, ErrStale) { // a state of before tells, too, what the peer has seen
			c.notify()
		}
		if c.written && !c.ident.live && !c.settled() {
			// What the peer asks is kept, so that it need not ask again after a restart.
			c.dirty = true
			c.e.saveLater(c.record)
		}
	}
	for i := range p.Proposals {
		f := &p.Proposals[i]
		ok, known := c.proposals[f.ID]
		if !known {
			if len(c.proposals) >= maxProposals {
				clear(c.proposals)
			}
			if c.e.cfg.Proposed != nil {
				ok = c.e.cfg.Proposed(c, Proposal{ID: f.ID, MinDelta: f.MinDelta, MaxDelta: f.MaxDelta, Memo: string(f.Memo)})
			}
			c.proposals[f.ID] = ok
		}
		if len(c.answers) < maxProposals/2 {
			c.answers = append(c.answers, ProposalReplyFrame{ID: f.ID, Accepted: ok})
		}
	}
	for _, f := range p.Replies {
		if st := c.asked[f.ID]; st != nil && !st.decided {
			st.decided, st.accepted = true, f.Accepted
			c.notify()
		}
	}
	for _, f := range p.Requests {
		if len(c.requests) < 4 { // a signature costs more than a packet
			c.requests = append(c.requests, f.Nonce)
		}
	}
	for i := range p.Receipts {
		f := &p.Receipts[i]
		if r := c.wanted[f.Nonce]; r != nil && r.Signature == nil && len(f.Signature) > 0 {
			*r = Receipt{Payee: c.ident.dest, Socket: c.ident.id, Nonce: f.Nonce, Total: f.Total, Time: int64(f.Time), Signature: append([]byte(nil), f.Signature...)}
			c.notify()
		}
	}
	if p.Has&HasClose != 0 {
		c.finished(ErrPeerClosed)
	}
}
