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
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/internal/durable"
)

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

// maxLooks bounds the channels that are looked at on the chain at one time.
const maxLooks = 8

// maxSpareBatch bounds what a channel keeps of the memory of a save, in bytes. A
// voucher takes about one KiB.
const maxSpareBatch = 16 << 10

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

// askHead asks the chain for its head, which may be newer than the one we were told of.
func (m *Manager) askHead(ctx context.Context) (abi.ChainEpoch, error) {
	ctx, cancel := m.call(ctx)
	defer cancel()
	h, err := m.chain.Head(ctx)
	if err != nil {
		return 0, fmt.Errorf("paych: chain head: %w", err)
	}
	return h, nil
}

// now is the epoch of the chain's head, as we were told last.
func (m *Manager) now(ctx context.Context) (abi.ChainEpoch, error) {
	if h := m.head.Load(); h > 0 {
		return abi.ChainEpoch(h), nil
	}
	h, err := m.askHead(ctx)
	if err != nil {
		return 0, err
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
