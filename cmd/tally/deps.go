package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/mattn/go-isatty"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
)

// Deps is all that the commands need of the rest of the program. A nil function
// is a part that this build has not; its command says so.
type Deps struct {
	// Version is what `tally version` prints.
	Version string
	// StartNode makes a peer of an open repo, listening and ready. Its settings
	// are those of r.Config(), flags included. ctx bounds the start alone: the
	// peer lives until Close.
	StartNode func(ctx context.Context, r *repo.Repo, opts StartOptions) (RunningPeer, error)
	// CheckStore reads through the datastore of a repo whose lock is free and
	// reports damage. `tally doctor` calls it.
	CheckStore func(ctx context.Context, dir string) error
	// StartDevnet runs the embedded chain of an open folder, which stays the
	// caller's; DialDevnet finds a running one.
	StartDevnet func(ctx context.Context, folder *repo.Devnet, cfg host.DevnetConfig) (RunningDevnet, error)
	DialDevnet  func(ctx context.Context, dir string) (DevnetControl, error)
	// Demo runs two peers and shows both books.
	// Books that differ are a result, not an error.
	Demo func(ctx context.Context, opts DemoOptions) (DemoResult, error)
	// Benches in the order in which they are listed.
	Benches []Bench
	// Testnet runs a scenario; Scenarios are the names that ship.
	Testnet   func(ctx context.Context, opts TestnetOptions) (TestnetResult, error)
	Scenarios []string
	// TestnetUp runs a network of processes until ctx ends, and Chaos one that it
	// kills.
	TestnetUp func(ctx context.Context, opts UpOptions) error
	Chaos     func(ctx context.Context, opts ChaosOptions) (ChaosResult, error)

	// Stdout and Stderr; OutTerminal and ErrTerminal say whether they are
	// terminals.
	Stdout, Stderr           io.Writer
	OutTerminal, ErrTerminal bool
}

// systemIO fills the streams of the process.
func systemIO(d Deps) Deps {
	d.Stdout, d.Stderr = os.Stdout, os.Stderr
	d.OutTerminal, d.ErrTerminal = isatty.IsTerminal(os.Stdout.Fd()), isatty.IsTerminal(os.Stderr.Fd())
	return d
}

// StartOptions is what a peer is told beside its repo.
type StartOptions struct {
	Logger *slog.Logger
	// Dev is set for a throw-away peer with a chain of its own.
	Dev bool
	// Chain is the node of the chain; without URL there is none.
	Chain repo.ChainNode
}

// RunningPeer is a peer that listens. The command adds what belongs to the
// process: version, settings and shutdown.
type RunningPeer interface {
	rpc.Peer
	// Addrs are the listen addresses, each ending in /p2p/<peer id>.
	Addrs() []string
	// Close ends the peer: everything is on disk when it returns nil. ctx
	// bounds the farewell to peers, never the writing.
	Close(ctx context.Context) error
}

// RunningDevnet is a chain that answers.
type RunningDevnet interface {
	Info() host.DevnetInfo
	Failed() <-chan error
	// Close ends the chain; ctx bounds the farewell to callers.
	Close(ctx context.Context) error
}

// DevnetControl drives a running devnet.
type DevnetControl interface {
	// Mine and Reorg return the height of the head after them.
	Mine(ctx context.Context, n int) (int64, error)
	Reorg(ctx context.Context, n int, drop bool) (int64, error)
	Faucet(ctx context.Context, to, amount string) (host.FaucetResult, error)
	FailNext(ctx context.Context, code int64, count int) error
	SetLatency(ctx context.Context, d time.Duration) error
	Close() error
}

// Failing is what a RunningPeer may also be: one that can fail on its own, for
// example when the disk is full. The channel gives the cause once.
type Failing interface{ Failed() <-chan error }

// Progress is called while something long runs; it must return soon.
type Progress func(stage string, done, total int)

// DemoOptions is what `tally demo` was told.
type DemoOptions struct {
	// Mode is soft, mock or hard.
	Mode string
	// Messages is the path of the file that goes into the server's store, as
	// for `tally store import`; empty is the sample that ships.
	Messages string
	// PageSize is the most messages of one page.
	PageSize int
	Progress Progress
	Logger   *slog.Logger
}

