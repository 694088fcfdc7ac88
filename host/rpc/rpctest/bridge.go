package rpctest

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/compat/spsp"
)

var _ rpc.Bridge = (*Bridge)(nil)

// Bridge keeps clients in memory, for tests of what shows them.
type Bridge struct {
	// mu guards the fields below.
	mu       sync.Mutex
	rows     []rpc.BridgeClientRow
	pointers []rpc.PointerRow
}

func (b *Bridge) with(name string, fn func(*rpc.BridgeClientRow) error) (rpc.BridgeClientRow, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.rows {
		if b.rows[i].Name == name {
			err := fn(&b.rows[i])
			return b.rows[i], err
		}
	}
	return rpc.BridgeClientRow{}, rpc.NewError(rpc.CodeNoClient, "no client %q", name)
}

// AddClient adds a client; without limits it has 100 of each.
func (b *Bridge) AddClient(_ context.Context, name string, l *rpc.BridgeLimits) (rpc.BridgeTokenRow, error) {
	if l == nil {
		l = &rpc.BridgeLimits{Credit: 100, Debt: 100}
	}
	if _, err := b.with(name, func(*rpc.BridgeClientRow) error { return nil }); err == nil {
		return rpc.BridgeTokenRow{}, rpc.NewError(rpc.CodeClientExists, "there is a client %q", name)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rows = append(b.rows, rpc.BridgeClientRow{Name: name, Address: "private.tally.test.c." + name, Credit: l.Credit, Debt: l.Debt})
	return rpc.BridgeTokenRow{Name: name, Address: "private.tally.test.c." + name, Token: "secret", URL: "btp+ws://" + name + ":secret@127.0.0.1:1"}, nil
}

// Clients returns the clients.
func (b *Bridge) Clients(context.Context) ([]rpc.BridgeClientRow, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.rows), nil
}

// RemoveClient removes a client whose balance is zero.
func (b *Bridge) RemoveClient(_ context.Context, name string) error {
	_, err := b.with(name, func(r *rpc.BridgeClientRow) error {
		if r.Balance != 0 {
			return rpc.NewError(rpc.CodeNotEven, "%q owes %d", name, r.Balance)
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rows = slices.DeleteFunc(b.rows, func(r rpc.BridgeClientRow) bool { return r.Name == name })
	return nil
}

// Settle moves the balance.
func (b *Bridge) Settle(_ context.Context, name string, in, out uint64) (rpc.BridgeClientRow, error) {
	return b.with(name, func(r *rpc.BridgeClientRow) error {
		r.PaidIn, r.PaidOut, r.Balance = r.PaidIn+in, r.PaidOut+out, r.Balance+int64(out)-int64(in)
		return nil
	})
}

// SetLimits sets the limits.
func (b *Bridge) SetLimits(_ context.Context, name string, l rpc.BridgeLimits) (rpc.BridgeClientRow, error) {
	return b.with(name, func(r *rpc.BridgeClientRow) error {
		r.Credit, r.Debt = l.Credit, l.Debt
		return nil
	})
}

// AddPointer adds a pointer.
func (b *Bridge) AddPointer(_ context.Context, path string, use paystream.Use, units uint64) (rpc.PointerRow, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	row := rpc.PointerRow{Path: path, Kind: use.String(), Amount: units}
	b.pointers = append(b.pointers, row)
	return row, nil
}

// Pointers returns the pointers.
func (b *Bridge) Pointers(context.Context) ([]rpc.PointerRow, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.pointers), nil
}

// RemovePointer removes a pointer.
func (b *Bridge) RemovePointer(_ context.Context, path string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := len(b.pointers)
	b.pointers = slices.DeleteFunc(b.pointers, func(r rpc.PointerRow) bool { return r.Path == path })
	if len(b.pointers) == before {
		return rpc.NewError(rpc.CodeNoPointer, "no pointer %q", path)
	}
	return nil
}

// Follow loses one in ten on the way.
func (b *Bridge) Follow(_ context.Context, p spsp.Pointer, units uint64, _ string) (rpc.MovedRow, error) {
	if units == 0 {
		return rpc.MovedRow{}, rpc.NewError(rpc.CodeUnresolved, "%s asks for nothing", p)
	}
	return rpc.MovedRow{Pointer: p.String(), Kind: "push", Sent: units, Delivered: units - units/10}, nil
}

// CreateILP makes an address that nobody can pay.
func (b *Bridge) CreateILP(_ context.Context, use paystream.Use, units uint64, _, _ *paystream.Limit, _ time.Time) (rpc.ILPRow, error) {
	return rpc.ILPRow{Kind: use.String(), Amount: units, Address: "private.tally.test.s.x", Secret: "c2VjcmV0", Protocol: "STREAM"}, nil
}
