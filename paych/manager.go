package paych

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// Config is what may be decided about a manager. The zero value is the default.
type Config struct {
	// SubmitMargin is how many epochs a message may take to be mined; default 20,
	// at most an eighth of the chain's SettleDelay.
	SubmitMargin abi.ChainEpoch
	// MaxSettleExtension bounds what a voucher's MinSettleHeight may add to the
	// chain's SettleDelay, in epochs; default SettleDelay.
	MaxSettleExtension abi.ChainEpoch
	// SlotLanes is the number of lock slots of an owned channel; default 64.
	SlotLanes uint64
	// NoAutoCollect leaves settled channels to PaychCollect.
	NoAutoCollect bool
	// WatchEvery is how often a quiet channel is looked at, in epochs; default a
	// 64th of SettleDelay, at least 1. A channel that settles or holds time locks
	// is looked at in each epoch.
	WatchEvery abi.ChainEpoch
	// CallTimeout bounds one call to the chain; default 1 min. Waiting for a
	// receipt is not bounded.
	CallTimeout time.Duration
	// Logger; default slog.Default().
	Logger *slog.Logger
	// Notify is told what happens without a call, one thing after the other. It may
	// call the manager. Close waits for it.
	Notify func(Notice)
}

// Validate fills in the defaults for a chain and reports what cannot be.
func (c *Config) Validate(p Params) error {
	if p.SettleDelay <= 0 || p.Finality < 0 {
		return fmt.Errorf("paych: chain with a settle delay of %d and a finality of %d", p.SettleDelay, p.Finality)
	}
	if c.SubmitMargin < 0 || c.MaxSettleExtension < 0 || c.WatchEvery < 0 || c.CallTimeout < 0 {
		return errors.New("paych: a duration of the config is below 0")
	}
	if c.SubmitMargin == 0 {
		c.SubmitMargin = min(20, p.SettleDelay/8)
	}
	if c.SubmitMargin >= p.SettleDelay {
		return fmt.Errorf("paych: a submit margin of %d epochs leaves nothing of a settle delay of %d", c.SubmitMargin, p.SettleDelay)
	}
	if c.MaxSettleExtension == 0 {
		c.MaxSettleExtension = p.SettleDelay
	}
	if c.SlotLanes == 0 {
		c.SlotLanes = 64
	}
	if c.WatchEvery == 0 {
		c.WatchEvery = max(1, p.SettleDelay/64)
	}
	if c.CallTimeout == 0 {
		c.CallTimeout = time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Notify == nil {
		c.Notify = func(Notice) {}
	}
	return nil
}

// NoticeKind says what happened.
type NoticeKind string

// Kinds of notices. The words are part of the API.
const (
	NoticeOpened    NoticeKind = "opened"
	NoticeFunded    NoticeKind = "funded"
	NoticeFailed    NoticeKind = "message failed"
	NoticeSettling  NoticeKind = "settling"
	NoticeSubmitted NoticeKind = "voucher submitted"
	NoticeSecret    NoticeKind = "secret seen"
	NoticeCollected NoticeKind = "collected"
	// NoticeCover: what an inbound channel's vouchers would pay fell, by a
	// reorganisation, a voucher that the chain refuses, or a time that ran out.
	NoticeCover NoticeKind = "cover fell"
)

// Notice is one thing that happened without a call.
type Notice struct {
	Kind    NoticeKind
	Channel address.Address
	Cid     cid.Cid         // of the message, where there is one
	Err     error           // of NoticeFailed
	Secret  *tally.Preimage // of NoticeSecret: it was seen on the chain
	Final   *Final          // of NoticeCollected
	Cover   *Cover          // of NoticeCover: of all lanes together; PaychCover has one lane's
}

// Manager is the payment channel manager. All methods may be called at the same
// time from any goroutine.
//
// Each channel has one lock, held for one step of its state machine, never over
// disk, chain or signing. What a call decided is on disk before anything leaves.
type Manager struct {
	store  *durable.Store
	chain  Chain
	wallet Wallet
	cfg    Config
	params Params
	rules  Rules
	log    *slog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	head   atomic.Int64  // epoch of the chain's head, as last told
	told   atomic.Int64  // when that was, Unix time in nanoseconds
	looks  chan struct{} // places for looks at the chain

	// mu guards the fields below. It may be taken under an account's mu, never the
	// other way round.
	mu       sync.Mutex
	closed   bool
	tasks    sync.WaitGroup // Add under mu while closed is false
	accounts map[uint64]*account
	byAddr   map[address.Address]*account
	byTag    map[string]*account
	byCid    map[cid.Cid]*outgoing
	senders  map[address.Address]chan struct{}
	nextID   uint64
	nextCall uint64
	// tracked are the accounts that had no record when they were taken up, oldest
	// first.
	tracked []*account
	news    []Notice // not told yet
	telling bool     // a goroutine tells them
}

var _ PaymentChannelManagerAPI = (*Manager)(nil)

// maxTracked bounds the channels that are in memory because somebody named them,
// and of which nothing is worth a record: each costs whoever made it a message, but
// us as well, memory and looks at the chain. The oldest makes room.
const maxTracked = 1024

// maxLooks bounds the channels that are looked at on the chain at one time.
const maxLooks = 8

// maxSpareBatch bounds what a channel keeps of the memory of a save, in bytes. A
// voucher takes about one KiB.
const maxSpareBatch = 16 << 10

// account is one channel with what is needed to save and send.
type account struct {
	// look is the turn to look at the chain, so that views are taken in order.
	look chan struct{}
	// again is the turn of calls that give a voucher once however often they come.
	again chan struct{}

	// mu guards the fields below.
	mu     sync.Mutex
	ch     *Channel
	dirt   dirt
	gen    uint64 // changes made
	saved  uint64 // changes on disk
	saving bool
	batch  durable.Batch // of the save under way, whose memory is used again
	gate   chan struct{} // closed when the save under way is done
	broken error         // the save failed; so has the store
	// waiting are the calls that wait for a top-up.
	waiting map[uint64]chan answer
	// sending are the messages under way.
	sending map[sendKey]*outgoing
	// finished are the keys of messages with a receipt, oldest first.
	finished []*outgoing

	lookedAt  abi.ChainEpoch
	looking   bool // a look is queued
	archiving bool
	forgotten bool // by forget: another account may have the channel by now
}

// sendKey names what a message is for; there is one at a time.
type sendKey struct {
	kind messageKind
	lane uint64
}

type answer struct {
	cid cid.Cid
	err error
}

func newAccount(c *Channel) *account {
	return &account{
		look: make(chan struct{}, 1), again: make(chan struct{}, 1), ch: c, gate: make(chan struct{}), lookedAt: -1 << 40,
		waiting: make(map[uint64]chan answer), sending: make(map[sendKey]*outgoing),
		dirt: dirt{lanes: make(map[uint64]struct{}), messages: make(map[string]*message)},
	}
}

// Open reads the store and takes up what is unfinished: the messages that have no
// receipt are published again, the same bytes, and every channel is looked at. It
// does not wait for the chain. The store belongs to the caller and is closed after
// the manager.
func Open(ctx context.Context, store *durable.Store, chain Chain, wallet Wallet, cfg Config) (*Manager, error) {
	p := chain.Params()
	if err := cfg.Validate(p); err != nil {
		return nil, err
	}
	m := &Manager{
		store: store, chain: chain, wallet: wallet, cfg: cfg, params: p, log: cfg.Logger,
		rules: Rules{
			SettleDelay: p.SettleDelay, SubmitMargin: cfg.SubmitMargin,
			MaxSettleExtension: cfg.MaxSettleExtension, SlotLanes: cfg.SlotLanes, AutoCollect: !cfg.NoAutoCollect,
		},
		looks:    make(chan struct{}, maxLooks),
		accounts: make(map[uint64]*account), byAddr: make(map[address.Address]*account),
		byTag: make(map[string]*account), byCid: make(map[cid.Cid]*outgoing),
		senders: make(map[address.Address]chan struct{}), nextID: 1,
	}
	if err := ensureChain(ctx, store, p); err != nil {
		return nil, err
	}
	all, err := load(ctx, store, &m.rules)
	if err != nil {
		return nil, err
	}
	m.ctx, m.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for id, c := range all.channels {
		a := newAccount(c)
		a.gen, a.saved = 1, 1 // it has a record
		m.accounts[id] = a
		m.nextID = max(m.nextID, id+1)
		if c.Addr != address.Undef {
			m.byAddr[c.Addr] = a
		}
		if c.Tag != "" && c.Phase != PhaseFailed && !c.Buried {
			m.byTag[c.Tag] = a
		}
	}
	m.resume(all.messages)
	m.spawn(m.watch) // ends with Close
	return m, nil
}

// Close ends all work and saves what is newer than the disk. What is unfinished
// goes on after the next Open.
func (m *Manager) Close() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.tasks.Wait()
	var errs []error
	for _, a := range m.list() {
		a.mu.Lock()
		keep := !a.dirt.empty() && a.broken == nil && a.saved > 0
		a.mu.Unlock()
		if keep {
			errs = append(errs, m.save(a))
		}
	}
	return errors.Join(errs...)
}

