package hold

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream/payments"
)

const (
	payerID  peer.ID = "payer"
	holderID peer.ID = "holder"
	payeeID  peer.ID = "payee"
	start            = int64(1_700_000_000_000)
	minute           = int64(time.Minute / time.Millisecond)
)

func preimageOf(n byte) tally.Preimage { return tally.Preimage{n, 1} }

func termsOf(n byte) *Terms {
	p := preimageOf(n)
	return &Terms{
		ID: ID{n, 9}, Payer: payerID, Holder: holderID, Payee: payeeID, Hash: p.Hashlock(), Amount: 100,
		Expires: start + 60*minute, Until: start + 120*minute, Poll: true, Box: bytes.Repeat([]byte{n}, BoxSize),
	}
}

func arrivalOf(t *Terms) *payments.Arrival {
	return &payments.Arrival{PartID: t.ID, Hash: t.Hash, From: t.Payer, Amount: t.Amount, Expires: t.Until, Data: []byte{kindHold}}
}

// desk is a holder with the clock in hand.
type desk struct {
	t testing.TB
	*Holder
	now   int64
	parts byte
}

func newDesk(t testing.TB) *desk {
	return &desk{t: t, Holder: NewHolder(holderID, Policy{Offer: true}), now: start}
}

func (d *desk) step(ev *HolderEvent) []Effect {
	d.t.Helper()
	fx, err := d.try(ev)
	if err != nil {
		d.t.Fatalf("event %d: %v", ev.Kind, err)
	}
	return fx
}

// try steps, and checks what every step has to leave: the invariants, saves before
// everything else of a row, and nothing changed where there is an error.
func (d *desk) try(ev *HolderEvent) ([]Effect, error) {
	d.t.Helper()
	d.parts++
	ev.PartID = payments.PartID{d.parts, 7}
	before := d.records()
	fx, err := d.Step(d.now, ev, nil)
	if cerr := d.Check(); cerr != nil {
		d.t.Fatal(cerr)
	}
	if err != nil && (len(fx) != 0 || !reflect.DeepEqual(before, d.records())) {
		d.t.Fatalf("%v, and something changed", err)
	}
	for i := range fx {
		if k := fx[i].Kind; k == FxSend || k == FxFulfil {
			if !slices.ContainsFunc(fx[:i], func(f Effect) bool { return f.Kind == FxSave && f.Record != nil }) &&
				ev.Kind != HolderPart && ev.Kind != HolderRestart { // there it was saved before
				d.t.Fatalf("%d before a save", k)
			}
		}
	}
	return fx, err
}

func (d *desk) records() map[string]string {
	m := make(map[string]string)
	for id, r := range d.rows {
		m[heldKey(id)] = string(r.record())
	}
	return m
}

// restored is the core that a crash leaves.
func (d *desk) restored() *desk {
	d.t.Helper()
	n := &desk{t: d.t, Holder: NewHolder(holderID, d.policy), now: d.now, parts: d.parts}
	for id, r := range d.rows {
		if err := n.Restore(id, r.record()); err != nil {
			d.t.Fatal(err)
		}
	}
	if err := n.Check(); err != nil {
		d.t.Fatal(err)
	}
	return n
}

func find(fx []Effect, kind EffectKind) *Effect {
	for i := range fx {
		if fx[i].Kind == kind {
			return &fx[i]
		}
	}
	return nil
}

func (d *desk) state(id ID) State {
	r, _ := d.Get(id)
	return r.State
}

// held parks a hold and takes its money.
func (d *desk) held(t *Terms) {
	d.t.Helper()
	d.step(&HolderEvent{Kind: HolderPark, Terms: t, Price: 3})
	d.step(&HolderEvent{Kind: HolderPart, Arrival: arrivalOf(t)})
	if s := d.state(t.ID); s != StateHeld {
		d.t.Fatal(s)
	}
}

