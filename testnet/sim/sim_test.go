package sim

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

var (
	seedFlag  = flag.Uint64("sim.seed", 0, "replay this seed of TestSim, with its event log")
	runsFlag  = flag.Int("sim.runs", 0, "number of seeds of TestSim; default 40")
	firstFlag = flag.Uint64("sim.first", 1, "first seed of TestSim")
	stepsFlag = flag.Int("sim.steps", 0, "events of each run; default 400")
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // disks die here, and say so
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// optionsOf gives each seed its kind of world, so that a replay needs the seed
// alone.
func optionsOf(seed uint64) Options {
	opt := Options{Steps: *stepsFlag}
	switch seed % 8 {
	case 0:
		opt.Faults = NoFaults
	case 1, 2:
		opt.Hostile, opt.Peers = 1, 3
	case 3:
		opt.Pebble = true
	case 4:
		opt.Faults = Crash
	case 5:
		opt.Faults = AllFaults | Reorder
	}
	return opt
}

// TestSim runs seeds, each twice: all invariants hold, and both runs are the
// same.
func TestSim(t *testing.T) {
	if *seedFlag != 0 {
		opt := optionsOf(*seedFlag)
		opt.Log = os.Stderr
		r, err := Run(t, *seedFlag, opt)
		t.Logf("%+v", r)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	runs := 40
	if *runsFlag > 0 {
		runs = *runsFlag
	}
	var sum Report
	for seed := *firstFlag; seed < *firstFlag+uint64(runs); seed++ {
		r, err := Run(t, seed, optionsOf(seed))
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		again, err := Run(t, seed, optionsOf(seed))
		if err != nil || again != r {
			t.Errorf("seed %d does not replay: %+v, then %+v, %v", seed, r, again, err)
		}
		sum.Events += r.Events
		sum.Units += r.Units
		sum.Cheques += r.Cheques
		sum.Crashes += r.Crashes
		sum.Lost += r.Lost
		sum.Sessions += r.Sessions
		sum.Unresolved += r.Unresolved
		sum.Forgiven += r.Forgiven
		sum.Lossy = max(sum.Lossy, r.Lossy)
	}
	t.Logf("%d seeds: %d events, %d units, %d cheques acked, %d crashes, %d messages lost, %d sessions, %d forgiven, %d tabs for the operator, at most %d lost to a hostile peer",
		runs, sum.Events, sum.Units, sum.Cheques, sum.Crashes, sum.Lost, sum.Sessions, sum.Forgiven, sum.Unresolved, sum.Lossy)
	if sum.Cheques == 0 || sum.Crashes == 0 || sum.Lost == 0 || sum.Lossy == 0 {
		t.Error("the runs met too little")
	}
}

// A violation names what replays it.
func TestViolationNamesItsReplay(t *testing.T) {
	err := error(&Violation{Seed: 7, Event: "use", Broken: "all"})
	if !strings.Contains(err.Error(), "go test ./testnet/sim -run TestSim -v -sim.seed=7") || !errors.As(err, new(*Violation)) {
		t.Error(err)
	}
}
