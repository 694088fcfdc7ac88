package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) walletCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "wallet",
		Short:   "Make keys and see what they hold",
		Long:    "The wallet has the keys that sign our messages to the chain and our vouchers.",
		Example: "  tally wallet new\n  tally wallet ls",
		RunE:    group,
	}
	cmd.AddCommand(a.walletNewCmd(), a.walletLsCmd(), a.walletBalanceCmd())
	return cmd
}

func walletTable(list []rpc.WalletRow) *table {
	t := newTable("ADDRESS", ">BALANCE")
	t.empty = "no keys yet"
	for _, w := range list {
		t.add(w.Address, showFIL(w.Balance))
	}
	return t
}

func (a *app) walletNewCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "new",
		Short:   "Make a key",
		Long:    "Makes a secp256k1 key and prints its f1 address. Back the keystore up before you fund it.",
		Example: "  tally wallet new",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.WalletRow, error) {
				return r.WalletNew(ctx)
			}, func(w rpc.WalletRow) *table {
				return walletTable([]rpc.WalletRow{w})
			})
		},
	}
}

func (a *app) walletLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Short:   "List the keys with their balances",
		Long:    "Lists the addresses of the wallet and what each holds on the chain, without what is in channels.",
		Example: "  tally wallet ls -o json",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.WalletRow, error) {
				return r.WalletList(ctx)
			}, walletTable)
		},
	}
}

func (a *app) walletBalanceCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "balance ADDRESS",
		Short:   "Show the balance of any account",
		Long:    "Shows what an account holds on the chain; it need not be one of ours.",
		Example: "  tally wallet balance f1…",
		Args:    nArgs(1, "ADDRESS"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.WalletRow, error) {
				return r.WalletBalance(ctx, args[0])
			}, func(w rpc.WalletRow) *table {
				return walletTable([]rpc.WalletRow{w})
			})
		},
	}
}
