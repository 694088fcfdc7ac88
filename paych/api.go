package paych

import (
	"context"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"
)

// PCHDir is the direction of a channel, seen from us.
type PCHDir int

// Directions.
const (
	PCHUndef PCHDir = iota
	PCHInbound
	PCHOutbound
)

// String returns the direction in one word.
func (d PCHDir) String() string {
	switch d {
	case PCHInbound:
		return "inbound"
	case PCHOutbound:
		return "outbound"
	default:
		return "undefined"
	}
}

// PaychStatus is what is known of one channel. Amounts are attoFIL.
type PaychStatus struct {
	// Direction indicates whether this channel is an inbound channel or an
	// outbound channel.
	Direction PCHDir
	// ControlAddr is our side of the channel.
	ControlAddr address.Address
	// Channel is the address of the channel.
	Channel address.Address
	// From is the from address of the channel (channel creator).
	From address.Address
	// To is the to address of the channel.
	To address.Address
	// ConfirmedAmt is the amount of funds that have been confirmed on-chain for
	// the channel.
	ConfirmedAmt big.Int
	// PendingAmt is the amount of funds that are pending confirmation on-chain.
	PendingAmt big.Int
	// PendingChainMessage is the message that brings PendingAmt, or nil.
	PendingChainMessage *cid.Cid
	// QueuedAmt is the amount that is queued up behind a pending request.
	QueuedAmt big.Int
	// VoucherReedeemedAmt is the amount that is redeemed by vouchers on-chain and
	// in the local datastore. (The spelling is the API's.)
	VoucherReedeemedAmt big.Int
	// ReservedAmt is the portion of the confirmed funds previously reserved by
	// consumers of this payment channel. What a reservation that waits for a
	// top-up holds of them counts.
	ReservedAmt big.Int
}

// VoucherCreateResult is the response to calling PaychVoucherCreate.
type VoucherCreateResult struct {
	// Voucher that was created, or nil if there was an error or if there were
	// insufficient funds in the channel.
	Voucher *SignedVoucher
	// Shortfall is the additional amount that would be needed in the channel in
	// order to be able to create the voucher.
	Shortfall big.Int
}

