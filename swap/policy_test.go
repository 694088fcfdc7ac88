package swap

import (
	"errors"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

func TestDefaultPolicy(t *testing.T) {
	p := DefaultPolicy()
	want := Policy{
		Mode: ModeMock, PaymentThreshold: 100, DisconnectThreshold: 125, EarlyPaymentPercent: 100,
		MinPeerThreshold: 10, MaxPeerThreshold: 1_000_000, MaxDebt: 1000,
		MaxExposure: 500, MaxExposureTotal: 125_000, StrangersExposure: 10_000,
	}
	if p != want {
		t.Errorf("%+v\nwant %+v", p, want)
	}
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
	if p.Slack() != 25 || p.flushAt() != 12 {
		t.Errorf("W %d, flush at %d", p.Slack(), p.flushAt())
	}
}

func TestPolicyComplete(t *testing.T) {
	p := Policy{PaymentThreshold: 1000, Mode: ModeHard, EarlyPaymentPercent: 50}.Complete()
	if p.DisconnectThreshold != 1250 || p.MaxDebt != 10_000 || p.MaxExposure != 5000 || p.Mode != ModeHard || p.EarlyPaymentPercent != 50 {
		t.Errorf("%+v", p)
	}
	if p := (Policy{PaymentThreshold: 1}).Complete(); p.DisconnectThreshold != 2 || p.flushAt() != 1 || p.Validate() != nil {
		t.Errorf("%+v: %v", p, p.Validate())
	}
	// What an operator set is kept, however odd; Validate speaks up.
	odd := Policy{PaymentThreshold: tally.MaxAmount}.Complete()
	if err := odd.Validate(); !errors.Is(err, ErrPolicy) {
		t.Errorf("%+v: %v", odd, err)
	}
	again := p.Complete()
	if again != p {
		t.Error("completing twice changes a policy")
	}
}

func TestPolicyValidate(t *testing.T) {
	for name, change := range map[string]func(p *Policy){
		"no mode":                                 func(p *Policy) { p.Mode = ModeUnset },
		"unknown mode":                            func(p *Policy) { p.Mode = ModeHard + 1 },
		"threshold 0":                             func(p *Policy) { p.PaymentThreshold = 0 },
		"disconnect at the payment threshold":     func(p *Policy) { p.DisconnectThreshold = p.PaymentThreshold },
		"disconnect below the payment threshold":  func(p *Policy) { p.DisconnectThreshold = 1 },
		"disconnect over the bound":               func(p *Policy) { p.DisconnectThreshold = maxThreshold + 1 },
		"early 0":                                 func(p *Policy) { p.EarlyPaymentPercent = 0 },
		"early 101":                               func(p *Policy) { p.EarlyPaymentPercent = 101 },
		"least threshold 0":                       func(p *Policy) { p.MinPeerThreshold = 0 },
		"bounds crossed":                          func(p *Policy) { p.MinPeerThreshold = p.MaxPeerThreshold + 1 },
		"upper bound over the bound":              func(p *Policy) { p.MaxPeerThreshold = maxThreshold + 1 },
		"max debt below the least threshold":      func(p *Policy) { p.MaxDebt = p.MinPeerThreshold - 1 },
		"max debt over the bound":                 func(p *Policy) { p.MaxDebt = maxLedgerAmount + 1 },
		"exposure over the bound":                 func(p *Policy) { p.MaxExposureTotal = maxLedgerAmount + 1 },
		"strangers over the bound":                func(p *Policy) { p.StrangersExposure = maxLedgerAmount + 1 },
		"exposure below the disconnect threshold": func(p *Policy) { p.MaxExposure = p.DisconnectThreshold - 1 },
		"exposure of all below that of one":       func(p *Policy) { p.MaxExposureTotal = p.MaxExposure - 1 },
	} {
		p := DefaultPolicy()
		change(&p)
		if err := p.Validate(); !errors.Is(err, ErrPolicy) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A valid policy never overflows the ledger's arithmetic, and two nodes that
// share it can serve, settle and serve again.
func TestValidPoliciesWork(t *testing.T) {
	amount := func(rt *rapid.T, name string) tally.Amount {
		return tally.Amount(rapid.Uint64Range(0, 1<<rapid.IntRange(0, 63).Draw(rt, name+" bits")).Draw(rt, name))
	}
	rapid.Check(t, func(rt *rapid.T) {
		p := Policy{
			PaymentThreshold: amount(rt, "payment"), DisconnectThreshold: amount(rt, "disconnect"),
			EarlyPaymentPercent: uint8(rapid.IntRange(0, 100).Draw(rt, "early")),
			MinPeerThreshold:    amount(rt, "min"), MaxPeerThreshold: amount(rt, "max"),
			MaxDebt: amount(rt, "debt"), MaxExposure: amount(rt, "exposure"),
		}.Complete()
		if p.Validate() != nil {
			return
		}
		if p.peerThreshold(p.PaymentThreshold) == 0 {
			return // it would not consume from its own twin: an operator's choice
		}
		a, b := newTab(t, p), newTab(t, p)
		terms := &Terms{PaymentThreshold: p.PaymentThreshold, DisconnectThreshold: p.DisconnectThreshold, Mode: p.Mode, Native: true}
		a.do(Event{Kind: EvSession, Terms: terms})
		for serial := uint64(1); serial <= 3; serial++ {
			n := a.l.HeadroomConsume()
			if n == 0 {
				rt.Fatalf("no headroom in a settled tab: %+v", p)
			}
			n = min(n, b.l.HeadroomServe(b.now))
			a.do(Event{Kind: EvReserve, Dir: Consume, Units: n})
			b.do(Event{Kind: EvReserve, Dir: Serve, Units: n})
			b.do(Event{Kind: EvCommit, Dir: Serve, Units: n, Held: n})
			a.do(Event{Kind: EvCommit, Dir: Consume, Units: n, Held: n})
			if a.l.settle == settleIdle {
				a.do(Event{Kind: EvSettle})
			}
			a.do(Event{Kind: EvIssued, Serial: serial})
			b.do(Event{Kind: EvCheque, Serial: serial, Cumulative: a.l.issued, Covered: a.l.issued})
			a.do(Event{Kind: EvAck, Serial: serial, Cumulative: b.l.received})
			if a.l.Balance() != 0 || b.l.Balance() != 0 {
				rt.Fatalf("%+v: a %s, b %s", p, describe(&a.l), describe(&b.l))
			}
		}
	})
}

func TestPeerThreshold(t *testing.T) {
	p := DefaultPolicy()
	for announced, want := range map[tally.Amount]tally.Amount{
		0: 0, 9: 0, 10: 10, 100: 100, 1_000_000: 1_000_000, 1_000_001: 1_000_000, tally.MaxAmount: 1_000_000,
	} {
		if got := p.peerThreshold(announced); got != want {
			t.Errorf("%d: %d, want %d", announced, got, want)
		}
	}
}

func TestParseMode(t *testing.T) {
	for _, m := range []Mode{ModeSoft, ModeMock, ModeHard} {
		if got, err := ParseMode(m.String()); err != nil || got != m {
			t.Errorf("%v: %v, %v", m, got, err)
		}
	}
	for _, s := range []string{"", "unset", "Soft", "hard "} {
		if _, err := ParseMode(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
	if Mode(200).String() != "unset" || ModeHard != 3 {
		t.Error("modes go over the wire")
	}
}

func TestInstant(t *testing.T) {
	var i Instant = 10
	if i.Add(5) != 15 || i.Sub(4) != 6 || i.Sub(11) != 0 {
		t.Errorf("%v %v %v", i.Add(5), i.Sub(4), i.Sub(11))
	}
	if got := Instant(math.MaxInt64).Sub(0); got != time.Duration(math.MaxInt64) {
		t.Error(got)
	}
}

func TestBackoff(t *testing.T) {
	for n, want := range map[uint8]time.Duration{0: time.Second, 1: 2 * time.Second, 5: 32 * time.Second, 6: time.Minute, 255: time.Minute} {
		if got := backoff(n); got != want {
			t.Errorf("%d: %v, want %v", n, got, want)
		}
	}
}
