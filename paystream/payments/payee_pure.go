package payments

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// MaxInvoices bounds the invoices of a node. They are the operator's own: nothing
// that a peer sends makes one.
const MaxInvoices = 1 << 20

// InvoiceStatus is where an invoice is. The numbers are in records: add at the
// end.
type InvoiceStatus uint8

// States of an invoice.
const (
	// InvoiceOpen: it can be paid; parts may wait.
	InvoiceOpen InvoiceStatus = iota + 1
	// InvoiceHeld: all parts are here, and the operator has to decide.
	InvoiceHeld
	// InvoicePaid: its parts are claimed. Final.
	InvoicePaid
	// InvoiceCancelled: it will not be paid. Final.
	InvoiceCancelled
	// InvoiceExpired is open, past its time, and without parts. It is never saved.
	InvoiceExpired
)

var invoiceWords = [...]string{"unset", "open", "held", "paid", "cancelled", "expired"}

// String is the word that commands show.
func (s InvoiceStatus) String() string {
	if int(s) < len(invoiceWords) {
		return invoiceWords[s]
	}
	return "unknown"
}

// Receivable is one row of the invoices table: what we handed out to be paid, and
// what came of it. Times are in milliseconds since 1970.
type Receivable struct {
	Hash tally.Hashlock
	// Point is 0, or the first byte of the point whose x is Hash: Preimage is the secret
	// that is sold, Offer the text that was handed out, and Name how its maker calls it.
	Point  byte
	Offer  OfferText
	Name   string
	Secret Secret
	// Amount is the least that is taken; 0: any.
	Amount tally.Amount
	// Expires is until when a first part may come.
	Expires int64
	Created int64
	Memo    string
	// Hold: the operator decides when all parts are here. Known says that Preimage
	// is set; of a hold invoice it may come with the decision.
	Hold     bool
	Known    bool
	Preimage tally.Preimage

	Status InvoiceStatus
	// First is when the first of the parts that wait arrived; 0: none waits, or
	// all are here. Total is what they sum up to when they are.
	First int64
	Total tally.Amount
	// Received is what was claimed, PaidAt when, and Lost what of it the carrier
	// could not collect.
	Received, Lost tally.Amount
	PaidAt         int64
}

// InState is where a part that arrived is. The numbers are in records.
type InState uint8

// States of a part that arrived.
const (
	// InWaiting: for the others, or for the operator.
	InWaiting InState = iota + 1
	// InClaiming: claimed; the carrier has not yet said that it has saved that.
	InClaiming
	// InRejecting: given back; the carrier has not yet said that it has saved that.
	InRejecting
)

// InPart is one row of the parts that arrived and that the carrier has not ended.
type InPart struct {
	PartID PartID
	Hash   tally.Hashlock
	// From is the neighbour that brought it.
	From     peer.ID
	Amount   tally.Amount
	Number   uint64
	Received int64
	Expires  int64
	State    InState
	Code     FailCode // of InRejecting
}

func (p *InPart) hasTime(now int64) bool { return p.Expires-now >= marginMS }

// Arrival is a part as its carrier brings it.
type Arrival struct {
	PartID PartID
	Hash   tally.Hashlock
	// Point is 0, or the first byte of the point whose x is Hash.
	Point   byte
	From    peer.ID
	Amount  tally.Amount
	Expires int64
	Data    []byte
}

// PayeeEventKind names what happened to the payee.
type PayeeEventKind uint8

// Kinds of event. Each says which fields it reads.
const (
	// PayeeAdd: Invoice is handed out.
	PayeeAdd PayeeEventKind = iota + 1
	// PayeePart: Arrival is here. It may come again after a restart.
	PayeePart
	// PayeeTick: time has passed; see Payee.Next.
	PayeeTick
	// PayeeSettle: the operator takes the held invoice Hash; Preimage where it was
	// not known.
	PayeeSettle
	// PayeeCancel: the operator gives the invoice Hash up.
	PayeeCancel
	// PayeeDone: the carrier has saved what we decided about PartID.
	PayeeDone
	// PayeeGone: the carrier does not have PartID any more.
	PayeeGone
	// PayeeRestart: what was decided before a restart is told again.
	PayeeRestart
)

// PayeeEvent is one input of Payee.Step.
type PayeeEvent struct {
	Kind     PayeeEventKind
	Invoice  *Receivable
	Arrival  *Arrival
	Hash     tally.Hashlock
	Preimage tally.Preimage
	PartID   PartID
}

