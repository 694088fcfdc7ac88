package swap

import (
	"github.com/tallystick/tally"
)

// Totals returns our side's absolute counts, with what we know of the peer's.
func (l *Ledger) Totals(seenServed, seenConsumed tally.Amount) Totals {
	return Totals{
		Served: l.served, Consumed: l.consumed, Paid: l.paid, Received: l.received,
		SeenServed: seenServed, SeenConsumed: seenConsumed,
		AtRest: l.AtRest(), Uncovered: l.uncovered(), Owed: l.owed.Owed(),
	}
}

// statement closes a skew between the books, one direction at a time.
//
// Where we consume, the peer's count may be higher because an answer was lost
// on the way: we take its figure as far as our own unanswered requests (and,
// after an unclean stop, W/2 of unsaved ones) explain it. That forgives nothing.
//
// Where we serve, the debtor has the last word once it told its figure in
// knowledge of ours. What it admits beyond our count, because a crash or an old
// backup of ours lost it, is taken up to the disconnect threshold. Units that it
// lost are forgiven within W, never more than W and 1 % of what it paid in all.
// A larger difference stops new credit until the peer pays or the operator
// decides.
func (l *Ledger) statement(t *Totals) ([]Effect, error) {
	if t == nil || max(t.Served, t.Consumed, t.Paid, t.Received) > maxLedgerAmount {
		return nil, tally.ErrOverflow
	}
	before := *l
	l.closePaid(t)
	l.closeConsumed(t)
	l.closeServed(t)
	l.closeOwed(t)
	if l.served == before.served && l.consumed == before.consumed && l.paid == before.paid {
		if l.owed != before.owed || l.prepaidByPeer != before.prepaidByPeer {
			return []Effect{{Kind: FxSave}, {Kind: FxWake}}, nil
		}
		if l.unaware(t) {
			return []Effect{{Kind: FxSendStatement}}, nil
		}
		return nil, nil
	}
	// The peer has to see the figure it is now equal to.
	return []Effect{{Kind: FxSave}, {Kind: FxSendStatement}, {Kind: FxWake}}, nil
}

// closePaid takes over what the peer admits to have received and we do not know
// to have paid: a lost store of ours, and no cheque of its own to prove it
// (cheques of the seed's protocol leave none). Karma only; in hard mode money is
// known by proof.
func (l *Ledger) closePaid(t *Totals) {
	if t.Received <= l.paid || l.policy.Mode == ModeHard {
		return
	}
	if l.settle != settleIdle {
		if t.Received <= l.issued {
			return // that is our open cheque, and its ack is on the way
		}
		l.moveSettle(settleIdle) // the open cheque names no more than is credited
	}
	l.bookToPeer(t.Received - l.paid)
	l.paid = t.Received
	l.issued = max(l.issued, l.paid)
}

// closeOwed closes what no total shows. Service and money that cross on the wire
// are booked in another order on each side, so that one may hold for owed what the
// other holds for paid ahead; neither would ever settle that. Where the books are
// each other's mirror the creditor's word counts: the balance stays what it is, and
// what it calls a debt is paid. A step moves no more than the payment threshold, and
// never more than the peer paid ahead.
func (l *Ledger) closeOwed(t *Totals) {
	mirror := l.served == t.Consumed && l.consumed == t.Served && l.paid == t.Received && l.received == t.Paid
	if !mirror || !l.AtRest() || !t.AtRest || l.settle != settleIdle || l.uncovered() != 0 || t.Owed <= l.owed.Debt() {
		return
	}
	crossed := min(l.prepaidByPeer, l.prepaidToPeer)
	l.prepaidByPeer -= crossed
	l.prepaidToPeer -= crossed
	n := min(t.Owed-l.owed.Debt(), l.prepaidByPeer, l.policy.PaymentThreshold)
	l.prepaidByPeer -= n
	l.owed -= tally.Balance(n)
}

// unaware reports whether books at rest differ and the teller did not know our
// figure: it has to be told, or its own would never be final. A teller that
// knows is not answered, so that two sides do not talk for ever.
func (l *Ledger) unaware(t *Totals) bool {
	if l.flags&flagNative == 0 || !l.AtRest() || !t.AtRest {
		return false
	}
	return t.Consumed != l.served && t.SeenServed != l.served || t.Served != l.consumed && t.SeenConsumed != l.consumed
}

func (l *Ledger) closeConsumed(t *Totals) {
	if l.reserved|l.packetsOut != 0 || !t.AtRest {
		return
	}
	if t.Served > l.consumed {
		more := t.Served - l.consumed
		allowed := l.unanswered
		if l.flags&flagUnclean != 0 {
			allowed += l.policy.flushAt()
		}
		if more > allowed {
			return // the creditor closes or keeps it: only it can forgive
		}
		l.raiseConsumed(more)
		l.charged += min(more, l.unanswered)
	}
	l.unanswered = 0
	l.flags &^= flagUnclean
}

