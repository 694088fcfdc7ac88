package swap

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

// This file tests the tab itself: what it refuses, what it books, when it
// flushes, blocks and disconnects. Settlement, statements and recovery have
// their own files, and model_test.go joins two tabs by a bad link.

// tab is a ledger under test with a clock. Each step is followed by Check, and
// each refused event by a comparison of the whole struct.
type tab struct {
	t   testing.TB
	l   Ledger
	now Instant
}

const testStart = Instant(time.Hour)

func newTab(t testing.TB, p Policy) *tab {
	t.Helper()
	policy := p.Complete()
	if err := policy.Validate(); err != nil {
		t.Fatalf("policy of the test: %v", err)
	}
	return &tab{t: t, l: NewLedger(&policy), now: testStart}
}

// native begins a session with a peer like ourselves, seed one with a peer of
// the seed's protocol.
func (x *tab) native() *tab {
	x.t.Helper()
	x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 100, DisconnectThreshold: 125, Mode: x.l.policy.Mode, Native: true}})
	return x
}

func (x *tab) seed() *tab {
	x.t.Helper()
	x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 100}})
	return x
}

// do applies an event that must succeed and returns its effects in words.
func (x *tab) do(ev Event) string {
	x.t.Helper()
	before := x.l
	fx, err := x.l.Step(x.now, &ev)
	if err != nil {
		x.t.Fatalf("%s: %v\nin %s", eventName(ev.Kind), err, describe(&before))
	}
	if err := x.l.Check(); err != nil {
		x.t.Fatalf("after %s: %v\nwas %s\nis  %s", eventName(ev.Kind), err, describe(&before), describe(&x.l))
	}
	checkEffects(x.t, &before, &x.l, fx)
	return words(fx)
}

// refuses applies an event that must fail with want and change nothing.
func (x *tab) refuses(want error, ev Event) {
	x.t.Helper()
	before := x.l
	fx, err := x.l.Step(x.now, &ev)
	if !errors.Is(err, want) {
		x.t.Fatalf("%s: error %v, want %v\nin %s", eventName(ev.Kind), err, want, describe(&before))
	}
	if fx != nil {
		x.t.Errorf("%s: refused, but with effects %s", eventName(ev.Kind), words(fx))
	}
	if x.l != before {
		x.t.Errorf("%s: refused with %v, but changed the tab\nfrom %s\nto   %s", eventName(ev.Kind), err, describe(&before), describe(&x.l))
	}
}

func (x *tab) wantFx(got, want string) {
	x.t.Helper()
	if got != want {
		x.t.Errorf("effects %q, want %q", got, want)
	}
}

func (x *tab) wantBalance(want tally.Balance) {
	x.t.Helper()
	if got := x.l.Balance(); got != want {
		x.t.Errorf("balance %d, want %d", got, want)
	}
}

func (x *tab) wait(d time.Duration) *tab { x.now = x.now.Add(d); return x }

func (x *tab) serve(n tally.Amount) string {
	x.t.Helper()
	return x.do(Event{Kind: EvCommit, Dir: Serve, Units: n})
}

func (x *tab) consume(n tally.Amount) string {
	x.t.Helper()
	return x.do(Event{Kind: EvCommit, Dir: Consume, Units: n})
}

func (x *tab) tick() string { x.t.Helper(); return x.do(Event{Kind: EvTick}) }

// reporter is what testing and rapid have in common.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// checkEffects holds for any step: nothing leaves before a save where the event
// changed money, an issue comes after its save, and the state moved along
// settleMoves.
func checkEffects(t reporter, before, after *Ledger, fx []Effect) {
	t.Helper()
	saved := false
	money := func(l *Ledger) [8]uint64 {
		return [...]uint64{
			uint64(l.received), uint64(l.accepted), uint64(l.paid), uint64(l.issued), l.sentSerial, l.receivedSerial,
			uint64(l.forgiven), uint64(l.covered),
		}
	}
	changed := money(before) != money(after)
	for _, e := range fx {
		switch e.Kind {
		case FxSave:
			saved = true
		case FxIssue, FxSendCheque, FxSendAck:
			if changed && !saved {
				t.Errorf("%s: %v before save", words(fx), e.Kind)
			}
		}
	}
	if changed && !saved {
		t.Errorf("%q: money changed and nothing is saved\nfrom %s\nto   %s", words(fx), describe(before), describe(after))
	}
	direct := settleMoves[before.settle][after.settle]
	viaIdle := settleMoves[before.settle][settleIdle] && settleMoves[settleIdle][after.settle] // an ack that begins the next one
	if before.settle != after.settle && !direct && !viaIdle {
		t.Errorf("settle moved from %v to %v", before.settle, after.settle)
	}
}