// spawn runs fn on a goroutine that Close waits for; fn ends with m.ctx. It
// reports false after Close.
func (m *Manager) spawn(fn func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.tasks.Go(fn)
	return true
}

// list returns all accounts by id.
func (m *Manager) list() []*account {
	m.mu.Lock()
	defer m.mu.Unlock()
	ids := make([]uint64, 0, len(m.accounts))
	for id := range m.accounts {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	all := make([]*account, len(ids))
	for i, id := range ids {
		all[i] = m.accounts[id]
	}
	return all
}

// call returns a context for one call to the chain.
func (m *Manager) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, m.cfg.CallTimeout)
}

// now is the epoch of the chain's head.
func (m *Manager) now(ctx context.Context) (abi.ChainEpoch, error) {
	if h := m.head.Load(); h > 0 {
		return abi.ChainEpoch(h), nil
	}
	ctx, cancel := m.call(ctx)
	defer cancel()
	h, err := m.chain.Head(ctx)
	if err != nil {
		return 0, fmt.Errorf("paych: chain head: %w", err)
	}
	if m.head.CompareAndSwap(0, int64(h)) {
		m.told.Store(time.Now().UnixNano())
	}
	return h, nil
}

func (m *Manager) lastHead() abi.ChainEpoch { return abi.ChainEpoch(m.head.Load()) }

