package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/exitcode"

	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych/devnet"
	"github.com/tallystick/tally/paych/lotus"
)

// ManualBlocks as a block time means that blocks are made on demand only.
const ManualBlocks = devnet.Manual

// anyLoopback is where a devnet listens that was never told where.
const anyLoopback = "127.0.0.1:0"

// DevnetConfig is what an embedded chain may be told; see devnet.Config. The
// zero value of everything is a default. Network, SettleDelay and Finality belong
// to a chain for life: an existing one is started without them, or with the same.
type DevnetConfig struct {
	// RPC is HOST:PORT to listen on, with a loopback host. Default: where it
	// listened last, at first a free port.
	RPC         string
	Network     string
	BlockTime   time.Duration
	SettleDelay int64
	Finality    int64
	// BaseFee of a unit of gas, in attoFIL.
	BaseFee uint64
	Latency time.Duration
	Logger  *slog.Logger
}

// Devnet is a running embedded chain with its JSON-RPC.
type Devnet struct {
	store  *durable.Store
	chain  *devnet.Chain
	server *devnet.Server
	folder *repo.Devnet
	info   DevnetInfo
	failed chan error // capacity 2: the server and the store may fail
	close  chan struct{}
}

// DevnetInfo is how a devnet is reached and known.
type DevnetInfo struct {
	RPC         string `json:"rpc"`
	Network     string `json:"network"`
	Genesis     string `json:"genesis"`
	TokenFile   string `json:"token_file"`
	Height      int64  `json:"height"`
	SettleDelay int64  `json:"settle_delay"`
	Finality    int64  `json:"finality"`
	BlockTime   string `json:"block_time"` // a duration, or manual
}

// StartDevnet runs the chain in an open folder, which stays the caller's to
// close, and writes its api file. On an error nothing runs.
func StartDevnet(ctx context.Context, folder *repo.Devnet, cfg DevnetConfig) (_ *Devnet, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	l, err := listenDevnet(folder, cfg.RPC)
	if err != nil {
		return nil, err
	}
	undo := []func() error{l.Close}
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				err = errors.Join(err, undo[i]())
			}
		}
	}()
	store, err := durable.Open(folder.DatastoreDir(), durable.WithLogger(cfg.Logger))
	if err != nil {
		return nil, fmt.Errorf("open the chain in %s: %w", folder.DatastoreDir(), err)
	}
	undo = append(undo, store.Close)
	chain, err := devnet.Open(ctx, store, devnet.Config{
		Network: cfg.Network, BlockTime: cfg.BlockTime, SettleDelay: abi.ChainEpoch(cfg.SettleDelay),
		Finality: abi.ChainEpoch(cfg.Finality), BaseFee: big.NewIntUnsigned(cfg.BaseFee), Latency: cfg.Latency, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	undo = append(undo, chain.Close)
	server, err := devnet.NewServer(chain, folder.Token().Reveal())
	if err != nil {
		return nil, err
	}
	api := rpc.AddrOf(l.Addr())
	url, err := rpc.URLOf(api)
	if err != nil {
		return nil, err
	}
	p := chain.Params()
	d := &Devnet{
		store: store, chain: chain, server: server, folder: folder, failed: make(chan error, 2), close: make(chan struct{}),
		info: DevnetInfo{
			RPC: url, Network: p.Network, Genesis: p.Genesis.String(), TokenFile: folder.TokenFile(), Height: int64(chain.Head()),
			SettleDelay: int64(p.SettleDelay), Finality: int64(p.Finality), BlockTime: p.Epoch.String(),
		},
	}
	if cfg.BlockTime == ManualBlocks {
		d.info.BlockTime = "manual"
	}
	if err := folder.WriteAPI(api, l.Addr().String()); err != nil {
		return nil, err
	}
	go func() { // ends with Shutdown
		if err := server.Serve(l); err != nil {
			d.failed <- fmt.Errorf("the devnet's rpc server ended: %w", err)
		}
	}()
	go func() { // ends with the store, or with Close
		select {
		case <-store.Broken():
			d.failed <- fmt.Errorf("the store of the devnet failed: %w", store.Failed())
		case <-d.close:
		}
	}()
	return d, nil
}

// listenDevnet listens where it was told, else where the devnet was before, so
// that those who know its address find it again.
func listenDevnet(folder *repo.Devnet, setting string) (net.Listener, error) {
	last := ""
	if setting == "" {
		var err error
		if last, err = folder.LastListen(); err != nil {
			return nil, err
		}
		setting = last
	}
	if setting == "" {
		setting = anyLoopback
	}
	if setting == rpc.ListenUnix {
		return nil, errors.New("a devnet listens on HOST:PORT with a loopback host, not on a unix socket, as Lotus does")
	}
	l, err := rpc.Listen(setting, "")
	if err != nil && last != "" {
		return nil, fmt.Errorf("the devnet cannot listen where it did before: %w; choose another with --rpc", err)
	}
	return l, err
}

// Token is the bearer token of its JSON-RPC.
func (d *Devnet) Token() lotus.Token { return lotus.Token(d.folder.Token().Reveal()) }

// Faucet gives an address play money, and returns once that is mined and can be
// spent.
func (d *Devnet) Faucet(ctx context.Context, to address.Address, atto big.Int) error {
	if _, err := d.chain.Faucet(ctx, to, atto); err != nil {
		return err
	}
	return d.chain.Mine(ctx, 2) // it is mined in the one and seen in the next
}

// Mine makes n blocks at once.
func (d *Devnet) Mine(ctx context.Context, n int) error { return d.chain.Mine(ctx, n) }

// Balance of an address, in attoFIL.
func (d *Devnet) Balance(ctx context.Context, a address.Address) (big.Int, error) {
	return d.chain.Balance(ctx, a)
}

// Info returns how the devnet is reached.
func (d *Devnet) Info() DevnetInfo { return d.info }

// Failed returns a channel that gives the cause once the devnet cannot go on.
func (d *Devnet) Failed() <-chan error { return d.failed }

// Close stops the server, then the chain, then its store. ctx bounds the farewell
// to callers. Call it once.
func (d *Devnet) Close(ctx context.Context) error {
	close(d.close)
	err := d.server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil // who still asked was cut off
	}
	return errors.Join(d.folder.RemoveAPI(), err, d.chain.Close(), d.store.Close())
}

