package payments

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
)

const (
	// maxQueued bounds what waits for the owner: commands, and what the carrier
	// tells. A part beyond it is rejected, a command is ErrBusy; what was decided
	// is always taken, because the carrier has no more of it than of parts.
	maxQueued = 8192
	// maxDrivers bounds the payments that pay splits at one time.
	maxDrivers = 256
)

var (
	// ErrClosed: the service is closed. What was in flight goes on after the next
	// start.
	ErrClosed = errors.New("payments: closed")
	// ErrStopped is wrapped by every call after the disk failed.
	ErrStopped = errors.New("payments: stopped")
	// ErrBusy: too much waits; try again.
	ErrBusy = errors.New("payments: busy")
	// ErrGone: a part is not at the carrier any more.
	ErrGone = errors.New("payments: part is not here any more")
)

// Config is what a service needs.
type Config struct {
	// Self is our peer id, Realm the network and asset that amounts are in.
	Self  peer.ID
	Realm string
	// Store keeps the tables.
	Store *durable.Store
	// Carrier takes parts to others and brings theirs.
	Carrier Carrier
	// Router finds ways for Pay; nil: Pay has none.
	Router Router
	// Sign signs invoices with the key of Self.
	Sign func([]byte) ([]byte, error)
	// Hints are written on invoices, at most MaxHints, with locks those of neighbours
	// that make locks to us; nil: none.
	Hints func(locks bool) []Hint
	// Curve is needed to sell and buy signatures; nil: neither.
	Curve Curve
	// Traded is told of each signature that was sold or bought, when that is saved. It is
	// called on the owner's goroutine and must not wait. A crash may leave one out. Nil:
	// nobody.
	Traded func(Trade)
	// Logger takes what the service has to say. Nil: slog.Default().
	Logger *slog.Logger
}

// Service is the shell around both cores: one goroutine that owns them.
//
//	commands ─┐                                     ┌─▶ Carrier
//	carrier ──┼─▶ inbox ─▶ Step ─▶ one synced batch ─┼─▶ waiters
//	timer ────┘           for all that was there     └─▶ callers
type Service struct {
	cfg Config
	log *slog.Logger

	wallAt time.Time // monotonic; wallMS is the wall clock then
	wallMS int64

	// mu guards the fields below.
	mu     sync.Mutex
	items  []item
	closed bool
	failed error

	wake    chan struct{} // capacity 1
	closing chan struct{}
	ended   chan struct{}
	started bool
	drives  sync.WaitGroup

	// routeMu makes the router's callers take turns. It is held for a plan, and
	// nothing else is taken while it is.
	routeMu sync.Mutex

	// Of the owner.
	payer    *Payer
	payee    *Payee
	fx       []Effect
	batch    durable.Batch
	payments map[tally.Hashlock][]chan struct{}
	parts    map[uint64][]chan struct{}
	invoices map[tally.Hashlock][]chan struct{}
	changes  map[tally.Hashlock][]chan struct{}
	drivers  map[tally.Hashlock]*driver
}

// item is one entry of the inbox.
type item struct {
	payer *PayerEvent
	payee *PayeeEvent
	ask   func()
	// done, where set, is called when what follows from the item is saved and
	// carried out, or with why nothing did.
	done func(error)
}

// Open reads the tables and compares them with what the carrier has. Nothing
// happens before Start.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("payments: no store: a payment that is forgotten is paid twice; give one")
	case cfg.Carrier == nil:
		return nil, errors.New("payments: no carrier for the parts")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Service{
		cfg: cfg, log: cfg.Logger, wallAt: time.Now(),
		wake: make(chan struct{}, 1), closing: make(chan struct{}), ended: make(chan struct{}),
		payments: make(map[tally.Hashlock][]chan struct{}), parts: make(map[uint64][]chan struct{}),
		invoices: make(map[tally.Hashlock][]chan struct{}), changes: make(map[tally.Hashlock][]chan struct{}),
		drivers: make(map[tally.Hashlock]*driver),
	}
	s.wallMS = s.wallAt.UnixMilli()
	var err error
	if s.payer, s.payee, err = load(ctx, cfg.Store, openerOf(cfg.Curve)); err != nil {
		return nil, err
	}
	return s, s.compare(ctx)
}

