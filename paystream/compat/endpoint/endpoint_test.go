package endpoint

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/compat/psk2"
	"github.com/tallystick/tally/paystream/compat/stream1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// net is a switch with two parties, a hop between them that a test may replace,
// and a book of what arrived.
type net struct {
	hop func(ctx context.Context, p *ilp.Prepare, next compat.Handler) ilp.Reply
	// to has the parties by the second segment of their addresses.
	to map[string]compat.Handler

	mu     sync.Mutex
	booked map[envelope.Mark]tally.Amount
	fail   error // of booking
	passed int   // packets that left the hop
}

func newNet() *net {
	return &net{to: make(map[string]compat.Handler), booked: make(map[envelope.Mark]tally.Amount)}
}

func (n *net) Prepare(ctx context.Context, p *ilp.Prepare) ilp.Reply {
	rest, _ := p.Destination.Under("test")
	segment := rest[:1]
	next := compat.HandlerFunc(func(ctx context.Context, p *ilp.Prepare) ilp.Reply {
		n.mu.Lock()
		n.passed++
		n.mu.Unlock()
		return n.to[segment].Prepare(ctx, p)
	})
	if n.hop != nil {
		return n.hop(ctx, p, next)
	}
	return next.Prepare(ctx, p)
}

var errBooked = errors.New("booked before")

func (n *net) book(id envelope.Mark, a tally.Amount) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.booked[id]; ok {
		return errBooked
	}
	if n.fail != nil {
		return n.fail
	}
	n.booked[id] = a
	return nil
}

func (n *net) total() (sum tally.Amount) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.booked {
		sum += a
	}
	return sum
}

func (n *net) stream(t testing.TB, name string, receiveMax tally.Amount) *Stream {
	t.Helper()
	e, err := NewStream(StreamConfig{
		Address: ilp.Address("test." + name), Secret: envelope.Secret{name[0]}, AssetCode: "FIL", AssetScale: 9,
		Via: n, ReceiveMax: receiveMax,
		Receive: func(_ context.Context, m StreamMoney) error { return n.book(m.ID, m.Amount) },
	})
	if err != nil {
		t.Fatal(err)
	}
	n.to[name] = e
	return e
}

func (n *net) psk2(t testing.TB, name string) *PSK2 {
	t.Helper()
	e, err := NewPSK2(PSK2Config{
		Address: ilp.Address("test." + name), Secret: envelope.Secret{name[0]}, Via: n,
		Receive: func(_ context.Context, q PSK2Request) ([]byte, error) {
			if q.Probe {
				return []byte("probe"), nil
			}
			return append([]byte("re: "), q.Data...), n.book(q.ID, q.Amount)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.to[name] = e
	return e
}

// dial opens a connection from a to b.
func dial(t testing.TB, a, b *Stream) *Conn {
	t.Helper()
	to, err := b.Open()
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.Dial(to)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStreamSend(t *testing.T) {
	n := newNet()
	c := dial(t, n.stream(t, "a", 0), n.stream(t, "b", 1<<40))
	got, err := c.Send(t.Context(), 123_456, SendOptions{MaxPacket: 10_000})
	if err != nil || got != (Sent{Sent: 123_456, Delivered: 123_456, Packets: 13}) || n.total() != 123_456 {
		t.Fatalf("%+v %v, booked %d", got, err, n.total())
	}
	c.Close(t.Context())
	if len(c.e.conns) != 0 {
		t.Fatal("a closed connection is kept")
	}
	if _, err := c.Send(t.Context(), 1, SendOptions{}); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

// spread returns a hop that lets through so many of a thousand.
func spread(permille uint64) func(context.Context, *ilp.Prepare, compat.Handler) ilp.Reply {
	return func(ctx context.Context, p *ilp.Prepare, next compat.Handler) ilp.Reply {
		q := *p
		q.Amount = tally.Amount(uint64(p.Amount) * permille / 1000)
		return next.Prepare(ctx, &q)
	}
}

// TestFloor: a hop that lowers its rate after the probes gets no packet through.
func TestFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		n.hop = spread(500)
		c := dial(t, n.stream(t, "a", 0), n.stream(t, "b", 1<<40))
		got, err := c.Send(t.Context(), 10_000, SendOptions{})
		if err != nil || got.Sent != 10_000 || got.Delivered != 5_000 || n.total() != 5_000 {
			t.Fatalf("%+v %v", got, err)
		}
		probed := false
		n.hop = func(ctx context.Context, p *ilp.Prepare, next compat.Handler) ilp.Reply {
			if probed { // from 500 to 490 in a thousand: more than 1 %
				return spread(490)(ctx, p, next)
			}
			probed = p.Amount >= 1_000_000
			return spread(500)(ctx, p, next)
		}
		begin := time.Now()
		got, err = c.Send(t.Context(), 500_000, SendOptions{})
		if !errors.Is(err, ErrStalled) || got.Sent != 0 || n.total() != 5_000 {
			t.Fatalf("%+v %v", got, err)
		}
		if d := time.Since(begin); d < stallAfter || d > stallAfter+retryMost {
			t.Fatal(d)
		}
	})
}

// TestReceiveMax: the payer learns the limit and stops at it.
func TestReceiveMax(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		c := dial(t, n.stream(t, "a", 0), n.stream(t, "b", 5_000))
		got, err := c.Send(t.Context(), 8_000, SendOptions{MaxPacket: 1_000})
		if !errors.Is(err, ErrStalled) || got.Sent != 5_000 || n.total() != 5_000 {
			t.Fatalf("%+v %v", got, err)
		}
	})
}

