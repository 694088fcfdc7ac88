package paych

import (
	"context"
	"errors"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych/actor"
)

var (
	// ErrNotFound: no channel, message or account at this address or cid, as far
	// as the chain tells.
	ErrNotFound = errors.New("paych: not found on the chain")
	// ErrCollected: the channel was collected and its actor is gone.
	ErrCollected = errors.New("paych: channel is collected")
	// ErrNonceTaken: another message of the same sender was mined under this one's
	// nonce, so this one will not be. Somebody else uses the key.
	ErrNonceTaken = errors.New("paych: another message took the nonce")
	// ErrFeeCap: the message would cost more than the chain's client may spend.
	ErrFeeCap = errors.New("paych: the fee is above the limit")
)

// Message is an unsigned message to the chain. Amounts are attoFIL.
type Message struct {
	From, To address.Address
	Value    big.Int
	Method   abi.MethodNum
	Params   []byte
}

// SignedMessage is a message that may be published. Raw are the bytes that the
// node takes; they are saved before anything leaves, so that the same bytes can
// be published again.
type SignedMessage struct {
	Cid   cid.Cid
	From  address.Address
	Nonce uint64
	Raw   []byte
}

// Receipt is what a message did. Replaced is the cid under which it was mined,
// where a fee bump replaced it.
type Receipt struct {
	Cid      cid.Cid
	Replaced cid.Cid
	Height   abi.ChainEpoch // of the tipset that executed it
	ExitCode exitcode.ExitCode
	Return   []byte
	GasUsed  int64
}

// Head is one change of the chain's head.
type Head struct {
	Height   abi.ChainEpoch
	Reverted bool // the tipset at Height is gone
}

// Call is one message that reached a channel, as the chain executed it.
type Call struct {
	Height   abi.ChainEpoch
	Cid      cid.Cid
	From     address.Address
	Value    big.Int
	Method   abi.MethodNum
	Params   []byte
	ExitCode exitcode.ExitCode
}

// Params are the facts of a chain that do not change while it lives.
type Params struct {
	// Network is the chain's name and Genesis the cid of its first block.
	Network string
	Genesis cid.Cid
	// SettleDelay is how long a channel settles, in epochs.
	SettleDelay abi.ChainEpoch
	// Epoch is the time between two epochs.
	Epoch time.Duration
	// Finality is the depth from which a tipset is taken as final, in epochs.
	Finality abi.ChainEpoch
}

// Chain is what the manager needs of a node. Calls may be made at the same time
// from many goroutines; none is made under a lock of ours. Every error that is
// not named may pass, and the call can be repeated.
type Chain interface {
	// Head returns the height of the head.
	Head(ctx context.Context) (abi.ChainEpoch, error)
	// Heads tells each change until ctx ends, when the channel is closed. The
	// first value is the present head. A slow reader loses intermediate values,
	// never the last.
	Heads(ctx context.Context) (<-chan Head, error)
	// Channel returns state and balance of a channel, depth epochs below the
	// head (0: at the head). ErrNotFound, ErrCollected.
	Channel(ctx context.Context, ch address.Address, depth abi.ChainEpoch) (*actor.State, big.Int, error)
	// ResolveKey returns the key address of an account. ErrNotFound.
	ResolveKey(ctx context.Context, a address.Address) (address.Address, error)
	// Prepare gives a message nonce, gas and signature; nothing leaves.
	Prepare(ctx context.Context, m Message) (*SignedMessage, error)
	// Publish hands a message to the node. It is idempotent.
	Publish(ctx context.Context, m *SignedMessage) error
	// Wait returns the receipt of a message once it lies confidence epochs deep,
	// also where one took its place that differs from it in nothing but the fee. It
	// waits until ctx ends. ErrNonceTaken where the head shows another message
	// under its nonce.
	Wait(ctx context.Context, c cid.Cid, confidence abi.ChainEpoch) (*Receipt, error)
	// Calls lists the messages that reached ch in the epochs from to to, both
	// included, oldest first; also after Collect.
	Calls(ctx context.Context, ch address.Address, from, to abi.ChainEpoch) ([]Call, error)
	// Balance of an account in attoFIL; 0 for one that does not exist.
	Balance(ctx context.Context, a address.Address) (big.Int, error)
	// Params of the chain.
	Params() Params
}

// Replacer is what a Chain offers besides if a message may be priced too low to be
// mined, or lose its nonce to another program that uses the key. Without it a
// message that is not mined is waited for for ever.
type Replacer interface {
	// Bump prepares a message in place of m, the same but for a higher fee. Nothing
	// leaves. ErrFeeCap where that would cost more than is allowed.
	Bump(ctx context.Context, m *SignedMessage) (*SignedMessage, error)
	// Nonce is the first that no message of the sender has used, depth epochs below
	// the head.
	Nonce(ctx context.Context, sender address.Address, depth abi.ChainEpoch) (uint64, error)
	// Discard gives the nonce of a prepared message back that will never be
	// published.
	Discard(m *SignedMessage)
}

// Wallet holds keys.
type Wallet interface {
	Has(ctx context.Context, a address.Address) (bool, error)
	// Sign signs the BLAKE2b-256 digest of msg with the key of a, a key address.
	Sign(ctx context.Context, a address.Address, msg []byte) (*crypto.Signature, error)
	List(ctx context.Context) ([]address.Address, error)
	// New makes a secp256k1 key and returns its f1 address.
	New(ctx context.Context) (address.Address, error)
}
