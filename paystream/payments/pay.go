package payments

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tallystick/tally"
)

const (
	// DefaultDeadline is how long pay tries where nobody says. A part that left at
	// the last moment is decided later; until then the payment is pending.
	DefaultDeadline = 60 * time.Second
	// DefaultFeePPM is what pay spends on fees where nobody says: parts per million
	// of the amount.
	DefaultFeePPM = 10_000
	// DefaultFee is the least of it, so that small payments find a way, too.
	DefaultFee tally.Amount = 10
	// maxTries bounds the parts that one call of pay sends: each is a synced write,
	// and blocks room for others.
	maxTries = 100
	// maxRests is how often one call waits for a hop that was busy to rest. A lock that
	// comes back binds its money until its end, so that each try may cost as much again.
	maxRests = 3
)

// PayRequest is what pay needs. The invoice's hash names the payment: to ask again
// joins what is under way, and a complete payment is never paid again.
type PayRequest struct {
	Invoice Invoice
	// Amount where the invoice leaves it open.
	Amount tally.Amount
	// MaxFee in all; 0: the default above. NoFee: none at all.
	MaxFee tally.Amount
	NoFee  bool
	// Deadline ends sending; 0: DefaultDeadline.
	Deadline time.Duration
}

// PayResult is what became of a payment, with every attempt.
type PayResult struct {
	PaymentView
	Parts []Part
}

// driver splits one payment.
type driver struct {
	hash  tally.Hashlock
	hints []Hint
	// first is what was asked for.
	first Payment
	// begun: a part is sent, so that what the table says is about this try.
	begun bool
	// legs are those of parts that the router has blocked room for.
	legs map[uint64]Leg
	done chan struct{}
	err  error // why no more was sent; read after done
}

// resume goes on with the payments that were being split when we stopped.
func (s *Service) resume() {
	now := s.Now()
	for _, v := range s.payer.Payments() {
		if v.Status == StatusPending && v.Deadline > now && s.cfg.Router != nil {
			s.drive(&driver{hash: v.Hash, first: v.Payment, begun: true})
		}
	}
}

// drive starts a driver. On the owner's goroutine.
func (s *Service) drive(d *driver) {
	d.done, d.legs = make(chan struct{}), make(map[uint64]Leg)
	s.drivers[d.hash] = d
	s.drives.Add(1)
	go s.split(d) // ends when the payment is decided or its time is over, or with Close
}

// Pay is the command pay: it splits the amount, sends the parts, sends again what
// came back, and ends at its deadline. It returns nil where the payment is
// complete; else an error, and the result says where it stands. Where ctx ends
// first the payment goes on.
func (s *Service) Pay(ctx context.Context, q PayRequest) (PayResult, error) {
	i := &q.Invoice
	v, err := s.vetPay(&q)
	if err != nil {
		return PayResult{}, err
	}
	var d *driver
	var refused error
	err = s.look(ctx, func() {
		have, found := s.payer.Payment(i.Hash)
		switch d = s.drivers[i.Hash]; {
		case found && (have.Dest != v.Dest || have.Secret != v.Secret || have.Offer != v.Offer || have.Total != v.Total && have.Status != StatusFailed):
			d, refused = nil, &Error{Code: CodeConflict, Reason: "this hash has another payment", Remedy: "ask the payee for a new invoice"}
		case d != nil: // join
			if d.first.Total != v.Total || d.first.Secret != v.Secret || d.first.Dest != v.Dest || d.first.Offer != v.Offer {
				d, refused = nil, &Error{Code: CodeConflict, Reason: "this hash is being paid with another total", Remedy: "wait for it"}
			}
		case found && have.Status == StatusComplete:
		case s.Now() >= i.Expires:
			refused = &Error{Code: CodeInvalid, Reason: "the invoice has expired", Remedy: "ask the payee for a new one"}
		case len(s.drivers) >= maxDrivers:
			refused = &Error{Code: CodeBound, Reason: fmt.Sprintf("%d payments are under way", maxDrivers), Remedy: "wait for one of them"}
		default:
			d = &driver{hash: i.Hash, hints: i.Hints, first: v}
			s.drive(d)
		}
	})
	if err = cmp.Or(err, refused); err != nil {
		return PayResult{}, err
	}
	var cause error
	if d != nil {
		select {
		case <-d.done:
			cause = d.err
		case <-ctx.Done():
			cause = ctx.Err()
		case <-s.ended:
			return PayResult{}, ErrClosed
		}
	}
	return s.result(i.Hash, cause)
}

