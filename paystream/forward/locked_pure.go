package forward

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/lock"
)

// Each side of a circuit is on credit or under a lock. A side under a lock touches no
// tab, and what becomes of it only the channel says:
//
//	prepare with LOCK ─▶ arrived ── EvLockTaken ─▶ held ─▶ on, or to our endpoint
//	                        │                        │
//	                        └── EvLockEnded: gone    ├─ FxShow ── EvLockShown ─▶ gone
//	                                                 └─ FxGive: gone, CANCEL
//
//	FxOffer ─▶ offered ── EvLockDecided ─▶ the way in is fulfilled, or fails
//
// What is here of a lock is what the hop needs; vouchers, preimages that were shown
// and the chain are with whoever keeps the channels. No clock of ours ends a side
// under a lock.

// Locks is what channels can carry, as far as packets need it. Like Account it is
// called in a step and answers from memory.
type Locks interface {
	// Times are the times of the chain, and how it stands to our clock now; false
	// where the chain was not seen yet.
	Times() (lock.Terms, lock.Clock, bool)
	// Room is what a channel to p can carry; false where there is none with a free
	// slot, or p takes no locks.
	Room(p peer.ID) (Room, bool)
	// Least is the least amount that a lock is worth: to claim it from the chain would
	// cost as much.
	Least() tally.Amount
}

// Room is what a channel can carry under locks.
type Room struct {
	// Free is its free money, Slots are all its slots.
	Free  tally.Amount
	Slots int
	// Coming is what more is on its way into the channel, which is being opened or topped
	// up, or was and is not ready yet. It is told where there is no channel as well.
	Coming tally.Amount
	// Points: a lock under a point can be made in it, and p takes one.
	Points bool
}

const (
	// maxArrived bounds the locks of one neighbour that are not held yet: it may have
	// two channels to us, one of them ending.
	maxArrived = 2 * lock.MaxSlots
	// laneSyncBurst and laneSyncEvery bound how often a neighbour may tell its lanes:
	// each makes us send again up to 64 locks. An honest one tells each channel once a
	// session, and once more when it has seen the chain.
	laneSyncBurst = 16
	laneSyncEvery = 1000 // ms
)

// locked is what a circuit with a side under a lock has beside the rest.
type locked struct {
	in, out bool
	// until are the last epochs of the locks.
	inUntil, outUntil int64
	// offer is the prepare that goes with our lock, as often as that is sent.
	offer *Msg
	// room is what would have fitted the tab.
	room tally.Amount
	// why is how the neighbour explained its CANCEL.
	why *Msg
	// shown: a decision of our endpoint is on its way to the channel.
	shown bool
}

// lockSide is what a link has of locks.
type lockSide struct {
	in      map[uint64]*circuit // the neighbour's, by its id: held
	out     map[uint64]*circuit // ours
	arrived map[uint64]*Msg     // prepares whose lock is not held yet
}

func (s *lockSide) empty() bool { return s == nil || len(s.in)+len(s.out)+len(s.arrived) == 0 }

func (l *link) lockSide() *lockSide {
	if l.locks == nil {
		l.locks = &lockSide{in: make(map[uint64]*circuit), out: make(map[uint64]*circuit), arrived: make(map[uint64]*Msg)}
	}
	return l.locks
}

// lockIn is the circuit of a lock of the neighbour, and lockOut of one of ours.
func (l *link) lockIn(id uint64) *circuit {
	if l == nil || l.locks == nil {
		return nil
	}
	return l.locks.in[id]
}

func (l *link) lockOut(id uint64) *circuit {
	if l == nil || l.locks == nil {
		return nil
	}
	return l.locks.out[id]
}

// lockedIn and lockedOut are the one test that a packet on credit pays.
func (c *circuit) lockedIn() bool  { return c.lk != nil && c.lk.in }
func (c *circuit) lockedOut() bool { return c.lk != nil && c.lk.out }

