package paych

import (
	"context"
	"errors"
	"fmt"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/crypto"
	"golang.org/x/crypto/blake2b"
)

// SignatureSize is r, s and v, in bytes.
const SignatureSize = 65

var (
	// ErrNotSigned: the voucher carries no signature.
	ErrNotSigned = errors.New("paych: voucher is not signed")
	// ErrSignature: the signature is not the signer's. It does not say in what
	// way, because nobody can do anything about it but the signer.
	ErrSignature = errors.New("paych: signature is not valid")
	// ErrSignatureType: the signature is of a kind that is not checked here. Only
	// secp256k1 (f1) is.
	ErrSignatureType = errors.New("paych: signature is not secp256k1")
)

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
	digest := blake2b.Sum256(msg)
	name := signerName(digest, sig.Data)
	if signer, ok := signers.get(name); ok {
		return signer, nil
	}
	// The library has v first, offset by 27.
	var compact [SignatureSize]byte
	compact[0] = 27 + sig.Data[64]
	copy(compact[1:], sig.Data[:64])
	key, _, err := ecdsa.RecoverCompact(compact[:], digest[:])
	if err != nil {
		return address.Undef, ErrSignature
	}
	signer, err := address.NewSecp256k1Address(key.SerializeUncompressed())
	if err != nil {
		return address.Undef, ErrSignature
	}
	signers.put(name, signer)
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
