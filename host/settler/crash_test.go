package settler

import (
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally/swap"
)

// The crash matrix of hard mode. Goal: no power loss of one side, at any write of
// tab, link or channel and at any message, costs anybody money, pays anything
// twice or leaves two books that differ. Method: a run through a channel's whole
// life (opened by the first threshold, cheques, closed, the next one opened) is
// made once without a crash, to count the commits of each side and the messages.
// Then it is made again for each commit of each side with a crash before and one
// after it, and for each message, lost and carried, with the death of its sender.
// Who died starts again on what its disk kept, both shake hands, the run goes on
// to its end, and books and chain are compared.

// crashRun is one run; dies decides at each message.
type crashRun struct {
	*rig
	sent int
	dies func(from *side, sent int) (dead, carried bool)
}

func newCrashRun(t *testing.T, arm func(a, b *side)) *crashRun {
	r := &crashRun{rig: newRig(t)}
	r.onSend = func(from *side, _ swap.Message) bool {
		r.mu.Lock()
		r.sent++
		n := r.sent
		r.mu.Unlock()
		if r.dies == nil {
			return true
		}
		dead, carried := r.dies(from, n)
		if dead {
			from.die()
		}
		return carried
	}
	if arm != nil {
		arm(r.a, r.b)
	}
	return r
}

// play runs the script and checks its end.
func (r *crashRun) play() {
	beforeA, beforeB := r.balance(r.a), r.balance(r.b)
	r.begin()
	for range 8 {
		_ = r.serve(r.a, r.b, 20, 30*time.Second) // a crash may take the caller with it
		r.pass(2 * time.Second)
	}
	r.pass(90 * time.Second) // cheques are sent again, books compared
	r.agree()
	r.closeChannel(r.a)
	for range 6 {
		_ = r.serve(r.a, r.b, 20, 30*time.Second)
		r.pass(2 * time.Second)
	}
	r.pass(90 * time.Second)
	r.agree()
	if l := r.a.settler.linkOf(r.b.id, swap.Consume); l.state == linkBound {
		r.closeChannel(r.a)
	}
	r.pass(90 * time.Second)
	r.agree()
	for _, s := range [...]*side{r.a, r.b} {
		if err := s.Check(r.t.Context()); err != nil {
			r.t.Errorf("book of %s: %v", s.name, err)
		}
	}
	row := r.b.row(r.a)
	if row.Received < 200 {
		r.t.Errorf("only %d were paid", row.Received)
	}
	paid := toAtto(row.Received)
	if got := big.Sub(r.balance(r.b), beforeB); !got.Equals(paid) {
		r.t.Errorf("the chain paid %v, the books say %v", got, paid)
	}
	if got := big.Sub(beforeA, r.balance(r.a)); !got.Equals(paid) {
		r.t.Errorf("the payer spent %v, the books say %v", got, paid)
	}
	// A crash may cost units between two checkpoints, within W.
	if lost := int64(14*20) - int64(row.Served); lost > 14*20-200 {
		r.t.Errorf("%d units were never booked", lost)
	}
}

// every is the step through the matrix: a part of it by default, all of it with
// SETTLER_CRASH=all.
func every() int {
	if os.Getenv("SETTLER_CRASH") == "all" {
		return 1
	}
	return 5
}

func TestCrashMatrix(t *testing.T) {
	var commits [2]int
	sent := 0
	t.Run("whole", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newCrashRun(t, nil)
			r.play()
			commits, sent = [2]int{r.a.disk.Commits(), r.b.disk.Commits()}, r.sent
		})
	})
	t.Logf("commits %v, messages %d", commits, sent)
	if commits[0] == 0 || sent == 0 {
		t.Fatal("nothing to crash")
	}
	step := every()
	for who, n := range commits {
		for i := 1; i <= n; i += step {
			for _, after := range [...]bool{false, true} {
				t.Run(fmt.Sprintf("side %d commit %d after %v", who, i, after), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						newCrashRun(t, func(a, b *side) {
							disk := [...]*side{a, b}[who].disk
							if after {
								disk.CrashAfter(i)
							} else {
								disk.CrashBefore(i)
							}
						}).play()
					})
				})
			}
		}
	}
	for i := 1; i <= sent; i += step {
		for _, carried := range [...]bool{false, true} {
			t.Run(fmt.Sprintf("message %d carried %v", i, carried), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newCrashRun(t, nil)
					r.dies = func(_ *side, n int) (bool, bool) { return n == i, carried || n != i }
					r.play()
				})
			})
		}
	}
}
