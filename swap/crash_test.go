package swap

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

// The crash matrix. Goal: no crash of one side, at any write and at any message,
// costs anybody money or leaves two books that differ. Method: a run of two
// books over a wire is made once without a crash, to count the commits of each
// side and the messages. Then it is made again for each commit of each side,
// with a crash before and one after it landed, and for each message, lost and
// carried with the death of its sender. Who died starts again on what its disk
// kept, both shake hands, the run goes on to its end, and the books at rest are
// compared.

// crashRun is one run with its crashes.
type crashRun struct {
	t    *testing.T
	w    *wire
	sent int // messages so far
	dies func(n *node, sent int) (dead, carried bool)
	down int // crashes so far
}

const crashRounds = 24

// newCrashRun opens two nodes; arm may break their disks.
func newCrashRun(t *testing.T, mode Mode, arm func(a, b *node)) *crashRun {
	r := &crashRun{t: t}
	var change [2][]func(*Config)
	if mode == ModeHard {
		// The vault keeps its own store, which is whole whatever the book's disk
		// does: each intent must be in the book's before it is asked.
		for i := range change {
			v := &vault{}
			change[i] = append(change[i], hard(v))
		}
	}
	a, b := newNode(t, 0, change[0]...), newNode(t, 1, change[1]...)
	for _, n := range []*node{a, b} {
		if v, ok := n.cfg.Settler.(*vault); ok {
			v.before = func(p peer.ID, cumulative tally.Amount) error { return savedIntent(n, p, cumulative) }
		}
	}
	if arm != nil {
		arm(a, b)
	}
	r.w = &wire{t: t, a: a, b: b}
	t.Cleanup(r.w.hangUp)
	r.w.onSend = func(from *node, m Message) (bool, error) {
		r.w.mu.Lock()
		r.sent++
		n := r.sent
		r.w.mu.Unlock()
		if r.dies == nil {
			return true, nil
		}
		dead, carried := r.dies(from, n)
		if dead {
			from.die()
		}
		return carried, nil
	}
	return r
}

// savedIntent fails where the intent that is asked for is not on disk.
func savedIntent(n *node, p peer.ID, cumulative tally.Amount) error {
	l, ok := n.onDisk(p)
	if !ok || l.settle != settleIntent || l.issued != cumulative {
		err := fmt.Errorf("issue of %d is asked for, on disk is %v %d", cumulative, l.settle, l.issued)
		n.t.Error(err)
		return err
	}
	return nil
}

// mend starts who died and shakes hands.
func (r *crashRun) mend() {
	synctest.Wait()
	for r.w.a.dead() || r.w.b.dead() {
		r.down++
		r.w.redial()
		synctest.Wait()
	}
}

