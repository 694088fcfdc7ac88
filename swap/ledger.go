package swap

import (
	"errors"
	"fmt"
	"time"

	"github.com/tallystick/tally"
)

// Bounds of the arithmetic. Each total of a relation stays at or below
// maxLedgerAmount, so that every sum of a few of them, with a sign, fits a
// Balance; an event that would pass it is refused with tally.ErrOverflow.
const (
	maxLedgerAmount tally.Amount = 1 << 60
	maxThreshold    tally.Amount = 1 << 40
)

// Times of the policy.
const (
	// overdueAfter is how long a debt may stay at the disconnect threshold
	// after a refusal before the peer is disconnected.
	overdueAfter = 30 * time.Second
	// blockPerThreshold is the time a peer is blocked for each payment
	// threshold that it owes, and maxBlock the most.
	blockPerThreshold = time.Minute
	maxBlock          = time.Hour
	// ackAfter is how long an ack may take before the same bytes are sent again.
	ackAfter = 10 * time.Second
	// minBackoff doubles with each failure up to maxBackoff.
	minBackoff = time.Second
	maxBackoff = time.Minute
	// statementEvery is the least time between two statements to one peer that
	// no answer calls for.
	statementEvery = 10 * time.Second
)

// Refusals of the ledger. The book wraps them with peer, figures and remedy.
var (
	// ErrOverThreshold: there is no headroom now; a payment makes some.
	ErrOverThreshold = errors.New("swap: over threshold")
	// ErrTooLarge: more units at once than the whole threshold, so that waiting
	// can never help.
	ErrTooLarge = errors.New("swap: more than the whole threshold at once")
	// ErrNoSession: no handshake with the peer yet, or not any more.
	ErrNoSession = errors.New("swap: no handshake with the peer")
	// ErrPeerThreshold: the peer announced less than we consume under.
	ErrPeerThreshold = errors.New("swap: peer announced too low a payment threshold")
	// ErrPaymentRefused: the peer refused our last cheque, and nothing is
	// consumed from it until that is mended.
	ErrPaymentRefused = errors.New("swap: peer refused our cheque")
	// ErrBlocked: the peer stayed at the disconnect threshold without paying.
	ErrBlocked = errors.New("swap: peer is blocked until it pays")
	// ErrSkew: the two books differ by more than is forgiven.
	ErrSkew = errors.New("swap: books differ")
	// ErrExposure: the peer, or all peers together, could make us lose too much.
	ErrExposure = errors.New("swap: exposure cap reached")
	// ErrStranger: the credit shared by peers that never paid is used up.
	ErrStranger = errors.New("swap: credit for peers that never paid is used up")
	// ErrSoft: soft mode counts only and pays nothing.
	ErrSoft = errors.New("swap: soft mode sends no cheques")
	// ErrNothingOwed: there is no debt of ours to settle.
	ErrNothingOwed = errors.New("swap: nothing owed to the peer")
	// ErrStale: an older cheque or ack than one we have; nothing changed.
	ErrStale = errors.New("swap: older than what we have")
	// ErrDuplicate: a cheque that we hold already; ack it again, credit nothing.
	ErrDuplicate = errors.New("swap: already received")
	// ErrLowerCumulative: a later cheque with a lower sum than an earlier one.
	ErrLowerCumulative = errors.New("swap: cumulative is lower than before")
	// ErrBadAck: an ack that credits less than before or more than was paid.
	ErrBadAck = errors.New("swap: ack does not fit our cheque")
	// ErrUnbacked: hard mode takes no cheque without backing.
	ErrUnbacked = errors.New("swap: cheque has no backing")
	// ErrUncovered: the chain would pay nothing more for a cheque than for those
	// before it, or no longer pays for those that were credited.
	ErrUncovered = errors.New("swap: cheques are not covered on the chain")
	// ErrBacking: the backing of a cheque is not for this peer, channel or amount.
	ErrBacking = errors.New("swap: backing is not acceptable")
	// ErrPeerMode: the peer's mode does not take what ours would send.
	ErrPeerMode = errors.New("swap: peer is not in hard mode")
	// ErrInFlight: work is in flight, so that the books cannot be compared.
	ErrInFlight = errors.New("swap: work in flight with the peer")
	// ErrUnexpected: an event that the present state has no transition for.
	ErrUnexpected = errors.New("swap: unexpected event")
	// ErrInvariant is wrapped by every error of Check.
	ErrInvariant = errors.New("swap: invariant broken")
)

