package swapnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/time/rate"

	"github.com/tallystick/tally/protocols/internal/wire"
	"github.com/tallystick/tally/swap"
)

// session is one stream of native or alpha1. The goroutine that runs it reads.
// Two more run while there is something to do: one books what was read, one
// writes what is queued. An idle session is one goroutine.
type session struct {
	svc     *Service
	st      network.Stream
	conn    network.Conn
	peer    peer.ID
	proto   protocol.ID
	inbound bool

	ctx    context.Context // of calls into the book
	cancel context.CancelFunc
	stopCh chan struct{} // closed by the first stop
	why    atomic.Int32  // 0, or 1 + the Status of the first stop
	gone   chan struct{} // closed when the peer's lists do not have it any more

	r      *wire.Reader
	w      *wire.Writer // of the handshake, then of the writing goroutine
	clock  *deadlines
	frames *rate.Limiter

	// polite: the stream is closed and not reset, so that a refusal arrives.
	polite atomic.Bool

	// Guarded by Service.mu.
	tab    *tab      // the book's session that this stream is part of
	since  time.Time // when it became part of it
	claims bool      // waits for its turn

	in  inbox
	out outbox
}

// inbox holds what was read and not yet booked.
type inbox struct {
	mu      sync.Mutex
	changed sync.Cond
	items   []item
	booking bool // a goroutine is booking
	dead    bool // nothing more is booked
}

// item is one frame that was read: a message, or a refund that gets a refusal.
type item struct {
	m      swap.Message
	refund *refund
}

// outbox holds what waits to be written.
type outbox struct {
	mu      sync.Mutex
	items   []*outgoing
	bytes   int           // of items and of what is being written
	space   chan struct{} // closed and renewed when bytes falls
	writing chan struct{} // set while a goroutine writes, closed when it ends
	closed  bool
}

type outgoing struct {
	frame []byte
	taken bool // by the writer, or back by the sender
	done  chan error
}

func maxFrame(id protocol.ID) int {
	if id == ProtocolNative {
		return MaxNativeFrame
	}
	return MaxAlpha1Frame
}

func newSession(svc *Service, st network.Stream, inbound bool) *session {
	s := &session{
		svc: svc, st: st, conn: st.Conn(), peer: st.Conn().RemotePeer(), proto: st.Protocol(), inbound: inbound,
		stopCh: make(chan struct{}), gone: make(chan struct{}),
		clock:  &deadlines{st: st},
		frames: rate.NewLimiter(rate.Limit(svc.lim.FramesPerSecond), svc.lim.FrameBurst),
	}
	s.ctx, s.cancel = context.WithCancel(svc.bookCtx)
	s.in.changed.L = &s.in.mu
	s.out.space = make(chan struct{})
	return s
}

// deadlines keeps every deadline that the frame reader and writer set within
// one for both handshakes together.
type deadlines struct {
	st    network.Stream
	until time.Time // zero: no bound
}

func (d *deadlines) clamp(t time.Time) time.Time {
	if !d.until.IsZero() && (t.IsZero() || t.After(d.until)) {
		return d.until
	}
	return t
}

func (d *deadlines) Read(b []byte) (int, error)  { return d.st.Read(b) }
func (d *deadlines) Write(b []byte) (int, error) { return d.st.Write(b) }

func (d *deadlines) SetReadDeadline(t time.Time) error  { return d.st.SetReadDeadline(d.clamp(t)) }
func (d *deadlines) SetWriteDeadline(t time.Time) error { return d.st.SetWriteDeadline(d.clamp(t)) }

// stop ends the stream from outside. The first status counts.
func (s *session) stop(status Status) {
	if !s.why.CompareAndSwap(0, 1+int32(status)) {
		return
	}
	close(s.stopCh)
	if s.polite.Load() {
		_ = s.st.Close()
		return
	}
	_ = s.st.ResetWithError(status.resetCode())
}

func (s *session) stopped() bool      { return s.why.Load() != 0 }
func (s *session) stopStatus() Status { return Status(s.why.Load() - 1) }

// finish gives the stream back.
func (s *session) finish(status Status) {
	s.cancel()
	if status == StatusOK || s.polite.Load() {
		_ = s.st.Close()
		return
	}
	_ = s.st.ResetWithError(status.resetCode())
}

// begin is the admitted stream up to the point where its session lives.
func (s *session) begin() (Status, error) {
	hs, status, err := s.shake()
	if status == StatusOK {
		status, err = s.svc.establish(s, hs)
	}
	return status, err
}