// receivable is a row with what is derived from its parts.
type receivable struct {
	Receivable
	waiting []*InPart // as they came
	sum     tally.Amount
}

// Payee is the core of whoever is paid: invoices, and the parts that wait for
// each other.
//
//	                    60 s from the first, or no time left: rejected
//	                  ┌────────────────────────────────────────────────┐
//	                  ▼                                                │
//	open ── part ──▶ waiting ── sum ≥ total ──▶ paid, parts claiming   │
//	                  │                           ▲                    │
//	                  └── hold invoice ──▶ held ──┴── settle           │
//	                                         └── cancel, no time left ─┘
//
// A claim and a time-out exclude each other, because one step does either. It is
// pure, and has one owner.
type Payee struct {
	invoices map[tally.Hashlock]*receivable
	parts    map[PartID]*InPart
	// busy are the invoices whose parts wait.
	busy map[tally.Hashlock]*receivable
	// names are the hashes of what has a name.
	names map[string]tally.Hashlock
	curve opener
}

// NewPayee returns empty tables.
func NewPayee() *Payee {
	return &Payee{
		invoices: make(map[tally.Hashlock]*receivable), parts: make(map[PartID]*InPart),
		busy: make(map[tally.Hashlock]*receivable), names: make(map[string]tally.Hashlock),
	}
}

// Step applies one event and appends to fx what the shell has to do, saves first.
// now is in milliseconds since 1970. On an error nothing has changed.
func (p *Payee) Step(now int64, ev *PayeeEvent, fx []Effect) ([]Effect, error) {
	before := len(fx)
	fx, err := p.apply(now, ev, fx)
	// One event may end several things; what they save goes into one batch, before
	// the first of them is told.
	slices.SortStableFunc(fx[before:], func(a, b Effect) int { return cmp.Compare(a.Kind.late(), b.Kind.late()) })
	return fx, err
}

func (p *Payee) apply(now int64, ev *PayeeEvent, fx []Effect) ([]Effect, error) {
	switch ev.Kind {
	case PayeeAdd:
		return p.addInvoice(now, ev.Invoice, fx)
	case PayeePart:
		return p.arrive(now, ev.Arrival, fx), nil
	case PayeeTick:
		for _, inv := range p.sorted() {
			fx = p.expire(now, inv, fx)
		}
		return fx, nil
	case PayeeSettle:
		return p.settle(now, ev, fx)
	case PayeeCancel:
		return p.cancel(ev.Hash, fx)
	case PayeeDone:
		return p.done(ev.PartID, fx), nil
	case PayeeGone:
		return p.gone(ev.PartID, fx), nil
	case PayeeRestart:
		return p.restart(fx), nil
	default:
		return fx, fmt.Errorf("payments: no such event of a payee: %d", ev.Kind)
	}
}

func (p *Payee) addInvoice(now int64, inv *Receivable, fx []Effect) ([]Effect, error) {
	invalid := func(reason, remedy string) ([]Effect, error) {
		return fx, &Error{Code: CodeInvalid, Reason: reason, Remedy: remedy}
	}
	switch {
	case inv.Amount >= MaxTotal:
		return invalid("amount is 2^62 or more", "ask for less")
	case inv.Expires <= now:
		return invalid("the invoice would have expired", "give it more time")
	case len(inv.Memo) > MaxMemo:
		return invalid(fmt.Sprintf("the memo has %d bytes", len(inv.Memo)), fmt.Sprintf("use at most %d", MaxMemo))
	case !validPoint(inv.Point), (inv.Point == 0) != (inv.Offer == ""), (inv.Point == 0) != (inv.Name == ""), len(inv.Offer) > MaxInvoiceText, len(inv.Name) > MaxName:
		return invalid("what is sold has no offer, or a name that is too long", fmt.Sprintf("use a name of at most %d bytes", MaxName))
	case inv.Known && !p.curve.opens(inv.Point, inv.Hash, &inv.Preimage):
		return invalid("the preimage does not open the hash", "give the one that belongs to it")
	case !inv.Known && !inv.Hold:
		return invalid("no preimage", "give one, or make it a hold invoice")
	case len(p.invoices) >= MaxInvoices:
		return fx, &Error{Code: CodeBound, Reason: fmt.Sprintf("there are %d invoices", MaxInvoices), Remedy: "start a new node for the next ones"}
	}
	if p.invoices[inv.Hash] != nil {
		// A second invoice with one hash could be paid with a preimage that the
		// first payer and its hops have seen.
		return fx, &Error{Code: CodeConflict, Reason: "there is an invoice with this hash", Remedy: "draw a new preimage"}
	}
	if _, taken := p.names[inv.Name]; taken {
		return fx, &Error{Code: CodeConflict, Reason: "there is an offer with this name", Remedy: "choose another one"}
	}
	r := &receivable{Receivable: *inv}
	r.Status, r.Created, r.First, r.Total, r.Received, r.Lost, r.PaidAt = InvoiceOpen, now, 0, 0, 0, 0, 0
	p.keep(r)
	return save(fx, invoiceKey(inv.Hash), r.record()), nil
}

