package payments

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Bounds of a payment.
const (
	// MaxParts bounds the parts of one payment that live at once, at the payer and
	// at the payee: each blocks room on every tab of its route.
	MaxParts = 32
	// MaxAttempts bounds the rows that one group of a payment leaves behind.
	MaxAttempts = 1024
	// MaxVia bounds the peers on a part's way.
	MaxVia = 20
	// MaxTotal is the first total that is refused: twice of it still is a Balance.
	MaxTotal tally.Amount = 1 << 62
	// maxPeerID bounds a peer id in records: longer ones are not in use.
	maxPeerID = 64
)

// What a part needs of time.
const (
	// Assembly is how long a payee waits for the rest, from the first part that
	// arrived. It is never prolonged, so that nobody can block the tabs of others
	// by sending a further part now and then.
	Assembly = 60 * time.Second
	// ClaimMargin is the time that a part must have left when the payee claims: a
	// fulfil that is saved at the last moment would be one that nobody honours.
	ClaimMargin = 5 * time.Second
	// CreditHop is what the payer adds for each hop that carries on credit.
	CreditHop = 5 * time.Second

	assemblyMS = int64(Assembly / time.Millisecond)
	marginMS   = int64(ClaimMargin / time.Millisecond)
)

// ExpiresAfter is how far ahead a part expires that has hops credit hops to go:
// a payee that it reaches last still has its whole time.
func ExpiresAfter(hops int) time.Duration {
	return Assembly + ClaimMargin + time.Duration(hops)*CreditHop
}

// LockedExpiresAfter is ExpiresAfter of a part that goes under locks, with what its
// hops add. Some of them may carry it on credit.
func LockedExpiresAfter(hops int, locks time.Duration) time.Duration {
	return ExpiresAfter(hops) + locks
}

// PartID names a part along its whole route: 16 random bytes of the payer.
type PartID [16]byte

// String returns the id in hex.
func (id PartID) String() string { return hex.EncodeToString(id[:]) }

// Secret is a payment secret: it seals what the payer tells the payee, and shows
// the payee that the payer had its invoice. A hop that had it could take a part
// for itself and claim a cheaper one, so it prints redacted.
type Secret [32]byte

// String hides the secret.
func (s Secret) String() string { return "<secret>" }

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the secret from structured logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Status is a payment's, and is derived from its parts.
type Status uint8

// The three words that commands show.
const (
	StatusPending Status = iota + 1
	StatusComplete
	StatusFailed
)

var statusWords = [...]string{"unset", "pending", "complete", "failed"}

// String is the word that commands show.
func (s Status) String() string {
	if int(s) < len(statusWords) {
		return statusWords[s]
	}
	return "unknown"
}

// PartStatus is that of one attempt to send a part. The numbers are in records:
// add at the end.
type PartStatus uint8

// States of a part. Created and sent have one record: whether a part has left is
// known to its carrier alone, which is asked after a restart.
const (
	PartCreated PartStatus = iota + 1
	PartSent
	PartComplete
	PartFailed
)

// Lives reports whether the part can still be claimed.
func (s PartStatus) Lives() bool { return s == PartCreated || s == PartSent }

// String is one of the three words of a payment: a part that lives is pending.
func (s PartStatus) String() string {
	switch s {
	case PartCreated, PartSent:
		return StatusPending.String()
	case PartComplete:
		return StatusComplete.String()
	case PartFailed:
		return StatusFailed.String()
	default:
		return "unknown"
	}
}

// FailCode says why a part failed. The numbers are in records: add at the end.
type FailCode uint8

// Codes of a failure.
const (
	FailUnset FailCode = iota
	// FailRefused: the payee does not take it, and says no more: it is unknown,
	// paid, expired, or the secret is wrong.
	FailRefused
	// FailTimeout: the payee took the part, and the others did not come in time.
	FailTimeout
	// FailNoRoute: a node on the way knows no way on.
	FailNoRoute
	// FailHeadroom: the part does not fit a tab or channel on the way; Most does.
	FailHeadroom
	// FailExpiry: too little or too much time for the way.
	FailExpiry
	// FailHop: a node on the way lost its link, or is in trouble.
	FailHop
	// FailNeverLeft: it was saved, and we stopped before it left.
	FailNeverLeft
	// FailUnsupported: a node on the way does not carry such a part.
	FailUnsupported
	// FailBusy: a node on the way cannot take it now, and may soon.
	FailBusy
)

