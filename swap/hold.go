package swap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Bounds of work in flight.
const (
	// maxHoldsPerPeer bounds the live holds of one peer and direction, so that
	// one peer cannot use up maxHolds.
	maxHoldsPerPeer = 128
	// maxHolds bounds the live holds of the book: about 0.5 MB.
	maxHolds = 4096
	// holdFor is how long a reservation counts. What is delivered later is
	// booked all the same.
	holdFor = 30 * time.Second
	// maxWaiters bounds the callers of one peer that wait for headroom.
	maxWaiters = 128
	// waitFor bounds that wait where the caller's ctx does not.
	waitFor = 30 * time.Second
)

var (
	// ErrDone: the hold was committed or released before.
	ErrDone = errors.New("swap: hold is done")
	// ErrTooManyHolds: too much is in flight already.
	ErrTooManyHolds = errors.New("swap: too many reservations in flight")
)

// RefusedError says why service was refused, with the figures. It wraps one of
// the ledger's errors.
type RefusedError struct {
	Peer     peer.ID
	Dir      Direction
	Units    tally.Amount  // asked for
	Headroom tally.Amount  // there was
	Balance  tally.Balance // of the tab then
	Limit    tally.Amount  // the threshold that counts in this direction
	Cause    error
}

// Error names cause and remedy. It is built only when somebody reads it.
func (e *RefusedError) Error() string {
	who, remedy := "the peer owes", "it has to send a cheque"
	owed := e.Balance.Owed()
	if e.Dir == Consume {
		who, remedy, owed = "we owe", "a settlement has been started; try again when the peer acked it", e.Balance.Debt()
	}
	switch {
	case errors.Is(e.Cause, ErrTooLarge):
		remedy = "ask for fewer units at once"
	case errors.Is(e.Cause, ErrNoSession):
		remedy = "connect to it, and check that it speaks swap"
	case errors.Is(e.Cause, ErrSkew):
		remedy = "the books differ: it has to pay, or the operator runs `tally peers resolve`"
	case errors.Is(e.Cause, ErrStranger):
		remedy = fmt.Sprintf("it may prepay up to %d units", e.Limit)
	case errors.Is(e.Cause, ErrTooManyHolds):
		remedy = "wait until some are done"
	case errors.Is(e.Cause, ErrPaymentRefused):
		remedy = "see `tally cheques` for the reason; the cheque is sent again with back-off"
	case errors.Is(e.Cause, ErrPeerThreshold):
		remedy = "it has to raise its payment_threshold, or min_peer_threshold has to be lowered here"
	}
	return fmt.Sprintf("%v: %v %d units, %s %d of %d, headroom %d: %s",
		e.Cause, e.Dir, e.Units, who, owed, e.Limit, e.Headroom, remedy)
}

// Unwrap gives the ledger's error.
func (e *RefusedError) Unwrap() error { return e.Cause }

// Hold is a reservation for one use of a service. Exactly one of Commit,
// Release and Lost ends it; any later call returns ErrDone. The zero Hold is
// done. A Hold may be copied; the copies are the same hold.
type Hold struct {
	book  *Book
	state *holdState
	gen   uint32
	shard uint8 // a state stays with its shard for ever
}

// holdState is recycled when its hold is done, so that a busy peer's holds cost
// no garbage. All fields are guarded by the mu of the peer's shard.
type holdState struct {
	prev, next *holdState // in the shard's list while live
	peer       peer.ID
	service    string
	units      tally.Amount
	since      Instant
	stop       func() bool // ends the watch on ctx
	gen        uint32      // changes when the hold is done
	dir        Direction
	live       bool // the reservation still counts
	lost       bool // it ended as unanswered, not by the caller
}

// holdList is a ring in order of age; root is not a hold.
type holdList struct{ root holdState }

func (l *holdList) init() { l.root.prev, l.root.next = &l.root, &l.root }

func (l *holdList) push(h *holdState) {
	h.prev, h.next = l.root.prev, &l.root
	h.prev.next, h.next.prev = h, h
}

func (h *holdState) unlink() {
	h.prev.next, h.next.prev = h.next, h.prev
	h.prev, h.next = nil, nil
}

