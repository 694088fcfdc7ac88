package locker

import (
	"fmt"

	"github.com/filecoin-project/go-address"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paystream/lock"
)

// receive checks who signed what, and queues it.
func (l *line) receive(m *Msg) error {
	payer := l.role == lock.Payer
	fromPayer := m.Send == lock.SendLock || m.Send == lock.SendUnlock || m.Send == lock.SendCancelAck
	if !m.Sync && m.Send != lock.SendShow && fromPayer == payer {
		return fmt.Errorf("%w: %d from the %s's neighbour", ErrMessage, m.Send, l.role)
	}
	it := item{ev: lock.Event{ID: m.ID, Amount: m.Amount, Preimage: m.Preimage}}
	ev := &it.ev
	l.mu.Lock()
	ours, theirs := l.from, l.to
	l.mu.Unlock()
	if !payer {
		ours, theirs = theirs, ours
	}
	if ours == address.Undef {
		return ErrUnseen
	}
	voucher := func(raw []byte, signer address.Address, v *lock.Voucher) error {
		sv, got, err := decode(raw)
		if err != nil {
			return err
		}
		if sv.ChannelAddr != l.ch {
			return fmt.Errorf("%w: voucher of channel %s", ErrMessage, sv.ChannelAddr)
		}
		if err := paych.Verify(sv, signer); err != nil {
			return fmt.Errorf("%w: %w", ErrSigner, err)
		}
		*v = got
		return nil
	}
	// A LOCK may be one under a point: what cannot be completed is no lock.
	locked := func(raw []byte, signer address.Address, v *lock.Voucher) error {
		if !paych.IsPointLock(raw) {
			return voucher(raw, signer, v)
		}
		p, got, err := decodePoint(raw)
		if err != nil {
			return err
		}
		t := pointTerms(&got)
		t.Channel, t.From = l.ch, signer
		if err := p.Check(&t); err != nil {
			return fmt.Errorf("%w: %w", ErrSigner, err)
		}
		*v = got
		return nil
	}
	var err error
	switch {
	case m.Sync:
		if uint64(len(m.Lanes)) > l.k.terms.Slots {
			return fmt.Errorf("%w: a sync of %d lanes", ErrMessage, len(m.Lanes))
		}
		ev.Kind, ev.Lanes = lock.EvSync, m.Lanes
	case m.Send == lock.SendLock:
		ev.Kind = lock.EvLock
		err = locked(m.Voucher, theirs, &ev.Voucher)
		if err == nil && len(m.Guard) != 0 {
			err = voucher(m.Guard, theirs, &ev.Guard)
		}
		if err == nil {
			l.catchUp(ev.Voucher.Expires)
		}
	case m.Send == lock.SendLockAck:
		ev.Kind = lock.EvAcked
	case m.Send == lock.SendFulfil:
		ev.Kind = lock.EvPreimage
	case m.Send == lock.SendUnlock:
		ev.Kind = lock.EvUnlock
		err = voucher(m.Voucher, theirs, &ev.Voucher)
	case m.Send == lock.SendUnlockAck:
		ev.Kind = lock.EvUnlockAcked
	case m.Send == lock.SendCancel:
		ev.Kind = lock.EvCancel
		err = voucher(m.Voucher, theirs, &ev.Voucher)
	case m.Send == lock.SendCancelAck:
		ev.Kind = lock.EvCancelAcked
	case m.Send == lock.SendShow:
		ev.Kind = lock.EvShown
		err = locked(m.Voucher, ours, &ev.Voucher)
	default:
		err = fmt.Errorf("%w: kind %d", ErrMessage, m.Send)
	}
	if err != nil {
		return err
	}
	it.done = func(err error) {
		if err != nil {
			l.k.log.Debug("message about a lock not taken", "peer", l.peer, "channel", l.ch, "kind", int(m.Send), "lock", m.ID, "err", err)
		}
	}
	return l.put(it)
}
