package devnet_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-jsonrpc"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych/actor"
	"github.com/tallystick/tally/paych/devnet"
	"github.com/tallystick/tally/paych/lotus/wire"
)

const token = "0123456789abcdef0123456789abcdef"

// node is a chain behind HTTP.
type node struct {
	*chain
	url    string
	client *http.Client
}

func serve(t testing.TB, c *chain) *node {
	t.Helper()
	s, err := devnet.NewServer(c.Chain, token)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }() // ends with Shutdown
	transport := &http.Transport{}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := errors.Join(s.Shutdown(ctx), <-ended); err != nil {
			t.Error(err)
		}
	})
	return &node{chain: c, url: "http://" + l.Addr().String() + devnet.Path, client: &http.Client{Transport: transport}}
}

// rpcError is a failure in an answer.
type rpcError struct {
	Code    int
	Message string
}

func (e *rpcError) Error() string { return fmt.Sprintf("code %d: %s", e.Code, e.Message) }

// call returns the result of a method as the bytes that came.
func (n *node) call(ctx context.Context, method string, params ...any) (json.RawMessage, error) {
	if params == nil {
		params = []any{}
	}
	body, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, n.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := n.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var out struct {
		Result json.RawMessage
		Error  *rpcError
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &out); err != nil {
		return nil, fmt.Errorf("status %s: %s", resp.Status, data)
	}
	if out.Error != nil {
		return nil, out.Error
	}
	return out.Result, nil
}

// get calls a method and decodes its result.
func get[T any](n *node, method string, params ...any) T {
	n.t.Helper()
	raw, err := n.call(n.ctx, method, params...)
	if err != nil {
		n.t.Fatalf("%s: %v", method, err)
	}
	var out T
	if err := json.Unmarshal(raw, &out); err != nil {
		n.t.Fatalf("%s: %v in %s", method, err, raw)
	}
	return out
}

// text is a method's result as it came.
func (n *node) text(method string, params ...any) string {
	n.t.Helper()
	raw, err := n.call(n.ctx, method, params...)
	if err != nil {
		n.t.Fatalf("%s: %v", method, err)
	}
	return string(raw)
}

// keys are those of a JSON object, in order.
func keys(t testing.TB, raw string) []string {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		t.Fatal(err)
	}
	var out []string
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, key.(string))
		var skip json.RawMessage
		if err := dec.Decode(&skip); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestShapes holds what the node prints against what Lotus prints: the keys of