// words shows effects as transcripts do: kind#serial=cumulative.
func words(fx []Effect) string {
	var out []string
	for _, e := range fx {
		s := e.Kind.String()
		if e.Serial != 0 {
			s += fmt.Sprintf("#%d", e.Serial)
		}
		if e.Cumulative != 0 {
			s += fmt.Sprintf("=%d", e.Cumulative)
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// describe shows what is not zero on a tab, balance first.
func describe(l *Ledger) string {
	out := []string{fmt.Sprintf("balance %d", l.Balance())}
	add := func(name string, v uint64) {
		if v != 0 {
			out = append(out, fmt.Sprintf("%s %d", name, v))
		}
	}
	add("prepaid-by-peer", uint64(l.prepaidByPeer))
	add("prepaid-to-peer", uint64(l.prepaidToPeer))
	add("reserved", uint64(l.reserved))
	add("shadow", uint64(l.shadow))
	add("unanswered", uint64(l.unanswered))
	add("served", uint64(l.served))
	add("consumed", uint64(l.consumed))
	add("received", uint64(l.received))
	if l.covered != l.received {
		add("covered", uint64(l.covered)+1)
		out[len(out)-1] = fmt.Sprintf("covered %d", l.covered)
	}
	if l.accepted != l.received {
		add("accepted", uint64(l.accepted))
	}
	add("paid", uint64(l.paid))
	if l.issued != l.paid {
		add("issued", uint64(l.issued))
	}
	add("sent", l.sentSerial)
	add("got", l.receivedSerial)
	add("forgiven", uint64(l.forgiven))
	if l.skew != 0 {
		out = append(out, fmt.Sprintf("skew %d", l.skew))
	}
	if l.settle != settleIdle {
		out = append(out, l.settle.String())
	}
	if l.flags&flagSkewed != 0 {
		out = append(out, "skewed")
	}
	if l.flags&flagUnclean != 0 {
		out = append(out, "unclean")
	}
	if l.blockedUntil != 0 {
		out = append(out, fmt.Sprintf("blocked until %v", time.Duration(l.blockedUntil-testStart)))
	}
	return strings.Join(out, ", ")
}

var eventNames = map[EventKind]string{
	EvReserve: "reserve", EvCommit: "commit", EvRelease: "release", EvSession: "session", EvSessionEnd: "session-end",
	EvTick: "tick", EvSettle: "settle", EvIssued: "issued", EvIssueFailed: "issue-failed", EvAck: "ack", EvRefused: "refused",
	EvCheque: "cheque", EvKarma: "karma", EvStatement: "statement", EvAdoptSent: "adopt-sent", EvAdoptReceived: "adopt-received",
	EvResolve: "resolve", EvDenied: "denied", EvTold: "told", EvCover: "cover", EvFinal: "final", EvRetry: "retry",
	EvPacketHold: "packet-hold", EvPacketKeep: "packet-keep", EvPacketCommit: "packet-commit", EvPacketRelease: "packet-release",
	EvPacketRefused: "packet-refused",
}

func eventName(k EventKind) string {
	if s := eventNames[k]; s != "" {
		return s
	}
	return fmt.Sprintf("event %d", k)
}

// golden compares got with testdata/name, or writes it where
// UPDATE_TESTDATA is set.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_TESTDATA") != "" {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) == got {
		return
	}
	w, g := strings.Split(string(want), "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			t.Fatalf("%s line %d:\n got %q\nwant %q\n(UPDATE_TESTDATA=1 go test rewrites it)", path, i+1, g[i], w[i])
		}
	}
	t.Fatalf("%s has %d lines, got %d", path, len(w), len(g))
}

// afterRestart is the tab as a store gives it back: work in flight becomes
// unanswered, sessions and waiting times are gone.
func afterRestart(l Ledger, unclean bool) Ledger {
	l.unanswered = min(l.unanswered+l.reserved, maxLedgerAmount)
	l.reserved, l.shadow, l.dirty = 0, 0, 0
	l.refusedAt, l.retryAt, l.toldAt, l.attempts = 0, 0, 0, 0
	l.flags &= flagSkewed | flagUnclean | flagUntold | flagKarmaSent
	if unclean {
		l.flags |= flagUnclean
	}
	return l
}

func TestReserveServe(t *testing.T) {
	for _, c := range []struct {
		name  string
		p     Policy
		setup func(x *tab)
		units tally.Amount
		want  error
	}{
		{"first unit, no session needed", Policy{}, nil, 1, nil},
		{"up to the disconnect threshold", Policy{}, nil, 125, nil},
		{"above the whole threshold", Policy{}, nil, 126, ErrTooLarge},
		{"beyond the bound of arithmetic", Policy{}, nil, maxLedgerAmount + 1, ErrTooLarge},
		{"debt counts", Policy{}, func(x *tab) { x.serve(25) }, 100, nil},
		{"debt counts to the unit", Policy{}, func(x *tab) { x.serve(25) }, 101, ErrOverThreshold},
		{"work in flight counts", Policy{}, func(x *tab) { x.do(Event{Kind: EvReserve, Dir: Serve, Units: 100}) }, 26, ErrOverThreshold},
		{"prepaid money gives room", Policy{}, func(x *tab) { x.do(Event{Kind: EvKarma, Units: 100}) }, 225, nil},
		{"prepaid money gives that room only", Policy{}, func(x *tab) { x.do(Event{Kind: EvKarma, Units: 100}) }, 226, ErrTooLarge},
		{"our debt gives room", Policy{}, func(x *tab) { x.native(); x.consume(80) }, 205, nil},
		{"our debt gives that room only", Policy{}, func(x *tab) { x.native(); x.consume(80) }, 206, ErrTooLarge},
		{"no credit while the books differ", Policy{}, func(x *tab) { x.l.flags |= flagSkewed }, 1, ErrSkew},
		{"our debt is served while the books differ", Policy{}, func(x *tab) { x.native(); x.consume(5); x.l.flags |= flagSkewed }, 5, nil},
		{"exposure cap", Policy{MaxExposure: 130}, func(x *tab) { x.native(); x.consume(80) }, 131, ErrExposure},
		{"exposure cap to the unit", Policy{MaxExposure: 130}, func(x *tab) { x.native(); x.consume(80) }, 130, nil},
		{"no credit while cheques are not covered", Policy{Mode: ModeHard}, func(x *tab) {
			x.serve(100)
			x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 100, Covered: 100})
			x.do(Event{Kind: EvCover, Covered: 90})
		}, 1, ErrUncovered},
		{"what is covered and prepaid is served", Policy{Mode: ModeHard}, func(x *tab) {
			x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 100, Covered: 100})
			x.do(Event{Kind: EvCover, Covered: 90})
		}, 90, nil},
		{"what is prepaid and not covered is not", Policy{Mode: ModeHard}, func(x *tab) {
			x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 100, Covered: 100})
			x.do(Event{Kind: EvCover, Covered: 90})
		}, 91, ErrUncovered},
		{"cover that came back is credit again", Policy{Mode: ModeHard}, func(x *tab) {
			x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 100, Covered: 100})
			x.do(Event{Kind: EvCover, Covered: 90})
			x.do(Event{Kind: EvCover, Covered: 5000})
		}, 225, nil},
		{"blocked", Policy{}, func(x *tab) { x.l.blockedUntil = x.now.Add(1) }, 1, ErrBlocked},
		{"no longer blocked", Policy{}, func(x *tab) { x.l.blockedUntil = x.now }, 1, nil},
		{"soft refuses nothing", Policy{Mode: ModeSoft}, func(x *tab) { x.serve(1000); x.l.blockedUntil = x.now.Add(1) }, 1 << 50, nil},
		{"soft keeps to arithmetic", Policy{Mode: ModeSoft}, func(x *tab) {
			x.do(Event{Kind: EvReserve, Dir: Serve, Units: maxLedgerAmount})
		}, 1, tally.ErrOverflow},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newTab(t, c.p)
			if c.setup != nil {
				c.setup(x)
			}
			ev := Event{Kind: EvReserve, Dir: Serve, Units: c.units}
			if c.want != nil {
				x.refuses(c.want, ev)
				return
			}
			shadow := x.l.shadow
			x.wantFx(x.do(ev), "")
			if x.l.shadow != shadow+c.units {
				t.Errorf("shadow %d, want %d", x.l.shadow, shadow+c.units)
			}
		})
	}
}

