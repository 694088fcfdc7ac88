package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tally/host/rpc"
)

func (a *app) signatureCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "signature",
		Short: "Sell a signature, or buy one",
		Long: `A signature can be sold so that neither side has to trust the other: the buyer's money
opens with the signature and with nothing else. The seller names key, message and nonce of
a BIP 340 signature in an offer. Its number s is the secret of a point that the buyer
computes from these; the buyer pays under that point, and who takes the money shows s.
Where the seller is not heard of any more, the chain shows it, or the money comes back.

It needs channels: every hop carries the payment under a lock of that point, or refuses
it. Seller, buyer and the peers between them have to be in mode hard, with channels that
are worth claiming on their chain.`,
		Example: "  tally signature sell 5000 --message 'delivered: parcel 7' --id parcel-7\n  tally signature buy tallysig1… --message 'delivered: parcel 7'\n  tally signature ls",
		RunE:    group,
	}
	cmd.AddCommand(a.signatureSellCmd(), a.signatureBuyCmd(), a.signatureLsCmd(), a.signatureShowCmd(), a.signatureKeyCmd())
	return cmd
}

func signatureCard(r rpc.SignatureRow) *table {
	t := newCard()
	if r.Signature != "" {
		t.add("signature", r.Signature)
	}
	if r.Offer != "" {
		t.add("offer", r.Offer)
	}
	t.add("id", r.ID).add("role", r.Role).add("status", r.Status).add("amount", r.Amount)
	if r.Fees > 0 {
		t.add("fees", r.Fees)
	}
	if r.Memo != "" {
		t.add("memo", r.Memo)
	}
	t.add("seller", r.Seller).add("key", r.Key).add("digest", r.Digest).add("nonce", r.Nonce).add("point", r.Point).add("expires", r.ExpiresAt)
	if r.DecidedAt != nil {
		t.add("decided", r.DecidedAt)
	}
	if r.CertainBy != nil {
		t.add("certain by", r.CertainBy)
	}
	return t
}

// signedFlags are those that name what is signed. The returned function reads them, the
// file of --file hashed.
func signedFlags(cmd *cobra.Command, message, digest *string) func() error {
	var file string
	cmd.Flags().StringVar(message, "message", "", "the text that is signed, by its SHA-256")
	cmd.Flags().StringVar(&file, "file", "", "a file that is signed, by its SHA-256; it is read here")
	cmd.Flags().StringVar(digest, "digest", "", "64 hex digits that are signed as they are")
	cmd.MarkFlagsMutuallyExclusive("message", "file", "digest")
	return func() error {
		if file == "" {
			return nil
		}
		f, err := os.Open(file)
		if err != nil {
			return usagef("name a file that can be read", "%w", err)
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		*digest = hex.EncodeToString(h.Sum(nil))
		return nil
	}
}

func (a *app) signatureSellCmd() *cobra.Command {
	var opts rpc.SignatureOptions
	var expiry time.Duration
	cmd := &cobra.Command{
		Use:   "sell AMOUNT",
		Short: "Offer a signature over a message",
		Long: `Makes the signature, keeps it, and prints an offer of it for the buyer. The signature is
shown by nobody before somebody has paid for it. The key is one of the wallet that this
peer has for signatures alone (` + "`tally signature key`" + `).

With --hold the buyer's money waits, at most until its locks end: ` + "`tally settleinvoice`" + `
takes it, with the point's last 64 digits, and ` + "`tally cancelinvoice`" + ` gives it back.

With --id the command can be run again: it prints the same offer. Without, each run is
another signature, with another nonce; each can be bought.

The text of the offer has a secret: give it to the buyer alone. Who sells says in the
message what the signature is good for; any 32 bytes of --digest are signed.`,
		Example: "  tally signature sell 5000 --message 'delivered: parcel 7' --id parcel-7 --expiry 24h\n  tally signature sell 5000 --file contract.pdf -o json",
		Args:    nArgs(1, "AMOUNT"),
	}
	read := signedFlags(cmd, &opts.Message, &opts.Digest)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if opts.Amount, err = unitsArg(args[0], false); err != nil {
			return err
		}
		if opts.ExpirySeconds, err = secondsFlag("expiry", expiry); err != nil {
			return err
		}
		if err = read(); err != nil {
			return err
		}
		if opts.Message == "" && opts.Digest == "" {
			return usagef("such as --message 'delivered: parcel 7'", "nothing to sign")
		}
		return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.SignatureRow, error) {
			return r.SignatureSell(ctx, opts)
		}, signatureCard)
	}
	cmd.Flags().StringVar(&opts.ID, "id", "", "a name of yours for the offer, at most 64 bytes")
	cmd.Flags().StringVar(&opts.Memo, "memo", "", "what the buyer reads beside it")
	cmd.Flags().BoolVar(&opts.Hold, "hold", false, "show nothing before settleinvoice")
	cmd.Flags().DurationVar(&expiry, "expiry", 0, "how long it can be bought (default 1h)")
	return cmd
}

