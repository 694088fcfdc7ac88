package payments

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Payment is one row of the payments table: an amount to one payee under one
// hash. Its status is not a column; see Payer.Status.
type Payment struct {
	Hash tally.Hashlock
	// Point is 0, or the first byte of the point whose x is Hash: the payment buys what
	// Offer sells, and Preimage is that point's secret.
	Point  byte
	Offer  OfferText
	Dest   peer.ID
	Secret Secret
	Total  tally.Amount
	// Group counts the attempts: it goes up when a failed payment is sent again.
	Group uint64
	// Preimage is the proof of payment, where Complete.
	Preimage tally.Preimage
	Complete bool
	// Created and Decided are in milliseconds since 1970; Decided is 0 while the
	// payment is pending.
	Created, Decided int64
	// Of a payment that pay splits: until when it sends parts, 0 where a caller
	// sends them one by one; and what it may spend on fees.
	Deadline int64
	MaxFee   tally.Amount
}

// Part is one row of the parts table: one attempt to send one part.
type Part struct {
	// ID is ours: a persisted counter, never used twice.
	ID   uint64
	Hash tally.Hashlock
	// Group is the payment's at the time.
	Group uint64
	// Number is the caller's for the part within the payment.
	Number uint64
	// Amount is what has to arrive, Fee what the way may take of what we send.
	Amount, Fee tally.Amount
	Via         []peer.ID
	PartID      PartID
	// Expires is until when the payee may claim, and CertainBy when the part is
	// decided, whatever others do. In milliseconds since 1970.
	Expires, CertainBy int64
	Created, Decided   int64
	Status             PartStatus
	Failure            Failure
}

// Sent is what leaves: the amount and the fee.
func (p *Part) Sent() tally.Amount { return p.Amount + p.Fee } // checked when the part is made

// SendPart is the command sendpartialpay.
type SendPart struct {
	Hash tally.Hashlock
	// Point and Offer, see Payment.
	Point    byte
	Offer    OfferText
	Dest     peer.ID
	Secret   Secret
	Intended tally.Amount
	Number   uint64
	Amount   tally.Amount
	Fee      tally.Amount
	Via      []peer.ID
	Expires  int64
	// CertainBy is what the carrier promises for this way.
	CertainBy int64
	// PartID is 16 fresh random bytes.
	PartID PartID
	// Of pay, see Payment.
	Deadline int64
	MaxFee   tally.Amount
}

// Outcome says what a SendPart did.
type Outcome uint8

// Outcomes of a SendPart.
const (
	// OutcomeSent: a part was made.
	OutcomeSent Outcome = iota + 1
	// OutcomeLive: this very part lives; nothing was sent.
	OutcomeLive
	// OutcomeInProgress: the parts that live cover the total; nothing was sent.
	OutcomeInProgress
	// OutcomeComplete: the payment is complete; nothing was sent.
	OutcomeComplete
)

var outcomeWords = [...]string{"unset", "sent", "live", "in_progress", "complete"}

// String is the outcome as commands show it.
func (o Outcome) String() string {
	if int(o) < len(outcomeWords) {
		return outcomeWords[o]
	}
	return "unknown"
}

// Reply answers a SendPart.
type Reply struct {
	Outcome Outcome
	// ID is the part's: the one sent, the one that lives, or a complete one; 0 of
	// OutcomeInProgress.
	ID       uint64
	Preimage tally.Preimage
}

// PayerEventKind names what happened to the payer.
type PayerEventKind uint8

// Kinds of event. Each says which fields it reads.
const (
	// PayerSend: a caller wants Send. Reply says what was done.
	PayerSend PayerEventKind = iota + 1
	// PayerLeft: the carrier has taken PartID.
	PayerLeft
	// PayerFulfilled: PartID was claimed with Preimage.
	PayerFulfilled
	// PayerRejected: PartID came back, or never left, because of Failure.
	PayerRejected
)

// PayerEvent is one input of Payer.Step.
type PayerEvent struct {
	Kind     PayerEventKind
	Send     *SendPart
	Reply    *Reply // written by PayerSend
	PartID   PartID
	Preimage tally.Preimage
	Failure  Failure
}

