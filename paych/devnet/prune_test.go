package devnet_test

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych/devnet"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// keep sets how many heights are kept.
func (c *chain) keep(n abi.ChainEpoch) {
	c.t.Helper()
	if err := c.Keep(c.ctx, n); err != nil {
		c.t.Fatal(err)
	}
}

// seen is what a client learns of one height.
func (c *chain) seen(h abi.ChainEpoch, who address.Address) (string, error) {
	api := c.API()
	ts, err := api.ChainGetTipSetByHeight(c.ctx, h, nil)
	if err != nil {
		return "", err
	}
	msgs, err := api.ChainGetParentMessages(c.ctx, ts.Cids[0])
	if err != nil {
		return "", err
	}
	act, err := api.StateGetActor(c.ctx, who, ts.Cids)
	return fmt.Sprint(ts.Cids, len(msgs), act, err), nil
}

// wantSeen compares what is kept with what was seen before it was pruned.
func (c *chain) wantSeen(before []string, who address.Address) {
	c.t.Helper()
	for h, want := range before {
		got, err := c.seen(abi.ChainEpoch(h), who)
		switch {
		case abi.ChainEpoch(h) < c.Floor():
			if !errors.Is(err, devnet.ErrPruned) {
				c.t.Fatalf("height %d, kept from %d: %q %v", h, c.Floor(), got, err)
			}
		case err != nil || got != want:
			c.t.Fatalf("height %d is %s, %v; was %s", h, got, err, want)
		}
	}
}

// TestPrune makes a chain with a message now and then, looks at every height, and
// lets it be pruned: what is kept answers as before, what is not says so, and no
// message is forgotten.
func TestPrune(t *testing.T) {
	const heights, kept = 400, 50
	c := newChain(t, devnet.Config{})
	c.keep(2 * heights)
	a, b := c.funded(fil(1000)), newAccount(t)
	var sent []cid.Cid
	for c.Head() < heights {
		if c.Head()%7 == 0 {
			sent = append(sent, c.push(a.sign(t, wire.Message{To: b.addr, Value: fil(1)})))
		}
		c.mine(1)
	}
	c.mine(2) // the last message is shown
	var before []string
	for h := range c.Head() + 1 {
		s, err := c.seen(h, b.addr)
		if err != nil {
			t.Fatal(err)
		}
		before = append(before, s)
	}
	var lookups []*wire.MsgLookup
	for _, id := range sent {
		found, err := c.Search(c.ctx, id)
		if err != nil || found == nil {
			t.Fatal(found, err)
		}
		lookups = append(lookups, found)
	}
	c.wantSeen(before, b.addr)

	// A chain that was never pruned comes to its end, several heights a block.
	c.keep(kept)
	c.mine(heights / 2)
	if want := c.Head() - kept; c.Floor() != want {
		t.Fatalf("kept from %d at %d, want %d", c.Floor(), c.Head(), want)
	}
	c.wantSeen(before, b.addr)
	for i, id := range sent {
		found, err := c.Search(c.ctx, id)
		if err != nil || found == nil || fmt.Sprint(found) != fmt.Sprint(lookups[i]) {
			t.Fatalf("message %d: %v %v, was %v", i, found, err, lookups[i])
		}
	}
	if _, err := c.API().ChainGetGenesis(c.ctx); err != nil {
		t.Fatal(err)
	}

	// Reorg goes down to the floor and no further, and the floor stays.
	floor := c.Floor()
	if err := c.Reorg(c.ctx, kept+1, false); !errors.Is(err, devnet.ErrLimit) || !errors.Is(err, devnet.ErrPruned) {
		t.Fatal(err)
	}
	if err := c.Reorg(c.ctx, kept, false); err != nil || c.Head() != floor {
		t.Fatal(c.Head(), err)
	}
	c.wantBalance(b.addr, fil(int64(len(sent))))
	c.mine(3)
	if c.Floor() != floor {
		t.Fatalf("kept from %d after a reorg, want %d", c.Floor(), floor)
	}
}