// step lets the channel take an event and starts what it asks for. Called with
// a.mu held. What it changed is on disk after the next save.
func (m *Manager) step(a *account, ev event) (Effect, error) {
	if a.forgotten {
		return Effect{}, fmt.Errorf("%w: channels without a voucher: call again", ErrTooMany)
	}
	before := a.ch.Phase
	var cover Cover
	watched := a.ch.Direction == PCHInbound && loses(ev)
	if watched {
		cover = a.ch.covered()
	}
	fx, err := a.ch.Step(m.lastHead(), ev)
	if err != nil {
		return Effect{}, err
	}
	answered := m.take(a, fx)
	if ids := a.ch.Stranded(); ids != nil {
		m.reply(a, ids, answer{err: a.ch.live()})
	}
	if before == PhaseOpen && a.ch.Phase == PhaseSettling {
		m.notify(Notice{Kind: NoticeSettling, Channel: a.ch.Addr})
	}
	if watched {
		if now := a.ch.covered(); now.below(&cover) {
			m.notify(Notice{Kind: NoticeCover, Channel: a.ch.Addr, Cover: &now})
		}
	}
	return answered, nil
}

// loses reports whether the cover may fall by an event of the chain.
func loses(ev event) bool {
	switch ev.(type) {
	case evViewed, evSubmitDone:
		return true
	}
	return false
}

// take marks what has to be saved and starts what has to be sent; each sender
// saves before it publishes. It returns the effect that is for the caller.
func (m *Manager) take(a *account, fx []Effect) (answered Effect) {
	c := a.ch
	for _, f := range fx {
		switch f.Kind {
		case FxSave:
			a.dirt.channel = true
			a.gen++
		case FxSaveLane:
			a.dirt.lanes[f.Lane] = struct{}{}
			a.gen++
		case FxRecord:
			origin := OriginGiven
			switch l := c.Lanes[f.Lane]; {
			case l != nil && l.Refund == f.Voucher:
				origin = OriginRefund
			case c.Direction == PCHInbound:
				origin = OriginReceived
			}
			a.dirt.history = append(a.dirt.history, entry{serial: c.Vouchers, origin: origin, epoch: m.lastHead(), voucher: f.Voucher})
		case FxSign, FxAnswer:
			answered = f
		case FxGrant:
			m.reply(a, f.Requests, answer{})
		case FxTopUp:
			m.start(a, &outgoing{key: sendKey{kind: messageTopUp}, value: f.Amount, requests: f.Requests})
		case FxSubmit:
			var secret []byte
			if f.Secret != nil {
				secret = f.Secret[:]
			}
			m.start(a, &outgoing{key: sendKey{kind: messageSubmit, lane: f.Lane}, voucher: f.Voucher, secret: secret})
		case FxSettle:
			m.start(a, &outgoing{key: sendKey{kind: messageSettle}})
		case FxCollect:
			m.start(a, &outgoing{key: sendKey{kind: messageCollect}})
		case FxArchive:
			if !a.archiving {
				a.archiving = true
				m.spawn(func() { m.archive(a) }) // ends with the answer, or with Close
			}
		}
	}
	return answered
}

