package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

// paymentCmds are the commands of payments in parts. They stand at the top, under the
// names that the mail gave them.
func (a *app) paymentCmds() []*cobra.Command {
	return []*cobra.Command{
		a.invoiceCmd(), a.payCmd(), a.listInvoicesCmd(), a.listPartialInvoicesCmd(), a.settleInvoiceCmd(), a.cancelInvoiceCmd(),
		a.listPaymentsCmd(), a.listPartialPaymentsCmd(), a.sendPartialPayCmd(), a.waitPartialPayCmd(), a.waitPaymentCmd(),
	}
}

func invoiceCard(r rpc.InvoiceRow) *table {
	t := newCard()
	if r.Invoice != "" {
		t.add("invoice", r.Invoice)
	}
	t.add("hash", r.PaymentHash).add("amount", r.Amount).add("memo", r.Memo).add("status", r.Status).add("expires", r.ExpiresAt)
	if r.Hold {
		t.add("hold", r.Hold)
	}
	if r.Parts > 0 {
		t.add("waiting", r.Waiting).add("parts", r.Parts)
	}
	if r.PaidAt != nil {
		t.add("received", r.Received).add("paid", r.PaidAt)
	}
	if r.Lost > 0 {
		t.add("lost", r.Lost)
	}
	return t
}

func (a *app) oneInvoice(ctx context.Context, fn func(context.Context, *remote) (rpc.InvoiceRow, error)) error {
	return askOne(ctx, a, fn, invoiceCard)
}

func (a *app) invoiceCmd() *cobra.Command {
	var opts rpc.InvoiceOptions
	var expiry time.Duration
	cmd := &cobra.Command{
		Use:   "invoice AMOUNT",
		Short: "Ask to be paid",
		Long: `Makes an invoice over a number of units and prints its text. Whoever has the text can pay
it, in one part or in several, and on the way take parts for themselves: give it to the
payer alone. An amount of 0 lets the payer choose. All parts of a payment are taken, or
none: what has come waits for the rest for 60 seconds.

With --hold all parts wait until ` + "`tally settleinvoice`" + ` takes them, at most until the
first of them expires. --hash is for a hold invoice whose preimage somebody else knows.`,
		Example: "  tally invoice 1000 --memo 'two coffees'\n  tally invoice 0 --expiry 24h -o json",
		Args:    nArgs(1, "AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if opts.Amount, err = unitsArg(args[0], true); err != nil {
				return err
			}
			if opts.ExpirySeconds, err = secondsFlag("expiry", expiry); err != nil {
				return err
			}
			if opts.PaymentHash != "" && !opts.Hold {
				return usagef("add --hold", "--hash is for hold invoices")
			}
			return a.oneInvoice(cmd.Context(), func(ctx context.Context, r *remote) (rpc.InvoiceRow, error) { return r.Invoice(ctx, opts) })
		},
	}
	cmd.Flags().StringVar(&opts.Memo, "memo", "", "what it is for; the payer reads it")
	cmd.Flags().DurationVar(&expiry, "expiry", 0, "how long it can be paid (default 1h)")
	cmd.Flags().BoolVar(&opts.Hold, "hold", false, "take nothing before settleinvoice")
	cmd.Flags().StringVar(&opts.PaymentHash, "hash", "", "of a preimage that somebody else knows, in hex")
	return cmd
}

// unitsArg reads a number of units.
func unitsArg(text string, zero bool) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || n == 0 && !zero {
		return 0, usagef("use a whole number of units above 0", "%q is not an amount", text)
	}
	return n, nil
}

func secondsFlag(name string, d time.Duration) (uint64, error) {
	if d < 0 || d%time.Second != 0 {
		return 0, usagef("such as --"+name+" 90s", "%v is not a whole number of seconds", d)
	}
	return uint64(d / time.Second), nil
}

func (a *app) listInvoicesCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "listinvoices [HASH]",
		Short: "List our invoices: paid or not, how much, when",
		Long: `Lists our invoices, oldest first, or one of them. Waiting is what has come and is not
claimed. An invoice is open, held, paid, cancelled or expired.`,
		Example: "  tally listinvoices\n  tally listinvoices -o json",
		Args:    nArgs(0, "HASH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.InvoiceRow, error) {
				return r.ListInvoices(ctx, optionalArg(args))
			}, func(list []rpc.InvoiceRow) *table {
				t := newTable("hash", ">amount", "status", ">waiting", ">received", "paid", "expires", "memo")
				t.empty = "no invoices"
				for _, r := range list {
					t.add(r.PaymentHash, r.Amount, r.Status, r.Waiting, r.Received, r.PaidAt, r.ExpiresAt, r.Memo)
				}
				return t
			})
		},
	}
}

