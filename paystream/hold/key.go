package hold

import (
	"crypto/ecdh"
	"crypto/sha512"
	"errors"
	"fmt"
	"math/big"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// ErrKeyType: the payee's peer id is of a key that nothing can be sealed to. Only
// Ed25519 keys have a form for that, and such an id contains the key.
var ErrKeyType = errors.New("hold: a box can be sealed to an Ed25519 peer id only, which begins with 12D3; " +
	"ask the payee for a hash of its own instead")

// sealKeyOf is the X25519 form of the Ed25519 key that a peer id contains. It is
// the only key of a payee that a payer knows while the payee is offline.
func sealKeyOf(p peer.ID) (*ecdh.PublicKey, error) {
	pub, err := p.ExtractPublicKey()
	if err != nil || int(pub.Type()) != crypto.Ed25519 {
		return nil, fmt.Errorf("%w: %s", ErrKeyType, p)
	}
	raw, err := pub.Raw()
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrKeyType, p, err)
	}
	u, err := montgomery(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrKeyType, p, err)
	}
	return ecdh.X25519().NewPublicKey(u)
}

// montgomery is RFC 7748's map from an Edwards point, of which the sign bit and y
// are given, to u = (1 + y) / (1 − y) modulo 2^255 − 19. Everything here is public.
func montgomery(edwards []byte) ([]byte, error) {
	if len(edwards) != 32 {
		return nil, fmt.Errorf("key of %d bytes", len(edwards))
	}
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	y := new(big.Int).SetBytes(reversed(edwards, 0x7f))
	one := big.NewInt(1)
	below := new(big.Int).Sub(one, y)
	below.Mod(below, p)
	if y.Cmp(p) >= 0 || below.Sign() == 0 {
		return nil, errors.New("not a key")
	}
	u := new(big.Int).Add(one, y)
	u.Mul(u, below.ModInverse(below, p)).Mod(u, p)
	return reversed(u.FillBytes(make([]byte, 32)), 0xff), nil
}

// reversed turns 32 bytes round; of what was the last one, mask is kept.
func reversed(b []byte, mask byte) []byte {
	out := make([]byte, 32)
	for i := range out {
		out[i] = b[31-i]
	}
	if mask != 0xff {
		out[0] &= mask
	}
	return out
}

// Key opens what was sealed to a peer id.
type Key struct{ priv *ecdh.PrivateKey }

// NewKey returns the key of a node's identity. ErrKeyType: then nothing can be
// sealed to it either.
func NewKey(identity crypto.PrivKey) (*Key, error) {
	if int(identity.Type()) != crypto.Ed25519 {
		return nil, fmt.Errorf("%w: ours is %s", ErrKeyType, identity.Type())
	}
	raw, err := identity.Raw()
	if err != nil || len(raw) < 32 {
		return nil, fmt.Errorf("hold: read our key: %w", err)
	}
	h := sha512.Sum512(raw[:32]) // the scalar of RFC 8032; X25519 clamps it itself
	priv, err := ecdh.X25519().NewPrivateKey(h[:32])
	if err != nil {
		return nil, fmt.Errorf("hold: read our key: %w", err)
	}
	return &Key{priv}, nil
}

// String hides the key.
func (k *Key) String() string { return "<key>" }

// GoString hides the key from %#v.
func (k *Key) GoString() string { return k.String() }
