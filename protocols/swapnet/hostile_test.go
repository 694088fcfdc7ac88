package swapnet

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/pb/swappb"
	"github.com/tallystick/tally/swap"
	"google.golang.org/protobuf/proto"
)

func totals(served uint64) swap.Totals { return swap.Totals{Served: tally.Amount(served)} }

func limitedHost(t *testing.T) host.Host {
	t.Helper()
	cfg := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&cfg)
	ApplyLimits(&cfg)
	m, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(cfg.AutoScale()))
	if err != nil {
		t.Fatal(err)
	}
	return newHost(t, libp2p.ResourceManager(m))
}

func mustMarshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func frameOf(b []byte) []byte {
	out := []byte{}
	n := len(b)
	for ; n >= 0x80; n >>= 7 {
		out = append(out, byte(n)|0x80)
	}
	return append(append(out, byte(n)), b...)
}

// What a hostile peer writes, as its first frame and as a later one. Each ends
// the stream with its status, and the book is told of nothing.
func TestHostileBytes(t *testing.T) {
	id := newHost(t).ID()
	cheque := func(change func(*swappb.Cheque)) []byte {
		c := &swappb.Cheque{Issuer: []byte(id), Beneficiary: []byte(id), Serial: 1}
		change(c)
		return frameOf(mustMarshal(t, &swappb.Frame{Kind: &swappb.Frame_Cheque{Cheque: c}}))
	}
	handshake := func(change func(*swappb.Handshake)) []byte {
		h := &swappb.Handshake{Realm: &swappb.Realm{Asset: "karma"}}
		change(h)
		return frameOf(mustMarshal(t, &swappb.Frame{Kind: &swappb.Frame_Handshake{Handshake: h}}))
	}
	tests := []struct {
		name   string
		id     protocol.ID
		first  bool // also as the first frame
		bytes  []byte
		close  bool
		status Status
	}{
		{name: "oversize", id: ProtocolNative, first: true, bytes: []byte{0x81, 0x40}, status: StatusOversize}, // 8193
		{name: "largest length", id: ProtocolNative, first: true, bytes: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, status: StatusOversize},
		{name: "length without end", id: ProtocolNative, first: true, bytes: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, status: StatusGarbage},
		{name: "length not minimal", id: ProtocolNative, first: true, bytes: []byte{0x81, 0x00, 0x00}, status: StatusGarbage},
		{name: "garbage", id: ProtocolNative, first: true, bytes: []byte{0x03, 0xff, 0xff, 0xff}, status: StatusGarbage},
		{name: "text", id: ProtocolNative, first: true, bytes: []byte("GET / HTTP/1.1\r\n\r\n" + string(make([]byte, 100))), status: StatusGarbage},
		{name: "truncated", id: ProtocolNative, first: true, bytes: []byte{0x05, 0x12}, close: true, status: StatusTruncated},
		{name: "truncated length", id: ProtocolNative, first: true, bytes: []byte{0x85}, close: true, status: StatusTruncated},
		{name: "second handshake", id: ProtocolNative, bytes: handshake(func(*swappb.Handshake) {}), status: StatusUnexpected},
		{name: "serial 0", id: ProtocolNative, bytes: cheque(func(c *swappb.Cheque) { c.Serial = 0 }), status: StatusMalformed},
		{name: "no issuer", id: ProtocolNative, bytes: cheque(func(c *swappb.Cheque) { c.Issuer = nil }), status: StatusMalformed},
		{name: "issuer no peer id", id: ProtocolNative, bytes: cheque(func(c *swappb.Cheque) { c.Issuer = []byte("peer") }), status: StatusMalformed},
		{name: "long issuer", id: ProtocolNative, bytes: cheque(func(c *swappb.Cheque) { c.Issuer = append([]byte{0, 65}, make([]byte, 65)...) }), status: StatusMalformed},
		{name: "cumulative 2^64-1", id: ProtocolNative, bytes: cheque(func(c *swappb.Cheque) { c.Cumulative = 1<<64 - 1 }), status: StatusMalformed},
		{name: "served 2^60+1", id: ProtocolNative, bytes: cheque(func(c *swappb.Cheque) { c.Served = 1<<60 + 1 }), status: StatusMalformed},
		{name: "balance -2^63", id: ProtocolNative, bytes: cheque(func(c *swappb.Cheque) { c.Balance = -1 << 63 }), status: StatusMalformed},
		{name: "long backing", id: ProtocolNative, bytes: cheque(func(c *swappb.Cheque) { c.Backing = make([]byte, swap.MaxBacking+1) }), status: StatusMalformed},
		{name: "long signature", id: ProtocolNative, bytes: cheque(func(c *swappb.Cheque) { c.Signature = make([]byte, swap.MaxSignature+1) }), status: StatusMalformed},
		{name: "ack without hash", id: ProtocolNative, bytes: frameOf(mustMarshal(t, &swappb.Frame{Kind: &swappb.Frame_ChequeAck{
			ChequeAck: &swappb.ChequeAck{Issuer: []byte(id), Beneficiary: []byte(id), Serial: 1},
		}})), status: StatusMalformed},
		{name: "statement above 2^60", id: ProtocolNative, bytes: frameOf(mustMarshal(t, &swappb.Frame{Kind: &swappb.Frame_Statement{
			Statement: &swappb.Statement{Totals: &swappb.Totals{SeenServed: 1 << 61}},
		}})), status: StatusMalformed},

		{name: "oversize", id: ProtocolAlpha1, first: true, bytes: []byte{0x81, 0x20}, status: StatusOversize}, // 4097
		{name: "garbage", id: ProtocolAlpha1, first: true, bytes: []byte{0x02, 0xff, 0xff}, status: StatusGarbage},
		{name: "wrong wire type", id: ProtocolAlpha1, first: true, bytes: []byte{0x01, 0x0b}, status: StatusGarbage},
		{name: "truncated", id: ProtocolAlpha1, first: true, bytes: []byte{0x05, 0x0a}, close: true, status: StatusTruncated},
		{name: "long beneficiary", id: ProtocolAlpha1, bytes: frameOf(mustMarshal(t, &swappb.Alpha1Cheque{Beneficiary: make([]byte, 129)})), status: StatusMalformed},
	}
	hb := newHost(t)
	b := newNode(t, hb, Limits{SessionBurst: 1000, RetryMin: time.Hour, RetryMax: time.Hour})
	run := func(name string, id protocol.ID, first bool, bytes []byte, closes bool, status Status) {
		t.Run(name, func(t *testing.T) {
			raw := openRaw(t, newHost(t), hb, id)
			if !first {
				if id == ProtocolNative {
					raw.shakeNative()
					b.want(t, begun77)
				} else {
					raw.shakeAlpha1()
					b.want(t, seed77)
				}
			}
			_, _ = raw.st.Write(bytes)
			if closes {
				_ = raw.st.CloseWrite()
			}
			b.wantEnd(t, status)
			raw.wantGone()
			if !first {
				b.want(t, "end")
			}
			b.wantNothing(t)
		})
	}
	for _, tt := range tests {
		run(fmt.Sprintf("%s/%s/later", tt.id, tt.name), tt.id, false, tt.bytes, tt.close, tt.status)
		if tt.first {
			run(fmt.Sprintf("%s/%s/first", tt.id, tt.name), tt.id, true, tt.bytes, tt.close, tt.status)
		}
	}
	ownCheque := cheque(func(*swappb.Cheque) {})
	run("native/cheque before handshake", ProtocolNative, true, ownCheque, false, StatusUnexpected)
	run("native/unknown kind first", ProtocolNative, true, []byte{3, 0xfa, 0x3f, 0}, false, StatusUnexpected)
	run("native/empty first", ProtocolNative, true, []byte{0}, false, StatusUnexpected)
	run("native/nothing first", ProtocolNative, true, nil, true, StatusGone)
	run("native/no asset", ProtocolNative, true, handshake(func(h *swappb.Handshake) { h.Realm = nil }), false, StatusMalformed)
	run("native/long address", ProtocolNative, true, handshake(func(h *swappb.Handshake) { h.PayoutAddress = string(make([]byte, 129)) }), false, StatusMalformed)
	run("native/bad recovery", ProtocolNative, true, handshake(func(h *swappb.Handshake) { h.ChequeSent = &swappb.Cheque{} }), false, StatusMalformed)
	run("native/bad recovery ack", ProtocolNative, true, handshake(func(h *swappb.Handshake) { h.AckGiven = &swappb.ChequeAck{} }), false, StatusMalformed)
	run("alpha1/threshold of 33 bytes", ProtocolAlpha1, true, frameOf(mustMarshal(t, &swappb.Alpha1Handshake{PaymentThreshhold: make([]byte, 33)})), false, StatusMalformed)
}

