package hold

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// Of a payer.

// Defaults of a payment.
const (
	// DefaultTime is how long the payee may take to come.
	DefaultTime = 24 * time.Hour
	// DefaultReturn is how much longer the payer may stay away.
	DefaultReturn = 24 * time.Hour
)

// PayRequest is what a hold is made of.
type PayRequest struct {
	Holder, Payee peer.ID
	Amount        tally.Amount
	// Time is how long the payee may take to come, Return how much longer we may
	// stay away. Zero: the defaults.
	Time, Return time.Duration
	// MaxPrice is what the holding may cost.
	MaxPrice tally.Amount
	// NoPoll: the holder need not try the payee.
	NoPoll bool
	Memo   string
	// Promise, where set, is a hash that the payee has given to us; Payee is its own
	// then, and Amount where it is 0.
	Promise *Promise
}

// terms makes a row of a request.
func (s *Service) terms(q *PayRequest) (*Sent, error) {
	now := s.Now()
	if q.Time == 0 {
		q.Time = DefaultTime
	}
	if q.Return == 0 {
		q.Return = DefaultReturn
	}
	if least := max(MinReturn, s.cfg.LockDelta+clocks); q.Time < 0 || q.Return < least || max(q.Time, q.Return) > 365*24*time.Hour {
		return nil, wrapTerms(fmt.Sprintf("return time %v: at least %v", q.Return, least))
	}
	r := &Sent{Terms: Terms{
		ID: newID(), Payer: s.cfg.Self, Holder: q.Holder, Payee: q.Payee, Amount: q.Amount,
		Expires: now + q.Time.Milliseconds(), Poll: !q.NoPoll,
	}, Memo: q.Memo}
	r.Until = r.Expires + q.Return.Milliseconds()
	r.Certain = s.cfg.Carrier.CertainBy(time.UnixMilli(r.Until), 1).UnixMilli()
	if c, ok := s.cfg.Carrier.(payments.LockCarrier); ok {
		r.Certain = max(r.Certain, c.LockCertainBy(time.UnixMilli(r.Until)).UnixMilli())
	}
	if p := q.Promise; p != nil {
		if err := p.Verify(s.cfg.Realm, s.cfg.Self); err != nil {
			return nil, err
		}
		switch {
		case q.Payee != "" && q.Payee != p.Payee:
			return nil, wrapTerms("the promise is another payee's")
		case q.Memo != "":
			return nil, wrapTerms("a memo is sealed, and with a promise nothing is")
		case q.Amount != 0 && q.Amount < p.Amount:
			return nil, wrapTerms(fmt.Sprintf("the payee wants %d", p.Amount))
		case r.Expires > p.Expires:
			return nil, wrapTerms("the promise ends before the hold; give less time")
		}
		r.Payee, r.Hash, r.Promised = p.Payee, p.Hash, true
		r.Amount = max(q.Amount, p.Amount)
		return r, r.Validate()
	}
	rand.Read(r.Preimage[:]) // never fails
	r.Hash = r.Preimage.Hashlock()
	if err := r.Validate(); err != nil {
		return nil, err
	}
	var err error
	r.Box, err = Seal(rand.Reader, q.Payee, r.bound(), &Sealed{Preimage: r.Preimage, Amount: r.Amount, Expires: r.Expires, Memo: q.Memo})
	return r, err
}

// Quote asks a holder what a hold would cost.
func (s *Service) Quote(ctx context.Context, q PayRequest) (tally.Amount, error) {
	r, err := s.terms(&q)
	if err != nil {
		return 0, err
	}
	reply, err := s.cfg.Wire.Park(ctx, &r.Terms, tally.MaxAmount, true)
	return reply.Price, err
}

