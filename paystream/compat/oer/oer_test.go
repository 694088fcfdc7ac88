package oer

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestVarUint(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want uint64
		err  error
	}{
		{"\x01\x00", 0, nil},
		{"\x01\xff", 255, nil},
		{"\x02\x01\x00", 256, nil},
		{"\x08\xff\xff\xff\xff\xff\xff\xff\xff", 1<<64 - 1, nil},
		{"", 0, ErrShort},
		{"\x00", 0, ErrNotCanonical},
		{"\x02\x00\x01", 0, ErrNotCanonical},
		{"\x02\x01", 0, ErrShort},
		{"\x09\x01\x00\x00\x00\x00\x00\x00\x00\x00", 0, ErrTooLong},
		{"\x81\x01\x01", 0, ErrTooLong},
		{"\x01\x00\x00", 0, ErrTrailing},
	} {
		r := NewReader([]byte(tc.in))
		got := r.VarUint()
		if err := r.End(); got != tc.want && tc.err == nil || !errors.Is(err, tc.err) {
			t.Errorf("%x: %d, %v; want %d, %v", tc.in, got, err, tc.want, tc.err)
		}
	}
}

func TestVarUintSaturating(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want uint64
		err  error
	}{
		{"\x01\x07", 7, nil},
		{"\x09\x01\x00\x00\x00\x00\x00\x00\x00\x00", 1<<64 - 1, nil},
		{"\x09\x00\x01\x00\x00\x00\x00\x00\x00\x00", 0, ErrNotCanonical},
		{"\x11" + string(bytes.Repeat([]byte{1}, 17)), 0, ErrTooLong},
		{"", 0, ErrShort},
	} {
		r := NewReader([]byte(tc.in))
		got := r.VarUintSaturating(16)
		if err := r.End(); got != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%x: %d, %v; want %d, %v", tc.in, got, err, tc.want, tc.err)
		}
	}
}

func TestVar(t *testing.T) {
	long := string(bytes.Repeat([]byte{'x'}, 200))
	for _, tc := range []struct {
		in, want string
		limit    int
		err      error
	}{
		{"\x00", "", 0, nil},
		{"\x02hi", "hi", 2, nil},
		{"\x81\xc8" + long, long, 200, nil},
		{"\x02hi", "", 1, ErrTooLong},
		{"\x02h", "", 2, ErrShort},
		{"\x80", "", 9, ErrNotCanonical},
		{"\x81\x02hi", "", 9, ErrNotCanonical},
		{"\x82\x00\xc8" + long, "", 200, ErrNotCanonical},
		{"\x85\x01\x00\x00\x00\x00", "", 9, ErrTooLong},
		{"\x84\xff\xff\xff\xff", "", 1 << 20, ErrTooLong}, // before 4 GiB are looked for
		{"\x81", "", 9, ErrShort},
		{"\x01x", "", -1, ErrTooLong},
	} {
		r := NewReader([]byte(tc.in))
		got := string(r.Var(tc.limit))
		if err := r.End(); got != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%.8x: %q, %v; want %q, %v", tc.in, got, err, tc.want, tc.err)
		}
	}
}

// TestFirstErrorSticks: after an error nothing is read, and the error stays.
func TestFirstErrorSticks(t *testing.T) {
	r := NewReader([]byte{0x00, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	r.VarUint()
	if r.U8() != 0 || r.U32() != 0 || r.U64() != 0 || r.Bytes(1) != nil || r.Var(9) != nil || r.VarUintSaturating(9) != 0 {
		t.Fatal("read after an error")
	}
	if !errors.Is(r.End(), ErrNotCanonical) {
		t.Fatal(r.Err())
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.Uint64().Draw(t, "v")
		b := rapid.SliceOfN(rapid.Byte(), 0, 70000).Draw(t, "b")
		enc := AppendVarUint(AppendVar(nil, b), v)
		if len(enc) != SizeVar(len(b))+SizeVarUint(v) {
			t.Fatal("size")
		}
		r := NewReader(enc)
		if !bytes.Equal(r.Var(len(b)), b) || r.VarUint() != v || r.End() != nil {
			t.Fatal(r.Err())
		}
	})
}

func FuzzReader(f *testing.F) {
	f.Add([]byte("\x82\x01\x00"), 300)
	f.Fuzz(func(t *testing.T, b []byte, limit int) {
		r := NewReader(b)
		s := r.Var(limit)
		v := r.VarUint()
		if r.Err() == nil && !bytes.HasPrefix(b, AppendVarUint(AppendVar(nil, s), v)) {
			t.Fatalf("%x has two forms", b)
		}
	})
}
