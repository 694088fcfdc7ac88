package swap

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

// hardTab is a tab in hard mode with a session.
func hardTab(t testing.TB) *tab { return newTab(t, Policy{Mode: ModeHard}).native() }

func TestCover(t *testing.T) {
	paid := func(t *testing.T) *tab {
		x := hardTab(t)
		x.serve(100)
		x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 100, Covered: 100})
		return x
	}
	t.Run("lost cover changes no balance, is exposure, and is told", func(t *testing.T) {
		x := paid(t)
		x.wantFx(x.do(Event{Kind: EvCover, Covered: 30}), "save send-statement")
		x.wantBalance(0)
		if x.l.Exposure() != 70 || x.l.Totals(0, 0).Uncovered != 70 || x.l.HeadroomServe(x.now) != 0 {
			t.Errorf("exposure %d, told %d, headroom %d", x.l.Exposure(), x.l.Totals(0, 0).Uncovered, x.l.HeadroomServe(x.now))
		}
	})
	t.Run("the same cover is no change", func(t *testing.T) {
		x := paid(t)
		x.wantFx(x.do(Event{Kind: EvCover, Covered: 100}), "")
		x.wantFx(x.do(Event{Kind: EvCover, Covered: 5000}), "") // a channel may hold more than is credited
	})
	t.Run("cover that comes back wakes who waits", func(t *testing.T) {
		x := paid(t)
		x.do(Event{Kind: EvCover, Covered: 0})
		x.wantFx(x.do(Event{Kind: EvCover, Covered: 100}), "save wake")
		if x.l.Exposure() != 0 || x.l.HeadroomServe(x.now) != 125 {
			t.Errorf("exposure %d, headroom %d", x.l.Exposure(), x.l.HeadroomServe(x.now))
		}
	})
	t.Run("a cheque that the chain pays nothing more for is refused", func(t *testing.T) {
		x := paid(t)
		x.serve(50)
		x.refuses(ErrUncovered, Event{Kind: EvCheque, Serial: 2, Cumulative: 150, Covered: 100})
		x.do(Event{Kind: EvCheque, Serial: 2, Cumulative: 150, Covered: 150}) // the identical bytes, later
		x.wantBalance(0)
	})
}

func TestFinal(t *testing.T) {
	t.Run("less than was credited is owed again", func(t *testing.T) {
		x := hardTab(t)
		x.serve(100)
		x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 100, Covered: 100})
		x.wantFx(x.do(Event{Kind: EvFinal, Dir: Serve, Cumulative: 40}), "save send-statement wake")
		x.wantBalance(60)
		x.wantFx(x.do(Event{Kind: EvFinal, Dir: Serve, Cumulative: 40}), "") // once
		x.wantBalance(60)
		// The next channel begins at 40.
		x.do(Event{Kind: EvCheque, Serial: 2, Cumulative: 100, Covered: 100})
		x.wantBalance(0)
	})
	t.Run("less than was prepaid takes the prepaid first", func(t *testing.T) {
		x := hardTab(t)
		x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 100, Covered: 100})
		x.do(Event{Kind: EvFinal, Dir: Serve, Cumulative: 70})
		x.wantBalance(-70)
		x.do(Event{Kind: EvFinal, Dir: Serve, Cumulative: 0})
		x.wantBalance(0)
	})
	t.Run("more than was credited is credited", func(t *testing.T) {
		x := hardTab(t)
		x.serve(100)
		x.do(Event{Kind: EvFinal, Dir: Serve, Cumulative: 100}) // its ack was never booked here
		x.wantBalance(0)
	})
	t.Run("the payer books what its channel paid", func(t *testing.T) {
		x := hardTab(t)
		x.consume(100)
		x.do(Event{Kind: EvIssued, Serial: 1})
		x.do(Event{Kind: EvFinal, Dir: Consume, Cumulative: 100}) // the cheque was cashed, the ack is lost
		x.wantBalance(0)
		if x.l.settle != settleIdle || x.l.issued != 100 {
			t.Errorf("settle %v, issued %d", x.l.settle, x.l.issued)
		}
		x.refuses(ErrStale, Event{Kind: EvAck, Serial: 1, Cumulative: 100})
	})
	t.Run("a cheque that was not cashed is no payment", func(t *testing.T) {
		x := hardTab(t)
		x.consume(100)
		x.do(Event{Kind: EvIssued, Serial: 1})
		x.do(Event{Kind: EvAck, Serial: 1, Cumulative: 100})
		x.do(Event{Kind: EvFinal, Dir: Consume, Cumulative: 0})
		x.wantBalance(-100)
		x.wantFx(x.tick(), "save#2=100 issue#2=100 send-statement") // on the next channel
	})
	t.Run("beyond the bound of arithmetic", func(t *testing.T) {
		hardTab(t).refuses(tally.ErrOverflow, Event{Kind: EvFinal, Dir: Serve, Cumulative: maxLedgerAmount + 1})
	})
}

