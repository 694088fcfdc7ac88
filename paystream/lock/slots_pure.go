package lock

import (
	"fmt"

	"github.com/tallystick/tally"
)

// Role is our side of the channel.
type Role uint8

// Roles.
const (
	Payer Role = iota + 1
	Payee
)

// String is the role in one word.
func (r Role) String() string {
	if r == Payer {
		return "payer"
	}
	return "payee"
}

// Phase is where a slot stands. The numbers are in records.
type Phase uint8

// Phases.
const (
	// Free: no lock. A payee that gave one up keeps what it signed until the next.
	Free Phase = iota
	// Locked: the payer's LOCK is signed or about to be; the payee holds it.
	Locked
	// Opened: the preimage is known. The payer owes an UNLOCK, the payee claims.
	Opened
	// Given: the payee's CANCEL is signed or about to be. Never claimed again.
	Given
)

var phaseWords = [...]string{"free", "locked", "opened", "given"}

// String is the phase in one word, which is part of the API.
func (p Phase) String() string {
	if int(p) < len(phaseWords) {
		return phaseWords[p]
	}
	return "unknown"
}

// moves is the one door for a slot's phase.
var moves = [len(phaseWords)][len(phaseWords)]bool{
	Free:   {Locked: true, Given: true},
	Locked: {Free: true, Opened: true, Given: true},
	Opened: {Free: true},
	Given:  {Free: true, Locked: true},
}

// slot is one lane. What is above the line is its record.
type slot struct {
	lane uint64
	// nonce and base are those at rest: of the last lock that is over. paid is the
	// nonce of the UNLOCK that made the base.
	nonce, paid uint64
	base        tally.Amount
	phase       Phase
	// Of the lock; zero while the slot is free.
	id      uint64
	amount  tally.Amount
	hash    tally.Hashlock
	point   byte // the first byte of a point whose x is hash; 0: it is a hash
	expires int64
	// guard is the settle height that the lock needs, 0 where it needs none.
	guard    int64
	preimage tally.Preimage
	// retired: it takes no new lock, because one of the sides has lost what it knew.
	retired bool
	// cancel is the payer's answer to a stale LOCK, the newest that the payee
	// signed; until is the last epoch in which one that it gives up could still be
	// redeemed. Raw is with the channel's account.
	cancelNonce  uint64
	cancelAmount tally.Amount
	until        int64

	// ────

	// raw is our newest signed voucher of this lock.
	raw string
	// acked: the payee holds the LOCK. unsent: nothing of it has left us, ever.
	acked, unsent bool
	// crowded is until when the channel's account keeps no more vouchers of the lane: of
	// locks that were given up, which bind their money until their end.
	crowded int64
}

func (s *slot) move(to Phase) {
	if !moves[s.phase][to] {
		panic("lock: a slot that is " + s.phase.String() + " cannot become " + to.String())
	}
	s.phase = to
}

// rest ends the lock: nonce + 2 is used, and the base is what it came to.
func (s *slot) rest(paid bool) {
	s.nonce += 2
	if paid {
		s.base += s.amount
		s.paid = s.nonce
	}
	s.move(Free)
	s.id, s.amount, s.hash, s.point, s.expires, s.guard, s.preimage = 0, 0, tally.Hashlock{}, 0, 0, 0, tally.Preimage{}
	s.raw, s.acked, s.unsent = "", false, false
}

func (s *slot) total() tally.Amount { return s.base + s.amount }

// lockVoucher, unlock and cancel are the three of the slot's lock.
func (s *slot) lockVoucher() Voucher {
	return Voucher{Lane: s.lane, Nonce: s.nonce + 1, Amount: s.total(), Locked: s.point == 0, Hash: s.hash, Point: s.point, Expires: s.expires}
}

func (s *slot) unlock() Voucher {
	return Voucher{Lane: s.lane, Nonce: s.nonce + 2, Amount: s.total()}
}

func (s *slot) cancel() Voucher {
	return Voucher{Lane: s.lane, Nonce: s.nonce + 2, Amount: s.base}
}

// Slots is one side of the slots of one channel.
type Slots struct {
	role  Role
	terms Terms
	slots []slot // lane i is at i - 1
	// guard is the lane of the guard: nonce and height of the newest.
	guardNonce  uint64
	guardHeight int64
	guardRaw    string // of the payer: signed in this run

	head View
}

// New returns the slots of a fresh channel.
func New(role Role, terms Terms) *Slots {
	s := &Slots{role: role, terms: terms, slots: make([]slot, terms.Slots)}
	for i := range s.slots {
		s.slots[i].lane = uint64(i) + 1
	}
	return s
}

// Role is our side.
func (s *Slots) Role() Role { return s.role }

