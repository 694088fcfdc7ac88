package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
)

// manualBlocks is the word for a block time without an end.
const manualBlocks = "manual"

type devnetFlags struct {
	host.DevnetConfig
	blockTime string
	verbose   bool
}

func (a *app) devnetCmd() *cobra.Command {
	var flags devnetFlags
	cmd := &cobra.Command{
		Use:   "devnet",
		Short: "Run a chain of play money on this machine",
		Long: `Runs an embedded Filecoin chain with accounts, payment channels and a faucet, for
trying things out in seconds. It answers under Lotus' names on loopback, so that a
peer speaks to it as to a real node.

The chain lives in a folder of its own, --repo or TALLY_PATH, default
~/.tally-devnet; it is made where it is missing, and a peer's repo is refused.
There <repo>/api and <repo>/token say how to reach it. Stopped or killed, it goes
on where it was, at the same address and with the same token. Network, settle
delay and finality belong to a chain for life; the other flags are for this run.

When ready it prints one line; with -o json: {"ready":true,"rpc":…,"network":…,
"genesis":…,"token_file":…,…}. SIGTERM stops it within 5 seconds.

The commands below drive one that runs, also that of ` + "`tally start --dev`" + ` by
the name of the peer's repo.`,
		Example: `  tally devnet
  tally devnet --repo net --block-time 200ms --settle-delay 30
  tally start --repo alice --chain http://127.0.0.1:PORT/rpc/v1 --chain-token-file net/token
  tally devnet faucet f1… 100FIL --repo net`,
		Args: cobra.ArbitraryArgs, // group names an unknown command better
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return group(cmd, args)
			}
			return a.devnet(cmd, flags)
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.RPC, "rpc", "", "HOST:PORT with a loopback host (default where it was last, at first a free port)")
	f.StringVar(&flags.blockTime, "block-time", "1s", "time between two blocks, or "+manualBlocks+": only `tally devnet mine` makes them")
	f.Int64Var(&flags.SettleDelay, "settle-delay", 0, "epochs that a channel settles (default 1440, as Filecoin)")
	f.Int64Var(&flags.Finality, "finality", 0, "epochs after which a block is final (default 10)")
	f.Uint64Var(&flags.BaseFee, "base-fee", 0, "attoFIL that a unit of gas costs")
	f.StringVar(&flags.Network, "network", "", "name of the chain (default tally-devnet)")
	f.DurationVar(&flags.Latency, "latency", 0, "time that the node waits before each answer")
	f.BoolVarP(&flags.verbose, "verbose", "v", false, "log each call to standard error")
	cmd.AddCommand(a.devnetMineCmd(), a.devnetFaucetCmd(), a.devnetReorgCmd(), a.devnetFailCmd(), a.devnetLatencyCmd())
	return cmd
}

// config checks the flags.
func (f devnetFlags) config() (host.DevnetConfig, error) {
	c := f.DevnetConfig
	c.BlockTime = host.ManualBlocks
	if f.blockTime != manualBlocks {
		var err error
		if c.BlockTime, err = time.ParseDuration(f.blockTime); err != nil || c.BlockTime <= 0 {
			return c, usagef("use a time such as 200ms, or "+manualBlocks, "--block-time %q is not a time above 0", f.blockTime)
		}
	}
	if c.SettleDelay < 0 || c.Finality < 0 || c.Latency < 0 {
		return c, usagef("use 0 for the default", "--settle-delay, --finality and --latency must not be below 0")
	}
	if c.RPC != "" && (c.RPC == rpc.ListenUnix || rpc.CheckListen(c.RPC) != nil) {
		return c, usagef("use 127.0.0.1:PORT", "--rpc %q is not HOST:PORT with a loopback host", c.RPC)
	}
	return c, nil
}

// devnetReady is what devnet prints when the chain can be used.
type devnetReady struct {
	Ready bool `json:"ready"`
	host.DevnetInfo
}

