package main

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) testnetCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "testnet",
		Short: "Run local networks of peers: through scenarios, through kills, or to try things out",
		Long: `Runs networks of peers on this machine, on loopback only: through a scenario with
named checks, through kills at random moments, or until you have seen enough.`,
		Example: "  tally testnet run tab\n  tally testnet up -n 3\n  tally testnet chaos --kills 50",
		RunE:    group,
	}
	cmd.AddCommand(a.testnetRunCmd(), a.testnetUpCmd(), a.testnetChaosCmd())
	return cmd
}

// maxUp bounds the peers of a network of processes.
const maxUp = 64

func (a *app) testnetUpCmd() *cobra.Command {
	var opts UpOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a chain and peers as processes until interrupted",
		Long: `Starts a chain of play money and a number of peers, each a process of this very
program with a repo of its own below --dir, all on 127.0.0.1. Every peer has money
in its wallet and settles in mode hard; none is connected yet. When all can be
used it prints them; with -o json one line:
{"ready":true,"dir":…,"devnet":{…},"peers":[{"name","peer_id","addrs","repo","payout","pid"},…]}.

SIGINT or SIGTERM stops all of them. Without --dir their repos go with them; with
it, another up of the same folder goes on with the same peers and the same chain.`,
		Example: `  tally testnet up -n 3 --dir /tmp/net
  tally --repo /tmp/net/p2 store import messages.ndjson
  tally --repo /tmp/net/p1 store query /ip4/127.0.0.1/tcp/PORT/p2p/12D3KooW…
  tally devnet mine 400 --repo /tmp/net/net`,
		Args: nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.Peers < 1 || opts.Peers > maxUp {
				return usagef(fmt.Sprintf("use -n 1 to %d", maxUp), "%d peers are out of bounds", opts.Peers)
			}
			if a.deps.TestnetUp == nil {
				return failf("use a complete build", "this build has no test network")
			}
			show, end := a.progress()
			opts.Progress = show
			opts.Ready = func(r UpResult) error {
				end()
				return a.announceUp(r)
			}
			return a.deps.TestnetUp(cmd.Context(), opts)
		},
	}
	cmd.Flags().IntVarP(&opts.Peers, "peers", "n", 3, "number of peers")
	cmd.Flags().StringVar(&opts.Dir, "dir", "", "folder for the repos (default a temporary one)")
	return cmd
}

func (a *app) announceUp(r UpResult) error {
	if a.out.format != formatTable {
		return a.out.json(r, "")
	}
	t := newTable("NAME", "PEER", "ADDRESS", "REPO", "PAYOUT", ">PID")
	for _, p := range r.Peers {
		t.add(p.Name, p.PeerID, strings.Join(p.Addrs, " "), p.Repo, p.Payout, strconv.Itoa(p.PID))
	}
	if err := t.write(a.out.w); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.out.w, "chain %s at %s, repo %s\nready; tally --repo REPO … talks to a peer, interrupt stops all\n",
		printable(r.Devnet.Network), r.Devnet.RPC, printable(filepath.Join(r.Dir, "net")))
	return err
}

