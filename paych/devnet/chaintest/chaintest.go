// Package chaintest is the contract of paych.Chain as tests, for every
// implementation of it: a client of a node, or a twin in memory. The chain under
// test must be one whose blocks are made by hand.
package chaintest

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/builtin"
	inittypes "github.com/filecoin-project/go-state-types/builtin/v8/init"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/actor"
)

// Under is a chain under test with the hands that move it. Each call of the
// opener makes a new one, which the opener's t closes.
type Under struct {
	Chain paych.Chain
	// Code is the code cid that Init.Exec makes channels of.
	Code cid.Cid
	// Account makes a key with money, in attoFIL, that Prepare can sign for.
	Account func(t testing.TB, amount big.Int) address.Address
	// Sign signs with such a key.
	Sign func(t testing.TB, a address.Address, data []byte) *crypto.Signature
	// Mine makes n blocks; Reorg reverts n, and their messages come back.
	Mine, Reorg func(t testing.TB, n int)
	// FailNext makes the next message fail with code.
	FailNext func(t testing.TB, code exitcode.ExitCode)
}

// limit ends a test that hangs.
const limit = 30 * time.Second

// settle is how many blocks show a message executed: one that carries it, and
// one whose state has it.
const settle = 2

type run struct {
	*Under
	t            testing.TB
	ctx          context.Context
	payer, payee address.Address
}

// Run runs all tests. SettleDelay of the chain must be 5.
func Run(t *testing.T, opener func(t testing.TB) *Under) {
	for _, tc := range []struct {
		name string
		do   func(*run)
	}{
		{"params", (*run).params},
		{"life of a channel", (*run).life},
		{"publish is idempotent", (*run).idempotent},
		{"prepare side by side", (*run).sideBySide},
		{"failed message", (*run).failed},
		{"not found", (*run).notFound},
		{"heads", (*run).heads},
		{"wait through a reorg", (*run).reorg},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			r := &run{Under: opener(t), t: t, ctx: ctx}
			r.payer, r.payee = r.Account(t, fil(100)), r.Account(t, fil(1))
			tc.do(r)
		})
	}
}

func fil(n int64) big.Int { return big.Mul(big.NewInt(n), big.NewInt(1e18)) }

func (r *run) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *run) prepare(m paych.Message) *paych.SignedMessage {
	r.t.Helper()
	if m.Value.Int == nil {
		m.Value = big.Zero()
	}
	s, err := r.Chain.Prepare(r.ctx, m)
	r.ok(err)
	return s
}

// send publishes a message and makes the blocks that show it executed.
func (r *run) send(m paych.Message) *paych.Receipt {
	r.t.Helper()
	s := r.prepare(m)
	r.ok(r.Chain.Publish(r.ctx, s))
	r.Mine(r.t, settle)
	got, err := r.Chain.Wait(r.ctx, s.Cid, 0)
	r.ok(err)
	if got.Cid != s.Cid {
		r.t.Errorf("receipt of %s, want %s", got.Cid, s.Cid)
	}
	return got
}

func (r *run) createMessage(value big.Int) paych.Message {
	r.t.Helper()
	var ctor, exec bytes.Buffer
	r.ok((&actor.ConstructorParams{From: r.payer, To: r.payee}).MarshalCBOR(&ctor))
	r.ok((&inittypes.ExecParams{CodeCID: r.Code, ConstructorParams: ctor.Bytes()}).MarshalCBOR(&exec))
	return paych.Message{From: r.payer, To: builtin.InitActorAddr, Value: value, Method: builtin.MethodsInit.Exec, Params: exec.Bytes()}
}

func (r *run) create(value big.Int) (address.Address, *paych.Receipt) {
	r.t.Helper()
	got := r.send(r.createMessage(value))
	var ret inittypes.ExecReturn
	r.ok(ret.UnmarshalCBOR(bytes.NewReader(got.Return)))
	return ret.RobustAddress, got
}

func (r *run) call(from, ch address.Address, m actor.Msg) paych.Message {
	r.t.Helper()
	params, err := m.Params()
	r.ok(err)
	return paych.Message{From: from, To: ch, Method: m.Method, Params: params}
}

