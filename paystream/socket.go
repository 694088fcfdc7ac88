package paystream

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/inflight"
)

const (
	// maxHolds bounds the packets in flight of one socket in one direction: the
	// widest window that control opens. A packet beyond it waits, or is
	// rejected.
	maxHolds = 1024

	// maxArrival bounds what one packet brings the peer, in its units, so that
	// the sum over maxHolds packets is exact.
	maxArrival tally.Amount = 1 << 50

	// defaultLoss is the round-trip loss, in parts of 10 000, above which money
	// that comes back is rejected.
	defaultLoss = 200

	// tolerancePart: the tolerance is this part of the largest packet taken.
	tolerancePart = 100
)

// Refusals of the socket. A packet that is refused is rejected with our totals,
// so that the peer learns the limit.
var (
	// ErrLimits: the minimum is above the maximum, or beyond what a socket counts.
	ErrLimits = errors.New("paystream: limits do not fit: want minimum <= maximum, both within 2^60")
	// ErrExpired: the packet's time is over.
	ErrExpired = errors.New("paystream: packet expired; the payer has to give it more time")
	// ErrCondition: the condition is not the one that the packet's bytes make: a
	// probe, or a packet that was changed on its way.
	ErrCondition = errors.New("paystream: condition does not regenerate")
	// ErrSeen: a packet that was handled before.
	ErrSeen = errors.New("paystream: packet seen before")
	// ErrTooLittle: less arrived than the payer lets us take.
	ErrTooLittle = errors.New("paystream: less arrived than the payer accepts")
	// ErrFull: the packet would lift the balance above the maximum.
	ErrFull = errors.New("paystream: above the maximum; raise it to receive more")
	// ErrThin: money of ours that comes back lost more than the round-trip bound.
	ErrThin = errors.New("paystream: refund lost too much on the way; raise the loss bound to take it")
	// ErrBusy: more packets in flight than a socket keeps.
	ErrBusy = errors.New("paystream: too many packets in flight")
	// ErrNothing: there is nothing to send now.
	ErrNothing = errors.New("paystream: nothing to send")
	// ErrUnexpected: an event that names a packet which is not there, or that the
	// state has no place for.
	ErrUnexpected = errors.New("paystream: unexpected event")
	// ErrStale: an older state than one that we have.
	ErrStale = errors.New("paystream: older than what we have")
	// ErrInvariant is wrapped by every error of Check.
	ErrInvariant = errors.New("paystream: invariant broken")
)

// Terms are what an application decides about one socket.
type Terms struct {
	// Min and Max are the limits of our balance. The zero value of both: no
	// money moves.
	Min, Max Limit
	// Tolerance is how far the balance may end above Max, because packets do not
	// divide exactly. 0: 1 % of the largest packet taken.
	Tolerance tally.Amount
	// Refunds lets money flow back: the limits stay as they are set. Without it
	// each packet taken raises the minimum and each packet sent lowers the
	// maximum (R6).
	Refunds bool
	// MaxLoss is the most that money may lose on its way out and back, in parts
	// of 10 000. 0: 200, which is 2 %.
	MaxLoss uint32
	// AllOrNothing refuses to send the first unit unless the limits of both
	// sides can meet.
	AllOrNothing bool
}

// Validate reports terms that no socket can have.
func (t Terms) Validate() error {
	switch {
	case t.Min.end > 0, t.Max.end < 0, t.Min.Cmp(t.Max) > 0, t.Min.check() != nil, t.Max.check() != nil:
		return fmt.Errorf("%w: %s to %s", ErrLimits, t.Min, t.Max)
	case t.MaxLoss > 10_000:
		return fmt.Errorf("paystream: loss bound of %d parts of 10000", t.MaxLoss)
	case t.Tolerance > maxTotal:
		return fmt.Errorf("paystream: tolerance %d is above %d", t.Tolerance, maxTotal)
	}
	return nil
}

