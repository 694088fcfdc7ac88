package rpc

import (
	"context"
	"encoding/hex"
	"errors"
	"math"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/hold"
)

// The causes of holds.
const (
	CodeNoHold       Code = 400
	CodeHoldConflict Code = 401
	CodeHoldBound    Code = 402
	CodeHoldTerms    Code = 403
	CodeHoldPrice    Code = 404
	CodeHoldCredit   Code = 405
	CodeHoldTooLate  Code = 406
	CodeHoldPending  Code = 407
	CodeHoldKey      Code = 408
	CodeHoldPromise  Code = 409
	CodeHoldRoom     Code = 410
)

var holdCodes = []CodeInfo{
	{CodeNoHold, "hold_not_found", "there is no such hold, or it is not ours", "list them: tally hold ls"},
	{CodeHoldConflict, "hold_conflict", "the id of the hold is in use with other content", "pay again: a new hold has a new id"},
	{CodeHoldBound, "hold_bound", "the holder has too many holds, of ours or in all", "wait until some are decided, or choose another holder"},
	{CodeHoldTerms, "hold_terms", "the holder does not take these terms, or they make no sense", "see the message"},
	{CodeHoldPrice, "hold_price", "holding costs more than is allowed", "ask for the price: tally hold quote; then allow it: --max-price"},
	{CodeHoldCredit, "hold_no_credit", "the tab with the holder has no room for the price", "settle it: tally settle PEER"},
	{CodeHoldTooLate, "hold_too_late", "the payee has the money, or it is on its way", "wait for it: tally hold wait ID"},
	{CodeHoldPending, "hold_pending", "the hold is not decided yet", "wait for it: tally hold wait ID; certain_by says by when it is decided"},
	{CodeHoldKey, "hold_key", "nothing can be sealed to the payee's peer id", "ask the payee for a promise: tally hold promise PAYER AMOUNT"},
	{CodeHoldPromise, "hold_promise", "the text is not a promise of a payee to us", "copy the whole text that the payee's `tally hold promise` printed"},
	{CodeHoldRoom, "hold_no_room", "the amount does not fit the tab with the holder beside the price; nothing was charged", "settle it: tally settle PEER; or hold less"},
}

// holdError gives the errors of holds their code, or returns nil.
func holdError(err error) *Error {
	for _, m := range [...]struct {
		err  error
		code Code
	}{
		{hold.ErrNoHold, CodeNoHold},
		{hold.ErrConflict, CodeHoldConflict},
		{hold.ErrBound, CodeHoldBound},
		{hold.ErrPrice, CodeHoldPrice},
		{hold.ErrNoCredit, CodeHoldCredit},
		{hold.ErrNoRoom, CodeHoldRoom},
		{hold.ErrTooLate, CodeHoldTooLate},
		{hold.ErrKeyType, CodeHoldKey},
		{hold.ErrPromise, CodeHoldPromise},
		{hold.ErrNotOurs, CodeHoldPromise},
		{hold.ErrTerms, CodeHoldTerms},
		{hold.ErrBusy, CodeBusy},
		{hold.ErrClosed, CodeStopping},
		{hold.ErrStopped, CodeStore},
	} {
		if errors.Is(err, m.err) {
			return NewError(m.code, "%w", err)
		}
	}
	for _, m := range mailErrors {
		if errors.Is(err, m.err) {
			return NewError(m.code, "%w", err)
		}
	}
	return nil
}

// HoldOptions say what is to be paid, to whom, and who keeps it meanwhile.
type HoldOptions struct {
	// Holder is a neighbour of ours and of the payee.
	Holder string `json:"holder"`
	// Payee may be empty with a promise, and Amount 0.
	Payee  string `json:"payee"`
	Amount uint64 `json:"amount"`
	// TimeSeconds is how long the payee may take to come, ReturnSeconds how much
	// longer we may stay away; 0 is a day each.
	TimeSeconds   uint64 `json:"time_seconds"`
	ReturnSeconds uint64 `json:"return_seconds"`
	// MaxPrice is what the holding may cost, on our tab with the holder.
	MaxPrice uint64 `json:"max_price"`
	// NoPoll: the holder need not try the payee from time to time.
	NoPoll bool   `json:"no_poll"`
	Memo   string `json:"memo"`
	// Promise, where not empty, is a text of the payee: the hash is its own then.
	Promise string `json:"promise"`
}

// HoldQuote is what holding would cost.
type HoldQuote struct {
	Price uint64 `json:"price"`
}

