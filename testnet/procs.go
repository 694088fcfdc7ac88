package testnet

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	libp2phost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/swap"
)

// fileKeys are the settings of config.toml behind the keys of a scenario.
var fileKeys = map[string]string{
	"payment": "payment_threshold", "disconnect": "disconnect_threshold", "early": "early_payment_percent",
	"min-peer": "min_peer_threshold", "max-peer": "max_peer_threshold", "max-debt": "max_debt", "max-exposure": "max_exposure",
	"max-exposure-total": "max_exposure_total", "strangers": "strangers_exposure", "mode": "mode",
	"fee-base": "fee_base", "fee-ppm": "fee_ppm", "deposit": "initial_deposit", "top-up": "top_up", "cashout": "cashout_amount",
}

// processVerbs are the statements for peers in processes of their own.
var processVerbs = map[string]bool{
	"peers": true, "import": true, "connect": true, "disconnect": true, "query": true, "settle": true, "stop": true, "start": true,
	"kill": true, "erase": true, "policy": true, "clock": true, "wait": true, "hostile": true, "flood": true, "repeat": true,
	"hold": true, "uri": true, "open": true, "limits": true, "shut": true,
	"partition": true, "heal": true, "cashout": true, "close": true, "chain": true, "mine": true, "reorg": true,
	"pay": true, "begin": true, "part": true, "invoice": true, "claim": true, "refuse": true, "jam": true, "near": true,
	"room": true, "buy": true, "take": true,
}

// procs drives peers that are processes of their own, where there is a devnet in mode
// hard.
type procs struct {
	cluster  *Cluster
	attacker *attackers
	peers    map[string]*proc
	wires    map[way2]*lossy
	uris     map[string]madeURI
	sockets  map[string]openSocket
	// begun are payments that go on after their statement, pays waits for their calls;
	// invoices are those whose parts are sent by hand.
	begun    []*begun
	pays     sync.WaitGroup
	invoices map[string]string
	// mails are the texts that payers bought last, by payer and payee.
	mails map[way2]string
}

// way2 is a wire, by who dials and who is dialled.
type way2 struct{ from, to string }

type proc struct {
	*Member
	keys map[string]string // its settings
	view livePeer
	had  *big.Int // nil without a chain
	rss  int64    // when it started
}

func newProcs(ctx context.Context, cfg ClusterConfig) (*procs, error) {
	c, err := StartCluster(ctx, cfg)
	if err != nil {
		return nil, err
	}
	d := &procs{
		cluster: c, peers: make(map[string]*proc), wires: make(map[way2]*lossy),
		uris: make(map[string]madeURI), sockets: make(map[string]openSocket),
		invoices: make(map[string]string), mails: make(map[way2]string),
	}
	chain := c.Chain()
	realm := swap.Realm{Network: chain.Network, Genesis: chain.Genesis, Asset: "FIL"}
	if cfg.NoChain {
		realm = swap.Realm{}
	}
	d.attacker = newAttackers(d.find, func(key crypto.PrivKey) (libp2phost.Host, error) { return loopbackHost(key) }, realm)
	return d, nil
}

func (d *procs) close() error {
	d.pays.Wait() // each ends with its call
	err := d.attacker.close()
	for _, w := range d.wires {
		err = errors.Join(err, w.close())
	}
	return errors.Join(err, d.cluster.Close())
}

func (d *procs) changed() <-chan struct{} { return nil }

func (d *procs) arm(context.Context, string, crashPoint) error { return errNoPoints }

func (d *procs) recover(context.Context, string) (bool, error) { return false, errNoPoints }

var errNoPoints = errors.New("testnet: a process has no points to crash at; `tally testnet chaos` kills it anywhere")

func (d *procs) peer(name string) (*proc, error) {
	if p := d.peers[name]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrNoPeer, name)
}