// offered is held, and on its way to the payee.
func (d *desk) offered(t *Terms) payments.PartID {
	d.t.Helper()
	d.held(t)
	fx := d.step(&HolderEvent{Kind: HolderRelease, Peer: payeeID, ID: t.ID})
	send := find(fx, FxSend)
	if send != nil && d.state(t.ID) == StateOffered {
		return send.PartID
	}
	d.t.Fatal(d.state(t.ID), fx)
	return payments.PartID{}
}

func fulfilled(part payments.PartID, p tally.Preimage) *HolderEvent {
	return &HolderEvent{Kind: HolderAnswer, Answer: &payments.Answer{PartID: part, Fulfilled: true, Preimage: p}}
}

func rejected(part payments.PartID) *HolderEvent {
	return &HolderEvent{Kind: HolderAnswer, Answer: &payments.Answer{PartID: part, Failure: payments.Failure{Code: payments.FailRefused}}}
}

func TestStates(t *testing.T) {
	d, terms := newDesk(t), termsOf(1)
	part := d.offered(terms)
	send := d.outs[part]
	if send.Offers != 1 {
		t.Fatal(send.Offers)
	}
	// It comes back, and is offered again.
	d.step(rejected(part))
	if d.state(terms.ID) != StateHeld {
		t.Fatal(d.state(terms.ID))
	}
	fx := d.step(&HolderEvent{Kind: HolderRelease, Peer: payeeID, ID: terms.ID})
	again := find(fx, FxSend).Part
	if again.PartID == part || again.Amount != 100 || again.Condition != terms.Hash || again.Dest != payeeID ||
		again.Expires.UnixMilli() != d.now+OfferTime.Milliseconds() || len(again.Data) != OfferSize {
		t.Fatalf("%+v", again)
	}
	id, box, ok := parseOffer(again.Data)
	if !ok || id != terms.ID || !bytes.Equal(box, terms.Box) {
		t.Fatal(id, box, ok)
	}
	// A preimage of something else is none.
	if fx := d.step(fulfilled(again.PartID, preimageOf(9))); find(fx, FxFulfil) != nil || d.state(terms.ID) != StateHeld {
		t.Fatal(fx)
	}
	part = find(d.step(&HolderEvent{Kind: HolderRelease, Peer: payeeID, ID: terms.ID}), FxSend).PartID
	fx = d.step(fulfilled(part, preimageOf(1)))
	if f := find(fx, FxFulfil); f == nil || f.PartID != terms.ID || f.Preimage != preimageOf(1) || find(fx, FxForget).PartID != part {
		t.Fatal(fx)
	}
	if _, err := d.try(&HolderEvent{Kind: HolderCancel, Peer: payerID, ID: terms.ID}); !errors.Is(err, ErrTooLate) {
		t.Fatal(err)
	}
	// The part is told again after a restart, and claimed again.
	d = d.restored()
	if f := find(d.step(&HolderEvent{Kind: HolderPart, Arrival: arrivalOf(terms)}), FxFulfil); f == nil || f.Preimage != preimageOf(1) {
		t.Fatal("not claimed again")
	}
	d.step(&HolderEvent{Kind: HolderDone, ID: terms.ID})
	if r, _ := d.Get(terms.ID); r.State != StateSettled || !r.Done || r.Price != 3 {
		t.Fatalf("%+v", r)
	}
}

