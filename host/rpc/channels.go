package rpc

import (
	"encoding/hex"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally/paych"
)

// Channels is the payment channel part of a peer: the manager, the keys that it
// signs with, and the chain that it speaks to.
type Channels struct {
	Manager *paych.Manager
	Wallet  paych.Wallet
	Chain   paych.Chain
}

// ChannelRow is all that the operator sees of one channel. Amounts are attoFIL in
// decimal digits, heights epochs of the chain.
type ChannelRow struct {
	// Channel is empty while the channel is being created.
	Channel string `json:"channel"`
	// Direction is outbound where we pay, inbound where we are paid.
	Direction string `json:"direction"`
	// State is creating, failed, open, settling or collected.
	State string `json:"state"`
	From  string `json:"from"`
	To    string `json:"to"`
	// Control is our side.
	Control string `json:"control"`
	// Confirmed is what the channel holds; of it vouchers have taken Redeemed,
	// Reserved is promised to callers, and nobody has a claim on Free. Free is
	// below 0 after a reorganisation of the chain took money back.
	Confirmed string `json:"confirmed"`
	Redeemed  string `json:"redeemed"`
	Reserved  string `json:"reserved"`
	Free      string `json:"free"`
	// Pending is on its way in PendingCid, of it PendingFree will be free; Queued
	// goes with the message after it.
	Pending     string `json:"pending"`
	PendingFree string `json:"pending_free"`
	PendingCid  string `json:"pending_cid"`
	Queued      string `json:"queued"`
	// SettlingAt is the epoch from which the channel can be collected, 0 while
	// nobody settled it; SettlingLeft is how many epochs that is from the head,
	// Epoch, and SettlingTime about when.
	Epoch        int64      `json:"epoch"`
	SettlingAt   int64      `json:"settling_at"`
	SettlingLeft int64      `json:"settling_left"`
	SettlingTime *time.Time `json:"settling_time"`
	// Created, Settled and Collected are the cids of our own messages, empty where
	// there is none.
	Created   string `json:"created"`
	Settled   string `json:"settled"`
	Collected string `json:"collected"`
	// Tag names who the channel was made for; an owned channel's first lanes are
	// closed to others.
	Tag      string `json:"tag"`
	Owned    bool   `json:"owned"`
	Lanes    int    `json:"lanes"`
	Vouchers uint64 `json:"vouchers"`
	// Result is what Collect paid, null before.
	Result *ChannelResult `json:"result"`
	// Operations are our messages without a receipt.
	Operations []MessageRow `json:"operations"`
	// LastError is why the newest message failed; empty where all is well.
	LastError string `json:"last_error"`
}

// ChannelResult is how a channel ended.
type ChannelResult struct {
	Height int64 `json:"height"`
	// Paid went to the payee, Returned to the payer.
	Paid     string `json:"paid"`
	Returned string `json:"returned"`
}

// MessageRow is one message of ours to the chain.
type MessageRow struct {
	Cid string `json:"cid"`
	// Kind is create, add-funds, submit, settle or collect.
	Kind string `json:"kind"`
	// State is saved, published, done, failed or lost: another message took its
	// nonce.
	State string `json:"state"`
	// Channel is empty while it is being created; ChannelState is its state.
	Channel      string `json:"channel"`
	ChannelState string `json:"channel_state"`
	From         string `json:"from"`
	Nonce        uint64 `json:"nonce"`
	// Value is what the message carries, in attoFIL.
	Value string `json:"value"`
	// Since is when it was signed. At Deadline it is late and worth a
	// look; it stays valid.
	Since    time.Time `json:"since"`
	Deadline time.Time `json:"deadline"`
	Late     bool      `json:"late"`
	// Error is why it failed, or why the last try did; empty where all is well.
	Error string `json:"error"`
	// Cids are all under which it may be mined, the newest first: a message that
	// nobody mines is replaced by one for a higher fee. MinedCid is the one under
	// which it was mined where that is another than Cid.
	Cids     []string `json:"cids"`
	MinedCid string   `json:"mined_cid"`
	Height   int64    `json:"height"`
	ExitCode int64    `json:"exit_code"`
}

