package rpc

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"github.com/filecoin-project/go-address"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/signer"
	"github.com/tallystick/tally/paych/adaptor"
	"github.com/tallystick/tally/paystream/payments"
)

// maxSignedMessage bounds the message that a signature is asked of in clear; what is
// longer is hashed by whoever asks.
const maxSignedMessage = 64 << 10

// SignatureKey is the key whose signatures a peer sells.
type SignatureKey struct {
	// Key is its x, as BIP 340 has it, and PublicKey the compressed point, both in hex.
	Key       string `json:"key"`
	PublicKey string `json:"public_key"`
	// Address is what the wallet calls it: it is exported and backed up under that name.
	// It is for signatures alone; do not send money to it.
	Address string `json:"address"`
}

// SignatureOptions say what is offered.
type SignatureOptions struct {
	// ID makes it safe to ask again: the same id is the same offer. Empty: one is drawn.
	ID string `json:"id"`
	// Message is what is signed, of which the SHA-256 is taken, or Digest 64 hex digits
	// that are signed as they are. One of the two.
	Message string `json:"message"`
	Digest  string `json:"digest"`
	Amount  uint64 `json:"amount"`
	Memo    string `json:"memo"`
	// ExpirySeconds is how long it can be bought; 0 is an hour.
	ExpirySeconds uint64 `json:"expiry_seconds"`
	// Hold: the money waits, and nothing is shown, before SettleInvoice with the x of the
	// point as hash.
	Hold bool `json:"hold"`
}

// SignatureBuyOptions say what a signature may cost, and what it has to be.
type SignatureBuyOptions struct {
	// MaxFee in all; null is one percent, and at least 10 units.
	MaxFee *uint64 `json:"max_fee"`
	// TimeoutSeconds ends the sending; 0 is a minute.
	TimeoutSeconds uint64 `json:"timeout_seconds"`
	// Key, Message and Digest, where they are not empty, are what the offer has to be
	// of: else it is refused before anything is paid.
	Key     string `json:"key"`
	Message string `json:"message"`
	Digest  string `json:"digest"`
}

