package packetnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"golang.org/x/time/rate"

	"github.com/tallystick/tally/paystream/forward"
)

// ErrClosed: the service is closed.
var ErrClosed = errors.New("packetnet: closed")

// Engine is what packetnet carries messages for; *forward.Engine is one. A peer
// has at most one session, and Up of the next comes after Down of the last.
type Engine interface {
	Up(p peer.ID, window int)
	Receive(b *forward.Batch)
	Down(p peer.ID)
	// Now is the clock that expiries are on, in milliseconds since 1970.
	Now() int64
}

// Config is what a Service can be told.
type Config struct {
	// Rules are told to neighbours.
	Rules forward.Rules
	// LockDelta is told to neighbours: by how many epochs earlier a lock ends on its
	// way out; 0: we take and make no locks.
	LockDelta uint32
	// PointLocks tells them that we take locks under points.
	PointLocks bool
	// Limits bound what peers can make us do.
	Limits Limits
	// Logger takes one record for each stream that ends. Default: none.
	Logger *slog.Logger
}

// Info is what a session with a peer found out.
type Info struct {
	// ClockOffset is what the peer's clock shows more than ours, as measured over
	// RoundTrip at the handshake.
	ClockOffset, RoundTrip time.Duration
	// The peer's fee and hop delta.
	FeeBase  uint64
	FeePPM   uint32
	HopDelta time.Duration
	// LockDelta is by how many epochs earlier a lock ends on its way out of the peer;
	// 0: it takes and makes none.
	LockDelta uint32
	// PointLocks: it takes them under points, too.
	PointLocks bool
}

// Stats are counts since the start.
type Stats struct {
	Sessions    int
	MessagesIn  uint64
	Ignored     uint64 // messages of unknown kind
	DataDropped uint64 // replies that lost their data, to a peer that reads slowly
	Ended       map[string]uint64
}

type counters struct {
	messagesIn, ignored, dataDropped atomic.Uint64
	ended                            [statusCount]atomic.Uint64
}

// Service keeps a session with every connected peer that speaks the protocol. It
// is a forward.Wire.
type Service struct {
	host   host.Host
	engine Engine
	rules  forward.Rules
	locks  uint32
	points bool
	lim    Limits
	log    *slog.Logger
	count  counters

	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	openers chan struct{} // semaphore of Limits.Openers

	// mu guards the fields below. Nothing waits and no stream is touched under it.
	mu      sync.Mutex
	started bool
	closed  bool
	streams int
	peers   map[peer.ID]*peerState
	live    map[peer.ID]*session

	// Of the engine's goroutine.
	dirty []*session
}

// peerState is what is known of one peer while it is connected or has a stream.
type peerState struct {
	streams int
	opening bool
	newest  *session
	turn    chan struct{} // semaphore of one: who is the engine's session
	starts  *rate.Limiter
}

var _ forward.Wire = (*Service)(nil)

// New returns a Service for h. It does nothing before Start.
func New(h host.Host, engine Engine, cfg Config) (*Service, error) {
	s := &Service{
		host: h, engine: engine, rules: cfg.Rules.Complete(), locks: cfg.LockDelta, points: cfg.PointLocks, lim: cfg.Limits.Complete(), log: cfg.Logger,
		peers: make(map[peer.ID]*peerState), live: make(map[peer.ID]*session),
	}
	if err := errors.Join(s.lim.Validate(), s.rules.Validate()); err != nil {
		return nil, err
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.openers = make(chan struct{}, s.lim.Openers)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// eventBuffer is what libp2p may queue for us; the loop that takes it only
// touches maps.
const eventBuffer = 256

// Start takes streams, and opens them to peers that are or will be connected and
// have the higher id.
func (s *Service) Start() error {
	events, err := s.host.EventBus().Subscribe([]any{
		new(event.EvtPeerIdentificationCompleted),
		new(event.EvtPeerProtocolsUpdated),
		new(event.EvtPeerConnectednessChanged),
	}, eventbus.BufSize(eventBuffer), eventbus.Name(ServiceName))
	if err != nil {
		return fmt.Errorf("packetnet: start: %w", err)
	}
	s.mu.Lock()
	if s.started || s.closed {
		s.mu.Unlock()
		_ = events.Close()
		return fmt.Errorf("packetnet: start twice, or after close: %w", ErrClosed)
	}
	s.started = true
	s.wg.Go(func() { s.watch(events) }) // ends with ctx
	s.mu.Unlock()
	s.host.SetStreamHandler(Protocol, s.handle)
	for _, p := range s.host.Network().Peers() {
		s.consider(p)
	}
	return nil
}

// Close ends every session and returns when nothing of the service runs.
func (s *Service) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.wg.Wait()
		return nil
	}
	s.closed = true
	started := s.started
	s.mu.Unlock()
	if started {
		s.host.RemoveStreamHandler(Protocol)
	}
	s.cancel()
	s.wg.Wait()
	return nil
}

