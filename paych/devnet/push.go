package devnet

import (
	"context"
	"fmt"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/builtin"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// Push takes a signed message into the pool, on disk before it returns.
func (c *Chain) Push(ctx context.Context, s *wire.SignedMessage) (cid.Cid, error) {
	m, err := newPending(s)
	if err != nil {
		return cid.Undef, err
	}
	if err := s.Message.Check(); err != nil {
		return cid.Undef, err
	}
	if err := s.Verify(); err != nil {
		return cid.Undef, err
	}
	return m.cid, c.do(ctx, func() error { return c.push(context.WithoutCancel(ctx), m) })
}

func newPending(s *wire.SignedMessage) (*pending, error) {
	data, err := s.Bytes()
	if err != nil {
		return nil, err
	}
	if len(data) > wire.MaxMessageBytes {
		return nil, fmt.Errorf("mpool message too large (%dB): %w", len(data), ErrTooBig)
	}
	id, err := s.Cid()
	if err != nil {
		return nil, err
	}
	return &pending{msg: s, cid: id, size: len(data)}, nil
}

// push runs on the owner goroutine.
func (c *Chain) push(ctx context.Context, m *pending) error {
	msg := &m.msg.Message
	_, sender, ok, err := find(ctx, c.now(), msg.From)
	if err != nil {
		return err
	}
	if !ok || sender.Code != codeAccount {
		return fmt.Errorf("failed to look up actor state nonce: resolve address %s: %w", msg.From, ErrNoActor)
	}
	if msg.Nonce < sender.Nonce {
		return fmt.Errorf("minimum expected nonce is %d: %w", sender.Nonce, ErrNonceTooLow)
	}
	if msg.Nonce-sender.Nonce > maxNonceGap {
		return fmt.Errorf("nonce %d is more than %d above %d: %w", msg.Nonce, maxNonceGap, sender.Nonce, ErrNonceGap)
	}
	if need := big.Mul(nonNil(msg.GasFeeCap), big.NewInt(msg.GasLimit)); sender.Balance.LessThan(need) {
		return fmt.Errorf("not enough funds (required: %s, balance: %s): %w", need, sender.Balance, ErrFunds)
	}
	if err := c.pool.check(m); err != nil {
		return err
	}
	var b durable.Batch
	if err := c.putPool(&b, m); err != nil {
		return err
	}
	if err := c.commit(&b); err != nil {
		return err
	}
	c.pool.add(m)
	return nil
}

// putPool adds a pending message to a batch, under the cid of its signed form
// and that of its unsigned form, as Lotus knows it by both.
func (c *Chain) putPool(b *durable.Batch, m *pending) error {
	data, err := m.msg.Bytes()
	if err != nil {
		return err
	}
	bare, err := encode(&m.msg.Message)
	if err != nil {
		return err
	}
	bareCid, err := wire.Cid(bare)
	if err != nil {
		return err
	}
	putBytes(b, keyOfCid(keyObject, m.cid), data)
	putBytes(b, keyOfCid(keyObject, bareCid), bare)
	return put(b, keyOfNonce(keyPool, m.msg.Message.From, m.msg.Message.Nonce), m.cid)
}

// now is the state after the head's messages.
func (c *Chain) now() past { return past{c, c.head.Load().Header.Height} }

// Faucet sends amount to a key address by a message, and returns its cid.
func (c *Chain) Faucet(ctx context.Context, to address.Address, amount big.Int) (cid.Cid, error) {
	var id cid.Cid
	err := c.do(ctx, func() error {
		ctx := context.WithoutCancel(ctx)
		_, faucet, _, err := find(ctx, c.now(), c.meta.Faucet)
		if err != nil {
			return err
		}
		msg := wire.Message{
			From: c.meta.Faucet, To: to, Value: nonNil(amount), Method: builtin.MethodSend,
			Nonce: c.pool.next(c.meta.Faucet, faucet.Nonce), GasLimit: wire.BlockGasLimit / 100,
			GasFeeCap: big.Mul(c.cfg.BaseFee, big.NewInt(2)), GasPremium: big.Zero(),
		}
		if err := msg.Check(); err != nil {
			return err
		}
		m, err := sign(c.faucet, msg)
		if err != nil {
			return err
		}
		id = m.cid
		return c.push(ctx, m)
	})
	return id, err
}

// sign makes a message of the wallet's.
func sign(key []byte, msg wire.Message) (*pending, error) {
	bare, err := msg.Cid()
	if err != nil {
		return nil, err
	}
	sig, err := wire.Sign(key, bare.Bytes())
	if err != nil {
		return nil, err
	}
	return newPending(&wire.SignedMessage{Message: msg, Signature: *sig})
}
