package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) holdCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hold",
		Short: "Pay a payee that is offline",
		Long: `A holder, a neighbour of payer and payee, keeps a payment until the payee comes. The payer
may go offline meanwhile, and learns the outcome when it is back. Until the payee has the
money the payer can cancel; when the time is over it goes back by itself. The holding
costs a price, on the tab with the holder.

A peer takes what is held for it by itself, when it meets the holder. Whether and at what
price it holds for others say hold_max_hours and hold_price_base of its settings.`,
		Example: "  tally hold pay --holder 12D3Koo…H --payee 12D3Koo…E 1000\n  tally hold ls",
		RunE:    group,
	}
	cmd.AddCommand(a.holdPayCmd(), a.holdQuoteCmd(), a.holdLsCmd(), a.holdWaitCmd(), a.holdCancelCmd(), a.holdPromiseCmd(), a.holdCollectCmd(),
		a.holdRoomCmd(), a.holdBuyCmd(), a.holdTakeCmd(), a.holdMailsCmd())
	return cmd
}

func holdCard(r rpc.HoldRow) *table {
	t := newCard().add("id", r.ID).add("role", r.Role).add("status", r.Status).add("amount", r.Amount).add("price", r.Price).
		add("holder", r.Holder).add("payee", r.Payee).add("hash", r.PaymentHash)
	if r.Failure != "" {
		t.add("failure", r.Failure)
	}
	if r.Preimage != "" {
		t.add("preimage", r.Preimage)
	}
	if r.ExpiresAt != nil {
		t.add("goes back", r.ExpiresAt)
	}
	if r.ReturnBy != nil {
		t.add("be back by", r.ReturnBy)
	}
	if r.CertainBy != nil {
		t.add("certain by", r.CertainBy)
	}
	return t
}

func (a *app) oneHold(ctx context.Context, fn func(context.Context, *remote) (rpc.HoldRow, error)) error {
	return askOne(ctx, a, fn, holdCard)
}

// holdFlags are those of a hold that is not made yet; the returned function reads
// them.
func holdFlags(cmd *cobra.Command) func(args []string) (rpc.HoldOptions, error) {
	var o rpc.HoldOptions
	wait, back := 24*time.Hour, 24*time.Hour
	cmd.Flags().StringVar(&o.Holder, "holder", "", "peer id of the holder, a neighbour of ours and of the payee")
	cmd.Flags().StringVar(&o.Payee, "payee", "", "peer id of the payee")
	cmd.Flags().DurationVar(&wait, "time", wait, "how long the payee may take to come")
	cmd.Flags().DurationVar(&back, "return", back, "how much longer we may stay away, at least 15m")
	cmd.Flags().Uint64Var(&o.MaxPrice, "max-price", 100, "what the holding may cost, in units")
	cmd.Flags().BoolVar(&o.NoPoll, "no-poll", false, "the holder need not try the payee from time to time")
	cmd.Flags().StringVar(&o.Memo, "memo", "", "what the payee alone reads, at most 128 bytes")
	cmd.Flags().StringVar(&o.Promise, "promise", "", "text of the payee's `tally hold promise`: its preimage proves the payment")
	return func(args []string) (_ rpc.HoldOptions, err error) {
		if o.Holder == "" {
			return o, usagef("such as --holder 12D3Koo…", "no holder")
		}
		if o.Payee == "" && o.Promise == "" {
			return o, usagef("such as --payee 12D3Koo…", "no payee")
		}
		if len(args) > 0 {
			if o.Amount, err = unitsArg(args[0], false); err != nil {
				return o, err
			}
		} else if o.Promise == "" {
			return o, usagef("such as: tally hold pay --holder … --payee … 1000", "no amount")
		}
		if o.TimeSeconds, err = secondsFlag("time", wait); err != nil {
			return o, err
		}
		o.ReturnSeconds, err = secondsFlag("return", back)
		return o, err
	}
}

func (a *app) holdPayCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pay [AMOUNT]",
		Short: "Bind money at a holder for a payee that may be offline",
		Long: `Binds a number of units at the holder and prints the hold when the holder has agreed. From
then on this peer may go offline, and has to be back by the time shown.

The payee is an Ed25519 peer id (12D3Koo…): the secret is sealed to it. With --promise the
payee chose it, and the preimage is a proof of payment.

Run it once for each payment: what is run twice is paid twice.`,
		Example: "  tally hold pay --holder 12D3Koo…H --payee 12D3Koo…E 1000 --memo 'two coffees'\n  tally hold pay --holder 12D3Koo…H --promise tallyhold1… -o json",
		Args:    cobra.MaximumNArgs(1),
	}
	read := holdFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := read(args)
		if err != nil {
			return err
		}
		return a.oneHold(cmd.Context(), func(ctx context.Context, r *remote) (rpc.HoldRow, error) { return r.HoldPay(ctx, o) })
	}
	return cmd
}

