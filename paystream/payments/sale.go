package payments

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Curve does what needs a curve, and the key that signatures are sold of.
type Curve interface {
	// Opens reports whether secret is that of the compressed point y.
	Opens(y [33]byte, secret tally.Preimage) bool
	// PointOf returns the point whose secret completes a signature.
	PointOf(s *Sale) ([33]byte, error)
	// Complete returns the signature that secret completes, and has verified it.
	Complete(s *Sale, secret tally.Preimage) ([64]byte, error)
	// Key is the key that signs, as a compressed point: x is that of its signatures. It is
	// made where there is none.
	Key(ctx context.Context) ([33]byte, error)
	// Commit signs message and gives the signature apart: what may be told, and the
	// secret that is sold. Each call draws another nonce.
	Commit(ctx context.Context, message [32]byte) (Sale, tally.Preimage, error)
}

func openerOf(c Curve) opener {
	if c == nil {
		return nil
	}
	return c.Opens
}

var errNoCurve = &Error{Code: CodeInvalid, Reason: "this node neither sells nor buys signatures", Remedy: "use one with a chain and locks"}

// Bind sets the hash and the point of an offer that was read from its text.
func (s *Service) Bind(i *Invoice) error {
	if s.cfg.Curve == nil {
		return errNoCurve
	}
	y, err := s.cfg.Curve.PointOf(&i.Sale)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvoiceText, err)
	}
	i.Point, i.Hash = y[0], tally.Hashlock(y[1:])
	return nil
}

// vetSale refuses an offer whose point is not that of its signature.
func (s *Service) vetSale(i *Invoice) error {
	if !i.sells() {
		return nil
	}
	bound := *i
	if err := s.Bind(&bound); err != nil {
		return err
	}
	if bound.Hash != i.Hash || bound.Point != i.Point {
		return &Error{Code: CodeInvalid, Reason: "the offer has another point than its signature", Remedy: "read it with ParseOffer and Bind"}
	}
	return nil
}

// SaleRequest is what an offer is made of.
type SaleRequest struct {
	// Name makes it safe to ask again: it gives the same offer. Empty: one is drawn.
	Name    string
	Message [32]byte
	Amount  tally.Amount
	Memo    string
	Expires time.Duration // 0: an hour
	// Hold: nothing is shown before Settle.
	Hold bool
}

// Sell offers the signature of a message. The signature is made, and with the offer on
// disk, before this returns: nobody is offered another one with the same nonce, and what
// is asked for again under its name is the same text.
func (s *Service) Sell(ctx context.Context, q SaleRequest) (InvoiceView, error) {
	switch {
	case s.cfg.Curve == nil:
		return InvoiceView{}, errNoCurve
	case s.cfg.Sign == nil:
		return InvoiceView{}, errors.New("payments: no key to sign offers with")
	case q.Amount == 0:
		return InvoiceView{}, &Error{Code: CodeInvalid, Reason: "a signature for nothing", Remedy: "ask for at least one unit"}
	case len(q.Name) > MaxName:
		return InvoiceView{}, &Error{Code: CodeInvalid, Reason: fmt.Sprintf("the name has %d bytes", len(q.Name)), Remedy: fmt.Sprintf("use at most %d", MaxName)}
	case q.Name == "":
		q.Name = rand.Text()
	}
	if v, found, err := s.offered(ctx, &q); err != nil || found {
		return v, err
	}
	if q.Expires == 0 {
		q.Expires = time.Hour
	}
	sale, secret, err := s.cfg.Curve.Commit(ctx, q.Message)
	if err != nil {
		return InvoiceView{}, err
	}
	i := Invoice{Realm: s.cfg.Realm, Payee: s.cfg.Self, Sale: sale, Amount: q.Amount, Expires: s.Now() + q.Expires.Milliseconds(), Memo: q.Memo}
	rand.Read(i.Secret[:]) // never fails
	if s.cfg.Hints != nil {
		i.Hints = s.cfg.Hints(true)
	}
	if err := s.Bind(&i); err != nil {
		return InvoiceView{}, err
	}
	if i.Signature, err = s.cfg.Sign(i.SigningBytes()); err != nil {
		return InvoiceView{}, fmt.Errorf("payments: sign offer: %w", err)
	}
	if err := i.Validate(); err != nil {
		return InvoiceView{}, err
	}
	r := &Receivable{
		Hash: i.Hash, Point: i.Point, Offer: i.offer(), Name: q.Name, Secret: i.Secret, Amount: i.Amount, Memo: i.Memo, Expires: i.Expires, Hold: q.Hold,
		Known: true, Preimage: secret,
	}
	err = s.do(ctx, item{payee: &PayeeEvent{Kind: PayeeAdd, Invoice: r}})
	if err != nil && !errors.Is(err, ErrConflict) {
		return InvoiceView{}, err
	}
	v, found, again := s.offered(ctx, &q) // on a conflict: who asked at the same time was first
	if again == nil && !found {
		again = err
	}
	return v, again
}

