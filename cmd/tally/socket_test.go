package main

import (
	"context"
	"os"
	"testing"

	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/testnet"
)

// Payer, hop and payee are processes, and one of them is killed while a deposit is
// pushed and again while it is given back. The socket goes on by itself, both ends
// reach their final balances, and the books of each two neighbours agree.
func TestKillUnderASocket(t *testing.T) {
	const amount = 2000 // twenty times the payment threshold
	for victim, name := range []string{"payer", "hop", "payee"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			w := &town{t: t, ctx: ctx, dir: t.TempDir(), bin: os.Getenv(binaryEnv)}
			if w.bin == "" {
				w.bin = os.Args[0]
			}
			var all []*testnet.Process
			ids := make([]string, 3)
			ready := func(i int) (r struct {
				PeerID string   `json:"peer_id"`
				Addrs  []string `json:"addrs"`
			},
			) {
				w.must(all[i].Ready(&r))
				return r
			}
			for i, n := range []string{"payer", "hop", "payee"} {
				w.tally(n, "init")
				all = append(all, w.process(n, "start", "--rpc", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0"))
				ids[i] = ready(i).PeerID
			}
			w.payer, w.payee = all[0], all[2]
			meet := func() {
				for i := range 2 {
					call(w, all[i], func(c *rpc.Client) (rpc.PeerRow, error) { return c.PeerConnect(ctx, ready(i + 1).Addrs[0]) })
				}
			}
			meet()
			uri := call(w, all[2], func(c *rpc.Client) (rpc.URIRow, error) {
				return c.URICreate(ctx, "deposit", rpc.URIOptions{Amount: amount})
			})
			row := call(w, all[0], func(c *rpc.Client) (rpc.SocketRow, error) {
				return c.SocketOpen(ctx, uri.URI, rpc.SocketOptions{Min: "-2000", Max: "-2000", Via: ids[1:2], Refunds: true})
			})
			status := func() rpc.SocketRow {
				return call(w, all[0], func(c *rpc.Client) (rpc.SocketRow, error) { return c.SocketStatus(ctx, row.ID) })
			}
			var last, peerSide any
			defer func() {
				if t.Failed() {
					t.Logf("at the payer %+v, at the payee %+v", last, peerSide)
				}
			}()
			limits := func(at rpc.Limit) {
				call(w, all[0], func(c *rpc.Client) (rpc.SocketRow, error) { return c.SocketLimits(ctx, row.ID, at, at) })
			}
			for _, turn := range []struct {
				to   rpc.Limit
				want int64
			}{{"-2000", -amount}, {"0", 0}} {
				limits(turn.to)
				before := status().Balance
				w.until("money moves", func() bool {
					last = turn
					peerSide = status()
					return status().Balance != before || before == turn.want
				})
				w.must(all[victim].Kill())
				w.must(all[victim].Start(ctx))
				meet()
				w.until("the balance is reached", func() bool {
					r := status()
					last = r
					peerSide = call(w, all[2], func(c *rpc.Client) ([]rpc.SocketRow, error) { return c.SocketList(ctx) })
					return r.Balance == turn.want
				})
			}
			for i := range 2 {
				w.until("the books agree", func() bool {
					one := call(w, all[i], func(c *rpc.Client) ([]rpc.BalanceRow, error) { return c.Balances(ctx, ids[i+1]) })
					other := call(w, all[i+1], func(c *rpc.Client) ([]rpc.BalanceRow, error) { return c.Balances(ctx, ids[i]) })
					return one[0].Balance == -other[0].Balance && one[0].Served == other[0].Consumed && one[0].Consumed == other[0].Served &&
						one[0].Served == one[0].Consumed // what went there came back
				})
			}
		})
	}
}
