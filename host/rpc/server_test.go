package rpc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/filecoin-project/go-state-types/big"
	"github.com/golang-jwt/jwt/v5"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/paystream/payments"
)

const (
	testPeer = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"
	testAddr = "/ip4/127.0.0.1/tcp/4001/p2p/" + testPeer
)

// patience is how long a test waits for what has to happen. Nothing waits for
// it to pass.
const patience = 30 * time.Second

// fakeNode answers with fixed rows. Only what a test looks at is filled.
type fakeNode struct {
	events *EventLog
	// polling gets a value for each caller that comes to wait for events.
	polling chan struct{}
	// channels is nil on a node without a chain.
	channels *Channels

	mu       sync.Mutex
	messages []Message
	calls    []string
	fail     error
}

func newFakeNode() *fakeNode {
	return &fakeNode{events: NewEventLog(time.Unix(1e9, 0)), polling: make(chan struct{}, maxCalls)}
}

func (f *fakeNode) called(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, name)
	return f.fail
}

func (f *fakeNode) Status(context.Context) (Status, error) {
	return Status{PeerID: testPeer, Healthy: true}, f.called("Status")
}

func (f *fakeNode) ID(context.Context) (Identity, error) {
	return Identity{PeerID: testPeer}, f.called("ID")
}
func (f *fakeNode) Version(context.Context) (Version, error) { return Version{}, f.called("Version") }
func (f *fakeNode) Peers(context.Context) ([]PeerRow, error) { return nil, f.called("Peers") }
func (f *fakeNode) PeerConnect(_ context.Context, a peer.AddrInfo) (PeerRow, error) {
	return PeerRow{Peer: a.ID.String(), Connected: true}, f.called("PeerConnect")
}
func (f *fakeNode) PeerBlock(context.Context, peer.ID) error   { return f.called("PeerBlock") }
func (f *fakeNode) PeerUnblock(context.Context, peer.ID) error { return f.called("PeerUnblock") }
func (f *fakeNode) PeerResolve(context.Context, peer.ID) (BalanceRow, error) {
	return BalanceRow{}, f.called("PeerResolve")
}

func (f *fakeNode) Locks(_ context.Context, id peer.ID) ([]LockRow, error) {
	return nil, f.called("Locks " + id.String())
}

func (f *fakeNode) LockState(context.Context) (LockState, error) {
	return LockState{}, f.called("LockState")
}

func (f *fakeNode) Balances(_ context.Context, id peer.ID) ([]BalanceRow, error) {
	return []BalanceRow{{Peer: testPeer, Balance: -7}}, f.called("Balances " + id.String())
}

func (f *fakeNode) Cheques(context.Context, peer.ID) ([]ChequeRow, error) {
	return nil, f.called("Cheques")
}

func (f *fakeNode) Settle(_ context.Context, id peer.ID) (SettleResult, error) {
	return SettleResult{Peer: id.String()}, f.called("Settle")
}

func (f *fakeNode) Cashout(context.Context, peer.ID, uint64) ([]CashoutRow, error) {
	return nil, f.called("Cashout")
}

func (f *fakeNode) Prepay(_ context.Context, id peer.ID, units uint64) (SettleResult, error) {
	return SettleResult{Peer: id.String(), Paid: units}, f.called("Prepay")
}

func (f *fakeNode) StoreImport(_ context.Context, ms []Message) (ImportResult, error) {
	err := f.called("StoreImport")
	f.messages = append(f.messages, ms...)
	return ImportResult{Imported: len(ms), Stored: len(f.messages)}, err
}

func (f *fakeNode) StoreQuery(_ context.Context, _ peer.ID, q StoreQuery) (StorePage, error) {
	var at int
	_, _ = fmt.Sscan(q.Cursor, &at)
	end := min(at+q.PageSize, len(f.messages))
	page := StorePage{Messages: f.messages[at:end]}
	if end < len(f.messages) {
		page.Cursor = fmt.Sprint(end)
	}
	return page, f.called("StoreQuery")
}

func (f *fakeNode) Bridge() (Bridge, error) {
	return nil, NewError(CodeNoBridge, "no bridge")
}

func (f *fakeNode) Holds() (*hold.Service, error) {
	return nil, NewError(CodeUnsupported, "no holds")
}

func (f *fakeNode) Payments() (*payments.Service, error) {
	return nil, NewError(CodeUnsupported, "no payments")
}

func (f *fakeNode) Sockets() (Sockets, error) {
	return nil, NewError(CodeNoSockets, "no sockets")
}

