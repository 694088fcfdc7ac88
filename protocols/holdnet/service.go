package holdnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/pb/holdpb"
	"github.com/tallystick/tally/protocols/internal/gate"
	"github.com/tallystick/tally/protocols/internal/wire"
)

const (
	// Protocol is the libp2p protocol of holds.
	Protocol protocol.ID = "/tally/hold/1.0.0"
	// ServiceName is what libp2p's resource manager calls us.
	ServiceName = "tally.hold"

	// maxRequest holds a park: a hold with its box. maxResponse holds a page of 32
	// holds. Part of the protocol: a longer frame resets the stream before anything
	// is allocated for it.
	maxRequest  = 1 << 10
	maxResponse = 32 << 10
	// maxServed and maxServedPeer bound the requests that are worked on at a time; see
	// package gate for what may be open besides.
	maxServed     = 64
	maxServedPeer = 4
	// serveTime bounds one request, with the save behind it.
	serveTime = 15 * time.Second
)

// Server answers for the node; *hold.Service does. From is who asks, as the
// connection has it.
type Server interface {
	Now() int64
	Park(ctx context.Context, from peer.ID, t *hold.Terms, limit tally.Amount, quote bool) (hold.Reply, error)
	ListFor(ctx context.Context, payee peer.ID, after hold.ID) ([]hold.Terms, bool, error)
	Release(ctx context.Context, from peer.ID, id hold.ID) error
	Cancel(ctx context.Context, from peer.ID, id hold.ID) (hold.State, error)
	Collect(holder peer.ID)
	Trader
}

var errBusy = errors.New("holdnet: too many requests of the peer are under way")

// Service carries requests both ways.
type Service struct {
	host host.Host
	log  *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	gate   *gate.Gate

	// mu guards server.
	mu     sync.Mutex
	server Server
}

var _ hold.Wire = (*Service)(nil)

// New returns a service that can ask, and answers after Serve.
func New(h host.Host, log *slog.Logger) *Service {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Service{host: h, log: log, gate: gate.New(gate.Limits{Total: maxServed, Peer: maxServedPeer})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Serve begins to answer.
func (s *Service) Serve(server Server) {
	s.mu.Lock()
	s.server = server
	s.mu.Unlock()
	s.host.SetStreamHandler(Protocol, s.handle)
}

// Close ends the requests of both ways and waits for those that are answered.
func (s *Service) Close() {
	s.host.RemoveStreamHandler(Protocol)
	s.mu.Lock()
	s.server = nil
	s.mu.Unlock()
	s.cancel()
	s.gate.Shut()
}

// answering is who answers; nil before Serve and after Close.
func (s *Service) answering() Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.server
}

// handle answers one request. What breaks the protocol is reset.
func (s *Service) handle(st network.Stream) {
	from := st.Conn().RemotePeer()
	pass := s.gate.Enter(from)
	if pass == nil {
		_ = st.Reset()
		return
	}
	defer pass.Leave()
	status, err := s.serve(st, pass, from)
	if err == nil {
		err = st.Close()
	}
	if err != nil {
		_ = st.Reset()
	}
	s.log.Debug("hold request", "peer", from, "status", status.String(), "err", err)
}

func (s *Service) serve(st network.Stream, pass *gate.Pass, from peer.ID) (holdpb.Status, error) {
	const none = holdpb.Status_STATUS_UNSPECIFIED
	server := s.answering()
	if server == nil || pass.Busy() {
		return none, errBusy
	}
	ctx, cancel := context.WithTimeout(s.ctx, serveTime)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = st.Reset() })()
	var q holdpb.Request
	if err := s.attach(st); err != nil {
		return none, err
	}
	defer st.Scope().ReleaseMemory(maxRequest + maxResponse)
	r := wire.NewReader(st, maxRequest)
	r.SetTimeout(serveTime, serveTime)
	if err := r.ReadMsg(&q); err != nil {
		return none, err
	}
	a, err := answer(ctx, server, s.host.ID(), from, &q)
	if err != nil {
		return none, err
	}
	a.ClockMs = uint64(max(0, server.Now()))
	pass.Answered()
	w := wire.NewWriter(st, maxResponse)
	w.SetTimeout(serveTime)
	return a.GetStatus(), errors.Join(w.WriteMsg(a), w.Flush())
}

// attach puts a stream under our name and its memory on the account.
func (s *Service) attach(st network.Stream) error {
	if err := st.Scope().SetService(ServiceName); err != nil {
		return fmt.Errorf("attach to service: %w", err)
	}
	if err := st.Scope().ReserveMemory(maxRequest+maxResponse, network.ReservationPriorityMedium); err != nil {
		return fmt.Errorf("reserve memory: %w", err)
	}
	return nil
}

