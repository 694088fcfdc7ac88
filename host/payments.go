package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/payments"
	"github.com/tallystick/tally/paystream/payments/route"
	"github.com/tallystick/tally/protocols/packetnet"
	"github.com/tallystick/tally/swap"
)

// ErrNoPayments: the node was made without Config.Payments.
var ErrNoPayments = errors.New("host: this node makes no payments: set Config.Payments")

// certainSlack is how much later than the late hold a part is decided: the hop
// engine looks at its clock once a second, and saves.
const certainSlack = 2 * time.Second

// busyRetry is the wait for room in the engine's inbox, which a batch of packets empties.
const busyRetry = time.Millisecond

// timeoutData is what a payee says, as an application, of parts whose others did not
// come. The bytes are part of docs/protocol/payments.md.
var timeoutData = []byte{1}

// partToken tells the packets of parts from those of sockets, whose tokens are longer
// or, on their way back, empty. It is part of docs/protocol/payments.md.
var partToken = []byte{1}

// PaymentsConfig turns on payments in parts, and with them packets.
type PaymentsConfig struct {
	// PullEvery is how often each neighbour is asked for adverts. Default 30 s.
	PullEvery time.Duration
	// Advertise is what others are told of our neighbours. Default: AdvertiseTabs.
	Advertise Advertise

	// Traded is told of each signature that was sold or bought: payments.Config.
	Traded func(payments.Trade)

	// chain shows channels, ours and those of others; nil without one, and adverts that
	// name a channel are then not kept.
	chain *chain
}

// Payments returns the node's payments, or ErrNoPayments.
func (n *Node) Payments() (*payments.Service, error) {
	if n.payments == nil {
		return nil, ErrNoPayments
	}
	return n.payments, nil
}

// realmText is the realm as invoices name it. Where there is a chain, its first
// block is in it: chains of play money share their names.
func realmText(r swap.Realm) string {
	text := r.Network + "/" + r.Asset
	if r.Genesis != "" {
		sum := sha256.Sum256([]byte(r.Genesis))
		text += "/" + hex.EncodeToString(sum[:4])
	}
	const most = 64 // bytes of an invoice's realm
	if len(text) > most {
		sum := sha256.Sum256([]byte(text))
		return hex.EncodeToString(sum[:16])
	}
	return text
}

