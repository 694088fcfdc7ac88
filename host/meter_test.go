package host

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-msgio"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/swap"
)

const echoID protocol.ID = "/test/echo/1.0.0"

// echoRule prices each answer at its length in bytes; requests are free.
var echoRule = swap.Rule{
	Protocol: echoID, Service: "echo", MaxFrame: 64,
	Price: func(f swap.Frame) tally.Amount {
		if !f.FromServer {
			return 0
		}
		return tally.Amount(len(f.Data))
	},
}

// metered is a libp2p host whose echo service knows nothing of tabs.
type metered struct {
	host.Host
	book *swap.Book
}

func newMetered(t *testing.T, policy swap.Policy) *metered {
	t.Helper()
	n := newTestNode(t, Config{Policy: policy})
	m := &metered{Host: n.Meter(echoRule), book: n.Book()}
	m.SetStreamHandler(echoID, func(s network.Stream) {
		defer s.Close()
		r, w := msgio.NewVarintReaderSize(s, 1<<20), msgio.NewVarintWriter(s)
		for {
			frame, err := r.ReadMsg()
			if err != nil {
				_ = s.Reset()
				return
			}
			if err := w.WriteMsg(frame); err != nil {
				return
			}
		}
	})
	return m
}

func meet(t *testing.T, a, b *metered) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := a.Connect(ctx, peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.book.WaitSession(ctx, b.ID()), b.book.WaitSession(ctx, a.ID())); err != nil {
		t.Fatal(err)
	}
}

// ask sends n requests of size bytes on one stream and reads the answers.
func ask(t *testing.T, client, server *metered, n, size int) (answers int, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := client.NewStream(ctx, server.ID(), echoID)
	if err != nil {
		return 0, err
	}
	defer s.Reset()
	r, w := msgio.NewVarintReaderSize(s, 1<<20), msgio.NewVarintWriter(s)
	for range n {
		if err := w.WriteMsg(make([]byte, size)); err != nil {
			return answers, err
		}
		if _, err := r.ReadMsg(); err != nil {
			return answers, err
		}
		answers++
	}
	return answers, nil
}

func balances(t *testing.T, client, server *metered) (atClient, atServer swap.Row) {
	t.Helper()
	c, err := client.book.Row(server.ID())
	if err != nil {
		t.Fatal(err)
	}
	s, err := server.book.Row(client.ID())
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

func TestWrapHostMetersAServiceThatKnowsNothingOfIt(t *testing.T) {
	client, server := newMetered(t, swap.Policy{}), newMetered(t, swap.Policy{})
	meet(t, client, server)
	for i, want := range []tally.Amount{20, 40, 45} {
		n, size := 2, 10
		if i == 2 {
			n, size = 1, 5
		}
		if _, err := ask(t, client, server, n, size); err != nil {
			t.Fatal(err)
		}
		c, s := balances(t, client, server)
		if c.Consumed != want || s.Served != want || c.Balance != -s.Balance {
			t.Fatalf("after call %d: client consumed %d, server served %d, want %d", i, c.Consumed, s.Served, want)
		}
	}
}

func TestWrapHostSettlesAndGoesOn(t *testing.T) {
	client, server := newMetered(t, swap.Policy{}), newMetered(t, swap.Policy{})
	meet(t, client, server)
	for call := range 30 { // 300 units under a threshold of 100
		if _, err := ask(t, client, server, 1, 10); err != nil {
			t.Fatalf("call %d: %v", call, err)
		}
	}
	var c, s swap.Row
	eventually(t, "the last cheque is answered", func() bool {
		c, s = balances(t, client, server)
		return c.Paid == s.Received && c.Paid >= 200
	})
	if c.Consumed != 300 || s.Served != 300 {
		t.Fatalf("client %+v\nserver %+v", c, s)
	}
}

func TestWrapHostStopsAPeerThatDoesNotPay(t *testing.T) {
	// The client only counts, so that it never pays.
	client, server := newMetered(t, swap.Policy{Mode: swap.ModeSoft}), newMetered(t, swap.Policy{})
	meet(t, client, server)
	answers, err := ask(t, client, server, 100, 10)
	if err == nil || answers < 12 || answers > 13 {
		t.Fatalf("%d answers of 10 units under a disconnect threshold of 125, then %v", answers, err)
	}
	if n, err := ask(t, client, server, 1, 10); err == nil {
		t.Fatalf("a new stream was served %d answers at zero headroom", n)
	}
	_, s := balances(t, client, server)
	if s.Balance < 125 || s.Balance > 130 { // the disconnect threshold and at most one message
		t.Fatalf("balance %d", s.Balance)
	}
}

func TestWrapHostResetsWhatIsNotFramed(t *testing.T) {
	client, server := newMetered(t, swap.Policy{}), newMetered(t, swap.Policy{})
	meet(t, client, server)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, garbage := range [][]byte{
		{0x41},                   // a frame of 65 bytes, over the bound of 64
		{0xff, 0xff, 0xff, 0x7f}, // 2^28
		{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, // no uvarint
	} {
		raw, ok := client.Host.(interface{ Unwrap() host.Host })
		if !ok {
			t.Fatal("the wrapped host does not show the one below")
		}
		s, err := raw.Unwrap().NewStream(ctx, server.ID(), echoID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write(garbage); err != nil {
			t.Fatal(err)
		}
		_ = s.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadAll(s); err == nil {
			t.Errorf("%x was not answered with a reset", garbage)
		}
	}
	_, s := balances(t, client, server)
	if s.Balance != 0 {
		t.Fatalf("garbage changed the balance to %d", s.Balance)
	}
}

func TestWrapHostLeavesOtherProtocolsAlone(t *testing.T) {
	client, server := newMetered(t, swap.Policy{}), newMetered(t, swap.Policy{})
	meet(t, client, server)
	server.SetStreamHandler("/test/free/1.0.0", func(s network.Stream) {
		_, _ = s.Write([]byte("free"))
		_ = s.Close()
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := client.NewStream(ctx, server.ID(), "/test/free/1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(s); err != nil || string(text) != "free" {
		t.Fatalf("%q, %v", text, err)
	}
	if c, _ := balances(t, client, server); c.Balance != 0 {
		t.Fatalf("a free protocol was booked: %d", c.Balance)
	}
}
