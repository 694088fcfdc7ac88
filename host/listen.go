package host

import (
	"fmt"

	"github.com/libp2p/go-libp2p"
	mplex "github.com/libp2p/go-libp2p-mplex"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/conngater"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ws "github.com/libp2p/go-libp2p/p2p/transport/websocket"

	"github.com/tallystick/tally/protocols/swapnet"
)

// Connections that the daemon keeps: above connsHigh the least useful are closed
// until connsLow are left. A connection costs 52 to 78 KiB.
const (
	connsLow  = 800
	connsHigh = 1000
)

// UserAgent is what identify tells peers.
const UserAgent = "tally/" + Version

// Version of this program.
const Version = "0.1.0-dev"

// Listen returns a libp2p host as the daemon runs it: TCP, WebSocket and QUIC,
// with libp2p's resource limits and ours, without relay, hole punching or any
// traffic that was not asked for. gater may be nil.
func Listen(key crypto.PrivKey, addrs []string, gater *conngater.BasicConnectionGater) (host.Host, error) {
	limits := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&limits)
	swapnet.ApplyLimits(&limits)
	rm, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.AutoScale()))
	if err != nil {
		return nil, fmt.Errorf("host: resource manager: %w", err)
	}
	cm, err := connmgr.NewConnManager(connsLow, connsHigh)
	if err != nil {
		return nil, fmt.Errorf("host: connection manager: %w", err)
	}
	opts := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.ListenAddrStrings(addrs...),
		libp2p.Transport(tcp.NewTCPTransport), libp2p.Transport(ws.New), libp2p.Transport(quic.NewTransport),
		// Waku's light clients in JavaScript know no other muxer than mplex; every
		// other peer takes yamux, which comes first (ADR 0007).
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport), libp2p.Muxer(mplex.ID, mplex.DefaultTransport),
		libp2p.ResourceManager(rm), libp2p.ConnectionManager(cm),
		libp2p.DisableRelay(), libp2p.DisableMetrics(),
		libp2p.UserAgent(UserAgent),
	}
	if gater != nil {
		opts = append(opts, libp2p.ConnectionGater(gater))
	}
	if len(addrs) == 0 {
		opts = append(opts, libp2p.NoListenAddrs)
	}
	h, err := libp2p.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("host: listen on %v: %w", addrs, err)
	}
	return h, nil
}
