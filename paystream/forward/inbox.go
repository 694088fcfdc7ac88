package forward

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/internal/durable"
)

// item is one entry of the inbox.
type item struct {
	kind   EventKind
	peer   peer.ID
	window int
	batch  *Batch
	send   *sending
	ask    func(*Hop)
	record func(*durable.Batch)
	forget *Msg
	lock   *Event // told by the channels
	saved  func() // told when record is on disk; may be nil
}

// sending is a packet or a decision of our own on its way to the engine.
type sending struct {
	msg     Msg
	id      uint64
	keep    bool
	owed    bool
	owner   any
	done    func(*Result)
	result  func(*Result) func(*durable.Batch)
	record  func(*durable.Batch)
	decided func(error)
}

var sendings = sync.Pool{New: func() any { return new(sending) }}

// Up tells that a session with p has begun, which takes window packets at once.
func (e *Engine) Up(p peer.ID, window int) { _ = e.put(item{kind: EvUp, peer: p, window: window}) }

// Down tells that it has ended.
func (e *Engine) Down(p peer.ID) { _ = e.put(item{kind: EvDown, peer: p}) }

// Receive takes what a session has read. Calls for one session come in its
// order, between Up and Down.
func (e *Engine) Receive(b *Batch) {
	if e.put(item{kind: EvMessage, batch: b}) != nil {
		b.Recycle(b)
	}
}

// Send offers a packet. done is called once, on the engine's goroutine, when it
// is decided and that is saved; it must not wait, and may be nil. An error means
// that nothing was sent and neither done nor p.Decided is called. After Close they
// may never be.
func (e *Engine) Send(p *Packet, done func(*Result)) error {
	if len(p.Data) > MaxData || len(p.Token) > MaxToken || len(p.Via) > MaxHops {
		return fmt.Errorf("forward: packet with %d bytes of data, %d of token, %d hops: at most %d, %d, %d",
			len(p.Data), len(p.Token), len(p.Via), MaxData, MaxToken, MaxHops)
	}
	if p.MayLock && (p.Decided != nil || p.Record != nil) {
		return errors.New("forward: what a packet under a lock becomes is told through Config.Kept; leave Packet.Decided and Record empty")
	}
	if p.Keep && p.Decided != nil {
		return errors.New("forward: a packet that is kept is decided through Config.Kept; leave Packet.Decided empty")
	}
	s := sendings.Get().(*sending)
	s.msg = Msg{
		Kind: MsgPrepare, Amount: p.Amount, Expires: e.clock(p.Expires), Condition: p.Condition, Preimage: p.Preimage, Part: p.Part,
		HopsLeft: MaxHops, MayLock: p.MayLock, Dest: p.Dest, Token: p.Token, Via: p.Via, Data: p.Data,
	}
	if s.msg.Part == (PartID{}) {
		_, _ = rand.Read(s.msg.Part[:]) // never fails
	}
	s.owner, s.done, s.result, s.record, s.decided, s.keep = p.Owner, done, p.Decided, p.Record, nil, p.Keep
	return e.put(item{kind: EvSend, send: s})
}

// Forget tells that the result of a packet that was sent with Keep is not needed
// any more. A crash may bring it back.
func (e *Engine) Forget(part PartID) error { return e.put(item{forget: &Msg{Part: part}}) }

// SendWait is Send that waits. Where ctx ends first the packet goes on, and its
// outcome is lost to the caller.
func (e *Engine) SendWait(ctx context.Context, p *Packet) (Result, error) {
	got := make(chan Result, 1)
	err := e.Send(p, func(r *Result) {
		cp := *r
		cp.Data = append([]byte(nil), r.Data...)
		got <- cp
	})
	if err != nil {
		return Result{}, err
	}
	select {
	case r := <-got:
		return r, r.Err()
	case <-ctx.Done():
		return Result{}, ctx.Err()
	case <-e.ended:
		return Result{}, ErrClosed
	}
}

// Decide ends a packet that the handler let wait. done, where set, is called on
// the engine's goroutine with nil once the decision is saved, or with
// ErrNotHeld.
func (e *Engine) Decide(from peer.ID, id uint64, d *Decision, done func(error)) error {
	s := sendings.Get().(*sending)
	s.msg = Msg{Preimage: d.Preimage, Code: d.Code, Data: d.Data}
	s.id, s.owed, s.record, s.decided = id, d.Owed, d.Record, done
	kind := EvReject
	if d.Fulfil {
		kind = EvFulfil
	}
	return e.put(item{kind: kind, peer: from, send: s})
}

// Save adds a record of an endpoint that belongs to no packet. It lies in one line
// with those of packets, so that what a later one says is on disk no earlier. It
// is synced within tickEvery, or with the next packet.
func (e *Engine) Save(record func(*durable.Batch)) error { return e.put(item{record: record}) }

// SaveWait is Save that returns once the record is on disk. It must not be called
// on the engine's goroutine.
func (e *Engine) SaveWait(record func(*durable.Batch)) error {
	done := make(chan struct{})
	if err := e.put(item{record: record, saved: func() { close(done) }}); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-e.ended:
	}
	select {
	case <-done: // the last of its batches
		return nil
	default:
		return errors.Join(ErrClosed, e.failure())
	}
}

// Look calls f with the core on the engine's goroutine and waits for it.
func (e *Engine) Look(f func(*Hop)) error {
	done := make(chan struct{})
	if err := e.put(item{ask: func(h *Hop) { f(h); close(done) }}); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-e.ended:
		return ErrClosed
	}
}

func (e *Engine) put(it item) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.failed != nil:
		return e.failed
	case e.closed:
		return ErrClosed
	case it.send != nil && e.sends >= maxQueuedSends:
		return ErrBusy
	}
	if it.send != nil {
		e.sends++
	}
	e.items = append(e.items, it)
	if len(e.items) == 1 {
		select {
		case e.wake <- struct{}{}:
		default:
		}
	}
	return nil
}
