package payments_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tally/paystream/payments"
	"github.com/tallystick/tally/paystream/payments/paymentstest"
)

// offer sells at n, and reads the text as the buyer does.
func (n *node) offer(t *testing.T, buyer *node, q payments.SaleRequest) payments.Invoice {
	t.Helper()
	v, err := n.Sell(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	i, err := payments.ParseOffer(string(v.Offer))
	if err == nil {
		err = buyer.Bind(&i)
	}
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// A signature is sold once, for its price, and whoever asks again has it already.
func TestSignatureIsSold(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, d := w.start("A", nil), w.start("D", nil)
		q := payments.SaleRequest{Name: "receipt 7", Message: [32]byte{9}, Amount: 50, Memo: "a receipt"}
		i := d.offer(t, a, q)
		if i.Sale.Message != q.Message || i.Sale.Key != [32]byte{7} || i.Amount != 50 || i.Point < 2 {
			t.Fatalf("%+v", i)
		}
		if again := d.offer(t, a, q); again.Reveal() != i.Reveal() {
			t.Fatal("asked again under its name, it is another offer")
		}
		other := q
		other.Message[0]++
		if _, err := d.Sell(t.Context(), other); !errors.Is(err, payments.ErrConflict) {
			t.Fatalf("the name for another message: %v", err)
		}
		if second := d.offer(t, a, payments.SaleRequest{Message: q.Message, Amount: 50}); second.Sale.Nonce == i.Sale.Nonce {
			t.Fatal("one nonce in two offers")
		}
		r, err := a.Buy(t.Context(), i.Reveal(), payments.PayRequest{})
		if err != nil || len(r.Parts) != 1 || r.Point != i.Point || r.Hash != i.Hash {
			t.Fatalf("%+v, %v", r, err)
		}
		if want, err := new(paymentstest.Curve).Complete(&i.Sale, r.Preimage); err != nil || r.Signature != want {
			t.Fatalf("signature %x: %v", r.Signature, err)
		}
		v, err := d.SoldAs(t.Context(), q.Name)
		if err != nil || v.Status != payments.InvoicePaid || v.Received != 50 {
			t.Fatalf("%+v, %v", v, err)
		}
		time.Sleep(time.Second) // bubble
		w.settled(50, 1)
		told := make(map[bool]payments.Trade)
		for _, tr := range w.trades() {
			told[tr.Sold] = tr
		}
		if len(w.trades()) != 2 || told[true].Name != q.Name || told[true].Amount != 50 || told[false].Seller != d.id || told[false].Hash != i.Hash {
			t.Fatalf("told %+v", w.trades())
		}
		again, err := a.Buy(t.Context(), i.Reveal(), payments.PayRequest{})
		if err != nil || again.Preimage != r.Preimage || len(again.Parts) != 1 {
			t.Fatalf("%+v, %v", again, err)
		}
		w.settled(50, 1)
		// Over a restart both have it still, and the same text.
		d2, a2 := w.start("D", d.stop()), w.start("A", a.stop())
		if again := d2.offer(t, a2, q); again.Reveal() != i.Reveal() {
			t.Fatal("after a restart it is another offer")
		}
		p, _, err := a2.Payment(t.Context(), i.Hash)
		if err != nil || string(p.Offer) != i.Reveal() || p.Preimage != r.Preimage {
			t.Fatalf("%+v, %v", p, err)
		}
		// What is bought whole is not bought in parts, and no hash stands in for a point.
		i3 := d2.offer(t, a2, payments.SaleRequest{Amount: 4})
		part := payments.SendPart{
			Hash: i3.Hash, Point: i3.Point, Offer: payments.OfferText(i3.Reveal()), Dest: i3.Payee, Secret: i3.Secret, Intended: 4, Number: 1,
			Amount: 2, Fee: 1, Via: r.Parts[0].Via,
		}
		if _, err := a2.SendPart(t.Context(), part); !errors.Is(err, payments.ErrInvalid) {
			t.Fatalf("half a signature: %v", err)
		}
		part.Amount, part.Point, part.Offer = 4, 0, ""
		reply, err := a2.SendPart(t.Context(), part)
		if err != nil {
			t.Fatal(err)
		}
		if end, err := a2.WaitPart(t.Context(), reply.ID); err != nil || end.Failure.Code != payments.FailRefused {
			t.Fatalf("under its x as a hash: %+v, %v", end, err)
		}
	})
}

func TestOffersAreChecked(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, d := w.start("A", nil), w.start("D", nil)
		i := d.offer(t, a, payments.SaleRequest{Amount: 50})
		text := i.Reveal()
		if _, err := payments.ParseInvoice(text); err == nil || !strings.Contains(err.Error(), "offers a signature") {
			t.Errorf("read as an invoice: %v", err)
		}
		if _, err := payments.ParseOffer(d.invoiceText(t)); err == nil {
			t.Error("an invoice is read as an offer")
		}
		for name, change := range map[string]func(*payments.Invoice){
			"another point":   func(i *payments.Invoice) { i.Point ^= 1 },
			"another x":       func(i *payments.Invoice) { i.Hash[0]++ },
			"another message": func(i *payments.Invoice) { i.Sale.Message[0]++ },
			"another nonce":   func(i *payments.Invoice) { i.Sale.Nonce[0]++ },
			"another amount":  func(i *payments.Invoice) { i.Amount-- },
			"no point":        func(i *payments.Invoice) { i.Sale = payments.Sale{} },
		} {
			bad := i
			change(&bad)
			if _, err := a.Pay(t.Context(), payments.PayRequest{Invoice: bad}); err == nil {
				t.Errorf("%s is paid", name)
			}
			// Signed by its seller or not, its point is computed by the buyer.
			if r, err := a.Pay(t.Context(), payments.PayRequest{Invoice: bad}); err == nil || len(r.Parts) != 0 {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
		}
		for name, q := range map[string]payments.SaleRequest{
			"nothing":     {},
			"a long name": {Amount: 1, Name: strings.Repeat("n", payments.MaxName+1)},
			"a long memo": {Amount: 1, Memo: strings.Repeat("m", payments.MaxMemo+1)},
		} {
			if _, err := d.Sell(t.Context(), q); err == nil {
				t.Errorf("sold for %s", name)
			}
		}
		w.settled(0, 0)
	})
}

func (n *node) invoiceText(t *testing.T) string {
	t.Helper()
	i, err := n.NewInvoice(t.Context(), payments.InvoiceRequest{Amount: 1})
	if err != nil {
		t.Fatal(err)
	}
	return i.Reveal()
}
