package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/compat/bridge"
	"github.com/tallystick/tally/paystream/compat/endpoint"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/swap"
)

// ErrNoBridge: the node was made without Config.Bridge.
var ErrNoBridge = errors.New("host: this node does not speak Interledger: set Config.Bridge")

// BridgeConfig turns on Interledger, and with it packets: addresses and endpoints of
// our own, and a door for clients of other implementations.
type BridgeConfig struct {
	// Listen is HOST:PORT for clients that speak BTP over WebSocket. There is no
	// TLS: on anything but a loopback address it belongs behind a proxy that has.
	// Default: no clients; endpoints are reached over the hops.
	Listen string
	// Credit is the most that a client may owe us, and Debt the most that we may
	// owe a client, where AddClient is told nothing else. Default: 0, a client that
	// can do nothing.
	Limits bridge.Limits
}

// Bridge is the Interledger side of a node. All methods may be called at the same
// time.
type Bridge struct {
	*bridge.Bridge
	limits bridge.Limits
	listen net.Listener
	http   *http.Server
}

// Bridge returns the node's Interledger side, or ErrNoBridge.
func (n *Node) Bridge() (*Bridge, error) {
	if n.bridge == nil {
		return nil, ErrNoBridge
	}
	return n.bridge, nil
}

// Limits are those of a client of which nothing else is said.
func (b *Bridge) Limits() bridge.Limits { return b.limits }

// ClientURL is where a client connects with a token; empty without Listen.
func (b *Bridge) ClientURL(name, token string) string {
	if b.listen == nil {
		return ""
	}
	return "btp+ws://" + name + ":" + token + "@" + b.listen.Addr().String()
}

// openBridge reads the bridge's books, before the engine is made.
func (n *Node) openBridge(ctx context.Context, cfg BridgeConfig, rules forward.Rules, realm swap.Realm) error {
	key, err := serverKey(ctx, n.store)
	if err != nil {
		return err
	}
	b, err := bridge.Open(ctx, bridge.Config{
		Self: n.host.ID(), Network: realm.Network, Asset: realm.Asset, Key: key, Rules: rules, Store: n.store, Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.bridge = &Bridge{Bridge: b, limits: cfg.Limits}
	return nil
}

// listenOn lets clients in.
func (b *Bridge) listenOn(listen string) (err error) {
	if listen == "" {
		return nil
	}
	if b.listen, err = net.Listen("tcp", listen); err != nil {
		return fmt.Errorf("listen for bridge clients on %s: %w; choose another address with the key btp_listen", listen, err)
	}
	b.http = &http.Server{Handler: b.Bridge, ReadHeaderTimeout: httpHeaderTimeout, IdleTimeout: httpIdleTimeout}
	go func() { _ = b.http.Serve(b.listen) }() // ends with Close
	return nil
}

// Close ends the bridge, before the engine that carries for it. A second call does
// nothing.
func (b *Bridge) Close() error {
	var err error
	if b.http != nil {
		err = b.http.Close() // those who have upgraded are the bridge's own to end
		b.http = nil
	}
	b.Bridge.Close()
	return err
}

// IssueILP makes an address for Interledger payers that gives its bearers n units'
// worth of a use, over STREAM; one that pays out over PSK2, where the other side can
// ask. The zero time never expires.
func (b *Bridge) IssueILP(g paystream.Grant) (endpoint.Peer, error) {
	kind := bridge.KindStream
	if n, ok := g.Min.Finite(); !ok || n < 0 {
		kind = bridge.KindPSK2
	}
	return b.Issue(kind, g)
}
