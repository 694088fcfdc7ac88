package route

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// Bounds of a graph.
const (
	// MaxNodes and MaxEdges bound what adverts can make grow.
	MaxNodes = 1 << 16
	MaxEdges = 1 << 19
	// maxKnown bounds the edges that something is known of beside the graph's, those
	// of hints.
	maxKnown = 1 << 12
)

const (
	// Memory is how long a result is believed: tabs are settled meanwhile.
	Memory = 10 * time.Minute
	// Rest is how long an edge is left out whose hop failed.
	Rest = time.Minute
	// BusyRest is how long one is whose hop was busy, or had too little time or too much,
	// which teaches nothing of what it carries: slots and places are free again soon, a
	// channel in the making is ready, and the next part has another time.
	BusyRest = 2 * time.Second
)

// ErrGraph: an edge that cannot be.
var ErrGraph = errors.New("route: bad edge")

// Edge is what a node offers to carry to another.
type Edge struct {
	From, To peer.ID
	// Capacity is the most that it can ever carry at once.
	Capacity tally.Amount
	// Min and Max are of one part; Max 0: the capacity.
	Min, Max tally.Amount
	// FeeBase and FeePPM, parts per million of what comes in, are what From keeps.
	FeeBase tally.Amount
	FeePPM  uint32
}

func (e *Edge) validate() error {
	switch {
	case e.From == "" || e.To == "" || e.From == e.To:
		return fmt.Errorf("%w: it has to join two peers", ErrGraph)
	case e.Capacity == 0 || e.Capacity >= payments.MaxTotal || e.Min > e.Capacity || e.FeeBase >= payments.MaxTotal:
		return fmt.Errorf("%w: capacity %d, min %d, fee %d", ErrGraph, e.Capacity, e.Min, e.FeeBase)
	case e.FeePPM >= 1_000_000:
		return fmt.Errorf("%w: fee of %d parts per million is the whole", ErrGraph, e.FeePPM)
	default:
		return nil
	}
}

// known is what results have taught about an edge.
type known struct {
	// Invariant: lo ≤ hi. They hold until forget.
	lo, hi tally.Amount
	forget int64 // ms
	rest   int64 // left out until then
	// reserved is in flight.
	reserved tally.Amount
}

// edge is one of the graph, between node numbers.
type edge struct {
	Edge
	from, to int32
	known    *known
}

// bounds returns what passes for sure and what may, beside what is in flight.
func (e *edge) bounds(now int64) (lo, hi tally.Amount) {
	k := e.known
	hi = e.Capacity
	if e.Max > 0 {
		hi = min(hi, e.Max)
	}
	if now < k.rest {
		return 0, 0
	}
	if now < k.forget {
		lo, hi = min(k.lo, hi), min(k.hi, hi)
	}
	return lo.SaturatingSub(k.reserved), hi.SaturatingSub(k.reserved)
}

// rested is when all edges are back whose rest ends in a moment; now where there is none.
func (g *Graph) rested(now int64) int64 {
	at := now
	for i := range g.edges {
		if rest := g.edges[i].known.rest; rest <= now+BusyRest.Milliseconds() {
			at = max(at, rest)
		}
	}
	return at
}

// Graph is who carries what to whom.
type Graph struct {
	number map[peer.ID]int32
	edges  []edge
	index  map[[2]peer.ID]int32
	out    [][]int32 // edges by node
	in     [][]int32
}

// NewGraph returns an empty graph.
func NewGraph() *Graph {
	return &Graph{number: make(map[peer.ID]int32), index: make(map[[2]peer.ID]int32)}
}

// Nodes counts the nodes.
func (g *Graph) Nodes() int { return len(g.out) }

// Edges counts the edges.
func (g *Graph) Edges() int { return len(g.edges) }

func (g *Graph) node(p peer.ID) int32 {
	n, ok := g.number[p]
	if !ok {
		n = int32(len(g.out))
		g.number[p] = n
		g.out, g.in = append(g.out, nil), append(g.in, nil)
	}
	return n
}

// Set adds an edge, or puts it in the place of the one between the same two; what
// is known of it stays.
func (g *Graph) Set(e Edge) error {
	if err := e.validate(); err != nil {
		return err
	}
	if i, ok := g.index[[2]peer.ID{e.From, e.To}]; ok {
		g.edges[i].Edge = e
		return nil
	}
	if len(g.edges) >= MaxEdges || len(g.out)+2 > MaxNodes {
		return fmt.Errorf("%w: %d nodes and %d edges are the most", ErrGraph, MaxNodes, MaxEdges)
	}
	g.add(e, new(known))
	return nil
}

// SetOwn is Set of an edge of ours, whose capacity is what fits now, for certain.
func (g *Graph) SetOwn(e Edge) error {
	if err := g.Set(e); err != nil {
		return err
	}
	k := g.edges[g.index[[2]peer.ID{e.From, e.To}]].known
	k.lo, k.hi, k.forget, k.reserved = e.Capacity, e.Capacity, math.MaxInt64, 0
	return nil
}

