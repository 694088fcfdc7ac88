package paystream

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/internal/durable"
)

const (
	// keepIdle is how long the record of a socket outlives its last packet. What
	// a token has moved is not in it.
	keepIdle = 90 * 24 * time.Hour
	// pruneEvery is how often records are looked through for those that are over.
	pruneEvery = 10 * time.Minute
	// evictPart: where no more sockets fit, this part of the records goes at
	// once, so that looking for the oldest is not done for each.
	evictPart = 16
)

// storedConn is a socket that is not in memory: its record, and what is needed
// without reading it.
type storedConn struct {
	rec  []byte
	from peer.ID
	used int64
	role Role
	live bool
	// token is that of a server's socket.
	token TokenID
}

func storedOf(i *identity, rec []byte) storedConn {
	s := storedConn{rec: rec, from: i.from, used: i.used, role: i.role, live: i.live}
	if i.role == RoleServer {
		s.token = i.token.ID()
	}
	return s
}

// eraser deletes the records of sockets and budgets that are still gone when it
// is called.
func (e *Endpoint) eraser(sockets []SocketID, budgets []TokenID) Record {
	return func(b *durable.Batch) {
		e.mu.Lock()
		defer e.mu.Unlock()
		for _, id := range sockets {
			if _, stored := e.stored[id]; !stored && e.conns[id] == nil {
				b.Delete(connKey(id))
			}
		}
		e.budgetMu.Lock()
		defer e.budgetMu.Unlock()
		for _, id := range budgets {
			if e.budgets[id] == nil {
				b.Delete(budgetKey(id))
			}
		}
	}
}

// idler writes that a socket has become idle, if it still is.
func (e *Endpoint) idler(id SocketID, rec []byte) Record {
	return func(b *durable.Batch) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if _, stored := e.stored[id]; stored {
			key := connKey(id)
			b.Put(key, durable.Seal(nil, key, connVersion, rec))
		}
	}
}

// load brings back budgets, sockets and holds. Sockets with a hold come into
// memory at once, because their answers are due, and so do those that were live:
// nobody else may know that they were asked for money, or that the other end has
// to be told of the restart. A socket whose record does not read stays where it is
// and is refused, and the others work.
func (e *Endpoint) load(ctx context.Context) error {
	s := e.cfg.Store
	err := eachRecord(ctx, s, budgetPrefix, budgetVersion, func(id [16]byte, p []byte, err error) error {
		if err != nil {
			return err
		}
		b, err := ParseBudget(p)
		if err == nil {
			b.written = true
			e.budgets[TokenID(id)] = b
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("paystream: read budgets: %w", err)
	}
	err = eachRecord(ctx, s, connPrefix, connVersion, func(id [16]byte, p []byte, err error) error {
		var ident identity
		if err == nil {
			ident, _, err = parseConn(SocketID(id), p)
		}
		if err != nil {
			e.damaged[SocketID(id)] = err
			e.log.Error("socket refused: its record is damaged; restore the store from a backup, or open a new socket", "socket", SocketID(id).String(), "err", err)
			return nil
		}
		e.stored[SocketID(id)] = storedOf(&ident, append([]byte(nil), p...))
		e.perPeer[ident.from]++
		return nil
	})
	if err != nil {
		return fmt.Errorf("paystream: read sockets: %w", err)
	}
	err = eachRecord(ctx, s, holdPrefix, holdVersion, func(id [16]byte, p []byte, err error) error {
		if err != nil {
			return err
		}
		h, err := parseHold(p)
		if err != nil {
			return err
		}
		return e.restoreHold(PacketID(id), h)
	})
	if err != nil {
		return fmt.Errorf("paystream: read holds: %w", err)
	}
	e.goOn()
	if erase := e.collect(time.Now()); erase != nil {
		var b durable.Batch
		erase(&b)
		if err := s.Commit(ctx, &b); err != nil {
			return fmt.Errorf("paystream: delete what is over: %w", err)
		}
	}
	return nil
}

// goOn takes the sockets into memory whose money was to move still, and has them
// begin one after the other.
func (e *Endpoint) goOn() {
	for id, s := range e.stored {
		if s.live {
			if _, err := e.revive(id); err != nil {
				e.log.Error("socket does not go on", "socket", id.String(), "err", err)
			}
		}
	}
	at := e.now()
	for _, c := range e.conns {
		c.calls, c.openAt = true, at
		at += restartPace
	}
}

// restartPace is the time from one socket that goes on after a restart to the next.
const restartPace = 100 * time.Microsecond

// restoreHold puts a packet in flight back where it counts: against its budget in
// any case, and on its socket.
func (e *Endpoint) restoreHold(id PacketID, h heldPacket) error {
	b := e.budgets[h.token]
	if b != nil {
		b.Restore(h.amount)
	}
	if e.damaged[h.socket] != nil {
		e.strays[id] = h
		return nil
	}
	c, err := e.revive(h.socket)
	if err != nil {
		return err
	}
	if err := c.sock.Restore(id, h.amount, h.least, h.high); err != nil {
		return err
	}
	o := &Outgoing{ID: id, conn: c, flight: flight{kind: outMoney, amount: h.amount, old: true}}
	c.flies(o)
	e.old[id] = o
	return nil
}

// stray ends a packet of a socket whose record is damaged: its budget learns.
func (e *Endpoint) stray(a *Answer) Record {
	e.mu.Lock()
	h, ok := e.strays[a.ID]
	delete(e.strays, a.ID)
	e.mu.Unlock()
	if !ok {
		return nil
	}
	e.budgetMu.Lock()
	defer e.budgetMu.Unlock()
	if b := e.budgets[h.token]; b != nil {
		b.Settle(h.amount, a.Fulfilled)
	}
	return func(batch *durable.Batch) {
		batch.Delete(holdKey(a.ID))
		e.recordBudget(batch, h.token)
	}
}

// revive takes a socket into memory again, where it counts as before. Called with
// mu held, or before use.
func (e *Endpoint) revive(id SocketID) (*Conn, error) {
	if c := e.conns[id]; c != nil {
		return c, nil
	}
	if err := e.damaged[id]; err != nil {
		return nil, err
	}
	stored, ok := e.stored[id]
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNoSocket, id)
	}
	ident, sock, err := parseConn(id, stored.rec)
	if err != nil {
		return nil, err
	}
	c, err := e.newConn(ident, sock)
	if err != nil {
		return nil, err
	}
	c.written = e.cfg.Store != nil
	if ident.role == RoleServer {
		g, err := e.cfg.Key.Grant(&ident.token, time.Now())
		if err == nil {
			c.grant = g
			_, _, err = e.join(ident.token.ID(), g, id)
		}
		if err != nil {
			// The token has expired, or belongs to another socket by now. Nothing
			// more moves, but what is in flight is booked.
			c.closed = err
		}
	}
	delete(e.stored, id)
	e.conns[id] = c
	return c, nil
}

