package signer_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/signer"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych/adaptor"
	"github.com/tallystick/tally/paych/wallet"
)

// The key is made once, for the first who asks, and is the same over restarts. What is
// committed to with it comes to a good signature, by its secret alone.
func TestCurve(t *testing.T) {
	store, keys := durabletest.NewMem(), wallet.NewMem()
	defer store.Close()
	payout, err := keys.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := signer.New(store, keys)
	sale, secret, err := c.Commit(t.Context(), [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	sig, err := c.Complete(&sale, secret)
	if err != nil || !adaptor.VerifySchnorr(sale.Key, sale.Message, sig) {
		t.Fatalf("%x: %v", sig, err)
	}
	y, err := c.PointOf(&sale)
	if err != nil || !c.Opens(y, secret) || c.Opens(y, tally.Preimage{}) {
		t.Fatal(err)
	}
	wrong := secret
	wrong[31] ^= 1
	if _, err := c.Complete(&sale, wrong); !errors.Is(err, adaptor.ErrWrongSecret) {
		t.Fatal(err)
	}
	again, _, err := signer.New(store, keys).Commit(t.Context(), [32]byte{1})
	if err != nil || again.Key != sale.Key || again.Nonce == sale.Nonce {
		t.Fatalf("after a restart: %+v, %v", again, err)
	}
	public, err := c.Key(t.Context())
	if err != nil || [32]byte(public[1:]) != sale.Key {
		t.Fatal(public, err)
	}
	list, err := keys.List(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	if first, err := keys.PublicKey(t.Context(), payout); err != nil || first == public {
		t.Fatal("it signs with the key that money is paid to", err)
	}
	// A wallet that has lost it does not sign with another.
	if _, _, err := signer.New(store, wallet.NewMem()).Commit(t.Context(), [32]byte{1}); err == nil || !strings.Contains(err.Error(), "backup") {
		t.Fatal(err)
	}
	if _, _, err := signer.New(store, nil).Commit(t.Context(), [32]byte{1}); !errors.Is(err, signer.ErrNoKey) {
		t.Fatal(err)
	}
}
