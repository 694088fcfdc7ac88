package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/host/locker"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/lock"
)

// Receive implements forward.LockCarrier.
func (l *Locks) Receive(p peer.ID, m *forward.Msg) {
	ch, err := address.NewFromBytes(m.Lock.Channel)
	if err != nil {
		l.packets.Reset(p, fmt.Errorf("channel of a lock: %w", err))
		return
	}
	msg := &locker.Msg{
		Channel: ch, ID: m.ID, Amount: m.Amount, Preimage: m.Preimage,
		Voucher: bytes.Clone(m.Lock.Voucher), Guard: bytes.Clone(m.Lock.Guard),
	}
	switch m.Kind {
	case forward.MsgPrepare:
		msg.Send = lock.SendLock
	case forward.MsgPrepareAck:
		msg.Send = lock.SendLockAck
	case forward.MsgFulfil:
		msg.Send = lock.SendFulfil
	case forward.MsgUnlock:
		msg.Send = lock.SendUnlock
	case forward.MsgUnlockAck:
		msg.Send = lock.SendUnlockAck
	case forward.MsgReject:
		msg.Send = lock.SendCancel
	case forward.MsgRejectAck:
		msg.Send = lock.SendCancelAck
		l.mu.Lock()
		l.whys.drop(forward.HeldLock{Peer: p, ID: m.ID})
		l.mu.Unlock()
	case forward.MsgShow:
		msg.Send = lock.SendShow
	case forward.MsgLaneSync:
		msg.Sync, msg.Ask, msg.Lanes = true, m.Lock.Ask, append([]lock.LaneState(nil), m.Lock.Lanes...)
	default:
		return
	}
	l.mu.Lock()
	q, runs := l.queues[p]
	full := len(q) >= lockQueue
	if !full && !l.closed {
		l.queues[p] = append(q, msg)
		if !runs {
			l.tasks.Go(func() { l.hear(p) }) // ends when nothing waits, or with close
		}
	}
	l.mu.Unlock()
	if full {
		l.packets.Reset(p, errors.New("more messages about locks than are worked on"))
	}
}

// hear hands the messages of one neighbour over, in their order.
func (l *Locks) hear(p peer.ID) {
	for {
		l.mu.Lock()
		q := l.queues[p]
		if len(q) == 0 || l.closed {
			delete(l.queues, p)
			l.mu.Unlock()
			return
		}
		l.queues[p] = q[1:]
		l.mu.Unlock()
		switch err := l.receive(p, q[0]); {
		case err == nil:
		case errors.Is(err, locker.ErrSigner), errors.Is(err, locker.ErrVoucher):
			l.packets.Reset(p, err)
		default:
			l.log.Debug("message about a lock not taken", "peer", p, "channel", q[0].Channel, "lock", q[0].ID, "err", err)
		}
	}
}

// receive hands a message of a neighbour over. A sync waits for no channel: it comes again
// with the next session, and one of a channel that is gone would keep what follows it.
func (l *Locks) receive(p peer.ID, m *locker.Msg) error {
	take := func() error { return l.keeper.Receive(p, m) }
	if m.Sync {
		return take()
	}
	return untilTaken(l.ctx, take)
}

// untilTaken hands a message over, and again where its channel may take it soon: the first
// vouchers of one may be on their way while it is used already, and heads come late. A
// LOCK that is dropped nobody sends again in this session, and the payer's money is bound
// until the lock ends.
func untilTaken(ctx context.Context, receive func() error) error {
	for try := 1; ; try++ {
		err := receive()
		if err == nil || try == lockTries || !isEarly(err) {
			return err
		}
		select {
		case <-time.After(lockRetry):
		case <-ctx.Done():
			return err
		}
	}
}

// isEarly reports whether a channel may take later what it refused.
func isEarly(err error) bool {
	return isAny(err, locker.ErrUnlinked, locker.ErrUnseen, locker.ErrNoChannel, locker.ErrBusy)
}

// isAny reports whether an error is one of a list.
func isAny(err error, list ...error) bool {
	return slices.ContainsFunc(list, func(one error) bool { return errors.Is(err, one) })
}

// Ask implements forward.LockCarrier.
func (l *Locks) Ask(p peer.ID, id uint64) {
	if ch, ok := l.keeper.ChannelOf(p, id, true); ok {
		l.packets.Post(p, &forward.Msg{Kind: forward.MsgCancelRequest, ID: id, Lock: &forward.LockMsg{Channel: ch.Bytes()}})
	}
}

// Send implements locker.Wire.
func (l *Locks) Send(p peer.ID, m *locker.Msg) {
	about := &forward.LockMsg{Channel: m.Channel.Bytes(), Voucher: m.Voucher, Guard: m.Guard}
	out := &forward.Msg{ID: m.ID, Lock: about}
	key := forward.HeldLock{Peer: p, ID: m.ID}
	switch {
	case m.Sync:
		out.Kind = forward.MsgLaneSync
		about.Lanes, about.Ask = m.Lanes, m.Ask
	case m.Send == lock.SendLock:
		l.mu.Lock()
		with := l.offers[key]
		l.mu.Unlock()
		if with == nil {
			return // it was decided meanwhile
		}
		*out = *with
		out.Lock = about
	case m.Send == lock.SendLockAck:
		out.Kind = forward.MsgPrepareAck
	case m.Send == lock.SendFulfil:
		out.Kind, out.Preimage = forward.MsgFulfil, m.Preimage
	case m.Send == lock.SendUnlock:
		out.Kind = forward.MsgUnlock
	case m.Send == lock.SendUnlockAck:
		out.Kind = forward.MsgUnlockAck
	case m.Send == lock.SendCancel:
		out.Kind, out.Code, out.Hop = forward.MsgReject, forward.CodeInternal, 1
		l.mu.Lock()
		why := l.whys.of[key]
		l.mu.Unlock()
		if why != nil {
			out.Code, out.Hop, out.Headroom, out.Data = why.Code, why.Hop, why.Headroom, why.Data
		}
	case m.Send == lock.SendCancelAck:
		out.Kind = forward.MsgRejectAck
	case m.Send == lock.SendShow:
		out.Kind = forward.MsgShow
	default:
		return
	}
	l.packets.Post(p, out)
}
