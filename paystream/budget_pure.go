package paystream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/tallystick/tally"
)

// keepAfter is how long a spent token's record outlives its expiry, so that a
// clock that differs a little cannot spend it again.
const keepAfter = time.Hour

// budgetRecord is the length of a budget on disk.
const budgetRecord = 16 + 1 + 6*8 + 2*9

// Budget is what all sockets of one token have moved together, over restarts. A
// token's limits hold for the budget; the socket's own hold besides. It is pure.
type Budget struct {
	grant Grant
	// min and max are the grant's, moved inwards by R6 as on a socket.
	min, max Limit
	// sent, received, holdOut: as of a socket, summed over all.
	// Invariant: received − sent − holdOut >= min at each hold.
	sent, received, holdOut tally.Amount
	// periodSent and periodReceived are what counted before the present period.
	periodSent, periodReceived tally.Amount
	periodAt                   int64 // Unix seconds
	// bound is the socket that a single-use token belongs to.
	bound   SocketID
	isBound bool
	live    map[SocketID]struct{}
	written bool // there is a record on disk
}

// Errors of budgets.
var (
	// ErrSpent: the token's budget does not reach.
	ErrSpent = errors.New("paystream: the token's budget is used up")
	// ErrInUse: another socket has the single-use token.
	ErrInUse = errors.New("paystream: single-use token is in use")
)

// NewBudget begins the budget of a token at a moment, which starts its period.
func NewBudget(g Grant, now time.Time) *Budget {
	return &Budget{grant: g, min: g.Min, max: g.Max, periodAt: now.Unix()}
}

// roll begins a new period where one is over.
func (b *Budget) roll(now time.Time) {
	if p := int64(b.grant.Period); p > 0 && now.Unix() >= b.periodAt+p {
		b.periodAt += (now.Unix() - b.periodAt) / p * p
		b.periodSent, b.periodReceived = b.sent, b.received
		b.min, b.max = b.grant.Min, b.grant.Max
	}
}

// balance is what counts against the limits now.
func (b *Budget) balance() tally.Balance {
	return tally.Balance(b.received-b.periodReceived) - tally.Balance(b.sent-b.periodSent)
}

// Join lets a socket use the budget. It returns the limits that are left for it.
func (b *Budget) Join(now time.Time, id SocketID) (low, high Limit, err error) {
	b.roll(now)
	if b.grant.SingleUse {
		if b.isBound && b.bound != id {
			return Limit{}, Limit{}, ErrSpent
		}
		for other := range b.live {
			if other != id {
				return Limit{}, Limit{}, ErrInUse
			}
		}
	}
	if b.live == nil {
		b.live = make(map[SocketID]struct{}, 1)
	}
	b.live[id] = struct{}{}
	high = b.left(b.max, 0)
	if b.min == b.max { // a fixed sum: what is in flight counts as gone at both ends
		high = b.left(b.max, b.holdOut)
	}
	return lower(b.left(b.min, b.holdOut), high), high, nil
}

// left moves a limit of the budget to where a socket that begins at 0 has it.
func (b *Budget) left(l Limit, held tally.Amount) Limit {
	if at, ok := l.Finite(); ok {
		return At(at - b.balance() + tally.Balance(held))
	}
	return l
}

// Leave ends a socket's use.
func (b *Budget) Leave(id SocketID) { delete(b.live, id) }

// Hold reserves n for a packet that a socket is about to send.
func (b *Budget) Hold(now time.Time, id SocketID, n tally.Amount) error {
	b.roll(now)
	if b.grant.SingleUse && b.isBound && b.bound != id {
		return ErrSpent
	}
	if n > maxTotal-b.sent-b.holdOut {
		return tally.ErrOverflow
	}
	free := b.balance() - tally.Balance(b.holdOut)
	if room := b.min.under(free); !room.Open && room.N < n {
		return ErrSpent
	}
	b.holdOut += n
	b.bound, b.isBound = id, true
	return nil
}

