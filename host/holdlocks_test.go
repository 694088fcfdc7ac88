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
)

// What is far above the tabs is held under locks: payer and holder have one while the
// payee is away, holder and payee one when it comes. What nobody takes goes back without
// a message on the chain.
func TestHoldUnderLocks(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// Holds are long: a settle delay of half an hour.
	n := newLockNetWith(ctx, t, 3, 20_000, func(i int, c *host.Config) {
		c.Holds = &host.HoldsConfig{Policy: hold.Policy{Offer: i == 1, PollEvery: time.Second}}
	})
	n.open(ctx)
	payer, holder, payee := n.nodes[0], n.nodes[1], n.nodes[2]
	request := func(amount tally.Amount) hold.PayRequest {
		return hold.PayRequest{Holder: holder.id(), Payee: payee.id(), Amount: amount, Time: 5 * time.Minute, Return: hold.MinReturn + time.Minute}
	}
	locked := func(w *wayfarer) int {
		l, err := w.Locks()
		if err != nil {
			t.Fatal(err)
		}
		return len(l.List())
	}
	payee.leave()
	if _, err := payer.held().Pay(ctx, hold.PayRequest{
		Holder: holder.id(), Payee: payee.id(), Amount: 4000, Time: 24 * time.Hour, Return: 24 * time.Hour,
	}); !errors.Is(err, hold.ErrNoRoom) {
		t.Fatal("a lock beyond what the channel's settling leaves", err)
	}
	row, err := payer.held().Pay(ctx, request(4000))
	if err != nil || row.Status != hold.StatusHeld {
		t.Fatal(row.Status, err)
	}
	held := func(state hold.State) bool {
		list, err := holder.held().Held(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range list {
			if list[i].ID == row.ID {
				return list[i].State == state
			}
		}
		return false
	}
	n.until(ctx, "the lock at the holder", func() bool { return held(hold.StateHeld) })
	if locked(payer) != 1 || locked(holder) != 1 {
		t.Fatal("not under one lock", locked(payer), locked(holder))
	}
	payer.leave()
	holder.leave()
	holder.back()
	payee.back()
	payee.meet(ctx, holder)
	n.until(ctx, "the money", func() bool {
		list, err := payee.held().Receipts(ctx)
		return err == nil && len(list) == 1 && list[0].State == hold.ReceiptReceived && list[0].Amount == 4000
	})
	payer.back()
	payer.meet(ctx, holder)
	if row, err = payer.held().Wait(ctx, row.ID); err != nil || row.Status != hold.StatusComplete || !row.Preimage.Opens(row.Hash) {
		t.Fatal(row.Status, err)
	}
	for from := range 2 {
		n.until(ctx, "the channel of both", func() bool {
			l, err := n.nodes[from].Locks()
			if err != nil {
				t.Fatal(err)
			}
			_, ok := l.Way(n.nodes[from+1].id())
			return ok
		})
		n.until(ctx, "the UNLOCK", func() bool { return n.paid(ctx, from) == 4000 })
	}

	// Called back, it costs no channel.
	payee.leave()
	chain := payer.Channels().Chain
	begun, err := chain.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	before := n.free(payer, holder)
	if row, err = payer.held().Pay(ctx, request(700)); err != nil {
		t.Fatal(err)
	}
	n.until(ctx, "the second lock at the holder", func() bool { return held(hold.StateHeld) })
	if err := payer.held().CancelOurs(ctx, row.ID); err != nil {
		t.Fatal(err)
	}
	if row, err = payer.held().Wait(ctx, row.ID); err != nil || row.Status != hold.StatusFailed {
		t.Fatal(row.Status, err)
	}
	n.until(ctx, "the end of the locks", func() bool { return locked(payer) == 0 && locked(holder) == 0 })
	l, err := payer.Locks()
	if err != nil {
		t.Fatal(err)
	}
	way, ok := l.Way(holder.id())
	if !ok {
		t.Fatal("the channel is gone")
	}
	head, _, err := payer.Channels().Manager.PaychViews(ctx, way.Channel)
	if err != nil {
		t.Fatal(err)
	}
	for _, lane := range head.Lanes {
		if lane.Lane != 0 {
			t.Errorf("lane %d is on the chain", lane.Lane)
		}
	}
	if n.paid(ctx, 0) != 4000 || head.SettlingAt != 0 {
		t.Error("the payer has paid for what came back")
	}
	if os.Getenv("TALLY_LONG") == "" {
		return
	}
	// The lock could be submitted until its end: that frees the money, and the chain has
	// seen nothing of all that.
	n.until(ctx, "the money that stays bound", func() bool { return n.free(payer, holder) == before-700 })
	for range 100 {
		if n.free(payer, holder) == before {
			break
		}
		if _, err := n.dev.Mine(ctx, 200); err != nil {
			t.Fatal(err)
		}
	}
	n.until(ctx, "the money of the lock", func() bool { return n.free(payer, holder) == before })
	now, err := chain.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if calls, err := chain.Calls(ctx, way.Channel, begun, now); err != nil || len(calls) != 0 {
		t.Errorf("the chain saw %+v, %v", calls, err)
	}
}

// free is what a payer's channel to its neighbour can still carry.
func (n *lockNet) free(from, to *wayfarer) tally.Amount {
	n.t.Helper()
	l, err := from.Locks()
	if err != nil {
		n.t.Fatal(err)
	}
	way, ok := l.Way(to.id())
	if !ok {
		n.t.Fatal("the channel is gone")
	}
	return way.Free
}
