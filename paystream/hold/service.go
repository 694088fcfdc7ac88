package hold

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream/payments"
)

const (
	// maxQueued bounds what peers and callers have waiting for the owner.
	maxQueued = 4096
	// maxCalls bounds the questions to peers that are under way.
	maxCalls = 64
	// callTime bounds one of them.
	callTime = 20 * time.Second
	// ListPage bounds the holds of one answer to a list.
	ListPage = 32
	// tickAtLeast is how often the clock is looked at when nothing is due.
	tickAtLeast = time.Minute
)

var (
	// ErrClosed: the service is closed. What was in flight goes on after the next
	// start.
	ErrClosed = errors.New("hold: closed")
	// ErrStopped is wrapped by every call after the disk failed.
	ErrStopped = errors.New("hold: stopped")
	// ErrBusy: too much waits; try again.
	ErrBusy = errors.New("hold: busy")
	// ErrPrice: holding costs more than the payer allows.
	ErrPrice = errors.New("hold: the price is above the limit")
	// ErrNoCredit: the payer's tab has no room for the price.
	ErrNoCredit = errors.New("hold: no room on the tab for the price")
	// ErrNoRoom: the money does not fit between payer and holder. The error is a
	// RoomError.
	ErrNoRoom = errors.New("hold: the amount does not fit the tab with the holder")
)

// RoomError says what fits.
type RoomError struct {
	Room tally.Amount
	// Longest is for how long the amount would fit under a lock; 0: it would not.
	Longest time.Duration
}

func (e *RoomError) Error() string {
	if e.Longest > 0 {
		return fmt.Sprintf("%v: beyond %d units a lock of the channel takes it, for %v at most, with the time that we may stay away; give less time",
			ErrNoRoom, e.Room, e.Longest.Round(time.Second))
	}
	return fmt.Sprintf("%v: %d units fit beside the price; hold less, or settle the tab first", ErrNoRoom, e.Room)
}

// Is makes it an ErrNoRoom.
func (*RoomError) Is(target error) bool { return target == ErrNoRoom }

// Reply is what a holder says to a payer that parks.
type Reply struct {
	// Price of the holding. Charged: it is booked by this very answer.
	Price   tally.Amount
	Charged bool
	State   State
}

// Wire asks peers. An error says that nothing is known about what the peer did.
type Wire interface {
	// Park parks t at its holder for at most price, or only asks for the price.
	Park(ctx context.Context, t *Terms, price tally.Amount, quote bool) (Reply, error)
	// List asks a holder what it has for us, after an id; more says that there is
	// more.
	List(ctx context.Context, holder peer.ID, after ID) (list []Terms, more bool, err error)
	// Release tells a holder that we take a hold, Cancel that we give it up.
	Release(ctx context.Context, holder peer.ID, id ID) error
	Cancel(ctx context.Context, party peer.ID, id ID) error
	// Poll tells a payee that we have count holds for it.
	Poll(ctx context.Context, payee peer.ID, count int) error

	// Statement asks a holder for the newest that a payee gave it for us, Deposit gives
	// it one of ours.
	Statement(ctx context.Context, holder, payee peer.ID) (LaneStatement, error)
	Deposit(ctx context.Context, holder peer.ID, st *LaneStatement) error
	// Guard asks a holder to keep its channel to us open up to a height.
	Guard(ctx context.Context, holder peer.ID, height int64) ([]byte, error)
	// Buy asks a holder for a voucher, for at most price, or only asks for the price.
	Buy(ctx context.Context, p *Purchase, price tally.Amount, quote bool) (SoldReply, error)
	// Mail gives a payee what we bought for it. It has it on disk, or there is an error.
	Mail(ctx context.Context, payee peer.ID, m *Mail) error
}

// Meter books the price of holding on the tabs.
type Meter interface {
	// Serve reserves what a payer is to owe us, Consume what we are to owe a holder.
	Serve(ctx context.Context, payer peer.ID, price tally.Amount) (Booking, error)
	Consume(ctx context.Context, holder peer.ID, price tally.Amount) (Booking, error)
	// Room is what a part of ours to a holder may have now, beside what is reserved.
	Room(holder peer.ID) (Room, error)
}

