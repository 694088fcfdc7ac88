package btpws

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat"
	"github.com/tallystick/tally/paystream/compat/btp"
	"github.com/tallystick/tally/paystream/compat/ilp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipes is a listener whose connections are pipes, so that a bubble has no
// sockets.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// rig is a server with two clients, whose packets reach handle.
type rig struct {
	t      *testing.T
	server *Server
	pipes  *pipes

	mu     sync.Mutex
	handle compat.HandlerFunc
}

var fulfilment = ilp.Fulfilment{7}

func fulfil(context.Context, *ilp.Prepare) ilp.Reply { return &ilp.Fulfil{Fulfilment: fulfilment} }

func clients() []Client {
	var out []Client
	for _, name := range []string{"alice", "bob"} {
		out = append(out, Client{
			Name: name, Token: token(name).Hash(),
			Config: ilp.Config{Address: ilp.Address("test.tally." + name), AssetScale: 9, AssetCode: "FIL"},
		})
	}
	return out
}

func token(name string) btp.Token { return btp.Token("token-of-client-" + name) }

// inBubble runs a test with a rig in a bubble.
func inBubble(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, pipes: &pipes{conns: make(chan net.Conn), done: make(chan struct{})}, handle: fulfil}
		var err error
		r.server, err = New(Config{
			Clients: clients(), Address: "test.tally",
			Serve: func(Client) compat.Handler {
				return compat.HandlerFunc(func(ctx context.Context, p *ilp.Prepare) ilp.Reply {
					r.mu.Lock()
					h := r.handle
					r.mu.Unlock()
					return h(ctx, p)
				})
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		hs := &http.Server{Handler: r.server, ReadHeaderTimeout: time.Minute}
		go func() { _ = hs.Serve(r.pipes) }() // ends with Close
		defer func() {
			r.server.Close()
			_ = hs.Close()
		}()
		f(t, r)
	})
}

// dial opens a WebSocket that has not authenticated.
func (r *rig) dial() *websocket.Conn {
	r.t.Helper()
	ws, err := r.tryDial()
	if err != nil {
		r.t.Fatal(err)
	}
	return ws
}

func (r *rig) tryDial() (*websocket.Conn, error) {
	d := websocket.Dialer{NetDialContext: func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		r.pipes.conns <- far
		return near, nil
	}}
	ws, resp, err := d.Dial("ws://tally/", nil)
	if resp != nil && err == nil {
		_ = resp.Body.Close()
	}
	if err == nil {
		r.t.Cleanup(func() { _ = ws.Close() })
	}
	return ws, err
}

// connect opens a WebSocket and authenticates.
func (r *rig) connect(name string) *websocket.Conn {
	r.t.Helper()
	ws := r.dial()
	r.write(ws, btp.Auth{RequestID: 1, Username: name, Token: token(name)}.Frame())
	if f := r.read(ws); f.Type != btp.TypeResponse || f.RequestID != 1 || len(f.Entries) != 0 {
		r.t.Fatalf("%+v", f)
	}
	synctest.Wait() // it is the client's connection now
	return ws
}

