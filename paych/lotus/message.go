package lotus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/lotus/wire"
)

const (
	// maxPrepared bounds the nonces of one sender that are given out and not on
	// the chain, as nodes bound pending messages.
	maxPrepared = 1000
	// maxSent bounds the messages that are pushed again while they are waited for.
	maxSent = 4096
	// repushEvery is after how many new heads that is done. A node may lose its
	// pool, and a reorganisation may lose a message.
	repushEvery = 5
	// bumpPercent is what a replacement offers of the old premium; nodes want 110
	// or 125, by version.
	bumpPercent = 126
)

// nonces are those given out by Prepare. Two messages that are prepared side by
// side must not get the same one, and the node knows only of what was pushed.
type nonces struct {
	ttl time.Duration
	// mu guards taken.
	mu    sync.Mutex
	taken map[address.Address]map[uint64]time.Time // zero time: published, kept until mined
}

// take gives out the first nonce at or above next that is free.
func (n *nonces) take(a address.Address, next uint64, now time.Time) (uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.taken == nil {
		n.taken = map[address.Address]map[uint64]time.Time{}
	}
	mine := n.taken[a]
	if mine == nil {
		mine = map[uint64]time.Time{}
		n.taken[a] = mine
	}
	for nonce, since := range mine {
		if nonce < next || !since.IsZero() && now.Sub(since) > n.ttl {
			delete(mine, nonce)
		}
	}
	if len(mine) >= maxPrepared {
		return 0, fmt.Errorf("%w: %d of %s", ErrBusy, len(mine), a)
	}
	for {
		if _, ok := mine[next]; !ok {
			break
		}
		next++
	}
	mine[next] = now
	return next, nil
}

// keep holds a nonce until it is mined.
func (n *nonces) keep(a address.Address, nonce uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.taken == nil {
		n.taken = map[address.Address]map[uint64]time.Time{}
	}
	if n.taken[a] == nil {
		n.taken[a] = map[uint64]time.Time{}
	}
	if len(n.taken[a]) < maxPrepared {
		n.taken[a][nonce] = time.Time{}
	}
}

// free gives a nonce back that was not published.
func (n *nonces) free(a address.Address, nonce uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if since, ok := n.taken[a][nonce]; ok && !since.IsZero() {
		delete(n.taken[a], nonce)
	}
}

// sent are messages that were published here, by cid.
type sent struct {
	// mu guards byCid.
	mu    sync.Mutex
	byCid map[cid.Cid]*wire.SignedMessage
}

func (s *sent) put(id cid.Cid, m *wire.SignedMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byCid == nil {
		s.byCid = map[cid.Cid]*wire.SignedMessage{}
	}
	if len(s.byCid) < maxSent {
		s.byCid[id] = m
	}
}

func (s *sent) get(id cid.Cid) *wire.SignedMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byCid[id]
}

// replaced reports whether a message published here differs from m in nothing
// but gas.
func (s *sent) replaced(id cid.Cid, m *wire.Message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for other, o := range s.byCid {
		if other != id && o.Message.EqualCall(m) {
			return true
		}
	}
	return false
}

// drop forgets a message that is mined, and what it replaced.
func (s *sent) drop(m *wire.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, o := range s.byCid {
		if o.Message.From == m.From && o.Message.Nonce == m.Nonce {
			delete(s.byCid, id)
		}
	}
}

// Prepare implements paych.Chain. The nonce is kept for the message until it is
// published, discarded, or Config.PrepareTTL is over.
func (c *Client) Prepare(ctx context.Context, m paych.Message) (*paych.SignedMessage, error) {
	if err := c.trust(ctx); err != nil {
		return nil, err
	}
	from, err := c.ResolveKey(ctx, m.From)
	if err != nil {
		return nil, err
	}
	msg := &wire.Message{
		From: from, To: m.To, Value: nonNil(m.Value), Method: m.Method, Params: m.Params,
		GasFeeCap: big.Zero(), GasPremium: big.Zero(),
	}
	full, err := c.price(ctx, msg)
	if err != nil {
		return nil, err
	}
	next, err := c.node.MpoolGetNonce(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("lotus: nonce of %s: %w", from, err)
	}
	if full.Nonce, err = c.nonces.take(from, next, time.Now()); err != nil {
		return nil, err
	}
	out, err := c.sign(ctx, full)
	if err != nil {
		c.nonces.free(from, full.Nonce)
		return nil, err
	}
	return out, nil
}

