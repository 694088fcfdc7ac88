package forward

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

// A row of cores on simulated disks and links. Goal: whatever node dies, at
// whatever save or send, and whatever link breaks, at rest the two sides of each
// tab agree, what the payer lost is what the payee got and the fees, and nobody
// holds anything. Method: a node steps, saves records and tabs at once, and then
// sends, one message after the other; at each of these points it may die, and
// begins again with what its disk has. Links keep the order of their messages
// and lose what is on the way when they break.

// fakeTabs are the tabs of one node: what is saved, and what is not yet.
type fakeTabs struct {
	balance map[peer.ID]tally.Balance
	held    map[Held]tally.Amount // with Units 0 in the key
	limit   tally.Amount
}

func newFakeTabs(saved map[peer.ID]tally.Balance) *fakeTabs {
	return &fakeTabs{balance: maps.Clone(saved), held: make(map[Held]tally.Amount), limit: 1000}
}

func (t *fakeTabs) inFlight(p peer.ID, dir Dir) (sum tally.Amount) {
	for h, n := range t.held {
		if h.Peer == p && h.Dir == dir {
			sum += n
		}
	}
	return sum
}

func (t *fakeTabs) Hold(p peer.ID, id uint64, dir Dir, units tally.Amount) error {
	owed := t.balance[p].Owed()
	if dir == Out {
		owed = t.balance[p].Debt()
	}
	if room := t.limit.SaturatingSub(owed + t.inFlight(p, dir)); units > room {
		return &HeadroomError{Headroom: room, Code: CodeHeadroom}
	}
	t.held[Held{Peer: p, ID: id, Dir: dir}] = units
	return nil
}

func (t *fakeTabs) take(p peer.ID, id uint64, dir Dir) (tally.Amount, error) {
	k := Held{Peer: p, ID: id, Dir: dir}
	units, ok := t.held[k]
	if !ok {
		return 0, fmt.Errorf("packet %d of %s is not held", id, p)
	}
	delete(t.held, k)
	return units, nil
}

func (t *fakeTabs) Commit(p peer.ID, id uint64, dir Dir) error {
	units, err := t.take(p, id, dir)
	if dir == In {
		t.balance[p] += tally.Balance(units)
	} else {
		t.balance[p] -= tally.Balance(units)
	}
	return err
}

func (t *fakeTabs) Release(p peer.ID, id uint64, dir Dir) error {
	_, err := t.take(p, id, dir)
	return err
}

func (t *fakeTabs) restore(held []Held) {
	for _, h := range held {
		t.held[Held{Peer: h.Peer, ID: h.ID, Dir: h.Dir}] = h.Units
	}
}

// simNode is one node: a core, and the disk that outlives it.
type simNode struct {
	id      peer.ID
	hop     *Hop
	tabs    *fakeTabs
	records map[uint64][]byte
	saved   map[peer.ID]tally.Balance
	dead    bool
	results map[PartID]*Msg
	routes  map[peer.ID]peer.ID
	rules   Rules
	weak    bool  // sends before it saves: the variant that has to lose
	until   int64 // dead at least so long

	// Of its endpoint. What it decided, heard and forgot is on its own disk; what it
	// sees waiting is not.
	waiting   []keptPacket
	decided   map[PartID]bool // claimed, or given back
	confirmed map[PartID]bool // the core has saved that
	answers   map[PartID]*Msg
	hasty     bool // claims before the packet is kept: a variant that has to lose

	channels *simChannels
	told     []Event // of its channels, not heard yet
	limit    tally.Amount
}

type keptPacket struct {
	from peer.ID
	id   uint64
	part PartID
}

type simNet struct {
	t      failer
	now    int64
	nodes  []*simNode
	queues map[[2]int][]*Msg // from, to
	up     map[int]bool      // link i joins nodes i and i+1
	// decide is the payee's endpoint: preimage and whether it fulfils.
	decide func(*Msg) (tally.Preimage, bool)
	// point is asked before each save and send whether the node dies there.
	point func(n int, what string) bool
	steps int
	// carries: what a node sent before it died arrives.
	carries bool
	// away is how long a dead node is dead.
	away int64
	// forgetful: nobody keeps results, a variant that has to lose.
	forgetful bool
	// locks: packets may go under locks, and expire so late.
	locks   bool
	expires int64
	// points are the packets under points; nil: none. Who is lax carries them on credit.
	points func(k byte) bool
	lax    map[peer.ID]bool
	// strict: a loss of the matrix fails it, whatever was changed; rested is called at
	// the end of each run.
	strict bool
	rested func()
}

