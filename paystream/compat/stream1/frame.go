package stream1

import (
	"errors"
	"fmt"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/compat/oer"
)

// The bounds of a frame's fields, in bytes. The envelope bounds what is not here.
const (
	maxText      = 1024 // a message of a close
	maxAssetCode = 64
	maxBody      = envelope.MaxPlain
	maxWide      = 32 // a saturating number
)

// The types of frames.
const (
	typeConnectionClose    = 0x01
	typeNewAddress         = 0x02
	typeConnectionMaxData  = 0x03
	typeConnectionBlocked  = 0x04
	typeMaxStreamID        = 0x05
	typeStreamIDBlocked    = 0x06
	typeAssetDetails       = 0x07
	typeStreamClose        = 0x10
	typeStreamMoney        = 0x11
	typeStreamMaxMoney     = 0x12
	typeStreamMoneyBlocked = 0x13
	typeStreamData         = 0x14
	typeStreamMaxData      = 0x15
	typeStreamDataBlocked  = 0x16
	typeStreamReceipt      = 0x17
)

// ErrAddress: a frame NewAddress without an address.
var ErrAddress = errors.New("stream: new address is no ILP address")

// Code says why a connection or a stream was closed.
type Code uint8

// The codes of RFC 0029.
const (
	CodeNoError           Code = 1
	CodeInternal          Code = 2
	CodeEndpointBusy      Code = 3
	CodeFlowControl       Code = 4
	CodeStreamID          Code = 5
	CodeStreamState       Code = 6
	CodeFrameFormat       Code = 7
	CodeProtocolViolation Code = 8
	CodeApplication       Code = 9
)

// Frame is one of the types below.
type Frame interface {
	frameType() byte
	appendBody(dst []byte) []byte
}

// ConnectionClose ends a connection.
type ConnectionClose struct {
	Code    Code
	Message string
}

// NewAddress tells where the writer is.
type NewAddress struct{ Address ilp.Address }

// ConnectionMaxData tells how many bytes the writer takes, over all streams.
type ConnectionMaxData struct{ MaxOffset uint64 }

// ConnectionBlocked tells up to where the writer would send.
type ConnectionBlocked struct{ MaxOffset uint64 }

// MaxStreamID tells the highest id that the reader may open.
type MaxStreamID struct{ ID uint64 }

// StreamIDBlocked tells which id the writer would open.
type StreamIDBlocked struct{ ID uint64 }

// AssetDetails tells what the writer's amounts are.
type AssetDetails struct {
	Code  string
	Scale uint8
}

// StreamClose ends a stream.
type StreamClose struct {
	ID      uint64
	Code    Code
	Message string
}

// StreamMoney gives a stream its shares of the packet's amount.
type StreamMoney struct {
	ID     uint64
	Shares uint64
}

// StreamMaxMoney tells how much the writer takes in all on a stream, and has got.
type StreamMaxMoney struct {
	ID         uint64
	ReceiveMax tally.Amount
	Received   tally.Amount
}

// StreamMoneyBlocked tells how much the writer would send in all, and has sent.
type StreamMoneyBlocked struct {
	ID      uint64
	SendMax tally.Amount
	Sent    tally.Amount
}

// StreamData carries bytes.
type StreamData struct {
	ID     uint64
	Offset uint64
	Data   []byte
}

// StreamMaxData tells how many bytes the writer takes on a stream.
type StreamMaxData struct {
	ID        uint64
	MaxOffset uint64
}

// StreamDataBlocked tells up to where the writer would send on a stream.
type StreamDataBlocked struct {
	ID        uint64
	MaxOffset uint64
}

// StreamReceipt proves to a third party what a stream got; see Receipt.
type StreamReceipt struct {
	ID      uint64
	Receipt []byte
}

// Unknown is a frame of a type that this version does not have. It is ignored.
type Unknown struct {
	Type byte
	Body []byte
}

func (ConnectionClose) frameType() byte    { return typeConnectionClose }
func (NewAddress) frameType() byte         { return typeNewAddress }
func (ConnectionMaxData) frameType() byte  { return typeConnectionMaxData }
func (ConnectionBlocked) frameType() byte  { return typeConnectionBlocked }
func (MaxStreamID) frameType() byte        { return typeMaxStreamID }
func (StreamIDBlocked) frameType() byte    { return typeStreamIDBlocked }
func (AssetDetails) frameType() byte       { return typeAssetDetails }
func (StreamClose) frameType() byte        { return typeStreamClose }
func (StreamMoney) frameType() byte        { return typeStreamMoney }
func (StreamMaxMoney) frameType() byte     { return typeStreamMaxMoney }
func (StreamMoneyBlocked) frameType() byte { return typeStreamMoneyBlocked }
func (StreamData) frameType() byte         { return typeStreamData }
func (StreamMaxData) frameType() byte      { return typeStreamMaxData }
func (StreamDataBlocked) frameType() byte  { return typeStreamDataBlocked }
func (StreamReceipt) frameType() byte      { return typeStreamReceipt }
func (f Unknown) frameType() byte          { return f.Type }

func (f ConnectionClose) appendBody(b []byte) []byte {
	return oer.AppendVar(append(b, byte(f.Code)), f.Message)
}

