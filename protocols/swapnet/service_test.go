package swapnet

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/tallystick/tally/swap"
)

const (
	begun77  = "begin native=true threshold=77"
	begun100 = "begin native=true threshold=100"
	seed77   = "begin native=false threshold=77"
)

func send(t testing.TB, n *node, p peer.ID, m swap.Message) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return n.Send(ctx, p, m)
}

func mustSend(t testing.TB, n *node, p peer.ID, m swap.Message) {
	t.Helper()
	if err := send(t, n, p, m); err != nil {
		t.Fatal(err)
	}
}

// Two services: the one that dialled opens, both books see one session, and
// every message arrives as what it was.
func TestSession(t *testing.T) {
	ha, hb := hosts(t)
	a, b := newNode(t, ha, Limits{}), newNode(t, hb, Limits{})
	if err := send(t, a, hb.ID(), &swap.Statement{}); !errors.Is(err, swap.ErrNoSession) {
		t.Fatal(err)
	}
	connect(t, ha, hb)
	a.want(t, begun100)
	b.want(t, begun100)
	mustSend(t, a, hb.ID(), testCheque(ha.ID(), hb.ID(), 1))
	b.want(t, "cheque 1")
	mustSend(t, b, ha.ID(), &swap.Ack{Issuer: hb.ID(), Beneficiary: ha.ID(), Serial: 1})
	a.want(t, "ack 1")
	mustSend(t, b, ha.ID(), &swap.Statement{Totals: swap.Totals{Served: 3, Consumed: 4}})
	a.want(t, "statement 3 4")
	mustSend(t, a, hb.ID(), &swap.Refusal{Serial: 7, Code: swap.RefusalStale, Detail: "old\n"})
	b.want(t, "refusal 7 older than the last cheque old?")
	if id, ok := a.Protocol(hb.ID()); !ok || id != ProtocolNative {
		t.Fatal(id, ok)
	}
	for _, m := range []swap.Message{&swap.KarmaCheque{}, &swap.Handshake{Realm: swap.Realm{Asset: "karma"}}} {
		if err := send(t, a, hb.ID(), m); !errors.Is(err, ErrUnsupported) {
			t.Fatal(err)
		}
	}
	if err := send(t, a, hb.ID(), &swap.Cheque{}); !errors.Is(err, swap.ErrMalformed) {
		t.Fatal(err)
	}
	if got := a.Stats(); got.Sessions != 1 || got.Streams != 1 || got.FramesOut != 3 || got.FramesIn != 3 {
		t.Fatalf("%+v", got)
	}
	if err := b.Disconnect(ha.ID()); err != nil {
		t.Fatal(err)
	}
	b.want(t, "end")
	a.want(t, "end")
	b.wantEnd(t, StatusClosed)
	if err := send(t, b, ha.ID(), &swap.Statement{}); !errors.Is(err, swap.ErrNoSession) {
		t.Fatal(err)
	}
}

// A session made while the book begins it can already be written to, because
// that is when a pending cheque is sent again.
func TestSendFromBegin(t *testing.T) {
	ha, hb := hosts(t)
	a, b := newNode(t, ha, Limits{}), newNode(t, hb, Limits{})
	a.onBegin = func(p peer.ID) error { return send(t, a, p, testCheque(ha.ID(), p, 9)) }
	connect(t, ha, hb)
	b.want(t, begun100, "cheque 9")
	a.want(t, begun100)
}

// Connections that were there before Start get a session too.
func TestStartAfterConnect(t *testing.T) {
	ha, hb := hosts(t)
	b := newNode(t, hb, Limits{OpenGrace: time.Hour})
	connect(t, ha, hb)
	a := newNode(t, ha, Limits{OpenGrace: time.Hour})
	a.want(t, begun100)
	b.want(t, begun100)
	if err := a.Start(); err == nil {
		t.Fatal("second start")
	}
}

