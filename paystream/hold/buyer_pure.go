package hold

import (
	"bytes"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// BuyStatus is that of a voucher that we buy. The numbers are in records: add at the
// end.
type BuyStatus uint8

// Statuses of a purchase of ours.
const (
	// BuyPaying: the voucher is saved, and our part under its hash may have left.
	BuyPaying BuyStatus = iota + 1
	// BuyBought: we have the preimage, and have paid.
	BuyBought
	// BuyMailed: the payee says that it has the mail, on disk.
	BuyMailed
	// BuyRedeemed: the chain has paid it, final.
	BuyRedeemed
	// BuyExpired: its deadline is final, and the chain has not paid it. The holder has
	// our money, and the payee has let it lapse.
	BuyExpired
	// BuyRefunded: our money is back, or never left. Nobody can use the voucher.
	BuyRefunded
	// BuyUnsure: the channel was gone when we looked again, so that the chain does not
	// tell any more.
	BuyUnsure
)

var buyWords = [...]string{"unset", "paying", "bought", "mailed", "redeemed", "expired", "refunded", "unsure"}

// String is the word that commands show.
func (s BuyStatus) String() string {
	if int(s) < len(buyWords) {
		return buyWords[s]
	}
	return "unknown"
}

// Open reports whether the purchase may still come to something else.
func (s BuyStatus) Open() bool { return s == BuyPaying || s == BuyBought || s == BuyMailed }

// paid reports whether the holder has our money.
func (s BuyStatus) paid() bool { return s != BuyPaying && s != BuyRefunded }

// Bought is one purchase of ours.
type Bought struct {
	Purchase
	Status BuyStatus
	// Serial and Room are the statement's that it is bought over.
	Serial uint64
	Room   tally.Amount
	Price  tally.Amount
	Hash   tally.Hashlock
	// Preimage, once it is bought.
	Preimage tally.Preimage
	Voucher  []byte
	// Created and Changed in milliseconds since 1970; Until is the deadline on the
	// wall clock, Ends when our part expires.
	Created, Changed, Until, Ends int64
	Failure                       payments.FailCode
}

// mail is what goes to the payee.
func (b *Bought) mail(realm string) *Mail {
	return &Mail{Realm: realm, ID: b.ID, Payer: b.Payer, Serial: b.Serial, Voucher: b.Voucher, Preimage: b.Preimage}
}

// BuyKind names what happened to a purchase of ours.
type BuyKind uint8

// Kinds of event.
const (
	// BuyPay: Row, new, has passed Fits and checkVoucher, and is to be paid.
	BuyPay BuyKind = iota + 1
	// BuyAnswer: Answer is what became of our part.
	BuyAnswer
	// BuyArrived: the payee says that it has the mail of ID.
	BuyArrived
	// BuySeen: View is the channel of ID, with its lane.
	BuySeen
	// BuyOnline: Peer has connected.
	BuyOnline
	// BuyRestart: the rows were restored, and the carrier has the parts in Has.
	BuyRestart
	// BuyTick: some time passed.
	BuyTick
)

// BuyEvent is one input of Step.
type BuyEvent struct {
	Kind   BuyKind
	ID     ID
	Row    *Bought
	Answer *payments.Answer
	View   *ChannelView
	Peer   peer.ID
	Has    map[payments.PartID]bool
}

// MaxBought bounds the purchases of ours that are listed: what an operator can run
// into alone.
const MaxBought = 4096

// lookEpochs is how often, in epochs, the chain is asked whether a voucher was redeemed:
// each ten minutes on Filecoin. A look that failed, or came before what it looks for was
// final, waits for no more than that.
const lookEpochs = 20

// sold is what one statement gave room to.
type sold struct {
	payee   peer.ID
	channel string
	serial  uint64
}

// Buyer is the core of a payer that buys vouchers. It is pure.
//
//	     voucher saved        preimage          payee has it
//	(none) ──────────▶ paying ────────▶ bought ─────────────▶ mailed
//	                     │ given back      │ the chain, final    │
//	                     ▼                 ▼                     ▼
//	                  refunded      redeemed, expired, or unsure
type Buyer struct {
	rows      map[ID]*Bought
	looked    map[ID]int64
	lookEvery int64 // ms
}

// NewBuyer returns a core without purchases, on a chain whose epochs last epochMS.
func NewBuyer(epochMS int64) *Buyer {
	return &Buyer{rows: make(map[ID]*Bought), looked: make(map[ID]int64), lookEvery: lookEpochs * epochMS}
}

// Get returns a purchase.
func (b *Buyer) Get(id ID) (Bought, bool) {
	if r := b.rows[id]; r != nil {
		return *r, true
	}
	return Bought{}, false
}

// List returns all, the oldest first.
func (b *Buyer) List() []Bought {
	list := make([]Bought, 0, len(b.rows))
	for _, r := range b.rows {
		list = append(list, *r)
	}
	slices.SortFunc(list, func(x, y Bought) int { return byAge(x.Created, y.Created, x.ID, y.ID) })
	return list
}

// Owns reports whether a part is of a purchase of ours.
func (b *Buyer) Owns(id payments.PartID) bool { return b.rows[id] != nil }

// Spent is how much of a statement's room we have bought, or are buying.
func (b *Buyer) Spent(st *LaneStatement) tally.Amount {
	return b.spent(sold{st.Payee, st.Channel, st.Serial})
}

func (b *Buyer) spent(s sold) (sum tally.Amount) {
	for _, r := range b.rows {
		if r.Status != BuyRefunded && r.over() == s {
			sum = sum.SaturatingAdd(r.Amount)
		}
	}
	return sum
}

func (b *Bought) over() sold { return sold{b.Payee, b.Channel, b.Serial} }

// Step applies one event. now is in milliseconds since 1970. On an error nothing has
// changed.
func (b *Buyer) Step(now int64, ev *BuyEvent, fx []Effect) ([]Effect, error) {
	switch ev.Kind {
	case BuyPay:
		return b.pay(now, ev.Row, fx)
	case BuyAnswer:
		return b.answered(now, ev.Answer, fx), nil
	case BuyArrived:
		if r := b.rows[ev.ID]; r != nil && r.Status == BuyBought {
			return b.to(now, r, BuyMailed, fx), nil
		}
		return fx, nil
	case BuySeen:
		return b.seen(now, ev, fx), nil
	case BuyOnline:
		for _, r := range b.List() {
			if r.Status == BuyBought && r.Payee == ev.Peer {
				fx = append(fx, Effect{Kind: FxMail, Peer: r.Payee, ID: r.ID})
			}
		}
		return fx, nil
	case BuyRestart:
		for _, s := range b.List() {
			if r := b.rows[s.ID]; r.Status == BuyPaying && !ev.Has[r.ID] { // it never left
				r.Failure = payments.FailNeverLeft
				fx = b.to(now, r, BuyRefunded, fx)
			}
		}
		return fx, nil
	case BuyTick:
		return b.tick(now, fx), nil
	default:
		return fx, ErrTerms
	}
}

func (b *Buyer) pay(now int64, r *Bought, fx []Effect) ([]Effect, error) {
	if err := r.Validate(); err != nil {
		return fx, err
	}
	switch spent := b.spent(r.over()); {
	case b.rows[r.ID] != nil:
		return fx, ErrConflict
	case len(b.rows) >= MaxBought:
		return fx, ErrBound
	case r.Preimage != tally.Preimage{}, len(r.Voucher) == 0 || len(r.Voucher) > maxVoucher, r.Ends <= now, r.Until <= r.Ends:
		return fx, wrapTerms("a purchase begins without its preimage, and with its voucher")
	case r.Amount > r.Room.SaturatingSub(spent): // another took it meanwhile
		return fx, ErrLaneRoom
	}
	cp := *r
	cp.Status, cp.Created, cp.Changed, cp.Voucher = BuyPaying, now, now, bytes.Clone(r.Voucher)
	b.rows[cp.ID] = &cp
	return append(b.save(&cp, fx), Effect{Kind: FxSend, PartID: cp.ID, ID: cp.ID, Part: &payments.Outgoing{
		PartID: cp.ID, Dest: cp.Holder, Amount: cp.Amount, Expires: time.UnixMilli(cp.Ends), Condition: cp.Hash, Data: []byte{kindBuy},
	}}), nil
}

func (b *Buyer) save(r *Bought, fx []Effect) []Effect {
	return append(fx, saveRecord(boughtKey(r.ID), r.record()))
}

func (b *Buyer) to(now int64, r *Bought, s BuyStatus, fx []Effect) []Effect {
	r.Status, r.Changed = s, now
	return append(b.save(r, fx), Effect{Kind: FxWake, ID: r.ID})
}

func (b *Buyer) answered(now int64, a *payments.Answer, fx []Effect) []Effect {
	r := b.rows[a.PartID]
	forget := Effect{Kind: FxForget, PartID: a.PartID}
	switch {
	case r == nil:
		return fx // not ours
	case a.Fulfilled && a.Preimage.Opens(r.Hash) && !r.Status.paid():
		// Also of one that is refunded: money that left is never called back.
		r.Preimage, r.Failure = a.Preimage, payments.FailUnset
		fx = b.to(now, r, BuyBought, fx)
		return append(fx, forget, Effect{Kind: FxMail, Peer: r.Payee, ID: r.ID})
	case !a.Fulfilled && r.Status == BuyPaying:
		r.Failure = a.Failure.Code
		fx = b.to(now, r, BuyRefunded, fx)
	}
	return append(fx, forget)
}

// seen decides a purchase by what is final on the chain.
func (b *Buyer) seen(now int64, ev *BuyEvent, fx []Effect) []Effect {
	r, v := b.rows[ev.ID], ev.View
	if r == nil || r.Status != BuyBought && r.Status != BuyMailed {
		return fx
	}
	b.looked[r.ID] = now
	switch {
	case !v.Gone && v.Redeemed >= r.Amount:
		return b.to(now, r, BuyRedeemed, fx)
	case v.Final <= r.Deadline:
		return fx
	case v.Gone:
		return b.to(now, r, BuyUnsure, fx)
	default:
		return b.to(now, r, BuyExpired, fx)
	}
}

// tick asks the chain, and forgets what is old.
func (b *Buyer) tick(now int64, fx []Effect) []Effect {
	excess := len(b.rows) - MaxBought/2
	for _, s := range b.List() {
		r := b.rows[s.ID]
		switch {
		case r.Status == BuyBought || r.Status == BuyMailed:
			if last, ok := b.looked[r.ID]; !ok || now-last >= b.lookEvery {
				b.looked[r.ID] = now
				fx = append(fx, Effect{Kind: FxLook, ID: r.ID})
			}
		case r.Status.Open() || r.Status != BuyRefunded && now < r.Until:
			// What it took of the statement's room counts until that ends.
		case excess > 0 || now-max(r.Until, r.Changed) >= keptPayer:
			excess--
			delete(b.rows, r.ID)
			delete(b.looked, r.ID)
			fx = append(fx, saveRecord(boughtKey(r.ID), nil))
		}
	}
	return fx
}

// Check returns the first broken invariant, by name.
func (b *Buyer) Check() error {
	if len(b.rows) > MaxBought || len(b.looked) > len(b.rows) {
		return broken("bounds", "%d purchases", len(b.rows))
	}
	used, room := make(map[sold]tally.Amount), make(map[sold]tally.Amount)
	for id, r := range b.rows {
		switch {
		case r.ID != id:
			return broken("index", "purchase %s is kept as %s", r.ID, id)
		case r.Status.paid() != (r.Preimage != tally.Preimage{}) || r.Status.paid() && !r.Preimage.Opens(r.Hash):
			return broken("bought-by-preimage", "purchase %s is %s", id, r.Status)
		case len(r.Voucher) == 0:
			return broken("bought-by-preimage", "purchase %s has no voucher", id)
		}
		if r.Status != BuyRefunded {
			used[r.over()] = used[r.over()].SaturatingAdd(r.Amount)
			room[r.over()] = max(room[r.over()], r.Room)
		}
	}
	for s, sum := range used {
		if sum > room[s] {
			return broken("within-room", "%d bought over the statement %d of %s, which is for %d", sum, s.serial, s.payee, room[s])
		}
	}
	return nil
}
