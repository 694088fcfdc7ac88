package swapnet

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/time/rate"

	"github.com/tallystick/tally/swap"
)

var (
	// ErrUnsupported: the session's protocol has no such message. On a session
	// of the seed's only *swap.KarmaCheque can be sent.
	ErrUnsupported = errors.New("swapnet: message is not part of the session's protocol")
	// ErrNotSent: the message waited to be written and nothing of it has left.
	// An error of Send that is neither this nor swap.ErrNoSession nor
	// ErrUnsupported nor of the message itself may mean that it has left.
	ErrNotSent = errors.New("swapnet: not sent")
	// ErrClosed: the service is closed.
	ErrClosed = errors.New("swapnet: closed")
)

// Book is what swapnet carries messages for; *swap.Book is one.
//
// BeginSession and EndSession come in pairs: a peer has at most one session, and
// the next begins after EndSession of the last returned. Between the two,
// Receive is called for what came in that session, in order of arrival. On a
// session of the seed's protocol the peer may write on two streams; then two
// calls of Receive may run at once. So they may for a cheque of beta1, which
// belongs to no session and may come without one.
//
// Send may be called from within every method, and Disconnect too. ctx ends when
// the service closes, or when a newer session has waited for too long.
type Book interface {
	// Hello is our handshake for p: terms, first statement, recovery data. It may
	// be asked for and then not used, also while a session lives.
	Hello(ctx context.Context, p peer.ID) (*swap.Handshake, error)
	// BeginSession takes the peer's handshake. native is false for the seed's
	// protocol, where only PaymentThreshold is told. On an error the session ends
	// and EndSession is not called. The peer is told first, with
	// swap.RefusalFor(err).
	BeginSession(ctx context.Context, p peer.ID, hs *swap.Handshake, native bool) error
	// EndSession tells that the session is gone. Messages that came in it have
	// been received.
	EndSession(p peer.ID)
	// Receive takes any later message. Replies go through Send. An error is
	// counted, and where m is a cheque the peer is told swap.RefusalFor(err). What
	// is malformed or badly signed ends the session as well.
	Receive(ctx context.Context, p peer.ID, m swap.Message) error
}

// Config is what a Service can be told.
type Config struct {
	// Logger takes one record for each stream that ends. Default: none.
	Logger *slog.Logger
	// Limits bound what peers can make us do. Default DefaultLimits.
	Limits Limits
}

// Service keeps a session with every connected peer that speaks swap. It is a
// swap.Courier.
type Service struct {
	host  host.Host
	book  Book
	log   *slog.Logger
	lim   Limits
	count counters

	netCtx   context.Context // ends first: opening, waiting
	bookCtx  context.Context // of calls into the book: ends when they had time to finish
	stopNet  context.CancelFunc
	stopBook context.CancelFunc
	wg       sync.WaitGroup // every goroutine that runs a stream, and the opener

	handshakes chan struct{} // semaphore of Limits.Handshakes
	wake       chan struct{} // the opener has to look at its queue again

	// mu guards the fields below, those of every peerState, and those of session
	// that say so. Nothing waits and no stream is touched under it.
	mu      sync.Mutex
	started bool
	closed  bool
	streams int
	peers   map[peer.ID]*peerState
	queue   openQueue
	openers int
	now     func() time.Time
}

// peerState is what is known of one peer while it is connected or has a stream.
type peerState struct {
	id peer.ID
	// sessions are the streams that are or may become the peer's session.
	sessions []*session
	// count is the number of its streams, those included that were not yet
	// admitted and those of beta1.
	count int
	// tab is the book's session. Invariant: where it is set, turn is taken.
	tab *tab
	// turn is a semaphore of one place, held from before BeginSession until after
	// EndSession.
	turn chan struct{}
	// starts is the bucket of Limits.SessionsPerSecond.
	starts *rate.Limiter
	// opening: a stream to the peer is being opened.
	opening bool
	// failures since a session lived for long, for the pause before the next.
	failures int
	// due is when the opener looks at the peer; zero where it is not queued. It is
	// never before notBefore.
	due, notBefore time.Time
	// place in the opener's queue, while due is set.
	place int
}

// tab is one session of the book: one native stream, or up to one alpha1 stream
// each way.
type tab struct {
	streams int           // guarded by Service.mu; at 0 nobody joins any more
	begun   chan struct{} // closed when BeginSession has returned
	ok      bool          // BeginSession took the peer; valid once begun is closed
}

