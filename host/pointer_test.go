package host_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/compat/bridge"
	"github.com/tallystick/tally/paystream/compat/spsp"
)

// TestPointers: a node follows the payment pointers of another over a hop with a fee.
// A push is with each payer; an invoice and a voucher are one amount for all who
// come, over restarts.
func TestPointers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r := newBridgeRoad(ctx, t, 3, 1)
	payer, shop := r[0], r[2]
	for _, p := range []bridge.Pointer{
		{Path: "", Use: paystream.UsePush, Amount: 50_000},
		{Path: "/bill", Use: paystream.UseInvoice, Amount: 30_000},
		{Path: "/prize/7", Use: paystream.UseVoucher, Amount: 20_000},
	} {
		must(t, shop.bridge().AddPointer(p))
	}
	if err := shop.bridge().AddPointer(bridge.Pointer{Path: "/bill", Use: paystream.UsePush, Amount: 1}); !errors.Is(err, bridge.ErrPointerExists) {
		t.Fatal(err)
	}
	for _, bad := range []string{"x", "/a/../b", "/a?b", "/a/", "/.well-known/pay"} {
		if err := shop.bridge().AddPointer(bridge.Pointer{Path: bad, Use: paystream.UsePush, Amount: 1}); !errors.Is(err, bridge.ErrPath) {
			t.Error(bad, err)
		}
	}
	resolve := func(text string) *spsp.Document {
		t.Helper()
		p, err := spsp.ParsePointer(text)
		must(t, err)
		d, err := spsp.Resolver{Loopback: shop.bridge().PointerAddr()}.Resolve(ctx, p)
		must(t, err)
		return d
	}
	follow := func(text string, amount tally.Amount) bridge.Moved {
		t.Helper()
		m, err := payer.bridge().Follow(ctx, resolve(text), amount)
		if err != nil {
			t.Fatalf("%s: %+v %v", text, m, err)
		}
		return m
	}
	// The hop takes 1 of each packet.
	if m := follow("$shop", 10_000); m.Kind != spsp.Push || m.Sent != 10_000 || m.Delivered != 9_999 || shop.net(ctx) != 9_999 {
		t.Fatalf("%+v, shop has %d", m, shop.net(ctx))
	}
	if m := follow("$shop/bill", 0); m.Kind != spsp.Invoice || m.Delivered != 30_000 {
		t.Fatalf("%+v", m)
	}
	if m := follow("$shop/prize/7", 5_000); m.Kind != spsp.Voucher || m.Received != 5_000 {
		t.Fatalf("%+v", m)
	}
	// The payee books first.
	gave := func(n tally.Balance) func() bool {
		return func() bool {
			for _, p := range shop.bridge().Pointers() {
				if p.Use == paystream.UseVoucher {
					return p.Balance <= -n
				}
			}
			return false
		}
	}
	until(ctx, t, "the voucher's maker has booked it", gave(5_000))
	shop.restart(ctx, r[1])
	d := resolve("$shop/bill")
	if d.Balance.Current != 30_000 || *d.Balance.Maximum != 30_000 {
		t.Fatalf("%+v", d.Balance)
	}
	if _, err := payer.bridge().Follow(ctx, d, 0); !errors.Is(err, bridge.ErrNothing) {
		t.Fatalf("a paid invoice is paid again: %v", err)
	}
	if d = resolve("$shop/prize/7"); d.Balance.Current > -5_000 {
		t.Fatalf("%+v", d.Balance)
	}
	left := tally.Amount(d.Balance.Current - *d.Balance.Minimum)
	if m, err := payer.bridge().Follow(ctx, d, left-10); err != nil || m.Received != left-10 {
		t.Fatalf("%+v %v", m, err)
	}
	until(ctx, t, "the rest of the voucher is booked", gave(20_000-10))
	if d = resolve("$shop/prize/7"); d.Balance.Current < -20_000 {
		t.Fatalf("a voucher gave more than its amount: %+v", d.Balance)
	}
	until(ctx, t, "all tabs together are even", func() bool { return r.sumOfAll(ctx) == 0 })
	must(t, shop.bridge().Check())
	must(t, payer.bridge().Check())

	must(t, shop.bridge().RemovePointer("/bill"))
	get := func(method, path string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, "http://"+shop.bridge().PointerAddr()+path, nil)
		must(t, err)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		_, _ = io.Copy(io.Discard, resp.Body)
		must(t, resp.Body.Close())
		return resp.StatusCode
	}
	for path, want := range map[string]int{"/bill": 404, "/": 404, "/.well-known/pay": 200, "/prize/7": 200, "/prize/%37": 404} {
		if got := get(http.MethodGet, path); got != want {
			t.Errorf("GET %s: %d, want %d", path, got, want)
		}
	}
	if got := get(http.MethodPost, "/prize/7"); got != http.StatusMethodNotAllowed {
		t.Error(got)
	}
}

var _ = host.ErrNoBridge
