package devnet

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally/internal/durable"
)

// Kinds of actors, by the names of the actors' manifest.
const (
	codeSystem  = "system"
	codeInit    = "init"
	codeReward  = "reward"
	codeAccount = "account"
	codeChannel = "paymentchannel"
)

var codeNames = []string{codeSystem, codeInit, codeReward, codeAccount, codeChannel}

// Ids of the actors that every chain has, and the first of the others.
const (
	idSystem uint64 = 0
	idInit   uint64 = 1
	idReward uint64 = 2
	idBurnt  uint64 = 99
	idFaucet uint64 = 100
	idFirst  uint64 = 1000
)

// codeCid is the code cid of a kind: as on Filecoin a raw BLAKE2b-256 cid, here
// of a name, because there is no code.
func codeCid(name string) cid.Cid {
	digest := blake2b.Sum256([]byte("tally/devnet/1/" + name))
	hash, err := mh.Encode(digest[:], mh.BLAKE2B_MIN+31)
	if err != nil {
		panic("devnet: " + err.Error()) // of constants
	}
	return cid.NewCidV1(cid.Raw, hash)
}

func idAddress(id uint64) address.Address {
	a, err := address.NewIDAddress(id)
	if err != nil {
		panic("devnet: " + err.Error()) // ids begin at 0 and rise by one
	}
	return a
}

// reader is a state: actors by id, ids by address.
type reader interface {
	// actor returns false where there is none, or none any more.
	actor(ctx context.Context, id uint64) (actorRec, bool, error)
	id(ctx context.Context, a address.Address) (uint64, bool, error)
}

// past is the state after the messages of a height.
type past struct {
	c      *Chain
	height abi.ChainEpoch
}

func (p past) actor(ctx context.Context, id uint64) (actorRec, bool, error) {
	var rec actorRec
	found := false
	prefix := keyVersions(id)
	err := p.c.store.ScanReverse(ctx, prefix, keyOfHeight(prefix, p.height+1), func(key string, value []byte) error {
		payload, err := open(key, value)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(payload, &rec); err != nil {
			return err
		}
		found = true
		return durable.ErrStop
	})
	if err != nil {
		return actorRec{}, false, fmt.Errorf("devnet: read actor %d: %w", id, err)
	}
	return rec, found && !rec.Gone, nil
}

func (p past) id(ctx context.Context, a address.Address) (uint64, bool, error) {
	if a.Protocol() == address.ID {
		id, err := address.IDFromAddress(a)
		return id, err == nil, err
	}
	var rec addrRec
	found, err := p.c.get(ctx, keyOfAddr(keyAddr, a), &rec)
	return rec.ID, found && rec.Height <= p.height, err
}

// find is actor by any address.
func find(ctx context.Context, r reader, a address.Address) (uint64, actorRec, bool, error) {
	id, ok, err := r.id(ctx, a)
	if err != nil || !ok {
		return 0, actorRec{}, false, err
	}
	rec, ok, err := r.actor(ctx, id)
	return id, rec, ok, err
}

// overlay is a state with changes that are not written. Records are values, and
// what they point to is never changed in place.
type overlay struct {
	below  reader
	actors map[uint64]actorRec
	addrs  map[address.Address]uint64
}

func newOverlay(below reader) *overlay {
	return &overlay{below: below, actors: map[uint64]actorRec{}, addrs: map[address.Address]uint64{}}
}

func (o *overlay) actor(ctx context.Context, id uint64) (actorRec, bool, error) {
	if rec, ok := o.actors[id]; ok {
		return rec, !rec.Gone, nil
	}
	return o.below.actor(ctx, id)
}

func (o *overlay) id(ctx context.Context, a address.Address) (uint64, bool, error) {
	if id, ok := o.addrs[a]; ok {
		return id, true, nil
	}
	return o.below.id(ctx, a)
}

// merge takes the changes of an overlay that lay on o.
func (o *overlay) merge(top *overlay) {
	maps.Copy(o.actors, top.actors)
	maps.Copy(o.addrs, top.addrs)
}

// create gives a new actor its id and addresses.
func (o *overlay) create(ctx context.Context, rec actorRec, addrs ...address.Address) (uint64, error) {
	root, ok, err := o.actor(ctx, idInit)
	if err != nil {
		return 0, err
	}
	if !ok {
		panic("devnet: no init actor")
	}
	id := root.NextID
	root.NextID++
	o.actors[idInit] = root
	o.actors[id] = rec
	for _, a := range addrs {
		o.addrs[a] = id
	}
	return id, nil
}

// add changes a balance; the caller knows that the actor exists.
func (o *overlay) add(ctx context.Context, id uint64, delta big.Int) error {
	rec, ok, err := o.actor(ctx, id)
	if err != nil {
		return err
	}
	if !ok {
		panic(fmt.Sprintf("devnet: pays actor %d, which is not there", id))
	}
	rec.Balance = big.Add(rec.Balance, delta)
	if rec.Balance.Sign() < 0 {
		panic(fmt.Sprintf("devnet: balance of actor %d below 0", id))
	}
	o.actors[id] = rec
	return nil
}

// changed are the ids of o in order.
func (o *overlay) changed() []uint64 { return slices.Sorted(maps.Keys(o.actors)) }

// stateRoot chains what a block changed to the root before it. It stands for
// the root of Filecoin's state tree, of which it has the one property that
// clients rely on: it changes with every change.
func (o *overlay) stateRoot(before cid.Cid) (cid.Cid, error) {
	h, err := blake2b.New256(nil)
	if err != nil {
		return cid.Undef, err
	}
	h.Write(before.Bytes())
	for _, id := range o.changed() {
		data, err := json.Marshal(o.actors[id])
		if err != nil {
			return cid.Undef, fmt.Errorf("devnet: encode actor %d: %w", id, err)
		}
		h.Write(binary.BigEndian.AppendUint64(nil, id))
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(data))))
		h.Write(data)
	}
	hash, err := mh.Encode(h.Sum(nil), mh.BLAKE2B_MIN+31)
	if err != nil {
		return cid.Undef, err
	}
	return cid.NewCidV1(cid.DagCBOR, hash), nil
}

// ChannelCode is the code cid of payment channels, as StateActorCodeCIDs tells
// it.
func ChannelCode() cid.Cid { return codeCid(codeChannel) }