func TestReserveConsume(t *testing.T) {
	terms := func(threshold tally.Amount) func(x *tab) {
		return func(x *tab) {
			x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: threshold, Mode: ModeMock, Native: true}})
		}
	}
	for _, c := range []struct {
		name  string
		p     Policy
		setup func(x *tab)
		units tally.Amount
		want  error
	}{
		{"no session", Policy{}, func(*tab) {}, 1, ErrNoSession},
		{"session ended", Policy{}, func(x *tab) { x.native(); x.do(Event{Kind: EvSessionEnd}) }, 1, ErrNoSession},
		{"up to the peer's threshold", Policy{}, terms(100), 100, nil},
		{"above it", Policy{}, terms(100), 101, ErrTooLarge},
		{"beyond the bound of arithmetic", Policy{}, terms(100), maxLedgerAmount + 1, ErrTooLarge},
		{"debt counts", Policy{}, func(x *tab) { x.native(); x.consume(40) }, 61, ErrOverThreshold},
		{"debt counts to the unit", Policy{}, func(x *tab) { x.native(); x.consume(40) }, 60, nil},
		{"work in flight counts", Policy{}, func(x *tab) { x.native(); x.do(Event{Kind: EvReserve, Dir: Consume, Units: 40}) }, 61, ErrOverThreshold},
		{"what the peer owes gives room", Policy{}, func(x *tab) { x.native(); x.serve(30) }, 130, nil},
		{"and no more", Policy{}, func(x *tab) { x.native(); x.serve(30) }, 131, ErrTooLarge},
		{"peer announced nothing", Policy{}, terms(0), 1, ErrPeerThreshold},
		{"peer announced below our bound", Policy{}, terms(9), 1, ErrPeerThreshold},
		{"peer announced our bound", Policy{}, terms(10), 10, nil},
		{"below our bound, but it owes us", Policy{}, func(x *tab) { terms(9)(x); x.serve(7) }, 7, nil},
		{"peer announced too much: our max debt", Policy{}, terms(1 << 39), 1001, ErrTooLarge},
		{"peer announced too much: up to our max debt", Policy{}, terms(1 << 39), 1000, nil},
		{"peer announced too much: clamped", Policy{MaxDebt: 1 << 40}, terms(tally.MaxAmount), 1_000_001, ErrTooLarge},
		{"peer announced too much: up to the clamp", Policy{MaxDebt: 1 << 40}, terms(tally.MaxAmount), 1_000_000, nil},
		{"our cheque is refused", Policy{}, func(x *tab) { x.native(); x.l.settle = settleRefused }, 1, ErrPaymentRefused},
		{"soft refuses nothing", Policy{Mode: ModeSoft}, func(*tab) {}, 1 << 50, nil},
		{"soft keeps to arithmetic", Policy{Mode: ModeSoft}, func(x *tab) {
			x.do(Event{Kind: EvReserve, Dir: Consume, Units: maxLedgerAmount})
		}, 1, tally.ErrOverflow},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newTab(t, c.p)
			c.setup(x)
			ev := Event{Kind: EvReserve, Dir: Consume, Units: c.units}
			if c.want != nil {
				x.refuses(c.want, ev)
				return
			}
			reserved, dirty := x.l.reserved, x.l.dirty
			x.wantFx(x.do(ev), "")
			if x.l.reserved != reserved+c.units || x.l.dirty != dirty+c.units {
				t.Errorf("reserved %d and dirty %d, want %d more than %d and %d", x.l.reserved, x.l.dirty, c.units, reserved, dirty)
			}
		})
	}
}

