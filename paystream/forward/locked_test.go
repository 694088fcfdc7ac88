package forward

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream/lock"
)

// benchLocks are channels as a test wants them.
type benchLocks struct {
	x      *hopBench
	free   map[peer.ID]tally.Amount
	coming tally.Amount
	least  tally.Amount
	away   bool
	// hashes: no lock is made under a point.
	hashes bool
}

func (l *benchLocks) Times() (lock.Terms, lock.Clock, bool) {
	return simTerms, lock.Clock{Head: 1000, HeadMS: l.x.now, EpochMS: 1000}, !l.away
}

func (l *benchLocks) Room(p peer.ID) (Room, bool) {
	free, ok := l.free[p]
	return Room{Free: free, Coming: l.coming, Slots: 4, Points: !l.hashes}, ok
}

func (l *benchLocks) Least() tally.Amount { return l.least }

// newLockBench is a bench whose tabs carry 50 units and whose channels 1000.
func newLockBench(t testing.TB, rules Rules) (*hopBench, *benchLocks) {
	x := newHopBench(t, rules)
	locks := &benchLocks{x: x, free: map[peer.ID]tally.Amount{"left": 1000, "right": 1000}}
	x.tab.limit = 150
	x.hop = NewHop(HopConfig{Self: "self", Rules: rules, Account: x.tab, Routes: map[peer.ID]peer.ID{"far": "right"}, Locks: locks, OpensPoint: testOpens, FirstID: 100, Journal: true})
	x.do(Event{Kind: EvUp, Peer: "left", Window: 4})
	x.do(Event{Kind: EvUp, Peer: "right", Window: 4})
	return x, locks
}

func mayLock(m *Msg) { m.MayLock = true }

// underLock is a prepare with a lock until so many epochs from now.
func (x *hopBench) underLock(id uint64, epochs int64, change ...func(*Msg)) []Effect {
	x.t.Helper()
	m := testPrepare(id, append(change, mayLock, func(m *Msg) { m.Lock = &LockMsg{Channel: []byte{1}, Voucher: []byte{1}} })...)
	fx := x.from("left", m)
	if len(fx) != 1 || fx[0].Kind != FxLock {
		x.t.Fatalf("the lock is the channel's: %+v", fx)
	}
	return x.do(Event{Kind: EvLockTaken, Peer: "left", ID: id, Lock: &lock.Lock{ID: id, Amount: m.Amount, Hash: m.Condition.Digest, Point: m.Condition.Point, Expires: 1000 + epochs}})
}

func find(fx []Effect, kind EffectKind) *Effect {
	for i := range fx {
		if fx[i].Kind == kind {
			return &fx[i]
		}
	}
	return nil
}

