package lotus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/actor"
	"github.com/tallystick/tally/paych/devnet"
	"github.com/tallystick/tally/paych/lotus"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// proxy is a node that answers as another chain does, but for some methods.
type proxy struct {
	next http.Handler

	// mu guards the fields below.
	mu     sync.Mutex
	answer map[string]string // method → result, or an error where it begins with "error"
	seen   map[string]int
}

// over puts a proxy before a chain and returns its address.
func over(t testing.TB, c *devnet.Chain) (*proxy, string) {
	t.Helper()
	h, err := c.Handler(token)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{next: h, answer: map[string]string{}, seen: map[string]int{}}
	s := httptest.NewServer(p)
	t.Cleanup(s.Close)
	return p, s.Listener.Addr().String()
}

func (p *proxy) set(method, answer string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if answer == "" {
		delete(p.answer, method)
		return
	}
	p.answer[method] = answer
}

func (p *proxy) count(method string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[method]
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	var call struct {
		ID     json.RawMessage
		Method string
	}
	if err := json.Unmarshal(body, &call); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	method := strings.TrimPrefix(call.Method, "Filecoin.")
	p.mu.Lock()
	p.seen[method]++
	answer, ok := p.answer[method]
	p.mu.Unlock()
	if !ok {
		r.Body = io.NopCloser(bytes.NewReader(body))
		p.next.ServeHTTP(w, r)
		return
	}
	if status, text, ok := strings.Cut(answer, "status "); ok && status == "" {
		var code int
		_, _ = fmt.Sscan(text, &code)
		http.Error(w, "<html>"+text+"</html>", code)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if text, ok := strings.CutPrefix(answer, "error "); ok {
		code, msg, _ := strings.Cut(text, " ")
		quoted, _ := json.Marshal(msg)
		_, _ = fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":%s,"message":%s}}`, call.ID, code, quoted)
		return
	}
	_, _ = fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, call.ID, answer)
}

// fixture is a chain, a proxy before it, a client, and two keys of the node.
type fixture struct {
	t     testing.TB
	ctx   context.Context
	chain *devnet.Chain
	proxy *proxy
	*lotus.Client
	a, b address.Address
}

