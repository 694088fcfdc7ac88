// Package envelope seals the end-to-end part of a packet as PSK2 and STREAM do,
// derives conditions from it, and guards against reflection.
//
//	envelope    IV 12 | tag 16 | ciphertext      the tag comes first
//	cipher      AES-256-GCM, no associated data
//	key         HMAC-SHA256(psk, encryption label)
//	fulfilment  HMAC-SHA256(HMAC-SHA256(psk, fulfilment label), envelope)
//	condition   SHA-256(fulfilment)
//
// Both endpoints use the same keys in both directions. So the IV must be random
// (two counters would meet), one secret may seal no more than MaxSealed packets,
// and an envelope of ours that comes back to us opens: see Guard. Our own suite
// has neither weakness; this one exists for peers that speak nothing else.
package envelope

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"log/slog"

	"github.com/tallystick/tally/paystream/compat/ilp"
)

// The parts of an envelope, in bytes.
const (
	IVSize   = 12
	tagSize  = 16
	Overhead = IVSize + tagSize

	// MaxPlain is the longest plain text that fits a packet.
	MaxPlain = ilp.MaxData - Overhead

	// MaxSealed is how many envelopes one endpoint may seal under one secret: with
	// as many from the other one, the chance of two equal random IVs is 2^−35.
	MaxSealed = 1 << 30
)

var (
	// ErrOpen: the envelope is damaged or was sealed under another secret.
	ErrOpen = errors.New("envelope: does not open: damaged, or sealed under another secret")
	// ErrTooLong: the plain text does not fit a packet.
	ErrTooLong = errors.New("envelope: plain text does not fit a packet")
)

// SecretSize is the length of a shared secret.
const SecretSize = 32

// Secret is shared by the two endpoints. It prints redacted.
type Secret [SecretSize]byte

// String hides the secret.
func (s Secret) String() string { return "<secret>" }

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the secret from structured logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Derive returns HMAC(HMAC(s, label), token): the shared secret of a token, which
// a server need not keep.
func (s Secret) Derive(label string, token []byte) Secret {
	key := mac(s[:], []byte(label))
	return mac(key[:], token)
}

// Keys are the two keys of a secret, with the cipher ready to use. They are safe
// for use at the same time.
type Keys struct {
	aead   cipher.AEAD
	fulfil [sha256.Size]byte
}

// NewKeys derives the keys of a secret under a suite's two labels.
func NewKeys(secret Secret, encryption, fulfilment string) *Keys {
	key := mac(secret[:], []byte(encryption))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic("envelope: AES of a 32-byte key: " + err.Error())
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("envelope: GCM of AES: " + err.Error())
	}
	return &Keys{aead: aead, fulfil: mac(secret[:], []byte(fulfilment))}
}

// Seal appends the envelope of plain. The IV must be random and used once.
func (k *Keys) Seal(dst []byte, iv [IVSize]byte, plain []byte) ([]byte, error) {
	if len(plain) > MaxPlain {
		return nil, ErrTooLong
	}
	at := len(dst)
	dst = append(dst, iv[:]...)
	dst = append(dst, make([]byte, tagSize)...)
	dst = k.aead.Seal(dst, iv[:], plain, nil) // … ciphertext | tag
	end := len(dst) - tagSize
	copy(dst[at+IVSize:at+Overhead], dst[end:])
	return dst[:end], nil
}

// Open returns the plain text of an envelope, in memory of its own.
func (k *Keys) Open(envelope []byte) ([]byte, error) {
	if len(envelope) < Overhead || len(envelope) > ilp.MaxData {
		return nil, ErrOpen
	}
	buf := make([]byte, 0, len(envelope)-IVSize)
	buf = append(buf, envelope[Overhead:]...)
	buf = append(buf, envelope[IVSize:Overhead]...)
	plain, err := k.aead.Open(buf[:0], envelope[:IVSize], buf, nil)
	if err != nil {
		return nil, ErrOpen
	}
	return plain, nil
}

// Fulfilment returns what opens the condition of a packet that carries the
// envelope.
func (k *Keys) Fulfilment(envelope []byte) ilp.Fulfilment {
	return mac(k.fulfil[:], envelope)
}

func mac(key, message []byte) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, key)
	h.Write(message)
	h.Sum(sum[:0])
	return sum
}
