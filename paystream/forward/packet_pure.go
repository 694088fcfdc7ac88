package forward

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/lock"
)

// Bounds of a message. They are part of the protocol: what is longer is refused
// before memory is taken for it.
const (
	// MaxData bounds the data of a packet and of its answer: a STREAM packet of
	// ILP may be 32,767 bytes.
	MaxData = 32 << 10
	// MaxToken bounds what tells the payee which of its endpoints is meant.
	MaxToken = 512
	// MaxHops bounds a route, and with it Via.
	MaxHops = 20
	// MaxInFlight bounds the packets of one peer and direction that are not
	// decided, or fulfilled and not acked. A neighbour may announce fewer.
	MaxInFlight = 4096
	// MaxSyncIDs bounds the ids of one sync message, MaxAckIDs those of one ack.
	MaxSyncIDs = 2048
	MaxAckIDs  = 256
	// MaxKept bounds data and token of a packet that is kept at its payee: it is in
	// the journal for as long as it waits.
	MaxKept = 1 << 10
)

// PartID names a packet along its whole route: 16 random bytes that its payer
// chose. A packet whose PartID is in flight at a node is refused there, so that
// no route is a loop.
type PartID [16]byte

// ConditionKind tells which digest locks a packet. The numbers are in the
// journal: add at the end.
type ConditionKind uint8

// Kinds of condition.
const (
	ConditionNone ConditionKind = iota
	// ConditionBlake2b is the project's own: tally.Hashlock.
	ConditionBlake2b
	// ConditionSHA256 is ILP's. No channel knows it, so that such a packet
	// travels on credit only.
	ConditionSHA256
	// ConditionPoint is a point of secp256k1: what opens it is the number y of which it
	// is y·G. It has a point lock on every hop, and is refused on credit.
	ConditionPoint
)

// Condition is what the payee has to show the preimage of.
type Condition struct {
	Kind ConditionKind
	// Point is the first byte of a compressed point, 2 or 3, whose x is then Digest;
	// else 0.
	Point  byte
	Digest [tally.HashlockSize]byte
}

// PointSize is the size of a compressed point.
const PointSize = 1 + tally.HashlockSize

// Blake2b returns the condition of a hashlock.
func Blake2b(h tally.Hashlock) Condition { return Condition{Kind: ConditionBlake2b, Digest: h} }

// PointCondition returns the condition of a compressed point. Whether it is one of the
// curve is not seen here.
func PointCondition(y [PointSize]byte) Condition {
	return Condition{Kind: ConditionPoint, Point: y[0], Digest: [tally.HashlockSize]byte(y[1:])}
}

// Compressed is the point of a ConditionPoint.
func (c *Condition) Compressed() (y [PointSize]byte) {
	y[0] = c.Point
	copy(y[1:], c.Digest[:])
	return y
}

// pointed reports whether c is under a point, and has the form of one.
func (c *Condition) pointed() bool {
	return c.Kind == ConditionPoint && (c.Point == 2 || c.Point == 3)
}

// ofLock is the condition of a lock.
func ofLock(l *lock.Lock) Condition {
	if l.Point != 0 {
		return Condition{Kind: ConditionPoint, Point: l.Point, Digest: l.Hash}
	}
	return Blake2b(l.Hash)
}

// Opens reports whether p is the preimage of a digest, in constant time. What opens a
// point, curves alone can tell: HopConfig.OpensPoint.
func (c *Condition) Opens(p *tally.Preimage) bool {
	switch c.Kind {
	case ConditionBlake2b:
		return p.Opens(c.Digest)
	case ConditionSHA256:
		got := sha256.Sum256(p[:])
		return subtle.ConstantTimeCompare(got[:], c.Digest[:]) == 1
	default:
		return false
	}
}

// Code says why a packet was rejected. The numbers go over the wire: add at the
// end, never reuse one.
type Code uint8

