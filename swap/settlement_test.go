package swap

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tally"
)

// This file tests settlement: when it begins, what it names, what an ack, a
// refusal or silence does to it, and what is credited for a peer's cheque. The
// matrix and the transcripts in testdata/ are meant to be read.

// indebted is a tab with 100 units of debt whose settlement is in the state
// wanted, in a session of that kind ("none", "seed" or "native").
func indebted(t testing.TB, mode Mode, state settleState, session string) *tab {
	x := newTab(t, Policy{Mode: mode})
	x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 1000, DisconnectThreshold: 1250, Mode: mode, Native: true}})
	x.consume(100)
	x.serve(40)
	x.consume(40) // so that every total is above zero
	x.l.settle, x.l.sentSerial = settleIdle, 4
	if state != settleIdle {
		x.l.settle, x.l.sentSerial, x.l.issued = state, 5, 100
	}
	switch session {
	case "none":
		x.do(Event{Kind: EvSessionEnd})
	case "seed":
		x.l.flags &^= flagNative
		x.l.peerMode = ModeUnset
	}
	x.l.dirty, x.l.retryAt = 0, 0
	return x
}

// matrixEvents is one event of each kind, with the variants that matter.
func matrixEvents() []struct {
	name string
	ev   Event
} {
	agreed := &Totals{Served: 140, Consumed: 40, SeenServed: 40, SeenConsumed: 140, AtRest: true}
	return []struct {
		name string
		ev   Event
	}{
		{"reserve serve 10", Event{Kind: EvReserve, Dir: Serve, Units: 10}},
		{"reserve consume 10", Event{Kind: EvReserve, Dir: Consume, Units: 10}},
		{"commit serve 10", Event{Kind: EvCommit, Dir: Serve, Units: 10}},
		{"commit serve 30", Event{Kind: EvCommit, Dir: Serve, Units: 30}},
		{"commit consume 10", Event{Kind: EvCommit, Dir: Consume, Units: 10}},
		{"commit consume up to the threshold", Event{Kind: EvCommit, Dir: Consume, Units: 900}},
		{"release", Event{Kind: EvRelease, Dir: Consume, Held: 10}},
		{"release, lost", Event{Kind: EvRelease, Dir: Consume, Held: 10, Units: 10, Lost: true}},
		{"session native, hard", Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 1000, Mode: ModeHard, Native: true}}},
		{"session native, mock", Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 1000, Mode: ModeMock, Native: true}}},
		{"session native, threshold reached", Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 100, Mode: ModeHard, Native: true}}},
		{"session seed", Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 1000}}},
		{"session seed, threshold reached", Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 100}}},
		{"session without terms", Event{Kind: EvSession}},
		{"session end", Event{Kind: EvSessionEnd}},
		{"tick", Event{Kind: EvTick}},
		{"settle", Event{Kind: EvSettle}},
		{"issued 5", Event{Kind: EvIssued, Serial: 5}},
		{"issued 4", Event{Kind: EvIssued, Serial: 4}},
		{"issue-failed 5", Event{Kind: EvIssueFailed, Serial: 5}},
		{"issue-failed 4", Event{Kind: EvIssueFailed, Serial: 4}},
		{"ack 5 of 100", Event{Kind: EvAck, Serial: 5, Cumulative: 100}},
		{"ack 5 of 60", Event{Kind: EvAck, Serial: 5, Cumulative: 60}},
		{"ack 5 of 0", Event{Kind: EvAck, Serial: 5}},
		{"ack 5 of 101", Event{Kind: EvAck, Serial: 5, Cumulative: 101}},
		{"ack 4 of 100", Event{Kind: EvAck, Serial: 4, Cumulative: 100}},
		{"ack 6 of 100", Event{Kind: EvAck, Serial: 6, Cumulative: 100}},
		{"refused 5", Event{Kind: EvRefused, Serial: 5}},
		{"refused 4", Event{Kind: EvRefused, Serial: 4}},
		{"refused 6", Event{Kind: EvRefused, Serial: 6}},
		{"cheque 1 of 50, covered", Event{Kind: EvCheque, Serial: 1, Cumulative: 50, Covered: 50}},
		{"cheque 1 of 50, not covered", Event{Kind: EvCheque, Serial: 1, Cumulative: 50}},
		{"cheque 0", Event{Kind: EvCheque}},
		{"cheque over the bound", Event{Kind: EvCheque, Serial: 1, Cumulative: maxLedgerAmount + 1, Covered: maxLedgerAmount + 1}},
		{"karma 50", Event{Kind: EvKarma, Units: 50}},
		{"karma beyond what is owed", Event{Kind: EvKarma, Units: tally.MaxAmount}},
		{"statement, agreed", Event{Kind: EvStatement, Totals: agreed}},
		{"statement, admits 5 less", Event{Kind: EvStatement, Totals: &Totals{Served: 140, Consumed: 35, SeenServed: 40, AtRest: true}}},
		{"statement, admits nothing", Event{Kind: EvStatement, Totals: &Totals{Served: 140, SeenServed: 40, AtRest: true}}},
		{"statement over the bound", Event{Kind: EvStatement, Totals: &Totals{Served: maxLedgerAmount + 1}}},
		{"statement without totals", Event{Kind: EvStatement}},
		{"adopt-sent 9 of 300", Event{Kind: EvAdoptSent, Serial: 9, Cumulative: 300, Totals: &Totals{Served: 40, Consumed: 340}}},
		{"adopt-sent 4", Event{Kind: EvAdoptSent, Serial: 4, Cumulative: 300, Totals: &Totals{Served: 40, Consumed: 340}}},
		{"adopt-sent without totals", Event{Kind: EvAdoptSent, Serial: 9}},
		{"adopt-received 9 of 300", Event{Kind: EvAdoptReceived, Serial: 9, Cumulative: 300, Totals: &Totals{Served: 340, Consumed: 140}}},
		{"adopt-received 0", Event{Kind: EvAdoptReceived, Totals: &Totals{}}},
		{"adopt-received over the bound", Event{Kind: EvAdoptReceived, Serial: 9, Cumulative: maxLedgerAmount + 1, Totals: &Totals{}}},
		{"resolve", Event{Kind: EvResolve, Totals: &Totals{Served: 100, Consumed: 50}}},
		{"resolve without totals", Event{Kind: EvResolve}},
		{"resolve over the bound", Event{Kind: EvResolve, Totals: &Totals{Consumed: maxLedgerAmount + 1}}},
		{"denied", Event{Kind: EvDenied}},
		{"told", Event{Kind: EvTold}},
		{"unknown event", Event{Kind: 99}},
	}
}

