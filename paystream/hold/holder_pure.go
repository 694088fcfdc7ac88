package hold

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// State of a hold at its holder. The numbers are in records and on the wire: add at
// the end.
type State uint8

// States of a hold.
const (
	// StateDraft: agreed on, and the payer's money is not here yet.
	StateDraft State = iota + 1
	// StateHeld: the payer's part waits here.
	StateHeld
	// StateOffered: a part of ours is on its way to the payee.
	StateOffered
	// StateClaimed: the payee showed the preimage, and has the money.
	StateClaimed
	// StateSettled: the payer's part is claimed.
	StateSettled
	// StateCancelled and StateExpired: the payer has its money back.
	StateCancelled
	StateExpired
)

var stateWords = [...]string{"unset", "draft", "held", "offered", "claimed", "settled", "cancelled", "expired"}

// String is the word that commands show.
func (s State) String() string {
	if int(s) < len(stateWords) {
		return stateWords[s]
	}
	return "unknown"
}

// Live reports whether money of the payer is or may come to be here.
func (s State) Live() bool { return s >= StateDraft && s <= StateClaimed }

// Held is one hold at its holder.
type Held struct {
	Terms
	State State
	// Price is what the payer was charged for the holding.
	Price tally.Amount
	// Changed is when State did last.
	Changed int64
	// Released: the payee asked for it while it was a draft.
	Released bool
	// Stop: payer or payee asked to cancel while it was offered. When the offer comes
	// back it is not made again.
	Stop bool
	// Offers counts them; Out is the part of the last one, while it is offered.
	Offers int
	Out    payments.PartID
	// Preimage, once it is claimed.
	Preimage tally.Preimage
	// Done: the end of the payer's part is saved at the carrier.
	Done bool
}

// HolderKind names what happened to a holder.
type HolderKind uint8

// Kinds of event. Each says which fields it reads.
const (
	// HolderPark: Terms.Payer parks Terms at Price. The caller has checked who asks.
	HolderPark HolderKind = iota + 1
	// HolderPart: Arrival, of a payer, is here. PartID, fresh, is for an offer that
	// was asked for before.
	HolderPart
	// HolderRelease: Peer, a payee, takes the hold ID now. PartID, fresh, is for the
	// offer.
	HolderRelease
	// HolderCancel: Peer, a party, or nobody for our operator, gives the hold ID up.
	HolderCancel
	// HolderAnswer: Answer is what became of an offer.
	HolderAnswer
	// HolderDone: the end of the payer's part of ID is saved at the carrier.
	HolderDone
	// HolderGone: the payer's part of ID is not here any more.
	HolderGone
	// HolderOnline: Peer has connected.
	HolderOnline
	// HolderTick: some time passed.
	HolderTick
	// HolderRestart: the rows were restored. Waiting and Sent are the parts that the
	// carrier has.
	HolderRestart
)

// HolderEvent is one input of Step.
type HolderEvent struct {
	Kind    HolderKind
	Terms   *Terms
	Price   tally.Amount
	Arrival *payments.Arrival
	Answer  *payments.Answer
	Peer    peer.ID
	ID      ID
	PartID  payments.PartID
	Waiting map[payments.PartID]bool
	Sent    map[payments.PartID]bool
	// New is set by HolderPark: the hold was not here before.
	New bool
}

// early is a release that came before its hold.
type early struct {
	payee peer.ID
	id    ID
	at    int64
}

// load is what one payer or payee has here.
type load struct {
	live, finished int
	sum            tally.Amount
}

// Holder is the core of a holder: every hold that is here. It is pure.
//
//	        park          part           release             preimage         saved
//	(none) ─────▶ draft ───────▶ held ───────────▶ offered ───────────▶ claimed ─────▶ settled
//	                │             │ ▲                 │
//	                │ time        │ └─────────────────┘ offer came back
//	                ▼             │
//	             expired ◀────────┼──────▶ cancelled
//	                        time  │  payer or payee
//
// One saved step decides between offer and cancel: only what is held on disk is
// offered, and only what is held is cancelled.
type Holder struct {
	self   peer.ID
	policy Policy
	rows   map[ID]*Held
	outs   map[payments.PartID]*Held
	payers map[peer.ID]*load
	payees map[peer.ID]*load
	polled map[peer.ID]int64 // of payees with holds that want it
	early  []early
	live   int
	// answerable is Answerable, or what locks need, in ms.
	answerable int64
}

