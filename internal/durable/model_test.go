package durable_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/tallystick/tally/internal/durable"
)

// TestCrashModel submits random batches, merged as they come, and cuts the power
// at random points of the run, on a disk that lost, kept or tore what was not
// synced. What a clone holds must be the model after its first k batches for some
// k: no batch in parts, none out of order; k is no less than the number of
// batches acknowledged before the cut, and no more than the number submitted
// until after it.
func TestCrashModel(t *testing.T) {
	type cut struct {
		fs              *vfs.MemFS
		acked, promised int
	}
	rapid.Check(t, func(t *rapid.T) {
		fs := vfs.NewCrashableMem()
		s, err := durable.Open("store", durable.WithFS(fs), quiet)
		if err != nil {
			t.Fatal(err)
		}
		key := rapid.Custom(func(t *rapid.T) string { return fmt.Sprintf("/k/%d", rapid.IntRange(0, 7).Draw(t, "key")) })
		models := []map[string]string{{}}
		var acked atomic.Int64
		var cuts []cut
		batches := rapid.IntRange(1, 40).Draw(t, "batches")
		for i := 1; i <= batches; i++ {
			model := maps.Clone(models[i-1])
			var b durable.Batch
			for op := range rapid.IntRange(1, 5).Draw(t, "ops") {
				k := key.Draw(t, "op")
				if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
					b.Delete(k)
					delete(model, k)
				} else {
					v := fmt.Sprintf("%d.%d", i, op)
					b.Put(k, []byte(v))
					model[k] = v
				}
			}
			models = append(models, model)
			s.Submit(&b, func(err error) {
				if err != nil {
					t.Errorf("batch %d: %v", i, err)
				}
				if n := acked.Add(1); n != int64(i) {
					t.Errorf("batch %d answered as number %d", i, n)
				}
			})
			switch rapid.IntRange(0, 5).Draw(t, "then") {
			case 0:
				// An empty callback batch behind the others waits for them all.
				done := make(chan struct{})
				s.Submit(new(durable.Batch), func(error) { close(done) })
				<-done
			case 1:
				seed := rapid.Uint64().Draw(t, "disk")
				rng := rand.New(rand.NewPCG(seed, 0))
				c := cut{acked: int(acked.Load())}
				c.fs = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
				c.promised = i
				cuts = append(cuts, c)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for _, c := range append(cuts, cut{fs, batches, batches}) {
			after, err := durable.Open("store", durable.WithFS(c.fs), quiet)
			if err != nil {
				t.Fatalf("after the cut: %v", err)
			}
			got := records(t, after)
			if err := after.Close(); err != nil {
				t.Fatal(err)
			}
			found := false
			for k := c.acked; k <= c.promised; k++ {
				found = found || maps.Equal(models[k], got)
			}
			if !found {
				t.Fatalf("after the cut %v; want one of %v", got, models[c.acked:c.promised+1])
			}
		}
	})
}

// Many callers at once: each one's own records are there in its order, and
// nothing but them.
func TestConcurrentCommits(t *testing.T) {
	for name, open := range engines {
		t.Run(name, func(t *testing.T) {
			s := open()
			defer s.Close()
			const writers, rounds = 16, 20
			errs := make(chan error, writers)
			for w := range writers {
				go func() {
					var b durable.Batch
					for i := range rounds {
						b.Reset()
						b.Put(fmt.Sprintf("/w/%d/%d", w, i), nil)
						b.Put(fmt.Sprintf("/last/%d", w), fmt.Append(nil, i))
						if err := s.Commit(context.Background(), &b); err != nil {
							errs <- err
							return
						}
						got, err := s.Get(context.Background(), fmt.Sprintf("/last/%d", w))
						if err != nil || string(got) != fmt.Sprint(i) {
							errs <- fmt.Errorf("writer %d reads %q after writing %d: %w", w, got, i, err)
							return
						}
					}
					errs <- nil
				}()
			}
			for range writers {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			if n := len(records(t, s)); n != writers*rounds+writers {
				t.Errorf("%d records", n)
			}
		})
	}
}
