package paych

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych/actor"
)

// outgoing is a message on its way: from the decision to the receipt.
type outgoing struct {
	key      sendKey
	value    big.Int
	voucher  *SignedVoucher // of submit
	secret   []byte         // of submit
	requests []uint64       // of top-up: the calls that wait for it

	a *account
	// published is closed when the message was published, or when none could be
	// made; done when the receipt was booked, or when there will be none.
	published, done chan struct{}
	// offered is the epoch of the last fee, or of the last look at a gap before it,
	// and ahead the nonce that the chain waited for then; await's own.
	offered abi.ChainEpoch
	ahead   uint64

	// Guarded by a.mu.
	msg *message // nil until it is signed
	err error    // why it failed, or why the last try did
	out bool     // published is closed
	end bool     // done is closed
}

// closed channels say more than flags, but are closed once.
func (o *outgoing) release() {
	if !o.out {
		o.out = true
		close(o.published)
	}
}

func (o *outgoing) finish() {
	o.release()
	if !o.end {
		o.end = true
		close(o.done)
	}
}

// wait returns the cid once the message is published.
func (o *outgoing) wait(ctx context.Context) (cid.Cid, error) {
	var ended error
	select {
	case <-o.published:
	case <-ctx.Done():
		ended = ctx.Err()
	}
	o.a.mu.Lock()
	defer o.a.mu.Unlock()
	switch {
	case o.msg == nil && o.err != nil:
		return cid.Undef, o.err
	case o.msg == nil:
		return cid.Undef, ended
	case o.out && o.msg.state == messageSaved:
		return o.msg.id(), o.err // the store failed, the nonce is taken, or the manager closed
	case ended != nil && !o.out:
		return o.msg.id(), fmt.Errorf("%w: %w (last: %w)", ErrUnpublished, ended, o.err)
	default:
		return o.msg.id(), nil
	}
}

// start begins to send. Called with a.mu held.
func (m *Manager) start(a *account, o *outgoing) {
	o.a, o.published, o.done = a, make(chan struct{}), make(chan struct{})
	a.sending[o.key] = o
	if !m.spawn(func() { m.send(o) }) { // ends with the receipt, or with Close
		delete(a.sending, o.key)
		o.err = ErrClosed
		o.finish()
	}
}

// resume takes up the messages that have no receipt. Called by Open.
func (m *Manager) resume(messages []*message) {
	bySender := make(map[address.Address][]*outgoing)
	for _, msg := range messages {
		a := m.accounts[msg.channel]
		o := &outgoing{
			key: sendKey{kind: msg.kind, lane: msg.lane}, value: msg.value, a: a, msg: msg,
			published: make(chan struct{}), done: make(chan struct{}),
		}
		for _, id := range msg.cids() {
			m.byCid[id] = o
		}
		if msg.mined.Defined() {
			m.byCid[msg.mined] = o
		}
		if msg.state.final() {
			o.err = msg.failure()
			o.finish()
			a.finished = append(a.finished, o)
			continue
		}
		a.sending[o.key] = o
		switch msg.kind {
		case messageSettle:
			a.ch.settling = true
		case messageCollect:
			a.ch.collecting = true
		case messageSubmit:
			nonce := msg.voucherNonce
			a.ch.lane(msg.lane).sending = &nonce
		}
		bySender[msg.signed.From] = append(bySender[msg.signed.From], o)
	}
	for _, a := range m.accounts {
		slices.SortFunc(a.finished, func(x, y *outgoing) int { return cmp.Compare(x.msg.since, y.msg.since) })
	}
	for sender, list := range bySender {
		// In the order of their nonces, and before any new one.
		slices.SortFunc(list, func(x, y *outgoing) int { return cmp.Compare(x.msg.signed.Nonce, y.msg.signed.Nonce) })
		turn := m.turn(sender)
		turn <- struct{}{}
		m.spawn(func() { // ends when all are published, or with Close
			defer func() { <-turn }()
			for _, o := range list {
				m.deliver(o)
			}
		})
	}
}

// turn orders the messages of one sender: whose nonce was taken last has to be
// with the node before the next asks it for one. It guards no state of ours.
func (m *Manager) turn(sender address.Address) chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.senders[sender]
	if t == nil {
		t = make(chan struct{}, 1)
		m.senders[sender] = t
	}
	return t
}