func (r *rig) write(ws *websocket.Conn, f *btp.Frame) {
	r.t.Helper()
	b, err := f.Append(nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := ws.WriteMessage(websocket.BinaryMessage, b); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) read(ws *websocket.Conn) *btp.Frame {
	r.t.Helper()
	f, err := readFrame(ws)
	if err != nil {
		r.t.Fatal(err)
	}
	return f
}

// ask sends a packet as a client and returns the reply.
func (r *rig) ask(ws *websocket.Conn, p *ilp.Prepare) ilp.Reply {
	r.t.Helper()
	r.write(ws, &btp.Frame{Type: btp.TypeMessage, RequestID: 5, Entries: []btp.Entry{btp.ILP(bytesOf(r.t, p))}})
	return r.replyOf(r.read(ws), 5)
}

func (r *rig) replyOf(f *btp.Frame, id uint32) ilp.Reply {
	r.t.Helper()
	packet, ok := f.Entry("ilp")
	if !ok || f.Type != btp.TypeResponse || f.RequestID != id {
		r.t.Fatalf("%+v", f)
	}
	reply, err := ilp.DecodeReply(packet)
	if err != nil {
		r.t.Fatal(err)
	}
	return reply
}

func bytesOf(t *testing.T, p interface{ Append([]byte) ([]byte, error) }) []byte {
	t.Helper()
	b, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func prepare(amount tally.Amount) *ilp.Prepare {
	return &ilp.Prepare{
		Amount: amount, ExpiresAt: time.Now().Add(15 * time.Second), // before the first ping: a pipe holds nothing
		Condition: fulfilment.Condition(), Destination: "test.tally.bob.x",
	}
}

func wantReject(t *testing.T, reply ilp.Reply, code ilp.Code) {
	t.Helper()
	if j, ok := reply.(*ilp.Reject); !ok || j.Code != code || j.TriggeredBy != "test.tally" {
		t.Fatalf("%+v, want %s", reply, code)
	}
}

func TestConfigOfClient(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		ws := r.connect("alice")
		f, ok := r.ask(ws, ilp.ConfigRequest(time.Now().Add(time.Minute))).(*ilp.Fulfil)
		if !ok {
			t.Fatal("no configuration")
		}
		if c, err := ilp.DecodeConfig(f.Data); err != nil || c != clients()[0].Config {
			t.Fatal(c, err)
		}
		bad := ilp.ConfigRequest(time.Now().Add(time.Minute))
		bad.Amount = 1
		wantReject(t, r.ask(ws, bad), ilp.CodeBadRequest)
	})
}

func TestAuthentication(t *testing.T) {
	good := btp.Auth{RequestID: 9, Token: token("alice")} // without a name
	inBubble(t, func(t *testing.T, r *rig) {
		ws := r.dial()
		r.write(ws, good.Frame())
		if f := r.read(ws); f.Type != btp.TypeResponse {
			t.Fatalf("%+v", f)
		}
		for what, f := range map[string]*btp.Frame{
			"token":       btp.Auth{RequestID: 9, Token: "token-of-client-alicf"}.Frame(),
			"empty token": btp.Auth{RequestID: 9}.Frame(),
			"name":        btp.Auth{RequestID: 9, Username: "bob", Token: token("alice")}.Frame(),
			"no auth":     {Type: btp.TypeMessage, RequestID: 9, Entries: []btp.Entry{btp.ILP(nil)}},
		} {
			ws := r.dial()
			r.write(ws, f)
			if f := r.read(ws); f.Type != btp.TypeError || f.RequestID != 9 || strings.Contains(f.Error.Data, "token-") {
				t.Errorf("%s: %+v", what, f)
			}
			if _, err := readFrame(ws); err == nil {
				t.Errorf("%s: still connected", what)
			}
		}
	})
}

// TestSilentAtTheDoor: who does not authenticate in five seconds is gone, and no
// more than MaxHandshakes may wait there.
func TestSilentAtTheDoor(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		var silent []*websocket.Conn
		for range MaxHandshakes {
			silent = append(silent, r.dial())
		}
		if _, err := r.tryDial(); !errors.Is(err, websocket.ErrBadHandshake) {
			t.Fatal("one more is let in", err)
		}
		begin := time.Now()
		for _, ws := range silent {
			if _, err := readFrame(ws); err == nil {
				t.Fatal("read")
			}
		}
		if d := time.Since(begin); d != authTimeout {
			t.Fatal(d)
		}
		synctest.Wait()
		r.connect("alice")
	})
}

