package host

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/devnet"
	"github.com/tallystick/tally/paych/lotus"
	"github.com/tallystick/tally/paych/wallet"
	"github.com/tallystick/tally/swap"
)

// testChain is a devnet in a folder, with blocks by hand.
type testChain struct {
	t      testing.TB
	dir    string
	folder *repo.Devnet
	dev    *Devnet
}

func startNet(t testing.TB, dir string) *testChain {
	t.Helper()
	folder, err := repo.OpenDevnet(dir)
	if err != nil {
		t.Fatal(err)
	}
	d, err := StartDevnet(context.Background(), folder, DevnetConfig{BlockTime: ManualBlocks, SettleDelay: 20, Finality: 2, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(errors.Join(err, folder.Close()))
	}
	return &testChain{t, dir, folder, d}
}

func (n *testChain) stop() {
	n.t.Helper()
	if err := errors.Join(n.dev.Close(context.Background()), n.folder.Close()); err != nil {
		n.t.Error(err)
	}
}

func (n *testChain) node() repo.ChainNode {
	return repo.ChainNode{URL: n.dev.Info().RPC, Token: lotus.Token(n.folder.Token().Reveal()), From: "chain"}
}

// on starts a peer on a chain.
func on(t testing.TB, dir string, node repo.ChainNode, change ...func(*repo.Config)) (*Daemon, func(), error) {
	t.Helper()
	r, err := repo.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	cfg := r.Config()
	cfg.Listen, cfg.HTTP = []string{"/ip4/127.0.0.1/tcp/0"}, "127.0.0.1:0"
	for _, f := range change {
		f(&cfg)
	}
	if err := r.SetConfig(cfg); err != nil {
		t.Fatal(err)
	}
	d, err := Start(context.Background(), r, StartConfig{Logger: slog.New(slog.DiscardHandler), Chain: node})
	if err != nil {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		return nil, nil, err
	}
	return d, func() {
		if err := errors.Join(d.Close(context.Background()), r.Close()); err != nil {
			t.Error(err)
		}
	}, nil
}

func check(t testing.TB, d *Daemon, name string) rpc.Check {
	t.Helper()
	st, err := d.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range st.Checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check %s", name)
	return rpc.Check{}
}

// eventually waits for something that another goroutine does.
func eventually(t testing.TB, what string, fn func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 6000 {
		if fn() {
			return
		}
		<-tick.C
	}
	t.Fatal(what + ": not in time")
}

// A peer meets its chain once; later it starts without the node, waits for it,
// and goes on with the channel that it was creating.
func TestChainAwayAtStart(t *testing.T) {
	ctx := t.Context()
	n := startNet(t, filepath.Join(t.TempDir(), "net"))
	dir := newRepo(t)
	d, stop, err := on(t, dir, n.node())
	if err != nil {
		t.Fatal(err)
	}
	ch, err := d.Channels()
	if err != nil {
		t.Fatal(err)
	}
	payout := d.chain.facts.Payout
	if k := check(t, d, "wallet"); k.State != rpc.CheckWarn || k.Next != "tally devnet faucet "+payout.String()+" 100FIL" {
		t.Errorf("an empty wallet: %+v", k)
	}
	to, err := wallet.NewMem().New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for a, amount := range map[address.Address]int64{payout: 5e18, to: 1} { // a payee has an account
		if _, err := n.dev.chain.Faucet(ctx, a, big.NewInt(amount)); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.dev.chain.Mine(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if k := check(t, d, "wallet"); k.State != rpc.CheckOK || !strings.Contains(k.Detail, "5 FIL") {
		t.Errorf("a funded wallet: %+v", k)
	}
	id, err := ch.Manager.PaychCreate(ctx, payout, to, big.NewInt(1e18))
	if err != nil {
		t.Fatal(err)
	}
	text := metrics(d)
	for _, want := range []string{
		`tally_channels{phase="creating"} 1`, "tally_chain_messages_pending 1", "tally_chain_height 2", "tally_wallet_balance_fil 5", "tally_vouchers 0",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in /metrics", want)
		}
	}
	if strings.Contains(text, payout.String()) {
		t.Error("/metrics names an address")
	}
	stop()
	n.stop()

	d, stop, err = on(t, dir, n.node())
	if err != nil {
		t.Fatalf("start without the node: %v", err)
	}
	defer func() { stop() }()
	if d.chain.facts.Payout != payout {
		t.Error("another payout address")
	}
	if k := check(t, d, "chain"); k.State != rpc.CheckFail || k.Next == "" {
		t.Errorf("without the node: %+v", k)
	}
	if k := check(t, d, "messages"); !strings.HasPrefix(k.Detail, "1 ") {
		t.Errorf("without the node: %+v", k)
	}
	if ch, err = d.Channels(); err != nil {
		t.Fatal(err)
	}
	if _, err := ch.Chain.Head(ctx); !errors.Is(err, ErrChainAway) {
		t.Errorf("head without the node: %v", err)
	}

	n = startNet(t, n.dir)
	defer n.stop()
	eventually(t, "chain reached", func() bool { return check(t, d, "chain").State == rpc.CheckOK })
	eventually(t, "channel open", func() bool {
		if err := n.dev.chain.Mine(ctx, 1); err != nil {
			t.Fatal(err)
		}
		m, err := ch.Manager.PaychStatusByMsg(ctx, id)
		return err == nil && m.Phase == paych.PhaseOpen
	})
	// With a channel there, the peer does not start without a chain.
	stop()
	_, _, err = on(t, dir, repo.ChainNode{})
	var refused *StartError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "1 channels on tally-devnet") || !strings.Contains(refused.Remedy(), "--chain") {
		t.Errorf("start without a chain: %v", err)
	}
	if d, stop, err = on(t, dir, n.node()); err != nil {
		t.Fatal(err)
	}
}

func metrics(d *Daemon) string {
	w := httptest.NewRecorder()
	d.http.Handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	return w.Body.String()
}

// What belongs to one chain is never used on another.
func TestAnotherChainIsRefused(t *testing.T) {
	one := startNet(t, filepath.Join(t.TempDir(), "one"))
	defer one.stop()
	two := startNet(t, filepath.Join(t.TempDir(), "two"))
	defer two.stop()
	dir := newRepo(t)
	_, stop, err := on(t, dir, one.node())
	if err != nil {
		t.Fatal(err)
	}
	stop()
	refused := func(name string, node repo.ChainNode, want error) {
		t.Helper()
		_, _, err := on(t, dir, node)
		var e *StartError
		if !errors.Is(err, want) || !errors.As(err, &e) || e.Remedy() == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused("a repo on another chain", two.node(), lotus.ErrWrongNetwork)
	bad := one.node()
	bad.Token = "another token altogether"
	refused("a wrong token", bad, lotus.ErrDenied)
	// The keys alone are enough.
	keys := filepath.Join(dir, "keystore", "wallet")
	dir = newRepo(t)
	if err := os.CopyFS(filepath.Join(dir, "keystore", "wallet"), os.DirFS(keys)); err != nil {
		t.Fatal(err)
	}
	list, err := filepath.Glob(filepath.Join(dir, "keystore", "wallet", "*"))
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if err := errors.Join(os.Chmod(list[0], 0o600), os.Chmod(filepath.Dir(list[0]), 0o700)); err != nil {
		t.Fatal(err)
	}
	refused("keys of another chain", two.node(), wallet.ErrOtherChain)
	// A peer that was never on a chain does not start on one that it cannot see.
	dir = newRepo(t)
	refused("a chain that is not there", repo.ChainNode{URL: "http://127.0.0.1:1/rpc/v1", From: "--chain"}, lotus.ErrUnreachable)
	if _, stop, err := on(t, dir, repo.ChainNode{}); err != nil {
		t.Errorf("the same repo without a chain: %v", err)
	} else {
		stop()
	}
}

// A node's own wallet pays and is paid.
func TestNodeWallet(t *testing.T) {
	n := startNet(t, filepath.Join(t.TempDir(), "net"))
	defer n.stop()
	dir := newRepo(t)
	if err := os.WriteFile(filepath.Join(dir, repo.ConfigFile), []byte("wallet = \"node\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, stop, err := on(t, dir, n.node())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	has, err := d.channels.Wallet.Has(t.Context(), d.chain.facts.Payout)
	if err != nil || !has {
		t.Errorf("the node has not %s: %v", d.chain.facts.Payout, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "keystore", "wallet")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a local wallet was made: %v", err)
	}
}

// A throw-away peer keeps its chain, and has money.
func TestDevPeer(t *testing.T) {
	dir := newRepo(t)
	genesis := ""
	for range 2 {
		r, err := repo.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		d, err := Start(t.Context(), r, StartConfig{Logger: slog.New(slog.DiscardHandler), Dev: true})
		if err != nil {
			t.Fatal(errors.Join(err, r.Close()))
		}
		if got := d.dev.Info().Genesis; genesis != "" && got != genesis {
			t.Error("the chain was made anew")
		} else {
			genesis = got
		}
		if k := check(t, d, "wallet"); !strings.HasSuffix(k.Detail, " has 100 FIL") {
			t.Errorf("%+v", k)
		}
		c, err := DialDevnet(t.Context(), r.DevnetDir())
		if err != nil {
			t.Fatal(err)
		}
		first, err := c.Mine(t.Context(), 1)
		last, err2 := c.Mine(t.Context(), mineAtOnce+1) // in two calls
		if err := errors.Join(err, err2); err != nil || last < first+mineAtOnce+1 {
			t.Errorf("%d blocks: %v", last-first, err)
		}
		if _, err := c.Mine(t.Context(), devnet.MaxMine+1); err == nil {
			t.Error("a typing error costs a night")
		}
		if err := errors.Join(c.Close(), d.Close(context.Background()), r.Close()); err != nil {
			t.Fatal(err)
		}
	}
	// Its keys are of no use elsewhere.
	n := startNet(t, filepath.Join(t.TempDir(), "net"))
	defer n.stop()
	if _, _, err := on(t, dir, n.node()); !errors.Is(err, lotus.ErrWrongNetwork) {
		t.Errorf("on another chain: %v", err)
	}
}

// Mode hard says what is missing.
func TestHardNeedsAChain(t *testing.T) {
	c := repo.DefaultConfig()
	c.Mode = "hard"
	if _, err := nodeConfig(c, false); err == nil || !strings.Contains(err.Error(), "none is configured") {
		t.Errorf("without a chain: %v", err)
	}
	if n, err := nodeConfig(c, true); err != nil || n.Policy.Mode != swap.ModeHard {
		t.Errorf("with a chain: %v, %v", n.Policy.Mode, err)
	}
}