// NewHolder returns a core without holds. policy must be valid.
func NewHolder(self peer.ID, policy Policy) *Holder {
	return &Holder{
		self: self, policy: policy.Complete(), rows: make(map[ID]*Held), outs: make(map[payments.PartID]*Held),
		payers: make(map[peer.ID]*load), payees: make(map[peer.ID]*load), polled: make(map[peer.ID]int64),
		answerable: Answerable.Milliseconds(),
	}
}

// Policy returns the policy, with its defaults.
func (h *Holder) Policy() Policy { return h.policy }

// Get returns a hold.
func (h *Holder) Get(id ID) (Held, bool) {
	if r := h.rows[id]; r != nil {
		return *r, true
	}
	return Held{}, false
}

// List returns the holds that f takes, by id.
func (h *Holder) List(f func(*Held) bool) []Held {
	var list []Held
	for _, r := range h.rows {
		if f(r) {
			list = append(list, *r)
		}
	}
	slices.SortFunc(list, func(a, b Held) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return list
}

// Owns reports whether a part is an offer of ours.
func (h *Holder) Owns(id payments.PartID) bool { return h.outs[id] != nil }

// Step applies one event and appends to fx what the shell has to do. now is in
// milliseconds since 1970. On an error nothing has changed.
func (h *Holder) Step(now int64, ev *HolderEvent, fx []Effect) ([]Effect, error) {
	switch ev.Kind {
	case HolderPark:
		return h.park(now, ev, fx)
	case HolderPart:
		return h.arrived(now, ev, fx), nil
	case HolderRelease:
		return h.release(now, ev, fx)
	case HolderCancel:
		return h.cancel(now, ev, fx)
	case HolderAnswer:
		return h.answered(now, ev.Answer, fx), nil
	case HolderDone:
		return h.done(now, ev.ID, fx), nil
	case HolderGone:
		return h.gone(now, ev.ID, fx), nil
	case HolderOnline:
		return h.online(now, ev.Peer, fx), nil
	case HolderTick:
		return h.tick(now, fx), nil
	case HolderRestart:
		return h.restart(now, ev, fx), nil
	default:
		return fx, ErrTerms
	}
}

// vet checks what the policy says about new terms.
func (h *Holder) vet(now int64, t *Terms) error {
	if err := t.Validate(); err != nil {
		return err
	}
	left, bound := t.Expires-now, t.Until-t.Expires
	switch {
	case !h.policy.Offer || t.Holder != h.self:
		return wrapTerms("we hold nothing for others")
	case left < (Delta + OfferLeast).Milliseconds():
		return wrapTerms("too little time")
	case left > h.policy.MaxTime.Milliseconds():
		return wrapTerms("too long: at most " + h.policy.MaxTime.String())
	case bound < h.answerable+clocks.Milliseconds():
		return wrapTerms("bound for too short a time: at least " + (time.Duration(h.answerable)*time.Millisecond + clocks).String() + " longer than the hold")
	case bound > h.policy.MaxReturn.Milliseconds():
		return wrapTerms("bound for too long: at most " + h.policy.MaxReturn.String())
	case t.Amount > h.policy.MaxAmount:
		return wrapTerms("amount is above what we hold")
	}
	return nil
}

func (h *Holder) park(now int64, ev *HolderEvent, fx []Effect) ([]Effect, error) {
	t := ev.Terms
	if r := h.rows[t.ID]; r != nil {
		if !r.same(t) {
			return fx, ErrConflict
		}
		return fx, nil
	}
	if err := h.vet(now, t); err != nil {
		return fx, err
	}
	payer, payee := h.payers[t.Payer], h.payees[t.Payee]
	switch {
	case h.live >= MaxLive,
		payer != nil && (payer.live >= MaxLivePayer || t.Amount > h.policy.MaxPayer.SaturatingSub(payer.sum)),
		t.Amount > h.policy.MaxPayer,
		payee != nil && payee.live >= MaxLivePayee:
		return fx, ErrBound
	}
	r := &Held{Terms: *t, State: StateDraft, Price: ev.Price, Changed: now}
	r.Box = bytes.Clone(t.Box)
	for i := range h.early {
		if e := &h.early[i]; e.id == t.ID && e.payee == t.Payee {
			r.Released = true
		}
	}
	h.add(r)
	ev.New = true
	return h.save(r, fx), nil
}

func wrapTerms(reason string) error { return &termsError{reason} }

type termsError struct{ reason string }

func (e *termsError) Error() string { return ErrTerms.Error() + ": " + e.reason }
func (e *termsError) Unwrap() error { return ErrTerms }

// add counts a row in.
func (h *Holder) add(r *Held) {
	h.rows[r.ID] = r
	for _, m := range [...]struct {
		m map[peer.ID]*load
		p peer.ID
	}{{h.payers, r.Payer}, {h.payees, r.Payee}} {
		l := m.m[m.p]
		if l == nil {
			l = new(load)
			m.m[m.p] = l
		}
		if r.State.Live() {
			l.live++
			l.sum += r.Amount
		} else {
			l.finished++
		}
	}
	if r.State.Live() {
		h.live++
	}
	if r.State == StateOffered {
		h.outs[r.Out] = r
	}
}

// remove counts a row out.
func (h *Holder) remove(r *Held) {
	delete(h.rows, r.ID)
	for _, m := range [...]struct {
		m map[peer.ID]*load
		p peer.ID
	}{{h.payers, r.Payer}, {h.payees, r.Payee}} {
		l := m.m[m.p]
		if r.State.Live() {
			l.live--
			l.sum -= r.Amount
		} else {
			l.finished--
		}
		if *l == (load{}) {
			delete(m.m, m.p)
		}
	}
	if r.State.Live() {
		h.live--
	}
	if r.State == StateOffered {
		delete(h.outs, r.Out)
	}
}

// to is the one door through which a row changes its state.
func (h *Holder) to(now int64, r *Held, s State, change func()) {
	h.remove(r)
	r.State, r.Changed, r.Out = s, now, payments.PartID{}
	if change != nil {
		change()
	}
	h.add(r)
}

func (h *Holder) save(r *Held, fx []Effect) []Effect {
	return append(fx, saveRecord(heldKey(r.ID), r.record()))
}

// arrived takes the payer's money, or gives it back.
func (h *Holder) arrived(now int64, ev *HolderEvent, fx []Effect) []Effect {
	a := ev.Arrival
	r := h.rows[a.PartID]
	refuse := Effect{Kind: FxReject, PartID: a.PartID, Code: payments.FailRefused}
	if r == nil || a.From != r.Payer {
		return append(fx, refuse)
	}
	switch r.State {
	case StateDraft:
		if a.Hash != r.Hash || a.Amount != r.Amount || a.Expires < r.Expires+h.answerable ||
			r.Expires-now < (Delta+OfferLeast).Milliseconds() {
			return append(fx, refuse)
		}
		h.to(now, r, StateHeld, nil)
		fx = append(h.save(r, fx), Effect{Kind: FxWake, ID: r.ID})
		if r.Released { // remembered from before the money was here
			return h.offer(now, r, ev.PartID, fx)
		}
		return h.poll(now, r.Payee, fx)
	case StateHeld, StateOffered:
		return fx // told again after a restart
	case StateClaimed, StateSettled:
		return append(fx, Effect{Kind: FxFulfil, PartID: a.PartID, ID: r.ID, Preimage: r.Preimage, Owed: true})
	default:
		return append(fx, Effect{Kind: FxReject, PartID: a.PartID, ID: r.ID, Code: payments.FailRefused})
	}
}

// release offers a hold to its payee.
func (h *Holder) release(now int64, ev *HolderEvent, fx []Effect) ([]Effect, error) {
	r := h.rows[ev.ID]
	switch {
	case r == nil:
		return fx, h.remember(now, ev)
	case r.Payee != ev.Peer:
		return fx, ErrNoHold
	}
	switch r.State {
	case StateDraft:
		if r.Released {
			return fx, nil
		}
		r.Released = true
		return h.save(r, fx), nil
	case StateHeld:
		return h.offer(now, r, ev.PartID, fx), nil
	case StateOffered, StateClaimed, StateSettled:
		return fx, nil // on its way, or there
	default:
		return fx, ErrNoHold
	}
}

// remember keeps a release whose hold is not here yet: the payee may hear of it
// from the payer first.
func (h *Holder) remember(now int64, ev *HolderEvent) error {
	h.early = slices.DeleteFunc(h.early, func(e early) bool { return now-e.at >= EarlyTime.Milliseconds() })
	of := 0
	for i := range h.early {
		if h.early[i].payee == ev.Peer {
			of++
			if h.early[i].id == ev.ID {
				return nil
			}
		}
	}
	if len(h.early) >= MaxEarly || of >= MaxEarlyPeer {
		return ErrBound
	}
	h.early = append(h.early, early{payee: ev.Peer, id: ev.ID, at: now})
	return nil
}

// offer sends a part to the payee. The row says so on disk before it leaves.
func (h *Holder) offer(now int64, r *Held, part payments.PartID, fx []Effect) []Effect {
	end := min(now+OfferTime.Milliseconds(), r.Expires-Delta.Milliseconds())
	if end-now < OfferLeast.Milliseconds() {
		return fx // too late: tick gives it back
	}
	if r.Offers >= MaxOffers {
		return h.giveBack(now, r, StateCancelled, fx)
	}
	h.to(now, r, StateOffered, func() { r.Offers, r.Out = r.Offers+1, part })
	return append(h.save(r, fx), Effect{Kind: FxSend, PartID: part, ID: r.ID, Part: &payments.Outgoing{
		PartID: part, Dest: r.Payee, Amount: r.Amount, Expires: time.UnixMilli(end), Condition: r.Hash, Data: offerData(r),
	}})
}

func offerData(r *Held) []byte {
	b := append(make([]byte, 0, OfferSize), kindOffer)
	return append(append(b, r.ID[:]...), r.Box...)
}

// giveBack ends a hold that is not with the payee.
func (h *Holder) giveBack(now int64, r *Held, s State, fx []Effect) []Effect {
	draft := r.State == StateDraft
	h.to(now, r, s, func() { r.Done = draft })
	fx = append(h.save(r, fx), Effect{Kind: FxWake, ID: r.ID})
	if !draft {
		fx = append(fx, Effect{Kind: FxReject, PartID: r.ID, ID: r.ID, Code: payments.FailRefused})
	}
	return h.trim(r.Payer, fx)
}

func (h *Holder) cancel(now int64, ev *HolderEvent, fx []Effect) ([]Effect, error) {
	r := h.rows[ev.ID]
	if r == nil || ev.Peer != "" && ev.Peer != r.Payer && ev.Peer != r.Payee {
		return fx, ErrNoHold
	}
	switch r.State {
	case StateDraft, StateHeld:
		return h.giveBack(now, r, StateCancelled, fx), nil
	case StateOffered:
		if !r.Stop {
			r.Stop = true
			fx = h.save(r, fx)
		}
		return fx, nil
	case StateClaimed, StateSettled:
		return fx, ErrTooLate
	default:
		return fx, nil // it is back
	}
}

// answered ends an offer.
func (h *Holder) answered(now int64, a *payments.Answer, fx []Effect) []Effect {
	forget := Effect{Kind: FxForget, PartID: a.PartID}
	r := h.outs[a.PartID]
	if r == nil {
		return append(fx, forget) // decided before
	}
	if a.Fulfilled && a.Preimage.Opens(r.Hash) {
		h.to(now, r, StateClaimed, func() { r.Preimage = a.Preimage })
		fx = append(h.save(r, fx), forget, Effect{Kind: FxWake, ID: r.ID})
		return append(fx, Effect{Kind: FxFulfil, PartID: r.ID, ID: r.ID, Preimage: r.Preimage, Owed: true})
	}
	if r.Stop || now >= r.Expires {
		end := StateExpired
		if r.Stop {
			end = StateCancelled
		}
		return append(h.giveBack(now, r, end, fx), forget)
	}
	h.to(now, r, StateHeld, nil)
	return append(h.save(r, fx), forget, Effect{Kind: FxWake, ID: r.ID})
}

// done: what we decided about the payer's part is saved where it is carried.
func (h *Holder) done(now int64, id ID, fx []Effect) []Effect {
	r := h.rows[id]
	switch {
	case r == nil || r.Done:
		return fx
	case r.State == StateClaimed:
		h.to(now, r, StateSettled, func() { r.Done = true })
		return h.trim(r.Payer, append(h.save(r, fx), Effect{Kind: FxWake, ID: id}))
	case r.State.Live():
		return fx
	}
	r.Done = true
	return h.trim(r.Payer, h.save(r, fx))
}

// gone: the payer's part went back without us.
func (h *Holder) gone(now int64, id ID, fx []Effect) []Effect {
	r := h.rows[id]
	if r == nil || r.Done {
		return fx
	}
	switch r.State {
	case StateHeld:
		h.to(now, r, StateExpired, func() { r.Done = true })
		return h.trim(r.Payer, append(h.save(r, fx), Effect{Kind: FxWake, ID: id}))
	case StateClaimed:
		h.to(now, r, StateSettled, func() { r.Done = true })
		fx = append(h.save(r, fx), Effect{Kind: FxLost, ID: id, Amount: r.Amount, Peer: r.Payer})
		return h.trim(r.Payer, fx)
	case StateCancelled, StateExpired:
		r.Done = true
		return h.trim(r.Payer, h.save(r, fx))
	default:
		return fx // an offer is answered first; then it is seen again
	}
}

// online: who connects hears at once of what waits for it.
func (h *Holder) online(now int64, p peer.ID, fx []Effect) []Effect {
	if h.payees[p] == nil || h.payees[p].live == 0 {
		return fx
	}
	return h.poll(now, p, fx)
}

func (h *Holder) poll(now int64, p peer.ID, fx []Effect) []Effect {
	count := 0
	for _, r := range h.rows {
		if r.Payee == p && r.State == StateHeld {
			count++
		}
	}
	if count == 0 {
		return fx
	}
	h.polled[p] = now
	return append(fx, Effect{Kind: FxPoll, Peer: p, Count: count})
}

// tick ends what time ends, and polls whom a payer wants polled.
func (h *Holder) tick(now int64, fx []Effect) []Effect {
	want := make(map[peer.ID]bool)
	var due []*Held
	for _, r := range h.rows {
		switch {
		case r.State == StateDraft && (now-r.Changed >= DraftTime.Milliseconds() || now >= r.Expires),
			r.State == StateHeld && now >= r.Expires,
			!r.State.Live() && r.Done && now-r.Changed >= Kept.Milliseconds():
			due = append(due, r)
		case r.State == StateHeld && r.Poll:
			want[r.Payee] = true
		}
	}
	slices.SortFunc(due, func(a, b *Held) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	for _, r := range due {
		if !r.State.Live() {
			h.remove(r)
			fx = append(fx, saveRecord(heldKey(r.ID), nil))
			continue
		}
		if h.rows[r.ID] == r { // an earlier one may have pushed it out
			fx = h.giveBack(now, r, StateExpired, fx)
		}
	}
	var list []peer.ID
	for p := range want {
		if last, ok := h.polled[p]; !ok || now-last >= h.policy.PollEvery.Milliseconds() {
			list = append(list, p)
		}
	}
	slices.Sort(list)
	for _, p := range list {
		fx = h.poll(now, p, fx)
	}
	for p := range h.polled {
		if !want[p] && now-h.polled[p] >= h.policy.PollEvery.Milliseconds() {
			delete(h.polled, p)
		}
	}
	return fx
}

// trim keeps the finished rows of one payer below their bound. One whose end is not
// saved at the carrier is not thrown away.
func (h *Holder) trim(payer peer.ID, fx []Effect) []Effect {
	for h.payers[payer] != nil && h.payers[payer].finished > MaxFinished {
		var oldest *Held
		for _, r := range h.rows {
			if r.Payer == payer && !r.State.Live() && r.Done &&
				(oldest == nil || cmp.Or(cmp.Compare(r.Changed, oldest.Changed), bytes.Compare(r.ID[:], oldest.ID[:])) < 0) {
				oldest = r
			}
		}
		if oldest == nil {
			return fx
		}
		h.remove(oldest)
		fx = append(fx, saveRecord(heldKey(oldest.ID), nil))
	}
	return fx
}

// restart compares the rows with what the carrier has. An offer that it does not
// have never left; a payer's part that it does not have is over.
func (h *Holder) restart(now int64, ev *HolderEvent, fx []Effect) []Effect {
	for _, r := range h.List(func(*Held) bool { return true }) {
		row := h.rows[r.ID]
		if row == nil {
			continue
		}
		if row.State == StateOffered && !ev.Sent[row.Out] {
			fx = h.answered(now, &payments.Answer{PartID: row.Out, Failure: payments.Failure{Code: payments.FailNeverLeft, Hop: -1}}, fx)
		}
		switch waits := ev.Waiting[row.ID]; {
		case row.Done || row.State == StateDraft || row.State == StateOffered:
		case row.State == StateHeld && !waits:
			fx = h.gone(now, row.ID, fx)
		case row.State == StateClaimed && !waits:
			// What is claimed on our disk and not waiting is claimed there, too.
			fx = h.done(now, row.ID, fx)
		case row.State == StateClaimed:
			fx = append(fx, Effect{Kind: FxFulfil, PartID: row.ID, ID: row.ID, Preimage: row.Preimage, Owed: true})
		case !row.State.Live() && !waits:
			fx = h.done(now, row.ID, fx)
		case !row.State.Live():
			fx = append(fx, Effect{Kind: FxReject, PartID: row.ID, ID: row.ID, Code: payments.FailRefused})
		}
	}
	return fx
}

// Next is when tick has something to do, if ever.
func (h *Holder) Next() (int64, bool) {
	next, any := int64(0), false
	at := func(t int64) {
		if !any || t < next {
			next, any = t, true
		}
	}
	for _, r := range h.rows {
		switch {
		case r.State == StateDraft:
			at(min(r.Changed+DraftTime.Milliseconds(), r.Expires))
		case r.State == StateHeld:
			at(r.Expires)
			if r.Poll {
				at(h.polled[r.Payee] + h.policy.PollEvery.Milliseconds())
			}
		case !r.State.Live() && r.Done:
			at(r.Changed + Kept.Milliseconds())
		}
	}
	return next, any
}

// Check returns the first broken invariant, by name.
func (h *Holder) Check() error {
	payers, payees := make(map[peer.ID]load), make(map[peer.ID]load)
	live, offered := 0, 0
	for id, r := range h.rows {
		if r.ID != id {
			return broken("index", "hold %s is kept as %s", r.ID, id)
		}
		for m, p := range map[*map[peer.ID]load]peer.ID{&payers: r.Payer, &payees: r.Payee} {
			l := (*m)[p]
			if r.State.Live() {
				l.live++
				l.sum += r.Amount
			} else {
				l.finished++
			}
			(*m)[p] = l
		}
		if r.State.Live() {
			live++
		}
		paid := r.State == StateClaimed || r.State == StateSettled
		switch {
		case (r.State == StateOffered) != (r.Out != payments.PartID{}), (r.State == StateOffered) != (h.outs[r.Out] == r):
			return broken("one-offer", "hold %s is %s and has the offer %s", id, r.State, r.Out)
		case paid != (r.Preimage != tally.Preimage{}) || paid && !r.Preimage.Opens(r.Hash):
			return broken("paid-by-preimage", "hold %s is %s", id, r.State)
		case r.Done && r.State.Live():
			return broken("done", "hold %s is %s and done", id, r.State)
		case r.Until < r.Expires+Answerable.Milliseconds():
			return broken("answerable", "hold %s ends at %d, and the payer's part at %d", id, r.Expires, r.Until)
		case r.Offers > MaxOffers:
			return broken("bounds", "hold %s was offered %d times", id, r.Offers)
		}
		if r.State == StateOffered {
			offered++
		}
	}
	if offered != len(h.outs) {
		return broken("one-offer", "%d holds are offered, %d offers", offered, len(h.outs))
	}
	if live != h.live || live > MaxLive {
		return broken("bounds", "%d live, counted %d", h.live, live)
	}
	for _, m := range [...]struct {
		have map[peer.ID]*load
		want map[peer.ID]load
		max  int
	}{{h.payers, payers, MaxLivePayer}, {h.payees, payees, MaxLivePayee}} {
		if len(m.have) != len(m.want) {
			return broken("caps", "%d parties, counted %d", len(m.have), len(m.want))
		}
		for p, l := range m.have {
			if *l != m.want[p] || l.live > m.max {
				return broken("caps", "%s: %+v, counted %+v", p, *l, m.want[p])
			}
		}
	}
	if len(h.early) > MaxEarly {
		return broken("bounds", "%d early releases", len(h.early))
	}
	return nil
}
