package paych

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/builtin"
	initactor "github.com/filecoin-project/go-state-types/builtin/v8/init"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/tallystick/tally/paych/actor"
)

// messageKind says what a message is for.
type messageKind uint8

const (
	messageCreate messageKind = iota
	messageTopUp
	messageSubmit
	messageSettle
	messageCollect
)

var messageKinds = [...]string{"create", "add-funds", "submit", "settle", "collect"}

func (k messageKind) String() string { return messageKinds[k] }

// messageState is how far a message is. Its signed bytes are saved before it is
// published, and published again until there is a receipt: the same bytes, or
// where they are not mined the same call for a higher fee, saved first as well:
//
//	saved ──▶ published ──▶ done | failed | lost
type messageState uint8

const (
	messageSaved messageState = iota
	messagePublished
	messageDone   // mined, exit code 0
	messageFailed // mined, another exit code
	messageLost   // never mined: another message has its nonce, and that is final
)

var messageStates = [...]string{"saved", "published", "done", "failed", "lost"}

func (s messageState) String() string { return messageStates[s] }

func (s messageState) final() bool { return s >= messageDone }

// message is one message of ours to the chain. It is keyed by sender and nonce,
// so that a replacement belongs to the same entry.
type message struct {
	kind    messageKind
	state   messageState
	channel uint64 // ID
	// lane and voucherNonce belong to submit.
	lane, voucherNonce uint64
	value              big.Int
	signed             SignedMessage
	since              int64 // Unix time at which it was signed
	// before are the cids of what signed took the place of, oldest first: a call
	// returned the first, and any of them may be mined.
	before []cid.Cid
	// Of the receipt: mined differs from signed.Cid where a fee bump replaced it.
	mined  cid.Cid
	height abi.ChainEpoch
	exit   exitcode.ExitCode
}

// maxBumps bounds how often a message is replaced by one for a higher fee.
const maxBumps = 16

// id is the cid that calls know the message by.
func (m *message) id() cid.Cid {
	if len(m.before) > 0 {
		return m.before[0]
	}
	return m.signed.Cid
}

// cids are all under which it may be mined, the newest first.
func (m *message) cids() []cid.Cid {
	all := append(slices.Clone(m.before), m.signed.Cid)
	slices.Reverse(all)
	return all
}

// failure is why a message came to nothing, or nil.
func (m *message) failure() error {
	if m.state != messageFailed && m.state != messageLost {
		return nil
	}
	return &MessageError{Cid: m.id(), Kind: m.kind.String(), Exit: m.exit, Lost: m.state == messageLost}
}

// MessageError says that a message was mined and failed, or never can be mined.
type MessageError struct {
	Cid  cid.Cid
	Kind string
	Exit exitcode.ExitCode // of one that was mined
	// Lost: another message of the same key was mined under its nonce.
	Lost bool
}

func (e *MessageError) Error() string {
	if e.Lost {
		return fmt.Sprintf("paych: %s %s: %v: give this node a key of its own", e.Kind, e.Cid, ErrNonceTaken)
	}
	return fmt.Sprintf("%v: %s %s: exit %d", ErrMessageFailed, e.Kind, e.Cid, int64(e.Exit))
}

// Is makes it an ErrMessageFailed, and an ErrTopUpFailed or ErrCreateFailed where
// that is what it was for.
func (e *MessageError) Is(target error) bool {
	switch target {
	case ErrMessageFailed:
		return true
	case ErrNonceTaken:
		return e.Lost
	case ErrTopUpFailed:
		return e.Kind == messageTopUp.String()
	case ErrCreateFailed:
		return e.Kind == messageCreate.String()
	}
	return false
}

// ActorCoder is what a Chain offers besides if the code of the payment channel
// actor differs between its networks and versions: its cid at the head.
type ActorCoder interface {
	PaychCode(ctx context.Context) (cid.Cid, error)
}

// defaultCode is the actor's code cid where the chain tells none: that of
// specs-actors v8, which names itself.
var defaultCode = func() cid.Cid {
	hash, err := multihash.Sum([]byte("fil/8/paymentchannel"), multihash.IDENTITY, -1)
	if err != nil {
		panic("paych: " + err.Error())
	}
	return cid.NewCidV1(cid.Raw, hash)
}()

func createMessage(code cid.Cid, from, to address.Address, amount big.Int) (Message, error) {
	var ctor, exec bytes.Buffer
	if err := (&actor.ConstructorParams{From: from, To: to}).MarshalCBOR(&ctor); err != nil {
		return Message{}, fmt.Errorf("paych: encode constructor: %w", err)
	}
	params := initactor.ExecParams{CodeCID: code, ConstructorParams: ctor.Bytes()}
	if err := params.MarshalCBOR(&exec); err != nil {
		return Message{}, fmt.Errorf("paych: encode exec: %w", err)
	}
	return Message{From: from, To: builtin.InitActorAddr, Value: amount, Method: builtin.MethodsInit.Exec, Params: exec.Bytes()}, nil
}

// createdAddress reads the address of a new channel from the receipt. It is the
// one that no reorganisation gives to another channel.
func createdAddress(ret []byte) (address.Address, error) {
	if err := actor.WellFormed(ret); err != nil {
		return address.Undef, fmt.Errorf("paych: receipt of create: %w", err)
	}
	var r initactor.ExecReturn
	if err := r.UnmarshalCBOR(bytes.NewReader(ret)); err != nil {
		return address.Undef, fmt.Errorf("paych: receipt of create: %w", err)
	}
	if r.RobustAddress.Protocol() != address.Actor {
		return address.Undef, fmt.Errorf("paych: receipt of create: %w: %s", ErrAddress, r.RobustAddress)
	}
	return r.RobustAddress, nil
}

func actorMessage(from, ch address.Address, m actor.Msg) (Message, error) {
	params, err := m.Params()
	if err != nil {
		return Message{}, err
	}
	return Message{From: from, To: ch, Value: big.Zero(), Method: m.Method, Params: params}, nil
}
