package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) lockCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lock",
		Short: "Show the locks of channels, which carry what is too large for a tab",
		Long: `A payment that does not fit a tab goes under a lock of the channel that settles it: money
that is bound to the payment's hash until an epoch of the chain. Payments make them by
themselves; what is bound comes back, or is paid, without anybody's doing.

The setting locks says whether there are any; they need a chain, and mode hard.`,
		Example: "  tally lock ls\n  tally lock show",
		RunE:    group,
	}
	cmd.AddCommand(a.lockLsCmd(), a.lockShowCmd())
	return cmd
}

func (a *app) lockLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls [PEER]",
		Aliases: []string{"list"},
		Short:   "List the locks that are not over",
		Long: `Lists our locks (payer) and those of peers (payee), all or with one peer. A lock is locked
until its preimage is known, then opened; given is one that the payee has given up. It
can be paid until the time shown, and by the chain alone when its peer is away.`,
		Example: "  tally lock ls\n  tally lock ls 12D3KooW… -o json",
		Args:    nArgs(0, "PEER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := optionalPeerArg(args)
			if err != nil {
				return err
			}
			list, err := ask(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.LockRow, error) { return r.Locks(ctx, id) })
			if err != nil {
				return err
			}
			return rows(a.out, list, func() *table {
				t := newTable("PEER", "ROLE", ">ID", ">LANE", "PHASE", ">AMOUNT", "UNTIL", "HASH", "CHANNEL")
				t.empty = "no locks"
				for _, l := range list {
					t.add(l.Peer, l.Role, l.ID, l.Lane, l.Phase, l.Amount, l.ExpiresAt, l.PaymentHash, l.Channel)
				}
				return t
			})
		},
	}
}

func (a *app) lockShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show whether locks are on, their times, and what channels carry",
		Long: `Shows whether this peer makes and takes locks, and why not; by how much earlier a lock ends
on its way out of each hop; how far ahead one may end; and what our channels to connected
peers can carry under locks now.`,
		Example: "  tally lock show\n  tally lock show -o json",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := ask(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.LockState, error) { return r.LockState(ctx) })
			if err != nil {
				return err
			}
			return a.out.one(s, func() *table { return lockCard(s) })
		},
	}
}

func lockCard(s rpc.LockState) *table {
	if !s.On {
		return newCard().add("locks", "off").add("because", s.Why)
	}
	times := func(epochs int64, seconds uint64) string {
		return fmt.Sprintf("%d epochs, %v", epochs, time.Duration(seconds)*time.Second)
	}
	t := newCard().add("locks", "on").add("slots a channel", s.Slots).add("each hop takes", times(s.HopDelta, s.HopDeltaSeconds)).
		add("up to ahead", times(s.Horizon, s.HorizonSeconds))
	for _, c := range s.Channels {
		t.add("channel "+c.Channel, fmt.Sprintf("%d free, %d slots, to %s", c.Free, c.FreeSlots, c.Peer))
	}
	return t
}
