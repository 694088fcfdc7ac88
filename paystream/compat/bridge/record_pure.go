package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream/compat/btp"
	"github.com/tallystick/tally/paystream/compat/envelope"
)

// Where the rows lie.
const (
	prefixAll     = "/bridge/"
	prefixClients = "/bridge/client/"
	prefixTokens  = "/bridge/token/"
	prefixPackets = "/bridge/packet/"

	recordVersion byte = 1
)

var errRecord = errors.New("bridge: damaged row")

func (p Party) key() string {
	if p.Client != "" {
		return prefixClients + durable.KeyID([]byte(p.Client))
	}
	return prefixTokens + durable.KeyID(p.Token[:])
}

func packetKey(id PacketID) string { return prefixPackets + durable.KeyID(id[:]) }

func put(batch *durable.Batch, key string, payload []byte) {
	batch.Put(key, durable.Seal(nil, key, recordVersion, payload))
}

func appendAmounts(b []byte, list ...tally.Amount) []byte {
	for _, n := range list {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return b
}

// Save adds a party's row as it is now, or its deletion where it is gone.
func (b *Book) Save(batch *durable.Batch, p Party) {
	key := p.key()
	if p.Client != "" {
		c := b.clients[p.Client]
		if c == nil {
			batch.Delete(key)
			return
		}
		rec := append([]byte{byte(len(c.Name))}, c.Name...)
		rec = append(rec, c.Token[:]...)
		put(batch, key, appendAmounts(rec, c.Limits.Credit, c.Limits.Debt, c.Sent, c.Received, c.PaidIn, c.PaidOut, c.Late))
		return
	}
	t := b.tokens[p.Token]
	if t == nil {
		batch.Delete(key)
		return
	}
	rec := append(make([]byte, 0, 256), p.Token[:]...)
	rec = binary.BigEndian.AppendUint64(rec, uint64(t.expires))
	rec = binary.BigEndian.AppendUint64(appendAmounts(rec, t.received, t.sent), t.booked)
	for _, m := range t.seen {
		rec = append(rec, m[:]...)
	}
	put(batch, key, rec)
}

// SavePacket adds the row of a packet that is about to leave, and that of its party.
func (b *Book) SavePacket(batch *durable.Batch, id PacketID) {
	p := b.packets[id]
	if p == nil {
		return
	}
	p.saved = true
	rec := append(make([]byte, 0, 128), id[:]...)
	rec = append(rec, byte(len(p.from.Client)))
	rec = append(rec, p.from.Client...)
	rec = append(rec, p.from.Token[:]...)
	rec = append(rec, p.mark[:]...)
	put(batch, packetKey(id), appendAmounts(rec, p.amount))
	b.Save(batch, p.from)
}

// DeletePacket takes the row of a packet away.
func DeletePacket(batch *durable.Batch, id PacketID) { batch.Delete(packetKey(id)) }

type recordReader struct {
	b   []byte
	bad bool
}

func (r *recordReader) take(n int) []byte {
	if len(r.b) < n {
		r.bad = true
		return make([]byte, n)
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *recordReader) amount() tally.Amount {
	a := tally.Amount(binary.BigEndian.Uint64(r.take(8)))
	r.bad = r.bad || a > maxTotal
	return a
}

func (r *recordReader) name() string { return string(r.take(int(r.take(1)[0]))) }

// Restore takes one row of an earlier run. Those of packets come after those of
// clients and tokens, as their keys do not sort: the caller reads them by kind.
func (b *Book) Restore(key string, rec []byte) error {
	_, payload, err := durable.Unseal(key, recordVersion, rec)
	if err != nil {
		return err
	}
	r := recordReader{b: payload}
	bad := func() error { return fmt.Errorf("%w: %s", errRecord, key) }
	switch {
	case strings.HasPrefix(key, prefixClients):
		c := &Client{Name: r.name(), Token: btp.TokenHash(r.take(32))}
		for _, n := range [...]*tally.Amount{&c.Limits.Credit, &c.Limits.Debt, &c.Sent, &c.Received, &c.PaidIn, &c.PaidOut, &c.Late} {
			*n = r.amount()
		}
		if r.bad || len(r.b) != 0 || CheckName(c.Name) != nil || (Party{Client: c.Name}).key() != key {
			return bad()
		}
		b.clients[c.Name] = c
	case strings.HasPrefix(key, prefixTokens):
		id, t := TokenID(r.take(len(TokenID{}))), new(token)
		t.expires = int64(binary.BigEndian.Uint64(r.take(8)))
		t.received, t.sent = r.amount(), r.amount()
		t.booked = binary.BigEndian.Uint64(r.take(8))
		for !r.bad && len(r.b) > 0 && len(t.seen) < seenPackets {
			t.seen = append(t.seen, [16]byte(r.take(16)))
		}
		if r.bad || len(r.b) != 0 || (Party{Token: id}).key() != key || uint64(len(t.seen)) != min(t.booked, seenPackets) {
			return bad()
		}
		b.tokens[id] = t
	case strings.HasPrefix(key, prefixPackets):
		id := PacketID(r.take(len(PacketID{})))
		p := &packet{saved: true, late: true}
		p.from.Client = r.name()
		p.from.Token = TokenID(r.take(len(TokenID{})))
		p.mark = envelope.Mark(r.take(len(envelope.Mark{})))
		p.amount = r.amount()
		if r.bad || len(r.b) != 0 || packetKey(id) != key {
			return bad()
		}
		if c := b.clients[p.from.Client]; c != nil {
			c.sending += p.amount
		} else if p.from.Client != "" {
			return fmt.Errorf("%w: packet of client %q, who is not there", errRecord, p.from.Client)
		} else {
			t := b.tokens[p.from.Token]
			if t == nil {
				return fmt.Errorf("%w: packet of token %s, which is not there", errRecord, p.from.Token)
			}
			t.sending += p.amount
		}
		b.enter(id, p)
	case strings.HasPrefix(key, prefixPointers):
		return b.restorePointer(key, &r)
	default:
		return bad()
	}
	return nil
}
