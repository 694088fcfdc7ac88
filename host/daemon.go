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
	"github.com/tallystick/tally/host/locker"
	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/lotus"
	"github.com/tallystick/tally/paystream/compat/bridge"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/swap"
)

// Times of the HTTP listener. It answers from memory; nothing takes long.
const (
	httpHeaderTimeout = 5 * time.Second
	httpIdleTimeout   = time.Minute
	httpStopWithin    = 2 * time.Second
)

// Daemon is a peer on a repo: its libp2p host, the node and, where configured,
// payment channels on a chain and the HTTP listener. It answers the RPC; serving
// the RPC is the caller's.
type Daemon struct {
	*API
	host    host.Host
	http    *http.Server // nil where it is off
	dev     *devChain    // nil without StartConfig.Dev
	failed  chan error   // capacity 1
	closing chan struct{}
}

var _ rpc.Peer = (*Daemon)(nil)

// StartConfig is what a peer is told beside its repo.
type StartConfig struct {
	Logger *slog.Logger // default slog.Default()
	// Chain is the node of its chain; the zero value is none.
	Chain repo.ChainNode
	// Dev runs an embedded chain in the repo, and fills the peer's wallet.
	Dev bool
}

// devChain is the embedded chain of a throw-away peer.
type devChain struct {
	*Devnet
	folder *repo.Devnet
}

func startDevChain(ctx context.Context, r *repo.Repo, log *slog.Logger) (*devChain, repo.ChainNode, error) {
	folder, err := repo.OpenDevnet(r.DevnetDir())
	if err != nil {
		return nil, repo.ChainNode{}, err
	}
	d, err := StartDevnet(ctx, folder, DevnetConfig{Logger: log})
	if err != nil {
		return nil, repo.ChainNode{}, errors.Join(err, folder.Close())
	}
	return &devChain{d, folder}, repo.ChainNode{URL: d.info.RPC, Token: lotus.Token(folder.Token().Reveal()), From: "--dev"}, nil
}

// Close ends the chain and gives its folder free.
func (d *devChain) Close(ctx context.Context) error {
	return errors.Join(d.Devnet.Close(ctx), d.folder.Close())
}

// Start runs a peer with the settings and the identity of an open repo, which
// stays the caller's to close. ctx bounds the start alone. On an error nothing
// runs.
func Start(ctx context.Context, r *repo.Repo, start StartConfig) (_ *Daemon, err error) {
	log := start.Logger
	if log == nil {
		log = slog.Default()
	}
	var undo []func() error
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				err = errors.Join(err, undo[i]())
			}
		}
	}()
	cfg := r.Config()
	if start.Dev && start.Chain.URL != "" {
		return nil, refuse("leave out one of the two", "--dev has a chain of its own, and %s names another", start.Chain.From)
	}
	nodeCfg, err := nodeConfig(cfg, start.Dev || start.Chain.URL != "")
	if err != nil {
		return nil, err
	}
	d := &Daemon{failed: make(chan error, 1), closing: make(chan struct{}), API: &API{events: rpc.NewEventLog(time.Now()), started: time.Now()}}
	if start.Dev {
		if d.dev, start.Chain, err = startDevChain(ctx, r, log); err != nil {
			return nil, err
		}
		undo = append(undo, func() error { return d.dev.Close(context.Background()) })
	}
	store, err := durable.Open(r.DatastoreDir(), durable.WithLogger(log))
	if err != nil {
		return nil, fmt.Errorf("open the books in %s: %w", r.DatastoreDir(), err)
	}
	undo = append(undo, store.Close)
	if d.gater, err = newGater(store); err != nil {
		return nil, fmt.Errorf("read the block list: %w", err)
	}
	if err = d.openChain(ctx, r, store, start, log); err != nil {
		return nil, err
	}
	if d.chain != nil {
		undo = append(undo, d.chain.close)
	}
	if d.host, err = Listen(r.Identity(), cfg.Listen, d.gater); err != nil {
		return nil, err
	}
	undo = append(undo, d.host.Close)
	nodeCfg.Logger, nodeCfg.Notify, nodeCfg.Sockets.Opened = log, d.notify, d.socketOpened
	if nodeCfg.Policy.Mode == swap.ModeHard {
		if nodeCfg.Settler, err = d.chain.openSettler(ctx, store, settlerConfig(cfg, log)); err != nil {
			return nil, err
		}
		nodeCfg.Realm, nodeCfg.PayoutAddress = d.chain.realm(), d.chain.facts.Payout.String()
		nodeCfg.ground = d.chain.lockGround()
		undo = append(undo, d.chain.settler.Close)
	}
	nodeCfg.Payments.Traded = d.traded
	if d.chain != nil {
		nodeCfg.Payments.chain = d.chain
		nodeCfg.Holds.Channels = d.chain.vouchers()
	}
	if d.node, err = newNode(d.host, store, nodeCfg); err != nil {
		return nil, err
	}
	if d.chain != nil {
		d.node.metrics.MustRegister(newChainCollector(d.chain))
	}
	undo = append(undo, d.node.closeParts)
	if d.chain != nil && d.chain.settler != nil {
		d.settler = d.chain.settler
		d.settler.Start(d.node.book)
	}
	if cfg.HTTP != "" {
		if err = d.serveHTTP(cfg.HTTP); err != nil {
			return nil, err
		}
	}
	go d.watchStore() // ends with Close
	return d, nil
}