// each object, and how amounts, cids and absent things look.
func TestShapes(t *testing.T) {
	n := serve(t, newChain(t, devnet.Config{}))
	payer, payee := n.funded(fil(100)), n.funded(fil(1))
	ch := n.create(payer, payee.addr, fil(10))
	sv := payer.voucher(t, actor.SignedVoucher{ChannelAddr: ch, Lane: 3, Nonce: 1, Amount: fil(4)})
	redeem := payee.sign(t, toChannel(t, ch, actor.Redeem(sv, nil)))
	id := cidOf(t, redeem)
	if got := get[cid.Cid](n, "Filecoin.MpoolPush", redeem); got != id {
		t.Fatalf("MpoolPush answered %s, want %s", got, id)
	}
	link := map[string]string{"/": id.String()}
	if raw := n.text("Filecoin.StateSearchMsg", nil, link, -1, true); raw != "null" {
		t.Errorf("StateSearchMsg of a pending message: %s, want null", raw)
	}
	n.mine(2)
	head := get[wire.TipSet](n, "Filecoin.ChainHead")
	genesis := get[wire.TipSet](n, "Filecoin.ChainGetGenesis").Cids[0]
	other := newAccount(t)

	for _, tc := range []struct {
		method string
		params []any
		keys   string
		has    []string
	}{
		{"Filecoin.Version", nil, "Version APIVersion BlockDelay Agent", nil},
		{"Filecoin.ChainHead", nil, "Cids Blocks Height", []string{
			`"Cids":[{"/":"bafy`, `"ParentWeight":"`, `"ParentBaseFee":"0"`, `"Parents":[{"/":"`, `"BLSAggregate":null`, `"ForkSignaling":0`,
		}},
		{"Filecoin.ChainGetMessage", []any{link}, "Version To From Nonce Value GasLimit GasFeeCap GasPremium Method Params CID", []string{`"Value":"0"`, `"CID":{"/":"bafy`}},
		{"Filecoin.StateSearchMsg", []any{nil, link, -1, true}, "Message Receipt ReturnDec TipSet Height", []string{
			`"Receipt":{"ExitCode":0,"Return":null,"GasUsed":`, `"EventsRoot":null`, `"ReturnDec":null`, `"TipSet":[{"/":"`,
		}},
		{"Filecoin.StateGetActor", []any{ch, []any{}}, "Code Head Nonce Balance DelegatedAddress", []string{`"Code":{"/":"bafk2bzace`, `"Balance":"10000000000000000000"`, `"DelegatedAddress":null`}},
		{"Filecoin.StateReadState", []any{ch, nil}, "Balance Code State", []string{`"ToSend":"4000000000000000000"`, `"LaneStates":{"/":"bafy`, `"SettlingAt":0`}},
		{"Filecoin.StateReadState", []any{"f01", nil}, "Balance Code State", []string{`"NextID":1003`, `"NetworkName":"tally-devnet"`}},
		{"Filecoin.StateReadState", []any{payer.addr, nil}, "Balance Code State", []string{`"State":{"Address":"`}},
		{"Filecoin.StateCall", []any{redeem.Message, nil}, "MsgCid Msg MsgRct GasCost ExecutionTrace Error Duration", []string{`"ExitCode":16`}},
		{"Filecoin.GasEstimateMessageGas", []any{wire.Message{From: payer.addr, To: other.addr, Value: fil(1)}, nil, nil}, "Version To From Nonce Value GasLimit GasFeeCap GasPremium Method Params CID", []string{`"GasFeeCap":"0"`}},
		{"Tally.DevParams", nil, "SettleDelay Finality EpochNanos Faucet Manual", nil},
	} {
		raw := n.text(tc.method, tc.params...)
		if got := strings.Join(keys(t, raw), " "); got != tc.keys {
			t.Errorf("%s has keys %s, want %s", tc.method, got, tc.keys)
		}
		for _, want := range tc.has {
			if !strings.Contains(raw, want) {
				t.Errorf("%s: no %s in %s", tc.method, want, raw)
			}
		}
	}

	for _, tc := range []struct {
		method, want string
		params       []any
	}{
		{"Filecoin.StateNetworkName", `"tally-devnet"`, nil},
		{"Filecoin.StateNetworkVersion", `24`, []any{nil}},
		{"Filecoin.StateAccountKey", `"` + payer.addr.String() + `"`, []any{"f01000", nil}},
		{"Filecoin.StateLookupID", `"` + mustID(t, 1000).String() + `"`, []any{payer.addr, nil}},
		{"Filecoin.MpoolGetNonce", `1`, []any{payer.addr}},
		{"Filecoin.WalletBalance", `"0"`, []any{other.addr}},
		{"Filecoin.WalletBalance", `"90000000000000000000"`, []any{payer.addr}},
		{"Filecoin.WalletList", `[]`, nil},
		{"Filecoin.StateListMessages", `null`, []any{map[string]any{"To": other.addr, "From": "<empty>"}, nil, 0}},
		{"Filecoin.StateListMessages", `[{"/":"` + id.String() + `"}]`, []any{map[string]any{"To": ch}, nil, 0}},
		{"Filecoin.ChainGetParentMessages", `[]`, []any{genesis}},
		{"Filecoin.ChainGetParentReceipts", `[]`, []any{genesis}},
	} {
		if raw := n.text(tc.method, tc.params...); raw != tc.want {
			t.Errorf("%s: %s, want %s", tc.method, raw, tc.want)
		}
	}

	// The block that carried the message, and the one that has its receipt.
	carried := get[wire.TipSet](n, "Filecoin.ChainGetTipSetByHeight", head.Height-1, head.Cids)
	if got := get[[]wire.CidMessage](n, "Filecoin.ChainGetMessagesInTipset", carried.Cids); len(got) != 1 || got[0].Cid != id {
		t.Errorf("messages in tipset: %+v", got)
	}
	executed := head.Cids[0]
	if got := get[[]wire.CidMessage](n, "Filecoin.ChainGetParentMessages", executed); len(got) != 1 || got[0].Cid != id {
		t.Errorf("parent messages: %+v", got)
	}
	if got := get[[]wire.Receipt](n, "Filecoin.ChainGetParentReceipts", executed); len(got) != 1 || got[0].ExitCode != 0 {
		t.Errorf("parent receipts: %+v", got)
	}
	if head.Blocks[0].Parents[0] != carried.Cids[0] {
		t.Error("blocks are not chained")
	}
	// A block's cid is the hash of what ChainReadObj has for it.
	obj := get[[]byte](n, "Filecoin.ChainReadObj", executed)
	if got, err := wire.Cid(obj); err != nil || got != executed {
		t.Errorf("object of %s hashes to %s, %v", executed, got, err)
	}
	if data, err := head.Blocks[0].Bytes(); err != nil || !bytes.Equal(data, obj) {
		t.Errorf("printed header encodes to %x, want %x (%v)", data, obj, err)
	}
}

