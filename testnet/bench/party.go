package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/protocols/swapnet"
	"github.com/tallystick/tally/swap"
)

// service is the name under which all benchmarks book.
const service = "bench"

// sessionWithin bounds the wait for a session on loopback.
const sessionWithin = time.Minute

// transport is one of the two that the goals name.
type transport string

const (
	overTCP  transport = "tcp"
	overQUIC transport = "quic"
)

// wide is the policy of the throughput goals: one settlement in a million units.
// No cap on exposure stands in the way, because a benchmark's peers have no
// history.
func wide() swap.Policy {
	return uncapped(swap.Policy{PaymentThreshold: 1_000_000, DisconnectThreshold: 1_250_000})
}

// uncapped lifts what bounds many peers together, and leaves the thresholds.
func uncapped(p swap.Policy) swap.Policy {
	const all = 1 << 59
	p.StrangersExposure, p.MaxExposureTotal = all, all
	return p
}

// party is one peer: a real host, and mostly a book and a swap service.
type party struct {
	host  host.Host
	book  *swap.Book
	swap  *swapnet.Service
	store *durable.Store
}

// partyConfig says what a party has.
type partyConfig struct {
	transport transport
	policy    swap.Policy
	// store of the book; nil for a bare host.
	store *durable.Store
	// dialler does not listen.
	dialler bool
}

// newParty starts a host, and with a store a book; the swap service is made and
// not started. The party owns the store.
func newParty(ctx context.Context, c partyConfig) (_ *party, err error) {
	p := &party{store: c.store}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	key, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		return nil, err
	}
	if p.host, err = newHost(key, c); err != nil {
		return nil, err
	}
	if c.store == nil {
		return p, nil
	}
	if p.book, err = newBook(ctx, c.store, key, c.policy); err != nil {
		return nil, err
	}
	if p.swap, err = swapnet.New(p.host, p.book, swapnet.Config{}); err != nil {
		return nil, err
	}
	p.book.Bind(p.swap)
	return p, nil
}

func newBook(ctx context.Context, store *durable.Store, key crypto.PrivKey, policy swap.Policy) (*swap.Book, error) {
	return swap.Open(ctx, store, swap.Config{
		Key: key, Policy: policy, Realm: swap.Realm{Network: "bench"},
		Logger: slog.New(slog.DiscardHandler),
	})
}

// newHost is a libp2p host with one transport and without the services that a
// node on loopback has no use for. Its connections are neither trimmed nor
// limited: the benchmark decides how many there are.
func newHost(key crypto.PrivKey, c partyConfig) (host.Host, error) {
	unlimited, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits))
	if err != nil {
		return nil, err
	}
	options := []libp2p.Option{
		libp2p.Identity(key), libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.Ping(false),
		libp2p.DisableIdentifyAddressDiscovery(), libp2p.ResourceManager(unlimited),
		libp2p.ConnectionManager(connmgr.NullConnMgr{}),
	}
	listen := "/ip4/127.0.0.1/tcp/0"
	if c.transport == overQUIC {
		options = append(options, libp2p.Transport(quic.NewTransport))
		listen = "/ip4/127.0.0.1/udp/0/quic-v1"
	} else {
		options = append(options, libp2p.Transport(tcp.NewTCPTransport),
			libp2p.Security(noise.ID, noise.New), libp2p.Muxer(yamux.ID, yamux.DefaultTransport))
	}
	if c.dialler {
		options = append(options, libp2p.NoListenAddrs)
	} else {
		options = append(options, libp2p.ListenAddrStrings(listen))
	}
	return libp2p.New(options...)
}

// close ends what there is, in order.
func (p *party) close() error {
	if p == nil {
		return nil
	}
	var errs []error
	if p.swap != nil {
		errs = append(errs, p.swap.Close())
	}
	if p.host != nil {
		errs = append(errs, p.host.Close())
	}
	if p.book != nil {
		errs = append(errs, p.book.Close())
	}
	if p.store != nil {
		errs = append(errs, p.store.Close())
	}
	return errors.Join(errs...)
}

func (p *party) id() peer.ID { return p.host.ID() }

// dial connects to a party that listens.
func (p *party) dial(ctx context.Context, to *party) error {
	return p.host.Connect(ctx, peer.AddrInfo{ID: to.id(), Addrs: to.host.Addrs()})
}

// meet dials and waits for the session on both sides.
func (p *party) meet(ctx context.Context, to *party) error {
	ctx, cancel := context.WithTimeout(ctx, sessionWithin)
	defer cancel()
	if err := p.dial(ctx, to); err != nil {
		return err
	}
	if err := p.book.WaitSession(ctx, to.id()); err != nil {
		return fmt.Errorf("session of the dialler: %w", err)
	}
	if err := to.book.WaitSession(ctx, p.id()); err != nil {
		return fmt.Errorf("session of the listener: %w", err)
	}
	return nil
}

// newStream opens a stream on the connection that is there.
func (p *party) newStream(ctx context.Context, to *party, h network.StreamHandler) (network.Stream, error) {
	to.host.SetStreamHandler(protocolFlow, h)
	return p.host.NewStream(network.WithNoDial(ctx, "the parties have met"), to.id(), protocolFlow)
}

// newPair starts two parties with a session between them, whose books lie on
// disk below dir. The first one dials.
func newPair(ctx context.Context, dir string, policy swap.Policy) (a, b *party, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close(), b.close())
		}
	}()
	for i, p := range [...]**party{&a, &b} {
		store, err := openDisk(filepath.Join(dir, string(rune('a'+i))))
		if err != nil {
			return nil, nil, err
		}
		if *p, err = newParty(ctx, partyConfig{transport: overTCP, policy: policy, store: store}); err != nil {
			return nil, nil, err
		}
		if err := (*p).swap.Start(); err != nil {
			return nil, nil, err
		}
	}
	return a, b, a.meet(ctx, b)
}

// openDisk opens a store on disk without the engine's chatter.
func openDisk(dir string, opts ...durable.Option) (*durable.Store, error) {
	return durable.Open(dir, append(opts, durable.WithLogger(slog.New(slog.DiscardHandler)))...)
}

// noDisk is a store that takes everything and keeps nothing.
func noDisk() *durable.Store {
	return durabletest.NewMem(durable.WithCommitHook(func(func() error) error { return nil }))
}

// crowd starts n diallers that all know hub, several at a time.
func crowd(ctx context.Context, n int, c partyConfig, store func(i int) *durable.Store) ([]*party, error) {
	list := make([]*party, n)
	err := each(n, 8, func(i int) (err error) {
		c := c
		c.dialler = true
		if store != nil {
			c.store = store(i)
		}
		list[i], err = newParty(ctx, c)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, disperse(list))
	}
	return list, nil
}

// disperse closes a crowd.
func disperse(list []*party) error {
	return each(len(list), 8, func(i int) error { return list[i].close() })
}

// each calls fn for 0 to n-1 on some goroutines, and joins the errors.
func each(n, goroutines int, fn func(i int) error) error {
	var (
		wg   sync.WaitGroup
		next = make(chan int)
		errs = make([]error, n)
	)
	for range min(n, goroutines) {
		wg.Go(func() { // ends when next is closed
			for i := range next {
				errs[i] = fn(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}
