package host

import (
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paystream/hold"
	"github.com/tallystick/tally/paystream/payments/route"
)

// VoucherChannels is what holds of a node with these channels work on.
func VoucherChannels(m *paych.Manager, c paych.Chain, l linker) hold.Channels {
	return &voucherChannels{manager: m, chain: c, links: l}
}

// HasPackets reports whether there is a packet session with p.
func (n *Node) HasPackets(p peer.ID) bool { _, ok := n.packets.Info(p); return ok }

// KnownAdverts counts what a node knows of who carries what.
func (n *Node) KnownAdverts() int { return with(n.adverts, (*route.Adverts).Len) }
