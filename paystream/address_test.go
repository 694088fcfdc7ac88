package paystream_test

import (
	"bytes"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/paystreamtest"
)

// ways is a carrier that notes which way packets with money take.
type ways struct {
	paystream.Carrier
	mu   sync.Mutex
	paid map[string]int
}

func (w *ways) Send(p *paystream.Outgoing) error {
	if p.Amount > 0 {
		w.mu.Lock()
		via := ""
		for _, id := range p.Dest.Via {
			via += string(id) + "/"
		}
		w.paid[via]++
		w.mu.Unlock()
	}
	return w.Carrier.Send(p)
}

func (w *ways) take() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	got := w.paid
	w.paid = make(map[string]int)
	return got
}

// TestReroute: the server pushes along the way that its client told last. Neither a
// recording of an older word, nor one that was overtaken, changes it.
func TestReroute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(1)
		a := start(t, net, 1, nil, nil)
		_, id := keyOf(t, 2)
		b := &party{id: id}
		var err error
		b.Endpoint, err = paystream.Open(t.Context(), paystream.Config{
			Self: id, Key: paystream.ServerKey{2}, Memory: true, Logger: quiet,
			Opened: func(c *paystream.Conn) { b.opened = append(b.opened, c) },
		})
		if err != nil {
			t.Fatal(err)
		}
		b.node = net.Join(id, b.Endpoint, nil)
		out := &ways{Carrier: b.node, paid: make(map[string]int)}
		b.Start(out)
		defer func() { _, _ = a.Close(), b.Close() }()

		u, err := b.Issue(paystream.Grant{Use: paystream.UseAccount, Min: paystream.NoMin, Max: paystream.NoMax, Refunds: true})
		if err != nil {
			t.Fatal(err)
		}
		client, err := a.Dial(t.Context(), u, []peer.ID{"first", "second"}, paystream.Terms{Refunds: true})
		if err != nil {
			t.Fatal(err)
		}
		paid := func(sum int64, want string) {
			t.Helper()
			if err := client.SetLimits(at(sum), at(sum)); err != nil {
				t.Fatal(err)
			}
			if err := client.WaitSettled(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := client.Report().Balance; int64(got) != sum {
				t.Fatalf("balance %d, want %d", got, sum)
			}
			if got := out.take(); len(got) != 1 || got[want] == 0 {
				t.Errorf("money came by %v, want %q", got, want)
			}
		}
		paid(100, "second/first/")

		var mu sync.Mutex // guards tape
		var tape []*paystream.Incoming
		record := func(in *paystream.Incoming) *paystream.Answer {
			cp := *in
			cp.Data, cp.Token = bytes.Clone(in.Data), bytes.Clone(in.Token)
			mu.Lock()
			defer mu.Unlock()
			tape = append(tape, &cp)
			return nil
		}
		net.SetWay(a.id, b.id, paystreamtest.Way{Tamper: record})
		reroute := func(via ...peer.ID) {
			t.Helper()
			if err := client.Reroute(via); err != nil {
				t.Fatal(err)
			}
		}
		reroute("third")
		synctest.Wait()
		paid(200, "third/")

		// One that is overtaken: it leaves first and arrives last.
		net.SetWay(a.id, b.id, paystreamtest.Way{Tamper: record, Delay: 20 * time.Second})
		reroute("slow")
		synctest.Wait()
		net.SetWay(a.id, b.id, paystreamtest.Way{Tamper: record})
		reroute("fifth")
		paid(300, "fifth/")
		time.Sleep(40 * time.Second) // bubble: the slow one arrives
		paid(400, "fifth/")
		mu.Lock()
		played := slices.Clone(tape)
		mu.Unlock()
		if len(played) < 4 {
			t.Fatalf("only %d packets were recorded", len(played))
		}

		for _, in := range slices.Backward(played) {
			b.Packet(in)
		}
		paid(500, "fifth/")
		if to, via := b.opened[0].Way(); to != a.id || !slices.Equal(via, []peer.ID{"fifth"}) {
			t.Errorf("the way back is %q to %q", via, to)
		}
		if err := b.opened[0].Reroute(nil); err == nil {
			t.Error("a server changed its client's way")
		}
	})
}

// TestAssets: each end knows what the other one counts in, also after a restart.
func TestAssets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(1)
		asset := func(code string, scale uint8) func(*paystream.Config) {
			return func(c *paystream.Config) { c.Asset = paystream.Asset{Code: code, Scale: scale} }
		}
		a, b := start(t, net, 1, nil, asset("FIL", 9)), start(t, net, 2, nil, asset("karma", 0))
		defer func() { _, _ = a.Close(), b.Close() }()
		client, server := pairOf(t, a, b)
		if err := client.WaitBalance(t.Context(), -worth); err != nil {
			t.Fatal(err)
		}
		fil, karma := paystream.Asset{Code: "FIL", Scale: 9}, paystream.Asset{Code: "karma"}
		if own, peers := client.Assets(); own != fil || peers != karma {
			t.Errorf("the client knows %v and %v", own, peers)
		}
		if own, peers := server.Assets(); own != karma || peers != fil {
			t.Errorf("the server knows %v and %v", own, peers)
		}
	})
	_, err := paystream.Open(t.Context(), paystream.Config{Memory: true, Asset: paystream.Asset{Code: string(make([]byte, 65))}})
	if err == nil {
		t.Error("an asset code that does not fit a packet")
	}
}
