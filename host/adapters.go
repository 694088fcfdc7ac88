package host

import (
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/settler"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/protocols/storenet"
	"github.com/tallystick/tally/swap"
)

// serviceStore is the name of the message store in the books.
const serviceStore = "store"

// storeMeter puts the message store on the tabs.
type storeMeter struct{ book *swap.Book }

var _ storenet.Meter = storeMeter{}

// Serve reserves what a peer is to owe us.
func (m storeMeter) Serve(ctx context.Context, p peer.ID, units tally.Amount) (storenet.Hold, error) {
	hold, err := m.book.TryReserve(ctx, p, serviceStore, swap.Serve, units)
	if err != nil {
		return nil, err
	}
	return hold, nil
}

// Consume reserves what we are to owe a peer, and waits for a settlement while
// ctx allows.
func (m storeMeter) Consume(ctx context.Context, p peer.ID, units tally.Amount) (storenet.Hold, error) {
	hold, err := m.book.Reserve(ctx, p, serviceStore, swap.Consume, units)
	if errors.Is(err, swap.ErrTooLarge) {
		return nil, fmt.Errorf("%w: %w", storenet.ErrHoldTooLarge, err)
	}
	if err != nil {
		return nil, err
	}
	return hold, nil
}

// HeadroomServe is what the peer may still take; 0 where its tab cannot be read.
func (m storeMeter) HeadroomServe(p peer.ID) tally.Amount {
	room, err := m.book.Headroom(p, swap.Serve)
	if err != nil {
		return 0
	}
	return room
}

// packetTabs puts packets on the tabs.
type packetTabs struct {
	book *swap.Book
	// batch is nil where packets have no journal.
	batch *swap.PacketBatch
}

var (
	_ forward.Tabs    = (*packetTabs)(nil)
	_ forward.Refuser = (*packetTabs)(nil)
)

// PacketTabs returns the tabs of book as the hop engine needs them. journal says
// that the engine keeps one, in the store of the book: then both reach the disk
// in one batch. Without, packets are written behind as services are.
func PacketTabs(book *swap.Book, journal bool) forward.Tabs {
	t := &packetTabs{book: book}
	if journal {
		t.batch = book.NewPacketBatch()
	}
	return t
}

func swapDir(dir forward.Dir) swap.Direction {
	if dir == forward.In {
		return swap.Serve
	}
	return swap.Consume
}

func (t *packetTabs) Hold(p peer.ID, id uint64, dir forward.Dir, units tally.Amount) error {
	err := t.book.HoldPacket(p, id, swapDir(dir), units)
	if err == nil {
		return nil
	}
	room := &forward.HeadroomError{Code: forward.CodeHeadroom, Cause: err}
	if e := (*swap.RefusedError)(nil); errors.As(err, &e) {
		room.Headroom = e.Headroom
	}
	switch {
	case errors.Is(err, swap.ErrTooLarge):
		room.Code = forward.CodeTooLarge
	case errors.Is(err, swap.ErrTooManyHolds):
		room.Code = forward.CodeBusy
	case errors.Is(err, swap.ErrClosed):
		room.Code = forward.CodeInternal
	case t.book.Policy().Mode == swap.ModeSoft:
		room.Code = forward.CodeHeadroomFinal
	}
	return room
}

func (t *packetTabs) Commit(p peer.ID, id uint64, dir forward.Dir) error {
	if t.batch != nil {
		return t.batch.Commit(p, id, swapDir(dir))
	}
	return t.book.CommitPacket(p, id, swapDir(dir))
}

func (t *packetTabs) Release(p peer.ID, id uint64, dir forward.Dir) error {
	return t.book.ReleasePacket(p, id, swapDir(dir))
}

// Refused implements forward.Refuser.
func (t *packetTabs) Refused(p peer.ID) { t.book.PacketRefused(p) }

func (t *packetTabs) Restore(held []forward.Held) error {
	list := make([]swap.PacketHold, len(held))
	for i, h := range held {
		list[i] = swap.PacketHold{Peer: h.Peer, ID: h.ID, Dir: swapDir(h.Dir), Units: h.Units}
	}
	return t.book.RestorePackets(list)
}

func (t *packetTabs) Save(batch *durable.Batch) { t.batch.Save(batch) }
func (t *packetTabs) Done(err error)            { t.batch.Done(err) }

// VoucherOf returns the channel voucher in the backing of a cheque of mode hard.
func VoucherOf(b swap.Backing) (*paych.SignedVoucher, error) { return settler.VoucherOf(b) }