// openChain opens the payment channels where a chain is configured.
func (d *Daemon) openChain(ctx context.Context, r *repo.Repo, store *durable.Store, start StartConfig, log *slog.Logger) (err error) {
	if start.Chain.URL == "" {
		return withoutChain(ctx, store)
	}
	d.chain = newChain(start.Chain)
	if err = d.chain.open(ctx, settingsOf(r), store, d.notifyChain, log); err != nil {
		d.chain = nil
		return err
	}
	d.channels = d.chain.channels()
	if start.Dev {
		if err = d.chain.fund(ctx); err != nil {
			return errors.Join(fmt.Errorf("fill the wallet: %w", err), d.chain.close())
		}
	}
	return nil
}

// notifyChain keeps what happens to channels for EventsSince.
func (d *Daemon) notifyChain(n paych.Notice) {
	fields := map[string]any{"channel": addressText(n.Channel)}
	if n.Cid.Defined() {
		fields["cid"] = n.Cid.String()
	}
	if n.Final != nil {
		fields["to_payee"], fields["to_payer"] = n.Final.ToSend.String(), n.Final.Rest.String()
	}
	// A secret is money until everybody knows it, and this log is read by all who
	// hold a token.
	d.events.Append(time.Now(), "channel "+string(n.Kind), "", fields)
	d.chain.told(n)
}

// newGater returns the operator's block list, kept in the store.
func newGater(store *durable.Store) (*conngater.BasicConnectionGater, error) {
	var ds datastore.Datastore = shelf{store: store, prefix: "/blocklist"}
	return conngater.NewBasicConnectionGater(ds)
}

// advertiseOf is what the setting says, which was checked.
func advertiseOf(word string) Advertise {
	switch word {
	case repo.AdvertiseChannels:
		return AdvertiseChannels
	case repo.AdvertiseNothing:
		return AdvertiseNothing
	default:
		return AdvertiseTabs
	}
}

// nodeConfig turns settings into what the parts want.
func nodeConfig(c repo.Config, hasChain bool) (Config, error) {
	mode, err := swap.ParseMode(c.ModeFor(hasChain))
	if err != nil {
		return Config{}, err
	}
	if mode == swap.ModeHard && !hasChain {
		return Config{}, refuse("tally start --chain URL, or tally start --dev", "mode hard settles on a chain, and none is configured")
	}
	routes, err := repo.ParseRoutes(c.Routes)
	if err != nil {
		return Config{}, err
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
		Packets:  &PacketsConfig{Rules: forward.Rules{FeeBase: tally.Amount(c.FeeBase), FeePPM: uint32(c.FeePPM)}, Routes: routes},
		Sockets:  &SocketsConfig{PushMax: tally.Amount(c.SocketPushMax), PerPeer: int(c.SocketsPerPeer)},
		Payments: &PaymentsConfig{Advertise: advertiseOf(c.Advertise)},
		Locks: &LocksConfig{
			Off: c.Locks == repo.LocksOff, Required: c.Locks == repo.LocksRequired,
			Times: locker.Config{Grace: int64(c.LockGrace), Margin: int64(c.LockMargin)},
		},
		Holds: &HoldsConfig{Policy: hold.Policy{
			Offer: c.HoldMaxHours > 0, MaxTime: time.Duration(c.HoldMaxHours) * time.Hour, MaxPayer: tally.Amount(c.HoldMaxPayer),
			PriceBase: tally.Amount(c.HoldPriceBase), PricePPM: uint32(c.HoldPricePPM),
		}},
		Bridge: &BridgeConfig{
			Listen: c.BTPListen, Limits: bridge.Limits{Credit: tally.Amount(c.BridgeCredit), Debt: tally.Amount(c.BridgeDebt)},
			PointerListen: c.PointerListen,
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

// watchStore passes a failure of the store or of the dev chain on; it ends with
// it, or with Close.
func (d *Daemon) watchStore() {
	var dev <-chan error
	if d.dev != nil {
		dev = d.dev.Failed()
	}
	select {
	case <-d.node.store.Broken():
		d.failed <- d.node.store.Failed()
	case err := <-dev:
		d.failed <- err
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
	// The services first: their sessions end politely, while the host still
	// carries. What books on the tabs goes before what settles them. Then the
	// channels, and when nobody writes any more the store.
	errs = append(errs, d.node.closePackets())
	if d.settler != nil {
		errs = append(errs, d.settler.Close())
	}
	errs = append(errs, d.node.closeParts())
	if d.chain != nil {
		errs = append(errs, d.chain.close())
	}
	errs = append(errs, d.node.store.Close(), d.host.Close())
	if d.dev != nil {
		errs = append(errs, d.dev.Close(ctx))
	}
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