// shake sends our handshake and reads the peer's. Both go first, so neither
// waits for the other.
func (s *session) shake() (*swap.Handshake, Status, error) {
	until := time.Now().Add(s.svc.lim.HandshakeTimeout)
	release, status := s.svc.handshakeSlot(s.stopCh, until)
	if status != StatusOK {
		return nil, status, nil
	}
	defer release()
	s.clock.until = until
	s.r = wire.NewReader(s.clock, maxFrame(s.proto))
	s.w = wire.NewWriter(s.clock, maxFrame(s.proto))

	hs, status, err := s.exchange()
	if s.stopped() {
		return nil, s.stopStatus(), nil
	}
	switch {
	case status == StatusSlow:
		status = StatusHandshakeTimeout
	case status == StatusOK && err != nil: // a clean end is no handshake
		status = StatusGone
	}
	if status != StatusOK {
		return nil, status, err
	}
	s.clock.until = time.Time{}
	s.r.SetTimeout(0, s.svc.lim.FrameTimeout)
	s.w.SetTimeout(s.svc.lim.FrameTimeout)
	return hs, StatusOK, nil
}

func (s *session) exchange() (*swap.Handshake, Status, error) {
	ctx, cancel := context.WithDeadline(s.ctx, s.clock.until)
	defer cancel()
	ours, err := s.svc.book.Hello(ctx, s.peer)
	if err != nil {
		return nil, StatusInternal, fmt.Errorf("hello: %w", err)
	}
	frame, err := s.encodeHandshake(ours)
	if err != nil {
		return nil, StatusInternal, fmt.Errorf("our handshake: %w", err)
	}
	if err := s.w.WriteFrame(frame); err != nil {
		return nil, StatusInternal, fmt.Errorf("our handshake: %w", err)
	}
	if err := s.w.Flush(); err != nil {
		return nil, readStatus(err), err
	}
	s.svc.count.framesOut.Add(1)
	b, err := s.r.ReadFrame()
	if err != nil {
		return nil, readStatus(err), err
	}
	s.svc.count.framesIn.Add(1)
	if s.proto == ProtocolAlpha1 {
		hs, err := decodeAlpha1Handshake(b)
		return hs, readStatus(err), err
	}
	m, _, err := decodeFrame(b)
	if errors.Is(err, swap.ErrMalformed) {
		s.refuseLast(swap.RefusalMalformed, StatusMalformed, err)
		return nil, StatusMalformed, err
	}
	if err != nil && !errors.Is(err, errUnknownKind) {
		return nil, readStatus(err), err
	}
	hs, ok := m.(*swap.Handshake)
	if !ok {
		return nil, StatusUnexpected, fmt.Errorf("first frame is no handshake: %T", m)
	}
	return hs, StatusOK, nil
}

// handshakeSlot waits for a place among those that shake hands.
func (s *Service) handshakeSlot(stop <-chan struct{}, until time.Time) (release func(), status Status) {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case s.handshakes <- struct{}{}:
		return func() { <-s.handshakes }, StatusOK
	case <-stop:
		return nil, StatusClosed
	case <-timer.C:
		return nil, StatusHandshakeTimeout
	}
}

func (s *session) encodeHandshake(hs *swap.Handshake) ([]byte, error) {
	if s.proto == ProtocolAlpha1 {
		return encodeAlpha1Handshake(hs)
	}
	return encodeFrame(hs)
}

// encode writes a message that may follow the handshake.
func (s *session) encode(m swap.Message) ([]byte, error) {
	if s.proto == ProtocolAlpha1 {
		return encodeAlpha1Cheque(m)
	}
	if _, ok := m.(*swap.Handshake); ok {
		return nil, fmt.Errorf("%w: a second handshake", ErrUnsupported)
	}
	return encodeFrame(m)
}

// decode reads a frame that follows the handshake.
func (s *session) decode(b []byte) (item, error) {
	if s.proto == ProtocolAlpha1 {
		m, err := decodeAlpha1Cheque(b)
		if err != nil {
			return item{}, err
		}
		return item{m: m}, nil
	}
	m, r, err := decodeFrame(b)
	return item{m: m, refund: r}, err
}

// serve reads until the stream ends, and returns when all that was read is
// booked.
func (s *session) serve() (Status, error) {
	status, err := s.read()
	s.drain()
	if s.stopped() {
		return s.stopStatus(), err
	}
	return status, err
}

