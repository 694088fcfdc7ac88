package tally

import (
	"errors"
	"math"
	"math/bits"
)

// ErrOverflow is returned by checked arithmetic whose exact result does not fit
// the type. The operands are unchanged; the caller refuses the event that asked
// for the sum.
var ErrOverflow = errors.New("tally: amount overflow")

// Amount is a number of accounting units, never negative. One unit of a token
// asset is 10^9 of the token's smallest unit (1 unit = 1 nanoFIL = 10^9
// attoFIL); the asset "karma" counts units and has no token.
type Amount uint64

// MaxAmount is the largest Amount.
const MaxAmount Amount = math.MaxUint64

// Add returns a + b, or ErrOverflow.
func (a Amount) Add(b Amount) (Amount, error) {
	sum, carry := bits.Add64(uint64(a), uint64(b), 0)
	if carry != 0 {
		return 0, ErrOverflow
	}
	return Amount(sum), nil
}

// Sub returns a - b, or ErrOverflow where b is the larger.
func (a Amount) Sub(b Amount) (Amount, error) {
	if b > a {
		return 0, ErrOverflow
	}
	return a - b, nil
}

// Mul returns a * b, or ErrOverflow.
func (a Amount) Mul(b Amount) (Amount, error) {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi != 0 {
		return 0, ErrOverflow
	}
	return Amount(lo), nil
}

// SaturatingAdd returns a + b, or MaxAmount where the sum does not fit. It is
// for limits and sums that are only compared, never for money that is booked.
func (a Amount) SaturatingAdd(b Amount) Amount {
	sum, err := a.Add(b)
	if err != nil {
		return MaxAmount
	}
	return sum
}

// SaturatingSub returns a - b, or 0 where b is the larger. Like SaturatingAdd it
// is for limits only.
func (a Amount) SaturatingSub(b Amount) Amount {
	if b > a {
		return 0
	}
	return a - b
}

// Balance returns a as a Balance, or ErrOverflow at 2^63 and above.
func (a Amount) Balance() (Balance, error) {
	if a > math.MaxInt64 {
		return 0, ErrOverflow
	}
	return Balance(a), nil
}

// Balance is a signed number of accounting units in the relation with one
// peer. A balance above zero means that the peer owes us.
type Balance int64

// Debit returns b + a: the peer owes us a more. ErrOverflow where it does not
// fit.
func (b Balance) Debit(a Amount) (Balance, error) {
	sum := b + Balance(a) // two's complement: wraps, and the test below sees it
	if a > math.MaxInt64 && b >= 0 || sum < b {
		return 0, ErrOverflow
	}
	return sum, nil
}

// Credit returns b - a: the peer owes us a less. ErrOverflow where it does not
// fit.
func (b Balance) Credit(a Amount) (Balance, error) {
	diff := b - Balance(a)
	if a > math.MaxInt64 && b < 0 || diff > b {
		return 0, ErrOverflow
	}
	return diff, nil
}

// Owed returns what the peer owes us: b where it is above zero, else 0.
func (b Balance) Owed() Amount {
	if b <= 0 {
		return 0
	}
	return Amount(b)
}

// Debt returns what we owe the peer: -b where b is below zero, else 0. The
// smallest Balance has a debt of 2^63.
func (b Balance) Debt() Amount {
	if b >= 0 {
		return 0
	}
	return Amount(-(b + 1)) + 1
}
