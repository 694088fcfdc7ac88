package lock

import (
	"encoding/binary"

	"golang.org/x/crypto/blake2b"
)

// digestDomain keeps the digest of a lane apart from all others.
const digestDomain = "tally lane 1"

// digest is of what a side holds to be agreed on the lane: the base and, where a
// lock stands, that. Both sides get the same for the same.
func (s *slot) digest() [32]byte {
	b := make([]byte, 0, 128)
	b = append(b, digestDomain...)
	b = append(b, 0)
	b = binary.BigEndian.AppendUint64(b, s.lane)
	base := s.base
	if s.phase == Opened && s.raw != "" {
		base = s.total() // the payer's UNLOCK is out
	}
	b = binary.BigEndian.AppendUint64(b, uint64(base))
	if s.phase == Locked || s.phase == Opened && s.raw == "" {
		for _, n := range [...]uint64{s.nonce + 1, s.id, uint64(s.amount), uint64(s.expires)} {
			b = binary.BigEndian.AppendUint64(b, n)
		}
		if s.point != 0 {
			b = append(b, s.point)
		}
		b = append(b, s.hash[:]...)
	}
	return blake2b.Sum256(b)
}

// used is the highest nonce that the slot counts as used.
func (s *slot) used() uint64 {
	switch {
	case s.phase == Given, s.phase == Opened && s.raw != "":
		return s.nonce + 2
	case s.phase == Free:
		return s.nonce
	default:
		return s.nonce + 1
	}
}

// fresh reports whether nothing ever happened on the lane.
func (s *slot) fresh() bool { return s.phase == Free && s.nonce == 0 }

// States is what we say in a sync: every lane that is not fresh.
func (s *Slots) States() []LaneState {
	var list []LaneState
	for i := range s.slots {
		if l := &s.slots[i]; !l.fresh() {
			list = append(list, LaneState{Lane: l.lane, Nonce: l.used(), Digest: l.digest()})
		}
	}
	return list
}

// sync compares the lanes after a reconnect. Who is ahead sends again what it
// signed; who is behind waits for that, and believes nothing without a signature.
func (s *Slots) sync(_ int64, ev *Event, fx []Effect) ([]Effect, error) {
	theirs := make([]LaneState, len(s.slots))
	for _, ls := range ev.Lanes {
		if ls.Lane >= 1 && ls.Lane <= uint64(len(theirs)) {
			theirs[ls.Lane-1] = ls
		}
	}
	for i := range s.slots {
		fx = s.compare(&s.slots[i], &theirs[i], fx)
	}
	return fx, nil
}

func (s *Slots) compare(l *slot, theirs *LaneState, fx []Effect) []Effect {
	ours := l.used()
	same := theirs.Nonce == ours && theirs.Digest == l.digest() || l.fresh() && theirs.Nonce == 0
	switch {
	case s.role == Payee && l.phase == Opened:
		// Whether the payer has the preimage, nonces do not tell.
		return s.sendFulfil(l, fx)
	case same:
		if s.role == Payer && l.phase == Locked {
			l.acked = true
		}
		if s.role == Payer && l.phase == Opened {
			return s.resend(l, fx) // for the ack
		}
		if l.phase == Given { // the payer has our CANCEL
			l.rest(false)
			fx = append(fx, Effect{Kind: FxForget, Lane: l.lane})
		}
		return fx
	case s.role == Payer && l.phase != Free:
		return s.resend(l, fx)
	case s.role == Payee && l.phase == Given:
		return s.sendCancel(l, fx)
	case l.phase != Free || theirs.Digest == l.digest():
		return fx // the other side is ahead, or left nonces out
	case theirs.Nonce < ours:
		return s.prove(l, fx)
	case s.role == Payer || theirs.Nonce == ours:
		// The payee knows of more than we gave it, or of something else.
		return s.retire(l, fx)
	}
	return fx
}

// retire stops a lane: what was promised on it stands, and nothing is added.
func (s *Slots) retire(l *slot, fx []Effect) []Effect {
	if l.retired {
		return fx
	}
	l.retired = true
	return append(fx, Effect{Kind: FxSave, Lane: l.lane}, Effect{Kind: FxConflict, Lane: l.lane})
}

// prove shows a neighbour that is behind what it seems to have lost: the payer its
// UNLOCK, from which the payee's base comes, and each side the other's signature.
func (s *Slots) prove(l *slot, fx []Effect) []Effect {
	if s.role == Payer && l.paid != 0 {
		v := Voucher{Lane: l.lane, Nonce: l.paid, Amount: l.base}
		return append(fx, Effect{Kind: FxSend, Lane: l.lane, Send: SendUnlock, Voucher: v})
	}
	v := Voucher{Lane: l.lane, Nonce: l.paid, Amount: l.base}
	if s.role == Payer {
		v = Voucher{Lane: l.lane, Nonce: l.cancelNonce, Amount: l.cancelAmount}
	}
	if v.Nonce == 0 {
		return fx
	}
	return append(fx, Effect{Kind: FxSend, Lane: l.lane, Send: SendShow, Voucher: v})
}

// shownPayer takes a voucher that we signed and do not know: our store is older.
// The lane takes no new lock; what the voucher obliges us to, the channel's account
// counts, and the chain decides.
func (s *Slots) shownPayer(_ int64, ev *Event, fx []Effect) ([]Effect, error) {
	v := &ev.Voucher
	if k := s.terms.KindOf(v); k != KindLock && k != KindPlain && (k != KindPoint || !s.terms.takes(v.Point)) {
		return fx, ErrForm
	}
	return s.shown(v, fx)
}

// shownPayee takes a CANCEL that we signed and do not know.
func (s *Slots) shownPayee(_ int64, ev *Event, fx []Effect) ([]Effect, error) {
	if err := s.terms.form(&ev.Voucher, KindPlain); err != nil {
		return fx, err
	}
	return s.shown(&ev.Voucher, fx)
}

func (s *Slots) shown(v *Voucher, fx []Effect) ([]Effect, error) {
	l, err := s.at(v.Lane)
	if err != nil {
		return fx, err
	}
	if v.Nonce <= l.used() || v.Nonce >= maxNonce {
		return fx, nil
	}
	fx = append(fx, Effect{Kind: FxKeep, Lane: l.lane, Voucher: *v})
	return s.retire(l, fx), nil
}