func (l *holdList) oldest() *holdState {
	if l.root.next == &l.root {
		return nil
	}
	return l.root.next
}

// TryReserve reserves units without waiting. See Reserve.
func (b *Book) TryReserve(ctx context.Context, p peer.ID, service string, dir Direction, units tally.Amount) (Hold, error) {
	h, mustSave, err := b.tryReserve(p, service, dir, units)
	if err != nil {
		return Hold{}, err
	}
	return b.finishReserve(ctx, p, h, mustSave)
}

// Reserve makes sure that units of a service fit the tab with p before any work
// is done, and keeps the room until the hold is committed or released, 30 s
// pass, the peer reconnects or ctx ends.
//
// Serve is refused at once where there is no room. Consume waits while ctx
// allows, at most 30 s, for the handshake or for the settlement that the
// refusal starts. A *RefusedError names the figures.
func (b *Book) Reserve(ctx context.Context, p peer.ID, service string, dir Direction, units tally.Amount) (Hold, error) {
	h, mustSave, err := b.tryReserve(p, service, dir, units)
	if err != nil && dir == Consume && b.waitable(err) {
		h, mustSave, err = b.waitReserve(ctx, p, service, units)
	}
	if err != nil {
		return Hold{}, err
	}
	return b.finishReserve(ctx, p, h, mustSave)
}

// waitable reports refusals that time may mend. In hard mode a refused cheque is
// one: its channel is topped up, and the same bytes are sent again.
func (b *Book) waitable(err error) bool {
	if b.policy.Mode == ModeHard && errors.Is(err, ErrPaymentRefused) {
		return true
	}
	return errors.Is(err, ErrOverThreshold) || errors.Is(err, ErrNoSession) || errors.Is(err, ErrTooManyHolds)
}

// finishReserve saves a reservation that a crash must not forget, and ties it to
// ctx.
func (b *Book) finishReserve(ctx context.Context, p peer.ID, h Hold, mustSave bool) (Hold, error) {
	if mustSave {
		if err := b.flushPeer(ctx, p, (*Ledger).NeedsFlush); err != nil {
			_ = h.Release() // nothing left yet
			return Hold{}, err
		}
	}
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() { b.expireHold(h) })
		s := b.shardOf(p)
		s.mu.Lock()
		if h.state.gen == h.gen && h.state.live {
			h.state.stop = stop
		}
		s.mu.Unlock()
	}
	return h, nil
}

func (b *Book) waitReserve(ctx context.Context, p peer.ID, service string, units tally.Amount) (Hold, bool, error) {
	timer := time.NewTimer(waitFor)
	defer timer.Stop()
	for {
		wake, err := b.wait(p)
		if err != nil {
			return Hold{}, false, err
		}
		// The room may have come between the refusal and the wait.
		h, mustSave, refused := b.tryReserve(p, service, Consume, units)
		if refused == nil || !b.waitable(refused) || b.live.Load() >= maxHolds {
			b.unwait(p)
			return h, mustSave, refused // holds of others wake nobody here
		}
		if errors.Is(refused, ErrOverThreshold) {
			b.settleSoon(p)
		}
		select {
		case <-wake:
			b.unwait(p)
		case <-ctx.Done():
			b.unwait(p)
			return Hold{}, false, fmt.Errorf("%w: %w", ctx.Err(), refused)
		case <-timer.C:
			b.unwait(p)
			return Hold{}, false, refused
		case <-b.ctx.Done():
			return Hold{}, false, ErrClosed
		}
	}
}

// wait returns a channel that is closed when headroom may have grown.
func (b *Book) wait(p peer.ID) (<-chan struct{}, error) {
	s, a, err := b.lock(p)
	if err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if a.waiters >= maxWaiters {
		return nil, ErrTooManyHolds
	}
	a.waiters++
	if a.wake == nil {
		a.wake = make(chan struct{})
	}
	return a.wake, nil
}

func (b *Book) unwait(p peer.ID) {
	s := b.shardOf(p)
	s.mu.Lock()
	if a := s.accounts[p]; a != nil && a.waiters > 0 {
		a.waiters--
	}
	s.mu.Unlock()
}