// price fills in gas, within the limit.
func (c *Client) price(ctx context.Context, msg *wire.Message) (*wire.Message, error) {
	full, err := c.node.GasEstimateMessageGas(ctx, msg, &wire.MessageSendSpec{MaxFee: c.cfg.MaxFee, MsgUuid: noUUID}, nil)
	switch {
	case poor(err):
		return nil, fmt.Errorf("%w: %s cannot pay for gas: %w", paych.ErrBalance, msg.From, err)
	case executionFailed(err):
		return nil, fmt.Errorf("%w: %w", ErrExecution, err)
	case err != nil:
		return nil, fmt.Errorf("lotus: estimate gas: %w", err)
	case full == nil || !full.EqualCall(msg) && !sameBut(full, msg):
		return nil, errors.New("lotus: estimate gas: the node sent another message back")
	}
	priced := *msg // of the answer only the gas is taken
	priced.GasLimit, priced.GasFeeCap, priced.GasPremium = full.GasLimit, nonNil(full.GasFeeCap), nonNil(full.GasPremium)
	return &priced, c.affordable(&priced)
}

// sameBut reports whether a node only filled in the nonce beside the gas.
func sameBut(full, msg *wire.Message) bool {
	o := *full
	o.Nonce = msg.Nonce
	return o.EqualCall(msg)
}

// noUUID is no message's: the estimate is not tied to a push.
const noUUID = "00000000-0000-0000-0000-000000000000"

func (c *Client) affordable(m *wire.Message) error {
	if err := m.Check(); err != nil {
		return fmt.Errorf("lotus: %w", err)
	}
	if fee := big.Mul(m.GasFeeCap, big.NewInt(m.GasLimit)); fee.GreaterThan(c.cfg.MaxFee) {
		return fmt.Errorf("%w: %v attoFIL, at most %v", ErrFee, fee, c.cfg.MaxFee)
	}
	return nil
}

// sign has a message signed, by the local wallet or by the node, and checks it.
func (c *Client) sign(ctx context.Context, msg *wire.Message) (*paych.SignedMessage, error) {
	bare, err := msg.Cid()
	if err != nil {
		return nil, err
	}
	var sig *crypto.Signature
	if c.cfg.Wallet != nil {
		if sig, err = c.cfg.Wallet.Sign(ctx, msg.From, bare.Bytes()); err != nil {
			return nil, fmt.Errorf("lotus: sign: %w", err)
		}
	} else {
		s, err := c.node.WalletSignMessage(ctx, msg.From, msg)
		if err != nil {
			return nil, fmt.Errorf("lotus: sign with the node's wallet: %w", err)
		}
		if s == nil {
			return nil, errors.New("lotus: sign with the node's wallet: the node sent no message")
		}
		sig = &s.Signature // over our message or it is refused below
	}
	s := &wire.SignedMessage{Message: *msg, Signature: *sig}
	if msg.From.Protocol() == address.SECP256K1 {
		if err := s.Verify(); err != nil {
			return nil, fmt.Errorf("lotus: sign: %w", err)
		}
	}
	return pack(s)
}

func pack(s *wire.SignedMessage) (*paych.SignedMessage, error) {
	raw, err := s.Bytes()
	if err != nil {
		return nil, err
	}
	id, err := s.Cid()
	if err != nil {
		return nil, err
	}
	return &paych.SignedMessage{Cid: id, From: s.Message.From, Nonce: s.Message.Nonce, Raw: raw}, nil
}

func unpack(m *paych.SignedMessage) (*wire.SignedMessage, error) {
	s, err := wire.DecodeSigned(m.Raw)
	if err != nil {
		return nil, fmt.Errorf("lotus: %w", err)
	}
	id, err := s.Cid()
	if err != nil {
		return nil, err
	}
	if id != m.Cid || s.Message.From != m.From || s.Message.Nonce != m.Nonce {
		return nil, fmt.Errorf("lotus: bytes of %s are of message %s", m.Cid, id)
	}
	return s, nil
}