// Whole frames before a bad one are booked: a reset takes back nothing that a
// peer paid.
func TestGoodFramesBeforeBadOneCount(t *testing.T) {
	hb := newHost(t)
	b := newNode(t, hb, Limits{})
	raw := openRaw(t, newHost(t), hb, ProtocolAlpha1)
	raw.shakeAlpha1()
	raw.bytes(append(frameOf(karma(1)), 0x02, 0xff, 0xff)...)
	b.want(t, seed77, "karma 1", "end")
	b.wantEnd(t, StatusGarbage)
}

func TestUnknownFieldsAndEnumsAreTolerated(t *testing.T) {
	hb := newHost(t)
	b := newNode(t, hb, Limits{})
	raw := openRaw(t, newHost(t), hb, ProtocolNative)
	h := mustMarshal(t, &swappb.Frame{Kind: &swappb.Frame_Handshake{Handshake: &swappb.Handshake{
		Realm: &swappb.Realm{Asset: "karma"}, PaymentThreshold: 77, Mode: 99,
	}}})
	raw.frame(append(h, 0xfa, 0x3f, 1, 'x'))
	b.want(t, begun77)
	raw.frame([]byte{0xfa, 0x3f, 1, 'x'}) // a kind of a later version
	raw.frame(nil)
	raw.frame(mustMarshal(t, &swappb.Frame{Kind: &swappb.Frame_Refusal{Refusal: &swappb.Refusal{Serial: 3, Code: 1000}}}))
	b.want(t, "refusal 3 unknown reason ")
	if n := b.Stats().Unknown; n != 2 {
		t.Fatal(n)
	}
}

