package durable

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
)

// batchHeaderBytes is the header of a Pebble batch: sequence number (8, filled
// in by Pebble) and op count (4, little endian).
const batchHeaderBytes = 12

// engine is what the store needs from the thing below it. apply is called from
// the committer goroutine alone; get and scan from any, at the same time.
type engine interface {
	// apply makes the batch in buf (header and ops) durable, whole or not at
	// all. kept reports that the engine holds on to buf.
	apply(buf []byte) (kept bool, err error)
	get(ctx context.Context, key string) ([]byte, error)
	scan(ctx context.Context, r Range, fn func(key string, value []byte) error) error
	// close ends the engine; failed says that a write failed before, so that
	// nothing may be written any more.
	close(failed bool) error
}

// Range is a run of keys in order.
type Range struct {
	Prefix  string // keys that begin with it; a plain string prefix
	After   string // where not empty: keys strictly above it
	Before  string // where not empty: keys strictly below it
	Reverse bool   // from the last key to the first
}

// Bounds returns the range as a half-open interval; upper is empty where there
// is no upper bound.
func (r Range) Bounds() (lower, upper string) {
	lower, upper = r.Prefix, prefixEnd(r.Prefix)
	if r.After != "" {
		lower = max(lower, r.After+"\x00")
	}
	if r.Before != "" && (upper == "" || r.Before < upper) {
		upper = r.Before
	}
	return lower, upper
}

// prefixEnd returns the smallest string above all that begin with prefix, or ""
// where there is none.
func prefixEnd(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1})
		}
	}
	return ""
}

// Scanner is an extra ability of a datastore: to walk a range in order without
// reading the rest. The store uses it where a datastore has it. Scan sees one
// state of the store, not one that changes under it; value is valid during fn;
// an error of fn ends the scan and is returned as it is.
type Scanner interface {
	Scan(ctx context.Context, r Range, fn func(key string, value []byte) error) error
}

// batching is the engine over any datastore.
type batching struct {
	d datastore.Batching
}

// apply writes the last op of each key, because a datastore.Batch gives no
// promise about two ops on one key, and syncs, because a go-datastore write is
// durable only after Sync. Values are copied: datastores in memory keep them.
func (e batching) apply(buf []byte) (kept bool, err error) {
	// The commit is not the caller's to cancel: others share it.
	ctx := context.Background()
	b, err := e.d.Batch(ctx)
	if err != nil {
		return false, fmt.Errorf("begin batch: %w", err)
	}
	type op struct {
		kind       byte
		key, value []byte
	}
	ops := make([]op, 0, binary.LittleEndian.Uint32(buf[8:]))
	last := make(map[string]int, cap(ops))
	eachOp(buf[batchHeaderBytes:], func(kind byte, key, value []byte) {
		last[string(key)] = len(ops)
		ops = append(ops, op{kind, key, value})
	})
	for i, o := range ops {
		key := string(o.key)
		if last[key] != i {
			continue
		}
		if o.kind == opPut {
			err = b.Put(ctx, datastore.RawKey(key), bytes.Clone(o.value))
		} else {
			err = b.Delete(ctx, datastore.RawKey(key))
		}
		if err != nil {
			return false, fmt.Errorf("fill batch: %w", err)
		}
	}
	if err := b.Commit(ctx); err != nil {
		return false, fmt.Errorf("commit: %w", err)
	}
	if err := e.d.Sync(ctx, datastore.RawKey("/")); err != nil {
		return false, fmt.Errorf("sync: %w", err)
	}
	return false, nil
}

func (e batching) get(ctx context.Context, key string) ([]byte, error) {
	value, err := e.d.Get(ctx, datastore.RawKey(key))
	if errors.Is(err, datastore.ErrNotFound) {
		return nil, ErrNotFound
	}
	return bytes.Clone(value), err
}

func (e batching) scan(ctx context.Context, r Range, fn func(key string, value []byte) error) error {
	if s, ok := e.d.(Scanner); ok {
		return s.Scan(ctx, r, fn)
	}
	// A query takes whole segments as its prefix: ask for the folder, filter
	// the rest.
	lower, upper := r.Bounds()
	q := query.Query{
		Prefix:  r.Prefix[:max(0, strings.LastIndexByte(r.Prefix, '/'))],
		Filters: []query.Filter{query.FilterKeyCompare{Op: query.GreaterThanOrEqual, Key: lower}},
		Orders:  []query.Order{query.OrderByKey{}},
	}
	if upper != "" {
		q.Filters = append(q.Filters, query.FilterKeyCompare{Op: query.LessThan, Key: upper})
	}
	if r.Reverse {
		q.Orders[0] = query.OrderByKeyDescending{}
	}
	res, err := e.d.Query(ctx, q)
	if err != nil {
		return err
	}
	defer res.Close()
	for {
		entry, ok := res.NextSync()
		if !ok {
			return nil
		}
		if entry.Error != nil {
			return entry.Error
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(entry.Key, entry.Value); err != nil {
			return err
		}
	}
}

func (e batching) close(bool) error { return e.d.Close() }
