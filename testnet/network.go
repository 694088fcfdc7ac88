package testnet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	libp2phost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/swap"
)

// stopWithin bounds the wait for other peers to see that one is gone.
const stopWithin = 20 * time.Second

var (
	// ErrNoPeer: no peer of that name.
	ErrNoPeer = errors.New("testnet: no such peer")
	// ErrDown: the peer is stopped or killed.
	ErrDown = errors.New("testnet: the peer is down; restart it first")
	// ErrUp: the peer runs.
	ErrUp = errors.New("testnet: the peer runs; stop or kill it first")
)

// NetworkConfig of NewNetwork. The zero value is a network on loopback.
type NetworkConfig struct {
	// Dir holds the stores of kind StorePebble, each in a folder of its own,
	// and is the caller's to remove. Default: a temporary folder that Close
	// removes.
	Dir string
	// Realm of all peers. Default as host.Config.
	Realm swap.Realm
	// Host makes the libp2p host of a peer, also when it is started again.
	// Default: TCP and Noise on 127.0.0.1.
	Host func(key crypto.PrivKey) (libp2phost.Host, error)
	// Logger of all peers. Default: none.
	Logger *slog.Logger
}

// PeerConfig is how one peer differs from the defaults.
type PeerConfig struct {
	// Policy default: swap.DefaultPolicy.
	Policy swap.Policy
	// Store default: StorePebble.
	Store StoreKind
	// Key default: a new one.
	Key crypto.PrivKey
	// NoMessages leaves out the message store.
	NoMessages bool
}

// Network is a number of peers in this process. All methods may be called at the
// same time; what is done to one peer is done one at a time.
type Network struct {
	cfg     NetworkConfig
	ownsDir bool

	// mu guards the fields below.
	mu      sync.Mutex
	peers   map[string]*Peer
	names   []string      // in the order of Add
	changed chan struct{} // closed and renewed at each notice of any peer
}

// NewNetwork returns a network without peers.
func NewNetwork(cfg NetworkConfig) (*Network, error) {
	n := &Network{cfg: cfg, peers: make(map[string]*Peer), changed: make(chan struct{})}
	if cfg.Logger == nil {
		n.cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Host == nil {
		n.cfg.Host = loopbackHost
	}
	if cfg.Dir == "" {
		dir, err := os.MkdirTemp("", "tally-testnet-")
		if err != nil {
			return nil, fmt.Errorf("testnet: folder for the stores: %w", err)
		}
		n.cfg.Dir, n.ownsDir = dir, true
	}
	return n, nil
}

// loopbackHost is a host that many fit into one process: one transport, one
// security, nothing that talks unasked.
func loopbackHost(key crypto.PrivKey) (libp2phost.Host, error) {
	return libp2p.New(
		libp2p.Identity(key), libp2p.ListenAddrStrings(loopback),
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()), libp2p.Security(noise.ID, noise.New),
		libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}),
	)
}

// Peer is one peer of a network, through all its lives.
type Peer struct {
	Name string
	ID   peer.ID

	net  *Network
	cfg  PeerConfig
	disk disk
	wire tap

	// life is held while the peer is started, stopped or killed.
	life sync.Mutex

	// mu guards the fields below.
	mu      sync.Mutex
	node    *host.Node // nil while it is down
	host    libp2phost.Host
	line    *lifeline
	killed  chan struct{} // of this life: closed by a fault that killed it
	changed chan struct{} // closed and renewed at each notice
	notices map[swap.NoticeKind]int
}