// openPayments joins the payments to the hop engine, which is not started yet:
// what it found in its journal is compared with the tables first.
//
//	payments.Service ── Send, Fulfil ─▶ partCarrier ─▶ forward.Engine
//	        ▲                               │
//	        └── Part, Answer, Gone ─────────┘ saved before they are told
func (n *Node) openPayments(ctx context.Context, cfg PaymentsConfig, carrier *partCarrier) error {
	carrier.begin(n.engine, n.log, partToken)
	if n.locks != nil && n.locks.Off() == nil {
		carrier.ways = n
	}
	n.adverts = newAdverts(n.book.Realm(), cfg)
	n.ways = newWays(n)
	private := n.host.Peerstore().PrivKey(n.host.ID())
	s, err := payments.Open(ctx, payments.Config{
		Self: n.host.ID(), Realm: realmText(n.book.Realm()), Store: n.store, Carrier: carrier, Router: n.ways,
		Sign: private.Sign, Hints: n.ways.hints, Curve: n.curve, Traded: cfg.Traded, Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.payments = s
	s.Start()
	n.pulls = packetnet.NewRoutes(n.host, n.adverts, n.log)
	every := cfg.PullEvery
	if every == 0 {
		every = pullEvery
	}
	var spreading context.Context
	spreading, n.stopSpread = context.WithCancel(context.Background())
	n.spreading.Go(func() { n.spread(spreading, every) }) // ends with closePackets
	return nil
}

// partCarrier carries parts through the hop engine. Their ids are the part ids of
// the hops.
type partCarrier struct {
	engine *forward.Engine
	token  []byte // of the packets that are its parts
	log    *slog.Logger
	ways   lockWays // nil where nothing may go under a lock

	// mu guards the fields below. Nothing is called under it.
	mu      sync.Mutex
	handler payments.Handler
	waiting map[payments.PartID]*waitingPart
	sent    map[payments.PartID]struct{} // not forgotten
	retries sync.WaitGroup
}

// waitingPart is a part that waits here for our decision.
type waitingPart struct {
	from peer.ID
	id   uint64
	// asked are the callers of the decision that is on its way.
	asked []func(error)
}

var (
	_ payments.Carrier     = (*partCarrier)(nil)
	_ payments.LockCarrier = (*partCarrier)(nil)
	_ payments.OwedCarrier = (*partCarrier)(nil)
)

// begin takes up what the engine found in its journal.
func (c *partCarrier) begin(engine *forward.Engine, log *slog.Logger, token []byte) {
	c.engine, c.log, c.token = engine, log, token
	c.waiting, c.sent = make(map[payments.PartID]*waitingPart), make(map[payments.PartID]struct{})
	for _, d := range engine.Waiting() {
		if bytes.Equal(d.Token, token) {
			c.waiting[payments.PartID(d.Part)] = &waitingPart{from: d.From, id: d.ID}
		}
	}
}

// adopt tells which parts were sent before a restart.
func (c *partCarrier) adopt(ids []payments.PartID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		c.sent[id] = struct{}{}
	}
}

// sentIt and hasIt report whether a part of ours, or one that waits, is one of these.
func (c *partCarrier) sentIt(id payments.PartID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.sent[id]
	return ok
}

func (c *partCarrier) hasIt(id payments.PartID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting[id] != nil
}

// Send implements payments.Carrier.
func (c *partCarrier) Send(p *payments.Outgoing) error {
	c.adopt([]payments.PartID{p.PartID})
	return c.engine.Send(&forward.Packet{
		Dest: p.Dest, Token: c.token, Via: p.Via, Amount: p.Amount, Expires: p.Expires, Condition: conditionOf(p.Point, p.Condition),
		Part: forward.PartID(p.PartID), Data: p.Data, Keep: true, MayLock: c.ways != nil,
	}, nil)
}

// conditionOf is that of a hash, or of a point by its first byte and its x.
func conditionOf(point byte, h tally.Hashlock) forward.Condition {
	if point == 0 {
		return forward.Blake2b(h)
	}
	return forward.Condition{Kind: forward.ConditionPoint, Point: point, Digest: h}
}

// Forget implements payments.Carrier. Where the engine has stopped, the restart
// tells it again.
func (c *partCarrier) Forget(id payments.PartID) {
	c.mu.Lock()
	delete(c.sent, id)
	c.mu.Unlock()
	_ = c.engine.Forget(forward.PartID(id))
}

// Fulfil implements payments.Carrier.
func (c *partCarrier) Fulfil(id payments.PartID, preimage tally.Preimage, done func(error)) {
	c.decide(id, &forward.Decision{Fulfil: true, Preimage: preimage}, done)
}

// FulfilOwed implements payments.OwedCarrier.
func (c *partCarrier) FulfilOwed(id payments.PartID, preimage tally.Preimage, done func(error)) {
	c.decide(id, &forward.Decision{Fulfil: true, Preimage: preimage, Owed: true}, done)
}

// Reject implements payments.Carrier.
func (c *partCarrier) Reject(id payments.PartID, code payments.FailCode, done func(error)) {
	d := &forward.Decision{Code: forward.CodeRefused}
	switch code {
	case payments.FailTimeout:
		d.Code, d.Data = forward.CodeApplication, timeoutData
	case payments.FailHop, payments.FailBusy:
		d.Code = forward.CodeBusy
	}
	c.decide(id, d, done)
}

// decide passes a decision to the engine, once; whoever asks again meanwhile hears
// of the first.
func (c *partCarrier) decide(id payments.PartID, d *forward.Decision, done func(error)) {
	c.mu.Lock()
	w := c.waiting[id]
	if w == nil {
		c.mu.Unlock()
		c.retries.Go(func() { done(payments.ErrGone) }) // never from within a call
		return
	}
	w.asked = append(w.asked, done)
	first := len(w.asked) == 1
	c.mu.Unlock()
	if !first {
		return
	}
	said := func(err error) { c.decided(id, err) }
	if err := c.engine.Decide(w.from, w.id, d, said); err != nil {
		c.retries.Go(func() { c.retry(w, d, said, err) }) // ends when the inbox has room, or the engine
	}
}

// retry waits for room in the engine's inbox: a claim has to be told.
func (c *partCarrier) retry(w *waitingPart, d *forward.Decision, said func(error), err error) {
	for errors.Is(err, forward.ErrBusy) {
		<-time.After(busyRetry)
		err = c.engine.Decide(w.from, w.id, d, said)
	}
	if err != nil {
		said(err)
	}
}

// decided hears from the engine that a decision is saved, or why none is.
func (c *partCarrier) decided(id payments.PartID, err error) {
	if errors.Is(err, forward.ErrNotHeld) {
		err = payments.ErrGone
	}
	c.mu.Lock()
	var asked []func(error)
	if w := c.waiting[id]; w != nil {
		asked = w.asked
		w.asked = nil
		if err == nil || errors.Is(err, payments.ErrGone) {
			delete(c.waiting, id)
		}
	}
	c.mu.Unlock()
	for _, done := range asked {
		done(err)
	}
}

// CertainBy implements payments.Carrier.
func (c *partCarrier) CertainBy(expires time.Time, _ int) time.Time {
	return expires.Add(forward.LateHold + certainSlack)
}

// LockTime implements payments.LockCarrier.
func (c *partCarrier) LockTime(dest peer.ID, via []peer.ID, amount tally.Amount, point bool) time.Duration {
	if c.ways == nil {
		return 0
	}
	return c.ways.lockTime(append(slices.Clone(via), dest), amount, point)
}

// LockCertainBy implements payments.LockCarrier.
func (c *partCarrier) LockCertainBy(expires time.Time) time.Time {
	late := c.CertainBy(expires, 0) // a hop may carry it on credit
	if c.ways == nil {
		return late
	}
	if final := c.ways.lockCertainBy(expires); final.After(late) {
		return final
	}
	return late
}

// Sent implements payments.Carrier.
func (c *partCarrier) Sent(context.Context) ([]payments.PartID, error) {
	var ids []payments.PartID
	for _, id := range c.engine.Sent() {
		ids = append(ids, payments.PartID(id))
	}
	return ids, nil
}

// Waiting implements payments.Carrier.
func (c *partCarrier) Waiting(context.Context) ([]payments.PartID, error) {
	var ids []payments.PartID
	for _, d := range c.engine.Waiting() {
		if bytes.Equal(d.Token, c.token) {
			ids = append(ids, payments.PartID(d.Part))
		}
	}
	return ids, nil
}

// Start implements payments.Carrier. The engine begins later, and then tells again
// what it told before.
func (c *partCarrier) Start(h payments.Handler) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handler = h
}

