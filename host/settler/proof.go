package settler

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally/internal/durable"
)

const (
	keyProof     = "/settle/proof"
	proofVersion = 1
)

// proof is our payout address' signature over the text that ties it to our peer id,
// by the hash of that text. It is kept on disk: the wallet may be a node's, and
// sessions should begin while that is away.
type proof struct {
	text      [32]byte
	signature []byte
}

func loadProof(ctx context.Context, store *durable.Store) (proof, error) {
	rec, err := store.Get(ctx, keyProof)
	if errors.Is(err, durable.ErrNotFound) {
		return proof{}, nil
	}
	if err != nil {
		return proof{}, err
	}
	_, payload, err := durable.Unseal(keyProof, proofVersion, rec)
	if err != nil {
		return proof{}, err
	}
	if len(payload) < 32 {
		return proof{}, fmt.Errorf("%w: proof of %d bytes", errRecord, len(payload))
	}
	p := proof{signature: bytes.Clone(payload[32:])}
	copy(p.text[:], payload)
	return p, nil
}

// prove returns the signature over text, which is made once.
func (s *Settler) prove(ctx context.Context, text []byte) ([]byte, error) {
	hash := blake2b.Sum256(text)
	s.mu.Lock()
	have := s.proof
	s.mu.Unlock()
	if have.text == hash && len(have.signature) != 0 {
		return have.signature, nil
	}
	sig, err := s.wallet.Sign(ctx, s.self, text)
	if err != nil {
		return nil, fmt.Errorf("settler: sign payout address: %w", err)
	}
	made := proof{text: hash}
	if made.signature, err = sig.MarshalBinary(); err != nil {
		return nil, fmt.Errorf("settler: sign payout address: %w", err)
	}
	var b durable.Batch
	b.Put(keyProof, durable.Seal(nil, keyProof, proofVersion, append(made.text[:], made.signature...)))
	if err := s.store.Commit(context.WithoutCancel(s.ctx), &b); err != nil {
		return nil, fmt.Errorf("settler: save proof of the payout address: %w", err)
	}
	s.mu.Lock()
	s.proof = made
	s.mu.Unlock()
	return made.signature, nil
}
