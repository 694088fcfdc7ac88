package paystream_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/paystreamtest"
)

// pairOf opens a socket between two parties, by an invoice of worth.
func pairOf(t *testing.T, a, b *party) (client, server *paystream.Conn) {
	t.Helper()
	u, err := b.Issue(paystream.Grant{Use: paystream.UseInvoice, Min: at(worth), Max: at(worth)})
	if err != nil {
		t.Fatal(err)
	}
	if client, err = a.Dial(t.Context(), u, nil, paystream.Terms{Min: at(-worth), Max: at(0)}); err != nil {
		t.Fatal(err)
	}
	return client, b.server(t)
}

func randomBytes(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// TestStreamsOverACarrier: bytes both ways beside a payment, over a way that loses
// packets, with and without money, and lets them overtake each other.
func TestStreamsOverACarrier(t *testing.T) {
	for _, loss := range []float64{0, 0.25} {
		synctest.Test(t, func(t *testing.T) {
			net := paystreamtest.NewNet(7)
			a, b := start(t, net, 1, nil, nil), start(t, net, 2, nil, nil)
			defer func() { _, _ = a.Close(), b.Close() }()
			client, server := pairOf(t, a, b)
			for _, w := range [][2]*party{{a, b}, {b, a}} {
				net.SetWay(w[0].id, w[1].id, paystreamtest.Way{Delay: 10 * time.Millisecond, Jitter: 40 * time.Millisecond, Loss: loss, Most: 5000})
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			text, echo := randomBytes(1, 700_000), make(chan []byte, 1)
			go func() { // ends with the stream
				st, err := server.AcceptStream(ctx)
				if err != nil {
					t.Error(err)
					echo <- nil
					return
				}
				got, err := io.ReadAll(st)
				if err != nil {
					t.Error(err)
				}
				if _, err := st.Write(got[:300_000]); err != nil {
					t.Error(err)
				}
				if err := st.Close(); err != nil {
					t.Error(err)
				}
				echo <- got
			}()
			st, err := client.OpenStream(ctx)
			if err != nil {
				t.Fatal(err)
			}
			st.SetShares(1)
			if n, err := st.WriteContext(ctx, text); n != len(text) || err != nil {
				t.Fatalf("wrote %d: %v", n, err)
			}
			st.CloseWrite()
			if err := st.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			back, err := io.ReadAll(st)
			if err != nil || !bytes.Equal(back, text[:300_000]) {
				t.Fatalf("read back %d bytes: %v", len(back), err)
			}
			if got := <-echo; !bytes.Equal(got, text) {
				t.Fatalf("the server read %d bytes, not what was written", len(got))
			}
			client.Resume() // a way as bad as this one may have stopped the money
			if err := client.WaitBalance(ctx, -worth); err != nil {
				t.Fatalf("%v: %+v", err, client.Report())
			}
			time.Sleep(5 * time.Second) // bubble: acks and credits
			for _, c := range []*paystream.Conn{client, server} {
				if r := c.DataReport(); r.Streams != 0 || r.Held != 0 {
					t.Errorf("an end keeps %+v", r)
				}
			}
			if r := client.DataReport(); r.Sent != 700_000 || r.Received != 300_000 {
				t.Errorf("the client counts %+v", r)
			}
		})
	}
}

// TestStreamsAfterAnOutage: a way that loses everything, or delays it for longer than
// its sender waits. Time alone lets the bytes arrive, with no money due.
func TestStreamsAfterAnOutage(t *testing.T) {
	for _, way := range []paystreamtest.Way{{Loss: 1}, {Delay: 9 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			net := paystreamtest.NewNet(1)
			a, b := start(t, net, 1, nil, nil), start(t, net, 2, nil, nil)
			defer func() { _, _ = a.Close(), b.Close() }()
			u, err := b.Issue(paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: paystream.NoMax})
			if err != nil {
				t.Fatal(err)
			}
			client, err := a.Dial(t.Context(), u, nil, paystream.Terms{})
			if err != nil {
				t.Fatal(err)
			}
			server := b.server(t)
			go func() { _, _ = server.AcceptStream(t.Context()) }() // ends with the stream
			st, err := client.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			net.SetWay(a.id, b.id, way)
			begun := time.Now()
			if _, err := st.Write(randomBytes(1, 200_000)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(8 * time.Second) // bubble: the outage
			net.SetWay(a.id, b.id, paystreamtest.Way{})
			if err := st.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begun); took > 20*time.Second {
				t.Errorf("all arrived after %v", took)
			}
		})
	}
}