func (f NewAddress) appendBody(b []byte) []byte        { return oer.AppendVar(b, string(f.Address)) }
func (f ConnectionMaxData) appendBody(b []byte) []byte { return oer.AppendVarUint(b, f.MaxOffset) }
func (f ConnectionBlocked) appendBody(b []byte) []byte { return oer.AppendVarUint(b, f.MaxOffset) }
func (f MaxStreamID) appendBody(b []byte) []byte       { return oer.AppendVarUint(b, f.ID) }
func (f StreamIDBlocked) appendBody(b []byte) []byte   { return oer.AppendVarUint(b, f.ID) }

func (f AssetDetails) appendBody(b []byte) []byte {
	return append(oer.AppendVar(b, f.Code), f.Scale)
}

func (f StreamClose) appendBody(b []byte) []byte {
	return oer.AppendVar(append(oer.AppendVarUint(b, f.ID), byte(f.Code)), f.Message)
}

func (f StreamMoney) appendBody(b []byte) []byte { return appendNumbers(b, f.ID, f.Shares) }

func (f StreamMaxMoney) appendBody(b []byte) []byte {
	return appendNumbers(b, f.ID, uint64(f.ReceiveMax), uint64(f.Received))
}

func (f StreamMoneyBlocked) appendBody(b []byte) []byte {
	return appendNumbers(b, f.ID, uint64(f.SendMax), uint64(f.Sent))
}

func (f StreamData) appendBody(b []byte) []byte {
	return oer.AppendVar(appendNumbers(b, f.ID, f.Offset), f.Data)
}

func (f StreamMaxData) appendBody(b []byte) []byte     { return appendNumbers(b, f.ID, f.MaxOffset) }
func (f StreamDataBlocked) appendBody(b []byte) []byte { return appendNumbers(b, f.ID, f.MaxOffset) }

func (f StreamReceipt) appendBody(b []byte) []byte {
	return oer.AppendVar(oer.AppendVarUint(b, f.ID), f.Receipt)
}

func (f Unknown) appendBody(b []byte) []byte { return append(b, f.Body...) }

func appendNumbers(b []byte, numbers ...uint64) []byte {
	for _, v := range numbers {
		b = oer.AppendVarUint(b, v)
	}
	return b
}

// appendFrame appends type, length and body. The body is written first, behind
// the one byte of a short length, and moved where its length needs more.
func appendFrame(dst []byte, f Frame) []byte {
	dst = append(dst, f.frameType(), 0)
	at := len(dst)
	dst = f.appendBody(dst)
	n := len(dst) - at
	if n < 0x80 {
		dst[at-1] = byte(n)
		return dst
	}
	var prefix [5]byte
	length := oer.AppendLength(prefix[:0], n)
	more := len(length) - 1
	dst = append(dst, length[:more]...) // room; overwritten by the move
	copy(dst[at+more:], dst[at:at+n])
	copy(dst[at-1:], length)
	return dst
}

func readFrame(outer *oer.Reader) (Frame, error) {
	kind := outer.U8()
	body := outer.Var(maxBody)
	if err := outer.Err(); err != nil {
		return nil, fmt.Errorf("stream: frame: %w", err)
	}
	r := oer.NewReader(body)
	var f Frame
	switch kind {
	case typeConnectionClose:
		f = ConnectionClose{Code: Code(r.U8()), Message: string(r.Var(maxText))}
	case typeNewAddress:
		address := ilp.Address(r.Var(ilp.MaxAddress))
		if r.Err() == nil && address.Validate() != nil {
			return nil, ErrAddress
		}
		f = NewAddress{Address: address}
	case typeConnectionMaxData:
		f = ConnectionMaxData{MaxOffset: r.VarUint()}
	case typeConnectionBlocked:
		f = ConnectionBlocked{MaxOffset: r.VarUint()}
	case typeMaxStreamID:
		f = MaxStreamID{ID: r.VarUint()}
	case typeStreamIDBlocked:
		f = StreamIDBlocked{ID: r.VarUint()}
	case typeAssetDetails:
		f = AssetDetails{Code: string(r.Var(maxAssetCode)), Scale: r.U8()}
	case typeStreamClose:
		f = StreamClose{ID: r.VarUint(), Code: Code(r.U8()), Message: string(r.Var(maxText))}
	case typeStreamMoney:
		f = StreamMoney{ID: r.VarUint(), Shares: r.VarUint()}
	case typeStreamMaxMoney:
		f = StreamMaxMoney{
			ID: r.VarUint(), ReceiveMax: tally.Amount(r.VarUintSaturating(maxWide)),
			Received: tally.Amount(r.VarUint()),
		}
	case typeStreamMoneyBlocked:
		f = StreamMoneyBlocked{
			ID: r.VarUint(), SendMax: tally.Amount(r.VarUintSaturating(maxWide)),
			Sent: tally.Amount(r.VarUint()),
		}
	case typeStreamData:
		f = StreamData{ID: r.VarUint(), Offset: r.VarUint(), Data: r.Var(maxBody)}
	case typeStreamMaxData:
		f = StreamMaxData{ID: r.VarUint(), MaxOffset: r.VarUint()}
	case typeStreamDataBlocked:
		f = StreamDataBlocked{ID: r.VarUint(), MaxOffset: r.VarUint()}
	case typeStreamReceipt:
		f = StreamReceipt{ID: r.VarUint(), Receipt: r.Var(ReceiptSize)}
	default:
		return Unknown{Type: kind, Body: body}, nil
	}
	if err := r.End(); err != nil {
		return nil, fmt.Errorf("stream: frame %#02x: %w", kind, err)
	}
	return f, nil
}
