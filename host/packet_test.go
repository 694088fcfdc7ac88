package host_test

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	libhost "github.com/libp2p/go-libp2p/core/host"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/protocols/packetnet"
	"github.com/tallystick/tally/protocols/swapnet"
	"github.com/tallystick/tally/swap"
)

// packetNode is a whole node as far as packets need one, on a disk that can lose
// power.
type packetNode struct {
	t       *testing.T
	key     crypto.PrivKey
	disk    *durabletest.Crash
	handler forward.Handler
	orphans chan forward.Result
	rules   forward.Rules

	host   libhost.Host
	book   *swap.Book
	swap   *swapnet.Service
	engine *forward.Engine
	packet *packetnet.Service
}

func newPacketNode(t *testing.T, h forward.Handler, rules forward.Rules) *packetNode {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n := &packetNode{t: t, key: key, disk: durabletest.NewCrash(), handler: h, rules: rules, orphans: make(chan forward.Result, 8)}
	n.start()
	t.Cleanup(n.stop)
	return n
}

func (n *packetNode) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *packetNode) start() {
	n.t.Helper()
	ctx := context.Background()
	var err error
	n.host, err = libp2p.New(libp2p.Identity(n.key), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()), libp2p.Security(noise.ID, noise.New),
		libp2p.DisableRelay(), libp2p.DisableMetrics())
	n.must(err)
	quiet := slog.New(slog.DiscardHandler)
	n.book, err = swap.Open(ctx, n.disk.Store, swap.Config{Key: n.key, Realm: swap.Realm{Network: "test"}, Logger: quiet})
	n.must(err)
	n.swap, err = swapnet.New(n.host, n.book, swapnet.Config{})
	n.must(err)
	n.book.Bind(n.swap)
	n.engine, err = forward.New(ctx, forward.Config{
		Self: n.host.ID(), Rules: n.rules, Tabs: host.PacketTabs(n.book, true), Store: n.disk.Store, Handler: n.handler,
		Orphan: func(r *forward.Result) func(*durable.Batch) {
			n.orphans <- *r
			return nil
		},
	})
	n.must(err)
	n.packet, err = packetnet.New(n.host, n.engine, packetnet.Config{Rules: n.rules})
	n.must(err)
	n.engine.Start(n.packet)
	n.must(errors.Join(n.swap.Start(), n.packet.Start()))
}

// stop ends the process; a broken disk may complain.
func (n *packetNode) stop() {
	_ = n.packet.Close()
	_ = n.engine.Close()
	_ = n.swap.Close()
	_ = n.host.Close()
	_ = n.book.Close()
	_ = n.disk.Close()
}

// crash ends the process without a word, and starts it on what its disk kept.
func (n *packetNode) crash() {
	kept := n.disk.Clone()
	n.stop()
	n.disk = kept
	n.start()
}

func (n *packetNode) id() peer.ID { return n.host.ID() }

func (n *packetNode) meet(with *packetNode) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n.must(n.host.Connect(ctx, peer.AddrInfo{ID: with.id(), Addrs: with.host.Addrs()}))
	n.must(n.book.WaitSession(ctx, with.id()))
	n.must(with.book.WaitSession(ctx, n.id()))
	for _, e := range [][2]*packetNode{{n, with}, {with, n}} {
		for {
			if _, ok := e[0].packet.Info(e[1].id()); ok {
				break
			}
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
				n.t.Fatal("no packet session")
			}
		}
	}
}

func (n *packetNode) balance(with *packetNode) tally.Balance {
	n.t.Helper()
	row, err := n.book.Row(with.id())
	n.must(err)
	return row.Balance
}

// earned is the balance and what settlements have moved of it: a settlement in
// the background does not change it.
func (n *packetNode) earned(with *packetNode) tally.Balance {
	n.t.Helper()
	row, err := n.book.Row(with.id())
	n.must(err)
	return row.Balance + tally.Balance(row.Received) - tally.Balance(row.Paid)
}

// gate is an endpoint that lets packets wait, or fulfils them at once.
type gate struct {
	wait    atomic.Bool
	waiting chan forward.Delivery
}

func secretOf(part forward.PartID) (p tally.Preimage) { copy(p[:], part[:]); return p }