// lockable lets packets go under locks, over tabs that carry so much.
func (s *simNet) lockable(limit tally.Amount, expires int64) {
	s.locks, s.expires = true, expires
	for i, n := range s.nodes {
		n.limit = limit
		s.start(n)
		for _, l := range []int{i - 1, i} {
			if l >= 0 && l < len(s.nodes)-1 {
				delete(s.up, l)
			}
		}
	}
	for i := range len(s.nodes) - 1 {
		s.queues[[2]int{i, i + 1}], s.queues[[2]int{i + 1, i}] = nil, nil
		s.connect(i)
	}
}

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
	Fatal(args ...any)
}

func simPeer(i int) peer.ID { return peer.ID(fmt.Sprintf("node-%d", i)) }

func newSimNet(t failer, nodes int) *simNet {
	s := &simNet{t: t, now: 1_700_000_000_000, queues: make(map[[2]int][]*Msg), up: make(map[int]bool), decide: evenFulfils, point: func(int, string) bool { return false }}
	for i := range nodes {
		n := &simNode{
			id: simPeer(i), records: make(map[uint64][]byte), saved: make(map[peer.ID]tally.Balance),
			results: make(map[PartID]*Msg), decided: make(map[PartID]bool), confirmed: make(map[PartID]bool), answers: make(map[PartID]*Msg), routes: make(map[peer.ID]peer.ID), rules: Rules{FeeBase: 1, FeePPM: 10_000},
			channels: newSimChannels(), limit: 1000,
		}
		for j := range nodes {
			if j > i+1 {
				n.routes[simPeer(j)] = simPeer(i + 1)
			}
		}
		s.nodes = append(s.nodes, n)
		s.start(n)
	}
	for i := range nodes - 1 {
		s.connect(i)
	}
	return s
}

// start begins a life on what the disk has.
func (s *simNet) start(n *simNode) {
	n.tabs = newFakeTabs(n.saved)
	n.tabs.limit = n.limit
	n.told = nil
	cfg := HopConfig{Self: n.id, Rules: n.rules, Account: n.tabs, Routes: n.routes, Journal: true}
	if s.locks {
		cfg.Locks, cfg.OpensPoint = simTimes{s}, testOpens
	}
	n.hop = NewHop(cfg)
	n.hop.pointsOnCredit = s.lax[n.id]
	var held []Held
	for _, key := range slices.Sorted(maps.Keys(n.records)) {
		var err error
		if held, err = n.hop.Restore(key, n.records[key], held); err != nil {
			s.t.Fatalf("%s: %v", n.id, err)
		}
	}
	n.tabs.restore(held)
	n.dead = false
	s.check(n)
	n.waiting = nil
	if s.locks {
		s.reconcile(slices.Index(s.nodes, n))
	}
	for _, a := range n.hop.Again() {
		if a.Msg.Kind != MsgPrepare {
			n.answers[a.Msg.Part] = &a.Msg
			s.step(slices.Index(s.nodes, n), &Event{Kind: EvForget, Msg: &Msg{Part: a.Msg.Part}})
			continue
		}
		if n.confirmed[a.Msg.Part] {
			s.t.Fatalf("%s: %x waits again after it was decided", n.id, a.Msg.Part)
		}
		n.waiting = append(n.waiting, keptPacket{a.Peer, a.Msg.ID, a.Msg.Part})
	}
	for part := range n.decided { // what does not wait any more was decided here, too
		if !slices.ContainsFunc(n.waiting, func(k keptPacket) bool { return k.part == part }) {
			n.confirmed[part] = true
		}
	}
}

// isKept tells the packets whose sender and endpoint keep them.
func isKept(part PartID) bool { return part[0] >= 100 }

