package durable

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	pebbleds "github.com/ipfs/go-ds-pebble"
)

const (
	// memTableBytes is the size of a write buffer. At 50k records of 200 bytes a
	// second Pebble's default of 4 MiB would flush three times a second.
	memTableBytes = 16 << 20

	// cacheBytes is the block cache, out of which Pebble also takes its write
	// buffers. It is filled as blocks are read. With as little as memTableBytes
	// nothing of it was left, and a page of messages took three times as long.
	cacheBytes = 64 << 20

	// scanCheckEvery is how many records a scan hands out between two looks at
	// its ctx.
	scanCheckEvery = 256
)

// Open opens the Pebble store in dir, or creates it there. It refuses a store
// that a newer program wrote (ErrNewerSchema), one that is open elsewhere, and
// one whose journal is damaged before its last synced record.
func Open(dir string, opts ...Option) (*Store, error) {
	c := newConfig(opts)
	l := &engineLogger{logger: c.logger}
	d, err := openPebble(dir, c, l)
	if err != nil {
		return nil, openError(dir, err)
	}
	s := newStore(newPebbleEngine(d), c)
	l.failStore(s.fail)
	if err := s.EnsureSchema(context.Background()); err != nil {
		return nil, errors.Join(openError(dir, err), s.Close())
	}
	return s, nil
}

func openError(dir string, err error) error {
	err = asDamage(err)
	if errors.Is(err, ErrDamaged) {
		return fmt.Errorf("durable: open %s: %w; what was acknowledged is no longer whole: restore a backup", dir, err)
	}
	return fmt.Errorf("durable: open %s: %w", dir, err)
}

// asDamage puts our name on Pebble's reports of damage.
func asDamage(err error) error {
	if pebble.IsCorruptionError(err) && !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

func openPebble(dir string, c config, l *engineLogger) (d *pebbleds.Datastore, err error) {
	defer recoverFatal(&err)
	if err := checkLogs(c.fs, dir); err != nil {
		return nil, err
	}
	return pebbleds.NewDatastore(dir,
		// Our writes bypass these options; they are for whoever else gets hold
		// of the datastore.
		pebbleds.WithPebbleWriteOptions(pebble.Sync),
		pebbleds.WithCacheSize(cacheBytes),
		pebbleds.WithPebbleOpts(&pebble.Options{
			FS:     c.fs,
			Logger: l,
			// The default would be the oldest format. From this one on each
			// record says how far the journal was synced when it was written,
			// which gives Pebble a part of what checkLogs looks for.
			FormatMajorVersion: pebble.FormatWALSyncChunks,
			MemTableSize:       memTableBytes,
			EventListener: &pebble.EventListener{
				BackgroundError: l.backgroundError,
				DataCorruption:  l.dataCorruption,
			},
		}))
}

// pebbleEngine reads and writes a Pebble store.
type pebbleEngine struct {
	d *pebbleds.Datastore

	// batch is reused by apply. Between two calls it holds idle: its Reset
	// writes to what it holds, and the buffer of the last call has a new owner.
	batch *pebble.Batch
	idle  [batchHeaderBytes]byte
}

func newPebbleEngine(d *pebbleds.Datastore) *pebbleEngine {
	return &pebbleEngine{d: d, batch: d.DB.NewBatch()}
}

func (e *pebbleEngine) apply(buf []byte) (kept bool, err error) {
	defer recoverFatal(&err)
	if err := e.batch.SetRepr(buf); err != nil {
		return true, err
	}
	// A synced commit of one batch: Pebble answers after the fsync of its
	// journal, so no Sync of the datastore has to follow. checkLogs relies on
	// it that the next batch is written after this sync.
	if err := e.d.DB.Apply(e.batch, pebble.Sync); err != nil {
		return true, err
	}
	// A large batch is not copied into the write buffer but becomes one itself;
	// Pebble shows that by taking the data out of the batch.
	kept = e.batch.Empty()
	e.batch.Reset()
	return kept, e.batch.SetRepr(e.idle[:])
}

func (e *pebbleEngine) get(_ context.Context, key string) ([]byte, error) {
	value, closer, err := e.d.DB.Get([]byte(key))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, asDamage(err)
	}
	cp := append(make([]byte, 0, len(value)), value...)
	return cp, closer.Close()
}