func setup(t testing.TB, chain devnet.Config, cfg lotus.Config) *fixture {
	t.Helper()
	c := newChain(t, chain)
	p, addr := over(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	f := &fixture{t: t, ctx: ctx, chain: c, proxy: p, Client: open(t, addr, cfg)}
	for _, a := range []*address.Address{&f.a, &f.b} {
		w := f.NodeWallet()
		if cfg.Wallet != nil {
			w = cfg.Wallet
		}
		var err error
		if *a, err = w.New(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Dev().DevFaucet(ctx, *a, fil(10)); err != nil {
			t.Fatal(err)
		}
	}
	f.mine(2)
	return f
}

func (f *fixture) mine(n int) {
	f.t.Helper()
	f.ok(f.chain.Mine(context.WithoutCancel(f.ctx), n))
	f.ok(f.chain.Check(context.WithoutCancel(f.ctx)))
}

func (f *fixture) ok(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) prepare() *paych.SignedMessage {
	f.t.Helper()
	s, err := f.Prepare(f.ctx, paych.Message{From: f.a, To: f.b, Value: fil(1)})
	f.ok(err)
	return s
}

func (f *fixture) balance(a address.Address, want big.Int) {
	f.t.Helper()
	got, err := f.Balance(f.ctx, a)
	f.ok(err)
	if !got.Equals(want) {
		f.t.Errorf("balance of %s is %v, want %v", a, got, want)
	}
}

func TestWrongNetwork(t *testing.T) {
	f := setup(t, devnet.Config{}, lotus.Config{})
	other := newChain(t, devnet.Config{})
	for name, cfg := range map[string]lotus.Config{
		"network": {Network: "mainnet"},
		"genesis": {Network: "tally-devnet", Genesis: other.Params().Genesis},
	} {
		_, addr := over(t, f.chain)
		cfg.URL, cfg.Token = url(addr), token
		if _, err := lotus.Open(t.Context(), cfg); !errors.Is(err, lotus.ErrWrongNetwork) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, addr := over(t, f.chain)
	open(t, addr, lotus.Config{Network: "tally-devnet", Genesis: f.chain.Params().Genesis})
}

// TestReconnect: a node that goes away and comes back is used again, and one
// that comes back on another chain is not.
func TestReconnect(t *testing.T) {
	chain := newChain(t, devnet.Config{})
	n := serve(t, chain, "")
	c := open(t, n.addr, lotus.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a, err := c.NodeWallet().New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := chain.Faucet(ctx, a, fil(5)); err != nil {
		t.Fatal(err)
	}
	n.mine(t, 2)
	s, err := c.Prepare(ctx, paych.Message{From: a, To: a, Value: fil(1)})
	if err != nil {
		t.Fatal(err)
	}
	heads, err := c.Heads(ctx)
	if err != nil {
		t.Fatal(err)
	}
	<-heads

	n.stop()
	if err := c.Publish(ctx, s); !errors.Is(err, lotus.ErrUnreachable) {
		t.Fatalf("publish without a node: %v", err)
	}
	n = serve(t, chain, n.addr)
	if err := c.Publish(ctx, s); err != nil {
		t.Fatalf("publish after the node came back: %v", err)
	}
	n.mine(t, 2)
	if _, err := c.Wait(ctx, s.Cid, 0); err != nil {
		t.Fatal(err)
	}
	for h := range heads { // they went on by themselves
		if h.Height == chain.Head() {
			break
		}
	}

	n.stop()
	if _, err := c.Head(ctx); !errors.Is(err, lotus.ErrUnreachable) {
		t.Fatalf("head without a node: %v", err)
	}
	serve(t, newChain(t, devnet.Config{}), n.addr)
	if _, err := c.Head(ctx); !errors.Is(err, lotus.ErrWrongNetwork) {
		t.Errorf("head of another chain: %v", err)
	}
	if err := c.Publish(ctx, s); !errors.Is(err, lotus.ErrWrongNetwork) {
		t.Errorf("publish on another chain: %v", err)
	}
	if _, err := c.Prepare(ctx, paych.Message{From: a, To: a}); !errors.Is(err, lotus.ErrWrongNetwork) {
		t.Errorf("prepare on another chain: %v", err)
	}
}

func TestClose(t *testing.T) {
	f := setup(t, devnet.Config{}, lotus.Config{})
	s := f.prepare()
	f.ok(f.Publish(f.ctx, s))
	got := make(chan error, 1)
	go func() { // ends with Close
		_, err := f.Wait(f.ctx, s.Cid, 0)
		got <- err
	}()
	heads, err := f.Heads(f.ctx)
	f.ok(err)
	<-heads
	f.ok(f.Close())
	if err := <-got; err == nil {
		t.Error("Wait after Close gave a receipt")
	}
	if _, ok := <-heads; ok {
		t.Error("Heads after Close")
	}
	if _, err := f.Heads(f.ctx); err == nil {
		t.Error("Heads began after Close")
	}
}

// TestReplaced: Wait on a message that a fee bump replaced tells the cid under
// which it was mined, for either cid.
func TestReplaced(t *testing.T) {
	for name, w := range map[string]paych.Wallet{"node wallet": nil, "local wallet": &keyring{}} {
		t.Run(name, func(t *testing.T) {
			f := setup(t, devnet.Config{BaseFee: big.NewInt(1000)}, lotus.Config{Wallet: w})
			s := f.prepare()
			f.ok(f.Publish(f.ctx, s))
			bumped, err := f.Bump(f.ctx, s)
			f.ok(err)
			if bumped.Nonce != s.Nonce || bumped.Cid == s.Cid {
				t.Fatalf("bumped %+v of %+v", bumped, s)
			}
			f.ok(f.Publish(f.ctx, bumped))
			f.ok(f.Publish(f.ctx, s)) // the old bytes again: their successor is there
			twice, err := f.Bump(f.ctx, bumped)
			f.ok(err)
			f.ok(f.Publish(f.ctx, twice))
			f.mine(2)
			r, err := f.Wait(f.ctx, s.Cid, 0)
			f.ok(err)
			if r.Cid != s.Cid || r.Replaced != twice.Cid || r.ExitCode != exitcode.Ok {
				t.Errorf("receipt %+v, want one replaced by %s", r, twice.Cid)
			}
			r, err = f.Wait(f.ctx, twice.Cid, 0)
			f.ok(err)
			if r.Cid != twice.Cid || r.Replaced.Defined() {
				t.Errorf("receipt %+v", r)
			}
			f.ok(f.Publish(f.ctx, s)) // mined under another cid: still what was wanted
			f.balance(f.b, fil(11))
		})
	}
}

func TestFeeLimit(t *testing.T) {
	f := setup(t, devnet.Config{BaseFee: big.NewInt(1_000_000)}, lotus.Config{MaxFee: big.NewInt(100)})
	// Within the limit the estimate cannot pay the base fee; it is lowered to it,
	// and then it waits, rather than cost more.
	s, err := f.Prepare(f.ctx, paych.Message{From: f.a, To: f.b, Value: fil(1)})
	if err != nil && !errors.Is(err, lotus.ErrFee) {
		t.Fatal(err)
	}
	if err == nil {
		if _, err := f.Bump(f.ctx, s); !errors.Is(err, lotus.ErrFee) {
			t.Errorf("bump above the limit: %v", err)
		}
	}
	// A node that ignores the limit is not obeyed.
	f.proxy.set("GasEstimateMessageGas", `{"Version":0,"To":"`+f.b.String()+`","From":"`+f.a.String()+`","Nonce":0,"Value":"`+fil(1).String()+
		`","GasLimit":1000000,"GasFeeCap":"999999999999999","GasPremium":"5","Method":0,"Params":null}`)
	if _, err := f.Prepare(f.ctx, paych.Message{From: f.a, To: f.b, Value: fil(1)}); !errors.Is(err, lotus.ErrFee) {
		t.Errorf("fee above the limit: %v", err)
	}
	// Nor one that sends another message back to be signed.
	f.proxy.set("GasEstimateMessageGas", `{"Version":0,"To":"`+f.a.String()+`","From":"`+f.a.String()+`","Nonce":0,"Value":"`+fil(1).String()+
		`","GasLimit":1000000,"GasFeeCap":"0","GasPremium":"0","Method":0,"Params":null}`)
	if _, err := f.Prepare(f.ctx, paych.Message{From: f.a, To: f.b, Value: fil(1)}); err == nil {
		t.Error("another receiver was taken")
	}
}

// TestNodeSignsWrongly: what the node's wallet signed is checked.
func TestNodeSignsWrongly(t *testing.T) {
	f := setup(t, devnet.Config{}, lotus.Config{})
	raw, err := json.Marshal(must(wire.DecodeSigned(f.prepare().Raw)))
	f.ok(err)
	f.proxy.set("WalletSignMessage", string(raw))
	if _, err := f.Prepare(f.ctx, paych.Message{From: f.a, To: f.b, Value: fil(2)}); !errors.Is(err, wire.ErrSignature) {
		t.Errorf("signature over another message: %v", err)
	}
	f.proxy.set("WalletSignMessage", "null")
	if _, err := f.Prepare(f.ctx, paych.Message{From: f.a, To: f.b, Value: fil(2)}); err == nil {
		t.Error("no signature was taken")
	}
	f.proxy.set("WalletSign", `{"Type":1,"Data":"AAAA"}`)
	if _, err := f.NodeWallet().Sign(f.ctx, f.a, []byte("x")); !errors.Is(err, wire.ErrSignature) {
		t.Errorf("bad signature: %v", err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestNonces: prepared messages that are not published keep their nonces, give
// them back, and follow the node.
func TestNonces(t *testing.T) {
	f := setup(t, devnet.Config{}, lotus.Config{Wallet: &keyring{}})
	first, second := f.prepare(), f.prepare()
	if first.Nonce != 0 || second.Nonce != 1 {
		t.Fatalf("nonces %d and %d", first.Nonce, second.Nonce)
	}
	f.Discard(first)
	again := f.prepare()
	if again.Nonce != 0 {
		t.Errorf("discarded nonce 0 was not given out again: %d", again.Nonce)
	}
	f.ok(f.Publish(f.ctx, again))
	f.Discard(again) // published: the nonce stays
	f.ok(f.Publish(f.ctx, second))
	if s := f.prepare(); s.Nonce != 2 {
		t.Errorf("nonce %d, want 2", s.Nonce)
	}
	f.mine(2)
	f.balance(f.b, fil(12))
	// A client that begins later goes on where the node is.
	_, addr := over(t, f.chain)
	late := open(t, addr, lotus.Config{})
	key, err := late.NodeWallet().New(f.ctx)
	f.ok(err)
	if _, err := late.Prepare(f.ctx, paych.Message{From: key, To: f.a}); err == nil {
		t.Error("prepared for a sender that does not exist")
	}
}

// TestNonceTaken: another program used the key. The message is lost, and both
// Publish and Wait say so instead of waiting for ever.
func TestNonceTaken(t *testing.T) {
	f := setup(t, devnet.Config{}, lotus.Config{})
	s := f.prepare()
	_, addr := over(t, f.chain)
	thief := open(t, addr, lotus.Config{})
	other, err := thief.Prepare(f.ctx, paych.Message{From: f.a, To: f.b, Value: fil(3)})
	f.ok(err)
	if other.Nonce != s.Nonce {
		t.Fatalf("nonces %d and %d", other.Nonce, s.Nonce)
	}
	f.ok(thief.Publish(f.ctx, other))
	if err := f.Publish(f.ctx, s); err == nil {
		t.Error("published beside another message of the same nonce")
	}
	f.mine(20)
	// The node never took the message, so it cannot tell what became of it; the
	// message that used the nonce is found on the chain.
	if err := f.Publish(f.ctx, s); !errors.Is(err, paych.ErrNonceTaken) || !strings.Contains(err.Error(), other.Cid.String()) {
		t.Errorf("publish: %v", err)
	}
	if _, err := f.Wait(f.ctx, s.Cid, 0); !errors.Is(err, paych.ErrNonceTaken) {
		t.Errorf("wait: %v", err)
	}
	for depth, want := range map[abi.ChainEpoch]uint64{0: s.Nonce + 1, 25: s.Nonce} {
		if n, err := f.Nonce(f.ctx, f.a, depth); err != nil || n != want {
			t.Errorf("nonce %d deep is %d, want %d: %v", depth, n, want, err)
		}
	}
	f.proxy.set("StateSearchMsg", "error 1 found message with equal nonce as the one we are looking for that is NOT a valid replacement message (F:a n 0, TS: b n0)")
	if err := f.Publish(f.ctx, s); !errors.Is(err, lotus.ErrNonceTaken) {
		t.Errorf("publish: %v", err)
	}
	if _, err := f.Wait(f.ctx, s.Cid, 0); !errors.Is(err, lotus.ErrNonceTaken) {
		t.Errorf("wait: %v", err)
	}
}

// TestDropped: a reorganisation and the node's pool forget a message; Wait hands
// it in again.
func TestDropped(t *testing.T) {
	f := setup(t, devnet.Config{}, lotus.Config{})
	s := f.prepare()
	f.ok(f.Publish(f.ctx, s))
	got := make(chan *paych.Receipt, 1)
	go func() { // ends with Wait
		r, err := f.Wait(f.ctx, s.Cid, 4)
		if err != nil {
			f.t.Error(err)
		}
		got <- r
	}()
	f.mine(2)
	if _, err := f.Wait(f.ctx, s.Cid, 0); err != nil {
		t.Fatal(err)
	}
	// That Wait forgot the message, which was deep enough for it; publish again
	// as the manager does after a restart.
	f.ok(f.Publish(f.ctx, s))
	if _, err := f.Dev().DevReorg(f.ctx, 2, true); err != nil {
		t.Fatal(err)
	}
	f.balance(f.b, fil(10))
	heads, err := f.Heads(f.ctx)
	f.ok(err)
	for {
		select {
		case r := <-got:
			if r == nil || r.ExitCode != exitcode.Ok {
				t.Errorf("receipt %+v", r)
			}
			f.balance(f.b, fil(11))
			return
		case _, ok := <-heads: // paces the blocks
			if !ok {
				t.Fatal("not mined again")
			}
			f.mine(1)
		}
	}
}

// channel makes a channel with n lanes used, and returns its address.
func (f *fixture) channel(n int) (address.Address, []abi.ChainEpoch) {
	f.t.Helper()
	code, err := f.PaychCode(f.ctx)
	f.ok(err)
	send := func(m paych.Message) *paych.Receipt {
		s, err := f.Prepare(f.ctx, m)
		f.ok(err)
		f.ok(f.Publish(f.ctx, s))
		f.mine(2)
		r, err := f.Wait(f.ctx, s.Cid, 0)
		f.ok(err)
		if r.ExitCode != exitcode.Ok {
			f.t.Fatalf("exit code %d", r.ExitCode)
		}
		return r
	}
	ch := createdBy(f.t, send(createMessage(f.t, code, f.a, f.b, fil(5))))
	var heights []abi.ChainEpoch
	for i := range n {
		sv := actor.SignedVoucher{ChannelAddr: ch, Lane: uint64(i), Nonce: 1, Amount: big.NewInt(int64(i + 1))}
		data, err := sv.SigningBytes()
		f.ok(err)
		sv.Signature, err = f.NodeWallet().Sign(f.ctx, f.a, data)
		f.ok(err)
		m := actor.Redeem(sv, nil)
		params, err := m.Params()
		f.ok(err)
		heights = append(heights, send(paych.Message{From: f.b, To: ch, Method: m.Method, Params: params}).Height)
		f.mine(i * 7)
	}
	return ch, heights
}

// TestCallsByState: on a node that cannot list messages, and over a long time,
// calls are found by what they changed.
func TestCallsByState(t *testing.T) {
	f := setup(t, devnet.Config{}, lotus.Config{ListSpan: 40})
	ch, heights := f.channel(5)
	check := func(from, to abi.ChainEpoch) {
		t.Helper()
		calls, err := f.Calls(f.ctx, ch, from, to)
		f.ok(err)
		var want []abi.ChainEpoch
		for _, h := range heights {
			if h >= from && h <= to {
				want = append(want, h)
			}
		}
		var got []abi.ChainEpoch
		for _, c := range calls {
			got = append(got, c.Height)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("calls from %d to %d at %v, want %v", from, to, got, want)
		}
	}
	head := f.chain.Head()
	check(0, head)
	check(0, head+100)
	if f.proxy.count("StateListMessages") != 0 {
		t.Error("messages were listed over a long time")
	}
	check(head-20, head)
	if f.proxy.count("StateListMessages") == 0 {
		t.Error("messages were not listed over a short time")
	}
	f.proxy.set("StateListMessages", "error -32601 method 'Filecoin.StateListMessages' not found")
	for from := abi.ChainEpoch(0); from < head; from += 5 {
		check(from, from+25)
	}
	for _, h := range heights {
		check(h, h)
		check(h+1, h+1)
	}
	f.proxy.set("ChainGetTipSetByHeight", "error 1 bad tipset height: lookbacks of more than 16h40m0s are disallowed")
	if _, err := f.Calls(f.ctx, ch, 0, head); !errors.Is(err, lotus.ErrLookback) {
		t.Errorf("calls beyond the look-back: %v", err)
	}
	if _, _, err := f.Channel(f.ctx, ch, 3); !errors.Is(err, lotus.ErrLookback) {
		t.Errorf("state beyond the look-back: %v", err)
	}
}

// TestBadAnswers: nothing, null, half and wrong answers are errors, never a
// panic and never taken for something else.
func TestBadAnswers(t *testing.T) {
	f := setup(t, devnet.Config{}, lotus.Config{})
	ch, _ := f.channel(2)
	s := f.prepare()
	calls := map[string]func() error{
		"Channel":    func() error { _, _, err := f.Channel(f.ctx, ch, 0); return err },
		"Channel 2":  func() error { _, _, err := f.Channel(f.ctx, ch, 2); return err },
		"Calls":      func() error { _, err := f.Calls(f.ctx, ch, 0, 100); return err },
		"Head":       func() error { _, err := f.Head(f.ctx); return err },
		"Prepare":    func() error { s, err := f.Prepare(f.ctx, paych.Message{From: f.a, To: f.b}); discard(f, s); return err },
		"Publish":    func() error { return f.Publish(f.ctx, s) },
		"Balance":    func() error { _, err := f.Balance(f.ctx, f.a); return err },
		"ResolveKey": func() error { _, err := f.ResolveKey(f.ctx, must(address.NewIDAddress(1000))); return err },
		"PaychCode":  func() error { _, err := f.PaychCode(f.ctx); return err },
		"Heads": func() error {
			ctx, cancel := context.WithCancel(f.ctx)
			defer cancel()
			_, err := f.Heads(ctx)
			return err
		},
	}
	for _, tc := range []struct{ method, answer, call string }{
		{"ChainHead", `null`, "Head"},
		{"ChainHead", `{}`, "Channel"},
		{"ChainHead", `{"Cids":[],"Blocks":[],"Height":7}`, "Heads"},
		{"ChainHead", `{"Cids":[{"/":"bafy2bzacea3wsdh6y3a36tb3skempjoxqpuyompjbmfeyf34fi3uy6uue42v4"}],"Blocks":[null],"Height":7}`, "Calls"},
		{"ChainHead", `"nonsense"`, "Head"},
		{"ChainHead", `status 429`, "Head"},
		{"ChainHead", `status 502`, "Channel"},
		{"ChainHead", `status 302`, "Head"},
		{"ChainGetTipSetByHeight", `null`, "Channel 2"},
		{"StateReadState", `null`, "Channel"},
		{"StateReadState", `{"Balance":"5","Code":{"/":"bafy2bzacea3wsdh6y3a36tb3skempjoxqpuyompjbmfeyf34fi3uy6uue42v4"},"State":null}`, "Channel"},
		{"StateReadState", `{"Balance":"5","State":{"Address":"f01"}}`, "Channel"},
		{"ChainReadObj", `null`, "Channel"},
		{"ChainReadObj", `"AAAA"`, "Channel"},
		{"ChainReadObj", `error 1 ipld: could not find x`, "Channel"},
		{"StateListMessages", `[{"/":"bafy2bzacea3wsdh6y3a36tb3skempjoxqpuyompjbmfeyf34fi3uy6uue42v4"}]`, "Calls"},
		{"ChainGetParentReceipts", `null`, "Calls"},
		{"StateSearchMsg", `null`, "Calls"},
		{"MpoolGetNonce", `"x"`, "Prepare"},
		{"GasEstimateMessageGas", `null`, "Prepare"},
		{"GasEstimateMessageGas", `error 1 estimating gas used: message execution failed: exit 16, reason: x (RetCode=16)`, "Prepare"},
		{"MpoolPush", `null`, "Publish"},
		{"MpoolPush", `{"/":"bafy2bzacea3wsdh6y3a36tb3skempjoxqpuyompjbmfeyf34fi3uy6uue42v4"}`, "Publish"},
		{"MpoolPush", `error 1 not enough funds: not enough funds to execute transaction`, "Publish"},
		{"WalletBalance", `error 1 some trouble`, "Balance"},
		{"StateAccountKey", `error 1 some trouble`, "ResolveKey"},
		{"StateActorCodeCIDs", `{}`, "PaychCode"},
		{"StateActorCodeCIDs", `null`, "PaychCode"},
	} {
		f.proxy.set(tc.method, tc.answer)
		if err := calls[tc.call](); err == nil {
			t.Errorf("%s took %s from %s", tc.call, tc.answer, tc.method)
		}
		f.proxy.set(tc.method, "")
	}
	for name, call := range calls {
		if err := call(); err != nil {
			t.Errorf("%s afterwards: %v", name, err)
		}
	}
}

func discard(f *fixture, s *paych.SignedMessage) {
	if s != nil {
		f.Discard(s)
	}
}

// TestPublishAsNodesAnswer: the answers that mean that the message is there.
func TestPublishAsNodesAnswer(t *testing.T) {
	f := setup(t, devnet.Config{}, lotus.Config{})
	s := f.prepare()
	f.proxy.set("MpoolPush", "error 1 message from f3q5vab with nonce 1 already in mpool: validation failure")
	f.ok(f.Publish(f.ctx, s))
	f.proxy.set("MpoolPush", "error 1 minimum expected nonce is 7: message nonce too low")
	if err := f.Publish(f.ctx, s); err == nil {
		t.Error("a used nonce without a receipt was taken for success")
	}
	f.proxy.set("MpoolPush", "")
	f.ok(f.Publish(f.ctx, s))
	f.mine(1)
	f.ok(f.Publish(f.ctx, s)) // in the head
	f.mine(1)
	f.ok(f.Publish(f.ctx, s)) // executed
}

// TestMainnetShapes talks to a node as mainnet's print: no Agent, several blocks
// a tipset, null rounds, a receipt without EventsRoot, addresses with f.
func TestMainnetShapes(t *testing.T) {
	const (
		first  = `{"/":"bafy2bzacecnamqgqmifpluoeldx7zzglxcljo6oja4vrmtj7432rphldpdmm2"}`
		b1     = `{"/":"bafy2bzacea3wsdh6y3a36tb3skempjoxqpuyompjbmfeyf34fi3uy6uue42v4"}`
		b2     = `{"/":"bafy2bzacebp3shtrn43k7g3unredz7fxn4gj533d3o43tqn2p2ipxxhrvchve"}`
		header = `{"Miner":"f01234","Ticket":{"VRFProof":"Ynl0ZSBhcnJheQ=="},"ElectionProof":{"WinCount":9,"VRFProof":"Ynl0ZSBhcnJheQ=="},"BeaconEntries":[{"Round":42,"Data":"Ynl0ZSBhcnJheQ=="}],"WinPoStProof":[{"PoStProof":8,"ProofBytes":"Ynl0ZSBhcnJheQ=="}],"Parents":[` + b2 + `],"ParentWeight":"91234567890123456789","Height":3000000,"ParentStateRoot":` + b1 + `,"ParentMessageReceipts":` + b1 + `,"Messages":` + b1 + `,"BLSAggregate":{"Type":2,"Data":"Ynl0ZSBhcnJheQ=="},"Timestamp":42,"BlockSig":{"Type":2,"Data":"Ynl0ZSBhcnJheQ=="},"ForkSignaling":42,"ParentBaseFee":"100"}`
		head   = `{"Cids":[` + b1 + `,` + b2 + `],"Blocks":[` + header + `,` + header + `],"Height":3000000}`
	)
	p, addr := over(t, newChain(t, devnet.Config{}))
	for method, answer := range map[string]string{
		"Version":                `{"Version":"1.23.3+mainnet+git.abc","APIVersion":131840,"BlockDelay":30}`,
		"StateNetworkName":       `"testnetnet"`,
		"ChainGetGenesis":        `{"Cids":[` + first + `],"Blocks":[` + header + `],"Height":0}`,
		"ChainHead":              head,
		"ChainGetTipSetByHeight": `{"Cids":[` + b1 + `],"Blocks":[` + header + `],"Height":2999998}`, // a null round above
		"StateSearchMsg":         `{"Message":` + b1 + `,"Receipt":{"ExitCode":0,"Return":"Ynl0ZSBhcnJheQ==","GasUsed":1234567},"ReturnDec":null,"TipSet":[` + b1 + `],"Height":2999998}`,
		"WalletBalance":          `"123456789012345678901234"`,
		"StateAccountKey":        `"f1d2xrzcslx7xlbbylc5c3d5lvandqw4iwl6epxba"`,
	} {
		p.set(method, answer)
	}
	c := open(t, addr, lotus.Config{})
	want := paych.Params{
		Network: "testnetnet", Genesis: cid.MustParse("bafy2bzacecnamqgqmifpluoeldx7zzglxcljo6oja4vrmtj7432rphldpdmm2"),
		SettleDelay: 1440, Epoch: 30 * time.Second, Finality: 900,
	}
	if got := c.Params(); got != want {
		t.Errorf("params %+v, want %+v", got, want)
	}
	if h, err := c.Head(t.Context()); err != nil || h != 3000000 {
		t.Errorf("head %d, %v", h, err)
	}
	if v, err := c.Balance(t.Context(), must(address.NewIDAddress(5))); err != nil || v.String() != "123456789012345678901234" {
		t.Errorf("balance %v, %v", v, err)
	}
	if a, err := c.ResolveKey(t.Context(), must(address.NewIDAddress(5))); err != nil || a.Protocol() != address.SECP256K1 {
		t.Errorf("key %s, %v", a, err)
	}
	r, err := c.Wait(t.Context(), cid.MustParse("bafy2bzacea3wsdh6y3a36tb3skempjoxqpuyompjbmfeyf34fi3uy6uue42v4"), 2)
	if err != nil || r.Height != 2999998 || r.GasUsed != 1234567 || string(r.Return) != "byte array" {
		t.Errorf("receipt %+v, %v", r, err)
	}
}

func TestConfig(t *testing.T) {
	for _, cfg := range []lotus.Config{
		{},
		{URL: "127.0.0.1:1234"},
		{URL: "ftp://127.0.0.1"},
		{URL: "://"},
		{URL: "http://10.0.0.7:1234/rpc/v1", Token: "secret-token"},
		{URL: "http://127.0.0.1:1", Poll: -1},
	} {
		_, err := lotus.Open(t.Context(), cfg)
		if err == nil {
			t.Errorf("%v was taken", cfg)
			continue
		}
		if strings.Contains(err.Error(), "secret-token") {
			t.Errorf("%v tells the token", err)
		}
	}
	cfg := lotus.Config{Token: "secret-token"}
	text, err := json.Marshal(cfg.Token)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprintf("%v %+v %#v %s", cfg, cfg, cfg.Token, cfg.Token), string(text), cfg.Token.LogValue().String()} {
		if strings.Contains(s, "secret") {
			t.Errorf("token shows in %s", s)
		}
	}
}

func TestParseAPIInfo(t *testing.T) {
	for in, want := range map[string][2]string{
		"tok:/ip4/127.0.0.1/tcp/1234/http":         {"http://127.0.0.1:1234/rpc/v1", "tok"},
		"/ip6/::1/tcp/1234/http":                   {"http://[::1]:1234/rpc/v1", ""},
		"a.b-c:/dns4/node.example/tcp/443/https":   {"https://node.example:443/rpc/v1", "a.b-c"},
		"tok:/dns/node.example/tcp/443/wss":        {"https://node.example:443/rpc/v1", "tok"},
		"tok:wss://node.example":                   {"https://node.example/rpc/v1", "tok"},
		"https://api.node.glif.io/rpc/v1":          {"https://api.node.glif.io/rpc/v1", ""},
		"tok:http://127.0.0.1:1234/":               {"http://127.0.0.1:1234/rpc/v1", "tok"},
		" ws://127.0.0.1:1234/rpc/v1\n":            {"http://127.0.0.1:1234/rpc/v1", ""},
		"/unix/socket":                             {},
		"tok:/ip4/127.0.0.1/udp/1234":              {},
		"tok:":                                     {},
		"":                                         {},
		"tok:/ip4/127.0.0.1/tcp/1234/http/p2p/abc": {},
	} {
		u, tok, err := lotus.ParseAPIInfo(in)
		if (err == nil) != (want[0] != "") || u != want[0] || string(tok) != want[1] && err == nil {
			t.Errorf("%q: %q, %q, %v, want %v", in, u, string(tok), err, want)
		}
	}
}

// TestLocalDevnet: blocks come by themselves, the client waits with its default
// of polling.
func TestLocalDevnet(t *testing.T) {
	var slow atomic.Bool
	chain := newChain(t, devnet.Config{BlockTime: 20 * time.Millisecond, Before: func(ctx context.Context, _ string) error {
		if slow.Load() {
			select { // a slow node
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		return nil
	}})
	n := serve(t, chain, "")
	c := open(t, n.addr, lotus.Config{Poll: 5 * time.Millisecond})
	slow.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a, err := c.NodeWallet().New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	id, err := c.Dev().DevFaucet(ctx, a, fil(2))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(ctx, id, 1); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { // ends with Wait
			s, err := c.Prepare(ctx, paych.Message{From: a, To: a, Value: big.NewInt(1)})
			if err == nil {
				err = c.Publish(ctx, s)
			}
			if err == nil {
				_, err = c.Wait(ctx, s.Cid, 1)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// A token that the node does not take is told apart from a node that is away.
func TestDenied(t *testing.T) {
	n := serve(t, newChain(t, devnet.Config{}), "")
	_, err := lotus.Open(t.Context(), lotus.Config{URL: url(n.addr), Token: "not the token of this chain"})
	if !errors.Is(err, lotus.ErrDenied) || errors.Is(err, lotus.ErrUnreachable) {
		t.Fatalf("got %v", err)
	}
	if strings.Contains(err.Error(), "not the token of this chain") {
		t.Errorf("%v tells the token", err)
	}
}

// A message below a gap of nonces, as a reorganisation leaves it, is mined once
// empty messages have taken them; a nonce that the node holds or has used is left
// alone.
func TestFill(t *testing.T) {
	f := setup(t, devnet.Config{}, lotus.Config{})
	f.mine(1)
	first := f.prepare()
	f.ok(f.Publish(f.ctx, first))
	second := f.prepare()
	f.ok(f.Publish(f.ctx, second))
	f.mine(2)
	if _, err := f.Dev().DevReorg(f.ctx, 2, true); err != nil {
		t.Fatal(err)
	}
	f.ok(f.Publish(f.ctx, second))
	f.mine(2)
	f.balance(f.b, fil(10)) // it waits behind the lost one
	for range 2 {
		f.ok(f.Fill(f.ctx, first.From, first.Nonce))
	}
	f.mine(2)
	f.balance(f.b, fil(11))
	f.ok(f.Fill(f.ctx, first.From, first.Nonce)) // used
	next := f.prepare()
	if next.Nonce != second.Nonce+1 {
		t.Errorf("nonce %d after %d", next.Nonce, second.Nonce)
	}
	f.ok(f.Publish(f.ctx, next))
	f.ok(f.Fill(f.ctx, next.From, next.Nonce)) // held
	f.mine(2)
	f.balance(f.b, fil(12))
}
