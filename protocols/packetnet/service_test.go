package packetnet

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"go.uber.org/goleak"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/protocols/internal/wire"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// patience is how long a test waits for what has to happen. Nothing waits for
// it to pass.
const patience = time.Minute

// recorder is an engine that only takes down what it is told.
type recorder struct {
	clock int64
	tell  chan string
	msgs  chan forward.Msg

	mu   sync.Mutex
	hold bool // keeps batches
	kept []*forward.Batch
}

func newRecorder(clock int64) *recorder {
	return &recorder{clock: clock, tell: make(chan string, 64), msgs: make(chan forward.Msg, 1<<16)}
}

func (r *recorder) Up(_ peer.ID, window int) { r.tell <- fmt.Sprint("up ", window) }
func (r *recorder) Down(peer.ID)             { r.tell <- "down" }
func (r *recorder) Now() int64               { return r.clock }
func (r *recorder) Receive(b *forward.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range b.Msgs {
		m.Data = bytes.Clone(m.Data)
		r.msgs <- m
	}
	if r.hold {
		r.kept = append(r.kept, b)
		return
	}
	b.Recycle(b)
}

func (r *recorder) want(t *testing.T, what string) {
	t.Helper()
	select {
	case got := <-r.tell:
		if got != what {
			t.Fatalf("%q, want %q", got, what)
		}
	case <-time.After(patience):
		t.Fatalf("no %q", what)
	}
}

func (r *recorder) next(t *testing.T) forward.Msg {
	t.Helper()
	select {
	case m := <-r.msgs:
		return m
	case <-time.After(patience):
		t.Fatal("no message")
		return forward.Msg{}
	}
}

// newHosts returns two hosts, the lower peer id first.
func newHosts(t *testing.T) (low, high host.Host) {
	t.Helper()
	var list []host.Host
	for range 2 {
		h, err := libp2p.New(
			libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
			libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()),
			libp2p.Security(noise.ID, noise.New), libp2p.DisableRelay(), libp2p.DisableMetrics(),
		)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.Close() })
		list = append(list, h)
	}
	if list[1].ID() < list[0].ID() {
		list[0], list[1] = list[1], list[0]
	}
	return list[0], list[1]
}