func (l *Ledger) closeServed(t *Totals) {
	if l.shadow|l.packetsIn != 0 || !t.AtRest || t.SeenServed != l.served {
		return // not a final figure
	}
	slack := l.policy.Slack()
	switch {
	case t.Consumed > l.served:
		more := t.Consumed - l.served
		// What the peer admits costs us nothing, up to what we would have served
		// it anyway. Beyond that it would fill the exposure that all peers
		// share, at no cost to itself.
		if more > headroom(l.policy.DisconnectThreshold, l.claim(), 0) {
			more = min(more, l.prepaidByPeer) // paid units cost nobody anything
		}
		l.admit(more)
	case t.Consumed < l.served:
		less := l.served - t.Consumed
		if less <= slack && l.forgiven+less <= slack+l.received/100 {
			l.forgiven += less
			l.lowerServed(less)
		}
	}
	l.skew = tally.Balance(l.served) - tally.Balance(t.Consumed)
	if l.skew != 0 {
		l.flags |= flagSkewed
	} else {
		l.flags &^= flagSkewed
	}
}

// admit books n units served that the peer says it consumed. Where they were
// forgiven before, because they were still on their way, they no longer are.
func (l *Ledger) admit(n tally.Amount) {
	l.raiseServed(n)
	l.forgiven = l.forgiven.SaturatingSub(n)
}

// lowerServed takes back n units served. The peer never counted them, so it never
// paid for them either: what they leave is service of the peer's that we owe for,
// and not money that it paid ahead, which nobody would ever settle.
func (l *Ledger) lowerServed(n tally.Amount) {
	l.served -= n
	claimed := min(l.owed.Owed(), n)
	l.owed -= tally.Balance(claimed)
	l.unbookToPeer(n - claimed)
}

// lowerConsumed takes back n units consumed. We counted them, and paid for them
// what the peer took as paid ahead.
func (l *Ledger) lowerConsumed(n tally.Amount) {
	l.consumed -= n
	l.bookToPeer(n)
}

// resolve takes the peer's last told figures in both directions, because the
// operator said so.
func (l *Ledger) resolve(t *Totals) ([]Effect, error) {
	if t == nil {
		return nil, ErrNoSession
	}
	if t.Served > maxLedgerAmount || t.Consumed > maxLedgerAmount {
		return nil, tally.ErrOverflow
	}
	if !l.AtRest() {
		return nil, ErrInFlight
	}
	if t.Consumed >= l.served {
		l.raiseServed(t.Consumed - l.served)
	} else {
		l.lowerServed(l.served - t.Consumed)
	}
	if t.Served >= l.consumed {
		l.raiseConsumed(t.Served - l.consumed)
	} else {
		l.lowerConsumed(l.consumed - t.Served)
	}
	l.skew, l.unanswered = 0, 0
	l.flags &^= flagSkewed | flagUnclean
	return []Effect{{Kind: FxSave}, {Kind: FxSendStatement}, {Kind: FxWake}}, nil
}

// adoptSent takes over a cheque of ours that the peer proved and we have
// forgotten (a lost or restored store). The money counts as spent; what the
// peer credited for it comes as an ack.
func (l *Ledger) adoptSent(ev *Event) ([]Effect, error) {
	if err := adoptable(ev); err != nil {
		return nil, err
	}
	// A backup may be of the very intent: its cheque must not be signed twice.
	known := l.sentSerial
	if l.settle == settleIntent {
		known--
	}
	if ev.Serial <= known {
		return nil, ErrStale
	}
	l.raiseTotals(ev.Totals)
	l.sentSerial = ev.Serial
	l.issued = max(l.issued, ev.Cumulative)
	l.moveSettle(settlePending)
	return []Effect{{Kind: FxSave, Serial: ev.Serial}, {Kind: FxWake}}, nil
}

// adoptReceived takes over an ack of ours that the peer proved.
func (l *Ledger) adoptReceived(ev *Event) ([]Effect, error) {
	if err := adoptable(ev); err != nil {
		return nil, err
	}
	if ev.Serial <= l.receivedSerial {
		return nil, ErrStale
	}
	l.raiseTotals(ev.Totals)
	l.receivedSerial = ev.Serial
	l.accepted = max(l.accepted, ev.Cumulative)
	l.receive(ev.Cumulative)
	return []Effect{{Kind: FxSave, Serial: ev.Serial}, {Kind: FxWake}}, nil
}

// adoptable bounds what a proof may bring. It is our own signature, but a
// defect of an older version must not overflow this one.
func adoptable(ev *Event) error {
	t := ev.Totals
	if t == nil || max(ev.Cumulative, t.Served, t.Consumed) > maxLedgerAmount {
		return tally.ErrOverflow
	}
	return nil
}

// raiseTotals takes our own signed counts where they are above what we have.
func (l *Ledger) raiseTotals(t *Totals) {
	if t.Served > l.served {
		l.raiseServed(t.Served - l.served)
	}
	if t.Consumed > l.consumed {
		l.raiseConsumed(t.Consumed - l.consumed)
	}
}
