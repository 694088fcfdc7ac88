package host_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/compat"
	"github.com/tallystick/tally/paystream/compat/bridge"
	"github.com/tallystick/tally/paystream/compat/btp"
	"github.com/tallystick/tally/paystream/compat/endpoint"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/swap"
)

// bridged returns the settings of a node with a bridge, whose tabs and accounts hold
// a payment of some hundred thousand units.
func bridged() host.Config {
	p := swap.DefaultPolicy()
	p.PaymentThreshold, p.DisconnectThreshold = 1_000_000, 1_250_000
	p.MaxPeerThreshold, p.MaxDebt, p.MaxExposure = 10_000_000, 10_000_000, 10_000_000
	p.MaxExposureTotal, p.StrangersExposure = 100_000_000, 100_000_000
	return host.Config{
		Policy: p,
		Bridge: &host.BridgeConfig{Listen: "127.0.0.1:0", PointerListen: "127.0.0.1:0", Limits: bridge.Limits{Credit: 500_000, Debt: 500_000}},
	}
}

func (w *wayfarer) bridge() *host.Bridge {
	w.t.Helper()
	b, err := w.Bridge()
	must(w.t, err)
	return b
}

// guest is a client of a bridge: a BTP connection with endpoints behind it.
type guest struct {
	t      *testing.T
	name   string
	token  btp.Token
	ws     *websocket.Conn
	config ilp.Config
	stream *endpoint.Stream
	psk2   *endpoint.PSK2

	mu      sync.Mutex // guards the fields below, and writes
	next    uint32
	pending map[uint32]chan *btp.Frame
	booked  map[envelope.Mark]tally.Amount
	hold    chan struct{} // while open, what comes is not answered
	came    chan *ilp.Prepare
}

// join adds a client to a node and connects it.
func (w *wayfarer) join(name string) *guest {
	w.t.Helper()
	b := w.bridge()
	token, err := b.AddClient(name, b.Limits())
	must(w.t, err)
	return w.connect(name, token)
}

func (w *wayfarer) connect(name string, token btp.Token) *guest {
	w.t.Helper()
	url := w.bridge().ClientURL(name, "x")
	ws, resp, err := websocket.DefaultDialer.Dial("ws://"+url[len("btp+ws://"+name+":x@"):]+"/", nil)
	must(w.t, err)
	must(w.t, resp.Body.Close())
	g := &guest{
		t: w.t, name: name, token: token, ws: ws, next: 10, pending: make(map[uint32]chan *btp.Frame),
		booked: make(map[envelope.Mark]tally.Amount), came: make(chan *ilp.Prepare, 64),
	}
	done := make(chan struct{})
	go func() { // ends with the connection
		defer close(done)
		g.read()
	}()
	w.t.Cleanup(func() {
		_ = ws.Close()
		<-done
	})
	if f := g.ask(btp.Auth{RequestID: 1, Username: name, Token: token}.Frame()); f == nil || f.Type != btp.TypeResponse {
		w.t.Fatalf("not let in: %+v", f)
	}
	reply, ok := g.Prepare(w.t.Context(), ilp.ConfigRequest(time.Now().Add(time.Minute))).(*ilp.Fulfil)
	if !ok {
		w.t.Fatal("no configuration")
	}
	g.config, err = ilp.DecodeConfig(reply.Data)
	must(w.t, err)
	receive := func(id envelope.Mark, n tally.Amount) error {
		g.mu.Lock()
		defer g.mu.Unlock()
		if _, twice := g.booked[id]; twice {
			return errors.New("booked before")
		}
		g.booked[id] = n
		return nil
	}
	g.stream, err = endpoint.NewStream(endpoint.StreamConfig{
		Address: g.config.Address + ".s", Secret: envelope.Secret{1}, AssetCode: "x", Via: g, ReceiveMax: 1 << 40,
		Receive: func(_ context.Context, m endpoint.StreamMoney) error { return receive(m.ID, m.Amount) },
	})
	must(w.t, err)
	g.psk2, err = endpoint.NewPSK2(endpoint.PSK2Config{
		Address: g.config.Address + ".p", Secret: envelope.Secret{2}, Via: g,
		Receive: func(_ context.Context, q endpoint.PSK2Request) ([]byte, error) {
			if q.Probe {
				return nil, nil
			}
			return q.Data, receive(q.ID, q.Amount)
		},
	})
	must(w.t, err)
	return g
}

