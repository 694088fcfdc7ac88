package rpc

import "context"

// maxUnits bounds amounts of an account.
const maxUnits = 1 << 60

// Bridge is the Interledger part of a peer. All methods may be called at the same
// time, and return when ctx ends.
type Bridge interface {
	// AddClient adds a client; nil limits are those of the settings.
	AddClient(ctx context.Context, name string, limits *BridgeLimits) (BridgeTokenRow, error)
	Clients(ctx context.Context) ([]BridgeClientRow, error)
	RemoveClient(ctx context.Context, name string) error
	// Settle books what the client paid us, and we it, by other means.
	Settle(ctx context.Context, name string, in, out uint64) (BridgeClientRow, error)
	SetLimits(ctx context.Context, name string, limits BridgeLimits) (BridgeClientRow, error)
}

// BridgeLimits bound the account of a client, in units.
type BridgeLimits struct {
	// Credit is the most that the client may owe us, Debt the most that we may owe
	// the client.
	Credit uint64 `json:"credit"`
	Debt   uint64 `json:"debt"`
}

// BridgeTokenRow is a client that was added. Who reads it can spend its credit.
type BridgeTokenRow struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Token   string `json:"token"`
	// URL is what the client connects to; empty where the settings have no
	// btp_listen.
	URL string `json:"url"`
}

// BridgeClientRow is a client of the bridge. Amounts are units.
type BridgeClientRow struct {
	Name      string `json:"name"`
	Address   string `json:"address"`
	Connected bool   `json:"connected"`
	// Balance is what the client owes us; below zero we owe the client.
	Balance  int64  `json:"balance"`
	Credit   uint64 `json:"credit"`
	Debt     uint64 `json:"debt"`
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
	PaidIn   uint64 `json:"paid_in"`
	PaidOut  uint64 `json:"paid_out"`
	// Late is the part of sent that reached its payee although the client was told
	// that it failed: a hop was away, or we stopped. Give it back or not, as agreed.
	Late uint64 `json:"late"`
	// Sending and Getting are on the way.
	Sending uint64 `json:"sending"`
	Getting uint64 `json:"getting"`
}

// onBridge is call for a method that works on the bridge.
func onBridge[T any](ctx context.Context, a *api, method string, fn func(context.Context, Bridge) (T, error)) (T, error) {
	return call(ctx, a, method, func(ctx context.Context) (T, error) {
		b, err := a.node.Bridge()
		if err != nil {
			var zero T
			return zero, err
		}
		return fn(ctx, b)
	})
}

func checkUnits(list ...uint64) error {
	for _, n := range list {
		if n > maxUnits {
			return NewError(CodeBadArgument, "%d is more than an account can hold", n).WithRemedy("use at most 2^60")
		}
	}
	return nil
}

func (a *api) BridgeClientAdd(ctx context.Context, name string, limits *BridgeLimits) (BridgeTokenRow, error) {
	return onBridge(ctx, a, "BridgeClientAdd", func(ctx context.Context, b Bridge) (BridgeTokenRow, error) {
		if limits != nil {
			if err := checkUnits(limits.Credit, limits.Debt); err != nil {
				return BridgeTokenRow{}, err
			}
		}
		return b.AddClient(ctx, name, limits)
	})
}

func (a *api) BridgeClientList(ctx context.Context) ([]BridgeClientRow, error) {
	return onBridge(ctx, a, "BridgeClientList", func(ctx context.Context, b Bridge) ([]BridgeClientRow, error) {
		rows, err := b.Clients(ctx)
		return list(rows), err
	})
}

func (a *api) BridgeClientRemove(ctx context.Context, name string) (Done, error) {
	return onBridge(ctx, a, "BridgeClientRemove", func(ctx context.Context, b Bridge) (Done, error) {
		return Done{true}, b.RemoveClient(ctx, name)
	})
}

func (a *api) BridgeClientSettle(ctx context.Context, name string, paidIn, paidOut uint64) (BridgeClientRow, error) {
	return onBridge(ctx, a, "BridgeClientSettle", func(ctx context.Context, b Bridge) (BridgeClientRow, error) {
		if err := checkUnits(paidIn, paidOut); err != nil {
			return BridgeClientRow{}, err
		}
		return b.Settle(ctx, name, paidIn, paidOut)
	})
}

func (a *api) BridgeClientLimits(ctx context.Context, name string, limits BridgeLimits) (BridgeClientRow, error) {
	return onBridge(ctx, a, "BridgeClientLimits", func(ctx context.Context, b Bridge) (BridgeClientRow, error) {
		if err := checkUnits(limits.Credit, limits.Debt); err != nil {
			return BridgeClientRow{}, err
		}
		return b.SetLimits(ctx, name, limits)
	})
}