// reply answers calls that wait for a top-up. Called with a.mu held.
func (m *Manager) reply(a *account, requests []uint64, ans answer) {
	for _, id := range requests {
		if w := a.waiting[id]; w != nil {
			w <- ans // has room for its one answer
			delete(a.waiting, id)
		}
	}
}

// save returns when all that was changed before is on disk. Saves of one channel
// are one at a time, so that an older record never replaces a newer one; those
// who wait share the next one.
func (m *Manager) save(a *account) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for target := a.gen; ; {
		switch {
		case a.broken != nil:
			return a.broken
		case a.saved >= target:
			return nil
		case a.saving:
			gate := a.gate
			a.mu.Unlock()
			<-gate
			a.mu.Lock()
			continue
		}
		upto := a.gen
		a.batch.Reset()
		err := a.dirt.batch(a.ch, &a.batch)
		a.dirt.reset()
		a.saving = true
		a.mu.Unlock()
		if err == nil {
			err = m.store.Commit(context.WithoutCancel(m.ctx), &a.batch)
		}
		a.mu.Lock()
		if a.batch.Bytes() > maxSpareBatch {
			a.batch = durable.Batch{}
		}
		a.saving = false
		close(a.gate)
		a.gate = make(chan struct{})
		if err != nil {
			// What is in memory is ahead of the disk, and nothing says how far: only
			// a restart makes them one again.
			a.broken = fmt.Errorf("paych: save channel %s: %w", a.ch.Addr, err)
			continue
		}
		a.saved = upto
	}
}

// do takes one event and saves what it changed.
func (m *Manager) do(a *account, ev event) (Effect, error) {
	a.mu.Lock()
	if a.broken != nil {
		defer a.mu.Unlock()
		return Effect{}, a.broken
	}
	fx, err := m.step(a, ev)
	a.mu.Unlock()
	if err != nil {
		return Effect{}, err
	}
	return fx, m.save(a)
}

type tagKey struct{}

// WithTag names the consumer that a call is for. PaychCreate with a tag makes one
// channel however often it is called; calls on an owned channel's lanes need its
// tag.
func WithTag(ctx context.Context, tag string) context.Context {
	return context.WithValue(ctx, tagKey{}, tag)
}

func tagOf(ctx context.Context) string {
	tag, _ := ctx.Value(tagKey{}).(string)
	return tag
}

// account returns the channel at addr. One that we do not track yet is looked up
// on the chain, and tracked where one side of it is ours.
func (m *Manager) account(ctx context.Context, addr address.Address) (*account, error) {
	m.mu.Lock()
	a, closed := m.byAddr[addr], m.closed
	m.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	if a != nil {
		return a, nil
	}
	// A channel has a short address too, which a reorganisation can give to
	// another; and two names for one channel would be two channels to us.
	if addr.Protocol() != address.Actor {
		return nil, fmt.Errorf("%w: channel %s", ErrAddress, addr)
	}
	return m.track(ctx, addr)
}

// idle reports whether nothing of an inbound channel is worth a record. Outbound
// ones only we can make. Called with a.mu held.
func (a *account) idle() bool {
	c := a.ch
	return c.Direction == PCHInbound && a.saved == 0 && !a.saving && a.broken == nil &&
		len(a.sending) == 0 && c.Vouchers == 0 && !c.Owned
}

// forget takes the oldest account without a record out of memory where there are
// too many.
func (m *Manager) forget() {
	for {
		m.mu.Lock()
		if len(m.tracked) <= maxTracked {
			m.mu.Unlock()
			return
		}
		a := m.tracked[0]
		m.tracked = slices.Delete(m.tracked, 0, 1)
		m.mu.Unlock()
		a.mu.Lock()
		if a.idle() {
			a.forgotten = true
			m.mu.Lock()
			delete(m.accounts, a.ch.ID)
			delete(m.byAddr, a.ch.Addr)
			m.mu.Unlock()
		}
		a.mu.Unlock()
	}
}

