package route

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

var t0 = time.UnixMilli(1_700_000_000_000)

func graphOf(t testing.TB, edges ...Edge) *Graph {
	t.Helper()
	g := NewGraph()
	for _, e := range edges {
		if err := g.Set(e); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

func edgeOf(from, to peer.ID, capacity tally.Amount) Edge {
	return Edge{From: from, To: to, Capacity: capacity}
}

func request(amount, maxFee tally.Amount) *payments.Request {
	return &payments.Request{Dest: "D", Amount: amount, MaxFee: maxFee, MaxParts: payments.MaxParts}
}

// sound carries the legs over the graph as hops do, with the fees that they take,
// and fails where a plan is wrong.
func sound(t failer, g *Graph, now time.Time, r *payments.Request, legs []payments.Leg) {
	t.Helper()
	if len(legs) == 0 || len(legs) > MaxSplit || len(legs) > r.MaxParts {
		t.Fatalf("%d legs", len(legs))
	}
	used := make(map[[2]peer.ID]tally.Amount)
	var sum, fees tally.Amount
	for _, l := range legs {
		amount := l.Amount + l.Fee
		path := append(append([]peer.ID{"A"}, l.Via...), r.Dest)
		seen := make(map[peer.ID]bool)
		for i := range len(path) - 1 {
			x, ok := g.index[[2]peer.ID{path[i], path[i+1]}]
			if !ok || seen[path[i]] {
				t.Fatalf("no edge %s to %s, or a loop", path[i], path[i+1])
			}
			seen[path[i]] = true
			e := &g.edges[x]
			if i > 0 { // as forward.Rules.Fee
				amount -= amount/million*tally.Amount(e.FeePPM) + (amount%million*tally.Amount(e.FeePPM)+million-1)/million + e.FeeBase
			}
			used[[2]peer.ID{path[i], path[i+1]}] += amount
			if _, hi := e.bounds(now.UnixMilli()); used[[2]peer.ID{path[i], path[i+1]}] > hi || amount < e.Min {
				t.Fatalf("%d over %s to %s, which carries %d to %d", amount, path[i], path[i+1], e.Min, hi)
			}
		}
		if amount < l.Amount || amount > l.Amount+tally.Amount(len(path)) {
			t.Fatalf("%d arrives, wanted %d", amount, l.Amount)
		}
		sum += l.Amount
		fees += l.Fee
	}
	if sum != r.Amount || fees > r.MaxFee {
		t.Fatalf("sum %d of %d, fees %d of %d", sum, r.Amount, fees, r.MaxFee)
	}
}

type failer interface {
	Helper()
	Fatalf(string, ...any)
}

func diamond(t testing.TB, room tally.Amount) *Graph {
	return graphOf(t, edgeOf("A", "B", room), edgeOf("B", "D", room), edgeOf("A", "C", room), edgeOf("C", "D", room))
}

func TestSplitsWhatNoWayCarries(t *testing.T) {
	g := diamond(t, 1000)
	f := NewFinder("A", g)
	for _, amount := range []tally.Amount{1, 500, 1001, 1500, 1800} {
		r := request(amount, 0)
		legs, err := f.Plan(t0, r)
		if err != nil {
			t.Fatalf("%d: %v", amount, err)
		}
		sound(t, g, t0, r, legs)
		if amount > 1000 && len(legs) < 2 {
			t.Fatalf("%d in %d legs", amount, len(legs))
		}
	}
	if _, err := f.Plan(t0, request(2001, 0)); !errors.Is(err, payments.ErrNoRoute) {
		t.Fatal(err)
	}
	if _, err := f.Plan(t0, &payments.Request{Dest: "nobody", Amount: 1, MaxParts: 1}); !errors.Is(err, payments.ErrNoRoute) {
		t.Fatal(err)
	}
}

func TestFees(t *testing.T) {
	dear, cheap := edgeOf("B", "D", 10_000), edgeOf("C", "D", 10_000)
	dear.FeePPM, cheap.FeePPM, cheap.FeeBase = 50_000, 333, 7
	g := graphOf(t, edgeOf("A", "B", 10_000), dear, edgeOf("A", "C", 10_000), cheap)
	f := NewFinder("A", g)
	r := request(1000, 20)
	legs, err := f.Plan(t0, r)
	if err != nil || len(legs) != 1 || legs[0].Via[0] != "C" || legs[0].Fee != 8 {
		t.Fatalf("%+v, %v", legs, err)
	}
	sound(t, g, t0, r, legs)
	if _, err := f.Plan(t0, request(1000, 7)); !errors.Is(err, payments.ErrNoRoute) {
		t.Fatal(err)
	}
}

// TestBefore: what comes in is the least from which the fee leaves the amount.
func TestBefore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := &edge{Edge: Edge{
			FeeBase: tally.Amount(rapid.Uint64Range(0, 1000).Draw(t, "base")),
			FeePPM:  rapid.Uint32Range(0, 999_999).Draw(t, "ppm"),
		}}
		amount := tally.Amount(rapid.Uint64Range(1, 1<<40).Draw(t, "amount"))
		left := func(in tally.Amount) tally.Amount {
			ppm := tally.Amount(e.FeePPM)
			return in.SaturatingSub(in/million*ppm + (in%million*ppm+million-1)/million + e.FeeBase)
		}
		in, ok := e.before(amount)
		if !ok || left(in) < amount || in > 0 && left(in-1) >= amount && e.FeePPM > 0 {
			t.Fatalf("%d in leaves %d of %d", in, left(in), amount)
		}
	})
	if _, ok := (&edge{Edge: Edge{FeePPM: 999_999}}).before(payments.MaxTotal - 1); ok {
		t.Fatal("an amount above 2^62")
	}
}