func optionalArg(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func (a *app) listPartialInvoicesCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "listpartialinvoices [HASH]",
		Short: "List parts that arrived and are not claimed",
		Long: `Lists what has come of payments that are not whole yet, or that are held: is the payer
even trying? A part goes back at its deadline unless the others come, or the invoice is
settled. When a payment is whole its parts are claimed and leave this list.`,
		Example: "  tally listpartialinvoices",
		Args:    nArgs(0, "HASH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.PartialInvoiceRow, error) {
				return r.ListPartialInvoices(ctx, optionalArg(args))
			}, func(list []rpc.PartialInvoiceRow) *table {
				t := newTable("hash", "from", ">part", ">total", "received", "deadline")
				t.empty = "nothing waits"
				for _, r := range list {
					t.add(r.PaymentHash, r.IncomingPeer, r.PartialAmount, r.TotalAmount, r.ReceivedAt, r.Deadline)
				}
				return t
			})
		},
	}
}

func (a *app) settleInvoiceCmd() *cobra.Command {
	var preimage string
	cmd := &cobra.Command{
		Use:   "settleinvoice HASH",
		Short: "Take a held invoice",
		Long: `Claims all parts of a hold invoice that is here whole. --preimage is for one that was
made with --hash.`,
		Example: "  tally settleinvoice 5f0c…",
		Args:    nArgs(1, "HASH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.oneInvoice(cmd.Context(), func(ctx context.Context, r *remote) (rpc.InvoiceRow, error) {
				return r.SettleInvoice(ctx, args[0], preimage)
			})
		},
	}
	cmd.Flags().StringVar(&preimage, "preimage", "", "64 hex digits, where the peer does not know them")
	return cmd
}

func (a *app) cancelInvoiceCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "cancelinvoice HASH",
		Short:   "Give an invoice up",
		Long:    `Gives an invoice up for good. What waits for it goes back to its payer.`,
		Example: "  tally cancelinvoice 5f0c…",
		Args:    nArgs(1, "HASH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.oneInvoice(cmd.Context(), func(ctx context.Context, r *remote) (rpc.InvoiceRow, error) { return r.CancelInvoice(ctx, args[0]) })
		},
	}
}

// PayResult is what pay prints: the payment and every attempt.
type PayResult struct {
	rpc.PaymentRow
	Attempts []rpc.PartRow `json:"attempts"`
}

func paymentCard(r rpc.PaymentRow) *table {
	t := newCard().add("hash", r.PaymentHash).add("payee", r.Payee).add("amount", r.Amount).add("status", r.Status).
		add("arrived", r.Arrived).add("fees", r.Fees)
	if r.Pending > 0 {
		t.add("pending", r.Pending).add("certain by", r.CertainBy)
	}
	if r.Preimage != "" {
		t.add("preimage", r.Preimage)
	}
	return t
}

func partTable(list []rpc.PartRow) *table {
	t := newTable(">id", ">amount", ">fee", ">hops", "status", "failure", ">at hop", "hash")
	t.empty = "no parts"
	for _, p := range list {
		hop := ""
		if p.FailedHop >= 0 {
			hop = strconv.Itoa(p.FailedHop)
		}
		t.add(p.ID, p.Amount, p.Fee, len(p.Via)+1, p.Status, p.Failure, hop, p.PaymentHash)
	}
	return t
}

// hasCode reports whether err carries one of the codes of payments.
func hasCode(err error, codes ...rpc.Code) bool {
	var e *rpc.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e.Code == c {
			return true
		}
	}
	return false
}

