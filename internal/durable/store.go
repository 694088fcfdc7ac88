package durable

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-datastore"
	pebbleds "github.com/ipfs/go-ds-pebble"
)

const (
	// maxQueuedBatches bounds the callers that wait for the committer; the next
	// one waits to be queued. 4096 is 16 times the writers of our busiest
	// measurement, and a few milliseconds of work.
	maxQueuedBatches = 4096

	// maxQueuedBytes bounds the memory of the queue. A larger batch is queued
	// when nothing else is.
	maxQueuedBytes = 8 << 20

	// maxMergedBytes bounds one merged batch, and so what a caller waits for
	// beside its own batch: 1 MiB is about a millisecond of disk, and the sync
	// is long paid for by then.
	maxMergedBytes = 1 << 20

	// closeGrace bounds how long Close waits for a committer that hangs in a
	// failed engine. Without a failure Close waits as long as it takes.
	closeGrace = 10 * time.Second
)

var (
	// ErrNotFound is returned by Get where the key has no record.
	ErrNotFound = errors.New("durable: not found")

	// ErrStop, returned by the function given to Scan, ends the scan without
	// error.
	ErrStop = errors.New("durable: stop scan")

	// ErrFailed is returned by every Commit after one failed: nothing is
	// written any more until the operator removed the cause and restarted the
	// process. The text names the cause, which is wrapped too.
	ErrFailed = errors.New("durable: store failed")

	// ErrUncertain is returned where ctx ended after the batch was queued: it
	// may have landed, may still land, or may fail. Only a read after a later
	// answer, or a restart, tells.
	ErrUncertain = errors.New("durable: outcome unknown")

	// ErrTooLarge is returned for a batch above MaxBatchBytes. Nothing of it
	// was written and the store goes on.
	ErrTooLarge = errors.New("durable: batch too large")

	// ErrClosed is returned after Close.
	ErrClosed = errors.New("durable: store closed")
)

// config is what the options set.
type config struct {
	logger     *slog.Logger
	fs         vfs.FS
	hook       func(commit func() error) error
	maxBatches int // batches merged into one commit
}

// Option changes a default of Open or New.
type Option func(*config)

// WithLogger sets where the store and its engine log. Default: slog.Default().
// The engine's own chatter is at Debug.
func WithLogger(l *slog.Logger) Option { return func(c *config) { c.logger = l } }

// WithFS sets the file system of Open. It is there for tests.
func WithFS(fs vfs.FS) Option { return func(c *config) { c.fs = fs } }

// WithoutMerging gives each batch a commit of its own. It is there for tests
// that count commits.
func WithoutMerging() Option { return func(c *config) { c.maxBatches = 1 } }

// WithCommitHook runs hook around each engine commit, on the committer
// goroutine; an error of hook counts as a failed commit. It is there for the
// faults of durabletest.
func WithCommitHook(hook func(commit func() error) error) Option {
	return func(c *config) { c.hook = hook }
}

func newConfig(opts []Option) config {
	c := config{logger: slog.Default(), fs: vfs.Default, maxBatches: maxQueuedBatches}
	for _, opt := range opts {
		opt(&c)
	}
	return c
}

// Store is an ordered key-value store with group commit. All methods may be
// called at the same time from any goroutine.
type Store struct {
	engine engine
	config config

	wake   chan struct{} // capacity 1: the queue is not empty, or Close was called
	ended  chan struct{} // closed when the committer ended
	failed chan struct{} // closed by the first failure, after failure is set

	failure atomic.Pointer[error] // set once

	// mu guards the fields below.
	mu           sync.Mutex
	groups       []*group // in commit order; the last one is open for more
	queued       int      // batches in groups
	queuedBytes  int      // their size
	space        chan struct{}
	free         [][]byte // spare group buffers
	closing      bool
	readersEnded bool
	readers      sync.WaitGroup // Add under mu while readersEnded is false

	closeOnce sync.Once
	closeErr  error
}

// group is a run of batches that share one engine commit.
type group struct {
	buf     []byte // batch header and ops
	ops     uint32
	batches int
	calls   []func(error) // callbacks of Submit, in order

	done chan struct{} // closed after err is set
	err  error
}

// New wraps any datastore. It owns d and closes it. On a go-ds-pebble datastore
// it reads and writes Pebble directly, with synced writes whatever the write
// options of d are; on any other it commits a datastore batch and syncs.
// A store that outlives the process should pass EnsureSchema before use; Open
// does that itself.
func New(d datastore.Batching, opts ...Option) *Store {
	c := newConfig(opts)
	var e engine = batching{d: d}
	if p, ok := d.(*pebbleds.Datastore); ok {
		e = newPebbleEngine(p)
	}
	return newStore(e, c)
}

