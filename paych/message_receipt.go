package paych

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
)

// await waits for the receipt and books it. A message that takes long is published
// again, for the node may have forgotten it, and for a higher fee where it is the
// sender's next and nobody mines it.
func (m *Manager) await(o *outgoing) {
	for try := 0; ; try++ {
		r, err := m.receipt(o)
		switch {
		case m.ctx.Err() != nil:
		case err == nil:
			if err = m.book(o, r, false); err == nil {
				return
			}
		case errors.Is(err, errLate):
			m.late(o)
			try = 0
			continue
		case errors.Is(err, ErrNonceTaken) && m.passed(o):
			if err = m.book(o, &Receipt{Height: m.lastHead()}, true); err == nil {
				return
			}
		}
		if m.ctx.Err() != nil {
			break
		}
		o.a.mu.Lock()
		o.err = fmt.Errorf("paych: wait for receipt: %w", err)
		o.a.mu.Unlock()
		if !m.pause(nil, try) {
			break
		}
	}
	o.a.mu.Lock()
	defer o.a.mu.Unlock()
	o.finish()
}

// errLate: there was no receipt for as long as a message should take.
var errLate = errors.New("paych: no receipt in time")

// receipt waits for any of the cids under which the message may be mined: a node
// that was never given the newest finds an older one by that one's own cid. It
// gives up with errLate after a while.
func (m *Manager) receipt(o *outgoing) (*Receipt, error) {
	patience := m.rules.SubmitMargin + m.params.Finality
	if _, ok := m.chain.(Replacer); ok {
		patience = m.patience()
	}
	ctx, cancel := context.WithTimeout(m.ctx, max(time.Second, m.params.Epoch*time.Duration(patience)))
	defer cancel()
	o.a.mu.Lock()
	cids := o.msg.cids()
	o.a.mu.Unlock()
	type outcome struct {
		r   *Receipt
		err error
	}
	all := make(chan outcome, len(cids))
	for _, id := range cids {
		go func() { // ends with ctx
			r, err := m.chain.Wait(ctx, id, m.params.Finality)
			all <- outcome{r, err}
		}()
	}
	var errs []error
	for range cids {
		x := <-all
		if x.err == nil {
			return x.r, nil
		}
		if ctx.Err() == nil && errors.Is(x.err, ErrNonceTaken) {
			return nil, x.err
		}
		errs = append(errs, x.err)
	}
	if ctx.Err() != nil {
		return nil, errLate
	}
	return nil, errors.Join(errs...)
}

// grace is how long a message may take to its receipt before it is late.
func (m *Manager) grace() time.Duration {
	return max(time.Second, m.params.Epoch*time.Duration(m.rules.SubmitMargin+m.params.Finality))
}

// patience is for how many epochs a fee is offered before a higher one is.
func (m *Manager) patience() abi.ChainEpoch { return max(1, m.rules.SubmitMargin/2) }

// passed reports whether the chain at its finality is past the message's nonce.
func (m *Manager) passed(o *outgoing) bool {
	next, ok := m.nonce(o, m.params.Finality)
	return ok && next > o.msg.signed.Nonce // set once
}

// nonce is the sender's next at this depth; false where that is not known.
func (m *Manager) nonce(o *outgoing, depth abi.ChainEpoch) (uint64, bool) {
	r, ok := m.chain.(Replacer)
	if !ok {
		return 0, false
	}
	ctx, cancel := m.call(m.ctx)
	defer cancel()
	n, err := r.Nonce(ctx, o.msg.signed.From, depth)
	if err != nil {
		m.log.Warn("nonce not read, will be tried again", "sender", o.msg.signed.From, "err", err)
		return 0, false
	}
	return n, true
}

// late publishes a message again that was not mined in time, or what it is
// replaced by.
func (m *Manager) late(o *outgoing) {
	o.a.mu.Lock()
	nonce := o.msg.signed.Nonce
	o.a.mu.Unlock()
	next, known := m.nonce(o, 0)
	head := m.lastHead()
	if known && next != o.ahead {
		o.ahead, o.offered = next, 0 // the sender's messages move
	}
	switch {
	case !known:
	case next > nonce:
		return // mined, or taken: Wait tells
	case o.offered == 0:
		o.offered = head
	// One that waits behind another of its sender is not too cheap, nor is one for
	// which there was no block.
	case next == nonce && head-o.offered >= m.patience():
		o.offered = head
		if err := m.bump(o); err != nil {
			m.log.Warn("late message not replaced", "kind", o.key.kind.String(), "cid", o.msg.id(), "err", err)
			o.a.mu.Lock()
			o.err = err
			o.a.mu.Unlock()
		}
	case next < nonce && head-o.offered >= m.patience():
		o.offered = head
		if err := m.fill(o, next); err != nil {
			m.log.Warn("gap before a late message not filled", "kind", o.key.kind.String(), "cid", o.msg.id(), "err", err)
			o.a.mu.Lock()
			o.err = err
			o.a.mu.Unlock()
		}
	}
	o.a.mu.Lock()
	signed := o.msg.signed
	o.a.mu.Unlock()
	ctx, cancel := m.call(m.ctx)
	defer cancel()
	if err := m.chain.Publish(ctx, &signed); err != nil {
		m.log.Warn("late message not published again", "kind", o.key.kind.String(), "cid", signed.Cid, "err", err)
	}
}

