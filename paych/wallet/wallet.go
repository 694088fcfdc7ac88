// Package wallet keeps secp256k1 keys (f1 addresses) and signs with them: in
// files of a directory, or in memory. Both satisfy paych.Wallet.
//
//	keys/                      0700
//	  f1abjxfbp274xpdqcpuaykwkfb43omjotacm2p3za.key   0600, one key
//	  f1….key
//
//	{"Version": 1, "Address": "f1…", "Network": "calibrationnet", "Genesis": "bafy…", "PrivateKey": "…"}
//
// A key belongs to one chain. A channel's address depends on its payer's key and
// nonce only, so that a voucher for play money on a development chain might be
// good on a real one; a directory with a key of another genesis is not opened.
//
// Files are not encrypted: whoever runs the node without a pass phrase at start
// has the key on disk in one form or other. They are refused where others could
// read them.
package wallet

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/filecoin-project/go-address"
	filcrypto "github.com/filecoin-project/go-state-types/crypto"
	"gitlab.com/yawning/secp256k1-voi/secec"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally/paych/adaptor"
)

// ErrNoKey: the wallet does not hold the key of this address.
var ErrNoKey = errors.New("paych/wallet: no such key")

// keySize of a private key in bytes.
const keySize = 32

// key is one private key with what is derived from it. It is handled by pointer,
// so that printing whoever holds it shows an address in memory.
type key struct {
	addr address.Address
	priv *secec.PrivateKey
}

// newKey derives the rest from a private key; an error says nothing of its
// bytes.
func newKey(raw []byte) (*key, error) {
	if len(raw) != keySize {
		return nil, fmt.Errorf("paych/wallet: private key of %d bytes, want %d", len(raw), keySize)
	}
	priv, err := secec.NewPrivateKey(raw)
	if err != nil {
		return nil, errors.New("paych/wallet: private key out of range")
	}
	addr, err := address.NewSecp256k1Address(priv.PublicKey().Bytes())
	if err != nil {
		return nil, fmt.Errorf("paych/wallet: address of a key: %w", err)
	}
	return &key{addr: addr, priv: priv}, nil
}

func generate() (*key, error) {
	priv, err := secec.GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("paych/wallet: make a key: %w", err)
	}
	return newKey(priv.Bytes())
}

// signOptions give r‖s‖v over a 32-byte digest; s is the lower one. The nonce is
// drawn from key, digest and fresh randomness together, in constant time.
var signOptions = &secec.ECDSAOptions{Encoding: secec.EncodingCompactRecoverable, RejectMalleable: true, Hash: crypto.SHA256}

func (k *key) sign(msg []byte) (*filcrypto.Signature, error) {
	digest := blake2b.Sum256(msg)
	data, err := k.priv.Sign(rand.Reader, digest[:], signOptions)
	if err != nil {
		return nil, fmt.Errorf("paych/wallet: sign: %w", err)
	}
	return &filcrypto.Signature{Type: filcrypto.SigTypeSecp256k1, Data: data}, nil
}

// ring is the keys of a wallet.
type ring struct {
	mu   sync.RWMutex // guards keys
	keys map[address.Address]*key
}

func (r *ring) get(a address.Address) (*key, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	k, ok := r.keys[a]
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNoKey, a)
	}
	return k, nil
}

// Local says that the keys are held here (paych.LocalWallet).
func (r *ring) Local() {}

// Has reports whether the wallet holds the key of a.
func (r *ring) Has(_ context.Context, a address.Address) (bool, error) {
	_, err := r.get(a)
	return err == nil, nil
}

// Sign signs the BLAKE2b-256 digest of msg with the key of a. ErrNoKey.
func (r *ring) Sign(ctx context.Context, a address.Address, msg []byte) (*filcrypto.Signature, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	k, err := r.get(a)
	if err != nil {
		return nil, err
	}
	return k.sign(msg)
}

// SignUnder signs the BLAKE2b-256 digest of msg with the key of a, encrypted under
// y, and returns the public key beside it (paych.PointWallet). Each call gives
// another signature. ErrNoKey.
func (r *ring) SignUnder(ctx context.Context, a address.Address, msg []byte, y adaptor.Point) (adaptor.Signature, adaptor.Point, error) {
	if err := ctx.Err(); err != nil {
		return adaptor.Signature{}, adaptor.Point{}, err
	}
	k, err := r.get(a)
	if err != nil {
		return adaptor.Signature{}, adaptor.Point{}, err
	}
	sig, err := adaptor.Encrypt(rand.Reader, k.priv, blake2b.Sum256(msg), y)
	if err != nil {
		return adaptor.Signature{}, adaptor.Point{}, fmt.Errorf("paych/wallet: sign under a point: %w", err)
	}
	return sig, adaptor.Point(k.priv.PublicKey().CompressedBytes()), nil
}

// List returns the addresses of all keys, in a fixed order.
func (r *ring) List(context.Context) ([]address.Address, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	list := make([]address.Address, 0, len(r.keys))
	for a := range r.keys {
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b address.Address) int { return bytes.Compare(a.Bytes(), b.Bytes()) })
	return list, nil
}

// Mem is a wallet in memory.
type Mem struct{ ring }

// NewMem returns a wallet in memory with the given private keys, which must be
// valid: it panics otherwise, since they are the program's own.
func NewMem(private ...[]byte) *Mem {
	m := &Mem{ring{keys: make(map[address.Address]*key)}}
	for _, raw := range private {
		k, err := newKey(raw)
		if err != nil {
			panic(err.Error())
		}
		m.keys[k.addr] = k
	}
	return m
}

// New makes a key and returns its address.
func (m *Mem) New(context.Context) (address.Address, error) {
	k, err := generate()
	if err != nil {
		return address.Undef, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys[k.addr] = k
	return k.addr, nil
}

// Import takes a key in and returns its address. The chain it was exported for
// is not looked at.
func (m *Mem) Import(_ context.Context, s Secret) (address.Address, error) {
	info, err := s.open()
	if err != nil {
		return address.Undef, err
	}
	k, err := newKey(info.PrivateKey)
	if err != nil {
		return address.Undef, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys[k.addr] = k
	return k.addr, nil
}

// Export returns the key of a. ErrNoKey.
func (m *Mem) Export(_ context.Context, a address.Address) (Secret, error) {
	k, err := m.get(a)
	if err != nil {
		return Secret{}, err
	}
	return seal(k, Chain{})
}

// String names the wallet and nothing in it.
func (m *Mem) String() string { return "wallet in memory" }