// HoldRow is one hold, as we see it in one role.
type HoldRow struct {
	ID string `json:"id"`
	// Role is payer, holder or payee.
	Role string `json:"role"`
	// Status of a payer is parking, held, complete or failed; of a holder draft, held,
	// offered, claimed, settled, cancelled or expired; of a payee claiming, received or
	// unsure.
	Status string `json:"status"`
	Payer  string `json:"payer"`
	Holder string `json:"holder"`
	Payee  string `json:"payee"`
	// PaymentHash is opened by Preimage, which is empty while the payee has not shown
	// it.
	PaymentHash string `json:"payment_hash"`
	Preimage    string `json:"preimage"`
	Amount      uint64 `json:"amount"`
	Price       uint64 `json:"price"`
	Memo        string `json:"memo"`
	// Failure says why a payer's hold failed.
	Failure string `json:"failure"`
	// Offers counts how often the holder offered it.
	Offers    int       `json:"offers"`
	ChangedAt time.Time `json:"changed_at"`
	// ExpiresAt is when the holder gives it back; ReturnBy is by when the payer has to
	// be back; CertainBy is when it is decided at the payer, whatever others do. Null
	// where the role does not know it.
	ExpiresAt *time.Time `json:"expires_at"`
	ReturnBy  *time.Time `json:"return_by"`
	CertainBy *time.Time `json:"certain_by"`
}

// PromiseRow is a hash that we gave to one payer.
type PromiseRow struct {
	// Promise is the text for the payer.
	Promise     string    `json:"promise"`
	PaymentHash string    `json:"payment_hash"`
	Payer       string    `json:"payer"`
	Amount      uint64    `json:"amount"`
	ExpiresAt   time.Time `json:"expires_at"`
}

func sentRow(r *hold.Sent) HoldRow {
	row := HoldRow{
		ID: r.ID.String(), Role: "payer", Status: r.Status.String(), Payer: r.Payer.String(), Holder: r.Holder.String(), Payee: r.Payee.String(),
		PaymentHash: r.Hash.String(), Amount: uint64(r.Amount), Price: uint64(r.Price), Memo: r.Memo, ChangedAt: ms(r.Changed),
		ExpiresAt: optionalMS(r.Expires), ReturnBy: optionalMS(r.Until), CertainBy: optionalMS(r.Certain),
	}
	switch r.Status {
	case hold.StatusComplete:
		row.Preimage = hex.EncodeToString(r.Preimage[:])
	case hold.StatusFailed:
		row.Failure = r.Failure.String()
	}
	return row
}

func heldRow(r *hold.Held) HoldRow {
	return HoldRow{
		ID: r.ID.String(), Role: "holder", Status: r.State.String(), Payer: r.Payer.String(), Holder: r.Holder.String(), Payee: r.Payee.String(),
		PaymentHash: r.Hash.String(), Amount: uint64(r.Amount), Price: uint64(r.Price), Offers: r.Offers, ChangedAt: ms(r.Changed),
		ExpiresAt: optionalMS(r.Expires), ReturnBy: optionalMS(r.Until),
	}
}

func receiptRow(self string, r *hold.Receipt) HoldRow {
	return HoldRow{
		ID: r.Hold.String(), Role: "payee", Status: r.State.String(), Holder: r.Holder.String(), Payee: self, PaymentHash: r.Hash.String(),
		Preimage: hex.EncodeToString(r.Preimage[:]), Amount: uint64(r.Amount), Memo: r.Memo, ChangedAt: ms(r.At),
	}
}

// onHolds is call for a method that works on the holds.
func onHolds[T any](ctx context.Context, a *api, method string, fn func(context.Context, *hold.Service) (T, error)) (T, error) {
	return call(ctx, a, method, func(ctx context.Context) (T, error) {
		s, err := a.node.Holds()
		if err != nil {
			var zero T
			return zero, err
		}
		return fn(ctx, s)
	})
}

func holdID(s string) (hold.ID, error) {
	id, err := hold.ParseID(s)
	if err != nil {
		return id, NewError(CodeBadArgument, "%q is not the id of a hold", clip(s)).WithRemedy("use the 32 hex digits that `tally hold ls` prints")
	}
	return id, nil
}

func holdPeer(s string) (peer.ID, error) {
	p, err := peer.Decode(s)
	if err != nil {
		return "", NewError(CodeBadPeer, "%q is not a peer id", clip(s))
	}
	return p, nil
}

func (o *HoldOptions) request() (q hold.PayRequest, err error) {
	if q.Holder, err = holdPeer(o.Holder); err != nil {
		return q, err
	}
	if o.Payee != "" || o.Promise == "" {
		if q.Payee, err = holdPeer(o.Payee); err != nil {
			return q, err
		}
	}
	if max(o.TimeSeconds, o.ReturnSeconds) > math.MaxInt32 {
		return q, NewError(CodeBadArgument, "more than 68 years")
	}
	q.Amount, q.MaxPrice, q.NoPoll, q.Memo = tally.Amount(o.Amount), tally.Amount(o.MaxPrice), o.NoPoll, o.Memo
	q.Time, q.Return = time.Duration(o.TimeSeconds)*time.Second, time.Duration(o.ReturnSeconds)*time.Second
	if o.Promise != "" {
		p, err := hold.ParsePromise(o.Promise)
		if err != nil {
			return q, err
		}
		q.Promise = &p
	}
	return q, nil
}