// track takes a channel up that somebody else created, or that a lost store knew.
func (m *Manager) track(ctx context.Context, addr address.Address) (*account, error) {
	v, st, err := m.fetch(ctx, addr)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, fmt.Errorf("%w: %s", ErrNoChannel, addr)
	case err != nil:
		return nil, err
	case v.Gone:
		return nil, ErrCollected
	}
	cctx, cancel := m.call(ctx)
	defer cancel()
	from, err := m.chain.ResolveKey(cctx, st.From)
	if err != nil {
		return nil, fmt.Errorf("paych: key of payer %s: %w", st.From, err)
	}
	to, err := m.chain.ResolveKey(cctx, st.To)
	if err != nil {
		return nil, fmt.Errorf("paych: key of payee %s: %w", st.To, err)
	}
	dir := PCHInbound
	ours, err := m.wallet.Has(ctx, to)
	if err == nil && !ours {
		dir = PCHOutbound
		ours, err = m.wallet.Has(ctx, from)
	}
	if err != nil {
		return nil, fmt.Errorf("paych: wallet: %w", err)
	}
	if !ours {
		return nil, fmt.Errorf("%w: %s is between others", ErrNoChannel, addr)
	}
	defer m.forget()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if a := m.byAddr[addr]; a != nil {
		return a, nil
	}
	c := NewChannel(m.nextID, dir, from, to, big.Zero(), &m.rules)
	c.Addr, c.Phase = addr, PhaseOpen
	a := newAccount(c) // nobody else has it yet
	// Its record waits for the first thing worth saving, so that nobody fills our
	// disk by naming channels.
	fx, err := c.Step(m.lastHead(), v)
	if err != nil {
		return nil, err
	}
	a.lookedAt = v.Head.Height
	m.nextID++
	m.accounts[c.ID], m.byAddr[addr] = a, a
	m.tracked = append(m.tracked, a)
	for _, f := range fx {
		switch f.Kind {
		case FxSave:
			a.dirt.channel = true
		case FxSaveLane:
			a.dirt.lanes[f.Lane] = struct{}{}
		}
	}
	return a, nil
}

// CreateSpec is a channel to be created.
type CreateSpec struct {
	From, To address.Address
	Amount   big.Int
	// Tag makes the call idempotent: there is one channel for a tag, until that is
	// collected for good. Owned closes
	// the channel's lanes of tab, slots and guard to calls without the tag.
	Tag   string
	Owned bool
	// Reserve: the amount is reserved from the beginning, as PaychReserveFunds
	// would once the channel is there.
	Reserve bool
}

// PaychCreate implements PaymentChannelManagerAPI.
func (m *Manager) PaychCreate(ctx context.Context, from, to address.Address, amt big.Int) (cid.Cid, error) {
	return m.PaychCreateSpec(ctx, CreateSpec{From: from, To: to, Amount: amt, Tag: tagOf(ctx)})
}

// PaychCreateSpec is PaychCreate with all that can be said about a channel.
func (m *Manager) PaychCreateSpec(ctx context.Context, s CreateSpec) (cid.Cid, error) {
	if s.Amount.Int == nil || s.Amount.Sign() <= 0 {
		return cid.Undef, ErrZeroAmount
	}
	if s.Owned && s.Tag == "" {
		return cid.Undef, fmt.Errorf("%w: by nobody: a tag is missing", ErrOwned)
	}
	from, err := m.resolve(ctx, s.From)
	if err != nil {
		return cid.Undef, err
	}
	to, err := m.resolve(ctx, s.To)
	if err != nil {
		return cid.Undef, err
	}
	if from.Protocol() != address.SECP256K1 {
		return cid.Undef, fmt.Errorf("%w: vouchers need a secp256k1 payer, not %s", ErrAddress, from)
	}
	if ok, err := m.wallet.Has(ctx, from); err != nil || !ok {
		return cid.Undef, errors.Join(fmt.Errorf("%w: %s", ErrNoKey, from), err)
	}
	// The message is under way before anybody finds the account by its tag.
	amount := big.NewFromGo(s.Amount.Int) // the caller's may change
	c := NewChannel(0, PCHOutbound, from, to, amount, &m.rules)
	c.Tag, c.Owned = s.Tag, s.Owned
	if s.Reserve {
		c.Reserved = amount
	}
	a := newAccount(c)
	o := &outgoing{key: sendKey{kind: messageCreate}, value: amount}
	a.mu.Lock()
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		a.mu.Unlock()
		return cid.Undef, ErrClosed
	}
	other := m.byTag[s.Tag]
	if s.Tag == "" || other == nil {
		c.ID = m.nextID
		m.nextID++
		if s.Tag != "" {
			m.byTag[s.Tag] = a
		}
		m.mu.Unlock()
		m.start(a, o)
		a.mu.Unlock()
		return o.wait(ctx)
	}
	m.mu.Unlock()
	a.mu.Unlock()
	if id, stands, err := other.created(ctx, from, to); stands {
		return id, err
	}
	m.untag(other)
	return m.PaychCreateSpec(ctx, s)
}

