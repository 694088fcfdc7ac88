// Package paystreamtest carries packets between payment endpoints in memory: the
// twin of the hop engine, with rate, fees, loss, delay and restarts.
package paystreamtest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream"
)

// Way is what the hops from one peer to another do to packets.
type Way struct {
	// Rate is applied to each amount and rounded down; zero: 1. Fee is taken off.
	Rate paystream.Ratio
	Fee  tally.Amount
	// Delay is one way; Jitter is added at random, so that packets overtake.
	Delay, Jitter time.Duration
	// Loss is the share of packets that a hop rejects.
	Loss float64
	// Most is the largest packet that a hop carries; 0: any.
	Most tally.Amount
	// Tamper, where set, may change a packet, or answer it in the payee's place.
	Tamper func(in *paystream.Incoming) (answer *paystream.Answer)
}

// Net joins nodes. It is the part of the world that does not restart.
type Net struct {
	// mu guards the fields below.
	mu      sync.Mutex
	rng     *rand.Rand
	nodes   map[peer.ID]*Node
	ways    map[[2]peer.ID]*Way
	flights map[paystream.PacketID]*flight
	// stuck are packets whose payee stopped while it saved the fulfil: its disk
	// tells, after the restart, whether there was one.
	stuck map[peer.ID][]*paystream.Answer
	early map[peer.ID]bool
	kept  tally.Balance // what hops kept, in units where both sides have the same
}

type flight struct {
	payer  peer.ID
	by     *Node               // in whose life it left
	sent   *paystream.Outgoing // nil: answered in that life
	answer *paystream.Answer   // nil: undecided
}

// NewNet returns a network whose chances are drawn from seed.
func NewNet(seed uint64) *Net {
	return &Net{
		rng: rand.New(rand.NewPCG(seed, 1)), nodes: make(map[peer.ID]*Node),
		ways: make(map[[2]peer.ID]*Way), flights: make(map[paystream.PacketID]*flight),
		stuck: make(map[peer.ID][]*paystream.Answer), early: make(map[peer.ID]bool),
	}
}

// SetWay sets what happens from one peer to another.
func (n *Net) SetWay(from, to peer.ID, w Way) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ways[[2]peer.ID{from, to}] = &w
}

// FulfilFirst weakens the carrier of a payee, for tests: its fulfils leave before
// they are saved.
func (n *Net) FulfilFirst(payee peer.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.early[payee] = true
}

// Kept returns what hops have kept in all.
func (n *Net) Kept() tally.Balance {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.kept
}

// Node is the carrier of one endpoint.
type Node struct {
	net     *Net
	self    peer.ID
	handler paystream.Handler
	store   *durable.Store
	dead    bool

	// line orders batches: it is held from filling one until it is queued.
	line sync.Mutex
}

// Save implements paystream.Carrier.
func (n *Node) Save(r paystream.Record) error {
	if n.store == nil {
		return nil
	}
	n.line.Lock()
	defer n.line.Unlock()
	var b durable.Batch
	r(&b)
	n.store.Submit(&b, func(error) {})
	return nil
}

// commit fills a batch, queues it, and waits until it is synced. fill returns false
// where there is nothing to save.
func (n *Node) commit(fill func(*durable.Batch) bool) error {
	done := make(chan error, 1)
	var b durable.Batch
	n.line.Lock()
	ok := fill(&b) && n.store != nil
	if ok {
		n.store.Submit(&b, func(err error) { done <- err })
	}
	n.line.Unlock()
	if !ok {
		return nil
	}
	return <-done
}

const (
	carrierPrefix = "/carrier/out/"
	takenPrefix   = "/carrier/in/"
)

// Join adds a node, or the restart of one: packets of its last life are answered
// again. store is where records go; nil in memory mode.
func (n *Net) Join(self peer.ID, h paystream.Handler, store *durable.Store) *Node {
	node := &Node{net: n, self: self, handler: h, store: store}
	n.mu.Lock()
	if old := n.nodes[self]; old != nil {
		old.dead = true
	}
	n.nodes[self] = node
	n.mu.Unlock()
	return node
}

// Resume answers what the last life left undecided or did not note. It is called
// after Endpoint.Start.
func (n *Node) Resume(ctx context.Context) error {
	if n.store == nil {
		return nil
	}
	var ids []paystream.PacketID
	err := n.store.Scan(ctx, carrierPrefix, "", func(key string, _ []byte) error {
		raw, err := durable.ParseKeyID(key[len(carrierPrefix):])
		if err == nil {
			ids = append(ids, paystream.PacketID(raw))
		}
		return err
	})
	if err != nil {
		return err
	}
	n.net.mu.Lock()
	stuck := n.net.stuck[n.self]
	delete(n.net.stuck, n.self)
	n.net.mu.Unlock()
	for _, a := range stuck {
		_, err := n.store.Get(ctx, takenPrefix+durable.KeyID(a.ID[:]))
		if errors.Is(err, durable.ErrNotFound) {
			a = &paystream.Answer{ID: a.ID, Kind: paystream.RejectTemporary}
		} else if err != nil {
			return err
		}
		n.net.answer(a)
	}
	for _, id := range ids {
		n.net.mu.Lock()
		f := n.net.flights[id]
		var a *paystream.Answer
		switch {
		case f == nil:
			a = &paystream.Answer{ID: id} // saved, and stopped before it left
		case f.answer != nil:
			a = f.answer
		}
		n.net.mu.Unlock()
		if a != nil {
			n.deliver(a)
		}
	}
	return nil
}