// SignatureRow is a signature that is sold or bought.
type SignatureRow struct {
	// ID is the seller's name for the offer, and at the buyer its point.
	ID string `json:"id"`
	// Role is seller or buyer.
	Role string `json:"role"`
	// Status is offered, held (the money is here and not taken), sold, expired or
	// cancelled at the seller, pending, bought or failed at the buyer.
	Status string `json:"status"`
	// Seller is a peer id; Key, Nonce and Digest are what BIP 340 calls P, R and m, in
	// hex. Point is the one whose secret is the signature's s.
	Seller string `json:"seller"`
	Key    string `json:"key"`
	Nonce  string `json:"nonce"`
	Digest string `json:"digest"`
	Point  string `json:"point"`
	Amount uint64 `json:"amount"`
	Memo   string `json:"memo"`
	// Offer is the text to be handed to the buyer alone; empty in lists.
	Offer string `json:"offer"`
	// Signature is 128 hex digits, R and s, verified; empty while it is not paid for.
	Signature string `json:"signature"`
	// Fees of the buyer's way.
	Fees      uint64    `json:"fees"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
	// DecidedAt is when it was sold, bought or failed; CertainBy when what is pending is
	// decided, whatever others do.
	DecidedAt *time.Time `json:"decided_at"`
	CertainBy *time.Time `json:"certain_by"`
}

// Roles in a sale.
const (
	roleSeller = "seller"
	roleBuyer  = "buyer"
)

// signatureRow fills in what an offer says, and its signature where secret is not 0.
func signatureRow(row *SignatureRow, offer payments.OfferText, point byte, x tally.Hashlock, secret tally.Preimage) error {
	i, err := payments.ParseOffer(string(offer))
	if err != nil {
		return err
	}
	row.Seller, row.Point = i.Payee.String(), payments.PointText(point, x)
	row.Key, row.Nonce, row.Digest = hex.EncodeToString(i.Sale.Key[:]), hex.EncodeToString(i.Sale.Nonce[:]), hex.EncodeToString(i.Sale.Message[:])
	row.Amount, row.Memo, row.Offer, row.ExpiresAt = uint64(i.Amount), i.Memo, string(offer), ms(i.Expires)
	if secret != (tally.Preimage{}) {
		sig, err := signer.Complete(&i.Sale, secret)
		if err != nil {
			return NewError(CodeStore, "what is on disk completes no signature: %w", err)
		}
		row.Signature = hex.EncodeToString(sig[:])
	}
	return nil
}

var saleWords = map[payments.InvoiceStatus]string{
	payments.InvoiceOpen: "offered", payments.InvoiceHeld: "held", payments.InvoicePaid: "sold",
	payments.InvoiceCancelled: "cancelled", payments.InvoiceExpired: "expired",
}

func offeredRow(v *payments.InvoiceView) (SignatureRow, error) {
	row := SignatureRow{ID: v.Name, Role: roleSeller, Status: saleWords[v.Status], CreatedAt: ms(v.Created), DecidedAt: optionalMS(v.PaidAt)}
	secret := v.Preimage
	if v.Status != payments.InvoicePaid {
		secret = tally.Preimage{} // it is what is sold
		if v.Parts > 0 {
			row.Status = saleWords[payments.InvoiceHeld]
		}
	}
	return row, signatureRow(&row, v.Offer, v.Point, v.Hash, secret)
}

var purchaseWords = map[payments.Status]string{
	payments.StatusPending: "pending", payments.StatusComplete: "bought", payments.StatusFailed: "failed",
}

func purchasedRow(v *payments.PaymentView) (SignatureRow, error) {
	row := SignatureRow{
		ID: payments.PointText(v.Point, v.Hash), Role: roleBuyer, Status: purchaseWords[v.Status], Fees: uint64(v.Fees),
		CreatedAt: ms(v.Created), DecidedAt: optionalMS(v.Decided), CertainBy: optionalMS(v.CertainBy),
	}
	secret := v.Preimage
	if v.Status != payments.StatusComplete {
		secret = tally.Preimage{}
	}
	return row, signatureRow(&row, v.Offer, v.Point, v.Hash, secret)
}

// signedDigest is what is signed of a message or a digest; given is false where both are
// empty.
func signedDigest(message, digest string) (d [adaptor.DigestSize]byte, given bool, err error) {
	switch {
	case message != "" && digest != "":
		return d, false, NewError(CodeBadArgument, "a message and a digest").WithRemedy("give one of the two")
	case len(message) > maxSignedMessage:
		return d, false, NewError(CodeBadArgument, "a message of %d bytes", len(message)).WithRemedy("give its SHA-256 as digest")
	case message != "":
		return sha256.Sum256([]byte(message)), true, nil
	case digest == "":
		return d, false, nil
	}
	raw, err := hex.DecodeString(digest)
	if err != nil || len(raw) != len(d) {
		return d, false, NewError(CodeBadArgument, "%q is not a digest", clip(digest)).WithRemedy("use 64 hex digits")
	}
	return [adaptor.DigestSize]byte(raw), true, nil
}

// OfferID is by what a buyer names the text of an offer: its point.
func OfferID(text string) (string, error) {
	i, err := payments.ParseOffer(text)
	if err != nil {
		return "", paymentError(err)
	}
	y, err := signer.PointOf(&i.Sale)
	if err != nil {
		return "", NewError(CodePaymentInvalid, "%w", err)
	}
	return hex.EncodeToString(y[:]), nil
}

func (a *api) SignatureKey(ctx context.Context) (SignatureKey, error) {
	return onPayments(ctx, a, "SignatureKey", func(ctx context.Context, s *payments.Service) (SignatureKey, error) {
		raw, err := s.SaleKey(ctx)
		if err != nil {
			return SignatureKey{}, err
		}
		key := SignatureKey{Key: hex.EncodeToString(raw[1:]), PublicKey: hex.EncodeToString(raw[:])}
		p, err := adaptor.ParsePoint(raw[:])
		if err != nil {
			return SignatureKey{}, err
		}
		whole, err := p.Uncompressed()
		if err != nil {
			return SignatureKey{}, err
		}
		addr, err := address.NewSecp256k1Address(whole)
		key.Address = addr.String()
		return key, err
	})
}

func (a *api) SignatureSell(ctx context.Context, o SignatureOptions) (SignatureRow, error) {
	return onPayments(ctx, a, "SignatureSell", func(ctx context.Context, s *payments.Service) (SignatureRow, error) {
		if o.ExpirySeconds > uint64(maxURIExpiry/time.Second) {
			return SignatureRow{}, NewError(CodeBadArgument, "expiry of more than ten years")
		}
		digest, given, err := signedDigest(o.Message, o.Digest)
		if err == nil && !given {
			err = NewError(CodeBadArgument, "nothing to sign").WithRemedy("give a message, or a digest")
		}
		if err != nil {
			return SignatureRow{}, err
		}
		v, err := s.Sell(ctx, payments.SaleRequest{
			Name: o.ID, Message: digest, Amount: tally.Amount(o.Amount), Memo: o.Memo, Expires: time.Duration(o.ExpirySeconds) * time.Second, Hold: o.Hold,
		})
		if err != nil {
			return SignatureRow{}, err
		}
		return offeredRow(&v)
	})
}

// vetOffer refuses an offer that is not of what the buyer wants.
func vetOffer(text string, o *SignatureBuyOptions) error {
	i, err := payments.ParseOffer(text)
	if err != nil {
		return err
	}
	digest, given, err := signedDigest(o.Message, o.Digest)
	switch {
	case err != nil:
		return err
	case given && digest != i.Sale.Message:
		return NewError(CodePaymentConflict, "the offer is of a signature over %x, and %x is wanted", i.Sale.Message, digest).WithRemedy("ask the seller for another offer")
	case o.Key != "" && o.Key != hex.EncodeToString(i.Sale.Key[:]):
		return NewError(CodePaymentConflict, "the offer is of a signature by %x, and %q is wanted", i.Sale.Key, clip(o.Key)).WithRemedy("ask the seller for another offer")
	}
	return nil
}

func (a *api) SignatureBuy(ctx context.Context, offer string, o SignatureBuyOptions) (SignatureRow, error) {
	return onPayments(ctx, a, "SignatureBuy", func(ctx context.Context, s *payments.Service) (SignatureRow, error) {
		q, wait, err := payRequest(o.MaxFee, o.TimeoutSeconds)
		if err == nil {
			err = vetOffer(offer, &o)
		}
		if err != nil {
			return SignatureRow{}, err
		}
		ctx, done, err := a.waitToPay(ctx, wait)
		if err != nil {
			return SignatureRow{}, err
		}
		defer done()
		b, err := s.Buy(ctx, offer, q)
		if err != nil {
			return SignatureRow{}, err
		}
		return purchasedRow(&b.PaymentView)
	})
}

// findSignature returns what an id names: an offer of ours by its name, or what is sold
// or bought by its point.
func findSignature(ctx context.Context, s *payments.Service, id string) (sale *payments.InvoiceView, purchase *payments.PaymentView, err error) {
	v, err := s.SoldAs(ctx, id)
	if err == nil {
		return &v, nil, nil
	}
	raw, bad := hex.DecodeString(id)
	if !errors.Is(err, payments.ErrNotFound) || bad != nil || len(raw) != 1+tally.HashlockSize {
		return nil, nil, err
	}
	point, x := raw[0], tally.Hashlock(raw[1:])
	if v, err = s.Invoice(ctx, x); err == nil && v.Point == point {
		return &v, nil, nil
	}
	p, _, err := s.Payment(ctx, x)
	if err == nil && p.Point != point {
		err = payments.ErrNotFound
	}
	return nil, &p, err
}

func (a *api) SignatureShow(ctx context.Context, id string) (SignatureRow, error) {
	return onPayments(ctx, a, "SignatureShow", func(ctx context.Context, s *payments.Service) (SignatureRow, error) {
		sale, purchase, err := findSignature(ctx, s, id)
		switch {
		case err != nil:
			return SignatureRow{}, err
		case sale != nil:
			return offeredRow(sale)
		default:
			return purchasedRow(purchase)
		}
	})
}

func (a *api) SignatureWait(ctx context.Context, id string, timeoutMS int) (SignatureRow, error) {
	return onPayments(ctx, a, "SignatureWait", func(ctx context.Context, s *payments.Service) (SignatureRow, error) {
		wait, err := pollTime(timeoutMS)
		if err != nil {
			return SignatureRow{}, err
		}
		sale, purchase, err := findSignature(ctx, s, id)
		if err != nil {
			return SignatureRow{}, err
		}
		waiting, done, err := a.waitToPay(ctx, wait)
		if err != nil {
			return SignatureRow{}, err
		}
		defer done()
		if sale != nil {
			v, err := s.WaitInvoice(waiting, sale.Hash)
			if err != nil {
				return SignatureRow{}, pendingAt(err, "the sale", 0)
			}
			return offeredRow(&v)
		}
		v, err := s.WaitPayment(waiting, purchase.Hash)
		switch {
		case err != nil:
			return SignatureRow{}, pendingAt(err, "the purchase", v.CertainBy)
		case v.Status == payments.StatusFailed:
			return SignatureRow{}, NewError(CodePaymentFailed, "the purchase failed: nothing was taken")
		}
		return purchasedRow(&v)
	})
}

func (a *api) SignatureList(ctx context.Context, role string) ([]SignatureRow, error) {
	return onPayments(ctx, a, "SignatureList", func(ctx context.Context, s *payments.Service) ([]SignatureRow, error) {
		if role != "" && role != roleSeller && role != roleBuyer {
			return nil, NewError(CodeBadArgument, "%q is not a role", clip(role)).WithRemedy("use seller or buyer, or leave it out")
		}
		rows := []SignatureRow{}
		add := func(row SignatureRow, err error) error {
			row.Offer = "" // it has a secret, and each row has much of it
			rows = append(rows, row)
			return err
		}
		if role != roleBuyer {
			all, err := s.Invoices(ctx)
			for i := range all {
				if err == nil && all[i].Point != 0 {
					err = add(offeredRow(&all[i]))
				}
			}
			if err != nil {
				return nil, err
			}
		}
		if role != roleSeller {
			all, err := s.Payments(ctx)
			for i := range all {
				if err == nil && all[i].Point != 0 {
					err = add(purchasedRow(&all[i]))
				}
			}
			if err != nil {
				return nil, err
			}
		}
		return rows, nil
	})
}
