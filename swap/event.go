package swap

import (
	"github.com/tallystick/tally"
)

// Direction tells who works for whom in one use of a service.
type Direction uint8

const (
	// Serve: we do the work and the peer will owe us (debit).
	Serve Direction = iota + 1
	// Consume: the peer does the work and we will owe it (credit).
	Consume
)

// String returns serve or consume.
func (d Direction) String() string {
	switch d {
	case Serve:
		return "serve"
	case Consume:
		return "consume"
	default:
		return "?"
	}
}

// EventKind names what happened. Each constant says which fields of Event it
// reads.
type EventKind uint8

const (
	// EvReserve: a service wants Units in direction Dir, before work is done.
	EvReserve EventKind = iota + 1
	// EvCommit: Units were delivered in direction Dir, out of a reservation of
	// Held (0 for a service that is counted after the fact). Lost: the
	// reservation had been given up as unanswered before.
	EvCommit
	// EvRelease: a reservation of Held ends unused. Lost: our request had left
	// and no answer came, so the peer may have booked it.
	EvRelease
	// EvSession: a session with the peer is ready: both handshakes were read.
	// Terms holds what the peer told.
	EvSession
	// EvSessionEnd: the last session with the peer is gone.
	EvSessionEnd
	// EvTick: time passed.
	EvTick
	// EvSettle: someone wants the exact debt settled now, and Units paid ahead of
	// service (0 for none).
	EvSettle
	// EvIssued: the intended cheque Serial is signed, and is saved by the
	// effects of this event before it leaves.
	EvIssued
	// EvIssueFailed: the cheque Serial could not be issued or sent.
	EvIssueFailed
	// EvAck: the peer credited us up to Cumulative for our cheque Serial.
	EvAck
	// EvRefused: the peer refused our cheque Serial.
	EvRefused
	// EvCheque: a verified cheque Serial of the peer, with Cumulative, of which
	// Covered is backed. Totals are what the peer signed in it. Again: another
	// cheque had the same serial, and this one names more.
	EvCheque
	// EvKarma: an unsigned cheque of the seed's protocol raised what the peer
	// paid by Units.
	EvKarma
	// EvStatement: the peer told its Totals.
	EvStatement
	// EvAdoptSent: the peer proved with our own signature that we once issued
	// cheque Serial with Cumulative and Totals, which we have forgotten.
	EvAdoptSent
	// EvAdoptReceived: the peer proved with our own signature that we once
	// credited it up to Cumulative for cheque Serial, with our Totals.
	EvAdoptReceived
	// EvResolve: the operator takes the peer's figures, Totals, for an open
	// skew.
	EvResolve
	// EvDenied: the ledger refused the peer service.
	EvDenied
	// EvUnblock: the operator lifts a block.
	EvUnblock
	// EvTold: our totals went to the peer.
	EvTold
	// EvPacketHold: a packet of Units is to be carried on credit. Serve: the
	// peer offers it to us and will owe us; Consume: we offer it to the peer.
	EvPacketHold
	// EvPacketKeep: a packet hold of Units that was taken before a restart. It
	// counts whatever the limits are now.
	EvPacketKeep
	// EvPacketCommit: the packet of Units was fulfilled.
	EvPacketCommit
	// EvPacketRelease: the packet of Units was rejected.
	EvPacketRelease
	// EvPacketRefused: the peer, or a node beyond it, had no room for a packet of
	// ours that we had room for.
	EvPacketRefused
	// EvCover: the chain would pay what we credited up to Covered now.
	EvCover
	// EvFinal: the channel behind the cheques of one direction is gone for good,
	// and Cumulative is what it really paid, with all that was paid before it.
	// Dir Serve: the peer's cheques to us; Consume: ours.
	EvFinal
	// EvRetry: what an open settlement waited for is there.
	EvRetry
)

// Terms is what a peer told in its handshake.
type Terms struct {
	// PaymentThreshold and DisconnectThreshold as announced, not yet clamped.
	PaymentThreshold, DisconnectThreshold tally.Amount
	// Mode is ModeUnset for peers of the seed's protocol.
	Mode Mode
	// Native is set where the peer speaks our own protocol, with acks,
	// statements and recovery.
	Native bool
}

// Totals are one side's absolute counts of a relation, in units, from that
// side's point of view.
type Totals struct {
	// Served is all that the teller ever served the other side, Consumed all
	// that it ever consumed from it.
	Served, Consumed tally.Amount
	// Paid is all that the teller's cheques ever paid the other side, Received
	// all that it credited of the other side's.
	Paid, Received tally.Amount
	// SeenServed and SeenConsumed are the other side's Served and Consumed that
	// the teller knew when it spoke. Only a figure told in knowledge of ours is
	// a final one.
	SeenServed, SeenConsumed tally.Amount
	// AtRest: the teller had nothing in flight.
	AtRest bool
	// Uncovered is the part of Received that lost its backing on the chain. The
	// teller serves nothing on credit until it is covered again.
	Uncovered tally.Amount
	// Owed is what the teller holds that the other side owes it, beyond what was
	// paid ahead either way.
	Owed tally.Amount
}

// Event is one input of Ledger.Step. It is a plain value so that the message
// path allocates nothing.
type Event struct {
	Kind       EventKind
	Dir        Direction
	Lost       bool
	Again      bool
	Units      tally.Amount
	Held       tally.Amount
	Serial     uint64
	Cumulative tally.Amount
	Covered    tally.Amount
	Terms      *Terms
	Totals     *Totals
}

// EffectKind names what the shell has to do.
type EffectKind uint8

const (
	// FxSave: the record (with the cheque or ack that belongs to the event) is
	// on disk, synced, before any later effect is carried out.
	FxSave EffectKind = iota + 1
	// FxFlush: so many units are unsaved that the record must be on disk before
	// the work goes on.
	FxFlush
	// FxIssue: ask the settler for cheque Serial with Cumulative.
	FxIssue
	// FxSendCheque: send the saved cheque Serial.
	FxSendCheque
	// FxSendAck: send the ack of cheque Serial.
	FxSendAck
	// FxSendStatement: tell the peer our totals.
	FxSendStatement
	// FxDisconnect: close the connection; the peer is blocked for a time, and
	// may always come back to shake hands and pay.
	FxDisconnect
	// FxWake: headroom may have grown; callers that wait should try again.
	FxWake
)

// String names the effect as transcripts show it.
func (k EffectKind) String() string {
	names := [...]string{"", "save", "flush", "issue", "send-cheque", "send-ack", "send-statement", "disconnect", "wake"}
	if int(k) < len(names) && k != 0 {
		return names[k]
	}
	return "?"
}

// Effect is one duty that follows from an event. Effects are carried out in
// order: a save always comes before the send that it makes safe.
type Effect struct {
	Kind       EffectKind
	Serial     uint64
	Cumulative tally.Amount
}

// Effects of the message path are shared and read-only, so that a step there
// allocates nothing.
var fxFlush = []Effect{{Kind: FxFlush}}