func (a *api) HoldQuote(ctx context.Context, o HoldOptions) (HoldQuote, error) {
	return onHolds(ctx, a, "HoldQuote", func(ctx context.Context, s *hold.Service) (HoldQuote, error) {
		q, err := o.request()
		if err != nil {
			return HoldQuote{}, err
		}
		price, err := s.Quote(ctx, q)
		return HoldQuote{uint64(price)}, err
	})
}

func (a *api) HoldPay(ctx context.Context, o HoldOptions) (HoldRow, error) {
	return onHolds(ctx, a, "HoldPay", func(ctx context.Context, s *hold.Service) (HoldRow, error) {
		q, err := o.request()
		if err != nil {
			return HoldRow{}, err
		}
		r, err := s.Pay(ctx, q)
		if err != nil {
			return HoldRow{}, err
		}
		return sentRow(&r), nil
	})
}

func (a *api) HoldWait(ctx context.Context, id string, timeoutMS int) (HoldRow, error) {
	return onHolds(ctx, a, "HoldWait", func(ctx context.Context, s *hold.Service) (HoldRow, error) {
		h, err := holdID(id)
		if err != nil {
			return HoldRow{}, err
		}
		wait, err := pollTime(timeoutMS)
		if err != nil {
			return HoldRow{}, err
		}
		waiting, done, err := a.waitToPay(ctx, wait)
		if err != nil {
			return HoldRow{}, err
		}
		defer done()
		r, err := s.Wait(waiting, h)
		if errors.Is(err, context.DeadlineExceeded) {
			return HoldRow{}, NewError(CodeHoldPending, "hold %s is %s", id, r.Status)
		}
		return sentRow(&r), err
	})
}

func (a *api) HoldList(ctx context.Context, role string) ([]HoldRow, error) {
	return onHolds(ctx, a, "HoldList", func(ctx context.Context, s *hold.Service) ([]HoldRow, error) {
		receipt := func(r *hold.Receipt) HoldRow { return receiptRow(s.Self().String(), r) }
		return byRole(role, rowsOf(ctx, s.Sent, sentRow), rowsOf(ctx, s.Held, heldRow), rowsOf(ctx, s.Receipts, receipt))
	})
}

// rowsOf is a list as it is shown.
func rowsOf[T, R any](ctx context.Context, list func(context.Context) ([]T, error), row func(*T) R) func() ([]R, error) {
	return func() ([]R, error) {
		all, err := list(ctx)
		rows := make([]R, 0, len(all))
		for i := range all {
			rows = append(rows, row(&all[i]))
		}
		return rows, err
	}
}

// byRole is the list of a role, and those of all three where none is named. It is never
// nil without an error.
func byRole[R any](role string, payer, holder, payee func() ([]R, error)) ([]R, error) {
	lists := []func() ([]R, error){payer, holder, payee}
	switch role {
	case "":
	case "payer":
		lists = lists[:1]
	case "holder":
		lists = lists[1:2]
	case "payee":
		lists = lists[2:]
	default:
		return nil, NewError(CodeBadArgument, "%q is not a role", clip(role)).WithRemedy("use payer, holder or payee, or none for all")
	}
	rows := []R{}
	for _, list := range lists {
		more, err := list()
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

func (a *api) HoldCancel(ctx context.Context, id string) (Done, error) {
	return onHolds(ctx, a, "HoldCancel", func(ctx context.Context, s *hold.Service) (Done, error) {
		h, err := holdID(id)
		if err != nil {
			return Done{}, err
		}
		err = s.CancelOurs(ctx, h)
		if errors.Is(err, hold.ErrNoHold) { // as its holder
			_, err = s.Cancel(ctx, "", h)
		}
		return Done{err == nil}, err
	})
}

func (a *api) HoldPromise(ctx context.Context, payer string, amount, expirySeconds uint64) (PromiseRow, error) {
	return onHolds(ctx, a, "HoldPromise", func(ctx context.Context, s *hold.Service) (PromiseRow, error) {
		p, err := holdPeer(payer)
		if err != nil {
			return PromiseRow{}, err
		}
		d := hold.MaxPromiseTime
		switch {
		case expirySeconds > uint64(d/time.Second):
			return PromiseRow{}, NewError(CodeBadArgument, "a promise is good for 28 days at most")
		case expirySeconds > 0:
			d = time.Duration(expirySeconds) * time.Second
		}
		got, err := s.Promise(ctx, p, tally.Amount(amount), d)
		if err != nil {
			return PromiseRow{}, err
		}
		return PromiseRow{got.String(), got.Hash.String(), payer, amount, ms(got.Expires)}, nil
	})
}

func (a *api) HoldCollect(ctx context.Context, peerID string) (Done, error) {
	return onHolds(ctx, a, "HoldCollect", func(_ context.Context, s *hold.Service) (Done, error) {
		p, err := holdPeer(peerID)
		if err != nil {
			return Done{}, err
		}
		s.Collect(p)
		return Done{true}, nil
	})
}