func (a *app) testnetChaosCmd() *cobra.Command {
	var opts ChaosOptions
	cmd := &cobra.Command{
		Use:   "chaos",
		Short: "Kill peers at random while they serve and pay, then count the money",
		Long: `Starts a chain and peers as processes, lets them query, settle and cash out at
random, and kills one after the other with SIGKILL, now and then the chain. At the
end all come to rest, every channel is settled and collected, and it is checked
that the two books of each tab agree, that no payment that was ever acked is gone,
that none counts twice, and that the chain paid what the books say, to the
attoFIL. The last line is "N lost, N double"; it exits with 0 only if both are 0
and every check passed.

--seed repeats the plan of kills and calls, not what the processes make of it.`,
		Example: "  tally testnet chaos --kills 200\n  tally testnet chaos --kills 20 --peers 3 --seed 7 -o json",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case opts.Peers < 2 || opts.Peers > maxUp:
				return usagef(fmt.Sprintf("use --peers 2 to %d", maxUp), "%d peers are out of bounds", opts.Peers)
			case opts.Kills < 1:
				return usagef("use --kills 1 or more", "%d kills are none", opts.Kills)
			case a.deps.Chaos == nil:
				return failf("use a complete build", "this build has no test network")
			}
			if !cmd.Flags().Changed("seed") {
				var seed [4]byte // short enough to be typed again
				_, _ = rand.Read(seed[:])
				opts.Seed = uint64(binary.BigEndian.Uint32(seed[:]))
			}
			show, end := a.progress()
			opts.Progress = show
			result, err := a.deps.Chaos(cmd.Context(), opts)
			end()
			if err != nil {
				return err
			}
			if a.out.format == formatTable {
				err = result.Write(a.out.w)
			} else {
				err = a.out.one(result, nil)
			}
			if err == nil && !result.Clean() {
				err = errors.New("the books or the chain do not hold what they should")
			}
			return err
		},
	}
	cmd.Flags().IntVar(&opts.Kills, "kills", 20, "how often a process is killed")
	cmd.Flags().IntVar(&opts.Peers, "peers", 5, "number of peers")
	cmd.Flags().Uint64Var(&opts.Seed, "seed", 0, "of the plan (default a new one, which is printed)")
	return cmd
}

func (a *app) testnetRunCmd() *cobra.Command {
	var verbose, hard bool
	var peers map[string]string
	long := `Runs a scenario and prints its checks; the last line is "N passed, N failed". It
exits with 0 only if none failed. SCENARIO is a file or a name that ships`
	if len(a.deps.Scenarios) > 0 {
		long += ":\n\n  " + strings.Join(a.deps.Scenarios, ", ")
	}
	cmd := &cobra.Command{
		Use:   "run SCENARIO",
		Short: "Run a scenario and its checks",
		Long: long + `.

Peers run in this process and settle with signed cheques. With --hard each one is a
process of its own that settles in mode hard on a chain of play money: the same
checks then are about money. A scenario with the line "mode hard" always runs so,
one with "mode mock" on processes without a chain, as those about payment sockets do;
one that stops a peer at each write (crash) or reads what only the process itself
knows (flood) cannot.`,
		Example:   "  tally testnet run threshold\n  tally testnet run tab --hard\n  tally testnet run ./mine.txt -o json",
		Args:      nArgs(1, "SCENARIO"),
		ValidArgs: a.deps.Scenarios,
		RunE: func(cmd *cobra.Command, args []string) error {
			if hard && len(peers) > 0 {
				return usagef("leave out one of the two", "--peer names peers that run, --hard starts some")
			}
			if a.deps.Testnet == nil {
				return failf("use a complete build", "this build has no test network")
			}
			logger := slog.New(slog.DiscardHandler)
			if verbose {
				logger = slog.New(slog.NewTextHandler(a.deps.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
			}
			show, end := a.progress()
			result, err := a.deps.Testnet(cmd.Context(), TestnetOptions{Scenario: args[0], Peers: peers, Hard: hard, Progress: show, Logger: logger})
			end()
			if err != nil {
				return err
			}
			if result.Checks == nil {
				result.Checks = []TestnetCheck{}
			}
			if err := a.printTestnet(result); err != nil {
				return err
			}
			if result.Failed > 0 {
				return fmt.Errorf("%d checks of %s failed", result.Failed, result.Scenario)
			}
			return nil
		},
	}
	cmd.Flags().StringToStringVar(&peers, "peer", nil, "NAME=REPO of a running peer to use instead of one of our own; may be repeated")
	cmd.Flags().BoolVar(&hard, "hard", false, "peers as processes, in mode hard on a chain")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "log what the peers do to standard error")
	return cmd
}

func (a *app) printTestnet(r TestnetResult) error {
	if a.out.format != formatTable {
		return a.out.one(r, nil)
	}
	t := newTable("CHECK", "RESULT", "DETAIL")
	for _, c := range r.Checks {
		word := "FAILED"
		if c.Passed {
			word = "passed"
		}
		t.add(c.Name, word, c.Detail)
	}
	if err := t.write(a.out.w); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.out.w, "%d passed, %d failed\n", r.Passed, r.Failed)
	return err
}