func newStore(e engine, c config) *Store {
	s := &Store{
		engine: e,
		config: c,
		wake:   make(chan struct{}, 1),
		ended:  make(chan struct{}),
		failed: make(chan struct{}),
	}
	go s.run() // ends when Close was called and the queue is empty
	return s
}

// Commit writes b and returns nil once it is on stable storage; many callers
// share one sync. An empty batch is done at once. On error:
//
//   - ErrKey, ErrTooLarge, ErrClosed, or ctx's error alone: nothing was written.
//   - ErrUncertain with ctx's error: ctx ended while the batch was queued or
//     under way. It may land after Commit returned, still in its order.
//   - ErrFailed: the store failed, with this batch or before it. It may have
//     landed; the restart tells.
func (s *Store) Commit(ctx context.Context, b *Batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.Failed(); err != nil {
		return err
	}
	if b.n == 0 {
		return nil
	}
	g, err := s.enqueue(ctx, b, nil)
	if err != nil {
		return err
	}
	select {
	case <-g.done:
		return g.err
	case <-ctx.Done():
		err = fmt.Errorf("%w: %w", ErrUncertain, ctx.Err())
	case <-s.failed:
		// The committer may hang in the failed engine; do not wait for it.
		err = s.Failed()
	}
	select {
	case <-g.done: // the answer came at the same time, and is worth more
		return g.err
	default:
		return err
	}
}

// Submit queues b and returns; done is called once with what Commit would have
// returned, on the committer goroutine, in the order of the Submit calls. So
// done has to be short and must not call Commit, Submit or Close. While the
// queue is full Submit waits. Where b is refused before it is queued (ErrKey,
// ErrTooLarge, ErrClosed, ErrFailed with a full queue) done is called before
// Submit returns.
func (s *Store) Submit(b *Batch, done func(error)) {
	if _, err := s.enqueue(context.Background(), b, done); err != nil {
		done(err)
	}
}

// enqueue copies b into the last group of the queue, or into a new one where
// that is full, and waits for room where the queue is.
func (s *Store) enqueue(ctx context.Context, b *Batch, done func(error)) (*group, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	for {
		s.mu.Lock()
		if s.closing {
			s.mu.Unlock()
			return nil, ErrClosed
		}
		if s.queued == 0 || s.queued < maxQueuedBatches && s.queuedBytes+len(b.ops) <= maxQueuedBytes {
			g := s.open(len(b.ops))
			g.buf = append(g.buf, b.ops...)
			g.ops += uint32(b.n)
			g.batches++
			if done != nil {
				g.calls = append(g.calls, done)
			}
			s.queued++
			s.queuedBytes += len(b.ops)
			s.mu.Unlock()
			s.signal()
			return g, nil
		}
		if s.space == nil {
			s.space = make(chan struct{})
		}
		space := s.space
		s.mu.Unlock()
		select {
		case <-space:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.failed:
			// Room may never come: the committer may hang in the engine.
			return nil, s.Failed()
		}
	}
}

// open returns the group that takes size more bytes. Called with mu held.
func (s *Store) open(size int) *group {
	if n := len(s.groups); n > 0 {
		g := s.groups[n-1]
		if g.batches < s.config.maxBatches && len(g.buf)+size <= maxMergedBytes {
			return g
		}
	}
	g := &group{done: make(chan struct{})}
	if n := len(s.free); n > 0 {
		g.buf, s.free = s.free[n-1], s.free[:n-1]
	}
	var header [batchHeaderBytes]byte
	g.buf = append(g.buf[:0], header[:]...)
	s.groups = append(s.groups, g)
	return g
}

// signal wakes the committer; one pending signal is enough.
func (s *Store) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run is the committer: the one goroutine that writes.
func (s *Store) run() {
	defer close(s.ended)
	for {
		g, closing := s.take()
		if g == nil {
			if closing {
				return
			}
			<-s.wake
			continue
		}
		g.err = s.Failed()
		if g.err == nil && g.ops > 0 {
			if err := s.write(g); err != nil {
				s.fail(err)
				g.err = s.Failed()
			}
		}
		close(g.done)
		for _, done := range g.calls {
			done(g.err)
		}
	}
}

// take removes the first group from the queue and tells those who wait for room.
func (s *Store) take() (g *group, closing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.groups) == 0 {
		return nil, s.closing
	}
	g = s.groups[0]
	n := copy(s.groups, s.groups[1:])
	s.groups[n] = nil
	s.groups = s.groups[:n]
	s.queued -= g.batches
	s.queuedBytes -= len(g.buf) - batchHeaderBytes
	if s.space != nil {
		close(s.space)
		s.space = nil
	}
	return g, s.closing
}