// The headroom that is told is the headroom that is granted, to the unit: a
// server that cuts its page to the headroom must not be refused.
func TestHeadroomIsExact(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		x := randomTab(t, rt)
		if x.l.policy.Mode == ModeSoft {
			return
		}
		for _, dir := range []Direction{Serve, Consume} {
			room := x.l.HeadroomConsume()
			if dir == Serve {
				room = x.l.HeadroomServe(x.now)
			}
			if room > maxLedgerAmount/2 {
				continue // only an impossible tab has more; arithmetic bounds it first
			}
			try := x.l
			if _, err := try.Step(x.now, &Event{Kind: EvReserve, Dir: dir, Units: room}); room != 0 && err != nil {
				rt.Fatalf("%v: headroom is %d, but %d are refused: %v\nin %s", dir, room, room, err, describe(&x.l))
			}
			try = x.l
			if _, err := try.Step(x.now, &Event{Kind: EvReserve, Dir: dir, Units: room + 1}); err == nil {
				rt.Fatalf("%v: headroom is %d, but %d are granted\nin %s", dir, room, room+1, describe(&x.l))
			}
		}
	})
}

// Money that we paid ahead is no debt of the peer. Two payments that cross leave
// such money without any fault; were it counted, the peer would be refused for
// good with a debt that is too small to pay.
func TestPaidAheadIsNoDebtOfThePeer(t *testing.T) {
	x := newTab(t, Policy{}).native()
	x.consume(100) // our cheque is on its way
	x.do(Event{Kind: EvIssued, Serial: 1})
	x.serve(100) // and meanwhile the peer's consumption makes the debt even
	x.do(Event{Kind: EvAck, Serial: 1, Cumulative: 100})
	x.wantBalance(100)
	if got := x.l.HeadroomServe(x.now); got != 125 {
		t.Errorf("headroom %d: the peer owes nothing, but is 100 ahead of us in money", got)
	}
	x.do(Event{Kind: EvReserve, Dir: Serve, Units: 125})
	x.refuses(ErrOverThreshold, Event{Kind: EvReserve, Dir: Serve, Units: 1})
	if got := x.l.Exposure(); got != 225 {
		t.Errorf("exposure %d, want 225: it could still keep that money", got)
	}
}

// Whatever is refused as too large is refused however long one waits and
// whatever is settled; whatever is not too large is granted on a settled tab.
func TestTooLargeNeverFits(t *testing.T) {
	x := newTab(t, Policy{}).native()
	x.consume(60)
	x.refuses(ErrOverThreshold, Event{Kind: EvReserve, Dir: Consume, Units: 100})
	x.do(Event{Kind: EvSettle})
	x.do(Event{Kind: EvIssued, Serial: 1})
	x.do(Event{Kind: EvAck, Serial: 1, Cumulative: 60})
	x.do(Event{Kind: EvReserve, Dir: Consume, Units: 100})
}

// randomTab reaches a state by random events, refused ones among them.
func randomTab(t testing.TB, rt *rapid.T) *tab {
	p := Policy{
		Mode:                rapid.SampledFrom([]Mode{ModeSoft, ModeMock, ModeHard}).Draw(rt, "mode"),
		PaymentThreshold:    rapid.SampledFrom([]tally.Amount{10, 100, 1000}).Draw(rt, "threshold"),
		EarlyPaymentPercent: rapid.SampledFrom([]uint8{1, 50, 100}).Draw(rt, "early"),
	}
	x := newTab(t, p)
	for i := range rapid.IntRange(0, 30).Draw(rt, "events") {
		raw := rapid.SliceOfN(rapid.Byte(), eventBytes, eventBytes).Draw(rt, fmt.Sprint("event", i))
		ev, wait := parseEvent(raw, &x.l)
		x.wait(wait)
		_, _ = x.l.Step(x.now, &ev)
		if err := x.l.Check(); err != nil {
			rt.Fatalf("after %s %+v: %v", eventName(ev.Kind), ev, err)
		}
	}
	return x
}