func (a *app) holdQuoteCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "quote [AMOUNT]",
		Short:   "Ask what a hold would cost",
		Long:    "Asks the holder what `tally hold pay` with the same flags would cost. Nothing is bound.",
		Example: "  tally hold quote --holder 12D3Koo…H --payee 12D3Koo…E 1000 --time 72h",
		Args:    cobra.MaximumNArgs(1),
	}
	read := holdFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := read(args)
		if err != nil {
			return err
		}
		return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.HoldQuote, error) {
			return r.HoldQuote(ctx, o)
		}, func(q rpc.HoldQuote) *table {
			return newCard().add("price", q.Price)
		})
	}
	return cmd
}

func (a *app) holdLsCmd() *cobra.Command {
	var role string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List holds",
		Long: `Lists the holds of this peer: those it pays, those it keeps for others, and what it was
paid. Unsure is money that was taken just before this peer stopped; the tab says whether
it is there.`,
		Example: "  tally hold ls\n  tally hold ls --role holder -o json",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.HoldRow, error) {
				return r.HoldList(ctx, role)
			}, func(list []rpc.HoldRow) *table {
				t := newTable("id", "role", "status", ">amount", ">price", "payee", "changed", "memo")
				t.empty = "no holds"
				for _, r := range list {
					t.add(r.ID, r.Role, r.Status, r.Amount, r.Price, r.Payee, r.ChangedAt, r.Memo)
				}
				return t
			})
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "payer, holder or payee alone")
	return cmd
}

func (a *app) holdWaitCmd() *cobra.Command {
	timeout := time.Minute
	cmd := &cobra.Command{
		Use:     "wait ID",
		Short:   "Wait until a hold of ours is decided",
		Long:    "Waits until the payee was paid, or the money is back, and prints the hold.",
		Example: "  tally hold wait 00112233445566778899aabbccddeeff --timeout 10m",
		Args:    nArgs(1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.remote()
			if err != nil {
				return err
			}
			defer r.stop()
			until := time.Now().Add(timeout)
			for {
				left := max(0, min(waitStep, time.Until(until)))
				row, err := r.HoldWait(cmd.Context(), args[0], int(left.Milliseconds()))
				if hasCode(err, rpc.CodeHoldPending) && time.Now().Before(until) {
					continue
				}
				if err != nil {
					return r.explain(err)
				}
				return a.out.one(row, func() *table { return holdCard(row) })
			}
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait")
	return cmd
}

func (a *app) holdCancelCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel ID",
		Short: "Ask for the money of a hold back",
		Long: `Asks the holder to give a hold of ours back, or gives one back that this peer keeps for
another. While it is on its way to the payee that decides first. ` + "`tally hold wait`" + ` shows the
outcome.`,
		Example: "  tally hold cancel 00112233445566778899aabbccddeeff",
		Args:    nArgs(1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.Done, error) {
				return r.HoldCancel(ctx, args[0])
			}, func(_ rpc.Done) *table {
				return newCard().add("asked", args[0])
			})
		},
	}
}

func (a *app) holdPromiseCmd() *cobra.Command {
	expiry := 28 * 24 * time.Hour
	cmd := &cobra.Command{
		Use:   "promise PAYER AMOUNT",
		Short: "Give one payer a hash of ours",
		Long: `Makes a promise and prints its text for the payer. The payer's hold has a hash of ours then,
and the preimage that we show proves the payment. It is for this payer and for one hold: a
holder that could choose among hashes would give two payers the same.`,
		Example: "  tally hold promise 12D3Koo…P 1000 --expiry 72h",
		Args:    nArgs(2, "PAYER", "AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			amount, err := unitsArg(args[1], false)
			if err != nil {
				return err
			}
			seconds, err := secondsFlag("expiry", expiry)
			if err != nil {
				return err
			}
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.PromiseRow, error) {
				return r.HoldPromise(ctx, args[0], amount, seconds)
			}, func(p rpc.PromiseRow) *table {
				return newCard().add("promise", p.Promise).add("hash", p.PaymentHash).add("payer", p.Payer).add("amount", p.Amount).add("expires", p.ExpiresAt)
			})
		},
	}
	cmd.Flags().DurationVar(&expiry, "expiry", expiry, "how long it is good for, at most 28 days")
	return cmd
}

func (a *app) holdCollectCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "collect HOLDER",
		Short:   "Ask a holder now for what it holds for us",
		Long:    "Asks a holder for what it holds for this peer, and takes it. It is done by itself when the\nholder connects, and when it polls.",
		Example: "  tally hold collect 12D3Koo…H",
		Args:    nArgs(1, "HOLDER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.Done, error) {
				return r.HoldCollect(ctx, args[0])
			}, func(_ rpc.Done) *table {
				return newCard().add("asked", args[0])
			})
		},
	}
}
