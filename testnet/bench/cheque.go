package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/swap"
)

// What one cheque costs at least, both sides together: the issuer saves and
// signs, the receiver verifies, signs its ack and saves, the issuer verifies and
// saves.
const (
	chequeSigns    = 2
	chequeVerifies = 2
	chequeSaves    = 3
	// chequeText is about the length of what is signed.
	chequeText = 200
)

// benchCheque measures settlements from the debt to the saved ack.
func benchCheque(ctx context.Context, o *Options) ([]Figure, error) {
	var all []Figure
	for _, part := range [...]func(context.Context, *Options) ([]Figure, error){
		chequeSerial, chequeCrowd, chequeHardSerial, chequeHardCrowd,
	} {
		figures, err := part(ctx, o)
		if err != nil {
			return nil, err
		}
		all = append(all, figures...)
	}
	return all, nil
}

// payOnce books a debt of one unit, pays it, and returns with the ack.
func payOnce(ctx context.Context, payer, payee *party) error {
	if err := payer.book.Credit(payee.id(), service, 1); err != nil {
		return err
	}
	_, err := payer.book.SettleAndWait(ctx, payee.id())
	return err
}

func chequeSerial(ctx context.Context, o *Options) (_ []Figure, err error) {
	o.say("cheque: one after the other")
	dir, remove, err := o.folder()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	a, b, err := newPair(ctx, dir, uncapped(swap.Policy{}))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.close(), b.close()) }()
	var lats []time.Duration
	pay := chequeByCheque(&lats, func(ctx context.Context) error { return payOnce(ctx, a, b) })
	m, err := rounds(ctx, o, pay, parts(o).serial)
	if err != nil {
		return nil, err
	}
	f := rate("cheque/serial", "cheques/s", m[0], m[1], "2 signatures, 2 checks and 3 fdatasync in a row", 1500).
		with("p50_goal_ms", 0.7).note("debt, issue, save, send, verify, save, ack, verify, save; the network is not in the limit").withCPU(m[0], series{})
	f.P50, f.P99 = percentiles(lats)
	f.GoalMet = f.GoalMet && f.P50 <= 0.7
	return []Figure{f}, nil
}

func chequeCrowd(ctx context.Context, o *Options) (_ []Figure, err error) {
	n := scale(o, 256, 8)
	o.say("cheque: %d peers at once", n)
	dir, remove, err := o.folder()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	hubStore, err := openDisk(dir + "/hub")
	if err != nil {
		return nil, err
	}
	hub, err := newParty(ctx, partyConfig{transport: overTCP, policy: uncapped(swap.Policy{}), store: hubStore})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, hub.close()) }()
	if err := hub.swap.Start(); err != nil {
		return nil, err
	}
	// One disk below all clients: their saves are synced and share syncs, as
	// those of one node do, instead of fighting for the disk with 256 journals.
	shared, err := openDisk(dir + "/clients")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, shared.Close()) }()
	clients, err := crowd(ctx, n, partyConfig{transport: overTCP, policy: uncapped(swap.Policy{})}, func(i int) *durable.Store {
		return durable.New(&shelf{store: shared, prefix: fmt.Sprintf("/c%d", i)})
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, disperse(clients)) }()
	if err := each(n, 8, func(i int) error {
		return errors.Join(clients[i].swap.Start(), clients[i].meet(ctx, hub))
	}); err != nil {
		return nil, err
	}
	var lats []time.Duration
	pay := manyPayers(n, &lats, func(ctx context.Context, i int) error { return payOnce(ctx, clients[i], hub) })
	m, err := rounds(ctx, o, pay, parts(o).crowded)
	if err != nil {
		return nil, err
	}
	f := rate("cheque/in-flight", "cheques/s", m[0], m[1],
		"the lesser of all cores on 2 signatures and 2 checks, and Pebble's synced records by 256 writers over 3", 5000).
		with("in_flight", n).with("peers", n).
		note("both ends of all %d pairs share the machine and its disk", n).withCPU(m[0], series{})
	f.P50, f.P99 = percentiles(lats)
	return []Figure{f}, nil
}

// chequeByCheque pays one cheque after the other, and adds how long each took to lats.
func chequeByCheque(lats *[]time.Duration, pay func(context.Context) error) probe {
	return func(ctx context.Context, d time.Duration) (float64, error) {
		begin := time.Now()
		at, n := begin, 0
		for ; at.Sub(begin) < d; n++ {
			if err := pay(ctx); err != nil {
				return 0, fmt.Errorf("cheque %d: %w", n, err)
			}
			now := time.Now()
			*lats = append(*lats, now.Sub(at))
			at = now
		}
		return float64(n) / at.Sub(begin).Seconds(), nil
	}
}

// manyPayers has n payers pay at the same time, each one cheque after the other.
func manyPayers(n int, lats *[]time.Duration, pay func(ctx context.Context, i int) error) probe {
	return func(ctx context.Context, d time.Duration) (float64, error) {
		var (
			total atomic.Int64
			mu    sync.Mutex // guards lats
		)
		begin := time.Now()
		err := each(n, n, func(i int) error {
			var own []time.Duration
			for at := begin; at.Sub(begin) < d; {
				if err := pay(ctx, i); err != nil {
					return err
				}
				now := time.Now()
				own = append(own, now.Sub(at))
				at = now
			}
			total.Add(int64(len(own)))
			mu.Lock()
			*lats = slices.Concat(*lats, own)
			mu.Unlock()
			return nil
		})
		return float64(total.Load()) / time.Since(begin).Seconds(), err
	}
}

