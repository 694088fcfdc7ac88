package devnet

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/filecoin-project/go-address"
	gocrypto "github.com/filecoin-project/go-crypto"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/builtin"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// Manual as a block time means that only Mine makes blocks.
const Manual time.Duration = -1

const (
	// DefaultNetwork is the name of a chain that was given none.
	DefaultNetwork = "tally-devnet"
	// DefaultBlockTime is between two blocks.
	DefaultBlockTime = time.Second
	// DefaultSettleDelay is that of Filecoin: 12 hours of epochs of 30 s, here
	// 24 minutes of the default block time.
	DefaultSettleDelay abi.ChainEpoch = 1440
	// DefaultFinality is short: nobody reverts a devnet but by Reorg.
	DefaultFinality abi.ChainEpoch = 10
)

const (
	// maxBlockMessages bounds what one block executes.
	maxBlockMessages = 500
	// maxBlockBytes bounds its batch: well below durable.MaxBatchBytes with
	// what the messages write.
	maxBlockBytes = 4 << 20
	// MaxMine bounds one call of Mine: a typing error must not cost a night.
	MaxMine = 1_000_000
	// MaxReorg bounds one of Reorg, which is one batch.
	MaxReorg = 10_000
	// MaxLatency is below what clients wait for an answer.
	MaxLatency = 20 * time.Second
	// maxSubscribers bounds those who follow heads, and maxHeadQueue what one
	// of them may have unread before it is dropped.
	maxSubscribers = 64
	maxHeadQueue   = 256
)

var (
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("devnet: closed")
	// ErrConfig: the chain in the store has other facts than the Config asks for.
	ErrConfig = errors.New("devnet: the store has another chain")
	// ErrLimit: more was asked for than one call may do, or less than nothing.
	ErrLimit = errors.New("devnet: too much for one call")
	// ErrNoActor: the text is that of Lotus.
	ErrNoActor = errors.New("actor not found")
)

// Config is what a chain may be told. The zero value is a chain with the
// defaults.
type Config struct {
	// Network is the chain's name. Default DefaultNetwork. Network, SettleDelay
	// and Finality belong to a chain for life: an existing one is opened with
	// them empty or the same.
	Network string
	// BlockTime is between two blocks. Default DefaultBlockTime; Manual.
	BlockTime time.Duration
	// SettleDelay is how long a channel settles, in epochs. Default
	// DefaultSettleDelay.
	SettleDelay abi.ChainEpoch
	// Finality is from which depth on a tipset is called final. Default
	// DefaultFinality.
	Finality abi.ChainEpoch
	// BaseFee is what a unit of gas costs, in attoFIL. Default 0.
	BaseFee big.Int
	// Logger. Default: nothing is logged.
	Logger *slog.Logger
	// Latency is how long each RPC method under Lotus' names waits before it
	// answers. Default 0. SetLatency changes it.
	Latency time.Duration
	// Before, where set, is called before each RPC method with its name; it may
	// wait, to be a slow node, or return an error, to be a broken one.
	Before func(ctx context.Context, method string) error
}

// Chain is a running chain. Its methods may be called at the same time.
type Chain struct {
	store  *durable.Store
	cfg    Config
	log    *slog.Logger
	meta   metaRec
	faucet []byte // private key

	head     atomic.Pointer[head]
	latency  atomic.Int64 // nanoseconds
	commands chan command
	stop     chan struct{}
	ended    chan struct{}
	stopOnce sync.Once

	// view keeps a reorg and pruning from deleting blocks beneath a reader.
	view sync.RWMutex
	// floor is the lowest height that is kept whole. A reader looks at it while it
	// holds view; the owner raises it.
	floor atomic.Int64
	keep  abi.ChainEpoch // of a test; 0 for kept

	// The fields below belong to the owner goroutine.
	pool   *pool
	reorgs uint64
	fail   failing
	broken error // the store failed: nothing goes on

	// subMu guards subs.
	subMu sync.Mutex
	subs  map[chan []change]struct{}
}

// head is a published head. next is closed when another one is.
type head struct {
	blockRec
	next chan struct{}
}

// change is one step of the head.
type change struct {
	revert bool
	block  blockRec
}

// failing is what FailNext asked for.
type failing struct {
	code exitcode.ExitCode
	left int
}

// command is a call on the owner goroutine.
type command struct {
	do   func() error
	done chan error
}

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

func (nothing) actor(context.Context, uint64) (actorRec, bool, error)     { return actorRec{}, false, nil }
func (nothing) id(context.Context, address.Address) (uint64, bool, error) { return 0, false, nil }

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// executed is a message of a block with its receipt.
type executed struct {
	*pending
	receipt wire.Receipt
}

