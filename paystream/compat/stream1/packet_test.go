package stream1

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/compat/oer"
	"pgregory.net/rapid"
)

type fixture struct {
	Name   string
	Packet struct {
		Sequence   uint64 `json:",string"`
		PacketType ilp.Type
		Amount     tally.Amount `json:",string"`
		Frames     []map[string]any
	}
	Buffer []byte
}

func fixtures(t testing.TB) []fixture {
	t.Helper()
	b, err := os.ReadFile("testdata/stream-packets.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Fixtures []fixture }
	if err := json.Unmarshal(b, &file); err != nil || len(file.Fixtures) != 36 {
		t.Fatal(len(file.Fixtures), err)
	}
	return file.Fixtures
}

// fields is a frame in the words of the fixtures: figures past 53 bits are
// strings there, bytes are base64.
func fields(f Frame) map[string]any {
	num := func(v any) any { return fmt.Sprint(v) }
	m := map[string]any{}
	switch f := f.(type) {
	case ConnectionClose:
		m = map[string]any{"errorCode": f.Code, "errorMessage": f.Message}
	case NewAddress:
		m = map[string]any{"sourceAccount": f.Address}
	case ConnectionMaxData:
		m = map[string]any{"maxOffset": num(f.MaxOffset)}
	case ConnectionBlocked:
		m = map[string]any{"maxOffset": num(f.MaxOffset)}
	case MaxStreamID:
		m = map[string]any{"maxStreamId": num(f.ID)}
	case StreamIDBlocked:
		m = map[string]any{"maxStreamId": num(f.ID)}
	case AssetDetails:
		m = map[string]any{"sourceAssetCode": f.Code, "sourceAssetScale": f.Scale}
	case StreamClose:
		m = map[string]any{"streamId": num(f.ID), "errorCode": f.Code, "errorMessage": f.Message}
	case StreamMoney:
		m = map[string]any{"streamId": num(f.ID), "shares": num(f.Shares)}
	case StreamMaxMoney:
		m = map[string]any{"streamId": num(f.ID), "receiveMax": num(f.ReceiveMax), "totalReceived": num(f.Received)}
	case StreamMoneyBlocked:
		m = map[string]any{"streamId": num(f.ID), "sendMax": num(f.SendMax), "totalSent": num(f.Sent)}
	case StreamData:
		m = map[string]any{"streamId": num(f.ID), "offset": num(f.Offset), "data": f.Data}
	case StreamMaxData:
		m = map[string]any{"streamId": num(f.ID), "maxOffset": num(f.MaxOffset)}
	case StreamDataBlocked:
		m = map[string]any{"streamId": num(f.ID), "maxOffset": num(f.MaxOffset)}
	}
	m["type"] = f.frameType()
	return m
}

// TestFixtures decodes the 36 public packets, compares what they say, and writes
// the same bytes.
func TestFixtures(t *testing.T) {
	kinds := make(map[byte]bool)
	for _, x := range fixtures(t) {
		p, err := DecodePacket(x.Buffer)
		if err != nil {
			t.Errorf("%s: %v", x.Name, err)
			continue
		}
		if p.Type != x.Packet.PacketType || p.Sequence != x.Packet.Sequence || p.Amount != x.Packet.Amount || len(p.Frames) != len(x.Packet.Frames) {
			t.Errorf("%s: %+v", x.Name, p)
			continue
		}
		for i, f := range p.Frames {
			kinds[f.frameType()] = true
			if want := x.Packet.Frames[i]; !sameJSON(t, fields(f), want) {
				t.Errorf("%s: %+v, want %v", x.Name, f, want)
			}
		}
		if again, err := p.Append(nil); err != nil || !bytes.Equal(again, x.Buffer) {
			t.Errorf("%s: %x %v", x.Name, again, err)
		}
	}
	if len(kinds) != 14 {
		t.Errorf("%d types of frames are covered", len(kinds))
	}
}

func sameJSON(t *testing.T, got, want map[string]any) bool {
	t.Helper()
	delete(want, "name")
	a, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(a, b)
}

func TestEnvelopeVector(t *testing.T) {
	file, err := os.ReadFile("testdata/envelope.json")
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
	k := NewKeys(envelope.Secret(raw("psk")))
	p := &Packet{
		Type: ilp.TypePrepare, Sequence: 7, Amount: 495,
		Frames: []Frame{StreamMoney{ID: 1, Shares: 1000}, StreamMaxMoney{ID: 1}},
	}
	plain, err := p.Append(nil)
	if err != nil || !bytes.Equal(plain, raw("plain")) {
		t.Fatalf("%x %v", plain, err)
	}
	env, err := k.Seal(nil, [envelope.IVSize]byte(raw("iv")), plain)
	if err != nil || !bytes.Equal(env, raw("envelope")) {
		t.Fatalf("%x %v", env, err)
	}
	if k.Fulfilment(env).Condition() != ilp.Condition(raw("condition")) {
		t.Fatal("condition")
	}
	opened, err := k.Open(env)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodePacket(append(opened, make([]byte, 50)...)); err != nil || !reflect.DeepEqual(got, p) {
		t.Fatalf("%+v %v", got, err)
	}

	secret := envelope.Secret(bytes.Repeat([]byte{2}, 32))
	c := Receipt{Nonce: [NonceSize]byte(bytes.Repeat([]byte{1}, 16)), StreamID: 1, Received: 500}
	receipt := c.Append(nil, secret)
	if !bytes.Equal(receipt, raw("receipt")) {
		t.Fatalf("%x", receipt)
	}
	if got, err := VerifyReceipt(receipt, secret); err != nil || got != c {
		t.Fatal(got, err)
	}
	receipt[20] ^= 1
	if _, err := VerifyReceipt(receipt, secret); !errors.Is(err, ErrReceipt) {
		t.Fatal(err)
	}
	if _, err := VerifyReceipt(receipt[1:], secret); !errors.Is(err, ErrReceipt) {
		t.Fatal(err)
	}
}

func TestMalformed(t *testing.T) {
	for name, tc := range map[string]struct {
		in  string
		err error
	}{
		"empty":           {"", oer.ErrShort},
		"version 2":       {"\x02\x0c\x01\x00\x01\x00\x01\x00", ErrVersion},
		"type 11":         {"\x01\x0b\x01\x00\x01\x00\x01\x00", ErrType},
		"sequence":        {"\x01\x0c\x02\x00\x01\x01\x00\x01\x00", oer.ErrNotCanonical},
		"count":           {"\x01\x0c\x01\x00\x01\x00\x01\x01", ErrFrames},
		"huge count":      {"\x01\x0c\x01\x00\x01\x00\x08\xff\xff\xff\xff\xff\xff\xff\xff", ErrFrames},
		"long frame":      {"\x01\x0c\x01\x00\x01\x00\x01\x01\x03\x05\x01\x00", oer.ErrShort},
		"rest in frame":   {"\x01\x0c\x01\x00\x01\x00\x01\x01\x03\x03\x01\x00\x00", oer.ErrTrailing},
		"short frame":     {"\x01\x0c\x01\x00\x01\x00\x01\x01\x11\x02\x01\x00", oer.ErrShort},
		"invalid address": {"\x01\x0c\x01\x00\x01\x00\x01\x01\x02\x02\x01x", ErrAddress},
		"too many":        {"\x01\x0c\x01\x00\x01\x00\x02\x01\x01" + strings.Repeat("\x7f\x00", 257), ErrFrames},
	} {
		if _, err := DecodePacket([]byte(tc.in)); !errors.Is(err, tc.err) {
			t.Errorf("%s: %v, want %v", name, err, tc.err)
		}
	}
	// Past 64 bits reads as the largest figure.
	p, err := DecodePacket([]byte("\x01\x0c\x01\x00\x01\x00\x01\x01\x12\x0e\x01\x01\x09\x01" + string(make([]byte, 8)) + "\x01\x00"))
	if err != nil || p.Frames[0] != (StreamMaxMoney{ID: 1, ReceiveMax: tally.MaxAmount}) {
		t.Fatalf("%+v %v", p, err)
	}
	for name, p := range map[string]*Packet{
		"type":   {Type: 1},
		"frames": {Type: ilp.TypePrepare, Frames: make([]Frame, MaxFrames+1)},
		"size":   {Type: ilp.TypePrepare, Frames: []Frame{StreamData{Data: make([]byte, envelope.MaxPlain)}}},
	} {
		if _, err := p.Append(nil); err == nil {
			t.Errorf("%s is written", name)
		}
	}
}

func TestFramesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := func() uint64 { return rapid.Uint64().Draw(t, "n") }
		a := func() tally.Amount { return tally.Amount(n()) }
		s := func() string { return rapid.StringN(0, 40, 64).Draw(t, "s") }
		b := func() []byte { return rapid.SliceOfN(rapid.Byte(), 1, 400).Draw(t, "b") }
		p := &Packet{Type: ilp.TypeReject, Sequence: n(), Amount: a()}
		for range rapid.IntRange(1, 5).Draw(t, "frames") {
			kinds := []Frame{
				ConnectionClose{Code: 3, Message: s()},
				NewAddress{Address: "test.a.b"},
				ConnectionMaxData{n()},
				ConnectionBlocked{n()},
				MaxStreamID{n()},
				StreamIDBlocked{n()},
				AssetDetails{Code: s(), Scale: 9},
				StreamClose{n(), 2, s()},
				StreamMoney{n(), n()},
				StreamMaxMoney{n(), a(), a()},
				StreamMoneyBlocked{n(), a(), a()},
				StreamData{n(), n(), b()},
				StreamMaxData{n(), n()},
				StreamDataBlocked{n(), n()},
				StreamReceipt{n(), b()[:1]},
				Unknown{0x7f, b()},
			}
			p.Frames = append(p.Frames, kinds[rapid.IntRange(0, len(kinds)-1).Draw(t, "kind")])
		}
		enc, err := p.Append([]byte("before"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodePacket(enc[len("before"):])
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Fatalf("%+v, want %+v: %v", got, p, err)
		}
	})
}

