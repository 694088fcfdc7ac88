package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"
	cbg "github.com/whyrusleeping/cbor-gen"
)

// Codes of errors that Lotus numbers; all others are 1.
const (
	CodeOutOfGas      = 2
	CodeActorNotFound = 3
)

// LookbackNoLimit as a limit of StateSearchMsg and StateWaitMsg means the whole
// chain.
const LookbackNoLimit abi.ChainEpoch = -1

// TipSetKey names a tipset by the cids of its blocks; empty means the head.
type TipSetKey []cid.Cid

// MarshalJSON writes [] for the head, never null.
func (k TipSetKey) MarshalJSON() ([]byte, error) {
	if k == nil {
		return []byte("[]"), nil
	}
	return json.Marshal([]cid.Cid(k))
}

// Equals reports whether k and o name one tipset.
func (k TipSetKey) Equals(o TipSetKey) bool {
	if len(k) != len(o) {
		return false
	}
	for i := range k {
		if k[i] != o[i] {
			return false
		}
	}
	return true
}

// TipSet is the blocks of one height.
type TipSet struct {
	Cids   TipSetKey
	Blocks []*BlockHeader
	Height abi.ChainEpoch
}

// Ticket is the proof of a block's lottery.
type Ticket struct{ VRFProof []byte }

// ElectionProof is the proof that a miner was elected.
type ElectionProof struct {
	WinCount int64
	VRFProof []byte
}

// BeaconEntry is a round of drand.
type BeaconEntry struct {
	Round uint64
	Data  []byte
}

// PoStProof is a proof of space-time.
type PoStProof struct {
	PoStProof  int64
	ProofBytes []byte
}

// BlockHeader is the header of a block.
type BlockHeader struct {
	Miner                 address.Address
	Ticket                *Ticket
	ElectionProof         *ElectionProof
	BeaconEntries         []BeaconEntry
	WinPoStProof          []PoStProof
	Parents               []cid.Cid
	ParentWeight          big.Int
	Height                abi.ChainEpoch
	ParentStateRoot       cid.Cid
	ParentMessageReceipts cid.Cid
	Messages              cid.Cid
	BLSAggregate          *crypto.Signature
	Timestamp             uint64
	BlockSig              *crypto.Signature
	ForkSignaling         uint64
	ParentBaseFee         big.Int
}

// MarshalCBOR writes the array of sixteen whose hash is the block's cid.
func (b *BlockHeader) MarshalCBOR(w io.Writer) error {
	cw := cbg.NewCborWriter(w)
	var err error
	do := func(f func() error) {
		if err == nil {
			err = f()
		}
	}
	head := func(major byte, n uint64) { do(func() error { return cw.WriteMajorTypeHeader(major, n) }) }
	blob := func(p []byte) { do(func() error { return cbg.WriteByteArray(cw, p) }) }
	item := func(v cbg.CBORMarshaler) { do(func() error { return v.MarshalCBOR(cw) }) }
	link := func(c cid.Cid) { do(func() error { return cbg.WriteCid(cw, c) }) }
	num := func(n int64) { item(cbg.CborInt(n)) }

	head(cbg.MajArray, 16)
	item(&b.Miner)
	null := func() { do(func() error { _, err := cw.Write(cbg.CborNull); return err }) }
	if b.Ticket == nil {
		null()
	} else {
		head(cbg.MajArray, 1)
		blob(b.Ticket.VRFProof)
	}
	if b.ElectionProof == nil {
		null()
	} else {
		head(cbg.MajArray, 2)
		num(b.ElectionProof.WinCount)
		blob(b.ElectionProof.VRFProof)
	}
	head(cbg.MajArray, uint64(len(b.BeaconEntries)))
	for _, e := range b.BeaconEntries {
		head(cbg.MajArray, 2)
		head(cbg.MajUnsignedInt, e.Round)
		blob(e.Data)
	}
	head(cbg.MajArray, uint64(len(b.WinPoStProof)))
	for _, p := range b.WinPoStProof {
		head(cbg.MajArray, 2)
		num(p.PoStProof)
		blob(p.ProofBytes)
	}
	head(cbg.MajArray, uint64(len(b.Parents)))
	for _, c := range b.Parents {
		link(c)
	}
	item(&b.ParentWeight)
	num(int64(b.Height))
	link(b.ParentStateRoot)
	link(b.ParentMessageReceipts)
	link(b.Messages)
	item(b.BLSAggregate)
	head(cbg.MajUnsignedInt, b.Timestamp)
	item(b.BlockSig)
	head(cbg.MajUnsignedInt, b.ForkSignaling)
	item(&b.ParentBaseFee)
	if err != nil {
		return fmt.Errorf("wire: encode block header: %w", err)
	}
	return nil
}