// receiveLock takes a message about a lock. All go on to the channel, in their order.
func (h *Hop) receiveLock(now int64, l *link, m *Msg, fx []Effect) ([]Effect, error) {
	if h.locks == nil {
		if m.Kind == MsgPrepare {
			return h.refuse(l, m.ID, hopIn, CodeUnsupported, 0, fx), nil
		}
		return fx, nil
	}
	switch m.Kind {
	case MsgPrepare:
		if l.lockIn(m.ID) == nil { // else it is told again
			s := l.lockSide()
			if _, again := s.arrived[m.ID]; !again && len(s.arrived) >= maxArrived {
				return fx, errArrivals
			}
			s.arrived[m.ID] = cloneOffer(m)
		}
	case MsgReject:
		if c := l.lockOut(m.ID); c != nil {
			c.lk.why = &Msg{Code: m.Code, Headroom: m.Headroom, Hop: m.Hop, Data: bytes.Clone(m.Data[:min(len(m.Data), MaxKept)])}
		}
	case MsgLaneSync:
		if more := (now - l.laneSyncAt) / laneSyncEvery; more > 0 {
			l.laneSyncs = int(min(laneSyncBurst, int64(l.laneSyncs)+more))
			l.laneSyncAt = now
		}
		if l.laneSyncs == 0 {
			return fx, errLaneSyncs
		}
		l.laneSyncs--
	case MsgCancelRequest:
		return h.askOn(l.lockIn(m.ID), fx), nil
	}
	return append(fx, Effect{Kind: FxLock, Peer: l.peer, Msg: m}), nil
}

// cloneOffer copies what a hop needs of a prepare. Vouchers are the channel's.
func cloneOffer(m *Msg) *Msg {
	return &Msg{
		Kind: MsgPrepare, ID: m.ID, Amount: m.Amount, Expires: m.Expires, Condition: m.Condition, Part: m.Part, HopsLeft: m.HopsLeft,
		MayLock: true, Dest: m.Dest, Token: bytes.Clone(m.Token), Via: slices.Clone(m.Via), Data: bytes.Clone(m.Data),
	}
}

// askOn passes a wish to give a lock up on, to whom ours is with.
func (h *Hop) askOn(c *circuit, fx []Effect) []Effect {
	if c == nil || c.out == nil || !c.lockedOut() {
		return fx
	}
	return append(fx, Effect{Kind: FxAsk, Peer: c.out.peer, Key: c.key})
}

// EvLockTaken: the neighbour's lock is held. Now the packet goes on, or to us.
func (h *Hop) taken(now int64, ev *Event, fx []Effect) ([]Effect, error) {
	l := h.link(ev.Peer)
	if l.lockIn(ev.ID) != nil {
		return fx, nil
	}
	m := l.lockSide().arrived[ev.ID]
	delete(l.locks.arrived, ev.ID)
	give := func(hop uint8, code Code, headroom tally.Amount) []Effect {
		r := h.message(MsgReject, ev.ID)
		r.Code, r.Headroom, r.Hop = code, headroom, hop
		h.drop(l)
		return append(fx, Effect{Kind: FxGive, Peer: ev.Peer, Ref: ev.ID, Msg: r})
	}
	terms, clock, seen := h.locks.Times()
	switch {
	case m == nil || l.in.at(ev.ID) != nil || m.Amount != ev.Lock.Amount || m.Condition != ofLock(ev.Lock):
		return give(hopIn, CodeUnsupported, 0), nil
	case !seen:
		return give(hopIn, CodeInternal, 0), nil
	case m.Amount < h.locks.Least()/2: // the two may see other fees
		return give(hopIn, CodeTooSmall, 0), nil
	}
	m.Expires = clock.Begins(ev.Lock.Expires - terms.Least())
	if code := h.vetLocked(m); code != CodeUnset {
		return give(hopIn, code, 0), nil
	}
	c := &circuit{
		in: l, inID: m.ID, amountIn: m.Amount, expiresIn: m.Expires, condition: m.Condition, part: m.Part,
		lk: &locked{in: true, inUntil: ev.Lock.Expires},
	}
	if m.Dest == h.self {
		if m.Expires <= now {
			return give(hopOut, CodeRefused, 0), nil
		}
		l.locks.in[c.inID] = c
		h.parts[c.part] = struct{}{}
		m.Lock = new(LockMsg)
		return append(fx, Effect{Kind: FxDeliver, Peer: l.peer, Msg: m}), nil
	}
	next, via := h.next(m, l)
	fee, fits := h.rules.Fee(m.Amount)
	switch {
	case m.HopsLeft == 0:
		return give(hopOut, CodeTooManyHops, 0), nil
	case next == nil:
		return give(hopOut, CodeNoRoute, 0), nil
	case !fits || fee >= m.Amount:
		return give(hopOut, CodeTooSmall, 0), nil
	}
	c.amountOut = m.Amount - fee
	m.HopsLeft, m.Via = m.HopsLeft-1, via
	// On credit the way out may be fulfilled late, and the way in then still needs its
	// time on the chain.
	expires := min(clock.Begins(ev.Lock.Expires-terms.Least()-1)-lateHold, now+h.rules.MaxExpiry.Milliseconds())
	code, room := h.onCredit(now, next, c, m, expires)
	if code == CodeUnset {
		var id uint64
		id, fx = h.takeID(fx)
		c.key, c.mark, c.out, c.size = id, next.asked, next, len(m.Data)
		l.locks.in[c.inID] = c
		next.put(c)
		h.parts[c.part] = struct{}{}
		m.ID, m.Amount, m.Expires = id, c.amountOut, c.expiresOut
		return append(h.sendAcks(next, h.save(c, fx)), Effect{Kind: FxSend, Peer: next.peer, Msg: m}), nil
	}
	if lockable(code) {
		if until := min(c.lk.inUntil-terms.Delta(), terms.Horizon(clock.Head)-terms.Skew); until >= clock.Head+terms.Least()+terms.Skew {
			why, most, ok := h.lockRoom(l, next, m, c.amountOut, code, room)
			if ok {
				l.locks.in[c.inID] = c
				c.lk.room = room
				return h.offer(next, c, m, until, fx), nil
			}
			code, room = why, most
		} else if _, ok := h.locks.Room(next.peer); ok {
			code, room = CodeExpiryTooSoon, 0
		}
	}
	return give(hopOut, code, room), nil
}

