package actor

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/filecoin-project/go-state-types/exitcode"
	"golang.org/x/crypto/blake2b"
)

// The parties of every test, by id and by key. A signature here is the signer's
// id address in bytes, so that a test can say who signed without a key.
var (
	self, selfLong   = id(100), longAddr("channel")
	payer, payerKey  = id(101), keyAddr("payer")
	payee, payeeKey  = id(102), keyAddr("payee")
	stranger         = id(103)
	secret           = bytes.Repeat([]byte{7}, 32)
	lock             = blake2b.Sum256(secret)
	emptyLock        = blake2b.Sum256(nil)
	errNotSigned     = errors.New("another's signature")
	extraActor       = id(200)
	testBalance      = big.NewInt(1000)
	testAddrs        = map[address.Address]address.Address{selfLong: self, payerKey: payer, payeeKey: payee}
	epoch0           = abi.ChainEpoch(500)
	settledAt        = abi.ChainEpoch(2000)
	hugeEpoch        = abi.ChainEpoch(1 << 62)
	nobody, notThere = address.Undef, keyAddr("not there")
)

func id(n uint64) address.Address {
	a, err := address.NewIDAddress(n)
	if err != nil {
		panic(err)
	}
	return a
}

func keyAddr(name string) address.Address {
	key := blake2b.Sum512([]byte(name))
	a, err := address.NewSecp256k1Address(append([]byte{4}, key[:]...))
	if err != nil {
		panic(err)
	}
	return a
}

func longAddr(name string) address.Address {
	a, err := address.NewActorAddress([]byte(name))
	if err != nil {
		panic(err)
	}
	return a
}

func testEnv() Env {
	return Env{
		Self:    self,
		Resolve: func(a address.Address) (address.Address, bool) { r, ok := testAddrs[a]; return r, ok },
		Verify: func(signer address.Address, sig crypto.Signature, _ []byte) error {
			if !bytes.Equal(sig.Data, signer.Bytes()) {
				return errNotSigned
			}
			return nil
		},
		Extra: func(x *ModVerifyParams) exitcode.ExitCode { return exitcode.ExitCode(x.Method) },
	}
}

// open is the channel most tests begin with: 100 and 50 redeemed on two lanes.
func open() *State {
	return &State{
		From: payer, To: payee, ToSend: big.NewInt(150),
		Lanes: []Lane{{Lane: 1, Redeemed: big.NewInt(100), Nonce: 10}, {Lane: 5, Redeemed: big.NewInt(50), Nonce: 20}},
	}
}

func settling() *State { st := open(); st.SettlingAt = settledAt; return st }

// voucher is one that the payer signed and the payee may redeem: lane 1 to 200.
func voucher(change ...func(*SignedVoucher)) SignedVoucher {
	sv := SignedVoucher{
		ChannelAddr: self, Lane: 1, Nonce: 11, Amount: big.NewInt(200),
		Signature: &crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: payer.Bytes()},
	}
	for _, f := range change {
		f(&sv)
	}
	return sv
}

// merges pairs lanes with nonces.
func merges(pairs ...uint64) (ms []Merge) {
	for i := 0; i < len(pairs); i += 2 {
		ms = append(ms, Merge{Lane: pairs[i], Nonce: pairs[i+1]})
	}
	return ms
}

func refund(sv *SignedVoucher) { sv.Signature.Data = payee.Bytes() }

