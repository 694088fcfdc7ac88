package devnet

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/filecoin-project/go-address"
	gocrypto "github.com/filecoin-project/go-crypto"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// Open opens the chain in store, or begins one, and runs it until Close. The
// caller keeps the store and closes it after.
func Open(ctx context.Context, store *durable.Store, cfg Config) (*Chain, error) {
	if cfg.BlockTime == 0 {
		cfg.BlockTime = DefaultBlockTime
	}
	if cfg.BlockTime < 0 && cfg.BlockTime != Manual || cfg.SettleDelay < 0 || cfg.Finality < 0 || nonNil(cfg.BaseFee).Sign() < 0 {
		return nil, errors.New("devnet: block time, settle delay, finality and base fee must not be below 0")
	}
	cfg.BaseFee = nonNil(cfg.BaseFee)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Chain{
		store: store, cfg: cfg, log: cfg.Logger, pool: newPool(),
		commands: make(chan command), stop: make(chan struct{}), ended: make(chan struct{}),
		subs: map[chan []change]struct{}{},
	}
	if err := c.SetLatency(cfg.Latency); err != nil {
		return nil, err
	}
	found, err := c.get(ctx, keyMeta, &c.meta)
	if err == nil && !found {
		err = c.genesis(ctx)
	}
	if err == nil {
		err = c.load(ctx)
	}
	if err != nil {
		return nil, err
	}
	go c.run() // ends with Close
	return c, nil
}

// load reads where the chain is.
func (c *Chain) load(ctx context.Context) error {
	for _, x := range []struct {
		what       string
		have, want any
		any        bool
	}{
		{"network", c.meta.Network, c.cfg.Network, c.cfg.Network == ""},
		{"settle delay", c.meta.SettleDelay, c.cfg.SettleDelay, c.cfg.SettleDelay == 0},
		{"finality", c.meta.Finality, c.cfg.Finality, c.cfg.Finality == 0},
	} {
		if !x.any && x.have != x.want {
			return fmt.Errorf("%w: its %s is %v, not %v; use another repo", ErrConfig, x.what, x.have, x.want)
		}
	}
	var err error
	if c.faucet, err = c.getBytes(ctx, keyOfAddr(keyKey, c.meta.Faucet)); err != nil {
		return fmt.Errorf("devnet: faucet key: %w", err)
	}
	var at headRec
	if ok, err := c.get(ctx, keyHead, &at); err != nil || !ok {
		return errors.Join(err, noRecord(keyHead, ok))
	}
	c.reorgs = at.Reorgs
	c.floor.Store(int64(at.Floor))
	var block blockRec
	if ok, err := c.get(ctx, keyOfHeight(keyBlock, at.Height), &block); err != nil || !ok {
		return errors.Join(err, noRecord(keyBlock, ok))
	}
	c.head.Store(&head{blockRec: block, next: make(chan struct{})})
	return c.loadPool(ctx)
}

func noRecord(key string, found bool) error {
	if found {
		return nil
	}
	return fmt.Errorf("devnet: %w: no record at %s", durable.ErrDamaged, key)
}

func (c *Chain) loadPool(ctx context.Context) error {
	var all []cid.Cid
	err := c.store.Scan(ctx, keyPool, "", func(key string, value []byte) error {
		payload, err := open(key, value)
		if err != nil {
			return err
		}
		var id cid.Cid
		if err := json.Unmarshal(payload, &id); err != nil {
			return err
		}
		all = append(all, id)
		return nil
	})
	if err != nil {
		return fmt.Errorf("devnet: read pool: %w", err)
	}
	for _, id := range all {
		m, err := c.message(ctx, id)
		if err != nil {
			return err
		}
		c.pool.add(m)
	}
	return nil
}

// genesis begins a chain.
func (c *Chain) genesis(ctx context.Context) error {
	id := make([]byte, 32)
	_, _ = rand.Read(id) // never fails
	key, err := gocrypto.GenerateKey()
	if err != nil {
		return fmt.Errorf("devnet: make faucet key: %w", err)
	}
	faucet, err := wire.KeyAddress(key)
	if err != nil {
		return fmt.Errorf("devnet: make faucet key: %w", err)
	}
	c.meta = metaRec{
		Network: orDefault(c.cfg.Network, DefaultNetwork), ChainID: id, Faucet: faucet,
		SettleDelay: orDefault(c.cfg.SettleDelay, DefaultSettleDelay), Finality: orDefault(c.cfg.Finality, DefaultFinality),
	}
	state := newOverlay(nothing{})
	for id, code := range map[uint64]string{idSystem: codeSystem, idReward: codeReward, idBurnt: codeAccount} {
		state.actors[id] = actorRec{Code: code, Balance: big.Zero()}
	}
	state.actors[idInit] = actorRec{Code: codeInit, Balance: big.Zero(), NextID: idFirst}
	state.actors[idFaucet] = actorRec{Code: codeAccount, Balance: Supply, Key: faucet}
	state.addrs[faucet] = idFaucet

	var b durable.Batch
	putBytes(&b, keyOfAddr(keyKey, faucet), key)
	block, err := c.write(&b, nil, state, nil)
	if err != nil {
		return err
	}
	c.meta.Genesis = block.Cid
	if err := put(&b, keyMeta, c.meta); err != nil {
		return err
	}
	if err := c.store.Commit(ctx, &b); err != nil {
		return fmt.Errorf("devnet: write genesis: %w", err)
	}
	return nil
}

// Supply is all the money of a chain, in attoFIL: the faucet's at the beginning.
var Supply = big.Mul(big.NewInt(1_000_000_000), big.NewInt(1_000_000_000_000_000_000))

// nothing is the state before genesis.
type nothing struct{}

func (nothing) actor(context.Context, uint64) (actorRec, bool, error) { return actorRec{}, false, nil }

func (nothing) id(context.Context, address.Address) (uint64, bool, error) { return 0, false, nil }

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}