// Lock is what is known of one, for the eye.
type Lock struct {
	ID     uint64
	Lane   uint64
	Phase  Phase
	Amount tally.Amount
	Hash   tally.Hashlock
	// Point is 0, or the first byte of the point whose x is Hash.
	Point   byte
	Expires int64
	// Acked: of ours, the payee holds it.
	Acked bool
}

// Locks lists those that are not over, by lane.
func (s *Slots) Locks() []Lock {
	var list []Lock
	for i := range s.slots {
		if l := &s.slots[i]; l.phase != Free {
			list = append(list, Lock{ID: l.id, Lane: l.lane, Phase: l.phase, Amount: l.amount, Hash: l.hash, Point: l.point, Expires: l.expires, Acked: l.acked})
		}
	}
	return list
}

// Totals sums what the slots paid, and what their locks are over.
func (s *Slots) Totals() (paid, pending tally.Amount) {
	for i := range s.slots {
		paid = paid.SaturatingAdd(s.slots[i].base)
		if s.slots[i].phase == Locked || s.slots[i].phase == Opened {
			pending = pending.SaturatingAdd(s.slots[i].amount)
		}
	}
	return paid, pending
}

// Room is how many locks more find a slot.
func (s *Slots) Room() int {
	n := 0
	for i := range s.slots {
		if s.slots[i].open() {
			n++
		}
	}
	return n
}

// open reports whether a new lock may be made.
func (s *slot) open() bool { return s.phase == Free && !s.retired }

// at returns the slot of a lane.
func (s *Slots) at(lane uint64) (*slot, error) {
	if lane < 1 || lane > uint64(len(s.slots)) {
		return nil, fmt.Errorf("%w: lane %d is no slot", ErrForm, lane)
	}
	return &s.slots[lane-1], nil
}

// of returns the slot of a lock that is not over.
func (s *Slots) of(id uint64) *slot {
	for i := range s.slots {
		if l := &s.slots[i]; l.phase != Free && l.id == id {
			return l
		}
	}
	return nil
}

// LaneOf is the one lane that an event is about. It is false for what is about all of
// them, or the guard: views, syncs and locks under a guard; and for a lock that is not
// known, as that of a new offer, which takes any lane that is open.
func (s *Slots) LaneOf(ev *Event) (lane uint64, ok bool) {
	switch ev.Kind {
	case EvChain, EvSync:
		return 0, false
	case EvLock:
		return ev.Voucher.Lane, ev.Guard == Voucher{}
	case EvCancel, EvUnlock, EvShown, EvSigned:
		return ev.Voucher.Lane, true
	}
	if l := s.of(ev.ID); l != nil {
		return l.lane, l.guard == 0
	}
	return 0, false
}

// IsOpen reports whether a new lock may take the lane.
func (s *Slots) IsOpen(lane uint64) bool {
	l, err := s.at(lane)
	return err == nil && l.open()
}

// Step takes one event at the epoch now of the chain's head. On an error nothing
// has changed. Effects are appended to fx. The first event of a run is EvChain.
func (s *Slots) Step(now int64, ev *Event, fx []Effect) ([]Effect, error) {
	if h := handlers[s.role][ev.Kind]; h != nil {
		fx, err := h(s, now, ev, fx)
		if err == nil && invariants {
			if err := s.Check(); err != nil {
				panic(err)
			}
		}
		return fx, err
	}
	return fx, ErrRole
}

type handler func(s *Slots, now int64, ev *Event, fx []Effect) ([]Effect, error)

var handlers = map[Role]map[EventKind]handler{
	Payer: {
		EvOffer: (*Slots).offer, EvSigned: (*Slots).signedPayer, EvFailed: (*Slots).unsigned,
		EvAcked: (*Slots).acked, EvPreimage: (*Slots).opened, EvCancel: (*Slots).cancelled,
		EvUnlockAcked: (*Slots).unlockAcked, EvChain: (*Slots).chainPayer, EvSync: (*Slots).sync, EvShown: (*Slots).shownPayer,
	},
	Payee: {
		EvLock: (*Slots).take, EvFailed: (*Slots).refused, EvFulfil: (*Slots).fulfil, EvGive: (*Slots).give,
		EvSigned: (*Slots).signedPayee, EvCancelAcked: (*Slots).cancelAcked, EvUnlock: (*Slots).unlocked, EvChain: (*Slots).chainPayee, EvSync: (*Slots).sync, EvShown: (*Slots).shownPayee,
	},
}

// redeemed reports whether the chain took the slot's LOCK, or what came after it.
func (s *slot) redeemed(v *View) bool {
	lv, ok := v.lane(s.lane)
	return ok && lv.Nonce > s.nonce
}

// past reports whether the chain as v shows it can take the lock no more, because
// its time is over or the channel is.
func (s *slot) past(v *View) bool {
	return v.Height >= s.expires || v.Gone || v.SettlingAt != 0 && v.Height >= v.SettlingAt
}
