package hold

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// SaleState is that of a voucher that we sell. The numbers are in records: add at the
// end.
type SaleState uint8

// States of a sale.
const (
	// SaleOffered: the voucher is signed, or about to be. Without its preimage it is
	// worth nothing, and that is with us.
	SaleOffered SaleState = iota + 1
	// SalePaid: the payer's part is claimed with the preimage, or about to be.
	SalePaid
	// SaleSettled: the claim is saved where the part is carried.
	SaleSettled
)

var saleWords = [...]string{"unset", "offered", "paid", "settled"}

// String is the word that commands show.
func (s SaleState) String() string {
	if int(s) < len(saleWords) {
		return saleWords[s]
	}
	return "unknown"
}

// Sale is one voucher of ours that a payer buys.
type Sale struct {
	Purchase
	State SaleState
	Price tally.Amount
	// Preimage is ours, and opens the voucher.
	Preimage tally.Preimage
	// Until is the deadline on the wall clock, in milliseconds since 1970.
	Changed, Until int64
}

// Hash is the voucher's.
func (s *Sale) Hash() tally.Hashlock { return s.Preimage.Hashlock() }

// Bounds of what payers and payees can make a holder keep.
const (
	// MaxSalesPayer bounds the vouchers for one payer whose deadline is not over,
	// MaxSalesPayee those for one payee, each of which has a lane, MaxSales all of
	// them.
	MaxSalesPayer = 32
	MaxSalesPayee = 256
	MaxSales      = 4096
	// MaxStatements bounds the statements that a holder keeps, MaxStatementsPayee
	// those of one payee.
	MaxStatements      = 4096
	MaxStatementsPayee = 64
)

// SaleKind names what happened to a holder that sells.
type SaleKind uint8

// Kinds of event.
const (
	// SaleOffer: Row, with its preimage, is to be sold. The caller has checked who
	// asks, and that the channel is ours to the payee.
	SaleOffer SaleKind = iota + 1
	// SaleUnsigned: the voucher of ID was not signed, and never left.
	SaleUnsigned
	// SalePart: Arrival, of a payer, is here.
	SalePart
	// SaleDone: the claim of ID is saved where the part is carried. SaleGone: the part
	// is not here any more, and nothing was shown.
	SaleDone
	SaleGone
	// SaleStatement: Statement is a payee's, and verified.
	SaleStatement
	// SaleRestart: the rows were restored, and the parts in Waiting are here.
	SaleRestart
	// SaleTick: some time passed.
	SaleTick
)

// SaleEvent is one input of Step.
type SaleEvent struct {
	Kind      SaleKind
	ID        ID
	Row       *Sale
	Statement *LaneStatement
	Arrival   *payments.Arrival
	Waiting   map[payments.PartID]bool
	// Ends is when Statement does, on the wall clock.
	Ends int64
	// New is set by SaleOffer: the sale was not here before.
	New bool
}

// stated is a statement that a payee gave us, for one payer or for whoever comes.
type stated struct{ payee, payer peer.ID }

type statement struct {
	LaneStatement
	ends int64
}

// Seller is the core of a holder that sells vouchers. It is pure.
//
//	      offer          part            saved
//	(none) ────▶ offered ─────▶ paid ──────────▶ settled
//	                ▲            │ gone
//	                └────────────┘
//
// The preimage leaves us only to claim a part over the voucher's amount.
type Seller struct {
	self       peer.ID
	rows       map[ID]*Sale
	statements map[stated]*statement
}

// NewSeller returns a core without sales.
func NewSeller(self peer.ID) *Seller {
	return &Seller{self: self, rows: make(map[ID]*Sale), statements: make(map[stated]*statement)}
}

// Get returns a sale.
func (s *Seller) Get(id ID) (Sale, bool) {
	if r := s.rows[id]; r != nil {
		return *r, true
	}
	return Sale{}, false
}

// List returns all, by id.
func (s *Seller) List() []Sale {
	list := make([]Sale, 0, len(s.rows))
	for _, r := range s.rows {
		list = append(list, *r)
	}
	slices.SortFunc(list, func(x, y Sale) int { return bytes.Compare(x.ID[:], y.ID[:]) })
	return list
}

// Owns reports whether a part is for a voucher of ours.
func (s *Seller) Owns(id payments.PartID) bool { return s.rows[id] != nil }

// Statement returns the newest that a payee gave us for payer, or for whoever comes.
func (s *Seller) Statement(payee, payer peer.ID) (LaneStatement, bool) {
	for _, k := range [...]stated{{payee, payer}, {payee, ""}} {
		if st := s.statements[k]; st != nil {
			return st.LaneStatement, true
		}
	}
	return LaneStatement{}, false
}

// Step applies one event. now is in milliseconds since 1970. On an error nothing has
// changed.
func (s *Seller) Step(now int64, ev *SaleEvent, fx []Effect) ([]Effect, error) {
	switch ev.Kind {
	case SaleOffer:
		return s.offer(now, ev, fx)
	case SaleUnsigned:
		if r := s.rows[ev.ID]; r != nil && r.State == SaleOffered {
			delete(s.rows, ev.ID)
			return append(fx, saveRecord(saleKey(ev.ID), nil)), nil
		}
		return fx, nil
	case SalePart:
		return s.arrived(now, ev.Arrival, fx), nil
	case SaleDone:
		if r := s.rows[ev.ID]; r != nil && r.State == SalePaid {
			return s.to(now, r, SaleSettled, fx), nil
		}
		return fx, nil
	case SaleGone:
		if r := s.rows[ev.ID]; r != nil && r.State == SalePaid {
			return s.to(now, r, SaleOffered, fx), nil
		}
		return fx, nil
	case SaleStatement:
		return s.state(ev, fx)
	case SaleRestart:
		for _, row := range s.List() {
			r := s.rows[row.ID]
			switch {
			case r.State == SalePaid && ev.Waiting[r.ID]:
				fx = append(fx, Effect{Kind: FxFulfil, PartID: r.ID, ID: r.ID, Preimage: r.Preimage})
			case r.State == SalePaid: // what does not wait is claimed there, too
				fx = s.to(now, r, SaleSettled, fx)
			}
		}
		return fx, nil
	case SaleTick:
		return s.tick(now, fx), nil
	default:
		return fx, ErrTerms
	}
}

