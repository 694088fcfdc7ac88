package forward

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
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

// Wire carries messages to neighbours. All calls come from the engine.
type Wire interface {
	// Send hands m to the session with p, which takes a copy at once and never
	// waits. Without a session m is lost: the next sync tells.
	Send(p peer.ID, m *Msg)
	// Flush lets leave what was sent since the last Flush.
	Flush()
	// Reset ends the session with p, which broke the protocol.
	Reset(p peer.ID, cause error)
}

// Tabs is an Account whose changes can be saved in one batch with the journal.
type Tabs interface {
	Account
	// Restore brings back holds after a restart, whatever the limits are now.
	Restore([]Held) error
	// Save adds to batch every tab that was booked on since the last Done, and
	// Done tells what became of the batch. Between the first Commit and Done
	// nobody else saves these tabs.
	Save(batch *durable.Batch)
	Done(err error)
}

// Batch is what one session read at once. Its messages and all that they point
// to belong to the engine until Recycle.
type Batch struct {
	Peer    peer.ID
	Msgs    []Msg
	Recycle func(*Batch)
}

// Delivery is a packet for us. It, its Token and its Data are good during the call.
type Delivery struct {
	From      peer.ID
	ID        uint64
	Amount    tally.Amount
	Expires   time.Time
	Condition Condition
	Part      PartID
	Token     []byte
	Data      []byte
	// Again: it was kept before a restart.
	Again bool
	// Locked: it came under a lock. Its endpoint rejects it or has it kept; Expires is
	// then the last moment at which the lock can be claimed for sure.
	Locked bool
}

// Decision is what an endpoint makes of a packet.
type Decision struct {
	// Fulfil shows Preimage; else the packet is rejected with Code.
	Fulfil   bool
	Preimage tally.Preimage
	// Opens: the endpoint has seen that Preimage opens the condition.
	Opens bool
	// Owed: the endpoint has paid for Preimage. Under a lock it is then shown however
	// late it is.
	Owed bool
	Code Code
	Data []byte
	// Record, where set, adds records of the endpoint to the batch that the
	// fulfil is saved with, before it leaves. The engine calls it once, on its
	// own goroutine.
	Record func(*durable.Batch)
	// Kept, where set, keeps a packet that waits: it is in the journal, is offered
	// again after a restart, and no clock rejects it before LateHold is over, because
	// a claim of it may be on its way to the disk. In return the endpoint decides
	// every such packet, and fulfils one that has expired only if it had claimed it
	// before, on disk. Kept is called on the engine's goroutine once the packet is
	// saved: what an endpoint claims before would be lost in a crash. Data and token
	// may have MaxKept bytes together, else the packet is refused.
	Kept func()
}

// Handler is our endpoints.
type Handler interface {
	// Packet is called on the engine's goroutine, and must not wait or call the
	// engine. Where it returns false the packet waits until Decide, or until it
	// expires. One that was kept before a restart comes again, before all others.
	Packet(d *Delivery) (Decision, bool)
}

// Packet is one to be sent. Its slices must not change before it is decided.
type Packet struct {
	Dest      peer.ID
	Token     []byte
	Via       []peer.ID
	Amount    tally.Amount
	Expires   time.Time
	Condition Condition
	// Part is drawn where it is zero.
	Part PartID
	Data []byte
	// MayLock: it may go under a lock where it does not fit a tab. Its payee then has
	// to keep packets. Not with Record and Decided.
	MayLock bool
	// Keep keeps what became of the packet, over restarts, until Forget. It is told
	// to Config.Kept; Decided must not be set.
	Keep bool
	// Record, where set, adds records of the sender to the batch that is saved
	// before the packet leaves. Not called where the packet is refused here.
	Record func(*durable.Batch)
	// Owner is in its Result.
	Owner any
	// Decided, where set, is told what became of the packet before that is saved,
	// on the engine's goroutine; it must not wait. What it returns, where that is
	// not nil, adds records of the sender to the very batch that makes the
	// journal forget the packet: a crash leaves both or neither.
	Decided func(*Result) func(*durable.Batch)
}

// Result is what became of a packet. It and its Data are good during the call.
type Result struct {
	Part PartID
	// Owner is the packet's; nil where it was sent before a restart.
	Owner     any
	Fulfilled bool
	Preimage  tally.Preimage
	Code      Code
	Headroom  tally.Amount
	// Hop is how many hops had taken the packet before the one that rejected it; -1
	// where that is not known.
	Hop  int
	Data []byte
}

