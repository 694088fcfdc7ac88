package payments

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Outgoing is a part that leaves. Nothing of it changes later.
type Outgoing struct {
	PartID PartID
	Dest   peer.ID
	// Via are the peers on the way, without the payee; empty where the carrier
	// knows better.
	Via []peer.ID
	// Amount is what the first neighbour gets: with the fees of those that follow.
	Amount    tally.Amount
	Expires   time.Time
	Condition tally.Hashlock
	// Point is 0, or the first byte of the point whose x is Condition: every hop carries
	// it under a lock of that point, or rejects it.
	Point byte
	Data  []byte
}

// Answer is what became of a part of ours.
type Answer struct {
	PartID PartID
	// Fulfilled: Preimage opens the condition, and we shall be charged. Else
	// nothing was taken, because of Failure.
	Fulfilled bool
	Preimage  tally.Preimage
	Failure   Failure
}

// Carrier takes parts to other nodes, on credit or under locks. Its methods queue
// what they are told and never wait for disk or network; the callbacks come from
// any goroutine, and never from within a call.
//
// What it promises, beside what each method says:
//
//   - What it took it keeps over restarts, on either side. In particular a part
//     that waits at its payee is still there after the payee restarts.
//   - Its disk is the service's. When that has failed it decides nothing more, not
//     even that a part has expired: a claim may be on disk.
//   - What it tells about one part comes in its order: Part never after Gone, nor
//     after the decision about it is confirmed. A part that counted again then would
//     be claimed, and could not be collected.
//   - Part ids in flight at a node are unique: a second one is refused before the
//     handler hears of it.
//   - All nodes on the way charge what a part costs exactly if its payer is
//     answered with the preimage.
//
// package paymentstest shows it in memory.
type Carrier interface {
	// Send takes p on its way. With an error nothing has left.
	Send(p *Outgoing) error
	// Forget tells that the answer about a part of ours is saved. Until then, it is
	// told again after each restart.
	Forget(id PartID)
	// Fulfil claims a part that waits here. done is called with nil once that is
	// saved, after which the carrier tells the payer for as long as it takes; with
	// an error where the part is not here any more. A part that was here before a
	// restart can be claimed after it, also where it has expired meanwhile, while
	// its payer is still bound.
	Fulfil(id PartID, preimage tally.Preimage, done func(error))
	// Reject gives a part back. done is called as for Fulfil.
	Reject(id PartID, code FailCode, done func(error))
	// CertainBy is when a part that expires then, on a way of that many hops, is
	// decided at its payer, whatever others do.
	CertainBy(expires time.Time, hops int) time.Time
	// Sent returns the parts of ours that are not forgotten, and Waiting those of
	// others that are not decided. Both are called once, before Start.
	Sent(ctx context.Context) ([]PartID, error)
	Waiting(ctx context.Context) ([]PartID, error)
	// Start gives the carrier its handler, and lets it begin. It tells again what
	// it told before a restart.
	Start(h Handler)
}

// OwedCarrier is a Carrier that can be told that a claim is owed: that whoever makes it
// has paid for the preimage, and has nothing to lose by showing it late.
type OwedCarrier interface {
	Carrier
	// FulfilOwed is Fulfil of such a claim.
	FulfilOwed(id PartID, preimage tally.Preimage, done func(error))
}

// LockCarrier is a Carrier that takes what is too large for a tab under locks. Those
// need time of another kind: each hop has to be paid by the chain, if it comes to that,
// before the one before it ends.
type LockCarrier interface {
	Carrier
	// LockTime is what the hops of a way add to the time of a part that the first
	// neighbour takes under a lock alone, which it does under a point; 0 where it takes
	// it on credit, or not at all.
	LockTime(dest peer.ID, via []peer.ID, amount tally.Amount, point bool) time.Duration
	// LockCertainBy is CertainBy of such a part.
	LockCertainBy(expires time.Time) time.Time
}

// Handler is what a carrier tells. The methods never wait for disk or network.
type Handler interface {
	// Part is here, for us. It waits until Fulfil or Reject, and at most until it
	// expires, when the carrier says Gone.
	Part(a *Arrival)
	// Gone: a part that waited here is not here any more.
	Gone(id PartID)
	// Answer is what became of a part of ours.
	Answer(a *Answer)
}

// Request is what pay asks a router for.
type Request struct {
	Dest   peer.ID
	Amount tally.Amount
	// MaxFee is what is left to be spent on fees.
	MaxFee tally.Amount
	// MaxParts is how many further parts may live.
	MaxParts int
	Hints    []Hint
	// Locks: under locks alone.
	Locks bool
}

// Leg is one part of a plan.
type Leg struct {
	Via    []peer.ID
	Amount tally.Amount // what arrives
	Fee    tally.Amount
	Locks  bool // as in the request
}

// Router finds ways. It is asked and told by one goroutine at a time, and works in
// memory.
type Router interface {
	// Plan returns legs whose amounts sum up to the request's, or an error that
	// wraps ErrNoRoute: a RestError where a moment later there would be some.
	Plan(now time.Time, r *Request) ([]Leg, error)
	// Sent, Done and Failed tell what becomes of a leg: Sent blocks room on its way
	// until one of the others.
	Sent(now time.Time, dest peer.ID, l *Leg)
	Done(now time.Time, dest peer.ID, l *Leg)
	Failed(now time.Time, dest peer.ID, l *Leg, f Failure)
}
