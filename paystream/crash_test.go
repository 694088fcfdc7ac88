package paystream_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/paystreamtest"
)

// crashRun pays 50 000 in packets of at most 4000, stops one side at a commit,
// starts it again on what its disk kept, and returns how many commits that side
// made. In the end both sides have to agree to the unit, and no packet may have
// left that takes the payer below its minimum (R4), or have been taken that lifts
// the payee above its maximum (R5).
//
// weakened lets the payee's fulfils leave before they are saved, and reports
// whether the sides disagree.
func crashRun(t *testing.T, server, weakened bool, arm func(*durabletest.Crash)) (commits int, differ bool) {
	const sum = 50_000
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(3)
		stores := [2]*durabletest.Crash{durabletest.NewMemCrash(), durabletest.NewMemCrash()}
		side := 0
		if server {
			side = 1
		}
		a, b := start(t, net, 1, stores[0].Store, nil), start(t, net, 2, stores[1].Store, nil)
		defer func() { // also where the test fails: a bubble waits for its goroutines
			a.Close()
			b.Close()
			stores[0].Close()
			stores[1].Close()
		}()
		way := paystreamtest.Way{Delay: 5 * time.Millisecond, Jitter: 3 * time.Millisecond, Most: 4000}
		net.SetWay(a.id, b.id, way)
		net.SetWay(b.id, a.id, way)
		if weakened {
			net.FulfilFirst(b.id)
		}
		u := issue(t, b, paystream.Grant{Use: paystream.UseInvoice, Min: at(sum), Max: at(sum)})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		client, err := a.Dial(ctx, u, nil, paystream.Terms{Min: at(-sum), Max: at(0)})
		if err != nil {
			t.Fatal(err)
		}
		id := client.ID()
		before := stores[side].Commits()
		if arm != nil {
			arm(stores[side])
			select {
			case <-stores[side].Broken():
			case <-time.After(20 * time.Second): // bubble: the commit never came
			}
			synctest.Wait()
			parties := [2]*party{a, b}
			parties[side].node.Stop()
			parties[side].Close()
			clone := stores[side].Clone()
			stores[side].Close()
			stores[side] = clone
			again := start(t, net, byte(side+1), clone.Store, nil)
			if side == 0 {
				a = again
				if client, err = a.Conn(id); err != nil {
					// Nothing was saved: the socket has not moved anything.
					a.Close()
					b.Close()
					stores[0].Close()
					stores[1].Close()
					return
				}
			} else {
				b = again
			}
		}
		err = client.WaitBalance(ctx, -sum)
		if weakened {
			time.Sleep(5 * time.Second) // bubble: what is in flight lands
			end, err := b.Conn(id)
			differ = err != nil || end.Report().Received != client.Report().Sent
			return
		}
		if err != nil {
			t.Fatalf("%v: %+v", err, client.Report())
		}
		time.Sleep(5 * time.Second) // bubble: what is in flight lands
		end, err := b.Conn(id)
		if err != nil {
			t.Fatal(err)
		}
		if got := end.Report(); got.Balance != sum || got.Received != sum {
			t.Fatalf("the payee has %d; %+v", got.Balance, got)
		}
		if got := client.Report(); got.Sent != sum || got.HoldOut != 0 {
			t.Fatalf("the payer has %+v", got)
		}
		a.Close()
		b.Close()
		commits = stores[side].Commits() - before
		stores[0].Close()
		stores[1].Close()
	})
	return commits, differ
}

// TestFulfilBeforeSaveLoses is attack 6 on the weakened variant: a payee whose
// fulfils leave before they are saved has received less than it was paid.
func TestFulfilBeforeSaveLoses(t *testing.T) {
	for k := 1; k <= 20; k++ {
		if _, differ := crashRun(t, true, true, func(c *durabletest.Crash) { c.CrashBefore(c.Commits() + k) }); differ {
			return
		}
	}
	t.Fatal("the weakened variant did not fall for it")
}

// TestCrashAtEveryCommit is attack 6 on ours: it stops the payer, and then the
// payee, before and after each commit.
func TestCrashAtEveryCommit(t *testing.T) {
	for _, server := range []bool{false, true} {
		n, _ := crashRun(t, server, false, nil)
		if n < 10 {
			t.Fatalf("only %d commits", n)
		}
		for k := 1; k <= n; k++ {
			for _, after := range []bool{false, true} {
				t.Run(fmt.Sprintf("server=%v/commit=%d/after=%v", server, k, after), func(t *testing.T) {
					crashRun(t, server, false, func(c *durabletest.Crash) {
						// Some were made while the socket was opened.
						at := c.Commits() + k
						if after {
							c.CrashAfter(at)
						} else {
							c.CrashBefore(at)
						}
					})
				})
			}
		}
	}
}

// TestRestartKeepsTheFloor: holds that were in flight at a kill count against the
// minimum afterwards, although nobody has decided them yet.
func TestRestartKeepsTheFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(3)
		store := durabletest.NewMemCrash()
		a, b := start(t, net, 1, store.Store, nil), start(t, net, 2, nil, nil)
		net.SetWay(a.id, b.id, paystreamtest.Way{Delay: 3 * time.Second, Most: 1000})
		net.SetWay(b.id, a.id, paystreamtest.Way{})
		u, err := b.Issue(paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: paystream.NoMax})
		if err != nil {
			t.Fatal(err)
		}
		client, err := a.Dial(t.Context(), u, nil, paystream.Terms{Min: at(-5000), Max: at(-5000)})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond) // bubble: the window is full and nothing has arrived
		held := client.Report().HoldOut
		if held == 0 {
			t.Fatalf("nothing in flight: %+v", client.Report())
		}
		a.node.Stop()
		a.Close()
		clone := store.Clone()
		store.Close()
		a = start(t, net, 1, clone.Store, nil)
		if client, err = a.Conn(client.ID()); err != nil {
			t.Fatal(err)
		}
		if got := client.Report().HoldOut; got != held {
			t.Fatalf("after the restart %d of %d are held", got, held)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		if err := client.WaitBalance(ctx, -5000); err != nil {
			t.Fatal(err, client.Report())
		}
		if got := b.server(t).Report().Received; got != 5000 {
			t.Fatalf("the payee has %d", got)
		}
		a.Close()
		b.Close()
		clone.Close()
	})
}