func (p *Payee) keep(r *receivable) {
	p.invoices[r.Hash] = r
	if r.Name != "" {
		p.names[r.Name] = r.Hash
	}
}

// nobody is the secret that stands in where there is no invoice, so that an
// unknown hash takes the way of a wrong secret.
var nobody Secret

// arrive takes a part, or rejects it with the one answer.
func (p *Payee) arrive(now int64, a *Arrival, fx []Effect) []Effect {
	if part := p.parts[a.PartID]; part != nil {
		// Its carrier tells it again. Part ids in flight are unique there, so that
		// this is no other one.
		return p.again(part, fx)
	}
	inv := p.invoices[a.Hash]
	secret := &nobody
	if inv != nil {
		fx = p.expire(now, inv, fx)
		secret = &inv.Secret
	}
	d, err := OpenPart(secret, a.Hash, a.PartID, a.Data)
	if err != nil || inv == nil || !inv.takes(now, a, &d) {
		return append(fx, Effect{Kind: FxReject, PartID: a.PartID, Hash: a.Hash, Code: FailRefused})
	}
	part := &InPart{
		PartID: a.PartID, Hash: a.Hash, From: a.From, Amount: a.Amount, Number: d.Number,
		Received: now, Expires: a.Expires, State: InWaiting,
	}
	if len(inv.waiting) == 0 {
		inv.First, inv.Total = now, d.Total
		p.busy[inv.Hash] = inv
	}
	p.parts[part.PartID] = part
	inv.waiting = append(inv.waiting, part)
	inv.sum += part.Amount // takes has looked that it is at most 2 × total
	switch {
	case inv.sum < inv.Total:
		fx = save(fx, invoiceKey(inv.Hash), inv.record())
		return save(fx, inKey(part.PartID), part.record())
	case inv.Hold:
		inv.Status, inv.First = InvoiceHeld, 0
		fx = save(fx, invoiceKey(inv.Hash), inv.record())
		fx = save(fx, inKey(part.PartID), part.record())
		return append(fx, Effect{Kind: FxWakeInvoice, Hash: inv.Hash})
	default:
		return p.claim(now, inv, fx)
	}
}

// takes says whether a part is one of this invoice's. What it refuses is told to
// the payer with one and the same answer.
func (r *receivable) takes(now int64, a *Arrival, d *PartData) bool {
	switch {
	case r.Status != InvoiceOpen: // paid, held or cancelled
		return false
	case a.Point != r.Point: // a lock that the preimage does not open
		return false
	case len(r.waiting) == 0 && now >= r.Expires:
		return false
	case d.Amount == 0 || a.Amount < d.Amount: // a hop took more than its fee
		return false
	case a.Expires-now < marginMS:
		return false
	case d.Total == 0 || d.Total >= MaxTotal || d.Total < r.Amount || r.Amount > 0 && d.Total > 2*r.Amount:
		return false
	case len(r.waiting) > 0 && d.Total != r.Total: // only the newcomer
		return false
	case len(r.waiting) >= MaxParts:
		return false
	case a.Amount >= MaxTotal || r.sum+a.Amount > 2*d.Total:
		return false
	default:
		return true
	}
}