// act lets the endpoint of a node decide what waits: first on its own disk.
func (s *simNet) act(i int) {
	n := s.nodes[i]
	for len(n.waiting) > 0 && !n.dead {
		k := n.waiting[0]
		if _, before := n.decided[k.part]; !before {
			if s.point(i, "claim") {
				s.die(i)
				return
			}
			n.decided[k.part] = k.part[0]%2 == 0
		}
		ev := &Event{Kind: EvReject, Peer: k.from, ID: k.id, Msg: &Msg{Code: CodeApplication}}
		if n.decided[k.part] {
			ev.Kind, ev.Msg = EvFulfil, &Msg{Preimage: simPreimage(k.part)}
		}
		if s.step(i, ev); !n.dead {
			n.confirmed[k.part] = true
			n.waiting = n.waiting[1:]
		}
	}
}

func (s *simNet) check(n *simNode) {
	s.t.Helper()
	if err := n.hop.Check(); err != nil {
		s.t.Fatalf("%s: %v", n.id, err)
	}
}

func (s *simNet) connect(i int) {
	s.up[i] = true
	s.step(i, &Event{Kind: EvUp, Peer: simPeer(i + 1), Window: 100})
	s.step(i+1, &Event{Kind: EvUp, Peer: simPeer(i), Window: 100})
	s.resend(i, simPeer(i+1))
	s.resend(i+1, simPeer(i))
}

// cut breaks a link; what is on the way is lost.
func (s *simNet) cut(i int) {
	s.up[i] = false
	delete(s.queues, [2]int{i, i + 1})
	delete(s.queues, [2]int{i + 1, i})
	for _, e := range [...][2]int{{i, i + 1}, {i + 1, i}} {
		if n := s.nodes[e[0]]; !n.dead {
			s.step(e[0], &Event{Kind: EvDown, Peer: simPeer(e[1])})
		}
	}
}

// die ends a node's life; its links break.
func (s *simNet) die(i int) {
	s.nodes[i].dead, s.nodes[i].until = true, s.now+s.away
	for _, to := range []int{i - 1, i + 1} {
		key := [2]int{i, to}
		for s.carries && len(s.queues[key]) > 0 {
			m := s.queues[key][0]
			s.queues[key] = s.queues[key][1:]
			s.step(to, &Event{Kind: EvMessage, Peer: simPeer(i), Msg: m})
		}
	}
	for _, l := range []int{i - 1, i} {
		if l >= 0 && l < len(s.nodes)-1 {
			s.cut(l)
		}
	}
}

// mend starts who is dead and joins what is cut.
func (s *simNet) mend() {
	for {
		again := false
		for _, n := range s.nodes {
			if n.dead && s.now >= n.until {
				again = true
				s.start(n)
			}
		}
		for i := range len(s.nodes) - 1 {
			if !s.up[i] && !s.nodes[i].dead && !s.nodes[i+1].dead {
				again = true
				s.connect(i)
			}
		}
		if !again {
			return
		}
	}
}

// step is what the engine does with one event.
func (s *simNet) step(i int, ev *Event) {
	n := s.nodes[i]
	if n.dead {
		return
	}
	s.steps++
	fx, err := n.hop.Step(s.now, ev, nil)
	if err != nil {
		s.t.Fatalf("%s: event %d: %v", n.id, ev.Kind, err)
	}
	if k := len(fx) - 1; k >= 0 && fx[k].Kind == FxDeliver {
		m, from := fx[k].Msg, fx[k].Peer
		if isKept(m.Part) {
			s.keep(i, from, m, fx[:k])
			return
		}
		answer := Event{Kind: EvReject, Peer: fx[k].Peer, ID: m.ID, Msg: &Msg{Code: CodeApplication}}
		if p, ok := s.decide(m); ok {
			answer.Kind, answer.Msg = EvFulfil, &Msg{Preimage: p}
		}
		if fx, err = n.hop.Step(s.now, &answer, fx[:k]); err != nil {
			s.t.Fatalf("%s: its own packet: %v", n.id, err)
		}
	}
	s.check(n)
	s.carryOut(i, fx)
	s.heardAll(i)
}

// keep lets a packet wait at its endpoint, which hears of it when it is saved.
func (s *simNet) keep(i int, from peer.ID, m *Msg, fx []Effect) {
	n, k := s.nodes[i], keptPacket{from, m.ID, m.Part}
	fx, err := n.hop.Step(s.now, &Event{Kind: EvKeep, Peer: from, ID: m.ID, Msg: m}, fx)
	if err != nil {
		s.t.Fatalf("%s: keep: %v", n.id, err)
	}
	s.check(n)
	if n.hasty {
		n.decided[k.part] = k.part[0]%2 == 0
	}
	if s.carryOut(i, fx); !n.dead {
		n.waiting = append(n.waiting, k)
	}
}

