package packetnet

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/arena"
	"github.com/tallystick/tally/internal/pbfield"
	"github.com/tallystick/tally/paystream/forward"
)

// The message path writes and reads HopMsg by hand: a packet costs four of them
// on each hop, and generated code would allocate a dozen objects for each. Fields
// are written in the order of their numbers; what is read is what the generated
// code reads, except that a message with two kinds is refused
// (TestCodecIsProtobuf, FuzzDecode).

// Field numbers of HopMsg.
const (
	fieldID        = 1
	fieldPrepare   = 2
	fieldPrepareAk = 3
	fieldFulfil    = 4
	fieldFulfilAk  = 5
	fieldUnlock    = 6
	fieldUnlockAk  = 7
	fieldReject    = 8
	fieldRejectAk  = 9
	fieldCancelRq  = 10
	fieldSyncAsk   = 12
	fieldSync      = 13
	fieldHello     = 14
	fieldHelloAck  = 15
	fieldLaneSync  = 16
	fieldShow      = 17
	fieldChannel   = 18
)

// Multihash codes of conditions, with their length.
var (
	headBlake2b = []byte{0xa0, 0xe4, 0x02, tally.HashlockSize} // blake2b-256
	headSHA256  = []byte{0x12, tally.HashlockSize}             // sha2-256
)

// Bounds of what a message names.
const (
	maxPeerID = 64
	// maxLockSize bounds a lock: two vouchers.
	maxLockSize = 2*forward.MaxVoucher + 16
)

// ErrMalformed is wrapped by every error of the decoder.
var ErrMalformed = errors.New("packetnet: malformed message")

// errIgnored: a kind that this version does not know.
var errIgnored = errors.New("packetnet: unknown kind of message")

func malformed(what string) error { return fmt.Errorf("%w: %s", ErrMalformed, what) }

// hello and helloAck are the handshake.
type hello struct {
	ClockMS     uint64
	MaxInFlight uint32
	FeeBase     uint64
	FeePPM      uint32
	HopDeltaMS  uint32
	// LockDelta is in epochs.
	LockDelta  uint32
	PointLocks bool
}

type helloAck struct{ HelloMS, ReceivedMS, ClockMS uint64 }

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return pbfield.AppendBytes(b, field, v)
}

func appendText[T ~string](b []byte, field protowire.Number, v T) []byte {
	if len(v) == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, string(v))
}

// message appends one embedded message, whose body f appends. Its length takes
// one byte mostly; a longer body is moved.
func message(b []byte, field protowire.Number, f func([]byte) []byte) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	mark := len(b)
	b = append(b, 0)
	b = f(b)
	return closeLength(b, mark)
}

// closeLength writes the length of what follows the byte at mark.
func closeLength(b []byte, mark int) []byte {
	size := len(b) - mark - 1
	if size < 0x80 {
		b[mark] = byte(size)
		return b
	}
	extra := protowire.SizeVarint(uint64(size)) - 1
	b = append(b, make([]byte, extra)...)
	copy(b[mark+1+extra:], b[mark+1:mark+1+size])
	protowire.AppendVarint(b[:mark], uint64(size))
	return b
}

// appendFrame appends m behind its length. Times on the wire are on the sender's
// clock; the reader translates.
func appendFrame(b []byte, m *forward.Msg) []byte {
	mark := len(b)
	b = append(b, 0)
	b = appendMsg(b, m)
	return closeLength(b, mark)
}

func appendMsg(b []byte, m *forward.Msg) []byte {
	b = pbfield.AppendUint(b, fieldID, m.ID)
	if m.Lock != nil {
		return appendBytes(appendKind(b, m), fieldChannel, m.Lock.Channel)
	}
	return appendKind(b, m)
}