// find is where an attacker finds a peer.
func (d *procs) find(name string) (peer.AddrInfo, error) {
	p, err := d.peer(name)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	info, err := peer.AddrInfoFromString(p.Addr)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	return *info, nil
}

// live is the peer as its operator sees it in this life.
func (p *proc) live() (*livePeer, error) {
	client, err := p.RPC()
	if err != nil {
		return nil, err
	}
	p.view.client = client
	p.view.id = rpc.Identity{PeerID: p.ID, Addrs: []string{p.Addr}}
	return &p.view, nil
}

func (d *procs) do(ctx context.Context, st *statement) error {
	switch st.verb {
	case "peers":
		return d.start(ctx, st)
	case "hostile":
		return d.attacker.hostile(ctx, st.args[0], st.args[1], st.args[2], st.args[3])
	case "flood":
		n, _ := strconv.Atoi(st.args[2]) // checked by the parser
		return d.attacker.flood(ctx, st.args[0], st.args[1], n)
	case "chain":
		return d.chain(ctx, st.args[0])
	case "mine", "reorg":
		n, _ := strconv.Atoi(st.args[0]) // checked by the parser
		return d.cluster.Control(ctx, func(c *host.DevnetClient) (err error) {
			if st.verb == "mine" {
				_, err = c.Mine(ctx, n)
			} else {
				_, err = c.Reorg(ctx, n, st.args[1] == "lost")
			}
			return err
		})
	case "connect", "disconnect", "partition", "heal":
		return d.wire(ctx, st)
	case "hold":
		return d.hold(ctx, st)
	case "room", "buy", "take":
		return d.mail(ctx, st)
	case "uri", "open", "limits", "shut":
		return d.onSocket(ctx, st)
	case "invoice", "claim", "refuse", "jam", "near":
		return d.lock(ctx, st)
	}
	p, err := d.peer(st.args[0])
	if err != nil {
		return err
	}
	switch st.verb {
	case "stop":
		return p.Stop()
	case "start":
		return p.Start(ctx)
	case "kill":
		return p.Kill()
	case "erase":
		return p.erase()
	case "policy":
		for key, value := range st.keys {
			p.keys[key] = value
		}
		return configure(p.Repo(), d.settingsOf(p.keys))
	case "clock":
		by, _ := time.ParseDuration(st.args[2]) // checked by the parser
		if st.args[1] == "back" {
			by = -by
		}
		return p.shiftClock(by)
	}
	return d.ask(ctx, p, st)
}

// ask is what goes over the RPC.
func (d *procs) ask(ctx context.Context, p *proc, st *statement) error {
	view, err := p.live()
	if err != nil {
		return err
	}
	if st.verb == "import" {
		return view.load(ctx, st.args[1])
	}
	other, err := d.peer(st.args[1])
	if err != nil {
		return err
	}
	switch st.verb {
	case "pay", "begin", "part":
		return d.pay(ctx, p, other, st)
	case "query":
		ctx, cancel := context.WithTimeout(ctx, fullTabWithin)
		defer cancel()
		return view.query(ctx, &livePeer{id: rpc.Identity{PeerID: other.ID}}, st)
	case "settle":
		_, err = view.client.Settle(ctx, other.ID)
	case "cashout":
		_, err = view.client.Cashout(ctx, other.ID, 0)
	case "close":
		return d.closeChannel(ctx, p, other)
	default:
		return fmt.Errorf("testnet: %s cannot be done to processes", st.verb)
	}
	if err != nil {
		return rpc.Explain(err)
	}
	return nil
}

// closeChannel has the payer settle its channel.
func (d *procs) closeChannel(ctx context.Context, p, to *proc) error {
	row, err := p.Tab(ctx, to.ID)
	if err != nil {
		return err
	}
	for _, l := range row.Links {
		if l.Direction == rpc.ChequeSent && l.Channel != "" {
			_, err := callOf(p.Member, func(c *rpc.Client) (rpc.MessageRow, error) { return c.PaychSettle(ctx, l.Channel) })
			return err
		}
	}
	return fmt.Errorf("testnet: %s has no channel to %s", p.Name, to.Name)
}