func FuzzPacket(f *testing.F) {
	for _, x := range fixtures(f) {
		f.Add(x.Buffer)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > envelope.MaxPlain {
			return
		}
		p, err := DecodePacket(b)
		if err != nil {
			return
		}
		again, err := p.Append(nil)
		if err != nil || len(again) > len(b) {
			t.Fatalf("%x %v", again, err)
		}
		q, err := DecodePacket(again)
		if err != nil {
			t.Fatal(err)
		}
		third, err := q.Append(nil)
		if err != nil || !bytes.Equal(third, again) {
			t.Fatal("what was written reads as something else")
		}
	})
}

func FuzzReceipt(f *testing.F) {
	f.Add(Receipt{StreamID: 1, Received: 5}.Append(nil, envelope.Secret{1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := VerifyReceipt(b, envelope.Secret{1})
		if err == nil && !bytes.Equal(c.Append(nil, envelope.Secret{1}), b) {
			t.Fatal("two forms")
		}
	})
}

func BenchmarkPacket(b *testing.B) {
	p := &Packet{
		Type: ilp.TypePrepare, Sequence: 7, Amount: 495,
		Frames: []Frame{StreamMoney{ID: 1, Shares: 1000}, StreamMaxMoney{ID: 1}},
	}
	buf, err := p.Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		q, err := DecodePacket(buf)
		if err != nil {
			b.Fatal(err)
		}
		if buf, err = q.Append(buf[:0]); err != nil {
			b.Fatal(err)
		}
	}
}
