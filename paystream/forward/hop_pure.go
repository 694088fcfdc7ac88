package forward

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/lock"
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

// Dir is a packet's direction on the tab with one neighbour.
type Dir uint8

// Directions.
const (
	// In: the neighbour offered us the packet, and will owe us.
	In Dir = iota + 1
	// Out: we offered it, and shall owe.
	Out
)

// Account is the tab with each neighbour, as far as packets need it. It is part
// of the core's state: called in a step, it changes memory only and does not
// wait. Units are held until the packet is decided.
type Account interface {
	// Hold takes room for a packet. Its error may be a *HeadroomError.
	Hold(p peer.ID, id uint64, dir Dir, units tally.Amount) error
	// Commit books a packet that was fulfilled.
	Commit(p peer.ID, id uint64, dir Dir) error
	// Release gives the room back.
	Release(p peer.ID, id uint64, dir Dir) error
}

// Refuser is an Account that can do something about a neighbour which has, or
// knows of, no room where there is some here: the two books of a tab may differ in
// what has to be paid.
type Refuser interface {
	Refused(p peer.ID)
}

// HeadroomError is a refusal of Account.Hold with its figure.
type HeadroomError struct {
	Headroom tally.Amount
	// Code is CodeHeadroom, CodeHeadroomFinal, CodeTooLarge or CodeBusy.
	Code  Code
	Cause error
}

func (e *HeadroomError) Error() string {
	return fmt.Sprintf("forward: no room on the tab (%s), headroom %d: %v", e.Code, e.Headroom, e.Cause)
}

// Unwrap gives the tab's own error.
func (e *HeadroomError) Unwrap() error { return e.Cause }

// Rules is what an operator decides about packets. The zero value means the
// defaults.
type Rules struct {
	// FeeBase and FeePPM, parts per million of the amount, rounded up, are what
	// a packet that passes here pays. Default 0.
	FeeBase tally.Amount
	FeePPM  uint32
	// HopDelta is how much earlier a packet expires on its way out than on its
	// way in. Default 1 s.
	HopDelta time.Duration
	// MaxExpiry is the longest time that a packet may take. Default 5 min.
	MaxExpiry time.Duration
	// MaxKept is the longest time that a packet may take which does not pass here: one
	// of our own, or one for us. It blocks no tab but that of its two ends. Default
	// MaxExpiry, at most 60 days.
	MaxKept time.Duration
	// MaxInFlight is what we let one neighbour have in flight with us. Default
	// and most MaxInFlight.
	MaxInFlight int
}

// Complete returns r with the defaults in place of zero fields.
func (r Rules) Complete() Rules {
	if r.HopDelta == 0 {
		r.HopDelta = time.Second
	}
	if r.MaxExpiry == 0 {
		r.MaxExpiry = 5 * time.Minute
	}
	if r.MaxKept == 0 {
		r.MaxKept = r.MaxExpiry
	}
	if r.MaxInFlight == 0 {
		r.MaxInFlight = MaxInFlight
	}
	return r
}

// Validate reports the first rule that cannot work.
func (r Rules) Validate() error {
	switch {
	case r.FeePPM > 1_000_000:
		return fmt.Errorf("forward: fee of %d parts per million is more than the packet; use at most 1000000", r.FeePPM)
	case r.HopDelta < time.Second:
		return fmt.Errorf("forward: hop delta %v is below 1s, less than two clocks may differ by", r.HopDelta)
	case r.MaxExpiry < r.HopDelta || r.MaxExpiry > 24*time.Hour:
		return fmt.Errorf("forward: max expiry %v is not between the hop delta and 24h", r.MaxExpiry)
	case r.MaxKept < r.MaxExpiry || r.MaxKept > 60*24*time.Hour:
		return fmt.Errorf("forward: max time %v of packets that are kept is not between max expiry and 60 days", r.MaxKept)
	case r.MaxInFlight < 1 || r.MaxInFlight > MaxInFlight:
		return fmt.Errorf("forward: max in flight %d is not between 1 and %d", r.MaxInFlight, MaxInFlight)
	}
	return nil
}

// Fee is what passing amount costs, and false where it does not fit. A packet
// without an amount passes for nothing: it carries only word of the two ends, and
// no node becomes debtor by it.
func (r *Rules) Fee(amount tally.Amount) (tally.Amount, bool) {
	if amount == 0 {
		return 0, true
	}
	// amount < 2^63 and ppm ≤ 10^6, in two parts so that no product overflows.
	const million = 1_000_000
	ppm := tally.Amount(r.FeePPM)
	part := amount/million*ppm + (amount%million*ppm+million-1)/million
	fee, err := part.Add(r.FeeBase)
	return fee, err == nil
}