func (s *Service) engineEnded() <-chan struct{} { return s.ctx.Done() }

// Stats returns the counts.
func (s *Service) Stats() Stats {
	s.mu.Lock()
	st := Stats{Sessions: len(s.live), Ended: make(map[string]uint64)}
	s.mu.Unlock()
	st.MessagesIn, st.Ignored, st.DataDropped = s.count.messagesIn.Load(), s.count.ignored.Load(), s.count.dataDropped.Load()
	for i := range s.count.ended {
		st.Ended[Status(i).String()] = s.count.ended[i].Load()
	}
	return st
}

// Info returns what the session with p found out, and false without one.
func (s *Service) Info(p peer.ID) (Info, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sess := s.live[p]; sess != nil {
		return sess.info, true
	}
	return Info{}, false
}

// Neighbours returns the peers that there are sessions with.
func (s *Service) Neighbours() []peer.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.live))
}

// Send implements forward.Wire.
func (s *Service) Send(p peer.ID, m *forward.Msg) {
	s.mu.Lock()
	sess := s.live[p]
	s.mu.Unlock()
	if sess == nil {
		return
	}
	if sess.send(m) {
		sess.stop(StatusSlow)
	}
	if !sess.out.dirty {
		sess.out.dirty = true
		s.dirty = append(s.dirty, sess)
	}
}

// Post is Send for any goroutine: m leaves at once, behind what was sent before. It
// reports whether there is a session.
func (s *Service) Post(p peer.ID, m *forward.Msg) bool {
	s.mu.Lock()
	sess := s.live[p]
	s.mu.Unlock()
	if sess == nil {
		return false
	}
	if sess.send(m) {
		sess.stop(StatusSlow)
	}
	sess.wakeWriter()
	return true
}

// Flush implements forward.Wire.
func (s *Service) Flush() {
	for i, sess := range s.dirty {
		sess.out.dirty = false
		sess.wakeWriter()
		s.dirty[i] = nil
	}
	s.dirty = s.dirty[:0]
}

// Reset implements forward.Wire.
func (s *Service) Reset(p peer.ID, cause error) {
	s.mu.Lock()
	sess := s.live[p]
	s.mu.Unlock()
	if sess != nil {
		s.log.Warn("neighbour broke the packet protocol", "peer", p, "err", cause)
		sess.stop(StatusFault)
	}
}

// watch takes events of the host until the service closes.
func (s *Service) watch(events event.Subscription) {
	defer events.Close()
	for {
		select {
		case <-s.ctx.Done():
			return
		case e, ok := <-events.Out():
			if !ok {
				return
			}
			switch e := e.(type) {
			case event.EvtPeerIdentificationCompleted:
				s.consider(e.Peer)
			case event.EvtPeerProtocolsUpdated:
				s.consider(e.Peer)
			case event.EvtPeerConnectednessChanged:
				if e.Connectedness == network.NotConnected {
					s.mu.Lock()
					s.forget(e.Peer)
					s.mu.Unlock()
				}
			}
		}
	}
}

