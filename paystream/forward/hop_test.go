package forward

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/lock"
)

const testNow int64 = 1_700_000_000_000

// bench is one core with two neighbours, left and right, and a payee beyond.
type hopBench struct {
	t   testing.TB
	hop *Hop
	tab *fakeTabs
	now int64
}

func newHopBench(t testing.TB, rules Rules) *hopBench {
	x := &hopBench{t: t, tab: newFakeTabs(map[peer.ID]tally.Balance{}), now: testNow}
	x.hop = NewHop(HopConfig{Self: "self", Rules: rules, Account: x.tab, Routes: map[peer.ID]peer.ID{"far": "right", "back": "left"}, FirstID: 100})
	x.do(Event{Kind: EvUp, Peer: "left", Window: 4})
	x.do(Event{Kind: EvUp, Peer: "right", Window: 4})
	return x
}

func (x *hopBench) step(ev Event) ([]Effect, error) {
	x.t.Helper()
	fx, err := x.hop.Step(x.now, &ev, nil)
	if check := x.hop.Check(); check != nil {
		x.t.Fatal(check)
	}
	return fx, err
}

func (x *hopBench) do(ev Event) []Effect {
	x.t.Helper()
	fx, err := x.step(ev)
	if err != nil {
		x.t.Fatal(err)
	}
	return fx
}

func (x *hopBench) from(p peer.ID, m *Msg) []Effect {
	x.t.Helper()
	return x.do(Event{Kind: EvMessage, Peer: p, Msg: m})
}

var testSecret = tally.Preimage{1, 2, 3}

// testPoint stands for a point that a secret opens: the core cannot tell it from one of
// the curve.
func testPoint(secret tally.Preimage) Condition {
	return Condition{Kind: ConditionPoint, Point: 2, Digest: secret.Hashlock()}
}

func testOpens(y [PointSize]byte, secret tally.Preimage) bool {
	c := testPoint(secret)
	return c.Compressed() == y
}

// testPrepare is a packet that passes with the default rules.
func testPrepare(id uint64, change ...func(*Msg)) *Msg {
	m := &Msg{
		Kind: MsgPrepare, ID: id, Amount: 100, Expires: testNow + 30_000, Condition: Blake2b(testSecret.Hashlock()),
		HopsLeft: 5, Dest: "far", Data: []byte("data"),
	}
	binary.BigEndian.PutUint64(m.Part[:], id)
	for _, f := range change {
		f(m)
	}
	return m
}

func TestPrepareIsPassedOn(t *testing.T) {
	x := newHopBench(t, Rules{FeeBase: 2, FeePPM: 10_001})
	fx := x.from("left", testPrepare(1))
	if len(fx) != 1 || fx[0].Kind != FxSend || fx[0].Peer != "right" {
		t.Fatalf("effects %+v", fx)
	}
	// 1.0001 of 100 rounds up to 2, and the base.
	if m := fx[0].Msg; m.ID != 100 || m.Amount != 96 || m.Expires != testNow+29_000 || m.HopsLeft != 4 || string(m.Data) != "data" {
		t.Fatalf("passed on as %+v", m)
	}
	if x.tab.inFlight("left", In) != 100 || x.tab.inFlight("right", Out) != 96 {
		t.Fatalf("held %v", x.tab.held)
	}
	fx = x.from("right", &Msg{Kind: MsgFulfil, ID: 100, Preimage: testSecret})
	if len(fx) != 1 || fx[0].Msg.Kind != MsgFulfil || fx[0].Peer != "left" || fx[0].Msg.ID != 1 {
		t.Fatalf("effects %+v", fx)
	}
	if x.tab.balance["left"] != 100 || x.tab.balance["right"] != -96 || x.hop.Earned() != 4 {
		t.Fatalf("balances %v, earned %d", x.tab.balance, x.hop.Earned())
	}
	// Repeated, it is acked and booked once.
	fx = x.from("right", &Msg{Kind: MsgFulfil, ID: 100, Preimage: testSecret})
	if len(fx) != 0 || x.tab.balance["right"] != -96 {
		t.Fatalf("effects %+v, balances %v", fx, x.tab.balance)
	}
	fx = x.do(Event{Kind: EvTick})
	if len(fx) != 1 || fx[0].Msg.Kind != MsgFulfilAck || fx[0].Peer != "right" || fx[0].Msg.ID != 100 || !slices.Equal(fx[0].Msg.Fulfilled, []uint64{100}) {
		t.Fatalf("effects %+v", fx)
	}
	x.from("left", &Msg{Kind: MsgFulfilAck, ID: 1})
	if in, out := x.hop.InFlight("left"); in != 0 || out != 0 {
		t.Fatalf("%d in, %d out", in, out)
	}
}

