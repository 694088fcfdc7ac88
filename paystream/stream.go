package paystream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/tallystick/tally"
)

// ErrNoData: the peer takes no data on this socket, or not yet.
var ErrNoData = errors.New("paystream: the peer takes no data on this socket until its application accepts a stream")

// Stream is one stream of an application's bytes over a socket: both ways, in order,
// and beside the money. It lives as long as both ends run: with ErrStreamReset what
// the peer had not acked may not have arrived. Its methods may be called from any
// goroutine; one at a time should read and one write.
type Stream struct {
	c *Conn
	s *stream
}

var _ io.ReadWriteCloser = (*Stream)(nil)

// OpenStream begins a stream. It waits until the peer takes data, which it does once
// its application has called OpenStream or AcceptStream, and until fewer than 64
// streams of ours are open. The peer learns of the stream with its first bytes.
func (c *Conn) OpenStream(ctx context.Context) (*Stream, error) {
	var st *stream
	err := c.waitStream(ctx, func() bool {
		if c.streams.Takes() {
			st = c.streams.Open()
		}
		return st != nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: %w", ErrNoData, err)
	}
	if err != nil {
		return nil, err
	}
	return &Stream{c, st}, nil
}

// AcceptStream returns the next stream that the peer has opened.
func (c *Conn) AcceptStream(ctx context.Context) (*Stream, error) {
	var st *stream
	err := c.waitStream(ctx, func() bool {
		st = c.streams.Accept()
		return st != nil
	})
	if err != nil {
		return nil, err
	}
	return &Stream{c, st}, nil
}

// waitStream tells the peer that we take data, and waits for cond, which is called
// with mu held until it is true. Unlike money, data does not stop because no packet
// got through: ctx ends the wait.
func (c *Conn) waitStream(ctx context.Context, cond func() bool) error {
	c.mu.Lock()
	c.streams.Take()
	c.mu.Unlock()
	c.kick()
	for {
		c.mu.Lock()
		ok, err := cond(), c.closed
		changed := c.watch()
		c.mu.Unlock()
		switch {
		case ok:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// DataReport returns what the socket's streams have moved.
func (c *Conn) DataReport() DataReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams.Report()
}

// Stream returns a stream that is not over by its id.
func (c *Conn) Stream(id uint64) (*Stream, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.streams.all[id]
	return &Stream{c, st}, st != nil
}

// ID returns the stream's number, which both ends know it by. Those of the client
// are odd.
func (s *Stream) ID() uint64 { return s.s.id }

// Err returns why the stream ended before its time, or nil.
func (s *Stream) Err() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.s.err
}

// each calls fn with mu held until it is done, ctx ends, or the socket is closed.
func (s *Stream) each(ctx context.Context, fn func() (done bool, err error)) error {
	c := s.c
	for {
		c.mu.Lock()
		done, err := fn()
		if err == nil && !done {
			err = c.closed
		}
		var wait chan struct{}
		if !done && err == nil {
			if s.s.wait == nil {
				s.s.wait = make(chan struct{})
			}
			wait = s.s.wait
		}
		due := c.closed == nil && c.streams.Due(c.e.now())
		c.mu.Unlock()
		if due {
			c.kick()
		}
		if done || err != nil {
			return err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Read implements io.Reader. After the peer has closed the stream, and all of it was
// read, it returns io.EOF.
func (s *Stream) Read(p []byte) (int, error) { return s.ReadContext(context.Background(), p) }

// ReadContext is Read that ends with ctx.
func (s *Stream) ReadContext(ctx context.Context, p []byte) (n int, err error) {
	err = s.each(ctx, func() (bool, error) {
		var eof bool
		var err error
		n, eof, err = s.c.streams.Read(s.s, p)
		if err == nil && n == 0 && eof {
			err = io.EOF
		}
		return n > 0 || len(p) == 0, err
	})
	return n, err
}

// Write implements io.Writer. It returns when all of p is taken, which is before it
// has arrived: Flush waits for that.
func (s *Stream) Write(p []byte) (int, error) { return s.WriteContext(context.Background(), p) }

// WriteContext is Write that ends with ctx.
func (s *Stream) WriteContext(ctx context.Context, p []byte) (n int, err error) {
	err = s.each(ctx, func() (bool, error) {
		k, err := s.c.streams.Write(s.s, p[n:])
		n += k
		return n == len(p), err
	})
	return n, err
}

// CloseWrite says that no more is written: the peer reads io.EOF after what was.
func (s *Stream) CloseWrite() {
	s.c.mu.Lock()
	s.c.streams.CloseWrite(s.s)
	s.c.mu.Unlock()
	s.c.kick()
}

// Flush waits until the peer has all that was written, and after CloseWrite that it
// is the end. It does not say that its application has read it.
func (s *Stream) Flush(ctx context.Context) error {
	return s.each(ctx, func() (bool, error) {
		done := s.c.streams.Flushed(s.s)
		if done {
			return true, nil
		}
		return false, s.s.err
	})
}

// Close ends both halves. What was written still arrives, if the socket lives long
// enough; what the peer sends from now on is thrown away, and it is told so.
func (s *Stream) Close() error {
	s.c.mu.Lock()
	s.c.streams.CloseWrite(s.s)
	s.c.streams.CloseRead(s.s)
	s.s.wake()
	s.c.mu.Unlock()
	s.c.kick()
	return nil
}

// SetShares marks a part of the money that we send from now on as this stream's: n of
// the shares of all streams, of which 8 at the most are marked in one packet. It
// moves no money, which the limits of the socket do.
func (s *Stream) SetShares(n uint32) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.s.shares = uint64(n)
}

// Money returns what of the socket's money was marked as this stream's, in our
// units.
func (s *Stream) Money() (sent, received tally.Amount) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.s.sent, s.s.received
}

// memory gives an endpoint's streams their memory.
func (e *Endpoint) memory(n int) bool {
	if e.data.Add(int64(n)) > endpointData && n > 0 {
		e.data.Add(int64(-n))
		return false
	}
	return true
}

// keepAlive is how long a socket with streams is quiet before it says that it is
// still there.
const keepAlive = IdleTime / 3

// heardStreams takes what a packet of the peer says of streams. Called with mu held.
func (c *Conn) heardStreams(p *Packet, request bool) (again bool) {
	again = c.streams.Hear(p, request)
	c.streamNews()
	return again
}

func (c *Conn) streamNews() {
	if c.streams.News() {
		c.notify()
	}
}

// landed books what a packet of ours carried of streams. Called with mu held.
func (c *Conn) landedStreams(o *flight, now time.Duration, p *Packet, known bool) {
	if o.load == nil {
		return
	}
	c.streams.Landed(o.load, now, known && !p.Again, c.e.entropy.uint32())
	c.streamNews()
}

// resetStreams ends all streams with their session.
func (c *Conn) resetStreams() {
	c.streams.Reset(ErrStreamReset)
	c.notify()
}

// dataDue sends packets for streams alone. Called with mu held.
func (c *Conn) dataDue(list []*Outgoing, now time.Duration) []*Outgoing {
	c.streams.Late(now, c.e.entropy.uint32())
	for c.streams.Due(now) {
		before := len(list)
		c.pkt.Reset()
		if list = c.seal(list, now, outNews, 0, PacketID(c.e.entropy.id())); len(list) == before {
			break // the session is worn out
		}
	}
	return list
}
