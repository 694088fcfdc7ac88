package lotus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/builtin"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/actor"
	"github.com/tallystick/tally/paych/lotus/wire"
)

const (
	// maxCalls bounds what Calls returns.
	maxCalls = 10_000
	// listStep is over how many epochs the node looks in one request, so that
	// none takes too long.
	listStep abi.ChainEpoch = 60
)

// Channel implements paych.Chain.
func (c *Client) Channel(ctx context.Context, ch address.Address, depth abi.ChainEpoch) (st *actor.State, balance big.Int, err error) {
	err = fresh(func() error {
		st, balance, err = c.channel(ctx, ch, depth)
		return err
	})
	return st, balance, err
}

func (c *Client) channel(ctx context.Context, ch address.Address, depth abi.ChainEpoch) (*actor.State, big.Int, error) {
	ts, err := c.head(ctx)
	if err != nil {
		return nil, big.Zero(), err
	}
	if depth > 0 {
		if depth > ts.Height {
			return nil, big.Zero(), fmt.Errorf("%w: channel %s before the chain began", paych.ErrNotFound, ch)
		}
		if ts, err = c.at(ctx, ts.Height-depth, ts.Cids); err != nil {
			return nil, big.Zero(), err
		}
	}
	return c.channelAt(ctx, ch, ts.Cids)
}

func (c *Client) channelAt(ctx context.Context, ch address.Address, key wire.TipSetKey) (*actor.State, big.Int, error) {
	as, err := c.node.StateReadState(ctx, ch, key)
	if actorNotFound(err) {
		return nil, big.Zero(), c.absent(ctx, ch, key)
	}
	if err != nil {
		return nil, big.Zero(), fmt.Errorf("lotus: channel %s: %w", ch, err)
	}
	if as == nil {
		return nil, big.Zero(), fmt.Errorf("lotus: channel %s: the node sent no state", ch)
	}
	var st wire.ChannelState
	if err := json.Unmarshal(as.State, &st); err != nil || !st.LaneStates.Defined() || st.From == address.Undef || st.To == address.Undef {
		return nil, big.Zero(), fmt.Errorf("%w: %s is no payment channel", paych.ErrNotFound, ch)
	}
	full, err := wire.DecodeChannel(ctx, &st, c)
	if err != nil {
		return nil, big.Zero(), fmt.Errorf("lotus: channel %s: %w", ch, err)
	}
	return full, nonNil(as.Balance), nil
}

// absent says why there is nothing at ch: it never was, or it was collected. The
// init actor keeps the id of an address for ever, and gives each id once.
func (c *Client) absent(ctx context.Context, ch address.Address, key wire.TipSetKey) error {
	id, err := c.node.StateLookupID(ctx, ch, key)
	if actorNotFound(err) {
		return fmt.Errorf("%w: channel %s", paych.ErrNotFound, ch)
	}
	if err != nil {
		return fmt.Errorf("lotus: id of %s: %w", ch, err)
	}
	if ch.Protocol() != address.ID {
		return fmt.Errorf("%w: %s", paych.ErrCollected, ch)
	}
	as, err := c.node.StateReadState(ctx, builtin.InitActorAddr, key)
	if err != nil {
		return fmt.Errorf("lotus: init actor: %w", err)
	}
	var root wire.InitState
	if as == nil || json.Unmarshal(as.State, &root) != nil {
		return errors.New("lotus: init actor: the node sent no state")
	}
	n, err := address.IDFromAddress(id)
	if err != nil || n >= uint64(root.NextID) {
		return fmt.Errorf("%w: channel %s", paych.ErrNotFound, ch)
	}
	return fmt.Errorf("%w: %s", paych.ErrCollected, ch)
}

// Calls implements paych.Chain. Over more than Config.ListSpan epochs, and on
// gateways that cannot list messages, it finds the calls that changed the channel
// by halving the time between two of its states; then failed ones are left out.
// Calls that other actors make are not messages and are never listed.
func (c *Client) Calls(ctx context.Context, ch address.Address, from, to abi.ChainEpoch) (calls []paych.Call, err error) {
	err = fresh(func() error {
		calls, err = c.calls(ctx, ch, from, to)
		return err
	})
	return calls, err
}

func (c *Client) calls(ctx context.Context, ch address.Address, from, to abi.ChainEpoch) ([]paych.Call, error) {
	head, err := c.head(ctx)
	if err != nil {
		return nil, err
	}
	// The genesis tipset shows nothing executed.
	from, to = max(from, 1), min(to, head.Height)
	if to < from {
		return nil, nil
	}
	q := &callQuery{c: c, to: map[address.Address]bool{ch: true}, head: head.Cids, from: from, until: to}
	if id, err := c.node.StateLookupID(ctx, ch, head.Cids); err == nil {
		q.to[id] = true
	} else if !actorNotFound(err) {
		return nil, fmt.Errorf("lotus: id of %s: %w", ch, err)
	} else {
		return nil, nil
	}
	q.seen = map[abi.ChainEpoch]bool{}
	if to-from < c.cfg.ListSpan {
		err = q.list(ctx)
		if !noMethod(err) {
			return q.result(err)
		}
		c.log.Debug("node lists no messages, looking at states instead", "err", err)
	}
	return q.result(q.halve(ctx, ch))
}

// callQuery is one Calls at work.
type callQuery struct {
	c           *Client
	to          map[address.Address]bool // the channel's addresses
	head        wire.TipSetKey
	from, until abi.ChainEpoch
	seen        map[abi.ChainEpoch]bool
	calls       []paych.Call
}

