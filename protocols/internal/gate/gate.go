// Package gate bounds the streams of peers that a service answers at a time.
//
//	       Enter             Answered            Leave
//	stream -----> works here --------> answering -----> gone
//	   |            at most Limits         |
//	   |  Enter                            | with those that work:
//	   +-----> busy, to be told so --------+ at most openFactor times Limits
//	   |  Enter
//	   +-----> nil: reset it
//
// A place is given back before the answer leaves. If it were given back after, a peer that
// asks one thing after the other could find the places taken by its own streams, whose
// answers it has read, while our side has not come to closing them.
package gate

import (
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

// openFactor times the limits is how many streams may be open, those included that are
// told that there are too many, or whose answer is on its way.
const openFactor = 4

// Limits are how many requests are worked on at a time.
type Limits struct {
	Total int // of all peers
	Peer  int // of one peer
}

// count is what is open, and what of it is worked on.
type count struct{ open, work int }

// fits reports whether one more may be open, and worked on.
func (c count) fits(limit int) (open, work bool) {
	return c.open < openFactor*limit, c.work < limit
}

// Gate counts the streams of one service. Its methods may be called at the same time.
type Gate struct {
	limits Limits

	// mu guards the fields below.
	mu    sync.Mutex
	shut  bool
	all   count
	peers map[peer.ID]count // without those that have none open
	inner sync.WaitGroup    // Add under mu while shut is false
}

// New returns a gate that lets streams in until Shut.
func New(limits Limits) *Gate {
	return &Gate{limits: limits, peers: make(map[peer.ID]count)}
}

// Pass is one stream inside. Its methods are for the goroutine that has it.
type Pass struct {
	gate  *Gate
	peer  peer.ID
	busy  bool
	works bool // until it is answered
}

// Enter lets a stream of p in, or returns nil: too many are open, or the gate is shut.
// Who gets a pass calls its Leave.
func (g *Gate) Enter(p peer.ID) *Pass {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.peers[p]
	open, work := g.all.fits(g.limits.Total)
	openPeer, workPeer := c.fits(g.limits.Peer)
	if g.shut || !open || !openPeer {
		return nil
	}
	pass := &Pass{gate: g, peer: p, works: work && workPeer}
	pass.busy = !pass.works
	n := count{open: 1}
	if pass.works {
		n.work = 1
	}
	g.add(p, n)
	g.inner.Add(1)
	return pass
}

// add is called under mu.
func (g *Gate) add(p peer.ID, n count) {
	g.all.open += n.open
	g.all.work += n.work
	c := g.peers[p]
	c.open += n.open
	c.work += n.work
	if c == (count{}) {
		delete(g.peers, p)
		return
	}
	g.peers[p] = c
}

// Working is how many requests of p are worked on.
func (g *Gate) Working(p peer.ID) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.peers[p].work
}

// Shut lets no more in and waits until all have left.
func (g *Gate) Shut() {
	g.mu.Lock()
	g.shut = true
	g.mu.Unlock()
	g.inner.Wait()
}

// Busy reports that there was no place to work for this stream when it came.
func (p *Pass) Busy() bool { return p.busy }

// Answered gives the place to work back. The answer is ready to leave.
func (p *Pass) Answered() {
	if !p.works {
		return
	}
	p.works = false
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	p.gate.add(p.peer, count{work: -1})
}

// Leave is the end of the stream.
func (p *Pass) Leave() {
	p.Answered()
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	p.gate.add(p.peer, count{open: -1})
	p.gate.inner.Done()
}