// The choice on the way out: credit where the tab has room, else a lock, else the
// headroom, as before.
func TestCreditOrLock(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*hopBench, *benchLocks, *Msg)
		offer  bool
		code   Code
		room   tally.Amount
	}{
		{"a lock", func(*hopBench, *benchLocks, *Msg) {}, true, 0, 0},
		{"the payer wants none", func(_ *hopBench, _ *benchLocks, m *Msg) { m.MayLock = false }, false, CodeHeadroom, 20},
		{"SHA-256", func(_ *hopBench, _ *benchLocks, m *Msg) { m.Condition.Kind = ConditionSHA256 }, false, CodeHeadroom, 20},
		{"much data", func(_ *hopBench, _ *benchLocks, m *Msg) { m.Data = make([]byte, MaxKept+1) }, false, CodeHeadroom, 20},
		{"no channel", func(_ *hopBench, l *benchLocks, _ *Msg) { delete(l.free, "right") }, false, CodeHeadroom, 20},
		{"no funds", func(_ *hopBench, l *benchLocks, _ *Msg) { l.free["right"] = 99 }, false, CodeHeadroom, 20},
		{"a channel in the making", func(_ *hopBench, l *benchLocks, _ *Msg) { delete(l.free, "right"); l.coming = 100 }, false, CodeBusy, 20},
		{"one that will be too small", func(_ *hopBench, l *benchLocks, _ *Msg) { delete(l.free, "right"); l.coming = 99 }, false, CodeHeadroom, 20},
		{"a top-up", func(_ *hopBench, l *benchLocks, _ *Msg) { l.free["right"], l.coming = 60, 40 }, false, CodeBusy, 20},
		{"one that will not do", func(_ *hopBench, l *benchLocks, _ *Msg) { l.free["right"], l.coming = 60, 39 }, false, CodeHeadroom, 20},
		{"chain not seen", func(_ *hopBench, l *benchLocks, _ *Msg) { l.away = true }, false, CodeHeadroom, 20},
		{"no time", func(_ *hopBench, _ *benchLocks, m *Msg) { m.Expires = testNow + 13_000 }, false, CodeHeadroom, 20},
		{"less than a claim costs", func(_ *hopBench, l *benchLocks, _ *Msg) { l.least = 101 }, false, CodeHeadroom, 20},
		{"the chain's claim", func(_ *hopBench, l *benchLocks, _ *Msg) { l.least = 100 }, true, 0, 0},
		{"the tab", func(x *hopBench, _ *benchLocks, _ *Msg) { x.tab.balance["right"] = 0 }, false, 0, 0},
	} {
		x, locks := newLockBench(t, Rules{})
		x.tab.balance["right"] = -130
		m := testPrepare(1, mayLock)
		c.change(x, locks, m)
		fx := x.from("left", m)
		offer, sent := find(fx, FxOffer), find(fx, FxSend)
		switch {
		case c.offer:
			// D = 6, and an epoch lasts up to two.
			if offer == nil || offer.Peer != "right" || int64(offer.Ref) != 1000+30-2-6 || offer.Msg.Amount != 100 || len(offer.Record) == 0 || sent != nil {
				t.Errorf("%s: %+v", c.name, fx)
			}
			if x.tab.inFlight("right", Out) != 0 || x.tab.inFlight("left", In) != 100 {
				t.Errorf("%s: a lock touches a tab: %v", c.name, x.tab.held)
			}
		case offer != nil || sent == nil:
			t.Errorf("%s: %+v", c.name, fx)
		case c.code != 0 && (sent.Msg.Kind != MsgReject || sent.Msg.Code != c.code || sent.Msg.Headroom != c.room || len(x.tab.held) != 0):
			t.Errorf("%s: %+v", c.name, sent.Msg)
		case c.code == 0 && (sent.Peer != "right" || sent.Msg.Lock != nil):
			t.Errorf("%s: %+v", c.name, sent.Msg)
		}
	}
}

// Credit in, a lock out: the tab is booked when the lock is paid, and given back when
// it never will be; then its neighbour's words go on.
func TestLockOutIsDecided(t *testing.T) {
	x, _ := newLockBench(t, Rules{FeeBase: 1})
	x.tab.balance["right"] = -130
	id := find(x.from("left", testPrepare(1, mayLock)), FxOffer).Key
	// A lost session, a tick and a sync say nothing of a lock.
	for _, ev := range []Event{{Kind: EvDown, Peer: "right"}, {Kind: EvUp, Peer: "right", Window: 4}, {Kind: EvTick}} {
		x.do(ev)
	}
	x.from("right", &Msg{Kind: MsgSync, Round: 2})
	x.now += LateHold.Milliseconds() + 40_000
	x.do(Event{Kind: EvTick})
	fx := x.do(Event{Kind: EvLockDecided, Peer: "right", ID: id, Msg: &Msg{Kind: MsgFulfil, Preimage: testSecret}})
	if s := find(fx, FxSend); s == nil || s.Peer != "left" || s.Msg.Kind != MsgFulfil || find(fx, FxSave) == nil || find(fx, FxUnnote).Key != id {
		t.Fatalf("paid: %+v", fx)
	}
	if x.tab.balance["left"] != 100 || x.tab.balance["right"] != -130 || x.hop.Earned() != 1 {
		t.Fatalf("balances %v, earned %d", x.tab.balance, x.hop.Earned())
	}
	if fx = x.do(Event{Kind: EvLockDecided, Peer: "right", ID: id, Msg: &Msg{Kind: MsgFulfil, Preimage: testSecret}}); len(fx) != 1 || fx[0].Kind != FxUnnote {
		t.Fatalf("told again: %+v", fx)
	}

	x, _ = newLockBench(t, Rules{})
	x.tab.balance["right"] = -130
	id = find(x.from("left", testPrepare(1, mayLock)), FxOffer).Key
	if fx = x.from("right", &Msg{Kind: MsgReject, ID: id, Code: CodeNoRoute, Hop: 2, Lock: &LockMsg{}}); len(fx) != 1 || fx[0].Kind != FxLock || x.tab.inFlight("left", In) != 100 {
		t.Fatalf("a reject without its CANCEL kept decides nothing: %+v", fx)
	}
	fx = x.do(Event{Kind: EvLockDecided, Peer: "right", ID: id, Msg: &Msg{Kind: MsgReject, Code: CodeRefused}})
	if s := find(fx, FxSend); s == nil || s.Msg.Code != CodeNoRoute || s.Msg.Hop != 3 || len(x.tab.held) != 0 {
		t.Fatalf("given up: %+v", fx)
	}
}