func TestHopRejects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		n.hop = func(ctx context.Context, p *ilp.Prepare, next compat.Handler) ilp.Reply {
			if p.Amount > 3_000 {
				return &ilp.Reject{Code: ilp.CodeAmountTooLarge, TriggeredBy: "test.hop", Data: ilp.TooLarge{Received: p.Amount, Maximum: 3_000}.Append(nil)}
			}
			return next.Prepare(ctx, p)
		}
		c := dial(t, n.stream(t, "a", 0), n.stream(t, "b", 1<<40))
		got, err := c.Send(t.Context(), 10_000, SendOptions{})
		if err != nil || got.Sent != 10_000 || n.total() != 10_000 {
			t.Fatalf("%+v %v", got, err)
		}
		// A hop that names a maximum above what was sent does not raise anything.
		next, err := smaller(&ilp.Reject{Code: ilp.CodeAmountTooLarge, Data: ilp.TooLarge{Received: 1, Maximum: 9}.Append(nil)}, nil, 100, 100)
		if err != nil || next != 50 {
			t.Fatal(next, err)
		}
		busy := 3
		n.hop = func(ctx context.Context, p *ilp.Prepare, next compat.Handler) ilp.Reply {
			if busy--; busy >= 0 && p.Amount == 700 {
				return &ilp.Reject{Code: ilp.CodeInsufficientLiquidity, TriggeredBy: "test.hop"}
			}
			return next.Prepare(ctx, p)
		}
		if got, err := c.Send(t.Context(), 700, SendOptions{}); err != nil || got.Sent != 700 {
			t.Fatalf("%+v %v", got, err)
		}
		n.hop = func(context.Context, *ilp.Prepare, compat.Handler) ilp.Reply {
			return &ilp.Reject{Code: ilp.CodeUnreachable, TriggeredBy: "test.hop"}
		}
		var reject *RejectError
		if _, err := c.Send(t.Context(), 700, SendOptions{}); !errors.As(err, &reject) || reject.Reject.Code != ilp.CodeUnreachable {
			t.Fatal(err)
		}
	})
}