func TestCommit(t *testing.T) {
	t.Run("serve books what was delivered, not what was reserved", func(t *testing.T) {
		for _, units := range []tally.Amount{0, 3, 10, 40} {
			x := newTab(t, Policy{})
			x.do(Event{Kind: EvReserve, Dir: Serve, Units: 10})
			x.do(Event{Kind: EvCommit, Dir: Serve, Units: units, Held: 10})
			x.wantBalance(tally.Balance(units))
			if x.l.shadow != 0 || x.l.served != units || x.l.dirty != units {
				t.Errorf("%d units: %s, dirty %d", units, describe(&x.l), x.l.dirty)
			}
		}
	})
	t.Run("consume books without a session and over any threshold", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		x.do(Event{Kind: EvReserve, Dir: Consume, Units: 10})
		x.do(Event{Kind: EvSessionEnd})
		x.do(Event{Kind: EvCommit, Dir: Consume, Units: 500, Held: 10})
		x.wantBalance(-500)
		if x.l.reserved != 0 {
			t.Errorf("reserved %d", x.l.reserved)
		}
	})
	t.Run("prepaid money is drawn first", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.do(Event{Kind: EvKarma, Units: 40})
		x.serve(30)
		if x.l.owed != 0 || x.l.prepaidByPeer != 10 {
			t.Errorf("owed %d prepaid %d, want 0 and 10", x.l.owed, x.l.prepaidByPeer)
		}
		x.serve(30)
		if x.l.owed != 20 || x.l.prepaidByPeer != 0 {
			t.Errorf("owed %d prepaid %d, want 20 and 0", x.l.owed, x.l.prepaidByPeer)
		}
	})
	t.Run("our prepaid money is drawn first", func(t *testing.T) {
		x := newTab(t, Policy{}).seed()
		x.consume(60)
		x.do(Event{Kind: EvSettle})
		x.serve(50) // while the cheque is on its way
		x.do(Event{Kind: EvIssued, Serial: 1})
		if x.l.owed != 0 && x.l.prepaidToPeer != 50 {
			t.Fatalf("%s", describe(&x.l))
		}
		x.wantBalance(50)
		x.consume(20)
		x.wantBalance(30)
	})
	t.Run("totals stay within their bound", func(t *testing.T) {
		for _, dir := range []Direction{Serve, Consume} {
			x := newTab(t, Policy{Mode: ModeSoft})
			x.do(Event{Kind: EvCommit, Dir: dir, Units: maxLedgerAmount})
			x.refuses(tally.ErrOverflow, Event{Kind: EvCommit, Dir: dir, Units: 1})
			x.refuses(tally.ErrOverflow, Event{Kind: EvCommit, Dir: dir, Units: tally.MaxAmount})
		}
	})
	t.Run("flush at half of W", func(t *testing.T) {
		x := newTab(t, Policy{}) // W = 25, flush at 12
		x.wantFx(x.serve(11), "")
		x.wantFx(x.serve(1), "flush")
		x.l.Saved(12)
		x.wantFx(x.serve(11), "")
		if x.l.NeedsFlush() {
			t.Error("needs a flush below W/2")
		}
	})
	t.Run("a saved reservation is not dirty again", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		x.do(Event{Kind: EvReserve, Dir: Consume, Units: 20})
		if !x.l.NeedsFlush() {
			t.Fatal("a reservation over W/2 must be on disk before the request leaves")
		}
		x.l.Saved(x.l.dirty)
		x.wantFx(x.do(Event{Kind: EvCommit, Dir: Consume, Units: 20, Held: 20}), "")
		if x.l.dirty != 0 {
			t.Errorf("dirty %d", x.l.dirty)
		}
		x.do(Event{Kind: EvReserve, Dir: Consume, Units: 1})
		x.do(Event{Kind: EvCommit, Dir: Consume, Units: 8, Held: 1})
		if x.l.dirty != 8 {
			t.Errorf("dirty %d, want 8", x.l.dirty)
		}
	})
}

func TestRelease(t *testing.T) {
	x := newTab(t, Policy{}).native()
	x.do(Event{Kind: EvReserve, Dir: Consume, Units: 10})
	x.do(Event{Kind: EvReserve, Dir: Serve, Units: 10})
	x.do(Event{Kind: EvRelease, Dir: Serve, Held: 10})
	x.do(Event{Kind: EvRelease, Dir: Consume, Held: 4})
	x.do(Event{Kind: EvRelease, Dir: Consume, Held: 6, Units: 6, Lost: true})
	if !x.l.AtRest() || x.l.unanswered != 6 || x.l.flags&flagUntold == 0 {
		t.Errorf("%s", describe(&x.l))
	}
	x.wantBalance(0)
	x.do(Event{Kind: EvRelease, Dir: Consume, Lost: true, Units: tally.MaxAmount})
	if x.l.unanswered != maxLedgerAmount {
		t.Errorf("unanswered %d, want the bound", x.l.unanswered)
	}
	// An answer that comes after all is booked, and no longer unanswered.
	y := newTab(t, Policy{}).native()
	y.do(Event{Kind: EvReserve, Dir: Consume, Units: 10})
	y.do(Event{Kind: EvRelease, Dir: Consume, Held: 10, Units: 10, Lost: true})
	y.do(Event{Kind: EvCommit, Dir: Consume, Units: 10, Lost: true})
	y.wantBalance(-10)
	if y.l.unanswered != 0 {
		t.Errorf("unanswered %d after the answer", y.l.unanswered)
	}
}