// TestMatrix steps one event of each kind in each state, mode and session. The
// rules that hold for all of them are asserted here: an error leaves the tab as
// it was, Check holds, a save precedes what leaves, soft mode sends nothing. The
// exact effects and the resulting state are in testdata/matrix.txt.
func TestMatrix(t *testing.T) {
	var out strings.Builder
	out.WriteString("# Every event in every state, mode and session; the tab owes 100.\n# Written by TestMatrix: event, then per state the effects and what the tab is afterwards.\n")
	for _, e := range matrixEvents() {
		fmt.Fprintf(&out, "\n%s\n", e.name)
		for state := settleIdle; state <= settleRefused; state++ {
			byOutcome := map[string][]string{}
			var order []string
			for _, mode := range []Mode{ModeSoft, ModeMock, ModeHard} {
				for _, session := range []string{"none", "seed", "native"} {
					x := indebted(t, mode, state, session)
					before := x.l
					ev := e.ev
					fx, err := x.l.Step(x.now, &ev)
					if checkErr := x.l.Check(); checkErr != nil {
						t.Errorf("%s in %v, %v, %s: %v", e.name, state, mode, session, checkErr)
					}
					var outcome string
					if err != nil {
						outcome = "refused: " + err.Error()
						if x.l != before || fx != nil {
							t.Errorf("%s in %v, %v, %s: refused, but changed the tab", e.name, state, mode, session)
						}
					} else {
						checkEffects(t, &before, &x.l, fx)
						outcome = fmt.Sprintf("[%s] %s", words(fx), describe(&x.l))
					}
					for _, f := range fx {
						if mode == ModeSoft && (f.Kind == FxIssue || f.Kind == FxSendCheque || f.Kind == FxDisconnect) {
							t.Errorf("%s in %v, %s: soft mode has %s", e.name, state, session, words(fx))
						}
					}
					if byOutcome[outcome] == nil {
						order = append(order, outcome)
					}
					byOutcome[outcome] = append(byOutcome[outcome], mode.String()+"/"+session)
				}
			}
			for _, outcome := range order {
				where := strings.Join(byOutcome[outcome], " ")
				if len(byOutcome[outcome]) == 9 {
					where = "all"
				}
				fmt.Fprintf(&out, "  %v (%s): %s\n", state, where, outcome)
			}
		}
	}
	golden(t, "matrix.txt", out.String())
}

