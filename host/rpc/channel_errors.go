package rpc

import (
	"errors"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/lotus"
)

// The causes of payment channels. Each left everything as it was, but for
// CodeUnpublished and CodeMessageFailed and its kin, whose message is made.
const (
	CodeNoChain Code = 300 + iota
	CodeNoChannel
	CodeChannelCreating
	CodeChannelCreateFailed
	CodeChannelSettling
	CodeChannelNotSettling
	CodeCollectTooEarly
	CodeChannelInbound
	CodeChannelOwned
	CodeNotReserved
	CodeTopUpFailed
	CodeAccountBalance
	CodeNoKey
	CodeAddressKind
	CodeShortfall
	CodeZeroAmount
	CodeVoucherAmount
	CodeVoucherDelta
	CodeOverBalance
	CodeVoucherNonce
	CodeVoucherLane
	CodeTooMany
	CodeUnderWay
	CodeVoucherChannel
	CodeVoucherSigner
	CodeOwnVoucher
	CodeVoucherExtra
	CodeVoucherMerges
	CodeVoucherLock
	CodeVoucherSecret
	CodeVoucherTimeLock
	CodeMinSettleHeight
	CodeNotSpendable
	CodeMessageFailed
	CodeUnpublished
	CodeManagerClosed
	CodeVoucherFormat
	CodeNotSigned
	CodeSignature
	CodeSignatureType
	CodeNotOnChain
	CodeCollected
	CodeOtherChain
	CodeChainUnreachable
	CodeWrongNetwork
	CodeNonceTaken
	CodeFee
	CodeWouldFail
	CodeLookback
	CodeChainBusy
	CodeChannelOutbound
	CodePointLock
	CodePointWallet
)

