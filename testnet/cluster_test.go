package testnet

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binaryEnv names a built program to use instead of building it.
const binaryEnv = "TALLY_TEST_BINARY"

var (
	buildOnce sync.Once
	tallyBin  string // the program
	buildDir  string // where it was built; empty where it was not
	buildErr  error
)

// build makes the program, once for all tests of this package.
func build() (string, error) {
	buildOnce.Do(func() {
		if tallyBin = os.Getenv(binaryEnv); tallyBin != "" {
			return
		}
		if buildDir, buildErr = os.MkdirTemp("", "tally-bin-"); buildErr != nil {
			return
		}
		tallyBin = filepath.Join(buildDir, "tally")
		out, err := exec.Command("go", "build", "-o", tallyBin, "github.com/tallystick/tally/cmd/tally").CombinedOutput()
		if err != nil {
			buildErr = fmt.Errorf("%w: %s", err, out)
		}
	})
	return tallyBin, buildErr
}

// processes is the configuration of a cluster of the built program, with blocks
// fast enough for a test.
func processes(t *testing.T) ClusterConfig {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes")
	}
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return ClusterConfig{Binary: bin, Dir: t.TempDir(), BlockTime: 50 * time.Millisecond, Finality: 3}
}

// Kills at random, and the money is where the books say.
func TestChaos(t *testing.T) {
	if os.Getenv("TALLY_LONG") == "" {
		t.Skip("set TALLY_LONG=1: it waits for every debt to be paid, which on a busy machine takes minutes")
	}
	cfg := processes(t)
	r, err := Chaos(t.Context(), ChaosOptions{Kills: 8, Peers: 3, Seed: 7, Cluster: cfg})
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := r.Write(&text); err != nil {
		t.Fatal(err)
	}
	if !r.Clean() || r.Resolved > 0 || !strings.HasSuffix(text.String(), "\n0 lost, 0 double\n") {
		t.Errorf("\n%s", text.String())
	}
	if r.Kills != 8 || r.Queries == 0 || r.Paid == 0 || r.Channels == 0 {
		t.Errorf("nothing happened:\n%s", text.String())
	}
}

// A comparison that finds nothing where something is missing is worth nothing.
func TestChaosFindsWhatIsWrong(t *testing.T) {
	c := &chaos{Cluster: &Cluster{}, acked: map[way]uint64{{0, 1}: 80}, credited: map[way]uint64{}, delivered: map[way]uint64{{0, 1}: 200}}
	c.peers = []*Member{{Name: "a"}, {Name: "b"}}
	rest := rested{}
	a, b := rest[way{0, 1}], rest[way{1, 0}]
	a.Paid, a.Consumed, a.PaymentThreshold, a.DisconnectThreshold, a.Owed, a.Balance = 60, 100, 100, 125, -40, -40
	b.Received, b.Served, b.Owed, b.Balance = 70, 100, 30, 30
	rest[way{0, 1}], rest[way{1, 0}] = a, b
	c.back = append(c.back, "it did")
	c.compareBooks(rest)
	if c.report.Lost != 1 || c.report.Double != 1 || c.report.Passed != 0 || c.report.Failed != 6 || c.report.Clean() {
		t.Errorf("%+v", c.report)
	}
}

// A cluster leaves no process behind, and goes on where it was.
func TestClusterEndsWhatItStarted(t *testing.T) {
	cfg := processes(t)
	var payout, id string
	for life := range 2 {
		c, err := StartCluster(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.AddMany(t.Context(), []string{"a", "b"}); err != nil {
			t.Fatal(err)
		}
		a, err := c.Member("a")
		if err != nil {
			t.Fatal(err)
		}
		b, err := c.Member("b")
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Connect(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if life > 0 && (a.Payout != payout || a.ID != id) {
			t.Errorf("%s with %s became %s with %s", id, payout, a.ID, a.Payout)
		}
		payout, id = a.Payout, a.ID
		if had, err := a.Wallet(t.Context()); err != nil || had.String() != "100000000000000000000" {
			t.Errorf("%v in the wallet, %v", had, err)
		}
		if _, err := c.Add(t.Context(), "a"); err == nil {
			t.Error("two peers with one name")
		}
		if err := b.Kill(); err != nil {
			t.Fatal(err)
		}
		pids := []int{a.PID(), c.Devnet.PID()}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			if p, err := os.FindProcess(pid); err == nil && runtime.GOOS != "windows" && alive(p) {
				t.Errorf("process %d is still there", pid)
			}
		}
	}
}

// A start that does not work ends what it began.
func TestClusterOfAnotherProgram(t *testing.T) {
	_, err := StartCluster(context.Background(), ClusterConfig{Binary: filepath.Join(t.TempDir(), "none")})
	if err == nil {
		t.Error("started a program that is not there")
	}
}

func alive(p *os.Process) bool { return p.Signal(syscall.Signal(0)) == nil }
