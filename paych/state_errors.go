package paych

import (
	"errors"
	"fmt"

	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
)

// What a call may be refused for. Each leaves everything as it was.
var (
	// ErrNoChannel: we track no such channel, or none between these two.
	ErrNoChannel = errors.New("paych: no such channel")
	// ErrCreating: the channel's message has no receipt yet.
	ErrCreating = errors.New("paych: channel is being created")
	// ErrCreateFailed: the channel's message failed; there is no channel.
	ErrCreateFailed = errors.New("paych: channel was not created")
	// ErrSettling: the channel settles, so it takes no funds and no vouchers; or
	// the other side settled it already.
	ErrSettling = errors.New("paych: channel is settling")
	// ErrNotSettling: Collect without Settle.
	ErrNotSettling = errors.New("paych: channel is not settling: settle it first")
	// ErrTooEarly: Collect before SettlingAt; the error is a TooEarlyError.
	ErrTooEarly = errors.New("paych: channel has not settled yet")
	// ErrInbound: funds and lanes are the payer's business.
	ErrInbound = errors.New("paych: not on an inbound channel")
	// ErrOutbound: only the payee of a channel has cover.
	ErrOutbound = errors.New("paych: not on an outbound channel")
	// ErrOwned: the lane, or the channel, belongs to another part of the program.
	ErrOwned = errors.New("paych: lane is owned")
	// ErrNotReserved: more is released than is reserved.
	ErrNotReserved = errors.New("paych: not reserved")
	// ErrTopUpFailed: the message that was to bring the funds failed, and with it
	// the reservations that waited for it.
	ErrTopUpFailed = errors.New("paych: top-up failed")
	// ErrBalance: the sender's account holds less than it is to send.
	ErrBalance = errors.New("paych: account balance is too low")
	// ErrNoKey: the wallet cannot sign for the address.
	ErrNoKey = errors.New("paych: no key for the address")
	// ErrAddress: not an address that this can be done with.
	ErrAddress = errors.New("paych: wrong kind of address")

	// ErrShortfall: too little in the channel; the error is a ShortfallError.
	ErrShortfall = errors.New("paych: insufficient funds in the channel")
	// ErrZeroAmount: an amount of 0, below 0 or missing.
	ErrZeroAmount = errors.New("paych: amount must be above 0")
	// ErrAmount: the amount does not rise above what the lane has, or, of a
	// refund, does not fall below it.
	ErrAmount = errors.New("paych: amount does not change the lane")
	// ErrDelta: the voucher is worth less than the caller asks for; the error is a
	// DeltaError.
	ErrDelta = errors.New("paych: voucher adds too little")
	// ErrOverBalance: all vouchers together are over what the channel holds; the
	// error is an OverBalanceError.
	ErrOverBalance = errors.New("paych: vouchers exceed the channel's balance")
	// ErrNonce: the nonce is not above the lane's.
	ErrNonce = errors.New("paych: nonce is not above the lane's")
	// ErrLane: the lane is over the maximum, or none is left.
	ErrLane = errors.New("paych: lane out of range")
	// ErrTooMany: the channel has as many lanes, the lane as many open locks, or
	// the channel as many waiting calls, as we keep.
	ErrTooMany = errors.New("paych: too many")
	// ErrUnderWay: another message for the same is on its way to the chain.
	ErrUnderWay = errors.New("paych: a message for this is under way")
	// ErrChannel: the voucher is for another channel.
	ErrChannel = errors.New("paych: voucher is for another channel")
	// ErrSigner: the signature is not of the side that has to sign.
	ErrSigner = errors.New("paych: wrong signer")
	// ErrOwnVoucher: only the other side can submit a voucher that we signed.
	ErrOwnVoucher = errors.New("paych: own voucher cannot be submitted")
	// ErrExtra and ErrMerges: the actor knows them, we accept none.
	ErrExtra  = errors.New("paych: voucher with an extra call")
	ErrMerges = errors.New("paych: voucher that merges lanes")
	// ErrLock: a hash lock that is not of 32 bytes, or a lock where none may be.
	ErrLock = errors.New("paych: lock not allowed")
	// ErrSecret: the secret does not open the lock, or is missing.
	ErrSecret = errors.New("paych: secret does not open the lock")
	// ErrTimeLock: the time lock leaves no time to submit the voucher.
	ErrTimeLock = errors.New("paych: time lock leaves no time")
	// ErrMinSettleHeight: the voucher would hold the channel open for too long.
	ErrMinSettleHeight = errors.New("paych: MinSettleHeight is beyond what we accept")
	// ErrNotSpendable: the chain would refuse the voucher.
	ErrNotSpendable = errors.New("paych: chain would refuse the voucher")

	// ErrMessageFailed: a message was mined and failed; the error is a
	// MessageError.
	ErrMessageFailed = errors.New("paych: message failed on the chain")
	// ErrUnpublished: the message is saved and will be published, but no node has
	// taken it while the caller waited.
	ErrUnpublished = errors.New("paych: message is saved but not published yet")
	// ErrClosed: the manager is closed.
	ErrClosed = errors.New("paych: manager is closed")

	// errHeld: we hold this very voucher.
	errHeld = errors.New("paych: voucher is held already")
)

// ShortfallError says how much the channel lacks.
type ShortfallError struct{ Shortfall big.Int }

func (e *ShortfallError) Error() string {
	return fmt.Sprintf("%v: %v attoFIL more needed", ErrShortfall, e.Shortfall)
}

// Is makes it an ErrShortfall.
func (*ShortfallError) Is(target error) bool { return target == ErrShortfall }

// TooEarlyError says when the channel can be collected.
type TooEarlyError struct{ Now, SettlingAt abi.ChainEpoch }

func (e *TooEarlyError) Error() string {
	return fmt.Sprintf("%v: epoch is %d, it settles at %d", ErrTooEarly, e.Now, e.SettlingAt)
}

// Is makes it an ErrTooEarly.
func (*TooEarlyError) Is(target error) bool { return target == ErrTooEarly }

// DeltaError says what a refused voucher would have added.
type DeltaError struct{ Delta, Min big.Int }

func (e *DeltaError) Error() string {
	return fmt.Sprintf("%v: %v, at least %v asked", ErrDelta, e.Delta, e.Min)
}

// Is makes it an ErrDelta.
func (*DeltaError) Is(target error) bool { return target == ErrDelta }

// OverBalanceError says what the vouchers would take and what there is.
type OverBalanceError struct{ Total, Balance big.Int }

func (e *OverBalanceError) Error() string {
	return fmt.Sprintf("%v: %v of %v", ErrOverBalance, e.Total, e.Balance)
}

// Is makes it an ErrOverBalance.
func (*OverBalanceError) Is(target error) bool { return target == ErrOverBalance }
