package adaptor

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"gitlab.com/yawning/secp256k1-voi"
	"gitlab.com/yawning/secp256k1-voi/secec"
)

// Sizes in bytes.
const (
	// Size of an adaptor signature.
	Size = 162
	// PlainSize of r and s.
	PlainSize  = 64
	DigestSize = 32
	freshSize  = 32
)

var (
	// ErrFormat: the bytes are not an adaptor signature.
	ErrFormat = errors.New("paych/adaptor: not an adaptor signature")
	// ErrInvalid: the adaptor signature is not this key's, over this digest, under
	// this point. It is not said which, because nobody but the signer can act on it.
	ErrInvalid = errors.New("paych/adaptor: adaptor signature is not valid")
	// ErrWrongSecret: the secret is not the point's, or the plain signature is not
	// the one that the adaptor signature was completed to.
	ErrWrongSecret = errors.New("paych/adaptor: this does not open the point")
)

// Signature is an adaptor signature as it travels and is saved. Before it leaves it
// is on disk, and what is sent again is the same bytes.
type Signature [Size]byte

// Plain is r and s, big-endian, s the lower one.
type Plain [PlainSize]byte

// parts is a Signature taken apart.
type parts struct {
	r, ra      *secp256k1.Point
	rx         *secp256k1.Scalar // x of r, as ECDSA has it
	sa, e, z   *secp256k1.Scalar
	rRaw, aRaw []byte
}

// Parse reads an adaptor signature. Whose it is, Verify says.
func Parse(b []byte) (Signature, error) {
	if len(b) != Size {
		return Signature{}, fmt.Errorf("%w: %d bytes, want %d", ErrFormat, len(b), Size)
	}
	s := Signature(b)
	if _, err := s.parts(); err != nil {
		return Signature{}, err
	}
	return s, nil
}

func (s *Signature) parts() (*parts, error) {
	p := &parts{rRaw: s[:33], aRaw: s[33:66]}
	var err error
	if p.r, err = new(secp256k1.Point).SetCompressedBytes(p.rRaw); err != nil {
		return nil, fmt.Errorf("%w: R", ErrFormat)
	}
	if p.ra, err = new(secp256k1.Point).SetCompressedBytes(p.aRaw); err != nil {
		return nil, fmt.Errorf("%w: R_a", ErrFormat)
	}
	for i, dst := range [...]**secp256k1.Scalar{&p.sa, &p.e, &p.z} {
		raw := [SecretSize]byte(s[66+32*i:])
		if *dst, err = secp256k1.NewScalarFromCanonicalBytes(&raw); err != nil {
			return nil, fmt.Errorf("%w: number %d", ErrFormat, i)
		}
	}
	p.rx = xOf(p.r)
	if p.sa.IsZero() == 1 || p.rx.IsZero() == 1 {
		return nil, fmt.Errorf("%w: zero", ErrFormat)
	}
	return p, nil
}

// xOf is the x coordinate modulo the order, of a point that is not at infinity.
func xOf(p *secp256k1.Point) *secp256k1.Scalar {
	x := [32]byte(p.CompressedBytes()[1:])
	v, _ := secp256k1.NewScalarFromBytes(&x)
	return v
}

func scalarOf(b [32]byte) *secp256k1.Scalar {
	v, _ := secp256k1.NewScalarFromBytes(&b) // modulo the order
	return v
}

// Encrypt signs digest with key so that only who knows the secret of y can use the
// signature. 32 bytes are read from rand, which is crypto/rand's Reader outside
// tests; each call gives another signature, so that a caller saves what it got and
// sends that again.
func Encrypt(rand io.Reader, key *secec.PrivateKey, digest [DigestSize]byte, y Point) (Signature, error) {
	var fresh [freshSize]byte
	if _, err := io.ReadFull(rand, fresh[:]); err != nil {
		return Signature{}, fmt.Errorf("paych/adaptor: draw randomness: %w", err)
	}
	return encrypt(key, digest, y, fresh)
}

// encrypt is Encrypt without an effect. A nonce of zero, or an r or s of zero, comes
// up once in 2^256 draws: the caller's retry is another draw.
func encrypt(key *secec.PrivateKey, digest [DigestSize]byte, y Point, fresh [freshSize]byte) (Signature, error) {
	yp, err := y.point()
	if err != nil {
		return Signature{}, err
	}
	raw := key.Bytes()
	k := scalarOf(tagged("tally/adaptor/nonce", raw, digest[:], y[:], fresh[:]))
	if k.IsZero() == 1 {
		return Signature{}, errors.New("paych/adaptor: nonce is zero: sign again")
	}
	ra := new(secp256k1.Point).ScalarBaseMult(k)
	r := new(secp256k1.Point).ScalarMult(k, yp)
	sa := new(secp256k1.Scalar).Multiply(xOf(r), key.Scalar())
	sa.Add(sa, scalarOf(digest))
	sa.Multiply(sa, new(secp256k1.Scalar).Invert(k))

	raRaw, rRaw := ra.CompressedBytes(), r.CompressedBytes()
	// The proof that log_G(R_a) = log_Y(R). Its nonce is of k, which is fresh, and
	// of what is proved.
	n := scalarOf(tagged("tally/adaptor/dleq", k.Bytes(), raRaw, y[:], rRaw, fresh[:]))
	n1 := new(secp256k1.Point).ScalarBaseMult(n)
	n2 := new(secp256k1.Point).ScalarMult(n, yp)
	e := challenge(raRaw, y[:], rRaw, n1, n2)
	z := new(secp256k1.Scalar).Multiply(e, k)
	z.Add(z, n)

	var s Signature
	b := append(append(s[:0], rRaw...), raRaw...)
	b = append(append(b, sa.Bytes()...), e.Bytes()...)
	_ = append(b, z.Bytes()...)
	if _, err := s.parts(); err != nil {
		return Signature{}, err
	}
	return s, nil
}

