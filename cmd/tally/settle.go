package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) settleCmd() *cobra.Command {
	var prepay uint64
	cmd := &cobra.Command{
		Use:   "settle PEER",
		Short: "Pay what we owe a peer now",
		Long: `Pays the debt to a peer with a cheque now, without waiting for the threshold, and
waits for the peer's ack. It fails where we owe nothing.

--prepay pays units ahead of service too, for a peer that gives newcomers no
credit. It credits one payment threshold ahead at the most.`,
		Example: "  tally settle 12D3KooW…\n  tally settle 12D3KooW… --prepay 100",
		Args:    nArgs(1, "PEER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := peerArg(args[0])
			if err != nil {
				return err
			}
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.SettleResult, error) {
				if cmd.Flags().Changed("prepay") {
					return r.Prepay(ctx, info.ID.String(), prepay)
				}
				return r.Settle(ctx, info.ID.String())
			}, func(s rpc.SettleResult) *table {
				return newCard().add("peer", s.Peer).add("paid", s.Paid).add("cheque", "#"+cell(s.Serial)).
					add("cumulative", s.Cumulative).add("state", s.State).add("balance", s.Balance)
			})
		},
	}
	cmd.Flags().Uint64Var(&prepay, "prepay", 0, "units to pay ahead of service")
	return cmd
}