// TestOfferAgainstCancel: whichever step comes first decides. A cancel that comes
// second stops the next offer, and an offer that comes second is not made.
func TestOfferAgainstCancel(t *testing.T) {
	for _, who := range []peer.ID{payerID, payeeID, ""} {
		d, terms := newDesk(t), termsOf(1)
		d.held(terms)
		fx := d.step(&HolderEvent{Kind: HolderCancel, Peer: who, ID: terms.ID})
		if find(fx, FxReject) == nil || d.state(terms.ID) != StateCancelled {
			t.Fatal(fx)
		}
		if _, err := d.try(&HolderEvent{Kind: HolderRelease, Peer: payeeID, ID: terms.ID}); !errors.Is(err, ErrNoHold) {
			t.Fatal("offered what was cancelled", err)
		}

		d = newDesk(t)
		part := d.offered(terms)
		if fx := d.step(&HolderEvent{Kind: HolderCancel, Peer: who, ID: terms.ID}); find(fx, FxReject) != nil || d.state(terms.ID) != StateOffered {
			t.Fatal("given back while it is offered", fx)
		}
		paid := d.restored()
		if fx := d.step(rejected(part)); find(fx, FxReject) == nil || d.state(terms.ID) != StateCancelled {
			t.Fatal("the cancel was forgotten", fx)
		}
		if paid.step(fulfilled(part, preimageOf(1))); paid.state(terms.ID) != StateClaimed {
			t.Fatal("a cancel took what the payee was paid")
		}
	}
	d, terms := newDesk(t), termsOf(1)
	d.held(terms)
	if _, err := d.try(&HolderEvent{Kind: HolderCancel, Peer: "stranger", ID: terms.ID}); !errors.Is(err, ErrNoHold) {
		t.Fatal(err)
	}
	if _, err := d.try(&HolderEvent{Kind: HolderRelease, Peer: "stranger", ID: terms.ID}); !errors.Is(err, ErrNoHold) {
		t.Fatal(err)
	}
}

// TestEarlyRelease: one that comes before the money, or before the hold itself, is
// remembered.
func TestEarlyRelease(t *testing.T) {
	for name, first := range map[string]func(d *desk, terms *Terms){
		"before the hold": func(d *desk, terms *Terms) {
			d.step(&HolderEvent{Kind: HolderRelease, Peer: payeeID, ID: terms.ID})
			d.step(&HolderEvent{Kind: HolderRelease, Peer: payeeID, ID: terms.ID})
			d.step(&HolderEvent{Kind: HolderPark, Terms: terms})
		},
		"before the money": func(d *desk, terms *Terms) {
			d.step(&HolderEvent{Kind: HolderPark, Terms: terms})
			d.step(&HolderEvent{Kind: HolderRelease, Peer: payeeID, ID: terms.ID})
			*d = *d.restored()
		},
	} {
		d, terms := newDesk(t), termsOf(1)
		first(d, terms)
		if fx := d.step(&HolderEvent{Kind: HolderPart, Arrival: arrivalOf(terms)}); find(fx, FxSend) == nil || d.state(terms.ID) != StateOffered {
			t.Errorf("%s: %v", name, fx)
		}
	}
	// Of another payee, or too long ago.
	d, terms := newDesk(t), termsOf(1)
	d.step(&HolderEvent{Kind: HolderRelease, Peer: "other", ID: terms.ID})
	d.held(terms)
	for i := range byte(MaxEarlyPeer) {
		d.step(&HolderEvent{Kind: HolderRelease, Peer: "one", ID: ID{i, 1}})
	}
	if _, err := d.try(&HolderEvent{Kind: HolderRelease, Peer: "one", ID: ID{99}}); !errors.Is(err, ErrBound) {
		t.Fatal(err)
	}
	for i := range MaxEarly {
		_, _ = d.try(&HolderEvent{Kind: HolderRelease, Peer: peer.ID(fmt.Sprint(i)), ID: ID{99}})
	}
	if len(d.early) != MaxEarly {
		t.Fatal(len(d.early))
	}
	d.now += EarlyTime.Milliseconds()
	d.step(&HolderEvent{Kind: HolderRelease, Peer: "one", ID: ID{99}})
	if len(d.early) != 1 {
		t.Fatal("early releases are kept for ever")
	}
}

