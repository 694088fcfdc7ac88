package paystream

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

// way is one direction between two sockets: its true rate and fixed fee, and what
// it does to packets.
type way struct {
	rate Ratio
	base tally.Amount
	fees tally.Amount // kept by the hops, in units of the payer where the rate is 1
}

func (w *way) deliver(n tally.Amount) tally.Amount { return w.rate.floorSat(n).SaturatingSub(w.base) }

// world joins two sockets without crypto, time or disk.
type world struct {
	t    testing.TB
	ends [2]*Socket
	ways [2]way // ways[i] leads from ends[i] to the other
	air  []flying
	next uint64
	data *ether // streams that travel in the same packets; nil: none
}

type flying struct {
	from          int
	id            PacketID
	amount, least tally.Amount
	data          *ether // whose streams these are
	load          *load
	frames        []byte
}

func newWorld(t testing.TB, a, b Terms, there, back way) *world {
	t.Helper()
	w := &world{t: t, ways: [2]way{there, back}}
	for i, terms := range [...]Terms{a, b} {
		s, err := NewSocket(terms)
		if err != nil {
			t.Fatal(err)
		}
		w.ends[i] = s
	}
	w.meet()
	return w
}

// meet opens: both learn the rate and the other's state.
func (w *world) meet() {
	for i, s := range w.ends {
		w.step(s, &Event{Kind: EvSession})
		c := NewControl(0)
		for {
			n, ok := c.Probe(0)
			if !ok {
				break
			}
			c.Probed(n, w.ways[i].deliver(n), true, 0)
		}
		r, done, err := c.ProbesDone(0)
		if !done || err != nil {
			w.t.Fatalf("probes: %v %v", done, err)
		}
		w.step(s, &Event{Kind: EvRate, Rate: r, Slip: defaultSlippage})
	}
	w.talk()
}

func (w *world) step(s *Socket, ev *Event) []Effect {
	fx, err := s.Step(ev)
	if err != nil {
		w.t.Fatalf("event %d: %v", ev.Kind, err)
	}
	if err := s.Check(); err != nil {
		w.t.Fatal(err)
	}
	return fx
}

// talk gives each side the other's state, both ways until both know.
func (w *world) talk() {
	for range 2 {
		for i, s := range w.ends {
			w.tell(i, s)
		}
	}
}

func (w *world) tell(to int, s *Socket) {
	seq, seen, totals := w.ends[1-to].State()
	_, err := s.Step(&Event{Kind: EvState, Seq: seq, SeenSeq: seen, Totals: totals})
	if err != nil && !errors.Is(err, ErrStale) {
		w.t.Fatal(err)
	}
}

// pump lets one end send one packet; false where it has nothing to send.
func (w *world) pump(i int, room tally.Amount) bool {
	s := w.ends[i]
	w.next++
	var id PacketID
	id[0], id[8] = byte(w.next), byte(w.next>>8)
	id[9] = byte(i)
	low, _ := s.Limits()
	fx, err := s.Step(&Event{Kind: EvPump, ID: id, Amount: room})
	if errors.Is(err, ErrNothing) || errors.Is(err, ErrBusy) {
		return false
	}
	if err != nil {
		w.t.Fatal(err)
	}
	if err := s.Check(); err != nil {
		w.t.Fatal(err)
	}
	if len(fx) != 2 || fx[0].Kind != FxSave || fx[1].Kind != FxSend {
		w.t.Fatalf("effects of a send: %v", fx)
	}
	if low.over(s.free()).N > 0 {
		w.t.Fatalf("R4: a packet of %d left and took %d below %s", fx[1].Amount, s.free(), low)
	}
	f := flying{from: i, id: id, amount: fx[1].Amount, least: fx[1].Least, data: w.data}
	if w.data != nil {
		p := Packet{Kind: KindPrepare}
		f.load = w.data.ends[i].Fill(&p, w.data.now, MaxInner, true)
		f.frames = p.Append(nil)
	}
	w.air = append(w.air, f)
	return true
}

