package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// childEnv makes the test binary a child of recover.
const childEnv = "TALLY_BENCH_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		// The last arguments are the child's; the flags before them are ours.
		if err := Child(context.Background(), os.Args[2:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// figures that each benchmark has to bring, in order.
var shapes = map[string][]struct{ name, unit string }{
	"acct": {
		{"acct/debit/100k", "ns"},
		{"acct/reserve-commit/100k", "ns"},
		{"acct/debit-behind/100k", "ns"},
		{"acct/debit/1M", "ns"},
		{"acct/reserve-commit/1M", "ns"},
		{"acct/debit-behind/1M", "ns"},
	},
	"acct-durable": {
		{"acct-durable/1k", "steps/s"}, {"acct-durable/100k", "steps/s"}, {"acct-durable/1k/default-thresholds", "steps/s"},
	},
	"pair": {
		{"pair/batched", "messages/s"},
		{"pair/batched-bursts", "messages/s"},
		{"pair/single", "messages/s"},
		{"pair/batched/default-thresholds", "messages/s"},
		{"pair/single/default-thresholds", "messages/s"},
	},
	"node": {
		{"node/tcp/2", "requests/s"}, {"node/tcp/5", "requests/s"}, {"node/quic/2", "requests/s"}, {"node/quic/5", "requests/s"},
	},
	"cheque": {{"cheque/serial", "cheques/s"}, {"cheque/in-flight", "cheques/s"}, {"cheque/hard/serial", "cheques/s"}, {"cheque/hard/in-flight", "cheques/s"}},
	"voucher": {
		{"voucher/create/serial", "vouchers/s"},
		{"voucher/add/serial", "vouchers/s"},
		{"voucher/create/parallel", "vouchers/s"},
		{"voucher/add/parallel", "vouchers/s"},
		{"voucher/create/n=200", "ns"},
		{"voucher/add/n=200", "ns"},
		{"voucher/create-durable/serial", "vouchers/s"},
		{"voucher/add-durable/serial", "vouchers/s"},
		{"voucher/create-durable/in-flight", "vouchers/s"},
		{"voucher/add-durable/in-flight", "vouchers/s"},
	},
	"journal": {{"journal", "records/s"}},
	"mem":     {{"mem/record", "B"}, {"mem/account", "B"}, {"mem/peer", "B"}},
	"stream": {
		{"stream/memory/hops-1", "packets/s"},
		{"stream/memory/hops-1/p50", "µs"},
		{"stream/engine/memory/hops-1", "packets/s"},
		{"stream/engine/memory/hops-1/p50", "µs"},
		{"stream/memory/hops-2", "packets/s"},
		{"stream/memory/hops-2/p50", "µs"},
		{"stream/engine/memory/hops-2", "packets/s"},
		{"stream/engine/memory/hops-2/p50", "µs"},
		{"stream/durable/hops-1", "packets/s"},
		{"stream/durable/hops-1/p50", "µs"},
		{"stream/engine/durable/hops-1", "packets/s"},
		{"stream/engine/durable/hops-1/p50", "µs"},
	},
	"lock": {
		{"lock/hops-1", "payments/s"},
		{"lock/hops-1/p50", "µs"},
	},
	"multipath": {
		{"multipath/memory/hops-1", "payments/s"},
		{"multipath/memory/hops-1/p50", "µs"},
		{"multipath/memory/diamond-4-parts", "payments/s"},
		{"multipath/memory/diamond-4-parts/p50", "µs"},
		{"multipath/durable/hops-1", "payments/s"},
		{"multipath/durable/hops-1/p50", "µs"},
		{"multipath/durable/diamond-4-parts", "payments/s"},
		{"multipath/durable/diamond-4-parts/p50", "µs"},
	},
	"recover": {{"recover", "s"}},
	"dial":    {{"dial", "peers/s"}},
}

// TestShape runs every benchmark at a tiny scale and looks at what comes out,
// not at how fast it was.
func TestShape(t *testing.T) {
	t.Setenv(childEnv, "1")
	if len(shapes) != len(Names()) {
		t.Fatalf("shapes of %d benchmarks, there are %v", len(shapes), Names())
	}
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			figures, err := Run(t.Context(), name, Options{
				Duration: 40 * time.Millisecond, Dir: dir, Quick: true, Child: []string{"-test.run=^$"},
				Progress: func(s string) { t.Log(s) },
			})
			if err != nil {
				t.Fatal(err)
			}
			var got []struct{ name, unit string }
			for i := range figures {
				got = append(got, struct{ name, unit string }{figures[i].Name, figures[i].Unit})
				checkFigure(t, &figures[i])
			}
			if !slices.Equal(got, shapes[name]) {
				t.Fatalf("got %v\nwant %v", got, shapes[name])
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Fatalf("left behind: %v %v", left, err)
			}
		})
	}
}

