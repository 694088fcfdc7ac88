package swapnet

import (
	"context"
	"runtime"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/swap"
)

// BenchmarkSend: statements one way, from 64 senders, until the other book has
// them. Every Send returns when the stream took its bytes, so what is written at
// once is what waited together.
func BenchmarkSend(b *testing.B) {
	for _, bench := range []struct {
		name    string
		senders int
	}{{"one sender", 1}, {"64 senders", 64}} {
		b.Run(bench.name, func(b *testing.B) {
			ha, hb := hosts(b)
			lim := Limits{FramesPerSecond: 1e9, FrameBurst: 1e9}
			from, to := newNode(b, ha, lim), newNode(b, hb, lim)
			connect(b, ha, hb)
			from.want(b, begun100)
			to.want(b, begun100)
			done := make(chan struct{})
			var got int // Receive is called for one message at a time
			to.fakeBook.mu.Lock()
			to.quiet = true
			to.onMsg = func(peer.ID, swap.Message) error {
				if got++; got == b.N {
					close(done)
				}
				return nil
			}
			to.fakeBook.mu.Unlock()
			b.ResetTimer()
			var wg sync.WaitGroup
			work := make(chan struct{}, 256)
			for range bench.senders {
				wg.Go(func() {
					m := &swap.Statement{Totals: swap.Totals{Served: 1000, Consumed: 2000}}
					for range work {
						if err := from.Send(context.Background(), hb.ID(), m); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			wg.Wait()
			next(b, done)
		})
	}
}

// BenchmarkSessionMemory prints what an idle session costs over a libp2p stream
// that a plain goroutine reads.
func BenchmarkSessionMemory(b *testing.B) {
	const peers = 48
	held := func(serve bool) float64 {
		hub := newHost(b)
		var n *node
		if serve {
			n = newNode(b, hub, Limits{})
		} else {
			hub.SetStreamHandler(ProtocolNative, func(st network.Stream) {
				m, err := encodeFrame(newFakeBook(b).hello)
				if err != nil {
					b.Error(err)
				}
				_, _ = st.Write(frameOf(m))
				buf := make([]byte, 100)
				for err == nil { // ends with the host
					_, err = st.Read(buf)
				}
			})
		}
		all := make([]host.Host, peers)
		for i := range all {
			all[i] = newHost(b)
			connect(b, all[i], hub)
		}
		before := inUse()
		for _, h := range all {
			openRaw(b, h, hub, ProtocolNative).shakeNative()
			if serve {
				n.want(b, begun77)
			}
		}
		return float64(inUse()-before) / peers
	}
	for b.Loop() {
		plain := held(false)
		served := held(true)
		b.ReportMetric((served-plain)/1024, "KiB/session")
		b.ReportMetric(plain/1024, "KiB/stream-pair")
	}
}

func inUse() uint64 {
	var m runtime.MemStats
	for range 4 { // a stack shrinks by half at a time
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

func BenchmarkDecodeCheque(b *testing.B) {
	frame, err := encodeFrame(signed(b).Cheque)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := decodeFrame(frame); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeCheque(b *testing.B) {
	m := signed(b).Cheque
	b.ReportAllocs()
	for b.Loop() {
		if _, err := encodeFrame(m); err != nil {
			b.Fatal(err)
		}
	}
}
