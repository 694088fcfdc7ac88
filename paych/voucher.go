package paych

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/crypto"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally/paych/actor"
)

// The voucher types are those of go-state-types' builtin/v8, which Lotus has in
// its own API.
type (
	// SignedVoucher is one party's signed statement of a lane's total.
	SignedVoucher = actor.SignedVoucher
	// Merge names a lane that a voucher takes in.
	Merge = actor.Merge
	// ModVerifyParams is a voucher's Extra.
	ModVerifyParams = actor.ModVerifyParams
)

const (
	// MaxVoucherSize bounds a voucher in CBOR, in bytes. Ours take up to 250; the
	// rest leaves room for a Lotus voucher that merges 200 lanes.
	MaxVoucherSize = 4096
	// SignatureSize is r, s and v.
	SignatureSize = 65
)

var (
	// ErrVoucherFormat: the bytes or the text are not a voucher, or not the one
	// form that a voucher has.
	ErrVoucherFormat = errors.New("paych: not a voucher")
	// ErrNotSigned: the voucher carries no signature.
	ErrNotSigned = errors.New("paych: voucher is not signed")
	// ErrSignature: the signature is not the signer's. It does not say in what
	// way, because nobody can do anything about it but the signer.
	ErrSignature = errors.New("paych: signature is not valid")
	// ErrSignatureType: the signature is of a kind that is not checked here. Only
	// secp256k1 (f1) is.
	ErrSignatureType = errors.New("paych: signature is not secp256k1")
)

// EncodeVoucher returns sv in CBOR.
func EncodeVoucher(sv *SignedVoucher) ([]byte, error) {
	if sv == nil {
		return nil, fmt.Errorf("%w: nil", ErrVoucherFormat)
	}
	var buf bytes.Buffer
	if err := sv.MarshalCBOR(&buf); err != nil {
		return nil, fmt.Errorf("%w: encode: %w", ErrVoucherFormat, err)
	}
	if buf.Len() > MaxVoucherSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrVoucherFormat, buf.Len(), MaxVoucherSize)
	}
	return buf.Bytes(), nil
}

// DecodeVoucher reads a voucher in CBOR. It takes only the form that
// EncodeVoucher writes: two byte strings for one voucher would be two vouchers
// to whoever compares bytes.
func DecodeVoucher(data []byte) (*SignedVoucher, error) {
	if len(data) > MaxVoucherSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrVoucherFormat, len(data), MaxVoucherSize)
	}
	if err := actor.WellFormed(data); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVoucherFormat, err)
	}
	sv := new(SignedVoucher)
	if err := sv.UnmarshalCBOR(bytes.NewReader(data)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVoucherFormat, err)
	}
	again, err := EncodeVoucher(sv)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, data) {
		return nil, fmt.Errorf("%w: not in its shortest form", ErrVoucherFormat)
	}
	return sv, nil
}

// FormatVoucher returns the text that people and the Lotus command line pass on.
func FormatVoucher(sv *SignedVoucher) (string, error) {
	data, err := EncodeVoucher(sv)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(data), nil
}

// ParseVoucher reads what FormatVoucher wrote, and nothing else: no padding, no
// line ends, no stray bits.
func ParseVoucher(text string) (*SignedVoucher, error) {
	if len(text) > base64.RawURLEncoding.EncodedLen(MaxVoucherSize) {
		return nil, fmt.Errorf("%w: %d characters, at most %d", ErrVoucherFormat,
			len(text), base64.RawURLEncoding.EncodedLen(MaxVoucherSize))
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVoucherFormat, err)
	}
	// The decoder skips line ends; a voucher has none.
	if base64.RawURLEncoding.EncodedLen(len(data)) != len(text) {
		return nil, fmt.Errorf("%w: line end in the text", ErrVoucherFormat)
	}
	return DecodeVoucher(data)
}

// SigningBytes returns what a voucher's signature is over: the voucher with null
// in the signature's place.
func SigningBytes(sv *SignedVoucher) ([]byte, error) {
	if sv == nil {
		return nil, fmt.Errorf("%w: nil", ErrVoucherFormat)
	}
	data, err := sv.SigningBytes()
	if err != nil {
		return nil, fmt.Errorf("%w: encode: %w", ErrVoucherFormat, err)
	}
	return data, nil
}

