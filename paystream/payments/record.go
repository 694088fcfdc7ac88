package payments

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// ErrRecord: a record that no run wrote.
var ErrRecord = errors.New("payments: damaged record")

// recordVersion is the version of all kinds of record.
const recordVersion byte = 1

// Where the tables lie.
const (
	keyPrefix     = "/payments/"
	counterKey    = keyPrefix + "counter"
	paymentPrefix = keyPrefix + "payment/"
	partPrefix    = keyPrefix + "part/"
	invoicePrefix = keyPrefix + "invoice/"
	inPrefix      = keyPrefix + "in/"
)

func paymentKey(h tally.Hashlock) string { return paymentPrefix + durable.KeyID(h[:]) }
func partKey(id uint64) string           { return partPrefix + durable.KeyUint(id) }
func invoiceKey(h tally.Hashlock) string { return invoicePrefix + durable.KeyID(h[:]) }
func inKey(id PartID) string             { return inPrefix + durable.KeyID(id[:]) }

func appendUint(dst []byte, ns ...uint64) []byte {
	for _, n := range ns {
		dst = binary.BigEndian.AppendUint64(dst, n)
	}
	return dst
}

// appendShort writes at most 255 bytes behind their length.
func appendShort(dst []byte, s string) []byte { return append(append(dst, byte(len(s))), s...) }

// reader takes a record apart. After the first missing byte all it gives is zero,
// and end reports it.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if len(r.b) < n {
		r.bad = true
		return make([]byte, n)
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte           { return r.take(1)[0] }
func (r *reader) uint() uint64         { return binary.BigEndian.Uint64(r.take(8)) }
func (r *reader) amount() tally.Amount { return tally.Amount(r.uint()) }
func (r *reader) digest() [32]byte     { return [32]byte(r.take(32)) }
func (r *reader) short() string        { return string(r.take(int(r.byte()))) }

func (r *reader) peer() peer.ID {
	p := peer.ID(r.short())
	r.bad = r.bad || p == "" || len(p) > maxPeerID
	return p
}

// appendText writes at most 65535 bytes behind their length.
func appendText(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

// text reads a text of 1 to most bytes.
func (r *reader) text(most int) string {
	n := int(binary.BigEndian.Uint16(r.take(2)))
	if n == 0 || n > most {
		n, r.bad = 0, true
	}
	return string(r.take(n))
}

// point reads the first byte of a point.
func (r *reader) point() byte {
	b := r.byte()
	r.bad = r.bad || b == 0 || !validPoint(b)
	return b
}

// flag reads a byte that is 0 or 1.
func (r *reader) flag() bool {
	b := r.byte()
	r.bad = r.bad || b > 1
	return b == 1
}

func (r *reader) end(what string) error {
	if r.bad || len(r.b) != 0 {
		return fmt.Errorf("%w: %s; restore a backup", ErrRecord, what)
	}
	return nil
}

func appendFlag(dst []byte, b bool) []byte {
	if b {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// save is the effect that puts a record, or with none takes it away.
func save(fx []Effect, key string, rec []byte) []Effect {
	if rec != nil {
		rec = durable.Seal(nil, key, recordVersion, rec)
	}
	return append(fx, Effect{Kind: FxSave, Key: key, Record: rec})
}
