package swap

import (
	"testing"

	"github.com/tallystick/tally"
)

// This file tests how two books that differ become equal again, who pays for
// the difference, and what a peer can prove to a side that forgot.

// told is a statement of a peer at rest that knows our count of units served.
func (x *tab) told(served, consumed tally.Amount) Event {
	return Event{Kind: EvStatement, Totals: &Totals{
		Served: served, Consumed: consumed, SeenServed: x.l.served, SeenConsumed: x.l.consumed, AtRest: true,
	}}
}

func TestStatementWhereWeConsume(t *testing.T) {
	lost := func(x *tab, n tally.Amount) {
		x.do(Event{Kind: EvReserve, Dir: Consume, Units: n})
		x.do(Event{Kind: EvRelease, Dir: Consume, Held: n, Units: n, Lost: true})
	}
	for _, c := range []struct {
		name   string
		setup  func(x *tab)
		served tally.Amount // the peer's figure
		want   tally.Amount // ours afterwards
	}{
		{"equal", func(x *tab) { x.consume(20) }, 20, 20},
		{"lower: only the peer can correct itself", func(x *tab) { x.consume(20) }, 15, 20},
		{"higher, unexplained: the peer has to forgive", func(x *tab) { x.consume(20) }, 21, 20},
		{"higher by an unanswered request", func(x *tab) { x.consume(20); lost(x, 5) }, 25, 25},
		{"higher by a part of it", func(x *tab) { x.consume(20); lost(x, 5) }, 23, 23},
		{"higher by more than it", func(x *tab) { x.consume(20); lost(x, 5) }, 26, 20},
		{"unclean stop explains half of W", func(x *tab) { x.consume(20); x.l = afterRestart(x.l, true); x.native() }, 32, 32},
		{"and no more", func(x *tab) { x.consume(20); x.l = afterRestart(x.l, true); x.native() }, 33, 20},
		{"a clean stop explains nothing", func(x *tab) { x.consume(20); x.l = afterRestart(x.l, false); x.native() }, 21, 20},
		{"work in flight at a crash is unanswered", func(x *tab) {
			x.do(Event{Kind: EvReserve, Dir: Consume, Units: 7})
			x.l = afterRestart(x.l, false)
			x.native()
		}, 7, 7},
		{"not while something is in flight", func(x *tab) { lost(x, 5); x.do(Event{Kind: EvReserve, Dir: Consume, Units: 1}) }, 5, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newTab(t, Policy{}).native()
			c.setup(x)
			before := x.l.consumed
			fx := x.do(x.told(c.served, 0))
			if x.l.consumed != c.want {
				t.Errorf("consumed %d, want %d", x.l.consumed, c.want)
			}
			if changed := x.l.consumed != before; changed != (fx == "save send-statement wake") {
				t.Errorf("effects %q", fx)
			}
			if x.l.forgiven != 0 {
				t.Error("a debtor forgives nothing")
			}
		})
	}
	t.Run("only once", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		lost(x, 5)
		x.do(x.told(5, 0))
		x.do(x.told(10, 0))
		if x.l.consumed != 5 {
			t.Errorf("consumed %d: one unanswered request was charged twice", x.l.consumed)
		}
	})
	t.Run("not of a peer with work in flight", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		lost(x, 5)
		ev := x.told(5, 0)
		ev.Totals.AtRest = false
		x.do(ev)
		if x.l.consumed != 0 || x.l.unanswered != 5 {
			t.Errorf("%s", describe(&x.l))
		}
	})
	t.Run("an answer after the statement is booked once", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		lost(x, 5)
		x.do(x.told(5, 0)) // the peer served it, and says so before its answer is here
		x.do(Event{Kind: EvCommit, Dir: Consume, Units: 5, Lost: true})
		if x.l.consumed != 5 {
			t.Errorf("consumed %d: five units were booked twice", x.l.consumed)
		}
	})
	t.Run("nor out of another open request", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		lost(x, 5)
		x.do(x.told(5, 0))
		lost(x, 4)
		x.do(Event{Kind: EvCommit, Dir: Consume, Units: 5, Lost: true})
		if x.l.consumed != 5 || x.l.unanswered != 4 {
			t.Errorf("consumed %d unanswered %d, want 5 and 4", x.l.consumed, x.l.unanswered)
		}
	})
	t.Run("an answer after a statement without it is booked", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		lost(x, 5)
		x.do(x.told(0, 0)) // the request was still on its way
		x.do(Event{Kind: EvCommit, Dir: Consume, Units: 5, Lost: true})
		if x.l.consumed != 5 {
			t.Errorf("consumed %d, want 5", x.l.consumed)
		}
	})
}

