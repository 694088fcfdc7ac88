package swap

import (
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/inflight"
)

// maxPacketHolds bounds the packets in flight with one peer in one direction:
// about 128 KiB of table. It is the same figure that packetnet announces, so
// that an honest peer never meets it.
const maxPacketHolds = 4096

// servicePacket is the name under which packets are counted.
const servicePacket = "packet"

// ErrNoPacket: no packet of that id is held: it was decided before.
var ErrNoPacket = errors.New("swap: no such packet is held")

// PacketHold is the second kind of hold: room on a tab for one packet. It knows
// no session and no time, because who decides the packet may be many hops away;
// it lives until it is committed or released. The journal of packets has it,
// not the book: after a restart RestorePackets brings it back.
//
// Dir Serve is a packet that the peer offered us, under the peer's id for it;
// Consume is one that we offered the peer, under ours.
type PacketHold struct {
	Peer  peer.ID
	ID    uint64
	Dir   Direction
	Units tally.Amount
}

// packetTable has the packets in flight with one peer. It is guarded by the mu
// of the peer's shard.
type packetTable struct{ in, out inflight.Map[tally.Amount] }

func (t *packetTable) of(dir Direction) *inflight.Map[tally.Amount] {
	switch {
	case t == nil:
		return new(inflight.Map[tally.Amount])
	case dir == Serve:
		return &t.in
	default:
		return &t.out
	}
}

// check compares the table with the ledger's sums.
func (t *packetTable) check(l *Ledger) error {
	for _, dir := range [...]Direction{Serve, Consume} {
		var sum tally.Amount
		for _, units := range t.of(dir).All() {
			sum += units
		}
		if held := *l.packetHeld(dir); held != sum {
			return fmt.Errorf("%w: packets to %v: kept %d, counted %d", ErrInvariant, dir, held, sum)
		}
	}
	return nil
}

func (a *account) packetTable() *packetTable {
	if a.packets == nil {
		a.packets = new(packetTable)
	}
	return a.packets
}

// HoldPacket takes room for a packet. It refuses at once with a *RefusedError,
// which names the headroom, and never waits; a refusal to offer starts the
// settlement that makes room. A packet that is held already changes nothing.
func (b *Book) HoldPacket(p peer.ID, id uint64, dir Direction, units tally.Amount) error {
	if err := b.usable(); err != nil {
		return err
	}
	s, a, err := b.lock(p)
	if err != nil {
		return err
	}
	held := a.packetTable().of(dir)
	if _, again := held.Get(id); again {
		s.mu.Unlock()
		return nil
	}
	now := b.now()
	if err := b.admitPacket(s, a, now, dir, units); err != nil {
		refused := b.packetRefusal(a, now, dir, units, err)
		settle := dir == Consume && errors.Is(err, ErrOverThreshold) && a.ledger.settle == settleIdle && a.ledger.owed < 0
		s.mu.Unlock()
		if settle {
			b.settleSoon(p)
		}
		return refused
	}
	held.Put(id, units)
	s.mu.Unlock()
	return nil
}

func (b *Book) admitPacket(s *shard, a *account, now Instant, dir Direction, units tally.Amount) error {
	if a.packets.of(dir).Len() >= maxPacketHolds {
		return ErrTooManyHolds
	}
	if dir == Serve && !a.stored && a.ledger.Empty() && b.records.Load() >= maxStrangers {
		return ErrStranger
	}
	ev := Event{Kind: EvPacketHold, Dir: dir, Units: units}
	if _, err := b.apply(s, a, now, &ev); err != nil {
		if dir == Serve {
			b.denied(s, a, now)
		}
		return err
	}
	if dir == Serve && b.policy.Mode != ModeSoft {
		if err := b.pool.check(&b.policy, a.ledger.Stranger()); err != nil {
			undo := Event{Kind: EvPacketRelease, Dir: dir, Units: units}
			if _, e := b.apply(s, a, now, &undo); e != nil {
				panic("swap: a fresh packet hold cannot be released: " + e.Error())
			}
			return err
		}
	}
	return nil
}

func (b *Book) packetRefusal(a *account, now Instant, dir Direction, units tally.Amount, cause error) error {
	err := b.refusal(a, now, dir, units, cause)
	if e := new(RefusedError); errors.As(err, &e) {
		e.Headroom = b.headroomPacket(a, now, dir)
		if dir == Consume {
			e.Limit = a.ledger.packetLimit()
		}
	}
	return err
}

func (b *Book) headroomPacket(a *account, now Instant, dir Direction) tally.Amount {
	room := a.ledger.HeadroomPacket(now, dir)
	if dir == Serve && b.policy.Mode != ModeSoft {
		prepaid := a.ledger.Balance().Debt()
		room = min(room, b.pool.room(&b.policy, a.ledger.Stranger()).SaturatingAdd(prepaid))
	}
	return room
}

// HeadroomPacket returns how many units of packets fit the tab with p now.
func (b *Book) HeadroomPacket(p peer.ID, dir Direction) (tally.Amount, error) {
	s, a, err := b.lock(p)
	if err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	return b.headroomPacket(a, b.now(), dir), nil
}

// CommitPacket books a packet that was fulfilled, written behind like a service:
// a crash may cost up to W of it. ErrNoPacket where it was decided before. With
// a journal of packets use a PacketBatch.
func (b *Book) CommitPacket(p peer.ID, id uint64, dir Direction) error {
	s, a, err := b.lock(p)
	if err != nil {
		return err
	}
	fx, err := b.commitPacket(s, a, id, dir)
	mustFlush := a.ledger.MustFlush()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if fx != nil {
		b.afterBooking(p, fx)
	}
	if mustFlush {
		ctx, cancel := context.WithTimeout(b.ctx, saveWithin)
		defer cancel()
		return b.flushPeer(ctx, p, (*Ledger).MustFlush)
	}
	return nil
}

