package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/arena"
	"github.com/tallystick/tally/internal/durable"
)

// Bounds of the engine.
const (
	// maxQueuedSends bounds the packets and decisions of our own that wait for
	// the engine; a further one is ErrBusy. Batches of neighbours are bounded by
	// their carriers, a few for each session.
	maxQueuedSends = 8192
	// tickEvery drives expiries. It is also how late a reject for time may be.
	tickEvery = time.Second
	// saveWithin bounds the wait for the disk at the start.
	saveWithin = 30 * time.Second
)

var (
	// ErrBusy: the engine has too much to do; try again.
	ErrBusy = errors.New("forward: engine is busy")
	// ErrClosed: the engine is closed. What was in flight is in the journal and
	// is decided after the next start.
	ErrClosed = errors.New("forward: engine is closed")
	// ErrStopped is wrapped by every call after the disk or a tab failed.
	ErrStopped = errors.New("forward: engine has stopped")
)

// Config is what an engine needs.
type Config struct {
	Self  peer.ID
	Rules Rules
	// Routes is the static table: payee to the neighbour that leads to it.
	Routes map[peer.ID]peer.ID
	// Tabs are the accounts. Required.
	Tabs Tabs
	// Store keeps the journal. Without one the engine works in memory: what is in
	// flight at a stop is lost, up to the thresholds of the tabs. That is for
	// benchmarks, or by the operator's explicit choice: Memory has to say so.
	Store  *durable.Store
	Memory bool
	// Handler takes packets for us. Default: each is refused.
	Handler Handler
	// Orphan is told what became of packets that were sent before a restart, as
	// Packet.Decided is of others. Default: nobody.
	Orphan func(*Result) func(*durable.Batch)
	// Kept is told what became of packets that were sent with Keep, once that is
	// saved, and again after each start until Forget. Gone is told of a packet that
	// an endpoint kept and did not decide before LateHold was over. Both are called
	// on the engine's goroutine and must not wait. Default: nobody.
	Kept func(*Result)
	Gone func(PartID)
	// Locks carry what does not fit the tabs. Default: nothing does.
	Locks LockCarrier
	// OpensPoint reports whether a secret is that of a compressed point. Default: packets
	// under points are refused.
	OpensPoint func(y [PointSize]byte, secret tally.Preimage) bool
	Logger     *slog.Logger
}

// Engine is the shell around Hop: one goroutine that owns it.
//
//	sessions ── Receive ─┐                      ┌─▶ Wire.Send, Flush
//	callers ─── Send ────┼─▶ inbox ─▶ Hop.Step ─┤        ▲
//	endpoints ─ Decide ──┘                      └─▶ journal and tabs, one synced
//	                                                batch for all that was there
//
// What arrives while the disk syncs is stepped together and shares the next
// sync.
type Engine struct {
	cfg  Config
	hop  *Hop
	wire Wire
	log  *slog.Logger

	wallAt time.Time // monotonic; wallMS is the wall clock then
	wallMS int64

	// mu guards the fields below.
	mu     sync.Mutex
	items  []item
	sends  int // items of callers in the queue
	closed bool
	failed error

	wake  chan struct{} // capacity 1
	ended chan struct{}
	stop  context.CancelFunc
	ctx   context.Context

	// Of the engine's goroutine.
	fx      []Effect
	done    []*Batch  // to be recycled when the effects are carried out
	results []pending // callers, by ref - 1
	free    []uint64
	batch   durable.Batch
	sync    bool // the batch has what sends wait for
	records []func(*durable.Batch)
	rejects int // results in records that no send waits for
	stats   stats
	told    Result // scratch, for those who are told
	offered Delivery
	answers arena.Arena // data of messages in fx
	noted   []Event     // of locks, found at the start
	showing map[lockID]showing
}

type stats struct{ stepped, faults, delivered, earned atomic.Uint64 }