func TestUpdateChannelState(t *testing.T) {
	const (
		refused   = exitcode.ErrIllegalArgument
		forbidden = exitcode.SysErrForbidden
		settled   = ExitChannelSettled
	)
	type sv = SignedVoucher
	for _, c := range []struct {
		name   string
		st     *State // open() if nil
		epoch  abi.ChainEpoch
		caller address.Address
		sv     func(*sv)
		secret []byte
		exit   exitcode.ExitCode
		toSend int64 // after the message, where it succeeds
		text   string
	}{
		{name: "plain", toSend: 250},
		{name: "by key address", caller: payeeKey, sv: func(v *sv) { v.ChannelAddr = selfLong }, toSend: 250},
		{name: "fresh lane, nonce 0", sv: func(v *sv) { v.Lane, v.Nonce = 2, 0 }, toSend: 350},
		{name: "highest lane and nonce", sv: func(v *sv) { v.Lane, v.Nonce = MaxLane, math.MaxUint64 }, toSend: 350},
		{name: "all of the balance", sv: func(v *sv) { v.Amount = big.NewInt(950) }, toSend: 1000},
		{name: "nil amount is 0", sv: func(v *sv) { v.Amount = big.Int{} }, toSend: 50},

		{name: "refund by the payer", caller: payer, sv: func(v *sv) { refund(v); v.Amount = big.NewInt(40) }, toSend: 90},
		{name: "cancel to nothing", caller: payer, sv: func(v *sv) { refund(v); v.Amount = big.Zero() }, toSend: 50},
		{name: "raise by the payer with the payee's signature", caller: payer, sv: refund, toSend: 250},
		{name: "a lower amount the payer signed", sv: func(v *sv) { v.Amount = big.NewInt(40) }, toSend: 90},

		{name: "stranger", caller: stranger, exit: forbidden},
		{name: "no caller", caller: nobody, exit: forbidden},
		{name: "key that nobody knows", caller: notThere, exit: forbidden},
		{name: "stranger comes before everything", st: settling(), epoch: settledAt, caller: stranger, sv: func(v *sv) { v.Signature = nil }, exit: forbidden},

		{name: "no signature", sv: func(v *sv) { v.Signature = nil }, exit: refused, text: "no signature"},
		{name: "no signature comes before settled", st: settling(), epoch: settledAt, sv: func(v *sv) { v.Signature = nil }, exit: refused},

		{name: "last epoch of settling", st: settling(), epoch: settledAt - 1, toSend: 250},
		{name: "settled", st: settling(), epoch: settledAt, exit: settled},
		{name: "long settled", st: settling(), epoch: hugeEpoch, exit: settled},
		{name: "settled comes before the secret", st: settling(), epoch: settledAt, secret: make([]byte, 257), exit: settled},

		{name: "secret without a lock", secret: make([]byte, 256), toSend: 250},
		{name: "secret too long", secret: make([]byte, 257), exit: refused, text: "257"},
		{name: "own signature", sv: refund, exit: refused, text: "signature"},
		{name: "own signature, payer", caller: payer, exit: refused, text: "signature"},
		{name: "voucher that has no encoding", sv: func(v *sv) { v.Merges = make([]Merge, 8193) }, exit: refused, text: "encoded"},
		{name: "no channel", sv: func(v *sv) { v.ChannelAddr = nobody }, exit: refused},
		{name: "channel that nobody knows", sv: func(v *sv) { v.ChannelAddr = longAddr("other") }, exit: refused, text: "channel"},
		{name: "another channel", sv: func(v *sv) { v.ChannelAddr = id(999) }, exit: refused, text: "channel"},

		{name: "time lock opens", sv: func(v *sv) { v.TimeLockMin = epoch0 }, toSend: 250},
		{name: "time lock", sv: func(v *sv) { v.TimeLockMin = epoch0 + 1 }, exit: refused, text: "locked"},
		{name: "last epoch", sv: func(v *sv) { v.TimeLockMax = epoch0 }, toSend: 250},
		{name: "expired", sv: func(v *sv) { v.TimeLockMax = epoch0 - 1 }, exit: refused, text: "expired"},
		{name: "expired before the chain began", sv: func(v *sv) { v.TimeLockMax = -1 }, exit: refused, text: "expired"},
		{name: "negative amount", sv: func(v *sv) { v.Amount = big.NewInt(-1) }, exit: refused, text: "negative"},

		{name: "opened", sv: func(v *sv) { v.SecretHash = lock[:] }, secret: secret, toSend: 250},
		{name: "lock of nothing", sv: func(v *sv) { v.SecretHash = emptyLock[:] }, toSend: 250},
		{name: "not opened", sv: func(v *sv) { v.SecretHash = lock[:] }, exit: refused, text: "secret"},
		{name: "wrong secret", sv: func(v *sv) { v.SecretHash = lock[:] }, secret: secret[1:], exit: refused},
		{name: "short lock", sv: func(v *sv) { v.SecretHash = lock[:31] }, secret: secret, exit: refused},

		{name: "extra says yes", sv: func(v *sv) { v.Extra = &ModVerifyParams{Actor: extraActor} }, toSend: 250},
		{name: "extra says no", sv: func(v *sv) { v.Extra = &ModVerifyParams{Actor: extraActor, Method: 77} }, exit: 77},
		{name: "secret comes before extra", sv: func(v *sv) { v.SecretHash = lock[:]; v.Extra = &ModVerifyParams{Actor: extraActor, Method: 77} }, exit: refused},
		{name: "extra comes before the lane", sv: func(v *sv) { v.Lane = 1 << 63; v.Extra = &ModVerifyParams{Actor: extraActor, Method: 77} }, exit: 77},

		{name: "lane too high", sv: func(v *sv) { v.Lane = 1 << 63 }, exit: refused, text: "lane"},
		{name: "lane far too high", sv: func(v *sv) { v.Lane = math.MaxUint64 }, exit: refused, text: "lane"},
		{name: "same nonce", sv: func(v *sv) { v.Nonce = 10 }, exit: refused, text: "nonce"},
		{name: "old nonce", sv: func(v *sv) { v.Nonce = 0 }, exit: refused, text: "nonce"},

		{name: "merge", sv: func(v *sv) { v.Merges = merges(5, 21) }, toSend: 200},
		{name: "merge into a fresh lane", sv: func(v *sv) { v.Lane = 9; v.Merges = merges(1, 11, 5, 21) }, toSend: 200},
		{name: "merge of one lane twice counts it twice", sv: func(v *sv) { v.Merges = merges(5, 21, 5, 22) }, toSend: 150},
		{name: "merge of one lane twice with one nonce", sv: func(v *sv) { v.Merges = merges(5, 21, 5, 21) }, exit: refused, text: "merge nonce"},
		{name: "merge with itself", sv: func(v *sv) { v.Merges = merges(1, 12) }, exit: refused, text: "itself"},
		{name: "merge of a lane that never was", sv: func(v *sv) { v.Merges = merges(3, 1) }, exit: refused, text: "not on the chain"},
		{name: "merge of a lane too high", sv: func(v *sv) { v.Merges = merges(1<<63, 1) }, exit: refused, text: "above"},
		{name: "merge with an old nonce", sv: func(v *sv) { v.Merges = merges(5, 20) }, exit: refused, text: "merge nonce"},
		{name: "merge below zero", sv: func(v *sv) { v.Amount = big.Zero(); v.Merges = merges(5, 21, 5, 22, 5, 23) }, exit: refused, text: "would leave"},

		{name: "above the balance", sv: func(v *sv) { v.Amount = big.NewInt(951) }, exit: refused, text: "balance"},
		{name: "far above the balance", sv: func(v *sv) { v.Amount = big.Lsh(big.NewInt(1), 900) }, exit: refused, text: "balance"},
		{name: "amount that has no encoding", sv: func(v *sv) { v.Amount = big.Lsh(big.NewInt(1), 1100) }, exit: refused, text: "encoded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := c.st
			if st == nil {
				st = open()
			}
			if c.epoch == 0 {
				c.epoch = epoch0
			}
			if c.caller == (address.Address{}) && c.name != "no caller" {
				c.caller = payee
			}
			v := voucher()
			if c.sv != nil {
				c.sv(&v)
			}
			r := applyPure(t, st, testBalance, c.epoch, c.caller, Redeem(v, c.secret), testEnv())
			if r.ExitCode != c.exit {
				t.Fatalf("exit %d (%v), want %d", r.ExitCode, r.Err, c.exit)
			}
			if c.exit != exitcode.Ok {
				if r.State != st || r.Err == nil || r.Deleted || r.Pays != nil {
					t.Fatalf("a failed message has effects: %+v", r)
				}
				if !strings.Contains(r.Err.Error(), c.text) {
					t.Fatalf("reason %q does not say %q", r.Err, c.text)
				}
				return
			}
			if r.Err != nil || !r.State.ToSend.Equals(big.NewInt(c.toSend)) {
				t.Fatalf("to send %v (%v), want %d", r.State.ToSend, r.Err, c.toSend)
			}
			if l, ok := r.State.Lane(v.Lane); !ok || l.Nonce != v.Nonce || !l.Redeemed.Equals(v.Amount) {
				t.Fatalf("lane is %+v after %+v", l, v)
			}
			for _, m := range v.Merges {
				was, _ := st.Lane(m.Lane)
				if l, _ := r.State.Lane(m.Lane); l.Nonce < m.Nonce || !l.Redeemed.Equals(was.Redeemed) {
					t.Fatalf("merged lane is %+v, was %+v", l, was)
				}
			}
		})
	}
}

