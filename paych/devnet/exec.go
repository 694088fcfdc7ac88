package devnet

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/builtin"
	inittypes "github.com/filecoin-project/go-state-types/builtin/v16/init"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/filecoin-project/go-state-types/exitcode"

	"github.com/tallystick/tally/paych/actor"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// What messages use of gas, about what they do on Filecoin.
const (
	gasMessage    = 400_000
	gasPerByte    = 1_300
	gasNewAccount = 1_500_000
	gasCreate     = 9_000_000
	gasUpdate     = 6_000_000
	gasSettle     = 2_500_000
	gasCollect    = 4_000_000
)

// outcome is what one message did, in words for those who simulate it.
type outcome struct {
	receipt wire.Receipt
	reason  string
	burnt   big.Int
	tip     big.Int
}

// abort is a failed message: exit code and reason.
type abort struct {
	code exitcode.ExitCode
	text string
}

func failf(code exitcode.ExitCode, format string, args ...any) *abort {
	return &abort{code: code, text: fmt.Sprintf(format, args...)}
}

// vm executes messages on a state.
type vm struct {
	state       *overlay
	epoch       abi.ChainEpoch
	settleDelay abi.ChainEpoch
	baseFee     big.Int
	// fail, where not nil, is asked before each message for an exit code.
	fail func(*wire.Message) exitcode.ExitCode
}

// fits reports whether a block may carry m now: the sender is there, it is its
// turn, and it can pay for gas.
func (v *vm) fits(ctx context.Context, m *wire.Message) (bool, error) {
	_, sender, ok, err := find(ctx, v.state, m.From)
	if err != nil || !ok || sender.Code != codeAccount {
		return false, err
	}
	reserve := big.Mul(nonNil(m.GasFeeCap), big.NewInt(m.GasLimit))
	return sender.Nonce == m.Nonce && !nonNil(m.GasFeeCap).LessThan(v.baseFee) && !sender.Balance.LessThan(reserve), nil
}

// apply executes a message that fits.
func (v *vm) apply(ctx context.Context, m *wire.Message, size int) (outcome, error) {
	id, sender, ok, err := find(ctx, v.state, m.From)
	if err != nil {
		return outcome{}, err
	}
	if !ok {
		panic("devnet: message of nobody in a block")
	}
	limit := big.NewInt(m.GasLimit)
	reserve := big.Mul(nonNil(m.GasFeeCap), limit)
	sender.Nonce++
	sender.Balance = big.Sub(sender.Balance, reserve)
	v.state.actors[id] = sender

	out, err := v.call(ctx, m, size)
	if err != nil {
		return outcome{}, err
	}
	// The base fee is burnt for gas used, the premium paid for gas asked for.
	// The burn for asking too much is left out.
	premium := nonNil(m.GasPremium)
	if room := big.Sub(nonNil(m.GasFeeCap), v.baseFee); room.LessThan(premium) {
		premium = room
	}
	out.burnt = big.Mul(v.baseFee, big.NewInt(out.receipt.GasUsed))
	out.tip = big.Mul(premium, limit)
	for _, pay := range []struct {
		to     uint64
		amount big.Int
	}{{idBurnt, out.burnt}, {idReward, out.tip}, {id, big.Sub(big.Sub(reserve, out.burnt), out.tip)}} {
		if pay.amount.Sign() != 0 {
			if err := v.state.add(ctx, pay.to, pay.amount); err != nil {
				return outcome{}, err
			}
		}
	}
	return out, nil
}

// call does what a message asks for, without nonce and gas fees. A failed one
// changes nothing.
func (v *vm) call(ctx context.Context, m *wire.Message, size int) (outcome, error) {
	top := newOverlay(v.state)
	run := run{vm: v, state: top, gas: gasMessage + gasPerByte*int64(size)}
	var ret []byte
	var failure *abort
	if v.fail != nil {
		if code := v.fail(m); code != exitcode.Ok {
			failure = failf(code, "told to fail")
		}
	}
	if failure == nil {
		var err error
		if ret, failure, err = run.send(ctx, m); err != nil {
			return outcome{}, err
		}
	}
	if run.gas > m.GasLimit {
		run.gas = m.GasLimit
		failure = failf(exitcode.SysErrOutOfGas, "gas limit %d is too low", m.GasLimit)
	}
	if failure != nil {
		return outcome{receipt: wire.Receipt{ExitCode: failure.code, GasUsed: run.gas}, reason: failure.text}, nil
	}
	v.state.merge(top)
	return outcome{receipt: wire.Receipt{Return: ret, GasUsed: run.gas}}, nil
}

