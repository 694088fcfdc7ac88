package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/locker"
	"github.com/tallystick/tally/host/settler"
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

// Times implements forward.Locks.
func (l *Locks) Times() (lock.Terms, lock.Clock, bool) {
	if l.keeper.Off() != nil {
		return lock.Terms{}, lock.Clock{}, false
	}
	clock, ok := l.keeper.Clock(l.engine.Now())
	return l.keeper.Terms(), clock, ok
}

// Room implements forward.Locks.
func (l *Locks) Room(p peer.ID) (forward.Room, bool) {
	w, ok := l.Way(p)
	info, _ := l.packets.Info(p)
	return forward.Room{
		Free: w.Free, Coming: l.coming(p, w.Free), Slots: int(l.keeper.Terms().Slots), Points: info.PointLocks && l.under && l.points(),
	}, ok
}

// coming is the money of ours that is on its way into the channel to p, or is there and
// not ready for locks yet, beside what is free in it.
func (l *Locks) coming(p peer.ID, free tally.Amount) tally.Amount {
	if info, ok := l.packets.Info(p); !ok || info.LockDelta == 0 || l.keeper.Off() != nil {
		return 0
	}
	_, tag, _ := l.links.Linked(p, true) // also while it is being opened
	c, ok := l.manager.PaychTaggedInfo(tag)
	switch {
	case !ok:
		return 0
	case c.Phase == paych.PhaseCreating:
		return unitsDown(c.PendingFree)
	case c.Phase == paych.PhaseOpen:
		return unitsDown(c.PendingFree).SaturatingAdd(unitsDown(c.Funds.Free())).SaturatingSub(free)
	default:
		return 0 // it ends
	}
}

// Least implements forward.Locks.
func (l *Locks) Least() tally.Amount { return tally.Amount(l.least.Load()) }

// price asks what it costs to claim a lock.
func (l *Locks) price() {
	if l.fee == nil {
		return
	}
	ctx, cancel := context.WithTimeout(l.ctx, lockPriceWithin)
	defer cancel()
	fee, err := l.fee(ctx)
	if err != nil {
		return // the last price stands
	}
	units := uint64(1) << 62
	if n := big.Div(big.Add(fee, big.NewInt(settler.AttoPerUnit-1)), big.NewInt(settler.AttoPerUnit)); n.IsUint64() {
		units = n.Uint64()
	}
	l.least.Store(units)
}

// Receive implements forward.LockCarrier.
func (l *Locks) Receive(p peer.ID, m *forward.Msg) {
	ch, err := address.NewFromBytes(m.Lock.Channel)
	if err != nil {
		l.packets.Reset(p, fmt.Errorf("channel of a lock: %w", err))
		return
	}
	msg := &locker.Msg{
		Channel: ch, ID: m.ID, Amount: m.Amount, Preimage: m.Preimage,
		Voucher: bytes.Clone(m.Lock.Voucher), Guard: bytes.Clone(m.Lock.Guard),
	}
	switch m.Kind {
	case forward.MsgPrepare:
		msg.Send = lock.SendLock
	case forward.MsgPrepareAck:
		msg.Send = lock.SendLockAck
	case forward.MsgFulfil:
		msg.Send = lock.SendFulfil
	case forward.MsgUnlock:
		msg.Send = lock.SendUnlock
	case forward.MsgUnlockAck:
		msg.Send = lock.SendUnlockAck
	case forward.MsgReject:
		msg.Send = lock.SendCancel
	case forward.MsgRejectAck:
		msg.Send = lock.SendCancelAck
		l.mu.Lock()
		l.whys.drop(forward.HeldLock{Peer: p, ID: m.ID})
		l.mu.Unlock()
	case forward.MsgShow:
		msg.Send = lock.SendShow
	case forward.MsgLaneSync:
		msg.Sync, msg.Ask, msg.Lanes = true, m.Lock.Ask, append([]lock.LaneState(nil), m.Lock.Lanes...)
	default:
		return
	}
	l.mu.Lock()
	q, runs := l.queues[p]
	full := len(q) >= lockQueue
	if !full && !l.closed {
		l.queues[p] = append(q, msg)
		if !runs {
			l.tasks.Go(func() { l.hear(p) }) // ends when nothing waits, or with close
		}
	}
	l.mu.Unlock()
	if full {
		l.packets.Reset(p, errors.New("more messages about locks than are worked on"))
	}
}

// hear hands the messages of one neighbour over, in their order.
func (l *Locks) hear(p peer.ID) {
	for {
		l.mu.Lock()
		q := l.queues[p]
		if len(q) == 0 || l.closed {
			delete(l.queues, p)
			l.mu.Unlock()
			return
		}
		l.queues[p] = q[1:]
		l.mu.Unlock()
		switch err := l.receive(p, q[0]); {
		case err == nil:
		case errors.Is(err, locker.ErrSigner), errors.Is(err, locker.ErrVoucher):
			l.packets.Reset(p, err)
		default:
			l.log.Debug("message about a lock not taken", "peer", p, "channel", q[0].Channel, "lock", q[0].ID, "err", err)
		}
	}
}

