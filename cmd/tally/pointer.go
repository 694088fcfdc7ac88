package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) pointerCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pointer",
		Short: "Answer for payment pointers",
		Long: `A payment pointer is $host or $host/path: whoever reads it over HTTPS learns an address
and a secret, and pays or is paid. The peer answers at pointer_listen; a web server with
TLS for the host passes /.well-known/pay and the paths on to it. To follow a pointer of
somebody else: tally uri redeem '$host/path'.`,
		Example: "  tally bridge pointer add / --kind push --amount 100000\n  tally bridge pointer ls",
		RunE:    group,
	}
	cmd.AddCommand(a.pointerAddCmd(), a.pointerLsCmd(), a.pointerRemoveCmd())
	return cmd
}

// pointerPath reads a PATH argument: / is the host's own pointer.
func pointerPath(arg string) string {
	if arg == "/" {
		return ""
	}
	return arg
}

func (a *app) pointerAddCmd() *cobra.Command {
	var kind string
	var amount uint64
	cmd := &cobra.Command{
		Use:   "add PATH",
		Short: "Answer for a path",
		Long: `Makes $host/path a payment pointer; / is $host itself.

  push      takes up to the amount from each payer
  invoice   asks all payers together for the amount, once
  voucher   pays the amount to whoever reads the pointer: keep the path secret`,
		Example: "  tally bridge pointer add /bill/7 --kind invoice --amount 2500",
		Args:    nArgs(1, "PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.PointerRow, error) {
				return r.PointerAdd(ctx, pointerPath(args[0]), kind, amount)
			}, func(row rpc.PointerRow) *table {
				return newCard().add("pointer", "$host"+row.Path).add("kind", row.Kind).add("amount", row.Amount)
			})
		},
	}
	cmd.Flags().StringVar(&kind, "kind", "push", "push, invoice or voucher")
	cmd.Flags().Uint64Var(&amount, "amount", 0, "units")
	return cmd
}

func (a *app) pointerLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the payment pointers",
		Long:    `Lists the payment pointers with what they received less what they paid.`,
		Example: "  tally bridge pointer ls",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.PointerRow, error) {
				return r.PointerList(ctx)
			}, func(list []rpc.PointerRow) *table {
				t := newTable("pointer", "kind", ">amount", ">balance")
				t.empty = "no payment pointers"
				for _, r := range list {
					t.add("$host"+r.Path, r.Kind, r.Amount, r.Balance)
				}
				return t
			})
		},
	}
}

func (a *app) pointerRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "remove PATH",
		Short:   "Answer for a path no more",
		Long:    `Ends a payment pointer. Addresses that it gave live for up to an hour more.`,
		Example: "  tally bridge pointer remove /bill/7",
		Args:    nArgs(1, "PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.Done, error) {
				return r.PointerRemove(ctx, pointerPath(args[0]))
			}, func(_ rpc.Done) *table {
				return newCard().add("removed", "$host"+pointerPath(args[0]))
			})
		},
	}
}