// Nonce implements paych.Replacer.
func (c *Client) Nonce(ctx context.Context, sender address.Address, depth abi.ChainEpoch) (n uint64, err error) {
	err = fresh(func() error {
		ts, err := c.head(ctx)
		if err != nil {
			return err
		}
		if depth > 0 {
			if depth > ts.Height {
				return nil // before the chain began
			}
			if ts, err = c.at(ctx, ts.Height-depth, ts.Cids); err != nil {
				return err
			}
		}
		n, err = c.nonceAt(ctx, ts, sender)
		return err
	})
	return n, err
}

// Discard implements paych.Replacer: it gives the nonce of a prepared message back
// that will not be published.
func (c *Client) Discard(m *paych.SignedMessage) { c.nonces.free(m.From, m.Nonce) }

// Publish implements paych.Chain.
func (c *Client) Publish(ctx context.Context, m *paych.SignedMessage) error {
	s, err := unpack(m)
	if err != nil {
		return err
	}
	if err := c.trust(ctx); err != nil {
		return err
	}
	// From here on it may be out, whatever the answer.
	c.nonces.keep(m.From, m.Nonce)
	c.sent.put(m.Cid, s)
	return c.push(ctx, m.Cid, s)
}

func (c *Client) push(ctx context.Context, id cid.Cid, s *wire.SignedMessage) error {
	got, err := c.node.MpoolPush(ctx, s)
	switch {
	case err == nil && got != id:
		return fmt.Errorf("lotus: the node took %s as %s", id, got)
	case err == nil, inPool(err):
		return nil
	case underpriced(err) && c.sent.replaced(id, &s.Message):
		return nil // the one that replaced it is there
	case nonceTooLow(err):
		return c.mined(ctx, id, s, err)
	}
	if poor(err) {
		err = fmt.Errorf("%w: %w", paych.ErrBalance, err)
	}
	return fmt.Errorf("lotus: publish %s: %w", id, err)
}

// mined decides what it means that the nonce is used: the message is on the
// chain, which is what was wanted, or another one is.
func (c *Client) mined(ctx context.Context, id cid.Cid, s *wire.SignedMessage, cause error) error {
	head, err := c.head(ctx)
	if err != nil {
		return err
	}
	found, err := c.node.StateSearchMsg(ctx, head.Cids, id, c.cfg.Lookback, true)
	if err == nil && found != nil {
		return nil
	}
	if notReplacement(err) {
		return fmt.Errorf("%w: %s, nonce %d of %s", ErrNonceTaken, id, s.Message.Nonce, s.Message.From)
	}
	// In the head, and not executed before the next tipset.
	msgs, err := c.node.ChainGetMessagesInTipset(ctx, head.Cids)
	if err == nil {
		for _, m := range msgs {
			if m.Message != nil && m.Message.EqualCall(&s.Message) {
				return nil
			}
		}
	}
	// A node knows only messages that it was given, and takes none whose nonce is
	// used. Which message used it, the chain tells.
	user, userErr := c.nonceUser(ctx, head, s.Message.From, s.Message.Nonce)
	switch {
	case userErr != nil:
		err = errors.Join(err, userErr)
	case user != nil && user.Message.EqualCall(&s.Message):
		return nil
	case user != nil:
		return fmt.Errorf("%w: %s, nonce %d of %s, by %s", ErrNonceTaken, id, s.Message.Nonce, s.Message.From, user.Cid)
	}
	return fmt.Errorf("lotus: publish %s: %w", id, errors.Join(cause, err))
}