// TestReflectedPacket plays the attack: a hop sends the payer's own packet back to
// the payer with 990 of its 1000, for the fulfilment. Without the guard the payer
// itself would fulfil.
func TestReflectedPacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, guarded := range []bool{true, false} {
			n := newNet()
			a, b := n.stream(t, "a", 1<<40), n.stream(t, "b", 1<<40)
			c := dial(t, a, b)
			own, err := a.cfg.Address.Join(c.segment)
			if err != nil {
				t.Fatal(err)
			}
			stolen := false
			n.hop = func(ctx context.Context, p *ilp.Prepare, next compat.Handler) ilp.Reply {
				q := *p
				q.Destination, q.Amount = own, p.Amount*990/1000
				if !guarded {
					a.link.guard = envelope.NewGuard(envelope.MaxUndecided)
				}
				if f, ok := a.Prepare(ctx, &q).(*ilp.Fulfil); ok {
					stolen = true
					return f
				}
				return next.Prepare(ctx, p)
			}
			_, _, err = c.exchange(t.Context(), 1000, 0, false, stream1.StreamMoney{ID: 1, Shares: 1})
			if err != nil || stolen == guarded {
				t.Fatalf("guarded %v, stolen %v: %v", guarded, stolen, err)
			}
		}
	})
}

