package paychtest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/builtin"
	initactor "github.com/filecoin-project/go-state-types/builtin/v8/init"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/actor"
)

// Chain is a chain in memory with the real rules of the payment channel actor.
// It moves by Mine or Run alone. Messages cost no gas and carry no signature.
type Chain struct {
	params paych.Params

	// mu guards the fields below.
	mu      sync.Mutex
	tipsets []tipset // by height, from 0
	pool    []*posted
	changed chan struct{} // closed and replaced when anything changes
	reverts uint64
	nextID  uint64

	published []Published
	given     map[cid.Cid]*envelope // all that Publish was ever given
	onPrepare func(m *paych.Message) error
	onPublish func(n int, m *paych.SignedMessage) (carry bool, err error)
	fails     []exitcode.ExitCode
	down      error
	mute      bool   // the news of heads is kept back
	floor     uint64 // the least fee that is mined
	feeCap    uint64 // the most that Bump offers
	discarded int
}

// Published is one call of Publish that was carried.
type Published struct {
	Cid  cid.Cid
	Raw  []byte
	Kind abi.MethodNum
	To   address.Address
}

type account struct {
	key     address.Address
	balance big.Int
	nonce   uint64
}

// channel is one payment channel; its state is never changed, only replaced, and
// nil once it is collected.
type channel struct {
	id, robust address.Address
	state      *actor.State
	balance    big.Int
}

// world is the state after a tipset.
type world struct {
	accounts map[address.Address]account // by id
	keys     map[address.Address]address.Address
	channels map[address.Address]channel // by robust address
}

func (w world) clone() world {
	return world{accounts: maps.Clone(w.accounts), keys: maps.Clone(w.keys), channels: maps.Clone(w.channels)}
}

type tipset struct {
	world    world
	messages []*posted
	receipts []paych.Receipt
	calls    map[address.Address][]paych.Call
	index    map[slot]int // of messages
}

// slot is a sender's nonce.
type slot struct {
	from  address.Address
	nonce uint64
}

// posted is a message in the pool or on the chain.
type posted struct {
	Cid cid.Cid `json:"-"`
	envelope
}

// envelope is a message as its raw bytes are.
type envelope struct {
	From, To address.Address
	Nonce    uint64
	Value    big.Int
	Method   abi.MethodNum
	Params   []byte
	// Fee decides whether it is mined, and costs nothing.
	Fee uint64
}

// replaces reports whether two messages differ in nothing but their fee.
func (e *envelope) replaces(o *envelope) bool {
	return e.From == o.From && e.To == o.To && e.Nonce == o.Nonce && e.Value.Equals(o.Value) &&
		e.Method == o.Method && bytes.Equal(e.Params, o.Params)
}

var (
	_ paych.Chain      = (*Chain)(nil)
	_ paych.ActorCoder = (*Chain)(nil)
	_ paych.Filler     = (*Chain)(nil)
)

// DefaultParams are those of a small chain: a channel settles in 40 epochs.
func DefaultParams() paych.Params {
	return paych.Params{Network: "paychtest", Genesis: code, SettleDelay: 40, Epoch: time.Second, Finality: 2}
}

// code is the actor's code cid here.
var code = sum([]byte("paychtest"))

func sum(b []byte) cid.Cid {
	hash, err := multihash.Sum(b, multihash.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.Raw, hash)
}

// NewChain returns a chain at epoch 1.
func NewChain(p paych.Params) *Chain {
	c := &Chain{params: p, feeCap: 100, given: make(map[cid.Cid]*envelope), changed: make(chan struct{}), nextID: 1000}
	w := world{
		accounts: make(map[address.Address]account),
		keys:     make(map[address.Address]address.Address),
		channels: make(map[address.Address]channel),
	}
	c.tipsets = []tipset{{world: w}, {world: w.clone()}}
	return c
}

// head is called with mu held.
func (c *Chain) head() abi.ChainEpoch { return abi.ChainEpoch(len(c.tipsets) - 1) }

// at is the world at a height; called with mu held.
func (c *Chain) at(h abi.ChainEpoch) world {
	return c.tipsets[max(0, min(h, c.head()))].world
}