// hear brings the streams of a packet to its payee, whatever becomes of its money,
// and the ack back where the reply is read.
func (w *world) hear(f *flying, arrived, known, fulfilled bool, n tally.Amount) {
	if f.data == nil || f.data != w.data {
		return // of a session that is over
	}
	payer, payee := f.data.ends[f.from], f.data.ends[1-f.from]
	again := !known
	if arrived {
		var p Packet
		if err := p.Decode(f.frames); err != nil {
			w.t.Fatal(err)
		}
		again = payee.Hear(&p, true) || again
		if fulfilled {
			payee.Share(p.Money, n, true)
		}
	}
	if f.load != nil {
		if fulfilled {
			payer.Share(f.load.shares, f.amount, false)
		}
		payer.Landed(f.load, w.data.now, arrived && !again, 0)
	}
	payer.check()
	payee.check()
}

// land ends the flight of packet k; drop lets a hop reject it.
func (w *world) land(k int, drop, known bool) {
	f := w.air[k]
	w.air[k] = w.air[len(w.air)-1]
	w.air = w.air[:len(w.air)-1]
	payer, payee := w.ends[f.from], w.ends[1-f.from]
	n := w.ways[f.from].deliver(f.amount)
	reject := func() { w.step(payer, &Event{Kind: EvRejected, ID: f.id}) }
	if drop {
		reject()
		w.hear(&f, false, known, false, 0)
		return
	}
	_, high := payee.Limits()
	fx, err := payee.Step(&Event{Kind: EvArrive, ID: f.id, Amount: n, Least: f.least, Sent: f.amount, Opens: true})
	if err != nil || len(fx) > 0 {
		reject()
		w.hear(&f, true, known, false, 0)
		w.tell(f.from, payer)
		return
	}
	fx = w.step(payee, &Event{Kind: EvTake, ID: f.id})
	if fx[0].Kind != FxSave || fx[1].Kind != FxFulfil {
		w.t.Fatalf("effects of a fulfil: %v", fx)
	}
	if above := high.under(payee.Balance()); above.N > payee.tolerance(n) {
		w.t.Fatalf("R5: balance %d above %s", payee.Balance(), high)
	}
	w.ways[f.from].fees += f.amount - min(n, f.amount)
	w.step(payer, &Event{Kind: EvFulfilled, ID: f.id, Arrived: n, Known: known})
	w.hear(&f, true, known, true, n)
	w.tell(f.from, payer)
	w.tell(1-f.from, payee)
}

// settle pumps and lands until nothing moves any more.
func (w *world) settle(room tally.Amount) {
	for range 100_000 {
		moved := false
		for i := range w.ends {
			for w.pump(i, room) {
				moved = true
			}
		}
		for len(w.air) > 0 {
			w.land(0, false, true)
		}
		w.talk()
		if !moved {
			return
		}
	}
	w.t.Fatal("money goes round for ever")
}

// change is a step of a use case: new limits of one end.
type change struct {
	end      int
	low, max Limit
}

// useCase is one row of the table of use cases.
type useCase struct {
	name           string
	client, server Terms
	then           []change
	want           [2]tally.Balance // client, server, at a rate of 1 without fees
}

const big = 100_000

// useCases is the table of docs/protocol/paystream.md.
func useCases() []useCase {
	at := func(n int64) Limit { return At(tally.Balance(n)) }
	terms := func(low, high Limit) Terms { return Terms{Min: low, Max: high} }
	refund := func(low, high Limit) Terms { return Terms{Min: low, Max: high, Refunds: true} }
	return []useCase{
		{"push", terms(at(-big), at(-big)), terms(at(0), NoMax), nil, [2]tally.Balance{-big, big}},
		{
			"push refunded", refund(at(-big), at(-big)), refund(at(0), at(big)),
			[]change{{0, at(0), at(0)}},
			[2]tally.Balance{0, 0},
		},
		{"invoice", terms(at(-big), at(0)), terms(at(big), at(big)), nil, [2]tally.Balance{-big, big}},
		{"voucher", terms(at(big), at(big)), terms(at(-big), at(0)), nil, [2]tally.Balance{big, -big}},
		{"gift code", terms(at(0), NoMax), terms(at(-big), at(-big)), nil, [2]tally.Balance{big, -big}},
		{
			"job", terms(at(-big), at(0)), terms(at(0), at(0)),
			[]change{{1, at(1000), at(1000)}, {1, at(7000), at(7000)}, {1, at(90_000), at(90_000)}},
			[2]tally.Balance{-90_000, 90_000},
		},
		{
			"job beyond the budget", terms(at(-big), at(0)), terms(at(0), at(0)),
			[]change{{1, at(90_000), at(90_000)}, {1, at(2 * big), at(2 * big)}},
			[2]tally.Balance{-big, big},
		},
		{"http call", terms(at(250), at(250)), terms(at(-big), at(0)), nil, [2]tally.Balance{250, -250}},
		{"deposit", refund(at(-big), at(-big)), refund(at(-5000), NoMax), nil, [2]tally.Balance{-big, big}},
		{"withdraw", refund(at(3000), at(3000)), refund(at(-5000), NoMax), nil, [2]tally.Balance{3000, -3000}},
		{"mandate", terms(at(333), at(333)), terms(at(-10_000), at(0)), nil, [2]tally.Balance{333, -333}},
		{
			"prepaid session", refund(at(-big), at(-big)), refund(at(0), at(big)),
			[]change{{0, at(-big), at(0)}, {1, at(40_000), at(40_000)}},
			[2]tally.Balance{-40_000, 40_000},
		},
	}
}