// send makes, saves and publishes one message.
func (m *Manager) send(o *outgoing) {
	turn := m.turn(o.a.ch.Control()) // set once, when the channel is made
	select {
	case turn <- struct{}{}:
	case <-m.ctx.Done():
		m.abandon(o, ErrClosed)
		return
	}
	defer func() { <-turn }()
	signed, err := m.prepare(o)
	if err != nil {
		m.abandon(o, err)
		return
	}
	if err := m.record(o, signed); err != nil {
		if r, ok := m.chain.(Replacer); ok {
			r.Discard(signed)
		}
		o.a.mu.Lock()
		o.err = err
		m.reply(o.a, o.requests, answer{cid: signed.Cid, err: err})
		o.finish()
		o.a.mu.Unlock()
		return
	}
	m.deliver(o)
}

// prepare has the message signed. Nothing leaves.
func (m *Manager) prepare(o *outgoing) (*SignedMessage, error) {
	ctx, cancel := m.call(m.ctx)
	defer cancel()
	c := o.a.ch // the fields used here are set once
	msg, err := m.build(ctx, o, c)
	if err != nil {
		return nil, err
	}
	if msg.Value.Sign() > 0 {
		have, err := m.chain.Balance(ctx, msg.From)
		if err != nil {
			return nil, fmt.Errorf("paych: balance of %s: %w", msg.From, err)
		}
		if have.LessThan(msg.Value) {
			return nil, fmt.Errorf("%w: %s has %v of %v", ErrBalance, msg.From, have, msg.Value)
		}
	}
	signed, err := m.chain.Prepare(ctx, msg)
	if err != nil {
		return nil, fmt.Errorf("paych: prepare %v: %w", o.key.kind, err)
	}
	return signed, nil
}

func (m *Manager) build(ctx context.Context, o *outgoing, c *Channel) (Message, error) {
	from := c.Control()
	switch o.key.kind {
	case messageCreate:
		code := defaultCode
		if coder, ok := m.chain.(ActorCoder); ok {
			var err error
			if code, err = coder.PaychCode(ctx); err != nil {
				return Message{}, fmt.Errorf("paych: code of the actor: %w", err)
			}
		}
		return createMessage(code, from, c.To, o.value)
	case messageTopUp:
		return Message{From: from, To: o.a.addr(), Value: o.value, Method: actor.MethodSend}, nil
	case messageSubmit:
		if err := m.evaluate(ctx, o.a, o.voucher, o.secret); err != nil {
			return Message{}, err
		}
		return actorMessage(from, o.a.addr(), actor.Redeem(*o.voucher, o.secret))
	case messageSettle:
		return actorMessage(from, o.a.addr(), actor.Settle())
	default:
		return actorMessage(from, o.a.addr(), actor.Collect())
	}
}

// abandon ends a message that was never signed.
func (m *Manager) abandon(o *outgoing, err error) {
	a := o.a
	a.mu.Lock()
	o.err = err
	delete(a.sending, o.key)
	m.reply(a, o.requests, answer{err: err})
	m.ended(o, false)
	o.finish()
	addr := a.ch.Addr
	a.mu.Unlock()
	if k := o.key.kind; m.ctx.Err() == nil && (k == messageSubmit || k == messageCollect) {
		// Nobody waits for what the watcher sends: a payee without the money for gas
		// has to hear of it while there is time.
		m.log.Warn("message not made", "kind", o.key.kind.String(), "channel", addr, "err", err)
		m.notify(Notice{Kind: NoticeFailed, Channel: addr, Err: err})
	}
	if o.key.kind == messageCreate {
		m.untag(a)
	}
}

// ended tells the channel how a message went. Called with a.mu held.
func (m *Manager) ended(o *outgoing, ok bool) {
	var ev event
	switch c := o.a.ch; o.key.kind {
	case messageCreate:
		return // by its receipt, which has the address
	case messageTopUp:
		ev = evTopUpDone{OK: ok}
	case messageSubmit:
		nonce := uint64(0)
		if o.voucher != nil {
			nonce = o.voucher.Nonce
		} else if o.msg != nil {
			nonce = o.msg.voucherNonce
		}
		ev = evSubmitDone{
			Lane: o.key.lane, Nonce: nonce, OK: ok,
			Refused: errors.Is(o.err, ErrNotSpendable) || o.msg != nil && o.msg.exit == exitcode.ErrIllegalArgument,
		}
	case messageSettle:
		if !ok {
			c.Settled = cid.Undef
		}
		ev = evSettleDone{}
	case messageCollect:
		if !ok {
			c.Collected = cid.Undef
		}
		ev = evCollectDone{OK: ok}
	}
	if _, err := m.step(o.a, ev); err != nil {
		m.log.Error("message ended out of turn", "channel", o.a.ch.Addr, "kind", o.key.kind.String(), "err", err)
	}
}

