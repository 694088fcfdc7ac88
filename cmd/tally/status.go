package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the health of the running peer and what to do next",
		Long: `Shows the running peer as a list of checks, each with its next action, and the
sums of all tabs. It works before anything is funded or connected.`,
		Example: `  tally status
  tally status -o json`,
		Args: nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := ask(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.Status, error) { return r.Status(ctx) })
			if err != nil {
				return err
			}
			if a.out.format != formatTable {
				return a.out.one(s, nil)
			}
			card := newCard().
				add("peer id", s.PeerID).add("version", s.Version).
				add("mode", s.Mode+", "+s.Asset+" on network "+s.Network).
				add("up for", time.Since(s.StartedAt).Round(time.Second).String()).
				add("peers", human(int64(s.Connected))+" connected, "+human(int64(s.Accounts))+" with an account").
				add("messages", s.Messages).
				add("owed to us", s.OwedToUs).add("owed by us", s.OwedByUs).add("exposure", s.Exposure)
			if s.Next != "" {
				card.add("next", s.Next)
			}
			if err := card.write(a.out.w); err != nil {
				return err
			}
			if _, err := a.out.w.Write([]byte("\n")); err != nil {
				return err
			}
			return checkTable(s.Checks).write(a.out.w)
		},
	}
}

func checkTable(checks []rpc.Check) *table {
	t := newTable("CHECK", "STATE", "DETAIL", "NEXT")
	for _, c := range checks {
		t.add(c.Name, string(c.State), c.Detail, c.Next)
	}
	return t
}
