// Package paymentstest carries parts between payers and payees in memory: the twin
// of a carrier, with hops, fees, capacities, dead links, delay and restarts.
package paymentstest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// LateHold is how long beyond its expiry a part binds its payer.
const LateHold = 10 * time.Minute

// Edge is what one node carries for the one before it.
type Edge struct {
	// Room is what still fits; it is held by parts in flight, and used up by those
	// that were claimed.
	Room tally.Amount
	// Fee of the node that the edge leaves, off what it forwards. None at a payer.
	Fee tally.Amount
	// Dead: what leaves over it comes back.
	Dead bool
	// Busy is how many parts find it busy, before it carries one.
	Busy int
}

// Net is the part of the world that does not restart: hops, and what carriers have
// on disk.
type Net struct {
	// Delay of a whole way, each direction. Set before use.
	Delay time.Duration

	// mu guards the fields below.
	mu       sync.Mutex
	edges    map[[2]peer.ID]*Edge
	nodes    map[peer.ID]*Node
	flights  map[payments.PartID]*flight
	balances map[peer.ID]tally.Balance
}

// flight is one part, from the moment a carrier took it until it is forgotten.
type flight struct {
	out     payments.Outgoing
	path    []peer.ID
	amounts []tally.Amount // over each edge
	held    bool
	arrived bool
	end     *payments.Answer // nil: not decided
	timers  []*time.Timer
}

func (f *flight) payer() peer.ID { return f.path[0] }
func (f *flight) payee() peer.ID { return f.out.Dest }

// NewNet returns a network without edges.
func NewNet() *Net {
	return &Net{
		Delay: 10 * time.Millisecond, edges: make(map[[2]peer.ID]*Edge), nodes: make(map[peer.ID]*Node),
		flights: make(map[payments.PartID]*flight), balances: make(map[peer.ID]tally.Balance),
	}
}

// SetEdge sets what leaves a for b.
func (n *Net) SetEdge(a, b peer.ID, e Edge) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.edges[[2]peer.ID{a, b}] = &e
}

// Room returns what still fits from a to b.
func (n *Net) Room(a, b peer.ID) tally.Amount {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.edges[[2]peer.ID{a, b}].Room
}

// Balance returns what a node has gained; all balances together are 0.
func (n *Net) Balance(p peer.ID) tally.Balance {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.balances[p]
}

// InFlight returns how many parts hold room, and how many are not forgotten.
func (n *Net) InFlight() (held, kept int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range n.flights {
		if f.held {
			held++
		}
	}
	return held, len(n.flights)
}

// Close ends all timers.
func (n *Net) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range n.flights {
		f.stop()
	}
}

func (f *flight) stop() {
	for _, t := range f.timers {
		t.Stop()
	}
	f.timers = nil
}

// Node is the carrier of one node's life. It implements payments.Carrier.
type Node struct {
	net     *Net
	self    peer.ID
	handler payments.Handler
	dead    bool
	calls   int
	killAt  int
	after   bool
	kill    func()
	told    []func() // what waits to be told, in order
	telling bool
}

// tell calls f without the lock, after all that was told before: about one part
// things come in their order. Called with the lock held.
func (n *Node) tell(f func()) {
	n.told = append(n.told, f)
	if !n.telling {
		n.telling = true
		go n.drain() // ends when nothing waits
	}
}

func (n *Node) drain() {
	for {
		n.net.mu.Lock()
		if len(n.told) == 0 {
			n.telling = false
			n.net.mu.Unlock()
			return
		}
		f := n.told[0]
		n.told = n.told[1:]
		n.net.mu.Unlock()
		f()
	}
}

// Join begins a life of a node.
func (n *Net) Join(self peer.ID) *Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.nodes[self]; old != nil {
		old.dead = true
	}
	node := &Node{net: n, self: self}
	n.nodes[self] = node
	return node
}

// Stop cuts the node off, as a kill does.
func (n *Node) Stop() {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	n.dead = true
}

