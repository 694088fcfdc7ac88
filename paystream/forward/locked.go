package forward

import (
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream/lock"
)

// LockCarrier keeps the locks of the channels to neighbours. All calls come from the
// engine's goroutine, and none waits; what comes of them it tells the engine:
//
//	Offer ──▶ LockDecided           what became of our lock, for good
//	Receive ▶ LockTaken, LockEnded  a neighbour's lock is held; is over
//	Show ───▶ done                  saved, or the lock cannot be claimed any more
//
// Of a lock of ours that is decided it saves what Noted adds, in the batch of the
// decision, and tells the engine when that is on disk.
type LockCarrier interface {
	Locks
	// Receive takes a message about a lock, in the order of its session. It copies
	// what it keeps.
	Receive(p peer.ID, m *Msg)
	// Offer makes our lock to p until an epoch. m, which does not change any more,
	// goes with it. record is of the batch that is on disk before the lock is signed.
	Offer(p peer.ID, id uint64, until int64, m *Msg, record func(*durable.Batch))
	// Show shows the preimage of a lock of p. owed: we have paid for it.
	Show(p peer.ID, id uint64, preimage tally.Preimage, owed bool, record func(*durable.Batch), done func(error))
	// Give gives a lock of p up, for the reason in why.
	Give(p peer.ID, id uint64, why *Msg)
	// Ask asks p to give our lock up.
	Ask(p peer.ID, id uint64)
}

// ErrNoLocks: locks need a journal.
var ErrNoLocks = errors.New("forward: locks need a journal: give a store")

// Notes. One says what became of a lock of ours until the circuit has it.
//
//	u8 0: failed, 1: paid | 32 preimage | peer
const (
	notePrefix       = "/packet/lock/"
	noteVersion      = 1
	noteHead         = 1 + 32
	codeOfNote  Code = CodeTimeout // nobody remembers more
)

func noteKey(id uint64) string { return notePrefix + durable.KeyUint(id) }

// Noted adds to the batch in which a lock of ours is decided what the engine needs
// after a crash: paid with preimage, or with nil never to be paid.
func Noted(p peer.ID, id uint64, preimage *tally.Preimage) func(*durable.Batch) {
	b := make([]byte, noteHead, noteHead+len(p))
	if preimage != nil {
		b[0] = 1
		copy(b[1:], preimage[:])
	}
	b = append(b, p...)
	return func(batch *durable.Batch) {
		key := noteKey(id)
		batch.Put(key, durable.Seal(nil, key, noteVersion, b))
	}
}

// restoreNotes reads what was decided and not carried out.
func (e *Engine) restoreNotes(ctx context.Context) error {
	return e.cfg.Store.Scan(ctx, notePrefix, "", func(key string, rec []byte) error {
		_, b, err := durable.Unseal(key, noteVersion, rec)
		if err != nil {
			return err
		}
		id, err := durable.ParseKeyUint(key[len(notePrefix):])
		if err != nil {
			return err
		}
		if len(b) <= noteHead || b[0] > 1 {
			return fmt.Errorf("%w: note of lock %d", errRecord, id)
		}
		m := &Msg{Kind: MsgReject, Code: codeOfNote, Hop: hopIn}
		if b[0] == 1 {
			m = &Msg{Kind: MsgFulfil, Preimage: tally.Preimage(b[1:noteHead])}
		}
		e.noted = append(e.noted, Event{Kind: EvLockDecided, Peer: peer.ID(b[noteHead:]), ID: id, Msg: m})
		return nil
	})
}

// resumeLocks does what a stop left out: it goes before everything else.
func (e *Engine) resumeLocks(now int64) error {
	noted := e.noted
	e.noted = nil
	for i := range noted {
		if err := e.step(now, &noted[i]); err != nil {
			return err
		}
	}
	if e.cfg.Locks != nil {
		e.fx = e.hop.resumeLocks(e.fx)
	}
	return nil
}

