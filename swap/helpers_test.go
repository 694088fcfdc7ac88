package swap

import (
	"runtime"
	"testing"
	"time"

	"github.com/tallystick/tally"
)

func amount(n uint64) tally.Amount { return tally.Amount(n) }

func row(t testing.TB, of, with *party) Row {
	t.Helper()
	r, err := of.Row(with.Self())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// eventually yields until cond holds; what it waits for happens without further
// help.
func eventually(t testing.TB, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatal("the condition did not come to hold")
		}
		runtime.Gosched()
	}
}
