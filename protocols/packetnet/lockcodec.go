package packetnet

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tallystick/tally/internal/arena"
	"github.com/tallystick/tally/internal/pbfield"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/lock"
)

// What only locks have on the wire. docs/protocol/lock.md says what follows what.

// lockFields are the numbers of the messages that are about locks alone.
var lockFields = map[forward.MsgKind]protowire.Number{
	forward.MsgPrepareAck: fieldPrepareAk, forward.MsgUnlock: fieldUnlock, forward.MsgUnlockAck: fieldUnlockAk,
	forward.MsgRejectAck: fieldRejectAk, forward.MsgCancelRequest: fieldCancelRq, forward.MsgLaneSync: fieldLaneSync,
	forward.MsgShow: fieldShow,
}

// appendLockKind appends the body of a message that is about locks alone.
func appendLockKind(b []byte, m *forward.Msg) []byte {
	field, ok := lockFields[m.Kind]
	if !ok || m.Lock == nil {
		return b
	}
	return message(b, field, func(b []byte) []byte {
		switch m.Kind {
		case forward.MsgUnlock, forward.MsgShow:
			return appendBytes(b, 1, m.Lock.Voucher)
		case forward.MsgLaneSync:
			for i := range m.Lock.Lanes {
				l := &m.Lock.Lanes[i]
				b = message(b, 1, func(b []byte) []byte {
					return appendBytes(pbfield.AppendUint(pbfield.AppendUint(b, 1, l.Lane), 2, l.Nonce), 3, l.Digest[:])
				})
			}
			if m.Lock.Ask {
				b = pbfield.AppendUint(b, 2, 1)
			}
		}
		return b
	})
}

// lockKind reads one. Its channel is read already.
func lockKind(kind protowire.Number, body []byte, m *forward.Msg, a *arena.Arena) error {
	for k, field := range lockFields {
		if field == kind {
			m.Kind = k
		}
	}
	switch {
	case m.Kind == forward.MsgNone:
		return errIgnored
	case m.Lock == nil:
		return malformed("a message about a lock of no channel")
	case m.Kind == forward.MsgLaneSync:
		return laneSync(body, m)
	case m.Kind != forward.MsgUnlock && m.Kind != forward.MsgShow:
		return fields(body, func(protowire.Number, uint64, []byte, bool) error { return nil })
	}
	var voucher []byte
	err := fields(body, func(field protowire.Number, _ uint64, v []byte, isBytes bool) error {
		if field == 1 && isBytes {
			voucher = v
		}
		return nil
	})
	if err != nil {
		return err
	}
	return keepVoucher(voucher, m, a)
}

// keepVoucher takes the voucher that a message about a lock has to have.
func keepVoucher(v []byte, m *forward.Msg, a *arena.Arena) error {
	if m.Lock == nil {
		return malformed("a voucher of no channel")
	}
	if len(v) == 0 || len(v) > forward.MaxVoucher {
		return malformed("voucher")
	}
	m.Lock.Voucher = a.Keep(v)
	return nil
}

// lockOf reads the lock of a prepare.
func lockOf(body []byte, m *forward.Msg, a *arena.Arena) error {
	if len(body) > maxLockSize {
		return malformed("lock too long")
	}
	var voucher, guard []byte
	err := fields(body, func(field protowire.Number, _ uint64, v []byte, isBytes bool) error {
		switch {
		case field == 1 && isBytes:
			voucher = v
		case field == 2 && isBytes:
			guard = v
		}
		return nil
	})
	if err == nil {
		err = keepVoucher(voucher, m, a)
	}
	if err == nil && len(guard) > forward.MaxVoucher {
		err = malformed("guard")
	}
	if err == nil {
		m.Lock.Guard = a.Keep(guard)
	}
	return err
}

func laneSync(body []byte, m *forward.Msg) error {
	return fields(body, func(field protowire.Number, n uint64, v []byte, isBytes bool) error {
		switch {
		case field == 1 && isBytes:
			if len(m.Lock.Lanes) >= forward.MaxLanes {
				return malformed("sync of too many lanes")
			}
			l, err := laneState(v)
			m.Lock.Lanes = append(m.Lock.Lanes, l)
			return err
		case field == 2 && !isBytes:
			m.Lock.Ask = n != 0
		}
		return nil
	})
}

func laneState(body []byte) (l lock.LaneState, err error) {
	err = fields(body, func(field protowire.Number, n uint64, v []byte, isBytes bool) error {
		switch {
		case field == 1 && !isBytes:
			l.Lane = n
		case field == 2 && !isBytes:
			l.Nonce = n
		case field == 3 && isBytes:
			if len(v) != len(l.Digest) {
				return malformed("digest of a lane")
			}
			l.Digest = [32]byte(v)
		}
		return nil
	})
	return l, err
}
