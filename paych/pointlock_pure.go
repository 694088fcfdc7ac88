package paych

import (
	"errors"
	"fmt"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych/adaptor"
)

// ErrPointLock: what a peer gave is not the point lock that was agreed. Nothing may
// be forwarded or revealed on its strength.
var ErrPointLock = errors.New("paych: not the point lock that was agreed")

// PointLock is a voucher whose signature is encrypted under a point. For the chain
// it is a plain voucher of its lane, once it is completed; completing it shows the
// point's secret to the payer. It stays as it is on disk, and what is sent again is
// the same bytes.
//
//	nonce + 1 · amount slot base + a · TimeLockMax T · no SecretHash · adaptor signature
type PointLock struct {
	// Voucher has no signature.
	Voucher SignedVoucher
	// Payer is the public key that the channel's From is the address of: a voucher
	// tells it by its signature, which nobody can read here.
	Payer   adaptor.Point
	Point   adaptor.Point
	Adaptor adaptor.Signature
}

// PointTerms is what both sides agreed on before a point lock is given.
type PointTerms struct {
	Channel address.Address
	// From is the key address of the channel's payer.
	From address.Address
	Lane uint64
	// Nonce of the voucher: one above the last of the slot.
	Nonce uint64
	// Base is what the slot has paid so far, Amount what the lock adds.
	Base, Amount big.Int
	// Until is the last epoch at which the chain takes the voucher.
	Until abi.ChainEpoch
	Point adaptor.Point
}

// Voucher returns the one voucher of these terms, unsigned.
func (t *PointTerms) Voucher() (*SignedVoucher, error) {
	switch {
	case t.Amount.Int == nil || t.Amount.Sign() <= 0 || t.Base.Int == nil || t.Base.Sign() < 0:
		return nil, fmt.Errorf("%w: amount %s on a base of %s", ErrPointLock, t.Amount, t.Base)
	case t.Until <= 0:
		return nil, fmt.Errorf("%w: no expiry: the payer's money would be bound for ever", ErrPointLock)
	case t.Nonce == 0:
		return nil, fmt.Errorf("%w: nonce 0", ErrPointLock)
	}
	return &SignedVoucher{
		ChannelAddr: t.Channel, TimeLockMax: t.Until, Lane: t.Lane, Nonce: t.Nonce, Amount: big.Add(t.Base, t.Amount),
	}, nil
}

// Check reports whether l is the lock of t and can be completed: ErrPointLock,
// ErrSignature. Every field but the ones of the rule has to be empty.
func (l *PointLock) Check(t *PointTerms) error {
	want, err := t.Voucher()
	if err != nil {
		return err
	}
	if l.Voucher.Signature != nil {
		return fmt.Errorf("%w: the voucher is signed in the open", ErrPointLock)
	}
	// The bytes that are signed are all that counts: nothing can hide beside them.
	wantMsg, err := SigningBytes(want)
	if err != nil {
		return err
	}
	msg, err := SigningBytes(&l.Voucher)
	if err != nil {
		return err
	}
	switch {
	case string(msg) != string(wantMsg):
		return fmt.Errorf("%w: voucher of lane %d, nonce %d, amount %s until %d, want lane %d, nonce %d, amount %s until %d and nothing else",
			ErrPointLock, l.Voucher.Lane, l.Voucher.Nonce, l.Voucher.Amount, l.Voucher.TimeLockMax, want.Lane, want.Nonce, want.Amount, want.TimeLockMax)
	case l.Point != t.Point:
		return fmt.Errorf("%w: another point", ErrPointLock)
	}
	if err := l.checkPayer(t.From); err != nil {
		return err
	}
	if err := l.Adaptor.Verify(l.Payer, blake2b.Sum256(msg), l.Point); err != nil {
		return fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return nil
}

func (l *PointLock) checkPayer(from address.Address) error {
	key, err := l.Payer.Uncompressed()
	if err != nil {
		return fmt.Errorf("%w: payer's key: %w", ErrPointLock, err)
	}
	if got, err := address.NewSecp256k1Address(key); err != nil || got != from {
		return fmt.Errorf("%w: the key is not that of %s", ErrPointLock, from)
	}
	return nil
}

// opened reports whether secret is that of the lock's point.
func (l *PointLock) opened(secret *tally.Preimage) bool {
	y := adaptor.Secret(*secret)
	return y.Opens(l.Point)
}

// Complete returns the voucher with its signature, ready for the chain. l must have
// passed Check. Whoever sees the result and has l knows the secret.
func (l *PointLock) Complete(y *adaptor.Secret) (*SignedVoucher, error) {
	plain, err := l.Adaptor.Decrypt(y)
	if err != nil {
		return nil, fmt.Errorf("paych: complete point lock: %w", err)
	}
	msg, err := SigningBytes(&l.Voucher)
	if err != nil {
		return nil, err
	}
	key, err := l.Payer.Uncompressed()
	if err != nil {
		return nil, fmt.Errorf("paych: complete point lock: %w", err)
	}
	from, err := address.NewSecp256k1Address(key)
	if err != nil {
		return nil, fmt.Errorf("paych: complete point lock: %w", err)
	}
	signed := l.Voucher
	// The chain recovers the key, so that it needs to know which of up to four
	// points r stands for.
	for v := range byte(4) {
		signed.Signature = &crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: append(plain[:len(plain):len(plain)], v)}
		if VerifySignature(signed.Signature, from, msg) == nil {
			return &signed, nil
		}
	}
	return nil, fmt.Errorf("paych: complete point lock: %w", ErrSignature)
}