func TestSettleTrigger(t *testing.T) {
	t.Run("at the peer's threshold", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		if fx := x.consume(99); strings.Contains(fx, "issue") {
			t.Errorf("settles at 99: %s", fx)
		}
		x.wantFx(x.consume(1), "save#1=100 issue#1=100")
	})
	t.Run("early", func(t *testing.T) {
		for percent, at := range map[uint8]tally.Amount{1: 1, 50: 50, 33: 33, 99: 99} {
			x := newTab(t, Policy{EarlyPaymentPercent: percent}).native()
			x.consume(at - 1)
			if x.l.settle != settleIdle {
				t.Errorf("%d %%: settles before %d", percent, at)
			}
			x.consume(1)
			if x.l.settle != settleIntent {
				t.Errorf("%d %%: does not settle at %d", percent, at)
			}
		}
	})
	t.Run("early rounds up and is at least one unit", func(t *testing.T) {
		x := newTab(t, Policy{EarlyPaymentPercent: 1, MinPeerThreshold: 1})
		x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 10, Native: true}})
		x.wantFx(x.consume(1), "save#1=1 issue#1=1")
		x = newTab(t, Policy{EarlyPaymentPercent: 50})
		x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 15, Native: true}})
		x.wantFx(x.consume(7), "")
		x.wantFx(x.consume(1), "save#1=8 issue#1=8")
	})
	t.Run("at our own max debt where the peer allows more", func(t *testing.T) {
		x := newTab(t, Policy{MaxDebt: 50})
		x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 1000, Native: true}})
		x.wantFx(x.consume(50), "save#1=50 issue#1=50")
	})
	t.Run("one at a time", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		x.consume(100)
		for range 3 {
			x.wait(time.Hour) // no waiting time is what keeps it back
			x.wantFx(x.consume(100), "flush")
			x.wantFx(x.do(Event{Kind: EvSettle}), "")
		}
		x.wantFx(x.do(Event{Kind: EvIssued, Serial: 1}), "save#1=100 send-cheque#1=100")
		x.wantFx(x.do(Event{Kind: EvAck, Serial: 1, Cumulative: 100}), "save#1 wake save#2=400 issue#2=400")
	})
	t.Run("not in soft mode", func(t *testing.T) {
		x := newTab(t, Policy{Mode: ModeSoft}).native()
		x.consume(1000)
		x.refuses(ErrSoft, Event{Kind: EvSettle})
		x.wantFx(x.tick(), "send-statement")
	})
	t.Run("not without a session", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.consume(1000)
		x.refuses(ErrNoSession, Event{Kind: EvSettle})
	})
	t.Run("nothing owed", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		x.serve(10)
		x.refuses(ErrNothingOwed, Event{Kind: EvSettle})
	})
	t.Run("hard backs nothing for a peer that is not hard", func(t *testing.T) {
		for _, mode := range []Mode{ModeUnset, ModeSoft, ModeMock} {
			x := newTab(t, Policy{Mode: ModeHard})
			x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 100, Mode: mode, Native: true}})
			x.consume(100)
			x.refuses(ErrPeerMode, Event{Kind: EvSettle})
			x.wantFx(x.tick(), "send-statement")
			if x.l.settle != settleIdle {
				t.Errorf("settles with a peer in mode %v", mode)
			}
		}
	})
	t.Run("cumulative is of all time", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		for i := range 5 {
			total := tally.Amount(100 * (i + 1))
			serial := uint64(i + 1)
			x.wantFx(x.consume(100), fmt.Sprintf("save#%d=%d issue#%d=%d", serial, total, serial, total))
			x.do(Event{Kind: EvIssued, Serial: serial})
			x.do(Event{Kind: EvAck, Serial: serial, Cumulative: total})
		}
	})
	t.Run("cumulative never falls, and what was not credited is asked again", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		x.consume(100)
		x.do(Event{Kind: EvIssued, Serial: 1})
		x.do(Event{Kind: EvAck, Serial: 1, Cumulative: 30})
		x.wantBalance(-70)
		x.serve(60)
		x.wantFx(x.do(Event{Kind: EvSettle}), "save#2=100 issue#2=100") // not 40: 100 may be spent
	})
	t.Run("cumulative stays within its bound", func(t *testing.T) {
		x := newTab(t, Policy{Mode: ModeHard}).native()
		x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: maxLedgerAmount, Covered: maxLedgerAmount})
		x.consume(maxLedgerAmount)
		x.do(Event{Kind: EvSettle})
		if x.l.issued > maxLedgerAmount {
			t.Errorf("issued %d is a cheque that no peer takes", x.l.issued)
		}
	})
}

// An intent whose session ended is not spent: nothing may have left.
func TestIssuedWithoutSession(t *testing.T) {
	for _, begin := range []string{"native", "seed"} {
		t.Run(begin, func(t *testing.T) {
			x := newTab(t, Policy{})
			start := x.native
			if begin == "seed" {
				start = x.seed
			}
			start()
			x.wantFx(x.consume(100), "save#1=100 issue#1=100")
			x.do(Event{Kind: EvSessionEnd})
			x.refuses(ErrNoSession, Event{Kind: EvIssued, Serial: 1})
			x.wantBalance(-100)
			start()
			if x.l.settle != settleIntent {
				t.Fatalf("settle is %v", x.l.settle)
			}
			x.do(Event{Kind: EvIssued, Serial: 1})
		})
	}
}

