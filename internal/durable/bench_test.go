package durable_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

// The figures of the journal row: go test -run '^$' -bench Journal -benchtime 1x.
func BenchmarkJournal(b *testing.B) {
	for b.Loop() {
		fig, err := durable.BenchJournal(b.Context(), b.TempDir(), 256, 3*time.Second)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(fig.PerSecond, "records/s")
		b.ReportMetric(fig.Pebble, "pebble/s")
		b.ReportMetric(fig.Fdatasync, "fdatasync/s")
		b.ReportMetric(fig.PerCommit, "records/commit")
	}
}

func TestBenchJournal(t *testing.T) {
	fig, err := durable.BenchJournal(t.Context(), t.TempDir(), 8, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if fig.PerSecond <= 0 || fig.Pebble <= 0 || fig.Fdatasync <= 0 || fig.Ratio <= 0 {
		t.Fatalf("a figure is missing: %+v", fig)
	}
	text, err := json.Marshal(fig)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", text)
}

// A million records of 200 bytes, flushed to tables, are scanned in well under a
// second.
func BenchmarkScanMillion(b *testing.B) {
	const records = 1_000_000
	s, err := durable.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	value := make([]byte, 180)
	var batch durable.Batch
	for i := range records {
		batch.Put(fmt.Sprintf("/r/%s", durable.KeyUint(uint64(i))), value)
		if batch.Len() == 4096 || i == records-1 {
			if err := s.Commit(b.Context(), &batch); err != nil {
				b.Fatal(err)
			}
			batch.Reset()
		}
	}
	for b.Loop() {
		n := 0
		err := s.Scan(b.Context(), "/r/", "", func(string, []byte) error { n++; return nil })
		if err != nil || n != records {
			b.Fatalf("%d records, %v", n, err)
		}
	}
}

// One writer in memory: what the queue itself costs.
func BenchmarkCommitMem(b *testing.B) {
	s := durabletest.NewMem()
	defer s.Close()
	var batch durable.Batch
	value := make([]byte, 180)
	b.ReportAllocs()
	for b.Loop() {
		batch.Reset()
		batch.Put("/r/one", value)
		if err := s.Commit(b.Context(), &batch); err != nil {
			b.Fatal(err)
		}
	}
}
