package testnet

import (
	"bytes"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	libp2phost "github.com/libp2p/go-libp2p/core/host"

	"github.com/tallystick/tally/internal/bubble"
)

// bubbleLatency is that of the simulated network, one way.
const bubbleLatency = 5 * time.Millisecond

// inBubble runs f in a bubble of simulated time, with a maker of hosts there.
func inBubble(t *testing.T, latency time.Duration, f func(t *testing.T, newHost func(crypto.PrivKey) (libp2phost.Host, error))) {
	t.Helper()
	bubble.Run(t, latency, func(t *testing.T, newHost bubble.Hosts) {
		f(t, func(key crypto.PrivKey) (libp2phost.Host, error) { return newHost(libp2p.Identity(key)) })
	})
}

// A network runs in a bubble as it does on loopback, in simulated time.
func TestNetworkInABubble(t *testing.T) {
	inBubble(t, 5*time.Millisecond, func(t *testing.T, newHost func(crypto.PrivKey) (libp2phost.Host, error)) {
		n, err := NewNetwork(NetworkConfig{Dir: t.TempDir(), Host: newHost})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		addPeers(t, n, PeerConfig{Store: StoreMem}, "a", "b")
		b := must(n.Peer("b"))
		if _, err := must(b.Node()).Import(t.Context(), bytes.NewReader(messageLines(500)), nil); err != nil {
			t.Fatal(err)
		}
		if err := n.Connect(t.Context(), "a", "b"); err != nil {
			t.Fatal(err)
		}
		if _, err := ask(t.Context(), n, "a", "b", 230); err != nil {
			t.Fatal(err)
		}
		ra, _ := agree(t, n, "a", "b")
		if ra.Balance != -30 {
			t.Errorf("%+v", ra)
		}
		begin := time.Now()
		if err := b.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // bubble
		if err := b.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := n.Connect(t.Context(), "a", "b"); err != nil {
			t.Fatal(err)
		}
		agree(t, n, "a", "b")
		if took := time.Since(begin); took < time.Hour || took > time.Hour+time.Minute {
			t.Errorf("an hour took %v", took)
		}
	})
}
