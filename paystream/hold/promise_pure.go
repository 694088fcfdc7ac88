package hold

import (
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/cryptobyte"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// Bounds of a promise.
const (
	// MaxPromiseText bounds the text, before anything is decoded.
	MaxPromiseText = 1024
	// MaxPromiseTime bounds how long a promise is good for: a payer remembers the
	// hashes that it has paid for longer than that.
	MaxPromiseTime = 28 * 24 * time.Hour
	maxRealm       = 64
	maxSignature   = 128
	promisePrefix  = "tallyhold1"
)

var (
	// ErrPromise: not a promise, damaged, or not signed by its payee.
	ErrPromise = errors.New("hold: not a promise of a payee")
	// ErrNotOurs: the promise names another payer. A holder that may choose which
	// hash a payer gets gives two of them the same one, and keeps the money of one.
	ErrNotOurs = errors.New("hold: the payee gave this hash to another payer; ask it for one of your own")
)

// Promise is a hash that a payee has given to one payer, and to nobody else. With
// the preimage it proves the payment.
type Promise struct {
	// Realm is the network and asset of the amount.
	Realm        string
	Payee, Payer peer.ID
	Hash         tally.Hashlock
	// Amount is the least that the payee shows the preimage for.
	Amount  tally.Amount
	Expires int64 // ms since 1970
	// Signature is of the payee's identity key over SigningBytes.
	Signature []byte
}

func (p *Promise) body() []byte {
	var b cryptobyte.Builder
	for _, s := range [...]string{p.Realm, string(p.Payee), string(p.Payer)} {
		addShort(&b, []byte(s))
	}
	b.AddBytes(p.Hash[:])
	b.AddUint64(uint64(p.Amount))
	b.AddUint64(uint64(p.Expires))
	return b.BytesOrPanic()
}

func addShort(b *cryptobyte.Builder, v []byte) {
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(v) })
}

// SigningBytes is what the payee signs, in a domain of its own.
func (p *Promise) SigningBytes() []byte {
	sum := blake2b.Sum256(append([]byte("tally hold promise 1\x00"), p.body()...))
	return sum[:]
}

// Validate reports a promise that has no text.
func (p *Promise) Validate() error {
	bad := func(what string) error { return fmt.Errorf("%w: %s", ErrPromise, what) }
	switch {
	case p.Realm == "" || len(p.Realm) > maxRealm:
		return bad("realm")
	case !goodPeer(p.Payee) || !goodPeer(p.Payer) || p.Payee == p.Payer:
		return bad("payee and payer")
	case p.Amount == 0 || p.Amount >= payments.MaxTotal:
		return bad("amount")
	case p.Expires <= 0 || p.Expires > maxTime:
		return bad("expiry")
	case len(p.Signature) == 0 || len(p.Signature) > maxSignature:
		return bad("signature")
	}
	return nil
}

func goodPeer(p peer.ID) bool {
	_, err := peer.IDFromBytes([]byte(p))
	return err == nil && len(p) <= maxPeerID
}

// Verify reports whether the payee promised this to payer: ErrPromise, ErrNotOurs.
func (p *Promise) Verify(realm string, payer peer.ID) error {
	if err := p.Validate(); err != nil {
		return err
	}
	key, err := p.Payee.ExtractPublicKey()
	if err != nil {
		return fmt.Errorf("%w: the payee's id holds no key", ErrPromise)
	}
	if ok, err := key.Verify(p.SigningBytes(), p.Signature); err != nil || !ok {
		return fmt.Errorf("%w: the signature is not the payee's", ErrPromise)
	}
	switch {
	case p.Payer != payer:
		return ErrNotOurs
	case p.Realm != realm:
		return fmt.Errorf("%w: it is for %q, we are on %q", ErrPromise, p.Realm, realm)
	}
	return nil
}

// String returns the text of a promise. It holds no secret: only its payer can use
// it.
//
//	tallyhold1 ‖ base32hex(body ‖ signature length ‖ signature ‖ check 4)
func (p *Promise) String() string {
	b := cryptobyte.NewBuilder(p.body())
	addShort(b, p.Signature)
	return writeText(promisePrefix, b.BytesOrPanic())
}

// ParsePromise reads exactly what String writes. Whose it is, Verify says.
func ParsePromise(text string) (Promise, error) {
	bad := func(what string) (Promise, error) { return Promise{}, fmt.Errorf("%w: %s", ErrPromise, what) }
	if len(text) > MaxPromiseText {
		return bad(fmt.Sprintf("longer than %d", MaxPromiseText))
	}
	body, err := readText(promisePrefix, text)
	if err != nil {
		return bad(err.Error())
	}
	r := reader{String: body}
	p := r.promise()
	if r.bad || !r.Empty() {
		return bad("not canonical")
	}
	return p, p.Validate()
}