var one = way{rate: Ratio{1, 1}}

// TestUseCases runs every row, with packets of every size, and the two ends in
// both roles.
func TestUseCases(t *testing.T) {
	for _, c := range useCases() {
		for _, room := range []tally.Amount{137, 5000, math.MaxInt64} {
			for _, swapped := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%d/%v", c.name, room, swapped), func(t *testing.T) {
					ends := [2]Terms{c.client, c.server}
					first := 0
					if swapped {
						ends[0], ends[1] = ends[1], ends[0]
						first = 1
					}
					w := newWorld(t, ends[0], ends[1], one, one)
					w.settle(room)
					for _, ch := range c.then {
						w.step(w.ends[ch.end^first], &Event{Kind: EvLimits, Min: ch.low, Max: ch.max})
						w.talk()
						w.settle(room)
					}
					for i := range w.ends {
						s := w.ends[i^first]
						if s.Balance() != c.want[i] {
							t.Errorf("end %d: balance %d, want %d; %+v", i, s.Balance(), c.want[i], s.Report())
						}
						if c.name != "job beyond the budget" && !s.Settled() {
							t.Errorf("end %d is not settled: %+v", i, s.Report())
						}
					}
				})
			}
		}
	}
}

// TestLastUnitOfSmallPackets: where packets of one unit are all that passes, and all that
// the rate is known by, the last unit of what is asked for leaves as well.
func TestLastUnitOfSmallPackets(t *testing.T) {
	w := newWorld(t, Terms{Min: At(-5), Max: At(0)}, Terms{Min: At(5), Max: At(5)}, one, one)
	w.step(w.ends[0], &Event{Kind: EvRate, Rate: Rate{}.Observe(1, 1)})
	for range 5 {
		if !w.pump(0, 1) {
			break
		}
		w.land(0, false, true)
	}
	if got := w.ends[1].Balance(); got != 5 {
		t.Fatalf("%d of 5 arrived", got)
	}
}

// TestInvoiceAtAnyRate: the payee gets what it asked for to the unit, or to what
// one unit of the payer is worth, and never more than it takes.
func TestInvoiceAtAnyRate(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rate := Ratio{rapid.Uint64Range(1, 100_000).Draw(rt, "num"), rapid.Uint64Range(1, 100_000).Draw(rt, "den")}
		base := tally.Amount(rapid.Uint64Range(0, 3).Draw(rt, "base"))
		ask := rapid.Int64Range(1, 1<<30).Draw(rt, "ask")
		w := newWorld(t, Terms{Min: NoMin, Max: At(0)}, Terms{Min: At(tally.Balance(ask)), Max: At(tally.Balance(ask))},
			way{rate: rate, base: base}, one)
		w.settle(math.MaxInt64)
		got := int64(w.ends[1].Balance())
		unit := int64(rate.ceilSat(1)) + int64(base)
		if got > ask+int64(w.ends[1].tolerance(0)) || got < ask-unit {
			rt.Fatalf("asked %d at %v less %d, got %d; %+v", ask, rate, base, got, w.ends[0].Report())
		}
	})
}