// wake is called with mu held.
func (c *Chain) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Fund gives money to a key, in the head's state, and returns its id address.
func (c *Chain) Fund(key address.Address, amount int64) address.Address {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.at(c.head())
	id, ok := w.keys[key]
	if !ok {
		id = c.newID()
		w.keys[key] = id
		w.accounts[id] = account{key: key, balance: big.Zero()}
	}
	a := w.accounts[id]
	a.balance = big.Add(a.balance, big.NewInt(amount))
	w.accounts[id] = a
	return id
}

func (c *Chain) newID() address.Address {
	c.nextID++
	id, err := address.NewIDAddress(c.nextID)
	if err != nil {
		panic(err)
	}
	return id
}

// OnPublish sets a hook before each Publish, counted from 1: carry says whether
// the message reaches the pool, err what the caller is told.
func (c *Chain) OnPublish(hook func(n int, m *paych.SignedMessage) (carry bool, err error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onPublish = hook
}

// OnPrepare sets a hook that may refuse or hold up a Prepare.
func (c *Chain) OnPrepare(hook func(m *paych.Message) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onPrepare = hook
}

// FailNext makes the next mined messages fail with these exit codes; 0 is no
// fault.
func (c *Chain) FailNext(codes ...exitcode.ExitCode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fails = append(c.fails, codes...)
}

// Down makes every call fail with err until it is called with nil.
func (c *Chain) Down(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = err
	c.wake()
}

// Mute keeps the news of heads from all who listen, until it is called with false.
func (c *Chain) Mute(mute bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute = mute
	c.wake()
}

// Fees sets the least fee that is mined and the most that Bump offers. A message is
// prepared with the fee 1.
func (c *Chain) Fees(floor, most uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.floor, c.feeCap = floor, most
}

// Steal sends a message of another program that uses the key, under its next
// nonce, in place of what is in the pool; it is mined with the next tipset.
func (c *Chain) Steal(key address.Address) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.at(c.head())
	e := envelope{From: key, To: key, Nonce: w.accounts[w.keys[key]].nonce, Value: big.Zero(), Fee: c.floor}
	raw, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	c.pool = slices.DeleteFunc(c.pool, func(p *posted) bool { return p.From == key && p.Nonce == e.Nonce })
	c.pool = append(c.pool, &posted{Cid: sum(raw), envelope: e})
}

// Discarded is how often Discard was called.
func (c *Chain) Discarded() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.discarded
}

// Discard implements paych.Replacer.
func (c *Chain) Discard(*paych.SignedMessage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.discarded++
}

// Nonce implements paych.Replacer.
func (c *Chain) Nonce(_ context.Context, sender address.Address, depth abi.ChainEpoch) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil {
		return 0, c.down
	}
	w := c.at(c.head() - depth)
	return w.accounts[w.keys[sender]].nonce, nil
}

// Bump implements paych.Replacer: it offers twice the fee.
func (c *Chain) Bump(_ context.Context, m *paych.SignedMessage) (*paych.SignedMessage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil {
		return nil, c.down
	}
	var e envelope
	if err := json.Unmarshal(m.Raw, &e); err != nil {
		return nil, err
	}
	if e.Fee *= 2; e.Fee > c.feeCap {
		return nil, fmt.Errorf("paychtest: bump: %w: %d of %d", paych.ErrFeeCap, e.Fee, c.feeCap)
	}
	return pack(&e)
}

// Fill implements paych.Filler.
func (c *Chain) Fill(ctx context.Context, sender address.Address, nonce uint64) error {
	c.mu.Lock()
	e := envelope{From: sender, To: sender, Nonce: nonce, Value: big.Zero(), Fee: max(1, c.floor)}
	c.mu.Unlock()
	m, err := pack(&e)
	if err != nil {
		return err
	}
	return c.Publish(ctx, m)
}

func pack(e *envelope) (*paych.SignedMessage, error) {
	raw, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	return &paych.SignedMessage{Cid: sum(raw), From: e.From, Nonce: e.Nonce, Raw: raw}, nil
}

// Published returns what was carried so far.
func (c *Chain) Published() []Published {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.published)
}

// Mine makes n tipsets.
func (c *Chain) Mine(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range n {
		c.mine()
	}
	c.wake()
}

// Run mines one tipset in each epoch until ctx ends.
func (c *Chain) Run(ctx context.Context) {
	t := time.NewTicker(c.params.Epoch)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			c.Mine(1)
		case <-ctx.Done():
			return
		}
	}
}

