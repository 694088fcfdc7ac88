package paych

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/internal/durable"
)

// The store. Per voucher the channel's and the lane's record are written, and
// one place of the history, whatever came before.
//
//	/paych/chain                       network and genesis
//	/paych/c/<channel id>              channel, with its funds and addresses
//	/paych/l/<channel id>/<lane>       lane, with the vouchers that can bring
//	                                   something: best, locked, refund
//	/paych/h/<channel id>/<place>      the last maxHistory vouchers, in a ring
//	/paych/m/<sender>/<nonce>          message to the chain
//
// Addresses, cids, tags and locks are looked up in memory; their indexes are made
// from these records when the store is opened.
const (
	keyChain    = "/paych/chain"
	dirChannels = "/paych/c/"
	dirLanes    = "/paych/l/"
	dirHistory  = "/paych/h/"
	dirMessages = "/paych/m/"
)

const (
	// maxHistory bounds the vouchers of a channel that are kept for the eye alone.
	maxHistory = 64
	// maxMessages bounds the finished messages of a channel that are kept.
	maxMessages = 64
)

// ErrOtherChain: the store was made on another network, where the same keys and
// nonces give the same channel addresses.
var ErrOtherChain = errors.New("paych: store belongs to another chain")

func channelKey(id uint64) string { return dirChannels + durable.KeyUint(id) }

func laneKey(id, lane uint64) string {
	return dirLanes + durable.KeyUint(id) + "/" + durable.KeyUint(lane)
}

func historyDir(id uint64) string { return dirHistory + durable.KeyUint(id) + "/" }

func messageKey(sender address.Address, nonce uint64) string {
	return dirMessages + durable.KeyID(sender.Bytes()) + "/" + durable.KeyUint(nonce)
}

// Origin says how a voucher came to us.
type Origin uint8

// Origins.
const (
	OriginGiven    Origin = iota // we signed it as the payer
	OriginReceived               // the payer gave it to us
	OriginRefund                 // the payee signed it: a refund or a cancel
)

// String returns the origin in one word.
func (o Origin) String() string { return [...]string{"given", "received", "refund"}[o%3] }

// entry is one voucher of the history.
type entry struct {
	serial  uint64 // counts the channel's vouchers from 1
	origin  Origin
	epoch   abi.ChainEpoch
	voucher *SignedVoucher
}

func (e *entry) key(id uint64) string {
	return historyDir(id) + durable.KeyUint(e.serial%maxHistory)
}

func encodeEntry(e *entry) ([]byte, error) {
	w := writer{b: make([]byte, 0, 256)}
	w.u64(e.serial)
	w.u8(uint8(e.origin))
	w.epoch(e.epoch)
	err := w.voucher(e.voucher)
	return w.b, err
}

func decodeEntry(b []byte) (entry, error) {
	r := reader{b: b}
	e := entry{serial: r.u64(), origin: Origin(r.u8()), epoch: r.epoch(), voucher: r.voucher()}
	if r.err == nil && e.voucher == nil {
		return entry{}, errRecord
	}
	return e, r.end()
}

// dirt is what of a channel is newer than the disk.
type dirt struct {
	channel  bool
	lanes    map[uint64]struct{}
	history  []entry
	messages map[string]*message
	deleted  []string
}

func (d *dirt) empty() bool {
	return !d.channel && len(d.lanes) == 0 && len(d.history) == 0 && len(d.messages) == 0 && len(d.deleted) == 0
}

// reset is after all of it went into a batch. The memory stays: a busy channel
// fills it again at once.
func (d *dirt) reset() {
	d.channel = false
	clear(d.lanes)
	clear(d.messages)
	clear(d.history)
	d.history, d.deleted = d.history[:0], d.deleted[:0]
}

// batch writes it all into b.
func (d *dirt) batch(c *Channel, b *durable.Batch) error {
	sealed := make([]byte, 0, 1024)
	put := func(key string, version byte, payload []byte) {
		sealed = durable.Seal(sealed[:0], key, version, payload)
		b.Put(key, sealed) // which copies it
	}
	if d.channel {
		put(channelKey(c.ID), channelVersion, encodeChannel(c))
	}
	for id := range d.lanes {
		version, payload, err := encodeLane(c.Lanes[id])
		if err != nil {
			return fmt.Errorf("encode lane %d: %w", id, err)
		}
		put(laneKey(c.ID, id), version, payload)
	}
	for i := range d.history {
		payload, err := encodeEntry(&d.history[i])
		if err != nil {
			return fmt.Errorf("encode voucher: %w", err)
		}
		put(d.history[i].key(c.ID), historyVersion, payload)
	}
	for _, key := range d.deleted {
		b.Delete(key)
	}
	for key, m := range d.messages {
		put(key, messageVersion, encodeMessage(m))
	}
	return nil
}

// loaded is what a store holds.
type loaded struct {
	channels map[uint64]*Channel
	messages []*message
}

