package host

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/signer"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/protocols/packetnet"
	"github.com/tallystick/tally/protocols/socketnet"
	"github.com/tallystick/tally/swap"
)

// Errors of a node's sockets.
var (
	// ErrNoSockets: the node was made without Config.Sockets.
	ErrNoSockets = errors.New("host: this node has no payment sockets: set Config.Sockets")
	// ErrToSelf: a socket needs another peer.
	ErrToSelf = errors.New("host: a socket to ourselves pays nobody")
	// ErrNoLimits: the URI does not say how much its bearer moves.
	ErrNoLimits = errors.New("host: the URI does not say how much: give a minimum and a maximum")
)

const (
	// setupExpires is how long a token that was given on a set-up stream opens
	// sockets; one that is open then goes on.
	setupExpires = time.Hour
	// neighbourTick is how often WaitNeighbour looks.
	neighbourTick = 5 * time.Millisecond
)

// PacketsConfig turns on the carrying of packets between neighbours.
type PacketsConfig struct {
	// Rules are fee and bounds of what passes here. Default: no fee.
	Rules forward.Rules
	// Routes lead to peers that are no neighbours, by way of one that is.
	Routes map[peer.ID]peer.ID
}

// SocketsConfig turns on payment sockets, and with them packets. Hooks must
// return soon and may be called from many goroutines.
type SocketsConfig struct {
	// PushMax is the most that a peer may push to us on a socket that it opened
	// without a URI. Nothing else is given without one. Default: 0, no such socket.
	PushMax tally.Amount
	// Setup decides in place of PushMax what a peer gets that asks for a socket
	// without a URI. An error refuses it.
	Setup func(from peer.ID) (paystream.Grant, error)
	// Accept is asked before a token of ours opens a socket; an error refuses it.
	Accept func(paystream.Grant, paystream.SocketID) error
	// Opened is told of each socket that a peer has opened.
	Opened func(*paystream.Conn)
	// Proposed decides on a peer's wish that we move our limits. Default: no.
	Proposed func(*paystream.Conn, paystream.Proposal) bool
	// PerPeer bounds the sockets that come through one neighbour. Default 4096.
	PerPeer int
}

// Sockets are the payment sockets of a node. All methods may be called at the
// same time.
type Sockets struct {
	node     *Node
	endpoint *paystream.Endpoint
	setup    *socketnet.Service
}

// Sockets returns the node's payment sockets, or ErrNoSockets.
func (n *Node) Sockets() (*Sockets, error) {
	if n.sockets == nil {
		return nil, ErrNoSockets
	}
	return n.sockets, nil
}

// Open opens a socket to a peer that we are, or can be, connected to: it gives us
// a token over the secured connection, for what it takes from anybody. via is the
// way of the packets, where peer is no neighbour and no route leads to it.
func (s *Sockets) Open(ctx context.Context, to peer.ID, via []peer.ID, t paystream.Terms) (*paystream.Conn, error) {
	if to == s.node.host.ID() {
		return nil, ErrToSelf
	}
	if err := t.Validate(); err != nil {
		return nil, err
	}
	grant, err := s.setup.Ask(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("open socket to %s: %w", to, err)
	}
	return s.endpoint.Dial(ctx, paystream.URI{Peer: to, Token: grant.Token, Secret: grant.Secret}, via, t)
}

// Redeem opens a socket to whoever made a URI. It returns once the rate and the
// limits of the other side are known. LimitsOf says what is usual for the URI.
func (s *Sockets) Redeem(ctx context.Context, u paystream.URI, via []peer.ID, t paystream.Terms) (*paystream.Conn, error) {
	if u.Peer == s.node.host.ID() {
		return nil, ErrToSelf
	}
	return s.endpoint.Dial(ctx, u, via, t)
}

// Issue makes a URI that gives its bearer a grant; GrantOf makes the usual ones.
// Nothing is kept until money has moved.
func (s *Sockets) Issue(g paystream.Grant) (paystream.URI, error) { return s.endpoint.Issue(g) }

