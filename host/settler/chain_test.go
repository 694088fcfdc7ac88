package settler

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/swap"
)

// paidExactly closes the channel of a and compares chain and books.
func paidExactly(t *testing.T, r *rig, before big.Int, least int64) {
	t.Helper()
	r.agree()
	r.closeChannel(r.a)
	r.agree()
	paid := toAtto(r.b.row(r.a).Received)
	if got := big.Sub(r.balance(r.b), before); !got.Equals(paid) {
		t.Errorf("the chain paid %v, the books say %v", got, paid)
	}
	if paid.LessThan(units(least)) {
		t.Errorf("only %v were paid", paid)
	}
}

// A reorganisation takes the message that creates the channel, and the node forgets
// it: it is published again, the same one, and the cheque that waited goes out.
func TestReorgOfCreate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		before := r.balance(r.b)
		r.begin()
		for range 5 {
			if err := r.serve(r.a, r.b, 20, time.Second); err != nil {
				t.Fatal(err)
			}
		}
		r.pass(time.Second)
		r.chain.Revert(1)
		r.chain.DropPool()
		r.pass(time.Minute)
		pay(t, r, r.a, r.b, 10)
		if n := len(r.chain.Published()); n == 0 {
			t.Error("nothing was published")
		}
		paidExactly(t, r, before, 200)
	})
}

// The same of a cash-out.
func TestReorgOfSubmit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		before := r.balance(r.b)
		r.begin()
		pay(t, r, r.a, r.b, 15)
		cashed, err := r.b.settler.Cashout(t.Context(), r.a.id, 0)
		if err != nil || cashed.Units < 200 {
			t.Fatal(cashed, err)
		}
		r.pass(time.Second)
		r.chain.Revert(1)
		r.chain.DropPool()
		r.pass(time.Minute)
		st, ok := r.b.settler.Standing(t.Context(), r.a.id)
		if !ok || st.Redeemed < cashed.Units || st.Uncashed != 0 {
			t.Errorf("after the reorganisation %+v of %d", st, cashed.Units)
		}
		if _, err := r.b.settler.Cashout(t.Context(), r.a.id, 0); !errors.Is(err, ErrNothingToCash) {
			t.Errorf("again: %v", err)
		}
		pay(t, r, r.a, r.b, 10)
		paidExactly(t, r, before, 300)
	})
}

// A reorganisation deeper than finality takes a top-up that vouchers were given on.
// No balance changes, new credit stops and says why, the debtor tops up the same
// channel by itself, and service goes on.
func TestLostCover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		for _, s := range [...]*side{r.a, r.b} {
			s.cfg.InitialDeposit, s.cfg.TopUp, s.cfg.Ahead, s.cfg.MaxLocked = 100, 1000, 50, 100_000
		}
		before := r.balance(r.b)
		r.begin()
		for range 15 {
			if err := r.serve(r.a, r.b, 20, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		r.pass(10 * time.Second)
		ch := r.a.settler.linkOf(r.b.id, swap.Consume).channel
		topUps := 0
		for _, p := range r.chain.Published() {
			if p.To == ch && p.Kind == 0 {
				topUps++
			}
		}
		if topUps == 0 {
			t.Fatal("there was no top-up to lose")
		}
		row := r.b.row(r.a)
		// Back to just after the channel was created.
		head, err := r.chain.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var funded int
		for n := 1; n < int(head); n++ {
			_, balance, err := r.chain.Channel(t.Context(), ch, 0)
			if errors.Is(err, paych.ErrNotFound) {
				t.Fatal("the channel itself is gone")
			}
			if balance.LessThan(units(300)) {
				funded = n
				break
			}
			r.chain.Revert(1)
			r.chain.DropPool()
		}
		if funded == 0 {
			t.Fatal("the balance did not fall")
		}
		synctest.Wait()
		lost := r.b.row(r.a)
		if lost.Balance != row.Balance || lost.Received != row.Received {
			t.Errorf("a reorganisation changed the balance: %+v, %+v", row, lost)
		}
		if lost.Exposure == 0 {
			t.Error("lost cover is no exposure")
		}
		if _, err := r.b.TryReserve(t.Context(), r.a.id, "test", swap.Serve, 1); !errors.Is(err, swap.ErrUncovered) {
			t.Errorf("new credit: %v", err)
		}
		r.b.mu.Lock()
		told := false
		for _, n := range r.b.notices {
			told = told || n.Kind == swap.NoticeUncovered
		}
		r.b.mu.Unlock()
		if !told {
			t.Error("the operator was not told")
		}
		r.pass(2 * time.Minute)
		if got := r.a.settler.linkOf(r.b.id, swap.Consume).channel; got != ch {
			t.Errorf("the channel was %s and is %s", ch, got)
		}
		if e := r.b.row(r.a).Exposure; e > 125 {
			t.Errorf("exposure %d after the top-up", e)
		}
		pay(t, r, r.a, r.b, 10)
		paidExactly(t, r, before, 400)
	})
}

