package locker

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paystream/lock"
)

// job is an item that was stepped: what is left of its duties.
type job struct {
	fx     []lock.Effect
	record func(*durable.Batch)
	done   func(error)
	err    error
}

// run steps what came, all at once, until Close.
func (l *line) run() {
	for {
		select {
		case <-l.wake:
		case <-l.k.ctx.Done():
			return
		}
		l.mu.Lock()
		items := l.inbox
		l.inbox = nil
		l.mu.Unlock()
		switch err := l.work(items); {
		case err == nil:
		case errors.Is(err, errBuried):
			l.end(ErrNoChannel)
			return
		default:
			l.stop(err)
			return
		}
	}
}

// stop ends the line: what it cannot save it must not say.
func (l *line) stop(cause error) {
	if l.k.ctx.Err() != nil {
		return
	}
	err := fmt.Errorf("%w: %w", ErrStopped, cause)
	l.end(err)
	l.k.log.Error("locks of a channel are kept no more", "channel", l.ch, "peer", l.peer, "err", err)
}

// end refuses all that waits for the line, and all that is still to come.
func (l *line) end(err error) {
	l.mu.Lock()
	l.failed = err
	items := l.inbox
	l.inbox = nil
	l.mu.Unlock()
	for i := range items {
		if items[i].done != nil {
			items[i].done(err)
		}
	}
}

// work steps items and does what comes of them. Those that are together are about
// different lanes: an event is stepped when all is done that the one before it on its
// lane asked for. Else a message could leave before what it says is on disk, as the
// UNLOCK does that a FULFIL asks for a second time; and a save would keep half of what
// the next one has to keep whole.
func (l *line) work(items []item) error {
	for len(items) > 0 {
		n, jobs := l.step(items)
		items = items[n:]
		if err := l.finish(jobs); err != nil {
			l.mu.Lock()
			l.inbox = append(items, l.inbox...) // end tells them
			l.mu.Unlock()
			return err
		}
	}
	return nil
}

// step steps the first items, as many as may be together, and returns their number.
func (l *line) step(items []item) (n int, jobs []*job) {
	var g group
	for n < len(items) && g.admits(l, &items[n]) {
		it := &items[n]
		n++
		if it.tell {
			l.k.wire.Send(l.peer, &Msg{Channel: l.ch, Sync: true, Ask: it.ask, Lanes: l.slots.States()})
			continue
		}
		if it.ev.Kind == lock.EvChain {
			l.mu.Lock()
			l.now = it.ev.Head.Height
			l.gone = it.ev.Final.Gone
			l.closing = it.ev.Head.SettlingAt != 0 || it.ev.Head.Gone
			l.mu.Unlock()
		}
		fx, err := l.slots.Step(l.now, &it.ev, nil)
		j := &job{fx: fx, record: it.record, done: it.done, err: err}
		if err == nil && it.ev.Kind == lock.EvPreimage && len(fx) == 0 {
			j.err = lock.ErrUnknown
		}
		g.stepped(l, fx)
		jobs = append(jobs, j)
	}
	return n, jobs
}

// finish does the duties of jobs, and tells who waits for them.
func (l *line) finish(jobs []*job) error {
	err := l.carryOut(jobs)
	if l.role == lock.Payer {
		l.count(l.k.ctx)
	}
	l.mu.Lock()
	l.list, l.room = l.slots.Locks(), l.slots.Room()
	over := l.gone && len(l.list) == 0
	l.mu.Unlock()
	if err == nil && over {
		err = l.bury()
	}
	for _, j := range jobs {
		switch {
		case j.done == nil:
		case errors.Is(err, errBuried):
			j.done(j.err)
		default:
			j.done(errors.Join(j.err, err))
		}
	}
	return err
}

// carryOut does the duties of all jobs, each in its own order. What is slow is done
// beside each other, and all that is to be saved at one time is one batch.
func (l *line) carryOut(jobs []*job) error {
	for {
		var slow, save []*job
		for _, j := range jobs {
			for j.err == nil && len(j.fx) > 0 && l.quick(&j.fx[0]) {
				j.fx = j.fx[1:]
			}
			switch {
			case j.err != nil || len(j.fx) == 0:
			case batched(j.fx[0].Kind):
				save = append(save, j)
			default:
				slow = append(slow, j)
			}
		}
		switch {
		case len(slow) > 0:
			var wait sync.WaitGroup
			more := make([][]lock.Effect, len(slow))
			events := make([]*lock.Event, len(slow))
			for i, j := range slow {
				wait.Go(func() { events[i], j.err = l.slow(&j.fx[0]) })
			}
			wait.Wait()
			for i, j := range slow {
				if j.err != nil && events[i] == nil {
					if k := j.fx[0].Kind; k == lock.FxKeep || k == lock.FxSecret {
						return j.err // the core is ahead of what is kept
					}
					continue // it is signed at the next look at the chain
				}
				j.fx = j.fx[1:]
				if events[i] == nil {
					continue
				}
				refused := j.err
				j.err = nil
				fx, err := l.slots.Step(l.now, events[i], nil)
				if err != nil {
					j.err = errors.Join(refused, err)
					continue
				}
				more[i] = fx
				if refused != nil {
					// What came of a refusal is done, and the caller still told.
					done := j.done
					j.fx, j.done = nil, nil
					if done != nil {
						defer done(refused)
					}
				}
				j.fx = append(more[i], j.fx...)
			}
		case len(save) > 0:
			if err := l.save(save); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// bury takes a line away whose channel is gone and whose locks are all decided.
func (l *line) bury() error {
	var b durable.Batch
	b.Delete(lineKey(l.ch))
	for lane := uint64(1); lane <= l.k.terms.Guard(); lane++ {
		b.Delete(slotKey(l.ch, lane))
	}
	if err := l.k.store.Commit(context.WithoutCancel(l.k.ctx), &b); err != nil {
		return fmt.Errorf("save locks of channel %s: %w", l.ch, err)
	}
	l.k.forget(l)
	return errBuried
}

// errBuried ends the goroutine of a line.
var errBuried = errors.New("locker: channel is gone")