// Socket is one end of a payment socket: what it may do with its money, and what
// it has done. It is pure: Step is its only way to change. Everything is in our
// own units, except what a field's comment calls the peer's.
//
// Its eight rules, which the code names where it keeps them:
//
//	R1 push       above max: send what is above, as far as the peer wants it
//	R2 ask        below min: tell the peer, until it has heard
//	R3 comply     send while above min, never more than was asked
//	R4 floor      no packet leaves that takes balance − hold_out below min
//	R5 ceiling    no packet is taken that takes the balance above max + tolerance
//	R6 no refund  what was taken is kept: min rises, and max falls as we pay
//	R7 settled    nothing in flight, within limits, and the peer asks no more
//	R8 inform     the peer tells and proposes; only we set limits
type Socket struct {
	terms Terms
	// min and max are the limits now; R6 moves them inwards from the terms.
	// Invariant: min <= max.
	min, max Limit
	// sent and received count fulfilled packets only, and never fall.
	sent, received tally.Amount
	// holdOut is the sum of holds, holdIn that of takes.
	holdOut, holdIn tally.Amount
	holds           inflight.Queue[PacketID, hold]
	takes           inflight.Queue[PacketID, taken]
	// flight is the most that can arrive of holds, in the peer's units.
	flight tally.Amount
	// arrived is what the peer received of sent, in the peer's units.
	// It is the most that can have; sure is the least. They differ where replies
	// were lost. Invariant: sure <= arrived.
	arrived, sure tally.Amount
	// peak is the largest packet taken: it gives the tolerance.
	peak tally.Amount
	// rate is the way to the peer as measured last; floor and base are the
	// worst price we accept, open the rate that it was taken from. Invariant:
	// these three are set once.
	rate        Rate
	floor, open Ratio
	base        tally.Amount
	// back is what refunds brought, backSent what the peer gave for them.
	back, backSent tally.Amount
	thin           tally.Amount // what was rejected as too thin, in all
	// gave is what the peer gave for all that was taken since we started, in its
	// units.
	gave tally.Amount

	// told is what we last numbered as our state, seq its number, acked the
	// highest number that the peer has seen. Invariant: acked <= seq.
	told       Totals
	seq, acked uint64
	// peer is what the peer told last in this session, peerSeq its number (0:
	// nothing yet).
	peer    Totals
	peerSeq uint64
	started bool // a packet left: all-or-nothing is decided

	fx [3]Effect
}

// NewSocket returns a socket with a balance of zero.
func NewSocket(t Terms) (*Socket, error) {
	if err := t.Validate(); err != nil {
		return nil, err
	}
	s := &Socket{terms: t, min: t.Min, max: t.Max}
	s.told, s.seq = s.Totals(), 1
	return s, nil
}

// Balance returns received − sent.
func (s *Socket) Balance() tally.Balance { return tally.Balance(s.received) - tally.Balance(s.sent) }

// free is Balance less what is on its way out: the figure that R1, R3 and R4 read.
func (s *Socket) free() tally.Balance { return s.Balance() - tally.Balance(s.holdOut) }

// Totals returns what the socket tells its peer now.
func (s *Socket) Totals() Totals {
	b := s.Balance()
	return Totals{
		Expected: s.received + s.min.over(b).N, // min is never NoMax
		Wanted:   plus(s.received, s.max.over(b)),
		Offer:    plus(s.sent, s.min.under(b)),
	}
}

func plus(n tally.Amount, t Total) Total {
	if t.Open {
		return t
	}
	return Total{N: n + t.N} // both within 2^62
}

// State returns the totals with their number and the highest number of the
// peer's that we have seen: what every packet carries.
func (s *Socket) State() (seq, seen uint64, t Totals) { return s.seq, s.peerSeq, s.told }

// Unsure reports whether replies were lost, so that only the peer knows what has
// arrived, and nothing is in flight that would tell.
func (s *Socket) Unsure() bool { return s.sure != s.arrived && s.holds.Len() == 0 }

// Untold reports whether the peer has not seen our last state.
func (s *Socket) Untold() bool { return s.acked < s.seq }

// Limits returns the limits as they stand.
func (s *Socket) Limits() (low, high Limit) { return s.min, s.max }

// tolerance is how far above max a packet of n may lift the balance.
func (s *Socket) tolerance(n tally.Amount) tally.Amount {
	if s.terms.Tolerance != 0 {
		return s.terms.Tolerance
	}
	return max(s.peak, n) / tolerancePart
}

// AfterPay returns the limits with which n more is pushed: max := min(max,
// balance) − n, and min no higher than that.
func (s *Socket) AfterPay(n tally.Amount) (low, high Limit, err error) {
	high, err = lower(s.max, At(s.Balance())).Lower(n)
	return lower(s.min, high), high, err
}

// AfterCharge returns the limits with which n more is asked for.
func (s *Socket) AfterCharge(n tally.Amount) (low, high Limit, err error) {
	low, err = higher(s.min, At(s.Balance())).Raise(n)
	return low, higher(s.max, low), err
}

