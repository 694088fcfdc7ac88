package pbfield

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// slow is Read by protowire alone.
func slow(b []byte) (f Field, rest []byte, ok bool) {
	num, kind, n := protowire.ConsumeTag(b)
	if n < 0 || kind == protowire.StartGroupType || kind == protowire.EndGroupType {
		return f, nil, false
	}
	size := protowire.ConsumeFieldValue(num, kind, b[n:])
	if size < 0 {
		return f, nil, false
	}
	f = Field{Num: num, Type: kind}
	switch kind {
	case protowire.VarintType:
		f.N, _ = protowire.ConsumeVarint(b[n:])
	case protowire.BytesType:
		f.B, _ = protowire.ConsumeBytes(b[n:])
	}
	return f, b[n+size:], true
}

func FuzzRead(f *testing.F) {
	seeds := [][]byte{
		{0x08, 0x01},
		{0x0a, 0x01, 0x07},
		{0x0a, 0x02, 0x07},
		{0x08, 0x80, 0x00},
		{0x0a, 0x80, 0x00},
		{0x88, 0x01, 0x05},
		{0x0d, 1, 2, 3, 4},
		{0x09, 1, 2, 3, 4, 5, 6, 7, 8},
		{0x0b, 0x0c},
		{0x00, 0x01},
		{0x0f, 0x01},
		{0x08},
		{},
		append([]byte{0x12, 0x7f}, make([]byte, 0x7f)...),
	}
	for _, b := range seeds {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := Field{Num: 1, Type: protowire.BytesType, N: 7, B: b} // of the field before
		rest, ok := got.Read(b)
		if !ok {
			got = Field{}
		}
		want, left, can := slow(b)
		if ok != can || got.Num != want.Num || got.Type != want.Type || got.N != want.N || !bytes.Equal(got.B, want.B) || !bytes.Equal(rest, left) {
			t.Fatalf("%x: %+v, %x, %v; protowire says %+v, %x, %v", b, got, rest, ok, want, left, can)
		}
	})
}

func TestAppend(t *testing.T) {
	for _, num := range []protowire.Number{1, 2, 15, 16, 17, 200} {
		for _, n := range []uint64{1, 0x7f, 0x80, 300, 1 << 32, 1<<64 - 1} {
			want := protowire.AppendVarint(protowire.AppendTag([]byte("x"), num, protowire.VarintType), n)
			if got := AppendUint([]byte("x"), num, n); !bytes.Equal(got, want) {
				t.Errorf("field %d, %d: %x, want %x", num, n, got, want)
			}
		}
		for _, n := range []int{0, 1, 0x7f, 0x80, 0x4000} {
			b := bytes.Repeat([]byte{7}, n)
			want := protowire.AppendBytes(protowire.AppendTag([]byte("x"), num, protowire.BytesType), b)
			if got := AppendBytes([]byte("x"), num, b); !bytes.Equal(got, want) {
				t.Errorf("field %d, %d bytes: %x, want %x", num, n, got, want)
			}
		}
		if got := AppendUint(nil, num, 0); len(got) != 0 {
			t.Errorf("field %d: %x", num, got)
		}
	}
}