// circuit is one packet at this node.
//
//	            offered                fulfilled
//	prepare ──▶ both sides held ──▶ both sides booked, fulfil sent ──▶ acked: gone
//	                  │
//	                  └──▶ rejected, timed out: both released, gone
//
// A packet of our own has no in side and is gone once it is decided; where its
// sender keeps it, what became of it stays until that is forgotten. A packet for us
// has no out side; where its endpoint keeps it, it waits on disk until it is decided.
type circuit struct {
	// key names the record in the journal; where there is an out side it is the
	// packet's id there.
	key uint64

	in        *link // nil: our own packet
	inID      uint64
	amountIn  tally.Amount
	expiresIn int64

	out        *link // nil: for us
	amountOut  tally.Amount
	expiresOut int64
	// mark is the number of syncs we had asked for when the packet left: a
	// later one has to know it.
	mark uint64

	size      int // of the data, of a packet that we offered
	condition Condition
	part      PartID
	fulfilled bool
	// kept: of a packet for us, that its endpoint decides it, and no clock before
	// the late hold is over; of one of our own, that its result is kept.
	kept     bool
	preimage tally.Preimage
	ref      uint64  // of a packet of our own; 0: sent before a restart
	lk       *locked // nil: both sides are on credit
}

// ends is when a packet for us that nobody decides is rejected.
func (c *circuit) ends() int64 {
	if c.kept {
		return c.expiresIn + lateHold
	}
	return c.expiresIn
}

// link is the relation with one neighbour.
type link struct {
	peer peer.ID
	up   bool
	// window is how many packets the neighbour takes from us.
	window int
	// outBytes is the data of the packets in out.
	outBytes int
	in       circuits // by its id: live, or fulfilled and not acked
	out      circuits // by our id: not decided
	lastIn   uint64   // highest id of this session

	// asked and answered count syncs that we asked for and got whole.
	asked, answered uint64
	known           map[uint64]struct{} // of the sync that is being read
	knownIDs        int

	acks []uint64 // of fulfils that were booked, to be sent

	asks  int   // left to the neighbour
	askAt int64 // when asks was last filled

	locks      *lockSide // nil: none
	laneSyncs  int       // left to the neighbour
	laneSyncAt int64
}

func (l *link) put(c *circuit) {
	l.out.Put(c.key, c)
	l.outBytes += c.size
}

func (l *link) take(c *circuit) {
	l.out.Delete(c.key)
	l.outBytes -= c.size
}

// EventKind names what happened.
type EventKind uint8

// Kinds of event. Each constant says which fields of Event it reads.
const (
	// EvMessage: Peer sent Msg.
	EvMessage EventKind = iota + 1
	// EvUp: a session with Peer has begun, which takes Window packets at once.
	EvUp
	// EvDown: it has ended.
	EvDown
	// EvSend: Msg, a prepare without id, is to be sent for a caller that knows
	// it as Ref. Keep: its result stays until EvForget.
	EvSend
	// EvFulfil: the packet ID of Peer, which is for us, is fulfilled with
	// Msg.Preimage and Msg.Data.
	EvFulfil
	// EvReject: it is rejected, with Msg.Code, Msg.Data.
	EvReject
	// EvTick: about a second passed.
	EvTick
	// EvKeep: the packet ID of Peer, which is for us, waits for its endpoint. Msg
	// has its data and token.
	EvKeep
	// EvForget: the result of the packet Msg.Part of our own is not needed any more.
	EvForget

	// EvLockTaken: the lock ID of Peer is held: Lock.
	EvLockTaken
	// EvLockEnded: the lock ID of Peer is over.
	EvLockEnded
	// EvLockShown: what FxShow asked for is saved, or with Failed refused.
	EvLockShown
	// EvLockDecided: our lock ID to Peer is paid, Msg is a fulfil, or never will be,
	// Msg is a reject.
	EvLockDecided
)

// Event is one input of Step.
type Event struct {
	Kind   EventKind
	Peer   peer.ID
	ID     uint64
	Ref    uint64
	Window int
	Keep   bool
	// Opens: whoever fulfils has seen that the preimage opens the condition.
	Opens bool
	// Owed: whoever fulfils has paid for the preimage.
	Owed   bool
	Failed bool
	Msg    *Msg
	Lock   *lock.Lock
}

// EffectKind names what the shell has to do.
type EffectKind uint8