// TestGuardOutlivesRestart: what the journal kept guards the next run.
func TestGuardOutlivesRestart(t *testing.T) {
	n, j := newNet(), &journal{marks: make(map[envelope.Mark]bool)}
	cfg := PSK2Config{
		Address: "test.a", Secret: envelope.Secret{1}, Via: n, Journal: j,
		Receive: func(context.Context, PSK2Request) ([]byte, error) { return nil, nil },
	}
	e, err := NewPSK2(cfg)
	if err != nil {
		t.Fatal(err)
	}
	self, err := e.Open() // its own secret: what comes back opens
	if err != nil {
		t.Fatal(err)
	}
	n.hop = func(ctx context.Context, p *ilp.Prepare, _ compat.Handler) ilp.Reply {
		if len(j.marks) != 1 {
			t.Error("sent before it was saved")
		}
		for _, saved := range []bool{true, false} {
			cfg.Undecided = nil
			if saved {
				cfg.Undecided = slices.Values(j.list())
			}
			again, err := NewPSK2(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := again.Prepare(ctx, p).(*ilp.Fulfil); ok == saved {
				t.Errorf("saved %v, fulfilled %v", saved, ok)
			}
		}
		return &ilp.Reject{Code: ilp.CodeInternal}
	}
	if _, err := e.Request(t.Context(), self, 1000, 0, nil); err != nil {
		t.Fatal(err)
	}
	if len(j.marks) != 0 || e.link.guard.Len() != 0 {
		t.Fatal("a decided packet is kept")
	}
	j.err = errors.New("disk")
	n.hop = func(context.Context, *ilp.Prepare, compat.Handler) ilp.Reply {
		t.Error("sent without being saved")
		return &ilp.Reject{Code: ilp.CodeInternal}
	}
	if _, err := e.Request(t.Context(), self, 1000, 0, nil); !errors.Is(err, j.err) {
		t.Fatal(err)
	}
}

type journal struct {
	marks map[envelope.Mark]bool
	err   error
}

func (j *journal) Sent(m envelope.Mark) error {
	if j.err == nil {
		j.marks[m] = true
	}
	return j.err
}

func (j *journal) Decided(m envelope.Mark) { delete(j.marks, m) }

func (j *journal) list() (out []envelope.Mark) {
	for m := range j.marks {
		out = append(out, m)
	}
	return out
}

// TestReplayedPrepare: a hop that sends a packet twice has it booked once, also
// where the endpoint has forgotten the connection.
func TestReplayedPrepare(t *testing.T) {
	n := newNet()
	a, b := n.stream(t, "a", 0), n.stream(t, "b", 1<<40)
	c := dial(t, a, b)
	var kept *ilp.Prepare
	n.hop = func(ctx context.Context, p *ilp.Prepare, next compat.Handler) ilp.Reply {
		q := *p
		kept = &q
		return next.Prepare(ctx, p)
	}
	if _, _, err := c.exchange(t.Context(), 1000, 0, false, stream1.StreamMoney{ID: 1, Shares: 1}); err != nil || n.total() != 1000 {
		t.Fatal(err)
	}
	for range 2 {
		j, ok := b.Prepare(t.Context(), kept).(*ilp.Reject)
		if !ok || j.Code != ilp.CodeApplication || n.total() != 1000 {
			t.Fatal("booked twice", j)
		}
		clear(b.conns) // as after a restart
	}
}

// TestBookedBeforeFulfilled: what cannot be booked is not fulfilled, and counts
// for nothing.
func TestBookedBeforeFulfilled(t *testing.T) {
	n := newNet()
	n.fail = errors.New("disk full")
	c := dial(t, n.stream(t, "a", 0), n.stream(t, "b", 1_000))
	money := stream1.StreamMoney{ID: 1, Shares: 1}
	reply, answer, err := c.exchange(t.Context(), 1000, 0, false, money)
	if _, ok := reply.(*ilp.Reject); !ok || err != nil || answer == nil {
		t.Fatal(reply, err)
	}
	n.fail = nil
	if reply, _, err := c.exchange(t.Context(), 1000, 0, false, money); err != nil || n.total() != 1000 {
		t.Fatal("the failed packet still takes room", reply, err)
	}
}

// TestRefused: packets that may not be fulfilled, by what is wrong with each.
func TestRefused(t *testing.T) {
	money := func(shares ...uint64) (out []stream1.Frame) {
		for i, s := range shares {
			out = append(out, stream1.StreamMoney{ID: uint64(i + 1), Shares: s})
		}
		return out
	}
	for name, tc := range map[string]struct {
		amount, floor tally.Amount
		probe         bool
		frames        []stream1.Frame
	}{
		"too little":       {amount: 10, floor: 11, frames: money(1)},
		"probe":            {amount: 10, probe: true, frames: money(1)},
		"of no stream":     {amount: 10},
		"no shares":        {amount: 10, frames: money(0)},
		"shares overflow":  {amount: 10, frames: money(1<<63, 1<<63)},
		"stream 0":         {amount: 10, frames: []stream1.Frame{stream1.StreamMoney{Shares: 1}}},
		"stream past many": {amount: 10, frames: []stream1.Frame{stream1.StreamMoney{ID: 2*maxStreams + 1, Shares: 1}}},
		"over the maximum": {amount: 1001, frames: money(1)},
		"with data":        {amount: 10, frames: append(money(1), stream1.StreamData{ID: 1, Data: []byte("x")})},
		"closed":           {amount: 10, frames: append(money(1), stream1.ConnectionClose{Code: 1})},
	} {
		n := newNet()
		c := dial(t, n.stream(t, "a", 0), n.stream(t, "b", 1_000))
		reply, answer, err := c.exchange(t.Context(), tc.amount, tc.floor, tc.probe, tc.frames...)
		j, ok := reply.(*ilp.Reject)
		if err != nil || !ok || j.Code != ilp.CodeApplication || answer == nil || answer.Amount != tc.amount || n.total() != 0 {
			t.Errorf("%s: %+v %+v %v", name, reply, answer, err)
		}
	}
}

// TestUnauthenticated: what does not open leaves nothing behind.
func TestUnauthenticated(t *testing.T) {
	n := newNet()
	b := n.stream(t, "b", 1_000)
	q := n.psk2(t, "p")
	soon := time.Now().Add(30 * time.Second)
	for name, tc := range map[string]struct {
		p    ilp.Prepare
		code ilp.Code
	}{
		"not ours":    {ilp.Prepare{Destination: "test.x", ExpiresAt: soon}, ilp.CodeUnreachable},
		"no token":    {ilp.Prepare{Destination: "test.b", ExpiresAt: soon}, ilp.CodeUnreachable},
		"bad token":   {ilp.Prepare{Destination: "test.b.~", ExpiresAt: soon}, ilp.CodeUnreachable},
		"bad data":    {ilp.Prepare{Destination: "test.b.AAAA", ExpiresAt: soon, Data: make([]byte, 99)}, ilp.CodeUnreachable},
		"2^63":        {ilp.Prepare{Destination: "test.b.AAAA", ExpiresAt: soon, Amount: 1 << 63}, ilp.CodeInvalidAmount},
		"late":        {ilp.Prepare{Destination: "test.b.AAAA", ExpiresAt: time.Now()}, ilp.CodeInsufficientTimeout},
		"psk2 data":   {ilp.Prepare{Destination: "test.p.AAAA", ExpiresAt: soon, Data: make([]byte, 99)}, ilp.CodeUnexpectedPayment},
		"psk2 amount": {ilp.Prepare{Destination: "test.p.AAAA", ExpiresAt: soon, Amount: 1 << 63}, ilp.CodeInvalidAmount},
		"psk2 late":   {ilp.Prepare{Destination: "test.p.AAAA"}, ilp.CodeInsufficientTimeout},
		"psk2 token":  {ilp.Prepare{Destination: "test.p"}, ilp.CodeUnreachable},
	} {
		h := compat.Handler(b)
		if tc.p.Destination[5] == 'p' {
			h = q
		}
		if j, ok := h.Prepare(t.Context(), &tc.p).(*ilp.Reject); !ok || j.Code != tc.code {
			t.Errorf("%s: %+v", name, j)
		}
	}
	if len(b.conns) != 0 {
		t.Fatal("a packet that does not open leaves a connection")
	}
}

// TestMaxConns: connections are bounded, and idle ones make room.
func TestMaxConns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		b := n.stream(t, "b", 1_000)
		poke := func() ilp.Code {
			to, err := b.Open()
			if err != nil {
				t.Fatal(err)
			}
			l := newLink(n, nil, nil)
			plain, err := (&stream1.Packet{Type: ilp.TypePrepare, Sequence: 1}).Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			reply, _, err := l.send(t.Context(), stream1.NewKeys(to.Secret), to.Address, 1, plain, true)
			if err != nil {
				t.Fatal(err)
			}
			return reply.(*ilp.Reject).Code
		}
		for range MaxConns {
			if code := poke(); code != ilp.CodeApplication {
				t.Fatal(code)
			}
		}
		if code := poke(); code != ilp.CodePeerBusy || len(b.conns) != MaxConns {
			t.Fatal(code, len(b.conns))
		}
		time.Sleep(connIdle) // bubble: the connections are idle
		if code := poke(); code != ilp.CodeApplication || len(b.conns) != 1 {
			t.Fatal(code, len(b.conns))
		}
	})
}

