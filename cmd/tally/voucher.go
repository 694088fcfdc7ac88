package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) voucherCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "voucher",
		Short: "Make, check, keep and submit the vouchers of payment channels",
		Long: `A voucher is the payer's signed statement that a lane of a channel is worth so much
in all. A later one replaces all before it. It is passed on as a text, and each
command takes that text as it is.

` + amountHelp,
		Example: "  tally voucher create f2… \"0.1 FIL\" --lane 1\n  tally voucher inspect i1UB…",
		RunE:    group,
	}
	cmd.AddCommand(a.voucherCreateCmd(), a.voucherCheckCmd(), a.voucherAddCmd(), a.voucherLsCmd(), a.voucherSubmitCmd(), a.voucherInspectCmd())
	return cmd
}

// secretFlag adds --secret.
func secretFlag(cmd *cobra.Command, secret *string) {
	cmd.Flags().StringVar(secret, "secret", "", "the 32 bytes that open the voucher's lock, in hex")
}

func (a *app) voucherCreateCmd() *cobra.Command {
	var spec rpc.VoucherSpec
	cmd := &cobra.Command{
		Use:   "create CHANNEL AMOUNT",
		Short: "Sign a voucher",
		Long: `Signs a voucher over the new total of a lane, not over an increase. It takes what is
reserved first, then what is free; where the channel holds too little the command
fails and says how much is missing. On a channel that pays us it signs a refund:
a total below the lane's, which the payer submits.

--lock makes it payable only with the secret whose BLAKE2b-256 is the hash; the time
locks bound the epochs in which it can be submitted.

` + amountHelp,
		Example: `  tally voucher create f2… "0.1 FIL" --lane 1 -o json
  tally voucher create f2… 500 --lane 2 --lock 6a0c… --time-lock-max 120000`,
		Args: nArgs(2, "CHANNEL", "AMOUNT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			amount, err := amountArg(args[1])
			if err != nil {
				return err
			}
			spec.Amount = amount
			r, err := ask(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.VoucherResult, error) {
				return r.PaychVoucherCreateSpec(ctx, args[0], spec)
			})
			switch {
			case err != nil:
				return err
			case r.Voucher == nil:
				return rpc.NewError(rpc.CodeShortfall, "the channel lacks %s (%s attoFIL) for the voucher", showFIL(r.Shortfall), r.Shortfall).
					WithRemedy("tally channel add-funds %s %s --wait", args[0], r.Shortfall)
			}
			return a.out.one(r.Voucher, func() *table { return voucherCard(*r.Voucher) })
		},
	}
	cmd.Flags().Uint64Var(&spec.Lane, "lane", 0, "lane of the channel; `tally channel lane` gives a fresh one")
	cmd.Flags().StringVar(&spec.SecretHash, "lock", "", "hash lock: BLAKE2b-256 of a secret of 32 bytes, in hex")
	cmd.Flags().Int64Var(&spec.TimeLockMin, "time-lock-min", 0, "first epoch in which it can be submitted (0: any)")
	cmd.Flags().Int64Var(&spec.TimeLockMax, "time-lock-max", 0, "last epoch in which it can be submitted (0: any)")
	cmd.Flags().Int64Var(&spec.MinSettleHeight, "min-settle-height", 0, "epoch before which the channel cannot settle (0: any)")
	return cmd
}

func voucherCard(v rpc.VoucherInfo) *table {
	t := newCard().add("voucher", v.Voucher).add("channel", v.Channel).add("lane", v.Lane).add("nonce", v.Nonce).
		add("amount", showFIL(v.Amount)).add("lock", v.SecretHash).add("time lock min", v.TimeLockMin).add("time lock max", v.TimeLockMax).
		add("min settle height", v.MinSettleHeight)
	for _, m := range v.Merges {
		t.add("merges lane", cell(m.Lane)+" nonce "+cell(m.Nonce))
	}
	if x := v.Extra; x != nil {
		t.add("extra actor", x.Actor).add("extra method", x.Method).add("extra data", x.Data)
	}
	t.add("signer", v.Signer).add("signing digest", v.SigningDigest).add("signature type", v.SignatureType).add("signature", v.Signature)
	if v.SignatureError != "" {
		t.add("signature error", v.SignatureError)
	}
	return t
}

// voucherCheck is what `tally voucher check` finds.
type voucherCheck struct {
	Valid     bool            `json:"valid"`
	Spendable bool            `json:"spendable"`
	Voucher   rpc.VoucherInfo `json:"voucher"`
}

