package paystream

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

func TestProbesFindRateAndFee(t *testing.T) {
	for _, c := range []struct {
		name string
		way  way
		most tally.Amount // a hop carries no more
		low  Ratio        // the true rate
	}{
		{"even", one, 0, Ratio{1, 1}},
		{"one percent", way{rate: Ratio{99, 100}}, 0, Ratio{99, 100}},
		{"fixed fee", way{rate: Ratio{999, 1000}, base: 5}, 0, Ratio{999, 1000}},
		{"narrow", way{rate: Ratio{99, 100}}, 40_000, Ratio{99, 100}},
		{"other asset", way{rate: Ratio{7, 30_000}}, 0, Ratio{7, 30_000}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctl := NewControl(0)
			for {
				n, ok := ctl.Probe(time.Second)
				if !ok {
					break
				}
				if c.most != 0 && n > c.most {
					ctl.Probed(n, 0, false, c.most)
				} else {
					ctl.Probed(n, c.way.deliver(n), true, 0)
				}
			}
			r, done, err := ctl.ProbesDone(time.Second)
			if !done || err != nil {
				t.Fatal(done, err)
			}
			if r.Base != c.way.base {
				t.Errorf("base %d, want %d", r.Base, c.way.base)
			}
			if r.Low.Cmp(c.low) > 0 || r.High.Cmp(c.low) < 0 {
				t.Errorf("%v is outside of %v..%v", c.low, r.Low, r.High)
			}
			if c.most != 0 && ctl.Room(0) != c.most {
				t.Errorf("room %d, want %d", ctl.Room(0), c.most)
			}
		})
	}
}

func TestProbesGiveUp(t *testing.T) {
	c := NewControl(0)
	start := time.Second
	for now := start; ; now += time.Second {
		for n, ok := c.Probe(now); ok; n, ok = c.Probe(now) {
			c.Probed(n, 0, false, 0)
		}
		_, done, err := c.ProbesDone(now)
		if !done {
			continue
		}
		if !errors.Is(err, ErrNoRate) || now-start != probeTime {
			t.Fatalf("after %v: %v", now-start, err)
		}
		return
	}
}

// TestRejectDataNeverRaisesTheCap is attack 5: reject data of a hop is not
// authentic, and STREAM senders took any figure in it.
func TestRejectDataNeverRaisesTheCap(t *testing.T) {
	attack := func(believe func(c *Control, most tally.Amount)) tally.Amount {
		c := NewControl(1000)
		for range 3 {
			c.Sent(0, 1000)
			c.Rejected(0, 1000, RejectLarge, 1<<50, 0)
			believe(c, 1<<50)
		}
		return c.Room(0)
	}
	if got := attack(func(*Control, tally.Amount) {}); got > 1000 {
		t.Fatalf("a hop's word raised the cap to %d", got)
	}
	// The weakened variant takes the word of the hop for its cap: one packet could
	// carry all there is.
	if got := attack(func(c *Control, most tally.Amount) { c.cap = most }); got <= 1000 {
		t.Fatal("the weakened variant did not fall for it")
	}
	c := NewControl(1000)
	c.Sent(0, 1000)
	c.Rejected(0, 1000, RejectLarge, 10, 0)
	if got := c.Room(0); got != 10 {
		t.Fatalf("cap %d, want 10", got)
	}
	for range 1000 {
		c.Sent(growAfter, 10)
		c.Fulfilled(growAfter, 10, 10, true)
	}
	if got := c.Room(0); got <= 10 {
		t.Fatalf("cap %d never grew back by trying", got)
	}
}

// TestCapOfOneGrowsBack: a tab that had room for one unit for a moment does not make all
// later packets one unit small.
func TestCapOfOneGrowsBack(t *testing.T) {
	c := NewControl(0)
	c.Sent(0, 1000)
	c.Rejected(0, 1000, RejectLarge, 1, 0)
	for range 1000 {
		n := c.Room(growAfter)
		c.Sent(growAfter, n)
		c.Fulfilled(growAfter, n, n, true)
	}
	if got := c.Room(growAfter); got < 2 {
		t.Fatalf("cap %d", got)
	}
}

// TestCapKeepsUnderTheLargest: what an operator set as the largest packet holds however
// long all goes well.
func TestCapKeepsUnderTheLargest(t *testing.T) {
	for _, largest := range []tally.Amount{1, 2, 1000} {
		c := NewControl(largest)
		for i := range 200_000 {
			now := growAfter + time.Duration(i)*time.Millisecond
			n := c.Room(now)
			if n > largest {
				t.Fatalf("a packet of %d, the largest is %d", n, largest)
			}
			c.Sent(now, n)
			c.Fulfilled(now, n, n, true)
		}
	}
}

