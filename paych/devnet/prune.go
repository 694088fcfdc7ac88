package devnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/filecoin-project/go-state-types/abi"

	"github.com/tallystick/tally/internal/durable"
)

// A chain that makes a block a second must not fill the disk while nothing
// happens. So old heights are pruned, each block paying for the next one:
//
//	0 ─ … ─────────────────── floor ─────────────────────────── head
//	genesis, blocks with       every tipset and every state: what Reorg, a
//	messages, messages,        client's look-backs and finality ask for
//	receipts; no states
//
// What messages did is kept for good: whoever was away for long must still learn
// that its message was mined, or it would pay twice. It grows with what is done
// on the chain, not with time.
const (
	// keptHeights is how many heights below the head can be looked at, at least:
	// five hours and a half of the default block time.
	keptHeights abi.ChainEpoch = 20_000
	// keptDelays is the same in settle delays: a channel's end can be followed
	// through the chain for some time after.
	keptDelays = 4
	// pruneStep is how many heights one block prunes at most. Two would do to come
	// to the end of a chain that was never pruned.
	pruneStep = 4
)

// ErrPruned is the answer for a tipset or a state below what is kept. The text is
// that of a Lotus gateway, which clients have to know anyway.
var ErrPruned = errors.New("bad tipset height: lookbacks of more than what is kept are disallowed")

// kept is how many heights below the head are kept whole.
func (c *Chain) kept() abi.ChainEpoch {
	if c.keep > 0 {
		return c.keep
	}
	return max(keptHeights, keptDelays*c.meta.SettleDelay, MaxReorg)
}

// above reports a height that is pruned.
func (c *Chain) above(h abi.ChainEpoch) error {
	if floor := abi.ChainEpoch(c.floor.Load()); h < floor {
		return fmt.Errorf("%w: height %d, kept from %d", ErrPruned, h, floor)
	}
	return nil
}

// prune raises the floor for the block at height, and adds to its batch the
// removal of what lies below. It runs on the owner goroutine.
func (c *Chain) prune(ctx context.Context, b *durable.Batch, height abi.ChainEpoch) error {
	old := abi.ChainEpoch(c.floor.Load())
	floor := min(height-c.kept(), old+pruneStep)
	if floor <= old {
		return nil
	}
	for h := old; h < floor; h++ {
		if err := c.pruneHeight(ctx, b, h); err != nil {
			return err
		}
	}
	// Readers that begin now stay above the new floor; those that began before it
	// rose are waited for, so that none sees half of a state. The disk is written
	// after that, without the lock.
	c.floor.Store(int64(floor))
	c.view.Lock()
	//nolint:staticcheck // nothing to do but to let the readers go by
	c.view.Unlock()
	return nil
}

// pruneHeight removes what nobody above h needs: the versions of actors that h
// replaced, and its block where it shows no message and no receipt.
func (c *Chain) pruneHeight(ctx context.Context, b *durable.Batch, h abi.ChainEpoch) error {
	if h == 0 {
		return nil // genesis has the chain's name
	}
	var exec execRec
	carries, err := c.get(ctx, keyOfHeight(keyExec, h), &exec)
	if err != nil {
		return err
	}
	for _, id := range exec.Changed {
		if err := c.pruneVersion(ctx, b, id, h); err != nil {
			return err
		}
	}
	shows, err := c.has(ctx, keyOfHeight(keyExec, h-1))
	if err != nil || carries || shows {
		return err
	}
	var block blockRec
	if ok, err := c.get(ctx, keyOfHeight(keyBlock, h), &block); err != nil || !ok {
		return errors.Join(err, noRecord(keyBlock, ok))
	}
	b.Delete(keyOfHeight(keyBlock, h))
	b.Delete(keyOfCid(keyCid, block.Cid))
	b.Delete(keyOfCid(keyObject, block.Cid))
	return nil
}

// pruneVersion removes the version of an actor that the one at h replaced.
func (c *Chain) pruneVersion(ctx context.Context, b *durable.Batch, id uint64, h abi.ChainEpoch) error {
	prefix := keyVersions(id)
	err := c.store.ScanReverse(ctx, prefix, keyOfHeight(prefix, h), func(key string, _ []byte) error {
		b.Delete(key)
		return durable.ErrStop
	})
	if err != nil {
		return fmt.Errorf("devnet: prune actor %d: %w", id, err)
	}
	return nil
}

// has reports whether there is a record at key.
func (c *Chain) has(ctx context.Context, key string) (bool, error) {
	var any json.RawMessage
	return c.get(ctx, key, &any)
}
