package durable_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"pgregory.net/rapid"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

var quiet = durable.WithLogger(slog.New(slog.DiscardHandler))

// engines are the three ways a store can stand on its datastore: Pebble's own
// interface, a Scanner, and queries.
var engines = map[string]func(opts ...durable.Option) *durable.Store{
	"pebble": func(opts ...durable.Option) *durable.Store {
		s, err := durable.Open("store", append(opts, durable.WithFS(vfs.NewMem()), quiet)...)
		if err != nil {
			panic(err)
		}
		return s
	},
	"mem": func(opts ...durable.Option) *durable.Store { return durabletest.NewMem(append(opts, quiet)...) },
	"map": func(opts ...durable.Option) *durable.Store {
		return durable.New(dssync.MutexWrap(datastore.NewMapDatastore()), append(opts, quiet)...)
	},
}

func eachEngine(t *testing.T, test func(t *testing.T, s *durable.Store)) {
	for name, open := range engines {
		t.Run(name, func(t *testing.T) {
			s := open()
			test(t, s)
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
}

// put returns a batch of key, value pairs; an empty value deletes.
func put(pairs ...string) *durable.Batch {
	b := new(durable.Batch)
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			b.Delete(pairs[i])
		} else {
			b.Put(pairs[i], []byte(pairs[i+1]))
		}
	}
	return b
}

func commit(t testing.TB, s *durable.Store, pairs ...string) {
	t.Helper()
	if err := s.Commit(context.Background(), put(pairs...)); err != nil {
		t.Error(err)
	}
}

func records(t fataler, s *durable.Store) map[string]string {
	t.Helper()
	all, err := durabletest.Records(context.Background(), s)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestCommitGet(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *durable.Store) {
		if _, err := s.Get(t.Context(), "/a"); !errors.Is(err, durable.ErrNotFound) {
			t.Errorf("empty store: %v", err)
		}
		commit(t, s, "/a", "1", "/b", "2", "/a", "3", "/b", "", "/c", "", "/c", "4")
		if got, want := records(t, s), map[string]string{"/a": "3", "/c": "4"}; !maps.Equal(got, want) {
			t.Errorf("last op must win: %v, want %v", got, want)
		}
		value, err := s.Get(t.Context(), "/a")
		if err != nil || string(value) != "3" {
			t.Fatalf("Get = %q, %v", value, err)
		}
		value[0] = 'x'
		if again, _ := s.Get(t.Context(), "/a"); string(again) != "3" {
			t.Errorf("Get returned the store's own memory")
		}
		if _, err := s.Get(t.Context(), "a"); !errors.Is(err, durable.ErrKey) {
			t.Errorf("illegal key: %v", err)
		}
		if err := s.Commit(t.Context(), new(durable.Batch)); err != nil {
			t.Errorf("empty batch: %v", err)
		}
	})
}

func TestCommitRefusesAndGoesOn(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *durable.Store) {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Commit(ended, put("/a", "1")); !errors.Is(err, context.Canceled) || errors.Is(err, durable.ErrUncertain) {
			t.Errorf("ended ctx: %v", err)
		}
		if err := s.Commit(t.Context(), put("/a", "1", "/b/", "2")); !errors.Is(err, durable.ErrKey) {
			t.Errorf("illegal key: %v", err)
		}
		var large durable.Batch
		large.Put("/a", make([]byte, durable.MaxBatchBytes+1))
		if err := s.Commit(t.Context(), &large); !errors.Is(err, durable.ErrTooLarge) {
			t.Errorf("large batch: %v", err)
		}
		if got := records(t, s); len(got) != 0 {
			t.Errorf("something was written: %v", got)
		}
		// A batch as large as may be goes around the queue's byte bound and, in
		// Pebble, around the write buffer.
		large.Reset()
		large.Put("/large", make([]byte, durable.MaxBatchBytes-64))
		if err := s.Commit(t.Context(), &large); err != nil {
			t.Error(err)
		}
		commit(t, s, "/a", "1")
		if value, err := s.Get(t.Context(), "/large"); err != nil || len(value) != durable.MaxBatchBytes-64 {
			t.Errorf("large value: %d bytes, %v", len(value), err)
		}
	})
}

