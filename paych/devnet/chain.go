package devnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// Manual as a block time means that only Mine makes blocks.
const Manual time.Duration = -1

const (
	// DefaultNetwork is the name of a chain that was given none.
	DefaultNetwork = "tally-devnet"
	// DefaultBlockTime is between two blocks.
	DefaultBlockTime = time.Second
	// DefaultSettleDelay is that of Filecoin: 12 hours of epochs of 30 s, here
	// 24 minutes of the default block time.
	DefaultSettleDelay abi.ChainEpoch = 1440
	// DefaultFinality is short: nobody reverts a devnet but by Reorg.
	DefaultFinality abi.ChainEpoch = 10
)

const (
	// maxBlockMessages bounds what one block executes.
	maxBlockMessages = 500
	// maxBlockBytes bounds its batch: well below durable.MaxBatchBytes with
	// what the messages write.
	maxBlockBytes = 4 << 20
	// MaxMine bounds one call of Mine: a typing error must not cost a night.
	MaxMine = 1_000_000
	// MaxReorg bounds one of Reorg, which is one batch.
	MaxReorg = 10_000
	// MaxLatency is below what clients wait for an answer.
	MaxLatency = 20 * time.Second
	// maxSubscribers bounds those who follow heads, and maxHeadQueue what one
	// of them may have unread before it is dropped.
	maxSubscribers = 64
	maxHeadQueue   = 256
)

var (
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("devnet: closed")
	// ErrConfig: the chain in the store has other facts than the Config asks for.
	ErrConfig = errors.New("devnet: the store has another chain")
	// ErrLimit: more was asked for than one call may do, or less than nothing.
	ErrLimit = errors.New("devnet: too much for one call")
	// ErrNoActor: the text is that of Lotus.
	ErrNoActor = errors.New("actor not found")
)

// Config is what a chain may be told. The zero value is a chain with the
// defaults.
type Config struct {
	// Network is the chain's name. Default DefaultNetwork. Network, SettleDelay
	// and Finality belong to a chain for life: an existing one is opened with
	// them empty or the same.
	Network string
	// BlockTime is between two blocks. Default DefaultBlockTime; Manual.
	BlockTime time.Duration
	// SettleDelay is how long a channel settles, in epochs. Default
	// DefaultSettleDelay.
	SettleDelay abi.ChainEpoch
	// Finality is from which depth on a tipset is called final. Default
	// DefaultFinality.
	Finality abi.ChainEpoch
	// BaseFee is what a unit of gas costs, in attoFIL. Default 0.
	BaseFee big.Int
	// Logger. Default: nothing is logged.
	Logger *slog.Logger
	// Latency is how long each RPC method under Lotus' names waits before it
	// answers. Default 0. SetLatency changes it.
	Latency time.Duration
	// Before, where set, is called before each RPC method with its name; it may
	// wait, to be a slow node, or return an error, to be a broken one.
	Before func(ctx context.Context, method string) error
}

// Chain is a running chain. Its methods may be called at the same time.
type Chain struct {
	store  *durable.Store
	cfg    Config
	log    *slog.Logger
	meta   metaRec
	faucet []byte // private key

	head     atomic.Pointer[head]
	latency  atomic.Int64 // nanoseconds
	commands chan command
	stop     chan struct{}
	ended    chan struct{}
	stopOnce sync.Once

	// view keeps a reorg and pruning from deleting blocks beneath a reader.
	view sync.RWMutex
	// floor is the lowest height that is kept whole. A reader looks at it while it
	// holds view; the owner raises it.
	floor atomic.Int64
	keep  abi.ChainEpoch // of a test; 0 for kept

	// The fields below belong to the owner goroutine.
	pool   *pool
	reorgs uint64
	fail   failing
	broken error // the store failed: nothing goes on

	// subMu guards subs.
	subMu sync.Mutex
	subs  map[chan []change]struct{}
}

// head is a published head. next is closed when another one is.
type head struct {
	blockRec
	next chan struct{}
}

// change is one step of the head.
type change struct {
	revert bool
	block  blockRec
}

// command is a call on the owner goroutine.
type command struct {
	do   func() error
	done chan error
}

// run is the owner goroutine.
func (c *Chain) run() {
	defer close(c.ended)
	var tick <-chan time.Time
	if c.cfg.BlockTime != Manual {
		t := time.NewTicker(c.cfg.BlockTime)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-c.stop:
			return
		case cmd := <-c.commands:
			if c.broken != nil {
				cmd.done <- c.broken
				continue
			}
			cmd.done <- cmd.do()
		case <-tick:
			if c.broken != nil {
				continue
			}
			if err := c.mine(context.Background()); err != nil {
				c.log.Error("no block was made, restart needed", "err", err)
			}
		}
	}
}

// do runs f on the owner goroutine.
func (c *Chain) do(ctx context.Context, f func() error) error {
	cmd := command{do: f, done: make(chan error, 1)}
	select {
	case c.commands <- cmd:
	case <-c.stop:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-cmd.done:
		return err
	case <-c.ended:
		return ErrClosed
	}
}

// Close ends the chain after the command at work. The store stays open.
func (c *Chain) Close() error {
	c.stopOnce.Do(func() { close(c.stop) })
	<-c.ended
	return nil
}

// message reads a signed message by its cid.
func (c *Chain) message(ctx context.Context, id cid.Cid) (*pending, error) {
	data, err := c.Object(ctx, id)
	if err != nil {
		return nil, err
	}
	s, err := wire.DecodeSigned(data)
	if err != nil {
		return nil, err
	}
	return &pending{msg: s, cid: id, size: len(data)}, nil
}

// Object implements wire.Objects.
func (c *Chain) Object(ctx context.Context, id cid.Cid) ([]byte, error) {
	data, err := c.getBytes(ctx, keyOfCid(keyObject, id))
	if errors.Is(err, durable.ErrNotFound) {
		return nil, fmt.Errorf("ipld: could not find %s: %w", id, paych.ErrNotFound)
	}
	return data, err
}

// Params are the chain's.
func (c *Chain) Params() paych.Params {
	epoch := c.cfg.BlockTime
	if epoch == Manual {
		epoch = DefaultBlockTime
	}
	return paych.Params{
		Network: c.meta.Network, Genesis: c.meta.Genesis,
		SettleDelay: c.meta.SettleDelay, Epoch: epoch, Finality: c.meta.Finality,
	}
}

// Head is the height of the head.
func (c *Chain) Head() abi.ChainEpoch { return c.head.Load().Header.Height }

// Check reports the invariant that is broken: the money of all actors is Supply.
func (c *Chain) Check(ctx context.Context) error {
	c.view.RLock()
	defer c.view.RUnlock()
	sum, now := big.Zero(), c.now()
	root, _, err := now.actor(ctx, idInit)
	if err != nil {
		return err
	}
	for id := range root.NextID {
		rec, ok, err := now.actor(ctx, id)
		if err != nil {
			return err
		}
		if ok {
			sum = big.Add(sum, rec.Balance)
		}
	}
	if !sum.Equals(Supply) {
		return fmt.Errorf("devnet: all balances are %v, want %v", sum, Supply)
	}
	return nil
}