func (g *gate) Packet(d *forward.Delivery) (forward.Decision, bool) {
	if g.wait.Load() {
		g.waiting <- *d
		return forward.Decision{}, false
	}
	return forward.Decision{Fulfil: true, Preimage: secretOf(d.Part), Data: []byte("thanks")}, true
}

func packetTo(dest *packetNode, via *packetNode, amount tally.Amount) *forward.Packet {
	p := &forward.Packet{Dest: dest.id(), Amount: amount, Expires: time.Now().Add(30 * time.Second), Data: []byte("hello")}
	_, _ = rand.Read(p.Part[:])
	p.Condition = forward.Blake2b(secretOf(p.Part).Hashlock())
	if via != nil {
		p.Via = []peer.ID{via.id()}
	}
	return p
}

// inFlight sends a packet and returns once it waits at the payee. A settlement may
// still be making room for it. Nobody is told of it in this life of the payer.
func inFlight(ctx context.Context, t *testing.T, g *gate, payer *packetNode, p *forward.Packet) forward.Delivery {
	t.Helper()
	for {
		var arrived atomic.Bool
		rejected := make(chan forward.Code, 1)
		err := payer.engine.Send(p, func(r *forward.Result) {
			if arrived.Load() {
				t.Error("the payer lost power, and is told all the same")
			}
			rejected <- r.Code
		})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case d := <-g.waiting:
			arrived.Store(true)
			return d
		case code := <-rejected:
			if code != forward.CodeHeadroom {
				t.Fatalf("rejected: %v", code)
			}
		case <-ctx.Done():
			t.Fatal("the packet does not arrive")
		}
		_, _ = rand.Read(p.Part[:])
		p.Condition = forward.Blake2b(secretOf(p.Part).Hashlock())
	}
}

// Packets over two hops on real tabs: they are booked on all three nodes, a
// headroom that is missing is named and settled, and when the hop loses power
// with a packet in flight the payment ends as if nothing had been.
func TestPacketsOverTwoHops(t *testing.T) {
	g := &gate{waiting: make(chan forward.Delivery, 8)}
	payer := newPacketNode(t, nil, forward.Rules{})
	hop := newPacketNode(t, nil, forward.Rules{FeeBase: 1})
	payee := newPacketNode(t, g, forward.Rules{})
	payer.meet(hop)
	hop.meet(payee)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	res, err := payer.engine.SendWait(ctx, packetTo(payee, hop, 30))
	if err != nil || string(res.Data) != "thanks" {
		t.Fatalf("%v, %+v", err, res)
	}
	for _, b := range []struct{ got, want tally.Balance }{
		{payer.balance(hop), -30}, {hop.balance(payer), 30}, {hop.balance(payee), -29}, {payee.balance(hop), 29},
	} {
		if b.got != b.want {
			t.Fatalf("balance %d, want %d", b.got, b.want)
		}
	}
	var rejected *forward.RejectError
	if _, err = payer.engine.SendWait(ctx, packetTo(payee, hop, 120)); !errors.As(err, &rejected) || rejected.Code != forward.CodeHeadroom || rejected.Headroom != 95 {
		t.Fatalf("%v, want a headroom of 95", err)
	}
	for { // the settlement that the refusal began makes room
		if _, err = payer.engine.SendWait(ctx, packetTo(payee, hop, 90)); err == nil {
			break
		}
		if !errors.As(err, &rejected) || rejected.Code != forward.CodeHeadroom {
			t.Fatal(err)
		}
	}

	before := payee.earned(hop)
	g.wait.Store(true)
	d := inFlight(ctx, t, g, payer, packetTo(payee, hop, 20))
	payer.crash()
	hop.crash()
	payer.meet(hop)
	hop.meet(payee)
	if err := payee.engine.Decide(d.From, d.ID, &forward.Decision{Fulfil: true, Preimage: secretOf(d.Part)}, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-payer.orphans:
		if !r.Fulfilled || r.Part != d.Part {
			t.Fatalf("after the restart: %+v", r)
		}
	case <-ctx.Done():
		t.Fatal("the payer is not told after its restart")
	}
	if got := payee.earned(hop); got != before+19 || hop.earned(payee) != -got {
		t.Fatalf("payee has earned %d, hop %d, before %d", got, hop.earned(payee), before)
	}
	if a, b := payer.earned(hop), hop.earned(payer); a != -b {
		t.Fatalf("payer %d, hop %d", a, b)
	}
}