func (s *simNet) carryOut(i int, fx []Effect) {
	n := s.nodes[i]
	if n.weak {
		if !s.send(i, fx) {
			return
		}
		s.save(i, fx)
		return
	}
	if s.save(i, fx) {
		s.send(i, fx)
	}
}

// save puts records and tabs on the disk at once, as one batch. It reports false
// where the node died.
func (s *simNet) save(i int, fx []Effect) bool {
	n := s.nodes[i]
	sync := slices.ContainsFunc(fx, func(f Effect) bool { return f.Kind == FxSave })
	if !sync { // deletes wait for the next batch; a lost one is harmless
		return true
	}
	if s.point(i, "save") {
		s.die(i)
		return false
	}
	for _, f := range fx {
		switch {
		case f.Kind == FxSave && f.Record != nil:
			n.records[f.Key] = f.Record
		case f.Kind == FxSave, f.Kind == FxDelete:
			delete(n.records, f.Key)
		}
	}
	n.saved = maps.Clone(n.tabs.balance)
	return true
}

func (s *simNet) send(i int, fx []Effect) bool {
	n := s.nodes[i]
	var heard []PartID
	for _, f := range fx {
		if f.Kind >= FxLock {
			if !s.lockEffect(i, &f) {
				return false
			}
			continue
		}
		if f.Kind != FxSend && f.Kind != FxResult {
			continue
		}
		if s.point(i, "send") {
			s.die(i)
			return false
		}
		cp := *f.Msg
		if f.Kind == FxResult {
			if old := n.results[cp.Part]; old != nil && old.Kind != cp.Kind {
				s.t.Fatalf("%s: packet %x was %d and is now %d", n.id, cp.Part, old.Kind, cp.Kind)
			}
			n.results[cp.Part] = &cp
			if f.Kept {
				if s.point(i, "answer") {
					s.die(i)
					return false
				}
				n.answers[cp.Part] = &cp
				heard = append(heard, cp.Part)
			}
			continue
		}
		to := int(f.Peer[len(f.Peer)-1] - '0')
		if s.up[min(i, to)] {
			key := [2]int{i, to}
			s.queues[key] = append(s.queues[key], &cp)
		}
	}
	n.hop.Reset()
	// Deletes that waited for no save are on the disk by and by.
	for _, f := range fx {
		if f.Kind == FxDelete {
			delete(n.records, f.Key)
		}
		if f.Kind == FxUnnote {
			delete(n.channels.notes, f.Key)
		}
	}
	for _, part := range heard {
		s.step(i, &Event{Kind: EvForget, Msg: &Msg{Part: part}})
	}
	return true
}

// deliver hands over the first message of one link, and reports false where
// nothing is on its way.
func (s *simNet) deliver(pick func(n int) int) bool {
	keys := slices.SortedFunc(maps.Keys(s.queues), func(a, b [2]int) int { return slices.Compare(a[:], b[:]) })
	keys = slices.DeleteFunc(keys, func(k [2]int) bool { return len(s.queues[k]) == 0 })
	if len(keys) == 0 {
		return false
	}
	k := keys[pick(len(keys))]
	m := s.queues[k][0]
	s.queues[k] = s.queues[k][1:]
	s.step(k[1], &Event{Kind: EvMessage, Peer: simPeer(k[0]), Msg: m})
	return true
}

func first(int) int { return 0 }

// settle runs until nothing moves any more.
func (s *simNet) settle(pick func(int) int) {
	for range 60 + s.away/1000 {
		s.mend()
		for i := range s.nodes {
			s.act(i)
		}
		for n := 0; s.deliver(pick); n++ {
			s.mend()
			if n > 100_000 {
				s.t.Fatal("messages for ever")
			}
		}
		s.now += 1000
		for i := range s.nodes {
			s.step(i, &Event{Kind: EvTick})
		}
	}
}

