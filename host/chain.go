package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/host/settler"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/lotus"
	"github.com/tallystick/tally/paych/wallet"
	"github.com/tallystick/tally/swap"
)

const (
	// meetChainWithin bounds the wait for the chain's node at the start of a peer
	// that knows its chain, and meetNewChainWithin of one that does not.
	meetChainWithin    = 4 * time.Second
	meetNewChainWithin = 15 * time.Second
	// devWallet is what the payout address of a --dev peer is filled up to, in
	// attoFIL, when it has less than a tenth of it.
	devWallet = "100000000000000000000"
)

// StartError says why a peer does not start and what to do about it.
type StartError struct {
	Cause  error
	remedy string
}

func (e *StartError) Error() string { return e.Cause.Error() }

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Cause }

// Remedy says what to do about it.
func (e *StartError) Remedy() string { return e.remedy }

func refuse(remedy, format string, args ...any) error {
	return &StartError{fmt.Errorf(format, args...), remedy}
}

// chain is the payment channel part of a peer.
//
//	link ──▶ node of the chain          may be away at the start
//	 ▲  wallet ── <repo>/keystore/wallet, or the node's
//	 │    ▲
//	paych.Manager ──▶ durable.Store     the same as that of the tabs
type chain struct {
	node    repo.ChainNode
	facts   chainFacts
	link    *link
	wallet  paych.Wallet
	manager *paych.Manager

	// backing is told what happens to channels; settler is the same for the rest
	// of the peer. Both are nil but in mode hard.
	backing atomic.Pointer[settler.Settler]
	settler *settler.Settler
}

func newChain(node repo.ChainNode) *chain { return &chain{node: node} }

// chainSettings is where keys are kept and which chain is expected.
type chainSettings struct {
	keys    string // folder of the local wallet
	wallet  string // repo.WalletLocal or repo.WalletNode
	genesis string // cid; empty where any will do
	// finality in epochs; 0 for the chain's own.
	finality abi.ChainEpoch
}

func settingsOf(r *repo.Repo) chainSettings {
	c := r.Config()
	return chainSettings{keys: r.WalletDir(), wallet: c.Wallet, genesis: c.NetworkGenesis, finality: abi.ChainEpoch(c.ChainFinality)}
}

// chainFacts is what is remembered of the chain, so that a peer can start while
// the node is away and refuses the node of another chain.
type chainFacts struct {
	Network     string         `json:"network"`
	Genesis     cid.Cid        `json:"genesis"`
	SettleDelay abi.ChainEpoch `json:"settle_delay"`
	Finality    abi.ChainEpoch `json:"finality"`
	EpochNanos  int64          `json:"epoch_nanos"`
	Devnet      bool           `json:"devnet"`
	// Wallet is local or node, and Payout the address in it that is paid.
	Wallet string          `json:"wallet"`
	Payout address.Address `json:"payout"`
}

const (
	keyFacts     = "/host/chain"
	factsVersion = 1
)

func (f *chainFacts) params() paych.Params {
	return paych.Params{
		Network: f.Network, Genesis: f.Genesis, SettleDelay: f.SettleDelay, Finality: f.Finality, Epoch: time.Duration(f.EpochNanos),
	}
}

func (f *chainFacts) learn(c *lotus.Client) {
	p := c.Params()
	f.Network, f.Genesis, f.SettleDelay, f.Finality, f.EpochNanos = p.Network, p.Genesis, p.SettleDelay, p.Finality, int64(p.Epoch)
	f.Devnet = c.Devnet()
}

func loadFacts(ctx context.Context, s *durable.Store) (f chainFacts, known bool, err error) {
	rec, err := s.Get(ctx, keyFacts)
	if errors.Is(err, durable.ErrNotFound) {
		return f, false, nil
	}
	if err != nil {
		return f, false, err
	}
	_, payload, err := durable.Unseal(keyFacts, factsVersion, rec)
	if err == nil {
		err = json.Unmarshal(payload, &f)
	}
	if err != nil {
		return f, false, fmt.Errorf("record %s: %w", keyFacts, err)
	}
	return f, true, nil
}

func (f *chainFacts) save(ctx context.Context, s *durable.Store) error {
	payload, err := json.Marshal(f)
	if err != nil {
		return err
	}
	var b durable.Batch
	b.Put(keyFacts, durable.Seal(nil, keyFacts, factsVersion, payload))
	return s.Commit(ctx, &b)
}

// withoutChain refuses to leave channels alone: the other side of one could
// settle it, and nobody would hand our vouchers in.
func withoutChain(ctx context.Context, s *durable.Store) error {
	network, genesis, live, err := paych.Bound(ctx, s)
	switch {
	case errors.Is(err, paych.ErrNotFound):
		return nil
	case err != nil:
		return err
	case live == 0:
		return nil
	}
	f, _, err := loadFacts(ctx, s)
	if err != nil {
		return err
	}
	remedy := "tally start --chain URL, or set chain in " + repo.ConfigFile
	if f.Devnet {
		remedy += "; for the chain in the repo: tally start --dev"
	}
	return refuse(remedy, "%d channels on %s (%s) have to be watched, and no chain is configured", live, network, genesis)
}