// answer does what a peer asks for. An error is the peer's fault.
func answer(ctx context.Context, server Server, self, from peer.ID, q *holdpb.Request) (*holdpb.Response, error) {
	a := new(holdpb.Response)
	c, err := clockOf(server.Now(), q.GetClockMs())
	if err != nil {
		return nil, err
	}
	switch k := q.GetKind().(type) {
	case *holdpb.Request_Park:
		t, err := termsOf(k.Park.GetHold(), from, self, c)
		if err != nil {
			return nil, err
		}
		reply, err := server.Park(ctx, from, t, tally.Amount(k.Park.GetMaxPrice()), k.Park.GetQuote())
		a.Status = statusOf(err)
		a.Parked = &holdpb.Parked{Price: uint64(reply.Price), Charged: reply.Charged}
	case *holdpb.Request_List:
		var after hold.ID
		if b := k.List.GetAfter(); len(b) > 0 {
			if after, err = idOf(b); err != nil {
				return nil, err
			}
		}
		list, more, err := server.ListFor(ctx, from, after)
		a.Status = statusOf(err)
		a.Listed = &holdpb.Listed{More: more}
		for i := range list {
			a.Listed.Holds = append(a.Listed.Holds, wireHold(&list[i], true))
		}
	case *holdpb.Request_Release:
		id, err := idOf(k.Release.GetId())
		if err != nil {
			return nil, err
		}
		a.Status = statusOf(server.Release(ctx, from, id))
	case *holdpb.Request_Cancel:
		id, err := idOf(k.Cancel.GetId())
		if err != nil {
			return nil, err
		}
		_, err = server.Cancel(ctx, from, id)
		a.Status = statusOf(err)
	case *holdpb.Request_Poll:
		server.Collect(from)
		a.Status = holdpb.Status_STATUS_OK
	default:
		if err := trade(ctx, server, self, from, q, a); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// ask sends one request and reads its response. The clock is the peer's against ours.
func (s *Service) ask(ctx context.Context, to peer.ID, q *holdpb.Request) (*holdpb.Response, clock, error) {
	server := s.answering()
	if server == nil {
		return nil, clock{}, hold.ErrClosed
	}
	ctx, cancel := context.WithTimeout(ctx, serveTime)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	st, err := s.host.NewStream(ctx, to, Protocol)
	if err != nil {
		return nil, clock{}, fmt.Errorf("holdnet: reach %s: %w; connect to it first", to, err)
	}
	defer context.AfterFunc(ctx, func() { _ = st.Reset() })()
	defer func() { _ = st.Reset() }() // closed already where all went well
	if err := s.attach(st); err != nil {
		return nil, clock{}, err
	}
	defer st.Scope().ReleaseMemory(maxRequest + maxResponse)
	q.ClockMs = uint64(max(0, server.Now()))
	w := wire.NewWriter(st, maxRequest)
	if err := errors.Join(w.WriteMsg(q), w.Flush()); err != nil {
		return nil, clock{}, err
	}
	_ = st.CloseWrite() // fails where the peer was quicker: what it answered counts
	r := wire.NewReader(st, maxResponse)
	r.SetTimeout(serveTime, serveTime)
	a := new(holdpb.Response)
	if err := r.ReadMsg(a); err != nil {
		return nil, clock{}, fmt.Errorf("holdnet: response of %s: %w", to, err)
	}
	c, err := clockOf(server.Now(), a.GetClockMs())
	return a, c, err
}

// Park implements hold.Wire.
func (s *Service) Park(ctx context.Context, t *hold.Terms, price tally.Amount, quote bool) (hold.Reply, error) {
	a, _, err := s.ask(ctx, t.Holder, &holdpb.Request{Kind: &holdpb.Request_Park{
		Park: &holdpb.Park{Hold: wireHold(t, false), MaxPrice: uint64(price), Quote: quote},
	}})
	if err != nil {
		return hold.Reply{}, err
	}
	return hold.Reply{Price: tally.Amount(a.GetParked().GetPrice()), Charged: a.GetParked().GetCharged()}, errOf(t.Holder, a.GetStatus())
}

// List implements hold.Wire.
func (s *Service) List(ctx context.Context, holder peer.ID, after hold.ID) ([]hold.Terms, bool, error) {
	q := &holdpb.List{}
	if after != (hold.ID{}) {
		q.After = after[:]
	}
	a, c, err := s.ask(ctx, holder, &holdpb.Request{Kind: &holdpb.Request_List{List: q}})
	if err == nil {
		err = errOf(holder, a.GetStatus())
	}
	if err != nil {
		return nil, false, err
	}
	if len(a.GetListed().GetHolds()) > hold.ListPage {
		return nil, false, malformed("page")
	}
	list := make([]hold.Terms, 0, len(a.GetListed().GetHolds()))
	for _, h := range a.GetListed().GetHolds() {
		t, err := termsOf(h, "", holder, c)
		if err != nil {
			return nil, false, err
		}
		list = append(list, *t)
	}
	return list, a.GetListed().GetMore(), nil
}

// Release implements hold.Wire.
func (s *Service) Release(ctx context.Context, holder peer.ID, id hold.ID) error {
	return s.simple(ctx, holder, &holdpb.Request{Kind: &holdpb.Request_Release{Release: &holdpb.Release{Id: id[:]}}})
}

// Cancel implements hold.Wire.
func (s *Service) Cancel(ctx context.Context, party peer.ID, id hold.ID) error {
	return s.simple(ctx, party, &holdpb.Request{Kind: &holdpb.Request_Cancel{Cancel: &holdpb.Cancel{Id: id[:]}}})
}

// Poll implements hold.Wire. It goes to a payee that is connected, and dials one
// whose address is known.
func (s *Service) Poll(ctx context.Context, payee peer.ID, count int) error {
	return s.simple(ctx, payee, &holdpb.Request{Kind: &holdpb.Request_Poll{Poll: &holdpb.Poll{Holds: uint32(min(max(count, 0), 1<<20))}}})
}

func (s *Service) simple(ctx context.Context, to peer.ID, q *holdpb.Request) error {
	a, _, err := s.ask(ctx, to, q)
	if err != nil {
		return err
	}
	return errOf(to, a.GetStatus())
}
