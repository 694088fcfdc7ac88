package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) bridgeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bridge",
		Short: "Let Interledger clients pay through this peer",
		Long: `A peer can be the connector of Interledger clients, such as those of ilp-plugin-btp:
they connect over BTP (btp_listen in the settings), and their packets travel over our
neighbours. Each client has an account with the peer, within limits.`,
		Example: "  tally bridge client add shop\n  tally bridge client ls",
		RunE:    group,
	}
	client := &cobra.Command{
		Use:   "client",
		Short: "Add, list, settle and remove the clients of the bridge",
		Long: `A client owes what its packets moved less what it got. Nothing settles that by itself:
agree with the client how it is paid, and book it with settle.`,
		Example: "  tally bridge client add shop --credit 5000 --debt 100000\n  tally bridge client settle shop --paid-out 70000",
		RunE:    group,
	}
	client.AddCommand(a.bridgeAddCmd(), a.bridgeLsCmd(), a.bridgeSettleCmd(), a.bridgeLimitsCmd(), a.bridgeRemoveCmd())
	cmd.AddCommand(client, a.pointerCmd())
	return cmd
}

func bridgeLimitFlags(cmd *cobra.Command, l *rpc.BridgeLimits) {
	cmd.Flags().Uint64Var(&l.Credit, "credit", 0, "the most that the client may owe us, in units")
	cmd.Flags().Uint64Var(&l.Debt, "debt", 0, "the most that we may owe the client, in units")
}

func (a *app) bridgeAddCmd() *cobra.Command {
	var limits rpc.BridgeLimits
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Let a client connect",
		Long: `Adds a client and prints what it connects with. The token is shown this once: the peer
keeps a hash of it. Without --credit and --debt the client has bridge_credit and
bridge_debt of the settings; --credit 0 is a client that can only be paid.`,
		Example: "  tally bridge client add shop\n  tally bridge client add kiosk --credit 0 --debt 100000",
		Args:    nArgs(1, "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var l *rpc.BridgeLimits
			switch credit, debt := cmd.Flags().Changed("credit"), cmd.Flags().Changed("debt"); {
			case credit && debt:
				l = &limits
			case credit || debt:
				return usagef("give both, or neither", "--credit and --debt go together")
			}
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.BridgeTokenRow, error) {
				return r.BridgeClientAdd(ctx, args[0], l)
			}, func(row rpc.BridgeTokenRow) *table {
				return newCard().add("name", row.Name).add("address", row.Address).add("token", row.Token).add("url", row.URL)
			})
		},
	}
	bridgeLimitFlags(cmd, &limits)
	return cmd
}

func (a *app) bridgeLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the clients with their accounts",
		Long: `Lists the clients. Owes is what a client owes us; below zero we owe it. Late is the part
of sent that its payee has although the client was told that it failed, because a hop
was away or this peer stopped in between.`,
		Example: "  tally bridge client ls",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.BridgeClientRow, error) {
				return r.BridgeClientList(ctx)
			}, func(list []rpc.BridgeClientRow) *table {
				t := newTable("name", "connected", ">owes", ">credit", ">debt", ">sent", ">received", ">paid in", ">paid out", ">late")
				t.empty = "no clients"
				for _, r := range list {
					t.add(r.Name, r.Connected, r.Balance, r.Credit, r.Debt, r.Sent, r.Received, r.PaidIn, r.PaidOut, r.Late)
				}
				return t
			})
		},
	}
}

// bridgeRow asks for one client and prints it.
func (a *app) bridgeRow(ctx context.Context, fn func(context.Context, *remote) (rpc.BridgeClientRow, error)) error {
	return askOne(ctx, a, fn, func(row rpc.BridgeClientRow) *table {
		return newCard().add("name", row.Name).add("address", row.Address).add("connected", row.Connected).add("owes", row.Balance).
			add("credit", row.Credit).add("debt", row.Debt).add("sent", row.Sent).add("received", row.Received).
			add("paid in", row.PaidIn).add("paid out", row.PaidOut).add("late", row.Late)
	})
}

func (a *app) bridgeSettleCmd() *cobra.Command {
	var in, out uint64
	cmd := &cobra.Command{
		Use:   "settle NAME",
		Short: "Book what a client paid, or was paid, outside of the bridge",
		Long: `Books money that changed hands by other means: --paid-in what the client paid us,
--paid-out what we paid it. Run it once for each payment: what is booked twice counts
twice. To give back what is late, use --paid-in.`,
		Example: "  tally bridge client settle shop --paid-out 70000",
		Args:    nArgs(1, "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if in == 0 && out == 0 {
				return usagef("give --paid-in or --paid-out", "nothing to book")
			}
			return a.bridgeRow(cmd.Context(), func(ctx context.Context, r *remote) (rpc.BridgeClientRow, error) {
				return r.BridgeClientSettle(ctx, args[0], in, out)
			})
		},
	}
	cmd.Flags().Uint64Var(&in, "paid-in", 0, "units that the client paid us")
	cmd.Flags().Uint64Var(&out, "paid-out", 0, "units that we paid the client")
	return cmd
}

func (a *app) bridgeLimitsCmd() *cobra.Command {
	var limits rpc.BridgeLimits
	cmd := &cobra.Command{
		Use:     "limits NAME",
		Short:   "Set what a client's account may reach",
		Long:    `Sets both limits. What is beyond them stays, and nothing more is added to it.`,
		Example: "  tally bridge client limits shop --credit 0 --debt 500000",
		Args:    nArgs(1, "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("credit") || !cmd.Flags().Changed("debt") {
				return usagef("give both", "limits needs --credit and --debt")
			}
			return a.bridgeRow(cmd.Context(), func(ctx context.Context, r *remote) (rpc.BridgeClientRow, error) {
				return r.BridgeClientLimits(ctx, args[0], limits)
			})
		},
	}
	bridgeLimitFlags(cmd, &limits)
	return cmd
}

func (a *app) bridgeRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAME",
		Short:   "End a client whose account is even",
		Long:    `Cuts a client's connection and forgets it and its token. Its account has to be even.`,
		Example: "  tally bridge client remove shop",
		Args:    nArgs(1, "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.Done, error) {
				return r.BridgeClientRemove(ctx, args[0])
			}, func(_ rpc.Done) *table {
				return newCard().add("removed", args[0])
			})
		},
	}
}
