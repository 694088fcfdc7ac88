package forward

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// Packet is one to be sent. Its slices must not change before it is decided.
type Packet struct {
	Dest      peer.ID
	Token     []byte
	Via       []peer.ID
	Amount    tally.Amount
	Expires   time.Time
	Condition Condition
	// Preimage, where the sender knows it, spares hashing the answer.
	Preimage tally.Preimage
	// Part is drawn where it is zero.
	Part PartID
	Data []byte
	// MayLock: it may go under a lock where it does not fit a tab. Its payee then has
	// to keep packets. Not with Record and Decided.
	MayLock bool
	// Keep keeps what became of the packet, over restarts, until Forget. It is told
	// to Config.Kept; Decided must not be set.
	Keep bool
	// Record, where set, adds records of the sender to the batch that is saved
	// before the packet leaves. Not called where the packet is refused here.
	Record func(*durable.Batch)
	// Owner is in its Result.
	Owner any
	// Decided, where set, is told what became of the packet before that is saved,
	// on the engine's goroutine; it must not wait. What it returns, where that is
	// not nil, adds records of the sender to the very batch that makes the
	// journal forget the packet: a crash leaves both or neither.
	Decided func(*Result) func(*durable.Batch)
}

// Result is what became of a packet. It and its Data are good during the call.
type Result struct {
	Part PartID
	// Owner is the packet's; nil where it was sent before a restart.
	Owner     any
	Fulfilled bool
	Preimage  tally.Preimage
	Code      Code
	Headroom  tally.Amount
	// Hop is how many hops had taken the packet before the one that rejected it; -1
	// where that is not known.
	Hop  int
	Data []byte
}

// Err is nil where the packet was fulfilled, else a *RejectError.
func (r *Result) Err() error {
	if r.Fulfilled {
		return nil
	}
	return &RejectError{Code: r.Code, Headroom: r.Headroom, Hop: r.Hop, Data: append([]byte(nil), r.Data...)}
}

// resultOf is m as callers see it.
func resultOf(m *Msg) Result {
	return Result{
		Part: m.Part, Fulfilled: m.Kind == MsgFulfil, Preimage: m.Preimage, Code: m.Code, Headroom: m.Headroom,
		Hop: int(m.Hop) - 1, Data: m.Data,
	}
}
