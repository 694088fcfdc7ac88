// Package durabletest has the twins of the durable store that tests run on: in
// memory, and in memory with power losses and faults.
package durabletest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"

	"github.com/tallystick/tally/internal/durable"
)

// NewMem returns a store in memory. It has no goroutine but the committer, so it
// may live in a synctest bubble, and ends with Close.
func NewMem(opts ...durable.Option) *durable.Store {
	return durable.New(newMemDatastore(nil), opts...)
}

// NewMemDatastore returns what NewMem keeps its records in, for a node that opens its
// store itself.
func NewMemDatastore() datastore.Batching { return newMemDatastore(nil) }

// memDatastore is an ordered datastore in memory whose batches are atomic and
// whose scans see one state. Writes go to a small unordered part; the next scan
// merges it into the ordered one, which is never changed again.
type memDatastore struct {
	// mu guards the fields below. Their slices are never written to.
	mu     sync.RWMutex
	sorted []query.Entry     // by key
	fresh  map[string][]byte // newer than sorted; nil means deleted
}

var (
	_ datastore.Batching = (*memDatastore)(nil)
	_ durable.Scanner    = (*memDatastore)(nil)
)

// newMemDatastore begins with the records of sorted, which it does not change.
func newMemDatastore(sorted []query.Entry) *memDatastore {
	return &memDatastore{sorted: sorted, fresh: make(map[string][]byte)}
}

func entryKey(e query.Entry, key string) int { return strings.Compare(e.Key, key) }

// state returns all records in order, as of now.
func (d *memDatastore) state() []query.Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.fresh) == 0 {
		return d.sorted
	}
	merged := make([]query.Entry, 0, len(d.sorted)+len(d.fresh))
	old := d.sorted
	for _, key := range slices.Sorted(maps.Keys(d.fresh)) {
		i, found := slices.BinarySearchFunc(old, key, entryKey)
		merged = append(merged, old[:i]...)
		if value := d.fresh[key]; value != nil {
			merged = append(merged, query.Entry{Key: key, Value: value, Size: len(value)})
		}
		if found {
			i++
		}
		old = old[i:]
	}
	d.sorted = append(merged, old...)
	clear(d.fresh)
	return d.sorted
}

// Scan implements durable.Scanner.
func (d *memDatastore) Scan(ctx context.Context, r durable.Range, fn func(key string, value []byte) error) error {
	run := d.state()
	lower, upper := r.Bounds()
	from, _ := slices.BinarySearchFunc(run, lower, entryKey)
	to := len(run)
	if upper != "" {
		to, _ = slices.BinarySearchFunc(run, upper, entryKey)
	}
	if to < from {
		return nil
	}
	run = run[from:to]
	for i := range run {
		if err := ctx.Err(); err != nil {
			return err
		}
		e := run[i]
		if r.Reverse {
			e = run[len(run)-1-i]
		}
		if err := fn(e.Key, slices.Clip(e.Value)); err != nil {
			return err
		}
	}
	return nil
}

func (d *memDatastore) Get(_ context.Context, key datastore.Key) ([]byte, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if value, ok := d.fresh[key.String()]; ok {
		if value == nil {
			return nil, datastore.ErrNotFound
		}
		return value, nil
	}
	if i, ok := slices.BinarySearchFunc(d.sorted, key.String(), entryKey); ok {
		return d.sorted[i].Value, nil
	}
	return nil, datastore.ErrNotFound
}

func (d *memDatastore) Has(ctx context.Context, key datastore.Key) (bool, error) {
	_, err := d.Get(ctx, key)
	if errors.Is(err, datastore.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (d *memDatastore) GetSize(ctx context.Context, key datastore.Key) (int, error) {
	value, err := d.Get(ctx, key)
	if err != nil {
		return -1, err
	}
	return len(value), nil
}

func (d *memDatastore) Query(_ context.Context, q query.Query) (query.Results, error) {
	return query.NaiveQueryApply(q, query.ResultsWithEntries(q, slices.Clone(d.state()))), nil
}

func (d *memDatastore) Put(ctx context.Context, key datastore.Key, value []byte) error {
	b := memBatch{d: d}
	return errors.Join(b.Put(ctx, key, value), b.Commit(ctx))
}

func (d *memDatastore) Delete(ctx context.Context, key datastore.Key) error {
	b := memBatch{d: d}
	return errors.Join(b.Delete(ctx, key), b.Commit(ctx))
}

func (d *memDatastore) Sync(context.Context, datastore.Key) error { return nil }
func (d *memDatastore) Close() error                              { return nil }

func (d *memDatastore) Batch(context.Context) (datastore.Batch, error) {
	return &memBatch{d: d}, nil
}

// memBatch collects ops; an op with a nil value deletes.
type memBatch struct {
	d   *memDatastore
	ops []query.Entry
}

func (b *memBatch) Put(_ context.Context, key datastore.Key, value []byte) error {
	cp := append(make([]byte, 0, len(value)), value...) // never nil
	b.ops = append(b.ops, query.Entry{Key: key.String(), Value: cp})
	return nil
}

func (b *memBatch) Delete(_ context.Context, key datastore.Key) error {
	b.ops = append(b.ops, query.Entry{Key: key.String()})
	return nil
}

func (b *memBatch) Commit(context.Context) error {
	b.d.mu.Lock()
	defer b.d.mu.Unlock()
	for _, op := range b.ops {
		b.d.fresh[op.Key] = op.Value
	}
	b.ops = nil
	return nil
}