func (a *app) payCmd() *cobra.Command {
	var opts rpc.PayOptions
	var maxFee uint64
	timeout := time.Minute
	cmd := &cobra.Command{
		Use:   "pay INVOICE",
		Short: "Pay an invoice, in as many parts as it takes",
		Long: `Pays an invoice over one way or several: all of it arrives, or nothing is taken. Parts
that come back are sent again over other ways until --timeout. The attempts are shown.

The invoice names the payment. To pay it again joins what is under way, and what is paid
is never paid twice, also after a crash. Where the command ends before the payment is
decided, certain_by says by when it is; ` + "`tally waitpayment`" + ` waits for it.`,
		Example: "  tally pay tallyinv1…\n  tally pay tallyinv1… --max-fee 5 --timeout 30s -o json",
		Args:    nArgs(1, "INVOICE"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if opts.TimeoutSeconds, err = secondsFlag("timeout", timeout); err != nil {
				return err
			}
			if opts.TimeoutSeconds == 0 {
				return usagef("such as --timeout 30s", "no time to pay in")
			}
			if cmd.Flags().Changed("max-fee") {
				opts.MaxFee = &maxFee
			}
			r, err := a.remote()
			if err != nil {
				return err
			}
			defer r.stop()
			return a.pay(cmd.Context(), r, args[0], opts, timeout)
		},
	}
	cmd.Flags().Uint64Var(&opts.Amount, "amount", 0, "units, where the invoice leaves it open; at most twice of what it asks")
	cmd.Flags().Uint64Var(&maxFee, "max-fee", 0, "units in all (default 1 %, and at least 10)")
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long parts are sent")
	return cmd
}

func (a *app) pay(ctx context.Context, r *remote, invoice string, opts rpc.PayOptions, timeout time.Duration) error {
	hash, err := rpc.InvoiceHash(invoice)
	if err != nil {
		return err
	}
	until := time.Now().Add(timeout)
	row, failed := r.Pay(ctx, invoice, opts)
	if hasCode(failed, rpc.CodePaymentPending) && time.Now().Before(until) {
		row, failed = waitUntil(until, func(ms int) (rpc.PaymentRow, error) { return r.WaitPayment(ctx, hash, ms) })
	}
	if failed != nil && ctx.Err() != nil {
		return ctx.Err() // the payment goes on
	}
	if failed != nil && !hasCode(failed, rpc.CodePaymentPending, rpc.CodePaymentFailed) {
		return r.explain(failed)
	}
	// What was tried is shown, also of a payment that failed.
	attempts, err := r.ListPartialPayments(ctx, hash)
	if hasCode(err, rpc.CodeNoPayment) {
		return r.explain(failed) // nothing ever left
	}
	if err != nil {
		return r.explain(err)
	}
	if failed != nil {
		list, err := r.ListPayments(ctx)
		if err != nil {
			return r.explain(err)
		}
		for _, p := range list {
			if p.PaymentHash == hash {
				row = p
			}
		}
	}
	err = a.out.one(PayResult{row, attempts}, func() *table { return paymentCard(row) })
	if err == nil && a.out.format == formatTable {
		_, _ = fmt.Fprintln(a.out.w)
		err = partTable(attempts).write(a.out.w)
	}
	if err != nil {
		return err
	}
	return failed
}

// waitStep is how long one call waits.
const waitStep = 30 * time.Second

// waitUntil asks again while something is pending, at least once.
func waitUntil[T any](until time.Time, ask func(timeoutMS int) (T, error)) (T, error) {
	for {
		left := max(0, min(waitStep, time.Until(until)))
		v, err := ask(int(left.Milliseconds()))
		if !hasCode(err, rpc.CodePaymentPending) || !time.Now().Before(until) {
			return v, err
		}
	}
}

func (a *app) listPaymentsCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "listpayments",
		Short:   "List what we paid",
		Long:    `Lists our payments, oldest first, a line for each. A payment is pending, complete or failed.`,
		Example: "  tally listpayments\n  tally listpayments -o json",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.PaymentRow, error) {
				return r.ListPayments(ctx)
			}, func(list []rpc.PaymentRow) *table {
				t := newTable("hash", "payee", ">amount", "status", ">arrived", ">pending", ">fees", "created", "certain by")
				t.empty = "no payments"
				for _, r := range list {
					t.add(r.PaymentHash, r.Payee, r.Amount, r.Status, r.Arrived, r.Pending, r.Fees, r.CreatedAt, r.CertainBy)
				}
				return t
			})
		},
	}
}

