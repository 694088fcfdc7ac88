package route

import (
	"cmp"
	"container/heap"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

const (
	// MaxSplit bounds the parts of one plan: each is a chance to fail.
	MaxSplit = 8
	// grain is how finely a flow splits an amount.
	grain = 64
	// maxAugment bounds the shortest paths of one flow.
	maxAugment = 48
	// feeNats is what a fee of the whole amount would cost: one percent of fee
	// weighs as much as a way that fails in two of three cases.
	feeNats = 100
)

// Finder plans the payments of one node. It is payments.Router.
type Finder struct {
	self  peer.ID
	graph *Graph
	// hinted is what is known of edges that invoices named.
	hinted map[[2]peer.ID]*known
}

var _ payments.Router = (*Finder)(nil)

// NewFinder returns a finder for the payments of self.
func NewFinder(self peer.ID, g *Graph) *Finder {
	g.node(self)
	return &Finder{self: self, graph: g, hinted: make(map[[2]peer.ID]*known)}
}

// Replace puts another graph in the place of the one so far. What results have taught
// about its edges stays, and so does what is in flight.
func (f *Finder) Replace(g *Graph) {
	g.node(f.self)
	for key, i := range f.graph.index {
		k := f.graph.edges[i].known
		if j, ok := g.index[key]; ok {
			g.edges[j].known = k
		} else if k.reserved > 0 {
			f.hinted[key] = k
		}
	}
	f.graph = g
}

// Plan implements payments.Router.
func (f *Finder) Plan(now time.Time, r *payments.Request) ([]payments.Leg, error) {
	noRoute := func(why string) error {
		return &payments.Error{Code: payments.CodeNoRoute, Reason: why, Remedy: "pay less, allow a higher fee, or open a tab or channel on the way"}
	}
	if r.Amount == 0 || r.Amount >= payments.MaxTotal || r.Dest == f.self || r.MaxParts < 1 {
		return nil, noRoute("no such payment can be routed")
	}
	defer f.hint(r)()
	dst, ok := f.graph.number[r.Dest]
	if !ok {
		return nil, noRoute("nobody is known who reaches the payee")
	}
	p := &planner{
		g: f.graph, now: now.UnixMilli(), src: f.graph.number[f.self], dst: dst, amount: r.Amount,
		parts: min(r.MaxParts, MaxSplit), used: make(map[int32]tally.Amount),
	}
	legs, why := f.plan(p, r.MaxFee)
	if legs != nil {
		return legs, nil
	}
	err := noRoute(why)
	if p.now = f.graph.rested(p.now); p.now > now.UnixMilli() {
		if legs, _ := f.plan(p, r.MaxFee); legs != nil {
			return nil, &payments.RestError{Until: time.UnixMilli(p.now), Err: err}
		}
	}
	return nil, err
}

// plan returns legs that cost at most maxFee, or why there are none.
func (f *Finder) plan(p *planner, maxFee tally.Amount) (legs []payments.Leg, why string) {
	// First cheap and likely; where that costs too much, cheap.
	why = "no ways are known that carry it together"
	for _, nats := range []float64{feeNats, 100 * feeNats} {
		for _, plan := range []func(float64) []path{p.flow, p.halve} {
			paths := plan(nats)
			if paths == nil {
				continue
			}
			legs, fee := f.legs(paths)
			if fee <= maxFee {
				return legs, ""
			}
			why = fmt.Sprintf("the ways that are known cost %d", fee)
		}
	}
	return nil, why
}

// hint puts the edges of an invoice into the graph for as long as a plan is made.
func (f *Finder) hint(r *payments.Request) (undo func()) {
	var undos []func()
	for _, h := range r.Hints {
		key := [2]peer.ID{h.Peer, r.Dest}
		if _, have := f.graph.index[key]; have || h.Peer == f.self {
			continue // better is known, or it leads to ourselves
		}
		k := f.hinted[key]
		if k == nil {
			k = new(known)
		}
		// Nobody says how much it carries: as likely as not twice of what is asked for,
		// beside what other payments have on the way there.
		e := Edge{
			From: h.Peer, To: r.Dest, Capacity: min((2 * r.Amount).SaturatingAdd(k.reserved), payments.MaxTotal-1),
			FeeBase: h.FeeBase, FeePPM: h.FeePPM,
		}
		if e.validate() != nil {
			continue
		}
		if f.hinted[key] == nil {
			if len(f.hinted) >= maxKnown {
				f.forget()
			}
			f.hinted[key] = k
		}
		nodes := len(f.graph.out)
		f.graph.add(e, k)
		undos = append(undos, func() { f.graph.drop(nodes) })
	}
	return func() {
		for _, u := range slices.Backward(undos) {
			u()
		}
	}
}

// forget makes room among the edges of hints: those with nothing in flight go.
func (f *Finder) forget() {
	for key, k := range f.hinted {
		if k.reserved == 0 {
			delete(f.hinted, key)
		}
	}
}

func (f *Finder) legs(paths []path) (legs []payments.Leg, fees tally.Amount) {
	for _, p := range paths {
		leg := payments.Leg{Amount: p.arrives, Fee: p.sent - p.arrives}
		for _, i := range p.edges[1:] {
			leg.Via = append(leg.Via, f.graph.edges[i].From)
		}
		fees = fees.SaturatingAdd(leg.Fee)
		legs = append(legs, leg)
	}
	return legs, fees
}

// planner is one plan in the making.
type planner struct {
	g        *Graph
	now      int64
	src, dst int32
	amount   tally.Amount
	parts    int
	// used is what the paths so far take of each edge.
	used map[int32]tally.Amount
}

// path is one part: its edges, and the amount over each.
type path struct {
	edges         []int32
	over          []tally.Amount
	arrives, sent tally.Amount
}

// exact fits an amount to a path, from the payee back, and takes the room for it.
func (p *planner) exact(edges []int32, arrives tally.Amount) (path, bool) {
	out := path{edges: edges, over: make([]tally.Amount, len(edges)), arrives: arrives}
	amount := arrives
	for i := len(edges) - 1; i >= 0; i-- {
		e := &p.g.edges[edges[i]]
		_, hi := e.bounds(p.now)
		if amount < e.Min || amount > hi.SaturatingSub(p.used[edges[i]]) {
			return path{}, false
		}
		out.over[i] = amount
		if i > 0 { // our own edge costs nothing
			var ok bool
			if amount, ok = e.before(amount); !ok {
				return path{}, false
			}
		}
	}
	out.sent = amount
	for i, x := range edges {
		p.used[x] += out.over[i]
	}
	return out, true
}

// flow splits by a min-cost flow; nil where that does not fit.
func (p *planner) flow(nats float64) []path {
	clear(p.used)
	unit := (p.amount-1)/grain + 1
	want := int32((p.amount-1)/unit + 1)
	w := &weights{unit: float64(unit), perFee: nats / float64(p.amount)}
	s := newSearch(p.g, p.now, w, p.src)
	for n := 0; want > s.total; n++ {
		if n == maxAugment || !s.augment(p.dst, want-s.total) {
			return nil
		}
	}
	paths := s.decompose(p.dst)
	if len(paths) > p.parts {
		return nil
	}
	// The steps are rounded up: the largest part gives back what is too much.
	slices.SortStableFunc(paths, func(a, b stepPath) int { return cmp.Compare(b.steps, a.steps) })
	over := unit*tally.Amount(want) - p.amount
	var list []path
	for i, sp := range paths {
		n := unit * tally.Amount(sp.steps)
		if i == 0 {
			n -= over
		}
		exact, ok := p.exact(sp.edges, n)
		if !ok {
			return nil
		}
		list = append(list, exact)
	}
	return list
}

// halve finds ways one by one: what finds none is halved.
func (p *planner) halve(nats float64) []path {
	clear(p.used)
	todo := []tally.Amount{p.amount}
	var list []path
	for len(todo) > 0 {
		n := todo[0]
		todo = todo[1:]
		if found, ok := p.single(n, nats); ok {
			list = append(list, found)
			continue
		}
		if n < 2 || len(list)+len(todo)+2 > p.parts {
			return nil
		}
		todo = append(todo, n/2, n-n/2)
		slices.SortFunc(todo, func(a, b tally.Amount) int { return cmp.Compare(b, a) })
	}
	return list
}

// single finds the best way of one part. What a search takes for room is without
// fees, so that an edge that turns out too small is left out and the search begins
// again.
func (p *planner) single(n tally.Amount, nats float64) (path, bool) {
	w := &weights{unit: float64(n), perFee: nats / float64(p.amount)}
	s := newSearch(p.g, p.now, w, p.src)
	s.least, s.used = n, p.used
	s.banned = make(map[int32]bool)
	for range 8 {
		if !s.augment(p.dst, 1) {
			return path{}, false
		}
		edges := s.decompose(p.dst)[0].edges
		if found, ok := p.exact(edges, n); ok {
			return found, true
		}
		s.reset()
		amount := n
		for i := len(edges) - 1; i >= 0; i-- {
			e := &p.g.edges[edges[i]]
			if _, hi := e.bounds(p.now); amount < e.Min || amount > hi.SaturatingSub(p.used[edges[i]]) {
				s.banned[edges[i]] = true
			}
			amount, _ = e.before(amount)
		}
	}
	return path{}, false
}

// search is a flow that grows by shortest paths.
type search struct {
	g    *Graph
	now  int64
	w    *weights
	src  int32
	flow map[int32]int32 // steps over each edge
	pot  []float64       // potentials, so that no cost is negative

	total int32

	// Of a single part: what it needs at least, and what is taken already.
	least  tally.Amount
	used   map[int32]tally.Amount
	banned map[int32]bool

	dist []float64
	via  []int32 // the edge that led here; ^edge: back over it
	done []bool
}

func newSearch(g *Graph, now int64, w *weights, src int32) *search {
	n := len(g.out)
	return &search{
		g: g, now: now, w: w, src: src, flow: make(map[int32]int32), pot: make([]float64, n),
		dist: make([]float64, n), via: make([]int32, n), done: make([]bool, n),
	}
}

func (s *search) reset() {
	clear(s.flow)
	clear(s.pot)
	s.total = 0
}

// forward is the cost of one more step over an edge, and how many there are.
func (s *search) forward(i int32) (float64, int32) {
	e := &s.g.edges[i]
	if s.least > 0 {
		_, hi := e.bounds(s.now)
		if s.banned[i] || s.least < e.Min || hi.SaturatingSub(s.used[i]) < s.least {
			return 0, 0
		}
		return s.whole(e, i), 1
	}
	return e.piece(s.now, s.w, s.flow[i], s.src)
}

// whole is what a part costs that goes over an edge in one.
func (s *search) whole(e *edge, i int32) float64 {
	lo, hi := e.bounds(s.now)
	lo, hi = lo.SaturatingSub(s.used[i]), hi.SaturatingSub(s.used[i])
	cost := 1e-9
	if s.least > lo {
		cost -= math.Log(float64(hi+1-s.least) / float64(hi+1-lo))
	}
	if e.from != s.src {
		cost += s.w.perFee * (s.w.unit*float64(e.FeePPM)/million + float64(e.FeeBase))
	}
	return cost
}

type entry struct {
	node int32
	dist float64
}

type queue []entry

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].dist < q[j].dist }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(entry)) }
func (q *queue) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}

