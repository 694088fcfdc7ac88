package devnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// executed is a message of a block with its receipt.
type executed struct {
	*pending
	receipt wire.Receipt
}

// Mine makes n blocks at once.
func (c *Chain) Mine(ctx context.Context, n int) error {
	if n < 0 || n > MaxMine {
		return fmt.Errorf("%w: %d blocks, at most %d", ErrLimit, n, MaxMine)
	}
	for range n {
		if err := c.do(ctx, func() error { return c.mine(context.WithoutCancel(ctx)) }); err != nil {
			return err
		}
	}
	return nil
}

// mine makes one block.
func (c *Chain) mine(ctx context.Context) error {
	parent := c.head.Load()
	height := parent.Header.Height + 1
	v := &vm{
		state: newOverlay(past{c, parent.Header.Height}), epoch: height,
		settleDelay: c.meta.SettleDelay, baseFee: c.cfg.BaseFee, fail: c.failNow,
	}
	failBefore := c.fail
	var done []executed
	used := map[address.Address]uint64{}
	size := 0
	for progress := true; progress && len(done) < maxBlockMessages && size < maxBlockBytes; {
		progress = false
		for _, m := range c.pool.turns(used) {
			ok, err := v.fits(ctx, &m.msg.Message)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if len(done) >= maxBlockMessages || size >= maxBlockBytes {
				break
			}
			out, err := v.apply(ctx, &m.msg.Message, m.size)
			if err != nil {
				return err
			}
			done = append(done, executed{m, out.receipt})
			used[m.msg.Message.From] = m.msg.Message.Nonce
			size += m.size
			progress = true
		}
	}
	var b durable.Batch
	var block blockRec
	err := c.prune(ctx, &b, height)
	if err == nil {
		block, err = c.write(&b, parent, v.state, done)
	}
	if err == nil {
		err = c.commit(&b)
	}
	if err != nil {
		c.fail = failBefore
		return err
	}
	for _, m := range done {
		c.pool.remove(m.msg.Message.From, m.msg.Message.Nonce)
	}
	c.publish(block, []change{{block: block}})
	return nil
}

// write adds a block on parent (nil: genesis) to a batch.
func (c *Chain) write(b *durable.Batch, parent *head, state *overlay, msgs []executed) (blockRec, error) {
	var rec blockRec
	ticket := binary.BigEndian.AppendUint64(append([]byte(nil), c.meta.ChainID...), c.reorgs)
	header := &wire.BlockHeader{
		Miner:         idAddress(idReward),
		Ticket:        &wire.Ticket{VRFProof: ticket},
		ElectionProof: &wire.ElectionProof{WinCount: 1},
		BeaconEntries: []wire.BeaconEntry{}, WinPoStProof: []wire.PoStProof{}, Parents: []cid.Cid{},
		Timestamp:     uint64(time.Now().Unix()),
		ParentWeight:  big.Zero(),
		ParentBaseFee: c.cfg.BaseFee,
	}
	empty, err := hashAll(nil)
	if err != nil {
		return rec, err
	}
	header.ParentStateRoot, header.ParentMessageReceipts = empty, empty
	if parent != nil {
		header.Parents = []cid.Cid{parent.Cid}
		header.Height = parent.Header.Height + 1
		header.ParentWeight = big.NewInt(int64(header.Height))
		header.ParentStateRoot, header.ParentMessageReceipts = parent.StateRoot, parent.Receipts
	}
	exec := execRec{Changed: state.changed()}
	var receipts [][]byte
	for i, m := range msgs {
		exec.Cids = append(exec.Cids, m.cid)
		exec.Receipts = append(exec.Receipts, m.receipt)
		data, err := encode(&m.receipt)
		if err != nil {
			return rec, err
		}
		receipts = append(receipts, data)
		from, nonce := m.msg.Message.From, m.msg.Message.Nonce
		b.Delete(keyOfNonce(keyPool, from, nonce))
		if err := put(b, keyOfNonce(keyMined, from, nonce), minedRec{header.Height, i, m.cid}); err != nil {
			return rec, err
		}
	}
	var ids [][]byte
	for _, id := range exec.Cids {
		ids = append(ids, id.Bytes())
	}
	if header.Messages, err = hashAll(ids); err != nil {
		return rec, err
	}
	if rec.Receipts, err = hashAll(receipts); err != nil {
		return rec, err
	}
	if rec.StateRoot, err = state.stateRoot(header.ParentStateRoot); err != nil {
		return rec, err
	}
	for _, id := range exec.Changed {
		version := state.actors[id]
		if err := put(b, keyOfVersion(id, header.Height), version); err != nil {
			return rec, err
		}
		if version.Channel != nil {
			_, _, objects, err := wire.EncodeChannel(context.Background(), version.Channel)
			if err != nil {
				return rec, err
			}
			for id, data := range objects {
				putBytes(b, keyOfCid(keyObject, id), data)
			}
		}
	}
	for a, id := range state.addrs {
		exec.New = append(exec.New, a)
		if err := put(b, keyOfAddr(keyAddr, a), addrRec{id, header.Height}); err != nil {
			return rec, err
		}
	}
	data, err := header.Bytes()
	if err != nil {
		return rec, err
	}
	if rec.Cid, err = wire.Cid(data); err != nil {
		return rec, err
	}
	rec.Header = header
	putBytes(b, keyOfCid(keyObject, rec.Cid), data)
	if len(exec.Changed) > 0 {
		if err := put(b, keyOfHeight(keyExec, header.Height), exec); err != nil {
			return rec, err
		}
	}
	return rec, errors.Join(
		put(b, keyOfHeight(keyBlock, header.Height), rec),
		put(b, keyOfCid(keyCid, rec.Cid), header.Height),
		put(b, keyHead, headRec{header.Height, c.reorgs, abi.ChainEpoch(c.floor.Load())}))
}

// commit writes a batch of the owner goroutine. After a failure nothing goes
// on: what is in memory may not be what is on disk.
func (c *Chain) commit(b *durable.Batch) error {
	// A batch that is queued lands; a caller that gives up must not make that
	// unknown.
	if err := c.store.Commit(context.Background(), b); err != nil {
		c.broken = fmt.Errorf("devnet: %w", err)
		return c.broken
	}
	return nil
}

// publish makes block the head.
func (c *Chain) publish(block blockRec, changes []change) {
	old := c.head.Load()
	c.head.Store(&head{blockRec: block, next: make(chan struct{})})
	close(old.next)
	c.subMu.Lock()
	defer c.subMu.Unlock()
	for sub := range c.subs {
		select {
		case sub <- changes:
		default: // too slow: its channel ends, and it asks again
			delete(c.subs, sub)
			close(sub)
		}
	}
}

// failNow is the exit code that FailNext asked for, for the next message.
func (c *Chain) failNow(m *wire.Message) exitcode.ExitCode {
	if c.fail.left == 0 || m.From == c.meta.Faucet {
		return exitcode.Ok
	}
	c.fail.left--
	return c.fail.code
}
