package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream/forward"
)

const (
	whyPrefix          = "/packet/why/"
	whyVersion    byte = 1
	whyHead            = 8 + 1 + 1 + 8 + 1
	maxWhyData         = forward.MaxKept
	maxWhyPeer         = 64
	whyRecordSize      = whyHead + maxWhyPeer + maxWhyData
)

var errWhy = errors.New("host: malformed record of a lock that was given up")

// lockWhys are the reasons of the locks that we gave up. A CANCEL is sent again after a
// restart, until it is acked, and its reason goes with it each time; so it is saved with
// the lock. Its caller holds the lock of Locks.
type lockWhys struct {
	of map[forward.HeldLock]*forward.Msg
	// stale are records that nobody needs: they go with the next batch.
	stale map[forward.HeldLock]bool
}

func newLockWhys() lockWhys {
	return lockWhys{of: make(map[forward.HeldLock]*forward.Msg), stale: make(map[forward.HeldLock]bool)}
}

func whyKey(k forward.HeldLock) string {
	return whyPrefix + durable.KeyUint(k.ID) + "/" + k.Peer.String()
}

// put keeps why, and returns what saves it in the batch that gives the lock up.
func (w *lockWhys) put(k forward.HeldLock, why *forward.Msg) func(*durable.Batch) {
	w.of[k] = why
	old := make([]forward.HeldLock, 0, len(w.stale))
	for s := range w.stale {
		if s != k {
			old = append(old, s)
		}
	}
	clear(w.stale) // a batch that is not written leaves them to the next start
	rec := binary.BigEndian.AppendUint64(make([]byte, 0, whyHead), k.ID)
	rec = binary.BigEndian.AppendUint64(append(rec, byte(why.Code), why.Hop), uint64(why.Headroom))
	rec = append(append(rec, byte(len(k.Peer))), k.Peer...)
	if len(why.Data) <= maxWhyData {
		rec = append(rec, why.Data...)
	}
	return func(b *durable.Batch) {
		for _, s := range old {
			b.Delete(whyKey(s))
		}
		key := whyKey(k)
		b.Put(key, durable.Seal(nil, key, whyVersion, rec))
	}
}

// drop forgets the reason of a CANCEL that is acked.
func (w *lockWhys) drop(k forward.HeldLock) {
	if w.of[k] != nil {
		delete(w.of, k)
		w.stale[k] = true
	}
}

// restore reads what an earlier run has saved.
func (w *lockWhys) restore(ctx context.Context, store *durable.Store) error {
	return store.Scan(ctx, whyPrefix, "", func(key string, sealed []byte) error {
		_, rec, err := durable.Unseal(key, whyVersion, sealed)
		if err != nil {
			return err
		}
		if len(rec) < whyHead || len(rec) > whyRecordSize || len(rec) < whyHead+int(rec[whyHead-1]) {
			return fmt.Errorf("%w: %d bytes", errWhy, len(rec))
		}
		end := whyHead + int(rec[whyHead-1])
		k := forward.HeldLock{Peer: peer.ID(rec[whyHead:end]), ID: binary.BigEndian.Uint64(rec)}
		m := &forward.Msg{Code: forward.Code(rec[8]), Hop: rec[9], Headroom: tally.Amount(binary.BigEndian.Uint64(rec[10:]))}
		if end < len(rec) {
			m.Data = append([]byte(nil), rec[end:]...)
		}
		if whyKey(k) != key {
			return fmt.Errorf("%w: it is kept as another's", errWhy)
		}
		w.of[k] = m
		return nil
	})
}

// keep drops all but those of locks that stand.
func (w *lockWhys) keep(stands map[forward.HeldLock]bool) {
	for k := range w.of {
		if !stands[k] {
			w.drop(k)
		}
	}
}
