package forward

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// Dir is a packet's direction on the tab with one neighbour.
type Dir uint8

// Directions.
const (
	// In: the neighbour offered us the packet, and will owe us.
	In Dir = iota + 1
	// Out: we offered it, and shall owe.
	Out
)

// Account is the tab with each neighbour, as far as packets need it. It is part
// of the core's state: called in a step, it changes memory only and does not
// wait. Units are held until the packet is decided.
type Account interface {
	// Hold takes room for a packet. Its error may be a *HeadroomError.
	Hold(p peer.ID, id uint64, dir Dir, units tally.Amount) error
	// Commit books a packet that was fulfilled.
	Commit(p peer.ID, id uint64, dir Dir) error
	// Release gives the room back.
	Release(p peer.ID, id uint64, dir Dir) error
}

// Refuser is an Account that can do something about a neighbour which has, or
// knows of, no room where there is some here: the two books of a tab may differ in
// what has to be paid.
type Refuser interface {
	Refused(p peer.ID)
}

// HeadroomError is a refusal of Account.Hold with its figure.
type HeadroomError struct {
	Headroom tally.Amount
	// Code is CodeHeadroom, CodeHeadroomFinal, CodeTooLarge or CodeBusy.
	Code  Code
	Cause error
}

func (e *HeadroomError) Error() string {
	return fmt.Sprintf("forward: no room on the tab (%s), headroom %d: %v", e.Code, e.Headroom, e.Cause)
}

// Unwrap gives the tab's own error.
func (e *HeadroomError) Unwrap() error { return e.Cause }

func holdCode(err error) (Code, tally.Amount) {
	if e := (*HeadroomError)(nil); errors.As(err, &e) {
		return e.Code, e.Headroom
	}
	return CodeInternal, 0
}
