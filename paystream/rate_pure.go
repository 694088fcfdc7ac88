package paystream

import (
	"errors"
	"math"
	"math/bits"

	"github.com/tallystick/tally"
)

// ErrRatio is returned for a ratio without a value: a zero below or above the
// line. A price of nothing, or without end, is no price.
var ErrRatio = errors.New("paystream: ratio has a zero in it")

// Ratio is an exact fraction, Num for Den. As a rate it says how many of the
// peer's units arrive for one of ours. It is never rounded; only what it is
// applied to is, and each method says which way.
type Ratio struct{ Num, Den uint64 }

// Valid reports whether r has a value above zero.
func (r Ratio) Valid() bool { return r.Num != 0 && r.Den != 0 }

// Cmp compares r with o, both valid: -1 where r is the smaller.
func (r Ratio) Cmp(o Ratio) int {
	ahi, alo := bits.Mul64(r.Num, o.Den)
	bhi, blo := bits.Mul64(o.Num, r.Den)
	switch {
	case ahi < bhi || ahi == bhi && alo < blo:
		return -1
	case ahi == bhi && alo == blo:
		return 0
	default:
		return 1
	}
}

// Inverse returns the rate of the other direction without loss.
func (r Ratio) Inverse() Ratio { return Ratio{Num: r.Den, Den: r.Num} }

// Floor returns r × n rounded down, or tally.ErrOverflow.
func (r Ratio) Floor(n tally.Amount) (tally.Amount, error) {
	quo, _, err := mulDiv(uint64(n), r.Num, r.Den)
	return tally.Amount(quo), err
}

// Ceil returns r × n rounded up, or tally.ErrOverflow.
func (r Ratio) Ceil(n tally.Amount) (tally.Amount, error) {
	quo, rem, err := mulDiv(uint64(n), r.Num, r.Den)
	if err != nil || rem == 0 {
		return tally.Amount(quo), err
	}
	return tally.Amount(quo).Add(1)
}

// mulDiv returns the quotient and remainder of a × num / den, with the product
// in 128 bits.
func mulDiv(a, num, den uint64) (quo, rem uint64, err error) {
	if den == 0 {
		return 0, 0, ErrRatio
	}
	hi, lo := bits.Mul64(a, num)
	if hi >= den {
		return 0, 0, tally.ErrOverflow
	}
	quo, rem = bits.Div64(hi, lo, den)
	return quo, rem, nil
}

// floorSat and ceilSat are for limits, which saturate.
func (r Ratio) floorSat(n tally.Amount) tally.Amount { return orMax(r.Floor(n)) }
func (r Ratio) ceilSat(n tally.Amount) tally.Amount  { return orMax(r.Ceil(n)) }

func orMax(n tally.Amount, err error) tally.Amount {
	if err != nil {
		return tally.MaxAmount
	}
	return n
}

// Rate is what is known of the way to the peer: n units sent arrive as
// floor(n × r) − base for an r in [Low, High): a packet of a units that brought b has
// r < (b + 1) / a. Base is the sum of the hops' fixed fees, in the peer's units. The
// zero Rate is unknown.
type Rate struct {
	Low, High Ratio
	Base      tally.Amount
}

// Known reports whether anything was measured.
func (r Rate) Known() bool { return r.Low.Valid() && r.High.Valid() }

// Most returns the most of n that can arrive: the largest whole number below n × High,
// less the base. That High itself is not reached matters where packets are small: after
// one unit that brought one, another brings one and not two.
func (r Rate) Most(n tally.Amount) tally.Amount {
	return r.High.ceilSat(n).SaturatingSub(1).SaturatingSub(r.Base)
}

// Surely returns what arrives of n at the least.
func (r Rate) Surely(n tally.Amount) tally.Amount {
	return r.Low.floorSat(n).SaturatingSub(r.Base)
}

// Within returns the largest n of which no more than limit arrives, below the high
// rate. It is how the payer keeps to what was asked for: no number below n × High is
// above limit + base exactly where n × High ≤ limit + base + 1.
func (r Rate) Within(limit tally.Amount) tally.Amount {
	above := limit.SaturatingAdd(r.Base).SaturatingAdd(1)
	return min(r.High.Inverse().floorSat(above), math.MaxInt64)
}

// Enough returns the least n of which at least want arrives, at the low rate.
func (r Rate) Enough(want tally.Amount) tally.Amount {
	return min(r.Low.Inverse().ceilSat(want.SaturatingAdd(r.Base)), math.MaxInt64)
}

// Observe narrows the rate by one packet: arrived of sent. A sample that the
// interval cannot explain replaces it, because the way has changed; the floor
// price of a socket is not kept here and does not move with it.
func (r Rate) Observe(sent, arrived tally.Amount) Rate {
	if sent == 0 || sent > math.MaxInt64 || arrived >= math.MaxInt64 {
		return r
	}
	gross := arrived.SaturatingAdd(r.Base)
	if gross == 0 {
		return r // too small to say anything
	}
	low := Ratio{Num: uint64(gross), Den: uint64(sent)}
	high := Ratio{Num: uint64(gross) + 1, Den: uint64(sent)}
	if !r.Known() || low.Cmp(r.High) >= 0 || high.Cmp(r.Low) <= 0 {
		return Rate{Low: low, High: high, Base: r.Base}
	}
	if low.Cmp(r.Low) > 0 {
		r.Low = low
	}
	if high.Cmp(r.High) < 0 {
		r.High = high
	}
	return r
}

// scale returns r × num / den, rounded down to what 64 bits above and below the
// line can say.
func (r Ratio) scale(num, den uint64) Ratio {
	nhi, nlo := bits.Mul64(r.Num, num)
	dhi, dlo := bits.Mul64(r.Den, den)
	shift := 64 - min(bits.LeadingZeros64(nhi), bits.LeadingZeros64(dhi))
	if shift == 0 {
		return Ratio{Num: nlo, Den: dlo}
	}
	n := nhi<<(64-shift) | nlo>>shift
	d := dhi<<(64-shift) | dlo>>shift
	return Ratio{Num: n, Den: d + 1}
}
