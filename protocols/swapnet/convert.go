package swapnet

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/pb/swappb"
	"github.com/tallystick/tally/protocols/internal/wire"
	"github.com/tallystick/tally/swap"
)

// Bounds on the fields of a message, checked in both directions. MaxNativeFrame
// is their sum.
const (
	// MaxAmount is the most that any amount on the wire may be, and a balance
	// either way: the ledger's own bound.
	MaxAmount tally.Amount = 1 << 60
	// MaxPeerID bounds a binary peer id, bytes: an inlined secp256k1 or Ed25519
	// key is 37 or 38, a hash 34.
	MaxPeerID = 64
	// MaxDetail bounds the text of a refusal, bytes.
	MaxDetail = 256
	// MaxBeneficiary bounds the beneficiary of a seed cheque, bytes: a peer id
	// as text, or an address.
	MaxBeneficiary = 128

	// maxName is the bound of swap.Realm on each of its names.
	maxName = 64
)

// A messageError is a peer's message that decodes and still makes no sense. It
// is a swap.ErrMalformed.
type messageError struct{ what string }

func (e *messageError) Error() string        { return "swapnet: malformed message: " + e.what }
func (e *messageError) Is(target error) bool { return target == swap.ErrMalformed }

func malformed(format string, args ...any) error {
	return &messageError{what: fmt.Sprintf(format, args...)}
}

// errUnknownKind: a frame of a kind that this version does not know. It is
// skipped.
var errUnknownKind = errors.New("swapnet: unknown kind of frame")

// refund is a refund_request or a refund: known, and not answered by this
// version. serial is what the refusal names.
type refund struct{ serial uint64 }

// decodeFrame reads a frame of /tally/swap/1.0.0. Exactly one of message and
// refund is set where err is nil.
func decodeFrame(b []byte) (swap.Message, *refund, error) {
	var f swappb.Frame
	if err := wire.Unmarshal(b, &f); err != nil {
		return nil, nil, err
	}
	m, r, err := frameToMessage(&f)
	return m, r, err
}

func frameToMessage(f *swappb.Frame) (swap.Message, *refund, error) {
	switch k := f.GetKind().(type) {
	case *swappb.Frame_Handshake:
		m, err := handshakeFromPB(k.Handshake)
		return message(m, err)
	case *swappb.Frame_Cheque:
		m, err := chequeFromPB(k.Cheque)
		return message(m, err)
	case *swappb.Frame_ChequeAck:
		m, err := ackFromPB(k.ChequeAck)
		return message(m, err)
	case *swappb.Frame_Statement:
		t, err := totalsFromPB(k.Statement.GetTotals())
		return message(&swap.Statement{Totals: t}, err)
	case *swappb.Frame_Refusal:
		return message(refusalFromPB(k.Refusal), nil)
	case *swappb.Frame_RefundRequest:
		return nil, &refund{serial: k.RefundRequest.GetSerial()}, nil
	case *swappb.Frame_Refund:
		return nil, &refund{serial: k.Refund.GetSerial()}, nil
	default:
		return nil, nil, errUnknownKind
	}
}

// message turns a typed nil that comes with an error into a plain one.
func message[M swap.Message](m M, err error) (swap.Message, *refund, error) {
	if err != nil {
		return nil, nil, err
	}
	return m, nil, nil
}

// encodeFrame writes a message of /tally/swap/1.0.0.
func encodeFrame(m swap.Message) ([]byte, error) {
	f, err := messageToFrame(m)
	if err != nil {
		return nil, err
	}
	return marshal(f, MaxNativeFrame)
}

