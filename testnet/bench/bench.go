// Package bench measures the stack on the machine at hand. `tally bench NAME`
// prints what Run returns.
//
// A speed says little without what the machine can do at that moment. So each
// figure comes with its limit: the same work without our part (a bare map, an
// echo that nobody counts, the signatures and syncs alone). Figure and limit are
// measured in the same run, in turn, in several rounds, and the medians count,
// so that a busy neighbour hits both. Their ratio is 1 at the limit and below 1
// under it, for rates and for times alike.
//
//	round 1   figure ▶ limit
//	round 2   limit ▶ figure      … medians ▶ Figure{figure, limit, ratio}
//	round 3   figure ▶ limit
//
// The goals are those of docs/performance.md, which also says what bounds each
// figure.
package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// ErrUnknown: there is no benchmark of that name.
var ErrUnknown = errors.New("bench: unknown benchmark")

// Figure is one measured number with the machine's limit from the same run.
type Figure struct {
	// Name is the benchmark and the variant, with slashes between.
	Name   string  `json:"name"`
	Figure float64 `json:"figure"`
	Unit   string  `json:"unit"`
	// Limit is what the machine does of the same work without our part, in Unit.
	Limit     float64 `json:"limit"`
	LimitName string  `json:"limit_name"`
	// Ratio is 1 at the limit and less where we are behind it: figure/limit for
	// rates, limit/figure for times and sizes.
	Ratio float64 `json:"ratio"`
	// Goal in Unit, and GoalRatio; 0 where there is none. GoalMet is true where
	// all that are set are met.
	Goal      float64 `json:"goal,omitempty"`
	GoalRatio float64 `json:"goal_ratio,omitempty"`
	GoalMet   bool    `json:"goal_met"`
	// P50 and P99 of one operation, in milliseconds.
	P50    float64 `json:"p50_ms,omitempty"`
	P99    float64 `json:"p99_ms,omitempty"`
	Allocs float64 `json:"allocs_per_op,omitempty"`
	// Note says how Ratio is formed, and what else the reader has to know.
	Note   string         `json:"note"`
	Params map[string]any `json:"params,omitempty"`
}

// Options are the scale of a run. The zero value is that of the documented
// figures.
type Options struct {
	// Duration of each measured series, over all rounds. Default 3 s.
	Duration time.Duration
	// Dir is where stores are put, on the disk that is to be measured. Each run
	// works in a folder of its own and removes it. Default: the system's
	// temporary folder.
	Dir string
	// Progress is told what is being done. Default: nobody.
	Progress func(string)
	// Child is the command line, after the path of this executable, that ends in
	// a call of Child with the further arguments. The benchmark recover starts
	// such processes in order to kill them.
	Child []string
	// Quick shrinks peers and rounds, for tests of the benchmarks themselves.
	Quick bool
}

// benchmark is one entry of the table.
type benchmark struct {
	name, short string
	run         func(context.Context, *Options) ([]Figure, error)
}

// table holds the benchmarks in the order of the documentation.
var table = []benchmark{
	{"acct", "one step of a ledger, with 100k and 1M peers", benchAcct},
	{"acct-durable", "the same with the book on disk", benchAcctDurable},
	{"pair", "accounted messages between two hosts", benchPair},
	{"node", "requests and responses, 64 and 1000 peers", benchNode},
	{"cheque", "issue, save, send, verify, save, ack", benchCheque},
	{"voucher", "create and add, in memory, at the 10^6-th, on disk", benchVoucher},
	{"journal", "synced records of 256 writers", benchJournal},
	{"mem", "bytes an account and a connected peer", benchMem},
	{"stream", "packets over 1, 2 and 4 hops", benchStream},
	{"multipath", "payments of 1 part over 1, 2 and 4 hops, of 4 over a diamond", benchMultipath},
	{"lock", "payments under locks in channels, over 1, 2 and 4 hops", benchLock},
	{"recover", "kill -9 to serving, 10^6 accounts", benchRecover},
	{"dial", "new peers with swap handshake", benchDial},
}

// Entry is one benchmark in a list.
type Entry struct{ Name, Short string }

// List returns the benchmarks with what they measure.
func List() []Entry {
	list := make([]Entry, len(table))
	for i := range table {
		list[i] = Entry{table[i].name, table[i].short}
	}
	return list
}

// Names returns the benchmarks.
func Names() []string {
	names := make([]string, len(table))
	for i := range table {
		names[i] = table[i].name
	}
	return names
}

// Run measures one benchmark. It uses all cores and should have the machine for
// itself.
func Run(ctx context.Context, name string, o Options) (figures []Figure, err error) {
	for _, b := range table {
		if b.name != name {
			continue
		}
		if err := o.complete(); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.Dir)) }()
		figures, err := b.run(ctx, &o)
		if err != nil {
			return nil, fmt.Errorf("bench %s: %w", name, err)
		}
		for i := range figures {
			figures[i].Params["load_1m"] = load()
		}
		return figures, nil
	}
	return nil, fmt.Errorf("%w: %q; there are %v", ErrUnknown, name, Names())
}

func (o *Options) complete() error {
	if o.Duration <= 0 {
		o.Duration = 3 * time.Second
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	dir, err := os.MkdirTemp(o.Dir, "tally-bench-")
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	o.Dir = dir
	return nil
}

// folder makes a folder for one part of a run; remove takes it away.
func (o *Options) folder() (dir string, remove func() error, err error) {
	dir, err = os.MkdirTemp(o.Dir, "part-")
	if err != nil {
		return "", nil, err
	}
	return dir, func() error { return os.RemoveAll(dir) }, nil
}

// say reports progress.
func (o *Options) say(format string, args ...any) { o.Progress(fmt.Sprintf(format, args...)) }

// scale is full, or quick for a test of the benchmark itself.
func scale[T any](o *Options, full, quick T) T {
	if o.Quick {
		return quick
	}
	return full
}

// load is how many processes wanted a core in the last minute, on average; 0
// where the system does not tell. Above the number of cores others had a part of
// them, and only ratios mean something.
func load() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), " ")
	v, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return v
}