// commitPacket books with the shard locked.
func (b *Book) commitPacket(s *shard, a *account, id uint64, dir Direction) ([]Effect, error) {
	held := a.packets.of(dir)
	units, ok := held.Get(id)
	if !ok {
		return nil, ErrNoPacket
	}
	ev := Event{Kind: EvPacketCommit, Dir: dir, Units: units}
	fx, err := b.apply(s, a, b.now(), &ev)
	if err != nil {
		return nil, err
	}
	held.Delete(id)
	a.countService(servicePacket, dir, units)
	b.markDirty(s, a)
	a.wakeAll()
	return fx, nil
}

// ReleasePacket gives the room of a packet back. ErrNoPacket where it was
// decided before.
func (b *Book) ReleasePacket(p peer.ID, id uint64, dir Direction) error {
	s, a, err := b.lock(p)
	if err != nil {
		return err
	}
	defer s.mu.Unlock()
	held := a.packets.of(dir)
	units, ok := held.Get(id)
	if !ok {
		return ErrNoPacket
	}
	ev := Event{Kind: EvPacketRelease, Dir: dir, Units: units}
	if _, err := b.apply(s, a, b.now(), &ev); err != nil {
		return err
	}
	held.Delete(id)
	a.wakeAll()
	return nil
}

// PacketRefused tells that the peer refused a packet for which HoldPacket had found
// room. Where the peer sees a debt that we do not see, it is settled.
func (b *Book) PacketRefused(p peer.ID) {
	s, a, err := b.lock(p)
	if err != nil {
		return
	}
	settle := a.ledger.prepaidByPeer > 0
	if settle {
		ev := Event{Kind: EvPacketRefused}
		_, err = b.apply(s, a, b.now(), &ev)
		settle = err == nil && a.ledger.settle == settleIdle && a.ledger.owed < 0
	}
	s.mu.Unlock()
	if settle {
		b.settleSoon(p)
	}
}

// RestorePackets brings back what was in flight before a restart, before the
// first session begins. These holds count whatever the limits are now: the
// packets have left.
func (b *Book) RestorePackets(list []PacketHold) error {
	for _, h := range list {
		if err := b.restorePacket(h); err != nil {
			return fmt.Errorf("swap: packet %d with %s: %w", h.ID, h.Peer, err)
		}
	}
	return nil
}

func (b *Book) restorePacket(h PacketHold) error {
	s, a, err := b.lock(h.Peer)
	if err != nil {
		return err
	}
	defer s.mu.Unlock()
	held := a.packetTable().of(h.Dir)
	if _, again := held.Get(h.ID); again {
		return nil
	}
	ev := Event{Kind: EvPacketKeep, Dir: h.Dir, Units: h.Units}
	if _, err := b.apply(s, a, b.now(), &ev); err != nil {
		return err
	}
	held.Put(h.ID, h.Units)
	return nil
}

// PacketBatch books packets that were fulfilled so that the tabs reach the disk
// in one batch with the records of the journal that say so. Neither is there
// without the other after a crash, and the journal may repeat itself.
//
//	Commit, Commit, … ─▶ Save(batch) ─▶ store.Commit(batch) ─▶ Done(err)
//
// From the first Commit of a peer to Done nobody else saves that peer's tab;
// booking goes on. One goroutine uses it; a book has one at a time, because two
// could wait for each other.
type PacketBatch struct {
	book  *Book
	open  map[peer.ID]*account
	saves []flushed
	fx    []packetEffects
}

type packetEffects struct {
	peer peer.ID
	fx   []Effect
}

// NewPacketBatch returns an empty batch, to be used again and again.
func (b *Book) NewPacketBatch() *PacketBatch {
	return &PacketBatch{book: b, open: make(map[peer.ID]*account)}
}

// Commit books a packet in memory. ErrNoPacket where it was decided before.
func (t *PacketBatch) Commit(p peer.ID, id uint64, dir Direction) error {
	b := t.book
	var (
		s   *shard
		a   *account
		err error
	)
	if t.open[p] != nil {
		s, a, err = b.lock(p)
	} else {
		s, a, err = b.acquire(b.ctx, p)
	}
	if err != nil {
		return err
	}
	t.open[p] = a
	fx, err := b.commitPacket(s, a, id, dir)
	s.mu.Unlock()
	if fx != nil {
		t.fx = append(t.fx, packetEffects{p, fx})
	}
	return err
}

// Save adds the tabs that changed to batch.
func (t *PacketBatch) Save(batch *durable.Batch) {
	for p, a := range t.open {
		s := t.book.shardOf(p)
		s.mu.Lock()
		save := t.book.snapshot(a)
		s.mu.Unlock()
		save.put(t.book, batch)
		t.saves = append(t.saves, flushed{account: a, save: save})
	}
}

// Done ends the batch with what became of its commit. Settlements that the
// packets made due begin here.
func (t *PacketBatch) Done(err error) {
	b := t.book
	for i := range t.saves {
		b.saved(t.saves[i:i+1], err)
		delete(t.open, t.saves[i].account.peer)
	}
	for p, a := range t.open { // Save was never called
		s := b.shardOf(p)
		s.mu.Lock()
		a.releaseLocked()
		s.mu.Unlock()
	}
	clear(t.open)
	clear(t.saves)
	t.saves = t.saves[:0]
	for i := range t.fx {
		if err == nil {
			b.afterBooking(t.fx[i].peer, t.fx[i].fx)
		}
		t.fx[i] = packetEffects{}
	}
	t.fx = t.fx[:0]
}