// lowerIsBetter are the units of times and sizes.
var lowerIsBetter = []string{"ns", "µs", "s", "B"}

func checkFigure(t *testing.T, f *Figure) {
	t.Helper()
	if f.Figure <= 0 || f.Limit <= 0 || f.LimitName == "" || f.Unit == "" || f.P99 < f.P50 {
		t.Errorf("a field is missing: %+v", f)
	}
	want, met, said := f.Figure/f.Limit, f.Figure >= f.Goal, "figure/limit"
	if slices.Contains(lowerIsBetter, f.Unit) {
		want, met, said = f.Limit/f.Figure, f.Figure <= f.Goal, "limit/figure"
	}
	if math.Abs(f.Ratio-want) > 1e-9*want || !strings.Contains(f.Note, said) {
		t.Errorf("%s: ratio %g, want %g, note %q", f.Name, f.Ratio, want, f.Note)
	}
	if f.GoalMet && (f.Goal != 0 && !met || f.Goal == 0 && f.GoalRatio == 0 || f.Ratio < f.GoalRatio) {
		t.Errorf("%s: goal %g at ratio %g is not met by %g at %g", f.Name, f.Goal, f.GoalRatio, f.Figure, f.Ratio)
	}
	text, err := json.Marshal(f)
	if err != nil {
		t.Error(err)
	}
	for _, key := range []string{`"name"`, `"figure"`, `"unit"`, `"limit"`, `"limit_name"`, `"ratio"`, `"goal_met"`, `"note"`} {
		if !strings.Contains(string(text), key) {
			t.Errorf("no %s in %s", key, text)
		}
	}
}

func TestUnknown(t *testing.T) {
	if _, err := Run(t.Context(), "tea", Options{Dir: t.TempDir()}); !errors.Is(err, ErrUnknown) {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), "recover", Options{Dir: t.TempDir()}); !errors.Is(err, ErrNoChild) {
		t.Fatal(err)
	}
	if err := Child(t.Context(), []string{"serve"}, nil); err == nil {
		t.Fatal("a child without its arguments")
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		list []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 9}, 3}} {
		if got := median(c.list); got != c.want {
			t.Errorf("median of %v is %g, want %g", c.list, got, c.want)
		}
	}
}

// BenchmarkGoals measures at full scale and prints what `tally bench` would:
//
//	go test -run '^$' -bench Goals/acct$ -benchtime 1x -v ./testnet/bench
func BenchmarkGoals(b *testing.B) {
	b.Setenv(childEnv, "1")
	for _, name := range Names() {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				figures, err := Run(b.Context(), name, Options{
					Dir: os.Getenv("TALLY_BENCH_DIR"), Child: []string{"-test.run=^$"},
				})
				if err != nil {
					b.Fatal(err)
				}
				for i := range figures {
					text, err := json.Marshal(&figures[i])
					if err != nil {
						b.Fatal(err)
					}
					fmt.Printf("%s\n", text)
				}
			}
		})
	}
}