// receive hands a message of a neighbour over. A sync waits for no channel: it comes again
// with the next session, and one of a channel that is gone would keep what follows it.
func (l *Locks) receive(p peer.ID, m *locker.Msg) error {
	take := func() error { return l.keeper.Receive(p, m) }
	if m.Sync {
		return take()
	}
	return untilTaken(l.ctx, take)
}

// untilTaken hands a message over, and again where its channel may take it soon: the first
// vouchers of one may be on their way while it is used already, and heads come late. A
// LOCK that is dropped nobody sends again in this session, and the payer's money is bound
// until the lock ends.
func untilTaken(ctx context.Context, receive func() error) error {
	for try := 1; ; try++ {
		err := receive()
		if err == nil || try == lockTries || !isEarly(err) {
			return err
		}
		select {
		case <-time.After(lockRetry):
		case <-ctx.Done():
			return err
		}
	}
}

// isEarly reports whether a channel may take later what it refused.
func isEarly(err error) bool {
	return isAny(err, locker.ErrUnlinked, locker.ErrUnseen, locker.ErrNoChannel, locker.ErrBusy)
}

// isAny reports whether an error is one of a list.
func isAny(err error, list ...error) bool {
	return slices.ContainsFunc(list, func(one error) bool { return errors.Is(err, one) })
}

// Offer implements forward.LockCarrier.
func (l *Locks) Offer(p peer.ID, id uint64, until int64, m *forward.Msg, record func(*durable.Batch)) {
	key := forward.HeldLock{Peer: p, ID: id}
	l.mu.Lock()
	l.offers[key] = m
	l.mu.Unlock()
	terms, clock, _ := l.Times()
	long := until > terms.Horizon(clock.Head)-terms.Skew
	l.spawn(func() { // ends when the lock is signed, or refused, or with close
		err := l.keeper.Offer(l.ctx, p, locker.Offer{
			ID: id, Amount: m.Amount, Hash: m.Condition.Digest, Point: m.Condition.Point, Expires: until, Long: long, Record: record,
		})
		if err == nil || errors.Is(err, locker.ErrPending) || errors.Is(err, locker.ErrClosed) || l.ctx.Err() != nil {
			return // its end is told, or found at the next start
		}
		l.log.Debug("lock not made", "peer", p, "lock", id, "amount", m.Amount, "err", err)
		l.forget(key)
		code, room := offerCode(err)
		if code == forward.CodeHeadroom && room < m.Amount && l.coming(p, room) >= m.Amount-room {
			code = forward.CodeBusy
		}
		_ = l.engine.LockFailed(p, id, code, room)
	})
}

func (l *Locks) forget(key forward.HeldLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.offers, key)
}

// offerCode is what a neighbour is told of a lock that could not be made.
func offerCode(err error) (forward.Code, tally.Amount) {
	if e := (*locker.FundsError)(nil); errors.As(err, &e) {
		return forward.CodeHeadroom, e.Free
	}
	switch {
	case errors.Is(err, lock.ErrTooSoon):
		return forward.CodeExpiryTooSoon, 0
	case errors.Is(err, lock.ErrTooFar):
		return forward.CodeExpiryTooFar, 0
	case errors.Is(err, lock.ErrFull), errors.Is(err, locker.ErrBusy):
		return forward.CodeBusy, 0
	case errors.Is(err, locker.ErrStopped):
		return forward.CodeInternal, 0
	case errors.Is(err, lock.ErrPoint), errors.Is(err, paych.ErrPointWallet):
		return forward.CodeUnsupported, 0
	default:
		return forward.CodeHeadroom, 0
	}
}

// giveCode is what a neighbour is told of a lock that its channel gave up at once;
// CodeUnset where there is nothing to tell.
func giveCode(err error) forward.Code {
	switch {
	case errors.Is(err, lock.ErrTooSoon):
		return forward.CodeExpiryTooSoon
	case errors.Is(err, lock.ErrGuard):
		return forward.CodeExpiryTooFar
	default:
		return forward.CodeUnset
	}
}

// Show implements forward.LockCarrier.
func (l *Locks) Show(p peer.ID, id uint64, preimage tally.Preimage, owed bool, record func(*durable.Batch), done func(error)) {
	l.again(func() error { return l.keeper.Fulfil(l.ctx, p, id, preimage, owed, record) }, done)
}

// Give implements forward.LockCarrier.
func (l *Locks) Give(p peer.ID, id uint64, why *forward.Msg) {
	key := forward.HeldLock{Peer: p, ID: id}
	l.mu.Lock()
	record := l.whys.put(key, why)
	l.mu.Unlock()
	l.again(func() error { return l.keeper.Give(l.ctx, p, id, record) }, func(err error) {
		if err == nil {
			return
		}
		l.mu.Lock()
		l.whys.drop(key)
		l.mu.Unlock()
		if !errors.Is(err, lock.ErrUnknown) { // which is over already
			l.log.Warn("lock not given up", "peer", p, "lock", id, "err", err)
		}
	})
}