// Add starts a peer.
func (n *Network) Add(ctx context.Context, name string, cfg PeerConfig) (*Peer, error) {
	if cfg.Store == "" {
		cfg.Store = StorePebble
	}
	if cfg.Key == nil {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("testnet: key of %s: %w", name, err)
		}
		cfg.Key = key
	}
	id, err := peer.IDFromPrivateKey(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("testnet: key of %s: %w", name, err)
	}
	p := &Peer{
		Name: name, ID: id, net: n, cfg: cfg, changed: make(chan struct{}), notices: make(map[swap.NoticeKind]int),
		disk: disk{kind: cfg.Store, dir: filepath.Join(n.cfg.Dir, name), log: n.cfg.Logger},
	}
	n.mu.Lock()
	if n.peers[name] != nil {
		n.mu.Unlock()
		return nil, fmt.Errorf("testnet: there is a peer %s already", name)
	}
	n.peers[name] = p
	n.names = append(n.names, name)
	n.mu.Unlock()
	if err := p.Start(ctx); err != nil {
		n.mu.Lock()
		delete(n.peers, name)
		n.names = slices.DeleteFunc(n.names, func(s string) bool { return s == name })
		n.mu.Unlock()
		return nil, errors.Join(err, p.disk.drop())
	}
	return p, nil
}

