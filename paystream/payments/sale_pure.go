package payments

import (
	"encoding/hex"
	"log/slog"

	"github.com/tallystick/tally"
)

// Signatures are sold under the point that their s is the secret of. An offer is an
// invoice that names the signature in place of a hash; who knows curves gets its point
// from that, and all else is as with an invoice:
//
//	seller                                            buyer
//	  │ nonce, s, offer: save                           │
//	  ├── offer{nonce, key, message, amount …} ────────▶│ Y = R + e·P
//	  │                                                 │ save payment under Y
//	  │◀──────────────── one part, locks under Y ───────┤
//	  │ save paid; show s                               │
//	  ├───────────────── s, or the chain does ─────────▶│ save complete: (R, s)
//
// One part, because a part of a signature is worth nothing, and each costs a slot on
// every hop.

const (
	offerPrefix1 = "tallysig1"
	// MaxName bounds the name that a seller gives an offer, in bytes.
	MaxName = 64
)

// Sale names one BIP 340 signature before anybody shows it: the x of its nonce and of
// the key, and the message of 32 bytes.
type Sale struct{ Nonce, Key, Message [32]byte }

func (s *Sale) append(b []byte) []byte {
	return append(append(append(b, s.Nonce[:]...), s.Key[:]...), s.Message[:]...)
}

// sells reports whether i offers a signature. No key is 0: it is the x of a point.
func (i *Invoice) sells() bool { return i.Sale.Key != [32]byte{} }

// OfferText is the text of an offer: it holds a payment secret, as an invoice's does, so
// it prints redacted.
type OfferText string

// String hides the text.
func (OfferText) String() string { return "<offer>" }

// GoString hides it from %#v.
func (t OfferText) GoString() string { return t.String() }

// LogValue hides it from structured logs.
func (t OfferText) LogValue() slog.Value { return slog.StringValue(t.String()) }

// offer is the text of an offer, and empty of an invoice.
func (i *Invoice) offer() OfferText {
	if !i.sells() {
		return ""
	}
	return OfferText(i.Reveal())
}

// ParseOffer reads exactly what Reveal writes of an offer. Its Hash and Point are not
// set: Service.Bind.
func ParseOffer(text string) (Invoice, error) { return parseInvoice(text, offerPrefix1) }

// PointText names the point of an offer, a payment or what is receivable.
func PointText(first byte, x tally.Hashlock) string {
	return hex.EncodeToString(append([]byte{first}, x[:]...))
}

// opener reports whether a secret is that of a compressed point.
type opener func(y [33]byte, secret tally.Preimage) bool

// opens reports whether p opens a hash, or with a first byte the point whose x it is.
func (f opener) opens(first byte, h tally.Hashlock, p *tally.Preimage) bool {
	if first == 0 {
		return p.Opens(h)
	}
	y := [33]byte{first}
	copy(y[1:], h[:])
	return f != nil && f(y, *p)
}

func validPoint(first byte) bool { return first == 0 || first == 2 || first == 3 }