// claim is the one door to paid: invoice, preimage and all parts in one batch,
// then the fulfils.
func (p *Payee) claim(now int64, inv *receivable, fx []Effect) []Effect {
	inv.Status, inv.Received, inv.PaidAt, inv.First = InvoicePaid, inv.sum, now, 0
	fx = save(fx, invoiceKey(inv.Hash), inv.record())
	for _, part := range inv.waiting {
		part.State = InClaiming
		fx = save(fx, inKey(part.PartID), part.record())
	}
	for _, part := range inv.waiting {
		fx = append(fx, Effect{Kind: FxFulfil, PartID: part.PartID, Hash: inv.Hash, Preimage: inv.Preimage})
	}
	p.empty(inv)
	return append(fx, Effect{Kind: FxWakeInvoice, Hash: inv.Hash})
}

func (p *Payee) empty(inv *receivable) {
	inv.waiting, inv.sum = nil, 0
	delete(p.busy, inv.Hash)
}

// again tells the carrier what was decided about a part, if it was.
func (p *Payee) again(part *InPart, fx []Effect) []Effect {
	switch part.State {
	case InClaiming:
		return append(fx, Effect{Kind: FxFulfil, PartID: part.PartID, Hash: part.Hash, Preimage: p.invoices[part.Hash].Preimage})
	case InRejecting:
		return append(fx, Effect{Kind: FxReject, PartID: part.PartID, Hash: part.Hash, Code: part.Code})
	default:
		return fx
	}
}

// restart tells all again that was decided, in the order of the part ids.
func (p *Payee) restart(fx []Effect) []Effect {
	for _, id := range p.Arrived() {
		fx = p.again(p.parts[id], fx)
	}
	return fx
}

// expire gives back what has waited long enough, and what has no time left. Of a
// held invoice that is all: it was complete, and is not any more.
func (p *Payee) expire(now int64, inv *receivable, fx []Effect) []Effect {
	if len(inv.waiting) == 0 {
		return fx
	}
	over := inv.Status == InvoiceOpen && now >= inv.First+assemblyMS
	late := slices.ContainsFunc(inv.waiting, func(part *InPart) bool { return !part.hasTime(now) })
	if inv.Status == InvoiceHeld && late {
		over = true
	}
	if !over && !late {
		return fx
	}
	return p.giveBack(inv, FailTimeout, func(part *InPart) bool { return over || !part.hasTime(now) }, fx)
}

// giveBack rejects those of the parts that wait which f picks. An invoice without
// parts is open again.
func (p *Payee) giveBack(inv *receivable, code FailCode, f func(*InPart) bool, fx []Effect) []Effect {
	var kept, back []*InPart
	for _, part := range inv.waiting {
		if !f(part) {
			kept = append(kept, part)
			continue
		}
		part.State, part.Code = InRejecting, code
		inv.sum -= part.Amount
		back = append(back, part)
	}
	inv.waiting = kept
	woken := false
	if len(kept) == 0 {
		woken = inv.Status == InvoiceHeld
		if woken {
			inv.Status = InvoiceOpen
		}
		inv.First, inv.Total = 0, 0
		p.empty(inv)
	}
	fx = save(fx, invoiceKey(inv.Hash), inv.record())
	for _, part := range back {
		fx = save(fx, inKey(part.PartID), part.record())
	}
	for _, part := range back {
		fx = append(fx, Effect{Kind: FxReject, PartID: part.PartID, Hash: part.Hash, Code: part.Code})
	}
	if woken {
		fx = append(fx, Effect{Kind: FxWakeInvoice, Hash: inv.Hash})
	}
	return fx
}

func (p *Payee) find(h tally.Hashlock) (*receivable, error) {
	if inv := p.invoices[h]; inv != nil {
		return inv, nil
	}
	return nil, &Error{Code: CodeNotFound, Reason: "no invoice with this hash", Remedy: "see listinvoices"}
}

func (p *Payee) settle(now int64, ev *PayeeEvent, fx []Effect) ([]Effect, error) {
	inv, err := p.find(ev.Hash)
	if err != nil {
		return fx, err
	}
	if inv.Status != InvoiceHeld {
		return fx, &Error{Code: CodeConflict, Reason: "the invoice is " + p.word(now, inv).String() + ", not held", Remedy: "settle when all its parts are here"}
	}
	if slices.ContainsFunc(inv.waiting, func(part *InPart) bool { return !part.hasTime(now) }) {
		return fx, &Error{Code: CodeConflict, Reason: "a part has no time left", Remedy: "settle earlier; the payer has its money back"}
	}
	preimage := ev.Preimage
	if inv.Known {
		preimage = inv.Preimage
	}
	if !p.curve.opens(inv.Point, inv.Hash, &preimage) {
		return fx, &Error{Code: CodeInvalid, Reason: "the preimage does not open the hash", Remedy: "give the one that belongs to it"}
	}
	inv.Preimage, inv.Known = preimage, true
	return p.claim(now, inv, fx), nil
}

