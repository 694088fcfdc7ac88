package adaptor

import (
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"gitlab.com/yawning/secp256k1-voi"
)

// Sizes in bytes.
const (
	PointSize  = secp256k1.CompressedPointSize
	SecretSize = secp256k1.ScalarSize
)

// ErrPoint: the bytes are not a point of the curve, or are the point at infinity.
var ErrPoint = errors.New("paych/adaptor: not a point of secp256k1")

// Point is a compressed point that is not the one at infinity: Y, or a public key.
// The zero value is none.
type Point [PointSize]byte

// String returns the point in hex.
func (p Point) String() string { return hex.EncodeToString(p[:]) }

// ParsePoint checks that b is a compressed point.
func ParsePoint(b []byte) (Point, error) {
	if len(b) != PointSize {
		return Point{}, fmt.Errorf("%w: %d bytes, want %d", ErrPoint, len(b), PointSize)
	}
	p := Point(b)
	if _, err := p.point(); err != nil {
		return Point{}, err
	}
	return p, nil
}

func (p *Point) point() (*secp256k1.Point, error) {
	v, err := new(secp256k1.Point).SetCompressedBytes(p[:])
	if err != nil || v.IsIdentity() == 1 {
		return nil, ErrPoint
	}
	return v, nil
}

// Uncompressed returns the 65 bytes that an address is derived from. ErrPoint.
func (p *Point) Uncompressed() ([]byte, error) {
	v, err := p.point()
	if err != nil {
		return nil, err
	}
	return v.UncompressedBytes(), nil
}

func pointOf(v *secp256k1.Point) Point { return Point(v.CompressedBytes()) }

// Secret is y, which opens a point lock. It is money until it is revealed, so it
// prints redacted; Hex is the explicit way to show it.
type Secret [SecretSize]byte

// ErrSecret: the bytes are not a scalar between 1 and the order of the curve.
var ErrSecret = errors.New("paych/adaptor: secret is out of range")

// NewSecret draws a secret from rand, which is crypto/rand's Reader outside tests.
func NewSecret(rand io.Reader) (Secret, error) {
	for {
		var s Secret
		if _, err := io.ReadFull(rand, s[:]); err != nil {
			return Secret{}, fmt.Errorf("paych/adaptor: draw a secret: %w", err)
		}
		if _, err := s.scalar(); err == nil {
			return s, nil
		}
	}
}

// Point returns y·G. ErrSecret.
func (s *Secret) Point() (Point, error) {
	y, err := s.scalar()
	if err != nil {
		return Point{}, err
	}
	return pointOf(new(secp256k1.Point).ScalarBaseMult(y)), nil
}

// Opens reports whether s is the secret of p.
func (s *Secret) Opens(p Point) bool {
	got, err := s.Point()
	return err == nil && subtle.ConstantTimeCompare(got[:], p[:]) == 1
}

func (s *Secret) scalar() (*secp256k1.Scalar, error) {
	y, err := secp256k1.NewScalarFromCanonicalBytes((*[SecretSize]byte)(s))
	if err != nil || y.IsZero() == 1 {
		return nil, ErrSecret
	}
	return y, nil
}

// Hex returns the secret in hex.
func (s Secret) Hex() string { return hex.EncodeToString(s[:]) }

// String hides the secret.
func (s Secret) String() string { return "<secret>" }

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the secret from structured logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
