package durabletest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tallystick/tally/internal/durable"
)

// ErrCrashed is the cause of every failed commit from the crash of a fault hook
// on. The store wraps it in durable.ErrFailed.
var ErrCrashed = errors.New("durabletest: crashed")

// Crash is a store that can lose power. Each batch is one commit (nothing is
// merged), so that the n-th commit is the same one in every run of a
// deterministic test. Commits are counted from 1; the schema record of the store
// is not counted.
//
// A crash matrix runs its script once to read Commits, and then for each n twice
// from the start: with CrashBefore(n) and with CrashAfter(n), each followed by
// Clone and by a restart of the code under test on the clone.
type Crash struct {
	*durable.Store

	fs  *vfs.MemFS    // of NewCrash
	mem *memDatastore // of NewMemCrash

	// mu guards the fields below.
	mu      sync.Mutex
	commits int
	faultAt int // 0: none
	after   bool
	fault   error
}

// NewCrash returns an empty store on Pebble over a file system in memory that
// forgets what was not synced.
func NewCrash() *Crash { return openCrash(vfs.NewCrashableMem()) }

// NewMemCrash is NewCrash without Pebble: hundreds of times faster, for long
// matrices of code that trusts the store. Its commits are synced or absent,
// never torn.
func NewMemCrash() *Crash {
	c := &Crash{mem: newMemDatastore(nil)}
	c.Store = durable.New(c.mem, durable.WithoutMerging(), durable.WithCommitHook(c.hook))
	return c
}

func openCrash(fs *vfs.MemFS) *Crash {
	c := &Crash{fs: fs}
	s, err := durable.Open("store", durable.WithFS(fs), durable.WithoutMerging(),
		durable.WithCommitHook(c.hook), durable.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		panic(fmt.Sprintf("durabletest: open: %v", err))
	}
	c.Store = s
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commits = 0
	return c
}

// Clone returns a store with what survives a power loss at this moment: all that
// was synced and nothing else. The original goes on and has to be closed, like
// the clone. It panics where the clone does not open, because every crash has to
// be survived.
func (c *Crash) Clone() *Crash { return c.clone(vfs.CrashCloneCfg{}) }

// CloneSeed is Clone on a disk that also kept part of what was not synced, chosen
// by seed: the writes under way may be there whole, torn, or not at all.
func (c *Crash) CloneSeed(seed uint64) *Crash {
	rng := rand.New(rand.NewPCG(seed, seed))
	return c.clone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
}

func (c *Crash) clone(cfg vfs.CrashCloneCfg) *Crash {
	if c.mem != nil {
		cp := &Crash{mem: newMemDatastore(c.mem.state())}
		cp.Store = durable.New(cp.mem, durable.WithoutMerging(), durable.WithCommitHook(cp.hook))
		return cp
	}
	return openCrash(c.fs.CrashClone(cfg))
}

// Commits returns the number of commits that were tried.
func (c *Crash) Commits() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.commits
}

// FailAt makes the n-th commit fail with err; nothing of it lands. As after every
// failed commit the store is poisoned from there on.
func (c *Crash) FailAt(n int, err error) { c.arm(n, false, err) }

// CrashBefore makes the n-th commit not happen: it and all that follow fail with
// ErrCrashed.
func (c *Crash) CrashBefore(n int) { c.arm(n, false, ErrCrashed) }

// CrashAfter makes the n-th commit land on disk, but nobody learns of it: it and
// all that follow fail with ErrCrashed.
func (c *Crash) CrashAfter(n int) { c.arm(n, true, ErrCrashed) }

func (c *Crash) arm(n int, after bool, fault error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n <= c.commits {
		panic(fmt.Sprintf("durabletest: commit %d is past, %d were made", n, c.commits))
	}
	c.faultAt, c.after, c.fault = n, after, fault
}

// hook runs around each commit, on the committer goroutine.
func (c *Crash) hook(commit func() error) error {
	c.mu.Lock()
	c.commits++
	hit, after, fault := c.commits == c.faultAt, c.after, c.fault
	c.mu.Unlock()
	if !hit {
		return commit()
	}
	if after {
		if err := commit(); err != nil {
			return err
		}
	}
	return fault
}

// Records returns all records of a store, by key, without the store's own.
func Records(ctx context.Context, s *durable.Store) (map[string]string, error) {
	all := make(map[string]string)
	err := s.Scan(ctx, "/", "", func(key string, value []byte) error {
		if key != durable.SchemaKey {
			all[key] = string(value)
		}
		return nil
	})
	return all, err
}