func (r *run) balance(a address.Address, want big.Int) {
	r.t.Helper()
	got, err := r.Chain.Balance(r.ctx, a)
	r.ok(err)
	if !got.Equals(want) {
		r.t.Errorf("balance of %s is %v, want %v", a, got, want)
	}
}

func (r *run) params() {
	p := r.Chain.Params()
	if p.Network == "" || !p.Genesis.Defined() || p.SettleDelay != 5 || p.Epoch <= 0 || p.Finality <= 0 {
		r.t.Errorf("params %+v", p)
	}
	key, err := r.Chain.ResolveKey(r.ctx, r.payer)
	if err != nil || key != r.payer {
		r.t.Errorf("key of a key address: %s, %v", key, err)
	}
}

func (r *run) life() {
	ch, made := r.create(fil(10))
	st, balance, err := r.Chain.Channel(r.ctx, ch, 0)
	r.ok(err)
	if !balance.Equals(fil(10)) || len(st.Lanes) != 0 || st.SettlingAt != 0 || st.ToSend.Sign() != 0 {
		r.t.Errorf("new channel %+v with %v", st, balance)
	}
	for id, want := range map[address.Address]address.Address{st.From: r.payer, st.To: r.payee} {
		if key, err := r.Chain.ResolveKey(r.ctx, id); err != nil || key != want {
			r.t.Errorf("key of %s: %s, %v, want %s", id, key, err, want)
		}
	}
	head, err := r.Chain.Head(r.ctx)
	r.ok(err)
	if _, _, err := r.Chain.Channel(r.ctx, ch, head-made.Height+1); !errors.Is(err, paych.ErrNotFound) {
		r.t.Errorf("channel before it was made: %v", err)
	}

	sv := actor.SignedVoucher{ChannelAddr: ch, Lane: 7, Nonce: 2, Amount: fil(4)}
	data, err := sv.SigningBytes()
	r.ok(err)
	sv.Signature = r.Sign(r.t, r.payer, data)
	redeemed := r.send(r.call(r.payee, ch, actor.Redeem(sv, nil)))
	topped := r.send(paych.Message{From: r.payer, To: ch, Value: fil(1)})
	settled := r.send(r.call(r.payer, ch, actor.Settle()))
	st, balance, err = r.Chain.Channel(r.ctx, ch, 0)
	r.ok(err)
	if !balance.Equals(fil(11)) || len(st.Lanes) != 1 || st.Lanes[0].Lane != 7 || st.Lanes[0].Nonce != 2 || !st.ToSend.Equals(fil(4)) || st.SettlingAt == 0 {
		r.t.Errorf("settling channel %+v with %v", st, balance)
	}
	r.Mine(r.t, 6)
	collected := r.send(r.call(r.payee, ch, actor.Collect()))
	for _, got := range []*paych.Receipt{redeemed, topped, settled, collected} {
		if got.ExitCode != exitcode.Ok {
			r.t.Fatalf("exit code %d", got.ExitCode)
		}
	}
	r.balance(r.payee, fil(5))
	r.balance(r.payer, fil(96))
	r.balance(ch, big.Zero())

	// What is left of a collected channel: its last state, and its calls.
	head, err = r.Chain.Head(r.ctx)
	r.ok(err)
	if _, _, err := r.Chain.Channel(r.ctx, ch, 0); !errors.Is(err, paych.ErrCollected) {
		r.t.Errorf("collected channel: %v", err)
	}
	if _, _, err := r.Chain.Channel(r.ctx, ch, head-collected.Height); !errors.Is(err, paych.ErrCollected) {
		r.t.Errorf("channel when it was collected: %v", err)
	}
	last, balance, err := r.Chain.Channel(r.ctx, ch, head-collected.Height+1)
	r.ok(err)
	if !last.ToSend.Equals(fil(4)) || !balance.Equals(fil(11)) {
		r.t.Errorf("last state %+v with %v", last, balance)
	}
	calls, err := r.Chain.Calls(r.ctx, ch, 0, head)
	r.ok(err)
	want := []*paych.Receipt{redeemed, topped, settled, collected}
	if len(calls) != len(want) {
		r.t.Fatalf("%d calls, want %d: %+v", len(calls), len(want), calls)
	}
	for i, call := range calls {
		if call.Cid != want[i].Cid || call.Height != want[i].Height || call.ExitCode != exitcode.Ok {
			r.t.Errorf("call %d is %+v, want %+v", i, call, want[i])
		}
	}
	if calls[0].From != r.payee || calls[0].Method != actor.MethodUpdateChannelState || !calls[1].Value.Equals(fil(1)) {
		r.t.Errorf("calls %+v", calls)
	}
	if msg, code := actor.DecodeMsg(calls[0].Method, calls[0].Params); code != exitcode.Ok || msg.Update.Sv.Nonce != 2 {
		r.t.Errorf("voucher of the first call: %+v, %d", msg, code)
	}
	part, err := r.Chain.Calls(r.ctx, ch, topped.Height, settled.Height)
	r.ok(err)
	if len(part) != 2 || part[0].Cid != topped.Cid || part[1].Cid != settled.Cid {
		r.t.Errorf("calls of a part: %+v", part)
	}
	if none, err := r.Chain.Calls(r.ctx, ch, head+1, head+9); err != nil || len(none) != 0 {
		r.t.Errorf("calls of the future: %+v, %v", none, err)
	}
}

