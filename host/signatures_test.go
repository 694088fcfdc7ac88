package host_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych/adaptor"
	"github.com/tallystick/tally/paystream/payments"
	"github.com/tallystick/tally/swap"
)

// buy buys from the last node, and again until the adverts say which way makes locks.
func (n *lockNet) buy(ctx context.Context, offer string) (payments.Bought, error) {
	for {
		b, err := n.nodes[0].pays().Buy(ctx, offer, payments.PayRequest{})
		if err == nil || b.Refused || b.Live > 0 || ctx.Err() != nil {
			return b, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return b, ctx.Err()
		}
	}
}

// A signature is sold to a buyer that the seller does not know, over a hub that both
// have a channel with: the buyer has a good signature, the seller its price, the hub its
// fee, and no tab has moved. Bought again it costs nothing.
func TestSignatureOverAHub(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	n := newLockNet(ctx, t, 1, 3)
	n.open(ctx)
	seller, message := n.nodes[2].pays(), [32]byte{1, 2, 3}
	var before []tally.Balance
	for _, w := range n.nodes {
		before = append(before, w.net(ctx))
	}
	// Small enough for the tabs, which it must not go over.
	q := payments.SaleRequest{Name: "receipt", Message: message, Amount: 40}
	v, err := seller.Sell(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := seller.Sell(ctx, q); err != nil || again.Offer != v.Offer {
		t.Fatal("asked again it is another offer", err)
	}
	b, err := n.buy(ctx, string(v.Offer))
	if err != nil || b.Status != payments.StatusComplete || b.Sale.Message != message {
		t.Fatalf("%v: %+v", err, b)
	}
	key, err := seller.SaleKey(ctx)
	if err != nil || !adaptor.VerifySchnorr([32]byte(key[1:]), message, b.Signature) {
		t.Fatalf("signature %x: %v", b.Signature, err)
	}
	if v, err = seller.WaitInvoice(ctx, v.Hash); err != nil || v.Status != payments.InvoicePaid || v.Received != 40 || v.Lost != 0 {
		t.Fatalf("%v: %+v", err, v)
	}
	settled := func() {
		t.Helper()
		for from, want := range []tally.Amount{41, 40} {
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
	settled()
	again, err := n.nodes[0].pays().Buy(ctx, string(v.Offer), payments.PayRequest{})
	if err != nil || again.Signature != b.Signature || len(again.Parts) != len(b.Parts) {
		t.Fatalf("%v: %+v", err, again)
	}
	settled()
}

// Where no lock can be made a signature is not sold: its money never goes on credit,
// although the tab has all the room there is.
func TestSignatureIsNotSoldOnCredit(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	n := newLockNet(ctx, t, 0, 3)
	buyer, hub, seller := n.nodes[0], n.nodes[1], n.nodes[2]
	v, err := seller.pays().Sell(ctx, payments.SaleRequest{Message: [32]byte{1}, Amount: 40})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := buyer.pays().Buy(ctx, string(v.Offer), payments.PayRequest{Deadline: time.Second}); !errors.Is(err, payments.ErrNoRoute) || len(b.Parts) != 0 {
		t.Fatalf("bought without a channel: %v: %+v", err, b)
	}
	// The buyer has a channel with the hub, and the hub none with the seller: an invoice
	// of the hub's for more than the threshold opens the first.
	if r, err := n.pay(ctx, hub.invoice(ctx, 150)); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	locks, err := buyer.Locks()
	if err != nil {
		t.Fatal(err)
	}
	n.until(ctx, "a channel for locks", func() bool { _, ok := locks.Way(hub.id()); return ok })
	if room, err := hub.Book().HeadroomPacket(seller.id(), swap.Consume); err != nil || room < 40 {
		t.Fatal("the hub's tab has no room", room, err)
	}
	n.until(ctx, "the refusal", func() bool {
		reply, err := buyer.pays().SendPart(ctx, payments.SendPart{
			Hash: v.Hash, Point: v.Point, Offer: v.Offer, Dest: seller.id(), Secret: v.Secret, Intended: 40, Number: 1, Amount: 40, Fee: 0,
			Via: []peer.ID{hub.id()},
		})
		if err != nil {
			t.Fatal(err)
		}
		part, err := buyer.pays().WaitPart(ctx, reply.ID)
		if err != nil || part.Status != payments.PartFailed {
			t.Fatalf("%v: %+v", err, part)
		}
		// Before the first look at the channel the buyer itself refuses.
		return part.Failure.Code == payments.FailUnsupported && part.Failure.Hop == 1
	})
	if w, err := seller.pays().Invoice(ctx, v.Hash); err != nil || w.Status != payments.InvoiceOpen || w.Parts != 0 {
		t.Fatalf("%v: %+v", err, w)
	}
	if row, err := hub.Book().Row(seller.id()); err != nil || row.Balance != 0 {
		t.Fatalf("%v: %+v", err, row)
	}
}