// The time of a handshake counts from the stream on, however the bytes come.
func TestSlowHandshake(t *testing.T) {
	for _, tt := range []struct {
		name  string
		bytes []byte
	}{{"nothing", []byte{}}, {"half a frame", []byte{20, 0x0a}}} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, newHost makeHost) {
				hb := newHost()
				b := newNode(t, hb, Limits{HandshakeTimeout: 5 * time.Second, FrameTimeout: time.Hour})
				raw := openRaw(t, newHost(), hb, ProtocolNative)
				start := time.Now()
				raw.bytes(tt.bytes...)
				b.wantEnd(t, StatusHandshakeTimeout)
				wantTook(t, start, 5*time.Second)
				raw.wantGone()
				b.wantNothing(t)
			})
		})
	}
}

// A frame that began has to end; an idle stream may stay for ever.
func TestSlowFrame(t *testing.T) {
	inBubble(t, func(t *testing.T, newHost makeHost) {
		hb := newHost()
		b := newNode(t, hb, Limits{HandshakeTimeout: 5 * time.Second, FrameTimeout: 5 * time.Second})
		idle := openRaw(t, newHost(), hb, ProtocolAlpha1)
		idle.shakeAlpha1()
		b.want(t, seed77)
		slow := openRaw(t, newHost(), hb, ProtocolAlpha1)
		slow.shakeAlpha1()
		b.want(t, seed77)
		start := time.Now()
		slow.bytes(5, 0x0a)
		b.want(t, "end")
		b.wantEnd(t, StatusSlow)
		wantTook(t, start, 5*time.Second)
		time.Sleep(time.Minute) // bubble: idle for longer than all limits
		idle.frame(karma(1))
		b.want(t, "karma 1")
	})
}

