package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) cashoutCmd() *cobra.Command {
	var all bool
	var least uint64
	cmd := &cobra.Command{
		Use:   "cashout [PEER]",
		Short: "Submit the vouchers of peers to the chain",
		Long: `Submits the best voucher of a peer, or with --all of every peer, to the chain. From
then on what it says is the chain's own figure; it is paid out when the channel is
collected. It need not be done for safety: when a channel settles, all that is
left is submitted in time by itself.

It is of mode hard alone. --min leaves smaller amounts alone, for each submission
costs a fee.`,
		Example: "  tally cashout 12D3KooW…\n  tally cashout --all --min 1000",
		Args: func(cmd *cobra.Command, args []string) error {
			if all {
				return nArgs(0)(cmd, args)
			}
			return nArgs(1, "PEER")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			id := ""
			if !all {
				info, err := peerArg(args[0])
				if err != nil {
					return err
				}
				id = info.ID.String()
			}
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.CashoutRow, error) {
				return r.Cashout(ctx, id, least)
			}, func(list []rpc.CashoutRow) *table {
				t := newTable("PEER", "CHANNEL", ">UNITS", "MESSAGE")
				t.empty = "nothing to cash"
				for _, c := range list {
					t.add(c.Peer, c.Channel, c.Units, c.Cid)
				}
				return t
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "the vouchers of every peer")
	cmd.Flags().Uint64Var(&least, "min", 0, "least uncashed units that are worth a message")
	return cmd
}
