package actor

import (
	"bytes"
	"fmt"
	"math"

	"github.com/filecoin-project/go-state-types/abi"
	paychtypes "github.com/filecoin-project/go-state-types/builtin/v8/paych"
	"github.com/filecoin-project/go-state-types/exitcode"
)

// The types of a channel's messages are those of go-state-types' builtin/v8,
// which Lotus has in its own API: a voucher from there is a voucher here.
type (
	// SignedVoucher is what one party signs for the other.
	SignedVoucher = paychtypes.SignedVoucher
	// Merge names a lane that a voucher takes in, and the nonce it gets.
	Merge = paychtypes.Merge
	// ModVerifyParams is a voucher's Extra: a call that must succeed.
	ModVerifyParams = paychtypes.ModVerifyParams
	// ConstructorParams are the two parties of a new channel.
	ConstructorParams = paychtypes.ConstructorParams
	// UpdateChannelState redeems a voucher.
	UpdateChannelState = paychtypes.UpdateChannelStateParams
)

// Methods of the actor.
const (
	MethodSend               abi.MethodNum = 0 // tops the channel up
	MethodConstructor        abi.MethodNum = 1 // through Init.Exec only
	MethodUpdateChannelState abi.MethodNum = 2
	MethodSettle             abi.MethodNum = 3
	MethodCollect            abi.MethodNum = 4
)

const (
	// MaxLane is the highest lane, because lanes index an AMT of the chain.
	MaxLane uint64 = math.MaxInt64
	// MaxSecretSize bounds the secret in bytes.
	MaxSecretSize = 256
	// SettleDelay is how long a channel settles on Filecoin: 12 hours of epochs
	// of 30 s. Other chains may differ, so Apply takes it as an argument.
	SettleDelay abi.ChainEpoch = 1440
	// MaxParams bounds encoded parameters in bytes: no node takes a message above
	// 64 KiB.
	MaxParams = 64 << 10
)

// ExitChannelSettled is the exit code of a voucher that came at SettlingAt or
// later.
const ExitChannelSettled = exitcode.FirstActorSpecificExitCode

// Msg is a message to a channel with its parameters decoded.
type Msg struct {
	Method abi.MethodNum
	// Update belongs to MethodUpdateChannelState; the others take nothing.
	Update *UpdateChannelState
}

// Redeem returns the message that redeems sv; secret is nil where sv has no
// SecretHash.
func Redeem(sv SignedVoucher, secret []byte) Msg {
	return Msg{Method: MethodUpdateChannelState, Update: &UpdateChannelState{Sv: sv, Secret: secret}}
}

// Settle returns the message that starts settling.
func Settle() Msg { return Msg{Method: MethodSettle} }

// Collect returns the message that pays out and deletes the channel.
func Collect() Msg { return Msg{Method: MethodCollect} }

// Params returns the parameters as a message carries them.
func (m Msg) Params() ([]byte, error) {
	if m.Method != MethodUpdateChannelState {
		return nil, nil
	}
	if m.Update == nil {
		return nil, fmt.Errorf("paych/actor: encode UpdateChannelState: no parameters")
	}
	var buf bytes.Buffer
	if err := m.Update.MarshalCBOR(&buf); err != nil {
		return nil, fmt.Errorf("paych/actor: encode UpdateChannelState: %w", err)
	}
	if buf.Len() > MaxParams {
		return nil, fmt.Errorf("paych/actor: encode UpdateChannelState: %d bytes, at most %d", buf.Len(), MaxParams)
	}
	return buf.Bytes(), nil
}

// DecodeMsg reads a message as the chain does: parameters of a method that
// takes none are ignored. The exit code is what the chain answers to a message
// that cannot be read: exitcode.ErrSerialization for its parameters,
// exitcode.ErrUnhandledMessage for a method that the actor has not.
func DecodeMsg(method abi.MethodNum, params []byte) (Msg, exitcode.ExitCode) {
	switch method {
	case MethodSend, MethodConstructor, MethodSettle, MethodCollect:
		return Msg{Method: method}, exitcode.Ok
	case MethodUpdateChannelState:
		if len(params) > MaxParams || WellFormed(params) != nil {
			return Msg{}, exitcode.ErrSerialization
		}
		var u UpdateChannelState
		if err := u.UnmarshalCBOR(bytes.NewReader(params)); err != nil {
			return Msg{}, exitcode.ErrSerialization
		}
		return Msg{Method: method, Update: &u}, exitcode.Ok
	default:
		return Msg{}, exitcode.ErrUnhandledMessage
	}
}