// TestHalving: a flow that would send less than an edge's least part is replaced.
func TestHalving(t *testing.T) {
	var edges []Edge
	for _, p := range []peer.ID{"B", "C", "E", "F"} {
		out := edgeOf(p, "D", 300)
		out.Min = 240
		edges = append(edges, edgeOf("A", p, 300), out)
	}
	g := graphOf(t, edges...)
	r := request(1000, 0)
	legs, err := NewFinder("A", g).Plan(t0, r)
	if err != nil || len(legs) != 4 {
		t.Fatalf("%+v, %v", legs, err)
	}
	sound(t, g, t0, r, legs)
}

func TestMaxSplit(t *testing.T) {
	var edges []Edge
	for i := range 10 {
		p := peer.ID(fmt.Sprint("hop", i))
		edges = append(edges, edgeOf("A", p, 100), edgeOf(p, "D", 100))
	}
	f := NewFinder("A", graphOf(t, edges...))
	if _, err := f.Plan(t0, request(900, 0)); !errors.Is(err, payments.ErrNoRoute) {
		t.Fatal(err)
	}
	r := request(600, 0)
	legs, err := f.Plan(t0, r)
	if err != nil {
		t.Fatal(err)
	}
	sound(t, f.graph, t0, r, legs)
	r.MaxParts = 3
	if _, err := f.Plan(t0, r); !errors.Is(err, payments.ErrNoRoute) {
		t.Fatal(err)
	}
}

