package endpoint

import (
	"context"
	"math/bits"
	"sync"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/compat/stream1"
)

// Conn is one STREAM connection: the peer and we, with one secret.
type Conn struct {
	e       *Stream
	segment string // of our address
	keys    *envelope.Keys
	peer    ilp.Address   // empty: a client that has come to us
	sending chan struct{} // one Send at a time

	mu       sync.Mutex // guards the fields below
	used     time.Time
	seen     window
	received tally.Amount // booked, and being booked
	streams  map[uint64]*stream
	closed   bool
	sealed   uint64 // our last sequence
	told     bool   // the peer knows our address
	remote   remote
}

// stream is one stream's part of what we received.
type stream struct {
	received tally.Amount
	closed   bool
}

// remote is what the peer told of the stream on which we send.
type remote struct {
	max, received tally.Amount
	closed        bool
}

func newConn(e *Stream, segment string, keys *envelope.Keys) *Conn {
	return &Conn{
		e: e, segment: segment, keys: keys, used: time.Now(),
		sending: make(chan struct{}, 1),
		streams: make(map[uint64]*stream), remote: remote{max: tally.MaxAmount},
	}
}

// idle reports whether nothing has come for a minute to a connection that the
// peer opened.
func (c *Conn) idle(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peer == "" && now.Sub(c.used) >= connIdle
}

// take answers an authentic packet.
func (c *Conn) take(ctx context.Context, p *ilp.Prepare, q *stream1.Packet) ilp.Reply {
	fulfilment := c.keys.Fulfilment(p.Data)
	c.mu.Lock()
	c.used = time.Now()
	if !c.seen.see(q.Sequence) {
		c.mu.Unlock()
		return c.e.reject(ilp.CodeApplication) // seen: nothing of it counts again
	}
	frames, ok := c.control(q.Frames)
	var shares []share
	if ok && p.Amount >= q.Amount && fulfilment.Opens(p.Condition) {
		shares, ok = c.reserve(p.Amount, q.Frames)
	} else {
		ok = false
	}
	c.mu.Unlock()

	if ok && p.Amount > 0 {
		err := c.e.cfg.Receive(ctx, StreamMoney{
			ID: envelope.MarkOf(p.Data), Token: c.segment, Sequence: q.Sequence, Amount: p.Amount,
		})
		if err != nil {
			ok = false
			c.release(p.Amount, shares)
		}
	}

	answer := &stream1.Packet{Type: ilp.TypeReject, Sequence: q.Sequence, Amount: p.Amount}
	if ok {
		answer.Type = ilp.TypeFulfil
	}
	c.mu.Lock()
	answer.Frames = append(frames, c.limits()...)
	c.mu.Unlock()
	plain, err := answer.Append(nil)
	var data []byte
	if err == nil {
		data, err = seal(c.keys, plain)
	}
	if ok { // booked: fulfilled whatever became of the frames
		return &ilp.Fulfil{Fulfilment: fulfilment, Data: data}
	}
	if err != nil {
		return c.e.reject(ilp.CodeInternal)
	}
	return &ilp.Reject{Code: ilp.CodeApplication, TriggeredBy: c.e.cfg.Address, Data: data}
}

// control takes all frames but money, and returns what to answer and whether the
// packet may still be fulfilled.
func (c *Conn) control(frames []stream1.Frame) (out []stream1.Frame, ok bool) {
	ok = true
	for _, f := range frames {
		switch f := f.(type) {
		case stream1.NewAddress:
			out = append(out,
				stream1.MaxStreamID{ID: 2 * maxStreams},
				stream1.AssetDetails{Code: c.e.cfg.AssetCode, Scale: c.e.cfg.AssetScale})
		case stream1.ConnectionClose:
			c.closed, c.remote.closed = true, true
		case stream1.StreamClose:
			if s := c.streams[f.ID]; s != nil {
				s.closed = true
			}
			if f.ID == sendStream {
				c.remote.closed = true
			}
		case stream1.StreamMaxMoney:
			if f.ID == sendStream {
				c.remote.hear(f)
			}
		case stream1.StreamData:
			if len(f.Data) > 0 {
				ok = false
				out = append(out, stream1.StreamClose{ID: f.ID, Code: stream1.CodeApplication, Message: "data is not carried"})
			}
		}
	}
	return out, ok
}

// hear takes what the peer told. Totals rise only, so that packets which overtook
// each other do no harm; the first limit replaces the one that we assumed.
func (r *remote) hear(f stream1.StreamMaxMoney) {
	r.received = max(r.received, f.Received)
	if r.max == tally.MaxAmount {
		r.max = f.ReceiveMax
	} else {
		r.max = max(r.max, f.ReceiveMax)
	}
}

// share is one stream's part of a packet.
type share struct {
	stream *stream
	amount tally.Amount
}

// reserve divides a packet's amount among its streams and counts it as received,
// or changes nothing where any of it would be too much. What division leaves goes
// to the last stream, so that every unit has an owner.
func (c *Conn) reserve(amount tally.Amount, frames []stream1.Frame) ([]share, bool) {
	if amount == 0 {
		return nil, true
	}
	var total uint64
	var money []stream1.StreamMoney
	for _, f := range frames {
		if m, ok := f.(stream1.StreamMoney); ok {
			sum, carry := bits.Add64(total, m.Shares, 0)
			if carry != 0 || m.ID == 0 || m.ID > 2*maxStreams {
				return nil, false
			}
			total, money = sum, append(money, m)
		}
	}
	sum, err := c.received.Add(amount)
	if c.closed || total == 0 || err != nil || sum > c.e.cfg.ReceiveMax {
		return nil, false
	}
	for _, m := range money {
		if s := c.streams[m.ID]; s != nil && s.closed {
			return nil, false
		}
	}
	shares, left := make([]share, 0, len(money)), amount
	for i, m := range money {
		part := left
		if i < len(money)-1 {
			part = muldiv(amount, m.Shares, total)
		}
		left -= part
		s := c.streams[m.ID]
		if s == nil {
			s = new(stream)
			c.streams[m.ID] = s
		}
		s.received += part // ≤ sum, which fits
		shares = append(shares, share{s, part})
	}
	c.received = sum
	return shares, true
}

// release takes back what reserve counted.
func (c *Conn) release(amount tally.Amount, shares []share) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.received -= amount
	for _, s := range shares {
		s.stream.received -= s.amount
	}
}

// limits tells how much each stream may receive in all, and has.
func (c *Conn) limits() []stream1.Frame {
	if c.closed {
		return nil
	}
	room := c.e.cfg.ReceiveMax - c.received
	if c.e.cfg.Room != nil {
		room = min(room, c.e.cfg.Room(c.segment))
	}
	out := make([]stream1.Frame, 0, len(c.streams))
	for id, s := range c.streams {
		if !s.closed {
			out = append(out, stream1.StreamMaxMoney{ID: id, ReceiveMax: s.received + room, Received: s.received})
		}
	}
	return out
}

// sendStream is the stream on which we send: the first that a client opens.
const sendStream = 1

// muldiv returns a·b/c, rounded down, for b ≤ c and c > 0.
func muldiv(a tally.Amount, b, c uint64) tally.Amount {
	hi, lo := bits.Mul64(uint64(a), b)
	q, _ := bits.Div64(hi, lo, c) // b ≤ c: the quotient fits
	return tally.Amount(q)
}