// A merged lane keeps its Redeemed, so the lanes add up to more than ToSend.
func TestMergeKeepsRedeemed(t *testing.T) {
	v := voucher(func(v *SignedVoucher) { v.Merges = merges(5, 21) })
	st := applyPure(t, open(), testBalance, epoch0, payee, Redeem(v, nil), testEnv()).State
	want := []Lane{{1, big.NewInt(200), 11}, {5, big.NewInt(50), 21}}
	if !reflect.DeepEqual(st.Lanes, want) {
		t.Fatalf("lanes %+v, want %+v", st.Lanes, want)
	}
	// The merged lane goes on from its own figure.
	v = voucher(func(v *SignedVoucher) { v.Lane, v.Nonce, v.Amount = 5, 22, big.NewInt(60) })
	st = applyPure(t, st, testBalance, epoch0, payee, Redeem(v, nil), testEnv()).State
	if !st.ToSend.Equals(big.NewInt(210)) {
		t.Fatalf("to send %v, want 210", st.ToSend)
	}
}

func TestMinSettleHeight(t *testing.T) {
	with := func(h abi.ChainEpoch) Msg {
		return Redeem(voucher(func(v *SignedVoucher) { v.MinSettleHeight = h }), nil)
	}
	for _, c := range []struct {
		name        string
		st          *State
		height      abi.ChainEpoch
		min, settle abi.ChainEpoch
	}{
		{"open: only the state's is raised", open(), 3000, 3000, 0},
		{"settling: both are", settling(), 3000, 3000, 3000},
		{"settling: not lowered", settling(), settledAt - 1, settledAt - 1, settledAt},
		{"negative", settling(), -5, 0, settledAt},
		{"for ever", settling(), hugeEpoch, hugeEpoch, hugeEpoch},
	} {
		st := applyPure(t, c.st, testBalance, epoch0, payee, with(c.height), testEnv()).State
		if st.MinSettleHeight != c.min || st.SettlingAt != c.settle {
			t.Errorf("%s: min %d settling %d", c.name, st.MinSettleHeight, st.SettlingAt)
		}
	}
	st := applyPure(t, open(), testBalance, epoch0, payee, with(hugeEpoch), testEnv()).State
	st = applyPure(t, st, testBalance, epoch0, payer, Settle(), testEnv()).State
	if st.SettlingAt != hugeEpoch {
		t.Errorf("settling at %d, want %d", st.SettlingAt, hugeEpoch)
	}
}