// A lock in, and a lock, credit or an endpoint of ours behind it.
func TestLockInGoesOn(t *testing.T) {
	x, _ := newLockBench(t, Rules{FeeBase: 1})
	x.tab.balance["right"] = -130
	fx := x.underLock(1, 40)
	offer := find(fx, FxOffer)
	if offer == nil || offer.Ref != 1000+40-6 || offer.Msg.Amount != 99 || offer.Msg.HopsLeft != 4 || len(x.tab.held) != 0 {
		t.Fatalf("a lock out: %+v, held %v", fx, x.tab.held)
	}
	fx = x.do(Event{Kind: EvLockDecided, Peer: "right", ID: offer.Key, Msg: &Msg{Kind: MsgFulfil, Preimage: testSecret}})
	show := find(fx, FxShow)
	if show == nil || show.Peer != "left" || show.Ref != 1 || !show.Kept || find(fx, FxSave) == nil {
		t.Fatalf("paid: %+v", fx)
	}
	fx = x.do(Event{Kind: EvLockShown, Peer: "left", ID: 1})
	if len(fx) != 1 || fx[0].Kind != FxDelete || len(x.hop.HeldLocks()) != 0 {
		t.Fatalf("shown: %+v", fx)
	}

	// Credit out: the lock has to outlive the late hold, and what the payee needs.
	x, _ = newLockBench(t, Rules{})
	fx = x.underLock(1, 600+6+20)
	sent := find(fx, FxSend)
	if sent == nil || sent.Peer != "right" || sent.Msg.Expires != x.now+20_000 || x.tab.inFlight("right", Out) != 100 || x.tab.inFlight("left", In) != 0 {
		t.Fatalf("credit out: %+v, held %v", fx, x.tab.held)
	}
	if fx = x.from("right", &Msg{Kind: MsgReject, ID: sent.Msg.ID, Code: CodeRefused, Hop: 2}); find(fx, FxGive) == nil || find(fx, FxGive).Msg.Hop != 3 || len(x.tab.held) != 0 {
		t.Fatalf("rejected: %+v", fx)
	}

	// For us: it is claimed until G + S + 1 before its end.
	x, _ = newLockBench(t, Rules{})
	fx = x.underLock(1, 40, func(m *Msg) { m.Dest = "self" })
	if len(fx) != 1 || fx[0].Kind != FxDeliver || fx[0].Msg.Expires != x.now+35_000 {
		t.Fatalf("for us: %+v", fx)
	}
	if fx = x.do(Event{Kind: EvKeep, Peer: "left", ID: 1, Msg: fx[0].Msg}); find(fx, FxSave) == nil {
		t.Fatalf("kept: %+v", fx)
	}
	if fx = x.do(Event{Kind: EvFulfil, Peer: "left", ID: 1, Msg: &Msg{Preimage: testSecret}}); len(fx) != 1 || fx[0].Kind != FxShow || fx[0].Kept {
		t.Fatalf("claimed: %+v", fx)
	}
	if _, err := x.step(Event{Kind: EvReject, Peer: "left", ID: 1, Msg: new(Msg)}); !errors.Is(err, ErrNotHeld) {
		t.Fatalf("decided twice: %v", err)
	}
	// What our endpoint has paid for is shown at any time.
	owed, _ := newLockBench(t, Rules{})
	owed.underLock(1, 40, func(m *Msg) { m.Dest = "self" })
	if fx := owed.do(Event{Kind: EvFulfil, Peer: "left", ID: 1, Owed: true, Msg: &Msg{Preimage: testSecret}}); len(fx) != 1 || fx[0].Kind != FxShow || !fx[0].Kept {
		t.Fatalf("owed: %+v", fx)
	}
	// The channel may say that it is too late, and then it is given up at once.
	if fx = x.do(Event{Kind: EvLockShown, Peer: "left", ID: 1, Failed: true}); find(fx, FxDelete) == nil || find(fx, FxGive) == nil {
		t.Fatalf("refused: %+v", fx)
	}
	// One that ends while it waits is gone.
	x.underLock(2, 40, func(m *Msg) { m.Dest = "self" })
	x.do(Event{Kind: EvKeep, Peer: "left", ID: 2, Msg: &Msg{}})
	if fx = x.do(Event{Kind: EvLockEnded, Peer: "left", ID: 2}); find(fx, FxGone) == nil || find(fx, FxSave) == nil || len(x.hop.parts) != 0 {
		t.Fatalf("ended: %+v", fx)
	}
}

