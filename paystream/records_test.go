package paystream_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/paystreamtest"
)

// recordsOf counts what a disk has of sockets, holds and budgets.
func recordsOf(t *testing.T, s *durable.Store) (sockets, holds, budgets int) {
	t.Helper()
	all, err := durabletest.Records(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	for key := range all {
		switch {
		case strings.HasPrefix(key, "/paystream/socket/"):
			sockets++
		case strings.HasPrefix(key, "/paystream/hold/"):
			holds++
		case strings.HasPrefix(key, "/paystream/budget/"):
			budgets++
		}
	}
	return sockets, holds, budgets
}

// pushed opens a socket of a to b on which n was pushed.
func pushed(t *testing.T, a *party, u paystream.URI, n int64) *paystream.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := a.Dial(ctx, u, nil, paystream.Terms{Min: at(-n), Max: at(-n)})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitBalance(ctx, tally.Balance(-n)); err != nil {
		t.Fatal(err, c.Report())
	}
	time.Sleep(time.Second) // bubble: what is in flight lands
	return c
}

var pushGrant = paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: paystream.NoMax}

func issue(t testing.TB, p *party, g paystream.Grant) paystream.URI {
	t.Helper()
	u, err := p.Issue(g)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestClosedSocketLeavesNoRecord: Close ends both ends, and neither keeps the
// socket; the budget, which two more sockets of the token share, stays.
func TestClosedSocketLeavesNoRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(1)
		stores := [2]*durable.Store{durabletest.NewMem(), durabletest.NewMem()}
		a, b := start(t, net, 1, stores[0], nil), start(t, net, 2, stores[1], nil)
		u := issue(t, b, pushGrant)
		c := pushed(t, a, u, 500)
		server := b.server(t)
		if s, _, _ := recordsOf(t, stores[0]); s != 1 {
			t.Errorf("%d sockets on disk before the end", s)
		}
		c.Close()
		time.Sleep(time.Second) // bubble
		if err := server.Err(); !errors.Is(err, paystream.ErrPeerClosed) {
			t.Errorf("the other end: %v", err)
		}
		if _, err := b.Conn(c.ID()); !errors.Is(err, paystream.ErrNoSocket) {
			t.Errorf("after the end: %v", err)
		}
		for i, want := range []int{0, 1} {
			if s, h, n := recordsOf(t, stores[i]); s != 0 || h != 0 || n != want {
				t.Errorf("disk %d has %d sockets, %d holds, %d budgets", i, s, h, n)
			}
		}
		if n := len(a.Sockets()) + len(b.Sockets()); n != 0 {
			t.Errorf("%d sockets in memory", n)
		}
		for i, p := range []*party{a, b} {
			p.Close()
			stores[i].Close()
		}
	})
}

// TestExpiredTokensLeaveNoRecord: an hour after its expiry a token is forgotten,
// with its sockets, by a node that runs and by one that starts.
func TestExpiredTokensLeaveNoRecord(t *testing.T) {
	for _, restart := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			net := paystreamtest.NewNet(1)
			store := durabletest.NewMem()
			a, b := start(t, net, 1, nil, nil), start(t, net, 2, store, nil)
			g := pushGrant
			g.Expires = time.Now().Add(time.Hour).Unix()
			pushed(t, a, issue(t, b, g), 500)
			pushed(t, a, issue(t, b, pushGrant), 500)
			time.Sleep(100 * time.Minute) // bubble
			if s, _, n := recordsOf(t, store); s != 2 || n != 2 {
				t.Errorf("%d sockets and %d budgets before the hour is over", s, n)
			}
			if restart {
				b.Close()
				time.Sleep(30 * time.Minute) // bubble
				b = start(t, net, 2, store, nil)
			} else {
				time.Sleep(time.Hour) // bubble
			}
			if s, _, n := recordsOf(t, store); s != 1 || n != 1 {
				t.Errorf("%d sockets and %d budgets after it, want those without expiry", s, n)
			}
			time.Sleep(91 * 24 * time.Hour) // bubble
			if s, _, n := recordsOf(t, store); s != 0 || n != 1 {
				t.Errorf("%d sockets and %d budgets after three months", s, n)
			}
			a.Close()
			b.Close()
			store.Close()
		})
	}
}

