// Package paychtest has the twins that payment channels are tested on: a chain
// and a wallet in memory.
package paychtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/crypto"
	"gitlab.com/yawning/secp256k1-voi/secec"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/adaptor"
)

// Wallet holds keys that follow from its name, so that a test is the same in
// every run. They are worth nothing.
type Wallet struct {
	name string

	// mu guards the fields below.
	mu   sync.Mutex
	keys map[address.Address]*secp256k1.PrivateKey
	list []address.Address
	fail error
	// under counts the signatures under points, so that no two are alike.
	under uint64
}

var (
	_ paych.LocalWallet = (*Wallet)(nil)
	_ paych.PointWallet = (*Wallet)(nil)
)

// Plain is a wallet without the ability to sign under points, as a node's is.
type Plain struct{ paych.Wallet }

// NewWallet returns an empty wallet.
func NewWallet(name string) *Wallet {
	return &Wallet{name: name, keys: make(map[address.Address]*secp256k1.PrivateKey)}
}

// Local implements paych.LocalWallet.
func (*Wallet) Local() {}

// New implements paych.Wallet.
func (w *Wallet) New(context.Context) (address.Address, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	seed := blake2b.Sum256(binary.BigEndian.AppendUint64([]byte(w.name), uint64(len(w.list))))
	key := secp256k1.PrivKeyFromBytes(seed[:])
	a, err := address.NewSecp256k1Address(key.PubKey().SerializeUncompressed())
	if err != nil {
		return address.Undef, err
	}
	w.keys[a] = key
	w.list = append(w.list, a)
	return a, nil
}

// MustNew is New for tests.
func (w *Wallet) MustNew() address.Address {
	a, err := w.New(context.Background())
	if err != nil {
		panic(err)
	}
	return a
}

// Has implements paych.Wallet.
func (w *Wallet) Has(_ context.Context, a address.Address) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.keys[a]
	return ok, nil
}

// List implements paych.Wallet.
func (w *Wallet) List(context.Context) ([]address.Address, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.list), nil
}

// Fail makes Sign and SignUnder return err until it is called with nil.
func (w *Wallet) Fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = err
}

// Sign implements paych.Wallet.
func (w *Wallet) Sign(_ context.Context, a address.Address, msg []byte) (*crypto.Signature, error) {
	w.mu.Lock()
	key, err := w.keys[a], w.fail
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if key == nil {
		return nil, fmt.Errorf("paychtest: no key of %s", a)
	}
	digest := blake2b.Sum256(msg)
	compact := ecdsa.SignCompact(key, digest[:], false)
	return &crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: append(compact[1:], compact[0]-27)}, nil
}

// SignUnder implements paych.PointWallet. Each call gives another signature.
func (w *Wallet) SignUnder(_ context.Context, a address.Address, msg []byte, y adaptor.Point) (adaptor.Signature, adaptor.Point, error) {
	w.mu.Lock()
	key, err := w.keys[a], w.fail
	w.under++
	fresh := blake2b.Sum256(binary.BigEndian.AppendUint64([]byte(w.name), w.under))
	w.mu.Unlock()
	if err == nil && key == nil {
		err = fmt.Errorf("paychtest: no key of %s", a)
	}
	if err != nil {
		return adaptor.Signature{}, adaptor.Point{}, err
	}
	signer, err := secec.NewPrivateKey(key.Serialize())
	if err != nil {
		return adaptor.Signature{}, adaptor.Point{}, err
	}
	sig, err := adaptor.Encrypt(bytes.NewReader(fresh[:]), signer, blake2b.Sum256(msg), y)
	return sig, adaptor.Point(signer.PublicKey().CompressedBytes()), err
}

// Under is how often SignUnder was called.
func (w *Wallet) Under() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.under
}
