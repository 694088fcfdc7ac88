package paych

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/tallystick/tally/paych/actor"
)

// The voucher types are those of go-state-types' builtin/v8, which Lotus has in
// its own API.
type (
	// SignedVoucher is one party's signed statement of a lane's total.
	SignedVoucher = actor.SignedVoucher
	// Merge names a lane that a voucher takes in.
	Merge = actor.Merge
	// ModVerifyParams is a voucher's Extra.
	ModVerifyParams = actor.ModVerifyParams
)

// MaxVoucherSize bounds a voucher in CBOR, in bytes. Ours take up to 250; the
// rest leaves room for a Lotus voucher that merges 200 lanes.
const MaxVoucherSize = 4096

// ErrVoucherFormat: the bytes or the text are not a voucher, or not the one form
// that a voucher has.
var ErrVoucherFormat = errors.New("paych: not a voucher")

// EncodeVoucher returns sv in CBOR.
func EncodeVoucher(sv *SignedVoucher) ([]byte, error) {
	if sv == nil {
		return nil, fmt.Errorf("%w: nil", ErrVoucherFormat)
	}
	var buf bytes.Buffer
	if err := sv.MarshalCBOR(&buf); err != nil {
		return nil, fmt.Errorf("%w: encode: %w", ErrVoucherFormat, err)
	}
	if buf.Len() > MaxVoucherSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrVoucherFormat, buf.Len(), MaxVoucherSize)
	}
	return buf.Bytes(), nil
}

// DecodeVoucher reads a voucher in CBOR. It takes only the form that
// EncodeVoucher writes: two byte strings for one voucher would be two vouchers
// to whoever compares bytes.
func DecodeVoucher(data []byte) (*SignedVoucher, error) {
	if len(data) > MaxVoucherSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrVoucherFormat, len(data), MaxVoucherSize)
	}
	if err := actor.WellFormed(data); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVoucherFormat, err)
	}
	sv := new(SignedVoucher)
	if err := sv.UnmarshalCBOR(bytes.NewReader(data)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVoucherFormat, err)
	}
	again, err := EncodeVoucher(sv)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, data) {
		return nil, fmt.Errorf("%w: not in its shortest form", ErrVoucherFormat)
	}
	return sv, nil
}

// FormatVoucher returns the text that people and the Lotus command line pass on.
func FormatVoucher(sv *SignedVoucher) (string, error) {
	data, err := EncodeVoucher(sv)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(data), nil
}

// ParseVoucher reads what FormatVoucher wrote, and nothing else: no padding, no
// line ends, no stray bits.
func ParseVoucher(text string) (*SignedVoucher, error) {
	if len(text) > base64.RawURLEncoding.EncodedLen(MaxVoucherSize) {
		return nil, fmt.Errorf("%w: %d characters, at most %d", ErrVoucherFormat,
			len(text), base64.RawURLEncoding.EncodedLen(MaxVoucherSize))
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVoucherFormat, err)
	}
	// The decoder skips line ends; a voucher has none.
	if base64.RawURLEncoding.EncodedLen(len(data)) != len(text) {
		return nil, fmt.Errorf("%w: line end in the text", ErrVoucherFormat)
	}
	return DecodeVoucher(data)
}

// SigningBytes returns what a voucher's signature is over: the voucher with null
// in the signature's place.
func SigningBytes(sv *SignedVoucher) ([]byte, error) {
	if sv == nil {
		return nil, fmt.Errorf("%w: nil", ErrVoucherFormat)
	}
	data, err := sv.SigningBytes()
	if err != nil {
		return nil, fmt.Errorf("%w: encode: %w", ErrVoucherFormat, err)
	}
	return data, nil
}
