package forward

import (
	"maps"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/lock"
)

// Channels for the row of sim_test.go: what a node's locker has on its disk, in as few
// states as the hops can tell apart. Slots, vouchers and the chain have a search of
// their own in package lock; here a lock lasts as long as the test.

type simPhase int

const (
	simLocked simPhase = iota + 1
	simOpened          // the payer has the preimage; the payee shows it
	simGiven
)

type simLock struct {
	phase    simPhase
	m        Msg
	until    int64
	preimage tally.Preimage
}

// simChannels are on a node's disk.
type simChannels struct {
	out, in map[HeldLock]*simLock
	notes   map[uint64]Event
	// Sums of the lanes, by neighbour.
	paid, got map[peer.ID]tally.Amount
	noteless  bool // keeps no notes: a variant that has to lose
}

func newSimChannels() *simChannels {
	return &simChannels{
		out: make(map[HeldLock]*simLock), in: make(map[HeldLock]*simLock), notes: make(map[uint64]Event),
		paid: make(map[peer.ID]tally.Amount), got: make(map[peer.ID]tally.Amount),
	}
}

// simTimes are the chain as the hops see it.
type simTimes struct{ s *simNet }

var simTerms = lock.Terms{Finality: 1, Inclusion: 2, Grace: 2, SettleDelay: 3000, Margin: 100, Skew: 1, Slots: 64}

func (x simTimes) Times() (lock.Terms, lock.Clock, bool) {
	return simTerms, lock.Clock{Head: x.s.now / 1000, HeadMS: x.s.now, EpochMS: 1000}, true
}

func (x simTimes) Room(peer.ID) (Room, bool) {
	return Room{Free: 1 << 40, Slots: 64, Points: true}, true
}
func (x simTimes) Least() tally.Amount { return 0 }

func simChannel(m Msg) *Msg {
	m.Lock = &LockMsg{Channel: []byte{1}, Voucher: []byte{1}}
	return &m
}

func (s *simNet) index(p peer.ID) int { return int(p[len(p)-1] - '0') }

// post sends a message about a lock.
func (s *simNet) post(i int, to peer.ID, m Msg) {
	if j := s.index(to); s.up[min(i, j)] {
		s.queues[[2]int{i, j}] = append(s.queues[[2]int{i, j}], simChannel(m))
	}
}

// tell has the hop hear of a lock when it has carried out what it is at.
func (s *simNet) tell(i int, ev Event) {
	n := s.nodes[i]
	n.told = append(n.told, ev)
}

// lockSaves reports false where the node dies before it saves.
func (s *simNet) lockSaves(i int) bool {
	if s.point(i, "lock") {
		s.die(i)
		return false
	}
	return true
}

// lockEffect is what a locker does. It reports false where the node died.
func (s *simNet) lockEffect(i int, f *Effect) bool {
	n := s.nodes[i]
	c, key := n.channels, HeldLock{f.Peer, f.Ref}
	switch f.Kind {
	case FxLock:
		return s.hear(i, f.Peer, f.Msg)
	case FxOffer:
		if !s.lockSaves(i) {
			return false
		}
		n.records[f.Key] = f.Record
		c.out[HeldLock{f.Peer, f.Key}] = &simLock{phase: simLocked, m: *f.Msg, until: int64(f.Ref)}
		s.post(i, f.Peer, *f.Msg)
	case FxShow:
		x := c.in[key]
		if x == nil || x.phase == simGiven {
			s.tell(i, Event{Kind: EvLockShown, Peer: f.Peer, ID: f.Ref, Failed: true})
			return true
		}
		if x.phase == simLocked {
			if !s.lockSaves(i) {
				return false
			}
			x.phase, x.preimage = simOpened, f.Msg.Preimage
			delete(n.records, f.Key)
		}
		s.post(i, f.Peer, Msg{Kind: MsgFulfil, ID: f.Ref, Preimage: x.preimage})
		s.tell(i, Event{Kind: EvLockShown, Peer: f.Peer, ID: f.Ref})
	case FxGive:
		if x := c.in[key]; x != nil && x.phase == simLocked {
			if !s.lockSaves(i) {
				return false
			}
			x.phase, x.m = simGiven, Msg{Kind: MsgReject, ID: f.Ref, Code: f.Msg.Code, Hop: f.Msg.Hop}
			s.post(i, f.Peer, x.m)
		}
	}
	return true
}