func TestSettle(t *testing.T) {
	for _, caller := range []address.Address{payer, payee, payerKey, payeeKey} {
		st := applyPure(t, open(), testBalance, epoch0, caller, Settle(), testEnv()).State
		if st.SettlingAt != epoch0+SettleDelay {
			t.Errorf("settling at %d", st.SettlingAt)
		}
		r := applyPure(t, st, testBalance, epoch0+1, caller, Settle(), testEnv())
		if r.ExitCode != exitcode.ErrIllegalState {
			t.Errorf("second settle: exit %d", r.ExitCode)
		}
	}
	for _, caller := range []address.Address{stranger, notThere, nobody, self} {
		if r := applyPure(t, settling(), testBalance, epoch0, caller, Settle(), testEnv()); r.ExitCode != exitcode.SysErrForbidden {
			t.Errorf("settle by %s: exit %d", caller, r.ExitCode)
		}
	}
}

func TestCollect(t *testing.T) {
	pay := func(a address.Address, n int64) Payment { return Payment{a, big.NewInt(n)} }
	with := func(toSend int64) *State { st := settling(); st.ToSend = big.NewInt(toSend); return st }
	for _, c := range []struct {
		name   string
		st     *State
		epoch  abi.ChainEpoch
		caller address.Address
		exit   exitcode.ExitCode
		pays   []Payment
	}{
		{"both are paid", with(150), settledAt, payer, 0, []Payment{pay(payee, 150), pay(payer, 850)}},
		{"late, by the payee's key", with(150), hugeEpoch, payeeKey, 0, []Payment{pay(payee, 150), pay(payer, 850)}},
		{"all to the payee", with(1000), settledAt, payee, 0, []Payment{pay(payee, 1000)}},
		{"all back", with(0), settledAt, payee, 0, []Payment{pay(payer, 1000)}},
		{"nil ToSend is 0", &State{From: payer, To: payee, SettlingAt: 1}, settledAt, payee, 0, []Payment{pay(payer, 1000)}},
		{"not settling", open(), hugeEpoch, payee, exitcode.ErrForbidden, nil},
		{"too soon", with(150), settledAt - 1, payee, exitcode.ErrForbidden, nil},
		{"stranger", with(150), settledAt, stranger, exitcode.SysErrForbidden, nil},
		{"stranger comes first", open(), settledAt, stranger, exitcode.SysErrForbidden, nil},
		{"balance that cannot be", with(1001), settledAt, payee, exitcode.SysErrInsufficientFunds, nil},
	} {
		r := applyPure(t, c.st, testBalance, c.epoch, c.caller, Collect(), testEnv())
		if r.ExitCode != c.exit || r.Deleted != (c.exit == 0) || (r.State == nil) != (c.exit == 0) || !samePays(r.Pays, c.pays) {
			t.Errorf("%s: %+v", c.name, r)
		}
		if next := applyPure(t, r.State, testBalance, c.epoch, payee, Collect(), testEnv()); c.exit == 0 && next.ExitCode != exitcode.SysErrInvalidReceiver {
			t.Errorf("%s: message to a deleted channel: exit %d", c.name, next.ExitCode)
		}
	}
}