// An ack leaves before the next packet to the same neighbour, or when enough of them
// wait, and none is sent in a session that its fulfil did not come in.
func TestAcksTravelTogether(t *testing.T) {
	x := newHopBench(t, Rules{})
	pay := func(id uint64) (fx []Effect) {
		fx = x.from("left", testPrepare(id))
		if last := fx[len(fx)-1]; last.Peer != "right" || last.Msg.Kind != MsgPrepare {
			t.Fatalf("packet %d: effects %+v", id, fx)
		}
		if more := x.from("right", &Msg{Kind: MsgFulfil, ID: 99 + id, Preimage: testSecret}); len(more) != 1 || more[0].Peer != "left" {
			t.Fatalf("packet %d: effects %+v", id, more)
		}
		return fx
	}
	pay(1)
	fx := pay(2)
	if len(fx) != 2 || fx[0].Msg.Kind != MsgFulfilAck || fx[0].Msg.ID != 100 || len(fx[0].Msg.Fulfilled) != 0 {
		t.Fatalf("effects %+v", fx)
	}
	x.from("left", &Msg{Kind: MsgFulfilAck, ID: 1, Fulfilled: []uint64{2, 77}})
	if in, out := x.hop.InFlight("left"); in != 0 || out != 0 {
		t.Fatalf("acked together: %d in, %d out", in, out)
	}
	for i := 1; i < MaxAckIDs-1; i++ { // one waits still; who repeats a fulfil is acked again
		if fx := x.from("right", &Msg{Kind: MsgFulfil, ID: uint64(i), Preimage: testSecret}); len(fx) != 0 {
			t.Fatalf("after %d: effects %+v", i, fx)
		}
	}
	if fx := x.from("right", &Msg{Kind: MsgFulfil, ID: 255, Preimage: testSecret}); len(fx) != 1 || len(fx[0].Msg.Fulfilled) != MaxAckIDs-1 {
		t.Fatalf("as many as one message takes: %+v", fx)
	}
	pay(3)
	x.do(Event{Kind: EvDown, Peer: "right"})
	x.do(Event{Kind: EvUp, Peer: "right", Window: 4})
	if fx := x.do(Event{Kind: EvTick}); len(fx) != 0 {
		t.Fatalf("of the session before: %+v", fx)
	}
}

func TestPrepareIsRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		want   Code
		change func(*Msg)
	}{
		{"2^63 units", CodeTooLarge, func(m *Msg) { m.Amount = 1 << 63 }},
		{"a lock", CodeUnsupported, func(m *Msg) { m.Lock = new(LockMsg) }},
		{"a point", CodeUnsupported, func(m *Msg) { m.Condition = testPoint(testSecret) }},
		{"a point, for us", CodeUnsupported, func(m *Msg) { m.Condition, m.Dest, m.MayLock = testPoint(testSecret), "self", true }},
		{"hops left beyond the bound", CodeTooManyHops, func(m *Msg) { m.HopsLeft = MaxHops + 1 }},
		{"no hop left", CodeTooManyHops, func(m *Msg) { m.HopsLeft = 0 }},
		{"too much time", CodeExpiryTooFar, func(m *Msg) { m.Expires = testNow + 300_001 }},
		{"no time for a hop", CodeExpiryTooSoon, func(m *Msg) { m.Expires = testNow + 1000 }},
		{"expired at the payee", CodeRefused, func(m *Msg) { m.Dest, m.Expires = "self", testNow }},
		{"unknown payee", CodeNoRoute, func(m *Msg) { m.Dest = "nobody" }},
		{"back where it came from", CodeNoRoute, func(m *Msg) { m.Dest = "back" }},
		{"a route over a stranger", CodeNoRoute, func(m *Msg) { m.Dest, m.Via = "nobody", []peer.ID{"stranger"} }},
		{"nothing left after the fee", CodeTooSmall, func(m *Msg) { m.Amount = 1 }},
		{"over the headroom", CodeHeadroom, func(m *Msg) { m.Amount = 1001 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newHopBench(t, Rules{FeeBase: 1})
			fx := x.from("left", testPrepare(1, c.change))
			if len(fx) != 1 || fx[0].Kind != FxSend || fx[0].Peer != "left" || fx[0].Msg.Kind != MsgReject || fx[0].Msg.Code != c.want {
				t.Fatalf("got %+v %v, want %v", fx, fx[0].Msg.Code, c.want)
			}
			if len(x.tab.held) != 0 {
				t.Fatalf("still held: %v", x.tab.held)
			}
			if c.want == CodeHeadroom && fx[0].Msg.Headroom != 1000 {
				t.Fatalf("headroom %d", fx[0].Msg.Headroom)
			}
		})
	}
}

// The same part in flight twice would be a loop; parts of one payment share a
// condition and pass.
func TestLoopGuard(t *testing.T) {
	x := newHopBench(t, Rules{})
	x.from("left", testPrepare(1))
	fx := x.from("right", testPrepare(9, func(m *Msg) { m.Part, m.Dest = testPrepare(1).Part, "back" }))
	if fx[0].Msg.Code != CodeLoop {
		t.Fatalf("code %v, want loop", fx[0].Msg.Code)
	}
	if fx = x.from("left", testPrepare(2)); fx[0].Msg.Kind != MsgPrepare {
		t.Fatalf("another part with the same condition: %v", fx[0].Msg.Code)
	}
	x.from("right", &Msg{Kind: MsgReject, ID: 100, Code: CodeApplication})
	if fx = x.from("left", testPrepare(3, func(m *Msg) { m.Part = testPrepare(1).Part })); fx[0].Msg.Kind != MsgPrepare {
		t.Fatalf("the part again after its reject: %v", fx[0].Msg.Code)
	}
}

