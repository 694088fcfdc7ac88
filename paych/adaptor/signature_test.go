package adaptor

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"gitlab.com/yawning/secp256k1-voi"
	"gitlab.com/yawning/secp256k1-voi/secec"
	"pgregory.net/rapid"
)

type vectors struct {
	Digest  string `json:"message_hash"`
	Key     string `json:"public_signing_key"`
	Vectors []struct {
		Sig    string `json:"adaptor_sig"`
		Point  string `json:"encryption_key"`
		Secret string `json:"decryption_key"`
		Plain  string `json:"signature"`
		Valid  bool
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readVectors(t testing.TB) vectors {
	t.Helper()
	var v vectors
	data, err := os.ReadFile("testdata/ecdsa_adaptor.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &v); err != nil || len(v.Vectors) == 0 {
		t.Fatal(len(v.Vectors), err)
	}
	return v
}

// TestVectors runs those of the Discreet Log Contracts specification.
func TestVectors(t *testing.T) {
	v := readVectors(t)
	digest, key := [DigestSize]byte(unhex(t, v.Digest)), Point(unhex(t, v.Key))
	for i, c := range v.Vectors {
		y := Point(unhex(t, c.Point))
		sig, err := Parse(unhex(t, c.Sig))
		if err == nil {
			err = sig.Verify(key, digest, y)
		}
		if (err == nil) != c.Valid {
			t.Errorf("vector %d: %v", i, err)
		}
		if !c.Valid {
			continue
		}
		secret := Secret(unhex(t, c.Secret))
		if !secret.Opens(y) {
			t.Errorf("vector %d: the secret is not the point's", i)
		}
		plain, err := sig.Decrypt(&secret)
		if err != nil || hex.EncodeToString(plain[:]) != c.Plain {
			t.Errorf("vector %d: completed to %x: %v", i, plain, err)
		}
		if got, err := sig.Recover(&plain, y); err != nil || got != secret {
			t.Errorf("vector %d: recovered another secret: %v", i, err)
		}
	}
}

type case1 struct {
	key    *secec.PrivateKey
	pub    Point
	secret Secret
	y      Point
	digest [DigestSize]byte
}

func newCase(t testing.TB) *case1 {
	t.Helper()
	key, err := secec.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	c := &case1{key: key, pub: Point(key.PublicKey().CompressedBytes())}
	if c.secret, err = NewSecret(rand.Reader); err != nil {
		t.Fatal(err)
	}
	if c.y, err = c.secret.Point(); err != nil {
		t.Fatal(err)
	}
	rand.Read(c.digest[:])
	return c
}

func (c *case1) encrypt(t testing.TB) Signature {
	t.Helper()
	s, err := Encrypt(rand.Reader, c.key, c.digest, c.y)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestRoundTrip: what one library encrypts and completes another takes as a plain
// signature, and the secret comes out, for the lower s and for the higher.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := newCase(t)
		c.digest = [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(rt, "digest"))
		sig := c.encrypt(t)
		if err := sig.Verify(c.pub, c.digest, c.y); err != nil {
			rt.Fatal(err)
		}
		plain, err := sig.Decrypt(&c.secret)
		if err != nil {
			rt.Fatal(err)
		}
		r, s, err := secec.ParseCompactSignature(plain[:])
		if err != nil || s.IsGreaterThanHalfN() == 1 || !c.key.PublicKey().VerifyRaw(c.digest[:], r, s) {
			rt.Fatalf("%x is no signature: %v", plain, err)
		}
		high := plain
		copy(high[32:], new(secp256k1.Scalar).Negate(s).Bytes())
		for _, p := range []Plain{plain, high} {
			if got, err := sig.Recover(&p, c.y); err != nil || got != c.secret {
				rt.Fatalf("recovered another secret: %v", err)
			}
		}
	})
}

