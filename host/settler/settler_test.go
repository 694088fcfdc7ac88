package settler

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/swap"
)

// A tab that passes the threshold opens a channel, cheques carry its vouchers,
// and the chain pays what they said, to the attoFIL.
func TestThresholdsTriggerVouchers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.begin()
		beforeA, beforeB := r.balance(r.a), r.balance(r.b)
		total := tally.Amount(0)
		for range 30 {
			if err := r.serve(r.a, r.b, 20, time.Minute); err != nil {
				t.Fatal(err)
			}
			total += 20
		}
		r.pass(30 * time.Second)
		r.agree()
		row := r.b.row(r.a)
		if row.Received < total-100 || row.Exposure >= 125 {
			t.Errorf("of %d units %d are paid: %+v", total, row.Received, row)
		}
		r.closeChannel(r.a)
		r.agree()
		paid := toAtto(row.Received)
		if got := big.Sub(r.balance(r.b), beforeB); !got.Equals(paid) {
			t.Errorf("the chain paid %v, the cheques said %v", got, paid)
		}
		if got := big.Sub(beforeA, r.balance(r.a)); !got.Equals(paid) {
			t.Errorf("the payer spent %v, the cheques said %v", got, paid)
		}
	})
}

// pay runs service until a settlement is acked.
func pay(t *testing.T, r *rig, client, server *side, rounds int) {
	t.Helper()
	for range rounds {
		if err := r.serve(client, server, 20, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	r.pass(5 * time.Second)
}

// A side that lost its whole store, or restored an old backup, gets back what the
// other proves before anything is issued: the same channel, no nonce twice, no
// unit lost.
func TestLostStore(t *testing.T) {
	for _, c := range []struct {
		name string
		who  func(*rig) *side
		old  bool
	}{
		{"payer, all lost", func(r *rig) *side { return r.a }, false},
		{"payer, old backup", func(r *rig) *side { return r.a }, true},
		{"payee, all lost", func(r *rig) *side { return r.b }, false},
		{"payee, old backup", func(r *rig) *side { return r.b }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				before := r.balance(r.b)
				r.begin()
				pay(t, r, r.a, r.b, 7)
				who := c.who(r)
				backup := durabletest.NewMemCrash()
				if c.old {
					_ = backup.Close()
					backup = who.disk.Clone()
				}
				pay(t, r, r.a, r.b, 15)
				ch := r.a.settler.linkOf(r.b.id, swap.Consume).channel
				received := r.b.row(r.a).Received
				who.restart(backup)
				r.pass(5 * time.Second)
				if who == r.a {
					// Units since the last cheque are on the payee's book alone, and more
					// than is forgiven: a person takes its figure.
					if err := r.a.Resolve(t.Context(), r.b.id); err != nil {
						t.Fatal(err)
					}
					r.pass(2 * time.Second)
				}
				pay(t, r, r.a, r.b, 12)
				r.pass(time.Minute)
				if got := r.a.settler.linkOf(r.b.id, swap.Consume).channel; got != ch {
					t.Errorf("the channel was %s and is %s", ch, got)
				}
				row := r.b.row(r.a)
				if row.Received < received+200 {
					t.Errorf("after the loss %d are paid, before it %d", row.Received, received)
				}
				r.agree()
				r.closeChannel(r.a)
				r.agree()
				if got, want := big.Sub(r.balance(r.b), before), toAtto(r.b.row(r.a).Received); !got.Equals(want) {
					t.Errorf("the chain paid %v, the cheques said %v", got, want)
				}
			})
		})
	}
}

// hostile makes cheques of a that no honest settler would.
type hostile struct {
	r  *rig
	ch address.Address
	n  uint64 // serial
}