// Codes of a reject.
const (
	CodeUnset Code = iota
	// CodeRefused is the payee's one answer to an unknown token or condition, to
	// what is paid or expired already, and to a wrong secret: who probes learns
	// nothing by asking.
	CodeRefused
	// CodeApplication: the endpoint refused and says more in Data.
	CodeApplication
	// CodeNoRoute: no way to the payee is known here, or its first neighbour is
	// not connected.
	CodeNoRoute
	// CodeHeadroom: the packet does not fit a tab on the way now; Headroom does.
	// A settlement has begun.
	CodeHeadroom
	// CodeHeadroomFinal is CodeHeadroom where nothing will settle the tab (soft
	// mode).
	CodeHeadroomFinal
	// CodeTooLarge: the amount is above what this tab can ever carry, or 2^63 or
	// more.
	CodeTooLarge
	// CodeTooSmall: nothing is left of the amount after the fee.
	CodeTooSmall
	// CodeExpiryTooSoon: too little time is left for the way from here.
	CodeExpiryTooSoon
	// CodeExpiryTooFar: the packet could block the tab for longer than the node
	// allows.
	CodeExpiryTooFar
	// CodeTooManyHops: no hop is left.
	CodeTooManyHops
	// CodeLoop: a packet of this part id is in flight here already.
	CodeLoop
	// CodeBusy: too many packets are in flight on this hop.
	CodeBusy
	// CodeLinkLost: the connection broke and the next node does not know the
	// packet: it never arrived, or its reject was lost.
	CodeLinkLost
	// CodeTimeout: no answer came until expires and the late hold were over.
	CodeTimeout
	// CodeUnsupported: a lock or a condition that this node does not carry.
	CodeUnsupported
	// CodeInternal: the node is in trouble; its operator's log says more.
	CodeInternal
)

var codeWords = [...]string{
	"unset", "refused", "application", "no_route", "headroom", "headroom_final", "too_large", "too_small",
	"expiry_too_soon", "expiry_too_far", "too_many_hops", "loop", "busy", "link_lost", "timeout", "unsupported", "internal",
}

// String is the code as commands and documents show it.
func (c Code) String() string {
	if int(c) < len(codeWords) {
		return codeWords[c]
	}
	return "unknown"
}

// Temporary reports whether the same packet under a new part id may pass later.
func (c Code) Temporary() bool {
	switch c {
	case CodeHeadroom, CodeBusy, CodeLinkLost, CodeTimeout, CodeNoRoute, CodeInternal:
		return true
	default:
		return false
	}
}

// Where a packet failed, as Msg.Hop has it: seen from who reads it, the hop that it
// failed on, counted from 1. Who rejects says 1, the hop that the packet came on, or
// 2, the one that it was to leave on; whoever passes the reject on adds 1.
const (
	hopUnknown uint8 = iota
	hopIn
	hopOut
)

// RejectError is a reject as an error, for callers that wait for a packet.
type RejectError struct {
	Code     Code
	Headroom tally.Amount
	// Hop is how many hops had taken the packet before the one that failed, -1
	// where that is not known.
	Hop  int
	Data []byte
}

// Error names cause and remedy.
func (e *RejectError) Error() string {
	remedy := "see docs/protocol/packet.md for the code"
	switch e.Code {
	case CodeHeadroom:
		return fmt.Sprintf("forward: packet rejected: headroom %d on the way; send less, or wait for the settlement that has begun", e.Headroom)
	case CodeHeadroomFinal:
		return fmt.Sprintf("forward: packet rejected: headroom %d on the way, and soft mode settles nothing; send less", e.Headroom)
	case CodeNoRoute:
		remedy = "connect to the payee, give a route, or add a static one"
	case CodeExpiryTooSoon:
		remedy = "give the packet more time: one second for each hop"
	case CodeRefused:
		remedy = "the payee does not take it: check address, secret and time"
	case CodeBusy, CodeLinkLost, CodeTimeout:
		remedy = "try again"
	}
	return fmt.Sprintf("forward: packet rejected: %s: %s", e.Code, remedy)
}

// MsgKind names the message of two neighbours.
type MsgKind uint8