func (s *Seller) offer(now int64, ev *SaleEvent, fx []Effect) ([]Effect, error) {
	r := ev.Row
	if have := s.rows[r.ID]; have != nil {
		if have.Purchase != r.Purchase {
			return fx, ErrConflict
		}
		return fx, nil
	}
	if err := r.Validate(); err != nil {
		return fx, err
	}
	if r.Holder != s.self || r.Preimage == (tally.Preimage{}) || r.Until <= now {
		return fx, wrapTerms("not a sale of ours")
	}
	ofPayer, ofPayee := 0, 0
	for _, o := range s.rows {
		if o.Payer == r.Payer {
			ofPayer++
		}
		if o.Payee == r.Payee {
			ofPayee++
		}
		if o.Channel == r.Channel && o.Lane() == r.Lane() {
			return fx, ErrConflict
		}
	}
	if len(s.rows) >= MaxSales || ofPayer >= MaxSalesPayer || ofPayee >= MaxSalesPayee {
		return fx, ErrBound
	}
	cp := *r
	cp.State, cp.Changed = SaleOffered, now
	s.rows[cp.ID] = &cp
	ev.New = true
	return append(fx, saveRecord(saleKey(cp.ID), cp.record())), nil
}

func (s *Seller) to(now int64, r *Sale, state SaleState, fx []Effect) []Effect {
	r.State, r.Changed = state, now
	return append(fx, saveRecord(saleKey(r.ID), r.record()), Effect{Kind: FxWake, ID: r.ID})
}

// arrived claims the payer's money, or gives it back.
func (s *Seller) arrived(now int64, a *payments.Arrival, fx []Effect) []Effect {
	r := s.rows[a.PartID]
	if r == nil || a.From != r.Payer || a.Hash != r.Hash() || a.Amount != r.Amount || r.State == SaleOffered && (now >= a.Expires || now >= r.Until) {
		return append(fx, Effect{Kind: FxReject, PartID: a.PartID, Code: payments.FailRefused})
	}
	if r.State == SaleOffered {
		fx = s.to(now, r, SalePaid, fx)
	}
	return append(fx, Effect{Kind: FxFulfil, PartID: r.ID, ID: r.ID, Preimage: r.Preimage})
}

// state keeps the newest statement of a payee for each payer.
func (s *Seller) state(ev *SaleEvent, fx []Effect) ([]Effect, error) {
	st := ev.Statement
	k := stated{st.Payee, st.Payer}
	if have := s.statements[k]; have != nil {
		if st.Serial < have.Serial {
			return fx, ErrStale
		}
	} else {
		of := 0
		for o := range s.statements {
			if o.payee == st.Payee {
				of++
			}
		}
		if len(s.statements) >= MaxStatements || of >= MaxStatementsPayee {
			return fx, ErrBound
		}
	}
	cp := &statement{*st, ev.Ends}
	s.statements[k] = cp
	return append(fx, saveRecord(statedKey(k), cp.record())), nil
}

// tick forgets what is over.
func (s *Seller) tick(now int64, fx []Effect) []Effect {
	for _, row := range s.List() {
		if now >= row.Until+Kept.Milliseconds() && row.State != SalePaid {
			delete(s.rows, row.ID)
			fx = append(fx, saveRecord(saleKey(row.ID), nil))
		}
	}
	var over []stated
	for k, st := range s.statements {
		if now >= st.ends {
			over = append(over, k)
		}
	}
	slices.SortFunc(over, func(a, b stated) int { return cmp.Or(cmp.Compare(a.payee, b.payee), cmp.Compare(a.payer, b.payer)) })
	for _, k := range over {
		delete(s.statements, k)
		fx = append(fx, saveRecord(statedKey(k), nil))
	}
	return fx
}

// Check returns the first broken invariant, by name.
func (s *Seller) Check() error {
	lanes := make(map[string]map[uint64]ID)
	payers := make(map[peer.ID]int)
	for id, r := range s.rows {
		switch {
		case r.ID != id || r.Holder != s.self:
			return broken("index", "sale %s is kept as %s", r.ID, id)
		case r.Preimage == (tally.Preimage{}):
			return broken("opened-by-us", "sale %s has no preimage", id)
		}
		if lanes[r.Channel] == nil {
			lanes[r.Channel] = make(map[uint64]ID)
		}
		if other, twice := lanes[r.Channel][r.Lane()]; twice {
			return broken("one-lane-one-sale", "sales %s and %s share lane %d", other, id, r.Lane())
		}
		lanes[r.Channel][r.Lane()] = id
		if payers[r.Payer]++; payers[r.Payer] > MaxSalesPayer {
			return broken("bounds", "%d sales to %s", payers[r.Payer], r.Payer)
		}
	}
	if len(s.rows) > MaxSales || len(s.statements) > MaxStatements {
		return broken("bounds", "%d sales, %d statements", len(s.rows), len(s.statements))
	}
	return nil
}
