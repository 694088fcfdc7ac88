package testnet

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
)

const (
	// fundEach is what a peer's payout address gets before it does anything. The
	// payee needs an account on the chain as well as the payer.
	fundEach = "100FIL"
	// MaxMembers bounds the peers of a cluster: each is a process.
	MaxMembers = 64
	// firstPort and lastPort bound the ports of a cluster. They lie below those
	// that the system gives to outgoing connections, so that a process that was
	// killed finds its own port free when it comes back.
	firstPort, lastPort = 20_000, 32_000
)

// ClusterConfig of StartCluster. The zero value is this very program on a
// temporary folder.
type ClusterConfig struct {
	// Binary is the program `tally`. Default: the running executable.
	Binary string
	// Env is added to the environment of each process.
	Env []string
	// Dir holds a repo for each peer and the chain's in "net"; it is the caller's
	// to remove. Default: a temporary folder that Close removes.
	Dir string
	// NoChain leaves the chain away: the peers settle in mode mock.
	NoChain bool
	// BlockTime, SettleDelay and Finality of the chain. Defaults 200 ms, 400 and 5.
	BlockTime             time.Duration
	SettleDelay, Finality int64
}

// Cluster is a number of peers, each a process of its own with a repo of its own, all
// on 127.0.0.1, and a devnet on which they settle in mode hard. Methods may be called at the same
// time.
type Cluster struct {
	cfg     ClusterConfig
	ownsDir bool
	Devnet  *Process // nil with NoChain
	chain   host.DevnetInfo

	// mu guards the fields below.
	mu      sync.Mutex
	members []*Member
}

// Member is one peer of a cluster, through all its lives.
type Member struct {
	Name string
	*Process
	// ID, Payout and Addr stay the same over all lives.
	ID, Payout, Addr string

	// mu guards the client of this life.
	mu     sync.Mutex
	client *rpc.Client
	end    func()
}