// VoucherInfo is every field of a voucher.
type VoucherInfo struct {
	// Voucher is its text, which people and the Lotus command line pass on.
	Voucher string `json:"voucher"`
	Channel string `json:"channel"`
	Lane    uint64 `json:"lane"`
	Nonce   uint64 `json:"nonce"`
	// Amount is the lane's total, in attoFIL.
	Amount string `json:"amount"`
	// SecretHash is the hash lock in hex, empty for none.
	SecretHash string `json:"secret_hash"`
	// TimeLockMin and TimeLockMax bound the epochs in which it can be submitted; 0
	// is no bound. MinSettleHeight keeps the channel from settling before.
	TimeLockMin     int64          `json:"time_lock_min"`
	TimeLockMax     int64          `json:"time_lock_max"`
	MinSettleHeight int64          `json:"min_settle_height"`
	Merges          []VoucherMerge `json:"merges"`
	// Extra is a call that has to succeed, null for none.
	Extra *VoucherExtra `json:"extra"`
	// Signer is the address whose signature it carries, empty where there is no
	// valid one: SignatureError says why. SigningDigest is what was signed, the
	// BLAKE2b-256 of the voucher without its signature, in hex.
	Signer         string `json:"signer"`
	SignatureType  string `json:"signature_type"`
	Signature      string `json:"signature"`
	SigningDigest  string `json:"signing_digest"`
	SignatureError string `json:"signature_error"`
}

// VoucherMerge is a lane that a voucher takes in.
type VoucherMerge struct {
	Lane  uint64 `json:"lane"`
	Nonce uint64 `json:"nonce"`
}

// VoucherExtra is the call of a voucher.
type VoucherExtra struct {
	Actor  string `json:"actor"`
	Method uint64 `json:"method"`
	// Data is in hex.
	Data string `json:"data"`
}

// VoucherRow is a voucher with what is known of it.
type VoucherRow struct {
	VoucherInfo
	// Origin is given (we signed it as the payer), received (the payer gave it to
	// us) or refund (the payee signed it).
	Origin string `json:"origin"`
	// Epoch is the head's when it was created or accepted, 0 where that is
	// forgotten.
	Epoch int64 `json:"epoch"`
	// Live: it can still be submitted, and no later voucher makes it worthless.
	// Opened: the secret of its lock is known. Redeemed: the chain has it or a
	// later one of its lane.
	Live     bool `json:"live"`
	Opened   bool `json:"opened"`
	Redeemed bool `json:"redeemed"`
}

// VoucherSpec is what a voucher is to say.
type VoucherSpec struct {
	Lane uint64 `json:"lane"`
	// Amount is the lane's new total, in attoFIL.
	Amount string `json:"amount"`
	// SecretHash is the BLAKE2b-256 of a secret of 32 bytes, in hex; empty for no
	// lock.
	SecretHash      string `json:"secret_hash"`
	TimeLockMin     int64  `json:"time_lock_min"`
	TimeLockMax     int64  `json:"time_lock_max"`
	MinSettleHeight int64  `json:"min_settle_height"`
}

// VoucherResult is what PaychVoucherCreate did.
type VoucherResult struct {
	// Voucher is null where the channel holds too little; Shortfall is what it
	// lacks, in attoFIL.
	Voucher   *VoucherInfo `json:"voucher"`
	Shortfall string       `json:"shortfall"`
}

// VoucherAdded is what vouchers are worth more than before, in attoFIL.
type VoucherAdded struct {
	Channel string `json:"channel"`
	Delta   string `json:"delta"`
}

// Spendable says whether the chain would take a voucher now.
type Spendable struct {
	Spendable bool `json:"spendable"`
}

// Reservation is funds set aside. They are there once Message, which brings what
// was missing, is final; null where enough was free.
type Reservation struct {
	Channel string      `json:"channel"`
	Amount  string      `json:"amount"`
	Message *MessageRow `json:"message"`
}

// Lane is one lane of a channel.
type Lane struct {
	Channel string `json:"channel"`
	Lane    uint64 `json:"lane"`
}

// MessageWait is what a wait for a receipt saw.
type MessageWait struct {
	// Done is set once the message has its receipt and succeeded.
	Done    bool       `json:"done"`
	Message MessageRow `json:"message"`
}

// WalletRow is one key.
type WalletRow struct {
	Address string `json:"address"`
	// Balance is of the account on the chain, in attoFIL.
	Balance string `json:"balance"`
}

// digits writes an amount; a missing one is 0.
func digits(x big.Int) string {
	if x.Int == nil {
		return "0"
	}
	return x.String()
}

// addrText writes an address, a missing one as nothing.
func addrText(a address.Address) string {
	if a == address.Undef {
		return ""
	}
	return a.String()
}

func cidText(c *cid.Cid) string {
	if c == nil || !c.Defined() {
		return ""
	}
	return c.String()
}