// tell returns who hears of parts; nil before Start.
func (c *partCarrier) tell() payments.Handler {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.handler
}

// packet takes a packet for us that is a part. It is told when it is on disk:
// what is claimed before could not be collected after a crash.
func (c *partCarrier) packet(d *forward.Delivery) (forward.Decision, bool) {
	a := &payments.Arrival{
		PartID: payments.PartID(d.Part), Hash: d.Condition.Digest, Point: d.Condition.Point, From: d.From, Amount: d.Amount,
		Expires: d.Expires.UnixMilli(), Data: slices.Clone(d.Data),
	}
	id := d.ID
	return forward.Decision{Kept: func() {
		c.mu.Lock()
		if c.waiting[a.PartID] == nil {
			c.waiting[a.PartID] = &waitingPart{from: a.From, id: id}
		}
		c.mu.Unlock()
		c.tell().Part(a)
	}}, false
}

// kept is told what became of a part of ours, once it is saved.
func (c *partCarrier) kept(r *forward.Result) {
	c.tell().Answer(&payments.Answer{
		PartID: payments.PartID(r.Part), Fulfilled: r.Fulfilled, Preimage: r.Preimage, Failure: failureOf(r),
	})
}

// gone is told of a part that nobody decided.
func (c *partCarrier) gone(part forward.PartID) {
	id := payments.PartID(part)
	c.mu.Lock()
	delete(c.waiting, id)
	c.mu.Unlock()
	c.tell().Gone(id)
}

