package swapnet

import (
	"context"
	"log/slog"
	"testing"

	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p/core/host"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/swap"
)

// ledgerNode is a Service with a real book.
type ledgerNode struct {
	*swap.Book
	svc   *Service
	host  host.Host
	ended chan string
}

func newLedgerNode(t testing.TB, h host.Host) *ledgerNode {
	t.Helper()
	n := &ledgerNode{host: h, ended: make(chan string, 256)}
	log := slog.New(&endings{n.ended})
	store := durable.New(dssync.MutexWrap(datastore.NewMapDatastore()))
	book, err := swap.Open(t.Context(), store, swap.Config{Key: h.Peerstore().PrivKey(h.ID()), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	if n.svc, err = New(h, book, Config{Logger: log}); err != nil {
		t.Fatal(err)
	}
	n.Book = book
	book.Bind(n.svc)
	t.Cleanup(func() {
		for _, c := range []func() error{n.svc.Close, book.Close, store.Close} {
			if err := c(); err != nil {
				t.Error(err)
			}
		}
	})
	if err := n.svc.Start(); err != nil {
		t.Fatal(err)
	}
	return n
}

func reserve(t testing.TB, n *ledgerNode, with host.Host, dir swap.Direction, units tally.Amount) swap.Hold {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	h, err := n.Reserve(ctx, with.ID(), "test", dir, units)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func work(t testing.TB, n *ledgerNode, with host.Host, dir swap.Direction, units tally.Amount) {
	t.Helper()
	if err := reserve(t, n, with, dir, units).Commit(units); err != nil {
		t.Fatal(err)
	}
}

func row(t testing.TB, n *ledgerNode, with host.Host) swap.Row {
	t.Helper()
	r, err := n.Row(with.ID())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Two real books over two real hosts: service on credit, cheques at the
// threshold, and at rest each book is the negative of the other. The connection
// goes in between and the tab goes on.
func TestRealBooksSettle(t *testing.T) {
	ha, hb := hosts(t)
	a, b := newLedgerNode(t, ha), newLedgerNode(t, hb)
	defer func() {
		if t.Failed() {
			t.Logf("%+v\n%+v", row(t, a, hb), row(t, b, ha))
		}
	}()
	connect(t, ha, hb)
	for round := range 12 {
		if round == 6 {
			if err := ha.Network().ClosePeer(hb.ID()); err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { return !row(t, a, hb).Connected && !row(t, b, ha).Connected })
			connect(t, hb, ha)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if err := a.WaitSession(ctx, hb.ID()); err != nil {
			t.Fatal(err)
		}
		if err := b.WaitSession(ctx, ha.ID()); err != nil {
			t.Fatal(err)
		}
		cancel()
		// As a service does: who consumes has room before it asks, and books last. A cheque
		// over what the other has not booked yet would be taken at its word.
		asked := reserve(t, a, hb, swap.Consume, 50)
		work(t, b, ha, swap.Serve, 50)
		if err := asked.Commit(50); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, func() bool {
		ra, rb := row(t, a, hb), row(t, b, ha)
		return ra.Consumed == 600 && rb.Served == 600 && ra.Balance == -rb.Balance && ra.Paid == rb.Received && ra.Paid >= 500
	})
	if st := b.Stats(); st.ChequesDenied != 0 || st.ChequesReceived == 0 {
		t.Fatalf("%+v", st)
	}
}

// A peer of the seed's protocol pays a real book.
func TestRealBookAlpha1(t *testing.T) {
	ha, hb := hosts(t)
	b := newLedgerNode(t, hb)
	raw := openRaw(t, ha, hb, ProtocolAlpha1)
	raw.shakeAlpha1()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := b.WaitSession(ctx, ha.ID()); err != nil {
		t.Fatal(err)
	}
	work(t, b, ha, swap.Serve, 80)
	if got := row(t, b, ha).Balance; got != 80 {
		t.Fatal(got)
	}
	cheque, err := encodeAlpha1Cheque(&swap.KarmaCheque{Beneficiary: []byte(hb.ID()), Amount: 80})
	if err != nil {
		t.Fatal(err)
	}
	raw.frame(cheque)
	waitFor(t, func() bool { return row(t, b, ha).Balance == 0 })
}