func (f *fakeNode) Channels() (*Channels, error) {
	if f.channels == nil {
		return nil, NewError(CodeNoChain, "no chain is configured")
	}
	return f.channels, nil
}

func (f *fakeNode) EventsSince(ctx context.Context, cursor uint64) (EventBatch, error) {
	f.polling <- struct{}{}
	return f.events.Since(ctx, cursor), f.called("EventsSince")
}

func (f *fakeNode) ConfigShow(context.Context) (map[string]any, error) {
	return map[string]any{"mode": "mock"}, f.called("ConfigShow")
}
func (f *fakeNode) Shutdown(context.Context) error { return f.called("Shutdown") }

var testKey = NewSecret(strings.Repeat("k", 64))

func token(t *testing.T, perms ...Perm) Secret {
	t.Helper()
	s, err := IssueToken(testKey, time.Now(), perms...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve runs a server for node on a free loopback port and returns its address.
func serve(t *testing.T, node Node, cfg Config) string {
	t.Helper()
	l, err := Listen("127.0.0.1:0", "")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, node, cfg)
	return l.Addr().String()
}

func serveOn(t *testing.T, l net.Listener, node Node, cfg Config) {
	t.Helper()
	s, err := NewServer(node, testKey, cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }() // ends with Shutdown below
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func dial(t *testing.T, addr string, tok Secret) *Client {
	t.Helper()
	c, stop, err := NewClient(addr, tok)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return c
}

func TestClientOverUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rpc.sock")
	l, err := Listen(ListenUnix, path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v", info.Mode(), err)
	}
	node := newFakeNode()
	serveOn(t, l, node, Config{})
	c := dial(t, AddrOf(l.Addr()), token(t, AllPerms...))
	rows, err := c.Balances(t.Context(), "")
	if err != nil || len(rows) != 1 || rows[0].Balance != -7 {
		t.Fatalf("%+v %v", rows, err)
	}
	if _, err := Listen(ListenUnix, path); err == nil {
		t.Error("a socket in use was taken over")
	}
}

func TestListenReplacesADeadSocketOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rpc.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	l, err = Listen(ListenUnix, path)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(ListenUnix, path); err == nil {
		t.Error("a file was taken for a socket")
	}
	if data, _ := os.ReadFile(path); string(data) != "precious" {
		t.Error("the file is gone")
	}
}

func TestListenLoopbackOnly(t *testing.T) {
	for _, s := range []string{"0.0.0.0:0", ":0", "192.168.1.1:5001", "example.com:80", "127.0.0.1", "127.0.0.1:99999", "[::]:0", ""} {
		if err := CheckListen(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
		if l, err := Listen(s, ""); err == nil {
			_ = l.Close()
			t.Errorf("%q was listened on", s)
		}
	}
	for _, s := range []string{"127.0.0.1:0", "localhost:5001", "[::1]:5001", "127.8.8.8:1", "unix"} {
		if err := CheckListen(s); err != nil {
			t.Error(err)
		}
	}
}

func TestAddressForms(t *testing.T) {
	for s, want := range map[string]string{
		"/unix/run/x.sock":             "unix:///run/x.sock",
		"unix:///run/x.sock":           "unix:///run/x.sock",
		"/ip4/127.0.0.1/tcp/5001/http": "http://127.0.0.1:5001/rpc/v1",
		"/ip6/::1/tcp/5001/http":       "http://[::1]:5001/rpc/v1",
		"http://127.0.0.1:5001/rpc/v1": "http://127.0.0.1:5001/rpc/v1",
		"127.0.0.1:5001":               "http://127.0.0.1:5001/rpc/v1",
		"/ip4/10.0.0.1/tcp/5001/http":  "",
		"https://127.0.0.1:5001":       "",
		"":                             "",
	} {
		if got, err := URLOf(s); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", s, got, err, want)
		}
	}
}

