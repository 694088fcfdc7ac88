package durable

import (
	"context"
	"errors"
)

const (
	// Schema is the version of the store's own layout: key rules and record
	// codec. A record has a version of its own beside it.
	Schema byte = 1

	// SchemaKey is where the store keeps its schema record.
	SchemaKey = "/durable/schema"
)

// EnsureSchema writes the schema record into a new store and refuses, with
// ErrNewerSchema or ErrDamaged, a store that this program cannot read.
func (s *Store) EnsureSchema(ctx context.Context) error {
	rec, err := s.Get(ctx, SchemaKey)
	if errors.Is(err, ErrNotFound) {
		var b Batch
		b.Put(SchemaKey, Seal(nil, SchemaKey, Schema, nil))
		return s.Commit(ctx, &b)
	}
	if err != nil {
		return err
	}
	_, _, err = Unseal(SchemaKey, Schema, rec)
	return err
}
