package settler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/swap"
)

// laneTab is the lane that settles the tab.
const laneTab = 0

// maxUnlinked bounds the peers whose address is kept without a channel: one costs
// its peer a handshake, and comes again with the next.
const maxUnlinked = 1 << 16

// feeFresh is how long the fee is not asked for again, and feeStale how long the
// last answer stands while the chain is away.
const (
	feeFresh = time.Minute
	feeStale = time.Hour
)

// Config is what an operator decides. Amounts are units; a zero field takes its
// default.
type Config struct {
	// InitialDeposit goes into a new channel, and TopUp is the least that is added
	// to one. Both are raised to what is owed. Default 10,000 each.
	InitialDeposit, TopUp tally.Amount
	// Ahead is reserved in each channel for the next cheques, so that they seldom
	// wait for the chain. Default half of TopUp.
	Ahead tally.Amount
	// MaxLocked is the most that we keep in the channel to one peer, and
	// MaxLockedTotal in all of them. Defaults 100 and 10,000 × InitialDeposit.
	MaxLocked, MaxLockedTotal tally.Amount
	// Cashout is when vouchers are submitted without being asked.
	Cashout CashoutPolicy
	// RedeemFee tells what it costs the payee to submit, settle and collect, in
	// attoFIL. Cheques are refused until the payout address holds it. Default: 0.
	RedeemFee func(ctx context.Context) (big.Int, error)
	// Every is the time between two looks at channels that end and at the cash-out
	// policy. Default: the chain's epoch, at least 50 ms and at most 30 s.
	Every time.Duration
	// Logger default: slog.Default.
	Logger *slog.Logger
}

