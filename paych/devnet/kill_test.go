package devnet_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych/devnet"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// killChildEnv makes the test binary the child of TestKill; its value is the
// folder of the store.
const killChildEnv = "DEVNET_KILL_CHILD"

// TestKill kills a chain with SIGKILL while messages are pushed and blocks are
// made, and looks for every message that was answered for: it is in a block or
// in the pool, and the money adds up.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	var pushed []cid.Cid
	for round := range rounds {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), killChildEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); {
			// A line that the kill cut short is no answer.
			if text, ok := strings.CutSuffix(lines.Text(), " ok"); ok {
				id, err := cid.Decode(text)
				if err != nil {
					t.Fatal(err)
				}
				pushed = append(pushed, id)
				n++
			}
			if n == 20+13*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("the child ended by itself: %v", err)
		}

		store, err := durable.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		inner, err := devnet.Open(t.Context(), store, devnet.Config{BlockTime: devnet.Manual})
		if err != nil {
			t.Fatal(err)
		}
		c := &chain{inner, t, t.Context()}
		c.mine(3)
		for _, id := range pushed {
			c.receipt(id)
		}
		if err := errors.Join(c.Close(), store.Close()); err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: %d messages, height %d", round, len(pushed), c.Head())
	}
}

// killChild sends messages and makes blocks until it is killed. Its key is made
// of the folder's name, so that each child goes on with the account.
func killChild(dir string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	store, err := durable.Open(dir)
	if err != nil {
		fail(err)
	}
	ctx := context.Background()
	c, err := devnet.Open(ctx, store, devnet.Config{BlockTime: devnet.Manual})
	if err != nil {
		fail(err)
	}
	key, _ := hex.DecodeString(strings.Repeat("07", 32))
	addr, err := wire.KeyAddress(key)
	if err != nil {
		fail(err)
	}
	for i := 0; ; i++ {
		id, err := c.Faucet(ctx, addr, fil(1))
		if err != nil {
			fail(err)
		}
		fmt.Printf("%s ok\n", id)
		if i%3 == 2 {
			if err := c.Mine(ctx, 1); err != nil {
				fail(err)
			}
		}
		if i%30 == 29 {
			if err := c.Reorg(ctx, 2, false); err != nil {
				fail(err)
			}
		}
	}
}