func TestPacketOfClient(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		ws := r.connect("alice")
		if f, ok := r.ask(ws, prepare(5)).(*ilp.Fulfil); !ok || f.Fulfilment != fulfilment {
			t.Fatal("not fulfilled")
		}
		wantReject(t, r.ask(ws, prepare(1<<63)), ilp.CodeInvalidAmount)
		late := prepare(5)
		late.ExpiresAt = time.Now()
		wantReject(t, r.ask(ws, late), ilp.CodeTransferTimedOut)

		r.handle = func(context.Context, *ilp.Prepare) ilp.Reply { return &ilp.Reject{Code: "no code"} }
		wantReject(t, r.ask(ws, prepare(5)), ilp.CodeInternal)

		// A packet that says it has an hour has a minute.
		r.handle = func(ctx context.Context, _ *ilp.Prepare) ilp.Reply {
			<-ctx.Done()
			return r.server.reject(ilp.CodeTransferTimedOut, "")
		}
		long, begin := prepare(5), time.Now()
		long.ExpiresAt = begin.Add(time.Hour)
		wantReject(t, r.ask(ws, long), ilp.CodeTransferTimedOut)
		if d := time.Since(begin); d != maxHold {
			t.Fatal(d)
		}

		r.write(ws, &btp.Frame{Type: btp.TypeMessage, RequestID: 6, Entries: []btp.Entry{btp.ILP([]byte("junk"))}})
		wantReject(t, r.replyOf(r.read(ws), 6), ilp.CodeInvalidPacket)
		for _, f := range []*btp.Frame{{Type: btp.TypeMessage, RequestID: 6}, {Type: btp.TypeTransfer, RequestID: 6, Amount: 5}} {
			r.write(ws, f)
			if f := r.read(ws); f.Type != btp.TypeError || f.RequestID != 6 {
				t.Fatalf("%+v", f)
			}
		}
	})
}

// TestMaxInFlight: the sixty-fifth packet of a client is rejected at once, and so
// is ours to it.
func TestMaxInFlight(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		ws := r.connect("alice")
		open := make(chan struct{})
		r.handle = func(ctx context.Context, p *ilp.Prepare) ilp.Reply {
			<-open
			return fulfil(ctx, p)
		}
		packet := bytesOf(t, prepare(1))
		for i := range MaxInFlight + 1 {
			r.write(ws, &btp.Frame{Type: btp.TypeMessage, RequestID: uint32(i), Entries: []btp.Entry{btp.ILP(packet)}})
		}
		wantReject(t, r.replyOf(r.read(ws), MaxInFlight), ilp.CodeConnectorBusy)
		close(open)
		for range MaxInFlight {
			if f := r.read(ws); f.Type != btp.TypeResponse {
				t.Fatalf("%+v", f)
			}
		}
		to := r.server.Client("alice")
		var wg sync.WaitGroup
		for range MaxInFlight {
			wg.Go(func() { wantRejectErr(t, to.Prepare(t.Context(), prepare(1)), ilp.CodeTransferTimedOut) })
		}
		synctest.Wait()
		wantReject(t, to.Prepare(t.Context(), prepare(1)), ilp.CodeConnectorBusy)
		for range MaxInFlight { // read, and never answered
			r.read(ws)
		}
		wg.Wait()
	})
}

func wantRejectErr(t *testing.T, reply ilp.Reply, code ilp.Code) {
	t.Helper()
	if j, ok := reply.(*ilp.Reject); !ok || j.Code != code {
		t.Errorf("%+v, want %s", reply, code)
	}
}