// atRest checks what has to hold when nothing moves.
func (s *simNet) atRest() {
	s.t.Helper()
	var sum tally.Balance
	for i, n := range s.nodes {
		if len(n.tabs.held) != 0 {
			s.t.Fatalf("%s still holds %v: %s", n.id, n.tabs.held, s.describe())
		}
		for key := range n.records {
			if key != counterKey {
				s.t.Fatalf("%s: record %d is left", n.id, key)
			}
		}
		for part, fulfilled := range n.decided {
			answer := s.nodes[0].answers[part]
			if answer == nil || (answer.Kind == MsgFulfil) != fulfilled || !n.confirmed[part] {
				s.t.Fatalf("packet %x: decided %v, confirmed %v, its sender heard %+v", part, fulfilled, n.confirmed[part], answer)
			}
		}
		for p, l := range n.hop.links {
			if l.in.Len()+l.out.Len() != 0 {
				s.t.Fatalf("%s: %d in and %d out with %s", n.id, l.in.Len(), l.out.Len(), p)
			}
		}
		if i+1 < len(s.nodes) {
			a, b := n.tabs.balance[simPeer(i+1)], s.nodes[i+1].tabs.balance[n.id]
			if a != -b {
				s.t.Fatalf("tab of %d and %d: %d and %d", i, i+1, a, b)
			}
		}
		// A node in the middle has gained exactly its fees.
		var net tally.Balance
		for _, b := range n.tabs.balance {
			net += b
		}
		net += s.lanesAtRest(i)
		if 0 < i && i+1 < len(s.nodes) && net != tally.Balance(n.hop.Earned()) {
			s.t.Fatalf("%s gained %d, fees are %d", n.id, net, n.hop.Earned())
		}
		sum += net
	}
	if sum != 0 {
		s.t.Fatalf("sum of all balances %d, want 0", sum)
	}
}

// describe lists what is in flight.
func (s *simNet) describe() string {
	text := ""
	for _, n := range s.nodes {
		for p, l := range n.hop.links {
			text += fmt.Sprintf("\n%s with %s: up %v, asked %d, answered %d", n.id, p, l.up, l.asked, l.answered)
			for id, c := range l.in.All() {
				text += fmt.Sprintf(", in %d (fulfilled %v, out %v)", id, c.fulfilled, c.out != nil)
			}
			for id, c := range l.out.All() {
				text += fmt.Sprintf(", out %d (mark %d, in %v)", id, c.mark, c.in != nil)
			}
		}
	}
	return text
}

func simPreimage(part PartID) (p tally.Preimage) {
	copy(p[:], part[:])
	p[31] = 0xaa
	return p
}

// offer sends packet k from node 0 to the last one.
func (s *simNet) offer(k byte, amount tally.Amount) {
	part := PartID{k, 15: 1}
	condition := Blake2b(simPreimage(part).Hashlock())
	if s.locks && s.points != nil && s.points(k) {
		condition = testPoint(simPreimage(part))
	}
	s.step(0, &Event{Kind: EvSend, Ref: uint64(k), Keep: isKept(part) && !s.forgetful, Msg: &Msg{
		Kind: MsgPrepare, Amount: amount, Expires: s.now + max(30_000, s.expires), Condition: condition,
		Part: part, HopsLeft: MaxHops, Dest: simPeer(len(s.nodes) - 1), MayLock: s.locks,
	}})
}

// evenFulfils fulfils packets of even number.
func evenFulfils(m *Msg) (tally.Preimage, bool) { return simPreimage(m.Part), m.Part[0]%2 == 0 }

// matrix runs five packets over nodes with one death of one node at each of its
// points, and returns how many runs ended with somebody at a loss. weaken makes a
// variant that has to lose.
func matrix(t *testing.T, nodes int, carries bool, away int64, weaken func(s *simNet, victim *simNode)) (runs, losses int) {
	for victim := range nodes {
		for at := 1; ; at++ {
			count, hit, strict := 0, false, false
			lost := lossOf(func(f failer) {
				s := newSimNet(f, nodes)
				s.carries, s.away = carries, away
				if weaken != nil {
					weaken(s, s.nodes[victim])
				}
				strict = s.strict
				s.point = func(n int, _ string) bool {
					if n != victim || hit {
						return false
					}
					count++
					hit = count == at
					return hit
				}
				s.offer(2, 100)
				s.offer(3, 50)
				s.deliver(first)
				s.offer(4, 70)
				s.offer(100, 30)
				s.offer(101, 20)
				s.settle(first)
				s.atRest()
				if s.rested != nil {
					s.rested()
				}
				// Who told the payer that it paid had the money move, and the
				// reverse, where the payer lives to hear it.
				if r := s.nodes[0].results[PartID{2, 15: 1}]; r != nil && r.Kind == MsgFulfil && s.nodes[0].tabs.balance[simPeer(1)]-tally.Balance(s.nodes[0].channels.paid[simPeer(1)]) > -100 {
					f.Fatalf("paid, and the tab says %d", s.nodes[0].tabs.balance[simPeer(1)])
				}
			})
			if lost != "" && (weaken == nil || strict) {
				t.Fatalf("node %d dies at its point %d: %s", victim, at, lost)
			}
			if lost != "" {
				losses++
			}
			runs++
			if !hit {
				break
			}
		}
	}
	return runs, losses
}