// scanned runs one scan and returns its keys; the values must be the keys.
func scanned(t *rapid.T, scan func(context.Context, string, string, func(string, []byte) error) error, prefix, bound string, limit int) []string {
	var keys []string
	err := scan(context.Background(), prefix, bound, func(key string, value []byte) error {
		if string(value) != key {
			t.Fatalf("value of %q is %q", key, value)
		}
		keys = append(keys, key)
		if len(keys) == limit {
			return durable.ErrStop
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// All engines scan as a sorted list of the keys does.
func TestScanModel(t *testing.T) {
	for name, open := range engines {
		t.Run(name, func(t *testing.T) {
			segment := rapid.SampledFrom([]string{"a", "b", "ab", "a\xff", "\xff", "a.b", "c"})
			key := rapid.Custom(func(t *rapid.T) string {
				return "/m/" + strings.Join(rapid.SliceOfN(segment, 1, 3).Draw(t, "segments"), "/")
			})
			bound := rapid.OneOf(key, rapid.SampledFrom([]string{"", "/", "/m", "/m/", "/m/a", "/m/a/", "/m/\xff", "/n", "/z"}))
			rapid.Check(t, func(t *rapid.T) {
				s := open()
				defer s.Close()
				keys := rapid.SliceOfNDistinct(key, 0, 12, rapid.ID).Draw(t, "keys")
				for part := range slices.Chunk(keys, 4) {
					b := new(durable.Batch)
					for _, k := range part {
						b.Put(k, []byte(k))
					}
					if err := s.Commit(context.Background(), b); err != nil {
						t.Fatal(err)
					}
				}
				slices.Sort(keys)
				for range 4 {
					prefix := "/m" + strings.TrimPrefix(bound.Draw(t, "prefix"), "/m")
					edge := bound.Draw(t, "edge")
					limit := rapid.IntRange(1, 12).Draw(t, "limit")
					var up, down []string
					for _, k := range keys {
						if strings.HasPrefix(k, prefix) && (edge == "" || k > edge) && len(up) < limit {
							up = append(up, k)
						}
					}
					for _, k := range slices.Backward(keys) {
						if strings.HasPrefix(k, prefix) && (edge == "" || k < edge) && len(down) < limit {
							down = append(down, k)
						}
					}
					if got := scanned(t, s.Scan, prefix, edge, limit); !slices.Equal(got, up) {
						t.Fatalf("Scan(%q, %q) = %q, want %q", prefix, edge, got, up)
					}
					if got := scanned(t, s.ScanReverse, prefix, edge, limit); !slices.Equal(got, down) {
						t.Fatalf("ScanReverse(%q, %q) = %q, want %q", prefix, edge, got, down)
					}
				}
			})
		})
	}
}

func TestScanEnds(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *durable.Store) {
		commit(t, s, "/s/1", "1", "/s/2", "2", "/s/3", "3")
		broken := errors.New("broken")
		if err := s.Scan(t.Context(), "/s/", "", func(string, []byte) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("error of fn: %v", err)
		}
		if err := s.Scan(t.Context(), "/s/", "", func(string, []byte) error {
			return fmt.Errorf("enough: %w", durable.ErrStop)
		}); err != nil {
			t.Errorf("wrapped ErrStop: %v", err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Scan(ended, "/s/", "", func(string, []byte) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("ended ctx: %v", err)
		}
		// A scan sees the store as it was, while its fn reads and writes.
		var seen []string
		if err := s.Scan(t.Context(), "/s/", "", func(key string, _ []byte) error {
			seen = append(seen, key)
			if _, err := s.Get(t.Context(), key); err != nil {
				return err
			}
			return s.Commit(t.Context(), put("/s/2", "new", "/s/4", "new", key, ""))
		}); err != nil {
			t.Fatal(err)
		}
		if want := []string{"/s/1", "/s/2", "/s/3"}; !slices.Equal(seen, want) {
			t.Errorf("scan under writes saw %q, want %q", seen, want)
		}
	})
}

func TestClose(t *testing.T) {
	for name, open := range engines {
		t.Run(name, func(t *testing.T) {
			s := open()
			var answers []error
			for i := range 100 {
				s.Submit(put(fmt.Sprintf("/c/%d", i), "x"), func(err error) { answers = append(answers, err) })
			}
			// A reader inside a reader must not wait for a Close that waits for
			// the outer one.
			scanning, closing := make(chan struct{}), make(chan error)
			go func() {
				<-scanning
				closing <- s.Close()
			}()
			commit(t, s, "/z", "1")
			err := s.Scan(t.Context(), "/z", "", func(string, []byte) error {
				close(scanning)
				for {
					if _, err := s.Get(t.Context(), "/z"); err != nil {
						return err
					}
				}
			})
			if !errors.Is(err, durable.ErrClosed) {
				t.Errorf("scan during Close: %v", err)
			}
			if err := <-closing; err != nil {
				t.Errorf("Close: %v", err)
			}
			if len(answers) != 100 || errors.Join(answers...) != nil {
				t.Errorf("%d answers: %v", len(answers), errors.Join(answers...))
			}
			if err := s.Close(); err != nil {
				t.Errorf("second Close: %v", err)
			}
			if err := s.Commit(t.Context(), put("/a", "1")); !errors.Is(err, durable.ErrClosed) {
				t.Errorf("Commit: %v", err)
			}
			var late error
			s.Submit(put("/a", "1"), func(err error) { late = err })
			if !errors.Is(late, durable.ErrClosed) {
				t.Errorf("Submit: %v", late)
			}
			if _, err := s.Get(t.Context(), "/a"); !errors.Is(err, durable.ErrClosed) {
				t.Errorf("Get: %v", err)
			}
			if err := s.Scan(t.Context(), "/", "", func(string, []byte) error { return nil }); !errors.Is(err, durable.ErrClosed) {
				t.Errorf("Scan: %v", err)
			}
		})
	}
}

// gate is a commit hook that lets commits pass one by one.
type gate struct {
	entered chan struct{}
	pass    chan error
}

func newGate() *gate { return &gate{entered: make(chan struct{}), pass: make(chan error)} }

func (g *gate) hook(commit func() error) error {
	g.entered <- struct{}{}
	if err := <-g.pass; err != nil {
		return err
	}
	return commit()
}

// While one commit is under way all that comes is queued, in order, and goes
// into the next one.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := durabletest.NewMem(durable.WithCommitHook(g.hook), quiet)
		var order []int
		var b durable.Batch
		submit := func(i int) {
			b.Reset() // queued batches are copies
			b.Put("/n", fmt.Append(nil, i))
			b.Put(fmt.Sprintf("/n/%d", i), nil)
			s.Submit(&b, func(err error) {
				if err != nil {
					t.Errorf("batch %d: %v", i, err)
				}
				order = append(order, i)
			})
		}
		submit(0)
		<-g.entered
		for i := 1; i <= 50; i++ {
			submit(i)
		}
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() { commit(t, s, fmt.Sprintf("/w/%d", i), "x") })
		}
		synctest.Wait()
		if len(order) != 0 {
			t.Fatalf("answered before the commit: %v", order)
		}
		g.pass <- nil
		<-g.entered
		synctest.Wait()
		if want := []int{0}; !slices.Equal(order, want) {
			t.Errorf("after the first commit %v, want %v", order, want)
		}
		g.pass <- nil // one commit for a hundred callers
		wg.Wait()
		synctest.Wait()
		if len(order) != 51 || !slices.IsSorted(order) {
			t.Errorf("order of answers: %v", order)
		}
		if n, _ := s.Get(t.Context(), "/n"); string(n) != "50" {
			t.Errorf("last write is %s", n)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A caller that leaves gets an answer that says what is known, and its batch
// lands all the same.
func TestCommitLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := durabletest.NewMem(durable.WithCommitHook(g.hook), quiet)
		go commit(t, s, "/first", "1")
		<-g.entered

		ctx, cancel := context.WithCancelCause(t.Context())
		answer := make(chan error)
		go func() { answer <- s.Commit(ctx, put("/second", "2")) }()
		synctest.Wait()
		cancel(nil)
		if err := <-answer; !errors.Is(err, durable.ErrUncertain) || !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v", err)
		}
		g.pass <- nil
		<-g.entered
		g.pass <- nil
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The queue is bounded: who finds it full waits for room, for its ctx, or for
// the failure of the store.
func TestQueueFull(t *testing.T) {
	fill := func(t *testing.T) (*gate, *durable.Store, *int) {
		g := newGate()
		s := durabletest.NewMem(durable.WithCommitHook(g.hook), quiet)
		answers := new(int)
		done := func(error) { *answers++ }
		s.Submit(put("/n", "x"), done)
		<-g.entered
		for range durable.MaxQueuedBatches {
			s.Submit(put("/n", "x"), done)
		}
		ctx, cancel := context.WithCancel(t.Context())
		answer := make(chan error)
		go func() { answer <- s.Commit(ctx, put("/late", "x")) }()
		synctest.Wait()
		cancel()
		if err := <-answer; !errors.Is(err, context.Canceled) || errors.Is(err, durable.ErrUncertain) {
			t.Errorf("never queued: %v", err)
		}
		return g, s, answers
	}
	t.Run("room", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g, s, answers := fill(t)
			for range 3 {
				go s.Submit(put("/more", "x"), func(error) { *answers++ })
			}
			synctest.Wait()
			go func() {
				for range g.entered {
					g.pass <- nil
				}
			}()
			g.pass <- nil
			synctest.Wait()
			if _, ok := records(t, s)["/late"]; ok {
				t.Error("a batch that was never queued landed")
			}
			if want := 1 + durable.MaxQueuedBatches + 3; *answers != want {
				t.Errorf("%d answers, want %d", *answers, want)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			close(g.entered)
		})
	})
	t.Run("failure", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g, s, answers := fill(t)
			late := make(chan error, 1)
			go s.Submit(put("/more", "x"), func(err error) { late <- err })
			synctest.Wait()
			g.pass <- errors.New("no space")
			if err := <-late; !errors.Is(err, durable.ErrFailed) {
				t.Errorf("err = %v", err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if want := 1 + durable.MaxQueuedBatches; *answers != want {
				t.Errorf("%d answers, want %d", *answers, want)
			}
		})
	})
}