// compare asks the carrier for each part that is not decided. One of ours that it
// does not have never left. One of others that waited and is not there went back;
// one that was decided is decided there, too.
func (s *Service) compare(ctx context.Context) error {
	sent, err := s.cfg.Carrier.Sent(ctx)
	if err != nil {
		return fmt.Errorf("payments: ask the carrier for our parts: %w", err)
	}
	waiting, err := s.cfg.Carrier.Waiting(ctx)
	if err != nil {
		return fmt.Errorf("payments: ask the carrier for the parts that wait: %w", err)
	}
	has := make(map[PartID]bool, len(sent)+len(waiting))
	for _, id := range sent {
		has[id] = true
	}
	for _, id := range s.payer.Live() {
		kind, failure := PayerLeft, Failure{}
		if !has[id] {
			kind, failure = PayerRejected, Failure{Code: FailNeverLeft, Hop: -1}
		}
		s.items = append(s.items, item{payer: &PayerEvent{Kind: kind, PartID: id, Failure: failure}})
	}
	clear(has)
	for _, id := range waiting {
		has[id] = true
	}
	for _, id := range s.payee.Arrived() {
		if has[id] {
			continue
		}
		kind := PayeeDone
		if s.payee.parts[id].State == InWaiting {
			kind = PayeeGone
		}
		s.items = append(s.items, item{payee: &PayeeEvent{Kind: kind, PartID: id}})
	}
	s.items = append(s.items, item{payee: &PayeeEvent{Kind: PayeeRestart}}, item{ask: s.resume})
	return nil
}

// Start begins to work. What was decided before a restart is told again, and what
// was split goes on.
func (s *Service) Start() {
	s.started = true
	s.signal()
	go s.run() // ends with Close, or when the disk failed
	s.cfg.Carrier.Start(s)
}

// Close ends the service. The carrier has to be closed before, the store after.
func (s *Service) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if !again {
		close(s.closing)
	}
	if s.started {
		<-s.ended
	}
	s.drives.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Now is the service's clock in milliseconds since 1970: the wall clock at its
// start, and monotonic from there.
func (s *Service) Now() int64 { return s.wallMS + time.Since(s.wallAt).Milliseconds() }

func (s *Service) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// put queues items, all or none, and together; bounded says that they may be refused.
func (s *Service) put(bounded bool, its ...item) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failed != nil:
		return s.failed
	case s.closed:
		return ErrClosed
	case bounded && len(s.items)+len(its) > maxQueued:
		return ErrBusy
	}
	s.items = append(s.items, its...)
	s.signal()
	return nil
}

// do queues an item and waits until it is saved and carried out.
func (s *Service) do(ctx context.Context, it item) error {
	wait := s.waiter(&it)
	if err := s.put(true, it); err != nil {
		return err
	}
	return wait(ctx)
}

// waiter lets an item be waited for, once it is queued.
func (s *Service) waiter(it *item) func(context.Context) error {
	done := make(chan error, 1)
	it.done = func(err error) { done <- err }
	return func(ctx context.Context) error {
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ended:
			return ErrClosed
		}
	}
}

// look calls f with the cores on the owner's goroutine and waits for it, also where
// ctx ends meanwhile: what f writes is the caller's to read.
func (s *Service) look(ctx context.Context, f func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.do(context.WithoutCancel(ctx), item{ask: f})
}

func (s *Service) run() {
	defer close(s.ended)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := time.Hour
		if next, ok := s.payee.Next(); ok {
			wait = max(0, time.Duration(next-s.Now())*time.Millisecond)
		}
		timer.Reset(wait)
		select {
		case <-s.wake:
		case <-timer.C:
		case <-s.closing:
			s.leave()
			return
		}
		s.mu.Lock()
		items := s.items
		s.items = nil
		s.mu.Unlock()
		items = append(items, item{payee: &PayeeEvent{Kind: PayeeTick}})
		if err := s.work(items); err != nil {
			s.fail(err)
			return
		}
	}
}

// leave answers who waits with ErrClosed, through ended.
func (s *Service) leave() {
	s.mu.Lock()
	s.items = nil
	s.mu.Unlock()
}

func (s *Service) fail(cause error) {
	err := fmt.Errorf("%w: %w; what is in flight is on disk: mend the cause, then restart", ErrStopped, cause)
	s.mu.Lock()
	s.failed, s.items = err, nil
	s.mu.Unlock()
	s.log.Error("payments are not made or taken any more", "err", err)
}

