package endpoint

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/compat/stream1"
)

const (
	// MaxConns bounds the connections of an endpoint. One that has been idle for
	// connIdle makes room.
	MaxConns = 1024
	connIdle = 60 * time.Second

	// maxStreams bounds the streams that each side of a connection may open over
	// its life; ids are at most twice that.
	maxStreams = 16
)

// ErrBusy: as many connections as there may be.
var ErrBusy = errors.New("endpoint: too many connections: close one, or wait a minute")

// StreamConfig is what a STREAM endpoint needs.
type StreamConfig struct {
	Address    ilp.Address     // ours; addresses of connections lie under it
	Secret     envelope.Secret // derives the secrets of our tokens
	AssetCode  string
	AssetScale uint8
	Via        compat.Handler // takes what we send; may be nil where we only receive

	// ReceiveMax is what one connection may receive in all, over its streams.
	ReceiveMax tally.Amount
	// Room, where set, is what a token may receive now, over its connections: what
	// peers are told, and no more. Receive decides.
	Room func(token string) tally.Amount
	// Receive books what arrived, saved when it returns. It is called at the same
	// time from many goroutines. An error rejects the packet, as one whose ID was
	// booked before has to be: the endpoint itself forgets over a restart.
	Receive func(context.Context, StreamMoney) error

	Journal   Journal                 // may be nil where we only receive
	Undecided iter.Seq[envelope.Mark] // what Journal had when we stopped; may be nil
}

// StreamMoney is money that arrived.
type StreamMoney struct {
	ID       envelope.Mark // names the packet, for ever
	Token    string        // the segment of the address after ours
	Sequence uint64
	Amount   tally.Amount
}

// Stream is an endpoint of STREAM. It implements compat.Handler.
type Stream struct {
	cfg  StreamConfig
	link *link

	mu    sync.Mutex // guards conns
	conns map[string]*Conn
}

// NewStream returns an endpoint.
func NewStream(cfg StreamConfig) (*Stream, error) {
	if err := (ilp.Config{Address: cfg.Address, AssetCode: cfg.AssetCode}).Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if cfg.Receive == nil && cfg.ReceiveMax > 0 {
		return nil, fmt.Errorf("%w: nothing books what arrives", ErrConfig)
	}
	if _, err := cfg.ReceiveMax.Balance(); err != nil {
		return nil, fmt.Errorf("%w: receive max: %w", ErrConfig, ErrAmount)
	}
	return &Stream{
		cfg: cfg, link: newLink(cfg.Via, cfg.Journal, cfg.Undecided), conns: make(map[string]*Conn),
	}, nil
}

// Open returns a new address of ours and the secret to share for it. Nothing is
// kept.
func (e *Stream) Open() (Peer, error) { return e.At(newToken()) }

// At returns the address of a token that the caller drew, of at most 192 bytes, and
// the secret to share for it.
func (e *Stream) At(token []byte) (Peer, error) {
	address, err := e.cfg.Address.Join(segmentOf(token))
	return Peer{Address: address, Secret: stream1.SharedSecret(e.cfg.Secret, token)}, err
}

// Prepare answers a packet.
func (e *Stream) Prepare(ctx context.Context, p *ilp.Prepare) ilp.Reply {
	segment, token, ok := tokenOf(p.Destination, e.cfg.Address)
	if !ok {
		return e.reject(ilp.CodeUnreachable)
	}
	if _, err := p.Amount.Balance(); err != nil {
		return e.reject(ilp.CodeInvalidAmount)
	}
	if !inTime(p) {
		return e.reject(ilp.CodeInsufficientTimeout)
	}
	if e.link.reflected(p.Data) {
		return e.reject(ilp.CodeApplication)
	}
	c := e.conn(segment)
	fresh := c == nil
	if fresh {
		c = newConn(e, segment, stream1.NewKeys(stream1.SharedSecret(e.cfg.Secret, token)))
	}
	plain, err := c.keys.Open(p.Data)
	if err != nil {
		if fresh {
			return e.reject(ilp.CodeUnreachable)
		}
		return e.reject(ilp.CodeUnexpectedPayment)
	}
	q, err := stream1.DecodePacket(plain)
	if err != nil || q.Type != ilp.TypePrepare {
		return e.reject(ilp.CodeUnexpectedPayment)
	}
	// Authentic: only now is there anything to remember.
	if fresh {
		if c, err = e.enter(c); err != nil {
			return e.reject(ilp.CodePeerBusy)
		}
	}
	return c.take(ctx, p, q)
}

func (e *Stream) reject(code ilp.Code) ilp.Reply {
	return &ilp.Reject{Code: code, TriggeredBy: e.cfg.Address}
}

func (e *Stream) conn(segment string) *Conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.conns[segment]
}

// enter keeps c, or returns the one that another packet has entered meanwhile.
func (e *Stream) enter(c *Conn) (*Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if old := e.conns[c.segment]; old != nil {
		return old, nil
	}
	if len(e.conns) >= MaxConns {
		for segment, old := range e.conns {
			if old.idle(time.Now()) {
				delete(e.conns, segment)
			}
		}
	}
	if len(e.conns) >= MaxConns {
		return nil, ErrBusy
	}
	e.conns[c.segment] = c
	return c, nil
}