// Err is nil where the packet was fulfilled, else a *RejectError.
func (r *Result) Err() error {
	if r.Fulfilled {
		return nil
	}
	return &RejectError{Code: r.Code, Headroom: r.Headroom, Hop: r.Hop, Data: append([]byte(nil), r.Data...)}
}

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
	noted   []Event // of locks, found at the start
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

type pending struct {
	owner   any
	done    func(*Result)
	decided func(*Result) func(*durable.Batch)
}

// item is one entry of the inbox.
type item struct {
	kind   EventKind
	peer   peer.ID
	window int
	batch  *Batch
	send   *sending
	ask    func(*Hop)
	record func(*durable.Batch)
	forget *Msg
	lock   *Event // told by the channels
	saved  func() // told when record is on disk; may be nil
}

// sending is a packet or a decision of our own on its way to the engine.
type sending struct {
	msg     Msg
	id      uint64
	keep    bool
	owed    bool
	owner   any
	done    func(*Result)
	result  func(*Result) func(*durable.Batch)
	record  func(*durable.Batch)
	decided func(error)
}

var sendings = sync.Pool{New: func() any { return new(sending) }}

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

type refuseAll struct{}

func (refuseAll) Packet(*Delivery) (Decision, bool) { return Decision{Code: CodeRefused}, true }

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

func (e *Engine) delivery(from peer.ID, m *Msg, again bool) Delivery {
	return Delivery{
		From: from, ID: m.ID, Amount: m.Amount, Expires: e.at(m.Expires), Condition: m.Condition,
		Part: m.Part, Token: m.Token, Data: m.Data, Again: again, Locked: m.Lock != nil,
	}
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

// Up tells that a session with p has begun, which takes window packets at once.
func (e *Engine) Up(p peer.ID, window int) { _ = e.put(item{kind: EvUp, peer: p, window: window}) }

// Down tells that it has ended.
func (e *Engine) Down(p peer.ID) { _ = e.put(item{kind: EvDown, peer: p}) }

// Receive takes what a session has read. Calls for one session come in its
// order, between Up and Down.
func (e *Engine) Receive(b *Batch) {
	if e.put(item{kind: EvMessage, batch: b}) != nil {
		b.Recycle(b)
	}
}

// Send offers a packet. done is called once, on the engine's goroutine, when it
// is decided and that is saved; it must not wait, and may be nil. An error means
// that nothing was sent and neither done nor p.Decided is called. After Close they
// may never be.
func (e *Engine) Send(p *Packet, done func(*Result)) error {
	if len(p.Data) > MaxData || len(p.Token) > MaxToken || len(p.Via) > MaxHops {
		return fmt.Errorf("forward: packet with %d bytes of data, %d of token, %d hops: at most %d, %d, %d",
			len(p.Data), len(p.Token), len(p.Via), MaxData, MaxToken, MaxHops)
	}
	if p.MayLock && (p.Decided != nil || p.Record != nil) {
		return errors.New("forward: what a packet under a lock becomes is told through Config.Kept; leave Packet.Decided and Record empty")
	}
	if p.Keep && p.Decided != nil {
		return errors.New("forward: a packet that is kept is decided through Config.Kept; leave Packet.Decided empty")
	}
	s := sendings.Get().(*sending)
	s.msg = Msg{
		Kind: MsgPrepare, Amount: p.Amount, Expires: e.clock(p.Expires), Condition: p.Condition, Part: p.Part,
		HopsLeft: MaxHops, MayLock: p.MayLock, Dest: p.Dest, Token: p.Token, Via: p.Via, Data: p.Data,
	}
	if s.msg.Part == (PartID{}) {
		_, _ = rand.Read(s.msg.Part[:]) // never fails
	}
	s.owner, s.done, s.result, s.record, s.decided, s.keep = p.Owner, done, p.Decided, p.Record, nil, p.Keep
	return e.put(item{kind: EvSend, send: s})
}

// Forget tells that the result of a packet that was sent with Keep is not needed
// any more. A crash may bring it back.
func (e *Engine) Forget(part PartID) error { return e.put(item{forget: &Msg{Part: part}}) }

// SendWait is Send that waits. Where ctx ends first the packet goes on, and its
// outcome is lost to the caller.
func (e *Engine) SendWait(ctx context.Context, p *Packet) (Result, error) {
	got := make(chan Result, 1)
	err := e.Send(p, func(r *Result) {
		cp := *r
		cp.Data = append([]byte(nil), r.Data...)
		got <- cp
	})
	if err != nil {
		return Result{}, err
	}
	select {
	case r := <-got:
		return r, r.Err()
	case <-ctx.Done():
		return Result{}, ctx.Err()
	case <-e.ended:
		return Result{}, ErrClosed
	}
}

// Decide ends a packet that the handler let wait. done, where set, is called on
// the engine's goroutine with nil once the decision is saved, or with
// ErrNotHeld.
func (e *Engine) Decide(from peer.ID, id uint64, d *Decision, done func(error)) error {
	s := sendings.Get().(*sending)
	s.msg = Msg{Preimage: d.Preimage, Code: d.Code, Data: d.Data}
	s.id, s.owed, s.record, s.decided = id, d.Owed, d.Record, done
	kind := EvReject
	if d.Fulfil {
		kind = EvFulfil
	}
	return e.put(item{kind: kind, peer: from, send: s})
}

// Save adds a record of an endpoint that belongs to no packet. It lies in one line
// with those of packets, so that what a later one says is on disk no earlier. It
// is synced within tickEvery, or with the next packet.
func (e *Engine) Save(record func(*durable.Batch)) error { return e.put(item{record: record}) }

// SaveWait is Save that returns once the record is on disk. It must not be called
// on the engine's goroutine.
func (e *Engine) SaveWait(record func(*durable.Batch)) error {
	done := make(chan struct{})
	if err := e.put(item{record: record, saved: func() { close(done) }}); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-e.ended:
	}
	select {
	case <-done: // the last of its batches
		return nil
	default:
		return errors.Join(ErrClosed, e.failure())
	}
}