// TestPacketToClient: what the client may answer, and what becomes of it.
func TestPacketToClient(t *testing.T) {
	good := func(f *btp.Frame) *btp.Frame {
		b, err := (&ilp.Fulfil{Fulfilment: fulfilment}).Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		return &btp.Frame{Type: btp.TypeResponse, RequestID: f.RequestID, Entries: []btp.Entry{btp.ILP(b)}}
	}
	for name, tc := range map[string]struct {
		answer func(f *btp.Frame) *btp.Frame
		wait   time.Duration
		code   ilp.Code // empty: fulfilled
	}{
		"fulfilled": {answer: good},
		"wrong fulfilment": {answer: func(f *btp.Frame) *btp.Frame {
			g := good(f)
			g.Entries[0].Data[10] ^= 1
			return g
		}, code: ilp.CodeWrongCondition},
		"other request": {answer: func(f *btp.Frame) *btp.Frame {
			g := good(f)
			g.RequestID++
			return g
		}, code: ilp.CodeTransferTimedOut},
		"no packet": {answer: func(f *btp.Frame) *btp.Frame {
			return &btp.Frame{Type: btp.TypeResponse, RequestID: f.RequestID}
		}, code: ilp.CodeUnreachable},
		"error": {answer: func(f *btp.Frame) *btp.Frame { return refusal(f.RequestID, "no") }, code: ilp.CodeUnreachable},
		"junk": {answer: func(f *btp.Frame) *btp.Frame {
			g := good(f)
			g.Entries[0].Data = []byte("junk")
			return g
		}, code: ilp.CodeInvalidPacket},
		"too late": {answer: good, wait: 16 * time.Second, code: ilp.CodeTransferTimedOut},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				ws := r.connect("bob")
				got := make(chan ilp.Reply, 1)
				go func() { // ends with the reply
					got <- r.server.Client("bob").Prepare(t.Context(), prepare(5))
				}()
				f := r.read(ws)
				if packet, ok := f.Entry("ilp"); !ok || f.Type != btp.TypeMessage {
					t.Fatalf("%+v", f)
				} else if p, err := ilp.DecodePrepare(packet); err != nil || p.Amount != 5 {
					t.Fatal(p, err)
				}
				time.Sleep(tc.wait) // bubble: the client takes its time
				r.write(ws, tc.answer(f))
				reply := <-got
				if tc.code != "" {
					wantReject(t, reply, tc.code)
				} else if _, ok := reply.(*ilp.Fulfil); !ok {
					t.Fatalf("%+v", reply)
				}
			})
		})
	}
}

// TestPayerGone: a payer that disconnects does not keep its payee from being paid.
func TestPayerGone(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		alice, bob := r.connect("alice"), r.connect("bob")
		got := make(chan ilp.Reply, 1)
		r.handle = func(ctx context.Context, p *ilp.Prepare) ilp.Reply {
			reply := r.server.Client("bob").Prepare(ctx, p)
			got <- reply
			return reply
		}
		r.write(alice, &btp.Frame{Type: btp.TypeMessage, RequestID: 5, Entries: []btp.Entry{btp.ILP(bytesOf(t, prepare(5)))}})
		f := r.read(bob)
		_ = alice.Close()
		synctest.Wait()
		r.write(bob, &btp.Frame{
			Type: btp.TypeResponse, RequestID: f.RequestID,
			Entries: []btp.Entry{btp.ILP(bytesOf(t, &ilp.Fulfil{Fulfilment: fulfilment}))},
		})
		if reply, ok := (<-got).(*ilp.Fulfil); !ok {
			t.Fatalf("%+v", reply)
		}
	})
}

func TestGoneAndReplaced(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		bob := r.server.Client("bob")
		wantReject(t, bob.Prepare(t.Context(), prepare(1)), ilp.CodePeerUnreachable)
		wantReject(t, r.server.Client("nobody").Prepare(t.Context(), prepare(1)), ilp.CodePeerUnreachable)

		first := r.connect("bob")
		got := make(chan ilp.Reply, 1)
		go func() { got <- bob.Prepare(t.Context(), prepare(1)) }() // ends with the reply
		r.read(first)
		second := r.connect("bob")
		wantReject(t, <-got, ilp.CodePeerUnreachable)
		if _, err := readFrame(first); err == nil {
			t.Fatal("two connections of one client")
		}
		go func() { got <- bob.Prepare(t.Context(), prepare(1)) }() // ends with the reply
		r.read(second)
		r.server.Close()
		wantReject(t, <-got, ilp.CodePeerUnreachable)
		if _, err := r.tryDial(); !errors.Is(err, websocket.ErrBadHandshake) {
			t.Fatal("let in after the end", err)
		}
	})
}

