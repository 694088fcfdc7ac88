package paystream

import (
	"encoding/hex"

	"github.com/tallystick/tally"
)

// PacketID names one packet, the same along its way and for ever. It is drawn by
// the payer.
type PacketID [16]byte

// String returns the id in hex.
func (id PacketID) String() string { return hex.EncodeToString(id[:]) }

// Totals are what an endpoint tells its peer, in its own units. They are counted
// from the socket's beginning, so that a message that is lost, repeated or
// overtaken by packets in flight makes nothing double.
type Totals struct {
	// Expected is how much it will have received when it stops asking.
	Expected tally.Amount
	// Wanted is how much it will have received when it takes no more.
	Wanted Total
	// Offer is how much it will have sent when it sends no more, if asked.
	Offer Total
}

// EventKind names what happened to a socket. Each constant says which fields of
// Event it reads.
type EventKind uint8

const (
	// EvLimits: the application sets Min and Max, also over what R6 has raised.
	EvLimits EventKind = iota + 1
	// EvState: an authentic State of the peer in a session that is confirmed:
	// Seq, SeenSeq (the highest of ours it has) and Totals. Known: it came in the
	// reply to a packet that left when our count of what had arrived was Arrived,
	// and Amount is what the peer says it has received.
	EvState
	// EvSession: a new session is confirmed. What the peer told before does not
	// count in it.
	EvSession
	// EvRate: the way to the peer was measured: Rate. The first one sets the
	// floor price, Slip parts of 10 000 below it.
	EvRate
	// EvPump: there is room for one packet of at most Amount; ID is its name,
	// which no other packet has.
	EvPump
	// EvFulfilled: packet ID was fulfilled. Known: Arrived is from an authentic
	// reply.
	EvFulfilled
	// EvRejected: packet ID was rejected, or never left.
	EvRejected
	// EvArrive: a packet ID of the peer arrived with Amount; it is not to be
	// taken below Least; the peer gave Sent for it, in its units (0: not told).
	// Expired, Seen and Opens are what the shell found. It is held until EvTake
	// or EvDrop, unless it is refused: with an error, or with FxReject.
	EvArrive
	// EvTake: the packet ID that arrived is to be fulfilled.
	EvTake
	// EvDrop: the packet ID that arrived is to be rejected after all.
	EvDrop
)

// Event is one input of Socket.Step: a plain value, so that a packet allocates
// nothing here.
type Event struct {
	Kind     EventKind
	Known    bool
	Expired  bool
	Seen     bool
	Opens    bool
	ID       PacketID
	Amount   tally.Amount
	Least    tally.Amount
	Sent     tally.Amount
	Arrived  tally.Amount
	Seq      uint64
	SeenSeq  uint64
	Min, Max Limit
	Totals   Totals
	Rate     Rate
	Slip     uint64
}

// EffectKind names what the shell has to do.
type EffectKind uint8

const (
	// FxSave: the socket's record, and the hold or decision that the event
	// made, are on disk, synced, before any later effect is carried out.
	FxSave EffectKind = iota + 1
	// FxSend: send packet ID of Amount, to be taken for Least or more.
	FxSend
	// FxFulfil: fulfil packet ID.
	FxFulfil
	// FxReject: reject packet ID.
	FxReject
	// FxNote: the record changed by something that no later effect stands on;
	// it goes to disk with the next save.
	FxNote
	// FxTell: the totals changed; tell the peer until it has them.
	FxTell
)

// String names the effect as transcripts show it.
func (k EffectKind) String() string {
	names := [...]string{"", "save", "send", "fulfil", "reject", "note", "tell"}
	if int(k) < len(names) && k != 0 {
		return names[k]
	}
	return "?"
}

// Effect is one duty that follows from an event, in order: a save always comes
// before the send or the fulfil that it makes safe.
type Effect struct {
	Kind          EffectKind
	ID            PacketID
	Amount, Least tally.Amount
	Err           error // of FxReject: why
}

// hold is a packet of ours that is not decided.
type hold struct {
	amount, least tally.Amount
	high          tally.Amount // what of it can arrive at the most
}

// taken is a packet of the peer that is not decided.
type taken struct {
	amount tally.Amount
	sent   tally.Amount // what the peer gave for it, in its units
	refund bool         // it brought back money of ours
}