func TestTimes(t *testing.T) {
	d, terms := newDesk(t), termsOf(1)
	d.step(&HolderEvent{Kind: HolderPark, Terms: terms})
	next, ok := d.Next()
	if !ok || next != start+DraftTime.Milliseconds() {
		t.Fatal(next, ok)
	}
	d.now = next - 1
	d.step(&HolderEvent{Kind: HolderTick})
	if d.state(terms.ID) != StateDraft {
		t.Fatal("a draft ended early")
	}
	d.now = next
	d.step(&HolderEvent{Kind: HolderTick})
	if d.state(terms.ID) != StateExpired {
		t.Fatal(d.state(terms.ID))
	}
	// Money that comes after that goes back.
	if fx := d.step(&HolderEvent{Kind: HolderPart, Arrival: arrivalOf(terms)}); find(fx, FxReject) == nil {
		t.Fatal(fx)
	}

	d = newDesk(t)
	d.held(terms)
	d.now = terms.Expires - 1
	if fx := d.step(&HolderEvent{Kind: HolderTick}); find(fx, FxReject) != nil {
		t.Fatal("ended early")
	}
	// Too late for an offer, and not over: it waits for its end.
	if fx := d.step(&HolderEvent{Kind: HolderRelease, Peer: payeeID, ID: terms.ID}); find(fx, FxSend) != nil {
		t.Fatal("offered with 1 ms left")
	}
	d.now = terms.Expires
	if fx := d.step(&HolderEvent{Kind: HolderTick}); find(fx, FxReject) == nil || d.state(terms.ID) != StateExpired {
		t.Fatal(fx)
	}

	// An offer ends Delta before the hold at the latest.
	d = newDesk(t)
	d.held(terms)
	d.now = terms.Expires - Delta.Milliseconds() - OfferLeast.Milliseconds()
	fx := d.step(&HolderEvent{Kind: HolderRelease, Peer: payeeID, ID: terms.ID})
	if send := find(fx, FxSend); send == nil || send.Part.Expires.UnixMilli() != terms.Expires-Delta.Milliseconds() {
		t.Fatal(fx)
	}
	// Offered when its time ends: it is decided by the offer.
	part := find(fx, FxSend).PartID
	d.now = terms.Expires + 5*minute
	if fx := d.step(&HolderEvent{Kind: HolderTick}); len(fx) != 0 {
		t.Fatal(fx)
	}
	late := d.restored()
	d.step(rejected(part))
	late.step(fulfilled(part, preimageOf(1)))
	if d.state(terms.ID) != StateExpired || late.state(terms.ID) != StateClaimed {
		t.Fatal(d.state(terms.ID), late.state(terms.ID))
	}
}

// TestMoneyThatDoesNotFit goes back, and the draft waits for the right one.
func TestMoneyThatDoesNotFit(t *testing.T) {
	for name, change := range map[string]func(a *payments.Arrival){
		"hash": func(a *payments.Arrival) { a.Hash[0]++ }, "less": func(a *payments.Arrival) { a.Amount-- },
		"more": func(a *payments.Arrival) { a.Amount++ }, "payer": func(a *payments.Arrival) { a.From = "other" },
		"id": func(a *payments.Arrival) { a.PartID[0]++ },
		"time": func(a *payments.Arrival) {
			a.Expires = termsOf(1).Expires + Answerable.Milliseconds() - 1
		},
	} {
		d, terms := newDesk(t), termsOf(1)
		d.step(&HolderEvent{Kind: HolderPark, Terms: terms})
		a := arrivalOf(terms)
		change(a)
		if fx := d.step(&HolderEvent{Kind: HolderPart, Arrival: a}); find(fx, FxReject) == nil || d.state(terms.ID) != StateDraft {
			t.Errorf("%s: %v", name, fx)
		}
		d.step(&HolderEvent{Kind: HolderPart, Arrival: arrivalOf(terms)})
		if d.state(terms.ID) != StateHeld {
			t.Errorf("%s: %v", name, d.state(terms.ID))
		}
	}
}

