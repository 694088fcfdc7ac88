package devnet

import (
	"context"
	"fmt"
	"time"

	"github.com/filecoin-project/go-state-types/exitcode"
)

// failing is what FailNext asked for.
type failing struct {
	code exitcode.ExitCode
	left int
}

// FailNext makes the next count messages fail with code; the faucet's are not
// concerned. It is forgotten at a restart.
func (c *Chain) FailNext(ctx context.Context, code exitcode.ExitCode, count int) error {
	if count < 0 || count > MaxMine {
		return fmt.Errorf("%w: %d messages, at most %d", ErrLimit, count, MaxMine)
	}
	return c.do(ctx, func() error { c.fail = failing{code, count}; return nil })
}

// SetLatency makes each RPC method under Lotus' names wait before it answers; 0
// answers at once. Our own methods do not wait, so that it can be taken back.
func (c *Chain) SetLatency(d time.Duration) error {
	if d < 0 || d > MaxLatency {
		return fmt.Errorf("%w: a latency of %v, 0 to %v", ErrLimit, d, MaxLatency)
	}
	c.latency.Store(int64(d))
	return nil
}

// delay is the latency of a call; it ends early with ctx.
func (c *Chain) delay(ctx context.Context) {
	d := time.Duration(c.latency.Load())
	if d == 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
