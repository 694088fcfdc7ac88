package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// Bounds of an advert. They are part of docs/protocol/payments.md.
const (
	// MaxAdvert bounds the bytes of one.
	MaxAdvert = 512
	// MaxLife is the longest that one may be good for: who goes away is forgotten.
	MaxLife = time.Hour
	// maxDelta is the most that an edge may take of a part's time: what the payer
	// adds for each hop.
	maxDelta = uint32(payments.CreditHop / time.Millisecond)
	// maxLockDelta is that of an edge that makes locks, which have to leave time for the
	// chain: 18 minutes on Filecoin as it is.
	maxLockDelta = uint32(time.Hour / time.Millisecond)
	maxID        = 64
	maxChannel   = 64
	maxAdSig     = 128
	maxProof     = 100
	advertStart  = "tally advert 1\x00"
)

// Modes of an edge, as bits.
const (
	// ModeCredit: parts travel on the tab.
	ModeCredit byte = 1 << iota
	// ModeLock: parts travel under a lock of a channel.
	ModeLock
)

var (
	// ErrAdvert: not an advert, or one that may not be.
	ErrAdvert = errors.New("route: bad advert")
	// ErrAdvertSignature: whom it names has not signed it.
	ErrAdvertSignature = errors.New("route: advert is not signed by its node")
)

// Advert is what a node says that it carries to another.
type Advert struct {
	Edge
	// Channel is the address of the channel that settles the tab, from From to To;
	// empty: it is not told.
	Channel string
	// FromProof and ToProof go with it: each is a signature of the address that the
	// channel pays from, or to, over what ties that address to From, or To. Whoever
	// looks at the chain for the addresses checks them.
	FromProof, ToProof []byte
	// HopDelta is by how much earlier a part expires on its way out, in ms: under a
	// lock, where Modes has locks.
	HopDelta uint32
	Modes    byte
	// Seq rises: a later advert of one edge takes the place of an earlier one.
	Seq uint64
	// Expires is until when it is good, in ms since 1970.
	Expires int64
	// Signature is of the identity key of From.
	Signature []byte
}

func appendShort(dst []byte, s string) []byte { return append(append(dst, byte(len(s))), s...) }

// body is everything but the signature. All numbers are big-endian.
func (a *Advert) body() []byte {
	b := appendShort(nil, string(a.From))
	b = appendShort(b, string(a.To))
	b = appendShort(b, a.Channel)
	for _, n := range [...]uint64{uint64(a.Capacity), uint64(a.Min), uint64(a.Max), uint64(a.FeeBase)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = binary.BigEndian.AppendUint32(b, a.FeePPM)
	b = binary.BigEndian.AppendUint32(b, a.HopDelta)
	b = append(b, a.Modes)
	b = binary.BigEndian.AppendUint64(b, a.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(a.Expires))
	if a.Channel != "" {
		b = appendShort(appendShort(b, string(a.FromProof)), string(a.ToProof))
	}
	return b
}

// SigningBytes is what From signs: a digest bound to the network and asset that the
// amounts are in.
func (a *Advert) SigningBytes(realm string) []byte {
	b := appendShort([]byte(advertStart), realm)
	sum := blake2b.Sum256(append(b, a.body()...))
	return sum[:]
}

// Bytes is the one form in which it travels.
func (a *Advert) Bytes() []byte { return appendShort(a.body(), string(a.Signature)) }

// ParseAdvert reads exactly what Bytes writes.
func ParseAdvert(raw []byte) (a Advert, err error) {
	if len(raw) > MaxAdvert {
		return a, fmt.Errorf("%w: %d bytes, over %d", ErrAdvert, len(raw), MaxAdvert)
	}
	bad := false
	take := func(n int) []byte {
		if len(raw) < n {
			bad = true
			return make([]byte, n)
		}
		b := raw[:n]
		raw = raw[n:]
		return b
	}
	short := func() string { return string(take(int(take(1)[0]))) }
	amount := func() tally.Amount { return tally.Amount(binary.BigEndian.Uint64(take(8))) }
	a.From, a.To, a.Channel = peer.ID(short()), peer.ID(short()), short()
	a.Capacity, a.Min, a.Max, a.FeeBase = amount(), amount(), amount(), amount()
	a.FeePPM, a.HopDelta = binary.BigEndian.Uint32(take(4)), binary.BigEndian.Uint32(take(4))
	a.Modes = take(1)[0]
	a.Seq, a.Expires = binary.BigEndian.Uint64(take(8)), int64(binary.BigEndian.Uint64(take(8)))
	if a.Channel != "" {
		a.FromProof, a.ToProof = []byte(short()), []byte(short())
	}
	a.Signature = []byte(short())
	if bad || len(raw) != 0 {
		return Advert{}, fmt.Errorf("%w: fields do not fit", ErrAdvert)
	}
	return a, a.validate()
}

func (a *Advert) validate() error {
	for _, p := range [...]peer.ID{a.From, a.To} {
		if _, err := peer.IDFromBytes([]byte(p)); err != nil || len(p) > maxID {
			return fmt.Errorf("%w: peer id", ErrAdvert)
		}
	}
	switch {
	case len(a.Channel) > maxChannel, len(a.Signature) > maxAdSig:
		return fmt.Errorf("%w: channel or signature too long", ErrAdvert)
	case (a.Channel != "") != (len(a.FromProof) > 0), (a.Channel != "") != (len(a.ToProof) > 0),
		len(a.FromProof) > maxProof, len(a.ToProof) > maxProof:
		return fmt.Errorf("%w: a channel goes with two proofs of at most %d bytes", ErrAdvert, maxProof)
	case a.HopDelta > maxDelta && a.Modes&ModeLock == 0, a.HopDelta > maxLockDelta:
		return fmt.Errorf("%w: it takes %d ms of a part's time, over %d", ErrAdvert, a.HopDelta, maxDelta)
	case a.Modes&(ModeCredit|ModeLock) == 0:
		return fmt.Errorf("%w: it carries nothing", ErrAdvert)
	case a.Max != 0 && a.Max < a.Min, a.Max > a.Capacity:
		return fmt.Errorf("%w: min %d, max %d of %d", ErrAdvert, a.Min, a.Max, a.Capacity)
	}
	return a.Edge.validate()
}

// Verify reports whether the advert is good now and signed by its node.
func (a *Advert) Verify(now time.Time, realm string) error {
	if err := a.validate(); err != nil {
		return err
	}
	if left := a.Expires - now.UnixMilli(); left <= 0 || left > MaxLife.Milliseconds() {
		return fmt.Errorf("%w: expired, or good for more than %v", ErrAdvert, MaxLife)
	}
	key, err := a.From.ExtractPublicKey()
	if err != nil {
		return fmt.Errorf("%w: its id holds no key", ErrAdvertSignature)
	}
	if ok, err := key.Verify(a.SigningBytes(realm), a.Signature); err != nil || !ok {
		return ErrAdvertSignature
	}
	return nil
}

// key names the edge, whatever the advert says of it.
func (a *Advert) key() advertKey {
	b := appendShort(nil, string(a.From))
	b = appendShort(b, string(a.To))
	return advertKey(blake2b.Sum256(appendShort(b, a.Channel)))
}

type advertKey [32]byte

// digest names this very advert.
func (a *Advert) digest() uint64 {
	sum := blake2b.Sum256(a.Bytes())
	return binary.BigEndian.Uint64(sum[:])
}
