package swapnet

import (
	"container/heap"
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
)

// eventBuffer is what libp2p may queue for us; the loop that takes it only
// touches maps.
const eventBuffer = 256

// openQueue holds the peers that wait to be opened to, the next first.
type openQueue []*peerState

func (q openQueue) Len() int           { return len(q) }
func (q openQueue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q openQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *openQueue) Push(x any) {
	ps := x.(*peerState)
	ps.place = len(*q)
	*q = append(*q, ps)
}

func (q *openQueue) Pop() any {
	last := len(*q) - 1
	ps := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	ps.due = time.Time{}
	return ps
}

func (s *Service) subscribe() (event.Subscription, error) {
	return s.host.EventBus().Subscribe([]any{
		new(event.EvtPeerIdentificationCompleted),
		new(event.EvtPeerProtocolsUpdated),
		new(event.EvtPeerConnectednessChanged),
	}, eventbus.BufSize(eventBuffer), eventbus.Name(ServiceName))
}

// open runs until the service closes: it takes events of the host and starts
// what is due.
func (s *Service) open(events event.Subscription) {
	defer events.Close()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(s.openDue())
		select {
		case <-s.netCtx.Done():
			return
		case <-s.wake:
		case <-timer.C:
		case e, ok := <-events.Out():
			if !ok {
				return
			}
			s.see(e)
		}
	}
}

func (s *Service) see(e any) {
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

// consider queues a connected peer that speaks swap: at once where we dialled
// it, else when it had time to open to us.
func (s *Service) consider(p peer.ID) {
	delay := s.lim.OpenGrace
	if s.dialled(p) {
		delay = 0
	}
	s.enqueue(p, delay)
}

// again queues a peer whose stream ended, after a pause that grows while
// sessions fail.
func (s *Service) again(p peer.ID, since time.Time, status Status) {
	s.mu.Lock()
	ps := s.peers[p]
	if ps == nil || s.closed {
		s.forget(p)
		s.mu.Unlock()
		return
	}
	switch {
	case status == StatusTieBreak, status == StatusReplaced, status == StatusDuplicate, status == StatusTooMany, status == StatusTooOften:
		// Says nothing of whether a session is possible.
	case !since.IsZero() && s.now().Sub(since) > s.lim.Overlap:
		ps.failures = 0
	default:
		ps.failures++
	}
	pause := s.lim.RetryMin << min(max(ps.failures-1, 0), 20)
	if pause > s.lim.RetryMax || pause < s.lim.RetryMin {
		pause = s.lim.RetryMax
	}
	ps.notBefore = s.now().Add(pause)
	s.mu.Unlock()
	if !s.dialled(p) {
		pause += s.lim.OpenGrace
	}
	if status != StatusClosed {
		s.enqueue(p, pause)
	}
	s.mu.Lock()
	s.forget(p)
	s.mu.Unlock()
}

// enqueue has the opener look at p after delay, or earlier where it was to.
func (s *Service) enqueue(p peer.ID, delay time.Duration) {
	if !s.speaks(p) || s.host.Network().Connectedness(p) != network.Connected {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	ps := s.peerState(p)
	due := s.now().Add(delay)
	if due.Before(ps.notBefore) {
		due = ps.notBefore
	}
	switch {
	case ps.due.IsZero():
		if len(s.queue) >= s.lim.OpenQueue {
			s.count.openDropped.Add(1)
			return
		}
		ps.due = due
		heap.Push(&s.queue, ps)
	case due.Before(ps.due):
		ps.due = due
		heap.Fix(&s.queue, ps.place)
	default:
		return
	}
	s.wakeOpener()
}

func (s *Service) wakeOpener() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// openDue starts what is due, as far as Limits.Openers allows, and returns how
// long the next has time.
func (s *Service) openDue() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) > 0 && s.openers < s.lim.Openers && !s.closed {
		if wait := s.queue[0].due.Sub(s.now()); wait > 0 {
			return wait
		}
		ps := heap.Pop(&s.queue).(*peerState)
		if ps.opening || len(ps.sessions) > 0 || ps.tab != nil || s.host.Network().Connectedness(ps.id) != network.Connected {
			s.forget(ps.id)
			continue
		}
		ps.opening = true
		s.openers++
		s.wg.Go(func() { s.openTo(ps.id) }) // ends with its stream
	}
	return time.Hour // an opener that ends wakes the loop
}

// openTo opens a stream to p and runs it.
func (s *Service) openTo(p peer.ID) {
	ctx, cancel := context.WithTimeout(s.netCtx, s.lim.HandshakeTimeout)
	ctx = network.WithNoDial(ctx, "swap opens to connected peers only")
	st, err := s.host.NewStream(ctx, p, ProtocolNative, ProtocolAlpha1)
	cancel()

	s.mu.Lock()
	s.openers--
	s.mu.Unlock()
	s.wakeOpener()
	if err != nil {
		s.opened(p)
		s.count.end(ProtocolNative, StatusOpenFailed)
		s.log.Debug("swap stream not opened", "peer", p, "err", err)
		s.again(p, time.Time{}, StatusOpenFailed)
		return
	}
	s.runStream(st, false)
}

// opened tells that no stream to p is being opened any more.
func (s *Service) opened(p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ps := s.peers[p]; ps != nil {
		ps.opening = false
	}
}

// dialled tells whether we opened a connection to p.
func (s *Service) dialled(p peer.ID) bool {
	for _, c := range s.host.Network().ConnsToPeer(p) {
		if c.Stat().Direction == network.DirOutbound {
			return true
		}
	}
	return false
}

// speaks tells whether p is known to take a protocol that we open.
func (s *Service) speaks(p peer.ID) bool {
	known, err := s.host.Peerstore().SupportsProtocols(p, ProtocolNative, ProtocolAlpha1)
	return err == nil && len(known) > 0
}
