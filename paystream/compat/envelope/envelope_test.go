package envelope

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestSealOpen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := NewKeys(Secret{1}, "a", "b")
		plain := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "plain")
		before := rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "before")
		sealed, err := k.Seal(bytes.Clone(before), [IVSize]byte{2}, plain)
		if err != nil || !bytes.HasPrefix(sealed, before) {
			t.Fatal(err)
		}
		env := sealed[len(before):]
		if len(env) != Overhead+len(plain) {
			t.Fatal(len(env))
		}
		if got, err := k.Open(env); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%x %v", got, err)
		}
		if _, err := NewKeys(Secret{2}, "a", "b").Open(env); !errors.Is(err, ErrOpen) {
			t.Fatal(err)
		}
		env[rapid.IntRange(0, len(env)-1).Draw(t, "at")] ^= 1
		if _, err := k.Open(env); !errors.Is(err, ErrOpen) {
			t.Fatal(err)
		}
	})
}

func TestEnvelopeBounds(t *testing.T) {
	k := NewKeys(Secret{1}, "a", "b")
	if _, err := k.Seal(nil, [IVSize]byte{}, make([]byte, MaxPlain+1)); !errors.Is(err, ErrTooLong) {
		t.Error(err)
	}
	for _, n := range []int{0, Overhead - 1, MaxPlain + Overhead + 1} {
		if _, err := k.Open(make([]byte, n)); !errors.Is(err, ErrOpen) {
			t.Error(n, err)
		}
	}
}

func TestSecretIsRedacted(t *testing.T) {
	s := Secret(bytes.Repeat([]byte{0xab}, SecretSize))
	for _, format := range []string{"%v", "%s", "%#v"} {
		if got := fmt.Sprintf(format, s); strings.Contains(got, "ab") || strings.Contains(got, "171") {
			t.Errorf("%s prints %s", format, got)
		}
	}
}

// TestReflection plays the attack: a hop keeps our prepare and sends us its
// envelope back. Without the guard the endpoint opens it and would fulfil.
func TestReflection(t *testing.T) {
	k := NewKeys(Secret{1}, "a", "b")
	g := NewGuard(2)
	ours, err := k.Seal(nil, [IVSize]byte{1}, []byte("pay 1000"))
	if err != nil {
		t.Fatal(err)
	}
	mark, err := g.Add(ours)
	if err != nil {
		t.Fatal(err)
	}
	back := bytes.Clone(ours)
	if _, err := k.Open(back); err != nil {
		t.Fatal("the weakness that the guard is for is gone:", err)
	}
	if !g.Reflected(back) {
		t.Fatal("our own envelope is taken for the peer's")
	}
	theirs, err := k.Seal(nil, [IVSize]byte{2}, []byte("pay 1000"))
	if err != nil {
		t.Fatal(err)
	}
	if g.Reflected(theirs) {
		t.Fatal("an envelope of the peer is refused")
	}

	// After a restart the marks that were saved guard as before.
	again := NewGuard(2)
	again.Restore(slices.Values([]Mark{mark}))
	if !again.Reflected(back) {
		t.Fatal("forgotten over a restart")
	}

	if _, err := g.Add(theirs); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Add([]byte("one more")); !errors.Is(err, ErrGuardFull) {
		t.Fatal(err)
	}
	g.Remove(mark)
	if g.Reflected(back) || g.Len() != 1 {
		t.Fatal("decided, and still guarded")
	}
	g.Restore(maps.Keys(map[Mark]bool{{1}: true, {2}: true, {3}: true}))
	if g.Len() != 4 {
		t.Fatal("a restored mark is left out")
	}
}

func FuzzOpen(f *testing.F) {
	k := NewKeys(Secret{1}, "a", "b")
	good, err := k.Seal(nil, [IVSize]byte{1}, []byte("hi"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		if plain, err := k.Open(b); err == nil {
			again, err := k.Seal(nil, [IVSize]byte(b[:IVSize]), plain)
			if err != nil || !bytes.Equal(again, b) {
				t.Fatal("two envelopes of one plain text and IV")
			}
		}
	})
}

func BenchmarkSealOpen(b *testing.B) {
	k := NewKeys(Secret{1}, "a", "b")
	plain := make([]byte, 128)
	b.ReportAllocs()
	for b.Loop() {
		env, err := k.Seal(nil, [IVSize]byte{1}, plain)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := k.Open(env); err != nil {
			b.Fatal(err)
		}
	}
}
