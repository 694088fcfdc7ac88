package forward

import (
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// LateHold is how long beyond its expiry a packet may still be decided, because
// a link was down. It is one constant of the network: what every node honours
// until then, and nobody after.
const LateHold = 10 * time.Minute

const (
	lateHold = int64(LateHold / time.Millisecond)
	// maxAmount is the first amount that a Balance cannot hold.
	maxAmount tally.Amount = 1 << 63
	// idBlock is how many ids one synced record makes usable. A restart loses
	// what is left of a block: 2^64 ids last for 2^44 restarts.
	idBlock = 1 << 20
	// maxOutBytes bounds the data of the packets that one neighbour has of us,
	// and so what waits to be written to it.
	maxOutBytes = 4 << 20
	// askBurst and askEvery bound the syncs that a neighbour may ask for: an
	// honest one asks once a session and once a second while packets are late.
	askBurst = 16
	askEvery = 250 // ms
)

// Hop is the core of the hop engine: every packet that is in flight at this
// node. It is pure; Account belongs to its state.
type Hop struct {
	self    peer.ID
	rules   Rules
	account Account
	routes  map[peer.ID]peer.ID // payee to neighbour
	locks   Locks               // nil: none
	// opensPoint is HopConfig.OpensPoint.
	opensPoint func(y [PointSize]byte, secret tally.Preimage) bool
	journal    bool // records are wanted

	links map[peer.ID]*link
	parts map[PartID]struct{}
	// results are the keys of what became of packets that their sender keeps.
	results map[PartID]uint64
	// What a restart found: results, and packets that wait for an endpoint.
	again []Again

	nextID, idLimit uint64
	earned          tally.Amount // fees of all time

	spare []*circuit
	msgs  []Msg // of effects since Reset

	// pointsOnCredit leaves a guard away: a variant that tests have to find.
	pointsOnCredit bool
}

// HopConfig is what a core is made of.
type HopConfig struct {
	Self    peer.ID
	Rules   Rules
	Account Account
	// Routes is the static table: payee to the neighbour that leads to it.
	Routes map[peer.ID]peer.ID
	// Locks carry what does not fit a tab; nil: nothing does. They need a journal.
	Locks Locks
	// OpensPoint reports whether a secret is that of a compressed point; nil: packets
	// under points are refused.
	OpensPoint func(y [PointSize]byte, secret tally.Preimage) bool
	// Journal: effects FxSave and FxDelete are wanted. Without, FirstID has to be
	// above every id of an earlier run.
	Journal bool
	FirstID uint64
}

// NewHop returns a core with nothing in flight. rules must be valid.
func NewHop(c HopConfig) *Hop {
	h := &Hop{
		self: c.Self, rules: c.Rules.Complete(), account: c.Account, routes: c.Routes, locks: c.Locks, journal: c.Journal,
		links: make(map[peer.ID]*link), parts: make(map[PartID]struct{}), results: make(map[PartID]uint64),
		nextID: max(1, c.FirstID), idLimit: 1<<64 - 1, opensPoint: c.OpensPoint,
		msgs: make([]Msg, 0, 64),
	}
	if c.Journal {
		h.idLimit = h.nextID
	}
	return h
}

// Reset tells that the effects so far are carried out; their messages are used
// again.
func (h *Hop) Reset() { h.msgs = h.msgs[:0] }

// Earned is the sum of all fees.
func (h *Hop) Earned() tally.Amount { return h.earned }

// InFlight is how many packets are in flight with p: offered by it, by us.
func (h *Hop) InFlight(p peer.ID) (in, out int) {
	if l := h.links[p]; l != nil {
		return l.in.Len(), l.out.Len()
	}
	return 0, 0
}

// message returns a message that lives until Reset. Earlier ones stay where they
// are: a full block is left to the garbage collector, not moved.
func (h *Hop) message(kind MsgKind, id uint64) *Msg {
	if len(h.msgs) == cap(h.msgs) {
		h.msgs = make([]Msg, 0, min(2*cap(h.msgs), 4096))
	}
	h.msgs = h.msgs[:len(h.msgs)+1]
	m := &h.msgs[len(h.msgs)-1]
	*m = Msg{Kind: kind, ID: id}
	return m
}

// Step applies one event and appends to fx what the shell has to do. now is in
// milliseconds since 1970. On an error nothing has changed. One that wraps
// ErrFault is the neighbour's, whose session should be reset; ErrNotHeld is the
// caller's. Any other is the tab's: it would not book what it holds, and the
// shell has to stop.
func (h *Hop) Step(now int64, ev *Event, fx []Effect) ([]Effect, error) {
	switch ev.Kind {
	case EvMessage:
		return h.receive(now, ev, fx)
	case EvUp:
		return h.begin(now, ev, fx), nil
	case EvDown:
		if l := h.links[ev.Peer]; l != nil {
			l.up, l.known, l.acks = false, nil, nil
			h.drop(l)
		}
		return fx, nil
	case EvSend:
		return h.send(now, ev, fx), nil
	case EvFulfil:
		return h.fulfilOurs(now, ev, fx)
	case EvReject:
		return h.rejectOurs(ev, fx)
	case EvTick:
		return h.tick(now, fx), nil
	case EvKeep:
		return h.keepOurs(ev, fx)
	case EvForget:
		return h.forgetResult(ev.Msg.Part, fx), nil
	case EvLockTaken:
		return h.taken(now, ev, fx)
	case EvLockEnded:
		return h.lockEnded(ev, fx), nil
	case EvLockShown:
		return h.lockShown(ev, fx), nil
	case EvLockDecided:
		return h.lockDecided(ev, fx)
	default:
		return fx, fmt.Errorf("forward: no such event: %d", ev.Kind)
	}
}

func (h *Hop) receive(now int64, ev *Event, fx []Effect) ([]Effect, error) {
	l := h.links[ev.Peer]
	if l == nil || !l.up {
		return fx, nil // read before its session ended
	}
	if ev.Msg.Lock != nil {
		return h.receiveLock(now, l, ev.Msg, fx)
	}
	switch m := ev.Msg; m.Kind {
	case MsgPrepare:
		return h.prepare(now, l, m, fx)
	case MsgFulfil:
		return h.fulfil(now, l, m, fx)
	case MsgFulfilAck:
		fx = h.acked(l, m.ID, fx)
		for _, id := range m.Fulfilled {
			fx = h.acked(l, id, fx)
		}
		return fx, nil
	case MsgReject:
		if c := l.out.at(m.ID); c != nil {
			if r, ok := h.account.(Refuser); ok && m.Code == CodeHeadroom {
				r.Refused(l.peer)
			}
			return h.undo(c, m, fx), nil
		}
		return fx, nil
	case MsgSyncAsk:
		return h.answerSync(now, l, m, fx)
	case MsgSync:
		return h.sync(l, m, fx)
	default:
		return fx, errUnexpected
	}
}

// prepare takes a neighbour's offer, for us or for a node beyond.
func (h *Hop) prepare(now int64, l *link, m *Msg, fx []Effect) ([]Effect, error) {
	switch {
	case l.in.Len() >= h.rules.MaxInFlight:
		return fx, errTooMany
	case m.ID <= l.lastIn || l.in.at(m.ID) != nil || l.locks != nil && l.locks.in[m.ID] != nil:
		return fx, errIDTwice
	}
	l.lastIn = m.ID
	refuse := func(hop uint8, code Code, headroom tally.Amount) []Effect {
		return h.refuse(l, m.ID, hop, code, headroom, fx)
	}
	if code := h.vet(now, m, false); code != CodeUnset {
		return refuse(hopIn, code, 0), nil
	}
	if m.Dest == h.self {
		if m.Expires <= now {
			return refuse(hopOut, CodeRefused, 0), nil // as the endpoint's own
		}
		if err := h.account.Hold(l.peer, m.ID, In, m.Amount); err != nil {
			code, headroom := holdCode(err)
			return refuse(hopIn, code, headroom), nil
		}
		c := h.newCircuit()
		c.in, c.inID, c.amountIn, c.expiresIn = l, m.ID, m.Amount, m.Expires
		c.condition, c.part = m.Condition, m.Part
		l.in.Put(m.ID, c)
		h.parts[m.Part] = struct{}{}
		return append(fx, Effect{Kind: FxDeliver, Peer: l.peer, Msg: m}), nil
	}

	next, via := h.next(m, l)
	fee, fits := h.rules.Fee(m.Amount)
	expires := m.Expires - h.rules.HopDelta.Milliseconds()
	switch {
	case m.HopsLeft == 0:
		return refuse(hopOut, CodeTooManyHops, 0), nil
	case next == nil:
		return refuse(hopOut, CodeNoRoute, 0), nil
	case !fits || fee > m.Amount || fee == m.Amount && fee > 0:
		return refuse(hopOut, CodeTooSmall, 0), nil
	case expires <= now:
		return refuse(hopOut, CodeExpiryTooSoon, 0), nil
	case next.out.Len() >= next.window, next.outBytes+len(m.Data) > maxOutBytes:
		return refuse(hopOut, CodeBusy, 0), nil
	}
	if err := h.account.Hold(l.peer, m.ID, In, m.Amount); err != nil {
		code, headroom := holdCode(err)
		return refuse(hopIn, code, headroom), nil
	}
	amount := m.Amount - fee
	if err := h.account.Hold(next.peer, h.nextID, Out, amount); err != nil {
		code, headroom := holdCode(err)
		until, code, headroom, lockable := h.lockOnward(l, next, m, amount, code, headroom)
		if !lockable {
			h.release(l.peer, m.ID, In)
			return refuse(hopOut, code, headroom), nil
		}
		c := h.newCircuit()
		c.in, c.inID, c.amountIn, c.expiresIn, c.amountOut = l, m.ID, m.Amount, m.Expires, amount
		c.condition, c.part, c.lk = m.Condition, m.Part, &locked{room: headroom}
		l.in.Put(m.ID, c)
		m.HopsLeft, m.Via = m.HopsLeft-1, via
		return h.offer(next, c, m, until, fx), nil
	}
	var id uint64
	id, fx = h.takeID(fx)
	c := h.newCircuit()
	c.key, c.mark = id, next.asked
	c.in, c.inID, c.amountIn, c.expiresIn = l, m.ID, m.Amount, m.Expires
	c.out, c.amountOut, c.expiresOut = next, amount, expires
	c.condition, c.part = m.Condition, m.Part
	c.size = len(m.Data)
	l.in.Put(m.ID, c)
	next.put(c)
	h.parts[m.Part] = struct{}{}

	// The message goes on as it is, but for what changes on each hop.
	m.ID, m.Amount, m.Expires, m.HopsLeft, m.Via = id, amount, expires, m.HopsLeft-1, via
	fx = h.sendAcks(next, h.save(c, fx))
	return append(fx, Effect{Kind: FxSend, Peer: next.peer, Msg: m}), nil
}

// vet checks what needs no tab.
func (h *Hop) vet(now int64, m *Msg, own bool) Code {
	if m.Amount >= maxAmount {
		return CodeTooLarge
	}
	if m.Lock != nil || !h.carries(m, own) {
		return CodeUnsupported
	}
	if m.HopsLeft > MaxHops || len(m.Via) > MaxHops {
		return CodeTooManyHops
	}
	most := h.rules.MaxExpiry
	if own || m.Dest == h.self {
		most = h.rules.MaxKept
	}
	if m.Expires > now+most.Milliseconds() && !(own && h.mayLock(m)) { // which has its own bound
		return CodeExpiryTooFar
	}
	if _, again := h.parts[m.Part]; again {
		return CodeLoop
	}
	return CodeUnset
}

// carries reports whether a packet that did not come under a lock has a condition that
// is carried here. Under a point it has to be our own: it begins with a lock.
func (h *Hop) carries(m *Msg, own bool) bool {
	switch m.Condition.Kind {
	case ConditionBlake2b, ConditionSHA256:
		return true
	case ConditionPoint:
		return h.pointsOnCredit || own && h.mayLock(m)
	default:
		return false
	}
}

// locksAlone reports whether a packet goes under a lock or not at all. What a lock
// under a point shows is y itself, wherever it is taken: nobody has to be trusted to
// tell it. A hop on credit would be one who has.
func (h *Hop) locksAlone(m *Msg) bool {
	return m.Condition.Kind == ConditionPoint && !h.pointsOnCredit
}

// opens reports whether p opens a condition.
func (h *Hop) opens(c *Condition, p *tally.Preimage) bool {
	if c.Kind != ConditionPoint {
		return c.Opens(p)
	}
	return h.opensPoint != nil && h.opensPoint(c.Compressed(), *p)
}

// next is the neighbour that a packet goes to, and the rest of its route: the
// route that the payer gave, which may go around a tab that is full; else the payee
// itself where it is a neighbour; else our own table. It never goes back where it
// came from.
func (h *Hop) next(m *Msg, from *link) (*link, []peer.ID) {
	live := func(p peer.ID) *link {
		if l := h.links[p]; l != nil && l.up && l != from {
			return l
		}
		return nil
	}
	if len(m.Via) > 0 && m.Via[0] != m.Dest {
		if l := live(m.Via[0]); l != nil {
			return l, m.Via[1:]
		}
	}
	if l := live(m.Dest); l != nil {
		return l, nil
	}
	if p, ok := h.routes[m.Dest]; ok && len(m.Via) == 0 {
		return live(p), nil
	}
	return nil, nil
}

// refuse answers a packet of which nothing was kept.
func (h *Hop) refuse(l *link, id uint64, hop uint8, code Code, headroom tally.Amount, fx []Effect) []Effect {
	r := h.message(MsgReject, id)
	r.Code, r.Headroom, r.Hop = code, headroom, hop
	return append(fx, Effect{Kind: FxSend, Peer: l.peer, Msg: r})
}

// takeID uses the next id. Ids beyond what the journal says are not used before
// a record says more.
func (h *Hop) takeID(fx []Effect) (uint64, []Effect) {
	id := h.nextID
	h.nextID++
	if h.nextID > h.idLimit {
		h.idLimit += idBlock
		fx = append(fx, Effect{Kind: FxSave, Key: counterKey, Record: h.counterRecord()})
	}
	return id, fx
}

// send offers a packet of our own.
func (h *Hop) send(now int64, ev *Event, fx []Effect) []Effect {
	m := ev.Msg
	refuse := func(code Code, headroom tally.Amount) []Effect {
		r := h.message(MsgReject, 0)
		r.Code, r.Headroom, r.Part, r.Hop = code, headroom, m.Part, hopIn // the first hop
		return append(fx, Effect{Kind: FxResult, Ref: ev.Ref, Kept: ev.Keep, Msg: r})
	}
	if code := h.vet(now, m, true); code != CodeUnset {
		return refuse(code, 0)
	}
	next, via := h.next(m, nil)
	_, again := h.results[m.Part]
	switch {
	case again:
		return refuse(CodeLoop, 0)
	case m.Dest == h.self, next == nil:
		return refuse(CodeNoRoute, 0)
	case m.Expires <= now:
		return refuse(CodeExpiryTooSoon, 0)
	case next.out.Len() >= next.window, next.outBytes+len(m.Data) > maxOutBytes:
		return refuse(CodeBusy, 0)
	}
	if code, headroom := h.holdOwn(now, next, m); code != CodeUnset {
		until, code, headroom, lockable := h.lockOnward(nil, next, m, m.Amount, code, headroom)
		if !lockable {
			return refuse(code, headroom)
		}
		c := h.newCircuit()
		c.ref, c.kept, c.amountOut = ev.Ref, ev.Keep, m.Amount
		c.condition, c.part, c.lk = m.Condition, m.Part, &locked{room: headroom}
		m.Via = via
		return h.offer(next, c, m, until, fx)
	}
	var id uint64
	id, fx = h.takeID(fx)
	c := h.newCircuit()
	c.key, c.mark, c.ref, c.kept = id, next.asked, ev.Ref, ev.Keep
	c.preimage, m.Preimage = m.Preimage, tally.Preimage{}
	c.out, c.amountOut, c.expiresOut = next, m.Amount, m.Expires
	c.condition, c.part = m.Condition, m.Part
	c.size = len(m.Data)
	next.put(c)
	h.parts[m.Part] = struct{}{}
	m.Kind, m.ID, m.Via = MsgPrepare, id, via
	fx = h.sendAcks(next, h.save(c, fx))
	return append(fx, Effect{Kind: FxSend, Peer: next.peer, Msg: m})
}

// holdOwn takes room on the tab for a packet of our own. What is to last longer than
// a tab may be blocked goes under a lock, or not at all.
func (h *Hop) holdOwn(now int64, next *link, m *Msg) (Code, tally.Amount) {
	if h.locksAlone(m) {
		return CodeUnsupported, 0
	}
	most := h.rules.MaxKept
	if m.MayLock && m.Dest != next.peer {
		most = h.rules.MaxExpiry
	}
	if m.Expires > now+most.Milliseconds() {
		return CodeExpiryTooFar, 0
	}
	if err := h.account.Hold(next.peer, h.nextID, Out, m.Amount); err != nil {
		return holdCode(err)
	}
	return CodeUnset, 0
}
