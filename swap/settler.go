package swap

import (
	"context"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Claim is what a cheque claims, as the side that asks sees it.
type Claim struct {
	// Cumulative is all that the cheque says was ever paid.
	Cumulative tally.Amount
	// Credited is the part of it that counts as paid already: of our own cheques
	// what the peer acked, of a peer's what we credited.
	Credited tally.Amount
}

// Settler makes cheques worth money. Its calls are idempotent in the
// cumulative: the book asks again after a crash, and must neither pay twice nor
// lose a payment. They are made without any lock held.
type Settler interface {
	// Issue returns the backing of a cheque to p: the same bytes for the same
	// cumulative and channel. An error says what it waits for; Book.Retry ends
	// the wait.
	Issue(ctx context.Context, p peer.ID, c Claim) (Backing, error)
	// Accept checks the backing of a cheque from p and returns the cumulative
	// that is covered. A duplicate is success. ErrUncovered where the backing is
	// good and the chain would not pay for it yet.
	Accept(ctx context.Context, p peer.ID, c Claim, backing Backing) (covered tally.Amount, err error)
}

// StatelessSettler is an optional interface of a Settler whose Issue saves
// nothing and moves nothing. The book then need not save the intent before it
// asks, because a forgotten intent has no trace anywhere.
type StatelessSettler interface {
	Settler
	Stateless()
}

// PayoutSettler is an optional interface of a Settler that pays over a chain: it
// has an address there, and ties each peer to one.
//
// What happens on the chain comes back by Book.Retry (funds arrived), Book.Cover
// (what the peer's cheques would bring rose or fell) and Book.Final (a channel is
// gone for good).
type PayoutSettler interface {
	Settler
	// Payout returns where p pays us, and the channel that our cheques to p are
	// backed by. Proof is by the address' key over text, which is PayoutText of us
	// and an address.
	Payout(ctx context.Context, p peer.ID, text func(address string) []byte) (Payout, error)
	// BindPeer checks that p's payout address is its own and the one that it had
	// before, and keeps it. text is PayoutText of p and its address.
	BindPeer(ctx context.Context, p peer.ID, o Payout, text []byte) error
	// Restore takes over the backing of a cheque of ours that p proved and we may
	// have lost, before anything else is issued.
	Restore(ctx context.Context, p peer.ID, c Claim, backing Backing) error
	// TopUp makes sure that the channel to p covers what we issued; p says that
	// it does not.
	TopUp(ctx context.Context, p peer.ID)
	// Standing tells what p's cheques are worth on the chain now. ok is false
	// where no channel backs them.
	Standing(ctx context.Context, p peer.ID) (s Standing, ok bool)
}

// Standing is what a peer's cheques are worth on the chain, in units.
type Standing struct {
	// Covered is the cumulative that the chain would pay now: the lower of its
	// head and of what is final.
	Covered tally.Amount
	// Redeemed is the cumulative that is on the chain already, and Uncashed what
	// its newest state would pay beyond that.
	Redeemed, Uncashed tally.Amount
}

// MockSettler backs nothing: in soft and mock mode the issuer's signature is
// all that a cheque is worth. It is the default settler.
type MockSettler struct{}

var _ StatelessSettler = MockSettler{}

// Issue returns no backing.
func (MockSettler) Issue(context.Context, peer.ID, Claim) (Backing, error) { return nil, nil }

// Accept covers the whole cumulative: karma has nothing behind it that could
// fail. A backing is ignored.
func (MockSettler) Accept(_ context.Context, _ peer.ID, c Claim, _ Backing) (tally.Amount, error) {
	return c.Cumulative, nil
}

// Stateless marks that Issue leaves no trace.
func (MockSettler) Stateless() {}

// BackingError says that a settler did not accept the backing of a cheque. The
// cheque is refused; the session goes on.
type BackingError struct{ Err error }

func (e *BackingError) Error() string { return "swap: backing of the cheque: " + e.Err.Error() }

// Unwrap returns the settler's reason.
func (e *BackingError) Unwrap() error { return e.Err }