// payment is a row with what is derived from its parts.
type payment struct {
	Payment
	parts []uint64 // all attempts, by id
	// Invariant: live and covered are of the current group; no part of an earlier
	// group lives.
	live    int
	covered tally.Amount
	rows    int // of the current group
}

// Payer is the core of whoever pays: both tables, in memory as on disk.
//
//	            ┌── send: group + 1 ───────────────────┐
//	            ▼                                      │
//	send ──▶ pending ── last part failed ──────────▶ failed
//	            │                                      │
//	            └── any part claimed ──▶ complete ◀────┘ a claim always wins
//
// It is pure, and has one owner.
type Payer struct {
	payments map[tally.Hashlock]*payment
	parts    map[uint64]*Part
	byPartID map[PartID]uint64
	nextID   uint64
	curve    opener
}

// NewPayer returns empty tables.
func NewPayer() *Payer {
	return &Payer{
		payments: make(map[tally.Hashlock]*payment), parts: make(map[uint64]*Part),
		byPartID: make(map[PartID]uint64), nextID: 1,
	}
}

// Step applies one event and appends to fx what the shell has to do, saves first.
// now is in milliseconds since 1970. On an error nothing has changed.
func (p *Payer) Step(now int64, ev *PayerEvent, fx []Effect) ([]Effect, error) {
	switch ev.Kind {
	case PayerSend:
		return p.send(now, ev, fx)
	case PayerLeft:
		if part := p.part(ev.PartID); part != nil && part.Status == PartCreated {
			part.Status = PartSent
		}
		return fx, nil
	case PayerFulfilled:
		return p.fulfilled(now, ev, fx)
	case PayerRejected:
		return p.rejected(now, ev, fx), nil
	default:
		return fx, fmt.Errorf("payments: no such event of a payer: %d", ev.Kind)
	}
}

func (p *Payer) part(id PartID) *Part { return p.parts[p.byPartID[id]] }

// vet refuses what makes no sense whatever the tables hold.
func (c *SendPart) vet(now int64) error {
	invalid := func(reason, remedy string) error {
		return &Error{Code: CodeInvalid, Reason: reason, Remedy: remedy}
	}
	sent, err := c.Amount.Add(c.Fee)
	switch {
	case c.Dest == "" || len(c.Dest) > maxPeerID:
		return invalid("no payee", "name its peer id")
	case c.Amount == 0 || c.Intended == 0:
		return invalid("amount is 0", "pay at least one unit")
	case c.Intended >= MaxTotal:
		return invalid("amount is 2^62 or more", "pay less")
	case c.Amount > c.Intended:
		return invalid("the part is more than the payment", "make the part smaller, or the intended amount larger")
	case err != nil || sent >= MaxTotal:
		return invalid("amount and fee are 2^62 or more", "pay less")
	case len(c.Via) > MaxVia:
		return invalid(fmt.Sprintf("the route has %d peers", len(c.Via)), fmt.Sprintf("use at most %d", MaxVia))
	case c.Expires <= now || c.CertainBy < c.Expires:
		return invalid("the part would have expired", "give it more time")
	case c.PartID == PartID{}:
		return invalid("no part id", "draw 16 random bytes")
	case !validPoint(c.Point) || (c.Point == 0) != (c.Offer == "") || len(c.Offer) > MaxInvoiceText:
		return invalid("what is bought is not an offer", "use the text that the seller gave")
	case c.Point != 0 && c.Amount != c.Intended:
		return invalid("a part of a signature buys nothing", "pay all of it in one part")
	}
	for _, v := range c.Via {
		if v == "" || len(v) > maxPeerID {
			return invalid("the route has a damaged peer id", "look at the route")
		}
	}
	return nil
}