func (g *guest) read() {
	for {
		_, raw, err := g.ws.ReadMessage()
		if err != nil {
			g.mu.Lock()
			for id, answer := range g.pending {
				close(answer)
				delete(g.pending, id)
			}
			g.mu.Unlock()
			return
		}
		f, err := btp.Decode(raw)
		if err != nil {
			g.t.Error(err)
			return
		}
		if f.Type != btp.TypeMessage {
			g.mu.Lock()
			if answer := g.pending[f.RequestID]; answer != nil {
				answer <- f
				delete(g.pending, f.RequestID)
			}
			g.mu.Unlock()
			continue
		}
		packet, _ := f.Entry("ilp")
		p, err := ilp.DecodePrepare(packet)
		if err != nil {
			g.t.Error(err)
			return
		}
		g.mu.Lock()
		hold := g.hold
		g.mu.Unlock()
		if hold != nil {
			g.came <- p
			go func() { // ends when the test lets go
				<-hold
				g.answer(f.RequestID, p)
			}()
			continue
		}
		g.answer(f.RequestID, p)
	}
}

// answer gives a packet to the endpoint behind the address.
func (g *guest) answer(id uint32, p *ilp.Prepare) {
	var to compat.Handler = g.stream
	if _, ok := p.Destination.Under(g.config.Address + ".p"); ok {
		to = g.psk2
	}
	b, err := to.Prepare(context.Background(), p).Append(nil)
	if err != nil {
		g.t.Error(err)
		return
	}
	g.write(&btp.Frame{Type: btp.TypeResponse, RequestID: id, Entries: []btp.Entry{btp.ILP(b)}})
}

func (g *guest) write(f *btp.Frame) {
	b, err := f.Append(nil)
	if err != nil {
		g.t.Error(err)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_ = g.ws.WriteMessage(websocket.BinaryMessage, b) // a connection that ended is seen by the reader
}

// ask sends a message and waits for the answer; nil where the connection ends first.
func (g *guest) ask(f *btp.Frame) *btp.Frame {
	answer := make(chan *btp.Frame, 1)
	g.mu.Lock()
	g.pending[f.RequestID] = answer
	g.mu.Unlock()
	g.write(f)
	return <-answer
}

// Prepare implements compat.Handler: what the endpoints send goes to the bridge.
func (g *guest) Prepare(_ context.Context, p *ilp.Prepare) ilp.Reply {
	b, err := p.Append(nil)
	if err != nil {
		return &ilp.Reject{Code: ilp.CodeBadRequest}
	}
	g.mu.Lock()
	g.next++
	id := g.next
	g.mu.Unlock()
	f := g.ask(&btp.Frame{Type: btp.TypeMessage, RequestID: id, Entries: []btp.Entry{btp.ILP(b)}})
	if f == nil {
		return &ilp.Reject{Code: ilp.CodePeerUnreachable}
	}
	packet, _ := f.Entry("ilp")
	reply, err := ilp.DecodeReply(packet)
	if err != nil {
		g.t.Error(err)
		return &ilp.Reject{Code: ilp.CodeInternal}
	}
	return reply
}

func (g *guest) received() (sum tally.Amount) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range g.booked {
		sum += n
	}
	return sum
}

// wantClient checks what a client owes a node.
func (w *wayfarer) wantClient(name string, owes tally.Balance) {
	w.t.Helper()
	c, err := w.bridge().Client(name)
	if err != nil || c.Balance() != owes {
		w.t.Fatalf("%s owes %d, want %d (%+v): %v", name, c.Balance(), owes, c, err)
	}
	must(w.t, w.bridge().Check())
}