// After a failed commit nothing is written any more, by anyone, and the error
// says what to do.
func TestPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := durabletest.NewMem(durable.WithCommitHook(g.hook), quiet)
		cause := errors.New("input/output error")
		answers := make([]error, 4)
		var wg sync.WaitGroup
		wg.Go(func() { answers[0] = s.Commit(context.Background(), put("/a", "1")) })
		<-g.entered
		wg.Go(func() { answers[1] = s.Commit(context.Background(), put("/b", "1")) })
		s.Submit(put("/c", "1"), func(err error) { answers[2] = err })
		synctest.Wait()
		g.pass <- cause // the second commit is never tried
		wg.Wait()
		s.Submit(put("/d", "1"), func(err error) { answers[3] = err })
		synctest.Wait()
		answers = append(answers, s.Commit(context.Background(), put("/e", "1")), s.Failed())
		for i, err := range answers {
			if !errors.Is(err, durable.ErrFailed) || !errors.Is(err, cause) {
				t.Errorf("answer %d: %v", i, err)
				continue
			}
			for _, part := range []string{"input/output error", "disk", "restart"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("answer %d lacks %q: %v", i, part, err)
				}
			}
		}
		if got := records(t, s); len(got) != 0 {
			t.Errorf("written after the failure: %v", got)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// syncs is a datastore that notes the order of its calls and fails them on
// demand.
type syncs struct {
	datastore.Batching
	calls []string
	fail  string
}

type syncsBatch struct {
	datastore.Batch
	d *syncs
}

func (d *syncs) note(call string) error {
	d.calls = append(d.calls, call)
	if d.fail == call {
		return errors.New(call + " broke")
	}
	return nil
}

func (d *syncs) Batch(ctx context.Context) (datastore.Batch, error) {
	b, err := d.Batching.Batch(ctx)
	return syncsBatch{b, d}, errors.Join(err, d.note("batch"))
}

func (d *syncs) Sync(context.Context, datastore.Key) error { return d.note("sync") }

func (b syncsBatch) Put(ctx context.Context, key datastore.Key, value []byte) error {
	return errors.Join(b.Batch.Put(ctx, key, value), b.d.note("put"))
}

func (b syncsBatch) Delete(ctx context.Context, key datastore.Key) error {
	return errors.Join(b.Batch.Delete(ctx, key), b.d.note("delete"))
}

func (b syncsBatch) Commit(ctx context.Context) error {
	return errors.Join(b.d.note("commit"), b.Batch.Commit(ctx))
}

// On a plain datastore a write is durable only after Sync; one that failed is
// never tried again.
func TestDatastoreIsSynced(t *testing.T) {
	for _, tc := range []struct {
		fail  string
		calls string
	}{
		{"", "batch put delete commit sync, batch put commit sync"},
		{"batch", "batch"},
		{"put", "batch put"},
		{"delete", "batch put delete"},
		{"commit", "batch put delete commit"},
		{"sync", "batch put delete commit sync"},
	} {
		t.Run(tc.fail, func(t *testing.T) {
			d := &syncs{Batching: dssync.MutexWrap(datastore.NewMapDatastore()), fail: tc.fail}
			s := durable.New(d, quiet)
			err := s.Commit(t.Context(), put("/b", "old", "/a", "1", "/b", ""))
			again := s.Commit(t.Context(), put("/c", "2"))
			if failed := tc.fail != ""; errors.Is(err, durable.ErrFailed) != failed || errors.Is(again, durable.ErrFailed) != failed {
				t.Errorf("%v, then %v", err, again)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if got, want := strings.Join(d.calls, " "), strings.ReplaceAll(tc.calls, ",", ""); got != want {
				t.Errorf("calls %q, want %q", got, want)
			}
		})
	}
}

func TestCommitAllocatesLittle(t *testing.T) {
	s := engines["pebble"]()
	defer s.Close()
	b := put("/a", strings.Repeat("x", 180))
	allocs := testing.AllocsPerRun(200, func() {
		if err := s.Commit(context.Background(), b); err != nil {
			t.Fatal(err)
		}
	})
	// The group and its channel, and what Pebble's journal does in memory.
	if allocs > 8 {
		t.Errorf("%v allocations a commit", allocs)
	}
	t.Logf("%v allocations a commit", allocs)
}

// fataler is what testing.TB and rapid.T share.
type fataler interface {
	Helper()
	Fatal(args ...any)
}