// send is the table of sendpartialpay, row for row.
func (p *Payer) send(now int64, ev *PayerEvent, fx []Effect) ([]Effect, error) {
	c := ev.Send
	if err := c.vet(now); err != nil {
		return fx, err
	}
	if _, used := p.byPartID[c.PartID]; used {
		// One part id seals one plaintext: two of them under one key and nonce
		// would show both.
		return fx, &Error{Code: CodeInvalid, Reason: "part id was used before", Remedy: "draw a new one"}
	}
	conflict := func(reason, remedy string) ([]Effect, error) {
		return fx, &Error{Code: CodeConflict, Reason: reason, Remedy: remedy}
	}
	pay := p.payments[c.Hash]
	if pay == nil {
		pay = &payment{Payment: Payment{
			Hash: c.Hash, Point: c.Point, Offer: c.Offer, Dest: c.Dest, Secret: c.Secret, Total: c.Intended, Group: 1, Created: now,
			Deadline: c.Deadline, MaxFee: c.MaxFee,
		}}
		p.payments[c.Hash] = pay
		return p.make(now, pay, ev, fx)
	}
	if pay.Dest != c.Dest || pay.Secret != c.Secret || pay.Point != c.Point || pay.Offer != c.Offer {
		return conflict("this hash has a payment to another payee or with another secret", "ask the payee for a new invoice")
	}
	switch p.status(pay) {
	case StatusComplete:
		if pay.Total != c.Intended {
			return conflict(fmt.Sprintf("the payment is complete, with total %d", pay.Total), "ask the payee for a new invoice")
		}
		*ev.Reply = Reply{Outcome: OutcomeComplete, ID: p.complete(pay), Preimage: pay.Preimage}
		return fx, nil
	case StatusFailed:
		pay.Group++
		pay.Total, pay.Decided, pay.rows = c.Intended, 0, 0
		pay.Deadline, pay.MaxFee = c.Deadline, c.MaxFee
		return p.make(now, pay, ev, fx)
	}
	if pay.Total != c.Intended {
		return conflict(fmt.Sprintf("the payment is pending, with total %d", pay.Total), "use that total, or wait until it is decided")
	}
	for _, id := range pay.parts {
		part := p.parts[id]
		if part.Number != c.Number || !part.Status.Lives() {
			continue
		}
		if part.Amount != c.Amount || part.Fee != c.Fee || !slices.Equal(part.Via, c.Via) {
			return conflict(fmt.Sprintf("part %d lives, with another amount or route", c.Number), "give the new part another number")
		}
		*ev.Reply = Reply{Outcome: OutcomeLive, ID: id}
		return fx, nil
	}
	// Also for a part whose earlier attempt failed: what more is sent than the
	// total is a gift.
	if pay.covered >= pay.Total {
		*ev.Reply = Reply{Outcome: OutcomeInProgress}
		return fx, nil
	}
	switch {
	case pay.live >= MaxParts:
		return fx, &Error{Code: CodeBound, Reason: fmt.Sprintf("%d parts live", pay.live), Remedy: "send fewer and larger ones"}
	case pay.rows >= MaxAttempts:
		return fx, &Error{Code: CodeBound, Reason: fmt.Sprintf("%d parts were tried", pay.rows), Remedy: "wait until the payment has failed, then send it again"}
	}
	return p.make(now, pay, ev, fx)
}

// make adds a part to a payment that takes it, and sends it.
func (p *Payer) make(now int64, pay *payment, ev *PayerEvent, fx []Effect) ([]Effect, error) {
	c := ev.Send
	part := &Part{
		ID: p.nextID, Hash: c.Hash, Group: pay.Group, Number: c.Number, Amount: c.Amount, Fee: c.Fee,
		Via: slices.Clone(c.Via), PartID: c.PartID, Expires: c.Expires, CertainBy: c.CertainBy, Created: now,
		Status: PartCreated,
	}
	p.nextID++
	p.add(pay, part)
	*ev.Reply = Reply{Outcome: OutcomeSent, ID: part.ID}
	fx = save(fx, counterKey, appendUint(nil, p.nextID))
	fx = save(fx, paymentKey(pay.Hash), pay.record())
	fx = save(fx, partKey(part.ID), part.record())
	cp := *part
	data := SealPart(&pay.Secret, pay.Hash, part.PartID, PartData{Total: pay.Total, Amount: part.Amount, Number: part.Number})
	return append(fx, Effect{Kind: FxSend, Part: &cp, Dest: pay.Dest, Data: data, PartID: part.PartID, ID: part.ID, Hash: pay.Hash, Point: pay.Point}), nil
}

// add puts a part among those of its payment.
func (p *Payer) add(pay *payment, part *Part) {
	p.parts[part.ID] = part
	p.byPartID[part.PartID] = part.ID
	pay.parts = append(pay.parts, part.ID)
	if part.Group == pay.Group {
		pay.rows++
		if part.Status.Lives() {
			pay.live++
			pay.covered += part.Amount // a few of at most 2^62: covered < total before
		}
	}
}

