package payhttp_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/payhttp"
	"github.com/tallystick/tally/paystream"
)

func newNode(t *testing.T) *host.Node {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()),
		libp2p.Security(noise.ID, noise.New), libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	n, err := host.New(h, host.Config{Dir: t.TempDir(), Sockets: &host.SocketsConfig{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(n.Close(), h.Close()); err != nil {
			t.Error(err)
		}
	})
	return n
}

// pair is a server and a caller that are neighbours.
type pair struct {
	t              *testing.T
	ctx            context.Context
	server, caller *host.Node
}

func newPair(t *testing.T) *pair {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	p := &pair{t, ctx, newNode(t), newNode(t)}
	if err := p.caller.Host().Connect(ctx, peer.AddrInfo{ID: p.server.Host().ID(), Addrs: p.server.Host().Addrs()}); err != nil {
		t.Fatal(err)
	}
	for _, e := range [][2]*host.Node{{p.server, p.caller}, {p.caller, p.server}} {
		if err := e[0].WaitNeighbour(ctx, e[1].Host().ID()); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func sockets(t *testing.T, n *host.Node) *host.Sockets {
	t.Helper()
	s, err := n.Sockets()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve runs a metered handler.
func (p *pair) serve(cfg payhttp.MeterConfig, next http.HandlerFunc) string {
	p.t.Helper()
	cfg.Sockets = sockets(p.t, p.server)
	h, err := payhttp.Meter(cfg, next)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.open(h)
}

func (p *pair) open(h http.Handler) string {
	s := httptest.NewServer(h)
	p.t.Cleanup(s.Close)
	return s.URL
}

func (p *pair) client(limit tally.Amount) *http.Client {
	p.t.Helper()
	return &http.Client{Transport: &payhttp.Payer{
		Sockets: sockets(p.t, p.caller), Limit: func(*http.Request) tally.Amount { return limit },
	}}
}

func get(ctx context.Context, c *http.Client, url string) (code int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// paid is what the caller has paid over its tab.
func (p *pair) paid() tally.Amount {
	p.t.Helper()
	row, err := p.caller.Book().Row(p.server.Host().ID())
	if err != nil {
		p.t.Fatal(err)
	}
	return row.Consumed - row.Served
}

// wantPaid waits until both sides have booked the sum.
func (p *pair) wantPaid(want tally.Amount) {
	p.t.Helper()
	for {
		row, err := p.server.Book().Row(p.caller.Host().ID())
		if err != nil {
			p.t.Fatal(err)
		}
		got := p.paid()
		if got == want && row.Served-row.Consumed == want {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-p.ctx.Done():
			p.t.Fatalf("paid %d, want %d", got, want)
		}
	}
}

func fixed(n tally.Amount) func(*http.Request) (tally.Amount, error) {
	return func(r *http.Request) (tally.Amount, error) {
		if r.URL.Path == "/free" {
			return 0, nil
		}
		return n, nil
	}
}

func TestPaysThePrice(t *testing.T) {
	p := newPair(t)
	url := p.serve(payhttp.MeterConfig{Price: fixed(30)}, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(payhttp.HeaderPay) != "" {
			t.Error("the handler sees the offer")
		}
		_, _ = w.Write([]byte("served"))
	})
	c := p.client(50)
	for range 3 {
		if code, body, err := get(p.ctx, c, url); err != nil || code != http.StatusOK || body != "served" {
			t.Fatal(code, body, err)
		}
	}
	if code, _, err := get(p.ctx, c, url+"/free"); err != nil || code != http.StatusOK {
		t.Fatal(code, err)
	}
	p.wantPaid(90)
}

func TestRefusals(t *testing.T) {
	p := newPair(t)
	url := p.serve(payhttp.MeterConfig{Price: fixed(30)}, func(http.ResponseWriter, *http.Request) { t.Error("served without pay") })
	for name, c := range map[string]*http.Client{"low": p.client(29), "none": p.client(0), "plain": http.DefaultClient} {
		code, body, err := get(p.ctx, c, url)
		var r payhttp.Refusal
		if err != nil || code != http.StatusPaymentRequired || json.Unmarshal([]byte(body), &r) != nil || r.Price != 30 || r.Reason == "" {
			t.Fatal(name, code, body, err)
		}
		if name == "low" && r.Offered != 29 {
			t.Fatal(r)
		}
	}
	p.wantPaid(0)
	// An offer that says more than its token gives is not served.
	grant, err := host.GrantOf(paystream.UseVoucher, 10, time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	u, err := sockets(t, p.caller).Issue(grant)
	if err != nil {
		t.Fatal(err)
	}
	u.Amount = 1000
	if code, body := p.with(url, u.Reveal()); code != http.StatusPaymentRequired || !strings.Contains(body, "does not give the price") {
		t.Fatal(code, body)
	}
	for _, bad := range []string{"x", "tally:x", strings.Repeat("a", 2000)} {
		if code, _ := p.with(url, bad); code != http.StatusBadRequest {
			t.Fatal(code)
		}
	}
	if got := p.paid(); got > 10 {
		t.Fatalf("paid %d, more than the token gives", got)
	}
}

// with sends a request with a header of its own.
func (p *pair) with(url, offer string) (int, string) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.ctx, http.MethodGet, url, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set(payhttp.HeaderPay, offer)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestConcurrentRequests: each of many requests at a time is paid once.
func TestConcurrentRequests(t *testing.T) {
	p := newPair(t)
	var served atomic.Int32
	url := p.serve(payhttp.MeterConfig{Price: fixed(5)}, func(http.ResponseWriter, *http.Request) { served.Add(1) })
	c := p.client(5)
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			if code, body, err := get(p.ctx, c, url); err != nil || code != http.StatusOK {
				t.Error(code, body, err)
			}
		})
	}
	wg.Wait()
	if served.Load() != 12 {
		t.Fatal(served.Load())
	}
	p.wantPaid(60)
}

// TestServerThatTakesAndDoesNotServe: it gets the limit of the one request, however
// much it asks for and however often it comes back.
func TestServerThatTakesAndDoesNotServe(t *testing.T) {
	p := newPair(t)
	offers := make(chan string, 1)
	url := p.open(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		offers <- r.Header.Get(payhttp.HeaderPay)
		http.Error(w, "ha", http.StatusInternalServerError)
	}))
	if code, _, err := get(p.ctx, p.client(40), url); err != nil || code != http.StatusInternalServerError {
		t.Fatal(code, err)
	}
	u, err := paystream.ParseURI(<-offers)
	if err != nil {
		t.Fatal(err)
	}
	thief := sockets(t, p.server)
	greedy := paystream.Terms{Min: paystream.At(4000), Max: paystream.At(4000)}
	first, err := thief.Redeem(p.ctx, u, nil, greedy)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.WaitBalance(p.ctx, 40); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(p.ctx, 5*time.Second)
	defer cancel()
	if second, err := thief.Redeem(short, u, nil, greedy); err == nil && second.Report().Received > 0 {
		t.Fatalf("took %d twice", second.Report().Received)
	}
	p.wantPaid(40)
}

