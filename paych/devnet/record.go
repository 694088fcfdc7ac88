package devnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych/actor"
	"github.com/tallystick/tally/paych/lotus/wire"
)

// recordVersion is the version of all records here.
const recordVersion byte = 1

// Keys. Heights and ids are KeyUint, cids and addresses KeyID of their bytes.
const (
	keyMeta   = "/devnet/meta"
	keyHead   = "/devnet/head"
	keyBlock  = "/devnet/block/"  // height → blockRec
	keyExec   = "/devnet/exec/"   // height → execRec, only where there are messages
	keyCid    = "/devnet/cid/"    // block cid → height
	keyActor  = "/devnet/actor/"  // id/height → actorRec
	keyAddr   = "/devnet/addr/"   // address → addrRec
	keyMined  = "/devnet/mined/"  // sender/nonce → minedRec
	keyPool   = "/devnet/pool/"   // sender/nonce → cid
	keyObject = "/devnet/object/" // cid → bytes: messages, headers, states, lanes
	keyKey    = "/devnet/key/"    // address → private key of the node's wallet
)

// metaRec are the facts that a chain keeps for life.
type metaRec struct {
	Network     string
	ChainID     []byte // random, in the genesis block: no two chains share a genesis
	SettleDelay abi.ChainEpoch
	Finality    abi.ChainEpoch
	Faucet      address.Address
	Genesis     cid.Cid
}

// headRec is where the chain is. Reorgs counts, so that a block that takes the
// place of another has another cid. Below Floor the chain is pruned.
type headRec struct {
	Height abi.ChainEpoch
	Reorgs uint64
	Floor  abi.ChainEpoch `json:",omitempty"`
}

// blockRec is a block. StateRoot is after its messages.
type blockRec struct {
	Cid       cid.Cid
	Header    *wire.BlockHeader
	StateRoot cid.Cid
	Receipts  cid.Cid // of its messages
}

// execRec is what the messages of a block did.
type execRec struct {
	Cids     []cid.Cid // in order, as known on the chain
	Receipts []wire.Receipt
	Changed  []uint64          // actors with a version at this height
	New      []address.Address // addresses that got an id
}

// actorRec is one version of an actor.
type actorRec struct {
	Code    string // of code
	Balance big.Int
	Nonce   uint64
	Key     address.Address // of an account
	Robust  address.Address // of a channel
	Channel *actor.State    `json:",omitempty"`
	NextID  uint64          `json:",omitempty"` // of the init actor
	Gone    bool            `json:",omitempty"`
}

// addrRec maps an address to its id since a height.
type addrRec struct {
	ID     uint64
	Height abi.ChainEpoch
}

// minedRec says which message took a nonce.
type minedRec struct {
	Height abi.ChainEpoch
	Index  int
	Cid    cid.Cid
}

func keyOfHeight(prefix string, h abi.ChainEpoch) string {
	return prefix + durable.KeyUint(uint64(h))
}
func keyOfCid(prefix string, c cid.Cid) string          { return prefix + durable.KeyID(c.Bytes()) }
func keyOfAddr(prefix string, a address.Address) string { return prefix + durable.KeyID(a.Bytes()) }
func keyOfVersion(id uint64, h abi.ChainEpoch) string   { return keyOfHeight(keyVersions(id), h) }
func keyVersions(id uint64) string                      { return keyActor + durable.KeyUint(id) + "/" }
func keyOfNonce(p string, a address.Address, n uint64) string {
	return keyOfAddr(p, a) + "/" + durable.KeyUint(n)
}

// put adds a record to a batch.
func put(b *durable.Batch, key string, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("devnet: encode %s: %w", key, err)
	}
	putBytes(b, key, payload)
	return nil
}

func putBytes(b *durable.Batch, key string, payload []byte) {
	b.Put(key, durable.Seal(nil, key, recordVersion, payload))
}

// open reads the payload of a sealed record.
func open(key string, sealed []byte) ([]byte, error) {
	_, payload, err := durable.Unseal(key, recordVersion, sealed)
	return payload, err
}

// getBytes returns a payload, or durable.ErrNotFound.
func (c *Chain) getBytes(ctx context.Context, key string) ([]byte, error) {
	sealed, err := c.store.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	return open(key, sealed)
}

// get reads a record into v; false if there is none.
func (c *Chain) get(ctx context.Context, key string, v any) (bool, error) {
	payload, err := c.getBytes(ctx, key)
	if errors.Is(err, durable.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("devnet: %w", err)
	}
	if err := json.Unmarshal(payload, v); err != nil {
		return false, fmt.Errorf("devnet: decode %s: %w", key, err)
	}
	return true, nil
}
