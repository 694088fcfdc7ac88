package swap

import (
	"context"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/internal/durable"
)

// forgetEvery is the time between two looks for records of strangers that grew
// old; a look reads every record once.
const forgetEvery = time.Hour

// tickLoop drives what only time moves.
func (b *Book) tickLoop() {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	for n := 0; ; n++ {
		select {
		case <-ticker.C:
			b.tick(n)
		case <-b.ctx.Done():
			return
		}
	}
}

func (b *Book) tick(n int) {
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		now := b.now()
		b.expireOld(s, now)
		due := b.tickShard(s, now)
		s.mu.Unlock()
		for _, d := range due {
			// A peer that does not read must not hold up the others. Goroutines
			// are bounded by the accounts that are watched.
			b.spawn(func() { b.tickEffects(s, d) }) // ends within saveWithin
		}
	}
	b.evict(&b.shards[n%shardCount]) // each shard about once a minute
}

// forgetLoop keeps the long look for old records away from what ticks.
func (b *Book) forgetLoop() {
	ticker := time.NewTicker(forgetEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-b.ctx.Done():
			return
		}
		if err := b.forgetOld(b.ctx); err != nil && b.ctx.Err() == nil {
			b.log.Error("old records of strangers could not be dropped", "err", err)
		}
	}
}

type dueEffects struct {
	account *account // stays in memory while it is ticking
	fx      []Effect
}

// fxTell answers a statement that crossed one of ours.
var fxTell = []Effect{{Kind: FxSendStatement}}

// tickShard steps the watched accounts. Effects are rare, so the list is short.
func (b *Book) tickShard(s *shard, now Instant) []dueEffects {
	var due []dueEffects
	for p, a := range s.watched {
		if a.ticking {
			continue
		}
		blocked := a.ledger.blockedUntil
		ev := Event{Kind: EvTick}
		fx, err := b.apply(s, a, now, &ev)
		if err != nil {
			b.log.Error("tick", "peer", p, "err", err)
			continue
		}
		if fx == nil && a.owesAnswer() {
			fx = fxTell
		}
		if fx != nil {
			a.ticking = true
			due = append(due, dueEffects{account: a, fx: fx})
		}
		if blocked != 0 && a.ledger.blockedUntil == 0 {
			b.markDirty(s, a) // or the block would begin again when the record is read
		}
		if !a.timeMatters() {
			delete(s.watched, p)
		}
	}
	return due
}

// tickEffects saves first where an effect says so.
func (b *Book) tickEffects(s *shard, d dueEffects) {
	ctx, cancel := context.WithTimeout(b.ctx, saveWithin)
	defer cancel()
	p := d.account.peer
	var err error
	if hasSave(d.fx) {
		err = b.flushPeer(ctx, p, func(*Ledger) bool { return true })
	}
	if err == nil {
		b.carryOut(ctx, p, d.fx)
	} else if b.ctx.Err() == nil {
		b.log.Error("tab could not be saved", "peer", p, "err", err)
	}
	s.mu.Lock()
	d.account.ticking = false
	s.mu.Unlock()
}

// evict lets idle accounts leave memory; their records are on disk.
func (b *Book) evict(s *shard) {
	now := b.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, a := range s.accounts {
		// Somebody who only asked, and left nothing on its tab, goes at once.
		nothing := !a.stored && a.ledger.Empty()
		if (nothing || now.Sub(a.usedAt) >= evictAfter) && a.idle() {
			delete(s.accounts, p)
			delete(s.watched, p)
			s.evictions++
		}
	}
}

// forgetOld drops the records of peers that never paid and were not seen for a
// week, so that identities that come once do not fill the disk or the credit of
// strangers.
func (b *Book) forgetOld(ctx context.Context) error {
	old := b.unix() - int64(forgetAfter/time.Second)
	var found []peer.ID
	err := b.store.Scan(ctx, b.keys.prefix(shelfLedger), "", func(key string, rec []byte) error {
		l, st, err := b.unsealLedger(key, rec)
		if err != nil {
			return err
		}
		if !l.Stranger() || st.usedAt >= old {
			return nil
		}
		p, err := b.keys.peerOf(key)
		if err != nil {
			return err
		}
		if found = append(found, p); len(found) >= maxDropAtOnce {
			return durable.ErrStop
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, p := range found {
		if err := b.forget(ctx, p, old); err != nil {
			return err
		}
	}
	return nil
}

// unused reads again whether a record is old: the peer may have come since it
// was found.
func (b *Book) unused(p peer.ID, old int64) (bool, error) {
	key := b.keys.of(shelfLedger, p)
	rec, err := b.store.Get(b.ctx, key)
	if errors.Is(err, durable.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, st, err := b.unsealLedger(key, rec)
	return err == nil && st.usedAt < old, err
}

// forget drops one record under the account's right to save, so that nothing
// else writes or reads an older state meanwhile.
func (b *Book) forget(ctx context.Context, p peer.ID, old int64) error {
	s, a, err := b.acquire(ctx, p)
	if err != nil {
		return err
	}
	s.mu.Unlock()
	unused, err := b.unused(p, old)

	s.mu.Lock()
	a.saving = false
	unused = unused && a.idle() && a.ledger.Stranger()
	a.saving = true
	if !unused {
		a.releaseLocked()
		s.mu.Unlock()
		return err
	}
	b.pool.move(a.ledger.Exposure(), 0, true, true)
	a.ledger = NewLedger(&b.policy)
	a.services, a.allServices = nil, false
	s.mu.Unlock()

	var batch durable.Batch
	b.dropPeer(&batch, p)
	err = b.store.Commit(context.WithoutCancel(ctx), &batch)

	s.mu.Lock()
	defer s.mu.Unlock()
	a.releaseLocked()
	if err != nil {
		return err
	}
	b.records.Add(-1)
	a.stored = false
	if a.idle() && a.ledger.Empty() {
		delete(s.accounts, p)
		s.evictions++
	}
	return nil
}