// newHostile has a make a channel to b by hand.
func newHostile(t *testing.T, r *rig, amount int64) *hostile {
	t.Helper()
	id, err := r.a.manager.PaychCreate(t.Context(), r.a.payout, r.b.payout, big.Mul(big.NewInt(amount), big.NewInt(AttoPerUnit)))
	if err != nil {
		t.Fatal(err)
	}
	r.pass(5 * time.Second)
	ch, err := r.a.manager.PaychWaitReady(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return &hostile{r: r, ch: ch, n: 100}
}

// sign makes a voucher that the manager need not agree with.
func (h *hostile) sign(t *testing.T, by *side, sv paych.SignedVoucher) *paych.SignedVoucher {
	t.Helper()
	if sv.ChannelAddr == address.Undef {
		sv.ChannelAddr = h.ch
	}
	signed, err := paych.Sign(t.Context(), by.wallet, by.payout, &sv)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// cheque gives b a cheque of from and returns what b says.
func (h *hostile) cheque(t *testing.T, from *side, cumulative tally.Amount, b backing) error {
	t.Helper()
	raw, err := b.encode()
	if err != nil {
		t.Fatal(err)
	}
	h.n++
	c := &swap.Cheque{Issuer: from.id, Beneficiary: h.r.b.id, Serial: h.n, Cumulative: cumulative, Backing: raw}
	if c.Signature, err = from.key.Sign(c.SigningBytes(realm)); err != nil {
		t.Fatal(err)
	}
	return h.r.b.Receive(t.Context(), from.id, c)
}

func units(n int64) big.Int { return big.Mul(big.NewInt(n), big.NewInt(AttoPerUnit)) }

// Each of these cheques is refused, and changes no balance, link or channel.
func TestHostileBackings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.begin()
		h := newHostile(t, r, 1000)
		good := func() *paych.SignedVoucher {
			return h.sign(t, r.a, paych.SignedVoucher{Nonce: 1, Amount: units(100)})
		}
		zero := big.Zero()
		for _, c := range []struct {
			name string
			b    backing
			want error
		}{
			{"origin beyond what was credited", backing{origin: 50, base: zero, voucher: h.sign(t, r.a, paych.SignedVoucher{Nonce: 1, Amount: units(50)})}, swap.ErrBacking},
			{"origin beyond the cumulative", backing{origin: 500, base: zero, voucher: good()}, swap.ErrBacking},
			{"amount below the cumulative", backing{base: zero, voucher: h.sign(t, r.a, paych.SignedVoucher{Nonce: 1, Amount: units(99)})}, swap.ErrBacking},
			{"another lane", backing{base: zero, voucher: h.sign(t, r.a, paych.SignedVoucher{Lane: 7, Nonce: 1, Amount: units(100)})}, swap.ErrBacking},
			{"MinSettleHeight that makes collecting impossible", backing{base: zero, voucher: h.sign(t, r.a, paych.SignedVoucher{Nonce: 1, Amount: units(100), MinSettleHeight: 1 << 62})}, swap.ErrBacking},
			{"a hash lock", backing{base: zero, voucher: h.sign(t, r.a, paych.SignedVoucher{Nonce: 1, Amount: units(100), SecretHash: make([]byte, 32)})}, swap.ErrBacking},
			{"a time lock", backing{base: zero, voucher: h.sign(t, r.a, paych.SignedVoucher{Nonce: 1, Amount: units(100), TimeLockMin: 1 << 40})}, swap.ErrBacking},
			{"signed by another", backing{base: zero, voucher: h.sign(t, r.b, paych.SignedVoucher{Nonce: 1, Amount: units(100)})}, swap.ErrBacking},
			{"a channel that is none", backing{base: zero, voucher: h.sign(t, r.a, paych.SignedVoucher{ChannelAddr: r.a.payout, Nonce: 1, Amount: units(100)})}, nil},
		} {
			err := h.cheque(t, r.a, 100, c.b)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%s: %v", c.name, err)
			}
			if row := r.b.row(r.a); row.Received != 0 || r.b.settler.linkOf(r.a.id, swap.Serve).state != linkNone {
				t.Fatalf("%s: credited %d, link %+v", c.name, row.Received, r.b.settler.linkOf(r.a.id, swap.Serve))
			}
		}
		// A channel that somebody else pays from, though the money would be good.
		friend := &side{rig: r, name: "friend", wallet: r.a.wallet, payout: r.a.wallet.MustNew()}
		r.chain.Fund(friend.payout, walletFund)
		id, err := r.a.manager.PaychCreate(t.Context(), friend.payout, r.b.payout, units(1000))
		if err != nil {
			t.Fatal(err)
		}
		r.pass(5 * time.Second)
		theirs, err := r.a.manager.PaychWaitReady(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		sv := h.sign(t, friend, paych.SignedVoucher{ChannelAddr: theirs, Nonce: 1, Amount: units(100)})
		if err := h.cheque(t, r.a, 100, backing{base: zero, voucher: sv}); !errors.Is(err, swap.ErrBacking) {
			t.Errorf("a channel from an address that is not bound: %v", err)
		}
		// Beyond the balance it is not covered, and no link is kept either.
		over := backing{base: zero, voucher: h.sign(t, r.a, paych.SignedVoucher{Nonce: 1, Amount: units(5000)})}
		if err := h.cheque(t, r.a, 5000, over); !errors.Is(err, swap.ErrUncovered) {
			t.Errorf("over the balance: %v", err)
		}
		if err := h.cheque(t, r.a, 100, backing{base: zero, voucher: good()}); err != nil {
			t.Errorf("the good one: %v", err)
		}
		if row := r.b.row(r.a); row.Received != 100 {
			t.Errorf("credited %d", row.Received)
		}
		// Once bound, nothing of it changes.
		next := h.sign(t, r.a, paych.SignedVoucher{Nonce: 2, Amount: units(150)})
		if err := h.cheque(t, r.a, 200, backing{origin: 50, base: zero, voucher: next}); !errors.Is(err, swap.ErrBacking) {
			t.Errorf("another origin: %v", err)
		}
		if err := h.cheque(t, r.a, 100, backing{base: units(50), voucher: next}); !errors.Is(err, swap.ErrBacking) {
			t.Errorf("another base: %v", err)
		}
		other := newHostile(t, r, 1000)
		fresh := h.sign(t, r.a, paych.SignedVoucher{ChannelAddr: other.ch, Nonce: 1, Amount: units(100)})
		if err := h.cheque(t, r.a, 200, backing{origin: 100, base: zero, voucher: fresh}); !errors.Is(err, swap.ErrBacking) {
			t.Errorf("a second channel: %v", err)
		}
		same := h.sign(t, r.a, paych.SignedVoucher{ChannelAddr: other.ch, Nonce: 1, Amount: units(200)})
		if err := h.cheque(t, r.a, 200, backing{base: zero, voucher: same}); !errors.Is(err, swap.ErrBacking) {
			t.Errorf("a second channel that counts from the same: %v", err)
		}
	})
}

