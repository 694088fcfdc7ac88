package durable_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/tallystick/tally/internal/durable"
)

// disk is a file system in memory that breaks on demand.
type disk struct {
	*vfs.MemFS
	broken atomic.Bool
	syncs  atomic.Int64 // of the journal, while broken
}

// newDisk breaks, once broken is set, the ops of the files with that ending.
func newDisk(ending string, cause error, kinds ...errorfs.OpKind) (*disk, vfs.FS) {
	d := &disk{MemFS: vfs.NewCrashableMem()}
	return d, errorfs.Wrap(d.MemFS, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if !d.broken.Load() || !strings.HasSuffix(op.Path, ending) {
			return nil
		}
		for _, kind := range kinds {
			if op.Kind == kind {
				d.syncs.Add(1)
				return cause
			}
		}
		return nil
	}))
}

// A journal that cannot be written or synced poisons the store: no caller is told
// that its batch landed, the failed call is never repeated, and after a restart
// on a good disk everything acknowledged is there.
func TestBrokenJournal(t *testing.T) {
	for _, tc := range []struct {
		name  string
		cause error
		kinds []errorfs.OpKind
	}{
		{"fsync error", syscall.EIO, []errorfs.OpKind{errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo}},
		{"disk full", syscall.ENOSPC, []errorfs.OpKind{errorfs.OpFileWrite}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, fs := newDisk(".log", tc.cause, tc.kinds...)
			s, err := durable.Open("store", durable.WithFS(fs), quiet)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 10 {
				commit(t, s, fmt.Sprintf("/acked/%d", i), "x")
			}
			d.broken.Store(true)
			const callers = 16
			errs := make(chan error, callers)
			for i := range callers {
				go func() { errs <- s.Commit(context.Background(), put(fmt.Sprintf("/lost/%d", i), "x")) }()
			}
			for range callers {
				err := <-errs
				if !errors.Is(err, durable.ErrFailed) || !errors.Is(err, tc.cause) {
					t.Errorf("err = %v", err)
				}
			}
			t.Logf("the error reads: %v", s.Failed())
			tried := d.syncs.Load()

			// The disk works again: the store must not trust it.
			d.broken.Store(false)
			if err := s.Commit(t.Context(), put("/late", "x")); !errors.Is(err, durable.ErrFailed) {
				t.Errorf("after the disk came back: %v", err)
			}
			if tried != 1 || d.syncs.Load() != tried {
				t.Errorf("the broken call was made %d times", tried)
			}
			crashed := d.CrashClone(vfs.CrashCloneCfg{})
			if err := s.Close(); err != nil {
				t.Logf("close says: %v", err)
			}
			for name, fs := range map[string]vfs.FS{"crash": crashed, "restart": d.MemFS} {
				again, err := durable.Open("store", durable.WithFS(fs), quiet)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				all := records(t, again)
				for i := range 10 {
					if all[fmt.Sprintf("/acked/%d", i)] == "" {
						t.Errorf("%s: acknowledged record %d is lost", name, i)
					}
				}
				if all["/late"] != "" {
					t.Errorf("%s: a batch landed after the failure", name)
				}
				commit(t, again, "/new", "x")
				if err := again.Close(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

// Tables that cannot be written (the journal lies on a disk of its own, or has
// its space already) would leave Pebble trying for ever while commits pile up.
// The store fails instead.
func TestBrokenTables(t *testing.T) {
	d, fs := newDisk(".sst", syscall.ENOSPC, errorfs.OpCreate, errorfs.OpFileWrite)
	s, err := durable.Open("store", durable.WithFS(fs), quiet)
	if err != nil {
		t.Fatal(err)
	}
	d.broken.Store(true)
	value := make([]byte, 1<<20)
	acked := 0
	for err == nil && acked < 1000 {
		var b durable.Batch
		b.Put(fmt.Sprintf("/acked/%d", acked), value)
		if err = s.Commit(t.Context(), &b); err == nil {
			acked++
		}
	}
	if !errors.Is(err, durable.ErrFailed) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("after %d batches: %v", acked, err)
	}
	d.broken.Store(false)
	if err := s.Close(); err != nil {
		t.Logf("close says: %v", err)
	}
	again, err := durable.Open("store", durable.WithFS(d.MemFS), quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if n := len(records(t, again)); n < acked {
		t.Errorf("%d records, %d were acknowledged", n, acked)
	}
}