// augment sends up to most steps more over the shortest path.
func (s *search) augment(dst, most int32) bool {
	for i := range s.dist {
		s.dist[i], s.done[i] = math.Inf(1), false
	}
	s.dist[s.src] = 0
	q := queue{{s.src, 0}}
	relax := func(from, to, via int32, cost float64) {
		if s.done[to] {
			return
		}
		// Rounding may make a reduced cost a little negative.
		d := s.dist[from] + max(0, cost+s.pot[from]-s.pot[to])
		if d < s.dist[to] {
			s.dist[to], s.via[to] = d, via
			heap.Push(&q, entry{to, d})
		}
	}
	for len(q) > 0 {
		u := heap.Pop(&q).(entry).node
		if s.done[u] {
			continue
		}
		s.done[u] = true
		if u == dst {
			break
		}
		for _, i := range s.g.out[u] {
			if cost, room := s.forward(i); room > 0 {
				relax(u, s.g.edges[i].to, i, cost)
			}
		}
		if len(s.flow) == 0 {
			continue
		}
		for _, i := range s.g.in[u] {
			if s.flow[i] > 0 {
				cost, _ := s.g.edges[i].piece(s.now, s.w, s.flow[i]-1, s.src)
				relax(u, s.g.edges[i].from, ^i, -cost)
			}
		}
	}
	if !s.done[dst] {
		return false
	}
	for i := range s.pot {
		s.pot[i] += min(s.dist[i], s.dist[dst])
	}
	// How much: no further than any piece on the way goes.
	n := most
	s.walk(dst, func(i int32, back bool) {
		if back {
			// Only within the piece that the last step is on: one is always right.
			n = min(n, 1)
			return
		}
		_, room := s.forward(i)
		n = min(n, room)
	})
	s.walk(dst, func(i int32, back bool) {
		if back {
			s.flow[i] -= n
		} else {
			s.flow[i] += n
		}
		if s.flow[i] == 0 {
			delete(s.flow, i)
		}
	})
	s.total += n
	return true
}