// One channel is one peer's: another identity cannot have its vouchers credited,
// nor bind the payout address that it is paid from.
func TestOneChannelOfTwoPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.begin()
		pay(t, r, r.a, r.b, 7)
		in := r.b.settler.linkOf(r.a.id, swap.Serve)
		mallory := &side{rig: r, name: "mallory", key: testKey(9), wallet: r.a.wallet, payout: r.a.payout}
		mallory.id, _ = peer.IDFromPrivateKey(mallory.key)
		// It has the vouchers, and even the address signed for it: by one owner of
		// two identities.
		text := swap.PayoutText(realm, mallory.id, r.a.payout.String())
		sig, err := r.a.wallet.Sign(t.Context(), r.a.payout, text)
		if err != nil {
			t.Fatal(err)
		}
		proof, err := sig.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if err := r.b.settler.BindPeer(t.Context(), mallory.id, swap.Payout{Address: r.a.payout.String(), Proof: proof}, text); err != nil {
			t.Fatal(err)
		}
		cheques, err := r.b.Cheques(r.a.id)
		if err != nil || len(cheques) == 0 {
			t.Fatal(cheques, err)
		}
		got := cheques[len(cheques)-1].Cheque
		b, err := decodeBacking(got.Backing)
		if err != nil {
			t.Fatal(err)
		}
		h := &hostile{r: r, ch: in.channel, n: 100}
		if err := h.cheque(t, mallory, got.Cumulative, *b); !errors.Is(err, swap.ErrBacking) || !strings.Contains(err.Error(), "belongs to another peer") {
			t.Errorf("the channel of another peer: %v", err)
		}
		// The address of a live channel stays.
		other := r.a.wallet.MustNew()
		text = swap.PayoutText(realm, r.a.id, other.String())
		if sig, err = r.a.wallet.Sign(t.Context(), other, text); err != nil {
			t.Fatal(err)
		}
		if proof, err = sig.MarshalBinary(); err != nil {
			t.Fatal(err)
		}
		if err := r.b.settler.BindPeer(t.Context(), r.a.id, swap.Payout{Address: other.String(), Proof: proof}, text); err == nil {
			t.Error("the payout address changed while a channel lives")
		}
		// A proof for another peer or realm is none.
		text = swap.PayoutText(swap.Realm{Network: "play", Asset: "FIL"}, r.a.id, r.a.payout.String())
		if sig, err = r.a.wallet.Sign(t.Context(), r.a.payout, text); err != nil {
			t.Fatal(err)
		}
		if proof, err = sig.MarshalBinary(); err != nil {
			t.Fatal(err)
		}
		want := swap.PayoutText(realm, r.a.id, r.a.payout.String())
		if err := r.b.settler.BindPeer(t.Context(), r.a.id, swap.Payout{Address: r.a.payout.String(), Proof: proof}, want); err == nil {
			t.Error("a proof for a play network is taken")
		}
	})
}

