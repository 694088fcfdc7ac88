package swap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/tallystick/tally"
)

// This is the one file of a core that sees libp2p hosts and streams (ADR 0006):
// a service that knows nothing of tabs is metered from outside.

// DefaultMaxFrame bounds a metered frame where the rule does not. A service
// whose frames are larger sets its own; a longer frame resets the stream.
const DefaultMaxFrame = 1 << 20

// ErrFrame: a metered stream carried something else than uvarint-delimited
// frames within the bound.
var ErrFrame = errors.New("swap: metered stream has no frame within the bound")

// Frame is one uvarint-delimited message of a metered stream, without its
// length. Data is valid during the call of Price only.
type Frame struct {
	// FromServer: sent by the side that handles the protocol, to the one that
	// opened the stream.
	FromServer bool
	Data       []byte
}

// Rule meters one protocol of a host.
type Rule struct {
	// Protocol to meter. Required.
	Protocol protocol.ID
	// Service is the name in the books. Default: the protocol id.
	Service string
	// Price returns the units that a frame costs the side that opened the
	// stream, in units; 0 for frames that are free. Both sides have to agree on
	// it. It is called from many goroutines. Required.
	Price func(Frame) tally.Amount
	// MaxFrame in bytes. Default DefaultMaxFrame.
	MaxFrame int
}

// WrapHost returns h with the protocols of rules metered on the tabs of book: the
// side that handles a stream debits, the side that opened it credits. The
// service itself needs no change and does not notice, but for this: a stream is
// refused where the tab has no headroom, and NewStream waits, while ctx allows,
// for a settlement.
//
// A frame is priced when it is complete, so that one message can pass the
// threshold (a service that reserves before it works has no such overshoot); a
// frame of the server is booked before it leaves.
//
// It panics on a rule without protocol or price, which is a bug of the caller.
func WrapHost(h host.Host, book *Book, rules ...Rule) host.Host {
	w := &meteredHost{Host: h, book: book, rules: make(map[protocol.ID]*Rule, len(rules))}
	for _, r := range rules {
		if r.Protocol == "" || r.Price == nil {
			panic("swap: a rule of WrapHost needs a protocol and a price")
		}
		if r.Service == "" {
			r.Service = string(r.Protocol)
		}
		if r.MaxFrame <= 0 {
			r.MaxFrame = DefaultMaxFrame
		}
		w.rules[r.Protocol] = &r
	}
	return w
}

type meteredHost struct {
	host.Host
	book  *Book
	rules map[protocol.ID]*Rule
}

// Unwrap returns the host below, whose streams are not metered.
func (w *meteredHost) Unwrap() host.Host { return w.Host }

// SetStreamHandler meters the handler where a rule names its protocol.
func (w *meteredHost) SetStreamHandler(id protocol.ID, handler network.StreamHandler) {
	w.Host.SetStreamHandler(id, w.meter(handler))
}

// SetStreamHandlerMatch meters the streams whose protocol a rule names.
func (w *meteredHost) SetStreamHandlerMatch(id protocol.ID, match func(protocol.ID) bool, handler network.StreamHandler) {
	w.Host.SetStreamHandlerMatch(id, match, w.meter(handler))
}

// NewStream opens a stream and meters it where a rule names its protocol.
func (w *meteredHost) NewStream(ctx context.Context, p peer.ID, ids ...protocol.ID) (network.Stream, error) {
	for _, id := range ids {
		rule := w.rules[id]
		if rule == nil {
			continue
		}
		// One unit has to fit before a request leaves; what the answer costs is
		// known only when it is here.
		hold, err := w.book.Reserve(ctx, p, rule.Service, Consume, 1)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", id, err)
		}
		if err := hold.Release(); err != nil {
			return nil, err
		}
		break
	}
	s, err := w.Host.NewStream(ctx, p, ids...)
	if err != nil {
		return nil, err
	}
	rule := w.rules[s.Protocol()]
	if rule == nil {
		return s, nil
	}
	return newMeteredStream(s, w.book, rule, Consume), nil
}