// TestIdleSocketsLeaveMemory, and come back where they were.
func TestIdleSocketsLeaveMemory(t *testing.T) {
	for _, disk := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			net := paystreamtest.NewNet(1)
			var stores [2]*durable.Store
			if disk {
				stores = [2]*durable.Store{durabletest.NewMem(), durabletest.NewMem()}
				defer stores[0].Close()
				defer stores[1].Close()
			}
			one := func(c *paystream.Config) { c.PerPeer = 1 }
			a, b := start(t, net, 1, stores[0], one), start(t, net, 2, stores[1], one)
			defer a.Close()
			defer b.Close()
			c := pushed(t, a, issue(t, b, pushGrant), 500)
			for round := range tally.Balance(3) {
				time.Sleep(2 * paystream.IdleTime) // bubble
				if n := len(a.Sockets()) + len(b.Sockets()); n != 0 {
					t.Fatalf("%d idle sockets are in memory", n)
				}
				c, err := a.Conn(c.ID())
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Pay(100); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				if err := c.WaitBalance(ctx, -600-100*round); err != nil {
					t.Fatal(err, c.Report())
				}
				cancel()
				if got := b.server(t).Report().Balance; got != 600+100*round {
					t.Fatalf("server has %d", got)
				}
			}
			// It has counted once all the time: nothing else fits, and it is a
			// client's, which is not forgotten.
			if _, err := a.Dial(t.Context(), issue(t, b, pushGrant), nil, paystream.Terms{}); !errors.Is(err, paystream.ErrTooMany) {
				t.Fatalf("a second socket: %v", err)
			}
		})
	}
}

// TestPerPeer: one neighbour has a bounded number of sockets. Its live ones stay;
// of idle ones the oldest gives way, and its client learns.
func TestPerPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(1)
		a, other := start(t, net, 1, nil, nil), start(t, net, 3, nil, nil)
		b := start(t, net, 2, nil, func(c *paystream.Config) { c.PerPeer = 2 })
		defer a.Close()
		defer b.Close()
		defer other.Close()
		u := issue(t, b, pushGrant)
		first := pushed(t, a, u, 100)
		time.Sleep(10 * time.Second) // bubble
		pushed(t, a, u, 100)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := a.Dial(ctx, u, nil, paystream.Terms{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a third socket of one neighbour: %v", err)
		}
		pushed(t, other, u, 100)           // others are not kept out
		time.Sleep(2 * paystream.IdleTime) // bubble
		pushed(t, a, u, 100)
		first, err := a.Conn(first.ID())
		if err != nil {
			t.Fatal(err)
		}
		if err := first.Pay(100); err != nil {
			t.Fatal(err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := first.WaitBalance(ctx, -200); !errors.Is(err, paystream.ErrForgotten) {
			t.Fatalf("the socket that gave way: %v", err)
		}
	})
}

// TestServerForgetsInMemoryMode: after a restart without a store the client is
// told so, in place of a socket that counts from the beginning.
func TestServerForgetsInMemoryMode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(1)
		a, b := start(t, net, 1, nil, nil), start(t, net, 2, nil, nil)
		defer a.Close()
		u := issue(t, b, pushGrant)
		c := pushed(t, a, u, 500)
		b.node.Stop()
		b.Close()
		b = start(t, net, 2, nil, nil)
		defer b.Close()
		if err := c.Pay(100); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := c.WaitBalance(ctx, -600); !errors.Is(err, paystream.ErrForgotten) {
			t.Fatalf("after the restart: %v; %+v", err, c.Report())
		}
		pushed(t, a, u, 100) // the token works on
	})
}