// Room is what fits between us and a neighbour.
type Room struct {
	// Credit fits the tab. Lock fits a lock of the channel that ends by LockUntil, in
	// milliseconds since 1970; 0: no lock is made.
	Credit, Lock tally.Amount
	LockUntil    int64
}

// fits refuses a part that could not leave. now is for the text.
func (r *Room) fits(now int64, amount tally.Amount, until int64) error {
	if amount <= r.Credit || amount <= r.Lock && until <= r.LockUntil {
		return nil
	}
	e := &RoomError{Room: max(r.Credit, r.Lock)}
	if amount <= r.Lock {
		e.Room, e.Longest = r.Credit, time.Duration(max(0, r.LockUntil-now))*time.Millisecond
	}
	return e
}

// Booking is one reservation. Both ends are called once between them.
type Booking interface {
	Commit(price tally.Amount) error
	Release()
}

// Config is what a service needs.
type Config struct {
	Self  peer.ID
	Realm string
	// Policy is what we hold for others. The zero value: nothing.
	Policy Policy
	// Key opens what is sealed to us; nil: our peer id takes no boxes.
	Key *Key
	// Sign signs promises with the key of Self.
	Sign    func([]byte) ([]byte, error)
	Store   *durable.Store
	Carrier payments.Carrier
	// LockDelta is how much longer than a hold the payer's part has to be bound where
	// parts may travel under locks: a lock out has to be final on the chain, and told,
	// before the lock in ends. 0: all travels on credit.
	LockDelta time.Duration
	// Channels buys, sells and takes vouchers; nil: not.
	Channels Channels
	Wire     Wire
	Meter    Meter
	Logger   *slog.Logger
}

// Service is the shell around the three cores: one goroutine that owns them.
type Service struct {
	cfg Config
	log *slog.Logger

	wallAt time.Time // monotonic; wallMS is the wall clock then
	wallMS int64

	// mu guards the fields below.
	mu         sync.Mutex
	items      []item
	closed     bool
	failed     error
	collecting map[peer.ID]bool // holders that are being asked; true: again
	reasons    map[ID]error     // why holds were not parked, until told

	wake    chan struct{} // capacity 1
	ended   chan struct{}
	started bool
	ctx     context.Context
	stop    context.CancelFunc
	calls   chan struct{} // one for each question under way
	asking  sync.WaitGroup
	rooms   chan struct{} // capacity 1: who keeps or takes room

	// Of the owner.
	holder *Holder
	payer  *Payer
	payee  *Payee
	buyer  *Buyer
	seller *Seller
	taker  *Taker
	fx     []Effect
	batch  durable.Batch
	woken  map[ID][]chan struct{}
}

// item is one entry of the inbox: step is called by the owner, done when what
// follows from it is saved and carried out.
type item struct {
	step func(now int64, fx []Effect) ([]Effect, error)
	done func(error)
}

// Open reads the tables and compares them with what the carrier has. Nothing happens
// before Start.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	cfg.Policy = cfg.Policy.Complete()
	if err := cfg.Policy.Validate(); err != nil {
		return nil, err
	}
	if cfg.Store == nil || cfg.Carrier == nil || cfg.Wire == nil || cfg.Meter == nil {
		return nil, errors.New("hold: store, carrier, wire and meter are all needed")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Service{
		cfg: cfg, log: cfg.Logger, wallAt: time.Now(), collecting: make(map[peer.ID]bool), reasons: make(map[ID]error),
		wake: make(chan struct{}, 1), ended: make(chan struct{}), calls: make(chan struct{}, maxCalls),
		holder: NewHolder(cfg.Self, cfg.Policy), payer: NewPayer(), payee: NewPayee(cfg.Self, nil),
		buyer: NewBuyer(cfg.epochMS()), seller: NewSeller(cfg.Self), taker: NewTaker(cfg.Self),
		woken: make(map[ID][]chan struct{}), rooms: make(chan struct{}, 1),
	}
	if cfg.Key != nil {
		s.payee.key = cfg.Key
	}
	s.holder.answerable = max(s.holder.answerable, cfg.LockDelta.Milliseconds())
	s.wallMS = s.wallAt.UnixMilli()
	s.ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	return s, s.compare(ctx)
}

