package actor

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/filecoin-project/go-state-types/exitcode"
	"golang.org/x/crypto/blake2b"
)

// Env is what the actor asks of the chain it runs on. The functions must not
// change anything that Apply was given.
type Env struct {
	// Self is the channel's own id address.
	Self address.Address
	// Resolve returns the id address of a; false if the chain knows none. It is
	// not asked for id addresses. Nil knows none.
	Resolve func(a address.Address) (address.Address, bool)
	// Account tells what lies at an id address: whether there is an actor, and
	// whether it is an account. Only Construct asks. Nil takes every address for
	// an account.
	Account func(id address.Address) (account, found bool)
	// Verify checks sig over msg; signer is an address as State has it. Nil
	// refuses all.
	Verify func(signer address.Address, sig crypto.Signature, msg []byte) error
	// Extra makes the call that a voucher asks for, from Self and without value,
	// and returns its exit code. Nil: no such actor.
	Extra func(extra *ModVerifyParams) exitcode.ExitCode
}

// Payment is money that leaves the channel. Amount is above 0.
type Payment struct {
	To     address.Address
	Amount big.Int
}

// Result is what a message does.
type Result struct {
	// State after the message: the one given where the message failed, nil where
	// the channel is gone.
	State    *State
	ExitCode exitcode.ExitCode
	// Pays are made in this order. Their sum is the channel's balance.
	Pays    []Payment
	Deleted bool
	// Err says in words why ExitCode is not 0.
	Err error
}

// Construct makes a channel from from to to, either of any address form, as
// Init.Exec does.
func Construct(from, to address.Address, env Env) Result {
	// To is looked up first, as the chain does: it decides between two failures.
	toID, err := env.party(to)
	if err != nil {
		return failed(nil, fmt.Errorf("to address: %w", err))
	}
	fromID, err := env.party(from)
	if err != nil {
		return failed(nil, fmt.Errorf("from address: %w", err))
	}
	return Result{State: &State{From: fromID, To: toID, ToSend: big.Zero()}}
}

// Apply runs one message on a channel. balance is the channel's money with the
// message's value already in it, epoch that of the tipset which executes it,
// settleDelay the chain's. Nothing that is passed in is changed. Lanes that the
// message leaves alone keep their big.Int, which nobody writes to.
func Apply(st *State, balance big.Int, epoch, settleDelay abi.ChainEpoch, caller address.Address, msg Msg, env Env) Result {
	if st == nil {
		return failed(nil, abort(exitcode.SysErrInvalidReceiver, "no such channel"))
	}
	switch msg.Method {
	case MethodSend:
		return Result{State: st}
	case MethodConstructor:
		return failed(st, abort(exitcode.SysErrForbidden, "only the init actor constructs a channel"))
	case MethodUpdateChannelState:
		if msg.Update == nil {
			return failed(st, abort(exitcode.ErrSerialization, "no parameters"))
		}
		next, err := st.update(balance, epoch, caller, msg.Update, env)
		if err != nil {
			return failed(st, err)
		}
		return Result{State: next}
	case MethodSettle:
		next, err := st.settle(epoch, settleDelay, caller, env)
		if err != nil {
			return failed(st, err)
		}
		return Result{State: next}
	case MethodCollect:
		pays, err := st.collect(balance, epoch, caller, env)
		if err != nil {
			return failed(st, err)
		}
		return Result{Pays: pays, Deleted: true}
	default:
		return failed(st, abort(exitcode.ErrUnhandledMessage, "no method %d", msg.Method))
	}
}

