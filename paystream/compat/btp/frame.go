// Package btp encodes the frames of the Bilateral Transfer Protocol 2.0 (RFC
// 0023), in which a JavaScript client and its connector talk over a WebSocket.
//
//	frame       type u8 | request id u32 | contents var
//	            1 response   protocol data
//	            2 error      code 3 | name var | triggered_at var (YYYYMMDDHHMMSS.fffZ) |
//	                         data var | protocol data
//	            6 message    protocol data
//	            7 transfer   amount u64 | protocol data
//	protocol
//	data        count varuint | { name var | content type u8 | data var }…
//
// The first message of a client authenticates it: entries auth (octets, empty),
// auth_username (text, may be empty) and auth_token (text). After that an ILP
// packet travels as the entry ilp (octets) of a message, and its answer as the
// entry ilp of the response with the same request id. A request id counts among
// the requests of one side only.
//
// Decoding is strict: one form of each value, no bytes after a frame. What it
// returns aliases its input where it is a []byte.
package btp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/compat/oer"
)

// The bounds of a frame, in bytes where nothing else is said.
const (
	// MaxFrame holds the largest ILP packet and as much again of other entries as
	// anybody sends.
	MaxFrame = ilp.MaxPacket + 4096

	maxEntries = 16 // of protocol data; clients send three at most
	maxName    = 64
	maxText    = 1024 // data of an error
)

// Type says what a frame is.
type Type uint8

// The frames of BTP 2.0.
const (
	TypeResponse Type = 1
	TypeError    Type = 2
	TypeMessage  Type = 6
	TypeTransfer Type = 7
)

// ContentType says how to read the data of an entry.
type ContentType uint8

// The content types of BTP 2.0.
const (
	Octets ContentType = 0
	Text   ContentType = 1
	JSON   ContentType = 2
)

var (
	// ErrType: a frame that BTP 2.0 does not have; 3 to 5 are of version 1.
	ErrType = errors.New("btp: unknown type of frame: want response 1, error 2, message 6 or transfer 7")
	// ErrEntries: more protocol data than a frame may have.
	ErrEntries = errors.New("btp: too many entries of protocol data")
	// ErrContentType: an entry that is neither octets, text nor JSON.
	ErrContentType = errors.New("btp: unknown content type: want octets 0, text 1 or JSON 2")
	// ErrTime: the time of an error is none.
	ErrTime = errors.New("btp: not a time: want YYYYMMDDHHMMSS.fffZ")
)

// Frame is one frame.
type Frame struct {
	Type      Type
	RequestID uint32
	Amount    tally.Amount // of a transfer
	Error     *Error       // of an error
	Entries   []Entry
}

// Entry is one piece of protocol data.
type Entry struct {
	Name        string
	ContentType ContentType
	Data        []byte
}

// Error says why a request was not answered.
type Error struct {
	Code        ilp.Code
	Name        string
	TriggeredAt time.Time // to the millisecond
	Data        string
}

// Error describes what the other side answered.
func (e *Error) Error() string {
	return fmt.Sprintf("btp: the other side answered %s %s: %q", e.Code, e.Name, e.Data)
}

// Entry returns the data of the first entry of a name, and whether there is one.
func (f *Frame) Entry(name string) ([]byte, bool) {
	for i := range f.Entries {
		if f.Entries[i].Name == name {
			return f.Entries[i].Data, true
		}
	}
	return nil, false
}

// ILP returns the entry of an ILP packet.
func ILP(packet []byte) Entry { return Entry{Name: "ilp", ContentType: Octets, Data: packet} }

// Append appends the frame's bytes.
func (f *Frame) Append(dst []byte) ([]byte, error) {
	contents, err := f.contents(nil)
	if err != nil {
		return nil, err
	}
	dst = append(dst, byte(f.Type))
	dst = binary.BigEndian.AppendUint32(dst, f.RequestID)
	dst = oer.AppendVar(dst, contents)
	if len(dst) > MaxFrame {
		return nil, fmt.Errorf("btp: frame of %d bytes: %w", len(dst), oer.ErrTooLong)
	}
	return dst, nil
}

