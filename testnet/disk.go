package testnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

// StoreKind says what a peer keeps its books on.
type StoreKind string

// Kinds of store.
const (
	// StorePebble is Pebble in a folder, as the daemon has it.
	StorePebble StoreKind = "pebble"
	// StoreCrash is Pebble over a file system in memory that forgets at a kill
	// what was not synced.
	StoreCrash StoreKind = "crash"
	// StoreMem is the same without Pebble, for many peers and for bubbles.
	StoreMem StoreKind = "mem"
)

// errKilled is what the disk of a killed peer answers.
var errKilled = errors.New("testnet: the peer was killed")

// disk is what survives a peer, and what can fail below it. Between two lives of
// its peer it is closed.
type disk struct {
	kind StoreKind
	dir  string
	log  *slog.Logger

	crash *durabletest.Crash // of StoreCrash and StoreMem; survives
	store *durable.Store     // nil while the disk is closed
}

// open returns the datastore of a new life.
func (d *disk) open() (*lifeline, error) {
	switch d.kind {
	case StorePebble:
		s, err := durable.Open(d.dir, durable.WithLogger(d.log))
		if err != nil {
			return nil, err
		}
		d.store = s
	case StoreCrash, StoreMem:
		if d.crash == nil && d.kind == StoreCrash {
			d.crash = durabletest.NewCrash()
		} else if d.crash == nil {
			d.crash = durabletest.NewMemCrash()
		}
		d.store = d.crash.Store
	default:
		return nil, fmt.Errorf("testnet: store %q: want pebble, crash or mem", d.kind)
	}
	return &lifeline{store: d.store}, nil
}

// close ends a life and keeps what the disk has: all that was synced, and of the
// rest what seed decides (0: nothing).
func (d *disk) close(seed uint64) error {
	if d.store == nil {
		return nil
	}
	old := d.store
	d.store = nil
	if d.crash != nil {
		if seed == 0 {
			d.crash = d.crash.Clone()
		} else {
			d.crash = d.crash.CloneSeed(seed)
		}
	}
	return old.Close()
}

// erase forgets everything: a disk that was lost.
func (d *disk) erase() error {
	if d.crash != nil {
		old := d.crash
		d.crash = nil
		return old.Close()
	}
	return os.RemoveAll(d.dir)
}

// drop ends a disk that nobody opens again.
func (d *disk) drop() error {
	if d.crash != nil {
		return d.crash.Close()
	}
	if d.store != nil {
		return d.store.Close()
	}
	return nil
}

// lifeline is the datastore of one life of a peer. Once it is cut nothing is
// written any more, as if the process had ended between two instructions. What
// was written before is on disk, because every batch is synced.
type lifeline struct {
	store *durable.Store

	// mu is held for reading during a commit, and guards the fields below.
	mu   sync.RWMutex
	dead bool

	// count guards the fields below.
	count   sync.Mutex
	commits int
	at      int // the commit that kills; 0: none
	after   bool
	onKill  func()
}

var (
	_ datastore.Batching = (*lifeline)(nil)
	_ durable.Scanner    = (*lifeline)(nil)
)

// cut ends the life. A commit under way lands first.
func (l *lifeline) cut() {
	l.mu.Lock()
	l.dead = true
	l.mu.Unlock()
}

// arm makes the n-th commit from now on the last instruction of the life: it
// does not land, or with after it lands and nobody learns of it. onKill is
// called in either case.
func (l *lifeline) arm(n int, after bool, onKill func()) {
	l.count.Lock()
	defer l.count.Unlock()
	l.at, l.after, l.onKill = l.commits+n, after, onKill
}

// disarm takes a fault back that has not struck.
func (l *lifeline) disarm() {
	l.count.Lock()
	defer l.count.Unlock()
	l.at = 0
}

func (l *lifeline) commit(ctx context.Context, b *durable.Batch) error {
	l.count.Lock()
	l.commits++
	hit, after, onKill := l.commits == l.at, l.after, l.onKill
	l.count.Unlock()
	if hit && !after {
		l.cut()
		onKill()
		return errKilled
	}
	err := l.write(ctx, b)
	if hit {
		l.cut()
		onKill()
		return errKilled
	}
	return err
}

func (l *lifeline) write(ctx context.Context, b *durable.Batch) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.dead {
		return errKilled
	}
	return l.store.Commit(ctx, b)
}

