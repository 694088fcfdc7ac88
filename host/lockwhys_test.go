package host

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/host/locker"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/lock"
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

// posts keeps the messages that would go to neighbours.
type posts struct {
	lockSessions
	sent []*forward.Msg
}

func (s *posts) Post(_ peer.ID, m *forward.Msg) bool {
	s.sent = append(s.sent, m)
	return true
}

// The CANCEL of a lock that ends at a wrong time for us says so, also after a restart: who
// hears that nothing more than that was wrong tries again soon.
func TestCancelSaysWhatWasWrong(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want forward.Code
	}{
		"too soon":   {fmt.Errorf("%w: until 7", lock.ErrTooSoon), forward.CodeExpiryTooSoon},
		"no guard":   {lock.ErrGuard, forward.CodeExpiryTooFar},
		"settling":   {lock.ErrSettling, forward.CodeInternal},
		"its end":    {nil, forward.CodeInternal},
		"lost money": {locker.ErrLost, forward.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			store := durabletest.NewMem()
			defer store.Close()
			hub, packets := peer.ID("a hub"), &posts{}
			l := &Locks{whys: newLockWhys(), packets: packets}
			var b durable.Batch
			if record, _ := l.Ended(hub, 7, nil, tt.err); record != nil {
				record(&b)
			}
			if err := store.Commit(t.Context(), &b); err != nil {
				t.Fatal(err)
			}
			l.Send(hub, &locker.Msg{Send: lock.SendCancel, ID: 7})
			again := &Locks{whys: newLockWhys(), packets: packets}
			if err := again.whys.restore(t.Context(), store); err != nil {
				t.Fatal(err)
			}
			again.Send(hub, &locker.Msg{Send: lock.SendCancel, ID: 7})
			for _, m := range packets.sent {
				if m.Kind != forward.MsgReject || m.Code != tt.want || m.Hop != 1 {
					t.Errorf("it says %v of hop %d", m.Code, m.Hop)
				}
			}
			if len(packets.sent) != 2 {
				t.Errorf("%d messages", len(packets.sent))
			}
		})
	}
}