// TestSocketModel: two sockets under random limits, rates, fees, loss and
// reorder. R4 and R5 are checked at each packet, Check after each step,
// conservation at each rest.
func TestSocketModel(t *testing.T) {
	limits := func(rt *rapid.T) (Limit, Limit) {
		a := rapid.Int64Range(-5000, 5000).Draw(rt, "a")
		b := rapid.Int64Range(-5000, 5000).Draw(rt, "b")
		low, high := At(tally.Balance(min(a, b))), At(tally.Balance(max(a, b)))
		switch rapid.IntRange(0, 7).Draw(rt, "end") {
		case 0:
			low = NoMin
		case 1:
			high = NoMax
		}
		return low, high
	}
	rapid.Check(t, func(rt *rapid.T) {
		terms := func() Terms {
			low, high := limits(rt)
			return Terms{
				Min: low, Max: high, Refunds: rapid.Bool().Draw(rt, "refunds"),
				AllOrNothing: rapid.IntRange(0, 4).Draw(rt, "all") == 0,
			}
		}
		fee := func() way {
			return way{rate: Ratio{rapid.Uint64Range(900, 1000).Draw(rt, "rate"), 1000}, base: tally.Amount(rapid.IntRange(0, 2).Draw(rt, "base"))}
		}
		w := newWorld(t, terms(), terms(), fee(), fee())
		w.data = openEther(t)
		rose := false
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			i := rapid.IntRange(0, 1).Draw(rt, "end")
			switch rapid.IntRange(0, 9).Draw(rt, "what") {
			case 0:
				low, high := limits(rt)
				w.step(w.ends[i], &Event{Kind: EvLimits, Min: low, Max: high})
			case 1, 2, 3:
				w.pump(i, tally.Amount(rapid.IntRange(1, 3000).Draw(rt, "room")))
			case 4, 5, 6:
				if len(w.air) > 0 {
					w.land(rapid.IntRange(0, len(w.air)-1).Draw(rt, "which"), rapid.IntRange(0, 3).Draw(rt, "drop") == 0, rapid.Bool().Draw(rt, "known"))
				}
			case 7:
				w.tell(i, w.ends[i])
				k := w.data.ends[i]
				for _, id := range k.ids() {
					k.write(k.open[id], bytes.Repeat([]byte{byte(id)}, rapid.IntRange(0, 3000).Draw(rt, "bytes")))
				}
				w.data.now += time.Second
				k.take(2000)
			case 8: // the hops change their rate: the floor holds
				to := rapid.Uint64Range(700, 1000).Draw(rt, "new rate")
				rose = rose || to > w.ways[i].rate.Num
				w.ways[i].rate.Num = to
			case 9: // a restart: the record, and the holds that were on disk
				s := w.ends[i]
				again, err := ParseSocket(s.AppendRecord(nil))
				if err != nil {
					rt.Fatal(err)
				}
				for id, h := range s.holds.All() {
					if err := again.Restore(id, h.amount, h.least, h.high); err != nil {
						rt.Fatal(err)
					}
				}
				w.ends[i] = again
				w.meet2(i)
				if err := w.data.compare(false); err != nil {
					rt.Fatal(err)
				}
				w.data = openEther(t) // streams end with the session
			}
		}
		for len(w.air) > 0 {
			w.land(0, false, true)
		}
		for i, k := range w.data.ends {
			var sent, received tally.Amount
			for _, st := range k.order {
				sent, received = sent+st.sent, received+st.received
			}
			if sent > w.ends[i].sent || received > w.ends[i].received {
				rt.Fatalf("streams of end %d count %d sent and %d received, the socket %d and %d", i, sent, received, w.ends[i].sent, w.ends[i].received)
			}
		}
		if err := w.data.rest(nil); err != nil {
			rt.Fatal(err)
		}
		var sum tally.Balance
		for i, s := range w.ends {
			sum += s.Balance() + tally.Balance(w.ways[i].fees)
			if s.holdIn != 0 || s.holdOut != 0 {
				rt.Fatalf("in flight at rest: %+v", s.Report())
			}
			// A rate that rose, and the reply lost: the payee alone knows.
			if s.arrived < w.ends[1-i].received && !rose {
				rt.Fatalf("end %d counts %d as arrived, the other received %d", i, s.arrived, w.ends[1-i].received)
			}
		}
		if sum != 0 {
			rt.Fatalf("balances and fees sum to %d", sum)
		}
	})
}

// openEther is an ether with a stream of each end, which share what is paid.
func openEther(t testing.TB) *ether {
	e := newEther(t)
	if err := e.rest(nil); err != nil {
		t.Fatal(err)
	}
	for _, k := range e.ends {
		k.begin().shares = 3
	}
	return e
}

