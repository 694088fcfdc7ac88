package durable

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"pgregory.net/rapid"
)

type batchOp struct {
	kind       byte
	key, value string
}

// The bytes of a Batch are those of a Pebble batch with the same ops, and eachOp
// reads them back.
func TestBatchIsPebbleBatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ours Batch
		theirs := new(pebble.Batch)
		if rapid.Bool().Draw(t, "used before") {
			ours.Put("/old", []byte("gone"))
			ours.Reset()
		}
		var want []batchOp
		for range rapid.IntRange(0, 20).Draw(t, "ops") {
			key := "/" + rapid.StringMatching(`[a-z]{1,200}`).Draw(t, "key")
			if rapid.Bool().Draw(t, "delete") {
				ours.Delete(key)
				if err := theirs.Delete([]byte(key), nil); err != nil {
					t.Fatal(err)
				}
				want = append(want, batchOp{opDelete, key, ""})
				continue
			}
			value := rapid.SliceOf(rapid.Byte()).Draw(t, "value")
			ours.Put(key, value)
			if err := theirs.Set([]byte(key), value, nil); err != nil {
				t.Fatal(err)
			}
			want = append(want, batchOp{opPut, key, string(value)})
		}
		if got := theirs.Repr()[batchHeaderBytes:]; !bytes.Equal(ours.ops, got) {
			t.Fatalf("ops %x, Pebble has %x", ours.ops, got)
		}
		if ours.Len() != int(theirs.Count()) || ours.Bytes() != len(ours.ops) {
			t.Fatalf("Len %d, Bytes %d", ours.Len(), ours.Bytes())
		}
		var got []batchOp
		eachOp(ours.ops, func(kind byte, key, value []byte) {
			got = append(got, batchOp{kind, string(key), string(value)})
		})
		if len(got) != len(want) {
			t.Fatalf("%d ops read, want %d", len(got), len(want))
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("op %d is %q, want %q", i, got[i], want[i])
			}
		}
	})
}

func TestBatchCheck(t *testing.T) {
	var b Batch
	b.Put("/good", nil)
	if err := b.check(); err != nil {
		t.Error(err)
	}
	b.Put("bad", nil)
	b.Put("/good/", nil)
	if err := b.check(); !errors.Is(err, ErrKey) || !bytes.Contains([]byte(err.Error()), []byte(`"bad"`)) {
		t.Errorf("illegal key: %v", err)
	}
	b.Reset()
	b.Put("/large", make([]byte, MaxBatchBytes))
	if err := b.check(); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large batch: %v", err)
	}
	b.Reset()
	if err := b.check(); err != nil || b.Len() != 0 || b.Bytes() != 0 {
		t.Errorf("after Reset: %v, %d ops, %d bytes", err, b.Len(), b.Bytes())
	}
}

func TestPrefixEnd(t *testing.T) {
	for _, tc := range []struct{ prefix, want string }{
		{"", ""}, {"/", "0"}, {"/a", "/b"}, {"/a\xff", "/b"}, {"\xff\xff", ""}, {"/\x7f", "/\x80"},
	} {
		if got := prefixEnd(tc.prefix); got != tc.want {
			t.Errorf("prefixEnd(%q) = %q, want %q", tc.prefix, got, tc.want)
		}
	}
}