func (p *Payee) cancel(h tally.Hashlock, fx []Effect) ([]Effect, error) {
	inv, err := p.find(h)
	if err != nil {
		return fx, err
	}
	switch inv.Status {
	case InvoicePaid:
		return fx, &Error{Code: CodeConflict, Reason: "the invoice is paid", Remedy: "pay the money back by a payment"}
	case InvoiceCancelled:
		return fx, nil
	}
	inv.Status = InvoiceCancelled
	fx = p.giveBack(inv, FailRefused, func(*InPart) bool { return true }, fx)
	return append(fx, Effect{Kind: FxWakeInvoice, Hash: h}), nil
}

// done: the carrier keeps the decision from here.
func (p *Payee) done(id PartID, fx []Effect) []Effect {
	part := p.parts[id]
	if part == nil || part.State == InWaiting {
		return fx
	}
	delete(p.parts, id)
	return save(fx, inKey(id), nil)
}

// gone: the carrier has lost the part, or its time was over there. What waited is
// not counted any more. What was claimed is lost, and that is never hidden.
func (p *Payee) gone(id PartID, fx []Effect) []Effect {
	part := p.parts[id]
	if part == nil {
		return fx
	}
	inv := p.invoices[part.Hash]
	delete(p.parts, id)
	switch part.State {
	case InWaiting:
		inv.waiting = slices.DeleteFunc(inv.waiting, func(q *InPart) bool { return q == part })
		inv.sum -= part.Amount
		fx = save(fx, inKey(id), nil)
		if inv.Status == InvoiceHeld || len(inv.waiting) == 0 {
			// What was complete is not any more; nobody waits a second time.
			return p.giveBack(inv, FailTimeout, func(*InPart) bool { return true }, fx)
		}
		return save(fx, invoiceKey(inv.Hash), inv.record())
	case InClaiming:
		inv.Lost += part.Amount
		fx = save(fx, invoiceKey(inv.Hash), inv.record())
		fx = save(fx, inKey(id), nil)
		return append(fx, Effect{Kind: FxLost, PartID: id, Hash: part.Hash, Amount: part.Amount})
	default:
		return save(fx, inKey(id), nil)
	}
}

// Next is when a tick is due, and false where nothing waits for time.
func (p *Payee) Next() (int64, bool) {
	var next int64
	found := false
	for _, inv := range p.busy {
		if inv.Status == InvoiceOpen && (!found || inv.First+assemblyMS < next) {
			next, found = inv.First+assemblyMS, true
		}
		for _, part := range inv.waiting {
			if at := part.Expires - marginMS + 1; !found || at < next {
				next, found = at, true
			}
		}
	}
	return next, found
}

func (p *Payee) sorted() []*receivable {
	list := make([]*receivable, 0, len(p.busy))
	for _, inv := range p.busy {
		list = append(list, inv)
	}
	slices.SortFunc(list, func(a, b *receivable) int { return slices.Compare(a.Hash[:], b.Hash[:]) })
	return list
}

func (p *Payee) word(now int64, inv *receivable) InvoiceStatus {
	if inv.Status == InvoiceOpen && len(inv.waiting) == 0 && now >= inv.Expires {
		return InvoiceExpired
	}
	return inv.Status
}

// InvoiceView is an invoice as commands show it.
type InvoiceView struct {
	Receivable
	// Waiting is the sum of the parts that are here and not claimed.
	Waiting tally.Amount
	Parts   int
}

// Invoice returns one invoice.
func (p *Payee) Invoice(now int64, h tally.Hashlock) (InvoiceView, bool) {
	inv := p.invoices[h]
	if inv == nil {
		return InvoiceView{}, false
	}
	v := InvoiceView{Receivable: inv.Receivable, Waiting: inv.sum, Parts: len(inv.waiting)}
	v.Status = p.word(now, inv)
	return v, true
}

// Invoices returns all invoices, oldest first.
func (p *Payee) Invoices(now int64) []InvoiceView {
	list := make([]InvoiceView, 0, len(p.invoices))
	for h := range p.invoices {
		v, _ := p.Invoice(now, h)
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b InvoiceView) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), slices.Compare(a.Hash[:], b.Hash[:]))
	})
	return list
}

