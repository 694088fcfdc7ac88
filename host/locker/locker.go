package locker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paystream/lock"
)

// Config is what an operator decides. Times are epochs; a zero field takes its
// default.
type Config struct {
	// Grace is G: how long two neighbours may take to say what the chain showed one
	// of them. Default 10, at most a 40th of the settle delay, at least 2.
	Grace int64
	// Margin is M, before the end of the settling. Default a third of the settle
	// delay.
	Margin int64
	// Skew is what the heads of two neighbours may differ by. Default 2.
	Skew int64
	// Slots of a channel. Default and most those of the channel manager.
	Slots uint64
	// Disabled makes and takes no new locks; those that stand are kept.
	Disabled bool
	// Every is the time between two looks at the chain. Default: the chain's epoch,
	// at least 50 ms and at most 30 s.
	Every time.Duration
	// Logger default: slog.Default.
	Logger *slog.Logger
}

// terms fills in the defaults for a chain.
func (c *Config) terms(r paych.Rules, finality int64, epoch time.Duration) lock.Terms {
	if c.Grace == 0 {
		c.Grace = min(10, max(2, int64(r.SettleDelay)/40))
	}
	if c.Margin == 0 {
		c.Margin = int64(r.SettleDelay) / 3
	}
	if c.Skew == 0 {
		c.Skew = 2
	}
	if c.Slots == 0 {
		c.Slots = r.SlotLanes
	}
	if c.Every == 0 {
		c.Every = min(max(epoch, 50*time.Millisecond), 30*time.Second)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return lock.Terms{
		Finality: finality, Inclusion: int64(r.SubmitMargin), Grace: c.Grace, SettleDelay: int64(r.SettleDelay),
		Margin: c.Margin, Extension: int64(r.MaxSettleExtension), Skew: c.Skew, Slots: c.Slots, OpensPoint: opensPoint,
	}
}

// Links tells which channels settle the tab with a peer.
type Links interface {
	// Linked returns our channel to the peer (out), or the peer's to us, and the tag
	// that it is owned by. It answers from memory.
	Linked(p peer.ID, out bool) (ch address.Address, tag string, ok bool)
}

// Wire carries messages to neighbours, in order while a session lasts.
type Wire interface {
	// Send takes m and never waits. Without a session it is lost: Up tells of the
	// next one.
	Send(p peer.ID, m *Msg)
}

// Msg is one message about a lock between the two ends of a channel.
type Msg struct {
	Channel address.Address
	Send    lock.Send
	// Sync: Lanes are all that we have of the channel, in place of a Send. Ask: the
	// neighbour is to say the same, because we could not listen before.
	Sync, Ask bool
	Lanes     []lock.LaneState
	ID        uint64
	// Amount of a LOCK.
	Amount tally.Amount
	// Voucher and Guard in CBOR. Of a LOCK under a point, and where that is shown,
	// Voucher is what paych.EncodePointLock gives.
	Voucher, Guard []byte
	Preimage       tally.Preimage
}

// Carrier is told what becomes of locks. Calls come from the channel's goroutine and
// must not wait. What Decided and Ended return, where it is not nil, is: record adds
// the carrier's records to the very batch that the lock's are saved with, and saved is
// called when that batch is on disk.
type Carrier interface {
	// Taken: the neighbour's lock is held.
	Taken(p peer.ID, l lock.Lock)
	// Decided: a lock that we offered is paid, and the preimage is there; or it will
	// never be, and err says why.
	Decided(p peer.ID, id uint64, preimage *tally.Preimage, err error) (record func(*durable.Batch), saved func())
	// Ended: a lock of the neighbour is over: paid where preimage is there, else
	// not. ErrLost where we have shown the preimage and were not paid.
	Ended(p peer.ID, id uint64, preimage *tally.Preimage, err error) (record func(*durable.Batch), saved func())
}

var (
	// ErrNoChannel: no channel settles the tab with the peer in this direction yet.
	ErrNoChannel = errors.New("locker: no channel to the peer; the first settlement opens one")
	// ErrPending: the caller did not wait, or something failed after the lock was
	// made. Its end is told to the carrier.
	ErrPending = errors.New("locker: the lock stands, or may")
	// ErrFunds: the channel has not enough free money; the error is a FundsError.
	ErrFunds = errors.New("locker: the channel's free money is too little")
	// ErrLost: the chain did not take a lock whose preimage we have shown.
	ErrLost = errors.New("locker: the chain did not take the lock in time")
	// ErrBusy: too much waits for the channel.
	ErrBusy = errors.New("locker: too many events wait for the channel; try again")
	// ErrUnlinked: the channel of a message settles no tab with the peer, or not yet: its
	// first voucher may be on its way.
	ErrUnlinked = errors.New("locker: the channel settles no tab with the peer")
	// ErrUnseen: the channel was not seen on the chain since the start, and until then
	// nothing is taken. The neighbour is asked for it again.
	ErrUnseen = errors.New("locker: channel not seen on the chain yet")
	// ErrClosed: the locker is closed. What was under way is on disk.
	ErrClosed = errors.New("locker: closed")
	// ErrStopped is wrapped by every call on a channel after the disk failed.
	ErrStopped = errors.New("locker: channel has stopped: mend the disk, then restart")
	// ErrSigner: a voucher that the side which has to did not sign.
	ErrSigner = errors.New("locker: wrong signer")
	// ErrDisabled: the operator wants no new locks.
	ErrDisabled = errors.New("locker: locks are off by configuration")
	// ErrMessage: a message that its sender may not send, or about another channel.
	ErrMessage = errors.New("locker: unexpected message")
)

// FundsError says what is free.
type FundsError struct{ Free tally.Amount }

func (e *FundsError) Error() string {
	return fmt.Sprintf("%v: %d units are free; send less, or top the channel up", ErrFunds, e.Free)
}

// Is makes it an ErrFunds.
func (*FundsError) Is(target error) bool { return target == ErrFunds }

// Locker keeps all locks of a node. All methods may be called at the same time.
type Locker struct {
	store *durable.Store
	paych *paych.Manager
	links Links
	cfg   Config
	terms lock.Terms
	off   error
	log   *slog.Logger

	epochMS int64

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	// mu guards the fields below.
	mu      sync.Mutex
	closed  bool
	wire    Wire
	carrier Carrier
	lines   map[address.Address]*line
	head    int64     // of the newest view of any channel; 0: none yet
	headAt  time.Time // when that was
}

// Open reads what is on disk. Where no lock fits the chain the locker is off: Off
// says why, and every offer is refused. The store is shared with m and belongs to
// the caller.
func Open(ctx context.Context, store *durable.Store, m *paych.Manager, chain paych.Params, links Links, cfg Config) (*Locker, error) {
	k := &Locker{store: store, paych: m, links: links, lines: make(map[address.Address]*line)}
	k.terms = cfg.terms(m.Rules(), int64(chain.Finality), chain.Epoch)
	k.cfg, k.log, k.off = cfg, cfg.Logger, k.terms.Fits()
	if cfg.Disabled {
		k.off = ErrDisabled
	}
	k.epochMS = max(1, chain.Epoch.Milliseconds())
	k.ctx, k.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := k.load(ctx); err != nil {
		k.cancel()
		return nil, err
	}
	return k, nil
}

// Off is nil, or why no lock fits the chain.
func (k *Locker) Off() error { return k.off }

// Terms are the times that locks go by.
func (k *Locker) Terms() lock.Terms { return k.terms }

// Start begins the work.
func (k *Locker) Start(w Wire, c Carrier) {
	k.mu.Lock()
	k.wire, k.carrier = w, c
	lines := k.all()
	for _, l := range lines {
		k.tasks.Go(l.run) // ends with Close
	}
	k.mu.Unlock()
	for _, l := range lines {
		l.resume()
	}
	k.tasks.Go(k.watch) // ends with Close
}

// Close ends the work. Wire and carrier are not called any more; manager and store
// are closed after it.
func (k *Locker) Close() error {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.cancel()
	k.tasks.Wait()
	return nil
}

// all returns the lines. Called with mu held.
func (k *Locker) all() []*line {
	list := make([]*line, 0, len(k.lines))
	for _, l := range k.lines {
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b *line) int { return strings.Compare(a.ch.String(), b.ch.String()) })
	return list
}

