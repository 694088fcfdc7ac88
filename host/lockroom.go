package host

import (
	"context"

	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/settler"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/lock"
)

// Times implements forward.Locks.
func (l *Locks) Times() (lock.Terms, lock.Clock, bool) {
	if l.keeper.Off() != nil {
		return lock.Terms{}, lock.Clock{}, false
	}
	clock, ok := l.keeper.Clock(l.engine.Now())
	return l.keeper.Terms(), clock, ok
}

// Room implements forward.Locks.
func (l *Locks) Room(p peer.ID) (forward.Room, bool) {
	w, ok := l.Way(p)
	info, _ := l.packets.Info(p)
	return forward.Room{
		Free: w.Free, Coming: l.coming(p, w.Free), Slots: int(l.keeper.Terms().Slots), Points: info.PointLocks && l.under && l.points(),
	}, ok
}

// coming is the money of ours that is on its way into the channel to p, or is there and
// not ready for locks yet, beside what is free in it.
func (l *Locks) coming(p peer.ID, free tally.Amount) tally.Amount {
	if info, ok := l.packets.Info(p); !ok || info.LockDelta == 0 || l.keeper.Off() != nil {
		return 0
	}
	_, tag, _ := l.links.Linked(p, true) // also while it is being opened
	c, ok := l.manager.PaychTaggedInfo(tag)
	switch {
	case !ok:
		return 0
	case c.Phase == paych.PhaseCreating:
		return unitsDown(c.PendingFree)
	case c.Phase == paych.PhaseOpen:
		return unitsDown(c.PendingFree).SaturatingAdd(unitsDown(c.Funds.Free())).SaturatingSub(free)
	default:
		return 0 // it ends
	}
}

// Least implements forward.Locks.
func (l *Locks) Least() tally.Amount { return tally.Amount(l.least.Load()) }

// price asks what it costs to claim a lock.
func (l *Locks) price() {
	if l.fee == nil {
		return
	}
	ctx, cancel := context.WithTimeout(l.ctx, lockPriceWithin)
	defer cancel()
	fee, err := l.fee(ctx)
	if err != nil {
		return // the last price stands
	}
	units := uint64(1) << 62
	if n := big.Div(big.Add(fee, big.NewInt(settler.AttoPerUnit-1)), big.NewInt(settler.AttoPerUnit)); n.IsUint64() {
		units = n.Uint64()
	}
	l.least.Store(units)
}
