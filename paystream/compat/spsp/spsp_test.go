package spsp

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/tallystick/tally/paystream/compat/envelope"
)

func TestPointer(t *testing.T) {
	for s, want := range map[string]string{
		"$example.com":             "https://example.com/.well-known/pay",
		"$example.com/":            "https://example.com/.well-known/pay",
		"$Example.COM/Alice":       "https://example.com/Alice",
		"$example.com/a/b/":        "https://example.com/a/b",
		"$gift.me/OLMCH-NKCI3":     "https://gift.me/OLMCH-NKCI3",
		"$example.com/a%20b":       "https://example.com/a%20b",
		"$xn--bcher-kva.example/x": "https://xn--bcher-kva.example/x",
		"$localhost":               "https://localhost/.well-known/pay",
	} {
		p, err := ParsePointer(s)
		if err != nil || p.URL() != want {
			t.Errorf("%s: %s, %v; want %s", s, p.URL(), err, want)
		}
		if again, err := ParsePointer(p.String()); err != nil || again != p {
			t.Errorf("%s: %v %v", s, again, err)
		}
	}
	for _, s := range []string{
		"", "$", "example.com", "$$example.com", "$example.com:8080", "$user@example.com", "$example.com?x", "$example.com/a?x",
		"$example.com/a#x", "$example.com//a", "$example.com/a//b", "$example.com/../etc", "$example.com/%2e%2e/etc", "$example.com/a%2Fb",
		"$example.com/%", "$example.com/%zz", "$example.com/%0a", "$example.com/a b", "$127.0.0.1/x", "$2130706433", "$127.1", "$[::1]/x",
		"$-a.com", "$a-.com", "$a..com", "$bücher.example", "$example.com/ä", "$" + strings.Repeat("a", 64) + ".com", "$example.com/" + strings.Repeat("a", maxPointer),
	} {
		if p, err := ParsePointer(s); !errors.Is(err, ErrPointer) {
			t.Errorf("%q is %s: %v", s, p.URL(), err)
		}
	}
}

func TestDocuments(t *testing.T) {
	file, err := os.ReadFile("testdata/documents.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden []struct {
		Name, Document string
		Kind           Kind
	}
	if err := json.Unmarshal(file, &golden); err != nil || len(golden) != 4 {
		t.Fatal(err)
	}
	for _, g := range golden {
		d, err := Decode([]byte(g.Document))
		if err != nil {
			t.Errorf("%s: %v", g.Name, err)
			continue
		}
		if d.Kind() != g.Kind || d.SharedSecret != envelope.Secret(bytes.Repeat([]byte{0x11}, 32)) {
			t.Errorf("%s: %+v", g.Name, d)
		}
		if b, err := d.Encode(); err != nil || string(b) != g.Document {
			t.Errorf("%s: %s %v", g.Name, b, err)
		}
	}
}

// document returns one with the given fields after the required ones.
func document(more string) []byte {
	return []byte(`{"destination":"test.a","shared_secret":"ERERERERERERERERERERERERERERERERERERERERERE"` + more + `}`)
}

func TestTolerated(t *testing.T) {
	for _, s := range []string{
		``, `,"receipts_enabled":true`, `,"x":{"destination":"g.b","y":[1,{"z":null}]}`,
		`,"balance":{"current":0,"maximum":1000000,"other":1}`, ` `, `,"destination_account":"test.a"`,
	} {
		if _, err := Decode(document(s)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	// The name of RFC 0009 alone, and the alphabet of URLs.
	const only = `{"destination_account":"test.a","shared_secret":"__________________________________________8="}`
	if d, err := Decode([]byte(only)); err != nil || d.Destination != "test.a" || d.SharedSecret[31] != 0xff {
		t.Error(d, err)
	}
}

func TestMalformed(t *testing.T) {
	for _, s := range []string{
		`,"destination":"test.b"`, `,"destination_account":"test.b"`, `,"balance":null`, `,"balance":[]`, `,"balance":{}`,
		`,"balance":{"current":"0","current":"1"}`, `,"balance":{"current":1.5}`, `,"balance":{"current":1e3}`, `,"balance":{"current":"01"}`,
		`,"balance":{"current":"+1"}`, `,"balance":{"current":9223372036854775808}`, `,"balance":{"current":"1,000"}`, `,"balance":{"current":true}`,
		`,"balance":{"current":0,"minimum":2,"maximum":1}`, `,"x":` + strings.Repeat("[", 20) + strings.Repeat("]", 20), `}{`, `,"x"`,
	} {
		if d, err := Decode(document(s)); !errors.Is(err, ErrDocument) {
			t.Errorf("%s: %+v %v", s, d, err)
		}
	}
	for _, s := range []string{
		``, `null`, `[]`, `{}`, `{"destination":"test.a"}`, `{"destination":5,"shared_secret":"x"}`, `{"destination":"test.a","shared_secret":"x"}`,
		`{"destination":"x","shared_secret":"ERERERERERERERERERERERERERERERERERERERERERE="}`,
		`{"destination":"test.a","shared_secret":"ERERERERERERERERERERERERERERERERERERERERERF="}`, // bits after the end
	} {
		if d, err := Decode([]byte(s)); !errors.Is(err, ErrDocument) {
			t.Errorf("%s: %+v %v", s, d, err)
		}
	}
	if _, err := Decode(bytes.Repeat([]byte{' '}, MaxDocument+1)); !errors.Is(err, ErrDocument) {
		t.Error(err)
	}
	if _, err := (&Document{}).Encode(); !errors.Is(err, ErrDocument) {
		t.Error(err)
	}
}

func FuzzPointer(f *testing.F) {
	f.Add("$example.com/a%20b")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePointer(s)
		if err != nil {
			return
		}
		if again, err := ParsePointer(p.String()); err != nil || again != p {
			t.Fatalf("%q: %v %v", s, again, err)
		}
	})
}

func FuzzDocument(f *testing.F) {
	f.Add(document(`,"balance":{"current":0,"maximum":1000000}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Decode(b)
		if err != nil {
			return
		}
		enc, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(enc)
		if err != nil || again.Destination != d.Destination || again.SharedSecret != d.SharedSecret || again.Kind() != d.Kind() {
			t.Fatalf("%s: %v", enc, err)
		}
	})
}