// PaymentChannelManagerAPI is the API of the payment channel manager document,
// "Preliminary API", by its names and types. Manager implements it.
//
// Amounts are attoFIL, heights and time locks epochs. A channel is named by its f2
// address (ErrAddress), an account by its key or its id address. Every call that
// names a channel may return ErrNoChannel, ErrCollected, ErrClosed, and what the
// chain says where it has to be asked; one that returns an error has changed
// nothing, but for those that say so. A cid is that of a message which is saved and
// published; ErrUnpublished comes with the cid of one that is saved, and goes out
// as soon as the node takes it. How a message ends, PaychWaitReady tells: with a
// MessageError where it failed or lost its nonce.
type PaymentChannelManagerAPI interface {
	// PaychCreate creates a new payment channel and deposits funds in the
	// channel. It makes one each time, but for calls with one tag (WithTag). It
	// returns the cid of the chain message once that is saved and published.
	// ErrZeroAmount, ErrAddress where from is not secp256k1, ErrNoKey, ErrBalance
	// where from holds less, ErrOwned where the tag has a channel of others.
	PaychCreate(ctx context.Context, from, to address.Address, amt big.Int) (cid.Cid, error)

	// PaychAddFunds deposits additional payment into a payment channel. It
	// returns the cid of the chain message submitted for the additional funds;
	// calls that meet a pending one are merged into the next. ErrZeroAmount,
	// ErrInbound, ErrCreating, ErrSettling, ErrBalance, ErrTooMany.
	PaychAddFunds(ctx context.Context, ch address.Address, amt big.Int) (cid.Cid, error)

	// PaychReserveFunds locks up the specified amount of funds in the given
	// channel for a future transaction. If there are not enough available funds
	// for the channel, submits a message on chain to top up available funds.
	// Returns the cid of the message that was submitted on chain, or cid.Undef if
	// the required funds were already available. Free are what the channel holds,
	// less what vouchers have taken, less what is reserved. The errors are those of
	// PaychAddFunds; a message that fails fails the reservations that wait for it.
	PaychReserveFunds(ctx context.Context, ch address.Address, amt big.Int) (cid.Cid, error)
	// PaychReleaseFunds frees channel funds so another transaction can use them.
	// ErrNotReserved where less is reserved and not spent, ErrZeroAmount, ErrInbound.
	PaychReleaseFunds(ctx context.Context, addr address.Address, amt big.Int) error

	// PaychStatus looks up all available information about a payment channel. It
	// asks the chain only for a channel that it never heard of.
	PaychStatus(ctx context.Context, ch address.Address) (*PaychStatus, error)

	// PaychLookup searches for a channel matching the given from and to addresses
	// that has available lanes. ErrNoChannel where there is none.
	PaychLookup(ctx context.Context, from, to address.Address) (address.Address, error)

	// PaychList lists the channels this manager is tracking.
	PaychList(ctx context.Context) ([]address.Address, error)

	// PaychSettle begins the settlement period for a payment channel. Called again
	// it returns the same message. ErrSettling where the other side began it,
	// ErrCreating.
	PaychSettle(ctx context.Context, ch address.Address) (cid.Cid, error)
	// PaychCollect attempts to collect payment on a payment channel at the end of
	// a settlement period. Called again it returns the same message.
	// ErrNotSettling, ErrTooEarly.
	PaychCollect(ctx context.Context, ch address.Address) (cid.Cid, error)

	// PaychAllocateLane identifies the next free lane for a payment channel. It
	// gives each lane once. ErrInbound, ErrSettling, ErrLane where none is left.
	PaychAllocateLane(ctx context.Context, ch address.Address) (uint64, error)

	// PaychVoucherCheckValid verifies if a voucher appears to meet requirements
	// for submission. ErrSigner, ErrChannel, ErrExtra, ErrMerges, ErrLane, ErrNonce,
	// ErrAmount, ErrZeroAmount, ErrLock, ErrTimeLock, ErrMinSettleHeight,
	// ErrOverBalance, ErrSettling, ErrTooMany.
	PaychVoucherCheckValid(ctx context.Context, ch address.Address, sv *SignedVoucher) error

	// PaychVoucherCheckSpendable verifies if a voucher appears to meet
	// requirements for submission and also verifies the given secret against the
	// pre-image. False and no error: the chain would refuse it now.
	PaychVoucherCheckSpendable(ctx context.Context, ch address.Address, sv *SignedVoucher, secret, proof []byte) (bool, error)

	// PaychVoucherCreate creates a new signed voucher on the given payment
	// channel with the given lane and amount. The value passed in is exactly the
	// value that will be used to create the voucher, so if previous vouchers
	// exist, the actual additional value of this voucher will only be the
	// difference between the two.
	// If there are insufficient funds in the channel to create the voucher,
	// returns a nil voucher and the shortfall. ErrAmount where the lane has as much,
	// ErrZeroAmount, ErrOwned, ErrLane, ErrSettling, ErrTooMany. Where signing fails
	// the lane's nonce stays used, and nothing else.
	PaychVoucherCreate(ctx context.Context, pch address.Address, amt big.Int, lane uint64) (*VoucherCreateResult, error)

	// PaychVoucherAdd records a new inbound voucher but does not save it to the
	// chain. In addition to the channel, voucher, and proof for the voucher
	// pre-image if present, payment voucher add takes a minDelta, or minimum
	// increase in lane value required to save the voucher.
	// If successful, the function returns the delta in amount redeemed on the
	// given lane in the payment channel; 0 for a voucher that is held. The errors
	// are those of PaychVoucherCheckValid, ErrDelta with what it would have added,
	// and ErrSecret where proof does not open the lock.
	PaychVoucherAdd(ctx context.Context, ch address.Address, sv *SignedVoucher, proof []byte, minDelta big.Int) (big.Int, error)

	// PaychVoucherList returns all vouchers for a given payment channel that can
	// still bring something, and the last 64.
	PaychVoucherList(ctx context.Context, ch address.Address) ([]*SignedVoucher, error)

	// PaychVoucherSubmit submits a given voucher to the blockchain. ErrOwnVoucher,
	// ErrNotSpendable where the chain would refuse it, ErrUnderWay where another of
	// the lane is on its way, ErrSigner, ErrExtra, ErrMerges, ErrBalance.
	PaychVoucherSubmit(ctx context.Context, ch address.Address, sv *SignedVoucher, secret, proof []byte) (cid.Cid, error)
}