// chequeParts measures what a cheque is made of.
type chequeParts struct{ o *Options }

func parts(o *Options) chequeParts { return chequeParts{o} }

// crypto returns the seconds that the signatures and checks of one cheque take on
// one core.
func (c chequeParts) crypto(d time.Duration, goroutines int) (float64, error) {
	key, pub, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		return 0, err
	}
	text := make([]byte, chequeText)
	var total atomic.Int64
	begin := time.Now()
	err = each(goroutines, goroutines, func(int) error {
		for time.Since(begin) < d {
			var (
				sig []byte
				err error
			)
			for range chequeSigns {
				if sig, err = key.Sign(text); err != nil {
					return err
				}
			}
			for range chequeVerifies {
				if ok, err := pub.Verify(text, sig); err != nil || !ok {
					return errors.Join(errors.New("own signature does not hold"), err)
				}
			}
			total.Add(1)
		}
		return nil
	})
	return time.Since(begin).Seconds() / float64(total.Load()), err
}

// serial is the rate of cheques that are nothing but crypto and syncs.
func (c chequeParts) serial(ctx context.Context, d time.Duration) (float64, error) {
	seconds, err := c.crypto(d/4, 1)
	if err != nil {
		return 0, err
	}
	fig, err := durable.BenchJournal(ctx, c.o.Dir, 1, d/4)
	if err != nil {
		return 0, err
	}
	return 1 / (seconds + chequeSaves/fig.Fdatasync), nil
}

// crowded is the bound of many cheques at once.
func (c chequeParts) crowded(ctx context.Context, d time.Duration) (float64, error) {
	seconds, err := c.crypto(d/4, runtime.GOMAXPROCS(0))
	if err != nil {
		return 0, err
	}
	fig, err := durable.BenchJournal(ctx, c.o.Dir, scale(c.o, 256, 8), d/4)
	if err != nil {
		return 0, err
	}
	return min(1/seconds, fig.Pebble/chequeSaves), nil
}

// shelf is a datastore of its own in a part of another store: its commits are
// synced, and share syncs with those of the other shelves.
type shelf struct {
	store  *durable.Store
	prefix string
}

var (
	_ datastore.Batching = (*shelf)(nil)
	_ durable.Scanner    = (*shelf)(nil)
)

func (s *shelf) key(k datastore.Key) string { return s.prefix + k.String() }

// Get implements datastore.Read.
func (s *shelf) Get(ctx context.Context, k datastore.Key) ([]byte, error) {
	v, err := s.store.Get(ctx, s.key(k))
	if errors.Is(err, durable.ErrNotFound) {
		return nil, datastore.ErrNotFound
	}
	return v, err
}

// Has implements datastore.Read.
func (s *shelf) Has(ctx context.Context, k datastore.Key) (bool, error) {
	_, err := s.Get(ctx, k)
	if errors.Is(err, datastore.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// GetSize implements datastore.Read.
func (s *shelf) GetSize(ctx context.Context, k datastore.Key) (int, error) {
	v, err := s.Get(ctx, k)
	if err != nil {
		return -1, err
	}
	return len(v), nil
}

// Put implements datastore.Write.
func (s *shelf) Put(ctx context.Context, k datastore.Key, v []byte) error {
	var b durable.Batch
	b.Put(s.key(k), v)
	return s.store.Commit(ctx, &b)
}

// Delete implements datastore.Write.
func (s *shelf) Delete(ctx context.Context, k datastore.Key) error {
	var b durable.Batch
	b.Delete(s.key(k))
	return s.store.Commit(ctx, &b)
}

// Sync has nothing to do: every commit is synced.
func (s *shelf) Sync(context.Context, datastore.Key) error { return nil }

// Close leaves the store to its owner.
func (s *shelf) Close() error { return nil }

// Query is not needed: the store asks Scan.
func (s *shelf) Query(context.Context, query.Query) (query.Results, error) {
	return nil, errors.ErrUnsupported
}

// Scan implements durable.Scanner.
func (s *shelf) Scan(ctx context.Context, r durable.Range, fn func(key string, value []byte) error) error {
	if r.Reverse || r.Before != "" {
		return errors.ErrUnsupported
	}
	after := r.After
	if after != "" {
		after = s.prefix + after
	}
	return s.store.Scan(ctx, s.prefix+r.Prefix, after, func(key string, value []byte) error {
		return fn(key[len(s.prefix):], value)
	})
}

// Batch implements datastore.Batching.
func (s *shelf) Batch(context.Context) (datastore.Batch, error) { return &shelfBatch{shelf: s}, nil }

type shelfBatch struct {
	shelf *shelf
	ops   durable.Batch
}

// Put implements datastore.Batch.
func (b *shelfBatch) Put(_ context.Context, k datastore.Key, v []byte) error {
	b.ops.Put(b.shelf.key(k), v)
	return nil
}

// Delete implements datastore.Batch.
func (b *shelfBatch) Delete(_ context.Context, k datastore.Key) error {
	b.ops.Delete(b.shelf.key(k))
	return nil
}

// Commit implements datastore.Batch.
func (b *shelfBatch) Commit(ctx context.Context) error { return b.shelf.store.Commit(ctx, &b.ops) }
