package host_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/payments"
	"github.com/tallystick/tally/swap"
)

// diamond is a payer, two hops and a payee; payer and payee are no neighbours. Each
// tab carries 200 units.
type diamond struct {
	payer, payee *wayfarer
	hops         [2]*wayfarer
}

func newDiamond(ctx context.Context, t *testing.T, fee tally.Amount) *diamond {
	t.Helper()
	node := func() *wayfarer {
		policy := swap.DefaultPolicy()
		policy.PaymentThreshold, policy.DisconnectThreshold = 150, 200
		return newWayfarer(t, host.Config{
			Policy:   policy,
			Packets:  &host.PacketsConfig{Rules: forward.Rules{FeeBase: fee}},
			Payments: &host.PaymentsConfig{},
		})
	}
	d := &diamond{payer: node(), payee: node(), hops: [2]*wayfarer{node(), node()}}
	for _, h := range d.hops {
		d.payer.meet(ctx, h)
		h.meet(ctx, d.payee)
	}
	return d
}

func (d *diamond) all() []*wayfarer { return []*wayfarer{d.payer, d.hops[0], d.hops[1], d.payee} }

func (w *wayfarer) pays() *payments.Service {
	w.t.Helper()
	s, err := w.Payments()
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *wayfarer) invoice(ctx context.Context, amount tally.Amount) payments.Invoice {
	w.t.Helper()
	i, err := w.pays().NewInvoice(ctx, payments.InvoiceRequest{Amount: amount})
	if err != nil {
		w.t.Fatal(err)
	}
	return i
}

