package lotus

import (
	"errors"
	"fmt"
	"strings"

	"github.com/filecoin-project/go-jsonrpc"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/lotus/wire"
)

var (
	// ErrWrongNetwork: the node is on another chain than the one asked for, or
	// than the one it was on before. Nothing is sent there.
	ErrWrongNetwork = errors.New("lotus: the node is on another network")
	// ErrUnreachable: no node answers at the address.
	ErrUnreachable = errors.New("lotus: no node answers")
	// ErrDenied: the node does not take the token.
	ErrDenied = errors.New("lotus: the node refuses the token")
	// ErrNonceTaken: another message of the same sender was mined under this
	// one's nonce, so this one never will be. Somebody else uses the key.
	ErrNonceTaken = fmt.Errorf("lotus: %w", paych.ErrNonceTaken)
	// ErrFee: the message would cost more than Config.MaxFee. It is a
	// paych.ErrFeeCap.
	ErrFee = fmt.Errorf("lotus: %w", paych.ErrFeeCap)
	// ErrExecution: the node ran the message and it failed; sending it would burn
	// gas for nothing.
	ErrExecution = errors.New("lotus: the message would fail")
	// ErrLookback: the node, a public gateway most likely, does not look back as
	// far. Only another node does.
	ErrLookback = errors.New("lotus: the node does not look back that far")
	// ErrBusy: too many messages of one sender are prepared and not published.
	ErrBusy = errors.New("lotus: too many prepared messages")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("lotus: closed")
)

// What nodes answer. Lotus numbers few of its errors, and other nodes and older
// versions none; the texts have been the same for years.

const codeMethodNotFound = -32601

func says(err error, texts ...string) bool {
	if err == nil {
		return false
	}
	s := strings.ToLower(err.Error())
	for _, t := range texts {
		if strings.Contains(s, t) {
			return true
		}
	}
	return false
}

func code(err error) int {
	var e *jsonrpc.JSONRPCError
	if errors.As(err, &e) {
		return int(e.Code)
	}
	return 0
}

// actorNotFound: there is nothing at the address.
func actorNotFound(err error) bool {
	return code(err) == wire.CodeActorNotFound && says(err, "not found") || says(err, "actor not found")
}

// noMethod: the node, a gateway most likely, has not the method.
func noMethod(err error) bool {
	return code(err) == codeMethodNotFound || says(err, "method not found", "' not found", "not supported") && says(err, "method")
}

// staleTipset: a reorganisation took the tipset that was asked about. Lotus keeps
// those, the embedded chain and pruned nodes do not.
func staleTipset(err error) bool { return says(err, "loading tipset") }

// maxStale bounds how often a question is asked again at the new head.
const maxStale = 3

// fresh asks f, again where the head that it began with was reverted meanwhile.
func fresh(f func() error) error {
	var err error
	for range maxStale {
		if err = f(); !staleTipset(err) {
			return err
		}
	}
	return err
}

// unknownMessage: the node never had the message, or has forgotten it.
func unknownMessage(err error) bool {
	return !staleTipset(err) && says(err, "could not find", "block not found", "failed to load message", "message not found")
}

// notReplacement: the nonce was used by a message that is not ours.
func notReplacement(err error) bool {
	return says(err, "not a valid replacement message")
}

// inPool: the very message is in the pool already.
func inPool(err error) bool {
	return says(err, "already in mpool", "nonce already exists") && !underpriced(err)
}

// underpriced: another message with the nonce is in the pool, for more or nearly
// as much.
func underpriced(err error) bool {
	return says(err, "replace by fee", "increase gaspremium")
}

func nonceTooLow(err error) bool { return says(err, "nonce too low") }

// poor: the sender has not what the message carries and its gas costs, or was
// never given anything.
func poor(err error) bool {
	return says(err, "insufficientfunds", "insufficient funds", "not enough funds") ||
		says(err, "estimating gas", "estimate gas") && says(err, "actor not found")
}

func executionFailed(err error) bool {
	return says(err, "message execution failed", "execution reverted")
}

// lookback: a gateway does not answer for old tipsets.
func lookback(err error) bool { return says(err, "lookbacks of more than", "bad tipset height") }
