package adaptor

import (
	"bytes"
	"crypto/rand"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"gitlab.com/yawning/secp256k1-voi/secec"
	"pgregory.net/rapid"
)

// TestCommitmentVectors: the s of each valid signature of BIP 340's vectors is the
// secret of its commitment's point, and that of an invalid one is not.
func TestCommitmentVectors(t *testing.T) {
	data, err := os.ReadFile("testdata/bip340.csv")
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(bytes.NewReader(data)).ReadAll()
	if err != nil || len(rows) < 15 {
		t.Fatal(len(rows), err)
	}
	good := 0
	for _, row := range rows[1:] {
		msg, sig := unhex(t, row[4]), unhex(t, row[5])
		if len(msg) != DigestSize {
			continue // of any length: not what we commit to
		}
		c := Commitment{Nonce: [SchnorrKeySize]byte(sig), Key: [SchnorrKeySize]byte(unhex(t, row[2])), Message: [DigestSize]byte(msg)}
		s := Secret(sig[SchnorrKeySize:])
		got, err := c.Signature(&s)
		if valid := row[6] == "TRUE"; valid != (err == nil) {
			t.Errorf("vector %s (%s): %v", row[0], row[7], err)
		} else if valid {
			good++
			if !bytes.Equal(got[:], sig) || !VerifySchnorr(c.Key, c.Message, got) {
				t.Errorf("vector %s: %x", row[0], got)
			}
		}
	}
	if good < 4 {
		t.Fatal("only", good, "valid vectors")
	}
}

// TestCommitment: whatever is committed to comes to a good signature, by its secret
// alone; and nothing of it may be changed.
func TestCommitment(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		key, err := secec.NewPrivateKey(scalarOf([32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(rt, "key"))).Bytes())
		if err != nil {
			return // zero
		}
		msg := [DigestSize]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(rt, "message"))
		c, s, err := Commit(rand.Reader, key, msg)
		if err != nil {
			rt.Fatal(err)
		}
		y, err := c.Point()
		if err != nil || !s.Opens(y) {
			rt.Fatal(err)
		}
		sig, err := c.Signature(&s)
		if err != nil || !VerifySchnorr(c.Key, msg, sig) {
			rt.Fatal(err)
		}
		wrong := s
		wrong[rapid.IntRange(0, 31).Draw(rt, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
		if _, err := c.Signature(&wrong); !errors.Is(err, ErrWrongSecret) {
			rt.Fatal("another secret", err)
		}
		for i := range 3 {
			d := c
			[]*[32]byte{&d.Nonce, &d.Key, &d.Message}[i][31] ^= 1
			if _, err := d.Signature(&s); err == nil {
				rt.Fatal("another commitment", i)
			}
		}
		again, _, err := Commit(rand.Reader, key, msg)
		if err != nil || again.Nonce == c.Nonce {
			rt.Fatal("a nonce twice", err)
		}
	})
}

func TestCommitmentOfNothing(t *testing.T) {
	// 5 is the x of no point.
	if _, err := (&Commitment{Nonce: [32]byte{31: 5}, Key: [32]byte{31: 1}}).Point(); !errors.Is(err, ErrCommitment) {
		t.Error(err)
	}
	if _, err := (&Commitment{Nonce: [32]byte{31: 1}, Key: [32]byte{31: 5}}).Point(); !errors.Is(err, ErrCommitment) {
		t.Error(err)
	}
	key, err := secec.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Commit(strings.NewReader("short"), key, [32]byte{}); err == nil {
		t.Error("committed without randomness")
	}
}

// A payee sells its signature over a receipt. The payer pays with a voucher under the
// point that the signature's s is the secret of: taking the money shows the signature.
func ExampleCommitment() {
	payee, _ := secec.GenerateKey()
	payer, _ := secec.GenerateKey()
	receipt := [DigestSize]byte{1, 2, 3}

	// The payee names the signature, and keeps its secret.
	commitment, secret, _ := Commit(rand.Reader, payee, receipt)

	// The payer checks whose it is to be and over what, and signs a voucher under Y.
	y, _ := commitment.Point()
	voucher := [DigestSize]byte{4, 5, 6}
	lock, _ := Encrypt(rand.Reader, payer, voucher, y)

	// The payee checks the lock, and completes it to take the money.
	key, _ := ParsePoint(payer.PublicKey().CompressedBytes())
	fmt.Println("lock:", lock.Verify(key, voucher, y))
	plain, _ := lock.Decrypt(&secret)

	// From what the payee submitted the payer has the signature.
	bought, _ := lock.Recover(&plain, y)
	signature, err := commitment.Signature(&bought)
	fmt.Println("signature:", err, VerifySchnorr(commitment.Key, receipt, signature))
	// Output:
	// lock: <nil>
	// signature: <nil> true
}
