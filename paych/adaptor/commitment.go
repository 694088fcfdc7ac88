package adaptor

import (
	"errors"
	"fmt"
	"io"

	"gitlab.com/yawning/secp256k1-voi"
	"gitlab.com/yawning/secp256k1-voi/secec"
	"gitlab.com/yawning/secp256k1-voi/secec/bitcoin"
)

// Sizes in bytes of what BIP 340 has.
const (
	// SchnorrKeySize is a key's, and a nonce's: the x coordinate of a point whose y is
	// even.
	SchnorrKeySize = bitcoin.SchnorrPublicKeySize
	// SchnorrSize is a signature's: nonce and s.
	SchnorrSize = bitcoin.SchnorrSignatureSize
)

// ErrCommitment: no signature can have this nonce and key.
var ErrCommitment = errors.New("paych/adaptor: not a commitment to a signature")

// Commitment names one BIP 340 signature before anybody shows it: the key, the message,
// and the nonce that the signer has chosen for it. Its s is the secret of a point that
// everybody can compute,
//
//	Y = s·G = R + e·P,  e = H(R ‖ P ‖ message)
//
// so that who pays under a point lock of Y buys the signature: taking the money shows
// s. Nobody can give another Y for it, or take the money and keep the signature.
type Commitment struct {
	Nonce, Key [SchnorrKeySize]byte
	Message    [DigestSize]byte
}

// Commit signs message with key and gives the signature apart: what may be told, and
// the secret that is sold. 32 bytes are read from rand, which is crypto/rand's Reader
// outside tests. Secret and commitment are saved together before the commitment leaves:
// a second call gives another nonce, and with that another Y.
func Commit(rand io.Reader, key *secec.PrivateKey, message [DigestSize]byte) (Commitment, Secret, error) {
	signer := bitcoin.NewSchnorrPrivateKeyFromECDSA(key)
	sig, err := signer.Sign(rand, message[:], nil)
	if err != nil {
		return Commitment{}, Secret{}, fmt.Errorf("paych/adaptor: commit to a signature: %w", err)
	}
	c := Commitment{Nonce: [SchnorrKeySize]byte(sig), Key: [SchnorrKeySize]byte(signer.PublicKey().Bytes()), Message: message}
	s := Secret(sig[SchnorrKeySize:])
	// An s of 0 comes up once in 2^256 draws: the caller's retry is another draw.
	if _, err := c.Signature(&s); err != nil {
		return Commitment{}, Secret{}, err
	}
	return c, s, nil
}

// Point returns Y. ErrCommitment.
func (c *Commitment) Point() (Point, error) {
	r, err := lift(c.Nonce)
	if err != nil {
		return Point{}, fmt.Errorf("%w: nonce", err)
	}
	p, err := lift(c.Key)
	if err != nil {
		return Point{}, fmt.Errorf("%w: key", err)
	}
	e := scalarOf(tagged("BIP0340/challenge", c.Nonce[:], c.Key[:], c.Message[:]))
	// All of it is public.
	y := new(secp256k1.Point).DoubleScalarMultBasepointVartime(new(secp256k1.Scalar), e, p)
	if y.Add(y, r); y.IsIdentity() == 1 {
		return Point{}, ErrCommitment
	}
	return pointOf(y), nil
}

// Signature returns the signature that s completes: ErrWrongSecret where s is not the
// point's, ErrCommitment. What is returned is good, whoever made the commitment.
func (c *Commitment) Signature(s *Secret) ([SchnorrSize]byte, error) {
	y, err := c.Point()
	if err != nil {
		return [SchnorrSize]byte{}, err
	}
	if !s.Opens(y) {
		return [SchnorrSize]byte{}, ErrWrongSecret
	}
	var sig [SchnorrSize]byte
	copy(sig[:], c.Nonce[:])
	copy(sig[SchnorrKeySize:], s[:])
	return sig, nil
}

// VerifySchnorr reports whether sig is key's over message, as BIP 340 has it.
func VerifySchnorr(key [SchnorrKeySize]byte, message [DigestSize]byte, sig [SchnorrSize]byte) bool {
	k, err := bitcoin.NewSchnorrPublicKey(key[:])
	return err == nil && k.Verify(message[:], sig[:])
}

// lift is the point with this x and an even y.
func lift(x [SchnorrKeySize]byte) (*secp256k1.Point, error) {
	p := Point{2}
	copy(p[1:], x[:])
	v, err := p.point()
	if err != nil {
		return nil, ErrCommitment
	}
	return v, nil
}