// Attack 35 of quality.md: every way in but the front door is shut, before the
// node is asked for anything.
func TestAttacksOnTheDoor(t *testing.T) {
	node := newFakeNode()
	var logged bytes.Buffer
	addr := serve(t, node, Config{Logger: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	good := token(t, AllPerms...).Reveal()
	const call = `{"jsonrpc":"2.0","id":1,"method":"Tally.Shutdown","params":[]}`
	otherKey, _ := IssueToken(NewSecret(strings.Repeat("x", 64)), time.Now(), AllPerms...)
	unsigned, err := jwt.NewWithClaims(jwt.SigningMethodNone, claims{Allow: AllPerms}).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	hs512, _ := jwt.NewWithClaims(jwt.SigningMethodHS512, claims{Allow: AllPerms}).SignedString([]byte(testKey.Reveal()))
	expired, _ := jwt.NewWithClaims(jwt.SigningMethodHS256, claims{Allow: AllPerms, RegisteredClaims: jwt.RegisteredClaims{ExpiresAt: jwt.NewNumericDate(time.Now().Add(-time.Hour))}}).SignedString([]byte(testKey.Reveal()))

	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	bearer := func(tok string) func(*http.Request) { return header("Authorization", "Bearer "+tok) }
	for _, tt := range []struct {
		name   string
		change func(*http.Request)
		status int
	}{
		{"no token", func(r *http.Request) { r.Header.Del("Authorization") }, 401},
		{"token in the query", func(r *http.Request) { r.Header.Del("Authorization"); r.URL.RawQuery = "token=" + good }, 401},
		{"empty token", bearer(""), 401},
		{"basic", header("Authorization", "Basic "+good), 401},
		{"token of another key", bearer(otherKey.Reveal()), 401},
		{"cut token", bearer(good[:len(good)-1]), 401},
		{"unsigned token", bearer(unsigned), 401},
		{"other algorithm", bearer(hs512), 401},
		{"expired", bearer(expired), 401},
		{"rebound host", func(r *http.Request) { r.Host = "evil.example" }, 403},
		{"rebound host with our port", func(r *http.Request) { r.Host = "evil.example:" + strings.Split(addr, ":")[1] }, 403},
		{"our host, another port", func(r *http.Request) { r.Host = "127.0.0.1:1" }, 403},
		{"host of all addresses", func(r *http.Request) { r.Host = "0.0.0.0:" + strings.Split(addr, ":")[1] }, 403},
		{"foreign origin", header("Origin", "http://evil.example"), 403},
		{"origin null", header("Origin", "null"), 403},
		{"empty origin", header("Origin", ""), 403},
		{"cross-site", header("Sec-Fetch-Site", "cross-site"), 403},
		{"plain text", header("Content-Type", "text/plain"), 415},
		{"form", header("Content-Type", "application/x-www-form-urlencoded"), 415},
		{"no type", func(r *http.Request) { r.Header.Del("Content-Type") }, 415},
		{"GET", func(r *http.Request) { r.Method = "GET"; r.Body, r.ContentLength = nil, 0 }, 405},
		{"preflight", func(r *http.Request) { r.Method = "OPTIONS" }, 405},
		{"PUT", func(r *http.Request) { r.Method = "PUT" }, 405},
		{"other path", func(r *http.Request) { r.URL.Path = "/" }, 404},
		{"dotted path", func(r *http.Request) { r.URL.Path = "/x/../rpc/v1" }, 404},
		{"websocket", func(r *http.Request) {
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "websocket")
		}, 400},
		{"batch", func(r *http.Request) { setBody(r, "["+call+","+call+"]") }, 400},
		{"no JSON", func(r *http.Request) { setBody(r, "hello") }, 400},
		{"declared oversize", func(r *http.Request) { setBody(r, strings.Repeat(" ", maxBody+1)) }, 413},
		{"chunked oversize", func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(io.LimitReader(spaces{}, maxBody+1)), -1
		}, 413},
		{"oversized header", header("X-Filler", strings.Repeat("x", maxHeader+8192)), 431},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := http.NewRequest("POST", "http://"+addr+Path, nil)
			if err != nil {
				t.Fatal(err)
			}
			setBody(r, call)
			r.Header.Set("Authorization", "Bearer "+good)
			r.Header.Set("Content-Type", "application/json")
			tt.change(r)
			resp, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				if tt.status == 413 || tt.status == 431 {
					return // the server closed before it read all
				}
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != tt.status {
				t.Errorf("status %d, want %d: %s", resp.StatusCode, tt.status, body)
			}
			for name := range resp.Header {
				if strings.HasPrefix(name, "Access-Control-") {
					t.Errorf("a browser is told %s", name)
				}
			}
			if bytes.Contains(body, []byte(good)) {
				t.Error("the token is repeated")
			}
		})
	}
	if len(node.calls) != 0 {
		t.Errorf("the node was asked: %v", node.calls)
	}
	if strings.Contains(logged.String(), good) || strings.Contains(logged.String(), testKey.Reveal()) {
		t.Error("a secret is in the log")
	}
	if !strings.Contains(logged.String(), "rpc request refused") {
		t.Error("refusals are not logged")
	}

	// The same request unchanged is answered, so that the rows above fail for
	// the reason that they name.
	r, _ := http.NewRequest("POST", "http://"+addr+Path, nil)
	setBody(r, call)
	r.Header.Set("Authorization", "Bearer "+good)
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 200 || len(node.calls) != 1 {
		t.Errorf("the good request: %d, %v", resp.StatusCode, node.calls)
	}
}

