package forward

import (
	"fmt"
	"time"

	"github.com/tallystick/tally"
)

// Rules is what an operator decides about packets. The zero value means the
// defaults.
type Rules struct {
	// FeeBase and FeePPM, parts per million of the amount, rounded up, are what
	// a packet that passes here pays. Default 0.
	FeeBase tally.Amount
	FeePPM  uint32
	// HopDelta is how much earlier a packet expires on its way out than on its
	// way in. Default 1 s.
	HopDelta time.Duration
	// MaxExpiry is the longest time that a packet may take. Default 5 min.
	MaxExpiry time.Duration
	// MaxKept is the longest time that a packet may take which does not pass here: one
	// of our own, or one for us. It blocks no tab but that of its two ends. Default
	// MaxExpiry, at most 60 days.
	MaxKept time.Duration
	// MaxInFlight is what we let one neighbour have in flight with us. Default
	// and most MaxInFlight.
	MaxInFlight int
}

// Complete returns r with the defaults in place of zero fields.
func (r Rules) Complete() Rules {
	if r.HopDelta == 0 {
		r.HopDelta = time.Second
	}
	if r.MaxExpiry == 0 {
		r.MaxExpiry = 5 * time.Minute
	}
	if r.MaxKept == 0 {
		r.MaxKept = r.MaxExpiry
	}
	if r.MaxInFlight == 0 {
		r.MaxInFlight = MaxInFlight
	}
	return r
}

// Validate reports the first rule that cannot work.
func (r Rules) Validate() error {
	switch {
	case r.FeePPM > 1_000_000:
		return fmt.Errorf("forward: fee of %d parts per million is more than the packet; use at most 1000000", r.FeePPM)
	case r.HopDelta < time.Second:
		return fmt.Errorf("forward: hop delta %v is below 1s, less than two clocks may differ by", r.HopDelta)
	case r.MaxExpiry < r.HopDelta || r.MaxExpiry > 24*time.Hour:
		return fmt.Errorf("forward: max expiry %v is not between the hop delta and 24h", r.MaxExpiry)
	case r.MaxKept < r.MaxExpiry || r.MaxKept > 60*24*time.Hour:
		return fmt.Errorf("forward: max time %v of packets that are kept is not between max expiry and 60 days", r.MaxKept)
	case r.MaxInFlight < 1 || r.MaxInFlight > MaxInFlight:
		return fmt.Errorf("forward: max in flight %d is not between 1 and %d", r.MaxInFlight, MaxInFlight)
	}
	return nil
}

// Fee is what passing amount costs, and false where it does not fit. A packet
// without an amount passes for nothing: it carries only word of the two ends, and
// no node becomes debtor by it.
func (r *Rules) Fee(amount tally.Amount) (tally.Amount, bool) {
	if amount == 0 {
		return 0, true
	}
	// amount < 2^63 and ppm ≤ 10^6, in two parts so that no product overflows.
	const million = 1_000_000
	ppm := tally.Amount(r.FeePPM)
	part := amount/million*ppm + (amount%million*ppm+million-1)/million
	fee, err := part.Add(r.FeeBase)
	return fee, err == nil
}