// meet2 is what follows a restart of one end: a new session for both.
func (w *world) meet2(i int) {
	for _, s := range w.ends {
		w.step(s, &Event{Kind: EvSession})
	}
	s := w.ends[i]
	n := tally.Amount(1_000_000)
	w.step(s, &Event{Kind: EvRate, Rate: Rate{Base: w.ways[i].base}.Observe(n, w.ways[i].deliver(n)), Slip: defaultSlippage})
	w.talk()
}

func TestNoRefundByDefault(t *testing.T) {
	w := newWorld(t, Terms{Min: At(-1000), Max: At(-1000)}, Terms{Min: At(0), Max: NoMax}, one, one)
	w.settle(100)
	// The client wants it back; the server does not offer refunds.
	w.step(w.ends[0], &Event{Kind: EvLimits, Min: At(0), Max: At(0)})
	w.talk()
	w.settle(100)
	if w.ends[1].Balance() != 1000 {
		t.Fatalf("server has %d of 1000", w.ends[1].Balance())
	}
}

// TestRefundLossBound: a connector with a spread both ways keeps at most the bound
// of what comes back.
func TestRefundLossBound(t *testing.T) {
	for _, c := range []struct {
		name  string
		back  Ratio
		short bool
	}{
		{"fair", Ratio{995, 1000}, false},
		{"greedy", Ratio{900, 1000}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, Terms{Min: At(-100_000), Max: At(-100_000), Refunds: true},
				Terms{Min: At(0), Max: At(100_000), Refunds: true}, way{rate: Ratio{995, 1000}}, way{rate: c.back})
			w.settle(1000)
			w.step(w.ends[0], &Event{Kind: EvLimits, Min: At(0), Max: At(0)})
			w.talk()
			for range 100 { // the server keeps trying; its control would stop it
				w.pump(1, 1000)
				for len(w.air) > 0 {
					w.land(0, false, true)
				}
			}
			r := w.ends[0].Report()
			if r.SettledShort != c.short {
				t.Fatalf("settled short: %v; %+v", r.SettledShort, r)
			}
			if c.short && w.ends[0].Balance() != -100_000 {
				t.Fatalf("took refunds at a loss of 10 %%: %d", w.ends[0].Balance())
			}
			if !c.short && w.ends[0].Balance() < -2000 {
				t.Fatalf("only %d came back", w.ends[0].Balance())
			}
		})
	}
}

// TestFloorPriceHolds: a hop that lowers its rate step by step.
func TestFloorPriceHolds(t *testing.T) {
	drain := func(rebase bool) tally.Balance {
		w := newWorld(t, Terms{Min: At(-1_000_000), Max: At(-1_000_000)}, Terms{Min: At(0), Max: NoMax}, one, one)
		for k := range 1000 {
			w.ways[0].rate = Ratio{uint64(1000 - k/2), 1000}
			if !w.pump(0, 1000) {
				break
			}
			f := w.air[0]
			w.land(0, false, true)
			s := w.ends[0]
			s.rate = s.rate.Observe(f.amount, w.ways[0].deliver(f.amount))
			if rebase { // the weakened variant: the floor follows the rate
				s.floor = s.rate.Low.scale(10_000-defaultSlippage, 10_000)
			}
		}
		return w.ends[1].Balance() + w.ends[0].Balance()
	}
	if lost := -drain(true); lost < 100_000 {
		t.Fatalf("the weakened variant lost only %d", lost)
	}
	if lost := -drain(false); lost > 10_000 {
		t.Fatalf("a hop kept %d of a million, at a slippage of 1 %%", lost)
	}
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		name           string
		client, server Terms
		want           Verdict
	}{
		{"compatible", Terms{Min: At(-10), Max: At(-10)}, Terms{Min: At(0), Max: NoMax}, Verdict{Kind: Compatible}},
		{"payee full", Terms{Min: At(-10), Max: At(-10)}, Terms{Min: At(0), Max: At(7)}, Verdict{Kind: PayeeFull, Short: 3}},
		{"payer short", Terms{Min: At(-10), Max: At(0)}, Terms{Min: At(25), Max: At(25)}, Verdict{Kind: PayerShort, Short: 15}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.client.AllOrNothing = true
			w := newWorld(t, c.client, c.server, one, one)
			if got := w.ends[0].Verdict(); got != c.want {
				t.Fatalf("%+v, want %+v", got, c.want)
			}
			if sent := w.pump(0, 1000); sent != (c.want.Kind == Compatible) {
				t.Fatalf("all-or-nothing sent: %v", sent)
			}
		})
	}
}