func (a *app) listPartialPaymentsCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "listpartialpayments [ID|HASH]",
		Short: "List every attempt to send a part",
		Long: `Lists the parts of all payments, of one payment by its hash, or one part by its id. A
failed part shows why, and how many hops had taken it before.`,
		Example: "  tally listpartialpayments\n  tally listpartialpayments 42",
		Args:    nArgs(0, "ID|HASH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.PartRow, error) {
				return r.ListPartialPayments(ctx, optionalArg(args))
			}, partTable)
		},
	}
}

func (a *app) sendPartialPayCmd() *cobra.Command {
	var opts rpc.SendPartOptions
	cmd := &cobra.Command{
		Use:   "sendpartialpay INVOICE AMOUNT",
		Short: "Send one part of a payment over a way of your own",
		Long: `Sends one part, and returns when it is on disk; ` + "`tally waitpartialpay ID`" + ` waits for it. It
is for scripts that choose the ways themselves; ` + "`tally pay`" + ` does all of it.

--intended is the whole payment, the same for all of its parts. The same part again sends
nothing while it lives. The payee takes all parts together, or gives them back after 60
seconds.`,
		Example: "  tally sendpartialpay tallyinv1… 60 --number 1 --via 12D3KooW… --fee 1\n  tally sendpartialpay tallyinv1… 40 --number 2 --via 12D3KooX… --fee 1",
		Args:    nArgs(2, "INVOICE", "AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if opts.Amount, err = unitsArg(args[1], false); err != nil {
				return err
			}
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.PartReply, error) {
				return r.SendPartialPay(ctx, args[0], opts)
			}, func(row rpc.PartReply) *table {
				t := newCard().add("outcome", row.Outcome).add("id", row.ID).add("hash", row.PaymentHash)
				if row.Preimage != "" {
					t.add("preimage", row.Preimage)
				}
				return t
			})
		},
	}
	cmd.Flags().Uint64Var(&opts.Intended, "intended", 0, "units of the whole payment (default: what the invoice asks for)")
	cmd.Flags().Uint64Var(&opts.Fee, "fee", 0, "units that the way may keep, beside the amount")
	cmd.Flags().Uint64Var(&opts.Number, "number", 1, "which part of the payment it is")
	cmd.Flags().StringSliceVar(&opts.Via, "via", nil, "peers on the way, joined by commas")
	return cmd
}

// timeoutFlag adds --timeout to a command that waits.
func timeoutFlag(cmd *cobra.Command, d *time.Duration) *cobra.Command {
	*d = time.Minute
	cmd.Flags().DurationVar(d, "timeout", *d, "how long to wait; the payment goes on")
	return cmd
}

func (a *app) waitPartialPayCmd() *cobra.Command {
	var timeout time.Duration
	return timeoutFlag(&cobra.Command{
		Use:     "waitpartialpay ID",
		Short:   "Wait until a part is claimed or given back",
		Long:    `Waits until a part is decided, and fails where it was given back or time is over first.`,
		Example: "  tally waitpartialpay 42 --timeout 90s",
		Args:    nArgs(1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return usagef("use an id that sendpartialpay printed", "%q is not the id of a part", args[0])
			}
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.PartRow, error) {
				return waitUntil(time.Now().Add(timeout), func(ms int) (rpc.PartRow, error) { return r.WaitPartialPay(ctx, id, ms) })
			}, func(row rpc.PartRow) *table {
				return newCard().add("id", row.ID).add("status", row.Status).add("amount", row.Amount).add("fee", row.Fee).
					add("via", strings.Join(row.Via, " ")).add("hash", row.PaymentHash)
			})
		},
	}, &timeout)
}

func (a *app) waitPaymentCmd() *cobra.Command {
	var timeout time.Duration
	return timeoutFlag(&cobra.Command{
		Use:     "waitpayment HASH",
		Short:   "Wait until a payment is complete or failed",
		Long:    `Waits until a payment is decided, and fails where it failed or time is over first.`,
		Example: "  tally waitpayment 5f0c… --timeout 15m",
		Args:    nArgs(1, "HASH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.PaymentRow, error) {
				return waitUntil(time.Now().Add(timeout), func(ms int) (rpc.PaymentRow, error) { return r.WaitPayment(ctx, args[0], ms) })
			}, paymentCard)
		},
	}, &timeout)
}
