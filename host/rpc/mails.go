package rpc

import (
	"context"
	"math"
	"strconv"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/hold"
)

// The causes of vouchers that are bought and sold.
const (
	CodeHoldStatement  Code = 411
	CodeHoldStale      Code = 412
	CodeHoldGuard      Code = 413
	CodeHoldLaneRoom   Code = 414
	CodeHoldChannel    Code = 415
	CodeHoldVoucher    Code = 416
	CodeHoldMail       Code = 417
	CodeHoldNoChannels Code = 418
)

var mailCodes = []CodeInfo{
	{CodeHoldStatement, "hold_statement", "the text is not the payee's word about its lanes for us", "ask the payee for one: tally hold room HOLDER AMOUNT --payer US"},
	{CodeHoldStale, "hold_stale", "the payee keeps the room for less long than is asked for", "give less time, or ask the payee for a newer statement"},
	{CodeHoldGuard, "hold_no_guard", "the holder could settle and collect the channel before the payee is back; nothing was paid", "wait until the payee's guard is final on the chain, or give less time"},
	{CodeHoldLaneRoom, "hold_lane_room", "the channel has too little room beside what the payee holds", "buy less, or ask the holder to top the channel up"},
	{CodeHoldChannel, "hold_channel", "there is no open channel from the holder to the payee, or it settles", "the first settlement of their tab opens one"},
	{CodeHoldVoucher, "hold_voucher", "the voucher is not the one that was agreed; nothing was paid for it", "choose another holder"},
	{CodeHoldMail, "hold_mail", "the text is not a mail for us, or comes too late", "copy the whole text that the payer's `tally hold buy` printed"},
	{CodeHoldNoChannels, "hold_no_channels", "vouchers are bought, sold and taken in mode hard alone", "start with --chain"},
}

// mailErrors are those that holdError knows of them.
var mailErrors = [...]struct {
	err  error
	code Code
}{
	{hold.ErrStatement, CodeHoldStatement},
	{hold.ErrStale, CodeHoldStale},
	{hold.ErrNoGuard, CodeHoldGuard},
	{hold.ErrLaneRoom, CodeHoldLaneRoom},
	{hold.ErrChannel, CodeHoldChannel},
	{hold.ErrVoucher, CodeHoldVoucher},
	{hold.ErrMail, CodeHoldMail},
	{hold.ErrNoChannels, CodeHoldNoChannels},
}

// RoomOptions say how much of a holder's channel to us we keep, for whom and how long.
type RoomOptions struct {
	Holder string `json:"holder"`
	// Payer may be empty: then the room is for whoever comes, and the holder may sell
	// it twice.
	Payer string `json:"payer"`
	Room  uint64 `json:"room"`
	// TimeSeconds is how long; 0 is a day, or as long as the chain allows.
	TimeSeconds uint64 `json:"time_seconds"`
}

// RoomRow is a lane statement of ours.
type RoomRow struct {
	// Statement is the text for payers. Given: the holder has it for those that ask.
	Statement string `json:"statement"`
	Given     bool   `json:"given"`
	Holder    string `json:"holder"`
	Payer     string `json:"payer"`
	Channel   string `json:"channel"`
	// Total is what our vouchers of the channel come to, Room what stays free beside.
	Total uint64 `json:"total"`
	Room  uint64 `json:"room"`
	// Until is the last epoch of the room. GuardHeight is what the channel's settle
	// height has to be for it, MinSettle what the chain shows for good: until that is
	// as much, payers refuse the statement.
	Until       int64 `json:"until"`
	GuardHeight int64 `json:"guard_height"`
	MinSettle   int64 `json:"min_settle"`
}

// BuyOptions say what is bought.
type BuyOptions struct {
	Holder string `json:"holder"`
	// Payee may be empty with a statement.
	Payee  string `json:"payee"`
	Amount uint64 `json:"amount"`
	// TimeSeconds is how long the payee may take to come; 0 is as long as it keeps the
	// room.
	TimeSeconds uint64 `json:"time_seconds"`
	// MaxPrice is what the sale may cost, on our tab with the holder.
	MaxPrice uint64 `json:"max_price"`
	// Statement, where not empty, is a text of the payee; else the holder is asked.
	Statement string `json:"statement"`
	// Shared allows a statement that is for whoever comes.
	Shared bool `json:"shared"`
}

// MailRow is one voucher that is bought, sold or was mailed to us.
type MailRow struct {
	ID string `json:"id"`
	// Role is payer, holder or payee.
	Role string `json:"role"`
	// Status of a payer is paying, bought, mailed, redeemed, expired, refunded or
	// unsure; of a holder offered, paid or settled; of a payee taken.
	Status  string `json:"status"`
	Payer   string `json:"payer"`
	Holder  string `json:"holder"`
	Payee   string `json:"payee"`
	Channel string `json:"channel"`
	// Lane is a string: it is above what JSON numbers hold everywhere.
	Lane   string `json:"lane"`
	Amount uint64 `json:"amount"`
	Price  uint64 `json:"price"`
	// Deadline is the last epoch in which the payee can redeem it, DeadlineAt about
	// when that is.
	Deadline   int64     `json:"deadline"`
	DeadlineAt time.Time `json:"deadline_at"`
	ChangedAt  time.Time `json:"changed_at"`
	// Mail is the text for the payee, of a payer that has bought.
	Mail    string `json:"mail"`
	Failure string `json:"failure"`
}

