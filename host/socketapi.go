package host

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/paystream/payments"
	"github.com/tallystick/tally/protocols/socketnet"
)

const (
	// redeemWithin bounds how long a redeemed URI is waited for.
	redeemWithin = 20 * time.Second
	// giftQuiet is how long a gift of which something has come is waited for.
	giftQuiet = 2 * time.Second
	// openSocketWithin bounds the finding of rate and limits.
	openSocketWithin = 20 * time.Second
	// maxSocketWatches bounds the sockets whose settling is waited for to be told
	// as an event; of more than these only the opening is told.
	maxSocketWatches = 1024
)

// socketAPI answers for the sockets what the RPC asks.
type socketAPI struct {
	api *API
	*Sockets
}

var _ rpc.Sockets = socketAPI{}

// Sockets returns the payment sockets.
func (a *API) Sockets() (rpc.Sockets, error) {
	s, err := a.node.Sockets()
	if err != nil {
		return nil, rpc.NewError(rpc.CodeNoSockets, "%w", err)
	}
	return socketAPI{a, s}, nil
}

// Holds returns the holds.
func (a *API) Holds() (*hold.Service, error) {
	s, err := a.node.Holds()
	if err != nil {
		return nil, rpc.NewError(rpc.CodeUnsupported, "%w", err)
	}
	return s, nil
}

// Payments returns the payments in parts.
func (a *API) Payments() (*payments.Service, error) {
	s, err := a.node.Payments()
	if err != nil {
		return nil, rpc.NewError(rpc.CodeUnsupported, "%w", err)
	}
	return s, nil
}

func (s socketAPI) opened(c *paystream.Conn, err error) (*paystream.Conn, error) {
	if err != nil {
		return nil, socketError(err)
	}
	s.api.socketOpened(c)
	return c, nil
}

// Open implements rpc.Sockets.
func (s socketAPI) Open(ctx context.Context, to peer.ID, uri *paystream.URI, via []peer.ID, t paystream.Terms) (rpc.SocketRow, error) {
	ctx, cancel := context.WithTimeout(ctx, openSocketWithin)
	defer cancel()
	var c *paystream.Conn
	var err error
	if uri != nil {
		c, err = s.Sockets.Redeem(ctx, *uri, via, t)
	} else {
		c, err = s.Sockets.Open(ctx, to, via, t)
	}
	if c, err = s.opened(c, err); err != nil {
		return rpc.SocketRow{}, err
	}
	return socketRow(c), nil
}

// Redeem implements rpc.Sockets.
func (s socketAPI) Redeem(ctx context.Context, u paystream.URI, via []peer.ID, low, high *paystream.Limit) (rpc.SocketRow, error) {
	ctx, cancel := context.WithTimeout(ctx, redeemWithin)
	defer cancel()
	// What an account gives or takes is the bearer's to say, and flows both ways.
	t := paystream.Terms{Refunds: u.Use == paystream.UseAccount || u.Use == paystream.UsePrepaid}
	var err error
	if low == nil || high == nil {
		if t.Min, t.Max, err = LimitsOf(u); err != nil {
			return rpc.SocketRow{}, rpc.NewError(rpc.CodeBadArgument, "%w", err).WithRemedy("for example --min -100 --max -100 gives 100")
		}
	}
	if low != nil {
		t.Min = *low
	}
	if high != nil {
		t.Max = *high
	}
	c, err := s.opened(s.Sockets.Redeem(ctx, u, via, t))
	if err != nil {
		return rpc.SocketRow{}, err
	}
	// Settled is also a moment at which the other side has not begun: a bearer who
	// is to get something waits for it.
	err = c.WaitSettled(ctx)
	if err == nil && u.Use == paystream.UseGift {
		err = waitGift(ctx, c)
	}
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return rpc.SocketRow{}, socketError(err)
	}
	return socketRow(c), nil
}

