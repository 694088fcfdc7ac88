package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) uriCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "uri",
		Short: "Make and redeem URIs that open payment sockets",
		Long: `A tally: URI opens a socket with whoever made it, for what it is for: a gift pays its
bearer, an invoice is paid by it, a pull lets it take up to an amount, a push
takes what it brings, a deposit keeps its money. Whoever reads a URI can spend it:
pass it on as you would cash.`,
		Example: "  tally uri create gift --amount 100\n  tally uri redeem 'tally:12D3KooW…'",
		RunE:    group,
	}
	cmd.AddCommand(a.uriCreateCmd(), a.uriRedeemCmd())
	return cmd
}

func (a *app) uriCreateCmd() *cobra.Command {
	var low, high string
	var opts rpc.URIOptions
	var expiry, period time.Duration
	cmd := &cobra.Command{
		Use:   "create gift|invoice|pull|push|deposit",
		Short: "Make a URI",
		Long: `Makes a URI. Nothing is kept and nothing moves until somebody redeems it; all who do
share one amount, over restarts.

  gift      pays the amount to whoever opens it first
  invoice   asks whoever opens it for the amount, once
  pull      lets its bearer take up to the amount; with --period, anew each time
  push      takes up to the amount, and gives nothing back
  deposit   an account: takes up to the amount, and gives back what was brought

--min and --max set the limits of our balance with all bearers in place of these.`,
		Example:   "  tally uri create gift --amount 100 --expiry 48h\n  tally uri create pull --amount 50 --period 720h --expiry 8760h",
		Args:      nArgs(1, "gift|invoice|pull|push|deposit"),
		ValidArgs: []string{"gift", "invoice", "pull", "push", "deposit"},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if opts.Min, opts.Max, err = limitArgs(low, high); err != nil {
				return err
			}
			for _, d := range []time.Duration{expiry, period} {
				if d < 0 || d%time.Second != 0 {
					return usagef("such as --expiry 48h", "%v is not a whole number of seconds from now", d)
				}
			}
			opts.ExpirySeconds, opts.PeriodSeconds = uint64(expiry/time.Second), uint64(period/time.Second)
			u, err := ask(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.URIRow, error) { return r.URICreate(ctx, args[0], opts) })
			if err != nil {
				return err
			}
			return a.out.one(u, func() *table {
				return newCard().add("uri", u.URI).add("kind", u.Kind).add("amount", u.Amount).add("expires", u.Expires)
			})
		},
	}
	cmd.Flags().Uint64Var(&opts.Amount, "amount", 0, "units that it is worth")
	limitFlags(cmd, &low, &high, " (default: as the kind has it)")
	cmd.Flags().DurationVar(&expiry, "expiry", 0, "how long it is good (default 24h, a deposit for ever)")
	cmd.Flags().DurationVar(&period, "period", 0, "of a pull: the amount is there anew after each")
	return cmd
}

func (a *app) uriRedeemCmd() *cobra.Command {
	var low, high string
	var opts rpc.RedeemOptions
	cmd := &cobra.Command{
		Use:   "redeem URI",
		Short: "Do what a URI is for",
		Long: `Opens a socket to the maker of a URI, with the limits that are usual for its kind and
amount, and waits up to 20 seconds until no money moves any more. An invoice is paid
up to the amount that the URI shows. A deposit needs to be told how much:
--min -100 --max -100 brings our side of it to 100.`,
		Example: "  tally uri redeem 'tally:12D3KooW…'",
		Args:    nArgs(1, "URI"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if opts.Min, opts.Max, err = limitArgs(low, high); err != nil {
				return err
			}
			return a.socketRow(cmd.Context(), func(ctx context.Context, r *remote) (rpc.SocketRow, error) {
				return r.URIRedeem(ctx, args[0], opts)
			})
		},
	}
	limitFlags(cmd, &low, &high, " (default: as the URI's kind has it)")
	cmd.Flags().StringSliceVar(&opts.Via, "via", nil, "peers on the way, joined by commas")
	return cmd
}
