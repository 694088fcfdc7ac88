package wallet

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/filecoin-project/go-address"

	"github.com/tallystick/tally/paych/adaptor"
)

// PublicKey returns the public key of a, compressed. Its x is the key of BIP 340
// signatures. ErrNoKey.
func (r *ring) PublicKey(_ context.Context, a address.Address) (adaptor.Point, error) {
	k, err := r.get(a)
	if err != nil {
		return adaptor.Point{}, err
	}
	return adaptor.Point(k.priv.PublicKey().CompressedBytes()), nil
}

// Commit signs message with the key of a, as BIP 340 has it, and gives the signature
// apart: adaptor.Commit. The nonce is forgotten; each call draws another. ErrNoKey.
func (r *ring) Commit(ctx context.Context, a address.Address, message [adaptor.DigestSize]byte) (adaptor.Commitment, adaptor.Secret, error) {
	if err := ctx.Err(); err != nil {
		return adaptor.Commitment{}, adaptor.Secret{}, err
	}
	k, err := r.get(a)
	if err != nil {
		return adaptor.Commitment{}, adaptor.Secret{}, err
	}
	c, s, err := adaptor.Commit(rand.Reader, k.priv, message)
	if err != nil {
		return c, s, fmt.Errorf("paych/wallet: %w", err)
	}
	return c, s, nil
}
