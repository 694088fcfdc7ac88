package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/testnet"
)

// processEnv makes the test binary the program itself, with its real parts;
// binaryEnv names a built one to use instead.
const (
	processEnv = "TALLY_TEST_PROCESS"
	binaryEnv  = "TALLY_TEST_BINARY"
)

// patience is how long a test waits for what processes have to do. Nothing waits for it
// to pass.
const patience = 8 * time.Minute

// settleDelay is long beside a restart, and a devnet mines it in a moment.
const settleDelay = 800

// town is a devnet, a payer and a payee, each a process on a folder of its own.
type town struct {
	t                  *testing.T
	ctx                context.Context
	dir, bin           string
	net, payer, payee  *testnet.Process
	from, to, channel  string
	payerHad, payeeHad *big.Int
}

func fil(n int64) *big.Int { return new(big.Int).Mul(big.NewInt(n), big.NewInt(1e18)) }

func newTown(t *testing.T, netFlags ...string) *town {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	w := &town{t: t, ctx: ctx, dir: t.TempDir(), bin: os.Getenv(binaryEnv)}
	if w.bin == "" {
		w.bin = os.Args[0]
	}
	w.net = w.process("net", append([]string{"devnet", "--block-time", "50ms", "--settle-delay", strconv.Itoa(settleDelay), "--finality", "3"}, netFlags...)...)
	var info host.DevnetInfo
	w.must(w.net.Ready(&info))
	start := []string{"start", "--rpc", "127.0.0.1:0", "--chain", info.RPC, "--chain-token-file", info.TokenFile}
	w.tally("payer", "init")
	w.tally("payee", "init")
	w.payer, w.payee = w.process("payer", start...), w.process("payee", start...)
	w.from, w.to = w.address(w.payer), w.address(w.payee)
	for _, a := range []string{w.from, w.to} {
		w.tally("net", "devnet", "faucet", a, "100FIL")
	}
	w.payerHad, w.payeeHad = w.balance(w.payer, w.from), w.balance(w.payee, w.to)
	return w
}

func (w *town) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%v\npayer: %s\npayee: %s", err, w.log(w.payer), w.log(w.payee))
	}
}

func (w *town) log(p *testnet.Process) string {
	if p == nil {
		return ""
	}
	text := p.Log()
	return text[max(0, len(text)-2000):]
}