func (s *search) walk(dst int32, f func(i int32, back bool)) {
	for u := dst; u != s.src; {
		i := s.via[u]
		if i < 0 {
			f(^i, true)
			u = s.g.edges[^i].to
		} else {
			f(i, false)
			u = s.g.edges[i].from
		}
	}
}

type stepPath struct {
	edges []int32
	steps int32
}

// decompose takes the flow apart into paths. A cycle among them would be a detour
// that costs nothing, and is left behind.
func (s *search) decompose(dst int32) (list []stepPath) {
	for s.total > 0 {
		var edges []int32
		at := map[int32]int{s.src: 0}
		n := s.total
		for u := s.src; u != dst; {
			next := int32(-1)
			for _, i := range s.g.out[u] { // the widest first: fewer paths
				if s.flow[i] > 0 && (next < 0 || s.flow[i] > s.flow[next]) {
					next = i
				}
			}
			u = s.g.edges[next].to
			if k, seen := at[u]; seen { // out of the cycle
				for _, i := range edges[k:] {
					s.flow[i]--
				}
				s.flow[next]--
				edges = edges[:k]
				for v, pos := range at {
					if pos > k {
						delete(at, v)
					}
				}
				continue
			}
			edges = append(edges, next)
			at[u] = len(edges)
		}
		for _, i := range edges {
			n = min(n, s.flow[i])
		}
		for _, i := range edges {
			s.flow[i] -= n
		}
		s.total -= n
		list = append(list, stepPath{edges: edges, steps: n})
	}
	return list
}