// AddMany starts count peers named prefix and a number from 1, a few at a time.
func (n *Network) AddMany(ctx context.Context, prefix string, count int, cfg PeerConfig) error {
	const atOnce = 4
	var wg sync.WaitGroup
	errs := make([]error, count)
	slots := make(chan struct{}, atOnce)
	for i := range count {
		slots <- struct{}{}
		wg.Go(func() { // ends when the peer is started
			_, errs[i] = n.Add(ctx, fmt.Sprintf("%s%d", prefix, i+1), cfg)
			<-slots
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Peer returns a peer by name. ErrNoPeer.
func (n *Network) Peer(name string) (*Peer, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.peers[name]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrNoPeer, name)
}

// Peers returns all peers in the order in which they were added.
func (n *Network) Peers() []*Peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := make([]*Peer, len(n.names))
	for i, name := range n.names {
		list[i] = n.peers[name]
	}
	return list
}

// Close ends all peers.
func (n *Network) Close() error {
	var errs []error
	for _, p := range n.Peers() {
		if _, err := p.Node(); err == nil {
			errs = append(errs, p.Stop(context.Background()))
		}
		errs = append(errs, p.disk.drop())
	}
	if n.ownsDir {
		errs = append(errs, os.RemoveAll(n.cfg.Dir))
	}
	return errors.Join(errs...)
}

// Connect dials from one peer to another and returns when both have read the
// other's handshake.
func (n *Network) Connect(ctx context.Context, from, to string) error {
	a, b, err := n.pair(from, to)
	if err != nil {
		return err
	}
	an, err := a.Node()
	if err != nil {
		return err
	}
	bn, err := b.Node()
	if err != nil {
		return err
	}
	store := an.Host().Peerstore()
	store.ClearAddrs(b.ID) // an earlier life listened elsewhere
	if err := meet(ctx, an, bn); err != nil {
		return fmt.Errorf("%s to %s: %w", from, to, err)
	}
	return nil
}

// Disconnect closes the connections between two peers and returns when both
// know.
func (n *Network) Disconnect(ctx context.Context, from, to string) error {
	a, b, err := n.pair(from, to)
	if err != nil {
		return err
	}
	an, err := a.Node()
	if err != nil {
		return err
	}
	if err := an.Host().Network().ClosePeer(b.ID); err != nil {
		return fmt.Errorf("testnet: disconnect %s from %s: %w", from, to, err)
	}
	if err := a.gone(ctx, b.ID); err != nil {
		return err
	}
	return b.gone(ctx, a.ID)
}

func (n *Network) pair(from, to string) (a, b *Peer, err error) {
	if a, err = n.Peer(from); err != nil {
		return nil, nil, err
	}
	b, err = n.Peer(to)
	return a, b, err
}

// Node returns the running node. ErrDown.
func (p *Peer) Node() (*host.Node, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.node == nil {
		return nil, fmt.Errorf("%w: %s", ErrDown, p.Name)
	}
	return p.node, nil
}

// Policy returns the policy of the next life.
func (p *Peer) Policy() swap.Policy { return p.cfg.Policy }

// SetPolicy changes the policy from the next life on.
func (p *Peer) SetPolicy(policy swap.Policy) {
	p.life.Lock()
	defer p.life.Unlock()
	p.cfg.Policy = policy
}

// Start begins a life with the identity and the disk of the ones before. ErrUp.
func (p *Peer) Start(_ context.Context) (err error) {
	p.life.Lock()
	defer p.life.Unlock()
	if _, err := p.Node(); err == nil {
		return fmt.Errorf("%w: %s", ErrUp, p.Name)
	}
	line, err := p.disk.open()
	if err != nil {
		return fmt.Errorf("testnet: start %s: %w", p.Name, err)
	}
	h, err := p.net.cfg.Host(p.cfg.Key)
	if err != nil {
		return errors.Join(fmt.Errorf("testnet: start %s: %w", p.Name, err), p.disk.close(0))
	}
	cfg := host.Config{
		Datastore: line, Realm: p.net.cfg.Realm, Policy: p.cfg.Policy, Notify: p.notify, Logger: p.net.cfg.Logger,
	}
	if !p.cfg.NoMessages {
		cfg.Messages = &host.MessagesConfig{}
	}
	p.wire.set(nil)
	node, err := host.New(tappedHost{Host: h, tap: &p.wire}, cfg)
	if err != nil {
		return errors.Join(fmt.Errorf("testnet: start %s: %w", p.Name, err), h.Close(), p.disk.close(0))
	}
	h.Network().Notify(&network.NotifyBundle{DisconnectedF: func(network.Network, network.Conn) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.wakeLocked()
	}})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.node, p.host, p.line, p.killed = node, h, line, make(chan struct{})
	clear(p.notices)
	return nil
}

// Stop ends a life cleanly: sessions end, the books are saved. It returns when
// the peers that were connected know. ErrDown.
func (p *Peer) Stop(ctx context.Context) error {
	p.life.Lock()
	defer p.life.Unlock()
	node, h, _, err := p.end()
	if err != nil {
		return err
	}
	return errors.Join(node.Close(), h.Close(), p.disk.close(0), p.left(ctx))
}

// left waits until no other peer has a session or a connection with this one.
func (p *Peer) left(ctx context.Context) error {
	var errs []error
	for _, other := range p.net.Peers() {
		if other != p {
			errs = append(errs, other.gone(ctx, p.ID))
		}
	}
	return errors.Join(errs...)
}

// Kill ends a life between two instructions: nothing more is written, all
// connections break, and the disk keeps what it had. It returns when the peers
// that were connected know. ErrDown.
func (p *Peer) Kill(ctx context.Context) error { return p.KillTorn(ctx, 0) }

// KillTorn is Kill on a disk of kind StoreCrash that also kept part of what was
// not synced, chosen by seed.
func (p *Peer) KillTorn(ctx context.Context, seed uint64) error {
	p.life.Lock()
	defer p.life.Unlock()
	node, h, line, err := p.end()
	if err != nil {
		return err
	}
	line.cut()
	// What the host sends from here on was decided before; nothing new is,
	// because nothing can be saved.
	err = h.Close()
	// The node finds its disk dead: its error is expected, and its goroutines
	// have to end.
	_ = node.Close()
	return errors.Join(err, p.disk.close(seed), p.left(ctx))
}

// end takes the parts of the life that ends now.
func (p *Peer) end() (*host.Node, libp2phost.Host, *lifeline, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.node == nil {
		return nil, nil, nil, fmt.Errorf("%w: %s", ErrDown, p.Name)
	}
	node, h, line := p.node, p.host, p.line
	p.node, p.host, p.line = nil, nil, nil
	return node, h, line, nil
}

// Erase loses the disk of a peer that is down: its next life begins with the
// identity alone. ErrUp.
func (p *Peer) Erase() error {
	p.life.Lock()
	defer p.life.Unlock()
	if _, err := p.Node(); err == nil {
		return fmt.Errorf("%w: %s", ErrUp, p.Name)
	}
	return p.disk.erase()
}

// ShiftClock sets the wall clock of a peer that is down: what its disk tells of
// the time lies as much earlier or later. A running peer cannot have a clock of
// its own in one process. ErrUp.
func (p *Peer) ShiftClock(by time.Duration) error {
	p.life.Lock()
	defer p.life.Unlock()
	if _, err := p.Node(); err == nil {
		return fmt.Errorf("%w: %s", ErrUp, p.Name)
	}
	return p.disk.shiftClock(by)
}

// disarm takes back CrashAtSave and CrashAtSend.
func (p *Peer) disarm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.line != nil {
		p.line.disarm()
	}
	p.wire.set(nil)
}

