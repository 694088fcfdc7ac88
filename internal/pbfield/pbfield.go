// Package pbfield reads and writes the fields of protobuf messages, for codecs that are
// written by hand because the generated ones allocate. Nearly all fields have a tag, and
// a number or a length, of one byte each; those go fast.
package pbfield

import "google.golang.org/protobuf/encoding/protowire"

// Field is one field of a message: a number or bytes, by its wire type. Bytes are part
// of the message, and not copied.
type Field struct {
	Num  protowire.Number
	Type protowire.Type
	N    uint64 // of a varint
	B    []byte // of bytes
}

// Read reads the field that b begins with, and returns what is behind it. Those of fixed
// width come without their value: no message of ours has one, and a reader skips them
// as unknown. It reports false where b does not begin with a field, or begins with a
// group, which nobody sends and which may nest.
func (f *Field) Read(b []byte) (rest []byte, ok bool) {
	if len(b) >= 2 && 8 <= b[0] && b[0]|b[1] < 0x80 {
		f.Num, f.Type = protowire.Number(b[0]>>3), protowire.Type(b[0]&7)
		if f.Type == protowire.VarintType {
			f.N, f.B = uint64(b[1]), nil
			return b[2:], true
		}
		if n := 2 + int(b[1]); f.Type == protowire.BytesType && n <= len(b) {
			f.N, f.B = 0, b[2:n]
			return b[n:], true
		}
	}
	num, kind, n := protowire.ConsumeTag(b)
	if n < 0 {
		return nil, false
	}
	b = b[n:]
	*f = Field{Num: num, Type: kind}
	switch kind {
	case protowire.VarintType:
		f.N, n = protowire.ConsumeVarint(b)
	case protowire.BytesType:
		f.B, n = protowire.ConsumeBytes(b)
	case protowire.Fixed32Type, protowire.Fixed64Type:
		n = protowire.ConsumeFieldValue(num, kind, b)
	default:
		n = -1
	}
	if n < 0 {
		return nil, false
	}
	return b[n:], true
}

// AppendUint appends a number, and nothing where it is 0.
func AppendUint(dst []byte, num protowire.Number, v uint64) []byte {
	switch {
	case v == 0:
		return dst
	case v < 0x80 && num < 0x10:
		return append(dst, byte(num<<3)|byte(protowire.VarintType), byte(v))
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, num, protowire.VarintType), v)
}

// AppendBytes appends bytes, also none.
func AppendBytes(dst []byte, num protowire.Number, b []byte) []byte {
	if len(b) < 0x80 && num < 0x10 {
		return append(append(dst, byte(num<<3)|byte(protowire.BytesType), byte(len(b))), b...)
	}
	return protowire.AppendBytes(protowire.AppendTag(dst, num, protowire.BytesType), b)
}