// channelRow shows a channel with the chain at epoch now.
func channelRow(in *paych.ChannelInfo, now abi.ChainEpoch, epoch time.Duration, at time.Time) ChannelRow {
	row := ChannelRow{
		Channel: addrText(in.Channel), Direction: in.Direction.String(), State: in.Phase.String(),
		From: addrText(in.From), To: addrText(in.To), Control: addrText(in.ControlAddr),
		Confirmed: digits(in.ConfirmedAmt), Redeemed: digits(in.VoucherReedeemedAmt), Reserved: digits(in.ReservedAmt),
		Free: digits(in.Funds.Free()), Pending: digits(in.PendingAmt), PendingFree: digits(in.PendingFree),
		PendingCid: cidText(in.PendingChainMessage), Queued: digits(in.QueuedAmt),
		Epoch: int64(now), SettlingAt: int64(in.SettlingAt),
		Created: cidText(in.Created), Settled: cidText(in.Settled), Collected: cidText(in.Collected),
		Tag: in.Tag, Owned: in.Owned, Lanes: in.Lanes, Vouchers: in.Vouchers,
		Operations: []MessageRow{}, LastError: in.LastError,
	}
	if in.Phase != paych.PhaseOpen && in.Phase != paych.PhaseSettling || in.Direction != paych.PCHOutbound {
		row.Free = "0" // nothing of ours to give
	}
	if in.Phase == paych.PhaseSettling {
		row.SettlingLeft = int64(max(0, in.SettlingAt-now))
		when := at.Add(time.Duration(row.SettlingLeft) * epoch).Truncate(time.Second)
		row.SettlingTime = &when
	}
	if f := in.Final; f != nil {
		row.Result = &ChannelResult{Height: int64(f.Height), Paid: digits(f.ToSend), Returned: digits(f.Rest)}
	}
	for i := range in.Pending {
		row.Operations = append(row.Operations, messageRow(&in.Pending[i], at))
	}
	return row
}

func messageRow(m *paych.MessageStatus, at time.Time) MessageRow {
	final := m.State != "saved" && m.State != "published"
	cids := make([]string, len(m.Cids))
	for i, id := range m.Cids {
		cids[i] = id.String()
	}
	return MessageRow{
		Cids: cids,
		Cid:  m.Cid.String(), Kind: m.Kind, State: m.State, Channel: addrText(m.Channel.Channel), ChannelState: m.Phase.String(),
		From: addrText(m.From), Nonce: m.Nonce, Value: digits(m.Value), Since: m.Since, Deadline: m.Late,
		Late: !final && at.After(m.Late), Error: m.Error, MinedCid: cidText(m.Mined), Height: int64(m.Height), ExitCode: int64(m.ExitCode),
	}
}

// InspectVoucher reads a voucher's text and shows every field. It asks nobody.
func InspectVoucher(text string) (VoucherInfo, error) {
	sv, err := paych.ParseVoucher(text)
	if err != nil {
		return VoucherInfo{}, channelError(err)
	}
	return voucherInfo(sv)
}

func voucherInfo(sv *paych.SignedVoucher) (VoucherInfo, error) {
	text, err := paych.FormatVoucher(sv)
	if err != nil {
		return VoucherInfo{}, err
	}
	signing, err := paych.SigningBytes(sv)
	if err != nil {
		return VoucherInfo{}, err
	}
	digest := blake2b.Sum256(signing)
	v := VoucherInfo{
		Voucher: text, Channel: addrText(sv.ChannelAddr), Lane: sv.Lane, Nonce: sv.Nonce, Amount: digits(sv.Amount),
		SecretHash:  hex.EncodeToString(sv.SecretHash),
		TimeLockMin: int64(sv.TimeLockMin), TimeLockMax: int64(sv.TimeLockMax), MinSettleHeight: int64(sv.MinSettleHeight),
		Merges: []VoucherMerge{}, SigningDigest: hex.EncodeToString(digest[:]),
	}
	for _, m := range sv.Merges {
		v.Merges = append(v.Merges, VoucherMerge{Lane: m.Lane, Nonce: m.Nonce})
	}
	if x := sv.Extra; x != nil {
		v.Extra = &VoucherExtra{Actor: addrText(x.Actor), Method: uint64(x.Method), Data: hex.EncodeToString(x.Data)}
	}
	if sig := sv.Signature; sig != nil {
		v.Signature = hex.EncodeToString(sig.Data)
		if v.SignatureType, err = sig.Type.Name(); err != nil {
			v.SignatureType = "unknown"
		}
	}
	if signer, err := paych.Signer(sv); err != nil {
		v.SignatureError = err.Error()
	} else {
		v.Signer = addrText(signer)
	}
	return v, nil
}

func voucherRow(r *paych.VoucherRecord) (VoucherRow, error) {
	info, err := voucherInfo(r.Voucher)
	return VoucherRow{
		VoucherInfo: info, Origin: r.Origin.String(), Epoch: int64(r.Epoch),
		Live: r.Live, Opened: r.Opened, Redeemed: r.Redeemed,
	}, err
}