func TestStatementWhereWeServe(t *testing.T) {
	for _, c := range []struct {
		name                       string
		setup                      func(x *tab)
		consumed                   tally.Amount // the peer's figure
		want, forgiven             tally.Amount
		skewed, saved, notFinalToo bool
	}{
		{name: "equal", setup: func(x *tab) { x.serve(50) }, consumed: 50, want: 50},
		{name: "lower within W is forgiven", setup: func(x *tab) { x.serve(50) }, consumed: 25, want: 25, forgiven: 25, saved: true},
		{name: "lower beyond W is not", setup: func(x *tab) { x.serve(50) }, consumed: 24, want: 50, skewed: true},
		{name: "higher within W is taken", setup: func(x *tab) { x.serve(50) }, consumed: 75, want: 75, saved: true},
		{name: "higher up to the disconnect threshold is taken: the peer admits it", setup: func(x *tab) { x.serve(50) }, consumed: 125, want: 125, saved: true},
		{name: "higher beyond what we would have served is not", setup: func(x *tab) { x.serve(50) }, consumed: 126, want: 50, skewed: true},
		{name: "higher and paid is taken", setup: func(x *tab) {
			x.do(Event{Kind: EvKarma, Units: 100})
		}, consumed: 225, want: 225, saved: true},
		{name: "of what is beyond, the paid part is taken", setup: func(x *tab) {
			x.do(Event{Kind: EvKarma, Units: 100})
		}, consumed: 226, want: 100, saved: true, skewed: true},
		{name: "not while something is in flight", setup: func(x *tab) {
			x.serve(50)
			x.do(Event{Kind: EvReserve, Dir: Serve, Units: 1})
		}, consumed: 40, want: 50},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newTab(t, Policy{}).native()
			c.setup(x)
			fx := x.do(x.told(0, c.consumed))
			if x.l.served != c.want || x.l.forgiven != c.forgiven {
				t.Errorf("served %d forgiven %d, want %d and %d", x.l.served, x.l.forgiven, c.want, c.forgiven)
			}
			if got := x.l.flags&flagSkewed != 0; got != c.skewed {
				t.Errorf("skewed %v", got)
			}
			if c.skewed {
				if want := tally.Balance(x.l.served) - tally.Balance(c.consumed); x.l.skew != want {
					t.Errorf("skew %d, want %d", x.l.skew, want)
				}
			}
			if c.saved != (fx == "save send-statement wake") {
				t.Errorf("effects %q", fx)
			}
		})
	}
	t.Run("a figure told in ignorance of ours is not final", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		x.serve(50)
		ev := x.told(0, 40)
		ev.Totals.SeenServed = 45
		x.do(ev)
		if x.l.served != 50 || x.l.flags&flagSkewed != 0 {
			t.Errorf("%s", describe(&x.l))
		}
	})
	t.Run("beyond the debt the peer has served it, and not paid it ahead", func(t *testing.T) {
		// The peer's own book says so, and a debt is settled; money paid ahead is not.
		for _, c := range []struct {
			name           string
			setup          func(x *tab)
			owed           tally.Balance
			byPeer, toPeer tally.Amount
		}{
			{name: "nothing was paid", setup: func(*tab) {}, owed: -8},
			{name: "the peer paid ahead", setup: func(x *tab) {
				x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 29, Covered: 29})
			}, owed: -8, byPeer: 29},
			{name: "we paid ahead", setup: func(x *tab) {
				x.l.paid, x.l.issued, x.l.prepaidToPeer = 5, 5, 5
			}, owed: -3},
			{name: "we paid more ahead", setup: func(x *tab) {
				x.l.paid, x.l.issued, x.l.prepaidToPeer = 11, 11, 11
			}, toPeer: 3},
		} {
			x := newTab(t, Policy{}).native()
			x.serve(20)
			x.consume(20)
			c.setup(x)
			balance := x.l.Balance()
			x.do(x.told(20, 12))
			if l := &x.l; l.owed != c.owed || l.prepaidByPeer != c.byPeer || l.prepaidToPeer != c.toPeer || l.Balance() != balance-8 || l.forgiven != 8 {
				t.Errorf("%s: %s", c.name, describe(l))
			}
			if err := x.l.Check(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("nor is one of a busy peer", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		x.serve(50)
		ev := x.told(0, 40)
		ev.Totals.AtRest = false
		x.do(ev)
		if x.l.served != 50 {
			t.Errorf("%s", describe(&x.l))
		}
	})
	t.Run("agreement ends a skew", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		x.serve(50)
		x.do(x.told(0, 10))
		x.refuses(ErrSkew, Event{Kind: EvReserve, Dir: Serve, Units: 1})
		x.do(x.told(0, 50))
		x.do(Event{Kind: EvReserve, Dir: Serve, Units: 1})
	})
	t.Run("forgiveness cannot be milked", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		for range 1000 {
			x.serve(5)
			before := x.l
			x.do(x.told(0, x.l.served-5))
			checkForgiven(t, &before, &x.l)
			if x.l.flags&flagSkewed != 0 {
				break
			}
		}
		if x.l.forgiven != 25 {
			t.Errorf("forgiven %d, want W = 25", x.l.forgiven)
		}
		// Paying earns 1 %.
		paying := newTab(t, Policy{}).native()
		for i := range 1000 {
			paying.serve(100)
			paying.do(Event{Kind: EvCheque, Serial: uint64(i + 1), Cumulative: tally.Amount(100 * (i + 1)), Covered: tally.Amount(100 * (i + 1))})
			paying.do(paying.told(0, paying.l.served-2))
			if paying.l.flags&flagSkewed != 0 {
				paying.do(paying.told(0, paying.l.served))
			}
		}
		if bound := 25 + paying.l.received/100; paying.l.forgiven > bound || paying.l.forgiven < bound-2 {
			t.Errorf("forgiven %d, want about %d", paying.l.forgiven, bound)
		}
	})
	t.Run("units on their way are not forgiven for ever", func(t *testing.T) {
		// A meter that counts after the fact holds nothing in flight: the peer
		// is at rest, honest, and has not seen the last frame yet.
		x := newTab(t, Policy{}).native()
		for serial := uint64(1); serial <= 20; serial++ {
			x.serve(10)
			before := x.l.served
			x.do(x.told(0, before-10))
			if serial%2 == 0 {
				x.do(x.told(0, before)) // the frame arrived
			} else {
				paid := tally.Amount(serial) * 10
				x.do(Event{Kind: EvCheque, Serial: serial, Cumulative: paid, Covered: paid, Totals: &Totals{Consumed: before}})
			}
			if x.l.served != before || x.l.forgiven != 0 || x.l.flags&flagSkewed != 0 {
				t.Fatalf("after %d rounds: %s", serial, describe(&x.l))
			}
		}
	})
	t.Run("what a peer paid earns no more than W at once", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		x.serve(10_000)
		x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 10_000, Covered: 10_000})
		x.do(x.told(0, 10_000-26))
		if x.l.forgiven != 0 || x.l.flags&flagSkewed == 0 {
			t.Errorf("%s", describe(&x.l))
		}
		x.do(x.told(0, 10_000-25))
		if x.l.forgiven != 25 || x.l.flags&flagSkewed != 0 {
			t.Errorf("%s", describe(&x.l))
		}
	})
	t.Run("admitting more than was served buys no exposure", func(t *testing.T) {
		// All peers share one cap. One that admits units in small steps must not
		// fill it alone and so shut out everybody else.
		x := newTab(t, Policy{}).native()
		for range 1000 {
			x.do(x.told(0, x.l.served+25))
		}
		if got := x.l.Exposure(); got > 125 {
			t.Errorf("exposure %d of a peer that was never served", got)
		}
	})
}

