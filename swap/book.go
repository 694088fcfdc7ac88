package swap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// Times and bounds of the book.
const (
	// flushEvery is the most that karma facts lie in memory.
	flushEvery = 100 * time.Millisecond
	// tickEvery drives retries, overdue debts and expired holds.
	tickEvery = time.Second
	// evictAfter is how long an idle account stays in memory.
	evictAfter = 10 * time.Minute
	// forgetAfter is the age at which the record of a peer that never paid is
	// dropped.
	forgetAfter = 7 * 24 * time.Hour
	// maxStrangers bounds the records of peers that never paid: 10^5 records
	// are 20 MB of disk.
	maxStrangers = 100_000
	// maxSettling bounds the cheques that are issued at the same time; each
	// holds a goroutine and a place in the disk's queue.
	maxSettling = 256
	// saveWithin bounds one write to the store and one call of the settler.
	saveWithin = 30 * time.Second
)

// ErrClosed is returned once the book is closed.
var ErrClosed = errors.New("swap: book is closed")

// Config is what a book needs beside its store.
type Config struct {
	// Key is our libp2p identity key: it signs cheques and acks. Required.
	Key crypto.PrivKey
	// Realm binds what we sign. Asset default "karma".
	Realm Realm
	// Policy; the zero value means the defaults.
	Policy Policy
	// Settler backs cheques. Default MockSettler; required in hard mode.
	Settler Settler
	// PayoutAddress is told to peers; empty without a chain.
	PayoutAddress string
	// KeyOf finds the public key of a peer whose id does not contain it (RSA).
	// Default: the id alone.
	KeyOf func(peer.ID) (crypto.PubKey, error)
	// Notify is called on each Notice, outside all locks, in no fixed order. It
	// must return soon. Default: none.
	Notify func(Notice)
	// Logger default: slog.Default.
	Logger *slog.Logger

	// clock is the wall clock in Unix seconds; tests set it back.
	clock func() int64
}

// NoticeKind names what a Notice tells. Values are stable words of the API.
type NoticeKind string

// Kinds of Notice.
const (
	NoticeSession        NoticeKind = "session"
	NoticeSessionEnd     NoticeKind = "session_end"
	NoticeChequeSent     NoticeKind = "cheque_sent"
	NoticeChequeAcked    NoticeKind = "cheque_acked"
	NoticeChequeRefused  NoticeKind = "cheque_refused"
	NoticeChequeReceived NoticeKind = "cheque_received"
	NoticeBlocked        NoticeKind = "blocked"
	NoticeSkew           NoticeKind = "skew"
	NoticeEvidence       NoticeKind = "evidence"
	NoticeUncovered      NoticeKind = "uncovered"
	NoticeFinal          NoticeKind = "final"
)

// Notice is one event that an operator may want to see.
type Notice struct {
	Kind   NoticeKind
	Peer   peer.ID
	Serial uint64
	Amount tally.Amount // cumulative, or units
	Detail string
}

// Book keeps the tabs with all peers in one asset. It is the shell around
// Ledger: it owns the accounts, persists before it sends, and calls the
// settler. All methods may be called from any goroutine.
//
//	services            swapnet                 operator
//	   │ Reserve            │ Receive               │ Settle, Resolve
//	   ▼                    ▼                       ▼
//	┌──────────────────────────────────────────────────┐
//	│ shard lock: Ledger.Step → effects                │
//	└──────┬───────────────────────────────┬───────────┘
//	       │ dirty (≤ 100 ms or W/2)       │ money: Save (synced), then Send
//	       ▼                               ▼
//	  write-behind ─────▶ durable.Store ◀── transact ──▶ Courier, Settler
type Book struct {
	store   *durable.Store
	keys    keys
	cfg     Config
	self    peer.ID
	policy  Policy
	run     runRecord
	started time.Time
	log     *slog.Logger

	shards  [shardCount]shard
	pool    pool
	live    atomic.Int32 // holds
	records atomic.Int64 // strangers' records
	courier atomic.Pointer[Courier]
	stats   stats

	settling chan struct{} // semaphore of maxSettling
	flushNow chan struct{} // capacity 1: flush before the next tick

	ctx    context.Context // ends with the book; no caller's ctx ends a save
	cancel context.CancelFunc
	closed atomic.Bool
	broken atomic.Pointer[error] // why the book does nothing any more

	// life guards the begin of goroutines against Close.
	life      sync.Mutex
	wg        sync.WaitGroup
	closeOnce sync.Once
	closeErr  error
}

