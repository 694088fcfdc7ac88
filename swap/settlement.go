package swap

import (
	"fmt"
	"time"

	"github.com/tallystick/tally"
)

// trigger is the debt at which we pay.
func (l *Ledger) trigger() tally.Amount {
	limit := l.consumeLimit()
	percent := tally.Amount(l.policy.EarlyPaymentPercent)
	return max(1, (limit*percent+99)/100) // limit ≤ maxThreshold: no overflow
}

// canSettle reports whether a new settlement may begin at all.
func (l *Ledger) canSettle() bool {
	if l.policy.Mode == ModeSoft || l.flags&flagReady == 0 || l.settle != settleIdle {
		return false
	}
	// Hard mode backs no cheque for a peer that could not say it is hard: the
	// money would buy karma.
	return l.policy.Mode != ModeHard || l.peerMode == ModeHard
}

func (l *Ledger) shouldSettle(now Instant) bool {
	debt := l.owed.Debt()
	return debt != 0 && l.canSettle() && debt >= l.trigger() && now >= l.retryAt
}

// startSettle intends one cheque for the exact debt. The cumulative never
// falls: money that may have left counts as spent.
func (l *Ledger) startSettle(now Instant) []Effect { return l.startPayment(now, l.owed.Debt()) }

func (l *Ledger) startPayment(now Instant, units tally.Amount) []Effect {
	l.moveSettle(settleIntent)
	l.sentSerial++
	l.issued = max(l.issued, l.paid+units)
	l.retryAt = now.Add(ackAfter)
	return []Effect{
		{Kind: FxSave, Serial: l.sentSerial, Cumulative: l.issued},
		{Kind: FxIssue, Serial: l.sentSerial, Cumulative: l.issued},
	}
}

// moveSettle changes the state along settleMoves; anything else is a bug here.
func (l *Ledger) moveSettle(to settleState) {
	if !settleMoves[l.settle][to] {
		panic(fmt.Sprintf("swap: settle state %v cannot become %v", l.settle, to))
	}
	l.settle = to
}

func (l *Ledger) settleNow(now Instant, ahead tally.Amount) ([]Effect, error) {
	switch {
	case l.policy.Mode == ModeSoft:
		return nil, ErrSoft
	case l.settle != settleIdle:
		return nil, nil // one at a time: the one that runs will do it
	case l.owed.Debt() == 0 && ahead == 0:
		return nil, ErrNothingOwed
	case fits(l.paid+l.owed.Debt(), ahead) != nil:
		return nil, tally.ErrOverflow
	case l.flags&flagReady == 0:
		return nil, ErrNoSession
	case !l.canSettle():
		return nil, ErrPeerMode
	case now < l.retryAt:
		return nil, nil // backing off after a failure
	}
	return l.startPayment(now, l.owed.Debt()+ahead), nil
}

// resume repeats the open step of a settlement: the same intent is issued, or
// the same bytes are sent.
func (l *Ledger) resume(now Instant) []Effect {
	if l.policy.Mode == ModeSoft {
		return nil
	}
	switch l.settle {
	case settleIntent:
		if l.policy.Mode == ModeHard && l.peerMode != ModeHard {
			return nil
		}
		l.retryAt = now.Add(ackAfter)
		return []Effect{{Kind: FxIssue, Serial: l.sentSerial, Cumulative: l.issued}}
	case settlePending, settleRefused:
		if l.flags&flagNative == 0 {
			return nil // the seed's protocol has no serials: sending again would pay again
		}
		l.moveSettle(settlePending)
		l.retryAt = now.Add(max(ackAfter, backoff(l.attempts)))
		return []Effect{{Kind: FxSendCheque, Serial: l.sentSerial, Cumulative: l.issued}}
	default:
		return nil
	}
}

// countAsPaid ends a settlement whose cheque may have left, where the peer now
// speaks the seed's protocol: no ack will come, and sending again would pay
// again. Should the peer come back with our own protocol, the handshake shows it
// the cheque.
func (l *Ledger) countAsPaid() {
	if l.settle != settlePending && l.settle != settleRefused {
		return
	}
	l.moveSettle(settleIdle)
	l.bookToPeer(l.issued - l.paid)
	l.paid = l.issued
	l.flags |= flagKarmaSent
}