func (r *run) idempotent() {
	s := r.prepare(paych.Message{From: r.payer, To: r.payee, Value: fil(1)})
	r.balance(r.payee, fil(1)) // nothing left
	for range 3 {
		r.ok(r.Chain.Publish(r.ctx, s))
	}
	r.Mine(r.t, 1)
	r.ok(r.Chain.Publish(r.ctx, s)) // in a block, its effect not yet in a state
	r.Mine(r.t, 1)
	r.ok(r.Chain.Publish(r.ctx, s))
	r.Mine(r.t, 3)
	r.balance(r.payee, fil(2))
	got, err := r.Chain.Wait(r.ctx, s.Cid, 2)
	r.ok(err)
	if got.Replaced.Defined() {
		r.t.Errorf("receipt %+v says it was replaced", got)
	}
	altered := *s
	altered.Raw = bytes.Clone(s.Raw)
	altered.Raw[len(altered.Raw)-1] ^= 1
	if err := r.Chain.Publish(r.ctx, &altered); err == nil {
		r.t.Error("altered bytes were published")
	}
}

func (r *run) sideBySide() {
	const n = 8
	all := make(chan *paych.SignedMessage, n)
	for range n {
		go func() { // ends with Prepare
			s, err := r.Chain.Prepare(r.ctx, paych.Message{From: r.payer, To: r.payee, Value: fil(1)})
			if err != nil {
				r.t.Error(err)
				s = nil
			}
			all <- s
		}()
	}
	nonces := map[uint64]bool{}
	var signed []*paych.SignedMessage
	for range n {
		if s := <-all; s != nil {
			nonces[s.Nonce] = true
			signed = append(signed, s)
		}
	}
	if len(nonces) != n {
		r.t.Fatalf("%d different nonces of %d messages", len(nonces), n)
	}
	for _, s := range signed {
		r.ok(r.Chain.Publish(r.ctx, s))
	}
	r.Mine(r.t, settle)
	r.balance(r.payee, fil(1+n))
}

func (r *run) failed() {
	ch, _ := r.create(fil(10))
	s := r.prepare(paych.Message{From: r.payer, To: ch, Value: fil(1)})
	r.FailNext(r.t, 77)
	r.ok(r.Chain.Publish(r.ctx, s))
	r.Mine(r.t, settle)
	got, err := r.Chain.Wait(r.ctx, s.Cid, 0)
	r.ok(err)
	if got.ExitCode != 77 {
		r.t.Errorf("exit code %d, want 77", got.ExitCode)
	}
	calls, err := r.Chain.Calls(r.ctx, ch, got.Height, got.Height)
	r.ok(err)
	if len(calls) != 1 || calls[0].ExitCode != 77 {
		r.t.Errorf("calls %+v", calls)
	}
	r.balance(ch, fil(10))
}