func mustID(t testing.TB, id uint64) address.Address {
	t.Helper()
	a, err := address.NewIDAddress(id)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestRPCErrors(t *testing.T) {
	n := serve(t, newChain(t, devnet.Config{}))
	a, other := n.funded(fil(5)), newAccount(t)
	unknown := cidOf(t, other.signAs(t, wire.Message{From: other.addr, To: other.addr}))
	for _, tc := range []struct {
		method string
		params []any
		code   int
		text   string
	}{
		{"Filecoin.StateGetActor", []any{other.addr, nil}, wire.CodeActorNotFound, "actor not found"},
		{"Filecoin.StateLookupID", []any{other.addr, nil}, wire.CodeActorNotFound, "actor not found"},
		{"Filecoin.MpoolGetNonce", []any{other.addr}, wire.CodeActorNotFound, "actor not found"},
		{"Filecoin.StateAccountKey", []any{"f01", nil}, 1, "is not account"},
		{"Filecoin.StateSearchMsg", []any{nil, unknown, -1, true}, 1, "ipld: could not find"},
		{"Filecoin.ChainReadObj", []any{unknown}, 1, "ipld: could not find"},
		{"Filecoin.ChainGetTipSetByHeight", []any{99, nil}, 1, "greater than start point"},
		{"Filecoin.ChainGetTipSet", []any{[]any{unknown}}, 1, "loading tipset"},
		{"Filecoin.StateListMessages", []any{map[string]any{}, nil, 0}, 1, "must specify at least To or From"},
		{"Filecoin.MpoolPushMessage", []any{wire.Message{From: a.addr, To: a.addr}, nil}, 1, "key not found"},
		{"Filecoin.WalletNew", []any{"bls"}, 1, "secp256k1"},
		{"Filecoin.GasEstimateMessageGas", []any{wire.Message{From: a.addr, To: other.addr, Value: fil(6)}, nil, nil}, 1, "message execution failed: exit SysErrInsufficientFunds(6)"},
		{"Filecoin.NoSuchMethod", nil, -32601, "not found"},
		{"Tally.DevMine", []any{-1}, 1, "too much"},
		{"Tally.DevReorg", []any{100000, false}, 1, "too much"},
	} {
		_, err := n.call(n.ctx, tc.method, tc.params...)
		var e *rpcError
		if !errors.As(err, &e) || e.Code != tc.code || !strings.Contains(e.Message, tc.text) {
			t.Errorf("%s: %v, want code %d with %q", tc.method, err, tc.code, tc.text)
		}
	}
}

func TestGuard(t *testing.T) {
	n := serve(t, newChain(t, devnet.Config{Before: func(_ context.Context, method string) error {
		if method == "Filecoin.WalletList" {
			return errors.New("down for a test")
		}
		return nil
	}}))
	const body = `{"jsonrpc":"2.0","id":1,"method":"Filecoin.ChainHead","params":[]}`
	for name, tc := range map[string]struct {
		change func(*http.Request)
		body   string
		want   int
	}{
		"good":        {func(*http.Request) {}, body, 200},
		"no token":    {func(r *http.Request) { r.Header.Del("Authorization") }, body, 401},
		"bad token":   {func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token+"x") }, body, 401},
		"rebound":     {func(r *http.Request) { r.Host = "evil.example:80" }, body, 403},
		"cross site":  {func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, body, 403},
		"get":         {func(r *http.Request) { r.Method = http.MethodGet }, body, 405},
		"form":        {func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, body, 415},
		"path":        {func(r *http.Request) { r.URL.Path = "/" }, body, 404},
		"batch":       {func(*http.Request) {}, "[" + body + "]", 400},
		"oversize":    {func(*http.Request) {}, `"` + strings.Repeat("x", 2<<20) + `"`, 413},
		"before hook": {func(*http.Request) {}, `{"jsonrpc":"2.0","id":1,"method":"Filecoin.WalletList","params":[]}`, 503},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, n.url, strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Authorization", "Bearer "+token)
			tc.change(r)
			resp, err := n.client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			if resp.StatusCode != tc.want {
				t.Errorf("status %d, want %d", resp.StatusCode, tc.want)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := n.Handler("short"); err == nil {
		t.Error("a token of five bytes was taken")
	}
	if l, err := net.Listen("tcp", "0.0.0.0:0"); err == nil {
		s, err := devnet.NewServer(n.Chain, token)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Serve(l); err == nil {
			t.Error("served on all interfaces")
		}
		_ = l.Close()
	}
}

// TestWallet: the node's own keys, and messages that it signs.
func TestWallet(t *testing.T) {
	n := serve(t, newChain(t, devnet.Config{BaseFee: big.NewInt(100)}))
	addr := get[address.Address](n, "Filecoin.WalletNew", "secp256k1")
	if !get[bool](n, "Filecoin.WalletHas", addr) || get[bool](n, "Filecoin.WalletHas", mustID(t, 5)) {
		t.Error("WalletHas")
	}
	if got := get[[]address.Address](n, "Filecoin.WalletList"); !slices.Equal(got, []address.Address{addr}) {
		t.Errorf("WalletList: %v", got)
	}
	get[cid.Cid](n, "Tally.DevFaucet", addr, fil(5).String())
	get[int](n, "Tally.DevMine", 2)
	if sig := get[map[string]any](n, "Filecoin.WalletSign", addr, []byte("data")); sig["Type"] != 1.0 {
		t.Errorf("WalletSign: %v", sig)
	}
	other := newAccount(t)
	var first, second wire.SignedMessage
	for _, m := range []*wire.SignedMessage{&first, &second} {
		*m = get[wire.SignedMessage](n, "Filecoin.MpoolPushMessage", wire.Message{From: addr, To: other.addr, Value: fil(1)}, map[string]any{"MaxFee": "0"})
	}
	if first.Message.Nonce != 0 || second.Message.Nonce != 1 || first.Message.GasFeeCap.Sign() <= 0 {
		t.Errorf("pushed %+v and %+v", first.Message, second.Message)
	}
	if err := errors.Join(first.Verify(), second.Verify()); err != nil {
		t.Error(err)
	}
	full := get[wire.Message](n, "Filecoin.GasEstimateMessageGas", wire.Message{From: addr, To: other.addr, Value: fil(1)}, nil, nil)
	full.Nonce = get[uint64](n, "Filecoin.MpoolGetNonce", addr)
	signed := get[wire.SignedMessage](n, "Filecoin.WalletSignMessage", addr, full)
	get[cid.Cid](n, "Filecoin.MpoolPush", signed)
	get[int](n, "Tally.DevMine", 2)
	n.wantBalance(other.addr, fil(3))
	if _, err := n.call(n.ctx, "Filecoin.MpoolPush", signed); err == nil || !strings.Contains(err.Error(), "message nonce too low") {
		t.Errorf("push of a mined message: %v", err)
	}
}

// TestWaitMsg waits over HTTP while blocks come, through a reorg and with a
// return value.
func TestWaitMsg(t *testing.T) {
	n := serve(t, newChain(t, devnet.Config{}))
	a := n.funded(fil(5))
	id := n.push(a.sign(t, createMessage(t, a.addr, a.addr, fil(1))))
	got := make(chan wire.MsgLookup, 1)
	go func() { got <- get[wire.MsgLookup](n, "Filecoin.StateWaitMsg", id, 2, -1, true) }()
	n.mine(2)
	if err := n.Reorg(n.ctx, 2, false); err != nil {
		t.Fatal(err)
	}
	if height := get[int](n, "Tally.DevMine", 4); height < 4 {
		t.Errorf("height %d", height)
	}
	found := <-got
	if found.Message != id || found.Receipt.ExitCode != exitcode.Ok {
		t.Errorf("found %+v", found)
	}
	if dec, ok := found.ReturnDec.(map[string]any); !ok || dec["RobustAddress"] == nil || dec["IDAddress"] == nil {
		t.Errorf("decoded return: %v", found.ReturnDec)
	}
	// A wait that nobody ends stops with its caller.
	ctx, cancel := context.WithCancel(t.Context())
	pending := n.push(a.sign(t, wire.Message{To: a.addr}))
	go func() { n.mine(0); cancel() }()
	if _, err := n.call(ctx, "Filecoin.StateWaitMsg", pending, 0, -1, true); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled wait: %v", err)
	}
}

