package swap

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// phone is a courier that writes down what happens when.
type phone struct {
	begin time.Time
	err   error // of every Send

	// mu guards lines.
	mu    sync.Mutex
	lines []string
}

func (f *phone) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lines = append(f.lines, fmt.Sprintf("%v ", time.Since(f.begin))+fmt.Sprintf(format, args...))
}

func (f *phone) Send(_ context.Context, _ peer.ID, m Message) error {
	switch m := m.(type) {
	case *Cheque:
		f.note("cheque %d", m.Serial)
	case *Statement:
		f.note("statement %d %d", m.Served, m.Consumed)
	default:
		f.note("%T", m)
	}
	return f.err
}

func (f *phone) Disconnect(peer.ID) error {
	f.note("disconnect")
	return nil
}

// told returns what was written down since the last call.
func (f *phone) told() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	lines := fmt.Sprintf("%q", f.lines)
	f.lines = nil
	return lines
}

// call begins a session of n with a peer of the same policy, which only listens.
func call(t testing.TB, n *node, p peer.ID) *phone {
	t.Helper()
	f := &phone{begin: time.Now()}
	n.Bind(f)
	policy := n.Policy()
	h := &Handshake{Realm: n.Realm(), Terms: Terms{PaymentThreshold: 100, DisconnectThreshold: 125, Mode: policy.Mode, Native: true}}
	if err := n.BeginSession(t.Context(), p, h, true); err != nil {
		t.Fatal(err)
	}
	return f
}

// betweenTicks moves the clock of a new node off the second, so that a tick and
// the test never meet.
func betweenTicks() { time.Sleep(tickEvery / 2) } // bubble

func TestTickOverdue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		p := testPeer(1)
		f := call(t, n, p)
		betweenTicks()
		if err := n.Debit(p, "store", 124); err != nil {
			t.Fatal(err)
		}
		if _, err := n.TryReserve(t.Context(), p, "store", Serve, 2); !errors.Is(err, ErrOverThreshold) {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // bubble: below the threshold nothing is overdue
		if got := n.tab(p); got.blockedUntil != 0 {
			t.Fatalf("blocked at %s", describe(&got))
		}
		f.told()
		f.begin = time.Now()
		// One unit more: a debit tells that it is full, and its clock begins.
		if err := n.Debit(p, "store", 1); !errors.Is(err, ErrOverThreshold) {
			t.Errorf("debit at the threshold: %v", err)
		}
		time.Sleep(overdueAfter) // bubble
		synctest.Wait()
		if got := n.row(&node{id: p}); got.BlockedFor != 0 {
			t.Errorf("blocked after %v", overdueAfter)
		}
		time.Sleep(tickEvery) // bubble: the first tick after the 30 s
		synctest.Wait()
		if got := f.told(); got != `["500ms statement 125 0" "30.5s disconnect"]` {
			t.Errorf("told %s", got)
		}
		n.EndSession(p)
		const want = 75 * time.Second // 60 s × 125 / 100
		if got := n.row(&node{id: p}).BlockedFor; got != want-tickEvery/2 {
			t.Errorf("blocked for %v", got)
		}
		if l, _ := n.onDisk(p); l.blockedUntil == 0 {
			t.Error("the block is not on disk")
		}
		call(t, n, p) // it may always come back
		if _, err := n.TryReserve(t.Context(), p, "store", Serve, 1); !errors.Is(err, ErrBlocked) {
			t.Errorf("while blocked: %v", err)
		}
		time.Sleep(want) // bubble
		synctest.Wait()
		if _, err := n.TryReserve(t.Context(), p, "store", Serve, 1); !errors.Is(err, ErrOverThreshold) {
			t.Errorf("after the block the debt is still there: %v", err)
		}
		time.Sleep(overdueAfter + tickEvery) // bubble: and is overdue again
		synctest.Wait()
		if got := n.row(&node{id: p}).BlockedFor; got == 0 || n.noticed(NoticeBlocked) != 2 {
			t.Errorf("blocked for %v the second time, %d notices", got, n.noticed(NoticeBlocked))
		}
		n.check()
	})
}