// makeRoom forgets the records used longest ago, of those that came through from
// or, without it, of all; it reports whether there were any. Only a server's are
// forgotten: its money is in its token's budget, and the peer, which finds a
// socket that has received less than it knows, opens a new one. Called with mu
// held.
func (e *Endpoint) makeRoom(from peer.ID) bool {
	var ids []SocketID
	for id, s := range e.stored {
		if s.role == RoleServer && (from == "" || s.from == from) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b SocketID) int { return cmp.Compare(e.stored[a].used, e.stored[b].used) })
	ids = ids[:(len(ids)+evictPart-1)/evictPart]
	for _, id := range ids {
		e.uncount(e.stored[id].from)
		delete(e.stored, id)
	}
	if len(ids) > 0 {
		e.saveLater(e.eraser(ids, nil))
	}
	return len(ids) > 0
}

// collect forgets budgets that are over, their sockets, and sockets that were not
// used for keepIdle. It returns what deletes their records, or nil. Called with mu
// held, or before use.
func (e *Endpoint) collect(now time.Time) Record {
	var budgets []TokenID
	e.budgetMu.Lock()
	for id, b := range e.budgets {
		if b.Forget(now) {
			budgets = append(budgets, id)
			delete(e.budgets, id)
		}
	}
	var sockets []SocketID
	for id, s := range e.stored {
		if s.role == RoleServer && e.budgets[s.token] == nil || now.Unix()-s.used >= int64(keepIdle/time.Second) {
			sockets = append(sockets, id)
			e.uncount(s.from)
			delete(e.stored, id)
		}
	}
	e.budgetMu.Unlock()
	if len(budgets)+len(sockets) == 0 {
		return nil
	}
	return e.eraser(sockets, budgets)
}

// prune forgets what is over, and comes again.
func (e *Endpoint) prune() {
	for _, c := range e.Sockets() {
		if c.gone() {
			c.drop()
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	if erase := e.collect(time.Now()); erase != nil {
		e.saveLater(erase)
	}
	e.pruner.Reset(pruneEvery)
}