// Nor is one that our mode would not send in the session that came instead:
// hard mode gives no karma away, and soft mode sends nothing.
func TestIssuedInAnotherSession(t *testing.T) {
	x := indebted(t, ModeHard, settleIntent, "seed")
	x.refuses(ErrPeerMode, Event{Kind: EvIssued, Serial: 5})
	x = indebted(t, ModeHard, settleIntent, "native")
	x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 1000, Mode: ModeMock, Native: true}})
	x.refuses(ErrPeerMode, Event{Kind: EvIssued, Serial: 5})
	x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 1000, Mode: ModeHard, Native: true}})
	x.wantFx(x.do(Event{Kind: EvIssued, Serial: 5}), "save#5=100 send-cheque#5=100")
	x = indebted(t, ModeSoft, settleIntent, "native")
	x.refuses(ErrSoft, Event{Kind: EvIssued, Serial: 5})
}

func TestAck(t *testing.T) {
	pending := func(t *testing.T) *tab {
		x := newTab(t, Policy{}).native()
		x.consume(100)
		x.do(Event{Kind: EvIssued, Serial: 1})
		return x
	}
	t.Run("full", func(t *testing.T) {
		x := pending(t)
		x.wantFx(x.do(Event{Kind: EvAck, Serial: 1, Cumulative: 100}), "save#1 wake")
		x.wantBalance(0)
		x.refuses(ErrStale, Event{Kind: EvAck, Serial: 1, Cumulative: 100}) // a duplicate books nothing
		x.wantBalance(0)
	})
	t.Run("partial: the debtor credits exactly that and tops up", func(t *testing.T) {
		x := pending(t)
		x.wantFx(x.do(Event{Kind: EvAck, Serial: 1, Cumulative: 60}), "save#1 wake")
		x.wantBalance(-40)
		x.wantFx(x.consume(60), "save#2=160 issue#2=160")
	})
	t.Run("no progress waits", func(t *testing.T) {
		x := pending(t)
		x.do(Event{Kind: EvAck, Serial: 1})
		x.do(Event{Kind: EvTold})
		x.wantBalance(-100)
		x.wantFx(x.tick(), "")
		x.wantFx(x.do(Event{Kind: EvSettle}), "")
		x.wantFx(x.wait(minBackoff).tick(), "save#2=100 issue#2=100")
	})
	t.Run("more than the cheque", func(t *testing.T) {
		pending(t).refuses(ErrBadAck, Event{Kind: EvAck, Serial: 1, Cumulative: 101})
	})
	t.Run("less than before is no progress, and takes nothing back", func(t *testing.T) {
		x := pending(t)
		x.do(Event{Kind: EvAck, Serial: 1, Cumulative: 100})
		x.consume(100)
		x.do(Event{Kind: EvIssued, Serial: 2})
		x.wantFx(x.do(Event{Kind: EvAck, Serial: 2, Cumulative: 99}), "save#2 wake")
		x.wantBalance(-100)
		x.wantFx(x.do(Event{Kind: EvSettle}), "") // backs off
	})
	t.Run("serial never sent", func(t *testing.T) {
		pending(t).refuses(ErrBadAck, Event{Kind: EvAck, Serial: 2, Cumulative: 100})
	})
	t.Run("intent was not sent", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		x.consume(100)
		x.refuses(ErrBadAck, Event{Kind: EvAck, Serial: 1, Cumulative: 100})
	})
	t.Run("of an old settlement in a new session", func(t *testing.T) {
		x := pending(t)
		x.do(Event{Kind: EvAck, Serial: 1, Cumulative: 100})
		x.do(Event{Kind: EvSessionEnd})
		x.native()
		x.consume(100)
		x.do(Event{Kind: EvIssued, Serial: 2})
		x.refuses(ErrStale, Event{Kind: EvAck, Serial: 1, Cumulative: 100})
		x.wantBalance(-100)
	})
	t.Run("late, after a refusal", func(t *testing.T) {
		x := pending(t)
		x.do(Event{Kind: EvRefused, Serial: 1})
		x.do(Event{Kind: EvAck, Serial: 1, Cumulative: 100})
		x.wantBalance(0)
	})
	t.Run("beyond the debt becomes prepaid", func(t *testing.T) {
		x := pending(t)
		x.serve(30)
		x.do(Event{Kind: EvAck, Serial: 1, Cumulative: 100})
		x.wantBalance(30)
		x.l.dirty = 0
	})
}