// close waits for the last retries, when the engine has ended.
func (c *partCarrier) close() { c.retries.Wait() }

// failureOf is what a reject says about a part.
func failureOf(r *forward.Result) payments.Failure {
	f := payments.Failure{Code: payments.FailHop, Hop: r.Hop}
	switch r.Code {
	case forward.CodeRefused:
		f.Code = payments.FailRefused
	case forward.CodeApplication: // a payee says nothing else with it
		f.Code = payments.FailTimeout
	case forward.CodeNoRoute:
		f.Code = payments.FailNoRoute
	case forward.CodeHeadroom, forward.CodeHeadroomFinal, forward.CodeTooLarge:
		f.Code, f.Most = payments.FailHeadroom, r.Headroom
	case forward.CodeBusy:
		f.Code = payments.FailBusy
	case forward.CodeExpiryTooSoon, forward.CodeExpiryTooFar:
		f.Code = payments.FailExpiry
	case forward.CodeUnsupported:
		f.Code = payments.FailUnsupported
	}
	return f
}

// packetHandler gives each packet for us to whom it is for: one with Interledger's
// condition to the bridge, one with the token of parts to the payments, one with that
// of holds to the holds, others to the sockets.
type packetHandler struct {
	sockets *SocketCarrier
	parts   *partCarrier
	holds   *partCarrier
	bridge  *Bridge
}

var _ forward.Handler = (*packetHandler)(nil)

// Packet implements forward.Handler.
func (h *packetHandler) Packet(d *forward.Delivery) (forward.Decision, bool) {
	switch {
	case d.Condition.Kind == forward.ConditionSHA256 && h.bridge != nil:
		return h.bridge.Packet(d)
	case d.Condition.Kind == forward.ConditionPoint && d.Locked && bytes.Equal(d.Token, partToken) && h.parts != nil: // a sale
		return h.parts.packet(d)
	case d.Condition.Kind != forward.ConditionBlake2b: // for nothing of ours
	case d.Locked && !bytes.Equal(d.Token, partToken) && !bytes.Equal(d.Token, holdToken): // sockets are on credit alone
	case bytes.Equal(d.Token, partToken):
		if h.parts != nil {
			return h.parts.packet(d)
		}
	case bytes.Equal(d.Token, holdToken):
		if h.holds != nil {
			return h.holds.packet(d)
		}
	case h.sockets != nil:
		return h.sockets.Packet(d)
	}
	return forward.Decision{Code: forward.CodeRefused}, true
}

// orphan is told what became of packets from before a restart.
func (h *packetHandler) orphan(r *forward.Result) func(*durable.Batch) {
	if h.bridge != nil {
		if record, ours := h.bridge.Decided(r); ours {
			return record
		}
	}
	if h.sockets != nil {
		return h.sockets.Answered(r)
	}
	return nil
}

// ways finds ways for payments: over our own tabs as they are now, from there over
// what adverts say, and at the end over what invoices say of the payee's neighbours.
// It is payments.Router.
type ways struct {
	node *Node
	// all are the ways of any kind, locked those under locks alone.
	all, locked *finder
}

// finder is one of them. What it has learnt, and what is in flight over its ways, it
// knows by itself.
type finder struct {
	node   *Node
	locks  bool
	graph  *route.Graph
	finder *route.Finder
	own    []peer.ID // whom we had an edge to
	// version is of the adverts that the graph was made of, made when that was, and took
	// how long it took.
	version uint64
	made    time.Time
	took    time.Duration
}