// One peer opens stream after stream: it gets its session and its few places.
func TestStreamFlood(t *testing.T) {
	hb := newHost(t)
	b := newNode(t, hb, Limits{SessionBurst: 40, SessionsPerSecond: 0.001, DuplicateWait: time.Millisecond, StreamsPerPeer: 3})
	ha := newHost(t)
	first := openRaw(t, ha, hb, ProtocolNative)
	first.shakeNative()
	b.want(t, begun77)
	var wg sync.WaitGroup
	for range 60 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			st, err := ha.NewStream(ctx, hb.ID(), ProtocolNative)
			if err != nil {
				return
			}
			newRaw(t, st).bytes(0)
		})
	}
	wg.Wait()
	counts := map[string]int{}
	for range 60 {
		counts[next(t, b.ended)]++
	}
	native := string(ProtocolNative) + " "
	if counts[native+"too_often"] != 21 || counts[native+"duplicate"]+counts[native+"too_many"] != 39 {
		t.Fatal(counts)
	}
	first.send(&swap.Statement{})
	b.want(t, "statement 0 0")
	b.wantNothing(t)
}

// All peers together get Limits.Streams.
func TestStreamsInAll(t *testing.T) {
	hb := newHost(t)
	b := newNode(t, hb, Limits{Streams: 3})
	for i := range 5 {
		raw := openRaw(t, newHost(t), hb, ProtocolNative)
		if i < 3 {
			raw.shakeNative()
			b.want(t, begun77)
			continue
		}
		raw.bytes(0)
		b.wantEnd(t, StatusTooMany)
	}
}

// Peers that never finish their handshake hold the places of handshakes, and
// others wait within their own time only.
func TestHandshakePlaces(t *testing.T) {
	inBubble(t, func(t *testing.T, newHost makeHost) {
		hb := newHost()
		b := newNode(t, hb, Limits{Handshakes: 1, HandshakeTimeout: 5 * time.Second})
		start := time.Now()
		for range 3 {
			openRaw(t, newHost(), hb, ProtocolNative).bytes(20)
		}
		for range 3 {
			b.wantEnd(t, StatusHandshakeTimeout)
		}
		wantTook(t, start, 5*time.Second)
		openRaw(t, newHost(), hb, ProtocolNative).shakeNative()
		b.want(t, begun77)
	})
}

// A second stream of one direction is refused, but one that follows the close of
// the first is not, however late we read that.
func TestDuplicateStream(t *testing.T) {
	hb, ha := newHost(t), newHost(t)
	b := newNode(t, hb, Limits{DuplicateWait: patience})
	first := openRaw(t, ha, hb, ProtocolAlpha1)
	first.shakeAlpha1()
	b.want(t, seed77)
	second := openRaw(t, ha, hb, ProtocolAlpha1)
	second.frame([]byte{0x0a, 1, 77})
	if err := first.st.Close(); err != nil {
		t.Fatal(err)
	}
	b.want(t, "end", seed77)
	b.wantEnd(t, StatusOK)
}

// A native session is not given up for the seed's protocol, and one of the
// seed's is given up for native.
func TestProtocolOrder(t *testing.T) {
	hb, ha := newHost(t), newHost(t)
	b := newNode(t, hb, Limits{DuplicateWait: time.Millisecond})
	seed := openRaw(t, ha, hb, ProtocolAlpha1)
	seed.shakeAlpha1()
	b.want(t, seed77)
	native := openRaw(t, ha, hb, ProtocolNative)
	native.shakeNative()
	b.want(t, "end", begun77)
	b.wantEnd(t, StatusReplaced)
	seed.wantGone()
	openRaw(t, ha, hb, ProtocolAlpha1).frame([]byte{0x0a, 1, 77})
	b.wantEnd(t, StatusDuplicate)
	native.send(&swap.Statement{})
	b.want(t, "statement 0 0")
}