func TestResend(t *testing.T) {
	x := newTab(t, Policy{}).native()
	x.consume(100)
	x.do(Event{Kind: EvIssued, Serial: 1})
	x.do(Event{Kind: EvTold})
	x.wantFx(x.wait(ackAfter-1).tick(), "")
	x.wantFx(x.wait(1).tick(), "send-cheque#1=100")
	x.wantFx(x.wait(ackAfter-1).tick(), "")
	x.wantFx(x.wait(1).tick(), "send-cheque#1=100")
	x.do(Event{Kind: EvSessionEnd})
	x.wantFx(x.wait(time.Hour).tick(), "")
	x.wantFx(x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 100, Native: true}}), "send-cheque#1=100 wake")
}

func TestRefusalBacksOff(t *testing.T) {
	x := newTab(t, Policy{}).native()
	x.consume(100)
	x.do(Event{Kind: EvIssued, Serial: 1})
	x.do(Event{Kind: EvTold})
	var waits []time.Duration
	for range 9 {
		x.wantFx(x.do(Event{Kind: EvRefused, Serial: 1}), "save#1 wake")
		x.refuses(ErrPaymentRefused, Event{Kind: EvReserve, Dir: Consume, Units: 1})
		x.refuses(ErrStale, Event{Kind: EvRefused, Serial: 2})
		from := x.now
		for x.l.settle == settleRefused {
			x.wait(time.Second).do(Event{Kind: EvTold})
			x.tick()
		}
		waits = append(waits, x.now.Sub(from))
	}
	want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60}
	for i := range want {
		if waits[i] != want[i]*time.Second {
			t.Fatalf("waits %v, want %v seconds", waits, want)
		}
	}
	x.wantBalance(-100)
	// A new session tries at once.
	x.do(Event{Kind: EvRefused, Serial: 1})
	x.wantFx(x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 100, Native: true}}), "send-cheque#1=100 wake")
}

func TestIssueFails(t *testing.T) {
	x := newTab(t, Policy{}).native()
	x.refuses(ErrStale, Event{Kind: EvIssueFailed, Serial: 1})
	x.consume(100)
	x.refuses(ErrStale, Event{Kind: EvIssueFailed, Serial: 2})
	x.do(Event{Kind: EvTold})
	x.do(Event{Kind: EvIssueFailed, Serial: 1})
	x.wantFx(x.tick(), "")
	x.wantFx(x.wait(minBackoff).tick(), "issue#1=100") // the same intent, whatever the debt is now
	x.consume(50)
	x.do(Event{Kind: EvIssueFailed, Serial: 1})
	x.wantFx(x.wait(2*minBackoff).tick(), "issue#1=100")
	x.wantBalance(-150)
	x.l.attempts = 255
	x.do(Event{Kind: EvIssueFailed, Serial: 1})
	if x.l.attempts != 255 {
		t.Errorf("attempts wrapped to %d", x.l.attempts)
	}
}

func TestSeedHasNoAck(t *testing.T) {
	x := newTab(t, Policy{}).seed()
	x.consume(100)
	x.wantFx(x.do(Event{Kind: EvIssued, Serial: 1}), "save#1=100 send-cheque#1=100 wake")
	x.wantBalance(0)
	x.do(Event{Kind: EvSessionEnd})
	x.wantFx(x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 100}}), "wake") // never sent again
	// A cheque that is pending is not sent to a peer without serials, either: it
	// may have left, so it counts as paid, and the tab goes on.
	y := newTab(t, Policy{}).native()
	y.consume(100)
	y.do(Event{Kind: EvIssued, Serial: 1})
	y.do(Event{Kind: EvSessionEnd})
	y.wantFx(y.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 100}}), "save wake")
	y.wantBalance(0)
	y.wantFx(y.wait(time.Hour).tick(), "")
	y.consume(100)
}

