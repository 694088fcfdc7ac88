package actor

import (
	"bytes"
	"math"
	"testing"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/filecoin-project/go-state-types/exitcode"
	"pgregory.net/rapid"
)

// The model of a channel is the list of what was redeemed: ToSend is the sum of
// the deltas, a lane's figure is the last amount on it. It knows nothing of
// checks, only of what has to be true of the ones that passed.
type model struct {
	st      *State
	balance big.Int
	epoch   abi.ChainEpoch
	deltas  big.Int
	amount  map[uint64]big.Int
	nonce   map[uint64]uint64
}

// TestChannelAgainstModel drives one channel with random messages and holds it
// against the model after each.
func TestChannelAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{
			st: &State{From: payer, To: payee}, balance: big.NewInt(rapid.Int64Range(0, 2000).Draw(t, "balance")),
			epoch: 1, deltas: big.Zero(), amount: map[uint64]big.Int{}, nonce: map[uint64]uint64{},
		}
		for range rapid.IntRange(1, 40).Draw(t, "messages") {
			if !m.step(t) {
				return
			}
		}
	})
}

// step sends one message; false when the channel is gone.
func (m *model) step(t *rapid.T) bool {
	m.epoch += abi.ChainEpoch(rapid.SampledFrom([]int64{0, 1, 5, 700, settleInt}).Draw(t, "wait"))
	caller := rapid.SampledFrom([]address.Address{payer, payee, payee, payeeKey, stranger}).Draw(t, "caller")
	msg := rapid.Custom(m.message).Draw(t, "msg")
	if msg.Method == MethodSend {
		m.balance = big.Add(m.balance, big.NewInt(10))
	}
	was := m.st
	r := applyPure(t, m.st, m.balance, m.epoch, caller, msg, testEnv())
	if r.ExitCode != exitcode.Ok {
		if r.State != was {
			t.Fatalf("a failed message moved the state")
		}
		return true
	}
	if caller == stranger && msg.Method != MethodSend {
		t.Fatalf("a stranger did %+v", msg)
	}
	switch msg.Method {
	case MethodUpdateChannelState:
		m.redeemed(t, was, &msg.Update.Sv)
	case MethodSettle:
		if was.SettlingAt != 0 || r.State.SettlingAt < m.epoch+SettleDelay {
			t.Fatalf("settle at %d: %d, then %d", m.epoch, was.SettlingAt, r.State.SettlingAt)
		}
	case MethodCollect:
		if was.SettlingAt == 0 || m.epoch < was.SettlingAt {
			t.Fatalf("collected at %d, settling at %d", m.epoch, was.SettlingAt)
		}
		got := big.Zero()
		for _, p := range r.Pays {
			if p.To == payee {
				got = big.Add(got, p.Amount)
			}
		}
		if !got.Equals(m.deltas) {
			t.Fatalf("the payee got %v, its vouchers said %v", got, m.deltas)
		}
		return false
	}
	m.st = r.State
	if !m.st.ToSend.Equals(m.deltas) {
		t.Fatalf("to send %v, deltas %v", m.st.ToSend, m.deltas)
	}
	if len(m.st.Lanes) != len(m.amount) {
		t.Fatalf("lanes %+v, model %v", m.st.Lanes, m.amount)
	}
	for _, l := range m.st.Lanes {
		if !l.Redeemed.Equals(m.amount[l.Lane]) || l.Nonce != m.nonce[l.Lane] {
			t.Fatalf("lane %+v, model %v and %d", l, m.amount[l.Lane], m.nonce[l.Lane])
		}
	}
	if m.st.SettlingAt < was.SettlingAt || m.st.MinSettleHeight < was.MinSettleHeight {
		t.Fatalf("settling %d and %d, were %d and %d", m.st.SettlingAt, m.st.MinSettleHeight, was.SettlingAt, was.MinSettleHeight)
	}
	return true
}

// redeemed books a voucher that passed.
func (m *model) redeemed(t *rapid.T, was *State, sv *SignedVoucher) {
	if n, known := m.nonce[sv.Lane]; known && sv.Nonce <= n {
		t.Fatalf("lane %d took nonce %d after %d", sv.Lane, sv.Nonce, n)
	}
	if was.SettlingAt != 0 && m.epoch >= was.SettlingAt {
		t.Fatalf("a voucher was taken at %d, settled at %d", m.epoch, was.SettlingAt)
	}
	delta := sv.Amount
	if old, known := m.amount[sv.Lane]; known {
		delta = big.Sub(delta, old)
	}
	for _, g := range sv.Merges {
		old, known := m.amount[g.Lane]
		if !known || g.Nonce <= m.nonce[g.Lane] || g.Lane == sv.Lane {
			t.Fatalf("merge %+v passed", g)
		}
		delta, m.nonce[g.Lane] = big.Sub(delta, old), g.Nonce
	}
	m.deltas = big.Add(m.deltas, delta)
	m.amount[sv.Lane], m.nonce[sv.Lane] = sv.Amount, sv.Nonce
}