// write adds a block on parent (nil: genesis) to a batch.
func (c *Chain) write(b *durable.Batch, parent *head, state *overlay, msgs []executed) (blockRec, error) {
	var rec blockRec
	ticket := binary.BigEndian.AppendUint64(append([]byte(nil), c.meta.ChainID...), c.reorgs)
	header := &wire.BlockHeader{
		Miner:         idAddress(idReward),
		Ticket:        &wire.Ticket{VRFProof: ticket},
		ElectionProof: &wire.ElectionProof{WinCount: 1},
		BeaconEntries: []wire.BeaconEntry{}, WinPoStProof: []wire.PoStProof{}, Parents: []cid.Cid{},
		Timestamp:     uint64(time.Now().Unix()),
		ParentWeight:  big.Zero(),
		ParentBaseFee: c.cfg.BaseFee,
	}
	empty, err := hashAll(nil)
	if err != nil {
		return rec, err
	}
	header.ParentStateRoot, header.ParentMessageReceipts = empty, empty
	if parent != nil {
		header.Parents = []cid.Cid{parent.Cid}
		header.Height = parent.Header.Height + 1
		header.ParentWeight = big.NewInt(int64(header.Height))
		header.ParentStateRoot, header.ParentMessageReceipts = parent.StateRoot, parent.Receipts
	}
	exec := execRec{Changed: state.changed()}
	var receipts [][]byte
	for i, m := range msgs {
		exec.Cids = append(exec.Cids, m.cid)
		exec.Receipts = append(exec.Receipts, m.receipt)
		data, err := encode(&m.receipt)
		if err != nil {
			return rec, err
		}
		receipts = append(receipts, data)
		from, nonce := m.msg.Message.From, m.msg.Message.Nonce
		b.Delete(keyOfNonce(keyPool, from, nonce))
		if err := put(b, keyOfNonce(keyMined, from, nonce), minedRec{header.Height, i, m.cid}); err != nil {
			return rec, err
		}
	}
	var ids [][]byte
	for _, id := range exec.Cids {
		ids = append(ids, id.Bytes())
	}
	if header.Messages, err = hashAll(ids); err != nil {
		return rec, err
	}
	if rec.Receipts, err = hashAll(receipts); err != nil {
		return rec, err
	}
	if rec.StateRoot, err = state.stateRoot(header.ParentStateRoot); err != nil {
		return rec, err
	}
	for _, id := range exec.Changed {
		version := state.actors[id]
		if err := put(b, keyOfVersion(id, header.Height), version); err != nil {
			return rec, err
		}
		if version.Channel != nil {
			_, _, objects, err := wire.EncodeChannel(context.Background(), version.Channel)
			if err != nil {
				return rec, err
			}
			for id, data := range objects {
				putBytes(b, keyOfCid(keyObject, id), data)
			}
		}
	}
	for a, id := range state.addrs {
		exec.New = append(exec.New, a)
		if err := put(b, keyOfAddr(keyAddr, a), addrRec{id, header.Height}); err != nil {
			return rec, err
		}
	}
	data, err := header.Bytes()
	if err != nil {
		return rec, err
	}
	if rec.Cid, err = wire.Cid(data); err != nil {
		return rec, err
	}
	rec.Header = header
	putBytes(b, keyOfCid(keyObject, rec.Cid), data)
	if len(exec.Changed) > 0 {
		if err := put(b, keyOfHeight(keyExec, header.Height), exec); err != nil {
			return rec, err
		}
	}
	return rec, errors.Join(
		put(b, keyOfHeight(keyBlock, header.Height), rec),
		put(b, keyOfCid(keyCid, rec.Cid), header.Height),
		put(b, keyHead, headRec{header.Height, c.reorgs, abi.ChainEpoch(c.floor.Load())}))
}

// run is the owner goroutine.
func (c *Chain) run() {
	defer close(c.ended)
	var tick <-chan time.Time
	if c.cfg.BlockTime != Manual {
		t := time.NewTicker(c.cfg.BlockTime)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-c.stop:
			return
		case cmd := <-c.commands:
			if c.broken != nil {
				cmd.done <- c.broken
				continue
			}
			cmd.done <- cmd.do()
		case <-tick:
			if c.broken != nil {
				continue
			}
			if err := c.mine(context.Background()); err != nil {
				c.log.Error("no block was made, restart needed", "err", err)
			}
		}
	}
}

