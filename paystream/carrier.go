package paystream

import (
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// Dest is where a packet goes: a peer, one of its endpoints, and, where no route
// is known, the peers on the way.
type Dest struct {
	Peer  peer.ID
	Token []byte
	Via   []peer.ID
}

// Record adds what has to be saved to a batch. A carrier calls it once, where it
// fills the batch that makes its own record of the packet durable.
type Record func(*durable.Batch)

// Outgoing is a packet that an endpoint sends.
type Outgoing struct {
	ID        PacketID
	Dest      Dest
	Amount    tally.Amount
	Expires   time.Time
	Condition tally.Hashlock
	// Preimage opens the condition, where the packet has an amount: an answer can be
	// compared with it.
	Preimage tally.Preimage
	Data     []byte
	// Record is nil where nothing depends on the packet.
	Record Record

	conn   *Conn
	at     int // its place in Conn.out; -1: it is decided
	flight flight
}

// Incoming is a packet for an endpoint. Token and Data are good during the call.
type Incoming struct {
	ID        PacketID
	From      peer.ID // the neighbour that brought it
	Token     []byte
	Amount    tally.Amount
	Expires   time.Time
	Condition tally.Hashlock
	Data      []byte
}

// Decision is what an endpoint makes of a packet: Preimage where Fulfil is set,
// else a reject, with sealed Data for the payer either way. Without Data the
// reject says nothing, and is the same for everything that does not authenticate. Data is
// good until the next call of the handler.
type Decision struct {
	Fulfil   bool
	Preimage tally.Preimage
	Data     []byte
	Record   Record
}

// Answer is what became of a packet of ours. Data is good during the call.
type Answer struct {
	ID PacketID
	// Sent is the packet itself, as it was handed over; nil where that was before a
	// restart.
	Sent      *Outgoing
	Fulfilled bool
	// Data is from the payee where it authenticates, else from anybody.
	Data []byte
	// Kind and Most are the word of a hop: why, and what it would have carried.
	Kind RejectKind
	Most tally.Amount
}

// Carrier takes packets to other endpoints. What it promises, package
// paystreamtest shows in memory:
//
//   - Record, with its own record of the packet, is on disk before the packet, or
//     the fulfil, leaves. Records are called one after the other, and what a later
//     one adds is not on disk before what an earlier one added. The record of a
//     Decision, or of an Answer, comes before that of any packet that is handed
//     over after.
//   - Packet, Answer and records are called one after the other, so that no record
//     tells of a packet whose own record is in a later batch.
//   - Each packet that was taken is answered through Handler.Answer. After a
//     restart it is answered again, if the record of the answer was not saved.
//   - A fulfil is answered only with the preimage of the condition, and a fulfil
//     that was decided is kept until the payer has it.
type Carrier interface {
	// Send takes p on its way; p and what it points to do not change until it is
	// answered, and may be used again from then on. It does not wait, and calls no
	// method of Handler itself. With an error the packet did not leave, and Record was
	// not called; where that is ErrNoRoom, it is offered again soon.
	Send(p *Outgoing) error
	// Save writes a record that belongs to no packet, in one line with those of
	// packets: what it adds replaces nothing that a later one added. It does not
	// wait.
	Save(r Record) error
}

// Roomer is a Carrier that knows the tab with the first hop.
type Roomer interface {
	// Room returns how much more value the first hop on the way to d takes now,
	// beside what is in flight; ok is false where that is not known. It is called
	// under a socket's lock, and must not wait.
	Room(d Dest) (n tally.Amount, ok bool)
}

// Handler is an endpoint, as its carrier sees it. The methods may be called from
// any goroutine, never wait for disk or network, and never call the carrier.
type Handler interface {
	Packet(in *Incoming) Decision
	// Answer tells the end of a packet, once. The record, which may be nil, is saved
	// with what makes the carrier forget the packet.
	Answer(a *Answer) Record
}

// ErrNoRoom: the carrier has too much to do to take one more packet now.
var ErrNoRoom = errors.New("paystream: the carrier is busy")
