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
	from  peer.ID // the neighbour that it came through; of a client, dest
	used  int64   // Unix seconds; when it was written last
	// live: when it was written last, money was to move still.
	live bool
}

// liveBit is set in the byte of the role.
const liveBit = 0x80

// appendConn encodes a socket: who it is with, and its money.
func appendConn(dst []byte, i *identity, s *Socket) []byte {
	role := byte(i.role)
	if i.live {
		role |= liveBit
	}
	dst = append(dst, role, byte(i.kdf), byte(len(i.via)))
	dst = append(dst, i.psk[:]...)
	dst = append(dst, i.token[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(i.used))
	for _, id := range append([]peer.ID{i.dest, i.from}, i.via...) {
		dst = append(append(dst, byte(len(id))), id...)
	}
	return s.AppendRecord(dst)
}

func parseConn(id SocketID, b []byte) (identity, *Socket, error) {
	const head = 3 + 32 + TokenSize + 8
	bad := fmt.Errorf("%w: socket %s", ErrRecord, id)
	if len(b) < head {
		return identity{}, nil, bad
	}
	i := identity{id: id, role: Role(b[0] &^ liveBit), live: b[0]&liveBit != 0, kdf: KDF(b[1]), psk: Secret(b[3:35]), token: Token(b[35 : head-8])}
	i.used = int64(binary.BigEndian.Uint64(b[head-8:]))
	n := int(b[2])
	if i.role != RoleClient && i.role != RoleServer || n > MaxVia {
		return identity{}, nil, bad
	}
	b = b[head:]
	for k := range n + 2 {
		if len(b) == 0 || len(b) < 1+int(b[0]) || int(b[0]) > maxPeerID {
			return identity{}, nil, bad
		}
		p := peer.ID(b[1 : 1+int(b[0])])
		b = b[1+len(p):]
		switch k {
		case 0:
			i.dest = p
		case 1:
			i.from = p
		default:
			i.via = append(i.via, p)
		}
	}
	s, err := ParseSocket(b)
	if err != nil {
		err = fmt.Errorf("socket %s: %w", id, err)
	}
	return i, s, err
}

// heldPacket is a packet of ours that was not decided when we stopped.
type heldPacket struct {
	socket              SocketID
	token               TokenID // of a server's: whose budget it holds
	amount, least, high tally.Amount
}

func appendHold(dst []byte, h heldPacket) []byte {
	dst = append(append(dst, h.socket[:]...), h.token[:]...)
	for _, n := range [...]tally.Amount{h.amount, h.least, h.high} {
		dst = binary.BigEndian.AppendUint64(dst, uint64(n))
	}
	return dst
}

func parseHold(b []byte) (heldPacket, error) {
	if len(b) != 32+3*8 {
		return heldPacket{}, fmt.Errorf("%w: hold", ErrRecord)
	}
	n := func(i int) tally.Amount { return tally.Amount(binary.BigEndian.Uint64(b[32+8*i:])) }
	return heldPacket{socket: SocketID(b[:16]), token: TokenID(b[16:32]), amount: n(0), least: n(1), high: n(2)}, nil
}

// eachRecord calls fn with the id and payload of each record below a prefix, or
// with why it does not read.
func eachRecord(ctx context.Context, s *durable.Store, prefix string, version byte, fn func(id [16]byte, payload []byte, err error) error) error {
	return s.Scan(ctx, prefix, "", func(key string, value []byte) error {
		raw, err := durable.ParseKeyID(key[len(prefix):])
		if err != nil {
			return err
		}
		if len(raw) != 16 {
			return fmt.Errorf("%w: key %q", ErrRecord, key)
		}
		_, payload, err := durable.Unseal(key, version, value)
		return fn([16]byte(raw), payload, err)
	})
}

// record adds the socket, its budget, and the end of decided holds to a batch.
func (c *Conn) record(b *durable.Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recordLocked(b)
}

func (c *Conn) recordLocked(b *durable.Batch) {
	if c.e.cfg.Store == nil || !c.dirty {
		return // a record before this one, in this batch or an earlier one, says it
	}
	c.dirty, c.written = false, true
	c.ident.used, c.ident.live = time.Now().Unix(), c.closed == nil && !c.settled()
	key := connKey(c.ident.id)
	b.Put(key, durable.Seal(nil, key, connVersion, appendConn(nil, &c.ident, c.sock)))
	for _, id := range c.decided {
		b.Delete(holdKey(id))
	}
	c.decided = c.decided[:0]
	if c.ident.role == RoleServer {
		c.e.recordBudget(b, c.tokenID)
	}
}

// recordBudget adds a token's budget to a batch.
func (e *Endpoint) recordBudget(b *durable.Batch, id TokenID) {
	e.budgetMu.Lock()
	defer e.budgetMu.Unlock()
	if bud := e.budgets[id]; bud != nil {
		bud.written = true
		key := budgetKey(id)
		b.Put(key, durable.Seal(nil, key, budgetVersion, bud.AppendRecord(nil)))
	}
}

// recordHold is record with a new hold. One that is decided already, because the
// carrier refused it, is not written.
func (c *Conn) recordHold(b *durable.Batch, o *Outgoing, h hold) {
	if c.e.cfg.Store == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recordLocked(b)
	if o.at < 0 {
		return
	}
	held := heldPacket{socket: c.ident.id, amount: h.amount, least: h.least, high: h.high}
	if c.ident.role == RoleServer {
		held.token = c.tokenID
	}
	key := holdKey(o.ID)
	b.Put(key, durable.Seal(nil, key, holdVersion, appendHold(nil, held)))
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