// Pay parks a hold and binds our money at its holder. It returns when the holder has
// agreed; Wait waits for the payee.
func (s *Service) Pay(ctx context.Context, q PayRequest) (Sent, error) {
	r, err := s.terms(&q)
	if err != nil {
		return Sent{}, err
	}
	reply, err := s.cfg.Wire.Park(ctx, &r.Terms, q.MaxPrice, true)
	switch {
	case err != nil:
		return Sent{}, err
	case reply.Price > q.MaxPrice:
		return Sent{}, fmt.Errorf("%w: %d, and at most %d is allowed", ErrPrice, reply.Price, q.MaxPrice)
	}
	r.Price = reply.Price
	if err := s.do(ctx, func(now int64, fx []Effect) ([]Effect, error) {
		return s.payer.Step(now, &SentEvent{Kind: SentPay, Row: r}, fx)
	}); err != nil {
		return Sent{}, err
	}
	row, err := s.await(ctx, r.ID, func(r *Sent) bool { return r.Status != StatusParking })
	if err == nil && row.Status == StatusFailed {
		s.mu.Lock()
		defer s.mu.Unlock()
		err = cmpErr(s.reasons[r.ID], fmt.Errorf("hold: given back: %s", row.Failure))
		delete(s.reasons, r.ID)
	}
	return row, err
}

// park agrees with the holder on a hold that is saved here, and books its price.
func (s *Service) park(ctx context.Context, r *Sent) {
	if r.Price > 0 {
		booking, err := s.cfg.Meter.Consume(ctx, r.Holder, r.Price)
		if err != nil {
			s.refused(r.ID, fmt.Errorf("%w: %w", ErrNoCredit, err))
			return
		}
		if err := s.fits(r); err != nil {
			booking.Release()
			s.refused(r.ID, err)
			return
		}
		reply, err := s.cfg.Wire.Park(ctx, &r.Terms, r.Price, false)
		if err == nil && reply.Charged {
			if cerr := booking.Commit(min(reply.Price, r.Price)); cerr != nil {
				s.log.Warn("price of a hold was not booked", "hold", r.ID, "err", cerr)
			}
		} else {
			booking.Release()
		}
		s.parked(r.ID, err)
		return
	}
	err := s.fits(r)
	if err == nil {
		_, err = s.cfg.Wire.Park(ctx, &r.Terms, 0, false)
	}
	s.parked(r.ID, err)
}

// fits refuses a hold that could not be bound after its price was paid. What takes
// the room in between is refused by the carrier, and only the price is lost.
func (s *Service) fits(r *Sent) error {
	room, err := s.cfg.Meter.Room(r.Holder)
	if err != nil {
		return err
	}
	return room.fits(s.Now(), r.Amount, r.Until)
}

func (s *Service) parked(id ID, err error) {
	if s.ctx.Err() != nil {
		return // the restart parks it again
	}
	if err != nil {
		s.refused(id, err)
		return
	}
	_ = s.put(item{step: func(now int64, fx []Effect) ([]Effect, error) { // closed: the restart parks again
		return s.payer.Step(now, &SentEvent{Kind: SentParked, ID: id}, fx)
	}}, false)
}

// maxReasons bounds the reasons that nobody has asked for.
const maxReasons = 256

func (s *Service) refused(id ID, err error) {
	s.log.Info("hold was not parked", "hold", id, "err", err)
	s.mu.Lock()
	if len(s.reasons) < maxReasons {
		s.reasons[id] = err
	}
	s.mu.Unlock()
	_ = s.put(item{step: func(now int64, fx []Effect) ([]Effect, error) { // closed: the restart parks again
		return s.payer.Step(now, &SentEvent{Kind: SentRefused, ID: id}, fx)
	}}, false)
}

// await returns when f, on the owner's goroutine, takes the hold.
func (s *Service) await(ctx context.Context, id ID, f func(*Sent) bool) (row Sent, err error) {
	err = s.until(ctx, id, func() (bool, error) {
		r, ok := s.payer.Get(id)
		if !ok {
			return false, ErrNoHold
		}
		row = r
		return f(&row), nil
	})
	return row, err
}

// until returns when f, on the owner's goroutine, says so of what FxWake names by id.
func (s *Service) until(ctx context.Context, id ID, f func() (bool, error)) error {
	for {
		var woken chan struct{}
		var broken error
		err := s.look(ctx, func() {
			var done bool
			if done, broken = f(); !done && broken == nil {
				woken = make(chan struct{})
				s.woken[id] = append(s.woken[id], woken)
			}
		})
		switch {
		case err != nil:
			return err
		case broken != nil || woken == nil:
			return broken
		}
		select {
		case <-woken:
			continue
		case <-s.ended:
			return cmpErr(s.failure(), ErrClosed)
		case <-ctx.Done():
		}
		_ = s.put(item{step: func(_ int64, fx []Effect) ([]Effect, error) {
			s.woken[id] = slices.DeleteFunc(s.woken[id], func(c chan struct{}) bool { return c == woken })
			if len(s.woken[id]) == 0 {
				delete(s.woken, id)
			}
			return fx, nil
		}}, false)
		return ctx.Err()
	}
}