// do runs f on the owner goroutine.
func (c *Chain) do(ctx context.Context, f func() error) error {
	cmd := command{do: f, done: make(chan error, 1)}
	select {
	case c.commands <- cmd:
	case <-c.stop:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-cmd.done:
		return err
	case <-c.ended:
		return ErrClosed
	}
}

// Close ends the chain after the command at work. The store stays open.
func (c *Chain) Close() error {
	c.stopOnce.Do(func() { close(c.stop) })
	<-c.ended
	return nil
}

// commit writes a batch of the owner goroutine. After a failure nothing goes
// on: what is in memory may not be what is on disk.
func (c *Chain) commit(b *durable.Batch) error {
	// A batch that is queued lands; a caller that gives up must not make that
	// unknown.
	if err := c.store.Commit(context.Background(), b); err != nil {
		c.broken = fmt.Errorf("devnet: %w", err)
		return c.broken
	}
	return nil
}

// mine makes one block.
func (c *Chain) mine(ctx context.Context) error {
	parent := c.head.Load()
	height := parent.Header.Height + 1
	v := &vm{
		state: newOverlay(past{c, parent.Header.Height}), epoch: height,
		settleDelay: c.meta.SettleDelay, baseFee: c.cfg.BaseFee, fail: c.failNow,
	}
	failBefore := c.fail
	var done []executed
	used := map[address.Address]uint64{}
	size := 0
	for progress := true; progress && len(done) < maxBlockMessages && size < maxBlockBytes; {
		progress = false
		for _, m := range c.pool.turns(used) {
			ok, err := v.fits(ctx, &m.msg.Message)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if len(done) >= maxBlockMessages || size >= maxBlockBytes {
				break
			}
			out, err := v.apply(ctx, &m.msg.Message, m.size)
			if err != nil {
				return err
			}
			done = append(done, executed{m, out.receipt})
			used[m.msg.Message.From] = m.msg.Message.Nonce
			size += m.size
			progress = true
		}
	}
	var b durable.Batch
	var block blockRec
	err := c.prune(ctx, &b, height)
	if err == nil {
		block, err = c.write(&b, parent, v.state, done)
	}
	if err == nil {
		err = c.commit(&b)
	}
	if err != nil {
		c.fail = failBefore
		return err
	}
	for _, m := range done {
		c.pool.remove(m.msg.Message.From, m.msg.Message.Nonce)
	}
	c.publish(block, []change{{block: block}})
	return nil
}

// publish makes block the head.
func (c *Chain) publish(block blockRec, changes []change) {
	old := c.head.Load()
	c.head.Store(&head{blockRec: block, next: make(chan struct{})})
	close(old.next)
	c.subMu.Lock()
	defer c.subMu.Unlock()
	for sub := range c.subs {
		select {
		case sub <- changes:
		default: // too slow: its channel ends, and it asks again
			delete(c.subs, sub)
			close(sub)
		}
	}
}

// failNow is the exit code that FailNext asked for, for the next message.
func (c *Chain) failNow(m *wire.Message) exitcode.ExitCode {
	if c.fail.left == 0 || m.From == c.meta.Faucet {
		return exitcode.Ok
	}
	c.fail.left--
	return c.fail.code
}

// Mine makes n blocks at once.
func (c *Chain) Mine(ctx context.Context, n int) error {
	if n < 0 || n > MaxMine {
		return fmt.Errorf("%w: %d blocks, at most %d", ErrLimit, n, MaxMine)
	}
	for range n {
		if err := c.do(ctx, func() error { return c.mine(context.WithoutCancel(ctx)) }); err != nil {
			return err
		}
	}
	return nil
}

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

// FailNext makes the next count messages fail with code; the faucet's are not
// concerned. It is forgotten at a restart.
func (c *Chain) FailNext(ctx context.Context, code exitcode.ExitCode, count int) error {
	if count < 0 || count > MaxMine {
		return fmt.Errorf("%w: %d messages, at most %d", ErrLimit, count, MaxMine)
	}
	return c.do(ctx, func() error { c.fail = failing{code, count}; return nil })
}

// SetLatency makes each RPC method under Lotus' names wait before it answers; 0
// answers at once. Our own methods do not wait, so that it can be taken back.
func (c *Chain) SetLatency(d time.Duration) error {
	if d < 0 || d > MaxLatency {
		return fmt.Errorf("%w: a latency of %v, 0 to %v", ErrLimit, d, MaxLatency)
	}
	c.latency.Store(int64(d))
	return nil
}