// end takes a part from those that live.
func (p *Payer) end(now int64, pay *payment, part *Part, s PartStatus) {
	if part.Status.Lives() {
		pay.live--
		pay.covered -= part.Amount
	}
	part.Status, part.Decided = s, now
}

// fulfilled: the preimage is here. Success wins, also over a part or payment that
// counted as failed.
func (p *Payer) fulfilled(now int64, ev *PayerEvent, fx []Effect) ([]Effect, error) {
	part := p.part(ev.PartID)
	if part == nil || part.Status == PartComplete {
		return append(fx, Effect{Kind: FxForget, PartID: ev.PartID}), nil
	}
	pay := p.payments[part.Hash]
	if !p.curve.opens(pay.Point, part.Hash, &ev.Preimage) {
		return fx, fmt.Errorf("payments: part %d was answered with a wrong preimage", part.ID)
	}
	first := !pay.Complete
	p.end(now, pay, part, PartComplete)
	part.Failure = Failure{}
	if first {
		pay.Complete, pay.Preimage, pay.Decided = true, ev.Preimage, now
		fx = save(fx, paymentKey(pay.Hash), pay.record())
	}
	fx = save(fx, partKey(part.ID), part.record())
	fx = append(fx, Effect{Kind: FxForget, PartID: ev.PartID})
	if first {
		fx = append(fx, Effect{Kind: FxWakePayment, Hash: pay.Hash})
	}
	return append(fx, Effect{Kind: FxWakePart, ID: part.ID, Hash: pay.Hash}), nil
}

// rejected: the part is given up. The payment has failed only if none of its
// group lives and none was claimed.
func (p *Payer) rejected(now int64, ev *PayerEvent, fx []Effect) []Effect {
	part := p.part(ev.PartID)
	if part == nil || !part.Status.Lives() {
		return append(fx, Effect{Kind: FxForget, PartID: ev.PartID})
	}
	pay := p.payments[part.Hash]
	p.end(now, pay, part, PartFailed)
	part.Failure = ev.Failure
	failed := p.status(pay) == StatusFailed
	if failed {
		pay.Decided = now
		fx = save(fx, paymentKey(pay.Hash), pay.record())
	}
	fx = save(fx, partKey(part.ID), part.record())
	fx = append(fx, Effect{Kind: FxForget, PartID: ev.PartID})
	if failed {
		fx = append(fx, Effect{Kind: FxWakePayment, Hash: pay.Hash})
	}
	return append(fx, Effect{Kind: FxWakePart, ID: part.ID, Hash: pay.Hash})
}

// status is derived: complete where a part is, else pending while one of the
// group lives, else failed.
func (p *Payer) status(pay *payment) Status {
	switch {
	case pay.Complete:
		return StatusComplete
	case pay.live > 0:
		return StatusPending
	default:
		return StatusFailed
	}
}

// complete returns the id of a part that was claimed.
func (p *Payer) complete(pay *payment) uint64 {
	for _, id := range pay.parts {
		if p.parts[id].Status == PartComplete {
			return id
		}
	}
	return 0
}

// PaymentView is a payment as commands show it.
type PaymentView struct {
	Payment
	Status Status
	// Covered is the sum of the parts that live, Sent what left with the parts
	// that live or were claimed, Claimed what arrived.
	Covered, Sent, Claimed tally.Amount
	Live                   int
	// CertainBy is when a pending payment is decided, whatever others do.
	CertainBy int64
	// Refused: the payee has said no in this group.
	Refused bool
	// Fees of the parts that live or were claimed.
	Fees tally.Amount
}

// Payment returns one payment.
func (p *Payer) Payment(h tally.Hashlock) (PaymentView, bool) {
	pay := p.payments[h]
	if pay == nil {
		return PaymentView{}, false
	}
	v := PaymentView{Payment: pay.Payment, Status: p.status(pay), Covered: pay.covered, Live: pay.live}
	for _, id := range pay.parts {
		part := p.parts[id]
		if part.Status == PartFailed {
			v.Refused = v.Refused || part.Group == pay.Group && part.Failure.Code.Final()
			continue
		}
		v.Sent = v.Sent.SaturatingAdd(part.Sent())
		v.Fees = v.Fees.SaturatingAdd(part.Fee)
		if part.Status == PartComplete {
			v.Claimed = v.Claimed.SaturatingAdd(part.Amount)
		} else {
			v.CertainBy = max(v.CertainBy, part.CertainBy)
		}
	}
	return v, true
}