// again does f until its channel took it, or never will.
func (l *Locks) again(f func() error, done func(error)) {
	l.spawn(func() { // ends with the answer of the channel, or with close
		pause := time.NewTimer(0)
		defer pause.Stop()
		for {
			select {
			case <-pause.C:
			case <-l.ctx.Done():
				return
			}
			err := f()
			switch {
			case errors.Is(err, locker.ErrClosed), errors.Is(err, locker.ErrStopped), l.ctx.Err() != nil:
				return // the next start finds it
			case err == nil, isFinal(err):
				done(err)
				return
			}
			l.log.Debug("a channel is asked again", "err", err)
			pause.Reset(lockRetry)
		}
	})
}

// isFinal reports whether a channel will never take what it refused.
func isFinal(err error) bool {
	return isAny(err, lock.ErrUnknown, lock.ErrLate, lock.ErrGivenUp, lock.ErrPreimage, lock.ErrRole, locker.ErrNoChannel)
}

// Ask implements forward.LockCarrier.
func (l *Locks) Ask(p peer.ID, id uint64) {
	if ch, ok := l.keeper.ChannelOf(p, id, true); ok {
		l.packets.Post(p, &forward.Msg{Kind: forward.MsgCancelRequest, ID: id, Lock: &forward.LockMsg{Channel: ch.Bytes()}})
	}
}

// Send implements locker.Wire.
func (l *Locks) Send(p peer.ID, m *locker.Msg) {
	about := &forward.LockMsg{Channel: m.Channel.Bytes(), Voucher: m.Voucher, Guard: m.Guard}
	out := &forward.Msg{ID: m.ID, Lock: about}
	key := forward.HeldLock{Peer: p, ID: m.ID}
	switch {
	case m.Sync:
		out.Kind = forward.MsgLaneSync
		about.Lanes, about.Ask = m.Lanes, m.Ask
	case m.Send == lock.SendLock:
		l.mu.Lock()
		with := l.offers[key]
		l.mu.Unlock()
		if with == nil {
			return // it was decided meanwhile
		}
		*out = *with
		out.Lock = about
	case m.Send == lock.SendLockAck:
		out.Kind = forward.MsgPrepareAck
	case m.Send == lock.SendFulfil:
		out.Kind, out.Preimage = forward.MsgFulfil, m.Preimage
	case m.Send == lock.SendUnlock:
		out.Kind = forward.MsgUnlock
	case m.Send == lock.SendUnlockAck:
		out.Kind = forward.MsgUnlockAck
	case m.Send == lock.SendCancel:
		out.Kind, out.Code, out.Hop = forward.MsgReject, forward.CodeInternal, 1
		l.mu.Lock()
		why := l.whys.of[key]
		l.mu.Unlock()
		if why != nil {
			out.Code, out.Hop, out.Headroom, out.Data = why.Code, why.Hop, why.Headroom, why.Data
		}
	case m.Send == lock.SendCancelAck:
		out.Kind = forward.MsgRejectAck
	case m.Send == lock.SendShow:
		out.Kind = forward.MsgShow
	default:
		return
	}
	l.packets.Post(p, out)
}

// Taken implements locker.Carrier.
func (l *Locks) Taken(p peer.ID, x lock.Lock) {
	_ = l.engine.LockTaken(p, x) // closed: the next start gives it up
}

// Decided implements locker.Carrier.
func (l *Locks) Decided(p peer.ID, id uint64, preimage *tally.Preimage, err error) (record func(*durable.Batch), saved func()) {
	return forward.Noted(p, id, preimage), func() {
		l.forget(forward.HeldLock{Peer: p, ID: id})
		if preimage != nil {
			l.paidOut.Add(1)
			_ = l.engine.LockPaid(p, id, *preimage) // closed: the note tells the next start
			return
		}
		l.failedOut.Add(1)
		code := forward.CodeTimeout
		switch {
		case errors.Is(err, lock.ErrGivenUp):
			code = forward.CodeRefused
		case errors.Is(err, lock.ErrAmount):
			code = forward.CodeHeadroom
		}
		_ = l.engine.LockFailed(p, id, code, 0)
	}
}

// Ended implements locker.Carrier.
func (l *Locks) Ended(p peer.ID, id uint64, _ *tally.Preimage, err error) (record func(*durable.Batch), saved func()) {
	if code := giveCode(err); code != forward.CodeUnset { // the CANCEL of what we never took
		l.mu.Lock()
		record = l.whys.put(forward.HeldLock{Peer: p, ID: id}, &forward.Msg{Code: code, Hop: 1})
		l.mu.Unlock()
	}
	return record, func() {
		if errors.Is(err, locker.ErrLost) {
			l.lost.Add(1)
			l.log.Error("a lock that was claimed in time was not paid by the chain", "peer", p, "lock", id, "next", "look at the chain: tally wallet balance")
		}
		_ = l.engine.LockEnded(p, id) // closed: the next start compares
	}
}