// TestVerifyBinds: a signature that passes is this key's, over this digest, under
// this point, and no byte of it may change.
func TestVerifyBinds(t *testing.T) {
	c, other := newCase(t), newCase(t)
	sig := c.encrypt(t)
	for name, err := range map[string]error{
		"key":    sig.Verify(other.pub, c.digest, c.y),
		"digest": sig.Verify(c.pub, other.digest, c.y),
		"point":  sig.Verify(c.pub, c.digest, other.y),
	} {
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	for i := range sig {
		damaged := sig
		damaged[i] ^= 1
		if damaged.Verify(c.pub, c.digest, c.y) == nil {
			t.Errorf("byte %d may change", i)
		}
	}
	// The payer's own trick: a signature whose R is of another point than its
	// proof says would complete to nothing.
	fake := other
	fake.key, fake.pub, fake.digest = c.key, c.pub, c.digest
	swapped := fake.encrypt(t)
	mixed := sig
	copy(mixed[:33], swapped[:33])
	if mixed.Verify(c.pub, c.digest, c.y) == nil {
		t.Error("R of another point is taken")
	}
}

func TestWrongSecret(t *testing.T) {
	c, other := newCase(t), newCase(t)
	sig := c.encrypt(t)
	if _, err := sig.Decrypt(&other.secret); !errors.Is(err, ErrWrongSecret) {
		t.Errorf("decrypted with another secret: %v", err)
	}
	if _, err := sig.Decrypt(&Secret{}); !errors.Is(err, ErrSecret) {
		t.Errorf("decrypted with zero: %v", err)
	}
	plain, err := sig.Decrypt(&c.secret)
	if err != nil {
		t.Fatal(err)
	}
	// Of another nonce: r differs.
	again := c.encrypt(t)
	plain2, err := again.Decrypt(&c.secret)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() (Secret, error){
		"another nonce": func() (Secret, error) { return sig.Recover(&plain2, c.y) },
		"another point": func() (Secret, error) { return sig.Recover(&plain, other.y) },
		"r alone":       func() (Secret, error) { p := plain; copy(p[32:], plain2[32:]); return sig.Recover(&p, c.y) },
		"s of zero":     func() (Secret, error) { p := plain; clear(p[32:]); return sig.Recover(&p, c.y) },
		"s out of range": func() (Secret, error) {
			p := plain
			copy(p[32:], bytes.Repeat([]byte{0xff}, 32))
			return sig.Recover(&p, c.y)
		},
	} {
		if _, err := f(); !errors.Is(err, ErrWrongSecret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNonceIsFreshAndBound: two nonces of one key are the same only where digest,
// point and randomness all are. Else two equations with one nonce would give the key.
func TestNonceIsFreshAndBound(t *testing.T) {
	c, other := newCase(t), newCase(t)
	var fresh [freshSize]byte
	seen := map[string]string{}
	see := func(name string, digest [32]byte, y Point, fresh [freshSize]byte) {
		t.Helper()
		s, err := encrypt(c.key, digest, y, fresh)
		if err != nil {
			t.Fatal(err)
		}
		ra := string(s[33:66])
		if was, ok := seen[ra]; ok {
			t.Errorf("%s has the nonce of %s", name, was)
		}
		seen[ra] = name
	}
	see("first", c.digest, c.y, fresh)
	see("another digest", other.digest, c.y, fresh)
	see("another point", c.digest, other.y, fresh)
	fresh[31] = 1
	see("other randomness", c.digest, c.y, fresh)

	a, b := c.encrypt(t), c.encrypt(t)
	if bytes.Equal(a[33:66], b[33:66]) {
		t.Error("two calls share a nonce")
	}
	// The plain signature of the same digest, with the deterministic nonce of
	// RFC 6979, has another one than an adaptor signature without randomness.
	r, _, _, err := c.key.SignRaw(secec.RFC6979SHA256(), c.digest[:])
	if err != nil {
		t.Fatal(err)
	}
	for ra := range seen {
		if bytes.Equal([]byte(ra)[1:], r.Bytes()) {
			t.Error("an adaptor signature has the nonce of a plain one")
		}
	}
}

// TestNonceReuseGivesTheKey is why no caller gives a nonce: with one nonce under
// two points, the two equations have one solution.
func TestNonceReuseGivesTheKey(t *testing.T) {
	c, other := newCase(t), newCase(t)
	k := scalarOf([32]byte{1, 2, 3})
	sa := func(y Point) (s, r *secp256k1.Scalar) {
		p, err := y.point()
		if err != nil {
			t.Fatal(err)
		}
		r = xOf(new(secp256k1.Point).ScalarMult(k, p))
		s = new(secp256k1.Scalar).Multiply(r, c.key.Scalar())
		s.Add(s, scalarOf(c.digest))
		return s.Multiply(s, new(secp256k1.Scalar).Invert(k)), r
	}
	s1, r1 := sa(c.y)
	s2, r2 := sa(other.y)
	// k = (r2 − r1)·m / (s1·r2 − s2·r1)
	a := new(secp256k1.Scalar).Multiply(s1, r2)
	b := new(secp256k1.Scalar).Multiply(s2, r1)
	a.Invert(a.Subtract(a, b))
	got := new(secp256k1.Scalar).Subtract(r2, r1)
	got.Multiply(got, scalarOf(c.digest))
	got.Multiply(got, a)
	if got.Equal(k) != 1 {
		t.Fatal("the equations are not those of the signature")
	}
}

func TestParseRefuses(t *testing.T) {
	c := newCase(t)
	good := c.encrypt(t)
	change := func(f func(b []byte)) []byte {
		b := bytes.Clone(good[:])
		f(b)
		return b
	}
	order := unhex(t, "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141")
	for name, b := range map[string][]byte{
		"empty":        {},
		"short":        good[:Size-1],
		"long":         append(bytes.Clone(good[:]), 0),
		"infinity":     change(func(b []byte) { clear(b[:33]) }),
		"uncompressed": change(func(b []byte) { b[33] = 4 }),
		"s_a zero":     change(func(b []byte) { clear(b[66:98]) }),
		"s_a is n":     change(func(b []byte) { copy(b[66:], order) }),
		"e is n":       change(func(b []byte) { copy(b[98:], order) }),
		"z is n":       change(func(b []byte) { copy(b[130:], order) }),
	} {
		if _, err := Parse(b); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, b := range map[string][]byte{"empty": {}, "infinity": make([]byte, PointSize), "x too large": append([]byte{2}, bytes.Repeat([]byte{0xff}, 32)...)} {
		if _, err := ParsePoint(b); !errors.Is(err, ErrPoint) {
			t.Errorf("point %s: %v", name, err)
		}
	}
	for name, s := range map[string]Secret{"zero": {}, "n": Secret(order)} {
		if _, err := s.Point(); !errors.Is(err, ErrSecret) {
			t.Errorf("secret %s: %v", name, err)
		}
	}
	if _, err := Encrypt(rand.Reader, c.key, c.digest, Point{}); !errors.Is(err, ErrPoint) {
		t.Error("encrypted under no point")
	}
	if _, err := Encrypt(strings.NewReader("short"), c.key, c.digest, c.y); err == nil {
		t.Error("encrypted without randomness")
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	s := Secret{0xab, 0xcd}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb, s); text != "<secret>" {
			t.Errorf("%s prints %s", verb, text)
		}
	}
	if s.LogValue().String() != "<secret>" || !strings.HasPrefix(s.Hex(), "abcd") {
		t.Error("logs show it, or Hex does not")
	}
}

func FuzzParse(f *testing.F) {
	v := readVectors(f)
	digest, key := [DigestSize]byte(unhex(f, v.Digest)), Point(unhex(f, v.Key))
	secret := Secret(unhex(f, v.Vectors[0].Secret))
	y := Point(unhex(f, v.Vectors[0].Point))
	for _, c := range v.Vectors {
		f.Add(unhex(f, c.Sig), unhex(f, v.Vectors[0].Plain))
	}
	f.Fuzz(func(t *testing.T, b, p []byte) {
		s, err := Parse(b)
		if err != nil {
			return
		}
		if !bytes.Equal(s[:], b) {
			t.Fatal("another signature came back")
		}
		good := s.Verify(key, digest, y) == nil
		plain, err := s.Decrypt(&secret)
		if good && err != nil {
			t.Fatalf("a signature that verifies does not complete: %v", err)
		}
		if err == nil {
			if got, err := s.Recover(&plain, y); err != nil || got != secret {
				t.Fatalf("completed and not recovered: %v", err)
			}
		}
		if len(p) == PlainSize {
			plain = Plain(p)
			if got, err := s.Recover(&plain, y); err == nil && got != secret {
				t.Fatal("another secret of one point")
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	c := newCase(b)
	s := c.encrypt(b)
	for b.Loop() {
		if err := s.Verify(c.pub, c.digest, c.y); err != nil {
			b.Fatal(err)
		}
	}
}