// channelCodes documents them, in order.
var channelCodes = []CodeInfo{
	{CodeNoChain, "no_chain", "no chain is configured", "set chain in config.toml, or start with one: tally start --chain URL, or tally start --dev"},
	{CodeNoChannel, "no_channel", "there is no such channel, or none between these two addresses", "list the channels: tally channel ls; or make one: tally channel create FROM TO AMOUNT"},
	{CodeChannelCreating, "channel_creating", "the message that creates the channel has no receipt yet", "wait for it: tally channel status CID"},
	{CodeChannelCreateFailed, "channel_create_failed", "the message that was to create the channel failed; there is no channel", "see the exit code, then create it again"},
	{CodeChannelSettling, "channel_settling", "the channel settles and takes no funds and no vouchers", "use or create another channel; this one is collected at settling_at"},
	{CodeChannelNotSettling, "channel_not_settling", "the channel was not settled", "settle it first: tally channel settle CHANNEL"},
	{CodeCollectTooEarly, "collect_too_early", "the channel has not reached settling_at", "wait until the epoch settling_at; it is collected by itself then"},
	{CodeChannelInbound, "channel_inbound", "funds and lanes are managed by the payer of the channel alone", "use a channel that we pay on: direction outbound in `tally channel ls`"},
	{CodeChannelOwned, "channel_owned", "the lane, or the channel's funds, belong to another part of the peer", "use another channel, or a lane that `tally channel lane CHANNEL` gives"},
	{CodeNotReserved, "not_reserved", "more is released than is reserved", "see reserved in `tally channel status CHANNEL`"},
	{CodeTopUpFailed, "top_up_failed", "the message that was to bring the funds failed, and with it the reservations that waited for it", "see the exit code, then try again"},
	{CodeAccountBalance, "account_balance", "the account holds less than is to be sent", "see `tally wallet balance`, and send it funds"},
	{CodeNoKey, "no_key", "the wallet has no key of the address", "list the addresses: tally wallet ls"},
	{CodeAddressKind, "address_kind", "not a kind of address that this can be done with", "a channel has an f2 address, its payer an f1 address"},
	{CodeShortfall, "shortfall", "the channel holds too little for the voucher", "add what is missing: tally channel add-funds CHANNEL AMOUNT"},
	{CodeZeroAmount, "zero_amount", "the amount is 0 or below", "use an amount above 0"},
	{CodeVoucherAmount, "voucher_amount", "the amount does not rise above what the lane has, or, of a refund, does not fall below it", "an amount is the lane's new total, not an increase"},
	{CodeVoucherDelta, "voucher_delta", "the voucher adds less than was asked for", "ask the payer for a voucher that adds more, or ask for less"},
	{CodeOverBalance, "over_balance", "all vouchers together are over what the channel holds", "ask the payer to add funds to the channel first"},
	{CodeVoucherNonce, "voucher_nonce", "the nonce of the voucher is not above the lane's", "ask the payer for a new voucher; `tally voucher ls` shows the ones we have"},
	{CodeVoucherLane, "voucher_lane", "the lane is over the maximum of 2^63 - 1, or none is left", "use a lane that `tally channel lane CHANNEL` gives"},
	{CodeTooMany, "too_many", "the channel has as many lanes, open locks or waiting calls as are kept", "wait, or use another channel"},
	{CodeUnderWay, "under_way", "another message for the same is on its way to the chain", "wait for it: tally channel pending"},
	{CodeVoucherChannel, "voucher_channel", "the voucher is for another channel", "see the channel in `tally voucher inspect TEXT`"},
	{CodeVoucherSigner, "voucher_signer", "the voucher is not signed by the side that has to sign it", "see the signer in `tally voucher inspect TEXT`"},
	{CodeOwnVoucher, "own_voucher", "we signed the voucher ourselves; only the other side can submit it", "give it to the other side"},
	{CodeVoucherExtra, "voucher_extra", "the voucher has an extra call, which we do not accept", "ask the payer for one without"},
	{CodeVoucherMerges, "voucher_merges", "the voucher merges lanes, which we do not accept", "ask the payer for one without"},
	{CodeVoucherLock, "voucher_lock", "the voucher has a lock where none may be, or one that is not of 32 bytes", "see secret_hash in `tally voucher inspect TEXT`"},
	{CodeVoucherSecret, "voucher_secret", "the secret does not open the lock of the voucher, or is missing", "give the secret of 32 bytes in hex: --secret"},
	{CodeVoucherTimeLock, "voucher_time_lock", "the time lock leaves no time to submit the voucher", "ask for one with a later time_lock_max or an earlier time_lock_min"},
	{CodeMinSettleHeight, "min_settle_height", "the voucher would keep the channel open for longer than we accept", "ask for one with a lower min_settle_height"},
	{CodeNotSpendable, "not_spendable", "the chain would refuse the voucher now", "see the reason in the message"},
	{CodeMessageFailed, "message_failed", "the message was mined and failed", "see the exit code, then try again"},
	{CodeUnpublished, "unpublished", "the message is saved and will be published, but no node has taken it yet", "do not send it again; watch it: tally channel pending"},
	{CodeManagerClosed, "channels_closed", "the payment channels are shutting down", "start the peer again; what was under way goes on: tally start"},
	{CodeVoucherFormat, "voucher_format", "the text is not a voucher", "copy the whole text that `tally voucher create` printed"},
	{CodeNotSigned, "voucher_not_signed", "the voucher carries no signature", "ask the payer for the signed voucher"},
	{CodeSignature, "voucher_signature", "the signature of the voucher is not valid", "ask the payer for the voucher again"},
	{CodeSignatureType, "signature_type", "the signature is not secp256k1, the only kind that is checked here", "use channels whose payer has an f1 address"},
	{CodeNotOnChain, "not_found", "the chain, or our record, has no such channel, message or account", "check the address or cid; a message that was finished long ago is forgotten"},
	{CodeCollected, "collected", "the channel is collected and its actor is gone", "see the final result: tally channel status CHANNEL"},
	{CodeOtherChain, "other_chain", "the store belongs to another chain than the one configured", "configure the chain that the store was made for, or use another repo"},
	{CodeChainUnreachable, "chain_unreachable", "no node of the chain answers", "check that the node runs and the key chain in config.toml"},
	{CodeWrongNetwork, "wrong_network", "the node is on another network than it was before; nothing is sent there", "check the key chain in config.toml"},
	{CodeNonceTaken, "nonce_taken", "another message of the same sender took the nonce: somebody else uses the key", "use a key of its own for this peer: tally wallet new"},
	{CodeFee, "fee", "the message would cost more than the limit", "wait until the chain is less busy, or raise the limit of fees"},
	{CodeWouldFail, "would_fail", "the node ran the message and it failed, so it was not sent", "see the reason in the message"},
	{CodeLookback, "lookback", "the node, a public gateway most likely, does not look back as far as is needed", "configure a node of your own"},
	{CodeChainBusy, "chain_busy", "too many messages of one sender are on their way", "try again later"},
	{CodeChannelOutbound, "channel_outbound", "only the payee of a channel can do this", "use a channel that pays us: direction inbound in `tally channel ls`"},
	{CodePointLock, "point_lock", "the lock is not the one that was agreed, and nothing may be done for it", "ask the payer for the lock again; the reason is in the message"},
	{CodePointWallet, "point_wallet", "the wallet cannot sign under a point, so that this peer gives no point locks; it takes them", "use a wallet on this machine: wallet = \"local\" in config.toml"},
}

