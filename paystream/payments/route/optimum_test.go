package route

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// flowCost is what steps over each edge cost together, and false where one does not
// carry as many.
func flowCost(g *Graph, now int64, w *weights, src int32, flow func(i int32) int32) (sum float64, fits bool) {
	for i := range int32(len(g.edges)) {
		for f := range flow(i) {
			cost, room := g.edges[i].piece(now, w, f, src)
			if room < 1 {
				return 0, false
			}
			sum += cost
		}
	}
	return sum, true
}

// cheapest tries every flow of want steps from src to dst that there is.
func cheapest(g *Graph, now int64, w *weights, src, dst, want int32) float64 {
	best := math.Inf(1)
	flow := make([]int32, len(g.edges))
	var try func(i int)
	try = func(i int) {
		if i < len(flow) {
			for flow[i] = 0; flow[i] <= min(want, int32(g.edges[i].Capacity)); flow[i]++ {
				try(i + 1)
			}
			flow[i] = 0
			return
		}
		net := make([]int32, len(g.out))
		for k, f := range flow {
			net[g.edges[k].from] -= f
			net[g.edges[k].to] += f
		}
		for n, sum := range net {
			switch {
			case int32(n) == src && sum != -want, int32(n) == dst && sum != want, int32(n) != src && int32(n) != dst && sum != 0:
				return
			}
		}
		if cost, fits := flowCost(g, now, w, src, func(k int32) int32 { return flow[k] }); fits {
			best = min(best, cost)
		}
	}
	try(0)
	return best
}

// TestFlowIsTheCheapest compares the flow with the best of all flows, on graphs that are
// small enough to try each: with fees, with what is certain and with what is in flight.
// Where there is none, none is found.
func TestFlowIsTheCheapest(t *testing.T) {
	names := []peer.ID{"A", "D", "B", "C"}
	const now, src, dst = 1, 0, 1
	seeds := uint64(8000) // a flow that has to be taken back is rare
	if testing.Short() {
		seeds = 1000
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 7))
		g := NewGraph()
		for _, n := range names {
			g.node(n)
		}
		// All edges that a way from A to D over B and C can have.
		for _, way := range []string{"AB", "AC", "BC", "CB", "BD", "CD", "AD"} {
			if rng.IntN(8) == 0 {
				continue
			}
			capacity := 1 + rng.IntN(5)
			e := Edge{
				From: peer.ID(way[:1]), To: peer.ID(way[1:]), Capacity: tally.Amount(capacity),
				FeePPM: []uint32{0, 1000, 50_000, 200_000}[rng.IntN(4)],
			}
			if err := g.Set(e); err != nil {
				t.Fatal(err)
			}
			k := g.edges[len(g.edges)-1].known
			k.hi, k.forget = e.Capacity, math.MaxInt64
			k.lo = e.Capacity - tally.Amount([]int{0, 0, 1, capacity}[rng.IntN(4)])
			if rng.IntN(10) == 0 {
				k.reserved = 1
			}
		}
		want := int32(1 + rng.IntN(5))
		w := &weights{unit: 1, perFee: []float64{0, 1, 25}[rng.IntN(3)]}
		best := cheapest(g, now, w, src, dst, want)
		s := newSearch(g, now, w, src)
		for s.total < want && s.augment(dst, want-s.total) {
		}
		switch {
		case s.total > want:
			t.Fatalf("seed %d: %d steps of %d", seed, s.total, want)
		case s.total < want && !math.IsInf(best, 1):
			t.Fatalf("seed %d: %d steps of %d, and there is a flow that costs %g", seed, s.total, want, best)
		case s.total < want:
			continue
		}
		got, fits := flowCost(g, now, w, src, func(i int32) int32 { return s.flow[i] })
		if !fits || math.Abs(got-best) > 1e-6 {
			t.Fatalf("seed %d: the flow costs %g (fits %t), the cheapest %g", seed, got, fits, best)
		}
		steps := int32(0)
		for _, p := range s.decompose(dst) {
			steps += p.steps
		}
		if steps != want {
			t.Fatalf("seed %d: paths of %d steps, flow of %d", seed, steps, want)
		}
	}
}
