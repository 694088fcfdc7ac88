package host_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/paych/lotus"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/lock"
	"github.com/tallystick/tally/paystream/payments"
	"github.com/tallystick/tally/swap"
)

// lockNet is nodes in a row on one chain, whose tabs carry 200 units: what is more has
// to go under locks.
type lockNet struct {
	t     *testing.T
	chain *host.Devnet
	dev   *host.DevnetClient
	nodes []*wayfarer
}

func newLockNet(ctx context.Context, t *testing.T, fee tally.Amount, nodes int) *lockNet {
	t.Helper()
	return newLockNetWith(ctx, t, nodes, 3000, func(_ int, c *host.Config) {
		c.Packets = &host.PacketsConfig{Rules: forward.Rules{FeeBase: fee}}
	})
}

// newLockNetWith is newLockNet with another settle delay, and configurations.
func newLockNetWith(ctx context.Context, t *testing.T, nodes int, settleDelay int64, change func(i int, c *host.Config)) *lockNet {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	folder, err := repo.OpenDevnet(filepath.Join(t.TempDir(), "net"))
	must(err)
	// Epochs are short, and the settle delay long in them: parts have over a minute.
	d, err := host.StartDevnet(ctx, folder, host.DevnetConfig{BlockTime: 100 * time.Millisecond, SettleDelay: settleDelay, Finality: 1, Logger: slog.New(slog.DiscardHandler)})
	must(err)
	t.Cleanup(func() { must(errors.Join(d.Close(context.Background()), folder.Close())) })
	dev, err := host.DialDevnet(ctx, filepath.Dir(folder.DatastoreDir()))
	must(err)
	t.Cleanup(func() { must(dev.Close()) })
	n := &lockNet{t: t, chain: d, dev: dev}
	for i := range nodes {
		policy := swap.DefaultPolicy()
		policy.Mode, policy.PaymentThreshold, policy.DisconnectThreshold = swap.ModeHard, 100, 200
		cfg := host.Config{
			Policy: policy, Payments: &host.PaymentsConfig{PullEvery: 50 * time.Millisecond},
			Chain: &host.ChainConfig{URL: d.Info().RPC, Token: lotus.Token(folder.Token().Reveal())},
		}
		change(i, &cfg)
		w := newWayfarer(t, cfg)
		_, err := dev.Faucet(ctx, w.Payout().String(), "1000FIL")
		must(err)
		n.nodes = append(n.nodes, w)
	}
	for i := range nodes - 1 {
		n.nodes[i].meet(ctx, n.nodes[i+1])
	}
	return n
}

// until waits for something that others do.
func (n *lockNet) until(ctx context.Context, what string, f func() bool) {
	n.t.Helper()
	for !f() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			n.t.Fatal(what + " did not come")
		}
	}
}

// pay pays, and again until the adverts say that the channels carry it: they follow
// what channels can, by and by. A refusal of the payee is final.
func (n *lockNet) pay(ctx context.Context, i payments.Invoice) (payments.PayResult, error) {
	for {
		r, err := n.nodes[0].pays().Pay(ctx, payments.PayRequest{Invoice: i})
		if err == nil || r.Refused || r.Live > 0 || ctx.Err() != nil {
			return r, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return r, ctx.Err()
		}
	}
}

// open has the first payment settle every tab of the row, so that there are channels.
func (n *lockNet) open(ctx context.Context) {
	n.t.Helper()
	payee := n.nodes[len(n.nodes)-1]
	if r, err := n.pay(ctx, payee.invoice(ctx, 150)); err != nil {
		n.t.Fatalf("on credit: %v: %+v", err, r)
	}
	for i, w := range n.nodes[:len(n.nodes)-1] {
		next := n.nodes[i+1].id()
		locks, err := w.Locks()
		if err != nil || locks.Off() != nil {
			n.t.Fatal(err, locks.Off())
		}
		n.until(ctx, "a channel for locks", func() bool { _, ok := locks.Way(next); return ok })
		n.settled(ctx, i)
	}
}