// onCredit takes room on the tab for the way out of a packet under a lock.
func (h *Hop) onCredit(now int64, next *link, c *circuit, m *Msg, expires int64) (Code, tally.Amount) {
	switch {
	case h.locksAlone(m):
		return CodeUnsupported, 0
	case next.out.Len() >= next.window, next.outBytes+len(m.Data) > maxOutBytes:
		return CodeBusy, 0
	case expires <= now:
		return CodeExpiryTooSoon, 0
	}
	if err := h.account.Hold(next.peer, h.nextID, Out, c.amountOut); err != nil {
		return holdCode(err)
	}
	c.expiresOut = expires
	return CodeUnset, 0
}

// lockable reports whether a lock may do what the tab refused. CodeUnsupported: the tab
// was not asked.
func lockable(code Code) bool {
	switch code {
	case CodeHeadroom, CodeHeadroomFinal, CodeTooLarge, CodeExpiryTooSoon, CodeExpiryTooFar, CodeUnsupported:
		return true
	default:
		return false
	}
}

// vetLocked is vet for a lock. How long it may take, the channel's horizon bounds.
func (h *Hop) vetLocked(m *Msg) Code {
	_, again := h.parts[m.Part]
	switch {
	case m.Amount >= maxAmount:
		return CodeTooLarge
	case !h.mayLock(m):
		return CodeUnsupported
	case m.HopsLeft > MaxHops || len(m.Via) > MaxHops:
		return CodeTooManyHops
	case again:
		return CodeLoop
	}
	return CodeUnset
}

// mayLock reports whether a packet may go under a lock: its payer says so, a channel
// knows its condition, and what goes with it is short enough to be kept.
func (h *Hop) mayLock(m *Msg) bool {
	known := m.Condition.Kind == ConditionBlake2b || m.Condition.pointed() && h.opensPoint != nil
	return h.locks != nil && m.MayLock && known && len(m.Data)+len(m.Token) <= MaxKept
}

// lockOnward is the way out under a lock, of a packet that came in on credit or is
// our own (from nil), and that the tab refused with code and headroom. Without one the
// packet is rejected with why, and the most that would have fitted.
func (h *Hop) lockOnward(from, next *link, m *Msg, amount tally.Amount, code Code, headroom tally.Amount) (until int64, why Code, most tally.Amount, ok bool) {
	if !lockable(code) || amount == 0 || !h.mayLock(m) {
		return 0, code, headroom, false
	}
	terms, clock, seen := h.locks.Times()
	if why, most, ok = h.lockRoom(from, next, m, amount, code, headroom); !ok || !seen {
		return 0, why, most, false
	}
	if from == nil {
		// What the packet's expiry means at its payee, the lock has to last for.
		return clock.At(m.Expires) + terms.Least() + terms.Skew, code, headroom, true
	}
	// The way in, on credit, outlives the lock by D in wall time. Where that leaves
	// nothing, a smaller packet may still fit the tab.
	until = min(clock.LastOver(m.Expires)-terms.Delta(), terms.Horizon(clock.Head)-terms.Skew)
	return until, code, headroom, until >= clock.Head+terms.Least()+terms.Skew
}

