package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/crypto"
	libp2phost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/settler"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/paychtest"
	"github.com/tallystick/tally/swap"
)

// What a cheque with a voucher costs at least beside a cheque's own signatures:
// the issuer saves the intent, the voucher and the cheque, the receiver the
// voucher and the credit; the voucher is signed and its signer recovered.
const hardSaves = 5

const (
	// hardDeposit goes into each channel, in units: more than a run spends.
	hardDeposit = 100_000_000
	// hardEpoch is long, so that many nodes that follow one chain in one process do
	// not measure that; while channels open, blocks are made on demand.
	hardEpoch = 5 * time.Second
	// hardWallet is what each payer has, in attoFIL: one FIL.
	hardWallet = 1_000_000_000_000_000_000
)

// hardNet is an embedded chain and nodes that settle on it, all real: libp2p over
// loopback, stores on disk, a channel a pair.
type hardNet struct {
	dir    string
	policy swap.Policy // of every node
	folder *repo.Devnet
	chain  *host.Devnet
	nodes  []*host.Node
	hosts  []libp2phost.Host
}

func newHardNet(ctx context.Context, dir string, settleDelay int64) (*hardNet, error) {
	folder, err := repo.OpenDevnet(filepath.Join(dir, "chain"))
	if err != nil {
		return nil, err
	}
	c, err := host.StartDevnet(ctx, folder, host.DevnetConfig{
		BlockTime: hardEpoch, SettleDelay: settleDelay, Finality: 1, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, errors.Join(err, folder.Close())
	}
	return &hardNet{dir: dir, policy: uncapped(swap.Policy{Mode: swap.ModeHard}), folder: folder, chain: c}, nil
}

// add starts a node on a store of its own, which it closes; its wallet is filled.
func (n *hardNet) add(ctx context.Context, name string, cfg host.Config) (*host.Node, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	h, err := newHost(key, partyConfig{transport: overTCP})
	if err != nil {
		return nil, err
	}
	n.hosts = append(n.hosts, h)
	cfg.Policy, cfg.Logger = n.policy, slog.New(slog.DiscardHandler)
	cfg.Chain = &host.ChainConfig{
		URL: n.chain.Info().RPC, Token: n.chain.Token(), Keys: filepath.Join(n.dir, name+"-keys"),
		Settler: settler.Config{
			InitialDeposit: hardDeposit, TopUp: hardDeposit, Ahead: 1, MaxLocked: 2 * hardDeposit, MaxLockedTotal: 1 << 40,
		},
	}
	node, err := host.New(h, cfg)
	if err != nil {
		return nil, err
	}
	n.nodes = append(n.nodes, node)
	return node, n.chain.Faucet(ctx, node.Payout(), big.NewInt(hardWallet))
}

func (n *hardNet) close() error {
	errs := make([]error, 0, len(n.nodes)+len(n.hosts)+2)
	errs = append(errs, each(len(n.nodes), 8, func(i int) error { return n.nodes[i].Close() }))
	for _, h := range n.hosts {
		errs = append(errs, h.Close())
	}
	return errors.Join(append(errs, n.chain.Close(context.Background()), n.folder.Close())...)
}

// openAll opens the channels of payers, and makes blocks until they are there.
func (n *hardNet) openAll(ctx context.Context, payee *host.Node, payers ...*host.Node) error {
	return n.whileMining(ctx, func(ctx context.Context) error {
		return each(len(payers), 16, func(i int) error { return n.open(ctx, payers[i], payee) })
	})
}

// whileMining calls f, and makes blocks until it returns.
func (n *hardNet) whileMining(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }() // ends with ctx
	for {
		select {
		case err := <-done:
			return err
		case <-time.After(100 * time.Millisecond):
			if err := n.chain.Mine(ctx, 1); err != nil {
				return errors.Join(err, <-done)
			}
		}
	}
}

// open connects, and pays once, so that the channel is there.
func (n *hardNet) open(ctx context.Context, payer, payee *host.Node) error {
	if err := payer.Host().Connect(ctx, peer.AddrInfo{ID: payee.Host().ID(), Addrs: payee.Host().Addrs()}); err != nil {
		return err
	}
	if err := errors.Join(payer.Book().WaitSession(ctx, payee.Host().ID()), payee.Book().WaitSession(ctx, payer.Host().ID())); err != nil {
		return err
	}
	return payHard(ctx, payer, payee)
}

// payHard books a debt of one unit, pays it with a voucher, and returns with the
// ack.
func payHard(ctx context.Context, payer, payee *host.Node) error {
	if err := payer.Book().Credit(payee.Host().ID(), service, 1); err != nil {
		return err
	}
	_, err := payer.Book().SettleAndWait(ctx, payee.Host().ID())
	return err
}