// PaychTagged returns the message that created a tag's channel, or is about to;
// the tag of a collected channel has none.
func (m *Manager) PaychTagged(tag string) (cid.Cid, bool) {
	m.mu.Lock()
	a := m.byTag[tag]
	m.mu.Unlock()
	if a == nil || tag == "" {
		return cid.Undef, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ch.Created, a.ch.Created.Defined()
}

// PaychTaggedInfo is PaychInfo of a tag's channel, which may have no address yet.
func (m *Manager) PaychTaggedInfo(tag string) (ChannelInfo, bool) {
	m.mu.Lock()
	a := m.byTag[tag]
	m.mu.Unlock()
	if a == nil || tag == "" {
		return ChannelInfo{}, false
	}
	return m.info(a), true
}

// created returns the message that made a channel, or how that went; stands is false
// where the channel is collected for good, or was never created. What a create that
// fails meanwhile changes is read at one time: else it would neither be under way, nor
// leave a message.
func (a *account) created(ctx context.Context, from, to address.Address) (id cid.Cid, stands bool, err error) {
	a.mu.Lock()
	c, o := a.ch, a.sending[sendKey{kind: messageCreate}]
	id = c.Created
	gone := c.Buried || c.Phase == PhaseFailed || c.Phase == PhaseCreating && !id.Defined() && o == nil
	same := c.From == from && c.To == to
	a.mu.Unlock()
	switch {
	case gone:
		return cid.Undef, false, nil
	case !same:
		return cid.Undef, true, fmt.Errorf("%w: tag %q has a channel from %s to %s", ErrOwned, c.Tag, c.From, c.To)
	case o != nil:
		id, err = o.wait(ctx)
	}
	return id, true, err
}

// resolve returns the key address of an account.
func (m *Manager) resolve(ctx context.Context, a address.Address) (address.Address, error) {
	switch a.Protocol() {
	case address.SECP256K1, address.BLS:
		return a, nil
	case address.ID:
		ctx, cancel := m.call(ctx)
		defer cancel()
		key, err := m.chain.ResolveKey(ctx, a)
		if err != nil {
			return address.Undef, fmt.Errorf("paych: key of %s: %w", a, err)
		}
		return key, nil
	default:
		return address.Undef, fmt.Errorf("%w: %s is no account", ErrAddress, a)
	}
}

// fund queues a request for money and waits until its message is published.
func (m *Manager) fund(ctx context.Context, ch address.Address, amt big.Int, reserve bool) (cid.Cid, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return cid.Undef, err
	}
	if _, err := m.now(ctx); err != nil {
		return cid.Undef, err
	}
	m.mu.Lock()
	m.nextCall++
	call := m.nextCall
	m.mu.Unlock()
	w := make(chan answer, 1)
	a.mu.Lock()
	if a.broken != nil {
		defer a.mu.Unlock()
		return cid.Undef, a.broken
	}
	a.waiting[call] = w
	if amt.Int != nil {
		amt = big.NewFromGo(amt.Int) // the caller's may change
	}
	if _, err := m.step(a, evFunding{Request: call, Amount: amt, Reserve: reserve}); err != nil {
		delete(a.waiting, call)
		a.mu.Unlock()
		return cid.Undef, err
	}
	a.mu.Unlock()
	select {
	case ans := <-w:
		if ans.err == nil {
			ans.err = m.save(a) // a grant counts when it is on disk
		}
		return ans.cid, ans.err
	case <-ctx.Done():
	case <-m.ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case ans := <-w: // the answer came at the same time
		return ans.cid, ans.err
	default:
	}
	delete(a.waiting, call)
	_, _ = m.step(a, evWithdrawn{Request: call}) // never fails
	if ctx.Err() == nil {
		return cid.Undef, ErrClosed
	}
	return cid.Undef, ctx.Err()
}

// PaychAddFunds implements PaymentChannelManagerAPI. A call whose ctx ends while
// it waits behind another top-up is taken back; one whose message is under way
// goes on.
func (m *Manager) PaychAddFunds(ctx context.Context, ch address.Address, amt big.Int) (cid.Cid, error) {
	return m.fund(ctx, ch, amt, false)
}

// PaychReserveFunds implements PaymentChannelManagerAPI. Where a cid is returned
// the reservation holds once that message is final; PaychWaitReady tells.
func (m *Manager) PaychReserveFunds(ctx context.Context, ch address.Address, amt big.Int) (cid.Cid, error) {
	return m.fund(ctx, ch, amt, true)
}

