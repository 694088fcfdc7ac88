package paych_test

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/filecoin-project/go-address"
	filbig "github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/paychtest"
)

// fund is what each key has at the beginning.
const fund = 1_000_000

// town is a chain and the managers of a payer and a payee, in a synctest bubble.
type town struct {
	t            *testing.T
	ctx          context.Context
	chain        *paychtest.Chain
	payer, payee *node
	halt         func() // ends the blocks
}

// node is one manager with its wallet and store.
type node struct {
	t       *testing.T
	w       *town
	wallet  *paychtest.Wallet
	key, id address.Address
	store   *durable.Store
	cfg     paych.Config
	*paych.Manager
}

// inTown runs fn in a bubble with two open managers, and closes everything.
func inTown(t *testing.T, fn func(w *town)) { inTownWith(t, paych.Config{}, fn) }

func inTownWith(t *testing.T, cfg paych.Config, fn func(w *town)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := &town{t: t, ctx: ctx, chain: paychtest.NewChain(paychtest.DefaultParams())}
		running, halt := context.WithCancel(ctx)
		w.halt = halt
		go w.chain.Run(running) // ends with ctx or halt
		w.payer, w.payee = w.node("payer", cfg), w.node("payee", cfg)
		defer func() {
			w.payer.stop()
			w.payee.stop()
			cancel()
			synctest.Wait()
		}()
		fn(w)
	})
}

func (w *town) node(name string, cfg paych.Config) *node {
	n := &node{t: w.t, w: w, wallet: paychtest.NewWallet(name), store: durabletest.NewMem(), cfg: cfg}
	n.key = n.wallet.MustNew()
	n.id = w.chain.Fund(n.key, fund)
	n.start()
	return n
}

func (n *node) start() {
	n.t.Helper()
	cfg := n.cfg
	cfg.Logger = slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		cfg.Logger = slog.New(slog.NewTextHandler(n.t.Output(), nil))
	}
	m, err := paych.Open(n.w.ctx, n.store, n.w.chain, n.wallet, cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.Manager = m
}

// down closes the manager and leaves the store.
func (n *node) down() {
	n.t.Helper()
	if n.Manager == nil {
		return
	}
	if err := n.Manager.Close(); err != nil {
		n.t.Error(err)
	}
	n.Manager = nil
}

func (n *node) stop() {
	n.down()
	if err := n.store.Close(); err != nil {
		n.t.Error(err)
	}
}

// pass lets epochs go by.
func (w *town) pass(epochs int) {
	time.Sleep(time.Duration(epochs) * time.Second) // bubble
	synctest.Wait()
}

// open creates a channel and waits until it is there.
func (w *town) open(amount int64) address.Address {
	w.t.Helper()
	id, err := w.payer.PaychCreate(w.ctx, w.payer.key, w.payee.key, atto(amount))
	if err != nil {
		w.t.Fatal(err)
	}
	return w.payer.ready(id)
}

func (n *node) ready(id cid.Cid) address.Address {
	n.t.Helper()
	ch, err := n.PaychWaitReady(n.w.ctx, id)
	if err != nil {
		n.t.Fatal(err)
	}
	return ch
}

// give makes a voucher.
func (n *node) give(ch address.Address, amount int64, lane uint64) *paych.SignedVoucher {
	n.t.Helper()
	r, err := n.PaychVoucherCreate(n.w.ctx, ch, atto(amount), lane)
	if err != nil {
		n.t.Fatal(err)
	}
	if r.Voucher == nil {
		n.t.Fatalf("voucher over %d lacks %v", amount, r.Shortfall)
	}
	return r.Voucher
}

func (n *node) giveSpec(ch address.Address, spec paych.VoucherSpec) *paych.SignedVoucher {
	n.t.Helper()
	r, err := n.PaychVoucherCreateSpec(n.w.ctx, ch, spec)
	if err != nil {
		n.t.Fatal(err)
	}
	if r.Voucher == nil {
		n.t.Fatalf("voucher lacks %v", r.Shortfall)
	}
	return r.Voucher
}

// takes adds a voucher and checks what it was worth.
func (n *node) takes(ch address.Address, sv *paych.SignedVoucher, delta int64) {
	n.t.Helper()
	got, err := n.PaychVoucherAdd(n.w.ctx, ch, sv, nil, filbig.Zero())
	if err != nil {
		n.t.Fatal(err)
	}
	if !got.Equals(atto(delta)) {
		n.t.Fatalf("voucher is worth %v, want %d", got, delta)
	}
}

// state is all that a caller can see of a channel.
func (n *node) state(ch address.Address) string {
	n.t.Helper()
	info, err := n.PaychInfo(n.w.ctx, ch)
	if err != nil {
		return err.Error()
	}
	list, err := n.PaychVoucherRecords(n.w.ctx, ch)
	if err != nil {
		n.t.Fatal(err)
	}
	return dump(info) + dump(list)
}

// funds checks C, V, R and Free of a channel.
func (n *node) funds(ch address.Address, c, v, r, free int64) {
	n.t.Helper()
	info, err := n.PaychInfo(n.w.ctx, ch)
	if err != nil {
		n.t.Fatal(err)
	}
	f := info.Funds
	if !f.Confirmed.Equals(atto(c)) || !f.Redeemed.Equals(atto(v)) || !f.Reserved.Equals(atto(r)) || !f.Free().Equals(atto(free)) {
		n.t.Errorf("C %v V %v R %v free %v, want %d %d %d %d", f.Confirmed, f.Redeemed, f.Reserved, f.Free(), c, v, r, free)
	}
}

func (n *node) balance() int64 {
	n.t.Helper()
	b, err := n.w.chain.Balance(n.w.ctx, n.key)
	if err != nil {
		n.t.Fatal(err)
	}
	return b.Int64()
}

func atto(n int64) filbig.Int { return filbig.NewInt(n) }

func preimage(n byte) tally.Preimage { return tally.Preimage{0: n, 31: 1} }
