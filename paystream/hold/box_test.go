package hold

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

// identity is a node whose key everybody knows.
type identity struct {
	priv crypto.PrivKey
	id   peer.ID
	key  *Key
}

func identityOf(t testing.TB, seed byte) identity {
	t.Helper()
	raw := make([]byte, 32)
	raw[31] = seed
	priv, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(raw))
	if err != nil {
		t.Fatal(err)
	}
	return identityFrom(t, priv)
}

func identityFrom(t testing.TB, priv crypto.PrivKey) identity {
	t.Helper()
	id, err := peer.IDFromPrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	key, err := NewKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return identity{priv, id, key}
}

// counting is a reader whose bytes are 01 02 03 …
type counting struct{ n byte }

func (c *counting) Read(b []byte) (int, error) {
	for i := range b {
		c.n++
		b[i] = c.n
	}
	return len(b), nil
}

func testBox(t testing.TB, payee peer.ID, holder peer.ID) (*Bound, *Sealed, []byte) {
	t.Helper()
	s := &Sealed{Preimage: tally.Preimage{1}, Amount: 1000, Expires: 1_700_000_000_000, Memo: "two coffees"}
	b := &Bound{ID: ID{0xf0, 0xf1}, Hash: s.Preimage.Hashlock(), Holder: holder}
	box, err := Seal(&counting{}, payee, b, s)
	if err != nil {
		t.Fatal(err)
	}
	return b, s, box
}

// TestKeysAgree: the two halves of an Ed25519 key give the two halves of one X25519
// key, whatever the key.
func TestKeysAgree(t *testing.T) {
	for range 64 {
		priv, _, err := crypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		who := identityFrom(t, priv)
		pub, err := sealKeyOf(who.id)
		if err != nil {
			t.Fatal(err)
		}
		if !pub.Equal(who.key.priv.PublicKey()) {
			t.Fatal("the keys are not a pair")
		}
	}
}

