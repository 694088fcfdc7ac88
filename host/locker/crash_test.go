package locker

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/lock"
)

// The crash matrix of locks. Goal: no power loss of payer or payee, at any write of
// slot or voucher and at any message, costs anybody money or decides a lock in two
// ways. Method: a run through the lives of locks that are fulfilled, given up and
// left, and of their channel, is made once without a crash, to count the commits of
// each side and the messages. Then it is made again for each commit of each side
// with a crash before and one after it, and for each message, lost and carried, with
// the death of its sender. Who died starts again on what its disk kept; what the
// carriers of both have on disk is compared with what the chain paid.

// decideAgain is what a carrier does after a start: its journal says what it wants.
func (r *rig) decideAgain() {
	k := r.payee.locker
	if k == nil {
		return
	}
	for _, row := range k.List() {
		if row.Phase == lock.Locked {
			crashScript(r.payee, row.Lock)
		}
	}
}

// crashScript is the payee's mind: 1 and 4 are fulfilled, 2 is given up, 3 is left.
func crashScript(s *side, l lock.Lock) {
	switch l.ID {
	case 1, 4:
		fulfils(s, l)
	case 2:
		gives(s, l)
	}
}

// place offers a lock until it is on disk or decided.
func (r *rig) place(id uint64, amount tally.Amount, until int64) {
	for range 5 {
		if r.payer.outcome(id) != "" {
			return
		}
		if k := r.payer.locker; k != nil {
			err := k.Offer(context.Background(), r.payee.id, r.offerOf(id, amount, until))
			if err == nil && !r.payer.dead() {
				return // else a ghost placed it
			}
		}
		r.mend()
		r.decideAgain()
	}
	r.t.Errorf("lock %d cannot be placed", id)
}

func (r *rig) play() {
	r.payee.decide = crashScript
	amounts := map[uint64]tally.Amount{1: 500, 2: 300, 3: 200, 4: 50}
	until := r.head() + 26
	for id := uint64(1); id <= 4; id++ {
		r.place(id, amounts[id], until)
		r.pass(1)
		r.decideAgain()
	}
	for r.head() < until+6 {
		r.pass(1)
		r.decideAgain()
	}
	paid := r.finish(r.payee)
	var sum tally.Amount
	for id, amount := range amounts {
		payer, payee := r.payer.outcome(id), r.payee.outcome(id)
		want := "failed"
		if id == 1 || id == 4 {
			want = "paid"
		}
		if payer != want || payee != want && !(payee == "" && want == "failed") {
			r.t.Errorf("lock %d: %q at the payer, %q at the payee, want %q", id, payer, payee, want)
		}
		if payer == "paid" {
			sum += amount
		}
	}
	if paid != sum {
		r.t.Errorf("the chain paid %d, the locks came to %d", paid, sum)
	}
}

func TestCrashMatrix(t *testing.T) { bothKinds(t, crashMatrix) }

func crashMatrix(t *testing.T, points bool) {
	step := 7
	if os.Getenv("TALLY_LONG") != "" {
		step = 1
	}
	var from, upto [2]int
	sent := [2]int{}
	inRig(t, func(r *rig) {
		r.points = points

		from, sent[0] = [2]int{r.payer.disk.Commits(), r.payee.disk.Commits()}, r.sent
		r.play()
		upto, sent[1] = [2]int{r.payer.disk.Commits(), r.payee.disk.Commits()}, r.sent
	})
	t.Logf("commits %v to %v, messages %v", from, upto, sent)
	if t.Failed() || upto[0] == from[0] || sent[1] == sent[0] {
		t.Fatal("nothing to crash")
	}
	for who := range from {
		for i := from[who] + 1; i <= upto[who]; i += step {
			for _, after := range [...]bool{false, true} {
				t.Run(fmt.Sprintf("side %d commit %d after %v", who, i, after), func(t *testing.T) {
					inRig(t, func(r *rig) {
						r.points = points

						disk := [...]*side{r.payer, r.payee}[who].disk
						if after {
							disk.CrashAfter(i)
						} else {
							disk.CrashBefore(i)
						}
						r.play()
					})
				})
			}
		}
	}
	for i := sent[0] + 1; i <= sent[1]; i += max(1, step/3) {
		for _, carried := range [...]bool{false, true} {
			t.Run(fmt.Sprintf("message %d carried %v", i, carried), func(t *testing.T) {
				inRig(t, func(r *rig) {
					r.points = points

					r.mu.Lock()
					r.onSend = func(_ *side, n int) (bool, bool) { return n == i, carried || n != i }
					r.mu.Unlock()
					r.play()
				})
			})
		}
	}
}
