package rpc

import (
	"context"
	"encoding/hex"
	"errors"
	"strconv"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
)

const (
	// maxPayWaits bounds the callers that wait for payments, so that waiting never
	// takes the slots of those that work.
	maxPayWaits = 32
	// maxPayTime bounds the time that a payment may be tried for.
	maxPayTime = 24 * time.Hour
)

// The causes of payments. The numbers are those of the first implementation of these
// commands.
const (
	CodePaymentPending  Code = payments.CodePending
	CodePaymentConflict Code = payments.CodeConflict
	CodePaymentFailed   Code = payments.CodeFailed
	CodeNoPaymentRoute  Code = payments.CodeNoRoute
	CodeNoPayment       Code = payments.CodeNotFound
	CodePaymentBound    Code = payments.CodeBound
	CodePaymentInvalid  Code = payments.CodeInvalid
)

var paymentCodes = []CodeInfo{
	{CodePaymentPending, "payment_pending", "the payment, or the part, is not decided yet", "wait for it: tally waitpayment HASH; certain_by says by when it is decided"},
	{CodePaymentConflict, "payment_conflict", "there is a payment or invoice of this hash, and what is asked does not fit it; nothing was changed", "see the message"},
	{CodePaymentFailed, "payment_failed", "the payment failed: nothing was taken", "see why: tally listpartialpayments HASH; then pay again"},
	{CodeNoPaymentRoute, "no_payment_route", "no ways are known that carry it", "pay less, allow a higher fee, or open a tab or channel on the way"},
	{CodeNoPayment, "payment_not_found", "there is no such payment, part or invoice", "list them: tally listpayments, tally listinvoices"},
	{CodePaymentBound, "payment_bound", "a bound on parts, attempts, payments or invoices is reached", "see the message"},
	{CodePaymentInvalid, "payment_invalid", "the invoice or the request makes no sense by itself", "see the message; copy the whole text of an invoice"},
}

// paymentError gives the errors of payments their code, or returns nil.
func paymentError(err error) *Error {
	var e *payments.Error
	switch {
	case errors.As(err, &e):
		return NewError(Code(e.Code), "%w", err).WithRemedy("%s", e.Remedy)
	case errors.Is(err, payments.ErrInvoiceText), errors.Is(err, payments.ErrInvoiceSignature):
		return NewError(CodePaymentInvalid, "%w", err).WithRemedy("copy the whole text that `tally invoice` or `tally signature sell` printed there")
	case errors.Is(err, payments.ErrBusy):
		return NewError(CodeBusy, "%w", err)
	case errors.Is(err, payments.ErrClosed):
		return NewError(CodeStopping, "%w", err)
	case errors.Is(err, payments.ErrStopped):
		return NewError(CodeStore, "%w", err)
	default:
		return nil
	}
}

// InvoiceOptions say what an invoice asks for.
type InvoiceOptions struct {
	// Amount 0: the payer chooses.
	Amount uint64 `json:"amount"`
	Memo   string `json:"memo"`
	// ExpirySeconds is how long a first part may come; 0 is an hour.
	ExpirySeconds uint64 `json:"expiry_seconds"`
	// Hold: nothing is claimed before SettleInvoice.
	Hold bool `json:"hold"`
	// PaymentHash, of a hold invoice whose preimage somebody else knows; empty else.
	PaymentHash string `json:"payment_hash"`
}

