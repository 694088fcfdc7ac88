package swap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
)

func TestTabOfTwoBooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newNode(t, 0), newNode(t, 1)
		w := wireUp(t, a, b)
		mustServe(t, a, b, 20, 50)
		synctest.Wait()
		if got := a.Stats().ChequesAcked; got != 10 {
			t.Errorf("%d cheques acked", got)
		}
		agree(t, a, b)
		if r := a.row(b); r.Consumed != 1000 || r.Paid != 1000 || r.Services[0].Consumed != 1000 {
			t.Errorf("%+v", r)
		}
		a.check()
		b.check()
		w.hangUp()
		a.stop()
		b.stop()
		agree(t, a, b)
		time.Sleep(time.Minute) // bubble
		a.check()
		b.check()
	})
}

// benchBook opens a book with the accounts of many peers in memory, whose
// thresholds are so far away that no write is forced.
func benchBook(b *testing.B, store *durable.Store, peers int) (*Book, []peer.ID) {
	b.Helper()
	book, err := Open(b.Context(), store, Config{
		Key: testKey(1), Realm: Realm{Asset: "karma"}, Logger: quiet,
		Policy: Policy{PaymentThreshold: 1 << 30, MaxExposure: 1 << 50, MaxExposureTotal: 1 << 59, StrangersExposure: 1 << 59},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := errors.Join(book.Close(), store.Close()); err != nil {
			b.Error(err)
		}
	})
	ids := make([]peer.ID, peers)
	for i := range ids {
		ids[i] = benchPeer(i)
		if err := book.Debit(ids[i], "store", 1); err != nil {
			b.Fatal(err)
		}
	}
	// In an order that no cache foresees.
	rand.New(rand.NewPCG(1, 2)).Shuffle(peers, func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	runtime.GC() // what the set-up left is not the message path's
	return book, ids
}

// benchPeer is a peer id of the length of an Ed25519 one, cheaper than a key.
func benchPeer(i int) peer.ID {
	sum := blake2b.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
	return peer.ID(append([]byte{0, 36, 8, 1, 18, 32}, sum[:]...))
}

// BenchmarkBookDebit books one unit. step is the message path alone: the loops of
// the book are ended. durable has the write-behind of the same load beside it, on
// Pebble; each account is then written ten times a second, which is the dearest
// case there is.
func BenchmarkBookDebit(b *testing.B) {
	for _, peers := range []int{1, 100_000, 1_000_000} {
		for _, name := range []string{"step", "durable"} {
			b.Run(fmt.Sprintf("%s/%d", name, peers), func(b *testing.B) {
				var store *durable.Store
				if name == "durable" {
					var err error
					if store, err = durable.Open(filepath.Join(b.TempDir(), "store"), durable.WithLogger(quiet)); err != nil {
						b.Fatal(err)
					}
				} else {
					store = durabletest.NewMem()
				}
				book, ids := benchBook(b, store, peers)
				if name == "step" {
					book.cancel()
					book.wg.Wait()
				}
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if err := book.Debit(ids[i], "store", 1); err != nil {
						b.Fatal(err)
					}
					if i++; i == peers {
						i = 0
					}
				}
			})
		}
	}
}

func BenchmarkReserveCommit(b *testing.B) {
	for _, peers := range []int{1, 100_000} {
		for _, cancelable := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d/cancelable=%v", peers, cancelable), func(b *testing.B) {
				book, ids := benchBook(b, durabletest.NewMem(), peers)
				book.cancel() // the message path alone
				book.wg.Wait()
				ctx := context.Background()
				if cancelable {
					var cancel context.CancelFunc
					ctx, cancel = context.WithCancel(ctx)
					defer cancel()
				}
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					h, err := book.TryReserve(ctx, ids[i], "store", Serve, 1)
					if err != nil {
						b.Fatal(err)
					}
					if err := h.Commit(1); err != nil {
						b.Fatal(err)
					}
					if i++; i == peers {
						i = 0
					}
				}
			})
		}
	}
}

// BenchmarkRecover opens a book with a million records on Pebble, on disk.
func BenchmarkRecover(b *testing.B) {
	const peers = 1_000_000
	dir := filepath.Join(b.TempDir(), "store")
	cfg := Config{Key: testKey(1), Realm: Realm{Asset: "karma"}, Logger: quiet, Policy: Policy{PaymentThreshold: 1 << 20}}
	store, err := durable.Open(dir, durable.WithLogger(quiet))
	if err != nil {
		b.Fatal(err)
	}
	policy := cfg.Policy.Complete()
	k := newKeys("karma")
	var batch durable.Batch
	for i := range peers {
		l := NewLedger(&policy)
		l.raiseServed(tally.Amount(1 + i%100))
		key := k.of(shelfLedger, benchPeer(i))
		batch.Put(key, durable.Seal(nil, key, ledgerVersion, appendLedger(nil, &l, 1, stamp{run: 1, usedAt: time.Now().Unix()})))
		if batch.Len() == 10_000 {
			if err := store.Commit(b.Context(), &batch); err != nil {
				b.Fatal(err)
			}
			batch.Reset()
		}
	}
	if err := store.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		store, err := durable.Open(dir, durable.WithLogger(quiet))
		if err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		book, err := Open(b.Context(), store, cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(begin).Seconds(), "s/Open")
		if got := book.Stats().Exposure; got != 50_500_000 {
			b.Fatalf("exposure %d", got)
		}
		if err := errors.Join(book.Close(), store.Close()); err != nil {
			b.Fatal(err)
		}
	}
}