// gained waits until each node's totals are what the test says.
func (d *diamond) gained(ctx context.Context, want [4]tally.Balance) {
	t := d.payer.t
	t.Helper()
	for {
		var got [4]tally.Balance
		for i, w := range d.all() {
			got[i] = w.net(ctx)
		}
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

// One payment of more than any way carries arrives in parts over two ways.
func TestPaymentOverADiamond(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	d := newDiamond(ctx, t, 1)
	i := d.payee.invoice(ctx, 300)
	r, err := d.payer.pays().Pay(ctx, payments.PayRequest{Invoice: i})
	if err != nil || r.Status != payments.StatusComplete || !r.Preimage.Opens(i.Hash) {
		t.Fatalf("%v: %+v", err, r)
	}
	inv, err := d.payee.pays().WaitInvoice(ctx, i.Hash)
	if err != nil || inv.Status != payments.InvoicePaid || inv.Received != 300 {
		t.Fatalf("%v: %+v", err, inv)
	}
	for _, part := range r.Parts {
		if _, err := d.payer.pays().WaitPart(ctx, part.ID); err != nil {
			t.Fatal(err)
		}
	}
	if r, err = d.payer.pays().Pay(ctx, payments.PayRequest{Invoice: i}); err != nil || len(r.Parts) != 2 {
		t.Fatalf("paid again: %v: %+v", err, r)
	}
	d.gained(ctx, [4]tally.Balance{-302, 1, 1, 300})
}

// With one hop gone what fits goes over the other, and what no ways carry is not
// begun.
func TestPaymentWithADeadWay(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	d := newDiamond(ctx, t, 1)
	large, small := d.payee.invoice(ctx, 500), d.payee.invoice(ctx, 120)
	// The payer is not told: the hop's other side alone is gone.
	if err := d.payee.libp2p.Network().ClosePeer(d.hops[0].id()); err != nil {
		t.Fatal(err)
	}
	// What a hop has sent into a session that is over waits for the next session.
	until(ctx, t, "the hop sees that the payee is gone", func() bool { return !d.hops[0].HasPackets(d.payee.id()) })
	r, err := d.payer.pays().Pay(ctx, payments.PayRequest{Invoice: large})
	if !errors.Is(err, payments.ErrNoRoute) || len(r.Parts) != 0 {
		t.Fatalf("500 over two ways of 200: %v: %+v", err, r)
	}
	if r, err = d.payer.pays().Pay(ctx, payments.PayRequest{Invoice: small}); err != nil {
		for _, p := range r.Parts {
			t.Logf("part %+v", p)
		}
		t.Fatal(err)
	}
	d.gained(ctx, [4]tally.Balance{-121, 0, 1, 120})
}

// The commands of the mail between real nodes: parts of one's own, by hand.
func TestPartsByHand(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	d := newDiamond(ctx, t, 0)
	i := d.payee.invoice(ctx, 100)
	send := func(number uint64, amount tally.Amount, via *wayfarer) payments.Reply {
		t.Helper()
		r, err := d.payer.pays().SendPart(ctx, payments.SendPart{
			Hash: i.Hash, Dest: i.Payee, Secret: i.Secret, Intended: 100, Number: number, Amount: amount, Via: []peer.ID{via.id()},
		})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	one := send(1, 60, d.hops[0])
	for {
		list, err := d.payee.pays().PartialInvoices(ctx, &i.Hash)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 1 {
			if l := list[0]; l.Amount != 60 || l.Total != 100 || l.From != d.hops[0].id() {
				t.Fatalf("%+v", l)
			}
			break
		}
		<-time.After(5 * time.Millisecond)
	}
	two := send(2, 40, d.hops[1])
	for _, id := range []uint64{one.ID, two.ID} {
		if p, err := d.payer.pays().WaitPart(ctx, id); err != nil || p.Status != payments.PartComplete {
			t.Fatalf("%v: %+v", err, p)
		}
	}
	// Nobody knows this hash; the payee's answer comes from behind the last hop.
	i.Hash[0] ^= 1
	unknown := send(1, 10, d.hops[0])
	if p, err := d.payer.pays().WaitPart(ctx, unknown.ID); err != nil || p.Failure.Code != payments.FailRefused || p.Failure.Hop != 2 {
		t.Fatalf("an unknown hash: %v: %+v", err, p)
	}
	d.gained(ctx, [4]tally.Balance{-100, 0, 0, 100})
}

func TestNoPayments(t *testing.T) {
	w := newWayfarer(t, host.Config{})
	if _, err := w.Payments(); !errors.Is(err, host.ErrNoPayments) {
		t.Fatal(err)
	}
}

// A payer that knows nobody near the payee finds the way by the adverts of those
// between them.
func TestPaymentByAdverts(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var row []*wayfarer
	for i := range 5 {
		w := newWayfarer(t, host.Config{
			Packets:  &host.PacketsConfig{Rules: forward.Rules{FeeBase: 1}},
			Payments: &host.PaymentsConfig{PullEvery: 20 * time.Millisecond},
		})
		if row = append(row, w); i > 0 {
			row[i-1].meet(ctx, w)
		}
	}
	payer, payee := row[0].pays(), row[4]
	for {
		i := payee.invoice(ctx, 50)
		r, err := payer.Pay(ctx, payments.PayRequest{Invoice: i})
		if err == nil {
			if len(r.Parts) != 1 || len(r.Parts[0].Via) != 3 || r.Fees != 3 {
				t.Fatalf("%+v", r)
			}
			return
		}
		if !errors.Is(err, payments.ErrNoRoute) || len(r.Parts) != 0 {
			t.Fatalf("%v: %+v", err, r)
		}
		<-time.After(20 * time.Millisecond) // the adverts are on their way
	}
}

// Where nobody tells of its edges, the hints of an invoice alone lead to its payee: over
// the payee's own neighbours, and no further.
func TestPaymentByAHintAlone(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var row []*wayfarer
	for i := range 4 {
		w := newWayfarer(t, host.Config{Payments: &host.PaymentsConfig{PullEvery: 20 * time.Millisecond, Advertise: host.AdvertiseNothing}})
		if row = append(row, w); i > 0 {
			row[i-1].meet(ctx, w)
		}
	}
	r, err := row[0].pays().Pay(ctx, payments.PayRequest{Invoice: row[2].invoice(ctx, 50)})
	if err != nil || len(r.Parts) != 1 || len(r.Parts[0].Via) != 1 || r.Parts[0].Via[0] != row[1].id() {
		t.Fatalf("%v: %+v", err, r)
	}
	if r, err = row[0].pays().Pay(ctx, payments.PayRequest{Invoice: row[3].invoice(ctx, 50)}); !errors.Is(err, payments.ErrNoRoute) {
		t.Fatalf("an edge that nobody told of was found: %v: %+v", err, r)
	}
}

// What is new travels at once, neighbour by neighbour: nobody waits until it is time to
// ask again.
func TestNewsTravel(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	const nodes = 4
	var line [nodes]*wayfarer
	for i := range line {
		line[i] = newWayfarer(t, host.Config{Payments: &host.PaymentsConfig{PullEvery: time.Hour}})
	}
	for i := range nodes - 1 {
		line[i].meet(ctx, line[i+1])
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for _, w := range line {
		for w.KnownAdverts() != 2*(nodes-1) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("%d adverts are known", w.KnownAdverts())
			}
		}
	}
}
