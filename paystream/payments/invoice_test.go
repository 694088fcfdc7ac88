package payments

import (
	"crypto/ed25519"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// vector reads a line of testdata/vectors.txt: name, blank, value.
func vector(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/vectors.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == name {
			return v
		}
	}
	t.Fatalf("no vector %s", name)
	return ""
}

func testKey(t testing.TB, n byte) (crypto.PrivKey, peer.ID) {
	t.Helper()
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(append(make([]byte, 31), n)))
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, id
}

// testInvoice is the one of the vectors.
func testInvoice(t testing.TB) Invoice {
	t.Helper()
	key, id := testKey(t, 1)
	_, hub := testKey(t, 2)
	i := Invoice{
		Realm: "devnet/FIL", Payee: id, Hash: tally.Preimage{1}.Hashlock(), Secret: Secret{2}, Amount: 1000,
		Expires: start, Memo: "two coffees", Hints: []Hint{{Peer: hub, FeeBase: 1, FeePPM: 500}},
	}
	sig, err := key.Sign(i.SigningBytes())
	if err != nil {
		t.Fatal(err)
	}
	i.Signature = sig
	return i
}

func TestInvoiceText(t *testing.T) {
	i := testInvoice(t)
	text := i.Reveal()
	if text != vector(t, "invoice.text") {
		t.Fatalf("text %s", text)
	}
	got, err := ParseInvoice(text)
	if err != nil {
		t.Fatal(err)
	}
	if got.Reveal() != text || got.Memo != i.Memo || got.Hints[0] != i.Hints[0] || got.Secret != i.Secret {
		t.Fatalf("%+v", got)
	}
	if err := got.Verify(); err != nil {
		t.Fatal(err)
	}
	got.Amount = 1
	if err := got.Verify(); !errors.Is(err, ErrInvoiceSignature) {
		t.Fatal(err)
	}
}

func TestInvoiceTextIsStrict(t *testing.T) {
	i := testInvoice(t)
	text := i.Reveal()
	for at := range text {
		for _, c := range []byte{'0', 'v', 'A', '\n', text[at] ^ 1} {
			if c == text[at] {
				continue
			}
			damaged := text[:at] + string(rune(c)) + text[at+1:]
			if _, err := ParseInvoice(damaged); !errors.Is(err, ErrInvoiceText) {
				t.Fatalf("byte %d as %q: %v", at, c, err)
			}
		}
	}
	bad := []string{"", "tallyinv1", strings.ToUpper(text), text + "0", text + "\n", " " + text, text[:len(text)-1], text + strings.Repeat("0", MaxInvoiceText)}
	for _, change := range []func(*Invoice){
		func(i *Invoice) { i.Realm = "" },
		func(i *Invoice) { i.Payee = "" },
		func(i *Invoice) { i.Payee = "no multihash" },
		func(i *Invoice) { i.Amount = MaxTotal },
		func(i *Invoice) { i.Expires = 0 },
		func(i *Invoice) { i.Expires = -1 },
		func(i *Invoice) { i.Memo = strings.Repeat("m", MaxMemo+1) },
		func(i *Invoice) { i.Memo = "\xff" },
		func(i *Invoice) { i.Hints = make([]Hint, MaxHints+1) },
		func(i *Invoice) { i.Hints[0].FeePPM = 1_000_001 },
		func(i *Invoice) { i.Signature = nil },
		func(i *Invoice) { i.Signature = make([]byte, maxSignature+1) },
	} {
		i := testInvoice(t)
		change(&i)
		if i.Validate() == nil {
			t.Errorf("valid: %+v", i)
		}
		bad = append(bad, i.Reveal())
	}
	for _, text := range bad {
		if _, err := ParseInvoice(text); !errors.Is(err, ErrInvoiceText) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestInvoiceErrorsQuoteNothing: the text has a secret.
func TestInvoiceErrorsQuoteNothing(t *testing.T) {
	i := testInvoice(t)
	text := i.Reveal()
	_, err := ParseInvoice(text[:len(text)-1])
	if strings.Contains(err.Error(), text[20:40]) {
		t.Fatal(err)
	}
}

func FuzzParseInvoice(f *testing.F) {
	i := testInvoice(f)
	f.Add(i.Reveal())
	f.Add("tallyinv1")
	f.Fuzz(func(t *testing.T, text string) {
		i, err := ParseInvoice(text)
		if err != nil {
			return
		}
		if i.Reveal() != text {
			t.Fatal("two texts of one invoice")
		}
		_ = i.Verify()
	})
}
