package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/p2p/net/conngater"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/swap"
)

// Times of the HTTP listener. It answers from memory; nothing takes long.
const (
	httpHeaderTimeout = 5 * time.Second
	httpIdleTimeout   = time.Minute
	httpStopWithin    = 2 * time.Second
)

// Daemon is a peer on a repo: its libp2p host, the node and, where configured,
// the HTTP listener. It answers the RPC; serving the RPC is the caller's.
type Daemon struct {
	*API
	host    host.Host
	http    *http.Server // nil where it is off
	failed  chan error   // capacity 1
	closing chan struct{}
}

var _ rpc.Peer = (*Daemon)(nil)

// Start runs a peer with the settings and the identity of an open repo, which
// stays the caller's to close. On an error nothing runs.
func Start(_ context.Context, r *repo.Repo, log *slog.Logger) (_ *Daemon, err error) {
	var undo []func() error
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				err = errors.Join(err, undo[i]())
			}
		}
	}()
	cfg := r.Config()
	nodeCfg, err := nodeConfig(cfg)
	if err != nil {
		return nil, err
	}
	store, err := durable.Open(r.DatastoreDir(), durable.WithLogger(log))
	if err != nil {
		return nil, fmt.Errorf("open the books in %s: %w", r.DatastoreDir(), err)
	}
	undo = append(undo, store.Close)
	gater, err := newGater(store)
	if err != nil {
		return nil, fmt.Errorf("read the block list: %w", err)
	}
	h, err := Listen(r.Identity(), cfg.Listen, gater)
	if err != nil {
		return nil, err
	}
	undo = append(undo, h.Close)
	d := &Daemon{host: h, failed: make(chan error, 1), closing: make(chan struct{}), API: &API{gater: gater, events: rpc.NewEventLog(time.Now()), started: time.Now()}}
	nodeCfg.Logger, nodeCfg.Notify = log, d.notify
	if d.node, err = newNode(h, store, nodeCfg); err != nil {
		return nil, err
	}
	undo[0] = func() error { return nil } // the node closes the store
	undo = append(undo, d.node.Close)
	if cfg.HTTP != "" {
		if err = d.serveHTTP(cfg.HTTP); err != nil {
			return nil, err
		}
	}
	go d.watchStore() // ends with Close
	return d, nil
}

// newGater returns the operator's block list, kept in the store.
func newGater(store *durable.Store) (*conngater.BasicConnectionGater, error) {
	var ds datastore.Datastore = shelf{store: store, prefix: "/blocklist"}
	return conngater.NewBasicConnectionGater(ds)
}

// nodeConfig turns settings into what the parts want.
func nodeConfig(c repo.Config) (Config, error) {
	mode, err := swap.ParseMode(c.Mode)
	if err != nil {
		return Config{}, err
	}
	if mode == swap.ModeHard {
		return Config{}, errors.New("host: mode hard needs a chain adapter, which this version does not have; use mode soft or mock")
	}
	shards := make([]uint32, len(c.Shards))
	for i, s := range c.Shards {
		shards[i] = uint32(s)
	}
	return Config{
		Realm: swap.Realm{Network: c.Network, Genesis: c.NetworkGenesis, Asset: c.Asset},
		Policy: swap.Policy{
			Mode:             mode,
			PaymentThreshold: tally.Amount(c.PaymentThreshold), DisconnectThreshold: tally.Amount(c.DisconnectThreshold),
			EarlyPaymentPercent: uint8(c.EarlyPaymentPercent),
			MinPeerThreshold:    tally.Amount(c.MinPeerThreshold), MaxPeerThreshold: tally.Amount(c.MaxPeerThreshold),
			MaxDebt: tally.Amount(c.MaxDebt), MaxExposure: tally.Amount(c.MaxExposure),
			MaxExposureTotal: tally.Amount(c.MaxExposureTotal), StrangersExposure: tally.Amount(c.StrangersExposure),
		},
		Messages: &MessagesConfig{Cluster: uint32(c.ClusterID), Shards: shards, PubsubTopic: c.PubsubTopic},
	}, nil
}

// Node returns the node.
func (d *Daemon) Node() *Node { return d.node }

// Addrs returns the listen addresses, each with /p2p/<peer id>.
func (d *Daemon) Addrs() []string { return d.node.Addrs() }

// Failed returns a channel that gives the cause once the disk failed and
// nothing is served any more.
func (d *Daemon) Failed() <-chan error { return d.failed }

// watchStore passes a failure of the store on; it ends with it, or with Close.
func (d *Daemon) watchStore() {
	select {
	case <-d.node.store.Broken():
		d.failed <- d.node.store.Failed()
	case <-d.closing:
	}
}

// Close stops the peer: no new work, books saved, connections closed. ctx bounds
// the farewell to whoever is asking over HTTP, never the saving. Call it once.
func (d *Daemon) Close(ctx context.Context) error {
	close(d.closing)
	var errs []error
	if d.http != nil {
		ctx, cancel := context.WithTimeout(ctx, httpStopWithin)
		defer cancel()
		errs = append(errs, d.http.Shutdown(ctx))
	}
	// The node first: its sessions end politely, while the host still carries.
	errs = append(errs, d.node.Close(), d.host.Close())
	return errors.Join(errs...)
}

// serveHTTP answers monitoring: no secrets, no peers, nothing to change.
func (d *Daemon) serveHTTP(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for metrics on %s: %w; choose another address with the key http", addr, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.node.metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := d.node.store.Failed(); err != nil {
			http.Error(w, "the store failed; see the log", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ready\n"))
	})
	d.http = &http.Server{Handler: mux, ReadHeaderTimeout: httpHeaderTimeout, IdleTimeout: httpIdleTimeout}
	go func() { _ = d.http.Serve(l) }() // ends with Shutdown in Close
	return nil
}
