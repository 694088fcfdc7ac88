package testnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/paych"
)

// The chain of the demo: as on Filecoin, but an epoch has 50 ms and not 30 s, and
// a channel settles in 40 of them and not in 1440.
const (
	demoEpoch       = 50 * time.Millisecond
	demoSettleDelay = 40
	demoFinality    = 2
	// demoWallet is what each peer begins with, in attoFIL: one FIL.
	demoWallet = 1_000_000_000_000_000_000
)

// demoChain is the embedded chain of a demo in mode hard.
type demoChain struct {
	folder *repo.Devnet
	chain  *host.Devnet
	before big.Int // the payee's balance
}

func startDemoChain(ctx context.Context, dir string, log *slog.Logger) (*demoChain, error) {
	folder, err := repo.OpenDevnet(dir)
	if err != nil {
		return nil, fmt.Errorf("testnet: folder of the chain: %w", err)
	}
	c, err := host.StartDevnet(ctx, folder, host.DevnetConfig{
		BlockTime: demoEpoch, SettleDelay: demoSettleDelay, Finality: demoFinality, Logger: log,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("testnet: start the chain: %w", err), folder.Close())
	}
	return &demoChain{folder: folder, chain: c}, nil
}

func (c *demoChain) close() error {
	return errors.Join(c.chain.Close(context.Background()), c.folder.Close())
}

// config is nil where there is no chain.
func (c *demoChain) config() *host.ChainConfig {
	if c == nil {
		return nil
	}
	return &host.ChainConfig{URL: c.chain.Info().RPC, Token: c.chain.Token()}
}

// fund gives both peers play money. The payee needs some too: what has no account
// on the chain cannot be paid.
func (c *demoChain) fund(ctx context.Context, payer, payee *host.Node) error {
	for _, n := range [...]*host.Node{payer, payee} {
		if err := c.chain.Faucet(ctx, n.Payout(), big.NewInt(demoWallet)); err != nil {
			return fmt.Errorf("testnet: fill a wallet: %w", err)
		}
	}
	var err error
	c.before, err = c.chain.Balance(ctx, payee.Payout())
	return err
}

// finish has the payee submit its voucher, settle and collect the channel, as an
// operator would who wants the money, and compares the chain with the cheques. Its
// watcher would submit the voucher as well, but a busy machine may take longer than
// this chain lets a channel settle.
func (c *demoChain) finish(ctx context.Context, d *demo, r *DemoResult) error {
	channels := d.server.Channels().Manager
	list, err := channels.PaychList(ctx)
	if err != nil {
		return fmt.Errorf("testnet: channels of the server: %w", err)
	}
	r.PayeeBalanceBefore = c.before.String()
	total := big.Zero()
	if len(list) > 0 { // fewer units than a threshold open none
		r.Channel = list[0].String()
		if total, err = lastVoucher(d.server, d.client); err != nil {
			return err
		}
		d.opt.Progress(DemoProgress{Stage: StageSettle})
		if _, err := d.server.Settler().Cashout(ctx, d.client.Host().ID(), 0); err != nil {
			return fmt.Errorf("testnet: submit the voucher of the last cheque: %w", err)
		}
		if _, err := channels.PaychSettle(ctx, list[0]); err != nil {
			return fmt.Errorf("testnet: settle the channel: %w", err)
		}
		for {
			info, err := channels.PaychInfo(ctx, list[0])
			if err != nil {
				return fmt.Errorf("testnet: channel of the server: %w", err)
			}
			if info.Phase == paych.PhaseCollected && info.Final != nil {
				break
			}
			if info.Phase == paych.PhaseSettling {
				d.opt.Progress(DemoProgress{Stage: StageCollect})
			}
			select {
			case <-time.After(demoEpoch):
			case <-ctx.Done():
				return fmt.Errorf("testnet: wait for the channel to be collected: %w", ctx.Err())
			}
		}
	}
	after, err := c.chain.Balance(ctx, d.server.Payout())
	if err != nil {
		return fmt.Errorf("testnet: balance of the server: %w", err)
	}
	r.VoucherTotal, r.PayeeBalanceAfter = total.String(), after.String()
	r.ChainPaid = big.Sub(after, c.before).Equals(total)
	return nil
}

// lastVoucher is the amount of the voucher in the last cheque that at holds.
func lastVoucher(at, from *host.Node) (big.Int, error) {
	cheques, err := at.Book().Cheques(from.Host().ID())
	if err != nil {
		return big.Zero(), fmt.Errorf("testnet: cheques of the server: %w", err)
	}
	for _, c := range cheques {
		if c.Sent {
			continue
		}
		sv, err := host.VoucherOf(c.Cheque.Backing)
		if err != nil {
			return big.Zero(), fmt.Errorf("testnet: voucher of the last cheque: %w", err)
		}
		return sv.Amount, nil
	}
	return big.Zero(), nil
}