// The policy submits what is due, once it is worth the fee.
func TestCashoutPolicy(t *testing.T) {
	for _, c := range []struct {
		name   string
		policy CashoutPolicy
		fee    int64 // attoFIL
		cashed bool
	}{
		{"by amount", CashoutPolicy{Amount: 150}, 0, true},
		{"amount not reached", CashoutPolicy{Amount: 100_000}, 0, false},
		{"by age", CashoutPolicy{Age: 10 * time.Second}, 0, true},
		{"not worth the fee", CashoutPolicy{Amount: 150, FeeRatio: 100}, 10 * AttoPerUnit, false},
		{"worth the fee", CashoutPolicy{Amount: 150, FeeRatio: 10}, 10 * AttoPerUnit, true},
		{"never", CashoutPolicy{}, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				r.b.cfg.Cashout = c.policy
				r.b.cfg.RedeemFee = func(context.Context) (big.Int, error) { return big.NewInt(c.fee), nil }
				r.begin()
				pay(t, r, r.a, r.b, 15)
				r.pass(time.Minute)
				st, ok := r.b.settler.Standing(t.Context(), r.a.id)
				if !ok || (st.Redeemed >= 150) != c.cashed {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// Who could not pay for cashing in takes no cheque, and says so; once it can, the
// cheque that was refused is credited.
func TestFeeComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var fee atomic.Pointer[big.Int]
		dear, free := big.Mul(big.NewInt(walletFund), big.NewInt(2)), big.Zero()
		fee.Store(&dear)
		r.b.cfg.RedeemFee = func(context.Context) (big.Int, error) { return *fee.Load(), nil }
		r.begin()
		for range 5 {
			if err := r.serve(r.a, r.b, 20, time.Second); err != nil {
				t.Fatal(err)
			}
		}
		r.pass(30 * time.Second)
		if row := r.b.row(r.a); row.Received != 0 {
			t.Errorf("credited %d", row.Received)
		}
		fee.Store(&free)
		r.pass(2 * time.Minute)
		if row := r.b.row(r.a); row.Received != 100 {
			t.Errorf("credited %d once the fee is there", row.Received)
		}
		r.agree()
	})
}

// A chain that is away stops no cheque that it would not have paid less for: the
// fee was there a while ago, and sessions begin with the proof of an earlier run.
func TestChainAwayWithFees(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var away atomic.Bool
		r.b.cfg.RedeemFee = func(context.Context) (big.Int, error) {
			if away.Load() {
				return big.Zero(), errors.New("the node is away")
			}
			return big.NewInt(1), nil
		}
		r.begin()
		pay(t, r, r.a, r.b, 7)
		away.Store(true)
		r.chain.Down(errors.New("the node is away"))
		r.pass(5 * time.Second) // a channel settles in 40
		for range 10 {
			if err := r.serve(r.a, r.b, 20, time.Minute); err != nil {
				t.Fatal(err, r.a.row(r.b).SettlementBlockedBy)
			}
		}
		r.pass(5 * time.Second)
		r.agree()
		r.a.wallet.Fail(errors.New("the wallet's node is away"))
		r.hangUp()
		r.dial()
		r.mend()
		if !r.b.row(r.a).Connected {
			t.Error("no session")
		}
	})
}

// Play money: a voucher for a channel that another network has, under keys that are
// used on both, is worth nothing here; and a cheque that is signed for another
// realm is none.
func TestPlayMoney(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.begin()
		h := newHostile(t, r, 1000)
		elsewhere, err := address.NewActorAddress([]byte("a channel of a play network"))
		if err != nil {
			t.Fatal(err)
		}
		sv := h.sign(t, r.a, paych.SignedVoucher{ChannelAddr: elsewhere, Nonce: 1, Amount: units(100)})
		if err := h.cheque(t, r.a, 100, backing{base: big.Zero(), voucher: sv}); err == nil {
			t.Error("credited")
		}
		play := swap.Realm{Network: "play", Genesis: "other", Asset: "FIL"}
		raw, err := (&backing{base: big.Zero(), voucher: h.sign(t, r.a, paych.SignedVoucher{Nonce: 1, Amount: units(100)})}).encode()
		if err != nil {
			t.Fatal(err)
		}
		c := &swap.Cheque{Issuer: r.a.id, Beneficiary: r.b.id, Serial: 9, Cumulative: 100, Backing: raw}
		if c.Signature, err = r.a.key.Sign(c.SigningBytes(play)); err != nil {
			t.Fatal(err)
		}
		if err := r.b.Receive(t.Context(), r.a.id, c); !errors.Is(err, swap.ErrSignature) {
			t.Errorf("a cheque of another realm: %v", err)
		}
		hello, err := r.a.Hello(t.Context(), r.b.id)
		if err != nil {
			t.Fatal(err)
		}
		hello.Realm = play
		if err := r.b.BeginSession(t.Context(), r.a.id, hello, true); !errors.Is(err, swap.ErrNetwork) {
			t.Errorf("a session of another realm: %v", err)
		}
		if row := r.b.row(r.a); row.Received != 0 {
			t.Errorf("credited %d", row.Received)
		}
	})
}
