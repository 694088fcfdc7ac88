package paystream_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/paystreamtest"
)

// TestHopPlaysEverythingAgain is attacks 1, 2 and 3 on live endpoints: the hop
// sends each packet it has seen, of money and of asking, again and again, to both
// sides. The final balances are those of an honest way.
func TestHopPlaysEverythingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(1)
		a, b := start(t, net, 1, nil, nil), start(t, net, 2, nil, nil)
		defer a.Close()
		defer b.Close()
		var mu sync.Mutex
		type recording struct {
			paystream.Incoming
			at time.Time
		}
		var seen []recording
		stolen := 0
		tamper := func(in *paystream.Incoming) *paystream.Answer {
			mu.Lock()
			if len(seen) < 300 {
				r := recording{Incoming: *in, at: time.Now()}
				r.Data = bytes.Clone(in.Data)
				seen = append(seen, r)
			}
			list := append([]recording(nil), seen...)
			mu.Unlock()
			for i, r := range list {
				if time.Since(r.at) < 20*time.Millisecond {
					continue // it may not have arrived itself yet
				}
				old := r.Incoming
				old.ID = paystream.PacketID{byte(i), 0xff}
				for _, p := range []*party{a, b} {
					if d := p.Packet(&old); d.Fulfil {
						mu.Lock()
						stolen++
						mu.Unlock()
					}
				}
			}
			return nil
		}
		// 5000 there and 3000 back are 27 packets at least.
		way := paystreamtest.Way{Delay: time.Millisecond, Most: 300, Tamper: tamper}
		net.SetWay(a.id, b.id, way)
		net.SetWay(b.id, a.id, way)
		u, err := b.Issue(paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: at(5000), Refunds: true})
		if err != nil {
			t.Fatal(err)
		}
		client, err := a.Dial(t.Context(), u, nil, paystream.Terms{Min: at(-5000), Max: at(-5000), Refunds: true})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := client.WaitBalance(ctx, -5000); err != nil {
			t.Fatal(err)
		}
		if err := client.SetLimits(at(-2000), at(-2000)); err != nil {
			t.Fatal(err)
		}
		if err := client.WaitBalance(ctx, -2000); err != nil {
			t.Fatal(err, client.Report())
		}
		time.Sleep(2 * time.Second) // bubble: what is in flight lands
		mu.Lock()
		defer mu.Unlock()
		if len(seen) < 20 {
			t.Fatalf("only %d packets were seen", len(seen))
		}
		if got := b.server(t).Report().Balance; got != 2000 || stolen != 0 {
			t.Fatalf("server has %d, %d packets were fulfilled twice", got, stolen)
		}
	})
}

// TestLostOpen is attack 4: the first packets die, and the peer still learns the
// way back. The weakened variant sends Open once: here its repeats die as well.
func TestLostOpen(t *testing.T) {
	for name, dies := range map[string]func(n int) bool{
		"ours":     func(n int) bool { return n <= 3 },
		"weakened": func(int) bool { return true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := paystreamtest.NewNet(1)
				a, b := start(t, net, 1, nil, nil), start(t, net, 2, nil, nil)
				defer a.Close()
				defer b.Close()
				opens := 0
				net.SetWay(a.id, b.id, paystreamtest.Way{Tamper: func(in *paystream.Incoming) *paystream.Answer {
					if h, err := paystream.ParseHeader(in.Data); err == nil && h.Receiver == (paystream.SessionID{}) {
						if opens++; dies(opens) {
							return &paystream.Answer{ID: in.ID}
						}
					}
					return nil
				}})
				u := issue(t, b, paystream.Grant{Use: paystream.UseGift, Min: at(-500), Max: at(-500)})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				client, err := a.Dial(ctx, u, nil, paystream.Terms{Max: paystream.NoMax})
				if name == "weakened" {
					if err == nil {
						t.Fatal("the weakened variant did not fall for it")
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := client.WaitBalance(ctx, 500); err != nil {
					t.Fatal(err, client.Report())
				}
				if opens < 4 {
					t.Fatalf("%d opens", opens)
				}
			})
		})
	}
}

// TestGiftOverRestart is attack 11 on live endpoints: two redeem one gift at once,
// and a third after the giver was killed. The weakened variant keeps budgets in
// memory: here the restart loses their records.
func TestGiftOverRestart(t *testing.T) {
	for _, weakened := range []bool{false, true} {
		t.Run(fmt.Sprintf("weakened=%v", weakened), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				total := redeemGift(t, weakened)
				if weakened && total <= 10_000 {
					t.Fatal("the weakened variant did not fall for it")
				}
				if !weakened && total != 10_000 {
					t.Fatalf("a gift of 10000 paid %d", total)
				}
			})
		})
	}
}

