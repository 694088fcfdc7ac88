package devnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// What queries are made of. A caller holds view for reading.

// tipset returns the block that key names.
func (c *Chain) tipset(ctx context.Context, key wire.TipSetKey) (blockRec, error) {
	var rec blockRec
	switch len(key) {
	case 0:
		return c.head.Load().blockRec, nil
	case 1:
	default:
		return rec, fmt.Errorf("loading tipset %v: this chain has one block a height", key)
	}
	var h abi.ChainEpoch
	if ok, err := c.get(ctx, keyOfCid(keyCid, key[0]), &h); err != nil || !ok {
		return rec, errors.Join(err, fmt.Errorf("loading tipset %v: ipld: could not find %s", key, key[0]))
	}
	if err := c.above(h); err != nil {
		return rec, err
	}
	return c.block(ctx, h)
}

func (c *Chain) block(ctx context.Context, h abi.ChainEpoch) (blockRec, error) {
	var rec blockRec
	ok, err := c.get(ctx, keyOfHeight(keyBlock, h), &rec)
	if err == nil && !ok {
		err = fmt.Errorf("devnet: no block at height %d", h)
	}
	return rec, err
}

// tipsetAt returns the block at height h, below or at that of key.
func (c *Chain) tipsetAt(ctx context.Context, h abi.ChainEpoch, key wire.TipSetKey) (blockRec, error) {
	top, err := c.tipset(ctx, key)
	switch {
	case err != nil:
		return blockRec{}, err
	case h < 0:
		return blockRec{}, fmt.Errorf("negative tipset height %d", h)
	case h > top.Header.Height:
		return blockRec{}, errors.New("looking for tipset with height greater than start point")
	}
	if err := c.above(h); err != nil {
		return blockRec{}, err
	}
	return c.block(ctx, h)
}

// before is the state that the messages of rec meet.
func (c *Chain) before(rec blockRec) past { return past{c, max(rec.Header.Height-1, 0)} }

// exec returns what the messages at a height did.
func (c *Chain) exec(ctx context.Context, h abi.ChainEpoch) (execRec, error) {
	var rec execRec
	_, err := c.get(ctx, keyOfHeight(keyExec, h), &rec)
	return rec, err
}

// execs calls fn for the heights from to to that have messages, newest first.
func (c *Chain) execs(ctx context.Context, from, to abi.ChainEpoch, fn func(execRec) error) error {
	return c.store.ScanReverse(ctx, keyExec, keyOfHeight(keyExec, to+1), func(key string, value []byte) error {
		if key < keyOfHeight(keyExec, from) {
			return durable.ErrStop
		}
		payload, err := open(key, value)
		if err != nil {
			return err
		}
		var rec execRec
		if err := json.Unmarshal(payload, &rec); err != nil {
			return err
		}
		return fn(rec)
	})
}

// anyMessage reads a message by the cid of its signed or its unsigned form.
func (c *Chain) anyMessage(ctx context.Context, id cid.Cid) (*wire.Message, error) {
	data, err := c.Object(ctx, id)
	if err != nil {
		return nil, err
	}
	if s, err := wire.DecodeSigned(data); err == nil {
		return &s.Message, nil
	}
	var m wire.Message
	if err := m.UnmarshalCBOR(bytes.NewReader(data)); err != nil {
		return nil, fmt.Errorf("%s is no message: %w", id, err)
	}
	return &m, nil
}

// search finds where a message was executed, as seen from the tipset of key;
// nil if it was not.
func (c *Chain) search(ctx context.Context, key wire.TipSetKey, id cid.Cid, limit abi.ChainEpoch, allowReplaced bool) (*wire.MsgLookup, error) {
	top, err := c.tipset(ctx, key)
	if err != nil {
		return nil, err
	}
	msg, err := c.anyMessage(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("failed to load message: %w", err)
	}
	var at minedRec
	if ok, err := c.get(ctx, keyOfNonce(keyMined, msg.From, msg.Nonce), &at); err != nil || !ok {
		return nil, err
	}
	height := at.Height + 1
	if height > top.Header.Height || limit != wire.LookbackNoLimit && height < top.Header.Height-limit {
		return nil, nil
	}
	found, err := c.message(ctx, at.Cid)
	if err != nil {
		return nil, err
	}
	if bare, err := found.msg.Message.Cid(); err != nil {
		return nil, err
	} else if id != at.Cid && id != bare {
		if !found.msg.Message.EqualCall(msg) {
			return nil, fmt.Errorf("found message with equal nonce as the one we are looking for that is NOT a valid replacement message (F:%s n %d, TS: %s n%d)",
				id, msg.Nonce, at.Cid, found.msg.Message.Nonce)
		}
		if !allowReplaced {
			return nil, fmt.Errorf("found message with equal nonce and call params but different CID, wanted %s, found %s", id, at.Cid)
		}
	}
	exec, err := c.exec(ctx, at.Height)
	if err != nil {
		return nil, err
	}
	if at.Index >= len(exec.Receipts) {
		return nil, fmt.Errorf("devnet: %w: no receipt %d at height %d", durable.ErrDamaged, at.Index, at.Height)
	}
	in, err := c.block(ctx, height)
	if err != nil {
		return nil, err
	}
	return &wire.MsgLookup{
		Message: at.Cid, Receipt: exec.Receipts[at.Index],
		TipSet: wire.TipSetKey{in.Cid}, Height: height,
	}, nil
}

