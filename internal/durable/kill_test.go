package durable_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/tallystick/tally/internal/durable"
)

// killChildEnv makes the test binary the child of TestKill; its value is the
// folder of the store.
const killChildEnv = "DURABLE_KILL_CHILD"

// killWriters is how many goroutines of the child commit side by side.
const killWriters = 4

// TestKill kills a process that commits with SIGKILL, at a point no hook chose,
// and looks for every record that the process had reported as committed. A batch
// is two records; half of one must never be seen.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	acked := make(map[string]bool)
	for round := range rounds {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), killChildEnv+"="+dir, "DURABLE_KILL_ROUND="+strconv.Itoa(round))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stop := 1 + rng.IntN(400)
		lines := bufio.NewScanner(out)
		n := 0
		for lines.Scan() {
			// A line that the kill cut short is no ack.
			if id, ok := strings.CutSuffix(lines.Text(), " ok"); ok {
				acked[id] = true
				n++
			}
			if n == stop {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("the child ended by itself: %v", err)
		}

		s, err := durable.Open(dir, quiet)
		if err != nil {
			t.Fatalf("round %d, seed %d: %v", round, seed, err)
		}
		all := records(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for id := range acked {
			if _, ok := all["/left/"+id]; !ok {
				t.Errorf("round %d, seed %d: acknowledged record %s is lost", round, seed, id)
			}
		}
		for key, rec := range all {
			if _, _, err := durable.Unseal(key, 1, []byte(rec)); err != nil {
				t.Errorf("round %d, seed %d: %v", round, seed, err)
			}
			id := strings.TrimPrefix(strings.TrimPrefix(key, "/left/"), "/right/")
			if all["/left/"+id] == "" || all["/right/"+id] == "" {
				t.Errorf("round %d, seed %d: half of batch %s", round, seed, id)
			}
		}
		t.Logf("round %d: %d acknowledged so far, %d records on disk", round, len(acked), len(all))
	}
}

// killChild commits numbered records and prints each once it is acknowledged,
// until it is killed.
func killChild(dir string) {
	s, err := durable.Open(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	round := os.Getenv("DURABLE_KILL_ROUND")
	errs := make([]error, killWriters)
	var wg sync.WaitGroup
	for w := range killWriters {
		wg.Go(func() { // ends with an error, or with the process
			for i := 0; errs[w] == nil; i++ {
				id := fmt.Sprintf("%s-%d-%d", round, w, i)
				var b durable.Batch
				for _, key := range []string{"/left/" + id, "/right/" + id} {
					b.Put(key, durable.Seal(nil, key, 1, []byte(id)))
				}
				if errs[w] = s.Commit(context.Background(), &b); errs[w] == nil {
					_, errs[w] = fmt.Printf("%s ok\n", id)
				}
			}
		})
	}
	wg.Wait()
	fmt.Fprintln(os.Stderr, errors.Join(errs...))
	os.Exit(1)
}