// TestSingleUseTokenOverRestart: who began to redeem it goes on, nobody else does.
func TestSingleUseTokenOverRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(1)
		store := durabletest.NewMemCrash()
		a, c := start(t, net, 1, nil, nil), start(t, net, 3, nil, nil)
		b := start(t, net, 2, store.Store, nil)
		u := issue(t, b, paystream.Grant{Use: paystream.UseGift, Min: at(-1000), Max: at(-1000), SingleUse: true})
		net.SetWay(b.id, a.id, paystreamtest.Way{Delay: 50 * time.Millisecond, Most: 10})
		first, err := a.Dial(t.Context(), u, nil, paystream.Terms{Max: paystream.NoMax})
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if time.Sleep(20 * time.Millisecond); first.Report().Balance > 0 { // bubble: it begins to move
				break
			}
		}
		if got := first.Report().Balance; got == 0 || got == 1000 {
			t.Errorf("%d of 1000 moved before the restart", got)
		}
		b.node.Stop()
		b.Close()
		clone := store.Clone()
		store.Close()
		b = start(t, net, 2, clone.Store, nil)
		if _, err := c.Dial(t.Context(), u, nil, paystream.Terms{Max: paystream.NoMax}); !errors.Is(err, paystream.ErrSpent) {
			t.Errorf("a second bearer: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if err := first.WaitBalance(ctx, 1000); err != nil {
			t.Errorf("the first bearer: %v; %+v", err, first.Report())
		}
		for _, p := range []*party{a, b, c} {
			p.Close()
		}
		clone.Close()
	})
}

// TestDamagedSocketRecord: one record that does not read stops one socket, not the
// node, and what it had in flight still counts against its token.
func TestDamagedSocketRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(1)
		store := durabletest.NewMemCrash()
		a, c := start(t, net, 1, nil, nil), start(t, net, 3, nil, nil)
		b := start(t, net, 2, store.Store, nil)
		gift := issue(t, b, paystream.Grant{Use: paystream.UseGift, Min: at(-1000), Max: at(-1000)})
		push := issue(t, b, pushGrant)
		good := pushed(t, c, push, 300)
		net.SetWay(b.id, a.id, paystreamtest.Way{Delay: 500 * time.Millisecond, Most: 900})
		bad, err := a.Dial(t.Context(), gift, nil, paystream.Terms{Max: paystream.NoMax})
		if err != nil {
			t.Fatal(err)
		}
		for range 500 {
			if time.Sleep(10 * time.Millisecond); b.server(t).Report().HoldOut > 0 { // bubble: until money is on its way
				break
			}
		}
		time.Sleep(10 * time.Millisecond) // bubble
		b.node.Stop()
		b.Close()
		clone := store.Clone()
		store.Close()
		if _, h, _ := recordsOf(t, clone.Store); h == 0 {
			t.Error("nothing was in flight")
		}
		key := "/paystream/socket/" + durable.KeyID(func() []byte { id := bad.ID(); return id[:] }())
		rec, err := clone.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		rec[len(rec)-1] ^= 1
		var batch durable.Batch
		batch.Put(key, rec)
		if err := clone.Commit(t.Context(), &batch); err != nil {
			t.Fatal(err)
		}
		b = start(t, net, 2, clone.Store, nil)
		if _, err := b.Conn(bad.ID()); err == nil || errors.Is(err, paystream.ErrNoSocket) {
			t.Errorf("the damaged socket: %v", err)
		}
		if err := good.Pay(50); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if err := good.WaitBalance(ctx, -350); err != nil {
			t.Errorf("the other socket: %v", err)
		}
		// Whoever redeems the gift now gets what is left of it, and no more.
		net.SetWay(b.id, c.id, paystreamtest.Way{Most: 900})
		second, err := c.Dial(ctx, gift, nil, paystream.Terms{Max: paystream.NoMax})
		if err == nil {
			time.Sleep(30 * time.Second) // bubble
			if total := second.Report().Balance + bad.Report().Balance; total > 1000 {
				t.Errorf("a gift of 1000 paid %d", total)
			}
		}
		time.Sleep(time.Minute) // bubble
		if _, h, _ := recordsOf(t, clone.Store); h != 0 {
			t.Errorf("%d holds of the damaged socket are kept", h)
		}
		for _, p := range []*party{a, b, c} {
			p.Close()
		}
		clone.Close()
	})
}