// Conn returns a socket by its id, also one that has been idle or was open before
// a restart.
func (s *Sockets) Conn(id paystream.SocketID) (*paystream.Conn, error) {
	return s.endpoint.Conn(id)
}

// List returns the sockets in memory: an idle one leaves it after a minute.
func (s *Sockets) List() []*paystream.Conn { return s.endpoint.Sockets() }

// Stats counts what the sockets did since the start.
func (s *Sockets) Stats() paystream.Stats { return s.endpoint.Stats() }

// GrantOf is the usual grant of n units for a use; the zero time never expires.
// What is not usual is a paystream.Grant of the caller's.
func GrantOf(use paystream.Use, n tally.Amount, expires time.Time) (paystream.Grant, error) {
	sum, err := tally.Balance(0).Debit(n)
	if err != nil || n == 0 {
		return paystream.Grant{}, fmt.Errorf("%w: amount %d", paystream.ErrLimits, n)
	}
	g := paystream.Grant{Use: use}
	if !expires.IsZero() {
		g.Expires = expires.Unix()
	}
	switch use {
	case paystream.UseGift: // pays whoever opens it first
		g.Min, g.Max, g.SingleUse = paystream.At(-sum), paystream.At(-sum), true
	case paystream.UseInvoice:
		g.Min, g.Max, g.SingleUse = paystream.At(sum), paystream.At(sum), true
	case paystream.UseVoucher, paystream.UseMandate, paystream.UseJob:
		g.Min, g.Max = paystream.At(-sum), paystream.At(0)
	case paystream.UsePush:
		g.Min, g.Max = paystream.At(0), paystream.At(sum)
	case paystream.UseAccount, paystream.UsePrepaid: // what came may go again
		g.Min, g.Max, g.Refunds = paystream.At(0), paystream.At(sum), true
	default:
		return paystream.Grant{}, fmt.Errorf("%w: unknown use", paystream.ErrURI)
	}
	return g, nil
}

// LimitsOf are the limits with which a bearer meets what a URI says it is for.
// The amount is what its maker wrote: it bounds what the bearer gives, and what
// it gets may be less.
func LimitsOf(u paystream.URI) (low, high paystream.Limit, err error) {
	sum, err := tally.Balance(0).Debit(u.Amount)
	if err != nil {
		return low, high, err
	}
	zero := paystream.At(0)
	switch {
	case u.Use == paystream.UseGift:
		return zero, paystream.NoMax, nil
	case u.Amount == 0:
		return low, high, ErrNoLimits
	case u.Use == paystream.UseInvoice:
		return paystream.At(-sum), zero, nil
	case u.Use == paystream.UsePush:
		return paystream.At(-sum), paystream.At(-sum), nil
	case u.Use == paystream.UseVoucher, u.Use == paystream.UseMandate:
		return paystream.At(sum), paystream.At(sum), nil
	}
	return low, high, ErrNoLimits
}