// HeldLocks are the locks of neighbours that a packet here hangs on. For callers
// before Start.
func (e *Engine) HeldLocks() []HeldLock { return e.hop.HeldLocks() }

// OfferOf is the prepare that goes with a lock of ours. For callers before Start.
func (e *Engine) OfferOf(p peer.ID, id uint64) (Msg, bool) { return e.hop.OfferOf(p, id) }

// LockTaken tells that the neighbour's lock is held.
func (e *Engine) LockTaken(p peer.ID, l lock.Lock) error {
	return e.put(item{lock: &Event{Kind: EvLockTaken, Peer: p, ID: l.ID, Lock: &l}})
}

// LockEnded tells that a lock of the neighbour is over.
func (e *Engine) LockEnded(p peer.ID, id uint64) error {
	return e.put(item{lock: &Event{Kind: EvLockEnded, Peer: p, ID: id}})
}

// LockPaid tells that a lock of ours is paid, and that this is noted on disk.
func (e *Engine) LockPaid(p peer.ID, id uint64, preimage tally.Preimage) error {
	return e.put(item{lock: &Event{Kind: EvLockDecided, Peer: p, ID: id, Msg: &Msg{Kind: MsgFulfil, Preimage: preimage}}})
}

// LockFailed tells that a lock of ours will never be paid, because of code: that is
// noted on disk, or nothing of it ever left. CodeRefused: the neighbour gave it up,
// and its reject says why.
func (e *Engine) LockFailed(p peer.ID, id uint64, code Code, headroom tally.Amount) error {
	return e.put(item{lock: &Event{Kind: EvLockDecided, Peer: p, ID: id, Msg: &Msg{Kind: MsgReject, Code: code, Headroom: headroom, Hop: hopIn}}})
}

// lockID names a lock of a neighbour.
type lockID struct {
	peer peer.ID
	id   uint64
}

// showing is what waits for the channel to take a preimage.
type showing struct {
	record  func(*durable.Batch)
	decided func(error)
}

// lockItem steps what the channels tell.
func (e *Engine) lockItem(now int64, ev *Event) error {
	if ev.Kind == EvLockShown {
		k := lockID{ev.Peer, ev.ID}
		if s := e.showing[k]; s.decided != nil {
			var err error
			if ev.Failed {
				err = ErrNotHeld
			}
			s.decided(err)
		}
		delete(e.showing, k)
	}
	return e.step(now, ev)
}

// lockEffect carries an effect about a lock out.
func (e *Engine) lockEffect(f *Effect) {
	locks := e.cfg.Locks
	if locks == nil {
		return // found in a journal that locks were made with; they wait for who has them
	}
	switch f.Kind {
	case FxLock:
		locks.Receive(f.Peer, f.Msg)
	case FxOffer:
		key, rec := journalKey(f.Key), f.Record
		locks.Offer(f.Peer, f.Key, int64(f.Ref), f.Msg, func(b *durable.Batch) {
			b.Put(key, durable.Seal(nil, key, recordVersion, rec))
		})
	case FxShow:
		e.showLock(f)
	case FxGive:
		why := *f.Msg
		why.Data = append([]byte(nil), why.Data...)
		locks.Give(f.Peer, f.Ref, &why)
	case FxAsk:
		locks.Ask(f.Peer, f.Key)
	}
}

func (e *Engine) showLock(f *Effect) {
	p, id, key, owed := f.Peer, f.Ref, f.Key, f.Kept
	own := e.showing[lockID{p, id}].record
	record := func(b *durable.Batch) {
		if key != 0 {
			b.Delete(journalKey(key))
		}
		if own != nil {
			own(b)
		}
	}
	e.cfg.Locks.Show(p, id, f.Msg.Preimage, owed, record, func(err error) {
		if err != nil && owed {
			e.log.Warn("a lock that was paid for is over at the neighbour that made it", "peer", p, "lock", id, "err", err)
		}
		// Closed: the restart asks again.
		_ = e.put(item{lock: &Event{Kind: EvLockShown, Peer: p, ID: id, Failed: err != nil}})
	})
}
