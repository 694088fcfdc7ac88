// Package signer is the curve under payments: it joins package adaptor to what
// paystream/payments sells and buys, and keeps the key whose signatures are sold.
//
//	payments ── Commit ──▶ Curve ──▶ the wallet's key ──▶ nonce, s
//	         ── PointOf ─▶   │
//	         ── Complete ▶   └────▶ adaptor.Commitment ──▶ a signature, verified
//
// The key is one of the wallet, made for this and used for nothing else: it is exported
// and backed up as all keys of the chain are, and the store has its address.
package signer

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
	"github.com/tallystick/tally/paystream/payments"
)

// ErrNoKey: the wallet cannot keep the key that signatures are sold of.
var ErrNoKey error = &payments.Error{
	Code: payments.CodeInvalid, Reason: "signatures are sold by a peer with a chain, and a wallet of its own", Remedy: "start it with --chain URL or --dev, and wallet = \"local\"",
}

// Where the address of the key lies.
const (
	keyRecord       = "/host/signing-key"
	keyVersion byte = 1
)

// Wallet commits to signatures; those of package wallet, which keep their keys here, do.
type Wallet interface {
	New(ctx context.Context) (address.Address, error)
	Has(ctx context.Context, a address.Address) (bool, error)
	PublicKey(ctx context.Context, a address.Address) (adaptor.Point, error)
	Commit(ctx context.Context, a address.Address, message [adaptor.DigestSize]byte) (adaptor.Commitment, adaptor.Secret, error)
}

// Curve is payments.Curve.
type Curve struct {
	store  *durable.Store
	wallet Wallet // nil: nothing is sold

	mu  sync.Mutex // one caller makes the key. Held over disk, once in a peer's life; guards key
	key address.Address
}

var _ payments.Curve = (*Curve)(nil)

// New returns a curve whose key is in w, where that is a Wallet; else it buys only.
func New(store *durable.Store, w paych.Wallet) *Curve {
	c := &Curve{store: store}
	c.wallet, _ = w.(Wallet)
	return c
}

// Opens reports whether a secret is that of a compressed point.
func Opens(y [adaptor.PointSize]byte, secret tally.Preimage) bool {
	s := adaptor.Secret(secret)
	return s.Opens(adaptor.Point(y))
}

// PointOf returns the point whose secret completes what is sold.
func PointOf(s *payments.Sale) ([adaptor.PointSize]byte, error) {
	c := commitmentOf(s)
	return c.Point()
}

// Complete returns the signature that secret completes, and has verified it.
func Complete(s *payments.Sale, secret tally.Preimage) ([adaptor.SchnorrSize]byte, error) {
	c, y := commitmentOf(s), adaptor.Secret(secret)
	sig, err := c.Signature(&y)
	if err == nil && !adaptor.VerifySchnorr(c.Key, c.Message, sig) {
		err = adaptor.ErrWrongSecret // no secret of its point can do that
	}
	return sig, err
}

func commitmentOf(s *payments.Sale) adaptor.Commitment {
	return adaptor.Commitment{Nonce: s.Nonce, Key: s.Key, Message: s.Message}
}

// Opens implements payments.Curve.
func (*Curve) Opens(y [adaptor.PointSize]byte, secret tally.Preimage) bool { return Opens(y, secret) }

// PointOf implements payments.Curve.
func (*Curve) PointOf(s *payments.Sale) ([adaptor.PointSize]byte, error) { return PointOf(s) }

// Complete implements payments.Curve.
func (*Curve) Complete(s *payments.Sale, secret tally.Preimage) ([adaptor.SchnorrSize]byte, error) {
	return Complete(s, secret)
}

// Key implements payments.Curve.
func (c *Curve) Key(ctx context.Context) ([adaptor.PointSize]byte, error) {
	a, err := c.address(ctx)
	if err != nil {
		return [adaptor.PointSize]byte{}, err
	}
	return c.wallet.PublicKey(ctx, a)
}

// Commit implements payments.Curve.
func (c *Curve) Commit(ctx context.Context, message [adaptor.DigestSize]byte) (payments.Sale, tally.Preimage, error) {
	a, err := c.address(ctx)
	if err != nil {
		return payments.Sale{}, tally.Preimage{}, err
	}
	commitment, s, err := c.wallet.Commit(ctx, a, message)
	return payments.Sale{Nonce: commitment.Nonce, Key: commitment.Key, Message: commitment.Message}, tally.Preimage(s), err
}

// address is that of the key, which is made for the first who asks. A crash between key
// and record leaves a key that nothing was signed with.
func (c *Curve) address(ctx context.Context) (address.Address, error) {
	if c.wallet == nil {
		return address.Undef, ErrNoKey
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.key != address.Undef {
		return c.key, nil
	}
	rec, err := c.store.Get(ctx, keyRecord)
	switch {
	case errors.Is(err, durable.ErrNotFound):
		a, err := c.wallet.New(ctx)
		if err != nil {
			return address.Undef, fmt.Errorf("signer: make a key: %w", err)
		}
		var b durable.Batch
		b.Put(keyRecord, durable.Seal(nil, keyRecord, keyVersion, a.Bytes()))
		if err := c.store.Commit(ctx, &b); err != nil {
			return address.Undef, err
		}
		c.key = a
		return a, nil
	case err != nil:
		return address.Undef, err
	}
	_, raw, err := durable.Unseal(keyRecord, keyVersion, rec)
	if err != nil {
		return address.Undef, err
	}
	a, err := address.NewFromBytes(raw)
	if err != nil {
		return address.Undef, fmt.Errorf("signer: address of the key: %w", err)
	}
	// Another key would sign in the name of nobody whom buyers know.
	if has, err := c.wallet.Has(ctx, a); err != nil || !has {
		return address.Undef, errors.Join(fmt.Errorf("signer: the wallet has no key %s any more, whose signatures are sold; import it from a backup", a), err)
	}
	c.key = a
	return a, nil
}