func (a *app) devnet(cmd *cobra.Command, flags devnetFlags) (err error) {
	config, err := flags.config()
	if err != nil {
		return err
	}
	if a.deps.StartDevnet == nil {
		return failf("use a complete build", "this build has no devnet")
	}
	dir, err := repo.DevnetPath(a.repoFlag)
	if err != nil {
		return err
	}
	folder, err := repo.OpenDevnet(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, folder.Close()) }()
	level := slog.LevelInfo
	if flags.verbose {
		level = slog.LevelDebug
	}
	config.Logger = slog.New(slog.NewTextHandler(a.deps.Stderr, &slog.HandlerOptions{Level: level}))
	d, err := a.deps.StartDevnet(cmd.Context(), folder, config)
	if err != nil {
		return err
	}
	if err = a.announceDevnet(d.Info()); err == nil {
		select {
		case <-cmd.Context().Done():
			config.Logger.Info("stopping")
		case err = <-d.Failed():
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin/2)
	defer cancel()
	return errors.Join(err, d.Close(ctx))
}

func (a *app) announceDevnet(info host.DevnetInfo) error {
	if a.out.format != formatTable {
		return a.out.json(devnetReady{true, info}, "")
	}
	_, err := fmt.Fprintf(a.out.w, "ready: %s at height %d, a block each %s, rpc %s, token in %s\n",
		printable(info.Network), info.Height, info.BlockTime, info.RPC, printable(info.TokenFile))
	return err
}

// driveDevnet calls the running devnet once.
func driveDevnet[T any](ctx context.Context, a *app, fn func(context.Context, DevnetControl) (T, error)) (T, error) {
	var zero T
	if a.deps.DialDevnet == nil {
		return zero, failf("use a complete build", "this build has no devnet")
	}
	dir, err := repo.FindDevnet(a.repoFlag)
	if err != nil {
		return zero, err
	}
	c, err := a.deps.DialDevnet(ctx, dir)
	var known *repo.Error
	switch {
	case errors.Is(err, repo.ErrNotRunning), errors.Is(err, repo.ErrNoRepo):
		remedy := "tally devnet --repo " + dir
		if errors.As(err, &known) {
			remedy = known.Remedy()
		}
		return zero, &cliError{exitNoDaemon, err, remedy}
	case err != nil:
		return zero, err
	}
	v, err := fn(ctx, c)
	return v, errors.Join(err, c.Close())
}

// heightResult is what a command says that moves the head.
type heightResult struct {
	Height int64 `json:"height"`
}

func (a *app) printHeight(h int64, err error) error {
	if err != nil {
		return err
	}
	return a.out.one(heightResult{h}, func() *table { return newCard().add("height", h) })
}

// count reads a number of blocks or messages.
func count(name, text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, usagef("use a whole number of at least 1", "%s %q is not a number above 0", name, text)
	}
	return n, nil
}

func (a *app) devnetMineCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "mine [N]",
		Short: "Make blocks now",
		Long: `Makes N blocks, default 1, whatever the block time. As on Filecoin the effect of a
message is seen in the block after the one that has it: two blocks after it was
sent.`,
		Example: "  tally devnet mine\n  tally devnet mine 1440",
		Args:    nArgs(0, "N"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n := 1
			if len(args) > 0 {
				var err error
				if n, err = count("N", args[0]); err != nil {
					return err
				}
			}
			return a.printHeight(driveDevnet(cmd.Context(), a, func(ctx context.Context, c DevnetControl) (int64, error) { return c.Mine(ctx, n) }))
		},
	}
}

