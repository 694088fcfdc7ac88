package payments

import (
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally"
)

// Bounds of an invoice. With all of them its text fits a QR code.
const (
	// MaxMemo bounds what is written on an invoice, in bytes.
	MaxMemo = 256
	// MaxHints bounds the neighbours of the payee that an invoice names.
	MaxHints = 4
	// MaxInvoiceText bounds the text, before anything is decoded.
	MaxInvoiceText = 2048
	maxRealm       = 64
	maxSignature   = 128
	checkSize      = 4
	invoicePrefix1 = "tallyinv1"
)

// Errors of invoice texts. None quotes the text: it holds a secret.
var (
	// ErrInvoiceText: not an invoice, or damaged on its way.
	ErrInvoiceText = errors.New("payments: not an invoice, and not an offer")
	// ErrInvoiceSignature: the payee that the invoice names has not signed it.
	ErrInvoiceSignature = errors.New("payments: invoice is not signed by its payee")
)

// Hint is a neighbour of the payee that leads to it, for payers who know no way.
type Hint struct {
	Peer    peer.ID
	FeeBase tally.Amount
	FeePPM  uint32
}

// Invoice is what a payee hands out to be paid.
type Invoice struct {
	// Realm is the network and asset that the amount is in: play money is worth
	// nothing elsewhere.
	Realm string
	Payee peer.ID
	Hash  tally.Hashlock
	// Sale is what an offer sells; zero of an invoice. Hash and Point, which the text of
	// an offer does not have, are then those of its point: Service.Bind.
	Sale   Sale
	Point  byte
	Secret Secret
	// Amount 0: the payer chooses.
	Amount  tally.Amount
	Expires int64 // ms since 1970
	Memo    string
	Hints   []Hint
	// Signature is of the payee's identity key over SigningBytes: with the
	// preimage it proves the payment to anybody.
	Signature []byte
}

var invoiceEncoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// body is everything but the signature. All numbers are big-endian.
func (i *Invoice) body() []byte {
	b := appendShort(nil, i.Realm)
	b = appendShort(b, string(i.Payee))
	if i.sells() {
		b = i.Sale.append(b)
	} else {
		b = append(b, i.Hash[:]...)
	}
	b = append(b, i.Secret[:]...)
	b = appendUint(b, uint64(i.Amount), uint64(i.Expires))
	b = binary.BigEndian.AppendUint16(b, uint16(len(i.Memo)))
	b = append(b, i.Memo...)
	b = append(b, byte(len(i.Hints)))
	for _, h := range i.Hints {
		b = appendShort(b, string(h.Peer))
		b = appendUint(b, uint64(h.FeeBase))
		b = binary.BigEndian.AppendUint32(b, h.FeePPM)
	}
	return b
}

// SigningBytes is what the payee signs: a digest of all but the signature, in a
// domain of its own.
func (i *Invoice) SigningBytes() []byte {
	domain := "tally invoice 1\x00"
	if i.sells() {
		domain = "tally signature offer 1\x00"
	}
	sum := blake2b.Sum256(append([]byte(domain), i.body()...))
	return sum[:]
}

// Validate reports an invoice that has no text.
func (i *Invoice) Validate() error {
	bad := func(what string) error { return fmt.Errorf("%w: %s", ErrInvoiceText, what) }
	switch {
	case i.Realm == "" || len(i.Realm) > maxRealm || !utf8.ValidString(i.Realm):
		return bad("realm")
	case !validPeer(i.Payee):
		return bad("payee")
	case i.Amount >= MaxTotal:
		return bad("amount of 2^62 or more")
	case i.sells() && i.Amount == 0:
		return bad("a signature for nothing")
	case i.Expires <= 0:
		return bad("expiry")
	case len(i.Memo) > MaxMemo || !utf8.ValidString(i.Memo):
		return bad("memo")
	case len(i.Hints) > MaxHints:
		return bad("too many hints")
	case len(i.Signature) == 0 || len(i.Signature) > maxSignature:
		return bad("signature")
	}
	for _, h := range i.Hints {
		if !validPeer(h.Peer) || h.FeeBase >= MaxTotal || h.FeePPM > 1_000_000 {
			return bad("hint")
		}
	}
	return nil
}