// settleState is where our side of a settlement stands.
//
//	          FxIssue            EvIssued             EvAck
//	idle ───────────▶ intent ───────────▶ pending ───────────▶ idle
//	                  ▲    │ EvIssueFailed  │  ▲
//	                  └────┘ (back-off)     ▼  │ back-off: the same bytes
//	                                      refused
//
// A peer of the seed's protocol gives no ack: there EvIssued leads to idle.
type settleState uint8

const (
	settleIdle settleState = iota
	settleIntent
	settlePending
	settleRefused
)

// settleMoves is the only door for a change of settleState.
var settleMoves = [4][4]bool{
	settleIdle:    {settleIntent: true, settlePending: true},
	settleIntent:  {settleIdle: true, settleIntent: true, settlePending: true},
	settlePending: {settleIdle: true, settlePending: true, settleRefused: true},
	settleRefused: {settleIdle: true, settlePending: true, settleRefused: true},
}

// String is the state as balances shows it.
func (s settleState) String() string {
	return [...]string{"idle", "intent", "pending", "refused"}[s&3]
}

type ledgerFlags uint8

const (
	flagReady     ledgerFlags = 1 << iota // a session is ready
	flagNative                            // the session speaks our protocol
	flagSkewed                            // books differ by more than is forgiven
	flagUntold                            // totals changed since the last statement
	flagUnclean                           // we stopped uncleanly since the books last agreed
	flagKarmaSent                         // our last cheque went to a peer that gives no acks
)

// Ledger is the tab with one peer in one asset. It is pure: Step is its only
// way to change, and a caller carries out the effects. It is one value of fixed
// size without pointers into the heap but for its policy, so that a million of
// them fit in memory.
//
// Money beyond a debt is kept apart as prepaid: service draws on it first, and
// it is never "settled back" by a cheque the other way.
type Ledger struct {
	policy *Policy

	// owed is what service and payment leave: above zero the peer owes us.
	owed tally.Balance
	// prepaidByPeer and prepaidToPeer are payments beyond the debt.
	// Invariant: prepaidByPeer > 0 ⇒ owed ≤ 0, prepaidToPeer > 0 ⇒ owed ≥ 0.
	prepaidByPeer, prepaidToPeer tally.Amount
	// reserved is our consumption in flight, shadow our service in flight.
	reserved, shadow tally.Amount
	// packetsIn are packets that the peer offered us and nobody decided yet,
	// packetsOut those that we offered it. They are not in the record: the
	// journal of packets has them.
	packetsIn, packetsOut tally.Amount
	// unanswered is what we asked for and never had an answer to: the peer may
	// have booked it.
	unanswered tally.Amount
	// charged is what statements of the peer charged of it: an answer that comes
	// late after all is paid for by it.
	charged tally.Amount
	// served and consumed are totals of all time.
	served, consumed tally.Amount
	// received is all that the peer ever paid us, as we credited it; covered is
	// the part of it that is backed. Invariant: covered ≤ received.
	received, covered tally.Amount
	// accepted is the highest cumulative that a cheque of the peer named.
	accepted tally.Amount
	// paid is all that the peer credited us, issued the highest cumulative we
	// ever intended. Invariant: paid ≤ issued.
	paid, issued tally.Amount
	// sentSerial counts our cheques, receivedSerial is the peer's highest.
	sentSerial, receivedSerial uint64
	// forgiven is what skew cost us with this peer, for ever.
	forgiven tally.Amount
	// skew is what we claim more than the peer admits, in both directions
	// together, as of the last final statement.
	skew tally.Balance
	// peerPayment is the peer's announced payment threshold, clamped;
	// peerDisconnect its disconnect threshold as announced.
	peerPayment, peerDisconnect tally.Amount
	// dirty counts units that are booked and not on disk yet.
	dirty tally.Amount

	refusedAt    Instant // first refusal at the disconnect threshold; 0: none
	blockedUntil Instant // 0: not blocked
	retryAt      Instant // next try of a settlement
	toldAt       Instant // last statement

	settle   settleState
	attempts uint8
	peerMode Mode
	flags    ledgerFlags
}