func setBody(r *http.Request, s string) {
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(s)), int64(len(s))
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestAllowedOriginMayCall(t *testing.T) {
	addr := serve(t, newFakeNode(), Config{Origins: []string{"http://127.0.0.1:9100"}})
	r, _ := http.NewRequest("POST", "http://"+addr+Path, nil)
	setBody(r, `{"jsonrpc":"2.0","id":1,"method":"Tally.ID","params":[]}`)
	r.Header.Set("Authorization", "Bearer "+token(t, PermRead).Reveal())
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Origin", "http://127.0.0.1:9100")
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// A client that sends slowly is cut off, with its header or with its body.
func TestSlowSender(t *testing.T) {
	const soon = 100 * time.Millisecond // a busy machine may take longer for what is not slow
	for name, c := range map[string]struct {
		cfg  Config
		text string
	}{
		"header": {Config{HeaderTimeout: soon}, "X-Slow: "},
		"body": {
			Config{HeaderTimeout: patience, BodyTimeout: soon},
			"Content-Type: application/json\r\nContent-Length: 100\r\nAuthorization: Bearer " + token(t, PermRead).Reveal() + "\r\n\r\n{",
		},
	} {
		t.Run(name, func(t *testing.T) {
			addr := serve(t, newFakeNode(), c.cfg)
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if _, err := io.WriteString(conn, "POST /rpc/v1 HTTP/1.1\r\nHost: "+addr+"\r\n"+c.text); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			answer, err := io.ReadAll(conn)
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				t.Fatal("still open")
			}
			if name == "body" && !bytes.Contains(answer, []byte("408")) {
				t.Errorf("answer %q", answer)
			}
		})
	}
}

