package swap

import (
	"context"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Courier carries messages to peers; protocols/swapnet is one.
type Courier interface {
	// Send hands m to the peer's session. ErrNoSession where there is none. It
	// may be called from many goroutines and must not call back into the book.
	Send(ctx context.Context, p peer.ID, m Message) error
	// Disconnect closes all connections to the peer.
	Disconnect(p peer.ID) error
}

// Settler makes cheques worth money. Its calls are idempotent in the
// cumulative: the book asks again after a crash, and must neither pay twice nor
// lose a payment. They are made without any lock held.
type Settler interface {
	// Issue returns the backing of a cheque to p with this cumulative: the same
	// bytes for the same cumulative and channel.
	Issue(ctx context.Context, p peer.ID, cumulative tally.Amount) (Backing, error)
	// Accept checks the backing of a cheque from p and returns the cumulative
	// that is covered. A duplicate is success.
	Accept(ctx context.Context, p peer.ID, cumulative tally.Amount, backing Backing) (covered tally.Amount, err error)
}

// StatelessSettler is an optional interface of a Settler whose Issue saves
// nothing and moves nothing. The book then need not save the intent before it
// asks, because a forgotten intent has no trace anywhere.
type StatelessSettler interface {
	Settler
	Stateless()
}

// MockSettler backs nothing: in soft and mock mode the issuer's signature is
// all that a cheque is worth. It is the default settler.
type MockSettler struct{}

var _ StatelessSettler = MockSettler{}

// Issue returns no backing.
func (MockSettler) Issue(context.Context, peer.ID, tally.Amount) (Backing, error) { return nil, nil }

// Accept covers the whole cumulative: karma has nothing behind it that could
// fail. A backing is ignored.
func (MockSettler) Accept(_ context.Context, _ peer.ID, cumulative tally.Amount, _ Backing) (tally.Amount, error) {
	return cumulative, nil
}

// Stateless marks that Issue leaves no trace.
func (MockSettler) Stateless() {}