func (r *run) notFound() {
	nobody, err := address.NewActorAddress([]byte("nobody"))
	r.ok(err)
	nothing, err := address.NewIDAddress(1 << 40)
	r.ok(err)
	for _, a := range []address.Address{nobody, nothing, r.payer} {
		if _, _, err := r.Chain.Channel(r.ctx, a, 0); !errors.Is(err, paych.ErrNotFound) {
			r.t.Errorf("channel %s: %v", a, err)
		}
	}
	if _, _, err := r.Chain.Channel(r.ctx, nobody, 1<<40); !errors.Is(err, paych.ErrNotFound) {
		r.t.Errorf("channel before genesis: %v", err)
	}
	for _, a := range []address.Address{nothing, builtin.InitActorAddr} {
		if _, err := r.Chain.ResolveKey(r.ctx, a); !errors.Is(err, paych.ErrNotFound) {
			r.t.Errorf("key of %s: %v", a, err)
		}
	}
	r.balance(nobody, big.Zero())
	if calls, err := r.Chain.Calls(r.ctx, nobody, 0, 100); err != nil || len(calls) != 0 {
		r.t.Errorf("calls of nobody: %v, %v", calls, err)
	}
	if _, err := r.Chain.Prepare(r.ctx, paych.Message{From: r.payee, To: r.payer, Value: fil(50)}); err == nil {
		r.t.Error("more than there is was prepared")
	}
}

func (r *run) heads() {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	heads, err := r.Chain.Heads(ctx)
	r.ok(err)
	now, err := r.Chain.Head(r.ctx)
	r.ok(err)
	if first := <-heads; first.Height != now || first.Reverted {
		r.t.Fatalf("first head %+v, want %d", first, now)
	}
	r.Mine(r.t, 1)
	r.until(heads, paych.Head{Height: now + 1})
	r.Mine(r.t, 3)
	r.until(heads, paych.Head{Height: now + 4})
	r.Reorg(r.t, 2)
	r.until(heads, paych.Head{Height: now + 3, Reverted: true})
	r.until(heads, paych.Head{Height: now + 2})
	r.Mine(r.t, 2)
	r.until(heads, paych.Head{Height: now + 4})
	cancel()
	for range heads {
		continue // until it is closed
	}
}

// until reads heads up to want; a revert may be told lower than want.
func (r *run) until(heads <-chan paych.Head, want paych.Head) {
	r.t.Helper()
	for {
		select {
		case h, ok := <-heads:
			switch {
			case !ok:
				r.t.Fatalf("heads ended, want %+v", want)
			case h.Reverted && !want.Reverted:
				r.t.Fatalf("revert to %d, want %+v", h.Height, want)
			case h == want, h.Reverted && h.Height <= want.Height:
				return
			}
		case <-r.ctx.Done():
			r.t.Fatalf("no head %+v", want)
		}
	}
}

// reorg: a receipt that is not deep enough is not given out, and one that was
// reverted is found again where it is then.
func (r *run) reorg() {
	const confidence = 3
	s := r.prepare(paych.Message{From: r.payer, To: r.payee, Value: fil(1)})
	r.ok(r.Chain.Publish(r.ctx, s))
	type answer struct {
		*paych.Receipt
		err error
	}
	got := make(chan answer, 1)
	go func() { // ends with Wait
		receipt, err := r.Chain.Wait(r.ctx, s.Cid, confidence)
		got <- answer{receipt, err}
	}()
	r.Mine(r.t, settle)
	first, err := r.Chain.Wait(r.ctx, s.Cid, 0)
	r.ok(err)
	r.balance(r.payee, fil(2))
	r.Reorg(r.t, settle)
	r.balance(r.payee, fil(1))
	r.Mine(r.t, settle)
	select {
	case a := <-got:
		r.t.Fatalf("receipt %+v, %v before it was deep enough", a.Receipt, a.err)
	default:
	}
	r.Mine(r.t, confidence)
	a := <-got
	r.ok(a.err)
	head, err := r.Chain.Head(r.ctx)
	r.ok(err)
	if a.Cid != s.Cid || a.ExitCode != exitcode.Ok || head-a.Height < confidence || a.Height > first.Height+abi.ChainEpoch(settle) {
		r.t.Errorf("receipt %+v at head %d", a.Receipt, head)
	}
	r.balance(r.payee, fil(2))
}