// Where the books mirror each other, what the creditor calls owed is paid, and no
// more than the peer paid ahead.
func TestStatementOfWhatIsOwed(t *testing.T) {
	for _, c := range []struct {
		name           string
		byPeer, toPeer tally.Amount
		told           tally.Amount // what the peer says we owe it
		change         func(x *tab, t *Totals)
		owed           tally.Balance
		byPeerAfter    tally.Amount
	}{
		{name: "it is owed what it paid ahead here", byPeer: 30, told: 8, owed: -8, byPeerAfter: 22},
		{name: "nothing is told", byPeer: 30, byPeerAfter: 30},
		{name: "no more than it paid ahead", byPeer: 30, told: 31, owed: -30},
		{name: "no more than the payment threshold at once", byPeer: 300, told: 300, owed: -100, byPeerAfter: 200},
		{name: "an absurd figure", byPeer: 30, told: maxLedgerAmount, owed: -30},
		{name: "money that crossed goes first", byPeer: 30, toPeer: 10, told: 5, owed: -5, byPeerAfter: 15},
		{name: "the books differ", byPeer: 30, told: 8, byPeerAfter: 30, change: func(_ *tab, t *Totals) { t.Paid++ }},
		{name: "the peer is busy", byPeer: 30, told: 8, byPeerAfter: 30, change: func(_ *tab, t *Totals) { t.AtRest = false }},
		{name: "a cheque of ours is open", byPeer: 30, told: 8, byPeerAfter: 30, change: func(x *tab, _ *Totals) { x.l.settle = settlePending }},
		{name: "its money lost its cover", byPeer: 30, told: 8, byPeerAfter: 30, change: func(x *tab, _ *Totals) { x.l.covered-- }},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newTab(t, Policy{}).native()
			x.l.received, x.l.covered, x.l.accepted, x.l.prepaidByPeer = c.byPeer, c.byPeer, c.byPeer, c.byPeer
			x.l.paid, x.l.issued, x.l.prepaidToPeer = c.toPeer, c.toPeer, c.toPeer
			ev := x.told(0, 0)
			ev.Totals.Paid, ev.Totals.Received, ev.Totals.Owed = c.byPeer, c.toPeer, c.told
			if c.change != nil {
				c.change(x, ev.Totals)
			}
			balance := x.l.Balance()
			x.do(ev)
			if l := &x.l; l.owed != c.owed || l.prepaidByPeer != c.byPeerAfter || l.Balance() != balance {
				t.Errorf("%s", describe(l))
			}
		})
	}
}