func redeemGift(t *testing.T, forget bool) (total tally.Balance) {
	net := paystreamtest.NewNet(1)
	store := durabletest.NewMemCrash()
	giver := start(t, net, 9, store.Store, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	u := issue(t, giver, paystream.Grant{Use: paystream.UseGift, Min: at(-10_000), Max: at(-10_000)})
	redeem := func(seeds ...byte) {
		var conns []*paystream.Conn
		for _, seed := range seeds {
			p := start(t, net, seed, nil, nil)
			defer p.Close()
			for _, w := range [][2]*party{{p, giver}, {giver, p}} {
				net.SetWay(w[0].id, w[1].id, paystreamtest.Way{Delay: 3 * time.Millisecond, Most: 300})
			}
			c, err := p.Dial(ctx, u, nil, paystream.Terms{Max: paystream.NoMax})
			if err != nil {
				if !errors.Is(err, paystream.ErrSpent) {
					t.Fatal(err)
				}
				continue
			}
			conns = append(conns, c)
		}
		time.Sleep(15 * time.Second) // bubble: all has moved that will
		for _, c := range conns {
			total += c.Report().Balance
		}
	}
	redeem(1, 2)
	giver.node.Stop()
	giver.Close()
	clone := store.Clone()
	store.Close()
	if forget {
		all, err := durabletest.Records(t.Context(), clone.Store)
		if err != nil {
			t.Fatal(err)
		}
		var b durable.Batch
		for key := range all {
			if strings.HasPrefix(key, "/paystream/budget/") || strings.HasPrefix(key, "/paystream/socket/") {
				b.Delete(key)
			}
		}
		if err := clone.Commit(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
	}
	giver = start(t, net, 9, clone.Store, nil)
	redeem(3)
	giver.Close()
	clone.Close()
	return total
}

// TestSingleUseToken: a second live socket is refused.
func TestSingleUseToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(1)
		a, b, c := start(t, net, 1, nil, nil), start(t, net, 2, nil, nil), start(t, net, 3, nil, nil)
		defer a.Close()
		defer b.Close()
		defer c.Close()
		u, err := b.Issue(paystream.Grant{Use: paystream.UseGift, Min: at(-500), Max: at(-500), SingleUse: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Dial(t.Context(), u, nil, paystream.Terms{Max: paystream.NoMax}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Dial(t.Context(), u, nil, paystream.Terms{Max: paystream.NoMax}); !errors.Is(err, paystream.ErrSpent) {
			t.Fatal(err)
		}
	})
}

// TestDrainByRefund is attack 7: a connector takes little on the way out and much
// on the way back.
func TestDrainByRefund(t *testing.T) {
	for name, loss := range map[string]uint32{"ours": 0, "weakened": 10_000} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := paystreamtest.NewNet(1)
				a, b := start(t, net, 1, nil, nil), start(t, net, 2, nil, nil)
				defer a.Close()
				defer b.Close()
				net.SetWay(a.id, b.id, paystreamtest.Way{Delay: time.Millisecond, Most: 1000})
				net.SetWay(b.id, a.id, paystreamtest.Way{Delay: time.Millisecond, Most: 1000, Rate: paystream.Ratio{Num: 1, Den: 2}})
				u, err := b.Issue(paystream.Grant{Use: paystream.UsePush, Min: at(0), Max: at(50_000), Refunds: true})
				if err != nil {
					t.Fatal(err)
				}
				client, err := a.Dial(t.Context(), u, nil, paystream.Terms{Min: at(-50_000), Max: at(-50_000), Refunds: true, MaxLoss: loss})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := client.WaitBalance(ctx, -50_000); err != nil {
					t.Fatal(err)
				}
				if err := client.SetLimits(at(0), at(0)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(30 * time.Second) // bubble: the server gives up after 10 s
				lost := -(client.Report().Balance + b.server(t).Report().Balance)
				if name == "weakened" {
					if lost < 20_000 {
						t.Fatalf("the weakened variant lost only %d", lost)
					}
					return
				}
				r := client.Report()
				if lost != 0 || !r.SettledShort || r.Thin == 0 {
					t.Fatalf("lost %d; %+v", lost, r)
				}
				if err := b.server(t).Err(); !errors.Is(err, paystream.ErrStalled) && !errors.Is(err, paystream.ErrAllRejected) {
					t.Fatalf("the server still tries: %v", err)
				}
			})
		})
	}
}

// floodEnv sets how many opens TestHalfOpenSockets makes: 1000000 takes a minute.
const floodEnv = "TALLY_FLOOD"

