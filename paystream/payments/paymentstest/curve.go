package paymentstest

import (
	"context"
	"errors"

	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// Curve is payments.Curve without one: a hash stands for a point. Signatures of it are
// worth nothing, but it is as strict.
type Curve struct {
	// Key32 is the x of what signs.
	Key32 [32]byte
	// Drawn counts the nonces.
	Drawn byte
}

var _ payments.Curve = (*Curve)(nil)

func secretOf(s *payments.Sale) tally.Preimage {
	return blake2b.Sum256(append(append(append([]byte{1}, s.Nonce[:]...), s.Key[:]...), s.Message[:]...))
}

func pointOf(secret tally.Preimage) (y [33]byte) {
	h := secret.Hashlock()
	y[0] = 2 + secret[0]&1
	copy(y[1:], h[:])
	return y
}

// Opens implements payments.Curve.
func (*Curve) Opens(y [33]byte, secret tally.Preimage) bool { return pointOf(secret) == y }

// PointOf implements payments.Curve.
func (*Curve) PointOf(s *payments.Sale) ([33]byte, error) {
	if s.Nonce == [32]byte{} {
		return [33]byte{}, errors.New("paymentstest: no nonce")
	}
	return pointOf(secretOf(s)), nil
}

// Complete implements payments.Curve.
func (c *Curve) Complete(s *payments.Sale, secret tally.Preimage) (sig [64]byte, err error) {
	if y, err := c.PointOf(s); err != nil || !c.Opens(y, secret) {
		return sig, errors.New("paymentstest: not the secret of the sale")
	}
	copy(sig[:], s.Nonce[:])
	copy(sig[32:], secret[:])
	return sig, nil
}

// Key implements payments.Curve.
func (c *Curve) Key(context.Context) (y [33]byte, err error) {
	y[0] = 2
	copy(y[1:], c.Key32[:])
	return y, nil
}

// Commit implements payments.Curve.
func (c *Curve) Commit(_ context.Context, message [32]byte) (payments.Sale, tally.Preimage, error) {
	c.Drawn++
	s := payments.Sale{Nonce: [32]byte{c.Drawn}, Key: c.Key32, Message: message}
	return s, secretOf(&s), nil
}
