package host

import (
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/locker"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/lock"
)

// Offer implements forward.LockCarrier.
func (l *Locks) Offer(p peer.ID, id uint64, until int64, m *forward.Msg, record func(*durable.Batch)) {
	key := forward.HeldLock{Peer: p, ID: id}
	l.mu.Lock()
	l.offers[key] = m
	l.mu.Unlock()
	terms, clock, _ := l.Times()
	long := until > terms.Horizon(clock.Head)-terms.Skew
	l.spawn(func() { // ends when the lock is signed, or refused, or with close
		err := l.keeper.Offer(l.ctx, p, locker.Offer{
			ID: id, Amount: m.Amount, Hash: m.Condition.Digest, Point: m.Condition.Point, Expires: until, Long: long, Record: record,
		})
		if err == nil || errors.Is(err, locker.ErrPending) || errors.Is(err, locker.ErrClosed) || l.ctx.Err() != nil {
			return // its end is told, or found at the next start
		}
		l.log.Debug("lock not made", "peer", p, "lock", id, "amount", m.Amount, "err", err)
		l.forget(key)
		code, room := offerCode(err)
		if code == forward.CodeHeadroom && room < m.Amount && l.coming(p, room) >= m.Amount-room {
			code = forward.CodeBusy
		}
		_ = l.engine.LockFailed(p, id, code, room)
	})
}

func (l *Locks) forget(key forward.HeldLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.offers, key)
}

// offerCode is what a neighbour is told of a lock that could not be made.
func offerCode(err error) (forward.Code, tally.Amount) {
	if e := (*locker.FundsError)(nil); errors.As(err, &e) {
		return forward.CodeHeadroom, e.Free
	}
	switch {
	case errors.Is(err, lock.ErrTooSoon):
		return forward.CodeExpiryTooSoon, 0
	case errors.Is(err, lock.ErrTooFar):
		return forward.CodeExpiryTooFar, 0
	case errors.Is(err, lock.ErrFull), errors.Is(err, locker.ErrBusy):
		return forward.CodeBusy, 0
	case errors.Is(err, locker.ErrStopped):
		return forward.CodeInternal, 0
	case errors.Is(err, lock.ErrPoint), errors.Is(err, paych.ErrPointWallet):
		return forward.CodeUnsupported, 0
	default:
		return forward.CodeHeadroom, 0
	}
}

// Show implements forward.LockCarrier.
func (l *Locks) Show(p peer.ID, id uint64, preimage tally.Preimage, owed bool, record func(*durable.Batch), done func(error)) {
	l.again(func() error { return l.keeper.Fulfil(l.ctx, p, id, preimage, owed, record) }, done)
}

// Give implements forward.LockCarrier.
func (l *Locks) Give(p peer.ID, id uint64, why *forward.Msg) {
	key := forward.HeldLock{Peer: p, ID: id}
	l.mu.Lock()
	record := l.whys.put(key, why)
	l.mu.Unlock()
	l.again(func() error { return l.keeper.Give(l.ctx, p, id, record) }, func(err error) {
		if err == nil {
			return
		}
		l.mu.Lock()
		l.whys.drop(key)
		l.mu.Unlock()
		if !errors.Is(err, lock.ErrUnknown) { // which is over already
			l.log.Warn("lock not given up", "peer", p, "lock", id, "err", err)
		}
	})
}

// giveCode is what a neighbour is told of a lock that its channel gave up at once;
// CodeUnset where there is nothing to tell.
func giveCode(err error) forward.Code {
	switch {
	case errors.Is(err, lock.ErrTooSoon):
		return forward.CodeExpiryTooSoon
	case errors.Is(err, lock.ErrGuard):
		return forward.CodeExpiryTooFar
	default:
		return forward.CodeUnset
	}
}

// again does f until its channel took it, or never will.
func (l *Locks) again(f func() error, done func(error)) {
	l.spawn(func() { // ends with the answer of the channel, or with close
		pause := time.NewTimer(0)
		defer pause.Stop()
		for {
			select {
			case <-pause.C:
			case <-l.ctx.Done():
				return
			}
			err := f()
			switch {
			case errors.Is(err, locker.ErrClosed), errors.Is(err, locker.ErrStopped), l.ctx.Err() != nil:
				return // the next start finds it
			case err == nil, isFinal(err):
				done(err)
				return
			}
			l.log.Debug("a channel is asked again", "err", err)
			pause.Reset(lockRetry)
		}
	})
}

// isFinal reports whether a channel will never take what it refused.
func isFinal(err error) bool {
	return isAny(err, lock.ErrUnknown, lock.ErrLate, lock.ErrGivenUp, lock.ErrPreimage, lock.ErrRole, locker.ErrNoChannel)
}

// Taken implements locker.Carrier.
func (l *Locks) Taken(p peer.ID, x lock.Lock) {
	_ = l.engine.LockTaken(p, x) // closed: the next start gives it up
}

// Decided implements locker.Carrier.
func (l *Locks) Decided(p peer.ID, id uint64, preimage *tally.Preimage, err error) (record func(*durable.Batch), saved func()) {
	return forward.Noted(p, id, preimage), func() {
		l.forget(forward.HeldLock{Peer: p, ID: id})
		if preimage != nil {
			l.paidOut.Add(1)
			_ = l.engine.LockPaid(p, id, *preimage) // closed: the note tells the next start
			return
		}
		l.failedOut.Add(1)
		code := forward.CodeTimeout
		switch {
		case errors.Is(err, lock.ErrGivenUp):
			code = forward.CodeRefused
		case errors.Is(err, lock.ErrAmount):
			code = forward.CodeHeadroom
		case errors.Is(err, lock.ErrFull):
			code = forward.CodeBusy
		}
		_ = l.engine.LockFailed(p, id, code, 0)
	}
}

// Ended implements locker.Carrier.
func (l *Locks) Ended(p peer.ID, id uint64, _ *tally.Preimage, err error) (record func(*durable.Batch), saved func()) {
	if code := giveCode(err); code != forward.CodeUnset { // the CANCEL of what we never took
		l.mu.Lock()
		record = l.whys.put(forward.HeldLock{Peer: p, ID: id}, &forward.Msg{Code: code, Hop: 1})
		l.mu.Unlock()
	}
	return record, func() {
		if errors.Is(err, locker.ErrLost) {
			l.lost.Add(1)
			l.log.Error("a lock that was claimed in time was not paid by the chain", "peer", p, "lock", id, "next", "look at the chain: tally wallet balance")
		}
		_ = l.engine.LockEnded(p, id) // closed: the next start compares
	}
}