func (a *app) signatureBuyCmd() *cobra.Command {
	var opts rpc.SignatureBuyOptions
	var maxFee uint64
	timeout := time.Minute
	cmd := &cobra.Command{
		Use:   "buy OFFER",
		Short: "Pay for the signature of an offer, and print it",
		Long: `Pays what the offer asks, under its point, and prints the signature, verified: 128 hex
digits, R and s of BIP 340. Say with --key and with --message, --file or --digest what the
signature has to be: an offer of another one is refused before anything is paid.

The offer names the payment. To buy it again joins what is under way, and what is bought is
never paid twice, also after a crash. Where the command ends before it is decided, the peer
goes on, and certain_by says by when it is: ` + "`tally signature ls`" + `.`,
		Example: "  tally signature buy tallysig1… --message 'delivered: parcel 7' --key 79be…\n  tally signature buy tallysig1… --max-fee 5 --timeout 5m -o json",
		Args:    nArgs(1, "OFFER"),
	}
	read := signedFlags(cmd, &opts.Message, &opts.Digest)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if opts.TimeoutSeconds, err = secondsFlag("timeout", timeout); err != nil {
			return err
		}
		if opts.TimeoutSeconds == 0 {
			return usagef("such as --timeout 5m", "no time to buy in")
		}
		if cmd.Flags().Changed("max-fee") {
			opts.MaxFee = &maxFee
		}
		if err = read(); err != nil {
			return err
		}
		id, err := rpc.OfferID(args[0])
		if err != nil {
			return err
		}
		until := time.Now().Add(timeout)
		return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.SignatureRow, error) {
			row, err := r.SignatureBuy(ctx, args[0], opts)
			if hasCode(err, rpc.CodePaymentPending) && time.Now().Before(until) {
				return waitUntil(until, func(ms int) (rpc.SignatureRow, error) { return r.SignatureWait(ctx, id, ms) })
			}
			return row, err
		}, signatureCard)
	}
	cmd.Flags().StringVar(&opts.Key, "key", "", "the key that it has to be of, 64 hex digits")
	cmd.Flags().Uint64Var(&maxFee, "max-fee", 0, "units in all (default 1 %, and at least 10)")
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long it is tried")
	return cmd
}

func (a *app) signatureLsCmd() *cobra.Command {
	var role string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List what was sold and bought",
		Long: `Lists the signatures that this peer sells: offered, held (the money is here), sold, expired
or cancelled; and those that it buys: pending, bought or failed. An offer is given up by
` + "`tally cancelinvoice`" + ` with the point's last 64 digits.`,
		Example: "  tally signature ls\n  tally signature ls --role buyer -o json",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askRows(cmd.Context(), a, func(ctx context.Context, r *remote) ([]rpc.SignatureRow, error) {
				return r.SignatureList(ctx, role)
			}, func(list []rpc.SignatureRow) *table {
				t := newTable("id", "role", "status", ">amount", "digest", "created", "decided", "memo")
				t.empty = "no signatures"
				for _, r := range list {
					t.add(r.ID, r.Role, r.Status, r.Amount, r.Digest, r.CreatedAt, r.DecidedAt, r.Memo)
				}
				return t
			})
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "seller or buyer alone")
	return cmd
}

func (a *app) signatureShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show one, with its offer, and its signature once it is paid for",
		Long: `Shows a signature that is sold or bought, by the seller's id or by its point, with all that
BIP 340 needs to verify it: key, digest, signature.`,
		Example: "  tally signature show parcel-7\n  tally signature show 02c6…",
		Args:    nArgs(1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.SignatureRow, error) {
				return r.SignatureShow(ctx, args[0])
			}, signatureCard)
		},
	}
}

func (a *app) signatureKeyCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "key",
		Short: "Show the key whose signatures are sold",
		Long: `Shows the key that this peer sells signatures of, and makes it where there is none. Buyers
know it by its 64 hex digits. In the wallet it has an address, as each key of the chain:
a backup of the repo's keystore has it too. It pays and is paid nothing.`,
		Example: "  tally signature key",
		Args:    nArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askOne(cmd.Context(), a, func(ctx context.Context, r *remote) (rpc.SignatureKey, error) {
				return r.SignatureKey(ctx)
			}, func(k rpc.SignatureKey) *table {
				return newCard().add("key", k.Key).add("public key", k.PublicKey).add("address", k.Address)
			})
		},
	}
}