func (m *model) message(t *rapid.T) Msg {
	switch rapid.IntRange(0, 19).Draw(t, "kind") {
	case 0:
		return Settle()
	case 1:
		return Collect()
	case 2:
		return Msg{Method: MethodSend}
	}
	lanes := rapid.SampledFrom([]uint64{0, 1, 2, 3, MaxLane, MaxLane + 1, math.MaxUint64})
	nonces := rapid.OneOf(rapid.Uint64Range(0, 60), rapid.Just(uint64(math.MaxUint64)))
	sv := SignedVoucher{
		ChannelAddr:     rapid.SampledFrom([]address.Address{self, self, selfLong, payer}).Draw(t, "channel"),
		TimeLockMin:     m.near(t, "min"),
		TimeLockMax:     m.near(t, "max"),
		Lane:            lanes.Draw(t, "lane"),
		Nonce:           nonces.Draw(t, "nonce"),
		Amount:          big.NewInt(rapid.Int64Range(-5, 1500).Draw(t, "amount")),
		MinSettleHeight: m.near(t, "height"),
		Signature: &crypto.Signature{
			Type: crypto.SigTypeSecp256k1,
			Data: rapid.SampledFrom([]address.Address{payer, payer, payee, stranger}).Draw(t, "signer").Bytes(),
		},
	}
	for range rapid.SampledFrom([]int{0, 0, 0, 1, 2, 3}).Draw(t, "merges") {
		sv.Merges = append(sv.Merges, Merge{Lane: lanes.Draw(t, "other"), Nonce: nonces.Draw(t, "other nonce")})
	}
	var s []byte
	if rapid.Bool().Draw(t, "locked") {
		sv.SecretHash = lock[:]
		s = rapid.SampledFrom([][]byte{secret, secret, secret[1:], nil}).Draw(t, "secret")
	}
	return Redeem(sv, s)
}

// near is an epoch around now, or none.
func (m *model) near(t *rapid.T, label string) abi.ChainEpoch {
	d := rapid.SampledFrom([]int64{math.MinInt64, math.MinInt64, math.MinInt64, -1, 0, 1, 3000}).Draw(t, label)
	if d == math.MinInt64 {
		return 0
	}
	return m.epoch + abi.ChainEpoch(d)
}

// settleInt is SettleDelay for a generator.
const settleInt = int64(SettleDelay)

// failer is what *rapid.T and testing.TB share.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// FuzzApply feeds arbitrary parameters to a channel in arbitrary conditions: no
// panic, no change of the input, invariants afterwards, and what is read writes
// out as a message that reads the same.
func FuzzApply(f *testing.F) {
	add := func(msg Msg, caller uint8, balance int64, epoch, settling int64) {
		params, err := msg.Params()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint64(msg.Method), params, caller, balance, epoch, settling)
	}
	add(Redeem(voucher(), nil), 1, 1000, 500, 0)
	add(Redeem(voucher(func(v *SignedVoucher) { v.SecretHash = lock[:] }), secret), 1, 1000, 500, 700)
	add(Redeem(voucher(func(v *SignedVoucher) { v.Merges = merges(5, 21) }), nil), 1, 150, 500, 0)
	add(Redeem(voucher(func(v *SignedVoucher) { refund(v); v.Amount = big.Zero() }), nil), 0, 1000, 500, 0)
	add(Redeem(voucher(func(v *SignedVoucher) {
		v.Extra = &ModVerifyParams{Actor: extraActor, Method: 3, Data: []byte{0x80}}
		v.MinSettleHeight = hugeEpoch
	}), nil), 1, 1000, 500, 700)
	add(Settle(), 0, 1000, 500, 0)
	add(Collect(), 1, 1000, 700, 700)
	f.Fuzz(func(t *testing.T, method uint64, params []byte, caller uint8, balance, epoch, settling int64) {
		msg, code := DecodeMsg(abi.MethodNum(method), params)
		if code != exitcode.Ok {
			return
		}
		if msg.Update != nil {
			sameMsg(t, msg)
		}
		// A chain's own figures are sane; hostile ones come in messages.
		epoch, settling = epoch&math.MaxInt32, settling&math.MaxInt32
		st := open()
		st.SettlingAt = abi.ChainEpoch(settling)
		balance = max(balance, 150) // ToSend: a balance never falls below it
		applyPure(t, st, big.NewInt(balance), abi.ChainEpoch(epoch), []address.Address{payer, payee, stranger, notThere}[caller%4], msg, testEnv())
	})
}

// sameMsg writes msg and reads it back.
func sameMsg(t testing.TB, msg Msg) {
	t.Helper()
	params, err := msg.Params()
	if err != nil {
		t.Fatalf("what was read cannot be written: %v", err)
	}
	back, code := DecodeMsg(msg.Method, params)
	if code != exitcode.Ok {
		t.Fatalf("what was written cannot be read: exit %d", code)
	}
	again, err := back.Params()
	if err != nil || !bytes.Equal(params, again) {
		t.Fatalf("%x came back as %x (%v)", params, again, err)
	}
}