func TestHolderBounds(t *testing.T) {
	d := NewHolder(holderID, Policy{Offer: true, MaxPayer: 6000, MaxAmount: 5000})
	park := func(change func(t *Terms)) error {
		terms := termsOf(1)
		change(terms)
		_, err := d.Step(start, &HolderEvent{Kind: HolderPark, Terms: terms}, nil)
		if cerr := d.Check(); cerr != nil {
			t.Fatal(cerr)
		}
		return err
	}
	id := func(n int) ID { return ID{byte(n), byte(n >> 8), 1} }
	for name, c := range map[string]struct {
		change func(t *Terms)
		want   error
	}{
		"too large":      {func(t *Terms) { t.Amount = 5001 }, ErrTerms},
		"nothing":        {func(t *Terms) { t.Amount = 0 }, ErrTerms},
		"too short":      {func(t *Terms) { t.Expires = start + (Delta + OfferLeast).Milliseconds() - 1 }, ErrTerms},
		"too long":       {func(t *Terms) { t.Expires += 8 * 24 * 60 * minute; t.Until += 8 * 24 * 60 * minute }, ErrTerms},
		"bound too long": {func(t *Terms) { t.Until += 8 * 24 * 60 * minute }, ErrTerms},
		"not answerable": {func(t *Terms) { t.Until = t.Expires + MinReturn.Milliseconds() - 1 }, ErrTerms},
		"another holder": {func(t *Terms) { t.Holder = "other" }, ErrTerms},
		"to itself":      {func(t *Terms) { t.Payee = t.Payer }, ErrTerms},
		"to the holder":  {func(t *Terms) { t.Payee = t.Holder }, ErrTerms},
		"nobody":         {func(t *Terms) { t.Payee = "" }, ErrTerms},
		"long name":      {func(t *Terms) { t.Payer = peer.ID(bytes.Repeat([]byte{1}, 65)) }, ErrTerms},
		"box":            {func(t *Terms) { t.Box = t.Box[1:] }, ErrTerms},
	} {
		if err := park(c.change); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	n := 0
	for ; n < 60; n++ {
		if err := park(func(t *Terms) { t.ID = id(n) }); err != nil {
			t.Fatal(n, err)
		}
	}
	if err := park(func(t *Terms) { t.ID = id(n) }); !errors.Is(err, ErrBound) {
		t.Fatal("over the sum of one payer", err)
	}
	for ; n < MaxLivePayer; n++ {
		if err := park(func(t *Terms) { t.ID, t.Amount = id(n), 0; t.Amount = 1; t.Payer = "small" }); err != nil {
			t.Fatal(n, err)
		}
	}
	d = NewHolder(holderID, Policy{Offer: true})
	for n = 0; n < MaxLivePayee; n++ {
		if err := park(func(t *Terms) { t.ID, t.Payer = id(n), peer.ID(fmt.Sprint(n/MaxLivePayer)) }); err != nil {
			t.Fatal(n, err)
		}
	}
	if err := park(func(t *Terms) { t.ID = id(n) }); !errors.Is(err, ErrBound) {
		t.Fatal("over the bound of one payee", err)
	}
	if err := park(func(t *Terms) { t.ID, t.Payer, t.Payee = id(n), "0", "other" }); !errors.Is(err, ErrBound) {
		t.Fatal("over the bound of one payer", err)
	}
	// Finished ones are few, and old.
	d = NewHolder(holderID, Policy{Offer: true})
	for n = range 3 * MaxFinished {
		if err := park(func(t *Terms) { t.ID = id(n) }); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Step(start+int64(n), &HolderEvent{Kind: HolderCancel, ID: id(n)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.rows) != MaxFinished || d.rows[id(n)] == nil || d.rows[id(0)] != nil {
		t.Fatal(len(d.rows))
	}
	if _, err := d.Step(start+Kept.Milliseconds()+int64(n), &HolderEvent{Kind: HolderTick}, nil); err != nil || len(d.rows) != 0 {
		t.Fatal(err, len(d.rows))
	}
	// A payee that never answers is given up.
	full := newDesk(t)
	terms := termsOf(1)
	full.held(terms)
	for range MaxOffers {
		part := find(full.step(&HolderEvent{Kind: HolderRelease, Peer: payeeID, ID: terms.ID}), FxSend).PartID
		full.step(rejected(part))
	}
	if fx := full.step(&HolderEvent{Kind: HolderRelease, Peer: payeeID, ID: terms.ID}); find(fx, FxReject) == nil || full.state(terms.ID) != StateCancelled {
		t.Fatal(fx)
	}
}

func TestPolls(t *testing.T) {
	d, terms := newDesk(t), termsOf(1)
	d.step(&HolderEvent{Kind: HolderPark, Terms: terms})
	fx := d.step(&HolderEvent{Kind: HolderPart, Arrival: arrivalOf(terms)})
	if f := find(fx, FxPoll); f == nil || f.Peer != payeeID || f.Count != 1 {
		t.Fatal(fx)
	}
	every := d.policy.PollEvery.Milliseconds()
	if next, ok := d.Next(); !ok || next != start+every {
		t.Fatal(next-start, ok)
	}
	d.now += every - 1
	if fx := d.step(&HolderEvent{Kind: HolderTick}); len(fx) != 0 {
		t.Fatal(fx)
	}
	d.now++
	if fx := d.step(&HolderEvent{Kind: HolderTick}); find(fx, FxPoll) == nil {
		t.Fatal(fx)
	}
	if fx := d.step(&HolderEvent{Kind: HolderTick}); len(fx) != 0 {
		t.Fatal("polled twice", fx)
	}
	if fx := d.step(&HolderEvent{Kind: HolderOnline, Peer: payeeID}); find(fx, FxPoll) == nil {
		t.Fatal("not polled when it came", fx)
	}
	if fx := d.step(&HolderEvent{Kind: HolderOnline, Peer: payerID}); len(fx) != 0 {
		t.Fatal(fx)
	}
	// Who wants no polls is told when it comes, and only then.
	d = newDesk(t)
	terms.Poll = false
	d.held(terms)
	d.now += 10 * every
	if fx := d.step(&HolderEvent{Kind: HolderTick}); len(fx) != 0 || len(d.polled) != 0 {
		t.Fatal(fx, d.polled)
	}
	if fx := d.step(&HolderEvent{Kind: HolderOnline, Peer: payeeID}); find(fx, FxPoll) == nil {
		t.Fatal(fx)
	}
}

// TestHolderRestart: what the carrier has decides what became of each row.
func TestHolderRestart(t *testing.T) {
	restart := func(d *desk, waits, sent bool, part payments.PartID) []Effect {
		return d.step(&HolderEvent{
			Kind: HolderRestart, Waiting: map[payments.PartID]bool{termsOf(1).ID: waits}, Sent: map[payments.PartID]bool{part: sent},
		})
	}
	for name, c := range map[string]struct {
		make        func(d *desk) payments.PartID
		waits, sent bool
		want        State
		effect      EffectKind
	}{
		"held, waits": {func(d *desk) (p payments.PartID) { d.held(termsOf(1)); return p }, true, false, StateHeld, 0},
		"held, gone":  {func(d *desk) (p payments.PartID) { d.held(termsOf(1)); return p }, false, false, StateExpired, 0},
		"offered, sent": {
			func(d *desk) payments.PartID { return d.offered(termsOf(1)) }, true, true, StateOffered, 0,
		},
		"offered, never left": {
			func(d *desk) payments.PartID { return d.offered(termsOf(1)) }, true, false, StateHeld, FxForget,
		},
		"offered, nothing": {
			func(d *desk) payments.PartID { return d.offered(termsOf(1)) }, false, false, StateExpired, FxForget,
		},
		"claimed, waits": {
			func(d *desk) payments.PartID {
				p := d.offered(termsOf(1))
				d.step(fulfilled(p, preimageOf(1)))
				return p
			}, true, true, StateClaimed, FxFulfil,
		},
		"claimed, decided": {
			func(d *desk) payments.PartID {
				p := d.offered(termsOf(1))
				d.step(fulfilled(p, preimageOf(1)))
				return p
			}, false, true, StateSettled, 0,
		},
		"cancelled, waits": {
			func(d *desk) (p payments.PartID) {
				d.held(termsOf(1))
				d.step(&HolderEvent{Kind: HolderCancel, ID: termsOf(1).ID})
				return p
			}, true, false, StateCancelled, FxReject,
		},
	} {
		d := newDesk(t)
		part := c.make(d)
		d = d.restored()
		fx := restart(d, c.waits, c.sent, part)
		if d.state(termsOf(1).ID) != c.want || c.effect != 0 && find(fx, c.effect) == nil {
			t.Errorf("%s: %v, %v", name, d.state(termsOf(1).ID), fx)
		}
	}
	// The payer's part went back while the payee was paid: the operator hears it.
	d := newDesk(t)
	part := d.offered(termsOf(1))
	d.step(&HolderEvent{Kind: HolderGone, ID: termsOf(1).ID})
	d.step(fulfilled(part, preimageOf(1)))
	if fx := d.step(&HolderEvent{Kind: HolderGone, ID: termsOf(1).ID}); find(fx, FxLost) == nil || d.state(termsOf(1).ID) != StateSettled {
		t.Fatal(fx)
	}
}

func TestPrice(t *testing.T) {
	for _, c := range []struct {
		base   tally.Amount
		ppm    uint32
		amount tally.Amount
		d      time.Duration
		want   tally.Amount
	}{
		{1, 0, 1 << 61, time.Hour, 1},
		{1, 100, 1_000_000, time.Hour, 101},
		{0, 100, 1_000_000, time.Hour + 1, 200},
		{0, 1, 1, time.Minute, 1},
		{0, 1, 1, 0, 0},
		{5, 1_000_000, 1<<62 - 1, 672 * time.Hour, tally.MaxAmount},
	} {
		p := Policy{PriceBase: c.base, PricePPM: c.ppm}
		if got := p.Price(c.amount, c.d); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
	for name, p := range map[string]Policy{
		"ppm": {PricePPM: 1_000_001}, "base": {PriceBase: 1 << 62}, "time": {MaxTime: time.Second}, "long": {MaxTime: 1000 * time.Hour},
		"return": {MaxReturn: time.Minute}, "poll": {PollEvery: time.Millisecond},
	} {
		if p.Complete().Validate() == nil {
			t.Errorf("%s passes", name)
		}
	}
	if err := (Policy{}).Complete().Validate(); err != nil {
		t.Error(err)
	}
}

// TestRandomHolder: whatever comes in whatever order, the invariants hold, a restore
// gives the same rows, and money goes one way: a row that was given back is never
// paid out, and the other way round.
func TestRandomHolder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := newDesk(t)
		live := make(map[payments.PartID]byte) // offers
		back, paid := make(map[ID]bool), make(map[ID]bool)
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			n := byte(rapid.IntRange(1, 3).Draw(rt, "hold"))
			terms := termsOf(n)
			ev := &HolderEvent{ID: terms.ID}
			switch rapid.IntRange(0, 9).Draw(rt, "event") {
			case 0, 1:
				ev.Kind, ev.Terms = HolderPark, terms
			case 2, 3:
				ev.Kind, ev.Arrival = HolderPart, arrivalOf(terms)
			case 4, 5:
				ev.Kind, ev.Peer = HolderRelease, payeeID
			case 6:
				ev.Kind, ev.Peer = HolderCancel, rapid.SampledFrom([]peer.ID{payerID, payeeID, "", "other"}).Draw(rt, "who")
			case 7:
				r, _ := d.Get(terms.ID)
				if ev = rejected(r.Out); rapid.Bool().Draw(rt, "pays") {
					ev = fulfilled(r.Out, preimageOf(n))
				}
			case 8:
				ev.Kind = rapid.SampledFrom([]HolderKind{HolderDone, HolderGone}).Draw(rt, "end")
			case 9:
				d.now += rapid.Int64Range(0, 40*minute).Draw(rt, "time")
				ev.Kind = HolderTick
			}
			fx, _ := d.try(ev)
			for i := range fx {
				switch f := &fx[i]; f.Kind {
				case FxSend:
					live[f.PartID] = n
					if back[f.ID] {
						rt.Fatalf("hold %s was given back and is offered", f.ID)
					}
				case FxForget:
					delete(live, f.PartID)
				case FxReject:
					for _, k := range live {
						if termsOf(k).ID == f.PartID && f.ID == f.PartID && d.state(f.PartID) == StateOffered {
							rt.Fatalf("hold %s is offered and was given back", f.PartID)
						}
					}
					back[f.ID] = f.ID != ID{}
					if paid[f.ID] && f.ID != (ID{}) {
						rt.Fatalf("hold %s was claimed and is given back", f.ID)
					}
				case FxFulfil:
					paid[f.ID] = true
					if back[f.ID] {
						rt.Fatalf("hold %s was given back and is claimed", f.ID)
					}
				}
			}
			if again := d.restored(); !reflect.DeepEqual(again.records(), d.records()) {
				rt.Fatal("a restore gives other rows")
			}
		}
	})
}