// InvoiceRow is one invoice of ours.
type InvoiceRow struct {
	PaymentHash string `json:"payment_hash"`
	// Invoice is the text to be handed to the payer alone; it is shown once, when the
	// invoice is made.
	Invoice string `json:"invoice"`
	Amount  uint64 `json:"amount"`
	Memo    string `json:"memo"`
	// Status is open, held, paid, cancelled or expired.
	Status    string    `json:"status"`
	Hold      bool      `json:"hold"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
	// Waiting is the sum of the Parts that are here and not claimed.
	Waiting uint64 `json:"waiting"`
	Parts   int    `json:"parts"`
	// Received is how much was paid, PaidAt when; null while it is not.
	Received uint64     `json:"received"`
	PaidAt   *time.Time `json:"paid_at"`
	// Lost was claimed and could not be collected.
	Lost uint64 `json:"lost"`
	// Preimage is empty while the invoice is not paid.
	Preimage string `json:"preimage"`
}

// PartialInvoiceRow is a part that arrived and is not claimed.
type PartialInvoiceRow struct {
	PaymentHash  string `json:"payment_hash"`
	TotalAmount  uint64 `json:"total_amount"`
	IncomingPeer string `json:"incoming_peer"`
	// IncomingChannel is empty on credit, which needs none.
	IncomingChannel string    `json:"incoming_channel"`
	PartialAmount   uint64    `json:"partial_amount"`
	ReceivedAt      time.Time `json:"received_at"`
	// Deadline is when the part goes back unless the others come.
	Deadline time.Time `json:"deadline"`
}

// PayOptions say what a payment may cost.
type PayOptions struct {
	// Amount where the invoice leaves it open; at most twice of what it asks for.
	Amount uint64 `json:"amount"`
	// MaxFee in all; null is one percent, and at least 10 units.
	MaxFee *uint64 `json:"max_fee"`
	// TimeoutSeconds ends the sending of parts; 0 is a minute.
	TimeoutSeconds uint64 `json:"timeout_seconds"`
}

// PaymentRow is one payment.
type PaymentRow struct {
	PaymentHash string `json:"payment_hash"`
	Payee       string `json:"payee"`
	Amount      uint64 `json:"amount"`
	// Status is pending, complete or failed.
	Status string `json:"status"`
	// Sent left with the parts that live or were claimed, Fees of it is what the ways
	// may keep, Arrived was claimed, Pending lives in Parts parts.
	Sent    uint64 `json:"sent"`
	Fees    uint64 `json:"fees"`
	Arrived uint64 `json:"arrived"`
	Pending uint64 `json:"pending"`
	Parts   int    `json:"parts"`
	// Group counts the tries at the whole.
	Group uint64 `json:"group"`
	// Preimage proves the payment; empty while it is not complete.
	Preimage  string     `json:"preimage"`
	CreatedAt time.Time  `json:"created_at"`
	DecidedAt *time.Time `json:"decided_at"`
	// CertainBy is when a pending payment is decided, whatever others do.
	CertainBy *time.Time `json:"certain_by"`
}

// SendPartOptions are one part of a payment.
type SendPartOptions struct {
	// Amount arrives; Fee is what the way may keep of what we send beside it.
	Amount uint64 `json:"amount"`
	Fee    uint64 `json:"fee"`
	// Intended is the whole payment; 0 is the amount of the invoice.
	Intended uint64 `json:"intended"`
	// Number is the caller's for the part.
	Number uint64   `json:"number"`
	Via    []string `json:"via"`
}

// PartReply says what SendPartialPay did.
type PartReply struct {
	// Outcome is sent, live (the same part lives), in_progress (the parts that live
	// cover the total) or complete.
	Outcome string `json:"outcome"`
	// ID is the part's; 0 of in_progress.
	ID          uint64 `json:"id"`
	PaymentHash string `json:"payment_hash"`
	Preimage    string `json:"preimage"`
}

// PartRow is one attempt to send one part.
type PartRow struct {
	ID          uint64   `json:"id"`
	PaymentHash string   `json:"payment_hash"`
	Group       uint64   `json:"group"`
	Number      uint64   `json:"number"`
	Amount      uint64   `json:"amount"`
	Fee         uint64   `json:"fee"`
	Via         []string `json:"via"`
	Status      string   `json:"status"`
	// Failure is the code of a failed part; FailedHop how many hops had taken it, -1
	// where that is not known; Most what would have fitted, of headroom.
	Failure   string     `json:"failure"`
	FailedHop int        `json:"failed_hop"`
	Most      uint64     `json:"most"`
	CreatedAt time.Time  `json:"created_at"`
	DecidedAt *time.Time `json:"decided_at"`
	ExpiresAt time.Time  `json:"expires_at"`
	CertainBy time.Time  `json:"certain_by"`
}

func ms(t int64) time.Time { return time.UnixMilli(t).UTC() }

func optionalMS(t int64) *time.Time {
	if t == 0 {
		return nil
	}
	at := ms(t)
	return &at
}

func invoiceRow(v *payments.InvoiceView) InvoiceRow {
	row := InvoiceRow{
		PaymentHash: v.Hash.String(), Amount: uint64(v.Amount), Memo: v.Memo, Status: v.Status.String(), Hold: v.Hold,
		CreatedAt: ms(v.Created), ExpiresAt: ms(v.Expires), Waiting: uint64(v.Waiting), Parts: v.Parts,
		Received: uint64(v.Received), PaidAt: optionalMS(v.PaidAt), Lost: uint64(v.Lost),
	}
	if v.Status == payments.InvoicePaid {
		row.Preimage = hex.EncodeToString(v.Preimage[:])
	}
	return row
}

func paymentRow(v *payments.PaymentView) PaymentRow {
	row := PaymentRow{
		PaymentHash: v.Hash.String(), Payee: v.Dest.String(), Amount: uint64(v.Total), Status: v.Status.String(),
		Sent: uint64(v.Sent), Fees: uint64(v.Fees), Arrived: uint64(v.Claimed), Pending: uint64(v.Covered), Parts: v.Live,
		Group: v.Group, CreatedAt: ms(v.Created), DecidedAt: optionalMS(v.Decided), CertainBy: optionalMS(v.CertainBy),
	}
	if v.Status == payments.StatusComplete {
		row.Preimage = hex.EncodeToString(v.Preimage[:])
	}
	return row
}

func partRow(p *payments.Part) PartRow {
	row := PartRow{
		ID: p.ID, PaymentHash: p.Hash.String(), Group: p.Group, Number: p.Number, Amount: uint64(p.Amount), Fee: uint64(p.Fee),
		Via: []string{}, Status: p.Status.String(), FailedHop: -1, CreatedAt: ms(p.Created), DecidedAt: optionalMS(p.Decided),
		ExpiresAt: ms(p.Expires), CertainBy: ms(p.CertainBy),
	}
	for _, v := range p.Via {
		row.Via = append(row.Via, v.String())
	}
	if p.Status == payments.PartFailed {
		row.Failure, row.FailedHop, row.Most = p.Failure.Code.String(), p.Failure.Hop, uint64(p.Failure.Most)
	}
	return row
}

// onPayments is call for a method that works on the payments.
func onPayments[T any](ctx context.Context, a *api, method string, fn func(context.Context, *payments.Service) (T, error)) (T, error) {
	return call(ctx, a, method, func(ctx context.Context) (T, error) {
		s, err := a.node.Payments()
		if err != nil {
			var zero T
			return zero, err
		}
		return fn(ctx, s)
	})
}

// ParseHash reads the hash of a payment.
func ParseHash(s string) (h tally.Hashlock, err error) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(h) {
		return h, NewError(CodeBadArgument, "%q is not the hash of a payment", clip(s)).WithRemedy("use the 64 hex digits that `tally listpayments` or `tally listinvoices` prints")
	}
	return tally.Hashlock(raw), nil
}

// InvoiceHash reads the hash of an invoice's text. Its error does not quote it.
func InvoiceHash(text string) (string, error) {
	i, err := payments.ParseInvoice(text)
	if err != nil {
		return "", paymentError(err)
	}
	return i.Hash.String(), nil
}

// waitToPay takes a place among the callers that wait, and ends their wait with the
// server.
func (a *api) waitToPay(ctx context.Context, wait time.Duration) (context.Context, func(), error) {
	select {
	case a.payWaits <- struct{}{}:
	default:
		return nil, nil, NewError(CodeBusy, "%d callers wait for payments", cap(a.payWaits))
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	stop := context.AfterFunc(a.stop, cancel)
	return ctx, func() {
		stop()
		cancel()
		<-a.payWaits
	}, nil
}

func (a *api) Invoice(ctx context.Context, o InvoiceOptions) (InvoiceRow, error) {
	return onPayments(ctx, a, "Invoice", func(ctx context.Context, s *payments.Service) (InvoiceRow, error) {
		if o.ExpirySeconds > uint64(maxURIExpiry/time.Second) {
			return InvoiceRow{}, NewError(CodeBadArgument, "expiry of more than ten years")
		}
		q := payments.InvoiceRequest{
			Amount: tally.Amount(o.Amount), Memo: o.Memo, Hold: o.Hold, Expires: time.Duration(o.ExpirySeconds) * time.Second,
		}
		var err error
		if o.PaymentHash != "" {
			if q.Hash, err = ParseHash(o.PaymentHash); err != nil {
				return InvoiceRow{}, err
			}
		}
		i, err := s.NewInvoice(ctx, q)
		if err != nil {
			return InvoiceRow{}, err
		}
		row, err := oneInvoice(ctx, s, i.Hash)
		row.Invoice = i.Reveal()
		return row, err
	})
}

func oneInvoice(ctx context.Context, s *payments.Service, h tally.Hashlock) (InvoiceRow, error) {
	v, err := s.Invoice(ctx, h)
	return invoiceRow(&v), err
}

// payRequest is a payment without what it pays for: for which fee and how long it is
// tried, and how long its caller may wait for it.
func payRequest(maxFee *uint64, timeoutSeconds uint64) (q payments.PayRequest, wait time.Duration, err error) {
	if timeoutSeconds > uint64(maxPayTime/time.Second) {
		return q, 0, NewError(CodeBadArgument, "a timeout of %d seconds is more than a day", timeoutSeconds)
	}
	q.Deadline = time.Duration(timeoutSeconds) * time.Second
	if maxFee != nil {
		q.MaxFee, q.NoFee = tally.Amount(*maxFee), *maxFee == 0
	}
	wait = maxPoll
	if q.Deadline > 0 {
		wait = min(wait, q.Deadline)
	}
	return q, wait, nil
}

func (a *api) Pay(ctx context.Context, invoice string, o PayOptions) (PaymentRow, error) {
	return onPayments(ctx, a, "Pay", func(ctx context.Context, s *payments.Service) (PaymentRow, error) {
		i, err := payments.ParseInvoice(invoice)
		if err != nil {
			return PaymentRow{}, err
		}
		q, wait, err := payRequest(o.MaxFee, o.TimeoutSeconds)
		if err != nil {
			return PaymentRow{}, err
		}
		q.Invoice, q.Amount = i, tally.Amount(o.Amount)
		ctx, done, err := a.waitToPay(ctx, wait)
		if err != nil {
			return PaymentRow{}, err
		}
		defer done()
		r, err := s.Pay(ctx, q)
		return paymentRow(&r.PaymentView), err
	})
}

func (a *api) SendPartialPay(ctx context.Context, invoice string, o SendPartOptions) (PartReply, error) {
	return onPayments(ctx, a, "SendPartialPay", func(ctx context.Context, s *payments.Service) (PartReply, error) {
		i, err := payments.ParseInvoice(invoice)
		if err == nil {
			err = s.Vet(&i)
		}
		if err != nil {
			return PartReply{}, err
		}
		via, err := parseVia(o.Via)
		if err != nil {
			return PartReply{}, err
		}
		c := payments.SendPart{
			Hash: i.Hash, Dest: i.Payee, Secret: i.Secret, Intended: tally.Amount(o.Intended), Number: o.Number,
			Amount: tally.Amount(o.Amount), Fee: tally.Amount(o.Fee), Via: via,
		}
		if c.Intended == 0 {
			c.Intended = i.Amount
		}
		r, err := s.SendPart(ctx, c)
		if err != nil {
			return PartReply{}, err
		}
		row := PartReply{Outcome: r.Outcome.String(), ID: r.ID, PaymentHash: i.Hash.String()}
		if r.Outcome == payments.OutcomeComplete {
			row.Preimage = hex.EncodeToString(r.Preimage[:])
		}
		return row, nil
	})
}

// pendingAt makes the end of a wait the error of what is not decided.
func pendingAt(err error, what string, certainBy int64) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	e := NewError(CodePaymentPending, "%s is not decided yet", what)
	if certainBy != 0 {
		return e.WithRemedy("wait for it; it is certain by %s", ms(certainBy).Format(time.RFC3339))
	}
	return e
}

func (a *api) WaitPartialPay(ctx context.Context, id uint64, timeoutMS int) (PartRow, error) {
	return onPayments(ctx, a, "WaitPartialPay", func(ctx context.Context, s *payments.Service) (PartRow, error) {
		wait, err := pollTime(timeoutMS)
		if err != nil {
			return PartRow{}, err
		}
		waiting, done, err := a.waitToPay(ctx, wait)
		if err != nil {
			return PartRow{}, err
		}
		defer done()
		p, err := s.WaitPart(waiting, id)
		switch {
		case err != nil:
			return PartRow{}, pendingAt(err, "part "+strconv.FormatUint(id, 10), p.CertainBy)
		case p.Status == payments.PartFailed:
			return PartRow{}, NewError(CodePaymentFailed, "part %d failed: %s", id, p.Failure.Code)
		}
		return partRow(&p), nil
	})
}

func (a *api) WaitPayment(ctx context.Context, hash string, timeoutMS int) (PaymentRow, error) {
	return onPayments(ctx, a, "WaitPayment", func(ctx context.Context, s *payments.Service) (PaymentRow, error) {
		h, err := ParseHash(hash)
		if err != nil {
			return PaymentRow{}, err
		}
		wait, err := pollTime(timeoutMS)
		if err != nil {
			return PaymentRow{}, err
		}
		waiting, done, err := a.waitToPay(ctx, wait)
		if err != nil {
			return PaymentRow{}, err
		}
		defer done()
		v, err := s.WaitPayment(waiting, h)
		switch {
		case err != nil:
			return PaymentRow{}, pendingAt(err, "the payment", v.CertainBy)
		case v.Status == payments.StatusFailed:
			return PaymentRow{}, NewError(CodePaymentFailed, "the payment failed: nothing was taken")
		}
		return paymentRow(&v), nil
	})
}

func (a *api) ListPayments(ctx context.Context) ([]PaymentRow, error) {
	return onPayments(ctx, a, "ListPayments", func(ctx context.Context, s *payments.Service) ([]PaymentRow, error) {
		all, err := s.Payments(ctx)
		rows := make([]PaymentRow, len(all))
		for i := range all {
			rows[i] = paymentRow(&all[i])
		}
		return rows, err
	})
}

func (a *api) ListPartialPayments(ctx context.Context, which string) ([]PartRow, error) {
	return onPayments(ctx, a, "ListPartialPayments", func(ctx context.Context, s *payments.Service) ([]PartRow, error) {
		var parts []payments.Part
		var err error
		id, notID := strconv.ParseUint(which, 10, 64)
		switch {
		case which == "":
			parts, err = s.Parts(ctx)
		case notID == nil && len(which) < 2*len(tally.Hashlock{}):
			var p payments.Part
			if p, err = s.PartByID(ctx, id); err == nil {
				parts = append(parts, p)
			}
		default:
			var h tally.Hashlock
			if h, err = ParseHash(which); err == nil {
				_, parts, err = s.Payment(ctx, h)
			}
		}
		rows := make([]PartRow, len(parts))
		for i := range parts {
			rows[i] = partRow(&parts[i])
		}
		return rows, err
	})
}

// optionalHash is ParseHash but for the empty text, which means all.
func optionalHash(s string) (*tally.Hashlock, error) {
	if s == "" {
		return nil, nil
	}
	h, err := ParseHash(s)
	return &h, err
}

func (a *api) ListInvoices(ctx context.Context, hash string) ([]InvoiceRow, error) {
	return onPayments(ctx, a, "ListInvoices", func(ctx context.Context, s *payments.Service) ([]InvoiceRow, error) {
		only, err := optionalHash(hash)
		if err != nil {
			return nil, err
		}
		if only != nil {
			row, err := oneInvoice(ctx, s, *only)
			return []InvoiceRow{row}, err
		}
		all, err := s.Invoices(ctx)
		rows := make([]InvoiceRow, len(all))
		for i := range all {
			rows[i] = invoiceRow(&all[i])
		}
		return rows, err
	})
}

func (a *api) ListPartialInvoices(ctx context.Context, hash string) ([]PartialInvoiceRow, error) {
	return onPayments(ctx, a, "ListPartialInvoices", func(ctx context.Context, s *payments.Service) ([]PartialInvoiceRow, error) {
		only, err := optionalHash(hash)
		if err != nil {
			return nil, err
		}
		all, err := s.PartialInvoices(ctx, only)
		rows := make([]PartialInvoiceRow, len(all))
		for i := range all {
			p := &all[i]
			rows[i] = PartialInvoiceRow{
				PaymentHash: p.Hash.String(), TotalAmount: uint64(p.Total), IncomingPeer: p.From.String(),
				PartialAmount: uint64(p.Amount), ReceivedAt: ms(p.Received), Deadline: ms(p.Deadline),
			}
		}
		return rows, err
	})
}

func (a *api) SettleInvoice(ctx context.Context, hash, preimage string) (InvoiceRow, error) {
	return onPayments(ctx, a, "SettleInvoice", func(ctx context.Context, s *payments.Service) (InvoiceRow, error) {
		h, err := ParseHash(hash)
		if err != nil {
			return InvoiceRow{}, err
		}
		var p tally.Preimage
		if preimage != "" {
			raw, err := hex.DecodeString(preimage)
			if err != nil || len(raw) != len(p) { // not quoted: it may be money
				return InvoiceRow{}, NewError(CodeBadArgument, "the preimage is not 64 hex digits")
			}
			p = tally.Preimage(raw)
		}
		if err := s.Settle(ctx, h, p); err != nil {
			return InvoiceRow{}, err
		}
		return oneInvoice(ctx, s, h)
	})
}

func (a *api) CancelInvoice(ctx context.Context, hash string) (InvoiceRow, error) {
	return onPayments(ctx, a, "CancelInvoice", func(ctx context.Context, s *payments.Service) (InvoiceRow, error) {
		h, err := ParseHash(hash)
		if err != nil {
			return InvoiceRow{}, err
		}
		if err := s.Cancel(ctx, h); err != nil {
			return InvoiceRow{}, err
		}
		return oneInvoice(ctx, s, h)
	})
}
