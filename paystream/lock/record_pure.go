package lock

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tallystick/tally"
)

// RecordVersion is the version of the records of lanes.
const RecordVersion byte = 1

// ErrRecord: bytes that no record is.
var ErrRecord = errors.New("lock: malformed record")

// slotRecord and guardRecord are the lengths in bytes.
const (
	slotRecord  = 8*11 + 32 + 32 + 2
	guardRecord = 16
)

// Record is what has to be on disk of a lane: slot or guard.
//
//	slot   u64 nonce | paid | base | id | amount | expires | guard |
//	       cancel nonce | cancel amount | until | point |
//	       32 hash | 32 preimage | u8 phase | u8 retired
//	guard  u64 nonce | height
func (s *Slots) Record(lane uint64) []byte {
	if lane == s.terms.Guard() {
		b := binary.BigEndian.AppendUint64(nil, s.guardNonce)
		return binary.BigEndian.AppendUint64(b, uint64(s.guardHeight))
	}
	l, err := s.at(lane)
	if err != nil {
		panic("lock: record of lane " + fmt.Sprint(lane))
	}
	b := make([]byte, 0, slotRecord)
	for _, n := range [...]uint64{
		l.nonce, l.paid, uint64(l.base), l.id, uint64(l.amount), uint64(l.expires), uint64(l.guard),
		l.cancelNonce, uint64(l.cancelAmount), uint64(l.until), uint64(l.point),
	} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = append(b, l.hash[:]...)
	b = append(b, l.preimage[:]...)
	retired := byte(0)
	if l.retired {
		retired = 1
	}
	return append(b, byte(l.phase), retired)
}

// Restore takes a record of an earlier run, before the first Step. It refuses what
// no run wrote.
func (s *Slots) Restore(lane uint64, rec []byte) error {
	u64 := func(i int) uint64 { return binary.BigEndian.Uint64(rec[8*i:]) }
	if lane == s.terms.Guard() {
		if len(rec) != guardRecord {
			return fmt.Errorf("%w: guard of %d bytes", ErrRecord, len(rec))
		}
		s.guardNonce, s.guardHeight = u64(0), int64(u64(1))
		return nil
	}
	old, err := s.at(lane)
	if err != nil {
		return err
	}
	if len(rec) != slotRecord || rec[slotRecord-2] >= byte(len(phaseWords)) || rec[slotRecord-1] > 1 || u64(10) > 3 {
		return fmt.Errorf("%w: lane %d, %d bytes", ErrRecord, lane, len(rec))
	}
	l := slot{
		lane: lane, nonce: u64(0), paid: u64(1), base: tally.Amount(u64(2)),
		id: u64(3), amount: tally.Amount(u64(4)), expires: int64(u64(5)), guard: int64(u64(6)),
		cancelNonce: u64(7), cancelAmount: tally.Amount(u64(8)), until: int64(u64(9)),
		point: byte(u64(10)), hash: tally.Hashlock(rec[88:120]), preimage: tally.Preimage(rec[120:152]),
		phase: Phase(rec[slotRecord-2]), retired: rec[slotRecord-1] == 1,
	}
	if l.nonce >= maxNonce {
		return fmt.Errorf("%w: lane %d has the nonce %d", ErrRecord, lane, l.nonce)
	}
	was := *old
	*old = l
	if err := s.checkSlot(old); err != nil {
		*old = was
		return fmt.Errorf("%w: lane %d: %w", ErrRecord, lane, err)
	}
	return nil
}

// Resume returns what has to be done again after a restart, when all is restored:
// the channel's account learns the preimages that we have shown. The rest is the
// sync's.
func (s *Slots) Resume(fx []Effect) []Effect {
	for i := range s.slots {
		if l := &s.slots[i]; s.role == Payee && l.phase == Opened {
			fx = append(fx, Effect{Kind: FxSecret, Lane: l.lane, ID: l.id, Preimage: l.preimage})
		}
	}
	return fx
}