func appendKind(b []byte, m *forward.Msg) []byte {
	switch m.Kind {
	case forward.MsgPrepare:
		return message(b, fieldPrepare, func(b []byte) []byte { return appendPrepare(b, m) })
	case forward.MsgFulfil:
		return message(b, fieldFulfil, func(b []byte) []byte {
			return appendBytes(appendBytes(b, 1, m.Preimage[:]), 2, m.Data)
		})
	case forward.MsgFulfilAck:
		return message(b, fieldFulfilAk, func(b []byte) []byte { return appendPacked(b, 1, m.Fulfilled) })
	case forward.MsgReject:
		return message(b, fieldReject, func(b []byte) []byte {
			b = pbfield.AppendUint(b, 1, uint64(m.Code))
			b = appendBytes(b, 2, m.Data)
			b = pbfield.AppendUint(b, 3, uint64(m.Headroom))
			if m.Lock != nil {
				b = appendBytes(b, 4, m.Lock.Voucher)
			}
			return pbfield.AppendUint(b, 5, uint64(m.Hop))
		})
	case forward.MsgSyncAsk:
		return message(b, fieldSyncAsk, func(b []byte) []byte { return pbfield.AppendUint(b, 1, m.Round) })
	case forward.MsgSync:
		return message(b, fieldSync, func(b []byte) []byte {
			b = pbfield.AppendUint(b, 1, m.Round)
			b = appendPacked(b, 2, m.Live)
			b = appendPacked(b, 3, m.Fulfilled)
			if m.More {
				b = pbfield.AppendUint(b, 4, 1)
			}
			return b
		})
	}
	return appendLockKind(b, m)
}

func appendPacked(b []byte, field protowire.Number, ids []uint64) []byte {
	if len(ids) == 0 {
		return b
	}
	return message(b, field, func(b []byte) []byte {
		for _, id := range ids {
			b = protowire.AppendVarint(b, id)
		}
		return b
	})
}

func appendPrepare(b []byte, m *forward.Msg) []byte {
	b = pbfield.AppendUint(b, 1, uint64(m.Amount))
	b = pbfield.AppendUint(b, 2, uint64(max(0, m.Expires)))
	var head []byte
	switch m.Condition.Kind {
	case forward.ConditionBlake2b:
		head = headBlake2b
	case forward.ConditionSHA256:
		head = headSHA256
	}
	if head != nil {
		b = protowire.AppendTag(b, 3, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(len(head)+tally.HashlockSize))
		b = append(b, head...)
		b = append(b, m.Condition.Digest[:]...)
	}
	if m.Condition.Kind == forward.ConditionPoint {
		y := m.Condition.Compressed()
		b = appendBytes(b, 4, y[:])
	}
	b = appendBytes(b, 5, m.Part[:])
	b = pbfield.AppendUint(b, 6, uint64(m.HopsLeft))
	b = message(b, 7, func(b []byte) []byte { return appendBytes(appendText(b, 1, m.Dest), 2, m.Token) })
	for _, p := range m.Via {
		b = protowire.AppendTag(b, 8, protowire.BytesType)
		b = protowire.AppendString(b, string(p))
	}
	b = appendBytes(b, 9, m.Data)
	if m.Lock != nil {
		b = message(b, 10, func(b []byte) []byte { return appendBytes(appendBytes(b, 1, m.Lock.Voucher), 2, m.Lock.Guard) })
	}
	if m.MayLock {
		b = pbfield.AppendUint(b, 11, 1)
	}
	return b
}

func appendHello(b []byte, h *hello) []byte {
	return message(b, fieldHello, func(b []byte) []byte {
		b = pbfield.AppendUint(b, 1, h.ClockMS)
		b = pbfield.AppendUint(b, 2, uint64(h.MaxInFlight))
		b = pbfield.AppendUint(b, 3, h.FeeBase)
		b = pbfield.AppendUint(b, 4, uint64(h.FeePPM))
		b = pbfield.AppendUint(b, 5, uint64(h.HopDeltaMS))
		b = pbfield.AppendUint(b, 6, uint64(h.LockDelta))
		if h.PointLocks {
			b = pbfield.AppendUint(b, 7, 1)
		}
		return b
	})
}