// waitGift returns once a gift has come: its giver has nothing more to give, or,
// where hops would keep all of a rest, nothing has come for a while.
func waitGift(ctx context.Context, c *paystream.Conn) error {
	for {
		before := c.Report().Balance
		quiet, cancel := context.WithTimeout(ctx, giftQuiet)
		err := c.WaitUntil(quiet, func(r *paystream.Report) bool {
			return r.Balance > 0 && !r.PeerOffer.Open && r.PeerOffer.N == 0
		})
		cancel()
		if now := c.Report().Balance; ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) || now > 0 && now == before {
			return errors.Join(ctx.Err(), notDeadline(err))
		}
	}
}

func notDeadline(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// List implements rpc.Sockets.
func (s socketAPI) List(context.Context) ([]rpc.SocketRow, error) {
	conns := s.Sockets.List()
	rows := make([]rpc.SocketRow, len(conns))
	for i, c := range conns {
		rows[i] = socketRow(c)
	}
	slices.SortFunc(rows, func(a, b rpc.SocketRow) int { return strings.Compare(a.ID, b.ID) })
	return rows, nil
}

// on runs fn on a socket and shows it after.
func (s socketAPI) on(id paystream.SocketID, fn func(*paystream.Conn) error) (rpc.SocketRow, error) {
	c, err := s.Conn(id)
	if err == nil {
		err = fn(c)
	}
	if err != nil {
		return rpc.SocketRow{}, socketError(err)
	}
	return socketRow(c), nil
}

// Get implements rpc.Sockets.
func (s socketAPI) Get(_ context.Context, id paystream.SocketID) (rpc.SocketRow, error) {
	return s.on(id, func(*paystream.Conn) error { return nil })
}

// SetLimits implements rpc.Sockets.
func (s socketAPI) SetLimits(_ context.Context, id paystream.SocketID, low, high paystream.Limit) (rpc.SocketRow, error) {
	return s.on(id, func(c *paystream.Conn) error { return c.SetLimits(low, high) })
}

// Pay implements rpc.Sockets.
func (s socketAPI) Pay(_ context.Context, id paystream.SocketID, units uint64) (rpc.SocketRow, error) {
	return s.on(id, func(c *paystream.Conn) error { return c.Pay(tally.Amount(units)) })
}

// Charge implements rpc.Sockets.
func (s socketAPI) Charge(_ context.Context, id paystream.SocketID, units uint64) (rpc.SocketRow, error) {
	return s.on(id, func(c *paystream.Conn) error { return c.Charge(tally.Amount(units)) })
}

// Close implements rpc.Sockets.
func (s socketAPI) Close(_ context.Context, id paystream.SocketID) (rpc.SocketRow, error) {
	return s.on(id, func(c *paystream.Conn) error {
		c.Close()
		return nil
	})
}

// Create implements rpc.Sockets.
func (s socketAPI) Create(_ context.Context, use paystream.Use, units uint64, low, high *paystream.Limit, expires time.Time, period time.Duration) (rpc.URIRow, error) {
	g, err := GrantOf(use, tally.Amount(units), expires)
	if err != nil {
		return rpc.URIRow{}, socketError(err)
	}
	g.Period = uint32(period / time.Second)
	if low != nil {
		g.Min = *low
	}
	if high != nil {
		g.Max = *high
	}
	u, err := s.Issue(g)
	if err != nil {
		return rpc.URIRow{}, socketError(err)
	}
	u.Amount = tally.Amount(units)
	row := rpc.URIRow{URI: u.Reveal(), Kind: use.String(), Amount: units}
	if !expires.IsZero() {
		at := expires.UTC()
		row.Expires = &at
	}
	return row, nil
}

func socketRow(c *paystream.Conn) rpc.SocketRow {
	r := c.Report()
	row := rpc.SocketRow{
		ID: c.ID().String(), Peer: c.Peer().String(), Role: "client",
		Min: rpc.LimitOf(r.Min), Max: rpc.LimitOf(r.Max), Balance: int64(r.Balance), Sent: uint64(r.Sent), Received: uint64(r.Received),
		Settled: c.Settled(), Loss: uint64(r.Sent.SaturatingSub(r.Arrived).SaturatingAdd(r.BackSent.SaturatingSub(r.Back))),
		Expected: uint64(r.PeerExpected), Wanted: "inf", InFlight: uint64(r.HoldOut), Verdict: r.Verdict.Kind.String(),
	}
	own, peers := c.Assets()
	row.Asset, row.Scale, row.PeerAsset, row.PeerScale = own.Code, int(own.Scale), peers.Code, int(peers.Scale)
	data := c.DataReport()
	row.Streams, row.DataSent, row.DataReceived = data.Streams, data.Sent, data.Received
	if c.Role() == paystream.RoleServer {
		row.Role = "server"
	}
	if at, err := tally.Balance(0).Debit(r.PeerWanted.N); err == nil && !r.PeerWanted.Open {
		row.Wanted = rpc.LimitOf(paystream.At(at))
	}
	if r.Rate.Known() {
		row.Rate = float64(r.Rate.Low.Num) / float64(r.Rate.Low.Den)
	}
	switch err := c.Err(); {
	case err != nil:
		row.Note = strings.TrimPrefix(err.Error(), "paystream: ")
	case r.SettledShort:
		row.Note = "settled short: what came back lost too much on its way"
	}
	return row
}

// socketOpened keeps the opening of a socket for EventsSince, and once its
// settling or end.
func (a *API) socketOpened(c *paystream.Conn) {
	id := c.ID().String()
	a.events.Append(time.Now(), "socket opened", c.Peer().String(), map[string]any{"id": id})
	if a.watches.Add(1) > maxSocketWatches {
		a.watches.Add(-1)
		return
	}
	go func() { // ends when the socket settles, stops or is closed, as all are in the end
		defer a.watches.Add(-1)
		err := c.WaitSettled(context.Background())
		r := c.Report()
		fields := map[string]any{"id": id, "balance": int64(r.Balance), "sent": uint64(r.Sent), "received": uint64(r.Received)}
		kind := "socket settled"
		if err != nil {
			kind, fields["cause"] = "socket stopped", err.Error()
		}
		a.events.Append(time.Now(), kind, c.Peer().String(), fields)
	}()
}

// socketError gives the errors of sockets their stable code.
func socketError(err error) error {
	if known := coded(err, []errorCode{
		{ErrToSelf, rpc.CodeBadPeer},
		{paystream.ErrNoSocket, rpc.CodeNoSocket},
		{paystream.ErrLimits, rpc.CodeSocketLimits},
		{tally.ErrOverflow, rpc.CodeSocketLimits},
		{paystream.ErrURI, rpc.CodeBadURI},
		{paystream.ErrIncompatible, rpc.CodeIncompatible},
		{socketnet.ErrRefused, rpc.CodeSocketRefused},
		{socketnet.ErrBusy, rpc.CodeBusy},
		{socketnet.ErrAnswer, rpc.CodeRemoteProtocol},
		{paystream.ErrNoRate, rpc.CodeNoWay},
		{paystream.ErrStalled, rpc.CodeSocketStalled},
		{paystream.ErrAllRejected, rpc.CodeSocketStalled},
		{paystream.ErrSpent, rpc.CodeSpent},
		{paystream.ErrTokenExpired, rpc.CodeSpent},
		{paystream.ErrNoData, rpc.CodeNoReader},
		{paystream.ErrReaderGone, rpc.CodeNoReader},
		{paystream.ErrStreamReset, rpc.CodeSocketClosed},
		{paystream.ErrStreamClosed, rpc.CodeSocketClosed},
		{paystream.ErrDataMemory, rpc.CodeBusy},
		{paystream.ErrClosed, rpc.CodeSocketClosed},
		{paystream.ErrTooMany, rpc.CodeBusy},
		{paystream.ErrBusy, rpc.CodeBusy},
		{context.DeadlineExceeded, rpc.CodeNoWay},
	}); known != nil {
		return known
	}
	return apiError(err)
}