// StartCluster starts the chain, if there is to be one, and returns when it answers.
func StartCluster(ctx context.Context, cfg ClusterConfig) (_ *Cluster, err error) {
	if cfg.Binary == "" {
		if cfg.Binary, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("testnet: find this program: %w", err)
		}
	}
	if cfg.BlockTime == 0 {
		cfg.BlockTime = 200 * time.Millisecond
	}
	if cfg.SettleDelay == 0 {
		cfg.SettleDelay = 400
	}
	if cfg.Finality == 0 {
		cfg.Finality = 5
	}
	c := &Cluster{cfg: cfg}
	if cfg.Dir == "" {
		if c.cfg.Dir, err = os.MkdirTemp("", "tally-testnet-"); err != nil {
			return nil, fmt.Errorf("testnet: folder for the repos: %w", err)
		}
		c.ownsDir = true
	}
	if c.cfg.Dir, err = filepath.Abs(c.cfg.Dir); err != nil {
		return nil, fmt.Errorf("testnet: folder for the repos: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if cfg.NoChain {
		return c, nil
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	c.Devnet, err = StartProcess(ctx, ProcessConfig{
		Binary: cfg.Binary, Env: cfg.Env, Repo: c.netDir(),
		Args: []string{
			"--repo", c.netDir(), "-o", "json", "devnet", "--rpc", "127.0.0.1:" + port, "--block-time", cfg.BlockTime.String(),
			"--settle-delay", strconv.FormatInt(cfg.SettleDelay, 10), "--finality", strconv.FormatInt(cfg.Finality, 10),
		},
	})
	if err != nil {
		return nil, err
	}
	return c, c.Devnet.Ready(&c.chain)
}

var nextPort atomic.Uint32

// freePort finds a port that nobody listens on.
func freePort() (string, error) {
	const span = lastPort - firstPort
	nextPort.CompareAndSwap(0, uint32(os.Getpid()*97)) // networks side by side begin elsewhere
	for range 200 {
		port := strconv.Itoa(firstPort + int(nextPort.Add(1)%span))
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err == nil {
			return port, l.Close()
		}
	}
	return "", fmt.Errorf("testnet: no free port from %d to %d", firstPort, lastPort)
}

func (c *Cluster) netDir() string { return filepath.Join(c.cfg.Dir, "net") }

// Chain tells how the chain is reached and known.
func (c *Cluster) Chain() host.DevnetInfo { return c.chain }

// Dir is where the repos are.
func (c *Cluster) Dir() string { return c.cfg.Dir }

// Control calls the running devnet once.
func (c *Cluster) Control(ctx context.Context, fn func(*host.DevnetClient) error) error {
	d, err := host.DialDevnet(ctx, c.netDir())
	if err != nil {
		return fmt.Errorf("testnet: the devnet: %w", err)
	}
	return errors.Join(fn(d), d.Close())
}

// Add starts a peer with these settings of config.toml and fills its wallet. A
// repo that is in the folder already goes on as it is.
func (c *Cluster) Add(ctx context.Context, name string, settings ...string) (*Member, error) {
	c.mu.Lock()
	full := len(c.members) >= MaxMembers
	taken := slices.ContainsFunc(c.members, func(m *Member) bool { return m.Name == name })
	c.mu.Unlock()
	if full || taken || name == "net" || !isName(name) {
		return nil, fmt.Errorf("testnet: no peer can be added as %q: it is no name, is taken, or there are %d", name, MaxMembers)
	}
	m, err := c.launch(ctx, name, settings)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.members = append(c.members, m)
	c.mu.Unlock()
	if c.Devnet == nil {
		return m, nil
	}
	if m.Payout, err = m.payout(ctx); err != nil {
		return nil, err
	}
	return m, c.fund(ctx, m)
}

func (c *Cluster) launch(ctx context.Context, name string, settings []string) (*Member, error) {
	dir := filepath.Join(c.cfg.Dir, name)
	if err := configure(dir, settings); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	args := []string{"--repo", dir, "-o", "json", "start", "--rpc", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/" + port}
	if c.Devnet != nil {
		args = append(args, "--chain", c.chain.RPC, "--chain-token-file", c.chain.TokenFile)
	}
	p, err := StartProcess(ctx, ProcessConfig{Binary: c.cfg.Binary, Env: c.cfg.Env, Repo: dir, Args: args})
	if err != nil {
		return nil, err
	}
	var ready struct {
		PeerID string   `json:"peer_id"`
		Addrs  []string `json:"addrs"`
	}
	if err := p.Ready(&ready); err != nil || len(ready.Addrs) == 0 {
		return nil, errors.Join(fmt.Errorf("testnet: %s is ready and listens nowhere", name), err, p.Close())
	}
	return &Member{Name: name, Process: p, ID: ready.PeerID, Addr: ready.Addrs[0]}, nil
}

// configure makes the repo, or changes the settings of one.
func configure(dir string, settings []string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("testnet: repo: %w", err)
	}
	file := filepath.Join(dir, repo.ConfigFile)
	if _, err := os.Stat(file); err != nil || len(settings) > 0 {
		if err := os.WriteFile(file, []byte(strings.Join(settings, "\n")+"\n"), 0o600); err != nil {
			return fmt.Errorf("testnet: settings: %w", err)
		}
	}
	if _, err := repo.Init(dir); err != nil && !errors.Is(err, repo.ErrExists) {
		return err
	}
	return nil
}

// fund fills the wallet of a peer that is new to the chain.
func (c *Cluster) fund(ctx context.Context, m *Member) error {
	had, err := m.Wallet(ctx)
	if err != nil || had.Sign() > 0 {
		return err
	}
	return c.Control(ctx, func(d *host.DevnetClient) error {
		_, err := d.Faucet(ctx, m.Payout, fundEach)
		return err
	})
}

// AddMany starts peers under these names, a few at a time, with the same settings.
func (c *Cluster) AddMany(ctx context.Context, names []string, settings ...string) error {
	return few(len(names), func(i int) error {
		_, err := c.Add(ctx, names[i], settings...)
		return err
	})
}

// few calls fn for 0 to n-1, a few at a time.
func few(n int, fn func(int) error) error {
	const atOnce = 4
	var wg sync.WaitGroup
	errs := make([]error, n)
	slots := make(chan struct{}, atOnce)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() { // ends with fn
			errs[i] = fn(i)
			<-slots
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Members returns all peers in the order in which they came up.
func (c *Cluster) Members() []*Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.members)
}

// Member returns a peer by name. ErrNoPeer.
func (c *Cluster) Member(name string) (*Member, error) {
	for _, m := range c.Members() {
		if m.Name == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("%w: %q", ErrNoPeer, name)
}

// Close stops every process that this cluster started, cleanly where it can, the
// chain last.
func (c *Cluster) Close() error {
	members := c.Members()
	err := few(len(members), func(i int) error {
		members[i].hangUp()
		return members[i].Process.Close()
	})
	if c.Devnet != nil {
		err = errors.Join(err, c.Devnet.Close())
	}
	if c.ownsDir {
		err = errors.Join(err, os.RemoveAll(c.cfg.Dir))
	}
	return err
}

// RPC returns a client of the present life.
func (m *Member) RPC() (*rpc.Client, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.client == nil {
		client, end, err := m.Client()
		if err != nil {
			return nil, fmt.Errorf("testnet: %s: %w", m.Name, err)
		}
		m.client, m.end = client, end
	}
	return m.client, nil
}

// hangUp ends the client: the next life has another door.
func (m *Member) hangUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.end != nil {
		m.end()
	}
	m.client, m.end = nil, nil
}

// Start, Stop and Kill are those of the process.
func (m *Member) Start(ctx context.Context) error {
	defer m.hangUp() // who asked meanwhile was told the door of the last life
	return m.Process.Start(ctx)
}

// Stop ends a life cleanly. ErrDown.
func (m *Member) Stop() error {
	defer m.hangUp()
	return m.Process.Stop()
}

// Kill ends a life with SIGKILL. ErrDown.
func (m *Member) Kill() error {
	defer m.hangUp()
	return m.Process.Kill()
}

// callOf makes one call of a peer's RPC.
func callOf[T any](m *Member, fn func(*rpc.Client) (T, error)) (T, error) {
	var zero T
	client, err := m.RPC()
	if err != nil {
		return zero, err
	}
	v, err := fn(client)
	if err != nil {
		return zero, fmt.Errorf("%s: %w", m.Name, rpc.Explain(err))
	}
	return v, nil
}

func (m *Member) payout(ctx context.Context) (string, error) {
	keys, err := callOf(m, func(c *rpc.Client) ([]rpc.WalletRow, error) { return c.WalletList(ctx) })
	if err != nil {
		return "", err
	}
	if len(keys) == 0 {
		return "", fmt.Errorf("testnet: %s has no key in its wallet", m.Name)
	}
	return keys[0].Address, nil
}

// Wallet returns what the payout address holds on the chain, in attoFIL.
func (m *Member) Wallet(ctx context.Context) (*big.Int, error) {
	row, err := callOf(m, func(c *rpc.Client) (rpc.WalletRow, error) { return c.WalletBalance(ctx, m.Payout) })
	if err != nil {
		return nil, err
	}
	n, ok := new(big.Int).SetString(row.Balance, 10)
	if !ok {
		return nil, fmt.Errorf("testnet: %s: balance %q is no number", m.Name, row.Balance)
	}
	return n, nil
}

// Connect dials another peer and returns when both have shaken hands.
func (m *Member) Connect(ctx context.Context, to *Member) error {
	return m.dial(ctx, to.Addr)
}

func (m *Member) dial(ctx context.Context, addr string) error {
	_, err := callOf(m, func(c *rpc.Client) (rpc.PeerRow, error) { return c.PeerConnect(ctx, addr) })
	return err
}

// Import makes n messages in the store of the peer.
func (m *Member) Import(ctx context.Context, n int) error {
	list := make([]rpc.Message, n)
	for i := range list {
		list[i] = madeMessage(i)
	}
	_, err := callOf(m, func(c *rpc.Client) (rpc.ImportResult, error) { return c.Import(ctx, list, nil) })
	return err
}

// Tab reads one side of a tab. No account is an empty one.
func (m *Member) Tab(ctx context.Context, with string) (rpc.BalanceRow, error) {
	client, err := m.RPC()
	if err != nil {
		return rpc.BalanceRow{}, err
	}
	list, err := client.Balances(ctx, with)
	if err != nil {
		e := rpc.Explain(err)
		if e.Code == rpc.CodeUnknownPeer {
			return rpc.BalanceRow{}, nil
		}
		return rpc.BalanceRow{}, fmt.Errorf("%s: %w", m.Name, e)
	}
	if len(list) != 1 {
		return rpc.BalanceRow{}, fmt.Errorf("testnet: %s: %d rows for one peer", m.Name, len(list))
	}
	return list[0], nil
}