func messageToFrame(m swap.Message) (*swappb.Frame, error) {
	f := &swappb.Frame{}
	switch m := m.(type) {
	case *swap.Handshake:
		f.Kind = &swappb.Frame_Handshake{Handshake: handshakeToPB(m)}
	case *swap.Cheque:
		f.Kind = &swappb.Frame_Cheque{Cheque: chequeToPB(m)}
	case *swap.Ack:
		f.Kind = &swappb.Frame_ChequeAck{ChequeAck: ackToPB(m)}
	case *swap.Statement:
		f.Kind = &swappb.Frame_Statement{Statement: &swappb.Statement{Totals: totalsToPB(&m.Totals)}}
	case *swap.Refusal:
		f.Kind = &swappb.Frame_Refusal{Refusal: refusalToPB(m)}
	default:
		return nil, fmt.Errorf("%w: %T on %s", ErrUnsupported, m, ProtocolNative)
	}
	// What the peer would refuse as malformed must not leave: the same checks
	// run on both sides.
	if _, _, err := frameToMessage(f); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return f, nil
}

func marshal(m proto.Message, maxFrame int) ([]byte, error) {
	if size := proto.Size(m); size > maxFrame {
		return nil, &wire.SizeError{Size: uint64(size), Max: maxFrame}
	}
	b, err := proto.MarshalOptions{UseCachedSize: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode frame: %w", err)
	}
	return b, nil
}

func handshakeFromPB(h *swappb.Handshake) (*swap.Handshake, error) {
	realm := swap.Realm{Network: h.GetRealm().GetNetwork(), Genesis: h.GetRealm().GetGenesis(), Asset: h.GetRealm().GetAsset()}
	if err := realm.Validate(); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	payout := swap.Payout{
		Address: h.GetPayoutAddress(), Proof: nonEmpty(h.GetPayoutProof()), Consent: nonEmpty(h.GetPayoutConsent()),
		Channel: h.GetChannelOffer().GetAddress(), Origin: tally.Amount(h.GetChannelOffer().GetOrigin()),
	}
	if err := payout.Validate(); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	out := &swap.Handshake{
		Realm: realm,
		Terms: swap.Terms{
			PaymentThreshold:    clampThreshold(h.GetPaymentThreshold()),
			DisconnectThreshold: clampThreshold(h.GetDisconnectThreshold()),
			Mode:                modeFromPB(h.GetMode()),
			Native:              true,
		},
		Payout: payout,
	}
	var err error
	if out.Totals, err = totalsFromPB(h.GetTotals()); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	for _, c := range [...]struct {
		from *swappb.Cheque
		to   **swap.Cheque
		name string
	}{{h.GetChequeSent(), &out.ChequeSent, "cheque sent"}, {h.GetChequeReceived(), &out.ChequeReceived, "cheque received"}} {
		if c.from == nil {
			continue
		}
		if *c.to, err = chequeFromPB(c.from); err != nil {
			return nil, fmt.Errorf("handshake: %s: %w", c.name, err)
		}
	}
	for _, a := range [...]struct {
		from *swappb.ChequeAck
		to   **swap.Ack
		name string
	}{{h.GetAckGiven(), &out.AckGiven, "ack given"}, {h.GetAckReceived(), &out.AckReceived, "ack received"}} {
		if a.from == nil {
			continue
		}
		if *a.to, err = ackFromPB(a.from); err != nil {
			return nil, fmt.Errorf("handshake: %s: %w", a.name, err)
		}
	}
	return out, nil
}

func handshakeToPB(h *swap.Handshake) *swappb.Handshake {
	out := &swappb.Handshake{
		Realm:               &swappb.Realm{Network: h.Network, Genesis: h.Genesis, Asset: h.Asset},
		PaymentThreshold:    uint64(h.PaymentThreshold),
		DisconnectThreshold: uint64(h.DisconnectThreshold),
		Mode:                swappb.Mode(h.Mode),
		PayoutAddress:       h.Payout.Address,
		PayoutProof:         h.Payout.Proof,
		PayoutConsent:       h.Payout.Consent,
		Totals:              totalsToPB(&h.Totals),
	}
	if h.Payout.Channel != "" {
		out.ChannelOffer = &swappb.ChannelOffer{Address: h.Payout.Channel, Origin: uint64(h.Payout.Origin)}
	}
	if h.ChequeSent != nil {
		out.ChequeSent = chequeToPB(h.ChequeSent)
	}
	if h.ChequeReceived != nil {
		out.ChequeReceived = chequeToPB(h.ChequeReceived)
	}
	if h.AckGiven != nil {
		out.AckGiven = ackToPB(h.AckGiven)
	}
	if h.AckReceived != nil {
		out.AckReceived = ackToPB(h.AckReceived)
	}
	return out
}

