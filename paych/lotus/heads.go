package lotus

import (
	"context"
	"sync"
	"time"

	"github.com/filecoin-project/go-state-types/abi"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/lotus/wire"
)

const (
	// maxHistory is how many tipsets are remembered to find out what a
	// reorganisation took back: more than Filecoin's finality of 900.
	maxHistory = 1024
	// maxBackoff bounds the time between two polls of a node that is away.
	maxBackoff = 30 * time.Second
)

// tracker is the head as last polled. One goroutine polls for all who wait, and
// only while somebody does.
type tracker struct {
	wake chan struct{} // capacity 1: somebody began to wait
	// history belongs to the poller.
	history []*wire.TipSet

	// mu guards the fields below.
	mu      sync.Mutex
	cur     *headNode
	waiting int
}

// headNode is one state of the head in a list that grows at its end. A reader
// holds the node that it has seen; what nobody holds is collected.
type headNode struct {
	ts *wire.TipSet // nil in the first: nothing was polled yet
	// reverted is the lowest height that was taken back on the way from the node
	// before, or -1.
	reverted abi.ChainEpoch
	next     chan struct{} // closed when there is an after
	after    *headNode
}

// follow returns the present node and has the head polled until the function
// that it returns is called.
func (c *Client) follow() (*headNode, func()) {
	h := &c.heads
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting++
	select {
	case h.wake <- struct{}{}:
	default:
	}
	return h.cur, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.waiting--
	}
}

func (c *Client) followed() bool {
	c.heads.mu.Lock()
	defer c.heads.mu.Unlock()
	return c.heads.waiting > 0
}

// poll asks for the head until Close.
func (c *Client) poll() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with Close, and ends a request under way
		<-c.stop
		cancel()
	}()
	pause := c.cfg.Poll
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		if !c.followed() {
			select {
			case <-c.heads.wake:
				continue
			case <-c.stop:
				return
			}
		}
		if err := c.look(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			pause = min(2*pause, maxBackoff)
			c.log.Warn("head of the chain not seen", "err", err, "again_in", pause)
		} else {
			pause = c.cfg.Poll
		}
		timer.Reset(pause)
		select {
		case <-timer.C:
		case <-c.stop:
			return
		}
	}
}

// look asks once and tells the followers of a change.
func (c *Client) look(ctx context.Context) error {
	ts, err := c.head(ctx)
	if err != nil {
		return err
	}
	h := &c.heads
	if n := len(h.history); n > 0 && h.history[n-1].Cids.Equals(ts.Cids) {
		return nil
	}
	reverted, kept, err := c.fork(ctx, ts)
	if err != nil {
		return err
	}
	h.history = append(h.history[:kept], ts)
	if len(h.history) > maxHistory {
		h.history = append([]*wire.TipSet(nil), h.history[len(h.history)-maxHistory/2:]...)
	}
	node := &headNode{ts: ts, reverted: reverted, next: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cur.after = node
	close(h.cur.next)
	h.cur = node
	return nil
}

// fork finds how much of the history is on the chain of ts, and the lowest
// height that is not, or -1.
func (c *Client) fork(ctx context.Context, ts *wire.TipSet) (reverted abi.ChainEpoch, kept int, err error) {
	history := c.heads.history
	reverted = -1
	for kept = len(history); kept > 0; kept-- {
		old := history[kept-1]
		if old.Height < ts.Height {
			if wire.TipSetKey(ts.Blocks[0].Parents).Equals(old.Cids) {
				break
			}
			now, err := c.at(ctx, old.Height, ts.Cids)
			if err != nil {
				return 0, 0, err
			}
			if now.Cids.Equals(old.Cids) {
				break
			}
		} else if old.Cids.Equals(ts.Cids) {
			break
		}
		reverted = old.Height
	}
	if reverted >= 0 && kept > 0 {
		// What lay between two polls is gone too.
		reverted = history[kept-1].Height + 1
	}
	return reverted, kept, nil
}

// Heads implements paych.Chain.
func (c *Client) Heads(ctx context.Context) (<-chan paych.Head, error) {
	select {
	case <-c.stop:
		return nil, ErrClosed
	default:
	}
	first, err := c.head(ctx)
	if err != nil {
		return nil, err
	}
	node, leave := c.follow()
	out := make(chan paych.Head)
	c.running.Go(func() { // ends with ctx or Close
		defer close(out)
		defer leave()
		// What the reader has not taken yet: at most one revert, the lowest, and
		// the last head.
		last := &paych.Head{Height: first.Height}
		var revert *paych.Head
		key := first.Cids
		for {
			var send chan paych.Head
			var value paych.Head
			switch {
			case revert != nil:
				send, value = out, *revert
			case last != nil:
				send, value = out, *last
			}
			select {
			case send <- value:
				if revert != nil {
					revert = nil
				} else {
					last = nil
				}
			case <-node.next:
				node = node.after
				if node.reverted >= 0 && (revert == nil || node.reverted < revert.Height) {
					revert = &paych.Head{Height: node.reverted, Reverted: true}
				}
				if !node.ts.Cids.Equals(key) {
					last = &paych.Head{Height: node.ts.Height}
					key = node.ts.Cids
				}
			case <-c.stop:
				return
			case <-ctx.Done():
				return
			}
		}
	})
	return out, nil
}
