package swap

import (
	"fmt"

	"github.com/tallystick/tally"
)

// Packets travel on credit up to the disconnect threshold, in every mode: a
// packet is decided by whoever holds its preimage, perhaps many hops away, so
// that the tab is all that limits what a neighbour can cost. Commits past the
// payment threshold start a settlement like any other.

// maxPacketUnits bounds what may be in flight in one direction, so that the
// sums of limits below cannot overflow.
const maxPacketUnits = maxLedgerAmount >> 1

func (l *Ledger) holdPacket(now Instant, dir Direction, n tally.Amount) error {
	if n > maxPacketUnits {
		return ErrTooLarge
	}
	if dir == Serve {
		switch {
		case l.blocked(now):
			return ErrBlocked
		case l.serveLimit() == 0 && n > l.HeadroomPacket(now, dir):
			return l.noRoom()
		case n > l.policy.DisconnectThreshold+l.claim().Debt():
			return ErrTooLarge
		case n > l.roomToServe():
			return l.noRoom()
		case n > l.HeadroomPacket(now, dir):
			return ErrExposure
		}
		return l.keepPacket(dir, n)
	}
	switch {
	case l.flags&flagReady == 0:
		return ErrNoSession
	case l.peerPayment == 0 && l.credit() == 0:
		return ErrPeerThreshold
	case l.settle == settleRefused:
		return ErrPaymentRefused
	case n > l.packetLimit()+l.credit():
		return ErrTooLarge
	case n > l.HeadroomPacket(now, dir):
		return ErrOverThreshold
	}
	return l.keepPacket(dir, n)
}

// packetLimit is the debt up to which we offer packets: what the peer stops at,
// where it told that, and never more than we let ourselves owe.
func (l *Ledger) packetLimit() tally.Amount {
	if l.peerPayment == 0 {
		return 0
	}
	return min(max(l.peerPayment, l.peerDisconnect), l.policy.MaxDebt)
}

// HeadroomPacket is how many units of packets fit the tab now: in direction
// Serve those that the peer may offer us, in Consume those that we may offer it.
func (l *Ledger) HeadroomPacket(now Instant, dir Direction) tally.Amount {
	if dir == Serve {
		if l.blocked(now) {
			return 0
		}
		return min(l.roomToServe(), l.policy.MaxExposure.SaturatingSub(l.Exposure()), maxPacketUnits)
	}
	if l.flags&flagReady == 0 || l.settle == settleRefused {
		return 0
	}
	room := (l.packetLimit() + l.credit()).SaturatingSub(l.owed.Debt() + l.reserved + l.packetsOut)
	return min(room, maxPacketUnits)
}

// packetRefused takes what the peer paid ahead for a debt, so that it is settled.
//
// A cheque that crosses service on the wire is booked after it on one side and
// before it on the other. Both balances are the same at rest, but one side may have
// money that was paid ahead, which nobody settles, where the other has a debt that
// it waits for; and refuses packets until then, for ever. Money that comes of such a
// crossing is no more than a cheque at the threshold. More than that was meant to be
// ahead, and stays.
func (l *Ledger) packetRefused() {
	if l.settle != settleIdle || l.prepaidByPeer > l.policy.DisconnectThreshold {
		return
	}
	ahead := l.prepaidByPeer
	l.prepaidByPeer = 0
	l.unbookToPeer(ahead) // what we paid ahead goes first, the rest is a debt
}

// keepPacket counts a packet as in flight, whatever the limits are.
func (l *Ledger) keepPacket(dir Direction, n tally.Amount) error {
	held := l.packetHeld(dir)
	if n > maxPacketUnits || *held+n > maxPacketUnits {
		return tally.ErrOverflow
	}
	*held += n
	return nil
}

func (l *Ledger) packetHeld(dir Direction) *tally.Amount {
	if dir == Serve {
		return &l.packetsIn
	}
	return &l.packetsOut
}

func (l *Ledger) releasePacket(dir Direction, n tally.Amount) error {
	held := l.packetHeld(dir)
	if n > *held {
		return fmt.Errorf("%w: packet of %d units, %d are held", ErrUnexpected, n, *held)
	}
	*held -= n
	return nil
}

func (l *Ledger) commitPacket(now Instant, dir Direction, n tally.Amount) ([]Effect, error) {
	total := l.served
	if dir == Consume {
		total = l.consumed
	}
	if err := fits(total, n); err != nil {
		return nil, err
	}
	if err := l.releasePacket(dir, n); err != nil {
		return nil, err
	}
	l.dirty += n
	if dir == Serve {
		l.raiseServed(n)
		return l.flushIfDirty(), nil
	}
	l.raiseConsumed(n)
	if l.shouldSettle(now) {
		return l.startSettle(now), nil
	}
	return l.flushIfDirty(), nil
}
