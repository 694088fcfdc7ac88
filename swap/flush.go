package swap

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/internal/durable"
)

// maxFlushBatch bounds the records of one write-behind batch: 4096 records are
// about 1 MB, a millisecond or two of disk.
const maxFlushBatch = 4096

// flushLoop writes dirty accounts behind the message path.
func (b *Book) flushLoop() {
	ticker := time.NewTicker(flushEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-b.flushNow:
		case <-b.ctx.Done():
			return
		}
		if err := b.flush(b.ctx); err != nil && b.ctx.Err() == nil {
			b.log.Error("tabs could not be saved; the node serves no more: free the disk or restore a backup, and restart", "err", err)
			return
		}
	}
}

// kick asks for a flush before the next tick.
func (b *Book) kick() {
	select {
	case b.flushNow <- struct{}{}:
	default:
	}
}

// flush saves all accounts that were dirty when it began.
func (b *Book) flush(ctx context.Context) error {
	for i := range b.shards {
		if err := b.flushShard(ctx, &b.shards[i]); err != nil {
			return err
		}
	}
	return nil
}

func (b *Book) flushShard(ctx context.Context, s *shard) error {
	s.mu.Lock()
	todo := len(s.dirty)
	s.mu.Unlock()
	for todo > 0 {
		taken, saves := b.takeDirty(s, min(todo, maxFlushBatch))
		if taken == 0 {
			return nil
		}
		todo -= taken
		if len(saves) == 0 {
			continue
		}
		if err := b.save(ctx, s, saves); err != nil {
			return err
		}
	}
	return nil
}

// flushed is an account with the record that is being saved.
type flushed struct {
	account *account
	save    snapshot
}

// takeDirty takes up to n accounts off the dirty list. One that is being saved
// by somebody else goes back to the end of the list.
func (b *Book) takeDirty(s *shard, n int) (taken int, saves []flushed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken = min(n, len(s.dirty))
	saves = make([]flushed, 0, taken)
	list := s.dirty[:taken:taken]
	s.dirty = append([]*account(nil), s.dirty[taken:]...)
	for _, a := range list {
		if a.saving {
			s.dirty = append(s.dirty, a)
			continue
		}
		a.listed = false
		if !a.stored && a.ledger.Empty() {
			// Who only asked leaves no record: new identities fill no disk.
			a.ledger.Saved(a.ledger.dirty)
			a.services, a.newServices = nil, false
			continue
		}
		a.saving = true
		saves = append(saves, flushed{account: a, save: b.snapshot(a)})
	}
	return taken, saves
}

func (b *Book) save(ctx context.Context, s *shard, saves []flushed) error {
	err := b.failure()
	if err == nil {
		var batch durable.Batch
		for i := range saves {
			saves[i].save.put(b, &batch)
		}
		err = b.store.Commit(context.WithoutCancel(ctx), &batch)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range saves {
		a := saves[i].account
		if err == nil {
			saves[i].save.done(b, a)
		} else {
			b.markDirty(s, a)
		}
		a.releaseLocked()
	}
	return err
}

// flushPeer saves one account now, where enough of it is dirty: many callers
// share one sync.
func (b *Book) flushPeer(ctx context.Context, p peer.ID, enough func(*Ledger) bool) error {
	s, a, err := b.acquire(ctx, p)
	if err != nil {
		return err
	}
	if !enough(&a.ledger) {
		a.releaseLocked()
		s.mu.Unlock()
		return nil // another save took ours along
	}
	save := b.snapshot(a)
	s.mu.Unlock()
	return b.save(ctx, s, []flushed{{account: a, save: save}})
}