func TestWindowGrowsAndHalves(t *testing.T) {
	c := NewControl(0)
	fill := func() (n int) {
		for c.Room(0) > 0 {
			c.Sent(0, 1)
			n++
		}
		return n
	}
	drain := func(n int) {
		for range n {
			c.Fulfilled(0, 1, 1, true)
		}
	}
	var sizes []int
	for range 6 {
		n := fill()
		sizes = append(sizes, n)
		drain(n)
	}
	want := []int{8, 16, 32, 64, 128, 256}
	for i := range want {
		if sizes[i] != want[i] {
			t.Fatalf("windows %v, want %v", sizes, want)
		}
	}
	fill()
	c.Rejected(0, 1, RejectTemporary, 0, 0)
	if c.window != 256 || c.Room(0) != 0 || c.RetryAt() != minRetry {
		t.Fatalf("window %d, retry at %v", c.window, c.RetryAt())
	}
	c.Rejected(0, 1, RejectTemporary, 0, 0) // of the same window: no second cut
	if c.window != 256 {
		t.Fatalf("window %d after the second reject of one round trip", c.window)
	}
	// One that left before the cut and is fulfilled after it does not take the wait
	// away: those after it would be rejected and sent again without any.
	c.Fulfilled(0, 1, 1, true)
	if c.Room(0) != 0 || c.RetryAt() != minRetry {
		t.Fatalf("a fulfil of the last window: room %d, retry at %v", c.Room(0), c.RetryAt())
	}
	c.Resume(0) // nor does a limit that is set in between
	c.Rejected(0, 1, RejectTemporary, 0, 0)
	if c.Room(0) != 0 || c.RetryAt() != minRetry {
		t.Fatalf("a reject after a resume: room %d, retry at %v", c.Room(0), c.RetryAt())
	}
	c.packets, c.value = 0, 0
	for c.Room(time.Second) > 0 {
		c.Sent(time.Second, 1)
	}
	before := c.window
	for range before {
		c.Fulfilled(time.Second, 1, 1, true)
	}
	if c.window != before+1 {
		t.Fatalf("after a cut: from %d to %d in one round trip", before, c.window)
	}
	c.packets, c.value = 1, 40
	c.window = 2
	c.SetRoom(60)
	if got := c.Room(time.Second); got != 60 {
		t.Fatalf("value window leaves %d, want 60", got)
	}
}

// A window of a thousand packets meets a tab that is settling: that is one reject, and no
// reason to stop.
func TestWindowIsRejectedAtOnce(t *testing.T) {
	c := NewControl(0)
	now := time.Minute
	for range maxHolds {
		c.Sent(now, 1)
	}
	for range maxHolds {
		c.Rejected(now, 1, RejectTemporary, 0, 0)
	}
	if err := c.Stopped(now); err != nil || c.packets != 0 || c.value != 0 {
		t.Fatalf("stopped by %v with %d packets, %d units in flight", err, c.packets, c.value)
	}
	// But who rejects every try is given up.
	for range countedPackets {
		now = max(now, c.RetryAt())
		c.Sent(now, 1)
		c.Rejected(now, 1, RejectTemporary, 0, 0)
		c.progressAt = now // else the clock is first
	}
	if err := c.Stopped(now); !errors.Is(err, ErrAllRejected) {
		t.Fatal(err)
	}
}

func TestStops(t *testing.T) {
	c := NewControl(0)
	c.Due(time.Second)
	if err := c.Stopped(time.Second + stallTime - 1); err != nil {
		t.Fatal(err)
	}
	if err := c.Stopped(time.Second + stallTime); !errors.Is(err, ErrStalled) {
		t.Fatal(err)
	}
	c.Resume(time.Minute)
	for i := range 200 {
		c.Sent(time.Minute, 1)
		if i == 50 {
			c.Fulfilled(time.Minute, 1, 1, true)
		} else {
			c.Rejected(time.Minute, 1, RejectLimit, 0, 0)
		}
	}
	if err := c.Stopped(time.Minute); !errors.Is(err, ErrAllRejected) {
		t.Fatal(err)
	}
	c.Resume(time.Hour)
	if err := c.Stopped(2 * time.Hour); err != nil {
		t.Fatal(err)
	}
}

func TestBackoff(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, j := rapid.Uint8().Draw(rt, "n"), rapid.Uint32().Draw(rt, "jitter")
		d := Backoff(n, j)
		if d < minRetry/2 || d > maxRetry {
			rt.Fatal(d)
		}
	})
	if Backoff(3, 0) != 200*time.Millisecond || Backoff(200, 0) != maxRetry {
		t.Fatal(Backoff(3, 0), Backoff(200, 0))
	}
}

// TestRateMath holds the inverse functions against their meaning.
func TestRateMath(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ratio := func(name string) Ratio {
			return Ratio{rapid.Uint64Range(1, 1<<40).Draw(rt, name+"n"), rapid.Uint64Range(1, 1<<40).Draw(rt, name+"d")}
		}
		a, b := ratio("a"), ratio("b")
		if a.Cmp(b) > 0 {
			a, b = b, a
		}
		r := Rate{Low: a, High: b, Base: tally.Amount(rapid.Uint64Range(0, 100).Draw(rt, "base"))}
		limit := tally.Amount(rapid.Uint64Range(0, 1<<40).Draw(rt, "limit"))
		if n := r.Within(limit); r.Most(n) > limit || n < 1<<62 && r.Most(n+1) <= limit {
			rt.Fatalf("Within(%d) = %d of which %d arrive, %d of one more", limit, n, r.Most(n), r.Most(n+1))
		}
		if n := r.Enough(limit + 1); n < 1<<62 && (r.Surely(n) < limit+1 || n > 0 && r.Surely(n-1) > limit) {
			rt.Fatalf("Enough(%d) = %d of which %d arrive", limit+1, n, r.Surely(n))
		}
		s := a.scale(99, 100)
		if s.Valid() && s.Cmp(a) > 0 {
			rt.Fatalf("%v scaled down is %v", a, s)
		}
	})
}

// TestRoom: what is in flight keeps within the first hop's tab, but one packet may
// always leave, because its reject begins the settlement of a full one.
func TestRoom(t *testing.T) {
	c := NewControl(1000)
	c.SetRoom(1500)
	for _, want := range []tally.Amount{1000, 500, 0} {
		if got := c.Room(0); got != want {
			t.Fatalf("room %d, want %d", got, want)
		}
		c.Sent(0, want)
	}
	c = NewControl(1000)
	c.SetRoom(0)
	if got := c.Room(0); got != 1000 {
		t.Fatalf("on a full tab %d, want one packet", got)
	}
	c.Sent(0, 1000)
	if got := c.Room(0); got != 0 {
		t.Fatalf("on a full tab a second packet of %d", got)
	}
}
