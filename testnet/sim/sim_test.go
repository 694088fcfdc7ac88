package sim

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/swap"
)

var (
	seedFlag  = flag.Uint64("sim.seed", 0, "replay this seed of TestSim, with its event log")
	runsFlag  = flag.Int("sim.runs", 0, "number of seeds of TestSim; default 24")
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
	if raceEnabled && opt.Steps == 0 {
		opt.Steps = 120
	}
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
	runs := 24
	if raceEnabled {
		runs = 8 // each kind of world once
	}
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

// The invariants are there to find what is broken here.
func TestSimFindsWhatIsBroken(t *testing.T) {
	for _, tc := range []struct {
		name  string
		opt   Options
		spoil func(w *world)
		want  string
	}{
		{
			"a disk that forgets what it acknowledged",
			Options{Faults: Crash, Peers: 2},
			func(w *world) { w.remains = func(*party) *durabletest.Crash { return durabletest.NewMemCrash() } },
			"acked",
		},
		{
			"a server that counts twice",
			Options{Faults: NoFaults, Peers: 2},
			func(w *world) {
				w.served = func(r *request) { _ = r.server.book.Debit(r.client.id, "sim", r.units) }
			},
			"were served",
		},
		{
			"a server that does not count",
			Options{Peers: 2, Hostile: 1, Faults: NoFaults},
			func(w *world) {
				w.served = func(r *request) {
					w.truthOf(r.client, r.server).answered += 100 // what it gave away beside
				}
			},
			"lost",
		},
		{
			"a message that no session carried",
			Options{Faults: NoFaults, Peers: 2},
			func(w *world) {
				a, b := w.parties[0], w.parties[1]
				w.plan(time.Minute, "forge", func() {
					c := &swap.Cheque{Issuer: a.id, Beneficiary: b.id, Serial: 1 << 20, Cumulative: 1 << 20}
					c.Signature, _ = a.key.Sign(c.SigningBytes(realm))
					_ = b.book.Receive(w.ctx, a.id, c)
				})
			},
			"whose cheques name",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for seed := range uint64(5) {
				opt := tc.opt
				opt.spoil = tc.spoil
				_, err := Run(t, seed+1, opt)
				if v, ok := errors.AsType[*Violation](err); ok && strings.Contains(v.Broken, tc.want) {
					return
				} else if err != nil {
					t.Fatal(err)
				}
			}
			t.Error("nothing was found in five seeds")
		})
	}
}

// A violation names what replays it.
func TestViolationNamesItsReplay(t *testing.T) {
	err := error(&Violation{Seed: 7, Event: "use", Broken: "all"})
	if !strings.Contains(err.Error(), "go test ./testnet/sim -run TestSim -v -sim.seed=7") || !errors.As(err, new(*Violation)) {
		t.Error(err)
	}
}