// Stats are counts since the start.
type Stats struct {
	// Messages of neighbours, faults of neighbours, packets for us.
	Messages, Faults, Delivered uint64
	// Earned is the sum of all fees, over restarts too.
	Earned tally.Amount
}

// Stats returns the counts.
func (e *Engine) Stats() Stats {
	return Stats{
		Messages: e.stats.stepped.Load(), Faults: e.stats.faults.Load(), Delivered: e.stats.delivered.Load(),
		Earned: tally.Amount(e.stats.earned.Load()),
	}
}

// New reads the journal and returns an engine that does nothing before Start.
func New(ctx context.Context, cfg Config) (*Engine, error) {
	cfg.Rules = cfg.Rules.Complete()
	if err := cfg.Rules.Validate(); err != nil {
		return nil, err
	}
	switch {
	case cfg.Tabs == nil:
		return nil, errors.New("forward: no tabs to book packets on")
	case cfg.Store == nil && !cfg.Memory:
		return nil, errors.New("forward: no store: packets in flight would be lost in a crash; give one, or say that memory is enough")
	case cfg.Store == nil && cfg.Locks != nil:
		return nil, ErrNoLocks
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Handler == nil {
		cfg.Handler = refuseAll{}
	}
	if cfg.Orphan == nil {
		cfg.Orphan = func(*Result) func(*durable.Batch) { return nil }
	}
	if cfg.Kept == nil {
		cfg.Kept = func(*Result) {}
	}
	if cfg.Gone == nil {
		cfg.Gone = func(PartID) {}
	}
	e := &Engine{
		cfg: cfg, log: cfg.Logger,
		wake: make(chan struct{}, 1), ended: make(chan struct{}), showing: make(map[lockID]showing),
	}
	e.wallAt = time.Now()
	e.wallMS = e.wallAt.UnixMilli()
	var locks Locks
	if cfg.Locks != nil {
		locks = cfg.Locks
	}
	e.hop = NewHop(HopConfig{
		Self: cfg.Self, Rules: cfg.Rules, Account: cfg.Tabs, Routes: cfg.Routes, Locks: locks, OpensPoint: cfg.OpensPoint,
		// In memory nothing tells the ids of an earlier run. There are fewer than
		// 2^20 in a millisecond.
		Journal: cfg.Store != nil, FirstID: uint64(e.wallMS) << 20,
	})
	if cfg.Store != nil {
		if err := e.restore(ctx); err != nil {
			return nil, err
		}
	}
	e.ctx, e.stop = context.WithCancel(context.WithoutCancel(ctx))
	return e, nil
}

// keyPrefix is where the journal lies.
const keyPrefix = "/packet/hop/"

func journalKey(key uint64) string { return keyPrefix + durable.KeyUint(key) }

func (e *Engine) restore(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, saveWithin)
	defer cancel()
	var held []Held
	counted, first := false, e.hop.nextID
	e.hop.nextID, e.hop.idLimit = 1, 1
	err := e.cfg.Store.Scan(ctx, keyPrefix, "", func(key string, rec []byte) error {
		_, payload, err := durable.Unseal(key, recordVersion, rec)
		if err != nil {
			return err
		}
		n, err := durable.ParseKeyUint(key[len(keyPrefix):])
		if err != nil {
			return err
		}
		counted = counted || n == counterKey
		held, err = e.hop.Restore(n, payload, held)
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("forward: journal of packets: %w", err)
	case !counted && len(e.hop.links)+len(e.hop.again) > 0:
		return fmt.Errorf("forward: journal of packets: %w: packets, and no count of ids; restore a backup", errRecord)
	case !counted:
		// A node whose store is new may have lost an old one: the clock keeps its
		// ids above those that its neighbours know.
		e.hop.nextID, e.hop.idLimit = first, first
	}
	if err := errors.Join(e.hop.Check(), e.restoreNotes(ctx)); err != nil {
		return fmt.Errorf("forward: journal of packets: %w", err)
	}
	e.stats.earned.Store(uint64(e.hop.Earned()))
	return e.cfg.Tabs.Restore(held)
}

// Sent returns the packets of ours whose sender keeps them: those in flight, and
// those whose results are not forgotten. Waiting returns the packets of others that
// an endpoint of ours keeps and has not decided. Both are for callers before Start.
func (e *Engine) Sent() []PartID {
	var list []PartID
	for _, l := range e.hop.links {
		for _, c := range l.out.All() {
			if c.in == nil && c.kept {
				list = append(list, c.part)
			}
		}
		if l.locks == nil {
			continue
		}
		for _, c := range l.locks.out {
			if c.in == nil && c.kept {
				list = append(list, c.part)
			}
		}
	}
	for part := range e.hop.results {
		list = append(list, part)
	}
	return list
}

// Waiting: see Sent.
func (e *Engine) Waiting() []Delivery {
	var list []Delivery
	for i := range e.hop.again {
		if a := &e.hop.again[i]; a.Msg.Kind == MsgPrepare {
			list = append(list, e.delivery(a.Peer, &a.Msg, true))
		}
	}
	return list
}

// Start begins to work on w.
func (e *Engine) Start(w Wire) {
	e.wire = w
	go e.run() // ends with Close, or when the disk failed
}

// Close ends the engine when what is in its inbox is done. Sessions have to be
// closed before, tabs and store after.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.stop()
	if e.wire != nil {
		<-e.ended
	}
	return e.failure()
}

