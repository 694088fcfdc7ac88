package settler

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/swap"
)

// backingVersion is the first byte of a backing.
const backingVersion = 1

// maxBase bounds the base in bytes: no channel holds 2^128 attoFIL.
const maxBase = 16

// errBacking: bytes that are no backing, or not the one form that it has.
var errBacking = errors.New("settler: not a backing")

// backing is what a cheque carries in mode hard:
//
//	u8 version = 1 | u64 origin | u8 len, base | voucher, CBOR, to the end
//
// Numbers are big-endian, base without leading zeros. Origin and base are beside
// the voucher because the chain's voucher has no place for them, and in the
// backing because the cheque's signature and its ack cover that: both sides have
// signed where the channel began to count.
type backing struct {
	origin  tally.Amount
	base    big.Int
	voucher *paych.SignedVoucher
}

func (b *backing) encode() (swap.Backing, error) {
	voucher, err := paych.EncodeVoucher(b.voucher)
	if err != nil {
		return nil, err
	}
	base := b.base.Int.Bytes()
	out := make([]byte, 0, 10+len(base)+len(voucher))
	out = append(out, backingVersion)
	out = binary.BigEndian.AppendUint64(out, uint64(b.origin))
	out = append(out, byte(len(base)))
	out = append(out, base...)
	out = append(out, voucher...)
	if len(out) > swap.MaxBacking {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", errBacking, len(out), swap.MaxBacking)
	}
	return out, nil
}

// decodeBacking reads a backing. All of it is remote input.
func decodeBacking(b swap.Backing) (*backing, error) {
	const head = 1 + 8 + 1
	switch {
	case len(b) < head || len(b) > swap.MaxBacking:
		return nil, fmt.Errorf("%w: %d bytes", errBacking, len(b))
	case b[0] != backingVersion:
		return nil, fmt.Errorf("%w: version %d", errBacking, b[0])
	}
	out := &backing{origin: tally.Amount(binary.BigEndian.Uint64(b[1:9]))}
	n := int(b[9])
	rest := b[head:]
	if n > maxBase || n > len(rest) || n > 0 && rest[0] == 0 {
		return nil, fmt.Errorf("%w: base of %d bytes", errBacking, n)
	}
	out.base = big.PositiveFromUnsignedBytes(rest[:n])
	voucher, err := paych.DecodeVoucher(rest[n:])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBacking, err)
	}
	out.voucher = voucher
	return out, nil
}

// VoucherOf returns the voucher in a cheque's backing.
func VoucherOf(b swap.Backing) (*paych.SignedVoucher, error) {
	d, err := decodeBacking(b)
	if err != nil {
		return nil, err
	}
	return d.voucher, nil
}
