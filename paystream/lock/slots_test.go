package lock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

// filecoin are the terms of the main network.
func filecoin() Terms {
	return Terms{Finality: 5, Inclusion: 20, Grace: 10, SettleDelay: 1440, Margin: 480, Extension: 1440, Skew: 2, Slots: 4}
}

func pre(n byte) tally.Preimage { return tally.Preimage{n, 1} }

// end is one side with its disk.
type end struct {
	t    *testing.T
	s    *Slots
	now  int64
	disk map[uint64][]byte
	kept []Voucher
	// out is what was sent, said what else was told.
	out  []Effect
	said []Effect
}

func newEnd(t *testing.T, role Role, terms Terms) *end {
	e := &end{t: t, s: New(role, terms), now: 100, disk: map[uint64][]byte{}}
	e.must(Event{Kind: EvChain, Head: View{Height: 100}, Final: View{Height: 95}})
	return e
}

// step carries the effects out, signing at once.
func (e *end) step(ev Event) error {
	fx, err := e.s.Step(e.now, &ev, nil)
	if err != nil {
		return err
	}
	for len(fx) > 0 {
		f := fx[0]
		fx = fx[1:]
		switch f.Kind {
		case FxSave, FxForget:
			e.disk[f.Lane] = e.s.Record(f.Lane)
		case FxKeep:
			e.kept = append(e.kept, f.Voucher)
		case FxSign:
			v := f.Voucher
			v.Raw = fmt.Sprintf("%s signs %d.%d", e.s.Role(), v.Lane, v.Nonce)
			more, err := e.s.Step(e.now, &Event{Kind: EvSigned, ID: f.ID, Voucher: v}, nil)
			if err != nil {
				return err
			}
			fx = append(more, fx...)
		case FxSend:
			e.out = append(e.out, f)
		default:
			e.said = append(e.said, f)
		}
	}
	return e.s.Check()
}

func (e *end) must(ev Event) {
	e.t.Helper()
	if err := e.step(ev); err != nil {
		e.t.Fatalf("event %d: %v", ev.Kind, err)
	}
}

func (e *end) restart() {
	e.t.Helper()
	s := New(e.s.role, e.s.terms)
	s.head = e.s.head
	for lane, rec := range e.disk {
		if err := s.Restore(lane, rec); err != nil {
			e.t.Fatal(err)
		}
	}
	if err := s.Check(); err != nil {
		e.t.Fatal(err)
	}
	e.s, e.out = s, nil
}

// told returns what was told of a lock, and forgets it.
func (e *end) told(kind EffectKind) int {
	n := 0
	e.said = slices.DeleteFunc(e.said, func(f Effect) bool {
		if f.Kind == kind {
			n++
		}
		return f.Kind == kind
	})
	return n
}

// deliver takes what from has sent to the other side.
func (e *end) deliver(from *end, amounts map[uint64]tally.Amount) error {
	out := from.out
	from.out = nil
	for _, f := range out {
		if err := e.hear(f, amounts[f.ID]); err != nil {
			return err
		}
	}
	return nil
}

func (e *end) hear(f Effect, amount tally.Amount) error {
	switch f.Send {
	case SendLock:
		return e.step(Event{Kind: EvLock, ID: f.ID, Amount: amount, Voucher: f.Voucher, Guard: f.Guard})
	case SendLockAck:
		return e.step(Event{Kind: EvAcked, ID: f.ID})
	case SendFulfil:
		err := e.step(Event{Kind: EvPreimage, ID: f.ID, Preimage: f.Preimage})
		if errors.Is(err, ErrUnknown) {
			return nil // it is over; a carrier acks it
		}
		return err
	case SendUnlock:
		return e.step(Event{Kind: EvUnlock, ID: f.ID, Voucher: f.Voucher})
	case SendUnlockAck:
		return e.step(Event{Kind: EvUnlockAcked, ID: f.ID})
	case SendCancel:
		return e.step(Event{Kind: EvCancel, ID: f.ID, Voucher: f.Voucher})
	case SendCancelAck:
		return e.step(Event{Kind: EvCancelAcked, ID: f.ID})
	case SendShow:
		return e.step(Event{Kind: EvShown, Voucher: f.Voucher})
	}
	return nil
}