// Validate fills in the defaults and reports what cannot be.
func (c *Config) Validate(epoch time.Duration) error {
	set := func(field *tally.Amount, def tally.Amount) {
		if *field == 0 {
			*field = def
		}
	}
	set(&c.InitialDeposit, 10_000)
	set(&c.TopUp, 10_000)
	set(&c.Ahead, max(1, c.TopUp/2))
	set(&c.MaxLocked, times(c.InitialDeposit, 100))
	set(&c.MaxLockedTotal, times(c.InitialDeposit, 10_000))
	if c.Every == 0 {
		c.Every = min(max(epoch, 50*time.Millisecond), 30*time.Second)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	switch {
	case c.InitialDeposit > c.MaxLocked:
		return fmt.Errorf("settler: initial deposit %d is over the %d that may be locked for one peer; lower it or raise max_locked", c.InitialDeposit, c.MaxLocked)
	case c.MaxLocked > c.MaxLockedTotal:
		return fmt.Errorf("settler: max_locked %d for one peer is over max_locked_total %d", c.MaxLocked, c.MaxLockedTotal)
	}
	return nil
}

func times(a, n tally.Amount) tally.Amount {
	product, err := a.Mul(n)
	if err != nil {
		return ^tally.Amount(0)
	}
	return product
}

// Book is what the settler tells of the chain: a swap.Book.
type Book interface {
	Retry(p peer.ID) error
	Cover(p peer.ID) error
	Final(p peer.ID, dir swap.Direction, total tally.Amount) error
}

// What keeps a cheque from being backed. The book shows the text as the reason
// why nothing is settled yet.
var (
	// ErrOpening: the channel is being created.
	ErrOpening = errors.New("settler: the channel is being opened on the chain")
	// ErrFunding: the channel is being topped up.
	ErrFunding = errors.New("settler: the channel is being topped up on the chain")
	// ErrClosing: the channel settles, and the next one has to wait for its end.
	ErrClosing = errors.New("settler: the channel to the peer is closing; the next opens once it is collected")
	// ErrLocked: as much as the operator allows is locked in channels already.
	ErrLocked = errors.New("settler: no more may be locked in channels")
	// ErrNoPayout: the peer told no payout address in this run.
	ErrNoPayout = errors.New("settler: the peer has told no payout address yet")
	// ErrFee: our payout address could not pay for cashing in.
	ErrFee = errors.New("settler: the payout address holds too little to cash in")
)

// Settler backs cheques with vouchers. It implements swap.PayoutSettler. All
// methods may be called at the same time.
type Settler struct {
	store  *durable.Store
	paych  *paych.Manager
	wallet paych.Wallet
	chain  paych.Chain
	self   address.Address
	cfg    Config
	log    *slog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	kick   chan struct{} // look at ending channels now

	// feeMu guards feeAt, when the payout address last held the fee.
	feeMu sync.Mutex
	feeAt time.Time

	// mu guards the fields below and the links of relations, which change only in
	// their turn.
	mu        sync.Mutex
	book      Book
	closed    bool
	proof     proof
	relations map[peer.ID]*relation
	channels  map[address.Address]way
}

// way is whose cheques a channel backs.
type way struct {
	peer peer.ID
	dir  swap.Direction
}

var _ swap.PayoutSettler = (*Settler)(nil)

// Open reads what is bound. self is our payout address, whose key wallet has. The
// store is shared with manager and book, and belongs to the caller. Give Notify to
// the manager's Config.
func Open(ctx context.Context, store *durable.Store, m *paych.Manager, wallet paych.Wallet, chain paych.Chain, self address.Address, cfg Config) (*Settler, error) {
	if err := cfg.Validate(chain.Params().Epoch); err != nil {
		return nil, err
	}
	s := &Settler{
		store: store, paych: m, wallet: wallet, chain: chain, self: self, cfg: cfg, log: cfg.Logger,
		kick:      make(chan struct{}, 1),
		relations: make(map[peer.ID]*relation), channels: make(map[address.Address]way),
	}
	all, err := load(ctx, store)
	if err != nil {
		return nil, err
	}
	if s.proof, err = loadProof(ctx, store); err != nil {
		return nil, err
	}
	for _, r := range all {
		s.relations[r.peer] = r
		for _, dir := range [...]swap.Direction{swap.Serve, swap.Consume} {
			if l := r.link(dir); l.channel != address.Undef {
				if _, taken := s.channels[l.channel]; taken {
					return nil, fmt.Errorf("%w: two peers have the channel %s", errRecord, l.channel)
				}
				s.channels[l.channel] = way{r.peer, dir}
			}
		}
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return s, nil
}

// Start begins to tell book what happens on the chain.
func (s *Settler) Start(book Book) {
	s.mu.Lock()
	s.book = book
	s.mu.Unlock()
	s.spawn(s.watch) // ends with Close
}

// Close ends the work. Call it before manager and book are closed.
func (s *Settler) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.tasks.Wait()
	return nil
}

// spawn runs fn on a goroutine that Close waits for; fn ends with s.ctx.
func (s *Settler) spawn(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.tasks.Go(fn)
	}
}

// relation returns what is known of a peer.
func (s *Settler) relation(p peer.ID) *relation {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.relations[p]
	if r == nil {
		if len(s.relations) >= maxUnlinked {
			s.forgetOne()
		}
		r = newRelation(p)
		s.relations[p] = r
	}
	return r
}

// forgetOne drops a relation without a channel, of which the map's order is as
// good a choice as any. Called with s.mu held.
func (s *Settler) forgetOne() {
	for p, r := range s.relations {
		if !r.live() && len(r.turn) == 0 {
			delete(s.relations, p)
			return
		}
	}
}