func TestCheque(t *testing.T) {
	cheque := func(serial uint64, cumulative tally.Amount) Event {
		return Event{Kind: EvCheque, Serial: serial, Cumulative: cumulative, Covered: cumulative}
	}
	t.Run("credits the debt and keeps the rest", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(100)
		x.wantFx(x.do(cheque(1, 130)), "save#1 send-ack#1 wake")
		x.wantBalance(-30)
		if x.l.owed != 0 || x.l.prepaidByPeer != 30 || x.l.received != 130 {
			t.Errorf("%s", describe(&x.l))
		}
	})
	t.Run("a duplicate credits nothing", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(100)
		x.do(cheque(1, 100))
		x.refuses(ErrDuplicate, cheque(1, 100))
		x.refuses(ErrDuplicate, cheque(1, 150)) // same serial, other sum: the book decides which counts
		x.wantBalance(0)
	})
	t.Run("another one with the same serial that names more", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(100)
		x.do(cheque(1, 50))
		again := cheque(1, 100)
		again.Again = true
		x.do(again)
		x.wantBalance(0)
		again.Cumulative = 99
		x.refuses(ErrLowerCumulative, again)
	})
	t.Run("stale and lower", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(100)
		x.do(cheque(5, 50))
		x.refuses(ErrStale, cheque(4, 100))
		x.refuses(ErrLowerCumulative, cheque(6, 49))
		x.do(cheque(6, 50)) // the same sum again, backed better perhaps
		x.refuses(tally.ErrOverflow, cheque(7, maxLedgerAmount+1))
		x.wantBalance(50)
	})
	t.Run("only the highest of several matters", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(100)
		x.do(cheque(9, 100))
		for serial := range uint64(9) {
			x.refuses(ErrStale, cheque(serial, 100))
		}
		x.wantBalance(0)
	})
	t.Run("karma is credited down to zero and one threshold ahead", func(t *testing.T) {
		for _, mode := range []Mode{ModeSoft, ModeMock} {
			x := newTab(t, Policy{Mode: mode})
			x.serve(50)
			x.do(cheque(1, 1_000_000))
			x.wantBalance(-100)
			x.do(cheque(2, 2_000_000))
			x.wantBalance(-100)
			x.serve(100)
			x.wantBalance(0)
		}
	})
	t.Run("hard mode credits what is covered", func(t *testing.T) {
		x := newTab(t, Policy{Mode: ModeHard})
		x.serve(100)
		x.refuses(ErrUncovered, Event{Kind: EvCheque, Serial: 1, Cumulative: 100})
		x.refuses(ErrUnbacked, Event{Kind: EvKarma, Units: 100})
		x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 100, Covered: 60})
		x.wantBalance(40)
		x.do(Event{Kind: EvCheque, Serial: 2, Cumulative: 100, Covered: 5000})
		x.wantBalance(0)
		x.do(Event{Kind: EvCheque, Serial: 3, Cumulative: 5000, Covered: 5000})
		x.wantBalance(-4900) // real money may be paid ahead
	})
	t.Run("cover that falls takes nothing back", func(t *testing.T) {
		x := newTab(t, Policy{Mode: ModeHard})
		x.serve(100)
		x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 100, Covered: 100})
		x.do(Event{Kind: EvCheque, Serial: 2, Cumulative: 100, Covered: 10})
		x.wantBalance(0)
	})
	t.Run("what the payer admits beyond our count is booked from its own money", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(80) // 20 more were lost in a crash of ours
		ev := cheque(1, 100)
		ev.Totals = &Totals{Consumed: 100}
		x.do(ev)
		x.wantBalance(0)
		if x.l.served != 100 {
			t.Errorf("served %d, want 100", x.l.served)
		}
	})
	t.Run("but not while work is in flight", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(80)
		x.do(Event{Kind: EvReserve, Dir: Serve, Units: 20})
		ev := cheque(1, 100)
		ev.Totals = &Totals{Consumed: 100}
		x.do(ev)
		x.do(Event{Kind: EvCommit, Dir: Serve, Units: 20, Held: 20})
		x.wantBalance(0)
		if x.l.served != 100 {
			t.Errorf("served %d, want 100", x.l.served)
		}
	})
	t.Run("and never beyond its money", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(80)
		ev := cheque(1, 90)
		ev.Totals = &Totals{Consumed: 1 << 50}
		x.do(ev)
		if x.l.served != 90 || x.l.Balance() != 0 {
			t.Errorf("%s", describe(&x.l))
		}
		ev = cheque(2, 90)
		ev.Totals = &Totals{Consumed: tally.MaxAmount}
		x.do(ev)
	})
}

func TestKarma(t *testing.T) {
	x := newTab(t, Policy{})
	x.serve(50)
	x.wantFx(x.do(Event{Kind: EvKarma, Units: 30}), "save wake")
	x.wantBalance(20)
	// A replay cannot be told from a new one: it is worth one threshold ahead.
	for range 10 {
		x.do(Event{Kind: EvKarma, Units: 30})
	}
	x.wantBalance(-100)
	x.do(Event{Kind: EvKarma, Units: tally.MaxAmount})
	x.wantBalance(-100)
	y := newTab(t, Policy{})
	y.do(Event{Kind: EvCheque, Serial: 1, Cumulative: maxLedgerAmount, Covered: maxLedgerAmount})
	y.serve(150)
	y.refuses(tally.ErrOverflow, Event{Kind: EvKarma, Units: 1})
}