func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name string
		want error
		bad  func(x *hopBench) Event
	}{
		{"id again", errIDTwice, func(*hopBench) Event { return Event{Kind: EvMessage, Peer: "left", Msg: testPrepare(1)} }},
		{"wrong preimage", errPreimage, func(*hopBench) Event {
			return Event{Kind: EvMessage, Peer: "right", Msg: &Msg{Kind: MsgFulfil, ID: 100}}
		}},
		{"more than announced", errTooMany, func(x *hopBench) Event {
			x.from("left", testPrepare(2))
			return Event{Kind: EvMessage, Peer: "left", Msg: testPrepare(3)}
		}},
		{"syncs without end", errAsks, func(x *hopBench) Event {
			for range askBurst {
				x.from("left", &Msg{Kind: MsgSyncAsk})
			}
			return Event{Kind: EvMessage, Peer: "left", Msg: &Msg{Kind: MsgSyncAsk}}
		}},
		{"a sync of too many", errSync, func(*hopBench) Event {
			return Event{Kind: EvMessage, Peer: "right", Msg: &Msg{Kind: MsgSync, Round: 1, Live: make([]uint64, 2*MaxInFlight+1)}}
		}},
		{"no message", errUnexpected, func(*hopBench) Event { return Event{Kind: EvMessage, Peer: "right", Msg: &Msg{}} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newHopBench(t, Rules{MaxInFlight: 2})
			x.from("left", testPrepare(1))
			ev := c.bad(x)
			held := len(x.tab.held)
			if fx, err := x.step(ev); !errors.Is(err, c.want) || !errors.Is(err, ErrFault) || len(fx) != 0 {
				t.Fatalf("%v with %d effects, want %v", err, len(fx), c.want)
			}
			if len(x.tab.held) != held {
				t.Fatalf("holds changed: %v", x.tab.held)
			}
		})
	}
}

// A neighbour takes only so many at once, and only so much data.
func TestWindow(t *testing.T) {
	x := newHopBench(t, Rules{})
	for id := range uint64(4) {
		x.from("left", testPrepare(id+1))
	}
	if fx := x.from("left", testPrepare(5)); fx[0].Msg.Code != CodeBusy {
		t.Fatalf("code %v, want busy", fx[0].Msg.Code)
	}
	x = newHopBench(t, Rules{})
	x.do(Event{Kind: EvUp, Peer: "right", Window: MaxInFlight})
	for id := uint64(1); ; id++ {
		fx := x.from("left", testPrepare(id, func(m *Msg) { m.Amount, m.Data = 1, make([]byte, MaxData) }))
		if fx[0].Msg.Kind == MsgPrepare {
			continue
		}
		if fx[0].Msg.Code != CodeBusy || id != maxOutBytes/MaxData+1 {
			t.Fatalf("packet %d: %v", id, fx[0].Msg.Code)
		}
		return
	}
}

// While the link is down the hold stays, until late_hold is over and not longer.
// A decision about a packet that is not here any more is refused, and nothing else.
func TestDecidedTwice(t *testing.T) {
	x := newHopBench(t, Rules{})
	for _, ev := range []Event{
		{Kind: EvFulfil, Peer: "nobody", ID: 1, Msg: &Msg{Preimage: testSecret}},
		{Kind: EvFulfil, Peer: "left", ID: 1, Msg: &Msg{Preimage: testSecret}},
		{Kind: EvReject, Peer: "left", ID: 1, Msg: new(Msg)},
	} {
		if _, err := x.step(ev); !errors.Is(err, ErrNotHeld) {
			t.Errorf("event %d: %v", ev.Kind, err)
		}
	}
}

func TestLateHold(t *testing.T) {
	x := newHopBench(t, Rules{})
	x.from("left", testPrepare(1))
	x.do(Event{Kind: EvDown, Peer: "right"})
	x.now = testNow + 29_000 + lateHold - 1
	if fx := x.do(Event{Kind: EvTick}); len(fx) != 0 || len(x.tab.held) != 2 {
		t.Fatalf("released early: %+v", fx)
	}
	x.now++
	fx := x.do(Event{Kind: EvTick})
	if len(fx) != 1 || fx[0].Peer != "left" || fx[0].Msg.Code != CodeTimeout || len(x.tab.held) != 0 {
		t.Fatalf("effects %+v, held %v", fx, x.tab.held)
	}
	// Nobody honours a fulfil after that.
	x.do(Event{Kind: EvUp, Peer: "right", Window: 4})
	fx = x.from("right", &Msg{Kind: MsgFulfil, ID: 100, Preimage: testSecret})
	if fx = append(fx, x.do(Event{Kind: EvTick})...); len(fx) != 1 || fx[0].Msg.Kind != MsgFulfilAck || x.tab.balance["right"] != 0 {
		t.Fatalf("a late fulfil: %+v, %v", fx, x.tab.balance)
	}
}