func (f *Frame) contents(b []byte) ([]byte, error) {
	switch f.Type {
	case TypeResponse, TypeMessage:
	case TypeTransfer:
		b = binary.BigEndian.AppendUint64(b, uint64(f.Amount))
	case TypeError:
		var err error
		if b, err = f.Error.append(b); err != nil {
			return nil, err
		}
	default:
		return nil, ErrType
	}
	if len(f.Entries) > maxEntries {
		return nil, ErrEntries
	}
	b = oer.AppendVarUint(b, uint64(len(f.Entries)))
	for _, e := range f.Entries {
		if e.ContentType > JSON {
			return nil, ErrContentType
		}
		if len(e.Name) > maxName {
			return nil, fmt.Errorf("btp: name of %d bytes: %w", len(e.Name), oer.ErrTooLong)
		}
		b = oer.AppendVar(b, e.Name)
		b = append(b, byte(e.ContentType))
		b = oer.AppendVar(b, e.Data)
	}
	return b, nil
}

func (e *Error) append(b []byte) ([]byte, error) {
	if err := e.Code.Validate(); err != nil {
		return nil, fmt.Errorf("btp: error: %w", err)
	}
	if len(e.Name) > maxName || len(e.Data) > maxText {
		return nil, fmt.Errorf("btp: error: name of %d, data of %d bytes: %w", len(e.Name), len(e.Data), oer.ErrTooLong)
	}
	t := e.TriggeredAt.UTC()
	if t.Year() < 0 || t.Year() > 9999 {
		return nil, ErrTime
	}
	b = append(b, e.Code...)
	b = oer.AppendVar(b, e.Name)
	b = oer.AppendVar(b, t.Format(timeLayout))
	return oer.AppendVar(b, e.Data), nil
}

const timeLayout = "20060102150405.000Z"

// Decode reads a frame, whose data aliases b.
func Decode(b []byte) (*Frame, error) {
	r := oer.NewReader(b)
	f := &Frame{Type: Type(r.U8()), RequestID: r.U32()}
	contents := r.Var(MaxFrame)
	if err := r.End(); err != nil {
		return nil, fmt.Errorf("btp: frame: %w", err)
	}
	in := oer.NewReader(contents)
	switch f.Type {
	case TypeResponse, TypeMessage:
	case TypeTransfer:
		f.Amount = tally.Amount(in.U64())
	case TypeError:
		var err error
		if f.Error, err = readError(&in); err != nil {
			return nil, err
		}
	default:
		return nil, ErrType
	}
	count := in.VarUint()
	if in.Err() == nil && count > maxEntries {
		return nil, ErrEntries
	}
	for range count {
		e := Entry{Name: string(in.Var(maxName)), ContentType: ContentType(in.U8()), Data: in.Var(MaxFrame)}
		if in.Err() != nil {
			break
		}
		if e.ContentType > JSON {
			return nil, ErrContentType
		}
		f.Entries = append(f.Entries, e)
	}
	if err := in.End(); err != nil {
		return nil, fmt.Errorf("btp: frame: %w", err)
	}
	return f, nil
}

func readError(r *oer.Reader) (*Error, error) {
	e := &Error{Code: ilp.Code(r.Bytes(3)), Name: string(r.Var(maxName))}
	at := string(r.Var(len(timeLayout)))
	e.Data = string(r.Var(maxText))
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("btp: error: %w", err)
	}
	if err := e.Code.Validate(); err != nil {
		return nil, fmt.Errorf("btp: error: %w", err)
	}
	t, err := time.Parse(timeLayout, at)
	if err != nil || t.Format(timeLayout) != at {
		return nil, ErrTime
	}
	e.TriggeredAt = t
	return e, nil
}
