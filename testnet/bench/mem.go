package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/swap"
)

// benchMem measures what accounts and sessions hold.
func benchMem(ctx context.Context, o *Options) ([]Figure, error) {
	accounts, err := memAccounts(ctx, o)
	if err != nil {
		return nil, err
	}
	peers, err := memPeers(ctx, o)
	return append(accounts, peers...), err
}

// memRecord stands for the hot record in the limit.
type memRecord struct {
	_ [unsafe.Sizeof(swap.Ledger{})]byte
}

func memAccounts(ctx context.Context, o *Options) (_ []Figure, err error) {
	n := scale(o, 1_000_000, 10_000)
	o.say("mem: %d idle accounts", n)
	bare := memOf(func() any {
		m := make(map[peer.ID]*memRecord)
		for _, p := range newPeers(n, 1) {
			m[p] = &memRecord{}
		}
		return m
	}) / float64(n)

	store := noDisk()
	var book *swap.Book
	heap := memOf(func() any {
		if book, err = loadedBook(ctx, store, newPeers(n, 1)); err == nil {
			err = book.Close() // saves what is dirty, and leaves the accounts where they are
		}
		return book
	}) / float64(n)
	if err = errors.Join(err, store.Close()); err != nil {
		return nil, err
	}
	hot := float64(unsafe.Sizeof(swap.Ledger{}))
	const limit = "a map from peer id to a record of the size of the ledger, keys included"
	return []Figure{
		cost("mem/record", "B", once(hot), once(hot), "itself: the fields of the ledger", 256).note("size of the pure ledger of one peer"),
		cost("mem/account", "B", once(heap), once(bare), limit, 256).note("heap of an idle account with peer id, map and key").with("accounts", n),
	}, nil
}

// memOf is the heap that what build returns holds.
func memOf(build func() any) float64 {
	before, _ := heapNow()
	v := build()
	after, _ := heapNow()
	runtime.KeepAlive(v)
	return float64(after) - float64(before)
}

// memPeers measures connections without and then with swap sessions on the same
// hosts. Both ends are in this process, so what is added is halved.
func memPeers(ctx context.Context, o *Options) (_ []Figure, err error) {
	n := scale(o, 256, 4)
	o.say("mem: %d connected peers", n)
	hub, err := newParty(ctx, partyConfig{transport: overTCP, policy: wide(), store: noDisk()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, hub.close()) }()
	clients, err := crowd(ctx, n, partyConfig{transport: overTCP, policy: wide()}, func(int) *durable.Store { return noDisk() })
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, disperse(clients)) }()
	for _, c := range clients {
		if err := c.swap.Start(); err != nil {
			return nil, err
		}
	}
	heap0, stacks0, err := settledHeap(ctx)
	if err != nil {
		return nil, err
	}
	if err := each(n, 8, func(i int) error { return clients[i].dial(ctx, hub) }); err != nil {
		return nil, err
	}
	closeIdle, err := idleStreams(ctx, clients, hub)
	if err != nil {
		return nil, err
	}
	heapIdle, stacksIdle, err := settledHeap(ctx)
	closeIdle()
	if err != nil {
		return nil, err
	}
	heap1, stacks1, err := settledHeap(ctx)
	if err != nil {
		return nil, err
	}
	if err := hub.swap.Start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, sessionWithin)
	defer cancel()
	for _, c := range clients {
		if err := errors.Join(c.book.WaitSession(ctx, hub.id()), hub.book.WaitSession(ctx, c.id())); err != nil {
			return nil, fmt.Errorf("session: %w", err)
		}
	}
	heap2, stacks2, err := settledHeap(ctx)
	if err != nil {
		return nil, err
	}
	ends := float64(2 * n)
	conn := (float64(heap1+stacks1) - float64(heap0+stacks0)) / ends
	idle := (float64(heapIdle+stacksIdle) - float64(heap1+stacks1)) / ends
	added := (float64(heap2+stacks2) - float64(heap1+stacks1)) / ends
	return []Figure{
		cost("mem/peer", "B", once(added), once(idle), "a stream of libp2p with a goroutine that waits for its first byte", 8<<10).
			note("heap and stacks of an idle session, its stream included, over the connection; half of what both ends hold").
			with("peers", n).with("heap", (float64(heap2)-float64(heap1))/ends).with("stacks", (float64(stacks2)-float64(stacks1))/ends).
			with("connection", conn),
	}, nil
}

// idleStreams opens a stream from each client to hub, with a reader that waits
// at both ends.
func idleStreams(ctx context.Context, clients []*party, hub *party) (closeAll func(), err error) {
	wait := func(s network.Stream) { // ends when the stream is reset
		var b [1]byte
		for {
			if _, err := s.Read(b[:]); err != nil {
				return
			}
		}
	}
	hub.host.SetStreamHandler(protocolRaw, wait)
	var list []network.Stream
	var wg sync.WaitGroup
	closeAll = func() {
		for _, s := range list {
			_ = s.Reset()
		}
		wg.Wait()
	}
	for _, c := range clients {
		s, err := c.host.NewStream(ctx, hub.id(), protocolRaw)
		if err == nil {
			list = append(list, s)
			_, err = s.Write([]byte{bodyMore}) // the stream is there once something came
		}
		if err != nil {
			closeAll()
			return nil, err
		}
		wg.Go(func() { wait(s) })
	}
	return closeAll, nil
}

// settledHeap waits until identify, handshakes and the write-behind are over: until two
// looks find the same, or it has looked often enough.
func settledHeap(ctx context.Context) (heap, stacks uint64, err error) {
	const (
		between = 350 * time.Millisecond
		looks   = 20
		same    = 8 << 10 // bytes
	)
	for range looks {
		select {
		case <-time.After(between):
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
		before := heap + stacks
		heap, stacks = heapNow()
		if now := heap + stacks; max(now, before)-min(now, before) <= same {
			break
		}
	}
	return heap, stacks, nil
}