// DevnetClient drives a running devnet.
type DevnetClient struct{ client *lotus.Client }

// DialDevnet finds the running devnet of a folder.
func DialDevnet(ctx context.Context, dir string) (*DevnetClient, error) {
	api, token, err := repo.DevnetEndpoint(dir)
	if err != nil {
		return nil, err
	}
	url, err := rpc.URLOf(api)
	if err != nil {
		return nil, err
	}
	c, err := lotus.Open(ctx, lotus.Config{URL: url, Token: lotus.Token(token.Reveal())})
	if errors.Is(err, lotus.ErrUnreachable) {
		return nil, fmt.Errorf("%w on %s: %w", repo.ErrNotRunning, dir, err) // it was killed
	}
	if err != nil {
		return nil, err
	}
	return &DevnetClient{c}, nil
}

// Close ends the client.
func (c *DevnetClient) Close() error { return c.client.Close() }

// mineAtOnce bounds the blocks of one call, which has to end in its time also where each
// block waits for a slow disk.
const mineAtOnce = 100

// Mine makes n blocks and returns the height of the head.
func (c *DevnetClient) Mine(ctx context.Context, n int) (int64, error) {
	for {
		some := n
		if n <= devnet.MaxMine { // else it is refused
			some = min(n, mineAtOnce)
		}
		h, err := c.client.Dev().DevMine(ctx, some)
		if n -= some; err != nil || n <= 0 {
			return int64(h), err
		}
	}
}

// FaucetResult is what the faucet did.
type FaucetResult struct {
	Address string `json:"address"`
	Amount  string `json:"amount"` // attoFIL
	Cid     string `json:"cid"`
	// Arrived: the money is there. It is not where blocks are made by hand.
	Arrived bool `json:"arrived"`
	// Balance is what the address has now, in attoFIL.
	Balance string `json:"balance"`
}

// Faucet sends play money and waits until it is there, unless blocks are made by
// hand.
func (c *DevnetClient) Faucet(ctx context.Context, to, amount string) (FaucetResult, error) {
	addr, err := address.NewFromString(to)
	if err != nil {
		return FaucetResult{}, rpc.NewError(rpc.CodeBadArgument, "%q is not an address: %w", to, err).
			WithRemedy("use one that `tally wallet ls` prints, such as f1…")
	}
	atto, err := rpc.ParseFIL(amount)
	if err != nil {
		return FaucetResult{}, err
	}
	if atto.Sign() <= 0 {
		return FaucetResult{}, rpc.NewError(rpc.CodeBadArgument, "%s is nothing to send", amount).WithRemedy("use an amount such as 100FIL")
	}
	return faucet(ctx, c.client, addr, atto)
}

func faucet(ctx context.Context, c *lotus.Client, to address.Address, amount big.Int) (FaucetResult, error) {
	params, err := c.Dev().DevParams(ctx)
	if err != nil {
		return FaucetResult{}, err
	}
	id, err := c.Dev().DevFaucet(ctx, to, amount)
	if err != nil {
		return FaucetResult{}, err
	}
	r := FaucetResult{Address: to.String(), Amount: amount.String(), Cid: id.String()}
	if !params.Manual {
		receipt, err := c.Wait(ctx, id, 0)
		if err != nil {
			return r, fmt.Errorf("the faucet's message %s was sent, and is not seen yet: %w", id, err)
		}
		if !receipt.ExitCode.IsSuccess() {
			return r, fmt.Errorf("the faucet's message %s failed: exit %d", id, int64(receipt.ExitCode))
		}
		r.Arrived = true
	}
	balance, err := c.Balance(ctx, to)
	if err != nil {
		return r, err
	}
	r.Balance = balance.String()
	return r, nil
}

// Reorg reverts n blocks and returns the height of the head. Their messages go
// back to the pool, or are lost where drop is set.
func (c *DevnetClient) Reorg(ctx context.Context, n int, drop bool) (int64, error) {
	h, err := c.client.Dev().DevReorg(ctx, n, drop)
	return int64(h), err
}

// FailNext makes the next count messages fail with an exit code.
func (c *DevnetClient) FailNext(ctx context.Context, code int64, count int) error {
	_, err := c.client.Dev().DevFailNext(ctx, exitcode.ExitCode(code), count)
	return err
}

// SetLatency makes each of the chain's own methods wait before it answers.
func (c *DevnetClient) SetLatency(ctx context.Context, d time.Duration) error {
	_, err := c.client.Dev().DevLatency(ctx, d.Nanoseconds())
	return err
}