func (s *session) read() (Status, error) {
	for {
		b, err := s.r.ReadFrame()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return readStatus(err), err
		}
		s.svc.count.framesIn.Add(1)
		if !s.pace() {
			return s.stopStatus(), nil
		}
		it, err := s.decode(b)
		switch {
		case errors.Is(err, errUnknownKind):
			s.svc.count.unknown.Add(1)
			continue
		case errors.Is(err, swap.ErrMalformed):
			s.drain() // what came before it counts
			s.refuseLast(swap.RefusalMalformed, StatusMalformed, err)
			return StatusMalformed, err
		case err != nil:
			return readStatus(err), err
		}
		if _, ok := it.m.(*swap.Handshake); ok {
			return StatusUnexpected, errors.New("second handshake")
		}
		if !s.push(it) {
			return s.stopStatus(), nil
		}
	}
}

// pace waits for a token of Limits.FramesPerSecond.
func (s *session) pace() bool {
	delay := s.frames.ReserveN(time.Now(), 1).Delay()
	if delay == 0 {
		return true
	}
	s.svc.count.throttled.Add(1)
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.stopCh:
		return false
	}
}

// push queues a frame to be booked, and waits while the inbox is full. It
// reports false where the session has ended.
func (s *session) push(it item) bool {
	b := &s.in
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.items) >= s.svc.lim.Inbox && !b.dead {
		if s.supersede(it) { // may make room
			return true
		}
		if len(b.items) >= s.svc.lim.Inbox {
			b.changed.Wait()
		}
	}
	if b.dead {
		return false
	}
	if s.supersede(it) {
		return true
	}
	b.items = append(b.items, it)
	if !b.booking {
		b.booking = true
		s.svc.wg.Go(s.bookAll) // ends when the inbox is empty; drain waits for it
	}
	return true
}

// supersede drops what makes no difference: cheques are absolute, so of several
// queued ones only the highest is verified and saved. Equal serials stay: two
// different cheques with one serial are evidence. It reports true where it
// itself is below one that waits. The caller holds the inbox's mu.
func (s *session) supersede(it item) bool {
	c, ok := it.m.(*swap.Cheque)
	if !ok {
		return false
	}
	for _, o := range s.in.items {
		if q, ok := o.m.(*swap.Cheque); ok && q.Serial > c.Serial {
			s.svc.count.superseded.Add(1)
			return true
		}
	}
	before := len(s.in.items)
	s.in.items = slices.DeleteFunc(s.in.items, func(o item) bool {
		q, ok := o.m.(*swap.Cheque)
		return ok && q.Serial < c.Serial
	})
	s.svc.count.superseded.Add(uint64(before - len(s.in.items)))
	return false
}

// bookAll hands over what is queued, in order.
func (s *session) bookAll() {
	b := &s.in
	for {
		b.mu.Lock()
		if len(b.items) == 0 {
			b.items, b.booking = nil, false
			b.changed.Broadcast()
			b.mu.Unlock()
			return
		}
		it := b.items[0]
		b.items = b.items[1:]
		b.changed.Broadcast()
		b.mu.Unlock()
		if s.receive(it) {
			continue
		}
		b.mu.Lock()
		b.items, b.dead = nil, true
		b.changed.Broadcast()
		b.mu.Unlock()
	}
}

// drain waits until all that was read is booked.
func (s *session) drain() {
	b := &s.in
	b.mu.Lock()
	for b.booking {
		b.changed.Wait()
	}
	b.mu.Unlock()
}

// receive hands one frame to the book and answers its error. It reports false
// where the session has to end.
func (s *session) receive(it item) bool {
	if it.refund != nil {
		s.svc.count.unsupported.Add(1)
		s.reply(&swap.Refusal{Serial: it.refund.serial, Code: swap.RefusalUnsupported})
		return true
	}
	err := s.svc.book.Receive(s.ctx, s.peer, it.m)
	if err == nil || s.ctx.Err() != nil {
		return true
	}
	code, status := refusalOf(err)
	s.svc.count.refused.Add(1)
	s.svc.refused(s.peer, s.proto, it.m, status, err)
	if status == StatusMalformed || status == StatusSignature {
		s.refuseLast(code, status, err)
		s.stop(status)
		return false
	}
	// Only a cheque is answered: a refusal of a refusal would go on for ever.
	if c, ok := it.m.(*swap.Cheque); ok && s.proto == ProtocolNative {
		s.reply(&swap.Refusal{Serial: c.Serial, Code: code, Detail: detail(status, err)})
	}
	return true
}