func TestSettleMoves(t *testing.T) {
	for from := settleIdle; from <= settleRefused; from++ {
		for to := settleIdle; to <= settleRefused; to++ {
			func() {
				defer func() {
					if r := recover(); (r == nil) != settleMoves[from][to] {
						t.Errorf("%v to %v: panic %v, allowed %v", from, to, r, settleMoves[from][to])
					}
				}()
				l := Ledger{settle: from}
				l.moveSettle(to)
			}()
		}
	}
}

// A peer that lowers its threshold below what we consume under is still paid
// what we owe.
func TestOldDebtIsPaidUnderATooLowThreshold(t *testing.T) {
	x := newTab(t, Policy{}).native()
	x.consume(60)
	x.do(Event{Kind: EvSessionEnd})
	x.wantFx(x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 1, Native: true}}), "save#1=60 issue#1=60 wake")
	x.refuses(ErrPeerThreshold, Event{Kind: EvReserve, Dir: Consume, Units: 1})
}

// A stranger without credit pays first, and draws on it.
func TestPrepay(t *testing.T) {
	x := newTab(t, Policy{}).native()
	x.refuses(ErrNothingOwed, Event{Kind: EvSettle})
	x.refuses(tally.ErrOverflow, Event{Kind: EvSettle, Units: maxLedgerAmount + 1})
	x.wantFx(x.do(Event{Kind: EvSettle, Units: 50}), "save#1=50 issue#1=50")
	x.do(Event{Kind: EvIssued, Serial: 1})
	x.do(Event{Kind: EvAck, Serial: 1, Cumulative: 50})
	x.wantBalance(50)
	x.consume(70)
	x.wantBalance(-20)
}

// A debtor that lost its store after karma without serials learns from the
// creditor what it once paid, and its cheques are taken again.
func TestStatementTellsWhatWasPaid(t *testing.T) {
	x := newTab(t, Policy{}).native()
	x.consume(60)
	x.wantFx(x.do(Event{Kind: EvStatement, Totals: &Totals{Received: 300, Served: 60, AtRest: true}}), "save send-statement wake")
	x.wantBalance(240) // paid ahead, as far as this side knows
	x.consume(340)
	x.wantFx(x.do(Event{Kind: EvIssued, Serial: 1}), "save#1=400 send-cheque#1=400")
	// While a cheque is open its own ack tells.
	x.wantFx(x.do(Event{Kind: EvStatement, Totals: &Totals{Received: 400, Served: 400, AtRest: true}}), "")
	x.wantBalance(-100)
}

func TestBlockedBy(t *testing.T) {
	for _, c := range []struct {
		want  string
		setup func() *tab
	}{
		{"", func() *tab { return newTab(t, Policy{}) }},
		{"soft mode counts only", func() *tab { x := newTab(t, Policy{Mode: ModeSoft}); x.consume(1); return x }},
		{"no handshake with the peer", func() *tab { x := newTab(t, Policy{}); x.consume(1); return x }},
		{"the peer is not in hard mode", func() *tab { x := newTab(t, Policy{Mode: ModeHard}).seed(); x.consume(1); return x }},
		{"the peer refused the cheque", func() *tab { return indebted(t, ModeMock, settleRefused, "native") }},
		{"waiting for the peer's ack", func() *tab { return indebted(t, ModeMock, settlePending, "native") }},
		{"the cheque is being issued", func() *tab { return indebted(t, ModeMock, settleIntent, "native") }},
		{"debt is below the payment threshold", func() *tab { x := newTab(t, Policy{}).native(); x.consume(99); return x }},
		{"backing off after a failure", func() *tab {
			x := newTab(t, Policy{}).native()
			x.consume(100)
			x.do(Event{Kind: EvIssued, Serial: 1})
			x.do(Event{Kind: EvAck, Serial: 1})
			return x
		}},
		{"", func() *tab {
			x := newTab(t, Policy{}).native()
			x.consume(99)
			x.l.policy.EarlyPaymentPercent = 50
			return x
		}},
	} {
		x := c.setup()
		if got := x.l.BlockedBy(x.now); got != c.want {
			t.Errorf("%q, want %q in %s", got, c.want, describe(&x.l))
		}
	}
}

// TestTranscripts replays testdata/*.txt but for matrix.txt: a command per line
// at the left margin, its effects and the tab after it indented below. Comments
// begin with #.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, path := range files {
		name := filepath.Base(path)
		if name == "matrix.txt" {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(text), "# A tab: ") {
			continue // a transcript of another test
		}
		ran++
		t.Run(strings.TrimSuffix(name, ".txt"), func(t *testing.T) { golden(t, name, transcribe(t, string(text))) })
	}
	if ran < 7 {
		t.Errorf("%d transcripts in testdata, want at least 7", ran)
	}
}

