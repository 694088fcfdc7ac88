package payments

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// testOffer is the one of the vectors.
func testOffer(t testing.TB) Invoice {
	t.Helper()
	key, id := testKey(t, 1)
	_, hub := testKey(t, 2)
	i := Invoice{
		Realm: "devnet/FIL", Payee: id, Sale: Sale{Nonce: [32]byte{3}, Key: [32]byte{4}, Message: [32]byte{5}}, Secret: Secret{2}, Amount: 1000,
		Expires: start, Memo: "a receipt", Hints: []Hint{{Peer: hub, FeeBase: 1, FeePPM: 500}},
	}
	sig, err := key.Sign(i.SigningBytes())
	if err != nil {
		t.Fatal(err)
	}
	i.Signature = sig
	return i
}

func TestOfferText(t *testing.T) {
	i := testOffer(t)
	text := i.Reveal()
	if text != vector(t, "offer.text") {
		t.Fatalf("text %s", text)
	}
	got, err := ParseOffer(text)
	if err != nil || got.Reveal() != text || got.Sale != i.Sale {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := got.Verify(); err != nil {
		t.Fatal(err)
	}
	for at := range text {
		damaged := text[:at] + string(rune(text[at]^1)) + text[at+1:]
		if _, err := ParseOffer(damaged); !errors.Is(err, ErrInvoiceText) {
			t.Fatalf("byte %d: %v", at, err)
		}
	}
	for name, change := range map[string]func(*Invoice){
		"no key":    func(i *Invoice) { i.Sale.Key = [32]byte{} },
		"no amount": func(i *Invoice) { i.Amount = 0 },
		"a memo":    func(i *Invoice) { i.Memo = strings.Repeat("m", MaxMemo+1) },
	} {
		i := testOffer(t)
		change(&i)
		if _, err := ParseOffer(i.Reveal()); !errors.Is(err, ErrInvoiceText) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What the seller signed of an offer is not its signature of an invoice.
	as := testOffer(t)
	as.Hash, as.Sale = tally.Hashlock(as.Sale.Nonce), Sale{}
	if err := as.Verify(); !errors.Is(err, ErrInvoiceSignature) {
		t.Fatal(err)
	}
	for _, shown := range []string{fmt.Sprint(Payment{Offer: i.offer()}), fmt.Sprintf("%#v", Receivable{Offer: i.offer()}), fmt.Sprint(&i)} {
		if strings.Contains(shown, text[20:60]) {
			t.Fatalf("the text is printed: %s", shown)
		}
	}
}

func FuzzParseOffer(f *testing.F) {
	i := testOffer(f)
	f.Add(i.Reveal())
	f.Add(offerPrefix1)
	f.Fuzz(func(t *testing.T, text string) {
		i, err := ParseOffer(text)
		if err != nil {
			return
		}
		if i.Reveal() != text || !i.sells() {
			t.Fatal("two texts of one offer")
		}
		_ = i.Verify()
	})
}

// Rows under a point come back as they were, and a damaged one is refused.
func TestRecordsOfSales(t *testing.T) {
	i := testOffer(t)
	preimage := tally.Preimage{1}
	pay := Payment{Hash: preimage.Hashlock(), Point: 2, Offer: i.offer(), Dest: i.Payee, Total: 5, Group: 1, Complete: true, Preimage: preimage}
	sold := Receivable{Hash: preimage.Hashlock(), Point: 2, Offer: i.offer(), Name: "n", Known: true, Preimage: preimage, Status: InvoiceOpen, Expires: 1, Amount: 5}
	restore := func(kind string, h tally.Hashlock, rec []byte) (Payment, Receivable, error) {
		payer, payee := NewPayer(), NewPayee()
		payer.curve, payee.curve = testOpens, testOpens
		if kind == "payment" {
			err := payer.RestorePayment(h, rec)
			v, _ := payer.Payment(h)
			return v.Payment, Receivable{}, err
		}
		err := payee.RestoreInvoice(h, rec)
		v, _ := payee.Invoice(0, h)
		return Payment{}, v.Receivable, err
	}
	if got, _, err := restore("payment", pay.Hash, pay.record()); err != nil || got != pay {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, got, err := restore("invoice", sold.Hash, sold.record()); err != nil || got != sold {
		t.Fatalf("%+v, %v", got, err)
	}
	plain := pay
	plain.Point, plain.Offer = 0, ""
	if _, _, err := restore("payment", plain.Hash, plain.record()); err != nil {
		t.Fatal("a row of before:", err)
	}
	other := pay
	other.Point = 3
	if _, _, err := restore("payment", pay.Hash, other.record()); !errors.Is(err, ErrRecord) {
		t.Fatal("complete under the other point of its x:", err)
	}
	for kind, rec := range map[string][]byte{"payment": pay.record(), "invoice": sold.record()} {
		whole := len(rec)
		for cut := range whole {
			_, _, err := restore(kind, pay.Hash, rec[:cut])
			if err == nil && cut != len(plain.record()) && kind == "payment" || err == nil && kind == "invoice" && cut > 32+2+64+32+8 {
				t.Fatalf("%s cut at %d of %d is taken", kind, cut, whole)
			}
		}
	}
}

// Of the payer's table: the point is part of the payment, and it goes in one part.
func TestSendPartUnderAPoint(t *testing.T) {
	r := newPayerRig(t)
	r.core.curve = testOpens
	whole := func(c *SendPart) {
		c.Point, c.Offer, c.Amount, c.Intended = 2, "an offer", 100, 100
	}
	for name, change := range map[string]func(*SendPart){
		"a part":      func(c *SendPart) { c.Amount = 40 },
		"no offer":    func(c *SendPart) { c.Offer = "" },
		"of no point": func(c *SendPart) { c.Point = 0 },
		"a bad point": func(c *SendPart) { c.Point = 4 },
		"a long text": func(c *SendPart) { c.Offer = OfferText(strings.Repeat("o", MaxInvoiceText+1)) },
	} {
		if _, _, err := r.send(func(c *SendPart) { whole(c); change(c) }); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, fx, err := r.send(whole); err != nil || fx[len(fx)-1].Point != 2 {
		t.Fatal(fx, err)
	}
	if reply, _, err := r.send(func(c *SendPart) { whole(c); c.Number, c.Via = 2, []peer.ID{"other"} }); err != nil || reply.Outcome != OutcomeInProgress {
		t.Fatalf("a second one while it lives: %+v, %v", reply, err)
	}
	for name, change := range map[string]func(*SendPart){
		"another point": func(c *SendPart) { c.Point = 3 },
		"another offer": func(c *SendPart) { c.Offer = "another" },
		"a hash":        func(c *SendPart) { c.Point, c.Offer = 0, "" },
	} {
		if _, _, err := r.send(func(c *SendPart) { whole(c); c.Number = 3; change(c) }); !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.step(PayerEvent{Kind: PayerFulfilled, PartID: r.core.parts[1].PartID, Preimage: tally.Preimage{99}}); err == nil {
		t.Fatal("a wrong secret completes it")
	}
	r.fulfil(1)
	r.restart()
	if v, _ := r.core.Payment(hashOf(1)); v.Status != StatusComplete || v.Point != 2 || v.Offer != "an offer" {
		t.Fatalf("%+v", v)
	}
}
