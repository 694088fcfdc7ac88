// Package pbfield splits protobuf messages into fields, for decoders that are written
// by hand because the generated ones allocate.
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

// Next splits one field off b. Those of fixed width come without their value: no
// message of ours has one, and a reader skips them as unknown. It reports false where b
// does not begin with a field, or begins with a group, which nobody sends and which may
// nest.
func Next(b []byte) (f Field, rest []byte, ok bool) {
	if len(b) >= 2 && 8 <= b[0] && b[0]|b[1] < 0x80 { // tag and number, or length, of a byte each: nearly all
		f.Num, f.Type = protowire.Number(b[0]>>3), protowire.Type(b[0]&7)
		if f.Type == protowire.VarintType {
			f.N = uint64(b[1])
			return f, b[2:], true
		}
		if n := 2 + int(b[1]); f.Type == protowire.BytesType && n <= len(b) {
			f.B = b[2:n]
			return f, b[n:], true
		}
	}
	num, kind, n := protowire.ConsumeTag(b)
	if n < 0 {
		return Field{}, nil, false
	}
	b = b[n:]
	f = Field{Num: num, Type: kind}
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
		return Field{}, nil, false
	}
	return f, b[n:], true
}
