package devnet_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/filecoin-project/go-address"
	gocrypto "github.com/filecoin-project/go-crypto"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/builtin"
	inittypes "github.com/filecoin-project/go-state-types/builtin/v16/init"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"
	cbg "github.com/whyrusleeping/cbor-gen"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych/actor"
	"github.com/tallystick/tally/paych/devnet"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// fil is n FIL in attoFIL.
func fil(n int64) big.Int { return big.Mul(big.NewInt(n), big.NewInt(1e18)) }

// account is a key of a test.
type account struct {
	key   []byte
	addr  address.Address
	nonce uint64
}

func newAccount(t testing.TB) *account {
	t.Helper()
	key, err := gocrypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	addr, err := wire.KeyAddress(key)
	if err != nil {
		t.Fatal(err)
	}
	return &account{key: key, addr: addr}
}

// sign makes a signed message of a's with its next nonce.
func (a *account) sign(t testing.TB, m wire.Message) *wire.SignedMessage {
	t.Helper()
	m.From, m.Nonce = a.addr, a.nonce
	a.nonce++
	return a.signAs(t, m)
}

// signAs signs m as it is.
func (a *account) signAs(t testing.TB, m wire.Message) *wire.SignedMessage {
	t.Helper()
	if m.GasLimit == 0 {
		m.GasLimit = 20_000_000
	}
	for _, v := range []*big.Int{&m.Value, &m.GasFeeCap, &m.GasPremium} {
		if v.Int == nil {
			*v = big.Zero()
		}
	}
	id, err := m.Cid()
	if err != nil {
		t.Fatal(err)
	}
	sig, err := wire.Sign(a.key, id.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return &wire.SignedMessage{Message: m, Signature: *sig}
}

// chain is a chain of a test, with blocks by hand.
type chain struct {
	*devnet.Chain
	t   testing.TB
	ctx context.Context
}

func newChain(t testing.TB, cfg devnet.Config) *chain {
	t.Helper()
	store := durabletest.NewMem()
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return openChain(t, store, cfg)
}

func openChain(t testing.TB, store *durable.Store, cfg devnet.Config) *chain {
	t.Helper()
	if cfg.BlockTime == 0 {
		cfg.BlockTime = devnet.Manual
	}
	c, err := devnet.Open(t.Context(), store, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return &chain{c, t, context.WithoutCancel(t.Context())}
}

func (c *chain) mine(n int) {
	c.t.Helper()
	if err := c.Mine(c.ctx, n); err != nil {
		c.t.Fatal(err)
	}
	if err := c.Check(c.ctx); err != nil {
		c.t.Fatal(err)
	}
}

// funded is a new account with amount.
func (c *chain) funded(amount big.Int) *account {
	c.t.Helper()
	a := newAccount(c.t)
	if _, err := c.Faucet(c.ctx, a.addr, amount); err != nil {
		c.t.Fatal(err)
	}
	c.mine(1)
	c.wantBalance(a.addr, amount)
	return a
}

func (c *chain) wantBalance(a address.Address, want big.Int) {
	c.t.Helper()
	got, err := c.Balance(c.ctx, a)
	if err != nil {
		c.t.Fatal(err)
	}
	if !got.Equals(want) {
		c.t.Fatalf("balance of %s is %v, want %v", a, got, want)
	}
}

func (c *chain) push(s *wire.SignedMessage) cid.Cid {
	c.t.Helper()
	id, err := c.Push(c.ctx, s)
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

// run pushes a message, makes two blocks and returns its receipt.
func (c *chain) run(s *wire.SignedMessage) wire.Receipt {
	c.t.Helper()
	id := c.push(s)
	c.mine(2)
	return c.receipt(id)
}

func (c *chain) receipt(id cid.Cid) wire.Receipt {
	c.t.Helper()
	found, err := c.Search(c.ctx, id)
	if err != nil {
		c.t.Fatal(err)
	}
	if found == nil {
		c.t.Fatalf("message %s was not mined", id)
		return wire.Receipt{}
	}
	return found.Receipt
}

func (c *chain) wantExit(s *wire.SignedMessage, want exitcode.ExitCode) wire.Receipt {
	c.t.Helper()
	r := c.run(s)
	if r.ExitCode != want {
		c.t.Fatalf("exit code %d, want %d", r.ExitCode, want)
	}
	return r
}

func encode(t testing.TB, v cbg.CBORMarshaler) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := v.MarshalCBOR(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// createMessage makes a channel.
func createMessage(t testing.TB, from, to address.Address, value big.Int) wire.Message {
	t.Helper()
	return wire.Message{
		To: builtin.InitActorAddr, Method: builtin.MethodsInit.Exec, Value: value,
		Params: encode(t, &inittypes.ExecParams{
			CodeCID:           devnet.ChannelCode(),
			ConstructorParams: encode(t, &actor.ConstructorParams{From: from, To: to}),
		}),
	}
}

// create makes a channel and returns its f2 address.
func (c *chain) create(from *account, to address.Address, value big.Int) address.Address {
	c.t.Helper()
	r := c.wantExit(from.sign(c.t, createMessage(c.t, from.addr, to, value)), exitcode.Ok)
	var ret inittypes.ExecReturn
	if err := ret.UnmarshalCBOR(bytes.NewReader(r.Return)); err != nil {
		c.t.Fatal(err)
	}
	if ret.RobustAddress.Protocol() != address.Actor || ret.IDAddress.Protocol() != address.ID {
		c.t.Fatalf("Exec returned %s and %s", ret.IDAddress, ret.RobustAddress)
	}
	return ret.RobustAddress
}

// voucher is signed by a.
func (a *account) voucher(t testing.TB, sv actor.SignedVoucher) actor.SignedVoucher {
	t.Helper()
	data, err := sv.SigningBytes()
	if err != nil {
		t.Fatal(err)
	}
	if sv.Signature, err = wire.Sign(a.key, data); err != nil {
		t.Fatal(err)
	}
	return sv
}

// toChannel is a message to a channel.
func toChannel(t testing.TB, ch address.Address, m actor.Msg) wire.Message {
	t.Helper()
	params, err := m.Params()
	if err != nil {
		t.Fatal(err)
	}
	return wire.Message{To: ch, Method: m.Method, Params: params}
}

// TestChannelLife is one channel from Exec to Collect, with money counted at
// each block.
func TestChannelLife(t *testing.T) {
	c := newChain(t, devnet.Config{SettleDelay: 5})
	payer, payee := c.funded(fil(100)), c.funded(fil(1))
	ch := c.create(payer, payee.addr, fil(10))
	c.wantBalance(ch, fil(10))
	c.wantBalance(payer.addr, fil(90))

	c.wantExit(payer.sign(t, wire.Message{To: ch, Value: fil(2)}), exitcode.Ok)
	c.wantBalance(ch, fil(12))

	sv := payer.voucher(t, actor.SignedVoucher{ChannelAddr: ch, Lane: 3, Nonce: 1, Amount: fil(4)})
	c.wantExit(payee.sign(t, toChannel(t, ch, actor.Redeem(sv, nil))), exitcode.Ok)
	c.wantExit(payee.sign(t, toChannel(t, ch, actor.Redeem(sv, nil))), exitcode.ErrIllegalArgument)
	c.wantExit(payee.sign(t, toChannel(t, ch, actor.Collect())), exitcode.ErrForbidden)
	c.wantExit(payer.sign(t, toChannel(t, ch, actor.Settle())), exitcode.Ok)
	c.wantExit(payer.sign(t, toChannel(t, ch, actor.Settle())), exitcode.ErrIllegalState)
	c.mine(5)
	late := payer.voucher(t, actor.SignedVoucher{ChannelAddr: ch, Lane: 3, Nonce: 2, Amount: fil(5)})
	c.wantExit(payee.sign(t, toChannel(t, ch, actor.Redeem(late, nil))), actor.ExitChannelSettled)
	c.wantExit(payee.sign(t, toChannel(t, ch, actor.Collect())), exitcode.Ok)
	c.wantBalance(ch, big.Zero())
	c.wantBalance(payee.addr, fil(5))
	c.wantBalance(payer.addr, fil(96))

	// The actor is gone, and nothing can be sent there any more.
	c.wantExit(payer.sign(t, wire.Message{To: ch, Value: fil(1)}), exitcode.SysErrInvalidReceiver)
}

// TestRobustAddress pins the f2 address of a channel to the bytes that Filecoin
// hashes: the sender's address in CBOR, its nonce, and a zero, both eight bytes
// big endian.
func TestRobustAddress(t *testing.T) {
	c := newChain(t, devnet.Config{})
	payer := c.funded(fil(10))
	got := c.create(payer, payer.addr, fil(1))
	seed := append(append([]byte{0x55}, payer.addr.Bytes()...), make([]byte, 16)...)
	want, err := address.NewActorAddress(seed)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatalf("channel at %s, want %s", got, want)
	}
}

func TestPushRefuses(t *testing.T) {
	c := newChain(t, devnet.Config{})
	a, b := c.funded(fil(10)), c.funded(fil(10))
	c.push(a.sign(t, wire.Message{To: b.addr, Value: fil(1)}))
	c.mine(1)
	poor := newAccount(t)

	send := wire.Message{From: a.addr, To: b.addr, Nonce: a.nonce, Value: fil(1)}
	with := func(f func(*wire.Message)) wire.Message { m := send; f(&m); return m }
	flipped := a.signAs(t, send)
	flipped.Signature.Data[10] ^= 1
	altered := a.signAs(t, send)
	altered.Message.Value = fil(9)
	bls := a.signAs(t, send)
	bls.Signature.Type = 2

	for name, tc := range map[string]struct {
		msg  *wire.SignedMessage
		want error
	}{
		"flipped signature":     {flipped, wire.ErrSignature},
		"altered message":       {altered, wire.ErrSignature},
		"key of another":        {b.signAs(t, send), wire.ErrSignature},
		"bls":                   {bls, wire.ErrSignature},
		"nonce below":           {a.signAs(t, with(func(m *wire.Message) { m.Nonce = 0 })), devnet.ErrNonceTooLow},
		"nonce far above":       {a.signAs(t, with(func(m *wire.Message) { m.Nonce = 100_000 })), devnet.ErrNonceGap},
		"unknown sender":        {poor.signAs(t, with(func(m *wire.Message) { m.From = poor.addr })), devnet.ErrNoActor},
		"no funds for gas":      {a.signAs(t, with(func(m *wire.Message) { m.GasFeeCap = fil(1) })), devnet.ErrFunds},
		"premium above fee cap": {a.signAs(t, with(func(m *wire.Message) { m.GasPremium = big.NewInt(1) })), wire.ErrMessage},
		"version":               {a.signAs(t, with(func(m *wire.Message) { m.Version = 1 })), wire.ErrMessage},
		"value below zero":      {a.signAs(t, with(func(m *wire.Message) { m.Value = big.NewInt(-1) })), wire.ErrMessage},
		"value above supply":    {a.signAs(t, with(func(m *wire.Message) { m.Value = fil(3_000_000_000) })), wire.ErrMessage},
		"gas above a block":     {a.signAs(t, with(func(m *wire.Message) { m.GasLimit = wire.BlockGasLimit + 1 })), wire.ErrMessage},
		"params oversize":       {a.signAs(t, with(func(m *wire.Message) { m.Params = make([]byte, wire.MaxParamsBytes+1) })), wire.ErrMessage},
		"message oversize":      {a.signAs(t, with(func(m *wire.Message) { m.Params = make([]byte, wire.MaxMessageBytes) })), devnet.ErrTooBig},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := c.Push(c.ctx, tc.msg); !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
		})
	}
	c.mine(2)
	c.wantBalance(b.addr, fil(11))
}

// TestPoolOrder: nonces run in order, a gap waits, and a replacement needs a
// quarter more premium.
func TestPoolOrder(t *testing.T) {
	c := newChain(t, devnet.Config{})
	a, b := c.funded(fil(10)), newAccount(t)
	m := func(nonce uint64, value int64, premium int64) *wire.SignedMessage {
		return a.signAs(t, wire.Message{
			From: a.addr, To: b.addr, Nonce: nonce, Value: fil(value),
			GasFeeCap: big.NewInt(premium), GasPremium: big.NewInt(premium),
		})
	}
	third := c.push(m(2, 1, 0))
	first := c.push(m(0, 1, 100))
	c.mine(2)
	c.receipt(first)
	if found, err := c.Search(c.ctx, third); err != nil || found != nil {
		t.Fatalf("nonce 2 was mined before nonce 1: %v, %v", found, err)
	}

	old := c.push(m(1, 3, 100))
	if _, err := c.Push(c.ctx, m(1, 3, 100)); !errors.Is(err, devnet.ErrPremium) && !errors.Is(err, devnet.ErrExists) {
		t.Fatalf("same premium: %v", err)
	}
	if _, err := c.Push(c.ctx, m(1, 3, 124)); !errors.Is(err, devnet.ErrPremium) {
		t.Fatalf("premium 124: %v", err)
	}
	better := c.push(m(1, 3, 125))
	c.mine(2)
	// The replaced message is found under the cid of the one that replaced it.
	found, err := c.Search(c.ctx, old)
	if err != nil || found == nil || found.Message != better {
		t.Fatalf("replaced message: %+v, %v", found, err)
	}
	c.receipt(third)
	c.wantBalance(b.addr, fil(5))
}

func TestPoolBound(t *testing.T) {
	c := newChain(t, devnet.Config{})
	a := c.funded(fil(10))
	for range 1000 {
		c.push(a.sign(t, wire.Message{To: a.addr}))
	}
	if _, err := c.Push(c.ctx, a.sign(t, wire.Message{To: a.addr})); !errors.Is(err, devnet.ErrPoolFull) {
		t.Fatalf("message 1001: %v", err)
	}
	c.mine(3)
	if got, err := c.Search(c.ctx, cidOf(t, a.signAs(t, wire.Message{From: a.addr, To: a.addr, Nonce: 0}))); err == nil && got == nil {
		t.Fatal("first message was not mined")
	}
}

func cidOf(t testing.TB, s *wire.SignedMessage) cid.Cid {
	t.Helper()
	id, err := s.Cid()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestGas(t *testing.T) {
	c := newChain(t, devnet.Config{BaseFee: big.NewInt(100)})
	a, b := c.funded(fil(10)), c.funded(fil(1))
	r := c.wantExit(a.sign(t, wire.Message{
		To: b.addr, Value: fil(1), GasLimit: 1_000_000, GasFeeCap: big.NewInt(300), GasPremium: big.NewInt(50),
	}), exitcode.Ok)
	fee := big.NewInt(100*r.GasUsed + 50*1_000_000)
	c.wantBalance(a.addr, big.Sub(fil(9), fee))

	// Below the base fee a message waits; too little gas fails and costs it all.
	waiting := c.push(a.sign(t, wire.Message{To: b.addr, GasFeeCap: big.NewInt(99)}))
	c.mine(3)
	if found, err := c.Search(c.ctx, waiting); err != nil || found != nil {
		t.Fatalf("a message below the base fee was mined: %+v, %v", found, err)
	}
	r = c.wantExit(b.sign(t, wire.Message{To: a.addr, Value: fil(1), GasLimit: 1000, GasFeeCap: big.NewInt(100)}), exitcode.SysErrOutOfGas)
	if r.GasUsed != 1000 {
		t.Fatalf("gas used %d, want the limit of 1000", r.GasUsed)
	}
	c.wantBalance(b.addr, big.Sub(fil(2), big.NewInt(100*1000)))
}

func TestFailNext(t *testing.T) {
	c := newChain(t, devnet.Config{})
	a, b := c.funded(fil(10)), newAccount(t)
	if err := c.FailNext(c.ctx, 42, 1); err != nil {
		t.Fatal(err)
	}
	c.wantExit(a.sign(t, wire.Message{To: b.addr, Value: fil(1)}), 42)
	c.wantBalance(b.addr, big.Zero())
	c.wantBalance(a.addr, fil(10))
	c.wantExit(a.sign(t, wire.Message{To: b.addr, Value: fil(1)}), exitcode.Ok)
}

func TestSendErrors(t *testing.T) {
	c := newChain(t, devnet.Config{})
	a := c.funded(fil(10))
	nowhere, err := address.NewActorAddress([]byte("nowhere"))
	if err != nil {
		t.Fatal(err)
	}
	c.wantExit(a.sign(t, wire.Message{To: nowhere, Value: fil(1)}), exitcode.SysErrInvalidReceiver)
	c.wantExit(a.sign(t, wire.Message{To: a.addr, Value: fil(11)}), exitcode.SysErrInsufficientFunds)
	c.wantExit(a.sign(t, wire.Message{To: a.addr, Method: 7}), exitcode.ErrUnhandledMessage)
	c.wantExit(a.sign(t, wire.Message{To: builtin.InitActorAddr, Method: builtin.MethodsInit.Exec, Params: []byte{1}}), exitcode.ErrSerialization)
	ch := c.create(a, a.addr, fil(1))
	c.wantExit(a.sign(t, wire.Message{To: ch, Method: actor.MethodConstructor}), exitcode.SysErrForbidden)
	c.wantExit(a.sign(t, wire.Message{To: ch, Method: actor.MethodUpdateChannelState, Params: []byte{0x82}}), exitcode.ErrSerialization)
	c.wantBalance(a.addr, fil(9))
}

func TestReorg(t *testing.T) {
	c := newChain(t, devnet.Config{})
	payer, payee := c.funded(fil(100)), c.funded(fil(1))
	before := c.Head()
	ch := c.create(payer, payee.addr, fil(10))
	top := c.push(payer.sign(t, wire.Message{To: ch, Value: fil(1)}))
	c.mine(1)
	c.wantBalance(ch, fil(11))

	if err := c.Reorg(c.ctx, 3, false); err != nil {
		t.Fatal(err)
	}
	if c.Head() != before {
		t.Fatalf("head at %d, want %d", c.Head(), before)
	}
	c.wantBalance(ch, big.Zero())
	c.wantBalance(payer.addr, fil(100))
	if found, err := c.Search(c.ctx, top); err != nil || found != nil {
		t.Fatalf("found %+v, %v after the reorg", found, err)
	}
	// The messages came back to the pool and are mined again, to the same end.
	c.mine(2)
	c.receipt(top)
	c.wantBalance(ch, fil(11))

	// Dropped messages are gone; the sender has to send them again.
	if err := c.Reorg(c.ctx, 2, true); err != nil {
		t.Fatal(err)
	}
	c.mine(3)
	c.wantBalance(ch, big.Zero())
	c.wantBalance(payer.addr, fil(100))

	for _, n := range []int{0, -1, int(c.Head()) + 1} {
		if err := c.Reorg(c.ctx, n, false); !errors.Is(err, devnet.ErrLimit) {
			t.Errorf("reorg of %d: %v", n, err)
		}
	}
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	open := func() (*durable.Store, *chain) {
		store, err := durable.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		c, err := devnet.Open(t.Context(), store, devnet.Config{BlockTime: devnet.Manual})
		if err != nil {
			t.Fatal(err)
		}
		return store, &chain{c, t, t.Context()}
	}
	shut := func(store *durable.Store, c *chain) {
		if err := errors.Join(c.Close(), store.Close()); err != nil {
			t.Fatal(err)
		}
	}
	store, c := open()
	a, b := c.funded(fil(10)), newAccount(t)
	mined := c.push(a.sign(t, wire.Message{To: b.addr, Value: fil(1)}))
	c.mine(2)
	waiting := c.push(a.sign(t, wire.Message{To: b.addr, Value: fil(2)}))
	params, height := c.Params(), c.Head()
	shut(store, c)

	store, c = open()
	defer func() { shut(store, c) }()
	if got := c.Params(); got != params || c.Head() != height {
		t.Fatalf("after restart %+v at %d, want %+v at %d", got, c.Head(), params, height)
	}
	c.receipt(mined)
	c.mine(2)
	c.receipt(waiting)
	c.wantBalance(b.addr, fil(3))
	if err := c.Mine(c.ctx, -1); !errors.Is(err, devnet.ErrLimit) {
		t.Fatal(err)
	}
}

func TestOpenRefusesOtherChain(t *testing.T) {
	store := durabletest.NewMem()
	defer func() { _ = store.Close() }()
	c := openChain(t, store, devnet.Config{SettleDelay: 7})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []devnet.Config{{SettleDelay: 8}, {Network: "other"}, {Finality: 3}} {
		if _, err := devnet.Open(t.Context(), store, cfg); !errors.Is(err, devnet.ErrConfig) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
	if err := c.Mine(t.Context(), 1); !errors.Is(err, devnet.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	c = openChain(t, store, devnet.Config{})
	if got := c.Params().SettleDelay; got != abi.ChainEpoch(7) {
		t.Errorf("settle delay %d, want 7", got)
	}
}