// The side that was dialled waits, then opens itself.
func TestInboundSideOpensAfterGrace(t *testing.T) {
	inBubble(t, func(t *testing.T, newHost makeHost) {
		ha, hb := newHost(), newHost()
		came := answering(t, ha, ProtocolNative)
		b := newNode(t, hb, Limits{OpenGrace: 5 * time.Second})
		start := time.Now()
		connect(t, ha, hb)
		raw := next(t, came)
		wantTook(t, start, 5*time.Second)
		raw.shakeNative()
		b.want(t, begun77)
	})
}

// A session that fails is tried again, after a pause that doubles; a peer that
// speaks none of our protocols is never opened to.
func TestOpensAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, newHost makeHost) {
		ha, hb := newHost(), newHost()
		came := answering(t, hb, ProtocolAlpha1)
		a := newNode(t, ha, Limits{RetryMin: 2 * time.Second, RetryMax: 8 * time.Second})
		connect(t, ha, hb)
		start := time.Now()
		for range 3 {
			_ = next(t, came).st.Reset()
			a.wantEnd(t, StatusGone)
		}
		wantTook(t, start, 6*time.Second) // 2 + 4
		raw := next(t, came)
		raw.shakeAlpha1()
		a.want(t, seed77)
		mute := newHost()
		a.Service.mu.Lock()
		defer a.Service.mu.Unlock()
		if a.speaks(mute.ID()) {
			t.Fatal("speaks")
		}
	})
}

// The seed's protocol to the byte: threshold each way, then any number of
// cheques, either way, until EOF.
func TestAlpha1(t *testing.T) {
	ha, hb := hosts(t)
	b := newNode(t, hb, Limits{})
	raw := openRaw(t, ha, hb, ProtocolAlpha1)
	raw.shakeAlpha1()
	b.want(t, seed77)
	for i := range byte(20) {
		raw.frame(karma(i + 1))
	}
	for i := range 20 {
		b.want(t, fmt.Sprintf("karma %d", i+1))
	}
	mustSend(t, b, ha.ID(), &swap.KarmaCheque{Beneficiary: []byte("to"), Date: 1, Amount: 300})
	if got := raw.read(); !slices.Equal(got, []byte{0x0a, 2, 't', 'o', 0x10, 1, 0x18, 0xac, 0x02}) {
		t.Fatalf("% x", got)
	}
	for _, m := range []swap.Message{testCheque(hb.ID(), ha.ID(), 1), &swap.Statement{}, &swap.Refusal{}, &swap.Handshake{}} {
		if err := send(t, b, ha.ID(), m); !errors.Is(err, ErrUnsupported) {
			t.Fatal(err)
		}
	}
	raw.frame(karma(42))
	if err := raw.st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b.want(t, "karma 42", "end") // what came before the end is booked
	b.wantEnd(t, StatusOK)
	raw.wantGone()
}

// A frame has its role by position: what looks like a cheque is the handshake
// when it comes first, and what looks like a handshake is then a cheque.
func TestAlpha1RoleByPosition(t *testing.T) {
	ha, hb := hosts(t)
	b := newNode(t, hb, Limits{})
	raw := openRaw(t, ha, hb, ProtocolAlpha1)
	raw.frame([]byte{0x0a, 1, 77, 0x10, 5, 0x18, 6}) // as a cheque: beneficiary, date, amount
	b.want(t, seed77)
	raw.frame([]byte{0x0a, 1, 77}) // as a handshake
	b.want(t, "karma 0")
	raw.frame(nil) // both may be empty
	b.want(t, "karma 0")
}

