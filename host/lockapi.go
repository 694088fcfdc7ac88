package host

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/paystream/payments"
)

// Locks lists the locks that are not over, with all peers where id is empty.
func (a *API) Locks(_ context.Context, id peer.ID) ([]rpc.LockRow, error) {
	l := a.node.locks
	if l == nil {
		return nil, nil
	}
	_, clock, seen := l.Times()
	var rows []rpc.LockRow
	for _, x := range l.List() {
		if id != "" && id != x.Peer {
			continue
		}
		row := rpc.LockRow{
			Peer: x.Peer.String(), Channel: x.Channel.String(), Role: x.Role.String(), ID: x.ID, Lane: x.Lane, Phase: x.Phase.String(),
			Amount: uint64(x.Amount), PaymentHash: x.Hash.String(), ExpiresEpoch: x.Expires, Acked: x.Acked,
		}
		if seen {
			at := time.UnixMilli(clock.Over(x.Expires)).UTC()
			row.ExpiresAt = &at
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// traded keeps what was sold and bought for EventsSince. The signature itself is in
// SignatureShow: this log is read by all who hold a token.
func (a *API) traded(t payments.Trade) {
	kind, fields := "signature bought", map[string]any{"point": payments.PointText(t.Point, t.Hash), "amount": uint64(t.Amount)}
	if t.Sold {
		kind, fields["id"] = "signature sold", t.Name
	}
	a.events.Append(time.Now(), kind, t.Seller.String(), fields)
}

// LockState says whether there are locks, and why not.
func (a *API) LockState(context.Context) (rpc.LockState, error) {
	n := a.node
	why := n.locksOff()
	s := rpc.LockState{On: why == "", Why: why}
	if n.locks == nil {
		return s, nil
	}
	t, epoch := n.locks.Terms(), n.locks.epoch()
	seconds := func(epochs int64) uint64 { return uint64((time.Duration(epochs) * epoch).Seconds()) }
	s.Slots, s.Finality, s.Inclusion, s.Grace, s.Margin = t.Slots, t.Finality, t.Inclusion, t.Grace, t.Margin
	s.HopDelta, s.HopDeltaSeconds = t.Delta(), seconds(t.Delta())
	if horizon := t.Horizon(0); horizon > 0 {
		s.Horizon, s.HorizonSeconds = horizon, seconds(horizon)
	}
	for _, p := range n.packets.Neighbours() {
		if w, ok := n.locks.Way(p); ok {
			s.Channels = append(s.Channels, rpc.LockChannel{Peer: p.String(), Channel: w.Channel.String(), Free: uint64(w.Free), FreeSlots: w.Slots})
		}
	}
	return s, nil
}