// load reads all channels, lanes and messages.
func load(ctx context.Context, s *durable.Store, rules *Rules) (*loaded, error) {
	all := &loaded{channels: make(map[uint64]*Channel)}
	err := s.Scan(ctx, dirChannels, "", func(key string, rec []byte) error {
		version, payload, err := durable.Unseal(key, channelVersion, rec)
		if err != nil {
			return err
		}
		c, err := decodeChannel(version, payload, rules)
		if err != nil {
			return fmt.Errorf("record %s: %w", key, err)
		}
		if key != channelKey(c.ID) {
			return fmt.Errorf("record %s: %w: of channel %d", key, errRecord, c.ID)
		}
		all.channels[c.ID] = c
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = s.Scan(ctx, dirLanes, "", func(key string, rec []byte) error {
		version, payload, err := durable.Unseal(key, laneVersion, rec)
		if err != nil {
			return err
		}
		l, err := decodeLane(version, payload)
		if err != nil {
			return fmt.Errorf("record %s: %w", key, err)
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(key, dirLanes), "/")
		id, err := durable.ParseKeyUint(name)
		if err != nil {
			return err
		}
		c := all.channels[id]
		if c == nil || key != laneKey(id, l.ID) {
			return fmt.Errorf("record %s: %w: lane %d of no channel", key, errRecord, l.ID)
		}
		c.Lanes[l.ID] = l
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, c := range all.channels {
		for _, l := range c.Lanes {
			c.touch(l)
		}
		if err := c.Check(); err != nil {
			return nil, fmt.Errorf("channel %s: %w", c.Addr, err)
		}
	}
	err = s.Scan(ctx, dirMessages, "", func(key string, rec []byte) error {
		version, payload, err := durable.Unseal(key, messageVersion, rec)
		if err != nil {
			return err
		}
		m, err := decodeMessage(version, payload)
		if err != nil {
			return fmt.Errorf("record %s: %w", key, err)
		}
		if all.channels[m.channel] == nil {
			return fmt.Errorf("record %s: %w: message of channel %d", key, errRecord, m.channel)
		}
		all.messages = append(all.messages, m)
		return nil
	})
	return all, err
}

// history returns the kept vouchers of a channel, oldest first.
func history(ctx context.Context, s *durable.Store, id uint64) ([]entry, error) {
	var list []entry
	err := s.Scan(ctx, historyDir(id), "", func(key string, rec []byte) error {
		_, payload, err := durable.Unseal(key, historyVersion, rec)
		if err != nil {
			return err
		}
		e, err := decodeEntry(payload)
		if err != nil {
			return fmt.Errorf("record %s: %w", key, err)
		}
		list = append(list, e)
		return nil
	})
	return list, err
}

// Bound says which chain a store is bound to, and how many of its channels have to
// be watched there. ErrNotFound where it was never on one. It is for who opens a
// store without a chain at hand.
func Bound(ctx context.Context, s *durable.Store) (network string, genesis cid.Cid, live int, err error) {
	rec, err := s.Get(ctx, keyChain)
	if errors.Is(err, durable.ErrNotFound) {
		return "", cid.Undef, 0, fmt.Errorf("%w: the store was on none", ErrNotFound)
	}
	if err != nil {
		return "", cid.Undef, 0, err
	}
	if network, genesis, err = decodeChain(rec); err != nil {
		return "", cid.Undef, 0, err
	}
	all, err := load(ctx, s, &Rules{})
	if err != nil {
		return "", cid.Undef, 0, err
	}
	for _, c := range all.channels {
		if !c.Buried && c.Phase != PhaseFailed {
			live++
		}
	}
	return network, genesis, live, nil
}

func decodeChain(rec []byte) (string, cid.Cid, error) {
	_, payload, err := durable.Unseal(keyChain, chainVersion, rec)
	if err != nil {
		return "", cid.Undef, err
	}
	r := reader{b: payload}
	network, genesis := string(r.bytes()), r.cid()
	return network, genesis, r.end()
}

// ensureChain binds the store to one chain.
func ensureChain(ctx context.Context, s *durable.Store, p Params) error {
	w := writer{}
	w.bytes([]byte(p.Network))
	w.bytes(p.Genesis.Bytes())
	rec, err := s.Get(ctx, keyChain)
	if errors.Is(err, durable.ErrNotFound) {
		var b durable.Batch
		b.Put(keyChain, durable.Seal(nil, keyChain, chainVersion, w.b))
		return s.Commit(ctx, &b)
	}
	if err != nil {
		return err
	}
	network, genesis, err := decodeChain(rec)
	if err != nil {
		return err
	}
	if network != p.Network || genesis != p.Genesis {
		return fmt.Errorf("%w: %s %s, the node is on %s %s", ErrOtherChain, network, genesis, p.Network, p.Genesis)
	}
	return nil
}

// cidOf returns c, or nil for the undefined cid.
func cidOf(c cid.Cid) *cid.Cid {
	if !c.Defined() {
		return nil
	}
	return &c
}
