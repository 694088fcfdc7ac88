package main

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) demoCmd() *cobra.Command {
	var mode, file string
	var pageSize int
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Watch two peers serve, count and settle, in one minute",
		Long: `Starts two peers on this machine with stores in a temporary folder, and a chain of
play money. One queries the other's messages page by page; both count; the tab
passes the threshold, and a cheque with a voucher of a payment channel goes over
and is acked. Then the server settles the channel and collects what the vouchers
say. Both books, the cheques, the voucher and the server's balance on the chain
before and after are shown. It exits with 0 only if the books agree and the chain
paid.

--mode soft counts only; mock settles with signed cheques that nobody can cash,
without a chain. FILE of --messages is as for ` + "`tally store import`" + `.`,
		Example: "  tally demo\n  tally demo --messages mine.ndjson --page-size 5 -o json",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch mode {
			case "soft", "mock", "hard":
			default:
				return usagef("use --mode hard, mock or soft", "%q is not a mode", mode)
			}
			if pageSize < 1 || pageSize > rpc.MaxPageSize {
				return usagef(fmt.Sprintf("use --page-size 1 to %d", rpc.MaxPageSize), "page size %d is out of bounds", pageSize)
			}
			if file != "" {
				// Named before anything starts, with its line.
				if _, err := readMessages(file); err != nil {
					return err
				}
			}
			if a.deps.Demo == nil {
				return failf("use a complete build", "this build has no demo")
			}
			show, end := a.progress()
			result, err := a.deps.Demo(cmd.Context(), DemoOptions{
				Mode: mode, Messages: file, PageSize: pageSize, Progress: show, Logger: slog.New(slog.DiscardHandler),
			})
			end()
			if err != nil {
				return err
			}
			if err := a.printDemo(result); err != nil {
				return err
			}
			if !result.BooksAgree {
				return errors.New("the two books do not agree")
			}
			if result.ChainPaid != nil && !*result.ChainPaid {
				return errors.New("the chain did not pay what the vouchers say")
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&mode, "mode", "hard", "hard, mock or soft")
	cmd.Flags().StringVar(&file, "messages", "", "file of messages to serve (default a sample)")
	cmd.Flags().IntVar(&pageSize, "page-size", 20, "most messages of a page")
	return cmd
}

func (a *app) printDemo(d DemoResult) error {
	if a.out.format == formatTable {
		t := newTable("SIDE", ">BALANCE", ">SERVED", ">CONSUMED", ">PAID", ">RECEIVED", "LAST CHEQUE")
		t.add("client", d.Client.Balance, d.Client.Served, d.Client.Consumed, d.Client.Paid, d.Client.Received, d.Client.LastCheque)
		t.add("server", d.Server.Balance, d.Server.Served, d.Server.Consumed, d.Server.Paid, d.Server.Received, d.Server.LastCheque)
		if err := t.write(a.out.w); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(a.out.w); err != nil {
			return err
		}
	}
	return a.out.one(d, func() *table {
		t := newCard().
			add("messages", d.Messages).add("pages", d.Pages).add("server credit", d.ServerCredit).add("client debit", d.ClientDebit).
			add("cheques sent", d.ChequesSent).add("cheques acked", d.ChequesAcked).add("books agree", d.BooksAgree)
		if d.ChainPaid != nil {
			t.add("channel", d.Channel).add("voucher", showFIL(d.VoucherTotal)).
				add("payee before", showFIL(d.PayeeBalanceBefore)).add("payee after", showFIL(d.PayeeBalanceAfter)).
				add("chain paid", *d.ChainPaid)
		}
		return t.add("mode", d.Mode).add("elapsed", cell(d.Elapsed)+" s")
	})
}
