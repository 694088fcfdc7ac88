package rpctest

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/paystream/payments/paymentstest"
)

// Holds are the holds of a peer that has a holder, and over it a payee. Nobody of
// them is ever offline.
type Holds struct {
	*hold.Service
	// Us, Holder and Payee are peer ids.
	Us, Holder, Payee string

	all   map[peer.ID]*hold.Service
	close []func() error
}

// HoldsOf is the part of a peer that has holds, or none.
type HoldsOf struct{ holds *Holds }

// Set gives the peer its holds.
func (h *HoldsOf) Set(holds *Holds) { h.holds = holds }

// Holds implements that part of rpc.Node.
func (h *HoldsOf) Holds() (*hold.Service, error) {
	if h.holds == nil {
		return nil, rpc.NewError(rpc.CodeUnsupported, "no holds")
	}
	return h.holds.Service, nil
}

// CloseHolds ends them.
func (h *HoldsOf) CloseHolds() error {
	if h.holds == nil {
		return nil
	}
	return h.holds.Close()
}

// OpenHolds makes them.
func OpenHolds(ctx context.Context) (*Holds, error) {
	h := &Holds{all: make(map[peer.ID]*hold.Service)}
	net := paymentstest.NewNet()
	h.close = append(h.close, func() error { net.Close(); return nil })
	keys, ids := make([]crypto.PrivKey, 3), make([]peer.ID, 3)
	for i := range keys {
		key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(append(make([]byte, 31), byte(i+1))))
		if err != nil {
			return nil, err
		}
		keys[i] = key
		if ids[i], err = peer.IDFromPrivateKey(key); err != nil {
			return nil, err
		}
	}
	h.Us, h.Holder, h.Payee = ids[0].String(), ids[1].String(), ids[2].String()
	net.SetEdge(ids[0], ids[1], paymentstest.Edge{Room: 1000})
	net.SetEdge(ids[1], ids[2], paymentstest.Edge{Room: 1000})
	for i, id := range ids {
		key, err := hold.NewKey(keys[i])
		if err != nil {
			return nil, errors.Join(err, h.Close())
		}
		store, node := durabletest.NewMem(), net.Join(id)
		s, err := hold.Open(ctx, hold.Config{
			Self: id, Realm: "tally/karma", Policy: hold.Policy{Offer: i == 1, PriceBase: 3}, Key: key, Sign: keys[i].Sign, Store: store,
			Carrier: node, Wire: holdWire{h, id}, Meter: freeMeter{}, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			return nil, errors.Join(err, store.Close(), h.Close())
		}
		h.all[id] = s
		h.close = append(h.close, store.Close, s.Close, func() error { node.Stop(); return nil })
	}
	h.Service = h.all[ids[0]]
	for _, s := range h.all {
		s.Start()
	}
	return h, nil
}

// Close ends them.
func (h *Holds) Close() error {
	var errs []error
	for i := len(h.close) - 1; i >= 0; i-- {
		errs = append(errs, h.close[i]())
	}
	return errors.Join(errs...)
}

// holdWire asks the others directly.
type holdWire struct {
	h    *Holds
	self peer.ID
}

func (w holdWire) to(p peer.ID) (*hold.Service, error) {
	if s := w.h.all[p]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("no connection to %s", p)
}

func (w holdWire) Park(ctx context.Context, t *hold.Terms, price tally.Amount, quote bool) (hold.Reply, error) {
	s, err := w.to(t.Holder)
	if err != nil {
		return hold.Reply{}, err
	}
	return s.Park(ctx, w.self, t, price, quote)
}

func (w holdWire) List(ctx context.Context, holder peer.ID, after hold.ID) ([]hold.Terms, bool, error) {
	s, err := w.to(holder)
	if err != nil {
		return nil, false, err
	}
	return s.ListFor(ctx, w.self, after)
}

func (w holdWire) Release(ctx context.Context, holder peer.ID, id hold.ID) error {
	s, err := w.to(holder)
	if err != nil {
		return err
	}
	return s.Release(ctx, w.self, id)
}

func (w holdWire) Cancel(ctx context.Context, party peer.ID, id hold.ID) error {
	s, err := w.to(party)
	if err != nil {
		return err
	}
	_, err = s.Cancel(ctx, w.self, id)
	return err
}

func (w holdWire) Poll(_ context.Context, payee peer.ID, _ int) error {
	s, err := w.to(payee)
	if err == nil {
		s.Collect(w.self)
	}
	return err
}

func (w holdWire) Statement(ctx context.Context, holder, payee peer.ID) (hold.LaneStatement, error) {
	s, err := w.to(holder)
	if err != nil {
		return hold.LaneStatement{}, err
	}
	return s.GiveStatement(ctx, w.self, payee)
}

func (w holdWire) Deposit(ctx context.Context, holder peer.ID, st *hold.LaneStatement) error {
	s, err := w.to(holder)
	if err != nil {
		return err
	}
	return s.TakeStatement(ctx, w.self, st)
}

func (w holdWire) Guard(ctx context.Context, holder peer.ID, height int64) ([]byte, error) {
	s, err := w.to(holder)
	if err != nil {
		return nil, err
	}
	return s.GiveGuard(ctx, w.self, height)
}

func (w holdWire) Buy(ctx context.Context, p *hold.Purchase, price tally.Amount, quote bool) (hold.SoldReply, error) {
	s, err := w.to(p.Holder)
	if err != nil {
		return hold.SoldReply{}, err
	}
	return s.Sell(ctx, w.self, p, price, quote)
}

func (w holdWire) Mail(ctx context.Context, payee peer.ID, m *hold.Mail) error {
	s, err := w.to(payee)
	if err != nil {
		return err
	}
	_, err = s.TakeMail(ctx, m)
	return err
}

// freeMeter books nothing.
type freeMeter struct{}

func (freeMeter) Serve(context.Context, peer.ID, tally.Amount) (hold.Booking, error) {
	return freeMeter{}, nil
}

func (freeMeter) Consume(context.Context, peer.ID, tally.Amount) (hold.Booking, error) {
	return freeMeter{}, nil
}

func (freeMeter) Room(peer.ID) (hold.Room, error) { return hold.Room{Credit: 1 << 40}, nil }

func (freeMeter) Commit(tally.Amount) error { return nil }
func (freeMeter) Release()                  {}
