package devnet

import (
	"context"
	"errors"
	"fmt"

	"github.com/filecoin-project/go-state-types/abi"

	"github.com/tallystick/tally/internal/durable"
)

// Reorg takes the n topmost blocks back. Their messages return to the pool, or
// are forgotten where drop is set.
func (c *Chain) Reorg(ctx context.Context, n int, drop bool) error {
	return c.do(ctx, func() error { return c.reorg(context.WithoutCancel(ctx), n, drop) })
}

func (c *Chain) reorg(ctx context.Context, n int, drop bool) error {
	top := c.head.Load().Header.Height
	if n < 1 || n > MaxReorg || abi.ChainEpoch(n) > top {
		return fmt.Errorf("%w: revert %d of %d blocks, 1 to %d", ErrLimit, n, top, MaxReorg)
	}
	base := top - abi.ChainEpoch(n)
	if err := c.above(base); err != nil {
		return fmt.Errorf("%w: revert %d of %d blocks: %w", ErrLimit, n, top, err)
	}
	var b durable.Batch
	var changes []change
	var back []*pending
	for h := top; h > base; h-- {
		var block blockRec
		if ok, err := c.get(ctx, keyOfHeight(keyBlock, h), &block); err != nil || !ok {
			return errors.Join(err, noRecord(keyBlock, ok))
		}
		changes = append(changes, change{revert: true, block: block})
		b.Delete(keyOfHeight(keyBlock, h))
		b.Delete(keyOfCid(keyCid, block.Cid))
		var exec execRec
		found, err := c.get(ctx, keyOfHeight(keyExec, h), &exec)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		b.Delete(keyOfHeight(keyExec, h))
		for _, id := range exec.Changed {
			b.Delete(keyOfVersion(id, h))
		}
		for _, a := range exec.New {
			b.Delete(keyOfAddr(keyAddr, a))
		}
		for _, id := range exec.Cids {
			m, err := c.message(ctx, id)
			if err != nil {
				return err
			}
			b.Delete(keyOfNonce(keyMined, m.msg.Message.From, m.msg.Message.Nonce))
			if !drop {
				if err := c.putPool(&b, m); err != nil {
					return err
				}
				back = append(back, m)
			}
		}
	}
	if err := put(&b, keyHead, headRec{base, c.reorgs + 1, abi.ChainEpoch(c.floor.Load())}); err != nil {
		return err
	}
	var block blockRec
	if ok, err := c.get(ctx, keyOfHeight(keyBlock, base), &block); err != nil || !ok {
		return errors.Join(err, noRecord(keyBlock, ok))
	}
	c.view.Lock()
	defer c.view.Unlock()
	if err := c.commit(&b); err != nil {
		return err
	}
	c.reorgs++
	// Within the pool's bounds or not: what was answered for is not forgotten.
	for _, m := range back {
		c.pool.add(m)
	}
	c.publish(block, changes)
	return nil
}