// Send implements paystream.Carrier.
func (n *Node) Send(p *paystream.Outgoing) error {
	if n.store != nil && p.Record != nil {
		err := n.commit(func(b *durable.Batch) bool {
			p.Record(b)
			b.Put(carrierPrefix+durable.KeyID(p.ID[:]), []byte{1})
			return true
		})
		if err != nil {
			return err
		}
	}
	net := n.net
	net.mu.Lock()
	defer net.mu.Unlock()
	if n.dead {
		return errors.New("paystreamtest: node has stopped")
	}
	net.flights[p.ID] = &flight{payer: n.self, by: n, sent: p}
	way := net.ways[[2]peer.ID{n.self, p.Dest.Peer}]
	if way == nil {
		way = &Way{}
	}
	w := *way
	in := &paystream.Incoming{
		ID: p.ID, From: n.self, Token: p.Dest.Token, Amount: p.Amount, Expires: p.Expires, Condition: p.Condition, Data: bytes.Clone(p.Data),
	}
	lost := w.Loss > 0 && net.rng.Float64() < w.Loss
	there, back := net.delay(w), net.delay(w)
	dest := p.Dest.Peer
	time.AfterFunc(there, func() {
		a := net.arrive(in, dest, w, lost)
		if a != nil {
			time.AfterFunc(back, func() { net.answer(a) })
		}
	})
	return nil
}

func (n *Net) delay(w Way) time.Duration {
	d := w.Delay
	if w.Jitter > 0 {
		d += time.Duration(n.rng.Int64N(int64(w.Jitter)))
	}
	return max(d, time.Microsecond)
}

// arrive takes a packet over the hops to the payee and returns its end, or nil
// where the payee has to restart first.
func (n *Net) arrive(in *paystream.Incoming, dest peer.ID, w Way, lost bool) *paystream.Answer {
	gave := in.Amount
	if lost {
		return &paystream.Answer{ID: in.ID, Kind: paystream.RejectTemporary}
	}
	if w.Most > 0 && gave > w.Most {
		return &paystream.Answer{ID: in.ID, Kind: paystream.RejectLarge, Most: w.Most}
	}
	if w.Rate.Valid() && gave > 0 {
		in.Amount, _ = w.Rate.Floor(gave)
	}
	in.Amount = in.Amount.SaturatingSub(w.Fee)
	if w.Tamper != nil {
		if a := w.Tamper(in); a != nil {
			return a
		}
	}
	n.mu.Lock()
	node, early := n.nodes[dest], n.early[dest]
	n.mu.Unlock()
	if node == nil {
		return &paystream.Answer{ID: in.ID, Kind: paystream.RejectTemporary}
	}
	var d paystream.Decision
	err := node.commit(func(b *durable.Batch) bool {
		d = node.handler.Packet(in)
		d.Data = bytes.Clone(d.Data)
		if !d.Fulfil {
			return false
		}
		if !d.Preimage.Opens(in.Condition) {
			panic("paystreamtest: an endpoint fulfilled without the preimage")
		}
		if d.Record != nil {
			d.Record(b)
		}
		b.Put(takenPrefix+durable.KeyID(in.ID[:]), []byte{1})
		return true
	})
	if err != nil && !early {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.stuck[dest] = append(n.stuck[dest], &paystream.Answer{ID: in.ID, Fulfilled: true, Data: d.Data})
		return nil
	}
	if !d.Fulfil {
		return &paystream.Answer{ID: in.ID, Kind: paystream.RejectLimit, Data: d.Data}
	}
	n.mu.Lock()
	n.kept += tally.Balance(gave) - tally.Balance(in.Amount)
	n.mu.Unlock()
	return &paystream.Answer{ID: in.ID, Fulfilled: true, Data: d.Data}
}

// answer brings the end of a packet to whoever is its payer now.
func (n *Net) answer(a *paystream.Answer) {
	n.mu.Lock()
	f := n.flights[a.ID]
	var node *Node
	if f != nil {
		f.answer = a
		node = n.nodes[f.payer]
	}
	n.mu.Unlock()
	if node != nil {
		node.deliver(a)
	}
}

func (n *Node) deliver(a *paystream.Answer) {
	n.net.mu.Lock()
	dead := n.dead
	told := *a // the answer of this life
	if f := n.net.flights[a.ID]; f != nil && f.by == n {
		told.Sent, f.sent = f.sent, nil
	}
	n.net.mu.Unlock()
	if dead {
		return
	}
	if n.store == nil {
		n.handler.Answer(&told)
		n.net.mu.Lock()
		delete(n.net.flights, a.ID)
		n.net.mu.Unlock()
		return
	}
	_ = n.Save(func(b *durable.Batch) {
		if record := n.handler.Answer(&told); record != nil {
			record(b)
		}
		b.Delete(carrierPrefix + durable.KeyID(a.ID[:]))
	})
}

// Stop cuts a node off: nothing reaches it or leaves it any more, as after a kill.
func (n *Node) Stop() {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	n.dead = true
	delete(n.net.nodes, n.self)
}