// backoff is the wait after the n-th failure in a row.
func backoff(n uint8) time.Duration {
	if n >= 6 {
		return maxBackoff
	}
	return minBackoff << n
}

// countFailure spaces the next try.
func (l *Ledger) countFailure(now Instant) {
	l.retryAt = now.Add(backoff(l.attempts))
	if l.attempts < 255 {
		l.attempts++
	}
}

func (l *Ledger) issuedCheque(now Instant, ev *Event) ([]Effect, error) {
	if l.settle != settleIntent || ev.Serial != l.sentSerial {
		return nil, fmt.Errorf("%w: cheque %d issued in state %v", ErrUnexpected, ev.Serial, l.settle)
	}
	// The session may have ended or changed since the intent. The intent stays
	// then, and the next session that takes such a cheque issues it.
	switch {
	case l.policy.Mode == ModeSoft:
		return nil, ErrSoft
	case l.flags&flagReady == 0:
		return nil, ErrNoSession // nobody knows whether the peer gives acks
	case l.policy.Mode == ModeHard && l.peerMode != ModeHard:
		return nil, ErrPeerMode
	}
	fx := []Effect{
		{Kind: FxSave, Serial: l.sentSerial, Cumulative: l.issued},
		{Kind: FxSendCheque, Serial: l.sentSerial, Cumulative: l.issued},
	}
	l.retryAt = now.Add(ackAfter)
	if l.flags&flagNative == 0 {
		// The seed has no ack: a cheque counts as paid once it may have left.
		l.moveSettle(settlePending)
		l.countAsPaid()
		l.retryAt = 0
		return append(fx, Effect{Kind: FxWake}), nil
	}
	l.moveSettle(settlePending)
	l.flags &^= flagKarmaSent
	return fx, nil
}

func (l *Ledger) issueFailed(now Instant, ev *Event) error {
	if l.settle == settleIdle || ev.Serial != l.sentSerial {
		return ErrStale
	}
	l.countFailure(now)
	return nil
}

// ack books what the peer credited. Results are matched by serial, so that the
// answer of an old session is never booked on a new settlement.
func (l *Ledger) ack(now Instant, ev *Event) ([]Effect, error) {
	switch {
	case ev.Serial < l.sentSerial || l.settle == settleIdle:
		return nil, ErrStale
	case ev.Serial > l.sentSerial || l.settle == settleIntent:
		return nil, fmt.Errorf("%w: serial %d was never sent", ErrBadAck, ev.Serial)
	case ev.Cumulative > l.issued:
		return nil, fmt.Errorf("%w: credits %d of %d", ErrBadAck, ev.Cumulative, l.issued)
	}
	l.moveSettle(settleIdle)
	// An ack below what counts as paid is no progress. It comes where cheques of
	// the seed's protocol were credited in part: what was paid stays paid.
	progress := ev.Cumulative > l.paid
	if progress {
		l.bookToPeer(ev.Cumulative - l.paid)
		l.paid = ev.Cumulative
	}
	if progress {
		l.attempts, l.retryAt = 0, 0
	} else {
		l.countFailure(now) // nothing was credited: asking again at once would loop
	}
	fx := []Effect{{Kind: FxSave, Serial: ev.Serial}, {Kind: FxWake}}
	if l.shouldSettle(now) {
		fx = append(fx, l.startSettle(now)...)
	}
	return fx, nil
}

func (l *Ledger) refuse(now Instant, ev *Event) ([]Effect, error) {
	if ev.Serial != l.sentSerial || l.settle != settlePending && l.settle != settleRefused {
		return nil, ErrStale
	}
	l.moveSettle(settleRefused)
	l.countFailure(now)
	return []Effect{{Kind: FxSave, Serial: ev.Serial}, {Kind: FxWake}}, nil
}