// TestLearns: results move bounds in their direction, and are forgotten.
func TestLearns(t *testing.T) {
	g := diamond(t, 1000)
	f := NewFinder("A", g)
	over := func(p peer.ID, n tally.Amount) *payments.Leg { return &payments.Leg{Via: []peer.ID{p}, Amount: n} }
	chance := func(now time.Time, p peer.ID, n tally.Amount) float64 { return g.Probability(now, p, "D", n) }

	f.Sent(t0, "D", over("B", 600))
	f.Failed(t0, "D", over("B", 600), payments.Failure{Code: payments.FailHeadroom, Hop: 1, Most: 400})
	if chance(t0, "B", 401) != 0 || chance(t0, "B", 400) == 0 || g.Probability(t0, "A", "B", 600) != 1 {
		t.Fatal("bounds of a failure")
	}
	legs, err := f.Plan(t0, request(600, 0))
	if err != nil {
		t.Fatal(err)
	}
	sound(t, g, t0, request(600, 0), legs) // at most 400 over B
	later := t0.Add(Memory)
	if chance(later, "B", 600) == 0 {
		t.Fatal("remembered for ever")
	}

	f.Sent(t0, "D", over("C", 500))
	if chance(t0, "C", 501) != 0 {
		t.Fatal("what is in flight is not reserved")
	}
	f.Failed(t0, "D", over("C", 500), payments.Failure{Code: payments.FailTimeout, Hop: -1})
	if chance(t0, "C", 500) != 1 || chance(t0, "C", 1000) == 0 {
		t.Fatal("a part that arrived has shown that it passes")
	}
	f.Sent(t0, "D", over("C", 500))
	f.Done(t0, "D", over("C", 500))
	if chance(t0, "C", 501) != 0 || chance(t0, "C", 500) == 0 || chance(t0, "C", 500) == 1 {
		t.Fatal("what was paid is used up")
	}

	f.Failed(t0, "D", over("C", 100), payments.Failure{Code: payments.FailHop, Hop: 1})
	if chance(t0, "C", 1) != 0 || chance(t0.Add(Rest), "C", 1) == 0 {
		t.Fatal("an edge that failed rests for a while")
	}
	later = t0.Add(Rest)
	for _, code := range []payments.FailCode{payments.FailBusy, payments.FailExpiry} {
		before := chance(later, "C", 900)
		f.Failed(later, "D", over("C", 900), payments.Failure{Code: code, Hop: 1})
		after := later.Add(BusyRest)
		if chance(later, "C", 1) != 0 || chance(after, "C", 900) < before || BusyRest >= Rest {
			t.Fatalf("%v: one that was busy rests for a moment, and nothing is learnt of it", code)
		}
		later = after
	}
	if err := g.Check(); err != nil {
		t.Fatal(err)
	}
}

// TestRestsForAMoment: where there would be a way but for a hop that was busy, the plan
// says when, and it is there then. What failed for longer, or is too small, says nothing.
func TestRestsForAMoment(t *testing.T) {
	over := &payments.Leg{Via: []peer.ID{"B"}, Amount: 600}
	for name, tt := range map[string]struct {
		code   payments.FailCode
		amount tally.Amount
		rests  bool
	}{
		"busy": {payments.FailBusy, 600, true}, "at the wrong time": {payments.FailExpiry, 600, true},
		"failed": {payments.FailHop, 600, false}, "too small": {payments.FailBusy, 1001, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := NewFinder("A", graphOf(t, edgeOf("A", "B", 1000), edgeOf("B", "D", 1000)))
			f.Sent(t0, "D", over)
			f.Failed(t0, "D", over, payments.Failure{Code: tt.code, Hop: 1})
			now := t0.Add(time.Second)
			_, err := f.Plan(now, request(tt.amount, 0))
			rest, rests := errors.AsType[*payments.RestError](err)
			if !errors.Is(err, payments.ErrNoRoute) || rests != tt.rests || rests && !rest.Until.Equal(t0.Add(BusyRest)) {
				t.Fatalf("%+v", err)
			}
			if !rests {
				return
			}
			if _, err := f.Plan(rest.Until.Add(-time.Millisecond), request(tt.amount, 0)); err == nil {
				t.Fatal("it rests until then")
			}
			legs, err := f.Plan(rest.Until, request(tt.amount, 0))
			if err != nil {
				t.Fatal(err)
			}
			sound(t, f.graph, rest.Until, request(tt.amount, 0), legs)
		})
	}
}

// TestCarriesMoreThanItHoldsAtOnce: a tab that is settled as it fills carries payment
// after payment, and what is paid is not counted against it.
func TestCarriesMoreThanItHoldsAtOnce(t *testing.T) {
	f := NewFinder("A", graphOf(t, edgeOf("A", "B", 1000), edgeOf("B", "D", 1000)))
	for i := range 20 {
		now := t0.Add(time.Duration(i) * time.Minute)
		legs, err := f.Plan(now, request(600, 0))
		if err != nil {
			t.Fatalf("payment %d: %v", i+1, err)
		}
		for k := range legs {
			f.Sent(now, "D", &legs[k])
			f.Done(now, "D", &legs[k])
		}
	}
}

// TestHintsCarrySeveralPayments at one time: what others have on the way does not
// count against a payee whose capacity nobody tells.
func TestHintsCarrySeveralPayments(t *testing.T) {
	f := NewFinder("A", graphOf(t, edgeOf("A", "B", 1000)))
	r := request(10, 0)
	r.Hints = []payments.Hint{{Peer: "B"}}
	for i := range 20 {
		legs, err := f.Plan(t0, r)
		if err != nil {
			t.Fatalf("payment %d: %v", i+1, err)
		}
		f.Sent(t0, "D", &legs[0])
	}
}

