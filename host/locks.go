package host

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/locker"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/lock"
	"github.com/tallystick/tally/protocols/packetnet"
)

// ErrNoLocks: the node makes no locks.
var ErrNoLocks = errors.New("host: this node makes no locks: set Config.Locks and a chain, in mode hard")

const (
	// lockQueue bounds the messages about locks that wait for one neighbour's turn: a
	// few for each of its 64 slots, both ways. Who sends more is reset.
	lockQueue = 1024
	// lockRetry is the pause before what a channel could not do is tried again.
	lockRetry = 50 * time.Millisecond
	// lockTries bounds how often a neighbour's message is tried, which waits in front of
	// its others meanwhile: 10 s.
	lockTries = 200
	// lockWarm is how soon a channel that was opened can carry locks.
	lockWarm = time.Second
	// lockPriceEvery is how long what it costs to claim a lock is believed, and
	// lockPriceWithin bounds the question.
	lockPriceEvery  = time.Minute
	lockPriceWithin = 10 * time.Second
)

// LocksConfig turns on locks in the channels that settle the tabs, for what is too
// large for a tab. It needs a chain, and mode hard.
type LocksConfig struct {
	// Off makes and takes no new locks. Those that stand are kept to their end.
	Off bool
	// Required refuses to start where there are no locks: without a chain, or where
	// none fits it.
	Required bool
	// Times are the operator's; zero fields take their defaults.
	Times locker.Config
}

// lockGround is what locks stand on.
type lockGround struct {
	manager *paych.Manager
	params  paych.Params
	links   locker.Links
	// fee is what it costs to claim a lock, in attoFIL; nil: nothing.
	fee func(context.Context) (big.Int, error)
	// wallet has the key that signatures are sold of.
	wallet paych.Wallet
}

// walletOf is nil without a chain.
func (g *lockGround) walletOf() paych.Wallet {
	if g == nil {
		return nil
	}
	return g.wallet
}

// lockSessions are the packet sessions with neighbours: a packetnet.Service.
type lockSessions interface {
	Info(p peer.ID) (packetnet.Info, bool)
	Neighbours() []peer.ID
	Post(p peer.ID, m *forward.Msg) bool
	Reset(p peer.ID, cause error)
}

// Locks are the locks of a node. It joins the hop engine, which decides what becomes
// of a packet, to the locker, which keeps vouchers and slots:
//
//	forward.Engine ── Offer, Show, Give, Receive ──▶ Locks ──▶ locker.Locker ──▶ channels
//	      ▲                                            │            │
//	      └── LockTaken, LockEnded, LockPaid … ────────┴── Carrier ─┤
//	packetnet ◀── Post ──────────────────────────────────── Wire ───┘
//
// One goroutine a neighbour hands its messages over in their order; one a lock waits
// for its channel. Outcomes are on disk, in the batch of the lock, before the engine
// hears them.
type Locks struct {
	keeper  *locker.Locker
	manager *paych.Manager
	engine  *forward.Engine
	packets lockSessions
	links   locker.Links
	every   time.Duration // an epoch
	under   bool          // the wallet can sign under a point
	fee     func(context.Context) (big.Int, error)
	least   atomic.Uint64 // what fee said, in units
	log     *slog.Logger

	ctx    context.Context // ends with close
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	paidOut, failedOut, lost atomic.Uint64

	// Of the start.
	given []forward.HeldLock // locks that no packet hangs on
	ended []forward.HeldLock // packets whose lock is over

	// mu guards the fields below. Nothing is called under it.
	mu     sync.Mutex
	closed bool
	offers map[forward.HeldLock]*forward.Msg // what goes with our locks
	whys   lockWhys                          // what goes with our CANCELs
	queues map[peer.ID][]*locker.Msg         // with an entry: its goroutine runs
}

var (
	_ forward.LockCarrier = (*Locks)(nil)
	_ locker.Wire         = (*Locks)(nil)
	_ locker.Carrier      = (*Locks)(nil)
)

// Locks returns the node's locks, or ErrNoLocks.
func (n *Node) Locks() (*Locks, error) {
	if n.locks == nil {
		return nil, ErrNoLocks
	}
	return n.locks, nil
}

// openLocks opens the locker where the node has a chain; nil where it has none, and
// why then says so.
func openLocks(ctx context.Context, store *durable.Store, ground *lockGround, cfg *LocksConfig, log *slog.Logger) (l *Locks, why string, err error) {
	if cfg == nil {
		cfg = &LocksConfig{Off: true}
	}
	switch {
	case ground == nil && cfg.Required:
		return nil, "", refuse("configure a chain and mode hard, or set locks to auto", "locks are required, and nothing settles on a chain")
	case ground == nil:
		return nil, "nothing settles on a chain: locks need one, and mode hard", nil
	}
	times := cfg.Times
	times.Logger, times.Disabled = log, cfg.Off
	k, err := locker.Open(ctx, store, ground.manager, ground.params, ground.links, times)
	if err != nil {
		return nil, "", err
	}
	if off := k.Off(); off != nil && cfg.Required {
		return nil, "", errors.Join(refuse("lower lock_grace and lock_margin, use a chain whose channels settle longer, or set locks to auto", "locks are required: %w", off), k.Close())
	}
	l = &Locks{
		keeper: k, manager: ground.manager, links: ground.links, every: ground.params.Epoch, fee: ground.fee, log: log, offers: make(map[forward.HeldLock]*forward.Msg), whys: newLockWhys(),
		queues: make(map[peer.ID][]*locker.Msg),
	}
	if err := l.whys.restore(ctx, store); err != nil {
		return nil, "", errors.Join(err, k.Close())
	}
	l.under = ground.manager.PaychPointLocks() == nil
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l, "", nil
}