// Open reads the book in store, which the caller keeps open until after Close.
// It fails on an invalid policy, and on a record that is damaged or newer than
// this program.
func Open(ctx context.Context, store *durable.Store, cfg Config) (*Book, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	self, err := peer.IDFromPrivateKey(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("swap: identity key: %w", err)
	}
	b := &Book{
		store: store, keys: newKeys(cfg.Realm.Asset), cfg: cfg, self: self, policy: cfg.Policy,
		started: time.Now(), log: cfg.Logger,
		settling: make(chan struct{}, maxSettling), flushNow: make(chan struct{}, 1),
	}
	b.ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for i := range b.shards {
		b.shards[i].accounts = make(map[peer.ID]*account)
		b.shards[i].watched = make(map[peer.ID]*account)
		b.shards[i].holds.init()
	}
	if err := b.beginRun(ctx); err != nil {
		b.cancel()
		return nil, err
	}
	b.wg.Go(b.flushLoop)  // ends with b.ctx, or when the store failed
	b.wg.Go(b.tickLoop)   // ends with b.ctx
	b.wg.Go(b.forgetLoop) // ends with b.ctx
	return b, nil
}

func (cfg Config) complete() (Config, error) {
	cfg.Policy = cfg.Policy.Complete()
	if cfg.Realm.Asset == "" {
		cfg.Realm.Asset = "karma"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.KeyOf == nil {
		cfg.KeyOf = func(p peer.ID) (crypto.PubKey, error) { return p.ExtractPublicKey() }
	}
	if cfg.clock == nil {
		cfg.clock = func() int64 { return time.Now().Unix() }
	}
	if cfg.Notify == nil {
		cfg.Notify = func(Notice) {}
	}
	switch {
	case cfg.Key == nil:
		return cfg, fmt.Errorf("%w: no identity key", ErrPolicy)
	case cfg.Settler == nil && cfg.Policy.Mode == ModeHard:
		return cfg, fmt.Errorf("%w: hard mode needs a settler that backs cheques; configure a chain, or use mock mode", ErrPolicy)
	case cfg.Settler == nil:
		cfg.Settler = MockSettler{}
	}
	if err := cfg.Realm.Validate(); err != nil {
		return cfg, err
	}
	return cfg, cfg.Policy.Validate()
}

// beginRun notes that the book is open, and reads what the last runs left.
func (b *Book) beginRun(ctx context.Context) error {
	key := b.keys.run()
	rec, err := b.store.Get(ctx, key)
	switch {
	case errors.Is(err, durable.ErrNotFound):
	case err != nil:
		return err
	default:
		_, payload, err := durable.Unseal(key, runVersion, rec)
		if err != nil {
			return err
		}
		if b.run, err = parseRun(payload); err != nil {
			return err
		}
	}
	b.run.run++
	if b.run.open {
		b.run.lastUnclean = b.run.run
	}
	b.run.open = true
	if err := b.sumRecords(ctx); err != nil {
		return err
	}
	var batch durable.Batch
	batch.Put(key, b.run.encode(key))
	return b.store.Commit(ctx, &batch)
}

// sumRecords reads every record once: the shared sums have to be right before
// the first peer is served, and damage is better found now.
func (b *Book) sumRecords(ctx context.Context) error {
	var drop durable.Batch
	old := b.unix() - int64(forgetAfter/time.Second)
	err := b.store.Scan(ctx, b.keys.prefix(shelfLedger), "", func(key string, rec []byte) error {
		l, st, err := b.unsealLedger(key, rec)
		if err != nil {
			return fmt.Errorf("record %s: %w", key, err)
		}
		if l.Stranger() {
			if st.usedAt < old && drop.Len() < maxDropAtOnce {
				return b.dropKeys(&drop, key)
			}
			b.records.Add(1)
		}
		b.pool.move(0, l.Exposure(), false, l.Stranger())
		return nil
	})
	if err != nil {
		return err
	}
	if drop.Len() == 0 {
		return nil
	}
	return b.store.Commit(ctx, &drop)
}

// maxDropAtOnce bounds the deletes of one clean-up; the rest goes next time.
const maxDropAtOnce = 50_000

func (b *Book) dropKeys(batch *durable.Batch, key string) error {
	p, err := b.keys.peerOf(key)
	if err == nil {
		b.dropPeer(batch, p)
	}
	return err
}

// dropPeer deletes all records of a peer but evidence.
func (b *Book) dropPeer(batch *durable.Batch, p peer.ID) {
	for _, s := range [...]shelf{shelfLedger, shelfChequeSent, shelfChequeReceived, shelfAckGiven, shelfAckReceived, shelfServices} {
		batch.Delete(b.keys.of(s, p))
	}
}

// Bind gives the book its courier. Before it, nothing is sent.
func (b *Book) Bind(c Courier) { b.courier.Store(&c) }

// Self returns our peer id.
func (b *Book) Self() peer.ID { return b.self }

// Policy returns the policy in force.
func (b *Book) Policy() Policy { return b.policy }

// Realm returns what our signatures are bound to.
func (b *Book) Realm() Realm { return b.cfg.Realm }

// Close saves what is in memory and notes a clean stop. From then on every call
// returns ErrClosed. The store stays open; it is the caller's. Holds that are
// still live are lost to the book: their services must have ended before.
func (b *Book) Close() error {
	b.closeOnce.Do(func() { b.closeErr = b.close() })
	return b.closeErr
}

func (b *Book) close() error {
	b.life.Lock()
	b.closed.Store(true)
	b.life.Unlock()
	b.cancel()
	b.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), saveWithin)
	defer cancel()
	for i := range b.shards {
		if err := b.closeShard(ctx, &b.shards[i]); err != nil {
			return fmt.Errorf("swap: close: %w", err)
		}
	}
	b.run.open = false
	var batch durable.Batch
	batch.Put(b.keys.run(), b.run.encode(b.keys.run()))
	return b.store.Commit(ctx, &batch)
}

