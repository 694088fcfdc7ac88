package ilp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat/oer"
)

// Type says what a packet is.
type Type uint8

// The packets of ILPv4.
const (
	TypePrepare Type = 12
	TypeFulfil  Type = 13
	TypeReject  Type = 14
)

// The bounds of a packet's fields, in bytes.
const (
	MaxData    = 32767 // RFC 0027
	MaxMessage = 8191  // RFC 0027

	// MaxPacket is past the largest packet, a reject with all its fields full.
	MaxPacket = 1 + 5 + 3 + (MaxAddress + 3) + (MaxMessage + 3) + (MaxData + 3)
)

// ErrType: not the packet that was asked for.
var ErrType = errors.New("ilp: unexpected type of packet: want prepare (12), or fulfil (13) or reject (14) as its answer")

// Prepare asks the next hop to deliver an amount until a time, for the fulfilment
// of a condition.
type Prepare struct {
	Amount      tally.Amount
	ExpiresAt   time.Time // to the millisecond
	Condition   Condition
	Destination Address
	Data        []byte
}

// Reply is the answer to a Prepare: *Fulfil or *Reject.
type Reply interface {
	// Append appends the packet's bytes, or returns the bound it exceeds.
	Append(dst []byte) ([]byte, error)
	reply()
}

// Fulfil proves that a Prepare was delivered.
type Fulfil struct {
	Fulfilment Fulfilment
	Data       []byte
}

// Reject says that a Prepare was not, and never will be.
type Reject struct {
	Code        Code
	TriggeredBy Address // may be empty
	Message     string
	Data        []byte
}

func (*Fulfil) reply() {}
func (*Reject) reply() {}

// Append appends the packet's bytes, or returns the bound it exceeds.
func (p *Prepare) Append(dst []byte) ([]byte, error) {
	if err := p.Destination.Validate(); err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	if len(p.Data) > MaxData {
		return nil, fmt.Errorf("prepare: data of %d bytes: %w", len(p.Data), oer.ErrTooLong)
	}
	dst = append(dst, byte(TypePrepare))
	dst = oer.AppendLength(dst, 8+timeSize+HashSize+oer.SizeVar(len(p.Destination))+oer.SizeVar(len(p.Data)))
	dst = binary.BigEndian.AppendUint64(dst, uint64(p.Amount))
	dst, err := appendTime(dst, p.ExpiresAt)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	dst = append(dst, p.Condition[:]...)
	dst = oer.AppendVar(dst, string(p.Destination))
	return oer.AppendVar(dst, p.Data), nil
}

// DecodePrepare reads a Prepare, whose data aliases b.
func DecodePrepare(b []byte) (*Prepare, error) {
	r, err := body(b, TypePrepare)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	p := &Prepare{Amount: tally.Amount(r.U64())}
	expires := r.Bytes(timeSize)
	copy(p.Condition[:], r.Bytes(HashSize))
	destination := r.Var(MaxAddress)
	p.Data = r.Var(MaxData)
	if err := r.End(); err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	if p.ExpiresAt, err = decodeTime(expires); err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	if p.Destination, err = ParseAddress(string(destination)); err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	return p, nil
}

// Append appends the packet's bytes, or returns the bound it exceeds.
func (f *Fulfil) Append(dst []byte) ([]byte, error) {
	if len(f.Data) > MaxData {
		return nil, fmt.Errorf("fulfil: data of %d bytes: %w", len(f.Data), oer.ErrTooLong)
	}
	dst = append(dst, byte(TypeFulfil))
	dst = oer.AppendLength(dst, HashSize+oer.SizeVar(len(f.Data)))
	dst = append(dst, f.Fulfilment[:]...)
	return oer.AppendVar(dst, f.Data), nil
}

// Append appends the packet's bytes, or returns the bound it exceeds.
func (j *Reject) Append(dst []byte) ([]byte, error) {
	if err := j.Code.Validate(); err != nil {
		return nil, fmt.Errorf("reject: %w", err)
	}
	if j.TriggeredBy != "" {
		if err := j.TriggeredBy.Validate(); err != nil {
			return nil, fmt.Errorf("reject: %w", err)
		}
	}
	if len(j.Message) > MaxMessage || len(j.Data) > MaxData {
		return nil, fmt.Errorf("reject: message of %d, data of %d bytes: %w", len(j.Message), len(j.Data), oer.ErrTooLong)
	}
	dst = append(dst, byte(TypeReject))
	dst = oer.AppendLength(dst, len(j.Code)+oer.SizeVar(len(j.TriggeredBy))+oer.SizeVar(len(j.Message))+oer.SizeVar(len(j.Data)))
	dst = append(dst, j.Code...)
	dst = oer.AppendVar(dst, string(j.TriggeredBy))
	dst = oer.AppendVar(dst, j.Message)
	return oer.AppendVar(dst, j.Data), nil
}

// DecodeReply reads a Fulfil or a Reject, whose data aliases b.
func DecodeReply(b []byte) (Reply, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("reply: %w", oer.ErrShort)
	}
	if Type(b[0]) == TypeFulfil {
		return decodeFulfil(b)
	}
	return decodeReject(b)
}

func decodeFulfil(b []byte) (Reply, error) {
	r, err := body(b, TypeFulfil)
	if err != nil {
		return nil, fmt.Errorf("fulfil: %w", err)
	}
	f := new(Fulfil)
	copy(f.Fulfilment[:], r.Bytes(HashSize))
	f.Data = r.Var(MaxData)
	if err := r.End(); err != nil {
		return nil, fmt.Errorf("fulfil: %w", err)
	}
	return f, nil
}

func decodeReject(b []byte) (Reply, error) {
	r, err := body(b, TypeReject)
	if err != nil {
		return nil, fmt.Errorf("reject: %w", err)
	}
	j := new(Reject)
	code := r.Bytes(3)
	triggeredBy := r.Var(MaxAddress)
	j.Message = string(r.Var(MaxMessage))
	j.Data = r.Var(MaxData)
	if err := r.End(); err != nil {
		return nil, fmt.Errorf("reject: %w", err)
	}
	if j.Code, err = decodeCode(code); err != nil {
		return nil, fmt.Errorf("reject: %w", err)
	}
	if len(triggeredBy) > 0 {
		if j.TriggeredBy, err = ParseAddress(string(triggeredBy)); err != nil {
			return nil, fmt.Errorf("reject: triggered by: %w", err)
		}
	}
	return j, nil
}

// body returns a reader of what is within a packet of the wanted type.
func body(b []byte, want Type) (oer.Reader, error) {
	r := oer.NewReader(b)
	if got := Type(r.U8()); r.Err() == nil && got != want {
		return r, ErrType
	}
	in := r.Var(MaxPacket)
	if err := r.End(); err != nil {
		return r, err
	}
	return oer.NewReader(in), nil
}