// TestStreamMoney: what a packet pays is divided among the streams that it names, the
// same at both ends, and a stream that has no share gets nothing.
func TestStreamMoney(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(1)
		a, b := start(t, net, 1, nil, nil), start(t, net, 2, nil, nil)
		defer func() { _, _ = a.Close(), b.Close() }()
		u, err := b.Issue(paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: paystream.NoMax})
		if err != nil {
			t.Fatal(err)
		}
		client, err := a.Dial(t.Context(), u, nil, paystream.Terms{Min: at(0), Max: at(0)})
		if err != nil {
			t.Fatal(err)
		}
		server := b.server(t)
		net.SetWay(a.id, b.id, paystreamtest.Way{Most: 700})
		go func() { _, _ = server.AcceptStream(t.Context()) }() // ends with the first stream
		var out [3]*paystream.Stream
		for i, shares := range []uint32{3, 1, 0} {
			if out[i], err = client.OpenStream(t.Context()); err != nil {
				t.Fatal(err)
			}
			out[i].SetShares(shares)
		}
		if _, err := out[2].Write([]byte("no money")); err != nil {
			t.Fatal(err)
		}
		if err := client.Pay(4000); err != nil {
			t.Fatal(err)
		}
		if err := client.WaitBalance(t.Context(), -4000); err != nil {
			t.Fatal(err)
		}
		for i, want := range []tally.Amount{3000, 1000, 0} {
			sent, _ := out[i].Money()
			in, ok := server.Stream(out[i].ID())
			if !ok {
				t.Fatalf("stream %d is not there", out[i].ID())
			}
			// Each packet is divided by itself and rounded.
			if _, got := in.Money(); got != sent || sent+10 < want || sent > want+10 {
				t.Errorf("stream %d: sent %d, received %d, want %d", i, sent, got, want)
			}
		}
	})
}

// TestStreamsEnd: what ends streams, and what both ends are told.
func TestStreamsEnd(t *testing.T) {
	setup := func(t *testing.T) (a, b *party, in, out *paystream.Stream, client, server *paystream.Conn) {
		net := paystreamtest.NewNet(1)
		a, b = start(t, net, 1, nil, nil), start(t, net, 2, nil, nil)
		client, server = pairOf(t, a, b)
		accepted := make(chan *paystream.Stream, 1)
		go func() { // ends with the first stream
			st, err := server.AcceptStream(t.Context())
			if err != nil {
				t.Error(err)
			}
			accepted <- st
		}()
		out, err := client.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := out.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		return a, b, <-accepted, out, client, server
	}
	t.Run("close of the socket", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b, in, out, client, _ := setup(t)
			defer func() { _, _ = a.Close(), b.Close() }()
			client.Close()
			synctest.Wait()
			if _, err := out.Write([]byte("x")); !errors.Is(err, paystream.ErrClosed) {
				t.Errorf("write after Close: %v", err)
			}
			got, err := io.ReadAll(in)
			if string(got) != "hello" || !errors.Is(err, paystream.ErrPeerClosed) {
				t.Errorf("the peer reads %q and %v", got, err)
			}
		})
	})
	t.Run("close of the stream", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b, in, out, _, _ := setup(t)
			defer func() { _, _ = a.Close(), b.Close() }()
			if err := in.Close(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // bubble: the peer hears of it
			if _, err := out.Write([]byte("x")); !errors.Is(err, paystream.ErrReaderGone) {
				t.Errorf("write to a stream that nobody reads: %v", err)
			}
			if got, err := io.ReadAll(out); len(got) != 0 || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
			if _, err := in.Read(make([]byte, 1)); !errors.Is(err, paystream.ErrStreamClosed) {
				t.Errorf("read after Close: %v", err)
			}
		})
	})
	t.Run("restart of the server", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := paystreamtest.NewNet(1)
			a, b := start(t, net, 1, nil, nil), start(t, net, 2, nil, nil)
			defer func() { _ = a.Close() }()
			client, server := pairOf(t, a, b)
			go func() { _, _ = server.AcceptStream(t.Context()) }() // ends with the stream
			out, err := client.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := out.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if err := out.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.node.Stop()
			_ = b.Close()
			again := start(t, net, 2, nil, nil)
			defer func() { _ = again.Close() }()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for err == nil { // until the client hears of it
				_, err = out.WriteContext(ctx, make([]byte, 10_000))
			}
			if !errors.Is(err, paystream.ErrStreamReset) && !errors.Is(err, paystream.ErrClosed) && !errors.Is(err, paystream.ErrForgotten) {
				t.Errorf("write after the peer restarted: %v", err)
			}
		})
	})
	t.Run("nobody takes data", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := paystreamtest.NewNet(1)
			a, b := start(t, net, 1, nil, nil), start(t, net, 2, nil, nil)
			defer func() { _, _ = a.Close(), b.Close() }()
			client, _ := pairOf(t, a, b)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := client.OpenStream(ctx); !errors.Is(err, paystream.ErrNoData) {
				t.Errorf("open where nobody takes data: %v", err)
			}
		})
	})
	t.Run("quiet for long", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b, in, out, _, _ := setup(t)
			defer func() { _, _ = a.Close(), b.Close() }()
			time.Sleep(10 * paystream.IdleTime) // bubble: streams keep a socket
			if _, err := out.Write([]byte(" again")); err != nil {
				t.Fatal(err)
			}
			out.CloseWrite()
			if got, err := io.ReadAll(in); string(got) != "hello again" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
		})
	})
}
