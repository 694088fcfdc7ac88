package durabletest_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"

	"go.uber.org/goleak"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// twins are the two stores that can crash.
var twins = map[string]func() *durabletest.Crash{
	"pebble": durabletest.NewCrash,
	"mem":    durabletest.NewMemCrash,
}

// script commits records 1 to n, one each, until one fails, and returns how many
// were acknowledged.
func script(s *durable.Store, n int) (acked int, err error) {
	for i := 1; i <= n; i++ {
		var b durable.Batch
		b.Put(fmt.Sprintf("/%d", i), []byte("x"))
		if err := s.Commit(context.Background(), &b); err != nil {
			return i - 1, err
		}
	}
	return n, nil
}

// survivors returns what a store holds after a power loss now, and that the
// clone is a working store.
func survivors(t *testing.T, c *durabletest.Crash, clone func() *durabletest.Crash) map[string]string {
	t.Helper()
	after := clone()
	defer after.Close()
	if n := after.Commits(); n != 0 {
		t.Errorf("the clone begins with %d commits", n)
	}
	all, err := durabletest.Records(t.Context(), after.Store)
	if err != nil {
		t.Fatal(err)
	}
	if acked, err := script(after.Store, 1); acked != 1 {
		t.Errorf("the clone does not commit: %v", err)
	}
	return all
}

// This is the crash matrix other packages write, on the smallest script.
func TestCrashMatrix(t *testing.T) {
	const commits = 4
	boom := errors.New("boom")
	for name, open := range twins {
		t.Run(name, func(t *testing.T) {
			whole := open()
			if acked, err := script(whole.Store, commits); acked != commits {
				t.Fatal(err)
			}
			if whole.Commits() != commits {
				t.Fatalf("%d commits counted", whole.Commits())
			}
			if got := survivors(t, whole, whole.Clone); len(got) != commits {
				t.Errorf("without a crash %v", got)
			}
			whole.Close()

			for n := 1; n <= commits; n++ {
				for _, tc := range []struct {
					name   string
					arm    func(c *durabletest.Crash)
					cause  error
					landed int
				}{
					{"before", func(c *durabletest.Crash) { c.CrashBefore(n) }, durabletest.ErrCrashed, n - 1},
					{"after", func(c *durabletest.Crash) { c.CrashAfter(n) }, durabletest.ErrCrashed, n},
					{"fail", func(c *durabletest.Crash) { c.FailAt(n, boom) }, boom, n - 1},
				} {
					t.Run(fmt.Sprintf("%s %d", tc.name, n), func(t *testing.T) {
						c := open()
						defer c.Close()
						tc.arm(c)
						acked, err := script(c.Store, commits)
						if acked != n-1 || !errors.Is(err, tc.cause) || !errors.Is(err, durable.ErrFailed) {
							t.Errorf("%d acknowledged, %v", acked, err)
						}
						if _, err := script(c.Store, 1); !errors.Is(err, tc.cause) {
							t.Errorf("after the crash: %v", err)
						}
						if got := c.Commits(); got != n {
							t.Errorf("%d commits counted", got)
						}
						got := survivors(t, c, c.Clone)
						if len(got) != tc.landed {
							t.Errorf("survivors %v, want %d", got, tc.landed)
						}
						for seed := range uint64(3) {
							clone := func() *durabletest.Crash { return c.CloneSeed(seed) }
							if torn := survivors(t, c, clone); !maps.Equal(torn, got) {
								t.Errorf("seed %d: survivors %v", seed, torn)
							}
						}
					})
				}
			}
		})
	}
}

func TestArmPastCommit(t *testing.T) {
	c := durabletest.NewMemCrash()
	defer c.Close()
	if _, err := script(c.Store, 2); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a fault in the past was taken")
		}
	}()
	c.CrashBefore(2)
}

// Queued batches are commits of their own, in the order of their Submit.
func TestNothingIsMerged(t *testing.T) {
	for name, open := range twins {
		t.Run(name, func(t *testing.T) {
			c := open()
			c.CrashBefore(50)
			acked := 0
			for i := range 100 {
				var b durable.Batch
				b.Put(fmt.Sprintf("/%d", i), []byte("x"))
				c.Submit(&b, func(err error) {
					if err == nil {
						acked++
					}
				})
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if acked != 49 || c.Commits() != 50 {
				t.Errorf("%d acknowledged, %d commits", acked, c.Commits())
			}
		})
	}
}