func TestPSK2(t *testing.T) {
	n := newNet()
	a, b := n.psk2(t, "a"), n.psk2(t, "b")
	to, err := b.Open()
	if err != nil {
		t.Fatal(err)
	}
	res, err := a.Probe(t.Context(), to, 1000, nil)
	if err != nil || res.Fulfilled || res.Code != ilp.CodeWrongCondition || !res.Authentic || res.Delivered != 1000 || string(res.Data) != "probe" || n.total() != 0 {
		t.Fatalf("%+v %v", res, err)
	}
	var kept *ilp.Prepare
	n.hop = func(ctx context.Context, p *ilp.Prepare, next compat.Handler) ilp.Reply {
		q := *p
		q.Amount = p.Amount * 9 / 10
		kept = &q
		return next.Prepare(ctx, &q)
	}
	res, err = a.Request(t.Context(), to, 1000, 900, []byte("hi"))
	if err != nil || !res.Fulfilled || res.Delivered != 900 || string(res.Data) != "re: hi" || n.total() != 900 {
		t.Fatalf("%+v %v", res, err)
	}
	if j, ok := b.Prepare(t.Context(), kept).(*ilp.Reject); !ok || j.Code != ilp.CodeApplication || n.total() != 900 {
		t.Fatal("booked twice")
	}
	res, err = a.Request(t.Context(), to, 1000, 901, nil)
	if err != nil || res.Fulfilled || res.Code != ilp.CodeApplication || res.Delivered != 900 || n.total() != 900 {
		t.Fatalf("%+v %v", res, err)
	}
	if _, err := a.Request(t.Context(), to, 1<<63, 0, nil); !errors.Is(err, ErrAmount) {
		t.Fatal(err)
	}
	n.hop = func(context.Context, *ilp.Prepare, compat.Handler) ilp.Reply { return &ilp.Fulfil{} }
	if _, err := a.Request(t.Context(), to, 1, 0, nil); !errors.Is(err, ErrWrongFulfilment) {
		t.Fatal(err)
	}
}