// AfterPayUpTo returns the limits with which n more is given when it is asked for.
func (s *Socket) AfterPayUpTo(n tally.Amount) (low, high Limit, err error) {
	low, err = s.min.Lower(n)
	return low, s.max, err
}

// AfterChargeUpTo returns the limits with which n more is taken when it comes.
func (s *Socket) AfterChargeUpTo(n tally.Amount) (low, high Limit, err error) {
	high, err = s.max.Raise(n)
	return s.min, high, err
}

// Step applies one event and returns what the shell has to do, in order. The
// effects are valid until the next Step. On an error nothing has changed.
func (s *Socket) Step(ev *Event) ([]Effect, error) {
	fx, err := s.step(ev)
	if invariants && err == nil {
		if err := s.Check(); err != nil {
			panic(err)
		}
	}
	return fx, err
}

func (s *Socket) step(ev *Event) ([]Effect, error) {
	switch ev.Kind {
	case EvLimits:
		return s.setLimits(ev.Min, ev.Max)
	case EvState:
		return s.hear(ev)
	case EvSession:
		s.peer, s.peerSeq, s.seq, s.acked = Totals{}, 0, 1, 0
		return s.tell(s.fx[:0]), nil
	case EvRate:
		return s.measure(ev.Rate, ev.Slip)
	case EvPump:
		return s.pump(ev.ID, ev.Amount)
	case EvFulfilled:
		return s.fulfilled(ev)
	case EvRejected:
		h, ok := s.unhold(ev.ID)
		if !ok {
			return nil, ErrUnexpected
		}
		return append(s.fx[:0], Effect{Kind: FxNote, ID: ev.ID, Amount: h.amount}), nil
	case EvArrive:
		return s.arrive(ev)
	case EvTake:
		return s.take(ev.ID)
	case EvDrop:
		t, ok := s.takes.Take(ev.ID)
		if !ok {
			return nil, ErrUnexpected
		}
		s.holdIn -= t.amount
		return append(s.fx[:0], Effect{Kind: FxReject, ID: ev.ID, Amount: t.amount}), nil
	default:
		return nil, ErrUnexpected
	}
}

// setLimits keeps R8: both limits move together, and only from here. It is an
// explicit order, so it also undoes what R6 has raised.
func (s *Socket) setLimits(low, high Limit) ([]Effect, error) {
	t := s.terms
	t.Min, t.Max = low, high
	if err := t.Validate(); err != nil {
		return nil, err
	}
	s.terms, s.min, s.max = t, low, high
	return s.tell(append(s.fx[:0], Effect{Kind: FxSave})), nil
}

// tell numbers the totals where they changed, and adds the duty to say so (R2).
func (s *Socket) tell(fx []Effect) []Effect {
	if t := s.Totals(); t != s.told {
		s.told = t
		s.seq++
	}
	if s.acked < s.seq {
		fx = append(fx, Effect{Kind: FxTell})
	}
	return fx
}

// hear takes the peer's state. It can only inform (R8).
func (s *Socket) hear(ev *Event) ([]Effect, error) {
	t := ev.Totals
	if ev.Seq == 0 || ev.SeenSeq > s.seq || t.Expected > 2*maxTotal ||
		t.Wanted.N > 2*maxTotal || t.Offer.N > 2*maxTotal {
		return nil, ErrUnexpected
	}
	s.acked = max(s.acked, ev.SeenSeq)
	if ev.Known && ev.Arrived <= s.arrived {
		// An answer to a packet that left when Arrived was all we had counted: what
		// the peer has received since includes that.
		still := ev.Arrived == s.arrived && s.holds.Len() == 0
		s.arrived = max(s.sure, min(s.arrived, ev.Amount.SaturatingAdd(s.arrived-ev.Arrived)))
		if still {
			s.sure = s.arrived // nothing moved since: the figure is exact
		}
	}
	if ev.Seq <= s.peerSeq {
		return nil, ErrStale
	}
	s.peer, s.peerSeq = t, ev.Seq
	return nil, nil
}

// measure takes a new rate. The first one sets the floor, with slippage parts of
// 10 000 below it, for good: a hop that worsens its rate step by step would pull
// any later floor along.
func (s *Socket) measure(r Rate, slippage uint64) ([]Effect, error) {
	if !r.Known() || r.Low.Cmp(r.High) >= 0 || slippage >= 10_000 {
		return nil, ErrRatio
	}
	s.rate = r
	if !s.floor.Valid() {
		if f := r.Low.scale(10_000-slippage, 10_000); f.Valid() {
			s.floor, s.open, s.base = f, r.Low, r.Base
			return append(s.fx[:0], Effect{Kind: FxNote}), nil
		}
	}
	return nil, nil
}