// Wait waits until a hold of ours is decided.
func (s *Service) Wait(ctx context.Context, id ID) (Sent, error) {
	return s.await(ctx, id, func(r *Sent) bool { return !r.Status.Lives() })
}

// CancelOurs asks the holder for our money back. The answer is the hold's end.
func (s *Service) CancelOurs(ctx context.Context, id ID) error {
	return s.do(ctx, func(now int64, fx []Effect) ([]Effect, error) {
		return s.payer.Step(now, &SentEvent{Kind: SentCancel, ID: id}, fx)
	})
}

// Sent lists our holds.
func (s *Service) Sent(ctx context.Context) (list []Sent, err error) {
	err = s.look(ctx, func() { list = s.payer.List() })
	return list, err
}

// Of a payee.

// Promise gives a payer a hash of ours, for one hold of at least amount.
func (s *Service) Promise(ctx context.Context, payer peer.ID, amount tally.Amount, d time.Duration) (Promise, error) {
	if s.cfg.Sign == nil {
		return Promise{}, errors.New("hold: no key to sign promises with")
	}
	g := &Given{Promise: Promise{
		Realm: s.cfg.Realm, Payee: s.cfg.Self, Payer: payer, Amount: amount, Expires: s.Now() + d.Milliseconds(),
	}}
	rand.Read(g.Preimage[:]) // never fails
	g.Hash = g.Preimage.Hashlock()
	var err error
	if g.Signature, err = s.cfg.Sign(g.SigningBytes()); err != nil {
		return Promise{}, fmt.Errorf("hold: sign a promise: %w", err)
	}
	if err := g.Validate(); err != nil {
		return Promise{}, err
	}
	return g.Promise, s.do(ctx, func(now int64, fx []Effect) ([]Effect, error) {
		return s.payee.Step(now, &InEvent{Kind: InPromise, Given: g}, fx)
	})
}

// Receipts lists what was paid to us.
func (s *Service) Receipts(ctx context.Context) (list []Receipt, err error) {
	err = s.look(ctx, func() { list = s.payee.Receipts() })
	return list, err
}

// maxPages bounds what one holder is asked for at a time: all that it may have for
// us.
const maxPages = MaxLivePayee/ListPage + 1

// Collect asks a holder what it has for us, and takes it. It returns when the holder
// has answered; the money comes later. One question at a time: while one is under
// way another is asked after it.
func (s *Service) Collect(holder peer.ID) {
	s.mu.Lock()
	_, busy := s.collecting[holder]
	s.collecting[holder] = busy
	s.mu.Unlock()
	if busy {
		return
	}
	again := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.collecting[holder] && s.ctx.Err() == nil {
			s.collecting[holder] = false
			return true
		}
		delete(s.collecting, holder)
		return false
	}
	ok := s.ask(func(ctx context.Context) {
		for {
			if err := s.collect(ctx, holder); err != nil {
				s.log.Debug("holder was not asked", "peer", holder, "err", err)
			}
			if !again() {
				return
			}
		}
	})
	if !ok {
		s.mu.Lock()
		delete(s.collecting, holder)
		s.mu.Unlock()
	}
}

func (s *Service) collect(ctx context.Context, holder peer.ID) error {
	var after ID
	for range maxPages {
		list, more, err := s.cfg.Wire.List(ctx, holder, after)
		if err != nil {
			return err
		}
		for i := range list {
			t := &list[i]
			if i == 0 && bytes.Compare(t.ID[:], after[:]) < 0 || len(list) > ListPage {
				return ErrTerms
			}
			after = t.ID
			if err := s.do(ctx, func(now int64, fx []Effect) ([]Effect, error) {
				return s.payee.Step(now, &InEvent{Kind: InListed, Peer: holder, Terms: t}, fx)
			}); err != nil {
				return err
			}
		}
		if !more || len(list) == 0 {
			return nil
		}
	}
	return nil
}