func chequeHardSerial(ctx context.Context, o *Options) (_ []Figure, err error) {
	o.say("cheque: one after the other, each with a voucher")
	dir, remove, err := o.folder()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	net, err := newHardNet(ctx, dir, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, net.close()) }()
	var pair [2]*host.Node
	for i := range pair {
		name := string(rune('a' + i))
		if pair[i], err = net.add(ctx, name, host.Config{Dir: filepath.Join(dir, name)}); err != nil {
			return nil, err
		}
	}
	if err := net.openAll(ctx, pair[1], pair[0]); err != nil {
		return nil, err
	}
	var lats []time.Duration
	pay := chequeByCheque(&lats, func(ctx context.Context) error { return payHard(ctx, pair[0], pair[1]) })
	m, err := rounds(ctx, o, pay, parts(o).hardSerial)
	if err != nil {
		return nil, err
	}
	f := rate("cheque/hard/serial", "cheques/s", m[0], m[1],
		"2 signatures and 2 checks of a cheque, 1 of each of a voucher, and 5 fdatasync in a row", 1500).
		with("p50_goal_ms", 0.7).note("with a channel voucher, durable on both sides; the network is not in the limit").withCPU(m[0], series{})
	f.P50, f.P99 = percentiles(lats)
	f.GoalMet = f.GoalMet && f.P50 <= 0.7
	return []Figure{f}, nil
}

func chequeHardCrowd(ctx context.Context, o *Options) (_ []Figure, err error) {
	n := scale(o, 64, 4)
	o.say("cheque: %d peers at once, each with a voucher", n)
	dir, remove, err := o.folder()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	// One disk below all payers, as in the figure without vouchers.
	shared, err := openDisk(filepath.Join(dir, "payers"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, shared.Close()) }()
	net, err := newHardNet(ctx, dir, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, net.close()) }()
	hub, err := net.add(ctx, "hub", host.Config{Dir: filepath.Join(dir, "hub")})
	if err != nil {
		return nil, err
	}
	payers := make([]*host.Node, n)
	for i := range payers {
		cfg := host.Config{Datastore: &shelf{store: shared, prefix: fmt.Sprintf("/c%d", i)}}
		if payers[i], err = net.add(ctx, fmt.Sprintf("c%d", i), cfg); err != nil {
			return nil, err
		}
	}
	if err := net.openAll(ctx, hub, payers...); err != nil {
		return nil, err
	}
	var lats []time.Duration
	pay := manyPayers(n, &lats, func(ctx context.Context, i int) error { return payHard(ctx, payers[i], hub) })
	m, err := rounds(ctx, o, pay, parts(o).hardCrowded)
	if err != nil {
		return nil, err
	}
	f := rate("cheque/hard/in-flight", "cheques/s", m[0], m[1],
		"the lesser of all cores on the signatures and checks of a cheque and a voucher, and Pebble's synced records by 256 writers over 5", 5000).
		with("in_flight", n).with("peers", n).
		note("both ends of all %d pairs and the chain share the machine and its disk", n).withCPU(m[0], series{})
	f.P50, f.P99 = percentiles(lats)
	return []Figure{f}, nil
}

// voucherNonce is that of the last voucher that was made for its crypto alone.
var voucherNonce atomic.Uint64

// voucherCrypto is the seconds that the signature of a voucher and the recovery of
// its signer take on one core.
func (c chequeParts) voucherCrypto(ctx context.Context, d time.Duration, goroutines int) (float64, error) {
	w := paychtest.NewWallet("bench")
	key := w.MustNew()
	var total atomic.Int64
	begin := time.Now()
	err := each(goroutines, goroutines, func(int) error {
		for time.Since(begin) < d {
			// Another each time: who signed the same bytes is remembered.
			sv := &paych.SignedVoucher{ChannelAddr: key, Nonce: voucherNonce.Add(1), Amount: big.NewInt(hardWallet)}
			signed, err := paych.Sign(ctx, w, key, sv)
			if err != nil {
				return err
			}
			if signer, err := paych.Signer(signed); err != nil || signer != key {
				return errors.Join(errors.New("own signature does not hold"), err)
			}
			total.Add(1)
		}
		return nil
	})
	return time.Since(begin).Seconds() / float64(total.Load()), err
}

// hardSerial is the rate of cheques that are nothing but crypto and syncs.
func (c chequeParts) hardSerial(ctx context.Context, d time.Duration) (float64, error) {
	cheque, err := c.crypto(d/6, 1)
	if err != nil {
		return 0, err
	}
	voucher, err := c.voucherCrypto(ctx, d/6, 1)
	if err != nil {
		return 0, err
	}
	fig, err := durable.BenchJournal(ctx, c.o.Dir, 1, d/4)
	if err != nil {
		return 0, err
	}
	return 1 / (cheque + voucher + hardSaves/fig.Fdatasync), nil
}

// hardCrowded is the bound of many at once.
func (c chequeParts) hardCrowded(ctx context.Context, d time.Duration) (float64, error) {
	cores := runtime.GOMAXPROCS(0)
	cheque, err := c.crypto(d/6, cores)
	if err != nil {
		return 0, err
	}
	voucher, err := c.voucherCrypto(ctx, d/6, cores)
	if err != nil {
		return 0, err
	}
	fig, err := durable.BenchJournal(ctx, c.o.Dir, scale(c.o, 256, 8), d/4)
	if err != nil {
		return 0, err
	}
	return min(1/(cheque+voucher), fig.Pebble/hardSaves), nil
}
