package payments

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

func TestSealPart(t *testing.T) {
	s, h, id := Secret{1}, hashOf(1), idOf(1)
	d := PartData{Total: 100, Amount: 40, Number: 3}
	b := SealPart(&s, h, id, d)
	if got, err := OpenPart(&s, h, id, b); err != nil || got != d {
		t.Fatal(got, err)
	}
	if !bytes.Equal(b, SealPart(&s, h, id, d)) {
		t.Fatal("a part that is sent again after a restart has other data")
	}
	for i := range b {
		damaged := bytes.Clone(b)
		damaged[i] ^= 1
		if _, err := OpenPart(&s, h, id, damaged); err == nil {
			t.Fatalf("byte %d is not authenticated", i)
		}
	}
	other := Secret{2}
	for name, err := range map[string]error{
		"secret": opens(&other, h, id, b), "hash": opens(&s, hashOf(2), id, b), "part": opens(&s, h, idOf(2), b),
		"short": opens(&s, h, id, b[:len(b)-1]), "long": opens(&s, h, id, append(bytes.Clone(b), 0)), "none": opens(&s, h, id, nil),
	} {
		if err == nil {
			t.Errorf("opened with another %s", name)
		}
	}
}

func opens(s *Secret, h [32]byte, id PartID, b []byte) error {
	_, err := OpenPart(s, h, id, b)
	return err
}

// TestSealVector is the vector of docs/protocol/payments.md.
func TestSealVector(t *testing.T) {
	var s Secret
	var h [32]byte
	var id PartID
	for i := range s {
		s[i], h[i] = byte(i), byte(0x80+i)
	}
	for i := range id {
		id[i] = byte(0xf0 + i)
	}
	got := hex.EncodeToString(SealPart(&s, h, id, PartData{Total: 1000, Amount: 400, Number: 2}))
	if got != vector(t, "part.sealed") {
		t.Fatalf("sealed %s", got)
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	s := Secret{0xab, 0xcd}
	p := Payment{Secret: s, Preimage: secretOf(1)}
	r := Receivable{Secret: s, Preimage: secretOf(1)}
	inv := testInvoice(t)
	for _, v := range []any{s, &s, p, &p, r, &r, inv, &inv, SendPart{Secret: s}} {
		for _, verb := range []string{"%v", "%+v", "%s"} {
			text := fmt.Sprintf(verb, v)
			if strings.Contains(text, "abcd") || strings.Contains(text, "171 205") || strings.Contains(text, inv.Reveal()) {
				t.Errorf("%T prints its secret: %s", v, text)
			}
		}
	}
	if got := fmt.Sprintf("%#v", s); strings.Contains(got, "0xab") {
		t.Error(got)
	}
	if s.LogValue().String() != "<secret>" || strings.Contains(inv.LogValue().String(), "tallyinv") {
		t.Error("logs show a secret")
	}
}

func FuzzOpenPart(f *testing.F) {
	s, h, id := Secret{1}, hashOf(1), idOf(1)
	f.Add(SealPart(&s, h, id, PartData{Total: 1, Amount: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := OpenPart(&s, h, id, b)
		if err == nil && !bytes.Equal(SealPart(&s, h, id, d), b) {
			t.Fatal("two texts of one part")
		}
	})
}
