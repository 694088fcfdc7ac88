package hold

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// ReceiptState is that of money that was offered to us. The numbers are in records:
// add at the end.
type ReceiptState uint8

// States of a receipt.
const (
	// ReceiptClaiming: the claim is saved, and shown as soon as it can be.
	ReceiptClaiming ReceiptState = iota + 1
	// ReceiptReceived: it is saved where the part is carried.
	ReceiptReceived
	// ReceiptUnsure: we stopped between the two, and were away until the offer was
	// over. The tab has it or has not. If it has not, the holder offers the hold
	// again, and then this receipt goes.
	ReceiptUnsure
)

var receiptWords = [...]string{"unset", "claiming", "received", "unsure"}

// String is the word that commands show.
func (s ReceiptState) String() string {
	if int(s) < len(receiptWords) {
		return receiptWords[s]
	}
	return "unknown"
}

// Receipt is one offer that we took.
type Receipt struct {
	PartID payments.PartID
	Hold   ID
	Holder peer.ID
	Hash   tally.Hashlock
	Amount tally.Amount
	// Sealed is the least that the payer wanted us to have.
	Sealed   tally.Amount
	At       int64 // ms since 1970
	Expires  int64 // of the offer
	State    ReceiptState
	Memo     string
	Preimage tally.Preimage
}

// Given is a promise of ours, with its preimage.
type Given struct {
	Promise
	Preimage tally.Preimage
	// Used is the hold that was paid for it; zero: none yet.
	Used ID
}

// InKind names what happened to a payee.
type InKind uint8

// Kinds of event.
const (
	// InPromise: Given is handed out.
	InPromise InKind = iota + 1
	// InListed: the holder Peer says that it has Terms for us.
	InListed
	// InOffer: Arrival, of a holder, is here.
	InOffer
	// InDone: the claim of PartID is saved where it is carried. InGone: it was not
	// here any more.
	InDone
	InGone
	// InRestart: the rows were restored, and the parts in Waiting are here.
	InRestart
	// InTick: some time passed.
	InTick
)

// InEvent is one input of Step.
type InEvent struct {
	Kind    InKind
	Given   *Given
	Peer    peer.ID
	Terms   *Terms
	Arrival *payments.Arrival
	PartID  payments.PartID
	Waiting map[payments.PartID]bool
}

// opener is the part of Key that the core needs: pure, and settable in tests.
type opener interface {
	Open(b *Bound, box []byte) (Sealed, error)
}

// Payee is the core of a payee: what it promised, and what it was paid. It is pure.
// Whatever a holder says in its list is checked again when the money is here.
type Payee struct {
	self     peer.ID
	key      opener // nil: nothing can be sealed to us
	receipts map[payments.PartID]*Receipt
	given    map[tally.Hashlock]*Given
}

// NewPayee returns a core without receipts. key is nil where our peer id is of a
// kind that no box can be sealed to.
func NewPayee(self peer.ID, key opener) *Payee {
	return &Payee{self: self, key: key, receipts: make(map[payments.PartID]*Receipt), given: make(map[tally.Hashlock]*Given)}
}

// Receipts returns all, the oldest first.
func (p *Payee) Receipts() []Receipt {
	list := make([]Receipt, 0, len(p.receipts))
	for _, r := range p.receipts {
		list = append(list, *r)
	}
	slices.SortFunc(list, func(a, b Receipt) int { return byAge(a.At, b.At, a.PartID, b.PartID) })
	return list
}

// Given returns what was promised for a hash.
func (p *Payee) Given(h tally.Hashlock) (Given, bool) {
	if g := p.given[h]; g != nil {
		return *g, true
	}
	return Given{}, false
}

// Owns reports whether a part is one that we claimed.
func (p *Payee) Owns(id payments.PartID) bool { return p.receipts[id] != nil }

// Step applies one event. now is in milliseconds since 1970. On an error nothing has
// changed.
func (p *Payee) Step(now int64, ev *InEvent, fx []Effect) ([]Effect, error) {
	switch ev.Kind {
	case InPromise:
		return p.promise(now, ev.Given, fx)
	case InListed:
		return p.listed(now, ev, fx), nil
	case InOffer:
		return p.offered(now, ev.Arrival, fx), nil
	case InDone:
		if r := p.receipts[ev.PartID]; r != nil && r.State == ReceiptClaiming {
			r.State = ReceiptReceived
			return append(p.save(r, fx), Effect{Kind: FxWake, ID: r.Hold}), nil
		}
		return fx, nil
	case InGone:
		return p.gone(ev.PartID, fx), nil
	case InRestart:
		return p.restart(now, ev.Waiting, fx), nil
	case InTick:
		return p.tick(now, fx), nil
	default:
		return fx, ErrTerms
	}
}

