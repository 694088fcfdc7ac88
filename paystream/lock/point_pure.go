package lock

import "github.com/tallystick/tally"

// Point locks. A slot may hold a lock under a point Y of secp256k1 in place of a hash:
//
//	LOCK  n+1, b+a, until T, no hash; its signature is given encrypted under Y
//
// Who knows y with y·G = Y completes the signature, and can submit the voucher; whoever
// has the encrypted signature, and sees the completed one, knows y then. So y does what
// a preimage does, and all else of a slot stays as it is: UNLOCK, CANCEL, guard, times,
// and what is on disk before what. What differs:
//
//   - The core cannot tell whether y opens Y: curves are the shell's (Terms.OpensPoint).
//   - What is signed is different each time, so that FxSign of a point lock is carried
//     out once and what it gave is saved with it: asked again the shell returns the same
//     bytes. EvSigned, and the LOCK that is sent, have them in Raw.
//   - EvLock comes when the shell has checked the encrypted signature against exactly
//     this voucher and point: one that cannot be completed is no lock.
//   - FxSubmit of a point lock has y where a hash lock has the preimage. The shell
//     completes the voucher.
//   - EvPreimage with OnChain has y recovered from the signature that the chain shows.
//
// A payment under a point has a point lock on every hop, all under one Y here: the hops
// see that they carry the same payment, as under one hash.
//
// Y is given as its compressed form: the first byte in a field Point, 2 or 3, and x in
// Hash. Point 0 is a hash lock.

// PointOf takes a compressed point apart. ErrForm.
func PointOf(y [33]byte) (first byte, x tally.Hashlock, err error) {
	if !pointed(y[0]) {
		return 0, tally.Hashlock{}, ErrForm
	}
	return y[0], tally.Hashlock(y[1:]), nil
}

// pointed reports whether a first byte is a point's.
func pointed(first byte) bool { return first == 2 || first == 3 }

// takes reports whether locks of this kind can be made and taken here.
func (t *Terms) takes(first byte) bool { return first == 0 || pointed(first) && t.OpensPoint != nil }

// opens reports whether what was shown opens a lock.
func (t *Terms) opens(first byte, hash tally.Hashlock, shown tally.Preimage) bool {
	if first == 0 {
		return shown.Opens(hash)
	}
	if t.OpensPoint == nil {
		return false
	}
	y := [33]byte{first}
	copy(y[1:], hash[:])
	return t.OpensPoint(y, shown)
}

// formLock refuses a voucher that is neither a hash lock nor a point lock that is
// taken here.
func (t *Terms) formLock(v *Voucher) error {
	if v.Point == 0 {
		return t.form(v, KindLock)
	}
	if t.KindOf(v) != KindPoint || !t.takes(v.Point) {
		return ErrPoint
	}
	return nil
}
