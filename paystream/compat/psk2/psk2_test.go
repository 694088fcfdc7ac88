package psk2

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/compat/oer"
	"pgregory.net/rapid"
)

func TestVectors(t *testing.T) {
	file, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]string
	if err := json.Unmarshal(file, &v); err != nil {
		t.Fatal(err)
	}
	raw := func(name string) []byte {
		b, err := hex.DecodeString(v[name])
		if err != nil || len(b) == 0 {
			t.Fatal(name, err)
		}
		return b
	}
	psk := envelope.Secret(raw("psk"))
	k := NewKeys(psk)
	p := &Packet{Type: TypeRequest, RequestID: 1, Amount: 1000, Data: []byte("hi")}
	plain, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	env, err := k.Seal(nil, [envelope.IVSize]byte(raw("iv")), plain)
	if err != nil || !bytes.Equal(env, raw("envelope")) {
		t.Fatalf("envelope %x %v", env, err)
	}
	f := k.Fulfilment(env)
	if !bytes.Equal(f[:], raw("fulfilment")) || f.Condition() != ilp.Condition(raw("condition")) {
		t.Fatal("fulfilment")
	}
	prepare := &ilp.Prepare{
		Amount: 1000, ExpiresAt: time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC),
		Condition: f.Condition(), Destination: "test.conn.p1.abc", Data: env,
	}
	if b, err := prepare.Append(nil); err != nil || !bytes.Equal(b, raw("prepare")) {
		t.Fatalf("prepare %x %v", b, err)
	}
	opened, err := k.Open(env)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodePacket(append(opened, 0, 0, 0)) // padding
	if err != nil || got.RequestID != 1 || got.Amount != 1000 || string(got.Data) != "hi" || got.Type != TypeRequest {
		t.Fatalf("%+v %v", got, err)
	}
	m := &Message{Expected: 5000, Wanted: tally.MaxAmount, Destination: "test.conn.p0.abc"}
	if b, err := m.Append(nil); err != nil || !bytes.Equal(b, raw("chunk")) {
		t.Fatalf("chunk %x %v", b, err)
	}
	if got, err := DecodeMessage(raw("chunk")); err != nil || *got != *m {
		t.Fatalf("%+v %v", got, err)
	}
}

// TestSharedSecret: what ilp-protocol-psk2 0.5.0 derives where a receiver
// has a secret of 32 bytes of 0x22, for the token of 18 bytes of 0x33.
func TestSharedSecret(t *testing.T) {
	server := envelope.Secret(bytes.Repeat([]byte{0x22}, 32))
	got := SharedSecret(server, bytes.Repeat([]byte{0x33}, TokenSize))
	if hex.EncodeToString(got[:]) != "031d5070cf38d90668d5dc7f001066daa6577b8a4e8240cf6cab8b1debac1cd9" {
		t.Fatalf("%x", got[:])
	}
}

func TestMalformed(t *testing.T) {
	for in, want := range map[string]error{
		"":                                oer.ErrShort,
		"\x03" + string(make([]byte, 13)): ErrType,
		"\x07" + string(make([]byte, 13)): ErrType,
		"\x04" + string(make([]byte, 12)): oer.ErrShort,
		"\x04" + string(make([]byte, 12)) + "\x01": oer.ErrShort,
	} {
		if _, err := DecodePacket([]byte(in)); !errors.Is(err, want) {
			t.Errorf("packet %x: %v, want %v", in, err, want)
		}
	}
	for in, want := range map[string]error{
		"":                                oer.ErrShort,
		"\x02":                            ErrMessage,
		"\x00\x00":                        oer.ErrTrailing,
		"\x01" + string(make([]byte, 16)): oer.ErrShort,
		"\x01" + string(make([]byte, 18)): oer.ErrTrailing,
		"\x01" + string(make([]byte, 16)) + "\x01x": ilp.ErrAddress,
	} {
		if _, err := DecodeMessage([]byte(in)); !errors.Is(err, want) {
			t.Errorf("message %x: %v, want %v", in, err, want)
		}
	}
	if _, err := (&Packet{Type: TypeRequest, Data: make([]byte, MaxData+1)}).Append(nil); !errors.Is(err, oer.ErrTooLong) {
		t.Error(err)
	}
	if _, err := (&Packet{Type: 1}).Append(nil); !errors.Is(err, ErrType) {
		t.Error(err)
	}
	if _, err := (&Message{Destination: "x"}).Append(nil); !errors.Is(err, ilp.ErrAddress) {
		t.Error(err)
	}
}

// TestLargestPacketFits: a packet with as much data as it may have fits an
// envelope, and the envelope a prepare.
func TestLargestPacketFits(t *testing.T) {
	plain, err := (&Packet{Type: TypeRequest, Data: make([]byte, MaxData)}).Append(nil)
	if err != nil || len(plain) != envelope.MaxPlain {
		t.Fatal(len(plain), err)
	}
}

func TestMessageRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := Message{Expected: tally.Amount(rapid.Uint64().Draw(t, "e")), Wanted: tally.Amount(rapid.Uint64().Draw(t, "w"))}
		if rapid.Bool().Draw(t, "close") {
			m = Message{Close: true}
		}
		b, err := m.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeMessage(b); err != nil || *got != m {
			t.Fatalf("%+v %v", got, err)
		}
	})
}

func FuzzPacket(f *testing.F) {
	f.Add([]byte("\x04\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03\xe8\x02hi"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodePacket(b)
		if err != nil {
			return
		}
		if again, err := p.Append(nil); err != nil || !bytes.HasPrefix(b, again) {
			t.Fatalf("%x has two forms: %v", b, err)
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte("\x00"))
	f.Add(append([]byte("\x01"), make([]byte, 17)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMessage(b)
		if err != nil {
			return
		}
		if again, err := m.Append(nil); err != nil || !bytes.Equal(b, again) {
			t.Fatalf("%x has two forms: %v", b, err)
		}
	})
}