// clampThreshold bounds an announced threshold the way the seed's is bounded.
func clampThreshold(v uint64) tally.Amount {
	clamped, err := swap.ClampThreshold(swap.ThresholdBytes(tally.Amount(v)))
	if err != nil {
		panic("swapnet: 8 bytes are too long for a threshold")
	}
	return clamped
}

// modeFromPB takes a mode of a later version for one that was not told.
func modeFromPB(m swappb.Mode) swap.Mode {
	if m < 0 || m > swappb.Mode(swap.ModeHard) {
		return swap.ModeUnset
	}
	return swap.Mode(m)
}

func totalsFromPB(t *swappb.Totals) (swap.Totals, error) {
	out := swap.Totals{
		Served: tally.Amount(t.GetServed()), Consumed: tally.Amount(t.GetConsumed()),
		SeenServed: tally.Amount(t.GetSeenServed()), SeenConsumed: tally.Amount(t.GetSeenConsumed()),
		Paid: tally.Amount(t.GetPaid()), Received: tally.Amount(t.GetReceived()),
		AtRest: t.GetAtRest(), Uncovered: tally.Amount(t.GetUncovered()), Owed: tally.Amount(t.GetOwed()),
	}
	if max(out.Served, out.Consumed, out.SeenServed, out.SeenConsumed, out.Paid, out.Received, out.Uncovered, out.Owed) > MaxAmount {
		return swap.Totals{}, malformed("totals above %d", MaxAmount)
	}
	return out, nil
}

func totalsToPB(t *swap.Totals) *swappb.Totals {
	return &swappb.Totals{
		Served: uint64(t.Served), Consumed: uint64(t.Consumed),
		SeenServed: uint64(t.SeenServed), SeenConsumed: uint64(t.SeenConsumed),
		Paid: uint64(t.Paid), Received: uint64(t.Received),
		AtRest: t.AtRest, Uncovered: uint64(t.Uncovered), Owed: uint64(t.Owed),
	}
}

func chequeFromPB(c *swappb.Cheque) (*swap.Cheque, error) {
	issuer, beneficiary, err := partiesFromPB(c.GetIssuer(), c.GetBeneficiary())
	if err != nil {
		return nil, fmt.Errorf("cheque: %w", err)
	}
	if err := checkAmounts(c.GetBalance(), c.GetCumulative(), c.GetServed(), c.GetConsumed()); err != nil {
		return nil, fmt.Errorf("cheque: %w", err)
	}
	switch {
	case c.GetSerial() == 0:
		return nil, malformed("cheque serial 0")
	case len(c.GetBacking()) > swap.MaxBacking:
		return nil, malformed("backing of %d bytes", len(c.GetBacking()))
	case len(c.GetSignature()) > swap.MaxSignature:
		return nil, malformed("signature of %d bytes", len(c.GetSignature()))
	}
	return &swap.Cheque{
		Issuer: issuer, Beneficiary: beneficiary,
		Serial: c.GetSerial(), Cumulative: tally.Amount(c.GetCumulative()),
		Served: tally.Amount(c.GetServed()), Consumed: tally.Amount(c.GetConsumed()), Balance: tally.Balance(c.GetBalance()),
		Date: c.GetDate(), Backing: nonEmpty(c.GetBacking()), Signature: nonEmpty(c.GetSignature()),
	}, nil
}

func chequeToPB(c *swap.Cheque) *swappb.Cheque {
	return &swappb.Cheque{
		Issuer: []byte(c.Issuer), Beneficiary: []byte(c.Beneficiary),
		Serial: c.Serial, Cumulative: uint64(c.Cumulative),
		Served: uint64(c.Served), Consumed: uint64(c.Consumed), Balance: int64(c.Balance),
		Date: c.Date, Backing: c.Backing, Signature: c.Signature,
	}
}

