package swap

import (
	"context"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Check returns the first fact about the book that should hold and does not:
// each ledger is whole, memory and disk agree where nothing is unsaved, the sums
// that all peers share are those of the tabs, and reservations are those of the
// live holds. It reads the whole store. Only a book that nobody uses meanwhile
// has to pass it.
func (b *Book) Check(ctx context.Context) error {
	var total, strangers tally.Amount
	var live, records int
	inMemory := make(map[peer.ID]account)
	add := func(l *Ledger) {
		total += l.Exposure()
		if l.Stranger() {
			strangers += l.Exposure()
		}
	}
	for i := range b.shards {
		n, err := b.shards[i].check(func(a *account) {
			add(&a.ledger)
			inMemory[a.peer] = *a
			if a.stored && a.ledger.Stranger() {
				records++
			}
		})
		if err != nil {
			return err
		}
		live += n
	}
	err := b.store.Scan(ctx, b.keys.prefix(shelfLedger), "", func(key string, rec []byte) error {
		l, _, err := b.unsealLedger(key, rec)
		if err != nil {
			return err
		}
		p, err := b.keys.peerOf(key)
		if err != nil {
			return err
		}
		if a, ok := inMemory[p]; ok {
			return a.matches(&l)
		}
		add(&l)
		if l.Stranger() {
			records++
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, sum := range [...]struct {
		name      string
		got, want int64
	}{
		{"exposure of all peers", int64(b.pool.total.Load()), int64(total)},
		{"exposure of strangers", int64(b.pool.strangers.Load()), int64(strangers)},
		{"records of strangers", b.records.Load(), int64(records)},
		{"live holds", int64(b.live.Load()), int64(live)},
	} {
		if sum.got != sum.want {
			return fmt.Errorf("%w: %s: kept %d, counted %d", ErrInvariant, sum.name, sum.got, sum.want)
		}
	}
	return nil
}

// check checks the accounts of a shard against its holds, and calls each.
func (s *shard) check(each func(*account)) (live int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	type inFlight struct {
		units tally.Amount
		holds uint8
	}
	held := make(map[peer.ID][Consume + 1]inFlight)
	for st := s.holds.root.next; st != &s.holds.root; st = st.next {
		h := held[st.peer]
		h[st.dir].units += st.units
		h[st.dir].holds++
		held[st.peer] = h
		live++
	}
	for p, a := range s.accounts {
		each(a)
		if err := a.ledger.Check(); err != nil {
			return live, fmt.Errorf("%s: %w", p, err)
		}
		if err := a.packets.check(&a.ledger); err != nil {
			return live, fmt.Errorf("%s: %w", p, err)
		}
		h := held[p]
		serve, consume := inFlight{a.ledger.shadow, a.serving}, inFlight{a.ledger.reserved, a.consuming}
		if h[Serve] != serve || h[Consume] != consume {
			return live, fmt.Errorf("%w: holds of %s: %v, but the tab has %v and %v", ErrInvariant, p, h, serve, consume)
		}
	}
	return live, nil
}

// matches reports whether a record is the account's, where nothing is unsaved.
// An intent alone need not be on disk: who issues it saves it.
func (a *account) matches(disk *Ledger) error {
	l := &a.ledger
	if a.listed || a.saving || l.settle == settleIntent {
		return nil
	}
	type facts struct {
		owed                                        tally.Balance
		served, consumed, received, paid, issued    tally.Amount
		accepted, covered, forgiven, byPeer, toPeer tally.Amount
		sent, got                                   uint64
	}
	of := func(l *Ledger) facts {
		return facts{
			l.owed, l.served, l.consumed, l.received, l.paid, l.issued,
			l.accepted, l.covered, l.forgiven, l.prepaidByPeer, l.prepaidToPeer, l.sentSerial, l.receivedSerial,
		}
	}
	if of(l) != of(disk) {
		return fmt.Errorf("%w: %s: in memory %+v, on disk %+v", ErrInvariant, a.peer, of(l), of(disk))
	}
	return nil
}