// delay is the latency of a call; it ends early with ctx.
func (c *Chain) delay(ctx context.Context) {
	d := time.Duration(c.latency.Load())
	if d == 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Reorg takes the n topmost blocks back. Their messages return to the pool, or
// are forgotten where drop is set.
func (c *Chain) Reorg(ctx context.Context, n int, drop bool) error {
	return c.do(ctx, func() error { return c.reorg(context.WithoutCancel(ctx), n, drop) })
}

func (c *Chain) reorg(ctx context.Context, n int, drop bool) error {
	top := c.head.Load().Header.Height
	if n < 1 || n > MaxReorg || abi.ChainEpoch(n) > top {
		return fmt.Errorf("%w: revert %d of %d blocks, 1 to %d", ErrLimit, n, top, MaxReorg)
	}
	base := top - abi.ChainEpoch(n)
	if err := c.above(base); err != nil {
		return fmt.Errorf("%w: revert %d of %d blocks: %w", ErrLimit, n, top, err)
	}
	var b durable.Batch
	var changes []change
	var back []*pending
	for h := top; h > base; h-- {
		var block blockRec
		if ok, err := c.get(ctx, keyOfHeight(keyBlock, h), &block); err != nil || !ok {
			return errors.Join(err, noRecord(keyBlock, ok))
		}
		changes = append(changes, change{revert: true, block: block})
		b.Delete(keyOfHeight(keyBlock, h))
		b.Delete(keyOfCid(keyCid, block.Cid))
		var exec execRec
		found, err := c.get(ctx, keyOfHeight(keyExec, h), &exec)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		b.Delete(keyOfHeight(keyExec, h))
		for _, id := range exec.Changed {
			b.Delete(keyOfVersion(id, h))
		}
		for _, a := range exec.New {
			b.Delete(keyOfAddr(keyAddr, a))
		}
		for _, id := range exec.Cids {
			m, err := c.message(ctx, id)
			if err != nil {
				return err
			}
			b.Delete(keyOfNonce(keyMined, m.msg.Message.From, m.msg.Message.Nonce))
			if !drop {
				if err := c.putPool(&b, m); err != nil {
					return err
				}
				back = append(back, m)
			}
		}
	}
	if err := put(&b, keyHead, headRec{base, c.reorgs + 1, abi.ChainEpoch(c.floor.Load())}); err != nil {
		return err
	}
	var block blockRec
	if ok, err := c.get(ctx, keyOfHeight(keyBlock, base), &block); err != nil || !ok {
		return errors.Join(err, noRecord(keyBlock, ok))
	}
	c.view.Lock()
	defer c.view.Unlock()
	if err := c.commit(&b); err != nil {
		return err
	}
	c.reorgs++
	// Within the pool's bounds or not: what was answered for is not forgotten.
	for _, m := range back {
		c.pool.add(m)
	}
	c.publish(block, changes)
	return nil
}

// message reads a signed message by its cid.
func (c *Chain) message(ctx context.Context, id cid.Cid) (*pending, error) {
	data, err := c.Object(ctx, id)
	if err != nil {
		return nil, err
	}
	s, err := wire.DecodeSigned(data)
	if err != nil {
		return nil, err
	}
	return &pending{msg: s, cid: id, size: len(data)}, nil
}

// Object implements wire.Objects.
func (c *Chain) Object(ctx context.Context, id cid.Cid) ([]byte, error) {
	data, err := c.getBytes(ctx, keyOfCid(keyObject, id))
	if errors.Is(err, durable.ErrNotFound) {
		return nil, fmt.Errorf("ipld: could not find %s: %w", id, paych.ErrNotFound)
	}
	return data, err
}

// Params are the chain's.
func (c *Chain) Params() paych.Params {
	epoch := c.cfg.BlockTime
	if epoch == Manual {
		epoch = DefaultBlockTime
	}
	return paych.Params{
		Network: c.meta.Network, Genesis: c.meta.Genesis,
		SettleDelay: c.meta.SettleDelay, Epoch: epoch, Finality: c.meta.Finality,
	}
}

// Head is the height of the head.
func (c *Chain) Head() abi.ChainEpoch { return c.head.Load().Header.Height }

// Check reports the invariant that is broken: the money of all actors is Supply.
func (c *Chain) Check(ctx context.Context) error {
	c.view.RLock()
	defer c.view.RUnlock()
	sum, now := big.Zero(), c.now()
	root, _, err := now.actor(ctx, idInit)
	if err != nil {
		return err
	}
	for id := range root.NextID {
		rec, ok, err := now.actor(ctx, id)
		if err != nil {
			return err
		}
		if ok {
			sum = big.Add(sum, rec.Balance)
		}
	}
	if !sum.Equals(Supply) {
		return fmt.Errorf("devnet: all balances are %v, want %v", sum, Supply)
	}
	return nil
}
