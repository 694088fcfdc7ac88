package hold

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

// counter is a payee with the clock in hand, and a holder that offers.
type counter struct {
	t testing.TB
	*Payee
	me, holder identity
	now        int64
}

func newCounter(t testing.TB) *counter {
	me, holder := identityOf(t, 1), identityOf(t, 2)
	return &counter{t: t, Payee: NewPayee(me.id, me.key), me: me, holder: holder, now: start}
}

func (c *counter) try(ev *InEvent) ([]Effect, error) {
	c.t.Helper()
	fx, err := c.Step(c.now, ev, nil)
	if cerr := c.Check(); cerr != nil {
		c.t.Fatal(cerr)
	}
	return fx, err
}

func (c *counter) step(ev *InEvent) []Effect {
	c.t.Helper()
	fx, err := c.try(ev)
	if err != nil {
		c.t.Fatal(err)
	}
	return fx
}

// restored is the core that a crash leaves.
func (c *counter) restored() *counter {
	c.t.Helper()
	n := *c
	n.Payee = NewPayee(c.me.id, c.me.key)
	for h, g := range c.given {
		if err := n.RestoreGiven(h, g.record()); err != nil {
			c.t.Fatal(err)
		}
	}
	for id, r := range c.receipts {
		if err := n.RestoreReceipt(id, r.record()); err != nil {
			c.t.Fatal(err)
		}
	}
	return &n
}

// sealed is a hold of 100 for the payee.
func (c *counter) sealed(n byte) *Terms {
	c.t.Helper()
	t := termsOf(n)
	t.Holder, t.Payee = c.holder.id, c.me.id
	var err error
	t.Box, err = Seal(&counting{n: n}, c.me.id, t.bound(), &Sealed{Preimage: preimageOf(n), Amount: 100, Expires: t.Expires})
	if err != nil {
		c.t.Fatal(err)
	}
	return t
}

func (c *counter) offer(t *Terms, part byte) *payments.Arrival {
	return &payments.Arrival{
		PartID: payments.PartID{part}, Hash: t.Hash, From: t.Holder, Amount: t.Amount, Expires: c.now + minute,
		Data: offerData(&Held{Terms: *t}),
	}
}

func (c *counter) takes(a *payments.Arrival) bool {
	c.t.Helper()
	again := c.receipts[a.PartID] != nil // it was saved before
	fx := c.step(&InEvent{Kind: InOffer, Arrival: a})
	took, back := find(fx, FxFulfil), find(fx, FxReject)
	if (took == nil) == (back == nil) {
		c.t.Fatal(fx)
	}
	if took != nil && (fx[0].Kind != FxSave && !again || !took.Preimage.Opens(a.Hash)) {
		c.t.Fatal("shown before it was saved, or another one", fx)
	}
	return took != nil
}

// TestShowsForEnough: the preimage is shown for what the payer sealed and not for a
// unit less, in time and not after, and to the holder it was sealed for.
func TestShowsForEnough(t *testing.T) {
	for name, change := range map[string]func(c *counter, a *payments.Arrival){
		"less than sealed": func(_ *counter, a *payments.Arrival) { a.Amount-- },
		"another hash":     func(_ *counter, a *payments.Arrival) { a.Hash[0]++ },
		"another holder":   func(c *counter, a *payments.Arrival) { a.From = c.me.id },
		"another hold":     func(_ *counter, a *payments.Arrival) { a.Data[1]++ },
		"damaged box":      func(_ *counter, a *payments.Arrival) { a.Data[OfferSize-1]++ },
		"no box":           func(_ *counter, a *payments.Arrival) { a.Data = a.Data[:17] },
		"short":            func(_ *counter, a *payments.Arrival) { a.Data = a.Data[:40] },
		"nothing":          func(_ *counter, a *payments.Arrival) { a.Data = nil },
		"kind":             func(_ *counter, a *payments.Arrival) { a.Data[0] = kindHold },
		"no time":          func(c *counter, a *payments.Arrival) { a.Expires = c.now + ShowMargin.Milliseconds() - 1 },
		"after the end":    func(c *counter, a *payments.Arrival) { c.now = termsOf(1).Expires; a.Expires = c.now + minute },
	} {
		c := newCounter(t)
		a := c.offer(c.sealed(1), 1)
		change(c, a)
		if c.takes(a) || len(c.receipts) != 0 {
			t.Errorf("%s: taken", name)
		}
	}
	c := newCounter(t)
	a := c.offer(c.sealed(1), 1)
	a.Amount++ // more is taken
	a.Expires = c.now + ShowMargin.Milliseconds()
	if !c.takes(a) {
		t.Fatal("refused")
	}
	// Told again after a restart, and claimed again; then it is received.
	c = c.restored()
	if !c.takes(a) || len(c.receipts) != 1 {
		t.Fatal("not claimed again")
	}
	c.step(&InEvent{Kind: InDone, PartID: a.PartID})
	if r := c.Receipts()[0]; r.State != ReceiptReceived || r.Amount != 101 || r.Sealed != 100 {
		t.Fatalf("%+v", r)
	}
	// A node without such a key takes nothing sealed.
	none := newCounter(t)
	none.Payee = NewPayee(none.me.id, nil)
	if none.takes(none.offer(none.sealed(1), 1)) {
		t.Fatal("taken without a key")
	}
}

