package host_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/settler"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/devnet"
	"github.com/tallystick/tally/paych/lotus"
	"github.com/tallystick/tally/paych/wallet"
	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/swap"
)

// publisher counts what a node hands to the chain.
type publisher struct {
	*lotus.Client
	count atomic.Int64
}

// Publish implements paych.Chain.
func (p *publisher) Publish(ctx context.Context, m *paych.SignedMessage) error {
	err := p.Client.Publish(ctx, m)
	p.count.Add(1)
	return err
}

// trader is a node of the second form: with a channel manager on the devnet.
type trader struct {
	*wayfarer
	client *publisher
	keys   *wallet.Mem
	key    address.Address
	store  *durable.Store
	*paych.Manager
	// channel is the one between holder and payee, once it is there.
	channel *address.Address
	role    string
}

// Linked is the settler's: the channel settles the tab of the two.
func (r *trader) Linked(_ peer.ID, out bool) (address.Address, string, bool) {
	ok := *r.channel != address.Undef && (r.role == "holder" && out || r.role == "payee" && !out)
	return *r.channel, "", ok
}

// halfMinutes gives the devnet, whose blocks are made by command, epochs of 30 s on the
// wall clock: as long as the test waits none of them goes by.
type halfMinutes struct{ hold.Channels }

func (h halfMinutes) Times() hold.ChainTimes {
	t := h.Channels.Times()
	t.EpochMS = 30_000
	return t
}

func (r *trader) open(ctx context.Context) hold.Channels {
	r.t.Helper()
	var err error
	if r.Manager, err = paych.Open(ctx, r.store, r.client, r.keys, paych.Config{Logger: slog.New(slog.DiscardHandler)}); err != nil {
		r.t.Fatal(err)
	}
	return halfMinutes{host.VoucherChannels(r.Manager, r.client, r)}
}