// NewLedger returns an empty tab under a policy, which must be valid and stay
// unchanged.
func NewLedger(policy *Policy) Ledger { return Ledger{policy: policy} }

// Step applies one event and returns what the shell has to do, in order. On an
// error nothing has changed. The message path (EvReserve, EvCommit, EvRelease)
// allocates nothing unless a settlement begins.
func (l *Ledger) Step(now Instant, ev *Event) ([]Effect, error) {
	switch ev.Kind {
	case EvReserve:
		return nil, l.reserve(now, ev.Dir, ev.Units)
	case EvCommit:
		return l.commit(now, ev)
	case EvRelease:
		return l.release(ev)
	case EvDenied:
		return l.deny(now)
	case EvUnblock:
		l.refusedAt, l.blockedUntil = 0, 0
		return []Effect{{Kind: FxSave}, {Kind: FxWake}}, nil
	case EvSession:
		return l.beginSession(now, ev.Terms)
	case EvSessionEnd:
		l.flags &^= flagReady | flagNative
		return nil, nil
	case EvTick:
		return l.tick(now)
	case EvSettle:
		return l.settleNow(now, ev.Units)
	case EvIssued:
		return l.issuedCheque(now, ev)
	case EvIssueFailed:
		return nil, l.issueFailed(now, ev)
	case EvAck:
		return l.ack(now, ev)
	case EvRefused:
		return l.refuse(now, ev)
	case EvCheque:
		return l.cheque(ev)
	case EvKarma:
		return l.karma(ev)
	case EvStatement:
		return l.statement(ev.Totals)
	case EvTold:
		l.flags &^= flagUntold
		l.toldAt = now
		return nil, nil
	case EvAdoptSent:
		return l.adoptSent(ev)
	case EvAdoptReceived:
		return l.adoptReceived(ev)
	case EvResolve:
		return l.resolve(ev.Totals)
	case EvPacketHold:
		return nil, l.holdPacket(now, ev.Dir, ev.Units)
	case EvPacketKeep:
		return nil, l.keepPacket(ev.Dir, ev.Units)
	case EvPacketCommit:
		return l.commitPacket(now, ev.Dir, ev.Units)
	case EvPacketRelease:
		return nil, l.releasePacket(ev.Dir, ev.Units)
	case EvPacketRefused:
		l.packetRefused()
		return nil, nil
	case EvCover:
		return l.cover(ev.Covered), nil
	case EvFinal:
		return l.final(ev)
	case EvRetry:
		return l.retry(now), nil
	default:
		return nil, fmt.Errorf("%w: kind %d", ErrUnexpected, ev.Kind)
	}
}

// Balance is the net of the tab, the figure that is printed and compared. Above
// zero the peer owes us.
func (l *Ledger) Balance() tally.Balance {
	return l.owed - tally.Balance(l.prepaidByPeer) + tally.Balance(l.prepaidToPeer)
}

// Exposure is what the peer could make us lose if it vanished now: its debt,
// our service in flight, and credited money that nothing backs. What a stranger
// was forgiven stays in it: it is lost already, but without it each new identity
// would have W forgiven, and the credit that strangers share would never end.
func (l *Ledger) Exposure() tally.Amount {
	exposure := l.Balance().Owed() + l.shadow + l.packetsIn + l.uncovered()
	if l.Stranger() {
		exposure += l.forgiven
	}
	return exposure
}

// Stranger reports whether the peer never paid us.
func (l *Ledger) Stranger() bool { return l.received == 0 }

// HeadroomServe is how many units the peer may still take from us under its own
// tab; the book lowers it by what peers share.
func (l *Ledger) HeadroomServe(now Instant) tally.Amount {
	if l.policy.Mode == ModeSoft {
		return maxLedgerAmount
	}
	if l.blocked(now) {
		return 0
	}
	return min(l.roomToServe(), l.policy.MaxExposure.SaturatingSub(l.Exposure()))
}

// roomToServe is what the peer's tab leaves before a limit is reached. What we
// credited and the chain would not pay takes room like work in flight.
func (l *Ledger) roomToServe() tally.Amount {
	return headroom(l.serveLimit(), l.claim(), l.shadow+l.packetsIn+l.uncovered())
}

