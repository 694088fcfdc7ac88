package rpc

import (
	"context"
	"time"

	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/compat/spsp"
)

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
	AddPointer(ctx context.Context, path string, use paystream.Use, units uint64) (PointerRow, error)
	Pointers(ctx context.Context) ([]PointerRow, error)
	RemovePointer(ctx context.Context, path string) error
	// Follow does what a pointer is for; loopback, where set, is asked in place of its
	// host.
	Follow(ctx context.Context, pointer spsp.Pointer, units uint64, loopback string) (MovedRow, error)
	// CreateILP makes an address.
	CreateILP(ctx context.Context, use paystream.Use, units uint64, low, high *paystream.Limit, expires time.Time) (ILPRow, error)
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

// PointerRow is a payment pointer of ours.
type PointerRow struct {
	// Path is empty for $host, else from the slash on.
	Path   string `json:"path"`
	Kind   string `json:"kind"`
	Amount uint64 `json:"amount"`
	// Balance is what it received less what it paid. Each payer of a push has a
	// figure of its own, which is not kept here.
	Balance int64 `json:"balance"`
}

// FollowOptions say how a payment pointer is followed.
type FollowOptions struct {
	// Amount is what a push is sent, or the most of an invoice or voucher; 0 is all.
	Amount uint64 `json:"amount"`
	// Loopback is IP:PORT of this machine that is asked by plain HTTP in place of the
	// pointer's host, for trials.
	Loopback string `json:"loopback"`
}

// MovedRow is what a payment pointer moved. Amounts are our units, but delivered,
// which is the other side's.
type MovedRow struct {
	Pointer   string `json:"pointer"`
	Kind      string `json:"kind"`
	Sent      uint64 `json:"sent"`
	Delivered uint64 `json:"delivered"`
	Received  uint64 `json:"received"`
}

// ILPRow is an Interledger address that was made. Who reads its secret can use it.
type ILPRow struct {
	Kind    string `json:"kind"`
	Amount  uint64 `json:"amount"`
	Address string `json:"address"`
	// Secret is base64 of 32 bytes, Protocol STREAM or PSK2.
	Secret   string `json:"secret"`
	Protocol string `json:"protocol"`
	// Expires is null for one that never does.
	Expires *time.Time `json:"expires"`
}

var pointerKinds = map[string]paystream.Use{
	"push": paystream.UsePush, "invoice": paystream.UseInvoice, "voucher": paystream.UseVoucher,
}

func (a *api) PointerAdd(ctx context.Context, path, kind string, units uint64) (PointerRow, error) {
	return onBridge(ctx, a, "PointerAdd", func(ctx context.Context, b Bridge) (PointerRow, error) {
		use, ok := pointerKinds[kind]
		if !ok {
			return PointerRow{}, NewError(CodeBadArgument, "%q is no kind of payment pointer", clip(kind)).WithRemedy("use push, invoice or voucher")
		}
		if err := checkUnits(units); err != nil {
			return PointerRow{}, err
		}
		return b.AddPointer(ctx, path, use, units)
	})
}

func (a *api) PointerList(ctx context.Context) ([]PointerRow, error) {
	return onBridge(ctx, a, "PointerList", func(ctx context.Context, b Bridge) ([]PointerRow, error) {
		rows, err := b.Pointers(ctx)
		return list(rows), err
	})
}

func (a *api) PointerRemove(ctx context.Context, path string) (Done, error) {
	return onBridge(ctx, a, "PointerRemove", func(ctx context.Context, b Bridge) (Done, error) {
		return Done{true}, b.RemovePointer(ctx, path)
	})
}

func (a *api) PointerFollow(ctx context.Context, pointer string, o FollowOptions) (MovedRow, error) {
	return onBridge(ctx, a, "PointerFollow", func(ctx context.Context, b Bridge) (MovedRow, error) {
		p, err := spsp.ParsePointer(pointer)
		if err != nil {
			return MovedRow{}, NewError(CodeBadURI, "%w", err).WithRemedy("use $host or $host/path; quote it in a shell")
		}
		if err := checkUnits(o.Amount); err != nil {
			return MovedRow{}, err
		}
		return b.Follow(ctx, p, o.Amount, o.Loopback)
	})
}

func (a *api) ILPCreate(ctx context.Context, kind string, o URIOptions) (ILPRow, error) {
	return onBridge(ctx, a, "ILPCreate", func(ctx context.Context, b Bridge) (ILPRow, error) {
		w, err := wantedURI(kind, o)
		if err != nil {
			return ILPRow{}, err
		}
		if o.PeriodSeconds != 0 {
			return ILPRow{}, NewError(CodeBadArgument, "an Interledger address has no period")
		}
		return b.CreateILP(ctx, w.use, o.Amount, w.low, w.high, w.expires)
	})
}
