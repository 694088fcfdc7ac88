package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/ipfs/go-datastore"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/host/settler"
	"github.com/tallystick/tally/host/signer"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych/lotus"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/paystream/payments"
	"github.com/tallystick/tally/protocols/packetnet"
	"github.com/tallystick/tally/protocols/storenet"
	"github.com/tallystick/tally/protocols/swapnet"
	"github.com/tallystick/tally/swap"
)

// openWithin bounds the reading of the books at the start.
const openWithin = 5 * time.Minute

// Config is what a node needs beside its libp2p host. One of Dir and Datastore
// is required; the zero value of everything else has a default.
type Config struct {
	// Dir is a folder for the books, made where it is missing. One process at a
	// time may use it.
	Dir string
	// Datastore is used instead of Dir. It has to be durable after Sync, and the
	// node owns and closes it.
	Datastore datastore.Batching
	// Realm is what cheques are bound to. Default: network "tally", asset
	// "karma". Only peers of the same realm settle with each other.
	Realm swap.Realm
	// Policy holds thresholds and mode. Default: swap.DefaultPolicy.
	Policy swap.Policy
	// Chain turns on payment channels, and mode hard where Policy names none: each
	// cheque carries a voucher of a channel. Realm is then that of the chain.
	// Default: off.
	Chain *ChainConfig
	// Settler backs cheques in another way; required in mode hard without Chain.
	Settler swap.Settler
	// PayoutAddress is where cheques of the seed's protocol may be made out to,
	// beside our peer id. Default: none.
	PayoutAddress string
	// Messages serves and queries a Waku message store. Default: off.
	Messages *MessagesConfig
	// Packets carries hash-locked packets between neighbours, for a fee. Default:
	// off, but on with Sockets, Payments, Holds and Bridge.
	Packets *PacketsConfig
	// Locks carries what is too large for a tab, under locks of the channels that settle
	// the tabs. Default: off. It is on with Chain where the chain has room for locks.
	Locks *LocksConfig
	// Sockets pays and is paid end to end, over any neighbours. Default: off.
	Sockets *SocketsConfig
	// Payments pays invoices in parts over several ways, and takes such payments.
	// Default: off.
	Payments *PaymentsConfig
	// Holds pays payees that are offline, is paid so, and holds for others. Default:
	// off.
	Holds *HoldsConfig
	// Bridge speaks Interledger with whoever is under its addresses. Default: off.
	Bridge *BridgeConfig
	// Notify is called on what happens to tabs. It must return soon.
	Notify func(swap.Notice)
	// Logger default: slog.Default.
	Logger *slog.Logger

	ground *lockGround // nil where nothing settles on a chain
}

// ChainConfig is the chain of an embedded node.
type ChainConfig struct {
	// URL of a node's JSON-RPC, Lotus' or a devnet's, and its bearer token.
	URL   string
	Token lotus.Token
	// Keys is a folder for the keystore, made where it is missing. It belongs to
	// one chain. Default: Config.Dir with -keys at its end, beside the books.
	Keys string
	// Finality is after how many epochs what is on the chain counts as final.
	// Default: what a devnet says, and 900 elsewhere.
	Finality abi.ChainEpoch
	// Settler has the caps on what is locked, and the cash-out policy.
	Settler settler.Config
}

// MessagesConfig turns on the metered message store.
type MessagesConfig struct {
	// Cluster and Shards are told to light clients. Default: cluster 1, shards
	// 0 to 7.
	Cluster uint32
	Shards  []uint32
	// PubsubTopic is given to messages that name none; AutoTopic chooses the
	// shard by the content topic. Default: AutoTopic.
	PubsubTopic string
	// Limits bound what peers may ask. Default: storenet.DefaultLimits.
	Limits storenet.Limits
}