// Payments returns all payments, oldest first.
func (p *Payer) Payments() []PaymentView {
	list := make([]PaymentView, 0, len(p.payments))
	for h := range p.payments {
		v, _ := p.Payment(h)
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b PaymentView) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), slices.Compare(a.Hash[:], b.Hash[:]))
	})
	return list
}

// Part returns one part.
func (p *Payer) Part(id uint64) (Part, bool) {
	part := p.parts[id]
	if part == nil {
		return Part{}, false
	}
	return *part, true
}

// AllParts returns every part, by id.
func (p *Payer) AllParts() []Part {
	list := make([]Part, 0, len(p.parts))
	for _, part := range p.parts {
		list = append(list, *part)
	}
	slices.SortFunc(list, func(a, b Part) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Parts returns the parts of a payment by id, those of earlier groups too.
func (p *Payer) Parts(h tally.Hashlock) []Part {
	pay := p.payments[h]
	if pay == nil {
		return nil
	}
	list := make([]Part, len(pay.parts))
	for i, id := range pay.parts {
		list[i] = *p.parts[id]
	}
	return list
}

// Live returns the part ids that are not decided, by id: after a restart each is
// looked up at the carrier.
func (p *Payer) Live() []PartID {
	var ids []uint64
	for id, part := range p.parts {
		if part.Status.Lives() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	list := make([]PartID, len(ids))
	for i, id := range ids {
		list[i] = p.parts[id].PartID
	}
	return list
}

func (p *Payment) record() []byte {
	b := appendShort(nil, string(p.Dest))
	b = append(b, p.Secret[:]...)
	b = appendUint(b, uint64(p.Total), p.Group, uint64(p.Created), uint64(p.Decided), uint64(p.Deadline), uint64(p.MaxFee))
	b = appendFlag(b, p.Complete)
	if p.Complete {
		b = append(b, p.Preimage[:]...)
	}
	if p.Point != 0 {
		b = appendText(append(b, p.Point), string(p.Offer))
	}
	return b
}

// RestorePayment takes a row of an earlier run, before its parts.
func (p *Payer) RestorePayment(h tally.Hashlock, rec []byte) error {
	r := reader{b: rec}
	pay := &payment{Payment: Payment{Hash: h, Dest: r.peer(), Secret: r.digest(), Total: r.amount(), Group: r.uint()}}
	pay.Created, pay.Decided, pay.Deadline, pay.MaxFee = int64(r.uint()), int64(r.uint()), int64(r.uint()), r.amount()
	if pay.Complete = r.flag(); pay.Complete {
		pay.Preimage = r.digest()
	}
	if len(r.b) > 0 {
		pay.Point, pay.Offer = r.point(), OfferText(r.text(MaxInvoiceText))
	}
	r.bad = r.bad || pay.Total == 0 || pay.Total >= MaxTotal || pay.Group == 0 || pay.Complete && !p.curve.opens(pay.Point, h, &pay.Preimage)
	if err := r.end("payment " + h.String()); err != nil {
		return err
	}
	p.payments[h] = pay
	return nil
}

func (p *Part) record() []byte {
	b := append([]byte(nil), p.Hash[:]...)
	b = append(b, p.PartID[:]...)
	status := p.Status
	if status.Lives() {
		status = PartCreated
	}
	b = append(b, byte(status), byte(p.Failure.Code))
	b = appendUint(b, p.Group, p.Number, uint64(p.Amount), uint64(p.Fee), uint64(p.Expires), uint64(p.CertainBy),
		uint64(p.Created), uint64(p.Decided), uint64(p.Failure.Hop), uint64(p.Failure.Most))
	b = append(b, byte(len(p.Via)))
	for _, v := range p.Via {
		b = appendShort(b, string(v))
	}
	return b
}

// RestorePart takes a row of an earlier run; rows come in the order of their ids.
func (p *Payer) RestorePart(id uint64, rec []byte) error {
	r := reader{b: rec}
	part := &Part{ID: id, Hash: r.digest(), PartID: PartID(r.take(16)), Status: PartStatus(r.byte())}
	part.Failure.Code = FailCode(r.byte())
	part.Group, part.Number, part.Amount, part.Fee = r.uint(), r.uint(), r.amount(), r.amount()
	part.Expires, part.CertainBy, part.Created, part.Decided = int64(r.uint()), int64(r.uint()), int64(r.uint()), int64(r.uint())
	part.Failure.Hop, part.Failure.Most = int(r.uint()), r.amount()
	n := int(r.byte())
	for i := 0; i < n && n <= MaxVia && !r.bad; i++ {
		part.Via = append(part.Via, r.peer())
	}
	pay := p.payments[part.Hash]
	_, twice := p.byPartID[part.PartID]
	sent, err := part.Amount.Add(part.Fee)
	r.bad = r.bad || id == 0 || n > MaxVia || pay == nil || twice || err != nil || sent >= MaxTotal ||
		part.Status < PartCreated || part.Status > PartFailed || part.Status == PartSent ||
		part.Status.Lives() && part.Group != pay.Group || part.Amount == 0 ||
		part.Status == PartComplete && !pay.Complete
	if err := r.end(fmt.Sprintf("part %d", id)); err != nil {
		return err
	}
	p.add(pay, part)
	p.nextID = max(p.nextID, id+1)
	return nil
}

// RestoreCounter takes the counter of ids.
func (p *Payer) RestoreCounter(rec []byte) error {
	r := reader{b: rec}
	n := r.uint()
	if err := r.end("counter"); err != nil {
		return err
	}
	p.nextID = max(p.nextID, n)
	return nil
}

// Check returns the first broken invariant, by name.
func (p *Payer) Check() error {
	if len(p.byPartID) != len(p.parts) {
		return broken("part-ids", "%d parts, %d part ids", len(p.parts), len(p.byPartID))
	}
	rows := 0
	for h, pay := range p.payments {
		var live, inGroup, complete int
		var covered tally.Amount
		var last uint64
		for _, id := range pay.parts {
			part := p.parts[id]
			switch {
			case part == nil || part.ID != id || part.Hash != h || p.byPartID[part.PartID] != id:
				return broken("part-index", "payment %s: part %d", h, id)
			case id <= last || id >= p.nextID:
				return broken("ids-once", "part %d after %d, next %d", id, last, p.nextID)
			case part.Status.Lives() && part.Group != pay.Group:
				return broken("older-groups-dead", "payment %s: part %d of group %d lives in group %d", h, id, part.Group, pay.Group)
			}
			last = id
			rows++
			if part.Group == pay.Group {
				inGroup++
			}
			if part.Status.Lives() {
				live++
				covered += part.Amount
			}
			if part.Status == PartComplete {
				complete++
			}
		}
		switch {
		case live != pay.live || covered != pay.covered || inGroup != pay.rows:
			return broken("derived", "payment %s: %d live with %d of %d rows, counted %d with %d of %d", h, pay.live, pay.covered, pay.rows, live, covered, inGroup)
		case (complete > 0) != pay.Complete:
			return broken("complete-by-part", "payment %s: %d parts complete, payment %t", h, complete, pay.Complete)
		case pay.Complete && !p.curve.opens(pay.Point, h, &pay.Preimage):
			return broken("proof", "payment %s is complete without its preimage", h)
		case covered >= 2*pay.Total && covered > 0:
			return broken("never-twice", "payment %s: %d live of %d", h, covered, pay.Total)
		case pay.Point != 0 && live > 1:
			return broken("bought-whole", "signature %s: %d parts live", h, live)
		case live > MaxParts || inGroup > MaxAttempts:
			return broken("bounds", "payment %s: %d live, %d rows", h, live, inGroup)
		case (p.status(pay) == StatusPending) != (pay.Decided == 0):
			return broken("decided", "payment %s is %s, decided at %d", h, p.status(pay), pay.Decided)
		}
	}
	if rows != len(p.parts) {
		return broken("part-index", "%d rows, %d in payments", len(p.parts), rows)
	}
	return nil
}