func TestOtherMethods(t *testing.T) {
	st := open()
	for _, c := range []struct {
		msg  Msg
		exit exitcode.ExitCode
	}{
		{Msg{Method: MethodSend}, exitcode.Ok},
		{Msg{Method: MethodConstructor}, exitcode.SysErrForbidden},
		{Msg{Method: MethodUpdateChannelState}, exitcode.ErrSerialization},
		{Msg{Method: 5}, exitcode.ErrUnhandledMessage},
		{Msg{Method: math.MaxUint64}, exitcode.ErrUnhandledMessage},
	} {
		if r := applyPure(t, st, testBalance, epoch0, stranger, c.msg, testEnv()); r.ExitCode != c.exit || r.State != st {
			t.Errorf("method %d: %+v", c.msg.Method, r)
		}
	}
}

// An empty Env refuses, it does not panic.
func TestEmptyEnv(t *testing.T) {
	if r := applyPure(t, open(), testBalance, epoch0, payee, Redeem(voucher(), nil), Env{}); r.ExitCode != exitcode.ErrIllegalArgument {
		t.Errorf("no verifier: exit %d", r.ExitCode)
	}
	env := testEnv()
	env.Extra = nil
	v := voucher(func(v *SignedVoucher) { v.Extra = &ModVerifyParams{Actor: extraActor} })
	if r := applyPure(t, open(), testBalance, epoch0, payee, Redeem(v, nil), env); r.ExitCode != exitcode.SysErrInvalidReceiver {
		t.Errorf("no extra: exit %d", r.ExitCode)
	}
	env.Resolve = nil
	if r := applyPure(t, open(), testBalance, epoch0, payee, Redeem(voucher(), nil), env); r.ExitCode != exitcode.Ok {
		t.Errorf("ids need no resolver: exit %d", r.ExitCode)
	}
}