// PartialInvoice is one line of listpartialinvoices: a part that arrived and is
// not claimed.
type PartialInvoice struct {
	InPart
	Total tally.Amount
	// Deadline is when it goes back unless the others come, or the operator
	// decides.
	Deadline int64
}

// Partial returns the parts that wait, all or those of one invoice, as they came.
func (p *Payee) Partial(only *tally.Hashlock) []PartialInvoice {
	var list []PartialInvoice
	for _, inv := range p.sorted() {
		if only != nil && *only != inv.Hash {
			continue
		}
		for _, part := range inv.waiting {
			line := PartialInvoice{InPart: *part, Total: inv.Total, Deadline: part.Expires - marginMS}
			if inv.Status == InvoiceOpen {
				line.Deadline = min(line.Deadline, inv.First+assemblyMS)
			}
			list = append(list, line)
		}
	}
	return list
}

// Arrived returns the ids of all parts that the carrier has not ended, sorted.
func (p *Payee) Arrived() []PartID {
	list := make([]PartID, 0, len(p.parts))
	for id := range p.parts {
		list = append(list, id)
	}
	slices.SortFunc(list, func(a, b PartID) int { return slices.Compare(a[:], b[:]) })
	return list
}

// Bits of an invoice's record.
const (
	recHold byte = 1 << iota
	recKnown
)

func (r *Receivable) record() []byte {
	var flags byte
	if r.Hold {
		flags |= recHold
	}
	if r.Known {
		flags |= recKnown
	}
	b := append([]byte{byte(r.Status), flags}, r.Secret[:]...)
	b = appendUint(b, uint64(r.Amount), uint64(r.Expires), uint64(r.Created), uint64(r.First), uint64(r.Total),
		uint64(r.Received), uint64(r.Lost), uint64(r.PaidAt))
	if r.Known {
		b = append(b, r.Preimage[:]...)
	}
	b = appendUint(b, uint64(len(r.Memo)))
	b = append(b, r.Memo...)
	if r.Point != 0 {
		b = appendText(appendShort(append(b, r.Point), r.Name), string(r.Offer))
	}
	return b
}

// RestoreInvoice takes a row of an earlier run, before its parts.
func (p *Payee) RestoreInvoice(h tally.Hashlock, rec []byte) error {
	d := reader{b: rec}
	r := &receivable{Receivable: Receivable{Hash: h, Status: InvoiceStatus(d.byte())}}
	flags := d.byte()
	r.Hold, r.Known = flags&recHold != 0, flags&recKnown != 0
	r.Secret, r.Amount = d.digest(), d.amount()
	r.Expires, r.Created, r.First, r.Total = int64(d.uint()), int64(d.uint()), int64(d.uint()), d.amount()
	r.Received, r.Lost, r.PaidAt = d.amount(), d.amount(), int64(d.uint())
	if r.Known {
		r.Preimage = d.digest()
	}
	n := d.uint()
	if n > MaxMemo {
		n, d.bad = 0, true
	}
	r.Memo = string(d.take(int(n)))
	if len(d.b) > 0 {
		r.Point, r.Name, r.Offer = d.point(), d.short(), OfferText(d.text(MaxInvoiceText))
		d.bad = d.bad || r.Name == ""
	}
	_, twice := p.names[r.Name]
	d.bad = d.bad || twice || len(r.Name) > MaxName
	d.bad = d.bad || flags > recHold|recKnown || r.Status < InvoiceOpen || r.Status > InvoiceCancelled ||
		r.Known && !p.curve.opens(r.Point, h, &r.Preimage) || !r.Known && (!r.Hold || r.Status == InvoicePaid) ||
		r.Amount >= MaxTotal || r.Total >= MaxTotal
	if err := d.end("invoice " + h.String()); err != nil {
		return err
	}
	p.keep(r)
	return nil
}

func (p *InPart) record() []byte {
	b := append([]byte{byte(p.State), byte(p.Code)}, p.Hash[:]...)
	b = appendUint(b, uint64(p.Amount), p.Number, uint64(p.Received), uint64(p.Expires))
	return appendShort(b, string(p.From))
}