// Verify reports whether s is key's over digest, encrypted under y, so that its
// completion is certain to be good: ErrFormat, ErrPoint, ErrInvalid.
func (s *Signature) Verify(key Point, digest [DigestSize]byte, y Point) error {
	p, err := s.parts()
	if err != nil {
		return err
	}
	kp, err := key.point()
	if err != nil {
		return err
	}
	yp, err := y.point()
	if err != nil {
		return err
	}
	// n1 = z·G − e·R_a, n2 = z·Y − e·R
	minusE := new(secp256k1.Scalar).Negate(p.e)
	n1 := new(secp256k1.Point).DoubleScalarMultBasepointVartime(p.z, minusE, p.ra)
	n2 := new(secp256k1.Point).MultiScalarMultVartime([]*secp256k1.Scalar{p.z, minusE}, []*secp256k1.Point{yp, p.r})
	if n1.IsIdentity() == 1 || n2.IsIdentity() == 1 ||
		challenge(p.aRaw, y[:], p.rRaw, n1, n2).Equal(p.e) != 1 {
		return ErrInvalid
	}
	// R_a = (digest·G + r·key) / s_a
	inv := new(secp256k1.Scalar).Invert(p.sa)
	u1 := new(secp256k1.Scalar).Multiply(scalarOf(digest), inv)
	u2 := new(secp256k1.Scalar).Multiply(p.rx, inv)
	if new(secp256k1.Point).DoubleScalarMultBasepointVartime(u1, u2, kp).Equal(p.ra) != 1 {
		return ErrInvalid
	}
	return nil
}

// Decrypt completes s with the secret of the point it was verified under. The
// result is good if s was; who publishes it gives the secret to whoever has s.
func (s *Signature) Decrypt(y *Secret) (Plain, error) {
	p, err := s.parts()
	if err != nil {
		return Plain{}, err
	}
	scalar, err := y.scalar()
	if err != nil {
		return Plain{}, err
	}
	// R = y·R_a, or the secret is another point's.
	if new(secp256k1.Point).ScalarMult(scalar, p.ra).Equal(p.r) != 1 {
		return Plain{}, ErrWrongSecret
	}
	v := new(secp256k1.Scalar).Multiply(p.sa, new(secp256k1.Scalar).Invert(scalar))
	v.ConditionalNegate(v, v.IsGreaterThanHalfN())
	var out Plain
	_ = append(append(out[:0], p.rx.Bytes()...), v.Bytes()...)
	return out, nil
}

// Recover returns the secret of y from the plain signature that s was completed to.
// Either s of the plain one does: the chain takes both.
func (s *Signature) Recover(plain *Plain, y Point) (Secret, error) {
	p, err := s.parts()
	if err != nil {
		return Secret{}, err
	}
	rRaw, sRaw := [32]byte(plain[:32]), [32]byte(plain[32:])
	r, err := secp256k1.NewScalarFromCanonicalBytes(&rRaw)
	if err != nil || r.Equal(p.rx) != 1 {
		return Secret{}, ErrWrongSecret // of another nonce
	}
	v, err := secp256k1.NewScalarFromCanonicalBytes(&sRaw)
	if err != nil || v.IsZero() == 1 {
		return Secret{}, ErrWrongSecret
	}
	found := new(secp256k1.Scalar).Multiply(p.sa, new(secp256k1.Scalar).Invert(v))
	for range 2 {
		secret := Secret(found.Bytes())
		if secret.Opens(y) {
			return secret, nil
		}
		found.Negate(found)
	}
	return Secret{}, ErrWrongSecret
}

// challenge of the proof, as the specification has it.
func challenge(ra, y, r []byte, n1, n2 *secp256k1.Point) *secp256k1.Scalar {
	return scalarOf(tagged("DLEQ", ra, y, r, n1.CompressedBytes(), n2.CompressedBytes()))
}

// tagged is BIP 340's: SHA-256 of the tag's hash twice, and of the rest.
func tagged(tag string, list ...[]byte) [32]byte {
	head := sha256.Sum256([]byte(tag))
	h := sha256.New()
	h.Write(head[:])
	h.Write(head[:])
	for _, b := range list {
		h.Write(b)
	}
	return [32]byte(h.Sum(nil))
}