func ackFromPB(a *swappb.ChequeAck) (*swap.Ack, error) {
	issuer, beneficiary, err := partiesFromPB(a.GetIssuer(), a.GetBeneficiary())
	if err != nil {
		return nil, fmt.Errorf("ack: %w", err)
	}
	if err := checkAmounts(a.GetBalance(), a.GetCredited(), a.GetServed(), a.GetConsumed()); err != nil {
		return nil, fmt.Errorf("ack: %w", err)
	}
	out := &swap.Ack{
		Issuer: issuer, Beneficiary: beneficiary, Serial: a.GetSerial(), Credited: tally.Amount(a.GetCredited()),
		Served: tally.Amount(a.GetServed()), Consumed: tally.Amount(a.GetConsumed()), Balance: tally.Balance(a.GetBalance()),
		Signature: nonEmpty(a.GetSignature()),
	}
	switch {
	case out.Serial == 0:
		return nil, malformed("ack serial 0")
	case len(a.GetChequeHash()) != len(out.ChequeHash):
		return nil, malformed("ack with a cheque hash of %d bytes", len(a.GetChequeHash()))
	case len(out.Signature) > swap.MaxSignature:
		return nil, malformed("signature of %d bytes", len(out.Signature))
	}
	copy(out.ChequeHash[:], a.GetChequeHash())
	return out, nil
}

func ackToPB(a *swap.Ack) *swappb.ChequeAck {
	return &swappb.ChequeAck{
		Issuer: []byte(a.Issuer), Beneficiary: []byte(a.Beneficiary),
		ChequeHash: a.ChequeHash[:], Serial: a.Serial, Credited: uint64(a.Credited),
		Served: uint64(a.Served), Consumed: uint64(a.Consumed), Balance: int64(a.Balance),
		Signature: a.Signature,
	}
}

func refusalFromPB(r *swappb.Refusal) *swap.Refusal {
	code := swap.RefusalUnknown
	if c := r.GetCode(); c >= 0 && c <= swappb.RefusalCode(swap.RefusalPayout) {
		code = swap.RefusalCode(c)
	}
	return &swap.Refusal{Serial: r.GetSerial(), Code: code, Detail: cleanDetail(r.GetDetail())}
}

func refusalToPB(r *swap.Refusal) *swappb.Refusal {
	return &swappb.Refusal{Serial: r.Serial, Code: swappb.RefusalCode(r.Code), Detail: cleanDetail(r.Detail)}
}

// cleanDetail cuts a text to MaxDetail bytes and keeps a peer from writing
// control characters to a terminal. What it returns it leaves as it is.
func cleanDetail(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) <= MaxDetail {
		return s
	}
	s = s[:MaxDetail]
	for !utf8.ValidString(s) { // a rune was cut: at most three steps
		s = s[:len(s)-1]
	}
	return s
}

func partiesFromPB(issuer, beneficiary []byte) (i, b peer.ID, err error) {
	if i, err = peerFromPB(issuer); err != nil {
		return "", "", fmt.Errorf("issuer: %w", err)
	}
	if b, err = peerFromPB(beneficiary); err != nil {
		return "", "", fmt.Errorf("beneficiary: %w", err)
	}
	return i, b, nil
}

func peerFromPB(b []byte) (peer.ID, error) {
	if len(b) > MaxPeerID {
		return "", malformed("peer id of %d bytes", len(b))
	}
	id, err := peer.IDFromBytes(b)
	if err != nil {
		return "", malformed("peer id: %v", err)
	}
	return id, nil
}

func checkAmounts(balance int64, amounts ...uint64) error {
	for _, a := range amounts {
		if tally.Amount(a) > MaxAmount {
			return malformed("amount %d above %d", a, MaxAmount)
		}
	}
	if balance > int64(MaxAmount) || balance < -int64(MaxAmount) {
		return malformed("balance %d beyond %d", balance, MaxAmount)
	}
	return nil
}

// nonEmpty gives the empty field one form.
func nonEmpty(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}