// Kinds of effect.
const (
	// FxSave: Record lies under Key, together with the tabs that the step booked
	// on, before any later send or result is carried out. Without Record nothing
	// is left under Key.
	FxSave EffectKind = iota + 1
	// FxDelete: the record under Key goes. No send waits for it.
	FxDelete
	// FxDeliver: offer Msg of Peer to our endpoints, at once. Their answer may be
	// the next event.
	FxDeliver
	// FxSend: Msg goes to Peer.
	FxSend
	// FxResult: the packet Ref of our own is decided: Msg is a fulfil or a
	// reject. It waits for saves like a send. Kept: its sender keeps it.
	FxResult
	// FxGone: the packet Msg.Part, which was kept for an endpoint of ours, was
	// rejected because its time is over. It waits for saves like a send.
	FxGone

	// The rest goes to whoever keeps the channels, and waits for saves like a send.

	// FxLock: Msg of Peer is about a lock.
	FxLock
	// FxOffer: a lock Key to Peer until the epoch Ref, for Msg, a prepare that goes
	// with it. Record lies under Key with the lock. EvLockDecided follows.
	FxOffer
	// FxShow: the preimage in Msg of the lock Ref of Peer is shown. Kept: we have paid
	// for it. EvLockShown follows; the record under Key goes with it.
	FxShow
	// FxGive: the lock Ref of Peer is given up, for the reason in Msg.
	FxGive
	// FxAsk: Peer is asked to give our lock Key up.
	FxAsk
	// FxUnnote: what was noted of our lock Key is done. No send waits for it.
	FxUnnote
)

// Effect is one duty of the shell. Msg is good until the core is stepped after
// Reset.
type Effect struct {
	Kind   EffectKind
	Peer   peer.ID
	Key    uint64
	Ref    uint64
	Kept   bool
	Msg    *Msg
	Record []byte
}

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

func (h *Hop) link(p peer.ID) *link {
	l := h.links[p]
	if l == nil {
		l = &link{peer: p}
		h.links[p] = l
	}
	return l
}

// drop forgets a link that has nothing, so that nothing grows with the number
// of peers ever seen.
func (h *Hop) drop(l *link) {
	if !l.up && l.in.Len()+l.out.Len() == 0 && l.locks.empty() {
		delete(h.links, l.peer)
	}
}

func (h *Hop) newCircuit() *circuit {
	if n := len(h.spare); n > 0 {
		c := h.spare[n-1]
		h.spare = h.spare[:n-1]
		return c
	}
	return new(circuit)
}

// maxSpare bounds the circuits that are kept for reuse: about 1 MiB.
const maxSpare = 4096