// begin compares what the engine and the channels have after a restart. Neither runs.
func (l *Locks) begin(engine *forward.Engine) {
	l.engine = engine
	held := make(map[forward.HeldLock]bool)
	for _, h := range engine.HeldLocks() {
		held[h] = true
	}
	stands := make(map[forward.HeldLock]bool)
	for _, r := range l.keeper.List() {
		id := forward.HeldLock{Peer: r.Peer, ID: r.ID}
		stands[id] = stands[id] || r.Role == lock.Payee
		if r.Role == lock.Payer {
			if m, ok := engine.OfferOf(r.Peer, r.ID); ok {
				l.offers[id] = &m
			}
			continue
		}
		if !held[id] && r.Phase == lock.Locked {
			l.given = append(l.given, id) // it went no further
		}
		delete(held, id)
	}
	for id := range held {
		l.ended = append(l.ended, id)
	}
	l.whys.keep(stands)
}

// start begins the work, before the engine and the sessions do.
func (l *Locks) start(packets lockSessions) {
	l.packets = packets
	l.keeper.Start(l, l)
	for _, id := range l.ended {
		_ = l.engine.LockEnded(id.Peer, id.ID) // it is not closed yet
	}
	for _, id := range l.given {
		l.Give(id.Peer, id.ID, &forward.Msg{Code: forward.CodeInternal})
	}
	l.given, l.ended = nil, nil
	l.spawn(l.warm) // ends with close
}

// close ends the work. Engine and sessions have ended.
func (l *Locks) close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.cancel()
	err := l.keeper.Close()
	l.tasks.Wait()
	return err
}

// spawn runs f until it ends, or close.
func (l *Locks) spawn(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.tasks.Go(f)
	}
}

// Off is nil, or why the chain has no room for locks.
func (l *Locks) Off() error { return l.keeper.Off() }

// Terms are the times that locks go by.
func (l *Locks) Terms() lock.Terms { return l.keeper.Terms() }

// List returns the locks that are not over.
func (l *Locks) List() []locker.Row { return l.keeper.List() }

// lockStats are counts since the start, and what stands now.
type lockStats struct {
	ours, theirs             int
	out, in                  tally.Amount
	paidOut, failedOut, lost uint64
}

func (l *Locks) stats() lockStats {
	s := lockStats{paidOut: l.paidOut.Load(), failedOut: l.failedOut.Load(), lost: l.lost.Load()}
	for _, r := range l.List() {
		if r.Role == lock.Payer {
			s.ours++
			s.out = s.out.SaturatingAdd(r.Amount)
		} else {
			s.theirs++
			s.in = s.in.SaturatingAdd(r.Amount)
		}
	}
	return s
}

// Way returns what our channel to p can carry under locks now.
func (l *Locks) Way(p peer.ID) (locker.Way, bool) {
	if info, ok := l.packets.Info(p); !ok || info.LockDelta == 0 {
		return locker.Way{}, false
	}
	return l.keeper.Way(p)
}

// epoch is how long an epoch of the chain takes.
func (l *Locks) epoch() time.Duration { return l.every }

// delta is what we tell neighbours of our hop delta, in epochs.
func (l *Locks) delta() uint32 {
	if l == nil || l.keeper.Off() != nil {
		return 0
	}
	terms := l.keeper.Terms()
	return uint32(terms.Delta())
}

// warm gets the channels to neighbours ready, so that Room answers from memory.
func (l *Locks) warm() {
	tick := time.NewTicker(lockWarm)
	defer tick.Stop()
	var priced time.Time
	for {
		if time.Since(priced) >= lockPriceEvery {
			priced = time.Now()
			l.price()
		}
		for _, p := range l.packets.Neighbours() {
			if _, ok := l.keeper.Way(p); ok || l.keeper.Off() != nil {
				continue
			}
			if err := l.keeper.Warm(l.ctx, p); err != nil && !errors.Is(err, locker.ErrNoChannel) && l.ctx.Err() == nil {
				l.log.Debug("channel not ready for locks", "peer", p, "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-l.ctx.Done():
			return
		}
	}
}

// points reports whether locks under points are taken. Whether we make them too, the
// wallet says.
func (l *Locks) points() bool {
	if l == nil || l.keeper.Off() != nil {
		return false
	}
	terms := l.keeper.Terms()
	return terms.OpensPoint != nil
}

// up tells that a session with p has begun.
func (l *Locks) up(p peer.ID) { l.keeper.Up(p) }