// A lock that cannot go on is given up, with the reason.
func TestLockInIsGivenUp(t *testing.T) {
	for _, c := range []struct {
		name   string
		want   Code
		epochs int64
		change func(*hopBench, *benchLocks, *Msg)
	}{
		{"SHA-256", CodeUnsupported, 40, func(_ *hopBench, _ *benchLocks, m *Msg) { m.Condition.Kind = ConditionSHA256 }},
		{"much data", CodeUnsupported, 40, func(_ *hopBench, _ *benchLocks, m *Msg) { m.Data = make([]byte, MaxKept+1) }},
		{"no route", CodeNoRoute, 40, func(_ *hopBench, _ *benchLocks, m *Msg) { m.Dest = "nobody" }},
		{"too many hops", CodeTooManyHops, 40, func(_ *hopBench, _ *benchLocks, m *Msg) { m.HopsLeft = 0 }},
		{"less than half a claim", CodeTooSmall, 40, func(_ *hopBench, l *benchLocks, _ *Msg) { l.least = 202 }},
		{"less than the fee", CodeTooSmall, 40, func(_ *hopBench, _ *benchLocks, m *Msg) { m.Amount = 1 }},
		{"no time", CodeExpiryTooSoon, 11, func(*hopBench, *benchLocks, *Msg) {}},
		{"no time for us", CodeRefused, 5, func(_ *hopBench, _ *benchLocks, m *Msg) { m.Dest = "self" }},
		{"no channel, no room", CodeExpiryTooSoon, 40, func(_ *hopBench, l *benchLocks, _ *Msg) { delete(l.free, "right") }},
		{"no channel, room too small", CodeHeadroom, 900, func(x *hopBench, l *benchLocks, _ *Msg) {
			delete(l.free, "right")
			x.tab.balance["right"] = -130
		}},
		{"chain away", CodeInternal, 40, func(_ *hopBench, l *benchLocks, _ *Msg) { l.away = true }},
	} {
		x, locks := newLockBench(t, Rules{FeeBase: 1})
		fx := x.underLock(1, c.epochs, func(m *Msg) { c.change(x, locks, m) })
		if len(fx) != 1 || fx[0].Kind != FxGive || fx[0].Ref != 1 || fx[0].Msg.Code != c.want || len(x.tab.held) != 0 {
			t.Errorf("%s: %+v", c.name, fx)
		}
	}
	x, _ := newLockBench(t, Rules{})
	x.underLock(1, 40, func(m *Msg) { m.Dest = "self" })
	fx := x.underLock(2, 40, func(m *Msg) { m.Part = testPrepare(1).Part })
	if len(fx) != 1 || fx[0].Kind != FxGive || fx[0].Msg.Code != CodeLoop {
		t.Errorf("loop: %+v", fx)
	}
	// What the channel holds is not what the packet says.
	x.from("left", testPrepare(3, mayLock, func(m *Msg) { m.Lock = &LockMsg{} }))
	fx = x.do(Event{Kind: EvLockTaken, Peer: "left", ID: 3, Lock: &lock.Lock{ID: 3, Amount: 99, Hash: testSecret.Hashlock(), Expires: 1040}})
	if len(fx) != 1 || fx[0].Kind != FxGive || fx[0].Msg.Code != CodeUnsupported {
		t.Errorf("another amount: %+v", fx)
	}
	// After a restart nobody knows the packet any more.
	fx = x.do(Event{Kind: EvLockTaken, Peer: "left", ID: 4, Lock: &lock.Lock{ID: 4, Amount: 99, Hash: testSecret.Hashlock(), Expires: 1040}})
	if len(fx) != 1 || fx[0].Kind != FxGive {
		t.Errorf("no packet: %+v", fx)
	}
}