// Tap sends every swap frame of this life past hook, which is called on the
// goroutine that writes. Nil ends it.
func (p *Peer) Tap(hook func(Frame) Fate) { p.wire.set(hook) }

// CrashAtSave makes the n-th write to the disk from now on the last thing that
// the peer does: before it lands, or after. The life is dead then, and has to be
// ended with Kill. ErrDown.
func (p *Peer) CrashAtSave(n int, after bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.line == nil {
		return fmt.Errorf("%w: %s", ErrDown, p.Name)
	}
	p.line.arm(n, after, p.strike())
	return nil
}

// CrashAtSend is CrashAtSave for the n-th swap frame that leaves. ErrDown.
func (p *Peer) CrashAtSend(n int, after bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.line == nil {
		return fmt.Errorf("%w: %s", ErrDown, p.Name)
	}
	line, strike := p.line, p.strike()
	count := 0
	var mu sync.Mutex // one wire, several streams
	p.wire.set(func(Frame) Fate {
		mu.Lock()
		defer mu.Unlock()
		count++
		switch {
		case count < n:
			return Pass
		case count > n:
			return Cut
		}
		line.cut()
		if after {
			defer strike() // the frame leaves first
		} else {
			strike()
		}
		if after {
			return CutAfter
		}
		return Cut
	})
	return nil
}

// strike returns what a fault does beside cutting the disk: the machine is off
// the net, and whoever waits is told. The caller holds mu.
func (p *Peer) strike() func() {
	killed, h := p.killed, p.host
	return sync.OnceFunc(func() {
		close(killed)
		go func() { _ = h.Close() }() // ends soon; Kill waits for it
	})
}

// Killed returns a channel that is closed when a fault of this life has struck.
// It is nil where the peer is down.
func (p *Peer) Killed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.node == nil {
		return nil
	}
	return p.killed
}

// notify counts what happens and wakes who waits.
func (p *Peer) notify(n swap.Notice) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notices[n.Kind]++
	p.wakeLocked()
}

// wakeLocked wakes who waits for a change of this peer or of any. The caller
// holds mu.
func (p *Peer) wakeLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	close(p.net.changed)
	p.net.changed = make(chan struct{})
}

// Changed returns a channel that is closed at the next notice of any peer.
func (n *Network) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// Notices returns how often a notice came in this life.
func (p *Peer) Notices(kind swap.NoticeKind) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.notices[kind]
}

// Changed returns a channel that is closed at the next notice.
func (p *Peer) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// gone waits until this peer has neither session nor connection with another. A
// peer that is down has none.
func (p *Peer) gone(ctx context.Context, other peer.ID) error {
	ctx, cancel := context.WithTimeout(ctx, stopWithin)
	defer cancel()
	for {
		changed := p.Changed()
		node, err := p.Node()
		if err != nil {
			return nil //nolint:nilerr // it is down
		}
		connected := node.Host().Network().Connectedness(other) == network.Connected
		if !connected && !inSession(node.Book(), other) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("testnet: %s is still connected to %s: %w", p.Name, other, ctx.Err())
		}
	}
}

// inSession asks a book, and does not make an account by asking. A book that
// cannot be read has no session either.
func inSession(b *swap.Book, with peer.ID) bool {
	if known, err := b.Known(with); err != nil || !known {
		return false
	}
	row, err := b.Row(with)
	return err == nil && row.Connected
}