// hear is what a locker does with a message.
func (s *simNet) hear(i int, from peer.ID, m *Msg) bool {
	n := s.nodes[i]
	c, key := n.channels, HeldLock{from, m.ID}
	decided := func(ev *Msg, save func()) bool {
		if !s.lockSaves(i) {
			return false
		}
		save()
		told := Event{Kind: EvLockDecided, Peer: from, ID: m.ID, Msg: ev}
		if !c.noteless {
			c.notes[m.ID] = told
		}
		s.tell(i, told)
		return true
	}
	switch m.Kind {
	case MsgPrepare:
		switch x := c.in[key]; {
		case x == nil:
			if !s.lockSaves(i) {
				return false
			}
			terms, clock, _ := simTimes{s}.Times()
			until := clock.At(m.Expires) - 1 // the lock's epoch, as its payer said it
			_ = terms
			c.in[key] = &simLock{phase: simLocked, m: *m, until: until}
			s.tell(i, Event{Kind: EvLockTaken, Peer: from, ID: m.ID, Lock: &lock.Lock{ID: m.ID, Amount: m.Amount, Hash: m.Condition.Digest, Point: m.Condition.Point, Expires: until}})
		case x.phase == simGiven:
			s.post(i, from, x.m)
		}
	case MsgFulfil:
		x := c.out[key]
		if x != nil && x.phase == simLocked {
			if !decided(&Msg{Kind: MsgFulfil, Preimage: m.Preimage}, func() {
				x.phase = simOpened
				c.paid[from] += x.m.Amount
			}) {
				return false
			}
		}
		s.post(i, from, Msg{Kind: MsgUnlock, ID: m.ID})
	case MsgUnlock:
		if x := c.in[key]; x != nil {
			if !s.lockSaves(i) {
				return false
			}
			c.got[from] += x.m.Amount
			delete(c.in, key)
		}
		s.post(i, from, Msg{Kind: MsgUnlockAck, ID: m.ID})
	case MsgUnlockAck:
		delete(c.out, key)
	case MsgReject:
		if x := c.out[key]; x != nil && x.phase == simLocked {
			if !decided(&Msg{Kind: MsgReject, Code: CodeRefused, Hop: hopIn}, func() { delete(c.out, key) }) {
				return false
			}
		}
		s.post(i, from, Msg{Kind: MsgRejectAck, ID: m.ID})
	case MsgRejectAck:
		if x := c.in[key]; x != nil && x.phase == simGiven {
			delete(c.in, key)
		}
	}
	return true
}

// resend is the sync of lanes after a reconnect.
func (s *simNet) resend(i int, to peer.ID) {
	c := s.nodes[i].channels
	for _, key := range sortedLocks(c.out) {
		if key.Peer != to {
			continue
		}
		m := c.out[key].m
		if c.out[key].phase == simOpened {
			m = Msg{Kind: MsgUnlock, ID: key.ID}
		}
		s.post(i, to, m)
	}
	for _, key := range sortedLocks(c.in) {
		switch x := c.in[key]; {
		case key.Peer != to:
		case x.phase == simOpened:
			s.post(i, to, Msg{Kind: MsgFulfil, ID: key.ID, Preimage: x.preimage})
		case x.phase == simGiven:
			s.post(i, to, x.m)
		}
	}
}

func sortedLocks(m map[HeldLock]*simLock) []HeldLock {
	return slices.SortedFunc(maps.Keys(m), func(a, b HeldLock) int {
		if a.Peer != b.Peer {
			return int(a.Peer[len(a.Peer)-1]) - int(b.Peer[len(b.Peer)-1])
		}
		return int(a.ID) - int(b.ID)
	})
}