// play runs the whole script: service both ways, more of it one way, with a
// settlement about every fifth time.
func (r *crashRun) play() {
	r.w.dial()
	r.mend()
	for i := range crashRounds {
		client, server, units := r.w.a, r.w.b, tally.Amount(20)
		if i%5 == 3 {
			client, server, units = r.w.b, r.w.a, 7
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err := serve(ctx, client, server, units)
		cancel()
		r.mend()
		if err != nil && r.down == 0 {
			r.t.Fatalf("round %d: %v", i, err)
		}
		time.Sleep(50 * time.Millisecond) // bubble; two rounds a write-behind
		r.mend()
	}
	time.Sleep(45 * time.Second) // bubble: acks are asked for again, statements told
	r.mend()
	time.Sleep(45 * time.Second) // bubble
	synctest.Wait()
}

// judge compares the books at rest.
func (r *crashRun) judge() {
	t := r.t
	t.Helper()
	a, b := r.w.a, r.w.b
	a.check()
	b.check()
	agree(t, a, b)
	for _, n := range []*node{a, b} {
		other := r.w.other(n)
		row := n.row(other)
		l := n.tab(other.id)
		policy := n.Policy()
		if r.down <= 1 && l.forgiven != 0 {
			t.Errorf("one crash cost %s %d units", n.name, l.forgiven)
		}
		if limit := policy.Slack() + row.Received/100; l.forgiven > limit {
			t.Errorf("%s forgave %d, limit %d", n.name, l.forgiven, limit)
		}
		if row.SkewBlocks {
			t.Errorf("%s holds the books for different: %+v", n.name, row)
		}
		if l.settle != settleIdle {
			t.Errorf("%s is still %v", n.name, l.settle)
		}
		acked := tally.Amount(0)
		for _, m := range messages[*Ack](r.w, other) {
			acked = max(acked, m.Credited)
		}
		if row.Paid < acked {
			t.Errorf("%s has paid %d, an ack said %d", n.name, row.Paid, acked)
		}
		if other.row(n).Received < acked {
			t.Errorf("%s acked %d and holds %d", other.name, acked, other.row(n).Received)
		}
		// One serial is one text: who signs two is taken for a liar.
		text := map[uint64][]byte{}
		highest := tally.Amount(0)
		for _, m := range messages[*Cheque](r.w, n) {
			if old, ok := text[m.Serial]; ok && !bytes.Equal(old, m.Signature) {
				t.Errorf("%s signed two cheques %d", n.name, m.Serial)
			}
			text[m.Serial] = m.Signature
			highest = max(highest, m.Cumulative)
		}
		if got := other.row(n).Received; got > highest {
			t.Errorf("%s credited %d, cheques named %d", other.name, got, highest)
		}
		if list, err := other.Evidence(context.Background(), n.id); err != nil || len(list) != 0 {
			t.Errorf("%s keeps %d cheques as evidence, %v", other.name, len(list), err)
		}
		if v, ok := n.cfg.Settler.(*vault); ok {
			r.judgeVault(n, v)
		}
	}
}

// judgeVault: each cumulative that was ever asked for became a cheque before a
// higher one was asked for.
func (r *crashRun) judgeVault(n *node, v *vault) {
	named := map[tally.Amount]bool{}
	for _, m := range messages[*Cheque](r.w, n) {
		named[m.Cumulative] = true
	}
	last := tally.Amount(0)
	for _, c := range v.issues() {
		if c < last {
			r.t.Errorf("%s: Issue was asked for %d after %d", n.name, c, last)
		}
		if c > last && last != 0 && !named[last] {
			r.t.Errorf("%s: Issue was asked for %d before cheque %d left", n.name, c, last)
		}
		last = c
	}
}

// crash makes one run with a crash, and returns it.
func crash(t *testing.T, mode Mode, arm func(a, b *node), dies func(n *node, sent int) (bool, bool)) (run *crashRun) {
	synctest.Test(t, func(t *testing.T) {
		run = newCrashRun(t, mode, arm)
		run.dies = dies
		run.play()
		run.judge()
	})
	return run
}

func TestCrashMatrix(t *testing.T) {
	for _, mode := range []Mode{ModeMock, ModeHard} {
		t.Run(mode.String(), func(t *testing.T) {
			var commits [2]int
			whole := crash(t, mode, nil, nil)
			if whole.down != 0 {
				t.Fatal("the run without a crash has one")
			}
			commits[0], commits[1] = whole.w.a.disk.Commits(), whole.w.b.disk.Commits()
			acks := len(messages[*Ack](whole.w, whole.w.b))
			t.Logf("%d and %d commits, %d messages, %d cheques acked", commits[0], commits[1], whole.sent, acks)
			if acks < 2 {
				t.Fatal("the run has too few settlements to tell anything")
			}
			for i, name := range []string{"a", "b"} {
				for n := 2; n <= commits[i]; n++ { // 1 is the run record of Open
					for _, after := range []bool{false, true} {
						t.Run(fmt.Sprintf("commit/%s/%d/after=%v", name, n, after), func(t *testing.T) {
							crash(t, mode, func(a, b *node) { breakAt([]*node{a, b}[i], n, after) }, nil)
						})
					}
				}
			}
			for n := 1; n <= whole.sent; n++ {
				for _, carried := range []bool{false, true} {
					t.Run(fmt.Sprintf("message/%d/carried=%v", n, carried), func(t *testing.T) {
						run := crash(t, mode, nil, func(_ *node, sent int) (bool, bool) { return sent == n, sent != n || carried })
						if run.down != 1 {
							t.Errorf("%d crashes", run.down)
						}
					})
				}
			}
		})
	}
}

func breakAt(n *node, commit int, after bool) {
	if commit <= n.disk.Commits() {
		return // made before this test could break it
	}
	if after {
		n.disk.CrashAfter(commit)
	} else {
		n.disk.CrashBefore(commit)
	}
}

// Both sides lose power at once: the same, with the units that were unsaved on
// both sides gone for good.
func TestCrashBoth(t *testing.T) {
	whole := crash(t, ModeMock, nil, nil)
	for n := 2; n <= whole.w.a.disk.Commits(); n++ {
		t.Run(fmt.Sprintf("commit/%d", n), func(t *testing.T) {
			crash(t, ModeMock, func(a, b *node) {
				breakAt(a, n, n%2 == 0)
				breakAt(b, n, n%3 == 0)
			}, nil)
		})
	}
	for n := 1; n <= whole.sent; n++ {
		t.Run(fmt.Sprintf("message/%d", n), func(t *testing.T) {
			var run *crashRun
			synctest.Test(t, func(t *testing.T) {
				run = newCrashRun(t, ModeMock, nil)
				run.dies = func(from *node, sent int) (bool, bool) {
					if sent == n {
						run.w.other(from).die()
					}
					return sent == n, sent != n
				}
				run.play()
				run.judge()
			})
		})
	}
}

// A process that dies, comes back and dies again, at seeded points.
func TestCrashAgainAndAgain(t *testing.T) {
	for seed := range 24 {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			crash(t, ModeHard, nil, func(_ *node, sent int) (bool, bool) {
				dead := sent%(5+seed%7) == 0 && sent < 60
				return dead, !dead || seed%2 == 0
			})
		})
	}
}

// A process that dies while it recovers from its last death: at each commit of
// its second life, which begins with a cheque under way.
func TestCrashInRecovery(t *testing.T) {
	for _, mode := range []Mode{ModeMock, ModeHard} {
		for first := 1; first <= 4; first++ {
			for n := 2; n <= 9; n++ {
				t.Run(fmt.Sprintf("%v/message/%d/commit/%d", mode, first, n), func(t *testing.T) {
					crash(t, mode, func(a, b *node) {
						for _, x := range []*node{a, b} {
							x.onRevive = func(disk *durabletest.Crash) {
								if n%2 == 0 {
									disk.CrashBefore(n)
								} else {
									disk.CrashAfter(n)
								}
							}
						}
					}, func(_ *node, sent int) (bool, bool) { return sent == first, sent != first || n%4 < 2 })
				})
			}
		}
	}
}
