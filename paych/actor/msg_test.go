package actor

import (
	"bytes"
	"encoding/hex"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/exitcode"
)

func TestDecodeMsg(t *testing.T) {
	sameMsg(t, Redeem(voucher(), secret))
	good, err := Redeem(voucher(), secret).Params()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		method uint64
		params []byte
		exit   exitcode.ExitCode
	}{
		{"voucher", 2, good, exitcode.Ok},
		{"no parameters", 2, nil, exitcode.ErrSerialization},
		{"cut", 2, good[:len(good)-1], exitcode.ErrSerialization},
		{"trailing", 2, append(bytes.Clone(good), 0), exitcode.ErrSerialization},
		{"other shape", 2, []byte{0x82, 0x80, 0x40}, exitcode.ErrSerialization},
		{"too long", 2, append(bytes.Clone(good), make([]byte, MaxParams)...), exitcode.ErrSerialization},
		{"settle ignores parameters", 3, []byte{0xff}, exitcode.Ok},
		{"collect", 4, nil, exitcode.Ok},
		{"top up", 0, nil, exitcode.Ok},
		{"no such method", 5, nil, exitcode.ErrUnhandledMessage},
	} {
		if _, code := DecodeMsg(abi.MethodNum(c.method), c.params); code != c.exit {
			t.Errorf("%s: exit %d, want %d", c.name, code, c.exit)
		}
	}
}

func TestParamsOfNothing(t *testing.T) {
	for _, m := range []Msg{Settle(), Collect(), {Method: MethodSend}} {
		if p, err := m.Params(); p != nil || err != nil {
			t.Errorf("method %d: %x %v", m.Method, p, err)
		}
	}
	if _, err := (Msg{Method: MethodUpdateChannelState}).Params(); err == nil {
		t.Error("UpdateChannelState without parameters was encoded")
	}
	for name, change := range map[string]func(*SignedVoucher){
		"amount":  func(v *SignedVoucher) { v.Amount = big.Lsh(big.NewInt(1), 1100) },
		"merges":  func(v *SignedVoucher) { v.Merges = make([]Merge, 8193) },
		"channel": func(v *SignedVoucher) { v.ChannelAddr = nobody },
		"size":    func(v *SignedVoucher) { v.SecretHash = make([]byte, MaxParams) },
	} {
		if _, err := Redeem(voucher(change), nil).Params(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

func TestWellFormed(t *testing.T) {
	deep := strings.Repeat("81", maxDepth-1)
	for _, c := range []struct {
		hex string
		err error
	}{
		{"00", nil},
		{"1bffffffffffffffff", nil},
		{"3bffffffffffffffff", nil},
		{"f6", nil},
		{"40", nil},
		{"4101", nil},
		{"83f64101820001", nil},
		{deep + "00", nil},
		{deep + "8100", errDeep},
		{"", errShort},
		{"18", errShort},
		{"1b00", errShort},
		{"41", errShort},
		{"5a00200000", errShort},           // 2 MiB that are not there
		{"5bffffffffffffffff00", errShort}, // a length that overflows an int
		{"9affffffff", errShort},
		{"82f6", errShort},
		{"0000", errTrailing},
		{"5f", errKind}, // bytes without a length
		{"9f", errKind},
		{"1c", errKind},
		{"60", errKind}, // text
		{"a0", errKind}, // a map
		{"c000", errKind},
		{"f4", errKind}, // false
		{"fb0000000000000000", errKind},
	} {
		data, err := hex.DecodeString(c.hex)
		if err != nil {
			t.Fatal(err)
		}
		if err := WellFormed(data); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.hex, err, c.err)
		}
	}
}

// Parameters of a few bytes must not cost megabytes: 2 MiB and 8192 merges are
// what the generated decoder would allocate for these.
func TestDecodeMsgAllocatesWhatIsThere(t *testing.T) {
	good, err := Redeem(voucher(), nil).Params()
	if err != nil {
		t.Fatal(err)
	}
	lock := bytes.Index(good, []byte{0, 0, 0x40}) + 2 // SecretHash, after two time locks
	if lock < 2 {
		t.Fatal("no SecretHash in the parameters")
	}
	bad := append(append(bytes.Clone(good[:lock]), 0x5a, 0, 0x20, 0, 0), good[lock+1:]...)
	const runs = 64
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		if _, code := DecodeMsg(MethodUpdateChannelState, bad); code != exitcode.ErrSerialization {
			t.Fatalf("exit %d", code)
		}
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / runs; got > 64<<10 {
		t.Errorf("%d bytes allocated for %d bytes of parameters", got, len(bad))
	}
}

func FuzzWellFormed(f *testing.F) {
	good, err := Redeem(voucher(), secret).Params()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{0x9a, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if WellFormed(data) == nil && len(data) > 0 {
			// Not one byte less is an item, and not one more.
			if WellFormed(data[:len(data)-1]) == nil || WellFormed(append(bytes.Clone(data), 0)) == nil {
				t.Fatalf("%x has two ends", data)
			}
		}
	})
}