func (w *meteredHost) meter(handler network.StreamHandler) network.StreamHandler {
	return func(s network.Stream) {
		rule := w.rules[s.Protocol()]
		if rule == nil {
			handler(s)
			return
		}
		m := newMeteredStream(s, w.book, rule, Serve)
		if err := m.admit(); err != nil {
			w.book.log.Debug("metered stream refused", "peer", m.peer, "protocol", s.Protocol(), "err", err)
			_ = s.Reset()
			return
		}
		handler(m)
	}
}

// meteredStream counts the frames that pass. Reading and writing are each done
// by one goroutine at a time, as on any stream.
type meteredStream struct {
	network.Stream
	book    *Book
	rule    *Rule
	peer    peer.ID
	dir     Direction
	in, out frameMeter

	// mu guards failed, which reader and writer share.
	mu     sync.Mutex
	failed error
}

func newMeteredStream(s network.Stream, b *Book, rule *Rule, dir Direction) *meteredStream {
	return &meteredStream{Stream: s, book: b, rule: rule, dir: dir, peer: s.Conn().RemotePeer()}
}

// admit refuses a stream at zero headroom, and lets the ledger know that it did.
func (m *meteredStream) admit() error {
	hold, err := m.book.TryReserve(context.Background(), m.peer, m.rule.Service, Serve, 1)
	if err != nil {
		return err
	}
	return hold.Release()
}

// Read meters what arrived.
func (m *meteredStream) Read(p []byte) (int, error) {
	n, err := m.Stream.Read(p)
	if failed := m.count(&m.in, m.dir == Consume, p[:n]); failed != nil {
		return 0, failed
	}
	return n, err
}

// Write meters before anything leaves, so that what a peer got is booked.
func (m *meteredStream) Write(p []byte) (int, error) {
	if failed := m.count(&m.out, m.dir == Serve, p); failed != nil {
		return 0, failed
	}
	return m.Stream.Write(p)
}

// count books the frames that became complete. A tab without headroom lets the
// present frame pass, and stops the stream at the next one.
func (m *meteredStream) count(f *frameMeter, fromServer bool, p []byte) error {
	m.mu.Lock()
	failed := m.failed
	m.mu.Unlock()
	if failed != nil && len(p) > 0 {
		return failed
	}
	err := f.feed(p, m.rule.MaxFrame, func(frame []byte) error {
		units := m.rule.Price(Frame{FromServer: fromServer, Data: frame})
		if units == 0 {
			return nil
		}
		if m.dir == Serve {
			return m.book.Debit(m.peer, m.rule.Service, units)
		}
		return m.book.Credit(m.peer, m.rule.Service, units)
	})
	if err == nil {
		return nil
	}
	m.mu.Lock()
	m.failed = err
	m.mu.Unlock()
	if errors.Is(err, ErrOverThreshold) {
		return nil
	}
	_ = m.Reset()
	return err
}

// frameMeter finds uvarint-delimited frames in a stream of bytes. It keeps at
// most one frame, and refuses a length over the bound before it keeps a byte.
type frameMeter struct {
	head  [binary.MaxVarintLen64]byte
	nHead int
	want  int // bytes of the frame still to come
	body  []byte
	open  bool // within a frame
}

// feed takes the next bytes and calls emit for each frame that is complete. All
// bytes are taken even where emit fails; the first error is returned.
func (f *frameMeter) feed(p []byte, maxFrame int, emit func([]byte) error) error {
	var first error
	for len(p) > 0 || f.open && f.want == 0 {
		if !f.open {
			f.head[f.nHead] = p[0]
			f.nHead++
			p = p[1:]
			last := f.head[f.nHead-1] < 0x80
			if !last && f.nHead < len(f.head) {
				continue
			}
			size, n := binary.Uvarint(f.head[:f.nHead])
			if n <= 0 || size > uint64(maxFrame) {
				f.nHead = 0
				return fmt.Errorf("%w of %d bytes", ErrFrame, maxFrame)
			}
			f.nHead, f.want, f.open, f.body = 0, int(size), true, f.body[:0]
		}
		take := min(f.want, len(p))
		f.want -= take
		frame := p[:take]
		if f.want > 0 || len(f.body) > 0 { // in pieces
			f.body = append(f.body, frame...)
			frame = f.body
		}
		p = p[take:]
		if f.want > 0 {
			continue
		}
		f.open = false
		if err := emit(frame); err != nil && first == nil {
			first = err
		}
	}
	return first
}