// A peer is blocked only where its booked debt stays at the disconnect threshold
// for 30 s after a refusal; its work in flight never counts.
func TestOverdue(t *testing.T) {
	t.Run("after 30 s", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(125)
		x.do(Event{Kind: EvDenied})
		x.wantFx(x.wait(30*time.Second-1).tick(), "")
		x.do(Event{Kind: EvDenied}) // a second refusal does not start the clock again
		x.wantFx(x.wait(1).tick(), "save disconnect")
		x.refuses(ErrBlocked, Event{Kind: EvReserve, Dir: Serve, Units: 1})
		if x.l.HeadroomServe(x.now) != 0 {
			t.Error("a blocked peer has headroom")
		}
	})
	t.Run("not without a refusal", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(500)
		x.wantFx(x.wait(time.Hour).tick(), "")
	})
	t.Run("not below the threshold", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(124)
		x.do(Event{Kind: EvDenied})
		x.wantFx(x.wait(time.Hour).tick(), "")
	})
	t.Run("not for work in flight", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.do(Event{Kind: EvReserve, Dir: Serve, Units: 125})
		x.refuses(ErrOverThreshold, Event{Kind: EvReserve, Dir: Serve, Units: 1})
		x.do(Event{Kind: EvDenied})
		x.wantFx(x.wait(time.Hour).tick(), "")
	})
	t.Run("not in soft mode", func(t *testing.T) {
		x := newTab(t, Policy{Mode: ModeSoft})
		x.serve(1000)
		x.do(Event{Kind: EvDenied})
		x.wantFx(x.wait(time.Hour).tick(), "")
	})
	t.Run("not for our own debt", func(t *testing.T) {
		x := newTab(t, Policy{}).native()
		x.consume(99)
		x.do(Event{Kind: EvSessionEnd})
		x.consume(500)
		x.do(Event{Kind: EvDenied})
		x.wantFx(x.wait(time.Hour).tick(), "")
	})
	t.Run("a cheque in time stops the clock", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(125)
		x.do(Event{Kind: EvDenied})
		x.wait(29 * time.Second)
		x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 1, Covered: 1})
		x.serve(1)
		x.wantFx(x.wait(29*time.Second).tick(), "")
	})
	t.Run("service the other way stops the clock", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(125)
		x.do(Event{Kind: EvDenied})
		x.consume(1)
		x.tick()
		x.serve(1)
		x.wantFx(x.wait(time.Minute).tick(), "")
	})
	t.Run("payment lifts the block", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(125)
		x.do(Event{Kind: EvDenied})
		x.wait(overdueAfter).tick()
		x.do(Event{Kind: EvSession, Terms: &Terms{Native: true}}) // it may always shake hands
		x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 125, Covered: 125})
		x.do(Event{Kind: EvReserve, Dir: Serve, Units: 125})
	})
	t.Run("karma lifts the block", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(125)
		x.do(Event{Kind: EvDenied})
		x.wait(overdueAfter).tick()
		x.do(Event{Kind: EvKarma, Units: 125})
		x.do(Event{Kind: EvReserve, Dir: Serve, Units: 125})
	})
	t.Run("a worthless cheque does not", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(125)
		x.do(Event{Kind: EvDenied})
		x.wait(overdueAfter).tick()
		x.do(Event{Kind: EvCheque, Serial: 1})
		x.refuses(ErrBlocked, Event{Kind: EvReserve, Dir: Serve, Units: 1})
	})
	t.Run("time ends the block", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(125)
		x.do(Event{Kind: EvDenied})
		x.wait(overdueAfter).tick()
		x.wait(75*time.Second - 1).tick()
		x.refuses(ErrBlocked, Event{Kind: EvReserve, Dir: Serve, Units: 1})
		x.wait(1).tick()
		x.refuses(ErrOverThreshold, Event{Kind: EvReserve, Dir: Serve, Units: 1})
		if x.l.blockedUntil != 0 {
			t.Error("the block is over")
		}
	})
	t.Run("length", func(t *testing.T) {
		for owed, want := range map[tally.Amount]time.Duration{
			125: 75 * time.Second, 150: 90 * time.Second, 200: 2 * time.Minute, 250: 150 * time.Second,
			5999: 59*time.Minute + 59*time.Second + 400*time.Millisecond, 6000: time.Hour, 6001: time.Hour, 1 << 59: time.Hour,
		} {
			x := newTab(t, Policy{})
			x.serve(owed)
			x.do(Event{Kind: EvDenied})
			x.wait(overdueAfter).tick()
			if got := x.l.blockedUntil.Sub(x.now); got != want {
				t.Errorf("%d owed: blocked for %v, want %v", owed, got, want)
			}
		}
	})
	t.Run("a clock that stands still or goes back blocks nobody", func(t *testing.T) {
		x := newTab(t, Policy{})
		x.serve(125)
		x.do(Event{Kind: EvDenied})
		x.now -= Instant(time.Hour)
		x.wantFx(x.tick(), "")
	})
}

func TestSession(t *testing.T) {
	x := newTab(t, Policy{})
	x.refuses(ErrUnexpected, Event{Kind: EvSession})
	x.wantFx(x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 50, DisconnectThreshold: 60, Mode: ModeHard, Native: true}}), "wake")
	if x.l.peerPayment != 50 || x.l.peerDisconnect != 60 || x.l.peerMode != ModeHard || x.l.flags&flagNative == 0 {
		t.Error("terms are not kept")
	}
	x.wantFx(x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 50}}), "wake")
	if x.l.flags&flagNative != 0 {
		t.Error("a session of the seed's protocol is not native")
	}
	x.consume(49)
	x.do(Event{Kind: EvSessionEnd})
	x.consume(1)
	x.wantBalance(-50) // debt survives the end of a session
	x.wantFx(x.do(Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 50, Native: true}}), "save#1=50 issue#1=50 wake")
}

func TestUnknownEvent(t *testing.T) {
	x := newTab(t, Policy{})
	x.refuses(ErrUnexpected, Event{})
	x.refuses(ErrUnexpected, Event{Kind: 200})
}

// Check names each broken invariant.
func TestCheckNamesWhatIsBroken(t *testing.T) {
	good := func() *tab {
		x := newTab(t, Policy{}).native()
		x.serve(100)
		x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 150, Covered: 150})
		x.consume(120)
		x.do(Event{Kind: EvSettle})
		x.do(Event{Kind: EvIssued, Serial: 1})
		x.do(Event{Kind: EvAck, Serial: 1, Cumulative: x.l.issued})
		return x
	}
	for name, breakIt := range map[string]func(l *Ledger){
		"conservation":             func(l *Ledger) { l.owed++ },
		"prepaid-by-peer":          func(l *Ledger) { l.owed, l.prepaidByPeer = l.owed+10, l.prepaidByPeer+10 },
		"prepaid-to-peer":          func(l *Ledger) { l.owed, l.prepaidToPeer = l.owed-10, l.prepaidToPeer+10 },
		"cover":                    func(l *Ledger) { l.covered = l.received + 1 },
		"paid-within-issued":       func(l *Ledger) { l.issued = l.paid - 1 },
		"received-within-accepted": func(l *Ledger) { l.accepted = l.received - 1 },
		"settle-state":             func(l *Ledger) { l.settle = 4 },
		"bounded-totals":           func(l *Ledger) { l.served += maxLedgerAmount; l.consumed += maxLedgerAmount },
	} {
		x := good()
		if name == "prepaid-by-peer" || name == "prepaid-to-peer" {
			// A settled tab is the simplest start for money on the wrong side.
			x = newTab(t, Policy{})
		}
		if err := x.l.Check(); err != nil {
			t.Fatal(err)
		}
		breakIt(&x.l)
		err := x.l.Check()
		if !errors.Is(err, ErrInvariant) || err == nil || !strings.Contains(err.Error(), "broken: "+name+":") {
			t.Errorf("%s: Check says %v", name, err)
		}
	}
}