// load reads the tables: promises before the receipts that point to them.
func (s *Service) load(ctx context.Context) error {
	for _, t := range [...]struct {
		prefix  string
		size    int
		restore func(raw, rec []byte) error
	}{
		{heldPrefix, len(ID{}), func(raw, rec []byte) error { return s.holder.Restore(ID(raw), rec) }},
		{sentPrefix, len(ID{}), func(raw, rec []byte) error { return s.payer.Restore(ID(raw), rec) }},
		{givenPrefix, tally.HashlockSize, func(raw, rec []byte) error { return s.payee.RestoreGiven(tally.Hashlock(raw), rec) }},
		{receiptPrefix, len(ID{}), func(raw, rec []byte) error { return s.payee.RestoreReceipt(ID(raw), rec) }},
		{boughtPrefix, len(ID{}), func(raw, rec []byte) error { return s.buyer.Restore(ID(raw), rec) }},
		{salePrefix, len(ID{}), func(raw, rec []byte) error { return s.seller.Restore(ID(raw), rec) }},
		{statedPrefix, tally.HashlockSize, func(raw, rec []byte) error { return s.seller.RestoreStatement([32]byte(raw), rec) }},
		{takenPrefix, len(ID{}), func(raw, rec []byte) error { return s.taker.RestoreTaken(ID(raw), rec) }},
	} {
		err := s.cfg.Store.Scan(ctx, t.prefix, "", func(key string, rec []byte) error {
			_, payload, err := durable.Unseal(key, recordVersion, rec)
			if err != nil {
				return err
			}
			raw, err := durable.ParseKeyID(key[len(t.prefix):])
			if err == nil && len(raw) != t.size {
				err = fmt.Errorf("%w: key %q", ErrRecord, key)
			}
			if err != nil {
				return err
			}
			return t.restore(raw, payload)
		})
		if err != nil {
			return fmt.Errorf("hold: read the tables: %w", err)
		}
	}
	if err := s.taker.load(ctx, s.cfg.Store); err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return fmt.Errorf("hold: read the tables: %w", err)
	}
	if s.cfg.Channels != nil {
		s.taker.keep(ctx, s.cfg.Channels, s.log)
	}
	return nil
}

// check returns the first broken invariant of the cores.
func (s *Service) check() error {
	return errors.Join(s.holder.Check(), s.payer.Check(), s.payee.Check(), s.buyer.Check(), s.seller.Check(), s.taker.Check())
}

func (s *Service) compare(ctx context.Context) error {
	sent, err := s.cfg.Carrier.Sent(ctx)
	if err != nil {
		return fmt.Errorf("hold: ask the carrier for our parts: %w", err)
	}
	waiting, err := s.cfg.Carrier.Waiting(ctx)
	if err != nil {
		return fmt.Errorf("hold: ask the carrier for the parts that wait: %w", err)
	}
	set := func(ids []payments.PartID) map[payments.PartID]bool {
		m := make(map[payments.PartID]bool, len(ids))
		for _, id := range ids {
			m[id] = true
		}
		return m
	}
	has, waits := set(sent), set(waiting)
	s.items = append(s.items, item{step: func(now int64, fx []Effect) ([]Effect, error) {
		fx, err := s.holder.Step(now, &HolderEvent{Kind: HolderRestart, Sent: has, Waiting: waits}, fx)
		if err != nil {
			return fx, err
		}
		if fx, err = s.payer.Step(now, &SentEvent{Kind: SentRestart, Has: has}, fx); err != nil {
			return fx, err
		}
		if fx, err = s.buyer.Step(now, &BuyEvent{Kind: BuyRestart, Has: has}, fx); err != nil {
			return fx, err
		}
		if fx, err = s.seller.Step(now, &SaleEvent{Kind: SaleRestart, Waiting: waits}, fx); err != nil {
			return fx, err
		}
		return s.payee.Step(now, &InEvent{Kind: InRestart, Waiting: waits}, fx)
	}})
	return nil
}