func (d *procs) settingsOf(keys map[string]string) []string {
	var lines []string
	for key, value := range keys {
		name := fileKeys[key]
		if key == "mode" {
			if value == "mock" && d.cluster.Devnet != nil {
				value = "hard" // who settles, settles for money here
			}
			value = strconv.Quote(value)
		}
		if name != "" {
			lines = append(lines, name+" = "+value)
		}
	}
	slices.Sort(lines)
	return lines
}

func (d *procs) start(ctx context.Context, st *statement) error {
	if err := d.cluster.AddMany(ctx, st.args, d.settingsOf(st.keys)...); err != nil {
		return err
	}
	for _, name := range st.args {
		m, err := d.cluster.Member(name)
		if err != nil {
			return err
		}
		var had *big.Int
		if d.cluster.Devnet != nil {
			if had, err = m.Wallet(ctx); err != nil {
				return err
			}
		}
		keys := make(map[string]string)
		for k, v := range st.keys {
			keys[k] = v
		}
		d.peers[name] = &proc{Member: m, keys: keys, had: had, rss: residentOf(m.PID())}
	}
	return nil
}

func (d *procs) chain(ctx context.Context, what string) error {
	switch what {
	case "kill":
		return d.cluster.Devnet.Kill()
	case "stop":
		return d.cluster.Devnet.Stop()
	default:
		return d.cluster.Devnet.Start(ctx)
	}
}

// wire works on what lies between two peers.
func (d *procs) wire(ctx context.Context, st *statement) error {
	from, to := st.args[0], st.args[1]
	if st.verb == "connect" && d.attacker.has(from) {
		return d.attacker.connect(ctx, from, to)
	}
	a, err := d.peer(from)
	if err != nil {
		return err
	}
	b, err := d.peer(to)
	if err != nil {
		return err
	}
	both := []way2{{from, to}, {to, from}}
	switch st.verb {
	case "connect":
		w, err := d.between(from, b)
		if err != nil {
			return err
		}
		return a.dial(ctx, fmt.Sprintf("/ip4/127.0.0.1/tcp/%d/p2p/%s", w.port(), b.ID))
	case "partition", "heal":
		for _, k := range both {
			if w := d.wires[k]; w != nil {
				w.hold(st.verb == "partition")
			}
		}
		return nil
	}
	for _, k := range both {
		if w := d.wires[k]; w != nil {
			w.cut()
		}
	}
	return d.apart(ctx, a, b)
}

// apart waits until both know that they are not connected.
func (d *procs) apart(ctx context.Context, a, b *proc) error {
	for _, pair := range [][2]*proc{{a, b}, {b, a}} {
		for {
			tab, err := d.tab(ctx, pair[0].Name, pair[1].Name)
			if err != nil {
				return err
			}
			if !tab.Connected {
				break
			}
			if sleep(ctx, lookEvery); ctx.Err() != nil {
				return fmt.Errorf("testnet: %s is still connected to %s: %w", pair[0].Name, pair[1].Name, ctx.Err())
			}
		}
	}
	return nil
}

// between returns the wire on which one peer dials another.
func (d *procs) between(from string, to *proc) (*lossy, error) {
	k := way2{from, to.Name}
	if w := d.wires[k]; w != nil {
		return w, nil
	}
	addr, err := ma.NewMultiaddr(to.Addr)
	if err != nil {
		return nil, err
	}
	port, err := addr.ValueForProtocol(ma.P_TCP)
	if err != nil {
		return nil, err
	}
	w, err := newLossy("127.0.0.1:" + port)
	if err == nil {
		d.wires[k] = w
	}
	return w, err
}

// erase loses the books of a peer that is down; its keys stay.
func (p *proc) erase() error {
	if p.PID() != 0 {
		return fmt.Errorf("%w: %s", ErrUp, p.Name)
	}
	dir := p.datastore()
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o700)
}