// lockRoom reports whether the channel to next has room for a lock of what came from a
// neighbour, or from us. None of those has more than half of the slots, so that who
// fills slots with locks that nobody decides leaves some to others.
func (h *Hop) lockRoom(from, next *link, m *Msg, amount tally.Amount, code Code, headroom tally.Amount) (why Code, most tally.Amount, ok bool) {
	room, ok := h.locks.Room(next.peer)
	under := m.Condition.Kind == ConditionPoint // no tab has anything to say of it
	switch {
	case under && !room.Points:
		return CodeUnsupported, 0, false
	case under && amount < h.locks.Least():
		return CodeTooSmall, 0, false
	case amount < h.locks.Least():
		return code, headroom, false
	case !ok && room.Coming >= amount, ok && room.Free < amount && room.Coming >= amount-room.Free:
		return CodeBusy, headroom, false // soon: no bound to learn
	case under && !ok:
		return CodeUnsupported, 0, false
	case under && room.Free < amount:
		return CodeHeadroom, room.Free, false
	case !ok || room.Free < amount:
		return code, headroom, false
	}
	if next.locks == nil || from == nil {
		return code, headroom, true
	}
	share := 0
	for _, c := range next.locks.out {
		if c.in == from {
			share++
		}
	}
	if share >= max(1, room.Slots/2) {
		return CodeBusy, headroom, false
	}
	return code, headroom, true
}

// offer makes a lock for the way out. Its record goes to disk with the lock.
func (h *Hop) offer(next *link, c *circuit, m *Msg, until int64, fx []Effect) []Effect {
	c.key, fx = h.takeID(fx)
	c.out, c.mark, c.size = next, next.asked, 0
	_, clock, _ := h.locks.Times()
	c.expiresOut = clock.Begins(until)
	c.lk.out, c.lk.outUntil = true, until
	h.parts[c.part] = struct{}{}
	next.lockSide().out[c.key] = c
	m.Kind, m.ID, m.Amount, m.Expires, m.Lock = MsgPrepare, c.key, c.amountOut, c.expiresOut, nil
	c.lk.offer = cloneOffer(m)
	return append(fx, Effect{Kind: FxOffer, Peer: next.peer, Key: c.key, Ref: uint64(until), Msg: c.lk.offer, Record: c.record()})
}

// EvLockDecided: our lock is paid, with Msg.Preimage of a fulfil, or never will be.
// What told so is on disk until the way in is.
func (h *Hop) lockDecided(ev *Event, fx []Effect) ([]Effect, error) {
	l := h.links[ev.Peer]
	c := l.lockOut(ev.ID)
	if c == nil {
		return append(fx, Effect{Kind: FxUnnote, Key: ev.ID}), nil
	}
	m := h.message(ev.Msg.Kind, ev.ID)
	m.Code, m.Hop, m.Headroom, m.Preimage = ev.Msg.Code, ev.Msg.Hop, ev.Msg.Headroom, ev.Msg.Preimage
	if m.Kind != MsgFulfil {
		switch why := c.lk.why; {
		case m.Code == CodeRefused && why != nil: // given up, and explained
			m.Code, m.Hop, m.Headroom, m.Data = why.Code, why.Hop, why.Headroom, why.Data
		case m.Code == CodeRefused: // who said why was not heard
			m.Code, m.Hop = CodeInternal, hopUnknown
		case m.Code == CodeHeadroom && m.Headroom < c.lk.room:
			m.Headroom = c.lk.room
		}
		return append(h.undo(c, m, fx), Effect{Kind: FxUnnote, Key: ev.ID}), nil
	}
	if !h.opens(&c.condition, &m.Preimage) {
		return fx, fmt.Errorf("forward: lock %d to %s: %w", ev.ID, ev.Peer, errPreimage)
	}
	if c.in != nil && !c.lockedIn() {
		if err := h.account.Commit(c.in.peer, c.inID, In); err != nil {
			return fx, fmt.Errorf("forward: book packet %d of %s: %w", c.inID, c.in.peer, err)
		}
	}
	delete(l.locks.out, c.key)
	delete(h.parts, c.part)
	if c.in != nil {
		fx = h.settle(c, m, fx)
	} else {
		fx = h.paid(c, m, fx)
	}
	h.drop(l)
	return append(fx, Effect{Kind: FxUnnote, Key: ev.ID}), nil
}

