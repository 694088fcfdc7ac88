package conformance

import (
	"bytes"
	"context"
	"fmt"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/cbor"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/filecoin-project/specs-actors/v8/actors/builtin"
	"github.com/filecoin-project/specs-actors/v8/actors/builtin/paych"
	"github.com/filecoin-project/specs-actors/v8/actors/runtime"
	"github.com/filecoin-project/specs-actors/v8/actors/util/adt"
	"github.com/ipfs/go-cid"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally/paych/actor"
)

// vm is a chain with one channel on it: just enough of a runtime for the real
// actor. What the actor does not call is nil and panics. (The mock runtime that
// comes with specs-actors needs an older go-ipld-cbor than the product has, and
// wants to be told beforehand what the actor will do.)
type vm struct {
	runtime.Runtime

	world   *world
	epoch   abi.ChainEpoch
	balance big.Int
	caller  address.Address

	head  cid.Cid
	store map[cid.Cid][]byte
	pays  []actor.Payment
	gone  bool
}

// aborted is what Abortf panics with.
type aborted struct {
	code exitcode.ExitCode
	text string
}

// call runs a method and returns its exit code. State and payments of a failed
// one are rolled back.
func (m *vm) call(method func()) (code exitcode.ExitCode, text string) {
	head, pays, balance := m.head, m.pays, m.balance
	m.pays = nil
	defer func() {
		switch a := recover().(type) {
		case nil:
		case aborted:
			m.head, m.pays, m.balance, m.gone = head, pays, balance, false
			code, text = a.code, a.text
		default:
			panic(a)
		}
	}()
	method()
	return exitcode.Ok, ""
}

// send delivers a message as a chain does: the parameters go through CBOR.
func (m *vm) send(method abi.MethodNum, params []byte) (exitcode.ExitCode, string) {
	return m.call(func() {
		var pca paych.Actor
		switch method {
		case actor.MethodSend:
		case actor.MethodUpdateChannelState:
			var p paych.UpdateChannelStateParams
			if err := p.UnmarshalCBOR(bytes.NewReader(params)); err != nil {
				m.Abortf(exitcode.ErrSerialization, "%v", err)
			}
			pca.UpdateChannelState(m, &p)
		case actor.MethodSettle:
			pca.Settle(m, nil)
		case actor.MethodCollect:
			pca.Collect(m, nil)
		default:
			m.Abortf(exitcode.ErrUnhandledMessage, "no method %d", method)
		}
	})
}

// state is the channel as the real actor keeps it, in our form.
func (m *vm) state() *actor.State {
	if m.gone {
		return nil
	}
	var st paych.State
	m.StateReadonly(&st)
	ours := &actor.State{
		From: st.From, To: st.To, ToSend: st.ToSend, SettlingAt: st.SettlingAt, MinSettleHeight: st.MinSettleHeight,
	}
	lanes, err := adt.AsArray(adt.AsStore(m), st.LaneStates, paych.LaneStatesAmtBitwidth)
	if err != nil {
		panic(err)
	}
	var l paych.LaneState
	if err := lanes.ForEach(&l, func(id int64) error {
		ours.Lanes = append(ours.Lanes, actor.Lane{Lane: uint64(id), Redeemed: l.Redeemed, Nonce: l.Nonce})
		return nil
	}); err != nil {
		panic(err)
	}
	return ours
}

func (m *vm) Context() context.Context        { return context.Background() }
func (m *vm) Caller() address.Address         { return m.caller }
func (m *vm) Receiver() address.Address       { return m.world.self }
func (m *vm) CurrEpoch() abi.ChainEpoch       { return m.epoch }
func (m *vm) CurrentBalance() abi.TokenAmount { return m.balance }

func (m *vm) Abortf(code exitcode.ExitCode, format string, args ...any) {
	panic(aborted{code, fmt.Sprintf(format, args...)})
}

func (m *vm) ValidateImmediateCallerIs(allowed ...address.Address) {
	for _, a := range allowed {
		if a == m.caller {
			return
		}
	}
	m.Abortf(exitcode.SysErrForbidden, "caller %s", m.caller)
}

func (m *vm) ValidateImmediateCallerType(types ...cid.Cid) {
	code, _ := m.GetActorCodeCID(m.caller)
	for _, t := range types {
		if t.Equals(code) {
			return
		}
	}
	m.Abortf(exitcode.SysErrForbidden, "caller %s has code %s", m.caller, code)
}

func (m *vm) ResolveAddress(a address.Address) (address.Address, bool) {
	if a.Protocol() == address.ID {
		return a, true
	}
	return m.world.resolve(a)
}

func (m *vm) GetActorCodeCID(a address.Address) (cid.Cid, bool) {
	if a == builtin.InitActorAddr {
		return builtin.InitActorCodeID, true
	}
	account, found := m.world.account(a)
	if account {
		return builtin.AccountActorCodeID, found
	}
	return builtin.MultisigActorCodeID, found
}

func (m *vm) VerifySignature(sig crypto.Signature, signer address.Address, msg []byte) error {
	return m.world.verify(signer, sig, msg)
}

func (m *vm) HashBlake2b(data []byte) [32]byte { return blake2b.Sum256(data) }

func (m *vm) Send(to address.Address, method abi.MethodNum, params cbor.Marshaler, value abi.TokenAmount, _ cbor.Er) exitcode.ExitCode {
	if method == builtin.MethodSend && value.GreaterThan(big.Zero()) {
		if value.GreaterThan(m.balance) {
			return exitcode.SysErrInsufficientFunds
		}
		m.balance = big.Sub(m.balance, value)
		m.pays = append(m.pays, actor.Payment{To: to, Amount: value})
		return exitcode.Ok
	}
	if params == nil {
		// Nothing to send; an address that has no actor yet gets none here.
		if _, ok := m.ResolveAddress(to); !ok {
			return exitcode.SysErrInvalidReceiver
		}
		return exitcode.Ok
	}
	var data bytes.Buffer
	if err := params.MarshalCBOR(&data); err != nil {
		panic(err)
	}
	return m.world.extra(&actor.ModVerifyParams{Actor: to, Method: method, Data: data.Bytes()})
}

func (m *vm) DeleteActor(beneficiary address.Address) {
	if m.balance.GreaterThan(big.Zero()) {
		m.pays = append(m.pays, actor.Payment{To: beneficiary, Amount: m.balance})
	}
	m.balance, m.gone = big.Zero(), true
}

func (m *vm) StateCreate(obj cbor.Marshaler)     { m.head = m.StorePut(obj) }
func (m *vm) StateReadonly(obj cbor.Unmarshaler) { m.StoreGet(m.head, obj) }
func (m *vm) StateTransaction(obj cbor.Er, f func()) {
	m.StateReadonly(obj)
	f()
	m.head = m.StorePut(obj)
}

func (m *vm) StoreGet(c cid.Cid, o cbor.Unmarshaler) bool {
	data, ok := m.store[c]
	if !ok {
		return false
	}
	if err := o.UnmarshalCBOR(bytes.NewReader(data)); err != nil {
		panic(err)
	}
	return true
}

func (m *vm) StorePut(o cbor.Marshaler) cid.Cid {
	var buf bytes.Buffer
	if err := o.MarshalCBOR(&buf); err != nil {
		panic(err)
	}
	c, err := abi.CidBuilder.Sum(buf.Bytes())
	if err != nil {
		panic(err)
	}
	m.store[c] = buf.Bytes()
	return c
}
