package rpc

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// LockRow is one lock of a channel that is not over.
type LockRow struct {
	Peer    string `json:"peer"`
	Channel string `json:"channel"`
	// Role is ours: payer or payee.
	Role string `json:"role"`
	// ID is the packet's, of its payer.
	ID   uint64 `json:"id"`
	Lane uint64 `json:"lane"`
	// Phase is locked, opened (the preimage is known) or given (given up, and not
	// acked).
	Phase       string `json:"phase"`
	Amount      uint64 `json:"amount"`
	PaymentHash string `json:"payment_hash"`
	// ExpiresEpoch is the last epoch in which the chain takes it, ExpiresAt when that
	// is over as far as the clock tells; nil where the chain was not seen.
	ExpiresEpoch int64      `json:"expires_epoch"`
	ExpiresAt    *time.Time `json:"expires_at"`
	// Acked: of ours, the peer holds it.
	Acked bool `json:"acked"`
}

// LockState says whether the peer makes locks, with what times, and over what.
type LockState struct {
	On bool `json:"on"`
	// Why says why not; empty where On.
	Why string `json:"why"`
	// The times are in epochs, and where they say so in seconds.
	Slots           uint64 `json:"slots"`
	Finality        int64  `json:"finality"`
	Inclusion       int64  `json:"inclusion"`
	Grace           int64  `json:"grace"`
	Margin          int64  `json:"margin"`
	HopDelta        int64  `json:"hop_delta"`
	HopDeltaSeconds uint64 `json:"hop_delta_seconds"`
	Horizon         int64  `json:"horizon"`
	HorizonSeconds  uint64 `json:"horizon_seconds"`
	// Channels are ours to connected peers that take locks.
	Channels []LockChannel `json:"channels"`
}

// LockChannel is what a channel of ours can carry under locks now.
type LockChannel struct {
	Peer    string `json:"peer"`
	Channel string `json:"channel"`
	// Free is its free money, FreeSlots are the locks that still find a place.
	Free      uint64 `json:"free"`
	FreeSlots int    `json:"free_slots"`
}

// LockNode is the part of a Peer that keeps locks.
type LockNode interface {
	// Locks lists the locks that are not over, with all peers where id is empty.
	Locks(ctx context.Context, id peer.ID) ([]LockRow, error)
	// LockState says whether there are locks, and why not.
	LockState(ctx context.Context) (LockState, error)
}

func (a *api) Locks(ctx context.Context, peerID string) ([]LockRow, error) {
	return call(ctx, a, "Locks", func(ctx context.Context) ([]LockRow, error) {
		id, err := optionalPeer(peerID)
		if err != nil {
			return nil, err
		}
		rows, err := a.node.Locks(ctx, id)
		return list(rows), err
	})
}

func (a *api) LockState(ctx context.Context) (LockState, error) {
	return call(ctx, a, "LockState", func(ctx context.Context) (LockState, error) {
		s, err := a.node.LockState(ctx)
		s.Channels = list(s.Channels)
		return s, err
	})
}