// loss is a failure that a run may end with.
type loss struct{ text string }

type lossFailer struct{}

func (lossFailer) Helper()                           {}
func (lossFailer) Fatalf(format string, args ...any) { panic(loss{fmt.Sprintf(format, args...)}) }
func (lossFailer) Fatal(args ...any)                 { panic(loss{fmt.Sprint(args...)}) }

func lossOf(f func(failer)) (text string) {
	defer func() {
		if r := recover(); r != nil {
			l, ok := r.(loss)
			if !ok {
				panic(r)
			}
			text = l.text
		}
	}()
	f(lossFailer{})
	return ""
}

// A death of payer, hop or payee at any save or send costs nobody anything.
func TestCrashMatrix(t *testing.T) {
	for nodes := 2; nodes <= 4; nodes++ {
		for _, carries := range []bool{false, true} {
			for _, away := range []int64{0, 100_000} {
				if runs, _ := matrix(t, nodes, carries, away, nil); runs < 10*nodes {
					t.Fatalf("%d nodes: only %d runs", nodes, runs)
				}
			}
		}
	}
}

// The same with nodes that leave a guard away: the matrix has to find a loss.
func TestWeakVariantsLose(t *testing.T) {
	for name, weaken := range map[string]func(*simNet, *simNode){
		"sends before it saves":            func(_ *simNet, n *simNode) { n.weak = true },
		"claims before the packet is kept": func(_ *simNet, n *simNode) { n.hasty = true },
		"keeps no results":                 func(s *simNet, _ *simNode) { s.forgetful = true },
	} {
		if _, losses := matrix(t, 3, true, 0, weaken); losses == 0 {
			t.Errorf("a node that %s never lost anything: the matrix sees nothing", name)
		}
	}
}

// Many packets, links that break and nodes that die at random, any order of
// delivery between links.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		nodes := rapid.IntRange(2, 5).Draw(rt, "nodes")
		s := newSimNet(rt, nodes)
		s.carries = rapid.Bool().Draw(rt, "carries")
		s.away = rapid.SampledFrom([]int64{0, 100_000}).Draw(rt, "away")
		if rapid.Bool().Draw(rt, "locks") {
			s.lockable(tally.Amount(rapid.Uint64Range(0, 600).Draw(rt, "limit")), rapid.SampledFrom([]int64{60_000, 250_000, 900_000}).Draw(rt, "expires"))
		}
		deaths := rapid.IntRange(0, 4).Draw(rt, "deaths")
		s.point = func(int, string) bool {
			if deaths > 0 && rapid.IntRange(0, 40).Draw(rt, "dies") == 0 {
				deaths--
				return true
			}
			return false
		}
		pick := func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "pick") }
		for k := range byte(rapid.IntRange(1, 12).Draw(rt, "packets")) {
			if rapid.Bool().Draw(rt, "kept") {
				k += 100
			}
			under := rapid.Bool().Draw(rt, "under a point")
			s.points = func(byte) bool { return under }
			s.offer(k+2, tally.Amount(rapid.Uint64Range(0, 400).Draw(rt, "amount")))
			for range rapid.IntRange(0, 8).Draw(rt, "deliver") {
				s.deliver(pick)
				if rapid.IntRange(0, 10).Draw(rt, "act") == 0 {
					s.act(pick(nodes))
				}
				if rapid.IntRange(0, 30).Draw(rt, "cut") == 0 {
					s.cut(pick(nodes - 1))
				}
				if rapid.IntRange(0, 10).Draw(rt, "mend") == 0 {
					s.mend()
				}
			}
		}
		s.point = func(int, string) bool { return false }
		s.settle(pick)
		s.atRest()
	})
}