// TestSilentClient: a client that sends nothing and answers no ping is dropped.
func TestSilentClient(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		ws := r.connect("alice")
		ws.SetPingHandler(func(string) error { return nil })
		begin := time.Now()
		if _, err := readFrame(ws); err == nil {
			t.Fatal("read")
		}
		if d := time.Since(begin); d != idleTimeout {
			t.Fatal(d)
		}
	})
}

// TestBadFramesEndTheConnection: text, junk, and a frame past the bound, which is
// refused by its announced length.
func TestBadFramesEndTheConnection(t *testing.T) {
	for name, write := range map[string]func(ws *websocket.Conn) error{
		"text": func(ws *websocket.Conn) error { return ws.WriteMessage(websocket.TextMessage, []byte("hi")) },
		"junk": func(ws *websocket.Conn) error { return ws.WriteMessage(websocket.BinaryMessage, []byte{9}) },
		"oversize": func(ws *websocket.Conn) error {
			// Final binary frame, masked, of 2^40 bytes, of which none follow.
			_, err := ws.NetConn().Write([]byte{0x82, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				ws := r.connect("alice")
				if err := write(ws); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				if _, err := readFrame(ws); err == nil || time.Since(begin) > time.Second {
					t.Fatal(err, time.Since(begin))
				}
			})
		})
	}
}

func TestConfigValidate(t *testing.T) {
	good := func() Config {
		return Config{Clients: clients(), Address: "test.tally", Serve: func(Client) compat.Handler { return nil }}
	}
	for name, edit := range map[string]func(c *Config){
		"no handler":   func(c *Config) { c.Serve = nil },
		"address":      func(c *Config) { c.Address = "x" },
		"no name":      func(c *Config) { c.Clients[0].Name = "" },
		"name twice":   func(c *Config) { c.Clients[0].Name = "bob" },
		"no token":     func(c *Config) { c.Clients[0].Token = btp.TokenHash{} },
		"token twice":  func(c *Config) { c.Clients[0].Token = c.Clients[1].Token },
		"same address": func(c *Config) { c.Clients[0].Config.Address = c.Clients[1].Config.Address },
		"client":       func(c *Config) { c.Clients[0].Config.Address = "x" },
		"too many": func(c *Config) {
			for i := range MaxClients {
				name := fmt.Sprint("c", i)
				c.Clients = append(c.Clients, Client{Name: name, Token: token(name).Hash(), Config: ilp.Config{Address: ilp.Address("test.tally." + name)}})
			}
		},
	} {
		c := good()
		edit(&c)
		_, err := New(c)
		if !errors.Is(err, ErrConfig) || strings.Contains(err.Error(), "token-of") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := fmt.Sprintf("%+v", good()); strings.Contains(s, "token-of") {
		t.Error(s)
	}
}

// TestAddRemove: a client that is added may connect, and one that is removed is cut
// and connects no more.
func TestAddRemove(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		carol := Client{Name: "carol", Token: token("carol").Hash(), Config: ilp.Config{Address: "test.tally.carol"}}
		if err := r.server.Add(carol); err != nil {
			t.Fatal(err)
		}
		if err := r.server.Add(carol); !errors.Is(err, ErrConfig) {
			t.Fatal(err)
		}
		ws := r.connect("carol")
		if !r.server.Connected("carol") {
			t.Fatal("not connected")
		}
		r.server.Remove("carol")
		if _, err := readFrame(ws); err == nil {
			t.Fatal("a removed client is still connected")
		}
		ws = r.dial()
		r.write(ws, btp.Auth{RequestID: 1, Username: "carol", Token: token("carol")}.Frame())
		if f := r.read(ws); f.Type != btp.TypeError {
			t.Fatal(f)
		}
		if err := r.server.Add(carol); err != nil {
			t.Fatal(err)
		}
		r.connect("carol")
	})
}
