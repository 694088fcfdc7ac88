package swapnet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
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
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"go.uber.org/goleak"

	"github.com/tallystick/tally/internal/bubble"
	"github.com/tallystick/tally/protocols/internal/wire"
	"github.com/tallystick/tally/swap"
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

func newKey(t testing.TB) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newHost listens on 127.0.0.1 only.
func newHost(t testing.TB, opts ...libp2p.Option) host.Host {
	t.Helper()
	h, err := libp2p.New(append([]libp2p.Option{
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()),
		libp2p.Security(noise.ID, noise.New),
		libp2p.DisableRelay(),
		libp2p.DisableMetrics(),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

type makeHost func(...libp2p.Option) host.Host

// inBubble runs f in simulated time: what is tested there is when something happens.
func inBubble(t *testing.T, f func(t *testing.T, newHost makeHost)) {
	t.Helper()
	bubble.Run(t, time.Millisecond, func(t *testing.T, hosts bubble.Hosts) {
		f(t, func(opts ...libp2p.Option) host.Host {
			t.Helper()
			h, err := hosts(opts...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = h.Close() })
			return h
		})
	})
}

// travel bounds what packets of a bubble take, and is far below the limits tested there.
const travel = 50 * time.Millisecond

// wantTook checks how long something took in a bubble.
func wantTook(t testing.TB, start time.Time, want time.Duration) {
	t.Helper()
	if took := time.Since(start); took < want || took > want+travel {
		t.Fatalf("it took %v, want %v", took, want)
	}
}

// hosts returns two hosts, the one with the lower peer id first.
func hosts(t testing.TB) (low, high host.Host) {
	t.Helper()
	low, high = newHost(t), newHost(t)
	if high.ID() < low.ID() {
		low, high = high, low
	}
	return low, high
}

func connect(t testing.TB, from, to host.Host) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := from.Connect(ctx, peer.AddrInfo{ID: to.ID(), Addrs: to.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

// node is a Service on a host with a book that writes down what it is told.
type node struct {
	*Service
	*fakeBook
	host  host.Host
	ended chan string // "protocol status", one for each stream
}

func newNode(t testing.TB, h host.Host, lim Limits) *node {
	t.Helper()
	n := &node{fakeBook: newFakeBook(t), host: h, ended: make(chan string, 4096)}
	svc, err := New(h, n.fakeBook, Config{Limits: lim, Logger: slog.New(&endings{n.ended})})
	if err != nil {
		t.Fatal(err)
	}
	n.Service = svc
	t.Cleanup(func() {
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
		n.fakeBook.mu.Lock()
		defer n.fakeBook.mu.Unlock()
		if len(n.sessions) != 0 {
			t.Errorf("sessions after close: %v", n.sessions)
		}
	})
	if err := svc.Start(); err != nil {
		t.Fatal(err)
	}
	return n
}

// endings is a log handler that keeps the end of each stream.
type endings struct{ ch chan string }

func (*endings) Enabled(context.Context, slog.Level) bool { return true }
func (e *endings) WithAttrs([]slog.Attr) slog.Handler     { return e }
func (e *endings) WithGroup(string) slog.Handler          { return e }
func (e *endings) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "swap stream ended" {
		return nil
	}
	var id, status string
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "protocol":
			id = a.Value.String()
		case "status":
			status = a.Value.String()
		}
		return true
	})
	select {
	case e.ch <- id + " " + status:
	default:
	}
	return nil
}

// wantEnd waits for a stream that ends with status.
func (n *node) wantEnd(t testing.TB, status Status) {
	t.Helper()
	got := next(t, n.ended)
	for _, id := range protocols {
		if got == string(id)+" "+status.String() {
			return
		}
	}
	t.Fatalf("a stream ended with %q, want %v", got, status)
}

// want waits for the book's next entries.
func (n *node) want(t testing.TB, entries ...string) {
	t.Helper()
	for _, want := range entries {
		if got := next(t, n.told); got != want {
			t.Fatalf("the book was told %q, want %q", got, want)
		}
	}
}

func (n *node) wantNothing(t testing.TB) {
	t.Helper()
	select {
	case got := <-n.told:
		t.Fatalf("the book was told %q, want nothing", got)
	default:
	}
}