// PaychReleaseFunds implements PaymentChannelManagerAPI. ErrNotReserved where
// more is released than is reserved and not spent.
func (m *Manager) PaychReleaseFunds(ctx context.Context, addr address.Address, amt big.Int) error {
	a, err := m.account(ctx, addr)
	if err != nil {
		return err
	}
	_, err = m.do(a, evRelease{Amount: amt})
	return err
}

// PaychOwn makes tag the owner of a channel that another created: its lanes of
// tab, slots and guard are closed to calls without the tag.
func (m *Manager) PaychOwn(ctx context.Context, ch address.Address, tag string) error {
	a, err := m.account(ctx, ch)
	if err != nil {
		return err
	}
	if tag == "" {
		return fmt.Errorf("%w: by nobody: a tag is missing", ErrOwned)
	}
	m.mu.Lock()
	if other := m.byTag[tag]; other != nil && other != a {
		m.mu.Unlock()
		return fmt.Errorf("%w: tag %q has another channel", ErrOwned, tag)
	}
	m.byTag[tag] = a
	m.mu.Unlock()
	_, err = m.do(a, evOwn{Tag: tag})
	if err != nil {
		m.mu.Lock()
		if a.tag() != tag {
			delete(m.byTag, tag)
		}
		m.mu.Unlock()
	}
	return err
}

func (a *account) tag() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ch.Tag
}

// PaychStatus implements PaymentChannelManagerAPI.
func (m *Manager) PaychStatus(ctx context.Context, ch address.Address) (*PaychStatus, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status(), nil
}

// status is called with a.mu held.
func (a *account) status() *PaychStatus {
	c, f := a.ch, a.ch.Funds()
	st := &PaychStatus{
		Direction: c.Direction, ControlAddr: c.Control(), Channel: c.Addr, From: c.From, To: c.To,
		ConfirmedAmt: f.Confirmed, PendingAmt: big.Zero(), QueuedAmt: big.Zero(),
		VoucherReedeemedAmt: f.Redeemed, ReservedAmt: big.Add(f.Reserved, f.Held),
	}
	if c.Direction == PCHInbound {
		st.VoucherReedeemedAmt = c.worth()
	}
	if c.Final != nil {
		st.ConfirmedAmt, st.VoucherReedeemedAmt = big.Add(c.Final.ToSend, c.Final.Rest), c.Final.ToSend
	}
	kind := messageTopUp
	switch {
	case c.Phase == PhaseCreating:
		kind, st.PendingAmt = messageCreate, c.Amount
	case c.TopUp != nil:
		st.PendingAmt = c.TopUp.Amount
	}
	if o := a.sending[sendKey{kind: kind}]; o != nil && o.msg != nil {
		id := o.msg.id()
		st.PendingChainMessage = &id
	}
	for _, r := range c.queue {
		st.QueuedAmt = big.Add(st.QueuedAmt, r.amount)
	}
	return st
}

// ChannelInfo is what PaychStatus has no place for.
type ChannelInfo struct {
	PaychStatus
	Phase      Phase
	Tag        string
	Owned      bool
	SettlingAt abi.ChainEpoch
	Funds      Funds
	// PendingFree is the part of PendingAmt that no reservation waits for.
	PendingFree big.Int
	Lanes       int
	Vouchers    uint64
	Final       *Final
	// Buried: the channel was collected, and no reorganisation brings it back.
	Buried bool
	// Created, Settled and Collected are our own messages, or nil.
	Created, Settled, Collected *cid.Cid
	// Pending are our messages without a receipt, by nonce. LastError is why the
	// newest message failed, or why its last try did; empty where all is well.
	Pending   []MessageStatus
	LastError string
}

// PaychInfo returns all that is known of a channel.
func (m *Manager) PaychInfo(ctx context.Context, ch address.Address) (*ChannelInfo, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return nil, err
	}
	info := m.info(a)
	return &info, nil
}

// PaychInfos is PaychInfo of every channel, in the order in which they were taken
// up: also of those that have no address, because they are being created or
// failed to be.
func (m *Manager) PaychInfos(context.Context) ([]ChannelInfo, error) {
	var all []ChannelInfo
	for _, a := range m.list() {
		all = append(all, m.info(a))
	}
	return all, nil
}

