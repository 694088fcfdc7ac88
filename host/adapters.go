package host

import (
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/protocols/storenet"
	"github.com/tallystick/tally/swap"
)

// serviceStore is the name of the message store in the books.
const serviceStore = "store"

// storeMeter puts the message store on the tabs.
type storeMeter struct{ book *swap.Book }

var _ storenet.Meter = storeMeter{}

// Serve reserves what a peer is to owe us.
func (m storeMeter) Serve(ctx context.Context, p peer.ID, units tally.Amount) (storenet.Hold, error) {
	hold, err := m.book.TryReserve(ctx, p, serviceStore, swap.Serve, units)
	if err != nil {
		return nil, err
	}
	return hold, nil
}

// Consume reserves what we are to owe a peer, and waits for a settlement while
// ctx allows.
func (m storeMeter) Consume(ctx context.Context, p peer.ID, units tally.Amount) (storenet.Hold, error) {
	hold, err := m.book.Reserve(ctx, p, serviceStore, swap.Consume, units)
	if errors.Is(err, swap.ErrTooLarge) {
		return nil, fmt.Errorf("%w: %w", storenet.ErrHoldTooLarge, err)
	}
	if err != nil {
		return nil, err
	}
	return hold, nil
}

// HeadroomServe is what the peer may still take; 0 where its tab cannot be read.
func (m storeMeter) HeadroomServe(p peer.ID) tally.Amount {
	room, err := m.book.Headroom(p, swap.Serve)
	if err != nil {
		return 0
	}
	return room
}
