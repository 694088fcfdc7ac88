package forward

import (
	"bytes"
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
	// recKept: its sender or its endpoint keeps the packet.
	recKept
	// recResult: what became of a packet that its sender keeps.
	recResult
	// recLockIn, recLockOut: the side is under a lock.
	recLockIn
	recLockOut
)

// save puts the circuit's record among the effects.
func (h *Hop) save(c *circuit, fx []Effect) []Effect {
	if !h.journal {
		return fx
	}
	return append(fx, Effect{Kind: FxSave, Key: c.key, Record: c.record()})
}

func (c *circuit) record() []byte {
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
	if c.condition.Kind == ConditionPoint {
		b = append(b, c.condition.Point)
	}
	b = append(b, c.part[:]...)
	if c.fulfilled {
		b[0] |= recFulfilled
		b = append(b, c.preimage[:]...)
	} else if c.kept {
		b[0] |= recKept
	}
	return c.appendLocked(b)
}

// saveKept is save of a packet for us that waits, with what its endpoint has to see
// again after a restart.
func (h *Hop) saveKept(c *circuit, m *Msg, fx []Effect) []Effect {
	b := c.record()
	for _, field := range [...][]byte{m.Token, m.Data} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(field))) // at most MaxKept together
		b = append(b, field...)
	}
	return append(fx, Effect{Kind: FxSave, Key: c.key, Record: b})
}

// resultRecord has what became of a packet, without its data.
func resultRecord(m *Msg) []byte {
	b := append([]byte{recResult}, m.Part[:]...)
	if m.Kind == MsgFulfil {
		b[0] |= recFulfilled
		return append(b, m.Preimage[:]...)
	}
	b = append(b, byte(m.Code), m.Hop)
	return binary.BigEndian.AppendUint64(b, uint64(m.Headroom))
}

// Again is what a restart found and somebody has to hear again: a result of a
// packet that its sender keeps, or a prepare of Peer that its endpoint keeps.
type Again struct {
	Peer peer.ID
	Msg  Msg
}

// Again returns what Restore found, in the order of the journal.
func (h *Hop) Again() []Again { return h.again }

func (h *Hop) restoreResult(key uint64, kind byte, r *recordReader) error {
	m := Msg{Kind: MsgReject, Part: PartID(r.take(len(PartID{})))}
	if kind&recFulfilled != 0 {
		m.Kind, m.Preimage = MsgFulfil, r.digest()
	} else {
		m.Code, m.Hop, m.Headroom = Code(r.byte()), r.byte(), tally.Amount(r.uint64())
	}
	if r.bad || len(r.b) != 0 || kind&^recFulfilled != recResult {
		return fmt.Errorf("%w: result %d", errRecord, key)
	}
	h.results[m.Part] = key
	h.again = append(h.again, Again{Msg: m})
	return nil
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
	if kind&recResult != 0 {
		return held, h.restoreResult(key, kind, &r)
	}
	c := &circuit{key: key, kept: kind&recKept != 0}
	if kind&recIn != 0 {
		c.in = h.link(r.peer())
		c.inID, c.amountIn, c.expiresIn = r.uint64(), tally.Amount(r.uint64()), int64(r.uint64())
	}
	if kind&recOut != 0 {
		c.out = h.link(r.peer())
		c.amountOut, c.expiresOut = tally.Amount(r.uint64()), int64(r.uint64())
	}
	c.condition = Condition{Kind: ConditionKind(r.byte()), Digest: r.digest()}
	if c.condition.Kind == ConditionPoint {
		c.condition.Point = r.byte()
	}
	c.part = PartID(r.take(len(c.part)))
	if kind&recFulfilled != 0 {
		c.fulfilled, c.preimage = true, r.digest()
	}
	c.readLocked(kind, &r)
	kind &^= recLockIn | recLockOut
	var token, data []byte
	if kind == recIn|recKept {
		token = bytes.Clone(r.take(int(r.uint16())))
		data = bytes.Clone(r.take(int(r.uint16())))
	}
	switch {
	case r.bad || len(r.b) != 0:
		return held, fmt.Errorf("%w: packet %d", errRecord, key)
	case !restorable(kind), c.condition.Kind == ConditionPoint && (c.in != nil && !c.lockedIn() || c.out != nil && !c.lockedOut()), max(c.amountIn, c.amountOut) >= maxAmount:
		return held, fmt.Errorf("%w: packet %d has no such state", errRecord, key)
	}
	if !c.fulfilled {
		h.parts[c.part] = struct{}{}
	}
	if c.lockedOut() {
		c.out.lockSide().out[c.key] = c
	} else if c.out != nil {
		c.out.put(c)
		held = append(held, Held{c.out.peer, key, Out, c.amountOut})
	}
	if c.lockedIn() {
		c.in.lockSide().in[c.inID] = c
	} else if c.in != nil {
		c.in.in.Put(c.inID, c)
		if !c.fulfilled {
			held = append(held, Held{c.in.peer, c.inID, In, c.amountIn})
		}
	}
	if kind == recIn|recKept {
		h.again = append(h.again, Again{Peer: c.in.peer, Msg: Msg{
			Kind: MsgPrepare, ID: c.inID, Amount: c.amountIn, Expires: c.expiresIn, Condition: c.condition, Part: c.part,
			Token: token, Data: data, Lock: c.lockMsg(),
		}})
	}
	return held, nil
}

// restorable lists the states that a record can be in.
func restorable(kind byte) bool {
	switch kind {
	case recOut, recOut | recKept, // our own, in flight
		recIn | recOut,       // passed on
		recIn | recKept,      // waits for an endpoint
		recIn | recFulfilled: // not acked
		return true
	default:
		return false
	}
}
