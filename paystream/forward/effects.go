package forward

import (
	"context"

	"github.com/tallystick/tally/internal/durable"
)

// pending is a caller whose packet is not decided.
type pending struct {
	owner   any
	done    func(*Result)
	decided func(*Result) func(*durable.Batch)
}

// remember keeps a caller until its packet is decided.
func (e *Engine) remember(p pending) uint64 {
	if n := len(e.free); n > 0 {
		ref := e.free[n-1]
		e.free = e.free[:n-1]
		e.results[ref-1] = p
		return ref
	}
	e.results = append(e.results, p)
	return uint64(len(e.results))
}

// carryOut saves first and sends then.
func (e *Engine) carryOut() error {
	for i := range e.fx {
		if f := &e.fx[i]; f.Kind == FxResult {
			e.decided(f)
		}
	}
	if e.cfg.Store != nil {
		if err := e.save(); err != nil {
			return err
		}
	}
	for i := range e.fx {
		f := &e.fx[i]
		switch f.Kind {
		case FxSend:
			e.wire.Send(f.Peer, f.Msg)
		case FxResult:
			e.result(f)
		case FxGone:
			e.cfg.Gone(f.Msg.Part)
		case FxSave, FxDelete:
		default:
			e.lockEffect(f)
		}
	}
	clear(e.fx)
	e.fx = e.fx[:0]
	e.answers.Reset()
	e.hop.Reset()
	return nil
}

func (e *Engine) save() error {
	for i := range e.fx {
		switch f := &e.fx[i]; f.Kind {
		case FxSave:
			e.sync = true
			if key := journalKey(f.Key); f.Record != nil {
				e.batch.Put(key, durable.Seal(nil, key, recordVersion, f.Record))
			} else {
				e.batch.Delete(key)
			}
		case FxDelete:
			e.batch.Delete(journalKey(f.Key))
		case FxUnnote:
			e.batch.Delete(noteKey(f.Key))
		}
	}
	if !e.sync {
		return nil
	}
	for i, record := range e.records {
		record(&e.batch)
		e.records[i] = nil
	}
	e.records, e.rejects = e.records[:0], 0
	e.sync = false
	e.cfg.Tabs.Save(&e.batch)
	err := e.cfg.Store.Commit(context.Background(), &e.batch)
	e.cfg.Tabs.Done(err)
	e.batch.Reset()
	return err
}

// maxRejects bounds the records of rejects that wait for a batch that is synced.
const maxRejects = 1024

// decided tells the sender before the save. The record of a reject may wait with
// the end of its journal record; a later record is in no earlier batch.
func (e *Engine) decided(f *Effect) {
	decided := e.cfg.Orphan
	var owner any
	switch {
	case f.Kept:
		return // told when it is saved
	case f.Ref != 0:
		p := &e.results[f.Ref-1]
		if decided, owner = p.decided, p.owner; decided == nil {
			return
		}
	}
	e.told = resultOf(f.Msg)
	e.told.Owner = owner
	record := decided(&e.told)
	if record == nil || e.cfg.Store == nil {
		return
	}
	e.records = append(e.records, record)
	if e.rejects++; e.rejects >= maxRejects {
		e.sync = true
	}
}

// result tells the caller after it.
func (e *Engine) result(f *Effect) {
	e.told = resultOf(f.Msg)
	if f.Kept {
		e.cfg.Kept(&e.told)
	}
	if f.Ref == 0 {
		return
	}
	done := e.results[f.Ref-1].done
	e.told.Owner = e.results[f.Ref-1].owner
	e.results[f.Ref-1] = pending{}
	e.free = append(e.free, f.Ref)
	if done != nil {
		done(&e.told)
	}
}
