package host

import (
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/paystream/payments/route"
)

// VoucherChannels is what holds of a node with these channels work on.
func VoucherChannels(m *paych.Manager, c paych.Chain, l linker) hold.Channels {
	return &voucherChannels{manager: m, chain: c, links: l}
}

// KnownAdverts counts what a node knows of who carries what.
func (n *Node) KnownAdverts() int { return with(n.adverts, (*route.Adverts).Len) }
