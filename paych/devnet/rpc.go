package devnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-jsonrpc"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	inittypes "github.com/filecoin-project/go-state-types/builtin/v16/init"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/paych/lotus/wire"
)

// Versions that the node tells.
const (
	// Version begins what the method Version answers. Clients that look for
	// Tally's own methods look for it.
	Version = "tally-devnet"
	// networkVersion is that of the actors whose rules paych/actor has.
	networkVersion = 24
	apiVersion     = 2<<16 | 3<<8
)

// api are the methods under Lotus' names, with Lotus' parameters, answers and
// errors. What a key of a tipset means for state is Lotus' too: the state before
// the messages of that tipset.
type api struct{ c *Chain }

// devAPI are our own methods.
type devAPI struct{ c *Chain }

// actorNotFound has a code of its own in Lotus.
type actorNotFound struct{}

func (*actorNotFound) Error() string { return ErrNoActor.Error() }

func rpcErrors() jsonrpc.Errors {
	e := jsonrpc.NewErrors()
	e.Register(wire.CodeActorNotFound, new(*actorNotFound))
	return e
}

// lookErr gives the error of a query the type that has the code.
func lookErr(err error) error {
	if errors.Is(err, ErrNoActor) {
		return &actorNotFound{}
	}
	return err
}

func (a *api) Version(context.Context) (wire.APIVersion, error) {
	delay := a.c.Params().Epoch / time.Second
	return wire.APIVersion{Version: Version + "+1", APIVersion: apiVersion, BlockDelay: uint64(max(delay, 1)), Agent: Version}, nil
}

func (a *api) StateNetworkName(context.Context) (string, error) { return a.c.meta.Network, nil }

func (a *api) StateNetworkVersion(ctx context.Context, key wire.TipSetKey) (uint, error) {
	defer a.c.reading()()
	_, err := a.c.tipset(ctx, key)
	return networkVersion, err
}

func (a *api) StateActorCodeCIDs(_ context.Context, version uint) (map[string]cid.Cid, error) {
	if version != networkVersion {
		return nil, fmt.Errorf("devnet: no actors of network version %d", version)
	}
	out := map[string]cid.Cid{}
	for _, name := range codeNames {
		out[name] = codeCid(name)
	}
	return out, nil
}

// reading holds view until the function that it returns is called.
func (c *Chain) reading() func() {
	c.view.RLock()
	return c.view.RUnlock
}

func tipsetOf(rec blockRec) *wire.TipSet {
	return &wire.TipSet{Cids: wire.TipSetKey{rec.Cid}, Blocks: []*wire.BlockHeader{rec.Header}, Height: rec.Header.Height}
}

func (a *api) ChainHead(context.Context) (*wire.TipSet, error) {
	return tipsetOf(a.c.head.Load().blockRec), nil
}

func (a *api) ChainGetGenesis(ctx context.Context) (*wire.TipSet, error) {
	defer a.c.reading()()
	rec, err := a.c.block(ctx, 0)
	if err != nil {
		return nil, err
	}
	return tipsetOf(rec), nil
}

func (a *api) ChainGetTipSet(ctx context.Context, key wire.TipSetKey) (*wire.TipSet, error) {
	defer a.c.reading()()
	rec, err := a.c.tipset(ctx, key)
	if err != nil {
		return nil, err
	}
	return tipsetOf(rec), nil
}

func (a *api) ChainGetTipSetByHeight(ctx context.Context, h abi.ChainEpoch, key wire.TipSetKey) (*wire.TipSet, error) {
	defer a.c.reading()()
	rec, err := a.c.tipsetAt(ctx, h, key)
	if err != nil {
		return nil, err
	}
	return tipsetOf(rec), nil
}