// A peer of the seed's protocol may write its cheques on a stream of its own:
// both streams are one session.
func TestAlpha1StreamEachWay(t *testing.T) {
	ha, hb := hosts(t)
	came := answering(t, ha, ProtocolAlpha1)
	b := newNode(t, hb, Limits{})
	connect(t, hb, ha)
	first := next(t, came)
	first.shakeAlpha1()
	b.want(t, seed77)
	second := openRaw(t, ha, hb, ProtocolAlpha1)
	second.shakeAlpha1()
	second.frame(karma(1))
	b.want(t, "karma 1")
	first.frame(karma(2))
	b.want(t, "karma 2")
	mustSend(t, b, ha.ID(), &swap.KarmaCheque{Amount: 3}) // on the stream that we opened
	if got := first.read(); !slices.Equal(got, []byte{0x18, 3}) {
		t.Fatalf("% x", got)
	}
	if err := first.st.Close(); err != nil {
		t.Fatal(err)
	}
	b.wantEnd(t, StatusOK)
	second.frame(karma(4))
	b.want(t, "karma 4") // no end yet
	mustSend(t, b, ha.ID(), &swap.KarmaCheque{Amount: 5})
	if got := second.read(); !slices.Equal(got, []byte{0x18, 5}) {
		t.Fatalf("% x", got)
	}
	if err := second.st.Close(); err != nil {
		t.Fatal(err)
	}
	b.want(t, "end")
}

func TestBeta1(t *testing.T) {
	ha, hb := hosts(t)
	b := newNode(t, hb, Limits{})
	var got swap.KarmaCheque
	b.onMsg = func(_ peer.ID, m swap.Message) error {
		got = *m.(*swap.KarmaCheque)
		if got.Amount == 9 {
			return swap.ErrBeneficiary
		}
		return nil
	}
	one := func(frame []byte, status Status) {
		t.Helper()
		raw := openRaw(t, ha, hb, ProtocolBeta1)
		raw.frame(frame)
		b.wantEnd(t, status)
		raw.wantGone()
	}
	one(append([]byte{0x18, 1, 0x22, 4}, "0xab"...), StatusOK) // as nwaku writes it
	b.want(t, "karma 1")
	if !got.For(hb.ID()) || got.For(ha.ID()) {
		t.Fatalf("beneficiary %q", got.Beneficiary)
	}
	one(karma(9), StatusRefused)
	b.want(t, "karma 9")
	one([]byte{0x0a, 2, '0', 'x', 0x12, 1, 'b', 0x18, 9, 0x20, 1}, StatusOtherLayout)
	one([]byte{0x18, 9, 0x20, 1}, StatusOtherLayout)
	one([]byte{0xff}, StatusGarbage)
	raw := openRaw(t, ha, hb, ProtocolBeta1)
	if err := raw.st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b.wantEnd(t, StatusGone)
	b.wantNothing(t) // and no session ever
}