// DemoResult is what two books say afterwards. All counts are of units ever.
type DemoResult struct {
	Messages     int    `json:"messages"`
	Pages        int    `json:"pages"`
	ServerCredit uint64 `json:"server_credit"`
	ClientDebit  uint64 `json:"client_debit"`
	ChequesSent  int    `json:"cheques_sent"`
	ChequesAcked int    `json:"cheques_acked"`
	// BooksAgree: each side's balance is the negative of the other's, and
	// totals and cheques match.
	BooksAgree bool   `json:"books_agree"`
	Mode       string `json:"mode"`
	// Elapsed is in seconds.
	Elapsed float64 `json:"elapsed"`
	// Client consumes and Server serves; their balances are negatives of each
	// other.
	Client DemoSide `json:"client"`
	Server DemoSide `json:"server"`
	// Of mode hard, amounts in attoFIL as decimal text; left out in other modes.
	Channel            string `json:"channel,omitempty"`
	VoucherTotal       string `json:"voucher_total,omitempty"`
	PayeeBalanceBefore string `json:"payee_balance_before,omitempty"`
	PayeeBalanceAfter  string `json:"payee_balance_after,omitempty"`
	// ChainPaid: the payee's balance rose by exactly what the voucher says.
	ChainPaid *bool `json:"chain_paid,omitempty"`
}

// DemoSide is the tab as one side has it.
type DemoSide struct {
	Peer     string `json:"peer"`
	Balance  int64  `json:"balance"`
	Served   uint64 `json:"served"`
	Consumed uint64 `json:"consumed"`
	// Paid and Received are the sums of cheques sent and received.
	Paid     uint64 `json:"paid"`
	Received uint64 `json:"received"`
	// LastCheque is null where there was none.
	LastCheque *rpc.LastCheque `json:"last_cheque"`
}

// Bench is one measurement.
type Bench struct {
	Name, Short string
	Run         func(ctx context.Context, opts BenchOptions) ([]BenchResult, error)
}

// BenchOptions is what `tally bench` was told.
type BenchOptions struct {
	// Duration is how long each figure is measured.
	Duration time.Duration
	Progress Progress
}

// BenchResult is one figure beside the limit of the same machine in the same
// run.
type BenchResult struct {
	Name   string
	Figure float64
	Unit   string
	// Limit is in the same unit, and Ratio is figure over limit; both 0 where
	// the bench has no limit to compare with.
	Limit, Ratio float64
	// Extra holds further keys such as p50.
	Extra map[string]any
}

// MarshalJSON writes the fixed keys first, then those of Extra in order.
func (r BenchResult) MarshalJSON() ([]byte, error) {
	out := []byte{'{'}
	add := func(key string, v any) error {
		data, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("bench %s: %s: %w", r.Name, key, err)
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		name, _ := json.Marshal(key)
		out = append(append(append(out, name...), ':'), data...)
		return nil
	}
	for _, kv := range []struct {
		key string
		v   any
	}{{"name", r.Name}, {"figure", r.Figure}, {"unit", r.Unit}, {"limit", r.Limit}, {"ratio", r.Ratio}} {
		if err := add(kv.key, kv.v); err != nil {
			return nil, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.Extra)) {
		if err := add(key, r.Extra[key]); err != nil {
			return nil, err
		}
	}
	return append(out, '}'), nil
}

// TestnetOptions is what `tally testnet run` was told.
type TestnetOptions struct {
	// Scenario is a name that ships or the path of a file.
	Scenario string
	// Peers are live peers, by the name that the scenario gives them: the repo
	// of each. Empty: peers in this process.
	Peers map[string]string
	// Hard: peers in processes of their own, in mode hard on a chain.
	Hard     bool
	Progress Progress
	Logger   *slog.Logger
}

// TestnetResult is what the checks of a scenario said.
type TestnetResult struct {
	Scenario string         `json:"scenario"`
	Passed   int            `json:"passed"`
	Failed   int            `json:"failed"`
	Elapsed  float64        `json:"elapsed"`
	Checks   []TestnetCheck `json:"checks"`
}

// TestnetCheck is one named check.
type TestnetCheck struct {
	Name   string `json:"name"`
	Passed bool   `json:"passed"`
	Detail string `json:"detail"`
}

// UpOptions is what `tally testnet up` was told.
type UpOptions struct {
	Peers    int
	Dir      string
	Progress Progress
	// Ready is called once, when all can be used.
	Ready func(UpResult) error
}

// UpResult is a network of processes that runs.
type UpResult struct {
	Ready  bool            `json:"ready"`
	Dir    string          `json:"dir"`
	Devnet host.DevnetInfo `json:"devnet"`
	Peers  []UpPeer        `json:"peers"`
}

// UpPeer is one peer of it.
type UpPeer struct {
	Name   string   `json:"name"`
	PeerID string   `json:"peer_id"`
	Addrs  []string `json:"addrs"`
	Repo   string   `json:"repo"`
	Payout string   `json:"payout"`
	PID    int      `json:"pid"`
}

// ChaosOptions is what `tally testnet chaos` was told.
type ChaosOptions struct {
	Kills, Peers int
	Seed         uint64
	Progress     Progress
}

// ChaosResult is what came of it. As JSON it is an object.
type ChaosResult interface {
	// Write prints it; its last line is "N lost, N double".
	Write(w io.Writer) error
	// Clean reports whether nothing is lost or doubled and every check passed.
	Clean() bool
}