// Look calls f with the core on the engine's goroutine and waits for it.
func (e *Engine) Look(f func(*Hop)) error {
	done := make(chan struct{})
	if err := e.put(item{ask: func(h *Hop) { f(h); close(done) }}); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-e.ended:
		return ErrClosed
	}
}

func (e *Engine) put(it item) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.failed != nil:
		return e.failed
	case e.closed:
		return ErrClosed
	case it.send != nil && e.sends >= maxQueuedSends:
		return ErrBusy
	}
	if it.send != nil {
		e.sends++
	}
	e.items = append(e.items, it)
	if len(e.items) == 1 {
		select {
		case e.wake <- struct{}{}:
		default:
		}
	}
	return nil
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

// work steps all that came. In memory what follows is handed to the sessions after a
// few packets or messages; with a journal all share one sync.
func (e *Engine) work(items []item, tick bool) error {
	now := e.Now()
	for i := range items {
		if err := e.item(now, &items[i]); err != nil {
			return err
		}
		if e.cfg.Store == nil && (i%flushAfter == flushAfter-1 || items[i].batch != nil) {
			if err := e.carryOut(); err != nil {
				return err
			}
			e.wire.Flush()
			e.recycle()
		}
	}
	if tick {
		if err := e.step(now, &Event{Kind: EvTick}); err != nil {
			return err
		}
		e.sync = e.sync || e.batch.Len() > 0 || len(e.records) > 0 // they have waited long enough
	}
	err := e.carryOut()
	e.wire.Flush()
	if err == nil {
		e.recycle()
	}
	return err
}

// flushAfter bounds the packets and messages that wait for those after them, so that
// the next node works on the first while we do on the last.
const flushAfter = 64

// recycle gives batches back of which nothing is left to be carried out.
func (e *Engine) recycle() {
	for i, b := range e.done {
		b.Recycle(b)
		e.done[i] = nil
	}
	e.done = e.done[:0]
}