// openPackets joins the hop engine to tabs and neighbours, and the endpoints to
// the engine.
//
//	sockets ── Send ─▶ SocketCarrier ─▶ forward.Engine ◀─▶ packetnet ◀─▶ neighbours
//	   ▲                    │           ▲ ▲ │      │
//	   └── Packet, Answer ──┘           │ │ │      └──▶ packetTabs ─▶ swap.Book
//	             partCarrier, Bridge ───┴─┘ └─▶ journal, tabs and those: one batch
func (n *Node) openPackets(ctx context.Context, c Config) (err error) {
	cfg, sockets, pay := *c.Packets, c.Sockets, c.Payments
	n.routes, n.rules = cfg.Routes, cfg.Rules.Complete()
	handler := new(packetHandler)
	fc := forward.Config{
		Self: n.host.ID(), Rules: cfg.Rules, Routes: cfg.Routes, Store: n.store, Tabs: PacketTabs(n.book, true), Logger: n.log,
		Handler: handler,
	}
	if c.Bridge != nil {
		if err = n.openBridge(ctx, *c.Bridge, cfg.Rules, n.book.Realm()); err != nil {
			return err
		}
		handler.bridge = n.bridge
	}
	fc.Orphan = handler.orphan
	carrier := &SocketCarrier{FirstRoom: n.firstRoom}
	if sockets != nil {
		handler.sockets = carrier
	}
	if pay != nil {
		n.parts = new(partCarrier)
		handler.parts = n.parts
	}
	if c.Holds != nil {
		handler.holds = new(partCarrier)
		fc.Rules.MaxKept = maxKept
	}
	if pay != nil || c.Holds != nil {
		fc.Kept, fc.Gone = handler.kept, handler.gone
	}
	if n.locks, n.noLocks, err = openLocks(ctx, n.store, c.ground, c.Locks, n.log); err != nil {
		return err
	}
	if n.locks != nil {
		fc.Locks, fc.OpensPoint = n.locks, signer.Opens
	}
	n.curve = signer.New(n.store, c.ground.walletOf())
	if n.engine, err = forward.New(ctx, fc); err != nil {
		return err
	}
	carrier.Engine = n.engine
	if n.packets, err = packetnet.New(n.host, sessions{n.engine, n.online}, packetnet.Config{Rules: cfg.Rules, LockDelta: n.locks.delta(), PointLocks: n.locks.points(), Logger: n.log}); err != nil {
		return err
	}
	if sockets != nil {
		if err = n.openSockets(ctx, *sockets, carrier); err != nil {
			return err
		}
	}
	if pay != nil {
		if err = n.openPayments(ctx, *pay, n.parts); err != nil {
			return err
		}
	}
	if c.Holds != nil {
		if err = n.openHolds(ctx, *c.Holds, handler.holds); err != nil {
			return err
		}
	}
	if c.Bridge != nil {
		n.bridge.Start(n.engine)
	}
	if n.locks != nil {
		n.locks.begin(n.engine)
		n.locks.start(n.packets)
	}
	n.engine.Start(n.packets)
	if err = n.packets.Start(); err != nil || c.Bridge == nil {
		return err
	}
	return n.bridge.open(*c.Bridge)
}

func (n *Node) openSockets(ctx context.Context, cfg SocketsConfig, carrier *SocketCarrier) error {
	key, err := serverKey(ctx, n.store)
	if err != nil {
		return err
	}
	private := n.host.Peerstore().PrivKey(n.host.ID())
	endpoint, err := paystream.Open(ctx, paystream.Config{
		Self: n.host.ID(), Key: key, Asset: assetOf(n.book.Realm()), Store: n.store, Accept: cfg.Accept, Opened: cfg.Opened, Proposed: cfg.Proposed,
		Sign: private.Sign, PerPeer: cfg.PerPeer, Logger: n.log,
	})
	if err != nil {
		return err
	}
	s := &Sockets{node: n, endpoint: endpoint}
	setup := cfg.Setup
	if setup == nil && cfg.PushMax > 0 {
		setup = func(peer.ID) (paystream.Grant, error) {
			return GrantOf(paystream.UsePush, cfg.PushMax, time.Now().Add(setupExpires))
		}
	}
	var give func(peer.ID) (socketnet.Setup, error)
	if setup != nil {
		give = func(from peer.ID) (socketnet.Setup, error) {
			g, err := setup(from)
			if err != nil {
				return socketnet.Setup{}, err
			}
			u, err := endpoint.Issue(g)
			return socketnet.Setup{Token: u.Token, Secret: u.Secret}, err
		}
	}
	s.setup = socketnet.New(n.host, socketnet.Config{Give: give, Logger: n.log})
	carrier.Endpoint = endpoint
	n.sockets = s
	endpoint.Start(carrier)
	return nil
}

// tokenScale is the digits of a token that a unit is behind its point: a unit is 10^-9
// of it.
const tokenScale = 9

