//go:build interop

package btpws_test

import (
	"context"
	"encoding/hex"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/tallystick/tally/interop/js/jsilp"
	"github.com/tallystick/tally/paystream/compat"
	"github.com/tallystick/tally/paystream/compat/btp"
	"github.com/tallystick/tally/paystream/compat/btpws"
	"github.com/tallystick/tally/paystream/compat/endpoint"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
)

// TestInterop runs stock JavaScript clients (ilp-plugin-btp, ilp-protocol-psk2,
// ilp-protocol-stream) against the bridge: they pay each other through it, pay
// our endpoints, and are paid by them. It needs node, npm and the npm registry.
func TestInterop(t *testing.T) {
	dir := jsilp.Install(t)
	b := newBridge(t)

	t.Run("JavaScript pays JavaScript, STREAM", func(t *testing.T) {
		payee := jsilp.Start(t, dir, b.url("bob"), "stream-receive", "10000000")
		at := payee.Next()
		if at["asset"] != "FIL" || at["scale"] != 9.0 {
			t.Fatalf("ILDCP: %v", at)
		}
		payer := jsilp.Start(t, dir, b.url("alice"), "stream-send", at["address"].(string), at["secret"].(string), "2500000")
		sent := payer.End()
		got := payee.Stop()
		t.Log("payer", sent, "payee", got)
		if sent["sent"] != "2500000" || sent["delivered"] != "2500000" || got["received"] != "2500000" {
			t.Fatal(sent, got)
		}
		b.want(t, "alice", -2500000)
		b.want(t, "bob", 2500000)
	})

	t.Run("JavaScript pays JavaScript, PSK2", func(t *testing.T) {
		payee := jsilp.Start(t, dir, b.url("bob"), "psk2-receive")
		at := payee.Next()
		payer := jsilp.Start(t, dir, b.url("alice"), "psk2-send", at["address"].(string), at["secret"].(string), "1000", "5")
		sent := payer.End()
		got := payee.Stop()
		t.Log("payer", sent, "payee", got)
		wantPSK2(t, sent, "got hi")
		if got["received"] != "5000" {
			t.Fatal(got)
		}
		b.want(t, "alice", -5000)
		b.want(t, "bob", 5000)
	})

	t.Run("JavaScript pays our STREAM endpoint", func(t *testing.T) {
		to, err := b.stream.Open()
		if err != nil {
			t.Fatal(err)
		}
		sent := jsilp.Start(t, dir, b.url("alice"), "stream-send", string(to.Address), hex.EncodeToString(to.Secret[:]), "750000").End()
		t.Log("payer", sent)
		if sent["sent"] != "750000" || sent["delivered"] != "750000" || sent["asset"] != "FIL" || sent["scale"] != 9.0 {
			t.Fatal(sent)
		}
		b.want(t, "stream", 750000)
		b.want(t, "alice", -750000)
	})

	t.Run("JavaScript pays our PSK2 endpoint", func(t *testing.T) {
		to, err := b.psk2.Open()
		if err != nil {
			t.Fatal(err)
		}
		sent := jsilp.Start(t, dir, b.url("alice"), "psk2-send", string(to.Address), hex.EncodeToString(to.Secret[:]), "1000", "7").End()
		t.Log("payer", sent)
		if sent["delivered"] != "7000" || sent["answer"] != "thanks for hi" || sent["too_little"] != "F99" || sent["arrived"] != "1000" || sent["probe"] != "1000" || sent["probe_code"] != "F05" {
			t.Fatal(sent)
		}
		b.want(t, "psk2", 7000)
		b.want(t, "alice", -7000)
	})

	t.Run("our STREAM endpoint pays JavaScript", func(t *testing.T) {
		payee := jsilp.Start(t, dir, b.url("bob"), "stream-receive", "10000000")
		at := payee.Next()
		conn, err := b.stream.Dial(peerOf(t, at))
		if err != nil {
			t.Fatal(err)
		}
		sent, err := conn.Send(t.Context(), 123456, endpoint.SendOptions{MaxPacket: 50000})
		if err != nil || sent.Sent != 123456 || sent.Delivered != 123456 {
			t.Fatalf("%+v %v", sent, err)
		}
		conn.Close(t.Context())
		got := payee.Stop()
		t.Log("sent", sent, "payee", got)
		if got["received"] != "123456" {
			t.Fatal(got)
		}
		b.want(t, "bob", 123456)
		b.want(t, "stream", -123456)
	})

	t.Run("our PSK2 endpoint pays JavaScript", func(t *testing.T) {
		payee := jsilp.Start(t, dir, b.url("bob"), "psk2-receive")
		to := peerOf(t, payee.Next())
		probe, err := b.psk2.Probe(t.Context(), to, 1000, nil)
		if err != nil || probe.Fulfilled || !probe.Authentic || probe.Delivered != 1000 || probe.Code != ilp.CodeWrongCondition {
			t.Fatalf("%+v %v", probe, err)
		}
		res, err := b.psk2.Request(t.Context(), to, 4321, 4321, []byte("it"))
		if err != nil || !res.Fulfilled || res.Delivered != 4321 || string(res.Data) != "got it" {
			t.Fatalf("%+v %v", res, err)
		}
		got := payee.Stop()
		t.Log("sent", res.Delivered, "payee", got)
		if got["received"] != "4321" {
			t.Fatal(got)
		}
		b.want(t, "bob", 4321)
		b.want(t, "psk2", -4321)
	})
}

