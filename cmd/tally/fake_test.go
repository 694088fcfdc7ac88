package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/host/rpc/rpctest"
	"github.com/tallystick/tally/testnet"
)

const bob = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"

// fakePeer is a RunningPeer with one tab and a store that answers queries with
// its own messages.
type fakePeer struct {
	id      string
	addrs   []string
	started time.Time
	events  *rpc.EventLog
	// town has the payment channels; nil on a peer without a chain.
	town    *rpctest.Town
	sockets *rpctest.Sockets
	// pays has the payments; nil but in the scripts that ask for them.
	pays   *rpctest.Payments
	bridge rpctest.Bridge
	// The holds; none but in the scripts that ask for them.
	rpctest.HoldsOf
	rpctest.LocksOf

	mu       sync.Mutex
	messages []rpc.Message
	blocked  bool
	settled  bool
}

func startFake(ctx context.Context, r *repo.Repo, opts StartOptions) (RunningPeer, error) {
	opts.Logger.Debug("fake peer starts", "rpc_key", r.RPCKey())
	f := &fakePeer{
		id: r.PeerID().String(), sockets: &rpctest.Sockets{Peer: bob}, addrs: r.Config().Listen, started: time.Now(), events: rpc.NewEventLog(time.Now()),
	}
	// FAKE_CHAIN names the file that tells a script the addresses of the chain.
	if path := os.Getenv("FAKE_CHAIN"); path != "" {
		town, err := rpctest.Open(context.WithoutCancel(ctx))
		if err != nil {
			return nil, err
		}
		f.town = town
		facts := map[string]string{"us": town.Us.String(), "them": town.Them.String(), "inbound": town.Inbound.String(), "voucher": town.Voucher}
		data, err := json.Marshal(facts)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return nil, err
		}
	}
	// FAKE_PAYMENTS names the file that tells a script of invoices and hops.
	if path := os.Getenv("FAKE_PAYMENTS"); path != "" {
		pays, err := rpctest.OpenPayments(context.WithoutCancel(ctx))
		if err != nil {
			return nil, err
		}
		f.pays = pays
		data, err := json.Marshal(map[string]string{
			"invoice": pays.Invoice, "stranger": pays.Stranger, "left": pays.Hops[0], "right": pays.Hops[1], "held": pays.Held, "partial": pays.Partial,
			"offer": pays.Offer, "key": pays.OfferKey, "sold": pays.Sold,
		})
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return nil, err
		}
	}
	// FAKE_LOCKS is the peer that we have a lock with.
	f.LockPeer = os.Getenv("FAKE_LOCKS")
	// FAKE_HOLDS names the file that tells a script of holder and payee.
	if path := os.Getenv("FAKE_HOLDS"); path != "" {
		h, err := rpctest.OpenHolds(context.WithoutCancel(ctx))
		if err != nil {
			return nil, err
		}
		f.Set(h)
		data, err := json.Marshal(map[string]string{"us": h.Us, "holder": h.Holder, "payee": h.Payee})
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *fakePeer) Payments() (*rpctest.PaymentService, error) {
	if f.pays == nil {
		return nil, rpc.NewError(rpc.CodeUnsupported, "no payments")
	}
	return f.pays.Service, nil
}

func (f *fakePeer) Addrs() []string {
	var out []string
	for _, a := range f.addrs {
		out = append(out, a+"/p2p/"+f.id)
	}
	return out
}

func (f *fakePeer) Close(ctx context.Context) error {
	if os.Getenv("FAKE_HANG") != "" {
		select {} // a peer that never stops
	}
	if f.pays != nil {
		return errors.Join(ctx.Err(), f.pays.Close())
	}
	if err := f.CloseHolds(); err != nil {
		return err
	}
	if f.town != nil {
		return errors.Join(ctx.Err(), f.town.Close())
	}
	return ctx.Err()
}

func (f *fakePeer) Failed() <-chan error {
	c := make(chan error, 1)
	if os.Getenv("FAKE_FAIL") != "" {
		c <- errors.New("no space left on device")
	}
	return c
}

func (f *fakePeer) Status(context.Context) (rpc.Status, error) {
	return rpc.Status{
		PeerID: f.id, Version: "test", Mode: "mock", Network: "tally", Asset: "karma", StartedAt: f.started,
		Connected: 1, Accounts: 1, OwedByUs: 1234, Healthy: true, Next: "settle with a peer",
		Checks: []rpc.Check{{Name: "store", State: rpc.CheckOK, Detail: "open"}, {Name: "tabs", State: rpc.CheckWarn, Detail: "one is full", Next: "settle with a peer"}},
	}, nil
}

func (f *fakePeer) ID(context.Context) (rpc.Identity, error) {
	return rpc.Identity{PeerID: f.id, Addrs: f.Addrs(), Protocols: []string{"/tally/swap/1.0.0"}, Agent: "tally/test", Network: "tally"}, nil
}