// Node is tallystick on one libp2p host. All methods may be called at the same
// time.
type Node struct {
	host    host.Host
	log     *slog.Logger
	store   *durable.Store
	book    *swap.Book
	swap    *swapnet.Service
	metrics *prometheus.Registry

	chain   *chain             // nil without Config.Chain; a daemon has its own
	engine  *forward.Engine    // nil without Config.Packets, as the next
	packets *packetnet.Service // carries for the engine
	sockets *Sockets           // nil without Config.Sockets
	bridge  *Bridge            // nil without Config.Bridge
	routes  map[peer.ID]peer.ID
	locks   *Locks // nil where nothing settles on a chain, and noLocks says so
	noLocks string

	payments *payments.Service // nil without Config.Payments, as the rest
	parts    *partCarrier
	curve    *signer.Curve
	holds    *holds // nil without Config.Holds
	ways     *ways
	rules    forward.Rules
	// Adverts, what serves and pulls them, and the goroutine that does.
	adverts    *adverts
	pulls      *packetnet.Routes
	stopSpread context.CancelFunc
	spreading  sync.WaitGroup

	messages *storenet.Store // nil without Config.Messages, as the next two
	server   *storenet.Server
	client   *storenet.Client
	topic    storenet.Topic
}

// ErrNoMessages: the node was made without Config.Messages.
var ErrNoMessages = errors.New("host: this node has no message store")

// New opens the books in cfg and keeps tabs with the peers of h from then on. h
// stays the caller's: Close leaves it open.
func New(h host.Host, cfg Config) (*Node, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	store, err := openStore(cfg)
	if err != nil {
		return nil, err
	}
	var c *chain
	if cfg.Chain != nil {
		if c, err = cfg.openChain(store); err != nil {
			return nil, errors.Join(err, store.Close())
		}
		if cfg.Payments != nil {
			pay := *cfg.Payments
			pay.chain = c
			cfg.Payments = &pay
		}
	}
	n, err := newNode(h, store, cfg)
	if err != nil {
		if c != nil {
			err = errors.Join(err, c.settler.Close(), c.close())
		}
		return nil, errors.Join(err, store.Close())
	}
	if c != nil {
		n.chain = c
		c.settler.Start(n.book)
	}
	return n, nil
}

// openChain opens the channels of an embedded node and makes cfg settle on them.
func (cfg *Config) openChain(store *durable.Store) (*chain, error) {
	set := chainSettings{keys: cfg.Chain.Keys, wallet: repo.WalletLocal, finality: cfg.Chain.Finality}
	if set.keys == "" {
		if cfg.Dir == "" {
			return nil, errors.New("host: no place for the keys: set Config.Chain.Keys to a folder")
		}
		set.keys = cfg.Dir + "-keys"
	}
	ctx, cancel := context.WithTimeout(context.Background(), openWithin)
	defer cancel()
	c := newChain(repo.ChainNode{URL: cfg.Chain.URL, Token: cfg.Chain.Token, From: "Config.Chain"})
	if err := c.open(ctx, set, store, c.told, cfg.Logger); err != nil {
		return nil, err
	}
	backs := cfg.Chain.Settler
	if backs.Logger == nil {
		backs.Logger = cfg.Logger
	}
	s, err := c.openSettler(ctx, store, backs)
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	cfg.Settler, cfg.Realm, cfg.PayoutAddress = s, c.realm(), c.facts.Payout.String()
	if cfg.Holds != nil && cfg.Holds.Channels == nil {
		holds := *cfg.Holds
		holds.Channels = c.vouchers()
		cfg.Holds = &holds
	}
	if cfg.Policy.Mode == swap.ModeUnset {
		cfg.Policy.Mode = swap.ModeHard
	}
	if cfg.Locks == nil {
		cfg.Locks = new(LocksConfig)
	}
	if cfg.Policy.Mode == swap.ModeHard {
		cfg.ground = c.lockGround()
	}
	return c, nil
}

// Channels returns the payment channels of a node with Config.Chain; nil without.
func (n *Node) Channels() *rpc.Channels {
	if n.chain == nil {
		return nil
	}
	return n.chain.channels()
}

// Settler returns what backs the cheques of a node with Config.Chain; nil without.
func (n *Node) Settler() *settler.Settler {
	if n.chain == nil {
		return nil
	}
	return n.chain.settler
}

// Payout returns where a node with Config.Chain is paid and pays from; undefined
// without.
func (n *Node) Payout() address.Address {
	if n.chain == nil {
		return address.Undef
	}
	return n.chain.facts.Payout
}