// A fulfil within late_hold counts although the packet has expired.
func TestLateFulfilIsHonoured(t *testing.T) {
	x := newHopBench(t, Rules{})
	x.from("left", testPrepare(1))
	x.now = testNow + 29_000 + lateHold - 1
	x.from("right", &Msg{Kind: MsgFulfil, ID: 100, Preimage: testSecret})
	if x.tab.balance["right"] != -100 || x.tab.balance["left"] != 100 {
		t.Fatalf("balances %v", x.tab.balance)
	}
}

// On a live stream an expired packet is released only after a sync that was
// asked for later does not list it.
func TestExpiredPacketAsksFirst(t *testing.T) {
	x := newHopBench(t, Rules{})
	x.from("right", &Msg{Kind: MsgSync, Round: 1})
	x.from("left", testPrepare(1))
	x.from("left", testPrepare(2))
	x.now = testNow + 29_000
	fx := x.do(Event{Kind: EvTick})
	if len(fx) != 1 || fx[0].Msg.Kind != MsgSyncAsk || fx[0].Msg.Round != 2 || len(x.tab.held) != 4 {
		t.Fatalf("effects %+v", fx)
	}
	if fx = x.from("right", &Msg{Kind: MsgSync, Round: 1}); len(fx) != 0 {
		t.Fatalf("an old round counted: %+v", fx)
	}
	fx = x.from("right", &Msg{Kind: MsgSync, Round: 2, Live: []uint64{101}})
	if len(fx) != 1 || fx[0].Msg.Kind != MsgReject || fx[0].Msg.ID != 1 || len(x.tab.held) != 2 {
		t.Fatalf("effects %+v, held %v", fx, x.tab.held)
	}
}

// The payee may decide until the packet expires; then it is rejected for it.
func TestOurPackets(t *testing.T) {
	x := newHopBench(t, Rules{})
	forUs := func(m *Msg) { m.Dest = "self" }
	for id := uint64(1); id <= 2; id++ {
		if fx := x.from("left", testPrepare(id, forUs)); len(fx) != 1 || fx[0].Kind != FxDeliver {
			t.Fatalf("effects %+v", fx)
		}
	}
	if _, err := x.step(Event{Kind: EvFulfil, Peer: "left", ID: 1, Msg: &Msg{}}); !errors.Is(err, errPreimage) {
		t.Fatalf("a wrong preimage of our own: %v", err)
	}
	x.do(Event{Kind: EvFulfil, Peer: "left", ID: 1, Msg: &Msg{Preimage: testSecret}})
	x.now = testNow + 30_000
	if _, err := x.step(Event{Kind: EvFulfil, Peer: "left", ID: 2, Msg: &Msg{Preimage: testSecret}}); !errors.Is(err, ErrNotHeld) {
		t.Fatalf("after its time: %v", err)
	}
	fx := x.do(Event{Kind: EvTick})
	if len(fx) != 1 || fx[0].Msg.ID != 2 || fx[0].Msg.Code != CodeRefused {
		t.Fatalf("effects %+v", fx)
	}
	// The fulfil is told again in the next session, until it is acked.
	x.do(Event{Kind: EvDown, Peer: "left"})
	for range 2 {
		fx = x.do(Event{Kind: EvUp, Peer: "left", Window: 4})
		if len(fx) != 2 || fx[1].Msg.Kind != MsgFulfil || fx[1].Msg.ID != 1 || fx[1].Msg.Preimage != testSecret {
			t.Fatalf("effects %+v", fx)
		}
	}
	fx = x.from("left", &Msg{Kind: MsgSyncAsk, Round: 7})
	if m := fx[0].Msg; m.Kind != MsgSync || m.Round != 7 || len(m.Fulfilled) != 1 || len(m.Live) != 0 {
		t.Fatalf("sync %+v", m)
	}
	x.from("left", &Msg{Kind: MsgFulfilAck, ID: 1})
	if fx = x.do(Event{Kind: EvUp, Peer: "left", Window: 4}); len(fx) != 1 {
		t.Fatalf("acked, and told again: %+v", fx)
	}
}