// reconcile is what a start does with what the disk has of locks.
func (s *simNet) reconcile(i int) {
	n := s.nodes[i]
	c := n.channels
	held := make(map[HeldLock]bool)
	for _, k := range n.hop.HeldLocks() {
		held[k] = true
	}
	for _, id := range slices.Sorted(maps.Keys(c.notes)) {
		s.tell(i, c.notes[id])
	}
	for _, k := range sortedLocks(c.in) {
		if !held[k] && c.in[k].phase == simLocked {
			c.in[k].phase, c.in[k].m = simGiven, Msg{Kind: MsgReject, ID: k.ID, Code: CodeInternal}
		}
	}
	for k := range held {
		if c.in[k] == nil {
			s.tell(i, Event{Kind: EvLockEnded, Peer: k.Peer, ID: k.ID})
		}
	}
	s.heardAll(i)
	if fx := n.hop.resumeLocks(nil); len(fx) > 0 && !n.dead {
		s.carryOut(i, fx)
		s.heardAll(i)
	}
}

// heardAll steps what the locker told.
func (s *simNet) heardAll(i int) {
	n := s.nodes[i]
	for len(n.told) > 0 && !n.dead {
		ev := n.told[0]
		n.told = n.told[1:]
		if ev.Msg != nil {
			cp := *ev.Msg
			ev.Msg = &cp
		}
		s.step(i, &ev)
	}
}

// lanesAtRest checks what has to hold of locks when nothing moves, and returns what
// the lanes of node i made it gain.
func (s *simNet) lanesAtRest(i int) (net tally.Balance) {
	s.t.Helper()
	n := s.nodes[i]
	c := n.channels
	if len(c.in)+len(c.out)+len(c.notes) != 0 {
		s.t.Fatalf("%s: locks in %v, out %v, notes %v", n.id, c.in, c.out, c.notes)
	}
	for p, l := range n.hop.links {
		if l.locks != nil && len(l.locks.in)+len(l.locks.out) != 0 {
			s.t.Fatalf("%s: %d locks in and %d out with %s", n.id, len(l.locks.in), len(l.locks.out), p)
		}
	}
	for p, sum := range c.paid {
		if got := s.nodes[s.index(p)].channels.got[n.id]; got != sum {
			s.t.Fatalf("lanes of %s to %s: %d paid, %d there", n.id, p, sum, got)
		}
		net -= tally.Balance(sum)
	}
	for _, sum := range c.got {
		net += tally.Balance(sum)
	}
	return net
}

// lockTotal is what all lanes paid.
func (s *simNet) lockTotal() (sum tally.Amount) {
	for _, n := range s.nodes {
		for _, paid := range n.channels.paid {
			sum += paid
		}
	}
	return sum
}

// A death of payer, hop or payee at any save or send costs nobody anything, where some
// packets go on credit, some under locks, and some on one side each.
func TestLockCrashMatrix(t *testing.T) {
	for _, c := range []struct {
		nodes   int
		limit   tally.Amount // of the tabs
		expires int64
	}{{2, 60, 30_000}, {3, 60, 60_000}, {4, 60, 60_000}, {3, 0, 60_000}, {4, 90, 250_000}, {3, 90, 900_000}, {4, 90, 900_000}} {
		for _, carries := range []bool{false, true} {
			moved := tally.Amount(0)
			runs, _ := matrix(t, c.nodes, carries, 0, func(s *simNet, _ *simNode) {
				s.lockable(c.limit, c.expires)
				s.strict = true
				s.points = func(k byte) bool { return k%2 == 0 }
				s.rested = func() { moved += s.lockTotal() }
			})
			if runs < 10*c.nodes || moved == 0 {
				t.Fatalf("%+v: %d runs, %d moved under locks", c, runs, moved)
			}
		}
	}
}

// A node that carries points on credit is found by the first of them that fits a tab.
func TestPointsOnCreditAreFound(t *testing.T) {
	for i, name := range []string{"the payer", "a hop"} {
		_, losses := matrix(t, 3, true, 0, func(s *simNet, _ *simNode) {
			s.lax = map[peer.ID]bool{simPeer(i): true}
			s.lockable(1000, []int64{60_000, 900_000}[i])
			s.points = func(byte) bool { return true }
		})
		if losses == 0 {
			t.Errorf("%s carries points on credit, and nothing saw it", name)
		}
	}
}

func TestNotesAreNeeded(t *testing.T) {
	_, losses := matrix(t, 3, true, 0, func(s *simNet, n *simNode) {
		s.lockable(0, 60_000)
		n.channels.noteless = true
	})
	if losses == 0 {
		t.Error("a node that notes nothing of its locks never lost anything: the matrix sees nothing")
	}
}