func wantPSK2(t *testing.T, sent map[string]any, answer string) {
	t.Helper()
	if sent["delivered"] != "5000" || sent["answer"] != answer || sent["too_little"] != "F99" || sent["probe"] != "1000" || sent["probe_code"] != "F05" {
		t.Fatal(sent)
	}
}

func peerOf(t *testing.T, at map[string]any) endpoint.Peer {
	t.Helper()
	secret, err := hex.DecodeString(at["secret"].(string))
	if err != nil || len(secret) != envelope.SecretSize {
		t.Fatal(at, err)
	}
	address, err := ilp.ParseAddress(at["address"].(string))
	if err != nil {
		t.Fatal(err)
	}
	return endpoint.Peer{Address: address, Secret: envelope.Secret(secret)}
}

// bridge is a node with two bridged clients and two endpoints, which moves packets
// between them and counts.
type bridge struct {
	server *btpws.Server
	http   *httptest.Server
	stream *endpoint.Stream
	psk2   *endpoint.PSK2

	mu       sync.Mutex
	balances map[string]int64
	booked   map[envelope.Mark]bool
}

const base = ilp.Address("test.tally")

func newBridge(t *testing.T) *bridge {
	t.Helper()
	b := &bridge{balances: make(map[string]int64), booked: make(map[envelope.Mark]bool)}
	var clients []btpws.Client
	for _, name := range []string{"alice", "bob"} {
		clients = append(clients, btpws.Client{
			Name: name, Token: token(name).Hash(),
			Config: ilp.Config{Address: base + ilp.Address("."+name), AssetScale: 9, AssetCode: "FIL"},
		})
	}
	var err error
	b.server, err = btpws.New(btpws.Config{
		Clients: clients, Address: base,
		Serve: func(c btpws.Client) compat.Handler { return b.from(c.Name) },
	})
	if err != nil {
		t.Fatal(err)
	}
	b.stream, err = endpoint.NewStream(endpoint.StreamConfig{
		Address: base + ".stream", Secret: envelope.Secret{1}, AssetCode: "FIL", AssetScale: 9,
		Via: b.from("stream"), ReceiveMax: 1 << 40,
		Receive: func(_ context.Context, m endpoint.StreamMoney) error { return b.book(m.ID) },
	})
	if err != nil {
		t.Fatal(err)
	}
	b.psk2, err = endpoint.NewPSK2(endpoint.PSK2Config{
		Address: base + ".psk2", Secret: envelope.Secret{2}, Via: b.from("psk2"),
		Receive: func(_ context.Context, q endpoint.PSK2Request) ([]byte, error) {
			if q.Probe {
				return nil, nil
			}
			return []byte("thanks for " + string(q.Data)), b.book(q.ID)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.http = httptest.NewServer(b.server)
	t.Cleanup(func() {
		b.server.Close()
		b.http.Close()
	})
	return b
}

func token(name string) btp.Token { return btp.Token("token-of-client-" + name) }

func (b *bridge) url(name string) string {
	return "btp+ws://" + name + ":" + string(token(name)) + "@" + strings.TrimPrefix(b.http.URL, "http://")
}

// from returns what takes the packets of a party: it finds the destination's
// party, and moves the amount when the packet is fulfilled.
func (b *bridge) from(name string) compat.Handler {
	return compat.HandlerFunc(func(ctx context.Context, p *ilp.Prepare) ilp.Reply {
		rest, ok := p.Destination.Under(base)
		to, _, _ := strings.Cut(rest, ".")
		var h compat.Handler
		switch {
		case !ok:
		case to == "alice" || to == "bob":
			h = b.server.Client(to)
		case to == "stream":
			h = b.stream
		case to == "psk2":
			h = b.psk2
		}
		if h == nil {
			return &ilp.Reject{Code: ilp.CodeUnreachable, TriggeredBy: base}
		}
		reply := h.Prepare(ctx, p)
		if _, ok := reply.(*ilp.Fulfil); ok {
			b.mu.Lock()
			b.balances[name] -= int64(p.Amount)
			b.balances[to] += int64(p.Amount)
			b.mu.Unlock()
		}
		return reply
	})
}

func (b *bridge) book(id envelope.Mark) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.booked[id] {
		return os.ErrExist
	}
	b.booked[id] = true
	return nil
}

// want checks a party's balance and clears it.
func (b *bridge) want(t *testing.T, name string, balance int64) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.balances[name] != balance {
		t.Errorf("%s has %d, want %d", name, b.balances[name], balance)
	}
	delete(b.balances, name)
}