func transcribe(t *testing.T, text string) string {
	var out strings.Builder
	x := newTab(t, Policy{})
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "  ") {
			continue // output of the last run
		}
		out.WriteString(line)
		command := strings.Fields(line)
		if len(command) == 0 || command[0] == "#" {
			continue
		}
		switch command[0] {
		case "policy":
			x = newTab(t, transcriptPolicy(t, command[1:]))
			continue
		case "wait":
			d, err := time.ParseDuration(command[1])
			if err != nil {
				t.Fatal(err)
			}
			x.wait(d)
			continue
		case "restart":
			x.l = afterRestart(x.l, strings.Contains(line, "unclean"))
			fmt.Fprintf(&out, "      %s\n", describe(&x.l))
			continue
		}
		ev := transcriptEvent(t, command)
		before := x.l
		fx, err := x.l.Step(x.now, &ev)
		if err != nil {
			if x.l != before {
				t.Errorf("%s: refused, but changed the tab", line)
			}
			fmt.Fprintf(&out, "  refused: %v\n", err)
			continue
		}
		if err := x.l.Check(); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		checkEffects(t, &before, &x.l, fx)
		if len(fx) != 0 {
			fmt.Fprintf(&out, "  do: %s\n", words(fx))
		}
		fmt.Fprintf(&out, "      %s\n", describe(&x.l))
	}
	return out.String()
}

// settings reads key=value words; a word alone is true.
func settings(t *testing.T, list []string) map[string]string {
	m := map[string]string{}
	for _, w := range list {
		k, v, _ := strings.Cut(w, "=")
		m[k] = v
	}
	return m
}

func amountOf(t *testing.T, s string) tally.Amount {
	if s == "" {
		return 0
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return tally.Amount(v)
}

func transcriptPolicy(t *testing.T, list []string) Policy {
	m := settings(t, list)
	p := Policy{
		PaymentThreshold:    amountOf(t, m["threshold"]),
		EarlyPaymentPercent: uint8(amountOf(t, m["early"])),
	}
	if s := m["mode"]; s != "" {
		mode, err := ParseMode(s)
		if err != nil {
			t.Fatal(err)
		}
		p.Mode = mode
	}
	return p
}

// transcriptEvent reads a command: the event's name, plain numbers in the order
// serial, cumulative (or units), and key=value words.
func transcriptEvent(t *testing.T, command []string) Event {
	var ev Event
	for kind, name := range eventNames {
		if name == command[0] {
			ev.Kind = kind
		}
	}
	if ev.Kind == 0 {
		var names []string
		for _, name := range eventNames {
			names = append(names, name)
		}
		sort.Strings(names)
		t.Fatalf("command %q: want one of %v", command[0], names)
	}
	m := settings(t, command[1:])
	var numbers []tally.Amount
	for _, w := range command[1:] {
		if v, err := strconv.ParseUint(w, 10, 64); err == nil {
			numbers = append(numbers, tally.Amount(v))
		}
	}
	numbers = append(numbers, 0, 0)
	_, ev.Lost = m["lost"]
	ev.Held = amountOf(t, m["held"])
	totals := &Totals{
		Served: amountOf(t, m["served"]), Consumed: amountOf(t, m["consumed"]),
		SeenServed: amountOf(t, m["seen-served"]), SeenConsumed: amountOf(t, m["seen-consumed"]),
	}
	_, busy := m["busy"]
	totals.AtRest = !busy
	switch ev.Kind {
	case EvReserve, EvCommit, EvRelease:
		ev.Units = numbers[0]
		ev.Dir = Consume
		if _, ok := m["serve"]; ok {
			ev.Dir = Serve
		}
		if ev.Kind == EvRelease {
			ev.Held = ev.Units
		}
	case EvKarma:
		ev.Units = numbers[0]
	case EvSession:
		ev.Terms = &Terms{PaymentThreshold: amountOf(t, m["threshold"])}
		if s := m["mode"]; s != "" {
			mode, err := ParseMode(s)
			if err != nil {
				t.Fatal(err)
			}
			ev.Terms.Mode = mode
		}
		_, ev.Terms.Native = m["native"]
	case EvStatement, EvResolve:
		ev.Totals = totals
	default:
		ev.Serial, ev.Cumulative = uint64(numbers[0]), numbers[1]
		ev.Covered = ev.Cumulative
		if s, ok := m["covered"]; ok {
			ev.Covered = amountOf(t, s)
		}
		if ev.Kind == EvAdoptSent || ev.Kind == EvAdoptReceived || ev.Kind == EvCheque && m["consumed"] != "" {
			ev.Totals = totals
		}
	}
	return ev
}
