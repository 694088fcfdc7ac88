package hold

import (
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// What time a hold needs. The carrier honours an answer until a part's expiry and
// its late hold (payments.Carrier.CertainBy); the sums below leave room for it.
const (
	// Delta is how long before the hold's end an offer ends at the latest.
	Delta = 5 * time.Second
	// OfferTime is how long one offer to the payee lasts, OfferLeast the least.
	OfferTime  = time.Minute
	OfferLeast = 5 * time.Second
	// ShowMargin is the time that an offer must have left when the payee shows the
	// preimage.
	ShowMargin = time.Second
	// Answerable is how much longer than the hold the payer's money is bound at the
	// least: an offer that ends last is answered within the late hold of 10 minutes,
	// and the holder may be starting again at that moment.
	Answerable = 12 * time.Minute
	// clocks is what the clocks of payer and holder may differ by.
	clocks = 3 * time.Minute
	// MinReturn is what a payer gives: Answerable, and clocks that differ. A payer
	// that is back by the end of its return time, or within the late hold after,
	// settles what was paid meanwhile.
	MinReturn = Answerable + clocks
	// DraftTime is how long a parked hold waits for the payer's money.
	DraftTime = time.Minute
	// Kept is how long finished holds are listed.
	Kept = 24 * time.Hour
)

// Bounds of what peers can make us keep.
const (
	// MaxLivePayer bounds the holds of one payer that are not finished, MaxLivePayee
	// those for one payee, MaxLive all of them: a row takes less than 1 KiB.
	MaxLivePayer = 64
	MaxLivePayee = 256
	MaxLive      = 4096
	// MaxFinished bounds the finished holds of one payer that are still listed; the
	// oldest go first.
	MaxFinished = 64
	// MaxOffers bounds how often one hold is offered. A payee that lets so many
	// offers pass does not want it.
	MaxOffers = 64
	// MaxEarly bounds the releases that came before their hold, MaxEarlyPeer those of
	// one peer; they are remembered for EarlyTime, in memory.
	MaxEarly     = 1024
	MaxEarlyPeer = 16
	EarlyTime    = time.Minute
	// MaxReceipts bounds what a payee remembers of money that arrived; the oldest
	// goes first.
	MaxReceipts = 4096
	// MaxPromises bounds the hashes that a payee has given out and not been paid for.
	MaxPromises = 4096
)

// OfferSize is what goes with an offer: a kind, the hold's id, and the box.
const OfferSize = 1 + 16 + BoxSize

// Kinds of part, the first byte of its data.
const (
	kindHold  byte = 1 // payer to holder: nothing follows
	kindOffer byte = 2 // holder to payee: id, then the box or nothing
	kindBuy   byte = 3 // payer to holder, for a voucher: nothing follows
)

// Errors that a caller acts on. A peer is told by a Status.
var (
	// ErrNoHold: there is no such hold here, or it is not the asker's.
	ErrNoHold = errors.New("hold: no such hold")
	// ErrConflict: the id is in use with other content.
	ErrConflict = errors.New("hold: this id has another content")
	// ErrBound: one of the bounds above, or of the policy.
	ErrBound = errors.New("hold: too many holds")
	// ErrTerms: the terms make no sense, or are outside of what the holder takes.
	ErrTerms = errors.New("hold: terms are not taken")
	// ErrTooLate: the money is with the payee, or on its way.
	ErrTooLate = errors.New("hold: too late to cancel")
	// ErrInvariant is wrapped by every error of Check.
	ErrInvariant = errors.New("hold: invariant broken")
	// ErrRecord: a record that no run wrote.
	ErrRecord = errors.New("hold: damaged record")
)

func broken(name, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %w", ErrInvariant, name, fmt.Errorf(format, args...))
}

// Terms are what payer and holder agree on. They never change. Times are in
// milliseconds since 1970 on our own clock: the wire translates.
type Terms struct {
	ID                   ID
	Payer, Holder, Payee peer.ID
	Hash                 tally.Hashlock
	// Amount is what the payee is offered, and what the payer's part carries. The
	// price of the holding goes over the tab, beside it.
	Amount tally.Amount
	// Expires ends the hold: from then on the holder gives the money back.
	Expires int64
	// Until is when the payer's part expires: the payer has to be back by then.
	Until int64
	// Poll: the holder tries the payee from time to time (please_poll).
	Poll bool
	// Box is BoxSize bytes, or empty where the payee chose the hash.
	Box []byte
}

// Validate reports what no party would mean.
func (t *Terms) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %w", ErrTerms, fmt.Errorf(format, args...))
	}
	for _, p := range [...]peer.ID{t.Payer, t.Holder, t.Payee} {
		if len(p) == 0 || len(p) > maxPeerID {
			return bad("peer id of %d bytes", len(p))
		}
	}
	switch {
	case t.Payer == t.Holder || t.Payee == t.Holder || t.Payer == t.Payee:
		return bad("payer, holder and payee are three nodes")
	case t.Amount == 0 || t.Amount >= payments.MaxTotal:
		return bad("amount %d is not between 1 and 2^62", t.Amount)
	case t.Expires <= 0 || t.Until > maxTime || t.Until < t.Expires+MinReturn.Milliseconds():
		return bad("the money has to be bound %v longer than the hold", MinReturn)
	case len(t.Box) != 0 && len(t.Box) != BoxSize:
		return bad("box of %d bytes, want %d or none", len(t.Box), BoxSize)
	}
	return nil
}

// maxTime bounds times, so that sums of them do not overflow.
const maxTime = int64(1) << 50

func (t *Terms) bound() *Bound { return &Bound{ID: t.ID, Hash: t.Hash, Holder: t.Holder} }

