package main

import (
	"context"
	"strings"
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
	var ilp bool
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

--min and --max set the limits of our balance with all bearers in place of these. With
--ilp it is an address and a secret for Interledger, which other implementations pay by
STREAM, or by PSK2 where it pays out.`,
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
			if ilp {
				return a.createILP(cmd.Context(), args[0], opts)
			}
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.URIRow, error) {
				return r.URICreate(ctx, args[0], opts)
			}, func(u rpc.URIRow) *table {
				return newCard().add("uri", u.URI).add("kind", u.Kind).add("amount", u.Amount).add("expires", u.Expires)
			})
		},
	}
	cmd.Flags().Uint64Var(&opts.Amount, "amount", 0, "units that it is worth")
	limitFlags(cmd, &low, &high, " (default: as the kind has it)")
	cmd.Flags().DurationVar(&expiry, "expiry", 0, "how long it is good (default 24h, a deposit for ever)")
	cmd.Flags().DurationVar(&period, "period", 0, "of a pull: the amount is there anew after each")
	cmd.Flags().BoolVar(&ilp, "ilp", false, "an Interledger address in place of a tally: URI")
	return cmd
}

func (a *app) createILP(ctx context.Context, kind string, opts rpc.URIOptions) error {
	return askOne(ctx, a, func(ctx context.Context, r *remote) (rpc.ILPRow, error) {
		return r.ILPCreate(ctx, kind, opts)
	}, func(row rpc.ILPRow) *table {
		return newCard().add("address", row.Address).add("secret", row.Secret).add("protocol", row.Protocol).
			add("kind", row.Kind).add("amount", row.Amount).add("expires", row.Expires)
	})
}

// follow does what a payment pointer is for.
func (a *app) follow(ctx context.Context, pointer string, opts rpc.FollowOptions) error {
	return askOne(ctx, a, func(ctx context.Context, r *remote) (rpc.MovedRow, error) {
		return r.PointerFollow(ctx, pointer, opts)
	}, func(row rpc.MovedRow) *table {
		return newCard().add("pointer", row.Pointer).add("kind", row.Kind).add("sent", row.Sent).
			add("delivered", row.Delivered).add("received", row.Received)
	})
}

func (a *app) uriRedeemCmd() *cobra.Command {
	var low, high string
	var opts rpc.RedeemOptions
	var follow rpc.FollowOptions
	cmd := &cobra.Command{
		Use:   "redeem URI|$POINTER",
		Short: "Do what a URI is for",
		Long: `Opens a socket to the maker of a URI, with the limits that are usual for its kind and
amount, and waits up to 20 seconds until no money moves any more. An invoice is paid
up to the amount that the URI shows. A deposit needs to be told how much:
--min -100 --max -100 brings our side of it to 100.

A payment pointer is resolved over HTTPS, and paid or taken over Interledger: --amount
is what it is sent where it leaves that open, else the most.`,
		Example: "  tally uri redeem 'tally:12D3KooW…'\n  tally uri redeem '$shop.example/bill/7'",
		Args:    nArgs(1, "URI|$POINTER"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if strings.HasPrefix(args[0], "$") {
				return a.follow(cmd.Context(), args[0], follow)
			}
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
	cmd.Flags().Uint64Var(&follow.Amount, "amount", 0, "of a payment pointer: units to send, or the most")
	cmd.Flags().StringVar(&follow.Loopback, "loopback", "", "of a payment pointer: ask 127.0.0.1:PORT by plain HTTP in place of the host, for trials")
	return cmd
}
