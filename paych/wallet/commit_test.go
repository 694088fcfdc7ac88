package wallet

import (
	"errors"
	"testing"

	"github.com/filecoin-project/go-address"

	"github.com/tallystick/tally/paych/adaptor"
)

// The key of an address commits to signatures that are good, each with its own nonce,
// and the address can be told from its public key.
func TestCommit(t *testing.T) {
	w := NewMem()
	a, err := w.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	public, err := w.PublicKey(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := public.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := address.NewSecp256k1Address(raw); err != nil || got != a {
		t.Fatalf("the key of %s, not %s: %v", got, a, err)
	}
	message := [adaptor.DigestSize]byte{1}
	c, s, err := w.Commit(t.Context(), a, message)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := c.Signature(&s)
	if err != nil || c.Key != [32]byte(public[1:]) || !adaptor.VerifySchnorr(c.Key, message, sig) {
		t.Fatalf("%+v, %v", c, err)
	}
	if again, _, err := w.Commit(t.Context(), a, message); err != nil || again.Nonce == c.Nonce {
		t.Fatal("one nonce twice", err)
	}
	other, err := NewMem().New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Commit(t.Context(), other, message); !errors.Is(err, ErrNoKey) {
		t.Fatal(err)
	}
	if _, err := w.PublicKey(t.Context(), other); !errors.Is(err, ErrNoKey) {
		t.Fatal(err)
	}
}