// settled waits until nothing is owed between a node and the next.
func (n *lockNet) settled(ctx context.Context, i int) {
	n.t.Helper()
	w, next := n.nodes[i], n.nodes[i+1]
	n.until(ctx, "the end of the settlement", func() bool {
		a, errA := w.Book().Row(next.id())
		b, errB := next.Book().Row(w.id())
		return errA == nil && errB == nil && a.Balance == 0 && b.Balance == 0
	})
}

// lanes is what the channel from one node to the next has paid in its slots, as its
// payee has it in vouchers.
func (n *lockNet) paid(ctx context.Context, from int) tally.Amount {
	n.t.Helper()
	locks, err := n.nodes[from].Locks()
	if err != nil {
		n.t.Fatal(err)
	}
	w, ok := locks.Way(n.nodes[from+1].id())
	if !ok {
		n.t.Fatal("no channel")
	}
	list, err := n.nodes[from+1].Channels().Manager.PaychVoucherList(ctx, w.Channel)
	if err != nil {
		n.t.Fatal(err)
	}
	best := make(map[uint64]tally.Amount)
	for _, v := range list {
		if v.Lane >= 1 && v.Lane <= 64 && len(v.SecretHash) == 0 {
			best[v.Lane] = max(best[v.Lane], tally.Amount(v.Amount.Uint64()/1_000_000_000))
		}
	}
	var sum tally.Amount
	for _, units := range best {
		sum += units
	}
	return sum
}

// Hub and spoke: what is far above the tabs goes from payer to payee under locks, over
// a hub that has a channel with both. The tabs stay as they were.
func TestLockedPaymentOverAHub(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	n := newLockNet(ctx, t, 1, 3)
	n.open(ctx)
	payee := n.nodes[2]
	var before []tally.Balance
	for _, w := range n.nodes {
		before = append(before, w.net(ctx))
	}
	i := payee.invoice(ctx, 4000)
	r, err := n.pay(ctx, i)
	if err != nil || r.Status != payments.StatusComplete || !r.Preimage.Opens(i.Hash) {
		t.Fatalf("%v: %+v", err, r)
	}
	if inv, err := payee.pays().WaitInvoice(ctx, i.Hash); err != nil || inv.Received != 4000 {
		t.Fatalf("%v: %+v", err, inv)
	}
	for from, want := range []tally.Amount{4001, 4000} {
		n.until(ctx, "the UNLOCK", func() bool { return n.paid(ctx, from) == want })
	}
	for k, w := range n.nodes {
		locks, _ := w.Locks()
		n.until(ctx, "the end of the locks", func() bool { return len(locks.List()) == 0 })
		if after := w.net(ctx); after != before[k] {
			t.Errorf("node %d: the tabs moved from %d to %d", k, before[k], after)
		}
	}
}

