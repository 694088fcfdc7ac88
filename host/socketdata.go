package host

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/paystream"
)

const (
	// maxHeldStreams bounds the streams that callers of the RPC are in the middle of.
	maxHeldStreams = 1024
	// receiveWithin is how long a call waits for bytes of a peer, and sendWithin for
	// the peer to have ours.
	receiveWithin = 10 * time.Second
	sendWithin    = 100 * time.Second
)

// heldStreams are the streams that callers of the RPC know by their numbers. One is
// held until its end, so that what has arrived can be read after the socket is gone.
type heldStreams struct {
	// mu guards the field below.
	mu  sync.Mutex
	all map[streamKey]*paystream.Stream
}

type streamKey struct {
	socket paystream.SocketID
	stream uint64
}

func (h *heldStreams) get(id paystream.SocketID, stream uint64) (*paystream.Stream, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if st := h.all[streamKey{id, stream}]; st != nil {
		return st, nil
	}
	return nil, rpc.NewError(rpc.CodeBadArgument, "no stream %d is open here", stream).WithRemedy("use 0: a new stream to send, the next one to receive")
}

// hold keeps a stream. Where there is no room, those of dead sockets go.
func (h *heldStreams) hold(id paystream.SocketID, st *paystream.Stream) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = make(map[streamKey]*paystream.Stream)
	}
	if len(h.all) >= maxHeldStreams {
		for k, old := range h.all {
			if old.Err() != nil {
				delete(h.all, k)
			}
		}
	}
	if len(h.all) >= maxHeldStreams {
		return rpc.NewError(rpc.CodeBusy, "%d streams are open", maxHeldStreams)
	}
	h.all[streamKey{id, st.ID()}] = st
	return nil
}

func (h *heldStreams) drop(id paystream.SocketID, st *paystream.Stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.all, streamKey{id, st.ID()})
	_ = st.Close() // never fails
}

// stream returns the stream of a number, or for 0 the one that begin returns.
func (s socketAPI) stream(id paystream.SocketID, number uint64, begin func(*paystream.Conn) (*paystream.Stream, error)) (*paystream.Stream, error) {
	if number != 0 {
		return s.api.streams.get(id, number)
	}
	c, err := s.Conn(id)
	if err != nil {
		return nil, err
	}
	st, err := begin(c)
	if err != nil {
		return nil, err
	}
	if err := s.api.streams.hold(id, st); err != nil {
		_ = st.Close() // never fails
		return nil, err
	}
	return st, nil
}

// Send implements rpc.Sockets.
func (s socketAPI) Send(ctx context.Context, id paystream.SocketID, number uint64, data []byte, end bool) (rpc.StreamRow, error) {
	ctx, cancel := context.WithTimeout(ctx, sendWithin)
	defer cancel()
	st, err := s.stream(id, number, func(c *paystream.Conn) (*paystream.Stream, error) {
		ctx, cancel := context.WithTimeout(ctx, openSocketWithin)
		defer cancel()
		return c.OpenStream(ctx)
	})
	if err != nil {
		return rpc.StreamRow{}, socketError(err)
	}
	_, err = st.WriteContext(ctx, data)
	if err == nil {
		if end {
			st.CloseWrite()
		}
		err = st.Flush(ctx)
	}
	if end || err != nil {
		s.api.streams.drop(id, st)
	}
	if err != nil {
		return rpc.StreamRow{}, socketError(err)
	}
	return rpc.StreamRow{Stream: st.ID(), End: end}, nil
}

// Receive implements rpc.Sockets.
func (s socketAPI) Receive(ctx context.Context, id paystream.SocketID, number uint64) (rpc.StreamRow, error) {
	ctx, cancel := context.WithTimeout(ctx, receiveWithin)
	defer cancel()
	st, err := s.stream(id, number, func(c *paystream.Conn) (*paystream.Stream, error) { return c.AcceptStream(ctx) })
	if errors.Is(err, context.DeadlineExceeded) {
		return rpc.StreamRow{}, nil
	}
	if err != nil {
		return rpc.StreamRow{}, socketError(err)
	}
	row := rpc.StreamRow{Stream: st.ID(), Data: make([]byte, rpc.MaxStreamData)}
	n, err := st.ReadContext(ctx, row.Data)
	row.Data = row.Data[:n]
	switch {
	case errors.Is(err, io.EOF):
		row.End = true
		s.api.streams.drop(id, st)
	case err != nil && !errors.Is(err, context.DeadlineExceeded):
		s.api.streams.drop(id, st)
		return rpc.StreamRow{}, socketError(err)
	}
	return row, nil
}
