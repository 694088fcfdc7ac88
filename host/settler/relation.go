package settler

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/swap"
)

// relation is what ties us to one peer on the chain. turn is the right to change
// it: calls for one peer are one after the other, and hold no lock.
type relation struct {
	peer peer.ID
	turn chan struct{}

	// address is where the peer is paid and pays from, as its last handshake
	// proved; undefined before. It is kept on disk while a link lives.
	address address.Address
	// proof is what the last handshake of this run showed for it; nil before.
	proof []byte
	// out backs our cheques, in the peer's.
	out, in link
	// numbers counts our channels with the peer, ever.
	numbers uint64
	// filling: a top-up of our channel is being made.
	filling bool
}

func newRelation(p peer.ID) *relation {
	return &relation{peer: p, turn: make(chan struct{}, 1), out: link{base: big.Zero()}, in: link{base: big.Zero()}}
}

// live reports whether a channel of either direction stands.
func (r *relation) live() bool { return r.out.state != linkNone || r.in.state != linkNone }

// take waits for the turn.
func (r *relation) take(ctx context.Context) error {
	select {
	case r.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *relation) give() { <-r.turn }

func (r *relation) link(dir swap.Direction) *link {
	if dir == swap.Serve {
		return &r.in
	}
	return &r.out
}

// Records.
const (
	dirRelations    = "/settle/p/"
	relationVersion = 1
)

var errRecord = errors.New("settler: malformed record")

func relationKey(p peer.ID) string { return dirRelations + durable.KeyID([]byte(p)) }

// encode is the record:
//
//	u64 numbers | u8 len, address | out | in
//	link: u8 state | u8 len, channel | u64 origin | u8 len, base | u64 number
func (r *relation) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, r.numbers)
	b = appendShort(b, r.address.Bytes())
	for _, l := range [...]*link{&r.out, &r.in} {
		b = append(b, byte(l.state))
		b = appendShort(b, l.channel.Bytes())
		b = binary.BigEndian.AppendUint64(b, uint64(l.origin))
		b = appendShort(b, l.base.Int.Bytes())
		b = binary.BigEndian.AppendUint64(b, l.number)
	}
	return b
}

// appendShort writes b behind its length in one byte; addresses and bases are
// shorter than that can tell.
func appendShort(dst, b []byte) []byte { return append(append(dst, byte(len(b))), b...) }

type recordReader struct {
	b   []byte
	bad bool
}

func (r *recordReader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return make([]byte, min(n, 8))
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *recordReader) u8() byte      { return r.take(1)[0] }
func (r *recordReader) u64() uint64   { return binary.BigEndian.Uint64(r.take(8)) }
func (r *recordReader) short() []byte { return r.take(int(r.u8())) }

func (r *recordReader) address() address.Address {
	b := r.short()
	if r.bad || len(b) == 0 {
		return address.Undef
	}
	a, err := address.NewFromBytes(b)
	r.bad = r.bad || err != nil
	return a
}

func decodeRelation(p peer.ID, payload []byte) (*relation, error) {
	rd := recordReader{b: payload}
	r := newRelation(p)
	r.numbers = rd.u64()
	r.address = rd.address()
	for _, l := range [...]*link{&r.out, &r.in} {
		l.state = linkState(rd.u8())
		l.channel = rd.address()
		l.origin = tally.Amount(rd.u64())
		l.base = big.PositiveFromUnsignedBytes(rd.short())
		l.number = rd.u64()
	}
	if rd.bad || len(rd.b) != 0 || r.out.state > linkBound || r.in.state > linkBound {
		return nil, fmt.Errorf("%w: relation with %s", errRecord, p)
	}
	return r, nil
}

// load reads all relations.
func load(ctx context.Context, store *durable.Store) ([]*relation, error) {
	var all []*relation
	err := store.Scan(ctx, dirRelations, "", func(key string, rec []byte) error {
		_, payload, err := durable.Unseal(key, relationVersion, rec)
		if err != nil {
			return err
		}
		raw, err := durable.ParseKeyID(key[len(dirRelations):])
		if err != nil {
			return err
		}
		r, err := decodeRelation(peer.ID(raw), payload)
		if err != nil {
			return err
		}
		all = append(all, r)
		return nil
	})
	return all, err
}
