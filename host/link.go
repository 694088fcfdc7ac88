package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/actor"
	"github.com/tallystick/tally/paych/lotus"
)

const (
	// firstRetry and lastRetry bound the time between two tries to reach a node
	// that was away when the peer started. Later outages are the client's.
	firstRetry = 500 * time.Millisecond
	lastRetry  = 15 * time.Second
)

// ErrChainAway: the node of the chain was not reached since the peer started. It
// is tried again until it is.
var ErrChainAway = errors.New("host: the node of the chain is not reached yet")

// link is the chain of a peer whose node may be away when the peer starts: the
// facts of the chain are known from an earlier start, calls fail until the node
// is reached, and those that wait do. A node of another chain is never taken.
type link struct {
	params paych.Params
	cfg    lotus.Config
	log    *slog.Logger

	client  atomic.Pointer[lotus.Client]
	reached chan struct{} // closed when there is a client
	stop    context.CancelFunc
	running sync.WaitGroup
	failed  atomic.Uint64 // calls that failed

	// mu guards the fields below.
	mu     sync.Mutex
	cause  error     // of the last failure; nil where the last call went well
	since  time.Time // when the failures began
	closed bool
}

var (
	_ paych.Chain      = (*link)(nil)
	_ paych.ActorCoder = (*link)(nil)
	_ paych.Filler     = (*link)(nil)
)

// newLink returns a link to the node of cfg, which must name the network and
// genesis of params. It does no IO before connect.
func newLink(params paych.Params, cfg lotus.Config, log *slog.Logger) *link {
	return &link{params: params, cfg: cfg, log: log, reached: make(chan struct{}), stop: func() {}}
}

// connect tries once.
func (l *link) connect(ctx context.Context) error {
	c, err := lotus.Open(ctx, l.cfg)
	if l.note(err) != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.Join(lotus.ErrClosed, c.Close())
	}
	l.client.Store(c)
	close(l.reached)
	return nil
}

// retry connects in the background until it succeeds or the link is closed.
func (l *link) retry() {
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	l.running.Go(func() { // ends with the first success, or with close
		for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
			err := l.connect(ctx)
			switch {
			case ctx.Err() != nil:
				return
			case err == nil:
				l.log.Info("the chain is reached", "network", l.params.Network)
				return
			case errors.Is(err, lotus.ErrWrongNetwork), errors.Is(err, lotus.ErrDenied):
				l.log.Error("the node of the chain cannot be used, will be tried again", "err", err)
			default:
				l.log.Warn("the chain is not reached, will be tried again", "err", err)
			}
		}
	})
}

func (l *link) close() error {
	l.stop()
	l.running.Wait()
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	if c := l.client.Load(); c != nil {
		return c.Close()
	}
	return nil
}