// newBridgeRoad is a row of bridged nodes, with ways from each to each.
func newBridgeRoad(ctx context.Context, t *testing.T, nodes int, fee tally.Amount) (r road) {
	t.Helper()
	ways := make([]map[peer.ID]peer.ID, nodes)
	for i := range nodes {
		ways[i] = make(map[peer.ID]peer.ID)
		cfg := bridged()
		cfg.Packets = &host.PacketsConfig{Rules: forward.Rules{FeeBase: fee}, Routes: ways[i]}
		r = append(r, newWayfarer(t, cfg))
	}
	for i := range nodes {
		for j := range nodes {
			switch {
			case j > i+1:
				ways[i][r[j].id()] = r[i+1].id()
			case j < i-1:
				ways[i][r[j].id()] = r[i-1].id()
			}
		}
	}
	for i := 1; i < nodes; i++ {
		r[i-1].meet(ctx, r[i])
	}
	return r
}

// sumOfAll is what all tabs and accounts together say of a road: fees are in it, with
// their sign, so that it is zero.
func (r road) sumOfAll(ctx context.Context) (sum tally.Balance) {
	for _, w := range r {
		sum += w.net(ctx)
	}
	return sum
}

// TestBridgeClients: a client of one node pays a client of another over a node
// between them, by STREAM and by PSK2. Each node that a packet passes keeps a fee.
func TestBridgeClients(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r := newBridgeRoad(ctx, t, 3, 1)
	a, c := r[0], r[2]
	alice, bob := a.join("alice"), c.join("bob")
	if alice.config.Address != ilp.Address("private.tally.tally."+a.id().String()+".c.alice") || alice.config.AssetScale != 9 || alice.config.AssetCode != "karma" {
		t.Fatalf("%+v", alice.config)
	}
	to, err := bob.psk2.Open()
	must(t, err)
	res, err := alice.psk2.Request(ctx, to, 1000, 997, []byte("hi"))
	if err != nil || !res.Fulfilled || res.Delivered != 997 || string(res.Data) != "hi" {
		t.Fatalf("%+v %v", res, err)
	}
	if to, err = bob.stream.Open(); err != nil {
		t.Fatal(err)
	}
	conn, err := alice.stream.Dial(to)
	must(t, err)
	sent, err := conn.Send(ctx, 200_000, endpoint.SendOptions{MaxPacket: 100_000})
	if err != nil || sent.Sent != 200_000 || sent.Delivered != 200_000-3*tally.Amount(sent.Packets) {
		t.Fatalf("%+v %v", sent, err)
	}
	arrived := tally.Balance(997 + sent.Delivered)
	a.wantClient("alice", 201_000)
	c.wantClient("bob", -arrived)
	if got := bob.received(); got != tally.Amount(arrived) {
		t.Fatalf("bob has %d, want %d", got, arrived)
	}
	// Of what alice owes and bob is owed the nodes keep the difference.
	if a.net(ctx)+201_000 != tally.Balance(1+sent.Packets) || c.net(ctx)-arrived != tally.Balance(1+sent.Packets) || r.sumOfAll(ctx) != 0 {
		t.Fatal(a.net(ctx), r[1].net(ctx), c.net(ctx))
	}
}

// TestBridgeOneNode: two clients of one node, and a client and an endpoint of it.
func TestBridgeOneNode(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	a := newBridgeRoad(ctx, t, 1, 2)[0]
	alice, bob := a.join("alice"), a.join("bob")
	to, err := bob.psk2.Open()
	must(t, err)
	if res, err := alice.psk2.Request(ctx, to, 500, 498, nil); err != nil || res.Delivered != 498 {
		t.Fatalf("%+v %v", res, err)
	}
	a.wantClient("alice", 500)
	a.wantClient("bob", -498)
	if to, _, err = a.bridge().IssueFor(paystream.Grant{Use: paystream.UsePush, Max: at(1000)}); err != nil {
		t.Fatal(err)
	}
	conn, err := bob.stream.Dial(to)
	must(t, err)
	if sent, err := conn.Send(ctx, 700, endpoint.SendOptions{}); err != nil || sent.Delivered != 698 {
		t.Fatalf("%+v %v", sent, err)
	}
	a.wantClient("bob", 202)
}