func (p *Payee) promise(now int64, g *Given, fx []Effect) ([]Effect, error) {
	switch {
	case g.Validate() != nil || g.Payee != p.self || !g.Preimage.Opens(g.Hash),
		g.Expires <= now || g.Expires > now+MaxPromiseTime.Milliseconds():
		return fx, ErrTerms
	case p.given[g.Hash] != nil:
		return fx, ErrConflict
	case len(p.given) >= MaxPromises:
		return fx, ErrBound
	}
	cp := *g
	p.given[g.Hash] = &cp
	return append(fx, saveRecord(givenKey(g.Hash), cp.record())), nil
}

// claim is what we would show for a hold.
type claim struct {
	preimage tally.Preimage
	least    tally.Amount
	memo     string
	given    *Given
}

// want decides whether a hold is one of ours, and for how much at the least: it is
// sealed to us, or it has a hash that we gave out and that no other hold was paid
// for.
func (p *Payee) want(now int64, b *Bound, box []byte) (claim, bool) {
	if len(box) == 0 {
		g := p.given[b.Hash]
		if g == nil || g.Used != (ID{}) && g.Used != b.ID || now >= g.Expires {
			return claim{}, false
		}
		return claim{preimage: g.Preimage, least: g.Promise.Amount, given: g}, true
	}
	if p.key == nil {
		return claim{}, false
	}
	s, err := p.key.Open(b, box)
	if err != nil || now >= s.Expires {
		return claim{}, false
	}
	return claim{preimage: s.Preimage, least: s.Amount, memo: s.Memo}, true
}

// listed asks for what is for us, and gives up what we should refuse anyway, so that
// the payer has its money back at once.
func (p *Payee) listed(now int64, ev *InEvent, fx []Effect) []Effect {
	t := ev.Terms
	if t.Holder != ev.Peer || t.Payee != p.self {
		return fx
	}
	c, ok := p.want(now, t.bound(), t.Box)
	if !ok || t.Amount < c.least {
		return append(fx, Effect{Kind: FxCancel, Peer: ev.Peer, ID: t.ID})
	}
	return append(fx, Effect{Kind: FxRelease, Peer: ev.Peer, ID: t.ID})
}

// offered takes money of a holder and shows the preimage for it, or does neither.
func (p *Payee) offered(now int64, a *payments.Arrival, fx []Effect) []Effect {
	if r := p.receipts[a.PartID]; r != nil { // told again after a restart
		return append(fx, Effect{Kind: FxFulfil, PartID: r.PartID, ID: r.Hold, Preimage: r.Preimage})
	}
	refuse := append(fx, Effect{Kind: FxReject, PartID: a.PartID, Code: payments.FailRefused})
	id, box, ok := parseOffer(a.Data)
	if !ok {
		return refuse
	}
	b := &Bound{ID: id, Hash: a.Hash, Holder: a.From}
	c, ok := p.want(now, b, box)
	// Less than was sealed is refused whatever else is right: the holder would keep
	// the rest.
	if !ok || a.Amount < c.least || a.Expires-now < ShowMargin.Milliseconds() {
		return refuse
	}
	if len(p.receipts) >= MaxReceipts && !p.dropOldest(&fx) {
		return append(fx, Effect{Kind: FxReject, PartID: a.PartID, Code: payments.FailHop})
	}
	r := &Receipt{
		PartID: a.PartID, Hold: id, Holder: a.From, Hash: a.Hash, Amount: a.Amount, Sealed: c.least, At: now,
		Expires: a.Expires, State: ReceiptClaiming, Memo: c.memo, Preimage: c.preimage,
	}
	for _, old := range p.receipts {
		if old.Hold == id && old.Holder == a.From && old.State == ReceiptUnsure { // it was not
			delete(p.receipts, old.PartID)
			fx = append(fx, saveRecord(receiptKey(old.PartID), nil))
		}
	}
	p.receipts[a.PartID] = r
	if c.given != nil && c.given.Used != id {
		c.given.Used = id
		fx = append(fx, saveRecord(givenKey(a.Hash), c.given.record()))
	}
	return append(p.save(r, fx), Effect{Kind: FxFulfil, PartID: a.PartID, ID: id, Preimage: c.preimage})
}

