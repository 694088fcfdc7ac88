package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) chequesCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "cheques [PEER]",
		Short: "List cheques sent and received",
		Long: `Lists cheques, oldest first. A cheque is absolute: its cumulative is all that was
ever paid to the peer, so that only the newest of each direction matters.
States: intent, pending, refused, acked (sent); credited, redeemed, uncovered
(received).`,
		Example: "  tally cheques\n  tally cheques 12D3KooW… -o json",
		Args:    nArgs(0, "PEER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := optionalPeerArg(args)
			if err != nil {
				return err
			}
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.ChequeRow, error) {
				return r.Cheques(ctx, id)
			}, func(list []rpc.ChequeRow) *table {
				t := newTable("PEER", "DIRECTION", ">SERIAL", ">CUMULATIVE", ">CREDITED", "STATE", "DATE")
				t.empty = "no cheques yet"
				for _, c := range list {
					t.add(c.Peer, c.Direction, c.Serial, c.Cumulative, c.Credited, c.State, c.Date)
				}
				return t
			})
		},
	}
}
