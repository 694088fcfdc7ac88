package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream"
)

// MaxPointers bounds the payment pointers of a node.
const MaxPointers = 1024

// maxPath bounds the path of a pointer, and with it the key of its row.
const maxPath = 256

const prefixPointers = "/bridge/pointer/"

// Errors of pointers.
var (
	// ErrPath: not the path of a payment pointer, or there is none.
	ErrPath = errors.New("bridge: no payment pointer of this path: want it empty, or as /shop")
	// ErrPointerExists: the path is taken.
	ErrPointerExists = errors.New("bridge: there is a payment pointer of this path")
	// ErrPointerUse: a pointer is a push, an invoice or a voucher.
	ErrPointerUse = errors.New("bridge: a payment pointer is a push, an invoice or a voucher of at least 1")
)

// Pointer is what a path of the node's pays or is paid. The payers of an invoice and
// the bearers of a voucher share one amount; each of a push has its own.
type Pointer struct {
	Path   string
	Use    paystream.Use // UsePush, UseInvoice or UseVoucher
	Amount tally.Amount
	Budget TokenID // of all its addresses, but those of a push
}

// grant is what each address gives.
func (p *Pointer) grant(now time.Time) paystream.Grant {
	g := paystream.Grant{Use: p.Use, Expires: now.Add(pointerLife).Unix()}
	switch n := tally.Balance(p.Amount); p.Use {
	case paystream.UseInvoice:
		g.Min, g.Max = paystream.At(n), paystream.At(n)
	case paystream.UseVoucher:
		g.Min, g.Max = paystream.At(-n), paystream.At(0)
	default:
		g.Min, g.Max = paystream.At(0), paystream.At(n)
	}
	return g
}

// AddPointer enters a pointer.
func (b *Book) AddPointer(p Pointer) error {
	switch {
	case p.Use != paystream.UsePush && p.Use != paystream.UseInvoice && p.Use != paystream.UseVoucher, p.Amount == 0:
		return ErrPointerUse
	case p.Amount > maxTotal:
		return ErrTotals
	case len(p.Path) > maxPath:
		return ErrPath
	case len(b.pointers) >= MaxPointers:
		return ErrFull
	}
	if _, ok := b.pointers[p.Path]; ok {
		return ErrPointerExists
	}
	b.pointers[p.Path] = p
	return nil
}

// RemovePointer forgets a pointer. What its addresses have moved is kept as long as
// they may live.
func (b *Book) RemovePointer(path string) error {
	if _, ok := b.pointers[path]; !ok {
		return ErrPath
	}
	delete(b.pointers, path)
	return nil
}

func pointerKey(path string) string { return prefixPointers + "x" + durable.KeyID([]byte(path)) }

// SavePointer adds a pointer's row, or its deletion where it is gone.
func (b *Book) SavePointer(batch *durable.Batch, path string) {
	key := pointerKey(path)
	p, ok := b.pointers[path]
	if !ok {
		batch.Delete(key)
		return
	}
	rec := append([]byte{byte(p.Use)}, p.Budget[:]...)
	rec = binary.BigEndian.AppendUint64(rec, uint64(p.Amount))
	put(batch, key, append(rec, p.Path...))
}

func (b *Book) restorePointer(key string, r *recordReader) error {
	p := Pointer{Use: paystream.Use(r.take(1)[0]), Budget: TokenID(r.take(len(TokenID{}))), Amount: r.amount()}
	if r.bad {
		return fmt.Errorf("%w: %s", errRecord, key)
	}
	p.Path = string(r.b)
	if pointerKey(p.Path) != key || b.AddPointer(p) != nil {
		return fmt.Errorf("%w: %s", errRecord, key)
	}
	return nil
}