// consider opens to a connected peer where that is ours to do.
func (s *Service) consider(p peer.ID) {
	known, err := s.host.Peerstore().SupportsProtocols(p, Protocol)
	if err != nil || len(known) == 0 || s.host.ID() >= p {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	ps := s.state(p)
	if ps.opening {
		return
	}
	ps.opening = true
	s.wg.Go(func() { s.keepOpen(p) }) // ends with the connection or ctx
}

// keepOpen opens a stream to p, and another when it ended, while p is connected.
func (s *Service) keepOpen(p peer.ID) {
	pause := s.lim.RetryMin
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for s.host.Network().Connectedness(p) == network.Connected && s.ctx.Err() == nil {
		begun := time.Now()
		s.openTo(p)
		if time.Since(begun) > s.lim.RetryMax {
			pause = s.lim.RetryMin
		}
		timer.Reset(pause)
		select {
		case <-timer.C:
		case <-s.ctx.Done():
		}
		pause = min(2*pause, s.lim.RetryMax)
	}
	s.mu.Lock()
	s.state(p).opening = false
	s.forget(p)
	s.mu.Unlock()
	if s.host.Network().Connectedness(p) == network.Connected {
		s.consider(p) // it came back between the last look and the end
	}
}

func (s *Service) openTo(p peer.ID) {
	select {
	case s.openers <- struct{}{}:
	case <-s.ctx.Done():
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.lim.HandshakeTimeout)
	st, err := s.host.NewStream(network.WithNoDial(ctx, "packets go to connected peers only"), p, Protocol)
	cancel()
	<-s.openers
	if err != nil {
		s.log.Debug("packet stream not opened", "peer", p, "err", err)
		return
	}
	s.run(st, false)
}

// handle runs an inbound stream.
func (s *Service) handle(st network.Stream) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		_ = st.ResetWithError(StatusClosed.resetCode())
		return
	}
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	s.run(st, true)
}

// state returns what is known of p. The caller holds mu.
func (s *Service) state(p peer.ID) *peerState {
	ps := s.peers[p]
	if ps == nil {
		ps = &peerState{
			turn:   make(chan struct{}, 1),
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
	if ps != nil && ps.streams == 0 && !ps.opening && s.host.Network().Connectedness(p) != network.Connected {
		delete(s.peers, p)
	}
}

// run is the life of one stream.
func (s *Service) run(st network.Stream, inbound bool) {
	sess := newSession(s, st, inbound)
	status, err := s.admit(sess)
	if status == StatusOK {
		status, err = s.serve(sess)
		s.leave(sess)
	}
	if why := sess.status(); status != StatusOK && why != StatusOK {
		status = why // who stopped it knows better than the stream
	}
	sess.stop(status)
	s.count.ended[status].Add(1)
	s.log.Debug("packet stream ended", "peer", sess.peer, "inbound", inbound, "status", status.String(), "err", err)
}

// admit takes a place for a stream, of our own semaphores and of libp2p's scope.
func (s *Service) admit(sess *session) (Status, error) {
	if sess.inbound && sess.peer >= s.host.ID() {
		return StatusWrongOpener, nil
	}
	if err := sess.st.Scope().SetService(ServiceName); err != nil {
		return StatusResource, err
	}
	if err := sess.st.Scope().ReserveMemory(MaxFrame+keptOut, network.ReservationPriorityMedium); err != nil {
		return StatusResource, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return StatusClosed, ErrClosed
	}
	ps := s.state(sess.peer)
	switch {
	case sess.inbound && !ps.starts.AllowN(time.Now(), 1):
		return StatusTooOften, nil
	case s.streams >= s.lim.Sessions, ps.streams >= 2: // one lives, one takes over
		return StatusTooMany, nil
	}
	s.streams++
	ps.streams++
	return StatusOK, nil
}

func (s *Service) leave(sess *session) {
	s.mu.Lock()
	s.streams--
	s.state(sess.peer).streams--
	s.forget(sess.peer)
	s.mu.Unlock()
}

// serve shakes hands, takes over from an older session, and reads to the end.
func (s *Service) serve(sess *session) (Status, error) {
	unwatch := context.AfterFunc(s.ctx, func() { sess.stop(StatusClosed) })
	defer unwatch()
	if status, err := sess.handshake(); status != StatusOK || err != nil {
		if status == StatusOK { // a clean end is no handshake
			status = StatusGone
		}
		return status, err
	}
	s.mu.Lock()
	ps := s.state(sess.peer)
	older := ps.newest
	ps.newest = sess
	s.mu.Unlock()
	if older != nil {
		older.stop(StatusReplaced)
	}
	// All that was read of the older one is with the engine before this begins.
	select {
	case ps.turn <- struct{}{}:
	case <-sess.stopCh:
		return sess.status(), nil
	}
	s.mu.Lock()
	s.live[sess.peer] = sess
	s.mu.Unlock()
	s.engine.Up(sess.peer, sess.window)
	var writer sync.WaitGroup
	writer.Go(sess.write) // ends with the session

	status, err := sess.read()

	s.mu.Lock()
	delete(s.live, sess.peer)
	if ps.newest == sess {
		ps.newest = nil
	}
	s.mu.Unlock()
	s.engine.Down(sess.peer)
	<-ps.turn
	sess.closeOut()
	sess.stop(status)
	writer.Wait()
	return status, err
}