// A packet that its endpoint keeps is on disk, is live in sync after a restart, and
// may be fulfilled late; only the late hold ends it.
func TestKeptPackets(t *testing.T) {
	tab := newFakeTabs(map[peer.ID]tally.Balance{})
	config := HopConfig{Self: "self", Account: tab, Journal: true}
	x := &hopBench{t: t, tab: tab, now: testNow, hop: NewHop(config)}
	x.do(Event{Kind: EvUp, Peer: "left", Window: 4})
	records := make(map[uint64][]byte)
	save := func(fx []Effect) {
		for _, f := range fx {
			if f.Kind == FxSave {
				if records[f.Key] = f.Record; f.Record == nil {
					delete(records, f.Key)
				}
			}
		}
	}
	for id := uint64(1); id <= 3; id++ {
		m := testPrepare(id, func(m *Msg) { m.Dest, m.Token = "self", []byte("token") })
		x.from("left", m)
		save(x.do(Event{Kind: EvKeep, Peer: "left", ID: id, Msg: m}))
	}
	if _, err := x.step(Event{Kind: EvKeep, Peer: "left", ID: 1, Msg: &Msg{}}); !errors.Is(err, ErrNotHeld) {
		t.Fatalf("kept twice: %v", err)
	}
	long := testPrepare(4, func(m *Msg) { m.Dest, m.Data = "self", make([]byte, MaxKept+1) })
	x.from("left", long)
	if _, err := x.step(Event{Kind: EvKeep, Peer: "left", ID: 4, Msg: long}); !errors.Is(err, ErrNotHeld) {
		t.Fatalf("kept with too much data: %v", err)
	}

	config.Account = newFakeTabs(map[peer.ID]tally.Balance{})
	x = &hopBench{t: t, tab: config.Account.(*fakeTabs), now: testNow + 31_000, hop: NewHop(config)}
	var held []Held
	for key, rec := range records {
		var err error
		if held, err = x.hop.Restore(key, rec, held); err != nil {
			t.Fatal(err)
		}
	}
	x.tab.restore(held)
	if x.tab.inFlight("left", In) != 300 || len(x.hop.Again()) != 3 {
		t.Fatalf("held %v, %d wait", held, len(x.hop.Again()))
	}
	for _, a := range x.hop.Again() {
		if m := a.Msg; a.Peer != "left" || m.Amount != 100 || m.Expires != testNow+30_000 || string(m.Token) != "token" || string(m.Data) != "data" {
			t.Fatalf("again %+v", m)
		}
	}
	x.do(Event{Kind: EvUp, Peer: "left", Window: 4})
	if fx := x.from("left", &Msg{Kind: MsgSyncAsk, Round: 1}); len(fx[0].Msg.Live) != 3 {
		t.Fatalf("sync %+v", fx[0].Msg)
	}
	if fx := x.do(Event{Kind: EvTick}); len(fx) != 0 {
		t.Fatalf("expired, and ended by the clock: %+v", fx)
	}
	x.now = testNow + 30_000 + lateHold - 1
	x.do(Event{Kind: EvFulfil, Peer: "left", ID: 1, Msg: &Msg{Preimage: testSecret}})
	fx := x.do(Event{Kind: EvReject, Peer: "left", ID: 2, Msg: &Msg{Code: CodeApplication}})
	if x.tab.balance["left"] != 100 || fx[0].Kind != FxSave || fx[0].Record != nil || fx[1].Msg.Kind != MsgReject {
		t.Fatalf("balance %d, effects %+v", x.tab.balance["left"], fx)
	}
	x.now++
	if _, err := x.step(Event{Kind: EvFulfil, Peer: "left", ID: 3, Msg: &Msg{Preimage: testSecret}}); !errors.Is(err, ErrNotHeld) {
		t.Fatalf("after the late hold: %v", err)
	}
	fx = x.do(Event{Kind: EvTick})
	if len(fx) != 4 || fx[3].Kind != FxGone || fx[3].Msg.Part != testPrepare(3).Part {
		t.Fatalf("effects %+v", fx)
	}
}

// What became of a packet stays until its sender forgets it.
func TestKeptResults(t *testing.T) {
	x := newHopBench(t, Rules{})
	x.hop.journal = true
	send := func(id uint64) []Effect {
		return x.do(Event{Kind: EvSend, Ref: id, Keep: true, Msg: testPrepare(id)})
	}
	send(1)
	send(2)
	fx := x.from("right", &Msg{Kind: MsgFulfil, ID: 100, Preimage: testSecret})
	if fx[0].Kind != FxSave || len(fx[0].Record) == 0 || fx[1].Kind != FxResult || !fx[1].Kept {
		t.Fatalf("effects %+v", fx)
	}
	records := map[uint64][]byte{100: fx[0].Record}
	fx = x.from("right", &Msg{Kind: MsgReject, ID: 101, Code: CodeHeadroom, Headroom: 7, Hop: 2})
	if fx[0].Kind != FxSave || len(fx[0].Record) == 0 || fx[1].Kind != FxResult || fx[1].Msg.Hop != 2 {
		t.Fatalf("effects %+v", fx)
	}
	records[101] = fx[0].Record
	if fx = send(1); fx[0].Msg.Code != CodeLoop {
		t.Fatalf("sent again while its result is kept: %+v", fx[0].Msg)
	}
	h := NewHop(HopConfig{Self: "self", Account: x.tab, Journal: true})
	for _, key := range []uint64{100, 101} {
		if _, err := h.Restore(key, records[key], nil); err != nil {
			t.Fatal(err)
		}
	}
	one, two := h.Again()[0].Msg, h.Again()[1].Msg
	if one.Kind != MsgFulfil || one.Preimage != testSecret || one.Part != testPrepare(1).Part {
		t.Fatalf("again %+v", one)
	}
	if two.Kind != MsgReject || two.Code != CodeHeadroom || two.Headroom != 7 || two.Hop != 2 {
		t.Fatalf("again %+v", two)
	}
	fx = x.do(Event{Kind: EvForget, Msg: &Msg{Part: one.Part}})
	if len(fx) != 1 || fx[0].Kind != FxDelete || fx[0].Key != 100 {
		t.Fatalf("effects %+v", fx)
	}
	if fx = x.do(Event{Kind: EvForget, Msg: &Msg{Part: one.Part}}); len(fx) != 0 {
		t.Fatalf("forgotten twice: %+v", fx)
	}
	if fx = send(1); fx[len(fx)-1].Msg.Kind != MsgPrepare {
		t.Fatalf("after it is forgotten: %+v", fx)
	}
}