// Both dial each other at once, again and again. However the streams interleave,
// one session is left, and both sides agree on it.
func TestSimultaneousDial(t *testing.T) {
	rounds := 8
	if testing.Short() {
		rounds = 2
	}
	for range rounds {
		ha, hb := hosts(t)
		lim := Limits{OpenGrace: 20 * time.Millisecond, RetryMin: 10 * time.Millisecond}
		a, b := newNode(t, ha, lim), newNode(t, hb, lim)
		a.quiet, b.quiet = true, true
		var wg sync.WaitGroup
		wg.Go(func() { connect(t, ha, hb) })
		wg.Go(func() { connect(t, hb, ha) })
		wg.Wait()
		settled(t, a, b)
		if err := errors.Join(a.Close(), b.Close(), ha.Close(), hb.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// settled waits until both have one session and a message passes either way on
// it.
func settled(t testing.TB, a, b *node) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		got := make(chan int, 2)
		for i, n := range []*node{a, b} {
			n.fakeBook.mu.Lock()
			n.onMsg = func(peer.ID, swap.Message) error {
				select {
				case got <- i:
				default:
				}
				return nil
			}
			n.fakeBook.mu.Unlock()
		}
		sa, sb := a.Stats(), b.Stats()
		if sa.Streams == 1 && sb.Streams == 1 && sa.Sessions == 1 && sb.Sessions == 1 &&
			send(t, a, b.host.ID(), &swap.Statement{}) == nil && send(t, b, a.host.ID(), &swap.Statement{}) == nil {
			if next(t, got)+next(t, got) == 1 {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("not settled: %+v %+v", sa, sb)
		}
		<-time.NewTimer(5 * time.Millisecond).C
	}
}

// Two native streams, one each way, on one connection: the one of the lower
// peer id is kept on both sides, whichever came first.
func TestTieBreak(t *testing.T) {
	t.Run("ours is kept", func(t *testing.T) {
		ha, hb := hosts(t)
		came := answering(t, hb, ProtocolNative)
		a := newNode(t, ha, Limits{})
		connect(t, ha, hb)
		ours := next(t, came)
		theirs := openRaw(t, hb, ha, ProtocolNative)
		theirs.send(&swap.Handshake{Realm: swap.Realm{Asset: "karma"}})
		a.wantEnd(t, StatusTieBreak)
		theirs.wantGone()
		ours.shakeNative()
		a.want(t, begun77)
		again := openRaw(t, hb, ha, ProtocolNative) // also when the session lives
		again.send(&swap.Handshake{Realm: swap.Realm{Asset: "karma"}})
		a.wantEnd(t, StatusTieBreak)
		ours.send(&swap.Statement{})
		a.want(t, "statement 0 0")
	})
	t.Run("theirs is kept", func(t *testing.T) {
		ha, hb := hosts(t)
		came := answering(t, ha, ProtocolNative)
		b := newNode(t, hb, Limits{})
		connect(t, hb, ha)
		ours := next(t, came)
		ours.shakeNative()
		b.want(t, begun77)
		theirs := openRaw(t, ha, hb, ProtocolNative)
		theirs.shakeNative()
		b.want(t, "end", begun77)
		b.wantEnd(t, StatusReplaced)
		ours.wantGone()
		theirs.send(&swap.Statement{})
		b.want(t, "statement 0 0")
	})
}

// The peer starts anew with the same key and dials us while its old connection
// lingers. The new session replaces the old one, whoever opened that, and no
// message of the old one is booked on the new.
func TestReconnectReplaces(t *testing.T) {
	for _, outbound := range []bool{false, true} {
		t.Run(fmt.Sprintf("old stream outbound=%v", outbound), func(t *testing.T) {
			hb := newHost(t)
			key := higherKey(t, hb.ID()) // so that at once, the stream of hb would win
			b := newNode(t, hb, Limits{Overlap: time.Nanosecond})
			old, again := newHost(t, libp2p.Identity(key)), newHost(t, libp2p.Identity(key))
			var first *rawPeer
			if outbound {
				came := answering(t, old, ProtocolNative)
				connect(t, hb, old)
				first = next(t, came)
			} else {
				first = openRaw(t, old, hb, ProtocolNative)
			}
			first.shakeNative()
			b.want(t, begun77)

			// The book is busy with one message of the old session, and another
			// waits behind it.
			busy, free := make(chan struct{}), make(chan struct{})
			var once sync.Once
			b.onMsg = func(peer.ID, swap.Message) error {
				once.Do(func() { close(busy); <-free })
				return nil
			}
			first.send(&swap.Statement{Totals: swap.Totals{Served: 1}})
			next(t, busy)
			first.send(&swap.Statement{Totals: swap.Totals{Served: 2}})
			waitFor(t, func() bool { return b.Stats().FramesIn == 3 })

			second := openRaw(t, again, hb, ProtocolNative)
			second.shakeNative()
			second.send(&swap.Statement{Totals: swap.Totals{Served: 3}})
			first.wantGone()
			close(free)
			b.want(t, "statement 1 0", "statement 2 0", "end", begun77, "statement 3 0")
			b.wantEnd(t, StatusReplaced)
		})
	}
}

// higherKey returns a key whose peer id is above id.
func higherKey(t testing.TB, id peer.ID) crypto.PrivKey {
	t.Helper()
	for {
		key := newKey(t)
		if got, err := peer.IDFromPrivateKey(key); err != nil {
			t.Fatal(err)
		} else if got > id {
			return key
		}
	}
}

// TestJudge holds a new stream against one that is there, in every pair of
// protocol, direction, connection and age.
func TestJudge(t *testing.T) {
	type conn struct {
		network.Conn
		_ int
	}
	low, high := hosts(t)
	one, two := &conn{}, &conn{}
	const fresh, aged = time.Second, time.Minute
	type stream struct {
		proto   protocol.ID
		inbound bool
		conn    *conn
	}
	tests := []struct {
		name    string
		self    host.Host
		old     stream
		age     time.Duration // of the old session; 0: still shakes hands
		opening bool          // instead of old
		new     stream
		want    Status
	}{
		{name: "same direction, same connection", old: stream{ProtocolNative, true, one}, new: stream{ProtocolNative, true, one}, want: StatusDuplicate},
		{name: "same direction, same connection, aged", old: stream{ProtocolNative, true, one}, age: aged, new: stream{ProtocolNative, true, one}, want: StatusDuplicate},
		{name: "same direction, new connection", old: stream{ProtocolNative, true, one}, age: fresh, new: stream{ProtocolNative, true, two}},
		{name: "we are lower, theirs comes second", old: stream{ProtocolNative, false, one}, age: fresh, new: stream{ProtocolNative, true, two}, want: StatusTieBreak},
		{name: "we are lower, theirs comes while ours shakes hands", old: stream{ProtocolNative, false, one}, new: stream{ProtocolNative, true, two}, want: StatusTieBreak},
		{name: "we are lower, theirs comes while we open", opening: true, new: stream{ProtocolNative, true, two}, want: StatusTieBreak},
		{name: "we are lower, ours comes second", old: stream{ProtocolNative, true, one}, age: fresh, new: stream{ProtocolNative, false, two}},
		{name: "we are higher, theirs comes second", self: high, old: stream{ProtocolNative, false, one}, age: fresh, new: stream{ProtocolNative, true, two}},
		{name: "we are higher, theirs comes while we open", self: high, opening: true, new: stream{ProtocolNative, true, two}},
		{name: "we are higher, ours comes second", self: high, old: stream{ProtocolNative, true, one}, age: fresh, new: stream{ProtocolNative, false, two}, want: StatusTieBreak},
		{name: "other direction, aged, same connection", old: stream{ProtocolNative, false, one}, age: aged, new: stream{ProtocolNative, true, one}, want: StatusTieBreak},
		{name: "other direction, aged, new connection", old: stream{ProtocolNative, false, one}, age: aged, new: stream{ProtocolNative, true, two}},
		{name: "alpha1 after native", old: stream{ProtocolNative, true, one}, age: fresh, new: stream{ProtocolAlpha1, true, two}, want: StatusDuplicate},
		{name: "alpha1 after native, aged, new connection", old: stream{ProtocolNative, true, one}, age: aged, new: stream{ProtocolAlpha1, true, two}},
		{name: "native after alpha1", old: stream{ProtocolAlpha1, true, one}, age: fresh, new: stream{ProtocolNative, true, one}},
		{name: "alpha1 each way", old: stream{ProtocolAlpha1, false, one}, age: fresh, new: stream{ProtocolAlpha1, true, one}},
		{name: "alpha1 while we open", opening: true, new: stream{ProtocolAlpha1, true, one}},
	}
	now := time.Now()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			self, other := low, high
			if tt.self == high {
				self, other = high, low
			}
			s, err := New(self, newFakeBook(t), Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			s.now = func() time.Time { return now }
			of := func(x stream) *session {
				return &session{peer: other.ID(), proto: x.proto, inbound: x.inbound, conn: x.conn}
			}
			ps := &peerState{opening: tt.opening}
			if !tt.opening {
				old := of(tt.old)
				if tt.age > 0 {
					old.since = now.Add(-tt.age)
				}
				ended := of(tt.old) // one that is stopped never counts
				ended.why.Store(1)
				ps.sessions = []*session{ended, old}
			}
			if got, _ := s.judge(ps, of(tt.new)); got != tt.want {
				t.Fatalf("%v, want %v", got, tt.want)
			}
		})
	}
}

