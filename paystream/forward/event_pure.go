package forward

import (
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/paystream/lock"
)

// EventKind names what happened.
type EventKind uint8

// Kinds of event. Each constant says which fields of Event it reads.
const (
	// EvMessage: Peer sent Msg.
	EvMessage EventKind = iota + 1
	// EvUp: a session with Peer has begun, which takes Window packets at once.
	EvUp
	// EvDown: it has ended.
	EvDown
	// EvSend: Msg, a prepare without id, is to be sent for a caller that knows
	// it as Ref. Keep: its result stays until EvForget.
	EvSend
	// EvFulfil: the packet ID of Peer, which is for us, is fulfilled with
	// Msg.Preimage and Msg.Data.
	EvFulfil
	// EvReject: it is rejected, with Msg.Code, Msg.Data.
	EvReject
	// EvTick: about a second passed.
	EvTick
	// EvKeep: the packet ID of Peer, which is for us, waits for its endpoint. Msg
	// has its data and token.
	EvKeep
	// EvForget: the result of the packet Msg.Part of our own is not needed any more.
	EvForget

	// EvLockTaken: the lock ID of Peer is held: Lock.
	EvLockTaken
	// EvLockEnded: the lock ID of Peer is over.
	EvLockEnded
	// EvLockShown: what FxShow asked for is saved, or with Failed refused.
	EvLockShown
	// EvLockDecided: our lock ID to Peer is paid, Msg is a fulfil, or never will be,
	// Msg is a reject.
	EvLockDecided
)

// Event is one input of Step.
type Event struct {
	Kind   EventKind
	Peer   peer.ID
	ID     uint64
	Ref    uint64
	Window int
	Keep   bool
	// Opens: whoever fulfils has seen that the preimage opens the condition.
	Opens bool
	// Owed: whoever fulfils has paid for the preimage.
	Owed   bool
	Failed bool
	Msg    *Msg
	Lock   *lock.Lock
}

// EffectKind names what the shell has to do.
type EffectKind uint8

// Kinds of effect.
const (
	// FxSave: Record lies under Key, together with the tabs that the step booked
	// on, before any later send or result is carried out. Without Record nothing
	// is left under Key.
	FxSave EffectKind = iota + 1
	// FxDelete: the record under Key goes. No send waits for it.
	FxDelete
	// FxDeliver: offer Msg of Peer to our endpoints, at once. Their answer may be
	// the next event.
	FxDeliver
	// FxSend: Msg goes to Peer.
	FxSend
	// FxResult: the packet Ref of our own is decided: Msg is a fulfil or a
	// reject. It waits for saves like a send. Kept: its sender keeps it.
	FxResult
	// FxGone: the packet Msg.Part, which was kept for an endpoint of ours, was
	// rejected because its time is over. It waits for saves like a send.
	FxGone

	// The rest goes to whoever keeps the channels, and waits for saves like a send.

	// FxLock: Msg of Peer is about a lock.
	FxLock
	// FxOffer: a lock Key to Peer until the epoch Ref, for Msg, a prepare that goes
	// with it. Record lies under Key with the lock. EvLockDecided follows.
	FxOffer
	// FxShow: the preimage in Msg of the lock Ref of Peer is shown. Kept: we have paid
	// for it. EvLockShown follows; the record under Key goes with it.
	FxShow
	// FxGive: the lock Ref of Peer is given up, for the reason in Msg.
	FxGive
	// FxAsk: Peer is asked to give our lock Key up.
	FxAsk
	// FxUnnote: what was noted of our lock Key is done. No send waits for it.
	FxUnnote
)

// Effect is one duty of the shell. Msg is good until the core is stepped after
// Reset.
type Effect struct {
	Kind   EffectKind
	Peer   peer.ID
	Key    uint64
	Ref    uint64
	Kept   bool
	Msg    *Msg
	Record []byte
}
