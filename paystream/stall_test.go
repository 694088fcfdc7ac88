package paystream_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/paystreamtest"
)

// A server whose packets are lost for long gives up. Its client, which wants the money
// still, asks again until it is answered, and the server goes on, though nothing that
// it hears is new.
func TestStalledServerIsAsked(t *testing.T) {
	for name, deaf := range map[string]bool{"the first time": false, "asks are lost too": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := paystreamtest.NewNet(1)
				a, b := start(t, net, 1, nil, nil), start(t, net, 2, nil, nil)
				defer a.Close()
				defer b.Close()
				u := issue(t, b, paystream.Grant{Use: paystream.UseVoucher, Min: at(-500), Max: at(0)})
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
				defer cancel()
				client, err := a.Dial(ctx, u, nil, paystream.Terms{Min: at(0), Max: paystream.NoMax})
				if err != nil {
					t.Fatal(err)
				}
				net.SetWay(b.id, a.id, paystreamtest.Way{Loss: 1})
				if err := client.SetLimits(at(500), at(500)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(15 * time.Second) // bubble
				if err := b.server(t).Err(); !errors.Is(err, paystream.ErrStalled) {
					t.Fatalf("the server has not stopped: %v", err)
				}
				net.SetWay(b.id, a.id, paystreamtest.Way{})
				if deaf {
					net.SetWay(a.id, b.id, paystreamtest.Way{Loss: 1})
					time.Sleep(25 * time.Second) // bubble
					net.SetWay(a.id, b.id, paystreamtest.Way{})
				}
				if err := client.WaitBalance(ctx, 500); err != nil {
					t.Fatal(err, client.Report(), b.server(t).Err())
				}
			})
		})
	}
}

// Who asks and is answered without anything new asks no more, and becomes idle.
func TestAnsweredIsNotAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(1)
		a, b := start(t, net, 1, nil, nil), start(t, net, 2, nil, nil)
		defer a.Close()
		defer b.Close()
		u := issue(t, b, paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: at(500)})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		client, err := a.Dial(ctx, u, nil, paystream.Terms{Min: at(0), Max: paystream.NoMax})
		if err != nil {
			t.Fatal(err)
		}
		if err := client.SetLimits(at(500), at(500)); err != nil { // it will never come
			t.Fatal(err)
		}
		time.Sleep(3 * paystream.IdleTime) // bubble
		if n := len(a.Sockets()) + len(b.Sockets()); n != 0 {
			t.Fatalf("%d ends are not idle: %+v", n, client.Report())
		}
	})
}
