package tally_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"

	"golang.org/x/crypto/blake2b"
	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

func preimages() *rapid.Generator[tally.Preimage] {
	return rapid.Map(rapid.SliceOfN(rapid.Byte(), tally.HashlockSize, tally.HashlockSize), func(b []byte) tally.Preimage { return tally.Preimage(b) })
}

// The digest is part of the wire format; it is that of b2sum -l 256.
func TestHashlockVector(t *testing.T) {
	const want = "89eb0d6a8a691dae2cd15ed0369931ce0a949ecafa5c3f93f8121833646e15c3"
	if got := (tally.Preimage{}).Hashlock().String(); got != want {
		t.Errorf("lock of the zero preimage is %s, want %s", got, want)
	}
}

func TestPreimageOpens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := preimages().Draw(t, "preimage")
		lock := p.Hashlock()
		if lock != blake2b.Sum256(p[:]) || !p.Opens(lock) {
			t.Fatalf("preimage %s does not open its own lock", p.Hex())
		}
		bit := rapid.IntRange(0, 8*tally.HashlockSize-1).Draw(t, "bit")
		wrong := p
		wrong[bit/8] ^= 1 << (bit % 8)
		if wrong.Opens(lock) {
			t.Fatal("another preimage opens the lock")
		}
		lock[bit/8] ^= 1 << (bit % 8)
		if p.Opens(lock) {
			t.Fatal("the preimage opens another lock")
		}
	})
}

// The hex form is that of the number with these bytes, and comes back the same.
func TestHexRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := preimages().Draw(t, "preimage")
		want := fmt.Sprintf("%064x", new(big.Int).SetBytes(p[:]))
		if p.Hex() != want || tally.Hashlock(p).String() != want {
			t.Fatalf("hex %s and %s, want %s", p.Hex(), tally.Hashlock(p), want)
		}
		back, err := tally.ParsePreimage(want)
		if err != nil || back != p {
			t.Fatalf("ParsePreimage: %s, %v", back.Hex(), err)
		}
		lock, err := tally.ParseHashlock(strings.ToUpper(want))
		if err != nil || lock != tally.Hashlock(p) {
			t.Fatalf("ParseHashlock: %s, %v", lock, err)
		}
	})
}

func TestParseRefuses(t *testing.T) {
	good := strings.Repeat("ab", tally.HashlockSize)
	for _, s := range []string{"", "ab", good[2:], good[1:], good + "ab", good[2:] + "zz", "0x" + good[2:], " " + good[1:]} {
		if lock, err := tally.ParseHashlock(s); err == nil || lock != (tally.Hashlock{}) {
			t.Errorf("ParseHashlock(%q) = %s, %v", s, lock, err)
		}
		if p, err := tally.ParsePreimage(s); err == nil || p != (tally.Preimage{}) {
			t.Errorf("ParsePreimage(%q) = %s, %v", s, p.Hex(), err)
		}
	}
}

// A preimage is money until it is revealed: the usual ways of printing hide it.
func TestPreimageIsRedacted(t *testing.T) {
	p := tally.Preimage(bytes.Repeat([]byte{0xab}, tally.HashlockSize))
	var out bytes.Buffer
	fmt.Fprintf(&out, "%v %s %+v ", p, p, &p)
	fmt.Fprintf(&out, "%v ", struct{ Secret tally.Preimage }{p})
	slog.New(slog.NewTextHandler(&out, nil)).Info("claim", "preimage", p)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("claim", "preimage", p)
	for _, secret := range []string{"abab", "171 171", "[171", "q6ur"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("output shows %q: %s", secret, out.String())
		}
	}
	if !strings.Contains(out.String(), "<preimage>") {
		t.Errorf("output: %s", out.String())
	}
}
