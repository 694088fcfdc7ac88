package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

// Vouchers that are bought and mailed.

func mailCard(r rpc.MailRow) *table {
	t := newCard().add("id", r.ID).add("role", r.Role).add("status", r.Status).add("amount", r.Amount).add("price", r.Price).
		add("holder", r.Holder).add("payee", r.Payee).add("channel", r.Channel).add("lane", r.Lane).add("deadline epoch", r.Deadline).add("deadline", r.DeadlineAt)
	if r.Failure != "" {
		t.add("failure", r.Failure)
	}
	if r.Mail != "" {
		t.add("mail", r.Mail)
	}
	return t
}

func (a *app) oneMail(ctx context.Context, fn func(context.Context, *remote) (rpc.MailRow, error)) error {
	return askOne(ctx, a, fn, mailCard)
}

func (a *app) holdRoomCmd() *cobra.Command {
	var o rpc.RoomOptions
	var keep time.Duration
	cmd := &cobra.Command{
		Use:   "room HOLDER AMOUNT",
		Short: "Keep room for vouchers that payers buy while we are away",
		Long: `Keeps a number of units of a holder's channel to us free, and prints a signed statement for
a payer. With it the payer can buy the holder's own voucher for us and mail it, also while
we are offline. The holder is asked for a guard, which keeps it from settling the channel
and collecting before the time is over, and the guard goes to the chain; payers refuse the
statement until it is final there.

Name the payer: a statement for whoever comes can be sold twice by the holder.`,
		Example: "  tally hold room 12D3Koo…H 5000 --payer 12D3Koo…P --time 6h",
		Args:    nArgs(2, "HOLDER", "AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			o.Holder = args[0]
			if o.Room, err = unitsArg(args[1], false); err != nil {
				return err
			}
			if o.TimeSeconds, err = secondsFlag("time", keep); err != nil {
				return err
			}
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.RoomRow, error) {
				return r.HoldRoom(ctx, o)
			}, func(r rpc.RoomRow) *table {
				return newCard().add("statement", r.Statement).add("holder has it", r.Given).add("payer", r.Payer).add("channel", r.Channel).
					add("room", r.Room).add("total", r.Total).add("until epoch", r.Until).add("settle height", r.GuardHeight).add("final", r.MinSettle)
			})
		},
	}
	cmd.Flags().StringVar(&o.Payer, "payer", "", "peer id of the payer that it is for; without: whoever comes")
	cmd.Flags().DurationVar(&keep, "time", keep, "how long the room is kept; without: a day, or as long as the chain allows")
	return cmd
}

func (a *app) holdBuyCmd() *cobra.Command {
	var o rpc.BuyOptions
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "buy AMOUNT",
		Short: "Buy the holder's voucher for a payee that is offline",
		Long: `Buys a voucher of the holder's own channel to the payee and prints the mail, a text with
which the payee has the money. It is sent by itself when the payee connects; any other way
does too. Unlike ` + "`tally hold pay`" + ` this is final: the holder is paid at once, and a payee that
does not come by the deadline has let it lapse.

It is refused, and nothing paid, unless the chain shows that the channel stays open beyond
the deadline, and a statement of the payee leaves room: see ` + "`tally hold room`" + `.

Run it once for each payment: what is run twice is paid twice.`,
		Example: "  tally hold buy --holder 12D3Koo…H --payee 12D3Koo…E 1000 --time 2h\n  tally hold buy --holder 12D3Koo…H --statement tallylane1… 1000 -o json",
		Args:    nArgs(1, "AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.Holder == "" {
				return usagef("such as --holder 12D3Koo…", "no holder")
			}
			if o.Payee == "" && o.Statement == "" {
				return usagef("such as --payee 12D3Koo…", "no payee")
			}
			if o.Amount, err = unitsArg(args[0], false); err != nil {
				return err
			}
			if o.TimeSeconds, err = secondsFlag("time", wait); err != nil {
				return err
			}
			return a.oneMail(cmd.Context(), func(ctx context.Context, r *remote) (rpc.MailRow, error) { return r.HoldBuy(ctx, o) })
		},
	}
	cmd.Flags().StringVar(&o.Holder, "holder", "", "peer id of the holder, a neighbour with a channel to the payee")
	cmd.Flags().StringVar(&o.Payee, "payee", "", "peer id of the payee")
	cmd.Flags().DurationVar(&wait, "time", wait, "how long the payee may take to come; without: as long as it keeps the room")
	cmd.Flags().Uint64Var(&o.MaxPrice, "max-price", 100, "what the sale may cost beside the amount, in units")
	cmd.Flags().StringVar(&o.Statement, "statement", "", "text of the payee's `tally hold room`; without: the holder is asked")
	cmd.Flags().BoolVar(&o.Shared, "shared", false, "take a statement that is for whoever comes, and trust the holder not to sell it twice")
	return cmd
}

func (a *app) holdTakeCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "take MAIL",
		Short:   "Take a mail: money that a payer bought for us",
		Long:    "Takes the text that the payer's `tally hold buy` printed. The voucher in it goes to the chain by\nitself before its deadline. The same mail again changes nothing.",
		Example: "  tally hold take tallymail1…",
		Args:    nArgs(1, "MAIL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.oneMail(cmd.Context(), func(ctx context.Context, r *remote) (rpc.MailRow, error) { return r.HoldTake(ctx, args[0]) })
		},
	}
}

func (a *app) holdMailsCmd() *cobra.Command {
	var role string
	cmd := &cobra.Command{
		Use:   "mails",
		Short: "List vouchers that were bought, sold or mailed to us",
		Long: `Lists the vouchers that this peer bought for payees, those that it sold as a holder, and
those that it was mailed. A purchase is redeemed when the chain has paid it for good; one
that is bought waits for its mail to be delivered.`,
		Example: "  tally hold mails\n  tally hold mails --role payer -o json",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.MailRow, error) {
				return r.HoldMails(ctx, role)
			}, func(list []rpc.MailRow) *table {
				t := newTable("id", "role", "status", ">amount", ">price", "payee", "deadline", "changed")
				t.empty = "no mails"
				for _, r := range list {
					t.add(r.ID, r.Role, r.Status, r.Amount, r.Price, r.Payee, r.DeadlineAt, r.ChangedAt)
				}
				return t
			})
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "payer, holder or payee alone")
	return cmd
}