func newService(t *testing.T, h host.Host, e Engine, lim Limits) *Service {
	t.Helper()
	s, err := New(h, e, Config{Limits: lim, Rules: forward.Rules{MaxInFlight: 64, FeeBase: 3}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func connect(t *testing.T, from, to host.Host) {
	t.Helper()
	if err := from.Connect(context.Background(), peer.AddrInfo{ID: to.ID(), Addrs: to.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

// Whoever dials, the lower id opens; clocks that differ by an hour do no harm;
// messages arrive in order, and the session ends on both sides.
func TestSession(t *testing.T) {
	for _, dialler := range []string{"low", "high"} {
		t.Run(dialler, func(t *testing.T) {
			low, high := newHosts(t)
			const hour = 3_600_000
			a, b := newRecorder(1_700_000_000_000), newRecorder(1_700_000_000_000+hour)
			sa, sb := newService(t, low, a, Limits{}), newService(t, high, b, Limits{})
			if dialler == "low" {
				connect(t, low, high)
			} else {
				connect(t, high, low)
			}
			a.want(t, "up 64")
			b.want(t, "up 64")
			if info, ok := sa.Info(high.ID()); !ok || info.ClockOffset != time.Hour || info.FeeBase != 3 || info.HopDelta != time.Second {
				t.Fatalf("info %+v", info)
			}
			for id := range uint64(1000) {
				sa.Send(high.ID(), &forward.Msg{
					Kind: forward.MsgPrepare, ID: id, Amount: 1, Expires: a.clock + 30_000, Part: forward.PartID{1}, Dest: "x",
					Condition: forward.Blake2b(tally.Hashlock{}), Data: bytes.Repeat([]byte{byte(id)}, int(id)),
				})
				sb.Send(low.ID(), &forward.Msg{Kind: forward.MsgFulfilAck, ID: id})
				if id%7 == 0 {
					sa.Flush()
					sb.Flush()
				}
			}
			sa.Flush()
			sb.Flush()
			for id := range uint64(1000) {
				m := b.next(t)
				if m.ID != id || m.Expires != b.clock+30_000 || len(m.Data) != int(id) || id > 0 && m.Data[id-1] != byte(id) {
					t.Fatalf("message %d came as %d, expires %d later, %d bytes", id, m.ID, m.Expires-b.clock, len(m.Data))
				}
				if m := a.next(t); m.ID != id {
					t.Fatalf("answer %d came as %d", id, m.ID)
				}
			}
			if err := sb.Close(); err != nil {
				t.Fatal(err)
			}
			a.want(t, "down")
			b.want(t, "down")
			sa.Send(high.ID(), &forward.Msg{Kind: forward.MsgFulfilAck}) // to nobody
		})
	}
}

// raw opens a stream as a stranger's program would, after a good handshake where
// shaken is set.
func raw(t *testing.T, from, to host.Host, shaken bool) network.Stream {
	t.Helper()
	st, err := from.NewStream(context.Background(), to.ID(), Protocol)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Reset() })
	if !shaken {
		return st
	}
	if err := st.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	w, r := wire.NewWriter(st, MaxFrame), wire.NewReader(st, MaxFrame)
	write := func(b []byte) {
		if err := w.WriteFrame(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	write(appendHello(nil, &hello{ClockMS: 1, MaxInFlight: 9}))
	frame, err := r.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	theirs, _, err := decodeHandshake(frame)
	if err != nil {
		t.Fatal(err)
	}
	write(appendHelloAck(nil, &helloAck{HelloMS: theirs.ClockMS}))
	return st
}

// knock opens a stream and says one byte: nothing is opened before.
func knock(t *testing.T, from, to host.Host) {
	t.Helper()
	if _, err := raw(t, from, to, false).Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
}

// waitEnded waits until a stream of ours ended with a status.
func waitEnded(t *testing.T, s *Service, status Status) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for s.Stats().Ended[status.String()] == 0 {
		if time.Now().After(deadline) {
			t.Fatalf("no stream ended as %v: %v", status, s.Stats().Ended)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(time.Millisecond):
		}
	}
}

func TestHostileBytes(t *testing.T) {
	for _, c := range []struct {
		name   string
		shaken bool
		bytes  []byte
		want   Status
	}{
		{"no handshake", false, appendFrame(nil, &forward.Msg{Kind: forward.MsgFulfilAck}), StatusMalformed},
		{"a hello that takes nothing", false, closeLength(appendHello([]byte{0}, &hello{ClockMS: 1}), 0), StatusMalformed},
		{"oversized", true, []byte{0xff, 0xff, 0xff, 0x7f}, StatusMalformed},
		{"garbage", true, []byte{0x03, 0xff, 0xff, 0xff}, StatusMalformed},
		{"length of many bytes", true, bytes.Repeat([]byte{0xff}, 20), StatusMalformed},
		{"slow", true, []byte{0x40, 0x00}, StatusSlow},
		{"slow handshake", false, []byte{0x20}, StatusSlow},
	} {
		t.Run(c.name, func(t *testing.T) {
			low, high := newHosts(t)
			e := newRecorder(1)
			limits := Limits{HandshakeTimeout: patience, FrameTimeout: patience}
			const soon = 500 * time.Millisecond // a busy machine may take longer for what is not slow
			switch {
			case c.want != StatusSlow:
			case c.shaken:
				limits.FrameTimeout = soon
			default:
				limits.HandshakeTimeout = soon
			}
			s := newService(t, high, e, limits)
			connect(t, low, high)
			st := raw(t, low, high, c.shaken)
			if len(c.bytes) > 0 {
				if _, err := st.Write(c.bytes); err != nil {
					t.Fatal(err)
				}
			}
			if c.shaken {
				e.want(t, "up 9")
			}
			waitEnded(t, s, c.want)
			if c.shaken {
				e.want(t, "down")
			}
		})
	}
}

// What came before a bad frame still counts, and an unknown kind is passed over.
func TestGoodBeforeBad(t *testing.T) {
	low, high := newHosts(t)
	e := newRecorder(1)
	s := newService(t, high, e, Limits{})
	connect(t, low, high)
	st := raw(t, low, high, true)
	b := appendFrame(nil, &forward.Msg{Kind: forward.MsgFulfilAck, ID: 1})
	b = append(b, 0x03, 0x9a, 0x06, 0x00) // field 99
	b = append(b, appendFrame(nil, &forward.Msg{Kind: forward.MsgFulfilAck, ID: 2})...)
	if _, err := st.Write(append(b, 0x02, 0xff, 0xff)); err != nil {
		t.Fatal(err)
	}
	for want := uint64(1); want <= 2; want++ {
		if m := e.next(t); m.ID != want {
			t.Fatalf("message %d, want %d", m.ID, want)
		}
	}
	waitEnded(t, s, StatusMalformed)
	if s.Stats().Ignored != 1 {
		t.Fatalf("%d ignored", s.Stats().Ignored)
	}
}

// A peer that floods waits for the engine: no more than the session's batches
// are ever held for it.
func TestFloodWaits(t *testing.T) {
	low, high := newHosts(t)
	e := newRecorder(1)
	e.hold = true
	newService(t, high, e, Limits{Batches: 2})
	connect(t, low, high)
	st := raw(t, low, high, true)
	e.want(t, "up 9")
	flood := make(chan struct{})
	go func() { // ends when the stream is reset
		defer close(flood)
		var b []byte
		for range 500 {
			b = appendFrame(b, &forward.Msg{Kind: forward.MsgFulfilAck, ID: 1})
		}
		for range 200 {
			if _, err := st.Write(b); err != nil {
				return
			}
		}
	}()
	for range 2 {
		e.next(t)
	}
	e.mu.Lock()
	kept := len(e.kept)
	e.mu.Unlock()
	if kept > 2 || len(e.msgs) > 2*batchMsgs {
		t.Fatalf("%d batches, %d messages for one session", kept, len(e.msgs))
	}
	_ = st.Reset()
	<-flood
}

// The higher id must not open, and one peer does not open without end.
func TestOpeners(t *testing.T) {
	low, high := newHosts(t)
	s := newService(t, low, newRecorder(1), Limits{})
	connect(t, high, low)
	knock(t, high, low)
	waitEnded(t, s, StatusWrongOpener)

	low, high = newHosts(t)
	s = newService(t, high, newRecorder(1), Limits{SessionBurst: 3, SessionsPerSecond: 0.001})
	connect(t, low, high)
	for range 5 {
		knock(t, low, high)
	}
	waitEnded(t, s, StatusTooOften)
}

// A newer session takes over, and begins after the older one has ended.
func TestReplaced(t *testing.T) {
	low, high := newHosts(t)
	e := newRecorder(1)
	s := newService(t, high, e, Limits{})
	connect(t, low, high)
	_ = raw(t, low, high, true)
	e.want(t, "up 9")
	_ = raw(t, low, high, true)
	e.want(t, "down")
	e.want(t, "up 9")
	waitEnded(t, s, StatusReplaced)
}

// A peer that the engine finds at fault is reset; one that reads nothing too.
func TestResetAndUnread(t *testing.T) {
	low, high := newHosts(t)
	e := newRecorder(1)
	s := newService(t, high, e, Limits{})
	connect(t, low, high)
	_ = raw(t, low, high, true)
	e.want(t, "up 9")
	s.Reset(low.ID(), forward.ErrFault)
	e.want(t, "down")
	waitEnded(t, s, StatusFault)

	_ = raw(t, low, high, true)
	e.want(t, "up 9")
	m := &forward.Msg{Kind: forward.MsgFulfil, Data: make([]byte, forward.MaxData)}
	for range dropDataAt/forward.MaxData + 100 {
		s.Send(low.ID(), m)
	}
	if s.Stats().DataDropped == 0 {
		t.Fatal("replies keep their data however much is unread")
	}
	for range maxQueued / forward.MaxData {
		s.Send(low.ID(), &forward.Msg{Kind: forward.MsgPrepare, Dest: "x", Data: m.Data})
	}
	e.want(t, "down")
	waitEnded(t, s, StatusSlow)
}

func TestLimits(t *testing.T) {
	for _, l := range []Limits{{Sessions: -1}, {Batches: -1}, {RetryMin: 2 * time.Minute}} {
		if l.Complete().Validate() == nil {
			t.Errorf("%+v is valid", l)
		}
	}
}