// Online tells that a peer has connected: it hears what we have for it, and we ask
// what it has for us.
func (s *Service) Online(p peer.ID) {
	_ = s.put(item{step: func(now int64, fx []Effect) ([]Effect, error) { // closed: nothing to do
		fx, err := s.holder.Step(now, &HolderEvent{Kind: HolderOnline, Peer: p}, fx)
		if err != nil {
			return fx, err
		}
		return s.buyer.Step(now, &BuyEvent{Kind: BuyOnline, Peer: p}, fx)
	}}, true)
	s.Collect(p)
}

// Of a holder. From is who asks, as the connection has it.

// Policy returns what we hold for others.
func (s *Service) Policy() Policy { return s.cfg.Policy }

// Park takes a hold of a payer, for a price of at most limit on its tab, or tells
// the price.
func (s *Service) Park(ctx context.Context, from peer.ID, t *Terms, limit tally.Amount, quote bool) (Reply, error) {
	if t.Payer != from {
		return Reply{}, ErrNoHold
	}
	now := s.Now()
	price := s.cfg.Policy.Price(t.Amount, time.Duration(t.Expires-now)*time.Millisecond)
	reply := Reply{Price: price}
	var vetted error
	have := false
	if err := s.look(ctx, func() {
		if r, ok := s.holder.Get(t.ID); ok && r.Payer == from {
			have, reply.Price, reply.State = true, r.Price, r.State
			if !r.same(t) {
				vetted = ErrConflict
			}
			return
		}
		vetted = s.holder.vet(now, t)
	}); err != nil {
		return Reply{}, err
	}
	switch {
	case vetted != nil:
		return Reply{}, vetted
	case have || quote:
		return reply, nil
	case price > limit:
		return reply, ErrPrice
	}
	var booking Booking
	if price > 0 {
		var err error
		if booking, err = s.cfg.Meter.Serve(ctx, from, price); err != nil {
			return reply, fmt.Errorf("%w: %w", ErrNoCredit, err)
		}
	}
	ev := &HolderEvent{Kind: HolderPark, Terms: t, Price: price}
	err := s.do(ctx, func(now int64, fx []Effect) ([]Effect, error) { return s.holder.Step(now, ev, fx) })
	if booking != nil {
		// Where the caller has gone, the step may still be taken: then the holding is
		// free.
		if err == nil && ev.New {
			reply.Charged = true
			err = booking.Commit(price)
		} else {
			booking.Release()
		}
	}
	reply.State = StateDraft
	return reply, err
}

// ListFor returns a page of what waits for a payee.
func (s *Service) ListFor(ctx context.Context, payee peer.ID, after ID) (list []Terms, more bool, err error) {
	err = s.look(ctx, func() {
		for _, r := range s.holder.List(func(r *Held) bool {
			return r.Payee == payee && r.State == StateHeld && bytes.Compare(r.ID[:], after[:]) > 0
		}) {
			if len(list) == ListPage {
				more = true
				return
			}
			list = append(list, r.Terms)
		}
	})
	return list, more, err
}

// Release offers a hold to its payee.
func (s *Service) Release(ctx context.Context, from peer.ID, id ID) error {
	part := newID()
	return s.do(ctx, func(now int64, fx []Effect) ([]Effect, error) {
		return s.holder.Step(now, &HolderEvent{Kind: HolderRelease, Peer: from, ID: id, PartID: part}, fx)
	})
}

// Cancel gives a hold up for one of its parties, or for our operator where from is
// empty. It returns what became of the hold.
func (s *Service) Cancel(ctx context.Context, from peer.ID, id ID) (state State, err error) {
	err = s.do(ctx, func(now int64, fx []Effect) ([]Effect, error) {
		fx, err := s.holder.Step(now, &HolderEvent{Kind: HolderCancel, Peer: from, ID: id}, fx)
		if r, ok := s.holder.Get(id); ok {
			state = r.State
		}
		return fx, err
	})
	return state, err
}

// Held lists what we hold for others.
func (s *Service) Held(ctx context.Context) (list []Held, err error) {
	err = s.look(ctx, func() { list = s.holder.List(func(*Held) bool { return true }) })
	return list, err
}