// Parts returns the parts of ours that the carrier may still tell of, for callers
// before Start.
func (s *Service) Parts() []payments.PartID {
	var ids []payments.PartID
	for id := range s.payer.rows {
		ids = append(ids, id)
	}
	for id := range s.buyer.rows {
		ids = append(ids, id)
	}
	for id := range s.holder.outs {
		ids = append(ids, id)
	}
	return ids
}

// Start begins to work.
func (s *Service) Start() {
	s.started = true
	s.signal()
	go s.run() // ends with Close, or when the disk failed
	s.cfg.Carrier.Start(s)
}

// Close ends the service and what it asks peers. The carrier has to be closed
// before, the store after.
func (s *Service) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	if s.started {
		<-s.ended
	}
	s.asking.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Self is our peer id.
func (s *Service) Self() peer.ID { return s.cfg.Self }

// Now is the service's clock in milliseconds since 1970: the wall clock at its
// start, and monotonic from there.
func (s *Service) Now() int64 { return s.wallMS + time.Since(s.wallAt).Milliseconds() }

func (s *Service) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// put queues an item. What a peer or a caller asks for is bounded; what the carrier
// decided is always taken.
func (s *Service) put(it item, bounded bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failed != nil:
		return s.failed
	case s.closed:
		return ErrClosed
	case bounded && len(s.items) >= maxQueued:
		return ErrBusy
	}
	s.items = append(s.items, it)
	s.signal()
	return nil
}

type step = func(now int64, fx []Effect) ([]Effect, error)

// do queues a step and waits until it is saved and carried out.
func (s *Service) do(ctx context.Context, f step) error {
	done := make(chan error, 1)
	if err := s.put(item{step: f, done: func(err error) { done <- err }}, true); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ended:
		return cmpErr(s.failure(), ErrClosed)
	}
}

func cmpErr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

func (s *Service) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// look calls f with the cores on the owner's goroutine and waits for it.
func (s *Service) look(ctx context.Context, f func()) error {
	return s.do(ctx, func(_ int64, fx []Effect) ([]Effect, error) {
		f()
		return fx, nil
	})
}

func (s *Service) run() {
	defer close(s.ended)
	timer := time.NewTimer(tickAtLeast)
	defer timer.Stop()
	for {
		wait := tickAtLeast
		if next, ok := s.holder.Next(); ok {
			wait = min(wait, max(time.Second, time.Duration(next-s.Now())*time.Millisecond))
		}
		timer.Reset(wait)
		select {
		case <-s.wake:
		case <-timer.C:
		case <-s.ctx.Done():
			return
		}
		s.mu.Lock()
		items := s.items
		s.items = nil
		s.mu.Unlock()
		if err := s.work(append(items, item{step: s.tick})); err != nil {
			s.fail(err)
			return
		}
	}
}

func (s *Service) tick(now int64, fx []Effect) ([]Effect, error) {
	fx, err := s.holder.Step(now, &HolderEvent{Kind: HolderTick}, fx)
	if err != nil {
		return fx, err
	}
	if fx, err = s.payer.Step(now, &SentEvent{Kind: SentTick}, fx); err != nil {
		return fx, err
	}
	if fx, err = s.buyer.Step(now, &BuyEvent{Kind: BuyTick}, fx); err != nil {
		return fx, err
	}
	if fx, err = s.seller.Step(now, &SaleEvent{Kind: SaleTick}, fx); err != nil {
		return fx, err
	}
	if fx, err = s.taker.Step(now, &TakeEvent{Kind: TakeTick}, fx); err != nil {
		return fx, err
	}
	return s.payee.Step(now, &InEvent{Kind: InTick}, fx)
}

