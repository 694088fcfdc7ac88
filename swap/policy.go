package swap

import (
	"errors"
	"fmt"

	"github.com/tallystick/tally"
)

// Mode says how a tab is settled. The numbers go over the wire: add at the end.
type Mode uint8

const (
	// ModeUnset is what a peer has that told no mode.
	ModeUnset Mode = iota
	// ModeSoft counts only: swap refuses nothing, sends no cheque, disconnects
	// nobody.
	ModeSoft
	// ModeMock settles with signed cheques whose cumulative is karma: nobody
	// can cash one.
	ModeMock
	// ModeHard settles with cheques that each carry a channel voucher.
	ModeHard
)

// String returns the word of the configuration file.
func (m Mode) String() string {
	switch m {
	case ModeSoft:
		return "soft"
	case ModeMock:
		return "mock"
	case ModeHard:
		return "hard"
	default:
		return "unset"
	}
}

// ParseMode reads soft, mock or hard.
func ParseMode(s string) (Mode, error) {
	for _, m := range [...]Mode{ModeSoft, ModeMock, ModeHard} {
		if s == m.String() {
			return m, nil
		}
	}
	return ModeUnset, fmt.Errorf("swap: mode %q: want soft, mock or hard", s)
}

// ErrPolicy is wrapped by every error of Policy.Validate.
var ErrPolicy = errors.New("swap: policy")

// Policy is what an operator decides about tabs. All amounts are units. The
// zero value of a field that has a default means that default (see
// DefaultPolicy and Complete).
type Policy struct {
	// Mode decides what is enforced and which cheques are accepted.
	// Default ModeMock.
	Mode Mode
	// PaymentThreshold is announced to peers: the debt at which a peer should
	// pay us. Default 100.
	PaymentThreshold tally.Amount
	// DisconnectThreshold is the debt beyond which we serve no more. It must be
	// above PaymentThreshold. Default PaymentThreshold × 5/4.
	DisconnectThreshold tally.Amount
	// EarlyPaymentPercent of the peer's announced threshold is the debt at
	// which we pay, 1 to 100. The seed pays at the threshold itself; a lower
	// value pays before service has to wait. Default 100.
	EarlyPaymentPercent uint8
	// MinPeerThreshold and MaxPeerThreshold bound what a peer may announce. We
	// do not consume from a peer that announces less; more is clamped, so that
	// no peer makes us wait with paying for ever. Defaults 10 and 10^6.
	MinPeerThreshold, MaxPeerThreshold tally.Amount
	// MaxDebt is the most we let ourselves owe to one peer.
	// Default 10 × PaymentThreshold.
	MaxDebt tally.Amount
	// MaxExposure is the most that one peer, and MaxExposureTotal the most that
	// all peers together, may make us lose.
	// Defaults 4 and 1000 × DisconnectThreshold.
	MaxExposure, MaxExposureTotal tally.Amount
	// StrangersExposure is shared by all peers that never paid, so that a new
	// identity is no source of credit. Default 100 × PaymentThreshold.
	StrangersExposure tally.Amount
}

// DefaultPolicy returns the defaults of every field.
func DefaultPolicy() Policy { return Policy{}.Complete() }

// Complete returns p with the defaults in place of zero fields. A product that
// does not fit stays at the largest amount, which Validate then refuses where
// it matters.
func (p Policy) Complete() Policy {
	times := func(a, b tally.Amount) tally.Amount {
		product, err := a.Mul(b)
		if err != nil {
			return maxLedgerAmount
		}
		return product
	}
	set := func(field *tally.Amount, def tally.Amount) {
		if *field == 0 {
			*field = def
		}
	}
	if p.Mode == ModeUnset {
		p.Mode = ModeMock
	}
	if p.EarlyPaymentPercent == 0 {
		p.EarlyPaymentPercent = 100
	}
	set(&p.PaymentThreshold, 100)
	set(&p.DisconnectThreshold, p.PaymentThreshold.SaturatingAdd(max(1, p.PaymentThreshold/4)))
	set(&p.MinPeerThreshold, 10)
	set(&p.MaxPeerThreshold, 1_000_000)
	set(&p.MaxDebt, times(p.PaymentThreshold, 10))
	set(&p.MaxExposure, times(p.DisconnectThreshold, 4))
	set(&p.MaxExposureTotal, times(p.DisconnectThreshold, 1000))
	set(&p.StrangersExposure, times(p.PaymentThreshold, 100))
	return p
}

// Validate reports the first thing that cannot work, with the remedy.
func (p Policy) Validate() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%w: %w", ErrPolicy, fmt.Errorf(format, args...))
	}
	switch {
	case p.Mode < ModeSoft || p.Mode > ModeHard:
		return fail("mode is not set: use soft, mock or hard")
	case p.PaymentThreshold == 0:
		return fail("payment threshold is 0: nobody could be served; use at least 1")
	case p.DisconnectThreshold <= p.PaymentThreshold:
		return fail("disconnect threshold %d is not above the payment threshold %d: a peer would be refused before it should pay; raise it to at least %d",
			p.DisconnectThreshold, p.PaymentThreshold, p.PaymentThreshold.SaturatingAdd(1))
	case p.DisconnectThreshold > maxThreshold:
		return fail("disconnect threshold %d is over %d", p.DisconnectThreshold, maxThreshold)
	case p.EarlyPaymentPercent < 1 || p.EarlyPaymentPercent > 100:
		return fail("early payment %d %%: want 1 to 100", p.EarlyPaymentPercent)
	case p.MinPeerThreshold == 0 || p.MinPeerThreshold > p.MaxPeerThreshold:
		return fail("bounds on a peer's threshold are %d to %d: want 1 ≤ min ≤ max", p.MinPeerThreshold, p.MaxPeerThreshold)
	case p.MaxPeerThreshold > maxThreshold:
		return fail("upper bound on a peer's threshold %d is over %d", p.MaxPeerThreshold, maxThreshold)
	case p.MaxDebt < p.MinPeerThreshold:
		return fail("max debt %d is below the least threshold %d that we consume under", p.MaxDebt, p.MinPeerThreshold)
	case p.MaxDebt > maxLedgerAmount, p.MaxExposure > maxLedgerAmount, p.MaxExposureTotal > maxLedgerAmount, p.StrangersExposure > maxLedgerAmount:
		return fail("max debt and exposures must not be over %d", maxLedgerAmount)
	case p.MaxExposure < p.DisconnectThreshold:
		return fail("max exposure %d of one peer is below the disconnect threshold %d: it would be refused before it should pay; raise it", p.MaxExposure, p.DisconnectThreshold)
	case p.MaxExposureTotal < p.MaxExposure:
		return fail("max exposure %d of all peers is below that of one peer, %d", p.MaxExposureTotal, p.MaxExposure)
	}
	return nil
}

// Slack is W of the design, disconnect minus payment threshold: what two peers
// forgive each other after a crash. Dirty units of one peer are on disk before
// they reach it.
func (p *Policy) Slack() tally.Amount { return p.DisconnectThreshold - p.PaymentThreshold }

// flushAt is the number of unsaved units of one peer that forces a write: W/2,
// at least one unit.
func (p *Policy) flushAt() tally.Amount { return max(1, p.Slack()/2) }

// peerThreshold clamps what a peer announced into our own bounds. Zero means
// that we do not consume from it.
func (p *Policy) peerThreshold(announced tally.Amount) tally.Amount {
	if announced < p.MinPeerThreshold {
		return 0
	}
	return min(announced, p.MaxPeerThreshold)
}