// cheque credits a verified cheque. Cheques are absolute: what counts is the
// cumulative, so that a duplicate credits nothing and of several only the
// highest matters.
func (l *Ledger) cheque(ev *Event) ([]Effect, error) {
	switch {
	case ev.Serial == l.receivedSerial && !ev.Again:
		return nil, ErrDuplicate
	case ev.Serial < l.receivedSerial:
		return nil, ErrStale
	case ev.Cumulative < l.leastCumulative():
		return nil, ErrLowerCumulative
	case ev.Cumulative > maxLedgerAmount:
		return nil, tally.ErrOverflow
	case l.policy.Mode == ModeHard && ev.Covered <= l.received && ev.Cumulative > l.received:
		return nil, ErrUncovered
	}
	l.receivedSerial = ev.Serial
	l.accepted = max(l.accepted, ev.Cumulative)
	target := min(ev.Cumulative, ev.Covered)
	if l.policy.Mode != ModeHard {
		target = min(target, l.received+l.karmaRoom())
	}
	l.receive(target)
	if ev.Totals != nil {
		l.matchPaid(ev.Totals.Consumed)
	}
	return []Effect{{Kind: FxSave, Serial: ev.Serial}, {Kind: FxSendAck, Serial: ev.Serial}, {Kind: FxWake}}, nil
}

// leastCumulative is what a later cheque has to name. A voucher never falls, so
// neither does a backed cheque. Of karma only what was credited has to stay: a
// debtor that lost its store may not know what it once named beyond that.
func (l *Ledger) leastCumulative() tally.Amount {
	if l.policy.Mode == ModeHard {
		return l.accepted
	}
	return l.received
}

// karmaRoom is how much karma we credit at the most now: the debt, and one
// payment threshold ahead. Karma costs nothing to print, so more would be free
// service.
func (l *Ledger) karmaRoom() tally.Amount {
	return (l.owed.Owed() + l.policy.PaymentThreshold).SaturatingSub(l.prepaidByPeer)
}

// receive raises what the peer paid to target; less is no change.
func (l *Ledger) receive(target tally.Amount) {
	if target <= l.received {
		return
	}
	l.bookFromPeer(target - l.received)
	l.received = target
	l.covered = max(l.covered, target)
	l.refusedAt, l.blockedUntil = 0, 0 // paying lifts a block at once
}

// matchPaid takes the peer's signed count of what it consumed where it is above
// ours and already paid: we lost those units in a crash, and the peer does not
// ask for them back.
func (l *Ledger) matchPaid(consumedByPeer tally.Amount) {
	if l.shadow|l.packetsIn == 0 && consumedByPeer > l.served && consumedByPeer <= maxLedgerAmount {
		l.admit(min(consumedByPeer-l.served, l.prepaidByPeer))
	}
}

// karma credits an unsigned cheque of the seed's protocol. It has no serial, so
// a replay cannot be told from a new one; karmaRoom bounds what that is worth.
func (l *Ledger) karma(ev *Event) ([]Effect, error) {
	if l.policy.Mode == ModeHard {
		return nil, ErrUnbacked
	}
	credit := min(ev.Units, l.karmaRoom())
	if err := fits(l.accepted, credit); err != nil {
		return nil, err
	}
	l.accepted += credit
	l.receive(l.received + credit)
	return []Effect{{Kind: FxSave}, {Kind: FxWake}}, nil
}

// BlockedBy says in a few words why our debt is not settled now; empty where
// there is none or the settlement is due.
func (l *Ledger) BlockedBy(now Instant) string {
	switch {
	case l.owed.Debt() == 0 && l.settle == settleIdle:
		return ""
	case l.policy.Mode == ModeSoft:
		return "soft mode counts only"
	case l.flags&flagReady == 0:
		return "no handshake with the peer"
	case l.policy.Mode == ModeHard && l.peerMode != ModeHard:
		return "the peer is not in hard mode"
	case l.settle == settleRefused:
		return "the peer refused the cheque"
	case l.settle == settlePending:
		return "waiting for the peer's ack"
	case l.settle == settleIntent:
		return "the cheque is being issued"
	case l.owed.Debt() < l.trigger():
		return "debt is below the payment threshold"
	case now < l.retryAt:
		return "backing off after a failure"
	default:
		return ""
	}
}
