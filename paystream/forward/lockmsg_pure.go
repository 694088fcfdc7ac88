package forward

import (
	"fmt"

	"github.com/tallystick/tally/paystream/lock"
)

// Bounds of what a message about a lock has. They are part of the protocol.
const (
	// MaxChannel bounds the address of a channel.
	MaxChannel = 64
	// MaxVoucher bounds a voucher: one of a slot has about 200 bytes, and as a point
	// lock 330.
	MaxVoucher = 2 << 10
	// MaxLanes bounds the lanes of one sync.
	MaxLanes = lock.MaxSlots
)

// LockMsg is what a message about a lock has beside the rest. Its slices belong to
// whoever handed it over and are good until the call returns.
type LockMsg struct {
	// Channel is the address of the channel.
	Channel []byte
	// Voucher is the LOCK of a prepare, under a point with its encrypted signature, the UNLOCK of an unlock, the CANCEL of a
	// reject, and what a show shows; Guard is what the LOCK needs, if anything.
	Voucher, Guard []byte
	// Of a sync of lanes. Ask: the reader is to say the same.
	Lanes []lock.LaneState
	Ask   bool
}

// aboutLocks reports whether messages of a kind are always about a lock.
func (k MsgKind) aboutLocks() bool { return k >= MsgPrepareAck && k <= MsgShow }

// MayHaveLock reports whether a message of the kind is, or can be, about a lock.
func (k MsgKind) MayHaveLock() bool {
	return k.aboutLocks() || k == MsgPrepare || k == MsgFulfil || k == MsgReject
}

var (
	errLaneSyncs = fmt.Errorf("%w: tells its lanes too often", ErrFault)
	errArrivals  = fmt.Errorf("%w: offers more locks than channels have slots", ErrFault)
)
