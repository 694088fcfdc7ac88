package paystream_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/paystreamtest"
)

func TestMain(m *testing.M) {
	slog.SetDefault(quiet) // the disks that tests break say so
	goleak.VerifyTestMain(m)
}

func keyOf(t testing.TB, seed byte) (crypto.PrivKey, peer.ID) {
	t.Helper()
	raw := ed25519.NewKeyFromSeed(append(make([]byte, 31), seed))
	key, err := crypto.UnmarshalEd25519PrivateKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, id
}

// party is one node of a test.
type party struct {
	*paystream.Endpoint
	id     peer.ID
	node   *paystreamtest.Node
	mu     sync.Mutex
	opened []*paystream.Conn
}

var quiet = slog.New(slog.DiscardHandler)

func start(t testing.TB, net *paystreamtest.Net, seed byte, store *durable.Store, change func(*paystream.Config)) *party {
	t.Helper()
	key, id := keyOf(t, seed)
	p := &party{id: id}
	cfg := paystream.Config{
		Self: id, Key: paystream.ServerKey{seed}, Store: store, Memory: store == nil, Sign: key.Sign, Logger: quiet,
		Opened: func(c *paystream.Conn) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.opened = append(p.opened, c)
		},
	}
	if change != nil {
		change(&cfg)
	}
	e, err := paystream.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.Endpoint = e
	p.node = net.Join(id, e, store)
	e.Start(p.node)
	if err := p.node.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *party) server(t testing.TB) *paystream.Conn {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.opened) == 0 {
		t.Fatal("no socket was opened here")
	}
	return p.opened[len(p.opened)-1]
}

func at(n int64) paystream.Limit { return paystream.At(tally.Balance(n)) }

type move struct {
	server    bool
	low, high paystream.Limit
}

const worth = 100_000

// TestUseCasesOverACarrier is the table of docs/protocol/paystream.md between two
// endpoints, over a way with delay, and over one that loses packets and lets them
// overtake each other.
func TestUseCasesOverACarrier(t *testing.T) {
	for _, c := range []struct {
		name  string
		terms paystream.Terms
		grant paystream.Grant
		then  []move
		want  [2]tally.Balance
	}{
		{"push", paystream.Terms{Min: at(-worth), Max: at(-worth)}, paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: paystream.NoMax}, nil, [2]tally.Balance{-worth, worth}},
		{
			"push refunded",
			paystream.Terms{Min: at(-worth), Max: at(-worth), Refunds: true},
			paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: at(worth), Refunds: true},
			[]move{{false, at(0), at(0)}},
			[2]tally.Balance{0, 0},
		},
		{"invoice", paystream.Terms{Min: at(-worth), Max: at(0)}, paystream.Grant{Use: paystream.UseInvoice, Min: at(worth), Max: at(worth)}, nil, [2]tally.Balance{-worth, worth}},
		{"voucher", paystream.Terms{Min: at(worth), Max: at(worth)}, paystream.Grant{Use: paystream.UseVoucher, Min: at(-worth), Max: at(0)}, nil, [2]tally.Balance{worth, -worth}},
		{"gift code", paystream.Terms{Min: at(0), Max: paystream.NoMax}, paystream.Grant{Use: paystream.UseGift, Min: at(-worth), Max: at(-worth), SingleUse: true}, nil, [2]tally.Balance{worth, -worth}},
		{
			"job",
			paystream.Terms{Min: at(-worth), Max: at(0)},
			paystream.Grant{Use: paystream.UseJob, Min: at(0), Max: paystream.NoMax},
			[]move{{true, at(500), at(500)}, {true, at(70_000), at(70_000)}},
			[2]tally.Balance{-70_000, 70_000},
		},
		{"http call", paystream.Terms{Min: at(250), Max: at(250)}, paystream.Grant{Use: paystream.UseVoucher, Min: at(-worth), Max: at(0)}, nil, [2]tally.Balance{250, -250}},
		{"deposit", paystream.Terms{Min: at(-worth), Max: at(-worth), Refunds: true}, paystream.Grant{Use: paystream.UseAccount, Min: at(-500), Max: paystream.NoMax, Refunds: true}, nil, [2]tally.Balance{-worth, worth}},
		{"withdraw", paystream.Terms{Min: at(300), Max: at(300), Refunds: true}, paystream.Grant{Use: paystream.UseAccount, Min: at(-500), Max: paystream.NoMax, Refunds: true}, nil, [2]tally.Balance{300, -300}},
		{"mandate", paystream.Terms{Min: at(333), Max: at(333)}, paystream.Grant{Use: paystream.UseMandate, Min: at(-1000), Max: at(0), Period: 86400}, nil, [2]tally.Balance{333, -333}},
		{
			"prepaid session",
			paystream.Terms{Min: at(-worth), Max: at(-worth), Refunds: true},
			paystream.Grant{Use: paystream.UsePrepaid, Min: at(0), Max: at(worth), Refunds: true},
			[]move{{false, at(-worth), at(0)}, {true, at(40_000), at(40_000)}},
			[2]tally.Balance{-40_000, 40_000},
		},
	} {
		for name, way := range map[string]paystreamtest.Way{
			"even":  {Delay: 10 * time.Millisecond},
			"rough": {Delay: 10 * time.Millisecond, Jitter: 30 * time.Millisecond, Loss: 0.1, Most: 9000},
		} {
			for _, disk := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/disk=%v", c.name, name, disk), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						net := paystreamtest.NewNet(7)
						var stores [2]*durable.Store
						if disk {
							stores = [2]*durable.Store{durabletest.NewMem(), durabletest.NewMem()}
							defer stores[0].Close()
							defer stores[1].Close()
						}
						a, b := start(t, net, 1, stores[0], nil), start(t, net, 2, stores[1], nil)
						defer a.Close()
						defer b.Close()
						net.SetWay(a.id, b.id, way)
						net.SetWay(b.id, a.id, way)
						u, err := b.Issue(c.grant)
						if err != nil {
							t.Fatal(err)
						}
						ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
						defer cancel()
						client, err := a.Dial(ctx, u, nil, c.terms)
						if err != nil {
							t.Fatal(err)
						}
						server := b.server(t)
						rest := func() {
							t.Helper()
							if err := client.WaitSettled(ctx); err != nil {
								t.Fatalf("client: %v; %+v\n%+v", err, client.Report(), server.Report())
							}
							time.Sleep(2 * time.Second) // bubble: what is in flight lands
						}
						rest()
						for _, m := range c.then {
							end := client
							if m.server {
								end = server
							}
							if err := end.SetLimits(m.low, m.high); err != nil {
								t.Fatal(err)
							}
							time.Sleep(2 * time.Second) // bubble: the peer hears it
							rest()
						}
						got := [2]tally.Balance{client.Report().Balance, server.Report().Balance}
						if got != c.want {
							t.Fatalf("%d, want %d\n%+v\n%+v", got, c.want, client.Report(), server.Report())
						}
						if !client.Settled() || !server.Settled() || net.Kept() != 0 {
							t.Fatalf("not settled\n%+v\n%+v", client.Report(), server.Report())
						}
					})
				})
			}
		}
	}
}