// each calls fn with what is known of the edges of a leg, and the amount over
// each.
func (f *Finder) each(dest peer.ID, l *payments.Leg, fn func(i int, e *Edge, k, back *known, amount tally.Amount)) {
	path := append(append([]peer.ID{f.self}, l.Via...), dest)
	over := make([]tally.Amount, len(path)-1)
	amount := l.Amount
	for i := len(over) - 1; i >= 0; i-- {
		over[i] = amount
		if x, ok := f.graph.index[[2]peer.ID{path[i], path[i+1]}]; ok && i > 0 {
			if in, ok := f.graph.edges[x].before(amount); ok {
				amount = in
			}
		}
	}
	over[0] = l.Amount + l.Fee
	for i, n := range over {
		key := [2]peer.ID{path[i], path[i+1]}
		k, e := f.hinted[key], &Edge{Capacity: payments.MaxTotal - 1}
		if x, ok := f.graph.index[key]; ok {
			k, e = f.graph.edges[x].known, &f.graph.edges[x].Edge
		}
		var back *known
		if x, ok := f.graph.index[[2]peer.ID{path[i+1], path[i]}]; ok {
			back = f.graph.edges[x].known
		}
		if k != nil {
			fn(i, e, k, back, n)
		}
	}
}

// learn sets the bounds of an edge that are believed from now.
func (k *known) learn(now int64, capacity tally.Amount, f func(lo, hi tally.Amount) (tally.Amount, tally.Amount)) {
	if now >= k.forget {
		k.lo, k.hi = 0, capacity
	}
	lo, hi := f(k.lo, k.hi)
	k.hi = min(hi, capacity)
	k.lo = min(lo, k.hi)
	k.forget = now + Memory.Milliseconds()
}