// ChainNotify tells changes of the head, the present one first. It works over a
// websocket only. A slow reader's channel is closed; it has to ask again.
func (a *api) ChainNotify(ctx context.Context) (<-chan []*wire.HeadChange, error) {
	c := a.c
	sub := make(chan []change, maxHeadQueue)
	c.subMu.Lock()
	if len(c.subs) >= maxSubscribers {
		c.subMu.Unlock()
		return nil, fmt.Errorf("%w: %d subscribers", ErrLimit, maxSubscribers)
	}
	c.subs[sub] = struct{}{}
	now := c.head.Load().blockRec
	c.subMu.Unlock()

	out := make(chan []*wire.HeadChange, 1)
	out <- []*wire.HeadChange{{Type: wire.HeadCurrent, Val: tipsetOf(now)}}
	go func() { // ends with ctx, with the chain, or when the reader is too slow
		defer close(out)
		defer func() {
			c.subMu.Lock()
			defer c.subMu.Unlock()
			delete(c.subs, sub)
		}()
		for {
			var steps []*wire.HeadChange
			select {
			case changes, ok := <-sub:
				if !ok {
					return
				}
				for _, ch := range changes {
					typ := wire.HeadApply
					if ch.revert {
						typ = wire.HeadRevert
					}
					steps = append(steps, &wire.HeadChange{Type: typ, Val: tipsetOf(ch.block)})
				}
			case <-c.stop:
				return
			case <-ctx.Done():
				return
			}
			select {
			case out <- steps:
			case <-c.stop:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func (a *api) ChainGetMessage(ctx context.Context, id cid.Cid) (*wire.Message, error) {
	return a.c.anyMessage(ctx, id)
}

func (a *api) ChainGetMessagesInTipset(ctx context.Context, key wire.TipSetKey) ([]wire.CidMessage, error) {
	defer a.c.reading()()
	rec, err := a.c.tipset(ctx, key)
	if err != nil {
		return nil, err
	}
	return a.messages(ctx, rec.Header.Height)
}

func (a *api) messages(ctx context.Context, h abi.ChainEpoch) ([]wire.CidMessage, error) {
	exec, err := a.c.exec(ctx, h)
	if err != nil {
		return nil, err
	}
	out := []wire.CidMessage{}
	for _, id := range exec.Cids {
		m, err := a.c.message(ctx, id)
		if err != nil {
			return nil, err
		}
		out = append(out, wire.CidMessage{Cid: id, Message: &m.msg.Message})
	}
	return out, nil
}

func (a *api) ChainGetParentMessages(ctx context.Context, id cid.Cid) ([]wire.CidMessage, error) {
	defer a.c.reading()()
	rec, err := a.c.tipset(ctx, wire.TipSetKey{id})
	if err != nil {
		return nil, err
	}
	if rec.Header.Height == 0 {
		return []wire.CidMessage{}, nil
	}
	return a.messages(ctx, rec.Header.Height-1)
}

func (a *api) ChainGetParentReceipts(ctx context.Context, id cid.Cid) ([]*wire.Receipt, error) {
	defer a.c.reading()()
	rec, err := a.c.tipset(ctx, wire.TipSetKey{id})
	if err != nil {
		return nil, err
	}
	out := []*wire.Receipt{}
	if rec.Header.Height == 0 {
		return out, nil
	}
	exec, err := a.c.exec(ctx, rec.Header.Height-1)
	if err != nil {
		return nil, err
	}
	for i := range exec.Receipts {
		out = append(out, &exec.Receipts[i])
	}
	return out, nil
}

func (a *api) ChainReadObj(ctx context.Context, id cid.Cid) ([]byte, error) {
	return a.c.Object(ctx, id)
}

func (a *api) StateListMessages(ctx context.Context, match *wire.MessageMatch, key wire.TipSetKey, toHeight abi.ChainEpoch) ([]cid.Cid, error) {
	if match == nil || match.To == address.Undef && match.From == address.Undef {
		return nil, errors.New("must specify at least To or From in message filter")
	}
	defer a.c.reading()()
	rec, err := a.c.tipset(ctx, key)
	if err != nil {
		return nil, err
	}
	var out []cid.Cid // null where there is none, as Lotus prints it
	err = a.c.execs(ctx, max(toHeight, 0), rec.Header.Height, func(exec execRec) error {
		for _, id := range exec.Cids {
			m, err := a.c.message(ctx, id)
			if err != nil {
				return err
			}
			msg := &m.msg.Message
			if (match.To == address.Undef || match.To == msg.To) && (match.From == address.Undef || match.From == msg.From) {
				out = append(out, id)
			}
		}
		return nil
	})
	return out, err
}

// actorAt finds an actor in the state of a tipset.
func (a *api) actorAt(ctx context.Context, addr address.Address, key wire.TipSetKey) (actorRec, error) {
	rec, err := a.c.tipset(ctx, key)
	if err != nil {
		return actorRec{}, err
	}
	_, act, ok, err := find(ctx, a.c.before(rec), addr)
	if err == nil && !ok {
		err = ErrNoActor
	}
	return act, err
}

func (a *api) StateGetActor(ctx context.Context, addr address.Address, key wire.TipSetKey) (*wire.Actor, error) {
	defer a.c.reading()()
	rec, err := a.actorAt(ctx, addr, key)
	if err != nil {
		return nil, lookErr(err)
	}
	root, err := hashAll([][]byte{[]byte(rec.Code), rec.Key.Bytes()})
	if err == nil && rec.Channel != nil {
		root, _, _, err = wire.EncodeChannel(ctx, rec.Channel)
	}
	if err != nil {
		return nil, err
	}
	return &wire.Actor{Code: codeCid(rec.Code), Head: root, Nonce: rec.Nonce, Balance: rec.Balance}, nil
}

func (a *api) StateReadState(ctx context.Context, addr address.Address, key wire.TipSetKey) (*wire.ActorState, error) {
	defer a.c.reading()()
	rec, err := a.actorAt(ctx, addr, key)
	if err != nil {
		return nil, lookErr(fmt.Errorf("getting actor: %w", err))
	}
	var state any
	switch {
	case rec.Channel != nil:
		_, lanes, _, err := wire.EncodeChannel(ctx, rec.Channel)
		if err != nil {
			return nil, err
		}
		st := rec.Channel
		state = wire.ChannelState{
			From: st.From, To: st.To, ToSend: nonNil(st.ToSend),
			SettlingAt: st.SettlingAt, MinSettleHeight: st.MinSettleHeight, LaneStates: lanes,
		}
	case rec.Code == codeInit:
		root, err := hashAll(nil)
		if err != nil {
			return nil, err
		}
		state = wire.InitState{AddressMap: root, NextID: abi.ActorID(rec.NextID), NetworkName: a.c.meta.Network}
	case rec.Code == codeAccount:
		state = struct{ Address address.Address }{rec.Key}
	default:
		state = struct{}{}
	}
	text, err := json.Marshal(state)
	if err != nil {
		return nil, err
	}
	return &wire.ActorState{Balance: rec.Balance, Code: codeCid(rec.Code), State: text}, nil
}

func (a *api) StateAccountKey(ctx context.Context, addr address.Address, key wire.TipSetKey) (address.Address, error) {
	switch addr.Protocol() {
	case address.SECP256K1, address.BLS, address.Delegated:
		return addr, nil
	}
	defer a.c.reading()()
	rec, err := a.actorAt(ctx, addr, key)
	if err != nil {
		return address.Undef, lookErr(err)
	}
	if rec.Code != codeAccount || rec.Key == address.Undef {
		return address.Undef, fmt.Errorf("actor code is not account: %s", rec.Code)
	}
	return rec.Key, nil
}

func (a *api) StateLookupID(ctx context.Context, addr address.Address, key wire.TipSetKey) (address.Address, error) {
	defer a.c.reading()()
	rec, err := a.c.tipset(ctx, key)
	if err != nil {
		return address.Undef, err
	}
	// The init actor keeps the address of an actor that is gone.
	id, ok, err := a.c.before(rec).id(ctx, addr)
	if err != nil {
		return address.Undef, err
	}
	if !ok {
		return address.Undef, &actorNotFound{}
	}
	return idAddress(id), nil
}

func (a *api) StateCall(ctx context.Context, msg *wire.Message, key wire.TipSetKey) (*wire.InvocResult, error) {
	if msg == nil {
		return nil, errors.New("no message")
	}
	if err := msg.Check(); err != nil {
		return nil, err
	}
	defer a.c.reading()()
	rec, err := a.c.tipset(ctx, key)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	// The state before the tipset: as if the message were in it alone.
	res, err := a.c.simulate(ctx, msg, a.c.before(rec).height, nil)
	if err != nil {
		return nil, err
	}
	id, err := msg.Cid()
	if err != nil {
		return nil, err
	}
	zero := big.Zero()
	return &wire.InvocResult{
		MsgCid: id, Msg: msg, MsgRct: &res.receipt, Error: res.reason, Duration: time.Since(start),
		GasCost: wire.MsgGasCost{
			Message: id, GasUsed: big.NewInt(res.receipt.GasUsed), BaseFeeBurn: zero, OverEstimationBurn: zero,
			MinerPenalty: zero, MinerTip: zero, Refund: zero, TotalCost: zero,
		},
		ExecutionTrace: json.RawMessage(`{}`),
	}, nil
}

func (a *api) StateSearchMsg(ctx context.Context, from wire.TipSetKey, id cid.Cid, limit abi.ChainEpoch, allowReplaced bool) (*wire.MsgLookup, error) {
	defer a.c.reading()()
	return a.c.search(ctx, from, id, limit, allowReplaced)
}

func (a *api) StateWaitMsg(ctx context.Context, id cid.Cid, confidence uint64, limit abi.ChainEpoch, allowReplaced bool) (*wire.MsgLookup, error) {
	if confidence > math.MaxInt32 {
		return nil, fmt.Errorf("%w: confidence %d", ErrLimit, confidence)
	}
	found, err := a.c.wait(ctx, id, confidence, limit, allowReplaced)
	if err != nil || found.Receipt.ExitCode != exitcode.Ok || len(found.Receipt.Return) == 0 {
		return found, err
	}
	var ret inittypes.ExecReturn // the one method here that returns something
	if err := ret.UnmarshalCBOR(bytes.NewReader(found.Receipt.Return)); err != nil {
		return nil, err
	}
	found.ReturnDec = ret
	return found, nil
}

func (a *api) MpoolGetNonce(ctx context.Context, addr address.Address) (uint64, error) {
	next, err := a.c.nonce(ctx, addr)
	return next, lookErr(err)
}

func (a *api) MpoolPush(ctx context.Context, s *wire.SignedMessage) (cid.Cid, error) {
	if s == nil {
		return cid.Undef, errors.New("no message")
	}
	return a.c.Push(ctx, s)
}

func (a *api) MpoolPushMessage(ctx context.Context, msg *wire.Message, spec *wire.MessageSendSpec) (*wire.SignedMessage, error) {
	if msg == nil {
		return nil, errors.New("no message")
	}
	if msg.Nonce != 0 {
		return nil, errors.New("MpoolPushMessage expects message nonce to be 0")
	}
	key, err := a.c.key(ctx, msg.From)
	if err != nil {
		return nil, err
	}
	full, err := a.GasEstimateMessageGas(ctx, msg, spec, nil)
	if err != nil {
		return nil, fmt.Errorf("GasEstimateMessageGas error: %w", err)
	}
	var m *pending
	err = a.c.do(ctx, func() error {
		ctx := context.WithoutCancel(ctx)
		_, sender, ok, err := find(ctx, a.c.now(), full.From)
		if err != nil {
			return err
		}
		if !ok {
			return ErrNoActor
		}
		full.Nonce = a.c.pool.next(full.From, sender.Nonce)
		if m, err = sign(key, *full); err != nil {
			return err
		}
		return a.c.push(ctx, m)
	})
	if err != nil {
		return nil, lookErr(err)
	}
	return m.msg, nil
}

func (a *api) GasEstimateMessageGas(ctx context.Context, msg *wire.Message, spec *wire.MessageSendSpec, key wire.TipSetKey) (*wire.Message, error) {
	if msg == nil {
		return nil, errors.New("no message")
	}
	a.c.view.RLock()
	rec, err := a.c.tipset(ctx, key)
	a.c.view.RUnlock()
	if err != nil {
		return nil, err
	}
	return a.c.estimate(ctx, msg, spec, rec)
}

func (a *api) WalletNew(ctx context.Context, typ string) (address.Address, error) {
	if typ != "secp256k1" {
		return address.Undef, fmt.Errorf("devnet: keys are secp256k1, not %q", typ)
	}
	return a.c.newKey(ctx)
}

func (a *api) WalletHas(ctx context.Context, addr address.Address) (bool, error) {
	_, err := a.c.key(ctx, addr)
	if errors.Is(err, errNoKey) {
		return false, nil
	}
	return err == nil, err
}

func (a *api) WalletList(ctx context.Context) ([]address.Address, error) { return a.c.keys(ctx) }

func (a *api) WalletSign(ctx context.Context, addr address.Address, data []byte) (*crypto.Signature, error) {
	keyAddr, err := a.StateAccountKey(ctx, addr, nil)
	if err != nil {
		return nil, err
	}
	key, err := a.c.key(ctx, keyAddr)
	if err != nil {
		return nil, err
	}
	return wire.Sign(key, data)
}

func (a *api) WalletSignMessage(ctx context.Context, addr address.Address, msg *wire.Message) (*wire.SignedMessage, error) {
	if msg == nil {
		return nil, errors.New("no message")
	}
	id, err := msg.Cid()
	if err != nil {
		return nil, fmt.Errorf("serializing message: %w", err)
	}
	sig, err := a.WalletSign(ctx, addr, id.Bytes())
	if err != nil {
		return nil, fmt.Errorf("failed to sign message: %w", err)
	}
	return &wire.SignedMessage{Message: *msg, Signature: *sig}, nil
}

func (a *api) WalletBalance(ctx context.Context, addr address.Address) (big.Int, error) {
	defer a.c.reading()()
	rec, err := a.actorAt(ctx, addr, nil)
	if errors.Is(err, ErrNoActor) {
		return big.Zero(), nil
	}
	if err != nil {
		return big.Zero(), err
	}
	return rec.Balance, nil
}

// DevParams are what a client cannot learn under Lotus' names.
func (d *devAPI) DevParams(context.Context) (wire.DevParams, error) {
	p := d.c.Params()
	return wire.DevParams{
		SettleDelay: p.SettleDelay, Finality: p.Finality, EpochNanos: int64(p.Epoch), Faucet: d.c.meta.Faucet,
		Manual: d.c.cfg.BlockTime == Manual,
	}, nil
}

// DevMine makes n blocks and returns the height of the head.
func (d *devAPI) DevMine(ctx context.Context, n int) (abi.ChainEpoch, error) {
	err := d.c.Mine(ctx, n)
	return d.c.Head(), err
}

// DevFaucet sends amount to a key address and returns the message's cid.
func (d *devAPI) DevFaucet(ctx context.Context, to address.Address, amount big.Int) (cid.Cid, error) {
	return d.c.Faucet(ctx, to, amount)
}

// DevReorg reverts n blocks and returns the height of the head.
func (d *devAPI) DevReorg(ctx context.Context, n int, drop bool) (abi.ChainEpoch, error) {
	err := d.c.Reorg(ctx, n, drop)
	return d.c.Head(), err
}

// DevFailNext makes the next count messages fail with code.
func (d *devAPI) DevFailNext(ctx context.Context, code exitcode.ExitCode, count int) (bool, error) {
	err := d.c.FailNext(ctx, code, count)
	return err == nil, err
}

// DevLatency makes each method under Lotus' names wait so long, in nanoseconds.
func (d *devAPI) DevLatency(_ context.Context, nanos int64) (bool, error) {
	err := d.c.SetLatency(time.Duration(nanos))
	return err == nil, err
}
