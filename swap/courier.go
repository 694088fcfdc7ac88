package swap

import (
	"context"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Courier carries messages to peers; protocols/swapnet is one.
type Courier interface {
	// Send hands m to the peer's session. ErrNoSession where there is none. It
	// may be called from many goroutines and must not call back into the book.
	Send(ctx context.Context, p peer.ID, m Message) error
	// Disconnect closes all connections to the peer.
	Disconnect(p peer.ID) error
}
