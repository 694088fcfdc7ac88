package storenet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/protocols/internal/gate"
	"github.com/tallystick/tally/protocols/internal/wire"
)

// Status of a request. Those of 3.0.0 go on the wire as they are; 2.0.0-beta4
// has fewer words, see historyError.
type Status uint32

// The statuses of an answer.
const (
	StatusOK              Status = 200
	StatusBadRequest      Status = 400 // the request is wrong; the description says what
	StatusPaymentRequired Status = 402 // the tab is full; the description says what is owed
	StatusTooManyRequests Status = 429 // too many requests under way
	StatusUnavailable     Status = 503 // our fault; try later

	// statusReset is not on the wire: the stream was reset without an answer.
	statusReset Status = 0
	// statusBadCursor is a StatusBadRequest with a name of its own in beta4.
	statusBadCursor Status = 4001
)

// Outcome is how one stream ended, for logs and metrics.
type Outcome struct {
	Peer     peer.ID
	Protocol protocol.ID
	Status   Status       // 0: the stream was reset
	Units    tally.Amount // booked
	Messages int          // in the response
	Duration time.Duration
	Err      error // what was wrong, or why the response did not leave
}

// Config of a Server.
type Config struct {
	// Limits; the zero value means DefaultLimits.
	Limits Limits

	// Meter is the tab that service is booked on. Nil serves for nothing.
	Meter Meter

	// Cluster and Shards are what metadata answers. A js-waku client asks only
	// peers of its own cluster that have the shard of its topic.
	Cluster uint32
	Shards  []uint32

	// Logger; nil is slog.Default().
	Logger *slog.Logger

	// Observe is called at the end of each stream, on its goroutine. Nil is
	// allowed.
	Observe func(Outcome)
}

// Server answers the three protocols on a host.
type Server struct {
	host   host.Host
	store  *Store
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	gate   *gate.Gate
}

// NewServer sets the handlers on h. It owns neither h nor store. Error:
// ErrLimits.
func NewServer(h host.Host, store *Store, cfg Config) (*Server, error) {
	if cfg.Limits == (Limits{}) {
		cfg.Limits = DefaultLimits()
	}
	if err := cfg.Limits.Validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Server{host: h, store: store, cfg: cfg, gate: gate.New(gate.Limits{Total: cfg.Limits.MaxRequests, Peer: cfg.Limits.MaxPeerRequests})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	h.SetStreamHandler(QueryID, func(st network.Stream) { s.handle(st, s.serveQuery) })
	h.SetStreamHandler(HistoryID, func(st network.Stream) { s.handle(st, s.serveHistory) })
	h.SetStreamHandler(MetadataID, func(st network.Stream) { s.handle(st, s.serveMetadata) })
	return s, nil
}

// Close removes the handlers, ends the requests under way and waits for them.
func (s *Server) Close() error {
	for _, id := range []protocol.ID{QueryID, HistoryID, MetadataID} {
		s.host.RemoveStreamHandler(id)
	}
	s.cancel()
	s.gate.Shut()
	return nil
}

// exchange is one stream with its limits.
type exchange struct {
	stream network.Stream
	peer   peer.ID
	pass   *gate.Pass
	memory int // reserved, bytes
	out    Outcome
}

// handle is the frame around every handler: service, slot, memory, deadline,
// and one place that ends the stream and tells how it went.
func (s *Server) handle(st network.Stream, serve func(context.Context, *exchange) Status) {
	start := time.Now()
	x := &exchange{stream: st, peer: st.Conn().RemotePeer()}
	x.out.Peer, x.out.Protocol = x.peer, st.Protocol()

	if x.pass = s.gate.Enter(x.peer); x.pass == nil {
		_ = st.Reset()
		return
	}
	defer x.pass.Leave()

	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.Limits.RequestTimeout)
	defer cancel()
	// Resets the stream under a reader or writer that is too slow, or at Close.
	stop := context.AfterFunc(ctx, func() { _ = st.Reset() })
	defer stop()

	x.out.Status = s.reserve(ctx, x, serve)
	if x.out.Status == statusReset || x.out.Err != nil && x.out.Status == StatusOK {
		_ = st.Reset()
	} else if err := st.Close(); err != nil {
		_ = st.Reset()
	}
	x.pass.Answered() // before the report: who reads it may count on the place
	x.out.Duration = time.Since(start)
	s.report(x.out)
}

// reserve takes the memory of the request and runs the handler.
func (s *Server) reserve(ctx context.Context, x *exchange, serve func(context.Context, *exchange) Status) Status {
	if err := x.stream.Scope().SetService(ServiceName); err != nil {
		x.out.Err = fmt.Errorf("attach to service: %w", err)
		return statusReset
	}
	defer func() { x.stream.Scope().ReleaseMemory(x.memory) }()
	if err := x.take(s.cfg.Limits.MaxRequestBytes, network.ReservationPriorityAlways); err != nil {
		x.out.Err = err
		return statusReset
	}
	return serve(ctx, x)
}

// take reserves n more bytes until the stream ends.
func (x *exchange) take(n int, priority uint8) error {
	if err := x.stream.Scope().ReserveMemory(n, priority); err != nil {
		return fmt.Errorf("reserve %d bytes: %w", n, err)
	}
	x.memory += n
	return nil
}

