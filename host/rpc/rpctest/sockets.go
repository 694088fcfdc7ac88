package rpctest

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/paystream"
)

var _ rpc.Sockets = (*Sockets)(nil)

// Sockets is one socket with Peer, and URIs that are used up, for tests of what
// shows them.
type Sockets struct {
	Peer string // the only one that can be reached

	// mu guards the fields below.
	mu   sync.Mutex
	row  rpc.SocketRow
	data []byte
}

func (s *Sockets) with(id paystream.SocketID, fn func(*rpc.SocketRow)) (rpc.SocketRow, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id.String() != s.row.ID {
		return rpc.SocketRow{}, rpc.NewError(rpc.CodeNoSocket, "no socket %s", id)
	}
	fn(&s.row)
	return s.row, nil
}

// Open opens the socket.
func (s *Sockets) Open(_ context.Context, to peer.ID, _ *paystream.URI, _ []peer.ID, t paystream.Terms) (rpc.SocketRow, error) {
	if to.String() != s.Peer {
		return rpc.SocketRow{}, rpc.NewError(rpc.CodeNoWay, "no way to %s", to)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.row = rpc.SocketRow{
		ID: strings.Repeat("ab", 16), Peer: s.Peer, Role: "client", Min: rpc.LimitOf(t.Min), Max: rpc.LimitOf(t.Max),
		Wanted: "inf", InFlight: 7, Rate: 0.99, Verdict: "compatible", Asset: "karma",
	}
	return s.row, nil
}

// Redeem finds every URI used up.
func (s *Sockets) Redeem(_ context.Context, u paystream.URI, _ []peer.ID, _, _ *paystream.Limit) (rpc.SocketRow, error) {
	return rpc.SocketRow{}, rpc.NewError(rpc.CodeSpent, "the %s of %d is used up", u.Use, u.Amount)
}

// List returns the socket, once it is open.
func (s *Sockets) List(context.Context) ([]rpc.SocketRow, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.row.ID == "" {
		return nil, nil
	}
	return []rpc.SocketRow{s.row}, nil
}

// Get returns it, settled.
func (s *Sockets) Get(_ context.Context, id paystream.SocketID) (rpc.SocketRow, error) {
	return s.with(id, func(r *rpc.SocketRow) {
		r.Settled, r.InFlight, r.Balance, r.Sent, r.Loss = true, 0, -100, 100, 1 // at the first look
	})
}

// SetLimits sets its limits.
func (s *Sockets) SetLimits(_ context.Context, id paystream.SocketID, low, high paystream.Limit) (rpc.SocketRow, error) {
	return s.with(id, func(r *rpc.SocketRow) { r.Min, r.Max = rpc.LimitOf(low), rpc.LimitOf(high) })
}

// Pay counts as sent.
func (s *Sockets) Pay(_ context.Context, id paystream.SocketID, n uint64) (rpc.SocketRow, error) {
	return s.with(id, func(r *rpc.SocketRow) { r.Sent += n })
}

// Charge counts as received.
func (s *Sockets) Charge(_ context.Context, id paystream.SocketID, n uint64) (rpc.SocketRow, error) {
	return s.with(id, func(r *rpc.SocketRow) { r.Received += n })
}

// Close notes it.
func (s *Sockets) Close(_ context.Context, id paystream.SocketID) (rpc.SocketRow, error) {
	return s.with(id, func(r *rpc.SocketRow) { r.Note = "closed" })
}

// Send counts the bytes, and keeps them for Receive.
func (s *Sockets) Send(_ context.Context, id paystream.SocketID, stream uint64, data []byte, end bool) (rpc.StreamRow, error) {
	_, err := s.with(id, func(r *rpc.SocketRow) {
		r.DataSent += uint64(len(data))
		s.data = append(s.data, data...)
	})
	return rpc.StreamRow{Stream: max(stream, 1), End: end}, err
}

// Receive returns what was sent, and then the end.
func (s *Sockets) Receive(_ context.Context, id paystream.SocketID, stream uint64) (rpc.StreamRow, error) {
	row := rpc.StreamRow{Stream: 1, End: stream != 0}
	_, err := s.with(id, func(*rpc.SocketRow) {
		if stream != 0 {
			row.Data, s.data = s.data, nil
		}
	})
	return row, err
}

// Create makes a URI that opens nothing.
func (s *Sockets) Create(_ context.Context, use paystream.Use, n uint64, _, _ *paystream.Limit, _ time.Time, _ time.Duration) (rpc.URIRow, error) {
	id, err := peer.Decode(s.Peer)
	if err != nil {
		return rpc.URIRow{}, err
	}
	u := paystream.URI{Peer: id, Use: use, Amount: tally.Amount(n)}
	return rpc.URIRow{URI: u.Reveal(), Kind: use.String(), Amount: n}, nil
}