// Records. A line is saved before anything of it.
//
//	/lock/c/<channel>          u8 role | u8 len, tag | peer
//	/lock/s/<channel>/<lane>   lock.Slots.Record
const (
	dirLines    = "/lock/c/"
	dirSlots    = "/lock/s/"
	lineVersion = 1
)

var errRecord = errors.New("locker: malformed record")

func lineKey(ch address.Address) string { return dirLines + durable.KeyID(ch.Bytes()) }
func slotDir(ch address.Address) string { return dirSlots + durable.KeyID(ch.Bytes()) + "/" }
func slotKey(ch address.Address, lane uint64) string {
	return slotDir(ch) + durable.KeyUint(lane)
}

func (k *Locker) load(ctx context.Context) error {
	return k.store.Scan(ctx, dirLines, "", func(key string, rec []byte) error {
		_, payload, err := durable.Unseal(key, lineVersion, rec)
		if err != nil {
			return err
		}
		raw, err := durable.ParseKeyID(key[len(dirLines):])
		if err != nil {
			return err
		}
		ch, err := address.NewFromBytes(raw)
		if err != nil || len(payload) < 3 || int(payload[1])+2 >= len(payload) || payload[0] != byte(lock.Payer) && payload[0] != byte(lock.Payee) {
			return fmt.Errorf("%w: %s", errRecord, key)
		}
		n := int(payload[1]) + 2
		l := k.newLine(ch, peer.ID(payload[n:]), lock.Role(payload[0]), string(payload[2:n]))
		if err := l.load(ctx); err != nil {
			return err
		}
		k.lines[ch] = l
		return nil
	})
}