// channelCauses gives every error that package paych exports its code. An error
// may be several of them: the most particular comes first.
var channelCauses = []struct {
	cause error
	code  Code
}{
	{paych.ErrUnpublished, CodeUnpublished},
	{paych.ErrTopUpFailed, CodeTopUpFailed},
	{paych.ErrCreateFailed, CodeChannelCreateFailed},
	{paych.ErrMessageFailed, CodeMessageFailed},
	{paych.ErrNoChannel, CodeNoChannel},
	{paych.ErrCreating, CodeChannelCreating},
	{paych.ErrSettling, CodeChannelSettling},
	{paych.ErrNotSettling, CodeChannelNotSettling},
	{paych.ErrTooEarly, CodeCollectTooEarly},
	{paych.ErrInbound, CodeChannelInbound},
	{paych.ErrOwned, CodeChannelOwned},
	{paych.ErrNotReserved, CodeNotReserved},
	{paych.ErrBalance, CodeAccountBalance},
	{paych.ErrNoKey, CodeNoKey},
	{paych.ErrAddress, CodeAddressKind},
	{paych.ErrShortfall, CodeShortfall},
	{paych.ErrZeroAmount, CodeZeroAmount},
	{paych.ErrAmount, CodeVoucherAmount},
	{paych.ErrDelta, CodeVoucherDelta},
	{paych.ErrOverBalance, CodeOverBalance},
	{paych.ErrNonce, CodeVoucherNonce},
	{paych.ErrLane, CodeVoucherLane},
	{paych.ErrTooMany, CodeTooMany},
	{paych.ErrUnderWay, CodeUnderWay},
	{paych.ErrChannel, CodeVoucherChannel},
	{paych.ErrNotSigned, CodeNotSigned},
	{paych.ErrSignatureType, CodeSignatureType},
	{paych.ErrSigner, CodeVoucherSigner},
	{paych.ErrSignature, CodeSignature},
	{paych.ErrOwnVoucher, CodeOwnVoucher},
	{paych.ErrExtra, CodeVoucherExtra},
	{paych.ErrMerges, CodeVoucherMerges},
	{paych.ErrPointLock, CodePointLock},
	{paych.ErrPointWallet, CodePointWallet},
	{paych.ErrLock, CodeVoucherLock},
	{paych.ErrSecret, CodeVoucherSecret},
	{paych.ErrTimeLock, CodeVoucherTimeLock},
	{paych.ErrMinSettleHeight, CodeMinSettleHeight},
	{paych.ErrVoucherFormat, CodeVoucherFormat},
	{paych.ErrNotSpendable, CodeNotSpendable},
	{paych.ErrCollected, CodeCollected},
	{paych.ErrNotFound, CodeNotOnChain},
	{paych.ErrOtherChain, CodeOtherChain},
	{lotus.ErrWrongNetwork, CodeWrongNetwork},
	{paych.ErrNonceTaken, CodeNonceTaken},
	{paych.ErrFeeCap, CodeFee},
	{paych.ErrOutbound, CodeChannelOutbound},
	{lotus.ErrExecution, CodeWouldFail},
	{lotus.ErrLookback, CodeLookback},
	{lotus.ErrBusy, CodeChainBusy},
	{lotus.ErrUnreachable, CodeChainUnreachable},
	{paych.ErrClosed, CodeManagerClosed},
	{lotus.ErrClosed, CodeManagerClosed},
}

// Details are the figures of an error. Amounts are attoFIL in decimal digits; a
// key that does not concern the error is absent.
type Details struct {
	// Shortfall is how much the channel lacks.
	Shortfall string `json:"shortfall,omitempty"`
	// Total is what all vouchers together would take of Balance.
	Total   string `json:"total,omitempty"`
	Balance string `json:"balance,omitempty"`
	// Delta is what the voucher would have added, MinDelta what was asked for.
	Delta    string `json:"delta,omitempty"`
	MinDelta string `json:"min_delta,omitempty"`
	// Epoch is that of the head, SettlingAt the first in which Collect works.
	Epoch      int64 `json:"epoch,omitempty"`
	SettlingAt int64 `json:"settling_at,omitempty"`
	// Cid and Kind are of the message, ExitCode is what the chain said.
	Cid      string `json:"cid,omitempty"`
	Kind     string `json:"kind,omitempty"`
	ExitCode int64  `json:"exit_code,omitempty"`
}

// channelError returns err with the code of a payment channel, or nil where it is
// none of theirs.
func channelError(err error) *Error {
	for _, c := range channelCauses {
		if errors.Is(err, c.cause) {
			e := NewError(c.code, "%w", err)
			e.Details = detailsOf(err)
			return e
		}
	}
	return nil
}

func detailsOf(err error) *Details {
	var (
		short   *paych.ShortfallError
		early   *paych.TooEarlyError
		low     *paych.DeltaError
		over    *paych.OverBalanceError
		message *paych.MessageError
	)
	switch {
	case errors.As(err, &short):
		return &Details{Shortfall: short.Shortfall.String()}
	case errors.As(err, &early):
		return &Details{Epoch: int64(early.Now), SettlingAt: int64(early.SettlingAt)}
	case errors.As(err, &low):
		return &Details{Delta: low.Delta.String(), MinDelta: low.Min.String()}
	case errors.As(err, &over):
		return &Details{Total: over.Total.String(), Balance: over.Balance.String()}
	case errors.As(err, &message):
		return &Details{Cid: message.Cid.String(), Kind: message.Kind, ExitCode: int64(message.Exit)}
	}
	return nil
}

// Is makes an error that crossed the wire one of package paych again, so that a
// caller of the client asks errors.Is as it would of the manager.
func (e *Error) Is(target error) bool {
	for _, c := range channelCauses {
		if c.cause == target {
			return c.code == e.Code
		}
	}
	return false
}