func TestPayAndCharge(t *testing.T) {
	w := newWorld(t, Terms{}, Terms{Max: NoMax}, one, one)
	s := w.ends[0]
	low, high, err := s.AfterPay(700)
	if err != nil || low != At(-700) || high != At(-700) {
		t.Fatal(low, high, err)
	}
	w.step(s, &Event{Kind: EvLimits, Min: low, Max: high})
	w.talk()
	w.settle(1000)
	if s.Balance() != -700 {
		t.Fatal(s.Balance())
	}
	if low, high, _ = s.AfterPayUpTo(300); low != At(-1000) || high != At(-700) {
		t.Fatal(low, high)
	}
	if low, high, _ = w.ends[1].AfterCharge(50); low != At(750) || high != NoMax {
		t.Fatal(low, high)
	}
	if low, high, _ = s.AfterChargeUpTo(50); low != At(-700) || high != At(-650) {
		t.Fatal(low, high)
	}
	if _, _, err := s.AfterPay(math.MaxInt64); !errors.Is(err, tally.ErrOverflow) {
		t.Fatal(err)
	}
}

// FuzzSocketStep feeds one socket any events: it never panics, and its invariants
// hold.
func FuzzSocketStep(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, seed1, seed2 uint64) {
		rng := rand.New(rand.NewPCG(seed1, seed2))
		amount := func() tally.Amount { return tally.Amount(rng.Uint64() >> rng.IntN(64)) }
		limit := func() Limit { return Limit{at: tally.Balance(amount()), end: int8(rng.IntN(4) - 2)} }
		s, err := NewSocket(Terms{Min: NoMin, Max: NoMax, Refunds: rng.IntN(2) == 0})
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			ev := &Event{
				Kind: EventKind(rng.IntN(12)), Known: rng.IntN(2) == 0, Expired: rng.IntN(8) == 0, Seen: rng.IntN(8) == 0, Opens: rng.IntN(8) != 0,
				Amount: amount(), Least: amount(), Sent: amount(), Arrived: amount(), Seq: rng.Uint64() >> rng.IntN(64), SeenSeq: uint64(rng.IntN(3)),
				Min: limit(), Max: limit(), Totals: Totals{Expected: amount(), Wanted: Total{amount(), rng.IntN(2) == 0}, Offer: Total{amount(), rng.IntN(2) == 0}},
				Rate: Rate{Low: Ratio{uint64(amount()), uint64(amount())}, High: Ratio{uint64(amount()), uint64(amount())}, Base: amount()}, Slip: uint64(rng.IntN(10_001)),
			}
			ev.ID[0] = byte(rng.IntN(8))
			before := s.Balance()
			_, err := s.Step(ev)
			if bad := s.Check(); bad != nil {
				t.Fatalf("%+v: %v", ev, bad)
			}
			if err != nil && s.Balance() != before {
				t.Fatalf("an error changed the balance")
			}
		}
	})
}

func BenchmarkSocketPacket(b *testing.B) {
	b.ReportAllocs()
	w := newWorld(b, Terms{Min: NoMin, Max: At(-(1 << 59))}, Terms{Max: NoMax}, one, one)
	payer, payee := w.ends[0], w.ends[1]
	var id PacketID
	for i := range b.N {
		id[0], id[1], id[2], id[3] = byte(i), byte(i>>8), byte(i>>16), byte(i>>24)
		fx, err := payer.Step(&Event{Kind: EvPump, ID: id, Amount: 100})
		if err != nil {
			b.Fatal(err)
		}
		least := fx[1].Least
		if _, err := payee.Step(&Event{Kind: EvArrive, ID: id, Amount: 100, Least: least, Sent: 100, Opens: true}); err != nil {
			b.Fatal(err)
		}
		if _, err := payee.Step(&Event{Kind: EvTake, ID: id}); err != nil {
			b.Fatal(err)
		}
		if _, err := payer.Step(&Event{Kind: EvFulfilled, ID: id, Arrived: 100, Known: true}); err != nil {
			b.Fatal(err)
		}
	}
}
