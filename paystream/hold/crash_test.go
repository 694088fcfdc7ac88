package hold

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

// One hold of 100. Goal: wherever one of the three stops, at each commit and each
// call to its carrier, before or after it, the hold is decided in the end, in the
// same way at all three; the holder has neither gained nor lost. Method: one side is
// stopped at one point, is away for a while, and starts again on what its disk kept.

type crashPoint struct {
	side  int
	call  bool // else a commit
	at    int
	after bool
	away  time.Duration
}

func (p crashPoint) String() string {
	what, when := "commit", "before"
	if p.call {
		what = "call"
	}
	if p.after {
		when = "after"
	}
	return fmt.Sprintf("%s/%s/%s/%d/away=%v", names[p.side], when, what, p.at, p.away)
}

// fates counts how runs ended.
type fates struct{ complete, failed int }

func (l *life) arm(p *crashPoint, before int) {
	switch {
	case p.call:
		store := l.store
		l.carrier.KillAt(p.at, p.after, func() { store.CrashBefore(store.Commits() + 1) })
	case p.after:
		l.store.CrashAfter(before + p.at)
	default:
		l.store.CrashBefore(before + p.at)
	}
}

// verdict waits until all is certain and compares what the three say.
func (w *town) verdict(lives [3]*life, f *fates) {
	w.t.Helper()
	time.Sleep(DefaultTime + DefaultReturn + time.Hour) // bubble: late hold and all
	ours, err := lives[0].Sent(w.t.Context())
	if err != nil || len(ours) > 1 {
		w.t.Fatal(ours, err)
	}
	complete := len(ours) == 1 && ours[0].Status == StatusComplete
	if len(ours) == 1 && ours[0].Status.Lives() {
		w.t.Fatalf("not decided: %v, certain by %v", ours[0].Status, time.UnixMilli(ours[0].Certain))
	}
	list, err := lives[2].Receipts(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var got, unsure tally.Amount
	for _, r := range list {
		switch r.State {
		case ReceiptReceived:
			got += r.Amount
		case ReceiptUnsure:
			unsure += r.Amount
		default:
			w.t.Fatalf("a receipt is %s", r.State)
		}
	}
	if held, err := lives[1].Held(w.t.Context()); err != nil || len(held) != 0 {
		w.t.Fatal("the holder is not done", held, err)
	}
	if complete {
		f.complete++
		w.balances(-100, 0, 100)
	} else {
		f.failed++
		w.balances(0, 0, 0)
	}
	if got+unsure > 100 || complete && got+unsure == 0 || !complete && got > 0 {
		w.t.Fatalf("complete %t at the payer, %d at the payee, of %d it is unsure", complete, got, unsure)
	}
}

// crashRun returns how many commits and calls each makes in a run without a stop,
// where p is nil.
func crashRun(t *testing.T, p *crashPoint, f *fates) (commits, calls [3]int) {
	inTown(t, func(t *testing.T, w *town) {
		var lives [3]*life
		for i, name := range names {
			lives[i] = w.start(name, nil)
		}
		if p != nil {
			lives[p.side].arm(p, lives[p.side].store.Commits())
		}
		go func() { // ends with the agreement, or with its service
			_, _ = lives[0].Pay(t.Context(), w.request(100))
		}()
		if p != nil {
			select {
			case <-lives[p.side].store.Broken():
			case <-time.After(time.Minute): // bubble: this run does not come to the point
			}
			if p.call && !lives[p.side].carrier.Dead() {
				t.Fatal("the run did not come to this point")
			}
			disk := lives[p.side].kill()
			time.Sleep(p.away) // bubble: the node is away
			lives[p.side] = w.start(names[p.side], disk)
		}
		w.verdict(lives, f)
		for i, l := range lives {
			commits[i], calls[i] = l.store.Commits(), l.carrier.Calls()
		}
	})
	return commits, calls
}

func TestCrashMatrix(t *testing.T) {
	var f fates
	commits, calls := crashRun(t, nil, &f)
	if f.complete != 1 {
		t.Fatal("the run without a stop failed")
	}
	for side := range names {
		if calls[side] < 1 || commits[side] < 2 {
			t.Fatalf("%s: %d commits, %d calls", names[side], commits[side], calls[side])
		}
		for _, call := range []bool{false, true} {
			// The last commit deletes what is old.
			n := commits[side] - 1
			if call {
				n = calls[side]
			}
			for at := 1; at <= n; at++ {
				for _, after := range []bool{false, true} {
					// Within an offer's time, and beyond it and its late hold.
					for _, away := range []time.Duration{time.Second, time.Hour} {
						p := crashPoint{side: side, call: call, at: at, after: after, away: away}
						t.Run(p.String(), func(t *testing.T) { crashRun(t, &p, &f) })
					}
				}
			}
		}
	}
	if f.complete == 0 || f.failed == 0 {
		t.Fatalf("%+v: both have to come up", f)
	}
	t.Logf("%+v", f)
}

// TestCrashAgainAndAgain stops all three several times in one hold, with cancels in
// between, at points drawn from a seed.
func TestCrashAgainAndAgain(t *testing.T) {
	var f fates
	for seed := range uint64(40) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inTown(t, func(t *testing.T, w *town) {
				rng := rand.New(rand.NewPCG(seed, 2))
				var lives [3]*life
				for i, name := range names {
					lives[i] = w.start(name, nil)
				}
				paid := make(chan ID, 1)
				payer := lives[0]
				go func() { // ends with the agreement, or with its service
					row, _ := payer.Pay(t.Context(), w.request(100))
					paid <- row.ID
				}()
				for range 1 + rng.IntN(8) {
					side := rng.IntN(3)
					l := lives[side]
					l.arm(&crashPoint{call: rng.IntN(2) == 0, at: l.carrier.Calls() + 1 + rng.IntN(2), after: rng.IntN(2) == 0}, l.store.Commits())
					select {
					case <-l.store.Broken():
					case <-time.After(time.Duration(rng.IntN(60_000)) * time.Millisecond): // bubble: a while
					}
					if rng.IntN(6) == 0 {
						select {
						case id := <-paid:
							_ = lives[0].CancelOurs(t.Context(), id)
						default:
						}
					}
					disk := l.kill()
					time.Sleep(time.Duration(rng.IntN(900_000)) * time.Millisecond) // bubble: the node is away
					lives[side] = w.start(names[side], disk)
				}
				w.verdict(lives, &f)
			})
		})
	}
	if f.complete == 0 || f.failed == 0 {
		t.Fatalf("%+v: both have to come up", f)
	}
	t.Logf("%+v", f)
}

// TestSaveFails: a node whose disk fails says nothing more, and starts again on what
// it had.
func TestSaveFails(t *testing.T) {
	inTown(t, func(t *testing.T, w *town) {
		payer, holder := w.start("payer", nil), w.start("holder", nil)
		holder.store.FailAt(holder.store.Commits()+2, durabletest.ErrCrashed)
		row, err := payer.Pay(t.Context(), w.request(100))
		if err != nil {
			t.Fatal(err)
		}
		<-holder.store.Broken()
		time.Sleep(time.Second) // bubble: it has noticed
		if _, err := holder.Held(t.Context()); err == nil {
			t.Fatal("it answers without a disk")
		}
		w.start("holder", holder.kill())
		w.start("payee", nil)
		got, err := payer.Wait(t.Context(), row.ID)
		if err != nil || got.Status != StatusComplete && got.Status != StatusFailed {
			t.Fatal(got, err)
		}
	})
}
