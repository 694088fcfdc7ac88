package host

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/compat/bridge"
	"github.com/tallystick/tally/paystream/compat/spsp"
)

// bridgeAPI answers for the bridge what the RPC asks.
type bridgeAPI struct{ *Bridge }

var _ rpc.Bridge = bridgeAPI{}

// Bridge returns the Interledger bridge.
func (a *API) Bridge() (rpc.Bridge, error) {
	b, err := a.node.Bridge()
	if err != nil {
		return nil, rpc.NewError(rpc.CodeNoBridge, "%w", err)
	}
	return bridgeAPI{b}, nil
}

func limitsOf(l rpc.BridgeLimits) bridge.Limits {
	return bridge.Limits{Credit: tally.Amount(l.Credit), Debt: tally.Amount(l.Debt)}
}

// AddClient implements rpc.Bridge.
func (b bridgeAPI) AddClient(_ context.Context, name string, l *rpc.BridgeLimits) (rpc.BridgeTokenRow, error) {
	limits := b.Limits()
	if l != nil {
		limits = limitsOf(*l)
	}
	token, err := b.Bridge.AddClient(name, limits)
	if err != nil {
		return rpc.BridgeTokenRow{}, bridgeError(err)
	}
	return rpc.BridgeTokenRow{
		Name: name, Address: string(b.ClientAddress(name)), Token: string(token), URL: b.ClientURL(name, string(token)),
	}, nil
}

// Clients implements rpc.Bridge.
func (b bridgeAPI) Clients(context.Context) ([]rpc.BridgeClientRow, error) {
	var rows []rpc.BridgeClientRow
	for _, c := range b.Bridge.Clients() {
		rows = append(rows, bridgeRow(c))
	}
	slices.SortFunc(rows, func(a, b rpc.BridgeClientRow) int { return strings.Compare(a.Name, b.Name) })
	return rows, nil
}

// RemoveClient implements rpc.Bridge.
func (b bridgeAPI) RemoveClient(_ context.Context, name string) error {
	return bridgeError(b.Bridge.RemoveClient(name))
}

// Settle implements rpc.Bridge.
func (b bridgeAPI) Settle(_ context.Context, name string, in, out uint64) (rpc.BridgeClientRow, error) {
	c, err := b.Paid(name, tally.Amount(in), tally.Amount(out))
	return bridgeRow(c), bridgeError(err)
}

// SetLimits implements rpc.Bridge.
func (b bridgeAPI) SetLimits(_ context.Context, name string, l rpc.BridgeLimits) (rpc.BridgeClientRow, error) {
	c, err := b.Bridge.SetLimits(name, limitsOf(l))
	return bridgeRow(c), bridgeError(err)
}

// AddPointer implements rpc.Bridge.
func (b bridgeAPI) AddPointer(_ context.Context, path string, use paystream.Use, units uint64) (rpc.PointerRow, error) {
	p := bridge.Pointer{Path: path, Use: use, Amount: tally.Amount(units)}
	return pointerRow(bridge.PointerRow{Pointer: p}), bridgeError(b.Bridge.AddPointer(p))
}

// Pointers implements rpc.Bridge.
func (b bridgeAPI) Pointers(context.Context) ([]rpc.PointerRow, error) {
	var rows []rpc.PointerRow
	for _, p := range b.Bridge.Pointers() {
		rows = append(rows, pointerRow(p))
	}
	slices.SortFunc(rows, func(a, b rpc.PointerRow) int { return strings.Compare(a.Path, b.Path) })
	return rows, nil
}

func pointerRow(p bridge.PointerRow) rpc.PointerRow {
	return rpc.PointerRow{Path: p.Path, Kind: p.Use.String(), Amount: uint64(p.Amount), Balance: int64(p.Balance)}
}

// RemovePointer implements rpc.Bridge.
func (b bridgeAPI) RemovePointer(_ context.Context, path string) error {
	return bridgeError(b.Bridge.RemovePointer(path))
}