// moved shifts the bounds that are believed, because money went over the edge. It
// begins no belief and prolongs none: tabs are settled and channels topped up, so that
// an edge carries more in an hour than it can at once, and only a failure shows that it
// is empty.
func (k *known) moved(now int64, capacity tally.Amount, f func(tally.Amount) tally.Amount) {
	if now < k.forget {
		k.hi = min(f(k.hi), capacity)
		k.lo = min(f(k.lo), k.hi)
	}
}

// Sent implements payments.Router.
func (f *Finder) Sent(_ time.Time, dest peer.ID, l *payments.Leg) {
	f.each(dest, l, func(_ int, _ *Edge, k, _ *known, n tally.Amount) { k.reserved = k.reserved.SaturatingAdd(n) })
}

// Done implements payments.Router: the money has moved, one way and so the other.
func (f *Finder) Done(now time.Time, dest peer.ID, l *payments.Leg) {
	at := now.UnixMilli()
	f.each(dest, l, func(_ int, e *Edge, k, back *known, n tally.Amount) {
		k.reserved = k.reserved.SaturatingSub(n)
		k.rest = 0
		k.moved(at, e.Capacity, func(bound tally.Amount) tally.Amount { return bound.SaturatingSub(n) })
		if back != nil {
			back.moved(at, e.Capacity, func(bound tally.Amount) tally.Amount { return bound.SaturatingAdd(n) })
		}
	})
}

// Failed implements payments.Router: what was before the hop that failed has
// carried the part.
func (f *Finder) Failed(now time.Time, dest peer.ID, l *payments.Leg, why payments.Failure) {
	at := now.UnixMilli()
	arrived := why.Code == payments.FailRefused || why.Code == payments.FailTimeout
	rest := at + Rest.Milliseconds()
	// What was too late or too early for one part says little of the next: a tab that is
	// settled by then needs less time than a lock.
	if why.Code == payments.FailBusy || why.Code == payments.FailExpiry {
		rest = at + BusyRest.Milliseconds()
	}
	f.each(dest, l, func(i int, e *Edge, k, _ *known, n tally.Amount) {
		k.reserved = k.reserved.SaturatingSub(n)
		passed := arrived || why.Hop > i
		switch {
		case why.Code == payments.FailNeverLeft:
		case passed:
			k.learn(at, e.Capacity, func(lo, hi tally.Amount) (tally.Amount, tally.Amount) { return max(lo, n), max(hi, n) })
		case why.Hop == i && why.Code == payments.FailHeadroom:
			most := min(why.Most, n.SaturatingSub(1))
			k.learn(at, e.Capacity, func(lo, hi tally.Amount) (tally.Amount, tally.Amount) { return min(lo, most), min(hi, most) })
		case why.Hop == i:
			k.rest = rest
		case why.Hop >= 0 || i == 0 && len(l.Via) > 0:
			// Behind the failure; or our own edge, where nobody says which it was: we
			// would have known.
		case at < k.forget && k.lo >= n:
			k.forget = 0 // it counted as certain, and may not be
		default:
			k.rest = rest
		}
	})
}