// Recover returns the secret from the voucher that l was completed to, wherever it
// was seen. A voucher that is not l's is ErrPointLock.
func (l *PointLock) Recover(sv *SignedVoucher) (adaptor.Secret, error) {
	msg, err := SigningBytes(&l.Voucher)
	if err != nil {
		return adaptor.Secret{}, err
	}
	seen, err := SigningBytes(sv)
	if err != nil {
		return adaptor.Secret{}, err
	}
	if string(msg) != string(seen) {
		return adaptor.Secret{}, fmt.Errorf("%w: another voucher", ErrPointLock)
	}
	if sv.Signature == nil || sv.Signature.Type != crypto.SigTypeSecp256k1 || len(sv.Signature.Data) != SignatureSize {
		return adaptor.Secret{}, ErrSignature
	}
	plain := adaptor.Plain(sv.Signature.Data[:adaptor.PlainSize])
	y, err := l.Adaptor.Recover(&plain, l.Point)
	if err != nil {
		return adaptor.Secret{}, fmt.Errorf("paych: recover the secret of a point lock: %w", err)
	}
	return y, nil
}

// A point lock in bytes is a CBOR array of 4: the point, the payer's key, the adaptor
// signature, and the voucher with null as its signature. A voucher is an array of 11, so
// that the first byte tells the two apart.
const (
	pointLockTag = 0x84
	// pointLockHead is what stands before the voucher, in bytes.
	pointLockHead = 1 + 2*(2+adaptor.PointSize) + 2 + adaptor.Size
	// MaxPointLockSize bounds a point lock in bytes. Ours take up to 330.
	MaxPointLockSize = pointLockHead + MaxVoucherSize
)

// IsPointLock reports whether bytes are to be read as a point lock, and not as a
// voucher.
func IsPointLock(data []byte) bool { return len(data) > 0 && data[0] == pointLockTag }

// EncodePointLock returns l in bytes.
func EncodePointLock(l *PointLock) ([]byte, error) {
	if l == nil || l.Voucher.Signature != nil {
		return nil, fmt.Errorf("%w: no lock, or signed in the open", ErrPointLock)
	}
	sv, err := EncodeVoucher(&l.Voucher)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 1, pointLockHead+len(sv))
	b[0] = pointLockTag
	for _, field := range [...][]byte{l.Point[:], l.Payer[:], l.Adaptor[:]} {
		b = append(append(b, 0x58, byte(len(field))), field...)
	}
	return append(b, sv...), nil
}

// DecodePointLock reads a point lock, in the one form that EncodePointLock writes. Whose
// it is and whether it can be completed, Check says.
func DecodePointLock(data []byte) (*PointLock, error) {
	if len(data) <= pointLockHead || len(data) > MaxPointLockSize || !IsPointLock(data) {
		return nil, fmt.Errorf("%w: %d bytes are no point lock", ErrVoucherFormat, len(data))
	}
	l, rest := new(PointLock), data[1:]
	for _, field := range [...][]byte{l.Point[:], l.Payer[:], l.Adaptor[:]} {
		if rest[0] != 0x58 || rest[1] != byte(len(field)) {
			return nil, fmt.Errorf("%w: a field of a point lock is not %d bytes", ErrVoucherFormat, len(field))
		}
		copy(field, rest[2:])
		rest = rest[2+len(field):]
	}
	for _, p := range [...]adaptor.Point{l.Point, l.Payer} {
		if _, err := adaptor.ParsePoint(p[:]); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrVoucherFormat, err)
		}
	}
	if _, err := adaptor.Parse(l.Adaptor[:]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVoucherFormat, err)
	}
	sv, err := DecodeVoucher(rest)
	if err != nil {
		return nil, err
	}
	if sv.Signature != nil {
		return nil, fmt.Errorf("%w: the voucher of a point lock is signed in the open", ErrVoucherFormat)
	}
	l.Voucher = *sv
	return l, nil
}