// TestChainNotify follows the head over a websocket with go-jsonrpc's own
// client, as Lotus' clients do.
func TestChainNotify(t *testing.T) {
	n := serve(t, newChain(t, devnet.Config{}))
	var client struct {
		ChainNotify func(context.Context) (<-chan []*wire.HeadChange, error)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	closer, err := jsonrpc.NewMergeClient(ctx, strings.Replace(n.url, "http:", "ws:", 1), "Filecoin", []any{&client},
		http.Header{"Authorization": {"Bearer " + token}}, jsonrpc.WithNoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	defer closer()
	heads, err := client.ChainNotify(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	read := func() {
		for _, ch := range <-heads {
			seen = append(seen, fmt.Sprintf("%s %d", ch.Type, ch.Val.Height))
		}
	}
	read()
	n.mine(2)
	read()
	read()
	if err := n.Reorg(n.ctx, 2, false); err != nil {
		t.Fatal(err)
	}
	read()
	n.mine(1)
	read()
	want := []string{"current 0", "apply 1", "apply 2", "revert 2", "revert 1", "apply 1"}
	if !slices.Equal(seen, want) {
		t.Errorf("saw %v, want %v", seen, want)
	}
}

// TestBlockTime: blocks come by themselves.
func TestBlockTime(t *testing.T) {
	n := serve(t, newChain(t, devnet.Config{BlockTime: 5 * time.Millisecond}))
	a := newAccount(t)
	id, err := n.Faucet(n.ctx, a.addr, fil(1))
	if err != nil {
		t.Fatal(err)
	}
	if found := get[wire.MsgLookup](n, "Filecoin.StateWaitMsg", id, 1, -1, true); found.Receipt.ExitCode != exitcode.Ok {
		t.Errorf("found %+v", found)
	}
}

// A node that was made slow holds its answers back, but not those of our own
// methods, which make it fast again.
func TestLatency(t *testing.T) {
	n := serve(t, newChain(t, devnet.Config{Latency: devnet.MaxLatency}))
	ctx, cancel := context.WithTimeout(n.ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := n.call(ctx, "Filecoin.ChainHead"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a slow node answered: %v", err)
	}
	if p := get[wire.DevParams](n, "Tally.DevParams"); !p.Manual {
		t.Error("a chain without a block time does not say so")
	}
	if _, err := n.call(n.ctx, "Tally.DevLatency", -1); err == nil || !strings.Contains(err.Error(), "too much") {
		t.Errorf("latency below 0: %v", err)
	}
	get[bool](n, "Tally.DevLatency", 0)
	get[wire.TipSet](n, "Filecoin.ChainHead")
}
