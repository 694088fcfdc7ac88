package paystream_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/paystreamtest"
)

// Packets leave a few at a time, and all that the window takes leave without an answer in
// between.
func TestPumpGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(1)
		small := func(c *paystream.Config) { c.LargestPacket = 1 }
		a, b := start(t, net, 1, nil, small), start(t, net, 2, nil, small)
		defer a.Close()
		defer b.Close()
		net.SetWay(a.id, b.id, paystreamtest.Way{Delay: time.Second})
		u := issue(t, b, paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: at(3000)})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		client, err := a.Dial(ctx, u, nil, paystream.Terms{Min: at(-2000), Max: at(-2000)})
		if err != nil {
			t.Fatal(err)
		}
		if err := client.WaitBalance(ctx, -2000); err != nil {
			t.Fatal(err)
		}
		if r := client.Report(); r.InFlight != 0 {
			t.Fatalf("%+v", r)
		}
		if err := client.SetLimits(at(-2500), at(-2500)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if r := client.Report(); r.InFlight < 100 {
			t.Fatalf("%d units are under way of 500", r.InFlight)
		}
		if err := client.WaitBalance(ctx, -2500); err != nil {
			t.Fatal(err)
		}
	})
}

// So do those of a server, which begins to pay when it is asked.
func TestPumpGoesOnWhenAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(1)
		small := func(c *paystream.Config) { c.LargestPacket = 1 }
		a, b := start(t, net, 1, nil, small), start(t, net, 2, nil, small)
		defer a.Close()
		defer b.Close()
		net.SetWay(b.id, a.id, paystreamtest.Way{Delay: time.Second})
		u := issue(t, b, paystream.Grant{Use: paystream.UseVoucher, Min: at(-3000), Max: at(0)})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		client, err := a.Dial(ctx, u, nil, paystream.Terms{Min: at(2000), Max: at(2000)})
		if err != nil {
			t.Fatal(err)
		}
		if err := client.WaitBalance(ctx, 2000); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second) // bubble: the last answers are here
		if r := b.server(t).Report(); r.InFlight != 0 {
			t.Fatalf("%+v", r)
		}
		if err := client.SetLimits(at(2500), at(2500)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond) // bubble: it is asked, and nothing is answered yet
		if r := b.server(t).Report(); r.InFlight < 100 {
			t.Fatalf("%d units are under way of 500", r.InFlight)
		}
		if err := client.WaitBalance(ctx, 2500); err != nil {
			t.Fatal(err)
		}
	})
}