func underPoint(m *Msg) { m.Condition, m.MayLock = testPoint(testSecret), true }

// What is under a point goes under locks, also where the tabs have all the room there
// is, and is refused where it cannot.
func TestPointsNeedLocks(t *testing.T) {
	x, _ := newLockBench(t, Rules{FeeBase: 1})
	offer := find(x.underLock(1, 40, underPoint), FxOffer)
	if offer == nil || offer.Ref != 1000+40-6 || offer.Msg.Condition != testPoint(testSecret) || len(x.tab.held) != 0 {
		t.Fatalf("a lock out: %+v, held %v", offer, x.tab.held)
	}
	if _, err := x.step(Event{Kind: EvLockDecided, Peer: "right", ID: offer.Key, Msg: &Msg{Kind: MsgFulfil, Preimage: tally.Preimage{9}}}); !errors.Is(err, errPreimage) {
		t.Fatalf("another secret: %v", err)
	}
	fx := x.do(Event{Kind: EvLockDecided, Peer: "right", ID: offer.Key, Msg: &Msg{Kind: MsgFulfil, Preimage: testSecret}})
	if show := find(fx, FxShow); show == nil || show.Msg.Preimage != testSecret || !show.Kept {
		t.Fatalf("paid: %+v", fx)
	}
	// Our own, and its record.
	m := testPrepare(0, underPoint, func(m *Msg) { m.Part = PartID{1} })
	own := find(x.do(Event{Kind: EvSend, Ref: 1, Keep: true, Msg: m}), FxOffer)
	if own == nil || own.Peer != "right" || len(x.tab.held) != 0 {
		t.Fatalf("our own: %+v", own)
	}
	again, _ := newLockBench(t, Rules{})
	if held, err := again.hop.Restore(own.Key, own.Record, nil); err != nil || len(held) != 0 {
		t.Fatal(held, err)
	}
	if m, ok := again.hop.OfferOf("right", own.Key); !ok || m.Condition != testPoint(testSecret) {
		t.Fatalf("after a restart: %+v, %v", m, ok)
	}
	// A record that says otherwise is not one of ours: without the bit of the lock.
	bad := append([]byte(nil), own.Record...)
	bad[0] &^= recLockOut
	if _, err := again.hop.Restore(own.Key+1, bad, nil); !errors.Is(err, errRecord) {
		t.Fatalf("a point on credit in the journal: %v", err)
	}
	// For us, and claimed.
	fx = x.underLock(2, 40, underPoint, func(m *Msg) { m.Dest = "self" })
	if len(fx) != 1 || fx[0].Kind != FxDeliver || fx[0].Msg.Lock == nil || fx[0].Msg.Condition != testPoint(testSecret) {
		t.Fatalf("for us: %+v", fx)
	}
	if _, err := x.step(Event{Kind: EvFulfil, Peer: "left", ID: 2, Msg: &Msg{Preimage: tally.Preimage{9}}}); !errors.Is(err, errPreimage) {
		t.Fatalf("claimed with another secret: %v", err)
	}
	if fx = x.do(Event{Kind: EvFulfil, Peer: "left", ID: 2, Msg: &Msg{Preimage: testSecret}}); find(fx, FxShow) == nil {
		t.Fatalf("claimed: %+v", fx)
	}

	for _, c := range []struct {
		name   string
		change func(*benchLocks, *Msg)
		code   Code
		room   tally.Amount
	}{
		{"no channel", func(l *benchLocks, _ *Msg) { delete(l.free, "right") }, CodeUnsupported, 0},
		{"a channel for hashes alone", func(l *benchLocks, _ *Msg) { l.hashes = true }, CodeUnsupported, 0},
		{"no funds", func(l *benchLocks, _ *Msg) { l.free["right"] = 42 }, CodeHeadroom, 42},
		{"less than a claim costs", func(l *benchLocks, _ *Msg) { l.least = 150 }, CodeTooSmall, 0},
		{"a point of no form", func(_ *benchLocks, m *Msg) { m.Condition.Point = 4 }, CodeUnsupported, 0},
	} {
		x, locks := newLockBench(t, Rules{})
		fx := x.underLock(1, 900, underPoint, func(m *Msg) { c.change(locks, m) })
		if len(fx) != 1 || fx[0].Kind != FxGive || fx[0].Msg.Code != c.code || fx[0].Msg.Headroom != c.room || len(x.tab.held) != 0 {
			t.Errorf("%s, passing: %+v", c.name, fx)
		}
		m := testPrepare(0, underPoint, func(m *Msg) { m.Part = PartID{1} })
		c.change(locks, m)
		fx = x.do(Event{Kind: EvSend, Ref: 1, Msg: m})
		if len(fx) != 1 || fx[0].Kind != FxResult || fx[0].Msg.Code != c.code || fx[0].Msg.Headroom != c.room || len(x.tab.held) != 0 {
			t.Errorf("%s, our own: %+v", c.name, fx)
		}
	}
	x, _ = newLockBench(t, Rules{})
	fx = x.do(Event{Kind: EvSend, Ref: 1, Msg: testPrepare(0, underPoint, func(m *Msg) { m.MayLock = false })})
	if len(fx) != 1 || fx[0].Msg.Code != CodeUnsupported {
		t.Errorf("its payer wants no lock: %+v", fx)
	}
	// The lock is not the one that the packet names.
	x.from("left", testPrepare(3, underPoint, func(m *Msg) { m.Lock = &LockMsg{} }))
	fx = x.do(Event{Kind: EvLockTaken, Peer: "left", ID: 3, Lock: &lock.Lock{ID: 3, Amount: 100, Hash: testSecret.Hashlock(), Expires: 1040}})
	if len(fx) != 1 || fx[0].Kind != FxGive || fx[0].Msg.Code != CodeUnsupported {
		t.Errorf("a hash lock for a point: %+v", fx)
	}
	// Who knows no curves carries none.
	x, _ = newLockBench(t, Rules{})
	x.hop.opensPoint = nil
	if fx = x.underLock(1, 40, underPoint); len(fx) != 1 || fx[0].Kind != FxGive || fx[0].Msg.Code != CodeUnsupported {
		t.Errorf("without curves: %+v", fx)
	}
}

