package hold

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// ID names a hold: 16 random bytes of the payer. It is the part id of the packet
// that binds the payer's money at the holder.
type ID = payments.PartID

// ParseID reads the hex form of an id.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != hex.EncodedLen(len(id)) {
		return ID{}, fmt.Errorf("hold: id: want %d hex digits, got %d", hex.EncodedLen(len(id)), len(s))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("hold: id: %w", err)
	}
	return id, nil
}

// The sealed box: the payer's one-time key, and what only the payee reads. Its size
// tells nothing of the memo.
//
//	 0         1        33         65       73        81     82      210   226
//	┌─────────┬────────┬──────────┬────────┬─────────┬──────┬───────┬─────┐
//	│ version │ key    │ preimage │ amount │ expires │ n    │ memo  │ tag │
//	└─────────┴────────┴──────────┴────────┴─────────┴──────┴───────┴─────┘
//	                    AES-256-GCM, nonce 12 × 00, the version as associated data
//
//	key   HKDF-SHA256(X25519(one-time key, payee), no salt, "tally hold box 1" ‖
//	      one-time key ‖ payee's key ‖ id ‖ hash ‖ holder) → 32
const (
	boxVersion byte = 1
	// MaxMemo bounds what the payer tells the payee beside the amount, in bytes.
	MaxMemo   = 128
	boxKey    = 32
	boxPlain  = tally.HashlockSize + 8 + 8 + 1 + MaxMemo
	boxTag    = 16
	BoxSize   = 1 + boxKey + boxPlain + boxTag
	maxPeerID = 64
)

// ErrBox: the box is not for us, or is not of this hold, hash and holder.
var ErrBox = errors.New("hold: box does not open: it is for another payee, or not of this hold")

// Bound is what a box is bound to, and what everybody may know.
type Bound struct {
	ID     ID
	Hash   tally.Hashlock
	Holder peer.ID
}

// Sealed is what the payee alone reads.
type Sealed struct {
	Preimage tally.Preimage
	// Amount is what has to be offered at the least before the preimage is shown.
	Amount tally.Amount
	// Expires is when the payer counts the hold as over, in milliseconds since
	// 1970. Nothing is shown from then on.
	Expires int64
	Memo    string
}

// Validate reports what no box can hold.
func (s *Sealed) Validate() error {
	switch {
	case s.Amount == 0 || s.Amount >= payments.MaxTotal:
		return fmt.Errorf("hold: amount %d is not between 1 and 2^62", s.Amount)
	case s.Expires <= 0:
		return errors.New("hold: no expiry")
	case len(s.Memo) > MaxMemo || !utf8.ValidString(s.Memo):
		return fmt.Errorf("hold: memo of %d bytes: at most %d, in UTF-8", len(s.Memo), MaxMemo)
	}
	return nil
}

// Seal seals s to payee. rand is crypto/rand's Reader outside tests: the one-time
// key is never used twice. ErrKeyType.
func Seal(rand io.Reader, payee peer.ID, b *Bound, s *Sealed) ([]byte, error) {
	to, err := sealKeyOf(payee)
	if err != nil {
		return nil, err
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	var raw [boxKey]byte
	if _, err := io.ReadFull(rand, raw[:]); err != nil {
		return nil, fmt.Errorf("hold: draw a key: %w", err)
	}
	once, err := ecdh.X25519().NewPrivateKey(raw[:])
	if err != nil {
		return nil, fmt.Errorf("hold: draw a key: %w", err)
	}
	mine := once.PublicKey().Bytes()
	aead, err := boxAEAD(once, to, mine, to.Bytes(), b)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", ErrKeyType, payee)
	}
	plain := make([]byte, 0, boxPlain)
	plain = append(plain, s.Preimage[:]...)
	plain = binary.BigEndian.AppendUint64(plain, uint64(s.Amount))
	plain = binary.BigEndian.AppendUint64(plain, uint64(s.Expires))
	plain = append(append(plain, byte(len(s.Memo))), s.Memo...)
	plain = plain[:boxPlain] // the rest is zero
	dst := append(append(make([]byte, 0, BoxSize), boxVersion), mine...)
	return aead.Seal(dst, make([]byte, 12), plain, []byte{boxVersion}), nil
}

// Open reads a box of ours. What comes back opens b.Hash. ErrBox.
func (k *Key) Open(b *Bound, box []byte) (Sealed, error) {
	if len(box) != BoxSize || box[0] != boxVersion {
		return Sealed{}, ErrBox
	}
	theirs := box[1 : 1+boxKey]
	from, err := ecdh.X25519().NewPublicKey(theirs)
	if err != nil {
		return Sealed{}, ErrBox
	}
	aead, err := boxAEAD(k.priv, from, theirs, k.priv.PublicKey().Bytes(), b)
	if err != nil {
		return Sealed{}, ErrBox // a key of low order
	}
	plain, err := aead.Open(nil, make([]byte, 12), box[1+boxKey:], box[:1])
	if err != nil {
		return Sealed{}, ErrBox
	}
	s := Sealed{
		Preimage: tally.Preimage(plain[:32]), Amount: tally.Amount(binary.BigEndian.Uint64(plain[32:])),
		Expires: int64(binary.BigEndian.Uint64(plain[40:])),
	}
	n := int(plain[48])
	memo := plain[49:]
	if n > MaxMemo || len(bytes.Trim(memo[n:], "\x00")) != 0 {
		return Sealed{}, ErrBox
	}
	s.Memo = string(memo[:n])
	if s.Validate() != nil || !s.Preimage.Opens(b.Hash) {
		return Sealed{}, ErrBox
	}
	return s, nil
}

// boxAEAD is the cipher of one box, from either side's key.
func boxAEAD(mine *ecdh.PrivateKey, other *ecdh.PublicKey, once, payee []byte, b *Bound) (cipher.AEAD, error) {
	if len(b.Holder) == 0 || len(b.Holder) > maxPeerID {
		return nil, fmt.Errorf("hold: holder of %d bytes", len(b.Holder))
	}
	shared, err := mine.ECDH(other)
	if err != nil {
		return nil, err
	}
	info := make([]byte, 0, 256)
	info = append(info, "tally hold box 1"...)
	for _, part := range [...][]byte{once, payee, b.ID[:], b.Hash[:], []byte(b.Holder)} {
		info = append(info, part...)
	}
	key, err := hkdf.Key(sha256.New, shared, nil, string(info), 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