// work steps all that came, saves it in one batch, and then carries it out.
func (s *Service) work(items []item) error {
	now := s.Now()
	s.fx = s.fx[:0]
	var answers []func()
	for i := range items {
		it := &items[i]
		var err error
		switch {
		case it.payer != nil:
			s.fx, err = s.payer.Step(now, it.payer, s.fx)
		case it.payee != nil:
			s.fx, err = s.payee.Step(now, it.payee, s.fx)
		default:
			it.ask()
		}
		if err != nil && it.done == nil {
			s.log.Error("carrier broke its promise", "err", err)
		}
		if it.done != nil {
			answers = append(answers, func() { it.done(err) })
		}
	}
	if err := s.check(); err != nil {
		return err
	}
	if err := s.save(); err != nil {
		return err
	}
	for i := range s.fx {
		s.carryOut(&s.fx[i])
	}
	clear(s.fx)
	for _, answer := range answers {
		answer()
	}
	return nil
}

func (s *Service) check() error {
	if !invariants {
		return nil
	}
	return errors.Join(s.payer.Check(), s.payee.Check())
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
		err := s.cfg.Carrier.Send(&Outgoing{
			PartID: f.PartID, Dest: f.Dest, Via: f.Part.Via, Amount: f.Part.Sent(),
			Expires: time.UnixMilli(f.Part.Expires), Condition: f.Hash, Point: f.Point, Data: f.Data,
		})
		ev := &PayerEvent{Kind: PayerLeft, PartID: f.PartID}
		if err != nil {
			s.log.Warn("part did not leave", "part", f.ID, "err", err)
			ev.Kind, ev.Failure = PayerRejected, Failure{Code: FailHop, Hop: 0}
		}
		_ = s.put(false, item{payer: ev}) // closed: the restart asks
	case FxForget:
		s.cfg.Carrier.Forget(f.PartID)
	case FxFulfil:
		s.cfg.Carrier.Fulfil(f.PartID, f.Preimage, s.decided(f.PartID))
	case FxReject:
		s.cfg.Carrier.Reject(f.PartID, f.Code, s.decided(f.PartID))
	case FxWakePayment:
		wakeAll(s.payments, f.Hash)
		s.bought(f.Hash)
	case FxWakePart:
		wakeAll(s.parts, f.ID)
		wakeAll(s.changes, f.Hash)
	case FxWakeInvoice:
		wakeAll(s.invoices, f.Hash)
		s.sold(f.Hash)
	case FxLost:
		s.log.Error("part was claimed and could not be collected", "part_id", f.PartID, "hash", f.Hash, "amount", f.Amount)
	}
}

// decided is told that the carrier has saved a decision. Where it cannot say, the
// restart asks.
func (s *Service) decided(id PartID) func(error) {
	return func(err error) {
		ev := &PayeeEvent{Kind: PayeeDone, PartID: id}
		switch {
		case errors.Is(err, ErrGone):
			ev.Kind = PayeeGone
		case err != nil:
			s.log.Warn("carrier did not take a decision", "part_id", id, "err", err)
			return
		}
		_ = s.put(false, item{payee: ev}) // closed: the restart asks
	}
}

func wakeAll[K comparable](m map[K][]chan struct{}, k K) {
	for _, c := range m[k] {
		close(c)
	}
	delete(m, k)
}

// Part implements Handler.
func (s *Service) Part(a *Arrival) {
	cp := *a
	cp.Data = slices.Clone(a.Data)
	if err := s.put(true, item{payee: &PayeeEvent{Kind: PayeePart, Arrival: &cp}}); errors.Is(err, ErrBusy) {
		s.cfg.Carrier.Reject(a.PartID, FailHop, func(error) {})
	}
}

// Gone implements Handler.
func (s *Service) Gone(id PartID) {
	_ = s.put(false, item{payee: &PayeeEvent{Kind: PayeeGone, PartID: id}}) // closed: the restart asks
}

// Answer implements Handler.
func (s *Service) Answer(a *Answer) {
	ev := &PayerEvent{Kind: PayerRejected, PartID: a.PartID, Failure: a.Failure}
	if a.Fulfilled {
		ev.Kind, ev.Preimage = PayerFulfilled, a.Preimage
	}
	_ = s.put(false, item{payer: ev}) // closed: it is told again
}

// SendPart is the command sendpartialpay. PartID, and where they are 0 Expires and
// CertainBy, are filled in.
func (s *Service) SendPart(ctx context.Context, c SendPart) (Reply, error) {
	p := s.sendPart(c)
	if err := s.put(true, p.item); err != nil {
		return Reply{}, err
	}
	return p.wait(ctx)
}

