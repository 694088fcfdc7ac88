// Package oer reads and writes the part of the Octet Encoding Rules (ITU-T X.696)
// that Interledger uses:
//
//	UInt8, UInt32, UInt64   fixed width, big-endian
//	VarUInt                 length octet (1 to 8) | big-endian bytes, no leading zero; 0 is 01 00
//	VarOctetString          length | bytes
//	length                  n < 128:  n
//	                        n ≥ 128:  0x80+k | n in k bytes, no leading zero
//
// There is one way to write each value, and the Reader refuses all others: two
// byte strings that mean the same would be two packets for whoever keys on bytes.
package oer

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

var (
	// ErrShort: the input ends within a value.
	ErrShort = errors.New("oer: input ends within a value")
	// ErrNotCanonical: a length or a number is not written in its shortest form.
	ErrNotCanonical = errors.New("oer: not the shortest form of a length or number")
	// ErrTooLong: an octet string is longer than its field may be, or a number
	// wider than 64 bits.
	ErrTooLong = errors.New("oer: value exceeds the bound of its field")
	// ErrTrailing: bytes follow the last value.
	ErrTrailing = errors.New("oer: bytes after the last value")
)

// maxLengthBytes bounds the bytes of a length: 2^32−1 is past every field that
// exists, so that a longer length is refused before it is computed.
const maxLengthBytes = 4

// Reader takes values from the front of a buffer. The first error sticks: every
// later read returns zero values, so a decoder reads all its fields and asks
// once. What Bytes and Var return aliases the buffer.
type Reader struct {
	rest []byte
	err  error
}

// NewReader returns a reader of b.
func NewReader(b []byte) Reader { return Reader{rest: b} }

// Err returns the first error.
func (r *Reader) Err() error { return r.err }

// End returns the first error, or ErrTrailing where bytes are left.
func (r *Reader) End() error {
	if r.err == nil && len(r.rest) > 0 {
		r.err = ErrTrailing
	}
	return r.err
}

// Rest returns what has not been read.
func (r *Reader) Rest() []byte { return r.rest }

// Bytes returns the next n bytes.
func (r *Reader) Bytes(n int) []byte {
	if r.err != nil {
		return nil
	}
	if n > len(r.rest) {
		return r.fail(ErrShort)
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

// U8 reads a UInt8.
func (r *Reader) U8() uint8 {
	if b := r.Bytes(1); b != nil {
		return b[0]
	}
	return 0
}

// U32 reads a UInt32.
func (r *Reader) U32() uint32 {
	if b := r.Bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// U64 reads a UInt64.
func (r *Reader) U64() uint64 {
	if b := r.Bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// Var reads a VarOctetString of at most limit bytes. The bound is checked
// before the bytes are looked for.
func (r *Reader) Var(limit int) []byte {
	n := uint64(r.U8())
	if r.err != nil {
		return nil
	}
	if n >= 0x80 {
		k := int(n & 0x7f)
		if k == 0 {
			return r.fail(ErrNotCanonical)
		}
		if k > maxLengthBytes {
			return r.fail(ErrTooLong)
		}
		b := r.Bytes(k)
		if r.err != nil {
			return nil
		}
		if n = uintOf(b); n < 0x80 || b[0] == 0 {
			return r.fail(ErrNotCanonical)
		}
	}
	if n > uint64(max(limit, 0)) {
		return r.fail(ErrTooLong)
	}
	return r.Bytes(int(n))
}

// VarUint reads a VarUInt of at most 64 bits.
func (r *Reader) VarUint() uint64 {
	n := int(r.U8())
	switch {
	case r.err != nil:
		return 0
	case n == 0:
		r.fail(ErrNotCanonical)
		return 0
	case n > 8:
		r.fail(ErrTooLong)
		return 0
	}
	b := r.Bytes(n)
	if r.err != nil {
		return 0
	}
	if n > 1 && b[0] == 0 {
		r.fail(ErrNotCanonical)
		return 0
	}
	return uintOf(b)
}

// VarUintSaturating reads a VarUInt of at most limit bytes, in which a value past
// 64 bits reads as 2^64−1.
func (r *Reader) VarUintSaturating(limit int) uint64 {
	if r.err == nil && len(r.rest) > 0 && r.rest[0] <= 8 {
		return r.VarUint()
	}
	b := r.Var(limit)
	if r.err != nil {
		return 0
	}
	if b[0] == 0 { // len(b) > 8
		r.fail(ErrNotCanonical)
		return 0
	}
	return 1<<64 - 1
}

// fail keeps the first error and makes the rest unreadable.
func (r *Reader) fail(err error) []byte {
	r.err, r.rest = err, nil
	return nil
}

func uintOf(b []byte) (v uint64) {
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v
}

// AppendVar appends b as a VarOctetString.
func AppendVar[B []byte | string](dst []byte, b B) []byte {
	return append(AppendLength(dst, len(b)), b...)
}

// AppendLength appends the length of a VarOctetString whose n bytes follow.
func AppendLength(dst []byte, n int) []byte {
	if n < 0x80 {
		return append(dst, byte(n))
	}
	k := width(uint64(n))
	return appendUint(append(dst, 0x80|byte(k)), uint64(n), k)
}

// SizeVar returns the size of a VarOctetString of n bytes.
func SizeVar(n int) int {
	if n < 0x80 {
		return 1 + n
	}
	return 1 + width(uint64(n)) + n
}

// AppendVarUint appends v as a VarUInt.
func AppendVarUint(dst []byte, v uint64) []byte {
	k := width(v)
	return appendUint(append(dst, byte(k)), v, k)
}

// SizeVarUint returns the size of v as a VarUInt.
func SizeVarUint(v uint64) int { return 1 + width(v) }

// width returns the bytes that v needs, at least one.
func width(v uint64) int { return max(1, (bits.Len64(v)+7)/8) }

func appendUint(dst []byte, v uint64, k int) []byte {
	for k--; k >= 0; k-- {
		dst = append(dst, byte(v>>(8*k)))
	}
	return dst
}
