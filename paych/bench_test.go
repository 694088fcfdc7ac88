package paych_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/filecoin-project/go-address"
	filbig "github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/paychtest"
)

// quickWallet signs nothing while quick is set, to get to the n-th voucher soon.
type quickWallet struct {
	*paychtest.Wallet
	quick atomic.Bool
}

var noSignature = append(make([]byte, 31), append([]byte{1}, append(make([]byte, 31), 1, 0)...)...)

func (w *quickWallet) Sign(ctx context.Context, a address.Address, msg []byte) (*crypto.Signature, error) {
	if w.quick.Load() {
		return &crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: noSignature}, nil
	}
	return w.Wallet.Sign(ctx, a, msg)
}

type pair struct {
	payer, payee *paych.Manager
	wallet       *quickWallet
	ch           address.Address
	stores       []*durable.Store
}

func newPair(b testing.TB) *pair {
	ctx := b.Context()
	chain := paychtest.NewChain(paychtest.DefaultParams())
	p := &pair{}
	open := func(name string) (*paych.Manager, *quickWallet, address.Address) {
		w := &quickWallet{Wallet: paychtest.NewWallet(name)}
		key := w.MustNew()
		chain.Fund(key, 1<<62)
		s := durabletest.NewMem()
		p.stores = append(p.stores, s)
		m, err := paych.Open(ctx, s, chain, w, paych.Config{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		return m, w, key
	}
	var from, to address.Address
	p.payer, p.wallet, from = open("payer")
	p.payee, _, to = open("payee")
	b.Cleanup(func() {
		for _, m := range []*paych.Manager{p.payer, p.payee} {
			if err := m.Close(); err != nil {
				b.Error(err)
			}
		}
		for _, s := range p.stores {
			if err := s.Close(); err != nil {
				b.Error(err)
			}
		}
	})
	id, err := p.payer.PaychCreate(ctx, from, to, filbig.NewInt(1<<61))
	if err != nil {
		b.Fatal(err)
	}
	chain.Mine(4)
	if p.ch, err = p.payer.PaychWaitReady(ctx, id); err != nil {
		b.Fatal(err)
	}
	return p
}

func (p *pair) create(b testing.TB, amount int64, lane uint64) *paych.SignedVoucher {
	r, err := p.payer.PaychVoucherCreate(b.Context(), p.ch, filbig.NewInt(amount), lane)
	if err != nil {
		b.Fatal(err)
	}
	return r.Voucher
}

func (p *pair) add(b testing.TB, sv *paych.SignedVoucher) {
	if _, err := p.payee.PaychVoucherAdd(b.Context(), p.ch, sv, nil, filbig.Zero()); err != nil {
		b.Fatal(err)
	}
}

// The n-th voucher costs what the tenth does, because nothing that is written
// grows with the history.
func BenchmarkVoucherCreate(b *testing.B) {
	for _, n := range []int64{10, 1_000_000} {
		b.Run(fmt.Sprintf("n=%d", n), func(b *testing.B) {
			p := newPair(b)
			p.wallet.quick.Store(true)
			for i := range n {
				p.create(b, i+1, 0)
			}
			p.wallet.quick.Store(false)
			i := n
			for b.Loop() {
				i++
				p.create(b, i, 0)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "vouchers/s")
		})
	}
}

func BenchmarkVoucherAdd(b *testing.B) {
	p := newPair(b)
	const lot = 2000
	var ready []*paych.SignedVoucher
	amount := int64(0)
	for b.Loop() {
		if len(ready) == 0 {
			b.StopTimer()
			for range lot {
				amount++
				ready = append(ready, p.create(b, amount, 0))
			}
			b.StartTimer()
		}
		p.add(b, ready[0])
		ready = ready[1:]
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "vouchers/s")
}

// Many callers on lanes of their own share saves.
func BenchmarkVoucherCreateParallel(b *testing.B) {
	p := newPair(b)
	var lanes atomic.Uint64
	b.RunParallel(func(pb *testing.PB) {
		lane, amount := lanes.Add(1), int64(0)
		for pb.Next() {
			amount++
			p.create(b, amount, lane)
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "vouchers/s")
}