// A neighbour can neither have us send again for ever, nor keep more than channels
// have slots.
func TestLockBounds(t *testing.T) {
	x, _ := newLockBench(t, Rules{})
	sync := &Msg{Kind: MsgLaneSync, Lock: &LockMsg{Lanes: make([]lock.LaneState, MaxLanes)}}
	for range laneSyncBurst {
		if fx := x.from("left", sync); len(fx) != 1 || fx[0].Kind != FxLock {
			t.Fatalf("%+v", fx)
		}
	}
	if _, err := x.step(Event{Kind: EvMessage, Peer: "left", Msg: sync}); !errors.Is(err, errLaneSyncs) {
		t.Fatalf("a sync too many: %v", err)
	}
	x.now += laneSyncEvery
	x.from("left", sync)
	if _, err := x.step(Event{Kind: EvMessage, Peer: "left", Msg: sync}); !errors.Is(err, errLaneSyncs) {
		t.Fatalf("after a second: %v", err)
	}
	for id := range uint64(maxArrived) {
		x.from("right", testPrepare(id+1, func(m *Msg) { m.Lock = &LockMsg{} }))
	}
	if _, err := x.step(Event{Kind: EvMessage, Peer: "right", Msg: testPrepare(maxArrived+1, func(m *Msg) { m.Lock = &LockMsg{} })}); !errors.Is(err, errArrivals) {
		t.Fatalf("a lock too many: %v", err)
	}
	x.do(Event{Kind: EvLockEnded, Peer: "right", ID: 1})
	x.from("right", testPrepare(maxArrived+1, func(m *Msg) { m.Lock = &LockMsg{} }))
	// A credit packet under the id of a lock that is held would share its decisions.
	x.underLock(7, 40, func(m *Msg) { m.Dest = "self" })
	if _, err := x.step(Event{Kind: EvMessage, Peer: "left", Msg: testPrepare(7)}); !errors.Is(err, errIDTwice) {
		t.Fatalf("an id twice: %v", err)
	}
	// Without locks, their messages mean nothing.
	y := newHopBench(t, Rules{})
	for k := MsgPrepareAck; k <= MsgShow; k++ {
		if fx := y.from("left", &Msg{Kind: k, ID: 1, Lock: &LockMsg{}}); len(fx) != 0 {
			t.Fatalf("kind %d: %+v", k, fx)
		}
	}
	// A neighbour has half of the slots to another, and no more: of 4 here.
	x.tab.balance["right"] = -130
	for id := uint64(30); id < 32; id++ {
		if fx := x.underLock(id, 40); find(fx, FxOffer) == nil {
			t.Fatalf("lock %d: %+v", id, fx)
		}
	}
	fx := x.underLock(32, 40)
	if give := find(fx, FxGive); give == nil || give.Msg.Code != CodeBusy {
		t.Fatalf("more than its share: %+v", fx)
	}
	x, _ = newLockBench(t, Rules{})
	// A wish to give up goes to whom our lock is with.
	x.tab.balance["right"] = -130
	offer := find(x.from("left", testPrepare(20, mayLock)), FxOffer)
	if fx := x.from("left", &Msg{Kind: MsgCancelRequest, ID: 20, Lock: &LockMsg{}}); len(fx) != 0 {
		t.Fatalf("of a packet on credit: %+v", fx)
	}
	held := find(x.underLock(21, 40), FxOffer)
	if fx := x.from("left", &Msg{Kind: MsgCancelRequest, ID: 21, Lock: &LockMsg{}}); len(fx) != 1 || fx[0].Kind != FxAsk || fx[0].Peer != "right" || fx[0].Key != held.Key || held.Key == offer.Key {
		t.Fatalf("%+v", fx)
	}
}

