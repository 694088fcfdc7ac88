package bench

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"time"
)

const (
	// roundsOf is how often a series is measured. Nine medians away four bad rounds.
	roundsOf      = 9
	roundsOfQuick = 1
	// longestRound bounds the rounds that are measured anew.
	longestRound = 30 * time.Second
)

// probe measures for about d and returns one number.
type probe func(ctx context.Context, d time.Duration) (float64, error)

// measure is one round, and the cores that the process had meanwhile. On a busy machine
// nothing may get done in a short round; it is measured anew, for twice as long.
func (p probe) measure(ctx context.Context, d time.Duration) (value, cores float64, err error) {
	for ; ; d *= 2 {
		begin, cpu := time.Now(), cpuTime()
		value, err = p(ctx, d)
		cores = (cpuTime() - cpu).Seconds() / time.Since(begin).Seconds()
		if err != nil || value > 0 || d > longestRound {
			return value, cores, err
		}
	}
}

// series is what the rounds of one probe gave.
type series struct {
	values []float64
	// cores is how many the process had, on average, while the probe ran.
	cores []float64
}

// once is the series of something that is not measured in rounds.
func once(values ...float64) series { return series{values: values} }

func (s series) median() float64 { return median(s.values) }

// cpuPerOp is the core time of one operation, in microseconds, for a rate.
func (s series) cpuPerOp() float64 {
	var list []float64
	for i := range s.cores {
		list = append(list, 1e6*s.cores[i]/s.values[i])
	}
	return median(list)
}

// rounds measures the probes in turn, every second round in reverse order.
func rounds(ctx context.Context, o *Options, probes ...probe) ([]series, error) {
	n := scale(o, roundsOf, roundsOfQuick)
	all := make([]series, len(probes))
	for round := range n {
		for i := range probes {
			if round%2 == 1 {
				i = len(probes) - 1 - i
			}
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			v, cores, err := probes[i].measure(ctx, o.Duration/time.Duration(n))
			if err != nil {
				return nil, err
			}
			all[i].values, all[i].cores = append(all[i].values, v), append(all[i].cores, cores)
		}
	}
	return all, nil
}

func median(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(list))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

// percentiles returns the 50th and the 99th in milliseconds. It sorts list.
func percentiles(list []time.Duration) (p50, p99 float64) {
	if len(list) == 0 {
		return 0, 0
	}
	slices.Sort(list)
	at := func(percent int) float64 {
		return float64(list[min(len(list)-1, len(list)*percent/100)]) / float64(time.Millisecond)
	}
	return at(50), at(99)
}

// timed is a probe that also appends the median of what took has, in microseconds, to
// a list.
func timed(to *[]float64, took *[]time.Duration, run probe) probe {
	return func(ctx context.Context, d time.Duration) (float64, error) {
		v, err := run(ctx, d)
		if at50, _ := percentiles(*took); at50 > 0 {
			*to = append(*to, at50*1000)
		}
		return v, err
	}
}

// rate is a figure where more is better.
func rate(name, unit string, figure, limit series, limitName string, goal float64) Figure {
	f := Figure{
		Name: name, Figure: figure.median(), Unit: unit, Limit: limit.median(), LimitName: limitName, Goal: goal,
		Note:   "ratio is figure/limit",
		Params: map[string]any{"best_round": slices.Max(figure.values), "limit_best_round": slices.Max(limit.values)},
	}
	f.Ratio, f.GoalMet = f.Figure/f.Limit, goal > 0 && f.Figure >= goal
	return f
}

// cost is a figure where less is better: a time or a size.
func cost(name, unit string, figure, limit series, limitName string, goal float64) Figure {
	f := Figure{
		Name: name, Figure: figure.median(), Unit: unit, Limit: limit.median(), LimitName: limitName, Goal: goal,
		Note:   "ratio is limit/figure",
		Params: map[string]any{"best_round": slices.Min(figure.values), "limit_best_round": slices.Min(limit.values)},
	}
	f.Ratio, f.GoalMet = f.Limit/f.Figure, goal > 0 && f.Figure <= goal
	return f
}

// wantRatio adds a goal for the ratio.
func (f Figure) wantRatio(ratio float64) Figure {
	met := f.Goal == 0 || f.GoalMet
	f.GoalRatio, f.GoalMet = ratio, met && f.Ratio >= ratio
	return f
}

// note adds a sentence to the note.
func (f Figure) note(format string, args ...any) Figure {
	f.Note += "; " + fmt.Sprintf(format, args...)
	return f
}

// with adds a parameter.
func (f Figure) with(key string, value any) Figure {
	params := maps.Clone(f.Params)
	params[key] = value
	f.Params = params
	return f
}

// withCPU adds what one operation took of the cores, at both ends together, in
// the figure and in the limit. Neighbours change that little, so that it holds
// on a busy machine too.
func (f Figure) withCPU(figure, limit series) Figure {
	f = f.with("cores", median(figure.cores)).with("cpu_us_per_op", figure.cpuPerOp())
	if len(limit.cores) > 0 {
		f = f.with("limit_cpu_us_per_op", limit.cpuPerOp())
	}
	return f
}

// stepsFor calls step for about d, block times between two looks at the clock,
// and returns the nanoseconds of one call in the median block. A block is far
// shorter than what a scheduler takes the core away for, so that neighbours
// spoil few blocks; what spoils more than half of them counts.
func stepsFor(d time.Duration, block int, step func(n int)) float64 {
	blocks := make([]float64, 0, 1<<16)
	begin := time.Now()
	for at := begin; ; {
		step(block)
		now := time.Now()
		blocks = append(blocks, float64(now.Sub(at)))
		if now.Sub(begin) >= d {
			return median(blocks) / float64(block)
		}
		at = now
	}
}

// meanFor is stepsFor with the mean of all blocks, for work that may stall.
func meanFor(d time.Duration, block int, step func(n int)) float64 {
	begin := time.Now()
	for n := 1; ; n++ {
		step(block)
		if took := time.Since(begin); took >= d {
			return float64(took.Nanoseconds()) / float64(n*block)
		}
	}
}

// heapNow is the live heap and the stacks, after garbage was collected.
func heapNow() (heap, stacks uint64) {
	var m runtime.MemStats
	for range 2 { // the second finds what finalizers of the first let go
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, m.StackInuse
}

// mallocs is the number of heap objects ever allocated.
func mallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}