// nonceUser finds the message that used a nonce, as seen from head; nil where none
// is executed yet. An account's nonce only rises, so that halving the chain finds
// the tipset.
func (c *Client) nonceUser(ctx context.Context, head *wire.TipSet, sender address.Address, nonce uint64) (*wire.CidMessage, error) {
	high := head
	if n, err := c.nonceAt(ctx, high, sender); err != nil || n <= nonce {
		return nil, err
	}
	low := abi.ChainEpoch(0)
	if c.cfg.Lookback > 0 {
		low = max(low, head.Height-c.cfg.Lookback)
	}
	for low < high.Height { // the nonce is used at high
		mid, err := c.at(ctx, low+(high.Height-low)/2, head.Cids)
		if err != nil {
			return nil, err
		}
		if mid.Height < low {
			low += (high.Height-low)/2 + 1 // no tipset between
			continue
		}
		n, err := c.nonceAt(ctx, mid, sender)
		switch {
		case err != nil:
			return nil, err
		case n > nonce:
			high = mid
		default:
			low += (high.Height-low)/2 + 1
		}
	}
	msgs, err := c.node.ChainGetParentMessages(ctx, high.Cids[0])
	if err != nil {
		return nil, fmt.Errorf("lotus: messages before %d: %w", high.Height, err)
	}
	for i := range msgs {
		m := msgs[i].Message
		if m == nil || m.Nonce != nonce {
			continue
		}
		from, err := c.ResolveKey(ctx, m.From)
		if err != nil {
			return nil, err
		}
		if from == sender {
			return &msgs[i], nil
		}
	}
	return nil, fmt.Errorf("lotus: nonce %d of %s: the message that used it is not at %d", nonce, sender, high.Height)
}

// nonceAt is the first nonce that is not used at a tipset.
func (c *Client) nonceAt(ctx context.Context, ts *wire.TipSet, sender address.Address) (uint64, error) {
	act, err := c.node.StateGetActor(ctx, sender, ts.Cids)
	switch {
	case actorNotFound(err):
		return 0, nil // it never sent one
	case err != nil:
		return 0, fmt.Errorf("lotus: nonce of %s: %w", sender, err)
	case act == nil:
		return 0, fmt.Errorf("lotus: nonce of %s: the node sent no actor", sender)
	}
	return act.Nonce, nil
}

// Bump implements paych.Replacer: it prepares a message in place of m, with the
// same nonce and for a higher fee, at most Config.MaxFee: ErrFee. Save it beside m,
// then publish it; Wait on either cid that the node was given sees which of them
// was mined.
func (c *Client) Bump(ctx context.Context, m *paych.SignedMessage) (*paych.SignedMessage, error) {
	s, err := unpack(m)
	if err != nil {
		return nil, err
	}
	if err := c.trust(ctx); err != nil {
		return nil, err
	}
	old := &s.Message
	next := *old
	least := big.Add(big.Div(big.Mul(old.GasPremium, big.NewInt(bumpPercent)), big.NewInt(100)), big.NewInt(1))
	next.GasPremium, next.GasFeeCap = least, big.Add(old.GasFeeCap, big.Sub(least, old.GasPremium))
	// What the network asks for now. The estimate may fail where the message
	// itself is what it is run after; then the old prices are raised.
	ask := *old
	ask.GasFeeCap, ask.GasPremium = big.Zero(), big.Zero()
	if now, err := c.price(ctx, &ask); err == nil {
		next.GasPremium = big.Max(least, now.GasPremium)
		next.GasFeeCap = big.Max(next.GasFeeCap, big.Max(now.GasFeeCap, next.GasPremium))
	} else if errors.Is(err, ErrFee) {
		return nil, err
	}
	if err := c.affordable(&next); err != nil {
		return nil, err
	}
	return c.sign(ctx, &next)
}

// Fill implements paych.Filler.
func (c *Client) Fill(ctx context.Context, sender address.Address, nonce uint64) error {
	if err := c.trust(ctx); err != nil {
		return err
	}
	from, err := c.ResolveKey(ctx, sender)
	if err != nil {
		return err
	}
	msg, err := c.price(ctx, &wire.Message{
		From: from, To: from, Value: big.Zero(), GasFeeCap: big.Zero(), GasPremium: big.Zero(),
	})
	if err != nil {
		return err
	}
	msg.Nonce = nonce
	signed, err := c.sign(ctx, msg)
	if err != nil {
		return err
	}
	s, err := unpack(signed)
	if err != nil {
		return err
	}
	c.nonces.keep(from, nonce)
	err = c.push(ctx, signed.Cid, s)
	if underpriced(err) || errors.Is(err, ErrNonceTaken) {
		return nil // the node holds another with the nonce, or it is mined
	}
	return err
}