func (p *proc) datastore() string { return filepath.Join(p.Repo(), "datastore") }

// shiftClock is as that of a peer in this process.
func (p *proc) shiftClock(by time.Duration) error {
	if p.PID() != 0 {
		return fmt.Errorf("%w: %s", ErrUp, p.Name)
	}
	return shiftStore(p.datastore(), by)
}

func (d *procs) tab(ctx context.Context, at, with string) (Tab, error) {
	p, err := d.peer(at)
	if err != nil {
		return Tab{}, err
	}
	id, ok := d.attacker.id(with)
	name := id.String()
	if !ok {
		other, err := d.peer(with)
		if err != nil {
			return Tab{}, err
		}
		name = other.ID
	}
	row, err := p.Tab(ctx, name)
	if errors.As(err, new(*rpc.Error)) && rpc.Explain(err).Code == rpc.CodeUnknownPeer {
		err = nil // no neighbours, who may have paid each other all the same
	}
	if err != nil {
		return Tab{}, err
	}
	t := tabOf(&row)
	if t.Arrived, err = arrived(ctx, p, name); err != nil || ok {
		return t, err
	}
	t.PaySkew = paySkew(ctx, t.Arrived, d.peers[with])
	if d.cluster.Devnet == nil || len(row.Links) == 0 {
		return t, nil
	}
	slots, err := d.slotVouchers(ctx, d.peers[with], p)
	if err != nil {
		return t, nil //nolint:nilerr // the chain is away: what needs none is told
	}
	return t, t.addSlots(slots)
}

func (d *procs) stats(ctx context.Context, at string) (Stats, error) {
	p, err := d.peer(at)
	if err != nil {
		return Stats{}, err
	}
	st, err := callOf(p.Member, func(c *rpc.Client) (rpc.Status, error) { return c.Status(ctx) })
	if err != nil {
		return Stats{}, err
	}
	s := Stats{Accounts: st.Accounts, Exposure: tally.Amount(st.Exposure), Got: p.view.got, Unhealthy: !st.Healthy, Why: whyUnhealthy(&st), SlotsFull: slotsFull(&st)}
	if err := p.socketStats(ctx, &s); err != nil {
		return s, err
	}
	if err := s.addPayments(ctx, p); err != nil {
		return Stats{}, err
	}
	if d.cluster.Devnet == nil {
		return s, nil
	}
	if err := s.addMails(ctx, p); err != nil {
		return s, err
	}
	locks, err := callOf(p.Member, func(c *rpc.Client) ([]rpc.LockRow, error) { return c.Locks(ctx, "") })
	if err != nil {
		return s, err
	}
	state, err := callOf(p.Member, func(c *rpc.Client) (rpc.LockState, error) { return c.LockState(ctx) })
	if err != nil {
		return s, err
	}
	s.Locks, s.LockWays = len(locks), len(state.Channels)
	channels, err := callOf(p.Member, func(c *rpc.Client) ([]rpc.ChannelRow, error) { return c.PaychInfo(ctx) })
	if err != nil {
		return s, nil //nolint:nilerr // the chain is away: what needs none is told
	}
	for i := range channels {
		switch channels[i].State {
		case "open":
			s.Open++
		case "settling":
			s.Settling++
		case "collected":
			s.Collected++
		}
	}
	if have, err := p.Wallet(ctx); err == nil { // the chain may be away
		s.Earned = new(big.Int).Quo(have.Sub(have, p.had), big.NewInt(1_000_000_000)).Int64()
	}
	return s, nil
}

func whyUnhealthy(st *rpc.Status) string {
	var bad []string
	for _, c := range st.Checks {
		if c.State == rpc.CheckWarn || c.State == rpc.CheckFail {
			bad = append(bad, c.Name+": "+c.Detail)
		}
	}
	return strings.Join(bad, "; ")
}