// TestCallerHangsUp: a caller that goes away frees its place, and has paid its one
// request at most.
func TestCallerHangsUp(t *testing.T) {
	p := newPair(t)
	hang := make(chan context.CancelFunc, 1)
	url := p.serve(payhttp.MeterConfig{Waiting: 1, Price: func(r *http.Request) (tally.Amount, error) {
		if r.URL.Path == "/hang" {
			(<-hang)()
			<-r.Context().Done() // the server has noticed
		}
		return 20, nil
	}}, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("served")) })
	c := p.client(20)
	for range 3 {
		ctx, cancel := context.WithCancel(p.ctx)
		hang <- cancel
		if _, _, err := get(ctx, c, url+"/hang"); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	for {
		code, _, err := get(p.ctx, c, url)
		if err != nil {
			t.Fatal(err)
		}
		if code == http.StatusOK {
			break
		}
		if code != http.StatusServiceUnavailable {
			t.Fatal(code)
		}
	}
	for p.paid() < 20 { // the payee books first
		select {
		case <-time.After(5 * time.Millisecond):
		case <-p.ctx.Done():
			t.Fatalf("paid %d", p.paid())
		}
	}
	if got := p.paid(); got > 80 {
		t.Fatalf("paid %d for four requests of 20", got)
	}
}

func TestOfferStaysOffTheNetwork(t *testing.T) {
	n := newNode(t)
	payer := &payhttp.Payer{Sockets: sockets(t, n), Limit: func(*http.Request) tally.Amount { return 1 }}
	for _, url := range []string{"http://shop.example/", "http://localhost:1/", "http://192.0.2.1/"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := payer.RoundTrip(req)
		if !errors.Is(err, payhttp.ErrPlain) {
			t.Error(url, err)
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
	}
}

func TestMeterConfig(t *testing.T) {
	if _, err := payhttp.Meter(payhttp.MeterConfig{}, http.NotFoundHandler()); err == nil {
		t.Fatal("a meter without a price")
	}
}
