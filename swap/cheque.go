package swap

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally"
)

// Limits of what a cheque may carry. A frame of the wire is smaller than any
// sum of them, and they are checked again here.
const (
	// MaxBacking bounds the backing of a cheque: a voucher is about 200 bytes.
	MaxBacking = 1024
	// MaxSignature bounds a signature of an identity key (RSA-4096 is 512).
	MaxSignature = 1024
	// maxNameLen bounds network and asset names, and the genesis cid.
	maxNameLen = 64
)

// Domains of what is signed. A signature for one is worth nothing for another.
const (
	chequeDomain = "tally/swap/1 cheque\x00"
	ackDomain    = "tally/swap/1 ack\x00"
)

var (
	// ErrSignature: the signature is not the named issuer's over this text.
	ErrSignature = errors.New("swap: bad signature")
	// ErrBeneficiary: a cheque for somebody else, or from somebody else.
	ErrBeneficiary = errors.New("swap: cheque is not from this peer to us")
	// ErrNetwork: another network, genesis or asset than ours.
	ErrNetwork = errors.New("swap: other network or asset")
	// ErrMalformed: a message that no honest peer builds.
	ErrMalformed = errors.New("swap: malformed message")
)

// Backing is what makes a cheque worth money: in hard mode a channel voucher.
// The book does not look inside.
type Backing []byte

// Realm is what a signature is bound to, so that a cheque of a test network is
// worth nothing on another.
type Realm struct {
	// Network is the name of the chain's network, Genesis the cid of its first
	// block (empty without a chain).
	Network string
	Genesis string
	// Asset is what a unit counts: "karma", or a token's code.
	Asset string
}

// Validate reports names that do not fit the wire.
func (r Realm) Validate() error {
	if r.Asset == "" || len(r.Asset) > maxNameLen || len(r.Network) > maxNameLen || len(r.Genesis) > maxNameLen {
		return fmt.Errorf("%w: asset must have 1 to %d bytes, network and genesis at most %d", ErrMalformed, maxNameLen, maxNameLen)
	}
	return nil
}

// Cheque is a promise to pay, absolute: Cumulative is all that the issuer ever
// paid the beneficiary in this asset, so that a later cheque replaces all
// earlier ones. Its totals are the issuer's half of the checkpoint.
type Cheque struct {
	Issuer, Beneficiary peer.ID
	// Serial counts the issuer's cheques to this beneficiary, from 1.
	Serial uint64
	// Cumulative in units.
	Cumulative tally.Amount
	// Served, Consumed and Balance are the issuer's books when it signed.
	Served, Consumed tally.Amount
	Balance          tally.Balance
	// Date is in seconds of Unix time, advisory.
	Date int64
	// Backing is empty for karma.
	Backing Backing
	// Signature of the issuer's identity key over SigningBytes.
	Signature []byte
}

// SigningBytes returns the canonical text that a cheque's signature covers:
//
//	"tally/swap/1 cheque\0"
//	u16 len, network | u16 len, genesis | u16 len, asset
//	u16 len, issuer  | u16 len, beneficiary          (binary peer ids)
//	u64 serial | u64 cumulative | u64 served | u64 consumed | i64 balance | i64 date
//	32 bytes BLAKE2b-256 of the backing
//
// All numbers are big-endian. There is one encoding of a cheque, and none that
// two cheques share.
func (c *Cheque) SigningBytes(r Realm) []byte {
	b := appendParties(chequeDomain, r, c.Issuer, c.Beneficiary)
	for _, n := range [...]uint64{
		c.Serial, uint64(c.Cumulative), uint64(c.Served), uint64(c.Consumed), uint64(c.Balance), uint64(c.Date),
	} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	backing := blake2b.Sum256(c.Backing)
	return append(b, backing[:]...)
}

// Hash names a cheque: BLAKE2b-256 of what its signature covers.
func (c *Cheque) Hash(r Realm) [32]byte { return blake2b.Sum256(c.SigningBytes(r)) }