// note counts a failure, and remembers since when calls fail. An answer that
// something is not on the chain is none, nor is a caller that went away.
func (l *link) note(err error) error {
	for _, answer := range []error{paych.ErrNotFound, paych.ErrCollected, paych.ErrNonceTaken, lotus.ErrExecution} {
		if errors.Is(err, answer) {
			err = nil
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if err != nil {
		l.failed.Add(1)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.since = time.Time{}
	} else if l.cause == nil {
		l.since = time.Now()
	}
	l.cause = err
	return err
}

// trouble is why the last call failed and since when calls do; nil where it went
// well.
func (l *link) trouble() (since time.Time, cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.since, l.cause
}

// get returns the client. ErrChainAway.
func (l *link) get() (*lotus.Client, error) {
	if c := l.client.Load(); c != nil {
		return c, nil
	}
	_, err := l.trouble()
	return nil, fmt.Errorf("%w: %w", ErrChainAway, err)
}

// wait returns the client once there is one.
func (l *link) wait(ctx context.Context) (*lotus.Client, error) {
	select {
	case <-l.reached:
		return l.client.Load(), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// via makes a call and notes how it went.
func via[T any](l *link, fn func(*lotus.Client) (T, error)) (T, error) {
	c, err := l.get()
	if err != nil {
		var zero T
		return zero, err
	}
	v, err := fn(c)
	_ = l.note(err)
	return v, err
}

// Params implements paych.Chain.
func (l *link) Params() paych.Params { return l.params }

// Head implements paych.Chain.
func (l *link) Head(ctx context.Context) (abi.ChainEpoch, error) {
	return via(l, func(c *lotus.Client) (abi.ChainEpoch, error) { return c.Head(ctx) })
}

// Heads implements paych.Chain. It waits for the node.
func (l *link) Heads(ctx context.Context) (<-chan paych.Head, error) {
	c, err := l.wait(ctx)
	if err != nil {
		return nil, err
	}
	heads, err := c.Heads(ctx)
	_ = l.note(err)
	return heads, err
}

// Channel implements paych.Chain.
func (l *link) Channel(ctx context.Context, ch address.Address, depth abi.ChainEpoch) (*actor.State, big.Int, error) {
	c, err := l.get()
	if err != nil {
		return nil, big.Zero(), err
	}
	st, balance, err := c.Channel(ctx, ch, depth)
	_ = l.note(err)
	return st, balance, err
}

// ResolveKey implements paych.Chain.
func (l *link) ResolveKey(ctx context.Context, a address.Address) (address.Address, error) {
	return via(l, func(c *lotus.Client) (address.Address, error) { return c.ResolveKey(ctx, a) })
}

// Prepare implements paych.Chain.
func (l *link) Prepare(ctx context.Context, m paych.Message) (*paych.SignedMessage, error) {
	return via(l, func(c *lotus.Client) (*paych.SignedMessage, error) { return c.Prepare(ctx, m) })
}

// Publish implements paych.Chain.
func (l *link) Publish(ctx context.Context, m *paych.SignedMessage) error {
	_, err := via(l, func(c *lotus.Client) (struct{}, error) { return struct{}{}, c.Publish(ctx, m) })
	return err
}

// Wait implements paych.Chain. It waits for the node too.
func (l *link) Wait(ctx context.Context, id cid.Cid, confidence abi.ChainEpoch) (*paych.Receipt, error) {
	c, err := l.wait(ctx)
	if err != nil {
		return nil, err
	}
	r, err := c.Wait(ctx, id, confidence)
	_ = l.note(err)
	return r, err
}

// Calls implements paych.Chain.
func (l *link) Calls(ctx context.Context, ch address.Address, from, to abi.ChainEpoch) ([]paych.Call, error) {
	return via(l, func(c *lotus.Client) ([]paych.Call, error) { return c.Calls(ctx, ch, from, to) })
}

// Balance implements paych.Chain.
func (l *link) Balance(ctx context.Context, a address.Address) (big.Int, error) {
	return via(l, func(c *lotus.Client) (big.Int, error) { return c.Balance(ctx, a) })
}

// PaychCode implements paych.ActorCoder.
func (l *link) PaychCode(ctx context.Context) (cid.Cid, error) {
	return via(l, func(c *lotus.Client) (cid.Cid, error) { return c.PaychCode(ctx) })
}

// Bump implements paych.Replacer.
func (l *link) Bump(ctx context.Context, m *paych.SignedMessage) (*paych.SignedMessage, error) {
	return via(l, func(c *lotus.Client) (*paych.SignedMessage, error) { return c.Bump(ctx, m) })
}

// Nonce implements paych.Replacer.
func (l *link) Nonce(ctx context.Context, sender address.Address, depth abi.ChainEpoch) (uint64, error) {
	return via(l, func(c *lotus.Client) (uint64, error) { return c.Nonce(ctx, sender, depth) })
}

// Discard implements paych.Replacer.
func (l *link) Discard(m *paych.SignedMessage) {
	if c := l.client.Load(); c != nil {
		c.Discard(m)
	}
}

// Fill implements paych.Filler.
func (l *link) Fill(ctx context.Context, sender address.Address, nonce uint64) error {
	_, err := via(l, func(c *lotus.Client) (struct{}, error) { return struct{}{}, c.Fill(ctx, sender, nonce) })
	return err
}

// RedeemFee is what a payee pays until it has its money.
func (l *link) RedeemFee(ctx context.Context) (big.Int, error) {
	return via(l, func(c *lotus.Client) (big.Int, error) { return c.RedeemFee(ctx) })
}

// nodeWallet is the wallet of the link's node.
type nodeWallet struct{ l *link }

var _ paych.Wallet = nodeWallet{}

// Has implements paych.Wallet.
func (w nodeWallet) Has(ctx context.Context, a address.Address) (bool, error) {
	return via(w.l, func(c *lotus.Client) (bool, error) { return c.NodeWallet().Has(ctx, a) })
}

// Sign implements paych.Wallet.
func (w nodeWallet) Sign(ctx context.Context, a address.Address, msg []byte) (*crypto.Signature, error) {
	return via(w.l, func(c *lotus.Client) (*crypto.Signature, error) { return c.NodeWallet().Sign(ctx, a, msg) })
}

// List implements paych.Wallet.
func (w nodeWallet) List(ctx context.Context) ([]address.Address, error) {
	return via(w.l, func(c *lotus.Client) ([]address.Address, error) { return c.NodeWallet().List(ctx) })
}

// New implements paych.Wallet.
func (w nodeWallet) New(ctx context.Context) (address.Address, error) {
	return via(w.l, func(c *lotus.Client) (address.Address, error) { return c.NodeWallet().New(ctx) })
}
