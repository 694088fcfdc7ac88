package settler

import (
	"errors"
	"fmt"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally"
)

// AttoPerUnit is what one accounting unit is worth: 10^9 attoFIL, 1 nanoFIL.
const AttoPerUnit = 1_000_000_000

// linkState is where one direction of a relation stands.
type linkState uint8

const (
	// linkNone: no channel backs this direction.
	linkNone linkState = iota
	// linkOpening: our channel is decided and saved, and not on the chain yet.
	linkOpening
	// linkBound: cheques are backed by the channel.
	linkBound
)

var linkStates = [...]string{"none", "opening", "bound"}

// String is the state in one word, which is part of the API.
func (s linkState) String() string {
	if int(s) < len(linkStates) {
		return linkStates[s]
	}
	return "?"
}

// link is the channel behind the cheques of one direction.
type link struct {
	state linkState
	// channel is its own address on the chain; undefined while it opens.
	channel address.Address
	// origin is the cumulative that was credited when the link was made.
	origin tally.Amount
	// base is what lane 0 was worth then, in attoFIL.
	base big.Int
	// number counts our own channels with the peer; it is in the creation tag.
	number uint64
}

var errAmount = errors.New("settler: no voucher can name this cumulative")

// atto is the amount of lane 0 that backs a cumulative.
func (l *link) atto(cumulative tally.Amount) (big.Int, error) {
	if cumulative < l.origin {
		return big.Int{}, fmt.Errorf("%w: %d is below the channel's origin %d", errAmount, cumulative, l.origin)
	}
	return big.Add(l.base, toAtto(cumulative-l.origin)), nil
}

// units is the cumulative that an amount of lane 0 pays: the floor, for a part of
// a unit is nobody's payment.
func (l *link) units(atto big.Int) tally.Amount {
	above := big.Sub(atto, l.base)
	if above.Sign() <= 0 {
		return l.origin
	}
	return l.origin.SaturatingAdd(toUnits(above))
}

// toAtto is exact.
func toAtto(n tally.Amount) big.Int {
	return big.Mul(big.NewIntUnsigned(uint64(n)), big.NewInt(AttoPerUnit))
}

// toUnits rounds down, and stays at the largest amount.
func toUnits(atto big.Int) tally.Amount {
	if atto.Sign() <= 0 {
		return 0
	}
	n := big.Div(atto, big.NewInt(AttoPerUnit))
	if !n.IsUint64() {
		return ^tally.Amount(0)
	}
	return tally.Amount(n.Uint64())
}
