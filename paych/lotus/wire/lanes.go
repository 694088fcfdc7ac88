package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/filecoin-project/go-amt-ipld/v4"
	paychtypes "github.com/filecoin-project/go-state-types/builtin/v8/paych"
	block "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	cbor "github.com/ipfs/go-ipld-cbor"
	cbg "github.com/whyrusleeping/cbor-gen"

	"github.com/tallystick/tally/paych/actor"
)

// MaxLanes bounds what is read of a channel: opening a lane costs gas, so a
// real channel has few, and a node that claims more is broken.
const MaxLanes = 1 << 16

var errLanes = fmt.Errorf("wire: channel has more than %d lanes", MaxLanes)

// Objects are dag-cbor objects by cid, as ChainReadObj serves them.
type Objects interface {
	Object(ctx context.Context, c cid.Cid) ([]byte, error)
}

// ObjectMap is the in-memory twin of a node's objects.
type ObjectMap map[cid.Cid][]byte

// Object implements Objects.
func (m ObjectMap) Object(_ context.Context, c cid.Cid) ([]byte, error) {
	data, ok := m[c]
	if !ok {
		return nil, fmt.Errorf("wire: no object %s", c)
	}
	return data, nil
}

// objectStore is Objects as the array wants them.
type objectStore struct {
	from Objects
	into ObjectMap
}

func (s objectStore) Get(ctx context.Context, c cid.Cid) (block.Block, error) {
	data, err := s.from.Object(ctx, c)
	if err != nil {
		return nil, err
	}
	// A node's word for what hashes to c is not taken: a lane's nonce decides
	// over money.
	got, err := c.Prefix().Sum(data)
	if err != nil {
		return nil, err
	}
	if got != c {
		return nil, fmt.Errorf("wire: object %s hashes to %s", c, got)
	}
	return block.NewBlockWithCid(data, c)
}

func (s objectStore) Put(_ context.Context, b block.Block) error {
	if s.into == nil {
		return errors.New("wire: objects are read only")
	}
	s.into[b.Cid()] = b.RawData()
	return nil
}

// EncodeChannel writes the state of a channel as the actor stores it and returns
// its cid and all objects: the state and the array of its lanes.
func EncodeChannel(ctx context.Context, st *actor.State) (cid.Cid, cid.Cid, ObjectMap, error) {
	objects := ObjectMap{}
	ipld := cbor.NewCborStore(objectStore{from: objects, into: objects})
	root, err := amt.NewAMT(ipld, amt.UseTreeBitWidth(paychtypes.LaneStatesAmtBitwidth))
	if err != nil {
		return cid.Undef, cid.Undef, nil, fmt.Errorf("wire: encode lanes: %w", err)
	}
	for _, l := range st.Lanes {
		if err := root.Set(ctx, l.Lane, &paychtypes.LaneState{Redeemed: l.Redeemed, Nonce: l.Nonce}); err != nil {
			return cid.Undef, cid.Undef, nil, fmt.Errorf("wire: encode lane %d: %w", l.Lane, err)
		}
	}
	lanes, err := root.Flush(ctx)
	if err != nil {
		return cid.Undef, cid.Undef, nil, fmt.Errorf("wire: encode lanes: %w", err)
	}
	var buf bytes.Buffer
	err = (&paychtypes.State{
		From: st.From, To: st.To, ToSend: amount(st.ToSend),
		SettlingAt: st.SettlingAt, MinSettleHeight: st.MinSettleHeight, LaneStates: lanes,
	}).MarshalCBOR(&buf)
	if err != nil {
		return cid.Undef, cid.Undef, nil, fmt.Errorf("wire: encode channel: %w", err)
	}
	head, err := Cid(buf.Bytes())
	if err != nil {
		return cid.Undef, cid.Undef, nil, err
	}
	objects[head] = buf.Bytes()
	return head, lanes, objects, nil
}

// DecodeChannel completes the state that StateReadState printed with its lanes.
func DecodeChannel(ctx context.Context, s *ChannelState, objects Objects) (*actor.State, error) {
	root, err := amt.LoadAMT(ctx, cbor.NewCborStore(objectStore{from: objects}), s.LaneStates,
		amt.UseTreeBitWidth(paychtypes.LaneStatesAmtBitwidth))
	if err != nil {
		return nil, fmt.Errorf("wire: read lanes: %w", err)
	}
	if root.Len() > MaxLanes {
		return nil, errLanes
	}
	st := &actor.State{
		From: s.From, To: s.To, ToSend: amount(s.ToSend),
		SettlingAt: s.SettlingAt, MinSettleHeight: s.MinSettleHeight,
	}
	err = root.ForEach(ctx, func(lane uint64, v *cbg.Deferred) error {
		if len(st.Lanes) >= MaxLanes {
			return errLanes // the count in the root lied
		}
		var l paychtypes.LaneState
		if err := l.UnmarshalCBOR(bytes.NewReader(v.Raw)); err != nil {
			return fmt.Errorf("lane %d: %w", lane, err)
		}
		st.Lanes = append(st.Lanes, actor.Lane{Lane: lane, Redeemed: amount(l.Redeemed), Nonce: l.Nonce})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("wire: read lanes: %w", err)
	}
	return st, nil
}
