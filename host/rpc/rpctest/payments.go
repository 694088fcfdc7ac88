package rpctest

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/signer"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych/wallet"
	"github.com/tallystick/tally/paystream/payments"
	"github.com/tallystick/tally/paystream/payments/paymentstest"
	"github.com/tallystick/tally/paystream/payments/route"
)

// PaymentService is what the Payments of a peer returns.
type PaymentService = payments.Service

// Payments are the payments of a peer in a diamond: the payee is behind two hops,
// over each of which 61 units fit. What it has to do with others it did before.
type Payments struct {
	*payments.Service
	// Invoice is the payee's for 100; Stranger one of nobody that can be reached.
	Invoice, Stranger string
	// Hops lead to the payee.
	Hops [2]string
	// Held is the hash of an invoice of ours that is here whole and held, Partial of
	// one of which 4 of 10 are here.
	Held, Partial string
	// Offer is the payee's, of its signature by OfferKey over the text "parcel 7", for 50.
	// Sold is an offer of ours, over a digest of 01, which the payee bought.
	Offer, OfferKey, Sold string

	close []func() error
}

// OpenPayments makes them. ctx bounds the making alone.
func OpenPayments(ctx context.Context) (*Payments, error) {
	p := &Payments{}
	net := paymentstest.NewNet()
	p.close = append(p.close, func() error { net.Close(); return nil })
	keys, ids := make([]crypto.PrivKey, 5), make([]peer.ID, 5)
	for i := range keys {
		key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(append(make([]byte, 31), byte(i+1))))
		if err != nil {
			return nil, errors.Join(err, p.Close())
		}
		keys[i] = key
		if ids[i], err = peer.IDFromPrivateKey(key); err != nil {
			return nil, errors.Join(err, p.Close())
		}
	}
	us, left, right, them, stranger := ids[0], ids[1], ids[2], ids[3], ids[4]
	p.Hops = [2]string{left.String(), right.String()}
	graph := route.NewGraph()
	for _, hop := range []peer.ID{left, right} {
		for _, end := range []peer.ID{us, them} {
			net.SetEdge(end, hop, paymentstest.Edge{Room: 61})
			net.SetEdge(hop, end, paymentstest.Edge{Room: 61, Fee: 1})
			if err := errors.Join(
				graph.Set(route.Edge{From: end, To: hop, Capacity: 61}),
				graph.Set(route.Edge{From: hop, To: end, Capacity: 61, FeeBase: 1}),
			); err != nil {
				return nil, errors.Join(err, p.Close())
			}
		}
	}
	open := func(i int) (*payments.Service, error) {
		store := durabletest.NewMem()
		node := net.Join(ids[i])
		s, err := payments.Open(ctx, payments.Config{
			Curve: signer.New(store, wallet.NewMem()),
			Self:  ids[i], Realm: "tally/karma", Store: store, Carrier: node, Router: route.NewFinder(ids[i], graph),
			Sign: keys[i].Sign, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			return nil, errors.Join(err, store.Close())
		}
		s.Start()
		p.close = append(p.close, store.Close, s.Close, func() error { node.Stop(); return nil })
		return s, nil
	}
	var err error
	if p.Service, err = open(0); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	theirs, err := open(3)
	if err == nil {
		err = errors.Join(p.fill(ctx, theirs, left, stranger, keys[4]), p.sell(ctx, theirs, left, us))
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// fill makes the invoices, and has the payee pay towards ours.
func (p *Payments) fill(ctx context.Context, theirs *payments.Service, via, stranger peer.ID, key crypto.PrivKey) error {
	i, err := theirs.NewInvoice(ctx, payments.InvoiceRequest{Amount: 100, Memo: "two coffees"})
	if err != nil {
		return err
	}
	p.Invoice = i.Reveal()
	far := payments.Invoice{Realm: i.Realm, Payee: stranger, Hash: i.Hash, Secret: i.Secret, Amount: 1, Expires: i.Expires}
	far.Hash[0] ^= 1
	if far.Signature, err = key.Sign(far.SigningBytes()); err != nil {
		return err
	}
	p.Stranger = far.Reveal()
	for _, row := range []struct {
		hash   *string
		hold   bool
		amount tally.Amount
	}{{&p.Held, true, 10}, {&p.Partial, false, 4}} {
		ours, err := p.NewInvoice(ctx, payments.InvoiceRequest{Amount: 10, Hold: row.hold})
		if err != nil {
			return err
		}
		*row.hash = ours.Hash.String()
		if _, err := theirs.SendPart(ctx, payments.SendPart{
			Hash: ours.Hash, Dest: ours.Payee, Secret: ours.Secret, Intended: 10, Number: 1, Amount: row.amount, Fee: 1, Via: []peer.ID{via},
			Expires: theirs.Now() + (10 * time.Minute).Milliseconds(), // longer than any script
		}); err != nil {
			return err
		}
		if err := p.arrived(ctx, &ours); err != nil {
			return err
		}
	}
	return nil
}

// sell makes the offers, and has the payee buy ours.
func (p *Payments) sell(ctx context.Context, theirs *payments.Service, via, us peer.ID) error {
	v, err := theirs.Sell(ctx, payments.SaleRequest{Message: sha256.Sum256([]byte("parcel 7")), Amount: 50, Memo: "a receipt"})
	if err != nil {
		return err
	}
	i, err := payments.ParseOffer(string(v.Offer))
	if err != nil {
		return err
	}
	p.Offer, p.OfferKey = string(v.Offer), hex.EncodeToString(i.Sale.Key[:])
	p.Sold = "parcel-1"
	ours, err := p.Sell(ctx, payments.SaleRequest{Name: p.Sold, Message: [32]byte{1}, Amount: 3})
	if err != nil {
		return err
	}
	reply, err := theirs.SendPart(ctx, payments.SendPart{
		Hash: ours.Hash, Point: ours.Point, Offer: ours.Offer, Dest: us, Secret: ours.Secret, Intended: 3, Number: 1, Amount: 3, Fee: 1, Via: []peer.ID{via},
	})
	if err == nil {
		_, err = theirs.WaitPart(ctx, reply.ID)
	}
	return err
}

// arrived waits until a part of ours is here.
func (p *Payments) arrived(ctx context.Context, i *payments.Invoice) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		list, err := p.PartialInvoices(ctx, &i.Hash)
		if err != nil || len(list) > 0 {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close ends them.
func (p *Payments) Close() error {
	var errs []error
	for i := len(p.close) - 1; i >= 0; i-- {
		errs = append(errs, p.close[i]())
	}
	p.close = nil
	return errors.Join(errs...)
}
