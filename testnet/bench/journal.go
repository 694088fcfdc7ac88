package bench

import (
	"context"
	"time"

	"github.com/tallystick/tally/internal/durable"
)

// benchJournal measures synced records with many writers. Each round of
// durable.BenchJournal measures the limits too.
func benchJournal(ctx context.Context, o *Options) ([]Figure, error) {
	writers, n := scale(o, 256, 8), scale(o, roundsOf, roundsOfQuick)
	var store, pebble, fdatasync, perCommit []float64
	for round := range n {
		o.say("journal: %d writers, round %d of %d", writers, round+1, n)
		fig, err := durable.BenchJournal(ctx, o.Dir, writers, o.Duration/time.Duration(n))
		if err != nil {
			return nil, err
		}
		store, pebble = append(store, fig.PerSecond), append(pebble, fig.Pebble)
		fdatasync, perCommit = append(fdatasync, fig.Fdatasync), append(perCommit, fig.PerCommit)
	}
	return []Figure{
		rate("journal", "records/s", once(store...), once(pebble...), "the same writers, each with a synced Pebble batch", 50e3).
			note("200-byte records, each returned after its sync").
			with("writers", writers).with("records_per_commit", median(perCommit)).with("fdatasync_per_s", median(fdatasync)),
	}, nil
}