// noRoom says why there is none.
func (l *Ledger) noRoom() error {
	switch {
	case l.uncovered() != 0:
		return ErrUncovered
	case l.serveLimit() == 0:
		return ErrSkew
	default:
		return ErrOverThreshold
	}
}

// HeadroomConsume is how many units we may still take from the peer.
func (l *Ledger) HeadroomConsume() tally.Amount {
	if l.policy.Mode == ModeSoft {
		return maxLedgerAmount
	}
	if l.flags&flagReady == 0 || l.settle == settleRefused {
		return 0
	}
	return (l.consumeLimit() + l.credit()).SaturatingSub(l.owed.Debt() + l.reserved + l.packetsOut)
}

// claim is what the peer has to pay for before it is served more. Money that we
// paid ahead is not in it: the peer never settles that back, so that counting it
// would refuse a peer for good whose own debt is too small to pay.
func (l *Ledger) claim() tally.Balance { return l.owed - tally.Balance(l.prepaidByPeer) }

// headroom is limit - balance - inFlight, at least zero.
func headroom(limit tally.Amount, balance tally.Balance, inFlight tally.Amount) tally.Amount {
	room := limit + balance.Debt() // a prepaid peer has more
	return room.SaturatingSub(balance.Owed() + inFlight)
}

// credit is what the peer owes us, by service or by our payment ahead: it adds
// to what we may consume.
func (l *Ledger) credit() tally.Amount { return l.owed.Owed() + l.prepaidToPeer }

// uncovered is what we credited and the chain would not pay now.
func (l *Ledger) uncovered() tally.Amount { return l.received - l.covered }

// serveLimit is the debt up to which we serve: nothing on credit while the
// books differ, or while cheques are not covered.
func (l *Ledger) serveLimit() tally.Amount {
	if l.flags&flagSkewed != 0 || l.uncovered() != 0 {
		return 0
	}
	return l.policy.DisconnectThreshold
}

// consumeLimit is the debt up to which we consume.
func (l *Ledger) consumeLimit() tally.Amount { return min(l.peerPayment, l.policy.MaxDebt) }

func (l *Ledger) blocked(now Instant) bool { return now < l.blockedUntil }

func (l *Ledger) reserve(now Instant, dir Direction, n tally.Amount) error {
	if n > maxLedgerAmount {
		return ErrTooLarge
	}
	if dir == Serve {
		return l.reserveServe(now, n)
	}
	return l.reserveConsume(n)
}

func (l *Ledger) reserveServe(now Instant, n tally.Amount) error {
	if l.policy.Mode != ModeSoft {
		switch {
		case l.blocked(now):
			return ErrBlocked
		case n > l.policy.DisconnectThreshold+l.claim().Debt():
			return ErrTooLarge
		case n > l.roomToServe():
			return l.noRoom()
		case l.Exposure()+n > l.policy.MaxExposure:
			return ErrExposure
		}
	}
	if l.shadow+n > maxLedgerAmount {
		return tally.ErrOverflow
	}
	l.shadow += n
	return nil
}

func (l *Ledger) reserveConsume(n tally.Amount) error {
	if l.policy.Mode != ModeSoft {
		switch {
		case l.flags&flagReady == 0:
			return ErrNoSession
		case l.peerPayment == 0 && l.credit() == 0:
			return ErrPeerThreshold
		case l.settle == settleRefused:
			return ErrPaymentRefused
		case n > l.consumeLimit()+l.credit():
			return ErrTooLarge
		case n > l.HeadroomConsume():
			return ErrOverThreshold
		}
	}
	if l.reserved+n > maxLedgerAmount {
		return tally.ErrOverflow
	}
	l.reserved += n
	l.dirty += n // a request that leaves must be known after a crash
	return nil
}

