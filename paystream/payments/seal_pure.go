package payments

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/tallystick/tally"
)

// PartData is what the payer tells the payee with a part, sealed so that no hop
// can read or change it.
type PartData struct {
	// Total is what all parts have to sum up to.
	Total tally.Amount
	// Amount is what has to arrive of this part. A hop that takes more than its
	// fee is seen by it.
	Amount tally.Amount
	Number uint64
}

// The sealed data of a part: version, and three numbers under AES-256-GCM.
//
//	 0         1        9        17       25        41
//	┌─────────┬────────┬────────┬────────┬─────────┐
//	│ version │ total  │ amount │ number │ tag     │
//	└─────────┴────────┴────────┴────────┴─────────┘
const (
	sealVersion  byte = 1
	plainSize         = 3 * 8
	tagSize           = 16
	PartDataSize      = 1 + plainSize + tagSize
)

// ErrSealed: the data of a part is not of whoever has the payment secret, or is of
// another part.
var ErrSealed = errors.New("payments: part data does not authenticate")

// sealNonce is for keys that encrypt one message: the key has the part id in it,
// and a payer seals one plaintext for each.
var sealNonce [12]byte

// partAEAD is the cipher of one part: HKDF-SHA256(secret, info = label ‖ hash ‖ id).
func partAEAD(s *Secret, h tally.Hashlock, id PartID) cipher.AEAD {
	info := make([]byte, 0, 64)
	info = append(info, "tally part 1"...)
	info = append(info, h[:]...)
	info = append(info, id[:]...)
	raw, err := hkdf.Key(sha256.New, s[:], nil, string(info), 32)
	if err != nil {
		panic("payments: HKDF of 32 bytes: " + err.Error())
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		panic("payments: AES with 32 bytes: " + err.Error())
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("payments: GCM: " + err.Error())
	}
	return aead
}

// SealPart seals d for the payee.
func SealPart(s *Secret, h tally.Hashlock, id PartID, d PartData) []byte {
	plain := appendUint(make([]byte, 0, plainSize), uint64(d.Total), uint64(d.Amount), d.Number)
	dst := append(make([]byte, 0, PartDataSize), sealVersion)
	return partAEAD(s, h, id).Seal(dst, sealNonce[:], plain, []byte{sealVersion})
}

// OpenPart reads what SealPart made with the same secret, hash and id.
func OpenPart(s *Secret, h tally.Hashlock, id PartID, data []byte) (PartData, error) {
	if len(data) != PartDataSize || data[0] != sealVersion {
		return PartData{}, ErrSealed
	}
	var plain [plainSize]byte
	b, err := partAEAD(s, h, id).Open(plain[:0], sealNonce[:], data[1:], data[:1])
	if err != nil {
		return PartData{}, ErrSealed
	}
	n := func(i int) uint64 { return binary.BigEndian.Uint64(b[8*i:]) }
	return PartData{Total: tally.Amount(n(0)), Amount: tally.Amount(n(1)), Number: n(2)}, nil
}