// SetFloor sets the worst acceptable price before anything is measured.
func (s *Socket) SetFloor(r Ratio, base tally.Amount) error {
	if s.floor.Valid() || !r.Valid() {
		return ErrUnexpected
	}
	s.floor, s.open, s.base = r, r, base
	return nil
}

// least is what has to arrive of n: never nothing, and rounded up, except where
// the rate at open would not bring as much either, because hops round down.
func (s *Socket) least(n tally.Amount) tally.Amount {
	want := min(s.floor.ceilSat(n), s.open.floorSat(n))
	return max(1, want.SaturatingSub(s.base))
}

// Due returns how much the socket would send now, of which EvPump sends one
// packet: R1 and R3, within R4.
func (s *Socket) Due() tally.Amount {
	if s.peerSeq == 0 || !s.rate.Known() || !s.floor.Valid() {
		return 0
	}
	if s.terms.AllOrNothing && !s.started && s.Verdict().Kind != Compatible {
		return 0
	}
	free := s.free()
	coming := s.arrived.SaturatingAdd(s.flight)
	var n tally.Amount
	// R1
	if above := s.max.under(free); !above.Open && above.N > s.tolerance(0) {
		n = min(above.N, s.rate.Within(s.peer.Wanted.Sub(coming)))
	}
	// R3
	if asked := s.peer.Expected.SaturatingSub(coming); asked > 0 {
		m := s.rate.Within(asked)
		// Of all amounts that bring as much, the smallest.
		if sure := s.rate.Surely(m); sure > 0 {
			m = min(m, s.rate.Enough(sure))
		}
		n = max(n, m)
	}
	// R4
	if room := s.min.under(free); !room.Open {
		n = min(n, room.N)
	}
	n = min(n, maxTotal-s.sent-s.holdOut)
	if s.rate.Surely(n) == 0 {
		return 0 // dust: nothing of it would arrive
	}
	return n
}

// pump sends one packet of at most room.
func (s *Socket) pump(id PacketID, room tally.Amount) ([]Effect, error) {
	if s.holds.Len() >= maxHolds {
		return nil, ErrBusy
	}
	n := min(s.Due(), room, s.rate.Within(maxArrival))
	least := s.least(n)
	high := s.rate.Most(n)
	if n == 0 || s.rate.Surely(n) == 0 || least > high || high > maxArrival {
		// Below the floor price there is nothing to send at: a hop has worsened
		// its rate since the socket was opened.
		return nil, ErrNothing
	}
	s.holds.Add(id, hold{amount: n, least: least, high: high})
	s.holdOut += n
	s.flight += high
	s.started = true
	return append(s.fx[:0],
		Effect{Kind: FxSave, ID: id, Amount: n},
		Effect{Kind: FxSend, ID: id, Amount: n, Least: least}), nil
}

// unhold ends a packet of ours; false where it is not in flight.
func (s *Socket) unhold(id PacketID) (hold, bool) {
	h, ok := s.holds.Take(id)
	s.holdOut -= h.amount
	s.flight -= h.high
	return h, ok
}

// fulfilled books a packet of ours. The payee cannot claim to have had less than
// the least it may take; without an authentic reply the most counts as arrived,
// so that no more is sent than was asked for.
func (s *Socket) fulfilled(ev *Event) ([]Effect, error) {
	h, ok := s.unhold(ev.ID)
	if !ok {
		return nil, ErrUnexpected
	}
	arrived, sure := h.high, h.least
	if ev.Known {
		arrived = max(ev.Arrived, h.least)
		sure = arrived
	}
	s.sent += h.amount
	s.arrived = s.arrived.SaturatingAdd(arrived)
	s.sure = s.sure.SaturatingAdd(sure)
	if !s.terms.Refunds { // R6, the payer's side
		s.max = lower(s.max, higher(At(s.Balance()+tally.Balance(s.holdIn)), s.min))
	}
	return s.tell(append(s.fx[:0], Effect{Kind: FxNote, ID: ev.ID, Amount: h.amount})), nil
}