// sending is a SendPart on its way through the inbox.
type sending struct {
	item  item
	reply *Reply // the owner may write it after a caller has left
	saved func(context.Context) error
}

func (s *Service) sendPart(c SendPart) sending {
	rand.Read(c.PartID[:]) // never fails
	hops, locks := len(c.Via)+1, s.lockTime(&c)
	if c.Expires == 0 {
		c.Expires = s.Now() + LockedExpiresAfter(hops, locks).Milliseconds()
	}
	c.CertainBy = s.cfg.Carrier.CertainBy(time.UnixMilli(c.Expires), hops).UnixMilli()
	if locks > 0 {
		c.CertainBy = s.cfg.Carrier.(LockCarrier).LockCertainBy(time.UnixMilli(c.Expires)).UnixMilli()
	}
	p := sending{reply: new(Reply)}
	p.item = item{payer: &PayerEvent{Kind: PayerSend, Send: &c, Reply: p.reply}}
	p.saved = s.waiter(&p.item)
	return p
}

func (p *sending) wait(ctx context.Context) (Reply, error) {
	if err := p.saved(ctx); err != nil {
		return Reply{}, err
	}
	return *p.reply, nil
}

// lockTime is what the hops add where the part goes under a lock; else 0.
func (s *Service) lockTime(c *SendPart) time.Duration {
	locks, ok := s.cfg.Carrier.(LockCarrier)
	total, err := c.Amount.Add(c.Fee)
	if !ok || err != nil {
		return 0
	}
	return locks.LockTime(c.Dest, c.Via, total, c.Point != 0)
}

// await returns when f, on the owner's goroutine, returns true, and asks it again
// whenever the key is woken; at least once, whatever ctx says.
func await[K comparable](ctx context.Context, s *Service, m map[K][]chan struct{}, k K, f func() bool) error {
	for {
		var woken chan struct{}
		err := s.look(context.WithoutCancel(ctx), func() {
			if !f() {
				woken = make(chan struct{})
				m[k] = append(m[k], woken)
			}
		})
		if err != nil || woken == nil {
			return err
		}
		select {
		case <-woken:
			continue
		case <-s.ended:
			return ErrClosed
		case <-ctx.Done():
		}
		_ = s.put(false, item{ask: func() {
			m[k] = slices.DeleteFunc(m[k], func(c chan struct{}) bool { return c == woken })
			if len(m[k]) == 0 {
				delete(m, k)
			}
		}})
		return ctx.Err()
	}
}

func notFound(what string) error {
	return &Error{Code: CodeNotFound, Reason: "no such " + what, Remedy: "list what there is"}
}

// WaitPart waits until a part is decided.
func (s *Service) WaitPart(ctx context.Context, id uint64) (part Part, err error) {
	found := false
	err = await(ctx, s, s.parts, id, func() bool {
		part, found = s.payer.Part(id)
		return !found || !part.Status.Lives()
	})
	if err == nil && !found {
		err = notFound("part")
	}
	return part, err
}

// WaitPayment waits until a payment is decided, and, while Pay tries, until it
// has given up.
func (s *Service) WaitPayment(ctx context.Context, h tally.Hashlock) (v PaymentView, err error) {
	found := false
	err = await(ctx, s, s.payments, h, func() bool {
		v, found = s.payer.Payment(h)
		return !found || v.Status == StatusComplete || v.Status == StatusFailed && s.drivers[h] == nil
	})
	if err == nil && !found {
		err = notFound("payment")
	}
	return v, err
}

// Payments is listpayments: one line a payment, oldest first.
func (s *Service) Payments(ctx context.Context) (list []PaymentView, err error) {
	err = s.look(ctx, func() {
		list = s.payer.Payments()
		for i := range list {
			s.trying(&list[i])
		}
	})
	return list, err
}

// trying has a payment pending that failed so far, and is tried again. On the owner's
// goroutine.
func (s *Service) trying(v *PaymentView) {
	if v.Status == StatusFailed && !v.Refused && s.drivers[v.Hash] != nil {
		v.Status = StatusPending
	}
}

// Payment returns one payment and its parts: listpartialpayments by hash.
func (s *Service) Payment(ctx context.Context, h tally.Hashlock) (v PaymentView, parts []Part, err error) {
	found := false
	err = s.look(ctx, func() {
		v, found = s.payer.Payment(h)
		s.trying(&v)
		parts = s.payer.Parts(h)
	})
	if err == nil && !found {
		err = notFound("payment")
	}
	return v, parts, err
}