// What lifts a block, and what does not.
func TestBlockEnds(t *testing.T) {
	const (
		stays = iota
		isOver
		isPaid
	)
	p := testPeer(7)
	for name, tc := range map[string]struct {
		do   func(t *testing.T, n *node, back *atomic.Int64)
		want int
	}{
		"payment": {func(t *testing.T, n *node, _ *atomic.Int64) {
			if err := n.Receive(t.Context(), p, &KarmaCheque{Beneficiary: []byte(n.id), Amount: 130}); err != nil {
				t.Error(err)
			}
		}, isPaid},
		"operator":             {func(_ *testing.T, n *node, _ *atomic.Int64) { _ = n.Unblock(p) }, isOver},
		"reconnect":            {func(t *testing.T, n *node, _ *atomic.Int64) { n.EndSession(p); call(t, n, p) }, stays},
		"restart":              {func(_ *testing.T, n *node, _ *atomic.Int64) { n.stop() }, stays},
		"restart, clock back":  {func(_ *testing.T, n *node, back *atomic.Int64) { back.Store(3600); n.stop() }, stays},
		"restart, clock ahead": {func(_ *testing.T, n *node, back *atomic.Int64) { back.Store(-3600); n.stop() }, isOver},
		"crash":                {func(_ *testing.T, n *node, _ *atomic.Int64) { n.die(); n.revive() }, stays},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var back atomic.Int64
				n := newNode(t, 0, func(c *Config) { c.clock = func() int64 { return time.Now().Unix() - back.Load() } })
				call(t, n, p)
				_ = n.Debit(p, "store", 130)
				time.Sleep(overdueAfter + 2*tickEvery) // bubble
				with := &node{id: p}
				if got := n.row(with).BlockedFor; got == 0 {
					t.Fatal("not blocked")
				}
				tc.do(t, n, &back)
				synctest.Wait()
				left := n.row(with).BlockedFor
				_, err := n.TryReserve(t.Context(), p, "store", Serve, 1)
				ok := false
				switch tc.want {
				case stays:
					ok = left > 0 && left <= 80*time.Second && errors.Is(err, ErrBlocked)
				case isOver:
					ok = left == 0 && errors.Is(err, ErrOverThreshold)
				case isPaid:
					ok = left == 0 && err == nil
				}
				if !ok {
					t.Errorf("blocked for %v: %v", left, err)
				}
				if tc.want != stays {
					return
				}
				// The block is over after its time, and for good.
				n.EndSession(p)
				time.Sleep(90 * time.Second) // bubble
				if got := n.row(with).BlockedFor; got != 0 {
					t.Errorf("still blocked for %v", got)
				}
				time.Sleep(15 * time.Minute) // bubble: leaves memory, and is read again
				if got := n.Stats().Accounts; got != 0 {
					t.Errorf("%d accounts in memory", got)
				}
				if got := n.row(with).BlockedFor; got != 0 {
					t.Errorf("blocked again for %v after it left memory", got)
				}
				n.check()
			})
		})
	}
}

func TestBlockLength(t *testing.T) {
	for _, tc := range []struct {
		owed tally.Amount
		want time.Duration
	}{
		{125, 75 * time.Second},
		{150, 90 * time.Second},
		{1000, 10 * time.Minute},
		{5999, 59*time.Minute + 59*time.Second + 400*time.Millisecond},
		{6000, time.Hour},
		{1 << 40, time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t, 0)
			p := testPeer(1)
			call(t, n, p)
			_ = n.Debit(p, "store", tc.owed)
			time.Sleep(overdueAfter + tickEvery/2) // bubble
			if got := n.row(&node{id: p}).BlockedFor; got != tc.want-tickEvery/2 {
				t.Errorf("%d units: blocked for %v, want %v", tc.owed, got, tc.want)
			}
		})
	}
}

// A cheque without an ack is sent again every 10 s, the same bytes.
func TestAckResend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		p := testPeer(1)
		f := call(t, n, p)
		_ = n.Credit(p, "store", 100)
		time.Sleep(45*time.Second + tickEvery/2) // bubble
		if got := f.told(); got != `["0s cheque 1" "10s cheque 1" "10s statement 0 100" "20s cheque 1" "30s cheque 1" "40s cheque 1"]` {
			t.Errorf("told %s", got)
		}
	})
}