// talk is until nobody has anything to say.
func talk(t *testing.T, payer, payee *end, amounts map[uint64]tally.Amount) {
	t.Helper()
	for len(payer.out)+len(payee.out) > 0 {
		if err := payee.deliver(payer, amounts); err != nil {
			t.Fatal(err)
		}
		if err := payer.deliver(payee, amounts); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLockLives(t *testing.T) {
	terms := filecoin()
	amounts := map[uint64]tally.Amount{1: 50, 2: 70, 3: 90}
	payer, payee := newEnd(t, Payer, terms), newEnd(t, Payee, terms)
	offer := func(id uint64, until int64) {
		payer.must(Event{Kind: EvOffer, ID: id, Amount: amounts[id], Hash: pre(byte(id)).Hashlock(), Expires: until, Long: true})
		talk(t, payer, payee, amounts)
	}

	offer(1, 200)
	if got := payer.s.Locks(); len(got) != 1 || !got[0].Acked || got[0].Phase != Locked || payee.told(FxTaken) != 1 {
		t.Fatalf("after the offer: %+v", got)
	}
	payee.must(Event{Kind: EvFulfil, ID: 1, Preimage: pre(1)})
	if payee.told(FxSecret) != 1 {
		t.Error("the chain's watcher does not know the preimage")
	}
	talk(t, payer, payee, amounts)
	if paid, pending := payer.s.Totals(); paid != 50 || pending != 0 || payer.told(FxFulfilled) != 1 || payee.told(FxEnded) != 1 {
		t.Fatalf("paid %d, pending %d", paid, pending)
	}
	if v := payee.kept[len(payee.kept)-1]; v.Nonce != 2 || v.Amount != 50 || v.Locked {
		t.Errorf("UNLOCK is %+v", v)
	}

	offer(2, 200)
	payee.must(Event{Kind: EvGive, ID: 2})
	talk(t, payer, payee, amounts)
	if payer.told(FxFailed) != 1 || len(payer.s.Locks())+len(payee.s.Locks()) != 0 {
		t.Fatal("given up and not over")
	}
	if v := payer.kept[0]; v.Nonce != 4 || v.Amount != 50 {
		t.Errorf("CANCEL is %+v", v)
	}

	// A guard holds a channel open for a lock that ends late.
	offer(3, 100+1440)
	if payee.s.guardHeight != 1540+480 || payee.s.slots[0].guard != 1540+480 {
		t.Errorf("guard at %d", payee.s.guardHeight)
	}
	payee.must(Event{Kind: EvFulfil, ID: 3, Preimage: pre(3)})
	talk(t, payer, payee, amounts)
	if !reflect.DeepEqual(payer.s.States(), payee.s.States()) {
		t.Errorf("the two sides differ: %+v and %+v", payer.s.States(), payee.s.States())
	}
	payer.restart()
	payee.restart()
	if paid, _ := payee.s.Totals(); paid != 140 {
		t.Errorf("the payee was paid %d", paid)
	}
}

func TestSlotsFull(t *testing.T) {
	payer := newEnd(t, Payer, filecoin())
	for id := range uint64(4) {
		payer.must(Event{Kind: EvOffer, ID: id + 1, Amount: 1, Hash: pre(1).Hashlock(), Expires: 200})
	}
	if err := payer.step(Event{Kind: EvOffer, ID: 9, Amount: 1, Hash: pre(1).Hashlock(), Expires: 200}); !errors.Is(err, ErrFull) {
		t.Errorf("got %v", err)
	}
	if payer.s.Room() != 0 || len(payer.s.Locks()) != 4 {
		t.Errorf("room %d", payer.s.Room())
	}
}

func TestOfferRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		ev   Event
		head View
		want error
	}{
		"too soon for the payee":     {Event{Amount: 1, Expires: 100 + 31 + 1}, View{}, ErrTooSoon},
		"as soon as may be":          {Event{Amount: 1, Expires: 100 + 31 + 2}, View{}, nil},
		"at the horizon":             {Event{Amount: 1, Expires: 100 + 960 - 2}, View{}, nil},
		"beyond the horizon":         {Event{Amount: 1, Expires: 100 + 960 - 1}, View{}, ErrTooFar},
		"under a guard":              {Event{Amount: 1, Expires: 100 + 960, Long: true}, View{}, nil},
		"beyond what a guard can do": {Event{Amount: 1, Expires: 100 + 960 + 1440 - 1, Long: true}, View{}, ErrTooFar},
		"nothing":                    {Event{Expires: 200}, View{}, ErrAmount},
		"too much":                   {Event{Amount: 1 << 63, Expires: 200}, View{}, ErrAmount},
		"the channel settles":        {Event{Amount: 1, Expires: 200}, View{SettlingAt: 1540}, ErrSettling},
		"the channel is gone":        {Event{Amount: 1, Expires: 200}, View{Gone: true}, ErrSettling},
	} {
		payer := newEnd(t, Payer, filecoin())
		c.head.Height = 100
		payer.must(Event{Kind: EvChain, Head: c.head, Final: View{Height: 95}})
		c.ev.Kind, c.ev.ID, c.ev.Hash = EvOffer, 1, pre(1).Hashlock()
		if err := payer.step(c.ev); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTakeRefuses(t *testing.T) {
	lock := func(change func(*Event)) Event {
		ev := Event{Kind: EvLock, ID: 1, Amount: 5, Voucher: Voucher{
			Lane: 2, Nonce: 1, Amount: 5, Locked: true, Hash: pre(1).Hashlock(), Expires: 200,
		}}
		change(&ev)
		return ev
	}
	for name, c := range map[string]struct {
		change func(*Event)
		want   error
		given  bool // it is given up with a CANCEL
	}{
		"good":                      {func(*Event) {}, nil, false},
		"lane 0":                    {func(ev *Event) { ev.Voucher.Lane = 0 }, ErrForm, false},
		"beyond the guard":          {func(ev *Event) { ev.Voucher.Lane = 6 }, ErrForm, false},
		"no expiry":                 {func(ev *Event) { ev.Voucher.Expires = 0 }, ErrForm, false},
		"not before":                {func(ev *Event) { ev.Voucher.From = 1 }, ErrForm, false},
		"a settle height":           {func(ev *Event) { ev.Voucher.MinSettle = 1 }, ErrForm, false},
		"a point lock":              {func(ev *Event) { ev.Voucher.Locked, ev.Voucher.Hash = false, tally.Hashlock{} }, ErrPoint, false},
		"an even nonce":             {func(ev *Event) { ev.Voucher.Nonce = 2 }, ErrNonce, false},
		"a nonce near the end":      {func(ev *Event) { ev.Voucher.Nonce = 1<<63 + 1 }, ErrNonce, false},
		"a lower total":             {func(ev *Event) { ev.Voucher.Amount = 4 }, ErrNonce, false},
		"a higher total":            {func(ev *Event) { ev.Voucher.Amount = 6 }, ErrNonce, false},
		"nothing":                   {func(ev *Event) { ev.Amount, ev.Voucher.Amount = 0, 0 }, ErrAmount, false},
		"more than fits":            {func(ev *Event) { ev.Amount, ev.Voucher.Amount = 1<<63, 1<<63 }, ErrAmount, false},
		"after nonces that are out": {func(ev *Event) { ev.Voucher.Nonce = 7 }, nil, false},
		"too soon":                  {func(ev *Event) { ev.Voucher.Expires = 130 }, nil, true},
		"beyond the horizon":        {func(ev *Event) { ev.Voucher.Expires = 1061 }, nil, true},
		"for ever, under a guard": {func(ev *Event) {
			ev.Voucher.Expires, ev.Guard = 1<<63-1, Voucher{Lane: 5, Nonce: 1, MinSettle: 1<<63 - 1}
		}, nil, true},
		"under too low a guard": {func(ev *Event) {
			ev.Voucher.Expires, ev.Guard = 1061, Voucher{Lane: 5, Nonce: 1, MinSettle: 1061 + 479}
		}, nil, true},
		"under a guard": {func(ev *Event) {
			ev.Voucher.Expires, ev.Guard = 1061, Voucher{Lane: 5, Nonce: 1, MinSettle: 1061 + 480}
		}, nil, false},
		"a guard over an amount": {func(ev *Event) {
			ev.Voucher.Expires, ev.Guard = 1061, Voucher{Lane: 5, Nonce: 1, Amount: 1, MinSettle: 1061 + 480}
		}, ErrForm, false},
	} {
		payee := newEnd(t, Payee, filecoin())
		before := *payee.s
		before.slots = slices.Clone(payee.s.slots)
		err := payee.step(lock(c.change))
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && !reflect.DeepEqual(before, *payee.s) {
			t.Errorf("%s: refused, and something changed", name)
		}
		if err == nil {
			last := payee.out[len(payee.out)-1]
			if got := last.Send == SendCancel; got != c.given {
				t.Errorf("%s: answered with %d", name, last.Send)
			}
		}
	}
}

// A lock on a channel that settles, or is gone, is given up at once. The model finds
// no loss without this, for the claim of such a channel goes out at the next head;
// with it nothing hangs on that.
func TestTakeOnSettlingChannel(t *testing.T) {
	for name, head := range map[string]View{
		"settles": {Height: 100, SettlingAt: 1540},
		"is gone": {Height: 100, Gone: true},
	} {
		payee := newEnd(t, Payee, filecoin())
		payee.must(Event{Kind: EvChain, Head: head, Final: View{Height: 95}})
		payee.must(Event{Kind: EvLock, ID: 1, Amount: 5, Voucher: Voucher{
			Lane: 2, Nonce: 1, Amount: 5, Locked: true, Hash: pre(1).Hashlock(), Expires: 200,
		}})
		if last := payee.out[len(payee.out)-1]; last.Send != SendCancel {
			t.Errorf("%s: answered with %d", name, last.Send)
		}
	}
}

// Everything comes twice, and changes nothing the second time.
func TestEverythingTwice(t *testing.T) {
	amounts := map[uint64]tally.Amount{1: 5, 2: 6}
	payer, payee := newEnd(t, Payer, filecoin()), newEnd(t, Payee, filecoin())
	twice := func(from, to *end) {
		t.Helper()
		out := from.out
		from.out = nil
		for _, f := range out {
			for range 2 {
				if err := to.hear(f, amounts[f.ID]); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for range 2 {
		payer.must(Event{Kind: EvOffer, ID: 1, Amount: 5, Hash: pre(1).Hashlock(), Expires: 200})
	}
	if err := payer.step(Event{Kind: EvOffer, ID: 1, Amount: 6, Hash: pre(1).Hashlock(), Expires: 200}); !errors.Is(err, ErrConflict) {
		t.Errorf("another lock under the id: %v", err)
	}
	twice(payer, payee)
	twice(payee, payer)
	for range 2 {
		payee.must(Event{Kind: EvFulfil, ID: 1, Preimage: pre(1)})
	}
	twice(payee, payer)
	twice(payer, payee)
	twice(payee, payer)
	if payee.told(FxTaken) != 1 || payer.told(FxFulfilled) != 1 || payee.told(FxEnded) != 1 {
		t.Error("something was told twice")
	}
	payer.must(Event{Kind: EvOffer, ID: 2, Amount: 6, Hash: pre(2).Hashlock(), Expires: 200})
	twice(payer, payee)
	for range 2 {
		payee.must(Event{Kind: EvGive, ID: 2})
	}
	if err := payee.step(Event{Kind: EvFulfil, ID: 2, Preimage: pre(2)}); !errors.Is(err, ErrGivenUp) {
		t.Errorf("fulfilled what was given up: %v", err)
	}
	twice(payee, payer)
	twice(payer, payee)
	if payer.told(FxFailed) != 1 {
		t.Error("failed twice, or never")
	}
	for _, e := range [...]*end{payer, payee} {
		if paid, pending := e.s.Totals(); paid != 5 || pending != 0 {
			t.Errorf("%s: paid %d, pending %d", e.s.role, paid, pending)
		}
	}
}

func TestTimeDecides(t *testing.T) {
	amounts := map[uint64]tally.Amount{1: 5, 2: 6}
	payer, payee := newEnd(t, Payer, filecoin()), newEnd(t, Payee, filecoin())
	at := func(e *end, head int64, lanes ...LaneView) {
		t.Helper()
		e.now = head
		e.must(Event{Kind: EvChain, Head: View{Height: head, Lanes: lanes}, Final: View{Height: head - 5, Lanes: lanes}})
	}
	payer.must(Event{Kind: EvOffer, ID: 1, Amount: 5, Hash: pre(1).Hashlock(), Expires: 200})
	talk(t, payer, payee, amounts)

	// Off the chain the preimage counts up to the end, on the chain also later.
	at(payer, 201)
	if err := payer.step(Event{Kind: EvPreimage, ID: 1, Preimage: pre(1)}); !errors.Is(err, ErrLate) {
		t.Errorf("after the end: %v", err)
	}
	at(payer, 204)
	if payer.told(FxFailed) != 0 {
		t.Error("failed before the chain is final")
	}
	at(payer, 205)
	at(payee, 200)
	if payee.told(FxEnded) != 0 || payer.told(FxFailed) != 1 {
		t.Error("not ended in time")
	}
	at(payee, 201)
	if payee.told(FxEnded) != 1 || payee.s.slots[0].nonce != 2 || payer.s.slots[0].nonce != 2 {
		t.Error("nonces differ after the end")
	}

	// Unanswered, the preimage goes to the chain S before the end.
	payer.must(Event{Kind: EvOffer, ID: 2, Amount: 6, Hash: pre(2).Hashlock(), Expires: 300})
	talk(t, payer, payee, amounts)
	payee.must(Event{Kind: EvFulfil, ID: 2, Preimage: pre(2)})
	payee.out = nil
	at(payee, 279)
	if payee.told(FxSubmit) != 0 {
		t.Error("submitted early")
	}
	at(payee, 280)
	if payee.told(FxSubmit) != 1 {
		t.Error("not submitted S before the end")
	}
	taken := LaneView{Lane: 1, Nonce: 3, Redeemed: 6}
	at(payee, 281, taken)
	if payee.told(FxEnded) != 1 || len(payee.s.Locks()) != 0 {
		t.Error("redeemed and not over")
	}
	p := pre(2)
	if id, ok := payer.s.Open(&p); !ok || id != 2 {
		t.Fatal("the preimage on the chain opens nothing")
	}
	payer.now = 305
	payer.must(Event{Kind: EvPreimage, ID: 2, Preimage: p, OnChain: true})
	if payer.told(FxFulfilled) != 1 {
		t.Error("the way in is not paid")
	}
	at(payer, 306, taken)
	if paid, _ := payer.s.Totals(); paid != 6 || len(payer.s.Locks()) != 0 {
		t.Errorf("paid %d", paid)
	}
}

// A payee that cannot be paid any more shows nothing, unless it has paid for it.
func TestLatePreimage(t *testing.T) {
	amounts := map[uint64]tally.Amount{1: 5}
	payer, payee := newEnd(t, Payer, filecoin()), newEnd(t, Payee, filecoin())
	payer.must(Event{Kind: EvOffer, ID: 1, Amount: 5, Hash: pre(1).Hashlock(), Expires: 200})
	talk(t, payer, payee, amounts)
	payee.now = 180
	if err := payee.step(Event{Kind: EvFulfil, ID: 1, Preimage: pre(1)}); !errors.Is(err, ErrLate) {
		t.Errorf("got %v", err)
	}
	payee.must(Event{Kind: EvFulfil, ID: 1, Preimage: pre(1), Owed: true})
}

func TestTermsArithmetic(t *testing.T) {
	f := filecoin()
	if f.Delta() != 36 || f.Least() != 31 || f.Horizon(0) != 960 || f.Furthest(0) != 2400 || f.Claim(100, 0) != 80 || f.Claim(100, 51) != 30 {
		t.Errorf("D %d, least %d, horizon %d", f.Delta(), f.Least(), f.Horizon(0))
	}
	if err := f.Fits(); err != nil {
		t.Error(err)
	}
	short := f
	short.SettleDelay, short.Margin = 60, 26
	if err := short.Fits(); !errors.Is(err, ErrOff) {
		t.Errorf("a short settle delay: %v", err)
	}
	thin := f
	thin.Margin = 25
	if err := thin.Validate(); err == nil {
		t.Error("a margin in which no cancel reaches the chain")
	}
	c := &Clock{Head: 100, HeadMS: 1_000_000, EpochMS: 30_000}
	for name, err := range map[string]error{
		"lock after lock":         f.LockAfterLock(236, 200),
		"lock after credit":       f.LockAfterCredit(c, c.Begins(238), 200),
		"credit after lock":       f.CreditAfterLock(c, 100+20+1+31, 1_000_000, 600_000),
		"not lock after lock":     not(f.LockAfterLock(235, 200)),
		"not lock after credit":   not(f.LockAfterCredit(c, c.Begins(238)-1, 200)),
		"not credit after lock":   not(f.CreditAfterLock(c, 100+20+1+30, 1_000_000, 600_000)),
		"not credit, a ms longer": not(f.CreditAfterLock(c, 100+20+1+31, 1_000_001, 600_000)),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func not(err error) error {
	if errors.Is(err, ErrTooSoon) {
		return nil
	}
	return fmt.Errorf("taken, with %w", err)
}

func TestKinds(t *testing.T) {
	f := filecoin()
	lane := func(v Voucher) Voucher { v.Lane = 4; return v }
	for want, list := range map[Kind][]Voucher{
		KindLock:  {lane(Voucher{Locked: true, Expires: 1})},
		KindPlain: {lane(Voucher{Amount: 7}), lane(Voucher{})},
		KindPoint: {lane(Voucher{Expires: 1})},
		KindGuard: {{Lane: 5, MinSettle: 1}},
		KindNone: {
			{},
			{Lane: 6},
			{Lane: 5},
			{Lane: 5, MinSettle: 1, Amount: 1},
			{Lane: 5, MinSettle: 1, Expires: 1},
			lane(Voucher{From: 1}), lane(Voucher{Locked: true}), lane(Voucher{MinSettle: 1}), lane(Voucher{Expires: -1}),
			lane(Voucher{Locked: true, Expires: 1, MinSettle: 1}),
		},
	} {
		for _, v := range list {
			if got := f.KindOf(&v); got != want {
				t.Errorf("%+v is a %s, not a %s", v, got, want)
			}
		}
	}
}

// Each invariant by its name, broken by hand.
func TestCheckNames(t *testing.T) {
	whole := func(l *slot) {
		l.phase, l.id, l.amount, l.expires, l.hash = Locked, 1, 5, 200, pre(1).Hashlock()
	}
	for name, breakIt := range map[string]func(s *Slots){
		"nonce-pairs":    func(s *Slots) { s.slots[0].nonce = 3 },
		"bounded-totals": func(s *Slots) { s.slots[0].base = 1 << 63 },
		"rest-is-empty":  func(s *Slots) { s.slots[0].amount = 1 },
		"lock-is-whole":  func(s *Slots) { s.slots[0].phase = Locked },
		"opened-by-preimage": func(s *Slots) {
			whole(&s.slots[0])
			s.slots[0].preimage = pre(1)
		},
		"payee-cancels":   func(s *Slots) { whole(&s.slots[0]); s.slots[0].phase = Given },
		"cancel-is-past":  func(s *Slots) { s.slots[0].cancelNonce = 2 },
		"guard-covers":    func(s *Slots) { s.slots[0].guard = 7 },
		"one-slot-a-lock": func(s *Slots) { whole(&s.slots[0]); whole(&s.slots[1]) },
	} {
		s := New(Payer, filecoin())
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		breakIt(s)
		if err := s.Check(); !errors.Is(err, ErrInvariant) || !contains(err, name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func contains(err error, name string) bool {
	return err != nil && len(err.Error()) > len(name) && slices.Contains(splitWords(err.Error()), name)
}

func splitWords(s string) []string {
	var words []string
	start := 0
	for i := range len(s) {
		if s[i] == ' ' || s[i] == ':' {
			words = append(words, s[start:i])
			start = i + 1
		}
	}
	return append(words, s[start:])
}

// Goal: whatever is lost, doubled or stopped, both sides come to the same, and every
// lock is decided once at each. Method: two ends on a link that breaks, with stops
// that take an end back to its disk, and a chain that takes nothing.
func TestPairAgrees(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		payer, payee := newEnd(t, Payer, pointTerms()), newEnd(t, Payee, pointTerms())
		amounts := map[uint64]tally.Amount{}
		var sum tally.Amount
		outcome := map[uint64]EffectKind{}
		next := uint64(1)
		note := func() {
			for _, f := range payer.said {
				if f.Kind == FxFulfilled || f.Kind == FxFailed {
					if was, ok := outcome[f.ID]; ok && was != f.Kind {
						rt.Fatalf("lock %d is decided twice", f.ID)
					}
					outcome[f.ID] = f.Kind
				}
			}
			payer.said = nil
		}
		sync := func() {
			payer.out, payee.out = nil, nil
			for _, err := range [...]error{
				payer.step(Event{Kind: EvSync, Lanes: payee.s.States()}),
				payee.step(Event{Kind: EvSync, Lanes: payer.s.States()}),
			} {
				if err != nil {
					rt.Fatal(err)
				}
			}
		}
		hear := func(to, from *end) {
			if len(from.out) == 0 {
				return
			}
			f := from.out[0]
			from.out = from.out[1:]
			if err := to.hear(f, amounts[f.ID]); err != nil {
				rt.Fatalf("%d to the %s: %v", f.Send, to.s.role, err)
			}
		}
		for range rapid.IntRange(5, 60).Draw(rt, "moves") {
			switch rapid.IntRange(0, 7).Draw(rt, "move") {
			case 0:
				amount := tally.Amount(rapid.IntRange(1, 9).Draw(rt, "amount"))
				amounts[next] = amount
				ev := Event{Kind: EvOffer, ID: next, Amount: amount, Hash: pre(byte(next)).Hashlock(), Expires: payer.now + rapid.Int64Range(40, 1500).Draw(rt, "until"), Long: true}
				ev.Point = rapid.SampledFrom([]byte{0, 2, 3}).Draw(rt, "point")
				if err := payer.step(ev); err == nil {
					next++
				} else if !errors.Is(err, ErrFull) {
					rt.Fatal(err)
				}
			case 1, 2:
				hear(payee, payer)
			case 3, 4:
				hear(payer, payee)
			case 5:
				for _, l := range payee.s.Locks() {
					ev := Event{Kind: EvFulfil, ID: l.ID, Preimage: pre(byte(l.ID))}
					if rapid.Bool().Draw(rt, "give") {
						ev = Event{Kind: EvGive, ID: l.ID}
					}
					_ = payee.step(ev) // it may be decided the other way already
				}
			case 6:
				if rapid.Bool().Draw(rt, "which") {
					payer.restart()
				} else {
					payee.restart()
				}
				sync()
			case 7:
				sync()
			}
			note()
		}
		// The link holds, and the payee decides what is left.
		for range 4 {
			sync()
			talk(t, payer, payee, amounts)
			for _, l := range payee.s.Locks() {
				_ = payee.step(Event{Kind: EvGive, ID: l.ID})
			}
			talk(t, payer, payee, amounts)
			note()
		}
		for id := uint64(1); id < next; id++ {
			if outcome[id] == 0 {
				rt.Fatalf("lock %d is not decided: %+v, %+v", id, payer.s.Locks(), payee.s.Locks())
			}
			if outcome[id] == FxFulfilled {
				sum += amounts[id]
			}
		}
		for _, e := range [...]*end{payer, payee} {
			if paid, pending := e.s.Totals(); paid != sum || pending != 0 {
				rt.Fatalf("%s: paid %d and pending %d, fulfilled were %d", e.s.role, paid, pending, sum)
			}
		}
	})
}

// A store that was restored from a backup: its lanes are used no more, and what the
// other side can prove is kept.
func TestLostStore(t *testing.T) {
	amounts := map[uint64]tally.Amount{1: 5, 2: 6}
	for _, who := range [...]Role{Payer, Payee} {
		payer, payee := newEnd(t, Payer, filecoin()), newEnd(t, Payee, filecoin())
		payer.must(Event{Kind: EvOffer, ID: 1, Amount: 5, Hash: pre(1).Hashlock(), Expires: 200})
		talk(t, payer, payee, amounts)
		payee.must(Event{Kind: EvFulfil, ID: 1, Preimage: pre(1)})
		talk(t, payer, payee, amounts)
		lost := payer
		if who == Payee {
			lost = payee
		}
		lost.disk = map[uint64][]byte{}
		lost.restart()
		payer.must(Event{Kind: EvSync, Lanes: payee.s.States()})
		payee.must(Event{Kind: EvSync, Lanes: payer.s.States()})
		talk(t, payer, payee, amounts)
		if who == Payee {
			if paid, _ := payee.s.Totals(); paid != 5 || payee.s.Room() != 4 {
				t.Errorf("the payee has %d again", paid)
			}
			continue
		}
		if payer.s.Room() != 3 || payer.told(FxConflict) == 0 {
			t.Errorf("%d lanes of a payer that lost its store are used again", payer.s.Room())
		}
	}
}

func FuzzStep(f *testing.F) {
	f.Add([]byte{1, 0, 1, 5, 200, 4, 0, 1, 5, 200})
	f.Fuzz(func(t *testing.T, data []byte) {
		terms := pointTerms()
		sides := [...]*Slots{New(Payer, terms), New(Payee, terms)}
		now := int64(100)
		next := func() uint64 {
			if len(data) == 0 {
				return 0
			}
			n := uint64(data[0])
			data = data[1:]
			if n >= 250 && len(data) >= 8 {
				n = binary.LittleEndian.Uint64(data)
				data = data[8:]
			}
			return n
		}
		voucher := func() Voucher {
			v := Voucher{Lane: next(), Nonce: next(), Amount: tally.Amount(next()), Expires: int64(next()), MinSettle: int64(next())}
			if next()&1 == 1 {
				v.Locked, v.Hash = true, pre(byte(next())).Hashlock()
			}
			if n := next(); n < 16 {
				v.Locked, v.Point, v.Hash = v.Locked && n&8 != 0, byte(n&7), pre(byte(next())).Hashlock()
			}
			return v
		}
		for i := 0; len(data) > 0 && i < 200; i++ {
			s := sides[next()&1]
			ev := Event{Kind: EventKind(next() % 20), ID: next(), Amount: tally.Amount(next()), Expires: int64(next())}
			p := pre(byte(next()))
			ev.Preimage, ev.Hash, ev.Long, ev.OnChain = p, p.Hashlock(), ev.ID&1 == 0, ev.ID&2 == 0
			ev.Point = byte(next() & 3)
			ev.Voucher, ev.Guard = voucher(), voucher()
			ev.Head = View{Height: now, SettlingAt: int64(next()), Lanes: []LaneView{{Lane: next(), Nonce: next(), Redeemed: tally.Amount(next())}}}
			ev.Final = View{Height: int64(next()), Gone: next() == 1}
			ev.Lanes = []LaneState{{Lane: next(), Nonce: next()}}
			now += int64(next() % 8)
			before := *s
			before.slots = slices.Clone(s.slots)
			_, err := s.Step(now, &ev, nil)
			after := *s
			before.terms, after.terms = Terms{}, Terms{} // with a function
			if err != nil && !reflect.DeepEqual(before, after) {
				t.Fatalf("refused with %v, and something changed", err)
			}
			if err := s.Check(); err != nil {
				t.Fatal(err)
			}
			for lane := uint64(1); lane <= terms.Slots+1; lane++ {
				again := New(s.role, terms)
				if err := again.Restore(lane, s.Record(lane)); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func FuzzRestore(f *testing.F) {
	s := New(Payee, filecoin())
	f.Add(uint64(1), s.Record(1))
	f.Add(uint64(5), s.Record(5))
	f.Fuzz(func(t *testing.T, lane uint64, rec []byte) {
		s := New(Payee, filecoin())
		if err := s.Restore(lane, rec); err != nil {
			return
		}
		if !slices.Equal(s.Record(lane), rec) {
			t.Fatal("a record that is not what is written for it")
		}
	})
}