// bump offers a higher fee. The replacement is on disk, in the same entry, before
// it is published.
func (m *Manager) bump(o *outgoing) error {
	r, ok := m.chain.(Replacer)
	if !ok {
		return nil
	}
	a := o.a
	a.mu.Lock()
	old, bumps := o.msg.signed, len(o.msg.before)
	a.mu.Unlock()
	if bumps >= maxBumps {
		return fmt.Errorf("%w: replaced %d times", ErrFeeCap, bumps)
	}
	ctx, cancel := m.call(m.ctx)
	defer cancel()
	signed, err := r.Bump(ctx, &old)
	if err != nil {
		return fmt.Errorf("paych: higher fee: %w", err)
	}
	if signed.From != old.From || signed.Nonce != old.Nonce {
		return fmt.Errorf("paych: higher fee: got nonce %d of %s in place of %d of %s", signed.Nonce, signed.From, old.Nonce, old.From)
	}
	if signed.Cid == old.Cid {
		return nil
	}
	a.mu.Lock()
	o.msg.before = append(slices.Clone(o.msg.before), old.Cid)
	o.msg.signed = *signed
	m.note(o)
	a.mu.Unlock()
	m.mu.Lock()
	m.byCid[signed.Cid] = o
	m.mu.Unlock()
	return m.save(a)
}

// book books a receipt: the message's record, and what it means for the channel,
// in one batch. A lost message has none; the chain is past its nonce.
func (m *Manager) book(o *outgoing, r *Receipt, lost bool) error {
	a := o.a
	ok := r.ExitCode.IsSuccess() && !lost
	var addr address.Address
	if o.key.kind == messageCreate && ok {
		var err error
		if addr, err = createdAddress(r.Return); err != nil {
			m.log.Error("channel was created, but its address cannot be read", "cid", o.msg.id(), "err", err)
			return err
		}
	} else {
		addr = a.addr()
	}
	// The view is booked before what waited for the money, in one step to everybody
	// else: the money is never there twice or not at all.
	var view *evViewed
	if addr != address.Undef {
		a.look <- struct{}{}
		defer func() { <-a.look }()
		// One look serves all receipts that it is deep enough for: a channel of many
		// lanes gets as many at a time.
		if !a.saw(r.Height + m.params.Finality) {
			v, _, err := m.fetch(m.ctx, addr)
			if err != nil {
				return err
			}
			view = &v
		}
	}
	a.mu.Lock()
	msg := o.msg
	msg.state, msg.height, msg.exit = messageDone, r.Height, r.ExitCode
	msg.signed.Raw = nil
	mined := r.Cid
	if r.Replaced.Defined() {
		mined = r.Replaced
	}
	if mined.Defined() && mined != msg.id() {
		msg.mined = mined
	}
	switch {
	case lost:
		msg.state = messageLost
	case !ok:
		msg.state = messageFailed
	}
	o.err = msg.failure()
	m.note(o)
	a.dirt.channel = true
	delete(a.sending, o.key)
	if o.key.kind == messageCreate {
		if _, err := m.step(a, evOpened{OK: ok, Addr: addr}); err != nil {
			m.log.Error("receipt out of turn", "cid", msg.signed.Cid, "err", err)
		}
	}
	if view != nil {
		if _, err := m.step(a, *view); err != nil {
			m.log.Error("view out of turn", "channel", addr, "err", err)
		}
		a.lookedAt = view.Head.Height
	}
	m.ended(o, ok)
	old := m.retire(a, o)
	a.mu.Unlock()

	m.mu.Lock()
	if o.key.kind == messageCreate && ok {
		m.byAddr[addr] = a
	}
	if msg.mined.Defined() {
		m.byCid[msg.mined] = o
	}
	for _, x := range old {
		for _, id := range x.msg.cids() {
			delete(m.byCid, id)
		}
		delete(m.byCid, x.msg.mined)
	}
	m.mu.Unlock()
	if o.key.kind == messageCreate && !ok {
		m.untag(a)
	}
	err := m.save(a)
	a.mu.Lock()
	if err != nil {
		o.err = err
	}
	o.finish()
	a.mu.Unlock()
	m.tell(o, addr, ok)
	return nil
}

// retire keeps the newest finished messages and forgets the others. Called with
// a.mu held.
func (m *Manager) retire(a *account, o *outgoing) (old []*outgoing) {
	a.finished = append(a.finished, o)
	if n := len(a.finished) - maxMessages; n > 0 {
		old = slices.Clone(a.finished[:n])
		a.finished = slices.Delete(a.finished, 0, n)
		for _, x := range old {
			a.dirt.deleted = append(a.dirt.deleted, messageKey(x.msg.signed.From, x.msg.signed.Nonce))
		}
	}
	return old
}

// tell notifies of a receipt.
func (m *Manager) tell(o *outgoing, addr address.Address, ok bool) {
	n := Notice{Channel: addr, Cid: o.msg.id()}
	switch {
	case !ok:
		n.Kind, n.Err = NoticeFailed, o.msg.failure()
		m.log.Warn("message came to nothing", "kind", o.key.kind.String(), "channel", addr, "err", o.msg.failure())
	case o.key.kind == messageCreate:
		n.Kind = NoticeOpened
	case o.key.kind == messageTopUp:
		n.Kind = NoticeFunded
	case o.key.kind == messageSubmit:
		n.Kind = NoticeSubmitted
	default:
		return // the chain's state tells of settling and collecting
	}
	m.notify(n)
}
