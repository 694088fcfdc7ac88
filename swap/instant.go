package swap

import "time"

// Instant is monotonic time since the book was opened. The wall clock never
// enters the core, so that a clock that jumps, or is set back by an hour, can
// neither block an honest peer nor unblock a bad one.
type Instant int64

// Add returns the instant d later.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Sub returns the time from j to i, at least zero.
func (i Instant) Sub(j Instant) time.Duration { return max(0, time.Duration(i-j)) }