func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("did not come true")
		}
		<-time.NewTimer(2 * time.Millisecond).C
	}
}

// A book that does not return from a call of the old session is told by its
// context, and holds the new session up no longer than twice the frame timeout.
func TestReplaceCancelsBook(t *testing.T) {
	inBubble(t, func(t *testing.T, newHost makeHost) {
		key := newKey(t)
		hb := newHost()
		b := newNode(t, hb, Limits{Overlap: time.Nanosecond, FrameTimeout: 5 * time.Second})
		stuck := &stuckBook{fakeBook: b.fakeBook}
		b.Service.book = stuck
		first := openRaw(t, newHost(libp2p.Identity(key)), hb, ProtocolNative)
		first.shakeNative()
		b.want(t, begun77)
		first.send(&swap.Statement{})
		b.want(t, "stuck")
		start := time.Now()
		second := openRaw(t, newHost(libp2p.Identity(key)), hb, ProtocolNative)
		second.shakeNative()
		b.want(t, "end", begun77)
		if took := time.Since(start); took > 10*time.Second+travel {
			t.Fatalf("it took %v", took)
		}
	})
}

// stuckBook returns from Receive when its context ends.
type stuckBook struct{ *fakeBook }

func (b *stuckBook) Receive(ctx context.Context, _ peer.ID, _ swap.Message) error {
	b.told <- "stuck"
	<-ctx.Done()
	return ctx.Err()
}