// update redeems a voucher. The order of the checks decides which exit code a
// message with several faults gets, so it is the chain's.
func (st *State) update(balance big.Int, epoch abi.ChainEpoch, caller address.Address, p *UpdateChannelState, env Env) (*State, error) {
	// Both parties stand behind an update: one submits it, the other signed it.
	var signer address.Address
	switch {
	case env.same(caller, st.From):
		signer = st.To
	case env.same(caller, st.To):
		signer = st.From
	default:
		return nil, abort(exitcode.SysErrForbidden, "caller %s is neither party", caller)
	}
	sv := &p.Sv
	if sv.Signature == nil {
		return nil, refuse("voucher has no signature")
	}
	if st.SettlingAt != 0 && epoch >= st.SettlingAt {
		return nil, abort(ExitChannelSettled, "channel settled at %d, epoch is %d", st.SettlingAt, epoch)
	}
	if len(p.Secret) > MaxSecretSize {
		return nil, refuse("secret of %d bytes, at most %d", len(p.Secret), MaxSecretSize)
	}
	signed, err := sv.SigningBytes()
	if err != nil {
		return nil, refuse("voucher cannot be encoded: %v", err)
	}
	if env.Verify == nil {
		return nil, refuse("no way to verify the signature of %s", signer)
	}
	if err := env.Verify(signer, *sv.Signature, signed); err != nil {
		// The code is ours to say, whatever error the verifier wraps.
		return nil, refuse("signature is not of %s: %v", signer, err)
	}
	if ch, ok := env.id(sv.ChannelAddr); !ok || ch != env.Self {
		return nil, refuse("voucher is for channel %s", sv.ChannelAddr)
	}
	if epoch < sv.TimeLockMin {
		return nil, refuse("voucher is locked until %d, epoch is %d", sv.TimeLockMin, epoch)
	}
	if sv.TimeLockMax != 0 && epoch > sv.TimeLockMax {
		return nil, refuse("voucher expired after %d, epoch is %d", sv.TimeLockMax, epoch)
	}
	amount := value(sv.Amount)
	if amount.Sign() < 0 {
		return nil, refuse("amount %v is negative", amount)
	}
	if len(sv.SecretHash) > 0 {
		// Both sides of the comparison are public once the message is.
		if hash := blake2b.Sum256(p.Secret); !bytes.Equal(hash[:], sv.SecretHash) {
			return nil, refuse("secret does not open the lock")
		}
	}
	if sv.Extra != nil {
		code := exitcode.SysErrInvalidReceiver
		if env.Extra != nil {
			code = env.Extra(sv.Extra)
		}
		if code != exitcode.Ok {
			return nil, abort(code, "the voucher's call to %s failed", sv.Extra.Actor)
		}
	}

	if sv.Lane > MaxLane {
		return nil, refuse("lane %d above %d", sv.Lane, MaxLane)
	}
	next := *st
	next.Lanes = slices.Clone(st.Lanes)
	own, known := st.Lane(sv.Lane)
	if known && own.Nonce >= sv.Nonce {
		return nil, refuse("nonce %d is not above the lane's %d", sv.Nonce, own.Nonce)
	}

	// What was redeemed already on this lane, and on the lanes it takes in. A
	// lane that is named twice with a rising nonce counts twice.
	redeemed := value(own.Redeemed)
	for _, m := range sv.Merges {
		if m.Lane == sv.Lane {
			return nil, refuse("lane %d is merged into itself", m.Lane)
		}
		if m.Lane > MaxLane {
			return nil, refuse("merged lane %d above %d", m.Lane, MaxLane)
		}
		i, ok := next.find(m.Lane)
		if !ok {
			return nil, refuse("merged lane %d is not on the chain", m.Lane)
		}
		other := &next.Lanes[i]
		if other.Nonce >= m.Nonce {
			return nil, refuse("merge nonce %d is not above lane %d's %d", m.Nonce, m.Lane, other.Nonce)
		}
		redeemed = big.Add(redeemed, other.Redeemed)
		other.Nonce = m.Nonce
	}

	next.ToSend = big.Add(st.ToSend, big.Sub(amount, redeemed))
	if next.ToSend.LessThan(big.Zero()) {
		return nil, refuse("voucher would leave %v to send", next.ToSend)
	}
	if next.ToSend.GreaterThan(balance) {
		return nil, refuse("voucher would leave %v to send of a balance of %v", next.ToSend, balance)
	}

	if sv.MinSettleHeight != 0 {
		if next.SettlingAt != 0 {
			next.SettlingAt = max(next.SettlingAt, sv.MinSettleHeight)
		}
		next.MinSettleHeight = max(next.MinSettleHeight, sv.MinSettleHeight)
	}
	next.put(Lane{Lane: sv.Lane, Redeemed: amount, Nonce: sv.Nonce})
	return &next, nil
}

