package ilp

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat/oer"
	"pgregory.net/rapid"
)

// vector reads one public example of testdata.
func vector(t testing.TB, name string, v any) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Binary string
		JSON   json.RawMessage
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(file.JSON, v); err != nil {
		t.Fatal(err)
	}
	binary, err := hex.DecodeString(file.Binary)
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

func TestPrepareVector(t *testing.T) {
	var want struct {
		Amount             tally.Amount `json:",string"`
		ExecutionCondition []byte
		ExpiresAt          time.Time
		Destination        Address
		Data               []byte
	}
	b := vector(t, "ilp-prepare_valid_example01.json", &want)
	p, err := DecodePrepare(b)
	if err != nil {
		t.Fatal(err)
	}
	if p.Amount != want.Amount || !bytes.Equal(p.Condition[:], want.ExecutionCondition) ||
		!p.ExpiresAt.Equal(want.ExpiresAt) || p.Destination != want.Destination || !bytes.Equal(p.Data, want.Data) {
		t.Fatalf("%+v", p)
	}
	if again, err := p.Append(nil); err != nil || !bytes.Equal(again, b) {
		t.Fatalf("%x %v", again, err)
	}
}

func TestFulfilVector(t *testing.T) {
	var want struct{ Fulfillment, Data []byte }
	b := vector(t, "ilp-fulfill_valid_example01.json", &want)
	r, err := DecodeReply(b)
	if err != nil {
		t.Fatal(err)
	}
	f := r.(*Fulfil)
	if !bytes.Equal(f.Fulfilment[:], want.Fulfillment) || !bytes.Equal(f.Data, want.Data) {
		t.Fatalf("%+v", f)
	}
	if again, err := f.Append(nil); err != nil || !bytes.Equal(again, b) {
		t.Fatalf("%x %v", again, err)
	}
}

func TestRejectVector(t *testing.T) {
	var want struct {
		Code        Code
		TriggeredBy Address
		Message     string
		Data        []byte
	}
	b := vector(t, "ilp-reject_valid_example01.json", &want)
	r, err := DecodeReply(b)
	if err != nil {
		t.Fatal(err)
	}
	j := r.(*Reject)
	if j.Code != want.Code || j.TriggeredBy != want.TriggeredBy || j.Message != want.Message || !bytes.Equal(j.Data, want.Data) {
		t.Fatalf("%+v", j)
	}
	if again, err := j.Append(nil); err != nil || !bytes.Equal(again, b) {
		t.Fatalf("%x %v", again, err)
	}
}

func samplePrepare() *Prepare {
	return &Prepare{
		Amount: 5, ExpiresAt: time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC),
		Condition: Fulfilment{1}.Condition(), Destination: "test.a", Data: []byte("hi"),
	}
}

func TestMalformed(t *testing.T) {
	good, err := samplePrepare().Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for name, tc := range map[string]struct {
		b   []byte
		err error
	}{
		"empty":       {nil, oer.ErrShort},
		"fulfil":      {edit(func(b []byte) []byte { b[0] = 13; return b }), ErrType},
		"cut":         {good[:len(good)-1], oer.ErrShort},
		"after it":    {append(bytes.Clone(good), 0), oer.ErrTrailing},
		"within it":   {edit(func(b []byte) []byte { b[1]++; return append(b, 0) }), oer.ErrTrailing},
		"31 February": {edit(func(b []byte) []byte { copy(b[10:], "20260231"); return b }), ErrTime},
		"hour 24":     {edit(func(b []byte) []byte { copy(b[18:], "24"); return b }), ErrTime},
		"no digit":    {edit(func(b []byte) []byte { b[12] = 'x'; return b }), ErrTime},
		"address":     {edit(func(b []byte) []byte { b[len(b)-4] = ' '; return b }), ErrAddress},
	} {
		if _, err := DecodePrepare(tc.b); !errors.Is(err, tc.err) {
			t.Errorf("%s: %v, want %v", name, err, tc.err)
		}
	}
	for name, b := range map[string][]byte{"empty": nil, "prepare": good, "only a type": {13}, "no code": {14, 0}} {
		if _, err := DecodeReply(b); err == nil {
			t.Errorf("reply %s is accepted", name)
		}
	}
}

// TestAppendRefusesWhatDecodeWould: what does not come back is not written.
func TestAppendRefusesWhatDecodeWould(t *testing.T) {
	p := samplePrepare()
	p.Data = make([]byte, MaxData+1)
	if _, err := p.Append(nil); !errors.Is(err, oer.ErrTooLong) {
		t.Error(err)
	}
	p = samplePrepare()
	p.ExpiresAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	if _, err := p.Append(nil); !errors.Is(err, ErrTime) {
		t.Error(err)
	}
	p = samplePrepare()
	p.Destination = "test"
	if _, err := p.Append(nil); !errors.Is(err, ErrAddress) {
		t.Error(err)
	}
	for _, r := range []Reply{
		&Fulfil{Data: make([]byte, MaxData+1)},
		&Reject{Code: "X00"},
		&Reject{Code: "F00", TriggeredBy: "no"},
		&Reject{Code: "F00", Message: strings.Repeat("x", MaxMessage+1)},
	} {
		if _, err := r.Append(nil); err == nil {
			t.Errorf("%+v is written", r)
		}
	}
}