func (f *fakePeer) row() rpc.PeerRow {
	r := rpc.PeerRow{Peer: bob, Connected: !f.blocked, Direction: "outbound", Agent: "evil\x1b[2J", SwapProtocol: "/tally/swap/1.0.0", Mode: "mock", Balance: -1234, Blocked: f.blocked}
	if f.blocked {
		r.BlockedReason = "by the operator"
	}
	return r
}

func (f *fakePeer) Peers(context.Context) ([]rpc.PeerRow, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return []rpc.PeerRow{f.row()}, nil
}

func (f *fakePeer) PeerConnect(_ context.Context, addr peer.AddrInfo) (rpc.PeerRow, error) {
	if addr.ID.String() != bob {
		return rpc.PeerRow{}, rpc.NewError(rpc.CodeConnectFailed, "dial %s: refused", addr.ID)
	}
	return f.row(), nil
}

func (f *fakePeer) set(blocked bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blocked = blocked
	return nil
}

func (f *fakePeer) PeerBlock(context.Context, peer.ID) error   { return f.set(true) }
func (f *fakePeer) PeerUnblock(context.Context, peer.ID) error { return f.set(false) }
func (f *fakePeer) PeerResolve(context.Context, peer.ID) (rpc.BalanceRow, error) {
	return f.balance(), nil
}

func (f *fakePeer) balance() rpc.BalanceRow {
	return rpc.BalanceRow{
		Peer: bob, Asset: "karma", Balance: -1234, Reserved: 1, Shadow: 2,
		PaymentThreshold: 100, PeerPaymentThreshold: 2000, DisconnectThreshold: 125, HeadroomServe: 125, HeadroomConsume: 765,
		Exposure: 3, LastChequeSent: &rpc.LastCheque{Serial: 7, Cumulative: 5000, State: rpc.ChequeAcked}, Uncashed: 4,
		SettlementBlockedBy: "", Connected: true, Mode: "mock", PeerMode: "mock", Owed: -1234, Served: 10, Consumed: 6244,
		NextSettlement: 2000, Services: []rpc.ServiceCount{{Service: "store", Served: 10, Consumed: 6244}}, Links: []rpc.LinkRow{
			{Direction: rpc.ChequeReceived, State: "bound", Channel: "f2abc", Payout: "f1abc", Origin: 3, Covered: new(uint64(40)), Redeemed: new(uint64(36)), Uncashed: new(uint64(4))},
		},
	}
}

func unknown(id peer.ID) error {
	return rpc.NewError(rpc.CodeUnknownPeer, "no account with %s", id)
}

func (f *fakePeer) Balances(_ context.Context, id peer.ID) ([]rpc.BalanceRow, error) {
	if id != "" && id.String() != bob {
		return nil, unknown(id)
	}
	return []rpc.BalanceRow{f.balance()}, nil
}

func (f *fakePeer) Cheques(_ context.Context, id peer.ID) ([]rpc.ChequeRow, error) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return []rpc.ChequeRow{
		{Peer: bob, Direction: rpc.ChequeSent, Serial: 7, Cumulative: 5000, Credited: 5000, State: rpc.ChequeAcked, Date: at, AckedAt: &at, Signature: "00ff"},
		{Peer: bob, Direction: rpc.ChequeReceived, Serial: 1, Cumulative: 10, Credited: 10, State: rpc.ChequeCredited, Date: at, Signature: "00ff"},
	}, nil
}

func (f *fakePeer) Cashout(_ context.Context, id peer.ID, least uint64) ([]rpc.CashoutRow, error) {
	if id != "" && id.String() != bob {
		return nil, rpc.NewError(rpc.CodeNothingToCash, "no channel of %s", id)
	}
	if least > 4 {
		return nil, nil
	}
	return []rpc.CashoutRow{{Peer: bob, Channel: "t2abc", Units: 4, Cid: "bafy2bza"}}, nil
}

func (f *fakePeer) Prepay(_ context.Context, id peer.ID, units uint64) (rpc.SettleResult, error) {
	return rpc.SettleResult{Peer: id.String(), Serial: 9, Paid: units, Cumulative: 5000 + units, State: rpc.ChequeAcked}, nil
}

func (f *fakePeer) Settle(_ context.Context, id peer.ID) (rpc.SettleResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case id.String() != bob:
		return rpc.SettleResult{}, unknown(id)
	case f.settled:
		return rpc.SettleResult{}, rpc.NewError(rpc.CodeNothingOwed, "we owe %s nothing", id)
	}
	f.settled = true
	return rpc.SettleResult{Peer: bob, Serial: 8, Paid: 1234, Cumulative: 6234, State: rpc.ChequeAcked}, nil
}

func (f *fakePeer) StoreImport(_ context.Context, ms []rpc.Message) (rpc.ImportResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.messages = append(f.messages, ms...)
	return rpc.ImportResult{Imported: len(ms), Stored: len(f.messages)}, nil
}