// A connection that comes and goes: every session is paired, and nothing of the
// peer is left.
func TestFlappingConnection(t *testing.T) {
	ha, hb := hosts(t)
	a, b := newNode(t, ha, Limits{SessionsPerSecond: 1000}), newNode(t, hb, Limits{SessionsPerSecond: 1000})
	for i := range 10 {
		from, to := ha, hb
		if i%2 == 1 {
			from, to = to, from
		}
		connect(t, from, to)
		a.want(t, begun100)
		b.want(t, begun100)
		if err := from.Network().ClosePeer(to.ID()); err != nil {
			t.Fatal(err)
		}
		a.want(t, "end")
		b.want(t, "end")
		waitFor(t, func() bool {
			return ha.Network().Connectedness(hb.ID()) != network.Connected && hb.Network().Connectedness(ha.ID()) != network.Connected &&
				known(a) == 0 && known(b) == 0
		})
	}
}

func known(n *node) int {
	n.Service.mu.Lock()
	defer n.Service.mu.Unlock()
	return len(n.peers)
}

// Many senders share one session: every frame arrives whole and once.
func TestConcurrentSend(t *testing.T) {
	ha, hb := hosts(t)
	a, b := newNode(t, ha, Limits{}), newNode(t, hb, Limits{FramesPerSecond: 1e6, FrameBurst: 1e6})
	connect(t, ha, hb)
	a.want(t, begun100)
	b.want(t, begun100)
	const senders, each = 8, 50
	var mu sync.Mutex
	seen := make(map[uint64]int)
	b.fakeBook.mu.Lock()
	b.onMsg = func(_ peer.ID, m swap.Message) error {
		mu.Lock()
		defer mu.Unlock()
		seen[uint64(m.(*swap.Statement).Served)]++
		return nil
	}
	b.quiet = true
	b.fakeBook.mu.Unlock()
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for j := range each {
				if err := send(t, a, hb.ID(), &swap.Statement{Totals: totals(uint64(i*each + j))}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	waitFor(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(seen) == senders*each })
	for served, n := range seen {
		if n != 1 {
			t.Errorf("message %d came %d times", served, n)
		}
	}
}

// A peer that takes no bytes holds a bounded queue: a further Send waits for as
// long as its context lets it, says that nothing left, and after the frame
// timeout the session is over.
func TestSendToPeerThatDoesNotRead(t *testing.T) {
	ha, hb := hosts(t)
	came := answering(t, hb, ProtocolNative)
	a := newNode(t, ha, Limits{FrameTimeout: 2 * time.Second, QueuedBytes: MaxNativeFrame})
	connect(t, ha, hb)
	next(t, came).shakeNative()
	a.want(t, begun77)
	big := testCheque(ha.ID(), hb.ID(), 1)
	big.Backing, big.Signature = make([]byte, swap.MaxBacking), make([]byte, swap.MaxSignature)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := a.Send(context.Background(), hb.ID(), big); err != nil {
					return
				}
			}
		})
	}
	waitFor(t, func() bool { // the window of the stream is full
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		err := a.Send(ctx, hb.ID(), big)
		return errors.Is(err, ErrNotSent) && errors.Is(err, context.DeadlineExceeded)
	})
	a.Service.mu.Lock()
	sess := a.live(hb.ID())
	a.Service.mu.Unlock()
	for len(a.ended) == 0 { // until the frame timeout
		sess.out.mu.Lock()
		held := sess.out.bytes
		sess.out.mu.Unlock()
		if held > MaxNativeFrame {
			t.Errorf("%d bytes are held", held)
			break
		}
		runtime.Gosched()
	}
	a.wantEnd(t, StatusSlow)
	a.want(t, "end")
	close(stop)
	wg.Wait()
}