func (e *Engine) failure() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.failed
}

// Now is the engine's clock in milliseconds since 1970: the wall clock at its
// start, and monotonic from there.
func (e *Engine) Now() int64 { return e.wallMS + time.Since(e.wallAt).Milliseconds() }

// clock is what Now is, or was, at t: by t's monotonic part, where it has one.
func (e *Engine) clock(t time.Time) int64 { return e.wallMS + t.Sub(e.wallAt).Milliseconds() }

// at is when Now is ms, with a monotonic part.
func (e *Engine) at(ms int64) time.Time {
	return e.wallAt.Add(time.Duration(ms-e.wallMS) * time.Millisecond)
}

func (e *Engine) run() {
	defer close(e.ended)
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	if err := e.tellAgain(); err != nil {
		e.fail(err)
		return
	}
	var spare []item
	for {
		tick, last := false, false
		select {
		case <-e.wake:
		case <-ticker.C:
			tick = true
		case <-e.ctx.Done():
			last = true
		}
		e.mu.Lock()
		items := e.items
		e.items, e.sends = spare[:0], 0
		e.mu.Unlock()
		err := e.work(items, tick)
		clear(items)
		spare = items
		if err != nil {
			e.fail(err)
			return
		}
		if last {
			return
		}
	}
}

// tellAgain tells what a restart found.
func (e *Engine) tellAgain() error {
	if err := e.resumeLocks(e.Now()); err != nil {
		return err
	}
	list := e.hop.again
	e.hop.again = nil
	for i := range list {
		m := &list[i].Msg
		if m.Kind == MsgPrepare {
			if err := e.deliver(e.Now(), list[i].Peer, m, true); err != nil {
				return err
			}
			continue
		}
		r := resultOf(m)
		e.cfg.Kept(&r)
	}
	err := e.carryOut()
	e.stats.earned.Store(uint64(e.hop.Earned()))
	e.wire.Flush()
	return err
}

// fail ends the engine: what it cannot save it must not say.
func (e *Engine) fail(cause error) {
	err := fmt.Errorf("%w: %w; the packets in flight are in the journal: mend the cause, then restart", ErrStopped, cause)
	e.mu.Lock()
	e.failed = err
	items := e.items
	e.items = nil
	e.mu.Unlock()
	for i := range items {
		if b := items[i].batch; b != nil {
			b.Recycle(b)
		}
	}
	e.log.Error("packets are not carried any more", "err", err)
}