// New returns a Service for h. It does nothing before Start.
func New(h host.Host, book Book, cfg Config) (*Service, error) {
	lim := cfg.Limits.Complete()
	if err := lim.Validate(); err != nil {
		return nil, err
	}
	s := &Service{
		host: h, book: book, log: cfg.Logger, lim: lim,
		handshakes: make(chan struct{}, lim.Handshakes),
		wake:       make(chan struct{}, 1),
		peers:      make(map[peer.ID]*peerState),
		now:        time.Now,
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.netCtx, s.stopNet = context.WithCancel(context.Background())
	s.bookCtx, s.stopBook = context.WithCancel(context.Background())
	return s, nil
}

// Start takes streams, and opens them to peers that are or will be connected.
func (s *Service) Start() error {
	events, err := s.subscribe()
	if err != nil {
		return fmt.Errorf("swapnet: start: %w", err)
	}
	s.mu.Lock()
	if s.started || s.closed {
		s.mu.Unlock()
		_ = events.Close()
		return fmt.Errorf("swapnet: start twice, or after close: %w", ErrClosed)
	}
	s.started = true
	s.wg.Go(func() { s.open(events) }) // ends when netCtx does
	s.mu.Unlock()
	s.host.SetStreamHandler(ProtocolNative, s.handle)
	s.host.SetStreamHandler(ProtocolAlpha1, s.handle)
	s.host.SetStreamHandler(ProtocolBeta1, s.handleBeta1)
	for _, p := range s.host.Network().Peers() {
		s.consider(p)
	}
	return nil
}

// Close ends every session and returns when nothing of the service runs. The
// book gets EndSession for each. Messages already read are booked first, for at
// most Limits.FrameTimeout. The host stays open.
func (s *Service) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.wg.Wait()
		return nil
	}
	s.closed = true
	var all []*session
	for _, ps := range s.peers {
		all = append(all, ps.sessions...)
	}
	started := s.started
	s.mu.Unlock()

	if started {
		for _, id := range protocols {
			s.host.RemoveStreamHandler(id)
		}
	}
	s.stopNet()
	for _, sess := range all {
		sess.stop(StatusClosed)
	}
	hurry := time.AfterFunc(s.lim.FrameTimeout, s.stopBook)
	s.wg.Wait()
	hurry.Stop()
	s.stopBook()
	return nil
}

// Send implements swap.Courier: it hands m to the session with p and returns
// when the stream has taken its bytes. An error tells whether they may have
// left; see ErrNotSent.
func (s *Service) Send(ctx context.Context, p peer.ID, m swap.Message) error {
	s.mu.Lock()
	sess := s.live(p)
	s.mu.Unlock()
	if sess == nil {
		return fmt.Errorf("swapnet: send %T to %s: %w", m, p, swap.ErrNoSession)
	}
	frame, err := sess.encode(m)
	if err != nil {
		return fmt.Errorf("swapnet: send to %s: %w", p, err)
	}
	if err := sess.send(ctx, frame); err != nil {
		return fmt.Errorf("swapnet: send %T to %s: %w", m, p, err)
	}
	return nil
}

// Disconnect implements swap.Courier: it closes all connections to p.
func (s *Service) Disconnect(p peer.ID) error {
	s.mu.Lock()
	var all []*session
	if ps := s.peers[p]; ps != nil {
		all = slices.Clone(ps.sessions)
	}
	s.mu.Unlock()
	for _, sess := range all {
		sess.stop(StatusClosed)
	}
	if err := s.host.Network().ClosePeer(p); err != nil {
		return fmt.Errorf("swapnet: disconnect %s: %w", p, err)
	}
	return nil
}

// Protocol returns the protocol of the session with p.
func (s *Service) Protocol(p peer.ID) (id protocol.ID, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sess := s.live(p); sess != nil {
		return sess.proto, true
	}
	return "", false
}

// live returns the stream to write to p on, our own where there are two. The
// caller holds mu.
func (s *Service) live(p peer.ID) *session {
	ps := s.peers[p]
	if ps == nil {
		return nil
	}
	var found *session
	for _, sess := range ps.sessions {
		if sess.tab != nil && !sess.stopped() && (found == nil || !sess.inbound) {
			found = sess
		}
	}
	return found
}

// handle runs an inbound stream of native or alpha1.
func (s *Service) handle(st network.Stream) {
	if !s.enter() {
		_ = st.ResetWithError(StatusClosed.resetCode())
		return
	}
	defer s.wg.Done()
	s.runStream(st, true)
}

// enter counts a goroutine of ours that somebody else started.
func (s *Service) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	return true
}

// runStream begins the life of one stream. A session that lives is served by a
// goroutine of its own: the handshake has grown the stack of this one, and a
// session that idles for days needs next to none.
func (s *Service) runStream(st network.Stream, inbound bool) {
	sess := newSession(s, st, inbound)
	status, err := s.reserve(st, inbound)
	if status != StatusOK {
		if !inbound {
			s.opened(sess.peer)
		}
		s.endStream(sess, inbound, status, err)
		return
	}
	if status = s.admit(sess); status != StatusOK {
		s.unreserve(sess.peer)
		s.endStream(sess, inbound, status, nil)
		return
	}
	if status, err = sess.begin(); status != StatusOK {
		s.endSession(sess, inbound, status, err)
		return
	}
	s.wg.Go(func() { // ends with the stream; Close ends that
		status, err := sess.serve()
		s.endSession(sess, inbound, status, err)
	})
}

