package wire

import (
	"errors"
	"fmt"

	"github.com/filecoin-project/go-address"
	gocrypto "github.com/filecoin-project/go-crypto"
	"github.com/filecoin-project/go-state-types/crypto"
	"golang.org/x/crypto/blake2b"
)

// ErrSignature is wrapped by what is said of a signature that is not its
// signer's.
var ErrSignature = errors.New("wire: bad signature")

// Sign signs the BLAKE2b-256 digest of data with a secp256k1 key.
func Sign(key, data []byte) (*crypto.Signature, error) {
	digest := blake2b.Sum256(data)
	sig, err := gocrypto.Sign(key, digest[:])
	if err != nil {
		return nil, fmt.Errorf("wire: sign: %w", err)
	}
	return &crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: sig}, nil
}

// KeyAddress is the f1 address of a secp256k1 key.
func KeyAddress(key []byte) (address.Address, error) {
	return address.NewSecp256k1Address(gocrypto.PublicKey(key))
}

// Verify reports whether sig over data is that of signer, an f1 address. BLS
// needs a library in C and is left to real nodes.
func Verify(signer address.Address, sig crypto.Signature, data []byte) error {
	if signer.Protocol() != address.SECP256K1 || sig.Type != crypto.SigTypeSecp256k1 {
		return fmt.Errorf("%w: only secp256k1 keys (f1) are checked here, not those of %s", ErrSignature, signer)
	}
	digest := blake2b.Sum256(data)
	pub, err := gocrypto.EcRecover(digest[:], sig.Data)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSignature, err)
	}
	a, err := address.NewSecp256k1Address(pub)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSignature, err)
	}
	if a != signer {
		return fmt.Errorf("%w: it is of %s, not of %s", ErrSignature, a, signer)
	}
	return nil
}

// Verify reports whether the message is signed by its sender.
func (s *SignedMessage) Verify() error {
	c, err := s.Message.Cid()
	if err != nil {
		return err
	}
	return Verify(s.Message.From, s.Signature, c.Bytes())
}