func (b *Book) tryReserve(p peer.ID, service string, dir Direction, units tally.Amount) (h Hold, mustSave bool, err error) {
	if err := b.usable(); err != nil {
		return Hold{}, false, err
	}
	s, a, err := b.lock(p)
	if err != nil {
		return Hold{}, false, err
	}
	defer s.mu.Unlock()
	now := b.now()
	if err := b.admit(s, a, now, dir, units); err != nil {
		return Hold{}, false, b.refusal(a, now, dir, units, err)
	}
	st := s.newHold()
	st.peer, st.service, st.dir, st.units, st.since, st.live = p, service, dir, units, now, true
	s.holds.push(st)
	b.live.Add(1)
	if dir == Serve {
		a.serving++
	} else {
		a.consuming++
	}
	return Hold{book: b, state: st, gen: st.gen, shard: shardIndex(p)}, dir == Consume && a.ledger.NeedsFlush(), nil
}

// admit steps the ledger and checks the caps that all peers share.
func (b *Book) admit(s *shard, a *account, now Instant, dir Direction, units tally.Amount) error {
	if b.live.Load() >= maxHolds || a.count(dir) >= maxHoldsPerPeer {
		return ErrTooManyHolds
	}
	soft := b.policy.Mode == ModeSoft
	if dir == Serve && !soft && !a.stored && a.ledger.Empty() && b.records.Load() >= maxStrangers {
		return ErrStranger
	}
	ev := Event{Kind: EvReserve, Dir: dir, Units: units}
	if _, err := b.apply(s, a, now, &ev); err != nil {
		if dir == Serve {
			b.denied(s, a, now)
		}
		return err
	}
	if dir == Serve && !soft {
		if err := b.pool.check(&b.policy, a.ledger.Stranger()); err != nil {
			undo := Event{Kind: EvRelease, Dir: dir, Held: units}
			if _, e := b.apply(s, a, now, &undo); e != nil {
				panic("swap: a fresh reservation cannot be released: " + e.Error())
			}
			return err
		}
	}
	return nil
}

// denied starts the clock of a peer that stays at the disconnect threshold. What
// it asks for while it is blocked does not make the block longer.
func (b *Book) denied(s *shard, a *account, now Instant) {
	if a.ledger.blocked(now) {
		return
	}
	ev := Event{Kind: EvDenied}
	_, _ = b.apply(s, a, now, &ev) // EvDenied has no error
	if a.ledger.refusedAt != 0 {
		s.watched[a.peer] = a
	}
}

func (b *Book) refusal(a *account, now Instant, dir Direction, units tally.Amount, cause error) error {
	b.stats.refused.Add(1)
	e := &RefusedError{
		Peer: a.peer, Dir: dir, Units: units, Balance: a.ledger.Balance(), Cause: cause,
		Headroom: b.headroomServe(a, now), Limit: b.policy.DisconnectThreshold,
	}
	if dir == Consume {
		e.Headroom, e.Limit = a.ledger.HeadroomConsume(), a.ledger.consumeLimit()
	}
	if errors.Is(cause, ErrStranger) {
		e.Limit = b.policy.PaymentThreshold
	}
	return e
}

func (a *account) count(dir Direction) uint8 {
	if dir == Serve {
		return a.serving
	}
	return a.consuming
}

func (s *shard) newHold() *holdState {
	if st := s.spare; st != nil {
		s.spare, st.next = st.next, nil
		return st
	}
	return &holdState{}
}

// Commit books units as delivered, which may be fewer or more than reserved:
// what was delivered is booked whatever became of the session or of the
// reservation. For a server that is the moment before the answer leaves. Where
// so much is unsaved that a crash would cost W, it returns when that is on disk.
func (h Hold) Commit(units tally.Amount) error {
	s, st, err := h.take()
	if err != nil {
		return err
	}
	ev := Event{Kind: EvCommit, Dir: st.dir, Units: units, Lost: st.lost}
	if st.live {
		ev.Held = st.units
	}
	b, p, service := h.book, st.peer, st.service
	a := h.end(s, st)
	if a == nil { // expired, and the account left memory
		s.mu.Unlock()
		if s, a, err = b.lock(p); err != nil {
			return err
		}
	}
	a.wakeAll() // a place is free, and perhaps a part of the room
	return b.bookLocked(s, a, service, &ev, false)
}