// TestPruneUnderReaders looks at the lowest heights while they are pruned: an
// answer is whole, or says that it is too late, never that an actor is not there.
func TestPruneUnderReaders(t *testing.T) {
	c := newChain(t, devnet.Config{})
	c.keep(20)
	a, b := c.funded(fil(1000)), newAccount(t)
	c.push(a.sign(t, wire.Message{To: b.addr, Value: fil(1)}))
	c.mine(30)
	var (
		readers sync.WaitGroup
		done    atomic.Bool
	)
	for range 2 {
		readers.Go(func() { // ends with done
			for !done.Load() {
				s, err := c.seen(c.Floor()+1, a.addr)
				if errors.Is(err, devnet.ErrPruned) || err != nil && strings.Contains(err.Error(), "loading tipset") {
					continue // between two of its questions
				}
				if err != nil || strings.Contains(s, "not found") {
					t.Errorf("%q %v", s, err)
					return
				}
			}
		})
	}
	for range 60 {
		c.push(a.sign(t, wire.Message{To: b.addr, Value: fil(1)}))
		c.mine(1)
	}
	done.Store(true)
	readers.Wait()
}

// TestPruneCrash loses power before and after commits that prune: the chain opens
// with every height that it says it keeps, and goes on.
func TestPruneCrash(t *testing.T) {
	const kept, blocks = 5, 12
	for n := 4; n < blocks; n++ {
		for _, after := range []bool{false, true} {
			crash := durabletest.NewMemCrash()
			c, err := devnet.Open(t.Context(), crash.Store, devnet.Config{BlockTime: devnet.Manual})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Keep(t.Context(), kept); err != nil {
				t.Fatal(err)
			}
			if after {
				crash.CrashAfter(n)
			} else {
				crash.CrashBefore(n)
			}
			if err := c.Mine(t.Context(), blocks); !errors.Is(err, durabletest.ErrCrashed) {
				t.Fatal(err)
			}
			clone := crash.Clone()
			if err := errors.Join(c.Close(), crash.Close()); err != nil && !errors.Is(err, durabletest.ErrCrashed) {
				t.Fatal(err)
			}
			again, err := devnet.Open(t.Context(), clone.Store, devnet.Config{BlockTime: devnet.Manual})
			if err != nil {
				t.Fatal(err)
			}
			d := &chain{again, t, t.Context()}
			d.keep(kept)
			if d.Floor() > max(d.Head()-kept, 0) {
				t.Fatalf("kept from %d at %d", d.Floor(), d.Head())
			}
			for range 3 {
				for h := d.Floor(); h <= d.Head(); h++ {
					if _, err := d.API().ChainGetTipSetByHeight(d.ctx, h, nil); err != nil {
						t.Fatalf("after commit %d: %v", n, err)
					}
				}
				d.mine(1)
			}
			if err := errors.Join(again.Close(), clone.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestIdleChainIsBounded makes empty blocks, several times as many as are kept:
// the store has the heights that are kept and hardly more, and opens again at the
// head. DEVNET_BLOCKS=100000 does so at full size, in a minute or less.
func TestIdleChainIsBounded(t *testing.T) {
	t.Parallel()
	store := durabletest.NewMem()
	defer func() { _ = store.Close() }()
	c := openChain(t, store, devnet.Config{})
	if got := c.Kept(); got < 20_000 || got < 4*c.Params().SettleDelay || got < devnet.MaxReorg {
		t.Fatalf("%d heights kept", got)
	}
	blocks := 10_000
	if s := os.Getenv("DEVNET_BLOCKS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n <= int(c.Kept()) {
			t.Fatalf("DEVNET_BLOCKS: %q, more than %d are needed: %v", s, c.Kept(), err)
		}
		blocks = n
	} else {
		c.keep(2000)
	}
	if err := c.Mine(c.ctx, blocks); err != nil {
		t.Fatal(err)
	}
	height, floor := c.Head(), c.Floor()
	if floor != height-c.Kept() {
		t.Fatalf("kept from %d at %d", floor, height)
	}
	const perBlock, rest = 3, 20 // block, cid, header; genesis, actors, keys
	records, bytes := 0, 0
	if err := store.Scan(c.ctx, "/", "", func(key string, value []byte) error {
		records, bytes = records+1, bytes+len(key)+len(value)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if most := perBlock*int(c.Kept()+1) + rest; records > most {
		t.Fatalf("%d records, at most %d", records, most)
	}
	if most := int(c.Kept()+1) * 2048; bytes > most {
		t.Fatalf("%d bytes, at most %d", bytes, most)
	}
	t.Logf("%d blocks leave %d records of %d bytes", blocks, records, bytes)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	again := openChain(t, store, devnet.Config{})
	if again.Head() != height || again.Floor() != floor {
		t.Fatalf("opened at %d, kept from %d; was %d and %d", again.Head(), again.Floor(), height, floor)
	}
	again.mine(1)
}
