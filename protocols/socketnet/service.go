package socketnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/pb/socketpb"
	"github.com/tallystick/tally/protocols/internal/gate"
	"github.com/tallystick/tally/protocols/internal/wire"
)

const (
	// ID is the protocol.
	ID protocol.ID = "/tally/socket/1.0.0"
	// ServiceName is what rcmgr counts our streams under.
	ServiceName = "tally.socketnet"

	// maxFrame bounds a request, and an answer: a token, a secret, and tags.
	maxFrame = 512
	// maxAsking and maxAskingPeer bound the questions that are worked on at a time; see
	// package gate for what may be open besides. An answer takes microseconds; what
	// lasts is a peer that asks slowly.
	maxAsking     = 64
	maxAskingPeer = 4
	// askTime bounds one question on either side.
	askTime = 10 * time.Second
)

// Errors of Ask.
var (
	// ErrRefused: the peer opens no socket without a URI.
	ErrRefused = errors.New("socketnet: the peer takes no socket without a URI; ask it for one")
	// ErrBusy: too many ask it now.
	ErrBusy = errors.New("socketnet: the peer is busy; try again")
	// ErrAnswer: the answer is none.
	ErrAnswer = errors.New("socketnet: answer of the peer does not fit")
)

// Setup is what opens a socket. Its secret must not be logged.
type Setup struct {
	Token  paystream.Token
	Secret paystream.Secret
}

// Config is what a Service can be told.
type Config struct {
	// Give makes a token for a peer, or refuses. It must not wait. Nil: nobody
	// gets one.
	Give func(from peer.ID) (Setup, error)
	// Logger, nil is none.
	Logger *slog.Logger
}

// Service asks and answers on one host.
type Service struct {
	host   host.Host
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	gate   *gate.Gate
}

// New serves the protocol on h until Close.
func New(h host.Host, cfg Config) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Service{host: h, cfg: cfg, gate: gate.New(gate.Limits{Total: maxAsking, Peer: maxAskingPeer})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	h.SetStreamHandler(ID, s.handle)
	return s
}

// Close removes the handler and waits for the questions under way.
func (s *Service) Close() {
	s.host.RemoveStreamHandler(ID)
	s.cancel()
	s.gate.Shut()
}

// handle answers one question. A peer that asks too much at a time is reset: it
// would have to be waited for to be told so.
func (s *Service) handle(st network.Stream) {
	from := st.Conn().RemotePeer()
	pass := s.gate.Enter(from)
	if pass == nil {
		_ = st.Reset()
		return
	}
	defer pass.Leave()
	status, err := s.serve(st, pass, from)
	if err != nil {
		_ = st.Reset()
	} else if err = st.Close(); err != nil {
		_ = st.Reset()
	}
	s.cfg.Logger.Debug("socket setup", "peer", from, "status", status.String(), "err", err)
}

func (s *Service) serve(st network.Stream, pass *gate.Pass, from peer.ID) (socketpb.Status, error) {
	const none = socketpb.Status_STATUS_UNSPECIFIED
	if pass.Busy() {
		return none, ErrBusy
	}
	if err := st.Scope().SetService(ServiceName); err != nil {
		return none, fmt.Errorf("attach to service: %w", err)
	}
	if err := st.Scope().ReserveMemory(2*maxFrame, network.ReservationPriorityMedium); err != nil {
		return none, fmt.Errorf("reserve memory: %w", err)
	}
	defer st.Scope().ReleaseMemory(2 * maxFrame)
	defer context.AfterFunc(s.ctx, func() { _ = st.Reset() })()
	r := wire.NewReader(st, maxFrame)
	r.SetTimeout(askTime, askTime)
	if err := r.ReadMsg(&socketpb.SetupRequest{}); err != nil {
		return none, err
	}
	answer := &socketpb.SetupResponse{Status: socketpb.Status_STATUS_REFUSED}
	if s.cfg.Give != nil {
		if got, err := s.cfg.Give(from); err == nil {
			answer = &socketpb.SetupResponse{Status: socketpb.Status_STATUS_OK, Token: got.Token[:], Secret: got.Secret[:]}
		}
	}
	pass.Answered()
	w := wire.NewWriter(st, maxFrame)
	w.SetTimeout(askTime)
	return answer.GetStatus(), errors.Join(w.WriteMsg(answer), w.Flush())
}

// Ask asks a peer, which it dials where that is needed and an address is known.
func (s *Service) Ask(ctx context.Context, to peer.ID) (Setup, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	st, err := s.host.NewStream(ctx, to, ID)
	if err != nil {
		return Setup{}, err
	}
	defer context.AfterFunc(ctx, func() { _ = st.Reset() })()
	defer func() { _ = st.Reset() }() // closed already where all went well
	if err := st.Scope().SetService(ServiceName); err != nil {
		return Setup{}, err
	}
	w := wire.NewWriter(st, maxFrame)
	if err := errors.Join(w.WriteMsg(&socketpb.SetupRequest{}), w.Flush()); err != nil {
		return Setup{}, err
	}
	_ = st.CloseWrite() // fails where the peer was quicker: what it answered counts
	r := wire.NewReader(st, maxFrame)
	r.SetTimeout(askTime, askTime)
	var answer socketpb.SetupResponse
	if err := r.ReadMsg(&answer); err != nil {
		return Setup{}, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	return parseSetup(&answer)
}

func parseSetup(m *socketpb.SetupResponse) (Setup, error) {
	switch m.GetStatus() {
	case socketpb.Status_STATUS_OK:
	case socketpb.Status_STATUS_REFUSED:
		return Setup{}, ErrRefused
	case socketpb.Status_STATUS_BUSY:
		return Setup{}, ErrBusy
	default:
		return Setup{}, fmt.Errorf("%w: status %d", ErrAnswer, m.GetStatus())
	}
	if len(m.GetToken()) != paystream.TokenSize || len(m.GetSecret()) != len(paystream.Secret{}) {
		return Setup{}, fmt.Errorf("%w: token of %d bytes, secret of %d", ErrAnswer, len(m.GetToken()), len(m.GetSecret()))
	}
	return Setup{Token: paystream.Token(m.GetToken()), Secret: paystream.Secret(m.GetSecret())}, nil
}