// same reports whether two terms are one hold.
func (t *Terms) same(o *Terms) bool {
	a, b := *t, *o
	box := string(a.Box) == string(b.Box)
	a.Box, b.Box = nil, nil
	// Times were translated between two clocks, each time anew.
	const drift = int64(time.Minute / time.Millisecond)
	near := func(x, y int64) bool { return x-y < drift && y-x < drift }
	times := near(a.Expires, b.Expires) && near(a.Until, b.Until)
	a.Expires, b.Expires, a.Until, b.Until = 0, 0, 0, 0
	return box && times && a.ID == b.ID && a.Payer == b.Payer && a.Holder == b.Holder && a.Payee == b.Payee &&
		a.Hash == b.Hash && a.Amount == b.Amount && a.Poll == b.Poll
}

// Policy is what a holder decides about its holds. The zero value holds nothing.
type Policy struct {
	// Offer: we hold for others.
	Offer bool
	// PriceBase, and PricePPM parts per million of the amount for each hour that has
	// begun, are what holding costs, on the payer's tab, whatever becomes of it.
	PriceBase tally.Amount
	PricePPM  uint32
	// MaxAmount bounds one hold, MaxPayer the sum of one payer's. Default: what its
	// tab carries.
	MaxAmount, MaxPayer tally.Amount
	// MaxTime bounds how long we hold, MaxReturn how much longer the payer's money
	// is bound. Default 7 days each.
	MaxTime, MaxReturn time.Duration
	// PollEvery is how often we try a payee that is offline. Default 3 min: six
	// epochs.
	PollEvery time.Duration
}

// Complete returns p with the defaults in place of zero fields.
func (p Policy) Complete() Policy {
	for _, f := range [...]struct {
		field *tally.Amount
		def   tally.Amount
	}{{&p.MaxAmount, payments.MaxTotal - 1}, {&p.MaxPayer, payments.MaxTotal - 1}} {
		if *f.field == 0 {
			*f.field = f.def
		}
	}
	for _, f := range [...]struct {
		field *time.Duration
		def   time.Duration
	}{{&p.MaxTime, 7 * 24 * time.Hour}, {&p.MaxReturn, 7 * 24 * time.Hour}, {&p.PollEvery, 3 * time.Minute}} {
		if *f.field == 0 {
			*f.field = f.def
		}
	}
	return p
}

// Validate reports a policy that cannot work.
func (p Policy) Validate() error {
	const week = 7 * 24 * time.Hour
	switch {
	case p.PricePPM > 1_000_000:
		return fmt.Errorf("hold: price of %d parts per million an hour is more than the amount; use at most 1000000", p.PricePPM)
	case p.PriceBase >= payments.MaxTotal, p.MaxAmount >= payments.MaxTotal, p.MaxPayer >= payments.MaxTotal:
		return errors.New("hold: an amount of the policy is 2^62 or more")
	case p.MaxTime < Delta+OfferLeast || p.MaxTime > 4*week:
		return fmt.Errorf("hold: longest hold %v is not between %v and 4 weeks", p.MaxTime, Delta+OfferLeast)
	case p.MaxReturn < MinReturn || p.MaxReturn > 4*week:
		return fmt.Errorf("hold: longest return %v is not between %v and 4 weeks", p.MaxReturn, MinReturn)
	case p.PollEvery < time.Second:
		return fmt.Errorf("hold: polls every %v: at least 1s apart", p.PollEvery)
	}
	return nil
}

// Price is what holding amount for d costs.
func (p *Policy) Price(amount tally.Amount, d time.Duration) tally.Amount {
	// amount < 2^62; hours × ppm ≤ 672 × 10^6 < 2^30: in two parts so that no
	// product overflows.
	const million = 1_000_000
	hours := tally.Amount(max(0, (d+time.Hour-1)/time.Hour))
	rate := hours * tally.Amount(p.PricePPM)
	whole, err := (amount / million).Mul(rate)
	if err != nil {
		return tally.MaxAmount
	}
	rest := (amount%million*rate + million - 1) / million
	return p.PriceBase.SaturatingAdd(whole).SaturatingAdd(rest)
}

// EffectKind names what the shell has to do.
type EffectKind uint8

// Kinds of effect.
const (
	// FxSave: Record lies under Key, in one synced batch with all saves of the step,
	// before anything else of the step is done. Without Record nothing is left there.
	FxSave EffectKind = iota + 1
	// FxSend: Part leaves.
	FxSend
	// FxForget: what became of PartID is saved.
	FxForget
	// FxFulfil: PartID is claimed with Preimage.
	FxFulfil
	// FxReject: PartID goes back with Code.
	FxReject
	// FxPoll: Peer is told that Count holds wait for it.
	FxPoll
	// FxPark: the hold ID of ours is parked at its holder.
	FxPark
	// FxRelease: Peer is told that we take the hold ID.
	FxRelease
	// FxCancel: Peer is asked to give the hold ID up.
	FxCancel
	// FxWake: whoever waits for the hold ID is told.
	FxWake
	// FxLost: Amount was shown the preimage of, and cannot be collected. The operator
	// has to be told.
	FxLost
	// FxMail: the mail of the purchase ID is sent to Peer, where that is connected.
	FxMail
	// FxLook: the channel of the purchase ID is looked at.
	FxLook
	// FxKeep: of the channel Key, Amount has to stay free.
	FxKeep
)

// Effect is one duty of the shell, in the order of the list.
type Effect struct {
	Kind     EffectKind
	Key      string
	Record   []byte
	Part     *payments.Outgoing
	PartID   payments.PartID
	ID       ID
	Preimage tally.Preimage
	// Owed, of FxFulfil: we have paid for Preimage.
	Owed   bool
	Code   payments.FailCode
	Peer   peer.ID
	Count  int
	Amount tally.Amount
}
