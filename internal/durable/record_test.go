package durable_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/tallystick/tally/internal/durable"
)

func TestSeal(t *testing.T) {
	rec := durable.Seal(nil, "/a", 1, []byte("hello"))
	// The checksum is that of "/a\x01hello"; a change of it makes every store
	// unreadable, so it is written down here.
	if want := []byte("\x01hello\x26\x96\xd8\xa2"); !bytes.Equal(rec, want) {
		t.Errorf("sealed %x, want %x", rec, want)
	}
	if rec := durable.Seal([]byte("head"), "/a", 1, []byte("hello")); !bytes.HasPrefix(rec, []byte("head\x01hello")) {
		t.Errorf("appended %q", rec)
	}
}

func TestUnsealFindsDamage(t *testing.T) {
	const key = "/swap/peer/cheque"
	rec := durable.Seal(nil, key, 3, []byte("one thousand units"))
	version, payload, err := durable.Unseal(key, 3, rec)
	if err != nil || version != 3 || string(payload) != "one thousand units" {
		t.Fatalf("Unseal = %d, %q, %v", version, payload, err)
	}
	damaged := func(name, key string, rec []byte) {
		t.Helper()
		_, payload, err := durable.Unseal(key, 3, rec)
		if !errors.Is(err, durable.ErrDamaged) || payload != nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %q, %v", name, payload, err)
		}
	}
	for i := range rec {
		for bit := range 8 {
			bad := bytes.Clone(rec)
			bad[i] ^= 1 << bit
			damaged("flipped bit", key, bad)
		}
		damaged("cut", key, rec[:i])
	}
	damaged("longer", key, append(bytes.Clone(rec), 0))
	damaged("zeroed", key, make([]byte, len(rec)))
	damaged("at another key", "/swap/other/cheque", rec)
}

func TestUnsealRefusesNewerSchema(t *testing.T) {
	rec := durable.Seal(nil, "/a", 4, nil)
	_, _, err := durable.Unseal("/a", 3, rec)
	if !errors.Is(err, durable.ErrNewerSchema) {
		t.Fatalf("err = %v", err)
	}
	for _, part := range []string{"version 4", "up to 3", "newer program"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
}

func TestSealAllocatesNothing(t *testing.T) {
	payload := make([]byte, 180)
	buf := make([]byte, 0, 256)
	key := "/swap/peer/cheque"
	allocs := testing.AllocsPerRun(100, func() {
		buf = durable.Seal(buf[:0], key, 1, payload)
		if _, _, err := durable.Unseal(key, 1, buf); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func FuzzUnseal(f *testing.F) {
	f.Add("/a", []byte{})
	f.Add("/a", durable.Seal(nil, "/a", 1, []byte("hello")))
	f.Add("/a", durable.Seal(nil, "/a", 9, []byte("newer")))
	f.Add("/b", durable.Seal(nil, "/a", 1, []byte("moved")))
	f.Fuzz(func(t *testing.T, key string, rec []byte) {
		version, payload, err := durable.Unseal(key, 3, rec)
		if err == nil {
			if version > 3 {
				t.Fatalf("version %d read", version)
			}
			if again := durable.Seal(nil, key, version, payload); !bytes.Equal(again, rec) {
				t.Fatalf("sealed again %x, was %x", again, rec)
			}
		} else if !errors.Is(err, durable.ErrDamaged) && !errors.Is(err, durable.ErrNewerSchema) {
			t.Fatalf("unnamed error %v", err)
		}
		// Whatever the bytes are, sealing them as a payload brings them back.
		_, back, err := durable.Unseal(key, 3, durable.Seal(nil, key, 3, rec))
		if err != nil || !bytes.Equal(back, rec) {
			t.Fatalf("round trip: %x, %v", back, err)
		}
	})
}
