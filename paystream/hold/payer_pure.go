package hold

import (
	"bytes"
	"slices"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// Status of a hold at its payer. The numbers are in records: add at the end.
type Status uint8

// Statuses of a hold of ours.
const (
	// StatusParking: saved, and the holder has not agreed yet.
	StatusParking Status = iota + 1
	// StatusHeld: our money is bound at the holder.
	StatusHeld
	// StatusComplete: the payee was paid; Preimage shows it.
	StatusComplete
	// StatusFailed: our money is back, or never left.
	StatusFailed
)

var statusWords = [...]string{"unset", "parking", "held", "complete", "failed"}

// String is the word that commands show.
func (s Status) String() string {
	if int(s) < len(statusWords) {
		return statusWords[s]
	}
	return "unknown"
}

// Lives reports whether the hold is not decided.
func (s Status) Lives() bool { return s == StatusParking || s == StatusHeld }

// Sent is one hold of ours.
type Sent struct {
	Terms
	Status Status
	// Price is what the holding costs.
	Price tally.Amount
	// Preimage is known from the start where we chose it.
	Preimage tally.Preimage
	// Promised: the payee chose the hash, so that Preimage is a proof of payment.
	Promised bool
	// Created and Changed in milliseconds since 1970; Certain is by when it is
	// decided here.
	Created, Changed, Certain int64
	// Cancel: we asked for the money back.
	Cancel bool
	// Failure, of one that failed. FailUnset: the holder did not take it.
	Failure payments.FailCode
	Memo    string
}

// SentKind names what happened to a hold of ours.
type SentKind uint8

// Kinds of event.
const (
	// SentPay: Row, new and parking, is to be paid.
	SentPay SentKind = iota + 1
	// SentParked: the holder has agreed to ID. SentRefused: it has not.
	SentParked
	SentRefused
	// SentAnswer: Answer is what became of our part.
	SentAnswer
	// SentCancel: we want the money of ID back.
	SentCancel
	// SentRestart: the rows were restored, and the carrier has the parts in Has.
	SentRestart
	// SentTick: some time passed.
	SentTick
)

// SentEvent is one input of Step.
type SentEvent struct {
	Kind   SentKind
	ID     ID
	Row    *Sent
	Answer *payments.Answer
	Has    map[payments.PartID]bool
}

// MaxOpen bounds the holds of ours that are not decided, and KeptOurs those that
// are and still listed: what an operator can run into alone.
const (
	MaxOpen  = 1024
	KeptOurs = 4096
)

// Payer is the core of a payer: its holds at all holders. It is pure.
//
//	       pay            holder agreed           preimage
//	(none) ───▶ parking ────────────────▶ held ─────────────▶ complete
//	              │  refused, too late      │ given back
//	              └───────▶ failed ◀────────┘
type Payer struct {
	rows   map[ID]*Sent
	hashes map[tally.Hashlock]ID // of holds whose hash the payee chose
	open   int
}

// NewPayer returns a core without holds.
func NewPayer() *Payer {
	return &Payer{rows: make(map[ID]*Sent), hashes: make(map[tally.Hashlock]ID)}
}

// Get returns a hold of ours.
func (p *Payer) Get(id ID) (Sent, bool) {
	if r := p.rows[id]; r != nil {
		return *r, true
	}
	return Sent{}, false
}

// List returns all, the oldest first.
func (p *Payer) List() []Sent {
	list := make([]Sent, 0, len(p.rows))
	for _, r := range p.rows {
		list = append(list, *r)
	}
	slices.SortFunc(list, func(a, b Sent) int { return byAge(a.Created, b.Created, a.ID, b.ID) })
	return list
}

func byAge(a, b int64, x, y payments.PartID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return bytes.Compare(x[:], y[:])
}

// Owns reports whether a part is of a hold of ours.
func (p *Payer) Owns(id payments.PartID) bool { return p.rows[id] != nil }

// Step applies one event. now is in milliseconds since 1970. On an error nothing has
// changed.
func (p *Payer) Step(now int64, ev *SentEvent, fx []Effect) ([]Effect, error) {
	switch ev.Kind {
	case SentPay:
		return p.pay(now, ev.Row, fx)
	case SentParked:
		r := p.rows[ev.ID]
		if r == nil || r.Status != StatusParking {
			return fx, nil
		}
		switch {
		case now >= r.Expires:
			return p.fail(now, r, payments.FailExpiry, fx), nil
		case r.Cancel:
			return p.fail(now, r, payments.FailNeverLeft, fx), nil
		}
		r.Status, r.Changed = StatusHeld, now
		return append(p.save(r, fx), Effect{Kind: FxSend, PartID: r.ID, ID: r.ID, Part: &payments.Outgoing{
			PartID: r.ID, Dest: r.Holder, Amount: r.Amount, Expires: time.UnixMilli(r.Until), Condition: r.Hash, Data: []byte{kindHold},
		}}, Effect{Kind: FxWake, ID: r.ID}), nil
	case SentRefused:
		if r := p.rows[ev.ID]; r != nil && r.Status == StatusParking {
			return p.fail(now, r, payments.FailUnset, fx), nil
		}
		return fx, nil
	case SentAnswer:
		return p.answered(now, ev.Answer, fx), nil
	case SentCancel:
		r := p.rows[ev.ID]
		switch {
		case r == nil:
			return fx, ErrNoHold
		case r.Status == StatusComplete:
			return fx, ErrTooLate
		case r.Status == StatusFailed || r.Cancel:
		default:
			r.Cancel = true
			fx = p.save(r, fx)
		}
		if !r.Status.Lives() {
			return fx, nil
		}
		return append(fx, Effect{Kind: FxCancel, Peer: r.Holder, ID: r.ID}), nil
	case SentRestart:
		return p.restart(now, ev.Has, fx), nil
	case SentTick:
		return p.tick(now, fx), nil
	default:
		return fx, ErrTerms
	}
}

func (p *Payer) pay(now int64, r *Sent, fx []Effect) ([]Effect, error) {
	if err := r.Validate(); err != nil {
		return fx, err
	}
	switch {
	case p.rows[r.ID] != nil:
		return fx, ErrConflict
	case p.open >= MaxOpen:
		return fx, ErrBound
	case r.Expires <= now:
		return fx, wrapTerms("too little time")
	case r.Promised == (len(r.Box) > 0), !r.Promised && !r.Preimage.Opens(r.Hash):
		return fx, wrapTerms("either the payee chose the hash, or we sealed its preimage")
	}
	if r.Promised {
		// A holder that has seen the preimage of this hash would keep the money.
		if was, ok := p.hashes[r.Hash]; ok {
			return fx, wrapTerms("the payee's hash was used for the hold " + was.String() + "; ask the payee for another")
		}
	}
	cp := *r
	cp.Status, cp.Created, cp.Changed = StatusParking, now, now
	p.add(&cp)
	return append(p.save(&cp, fx), Effect{Kind: FxPark, ID: r.ID}), nil
}

func (p *Payer) add(r *Sent) {
	p.rows[r.ID] = r
	if r.Promised {
		p.hashes[r.Hash] = r.ID
	}
	if r.Status.Lives() {
		p.open++
	}
}

func (p *Payer) save(r *Sent, fx []Effect) []Effect {
	return append(fx, saveRecord(sentKey(r.ID), r.record()))
}

func (p *Payer) fail(now int64, r *Sent, code payments.FailCode, fx []Effect) []Effect {
	p.open--
	r.Status, r.Changed, r.Failure = StatusFailed, now, code
	return append(p.save(r, fx), Effect{Kind: FxWake, ID: r.ID})
}

func (p *Payer) answered(now int64, a *payments.Answer, fx []Effect) []Effect {
	r := p.rows[a.PartID]
	forget := Effect{Kind: FxForget, PartID: a.PartID}
	switch {
	case r == nil:
		return fx // not ours
	case a.Fulfilled && a.Preimage.Opens(r.Hash) && r.Status != StatusComplete:
		// Also one that failed: money that left is never called back.
		if r.Status.Lives() {
			p.open--
		}
		r.Status, r.Changed, r.Preimage, r.Failure = StatusComplete, now, a.Preimage, payments.FailUnset
		fx = append(p.save(r, fx), Effect{Kind: FxWake, ID: r.ID})
	case !a.Fulfilled && r.Status.Lives():
		fx = p.fail(now, r, a.Failure.Code, fx)
	}
	return append(fx, forget)
}

// restart: a part that the carrier does not have never left. A hold that was not
// agreed on is parked again, which changes nothing where it was.
func (p *Payer) restart(now int64, has map[payments.PartID]bool, fx []Effect) []Effect {
	for _, s := range p.List() {
		r := p.rows[s.ID]
		switch {
		case r.Status == StatusParking && now >= r.Expires:
			fx = p.fail(now, r, payments.FailExpiry, fx)
		case r.Status == StatusParking && r.Cancel:
			fx = p.fail(now, r, payments.FailNeverLeft, fx)
		case r.Status == StatusParking:
			fx = append(fx, Effect{Kind: FxPark, ID: r.ID})
		case r.Status == StatusHeld && !has[r.ID]:
			fx = p.fail(now, r, payments.FailNeverLeft, fx)
		}
	}
	return fx
}

// tick forgets what is old. A hold of a promise is kept longer than a promise is
// good for, so that its hash is not paid twice.
func (p *Payer) tick(now int64, fx []Effect) []Effect {
	excess := len(p.rows) - p.open - KeptOurs
	old := func(s *Sent) bool { return !s.Status.Lives() && now-max(s.Created, s.Until) >= keptPayer }
	due := excess > 0
	for _, s := range p.rows {
		due = due || old(s)
	}
	if !due {
		return fx
	}
	for _, s := range p.List() {
		if s.Status.Lives() || excess <= 0 && !old(&s) || s.Promised && now-s.Created < keptPayer {
			continue
		}
		excess--
		delete(p.rows, s.ID)
		if s.Promised {
			delete(p.hashes, s.Hash)
		}
		fx = append(fx, saveRecord(sentKey(s.ID), nil))
	}
	return fx
}

// keptPayer is how long a decided hold of ours is listed, in ms.
const keptPayer = 30 * 24 * int64(time.Hour/time.Millisecond)

// Check returns the first broken invariant, by name.
func (p *Payer) Check() error {
	open, promised := 0, 0
	for id, r := range p.rows {
		if r.ID != id {
			return broken("index", "hold %s is kept as %s", r.ID, id)
		}
		if r.Status.Lives() {
			open++
		}
		if r.Promised {
			promised++
			if p.hashes[r.Hash] != id {
				return broken("one-hash-one-hold", "the payee's hash %s is of the hold %s, too", r.Hash, p.hashes[r.Hash])
			}
		}
		if (r.Status == StatusComplete || !r.Promised) && !r.Preimage.Opens(r.Hash) {
			return broken("complete-by-preimage", "hold %s is %s", id, r.Status)
		}
	}
	if open != p.open || open > MaxOpen || promised != len(p.hashes) {
		return broken("bounds", "%d open, counted %d; %d promised, %d hashes", p.open, open, promised, len(p.hashes))
	}
	return nil
}
