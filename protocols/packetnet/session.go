package packetnet

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/internal/arena"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/protocols/internal/wire"
)

// session is one stream. The goroutine that runs it reads; a second one writes.
type session struct {
	svc     *Service
	st      network.Stream
	peer    peer.ID
	inbound bool

	r      *wire.Reader
	dec    decoder
	window int
	info   Info
	free   chan *batch // batches that are not with the engine

	why    atomic.Int32 // 0, or 1 + the Status of the first stop
	stopCh chan struct{}
	gone   chan struct{} // closed when the session is over for the engine

	out outbox
}

// outbox is what waits to be written.
type outbox struct {
	mu     sync.Mutex
	buf    []byte
	closed bool
	wake   chan struct{} // capacity 1
	dirty  bool          // of the engine's goroutine: in Service.flush
}

// batch is a forward.Batch with the memory of its messages.
type batch struct {
	forward.Batch
	msgs  []forward.Msg
	arena arena.Arena
	sess  *session
}

func newSession(svc *Service, st network.Stream, inbound bool) *session {
	s := &session{
		svc: svc, st: st, peer: st.Conn().RemotePeer(), inbound: inbound,
		stopCh: make(chan struct{}), gone: make(chan struct{}),
		free: make(chan *batch, svc.lim.Batches),
	}
	s.out.wake = make(chan struct{}, 1)
	return s
}

// stop ends the stream from outside. The first status counts.
func (s *session) stop(status Status) {
	if !s.why.CompareAndSwap(0, 1+int32(status)) {
		return
	}
	close(s.stopCh)
	if status == StatusOK {
		_ = s.st.Close()
		return
	}
	_ = s.st.ResetWithError(status.resetCode())
}

func (s *session) status() Status {
	if why := s.why.Load(); why != 0 {
		return Status(why - 1)
	}
	return StatusOK
}

// handshake sends and reads hello and hello_ack. Both sides write first, so
// that neither waits for the other.
func (s *session) handshake() (Status, error) {
	until := time.Now().Add(s.svc.lim.HandshakeTimeout)
	if err := s.st.SetDeadline(until); err != nil {
		return StatusGone, err
	}
	clock := &deadlines{st: s.st, until: until}
	s.r = wire.NewWideReader(clock, MaxFrame)
	sent := uint64(s.svc.engine.Now())
	rules := s.svc.rules
	if err := s.writeHandshake(appendHello(nil, &hello{
		ClockMS: sent, MaxInFlight: uint32(rules.MaxInFlight), FeeBase: uint64(rules.FeeBase), FeePPM: rules.FeePPM,
		HopDeltaMS: uint32(rules.HopDelta.Milliseconds()), LockDelta: s.svc.locks, PointLocks: s.svc.points,
	})); err != nil {
		return readStatus(err), err
	}
	frame, err := s.r.ReadFrame()
	if err != nil {
		return readStatus(err), err
	}
	received := uint64(s.svc.engine.Now())
	theirs, _, err := decodeHandshake(frame)
	if err == nil && (theirs == nil || theirs.MaxInFlight == 0) {
		err = malformed("the first message is no hello, or takes no packets")
	}
	if err != nil {
		return StatusMalformed, err
	}
	if err := s.writeHandshake(appendHelloAck(nil, &helloAck{theirs.ClockMS, received, uint64(s.svc.engine.Now())})); err != nil {
		return readStatus(err), err
	}
	if frame, err = s.r.ReadFrame(); err != nil {
		return readStatus(err), err
	}
	now := uint64(s.svc.engine.Now())
	_, ack, err := decodeHandshake(frame)
	if err == nil && (ack == nil || ack.HelloMS != sent) {
		err = malformed("the second message is no answer to our hello")
	}
	if err != nil {
		return StatusMalformed, err
	}
	// As NTP does it. A peer that lies about its clock shortens or lengthens its
	// own packets only: what counts is our clock, and bounds on it.
	s.dec.offset = (int64(ack.ReceivedMS-sent) + int64(ack.ClockMS-now)) / 2
	s.window = int(min(theirs.MaxInFlight, forward.MaxInFlight))
	s.info = Info{
		ClockOffset: time.Duration(s.dec.offset) * time.Millisecond,
		RoundTrip:   time.Duration(max(0, int64(now-sent)-int64(ack.ClockMS-ack.ReceivedMS))) * time.Millisecond,
		FeeBase:     theirs.FeeBase, FeePPM: theirs.FeePPM, HopDelta: time.Duration(theirs.HopDeltaMS) * time.Millisecond,
		LockDelta: theirs.LockDelta, PointLocks: theirs.PointLocks,
	}
	clock.until = time.Time{}
	if err := s.st.SetDeadline(time.Time{}); err != nil {
		return StatusGone, err
	}
	s.r.SetTimeout(0, s.svc.lim.FrameTimeout)
	return StatusOK, nil
}