// Revert takes the last n tipsets back; their messages are in the pool again.
func (c *Chain) Revert(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keep := len(c.tipsets) - n
	for _, t := range c.tipsets[keep:] {
		c.pool = append(c.pool, t.messages...)
	}
	c.tipsets = c.tipsets[:keep]
	c.reverts++
	c.wake()
}

// DropPool forgets the messages that are not mined, as a node does that restarts.
func (c *Chain) DropPool() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pool = nil
}

func (c *Chain) mine() {
	t := tipset{world: c.at(c.head()).clone(), calls: make(map[address.Address][]paych.Call), index: make(map[slot]int)}
	c.tipsets = append(c.tipsets, t)
	height := c.head()
	slices.SortStableFunc(c.pool, func(x, y *posted) int {
		return cmp.Or(bytes.Compare(x.From.Bytes(), y.From.Bytes()), cmp.Compare(x.Nonce, y.Nonce))
	})
	var left []*posted
	for _, p := range c.pool {
		id := t.world.keys[p.From]
		if p.Nonce != t.world.accounts[id].nonce || p.Fee < c.floor {
			if p.Nonce >= t.world.accounts[id].nonce {
				left = append(left, p)
			}
			continue
		}
		exit, ret := c.execute(&t, height, id, p)
		t.index[slot{p.From, p.Nonce}] = len(t.messages)
		t.messages = append(t.messages, p)
		t.receipts = append(t.receipts, paych.Receipt{Cid: p.Cid, Height: height, ExitCode: exit, Return: ret, GasUsed: 1})
		t.calls[p.To] = append(t.calls[p.To], paych.Call{
			Height: height, Cid: p.Cid, From: id, Value: p.Value, Method: p.Method, Params: p.Params, ExitCode: exit,
		})
	}
	c.pool = left
	c.tipsets[height] = t
}

// execute runs one message on t's world.
func (c *Chain) execute(t *tipset, height abi.ChainEpoch, from address.Address, p *posted) (exitcode.ExitCode, []byte) {
	w := t.world
	a := w.accounts[from]
	a.nonce++
	w.accounts[from] = a
	if len(c.fails) > 0 {
		exit := c.fails[0]
		c.fails = c.fails[1:]
		if exit != 0 {
			return exit, nil
		}
	}
	if a.balance.LessThan(p.Value) {
		return exitcode.SysErrInsufficientFunds, nil
	}
	pay := func() {
		a.balance = big.Sub(a.balance, p.Value)
		w.accounts[from] = a
	}
	if p.To == p.From {
		return exitcode.Ok, nil
	}
	if p.To == builtin.InitActorAddr {
		return c.exec(w, p, pay)
	}
	ch, ok := w.channels[p.To]
	if !ok || ch.state == nil {
		return exitcode.SysErrInvalidReceiver, nil
	}
	msg, exit := actor.DecodeMsg(p.Method, p.Params)
	if !exit.IsSuccess() {
		return exit, nil
	}
	balance := big.Add(ch.balance, p.Value)
	r := actor.Apply(ch.state, balance, height, c.params.SettleDelay, from, msg, c.env(w, ch))
	if !r.ExitCode.IsSuccess() {
		return r.ExitCode, nil
	}
	pay()
	for _, x := range r.Pays {
		to := w.accounts[x.To]
		to.balance = big.Add(to.balance, x.Amount)
		w.accounts[x.To] = to
	}
	ch.state, ch.balance = r.State, balance
	if r.Deleted {
		ch.state, ch.balance = nil, big.Zero()
	}
	w.channels[p.To] = ch
	return exitcode.Ok, nil
}

func (c *Chain) env(w world, ch channel) actor.Env {
	return actor.Env{
		Self: ch.id,
		Resolve: func(a address.Address) (address.Address, bool) {
			if a == ch.robust {
				return ch.id, true
			}
			id, ok := w.keys[a]
			return id, ok
		},
		Verify: func(signer address.Address, sig crypto.Signature, msg []byte) error {
			return paych.VerifySignature(&sig, w.accounts[signer].key, msg)
		},
	}
}

