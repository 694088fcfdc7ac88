package forward

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// counterKey is the key of the record of ids and fees; ids begin at 1.
const counterKey = 0

// recordVersion is the version of both kinds of record.
const recordVersion byte = 1

var errRecord = errors.New("forward: damaged journal record")

// counterRecord has how far ids are used up, and the fees.
func (h *Hop) counterRecord() []byte {
	if !h.journal {
		return nil
	}
	b := binary.BigEndian.AppendUint64(nil, h.idLimit)
	return binary.BigEndian.AppendUint64(b, uint64(h.earned))
}

// Bits of a circuit's record.
const (
	recIn byte = 1 << iota
	recOut
	recFulfilled
)

// save puts the circuit's record among the effects.
func (h *Hop) save(c *circuit, fx []Effect) []Effect {
	if !h.journal {
		return fx
	}
	b := make([]byte, 1, 256)
	if c.in != nil {
		b[0] |= recIn
		b = appendPeer(b, c.in.peer)
		for _, n := range [...]uint64{c.inID, uint64(c.amountIn), uint64(c.expiresIn)} {
			b = binary.BigEndian.AppendUint64(b, n)
		}
	}
	if c.out != nil {
		b[0] |= recOut
		b = appendPeer(b, c.out.peer)
		for _, n := range [...]uint64{uint64(c.amountOut), uint64(c.expiresOut)} {
			b = binary.BigEndian.AppendUint64(b, n)
		}
	}
	b = append(b, byte(c.condition.Kind))
	b = append(b, c.condition.Digest[:]...)
	b = append(b, c.part[:]...)
	if c.fulfilled {
		b[0] |= recFulfilled
		b = append(b, c.preimage[:]...)
	}
	return append(fx, Effect{Kind: FxSave, Key: c.key, Record: b})
}

// forget takes the record away.
func (h *Hop) forget(c *circuit, fx []Effect) []Effect {
	if !h.journal || c.key == 0 {
		return fx
	}
	return append(fx, Effect{Kind: FxDelete, Key: c.key})
}

// Held is a hold that the tab has to have again after a restart.
type Held struct {
	Peer  peer.ID
	ID    uint64
	Dir   Dir
	Units tally.Amount
}

// Restore takes one record of an earlier run, before the first Step, and appends
// what the tab has to hold for it. It refuses what no run wrote.
func (h *Hop) Restore(key uint64, rec []byte, held []Held) ([]Held, error) {
	r := recordReader{b: rec}
	if key == counterKey {
		h.nextID, h.earned = r.uint64(), tally.Amount(r.uint64())
		h.idLimit = h.nextID
		if r.bad || len(r.b) != 0 {
			return held, fmt.Errorf("%w: counter", errRecord)
		}
		return held, nil
	}
	kind := r.byte()
	c := &circuit{key: key}
	if kind&recIn != 0 {
		c.in = h.link(r.peer())
		c.inID, c.amountIn, c.expiresIn = r.uint64(), tally.Amount(r.uint64()), int64(r.uint64())
	}
	if kind&recOut != 0 {
		c.out = h.link(r.peer())
		c.amountOut, c.expiresOut = tally.Amount(r.uint64()), int64(r.uint64())
	}
	c.condition = Condition{Kind: ConditionKind(r.byte()), Digest: r.digest()}
	c.part = PartID(r.take(len(c.part)))
	if kind&recFulfilled != 0 {
		c.fulfilled, c.preimage = true, r.digest()
	}
	switch {
	case r.bad || len(r.b) != 0 || kind > recIn|recOut|recFulfilled:
		return held, fmt.Errorf("%w: packet %d", errRecord, key)
	case c.fulfilled != (kind&recOut == 0), c.fulfilled && c.in == nil, max(c.amountIn, c.amountOut) >= maxAmount:
		return held, fmt.Errorf("%w: packet %d has no such state", errRecord, key)
	}
	if c.out != nil {
		c.out.put(c)
		h.parts[c.part] = struct{}{}
		held = append(held, Held{c.out.peer, key, Out, c.amountOut})
	}
	if c.in != nil {
		c.in.in[c.inID] = c
		if c.out != nil {
			held = append(held, Held{c.in.peer, c.inID, In, c.amountIn})
		}
	}
	return held, nil
}