// A flood of cheques: while the book verifies one, the rest of the queue shrinks
// to the highest. Two with the same serial both stay, and other messages keep
// their order.
func TestOnlyHighestQueuedCheque(t *testing.T) {
	hb, ha := newHost(t), newHost(t)
	b := newNode(t, hb, Limits{})
	raw := openRaw(t, ha, hb, ProtocolNative)
	raw.shakeNative()
	b.want(t, begun77)
	busy, free := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.onMsg = func(peer.ID, swap.Message) error {
		once.Do(func() { close(busy); <-free })
		return nil
	}
	raw.send(testCheque(ha.ID(), hb.ID(), 1))
	next(t, busy)
	for i := range uint64(200) {
		raw.send(testCheque(ha.ID(), hb.ID(), 2+i))
	}
	raw.send(&swap.Statement{})
	raw.send(testCheque(ha.ID(), hb.ID(), 50))
	twin := testCheque(ha.ID(), hb.ID(), 201)
	twin.Cumulative++
	raw.send(twin)
	raw.send(&swap.Statement{Totals: totals(9)})
	waitFor(t, func() bool { return b.Stats().FramesIn == 206 })
	close(free)
	b.want(t, "cheque 1", "cheque 201", "statement 0 0", "cheque 201", "statement 9 0")
	if n := b.Stats().Superseded; n != 200 {
		t.Fatal(n)
	}
}

// Frames beyond the bucket are read late and never lost.
func TestFrameRate(t *testing.T) {
	inBubble(t, func(t *testing.T, newHost makeHost) {
		hb, ha := newHost(), newHost()
		b := newNode(t, hb, Limits{FramesPerSecond: 1, FrameBurst: 5})
		raw := openRaw(t, ha, hb, ProtocolAlpha1)
		raw.shakeAlpha1()
		b.want(t, seed77)
		time.Sleep(time.Minute) // bubble: the bucket is full
		start := time.Now()
		for i := range byte(15) {
			raw.frame(karma(i + 1))
		}
		for i := range 15 {
			b.want(t, fmt.Sprintf("karma %d", i+1))
		}
		wantTook(t, start, 10*time.Second)
		if n := b.Stats().Throttled; n != 10 {
			t.Fatalf("%d frames were read late", n)
		}
	})
}

// A book that is busy holds the reader, not memory.
func TestInboxIsBounded(t *testing.T) {
	hb, ha := newHost(t), newHost(t)
	b := newNode(t, hb, Limits{Inbox: 4})
	raw := openRaw(t, ha, hb, ProtocolAlpha1)
	raw.shakeAlpha1()
	b.want(t, seed77)
	busy, free := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.onMsg = func(peer.ID, swap.Message) error {
		once.Do(func() { close(busy); <-free })
		return nil
	}
	for i := range byte(50) {
		raw.frame(karma(i + 1))
	}
	next(t, busy)
	waitFor(t, func() bool { return b.Stats().FramesIn == 1+1+4+1 }) // handshake, booking, inbox, in hand
	close(free)
	for i := range 50 {
		b.want(t, fmt.Sprintf("karma %d", i+1))
	}
}