// The deadline of the body must not end a call that waits for events.
func TestLongPollOutlivesTheBodyDeadline(t *testing.T) {
	node := newFakeNode()
	const body = 500 * time.Millisecond // a busy machine has the whole call within it
	addr := serve(t, node, Config{BodyTimeout: body})
	c := dial(t, addr, token(t, PermRead))
	time.AfterFunc(2*body, func() {
		node.events.Append(time.Now(), "cheque_sent", testPeer, map[string]any{"serial": 1})
	})
	batch, err := c.EventsSince(t.Context(), 0, 10_000)
	if err != nil || len(batch.Events) != 1 || batch.Events[0].Kind != "cheque_sent" {
		t.Fatalf("%+v %v", batch, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if batch, err = c.EventsSince(ctx, batch.Cursor, 100); err != nil || len(batch.Events) != 0 {
		t.Errorf("%+v %v", batch, err)
	}
}

func TestShutdownEndsCallsThatWait(t *testing.T) {
	l, err := Listen("127.0.0.1:0", "")
	if err != nil {
		t.Fatal(err)
	}
	node := newFakeNode()
	s, err := NewServer(node, testKey, Config{})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }() // ends with Shutdown
	c := dial(t, l.Addr().String(), token(t, PermRead))
	answered := make(chan error, 1)
	go func() { // ends with the answer
		_, err := c.EventsSince(context.Background(), 0, 60_000)
		answered <- err
	}()
	<-node.polling
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	select {
	case <-answered:
	case <-time.After(patience):
		t.Error("the caller still waits")
	}
}

// Every method is refused to a token without its permission and let through to
// one that has no other.
func TestPermissionOfEachMethod(t *testing.T) {
	node := newFakeNode()
	addr := serve(t, node, Config{})
	checkPermissions(t, Methods, func(tok Secret) any { return *dial(t, addr, tok) })
	checkPermissions(t, LotusMethods, func(tok Secret) any { return *dialLotus(t, addr, tok) })
	none := dial(t, addr, token(t))
	if _, err := none.Status(t.Context()); Explain(err).Code != CodePermission {
		t.Errorf("a token that grants nothing: %v", err)
	}
}

func checkPermissions(t *testing.T, list []Method, dial func(tok Secret) any) {
	t.Helper()
	for _, p := range AllPerms {
		client := reflect.ValueOf(dial(token(t, p)))
		for _, m := range list {
			fn := client.FieldByName(m.Name)
			args := []reflect.Value{reflect.ValueOf(t.Context())}
			for i := 1; i < fn.Type().NumIn(); i++ {
				v := reflect.New(fn.Type().In(i)).Elem()
				switch v.Type() {
				case reflect.TypeFor[string]():
					v.SetString(testPeer)
				case reflect.TypeFor[StoreQuery]():
					v.FieldByName("PageSize").SetInt(1)
				case reflect.TypeFor[big.Int]():
					v.Set(reflect.ValueOf(big.Zero()))
				}
				args = append(args, v)
			}
			out := fn.Call(args)
			err, _ := out[len(out)-1].Interface().(error)
			var e *Error
			refused := errors.As(err, &e) && e.Code == CodePermission
			if refused != (p != m.Perm) {
				t.Errorf("%s with %s: %v", m.Name, p, err)
			}
			if refused && !strings.Contains(e.Message, string(m.Perm)) {
				t.Errorf("%s: the error does not name the permission: %v", m.Name, err)
			}
		}
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	node := newFakeNode()
	c := dial(t, serve(t, node, Config{}), token(t, AllPerms...))
	node.fail = NewError(CodeOverThreshold, "debt 101 is over 100").WithRemedy("wait")
	_, err := c.Settle(t.Context(), testPeer)
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeOverThreshold || e.Message != "debt 101 is over 100" || e.Remedy != "wait" {
		t.Errorf("%#v", err)
	}
	node.fail = fmt.Errorf("settle: %w", NewError(CodeBlocked, "until noon"))
	if _, err = c.Settle(t.Context(), testPeer); Explain(err).Code != CodeBlocked || err.Error() != "settle: until noon" {
		t.Errorf("%#v", err)
	}
	node.fail = errors.New("plain")
	if _, err = c.Settle(t.Context(), testPeer); Explain(err).Code != CodeFailed || Explain(err).Message != "plain" {
		t.Errorf("%#v", err)
	}
	node.fail = nil
	for name, call := range map[string]func() error{
		"bad_peer":     func() error { _, err := c.Settle(t.Context(), "bob"); return err },
		"bad_address":  func() error { _, err := c.PeerConnect(t.Context(), "/ip4/127.0.0.1/tcp/1"); return err },
		"bad_argument": func() error { _, err := c.StoreQuery(t.Context(), testPeer, StoreQuery{PageSize: 101}); return err },
	} {
		if err := call(); Explain(err).Code.Name() != name || Explain(err).Remedy == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	gone := dial(t, "127.0.0.1:1", token(t))
	if _, err := gone.ID(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
	wrong := dial(t, serve(t, node, Config{}), NewSecret("nonsense"))
	_, err = wrong.ID(t.Context())
	if errors.Is(err, ErrUnreachable) || !strings.Contains(Explain(err).Message, "401") || !strings.Contains(Explain(err).Remedy, "token") {
		t.Errorf("wrong token: %v", err)
	}
}

func TestPanicOfTheNodeIsAnError(t *testing.T) {
	c := dial(t, serve(t, struct{ Node }{}, Config{}), token(t, PermRead))
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("no error")
	}
	if _, err := c.Status(t.Context()); errors.Is(err, ErrUnreachable) {
		t.Error("the server is gone")
	}
}

func TestEmptyListsAreNotNull(t *testing.T) {
	addr := serve(t, newFakeNode(), Config{})
	r, _ := http.NewRequest("POST", "http://"+addr+Path, nil)
	setBody(r, `{"jsonrpc":"2.0","id":1,"method":"Tally.Cheques","params":[""]}`)
	r.Header.Set("Authorization", "Bearer "+token(t, PermRead).Reveal())
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var got struct{ Result json.RawMessage }
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || string(got.Result) != "[]" {
		t.Errorf("%s %v", got.Result, err)
	}
}

func TestTooManyCalls(t *testing.T) {
	node := newFakeNode()
	addr := serve(t, node, Config{})
	c := dial(t, addr, token(t, PermRead))
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for range maxWaiting {
		wg.Go(func() { _, _ = c.EventsSince(ctx, 0, 60_000) }) // ends with cancel
	}
	for range maxWaiting {
		<-node.polling
	}
	if _, err := c.EventsSince(t.Context(), 0, 0); Explain(err).Code != CodeBusy {
		t.Errorf("waiting is not bounded: %v", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("those that wait take the slots of those that work: %v", err)
	}
	cancel()
	wg.Wait()
}

func TestWeakKeyIsRefused(t *testing.T) {
	if _, err := NewServer(newFakeNode(), NewSecret("short"), Config{}); err == nil {
		t.Error("accepted")
	}
	if _, err := VerifyToken(Secret{}, "x"); err == nil {
		t.Error("accepted")
	}
	if _, err := IssueToken(testKey, time.Now(), "root"); err == nil {
		t.Error("a permission that does not exist was granted")
	}
}