// Vet refuses an invoice that this node cannot pay.
func (s *Service) Vet(i *Invoice) error {
	if err := errors.Join(i.Validate(), i.Verify()); err != nil {
		return err
	}
	switch {
	case i.Realm != s.cfg.Realm:
		return &Error{Code: CodeInvalid, Reason: fmt.Sprintf("the invoice is for %q, this node is on %q", i.Realm, s.cfg.Realm), Remedy: "pay with a node of that network"}
	case i.Payee == s.cfg.Self:
		return &Error{Code: CodeInvalid, Reason: "the invoice is our own", Remedy: "pay somebody else's"}
	default:
		return s.vetSale(i)
	}
}

func (s *Service) vetPay(q *PayRequest) (Payment, error) {
	i := &q.Invoice
	invalid := func(reason, remedy string) (Payment, error) {
		return Payment{}, &Error{Code: CodeInvalid, Reason: reason, Remedy: remedy}
	}
	if s.cfg.Router == nil {
		return Payment{}, &Error{Code: CodeNoRoute, Reason: "this node finds no routes", Remedy: "send the parts one by one"}
	}
	if err := s.Vet(i); err != nil {
		return Payment{}, err
	}
	total := i.Amount
	switch {
	case total > 0 && q.Amount > 0 && (q.Amount < total || q.Amount > 2*total):
		return invalid(fmt.Sprintf("the invoice is for %d", total), "pay that, and at most twice of it")
	case total == 0 && q.Amount == 0:
		return invalid("the invoice leaves the amount open", "say how much")
	}
	if q.Amount > 0 {
		total = q.Amount
	}
	if total >= MaxTotal {
		return invalid("amount is 2^62 or more", "pay less")
	}
	fee := q.MaxFee
	if fee == 0 && !q.NoFee {
		fee = max(DefaultFee, total/1_000_000*DefaultFeePPM+total%1_000_000*DefaultFeePPM/1_000_000)
	}
	if fee >= MaxTotal {
		return invalid("fee is 2^62 or more", "allow less")
	}
	wait := q.Deadline
	if wait == 0 {
		wait = DefaultDeadline
	}
	return Payment{
		Hash: i.Hash, Point: i.Point, Offer: i.offer(), Dest: i.Payee, Secret: i.Secret, Total: total, MaxFee: fee, Deadline: s.Now() + wait.Milliseconds(),
	}, nil
}

// result says where a payment stands, and why as an error.
func (s *Service) result(h tally.Hashlock, cause error) (PayResult, error) {
	// The caller's ctx may have ended, and it still wants to know.
	v, parts, err := s.Payment(context.Background(), h)
	r := PayResult{PaymentView: v, Parts: parts}
	switch {
	case errors.Is(err, ErrNotFound) && cause != nil: // nothing was ever sent
		return r, cause
	case err != nil:
		return r, err
	case v.Status == StatusComplete:
		return r, nil
	case v.Status == StatusFailed:
		reason := "the payment failed: nothing was taken"
		if v.Refused {
			reason = "the payee refused the payment: nothing was taken"
		}
		e := &Error{Code: CodeFailed, Reason: reason, Remedy: "look at the parts, then pay again"}
		if cause != nil {
			return r, fmt.Errorf("%w: %w", e, cause)
		}
		return r, e
	default:
		e := &Error{
			Code: CodePending, Reason: "the payment is not decided yet",
			Remedy: "wait for it; it is certain by " + time.UnixMilli(v.CertainBy).UTC().Format(time.RFC3339),
		}
		if cause != nil {
			return r, fmt.Errorf("%w: %w", e, cause)
		}
		return r, e
	}
}

// split is the life of a driver.
func (s *Service) split(d *driver) {
	defer s.drives.Done()
	d.err = s.splitAll(d)
	_ = s.look(context.Background(), func() { // closed: nobody waits any more
		delete(s.drivers, d.hash)
		delete(s.changes, d.hash)
		wakeAll(s.payments, d.hash) // whoever waits for the payment looks again
	})
	close(d.done)
}