func appendHelloAck(b []byte, h *helloAck) []byte {
	return message(b, fieldHelloAck, func(b []byte) []byte {
		return pbfield.AppendUint(pbfield.AppendUint(pbfield.AppendUint(b, 1, h.HelloMS), 2, h.ReceivedMS), 3, h.ClockMS)
	})
}

// fields calls f for each field of a message. Unknown wire types and numbers are
// the caller's to skip.
func fields(b []byte, f func(field protowire.Number, n uint64, v []byte, isBytes bool) error) error {
	var x pbfield.Field
	for len(b) > 0 {
		var ok bool
		if b, ok = x.Read(b); !ok {
			return malformed("field")
		}
		if x.Type != protowire.VarintType && x.Type != protowire.BytesType {
			continue
		}
		if err := f(x.Num, x.N, x.B, x.Type == protowire.BytesType); err != nil {
			return err
		}
	}
	return nil
}

// decoder turns frames into messages. One goroutine at a time.
type decoder struct {
	// offset is what the peer's clock shows more than ours, in ms.
	offset int64
	names  map[string]peer.ID
}

// maxNames bounds the peer ids that a decoder knows by heart.
const maxNames = 1024

// peerID returns a peer id without a copy where it was seen before.
func (d *decoder) peerID(v []byte) (peer.ID, error) {
	if len(v) == 0 || len(v) > maxPeerID {
		return "", malformed("peer id")
	}
	if p, ok := d.names[string(v)]; ok {
		return p, nil
	}
	p := peer.ID(v)
	if len(d.names) < maxNames {
		if d.names == nil {
			d.names = make(map[string]peer.ID)
		}
		d.names[string(p)] = p
	}
	return p, nil
}

// translate brings a time of the peer's clock to ours.
func (d *decoder) translate(ms uint64) int64 {
	if ms > math.MaxInt64/2 {
		return math.MaxInt64 / 2
	}
	return int64(ms) - d.offset
}

