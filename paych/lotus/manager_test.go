package lotus_test

import (
	"context"
	"testing"
	"time"

	"github.com/filecoin-project/go-address"

	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/devnet"
	"github.com/tallystick/tally/paych/lotus"
)

// TestManagers runs two channel managers on one embedded chain, through this
// client: one pays, the other redeems, and both find their money.
func TestManagers(t *testing.T) {
	// Long enough that a busy machine is no hostile payer: the rest of it is made by
	// command.
	const settleDelay = 1500
	chain := newChain(t, devnet.Config{BlockTime: 10 * time.Millisecond, SettleDelay: settleDelay, Finality: 3})
	n := serve(t, chain, "")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	party := func() (*paych.Manager, address.Address) {
		w := &keyring{}
		c := open(t, n.addr, lotus.Config{Wallet: w})
		a, err := w.New(ctx)
		ok(err)
		id, err := c.Dev().DevFaucet(ctx, a, fil(100))
		ok(err)
		_, err = c.Wait(ctx, id, 1)
		ok(err)
		store := durabletest.NewMem()
		m, err := paych.Open(ctx, store, c, w, paych.Config{})
		ok(err)
		t.Cleanup(func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			if err := store.Close(); err != nil {
				t.Error(err)
			}
		})
		return m, a
	}
	payer, from := party()
	payee, to := party()

	id, err := payer.PaychCreate(ctx, from, to, fil(10))
	ok(err)
	ch, err := payer.PaychWaitReady(ctx, id)
	ok(err)
	lane, err := payer.PaychAllocateLane(ctx, ch)
	ok(err)
	v, err := payer.PaychVoucherCreate(ctx, ch, fil(4), lane)
	ok(err)
	if v.Voucher == nil {
		t.Fatalf("no voucher: short of %v", v.Shortfall)
	}
	delta, err := payee.PaychVoucherAdd(ctx, ch, v.Voucher, nil, fil(1))
	ok(err)
	if !delta.Equals(fil(4)) {
		t.Fatalf("voucher is worth %v", delta)
	}
	// The payer settles; the payee's watcher submits the voucher and collects.
	_, err = payer.PaychSettle(ctx, ch)
	ok(err)
	c := open(t, n.addr, lotus.Config{})
	heads, err := c.Heads(ctx)
	ok(err)
	submitted := false
	for range heads {
		if !submitted {
			s, _, err := c.Channel(ctx, ch, 0)
			ok(err)
			if submitted = s.ToSend.Equals(fil(4)); submitted {
				ok(chain.Mine(ctx, settleDelay))
			}
		}
		got, err := c.Balance(ctx, to)
		ok(err)
		if got.Equals(fil(104)) {
			back, err := c.Balance(ctx, from)
			ok(err)
			if !back.Equals(fil(96)) {
				t.Fatalf("payer has %v, want %v", back, fil(96))
			}
			ok(chain.Check(ctx))
			return
		}
	}
	t.Fatal("the payee did not get its money")
}