// Release gives an unused reservation back: the request never left, or the
// other side refused it.
func (h Hold) Release() error { return h.giveBack(false) }

// Lost gives a reservation back whose request left and whose answer never came.
// The peer may have booked it, and its next statement may say so.
func (h Hold) Lost() error { return h.giveBack(true) }

func (h Hold) giveBack(lost bool) error {
	s, st, err := h.take()
	if err != nil {
		return err
	}
	defer s.mu.Unlock()
	ev := Event{Kind: EvRelease, Dir: st.dir, Held: st.units, Units: st.units, Lost: lost}
	live := st.live
	a := h.end(s, st)
	if !live || a == nil {
		return nil // time gave it back before, as unanswered
	}
	if _, err := h.book.apply(s, a, h.book.now(), &ev); err != nil {
		return err
	}
	h.book.markDirty(s, a)
	a.wakeAll()
	return nil
}

// Units returns what was reserved, 0 once the hold is done.
func (h Hold) Units() tally.Amount {
	s, st, err := h.take()
	if err != nil {
		return 0
	}
	defer s.mu.Unlock()
	return st.units
}

// take locks the shard of a hold that is not done.
func (h Hold) take() (*shard, *holdState, error) {
	if h.state == nil {
		return nil, nil, ErrDone
	}
	s := &h.book.shards[h.shard]
	s.mu.Lock()
	if h.state.gen != h.gen {
		s.mu.Unlock()
		return nil, nil, ErrDone
	}
	if s.closed {
		s.mu.Unlock()
		return nil, nil, ErrClosed
	}
	return s, h.state, nil
}

// end makes a hold done and recycles its state, with the shard locked. It
// returns the account, nil where that has left memory.
func (h Hold) end(s *shard, st *holdState) *account {
	a := s.accounts[st.peer]
	if st.live {
		h.book.dropLive(a, st)
	}
	if st.stop != nil {
		st.stop()
	}
	*st = holdState{gen: st.gen + 1, next: s.spare}
	s.spare = st
	return a
}

// dropLive takes a live hold off the lists. A live hold keeps its account in
// memory.
func (b *Book) dropLive(a *account, st *holdState) {
	st.unlink()
	st.live = false
	b.live.Add(-1)
	if st.dir == Serve {
		a.serving--
	} else {
		a.consuming--
	}
}

// expireHold gives a reservation back because its time or ctx ended. The hold
// itself is not done: what is delivered all the same will be booked.
func (b *Book) expireHold(h Hold) {
	s, st, err := h.take()
	if err != nil {
		return
	}
	defer s.mu.Unlock()
	b.expireLocked(s, st)
}

// expireLocked returns the units of a live hold. What we asked for counts as
// unanswered until it is committed or released.
func (b *Book) expireLocked(s *shard, st *holdState) {
	if !st.live {
		return
	}
	a := s.accounts[st.peer]
	st.lost = st.dir == Consume
	ev := Event{Kind: EvRelease, Dir: st.dir, Held: st.units, Units: st.units, Lost: st.lost}
	b.dropLive(a, st)
	if _, err := b.apply(s, a, b.now(), &ev); err != nil {
		b.log.Error("reservation could not be returned", "peer", st.peer, "err", err)
	}
	b.markDirty(s, a)
	a.wakeAll()
}

// expireOld returns the reservations whose 30 s are over.
func (b *Book) expireOld(s *shard, now Instant) {
	for st := s.holds.oldest(); st != nil && now.Sub(st.since) >= holdFor; st = s.holds.oldest() {
		b.expireLocked(s, st)
	}
}

// expirePeer returns all reservations of a peer: its session ended.
func (b *Book) expirePeer(s *shard, p peer.ID) {
	for st := s.holds.root.next; st != &s.holds.root; {
		next := st.next
		if st.peer == p {
			b.expireLocked(s, st)
		}
		st = next
	}
}