func (m *Manager) info(a *account) ChannelInfo {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.ch
	info := ChannelInfo{
		PaychStatus: *a.status(), Phase: c.Phase, Tag: c.Tag, Owned: c.Owned, SettlingAt: c.Head.SettlingAt, Buried: c.Buried,
		Funds: c.Funds(), Lanes: len(c.Lanes), Vouchers: c.Vouchers,
		Created: cidOf(c.Created), Settled: cidOf(c.Settled), Collected: cidOf(c.Collected),
	}
	info.PendingFree = info.PendingAmt
	switch {
	case c.Phase == PhaseCreating:
		info.PendingFree = big.Sub(info.PendingAmt, c.Reserved)
	case c.TopUp != nil:
		info.PendingFree = big.Sub(info.PendingAmt, c.TopUp.claimed())
	}
	if c.Final != nil {
		f := c.Final.clone()
		info.Final = &f
	}
	if n := len(a.finished); n > 0 && a.finished[n-1].err != nil {
		info.LastError = a.finished[n-1].err.Error()
	}
	for _, o := range a.sending {
		if o.msg != nil {
			info.Pending = append(info.Pending, *m.messageStatus(o))
		}
	}
	slices.SortFunc(info.Pending, byNonce)
	for i := range info.Pending {
		if e := info.Pending[i].Error; e != "" {
			info.LastError = e
		}
	}
	return info
}

// PaychLookup implements PaymentChannelManagerAPI: an outbound channel that does
// not settle; of several the one with most free funds.
func (m *Manager) PaychLookup(ctx context.Context, from, to address.Address) (address.Address, error) {
	from, err := m.resolve(ctx, from)
	if err != nil {
		return address.Undef, err
	}
	if to, err = m.resolve(ctx, to); err != nil {
		return address.Undef, err
	}
	best, most := address.Undef, big.Zero()
	for _, a := range m.list() {
		a.mu.Lock()
		c := a.ch
		if c.Direction == PCHOutbound && c.From == from && c.To == to && c.Phase == PhaseOpen && !c.settling {
			if free := c.Funds().Free(); best == address.Undef || free.GreaterThan(most) {
				best, most = c.Addr, free
			}
		}
		a.mu.Unlock()
	}
	if best == address.Undef {
		return address.Undef, fmt.Errorf("%w: from %s to %s", ErrNoChannel, from, to)
	}
	return best, nil
}

// PaychList implements PaymentChannelManagerAPI, in the order in which the
// channels were taken up. One that is being created has no address yet.
func (m *Manager) PaychList(context.Context) ([]address.Address, error) {
	var addrs []address.Address
	for _, a := range m.list() {
		a.mu.Lock()
		if a.ch.Addr != address.Undef {
			addrs = append(addrs, a.ch.Addr)
		}
		a.mu.Unlock()
	}
	return addrs, nil
}

// PaychAllocateLane implements PaymentChannelManagerAPI.
func (m *Manager) PaychAllocateLane(ctx context.Context, ch address.Address) (uint64, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return 0, err
	}
	fx, err := m.do(a, evAllocateLane{})
	return fx.Lane, err
}

// PaychSettle implements PaymentChannelManagerAPI. Called again it returns the
// same message; ErrSettling where the other side settled.
func (m *Manager) PaychSettle(ctx context.Context, ch address.Address) (cid.Cid, error) {
	return m.once(ctx, ch, messageSettle, evSettle{})
}

// PaychCollect implements PaymentChannelManagerAPI. Called again it returns the
// same message; ErrNotSettling, ErrTooEarly, ErrCollected.
func (m *Manager) PaychCollect(ctx context.Context, ch address.Address) (cid.Cid, error) {
	return m.once(ctx, ch, messageCollect, evCollect{})
}

// once sends a message that is of use once in the life of a channel.
func (m *Manager) once(ctx context.Context, ch address.Address, kind messageKind, ev event) (cid.Cid, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return cid.Undef, err
	}
	if err := m.peek(ctx, a); err != nil {
		return cid.Undef, err
	}
	key := sendKey{kind: kind}
	a.mu.Lock()
	id := a.ch.Settled
	if kind == messageCollect {
		id = a.ch.Collected
	}
	o := a.sending[key]
	switch {
	case a.broken != nil:
		defer a.mu.Unlock()
		return cid.Undef, a.broken
	case o == nil && id.Defined():
		a.mu.Unlock()
		return id, nil // done
	case o == nil:
		if _, err := m.step(a, ev); err != nil {
			a.mu.Unlock()
			return cid.Undef, err
		}
		o = a.sending[key]
	}
	a.mu.Unlock()
	if o == nil {
		return cid.Undef, ErrClosed
	}
	return o.wait(ctx)
}
