package rpctest

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/host/rpc"
)

// LocksOf is the part of a peer that keeps locks: one of ours with Peer, where that is
// set, else none, because there is no chain.
type LocksOf struct{ LockPeer string }

// Locks implements that part of rpc.Node.
func (l *LocksOf) Locks(_ context.Context, id peer.ID) ([]rpc.LockRow, error) {
	if l.LockPeer == "" || id != "" && id.String() != l.LockPeer {
		return nil, nil
	}
	at := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	return []rpc.LockRow{{
		Peer: l.LockPeer, Channel: "t2lock", Role: "payer", ID: 7, Lane: 1, Phase: "locked", Amount: 4001,
		PaymentHash: "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", ExpiresEpoch: 2000, ExpiresAt: &at, Acked: true,
	}}, nil
}

// LockState implements that part of rpc.Node.
func (l *LocksOf) LockState(context.Context) (rpc.LockState, error) {
	if l.LockPeer == "" {
		return rpc.LockState{Why: "nothing settles on a chain: locks need one, and mode hard"}, nil
	}
	return rpc.LockState{
		On: true, Slots: 64, Finality: 5, Inclusion: 20, Grace: 10, Margin: 480, HopDelta: 36, HopDeltaSeconds: 1080,
		Horizon: 960, HorizonSeconds: 28_800, Channels: []rpc.LockChannel{{Peer: l.LockPeer, Channel: "t2lock", Free: 5999, FreeSlots: 63}},
	}, nil
}