// Calls returns how many calls the node's carrier has had.
func (n *Node) Calls() int {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	return n.calls
}

// KillAt stops the node at its k-th call, before or after it has effect, and calls
// kill, which must not wait for the node.
func (n *Node) KillAt(k int, after bool, kill func()) {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	n.killAt, n.after, n.kill = k, after, kill
}

// Dead reports whether the node was stopped.
func (n *Node) Dead() bool {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	return n.dead
}

// enter begins a call, with the lock held, and reports whether it has effect;
// leave ends it.
func (n *Node) enter() bool {
	n.net.mu.Lock()
	if n.dead {
		return false
	}
	n.calls++
	if n.calls == n.killAt && !n.after {
		n.dead = true
		n.kill()
		return false
	}
	return true
}

func (n *Node) leave() {
	if n.calls == n.killAt && n.after && !n.dead {
		n.dead = true
		n.kill()
	}
	n.net.mu.Unlock()
}

var errStopped = errors.New("paymentstest: node has stopped")

// Send implements payments.Carrier.
func (n *Node) Send(p *payments.Outgoing) error {
	defer n.leave()
	if !n.enter() {
		return errStopped
	}
	net := n.net
	if _, twice := net.flights[p.PartID]; twice {
		return errors.New("paymentstest: part id in flight")
	}
	f := &flight{out: *p, path: append(append([]peer.ID{n.self}, p.Via...), p.Dest)}
	net.flights[p.PartID] = f
	f.timers = append(f.timers, time.AfterFunc(net.Delay, func() { net.arrive(f) }))
	return nil
}

// arrive takes room on the way and offers the part to its payee.
func (n *Net) arrive(f *flight) {
	n.mu.Lock()
	defer n.mu.Unlock()
	amount := f.out.Amount
	f.amounts = nil
	for i := range len(f.path) - 1 {
		e := n.edges[[2]peer.ID{f.path[i], f.path[i+1]}]
		fail := payments.Failure{Hop: i}
		if e != nil && i > 0 {
			amount = amount.SaturatingSub(e.Fee)
		}
		switch {
		case e == nil:
			fail.Code = payments.FailNoRoute
		case e.Dead:
			fail.Code = payments.FailHop
		case e.Busy > 0:
			e.Busy--
			fail.Code = payments.FailBusy
		case e.Room < amount:
			fail.Code, fail.Most = payments.FailHeadroom, e.Room
		default:
			e.Room -= amount
			f.amounts = append(f.amounts, amount)
			continue
		}
		n.giveBack(f)
		n.decide(f, &payments.Answer{PartID: f.out.PartID, Failure: fail})
		return
	}
	f.held, f.arrived = true, true
	f.timers = append(f.timers,
		time.AfterFunc(time.Until(f.out.Expires), func() { n.expire(f, false) }),
		time.AfterFunc(time.Until(f.out.Expires.Add(LateHold)), func() { n.expire(f, true) }))
	n.offer(f)
}

func (n *Net) giveBack(f *flight) {
	for i, amount := range f.amounts {
		n.edges[[2]peer.ID{f.path[i], f.path[i+1]}].Room += amount
	}
	f.amounts, f.held = nil, false
}

// offer tells the payee, where it runs.
func (n *Net) offer(f *flight) {
	node := n.nodes[f.payee()]
	if node == nil || node.dead || node.handler == nil {
		return
	}
	a := &payments.Arrival{
		PartID: f.out.PartID, Hash: f.out.Condition, Point: f.out.Point, From: f.path[len(f.path)-2], Amount: f.amounts[len(f.amounts)-1],
		Expires: f.out.Expires.UnixMilli(), Data: f.out.Data,
	}
	node.tell(func() { node.handler.Part(a) })
}