// TestBridgeEndpoints: a client of one node pays endpoints of another, over STREAM
// (suite 2) and PSK2 (suite 3), and no more than the token takes, all payers together.
func TestBridgeEndpoints(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r := newBridgeRoad(ctx, t, 3, 0)
	a, c := r[0], r[2]
	alice := a.join("alice")
	grant := paystream.Grant{Use: paystream.UseInvoice, Min: at(40_000), Max: at(40_000)}
	to, err := c.bridge().Issue(bridge.KindStream, grant)
	must(t, err)
	conn, err := alice.stream.Dial(to)
	must(t, err)
	if sent, err := conn.Send(ctx, 40_000, endpoint.SendOptions{MaxPacket: 9_000}); err != nil || sent.Delivered != 40_000 {
		t.Fatalf("%+v %v", sent, err)
	}
	if to, err = c.bridge().Issue(bridge.KindPSK2, grant); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if res, err := alice.psk2.Request(ctx, to, 20_000, 20_000, nil); err != nil || res.Delivered != 20_000 {
			t.Fatalf("%+v %v", res, err)
		}
	}
	if res, err := alice.psk2.Request(ctx, to, 1, 1, nil); err != nil || res.Fulfilled || res.Code != ilp.CodeApplication {
		t.Fatalf("an invoice takes more than its amount: %+v %v", res, err)
	}
	a.wantClient("alice", 80_000)
	if c.net(ctx) != 80_000 || r.sumOfAll(ctx) != 0 {
		t.Fatal(c.net(ctx))
	}
	must(t, c.bridge().Check())
}