// open opens what a peer needs for payment channels on an open store. A node that
// is away is waited for in the background, if the peer was on its chain before;
// one of another chain is refused. On an error nothing runs.
func (c *chain) open(ctx context.Context, set chainSettings, s *durable.Store, notify func(paych.Notice), log *slog.Logger) (err error) {
	node := c.node
	known := false
	if c.facts, known, err = loadFacts(ctx, s); err != nil {
		return err
	}
	cfg := lotus.Config{URL: node.URL, Token: node.Token, Finality: set.finality, Logger: log}
	if set.genesis != "" {
		if cfg.Genesis, err = cid.Decode(set.genesis); err != nil {
			return refuse("correct network_genesis in "+repo.ConfigFile, "network_genesis is no cid: %w", err)
		}
	}
	if err := cfg.Validate(); err != nil {
		return refuse("correct the address that "+node.From+" gives", "%w", err)
	}
	if !known {
		if err := c.meet(ctx, cfg); err != nil {
			return err
		}
	}
	cfg.Network, cfg.Genesis = c.facts.Network, c.facts.Genesis
	if err := c.openWallet(set); err != nil {
		return err
	}
	if set.wallet == repo.WalletLocal {
		cfg.Wallet = c.wallet
	}
	c.link = newLink(c.facts.params(), cfg, log)
	if set.wallet == repo.WalletNode {
		c.wallet = nodeWallet{c.link}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.link.close())
		}
	}()
	if err := c.reach(ctx, log); err != nil {
		return err
	}
	if err := c.choosePayout(ctx, set.wallet); err != nil {
		return err
	}
	c.manager, err = paych.Open(ctx, s, c.link, c.wallet, paych.Config{Logger: log, Notify: notify})
	if errors.Is(err, paych.ErrOtherChain) {
		return refuse(otherRepo, "%w", err)
	}
	if err != nil {
		return err
	}
	if err := c.facts.save(ctx, s); err != nil {
		return errors.Join(err, c.manager.Close())
	}
	return nil
}

// otherRepo is the remedy where two chains would meet in one repo.
const otherRepo = "set chain to a node of that chain, or use another repo for this one with --repo"

// meet learns the facts of a chain that the peer was never on. Without its node
// it cannot start: a mistake in the settings is the likely cause.
func (c *chain) meet(ctx context.Context, cfg lotus.Config) error {
	ctx, cancel := context.WithTimeout(ctx, meetNewChainWithin)
	defer cancel()
	client, err := lotus.Open(ctx, cfg)
	if err != nil {
		return c.refuse(err)
	}
	c.facts.learn(client)
	return client.Close()
}

// refuse gives an error of the node its remedy.
func (c *chain) refuse(err error) error {
	switch {
	case errors.Is(err, lotus.ErrWrongNetwork):
		return refuse(otherRepo, "%w; this repo is of %s", err, orText(c.facts.Network, "that of network_genesis"))
	case errors.Is(err, lotus.ErrDenied):
		return refuse("give the token of the node: --chain-token-file FILE, or "+repo.EnvChainToken, "the chain named by %s: %w", c.node.From, err)
	default:
		return refuse("start the node, or correct the address; on a devnet: tally devnet", "the chain named by %s: %w", c.node.From, err)
	}
}

// reach connects to the node. Where that is away the peer starts without.
func (c *chain) reach(ctx context.Context, log *slog.Logger) error {
	within, cancel := context.WithTimeout(ctx, meetChainWithin)
	defer cancel()
	err := c.link.connect(within)
	switch {
	case err == nil:
		// Some facts may have changed, such as the block time of a devnet.
		c.facts.learn(c.link.client.Load())
		c.link.params = c.facts.params()
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, lotus.ErrWrongNetwork), errors.Is(err, lotus.ErrDenied):
		return c.refuse(err)
	default: // whatever it is, the tabs go on, and status tells
		log.Error("the node of the chain does not answer; channels wait for it", "err", err)
		c.link.retry()
		return nil
	}
}

func (c *chain) openWallet(set chainSettings) error {
	if set.wallet != repo.WalletLocal {
		return nil
	}
	keys, err := wallet.Open(set.keys, wallet.Chain{Network: c.facts.Network, Genesis: c.facts.Genesis})
	if errors.Is(err, wallet.ErrOtherChain) {
		return refuse(otherRepo, "%w", err)
	}
	if err != nil {
		return err
	}
	c.wallet = keys
	return nil
}