// A reject says which hop failed, to each node counted from itself.
func TestRejectNamesItsHop(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(x *hopBench, m *Msg)
		want   uint8
	}{
		{"no room on the way in", func(_ *hopBench, m *Msg) { m.Amount = 1001 }, hopIn},
		{"no room on the way out", func(x *hopBench, _ *Msg) { x.tab.balance["right"] = -950 }, hopOut},
		{"no route", func(_ *hopBench, m *Msg) { m.Dest = "nobody" }, hopOut},
		{"a lock", func(_ *hopBench, m *Msg) { m.Lock = new(LockMsg) }, hopIn},
		{"the payee", func(x *hopBench, m *Msg) { m.Dest, m.Expires = "self", x.now }, hopOut},
	} {
		x := newHopBench(t, Rules{})
		m := testPrepare(1)
		c.change(x, m)
		if fx := x.from("left", m); fx[0].Msg.Kind != MsgReject || fx[0].Msg.Hop != c.want {
			t.Errorf("%s: %+v", c.name, fx[0].Msg)
		}
	}
	for in, want := range map[uint8]uint8{0: 0, 1: 2, 20: 21} {
		x := newHopBench(t, Rules{})
		x.from("left", testPrepare(1))
		if fx := x.from("right", &Msg{Kind: MsgReject, ID: 100, Code: CodeBusy, Hop: in}); fx[0].Msg.Hop != want {
			t.Errorf("hop %d is passed on as %d", in, fx[0].Msg.Hop)
		}
	}
	x := newHopBench(t, Rules{})
	if fx := x.do(Event{Kind: EvSend, Ref: 1, Msg: testPrepare(1, func(m *Msg) { m.Amount = 1001 })}); fx[0].Msg.Hop != hopIn {
		t.Errorf("our own first hop: %+v", fx[0].Msg)
	}
}

func TestRouteOfThePayer(t *testing.T) {
	x := newHopBench(t, Rules{})
	fx := x.from("left", testPrepare(1, func(m *Msg) { m.Dest, m.Via = "beyond", []peer.ID{"right", "next"} }))
	if fx[0].Peer != "right" || len(fx[0].Msg.Via) != 1 || fx[0].Msg.Via[0] != "next" {
		t.Fatalf("effects %+v", fx[0].Msg)
	}
	fx = x.from("left", testPrepare(2, func(m *Msg) { m.Dest, m.Via = "right", []peer.ID{"right", "right"} }))
	if fx[0].Peer != "right" || len(fx[0].Msg.Via) != 0 {
		t.Fatalf("to a neighbour: %+v", fx[0].Msg)
	}
}

func TestFee(t *testing.T) {
	for _, c := range []struct {
		rules  Rules
		amount tally.Amount
		want   tally.Amount
		fits   bool
	}{
		{Rules{}, 1 << 62, 0, true},
		{Rules{FeePPM: 1}, 1, 1, true},
		{Rules{FeePPM: 1_000_000}, maxAmount - 1, maxAmount - 1, true},
		{Rules{FeePPM: 500_000, FeeBase: 7}, 3, 9, true},
		{Rules{FeePPM: 500_000, FeeBase: 7}, 0, 0, true}, // word of the two ends passes
		{Rules{FeeBase: tally.MaxAmount, FeePPM: 1}, 1, 0, false},
	} {
		if got, fits := c.rules.Fee(c.amount); fits != c.fits || fits && got != c.want {
			t.Errorf("fee of %d under %+v: %d, %v", c.amount, c.rules, got, fits)
		}
	}
	for _, r := range []Rules{{FeePPM: 1_000_001}, {HopDelta: time.Millisecond}, {MaxExpiry: 48 * time.Hour}, {MaxInFlight: MaxInFlight + 1}} {
		if r.Complete().Validate() == nil {
			t.Errorf("%+v is valid", r)
		}
	}
}

