package durable

import (
	"encoding/binary"
	"fmt"
)

// MaxBatchBytes bounds one batch. A batch is written in one piece and held in
// memory about three times on its way; the largest legitimate one, a pruning
// run, fits many times over.
const MaxBatchBytes = 32 << 20

// Batch is an ordered list of puts and deletes that lands whole or not at all.
// The last op on a key wins. The zero value is ready to use. A Batch is not safe
// for concurrent use; the store copies it while Commit or Submit queues it, so
// it may be reset and filled again as soon as Submit returned.
type Batch struct {
	// ops are in the encoding of a Pebble batch, without its header: kind byte,
	// then key and (for a put) value, each behind its uvarint length. A merge
	// is then one copy per batch.
	ops []byte
	n   int
	err error // the first illegal key; Commit answers with it
}

// Op kinds as Pebble numbers them in its batches.
const (
	opDelete byte = 0
	opPut    byte = 1
)

// Put adds key = value. Both are copied. An illegal key (see [CheckKey]) makes
// the Commit of the batch fail with ErrKey.
func (b *Batch) Put(key string, value []byte) {
	b.op(opPut, key)
	b.ops = binary.AppendUvarint(b.ops, uint64(len(value)))
	b.ops = append(b.ops, value...)
}

// Delete adds the removal of key, whether it exists or not.
func (b *Batch) Delete(key string) { b.op(opDelete, key) }

func (b *Batch) op(kind byte, key string) {
	if err := CheckKey(key); err != nil && b.err == nil {
		b.err = err
	}
	b.ops = append(b.ops, kind)
	b.ops = binary.AppendUvarint(b.ops, uint64(len(key)))
	b.ops = append(b.ops, key...)
	b.n++
}

// Len returns the number of ops.
func (b *Batch) Len() int { return b.n }

// Bytes returns the size of the batch in bytes as it goes into the journal.
func (b *Batch) Bytes() int { return len(b.ops) }

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() { b.ops, b.n, b.err = b.ops[:0], 0, nil }

// check reports why the batch cannot be queued.
func (b *Batch) check() error {
	if b.err != nil {
		return b.err
	}
	if len(b.ops) > MaxBatchBytes {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(b.ops), MaxBatchBytes)
	}
	return nil
}

// eachOp calls fn for each op in order. The slices point into ops. ops comes
// from Batch alone, so a malformed one is a bug of our own.
func eachOp(ops []byte, fn func(kind byte, key, value []byte)) {
	field := func() []byte {
		n, w := binary.Uvarint(ops)
		if w <= 0 || n > uint64(len(ops)-w) {
			panic("durable: malformed batch")
		}
		f := ops[w : w+int(n)]
		ops = ops[w+int(n):]
		return f
	}
	for len(ops) > 0 {
		kind := ops[0]
		ops = ops[1:]
		key := field()
		var value []byte
		if kind == opPut {
			value = field()
		}
		fn(kind, key, value)
	}
}