// decode reads one frame into m, which is empty. Bytes that m keeps are copied
// into a.
func (d *decoder) decode(frame []byte, m *forward.Msg, a *arena.Arena) error {
	var body, channel []byte
	var kind protowire.Number
	err := fields(frame, func(field protowire.Number, n uint64, v []byte, isBytes bool) error {
		switch {
		case field == fieldID && !isBytes:
			m.ID = n
		case field > fieldID && field <= fieldShow && isBytes:
			if kind != 0 {
				return malformed("two kinds in one message")
			}
			kind, body = field, v
		case field == fieldChannel && isBytes:
			channel = v
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(channel) > 0 {
		if len(channel) > forward.MaxChannel {
			return malformed("channel")
		}
		m.Lock = &forward.LockMsg{Channel: a.Keep(channel)}
	}
	if err = d.kind(kind, body, m, a); err == nil && m.Lock != nil && !m.Kind.MayHaveLock() {
		m.Lock = nil
	}
	return err
}

// kind reads the body of a message.
func (d *decoder) kind(kind protowire.Number, body []byte, m *forward.Msg, a *arena.Arena) error {
	switch kind {
	case fieldPrepare:
		m.Kind = forward.MsgPrepare
		return d.prepare(body, m, a)
	case fieldFulfil:
		m.Kind = forward.MsgFulfil
		return fulfil(body, m, a)
	case fieldFulfilAk:
		m.Kind = forward.MsgFulfilAck
		return fields(body, func(field protowire.Number, n uint64, v []byte, isBytes bool) error {
			if field != 1 {
				return nil
			}
			return ids(&m.Fulfilled, forward.MaxAckIDs-1-len(m.Fulfilled), n, v, isBytes)
		})
	case fieldReject:
		m.Kind = forward.MsgReject
		return reject(body, m, a)
	case fieldSyncAsk:
		m.Kind = forward.MsgSyncAsk
		return fields(body, func(field protowire.Number, n uint64, _ []byte, isBytes bool) error {
			if field == 1 && !isBytes {
				m.Round = n
			}
			return nil
		})
	case fieldSync:
		m.Kind = forward.MsgSync
		return syncIDs(body, m)
	case fieldHello, fieldHelloAck:
		return malformed("a second handshake")
	}
	return lockKind(kind, body, m, a)
}

func (d *decoder) prepare(body []byte, m *forward.Msg, a *arena.Arena) error {
	conditions, dests, locks := 0, 0, 0
	err := fields(body, func(field protowire.Number, n uint64, v []byte, isBytes bool) (err error) {
		switch {
		case field == 1 && !isBytes:
			m.Amount = tally.Amount(n)
		case field == 2 && !isBytes:
			m.Expires = d.translate(n)
		case field == 3 && isBytes:
			conditions++
			m.Condition, err = condition(v)
		case field == 4 && isBytes:
			conditions++
			// Whether it is on the curve, who checks the lock under it sees.
			if len(v) != forward.PointSize || v[0] != 2 && v[0] != 3 {
				return malformed("point")
			}
			m.Condition = forward.PointCondition([forward.PointSize]byte(v))
		case field == 5 && isBytes:
			if len(v) != len(m.Part) {
				return malformed("part id")
			}
			m.Part = forward.PartID(v)
		case field == 6 && !isBytes:
			m.HopsLeft = uint8(min(n, math.MaxUint8))
		case field == 7 && isBytes:
			dests++
			err = d.dest(v, m, a)
		case field == 8 && isBytes:
			if len(m.Via) >= forward.MaxHops {
				return malformed("route of too many hops")
			}
			var p peer.ID
			p, err = d.peerID(v)
			m.Via = append(m.Via, p)
		case field == 9 && isBytes:
			if len(v) > forward.MaxData {
				return malformed("data too long")
			}
			m.Data = a.Keep(v)
		case field == 10 && isBytes:
			locks++
			err = lockOf(v, m, a)
		case field == 11 && !isBytes:
			m.MayLock = n != 0
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case locks > 1, (locks == 1) != (m.Lock != nil):
		return malformed("a lock needs its channel, and a channel a lock")
	case conditions != 1 || dests != 1 || m.Dest == "" || m.Part == (forward.PartID{}):
		return malformed("prepare needs one condition, one destination and a part id")
	}
	return nil
}

func (d *decoder) dest(body []byte, m *forward.Msg, a *arena.Arena) error {
	return fields(body, func(field protowire.Number, _ uint64, v []byte, isBytes bool) (err error) {
		switch {
		case field == 1 && isBytes:
			m.Dest, err = d.peerID(v)
		case field == 2 && isBytes:
			if len(v) > forward.MaxToken {
				return malformed("token too long")
			}
			m.Token = a.Keep(v)
		}
		return err
	})
}

func condition(v []byte) (forward.Condition, error) {
	for _, k := range [...]struct {
		kind forward.ConditionKind
		head []byte
	}{{forward.ConditionBlake2b, headBlake2b}, {forward.ConditionSHA256, headSHA256}} {
		if n := len(k.head); len(v) == n+tally.HashlockSize && slices.Equal(v[:n], k.head) {
			return forward.Condition{Kind: k.kind, Digest: [tally.HashlockSize]byte(v[n:])}, nil
		}
	}
	return forward.Condition{}, malformed("condition is no blake2b-256 and no sha2-256 multihash")
}

func fulfil(body []byte, m *forward.Msg, a *arena.Arena) error {
	seen := false
	err := fields(body, func(field protowire.Number, _ uint64, v []byte, isBytes bool) error {
		switch {
		case field == 1 && isBytes:
			if len(v) != len(m.Preimage) {
				return malformed("preimage")
			}
			m.Preimage, seen = tally.Preimage(v), true
		case field == 2 && isBytes:
			if len(v) > forward.MaxData {
				return malformed("data too long")
			}
			m.Data = a.Keep(v)
		}
		return nil
	})
	if err == nil && !seen {
		return malformed("fulfil without preimage")
	}
	return err
}

func reject(body []byte, m *forward.Msg, a *arena.Arena) error {
	var cancel []byte
	err := fields(body, func(field protowire.Number, n uint64, v []byte, isBytes bool) error {
		switch {
		case field == 1 && !isBytes:
			m.Code = forward.CodeUnset // an unknown one counts as unset
			if n <= uint64(forward.CodeInternal) {
				m.Code = forward.Code(n)
			}
		case field == 2 && isBytes:
			if len(v) > forward.MaxData {
				return malformed("data too long")
			}
			m.Data = a.Keep(v)
		case field == 3 && !isBytes:
			m.Headroom = tally.Amount(n)
		case field == 4 && isBytes:
			cancel = v
		case field == 5 && !isBytes:
			m.Hop = 0 // no way has as many: it is not known
			if n <= forward.MaxHops+1 {
				m.Hop = uint8(n)
			}
		}
		return nil
	})
	if err == nil && (m.Lock != nil || len(cancel) > 0) {
		err = keepVoucher(cancel, m, a)
	}
	return err
}

func syncIDs(body []byte, m *forward.Msg) error {
	return fields(body, func(field protowire.Number, n uint64, v []byte, isBytes bool) error {
		list := &m.Live
		switch {
		case field == 1 && !isBytes:
			m.Round = n
			return nil
		case field == 4 && !isBytes:
			m.More = n != 0
			return nil
		case field == 3:
			list = &m.Fulfilled
		case field != 2:
			return nil
		}
		return ids(list, forward.MaxSyncIDs-len(m.Live)-len(m.Fulfilled), n, v, isBytes)
	})
}

// ids adds one id, or packed ones, to a list that takes so many more.
func ids(list *[]uint64, more int, n uint64, v []byte, packed bool) error {
	for ; ; more-- {
		if packed {
			if len(v) == 0 {
				return nil
			}
			id, size := protowire.ConsumeVarint(v)
			if size < 0 {
				return malformed("id")
			}
			n, v = id, v[size:]
		}
		if more <= 0 {
			return malformed("too many ids in one message")
		}
		*list = append(*list, n)
		if !packed {
			return nil
		}
	}
}

// decodeHandshake reads a hello or a helloAck.
func decodeHandshake(frame []byte) (*hello, *helloAck, error) {
	var h *hello
	var ack *helloAck
	err := fields(frame, func(field protowire.Number, _ uint64, v []byte, isBytes bool) error {
		switch {
		case field == fieldHello && isBytes && h == nil && ack == nil:
			h = new(hello)
			return fields(v, func(field protowire.Number, n uint64, _ []byte, isBytes bool) error {
				switch {
				case isBytes:
				case field == 1:
					h.ClockMS = n
				case field == 2:
					h.MaxInFlight = uint32(n)
				case field == 3:
					h.FeeBase = n
				case field == 4:
					h.FeePPM = uint32(n)
				case field == 5:
					h.HopDeltaMS = uint32(n)
				case field == 6:
					h.LockDelta = uint32(n)
				case field == 7:
					h.PointLocks = n != 0
				}
				return nil
			})
		case field == fieldHelloAck && isBytes && h == nil && ack == nil:
			ack = new(helloAck)
			return fields(v, func(field protowire.Number, n uint64, _ []byte, isBytes bool) error {
				switch {
				case isBytes:
				case field == 1:
					ack.HelloMS = n
				case field == 2:
					ack.ReceivedMS = n
				case field == 3:
					ack.ClockMS = n
				}
				return nil
			})
		case field > fieldID && field <= fieldShow && isBytes:
			return malformed("the session does not begin with a handshake")
		}
		return nil
	})
	if err == nil && h == nil && ack == nil {
		err = malformed("the session does not begin with a handshake")
	}
	return h, ack, err
}