// A payee that holds an invoice has locks stand along the row. It gives them up, and
// they come back with their CANCELs, although their money is bound until their end; it
// takes another, and they are paid.
func TestHeldLocks(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	n := newLockNet(ctx, t, 1, 3)
	n.open(ctx)
	payee := n.nodes[2]
	for _, take := range []bool{false, true} {
		i, err := payee.pays().NewInvoice(ctx, payments.InvoiceRequest{Amount: 2000, Hold: true})
		if err != nil {
			t.Fatal(err)
		}
		paid := make(chan error, 1)
		go func() { // ends with the payment
			_, err := n.pay(ctx, i)
			paid <- err
		}()
		n.until(ctx, "the held invoice", func() bool {
			v, err := payee.pays().Invoice(ctx, i.Hash)
			if err != nil {
				t.Fatal(err)
			}
			return v.Status == payments.InvoiceHeld
		})
		for k, want := range []int{1, 2, 1} {
			locks, _ := n.nodes[k].Locks()
			list := locks.List()
			if len(list) != want {
				t.Fatalf("node %d has %d locks", k, len(list))
			}
			for _, l := range list {
				if l.Hash != i.Hash || l.Amount < 2000 || l.Amount > 2001 {
					t.Errorf("node %d: %+v", k, l)
				}
			}
		}
		if take {
			err = payee.pays().Settle(ctx, i.Hash, tally.Preimage{})
		} else {
			err = payee.pays().Cancel(ctx, i.Hash)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := <-paid; take != (err == nil) {
			t.Fatalf("taken %v: %v", take, err)
		}
		for k := range n.nodes {
			locks, _ := n.nodes[k].Locks()
			n.until(ctx, "the end of the locks", func() bool { return len(locks.List()) == 0 })
		}
		want := []tally.Amount{0, 0}
		if take {
			want = []tally.Amount{2001, 2000}
		}
		for from := range want {
			n.until(ctx, "the lanes", func() bool { return n.paid(ctx, from) == want[from] })
		}
	}
}

// A payment that comes before the hub's channel is ready finds it busy, and not small: it
// passes as soon as the channel does, although the payer has tried before.
func TestPaymentBeforeTheChannelIsReady(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	n := newLockNetWith(ctx, t, 3, 3000, func(i int, c *host.Config) {
		if i == 1 { // the hub's way is known of the invoice alone, which says no capacity
			c.Payments.Advertise = host.AdvertiseNothing
		}
	})
	payer, hub, payee := n.nodes[0], n.nodes[1], n.nodes[2]
	if r, err := n.pay(ctx, hub.invoice(ctx, 150)); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	locks, err := payer.Locks()
	if err != nil {
		t.Fatal(err)
	}
	// The second one is to go on credit to the hub as well: a tab that is not settled yet
	// would have a lock go before a tab, which takes the late hold, and these are short.
	n.until(ctx, "the payer's channel", func() bool { _, ok := locks.Way(hub.id()); return ok })
	n.settled(ctx, 0)
	if locks, err = hub.Locks(); err != nil {
		t.Fatal(err)
	}
	if r, err := n.pay(ctx, payee.invoice(ctx, 150)); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	n.until(ctx, "the hub's channel to be opened", func() bool { r, _ := locks.Room(payee.id()); return r.Coming >= 1500 || r.Free >= 1500 })
	// What comes back stays bound until its lock ends: the channel has room for both.
	early := payee.invoice(ctx, 1500)
	if _, err := payer.pays().Pay(ctx, payments.PayRequest{Invoice: early}); err != nil {
		_, parts, err := payer.pays().Payment(ctx, early.Hash)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			if p.Failure.Code == payments.FailHeadroom { // it has none on the way, either
				t.Errorf("the hub says that it carries %d", p.Failure.Most)
			}
		}
	}
	if r, err := n.pay(ctx, payee.invoice(ctx, 1500)); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	if r, _ := locks.Room(payee.id()); r.Coming >= r.Free {
		t.Errorf("%d are on their way into a channel that is open, with %d", r.Coming, r.Free)
	}
}

// What a payee said while its hub was away, the payer hears although the payee was
// started anew since: not only that something went wrong, but that it was refused.
func TestReasonOutlivesARestart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	n := newLockNet(ctx, t, 0, 3)
	n.open(ctx)
	payer, hub, payee := n.nodes[0], n.nodes[1], n.nodes[2]
	i, err := payee.pays().NewInvoice(ctx, payments.InvoiceRequest{Amount: 2000, Hold: true})
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan bool, 1)
	go func() { // ends with the payment
		r, err := n.pay(ctx, i)
		refused <- err != nil && r.Refused
	}()
	n.until(ctx, "the held invoice", func() bool {
		v, err := payee.pays().Invoice(ctx, i.Hash)
		return err == nil && v.Status == payments.InvoiceHeld
	})
	hub.leave()
	if err := payee.pays().Cancel(ctx, i.Hash); err != nil {
		t.Fatal(err)
	}
	locks, err := payee.Locks()
	if err != nil {
		t.Fatal(err)
	}
	n.until(ctx, "the payee to give the lock up", func() bool {
		list := locks.List()
		return len(list) == 1 && list[0].Phase == lock.Given
	})
	payee.leave()
	payee.back()
	hub.back()
	hub.meet(ctx, payee)
	hub.meet(ctx, payer)
	select {
	case is := <-refused:
		if !is {
			t.Error("the payer does not hear that it was refused")
		}
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	_, parts, err := payer.pays().Payment(ctx, i.Hash)
	if err != nil || len(parts) == 0 {
		t.Fatal(err, len(parts))
	}
	for _, p := range parts {
		if p.Failure.Code == payments.FailHop {
			t.Errorf("part %d failed without a reason", p.ID)
		}
	}
}