func (f *fakePeer) StoreQuery(_ context.Context, _ peer.ID, q rpc.StoreQuery) (rpc.StorePage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var matching []rpc.Message
	for _, m := range f.messages {
		if len(q.ContentTopics) == 0 || strings.Contains(strings.Join(q.ContentTopics, " "), m.ContentTopic) {
			matching = append(matching, m)
		}
	}
	var at int
	_, _ = fmt.Sscan(q.Cursor, &at)
	if q.PubsubTopic == "fail" && at > 0 {
		return rpc.StorePage{}, rpc.NewError(rpc.CodeRefusedByPeer, "402: pay\x1b[2J first")
	}
	end := min(at+q.PageSize, len(matching))
	page := rpc.StorePage{Messages: matching[at:end], Cost: uint64(end - at)}
	if end < len(matching) {
		page.Cursor = fmt.Sprint(end)
	}
	return page, nil
}

func (f *fakePeer) EventsSince(ctx context.Context, cursor uint64) (rpc.EventBatch, error) {
	return f.events.Since(ctx, cursor), nil
}

func (f *fakePeer) Bridge() (rpc.Bridge, error)   { return &f.bridge, nil }
func (f *fakePeer) Sockets() (rpc.Sockets, error) { return f.sockets, nil }

func (f *fakePeer) Channels() (*rpc.Channels, error) {
	if f.town != nil {
		return f.town.Channels, nil
	}
	return nil, rpc.NewError(rpc.CodeNoChain, "no chain is configured")
}

// fakeDeps joins the commands to fakes.
func fakeDeps() Deps {
	d := systemIO(Deps{
		Version: "test", StartNode: startFake,
		CheckStore: func(context.Context, string) error { return nil },
		// The chain is the real one: nothing of it is worth a fake.
		StartDevnet: startDevnet, DialDevnet: dialDevnet,
		Demo: func(_ context.Context, o DemoOptions) (DemoResult, error) {
			n := 120
			if o.Messages != "" {
				n = 2
			}
			o.Progress("messages", n, n)
			var paid *bool
			if o.Mode == "hard" {
				paid = new(bool)
				*paid = os.Getenv("FAKE_UNPAID") == ""
			}
			return DemoResult{
				Channel: "f2abc", VoucherTotal: "100000000000", PayeeBalanceBefore: "0", PayeeBalanceAfter: "100000000000", ChainPaid: paid,
				Messages: n, Pages: (n + o.PageSize - 1) / o.PageSize, ServerCredit: uint64(n), ClientDebit: uint64(n),
				ChequesSent: 1, ChequesAcked: 1, BooksAgree: os.Getenv("FAKE_DISAGREE") == "", Mode: o.Mode, Elapsed: 0.25,
				Client: DemoSide{Peer: bob, Balance: -20, Consumed: uint64(n), Paid: 100, LastCheque: &rpc.LastCheque{Serial: 1, Cumulative: 100, State: rpc.ChequeAcked}},
				Server: DemoSide{Peer: bob, Balance: 20, Served: uint64(n), Received: 100},
			}, nil
		},
		Benches: []Bench{
			{"acct", "one ledger step", func(context.Context, BenchOptions) ([]BenchResult, error) {
				return []BenchResult{{Name: "acct", Figure: 113.5, Unit: "ns", Limit: 90, Ratio: 1.26, Extra: map[string]any{"peers": 100000, "allocs": 0}}}, nil
			}},
			{"pair", "messages between two hosts", func(context.Context, BenchOptions) ([]BenchResult, error) {
				return []BenchResult{{Name: "pair-batched", Figure: 1.2e6, Unit: "1/s"}, {Name: "pair", Figure: 165000, Unit: "1/s"}}, nil
			}},
		},
		Testnet: func(_ context.Context, o TestnetOptions) (TestnetResult, error) {
			r := TestnetResult{Scenario: o.Scenario, Passed: 1, Checks: []TestnetCheck{{"books agree", true, ""}}}
			if o.Scenario == "broken" {
				r.Failed, r.Checks = 1, append(r.Checks, TestnetCheck{"cheque acked", false, "no ack"})
			}
			return r, nil
		},
		Scenarios: []string{"tab", "threshold"},
		TestnetUp: func(ctx context.Context, o UpOptions) error {
			r := UpResult{Ready: true, Dir: "net", Devnet: host.DevnetInfo{RPC: "http://127.0.0.1:1/rpc/v1", Network: "play"}, Peers: []UpPeer{}}
			for i := range o.Peers {
				r.Peers = append(r.Peers, UpPeer{Name: fmt.Sprintf("p%d", i+1), PeerID: bob, Addrs: []string{"/ip4/127.0.0.1/tcp/1"}, Repo: "net/p", Payout: "f1x", PID: 77})
			}
			return o.Ready(r)
		},
		Chaos: func(_ context.Context, o ChaosOptions) (ChaosResult, error) {
			r := testnet.ChaosReport{Kills: o.Kills, Peers: o.Peers, Seed: o.Seed, Passed: 1}
			if o.Kills == 13 {
				r.Lost = 1
			}
			return &r, nil
		},
	})
	if os.Getenv("FAKE_TERMINAL") != "" {
		d.OutTerminal, d.ErrTerminal = true, true
	}
	return d
}