// Kinds of message. Each says who sends it.
const (
	MsgNone MsgKind = iota
	// MsgPrepare offers a packet: debtor to creditor.
	MsgPrepare
	// MsgFulfil shows the preimage: creditor to debtor. It is repeated in each
	// session until it is acked.
	MsgFulfil
	// MsgFulfilAck: the debtor has booked it, and those in Fulfilled.
	MsgFulfilAck
	// MsgReject gives a packet back: creditor to debtor. On credit it needs no
	// ack: a packet that the next sync does not list is rejected.
	MsgReject
	// MsgSyncAsk asks for MsgSync. Round counts the asks of one session.
	MsgSyncAsk
	// MsgSync lists which of the asker's packets are live here and which are
	// fulfilled and not acked. All that are in neither are rejected.
	MsgSync

	// The rest is about locks alone, and always has Msg.Lock. A prepare, a fulfil and
	// a reject are about a lock where they have it.

	// MsgPrepareAck: the creditor holds the lock.
	MsgPrepareAck
	// MsgUnlock is the lane's total without the lock, after the preimage.
	MsgUnlock
	MsgUnlockAck
	// MsgRejectAck: the debtor holds the CANCEL.
	MsgRejectAck
	// MsgCancelRequest: the debtor asks that the lock is given up.
	MsgCancelRequest
	// MsgLaneSync is what the teller has of a channel's lanes.
	MsgLaneSync
	// MsgShow shows the reader a voucher of its own that it seems to have lost.
	MsgShow
)

// Msg is one message between two neighbours. Its slices belong to whoever
// handed it over and are good until the call returns.
type Msg struct {
	Kind MsgKind
	// ID is the debtor's number for the packet; it never uses one twice.
	ID uint64

	// Of a prepare. Expires is in milliseconds since 1970 on our own clock: the
	// carrier translates it.
	Amount    tally.Amount
	Expires   int64
	Condition Condition
	Part      PartID
	HopsLeft  uint8
	// MayLock: a hop may carry it under a lock.
	MayLock bool
	Dest    peer.ID
	Token   []byte
	Via     []peer.ID

	// Data of a prepare, a fulfil or a reject.
	Data []byte

	// Of a fulfil. Under a point it is y.
	Preimage tally.Preimage

	// Of a reject. Hop is where it failed, 0 where that is not known.
	Code     Code
	Headroom tally.Amount
	Hop      uint8

	// Of sync and its ask; Fulfilled of an ack too. More: another sync of the same
	// round follows.
	Round           uint64
	Live, Fulfilled []uint64
	More            bool

	// Lock makes it a message about a lock of ours or of the neighbour.
	Lock *LockMsg
}

// Faults of a neighbour. Its session is reset; holds stay.
var (
	// ErrFault is wrapped by every error of Step that a neighbour caused.
	ErrFault = errors.New("forward: neighbour broke the protocol")

	errTooMany    = fmt.Errorf("%w: more packets in flight than announced", ErrFault)
	errIDTwice    = fmt.Errorf("%w: packet id used twice or out of order", ErrFault)
	errPreimage   = fmt.Errorf("%w: preimage does not open the condition", ErrFault)
	errAsks       = fmt.Errorf("%w: asks for a sync too often", ErrFault)
	errSync       = fmt.Errorf("%w: sync lists more than can be in flight", ErrFault)
	errUnexpected = fmt.Errorf("%w: unexpected message", ErrFault)
)

// appendPeer and the reader below frame the records of the journal.
func appendPeer(dst []byte, p peer.ID) []byte {
	dst = append(dst, byte(len(p)))
	return append(dst, p...)
}

type recordReader struct {
	b   []byte
	bad bool
}

func (r *recordReader) take(n int) []byte {
	if len(r.b) < n {
		r.bad = true
		return make([]byte, n)
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *recordReader) byte() byte       { return r.take(1)[0] }
func (r *recordReader) uint16() uint16   { return binary.BigEndian.Uint16(r.take(2)) }
func (r *recordReader) uint64() uint64   { return binary.BigEndian.Uint64(r.take(8)) }
func (r *recordReader) peer() peer.ID    { return peer.ID(r.take(int(r.byte()))) }
func (r *recordReader) digest() [32]byte { return [32]byte(r.take(32)) }