func (s *Service) fail(cause error) {
	err := fmt.Errorf("%w: %w; what is in flight is on disk: mend the cause, then restart", ErrStopped, cause)
	s.mu.Lock()
	s.failed, s.items = err, nil
	s.mu.Unlock()
	s.log.Error("holds are not kept, made or taken any more", "err", err)
}

// work steps all that came, saves it in one batch, and then carries it out.
func (s *Service) work(items []item) error {
	now := s.Now()
	s.fx = s.fx[:0]
	answers := make([]error, len(items))
	for i := range items {
		s.fx, answers[i] = items[i].step(now, s.fx)
		if err := answers[i]; err != nil && items[i].done == nil {
			s.log.Error("carrier broke its promise", "err", err)
		}
	}
	if invariants {
		if err := s.check(); err != nil {
			return err
		}
	}
	if err := s.save(); err != nil {
		return err
	}
	for i := range s.fx {
		s.carryOut(&s.fx[i])
	}
	clear(s.fx)
	for i := range items {
		if items[i].done != nil {
			items[i].done(answers[i])
		}
	}
	return nil
}

func (s *Service) save() error {
	s.batch.Reset()
	for i := range s.fx {
		switch f := &s.fx[i]; {
		case f.Kind != FxSave:
		case f.Record == nil:
			s.batch.Delete(f.Key)
		default:
			s.batch.Put(f.Key, f.Record)
		}
	}
	if s.batch.Len() == 0 {
		return nil
	}
	return s.cfg.Store.Commit(context.Background(), &s.batch)
}

// carryOut does one duty. What it was for is saved.
func (s *Service) carryOut(f *Effect) {
	switch f.Kind {
	case FxSend:
		if err := s.cfg.Carrier.Send(f.Part); err != nil {
			s.log.Warn("part did not leave", "hold", f.ID, "err", err)
			s.Answer(&payments.Answer{PartID: f.PartID, Failure: payments.Failure{Code: payments.FailHop, Hop: 0}})
		}
	case FxForget:
		s.cfg.Carrier.Forget(f.PartID)
	case FxFulfil:
		if c, ok := s.cfg.Carrier.(payments.OwedCarrier); ok && f.Owed {
			c.FulfilOwed(f.PartID, f.Preimage, s.decided(f.PartID))
			return
		}
		s.cfg.Carrier.Fulfil(f.PartID, f.Preimage, s.decided(f.PartID))
	case FxReject:
		s.cfg.Carrier.Reject(f.PartID, f.Code, s.decided(f.PartID))
	case FxPark:
		if r, ok := s.payer.Get(f.ID); ok && !s.ask(func(ctx context.Context) { s.park(ctx, &r) }) {
			s.refused(f.ID, ErrBusy)
		}
	case FxPoll:
		p, count := f.Peer, f.Count
		s.ask(func(ctx context.Context) { // not asked: polled again later
			if err := s.cfg.Wire.Poll(ctx, p, count); err != nil {
				s.log.Debug("payee was not polled", "peer", p, "err", err)
			}
		})
	case FxRelease:
		p, id := f.Peer, f.ID
		s.ask(func(ctx context.Context) { s.tell("release", s.cfg.Wire.Release(ctx, p, id), p, id) })
	case FxCancel:
		p, id := f.Peer, f.ID
		s.ask(func(ctx context.Context) { s.tell("cancel", s.cfg.Wire.Cancel(ctx, p, id), p, id) })
	case FxMail:
		id := f.ID
		s.ask(func(ctx context.Context) { s.deliver(ctx, id) }) // not asked: it goes when the payee connects
	case FxLook:
		id := f.ID
		s.ask(func(ctx context.Context) { s.inspect(ctx, id) }) // not asked: looked at later
	case FxKeep:
		channel := f.Key
		s.ask(func(ctx context.Context) { // not asked: more is kept than has to be
			if err := s.keep(ctx, channel); err != nil {
				s.log.Debug("room of a channel is kept longer", "channel", channel, "err", err)
			}
		})
	case FxWake:
		for _, c := range s.woken[f.ID] {
			close(c)
		}
		delete(s.woken, f.ID)
	case FxLost:
		s.log.Error("hold was paid out and could not be collected", "hold", f.ID, "peer", f.Peer, "amount", f.Amount)
	}
}