// write makes one group durable.
func (s *Store) write(g *group) error {
	binary.LittleEndian.PutUint32(g.buf[8:], g.ops)
	kept := true
	commit := func() (err error) {
		kept, err = s.engine.apply(g.buf)
		return err
	}
	var err error
	if s.config.hook != nil {
		err = s.config.hook(commit)
	} else {
		err = commit()
	}
	// Two spare buffers are enough: one is filled while the other is written.
	if err == nil && !kept && cap(g.buf) <= 2*maxMergedBytes {
		s.mu.Lock()
		if len(s.free) < 2 {
			s.free = append(s.free, g.buf)
		}
		s.mu.Unlock()
	}
	g.buf = nil
	return err
}

// fail poisons the store; the first cause stays.
func (s *Store) fail(cause error) {
	remedy := "check the disk and its free space, then restart (what was acknowledged is kept)"
	if errors.Is(cause, ErrDamaged) {
		remedy = "check the disk, then restore a backup"
	}
	err := fmt.Errorf("%w: %w; nothing more is written: %s", ErrFailed, cause, remedy)
	if s.failure.CompareAndSwap(nil, &err) {
		close(s.failed)
		s.config.logger.Error("store failed, restart needed", "err", cause)
	}
}

// Broken returns a channel that is closed when the store fails.
func (s *Store) Broken() <-chan struct{} { return s.failed }

// Failed returns nil while the store works, and for ever after a failed commit
// or sync the error that every Commit returns.
func (s *Store) Failed() error {
	if err := s.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Get returns a copy of the record at key, or ErrNotFound. It sees every batch
// that was answered, and may see one that is about to be. Reading goes on after
// a failure, for the shutdown; what it shows may be gone after the restart.
func (s *Store) Get(ctx context.Context, key string) ([]byte, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	if err := s.beginRead(); err != nil {
		return nil, err
	}
	defer s.readers.Done()
	value, err := s.engine.get(ctx, key)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("durable: get %q: %w", key, err)
	}
	return value, err
}

// Scan calls fn for the records whose keys begin with prefix, in the order of
// the keys, from the first one strictly above after where after is not empty.
// prefix is a plain string prefix: end it with '/' to stay in a folder. value is
// valid during fn only. An error of fn ends the scan and is returned; ErrStop
// ends it without error. The scan sees the store as it was at its begin. fn may
// call Get and Commit, but not Close.
func (s *Store) Scan(ctx context.Context, prefix, after string, fn func(key string, value []byte) error) error {
	return s.scan(ctx, Range{Prefix: prefix, After: after}, fn)
}

// ScanReverse is Scan from the last record to the first, beginning with the
// first one strictly below before where before is not empty.
func (s *Store) ScanReverse(ctx context.Context, prefix, before string, fn func(key string, value []byte) error) error {
	return s.scan(ctx, Range{Prefix: prefix, Before: before, Reverse: true}, fn)
}

func (s *Store) scan(ctx context.Context, r Range, fn func(key string, value []byte) error) error {
	if err := s.beginRead(); err != nil {
		return err
	}
	defer s.readers.Done()
	err := s.engine.scan(ctx, r, fn)
	if errors.Is(err, ErrStop) {
		return nil
	}
	return err
}

// beginRead keeps the engine open until readers.Done. A reader inside a reader
// is refused, not blocked, once Close began.
func (s *Store) beginRead() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readersEnded {
		return ErrClosed
	}
	s.readers.Add(1)
	return nil
}

// Close commits what was submitted, ends the committer and the readers, and
// closes the datastore. Calls of other methods that begin later return
// ErrClosed; a second Close returns what the first one returned. Where the
// engine hangs after a failure Close gives up on it after a while and returns an
// error; the process should end then.
func (s *Store) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	s.mu.Lock()
	s.closing = true
	if s.space != nil {
		close(s.space)
		s.space = nil
	}
	s.mu.Unlock()
	s.signal()

	select {
	case <-s.ended:
	case <-s.failed:
		grace := time.NewTimer(closeGrace)
		defer grace.Stop()
		select {
		case <-s.ended:
		case <-grace.C:
			return fmt.Errorf("durable: close: the engine hangs: %w", s.Failed())
		}
	}

	s.mu.Lock()
	s.readersEnded = true
	s.mu.Unlock()
	s.readers.Wait()
	if err := s.engine.close(s.Failed() != nil); err != nil {
		return fmt.Errorf("durable: close: %w", err)
	}
	return nil
}