// offered returns the offer of a name. One of other terms is a conflict.
func (s *Service) offered(ctx context.Context, q *SaleRequest) (v InvoiceView, found bool, err error) {
	v, err = s.SoldAs(ctx, q.Name)
	if errors.Is(err, ErrNotFound) {
		return v, false, nil
	}
	if err != nil {
		return v, false, err
	}
	i, err := ParseOffer(string(v.Offer))
	if err != nil {
		return v, false, err
	}
	if i.Sale.Message != q.Message || i.Amount != q.Amount || i.Memo != q.Memo || v.Hold != q.Hold {
		return InvoiceView{}, false, &Error{Code: CodeConflict, Reason: "there is an offer with this name and other terms", Remedy: "choose another name"}
	}
	return v, true, nil
}

// SaleKey is the key whose signatures are sold, as a compressed point.
func (s *Service) SaleKey(ctx context.Context) ([33]byte, error) {
	if s.cfg.Curve == nil {
		return [33]byte{}, errNoCurve
	}
	return s.cfg.Curve.Key(ctx)
}

// Bought is what became of an offer that was paid for.
type Bought struct {
	PayResult
	Sale Sale
	// Signature is verified; zero while the payment is not complete.
	Signature [64]byte
}

// Buy pays for what an offer sells, as Pay does an invoice: the offer names the payment,
// so that to buy again joins what is under way and never pays twice, and a crash loses
// nothing. Where the seller never answers, the chain shows the secret, or the money
// comes back.
func (s *Service) Buy(ctx context.Context, offer string, q PayRequest) (Bought, error) {
	i, err := ParseOffer(offer)
	if err == nil {
		err = s.Bind(&i)
	}
	if err != nil {
		return Bought{}, err
	}
	q.Invoice, q.Amount = i, 0
	r, failed := s.Pay(ctx, q)
	b := Bought{PayResult: r, Sale: i.Sale}
	if failed == nil {
		b.Signature, failed = s.cfg.Curve.Complete(&i.Sale, r.Preimage)
	}
	return b, failed
}

// SoldAs returns the offer of a name.
func (s *Service) SoldAs(ctx context.Context, name string) (v InvoiceView, err error) {
	found := false
	err = s.look(ctx, func() {
		if h, ok := s.payee.names[name]; ok {
			v, found = s.payee.Invoice(s.Now(), h)
		}
	})
	if err == nil && !found {
		err = notFound("offer")
	}
	return v, err
}

// Trade is a signature that was sold or bought.
type Trade struct {
	// Sold: else it was bought, of Seller.
	Sold   bool
	Seller peer.ID
	Point  byte
	Hash   tally.Hashlock
	// Name of the offer, of one that we sold.
	Name   string
	Amount tally.Amount
}

// sold tells of a sale. On the owner's goroutine.
func (s *Service) sold(h tally.Hashlock) {
	v, ok := s.payee.Invoice(s.Now(), h)
	if ok && v.Point != 0 && v.Status == InvoicePaid && s.cfg.Traded != nil {
		s.cfg.Traded(Trade{Sold: true, Seller: s.cfg.Self, Point: v.Point, Hash: h, Name: v.Name, Amount: v.Received})
	}
}

// bought tells of a purchase.
func (s *Service) bought(h tally.Hashlock) {
	v, ok := s.payer.Payment(h)
	if ok && v.Point != 0 && v.Status == StatusComplete && s.cfg.Traded != nil {
		s.cfg.Traded(Trade{Seller: v.Dest, Point: v.Point, Hash: h, Amount: v.Total})
	}
}