func TestRetry(t *testing.T) {
	t.Run("an intent that backs off is issued at once", func(t *testing.T) {
		x := hardTab(t)
		x.consume(100)
		x.do(Event{Kind: EvIssueFailed, Serial: 1})
		x.wantFx(x.tick(), "send-statement")
		x.wantFx(x.do(Event{Kind: EvRetry}), "issue#1=100")
	})
	t.Run("a refused cheque is sent again, the same", func(t *testing.T) {
		x := hardTab(t)
		x.consume(100)
		x.do(Event{Kind: EvIssued, Serial: 1})
		x.do(Event{Kind: EvRefused, Serial: 1})
		x.wantFx(x.do(Event{Kind: EvRetry}), "send-cheque#1=100")
	})
	t.Run("without a session nothing leaves", func(t *testing.T) {
		x := hardTab(t)
		x.consume(100)
		x.do(Event{Kind: EvSessionEnd})
		x.wantFx(x.do(Event{Kind: EvRetry}), "")
	})
	t.Run("without a debt nothing begins", func(t *testing.T) {
		hardTab(t).wantFx(hardTab(t).do(Event{Kind: EvRetry}), "")
	})
}

// Whatever a channel paid at its end, the books conserve, and both sides that
// took the same sum are negatives of each other.
func TestFinalOfBothSides(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		policy := Policy{Mode: ModeHard}.Complete()
		payer, payee := NewLedger(&policy), NewLedger(&policy)
		step := func(l *Ledger, ev Event) {
			if _, err := l.Step(testStart, &ev); err != nil {
				rt.Fatal(err)
			}
			if err := l.Check(); err != nil {
				rt.Fatal(err)
			}
		}
		terms := &Terms{PaymentThreshold: 100, DisconnectThreshold: 125, Mode: ModeHard, Native: true}
		step(&payer, Event{Kind: EvSession, Terms: terms})
		step(&payee, Event{Kind: EvSession, Terms: terms})
		amount := rapid.Uint64Range(0, 300)
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			n := tally.Amount(amount.Draw(rt, "units"))
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0:
				step(&payee, Event{Kind: EvCommit, Dir: Serve, Units: n})
				step(&payer, Event{Kind: EvCommit, Dir: Consume, Units: n})
			case 1:
				step(&payer, Event{Kind: EvCommit, Dir: Serve, Units: n})
				step(&payee, Event{Kind: EvCommit, Dir: Consume, Units: n})
			case 2:
				step(&payee, Event{Kind: EvFinal, Dir: Serve, Cumulative: n})
				step(&payer, Event{Kind: EvFinal, Dir: Consume, Cumulative: n})
			default:
				step(&payer, Event{Kind: EvFinal, Dir: Serve, Cumulative: n})
				step(&payee, Event{Kind: EvFinal, Dir: Consume, Cumulative: n})
			}
			if payer.Balance() != -payee.Balance() {
				rt.Fatalf("payer %d, payee %d", payer.Balance(), payee.Balance())
			}
		}
	})
}