// TestHalfOpenSockets is attack 9: opens that do not authenticate leave nothing.
// Memory grows by 64 MiB at most, and an honest payer beside them succeeds. The
// weakened variant keeps a socket for each of them until it authenticates.
func TestHalfOpenSockets(t *testing.T) {
	floods := 30_000
	if s := os.Getenv(floodEnv); s != "" {
		var err error
		if floods, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	net := paystreamtest.NewNet(1)
	a, b := start(t, net, 1, nil, nil), start(t, net, 2, nil, nil)
	defer a.Close()
	defer b.Close()
	net.SetWay(a.id, b.id, paystreamtest.Way{Most: 100})
	u, foreign := issue(t, b, pushGrant), issue(t, a, pushGrant)
	client, err := a.Dial(t.Context(), u, nil, paystream.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	// Opens under a secret that the token has not, and under a token that the
	// server has not made.
	s, err := paystream.NewSession(paystream.Secret{1}, paystream.KDFShared, paystream.SocketID{1}, paystream.RoleClient, paystream.SessionID{1})
	if err != nil {
		t.Fatal(err)
	}
	env, err := s.Seal(nil, paystream.KindPrepare, []byte{8, 1})
	if err != nil {
		t.Fatal(err)
	}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	if err := client.Pay(50_000); err != nil {
		t.Fatal(err)
	}
	var grown int64
	for i := range floods {
		binary.BigEndian.PutUint32(env[4:], uint32(i))  // socket
		binary.BigEndian.PutUint32(env[20:], uint32(i)) // session
		token := u.Token[:]
		if i%2 == 1 {
			token = foreign.Token[:]
		}
		if d := b.Packet(&paystream.Incoming{From: a.id, Token: token, Amount: 1, Data: env, Expires: time.Now().Add(time.Minute)}); d.Fulfil || d.Data != nil {
			t.Fatal("a stranger was answered")
		}
		if i%(floods/10) == 0 {
			grown = max(grown, heap()-before)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := client.WaitBalance(ctx, -50_000); err != nil {
		t.Fatalf("the honest payer: %v; %+v", err, client.Report())
	}
	grown = max(grown, heap()-before)
	if t.Logf("%d opens, at most %d KiB more in use", floods, grown>>10); grown > 64<<20 || len(b.Sockets()) != 1 {
		t.Fatalf("%d bytes and %d sockets are kept", grown, len(b.Sockets()))
	}
	const some = 2000
	type half struct {
		*paystream.Session
		*paystream.Socket
		*paystream.Control
	}
	kept := make([]half, some)
	before = heap()
	for i := range kept {
		h := &kept[i]
		if h.Session, err = paystream.NewSession(paystream.Secret{1}, paystream.KDFShared, paystream.SocketID{byte(i)}, paystream.RoleServer, paystream.SessionID{1}); err != nil {
			t.Fatal(err)
		}
		if h.Socket, err = paystream.NewSocket(paystream.Terms{}); err != nil {
			t.Fatal(err)
		}
		h.Control = paystream.NewControl(0)
	}
	if each := (heap() - before) / some; each*1_000_000 <= 64<<20 {
		t.Fatalf("the weakened variant keeps only %d bytes for each", each)
	}
	runtime.KeepAlive(kept)
}

func TestProposalsAndReceipts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := paystreamtest.NewNet(1)
		asked := 0
		a := start(t, net, 1, nil, nil)
		b := start(t, net, 2, nil, func(c *paystream.Config) {
			c.Proposed = func(_ *paystream.Conn, p paystream.Proposal) bool {
				asked++
				return p.MaxDelta == 101
			}
		})
		defer a.Close()
		defer b.Close()
		net.SetWay(a.id, b.id, paystreamtest.Way{Delay: 5 * time.Millisecond, Loss: 0.3})
		u, err := b.Issue(paystream.Grant{Use: paystream.UsePush, Max: paystream.NoMax})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
		defer cancel()
		client, err := a.Dial(ctx, u, nil, paystream.Terms{Min: at(-700), Max: at(-700)})
		if err != nil {
			t.Fatal(err)
		}
		if err := client.WaitBalance(ctx, -700); err != nil {
			t.Fatal(err)
		}
		low, high := b.server(t).Report().Min, b.server(t).Report().Max
		for _, delta := range []int64{101, 102} {
			ok, err := client.Propose(ctx, paystream.Proposal{MaxDelta: delta, Memo: "for tea"})
			if err != nil || ok != (delta == 101) {
				t.Fatal(delta, ok, err)
			}
		}
		if asked != 2 {
			t.Fatalf("the hook was asked %d times for 2 proposals", asked)
		}
		if r := b.server(t).Report(); r.Min != low || r.Max != high {
			t.Fatal("a proposal moved limits (R8)")
		}
		r, err := client.Receipt(ctx)
		if err != nil || r.Total != 700 || r.Payee != b.id {
			t.Fatal(r, err)
		}
	})
}

// BenchmarkEndpoints is two endpoints with a way of no time between them, in
// memory mode.
func BenchmarkEndpoints(b *testing.B) {
	net := paystreamtest.NewNet(1)
	a, z := start(b, net, 1, nil, nil), start(b, net, 2, nil, nil)
	defer a.Close()
	defer z.Close()
	way := paystreamtest.Way{Most: 1000}
	net.SetWay(a.id, z.id, way)
	u, err := z.Issue(paystream.Grant{Use: paystream.UsePush, Max: paystream.NoMax})
	if err != nil {
		b.Fatal(err)
	}
	client, err := a.Dial(b.Context(), u, nil, paystream.Terms{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	if err := client.Pay(tally.Amount(b.N) * 1000); err != nil {
		b.Fatal(err)
	}
	if err := client.WaitBalance(b.Context(), -tally.Balance(b.N)*1000); err != nil {
		b.Fatal(err, client.Report())
	}
}