func TestAddress(t *testing.T) {
	for s, ok := range map[string]bool{
		"test.a": true, "g.us-east.~x_Y.1": true, "peer.config": true, "test1.b": true,
		"": false, "test": false, "test.": false, ".a": false, "test..a": false, "test.a.": false,
		"test.ä": false, "test.a b": false, "tset.a": false, "Test.a": false, "test4.a": false,
		"test." + strings.Repeat("x", MaxAddress-5): true,
		"test." + strings.Repeat("x", MaxAddress-4): false,
	} {
		if _, err := ParseAddress(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, tc := range []struct {
		a, base Address
		rest    string
		ok      bool
	}{
		{"test.a.b.c", "test.a", "b.c", true},
		{"test.a", "test.a", "", true},
		{"test.ab", "test.a", "", false},
		{"test.b", "test.a", "", false},
	} {
		if rest, ok := tc.a.Under(tc.base); ok != tc.ok || ok && rest != tc.rest {
			t.Errorf("%s under %s: %q %v", tc.a, tc.base, rest, ok)
		}
	}
	if _, err := Address("test.a").Join("b.c"); !errors.Is(err, ErrAddress) {
		t.Error(err)
	}
	if a, err := Address("test.a").Join("b"); a != "test.a.b" || err != nil {
		t.Error(a, err)
	}
}

func TestConfig(t *testing.T) {
	// ilp-protocol-ildcp 1.0.0, serializeIldcpResponse.
	const golden = "0d3700000000000000000000000000000000000000000000000000000000000000001610746573742e74616c6c792e616c696365090346494c"
	c := Config{Address: "test.tally.alice", AssetScale: 9, AssetCode: "FIL"}
	f, err := c.Fulfil()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := f.Append(nil); err != nil || hex.EncodeToString(b) != golden {
		t.Fatalf("%x %v", b, err)
	}
	if got, err := DecodeConfig(f.Data); err != nil || got != c {
		t.Fatalf("%+v %v", got, err)
	}
	now := time.Unix(1e9, 0)
	if configCondition.String() != "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925" {
		t.Fatal(configCondition)
	}
	q := ConfigRequest(now.Add(time.Second))
	if err := CheckConfigRequest(q, now); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []*Prepare{
		ConfigRequest(now),
		{Amount: 1, ExpiresAt: q.ExpiresAt, Condition: q.Condition},
		{ExpiresAt: q.ExpiresAt},
	} {
		if err := CheckConfigRequest(bad, now); !errors.Is(err, ErrConfig) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestTooLarge(t *testing.T) {
	l := TooLarge{Received: 7, Maximum: 1 << 63}
	if got, err := DecodeTooLarge(l.Append(nil)); err != nil || got != l {
		t.Fatal(got, err)
	}
	if _, err := DecodeTooLarge(make([]byte, 17)); !errors.Is(err, oer.ErrTrailing) {
		t.Fatal(err)
	}
}

func TestFulfilmentIsRedacted(t *testing.T) {
	f := Fulfilment{0xaa}
	for _, format := range []string{"%v", "%s", "%#v"} {
		if s := fmt.Sprintf(format, f); strings.Contains(s, "aa") || strings.Contains(s, "170") {
			t.Errorf("%s prints %s", format, s)
		}
	}
	if !f.Opens(f.Condition()) || f.Opens(Condition{}) {
		t.Error("opens")
	}
}

func genAddress(t *rapid.T) Address {
	return Address("test." + rapid.StringMatching(`[a-z0-9_~-]{1,8}(\.[A-Z]{1,4}){0,3}`).Draw(t, "address"))
}

func TestPacketsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "data")
		p := &Prepare{
			Amount:      tally.Amount(rapid.Uint64().Draw(t, "amount")),
			ExpiresAt:   time.UnixMilli(rapid.Int64Range(-62167219200000, 253402300799999).Draw(t, "ms")).UTC(),
			Destination: genAddress(t), Data: data,
		}
		b, err := p.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodePrepare(b)
		if err != nil || !got.ExpiresAt.Equal(p.ExpiresAt) || got.Amount != p.Amount || got.Destination != p.Destination || !bytes.Equal(got.Data, data) {
			t.Fatalf("%+v %v", got, err)
		}
		j := &Reject{Code: "T04", TriggeredBy: genAddress(t), Message: rapid.StringN(0, 50, -1).Draw(t, "message"), Data: data}
		if b, err = j.Append(nil); err != nil {
			t.Fatal(err)
		}
		r, err := DecodeReply(b)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := r.Append(nil); err != nil || !bytes.Equal(again, b) {
			t.Fatal(err)
		}
	})
}

func seed(f *testing.F) {
	var none any
	for _, name := range []string{"prepare", "fulfill", "reject"} {
		f.Add(vector(f, "ilp-"+name+"_valid_example01.json", &none))
	}
}

func FuzzPrepare(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodePrepare(b)
		if err != nil {
			return
		}
		if again, err := p.Append(nil); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x has two forms: %v", b, err)
		}
	})
}

func FuzzReply(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeReply(b)
		if err != nil {
			return
		}
		if again, err := r.Append(nil); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x has two forms: %v", b, err)
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("\x06test.a\x09\x03FIL"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeConfig(b)
		if err != nil {
			return
		}
		if again, err := c.Fulfil(); err != nil || !bytes.Equal(again.Data, b) {
			t.Fatalf("%x has two forms: %v", b, err)
		}
	})
}

func BenchmarkPrepare(b *testing.B) {
	p := samplePrepare()
	p.Data = make([]byte, 200)
	buf, err := p.Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		q, err := DecodePrepare(buf)
		if err != nil {
			b.Fatal(err)
		}
		if buf, err = q.Append(buf[:0]); err != nil {
			b.Fatal(err)
		}
	}
}
