package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/testnet"
	"github.com/tallystick/tally/testnet/bench"
)

// realDeps joins the commands to the parts that this build has. It is the only
// place that does.
func realDeps() Deps {
	return systemIO(Deps{
		Version:     host.Version,
		StartNode:   startNode,
		CheckStore:  host.CheckStore,
		StartDevnet: startDevnet,
		DialDevnet:  dialDevnet,
		Demo:        runDemo,
		Benches:     benches(),
		Testnet:     runScenario,
		Scenarios:   testnet.ListScenarios(),
		TestnetUp:   testnetUp,
		Chaos:       chaos,
	})
}

// startNode runs a peer with package host.
func startNode(ctx context.Context, r *repo.Repo, opts StartOptions) (RunningPeer, error) {
	d, err := host.Start(ctx, r, host.StartConfig{Logger: opts.Logger, Dev: opts.Dev, Chain: opts.Chain})
	if err != nil {
		return nil, err
	}
	if len(d.Addrs()) == 0 && len(r.Config().Listen) > 0 {
		return nil, errors.Join(fmt.Errorf("the peer listens nowhere, although listen names %v", r.Config().Listen), d.Close(ctx))
	}
	return d, nil
}

// startDevnet runs a chain with package host.
func startDevnet(ctx context.Context, folder *repo.Devnet, cfg host.DevnetConfig) (RunningDevnet, error) {
	d, err := host.StartDevnet(ctx, folder, cfg)
	if err != nil {
		return nil, err
	}
	return d, nil
}

func dialDevnet(ctx context.Context, dir string) (DevnetControl, error) {
	c, err := host.DialDevnet(ctx, dir)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// runDemo runs the demo of package testnet. Books that differ are a result, and
// the command fails with it after it was shown.
func runDemo(ctx context.Context, opts DemoOptions) (DemoResult, error) {
	mode, err := testnet.ParseMode(opts.Mode)
	if err != nil {
		return DemoResult{}, err
	}
	r, err := testnet.Demo(ctx, testnet.DemoOptions{
		Mode: mode, Messages: opts.Messages, PageSize: opts.PageSize, Logger: opts.Logger,
		Progress: func(p testnet.DemoProgress) {
			if opts.Progress != nil {
				opts.Progress(string(p.Stage), p.Done, p.Total)
			}
		},
	})
	if err != nil && !errors.Is(err, testnet.ErrBooksDiffer) && !errors.Is(err, testnet.ErrChainDiffers) {
		return DemoResult{}, err
	}
	result := DemoResult{
		Messages: r.Messages, Pages: r.Pages, ServerCredit: r.ServerCredit, ClientDebit: r.ClientDebit,
		ChequesSent: int(r.ChequesSent), ChequesAcked: int(r.ChequesAcked), BooksAgree: r.BooksAgree,
		Mode: r.Mode, Elapsed: float64(r.ElapsedMS) / 1000, Client: demoSide(r.Client), Server: demoSide(r.Server),
		Channel: r.Channel, VoucherTotal: r.VoucherTotal, PayeeBalanceBefore: r.PayeeBalanceBefore, PayeeBalanceAfter: r.PayeeBalanceAfter,
	}
	if r.Hard() {
		result.ChainPaid = &r.ChainPaid
	}
	return result, nil
}

func demoSide(s testnet.DemoSide) DemoSide {
	side := DemoSide{Peer: s.Peer, Balance: s.Balance, Served: s.Served, Consumed: s.Consumed, Paid: s.Paid, Received: s.Received}
	if c := s.LastCheque; c != nil {
		side.LastCheque = &rpc.LastCheque{Serial: c.Serial, Cumulative: c.Cumulative, State: c.State}
	}
	return side
}

// runScenario runs a scenario of package testnet.
func runScenario(ctx context.Context, opts TestnetOptions) (TestnetResult, error) {
	r, err := testnet.RunScenario(ctx, opts.Scenario, testnet.Options{
		Peers: opts.Peers, Hard: opts.Hard, Logger: opts.Logger,
		Progress: func(p testnet.ScenarioProgress) {
			if opts.Progress != nil {
				opts.Progress(p.Statement, p.Done, p.Total)
			}
		},
	})
	if err != nil {
		return TestnetResult{}, err
	}
	result := TestnetResult{
		Scenario: r.Scenario, Passed: r.Passed, Failed: r.Failed, Elapsed: float64(r.ElapsedMS) / 1000,
		Checks: make([]TestnetCheck, len(r.Checks)),
	}
	for i, c := range r.Checks {
		result.Checks[i] = TestnetCheck{Name: c.Name, Passed: c.Passed, Detail: c.Detail}
	}
	return result, nil
}

// testnetUp runs a network of processes until ctx ends.
func testnetUp(ctx context.Context, opts UpOptions) (err error) {
	c, err := testnet.StartCluster(ctx, testnet.ClusterConfig{Dir: opts.Dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	names := make([]string, opts.Peers)
	for i := range names {
		names[i] = fmt.Sprintf("p%d", i+1)
	}
	if err := c.AddMany(ctx, names); err != nil {
		return err
	}
	result := UpResult{Ready: true, Dir: c.Dir(), Devnet: c.Chain(), Peers: make([]UpPeer, len(names))}
	for i, name := range names {
		m, err := c.Member(name)
		if err != nil {
			return err
		}
		result.Peers[i] = UpPeer{Name: name, PeerID: m.ID, Addrs: []string{m.Addr}, Repo: m.Repo(), Payout: m.Payout, PID: m.PID()}
	}
	if err := opts.Ready(result); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// chaos kills peers with package testnet.
func chaos(ctx context.Context, opts ChaosOptions) (ChaosResult, error) {
	r, err := testnet.Chaos(ctx, testnet.ChaosOptions{Kills: opts.Kills, Peers: opts.Peers, Seed: opts.Seed, Progress: opts.Progress})
	return &r, err
}

// benchChildArg is the hidden first argument of the processes that the bench
// recover starts in order to kill them.
const benchChildArg = "__bench-child"

// benchChild is such a process.
func benchChild(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if err := bench.Child(ctx, args, stdout); err != nil {
		_, _ = fmt.Fprintln(stderr, "error:", err)
		return exitFailed
	}
	return exitDone
}

// benches lists what package bench measures.
func benches() []Bench {
	var list []Bench
	for _, b := range bench.List() {
		list = append(list, Bench{Name: b.Name, Short: b.Short, Run: func(ctx context.Context, opts BenchOptions) ([]BenchResult, error) {
			figures, err := bench.Run(ctx, b.Name, bench.Options{
				Duration: opts.Duration, Child: []string{benchChildArg},
				Progress: func(stage string) {
					if opts.Progress != nil {
						opts.Progress(stage, 0, 0)
					}
				},
			})
			if err != nil {
				return nil, err
			}
			return benchResults(figures)
		}})
	}
	return list
}

// benchResults keeps every key of a figure: those that the table does not know
// travel as extras.
func benchResults(figures []bench.Figure) ([]BenchResult, error) {
	out := make([]BenchResult, len(figures))
	for i, f := range figures {
		data, err := json.Marshal(f)
		if err != nil {
			return nil, err
		}
		extra := make(map[string]any)
		if err := json.Unmarshal(data, &extra); err != nil {
			return nil, err
		}
		for _, key := range []string{"name", "figure", "unit", "limit", "ratio"} {
			delete(extra, key)
		}
		out[i] = BenchResult{Name: f.Name, Figure: f.Figure, Unit: f.Unit, Limit: f.Limit, Ratio: f.Ratio, Extra: extra}
	}
	return out, nil
}
