package hold

import (
	"errors"
	"testing"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

func TestRoomFits(t *testing.T) {
	const now = start
	hour := now + 60*minute
	for _, c := range [...]struct {
		room    Room
		amount  tally.Amount
		until   int64
		fits    bool
		most    tally.Amount
		longest time.Duration
	}{
		{Room{Credit: 100}, 100, hour, true, 0, 0},
		{Room{Credit: 100}, 101, hour, false, 100, 0},
		{Room{Credit: 100, Lock: 500, LockUntil: hour}, 500, hour, true, 0, 0},
		{Room{Credit: 100, Lock: 500, LockUntil: hour}, 501, hour, false, 500, 0},
		{Room{Credit: 100, Lock: 500, LockUntil: hour}, 500, hour + 1, false, 100, time.Hour},
		{Room{Credit: 100, Lock: 500, LockUntil: hour}, 100, hour + 1, true, 0, 0}, // on credit it is no matter
		{Room{Lock: 500, LockUntil: now - 1}, 1, hour, false, 0, 0},
	} {
		err := c.room.fits(now, c.amount, c.until)
		var e *RoomError
		if (err == nil) != c.fits || err != nil && (!errors.As(err, &e) || !errors.Is(err, ErrNoRoom) || e.Room != c.most || e.Longest != c.longest) {
			t.Errorf("%+v: %d until %d: %v", c.room, c.amount, c.until, err)
		}
	}
}

// Where parts may go under locks the payer's is bound for longer than the hold by what a
// lock out needs to be final, and told, before the lock in ends.
func TestLocksNeedMoreTime(t *testing.T) {
	d := newDesk(t)
	d.answerable = 40 * minute
	terms := termsOf(1)
	terms.Until = terms.Expires + 40*minute + clocks.Milliseconds() - 1
	if _, err := d.try(&HolderEvent{Kind: HolderPark, Terms: terms}); !errors.Is(err, ErrTerms) {
		t.Fatal(err)
	}
	terms.Until++
	d.step(&HolderEvent{Kind: HolderPark, Terms: terms})
	a := arrivalOf(terms)
	a.Expires = terms.Expires + 40*minute - 1
	if fx := d.step(&HolderEvent{Kind: HolderPart, Arrival: a}); len(fx) != 1 || fx[0].Kind != FxReject || fx[0].Code != payments.FailRefused {
		t.Fatal(fx)
	}
	a.Expires++
	d.step(&HolderEvent{Kind: HolderPart, Arrival: a})
	if r, _ := d.Get(terms.ID); r.State != StateHeld {
		t.Fatal(r.State)
	}
}
