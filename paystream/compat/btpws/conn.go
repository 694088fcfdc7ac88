package btpws

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/tallystick/tally/paystream/compat"
	"github.com/tallystick/tally/paystream/compat/btp"
	"github.com/tallystick/tally/paystream/compat/ilp"
)

var (
	errReplaced = errors.New("btpws: the client has connected again")
	errRemoved  = errors.New("btpws: the client was removed")
	errText     = errors.New("btpws: a text message: BTP is binary")
	errBehind   = errors.New("btpws: the client does not read")
)

// conn is one client's connection. The reader is the goroutine of ServeHTTP; the
// writer is one more; each packet of the client has its own while it is on the
// way. Reader and writer end with ctx, a packet when it is decided: its payee may
// have fulfilled it, and has to be paid, although the payer has gone.
type conn struct {
	server  *Server
	ws      *websocket.Conn
	client  *account
	handler compat.Handler
	ctx     context.Context // ends with the connection
	end     context.CancelCauseFunc

	// out has room for all that may be on the way, both ways, so that a full one
	// means a client that does not read.
	out chan []byte

	mu      sync.Mutex // guards the fields below
	nextID  uint32
	pending map[uint32]chan *btp.Frame // our packets, by request id
}

func newConn(s *Server, ws *websocket.Conn, client *account) *conn {
	c := &conn{
		server: s, ws: ws, client: client, handler: s.cfg.Serve(client.Client),
		out:     make(chan []byte, 4*MaxInFlight),
		pending: make(map[uint32]chan *btp.Frame),
	}
	// Request ids start anywhere: an answer of an older connection meets none.
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	c.nextID = binary.BigEndian.Uint32(b[:])
	c.ctx, c.end = context.WithCancelCause(s.ctx)
	return c
}

// run reads until the connection ends, and returns why.
func (c *conn) run() error {
	var wg sync.WaitGroup
	wg.Go(c.write) // ends with ctx
	stop := context.AfterFunc(c.ctx, func() { _ = c.ws.Close() })
	defer stop()
	c.ws.SetPongHandler(func(string) error { return c.heard() })
	c.ws.SetPingHandler(func(data string) error {
		// A pong is small and the writer may be busy; WriteControl may be called at
		// the same time as it. One that is not sent is no reason to end.
		_ = c.ws.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(writeLimit))
		return c.heard()
	})
	for {
		err := c.heard()
		var f *btp.Frame
		if err == nil {
			f, err = readFrame(c.ws)
		}
		if err != nil {
			c.end(err)
			break
		}
		c.take(f, &wg)
	}
	_ = c.ws.Close()
	wg.Wait()
	return context.Cause(c.ctx)
}

func (c *conn) heard() error { return c.ws.SetReadDeadline(time.Now().Add(idleTimeout)) }

// take handles one frame without waiting for anything.
func (c *conn) take(f *btp.Frame, wg *sync.WaitGroup) {
	switch f.Type {
	case btp.TypeResponse, btp.TypeError:
		c.mu.Lock()
		answer := c.pending[f.RequestID]
		delete(c.pending, f.RequestID)
		c.mu.Unlock()
		if answer != nil {
			answer <- f // room for one, and nobody else has it
		}
	case btp.TypeMessage:
		packet, ok := f.Entry("ilp")
		if !ok {
			c.send(refusal(f.RequestID, "no ILP packet in the message"))
			return
		}
		p, err := ilp.DecodePrepare(packet)
		if err != nil {
			c.answer(f.RequestID, c.server.reject(ilp.CodeInvalidPacket, "not an ILP prepare"))
			return
		}
		select {
		case c.client.serving <- struct{}{}:
			wg.Go(func() { // ends with the packet's time or with the server
				c.answer(f.RequestID, c.serve(p))
				<-c.client.serving
			})
		default:
			c.answer(f.RequestID, c.server.reject(ilp.CodeConnectorBusy, "too many packets on the way"))
		}
	case btp.TypeTransfer:
		c.send(refusal(f.RequestID, "this connector settles outside of BTP"))
	}
}

// serve answers one packet of the client.
func (c *conn) serve(p *ilp.Prepare) ilp.Reply {
	now := time.Now()
	switch {
	case p.Destination == ilp.ConfigAddress:
		if err := ilp.CheckConfigRequest(p, now); err != nil {
			return c.server.reject(ilp.CodeBadRequest, err.Error())
		}
		f, err := c.client.Config.Fulfil()
		if err != nil { // Validate has seen it
			return c.server.reject(ilp.CodeInternal, "")
		}
		return f
	case p.Amount > math.MaxInt64:
		return c.server.reject(ilp.CodeInvalidAmount, "amount of 2^63 or more")
	case !now.Before(p.ExpiresAt):
		return c.server.reject(ilp.CodeTransferTimedOut, "packet has expired")
	}
	ctx, cancel := context.WithDeadline(c.server.ctx, deadline(now, p))
	defer cancel()
	return c.handler.Prepare(ctx, p)
}

