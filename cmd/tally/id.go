package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) idCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "id",
		Short: "Show who the running peer is and where it listens",
		Long: `Shows the peer id, the listen addresses and the protocols of the running peer.
Another peer connects with one of the addresses.`,
		Example: `  tally id
  tally peers connect "$(tally id --repo /other/repo -o json | jq -r .addrs[0])"`,
		Args: nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.Identity, error) {
				return r.ID(ctx)
			}, func(id rpc.Identity) *table {
				t := newCard().add("peer id", id.PeerID).add("agent", id.Agent).add("network", id.Network)
				for _, addr := range id.Addrs {
					t.add("address", addr)
				}
				for _, p := range id.Protocols {
					t.add("protocol", p)
				}
				return t
			})
		},
	}
}