// graphShare bounds the part of the time in which the graph is made anew: where many
// thousand adverts are known, some are always new, and making it takes long.
const graphShare = 20

var _ payments.Router = (*ways)(nil)

func newWays(n *Node) *ways {
	return &ways{node: n, all: newFinder(n, false), locked: newFinder(n, true)}
}

func newFinder(n *Node, locks bool) *finder {
	g := route.NewGraph()
	return &finder{node: n, locks: locks, graph: g, finder: route.NewFinder(n.host.ID(), g)}
}

func (w *ways) of(locks bool) *finder {
	if locks {
		return w.locked
	}
	return w.all
}

// refresh sets our own edges to what fits tabs and channels now.
func (w *finder) refresh() {
	self := w.node.host.ID()
	a := w.node.adverts
	a.mu.Lock()
	if v, now := a.table.Version(), time.Now(); v != w.version && now.Sub(w.made) >= graphShare*w.took {
		w.version, w.graph = v, a.table.Graph(self, w.locks)
		w.finder.Replace(w.graph)
		w.own = nil
		w.made, w.took = now, time.Since(now)
	}
	a.mu.Unlock()
	for _, p := range w.own {
		w.graph.Close(self, p)
	}
	w.own = w.node.packets.Neighbours()
	for _, p := range w.own {
		room := tally.Amount(0)
		if !w.locks {
			var err error
			if room, err = w.node.book.HeadroomPacket(p, swap.Consume); err != nil {
				continue
			}
		}
		if w.node.locks != nil {
			if way, ok := w.node.locks.Room(p); ok && (way.Points || !w.locks) {
				room = max(room, way.Free)
			}
		}
		if room == 0 {
			continue
		}
		// Only a graph that is full refuses it.
		_ = w.graph.SetOwn(route.Edge{From: self, To: p, Capacity: min(room, payments.MaxTotal-1)})
	}
}

// Plan implements payments.Router.
func (w *ways) Plan(now time.Time, r *payments.Request) ([]payments.Leg, error) {
	f := w.of(r.Locks)
	f.refresh()
	legs, err := f.finder.Plan(now, r)
	for i := range legs {
		legs[i].Locks = r.Locks
	}
	return legs, err
}

// Sent implements payments.Router.
func (w *ways) Sent(now time.Time, dest peer.ID, l *payments.Leg) {
	w.of(l.Locks).finder.Sent(now, dest, l)
}

// Done implements payments.Router.
func (w *ways) Done(now time.Time, dest peer.ID, l *payments.Leg) {
	w.of(l.Locks).finder.Done(now, dest, l)
}

// Failed implements payments.Router.
func (w *ways) Failed(now time.Time, dest peer.ID, l *payments.Leg, f payments.Failure) {
	w.of(l.Locks).finder.Failed(now, dest, l, f)
}

// hints are the neighbours that can bring us most, for our invoices, or with locks those
// that can bring us a lock, for our offers.
func (w *ways) hints(locks bool) []payments.Hint {
	type way struct {
		payments.Hint
		room tally.Amount
	}
	var list []way
	for _, p := range w.node.packets.Neighbours() {
		info, ok := w.node.packets.Info(p)
		room, err := w.node.book.HeadroomPacket(p, swap.Serve)
		switch locked := w.node.lockedTo(p, info); {
		case locks && !(locked && info.PointLocks):
			continue
		case err == nil && room == 0 && locked:
			room = 1 // what the channel carries, its payer knows
		}
		if !ok || err != nil || room == 0 || info.FeeBase >= uint64(payments.MaxTotal) || info.FeePPM > 1_000_000 {
			continue
		}
		list = append(list, way{payments.Hint{Peer: p, FeeBase: tally.Amount(info.FeeBase), FeePPM: info.FeePPM}, room})
	}
	slices.SortStableFunc(list, func(a, b way) int {
		if a.room > b.room {
			return -1
		}
		return 1
	})
	var hints []payments.Hint
	for _, w := range list[:min(len(list), payments.MaxHints)] {
		hints = append(hints, w.Hint)
	}
	return hints
}