func (q *callQuery) result(err error) ([]paych.Call, error) {
	if err != nil {
		return nil, err
	}
	// Tipsets come in any order; within one the order is that of execution.
	slices.SortStableFunc(q.calls, func(a, b paych.Call) int { return cmp.Compare(a.Height, b.Height) })
	return q.calls, nil
}

// take reads the calls that the tipset ts shows executed.
func (q *callQuery) take(ctx context.Context, block wire.TipSetKey, height abi.ChainEpoch) error {
	if q.seen[height] || height < q.from || height > q.until {
		return nil
	}
	if len(block) == 0 {
		return fmt.Errorf("lotus: calls at %d: the node named no tipset", height)
	}
	q.seen[height] = true
	msgs, err := q.c.node.ChainGetParentMessages(ctx, block[0])
	if err != nil {
		return fmt.Errorf("lotus: messages before %d: %w", height, err)
	}
	receipts, err := q.c.node.ChainGetParentReceipts(ctx, block[0])
	if err != nil {
		return fmt.Errorf("lotus: receipts of %d: %w", height, err)
	}
	if len(msgs) != len(receipts) {
		return fmt.Errorf("lotus: %d messages and %d receipts at %d", len(msgs), len(receipts), height)
	}
	for i, m := range msgs {
		if m.Message == nil || receipts[i] == nil || !q.to[m.Message.To] {
			continue
		}
		if len(q.calls) >= maxCalls {
			return fmt.Errorf("lotus: more than %d calls, ask for fewer epochs", maxCalls)
		}
		q.calls = append(q.calls, paych.Call{
			Height: height, Cid: m.Cid, From: m.Message.From, Value: nonNil(m.Message.Value),
			Method: m.Message.Method, Params: m.Message.Params, ExitCode: receipts[i].ExitCode,
		})
	}
	return nil
}

// list asks the node for the messages, step by step. A tipset carries what the
// next one shows executed.
func (q *callQuery) list(ctx context.Context) error {
	for low := q.from; low <= q.until; low += listStep {
		top, err := q.c.at(ctx, min(low+listStep-1, q.until), q.head)
		if err != nil {
			return err
		}
		if top.Height < low {
			continue // no tipset at these heights
		}
		carried := wire.TipSetKey(top.Blocks[0].Parents)
		first, err := q.c.at(ctx, low-1, q.head)
		if err != nil {
			return err
		}
		for to := range q.to {
			ids, err := q.c.node.StateListMessages(ctx, &wire.MessageMatch{To: to}, carried, first.Height)
			if err != nil {
				return fmt.Errorf("lotus: messages to %s: %w", to, err)
			}
			for _, id := range ids {
				found, err := q.c.node.StateSearchMsg(ctx, q.head, id, q.c.cfg.Lookback, true)
				if err != nil {
					return fmt.Errorf("lotus: receipt of %s: %w", id, err)
				}
				if found == nil {
					return fmt.Errorf("lotus: receipt of %s: not found", id)
				}
				if err := q.take(ctx, found.TipSet, found.Height); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// halve finds the heights at which the channel changed.
func (q *callQuery) halve(ctx context.Context, ch address.Address) error {
	low, err := q.c.at(ctx, q.from-1, q.head)
	if err != nil {
		return err
	}
	high, err := q.c.at(ctx, q.until, q.head)
	if err != nil {
		return err
	}
	a, err := q.print(ctx, ch, low)
	if err != nil {
		return err
	}
	b, err := q.print(ctx, ch, high)
	if err != nil {
		return err
	}
	return q.between(ctx, ch, low, high, a, b)
}

// between looks at the tipsets above low and up to high, whose states are a and
// b. A channel never comes back to a state that it had: it is made once, each
// lane's nonce only rises, and money leaves with Collect alone.
func (q *callQuery) between(ctx context.Context, ch address.Address, low, high *wire.TipSet, a, b string) error {
	if a == b || low.Height >= high.Height {
		return nil
	}
	mid, err := q.c.at(ctx, low.Height+(high.Height-low.Height)/2, high.Cids)
	if err != nil {
		return err
	}
	if mid.Height == low.Height {
		// Nothing at or below the middle: search from above, in the rest.
		parent, err := q.c.at(ctx, high.Height-1, high.Cids)
		if err != nil {
			return err
		}
		if parent.Height <= low.Height {
			return q.take(ctx, high.Cids, high.Height)
		}
		mid = parent
	}
	m, err := q.print(ctx, ch, mid)
	if err != nil {
		return err
	}
	if err := q.between(ctx, ch, low, mid, a, m); err != nil {
		return err
	}
	return q.between(ctx, ch, mid, high, m, b)
}

// print identifies the state of the channel at a tipset.
func (q *callQuery) print(ctx context.Context, ch address.Address, ts *wire.TipSet) (string, error) {
	act, err := q.c.node.StateGetActor(ctx, ch, ts.Cids)
	if actorNotFound(err) {
		// Before it was made and after it was collected are two states.
		if _, err := q.c.node.StateLookupID(ctx, ch, ts.Cids); actorNotFound(err) {
			return "none", nil
		} else if err != nil {
			return "", fmt.Errorf("lotus: id of %s: %w", ch, err)
		}
		return "gone", nil
	}
	if err != nil {
		return "", fmt.Errorf("lotus: channel %s at %d: %w", ch, ts.Height, err)
	}
	if act == nil {
		return "", fmt.Errorf("lotus: channel %s at %d: the node sent no actor", ch, ts.Height)
	}
	return act.Head.String() + " " + nonNil(act.Balance).String(), nil
}