func TestListed(t *testing.T) {
	c := newCounter(t)
	good := c.sealed(1)
	listed := func(change func(t *Terms)) []Effect {
		cp := *good
		change(&cp)
		return c.step(&InEvent{Kind: InListed, Peer: c.holder.id, Terms: &cp})
	}
	if f := find(listed(func(*Terms) {}), FxRelease); f == nil || f.ID != good.ID || f.Peer != c.holder.id {
		t.Fatal("not asked for")
	}
	for name, change := range map[string]func(t *Terms){
		"less": func(t *Terms) { t.Amount-- }, "hash": func(t *Terms) { t.Hash[0]++ }, "box": func(t *Terms) { t.Box = nil },
	} {
		if f := find(listed(change), FxCancel); f == nil || f.ID != good.ID {
			t.Errorf("%s: the payer waits in vain", name)
		}
	}
	for name, change := range map[string]func(t *Terms){
		"holder": func(t *Terms) { t.Holder = "other" }, "payee": func(t *Terms) { t.Payee = "other" },
	} {
		if fx := listed(change); len(fx) != 0 {
			t.Errorf("%s: %v", name, fx)
		}
	}
}

// TestClaimThatWasNotCollected: nothing was shown, and the next offer is taken.
func TestClaimThatWasNotCollected(t *testing.T) {
	c := newCounter(t)
	terms := c.sealed(1)
	a := c.offer(terms, 1)
	c.takes(a)
	c.step(&InEvent{Kind: InGone, PartID: a.PartID})
	if len(c.receipts) != 0 || !c.takes(c.offer(terms, 2)) {
		t.Fatal("it is not offered again")
	}
	// After a restart within the offer's time what does not wait was shown; after
	// it, nobody here knows.
	for later, want := range map[int64]ReceiptState{0: ReceiptReceived, minute: ReceiptUnsure} {
		n := c.restored()
		n.now += later
		n.step(&InEvent{Kind: InRestart})
		if s := n.Receipts()[0].State; s != want {
			t.Errorf("%d ms later: %s", later, s)
		}
		// The holder offers again: it was not.
		if !n.takes(n.offer(terms, 3)) || later > 0 && len(n.receipts) != 1 {
			t.Errorf("%d ms later: %v", later, n.Receipts())
		}
	}
	n := c.restored()
	if f := find(n.step(&InEvent{Kind: InRestart, Waiting: map[payments.PartID]bool{{2}: true}}), FxFulfil); f == nil {
		t.Fatal("what waits is not claimed")
	}
}

