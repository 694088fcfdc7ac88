package btp

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
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/compat/oer"
)

// vectors returns the frames that btp-packet wrote, by name.
func vectors(t testing.TB) map[string][]byte {
	t.Helper()
	file, err := os.ReadFile("testdata/frames.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct{ Frames []struct{ Name, Hex string } }
	if err := json.Unmarshal(file, &v); err != nil {
		t.Fatal(err)
	}
	out := make(map[string][]byte)
	for _, f := range v.Frames {
		if out[f.Name], err = hex.DecodeString(f.Hex); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestVectors(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
	want := map[string]*Frame{
		"auth":           Auth{RequestID: 1, Username: "alice", Token: "secret"}.Frame(),
		"response empty": {Type: TypeResponse, RequestID: 1},
		"message ilp":    {Type: TypeMessage, RequestID: 0xfffffffe, Entries: []Entry{ILP([]byte{12, 0})}},
		"response long":  {Type: TypeResponse, RequestID: 7, Entries: []Entry{ILP(bytes.Repeat([]byte{0xab}, 300))}},
		"error": {
			Type: TypeError, RequestID: 9,
			Error: &Error{Code: "F00", Name: "NotAcceptedError", TriggeredAt: at, Data: "no"},
		},
		"transfer": {
			Type: TypeTransfer, RequestID: 3, Amount: tally.MaxAmount,
			Entries: []Entry{{Name: "info", ContentType: JSON, Data: []byte("{}")}},
		},
	}
	got := vectors(t)
	if len(got) != len(want) {
		t.Fatalf("%d vectors", len(got))
	}
	for name, b := range got {
		enc, err := want[name].Append(nil)
		if err != nil || !bytes.Equal(enc, b) {
			t.Errorf("%s: %x %v", name, enc, err)
		}
		f, err := Decode(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if again, err := f.Append(nil); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s: %x %v", name, again, err)
		}
	}
	f, err := Decode(got["response long"])
	if err != nil {
		t.Fatal(err)
	}
	if data, ok := f.Entry("ilp"); !ok || len(data) != 300 {
		t.Fatal("entry")
	}
	if _, ok := f.Entry("auth"); ok {
		t.Fatal("entry that is not there")
	}
	if f, err = Decode(got["error"]); err != nil || *f.Error != *want["error"].Error {
		t.Fatalf("%+v %v", f.Error, err)
	}
}

func TestMalformed(t *testing.T) {
	v := vectors(t)
	edit := func(name string, f func(b []byte)) []byte {
		b := bytes.Clone(v[name])
		f(b)
		return b
	}
	many := &Frame{Type: TypeMessage, Entries: make([]Entry, maxEntries)}
	full, err := many.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		b   []byte
		err error
	}{
		"empty":        {nil, oer.ErrShort},
		"old type":     {edit("auth", func(b []byte) { b[0] = 3 }), ErrType},
		"trailing":     {append(bytes.Clone(v["auth"]), 0), oer.ErrTrailing},
		"within":       {edit("response empty", func(b []byte) { b[6] = 0 }), oer.ErrNotCanonical},
		"content type": {edit("transfer", func(b []byte) { b[21] = 3 }), ErrContentType},
		"too many":     {edit("response empty", func(b []byte) { b[7] = maxEntries + 1 }), ErrEntries},
		"code":         {edit("error", func(b []byte) { b[6] = 'x' }), ilp.ErrCode},
		"time":         {edit("error", func(b []byte) { b[33] = '3' }), ErrTime},
		"cut":          {full[:len(full)-1], oer.ErrShort},
	} {
		if _, err := Decode(tc.b); !errors.Is(err, tc.err) {
			t.Errorf("%s: %v, want %v", name, err, tc.err)
		}
	}
	for name, f := range map[string]*Frame{
		"type":    {Type: 4},
		"entries": {Type: TypeMessage, Entries: make([]Entry, maxEntries+1)},
		"name":    {Type: TypeMessage, Entries: []Entry{{Name: strings.Repeat("x", maxName+1)}}},
		"content": {Type: TypeMessage, Entries: []Entry{{ContentType: 3}}},
		"size":    {Type: TypeMessage, Entries: []Entry{{Data: make([]byte, MaxFrame)}}},
		"code":    {Type: TypeError, Error: &Error{}},
		"text":    {Type: TypeError, Error: &Error{Code: "F00", Data: strings.Repeat("x", maxText+1)}},
		"year":    {Type: TypeError, Error: &Error{Code: "F00", TriggeredAt: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}},
	} {
		if _, err := f.Append(nil); err == nil {
			t.Errorf("%s is written", name)
		}
	}
}

func TestAuth(t *testing.T) {
	good := Auth{RequestID: 5, Username: "alice", Token: "secret"}
	if got, err := AuthOf(good.Frame()); err != nil || got != good {
		t.Fatal(got, err)
	}
	auth, token, name := Entry{Name: "auth"}, Entry{Name: "auth_token"}, Entry{Name: "auth_username"}
	for what, f := range map[string]*Frame{
		"response":   {Type: TypeResponse, Entries: []Entry{auth, token}},
		"nothing":    {Type: TypeMessage},
		"not first":  {Type: TypeMessage, Entries: []Entry{token, auth}},
		"twice":      {Type: TypeMessage, Entries: []Entry{auth, token, auth}},
		"no token":   {Type: TypeMessage, Entries: []Entry{auth, name}},
		"two tokens": {Type: TypeMessage, Entries: []Entry{auth, token, token}},
		"two names":  {Type: TypeMessage, Entries: []Entry{auth, token, name, name}},
	} {
		if _, err := AuthOf(f); !errors.Is(err, ErrAuth) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if s := fmt.Sprintf("%v %+v %#v", good, good, good); strings.Contains(s, "secret") {
		t.Error(s)
	}
}

// TestLargestPacketFits: the longest ILP packet fits a frame.
func TestLargestPacketFits(t *testing.T) {
	f := &Frame{Type: TypeMessage, Entries: []Entry{ILP(make([]byte, ilp.MaxPacket))}}
	if _, err := f.Append(nil); err != nil {
		t.Fatal(err)
	}
}

func FuzzFrame(f *testing.F) {
	for _, b := range vectors(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := Decode(b)
		if err != nil {
			return
		}
		_, _ = AuthOf(fr)
		again, err := fr.Append(nil)
		if len(b) <= MaxFrame && (err != nil || !bytes.Equal(again, b)) {
			t.Fatalf("%x has two forms: %v", b, err)
		}
	})
}