// Restore puts back a hold that was on disk.
func (b *Budget) Restore(n tally.Amount) { b.holdOut += n }

// Settle decides a hold.
func (b *Budget) Settle(n tally.Amount, fulfilled bool) {
	b.holdOut -= min(n, b.holdOut)
	if !fulfilled {
		if !b.Moved() {
			b.isBound = false
		}
		return
	}
	b.sent += n
	if !b.grant.Refunds { // R6
		b.max = lower(b.max, higher(At(b.balance()), b.min))
	}
}

// Receive books what a socket takes; tolerance is the socket's.
func (b *Budget) Receive(now time.Time, id SocketID, n, tolerance tally.Amount) error {
	b.roll(now)
	if b.grant.SingleUse && b.isBound && b.bound != id {
		return ErrSpent
	}
	if n > maxTotal-b.received {
		return tally.ErrOverflow
	}
	after := b.balance() + tally.Balance(n)
	if above := b.max.under(after); above.N > tolerance {
		return ErrFull
	}
	b.received += n
	if !b.grant.Refunds { // R6
		b.min = higher(b.min, lower(At(b.balance()-tally.Balance(b.holdOut)), b.max))
	}
	b.bound, b.isBound = id, true
	return nil
}

// Moved reports whether there is anything to remember.
func (b *Budget) Moved() bool { return b.sent|b.received|b.holdOut != 0 }

// Forget reports whether the record may go: the token expired an hour ago and
// nothing is in flight. Without expiry it is kept.
func (b *Budget) Forget(now time.Time) bool {
	return b.grant.Expires != 0 && b.holdOut == 0 && len(b.live) == 0 &&
		now.Unix() >= b.grant.Expires+int64(keepAfter/time.Second)
}

// AppendRecord encodes the budget; holds have records of their own.
func (b *Budget) AppendRecord(dst []byte) []byte {
	dst = append(dst, b.bound[:]...)
	if b.isBound {
		dst = append(dst, 1)
	} else {
		dst = append(dst, 0)
	}
	for _, n := range [...]uint64{
		uint64(b.sent), uint64(b.received), uint64(b.periodSent), uint64(b.periodReceived),
		uint64(b.periodAt), uint64(b.grant.Expires),
	} {
		dst = binary.BigEndian.AppendUint64(dst, n)
	}
	return appendLimit(appendLimit(dst, b.min), b.max)
}

// ParseBudget decodes a record. The grant comes from the token, with SetGrant.
func ParseBudget(p []byte) (*Budget, error) {
	if len(p) != budgetRecord || p[16] > 1 {
		return nil, fmt.Errorf("%w: budget", ErrRecord)
	}
	var n [6]uint64
	for i := range n {
		n[i] = binary.BigEndian.Uint64(p[17+8*i:])
	}
	b := &Budget{
		bound: SocketID(p[:16]), isBound: p[16] == 1,
		sent: tally.Amount(n[0]), received: tally.Amount(n[1]),
		periodSent: tally.Amount(n[2]), periodReceived: tally.Amount(n[3]), periodAt: int64(n[4]),
	}
	b.grant.Expires = int64(n[5])
	var err [2]error
	b.min, err[0] = parseLimit(p[65:74])
	b.max, err[1] = parseLimit(p[74:])
	if err := errors.Join(err[:]...); err != nil || b.min.Cmp(b.max) > 0 {
		return nil, fmt.Errorf("%w: budget limits", ErrRecord)
	}
	if max(b.sent, b.received) > maxTotal || b.periodSent > b.sent || b.periodReceived > b.received {
		return nil, fmt.Errorf("%w: budget totals", ErrRecord)
	}
	return b, nil
}

// SetGrant gives a budget that was on disk the grant of its token again.
func (b *Budget) SetGrant(g Grant) { b.grant = g }