// parseOffer reads the data of an offer.
func parseOffer(data []byte) (id ID, box []byte, ok bool) {
	const head = 1 + len(id)
	if len(data) != head && len(data) != OfferSize || data[0] != kindOffer {
		return ID{}, nil, false
	}
	return ID(data[1:head]), data[head:], true
}

// dropOldest makes room for a receipt, and says whether it could.
func (p *Payee) dropOldest(fx *[]Effect) bool {
	var oldest *Receipt
	for _, r := range p.receipts {
		if r.State != ReceiptClaiming && (oldest == nil || byAge(r.At, oldest.At, r.PartID, oldest.PartID) < 0) {
			oldest = r
		}
	}
	if oldest == nil {
		return false
	}
	delete(p.receipts, oldest.PartID)
	*fx = append(*fx, saveRecord(receiptKey(oldest.PartID), nil))
	return true
}

func (p *Payee) save(r *Receipt, fx []Effect) []Effect {
	return append(fx, saveRecord(receiptKey(r.PartID), r.record()))
}

// gone: nothing was shown, and the holder has its money; it offers again. A promise
// stays with its hold.
func (p *Payee) gone(id payments.PartID, fx []Effect) []Effect {
	r := p.receipts[id]
	if r == nil || r.State != ReceiptClaiming {
		return fx
	}
	delete(p.receipts, id)
	return append(fx, saveRecord(receiptKey(id), nil), Effect{Kind: FxWake, ID: r.Hold})
}

// restart shows again what is claimed. What does not wait any more was shown, unless
// it may have ended by itself meanwhile.
func (p *Payee) restart(now int64, waiting map[payments.PartID]bool, fx []Effect) []Effect {
	for _, r := range p.Receipts() {
		row := p.receipts[r.PartID]
		switch {
		case row.State != ReceiptClaiming:
		case waiting[row.PartID]:
			fx = append(fx, Effect{Kind: FxFulfil, PartID: row.PartID, ID: row.Hold, Preimage: row.Preimage})
		default:
			row.State = ReceiptReceived
			if now >= row.Expires {
				row.State = ReceiptUnsure
			}
			fx = p.save(row, fx)
		}
	}
	return fx
}

// tick forgets promises that nobody can use any more.
func (p *Payee) tick(now int64, fx []Effect) []Effect {
	var over []tally.Hashlock
	for h, g := range p.given {
		if now >= g.Expires+MaxPromiseTime.Milliseconds() || g.Used == (ID{}) && now >= g.Expires {
			over = append(over, h)
		}
	}
	slices.SortFunc(over, func(a, b tally.Hashlock) int { return slices.Compare(a[:], b[:]) })
	for _, h := range over {
		delete(p.given, h)
		fx = append(fx, saveRecord(givenKey(h), nil))
	}
	return fx
}

// Check returns the first broken invariant, by name.
func (p *Payee) Check() error {
	if len(p.receipts) > MaxReceipts || len(p.given) > MaxPromises {
		return broken("bounds", "%d receipts, %d promises", len(p.receipts), len(p.given))
	}
	for id, r := range p.receipts {
		switch {
		case r.PartID != id:
			return broken("index", "receipt %s is kept as %s", r.PartID, id)
		case r.Amount < r.Sealed || r.Sealed == 0:
			return broken("shown-for-enough", "receipt %s: %d of %d", id, r.Amount, r.Sealed)
		case !r.Preimage.Opens(r.Hash):
			return broken("shown-for-enough", "receipt %s has another preimage", id)
		}
		if g := p.given[r.Hash]; g != nil && g.Used != r.Hold {
			return broken("one-hash-one-hold", "the hash %s of hold %s was used for %s", r.Hash, r.Hold, g.Used)
		}
	}
	for h, g := range p.given {
		if g.Hash != h || !g.Preimage.Opens(h) {
			return broken("index", "promise %s", h)
		}
	}
	return nil
}