func (w *town) process(name string, args ...string) *testnet.Process {
	w.t.Helper()
	repo := filepath.Join(w.dir, name)
	p, err := testnet.StartProcess(w.ctx, testnet.ProcessConfig{
		Binary: w.bin, Args: append([]string{"--repo", repo, "-o", "json"}, args...), Env: []string{processEnv + "=1"}, Repo: repo,
	})
	w.must(err)
	w.t.Cleanup(func() {
		if err := p.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return p
}

// tally runs one command as a user does, and returns what it printed.
func (w *town) tally(repo string, args ...string) []byte {
	w.t.Helper()
	cmd := exec.CommandContext(w.ctx, w.bin, append([]string{"--repo", filepath.Join(w.dir, repo), "-o", "json"}, args...)...)
	cmd.Env = append(os.Environ(), processEnv+"=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("tally %v: %v: %s", args, err, stderr.Bytes())
	}
	return out
}

// call makes a call of a peer's RPC.
func call[T any](w *town, p *testnet.Process, fn func(*rpc.Client) (T, error)) T {
	w.t.Helper()
	c, stop, err := p.Client()
	w.must(err)
	defer stop()
	v, err := fn(c)
	w.must(err)
	return v
}

func (w *town) address(p *testnet.Process) string {
	w.t.Helper()
	keys := call(w, p, func(c *rpc.Client) ([]rpc.WalletRow, error) { return c.WalletList(w.ctx) })
	if len(keys) != 1 {
		w.t.Fatalf("keys at the first start: %+v", keys)
	}
	return keys[0].Address
}

func (w *town) balance(p *testnet.Process, a string) *big.Int {
	w.t.Helper()
	row := call(w, p, func(c *rpc.Client) (rpc.WalletRow, error) { return c.WalletBalance(w.ctx, a) })
	n, ok := new(big.Int).SetString(row.Balance, 10)
	if !ok {
		w.t.Fatalf("balance %q", row.Balance)
	}
	return n
}

// until waits for what other processes do.
func (w *town) until(what string, fn func() bool) {
	w.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !fn() {
		select {
		case <-tick.C:
		case <-w.ctx.Done():
			w.must(errors.New(what + ": not in time"))
		}
	}
}

// create asks for the channel; asked again it is the same one.
func (w *town) create() rpc.MessageRow {
	return call(w, w.payer, func(c *rpc.Client) (rpc.MessageRow, error) {
		return c.PaychCreate(w.ctx, w.from, w.to, fil(10).String(), "acceptance")
	})
}

func (w *town) open() {
	w.t.Helper()
	id := w.create().Cid
	row := call(w, w.payer, func(c *rpc.Client) (rpc.MessageRow, error) { return c.WaitReady(w.ctx, id, nil) })
	w.channel = row.Channel
}

// give hands a voucher over as text, and adds it.
func (w *town) give(lane uint64, total *big.Int) string {
	w.t.Helper()
	r := call(w, w.payer, func(c *rpc.Client) (rpc.VoucherResult, error) {
		return c.PaychVoucherCreate(w.ctx, w.channel, total.String(), lane)
	})
	if r.Voucher == nil {
		w.t.Fatalf("no voucher: short of %s", r.Shortfall)
	}
	return r.Voucher.Voucher
}

func (w *town) take(text string) {
	w.t.Helper()
	call(w, w.payee, func(c *rpc.Client) (rpc.VoucherAdded, error) {
		return c.PaychVoucherAdd(w.ctx, w.channel, text, "", "0")
	})
}

func (w *town) settle() {
	w.t.Helper()
	call(w, w.payer, func(c *rpc.Client) (rpc.MessageRow, error) { return c.PaychSettle(w.ctx, w.channel) })
}

func (w *town) row(p *testnet.Process) rpc.ChannelRow {
	w.t.Helper()
	return call(w, p, func(c *rpc.Client) (rpc.ChannelRow, error) { return c.PaychStatus(w.ctx, w.channel) })
}

// submitted waits until the best voucher of each lane is on the chain.
func (w *town) submitted() {
	w.t.Helper()
	w.until("vouchers submitted", func() bool {
		open := map[uint64]bool{}
		for _, v := range call(w, w.payee, func(c *rpc.Client) ([]rpc.VoucherRow, error) { return c.PaychVoucherRecords(w.ctx, w.channel) }) {
			open[v.Lane] = open[v.Lane] || !v.Redeemed
		}
		for _, still := range open {
			if still {
				return false
			}
		}
		return len(open) == 3
	})
}

// mine passes the time that a channel settles.
func (w *town) mine(n int) {
	w.t.Helper()
	c, err := host.DialDevnet(w.ctx, filepath.Join(w.dir, "net"))
	w.must(err)
	_, err = c.Mine(w.ctx, n)
	w.must(errors.Join(err, c.Close()))
}

func (w *town) collected() {
	w.t.Helper()
	for _, p := range []*testnet.Process{w.payee, w.payer} {
		w.until("collected", func() bool { r := w.row(p); return r.State == "collected" && r.Result != nil })
	}
}

// totals of the three lanes, in attoFIL: each voucher is for the lane's new total.
var totals = [3][2]int64{{1, 1_000_000_000_000_000_003}, {7, 77}, {400_000_000_000_000_000, 1_999_999_999_999_999_999}}

func want() *big.Int {
	sum := new(big.Int)
	for _, lane := range totals {
		sum.Add(sum, big.NewInt(lane[1]))
	}
	return sum
}

// check compares what the chain paid with the best vouchers, to the attoFIL.
// Where gas costs something, what the channel paid out is compared.
func (w *town) check(gas bool) {
	w.t.Helper()
	for name, p := range map[string]*testnet.Process{"payer": w.payer, "payee": w.payee} {
		r := w.row(p).Result
		if r.Paid != want().String() || r.Returned != new(big.Int).Sub(fil(10), want()).String() {
			w.t.Errorf("%s: the channel paid %+v, want %v to the payee", name, r, want())
		}
	}
	got := new(big.Int).Sub(w.balance(w.payee, w.to), w.payeeHad)
	gave := new(big.Int).Sub(w.payerHad, w.balance(w.payer, w.from))
	switch {
	case !gas && (got.Cmp(want()) != 0 || gave.Cmp(want()) != 0):
		w.t.Errorf("the payee got %v and the payer gave %v, want %v", got, gave, want())
	case gas && (got.Cmp(want()) >= 0 || gave.Cmp(want()) <= 0):
		w.t.Errorf("with gas the payee got %v and the payer gave %v of %v", got, gave, want())
	}
}

// pay goes through the life of a channel; at is called after each step.
func (w *town) pay(at func(step string)) {
	w.t.Helper()
	w.create()
	at("create called")
	w.open()
	at("create mined")
	for second := range 2 {
		for lane := range totals {
			text := w.give(uint64(lane)+1, big.NewInt(totals[lane][second]))
			if second == 1 {
				at("voucher created")
			}
			w.take(text)
			if second == 1 {
				at("voucher added")
			}
		}
	}
	w.settle()
	at("settle called")
	w.until("settling", func() bool { return w.row(w.payee).State == "settling" })
	at("submission begun")
	w.submitted()
	at("submitted")
	w.mine(settleDelay)
	at("collect begun")
	w.collected()
	at("collected")
}

// Two peers in processes of their own settle over a devnet in a third.
func TestChannelOfProcesses(t *testing.T) {
	for name, tt := range map[string]struct {
		flags []string
		gas   bool
	}{
		"free":     {},
		"with gas": {[]string{"--base-fee", "100"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newTown(t, tt.flags...)
			w.pay(func(string) {})
			w.check(tt.gas)
		})
	}
}

// The payee is away while Settle is mined, and in time before the end.
func TestPayeeAwayAtSettle(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.pay(func(step string) {
		if step == "settle called" {
			w.must(w.payee.Stop())
			w.until("settle mined", func() bool { return w.row(w.payer).State == "settling" })
			w.must(w.payee.Start(w.ctx))
		}
	})
	w.check(false)
}

// All three are killed after each step, and go on where they were.
func TestKillAtEachStep(t *testing.T) {
	if testing.Short() {
		t.Skip("starts forty processes")
	}
	t.Parallel()
	w := newTown(t)
	steps := 0
	w.pay(func(string) {
		steps++
		for _, p := range []*testnet.Process{w.net, w.payer, w.payee} {
			w.must(p.Kill())
		}
		w.must(w.net.Start(w.ctx))
		errs := make([]error, 2)
		var both sync.WaitGroup
		for i, p := range []*testnet.Process{w.payer, w.payee} {
			both.Go(func() { errs[i] = p.Start(w.ctx) })
		}
		both.Wait()
		w.must(errors.Join(errs...))
	})
	w.check(false)
	t.Logf("killed at %d steps", steps)
}

// One of the three is killed after each step, in turn. It takes about a minute
// for each of who is first, so only one runs by default.
func TestKillOneAtEachStep(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	first := 1
	if os.Getenv("TALLY_LONG") != "" {
		first = 3
	}
	for turn := range first {
		t.Run(strconv.Itoa(turn), func(t *testing.T) {
			t.Parallel()
			w := newTown(t)
			who := [...]*testnet.Process{w.payee, w.payer, w.net}
			n := turn
			w.pay(func(string) {
				p := who[n%len(who)]
				n++
				w.must(p.Kill())
				w.must(p.Start(w.ctx))
			})
			w.check(false)
		})
	}
}

// A user's way, with commands alone.
func TestChannelByCommands(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	get := func(out []byte, key string) string {
		t.Helper()
		var v map[string]any
		w.must(json.Unmarshal(out, &v))
		s, _ := v[key].(string)
		if s == "" {
			t.Fatalf("no %s in %s", key, out)
		}
		return s
	}
	w.channel = get(w.tally("payer", "channel", "create", w.from, w.to, "10FIL", "--wait"), "channel")
	for lane := range totals {
		for _, total := range totals[lane] {
			out := w.tally("payer", "voucher", "create", w.channel, strconv.FormatInt(total, 10), "--lane", strconv.Itoa(lane+1))
			w.tally("payee", "voucher", "add", w.channel, get(out, "voucher"))
		}
	}
	w.tally("payer", "channel", "settle", w.channel)
	w.submitted()
	w.mine(settleDelay)
	w.collected()
	w.check(false)
}