// Close leaves an edge out until it is set again.
func (g *Graph) Close(from, to peer.ID) {
	if i, ok := g.index[[2]peer.ID{from, to}]; ok {
		g.edges[i].Capacity = 0
	}
}

func (g *Graph) add(e Edge, k *known) {
	i := int32(len(g.edges))
	from, to := g.node(e.From), g.node(e.To)
	g.edges = append(g.edges, edge{Edge: e, from: from, to: to, known: k})
	g.index[[2]peer.ID{e.From, e.To}] = i
	g.out[from] = append(g.out[from], i)
	g.in[to] = append(g.in[to], i)
}

// drop takes the last edge away again, and the nodes that came with it.
func (g *Graph) drop(nodes int) {
	e := &g.edges[len(g.edges)-1]
	delete(g.index, [2]peer.ID{e.From, e.To})
	g.out[e.from] = g.out[e.from][:len(g.out[e.from])-1]
	g.in[e.to] = g.in[e.to][:len(g.in[e.to])-1]
	for _, p := range []peer.ID{e.From, e.To} {
		if int(g.number[p]) >= nodes {
			delete(g.number, p)
		}
	}
	g.edges = g.edges[:len(g.edges)-1]
	g.out, g.in = g.out[:nodes], g.in[:nodes]
}

const million = 1_000_000

// before returns the least that has to come in for amount to go out over e, and
// false where it does not fit.
func (e *Edge) before(amount tally.Amount) (tally.Amount, bool) {
	sum, err := amount.Add(e.FeeBase)
	if err != nil || sum >= payments.MaxTotal {
		return 0, false
	}
	// in × (10^6 − ppm) ≥ sum × 10^6, and the fee is rounded up.
	hi, lo := bits.Mul64(uint64(sum), million)
	keep := uint64(million - e.FeePPM)
	if hi >= keep {
		return 0, false
	}
	in, rest := bits.Div64(hi, lo, keep)
	if rest > 0 {
		in++
	}
	return tally.Amount(in), tally.Amount(in) < payments.MaxTotal
}

// weights is what a way costs: nats of failure, and fees in units.
type weights struct {
	perFee float64 // nats per unit of fee
	unit   float64 // the amount of one step of flow
}

// pieces are the shares of what is uncertain after which its slope changes; the
// last sixteenth is never used, because its slope has no end.
var pieces = [...]float64{0, 0.5, 0.75, 0.9375}

// slope is −ln P per share on the piece that ends at pieces[i].
var slopes = func() (s [len(pieces)]float64) {
	for i := 1; i < len(pieces); i++ {
		s[i] = (math.Log(1-pieces[i-1]) - math.Log(1-pieces[i])) / (pieces[i] - pieces[i-1])
	}
	return s
}()

// piece returns the cost of one more step over e where flow steps go already, and
// how many steps cost the same; 0 steps: it is full.
func (e *edge) piece(now int64, w *weights, flow int32, payer int32) (cost float64, steps int32) {
	lo, hi := e.bounds(now)
	safe, most := float64(lo)/w.unit, float64(hi)/w.unit
	if most < 1 {
		return 0, 0
	}
	f := float64(flow)
	// A base is paid once for a part, which is grain/MaxSplit steps in the mean.
	fee := 0.0
	if e.from != payer {
		fee = w.perFee * (w.unit*float64(e.FeePPM)/million + float64(e.FeeBase)*MaxSplit/grain)
	}
	const tiny = 1e-9 // per hop, so that of two certain ways the shorter is taken
	if left := math.Floor(safe - f); left >= 1 {
		return tiny + fee, int32(min(left, math.MaxInt32/2))
	}
	wide := most - safe
	for i := 1; i < len(pieces); i++ {
		if left := math.Floor(safe + wide*pieces[i] - f); left >= 1 {
			return tiny + fee + slopes[i]/max(wide, 1), int32(min(left, math.MaxInt32/2))
		}
	}
	return 0, 0
}

// Probability is how likely amount passes over the edge between two peers.
func (g *Graph) Probability(now time.Time, from, to peer.ID, amount tally.Amount) float64 {
	i, ok := g.index[[2]peer.ID{from, to}]
	if !ok {
		return 0
	}
	lo, hi := g.edges[i].bounds(now.UnixMilli())
	switch {
	case amount > hi:
		return 0
	case amount <= lo:
		return 1
	default:
		return float64(hi+1-amount) / float64(hi+1-lo)
	}
}

// Check returns the first broken invariant, by name.
func (g *Graph) Check() error {
	for i := range g.edges {
		e := &g.edges[i]
		if k := e.known; k.lo > k.hi {
			return fmt.Errorf("route: invariant broken: bounds: %s to %s: %d above %d", e.From, e.To, k.lo, k.hi)
		}
		if g.index[[2]peer.ID{e.From, e.To}] != int32(i) || !slices.Contains(g.out[e.from], int32(i)) || !slices.Contains(g.in[e.to], int32(i)) {
			return fmt.Errorf("route: invariant broken: index: edge %d", i)
		}
	}
	if len(g.index) != len(g.edges) || len(g.number) != len(g.out) || len(g.out) != len(g.in) {
		return errors.New("route: invariant broken: index: counts differ")
	}
	return nil
}
