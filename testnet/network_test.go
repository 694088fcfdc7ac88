package testnet

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/tallystick/tally/protocols/storenet"
	"github.com/tallystick/tally/swap"
)

func newTestNetwork(t testing.TB, cfg NetworkConfig) *Network {
	t.Helper()
	n, err := NewNetwork(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func addPeers(t testing.TB, n *Network, cfg PeerConfig, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := n.Add(t.Context(), name, cfg); err != nil {
			t.Fatal(err)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func ask(ctx context.Context, n *Network, from, to string, limit int) (storenet.Result, error) {
	node := must(must(n.Peer(from)).Node())
	return node.Query(ctx, must(n.Peer(to)).ID, storenet.Query{Limit: limit}, func(*storenet.Message) error { return nil })
}

func rows(n *Network, a, b string) (swap.Row, swap.Row) {
	pa, pb := must(n.Peer(a)), must(n.Peer(b))
	return must(must(pa.Node()).Book().Row(pb.ID)), must(must(pb.Node()).Book().Row(pa.ID))
}

// agree waits until the two books do.
func agree(t testing.TB, n *Network, a, b string) (swap.Row, swap.Row) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pa, pb := must(n.Peer(a)), must(n.Peer(b))
	for {
		ca, cb := pa.Changed(), pb.Changed()
		ra, rb := rows(n, a, b)
		if Agree(&ra, &rb) {
			return ra, rb
		}
		timer := time.NewTimer(50 * time.Millisecond)
		select {
		case <-ca:
		case <-cb:
		case <-timer.C: // a save or a booking has no notice
		case <-ctx.Done():
			t.Fatalf("the books differ:\n%+v\n%+v", ra, rb)
		}
		timer.Stop()
	}
}

func TestKilledPeerComesBack(t *testing.T) {
	for _, kind := range []StoreKind{StorePebble, StoreCrash, StoreMem} {
		for _, victim := range []string{"a", "b"} {
			t.Run(fmt.Sprintf("%s %s", kind, victim), func(t *testing.T) {
				n := newTestNetwork(t, NetworkConfig{})
				addPeers(t, n, PeerConfig{Store: kind}, "a", "b")
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
				defer cancel()
				b := must(n.Peer("b"))
				if _, err := must(b.Node()).Import(ctx, bytes.NewReader(messageLines(500)), nil); err != nil {
					t.Fatal(err)
				}
				if err := n.Connect(ctx, "a", "b"); err != nil {
					t.Fatal(err)
				}
				if _, err := ask(ctx, n, "a", "b", 230); err != nil {
					t.Fatal(err)
				}
				agree(t, n, "a", "b")
				p := must(n.Peer(victim))
				if err := p.Kill(ctx); err != nil {
					t.Fatal(err)
				}
				if err := p.Start(ctx); err != nil {
					t.Fatal(err)
				}
				if err := n.Connect(ctx, "a", "b"); err != nil {
					t.Fatal(err)
				}
				ra, rb := agree(t, n, "a", "b")
				t.Logf("a %d consumed %d paid %d unanswered %d, b forgiven %d", ra.Balance, ra.Consumed, ra.Paid, ra.Unanswered, rb.Forgiven)
				if ra.Paid != 200 || rb.Received != 200 || rb.Forgiven > 25 {
					t.Errorf("a %+v\nb %+v", ra, rb)
				}
				if _, err := ask(ctx, n, "a", "b", 300); err != nil {
					t.Fatal(err)
				}
				agree(t, n, "a", "b")
			})
		}
	}
}

func TestFiftyPeersStartSoon(t *testing.T) {
	n := newTestNetwork(t, NetworkConfig{})
	begin := time.Now()
	if err := n.AddMany(t.Context(), "p", 50, PeerConfig{Store: StoreMem}); err != nil {
		t.Fatal(err)
	}
	t.Logf("50 peers in %v", time.Since(begin))
}