// closeShard books nothing more in a shard, and saves what it has. A record that
// is on its way is waited for: what was booked meanwhile is not in it.
func (b *Book) closeShard(ctx context.Context, s *shard) error {
	for {
		s.mu.Lock()
		s.closed = true
		if len(s.dirty) == 0 {
			s.mu.Unlock()
			return nil
		}
		var gate chan struct{}
		if a := s.dirty[0]; a.saving {
			gate = a.gateLocked()
		}
		s.mu.Unlock()
		if gate != nil {
			select {
			case <-gate:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := b.flushShard(ctx, s); err != nil {
			return err
		}
	}
}

// spawn runs f on a goroutine that Close waits for. It reports false where the
// book is closed.
func (b *Book) spawn(f func()) bool {
	b.life.Lock()
	defer b.life.Unlock()
	if b.closed.Load() {
		return false
	}
	b.wg.Go(f) // f ends with b.ctx at the latest
	return true
}

// usable reports why the book can do nothing any more.
func (b *Book) usable() error {
	if b.closed.Load() {
		return ErrClosed
	}
	return b.failure()
}

// failure reports why nothing may be saved any more.
func (b *Book) failure() error {
	if err := b.broken.Load(); err != nil {
		return *err
	}
	return b.store.Failed()
}

// now is the monotonic time of the ledgers, never 0.
func (b *Book) now() Instant { return Instant(time.Since(b.started)) + 1 }

// unix is the wall clock, for dates on the wire and the age of records.
func (b *Book) unix() int64 { return b.cfg.clock() }

// transact runs one event that touches money: step, save the record together
// with what more adds (synced), and only then hand the later effects back. more
// sees the ledger before and after; nothing else can save this account
// meanwhile. On an error nothing changed, unless the store itself failed: then
// the whole book refuses work from here on.
func (b *Book) transact(p peer.ID, ev *Event, more func(before, after *Ledger, batch *durable.Batch) error) ([]Effect, error) {
	if err := b.usable(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(b.ctx, saveWithin)
	defer cancel()
	s, a, err := b.acquire(ctx, p)
	if err != nil {
		return nil, err
	}
	before := a.ledger
	fx, err := b.apply(s, a, b.now(), ev)
	if err != nil || !hasSave(fx) {
		a.releaseLocked()
		b.wakeIf(a, fx)
		s.mu.Unlock()
		return fx, err
	}
	save := b.snapshot(a)
	after := a.ledger
	s.mu.Unlock()

	batch := durable.Batch{}
	save.put(b, &batch)
	if more != nil {
		err = more(&before, &after, &batch)
	}
	if err != nil {
		// The ledger went on and its record cannot follow: what more adds was
		// not signed. Memory is no longer what the disk may become.
		err = fmt.Errorf("swap: the book stops, because a cheque could not be signed: %w; check the identity key, then restart", err)
		b.broken.CompareAndSwap(nil, &err)
	} else {
		err = b.store.Commit(context.WithoutCancel(ctx), &batch)
	}

	s.mu.Lock()
	if err == nil {
		save.done(b, a)
	}
	a.releaseLocked()
	b.wakeIf(a, fx)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return fx, nil
}

func hasSave(fx []Effect) bool {
	for i := range fx {
		if fx[i].Kind == FxSave {
			return true
		}
	}
	return false
}

// wakeIf wakes the callers that wait where an effect says so.
func (b *Book) wakeIf(a *account, fx []Effect) {
	for i := range fx {
		if fx[i].Kind == FxWake {
			a.wakeAll()
			return
		}
	}
}

// snapshot is one account's record as it was when the shard was locked.
type snapshot struct {
	peer     peer.ID
	payload  []byte
	dirty    tally.Amount
	stranger bool
	// services is the record of the counts per service; nil where it need not be
	// written, or where counts have to be added to what the store has first.
	services []byte
	counts   []serviceTotals
	ack      *Ack
}

func (b *Book) snapshot(a *account) snapshot {
	now := b.now()
	a.usedAt = now
	run := b.run.run
	if a.ledger.flags&flagUnclean != 0 {
		run = 0
	}
	snap := snapshot{
		peer: a.peer, dirty: a.ledger.dirty, stranger: a.ledger.Stranger(), ack: a.ack,
		payload: appendLedger(make([]byte, 0, ledgerPayload), &a.ledger, now, stamp{run: run, usedAt: b.unix()}),
	}
	if a.newServices {
		a.newServices = false
		if a.allServices {
			snap.services = encodeServices(a.services)
		} else {
			snap.counts, a.services = a.services, nil
		}
	}
	return snap
}

// put adds the record to a batch.
func (s *snapshot) put(b *Book, batch *durable.Batch) {
	key := b.keys.of(shelfLedger, s.peer)
	batch.Put(key, durable.Seal(nil, key, ledgerVersion, s.payload))
	if s.ack != nil {
		b.putAck(batch, shelfAckReceived, s.peer, s.ack)
	}
	if s.counts != nil {
		list, err := b.readServices(s.peer)
		if err != nil {
			// Counts per service are for the operator's eyes; the money is in the
			// ledger's own record. Start them afresh rather than stop the node.
			b.log.Warn("service totals cannot be read and start afresh", "peer", s.peer, "err", err)
			list = nil
		}
		s.counts = addServices(list, s.counts)
		s.services = encodeServices(s.counts)
	}
	if s.services != nil {
		key = b.keys.of(shelfServices, s.peer)
		batch.Put(key, durable.Seal(nil, key, serviceVersion, s.services))
	}
}

// done marks the saved part as clean, with the shard locked.
func (s *snapshot) done(b *Book, a *account) {
	a.ledger.Saved(s.dirty)
	if a.ack == s.ack {
		a.ack = nil
	}
	if s.counts != nil {
		a.services, a.allServices = addServices(s.counts, a.services), true
	}
	if !a.stored {
		a.stored = true
		if s.stranger {
			b.records.Add(1)
		}
	}
}

func (b *Book) readServices(p peer.ID) ([]serviceTotals, error) {
	key := b.keys.of(shelfServices, p)
	// Close asks too, when b.ctx is over.
	rec, err := b.store.Get(context.WithoutCancel(b.ctx), key)
	if errors.Is(err, durable.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	_, payload, err := durable.Unseal(key, serviceVersion, rec)
	if err != nil {
		return nil, err
	}
	return decodeServices(payload)
}

// mustHold panics on a broken invariant; only builds with the tag call it.
func mustHold(l *Ledger) {
	if err := l.Check(); err != nil {
		panic(err)
	}
}
