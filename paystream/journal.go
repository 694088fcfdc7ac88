package paystream

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// Versions of the records, one byte in front of each.
const (
	connVersion   byte = 1
	holdVersion   byte = 1
	budgetVersion byte = 1
)

const (
	connPrefix   = "/paystream/socket/"
	holdPrefix   = "/paystream/hold/"
	budgetPrefix = "/paystream/budget/"
)

func connKey(id SocketID) string  { return connPrefix + durable.KeyID(id[:]) }
func holdKey(id PacketID) string  { return holdPrefix + durable.KeyID(id[:]) }
func budgetKey(id TokenID) string { return budgetPrefix + durable.KeyID(id[:]) }

// identity is what names a socket at one end and does not change, but for the
// way to the peer.
type identity struct {
	id    SocketID
	role  Role
	kdf   KDF
	psk   Secret
	token Token
	dest  peer.ID
	via   []peer.ID
}

// appendConn encodes a socket: who it is with, and its money.
func appendConn(dst []byte, i *identity, s *Socket) []byte {
	dst = append(dst, byte(i.role), byte(i.kdf), byte(len(i.via)))
	dst = append(dst, i.psk[:]...)
	dst = append(dst, i.token[:]...)
	for _, id := range append([]peer.ID{i.dest}, i.via...) {
		dst = append(append(dst, byte(len(id))), id...)
	}
	return s.AppendRecord(dst)
}

func parseConn(id SocketID, b []byte) (identity, *Socket, error) {
	const head = 3 + 32 + TokenSize
	bad := fmt.Errorf("%w: socket %s", ErrRecord, id)
	if len(b) < head {
		return identity{}, nil, bad
	}
	i := identity{id: id, role: Role(b[0]), kdf: KDF(b[1]), psk: Secret(b[3:35]), token: Token(b[35:head])}
	n := int(b[2])
	if i.role != RoleClient && i.role != RoleServer || n > MaxVia {
		return identity{}, nil, bad
	}
	b = b[head:]
	for k := range n + 1 {
		if len(b) == 0 || len(b) < 1+int(b[0]) || int(b[0]) > maxPeerID {
			return identity{}, nil, bad
		}
		p := peer.ID(b[1 : 1+int(b[0])])
		if b = b[1+len(p):]; k == 0 {
			i.dest = p
		} else {
			i.via = append(i.via, p)
		}
	}
	s, err := ParseSocket(b)
	return i, s, err
}

// heldPacket is a packet of ours that was not decided when we stopped.
type heldPacket struct {
	socket              SocketID
	amount, least, high tally.Amount
}

func appendHold(dst []byte, h heldPacket) []byte {
	dst = append(dst, h.socket[:]...)
	for _, n := range [...]tally.Amount{h.amount, h.least, h.high} {
		dst = binary.BigEndian.AppendUint64(dst, uint64(n))
	}
	return dst
}

func parseHold(b []byte) (heldPacket, error) {
	if len(b) != 16+3*8 {
		return heldPacket{}, fmt.Errorf("%w: hold", ErrRecord)
	}
	n := func(i int) tally.Amount { return tally.Amount(binary.BigEndian.Uint64(b[16+8*i:])) }
	return heldPacket{socket: SocketID(b[:16]), amount: n(0), least: n(1), high: n(2)}, nil
}

// eachRecord calls fn with the id and payload of each record below a prefix.
func eachRecord(ctx context.Context, s *durable.Store, prefix string, version byte, fn func(id [16]byte, payload []byte) error) error {
	return s.Scan(ctx, prefix, "", func(key string, value []byte) error {
		raw, err := durable.ParseKeyID(key[len(prefix):])
		if err != nil {
			return err
		}
		if len(raw) != 16 {
			return fmt.Errorf("%w: key %q", ErrRecord, key)
		}
		_, payload, err := durable.Unseal(key, version, value)
		if err != nil {
			return err
		}
		return fn([16]byte(raw), payload)
	})
}
