package durable

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// journalRecordBytes is the size of key and sealed record together: about that of
// an accepted cheque with its signature.
const journalRecordBytes = 200

// JournalFigures is what BenchJournal measured, in synced records per second.
type JournalFigures struct {
	Writers     int     `json:"writers"`
	RecordBytes int     `json:"record_bytes"`
	Seconds     float64 `json:"seconds"` // of each of the three measurements

	PerSecond float64 `json:"records_per_s"` // through Commit
	PerCommit float64 `json:"records_per_commit"`

	// The limits of the same machine in the same run.
	Pebble    float64 `json:"limit_pebble_per_s"`    // each writer commits its own synced Pebble batch
	Fdatasync float64 `json:"limit_fdatasync_per_s"` // one append and one fdatasync a record
	Ratio     float64 `json:"ratio_to_pebble"`       // PerSecond / Pebble
}

// BenchJournal measures for d each: writers that commit one record after the
// other through Commit, the same writers on plain Pebble, and one writer that
// appends to a file and syncs it after each record. It works in a folder of its
// own below dir and removes it.
func BenchJournal(ctx context.Context, dir string, writers int, d time.Duration) (fig JournalFigures, err error) {
	if writers < 1 || d <= 0 {
		return fig, fmt.Errorf("durable: bench journal: %d writers for %v", writers, d)
	}
	dir, err = os.MkdirTemp(dir, "bench-journal-")
	if err != nil {
		return fig, fmt.Errorf("durable: bench journal: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	fig = JournalFigures{Writers: writers, RecordBytes: journalRecordBytes, Seconds: d.Seconds()}
	if fig.Fdatasync, err = benchFdatasync(ctx, filepath.Join(dir, "file"), d); err != nil {
		return fig, fmt.Errorf("durable: bench fdatasync: %w", err)
	}
	if fig.Pebble, err = benchPebble(ctx, filepath.Join(dir, "pebble"), writers, d); err != nil {
		return fig, fmt.Errorf("durable: bench pebble: %w", err)
	}
	if fig.PerSecond, fig.PerCommit, err = benchStore(ctx, filepath.Join(dir, "store"), writers, d); err != nil {
		return fig, fmt.Errorf("durable: bench store: %w", err)
	}
	fig.Ratio = fig.PerSecond / fig.Pebble
	return fig, nil
}

func benchStore(ctx context.Context, dir string, writers int, d time.Duration) (perSecond, perCommit float64, err error) {
	var commits atomic.Int64
	s, err := Open(dir, WithCommitHook(func(commit func() error) error {
		commits.Add(1)
		return commit()
	}))
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	perSecond, records, err := benchWriters(ctx, writers, d, func(ctx context.Context) func(key string, rec []byte) error {
		var b Batch
		return func(key string, rec []byte) error {
			b.Reset()
			b.Put(key, rec)
			return s.Commit(ctx, &b)
		}
	})
	return perSecond, float64(records) / float64(max(1, commits.Load())), err
}

func benchPebble(ctx context.Context, dir string, writers int, d time.Duration) (perSecond float64, err error) {
	c := newConfig(nil)
	ds, err := openPebble(dir, c, &engineLogger{logger: c.logger})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, ds.Close()) }()
	perSecond, _, err = benchWriters(ctx, writers, d, func(context.Context) func(key string, rec []byte) error {
		return func(key string, rec []byte) error {
			b := ds.DB.NewBatch()
			if err := b.Set([]byte(key), rec, nil); err != nil {
				return err
			}
			if err := b.Commit(pebble.Sync); err != nil {
				return err
			}
			return b.Close()
		}
	})
	return perSecond, err
}

// benchWriters runs writers for d; each calls what writer returned with a key
// never used before and a sealed record.
func benchWriters(ctx context.Context, writers int, d time.Duration, writer func(context.Context) func(key string, rec []byte) error) (perSecond float64, records int64, err error) {
	var (
		wg    sync.WaitGroup
		total atomic.Int64
		errs  = make([]error, writers)
		begin = time.Now()
		end   = begin.Add(d)
	)
	for w := range writers {
		wg.Go(func() { // ends at end, or with the first error
			put := writer(ctx)
			payload := make([]byte, journalRecordBytes)
			rec := make([]byte, 0, journalRecordBytes+SealOverhead)
			folder := "/bench/" + KeyUint(uint64(w)) + "/"
			for n := int64(0); ; n++ {
				// A record each at least, however late a busy machine lets them begin.
				if n > 0 && !time.Now().Before(end) || ctx.Err() != nil {
					total.Add(n)
					errs[w] = ctx.Err()
					return
				}
				key := folder + KeyUint(uint64(n))
				rec = Seal(rec[:0], key, 1, payload[:journalRecordBytes-len(key)-SealOverhead])
				if err := put(key, rec); err != nil {
					errs[w] = err
					return
				}
			}
		})
	}
	wg.Wait()
	records = total.Load()
	return float64(records) / time.Since(begin).Seconds(), records, errors.Join(errs...)
}

func benchFdatasync(ctx context.Context, path string, d time.Duration) (perSecond float64, err error) {
	f, err := vfs.Default.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	rec := make([]byte, journalRecordBytes)
	begin := time.Now()
	end := begin.Add(d)
	n := 0
	for ; (n == 0 || time.Now().Before(end)) && ctx.Err() == nil; n++ {
		if _, err := f.Write(rec); err != nil {
			return 0, err
		}
		if err := f.SyncData(); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(begin).Seconds(), ctx.Err()
}