func TestRestoreRefusesDamage(t *testing.T) {
	x := newSimNet(t, 3)
	x.offer(3, 50)
	x.offer(100, 50)
	for x.deliver(first) { // one waits at the payee
	}
	for i, n := range x.nodes {
		for key, rec := range n.records {
			for cut := range len(rec) {
				h := NewHop(HopConfig{Self: n.id, Account: n.tabs, Journal: true})
				if _, err := h.Restore(key, rec[:cut], nil); err == nil {
					t.Fatalf("node %d: record %d cut at %d is taken", i, key, cut)
				}
			}
		}
	}
}

func TestRejectErrorNamesTheRemedy(t *testing.T) {
	for c := CodeRefused; c <= CodeInternal; c++ {
		text := (&RejectError{Code: c, Headroom: 42}).Error()
		if c != CodeHeadroom && c != CodeHeadroomFinal && !strings.Contains(text, c.String()) {
			t.Errorf("%v: %s", c, text)
		}
		if c.String() == "unknown" || strings.HasSuffix(text, ": ") {
			t.Errorf("code %d: %s", c, text)
		}
	}
}

// FuzzRestore: a record of the journal is refused, or it is one that a run could write.
func FuzzRestore(f *testing.F) {
	s := newSimNet(f, 3)
	s.lockable(0, 900_000)
	s.points = func(k byte) bool { return k%2 == 0 }
	for _, k := range []byte{2, 3, 100, 101} {
		s.offer(k, 50)
	}
	for s.deliver(first) {
	}
	for _, n := range s.nodes {
		for key, rec := range n.records {
			f.Add(key, rec)
		}
	}
	f.Fuzz(func(t *testing.T, key uint64, rec []byte) {
		x, _ := newLockBench(t, Rules{})
		if _, err := x.hop.Restore(key, rec, nil); err != nil {
			return
		}
		if err := x.hop.Check(); errors.Is(err, ErrInvariant) && strings.Contains(err.Error(), "points-under-locks") {
			t.Fatal(err)
		}
	})
}

// FuzzPoints: whatever neighbours, channels and callers do, what is under a point is
// under locks.
func FuzzPoints(f *testing.F) {
	f.Add([]byte{0, 1, 0, 40, 1, 1, 1, 40, 2, 100, 0, 0})
	f.Add([]byte{4, 1, 2, 30, 2, 100, 1, 0, 3, 1, 1, 0, 0, 2, 1, 9, 1, 2, 1, 9})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 400 {
			return
		}
		x, _ := newLockBench(t, Rules{FeeBase: 1})
		showing := make(map[HeldLock]bool) // the channel answers what it was asked
		for ; len(in) >= 4; in = in[4:] {
			p := []peer.ID{"left", "right"}[in[0]>>7]
			m := testPrepare(uint64(in[1]), func(m *Msg) {
				m.Condition, m.MayLock = testPoint(testSecret), in[2]&4 == 0
				m.Condition.Point = 2 + in[2]>>3&1
				m.Dest = []peer.ID{"self", "far", "right", "left"}[in[2]%4]
				m.Amount, m.Preimage = tally.Amount(in[3])*8, testSecret
			})
			ev := Event{Peer: p, ID: uint64(in[1]), Ref: 1, Keep: in[3]%2 == 0, Msg: m}
			switch in[0] % 8 {
			case 0: // on credit
				ev.Kind = EvMessage
			case 1: // with its lock
				m.Lock = new(LockMsg)
				if _, err := x.step(Event{Kind: EvMessage, Peer: p, Msg: m}); err != nil {
					continue
				}
				ev.Kind = EvLockTaken
				ev.Lock = &lock.Lock{ID: m.ID, Amount: m.Amount, Hash: m.Condition.Digest, Point: m.Condition.Point, Expires: 1000 + 4*int64(in[3])}
			case 2:
				ev.Kind, m.Kind = EvLockDecided, MsgFulfil
			case 3:
				ev.Kind, ev.Msg = EvLockDecided, &Msg{Kind: MsgReject, Code: CodeRefused}
			case 4:
				ev.Kind, m.ID, m.Part = EvSend, 0, PartID{in[1], 1}
			case 5:
				ev.Kind = EvKeep
			case 6:
				ev.Kind = EvFulfil
			case 7:
				if ev.Kind = EvLockShown; !showing[HeldLock{p, ev.ID}] {
					continue
				}
				delete(showing, HeldLock{p, ev.ID})
			}
			fx, _ := x.step(ev) // which checks
			if show := find(fx, FxShow); show != nil {
				showing[HeldLock{show.Peer, show.Ref}] = true
			}
			if len(x.tab.held) != 0 {
				t.Fatalf("a tab holds room for a point: %v", x.tab.held)
			}
		}
	})
}

