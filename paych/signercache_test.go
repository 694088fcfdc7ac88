package paych

import (
	"testing"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/crypto"
	"golang.org/x/crypto/blake2b"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
)

// Only the same bytes find a row: another message, or another signature of the same
// one, is recovered anew and has its own signer.
func TestSignerCacheKnowsOnlyTheSameBytes(t *testing.T) {
	sign := func(seed byte, msg string) *crypto.Signature {
		digest := blake2b.Sum256([]byte(msg))
		compact := ecdsa.SignCompact(secp256k1.PrivKeyFromBytes([]byte{seed}), digest[:], false)
		return &crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: append(compact[1:], compact[0]-27)}
	}
	recover := func(sig *crypto.Signature, msg string) address.Address {
		t.Helper()
		a, err := RecoverSigner(sig, []byte(msg))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := RecoverSigner(sig, []byte(msg)); err != nil || again != a {
			t.Fatalf("asked again: %v %v, at first %v", again, err, a)
		}
		return a
	}
	one, two := sign(1, "pay"), sign(2, "pay")
	a, b := recover(one, "pay"), recover(two, "pay")
	if a == b {
		t.Fatal("two keys have one address")
	}
	if other := recover(sign(1, "more"), "more"); other != a {
		t.Fatalf("one key has two addresses: %v, %v", a, other)
	}
	if got, err := RecoverSigner(one, []byte("more")); err == nil && got == a {
		t.Fatal("a signature counts for another message")
	}
	mixed := &crypto.Signature{Type: one.Type, Data: append(append([]byte(nil), one.Data[:64]...), one.Data[64]^1)}
	if got, err := RecoverSigner(mixed, []byte("pay")); err == nil && got == a {
		t.Fatal("another v has the same signer")
	}
	// Whatever shares a row pushes the other out, and no more.
	name := signerName(blake2b.Sum256([]byte("pay")), one.Data)
	twin := name
	twin[31] ^= 1
	signers.put(twin, b)
	if _, ok := signers.get(name); ok {
		t.Fatal("a row has two names")
	}
	if got := recover(one, "pay"); got != a {
		t.Fatalf("after it was pushed out: %v", got)
	}
}
