package storenet

import (
	"context"
	"errors"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Meter is the tab with a peer, as far as this service needs it. One unit is one
// message, or one hash where only hashes were asked for. Its methods may be
// called at the same time; they must not call back into the server or client.
type Meter interface {
	// Serve reserves units that p is to owe us. It refuses before work is done,
	// at once; the text of the error is sent to the peer, so it should say what
	// is owed and up to where.
	Serve(ctx context.Context, p peer.ID, units tally.Amount) (Hold, error)

	// Consume reserves units that we are to owe p. Where the tab is full it may
	// wait, while ctx allows, for a settlement. An error that wraps
	// ErrHoldTooLarge means that so many units can never be had at once.
	Consume(ctx context.Context, p peer.ID, units tally.Amount) (Hold, error)

	// HeadroomServe is the largest number of units that Serve would grant now.
	// Another request may take them before Serve is called.
	HeadroomServe(p peer.ID) tally.Amount
}

// Hold is a reservation on the tab. Exactly one of its methods is called, once.
type Hold interface {
	// Commit books units, at most what was reserved, and returns the rest. When
	// it returns nil the booking survives as the ledger promises.
	Commit(units tally.Amount) error
	// Release returns the whole reservation: nothing was delivered.
	Release() error
	// Lost says that the request left and no answer came: the other side may
	// have booked. The ledger keeps the reservation until it knows.
	Lost() error
}

// ErrHoldTooLarge is wrapped by an error of Consume for a reservation above the
// whole threshold. The client then asks for smaller pages.
var ErrHoldTooLarge = errors.New("storenet: more units than the tab can ever hold")