// A difference is closed even where the side with the last word spoke first,
// not knowing our figure: it is told, and speaks again.
func TestStatementIsAnsweredWhereBooksDiffer(t *testing.T) {
	x := newTab(t, Policy{}).native()
	x.serve(50)
	x.wantFx(x.do(Event{Kind: EvStatement, Totals: &Totals{Consumed: 40, AtRest: true}}), "send-statement")
	x.wantFx(x.do(x.told(0, 50)), "") // no answer to agreement
	y := newTab(t, Policy{}).native()
	y.consume(40)
	y.wantFx(y.do(Event{Kind: EvStatement, Totals: &Totals{Served: 50, AtRest: true}}), "send-statement")
	y.wantFx(y.do(y.told(50, 0)), "") // it knows our figure: no answer, or two would talk for ever
}

func TestResolve(t *testing.T) {
	resolve := func(served, consumed tally.Amount) Event {
		return Event{Kind: EvResolve, Totals: &Totals{Served: served, Consumed: consumed}}
	}
	x := newTab(t, Policy{}).native()
	x.refuses(ErrNoSession, Event{Kind: EvResolve})
	x.serve(100)
	x.consume(50)
	x.do(x.told(50, 10))
	x.refuses(ErrSkew, Event{Kind: EvReserve, Dir: Serve, Units: 100})
	x.wantFx(x.do(resolve(60, 10)), "save send-statement wake")
	if x.l.served != 10 || x.l.consumed != 60 || x.l.flags&flagSkewed != 0 || x.l.skew != 0 {
		t.Errorf("%s", describe(&x.l))
	}
	x.wantFx(x.do(resolve(40, 70)), "save send-statement wake")
	x.wantBalance(30)
	x.refuses(tally.ErrOverflow, resolve(maxLedgerAmount+1, 0))
	x.refuses(tally.ErrOverflow, resolve(0, maxLedgerAmount+1))
	x.do(Event{Kind: EvReserve, Dir: Serve, Units: 1})
	x.refuses(ErrInFlight, resolve(40, 70))
	x.do(Event{Kind: EvRelease, Dir: Serve, Held: 1})
	x.do(Event{Kind: EvReserve, Dir: Consume, Units: 1})
	x.refuses(ErrInFlight, resolve(40, 70))
}

