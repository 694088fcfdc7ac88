package paych

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/builtin"
	initactor "github.com/filecoin-project/go-state-types/builtin/v8/init"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/tallystick/tally/paych/actor"
)

// messageKind says what a message is for.
type messageKind uint8

const (
	messageCreate messageKind = iota
	messageTopUp
	messageSubmit
	messageSettle
	messageCollect
)

var messageKinds = [...]string{"create", "add-funds", "submit", "settle", "collect"}

func (k messageKind) String() string { return messageKinds[k] }

// messageState is how far a message is. Its signed bytes are saved before it is
// published, and published again until there is a receipt: the same bytes, or
// where they are not mined the same call for a higher fee, saved first as well:
//
//	saved ──▶ published ──▶ done | failed | lost
type messageState uint8

const (
	messageSaved messageState = iota
	messagePublished
	messageDone   // mined, exit code 0
	messageFailed // mined, another exit code
	messageLost   // never mined: another message has its nonce, and that is final
)

var messageStates = [...]string{"saved", "published", "done", "failed", "lost"}

func (s messageState) String() string { return messageStates[s] }

func (s messageState) final() bool { return s >= messageDone }

// message is one message of ours to the chain. It is keyed by sender and nonce,
// so that a replacement belongs to the same entry.
type message struct {
	kind    messageKind
	state   messageState
	channel uint64 // ID
	// lane and voucherNonce belong to submit.
	lane, voucherNonce uint64
	value              big.Int
	signed             SignedMessage
	since              int64 // Unix time at which it was signed
	// before are the cids of what signed took the place of, oldest first: a call
	// returned the first, and any of them may be mined.
	before []cid.Cid
	// Of the receipt: mined differs from signed.Cid where a fee bump replaced it.
	mined  cid.Cid
	height abi.ChainEpoch
	exit   exitcode.ExitCode
}

// maxBumps bounds how often a message is replaced by one for a higher fee.
const maxBumps = 16

// id is the cid that calls know the message by.
func (m *message) id() cid.Cid {
	if len(m.before) > 0 {
		return m.before[0]
	}
	return m.signed.Cid
}

// cids are all under which it may be mined, the newest first.
func (m *message) cids() []cid.Cid {
	all := append(slices.Clone(m.before), m.signed.Cid)
	slices.Reverse(all)
	return all
}

// failure is why a message came to nothing, or nil.
func (m *message) failure() error {
	if m.state != messageFailed && m.state != messageLost {
		return nil
	}
	return &MessageError{Cid: m.id(), Kind: m.kind.String(), Exit: m.exit, Lost: m.state == messageLost}
}

// MessageError says that a message was mined and failed, or never can be mined.
type MessageError struct {
	Cid  cid.Cid
	Kind string
	Exit exitcode.ExitCode // of one that was mined
	// Lost: another message of the same key was mined under its nonce.
	Lost bool
}

func (e *MessageError) Error() string {
	if e.Lost {
		return fmt.Sprintf("paych: %s %s: %v: give this node a key of its own", e.Kind, e.Cid, ErrNonceTaken)
	}
	return fmt.Sprintf("%v: %s %s: exit %d", ErrMessageFailed, e.Kind, e.Cid, int64(e.Exit))
}

// Is makes it an ErrMessageFailed, and an ErrTopUpFailed or ErrCreateFailed where
// that is what it was for.
func (e *MessageError) Is(target error) bool {
	switch target {
	case ErrMessageFailed:
		return true
	case ErrNonceTaken:
		return e.Lost
	case ErrTopUpFailed:
		return e.Kind == messageTopUp.String()
	case ErrCreateFailed:
		return e.Kind == messageCreate.String()
	}
	return false
}

// ActorCoder is what a Chain offers besides if the code of the payment channel
// actor differs between its networks and versions: its cid at the head.
type ActorCoder interface {
	PaychCode(ctx context.Context) (cid.Cid, error)
}

// defaultCode is the actor's code cid where the chain tells none: that of
// specs-actors v8, which names itself.
var defaultCode = func() cid.Cid {
	hash, err := multihash.Sum([]byte("fil/8/paymentchannel"), multihash.IDENTITY, -1)
	if err != nil {
		panic("paych: " + err.Error())
	}
	return cid.NewCidV1(cid.Raw, hash)
}()

func createMessage(code cid.Cid, from, to address.Address, amount big.Int) (Message, error) {
	var ctor, exec bytes.Buffer
	if err := (&actor.ConstructorParams{From: from, To: to}).MarshalCBOR(&ctor); err != nil {
		return Message{}, fmt.Errorf("paych: encode constructor: %w", err)
	}
	params := initactor.ExecParams{CodeCID: code, ConstructorParams: ctor.Bytes()}
	if err := params.MarshalCBOR(&exec); err != nil {
		return Message{}, fmt.Errorf("paych: encode exec: %w", err)
	}
	return Message{From: from, To: builtin.InitActorAddr, Value: amount, Method: builtin.MethodsInit.Exec, Params: exec.Bytes()}, nil
}

