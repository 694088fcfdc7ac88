package lock

import (
	"errors"
	"fmt"

	"github.com/tallystick/tally"
)

// Voucher is a channel voucher as far as slots know it. Amounts are units; how many
// attoFIL a unit is the shell knows, and refuses what is no whole unit.
type Voucher struct {
	Lane, Nonce uint64
	// Amount is the lane's total.
	Amount tally.Amount
	// Locked: it has the hash lock Hash.
	Locked bool
	Hash   tally.Hashlock
	// Point is 0, or of a point lock the first byte of the point whose x is Hash. The
	// voucher itself has neither.
	Point byte
	// From and Expires are its time locks, 0 for none.
	From, Expires int64
	// MinSettle keeps the channel from settling before; 0: it does not.
	MinSettle int64
	// Raw is the signed voucher, of which nothing else is known here.
	Raw string
}

// Kind is what a voucher is for, told by its fields alone.
type Kind uint8

// Kinds of voucher. Append.
const (
	// KindNone: a combination that means nothing here.
	KindNone Kind = iota
	// KindLock: hash lock and expiry.
	KindLock
	// KindPlain: an amount and nothing else. Signed by the payer it is an UNLOCK,
	// by the payee a CANCEL.
	KindPlain
	// KindGuard: a settle height on the guard's lane, and no amount.
	KindGuard
	// KindPoint: an expiry without a hash lock. Its signature is given encrypted
	// under a point, and whoever completes it shows the point's secret; a rule of
	// its own has to check it, for the chain takes the completed voucher from
	// anybody who has it.
	KindPoint
)

var kindWords = [...]string{"none", "lock", "plain", "guard", "point lock"}

// String is the kind in words.
func (k Kind) String() string {
	if int(k) < len(kindWords) {
		return kindWords[k]
	}
	return "unknown"
}

// KindOf reads a voucher's fields.
func (t *Terms) KindOf(v *Voucher) Kind {
	slot := v.Lane >= 1 && v.Lane <= t.Slots
	switch {
	case v.From != 0:
		return KindNone
	case slot && v.Locked && v.Expires > 0 && v.MinSettle == 0:
		return KindLock
	case slot && !v.Locked && v.Expires > 0 && v.MinSettle == 0:
		return KindPoint
	case slot && !v.Locked && v.Expires == 0 && v.MinSettle == 0:
		return KindPlain
	case v.Lane == t.Guard() && !v.Locked && v.Expires == 0 && v.MinSettle > 0 && v.Amount == 0:
		return KindGuard
	default:
		return KindNone
	}
}

// Refusals. Each leaves everything as it was.
var (
	// ErrForm: the voucher's fields are no combination that a slot knows, or not
	// the one that belongs here.
	ErrForm = errors.New("lock: voucher of another form")
	// ErrPoint: a point lock, which is not taken.
	ErrPoint = errors.New("lock: point locks are not taken")
	// ErrNonce: the voucher's nonce or total does not follow the slot's. The sides
	// compare their slots at the next sync.
	ErrNonce = errors.New("lock: voucher does not follow the slot")
	// ErrFull: every slot has a lock. Temporary.
	ErrFull = errors.New("lock: every slot of the channel is taken; try again when a lock is decided, or send on another way")
	// ErrTooSoon: the lock ends too soon.
	ErrTooSoon = errors.New("lock: too little time")
	// ErrTooFar: the lock ends beyond what the channel's settling leaves.
	ErrTooFar = errors.New("lock: ends beyond the channel's horizon")
	// ErrSettling: the channel settles and takes no new lock.
	ErrSettling = errors.New("lock: the channel settles and takes no new lock")
	// ErrAmount: an amount of 0, or a total that does not fit.
	ErrAmount = errors.New("lock: amount out of range")
	// ErrConflict: the lock's id is used by another lock.
	ErrConflict = errors.New("lock: id belongs to another lock")
	// ErrUnknown: no such lock is here, or it is decided.
	ErrUnknown = errors.New("lock: no such lock is waiting")
	// ErrPreimage: the preimage does not open the lock.
	ErrPreimage = errors.New("lock: preimage does not open the lock")
	// ErrLate: the lock's time is over; only what the chain shows counts now.
	ErrLate = errors.New("lock: too late, only the chain decides now")
	// ErrGuard: a lock beyond the horizon without a guard that covers it.
	ErrGuard = errors.New("lock: needs a guard up to its end and the margin")
	// ErrRole: an event of the other side.
	ErrRole = errors.New("lock: not an event of this side")
	// ErrGivenUp: a lock that the payee gave up is never claimed.
	ErrGivenUp = errors.New("lock: it was given up and is never claimed")
)

// maxTotal is the first total that a lane cannot have.
const maxTotal tally.Amount = 1 << 63

// form refuses a voucher that is not of the kind.
func (t *Terms) form(v *Voucher, want Kind) error {
	got := t.KindOf(v)
	if got == KindPoint {
		return ErrPoint
	}
	if got != want {
		return fmt.Errorf("%w: %s on lane %d, not a %s", ErrForm, got, v.Lane, want)
	}
	return nil
}