// TestHints: an invoice's edges are used, learnt about, and leave nothing behind.
func TestHints(t *testing.T) {
	g := graphOf(t, edgeOf("A", "B", 1000))
	f := NewFinder("A", g)
	r := request(100, 10)
	r.Hints = []payments.Hint{{Peer: "B", FeeBase: 3}, {Peer: "stranger"}}
	nodes, edges := g.Nodes(), g.Edges()
	legs, err := f.Plan(t0, r)
	if err != nil || len(legs) != 1 || legs[0].Fee != 3 || legs[0].Via[0] != "B" {
		t.Fatalf("%+v, %v", legs, err)
	}
	if g.Nodes() != nodes || g.Edges() != edges || g.Check() != nil {
		t.Fatalf("%d nodes, %d edges, %v", g.Nodes(), g.Edges(), g.Check())
	}
	f.Sent(t0, "D", &legs[0])
	f.Failed(t0, "D", &legs[0], payments.Failure{Code: payments.FailHop, Hop: 1})
	if _, err := f.Plan(t0, r); !errors.Is(err, payments.ErrNoRoute) {
		t.Fatal(err)
	}
	for i := range 2 * maxKnown {
		r.Hints = []payments.Hint{{Peer: peer.ID(fmt.Sprint("hop", i))}}
		_, _ = f.Plan(t0, r)
	}
	if len(f.hinted) > maxKnown {
		t.Fatalf("%d edges of hints are kept", len(f.hinted))
	}
}

func TestSetRefuses(t *testing.T) {
	g := NewGraph()
	for _, e := range []Edge{
		{},
		edgeOf("A", "A", 1),
		edgeOf("A", "B", 0),
		edgeOf("A", "B", payments.MaxTotal),
		{From: "A", To: "B", Capacity: 1, FeePPM: million},
		{From: "A", To: "B", Capacity: 1, Min: 2},
	} {
		if err := g.Set(e); !errors.Is(err, ErrGraph) {
			t.Errorf("%+v: %v", e, err)
		}
	}
}

// TestPlansAreSound on random small graphs with random fees, bounds and sizes; and
// where one way without fees carries the amount, a plan is found.
func TestPlansAreSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := []peer.ID{"A", "B", "C", "D", "E", "F"}
		g := NewGraph()
		free := rapid.Bool().Draw(t, "free")
		for range rapid.IntRange(1, 20).Draw(t, "edges") {
			e := Edge{
				From:     rapid.SampledFrom(names).Draw(t, "from"),
				To:       rapid.SampledFrom(names).Draw(t, "to"),
				Capacity: tally.Amount(rapid.Uint64Range(1, 1000).Draw(t, "capacity")),
			}
			if !free {
				e.FeeBase = tally.Amount(rapid.Uint64Range(0, 3).Draw(t, "base"))
				e.FeePPM = rapid.Uint32Range(0, 100_000).Draw(t, "ppm")
				e.Min = tally.Amount(rapid.Uint64Range(0, 50).Draw(t, "min"))
			}
			_ = g.Set(e)
		}
		f := NewFinder("A", g)
		for range rapid.IntRange(1, 6).Draw(t, "plans") {
			r := request(tally.Amount(rapid.Uint64Range(1, 1200).Draw(t, "amount")), tally.Amount(rapid.Uint64Range(0, 300).Draw(t, "fee")))
			legs, err := f.Plan(t0, r)
			switch {
			case err == nil:
				sound(t, g, t0, r, legs)
				for i := range legs {
					f.Sent(t0, "D", &legs[i])
				}
				for i := range legs {
					if rapid.Bool().Draw(t, "arrives") {
						f.Done(t0, "D", &legs[i])
					} else {
						f.Failed(t0, "D", &legs[i], payments.Failure{
							Code: payments.FailHeadroom, Hop: rapid.IntRange(-1, 3).Draw(t, "hop"), Most: legs[i].Amount / 2,
						})
					}
				}
			case !errors.Is(err, payments.ErrNoRoute):
				t.Fatalf("%v", err)
			case free && widest(g) >= r.Amount:
				t.Fatalf("a way carries %d of %d, and no plan: %v", widest(g), r.Amount, err)
			}
			if err := g.Check(); err != nil {
				t.Fatalf("%v", err)
			}
		}
	})
}

