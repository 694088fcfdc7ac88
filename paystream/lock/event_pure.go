package lock

import "github.com/tallystick/tally"

// EventKind names what happened.
type EventKind uint8

// Kinds of event. Each says which fields of Event it reads.
const (
	// Of the payer.

	// EvOffer: a lock ID of Amount under Hash until Expires is to be made. Long
	// allows a guard where it ends beyond the horizon. With the same fields it may
	// come again.
	EvOffer EventKind = iota + 1
	// EvAcked: the payee has the lock ID.
	EvAcked
	// EvPreimage: Preimage opens the lock ID; OnChain: the chain showed it.
	EvPreimage
	// EvCancel: the payee's CANCEL of the lock ID, Voucher, whose signature is good.
	EvCancel
	// EvUnlockAcked: the payee has the UNLOCK of the lock ID.
	EvUnlockAcked

	// Of the payee.

	// EvLock: the payer's LOCK, Voucher, over Amount with the id ID, and with its
	// Guard where that has one. Signatures are good.
	EvLock
	// EvFulfil: Preimage of the lock ID is to be shown. Owed: we have paid for it
	// already, so that it is shown however late it is.
	EvFulfil
	// EvGive: the lock ID is to be given up.
	EvGive
	// EvCancelAcked: the payer has our CANCEL of the lock ID.
	EvCancelAcked
	// EvUnlock: the payer's UNLOCK, Voucher, whose signature is good.
	EvUnlock

	// Of both.

	// EvSigned: Voucher, which FxSign asked for, is signed and kept.
	EvSigned
	// EvFailed: Voucher could not be signed, and never left: of a LOCK or its guard.
	// Of a payee: it could not be kept, FxKeep of a LOCK failed. Crowded: there are too
	// many of its lane.
	EvFailed
	// EvChain: the chain shows Head and Final.
	EvChain
	// EvSync: the neighbour has Lanes. Every lane it leaves out is fresh there.
	EvSync
	// EvShown: the neighbour shows Voucher, which we signed, and whose signature is
	// good.
	EvShown
)

// Event is one input of Step.
type Event struct {
	Kind   EventKind
	ID     uint64
	Amount tally.Amount
	Hash   tally.Hashlock
	// Point, of an offer under a point: its first byte; Hash is its x.
	Point    byte
	Expires  int64
	Long     bool
	Preimage tally.Preimage
	OnChain  bool
	Owed     bool
	Crowded  bool
	Voucher  Voucher
	Guard    Voucher
	Head     View
	Final    View
	Lanes    []LaneState
}

// View is the channel as the chain shows it at one height.
type View struct {
	Height     int64
	SettlingAt int64
	MinSettle  int64
	// Gone: the channel is collected; Lanes are those that it ended with.
	Gone  bool
	Lanes []LaneView
}

// LaneView is a lane that a voucher was submitted on.
type LaneView struct {
	Lane, Nonce uint64
	Redeemed    tally.Amount
}

func (v *View) lane(id uint64) (LaneView, bool) {
	for i := range v.Lanes {
		if v.Lanes[i].Lane == id {
			return v.Lanes[i], true
		}
	}
	return LaneView{}, false
}

// LaneState is what one side says of a lane in a sync: the highest nonce that it
// counts as used, and a digest of what it holds to be agreed.
type LaneState struct {
	Lane, Nonce uint64
	Digest      [32]byte
}

// EffectKind names what the shell has to do.
type EffectKind uint8

// Kinds of effect. The shell carries them out in their order; when one fails it
// leaves out the rest of its step.
const (
	// FxKeep: Voucher of the neighbour goes into the channel's account, on disk.
	// Where that refuses a LOCK, or its guard, EvFailed follows with the same
	// Voucher and ID.
	FxKeep EffectKind = iota + 1
	// FxSave: the record of Lane is on disk before anything after it. Saves that
	// follow each other are one batch, with what the FxFulfilled, FxFailed, FxEnded
	// and FxLost among them are to the packet: a crash leaves all or nothing.
	FxSave
	// FxForget: the record of Lane may be saved with a later one. Nothing waits.
	FxForget
	// FxFulfilled: the lock ID, which we offered, is paid, with Preimage. Its way
	// in has to be fulfilled.
	FxFulfilled
	// FxFailed: the lock ID, which we offered, will never be paid. Its way in may
	// be given back.
	FxFailed
	// FxTaken: the lock ID of the neighbour is held: it may go on, or be fulfilled.
	FxTaken
	// FxEnded: the lock ID of the neighbour is over. Preimage, where it is set, was
	// paid for; else nothing was shown and nothing is due.
	FxEnded
	// FxLost: the chain did not take the lock ID that we have shown the preimage
	// of: it was out of reach for longer than S epochs.
	FxLost
	// FxSecret: the channel's account learns Preimage, on disk, so that its watcher
	// can submit the lock without us.
	FxSecret
	// FxSign: Voucher is to be signed and kept, then EvSigned. It may have been asked
	// for before: the answer is then the same bytes.
	FxSign
	// FxSend: a message to the neighbour: Send tells which.
	FxSend
	// FxSubmit: Voucher, with Preimage where it is a LOCK, has to go to the chain
	// now. The channel's account has it by lane and nonce.
	FxSubmit
	// FxConflict: the two sides have signed different things under one nonce of
	// Lane, or it was restored from a backup. It takes no new lock.
	FxConflict
)

// Send names a message of FxSend.
type Send uint8

// Messages. Each carries the lock's ID.
const (
	// SendLock: prepare with the LOCK, Voucher, and its Guard where that is set.
	SendLock Send = iota + 1
	// SendLockAck: prepare_ack.
	SendLockAck
	// SendFulfil: fulfil with Preimage.
	SendFulfil
	// SendUnlock: unlock with Voucher.
	SendUnlock
	// SendUnlockAck: unlock_ack.
	SendUnlockAck
	// SendCancel: reject with the CANCEL, Voucher.
	SendCancel
	// SendCancelAck: reject_ack.
	SendCancelAck
	// SendShow: a voucher of the neighbour's own, which it seems to have lost.
	SendShow
)

// Effect is one duty of the shell.
type Effect struct {
	Kind     EffectKind
	Lane     uint64
	ID       uint64
	Send     Send
	Preimage tally.Preimage
	Voucher  Voucher
	Guard    Voucher
	// Err says why, of FxFailed and FxLost.
	Err error
}