func assetOf(r swap.Realm) paystream.Asset {
	if r.Asset == "karma" {
		return paystream.Asset{Code: r.Asset}
	}
	return paystream.Asset{Code: r.Asset, Scale: tokenScale}
}

// WaitNeighbour returns once there are sessions with a connected peer for its tab
// and for packets, or when ctx ends.
func (n *Node) WaitNeighbour(ctx context.Context, p peer.ID) error {
	if err := n.book.WaitSession(ctx, p); err != nil {
		return err
	}
	if n.packets == nil {
		return nil
	}
	tick := time.NewTicker(neighbourTick)
	defer tick.Stop()
	for {
		if _, ok := n.packets.Info(p); ok {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("no packet session with %s: %w", p, ctx.Err())
		}
	}
}

// packetsWithin bounds the wait for a packet session with a peer that was dialled.
const packetsWithin = 2 * time.Second

// waitPackets waits for the packet session with a connected peer that speaks the
// protocol, so that what is paid right after has a way. It is not an error where none
// begins: the tab works without.
func (n *Node) waitPackets(ctx context.Context, p peer.ID) {
	if speaks, err := n.host.Peerstore().SupportsProtocols(p, packetnet.Protocol); err != nil || len(speaks) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, packetsWithin)
	defer cancel()
	_ = n.WaitNeighbour(ctx, p)
}

// closePackets ends what carries packets, before the tabs that they are on.
// A second call does nothing.
func (n *Node) closePackets() error {
	if n.stopSpread != nil {
		n.stopSpread()
		n.pulls.Close()
		n.spreading.Wait()
	}
	var errs []error
	if n.bridge != nil {
		errs = append(errs, n.bridge.Close())
	}
	if n.packets != nil {
		errs = append(errs, n.packets.Close())
	}
	if n.engine != nil {
		errs = append(errs, n.engine.Close())
	}
	if n.locks != nil {
		errs = append(errs, n.locks.close())
	}
	if n.sockets != nil {
		n.sockets.setup.Close()
		errs = append(errs, n.sockets.endpoint.Close())
	}
	if n.payments != nil {
		n.parts.close()
		errs = append(errs, n.payments.Close())
	}
	if n.holds != nil {
		errs = append(errs, n.holds.close())
	}
	return errors.Join(errs...)
}

// Where the server key lies. It is in the store because the budgets are: tokens
// of a store that was lost are worth nothing, instead of being worth their whole
// sum again.
const (
	serverKeyKey          = "/host/socket-key"
	serverKeyVersion byte = 1
)

// serverKey returns the key of our tokens, drawn at the first start.
func serverKey(ctx context.Context, store *durable.Store) (key paystream.ServerKey, err error) {
	rec, err := store.Get(ctx, serverKeyKey)
	if errors.Is(err, durable.ErrNotFound) {
		rand.Read(key[:]) // never fails
		var b durable.Batch
		b.Put(serverKeyKey, durable.Seal(nil, serverKeyKey, serverKeyVersion, key[:]))
		return key, store.Commit(ctx, &b)
	}
	if err != nil {
		return key, err
	}
	_, raw, err := durable.Unseal(serverKeyKey, serverKeyVersion, rec)
	if err == nil && len(raw) != len(key) {
		err = fmt.Errorf("%w: key of the tokens", paystream.ErrRecord)
	}
	if err != nil {
		return key, err
	}
	return paystream.ServerKey(raw), nil
}

// SocketCarrier carries the packets of an endpoint through a hop engine. Their ids
// are the part ids of the hops. A Node has its own; the type is public for who joins
// the parts without one.
type SocketCarrier struct {
	Engine   *forward.Engine
	Endpoint *paystream.Endpoint
	// FirstRoom is Room; nil: it is not known.
	FirstRoom func(paystream.Dest) (tally.Amount, bool)

	once    sync.Once
	decided func(*forward.Result) func(*durable.Batch) // Answered, bound once
	answer  paystream.Answer                           // scratch of the engine's goroutine
}