// endSession is the end of a stream that was admitted.
func (s *Service) endSession(sess *session, inbound bool, status Status, err error) {
	sess.closeOutbox()
	s.leave(sess)
	s.unreserve(sess.peer)
	s.endStream(sess, inbound, status, err)
}

// endStream is the end of every stream.
func (s *Service) endStream(sess *session, inbound bool, status Status, err error) {
	sess.finish(status)
	s.ended(sess.st, inbound, status, err)
	s.again(sess.peer, sess.since, status)
}

// ended is the one place that counts and logs how a stream ended.
func (s *Service) ended(st network.Stream, inbound bool, status Status, err error) {
	s.count.end(st.Protocol(), status)
	level := slog.LevelDebug
	switch {
	case status == StatusInternal:
		level = slog.LevelError
	case status.faulty():
		level = slog.LevelWarn
	}
	s.log.Log(context.Background(), level, "swap stream ended", "peer", st.Conn().RemotePeer(),
		"protocol", st.Protocol(), "inbound", inbound, "status", status.String(), "err", err)
}

// reserve takes a place for a stream, of our own semaphores and of libp2p's
// scope. The resources of the scope go back with the stream.
func (s *Service) reserve(st network.Stream, inbound bool) (Status, error) {
	p := st.Conn().RemotePeer()
	if err := st.Scope().SetService(ServiceName); err != nil {
		return StatusResource, err
	}
	if err := st.Scope().ReserveMemory(readAhead+maxFrame(st.Protocol()), network.ReservationPriorityMedium); err != nil {
		return StatusResource, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return StatusClosed, ErrClosed
	}
	ps := s.peerState(p)
	switch {
	case inbound && !ps.starts.AllowN(s.now(), 1):
		return StatusTooOften, nil
	case s.streams >= s.lim.Streams, ps.count >= s.lim.StreamsPerPeer:
		return StatusTooMany, nil
	}
	s.streams++
	ps.count++
	return StatusOK, nil
}

func (s *Service) unreserve(p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams--
	s.peers[p].count--
}

// peerState returns what is known of p. The caller holds mu.
func (s *Service) peerState(p peer.ID) *peerState {
	ps := s.peers[p]
	if ps == nil {
		ps = &peerState{
			id: p, turn: make(chan struct{}, 1),
			starts: rate.NewLimiter(rate.Limit(s.lim.SessionsPerSecond), s.lim.SessionBurst),
		}
		s.peers[p] = ps
	}
	return ps
}

// forget drops what is known of a peer that is gone, so that nothing grows with
// the number of identities ever seen. The caller holds mu.
func (s *Service) forget(p peer.ID) {
	ps := s.peers[p]
	if ps == nil || ps.count > 0 || ps.opening || ps.tab != nil || s.host.Network().Connectedness(p) == network.Connected {
		return
	}
	if !ps.due.IsZero() {
		heap.Remove(&s.queue, ps.place)
	}
	delete(s.peers, p)
}

// admit decides whether a stream may become the peer's session. The decision is
// the same on both sides where two native streams meet that were opened at once:
// the one of the lower peer id is kept.
func (s *Service) admit(sess *session) Status {
	for wait := s.lim.DuplicateWait; ; wait = 0 {
		s.mu.Lock()
		ps := s.peerState(sess.peer)
		if !sess.inbound {
			ps.opening = false // from here on sess itself stands in the list, or is refused
		}
		status, older := s.judge(ps, sess)
		if status == StatusOK {
			if s.closed {
				status = StatusClosed
			} else {
				ps.sessions = append(ps.sessions, sess)
			}
		}
		s.mu.Unlock()
		if status != StatusDuplicate || wait == 0 {
			return status
		}
		// The peer may have closed the older stream before it opened this one,
		// and we have not read that far yet.
		timer := time.NewTimer(wait)
		select {
		case <-older.gone:
		case <-timer.C:
		case <-s.netCtx.Done():
		}
		timer.Stop()
	}
}

