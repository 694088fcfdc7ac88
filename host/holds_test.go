package host_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/swap"
)

// absent is a payer, a holder and a payee, whose tabs carry 200 units each. Nobody is
// connected yet.
type absent struct{ payer, holder, payee *wayfarer }

func newAbsent(t *testing.T) *absent {
	t.Helper()
	node := func(p hold.Policy) *wayfarer {
		policy := swap.DefaultPolicy()
		policy.PaymentThreshold, policy.DisconnectThreshold = 150, 200
		return newWayfarer(t, host.Config{Policy: policy, Payments: &host.PaymentsConfig{}, Holds: &host.HoldsConfig{Policy: p}})
	}
	return &absent{
		payer: node(hold.Policy{}), holder: node(hold.Policy{Offer: true, PriceBase: 3, PollEvery: time.Second}), payee: node(hold.Policy{}),
	}
}

func (w *wayfarer) held() *hold.Service {
	w.t.Helper()
	s, err := w.Holds()
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// leave ends a node and keeps its books; back starts it again.
func (w *wayfarer) leave() {
	w.t.Helper()
	if err := w.Close(); err != nil {
		w.t.Fatal(err)
	}
	for _, p := range w.libp2p.Network().Peers() {
		_ = w.libp2p.Network().ClosePeer(p)
	}
}

func (w *wayfarer) back() {
	w.t.Helper()
	var err error
	if w.Node, err = host.New(w.libp2p, w.cfg); err != nil {
		w.t.Fatal(err)
	}
}

func (a *absent) request(amount tally.Amount) hold.PayRequest {
	return hold.PayRequest{Holder: a.holder.id(), Payee: a.payee.id(), Amount: amount, MaxPrice: 10, Memo: "two coffees"}
}

// gained waits until each node's totals are what the test says.
func (a *absent) gained(ctx context.Context, payer, holder, payee tally.Balance) {
	t := a.payer.t
	t.Helper()
	want := [3]tally.Balance{payer, holder, payee}
	for {
		got := [3]tally.Balance{a.payer.net(ctx), a.holder.net(ctx), a.payee.net(ctx)}
		if got == want {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("gained %v, want %v", got, want)
		}
	}
}

// The payer pays and goes, the holder is restarted, the payee comes and is paid, and
// the payer learns it when it is back.
func TestHoldForAPayeeThatIsAway(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	a := newAbsent(t)
	a.payer.meet(ctx, a.holder)
	row, err := a.payer.held().Pay(ctx, a.request(100))
	if err != nil || row.Status != hold.StatusHeld || row.Price != 3 {
		t.Fatal(row.Status, row.Price, err)
	}
	for {
		list, err := a.holder.held().Held(ctx)
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		if list[0].State == hold.StateHeld {
			break
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal(list[0].State)
		}
	}
	a.payer.leave()
	a.holder.leave()
	a.holder.back()
	a.payee.meet(ctx, a.holder)
	for {
		list, err := a.payee.held().Receipts(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 1 && list[0].State == hold.ReceiptReceived {
			if list[0].Amount != 100 || list[0].Memo != "two coffees" || list[0].Hold != row.ID {
				t.Fatalf("%+v", list[0])
			}
			break
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the payee is not paid", list)
		}
	}
	a.payer.back()
	a.payer.meet(ctx, a.holder)
	if row, err = a.payer.held().Wait(ctx, row.ID); err != nil || row.Status != hold.StatusComplete || !row.Preimage.Opens(row.Hash) {
		t.Fatal(row.Status, err)
	}
	a.gained(ctx, -103, 3, 100)
}

// What nobody takes goes back, and costs the price of the holding alone; so does what
// the payer calls back.
func TestHoldThatNobodyTakes(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	a := newAbsent(t)
	a.payer.meet(ctx, a.holder)
	ids, price := []hold.ID{}, tally.Balance(3)
	if os.Getenv("TALLY_LONG") != "" { // the shortest hold takes 10 s; package hold has it in a bubble
		q := a.request(100)
		q.Time = 11 * time.Second
		over, err := a.payer.held().Pay(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		ids, price = append(ids, over.ID), 6
	}
	called, err := a.payer.held().Pay(ctx, a.request(50))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.payer.held().CancelOurs(ctx, called.ID); err != nil {
		t.Fatal(err)
	}
	for _, id := range append(ids, called.ID) {
		if row, err := a.payer.held().Wait(ctx, id); err != nil || row.Status != hold.StatusFailed {
			t.Fatal(row.Status, err)
		}
	}
	a.gained(ctx, -price, price, 0)
	// What does not fit is refused before it costs anything.
	if _, err := a.payer.held().Pay(ctx, a.request(199)); !errors.Is(err, hold.ErrNoRoom) {
		t.Fatal(err)
	}
	a.gained(ctx, -price, price, 0)
	// Its room on the tab is free again.
	if _, err := a.payer.held().Pay(ctx, a.request(190)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.payer.held().Pay(ctx, hold.PayRequest{Holder: a.payee.id(), Payee: a.holder.id(), Amount: 1, MaxPrice: 10}); err == nil {
		t.Fatal("parked at a node that is not there")
	}
}

func TestNoHolds(t *testing.T) {
	w := newWayfarer(t, host.Config{})
	if _, err := w.Holds(); !errors.Is(err, host.ErrNoHolds) {
		t.Fatal(err)
	}
}