func TestBookRefusesSession(t *testing.T) {
	hb, ha := newHost(t), newHost(t)
	b := newNode(t, hb, Limits{RetryMin: time.Hour, RetryMax: time.Hour})
	for _, tt := range []struct {
		err    error
		code   swap.RefusalCode
		status Status
	}{
		{fmt.Errorf("%w: devnet", swap.ErrNetwork), swap.RefusalNetwork, StatusRefused},
		{swap.ErrSignature, swap.RefusalSignature, StatusSignature},
		{swap.ErrUnbacked, swap.RefusalUnbacked, StatusRefused},
		{context.DeadlineExceeded, swap.RefusalInternal, StatusInternal},
	} {
		b.fakeBook.mu.Lock()
		b.onBegin = func(peer.ID) error { return tt.err }
		b.fakeBook.mu.Unlock()
		raw := openRaw(t, ha, hb, ProtocolNative)
		raw.shakeNative()
		m, ok := raw.message().(*swap.Refusal)
		if !ok || m.Code != tt.code || m.Serial != 0 {
			t.Fatalf("%+v", m)
		}
		if (m.Detail == "") != (tt.status == StatusInternal) {
			t.Fatalf("detail %q", m.Detail)
		}
		raw.wantGone()
		b.want(t, begun77) // and no end
		b.wantEnd(t, tt.status)
	}
}

// An error of the book becomes a refusal of that cheque; where the peer broke
// the rules the session ends as well.
func TestBookRefusesMessage(t *testing.T) {
	hb, ha := newHost(t), newHost(t)
	b := newNode(t, hb, Limits{})
	raw := openRaw(t, ha, hb, ProtocolNative)
	raw.shakeNative()
	b.want(t, begun77)
	errs := map[uint64]error{2: swap.ErrBeneficiary, 3: context.DeadlineExceeded, 4: fmt.Errorf("of %d: %w", 4, swap.ErrSignature)}
	b.onMsg = func(_ peer.ID, m swap.Message) error {
		switch m := m.(type) {
		case *swap.Cheque:
			return errs[m.Serial]
		default:
			return swap.ErrNetwork // never answered: a refusal of a refusal would go on for ever
		}
	}
	raw.send(&swap.Refusal{Serial: 1})
	b.want(t, "refusal 1 unknown reason ")
	for _, want := range []swap.Refusal{
		{Serial: 2, Code: swap.RefusalBeneficiary, Detail: swap.ErrBeneficiary.Error()},
		{Serial: 3, Code: swap.RefusalInternal},
		{Serial: 0, Code: swap.RefusalSignature, Detail: "of 4: swap: bad signature"},
	} {
		serial := want.Serial
		if serial == 0 {
			serial = 4
		}
		raw.send(testCheque(ha.ID(), hb.ID(), serial))
		b.want(t, fmt.Sprintf("cheque %d", serial))
		if got, ok := raw.message().(*swap.Refusal); !ok || *got != want {
			t.Fatalf("%+v, want %+v", got, want)
		}
	}
	raw.wantGone()
	b.want(t, "end")
	b.wantEnd(t, StatusSignature)
	if n := b.Stats().Refused; n != 4 {
		t.Fatal(n)
	}
}

// Refunds belong to cheques that a channel backs; this version says so.
func TestRefundIsRefused(t *testing.T) {
	hb, ha := newHost(t), newHost(t)
	b := newNode(t, hb, Limits{})
	raw := openRaw(t, ha, hb, ProtocolNative)
	raw.shakeNative()
	b.want(t, begun77)
	for i, f := range []*swappb.Frame{
		{Kind: &swappb.Frame_RefundRequest{RefundRequest: &swappb.RefundRequest{Serial: 1}}},
		{Kind: &swappb.Frame_Refund{Refund: &swappb.Refund{Serial: 2}}},
	} {
		raw.frame(mustMarshal(t, f))
		got, ok := raw.message().(*swap.Refusal)
		if !ok || *got != (swap.Refusal{Serial: uint64(i + 1), Code: swap.RefusalUnsupported}) {
			t.Fatalf("%+v", got)
		}
	}
	if n := b.Stats().Unsupported; n != 2 {
		t.Fatal(n)
	}
	b.wantNothing(t)
}

// A book that cannot say hello gets no session, and the peer sees a reset.
func TestNoHello(t *testing.T) {
	hb := newHost(t)
	b := newNode(t, hb, Limits{})
	b.hello = nil
	raw := openRaw(t, newHost(t), hb, ProtocolNative)
	raw.bytes(0)
	b.wantEnd(t, StatusInternal)
	raw.wantGone()
}
