package ilp

import (
	"encoding/binary"
	"errors"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat/oer"
)

// Code says why a packet was rejected. Its first letter says what to do: F, final:
// do not try again; T, temporary: try later; R, relative: change the packet.
type Code string

// The codes of RFC 0027 that this stack writes or acts on.
const (
	CodeBadRequest            Code = "F00"
	CodeInvalidPacket         Code = "F01"
	CodeUnreachable           Code = "F02"
	CodeInvalidAmount         Code = "F03"
	CodeWrongCondition        Code = "F05"
	CodeUnexpectedPayment     Code = "F06"
	CodeAmountTooLarge        Code = "F08"
	CodeApplication           Code = "F99"
	CodeInternal              Code = "T00"
	CodePeerUnreachable       Code = "T01"
	CodePeerBusy              Code = "T02"
	CodeConnectorBusy         Code = "T03"
	CodeInsufficientLiquidity Code = "T04"
	CodeRateLimited           Code = "T05"
	CodeTransferTimedOut      Code = "R00"
	CodeInsufficientSource    Code = "R01"
	CodeInsufficientTimeout   Code = "R02"
)

// ErrCode: not a code of a reject.
var ErrCode = errors.New("ilp: not a code: want F, T or R and two digits")

// known saves an allocation for each code that is common.
var known = [...]Code{
	CodeBadRequest, CodeInvalidPacket, CodeUnreachable, CodeInvalidAmount, CodeWrongCondition,
	CodeUnexpectedPayment, CodeAmountTooLarge, CodeApplication, CodeInternal, CodePeerUnreachable,
	CodePeerBusy, CodeConnectorBusy, CodeInsufficientLiquidity, CodeRateLimited, CodeTransferTimedOut, CodeInsufficientSource,
	CodeInsufficientTimeout,
}

// Temporary reports whether the same packet may pass later.
func (c Code) Temporary() bool { return c != "" && c[0] == 'T' }

// Validate returns ErrCode where c is none.
func (c Code) Validate() error {
	if len(c) != 3 || c[0] != 'F' && c[0] != 'T' && c[0] != 'R' || !digit(c[1]) || !digit(c[2]) {
		return ErrCode
	}
	return nil
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

func decodeCode(b []byte) (Code, error) {
	for _, c := range known {
		if string(c) == string(b) {
			return c, nil
		}
	}
	c := Code(b)
	return c, c.Validate()
}

// TooLarge is the data of a reject with CodeAmountTooLarge: what arrived at the
// hop that refuses, and what it would have let through. A hop may write anything
// here: it lowers what we try and never raises it.
type TooLarge struct {
	Received tally.Amount
	Maximum  tally.Amount
}

// Append appends the data of a reject.
func (l TooLarge) Append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(l.Received))
	return binary.BigEndian.AppendUint64(dst, uint64(l.Maximum))
}

// DecodeTooLarge reads the data of a reject with CodeAmountTooLarge.
func DecodeTooLarge(b []byte) (TooLarge, error) {
	r := oer.NewReader(b)
	l := TooLarge{Received: tally.Amount(r.U64()), Maximum: tally.Amount(r.U64())}
	return l, r.End()
}