// detail is what a peer may read of an error: nothing of our own failures.
func detail(status Status, err error) string {
	if status == StatusInternal {
		return ""
	}
	return err.Error()
}

// reply sends a message of our own. Where it cannot be written the session ends
// of itself.
func (s *session) reply(m swap.Message) {
	if s.proto != ProtocolNative {
		return
	}
	frame, err := s.encode(m)
	if err != nil {
		panic(fmt.Sprintf("swapnet: reply does not encode: %v", err))
	}
	_ = s.send(s.ctx, frame)
}

// refuseLast tells the peer why the session ends. The seed's protocol has no
// word for it.
func (s *session) refuseLast(code swap.RefusalCode, status Status, err error) {
	if s.proto != ProtocolNative {
		return
	}
	s.reply(&swap.Refusal{Code: code, Detail: detail(status, err)})
	s.polite.Store(true)
}

// send queues a frame and returns when the stream has taken it.
func (s *session) send(ctx context.Context, frame []byte) error {
	o := &outgoing{frame: frame, done: make(chan error, 1)}
	q := &s.out
	q.mu.Lock()
	for !q.closed && q.bytes+len(frame) > s.svc.lim.QueuedBytes {
		space := q.space
		q.mu.Unlock()
		select {
		case <-space:
		case <-s.stopCh:
			return swap.ErrNoSession
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrNotSent, context.Cause(ctx))
		}
		q.mu.Lock()
	}
	if q.closed || s.stopped() {
		q.mu.Unlock()
		return swap.ErrNoSession
	}
	q.items = append(q.items, o)
	q.bytes += len(frame)
	if q.writing == nil {
		q.writing = make(chan struct{})
		s.svc.wg.Go(s.writeAll) // ends when the outbox is empty; closeOutbox waits for it
	}
	q.mu.Unlock()

	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if o.taken {
		select {
		case err := <-o.done:
			return err
		default:
			return context.Cause(ctx) // it may leave
		}
	}
	o.taken = true
	q.items = slices.DeleteFunc(q.items, func(x *outgoing) bool { return x == o })
	q.free(len(o.frame))
	return fmt.Errorf("%w: %w", ErrNotSent, context.Cause(ctx))
}

// free gives back bytes. The caller holds mu.
func (q *outbox) free(n int) {
	q.bytes -= n
	close(q.space)
	q.space = make(chan struct{})
}

// writeAll writes what is queued, all that waits in one Write.
func (s *session) writeAll() {
	q := &s.out
	for {
		q.mu.Lock()
		batch := q.items
		q.items = nil
		if len(batch) == 0 {
			close(q.writing)
			q.writing = nil
			q.mu.Unlock()
			return
		}
		for _, o := range batch {
			o.taken = true
		}
		q.mu.Unlock()

		before := s.w.Written()
		var err error
		size := 0
		for _, o := range batch {
			size += len(o.frame)
			if err == nil {
				err = s.w.WriteFrame(o.frame)
			}
		}
		if err == nil {
			err = s.w.Flush()
		}
		if err == nil {
			s.svc.count.framesOut.Add(uint64(len(batch)))
		} else {
			if s.w.Written() == before {
				err = fmt.Errorf("%w: %w", ErrNotSent, err)
			}
			s.stop(readStatus(err))
		}
		for _, o := range batch {
			o.done <- err
		}
		q.mu.Lock()
		q.free(size)
		q.mu.Unlock()
	}
}

// closeOutbox lets what is queued leave, and refuses more.
func (s *session) closeOutbox() {
	q := &s.out
	q.mu.Lock()
	q.closed = true
	writing := q.writing
	q.mu.Unlock()
	if writing != nil {
		<-writing
	}
}

// refused is the one place that logs what the book refuses.
func (s *Service) refused(p peer.ID, id protocol.ID, m swap.Message, status Status, err error) {
	if status == StatusInternal {
		s.log.Error("book failed on a message", "peer", p, "protocol", id, "message", fmt.Sprintf("%T", m), "err", err)
		return
	}
	s.log.Warn("message refused", "peer", p, "protocol", id, "message", fmt.Sprintf("%T", m), "status", status.String(), "err", err)
}
