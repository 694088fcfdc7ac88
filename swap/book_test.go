package swap

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

// party is one book of a pair, with the wire to the other.
type party struct {
	*Book
	key   crypto.PrivKey
	store *durable.Store
	link  *link
}

// link is the wire between two books of a test: it hands messages over in
// order, on a goroutine of its own for each way.
type link struct {
	mu    sync.Mutex
	up    bool
	peers map[peer.ID]*Book
	queue map[peer.ID]chan Message // by receiver
	drop  func(to peer.ID, m Message) bool
	wg    sync.WaitGroup
}

// end is one side's Courier.
type end struct {
	l    *link
	from peer.ID
}

func (e end) Send(_ context.Context, p peer.ID, m Message) error {
	e.l.mu.Lock()
	defer e.l.mu.Unlock()
	if !e.l.up {
		return ErrNoSession
	}
	if e.l.drop != nil && e.l.drop(p, m) {
		return nil
	}
	e.l.queue[p] <- m
	return nil
}

func (e end) Disconnect(peer.ID) error { return nil }

func newParty(t testing.TB, key crypto.PrivKey, store *durable.Store, policy Policy) *party {
	t.Helper()
	b, err := Open(context.Background(), store, Config{
		Key: key, Policy: policy, Realm: Realm{Network: "test", Asset: "karma"},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return &party{Book: b, key: key, store: store}
}

func newKey(t testing.TB) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// connect joins two books and shakes hands both ways.
func connect(t testing.TB, a, b *party) *link {
	t.Helper()
	l := &link{
		up:    true,
		peers: map[peer.ID]*Book{a.Self(): a.Book, b.Self(): b.Book},
		queue: map[peer.ID]chan Message{a.Self(): make(chan Message, 256), b.Self(): make(chan Message, 256)},
	}
	a.Bind(end{l, a.Self()})
	b.Bind(end{l, b.Self()})
	ctx := context.Background()
	ha, err := a.Hello(ctx, b.Self())
	if err != nil {
		t.Fatal(err)
	}
	hb, err := b.Hello(ctx, a.Self())
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range []struct {
		to   *party
		from peer.ID
		h    *Handshake
	}{{b, a.Self(), ha}, {a, b.Self(), hb}} {
		if err := way.to.BeginSession(ctx, way.from, way.h, true); err != nil {
			t.Fatal(err)
		}
		in := l.queue[way.to.Self()]
		l.wg.Add(1)
		go func() { // ends when hangUp closes the queue
			defer l.wg.Done()
			for m := range in {
				_ = way.to.Receive(ctx, way.from, m)
			}
		}()
	}
	return l
}

func (l *link) hangUp() {
	l.mu.Lock()
	l.up = false
	for _, q := range l.queue {
		close(q)
	}
	l.mu.Unlock()
	l.wg.Wait()
	for p := range l.peers {
		for q, b := range l.peers {
			if q != p {
				b.EndSession(p)
			}
		}
	}
}

// serve moves n units of one request from server to client, as storenet does.
func serve(ctx context.Context, client, server *party, units uint64) error {
	take, err := client.Reserve(ctx, server.Self(), "store", Consume, amount(units))
	if err != nil {
		return err
	}
	give, err := server.Reserve(ctx, client.Self(), "store", Serve, amount(units))
	if err != nil {
		return errors.Join(err, take.Release())
	}
	return errors.Join(give.Commit(amount(units)), take.Commit(amount(units)))
}

func TestTabOfTwoBooks(t *testing.T) {
	a := newParty(t, newKey(t), durabletest.NewMem(), Policy{})
	b := newParty(t, newKey(t), durabletest.NewMem(), Policy{})
	l := connect(t, a, b)
	for range 50 {
		if err := serve(context.Background(), a, b, 20); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() bool { return a.Stats().ChequesAcked == 10 })
	ra, rb := row(t, a, b), row(t, b, a)
	if ra.Balance != -rb.Balance || ra.Consumed != 1000 || rb.Served != 1000 {
		t.Fatalf("client %+v\nserver %+v", ra, rb)
	}
	l.hangUp()
	for _, p := range []*party{a, b} {
		if err := errors.Join(p.Close(), p.store.Close()); err != nil {
			t.Fatal(err)
		}
	}
}
