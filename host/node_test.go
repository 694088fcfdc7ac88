package host

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/protocols/storenet"
	"github.com/tallystick/tally/swap"
)

// patience is how long a test waits for what has to happen. Nothing waits for it to
// pass.
const patience = 3 * time.Minute

func newHost(t testing.TB) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func newTestNode(t testing.TB, cfg Config) *Node {
	t.Helper()
	if cfg.Dir == "" && cfg.Datastore == nil {
		cfg.Dir = t.TempDir()
	}
	cfg.Logger = slog.New(slog.DiscardHandler)
	cfg.Messages = &MessagesConfig{}
	n, err := New(newHost(t), cfg)
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

// messageFile is newline-delimited JSON with n messages.
func messageFile(n int) *bytes.Reader {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for i := range n {
		_ = enc.Encode(map[string]any{
			"content_topic": "/tally/1/test/proto", "payload": []byte(fmt.Sprintf("message %d", i)), "timestamp": 1_700_000_000_000_000_000 + int64(i),
		})
	}
	return bytes.NewReader(b.Bytes())
}

func connectNodes(t testing.TB, a, b *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := a.Host().Connect(ctx, peer.AddrInfo{ID: b.Host().ID(), Addrs: b.Host().Addrs()}); err != nil {
		t.Fatal(err)
	}
	for _, way := range []struct{ at, of *Node }{{a, b}, {b, a}} {
		if err := way.at.Book().WaitSession(ctx, way.of.Host().ID()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestQueryIsBookedOnBothSides(t *testing.T) {
	a, b := newTestNode(t, Config{}), newTestNode(t, Config{})
	if _, err := b.Import(context.Background(), messageFile(250), nil); err != nil {
		t.Fatal(err)
	}
	connectNodes(t, a, b)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	got := 0
	res, err := a.Query(ctx, b.Host().ID(), storenet.Query{PageSize: 20}, func(*storenet.Message) error { got++; return nil })
	if err != nil || got != 250 || res.Units != 250 {
		t.Fatalf("got %d messages, booked %d: %v", got, res.Units, err)
	}
	if _, err := a.Book().SettleAndWait(ctx, b.Host().ID()); err != nil {
		t.Fatal(err)
	}
	ra, err := a.Book().Row(b.Host().ID())
	if err != nil {
		t.Fatal(err)
	}
	rb, err := b.Book().Row(a.Host().ID())
	if err != nil {
		t.Fatal(err)
	}
	if ra.Balance != 0 || rb.Balance != 0 || ra.Consumed != 250 || rb.Served != 250 || ra.Paid != 250 || rb.Received != 250 {
		t.Fatalf("client %+v\nserver %+v", ra, rb)
	}
	if ra.LastChequeSent.State != swap.ChequeAcked || rb.LastChequeReceived.Serial != ra.LastChequeSent.Serial {
		t.Fatalf("cheques: %+v, %+v", ra.LastChequeSent, rb.LastChequeReceived)
	}
}