// run is one message at work.
type run struct {
	vm    *vm
	state *overlay
	gas   int64
}

// send moves the value and calls the receiver.
func (r *run) send(ctx context.Context, m *wire.Message) ([]byte, *abort, error) {
	fromID, from, ok, err := find(ctx, r.state, m.From)
	if err != nil {
		return nil, nil, err
	}
	if !ok {
		return nil, failf(exitcode.SysErrSenderInvalid, "no actor at %s", m.From), nil
	}
	toID, to, ok, err := find(ctx, r.state, m.To)
	if err != nil {
		return nil, nil, err
	}
	if !ok {
		// A key address comes into being with the first message to it.
		if p := m.To.Protocol(); p != address.SECP256K1 && p != address.BLS {
			return nil, failf(exitcode.SysErrInvalidReceiver, "no actor at %s", m.To), nil
		}
		r.gas += gasNewAccount
		to = actorRec{Code: codeAccount, Balance: big.Zero(), Key: m.To}
		if toID, err = r.state.create(ctx, to, m.To); err != nil {
			return nil, nil, err
		}
	}
	value := nonNil(m.Value)
	if from.Balance.LessThan(value) {
		return nil, failf(exitcode.SysErrInsufficientFunds, "balance %v is below the value %v", from.Balance, value), nil
	}
	if value.Sign() != 0 {
		if err := r.state.add(ctx, fromID, value.Neg()); err != nil {
			return nil, nil, err
		}
		if err := r.state.add(ctx, toID, value); err != nil {
			return nil, nil, err
		}
	}
	switch {
	case to.Code == codeChannel:
		failure, err := r.channel(ctx, toID, fromID, m)
		return nil, failure, err
	case m.Method == builtin.MethodSend:
		return nil, nil, nil
	case to.Code == codeInit && m.Method == builtin.MethodsInit.Exec:
		return r.exec(ctx, m)
	default:
		return nil, failf(exitcode.ErrUnhandledMessage, "%s has no method %d", to.Code, m.Method), nil
	}
}

// exec makes a payment channel.
func (r *run) exec(ctx context.Context, m *wire.Message) ([]byte, *abort, error) {
	r.gas += gasCreate
	var exec inittypes.ExecParams
	var parties actor.ConstructorParams
	if err := exec.UnmarshalCBOR(bytes.NewReader(m.Params)); err != nil {
		return nil, failf(exitcode.ErrSerialization, "Exec: %v", err), nil
	}
	if exec.CodeCID != codeCid(codeChannel) {
		return nil, failf(exitcode.ErrForbidden, "Exec: code %s is not that of a payment channel", exec.CodeCID), nil
	}
	if err := parties.UnmarshalCBOR(bytes.NewReader(exec.ConstructorParams)); err != nil {
		return nil, failf(exitcode.ErrSerialization, "Exec: %v", err), nil
	}
	robust, err := robustAddress(m.From, m.Nonce)
	if err != nil {
		return nil, nil, err
	}
	env, envErr := r.env(ctx, address.Undef)
	res := actor.Construct(parties.From, parties.To, env)
	if *envErr != nil {
		return nil, nil, *envErr
	}
	if res.ExitCode != exitcode.Ok {
		return nil, failf(res.ExitCode, "Exec: %v", res.Err), nil
	}
	// The value went to the init actor, which hands it on.
	value := nonNil(m.Value)
	id, err := r.state.create(ctx, actorRec{Code: codeChannel, Balance: value, Robust: robust, Channel: res.State}, robust)
	if err != nil {
		return nil, nil, err
	}
	if err := r.state.add(ctx, idInit, value.Neg()); err != nil {
		return nil, nil, err
	}
	var ret bytes.Buffer
	if err := (&inittypes.ExecReturn{IDAddress: idAddress(id), RobustAddress: robust}).MarshalCBOR(&ret); err != nil {
		return nil, nil, fmt.Errorf("devnet: encode return of Exec: %w", err)
	}
	return ret.Bytes(), nil, nil
}