// createdAddress reads the address of a new channel from the receipt. It is the
// one that no reorganisation gives to another channel.
func createdAddress(ret []byte) (address.Address, error) {
	if err := actor.WellFormed(ret); err != nil {
		return address.Undef, fmt.Errorf("paych: receipt of create: %w", err)
	}
	var r initactor.ExecReturn
	if err := r.UnmarshalCBOR(bytes.NewReader(ret)); err != nil {
		return address.Undef, fmt.Errorf("paych: receipt of create: %w", err)
	}
	if r.RobustAddress.Protocol() != address.Actor {
		return address.Undef, fmt.Errorf("paych: receipt of create: %w: %s", ErrAddress, r.RobustAddress)
	}
	return r.RobustAddress, nil
}

func actorMessage(from, ch address.Address, m actor.Msg) (Message, error) {
	params, err := m.Params()
	if err != nil {
		return Message{}, err
	}
	return Message{From: from, To: ch, Value: big.Zero(), Method: m.Method, Params: params}, nil
}

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

func (a *account) addr() address.Address {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ch.Addr
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

// untag lets the tag of a channel that was not created be used again.
func (m *Manager) untag(a *account) {
	tag := a.tag()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byTag[tag] == a {
		delete(m.byTag, tag)
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

// saw reports whether the channel was looked at with this height as the head, or a
// later one.
func (a *account) saw(height abi.ChainEpoch) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lookedAt >= height
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

// MessageStatus is one message of ours to the chain.
type MessageStatus struct {
	Cid  cid.Cid
	Kind string // create, add-funds, submit, settle, collect
	// State is saved, published, done, failed or lost.
	State string
	From  address.Address
	Nonce uint64
	Value big.Int
	// Since is when it was signed; after Late it takes longer than a message should.
	Since, Late time.Time
	// Error is why it failed, or why the last try did; empty where all is well.
	Error string
	// Cids are all under which it may be mined, the newest first: a message that
	// nobody mines is replaced by one for a higher fee.
	Cids []cid.Cid
	// Mined is the cid under which it was mined, where that is another.
	Mined    *cid.Cid
	Height   abi.ChainEpoch
	ExitCode exitcode.ExitCode
	// Channel has no address yet while it is being created.
	Channel PaychStatus
	Phase   Phase
}

// messageStatus is called with the account's mu held.
func (m *Manager) messageStatus(o *outgoing) *MessageStatus {
	msg := o.msg
	since := time.Unix(msg.since, 0)
	s := &MessageStatus{
		Cid: msg.id(), Cids: msg.cids(), Kind: msg.kind.String(), State: msg.state.String(), From: msg.signed.From,
		Nonce: msg.signed.Nonce, Value: msg.value, Since: since, Late: since.Add(m.grace()), Mined: cidOf(msg.mined),
		Height: msg.height, ExitCode: msg.exit, Channel: *o.a.status(), Phase: o.a.ch.Phase,
	}
	if o.err != nil {
		s.Error = o.err.Error()
	}
	return s
}

// PaychStatusByMsg tells of a message, and of the channel that it is for, by any
// cid that a call returned. ErrNotFound where we sent none such, or long ago.
func (m *Manager) PaychStatusByMsg(_ context.Context, id cid.Cid) (*MessageStatus, error) {
	o, err := m.message(id)
	if err != nil {
		return nil, err
	}
	o.a.mu.Lock()
	defer o.a.mu.Unlock()
	return m.messageStatus(o), nil
}

// PaychPending lists the messages without a receipt.
func (m *Manager) PaychPending(context.Context) ([]MessageStatus, error) {
	var all []MessageStatus
	for _, a := range m.list() {
		a.mu.Lock()
		for _, o := range a.sending {
			if o.msg != nil {
				all = append(all, *m.messageStatus(o))
			}
		}
		a.mu.Unlock()
	}
	slices.SortFunc(all, byNonce)
	return all, nil
}

// byNonce orders the messages of each sender.
func byNonce(x, y MessageStatus) int {
	return cmp.Or(bytes.Compare(x.From.Bytes(), y.From.Bytes()), cmp.Compare(x.Nonce, y.Nonce))
}

func (m *Manager) message(id cid.Cid) (*outgoing, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.byCid[id]; o != nil {
		return o, nil
	}
	return nil, fmt.Errorf("%w: message %s", ErrNotFound, id)
}

// PaychWaitReady waits for the receipt of a message that a call returned, and
// returns the address of its channel. A MessageError where it failed.
func (m *Manager) PaychWaitReady(ctx context.Context, id cid.Cid) (address.Address, error) {
	o, err := m.message(id)
	if err != nil {
		return address.Undef, err
	}
	select {
	case <-o.done:
	case <-ctx.Done():
		return address.Undef, ctx.Err()
	}
	o.a.mu.Lock()
	defer o.a.mu.Unlock()
	if !o.msg.state.final() {
		return address.Undef, errors.Join(ErrClosed, o.err)
	}
	return o.a.ch.Addr, o.err
}