func purchaseRow(p *hold.Purchase, role, status string, until, changed int64) MailRow {
	return MailRow{
		ID: p.ID.String(), Role: role, Status: status, Payer: p.Payer.String(), Holder: p.Holder.String(), Payee: p.Payee.String(), Channel: p.Channel,
		Lane: strconv.FormatUint(p.Lane(), 10), Amount: uint64(p.Amount), Deadline: p.Deadline, DeadlineAt: ms(until), ChangedAt: ms(changed),
	}
}

func boughtRow(s *hold.Service, b *hold.Bought) MailRow {
	row := purchaseRow(&b.Purchase, "payer", b.Status.String(), b.Until, b.Changed)
	row.Price = uint64(b.Price)
	if m, ok := s.MailOf(b); ok {
		row.Mail = m.String()
	}
	if b.Status == hold.BuyRefunded {
		row.Failure = b.Failure.String()
	}
	return row
}

func takenRow(t *hold.Taken) MailRow {
	return purchaseRow(&t.Purchase, "payee", "taken", t.Until, t.At)
}

func (a *api) HoldRoom(ctx context.Context, o RoomOptions) (RoomRow, error) {
	return onHolds(ctx, a, "HoldRoom", func(ctx context.Context, s *hold.Service) (RoomRow, error) {
		q := hold.RoomRequest{Room: tally.Amount(o.Room)}
		var err error
		if q.Holder, err = holdPeer(o.Holder); err != nil {
			return RoomRow{}, err
		}
		if o.Payer != "" {
			if q.Payer, err = holdPeer(o.Payer); err != nil {
				return RoomRow{}, err
			}
		}
		if o.TimeSeconds > math.MaxInt32 {
			return RoomRow{}, NewError(CodeBadArgument, "more than 68 years")
		}
		q.Time = time.Duration(o.TimeSeconds) * time.Second
		r, err := s.Room(ctx, q)
		if err != nil {
			return RoomRow{}, err
		}
		return RoomRow{
			Statement: r.String(), Given: r.Given, Holder: o.Holder, Payer: o.Payer, Channel: r.Channel, Total: uint64(r.Total), Room: uint64(r.LaneStatement.Room),
			Until: r.Until, GuardHeight: r.Guard, MinSettle: r.MinSettle,
		}, nil
	})
}

func (o *BuyOptions) request() (q hold.BuyRequest, err error) {
	if q.Holder, err = holdPeer(o.Holder); err != nil {
		return q, err
	}
	if o.Payee != "" || o.Statement == "" {
		if q.Payee, err = holdPeer(o.Payee); err != nil {
			return q, err
		}
	}
	if o.TimeSeconds > math.MaxInt32 {
		return q, NewError(CodeBadArgument, "more than 68 years")
	}
	q.Amount, q.MaxPrice, q.Shared, q.Time = tally.Amount(o.Amount), tally.Amount(o.MaxPrice), o.Shared, time.Duration(o.TimeSeconds)*time.Second
	if o.Statement != "" {
		st, err := hold.ParseStatement(o.Statement)
		if err != nil {
			return q, err
		}
		q.Statement = &st
	}
	return q, nil
}

func (a *api) HoldBuy(ctx context.Context, o BuyOptions) (MailRow, error) {
	return onHolds(ctx, a, "HoldBuy", func(ctx context.Context, s *hold.Service) (MailRow, error) {
		q, err := o.request()
		if err != nil {
			return MailRow{}, err
		}
		r, err := s.Buy(ctx, q)
		if err != nil {
			return MailRow{}, err
		}
		return boughtRow(s, &r), nil
	})
}

func (a *api) HoldTake(ctx context.Context, mail string) (MailRow, error) {
	return onHolds(ctx, a, "HoldTake", func(ctx context.Context, s *hold.Service) (MailRow, error) {
		m, err := hold.ParseMail(mail)
		if err != nil {
			return MailRow{}, err
		}
		t, err := s.TakeMail(ctx, &m)
		if err != nil {
			return MailRow{}, err
		}
		return takenRow(&t), nil
	})
}

func (a *api) HoldMails(ctx context.Context, role string) ([]MailRow, error) {
	return onHolds(ctx, a, "HoldMails", func(ctx context.Context, s *hold.Service) ([]MailRow, error) {
		bought := func(b *hold.Bought) MailRow { return boughtRow(s, b) }
		return byRole(role, rowsOf(ctx, s.Bought, bought), rowsOf(ctx, s.Sales, saleRow), rowsOf(ctx, s.Mails, takenRow))
	})
}

func saleRow(x *hold.Sale) MailRow {
	row := purchaseRow(&x.Purchase, "holder", x.State.String(), x.Until, x.Changed)
	row.Price = uint64(x.Price)
	return row
}