// show has the channel show the preimage of a lock of the neighbour, which we have
// paid for on the way out.
func (h *Hop) show(c *circuit, m *Msg, fx []Effect) []Effect {
	m.Kind, m.ID = MsgFulfil, c.inID
	return append(fx, Effect{Kind: FxShow, Peer: c.in.peer, Key: c.key, Ref: c.inID, Kept: true, Msg: m})
}

// give gives a lock of the neighbour up, for the reason in m. Nothing is left here.
func (h *Hop) give(c *circuit, m *Msg, fx []Effect) []Effect {
	delete(c.in.locks.in, c.inID)
	h.drop(c.in)
	m.Kind, m.ID = MsgReject, c.inID
	return append(fx, Effect{Kind: FxGive, Peer: c.in.peer, Ref: c.inID, Msg: m})
}

// fulfilLocked shows the preimage of a packet for us that came under a lock. Whether
// that is in time the channel says: until EvLockShown nothing is decided.
func (h *Hop) fulfilLocked(c *circuit, ev *Event, fx []Effect) ([]Effect, error) {
	if !h.opens(&c.condition, &ev.Msg.Preimage) {
		return fx, errPreimage
	}
	c.lk.shown = true
	return append(fx, Effect{Kind: FxShow, Peer: ev.Peer, Key: c.key, Ref: ev.ID, Kept: ev.Owed, Msg: ev.Msg}), nil
}

// EvLockShown: the preimage of a lock is on its way, saved, or with Failed the lock
// cannot be claimed any more.
func (h *Hop) lockShown(ev *Event, fx []Effect) []Effect {
	c := h.links[ev.Peer].lockIn(ev.ID)
	if c == nil {
		return fx
	}
	if !c.fulfilled {
		delete(h.parts, c.part)
	}
	delete(c.in.locks.in, c.inID)
	h.drop(c.in)
	fx = h.forget(c, fx)
	if ev.Failed && !c.fulfilled { // nothing was shown: its payer need not wait
		r := h.message(MsgReject, ev.ID)
		r.Code, r.Hop = CodeRefused, hopOut
		fx = append(fx, Effect{Kind: FxGive, Peer: ev.Peer, Ref: ev.ID, Msg: r})
	}
	return fx
}

// EvLockEnded: a lock of the neighbour is over, without our doing. What waited for
// our endpoint waits no more; what is on its way out decides itself.
func (h *Hop) lockEnded(ev *Event, fx []Effect) []Effect {
	l := h.links[ev.Peer]
	if l == nil || l.locks == nil {
		return fx
	}
	delete(l.locks.arrived, ev.ID)
	if c := l.locks.in[ev.ID]; c != nil && c.out == nil && !c.fulfilled && !c.lk.shown {
		delete(l.locks.in, ev.ID)
		delete(h.parts, c.part)
		if c.kept {
			if c.key != 0 {
				fx = append(fx, Effect{Kind: FxSave, Key: c.key})
			}
			m := h.message(MsgReject, ev.ID)
			m.Code, m.Part = CodeRefused, c.part
			fx = append(fx, Effect{Kind: FxGone, Msg: m})
		}
	}
	h.drop(l)
	return fx
}

// HeldLock is a lock of a neighbour that a restart found here.
type HeldLock struct {
	Peer peer.ID
	ID   uint64
}

// HeldLocks are the locks of neighbours that have a circuit.
func (h *Hop) HeldLocks() []HeldLock {
	var list []HeldLock
	for _, p := range slices.Sorted(maps.Keys(h.links)) {
		if s := h.links[p].locks; s != nil {
			for _, id := range slices.Sorted(maps.Keys(s.in)) {
				list = append(list, HeldLock{p, id})
			}
		}
	}
	return list
}

// OfferOf is the prepare that goes with our lock, and false where none is live.
func (h *Hop) OfferOf(p peer.ID, id uint64) (Msg, bool) {
	if c := h.links[p].lockOut(id); c != nil {
		return *c.lk.offer, true
	}
	return Msg{}, false
}

// resumeLocks shows again what was fulfilled when we stopped.
func (h *Hop) resumeLocks(fx []Effect) []Effect {
	for _, held := range h.HeldLocks() {
		if c := h.links[held.Peer].lockIn(held.ID); c.fulfilled {
			m := h.message(MsgFulfil, held.ID)
			m.Preimage = c.preimage
			fx = h.show(c, m, fx)
		}
	}
	return fx
}