// arrive is R5.
func (s *Socket) arrive(ev *Event) ([]Effect, error) {
	switch {
	case ev.Seen:
		return nil, ErrSeen
	case ev.Expired:
		return nil, ErrExpired
	case !ev.Opens:
		return nil, ErrCondition
	case ev.Amount < ev.Least || ev.Amount == 0:
		return nil, ErrTooLittle
	case s.takes.Len() >= maxHolds:
		return nil, ErrBusy
	case ev.Amount > maxTotal-s.received-s.holdIn:
		return nil, tally.ErrOverflow
	}
	if _, ok := s.takes.Get(ev.ID); ok {
		return nil, ErrSeen
	}
	after := s.Balance() + tally.Balance(s.holdIn) + tally.Balance(ev.Amount)
	if above := s.max.under(after); !above.Open && above.N > s.tolerance(ev.Amount) {
		return nil, ErrFull
	}
	refund := s.Balance() < 0 && s.arrived > 0
	if refund && s.tooThin(ev.Amount, ev.Sent) {
		s.thin = s.thin.SaturatingAdd(ev.Amount)
		return append(s.fx[:0], Effect{Kind: FxReject, ID: ev.ID, Amount: ev.Amount, Err: ErrThin}), nil
	}
	s.takes.Add(ev.ID, taken{amount: ev.Amount, sent: ev.Sent, refund: refund})
	s.holdIn += ev.Amount
	return nil, nil
}

// tooThin keeps the round-trip loss bound: what the peer gave for this packet
// would have cost us so much on the way out, and all but MaxLoss of that has to
// come back.
func (s *Socket) tooThin(n, sent tally.Amount) bool {
	out := Ratio{Num: uint64(s.sent), Den: uint64(s.arrived)} // ours for one of the peer's
	if sent == 0 || !out.Valid() {
		return true // a peer that does not say what it gave gets no benefit of the doubt
	}
	loss := uint64(s.terms.MaxLoss)
	if loss == 0 {
		loss = defaultLoss
	}
	want := Ratio{Num: 10_000 - loss, Den: 10_000}.floorSat(out.floorSat(sent))
	return n < want
}

// take books a packet of the peer: saved first, then fulfilled.
func (s *Socket) take(id PacketID) ([]Effect, error) {
	t, ok := s.takes.Take(id)
	if !ok {
		return nil, ErrUnexpected
	}
	s.holdIn -= t.amount
	s.received += t.amount
	s.peak = max(s.peak, t.amount)
	s.gave = s.gave.SaturatingAdd(t.sent)
	if t.refund {
		s.back = s.back.SaturatingAdd(t.amount)
		s.backSent = s.backSent.SaturatingAdd(t.sent)
	}
	if !s.terms.Refunds { // R6
		s.min = higher(s.min, lower(At(s.free()), s.max))
	}
	return s.tell(append(s.fx[:0],
		Effect{Kind: FxSave, ID: id, Amount: t.amount},
		Effect{Kind: FxFulfil, ID: id, Amount: t.amount})), nil
}

// Settled is R7: nothing is in flight, the balance is within the limits, and the
// peer expects nothing that we could still give.
func (s *Socket) Settled() bool {
	if s.holds.Len() > 0 || s.takes.Len() > 0 || s.min.over(s.Balance()).N > 0 {
		return false
	}
	above := s.max.under(s.Balance())
	if above.Open {
		return false
	}
	if above.N > s.tolerance(0) && !(s.rate.Known() && s.rate.Surely(above.N) == 0) {
		return false // but for dust, of which nothing would arrive
	}
	asked := s.peer.Expected.SaturatingSub(s.arrived)
	if s.peerSeq == 0 || asked == 0 {
		return true
	}
	left := s.min.under(s.Balance())
	return !left.Open && (left.N == 0 || s.rate.Known() && s.rate.Surely(left.N) == 0)
}

// Restore puts back a hold that was on disk.
func (s *Socket) Restore(id PacketID, amount, least, high tally.Amount) error {
	if _, ok := s.holds.Get(id); ok || s.holds.Len() >= maxHolds || high > maxArrival || amount > maxTotal-s.sent-s.holdOut {
		return ErrUnexpected
	}
	s.holds.Add(id, hold{amount: amount, least: least, high: high})
	s.holdOut += amount
	s.flight += high
	s.started = true
	return nil
}