func openStore(cfg Config) (*durable.Store, error) {
	switch {
	case cfg.Dir == "" && cfg.Datastore == nil:
		return nil, errors.New("host: no place for the books: set Config.Dir to a folder, or Config.Datastore")
	case cfg.Dir != "" && cfg.Datastore != nil:
		return nil, errors.New("host: Config.Dir and Config.Datastore are both set: choose one")
	case cfg.Datastore != nil:
		s := durable.New(cfg.Datastore, durable.WithLogger(cfg.Logger))
		ctx, cancel := context.WithTimeout(context.Background(), openWithin)
		defer cancel()
		if err := s.EnsureSchema(ctx); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		return s, nil
	default:
		return durable.Open(cfg.Dir, durable.WithLogger(cfg.Logger))
	}
}

// newNode joins the parts on an open store, which is closed by Close and, on an
// error here, by the caller.
func newNode(h host.Host, store *durable.Store, cfg Config) (_ *Node, err error) {
	key := h.Peerstore().PrivKey(h.ID())
	if key == nil {
		return nil, errors.New("host: the libp2p host keeps no private key in its peerstore, and cheques have to be signed")
	}
	if cfg.Realm.Network == "" {
		cfg.Realm.Network = "tally"
	}
	ctx, cancel := context.WithTimeout(context.Background(), openWithin)
	defer cancel()
	n := &Node{host: h, log: cfg.Logger, store: store}
	n.book, err = swap.Open(ctx, store, swap.Config{
		Key: key, Realm: cfg.Realm, Policy: cfg.Policy, Notify: cfg.Notify, Logger: cfg.Logger,
		Settler: cfg.Settler, PayoutAddress: cfg.PayoutAddress,
		KeyOf: func(p peer.ID) (crypto.PubKey, error) {
			if k := h.Peerstore().PubKey(p); k != nil {
				return k, nil
			}
			return p.ExtractPublicKey()
		},
	})
	if err != nil {
		return nil, err
	}
	undo := []func() error{n.book.Close}
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				err = errors.Join(err, undo[i]())
			}
		}
	}()
	if n.swap, err = swapnet.New(h, n.book, swapnet.Config{Logger: cfg.Logger}); err != nil {
		return nil, err
	}
	n.book.Bind(n.swap)
	undo = append(undo, n.swap.Close)
	if cfg.Messages != nil {
		if err = n.openMessages(ctx, *cfg.Messages); err != nil {
			return nil, fmt.Errorf("host: message store: %w", err)
		}
	}
	if cfg.Holds != nil && cfg.Holds.Channels != nil {
		// Before the first cheque can come, which might take what was promised.
		if err = hold.KeepRoom(ctx, store, h.ID(), cfg.Holds.Channels, cfg.Logger); err != nil {
			return nil, err
		}
	}
	if err = n.swap.Start(); err != nil {
		return nil, err
	}
	if cfg.Packets == nil && (cfg.Sockets != nil || cfg.Payments != nil || cfg.Holds != nil || cfg.Bridge != nil) {
		cfg.Packets = &PacketsConfig{}
	}
	if cfg.Packets != nil {
		undo = append(undo, n.closePackets)
		if err = n.openPackets(ctx, cfg); err != nil {
			return nil, fmt.Errorf("host: packets: %w", err)
		}
	}
	n.metrics = newMetrics(n)
	return n, nil
}

// Close ends the services, saves the books and closes their store. The libp2p
// host stays open.
func (n *Node) Close() error {
	errs := []error{n.closePackets()} // before what settles the tabs it books on
	if n.chain != nil {
		errs = append(errs, n.chain.settler.Close())
	}
	errs = append(errs, n.closeParts())
	if n.chain != nil {
		errs = append(errs, n.chain.close())
	}
	return errors.Join(append(errs, n.store.Close())...)
}

// closeParts is Close without the store, which others may still need.
func (n *Node) closeParts() error {
	errs := []error{n.closePackets()}
	if n.server != nil {
		errs = append(errs, n.server.Close())
	}
	errs = append(errs, n.swap.Close(), n.book.Close())
	return errors.Join(errs...)
}

// Host returns the libp2p host.
func (n *Node) Host() host.Host { return n.host }

// Book returns the tabs: Reserve and Commit for a service of your own, Rows for
// the figures.
func (n *Node) Book() *swap.Book { return n.book }

// Meter returns the host with the services of rules metered on the node's tabs.
// Set their handlers on, and open their streams from, the returned host.
func (n *Node) Meter(rules ...swap.Rule) host.Host {
	return swap.WrapHost(n.host, n.book, rules...)
}

// Metrics returns the node's own registry.
func (n *Node) Metrics() *prometheus.Registry { return n.metrics }
