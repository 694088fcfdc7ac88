package ilp

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"log/slog"
)

// HashSize is the length of a condition and of a fulfilment.
const HashSize = 32

// Condition is SHA-256 of a Fulfilment.
type Condition [HashSize]byte

// String returns the condition in hex.
func (c Condition) String() string { return hex.EncodeToString(c[:]) }

// Fulfilment opens a Condition. It is money until it is revealed, so it prints
// redacted.
type Fulfilment [HashSize]byte

// Condition returns the condition that f opens.
func (f Fulfilment) Condition() Condition { return sha256.Sum256(f[:]) }

// Opens reports whether f is the preimage of c, in constant time.
func (f Fulfilment) Opens(c Condition) bool {
	got := f.Condition()
	return subtle.ConstantTimeCompare(got[:], c[:]) == 1
}

// String hides the secret.
func (f Fulfilment) String() string { return "<fulfilment>" }

// GoString hides the secret from %#v.
func (f Fulfilment) GoString() string { return f.String() }

// LogValue hides the secret from structured logs.
func (f Fulfilment) LogValue() slog.Value { return slog.StringValue(f.String()) }