func (e *Engine) item(now int64, it *item) error {
	switch {
	case it.ask != nil:
		it.ask(e.hop)
		return nil
	case it.record != nil:
		if e.cfg.Store != nil {
			e.records = append(e.records, it.record)
			e.sync = true
		}
		if saved := it.saved; saved != nil {
			ref := e.remember(pending{done: func(*Result) { saved() }})
			e.fx = append(e.fx, Effect{Kind: FxResult, Ref: ref, Msg: e.hop.message(MsgNone, 0)})
		}
		return nil
	case it.lock != nil:
		return e.lockItem(now, it.lock)
	case it.forget != nil:
		return e.step(now, &Event{Kind: EvForget, Msg: it.forget})
	case it.batch != nil:
		b := it.batch
		e.done = append(e.done, b)
		e.stats.stepped.Add(uint64(len(b.Msgs)))
		ev := Event{Kind: EvMessage, Peer: b.Peer}
		for i := range b.Msgs {
			ev.Msg = &b.Msgs[i]
			err := e.step(now, &ev)
			if errors.Is(err, ErrFault) {
				e.stats.faults.Add(1)
				e.wire.Reset(b.Peer, err)
				// What else was read before it ends is not heard: messages count
				// in their order, or not at all.
				return e.step(now, &Event{Kind: EvDown, Peer: b.Peer})
			}
			if err != nil {
				return err
			}
			if e.cfg.Store == nil && i%flushAfter == flushAfter-1 {
				if err := e.carryOut(); err != nil {
					return err
				}
				e.wire.Flush()
			}
		}
		return nil
	case it.send != nil:
		return e.own(now, it)
	default:
		return e.step(now, &Event{Kind: it.kind, Peer: it.peer, Window: it.window})
	}
}

// own steps what a caller asked for.
func (e *Engine) own(now int64, it *item) error {
	s := it.send
	m := e.hop.message(s.msg.Kind, 0)
	*m = s.msg
	ev := Event{Kind: it.kind, Peer: it.peer, ID: s.id, Keep: s.keep, Owed: s.owed, Msg: m}
	before := len(e.fx)
	if it.kind == EvSend {
		ev.Ref = e.remember(pending{s.owner, s.done, s.result})
	}
	err := e.step(now, &ev)
	decided, record := s.decided, s.record
	*s = sending{}
	sendings.Put(s)
	notHeld := errors.Is(err, ErrNotHeld) || errors.Is(err, ErrFault) // a wrong preimage of our own
	switch {
	case notHeld && decided != nil:
		decided(err)
		return nil
	case notHeld:
		return nil
	case err != nil:
		return err
	}
	if n := len(e.fx); n > before && e.fx[n-1].Kind == FxShow {
		// Its channel decides, and saves what is to be saved with that.
		e.showing[lockID{ev.Peer, ev.ID}] = showing{record, decided}
		return nil
	}
	refused := it.kind == EvSend && len(e.fx) > before && e.fx[len(e.fx)-1].Kind == FxResult
	if record != nil && !refused && e.cfg.Store != nil {
		e.records = append(e.records, record)
		e.sync = true
	}
	if decided != nil {
		e.fx = append(e.fx, Effect{Kind: FxResult, Ref: e.remember(pending{done: func(*Result) { decided(nil) }}), Msg: m})
	}
	return nil
}

// remember keeps a caller until its packet is decided.
func (e *Engine) remember(p pending) uint64 {
	if n := len(e.free); n > 0 {
		ref := e.free[n-1]
		e.free = e.free[:n-1]
		e.results[ref-1] = p
		return ref
	}
	e.results = append(e.results, p)
	return uint64(len(e.results))
}

// step steps the core, and offers what is for us to the handler at once, so that
// its answer shares the batch.
func (e *Engine) step(now int64, ev *Event) error {
	before := len(e.fx)
	fx, err := e.hop.Step(now, ev, e.fx)
	if err != nil {
		return err
	}
	e.fx = fx
	if n := len(fx) - 1; n >= before && fx[n].Kind == FxDeliver {
		e.fx = fx[:n]
		return e.deliver(now, fx[n].Peer, fx[n].Msg, false)
	}
	return nil
}

func (e *Engine) deliver(now int64, from peer.ID, m *Msg, again bool) error {
	e.stats.delivered.Add(1)
	id := m.ID
	e.offered = e.delivery(from, m, again)
	d, ok := e.cfg.Handler.Packet(&e.offered)
	switch {
	case !ok && d.Kept != nil && (again || len(m.Data)+len(m.Token) <= MaxKept):
		return e.keep(now, from, m, d.Kept, again)
	case !ok && d.Kept == nil && !again && m.Lock == nil:
		return nil
	case ok && d.Fulfil && m.Lock != nil: // what it shows at once it does not keep
		d = Decision{Code: CodeUnsupported}
	case !ok: // nobody keeps it any more, or it is too long to be kept
		d = Decision{Code: CodeRefused}
	}
	answer := e.hop.message(MsgReject, id)
	answer.Preimage, answer.Code, answer.Data = d.Preimage, d.Code, d.Data
	ev := Event{Kind: EvReject, Peer: from, ID: id, Opens: d.Opens, Msg: answer}
	if d.Fulfil {
		ev.Kind = EvFulfil
	}
	fx, err := e.hop.Step(now, &ev, e.fx)
	if errors.Is(err, ErrNotHeld) || errors.Is(err, ErrFault) {
		// It expired in this very millisecond, or the endpoint has not the right
		// preimage: in both cases the one answer.
		answer.Code, answer.Data = CodeRefused, nil
		ev.Kind = EvReject
		fx, err = e.hop.Step(now, &ev, e.fx)
	} else if err == nil && d.Record != nil && e.cfg.Store != nil {
		e.records = append(e.records, d.Record)
		e.sync = true
	}
	e.fx = fx
	return err
}

