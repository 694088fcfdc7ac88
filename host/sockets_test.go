package host_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
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
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/protocols/socketnet"
)

// patience is how long a test waits for what has to happen. Nothing waits for it to
// pass.
const patience = 3 * time.Minute

// wayfarer is a whole node as an embedder runs it: its host, and its books in a
// folder.
type wayfarer struct {
	*host.Node
	t      *testing.T
	libp2p libhost.Host
	opened chan *paystream.Conn
	cfg    host.Config
}

func newWayfarer(t *testing.T, cfg host.Config) *wayfarer {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(libp2p.Identity(key), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()), libp2p.Security(noise.ID, noise.New),
		libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	w := &wayfarer{t: t, libp2p: h, opened: make(chan *paystream.Conn, 8)}
	cfg.Dir, cfg.Logger = t.TempDir(), slog.New(slog.DiscardHandler)
	if cfg.Sockets == nil {
		cfg.Sockets = &host.SocketsConfig{PushMax: 1 << 40}
	}
	cfg.Sockets.Opened = func(c *paystream.Conn) { w.opened <- c }
	w.cfg = cfg
	if w.Node, err = host.New(h, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(w.Close(), h.Close()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *wayfarer) id() peer.ID { return w.libp2p.ID() }

func (w *wayfarer) sockets() *host.Sockets {
	w.t.Helper()
	s, err := w.Sockets()
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *wayfarer) meet(ctx context.Context, with *wayfarer) {
	w.t.Helper()
	if err := w.libp2p.Connect(ctx, peer.AddrInfo{ID: with.id(), Addrs: with.libp2p.Addrs()}); err != nil {
		w.t.Fatal(err)
	}
	for _, e := range [][2]*wayfarer{{w, with}, {with, w}} {
		if err := e[0].WaitNeighbour(ctx, e[1].id()); err != nil {
			w.t.Fatal(err)
		}
	}
}

// net is what a node has on all its tabs: the sum over all nodes is zero.
func (w *wayfarer) net(ctx context.Context) (sum tally.Balance) {
	w.t.Helper()
	rows, err := w.Book().Rows(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range rows {
		// What was paid by cheque has left the balance, not the totals.
		sum += tally.Balance(rows[i].Served) - tally.Balance(rows[i].Consumed)
	}
	return sum
}

// road is a row of nodes, each a neighbour of the next.
type road []*wayfarer

func newRoad(ctx context.Context, t *testing.T, between int, fee tally.Amount) (r road) {
	for i := range between + 2 {
		w := newWayfarer(t, host.Config{Packets: &host.PacketsConfig{Rules: forward.Rules{FeeBase: fee}}})
		if r = append(r, w); i > 0 {
			r[i-1].meet(ctx, w)
		}
	}
	return r
}

func (r road) first() *wayfarer { return r[0] }
func (r road) last() *wayfarer  { return r[len(r)-1] }

func (r road) via() (via []peer.ID) {
	for _, w := range r[1 : len(r)-1] {
		via = append(via, w.id())
	}
	return via
}

// open opens a socket from the first to the last for a grant.
func (r road) open(ctx context.Context, g paystream.Grant, t paystream.Terms) (client, server *paystream.Conn) {
	tt := r.first().t
	tt.Helper()
	u, err := r.last().sockets().Issue(g)
	if err != nil {
		tt.Fatal(err)
	}
	if client, err = r.first().sockets().Redeem(ctx, u, r.via(), t); err != nil {
		tt.Fatal(err)
	}
	select {
	case server = <-r.last().opened:
	case <-ctx.Done():
		tt.Fatal("the server is not told of the socket")
	}
	if server.ID() != client.ID() {
		tt.Fatalf("opened %s, want %s", server.ID(), client.ID())
	}
	return client, server
}

// rests waits until both ends have these balances and are settled.
func rests(ctx context.Context, t *testing.T, client, server *paystream.Conn, want, wantServer tally.Balance) {
	t.Helper()
	for _, e := range []struct {
		c    *paystream.Conn
		want tally.Balance
	}{{client, want}, {server, wantServer}} {
		if err := errors.Join(e.c.WaitBalance(ctx, e.want), e.c.WaitSettled(ctx)); err != nil {
			t.Fatalf("end %d: balance %d, want %d: %v (%+v)", e.c.Role(), e.c.Report().Balance, e.want, err, e.c.Report())
		}
	}
	if b := client.Report().Balance; b != want {
		t.Fatalf("client ends with %d, want %d", b, want)
	}
}

func at(n int64) paystream.Limit { return paystream.At(tally.Balance(n)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// useCases is the table of docs/protocol/paystream.md: what each side sets, what
// happens over time, and where it ends. n passes the thresholds several times.
var useCases = []struct {
	name           string
	grant          paystream.Grant
	terms          paystream.Terms
	then           func(ctx context.Context, t *testing.T, client, server *paystream.Conn)
	client, server tally.Balance
}{
	{
		"push",
		paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: paystream.NoMax},
		paystream.Terms{Min: at(-300), Max: at(-300)},
		nil, -300, 300,
	},
	{
		"refundable push",
		paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: at(300), Refunds: true},
		paystream.Terms{Min: at(-300), Max: at(-300), Refunds: true},
		func(ctx context.Context, t *testing.T, client, server *paystream.Conn) {
			rests(ctx, t, client, server, -300, 300)
			must(t, client.SetLimits(at(0), at(0)))
		}, 0, 0,
	},
	{
		"invoice",
		paystream.Grant{Use: paystream.UseInvoice, Min: at(300), Max: at(300), SingleUse: true},
		paystream.Terms{Min: at(-300), Max: at(0)},
		nil, -300, 300,
	},
	{
		"voucher",
		paystream.Grant{Use: paystream.UseVoucher, Min: at(-300), Max: at(0)},
		paystream.Terms{Min: at(300), Max: at(300)},
		nil, 300, -300,
	},
	{
		"gift code",
		paystream.Grant{Use: paystream.UseGift, Min: at(-300), Max: at(-300), SingleUse: true},
		paystream.Terms{Min: at(0), Max: paystream.NoMax},
		nil, 300, -300,
	},
	{
		"cog",
		paystream.Grant{Use: paystream.UseJob, Min: at(0), Max: paystream.NoMax},
		paystream.Terms{Min: at(-100), Max: at(0)},
		func(ctx context.Context, t *testing.T, client, server *paystream.Conn) {
			for cost := int64(30); cost <= 120; cost += 30 { // 120 is above the budget
				must(t, server.SetLimits(at(cost), at(cost)))
				if cost <= 100 {
					must(t, server.WaitBalance(ctx, tally.Balance(cost)))
				}
			}
			must(t, server.WaitBalance(ctx, 100))
			must(t, server.SetLimits(at(100), at(100))) // the job ends where the money does
		}, -100, 100,
	},
	{
		"HTTP call",
		paystream.Grant{Use: paystream.UseVoucher, Min: at(-100), Max: at(0)},
		paystream.Terms{Min: at(7), Max: at(7)},
		nil, 7, -7,
	},
	{
		"deposit and withdraw",
		paystream.Grant{Use: paystream.UseAccount, Min: at(0), Max: paystream.NoMax, Refunds: true},
		paystream.Terms{Min: at(-200), Max: at(-200), Refunds: true},
		func(ctx context.Context, t *testing.T, client, server *paystream.Conn) {
			rests(ctx, t, client, server, -200, 200)
			must(t, client.SetLimits(at(-50), at(-50)))
		}, -50, 50,
	},
	{
		"mandate",
		paystream.Grant{Use: paystream.UseMandate, Min: at(-120), Max: at(0), Period: 3600},
		paystream.Terms{Min: at(120), Max: at(120)},
		nil, 120, -120,
	},
	{
		"prepaid session",
		paystream.Grant{Use: paystream.UsePrepaid, Min: at(0), Max: at(200), Refunds: true},
		paystream.Terms{Min: at(-200), Max: at(-200), Refunds: true},
		func(ctx context.Context, t *testing.T, client, server *paystream.Conn) {
			rests(ctx, t, client, server, -200, 200)
			must(t, client.SetLimits(at(-200), at(0))) // opened first, then the change comes
			must(t, server.SetLimits(at(130), at(130)))
		}, -130, 130,
	},
}

// Each row of the table of use cases ends in its final balances between two real
// nodes over none, one and three others, and the tabs of all nodes sum to zero.
func TestUseCases(t *testing.T) {
	for _, between := range []int{0, 1, 3} {
		t.Run(fmt.Sprintf("over %d", between), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			r := newRoad(ctx, t, between, 0)
			var moved tally.Balance
			for _, uc := range useCases {
				t.Run(uc.name, func(t *testing.T) {
					client, server := r.open(ctx, uc.grant, uc.terms)
					if uc.then != nil {
						uc.then(ctx, t, client, server)
					}
					rests(ctx, t, client, server, uc.client, uc.server)
					moved += uc.client
					client.Close()
				})
			}
			var sum tally.Balance
			for i, w := range r {
				got, want := w.net(ctx), tally.Balance(0)
				switch i {
				case 0:
					want = moved
				case len(r) - 1:
					want = -moved
				}
				if got != want {
					t.Errorf("node %d has %d on its tabs, want %d", i, got, want)
				}
				sum += got
			}
			if sum != 0 {
				t.Errorf("all tabs sum to %d", sum)
			}
		})
	}
}

// Fees are what the nodes in between keep: a refund pays them both ways, and what
// the ends lack is what those have.
func TestUseCasesWithFees(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r := newRoad(ctx, t, 1, 1)
	grant := paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: paystream.NoMax, Refunds: true}
	client, server := r.open(ctx, grant, paystream.Terms{Min: at(-100), Max: at(-100), Refunds: true, MaxLoss: 1000})
	must(t, client.WaitBalance(ctx, -100))
	must(t, client.WaitSettled(ctx))
	got := server.Report().Balance
	if got >= 100 || got < 90 {
		t.Fatalf("100 left and %d arrived", got)
	}
	if kept := r[1].net(ctx); kept != 100-got {
		t.Fatalf("the node in between has %d, the ends lack %d", kept, 100-got)
	}
	var sum tally.Balance
	for _, w := range r {
		sum += w.net(ctx)
	}
	if sum != 0 {
		t.Fatalf("all tabs sum to %d", sum)
	}
}

// Without a URI a peer gets what the node gives to anybody: pushes, and no more.
func TestOpenWithoutURI(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	payer := newWayfarer(t, host.Config{})
	payee := newWayfarer(t, host.Config{Sockets: &host.SocketsConfig{PushMax: 50}})
	closed := newWayfarer(t, host.Config{Sockets: &host.SocketsConfig{}})
	payer.meet(ctx, payee)
	payer.meet(ctx, closed)

	client, err := payer.sockets().Open(ctx, payee.id(), nil, paystream.Terms{Min: at(-40), Max: at(-40)})
	must(t, err)
	rests(ctx, t, client, <-payee.opened, -40, 40)

	_, err = payer.sockets().Open(ctx, payee.id(), nil, paystream.Terms{Min: at(-60), Max: at(-60), AllOrNothing: true})
	if !errors.Is(err, paystream.ErrIncompatible) {
		t.Fatalf("push of 60 where 50 are taken: %v", err)
	}
	<-payee.opened
	_, err = payer.sockets().Open(ctx, payee.id(), nil, paystream.Terms{Min: at(10), Max: at(10)})
	must(t, err)
	if asked := <-payee.opened; asked.Report().Min != at(0) { // nobody may pull
		t.Fatalf("a peer without a URI may have %+v", asked.Report())
	}
	if _, err := payer.sockets().Open(ctx, closed.id(), nil, paystream.Terms{}); !errors.Is(err, socketnet.ErrRefused) {
		t.Fatalf("a node that gives nothing: %v", err)
	}
	if _, err := payer.sockets().Open(ctx, payer.id(), nil, paystream.Terms{}); !errors.Is(err, host.ErrToSelf) {
		t.Fatalf("to ourselves: %v", err)
	}
}

// The key of the tokens outlives a restart, and a gift cannot be had twice.
func TestGiftOverRestart(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	must(t, err)
	dir := t.TempDir()
	start := func() (*host.Node, libhost.Host) {
		h, err := libp2p.New(libp2p.Identity(key), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
			libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()), libp2p.Security(noise.ID, noise.New),
			libp2p.DisableRelay(), libp2p.DisableMetrics())
		must(t, err)
		n, err := host.New(h, host.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler), Sockets: &host.SocketsConfig{}})
		must(t, err)
		return n, h
	}
	finder := newWayfarer(t, host.Config{})
	giver, h := start()
	meet := func() {
		// The old connection may not have heard yet that its end is gone, and one that
		// is there keeps Connect from dialling.
		must(t, finder.libp2p.Network().ClosePeer(h.ID()))
		must(t, finder.libp2p.Connect(ctx, peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}))
		must(t, errors.Join(finder.WaitNeighbour(ctx, h.ID()), giver.WaitNeighbour(ctx, finder.id())))
	}
	meet()
	sockets, err := giver.Sockets()
	must(t, err)
	grant, err := host.GrantOf(paystream.UseGift, 60, time.Now().Add(time.Hour))
	must(t, err)
	u, err := sockets.Issue(grant)
	must(t, err)
	if strings.Contains(u.String(), u.Reveal()[len(u.Reveal())-43:]) {
		t.Fatal("the secret shows")
	}
	low, high, err := host.LimitsOf(u)
	must(t, err)
	c, err := finder.sockets().Redeem(ctx, u, nil, paystream.Terms{Min: low, Max: high})
	must(t, err)
	must(t, c.WaitBalance(ctx, 60))
	must(t, c.WaitSettled(ctx))

	must(t, errors.Join(giver.Close(), h.Close()))
	giver, h = start()
	defer func() { must(t, errors.Join(giver.Close(), h.Close())) }()
	meet()
	short, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	if again, err := finder.sockets().Redeem(short, u, nil, paystream.Terms{Min: low, Max: high}); err == nil {
		t.Fatalf("the gift opens again: %+v", again.Report())
	}
	if got := finder.net(ctx); got != 60 {
		t.Fatalf("the finder has %d of a gift of 60", got)
	}
}
