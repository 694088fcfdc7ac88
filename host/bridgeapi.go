package host

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/paystream/compat/bridge"
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
	for _, m := range [...]struct {
		err  error
		code rpc.Code
	}{
		{bridge.ErrName, rpc.CodeBadArgument},
		{bridge.ErrTotals, rpc.CodeBadArgument},
		{bridge.ErrClient, rpc.CodeNoClient},
		{bridge.ErrClientExists, rpc.CodeClientExists},
		{bridge.ErrNotEven, rpc.CodeNotEven},
		{bridge.ErrFull, rpc.CodeBusy},
	} {
		if errors.Is(err, m.err) {
			return rpc.NewError(m.code, "%w", err)
		}
	}
	return apiError(err)
}
