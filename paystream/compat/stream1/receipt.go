package stream1

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/oer"
)

const (
	receiptVersion = 1
	receiptBody    = 1 + NonceSize + 1 + 8

	// NonceSize is the length of a receipt's nonce.
	NonceSize = 16
	// ReceiptSize is the length of a receipt.
	ReceiptSize = receiptBody + sha256.Size
)

// ErrReceipt: a receipt that its secret did not make.
var ErrReceipt = errors.New("stream: receipt is malformed or of another secret")

// Receipt states what a stream has got, to whoever knows the receipt secret:
//
//	01 | nonce 16 | stream id u8 | total u64 | HMAC-SHA256(secret, the 26 bytes before)
type Receipt struct {
	Nonce    [NonceSize]byte
	StreamID uint8
	Received tally.Amount
}

// Append appends the receipt, signed.
func (c Receipt) Append(dst []byte, secret envelope.Secret) []byte {
	at := len(dst)
	dst = append(dst, receiptVersion)
	dst = append(dst, c.Nonce[:]...)
	dst = append(dst, c.StreamID)
	dst = binary.BigEndian.AppendUint64(dst, uint64(c.Received))
	h := hmac.New(sha256.New, secret[:])
	h.Write(dst[at:])
	return h.Sum(dst)
}

// VerifyReceipt reads a receipt, or returns ErrReceipt.
func VerifyReceipt(b []byte, secret envelope.Secret) (Receipt, error) {
	r := oer.NewReader(b)
	v := r.U8()
	var c Receipt
	copy(c.Nonce[:], r.Bytes(NonceSize))
	c.StreamID, c.Received = r.U8(), tally.Amount(r.U64())
	r.Bytes(sha256.Size)
	if r.End() != nil || v != receiptVersion || !hmac.Equal(c.Append(nil, secret), b) {
		return Receipt{}, ErrReceipt
	}
	return c, nil
}