// judge holds a new stream against those that the peer has. The caller holds mu.
func (s *Service) judge(ps *peerState, sess *session) (Status, *session) {
	native := sess.proto == ProtocolNative
	for _, o := range ps.sessions {
		if o.stopped() {
			continue
		}
		sameConn := o.conn == sess.conn
		// A stream of the other direction on another connection is a reconnect
		// where the session is old: the peer has lost it and knows nothing of it.
		reconnect := !sameConn && !o.since.IsZero() && s.now().Sub(o.since) > s.lim.Overlap
		switch {
		case o.proto == ProtocolNative && !native:
			if !reconnect {
				return StatusDuplicate, o
			}
		case o.proto != sess.proto:
			// native takes over from alpha1
		case o.inbound == sess.inbound:
			if sameConn {
				return StatusDuplicate, o
			}
		case native && !reconnect && !s.wins(sess):
			return StatusTieBreak, o
		}
	}
	// A stream that we are just opening counts as well: the peer is going to see
	// it.
	if native && sess.inbound && ps.opening && !s.wins(sess) {
		return StatusTieBreak, nil
	}
	return StatusOK, nil
}

// wins tells whether sess was opened by the lower peer id.
func (s *Service) wins(sess *session) bool {
	self := s.host.ID()
	if sess.inbound {
		return sess.peer < self
	}
	return self < sess.peer
}

// establish makes sess the peer's session, or part of it, and tells the book.
// Where another session lives it is replaced: it ends, all that came in it is
// booked, and only then does the new one begin.
func (s *Service) establish(sess *session, hs *swap.Handshake) (Status, error) {
	s.mu.Lock()
	ps := s.peers[sess.peer]
	if t := ps.tab; t != nil && t.streams > 0 && s.joins(ps, sess) {
		t.streams++
		sess.tab, sess.since = t, s.now()
		s.mu.Unlock()
		select {
		case <-t.begun:
		case <-sess.stopCh:
		}
		if sess.stopped() {
			return sess.stopStatus(), nil
		}
		if !t.ok {
			return StatusRefused, nil
		}
		return StatusOK, nil
	}
	var older []*session
	for _, o := range ps.sessions {
		if o != sess && (o.tab != nil || o.claims) {
			older = append(older, o)
		}
	}
	sess.claims = true // the next newcomer ends us while we wait
	s.mu.Unlock()

	for _, o := range older {
		o.stop(StatusReplaced)
	}
	if !s.takeTurn(ps, sess, older) {
		if sess.stopped() {
			return sess.stopStatus(), nil
		}
		return StatusInternal, errors.New("swapnet: the book did not let go of the last session")
	}
	t := &tab{streams: 1, begun: make(chan struct{})}
	s.mu.Lock()
	if sess.stopped() {
		s.mu.Unlock()
		<-ps.turn
		return sess.stopStatus(), nil
	}
	ps.tab, sess.tab, sess.since, sess.claims = t, t, s.now(), false
	s.mu.Unlock()

	err := s.book.BeginSession(sess.ctx, sess.peer, hs, sess.proto == ProtocolNative)
	t.ok = err == nil
	close(t.begun)
	if err == nil {
		return StatusOK, nil
	}
	if sess.stopped() {
		return sess.stopStatus(), nil
	}
	code, status := refusalOf(err)
	s.count.refused.Add(1)
	sess.refuseLast(code, status, err)
	return status, fmt.Errorf("begin session: %w", err)
}

// joins tells whether sess is the second stream of an alpha1 session: a peer of
// the seed's protocol may write its cheques on a stream of its own. The caller
// holds mu.
func (s *Service) joins(ps *peerState, sess *session) bool {
	if sess.proto != ProtocolAlpha1 {
		return false
	}
	for _, o := range ps.sessions {
		if o == sess || o.tab == nil || o.stopped() {
			continue
		}
		same := o.conn == sess.conn || s.now().Sub(o.since) <= s.lim.Overlap
		if o.proto != ProtocolAlpha1 || o.inbound == sess.inbound || !same {
			return false
		}
	}
	return true
}

// takeTurn waits until the book has let go of the session before.
func (s *Service) takeTurn(ps *peerState, sess *session, older []*session) bool {
	for range 2 {
		timer := time.NewTimer(s.lim.FrameTimeout)
		select {
		case ps.turn <- struct{}{}:
			timer.Stop()
			return true
		case <-sess.stopCh:
			timer.Stop()
			return false
		case <-timer.C:
			for _, o := range older {
				o.cancel() // had time enough to book what it had read
			}
		}
	}
	return false
}

// leave takes sess out of its peer's session, and ends that with the last one.
func (s *Service) leave(sess *session) {
	s.mu.Lock()
	ps := s.peers[sess.peer]
	ps.sessions = slices.DeleteFunc(ps.sessions, func(o *session) bool { return o == sess })
	t, last := sess.tab, false
	if t != nil {
		t.streams--
		last = t.streams == 0
	}
	s.mu.Unlock()
	if last {
		<-t.begun
		if t.ok {
			s.book.EndSession(sess.peer)
		}
		s.mu.Lock()
		ps.tab = nil
		s.mu.Unlock()
		<-ps.turn
	}
	sess.cancel()
	close(sess.gone)
}