func (h *Hop) recycle(c *circuit) {
	if len(h.spare) < maxSpare {
		*c = circuit{}
		h.spare = append(h.spare, c)
	}
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

func holdCode(err error) (Code, tally.Amount) {
	if e := (*HeadroomError)(nil); errors.As(err, &e) {
		return e.Code, e.Headroom
	}
	return CodeInternal, 0
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
	if !h.opens(&c.condition, &m.Preimage) {
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

// begin starts a session: what is in flight is compared, and what we fulfilled
// is told again.
func (h *Hop) begin(now int64, ev *Event, fx []Effect) []Effect {
	l := h.link(ev.Peer)
	l.up, l.window, l.lastIn = true, min(ev.Window, MaxInFlight), 0
	l.asks, l.askAt, l.acks = askBurst, now, nil
	l.laneSyncs, l.laneSyncAt = laneSyncBurst, now
	fx = h.ask(l, fx)
	for id, c := range l.in.All() {
		if c.fulfilled {
			m := h.message(MsgFulfil, id)
			m.Preimage = c.preimage
			fx = append(fx, Effect{Kind: FxSend, Peer: l.peer, Msg: m})
		}
	}
	return fx
}

func (h *Hop) ask(l *link, fx []Effect) []Effect {
	l.asked++
	l.known, l.knownIDs = nil, 0
	m := h.message(MsgSyncAsk, 0)
	m.Round = l.asked
	return append(fx, Effect{Kind: FxSend, Peer: l.peer, Msg: m})
}

// answerSync lists what is here of the asker's packets.
func (h *Hop) answerSync(now int64, l *link, m *Msg, fx []Effect) ([]Effect, error) {
	if more := (now - l.askAt) / askEvery; more > 0 {
		l.asks = int(min(askBurst, int64(l.asks)+more))
		l.askAt = now
	}
	if l.asks == 0 {
		return fx, errAsks
	}
	l.asks--
	reply := h.message(MsgSync, 0)
	reply.Round = m.Round
	for id, c := range l.in.All() {
		if len(reply.Live)+len(reply.Fulfilled) == MaxSyncIDs {
			reply.More = true
			fx = append(fx, Effect{Kind: FxSend, Peer: l.peer, Msg: reply})
			reply = h.message(MsgSync, 0)
			reply.Round = m.Round
		}
		if c.fulfilled {
			reply.Fulfilled = append(reply.Fulfilled, id)
		} else {
			reply.Live = append(reply.Live, id)
		}
	}
	return append(fx, Effect{Kind: FxSend, Peer: l.peer, Msg: reply}), nil
}

// sync compares what the neighbour has of ours. What it does not list never
// arrived or was rejected: the stream is in order, so that nothing about it is
// on its way any more.
func (h *Hop) sync(l *link, m *Msg, fx []Effect) ([]Effect, error) {
	if m.Round != l.asked || l.answered == l.asked {
		return fx, nil // of an ask that a later one replaced
	}
	if l.knownIDs+len(m.Live)+len(m.Fulfilled) > 2*MaxInFlight {
		return fx, errSync
	}
	if l.known == nil {
		l.known = make(map[uint64]struct{}, len(m.Live)+len(m.Fulfilled))
	}
	for _, list := range [...][]uint64{m.Live, m.Fulfilled} {
		l.knownIDs += len(list)
		for _, id := range list {
			l.known[id] = struct{}{}
		}
	}
	if m.More {
		return fx, nil
	}
	known := l.known
	l.known, l.answered = nil, l.asked
	for _, id := range l.out.IDs() {
		c := l.out.at(id)
		if _, ok := known[id]; ok || c.mark >= l.asked {
			continue
		}
		r := h.message(MsgReject, 0)
		r.Code, r.Hop = CodeLinkLost, hopIn
		fx = h.undo(c, r, fx)
	}
	return fx, nil
}

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

// ErrInvariant is wrapped by every error of Check.
var ErrInvariant = errors.New("forward: invariant broken")

// Check returns the first broken invariant, by name.
func (h *Hop) Check() error {
	broken := func(name, format string, args ...any) error {
		return fmt.Errorf("%w: %s: %w", ErrInvariant, name, fmt.Errorf(format, args...))
	}
	live := 0
	for p, l := range h.links {
		if l.in.Len() > h.rules.MaxInFlight || l.out.Len() > MaxInFlight {
			return broken("in-flight", "%s: %d in, %d out", p, l.in.Len(), l.out.Len())
		}
		if l.answered > l.asked {
			return broken("sync-rounds", "%s: %d answers to %d asks", p, l.answered, l.asked)
		}
		bytes := 0
		for id, c := range l.out.All() {
			bytes += c.size
			if c.out != l || c.key != id || c.fulfilled {
				return broken("out-side", "%s: packet %d", p, id)
			}
			if c.condition.Kind == ConditionPoint {
				return broken("points-under-locks", "%s: packet %d left on credit", p, id)
			}
			if c.lockedIn() {
				if c.in.lockIn(c.inID) != c || c.amountIn < c.amountOut {
					return broken("both-sides", "%s: packet %d under a lock", p, id)
				}
			} else if c.in != nil && (c.in.in.at(c.inID) != c || c.amountIn < c.amountOut || c.expiresIn < c.expiresOut+h.rules.HopDelta.Milliseconds()) {
				return broken("both-sides", "%s: packet %d: %d until %d in, %d until %d out", p, id, c.amountIn, c.expiresIn, c.amountOut, c.expiresOut)
			}
			live++
		}
		if bytes != l.outBytes || bytes > maxOutBytes {
			return broken("out-bytes", "%s: kept %d, counted %d", p, l.outBytes, bytes)
		}
		for id, c := range l.in.All() {
			if c.in != l || c.inID != id {
				return broken("in-side", "%s: packet %d", p, id)
			}
			if c.fulfilled && (c.out != nil || !h.opens(&c.condition, &c.preimage)) {
				return broken("fulfilled", "%s: packet %d", p, id)
			}
			if c.condition.Kind == ConditionPoint {
				return broken("points-under-locks", "%s: packet %d came on credit", p, id)
			}
			if !c.fulfilled && c.out == nil {
				live++
			}
		}
		n, err := h.checkLocks(l)
		if err != nil {
			return broken("locked-sides", "%s: %w", p, err)
		}
		live += n
	}
	if live != len(h.parts) {
		return broken("parts", "%d live packets, %d part ids", live, len(h.parts))
	}
	for part := range h.results {
		if _, lives := h.parts[part]; lives {
			return broken("one-result", "packet %x lives and has a result", part)
		}
	}
	return nil
}