// A chain that is away for a while stops no service within the thresholds, and
// what waited goes on by itself.
func TestChainDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.begin()
		pay(t, r, r.a, r.b, 7)
		r.chain.Down(errors.New("the node is away"))
		served := 0
		for range 10 {
			if err := r.serve(r.a, r.b, 20, time.Second); err == nil {
				served++
			}
		}
		if served < 4 {
			t.Errorf("only %d requests were served while the chain was away", served)
		}
		r.pass(time.Minute)
		if e := r.b.row(r.a).Exposure; e > 125 {
			t.Errorf("exposure %d", e)
		}
		r.chain.Down(nil)
		r.pass(2 * time.Minute)
		pay(t, r, r.a, r.b, 10)
		r.agree()
		r.closeChannel(r.a)
		r.agree()
	})
}

// A channel that runs dry is topped up, without a person, and the cheque that
// waited is the same.
func TestChannelRunsDry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		for _, s := range [...]*side{r.a, r.b} {
			s.cfg.InitialDeposit, s.cfg.TopUp, s.cfg.Ahead, s.cfg.MaxLocked = 100, 100, 50, 100_000
		}
		before := r.balance(r.b)
		r.begin()
		for range 40 {
			if err := r.serve(r.a, r.b, 20, 2*time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		r.pass(time.Minute)
		r.agree()
		r.closeChannel(r.a)
		if got, want := big.Sub(r.balance(r.b), before), toAtto(r.b.row(r.a).Received); !got.Equals(want) || want.LessThan(units(700)) {
			t.Errorf("the chain paid %v, the cheques said %v", got, want)
		}
	})
}

// A first deposit beyond what may be locked opens no channel, and says why.
func TestLockCapOfTheFirstDeposit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.a.cfg.InitialDeposit, r.a.cfg.Ahead, r.a.cfg.MaxLocked, r.a.cfg.MaxLockedTotal = 100, 50, 120, 120
		r.begin()
		for range 5 {
			if err := r.serve(r.a, r.b, 20, time.Second); err != nil {
				t.Fatal(err)
			}
		}
		r.pass(time.Minute)
		if n := len(r.chain.Published()); n != 0 {
			t.Errorf("%d messages were published", n)
		}
		if why := r.a.row(r.b).SettlementBlockedBy; !strings.Contains(why, "no more may be locked") {
			t.Errorf("the operator is told %q", why)
		}
	})
}

// As much as the operator allows is locked, and not more; the reason is told.
func TestLockCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.a.cfg.InitialDeposit, r.a.cfg.TopUp, r.a.cfg.Ahead, r.a.cfg.MaxLocked, r.a.cfg.MaxLockedTotal = 200, 100, 50, 400, 400
		r.begin()
		var last error
		for range 40 {
			if last = r.serve(r.a, r.b, 20, 20*time.Second); last != nil {
				break
			}
		}
		if last == nil {
			t.Fatal("nothing stopped it")
		}
		r.pass(time.Minute)
		st, err := r.a.manager.PaychStatus(t.Context(), r.a.settler.linkOf(r.b.id, swap.Consume).channel)
		if err != nil || st.ConfirmedAmt.GreaterThan(units(400)) {
			t.Errorf("locked %v, %v", st.ConfirmedAmt, err)
		}
		if why := r.a.row(r.b).SettlementBlockedBy; !strings.Contains(why, "topped up") {
			t.Errorf("the operator is told %q: %+v", why, r.a.row(r.b))
		}
		r.agree()
	})
}