func next[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v := <-ch:
		return v
	case <-timer.C:
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// fakeBook writes down what it is told and checks that sessions are paired.
type fakeBook struct {
	t    testing.TB
	told chan string

	mu       sync.Mutex
	sessions map[peer.ID]bool
	hello    *swap.Handshake
	onBegin  func(p peer.ID) error
	onMsg    func(p peer.ID, m swap.Message) error
	quiet    bool // do not log messages
}

func newFakeBook(t testing.TB) *fakeBook {
	return &fakeBook{
		t: t, told: make(chan string, 4096), sessions: make(map[peer.ID]bool),
		hello: &swap.Handshake{
			Realm: swap.Realm{Asset: "karma"},
			Terms: swap.Terms{PaymentThreshold: 100, DisconnectThreshold: 125, Mode: swap.ModeMock, Native: true},
		},
	}
}

func (b *fakeBook) Hello(context.Context, peer.ID) (*swap.Handshake, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hello == nil {
		return nil, errors.New("no hello")
	}
	hs := *b.hello
	return &hs, nil
}

func (b *fakeBook) BeginSession(_ context.Context, p peer.ID, hs *swap.Handshake, native bool) error {
	b.mu.Lock()
	if b.sessions[p] {
		b.t.Errorf("second session of %s began before the first ended", p)
	}
	b.sessions[p] = true
	hook := b.onBegin
	b.mu.Unlock()
	b.told <- fmt.Sprintf("begin native=%v threshold=%d", native, hs.PaymentThreshold)
	if hook != nil {
		if err := hook(p); err != nil {
			b.mu.Lock()
			delete(b.sessions, p)
			b.mu.Unlock()
			return err
		}
	}
	return nil
}

func (b *fakeBook) EndSession(p peer.ID) {
	b.mu.Lock()
	if !b.sessions[p] {
		b.t.Errorf("a session of %s ended that had not begun", p)
	}
	delete(b.sessions, p)
	b.mu.Unlock()
	b.told <- "end"
}

func (b *fakeBook) Receive(_ context.Context, p peer.ID, m swap.Message) error {
	b.mu.Lock()
	hook, quiet := b.onMsg, b.quiet
	b.mu.Unlock()
	if !quiet {
		b.told <- describe(m)
	}
	if hook != nil {
		return hook(p, m)
	}
	return nil
}

func describe(m swap.Message) string {
	switch m := m.(type) {
	case *swap.Cheque:
		return fmt.Sprintf("cheque %d", m.Serial)
	case *swap.Ack:
		return fmt.Sprintf("ack %d", m.Serial)
	case *swap.KarmaCheque:
		return fmt.Sprintf("karma %d", m.Amount)
	case *swap.Refusal:
		return fmt.Sprintf("refusal %d %v %s", m.Serial, m.Code, m.Detail)
	case *swap.Statement:
		return fmt.Sprintf("statement %d %d", m.Served, m.Consumed)
	default:
		return fmt.Sprintf("%T", m)
	}
}

// rawPeer speaks frames by hand.
type rawPeer struct {
	t  testing.TB
	st network.Stream
	r  *wire.Reader
	w  *wire.Writer
}

func newRaw(t testing.TB, st network.Stream) *rawPeer {
	t.Cleanup(func() { _ = st.Reset() })
	return &rawPeer{t: t, st: st, r: wire.NewReader(st, 1<<20), w: wire.NewWriter(st, 1<<20)}
}

func openRaw(t testing.TB, from, to host.Host, id protocol.ID) *rawPeer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	connect(t, from, to)
	st, err := from.NewStream(ctx, to.ID(), id)
	if err != nil {
		t.Fatal(err)
	}
	return newRaw(t, st)
}

// answering sets a handler and returns the streams that come.
func answering(t testing.TB, h host.Host, ids ...protocol.ID) <-chan *rawPeer {
	ch := make(chan *rawPeer, 64)
	for _, id := range ids {
		h.SetStreamHandler(id, func(st network.Stream) { ch <- newRaw(t, st) })
	}
	return ch
}

func (p *rawPeer) bytes(b ...byte) {
	p.t.Helper()
	if _, err := p.st.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

func (p *rawPeer) frame(b []byte) {
	p.t.Helper()
	if err := errors.Join(p.w.WriteFrame(b), p.w.Flush()); err != nil {
		p.t.Fatal(err)
	}
}

func (p *rawPeer) send(m swap.Message) {
	p.t.Helper()
	b, err := encodeFrame(m)
	if err != nil {
		p.t.Fatal(err)
	}
	p.frame(b)
}

func (p *rawPeer) read() []byte {
	p.t.Helper()
	b, err := p.r.ReadFrame()
	if err != nil {
		p.t.Fatal(err)
	}
	return slices.Clone(b)
}

func (p *rawPeer) message() swap.Message {
	p.t.Helper()
	m, _, err := decodeFrame(p.read())
	if err != nil {
		p.t.Fatal(err)
	}
	return m
}

// wantGone waits until the stream is closed or reset by the other side.
func (p *rawPeer) wantGone() {
	p.t.Helper()
	for {
		if _, err := p.r.ReadFrame(); err != nil {
			if errors.Is(err, wire.ErrTimeout) {
				p.t.Fatal("the stream stays open")
			}
			return
		}
	}
}

// shakeNative does the handshake of /tally/swap/1.0.0.
func (p *rawPeer) shakeNative() *swap.Handshake {
	p.t.Helper()
	p.send(&swap.Handshake{Realm: swap.Realm{Asset: "karma"}, Terms: swap.Terms{PaymentThreshold: 77}})
	hs, ok := p.message().(*swap.Handshake)
	if !ok {
		p.t.Fatal("no handshake")
	}
	return hs
}

// shakeAlpha1 does the handshake of the seed, to the byte.
func (p *rawPeer) shakeAlpha1() {
	p.t.Helper()
	p.frame([]byte{0x0a, 0x01, 0x4d})
	if got := p.read(); !slices.Equal(got, []byte{0x0a, 0x01, 0x64}) {
		p.t.Fatalf("handshake % x", got)
	}
}

func karma(amount byte) []byte { return []byte{0x0a, 0x01, 'x', 0x18, amount} }

func testCheque(issuer, beneficiary peer.ID, serial uint64) *swap.Cheque {
	return &swap.Cheque{Issuer: issuer, Beneficiary: beneficiary, Serial: serial, Cumulative: 100, Signature: []byte("sig")}
}
