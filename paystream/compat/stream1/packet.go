package stream1

import (
	"errors"
	"fmt"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/compat/oer"
)

const (
	encryptionLabel = "ilp_stream_encryption"
	fulfilmentLabel = "ilp_stream_fulfillment"
	secretLabel     = "ilp_stream_shared_secret"

	version = 1

	// MaxFrames bounds the frames of a packet. The JavaScript package writes four
	// for each of at most ten open streams, and a few more.
	MaxFrames = 256
)

var (
	// ErrVersion: another version of STREAM.
	ErrVersion = errors.New("stream: not version 1")
	// ErrType: the packet names an ILP type that is none.
	ErrType = errors.New("stream: ILP type is neither prepare, fulfil nor reject")
	// ErrFrames: more frames than a packet may have.
	ErrFrames = errors.New("stream: too many frames in a packet")
)

// NewKeys derives the keys of a shared secret.
func NewKeys(secret envelope.Secret) *envelope.Keys {
	return envelope.NewKeys(secret, encryptionLabel, fulfilmentLabel)
}

// SharedSecret derives the secret of a token from a server's own secret.
func SharedSecret(server envelope.Secret, token []byte) envelope.Secret {
	return server.Derive(secretLabel, token)
}

// Packet is the plain text of an envelope.
type Packet struct {
	Type     ilp.Type // of the packet that carries it
	Sequence uint64   // a reply has the one of its prepare
	Amount   tally.Amount
	Frames   []Frame
}

// Append appends the packet's bytes.
func (p *Packet) Append(dst []byte) ([]byte, error) {
	if p.Type < ilp.TypePrepare || p.Type > ilp.TypeReject {
		return nil, ErrType
	}
	if len(p.Frames) > MaxFrames {
		return nil, ErrFrames
	}
	at := len(dst)
	dst = append(dst, version, byte(p.Type))
	dst = oer.AppendVarUint(dst, p.Sequence)
	dst = oer.AppendVarUint(dst, uint64(p.Amount))
	dst = oer.AppendVarUint(dst, uint64(len(p.Frames)))
	for _, f := range p.Frames {
		dst = appendFrame(dst, f)
	}
	if len(dst)-at > envelope.MaxPlain {
		return nil, fmt.Errorf("stream: packet of %d bytes: %w", len(dst)-at, envelope.ErrTooLong)
	}
	return dst, nil
}

// DecodePacket reads a packet, whose bytes alias b. What follows its frames is
// padding.
func DecodePacket(b []byte) (*Packet, error) {
	r := oer.NewReader(b)
	v, p := r.U8(), &Packet{Type: ilp.Type(r.U8())}
	switch {
	case r.Err() != nil:
		return nil, fmt.Errorf("stream: packet: %w", r.Err())
	case v != version:
		return nil, ErrVersion
	case p.Type < ilp.TypePrepare || p.Type > ilp.TypeReject:
		return nil, ErrType
	}
	p.Sequence, p.Amount = r.VarUint(), tally.Amount(r.VarUint())
	count := r.VarUint()
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("stream: packet: %w", err)
	}
	// A frame has two bytes at least, so the slice is no larger than the input.
	if count > MaxFrames || count > uint64(len(r.Rest())/2) {
		return nil, ErrFrames
	}
	if count > 0 {
		p.Frames = make([]Frame, 0, count)
	}
	for range count {
		f, err := readFrame(&r)
		if err != nil {
			return nil, err
		}
		p.Frames = append(p.Frames, f)
	}
	return p, nil
}