// TestForeignAnswer: an answer to another request, which a hop puts in a reject,
// says nothing.
func TestForeignAnswer(t *testing.T) {
	n := newNet()
	a, b := n.psk2(t, "a"), n.psk2(t, "b")
	to, err := b.Open()
	if err != nil {
		t.Fatal(err)
	}
	old, err := sealPSK2(psk2.NewKeys(to.Secret), &psk2.Packet{Type: psk2.TypeError, RequestID: 1, Amount: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	n.hop = func(context.Context, *ilp.Prepare, compat.Handler) ilp.Reply {
		return &ilp.Reject{Code: ilp.CodeApplication, Data: old}
	}
	if res, err := a.Request(t.Context(), to, 1000, 0, nil); err != nil || res.Authentic || res.Delivered != 0 {
		t.Fatalf("%+v %v", res, err)
	}
}

// TestShares: a packet is divided without a unit lost.
func TestShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := newNet()
		e, err := NewStream(StreamConfig{
			Address: "test.a", ReceiveMax: 1<<63 - 1,
			Receive: func(_ context.Context, m StreamMoney) error { return n.book(m.ID, m.Amount) },
		})
		if err != nil {
			t.Fatal(err)
		}
		c := newConn(e, "x", nil)
		var frames []stream1.Frame
		for i := range rapid.IntRange(1, 5).Draw(t, "streams") {
			frames = append(frames, stream1.StreamMoney{ID: uint64(2*i + 1), Shares: rapid.Uint64Range(0, 1<<61).Draw(t, "shares")})
		}
		amount := tally.Amount(rapid.Uint64Range(1, 1<<62).Draw(t, "amount"))
		shares, ok := c.reserve(amount, frames)
		var sum, held tally.Amount
		for _, s := range shares {
			sum += s.amount
		}
		for _, s := range c.streams {
			held += s.received
		}
		if ok && (sum != amount || held != amount || c.received != amount) || !ok && c.received+held != 0 {
			t.Fatal(sum, held, c.received)
		}
		c.release(c.received, shares)
		for _, s := range c.streams {
			if s.received != 0 || c.received != 0 {
				t.Fatal("not released")
			}
		}
	})
}

// TestWindow compares the window with a set.
func TestWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		seen, top := map[uint64]bool{0: true}, uint64(0)
		w.see(0)
		for range 200 {
			seq := rapid.OneOf(rapid.Uint64Range(0, 40), rapid.Uint64Range(top, top+2000), rapid.Uint64Range(top-min(top, 1100), top)).Draw(t, "seq")
			fresh := !seen[seq] && seq+windowSize > top
			if got := w.see(seq); got != fresh {
				t.Fatalf("see(%d) with top %d: %v", seq, top, got)
			}
			if fresh {
				seen[seq], top = true, max(top, seq)
			}
		}
	})
}

func FuzzStreamPrepare(f *testing.F) {
	plain, err := (&stream1.Packet{Type: ilp.TypePrepare, Sequence: 1, Frames: []stream1.Frame{
		stream1.StreamMoney{ID: 1, Shares: 1}, stream1.NewAddress{Address: "test.a"},
	}}).Append(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain, uint64(10))
	f.Fuzz(func(t *testing.T, plain []byte, amount uint64) {
		n := newNet()
		e := n.stream(t, "b", 1_000)
		to, err := e.Open()
		if err != nil {
			t.Fatal(err)
		}
		l := newLink(n, nil, nil)
		reply, _, err := l.send(t.Context(), stream1.NewKeys(to.Secret), to.Address, tally.Amount(amount), plain, false)
		if _, ok := reply.(*ilp.Fulfil); err == nil && ok != (n.total() > 0) && amount > 0 {
			t.Fatalf("fulfilled %v, booked %d of %d", ok, n.total(), amount)
		}
		if n.total() > 1_000 {
			t.Fatal("more than the maximum")
		}
	})
}
