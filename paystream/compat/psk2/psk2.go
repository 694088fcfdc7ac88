// Package psk2 encodes what PSK2 (RFC 0025 as ilp-protocol-psk2 0.5.0 runs it)
// puts in a packet's envelope, and the messages of ilp-protocol-paystream on top.
//
//	packet     type u8 | request id u32 | amount u64 | data var | padding
//	type       4 request, 5 response, 6 error
//	amount     request: the least to accept; response, error: what arrived
//
//	message    00                                   close
//	           01 | expected u64 | wanted u64 |     chunk
//	                destination var                 empty: unchanged
//	expected   max(0, min − balance), wanted max(0, max − balance), at most 2^64−1
//
// An unfulfillable request (a random condition) is a probe: it is answered by
// reject F05 with an error inside that tells what arrived. Too little: F99. Not
// ours: F06. The first chunk of a socket is such a probe, of 1000, and carries
// the opener's address.
//
// The label of the encryption key in all running code is ilp_psk2_encryption;
// the RFC has another.
package psk2

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/compat/oer"
)

const (
	encryptionLabel = "ilp_psk2_encryption"
	fulfilmentLabel = "ilp_psk2_fulfillment"
	generationLabel = "ilp_psk2_generation"

	// TokenSize is the length of a token that a server draws. A key id may follow
	// it in an address.
	TokenSize = 18

	// MaxData is the longest data of a packet: what an envelope leaves after type,
	// request id, amount and a length of three bytes.
	MaxData = envelope.MaxPlain - 1 - 4 - 8 - 3
)

var (
	// ErrType: a type of packet that PSK2 does not have, or the older chunks 0 to 3,
	// which nothing sends any more.
	ErrType = errors.New("psk2: unknown type of packet: want request 4, response 5 or error 6")
	// ErrMessage: not a message of a payment socket.
	ErrMessage = errors.New("psk2: not a paystream message: want close (00) or chunk (01 …)")
)

// NewKeys derives the keys of a shared secret.
func NewKeys(secret envelope.Secret) *envelope.Keys {
	return envelope.NewKeys(secret, encryptionLabel, fulfilmentLabel)
}

// SharedSecret derives the secret of a token, or of a token and key id, from a
// server's own secret.
func SharedSecret(server envelope.Secret, token []byte) envelope.Secret {
	return server.Derive(generationLabel, token)
}

// Type says what a packet is.
type Type uint8

// The packets of PSK2.
const (
	TypeRequest  Type = 4
	TypeResponse Type = 5
	TypeError    Type = 6
)

// Packet is the plain text of an envelope.
type Packet struct {
	Type      Type
	RequestID uint32
	Amount    tally.Amount
	Data      []byte
}

// Append appends the packet's bytes.
func (p *Packet) Append(dst []byte) ([]byte, error) {
	if p.Type < TypeRequest || p.Type > TypeError {
		return nil, ErrType
	}
	if len(p.Data) > MaxData {
		return nil, fmt.Errorf("psk2: data of %d bytes: %w", len(p.Data), oer.ErrTooLong)
	}
	dst = append(dst, byte(p.Type))
	dst = binary.BigEndian.AppendUint32(dst, p.RequestID)
	dst = binary.BigEndian.AppendUint64(dst, uint64(p.Amount))
	return oer.AppendVar(dst, p.Data), nil
}

// DecodePacket reads a packet, whose data aliases b. What follows it is padding.
func DecodePacket(b []byte) (*Packet, error) {
	r := oer.NewReader(b)
	p := &Packet{
		Type:      Type(r.U8()),
		RequestID: r.U32(),
		Amount:    tally.Amount(r.U64()),
		Data:      r.Var(MaxData),
	}
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("psk2: packet: %w", err)
	}
	if p.Type < TypeRequest || p.Type > TypeError {
		return nil, ErrType
	}
	return p, nil
}

// The two messages of a payment socket.
const (
	messageClose = 0
	messageChunk = 1
)

// Message is what a payment socket tells its peer with each request. The zero
// value is a chunk that asks for nothing and wants nothing.
type Message struct {
	Close       bool         // the socket is closed; the rest is empty
	Expected    tally.Amount // what the teller lacks to its minimum
	Wanted      tally.Amount // what it may take up to its maximum
	Destination ilp.Address  // where the teller is; empty: as before
}

// Append appends the message's bytes.
func (m *Message) Append(dst []byte) ([]byte, error) {
	if m.Close {
		return append(dst, messageClose), nil
	}
	if m.Destination != "" {
		if err := m.Destination.Validate(); err != nil {
			return nil, fmt.Errorf("psk2: chunk: %w", err)
		}
	}
	dst = append(dst, messageChunk)
	dst = binary.BigEndian.AppendUint64(dst, uint64(m.Expected))
	dst = binary.BigEndian.AppendUint64(dst, uint64(m.Wanted))
	return oer.AppendVar(dst, string(m.Destination)), nil
}

// DecodeMessage reads a message.
func DecodeMessage(b []byte) (*Message, error) {
	r := oer.NewReader(b)
	m := new(Message)
	switch kind := r.U8(); {
	case r.Err() != nil:
	case kind == messageClose:
		m.Close = true
	case kind == messageChunk:
		m.Expected, m.Wanted = tally.Amount(r.U64()), tally.Amount(r.U64())
		m.Destination = ilp.Address(r.Var(ilp.MaxAddress))
	default:
		return nil, ErrMessage
	}
	if err := r.End(); err != nil {
		return nil, fmt.Errorf("psk2: message: %w", err)
	}
	if m.Destination != "" {
		if err := m.Destination.Validate(); err != nil {
			return nil, fmt.Errorf("psk2: chunk: %w", err)
		}
	}
	return m, nil
}
