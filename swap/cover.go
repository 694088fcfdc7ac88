package swap

import (
	"github.com/tallystick/tally"
)

// cover takes what the chain would pay of the peer's cheques now. No balance
// changes: what lost its cover is exposure, stops new credit, and the peer is
// told, so that it tops up the same channel.
func (l *Ledger) cover(covered tally.Amount) []Effect {
	covered = min(covered, l.received)
	switch {
	case covered == l.covered:
		return nil
	case covered > l.covered:
		l.covered = covered
		return []Effect{{Kind: FxSave}, {Kind: FxWake}}
	default:
		l.covered = covered
		return []Effect{{Kind: FxSave}, {Kind: FxSendStatement}}
	}
}

// final closes one direction's channel: both books take what the chain paid, be
// it less or more than what was credited. It is absolute, so that a repetition
// changes nothing; the caller takes care that no cheque on a later channel comes
// in between.
func (l *Ledger) final(ev *Event) ([]Effect, error) {
	if ev.Cumulative > maxLedgerAmount {
		return nil, tally.ErrOverflow
	}
	before := *l
	if ev.Dir == Serve {
		l.finalReceived(ev.Cumulative)
	} else {
		l.finalPaid(ev.Cumulative)
	}
	if *l == before {
		return nil, nil
	}
	return []Effect{{Kind: FxSave}, {Kind: FxSendStatement}, {Kind: FxWake}}, nil
}

func (l *Ledger) finalReceived(total tally.Amount) {
	if total > l.received {
		l.bookFromPeer(total - l.received)
	} else {
		l.unbookFromPeer(l.received - total)
	}
	l.received, l.covered, l.accepted = total, total, total
	l.refusedAt, l.blockedUntil = 0, 0
}

// finalPaid ends an open settlement too: its voucher was for the channel that is
// gone, and what is owed still is settled anew.
func (l *Ledger) finalPaid(total tally.Amount) {
	if total > l.paid {
		l.bookToPeer(total - l.paid)
	} else {
		l.unbookToPeer(l.paid - total)
	}
	l.paid, l.issued = total, total
	if l.settle != settleIdle {
		l.moveSettle(settleIdle)
	}
	l.attempts, l.retryAt = 0, 0
}

// unbookFromPeer has the peer owe n more, for service or because what it paid is
// taken back: what it prepaid goes first.
func (l *Ledger) unbookFromPeer(n tally.Amount) {
	drawn := min(l.prepaidByPeer, n)
	l.prepaidByPeer -= drawn
	l.owed += tally.Balance(n - drawn)
	l.flags |= flagUntold
}

// unbookToPeer is the mirror of unbookFromPeer.
func (l *Ledger) unbookToPeer(n tally.Amount) {
	drawn := min(l.prepaidToPeer, n)
	l.prepaidToPeer -= drawn
	l.owed -= tally.Balance(n - drawn)
	l.flags |= flagUntold
}

// retry goes on with an open settlement at once, or begins one that is due.
func (l *Ledger) retry(now Instant) []Effect {
	l.attempts, l.retryAt = 0, 0
	if l.flags&flagReady == 0 {
		return nil
	}
	if l.settle != settleIdle {
		return l.resume(now)
	}
	if l.shouldSettle(now) {
		return l.startSettle(now)
	}
	return nil
}