// checkLocks is Check for the sides under locks. It counts the packets that live.
func (h *Hop) checkLocks(l *link) (live int, err error) {
	if l.locks == nil {
		return 0, nil
	}
	if len(l.locks.arrived) > maxArrived {
		return 0, fmt.Errorf("%d locks have arrived", len(l.locks.arrived))
	}
	for id, c := range l.locks.out {
		switch {
		case c.out != l || c.key != id || c.fulfilled || !c.lockedOut() || c.lk.offer == nil || l.out.at(id) != nil:
			return 0, fmt.Errorf("our lock %d", id)
		case c.in != nil && !c.lockedIn() && c.condition.Kind == ConditionPoint:
			return 0, fmt.Errorf("our lock %d is under a point, and its way in is not", id)
		case c.in != nil && !c.lockedIn() && c.in.in.at(c.inID) != c, c.lockedIn() && c.in.locks.in[c.inID] != c:
			return 0, fmt.Errorf("our lock %d has no way in", id)
		case c.in != nil && c.amountIn < c.amountOut, c.lockedIn() && c.lk.inUntil <= c.lk.outUntil:
			return 0, fmt.Errorf("our lock %d: %d until %d in, %d until %d out", id, c.amountIn, c.lk.inUntil, c.amountOut, c.lk.outUntil)
		}
		live++
	}
	for id, c := range l.locks.in {
		if c.in != l || c.inID != id || !c.lockedIn() || l.in.at(id) != nil || c.fulfilled && (c.out != nil || !h.opens(&c.condition, &c.preimage)) {
			return 0, fmt.Errorf("lock %d of the neighbour", id)
		}
		if !c.fulfilled && c.out == nil {
			live++
		}
	}
	return live, nil
}

// appendLocked is what a record of a circuit has of locks, at its end:
//
//	way in   u64 until
//	way out  u64 until | u8 hops left | u8 n, n × peer | peer dest | u16 len, token | u16 len, data
func (c *circuit) appendLocked(b []byte) []byte {
	if c.lockedIn() {
		b[0] |= recLockIn
		b = binary.BigEndian.AppendUint64(b, uint64(c.lk.inUntil))
	}
	if c.out == nil || !c.lockedOut() {
		return b
	}
	b[0] |= recLockOut
	m := c.lk.offer
	b = binary.BigEndian.AppendUint64(b, uint64(c.lk.outUntil))
	b = append(b, m.HopsLeft, byte(len(m.Via)))
	for _, p := range m.Via {
		b = appendPeer(b, p)
	}
	b = appendPeer(b, m.Dest)
	for _, field := range [...][]byte{m.Token, m.Data} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(field))) // at most MaxKept together
		b = append(b, field...)
	}
	return b
}

// readLocked reads it. What cannot be marks the reader bad.
func (c *circuit) readLocked(kind byte, r *recordReader) {
	if kind&(recLockIn|recLockOut) == 0 {
		return
	}
	c.lk = &locked{in: kind&recLockIn != 0, out: kind&recLockOut != 0}
	r.bad = r.bad || c.lk.in && c.in == nil || c.lk.out && c.out == nil || c.condition.Kind != ConditionBlake2b && !c.condition.pointed()
	if c.lk.in {
		c.lk.inUntil = int64(r.uint64())
	}
	if !c.lk.out {
		return
	}
	c.lk.outUntil = int64(r.uint64())
	m := &Msg{
		Kind: MsgPrepare, ID: c.key, Amount: c.amountOut, Expires: c.expiresOut, Condition: c.condition, Part: c.part, MayLock: true,
		HopsLeft: r.byte(),
	}
	n := int(r.byte())
	r.bad = r.bad || n > MaxHops
	for i := 0; i < n && !r.bad; i++ {
		m.Via = append(m.Via, r.peer())
	}
	m.Dest = r.peer()
	m.Token = bytes.Clone(r.take(int(r.uint16())))
	m.Data = bytes.Clone(r.take(int(r.uint16())))
	c.lk.offer = m
}

// lockMsg marks a message that is about a lock of the neighbour.
func (c *circuit) lockMsg() *LockMsg {
	if c.lockedIn() {
		return new(LockMsg)
	}
	return nil
}