// LocalWallet is a Wallet that holds its keys itself, so that what it signs for
// an address is that address's signature. Sign believes it; the signature of any
// other wallet is recovered first, which takes twice as long as making it.
type LocalWallet interface {
	Wallet
	// Local does nothing.
	Local()
}

// Sign returns sv signed by signer, a key address that w holds. The voucher
// given is left as it is. A signature that does not verify is an error here: at
// the payee it would cost a nonce and look like an attack.
func Sign(ctx context.Context, w Wallet, signer address.Address, sv *SignedVoucher) (*SignedVoucher, error) {
	msg, err := SigningBytes(sv)
	if err != nil {
		return nil, err
	}
	sig, err := w.Sign(ctx, signer, msg)
	if err != nil {
		return nil, fmt.Errorf("paych: sign voucher with %s: %w", signer, err)
	}
	check := VerifySignature
	if _, local := w.(LocalWallet); local {
		check = func(sig *crypto.Signature, _ address.Address, _ []byte) error { return checkForm(sig) }
	}
	if err := check(sig, signer, msg); err != nil {
		return nil, fmt.Errorf("paych: wallet signed for %s: %w", signer, err)
	}
	signed := *sv
	signed.Signature = sig
	if _, err := EncodeVoucher(&signed); err != nil {
		return nil, err
	}
	return &signed, nil
}

// Verify reports whether signer, a key address, signed sv: ErrNotSigned,
// ErrSignatureType, ErrSignature.
func Verify(sv *SignedVoucher, signer address.Address) error {
	msg, err := SigningBytes(sv)
	if err != nil {
		return err
	}
	return VerifySignature(sv.Signature, signer, msg)
}

// Signer returns the key address that signed sv.
func Signer(sv *SignedVoucher) (address.Address, error) {
	msg, err := SigningBytes(sv)
	if err != nil {
		return address.Undef, err
	}
	return RecoverSigner(sv.Signature, msg)
}

// VerifySignature reports whether sig is signer's over the BLAKE2b-256 digest of
// msg. It serves vouchers and the chain's messages, whose msg is their cid.
func VerifySignature(sig *crypto.Signature, signer address.Address, msg []byte) error {
	got, err := RecoverSigner(sig, msg)
	if err != nil {
		return err
	}
	if got != signer {
		return ErrSignature
	}
	return nil
}

// RecoverSigner returns the key address whose signature over the BLAKE2b-256
// digest of msg sig is.
//
// It takes what the chain takes but for one thing: from every signature (r, s, v)
// anybody can make a second one (r, n−s, v^1) that the chain would take as well.
// Signers give the lower s, so the higher one is refused here.
func RecoverSigner(sig *crypto.Signature, msg []byte) (address.Address, error) {
	if err := checkForm(sig); err != nil {
		return address.Undef, err
	}
	// The library has v first, offset by 27.
	var compact [SignatureSize]byte
	compact[0] = 27 + sig.Data[64]
	copy(compact[1:], sig.Data[:64])
	digest := blake2b.Sum256(msg)
	key, _, err := ecdsa.RecoverCompact(compact[:], digest[:])
	if err != nil {
		return address.Undef, ErrSignature
	}
	signer, err := address.NewSecp256k1Address(key.SerializeUncompressed())
	if err != nil {
		return address.Undef, ErrSignature
	}
	return signer, nil
}

// checkForm refuses what no signer gives: another kind, another length, a higher
// s, a v that names no point.
func checkForm(sig *crypto.Signature) error {
	switch {
	case sig == nil:
		return ErrNotSigned
	case sig.Type != crypto.SigTypeSecp256k1:
		return ErrSignatureType
	case len(sig.Data) != SignatureSize || sig.Data[64] > 3:
		return ErrSignature
	}
	var s secp256k1.ModNScalar
	if overflow := s.SetByteSlice(sig.Data[32:64]); overflow || s.IsOverHalfOrder() {
		return ErrSignature
	}
	return nil
}
