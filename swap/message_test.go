package swap

import (
	"bytes"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/tallystick/tally"
)

func TestClampThreshold(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []byte
		want tally.Amount
	}{
		{"empty means 0", nil, 0},
		{"zero", []byte{0}, 0},
		{"one byte", []byte{100}, 100},
		{"not minimal", append(make([]byte, 30), 1, 0), 256},
		{"2^32", []byte{1, 0, 0, 0, 0}, 1 << 32},
		{"at the bound", []byte{1, 0, 0, 0, 0, 0}, maxThreshold},
		{"over the bound", []byte{1, 0, 0, 0, 0, 1}, maxThreshold},
		{"2^64-1", bytes.Repeat([]byte{255}, 8), maxThreshold},
		{"2^64", append([]byte{1}, make([]byte, 8)...), maxThreshold},
		{"2^256-1", bytes.Repeat([]byte{255}, 32), maxThreshold},
		{"2^248", append([]byte{1}, make([]byte, 31)...), maxThreshold},
	} {
		got, err := ClampThreshold(c.in)
		if err != nil || got != c.want {
			t.Errorf("%s: %d, %v; want %d", c.name, got, err, c.want)
		}
	}
	for _, n := range []int{33, 4096} {
		if _, err := ClampThreshold(make([]byte, n)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestThresholdBytes(t *testing.T) {
	for v, want := range map[tally.Amount]string{0: "", 1: "\x01", 100: "d", 256: "\x01\x00", tally.MaxAmount: "\xff\xff\xff\xff\xff\xff\xff\xff"} {
		if got := string(ThresholdBytes(v)); got != want {
			t.Errorf("%d: %q, want %q", v, got, want)
		}
	}
}

// FuzzClampThreshold compares with math/big, and goes round.
func FuzzClampThreshold(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 100})
	f.Add([]byte{1, 0, 0, 0, 0, 0})
	f.Add(bytes.Repeat([]byte{255}, 32))
	f.Add(make([]byte, 33))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := ClampThreshold(in)
		if (err != nil) != (len(in) > 32) {
			t.Fatalf("%d bytes: %v", len(in), err)
		}
		if err != nil {
			return
		}
		want := new(big.Int).SetBytes(in)
		if limit := new(big.Int).SetUint64(uint64(maxThreshold)); want.Cmp(limit) > 0 {
			want = limit
		}
		if want.Uint64() != uint64(got) {
			t.Fatalf("%x: %d, want %d", in, got, want)
		}
		out := ThresholdBytes(got)
		if len(out) > 0 && out[0] == 0 {
			t.Fatalf("%x is not minimal", out)
		}
		if again, err := ClampThreshold(out); err != nil || again != got {
			t.Fatalf("%d comes back as %d, %v", got, again, err)
		}
		if !bytes.Equal(out, new(big.Int).SetUint64(uint64(got)).Bytes()) {
			t.Fatalf("%d is written as %x", got, out)
		}
	})
}

// Codes go over the wire: their numbers and count are fixed.
func TestRefusalCodes(t *testing.T) {
	for code, want := range map[RefusalCode]string{
		0: "unknown reason", 1: "bad signature", 2: "wrong beneficiary", 3: "other network or asset", 4: "older than the last cheque",
		5: "no backing", 6: "the channel does not cover it", 7: "malformed", 8: "not supported", 9: "the peer cannot check it now",
		10: "the backing is not acceptable", 11: "payout address is not bound to the peer", 12: "unknown reason", 1 << 31: "unknown reason",
	} {
		if got := code.String(); got != want {
			t.Errorf("%d: %q, want %q", code, got, want)
		}
	}
	if RefusalInternal != 9 || RefusalPayout != 11 {
		t.Error("a code moved")
	}
}

func TestRemoteError(t *testing.T) {
	if got := (&RemoteError{Code: RefusalUnbacked}).Error(); got != "swap: the peer refused: no backing" {
		t.Error(got)
	}
	// What a peer wrote is quoted: it may hold anything.
	got := (&RemoteError{Code: RefusalUnbacked, Detail: "a\nb\x1b[31m"}).Error()
	if strings.ContainsAny(got, "\n\x1b") || !strings.Contains(got, "no backing") {
		t.Errorf("%q", got)
	}
}

func TestWords(t *testing.T) {
	for d, want := range map[Direction]string{Serve: "serve", Consume: "consume", 0: "?", 9: "?"} {
		if d.String() != want {
			t.Errorf("%d: %s", d, d)
		}
	}
	for k, want := range map[EffectKind]string{FxSave: "save", FxWake: "wake", 0: "?", 99: "?"} {
		if k.String() != want {
			t.Errorf("%d: %s", k, k)
		}
	}
	for s, want := range map[settleState]string{settleIdle: "idle", settleIntent: "intent", settlePending: "pending", settleRefused: "refused"} {
		if s.String() != want {
			t.Errorf("%d: %s", s, s)
		}
	}
}