func TestConstruct(t *testing.T) {
	env := testEnv()
	env.Account = func(a address.Address) (bool, bool) { return a == payer || a == payee, a != id(404) }
	for _, c := range []struct {
		name     string
		from, to address.Address
		exit     exitcode.ExitCode
	}{
		{"keys", payerKey, payeeKey, exitcode.Ok},
		{"ids", payer, payee, exitcode.Ok},
		{"with oneself", payer, payer, exitcode.Ok},
		{"unknown key", payerKey, notThere, exitcode.ErrIllegalState},
		{"no address", nobody, payee, exitcode.ErrIllegalState},
		{"no actor", payer, id(404), exitcode.ErrIllegalArgument},
		{"no account", stranger, payee, exitcode.ErrForbidden},
		{"to comes first", stranger, id(404), exitcode.ErrIllegalArgument},
	} {
		r := Construct(c.from, c.to, env)
		if r.ExitCode != c.exit || (r.State == nil) != (c.exit != 0) {
			t.Errorf("%s: %+v", c.name, r)
			continue
		}
		if r.State == nil {
			continue
		}
		if err := r.State.Check(big.Zero()); err != nil || r.State.From.Protocol() != address.ID || r.State.To.Protocol() != address.ID {
			t.Errorf("%s: %+v %v", c.name, r.State, err)
		}
	}
}

func TestCheck(t *testing.T) {
	for name, spoil := range map[string]func(*State){
		"no payer":         func(st *State) { st.From = nobody },
		"negative":         func(st *State) { st.ToSend = big.NewInt(-1) },
		"above balance":    func(st *State) { st.ToSend = big.NewInt(1001) },
		"lanes out of row": func(st *State) { st.Lanes[0].Lane = 5 },
		"lane too high":    func(st *State) { st.Lanes[1].Lane = 1 << 63 },
		"negative lane":    func(st *State) { st.Lanes[1].Redeemed = big.NewInt(-1) },
		"settles too soon": func(st *State) { st.SettlingAt, st.MinSettleHeight = 5, 6 },
		"negative height":  func(st *State) { st.MinSettleHeight = -1 },
	} {
		st := open()
		if err := st.Check(testBalance); err != nil {
			t.Fatal(err)
		}
		spoil(st)
		if st.Check(testBalance) == nil {
			t.Errorf("%s passes", name)
		}
	}
}

// applyPure is Apply, and fails the test if it changed what it was given or left
// a state whose invariants do not hold.
func applyPure(t failer, st *State, balance big.Int, epoch abi.ChainEpoch, caller address.Address, msg Msg, env Env) Result {
	t.Helper()
	var before *State
	if st != nil {
		before = st.Clone()
	}
	r := Apply(st, balance, epoch, SettleDelay, caller, msg, env)
	if st != nil && !sameState(before, st) {
		t.Fatalf("the input changed:\nwas %+v\nis  %+v", before, st)
	}
	if (r.ExitCode == exitcode.Ok) != (r.Err == nil) {
		t.Fatalf("exit %d with error %v", r.ExitCode, r.Err)
	}
	if r.ExitCode == exitcode.Ok && r.State != nil {
		if err := r.State.Check(balance); err != nil {
			t.Fatalf("after %+v: %v", msg, err)
		}
	}
	if r.Deleted {
		sum := big.Zero()
		for _, p := range r.Pays {
			sum = big.Add(sum, p.Amount)
		}
		if !sum.Equals(balance) {
			t.Fatalf("pays %v of %v", sum, balance)
		}
	}
	return r
}

// sameState compares, with nil as 0.
func sameState(a, b *State) bool {
	if a.From != b.From || a.To != b.To || !a.ToSend.Equals(b.ToSend) || a.SettlingAt != b.SettlingAt ||
		a.MinSettleHeight != b.MinSettleHeight || len(a.Lanes) != len(b.Lanes) {
		return false
	}
	for i := range a.Lanes {
		x, y := a.Lanes[i], b.Lanes[i]
		if x.Lane != y.Lane || x.Nonce != y.Nonce || !x.Redeemed.Equals(y.Redeemed) {
			return false
		}
	}
	return true
}

func samePays(a, b []Payment) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].To != b[i].To || !a[i].Amount.Equals(b[i].Amount) {
			return false
		}
	}
	return true
}