// widest is the most that one way from A to D carries for all that is known.
func widest(g *Graph) tally.Amount {
	best := make([]tally.Amount, len(g.out))
	src, ok1 := g.number["A"]
	dst, ok2 := g.number["D"]
	if !ok1 || !ok2 {
		return 0
	}
	best[src] = tally.MaxAmount
	for range g.out {
		for i := range g.edges {
			e := &g.edges[i]
			_, hi := e.bounds(t0.UnixMilli())
			best[e.to] = max(best[e.to], min(best[e.from], hi))
		}
	}
	return best[dst]
}

// random is a graph of n nodes with about five edges each way, and what each edge
// can carry in truth.
func random(t testing.TB, n int, seed uint64) (*Graph, map[[2]peer.ID]tally.Amount) {
	rng := rand.New(rand.NewPCG(seed, 1))
	name := func(i int) peer.ID {
		switch i {
		case 0:
			return "A"
		case 1:
			return "D"
		}
		return peer.ID(fmt.Sprint("n", i))
	}
	g, truth := NewGraph(), make(map[[2]peer.ID]tally.Amount)
	for i := 1; i < n; i++ {
		for range 5 {
			// Older nodes have more edges, as in grown networks.
			j := int(float64(i) * rng.Float64() * rng.Float64())
			a, b := name(i), name(j)
			capacity := tally.Amount(1000 + rng.IntN(100_000))
			split := tally.Amount(rng.Int64N(int64(capacity)))
			if _, have := truth[[2]peer.ID{a, b}]; have {
				continue
			}
			for k, e := range []Edge{{From: a, To: b}, {From: b, To: a}} {
				e.Capacity, e.FeeBase, e.FeePPM = capacity, 1, uint32(rng.IntN(2000))
				if err := g.Set(e); err != nil {
					t.Fatal(err)
				}
				truth[[2]peer.ID{e.From, e.To}] = split
				if k == 1 {
					truth[[2]peer.ID{e.From, e.To}] = capacity - split
				}
			}
		}
	}
	return g, truth
}

// TestFindsByLearning pays over graphs of 10^2 to 10^4 nodes whose balances nobody
// tells: most payments arrive after a few plans, because failures teach.
func TestFindsByLearning(t *testing.T) {
	for _, n := range []int{100, 1000, 10_000} {
		g, truth := random(t, n, uint64(n))
		f := NewFinder("A", g)
		rounds := 10
		if n == 10_000 {
			rounds = 4
		}
		arrived, plans := 0, 0
		for k := range rounds {
			r := request(tally.Amount(5000*(k+1)), 10_000)
			now := t0.Add(time.Duration(k) * 2 * Memory)
			left := r.Amount
			for range 20 {
				q := *r
				q.Amount = left
				legs, err := f.Plan(now, &q)
				if err != nil {
					break
				}
				plans++
				sound(t, g, now, &q, legs)
				for i := range legs {
					l := &legs[i]
					f.Sent(now, "D", l)
					path := append(append([]peer.ID{"A"}, l.Via...), "D")
					fail := payments.Failure{Code: payments.FailTimeout, Hop: -1}
					for h := range len(path) - 1 {
						if room := truth[[2]peer.ID{path[h], path[h+1]}]; room < l.Amount+l.Fee {
							fail = payments.Failure{Code: payments.FailHeadroom, Hop: h, Most: room}
							break
						}
					}
					f.Failed(now, "D", l, fail)
					if fail.Code == payments.FailTimeout {
						left -= l.Amount
					}
				}
				if left == 0 {
					arrived++
					break
				}
			}
		}
		t.Logf("%d nodes, %d edges: %d of %d arrived, %.1f plans each", g.Nodes(), g.Edges(), arrived, rounds, float64(plans)/float64(rounds))
		if arrived < rounds*6/10 {
			t.Errorf("%d nodes: only %d of %d arrived", n, arrived, rounds)
		}
	}
}

func BenchmarkPlan(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			g, _ := random(b, n, uint64(n))
			f := NewFinder("A", g)
			for b.Loop() {
				if _, err := f.Plan(t0, request(30_000, 10_000)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