// FuzzHopStep feeds a core with whatever two neighbours may send.
func FuzzHopStep(f *testing.F) {
	f.Add([]byte{1, 1, 0, 3, 100, 0, 2, 1, 9, 3, 100, 0})
	f.Add([]byte("some messages, ticks and sessions in any order at all"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 600 {
			return
		}
		x := newHopBench(t, Rules{FeeBase: 1, MaxInFlight: 8})
		for len(in) >= 6 {
			b := in[:6]
			in = in[6:]
			p := []peer.ID{"left", "right", "nobody"}[b[0]>>4%3]
			m := testPrepare(uint64(b[1]), func(m *Msg) {
				m.Kind, m.Hop = MsgKind(b[2]%8), b[3]
				m.Amount = tally.Amount(b[3]) << (b[4] % 64)
				m.Dest = []peer.ID{"self", "far", "back", "left"}[b[5]%4]
				m.Round, m.Preimage, m.HopsLeft = uint64(b[3]%4), testSecret, b[5]/8
				m.Live, m.Fulfilled = []uint64{uint64(b[3]) + 100}, []uint64{uint64(b[4])}
				if b[2] > 0xf0 {
					m.Condition, m.MayLock = testPoint(testSecret), true
				}
				if b[5]&0x80 != 0 {
					m.Preimage[31] ^= 1
				}
			})
			if m.Kind != MsgPrepare {
				m.ID = uint64(b[1]) + 100*uint64(b[2]>>7)
			}
			x.now += int64(b[4]) * int64(b[4])
			ev := Event{
				Kind: EventKind(b[0]%16)%EvForget + 1, Peer: p, ID: uint64(b[1]), Window: int(b[3]), Ref: 1,
				Keep: b[3]%2 == 0, Msg: m,
			}
			held := len(x.tab.held)
			if _, err := x.step(ev); err != nil && len(x.tab.held) != held {
				t.Fatalf("%v, and the holds changed", err)
			}
		}
		// Whatever happened, time ends it.
		x.now += 400_000 + 2*lateHold
		x.do(Event{Kind: EvTick})
		x.do(Event{Kind: EvTick})
		if len(x.tab.held) != 0 {
			t.Fatalf("still held: %v", x.tab.held)
		}
	})
}

// What passes here may not block our tabs for long. A packet of our own, or one for
// us, blocks the tab of its two ends, and those may agree on more.
func TestMaxKept(t *testing.T) {
	const hour = int64(time.Hour / time.Millisecond)
	x := newHopBench(t, Rules{MaxKept: time.Hour})
	for i, c := range []struct {
		change func(*Msg)
		want   Code
	}{
		{func(m *Msg) { m.Expires = testNow + 300_001 }, CodeExpiryTooFar},
		{func(m *Msg) { m.Dest, m.Expires = "self", testNow+hour+1 }, CodeExpiryTooFar},
		{func(m *Msg) { m.Dest, m.Expires = "self", testNow+hour }, CodeUnset},
	} {
		fx := x.from("left", testPrepare(uint64(i+1), c.change))
		if len(fx) != 1 || fx[0].Msg.Code != c.want {
			t.Errorf("packet %d: %+v", i, fx)
		}
	}
	for _, c := range []struct {
		expires int64
		kind    EffectKind
	}{{testNow + hour, FxSend}, {testNow + hour + 1, FxResult}} {
		m := testPrepare(0, func(m *Msg) { m.Part, m.Expires = PartID{byte(c.kind), 77}, c.expires })
		fx, err := x.hop.Step(testNow, &Event{Kind: EvSend, Ref: 1, Msg: m}, nil)
		if err != nil || fx[len(fx)-1].Kind != c.kind {
			t.Errorf("own packet: %+v, %v", fx, err)
		}
	}
	if (Rules{MaxKept: time.Minute}).Complete().Validate() == nil || (Rules{MaxKept: 61 * 24 * time.Hour}).Complete().Validate() == nil {
		t.Error("a rule that cannot work passes")
	}
}

// TestExpectedPreimage: what the sender says opens its packet spares a hash, and
// takes nothing from what else opens it.
func TestExpectedPreimage(t *testing.T) {
	for _, c := range []struct {
		name          string
		said, answers tally.Preimage
		paid          bool
	}{
		{"as said", testSecret, testSecret, true},
		{"said nothing", tally.Preimage{}, testSecret, true},
		{"said another", tally.Preimage{7}, testSecret, true},
		{"another than said", testSecret, tally.Preimage{7}, false},
		{"nothing, as said", tally.Preimage{}, tally.Preimage{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newHopBench(t, Rules{})
			m := x.do(Event{Kind: EvSend, Ref: 1, Msg: testPrepare(1, func(m *Msg) { m.Preimage = c.said })})[0].Msg
			if m.Kind != MsgPrepare || m.Preimage != (tally.Preimage{}) {
				t.Fatalf("sent %+v", m)
			}
			fx, err := x.step(Event{Kind: EvMessage, Peer: "right", Msg: &Msg{Kind: MsgFulfil, ID: m.ID, Preimage: c.answers}})
			if c.paid && (err != nil || fx[0].Kind != FxResult) || !c.paid && !errors.Is(err, errPreimage) {
				t.Fatal(fx, err)
			}
		})
	}
}