// settle starts the time after which the channel can be collected.
func (st *State) settle(epoch, delay abi.ChainEpoch, caller address.Address, env Env) (*State, error) {
	if !env.isParty(st, caller) {
		return nil, abort(exitcode.SysErrForbidden, "caller %s is neither party", caller)
	}
	if st.SettlingAt != 0 {
		return nil, abort(exitcode.ErrIllegalState, "channel is settling already")
	}
	next := st.Clone()
	next.SettlingAt = max(epoch+delay, st.MinSettleHeight)
	return next, nil
}

// collect returns what To and From get.
func (st *State) collect(balance big.Int, epoch abi.ChainEpoch, caller address.Address, env Env) ([]Payment, error) {
	if !env.isParty(st, caller) {
		return nil, abort(exitcode.SysErrForbidden, "caller %s is neither party", caller)
	}
	if st.SettlingAt == 0 || epoch < st.SettlingAt {
		return nil, abort(exitcode.ErrForbidden, "channel is not settled")
	}
	rest := big.Sub(balance, st.ToSend)
	if rest.LessThan(big.Zero()) {
		return nil, abort(exitcode.SysErrInsufficientFunds, "%v to send of a balance of %v", st.ToSend, balance)
	}
	var pays []Payment
	for _, p := range []Payment{{st.To, value(st.ToSend)}, {st.From, rest}} {
		if p.Amount.GreaterThan(big.Zero()) {
			pays = append(pays, p)
		}
	}
	return pays, nil
}

// put sets a lane in its place.
func (st *State) put(l Lane) {
	i, ok := st.find(l.Lane)
	if !ok {
		st.Lanes = slices.Insert(st.Lanes, i, Lane{})
	}
	st.Lanes[i] = l
}

// id returns the id address of a.
func (env *Env) id(a address.Address) (address.Address, bool) {
	if a == address.Undef {
		return address.Undef, false
	}
	if a.Protocol() == address.ID {
		return a, true
	}
	if env.Resolve == nil {
		return address.Undef, false
	}
	return env.Resolve(a)
}

// same reports whether a and b are one actor. On a chain both are ids; a local
// check may hold a key address on either side.
func (env *Env) same(a, b address.Address) bool {
	if a == address.Undef || b == address.Undef {
		return false
	}
	if a == b {
		return true
	}
	x, ok := env.id(a)
	if !ok {
		return false
	}
	y, ok := env.id(b)
	return ok && x == y
}

// isParty reports whether caller is one of the two parties of st.
func (env *Env) isParty(st *State, caller address.Address) bool {
	return env.same(caller, st.From) || env.same(caller, st.To)
}

// party returns the id address of an account that a new channel names.
func (env *Env) party(a address.Address) (address.Address, error) {
	id, ok := env.id(a)
	if !ok {
		return address.Undef, abort(exitcode.ErrIllegalState, "%s has no id", a)
	}
	if env.Account == nil {
		return id, nil
	}
	account, found := env.Account(id)
	if !found {
		return address.Undef, abort(exitcode.ErrIllegalArgument, "no actor at %s", a)
	}
	if !account {
		return address.Undef, abort(exitcode.ErrForbidden, "%s is not an account", a)
	}
	return id, nil
}

// aborted is a failed message.
type aborted struct {
	code exitcode.ExitCode
	text string
}

func (a *aborted) Error() string { return a.text }

func abort(code exitcode.ExitCode, format string, args ...any) error {
	return &aborted{code: code, text: fmt.Sprintf(format, args...)}
}

// refuse is what most checks say.
func refuse(format string, args ...any) error {
	return abort(exitcode.ErrIllegalArgument, format, args...)
}

func failed(st *State, err error) Result {
	var a *aborted
	if !errors.As(err, &a) {
		panic("paych/actor: failure without an exit code: " + err.Error())
	}
	return Result{State: st, ExitCode: a.code, Err: fmt.Errorf("paych/actor: exit %d: %w", int64(a.code), err)}
}
