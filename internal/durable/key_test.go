package durable_test

import (
	"bytes"
	"cmp"
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/ipfs/go-datastore"
	"pgregory.net/rapid"

	"github.com/tallystick/tally/internal/durable"
)

func TestCheckKey(t *testing.T) {
	for _, tc := range []struct {
		key  string
		good bool
	}{
		{"/a", true},
		{"/a/b.c/..d/...", true},
		{"/a/\x00\xff", true},
		{"/" + strings.Repeat("a", durable.MaxKeyBytes-1), true},
		{"/" + strings.Repeat("a", durable.MaxKeyBytes), false},
		{"", false},
		{"/", false},
		{"a", false},
		{"/a/", false},
		{"//a", false},
		{"/a//b", false},
		{"/a/./b", false},
		{"/a/..", false},
		{"/..", false},
	} {
		if err := durable.CheckKey(tc.key); (err == nil) != tc.good || err != nil && !errors.Is(err, durable.ErrKey) {
			t.Errorf("CheckKey(%q) = %v", tc.key, err)
		}
	}
}

// A legal key is exactly one that go-datastore leaves as it is.
func TestCheckKeyAgreesWithDatastore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.StringOf(rapid.SampledFrom([]rune("/./.ab"))).Draw(t, "key")
		if rapid.Bool().Draw(t, "rooted") {
			key = "/" + key
		}
		want := len(key) > 1 && key[0] == '/' && datastore.NewKey(key).String() == key && path.Clean(key) == key
		if got := durable.CheckKey(key) == nil; got != want {
			t.Fatalf("CheckKey(%q) good: %v, want %v", key, got, want)
		}
	})
}

func TestKeyIDKeepsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.SliceOf(rapid.Byte()).Draw(t, "a")
		b := rapid.SliceOf(rapid.Byte()).Draw(t, "b")
		if rapid.Bool().Draw(t, "prefix") {
			b = append(bytes.Clone(a), b...)
		}
		if got, want := strings.Compare(durable.KeyID(a), durable.KeyID(b)), bytes.Compare(a, b); got != want {
			t.Fatalf("%x and %x sort %d, want %d", a, b, got, want)
		}
		back, err := durable.ParseKeyID(durable.KeyID(a))
		if err != nil || !bytes.Equal(back, a) {
			t.Fatalf("round trip of %x: %x, %v", a, back, err)
		}
		if len(a) > 0 {
			if err := durable.CheckKey("/" + durable.KeyID(a)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestKeyUintKeepsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Uint64().Draw(t, "a"), rapid.Uint64().Draw(t, "b")
		if got, want := strings.Compare(durable.KeyUint(a), durable.KeyUint(b)), cmp.Compare(a, b); got != want {
			t.Fatalf("%d and %d sort %d, want %d", a, b, got, want)
		}
		if back, err := durable.ParseKeyUint(durable.KeyUint(a)); err != nil || back != a {
			t.Fatalf("round trip of %d: %d, %v", a, back, err)
		}
	})
}

// One id must have one spelling, or one fact could have two records.
func TestParseKeyIDRefusesOtherSpellings(t *testing.T) {
	for _, s := range []string{"0", "01", "0A", "00\n", "00=", "zz", "000"} {
		if raw, err := durable.ParseKeyID(s); err == nil {
			t.Errorf("ParseKeyID(%q) = %x", s, raw)
		}
	}
	if _, err := durable.ParseKeyUint("00"); !errors.Is(err, durable.ErrKey) {
		t.Errorf("short number: %v", err)
	}
}