// A settler that fails is asked again after 1, 2, 4 … 60 s, always for the same
// cumulative, although the debt grows.
func TestIssueBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var asked []string
		v := &vault{}
		v.before = func(_ peer.ID, cumulative tally.Amount) error {
			asked = append(asked, fmt.Sprintf("%.0f:%d", time.Since(begin).Seconds(), cumulative))
			return errors.New("chain node is down")
		}
		n := newNode(t, 0, hard(v))
		p := testPeer(1)
		call(t, n, p)
		_ = n.Credit(p, "store", 100)
		for range 250 {
			time.Sleep(time.Second) // bubble
			_ = n.Credit(p, "store", 1)
		}
		synctest.Wait()
		if got := fmt.Sprint(asked); got != "[0:100 1:100 3:100 7:100 15:100 31:100 63:100 123:100 183:100 243:100]" {
			t.Errorf("asked at %s", got)
		}
		if got := n.row(&node{id: p}).SettlementBlockedBy; got != "the cheque is being issued: back cheque 1: chain node is down" {
			t.Errorf("reason %q", got)
		}
	})
}

// Totals that changed are told at rest, at most every 10 s, and not again while
// nothing changes.
func TestStatementsAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		p := testPeer(1)
		f := call(t, n, p)
		betweenTicks()
		for range 12 {
			_ = n.Debit(p, "store", 1)
			time.Sleep(2 * time.Second) // bubble
		}
		if got := f.told(); got != `["10s statement 5 0" "20s statement 10 0"]` {
			t.Errorf("told %s", got)
		}
		time.Sleep(time.Minute) // bubble
		if got := f.told(); got != `["30s statement 12 0"]` {
			t.Errorf("told %s", got)
		}
		h := reserved(t, n, p, Serve, 1)
		_ = n.Debit(p, "store", 1)
		time.Sleep(20 * time.Second) // bubble: in flight
		if got := f.told(); got != "[]" {
			t.Errorf("told %s while work is in flight", got)
		}
		_ = h.Release()
		time.Sleep(tickEvery) // bubble
		if got := f.told(); got != `["1m45s statement 13 0"]` {
			t.Errorf("told %s", got)
		}
	})
}

// lineUp is a courier that takes one message at a time from a slow line.
type lineUp struct {
	hang chan struct{}
	busy atomic.Int32
	most atomic.Int32
	last atomic.Uint64
}

func (c *lineUp) Send(_ context.Context, _ peer.ID, m Message) error {
	if s, ok := m.(*Statement); ok {
		c.most.Store(max(c.most.Load(), c.busy.Add(1)))
		<-c.hang
		c.last.Store(uint64(s.Served))
		c.busy.Add(-1)
	}
	return nil
}

func (c *lineUp) Disconnect(peer.ID) error { return nil }

// Statements to one peer leave one after the other: an older one behind a newer
// one would be taken for what we say now.
func TestStatementsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		p := testPeer(1)
		call(t, n, p)
		c := &lineUp{hang: make(chan struct{})}
		n.Bind(c)
		for i := range tally.Amount(4) {
			_ = n.Debit(p, "store", 1)
			go func() { // the peer's statements ask for an answer each time
				_ = n.Receive(context.Background(), p, &Statement{Totals{Consumed: 100 + i, AtRest: true}})
			}()
			time.Sleep(15 * time.Second) // bubble
		}
		if got := c.most.Load(); got != 1 {
			t.Errorf("%d statements at once", got)
		}
		close(c.hang)
		synctest.Wait()
		if got, want := c.last.Load(), uint64(n.tab(p).served); got != want {
			t.Errorf("the last statement says %d, the tab %d", got, want)
		}
	})
}

// Accounts leave memory ten minutes after their last use, but not while somebody
// needs them; those with nothing on them leave within a minute or so.
func TestEviction(t *testing.T) {
	const round = shardCount * tickEvery
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		session, used, held, asked := testPeer(1), testPeer(2), testPeer(3), testPeer(4)
		call(t, n, session)
		_ = n.Debit(used, "store", 1)
		h := reserved(t, n, held, Serve, 1)
		if _, err := n.Headroom(asked, Serve); err != nil {
			t.Fatal(err)
		}
		has := func(want ...peer.ID) {
			t.Helper()
			got := n.Stats().Accounts
			for _, p := range want {
				s := n.shardOf(p)
				s.mu.Lock()
				if s.accounts[p] == nil {
					t.Errorf("%s is not in memory", p)
				}
				s.mu.Unlock()
			}
			if got != len(want) {
				t.Errorf("%d accounts in memory, want %d", got, len(want))
			}
		}
		has(session, used, held, asked)
		time.Sleep(holdFor + round + 2*tickEvery) // bubble
		has(session, used)
		time.Sleep(evictAfter - 2*round) // bubble
		has(session, used)
		time.Sleep(2 * round) // bubble
		has(session)
		n.EndSession(session)
		has()
		if err := h.Commit(1); err != nil { // back in memory, and booked
			t.Error(err)
		}
		has(held)
		n.check()
		if _, ok := n.onDisk(asked); ok {
			t.Error("who only asked has a record")
		}
	})
}