// validPeer accepts what peer.Decode would.
func validPeer(p peer.ID) bool {
	_, err := peer.IDFromBytes([]byte(p))
	return err == nil && len(p) <= maxPeerID
}

// Verify reports whether the payee has signed the invoice. Peer ids that hold no
// key (RSA) cannot be verified and are refused.
func (i *Invoice) Verify() error {
	key, err := i.Payee.ExtractPublicKey()
	if err != nil {
		return fmt.Errorf("%w: the payee's id holds no key; it needs an Ed25519 identity", ErrInvoiceSignature)
	}
	if ok, err := key.Verify(i.SigningBytes(), i.Signature); err != nil || !ok {
		return ErrInvoiceSignature
	}
	return nil
}

// Reveal returns the text with its secret: whoever has it can pay the invoice,
// and, on its way, take parts for themselves.
//
//	tallyinv1 ‖ base32hex(body ‖ signature length ‖ signature ‖ check 4)
func (i *Invoice) Reveal() string {
	b, prefix := appendShort(i.body(), string(i.Signature)), invoicePrefix1
	if i.sells() {
		prefix = offerPrefix1
	}
	return prefix + invoiceEncoding.EncodeToString(append(b, invoiceCheck(prefix, b)...))
}

// String names the invoice without its secret.
func (i *Invoice) String() string {
	if i.sells() {
		return fmt.Sprintf("offer of a signature by %x of %s for %d", i.Sale.Key, i.Payee, i.Amount)
	}
	return fmt.Sprintf("invoice %s to %s for %d", i.Hash, i.Payee, i.Amount)
}

// GoString hides the secret from %#v.
func (i *Invoice) GoString() string { return i.String() }

// LogValue hides the secret from structured logs.
func (i *Invoice) LogValue() slog.Value { return slog.StringValue(i.String()) }

func invoiceCheck(prefix string, b []byte) []byte {
	sum := blake2b.Sum256(append([]byte(prefix), b...))
	return sum[:checkSize]
}

// ParseInvoice reads exactly what Reveal writes: one invoice has one text.
func ParseInvoice(text string) (Invoice, error) { return parseInvoice(text, invoicePrefix1) }

func parseInvoice(text, prefix string) (Invoice, error) {
	bad := func(what string) (Invoice, error) { return Invoice{}, fmt.Errorf("%w: %s", ErrInvoiceText, what) }
	if len(text) > MaxInvoiceText {
		return bad(fmt.Sprintf("longer than %d", MaxInvoiceText))
	}
	rest, ok := strings.CutPrefix(text, prefix)
	switch {
	case !ok && strings.HasPrefix(text, offerPrefix1):
		return bad("it offers a signature: buy that")
	case !ok:
		return bad("want " + prefix + " in front, in lower case")
	}
	raw, err := invoiceEncoding.DecodeString(rest)
	if err != nil || len(raw) < checkSize {
		return bad("damaged, or cut off")
	}
	b, check := raw[:len(raw)-checkSize], raw[len(raw)-checkSize:]
	if subtle.ConstantTimeCompare(invoiceCheck(prefix, b), check) != 1 {
		return bad("damaged, or cut off: the check does not fit")
	}
	r := reader{b: b}
	i := Invoice{Realm: r.short(), Payee: r.peer()}
	if prefix == offerPrefix1 {
		i.Sale = Sale{Nonce: r.digest(), Key: r.digest(), Message: r.digest()}
	} else {
		i.Hash = r.digest()
	}
	i.Secret, i.Amount, i.Expires = r.digest(), r.amount(), int64(r.uint())
	if n := int(binary.BigEndian.Uint16(r.take(2))); n <= MaxMemo {
		i.Memo = string(r.take(n))
	} else {
		return bad("memo")
	}
	n := int(r.byte())
	for k := 0; k < n && n <= MaxHints && !r.bad; k++ {
		i.Hints = append(i.Hints, Hint{Peer: r.peer(), FeeBase: r.amount(), FeePPM: binary.BigEndian.Uint32(r.take(4))})
	}
	i.Signature = []byte(r.short())
	switch {
	case r.bad || len(r.b) != 0 || n > MaxHints || (prefix == offerPrefix1) != i.sells():
		return bad("fields do not fit")
	case i.Reveal() != text: // the decoder skips line ends and ignores spare bits
		return bad("not canonical")
	}
	return i, i.Validate()
}
