package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/tallystick/tally/paystream/compat/bridge"
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
	// Limits are those of a client where AddClient is told nothing else. Default: 0,
	// a client that can do nothing.
	Limits bridge.Limits
	// PointerListen is HOST:PORT where our payment pointers are answered, without TLS
	// as above. Default: off.
	PointerListen string
}

// Bridge is the Interledger side of a node. All methods may be called at the same
// time.
type Bridge struct {
	*bridge.Bridge
	limits bridge.Limits
	btp    door
	pay    door
}

// door is one HTTP listener.
type door struct {
	listen net.Listener
	http   *http.Server
}

// open answers on an address; without one it does nothing.
func (d *door) open(addr, key string, h http.Handler) (err error) {
	if addr == "" {
		return nil
	}
	if d.listen, err = net.Listen("tcp", addr); err != nil {
		return fmt.Errorf("listen on %s: %w; choose another address with the key %s", addr, err, key)
	}
	d.http = &http.Server{
		Handler: h, ReadHeaderTimeout: httpHeaderTimeout, IdleTimeout: httpIdleTimeout, MaxHeaderBytes: maxHeader,
	}
	go func() { _ = d.http.Serve(d.listen) }() // ends with close
	return nil
}

// close ends it; a second call does nothing.
func (d *door) close() (err error) {
	if d.http != nil {
		err = d.http.Close()
		d.http = nil
	}
	return err
}

// addr is where it listens; empty where it is not open.
func (d *door) addr() string {
	if d.listen == nil {
		return ""
	}
	return d.listen.Addr().String()
}

// maxHeader bounds the header of a request at our doors.
const maxHeader = 8 << 10

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
	if b.btp.listen == nil {
		return ""
	}
	return "btp+ws://" + name + ":" + token + "@" + b.btp.addr()
}

// PointerAddr is where payment pointers are answered; empty without PointerListen.
func (b *Bridge) PointerAddr() string { return b.pay.addr() }

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

// open lets clients and payers in.
func (b *Bridge) open(cfg BridgeConfig) error {
	if err := b.btp.open(cfg.Listen, "btp_listen", b.Bridge); err != nil {
		return err
	}
	return b.pay.open(cfg.PointerListen, "pointer_listen", http.HandlerFunc(b.ServePointer))
}

// Close ends the bridge, before the engine that carries for it. A second call does
// nothing.
func (b *Bridge) Close() error {
	err := errors.Join(b.btp.close(), b.pay.close()) // clients that have upgraded are the bridge's own to end
	b.Bridge.Close()
	return err
}