// record puts the signed message and what it means for the channel on disk.
func (m *Manager) record(o *outgoing, signed *SignedMessage) error {
	a := o.a
	msg := &message{
		kind: o.key.kind, channel: a.ch.ID, lane: o.key.lane, value: value(o.value),
		signed: *signed, since: time.Now().Unix(),
	}
	if o.voucher != nil {
		msg.voucherNonce = o.voucher.Nonce
	}
	a.mu.Lock()
	c := a.ch
	o.msg = msg
	switch o.key.kind {
	case messageCreate:
		c.Created = signed.Cid
	case messageTopUp:
		if _, err := m.step(a, evTopUpSent{}); err != nil {
			a.mu.Unlock()
			return err
		}
	case messageSettle:
		c.Settled = signed.Cid
	case messageCollect:
		c.Collected = signed.Cid
	}
	a.dirt.channel = true
	m.note(o)
	a.mu.Unlock()
	m.mu.Lock()
	m.byCid[signed.Cid] = o
	if o.key.kind == messageCreate {
		m.accounts[c.ID] = a
	}
	m.mu.Unlock()
	return m.save(a)
}

// note marks the message's record as newer than the disk. Called with a.mu held.
func (m *Manager) note(o *outgoing) {
	cp := *o.msg
	o.a.dirt.messages[messageKey(cp.signed.From, cp.signed.Nonce)] = &cp
	o.a.gen++
}

// deliver publishes a saved message until a node took it, or until its receipt
// shows that one did. It is called in the sender's turn.
func (m *Manager) deliver(o *outgoing) {
	a := o.a
	awaiting := false
	for try := 0; ; try++ {
		a.mu.Lock()
		signed := o.msg.signed // a higher fee may have been offered meanwhile
		booked := o.msg.state.final()
		a.mu.Unlock()
		if booked {
			break // its bytes are gone
		}
		ctx, cancel := m.call(m.ctx)
		err := m.chain.Publish(ctx, &signed)
		cancel()
		if m.ctx.Err() != nil {
			break
		}
		a.mu.Lock()
		if err == nil && o.msg.state == messageSaved {
			o.msg.state = messagePublished
			m.note(o)
		}
		switch {
		case o.msg.state.final(): // by its receipt, which says how
		case err != nil:
			o.err = fmt.Errorf("paych: publish: %w", err)
		default:
			o.err = nil
		}
		a.mu.Unlock()
		if err == nil {
			if err := m.save(a); err != nil {
				a.mu.Lock()
				o.err = err
				a.mu.Unlock()
			}
		} else {
			m.log.Warn("message not published, will be tried again", "kind", o.key.kind.String(), "cid", signed.Cid, "err", err)
		}
		if !awaiting {
			// Also after a failure: it may be mined already, and then no node takes
			// it again.
			awaiting = m.spawn(func() { m.await(o) }) // ends with the receipt, or with Close
		}
		// Where the nonce is used the sender's next message does not need this one,
		// and must not wait until that is final.
		if err == nil || errors.Is(err, ErrNonceTaken) || !m.pause(o.done, try) {
			break
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if m.ctx.Err() != nil && o.msg.state == messageSaved {
		o.err = errors.Join(ErrUnpublished, ErrClosed)
	}
	m.reply(a, o.requests, answer{cid: o.msg.id(), err: o.err})
	o.release()
	if m.ctx.Err() != nil {
		o.finish()
	}
}

// pause waits before try n + 1, 1 s doubled up to 1 min. It reports false where
// stop was closed or the manager ends.
func (m *Manager) pause(stop <-chan struct{}, n int) bool {
	t := time.NewTimer(min(time.Second<<min(n, 6), time.Minute))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stop:
	case <-m.ctx.Done():
	}
	return false
}