// stubLocks records what the engine asks of the channels.
type stubLocks struct {
	*benchLocks
	offers chan Msg
	record func(*durable.Batch)
	shows  chan func(error)
	gives  chan Msg
}

func (l *stubLocks) Receive(peer.ID, *Msg) {}
func (l *stubLocks) Offer(_ peer.ID, _ uint64, _ int64, m *Msg, record func(*durable.Batch)) {
	l.record = record
	l.offers <- *m
}

func (l *stubLocks) Show(_ peer.ID, _ uint64, _ tally.Preimage, _ bool, record func(*durable.Batch), done func(error)) {
	l.record = record
	l.shows <- done
}
func (l *stubLocks) Give(_ peer.ID, _ uint64, why *Msg) { l.gives <- *why }
func (l *stubLocks) Ask(peer.ID, uint64)                {}

type lockKeeper struct{ kept chan Delivery }

func (k lockKeeper) Packet(d *Delivery) (Decision, bool) {
	cp := *d
	return Decision{Kept: func() { k.kept <- cp }}, false
}

// The shell over a restart: a part of ours under a lock is found in the journal, its
// outcome in the note, and its sender hears of it once.
func TestEngineResumesLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := durabletest.NewMem()
		defer store.Close()
		now := time.Now().UnixMilli()
		results := make(chan Result, 4)
		locks := &stubLocks{offers: make(chan Msg, 4), shows: make(chan func(error), 4), gives: make(chan Msg, 4)}
		locks.benchLocks = &benchLocks{x: &hopBench{now: now}, free: map[peer.ID]tally.Amount{"b": 1000}}
		h := lockKeeper{make(chan Delivery, 4)}
		open := func() *Engine {
			tabs := &testTabs{fakeTabs: newFakeTabs(map[peer.ID]tally.Balance{})}
			tabs.limit = 10
			e, err := New(t.Context(), Config{Self: "a", Tabs: tabs, Store: store, Handler: h, Locks: locks, Kept: func(r *Result) { results <- *r }})
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		e := open()
		e.Start(&pairWire{self: "a"})
		e.Up("b", 10)
		p := testPacket("x")
		p.Amount, p.Keep, p.MayLock, p.Part = 100, true, true, PartID{1}
		if err := e.Send(p, nil); err != nil {
			t.Fatal(err)
		}
		offer := <-locks.offers
		if offer.Amount != 100 || string(offer.Data) != "x" {
			t.Fatalf("offered %+v", offer)
		}
		// The locker's batch, and the one in which it is paid; then a stop.
		var batch durable.Batch
		locks.record(&batch)
		preimage := testSecret
		Noted("b", offer.ID, &preimage)(&batch)
		if err := errors.Join(store.Commit(t.Context(), &batch), e.Close()); err != nil {
			t.Fatal(err)
		}
		e = open()
		if sent := e.Sent(); len(sent) != 1 || sent[0] != p.Part {
			t.Fatalf("sent %v", sent)
		}
		if m, ok := e.OfferOf("b", offer.ID); !ok || m.Amount != 100 || m.Dest != "b" || string(m.Data) != "x" || m.Part != p.Part {
			t.Fatalf("the prepare that goes with the lock: %+v, %v", m, ok)
		}
		e.Start(&pairWire{self: "a"})
		if r := <-results; !r.Fulfilled || r.Part != p.Part {
			t.Fatalf("%+v", r)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}

		// A lock of the neighbour waits at our endpoint over a restart, and is claimed.
		e = open()
		w := &pairWire{self: "a"}
		e.Start(w)
		e.Up("b", 10)
		m := testPrepare(5, mayLock, func(m *Msg) { m.Dest, m.Lock = "a", &LockMsg{Channel: []byte{1}, Voucher: []byte{1}} })
		e.Receive(&Batch{Peer: "b", Msgs: []Msg{*m}, Recycle: func(*Batch) {}})
		if err := e.LockTaken("b", lock.Lock{ID: 5, Amount: 100, Hash: testSecret.Hashlock(), Expires: 1040}); err != nil {
			t.Fatal(err)
		}
		if d := <-h.kept; !d.Locked || d.Again || d.ID != 5 {
			t.Fatalf("%+v", d)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		e = open()
		if held := e.HeldLocks(); len(held) != 1 || held[0] != (HeldLock{"b", 5}) {
			t.Fatalf("held %v", held)
		}
		e.Start(w)
		if d := <-h.kept; !d.Locked || !d.Again {
			t.Fatalf("%+v", d)
		}
		saved := make(chan error, 1)
		noted := false
		if err := e.Decide("b", 5, &Decision{Fulfil: true, Preimage: testSecret, Record: func(*durable.Batch) { noted = true }}, func(err error) { saved <- err }); err != nil {
			t.Fatal(err)
		}
		done := <-locks.shows
		batch.Reset()
		locks.record(&batch)
		if !noted || batch.Len() != 1 {
			t.Fatal("the endpoint's record is in the batch of the preimage")
		}
		done(nil)
		if err := <-saved; err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