// A record that anything stands on stays in the store. What was forgiven is
// such a thing: a peer whose record were dropped could have the same units
// forgiven again and again.
func TestEmpty(t *testing.T) {
	empty := newTab(t, Policy{}).native()
	if !empty.l.Empty() {
		t.Error("a tab without history is empty")
	}
	for name, change := range map[string]func(x *tab){
		"served":     func(x *tab) { x.serve(1) },
		"consumed":   func(x *tab) { x.consume(1) },
		"reserved":   func(x *tab) { x.do(Event{Kind: EvReserve, Dir: Consume, Units: 1}) },
		"shadow":     func(x *tab) { x.do(Event{Kind: EvReserve, Dir: Serve, Units: 1}) },
		"unanswered": func(x *tab) { x.do(Event{Kind: EvRelease, Dir: Consume, Units: 1, Lost: true}) },
		"received":   func(x *tab) { x.do(Event{Kind: EvKarma, Units: 1}) },
		"a cheque":   func(x *tab) { x.do(Event{Kind: EvCheque, Serial: 1}) },
		"forgiven": func(x *tab) {
			x.serve(20)
			x.do(Event{Kind: EvStatement, Totals: &Totals{SeenServed: 20, AtRest: true}})
			if x.l.served != 0 || x.l.forgiven != 20 {
				t.Fatalf("want 20 forgiven: %s", describe(&x.l))
			}
		},
	} {
		x := newTab(t, Policy{}).native()
		change(x)
		if x.l.Empty() {
			t.Errorf("%s: the record counts as empty: %s", name, describe(&x.l))
		}
	}
}

// What was forgiven to peers that never paid stays in the sum that they share:
// else each new identity could have W forgiven, for ever.
func TestForgivenStrangerStaysExposure(t *testing.T) {
	x := newTab(t, Policy{}).native()
	x.serve(20)
	x.do(Event{Kind: EvStatement, Totals: &Totals{SeenServed: 20, AtRest: true}})
	if got := x.l.Exposure(); got != 20 {
		t.Errorf("exposure of a stranger with 20 forgiven is %d", got)
	}
	x.do(Event{Kind: EvKarma, Units: 1})
	if got := x.l.Exposure(); got != 0 {
		t.Errorf("exposure of a peer that paid is %d", got)
	}
}

func TestExposure(t *testing.T) {
	x := newTab(t, Policy{Mode: ModeHard})
	x.serve(30)
	x.do(Event{Kind: EvReserve, Dir: Serve, Units: 7})
	if got := x.l.Exposure(); got != 37 {
		t.Errorf("exposure %d, want debt and work in flight, 37", got)
	}
	x.do(Event{Kind: EvCheque, Serial: 1, Cumulative: 50, Covered: 50})
	if got := x.l.Exposure(); got != 7 {
		t.Errorf("exposure %d, want work in flight, 7", got)
	}
	if x.l.Stranger() {
		t.Error("it paid")
	}
}

func TestLedgerIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(Ledger{}); size > 256 {
		t.Errorf("a ledger has %d bytes, more than 256", size)
	} else {
		t.Logf("a ledger has %d bytes", size)
	}
}