// Search is search from the head, over the whole chain.
func (c *Chain) Search(ctx context.Context, id cid.Cid) (*wire.MsgLookup, error) {
	c.view.RLock()
	defer c.view.RUnlock()
	return c.search(ctx, nil, id, wire.LookbackNoLimit, true)
}

// wait waits until a message lies confidence epochs deep.
func (c *Chain) wait(ctx context.Context, id cid.Cid, confidence uint64, limit abi.ChainEpoch, allowReplaced bool) (*wire.MsgLookup, error) {
	for {
		next := c.head.Load()
		c.view.RLock()
		found, err := c.search(ctx, nil, id, limit, allowReplaced)
		c.view.RUnlock()
		if err != nil {
			return nil, err
		}
		if found != nil && next.Header.Height >= found.Height && uint64(next.Header.Height-found.Height) >= confidence {
			return found, nil
		}
		select {
		case <-next.next:
		case <-c.stop:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// simulate does what a message asks for on the state after a height, with all the
// gas there is and nothing kept. Pending messages come first.
func (c *Chain) simulate(ctx context.Context, msg *wire.Message, height abi.ChainEpoch, first []*pending) (outcome, error) {
	if err := c.above(height + 1); err != nil {
		return outcome{}, err
	}
	v := &vm{
		state: newOverlay(past{c, height}), epoch: height + 1,
		settleDelay: c.meta.SettleDelay, baseFee: c.cfg.BaseFee,
	}
	for _, m := range first {
		ok, err := v.fits(ctx, &m.msg.Message)
		if err != nil {
			return outcome{}, err
		}
		if !ok || msg.Nonce != 0 && m.msg.Message.Nonce >= msg.Nonce {
			break
		}
		if _, err := v.apply(ctx, &m.msg.Message, m.size); err != nil {
			return outcome{}, err
		}
	}
	call := *msg
	call.GasLimit = wire.BlockGasLimit
	size := len(msg.Params) + 200 // about what addresses, numbers and a signature take
	return v.call(ctx, &call, size)
}

// estimate fills in what msg leaves open of gas.
func (c *Chain) estimate(ctx context.Context, msg *wire.Message, spec *wire.MessageSendSpec, rec blockRec) (*wire.Message, error) {
	var first []*pending
	if err := c.do(ctx, func() error { first = slices.Clone(c.pool.of(msg.From)); return nil }); err != nil {
		return nil, err
	}
	out := *msg
	out.Value, out.GasFeeCap, out.GasPremium = nonNil(msg.Value), nonNil(msg.GasFeeCap), nonNil(msg.GasPremium)
	if out.GasLimit == 0 {
		// Not before: the owner may wait for readers to end.
		done := c.reading()
		res, err := c.simulate(ctx, msg, rec.Header.Height, first)
		done()
		if err != nil {
			return nil, err
		}
		if res.receipt.ExitCode != exitcode.Ok {
			return nil, fmt.Errorf("estimating gas used: message execution failed: exit %s, reason: %s", exitText(res.receipt.ExitCode), res.reason)
		}
		out.GasLimit = res.receipt.GasUsed * gasMargin / 100
	}
	if out.GasPremium.Sign() == 0 && c.cfg.BaseFee.Sign() != 0 {
		out.GasPremium = big.NewInt(minGasPremium)
	}
	if out.GasFeeCap.Sign() == 0 {
		out.GasFeeCap = big.Add(big.Mul(c.cfg.BaseFee, big.NewInt(feeCapFactor)), out.GasPremium)
	}
	if spec != nil && nonNil(spec.MaxFee).Sign() > 0 {
		if most := big.Div(spec.MaxFee, big.NewInt(out.GasLimit)); most.LessThan(out.GasFeeCap) {
			out.GasFeeCap = most
		}
	}
	if out.GasFeeCap.LessThan(out.GasPremium) {
		out.GasPremium = out.GasFeeCap
	}
	return &out, nil
}

// How an estimate leaves room, as Lotus does: a quarter more gas, and a fee cap
// for twenty blocks of rising base fee.
const (
	gasMargin     = 125
	feeCapFactor  = 10
	minGasPremium = 100_000
)

// nonce is that of a sender's next message, behind what is pending.
func (c *Chain) nonce(ctx context.Context, from address.Address) (uint64, error) {
	var next uint64
	err := c.do(ctx, func() error {
		_, rec, ok, err := find(ctx, c.now(), from)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("resolve address %s: %w", from, ErrNoActor)
		}
		key := from
		if rec.Key != address.Undef {
			key = rec.Key
		}
		next = c.pool.next(key, rec.Nonce)
		return nil
	})
	return next, err
}

// Balance of an actor after the head's messages; 0 for one that does not exist.
func (c *Chain) Balance(ctx context.Context, a address.Address) (big.Int, error) {
	c.view.RLock()
	defer c.view.RUnlock()
	_, rec, ok, err := find(ctx, c.now(), a)
	if err != nil || !ok {
		return big.Zero(), err
	}
	return rec.Balance, nil
}

// exitText is an exit code as Lotus prints it, with its name. The type is an
// error too, which is not meant here.
func exitText(code exitcode.ExitCode) string { return code.String() }