// Bytes returns the CBOR of the header.
func (b *BlockHeader) Bytes() ([]byte, error) {
	var buf bytes.Buffer
	if err := b.MarshalCBOR(&buf); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// Changes of the head as ChainNotify names them.
const (
	HeadCurrent = "current"
	HeadApply   = "apply"
	HeadRevert  = "revert"
)

// HeadChange is one step of the head.
type HeadChange struct {
	Type string
	Val  *TipSet
}

// Receipt is what a message did.
type Receipt struct {
	ExitCode   exitcode.ExitCode
	Return     []byte
	GasUsed    int64
	EventsRoot *cid.Cid
}

// MarshalCBOR writes the receipt of network version 18 and later.
func (r *Receipt) MarshalCBOR(w io.Writer) error {
	if err := cbg.WriteMajorTypeHeader(w, cbg.MajArray, 4); err != nil {
		return err
	}
	if err := cbg.CborInt(r.ExitCode).MarshalCBOR(w); err != nil {
		return err
	}
	if err := cbg.WriteByteArray(w, r.Return); err != nil {
		return err
	}
	if err := cbg.CborInt(r.GasUsed).MarshalCBOR(w); err != nil {
		return err
	}
	if r.EventsRoot == nil {
		_, err := w.Write(cbg.CborNull)
		return err
	}
	return cbg.WriteCid(w, *r.EventsRoot)
}

// MsgLookup says where a message was executed. Height and TipSet are those of
// the tipset whose parent state has it, one after the tipset that carried it.
type MsgLookup struct {
	// Message may be another than asked for, where a fee bump replaced it.
	Message   cid.Cid
	Receipt   Receipt
	ReturnDec any
	TipSet    TipSetKey
	Height    abi.ChainEpoch
}

// Actor is an entry of the state tree.
type Actor struct {
	Code    cid.Cid
	Head    cid.Cid
	Nonce   uint64
	Balance big.Int
	// DelegatedAddress is the f4 address, for those who have one.
	DelegatedAddress *address.Address
}

// ActorState is an actor's state as StateReadState prints it.
type ActorState struct {
	Balance big.Int
	Code    cid.Cid
	State   json.RawMessage
}

// ChannelState is the State of a payment channel's ActorState.
type ChannelState struct {
	From, To        address.Address
	ToSend          big.Int
	SettlingAt      abi.ChainEpoch
	MinSettleHeight abi.ChainEpoch
	LaneStates      cid.Cid
}

// InitState is the State of the init actor's ActorState.
type InitState struct {
	AddressMap  cid.Cid
	NextID      abi.ActorID
	NetworkName string
}

// CidMessage is a message with the cid it is known under.
type CidMessage struct {
	Cid     cid.Cid
	Message *Message
}

// MessageMatch selects messages of StateListMessages.
type MessageMatch struct{ To, From address.Address }

// MessageSendSpec bounds what GasEstimateMessageGas may choose.
type MessageSendSpec struct {
	MaxFee         big.Int
	MsgUuid        string
	MaximizeFeeCap bool
}

// MsgGasCost is what a simulated message paid.
type MsgGasCost struct {
	Message            cid.Cid
	GasUsed            big.Int
	BaseFeeBurn        big.Int
	OverEstimationBurn big.Int
	MinerPenalty       big.Int
	MinerTip           big.Int
	Refund             big.Int
	TotalCost          big.Int
}

// InvocResult is what StateCall answers.
type InvocResult struct {
	MsgCid         cid.Cid
	Msg            *Message
	MsgRct         *Receipt
	GasCost        MsgGasCost
	ExecutionTrace json.RawMessage
	Error          string
	Duration       time.Duration
}

// APIVersion is what Version answers. BlockDelay is in seconds.
type APIVersion struct {
	Version    string
	APIVersion uint32
	BlockDelay uint64
	Agent      string
}

// DevParams is what the embedded chain tells of itself beside Lotus' methods.
type DevParams struct {
	SettleDelay abi.ChainEpoch
	Finality    abi.ChainEpoch
	EpochNanos  int64
	Faucet      address.Address
	// Manual: no blocks are made but by DevMine.
	Manual bool
}