// exec creates a channel.
func (c *Chain) exec(w world, p *posted, pay func()) (exitcode.ExitCode, []byte) {
	var params initactor.ExecParams
	var ctor actor.ConstructorParams
	if p.Method != builtin.MethodsInit.Exec || params.UnmarshalCBOR(bytes.NewReader(p.Params)) != nil ||
		ctor.UnmarshalCBOR(bytes.NewReader(params.ConstructorParams)) != nil {
		return exitcode.ErrSerialization, nil
	}
	if params.CodeCID != code {
		return exitcode.ErrForbidden, nil
	}
	r := actor.Construct(ctor.From, ctor.To, c.env(w, channel{}))
	if !r.ExitCode.IsSuccess() {
		return r.ExitCode, nil
	}
	robust, err := address.NewActorAddress(binary.BigEndian.AppendUint64(p.From.Bytes(), p.Nonce))
	if err != nil {
		panic(err)
	}
	ch := channel{id: c.newID(), robust: robust, state: r.State, balance: p.Value}
	pay()
	w.channels[robust] = ch
	var ret bytes.Buffer
	if err := (&initactor.ExecReturn{IDAddress: ch.id, RobustAddress: robust}).MarshalCBOR(&ret); err != nil {
		panic(err)
	}
	return exitcode.Ok, ret.Bytes()
}

// Head implements paych.Chain.
func (c *Chain) Head(context.Context) (abi.ChainEpoch, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.head(), c.down
}

// Heads implements paych.Chain.
func (c *Chain) Heads(ctx context.Context) (<-chan paych.Head, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil {
		return nil, c.down
	}
	out := make(chan paych.Head)
	go c.tell(ctx, out, c.reverts) // ends with ctx
	return out, nil
}