// Close in the middle of everything: sessions end, senders return, and goleak
// (TestMain) finds nothing.
func TestCloseUnderLoad(t *testing.T) {
	ha, hb := hosts(t)
	a, b := newNode(t, ha, Limits{}), newNode(t, hb, Limits{})
	connect(t, ha, hb)
	a.want(t, begun100)
	b.want(t, begun100)
	b.fakeBook.mu.Lock()
	b.quiet = true
	b.fakeBook.mu.Unlock()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for send(t, a, hb.ID(), &swap.Statement{}) == nil {
			}
		})
	}
	waitFor(t, func() bool { return b.Stats().FramesIn > 50 })
	if err := errors.Join(b.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Start(); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

// What the host's resource manager lets through is bounded by ApplyLimits.
func TestApplyLimits(t *testing.T) {
	hb := limitedHost(t)
	b := newNode(t, hb, Limits{StreamsPerPeer: 100, SessionBurst: 100})
	ha := newHost(t)
	connect(t, ha, hb)
	refused := 0
	for range 12 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		st, err := ha.NewStream(ctx, hb.ID(), ProtocolBeta1)
		cancel()
		if err != nil {
			refused++
			continue
		}
		raw := newRaw(t, st)
		if _, err := st.Write([]byte{5}); err != nil { // begins a frame: the stream stays
			refused++
		}
		_ = raw
	}
	waitFor(t, func() bool { return b.Stats().Streams > 0 && b.Stats().Streams <= 6 })
}

func TestNewValidates(t *testing.T) {
	h := newHost(t)
	for _, bad := range []Limits{
		{Streams: -1}, {QueuedBytes: 10}, {FrameBurst: -1}, {FramesPerSecond: -1}, {RetryMin: time.Hour}, {FrameTimeout: -1},
	} {
		if _, err := New(h, newFakeBook(t), Config{Limits: bad}); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	if err := DefaultLimits().Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := New(h, newFakeBook(t), Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil { // never started
		t.Fatal(err)
	}
	var _ swap.Courier = s
	var _ Book = (*swap.Book)(nil)
}
