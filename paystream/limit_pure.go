package paystream

import (
	"cmp"
	"strconv"

	"github.com/tallystick/tally"
)

// maxTotal bounds what one socket can move in each direction, and every finite
// limit: each sum of a few such amounts, with a sign, fits a Balance.
const maxTotal tally.Amount = 1 << 60

// Limit is one end of what a participant allows its balance to be: a number, or
// no limit at all. Unlimited is a kind of its own and no large number, so that no
// sum can run into it. The zero Limit is the number 0.
type Limit struct {
	at  tally.Balance
	end int8 // -1: no minimum, +1: no maximum, 0: at
}

// NoMin and NoMax are the limits that are none.
var (
	NoMin = Limit{end: -1}
	NoMax = Limit{end: +1}
)

// At returns the limit at b.
func At(b tally.Balance) Limit { return Limit{at: b} }

// Finite returns the limit's number; ok is false for NoMin and NoMax.
func (l Limit) Finite() (b tally.Balance, ok bool) { return l.at, l.end == 0 }

// Cmp compares two limits; NoMin is the lowest and NoMax the highest.
func (l Limit) Cmp(o Limit) int {
	if l.end != o.end {
		return cmp.Compare(l.end, o.end)
	}
	return cmp.Compare(l.at, o.at)
}

func lower(a, b Limit) Limit {
	if a.Cmp(b) <= 0 {
		return a
	}
	return b
}

func higher(a, b Limit) Limit {
	if a.Cmp(b) >= 0 {
		return a
	}
	return b
}

// Raise returns the limit n higher. NoMin and NoMax stay.
func (l Limit) Raise(n tally.Amount) (Limit, error) {
	if l.end != 0 {
		return l, nil
	}
	b, err := l.at.Debit(n)
	if err != nil {
		return l, err
	}
	return At(b), At(b).check()
}

// Lower returns the limit n lower. NoMin and NoMax stay.
func (l Limit) Lower(n tally.Amount) (Limit, error) {
	if l.end != 0 {
		return l, nil
	}
	b, err := l.at.Credit(n)
	if err != nil {
		return l, err
	}
	return At(b), At(b).check()
}

func (l Limit) check() error {
	if l.end == 0 && max(l.at.Owed(), l.at.Debt()) > maxTotal {
		return tally.ErrOverflow
	}
	return nil
}

// String is the number, -inf or +inf.
func (l Limit) String() string {
	switch l.end {
	case -1:
		return "-inf"
	case 1:
		return "+inf"
	default:
		return strconv.FormatInt(int64(l.at), 10)
	}
}

// Total is an amount, or open where there is no limit.
type Total struct {
	N    tally.Amount
	Open bool
}

// Sub returns what is left of t after n: nothing below zero, MaxAmount where it
// is open.
func (t Total) Sub(n tally.Amount) tally.Amount {
	if t.Open {
		return tally.MaxAmount
	}
	return t.N.SaturatingSub(n)
}

// over returns how far l lies above b.
func (l Limit) over(b tally.Balance) Total {
	if l.end != 0 {
		return Total{Open: l.end > 0}
	}
	if l.at <= b {
		return Total{}
	}
	return Total{N: distance(b, l.at)}
}

// under returns how far l lies below b.
func (l Limit) under(b tally.Balance) Total {
	if l.end != 0 {
		return Total{Open: l.end < 0}
	}
	if l.at >= b {
		return Total{}
	}
	return Total{N: distance(l.at, b)}
}

// distance returns high − low. In two's complement the difference of any two
// Balances is exact as an unsigned number.
func distance(low, high tally.Balance) tally.Amount {
	return tally.Amount(uint64(high) - uint64(low))
}
