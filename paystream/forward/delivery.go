package forward

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// Delivery is a packet for us. It, its Token and its Data are good during the call.
type Delivery struct {
	From      peer.ID
	ID        uint64
	Amount    tally.Amount
	Expires   time.Time
	Condition Condition
	Part      PartID
	Token     []byte
	Data      []byte
	// Again: it was kept before a restart.
	Again bool
	// Locked: it came under a lock. Its endpoint rejects it or has it kept; Expires is
	// then the last moment at which the lock can be claimed for sure.
	Locked bool
}

// Decision is what an endpoint makes of a packet.
type Decision struct {
	// Fulfil shows Preimage; else the packet is rejected with Code.
	Fulfil   bool
	Preimage tally.Preimage
	// Opens: the endpoint has seen that Preimage opens the condition.
	Opens bool
	// Owed: the endpoint has paid for Preimage. Under a lock it is then shown however
	// late it is.
	Owed bool
	Code Code
	// Data of what Handler.Packet returns is good until it is called again.
	Data []byte
	// Record, where set, adds records of the endpoint to the batch that the
	// fulfil is saved with, before it leaves. The engine calls it once, on its
	// own goroutine.
	Record func(*durable.Batch)
	// Kept, where set, keeps a packet that waits: it is in the journal, is offered
	// again after a restart, and no clock rejects it before LateHold is over, because
	// a claim of it may be on its way to the disk. In return the endpoint decides
	// every such packet, and fulfils one that has expired only if it had claimed it
	// before, on disk. Kept is called on the engine's goroutine once the packet is
	// saved: what an endpoint claims before would be lost in a crash. Data and token
	// may have MaxKept bytes together, else the packet is refused.
	Kept func()
}

// Handler is our endpoints.
type Handler interface {
	// Packet is called on the engine's goroutine, and must not wait or call the
	// engine. Where it returns false the packet waits until Decide, or until it
	// expires. One that was kept before a restart comes again, before all others.
	Packet(d *Delivery) (Decision, bool)
}

type refuseAll struct{}

func (refuseAll) Packet(*Delivery) (Decision, bool) { return Decision{Code: CodeRefused}, true }

func (e *Engine) delivery(from peer.ID, m *Msg, again bool) Delivery {
	return Delivery{
		From: from, ID: m.ID, Amount: m.Amount, Expires: e.at(m.Expires), Condition: m.Condition,
		Part: m.Part, Token: m.Token, Data: m.Data, Again: again, Locked: m.Lock != nil,
	}
}
