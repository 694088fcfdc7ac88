package host

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tally/host/locker"
)

// A LOCK that comes before its channel is known, seen or idle is kept until it is, and
// not for ever; what can never be taken is refused at once.
func TestUntilTaken(t *testing.T) {
	for name, c := range map[string]struct {
		err   error
		after int // it is taken
		want  error
		tries int
	}{
		"at once":     {tries: 1},
		"linked":      {err: locker.ErrUnlinked, after: 3, tries: 4},
		"seen":        {err: locker.ErrUnseen, after: lockTries - 1, tries: lockTries},
		"made":        {err: locker.ErrNoChannel, after: 1, tries: 2},
		"busy":        {err: locker.ErrBusy, after: 1, tries: 2},
		"never there": {err: locker.ErrUnlinked, after: lockTries, want: locker.ErrUnlinked, tries: lockTries},
		"broken":      {err: locker.ErrMessage, after: 1, want: locker.ErrMessage, tries: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries, begin := 0, time.Now()
				err := untilTaken(t.Context(), func() error {
					if tries++; tries <= c.after {
						return c.err
					}
					return nil
				})
				if !errors.Is(err, c.want) || tries != c.tries {
					t.Errorf("%v after %d tries, want %v after %d", err, tries, c.want, c.tries)
				}
				if took := time.Since(begin); took != time.Duration(c.tries-1)*lockRetry {
					t.Errorf("took %v", took)
				}
			})
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := untilTaken(ctx, func() error { return locker.ErrUnlinked }); !errors.Is(err, locker.ErrUnlinked) {
		t.Errorf("closed: %v", err)
	}
}