// keep lets a packet wait on disk, and tells its endpoint when it is there.
func (e *Engine) keep(now int64, from peer.ID, m *Msg, kept func(), again bool) error {
	if !again {
		if err := e.step(now, &Event{Kind: EvKeep, Peer: from, ID: m.ID, Msg: m}); err != nil {
			return err
		}
	}
	e.fx = append(e.fx, Effect{Kind: FxResult, Ref: e.remember(pending{done: func(*Result) { kept() }}), Msg: m})
	return nil
}

// carryOut saves first and sends then.
func (e *Engine) carryOut() error {
	for i := range e.fx {
		if f := &e.fx[i]; f.Kind == FxResult {
			e.decided(f)
		}
	}
	if e.cfg.Store != nil {
		if err := e.save(); err != nil {
			return err
		}
	}
	for i := range e.fx {
		f := &e.fx[i]
		switch f.Kind {
		case FxSend:
			e.wire.Send(f.Peer, f.Msg)
		case FxResult:
			e.result(f)
		case FxGone:
			e.cfg.Gone(f.Msg.Part)
		case FxSave, FxDelete:
		default:
			e.lockEffect(f)
		}
	}
	clear(e.fx)
	e.fx = e.fx[:0]
	e.hop.Reset()
	return nil
}

func (e *Engine) save() error {
	for i := range e.fx {
		switch f := &e.fx[i]; f.Kind {
		case FxSave:
			e.sync = true
			if key := journalKey(f.Key); f.Record != nil {
				e.batch.Put(key, durable.Seal(nil, key, recordVersion, f.Record))
			} else {
				e.batch.Delete(key)
			}
		case FxDelete:
			e.batch.Delete(journalKey(f.Key))
		case FxUnnote:
			e.batch.Delete(noteKey(f.Key))
		}
	}
	if !e.sync {
		return nil
	}
	for i, record := range e.records {
		record(&e.batch)
		e.records[i] = nil
	}
	e.records, e.rejects = e.records[:0], 0
	e.sync = false
	e.cfg.Tabs.Save(&e.batch)
	err := e.cfg.Store.Commit(context.Background(), &e.batch)
	e.cfg.Tabs.Done(err)
	e.batch.Reset()
	return err
}

// resultOf is m as callers see it.
func resultOf(m *Msg) Result {
	return Result{
		Part: m.Part, Fulfilled: m.Kind == MsgFulfil, Preimage: m.Preimage, Code: m.Code, Headroom: m.Headroom,
		Hop: int(m.Hop) - 1, Data: m.Data,
	}
}

// maxRejects bounds the records of rejects that wait for a batch that is synced.
const maxRejects = 1024

// decided tells the sender before the save. The record of a reject may wait with
// the end of its journal record; a later record is in no earlier batch.
func (e *Engine) decided(f *Effect) {
	decided := e.cfg.Orphan
	var owner any
	switch {
	case f.Kept:
		return // told when it is saved
	case f.Ref != 0:
		p := &e.results[f.Ref-1]
		if decided, owner = p.decided, p.owner; decided == nil {
			return
		}
	}
	e.told = resultOf(f.Msg)
	e.told.Owner = owner
	record := decided(&e.told)
	if record == nil || e.cfg.Store == nil {
		return
	}
	e.records = append(e.records, record)
	if e.rejects++; e.rejects >= maxRejects {
		e.sync = true
	}
}

// result tells the caller after it.
func (e *Engine) result(f *Effect) {
	e.told = resultOf(f.Msg)
	if f.Kept {
		e.cfg.Kept(&e.told)
	}
	if f.Ref == 0 {
		return
	}
	done := e.results[f.Ref-1].done
	e.told.Owner = e.results[f.Ref-1].owner
	e.results[f.Ref-1] = pending{}
	e.free = append(e.free, f.Ref)
	if done != nil {
		done(&e.told)
	}
}