// PartByID is listpartialpayments by id.
func (s *Service) PartByID(ctx context.Context, id uint64) (part Part, err error) {
	found := false
	err = s.look(ctx, func() { part, found = s.payer.Part(id) })
	if err == nil && !found {
		err = notFound("part")
	}
	return part, err
}

// Parts is listpartialpayments: every attempt, by id.
func (s *Service) Parts(ctx context.Context) (list []Part, err error) {
	err = s.look(ctx, func() { list = s.payer.AllParts() })
	return list, err
}

// InvoiceRequest is what an invoice is made of.
type InvoiceRequest struct {
	Amount  tally.Amount // 0: the payer chooses
	Memo    string
	Expires time.Duration // 0: an hour
	// Hold: nothing is claimed before Settle.
	Hold bool
	// Hash, of a hold invoice whose preimage somebody else knows.
	Hash tally.Hashlock
}

// NewInvoice is the command invoice. It is on disk before it is returned.
func (s *Service) NewInvoice(ctx context.Context, q InvoiceRequest) (Invoice, error) {
	if s.cfg.Sign == nil {
		return Invoice{}, errors.New("payments: no key to sign invoices with")
	}
	if q.Expires == 0 {
		q.Expires = time.Hour
	}
	r := &Receivable{Amount: q.Amount, Memo: q.Memo, Hold: q.Hold, Expires: s.Now() + q.Expires.Milliseconds(), Hash: q.Hash}
	rand.Read(r.Secret[:]) // never fails
	if q.Hash == (tally.Hashlock{}) {
		rand.Read(r.Preimage[:])
		r.Known, r.Hash = true, r.Preimage.Hashlock()
	}
	i := Invoice{
		Realm: s.cfg.Realm, Payee: s.cfg.Self, Hash: r.Hash, Secret: r.Secret, Amount: r.Amount, Expires: r.Expires,
		Memo: r.Memo,
	}
	if s.cfg.Hints != nil {
		i.Hints = s.cfg.Hints(false)
	}
	var err error
	if i.Signature, err = s.cfg.Sign(i.SigningBytes()); err != nil {
		return Invoice{}, fmt.Errorf("payments: sign invoice: %w", err)
	}
	if err := i.Validate(); err != nil {
		return Invoice{}, err
	}
	return i, s.do(ctx, item{payee: &PayeeEvent{Kind: PayeeAdd, Invoice: r}})
}

// Settle takes a held invoice; preimage where it was not known.
func (s *Service) Settle(ctx context.Context, h tally.Hashlock, preimage tally.Preimage) error {
	return s.do(ctx, item{payee: &PayeeEvent{Kind: PayeeSettle, Hash: h, Preimage: preimage}})
}

// Cancel gives an invoice up, with what waits for it.
func (s *Service) Cancel(ctx context.Context, h tally.Hashlock) error {
	return s.do(ctx, item{payee: &PayeeEvent{Kind: PayeeCancel, Hash: h}})
}

// WaitInvoice waits until an invoice is held, paid or cancelled.
func (s *Service) WaitInvoice(ctx context.Context, h tally.Hashlock) (v InvoiceView, err error) {
	found := false
	err = await(ctx, s, s.invoices, h, func() bool {
		v, found = s.payee.Invoice(s.Now(), h)
		return !found || v.Status != InvoiceOpen && v.Status != InvoiceExpired
	})
	if err == nil && !found {
		err = notFound("invoice")
	}
	return v, err
}

// Invoice is listinvoices by hash.
func (s *Service) Invoice(ctx context.Context, h tally.Hashlock) (v InvoiceView, err error) {
	found := false
	err = s.look(ctx, func() { v, found = s.payee.Invoice(s.Now(), h) })
	if err == nil && !found {
		err = notFound("invoice")
	}
	return v, err
}

// Invoices is listinvoices.
func (s *Service) Invoices(ctx context.Context) (list []InvoiceView, err error) {
	err = s.look(ctx, func() { list = s.payee.Invoices(s.Now()) })
	return list, err
}

// PartialInvoices is listpartialinvoices, of all invoices or of one.
func (s *Service) PartialInvoices(ctx context.Context, only *tally.Hashlock) (list []PartialInvoice, err error) {
	err = s.look(ctx, func() { list = s.payee.Partial(only) })
	return list, err
}