func (e *pebbleEngine) scan(ctx context.Context, r Range, fn func(key string, value []byte) error) (err error) {
	lower, upper := r.Bounds()
	o := &pebble.IterOptions{LowerBound: []byte(lower)}
	if upper != "" {
		o.UpperBound = []byte(upper)
		if lower >= upper {
			return nil
		}
	}
	it, err := e.d.DB.NewIter(o)
	if err != nil {
		return fmt.Errorf("durable: scan %q: %w", r.Prefix, asDamage(err))
	}
	defer func() {
		if cerr := it.Close(); cerr != nil && err == nil {
			err = fmt.Errorf("durable: scan %q: %w", r.Prefix, asDamage(cerr))
		}
	}()
	first, next := it.First, it.Next
	if r.Reverse {
		first, next = it.Last, it.Prev
	}
	n := 0
	for ok := first(); ok; ok = next() {
		if n%scanCheckEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		n++
		value, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("durable: scan %q at %q: %w", r.Prefix, it.Key(), asDamage(err))
		}
		if err := fn(string(it.Key()), value); err != nil {
			return err
		}
	}
	return nil // an error of the iterator comes out of Close
}

func (e *pebbleEngine) close(failed bool) (err error) {
	defer recoverFatal(&err)
	if failed {
		// The datastore's Close would flush: a write after the failure.
		return e.d.DB.Close()
	}
	return e.d.Close()
}

// engineLogger sends Pebble's log to slog, and its fatal errors to the store.
type engineLogger struct {
	logger *slog.Logger
	fail   atomic.Pointer[func(error)] // set once the store is there
}

func (l *engineLogger) failStore(fail func(error)) { l.fail.Store(&fail) }

// backgroundError fails the store where Pebble could not write or read a table:
// it would try again for ever, and commits would pile up behind it unanswered.
// Pebble calls it with its locks held.
func (l *engineLogger) backgroundError(err error) {
	if fail := l.fail.Load(); fail != nil {
		(*fail)(fmt.Errorf("in the background: %w", err))
		return
	}
	l.logger.Warn("store engine failed while opening", "err", err)
}

// dataCorruption fails the store where a table on disk does not match its
// checksum; Pebble's default would be to end the process. The read that found it
// gets the error too.
func (l *engineLogger) dataCorruption(info pebble.DataCorruptionInfo) {
	l.backgroundError(fmt.Errorf("%w: table %s: %w", ErrDamaged, info.Path, info.Details))
}

// Infof logs Pebble's chatter (each flush, each compaction) at Debug.
func (l *engineLogger) Infof(format string, args ...any) {
	if l.logger.Enabled(context.Background(), slog.LevelDebug) {
		l.logger.Debug("store engine", "text", fmt.Sprintf(format, args...))
	}
}

// Errorf logs what Pebble reports as an error.
func (l *engineLogger) Errorf(format string, args ...any) {
	l.logger.Warn("store engine", "text", fmt.Sprintf(format, args...))
}

// Fatalf must not return: Pebble would answer a commit with nil after it failed
// to write or sync it. On the committer goroutine recoverFatal turns the panic
// into the error of the commit; on one of Pebble's own goroutines, which hold
// Pebble's locks, the process ends, as Pebble means it to.
func (l *engineLogger) Fatalf(format string, args ...any) {
	f := fatalError{text: fmt.Sprintf(format, args...)}
	for _, arg := range args {
		if err, ok := arg.(error); ok {
			f.cause = err
		}
	}
	panic(f)
}

// fatalError is what Pebble gave up with.
type fatalError struct {
	text  string
	cause error
}

func (f fatalError) Error() string { return f.text }
func (f fatalError) Unwrap() error { return f.cause }

// recoverFatal turns a panic of Fatalf into an error.
func recoverFatal(err *error) {
	switch r := recover().(type) {
	case nil:
	case fatalError:
		*err = r
	default:
		panic(r)
	}
}