// The message path allocates nothing.
func TestMessagePathAllocatesNothing(t *testing.T) {
	policy := Policy{PaymentThreshold: 1 << 30, MaxPeerThreshold: 1 << 30, MaxDebt: 1 << 30}.Complete()
	l := NewLedger(&policy)
	if _, err := l.Step(1, &Event{Kind: EvSession, Terms: &Terms{PaymentThreshold: 1 << 30, Native: true}}); err != nil {
		t.Fatal(err)
	}
	events := []Event{
		{Kind: EvReserve, Dir: Serve, Units: 1},
		{Kind: EvCommit, Dir: Serve, Units: 1, Held: 1},
		{Kind: EvReserve, Dir: Consume, Units: 1},
		{Kind: EvCommit, Dir: Consume, Units: 1, Held: 1},
		{Kind: EvReserve, Dir: Consume, Units: 1},
		{Kind: EvRelease, Dir: Consume, Held: 1, Units: 1, Lost: true},
		{Kind: EvReserve, Dir: Serve, Units: 1},
		{Kind: EvRelease, Dir: Serve, Held: 1},
		{Kind: EvTick},
	}
	l.dirty = policy.flushAt() // so that commits return their flush, too
	got := testing.AllocsPerRun(1000, func() {
		for i := range events {
			if _, err := l.Step(1, &events[i]); err != nil {
				t.Fatal(err)
			}
		}
	})
	if got != 0 {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkLedgerStep(b *testing.B) {
	policy := Policy{Mode: ModeMock, PaymentThreshold: 1 << 39, MaxPeerThreshold: 1 << 40}.Complete()
	for _, peers := range []int{1, 100_000} {
		b.Run(fmt.Sprintf("peers=%d", peers), func(b *testing.B) {
			ledgers := make([]Ledger, peers)
			for i := range ledgers {
				ledgers[i] = NewLedger(&policy)
			}
			ev := Event{Kind: EvCommit, Dir: Serve, Units: 1}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				l := &ledgers[i%peers]
				i += 7919 // a prime, so that the next one is not in the cache
				if _, err := l.Step(1, &ev); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// eventBytes is the length of one event in the input of FuzzLedgerStep.
const eventBytes = 12

// parseEvent reads one event. Serials and amounts are drawn near those of the
// tab as often as at random, or nothing would ever fit.
func parseEvent(b []byte, l *Ledger) (Event, time.Duration) {
	ev := Event{
		Kind: EventKind(b[0]%28) + 1, // one beyond the last kind
		Dir:  Direction(b[1]&1) + Serve,
		Lost: b[1]&2 != 0, Again: b[1]&4 != 0,
		Units: amountFrom(b[2:4], l.policy.PaymentThreshold),
		Held:  amountFrom(b[4:6], l.reserved),
	}
	ev.Serial = l.sentSerial
	ev.Cumulative, ev.Covered = l.issued, amountFrom(b[8:10], l.accepted)
	if ev.Kind == EvCheque || ev.Kind == EvAdoptReceived {
		ev.Serial, ev.Cumulative = l.receivedSerial+1, l.accepted
	}
	if ev.Kind == EvAdoptSent {
		ev.Serial++
	}
	switch b[1] >> 6 {
	case 1:
		ev.Serial--
	case 2:
		ev.Serial++
	}
	if b[1]&8 != 0 {
		ev.Cumulative = amountFrom(b[6:8], ev.Cumulative)
	}
	if b[1]&16 != 0 {
		ev.Covered = ev.Cumulative
	}
	if b[1]&32 == 0 {
		ev.Terms = &Terms{
			PaymentThreshold: ev.Units, DisconnectThreshold: ev.Held,
			Mode: Mode(b[10] & 3), Native: b[10]&4 != 0,
		}
		ev.Totals = &Totals{
			Served: amountFrom(b[2:4], l.consumed), Consumed: amountFrom(b[4:6], l.served),
			SeenServed: l.served, SeenConsumed: l.consumed, AtRest: b[10]&8 == 0,
		}
		if b[10]&16 != 0 {
			ev.Totals.SeenServed = ev.Units
		}
	}
	return ev, time.Duration(b[11]) * time.Second
}

// amountFrom reads an amount from two bytes: small, near, at a bound of some
// type, or beyond.
func amountFrom(b []byte, near tally.Amount) tally.Amount {
	v := tally.Amount(b[1])
	switch b[0] % 8 {
	case 0, 1, 2:
		return v
	case 3, 4:
		return near + v
	case 5:
		return near - v // wraps below zero: a hostile amount
	case 6:
		return v << 12
	default:
		return 1<<(b[0]/8+32) - 1 + v - 128
	}
}

// FuzzLedgerStep feeds any sequence of events: nothing panics, Check holds after
// each, and a refused event changes nothing.
func FuzzLedgerStep(f *testing.F) {
	f.Add([]byte{1})
	var settle []byte
	for _, k := range []EventKind{EvSession, EvReserve, EvCommit, EvSettle, EvIssued, EvAck, EvCheque, EvStatement, EvTick, EvAdoptSent, EvResolve, EvCover, EvFinal, EvRetry} {
		raw := make([]byte, eventBytes)
		raw[0], raw[1], raw[3], raw[10] = byte(k)-1, 1|16, 100, 2|4
		settle = append(settle, raw...)
	}
	f.Add(append([]byte{1}, settle...))
	f.Add(append([]byte{2}, settle...))
	f.Add(append([]byte{1}, bytes.Repeat(settle, 3)...))
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) == 0 || len(input) > 200*eventBytes {
			return
		}
		policy := Policy{Mode: Mode(input[0]%3) + 1}.Complete()
		l := NewLedger(&policy)
		now := testStart
		for raw := range slices.Chunk(input[1:], eventBytes) {
			if len(raw) < eventBytes {
				return
			}
			ev, wait := parseEvent(raw, &l)
			now = now.Add(wait)
			before := l
			fx, err := l.Step(now, &ev)
			if err != nil && (l != before || fx != nil) {
				t.Fatalf("%s: refused with %v, but changed\n%s to\n%s", eventName(ev.Kind), err, describe(&before), describe(&l))
			}
			if err := l.Check(); err != nil {
				t.Fatalf("after %s %+v %+v: %v\nwas %s\nis  %s", eventName(ev.Kind), ev, ev.Totals, err, describe(&before), describe(&l))
			}
			checkEffects(t, &before, &l, fx)
			checkForgiven(t, &before, &l)
			if policy.Mode == ModeSoft {
				for _, e := range fx {
					if e.Kind == FxSendCheque || e.Kind == FxDisconnect || e.Kind == FxIssue {
						t.Fatalf("soft mode: %s", words(fx))
					}
				}
			}
		}
	})
}

// checkForgiven holds the bound of the design over one step: W and 1 % of what
// the peer paid.
func checkForgiven(t reporter, before, after *Ledger) {
	t.Helper()
	if bound := after.policy.Slack() + after.received/100; after.forgiven > before.forgiven && after.forgiven > bound {
		t.Fatalf("forgiven %d, more than W + 1%% = %d", after.forgiven, bound)
	}
}