// Records of peers that never paid go after a week: at Open, and at run time
// with an hour's patience. Those that paid, or are here, stay.
func TestForgetOld(t *testing.T) {
	const week = int64(forgetAfter / time.Second)
	synctest.Test(t, func(t *testing.T) {
		var ahead atomic.Int64
		n := newNode(t, 0, func(c *Config) { c.clock = func() int64 { return time.Now().Unix() + ahead.Load() } })
		gone, paid, here, fresh := testPeer(1), testPeer(2), testPeer(3), testPeer(4)
		for _, p := range []peer.ID{gone, paid, here} {
			_ = n.Debit(p, "store", 10)
		}
		if err := n.Receive(t.Context(), paid, &KarmaCheque{Beneficiary: []byte(n.id), Amount: 4}); err != nil {
			t.Fatal(err)
		}
		call(t, n, here)
		time.Sleep(time.Second) // bubble: written behind
		n.check()
		if got := n.records.Load(); got != 2 {
			t.Errorf("%d records of strangers", got)
		}
		ahead.Store(week)
		_ = n.Debit(fresh, "store", 10)
		time.Sleep(forgetEvery) // bubble
		n.check()
		for p, want := range map[peer.ID]bool{gone: false, paid: true, here: true, fresh: true} {
			if _, ok := n.onDisk(p); ok != want {
				t.Errorf("%s is on disk: %v, want %v", p, ok, want)
			}
		}
		if got := n.Stats(); got.Exposure != 26 || got.StrangersCredit != 20 || n.records.Load() != 2 {
			t.Errorf("%+v, %d records", got, n.records.Load())
		}
		_ = n.Debit(gone, "store", 5) // and begins anew
		time.Sleep(time.Second)       // bubble
		if l, ok := n.onDisk(gone); !ok || l.served != 5 {
			t.Errorf("on disk %v: %s", ok, describe(&l))
		}
		n.check()

		ahead.Store(3 * week)
		n.stop()
		n.check()
		for p, want := range map[peer.ID]bool{gone: false, paid: true, here: false, fresh: false} {
			if _, ok := n.onDisk(p); ok != want {
				t.Errorf("after the restart %s is on disk: %v, want %v", p, ok, want)
			}
		}
	})
}

// The peer may come after its record was found to be old.
func TestForgetLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, 0)
		p := testPeer(1)
		_ = n.Debit(p, "store", 10)
		time.Sleep(time.Minute) // bubble: written, and nobody uses it
		if err := n.forget(t.Context(), p, n.unix()-120); err != nil {
			t.Fatal(err)
		}
		if l, ok := n.onDisk(p); !ok || l.served != 10 {
			t.Error("a record that was used since is gone")
		}
		if err := n.forget(t.Context(), p, n.unix()); err != nil {
			t.Fatal(err)
		}
		if _, ok := n.onDisk(p); ok {
			t.Error("an old record stays")
		}
		n.check()
	})
}

// Forgetting and using the same peers at once neither loses a unit nor lets a sum
// drift. Meant for the race detector.
func TestForgetWhileUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ahead atomic.Int64
		n := newNode(t, 0, func(c *Config) { c.clock = func() int64 { return time.Now().Unix() + ahead.Load() } },
			withPolicy(Policy{PaymentThreshold: 1 << 20}))
		const peers = 8
		var booked [peers]tally.Amount
		for round := range 40 {
			ahead.Add(int64(forgetAfter/time.Second) + 1)
			var wg sync.WaitGroup
			wg.Go(func() { _ = n.forgetOld(t.Context()) })
			for i := range booked {
				wg.Go(func() {
					if (i+round)%3 == 0 {
						booked[i] = 0 // left alone for a week
						return
					}
					_ = n.Debit(testPeer(uint16(i)), "store", 1)
				})
			}
			wg.Wait()
			time.Sleep(time.Second) // bubble: written behind
			for i := range booked {
				l := n.tab(testPeer(uint16(i)))
				if (i+round)%3 != 0 && l.served == 0 {
					t.Fatalf("round %d: a unit of peer %d is lost", round, i)
				}
			}
			n.check()
		}
	})
}