func (c *Chain) tell(ctx context.Context, out chan<- paych.Head, reverts uint64) {
	defer close(out)
	last := abi.ChainEpoch(-1)
	for {
		c.mu.Lock()
		head, seen, changed := c.head(), c.reverts, c.changed
		if c.mute {
			head, seen = last, reverts
		}
		c.mu.Unlock()
		var news []paych.Head
		if seen != reverts {
			news = append(news, paych.Head{Height: head + 1, Reverted: true})
			reverts, last = seen, -1
		}
		if head != last {
			news = append(news, paych.Head{Height: head})
			last = head
		}
		for _, h := range news {
			select {
			case out <- h:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Channel implements paych.Chain.
func (c *Chain) Channel(_ context.Context, a address.Address, depth abi.ChainEpoch) (*actor.State, big.Int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil {
		return nil, big.Zero(), c.down
	}
	ch, ok := c.at(c.head() - depth).channels[a]
	switch {
	case !ok:
		return nil, big.Zero(), paych.ErrNotFound
	case ch.state == nil:
		return nil, big.Zero(), paych.ErrCollected
	}
	return ch.state.Clone(), ch.balance, nil
}

// ResolveKey implements paych.Chain.
func (c *Chain) ResolveKey(_ context.Context, a address.Address) (address.Address, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil {
		return address.Undef, c.down
	}
	w := c.at(c.head())
	if _, ok := w.keys[a]; ok {
		return a, nil
	}
	if x, ok := w.accounts[a]; ok {
		return x.key, nil
	}
	return address.Undef, paych.ErrNotFound
}

// PaychCode implements paych.ActorCoder.
func (c *Chain) PaychCode(context.Context) (cid.Cid, error) { return code, nil }

// Prepare implements paych.Chain. Like a node it knows the nonces that are in the
// pool, and not those that were prepared and never published.
func (c *Chain) Prepare(_ context.Context, m paych.Message) (*paych.SignedMessage, error) {
	c.mu.Lock()
	hook := c.onPrepare
	c.mu.Unlock()
	if hook != nil {
		if err := hook(&m); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil {
		return nil, c.down
	}
	w := c.at(c.head())
	id, ok := w.keys[m.From]
	if !ok {
		return nil, fmt.Errorf("paychtest: prepare: %w: %s", paych.ErrNotFound, m.From)
	}
	nonce := w.accounts[id].nonce
	for _, p := range c.pool {
		if p.From == m.From {
			nonce = max(nonce, p.Nonce+1)
		}
	}
	return pack(&envelope{From: m.From, To: m.To, Nonce: nonce, Value: m.Value, Method: m.Method, Params: m.Params, Fee: 1})
}

// Publish implements paych.Chain.
func (c *Chain) Publish(_ context.Context, m *paych.SignedMessage) error {
	c.mu.Lock()
	hook, n := c.onPublish, len(c.published)+1
	c.mu.Unlock()
	carry, told := true, error(nil)
	if hook != nil {
		carry, told = hook(n, m)
	}
	if !carry {
		return told
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil {
		return c.down
	}
	if sum(m.Raw) != m.Cid {
		return errors.New("paychtest: publish: the bytes are not those of the cid")
	}
	p := &posted{Cid: m.Cid}
	if err := json.Unmarshal(m.Raw, &p.envelope); err != nil {
		return fmt.Errorf("paychtest: publish: %w", err)
	}
	c.given[m.Cid] = &p.envelope
	c.published = append(c.published, Published{Cid: m.Cid, Raw: bytes.Clone(m.Raw), Kind: p.Method, To: p.To})
	if r, err := c.find(&p.envelope); r != nil || err != nil {
		return errors.Join(told, err)
	}
	for i, x := range c.pool {
		switch {
		case x.Cid == m.Cid:
			return told
		case x.From == p.From && x.Nonce == p.Nonce && x.Fee >= p.Fee:
			return fmt.Errorf("paychtest: publish: nonce %d is in the pool for %d", p.Nonce, x.Fee)
		case x.From == p.From && x.Nonce == p.Nonce:
			c.pool[i] = p
			c.wake()
			return told
		}
	}
	w := c.at(c.head())
	if have := w.accounts[w.keys[p.From]].nonce; p.Nonce < have {
		return fmt.Errorf("paychtest: publish: nonce %d is too low, account has %d", p.Nonce, have)
	}
	c.pool = append(c.pool, p)
	c.wake()
	return told
}

// find returns the receipt of a message, or of one that took its place, or nil;
// paych.ErrNonceTaken where another has its nonce. Called with mu held.
func (c *Chain) find(e *envelope) (*paych.Receipt, error) {
	for i := len(c.tipsets) - 1; i >= 0; i-- {
		t := &c.tipsets[i]
		j, ok := t.index[slot{e.From, e.Nonce}]
		if !ok {
			continue
		}
		if !t.messages[j].replaces(e) {
			return nil, fmt.Errorf("paychtest: %w: %d of %s", paych.ErrNonceTaken, e.Nonce, e.From)
		}
		cp := t.receipts[j]
		return &cp, nil
	}
	return nil, nil
}

// Wait implements paych.Chain. Like a node it knows only messages that it was
// given.
func (c *Chain) Wait(ctx context.Context, id cid.Cid, confidence abi.ChainEpoch) (*paych.Receipt, error) {
	for {
		c.mu.Lock()
		var r *paych.Receipt
		err := c.down
		if e := c.given[id]; e != nil && err == nil {
			r, err = c.find(e)
		}
		deep := r != nil && c.head() >= r.Height+confidence
		changed := c.changed
		c.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if deep {
			if r.Cid != id {
				r.Replaced, r.Cid = r.Cid, id
			}
			return r, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Calls implements paych.Chain.
func (c *Chain) Calls(_ context.Context, a address.Address, from, to abi.ChainEpoch) ([]paych.Call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil {
		return nil, c.down
	}
	var all []paych.Call
	for h := max(from, 0); h <= min(to, c.head()); h++ {
		all = append(all, c.tipsets[h].calls[a]...)
	}
	return all, nil
}

// Balance implements paych.Chain.
func (c *Chain) Balance(_ context.Context, a address.Address) (big.Int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil {
		return big.Zero(), c.down
	}
	w := c.at(c.head())
	if id, ok := w.keys[a]; ok {
		a = id
	}
	if x, ok := w.accounts[a]; ok {
		return x.balance, nil
	}
	return big.Zero(), nil
}

// Params implements paych.Chain.
func (c *Chain) Params() paych.Params { return c.params }

// Receipts returns how often each cid was mined, over all tipsets.
func (c *Chain) Receipts() map[cid.Cid]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := make(map[cid.Cid]int)
	for _, t := range c.tipsets {
		for _, r := range t.receipts {
			n[r.Cid]++
		}
	}
	return n
}