// commit books what was delivered, whatever was reserved.
func (l *Ledger) commit(now Instant, ev *Event) ([]Effect, error) {
	if ev.Dir == Serve {
		if err := fits(l.served, ev.Units); err != nil {
			return nil, err
		}
		l.shadow = l.shadow.SaturatingSub(ev.Held)
		l.raiseServed(ev.Units)
		l.dirty += ev.Units
		return l.flushIfDirty(), nil
	}
	if err := fits(l.consumed, ev.Units); err != nil {
		return nil, err
	}
	l.reserved = l.reserved.SaturatingSub(ev.Held)
	units := ev.Units
	if ev.Lost {
		// What a statement charged already comes first: of several open
		// requests nobody knows which it charged, and what is left open for one
		// too many the next statement charges.
		booked := min(l.charged, units)
		l.charged -= booked
		units -= booked
		l.unanswered = l.unanswered.SaturatingSub(units)
	}
	l.raiseConsumed(units)
	if units > ev.Held {
		l.dirty += units - ev.Held
	}
	if l.shouldSettle(now) {
		return l.startSettle(now), nil
	}
	return l.flushIfDirty(), nil
}

func (l *Ledger) flushIfDirty() []Effect {
	if l.NeedsFlush() {
		return fxFlush
	}
	return nil
}

// NeedsFlush reports whether so much is unsaved that work must wait for disk.
func (l *Ledger) NeedsFlush() bool { return l.dirty >= l.policy.flushAt() }

// MustFlush reports whether one more crash would cost W, so that nothing may
// leave before the record is on disk.
func (l *Ledger) MustFlush() bool { return l.dirty >= l.policy.Slack() }

func (l *Ledger) release(ev *Event) ([]Effect, error) {
	if ev.Dir == Serve {
		l.shadow = l.shadow.SaturatingSub(ev.Held)
		return nil, nil
	}
	l.reserved = l.reserved.SaturatingSub(ev.Held)
	if ev.Lost {
		l.unanswered = min(l.unanswered.SaturatingAdd(ev.Units), maxLedgerAmount)
		l.flags |= flagUntold
	}
	return nil, nil
}

// deny remembers the first refusal of service at the disconnect threshold.
func (l *Ledger) deny(now Instant) ([]Effect, error) {
	if l.refusedAt == 0 && l.policy.Mode != ModeSoft && l.atDisconnect() {
		l.refusedAt = max(1, now)
	}
	return nil, nil
}

// atDisconnect looks at owed alone: work in flight and packets never count
// against a peer.
func (l *Ledger) atDisconnect() bool { return l.owed.Owed() >= l.policy.DisconnectThreshold }

func (l *Ledger) beginSession(now Instant, t *Terms) ([]Effect, error) {
	if t == nil {
		return nil, fmt.Errorf("%w: session without terms", ErrUnexpected)
	}
	paid := l.paid
	l.flags |= flagReady
	l.flags &^= flagNative
	if t.Native {
		l.flags |= flagNative
	} else if l.policy.Mode == ModeMock { // a voucher is not given up for karma
		l.countAsPaid()
	}
	l.peerMode = t.Mode
	l.peerPayment = l.policy.peerThreshold(t.PaymentThreshold)
	l.peerDisconnect = t.DisconnectThreshold
	l.attempts, l.retryAt = 0, 0
	var fx []Effect
	if l.paid != paid {
		fx = append(fx, Effect{Kind: FxSave})
	}
	if again := l.resume(now); again != nil {
		fx = append(fx, again...)
	} else if l.shouldSettle(now) {
		fx = append(fx, l.startSettle(now)...)
	}
	return append(fx, Effect{Kind: FxWake}), nil
}

// tick is called about once a second for a peer with a session or a debt.
func (l *Ledger) tick(now Instant) ([]Effect, error) {
	if l.blockedUntil != 0 && now >= l.blockedUntil {
		l.blockedUntil = 0
	}
	if l.refusedAt != 0 && !l.atDisconnect() {
		l.refusedAt = 0
	}
	if l.refusedAt != 0 && now.Sub(l.refusedAt) >= overdueAfter {
		return l.block(now), nil
	}
	if l.flags&flagReady == 0 {
		return nil, nil
	}
	var fx []Effect
	switch {
	case l.settle != settleIdle && now >= l.retryAt:
		fx = l.resume(now)
	case l.shouldSettle(now):
		fx = l.startSettle(now)
	}
	if l.statementDue(now) {
		fx = append(fx, Effect{Kind: FxSendStatement})
	}
	return fx, nil
}

func (l *Ledger) statementDue(now Instant) bool {
	const want = flagNative | flagUntold
	return l.flags&want == want && l.AtRest() && now.Sub(l.toldAt) >= statementEvery
}