// TestBridgeBounds: what a client may owe, what a tab has room for, and amounts that
// nothing holds.
func TestBridgeBounds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r := newBridgeRoad(ctx, t, 2, 0)
	alice, bob := r[0].join("alice"), r[1].join("bob")
	to, err := bob.psk2.Open()
	must(t, err)
	ask := func(n tally.Amount) *ilp.Reject {
		t.Helper()
		p := &ilp.Prepare{Amount: n, ExpiresAt: time.Now().Add(20 * time.Second), Destination: to.Address}
		j, ok := alice.Prepare(ctx, p).(*ilp.Reject)
		if !ok {
			t.Fatal("a packet without an envelope is fulfilled")
		}
		return j
	}
	wantRoom := func(j *ilp.Reject, code ilp.Code, most tally.Amount) {
		t.Helper()
		if l, err := ilp.DecodeTooLarge(j.Data); j.Code != code || err != nil || l.Maximum != most {
			t.Fatalf("%+v (%+v %v), want %s with %d", j, l, err, code, most)
		}
	}
	wantRoom(ask(500_001), ilp.CodeAmountTooLarge, 500_000) // alice's credit
	if j := ask(1 << 63); j.Code != ilp.CodeInvalidAmount {
		t.Fatalf("%+v", j)
	}
	if res, err := alice.psk2.Request(ctx, to, 500_000, 500_000, nil); err != nil || !res.Fulfilled {
		t.Fatalf("%+v %v", res, err)
	}
	if j := ask(1); j.Code != ilp.CodeInsufficientLiquidity {
		t.Fatalf("%+v", j)
	}
	// She pays; now bob's account is full.
	if c, err := r[0].bridge().Paid("alice", 500_000, 0); err != nil || c.Balance() != 0 {
		t.Fatal(c, err)
	}
	if j := ask(1); j.Code != ilp.CodeInsufficientLiquidity || j.TriggeredBy != r[1].bridge().Address() {
		t.Fatalf("%+v", j)
	}
	// With more credit than the tab of the hop has: the headroom is named, and the
	// packet is not turned into another kind.
	if _, err := r[0].bridge().SetLimits("alice", bridge.Limits{Credit: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	if j := ask(1 << 40); j.Code != ilp.CodeAmountTooLarge && j.Code != ilp.CodeInsufficientLiquidity || len(j.Data) != 16 {
		t.Fatalf("%+v", j)
	}
	if err := r[0].bridge().RemoveClient("alice"); err != nil {
		t.Fatal(err)
	}
	if err := r[1].bridge().RemoveClient("bob"); !errors.Is(err, bridge.ErrNotEven) {
		t.Fatal(err)
	}
}

// restart ends a node and starts it anew on its host and its books.
func (w *wayfarer) restart(ctx context.Context, neighbours ...*wayfarer) {
	w.t.Helper()
	must(w.t, w.Close())
	for _, n := range neighbours {
		must(w.t, w.libp2p.Network().ClosePeer(n.id()))
	}
	var err error
	w.Node, err = host.New(w.libp2p, w.cfg)
	must(w.t, err)
	for _, n := range neighbours {
		w.meet(ctx, n)
	}
}

// TestBridgeRestart: a node stops while a client's packet is on the way, and a second
// one is given up. After the restart the first is decided: the client owes what its
// payee has, once, and is shown that it was told otherwise. Until then the envelope is
// refused when it comes back: a hop would otherwise be paid with the client's own
// packet.
func TestBridgeRestart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r := newBridgeRoad(ctx, t, 3, 0)
	a, c := r[0], r[2]
	alice, bob := a.join("alice"), c.join("bob")
	to, err := bob.psk2.Open()
	must(t, err)
	let := make(chan struct{})
	bob.mu.Lock()
	bob.hold = let
	bob.mu.Unlock()
	told := make(chan endpoint.PSK2Result, 1)
	go func() { // ends with the connection of alice
		res, _ := alice.psk2.Request(ctx, to, 1000, 1000, []byte("hi"))
		told <- res
	}()
	var p *ilp.Prepare
	select {
	case p = <-bob.came:
	case <-ctx.Done():
		t.Fatal("the packet does not arrive")
	}
	a.restart(ctx, r[1])
	if res := <-told; res.Fulfilled {
		t.Fatalf("%+v", res)
	}
	a.wantClient("alice", 0)
	alice = a.connect("alice", alice.token) // the token is known by its hash
	row := clientOf(t, a, "alice")
	if sending, _ := row.InFlight(); sending != 1000 {
		t.Fatalf("%d on the way after the restart, want 1000", sending)
	}

	back := &ilp.Prepare{
		Amount: 990, ExpiresAt: time.Now().Add(10 * time.Second), Condition: p.Condition, Data: p.Data,
		Destination: alice.config.Address + ".p.x",
	}
	if j, ok := bob.Prepare(ctx, back).(*ilp.Reject); !ok || j.Code != ilp.CodeApplication || j.TriggeredBy != a.bridge().Address() {
		t.Fatalf("a reflected packet: %+v", j)
	}

	close(let)
	until(ctx, t, "the packet is decided", func() bool { return clientOf(t, a, "alice").Sent > 0 })
	if got := clientOf(t, a, "alice"); got.Sent != 1000 || got.Late != 1000 || got.Balance() != 1000 {
		t.Fatalf("%+v", got)
	}
	a.restart(ctx, r[1])
	a.wantClient("alice", 1000)
	c.wantClient("bob", -1000)
	if r.sumOfAll(ctx) != 0 {
		t.Fatal(a.net(ctx), c.net(ctx))
	}
}

// until waits for what other goroutines bring about.
func until(ctx context.Context, t *testing.T, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("not yet: %s", what)
		}
	}
}

func clientOf(t *testing.T, w *wayfarer, name string) bridge.ClientRow {
	t.Helper()
	c, err := w.bridge().Client(name)
	must(t, err)
	return c
}