var failWords = [...]string{
	"unset", "refused", "timeout", "no_route", "headroom", "expiry", "hop", "never_left", "unsupported", "busy",
}

// String is the code as commands show it.
func (c FailCode) String() string {
	if int(c) < len(failWords) {
		return failWords[c]
	}
	return "unknown"
}

// Final reports whether no other part of the payment can do better: the payee has
// said no.
func (c FailCode) Final() bool { return c == FailRefused }

// Failure is why a part failed.
type Failure struct {
	Code FailCode
	// Hop is how many hops before the one that failed had taken the part; -1
	// where that is not known.
	Hop int
	// Most is what would have fitted, of FailHeadroom.
	Most tally.Amount
}

// Codes of Error, as the first implementation of these commands numbers them.
const (
	// CodeConflict: the payment exists, and what is asked does not fit it.
	CodeConflict = 201
	// CodeNotFound: there is no such payment, part or invoice.
	CodeNotFound = 208
	// CodeFailed: the payment failed.
	CodeFailed = 203
	// CodePending: it is not decided yet.
	CodePending = 200
	// CodeNoRoute: no way to the payee is known that would carry it.
	CodeNoRoute = 205
	// CodeBound: one of the bounds above.
	CodeBound = 211
	// CodeInvalid: the request makes no sense by itself.
	CodeInvalid = 212
)

// Error is an answer to a command that did not do what was asked. Nothing has
// changed.
type Error struct {
	Code   int
	Reason string
	Remedy string
}

// Error names cause and remedy.
func (e *Error) Error() string { return "payments: " + e.Reason + "; " + e.Remedy }

// Is lets errors.Is find an Error by its code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Reason == ""
}

// The codes, for errors.Is.
var (
	ErrConflict = &Error{Code: CodeConflict}
	ErrNotFound = &Error{Code: CodeNotFound}
	ErrFailed   = &Error{Code: CodeFailed}
	ErrPending  = &Error{Code: CodePending}
	ErrNoRoute  = &Error{Code: CodeNoRoute}
	ErrBound    = &Error{Code: CodeBound}
	ErrInvalid  = &Error{Code: CodeInvalid}
)

// RestError is an ErrNoRoute for a moment: a hop on the way was busy, or the part came at
// the wrong time for it, and it is left out until Until.
type RestError struct {
	Until time.Time
	Err   error
}

func (e *RestError) Error() string { return e.Err.Error() }

// Unwrap gives the ErrNoRoute.
func (e *RestError) Unwrap() error { return e.Err }

// ErrInvariant is wrapped by every error of Check.
var ErrInvariant = errors.New("payments: invariant broken")

func broken(name, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %w", ErrInvariant, name, fmt.Errorf(format, args...))
}

// EffectKind names what the shell has to do.
type EffectKind uint8

// Kinds of effect, and who emits them.
const (
	// FxSave: Record lies under Key, in one synced batch with all saves of the
	// step, before anything else of the step is done. Without Record nothing is
	// left under Key.
	FxSave EffectKind = iota + 1
	// FxSend (payer): Part leaves with Data.
	FxSend
	// FxForget (payer): what became of PartID is saved; the carrier may forget it.
	FxForget
	// FxFulfil (payee): PartID is claimed with Preimage.
	FxFulfil
	// FxReject (payee): PartID goes back with Code.
	FxReject
	// FxWakePayment: whoever waits for the payment Hash is told.
	FxWakePayment
	// FxWakePart: whoever waits for the part ID is told.
	FxWakePart
	// FxWakeInvoice: whoever waits for the invoice Hash is told.
	FxWakeInvoice
	// FxLost (payee): Amount was claimed, and the carrier could not collect it.
	// The operator has to be told.
	FxLost
)

// late is 0 for what comes first.
func (k EffectKind) late() int {
	if k == FxSave {
		return 0
	}
	return 1
}

// Effect is one duty of the shell, in the order of the list.
type Effect struct {
	Kind     EffectKind
	Key      string
	Record   []byte
	Part     *Part
	Dest     peer.ID
	Data     []byte
	PartID   PartID
	ID       uint64
	Hash     tally.Hashlock
	Point    byte
	Preimage tally.Preimage
	Code     FailCode
	Amount   tally.Amount
}
