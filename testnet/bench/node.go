package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/tallystick/tally/swap"
)

// echoBuffer of the streams of node: one small request at a time.
const echoBuffer = 4 << 10

// nodeSession is one client with its two long-lived streams. A client keeps no
// book: a thousand of them with a write-behind each would be most of the load,
// and what is measured is the one node that serves them.
type nodeSession struct {
	raw    network.Stream
	echo   network.Stream
	rawIn  reader
	echoIn reader
	msg    []byte
}

// ask does one request and waits for the answer.
func (s *nodeSession) ask(accounted bool) error {
	st, in := s.raw, s.rawIn
	if accounted {
		st, in = s.echo, s.echoIn
	}
	if _, err := st.Write(s.msg); err != nil {
		return err
	}
	_, err := in.next()
	return err
}

// serveEcho answers each request of a stream; book is nil for the limit.
func serveEcho(book *swap.Book) network.StreamHandler {
	return func(s network.Stream) { // ends with the stream
		defer s.Close()
		in, msg, p := newReader(s, echoBuffer), frames(1), s.Conn().RemotePeer()
		for {
			if _, err := in.next(); err != nil {
				return
			}
			if book != nil {
				if err := book.Debit(p, service, 1); err != nil && !errors.Is(err, swap.ErrOverThreshold) {
					_ = s.Reset()
					return
				}
			}
			if _, err := s.Write(msg); err != nil {
				return
			}
		}
	}
}

// benchNode measures one node that serves many peers, each with one request
// under way.
func benchNode(ctx context.Context, o *Options) (figures []Figure, err error) {
	for _, t := range []struct {
		over transport
		goal float64
	}{{overTCP, 80e3}, {overQUIC, 105e3}} {
		list, err := nodeOver(ctx, o, t.over, t.goal)
		if err != nil {
			return nil, fmt.Errorf("over %s: %w", t.over, err)
		}
		figures = append(figures, list...)
	}
	return figures, nil
}

func nodeOver(ctx context.Context, o *Options, over transport, goal float64) (figures []Figure, err error) {
	few, many := scale(o, 64, 2), scale(o, 1000, 5)
	dir, remove, err := o.folder()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	store, err := openDisk(dir)
	if err != nil {
		return nil, err
	}
	hub, err := newParty(ctx, partyConfig{transport: over, policy: wide(), store: store})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, hub.close()) }()
	hub.host.SetStreamHandler(protocolRaw, serveEcho(nil))
	hub.host.SetStreamHandler(protocolEcho, serveEcho(hub.book))
	if err := hub.swap.Start(); err != nil {
		return nil, err
	}
	o.say("node: %d clients over %s", many, over)
	clients, err := crowd(ctx, many, partyConfig{transport: over}, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, disperse(clients)) }()
	sessions := make([]*nodeSession, many)
	if err := each(many, 8, func(i int) (err error) {
		sessions[i], err = newNodeSession(ctx, clients[i], hub)
		return err
	}); err != nil {
		return nil, err
	}

	o.say("node: requests over %s", over)
	var lats [2][]time.Duration
	fewRun, manyRun := nodeRun(sessions[:few], true, &lats[0]), nodeRun(sessions, true, &lats[1])
	fewRaw, manyRaw := nodeRun(sessions[:few], false, nil), nodeRun(sessions, false, nil)
	m, err := rounds(ctx, o, fewRun, fewRaw, manyRun, manyRaw)
	if err != nil {
		return nil, err
	}
	drop := 100 * (1 - m[2].median()/m[0].median())
	for i, n := range []int{few, many} {
		f := rate(fmt.Sprintf("node/%s/%d", over, n), "requests/s", m[2*i], m[2*i+1], "the same echo, nobody counts", goal).
			with("peers", n).with("connected", many).
			note("server and clients share the machine; 100 bytes each way, one request of a peer under way")
		f = f.withCPU(m[2*i], m[2*i+1])
		f.P50, f.P99 = percentiles(lats[i])
		if i == 1 {
			f = f.with("drop_percent", drop).with("drop_goal_percent", 20).note("drop is against %d peers in the same run", few)
			f.GoalMet = f.GoalMet && drop <= 20
		}
		figures = append(figures, f)
	}
	return figures, nil
}

func newNodeSession(ctx context.Context, c, hub *party) (_ *nodeSession, err error) {
	if err := c.dial(ctx, hub); err != nil {
		return nil, err
	}
	s := &nodeSession{msg: frames(1)}
	if s.raw, err = c.host.NewStream(ctx, hub.id(), protocolRaw); err != nil {
		return nil, err
	}
	if s.echo, err = c.host.NewStream(ctx, hub.id(), protocolEcho); err != nil {
		return nil, err
	}
	s.rawIn, s.echoIn = newReader(s.raw, echoBuffer), newReader(s.echo, echoBuffer)
	return s, errors.Join(s.ask(false), s.ask(true))
}

// nodeRun has all sessions ask for d. It keeps every 16th latency.
func nodeRun(sessions []*nodeSession, accounted bool, keep *[]time.Duration) probe {
	return func(_ context.Context, d time.Duration) (float64, error) {
		var (
			total atomic.Int64
			mu    sync.Mutex // guards keep
			begin = time.Now()
		)
		err := each(len(sessions), len(sessions), func(i int) error {
			var lats []time.Duration
			n := int64(0)
			for at := begin; at.Sub(begin) < d; n++ {
				if err := sessions[i].ask(accounted); err != nil {
					return err
				}
				now := time.Now()
				if keep != nil && n%16 == 0 {
					lats = append(lats, now.Sub(at))
				}
				at = now
			}
			total.Add(n)
			if keep != nil {
				mu.Lock()
				*keep = slices.Concat(*keep, lats)
				mu.Unlock()
			}
			return nil
		})
		return float64(total.Load()) / time.Since(begin).Seconds(), err
	}
}