// channel calls a payment channel. Its balance has the value already.
func (r *run) channel(ctx context.Context, id, caller uint64, m *wire.Message) (*abort, error) {
	switch m.Method {
	case actor.MethodUpdateChannelState:
		r.gas += gasUpdate
	case actor.MethodSettle:
		r.gas += gasSettle
	case actor.MethodCollect:
		r.gas += gasCollect
	}
	msg, code := actor.DecodeMsg(m.Method, m.Params)
	if code != exitcode.Ok {
		return failf(code, "method %d cannot be read", m.Method), nil
	}
	rec, _, err := r.state.actor(ctx, id)
	if err != nil {
		return nil, err
	}
	env, envErr := r.env(ctx, idAddress(id))
	res := actor.Apply(rec.Channel, rec.Balance, r.vm.epoch, r.vm.settleDelay, idAddress(caller), msg, env)
	if *envErr != nil {
		return nil, *envErr
	}
	if res.ExitCode != exitcode.Ok {
		return failf(res.ExitCode, "%v", res.Err), nil
	}
	for _, pay := range res.Pays {
		to, ok, err := r.state.id(ctx, pay.To)
		if err != nil {
			return nil, err
		}
		if !ok {
			panic("devnet: a channel pays an address without an id")
		}
		rec.Balance = big.Sub(rec.Balance, pay.Amount)
		if err := r.state.add(ctx, to, pay.Amount); err != nil {
			return nil, err
		}
	}
	rec.Channel = res.State
	if res.Deleted {
		if rec.Balance.Sign() != 0 {
			panic("devnet: a collected channel keeps money")
		}
		rec.Gone, rec.Channel = true, nil
	}
	r.state.actors[id] = rec
	return nil, nil
}

// env is the chain as the actor sees it. The error is what the store said, for
// the actor cannot; look at it after the call.
func (r *run) env(ctx context.Context, self address.Address) (actor.Env, *error) {
	var failed error
	account := func(a address.Address) (actorRec, bool) {
		_, rec, ok, err := find(ctx, r.state, a)
		if err != nil && failed == nil {
			failed = err
		}
		return rec, ok && err == nil
	}
	return actor.Env{
		Self: self,
		Resolve: func(a address.Address) (address.Address, bool) {
			id, ok, err := r.state.id(ctx, a)
			if err != nil && failed == nil {
				failed = err
			}
			if !ok || err != nil {
				return address.Undef, false
			}
			return idAddress(id), true
		},
		Account: func(id address.Address) (bool, bool) {
			rec, ok := account(id)
			return rec.Code == codeAccount, ok
		},
		Verify: func(signer address.Address, sig crypto.Signature, msg []byte) error {
			rec, ok := account(signer)
			if !ok || rec.Code != codeAccount {
				return fmt.Errorf("devnet: %s has no key", signer)
			}
			return wire.Verify(rec.Key, sig, msg)
		},
	}, &failed
}

// robustAddress is the f2 address of the actor that a message creates: a hash
// of its sender, its nonce and how many actors it created before.
func robustAddress(sender address.Address, nonce uint64) (address.Address, error) {
	var buf bytes.Buffer
	if err := sender.MarshalCBOR(&buf); err != nil {
		return address.Undef, fmt.Errorf("devnet: %w", err)
	}
	seed := binary.BigEndian.AppendUint64(buf.Bytes(), nonce)
	seed = binary.BigEndian.AppendUint64(seed, 0)
	return address.NewActorAddress(seed)
}

func nonNil(v big.Int) big.Int {
	if v.Int == nil {
		return big.Zero()
	}
	return v
}