var (
	_ paystream.Carrier = (*SocketCarrier)(nil)
	_ paystream.Roomer  = (*SocketCarrier)(nil)
)

// Send implements paystream.Carrier.
func (c *SocketCarrier) Send(p *paystream.Outgoing) error {
	c.once.Do(func() { c.decided = c.Answered })
	err := c.Engine.Send(&forward.Packet{
		Dest: p.Dest.Peer, Token: p.Dest.Token, Via: p.Dest.Via, Amount: p.Amount, Expires: p.Expires,
		Condition: forward.Blake2b(p.Condition), Preimage: p.Preimage, Part: forward.PartID(p.ID), Data: p.Data,
		Record: p.Record, Owner: p, Decided: c.decided,
	}, nil)
	if errors.Is(err, forward.ErrBusy) {
		return paystream.ErrNoRoom
	}
	return err
}

// Save implements paystream.Carrier.
func (c *SocketCarrier) Save(r paystream.Record) error { return c.Engine.Save(r) }

// Room implements paystream.Roomer.
func (c *SocketCarrier) Room(d paystream.Dest) (tally.Amount, bool) {
	if c.FirstRoom == nil {
		return 0, false
	}
	return c.FirstRoom(d)
}

// firstRoom is the headroom of our tab with the first hop on a way.
func (n *Node) firstRoom(d paystream.Dest) (tally.Amount, bool) {
	first := d.Peer
	if len(d.Via) > 0 {
		first = d.Via[0]
	} else if _, neighbour := n.packets.Info(first); !neighbour {
		if first = n.routes[d.Peer]; first == "" {
			return 0, false
		}
	}
	room, err := n.book.HeadroomPacket(first, swap.Consume)
	return room, err == nil
}

// Packet implements forward.Handler: it takes a packet for us that is no part of a payment.
func (c *SocketCarrier) Packet(d *forward.Delivery) (forward.Decision, bool) {
	out := c.Endpoint.Packet(&paystream.Incoming{
		ID: paystream.PacketID(d.Part), From: d.From, Token: d.Token, Amount: d.Amount,
		Expires: d.Expires, Condition: d.Condition.Digest, Data: d.Data,
	})
	switch {
	case out.Fulfil:
		// R5 of the socket has compared preimage and condition.
		return forward.Decision{Fulfil: true, Preimage: out.Preimage, Opens: true, Data: out.Data, Record: out.Record}, true
	case out.Data != nil:
		return forward.Decision{Code: forward.CodeApplication, Data: out.Data}, true
	default:
		return forward.Decision{Code: forward.CodeRefused}, true
	}
}

// Answered passes on, on the engine's goroutine, what became of a packet of ours. What the endpoint makes of it
// is saved in the batch that forgets the packet.
func (c *SocketCarrier) Answered(r *forward.Result) func(*durable.Batch) {
	kind, most := rejectOf(r)
	sent, _ := r.Owner.(*paystream.Outgoing)
	c.answer = paystream.Answer{ID: paystream.PacketID(r.Part), Sent: sent, Fulfilled: r.Fulfilled, Data: r.Data, Kind: kind, Most: most}
	return c.Endpoint.Answer(&c.answer)
}

// rejectOf is what a reject says about the next packet.
func rejectOf(r *forward.Result) (kind paystream.RejectKind, most tally.Amount) {
	switch r.Code {
	case forward.CodeTooLarge:
		return paystream.RejectLarge, r.Headroom
	case forward.CodeHeadroomFinal:
		if r.Headroom > 0 { // nothing settles the tab; what is left of it can still be used
			return paystream.RejectLarge, r.Headroom
		}
		return paystream.RejectTemporary, 0
	case forward.CodeHeadroom:
		return paystream.RejectTemporary, r.Headroom
	case forward.CodeApplication, forward.CodeRefused, forward.CodeTooSmall:
		return paystream.RejectLimit, 0
	default:
		return paystream.RejectTemporary, 0
	}
}