func TestReceiptsAreBounded(t *testing.T) {
	c := newCounter(t)
	terms := c.sealed(1)
	for i := range MaxReceipts + 3 {
		a := c.offer(terms, 0)
		a.PartID = payments.PartID{byte(i), byte(i >> 8)}
		fx, err := c.Step(c.now+int64(i), &InEvent{Kind: InOffer, Arrival: a}, nil)
		if err != nil || find(fx, FxFulfil) == nil {
			t.Fatal(i, fx, err)
		}
		if _, err := c.Step(c.now, &InEvent{Kind: InDone, PartID: a.PartID}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Check(); err != nil || len(c.receipts) != MaxReceipts || c.receipts[payments.PartID{2}] != nil {
		t.Fatal(err, len(c.receipts))
	}
	for _, r := range c.receipts {
		r.State = ReceiptClaiming
	}
	a := c.offer(terms, 0)
	a.PartID = payments.PartID{9, 99}
	if c.takes(a) {
		t.Fatal("a claim was forgotten")
	}
}

func testPromise(t testing.TB, payee identity, payer peer.ID) *Given {
	t.Helper()
	g := &Given{Preimage: preimageOf(5), Promise: Promise{
		Realm: "test/karma", Payee: payee.id, Payer: payer, Hash: preimageOf(5).Hashlock(), Amount: 100, Expires: start + 60*minute,
	}}
	var err error
	if g.Signature, err = payee.priv.Sign(g.SigningBytes()); err != nil {
		t.Fatal(err)
	}
	return g
}

// TestPromiseIsKeptOnce: a hash that was given out is shown for enough, for one
// hold, in time. Another hold with it is refused: its payer has been cheated.
func TestPromiseIsKeptOnce(t *testing.T) {
	c := newCounter(t)
	g := testPromise(t, c.me, c.holder.id)
	c.step(&InEvent{Kind: InPromise, Given: g})
	if _, err := c.try(&InEvent{Kind: InPromise, Given: g}); !errors.Is(err, ErrConflict) {
		t.Fatal(err)
	}
	hold := func(n byte) *Terms {
		terms := termsOf(n)
		terms.Hash, terms.Box, terms.Holder, terms.Payee = g.Hash, nil, c.holder.id, c.me.id
		return terms
	}
	less := c.offer(hold(1), 1)
	less.Amount--
	if c.takes(less) {
		t.Fatal("shown for less")
	}
	if !c.takes(c.offer(hold(1), 2)) {
		t.Fatal("not shown")
	}
	c = c.restored()
	if c.takes(c.offer(hold(2), 3)) {
		t.Fatal("shown for a second hold")
	}
	if f := find(c.step(&InEvent{Kind: InListed, Peer: c.holder.id, Terms: hold(2)}), FxCancel); f == nil {
		t.Fatal("a second hold is asked for")
	}
	if got, ok := c.Given(g.Hash); !ok || got.Used != hold(1).ID {
		t.Fatal(got, ok)
	}
	// It ends, and is forgotten later.
	late := newCounter(t)
	late.step(&InEvent{Kind: InPromise, Given: g})
	late.now = g.Expires
	if late.takes(late.offer(hold(1), 1)) {
		t.Fatal("shown after its end")
	}
	late.step(&InEvent{Kind: InTick})
	if len(late.given) != 0 {
		t.Fatal("kept for ever")
	}
	for name, change := range map[string]func(g *Given){
		"payee": func(g *Given) { g.Payee = c.holder.id; g.Payer = c.me.id }, "preimage": func(g *Given) { g.Preimage[0]++ },
		"over": func(g *Given) { g.Expires = start }, "too long": func(g *Given) { g.Expires = start + MaxPromiseTime.Milliseconds() + 1 },
	} {
		bad := *g
		change(&bad)
		if _, err := newCounter(t).try(&InEvent{Kind: InPromise, Given: &bad}); !errors.Is(err, ErrTerms) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPromiseText(t *testing.T) {
	payee, payer := identityOf(t, 1), identityOf(t, 3)
	g := testPromise(t, payee, payer.id)
	text := g.Promise.String()
	if want := vector(t, "promise.text"); text != want {
		t.Errorf("promise.text %s", text)
	}
	p, err := ParsePromise(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Verify("test/karma", payer.id); err != nil {
		t.Fatal(err)
	}
	if err := p.Verify("test/karma", payee.id); !errors.Is(err, ErrNotOurs) {
		t.Fatal(err)
	}
	if err := p.Verify("main/FIL", payer.id); !errors.Is(err, ErrPromise) {
		t.Fatal(err)
	}
	for name, change := range map[string]func(p *Promise){
		"realm": func(p *Promise) { p.Realm += "x" }, "payer": func(p *Promise) { p.Payer = identityOf(t, 2).id },
		"hash": func(p *Promise) { p.Hash[0]++ }, "amount": func(p *Promise) { p.Amount-- }, "expires": func(p *Promise) { p.Expires++ },
		"signature": func(p *Promise) { p.Signature = bytes.Clone(p.Signature); p.Signature[0]++ },
		"nothing":   func(p *Promise) { p.Amount = 0 }, "to itself": func(p *Promise) { p.Payer = p.Payee },
	} {
		bad := p
		change(&bad)
		if err := bad.Verify(bad.Realm, bad.Payer); !errors.Is(err, ErrPromise) {
			t.Errorf("%s may change: %v", name, err)
		}
	}
	for name, bad := range map[string]string{
		"empty": "", "prefix": strings.ToUpper(text), "cut": text[:len(text)-1], "line end": text + "\n", "long": strings.Repeat("0", 2000),
		"changed": text[:40] + "0" + text[41:], "no check": "tallyhold1",
	} {
		if _, err := ParsePromise(bad); !errors.Is(err, ErrPromise) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParsePromise(f *testing.F) {
	g := testPromise(f, identityOf(f, 1), identityOf(f, 3).id)
	f.Add(g.Promise.String())
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := ParsePromise(text); err == nil && p.String() != text {
			t.Fatal("two texts of one promise")
		}
	})
}

// TestPayerTable: each event in each status.
func TestPayerTable(t *testing.T) {
	row := func() *Sent {
		return &Sent{Terms: *termsOf(1), Preimage: preimageOf(1), Certain: start + 200*minute}
	}
	id := termsOf(1).ID
	answer := func(paid bool) *SentEvent {
		return &SentEvent{Kind: SentAnswer, Answer: &payments.Answer{PartID: id, Fulfilled: paid, Preimage: preimageOf(1), Failure: payments.Failure{Code: payments.FailRefused}}}
	}
	parked, refused := &SentEvent{Kind: SentParked, ID: id}, &SentEvent{Kind: SentRefused, ID: id}
	cancel := &SentEvent{Kind: SentCancel, ID: id}
	restart := func(has bool) *SentEvent {
		return &SentEvent{Kind: SentRestart, Has: map[payments.PartID]bool{id: has}}
	}
	for name, c := range map[string]struct {
		events []*SentEvent
		want   Status
		last   EffectKind // of the last event; 0: none but saves
	}{
		"agreed":             {[]*SentEvent{parked}, StatusHeld, FxSend},
		"agreed twice":       {[]*SentEvent{parked, parked}, StatusHeld, 0},
		"refused":            {[]*SentEvent{refused}, StatusFailed, FxWake},
		"refused late":       {[]*SentEvent{parked, refused}, StatusHeld, 0},
		"paid":               {[]*SentEvent{parked, answer(true)}, StatusComplete, FxForget},
		"given back":         {[]*SentEvent{parked, answer(false)}, StatusFailed, FxForget},
		"paid after all":     {[]*SentEvent{parked, answer(false), answer(true)}, StatusComplete, FxForget},
		"no way back":        {[]*SentEvent{parked, answer(true), answer(false)}, StatusComplete, FxForget},
		"cancel":             {[]*SentEvent{parked, cancel}, StatusHeld, FxCancel},
		"cancel, then paid":  {[]*SentEvent{parked, cancel, answer(true)}, StatusComplete, FxForget},
		"cancel before":      {[]*SentEvent{cancel, parked}, StatusFailed, FxWake},
		"parked again":       {[]*SentEvent{restart(false)}, StatusParking, FxPark},
		"never left":         {[]*SentEvent{parked, restart(false)}, StatusFailed, FxWake},
		"left":               {[]*SentEvent{parked, restart(true)}, StatusHeld, 0},
		"cancel and restart": {[]*SentEvent{cancel, restart(false)}, StatusFailed, FxWake},
	} {
		p := NewPayer()
		if _, err := p.Step(start, &SentEvent{Kind: SentPay, Row: row()}, nil); err != nil {
			t.Fatal(err)
		}
		var fx []Effect
		for _, ev := range c.events {
			again := NewPayer()
			if err := again.Restore(id, p.rows[id].record()); err != nil {
				t.Fatal(name, err)
			}
			p = again
			var err error
			if fx, err = p.Step(start+1, ev, nil); err != nil {
				t.Fatal(name, err)
			}
			if err := p.Check(); err != nil {
				t.Fatal(name, err)
			}
		}
		got, _ := p.Get(id)
		if got.Status != c.want || c.last != 0 && find(fx, c.last) == nil {
			t.Errorf("%s: %v, %v", name, got.Status, fx)
		}
		if c.last == 0 && len(fx) > 0 {
			t.Errorf("%s: %v", name, fx)
		}
	}
	// Agreed when its time is over.
	p := NewPayer()
	if _, err := p.Step(start, &SentEvent{Kind: SentPay, Row: row()}, nil); err != nil {
		t.Fatal(err)
	}
	if fx, err := p.Step(termsOf(1).Expires, parked, nil); err != nil || find(fx, FxSend) != nil {
		t.Fatal("money left for nothing", fx, err)
	}
	if _, err := p.Step(start, cancel, nil); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(r *Sent){
		"preimage": func(r *Sent) { r.Preimage[0]++ }, "no box": func(r *Sent) { r.Box = nil }, "box and promise": func(r *Sent) { r.Promised = true },
		"over": func(r *Sent) { r.Expires, r.Until = start, start+60*minute },
	} {
		r := row()
		change(r)
		if _, err := NewPayer().Step(start, &SentEvent{Kind: SentPay, Row: r}, nil); !errors.Is(err, ErrTerms) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPayerForgets what is decided and old, and no hash of a promise that could be
// paid again.
func TestPayerForgets(t *testing.T) {
	p := NewPayer()
	g := testPromise(t, identityOf(t, 1), identityOf(t, 3).id)
	for i := range KeptOurs + 5 {
		r := &Sent{Terms: *termsOf(1), Preimage: preimageOf(1)}
		r.ID = ID{byte(i), byte(i >> 8), 1}
		if i == 0 {
			r.Preimage, r.Hash, r.Box, r.Promised = tally.Preimage{}, g.Hash, nil, true
		}
		if _, err := p.Step(start+int64(i), &SentEvent{Kind: SentPay, Row: r}, nil); err != nil {
			t.Fatal(i, err)
		}
		if _, err := p.Step(start+int64(i), &SentEvent{Kind: SentRefused, ID: r.ID}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Step(start+minute, &SentEvent{Kind: SentTick}, nil); err != nil {
		t.Fatal(err)
	}
	if len(p.rows) != KeptOurs || p.rows[ID{0, 0, 1}] == nil || p.rows[ID{1, 0, 1}] != nil {
		t.Fatal(len(p.rows))
	}
	if _, err := p.Step(start+(31*24*time.Hour).Milliseconds(), &SentEvent{Kind: SentTick}, nil); err != nil || len(p.rows) != 0 || len(p.hashes) != 0 {
		t.Fatal(err, len(p.rows))
	}
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
}

func FuzzPayeeOffer(f *testing.F) {
	c := newCounter(f)
	f.Add(c.offer(c.sealed(1), 1).Data, uint64(100))
	f.Add([]byte{kindOffer}, uint64(1))
	f.Fuzz(func(t *testing.T, data []byte, amount uint64) {
		n := *c
		n.t, n.Payee = t, NewPayee(c.me.id, c.me.key)
		a := n.offer(n.sealed(1), 1)
		a.Data, a.Amount = data, tally.Amount(amount)
		if n.takes(a) && amount < 100 {
			t.Fatal("shown for less than was sealed")
		}
	})
}
