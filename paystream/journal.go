package paystream

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

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

func connKey(id SocketID) string { return connPrefix + durable.KeyID(id[:]) }

func holdKey(id PacketID) string { return holdPrefix + durable.KeyID(id[:]) }

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

// load brings back budgets, sockets and holds. Sockets with a hold come into
// memory at once, because their answers are due.
func (e *Endpoint) load(ctx context.Context) error {
	s := e.cfg.Store
	err := eachRecord(ctx, s, budgetPrefix, budgetVersion, func(id [16]byte, p []byte) error {
		b, err := ParseBudget(p)
		if err == nil && !b.Forget(time.Now()) {
			e.budgets[TokenID(id)] = b
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("paystream: read budgets: %w", err)
	}
	err = eachRecord(ctx, s, connPrefix, connVersion, func(id [16]byte, p []byte) error {
		e.stored[SocketID(id)] = append([]byte(nil), p...)
		return nil
	})
	if err != nil {
		return fmt.Errorf("paystream: read sockets: %w", err)
	}
	err = eachRecord(ctx, s, holdPrefix, holdVersion, func(id [16]byte, p []byte) error {
		h, err := parseHold(p)
		if err != nil {
			return err
		}
		c, err := e.revive(h.socket)
		if err != nil {
			return err
		}
		if err := c.sock.Restore(PacketID(id), h.amount, h.least, h.high); err != nil {
			return err
		}
		if b := e.budgets[c.ident.token.ID()]; b != nil && c.ident.role == RoleServer {
			b.Restore(h.amount)
		}
		c.out[PacketID(id)] = outgoing{kind: outMoney, amount: h.amount, old: true}
		e.packets[PacketID(id)] = c
		return nil
	})
	if err != nil {
		return fmt.Errorf("paystream: read holds: %w", err)
	}
	return nil
}

// revive takes a socket into memory again. Called with mu held, or before use.
func (e *Endpoint) revive(id SocketID) (*Conn, error) {
	if c := e.conns[id]; c != nil {
		return c, nil
	}
	rec, ok := e.stored[id]
	if !ok {
		return nil, fmt.Errorf("%w: no socket %s", ErrRecord, id)
	}
	ident, sock, err := parseConn(id, rec)
	if err != nil {
		return nil, err
	}
	c, err := e.newConn(ident, sock)
	if err != nil {
		return nil, err
	}
	if ident.role == RoleServer {
		// An expired token moves nothing more, but what is in flight is booked.
		if g, err := e.cfg.Key.Grant(&ident.token, time.Now()); err == nil {
			c.grant = g
			if _, _, err := e.join(ident.token.ID(), g, id); err != nil {
				return nil, err
			}
		}
	}
	delete(e.stored, id)
	e.conns[id] = c
	return c, nil
}

// record adds the socket, its budget, and the end of decided holds to a batch.
func (c *Conn) record(b *durable.Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recordLocked(b)
}

func (c *Conn) recordLocked(b *durable.Batch) {
	if c.e.cfg.Store == nil {
		return
	}
	key := connKey(c.ident.id)
	b.Put(key, durable.Seal(nil, key, connVersion, appendConn(nil, &c.ident, c.sock)))
	for _, id := range c.decided {
		b.Delete(holdKey(id))
	}
	c.decided = c.decided[:0]
	if c.ident.role != RoleServer {
		return
	}
	tok := c.ident.token.ID()
	c.e.budgetMu.Lock()
	defer c.e.budgetMu.Unlock()
	if bud := c.e.budgets[tok]; bud != nil {
		key := budgetKey(tok)
		b.Put(key, durable.Seal(nil, key, budgetVersion, bud.AppendRecord(nil)))
	}
}

// recordHold is record with a new hold. One that is decided already, because the
// carrier refused it, is not written.
func (c *Conn) recordHold(b *durable.Batch, id PacketID, h hold) {
	if c.e.cfg.Store == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recordLocked(b)
	if _, ok := c.out[id]; !ok {
		return
	}
	key := holdKey(id)
	b.Put(key, durable.Seal(nil, key, holdVersion, appendHold(nil, heldPacket{socket: c.ident.id, amount: h.amount, least: h.least, high: h.high})))
}

// save writes a record that belongs to no packet.
func (e *Endpoint) save(record Record) {
	if e.cfg.Store == nil {
		return
	}
	failed := func(err error) {
		if err != nil {
			e.log.Error("socket not saved", "err", err)
		}
	}
	if e.carrier != nil {
		failed(e.carrier.Save(record))
		return
	}
	var b durable.Batch // before Start no packet has a record that could be overtaken
	record(&b)
	e.cfg.Store.Submit(&b, failed)
}
