package storenet

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tally/protocols/internal/wire"
)

// patience bounds what a test waits for; nothing waits for it when all is well.
const patience = time.Minute

func testCtx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func newHost(t testing.TB) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// pair is a client host connected to a server host.
func pair(t testing.TB) (client, server host.Host) {
	t.Helper()
	client, server = newHost(t), newHost(t)
	if err := client.Connect(testCtx(t), peer.AddrInfo{ID: server.ID(), Addrs: server.Addrs()}); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// serve starts a server; the outcomes of its streams come on the channel.
func serve(t testing.TB, h host.Host, s *Store, cfg Config) (*Server, <-chan Outcome) {
	t.Helper()
	outcomes := make(chan Outcome, 1<<16)
	cfg.Logger = quiet()
	cfg.Observe = func(o Outcome) { outcomes <- o }
	srv, err := NewServer(h, s, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	return srv, outcomes
}

// next is the next outcome.
func next(t testing.TB, outcomes <-chan Outcome) Outcome {
	t.Helper()
	select {
	case o := <-outcomes:
		return o
	case <-time.After(patience):
		t.Fatal("no outcome")
		return Outcome{}
	}
}

func open(t testing.TB, from host.Host, to peer.ID, id protocol.ID) network.Stream {
	t.Helper()
	s, err := from.NewStream(testCtx(t), to, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Reset() })
	if err := s.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return s
}

// ask sends one request as any client may and reads the response, and that the
// stream ends behind it.
func ask(t testing.TB, from host.Host, to peer.ID, id protocol.ID, req, res proto.Message) {
	t.Helper()
	s := open(t, from, to, id)
	w := wire.NewWriter(s, 1<<20)
	if err := w.WriteMsg(req); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	r := wire.NewReader(s, 8<<20)
	if err := r.ReadMsg(res); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadFrame(); err != io.EOF {
		t.Fatalf("behind the response: %v", err)
	}
}
