package holdnet

import (
	"context"
	"math"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/pb/holdpb"
)

// Vouchers that are bought and sold.

// maxVoucher bounds a voucher, and maxChannel the address of a channel.
const (
	maxVoucher = 300
	maxChannel = 64
)

// Trader answers for a node that sells vouchers, or is paid by them; *hold.Service does.
// Every method may say hold.ErrNoChannels.
type Trader interface {
	TakeStatement(ctx context.Context, from peer.ID, st *hold.LaneStatement) error
	GiveStatement(ctx context.Context, from, payee peer.ID) (hold.LaneStatement, error)
	GiveGuard(ctx context.Context, from peer.ID, height int64) ([]byte, error)
	Sell(ctx context.Context, from peer.ID, p *hold.Purchase, limit tally.Amount, quote bool) (hold.SoldReply, error)
	TakeMail(ctx context.Context, m *hold.Mail) (hold.Taken, error)
}

// epochOf reads an epoch; 0 where it is none.
func epochOf(n uint64) int64 {
	if n > math.MaxInt64/4 {
		return 0
	}
	return int64(n)
}

// purchaseOf reads what a payer wants to buy.
func purchaseOf(b *holdpb.Buy, payer, holder peer.ID) (*hold.Purchase, error) {
	p := &hold.Purchase{
		Payer: payer, Holder: holder, Channel: b.GetChannel(), Amount: tally.Amount(b.GetAmount()), Deadline: epochOf(b.GetDeadline()),
	}
	var err error
	if p.ID, err = idOf(b.GetId()); err != nil {
		return nil, err
	}
	if p.Payee, err = peerOf(b.GetPayee()); err != nil {
		return nil, err
	}
	if p.Channel == "" || len(p.Channel) > maxChannel {
		return nil, malformed("channel")
	}
	return p, nil
}

// trade answers what is about vouchers. An error is the peer's fault.
func trade(ctx context.Context, server Trader, self, from peer.ID, q *holdpb.Request, a *holdpb.Response) error {
	switch k := q.GetKind().(type) {
	case *holdpb.Request_LaneStatement:
		if len(k.LaneStatement.GetStatement()) > 0 {
			st, err := hold.ParseStatement(string(k.LaneStatement.GetStatement()))
			if err == nil {
				err = server.TakeStatement(ctx, from, &st)
			}
			a.Status = statusOf(err)
			return nil
		}
		payee, err := peerOf(k.LaneStatement.GetPayee())
		if err != nil {
			return err
		}
		st, err := server.GiveStatement(ctx, from, payee)
		if a.Status = statusOf(err); err == nil {
			a.Statement = []byte(st.String())
		}
	case *holdpb.Request_Guard:
		raw, err := server.GiveGuard(ctx, from, epochOf(k.Guard.GetHeight()))
		a.Status, a.Guard = statusOf(err), raw
	case *holdpb.Request_Buy:
		p, err := purchaseOf(k.Buy, from, self)
		if err != nil {
			return err
		}
		reply, err := server.Sell(ctx, from, p, tally.Amount(k.Buy.GetMaxPrice()), k.Buy.GetQuote())
		a.Status = statusOf(err)
		a.Sold = &holdpb.Sold{Price: uint64(reply.Price), Charged: reply.Charged}
		if err == nil && len(reply.Voucher) > 0 {
			a.Sold.Hash, a.Sold.Voucher = reply.Hash[:], reply.Voucher
		}
	case *holdpb.Request_Mail:
		m, err := hold.ParseMail(string(k.Mail.GetMail()))
		if err == nil {
			_, err = server.TakeMail(ctx, &m)
		}
		a.Status = statusOf(err)
	default: // of a later version, or nothing
		a.Status = holdpb.Status_STATUS_UNSUPPORTED
	}
	return nil
}

// Statement implements hold.Wire.
func (s *Service) Statement(ctx context.Context, holder, payee peer.ID) (hold.LaneStatement, error) {
	a, _, err := s.ask(ctx, holder, &holdpb.Request{Kind: &holdpb.Request_LaneStatement{LaneStatement: &holdpb.LaneStatement{Payee: []byte(payee)}}})
	if err == nil {
		err = errOf(holder, a.GetStatus())
	}
	if err != nil {
		return hold.LaneStatement{}, err
	}
	return hold.ParseStatement(string(a.GetStatement()))
}

// Deposit implements hold.Wire.
func (s *Service) Deposit(ctx context.Context, holder peer.ID, st *hold.LaneStatement) error {
	return s.simple(ctx, holder, &holdpb.Request{Kind: &holdpb.Request_LaneStatement{LaneStatement: &holdpb.LaneStatement{Statement: []byte(st.String())}}})
}

// Guard implements hold.Wire.
func (s *Service) Guard(ctx context.Context, holder peer.ID, height int64) ([]byte, error) {
	a, _, err := s.ask(ctx, holder, &holdpb.Request{Kind: &holdpb.Request_Guard{Guard: &holdpb.Guard{Height: uint64(max(0, height))}}})
	if err == nil {
		err = errOf(holder, a.GetStatus())
	}
	if err != nil {
		return nil, err
	}
	if n := len(a.GetGuard()); n == 0 || n > maxVoucher {
		return nil, malformed("guard")
	}
	return a.GetGuard(), nil
}

// Buy implements hold.Wire.
func (s *Service) Buy(ctx context.Context, p *hold.Purchase, price tally.Amount, quote bool) (hold.SoldReply, error) {
	a, _, err := s.ask(ctx, p.Holder, &holdpb.Request{Kind: &holdpb.Request_Buy{Buy: &holdpb.Buy{
		Id: p.ID[:], Payee: []byte(p.Payee), Channel: p.Channel, Amount: uint64(p.Amount), Deadline: uint64(max(0, p.Deadline)), MaxPrice: uint64(price), Quote: quote,
	}}})
	if err != nil {
		return hold.SoldReply{}, err
	}
	r := hold.SoldReply{Price: tally.Amount(a.GetSold().GetPrice()), Charged: a.GetSold().GetCharged()}
	if err := errOf(p.Holder, a.GetStatus()); err != nil || quote {
		return r, err
	}
	if n := len(a.GetSold().GetVoucher()); n == 0 || n > maxVoucher || len(a.GetSold().GetHash()) != tally.HashlockSize {
		return r, malformed("voucher")
	}
	r.Hash, r.Voucher = tally.Hashlock(a.GetSold().GetHash()), a.GetSold().GetVoucher()
	return r, nil
}

// Mail implements hold.Wire.
func (s *Service) Mail(ctx context.Context, payee peer.ID, m *hold.Mail) error {
	return s.simple(ctx, payee, &holdpb.Request{Kind: &holdpb.Request_Mail{Mail: &holdpb.Mail{Mail: []byte(m.String())}}})
}