func (s *Service) tell(what string, err error, p peer.ID, id ID) {
	if err != nil {
		s.log.Debug("holder was not told", "what", what, "peer", p, "hold", id, "err", err)
	}
}

// ask runs a question to a peer, or says that too many are under way.
func (s *Service) ask(f func(context.Context)) bool {
	select {
	case s.calls <- struct{}{}:
	default:
		return false
	}
	s.asking.Add(1)
	go func() { // ends with the question, at the latest after callTime or with Close
		defer s.asking.Done()
		defer func() { <-s.calls }()
		ctx, cancel := context.WithTimeout(s.ctx, callTime)
		defer cancel()
		f(ctx)
	}()
	return true
}

// decided is told that the carrier has saved a decision. Where it cannot say, the
// restart asks.
func (s *Service) decided(id payments.PartID) func(error) {
	return func(err error) {
		switch {
		case errors.Is(err, payments.ErrGone):
			s.Gone(id)
		case err != nil:
			s.log.Warn("carrier did not take a decision", "part_id", id, "err", err)
		default:
			_ = s.put(item{step: func(now int64, fx []Effect) ([]Effect, error) { // closed: the restart asks
				switch {
				case s.payee.Owns(id):
					return s.payee.Step(now, &InEvent{Kind: InDone, PartID: id}, fx)
				case s.seller.Owns(id):
					return s.seller.Step(now, &SaleEvent{Kind: SaleDone, ID: id}, fx)
				}
				return s.holder.Step(now, &HolderEvent{Kind: HolderDone, ID: id}, fx)
			}}, false)
		}
	}
}

// Part implements payments.Handler.
func (s *Service) Part(a *payments.Arrival) {
	cp := *a
	cp.Data = slices.Clone(a.Data)
	err := s.put(item{step: func(now int64, fx []Effect) ([]Effect, error) {
		switch {
		case len(cp.Data) == 1 && cp.Data[0] == kindBuy:
			return s.seller.Step(now, &SaleEvent{Kind: SalePart, Arrival: &cp}, fx)
		case len(cp.Data) == 1 && cp.Data[0] == kindHold:
			return s.holder.Step(now, &HolderEvent{Kind: HolderPart, Arrival: &cp, PartID: newID()}, fx)
		}
		return s.payee.Step(now, &InEvent{Kind: InOffer, Arrival: &cp}, fx)
	}}, true)
	if errors.Is(err, ErrBusy) {
		s.cfg.Carrier.Reject(a.PartID, payments.FailHop, func(error) {})
	}
}

// Gone implements payments.Handler.
func (s *Service) Gone(id payments.PartID) {
	_ = s.put(item{step: func(now int64, fx []Effect) ([]Effect, error) { // closed: the restart asks
		switch {
		case s.payee.Owns(id):
			return s.payee.Step(now, &InEvent{Kind: InGone, PartID: id}, fx)
		case s.seller.Owns(id):
			return s.seller.Step(now, &SaleEvent{Kind: SaleGone, ID: id}, fx)
		}
		return s.holder.Step(now, &HolderEvent{Kind: HolderGone, ID: id}, fx)
	}}, false)
}

// Answer implements payments.Handler.
func (s *Service) Answer(a *payments.Answer) {
	cp := *a
	_ = s.put(item{step: func(now int64, fx []Effect) ([]Effect, error) { // closed: it is told again
		switch {
		case s.payer.Owns(cp.PartID):
			return s.payer.Step(now, &SentEvent{Kind: SentAnswer, Answer: &cp}, fx)
		case s.buyer.Owns(cp.PartID):
			return s.buyer.Step(now, &BuyEvent{Kind: BuyAnswer, Answer: &cp}, fx)
		}
		return s.holder.Step(now, &HolderEvent{Kind: HolderAnswer, Answer: &cp}, fx)
	}}, false)
}

func newID() (id ID) {
	rand.Read(id[:]) // never fails
	return id
}
