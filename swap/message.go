package swap

import (
	"fmt"

	"github.com/tallystick/tally"
)

// Handshake is the first message each way of a session.
type Handshake struct {
	Realm
	Terms
	// Payout is where the teller is paid; its address is empty without a chain.
	Payout Payout
	// Totals are the teller's first statement of the session.
	Totals Totals
	// Recovery: what the teller last sent and last accepted, each in full, so
	// that a side whose store is older takes over what the other proves.
	ChequeSent, ChequeReceived *Cheque
	AckGiven, AckReceived      *Ack
}

// RefusalCode says why a cheque was refused. The numbers go over the wire: add
// at the end.
type RefusalCode uint32

const (
	// RefusalUnknown stands for a code that this version does not know.
	RefusalUnknown RefusalCode = iota
	// RefusalSignature: the signature does not hold.
	RefusalSignature
	// RefusalBeneficiary: the cheque is for or from somebody else.
	RefusalBeneficiary
	// RefusalNetwork: other network, genesis or asset.
	RefusalNetwork
	// RefusalStale: a serial below the last one, or a lower cumulative.
	RefusalStale
	// RefusalUnbacked: only cheques with backing are accepted.
	RefusalUnbacked
	// RefusalUncovered: the backing covers nothing more than before.
	RefusalUncovered
	// RefusalMalformed: the message makes no sense.
	RefusalMalformed
	// RefusalUnsupported: a kind of message that this version or mode does not
	// answer.
	RefusalUnsupported
	// RefusalInternal: our store failed; the same cheque may come again later.
	RefusalInternal
	// RefusalBacking: the backing is not for this peer, channel or amount.
	RefusalBacking
	// RefusalPayout: the payout address is not bound to the peer.
	RefusalPayout
)

// String names the code as `tally` shows it.
func (c RefusalCode) String() string {
	names := [...]string{
		"unknown reason", "bad signature", "wrong beneficiary", "other network or asset", "older than the last cheque",
		"no backing", "the channel does not cover it", "malformed", "not supported", "the peer cannot check it now",
		"the backing is not acceptable", "payout address is not bound to the peer",
	}
	if int(c) < len(names) {
		return names[c]
	}
	return names[RefusalUnknown]
}

// Refusal answers a cheque that was not credited, or a request that is not
// supported.
type Refusal struct {
	// Serial of the refused cheque; 0 where it is about no cheque.
	Serial uint64
	Code   RefusalCode
	// Detail is for the operator's eyes only.
	Detail string
}

// RemoteError is what a peer said of our message.
type RemoteError struct {
	Code   RefusalCode
	Detail string
}

// Error names the peer's reason.
func (e *RemoteError) Error() string {
	if e.Detail == "" {
		return "swap: the peer refused: " + e.Code.String()
	}
	return fmt.Sprintf("swap: the peer refused: %v: %q", e.Code, e.Detail)
}

// Statement tells totals between settlements.
type Statement struct{ Totals }

// Message is one of *Handshake, *Cheque, *Ack, *Statement, *Refusal and
// *KarmaCheque.
type Message interface{ swapMessage() }

func (*Handshake) swapMessage()   {}
func (*Cheque) swapMessage()      {}
func (*Ack) swapMessage()         {}
func (*Statement) swapMessage()   {}
func (*Refusal) swapMessage()     {}
func (*KarmaCheque) swapMessage() {}

// ClampThreshold reads a threshold of the seed's handshake: big-endian bytes of
// any length up to 32; empty means 0, and what is larger than an amount of the
// ledger is clamped to it.
func ClampThreshold(b []byte) (tally.Amount, error) {
	if len(b) > 32 {
		return 0, fmt.Errorf("%w: payment threshold of %d bytes", ErrMalformed, len(b))
	}
	var v tally.Amount
	for _, c := range b {
		if v > maxThreshold {
			return maxThreshold, nil
		}
		v = v<<8 | tally.Amount(c)
	}
	return min(v, maxThreshold), nil
}

// ThresholdBytes writes a threshold for the seed's handshake: big-endian,
// minimal, empty for 0.
func ThresholdBytes(v tally.Amount) []byte {
	var b [8]byte
	n := len(b)
	for ; v > 0; v >>= 8 {
		n--
		b[n] = byte(v)
	}
	return b[n:]
}