// choosePayout finds the address that is paid, and makes a key at the first
// start.
func (c *chain) choosePayout(ctx context.Context, kind string) error {
	if c.facts.Payout != address.Undef && c.facts.Wallet == kind {
		return nil
	}
	list, err := c.wallet.List(ctx)
	if err != nil {
		return refuse("wallet = \"node\" needs the node at the first start", "list the keys of the wallet: %w", err)
	}
	c.facts.Wallet, c.facts.Payout = kind, address.Undef
	for _, a := range list {
		if a.Protocol() == address.SECP256K1 {
			c.facts.Payout = a
			return nil
		}
	}
	c.facts.Payout, err = c.wallet.New(ctx)
	return err
}

func orText(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// channels is what the RPC sees.
func (c *chain) channels() *rpc.Channels {
	return &rpc.Channels{Manager: c.manager, Wallet: c.wallet, Chain: c.link}
}

// fund fills the payout address of a --dev peer up.
func (c *chain) fund(ctx context.Context) error {
	full, err := big.FromString(devWallet)
	if err != nil {
		return err
	}
	have, err := c.link.Balance(ctx, c.facts.Payout)
	if err != nil || have.GreaterThanEqual(big.Div(full, big.NewInt(10))) {
		return err
	}
	client, err := c.link.get()
	if err != nil {
		return err
	}
	if _, err := client.Dev().DevFaucet(ctx, c.facts.Payout, big.Sub(full, have)); err != nil {
		return err
	}
	_, err = client.Dev().DevMine(ctx, 2) // the money is seen two blocks later
	return err
}

// realm is what cheques are bound to in mode hard. A unit is 1 nanoFIL.
func (c *chain) realm() swap.Realm {
	return swap.Realm{Network: c.facts.Network, Genesis: c.facts.Genesis.String(), Asset: "FIL"}
}

// openSettler backs the cheques of mode hard.
func (c *chain) openSettler(ctx context.Context, s *durable.Store, cfg settler.Config) (swap.Settler, error) {
	cfg.RedeemFee = c.link.RedeemFee
	backing, err := settler.Open(ctx, s, c.manager, c.wallet, c.link, c.facts.Payout, cfg)
	if err != nil {
		return nil, err
	}
	c.settler = backing
	c.backing.Store(backing)
	return backing, nil
}

// lockGround is what locks stand on, in mode hard.
func (c *chain) lockGround() *lockGround {
	return &lockGround{manager: c.manager, params: c.facts.params(), links: c.settler, fee: c.link.RedeemFee, wallet: c.wallet}
}

func settlerConfig(cfg repo.Config, log *slog.Logger) settler.Config {
	return settler.Config{
		InitialDeposit: tally.Amount(cfg.InitialDeposit), TopUp: tally.Amount(cfg.TopUp),
		MaxLocked: tally.Amount(cfg.MaxLocked), MaxLockedTotal: tally.Amount(cfg.MaxLockedTotal),
		Cashout: settler.CashoutPolicy{
			Amount: tally.Amount(cfg.CashoutAmount), Age: time.Duration(cfg.CashoutHours) * time.Hour, FeeRatio: cfg.CashoutFeeRatio,
		},
		Logger: log,
	}
}

// told passes a notice on. One that comes before there is a settler is made good
// for by its first look.
func (c *chain) told(n paych.Notice) {
	if s := c.backing.Load(); s != nil {
		s.Notify(n)
	}
}

// close ends the manager, then the link. The store is closed after.
func (c *chain) close() error { return errors.Join(c.manager.Close(), c.link.close()) }

// channelView is what the chain shows of a channel, at finality.
type channelView struct {
	from, to address.Address // of keys
	// free is what was not redeemed, in units.
	free     tally.Amount
	settling bool
}

// channel looks at a channel, of anybody.
func (c *chain) channel(ctx context.Context, name string) (v channelView, err error) {
	a, err := address.NewFromString(name)
	if err != nil {
		return v, err
	}
	st, has, err := c.link.Channel(ctx, a, c.facts.Finality)
	if err != nil {
		return v, err
	}
	v.settling = st.SettlingAt != 0
	units := big.Div(big.Max(big.Zero(), big.Sub(has, st.ToSend)), big.NewInt(settler.AttoPerUnit))
	if !units.IsUint64() {
		return v, tally.ErrOverflow
	}
	v.free = tally.Amount(units.Uint64())
	if v.from, err = c.link.ResolveKey(ctx, st.From); err != nil {
		return v, err
	}
	v.to, err = c.link.ResolveKey(ctx, st.To)
	return v, err
}

// ends reports whether a channel of ours settles, or is over, as the manager knows it.
func (c *chain) ends(ctx context.Context, ch address.Address) bool {
	info, err := c.manager.PaychInfo(ctx, ch)
	return err != nil || info.Phase != paych.PhaseOpen
}