// The payee promises room, has the guard on the chain, and goes. The payer buys the
// holder's voucher. The holder settles at once and tries to collect: it cannot before
// the payee is back, who is mailed the voucher, submits it to the settling channel, and
// has the money.
func TestHolderCannotTakeItBack(t *testing.T) {
	const token = "0123456789abcdef0123456789abcdef"
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	disk := durabletest.NewMem()
	chain, err := devnet.Open(ctx, disk, devnet.Config{BlockTime: devnet.Manual, SettleDelay: 60, Finality: 2})
	ok(err)
	server, err := devnet.NewServer(chain, token)
	ok(err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	ok(err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }() // ends with Shutdown
	t.Cleanup(func() {
		stop, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(server.Shutdown(stop), <-served, chain.Close(), disk.Close()); err != nil {
			t.Error(err)
		}
	})

	var channel address.Address
	node := func(role string, p hold.Policy) *trader {
		r := &trader{keys: wallet.NewMem(), store: durabletest.NewMem(), channel: &channel, role: role, wayfarer: &wayfarer{t: t}}
		var err error
		r.client = new(publisher)
		r.client.Client, err = lotus.Open(ctx, lotus.Config{URL: "http://" + listener.Addr().String() + devnet.Path, Token: token, Wallet: r.keys, Poll: 2 * time.Millisecond})
		ok(err)
		r.key, err = r.keys.New(ctx)
		ok(err)
		_, err = r.client.Dev().DevFaucet(ctx, r.key, big.NewInt(1<<60))
		ok(err)
		t.Cleanup(func() {
			if err := errors.Join(r.Manager.Close(), r.client.Close(), r.store.Close()); err != nil {
				t.Error(err)
			}
		})
		policy := swap.DefaultPolicy()
		policy.PaymentThreshold, policy.DisconnectThreshold = 150, 200
		r.wayfarer = newWayfarer(t, host.Config{Policy: policy, Payments: &host.PaymentsConfig{}, Holds: &host.HoldsConfig{Policy: p, Channels: r.open(ctx)}})
		return r
	}
	ok(chain.Mine(ctx, 1))
	holder, payee := node("holder", hold.Policy{Offer: true, PriceBase: 3}), node("payee", hold.Policy{})
	payer := node("payer", hold.Policy{})
	ok(chain.Mine(ctx, 3))

	// wait waits for what others do by themselves, and makes no blocks.
	wait := func(what string, done func() bool) {
		t.Helper()
		for !done() {
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				t.Fatal(what, ctx.Err())
			}
		}
	}
	// until makes blocks while something does not hold, each after a look.
	until := func(what string, blocks int, done func() bool) {
		t.Helper()
		for range blocks {
			for range 20 { // managers see a block a little after it is made
				if done() {
					return
				}
				select {
				case <-time.After(2 * time.Millisecond):
				case <-ctx.Done():
					t.Fatal(what, ctx.Err())
				}
			}
			ok(chain.Mine(ctx, 1))
		}
		t.Fatalf("%s did not come in %d blocks", what, blocks)
	}
	units := func(n int64) big.Int { return big.Mul(big.NewInt(n), big.NewInt(settler.AttoPerUnit)) }
	created, err := holder.PaychCreate(ctx, holder.key, payee.key, units(1000))
	ok(err)
	ready := make(chan error, 1)
	go func() { // ends with the channel
		ch, err := holder.PaychWaitReady(ctx, created)
		channel = ch
		ready <- err
	}()
	until("the channel", 5000, func() bool { return len(ready) == 1 })
	ok(<-ready)
	_, err = payee.PaychInfo(ctx, channel)
	ok(err)
	ok(chain.Mine(ctx, 4))

	payer.meet(ctx, holder.wayfarer)
	payee.meet(ctx, holder.wayfarer)
	sent := payee.client.count.Load()
	st, err := payee.held().Room(ctx, hold.RoomRequest{Holder: holder.id(), Payer: payer.id(), Room: 120, Time: 40 * 30 * time.Second})
	ok(err)
	if !st.Given || st.Total != 0 || st.Guard != st.Until+20 {
		t.Fatalf("%+v", st)
	}
	order := hold.BuyRequest{Holder: holder.id(), Payee: payee.id(), Amount: 100, Time: 25 * 30 * time.Second, MaxPrice: 10}
	if _, err := payer.held().Buy(ctx, order); !errors.Is(err, hold.ErrNoGuard) {
		t.Fatal("bought without a guard on the chain", err)
	}
	final := func() abi.ChainEpoch {
		s, _, err := payer.client.Channel(ctx, channel, 2)
		ok(err)
		return s.MinSettleHeight
	}
	// The payee submits it by itself. No block is made before: a busy machine would be
	// past the deadlines by then.
	wait("the message with the guard", func() bool { return payee.client.count.Load() > sent })
	until("the guard", 30, func() bool { return int64(final()) >= st.Guard })

	// The payee goes, with all that it has.
	payee.leave()
	ok(payee.Manager.Close())
	late := order
	late.Time = 60 * 30 * time.Second
	if _, err := payer.held().Buy(ctx, late); !errors.Is(err, hold.ErrStale) {
		t.Fatal(err)
	}
	late = order
	late.Amount = 121
	if _, err := payer.held().Buy(ctx, late); !errors.Is(err, hold.ErrLaneRoom) {
		t.Fatal(err)
	}
	got, err := payer.held().Buy(ctx, order)
	ok(err)
	if got.Status != hold.BuyBought || got.Price != 3 {
		t.Fatalf("%+v", got)
	}
	paid := func(want tally.Balance) bool { return holder.net(ctx) == want }
	wait("the price on the tab", func() bool { return paid(103) })

	// The holder wants its money back.
	_, err = holder.PaychSettle(ctx, channel)
	ok(err)
	settling := func() abi.ChainEpoch {
		s, _, err := payer.client.Channel(ctx, channel, 0)
		ok(err)
		return s.SettlingAt
	}
	until("the settling", 30, func() bool { return settling() != 0 })
	if at := int64(settling()); at < got.Deadline+20 {
		t.Fatalf("collected at %d, the deadline is %d", at, got.Deadline)
	}
	ok(chain.Mine(ctx, int(got.Deadline-9-int64(chain.Head()))))
	wait("the holder to see it", func() bool {
		info, err := holder.PaychInfo(ctx, channel)
		return err == nil && info.Phase == paych.PhaseSettling
	})
	if _, err := holder.PaychCollect(ctx, channel); !errors.Is(err, paych.ErrTooEarly) {
		t.Fatal(err)
	}

	// The payee is back in time.
	before, err := payee.client.Balance(ctx, payee.key)
	ok(err)
	payee.cfg.Holds = &host.HoldsConfig{Channels: payee.open(ctx)}
	payee.back()
	payee.meet(ctx, payer.wayfarer)
	wait("the mail", func() bool {
		list, err := payee.held().Mails(ctx)
		return err == nil && len(list) == 1 && list[0].ID == got.ID
	})
	// At the next block its watcher submits it, to the channel that settles.
	sent = payee.client.count.Load()
	ok(chain.Mine(ctx, 1))
	wait("the voucher", func() bool { return payee.client.count.Load() > sent })
	ok(chain.Mine(ctx, 2)) // mined, and seen
	s, _, err := payer.client.Channel(ctx, channel, 0)
	ok(err)
	if !s.ToSend.Equals(units(100)) || int64(chain.Head()) > got.Deadline {
		t.Fatalf("redeemed are %v at %d", s.ToSend, chain.Head())
	}
	ok(chain.Mine(ctx, int(int64(settling())-int64(chain.Head()))))
	until("the end of the channel", 5000, func() bool {
		info, err := payee.PaychInfo(ctx, channel)
		return err == nil && info.Final != nil
	})
	after, err := payee.client.Balance(ctx, payee.key)
	ok(err)
	if gained := big.Sub(after, before); !gained.Equals(units(100)) {
		t.Fatalf("the payee got %v attoFIL", gained)
	}
	ok(chain.Check(ctx))
}