// splitAll sends what is not covered until the payment is decided, or nothing more
// can be sent and nothing lives. A hop that was busy is waited for. It returns why it
// stopped sending, if it was not the payee's or the clock's doing.
func (s *Service) splitAll(d *driver) error {
	var stuck error
	for tries, rests := 0, 0; ; {
		v, parts, changed, err := s.watch(d)
		if err != nil {
			return err
		}
		s.learn(d, parts)
		now := s.Now()
		over := now >= d.first.Deadline || d.begun && v.Refused
		rest, resting := errors.AsType[*RestError](stuck)
		switch {
		case v.Status == StatusComplete:
			return nil
		case !over && resting && rests < maxRests && rest.Until.UnixMilli() < d.first.Deadline:
			rests++
			s.pause(changed, now, rest.Until.UnixMilli())
			stuck = nil
			continue
		case v.Live > 0 && (over || stuck != nil || v.Covered >= v.Total):
			// Something comes back, or the payment is complete: both change it.
			s.pause(changed, now, d.first.Deadline)
			stuck = nil
			continue
		case over || stuck != nil:
			return stuck
		case tries >= maxTries:
			stuck = &Error{Code: CodeBound, Reason: fmt.Sprintf("%d parts were tried", tries), Remedy: "pay again later, or a smaller amount"}
			continue
		}
		var n int
		n, stuck = s.sendLegs(d, v, len(parts), now)
		tries += n
	}
}

// watch returns a payment as it is now, and what is closed when a part of it ends.
func (s *Service) watch(d *driver) (v PaymentView, parts []Part, changed chan struct{}, err error) {
	changed = make(chan struct{})
	err = s.look(context.Background(), func() {
		v, _ = s.payer.Payment(d.hash)
		parts = s.payer.Parts(d.hash)
		s.changes[d.hash] = append(s.changes[d.hash], changed)
		d.begun = d.begun || v.Status == StatusPending
	})
	return v, parts, changed, err
}

// pause waits for a change, and at most until the deadline where it is ahead.
func (s *Service) pause(changed chan struct{}, now, deadline int64) {
	var over <-chan time.Time
	if now < deadline {
		t := time.NewTimer(time.Duration(deadline-now) * time.Millisecond)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-changed:
	case <-over:
	case <-s.closing:
	case <-s.ended:
	}
}

// sendLegs plans what is missing and sends it; it returns how many parts left.
func (s *Service) sendLegs(d *driver, v PaymentView, number int, now int64) (int, error) {
	at := time.UnixMilli(now)
	request := &Request{
		Dest: d.first.Dest, Amount: d.first.Total - v.Covered, MaxFee: d.first.MaxFee.SaturatingSub(v.Fees),
		MaxParts: MaxParts - v.Live, Hints: d.hints,
	}
	if d.first.Point != 0 {
		request.MaxParts, request.Locks = 1, true
	}
	s.routeMu.Lock()
	legs, err := s.cfg.Router.Plan(at, request)
	s.routeMu.Unlock()
	if err != nil {
		return 0, err
	}
	// All of them at once: they share one save.
	parts, items := make([]sending, len(legs)), make([]item, len(legs))
	for i, leg := range legs {
		number++
		parts[i] = s.sendPart(SendPart{
			Hash: d.hash, Point: d.first.Point, Offer: d.first.Offer, Dest: d.first.Dest, Secret: d.first.Secret, Intended: d.first.Total, Number: uint64(number),
			Amount: leg.Amount, Fee: leg.Fee, Via: leg.Via, Deadline: d.first.Deadline, MaxFee: d.first.MaxFee,
		})
		items[i] = parts[i].item
	}
	if err := s.put(true, items...); err != nil {
		return 0, err
	}
	sent := 0
	for i := range parts {
		reply, failed := parts[i].wait(context.Background())
		switch {
		case failed != nil:
			err = cmp.Or(err, failed)
		case reply.Outcome == OutcomeSent: // else it is complete, or covered by somebody else
			sent++
			d.begun = true
			d.legs[reply.ID] = legs[i]
			s.routeMu.Lock()
			s.cfg.Router.Sent(at, d.first.Dest, &legs[i])
			s.routeMu.Unlock()
		}
	}
	return sent, err
}

// learn tells the router what became of the parts it planned.
func (s *Service) learn(d *driver, parts []Part) {
	s.routeMu.Lock()
	defer s.routeMu.Unlock()
	at := time.UnixMilli(s.Now())
	for i := range parts {
		leg, ok := d.legs[parts[i].ID]
		if !ok || parts[i].Status.Lives() {
			continue
		}
		delete(d.legs, parts[i].ID)
		if parts[i].Status == PartComplete {
			s.cfg.Router.Done(at, d.first.Dest, &leg)
		} else {
			s.cfg.Router.Failed(at, d.first.Dest, &leg, parts[i].Failure)
		}
	}
}
