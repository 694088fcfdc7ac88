package tally

import (
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"log/slog"

	"golang.org/x/crypto/blake2b"
)

// HashlockSize is the length in bytes of a Hashlock and of a Preimage.
const HashlockSize = 32

// Hashlock is BLAKE2b-256 of a 32-byte Preimage. It is the only digest in use,
// because the Filecoin payment-channel actor checks no other one and no hop can
// turn one digest into another.
type Hashlock [HashlockSize]byte

// String returns the lock in hex.
func (h Hashlock) String() string { return hex.EncodeToString(h[:]) }

// ParseHashlock reads the hex form of a lock.
func ParseHashlock(s string) (Hashlock, error) {
	var h Hashlock
	if err := parseHex(h[:], s); err != nil {
		return Hashlock{}, fmt.Errorf("tally: hashlock: %w", err)
	}
	return h, nil
}

// Preimage opens a Hashlock. It is money until it is revealed, so it prints
// redacted; Hex is the explicit way to show it.
type Preimage [HashlockSize]byte

// Hashlock returns the lock that p opens.
func (p Preimage) Hashlock() Hashlock { return blake2b.Sum256(p[:]) }

// Opens reports whether p is the preimage of h, in constant time.
func (p Preimage) Opens(h Hashlock) bool {
	got := p.Hashlock()
	return subtle.ConstantTimeCompare(got[:], h[:]) == 1
}

// Hex returns the secret in hex.
func (p Preimage) Hex() string { return hex.EncodeToString(p[:]) }

// String hides the secret.
func (p Preimage) String() string { return "<preimage>" }

// LogValue hides the secret from structured logs.
func (p Preimage) LogValue() slog.Value { return slog.StringValue(p.String()) }

// ParsePreimage reads the hex form of a preimage.
func ParsePreimage(s string) (Preimage, error) {
	var p Preimage
	if err := parseHex(p[:], s); err != nil {
		return Preimage{}, fmt.Errorf("tally: preimage: %w", err)
	}
	return p, nil
}

// parseHex fills dst from s, whose length must fit exactly.
func parseHex(dst []byte, s string) error {
	if len(s) != hex.EncodedLen(len(dst)) {
		return fmt.Errorf("want %d hex digits, got %d", hex.EncodedLen(len(dst)), len(s))
	}
	_, err := hex.Decode(dst, []byte(s))
	return err
}