// deadline returns when p has to be decided.
func deadline(now time.Time, p *ilp.Prepare) time.Time {
	if latest := now.Add(maxHold); latest.Before(p.ExpiresAt) {
		return latest
	}
	return p.ExpiresAt
}

// call sends a packet to the client and waits for its answer.
func (c *conn) call(ctx context.Context, p *ilp.Prepare) ilp.Reply {
	now := time.Now()
	if !now.Before(p.ExpiresAt) {
		return c.server.reject(ilp.CodeTransferTimedOut, "packet has expired")
	}
	packet, err := p.Append(nil)
	if err != nil {
		return c.server.reject(ilp.CodeInvalidPacket, err.Error())
	}
	answer := make(chan *btp.Frame, 1)
	id, ok := c.expect(answer)
	if !ok {
		return c.server.reject(ilp.CodeConnectorBusy, "too many packets on the way to the client")
	}
	defer c.forget(id)
	ctx, cancel := context.WithDeadline(ctx, deadline(now, p))
	defer cancel()
	c.send(&btp.Frame{Type: btp.TypeMessage, RequestID: id, Entries: []btp.Entry{btp.ILP(packet)}})
	select {
	case f := <-answer:
		return c.check(p, f)
	case <-ctx.Done():
	case <-c.ctx.Done():
	}
	select {
	case f := <-answer: // it came at the same moment, and counts
		return c.check(p, f)
	default:
	}
	if c.ctx.Err() != nil {
		return c.server.reject(ilp.CodePeerUnreachable, "client is gone")
	}
	return c.server.reject(ilp.CodeTransferTimedOut, "client did not answer in time")
}

// check reads the client's answer to p. A fulfilment that does not open the
// condition is no answer: whoever waits for the packet would be paid nothing for
// it.
func (c *conn) check(p *ilp.Prepare, f *btp.Frame) ilp.Reply {
	packet, ok := f.Entry("ilp")
	if f.Type != btp.TypeResponse || !ok {
		return c.server.reject(ilp.CodeUnreachable, "client has nothing that takes packets")
	}
	reply, err := ilp.DecodeReply(packet)
	if err != nil {
		return c.server.reject(ilp.CodeInvalidPacket, "client answered no ILP packet")
	}
	if f, ok := reply.(*ilp.Fulfil); ok {
		if !f.Fulfilment.Opens(p.Condition) {
			return c.server.reject(ilp.CodeWrongCondition, "client answered a wrong fulfilment")
		}
		if !time.Now().Before(p.ExpiresAt) {
			return c.server.reject(ilp.CodeTransferTimedOut, "client answered too late")
		}
	}
	return reply
}

// expect draws a request id for a packet of ours.
func (c *conn) expect(answer chan *btp.Frame) (uint32, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) >= MaxInFlight {
		return 0, false
	}
	for c.pending[c.nextID] != nil {
		c.nextID++
	}
	id := c.nextID
	c.nextID++
	c.pending[id] = answer
	return id, true
}

func (c *conn) forget(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

func (c *conn) answer(id uint32, r ilp.Reply) {
	packet, err := r.Append(nil)
	if err != nil { // a reply that cannot be written was made here or by the handler
		c.server.log.Error("bridge reply cannot be encoded", "client", c.client.Name, "err", err)
		if packet, err = c.server.reject(ilp.CodeInternal, "").Append(nil); err != nil {
			c.end(err)
			return
		}
	}
	c.send(&btp.Frame{Type: btp.TypeResponse, RequestID: id, Entries: []btp.Entry{btp.ILP(packet)}})
}

// send queues a frame. Where the queue is full, the client does not read, and the
// connection ends.
func (c *conn) send(f *btp.Frame) {
	b, err := f.Append(nil)
	if err != nil {
		c.end(err)
		return
	}
	select {
	case c.out <- b:
	default:
		c.end(errBehind)
	}
}

// write sends what is queued, and pings, until ctx ends.
func (c *conn) write() {
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for {
		var err error
		select {
		case <-c.ctx.Done():
			return
		case b := <-c.out:
			err = c.ws.SetWriteDeadline(time.Now().Add(writeLimit))
			if err == nil {
				err = c.ws.WriteMessage(websocket.BinaryMessage, b)
			}
		case <-ping.C:
			err = c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeLimit))
		}
		if err != nil {
			c.end(err)
			return
		}
	}
}

// readFrame reads one frame, whose bytes are its own.
func readFrame(ws *websocket.Conn) (*btp.Frame, error) {
	kind, r, err := ws.NextReader()
	if err != nil {
		return nil, err
	}
	if kind != websocket.BinaryMessage {
		return nil, errText
	}
	var buf bytes.Buffer // grows with what arrives, up to the read limit
	if _, err := buf.ReadFrom(r); err != nil {
		return nil, err
	}
	return btp.Decode(buf.Bytes())
}