func (a *app) voucherCheckCmd() *cobra.Command {
	var secret string
	cmd := &cobra.Command{
		Use:   "check CHANNEL TEXT",
		Short: "Check a voucher without keeping it",
		Long: `Checks all that can be known of a voucher before it is submitted: channel, signer,
amount, nonce, locks, and that the channel holds enough. One that is not valid is an
error that says why. Spendable says whether the chain would take it now.`,
		Example: "  tally voucher check f2… i1UB…",
		Args:    nArgs(2, "CHANNEL", "TEXT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (voucherCheck, error) {
				v, err := r.PaychVoucherCheckValid(ctx, args[0], args[1])
				if err != nil {
					return voucherCheck{}, err
				}
				s, err := r.PaychVoucherCheckSpendable(ctx, args[0], args[1], secret)
				return voucherCheck{true, s.Spendable, v}, err
			}, func(c voucherCheck) *table {
				t := newCard().add("valid", c.Valid).add("spendable", c.Spendable)
				t.rows = append(t.rows, voucherCard(c.Voucher).rows...)
				return t
			})
		},
	}
	secretFlag(cmd, &secret)
	return cmd
}

func (a *app) voucherAddCmd() *cobra.Command {
	var secret, minDelta string
	cmd := &cobra.Command{
		Use:   "add CHANNEL TEXT",
		Short: "Keep a voucher that we were given",
		Long: `Checks a voucher and keeps it, and prints by how much it raises what we will get. It
is submitted by itself when the channel settles. One with a lock counts once its
secret is known. --min-delta refuses a voucher that adds less.

` + amountHelp,
		Example: "  tally voucher add f2… i1UB…\n  tally voucher add f2… i1UB… --min-delta \"1 nanoFIL\"",
		Args:    nArgs(2, "CHANNEL", "TEXT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			least, err := amountArg(minDelta)
			if err != nil {
				return err
			}
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.VoucherAdded, error) {
				return r.PaychVoucherAdd(ctx, args[0], args[1], secret, least)
			}, func(v rpc.VoucherAdded) *table {
				return newCard().add("channel", v.Channel).add("delta", showFIL(v.Delta))
			})
		},
	}
	secretFlag(cmd, &secret)
	cmd.Flags().StringVar(&minDelta, "min-delta", "0", "the least that the voucher must add")
	return cmd
}

func (a *app) voucherLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "ls CHANNEL",
		Short: "List the vouchers of a channel",
		Long: `Lists the vouchers that can still bring something and the last ones, oldest first.
Origin says who gave them: given by us, received, or a refund that the payee signed.`,
		Example: "  tally voucher ls f2…\n  tally voucher ls f2… -o ndjson",
		Args:    nArgs(1, "CHANNEL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.VoucherRow, error) {
				return r.PaychVoucherRecords(ctx, args[0])
			}, func(list []rpc.VoucherRow) *table {
				t := newTable(">LANE", ">NONCE", ">AMOUNT", "ORIGIN", "LIVE", "REDEEMED", "LOCK", ">EPOCH", "VOUCHER")
				t.empty = "no vouchers yet"
				for i := range list {
					v := &list[i]
					lock := ""
					switch {
					case v.SecretHash != "" && v.Opened:
						lock = "opened"
					case v.SecretHash != "":
						lock = "locked"
					case v.Signature == "":
						lock = "point" // its signature was given encrypted
					}
					t.add(v.Lane, v.Nonce, showFIL(v.Amount), v.Origin, v.Live, v.Redeemed, lock, v.Epoch, v.Voucher)
				}
				return t
			})
		},
	}
}

func (a *app) voucherSubmitCmd() *cobra.Command {
	var (
		secret string
		wait   bool
	)
	cmd := &cobra.Command{
		Use:   "submit CHANNEL TEXT",
		Short: "Put a voucher on the chain",
		Long: `Puts a voucher of the other side on the chain. One that the chain would refuse is not
sent. There is no need for it before settling, when the best vouchers are submitted
by themselves, but for a lock that is about to expire.`,
		Example: "  tally voucher submit f2… i1UB… --wait",
		Args:    nArgs(2, "CHANNEL", "TEXT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := a.message(cmd.Context(), wait, func(ctx context.Context, r *remote) (*rpc.MessageRow, error) {
				m, err := r.PaychVoucherSubmit(ctx, args[0], args[1], secret)
				return &m, err
			})
			if err != nil {
				return err
			}
			return a.showMessage(m)
		},
	}
	secretFlag(cmd, &secret)
	return waitFlag(cmd, &wait)
}

func (a *app) voucherInspectCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect TEXT",
		Short: "Show every field of a voucher, its signer and what was signed",
		Long: `Reads the text of a voucher and shows all of it: every field, the address whose
signature it carries, and the digest that was signed. It asks no peer and no chain,
and takes the vouchers of Lotus as well.`,
		Example: "  tally voucher inspect i1UB…\n  tally voucher inspect i1UB… -o json",
		Args:    nArgs(1, "TEXT"),
		RunE: func(_ *cobra.Command, args []string) error {
			v, err := rpc.InspectVoucher(args[0])
			if err != nil {
				return err
			}
			return a.out.one(v, func() *table { return voucherCard(v) })
		},
	}
}
