package testnet

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	libp2phost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/x/simlibp2p"
	"github.com/marcopolo/simnet"
)

// bubbleLatency is that of the simulated network, one way.
const bubbleLatency = 5 * time.Millisecond

// inBubble runs f in a bubble of simulated time, with a maker of hosts on a
// simulated network: QUIC over packets that take latency. Waits cost nothing
// there.
func inBubble(t *testing.T, latency time.Duration, f func(t *testing.T, newHost func(crypto.PrivKey) (libp2phost.Host, error))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		wire := &simnet.Simnet{LatencyFunc: simnet.StaticLatency(latency)}
		wire.Start()
		defer wire.Close()
		var made atomic.Int32
		link := simnet.LinkSettings{BitsPerSecond: 100 * simlibp2p.OneMbps}
		f(t, func(key crypto.PrivKey) (libp2phost.Host, error) {
			ip := simnet.IntToPublicIPv4(int(made.Add(1)))
			return libp2p.New(
				libp2p.Identity(key), libp2p.ListenAddrStrings(fmt.Sprintf("/ip4/%s/udp/8000/quic-v1", ip)),
				simlibp2p.QUICSimnet(wire, simnet.NodeBiDiLinkSettings{Downlink: link, Uplink: link}),
				libp2p.DisableIdentifyAddressDiscovery(), libp2p.ResourceManager(&network.NullResourceManager{}),
				libp2p.DisableRelay(), libp2p.DisableMetrics(),
			)
		})
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