// TestOtherKeysAreRefused with an error that names the way out.
func TestOtherKeysAreRefused(t *testing.T) {
	rsa, _, err := crypto.GenerateKeyPairWithReader(crypto.RSA, 2048, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secp, _, err := crypto.GenerateSecp256k1Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, priv := range []crypto.PrivKey{rsa, secp} {
		id, err := peer.IDFromPrivateKey(priv)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sealKeyOf(id); !errors.Is(err, ErrKeyType) {
			t.Errorf("%s: %v", priv.Type(), err)
		}
		if _, err := NewKey(priv); !errors.Is(err, ErrKeyType) {
			t.Errorf("%s: %v", priv.Type(), err)
		}
	}
	for name, id := range map[string]peer.ID{"empty": "", "no key": peer.ID("x")} {
		if _, err := sealKeyOf(id); !errors.Is(err, ErrKeyType) {
			t.Errorf("%s: %v", name, err)
		}
	}
	one := make([]byte, 32)
	one[0] = 1 // the neutral element has no u
	for name, raw := range map[string][]byte{
		"neutral": one, "short": one[:31], "above the field": bytes.Repeat([]byte{0xff}, 32),
	} {
		if _, err := montgomery(raw); err == nil {
			t.Errorf("%s: taken for a key", name)
		}
	}
}

func TestBox(t *testing.T) {
	payee, holder, other := identityOf(t, 1), identityOf(t, 2), identityOf(t, 3)
	b, s, box := testBox(t, payee.id, holder.id)
	if len(box) != BoxSize {
		t.Fatalf("%d bytes", len(box))
	}
	if got, err := payee.key.Open(b, box); err != nil || got != *s {
		t.Fatal(got, err)
	}
	for i := range box {
		damaged := bytes.Clone(box)
		damaged[i] ^= 1
		if _, err := payee.key.Open(b, damaged); !errors.Is(err, ErrBox) {
			t.Fatalf("byte %d may change: %v", i, err)
		}
	}
	change := func(f func(b *Bound)) *Bound {
		cp := *b
		f(&cp)
		return &cp
	}
	for name, err := range map[string]error{
		"payee":  opens(other.key, b, box),
		"id":     opens(payee.key, change(func(b *Bound) { b.ID[0]++ }), box),
		"hash":   opens(payee.key, change(func(b *Bound) { b.Hash[0]++ }), box),
		"holder": opens(payee.key, change(func(b *Bound) { b.Holder = other.id }), box),
		"short":  opens(payee.key, b, box[:BoxSize-1]),
		"long":   opens(payee.key, b, append(bytes.Clone(box), 0)),
		"none":   opens(payee.key, b, nil),
	} {
		if !errors.Is(err, ErrBox) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	// A one-time key of low order would make a key that everybody knows.
	low := bytes.Clone(box)
	clear(low[1:33])
	if err := opens(payee.key, b, low); !errors.Is(err, ErrBox) {
		t.Errorf("key of low order: %v", err)
	}
	// What is sealed opens the hash, or is nothing.
	wrong := &Bound{ID: b.ID, Hash: tally.Hashlock{9}, Holder: holder.id}
	mine, err := Seal(rand.Reader, payee.id, wrong, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := opens(payee.key, wrong, mine); !errors.Is(err, ErrBox) {
		t.Errorf("preimage of another hash: %v", err)
	}
	// Nothing is sealed twice alike.
	if again, err := Seal(rand.Reader, payee.id, b, s); err != nil || bytes.Equal(again, box) {
		t.Error("two boxes are alike", err)
	}
	for name, bad := range map[string]Sealed{
		"no amount": {Expires: 1}, "amount": {Amount: 1 << 62, Expires: 1}, "no expiry": {Amount: 1},
		"long memo": {Amount: 1, Expires: 1, Memo: strings.Repeat("m", MaxMemo+1)}, "memo": {Amount: 1, Expires: 1, Memo: "\xff"},
	} {
		if _, err := Seal(rand.Reader, payee.id, b, &bad); err == nil {
			t.Errorf("%s was sealed", name)
		}
	}
	if _, err := Seal(rand.Reader, payee.id, &Bound{}, s); err == nil {
		t.Error("sealed for no holder")
	}
	if _, err := Seal(strings.NewReader("short"), payee.id, b, s); err == nil {
		t.Error("sealed without randomness")
	}
	if text := fmt.Sprintf("%v %+v %#v", payee.key, payee.key, payee.key); strings.Count(text, "<key>") != 3 {
		t.Error("a key prints", text)
	}
}

func opens(k *Key, b *Bound, box []byte) error {
	_, err := k.Open(b, box)
	return err
}

func TestBoxHoldsWhatItTakes(t *testing.T) {
	payee, holder := identityOf(t, 1), identityOf(t, 2)
	rapid.Check(t, func(rt *rapid.T) {
		s := &Sealed{
			Preimage: tally.Preimage(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(rt, "preimage")),
			Amount:   tally.Amount(rapid.Uint64Range(1, 1<<62-1).Draw(rt, "amount")),
			Expires:  rapid.Int64Range(1, 1<<62).Draw(rt, "expires"),
			Memo:     rapid.StringN(-1, -1, MaxMemo).Draw(rt, "memo"),
		}
		b := &Bound{ID: ID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(rt, "id")), Hash: s.Preimage.Hashlock(), Holder: holder.id}
		box, err := Seal(rand.Reader, payee.id, b, s)
		if err != nil {
			rt.Fatal(err)
		}
		if got, err := payee.key.Open(b, box); err != nil || got != *s {
			rt.Fatal(got, err)
		}
	})
}

// vector reads one line of testdata/vectors.txt.
func vector(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile("testdata/vectors.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(rest)
		}
	}
	t.Fatalf("no vector %s", name)
	return ""
}

// TestVectors are those of docs/protocol/hold.md.
func TestVectors(t *testing.T) {
	payee, holder := identityOf(t, 1), identityOf(t, 2)
	b, _, box := testBox(t, payee.id, holder.id)
	seal, err := sealKeyOf(payee.id)
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]string{
		"box.payee": payee.id.String(), "box.holder": holder.id.String(), "box.payee_key": hex.EncodeToString(seal.Bytes()),
		"box.id": b.ID.String(), "box.hash": b.Hash.String(), "box.sealed": hex.EncodeToString(box),
	} {
		if want := vector(t, name); got != want {
			t.Errorf("%s %s\nwant %s", name, got, want)
		}
	}
}

func FuzzOpenBox(f *testing.F) {
	payee, holder := identityOf(f, 1), identityOf(f, 2)
	b, _, box := testBox(f, payee.id, holder.id)
	f.Add(box)
	f.Fuzz(func(t *testing.T, box []byte) {
		if s, err := payee.key.Open(b, box); err == nil && (s.Validate() != nil || !s.Preimage.Opens(b.Hash)) {
			t.Fatal("opened to something that no payer seals")
		}
	})
}
