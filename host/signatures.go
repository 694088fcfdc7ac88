package host

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/filecoin-project/go-address"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/adaptor"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/payments"
)

// ErrNoSigningKey: the wallet cannot keep the key that signatures are sold of.
var ErrNoSigningKey = errors.New("host: signatures are sold by a peer with a chain and a wallet of its own: set Config.Chain, and wallet = \"local\"")

// Where the address of the key lies that signatures are sold of. The key itself is in
// the wallet, as all keys of the chain are: backed up and exported as they are, and used
// for nothing else.
const (
	signingKeyKey          = "/host/signing-key"
	signingKeyVersion byte = 1
)

// signingWallet is a wallet that commits to signatures; those that keep their keys here
// do.
type signingWallet interface {
	New(ctx context.Context) (address.Address, error)
	Has(ctx context.Context, a address.Address) (bool, error)
	PublicKey(ctx context.Context, a address.Address) (adaptor.Point, error)
	Commit(ctx context.Context, a address.Address, message [adaptor.DigestSize]byte) (adaptor.Commitment, adaptor.Secret, error)
}

// curve is payments.Curve over package adaptor, and the one place where a point of a
// packet or a payment meets the curve.
type curve struct {
	store  *durable.Store
	wallet signingWallet // nil: nothing is sold

	mu  sync.Mutex // one caller makes the key; it is held over disk, and guards key
	key address.Address
}

var _ payments.Curve = (*curve)(nil)

func newCurve(store *durable.Store, w paych.Wallet) *curve {
	c := &curve{store: store}
	c.wallet, _ = w.(signingWallet)
	return c
}

// opensPoint reports whether a secret is that of a compressed point.
func opensPoint(y [forward.PointSize]byte, secret tally.Preimage) bool {
	s := adaptor.Secret(secret)
	return s.Opens(adaptor.Point(y))
}

// Opens implements payments.Curve.
func (*curve) Opens(y [forward.PointSize]byte, secret tally.Preimage) bool {
	return opensPoint(y, secret)
}

func commitmentOf(s *payments.Sale) adaptor.Commitment {
	return adaptor.Commitment{Nonce: s.Nonce, Key: s.Key, Message: s.Message}
}

// PointOf implements payments.Curve.
func (*curve) PointOf(s *payments.Sale) ([forward.PointSize]byte, error) {
	c := commitmentOf(s)
	return c.Point()
}

// Complete implements payments.Curve.
func (*curve) Complete(s *payments.Sale, secret tally.Preimage) ([adaptor.SchnorrSize]byte, error) {
	c, y := commitmentOf(s), adaptor.Secret(secret)
	sig, err := c.Signature(&y)
	if err == nil && !adaptor.VerifySchnorr(c.Key, c.Message, sig) {
		err = adaptor.ErrWrongSecret // no secret of its point can do that
	}
	return sig, err
}

// Key implements payments.Curve.
func (c *curve) Key(ctx context.Context) ([forward.PointSize]byte, error) {
	a, err := c.signingKey(ctx)
	if err != nil {
		return [forward.PointSize]byte{}, err
	}
	return c.wallet.PublicKey(ctx, a)
}

// Commit implements payments.Curve.
func (c *curve) Commit(ctx context.Context, message [32]byte) (payments.Sale, tally.Preimage, error) {
	a, err := c.signingKey(ctx)
	if err != nil {
		return payments.Sale{}, tally.Preimage{}, err
	}
	commitment, s, err := c.wallet.Commit(ctx, a, message)
	return payments.Sale{Nonce: commitment.Nonce, Key: commitment.Key, Message: commitment.Message}, tally.Preimage(s), err
}

// signingKey is the address of the key, which is made for the first that is sold. A crash
// between key and record leaves a key that nothing was signed with.
func (c *curve) signingKey(ctx context.Context) (address.Address, error) {
	if c.wallet == nil {
		return address.Undef, ErrNoSigningKey
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.key != address.Undef {
		return c.key, nil
	}
	rec, err := c.store.Get(ctx, signingKeyKey)
	switch {
	case errors.Is(err, durable.ErrNotFound):
		a, err := c.wallet.New(ctx)
		if err != nil {
			return address.Undef, fmt.Errorf("host: key to sign with: %w", err)
		}
		var b durable.Batch
		b.Put(signingKeyKey, durable.Seal(nil, signingKeyKey, signingKeyVersion, a.Bytes()))
		if err := c.store.Commit(ctx, &b); err != nil {
			return address.Undef, err
		}
		c.key = a
		return a, nil
	case err != nil:
		return address.Undef, err
	}
	_, raw, err := durable.Unseal(signingKeyKey, signingKeyVersion, rec)
	if err != nil {
		return address.Undef, err
	}
	a, err := address.NewFromBytes(raw)
	if err != nil {
		return address.Undef, fmt.Errorf("host: key to sign with: %w", err)
	}
	// Another key would sign in the name of none that anybody knows.
	if has, err := c.wallet.Has(ctx, a); err != nil || !has {
		return address.Undef, errors.Join(fmt.Errorf("host: the wallet has lost the key %s that signatures are sold of; import it from a backup", a), err)
	}
	c.key = a
	return a, nil
}
