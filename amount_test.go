package tally_test

import (
	"errors"
	"math"
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

// edges are the numbers where 64-bit arithmetic goes wrong.
var edges = []uint64{
	0, 1, 2, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 1,
	1<<63 - 2, 1<<63 - 1, 1 << 63, 1<<63 + 1, math.MaxUint64 - 1, math.MaxUint64,
}

func amounts() *rapid.Generator[tally.Amount] {
	return rapid.Map(rapid.OneOf(rapid.SampledFrom(edges), rapid.Uint64()), func(n uint64) tally.Amount { return tally.Amount(n) })
}

func balances() *rapid.Generator[tally.Balance] {
	return rapid.Map(rapid.OneOf(rapid.SampledFrom(edges), rapid.Uint64()), func(n uint64) tally.Balance { return tally.Balance(n) })
}

func bigAmount(a tally.Amount) *big.Int   { return new(big.Int).SetUint64(uint64(a)) }
func bigBalance(b tally.Balance) *big.Int { return big.NewInt(int64(b)) }

// agree fails unless got is the exact sum where that fits, and ErrOverflow with a
// zero where it does not.
func agree(t interface {
	Helper()
	Errorf(format string, args ...any)
}, what string, exact *big.Int, fits bool, got *big.Int, err error,
) {
	t.Helper()
	switch {
	case fits && (err != nil || got.Cmp(exact) != 0):
		t.Errorf("%s = %v, %v; want %v", what, got, err, exact)
	case !fits && (!errors.Is(err, tally.ErrOverflow) || got.Sign() != 0):
		t.Errorf("%s = %v, %v; want ErrOverflow, exact is %v", what, got, err, exact)
	}
}

// checkAmounts compares every operation on two amounts with math/big.
func checkAmounts(t interface {
	Helper()
	Errorf(format string, args ...any)
}, a, b tally.Amount,
) {
	t.Helper()
	x, y := bigAmount(a), bigAmount(b)

	sum := new(big.Int).Add(x, y)
	got, err := a.Add(b)
	agree(t, "Add", sum, sum.IsUint64(), bigAmount(got), err)
	if !sum.IsUint64() {
		sum = bigAmount(tally.MaxAmount)
	}
	if sat := a.SaturatingAdd(b); bigAmount(sat).Cmp(sum) != 0 {
		t.Errorf("%d SaturatingAdd %d = %d, want %v", a, b, sat, sum)
	}

	diff := new(big.Int).Sub(x, y)
	got, err = a.Sub(b)
	agree(t, "Sub", diff, diff.IsUint64(), bigAmount(got), err)
	if diff.Sign() < 0 {
		diff.SetInt64(0)
	}
	if sat := a.SaturatingSub(b); bigAmount(sat).Cmp(diff) != 0 {
		t.Errorf("%d SaturatingSub %d = %d, want %v", a, b, sat, diff)
	}

	product := new(big.Int).Mul(x, y)
	got, err = a.Mul(b)
	agree(t, "Mul", product, product.IsUint64(), bigAmount(got), err)

	balance, err := a.Balance()
	agree(t, "Balance", x, x.IsInt64(), bigBalance(balance), err)
}

// checkBalance compares every operation on a balance and an amount with math/big.
func checkBalance(t interface {
	Helper()
	Errorf(format string, args ...any)
}, b tally.Balance, a tally.Amount,
) {
	t.Helper()
	x, y := bigBalance(b), bigAmount(a)

	debit := new(big.Int).Add(x, y)
	got, err := b.Debit(a)
	agree(t, "Debit", debit, debit.IsInt64(), bigBalance(got), err)

	credit := new(big.Int).Sub(x, y)
	got, err = b.Credit(a)
	agree(t, "Credit", credit, credit.IsInt64(), bigBalance(got), err)

	// What is owed either way is never negative, never both, and makes up the
	// balance.
	owed, debt := bigAmount(b.Owed()), bigAmount(b.Debt())
	if new(big.Int).Sub(owed, debt).Cmp(x) != 0 || owed.Sign() != 0 && debt.Sign() != 0 {
		t.Errorf("balance %d: owed %v, debt %v", b, owed, debt)
	}
}

func TestArithmeticAtTheEdges(t *testing.T) {
	for _, x := range edges {
		for _, y := range edges {
			checkAmounts(t, tally.Amount(x), tally.Amount(y))
			checkBalance(t, tally.Balance(x), tally.Amount(y))
		}
	}
}

func TestArithmetic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		checkAmounts(t, amounts().Draw(t, "a"), amounts().Draw(t, "b"))
		checkBalance(t, balances().Draw(t, "balance"), amounts().Draw(t, "amount"))
	})
}

// Debit and credit of one amount cancel out, where both fit.
func TestDebitUndoesCredit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, a := balances().Draw(t, "balance"), amounts().Draw(t, "amount")
		if up, err := b.Debit(a); err == nil {
			if back, err := up.Credit(a); err != nil || back != b {
				t.Fatalf("%d debit and credit %d = %d, %v", b, a, back, err)
			}
		}
		if down, err := b.Credit(a); err == nil {
			if back, err := down.Debit(a); err != nil || back != b {
				t.Fatalf("%d credit and debit %d = %d, %v", b, a, back, err)
			}
		}
	})
}

// A balance above zero means that the peer owes us.
func TestBalanceSign(t *testing.T) {
	for _, tc := range []struct {
		balance    tally.Balance
		owed, debt tally.Amount
	}{
		{0, 0, 0},
		{5, 5, 0},
		{-5, 0, 5},
		{math.MaxInt64, math.MaxInt64, 0},
		{math.MinInt64, 0, 1 << 63},
	} {
		if owed, debt := tc.balance.Owed(), tc.balance.Debt(); owed != tc.owed || debt != tc.debt {
			t.Errorf("balance %d: owed %d, debt %d; want %d, %d", tc.balance, owed, debt, tc.owed, tc.debt)
		}
	}
	if b, err := tally.Balance(0).Debit(7); b != 7 || err != nil {
		t.Errorf("debit 7 = %d, %v", b, err)
	}
	if b, err := tally.Balance(0).Credit(7); b != -7 || err != nil {
		t.Errorf("credit 7 = %d, %v", b, err)
	}
}
