package host

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream/forward"
)

// What is saved with a lock is there after a restart, is forgotten when nobody needs it,
// and leaves the disk with the next that is saved.
func TestLockWhys(t *testing.T) {
	store := durabletest.NewMem()
	defer store.Close()
	lock := func(id uint64) forward.HeldLock { return forward.HeldLock{Peer: peer.ID("a peer"), ID: id} }
	whys := map[forward.HeldLock]*forward.Msg{
		lock(1): {Code: forward.CodeRefused, Hop: 2, Data: []byte("why")},
		lock(2): {Code: forward.CodeHeadroom, Hop: 1, Headroom: 1 << 40},
		lock(3): {Code: forward.CodeBusy, Hop: 1, Data: make([]byte, maxWhyData)},
	}
	put := func(w *lockWhys, k forward.HeldLock, m *forward.Msg) {
		t.Helper()
		var b durable.Batch
		w.put(k, m)(&b)
		if err := store.Commit(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
	}
	restored := func() lockWhys {
		t.Helper()
		w := newLockWhys()
		if err := w.restore(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		return w
	}
	first := newLockWhys()
	for k, m := range whys {
		put(&first, k, m)
	}
	second := restored()
	if !reflect.DeepEqual(second.of, whys) {
		t.Fatalf("%+v", second.of)
	}
	second.keep(map[forward.HeldLock]bool{lock(1): true, lock(2): true})
	second.drop(lock(2))
	second.drop(lock(9))
	if len(second.of) != 1 || len(second.stale) != 2 {
		t.Fatalf("%+v", second)
	}
	long := &forward.Msg{Code: forward.CodeApplication, Data: make([]byte, maxWhyData+1)}
	put(&second, lock(4), long)
	third := restored()
	if len(second.stale) != 0 || len(third.of) != 2 || third.of[lock(1)] == nil || third.of[lock(4)] == nil || third.of[lock(4)].Data != nil {
		t.Fatalf("%+v", third.of)
	}

	key := whyKey(lock(7))
	for _, bad := range [][]byte{nil, make([]byte, whyHead-1), append(make([]byte, whyHead-1), 5, 1), make([]byte, whyHead), make([]byte, whyRecordSize+1)} {
		var b durable.Batch
		b.Put(key, durable.Seal(nil, key, whyVersion, bytes.Clone(bad)))
		if err := store.Commit(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		w := newLockWhys()
		if err := w.restore(t.Context(), store); !errors.Is(err, errWhy) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}
