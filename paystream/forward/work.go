package forward

import (
	"errors"

	"github.com/libp2p/go-libp2p/core/peer"
)

// work steps all that came. In memory what follows is handed to the sessions after a
// few packets or messages; with a journal all share one sync.
func (e *Engine) work(items []item, tick bool) error {
	now := e.Now()
	for i := range items {
		if err := e.item(now, &items[i]); err != nil {
			return err
		}
		if e.cfg.Store == nil && (i%flushAfter == flushAfter-1 || items[i].batch != nil) {
			if err := e.carryOut(); err != nil {
				return err
			}
			e.wire.Flush()
			e.recycle()
		}
	}
	if tick {
		if err := e.step(now, &Event{Kind: EvTick}); err != nil {
			return err
		}
		e.sync = e.sync || e.batch.Len() > 0 || len(e.records) > 0 // they have waited long enough
	}
	err := e.carryOut()
	e.wire.Flush()
	if err == nil {
		e.recycle()
	}
	return err
}

// flushAfter bounds the packets and messages that wait for those after them, so that
// the next node works on the first while we do on the last.
const flushAfter = 64

// recycle gives batches back of which nothing is left to be carried out.
func (e *Engine) recycle() {
	for i, b := range e.done {
		b.Recycle(b)
		e.done[i] = nil
	}
	e.done = e.done[:0]
}

func (e *Engine) item(now int64, it *item) error {
	switch {
	case it.ask != nil:
		it.ask(e.hop)
		return nil
	case it.record != nil:
		if e.cfg.Store != nil {
			e.records = append(e.records, it.record)
			e.sync = true
		}
		if saved := it.saved; saved != nil {
			ref := e.remember(pending{done: func(*Result) { saved() }})
			e.fx = append(e.fx, Effect{Kind: FxResult, Ref: ref, Msg: e.hop.message(MsgNone, 0)})
		}
		return nil
	case it.lock != nil:
		return e.lockItem(now, it.lock)
	case it.forget != nil:
		return e.step(now, &Event{Kind: EvForget, Msg: it.forget})
	case it.batch != nil:
		b := it.batch
		e.done = append(e.done, b)
		e.stats.stepped.Add(uint64(len(b.Msgs)))
		ev := Event{Kind: EvMessage, Peer: b.Peer}
		for i := range b.Msgs {
			ev.Msg = &b.Msgs[i]
			err := e.step(now, &ev)
			if errors.Is(err, ErrFault) {
				e.stats.faults.Add(1)
				e.wire.Reset(b.Peer, err)
				// What else was read before it ends is not heard: messages count
				// in their order, or not at all.
				return e.step(now, &Event{Kind: EvDown, Peer: b.Peer})
			}
			if err != nil {
				return err
			}
			if e.cfg.Store == nil && i%flushAfter == flushAfter-1 {
				if err := e.carryOut(); err != nil {
					return err
				}
				e.wire.Flush()
			}
		}
		return nil
	case it.send != nil:
		return e.own(now, it)
	default:
		return e.step(now, &Event{Kind: it.kind, Peer: it.peer, Window: it.window})
	}
}

// own steps what a caller asked for.
func (e *Engine) own(now int64, it *item) error {
	s := it.send
	m := e.hop.message(s.msg.Kind, 0)
	*m = s.msg
	ev := Event{Kind: it.kind, Peer: it.peer, ID: s.id, Keep: s.keep, Owed: s.owed, Msg: m}
	before := len(e.fx)
	if it.kind == EvSend {
		ev.Ref = e.remember(pending{s.owner, s.done, s.result})
	}
	err := e.step(now, &ev)
	decided, record := s.decided, s.record
	*s = sending{}
	sendings.Put(s)
	notHeld := errors.Is(err, ErrNotHeld) || errors.Is(err, ErrFault) // a wrong preimage of our own
	switch {
	case notHeld && decided != nil:
		decided(err)
		return nil
	case notHeld:
		return nil
	case err != nil:
		return err
	}
	if n := len(e.fx); n > before && e.fx[n-1].Kind == FxShow {
		// Its channel decides, and saves what is to be saved with that.
		e.showing[lockID{ev.Peer, ev.ID}] = showing{record, decided}
		return nil
	}
	refused := it.kind == EvSend && len(e.fx) > before && e.fx[len(e.fx)-1].Kind == FxResult
	if record != nil && !refused && e.cfg.Store != nil {
		e.records = append(e.records, record)
		e.sync = true
	}
	if decided != nil {
		e.fx = append(e.fx, Effect{Kind: FxResult, Ref: e.remember(pending{done: func(*Result) { decided(nil) }}), Msg: m})
	}
	return nil
}

// step steps the core, and offers what is for us to the handler at once, so that
// its answer shares the batch.
func (e *Engine) step(now int64, ev *Event) error {
	before := len(e.fx)
	fx, err := e.hop.Step(now, ev, e.fx)
	if err != nil {
		return err
	}
	e.fx = fx
	if n := len(fx) - 1; n >= before && fx[n].Kind == FxDeliver {
		e.fx = fx[:n]
		return e.deliver(now, fx[n].Peer, fx[n].Msg, false)
	}
	return nil
}

func (e *Engine) deliver(now int64, from peer.ID, m *Msg, again bool) error {
	e.stats.delivered.Add(1)
	id := m.ID
	e.offered = e.delivery(from, m, again)
	d, ok := e.cfg.Handler.Packet(&e.offered)
	switch {
	case !ok && d.Kept != nil && (again || len(m.Data)+len(m.Token) <= MaxKept):
		return e.keep(now, from, m, d.Kept, again)
	case !ok && d.Kept == nil && !again && m.Lock == nil:
		return nil
	case ok && d.Fulfil && m.Lock != nil: // what it shows at once it does not keep
		d = Decision{Code: CodeUnsupported}
	case !ok: // nobody keeps it any more, or it is too long to be kept
		d = Decision{Code: CodeRefused}
	}
	answer := e.hop.message(MsgReject, id)
	answer.Preimage, answer.Code, answer.Data = d.Preimage, d.Code, e.answers.Keep(d.Data)
	ev := Event{Kind: EvReject, Peer: from, ID: id, Opens: d.Opens, Msg: answer}
	if d.Fulfil {
		ev.Kind = EvFulfil
	}
	fx, err := e.hop.Step(now, &ev, e.fx)
	if errors.Is(err, ErrNotHeld) || errors.Is(err, ErrFault) {
		// It expired in this very millisecond, or the endpoint has not the right
		// preimage: in both cases the one answer.
		answer.Code, answer.Data = CodeRefused, nil
		ev.Kind = EvReject
		fx, err = e.hop.Step(now, &ev, e.fx)
	} else if err == nil && d.Record != nil && e.cfg.Store != nil {
		e.records = append(e.records, d.Record)
		e.sync = true
	}
	e.fx = fx
	return err
}

// keep lets a packet wait on disk, and tells its endpoint when it is there.
func (e *Engine) keep(now int64, from peer.ID, m *Msg, kept func(), again bool) error {
	if !again {
		if err := e.step(now, &Event{Kind: EvKeep, Peer: from, ID: m.ID, Msg: m}); err != nil {
			return err
		}
	}
	e.fx = append(e.fx, Effect{Kind: FxResult, Ref: e.remember(pending{done: func(*Result) { kept() }}), Msg: m})
	return nil
}