// followWithin bounds the following of a pointer, money included.
const followWithin = time.Minute

// Follow implements rpc.Bridge.
func (b bridgeAPI) Follow(ctx context.Context, p spsp.Pointer, units uint64, loopback string) (rpc.MovedRow, error) {
	ctx, cancel := context.WithTimeout(ctx, followWithin)
	defer cancel()
	d, err := spsp.Resolver{Loopback: loopback}.Resolve(ctx, p)
	if err != nil {
		return rpc.MovedRow{}, bridgeError(err)
	}
	m, err := b.Bridge.Follow(ctx, d, tally.Amount(units))
	row := rpc.MovedRow{
		Pointer: p.String(), Kind: m.Kind.String(), Sent: uint64(m.Sent), Delivered: uint64(m.Delivered), Received: uint64(m.Received),
	}
	switch {
	case err == nil:
		return row, nil
	case errors.Is(err, bridge.ErrNothing), errors.Is(err, bridge.ErrAmount):
		return row, bridgeError(err)
	default:
		return row, rpc.NewError(rpc.CodeMovedShort, "sent %d of which %d arrived, received %d: %w", row.Sent, row.Delivered, row.Received, err)
	}
}

// CreateILP implements rpc.Bridge.
func (b bridgeAPI) CreateILP(_ context.Context, use paystream.Use, units uint64, low, high *paystream.Limit, expires time.Time) (rpc.ILPRow, error) {
	g, err := GrantOf(use, tally.Amount(units), expires)
	if err != nil {
		return rpc.ILPRow{}, socketError(err)
	}
	if low != nil {
		g.Min = *low
	}
	if high != nil {
		g.Max = *high
	}
	to, protocol, err := b.IssueFor(g)
	if err != nil {
		return rpc.ILPRow{}, socketError(err)
	}
	row := rpc.ILPRow{
		Kind: use.String(), Amount: units, Address: string(to.Address), Secret: base64.StdEncoding.EncodeToString(to.Secret[:]), Protocol: protocol,
	}
	if !expires.IsZero() {
		at := expires.UTC()
		row.Expires = &at
	}
	return row, nil
}

func bridgeRow(c bridge.ClientRow) rpc.BridgeClientRow {
	sending, getting := c.InFlight()
	return rpc.BridgeClientRow{
		Name: c.Name, Address: string(c.Address), Connected: c.Connected, Balance: int64(c.Balance()),
		Credit: uint64(c.Limits.Credit), Debt: uint64(c.Limits.Debt), Sent: uint64(c.Sent), Received: uint64(c.Received),
		PaidIn: uint64(c.PaidIn), PaidOut: uint64(c.PaidOut), Late: uint64(c.Late), Sending: uint64(sending), Getting: uint64(getting),
	}
}

// bridgeError gives the errors of the bridge their stable code.
func bridgeError(err error) error {
	if known := coded(err, []errorCode{
		{bridge.ErrName, rpc.CodeBadArgument},
		{bridge.ErrTotals, rpc.CodeBadArgument},
		{bridge.ErrClient, rpc.CodeNoClient},
		{bridge.ErrClientExists, rpc.CodeClientExists},
		{bridge.ErrNotEven, rpc.CodeNotEven},
		{bridge.ErrFull, rpc.CodeBusy},
		{bridge.ErrPath, rpc.CodeNoPointer},
		{bridge.ErrPointerExists, rpc.CodePointerExists},
		{bridge.ErrPointerUse, rpc.CodeBadArgument},
		{bridge.ErrAmount, rpc.CodeBadArgument},
		{bridge.ErrNothing, rpc.CodeUnresolved},
		{spsp.ErrResolve, rpc.CodeUnresolved},
		{spsp.ErrDocument, rpc.CodeUnresolved},
		{spsp.ErrLoopback, rpc.CodeBadArgument},
	}); known != nil {
		return known
	}
	return apiError(err)
}