func (s *session) writeHandshake(msg []byte) error {
	w := wire.NewWriter(s.st, MaxFrame)
	w.SetTimeout(0) // the stream has a deadline for both
	if err := w.WriteFrame(msg); err != nil {
		return err
	}
	return w.Flush()
}

// deadlines keeps the reader's own within that of the handshake. The reader is
// made once, because it reads ahead.
type deadlines struct {
	st    network.Stream
	until time.Time // zero: it is over
}

func (d *deadlines) Read(b []byte) (int, error) { return d.st.Read(b) }
func (d *deadlines) SetReadDeadline(t time.Time) error {
	if !d.until.IsZero() {
		t = d.until
	}
	return d.st.SetReadDeadline(t)
}

func readStatus(err error) Status {
	switch {
	case errors.Is(err, wire.ErrFrameTooLarge), errors.Is(err, wire.ErrGarbage), errors.Is(err, wire.ErrTruncated), errors.Is(err, ErrMalformed):
		return StatusMalformed
	case errors.Is(err, wire.ErrTimeout):
		return StatusSlow
	case errors.Is(err, io.EOF):
		return StatusOK
	default:
		return StatusGone
	}
}

// read hands over what comes until the stream ends.
func (s *session) read() (Status, error) {
	for range s.svc.lim.Batches {
		b := &batch{sess: s}
		b.Recycle = func(*forward.Batch) { s.free <- b } // never full
		s.free <- b
	}
	for {
		var b *batch
		select {
		case b = <-s.free:
		case <-s.stopCh:
			return s.status(), nil
		case <-s.svc.engineEnded():
			return StatusClosed, nil
		}
		if err := s.fill(b); err != nil {
			return readStatus(err), err
		}
		s.svc.engine.Receive(&b.Batch)
	}
}

// fill waits for a message and takes what else is here already. What came before
// an error is handed over.
func (s *session) fill(b *batch) error {
	b.reset(s.peer)
	for {
		frame, err := s.r.ReadFrame()
		if err == nil {
			b.msgs = append(b.msgs, forward.Msg{})
			err = s.dec.decode(frame, &b.msgs[len(b.msgs)-1], &b.arena)
			if err != nil {
				b.msgs = b.msgs[:len(b.msgs)-1]
			}
			if errors.Is(err, errIgnored) {
				s.svc.count.ignored.Add(1)
				err = nil
			}
		}
		b.Msgs = b.msgs
		switch {
		case err != nil:
			if len(b.msgs) > 0 {
				s.svc.engine.Receive(&b.Batch)
			}
			return err
		case len(b.msgs) == batchMsgs, len(b.msgs) > 0 && (!s.r.Buffered() || b.arena.Full()):
			s.svc.count.messagesIn.Add(uint64(len(b.msgs)))
			return nil
		}
	}
}

func (b *batch) reset(p peer.ID) {
	b.msgs = b.msgs[:0]
	b.arena.Reset()
	b.Peer = p
}

// send appends m to what is to be written. It never waits.
func (s *session) send(m *forward.Msg) (full bool) {
	o := &s.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	if o.buf == nil {
		o.buf = (*outBuffers.Get().(*[]byte))[:0]
	}
	if len(o.buf) > dropDataAt && len(m.Data) > 0 && m.Kind != forward.MsgPrepare {
		bare := *m
		bare.Data = nil
		m = &bare
		s.svc.count.dataDropped.Add(1)
	}
	o.buf = appendFrame(o.buf, m)
	return len(o.buf) > maxQueued
}

func (s *session) wakeWriter() {
	select {
	case s.out.wake <- struct{}{}:
	default:
	}
}

// outBuffers are those of writers that have nothing to write: an idle session keeps
// none.
var outBuffers = sync.Pool{New: func() any { return new([]byte) }}

// keptOut bounds a buffer that is kept for reuse.
const keptOut = 512 << 10

// write writes what is queued, all in one Write, until the session stops.
func (s *session) write() {
	for {
		select {
		case <-s.out.wake:
		case <-s.stopCh:
			return
		}
		s.out.mu.Lock()
		buf := s.out.buf
		s.out.buf = nil
		s.out.mu.Unlock()
		if len(buf) == 0 {
			continue
		}
		err := s.st.SetWriteDeadline(time.Now().Add(s.svc.lim.FrameTimeout))
		if err == nil {
			_, err = s.st.Write(buf)
		}
		if err != nil {
			status := StatusGone
			if t, ok := errors.AsType[interface {
				error
				Timeout() bool
			}](err); ok && t.Timeout() {
				status = StatusSlow
			}
			s.stop(status)
			return
		}
		if cap(buf) <= keptOut {
			outBuffers.Put(&buf)
		}
	}
}

func (s *session) closeOut() {
	s.out.mu.Lock()
	s.out.closed, s.out.buf = true, nil
	s.out.mu.Unlock()
}