func (s *Server) report(o Outcome) {
	if s.cfg.Observe != nil {
		s.cfg.Observe(o)
	}
	if o.Err == nil && o.Status == StatusOK {
		s.cfg.Logger.Debug("store request served", "peer", o.Peer, "protocol", o.Protocol,
			"messages", o.Messages, "units", uint64(o.Units), "duration", o.Duration)
		return
	}
	level := slog.LevelDebug
	if o.Status == StatusUnavailable {
		level = slog.LevelError
	}
	s.cfg.Logger.Log(s.ctx, level, "store request not served", "peer", o.Peer, "protocol", o.Protocol,
		"status", uint32(o.Status), "units", uint64(o.Units), "duration", o.Duration, "err", o.Err)
}

// read reads the one request frame into m. reset says that there is nobody to
// answer; else a bad frame is answered with StatusBadRequest.
func (s *Server) read(x *exchange, m proto.Message, maxFrame int) (reset bool, err error) {
	r := wire.NewReader(x.stream, maxFrame)
	err = r.ReadMsg(m)
	switch {
	case err == nil:
		return false, nil
	case errors.Is(err, wire.ErrGarbage), errors.Is(err, wire.ErrFrameTooLarge):
		return false, err
	default:
		return true, err
	}
}

// write sends the one response frame. Its error goes into the outcome.
func (s *Server) write(x *exchange, m proto.Message, maxFrame int) {
	w := wire.NewWriter(x.stream, maxFrame)
	w.SetTimeout(s.cfg.Limits.RequestTimeout)
	err := w.WriteMsg(m)
	if err == nil {
		err = w.Flush()
	}
	x.pass.Answered()
	if err != nil {
		x.out.Err = errors.Join(x.out.Err, fmt.Errorf("answer: %w", err))
	}
}

// refusal is a request that is not served: what to say and why.
type refusal struct {
	status Status
	err    error
}

func refuse(status Status, format string, args ...any) *refusal {
	return &refusal{status: status, err: fmt.Errorf(format, args...)}
}

// desc is the text for the peer.
func (r *refusal) desc() string { return cut(r.err.Error()) }

// cut makes text of ours or of a peer fit to be sent or kept.
func cut(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxDesc)], "?")
}

// limit turns the page size asked for into one that is served.
func (s *Server) limit(asked uint64) int {
	if asked == 0 {
		return s.cfg.Limits.DefaultPage
	}
	return int(min(asked, uint64(s.cfg.Limits.MaxPage)))
}

// checkFilter holds the parts that both protocols share to the limits.
func (s *Server) checkFilter(f *Filter) *refusal {
	l := s.cfg.Limits
	if n := len(f.ContentTopics); n > l.MaxContentTopics {
		return refuse(StatusBadRequest, "%d content topics, limit %d", n, l.MaxContentTopics)
	}
	for _, topic := range f.ContentTopics {
		if topic == "" {
			return refuse(StatusBadRequest, "a content topic is empty")
		}
	}
	if f.Start != 0 && f.End != 0 && f.Start > f.End {
		return refuse(StatusBadRequest, "the time range ends (%d) before it starts (%d)", f.End, f.Start)
	}
	return nil
}

// serveAttempts bounds how often a page is cut because others used the headroom
// between the look at it and the reservation. Each cut at least halves the page,
// so a page of 100 is at one message after seven.
const serveAttempts = 8

// fetch reads a page and books it. When it returns a page without refusal the
// booking is committed; the caller must send the page and book nothing back.
func (s *Server) fetch(ctx context.Context, x *exchange, r PageRequest) (Page, *refusal) {
	if err := x.take(s.cfg.Limits.MaxResponseBytes, network.ReservationPriorityMedium); err != nil {
		x.out.Err = err
		return Page{}, refuse(StatusUnavailable, "busy: no memory for a response now")
	}
	r.MaxBytes = s.cfg.Limits.MaxResponseBytes - responseOverhead
	meter := s.cfg.Meter
	if meter != nil {
		// Without headroom one message is still looked for: a peer that has all
		// of them is told so, and pays nothing for it.
		r.Limit = min(r.Limit, int(min(max(meter.HeadroomServe(x.peer), 1), tally.Amount(r.Limit))))
	}
	page, err := s.store.Page(ctx, r)
	switch {
	case errors.Is(err, ErrCursor):
		return Page{}, &refusal{status: statusBadCursor, err: err}
	case err != nil:
		x.out.Err = err
		return Page{}, refuse(StatusUnavailable, "the store cannot be read")
	case len(page.Entries) == 0 || meter == nil:
		return page, nil
	}
	for range serveAttempts {
		units := tally.Amount(len(page.Entries))
		hold, err := meter.Serve(ctx, x.peer, units)
		if err == nil {
			if err := hold.Commit(units); err != nil {
				x.out.Err = fmt.Errorf("book %d units: %w", units, err)
				return Page{}, refuse(StatusUnavailable, "the ledger cannot be written")
			}
			x.out.Units = units
			return page, nil
		}
		if ctx.Err() != nil {
			return Page{}, refuse(StatusUnavailable, "ended before it was served")
		}
		fits := min(meter.HeadroomServe(x.peer), units/2)
		if fits == 0 {
			return Page{}, &refusal{status: StatusPaymentRequired, err: err}
		}
		page.trim(int(fits), r.Backward)
	}
	return Page{}, refuse(StatusPaymentRequired, "the headroom changes too fast; ask again")
}
