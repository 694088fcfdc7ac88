package host

import (
	"context"
	"errors"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"

	"github.com/tallystick/tally/internal/durable"
)

// shelf is a part of the durable store as a go-datastore, for libraries that
// keep records of their own: libp2p's connection gater keeps the operator's
// block list in one. A Put is on disk when it returns.
type shelf struct {
	store  *durable.Store
	prefix string // begins with a slash and ends without one
}

var _ datastore.Datastore = shelf{}

func (s shelf) Get(ctx context.Context, key datastore.Key) ([]byte, error) {
	v, err := s.store.Get(ctx, s.prefix+key.String())
	if errors.Is(err, durable.ErrNotFound) {
		return nil, datastore.ErrNotFound
	}
	return v, err
}

func (s shelf) Has(ctx context.Context, key datastore.Key) (bool, error) {
	_, err := s.Get(ctx, key)
	if errors.Is(err, datastore.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (s shelf) GetSize(ctx context.Context, key datastore.Key) (int, error) {
	v, err := s.Get(ctx, key)
	if err != nil {
		return -1, err
	}
	return len(v), nil
}

func (s shelf) Put(ctx context.Context, key datastore.Key, value []byte) error {
	var b durable.Batch
	b.Put(s.prefix+key.String(), value)
	return s.store.Commit(ctx, &b)
}

func (s shelf) Delete(ctx context.Context, key datastore.Key) error {
	var b durable.Batch
	b.Delete(s.prefix + key.String())
	return s.store.Commit(ctx, &b)
}

// Query reads everything below the prefix and leaves filters and order to the
// library.
func (s shelf) Query(ctx context.Context, q query.Query) (query.Results, error) {
	var entries []query.Entry
	err := s.store.Scan(ctx, s.prefix+"/", "", func(key string, value []byte) error {
		e := query.Entry{Key: key[len(s.prefix):], Size: len(value)}
		if !q.KeysOnly {
			e.Value = append([]byte(nil), value...)
		}
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return query.NaiveQueryApply(q, query.ResultsWithEntries(q, entries)), nil
}

// Sync has nothing to do: every Put is synced.
func (s shelf) Sync(context.Context, datastore.Key) error { return nil }

// Close leaves the store open; it is the node's.
func (s shelf) Close() error { return nil }