// Wait implements paych.Chain. It looks at each new head, so a message that a
// reorganisation took out is waited for again. A message that was published here
// and is not on the chain is pushed again now and then.
func (c *Client) Wait(ctx context.Context, id cid.Cid, confidence abi.ChainEpoch) (*paych.Receipt, error) {
	node, leave := c.follow()
	defer leave()
	// The node that was polled last may be old, from when somebody else waited.
	ts, err := c.head(ctx)
	if err != nil {
		return nil, err
	}
	var found *wire.MsgLookup
	for heads := 1; ; heads++ {
		now, err := c.check(ctx, ts, id, found)
		switch {
		case staleTipset(err):
			// Reverted meanwhile; the poller sees the new head.
		case err != nil:
			return nil, err
		default:
			found = now
		}
		if err == nil && found != nil && ts.Height-found.Height >= confidence {
			return c.receipt(id, found), nil
		}
		if found == nil && heads%repushEvery == 0 {
			if err := c.repush(ctx, id); errors.Is(err, ErrNonceTaken) {
				return nil, err
			}
		}
		select {
		case <-node.next:
			node = node.after
			ts = node.ts
		case <-c.stop:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// check says where a message is executed as seen from ts; before is what was
// said at the head before.
func (c *Client) check(ctx context.Context, ts *wire.TipSet, id cid.Cid, before *wire.MsgLookup) (*wire.MsgLookup, error) {
	if before != nil {
		// Searching again would need a look-back as deep as the confidence, which
		// not every node allows.
		if before.Height <= ts.Height {
			at, err := c.at(ctx, before.Height, ts.Cids)
			if err != nil {
				return nil, err
			}
			if at.Cids.Equals(before.TipSet) {
				return before, nil
			}
		}
		c.log.Info("message was reverted", "cid", id, "height", before.Height)
	}
	found, err := c.node.StateSearchMsg(ctx, ts.Cids, id, c.cfg.Lookback, true)
	switch {
	case notReplacement(err):
		return nil, fmt.Errorf("%w: %s: %w", ErrNonceTaken, id, err)
	case unknownMessage(err):
		if err := c.repush(ctx, id); errors.Is(err, ErrNonceTaken) {
			return nil, err
		}
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("lotus: search %s: %w", id, err)
	}
	return found, nil
}

// repush hands a message to the node again. Of the answers only ErrNonceTaken
// matters: else it is on the chain, in the pool, or tried again later.
func (c *Client) repush(ctx context.Context, id cid.Cid) error {
	s := c.sent.get(id)
	if s == nil {
		return nil
	}
	err := c.trust(ctx)
	if err == nil {
		err = c.push(ctx, id, s)
	}
	if err != nil {
		c.log.Debug("message not pushed again", "cid", id, "err", err)
	}
	return err
}

func (c *Client) receipt(id cid.Cid, found *wire.MsgLookup) *paych.Receipt {
	if s := c.sent.get(id); s != nil {
		c.sent.drop(&s.Message)
	}
	r := &paych.Receipt{
		Cid: id, Height: found.Height,
		ExitCode: found.Receipt.ExitCode, Return: found.Receipt.Return, GasUsed: found.Receipt.GasUsed,
	}
	if found.Message.Defined() && found.Message != id {
		r.Replaced = found.Message
	}
	return r
}

// redeemGas is about what a payee pays for until it has its money: one submit, one
// settle and one collect.
const redeemGas = 16_000_000

// RedeemFee is what it costs a payee to submit, settle and collect, in attoFIL: at
// twice the base fee of the head, for it may rise until then.
func (c *Client) RedeemFee(ctx context.Context) (big.Int, error) {
	ts, err := c.head(ctx)
	if err != nil {
		return big.Zero(), err
	}
	return big.Mul(nonNil(ts.Blocks[0].ParentBaseFee), big.NewInt(2*redeemGas)), nil
}
