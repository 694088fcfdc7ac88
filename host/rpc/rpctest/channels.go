// Package rpctest has the twin that what speaks to the RPC is tested on: payment
// channels on a chain in memory.
package rpctest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/paychtest"
)

// epoch is short, so that tests wait little for the chain.
const epoch = 10 * time.Millisecond

// funds is what both sides have at the beginning, in attoFIL.
const funds = 1_000_000

// Town is a chain with two sides: ours, and one that has opened a channel to us
// and given us nothing yet.
type Town struct {
	// Channels is our side.
	Channels *rpc.Channels
	// Us and Them are the addresses of both.
	Us, Them address.Address
	// Inbound is their channel to us, which holds 1000 attoFIL, and Voucher the
	// text of theirs over 25 on its lane 0, which we do not have yet.
	Inbound address.Address
	Voucher string

	close []func() error
}

// Open starts a chain that mines every 10 ms, until Close.
func Open(ctx context.Context) (_ *Town, err error) {
	t := &Town{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	params := paychtest.DefaultParams()
	params.Epoch, params.SettleDelay = epoch, 10_000
	chain := paychtest.NewChain(params)
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() { defer close(done); chain.Run(running) }() // ends with cancel
	t.close = append(t.close, func() error { cancel(); <-done; return nil })

	ours, us, err := t.side(ctx, chain, "us")
	if err != nil {
		return nil, err
	}
	theirs, them, err := t.side(ctx, chain, "them")
	if err != nil {
		return nil, err
	}
	t.Channels, t.Us, t.Them = ours, us, them
	id, err := theirs.Manager.PaychCreate(ctx, them, us, big.NewInt(1000))
	if err != nil {
		return nil, fmt.Errorf("open their channel: %w", err)
	}
	if t.Inbound, err = theirs.Manager.PaychWaitReady(ctx, id); err != nil {
		return nil, fmt.Errorf("open their channel: %w", err)
	}
	r, err := theirs.Manager.PaychVoucherCreate(ctx, t.Inbound, big.NewInt(25), 0)
	if err != nil {
		return nil, fmt.Errorf("their voucher: %w", err)
	}
	t.Voucher, err = paych.FormatVoucher(r.Voucher)
	return t, err
}

// side makes one side with its key, its store and its manager.
func (t *Town) side(ctx context.Context, chain *paychtest.Chain, name string) (*rpc.Channels, address.Address, error) {
	wallet := paychtest.NewWallet(name)
	key := wallet.MustNew()
	chain.Fund(key, funds)
	store := durabletest.NewMem()
	m, err := paych.Open(ctx, store, chain, wallet, paych.Config{NoAutoCollect: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, address.Undef, errors.Join(err, store.Close())
	}
	t.close = append(t.close, func() error { return errors.Join(m.Close(), store.Close()) })
	return &rpc.Channels{Manager: m, Wallet: wallet, Chain: chain}, key, nil
}

// Close ends both sides, then the chain.
func (t *Town) Close() error {
	var errs []error
	for i := len(t.close) - 1; i >= 0; i-- {
		errs = append(errs, t.close[i]())
	}
	t.close = nil
	return errors.Join(errs...)
}