// Check returns the first broken invariant.
func (s *Socket) Check() error {
	var out, in, flight tally.Amount
	for _, h := range s.holds.All() {
		out += h.amount
		flight += h.high
	}
	for _, t := range s.takes.All() {
		in += t.amount
	}
	broken := func(name string) error { return fmt.Errorf("%w: %s: %+v", ErrInvariant, name, s.Report()) }
	switch {
	case s.min.Cmp(s.max) > 0 || s.min.end > 0 || s.max.end < 0:
		return broken("limits-ordered")
	case out != s.holdOut || in != s.holdIn:
		return broken("holds-summed")
	case flight != s.flight:
		return broken("flight-summed")
	case s.sent+s.holdOut > maxTotal || s.received+s.holdIn > maxTotal:
		return broken("bounded-totals")
	case s.holds.Len() > maxHolds || s.takes.Len() > maxHolds:
		return broken("bounded-holds")
	case s.sure > s.arrived:
		return broken("sure-within-arrived")
	case s.acked > s.seq:
		return broken("acked-within-told")
	case s.told != s.Totals():
		return broken("told-current")
	case !s.terms.Refunds && s.received > 0 && s.min.Cmp(s.terms.Min) < 0:
		return broken("no-refund")
	}
	return nil
}

// socketRecord is the length of a socket's record: what of it outlives a
// restart. Holds have records of their own.
const socketRecord = 4*9 + recordWords*8 + 1 + 4

const recordWords = 14

const (
	flagRefunds = 1 << iota
	flagAllOrNothing
	flagStarted
)

// AppendRecord encodes the socket.
func (s *Socket) AppendRecord(dst []byte) []byte {
	for _, l := range [...]Limit{s.terms.Min, s.terms.Max, s.min, s.max} {
		dst = appendLimit(dst, l)
	}
	for _, n := range [...]uint64{
		uint64(s.terms.Tolerance), uint64(s.sent), uint64(s.received), uint64(s.arrived), uint64(s.peak),
		s.floor.Num, s.floor.Den, s.open.Num, s.open.Den, uint64(s.base), uint64(s.back), uint64(s.backSent), uint64(s.thin), uint64(s.sure),
	} {
		dst = binary.BigEndian.AppendUint64(dst, n)
	}
	var flags byte
	if s.terms.Refunds {
		flags |= flagRefunds
	}
	if s.terms.AllOrNothing {
		flags |= flagAllOrNothing
	}
	if s.started {
		flags |= flagStarted
	}
	return binary.BigEndian.AppendUint32(append(dst, flags), s.terms.MaxLoss)
}

func appendLimit(dst []byte, l Limit) []byte {
	return binary.BigEndian.AppendUint64(append(dst, byte(l.end)), uint64(l.at))
}

func parseLimit(b []byte) (Limit, error) {
	l := Limit{end: int8(b[0]), at: tally.Balance(binary.BigEndian.Uint64(b[1:]))}
	if l.end < -1 || l.end > 1 || l.end != 0 && l.at != 0 || l.check() != nil {
		return Limit{}, ErrRecord
	}
	return l, nil
}

// ErrRecord: a record on disk that we cannot have written.
var ErrRecord = errors.New("paystream: damaged record; restore the store from a backup")

// ParseSocket decodes a record and checks the same facts that held when it was
// written.
func ParseSocket(b []byte) (*Socket, error) {
	if len(b) != socketRecord {
		return nil, fmt.Errorf("%w: socket of %d bytes", ErrRecord, len(b))
	}
	var limits [4]Limit
	for i := range limits {
		var err error
		if limits[i], err = parseLimit(b[:9]); err != nil {
			return nil, err
		}
		b = b[9:]
	}
	var n [recordWords]uint64
	for i := range n {
		n[i] = binary.BigEndian.Uint64(b[8*i:])
	}
	flags := b[8*recordWords]
	s := &Socket{
		terms: Terms{
			Min: limits[0], Max: limits[1], Tolerance: tally.Amount(n[0]),
			Refunds: flags&flagRefunds != 0, AllOrNothing: flags&flagAllOrNothing != 0,
			MaxLoss: binary.BigEndian.Uint32(b[8*recordWords+1:]),
		},
		min: limits[2], max: limits[3],
		sent: tally.Amount(n[1]), received: tally.Amount(n[2]), arrived: tally.Amount(n[3]), peak: tally.Amount(n[4]),
		floor: Ratio{Num: n[5], Den: n[6]}, open: Ratio{Num: n[7], Den: n[8]}, base: tally.Amount(n[9]),
		back: tally.Amount(n[10]), backSent: tally.Amount(n[11]), thin: tally.Amount(n[12]), sure: tally.Amount(n[13]), seq: 1,
		started: flags&flagStarted != 0,
	}
	if max(s.sent, s.received) > maxTotal {
		return nil, fmt.Errorf("%w: totals", ErrRecord)
	}
	s.told = s.Totals()
	if err := errors.Join(s.terms.Validate(), s.Check()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return s, nil
}
