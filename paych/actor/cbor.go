package actor

import (
	"encoding/binary"
	"errors"
)

// maxDepth bounds nesting. Parameters nest four deep: the message's array, the
// voucher's, the list of merges, a merge.
const maxDepth = 8

var (
	errShort    = errors.New("paych/actor: cbor: an item is longer than the data")
	errTrailing = errors.New("paych/actor: cbor: data after the item")
	errKind     = errors.New("paych/actor: cbor: an item that no message has")
	errDeep     = errors.New("paych/actor: cbor: nested too deep")
)

// WellFormed checks that data is one CBOR item of the kinds that vouchers and
// their messages are made of (integers, byte strings, arrays, null), and that no
// length in it reaches past its end. Decoders from cbor-gen allocate what a
// length says before they read, up to 2 MiB for each byte string, so a few bytes
// from a stranger would cost us megabytes: look here first.
func WellFormed(data []byte) error {
	rest, err := skip(data, maxDepth)
	if err != nil {
		return err
	}
	if len(rest) != 0 {
		return errTrailing
	}
	return nil
}

// skip returns what follows the first item of data.
func skip(data []byte, depth int) ([]byte, error) {
	if depth == 0 {
		return nil, errDeep
	}
	if len(data) == 0 {
		return nil, errShort
	}
	major, info := data[0]>>5, data[0]&31
	data = data[1:]
	arg := uint64(info)
	if info >= 24 {
		if info > 27 {
			return nil, errKind // of no stated length
		}
		n := 1 << (info - 24)
		if len(data) < n {
			return nil, errShort
		}
		var b [8]byte
		copy(b[8-n:], data)
		arg, data = binary.BigEndian.Uint64(b[:]), data[n:]
	}
	switch major {
	case 0, 1: // an integer
		return data, nil
	case 2: // bytes
		if arg > uint64(len(data)) {
			return nil, errShort
		}
		return data[arg:], nil
	case 4: // an array; each element takes a byte at least
		if arg > uint64(len(data)) {
			return nil, errShort
		}
		for range arg {
			var err error
			if data, err = skip(data, depth-1); err != nil {
				return nil, err
			}
		}
		return data, nil
	case 7:
		if info == 22 { // null
			return data, nil
		}
	}
	return nil, errKind
}