func TestDamagedHeldRecord(t *testing.T) {
	d := newDesk(t)
	d.offered(termsOf(1))
	rec := d.rows[termsOf(1).ID].record()
	for n := range rec {
		if NewHolder(holderID, Policy{}).Restore(termsOf(1).ID, rec[:n]) == nil {
			t.Fatalf("taken with %d bytes", n)
		}
	}
	if NewHolder(holderID, Policy{}).Restore(termsOf(1).ID, append(bytes.Clone(rec), 0)) == nil {
		t.Fatal("taken with a byte more")
	}
	if NewHolder("other", Policy{}).Restore(termsOf(1).ID, rec) == nil {
		t.Fatal("taken by another node")
	}
	if _, _, err := durable.Unseal("k", recordVersion, saveRecord("k", rec).Record); err != nil {
		t.Fatal(err)
	}
}

func FuzzHolderStep(f *testing.F) {
	f.Add([]byte{0, 1, 2, 1, 4, 1, 7, 1, 8, 1})
	f.Fuzz(func(t *testing.T, script []byte) {
		d := newDesk(t)
		for ; len(script) > 1; script = script[2:] {
			n := script[1]%4 + 1
			terms := termsOf(n)
			r, _ := d.Get(terms.ID)
			ev := &HolderEvent{Kind: HolderKind(script[0]%12) + 1, Terms: terms, Arrival: arrivalOf(terms), ID: terms.ID, Peer: payeeID}
			ev.Answer = &payments.Answer{PartID: r.Out, Fulfilled: script[1]&0x80 != 0, Preimage: preimageOf(n)}
			if script[1]&0x40 != 0 {
				ev.Peer = payerID
			}
			if script[1]&0x20 != 0 {
				d.now += 7 * minute
			}
			_, _ = d.try(ev)
			d.restored()
		}
	})
}

func FuzzHeldRecord(f *testing.F) {
	d := newDesk(f)
	d.offered(termsOf(1))
	f.Add(d.rows[termsOf(1).ID].record())
	f.Fuzz(func(t *testing.T, rec []byte) {
		h := NewHolder(holderID, Policy{})
		if h.Restore(termsOf(1).ID, rec) != nil {
			return
		}
		if err := h.Check(); err != nil {
			t.Fatal(err)
		}
		if got := h.rows[termsOf(1).ID].record(); !bytes.Equal(got, rec) {
			t.Fatal("two records of one row")
		}
	})
}
