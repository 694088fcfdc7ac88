package host

import (
	"context"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/paystream/payments"
	"github.com/tallystick/tally/protocols/holdnet"
	"github.com/tallystick/tally/swap"
)

// ErrNoHolds: the node was made without Config.Holds.
var ErrNoHolds = errors.New("host: this node takes no part in holds: set Config.Holds")

// serviceHold is the name of the holding in the books.
const serviceHold = "hold"

// holdToken tells the packets of holds from those of parts and sockets. It is part of
// docs/protocol/hold.md.
var holdToken = []byte{2}

// maxKept bounds how long a packet of a hold may take: the longest hold that a policy
// allows, and the longest return.
const maxKept = 56*24*time.Hour + time.Hour

// HoldsConfig turns on payments for payees that are offline, and with them packets:
// to pay and to be paid in this way, and as Policy says to hold for others.
type HoldsConfig struct {
	// Policy is what we hold for others. The zero value: nothing.
	Policy hold.Policy
	// Channels buys, sells and takes vouchers of channels. Default: those of
	// Config.Chain, or none.
	Channels hold.Channels
}

// Holds returns the node's holds, or ErrNoHolds.
func (n *Node) Holds() (*hold.Service, error) {
	if n.holds == nil {
		return nil, ErrNoHolds
	}
	return n.holds.service, nil
}

// holds is what a node has for holds.
type holds struct {
	service *hold.Service
	wire    *holdnet.Service
	carrier *partCarrier
}

// openHolds joins the holds to the hop engine, which is not started yet, to the tabs
// and to peers.
//
//	hold.Service ── Send, Fulfil ─▶ partCarrier ─▶ forward.Engine
//	   │     ▲                          │
//	   │     └── Part, Answer, Gone ────┘
//	   ├── park, list, release, cancel, poll ◀─▶ holdnet ◀─▶ peers
//	   └── price ─▶ holdMeter ─▶ swap.Book
func (n *Node) openHolds(ctx context.Context, cfg HoldsConfig, carrier *partCarrier) error {
	carrier.begin(n.engine, n.log, holdToken)
	private := n.host.Peerstore().PrivKey(n.host.ID())
	key, err := hold.NewKey(private)
	if err != nil && !errors.Is(err, hold.ErrKeyType) {
		return err
	}
	wire := holdnet.New(n.host, n.log)
	meter, delta := holdMeter{book: n.book}, time.Duration(0)
	if n.locks != nil && n.locks.Off() == nil {
		carrier.ways, meter.locks, delta = n, n.locks, n.locks.between()
	}
	s, err := hold.Open(ctx, hold.Config{
		Self: n.host.ID(), Realm: realmText(n.book.Realm()), Policy: cfg.Policy, Key: key, Sign: private.Sign, Store: n.store,
		Carrier: carrier, Channels: cfg.Channels, Wire: wire, Meter: meter, LockDelta: delta, Logger: n.log,
	})
	if err != nil {
		return err
	}
	carrier.adopt(s.Parts())
	n.holds = &holds{service: s, wire: wire, carrier: carrier}
	wire.Serve(s)
	s.Start()
	return nil
}

// close ends what asks and answers peers, then the owner. The engine has ended.
func (h *holds) close() error {
	h.wire.Close()
	h.carrier.close()
	return h.service.Close()
}

// sessions is the engine as packetnet sees it, with word of who comes.
type sessions struct {
	*forward.Engine
	online func(peer.ID)
}

// Up tells that a session with p has begun: from now on packets reach it.
func (s sessions) Up(p peer.ID, window int) {
	s.Engine.Up(p, window)
	s.online(p)
}

// online tells the locks and the holds that a neighbour is here.
func (n *Node) online(p peer.ID) {
	if n.locks != nil {
		n.locks.up(p)
	}
	if n.holds != nil {
		n.holds.service.Online(p)
	}
}

// holdMeter puts the price of holding on the tabs.
type holdMeter struct {
	book  *swap.Book
	locks *Locks // nil where nothing goes under a lock
}

var _ hold.Meter = holdMeter{}

// Serve reserves what a payer is to owe us.
func (m holdMeter) Serve(ctx context.Context, payer peer.ID, price tally.Amount) (hold.Booking, error) {
	return m.booking(m.book.TryReserve(ctx, payer, serviceHold, swap.Serve, price))
}

// Consume reserves what we are to owe a holder, and waits for a settlement while ctx
// allows.
func (m holdMeter) Consume(ctx context.Context, holder peer.ID, price tally.Amount) (hold.Booking, error) {
	return m.booking(m.book.Reserve(ctx, holder, serviceHold, swap.Consume, price))
}

// Room is what fits the tab with a holder as a packet, or the channel to it under a
// lock.
func (m holdMeter) Room(holder peer.ID) (hold.Room, error) {
	credit, err := m.book.HeadroomPacket(holder, swap.Consume)
	room := hold.Room{Credit: credit}
	if err == nil && m.locks != nil {
		room.Lock, room.LockUntil = m.locks.longest(holder)
	}
	return room, err
}

func (m holdMeter) booking(h swap.Hold, err error) (hold.Booking, error) {
	if err != nil {
		return nil, err
	}
	return holdBooking{h}, nil
}

type holdBooking struct{ swap.Hold }

// Release gives the reservation back.
func (b holdBooking) Release() { _ = b.Hold.Release() } // the ledger has it or is closed

// partOwner tells whose a part of ours is.
func (h *packetHandler) partOwner(id payments.PartID, of func(*partCarrier, payments.PartID) bool) *partCarrier {
	if h.parts == nil || h.holds != nil && of(h.holds, id) {
		return h.holds
	}
	return h.parts // also of what neither knows any more: it is forgotten
}

// kept is told what became of a part of ours, once it is saved.
func (h *packetHandler) kept(r *forward.Result) {
	h.partOwner(payments.PartID(r.Part), (*partCarrier).sentIt).kept(r)
}

// gone is told of a part that nobody decided.
func (h *packetHandler) gone(part forward.PartID) {
	h.partOwner(payments.PartID(part), (*partCarrier).hasIt).gone(part)
}