func (l *line) record() []byte {
	b := []byte{byte(l.role), byte(len(l.tag))}
	b = append(b, l.tag...)
	return append(b, l.peer...)
}

// line returns that of a channel to or from p, and makes it where there is none.
func (k *Locker) line(p peer.ID, out bool) (*line, error) {
	ch, tag, ok := k.links.Linked(p, out)
	if !ok || len(tag) > 255 {
		return nil, ErrNoChannel
	}
	role := lock.Payee
	if out {
		role = lock.Payer
	}
	if info, err := k.paych.PaychInfo(k.ctx, ch); err != nil || info.Phase == paych.PhaseCollected {
		return nil, errors.Join(ErrNoChannel, err) // it ended; the next one comes with the next settlement
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch l := k.lines[ch]; {
	case k.closed || k.wire == nil:
		return nil, ErrClosed
	case l != nil && (l.peer != p || l.role != role):
		return nil, fmt.Errorf("%w: channel %s is another's", ErrMessage, ch)
	case l != nil:
		return l, nil
	}
	l := k.newLine(ch, p, role, tag)
	k.lines[ch] = l
	k.tasks.Go(l.run) // ends with Close
	return l, nil
}

// known returns the line of a message, which has to be of this peer.
func (k *Locker) known(p peer.ID, ch address.Address) *line {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l := k.lines[ch]; l != nil && l.peer == p && !k.closed {
		return l
	}
	return nil
}

// holder is the line that holds a lock of p.
func (k *Locker) holder(p peer.ID, id uint64) (*line, error) {
	k.mu.Lock()
	lines := k.all()
	started := k.wire != nil && !k.closed
	k.mu.Unlock()
	if !started {
		return nil, ErrClosed
	}
	for _, l := range lines {
		if l.peer == p && l.role == lock.Payee && l.has(id) {
			return l, nil
		}
	}
	return nil, fmt.Errorf("%w: lock %d of %s", lock.ErrUnknown, id, p)
}

// Way is what a channel to a peer can carry now, from memory.
type Way struct {
	Channel address.Address
	// Free is its free money, and Slots are the locks that still find a place.
	Free  tally.Amount
	Slots int
}

// Way returns what our channel to p can carry, and false where there is none, or it
// was not seen on the chain yet.
func (k *Locker) Way(p peer.ID) (Way, bool) {
	ch, _, ok := k.links.Linked(p, true)
	if !ok || k.off != nil {
		return Way{}, false
	}
	l := k.known(p, ch)
	if l == nil || l.role != lock.Payer {
		return Way{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.from == address.Undef || l.closing || l.room == 0 {
		return Way{}, false
	}
	return Way{Channel: ch, Free: l.free, Slots: l.room}, true
}

// Full is in how many channels of ours no further lock finds a slot.
func (k *Locker) Full() (n int) {
	k.mu.Lock()
	lines := k.all()
	k.mu.Unlock()
	for _, l := range lines {
		l.mu.Lock()
		if l.role == lock.Payer && l.room == 0 && !l.closing {
			n++
		}
		l.mu.Unlock()
	}
	return n
}

// Warm gets the channel to p ready, so that Way knows it.
func (k *Locker) Warm(ctx context.Context, p peer.ID) error {
	if k.off != nil {
		return k.off
	}
	l, err := k.line(p, true)
	if err != nil {
		return err
	}
	return l.see(ctx)
}

// Clock ties the chain's epochs to the wall clock, nowMS in milliseconds since 1970;
// false before a channel was seen.
func (k *Locker) Clock(nowMS int64) (lock.Clock, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.head == 0 {
		return lock.Clock{}, false
	}
	return lock.Clock{Head: k.head, HeadMS: nowMS - time.Since(k.headAt).Milliseconds(), EpochMS: k.epochMS}, true
}

// saw takes the height of a view.
func (k *Locker) saw(height int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if height >= k.head {
		k.head, k.headAt = height, time.Now()
	}
}

// ChannelOf returns the channel of a lock with p: of ours (out), or of the neighbour.
func (k *Locker) ChannelOf(p peer.ID, id uint64, out bool) (address.Address, bool) {
	for _, r := range k.List() {
		if r.Peer == p && r.ID == id && (r.Role == lock.Payer) == out {
			return r.Channel, true
		}
	}
	return address.Undef, false
}

// Offer is a lock to be made.
type Offer struct {
	// ID is the packet's: never used twice.
	ID     uint64
	Amount tally.Amount
	Hash   tally.Hashlock
	// Point is 0, or of a point lock the first byte of the compressed point whose x is
	// Hash (lock.PointOf). What opens it, its secret, is given and told where the
	// preimage of a hash lock is.
	Point   byte
	Expires int64
	// Long allows a guard for a lock that ends beyond the horizon.
	Long bool
	// Record adds the carrier's records to the batch that is on disk before the lock
	// is signed.
	Record func(*durable.Batch)
}

// Offer makes a lock to p, and returns when it is on disk, signed and with the wire.
// ErrPending says that the lock stands, or may, all the same, and that its end is told
// to the carrier. On any other error nothing left us and nothing will: ErrNoChannel,
// ErrFunds, lock.ErrFull, paych.ErrPointWallet for a point where our wallet cannot sign
// under one, and what else Step says; one that was on disk already, and
// then could not be signed, is told to the carrier as failed too. It may be called
// again with the same offer.
func (k *Locker) Offer(ctx context.Context, p peer.ID, o Offer) error {
	if k.off != nil {
		return k.off
	}
	if o.Point != 0 {
		if err := k.paych.PaychPointLocks(); err != nil {
			return err
		}
	}
	l, err := k.line(p, true)
	if err != nil {
		return err
	}
	k.mu.Lock()
	newest := k.head
	k.mu.Unlock()
	if err := l.seeUpTo(ctx, newest); err != nil {
		return err
	}
	info, err := k.paych.PaychInfo(ctx, l.ch)
	if err != nil {
		return fmt.Errorf("locker: funds of channel %s: %w", l.ch, err)
	}
	if free := info.Funds.Free(); free.LessThan(atto(o.Amount)) && !l.has(o.ID) {
		have := tally.Amount(0)
		if free.Sign() > 0 {
			have = floor(free)
		}
		return &FundsError{Free: have}
	}
	err = l.ask(ctx, item{record: o.Record, ev: lock.Event{
		Kind: lock.EvOffer, ID: o.ID, Amount: o.Amount, Hash: o.Hash, Point: o.Point, Expires: o.Expires, Long: o.Long,
	}})
	conflict := errors.Is(err, lock.ErrConflict) // it is another lock that stands
	if err != nil && !conflict && (ctx.Err() != nil || errors.Is(err, ErrClosed) || l.has(o.ID)) {
		return fmt.Errorf("%w: %w", ErrPending, err)
	}
	return err
}

// Fulfil shows the preimage of a lock of p. owed: we have paid for it on the way
// out. record is saved with it.
func (k *Locker) Fulfil(ctx context.Context, p peer.ID, id uint64, preimage tally.Preimage, owed bool, record func(*durable.Batch)) error {
	l, err := k.holder(p, id)
	if err != nil {
		return err
	}
	if !owed { // whether it is in time the chain says
		if err := l.ready(ctx); err != nil {
			return err
		}
	}
	return l.ask(ctx, item{record: record, ev: lock.Event{Kind: lock.EvFulfil, ID: id, Preimage: preimage, Owed: owed}})
}

// Give gives a lock of p up. record is saved with it.
func (k *Locker) Give(ctx context.Context, p peer.ID, id uint64, record func(*durable.Batch)) error {
	l, err := k.holder(p, id)
	if err != nil {
		return err
	}
	return l.ask(ctx, item{record: record, ev: lock.Event{Kind: lock.EvGive, ID: id}})
}

// Up tells that a session with p has begun: both sides say what they have.
func (k *Locker) Up(p peer.ID) {
	k.mu.Lock()
	lines := k.all()
	wire := k.wire
	k.mu.Unlock()
	for _, l := range lines {
		if l.peer == p && wire != nil {
			_ = l.put(item{tell: true}) // a full inbox tells with the next session
		}
	}
}

// Receive takes a message of p. An error says that p broke the protocol, or that
// its lock cannot be taken now. The first message of a channel waits for a look at
// the chain.
func (k *Locker) Receive(p peer.ID, m *Msg) error {
	if l := k.known(p, m.Channel); l != nil {
		if err := l.receive(m); err != nil || !m.Ask {
			return err
		}
		return l.put(item{tell: true})
	}
	if m.Send != lock.SendLock && !m.Sync || k.off != nil {
		return fmt.Errorf("%w: no lock of channel %s is known", ErrMessage, m.Channel)
	}
	for _, out := range [...]bool{false, true} {
		if ch, _, ok := k.links.Linked(p, out); !ok || ch != m.Channel {
			continue
		}
		l, err := k.line(p, out)
		if err != nil {
			return err
		}
		if err := l.see(k.ctx); err != nil {
			return err
		}
		if l.ended() {
			return fmt.Errorf("%w: channel %s is gone", ErrMessage, m.Channel)
		}
		if err := l.receive(m); err != nil || !m.Sync {
			return err
		}
		// We said nothing of a channel that we knew nothing of: what the neighbour has
		// sent never arrived, and it has to hear that.
		return l.put(item{tell: true})
	}
	return fmt.Errorf("%w: channel %s", ErrUnlinked, m.Channel)
}

// Row is one lock, for the eye.
type Row struct {
	Peer    peer.ID
	Channel address.Address
	Role    lock.Role
	lock.Lock
}

// List returns the locks that are not over.
func (k *Locker) List() []Row {
	k.mu.Lock()
	lines := k.all()
	k.mu.Unlock()
	var rows []Row
	for _, l := range lines {
		for _, x := range l.locks() {
			rows = append(rows, Row{Peer: l.peer, Channel: l.ch, Role: l.role, Lock: x})
		}
	}
	return rows
}

// watch looks at the chain for every channel that has a lock, and at all of them now
// and then: a LOCK that was given up may come there at any time before it ends.
func (k *Locker) watch() {
	ticker := time.NewTicker(k.cfg.Every)
	defer ticker.Stop()
	for {
		k.mu.Lock()
		lines := k.all()
		k.mu.Unlock()
		for _, l := range lines {
			if err := l.see(k.ctx); err != nil && k.ctx.Err() == nil {
				k.log.Warn("channel with locks not seen", "channel", l.ch, "err", err)
			}
		}
		select {
		case <-ticker.C:
		case <-k.ctx.Done():
			return
		}
	}
}

// forget drops a line whose channel is gone and that has nothing left to decide.
func (k *Locker) forget(l *line) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lines[l.ch] == l {
		delete(k.lines, l.ch)
	}
}