// Scan implements durable.Scanner.
func (l *lifeline) Scan(ctx context.Context, r durable.Range, fn func(key string, value []byte) error) error {
	if r.Reverse {
		return l.store.ScanReverse(ctx, r.Prefix, r.Before, fn)
	}
	_, upper := r.Bounds()
	return l.store.Scan(ctx, r.Prefix, r.After, func(key string, value []byte) error {
		if upper != "" && key >= upper {
			return durable.ErrStop
		}
		return fn(key, value)
	})
}

// Get implements datastore.Datastore.
func (l *lifeline) Get(ctx context.Context, key datastore.Key) ([]byte, error) {
	value, err := l.store.Get(ctx, key.String())
	if errors.Is(err, durable.ErrNotFound) {
		return nil, datastore.ErrNotFound
	}
	return value, err
}

// Has implements datastore.Datastore.
func (l *lifeline) Has(ctx context.Context, key datastore.Key) (bool, error) {
	_, err := l.Get(ctx, key)
	if errors.Is(err, datastore.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// GetSize implements datastore.Datastore.
func (l *lifeline) GetSize(ctx context.Context, key datastore.Key) (int, error) {
	value, err := l.Get(ctx, key)
	if err != nil {
		return -1, err
	}
	return len(value), nil
}

// Query implements datastore.Datastore. The store above reads with Scan.
func (l *lifeline) Query(ctx context.Context, q query.Query) (query.Results, error) {
	var all []query.Entry
	err := l.store.Scan(ctx, "/", "", func(key string, value []byte) error {
		all = append(all, query.Entry{Key: key, Value: append([]byte(nil), value...), Size: len(value)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return query.NaiveQueryApply(q, query.ResultsWithEntries(q, all)), nil
}

// Put implements datastore.Datastore.
func (l *lifeline) Put(ctx context.Context, key datastore.Key, value []byte) error {
	var b durable.Batch
	b.Put(key.String(), value)
	return l.commit(ctx, &b)
}

// Delete implements datastore.Datastore.
func (l *lifeline) Delete(ctx context.Context, key datastore.Key) error {
	var b durable.Batch
	b.Delete(key.String())
	return l.commit(ctx, &b)
}

// Sync implements datastore.Datastore: every commit is synced.
func (l *lifeline) Sync(context.Context, datastore.Key) error { return nil }

// Close implements datastore.Datastore. The disk outlives its peer.
func (l *lifeline) Close() error { return nil }

// Batch implements datastore.Batching.
func (l *lifeline) Batch(context.Context) (datastore.Batch, error) {
	return &diskBatch{line: l}, nil
}

type diskBatch struct {
	line  *lifeline
	batch durable.Batch
}

func (b *diskBatch) Put(_ context.Context, key datastore.Key, value []byte) error {
	b.batch.Put(key.String(), value)
	return nil
}

func (b *diskBatch) Delete(_ context.Context, key datastore.Key) error {
	b.batch.Delete(key.String())
	return nil
}

func (b *diskBatch) Commit(ctx context.Context) error { return b.line.commit(ctx, &b.batch) }

// Where a ledger record of package swap holds its time, in 64-bit words.
const (
	ledgerRecord  byte = 1 // its version
	ledgerUsedAt       = 19
	ledgerPayload      = 20*8 + 2
)

// shiftClock makes the disk of a closed peer as if the wall clock had been set by
// d while it was down: what it wrote lies as much later or earlier.
func (d *disk) shiftClock(by time.Duration) error {
	line, err := d.open()
	if err != nil {
		return err
	}
	err = shiftRecords(line.store, -by)
	return errors.Join(err, d.close(0))
}

// shiftStore is shiftClock for the books in a folder.
func shiftStore(dir string, by time.Duration) error {
	s, err := durable.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(shiftRecords(s, -by), s.Close())
}

func shiftRecords(s *durable.Store, by time.Duration) error {
	ctx := context.Background()
	var b durable.Batch
	err := s.Scan(ctx, "/swap/", "", func(key string, value []byte) error {
		if !strings.Contains(key, "/l/") {
			return nil
		}
		_, payload, err := durable.Unseal(key, ledgerRecord, value)
		if err != nil {
			return err
		}
		if len(payload) != ledgerPayload {
			return fmt.Errorf("testnet: a ledger record has %d bytes, want %d: its layout has changed", len(payload), ledgerPayload)
		}
		payload = append([]byte(nil), payload...)
		at := payload[8*ledgerUsedAt:]
		binary.BigEndian.PutUint64(at, binary.BigEndian.Uint64(at)+uint64(by/time.Second))
		b.Put(key, durable.Seal(nil, key, ledgerRecord, payload))
		return nil
	})
	if err != nil {
		return err
	}
	return s.Commit(ctx, &b)
}