// RestorePart takes a row of an earlier run.
func (p *Payee) RestorePart(id PartID, rec []byte) error {
	d := reader{b: rec}
	part := &InPart{PartID: id, State: InState(d.byte()), Code: FailCode(d.byte()), Hash: d.digest()}
	part.Amount, part.Number, part.Received, part.Expires = d.amount(), d.uint(), int64(d.uint()), int64(d.uint())
	part.From = d.peer()
	inv := p.invoices[part.Hash]
	d.bad = d.bad || inv == nil || part.Amount == 0 || part.Amount >= MaxTotal
	if !d.bad {
		switch part.State {
		case InWaiting:
			d.bad = inv.Status != InvoiceOpen && inv.Status != InvoiceHeld || inv.Total == 0 || inv.sum+part.Amount > 2*inv.Total
		case InClaiming:
			d.bad = inv.Status != InvoicePaid
		case InRejecting:
		default:
			d.bad = true
		}
	}
	if err := d.end("part " + id.String()); err != nil {
		return err
	}
	p.parts[id] = part
	if part.State == InWaiting {
		inv.waiting = append(inv.waiting, part)
		inv.sum += part.Amount
		p.busy[inv.Hash] = inv
		slices.SortStableFunc(inv.waiting, func(a, b *InPart) int { return cmp.Compare(a.Received, b.Received) })
	}
	return nil
}

// Check returns the first broken invariant, by name.
func (p *Payee) Check() error {
	waiting := 0
	for h, inv := range p.invoices {
		var sum tally.Amount
		for _, part := range inv.waiting {
			if p.parts[part.PartID] != part || part.Hash != h || part.State != InWaiting {
				return broken("in-index", "invoice %s: part %s", h, part.PartID)
			}
			if inv.Status == InvoiceOpen && part.Received < inv.First {
				return broken("first-part", "invoice %s: part of %d before the first of %d", h, part.Received, inv.First)
			}
			sum += part.Amount
		}
		waiting += len(inv.waiting)
		switch {
		case sum != inv.sum || sum > 2*inv.Total:
			return broken("in-sum", "invoice %s: %d waiting, counted %d, of %d", h, inv.sum, sum, inv.Total)
		case len(inv.waiting) > MaxParts:
			return broken("bounds", "invoice %s: %d parts", h, len(inv.waiting))
		case (len(inv.waiting) > 0) != (p.busy[h] != nil):
			return broken("busy", "invoice %s: %d parts", h, len(inv.waiting))
		case inv.Status == InvoiceOpen && (len(inv.waiting) > 0) != (inv.First > 0):
			return broken("timer", "invoice %s: %d parts, first at %d", h, len(inv.waiting), inv.First)
		case inv.Status == InvoiceOpen && sum >= inv.Total && sum > 0:
			return broken("claim-at-once", "invoice %s: %d of %d is here and not claimed", h, sum, inv.Total)
		case inv.Status == InvoiceHeld && (sum < inv.Total || inv.First != 0):
			return broken("held-whole", "invoice %s: %d of %d, first at %d", h, sum, inv.Total, inv.First)
		case inv.Status == InvoicePaid && (len(inv.waiting) > 0 || inv.Received < max(1, inv.Amount) || inv.Received < inv.Total || !p.curve.opens(inv.Point, h, &inv.Preimage)):
			return broken("paid-whole", "invoice %s: received %d of %d, %d parts wait", h, inv.Received, inv.Total, len(inv.waiting))
		case inv.Name != "" && p.names[inv.Name] != h:
			return broken("names", "invoice %s is not found by its name", h)
		case inv.Status != InvoicePaid && inv.Received > 0:
			return broken("claim-or-not", "invoice %s is %s and received %d", h, inv.Status, inv.Received)
		case inv.Status == InvoiceCancelled && len(inv.waiting) > 0:
			return broken("claim-or-not", "invoice %s is cancelled and %d parts wait", h, len(inv.waiting))
		}
	}
	for id, part := range p.parts {
		if part.PartID != id || p.invoices[part.Hash] == nil {
			return broken("in-index", "part %s", id)
		}
		if part.State == InWaiting {
			waiting--
		}
		if part.State == InClaiming && p.invoices[part.Hash].Status != InvoicePaid {
			return broken("claim-or-not", "part %s is claimed and its invoice is not paid", id)
		}
	}
	if waiting != 0 {
		return broken("in-index", "%d waiting parts are of no invoice", -waiting)
	}
	return nil
}