// AtRest reports whether nothing is in flight; only then are books compared.
func (l *Ledger) AtRest() bool { return l.reserved|l.shadow|l.packetsIn|l.packetsOut == 0 }

func (l *Ledger) block(now Instant) []Effect {
	times := uint64(l.owed.Owed() / l.policy.PaymentThreshold)
	d := maxBlock
	if times < uint64(maxBlock/blockPerThreshold) {
		rest := uint64(l.owed.Owed() % l.policy.PaymentThreshold)
		d = time.Duration(times)*blockPerThreshold +
			time.Duration(float64(blockPerThreshold)*float64(rest)/float64(l.policy.PaymentThreshold))
	}
	l.blockedUntil = now.Add(min(d, maxBlock))
	l.refusedAt = 0
	return []Effect{{Kind: FxSave}, {Kind: FxDisconnect}}
}

// raiseServed books n more units served. The caller has checked fits.
func (l *Ledger) raiseServed(n tally.Amount) {
	l.served += n
	l.unbookFromPeer(n)
}

// raiseConsumed is the mirror of raiseServed.
func (l *Ledger) raiseConsumed(n tally.Amount) {
	l.consumed += n
	l.unbookToPeer(n)
}

// bookFromPeer lowers what the peer owes by n, and keeps the rest as prepaid.
func (l *Ledger) bookFromPeer(n tally.Amount) {
	debt := min(l.owed.Owed(), n)
	l.owed -= tally.Balance(debt)
	l.prepaidByPeer += n - debt
	l.flags |= flagUntold
}

// bookToPeer is the mirror of bookFromPeer.
func (l *Ledger) bookToPeer(n tally.Amount) {
	debt := min(l.owed.Debt(), n)
	l.owed += tally.Balance(debt)
	l.prepaidToPeer += n - debt
	l.flags |= flagUntold
}

// fits reports whether a total may grow by n.
func fits(total, n tally.Amount) error {
	if n > maxLedgerAmount || total+n > maxLedgerAmount {
		return tally.ErrOverflow
	}
	return nil
}

// Saved tells the ledger that a record with dirty units is on disk.
func (l *Ledger) Saved(dirty tally.Amount) { l.dirty = l.dirty.SaturatingSub(dirty) }

// Empty reports whether nothing stands on the record, so that a store need not
// keep it. What was forgiven stands on it: a peer whose record went would have
// the same units forgiven again.
func (l *Ledger) Empty() bool {
	return l.served|l.consumed|l.received|l.paid|l.issued|l.unanswered|l.reserved|l.shadow|l.packetsIn|l.packetsOut|l.forgiven == 0 &&
		l.sentSerial|l.receivedSerial == 0
}

// Check returns the first broken invariant, by name.
func (l *Ledger) Check() error {
	broken := func(name, format string, args ...any) error {
		return fmt.Errorf("%w: %s: %w", ErrInvariant, name, fmt.Errorf(format, args...))
	}
	flow := tally.Balance(l.served) - tally.Balance(l.consumed) - tally.Balance(l.received) + tally.Balance(l.paid)
	switch {
	case l.Balance() != flow:
		return broken("conservation", "balance %d, but served - consumed - received + paid = %d", l.Balance(), flow)
	case l.prepaidByPeer > 0 && l.owed > 0:
		return broken("prepaid-by-peer", "%d prepaid beside %d owed", l.prepaidByPeer, l.owed)
	case l.prepaidToPeer > 0 && l.owed < 0:
		return broken("prepaid-to-peer", "%d prepaid beside a debt of %d", l.prepaidToPeer, l.owed.Debt())
	case l.covered > l.received:
		return broken("cover", "covered %d of %d received", l.covered, l.received)
	case l.paid > l.issued:
		return broken("paid-within-issued", "paid %d, issued %d", l.paid, l.issued)
	case l.received > l.accepted:
		return broken("received-within-accepted", "credited %d, cheques named %d", l.received, l.accepted)
	case l.settle > settleRefused:
		return broken("settle-state", "%d", l.settle)
	case max(l.served, l.consumed, l.received, l.paid) > maxLedgerAmount:
		return broken("bounded-totals", "served %d consumed %d received %d paid %d", l.served, l.consumed, l.received, l.paid)
	}
	return nil
}