// save writes a relation; change is made in memory once that is on disk. Called
// in the relation's turn.
func (s *Settler) save(r *relation, change func(*relation)) error {
	s.mu.Lock()
	next := *r
	s.mu.Unlock()
	change(&next)
	var b durable.Batch
	key := relationKey(r.peer)
	b.Put(key, durable.Seal(nil, key, relationVersion, next.encode()))
	if err := s.store.Commit(context.WithoutCancel(s.ctx), &b); err != nil {
		return fmt.Errorf("settler: save relation with %s: %w", r.peer, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, dir := range [...]swap.Direction{swap.Serve, swap.Consume} {
		if old, now := r.link(dir).channel, next.link(dir).channel; old != now {
			if old != address.Undef {
				delete(s.channels, old)
			}
			if now != address.Undef {
				s.channels[now] = way{r.peer, dir}
			}
		}
	}
	r.address, r.out, r.in, r.numbers = next.address, next.out, next.in, next.numbers
	s.relations[r.peer] = r // it may have been forgotten while nothing was linked
	return nil
}

// owner returns whose channel an address is.
func (s *Settler) owner(ch address.Address) (way, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.channels[ch]
	return w, ok
}

// Linked returns the channel that settles the tab with a peer, ours to it (out) or
// its to us, and the tag that the channel manager knows its owner by.
func (s *Settler) Linked(p peer.ID, out bool) (ch address.Address, owner string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.relations[p]
	switch {
	case r == nil:
		return address.Undef, "", false
	case out:
		return r.out.channel, tag(p, r.out.number), r.out.state == linkBound
	default:
		return r.in.channel, tagIn(p, r.in.channel), r.in.state == linkBound
	}
}

func (s *Settler) told() Book {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.book
}

// tag names our n-th channel with a peer to the channel manager.
func tag(p peer.ID, number uint64) string { return fmt.Sprintf("swap/out/%s/%d", p, number) }

// tagIn names the peer's channel to us.
func tagIn(p peer.ID, ch address.Address) string { return fmt.Sprintf("swap/in/%s/%s", p, ch) }

// Payout implements swap.PayoutSettler.
func (s *Settler) Payout(ctx context.Context, p peer.ID, text func(address string) []byte) (swap.Payout, error) {
	o := swap.Payout{Address: s.self.String()}
	var err error
	if o.Proof, err = s.prove(ctx, text(o.Address)); err != nil {
		return swap.Payout{}, err
	}
	r := s.relation(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.out.state == linkBound {
		o.Channel, o.Origin = r.out.channel.String(), r.out.origin
	}
	return o, nil
}

// BindPeer implements swap.PayoutSettler. The address is a key's own: its
// signature then shows whose it is, without asking the chain.
func (s *Settler) BindPeer(ctx context.Context, p peer.ID, o swap.Payout, text []byte) error {
	addr, err := address.NewFromString(o.Address)
	if err != nil || addr.Protocol() != address.SECP256K1 || addr.String() != o.Address {
		return fmt.Errorf("%q is not an f1 address of this network", clip(o.Address))
	}
	var sig crypto.Signature
	if err := sig.UnmarshalBinary(o.Proof); err != nil {
		return fmt.Errorf("proof of %s: %w", addr, err)
	}
	if err := paych.VerifySignature(&sig, addr, text); err != nil {
		return fmt.Errorf("proof of %s: %w", addr, err)
	}
	if addr == s.self {
		return fmt.Errorf("%s is our own payout address", addr)
	}
	r := s.relation(p)
	if err := r.take(ctx); err != nil {
		return err
	}
	defer r.give()
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.live() && r.address != address.Undef && r.address != addr {
		return fmt.Errorf("it was %s, and cannot change to %s while a channel lives", r.address, addr)
	}
	if !r.live() {
		r.address = addr
	}
	r.proof = bytes.Clone(o.Proof)
	return nil
}

// Proof returns what a peer's last handshake in this run showed for its payout address:
// the address' signature over swap.PayoutText; nil where there was none.
func (s *Settler) Proof(p peer.ID) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.relations[p]; r != nil {
		return r.proof
	}
	return nil
}

// clip shortens what a peer sent before it is repeated.
func clip(text string) string {
	const most = 80
	if len(text) <= most {
		return text
	}
	return text[:most] + "…"
}