// Ack is the beneficiary's signed answer: with the cheque it is the co-signed
// checkpoint that proves to each side what the other accepted.
type Ack struct {
	// Issuer signs the ack: the cheque's beneficiary. Beneficiary is the one it
	// is for: the cheque's issuer.
	Issuer, Beneficiary peer.ID
	// ChequeHash and Serial name the cheque.
	ChequeHash [32]byte
	Serial     uint64
	// Credited is the cumulative that now counts as paid. It may be below the
	// cheque's.
	Credited tally.Amount
	// Served, Consumed and Balance are the signer's books after crediting.
	Served, Consumed tally.Amount
	Balance          tally.Balance
	Signature        []byte
}

// SigningBytes returns the canonical text of an ack, laid out like a cheque's:
//
//	"tally/swap/1 ack\0" | realm | issuer | beneficiary
//	u64 serial | u64 credited | u64 served | u64 consumed | i64 balance
//	32 bytes hash of the cheque
func (a *Ack) SigningBytes(r Realm) []byte {
	b := appendParties(ackDomain, r, a.Issuer, a.Beneficiary)
	for _, n := range [...]uint64{
		a.Serial, uint64(a.Credited), uint64(a.Served), uint64(a.Consumed), uint64(a.Balance),
	} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return append(b, a.ChequeHash[:]...)
}

func appendParties(domain string, r Realm, issuer, beneficiary peer.ID) []byte {
	b := make([]byte, 0, 320)
	b = append(b, domain...)
	for _, s := range [...]string{r.Network, r.Genesis, r.Asset, string(issuer), string(beneficiary)} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s))) // Validate and peer ids keep all of them short
		b = append(b, s...)
	}
	return b
}

// checkParties reports a message that is not from issuer to beneficiary, or
// whose fields are beyond what the ledger holds.
func checkParties(gotIssuer, gotBeneficiary, issuer, beneficiary peer.ID) error {
	if gotIssuer != issuer || gotBeneficiary != beneficiary {
		return ErrBeneficiary
	}
	return nil
}

// Validate checks all of a cheque but its signature.
func (c *Cheque) Validate(issuer, beneficiary peer.ID) error {
	switch {
	case c.Serial == 0:
		return fmt.Errorf("%w: cheque serial 0", ErrMalformed)
	case max(c.Cumulative, c.Served, c.Consumed) > maxLedgerAmount:
		return fmt.Errorf("%w: cheque amount: %w", ErrMalformed, tally.ErrOverflow)
	case len(c.Backing) > MaxBacking || len(c.Signature) > MaxSignature:
		return fmt.Errorf("%w: backing of %d or signature of %d bytes is too long", ErrMalformed, len(c.Backing), len(c.Signature))
	}
	return checkParties(c.Issuer, c.Beneficiary, issuer, beneficiary)
}

// Validate checks all of an ack but its signature.
func (a *Ack) Validate(issuer, beneficiary peer.ID) error {
	switch {
	case a.Serial == 0:
		return fmt.Errorf("%w: ack serial 0", ErrMalformed)
	case max(a.Credited, a.Served, a.Consumed) > maxLedgerAmount:
		return fmt.Errorf("%w: ack amount: %w", ErrMalformed, tally.ErrOverflow)
	case len(a.Signature) > MaxSignature:
		return fmt.Errorf("%w: signature of %d bytes is too long", ErrMalformed, len(a.Signature))
	}
	return checkParties(a.Issuer, a.Beneficiary, issuer, beneficiary)
}

// KarmaCheque is a cheque of the seed's protocol, /vac/waku/swap/2.0.0-alpha1:
// unsigned, and Amount is an increase.
type KarmaCheque struct {
	// Beneficiary is a peer id in binary or text form, or a payout address.
	Beneficiary []byte
	// Date is in seconds of Unix time, advisory; a uint32 on the wire.
	Date uint32
	// Amount in units.
	Amount uint32
}

// For reports whether the cheque names id or one of the other names.
func (c *KarmaCheque) For(id peer.ID, names ...string) bool {
	got := string(c.Beneficiary)
	if got == string(id) {
		return true
	}
	if p, err := peer.Decode(got); err == nil && p == id {
		return true
	}
	for _, name := range names {
		if name != "" && got == name {
			return true
		}
	}
	return false
}
