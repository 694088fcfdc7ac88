// Package bubble gives tests libp2p hosts in a bubble of simulated time, on a network
// that is simulated as well: QUIC over packets that take a latency. Waits cost nothing
// there and times are exact, however busy the machine is.
package bubble

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/x/simlibp2p"
	"github.com/marcopolo/simnet"
)

// Hosts makes hosts on the network of a bubble. Who calls it closes them.
type Hosts func(...libp2p.Option) (host.Host, error)

// Run runs f in a bubble. The latency is one way.
func Run(t *testing.T, latency time.Duration, f func(*testing.T, Hosts)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		wire := &simnet.Simnet{LatencyFunc: simnet.StaticLatency(latency)}
		wire.Start()
		t.Cleanup(wire.Close) // after the hosts, which are made later
		made := 0
		// The simulated network takes one new endpoint at a time. A channel of the
		// bubble is a lock that lets its time go on.
		making := make(chan struct{}, 1)
		link := simnet.LinkSettings{BitsPerSecond: 100 * simlibp2p.OneMbps}
		f(t, func(opts ...libp2p.Option) (host.Host, error) {
			making <- struct{}{}
			defer func() { <-making }()
			made++
			ip := simnet.IntToPublicIPv4(made)
			return libp2p.New(append([]libp2p.Option{
				libp2p.ListenAddrStrings(fmt.Sprintf("/ip4/%s/udp/8000/quic-v1", ip)),
				simlibp2p.QUICSimnet(wire, simnet.NodeBiDiLinkSettings{Downlink: link, Uplink: link}),
				libp2p.DisableIdentifyAddressDiscovery(), libp2p.ResourceManager(&network.NullResourceManager{}),
				libp2p.DisableRelay(), libp2p.DisableMetrics(),
			}, opts...)...)
		})
	})
}