// expire ends a part: at its expiry where the payee runs, and else when its payer
// is not bound any more.
func (n *Net) expire(f *flight, last bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	node := n.nodes[f.payee()]
	runs := node != nil && !node.dead && node.handler != nil
	if f.end != nil || !last && !runs {
		return
	}
	n.giveBack(f)
	n.decide(f, &payments.Answer{PartID: f.out.PartID, Failure: payments.Failure{Code: payments.FailHop, Hop: -1}})
	if runs {
		node.tell(func() { node.handler.Gone(f.out.PartID) })
	}
}

// decide is the one end of a part.
func (n *Net) decide(f *flight, a *payments.Answer) {
	f.end = a
	f.timers = append(f.timers, time.AfterFunc(n.Delay, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.answer(f)
	}))
}

// answer tells the payer, where it runs.
func (n *Net) answer(f *flight) {
	node := n.nodes[f.payer()]
	if node == nil || node.dead || node.handler == nil || n.flights[f.out.PartID] != f {
		return
	}
	node.tell(func() { node.handler.Answer(f.end) })
}

// Forget implements payments.Carrier.
func (n *Node) Forget(id payments.PartID) {
	defer n.leave()
	if !n.enter() {
		return
	}
	if f := n.net.flights[id]; f != nil && f.end != nil {
		f.stop()
		delete(n.net.flights, id)
	}
}

// Fulfil implements payments.Carrier. It is where money moves.
func (n *Node) Fulfil(id payments.PartID, preimage tally.Preimage, done func(error)) {
	defer n.leave()
	if !n.enter() {
		return
	}
	f := n.net.flights[id]
	switch {
	case f != nil && f.end != nil && f.end.Fulfilled:
		n.tell(func() { done(nil) })
		return
	case f == nil || !f.arrived || f.end != nil:
		n.tell(func() { done(payments.ErrGone) })
		return
	case f.out.Point == 0 && !preimage.Opens(f.out.Condition):
		panic("paymentstest: a payee fulfilled without the preimage")
	}
	for i, amount := range f.amounts {
		n.net.balances[f.path[i]] -= tally.Balance(amount)
		n.net.balances[f.path[i+1]] += tally.Balance(amount)
	}
	f.held = false
	n.net.decide(f, &payments.Answer{PartID: id, Fulfilled: true, Preimage: preimage})
	n.tell(func() { done(nil) })
}

// Reject implements payments.Carrier.
func (n *Node) Reject(id payments.PartID, code payments.FailCode, done func(error)) {
	defer n.leave()
	if !n.enter() {
		return
	}
	f := n.net.flights[id]
	if f == nil || !f.arrived || f.end != nil {
		n.tell(func() { done(payments.ErrGone) })
		return
	}
	n.net.giveBack(f)
	n.net.decide(f, &payments.Answer{PartID: id, Failure: payments.Failure{Code: code, Hop: len(f.path) - 1}})
	n.tell(func() { done(nil) })
}

// CertainBy implements payments.Carrier.
func (n *Node) CertainBy(expires time.Time, _ int) time.Time { return expires.Add(LateHold) }

func (n *Node) list(f func(*flight) bool) []payments.PartID {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	var ids []payments.PartID
	for id, x := range n.net.flights {
		if f(x) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b payments.PartID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

// Sent implements payments.Carrier.
func (n *Node) Sent(context.Context) ([]payments.PartID, error) {
	return n.list(func(f *flight) bool { return f.payer() == n.self }), nil
}

// Waiting implements payments.Carrier.
func (n *Node) Waiting(context.Context) ([]payments.PartID, error) {
	return n.list(func(f *flight) bool { return f.payee() == n.self && f.arrived && f.end == nil }), nil
}

// Start implements payments.Carrier.
func (n *Node) Start(h payments.Handler) {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	n.handler = h
	for _, f := range n.net.flights {
		if f.payer() == n.self && f.end != nil {
			n.net.answer(f)
		}
		if f.payee() == n.self && f.arrived && f.end == nil {
			n.net.offer(f)
		}
	}
}