// A store that was restored from a backup takes over what the peer proves with
// our own signatures.
func TestAdopt(t *testing.T) {
	sent := Event{Kind: EvAdoptSent, Serial: 7, Cumulative: 700, Totals: &Totals{Served: 50, Consumed: 750}}
	got := Event{Kind: EvAdoptReceived, Serial: 9, Cumulative: 900, Totals: &Totals{Served: 950, Consumed: 20}}
	t.Run("sent", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.wantFx(x.do(sent), "save#7 wake")
		if x.l.sentSerial != 7 || x.l.issued != 700 || x.l.paid != 0 || x.l.settle != settlePending {
			t.Errorf("%s", describe(&x.l))
		}
		x.refuses(ErrStale, sent)
		x.do(Event{Kind: EvAck, Serial: 7, Cumulative: 700})
		x.wantBalance(0) // 50 - 750 + 700
		x.native()
		x.consume(100)
		x.wantFx(x.do(Event{Kind: EvIssued, Serial: 8}), "save#8=800 send-cheque#8=800") // goes on, not over
	})
	t.Run("sent, over an open settlement", func(t *testing.T) {
		for state := settleIdle; state <= settleRefused; state++ {
			x := indebted(t, ModeMock, state, "native")
			x.do(sent)
			if x.l.settle != settlePending || x.l.sentSerial != 7 {
				t.Errorf("from %v: %s", state, describe(&x.l))
			}
		}
	})
	t.Run("received", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.wantFx(x.do(got), "save#9 wake")
		x.wantBalance(30) // 950 - 20 - 900
		x.refuses(ErrStale, got)
		x.refuses(ErrDuplicate, Event{Kind: EvCheque, Serial: 9, Cumulative: 900, Covered: 900})
		x.refuses(ErrLowerCumulative, Event{Kind: EvCheque, Serial: 10, Cumulative: 899, Covered: 900})
	})
	t.Run("received lifts a block", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(125)
		x.do(Event{Kind: EvDenied})
		x.wait(overdueAfter).tick()
		x.do(got)
		if x.l.blocked(x.now) {
			t.Error("still blocked")
		}
	})
	t.Run("totals are only raised", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(1000)
		x.consume(1000)
		x.do(sent)
		x.do(got)
		if x.l.served != 1000 || x.l.consumed != 1000 {
			t.Errorf("%s", describe(&x.l))
		}
	})
	t.Run("bounds", func(t *testing.T) {
		for _, kind := range []EventKind{EvAdoptSent, EvAdoptReceived} {
			x := newTab(t, Policy{})
			x.refuses(tally.ErrOverflow, Event{Kind: kind, Serial: 1})
			x.refuses(tally.ErrOverflow, Event{Kind: kind, Serial: 1, Cumulative: maxLedgerAmount + 1, Totals: &Totals{}})
			x.refuses(tally.ErrOverflow, Event{Kind: kind, Serial: 1, Totals: &Totals{Served: maxLedgerAmount + 1}})
			x.refuses(tally.ErrOverflow, Event{Kind: kind, Serial: 1, Totals: &Totals{Consumed: maxLedgerAmount + 1}})
		}
	})
}