func (a *app) devnetFaucetCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "faucet ADDRESS AMOUNT",
		Short: "Send play money to an address",
		Long: `Sends AMOUNT to ADDRESS and waits until it is there. Where blocks are made by hand
it does not wait: two blocks bring the money. AMOUNT is a number with a unit such
as 100FIL, or a whole number of attoFIL.`,
		Example: "  tally devnet faucet f1… 100FIL\n  tally devnet faucet f1… 0.5FIL -o json",
		Args:    nArgs(2, "ADDRESS", "AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := driveDevnet(cmd.Context(), a, func(ctx context.Context, c DevnetControl) (host.FaucetResult, error) {
				return c.Faucet(ctx, args[0], args[1])
			})
			if err != nil {
				return err
			}
			return a.out.one(r, func() *table {
				card := newCard().add("address", r.Address).add("sent", rpc.FormatFIL(r.Amount)).add("message", r.Cid).add("balance", rpc.FormatFIL(r.Balance))
				if !r.Arrived {
					card.add("next", "tally devnet mine 2")
				}
				return card
			})
		},
	}
}

func (a *app) devnetReorgCmd() *cobra.Command {
	var drop bool
	cmd := &cobra.Command{
		Use:   "reorg N",
		Short: "Take the newest blocks back",
		Long: `Reverts the N newest blocks, as a reorganisation of the chain does. Their messages
go back to the pool and are mined again, unless --drop loses them.`,
		Example: "  tally devnet reorg 3\n  tally devnet reorg 1 --drop",
		Args:    nArgs(1, "N"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := count("N", args[0])
			if err != nil {
				return err
			}
			return a.printHeight(driveDevnet(cmd.Context(), a, func(ctx context.Context, c DevnetControl) (int64, error) { return c.Reorg(ctx, n, drop) }))
		},
	}
	cmd.Flags().BoolVar(&drop, "drop", false, "forget the messages of the reverted blocks")
	return cmd
}

func (a *app) devnetFailCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "fail-next CODE [COUNT]",
		Short: "Make the next messages fail",
		Long: `Makes the next COUNT messages, default 1, fail with exit code CODE when they are
mined, as if their actor had refused them. The faucet's are not concerned; COUNT 0
takes it back, and so does a restart. Codes that channels give: 16 illegal argument,
18 forbidden, 20 illegal state, 32 channel is settled.`,
		Example: "  tally devnet fail-next 16\n  tally devnet fail-next 6 3",
		Args:    nArgs(1, "CODE", "COUNT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			result := struct {
				Code  int64 `json:"exit_code"`
				Count int   `json:"count"`
			}{Count: 1}
			var err error
			if result.Code, err = strconv.ParseInt(args[0], 10, 32); err != nil || result.Code < 1 {
				return usagef("use an exit code such as 16", "CODE %q is not a number above 0", args[0])
			}
			if len(args) > 1 {
				if result.Count, err = strconv.Atoi(args[1]); err != nil || result.Count < 0 {
					return usagef("use a whole number of at least 0", "COUNT %q is not a number of messages", args[1])
				}
			}
			_, err = driveDevnet(cmd.Context(), a, func(ctx context.Context, c DevnetControl) (struct{}, error) {
				return struct{}{}, c.FailNext(ctx, result.Code, result.Count)
			})
			if err != nil {
				return err
			}
			return a.out.one(result, func() *table { return newCard().add("exit code", result.Code).add("messages", result.Count) })
		},
	}
}

func (a *app) devnetLatencyCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "latency TIME",
		Short: "Make the node slow, or fast again",
		Long: `Makes the node wait TIME before each answer, as a node far away does; 0 makes it
fast again. The commands of ` + "`tally devnet`" + ` are not concerned.`,
		Example: "  tally devnet latency 800ms\n  tally devnet latency 0",
		Args:    nArgs(1, "TIME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := time.ParseDuration(args[0])
			if err != nil || d < 0 {
				return usagef("use a time such as 800ms, or 0", "%q is not a time", args[0])
			}
			_, err = driveDevnet(cmd.Context(), a, func(ctx context.Context, c DevnetControl) (struct{}, error) {
				return struct{}{}, c.SetLatency(ctx, d)
			})
			if err != nil {
				return err
			}
			return a.out.one(struct {
				Latency string `json:"latency"`
			}{d.String()}, func() *table { return newCard().add("latency", d) })
		},
	}
}
