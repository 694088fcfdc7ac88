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

// flush saves all accounts that were dirty when it began. The shards share
// commits: one sync a period is enough for all of them.
func (b *Book) flush(ctx context.Context) error {
	var saves []flushed
	for i := range b.shards {
		var err error
		if saves, err = b.gather(ctx, &b.shards[i], saves); err != nil {
			return err
		}
	}
	return b.save(ctx, saves)
}

// flushShard is flush for one shard.
func (b *Book) flushShard(ctx context.Context, s *shard) error {
	saves, err := b.gather(ctx, s, nil)
	if err != nil {
		return err
	}
	return b.save(ctx, saves)
}

// gather takes what is dirty in a shard now, and saves full batches of it. It
// returns what is left to be saved.
func (b *Book) gather(ctx context.Context, s *shard, saves []flushed) ([]flushed, error) {
	s.mu.Lock()
	todo := len(s.dirty)
	s.mu.Unlock()
	for todo > 0 {
		taken := b.takeDirty(s, min(todo, maxFlushBatch-len(saves)), &saves)
		if taken == 0 {
			break
		}
		todo -= taken
		if len(saves) == maxFlushBatch {
			if err := b.save(ctx, saves); err != nil {
				return nil, err
			}
			saves = saves[:0]
		}
	}
	return saves, nil
}

// flushed is an account with the record that is being saved.
type flushed struct {
	account *account
	save    snapshot
}

// takeDirty takes up to n accounts off the dirty list and adds them to saves. One
// that is being saved by somebody else goes back to the end of the list.
func (b *Book) takeDirty(s *shard, n int, saves *[]flushed) (taken int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken = min(n, len(s.dirty))
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
		*saves = append(*saves, flushed{account: a, save: b.snapshot(a)})
	}
	return taken
}

// save writes what was taken in one commit, and gives the right to save back.
func (b *Book) save(ctx context.Context, saves []flushed) error {
	if len(saves) == 0 {
		return nil
	}
	err := b.failure()
	if err == nil {
		var batch durable.Batch
		for i := range saves {
			saves[i].save.put(b, &batch)
		}
		err = b.store.Commit(context.WithoutCancel(ctx), &batch)
	}
	for len(saves) > 0 { // those of one shard lie side by side
		n := 1
		for n < len(saves) && shardIndex(saves[n].account.peer) == shardIndex(saves[0].account.peer) {
			n++
		}
		b.saved(saves[:n], err)
		saves = saves[n:]
	}
	return err
}

// saved ends the saves of one shard.
func (b *Book) saved(saves []flushed, err error) {
	s := b.shardOf(saves[0].account.peer)
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
	return b.save(ctx, []flushed{{account: a, save: save}})
}
