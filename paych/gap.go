package paych

import (
	"context"
	"fmt"

	"github.com/filecoin-project/go-address"
)

// Filler is what a Chain offers besides if a reorganisation deeper than its
// finality may take messages back that were taken for final, and whose bytes
// nobody has any more. What the sender sent later waits for their nonces for ever.
type Filler interface {
	Replacer
	// Fill publishes an empty message of the sender to itself under this nonce. It
	// is no error that the node holds a message with the nonce already. ErrFeeCap.
	Fill(ctx context.Context, sender address.Address, nonce uint64) error
}

// fill closes the gap in front of o at next, the first nonce that the chain lacks,
// where none of our own messages is going to. Nothing has to be saved: what took
// the nonce before is booked, its return is seen as any other's, and an empty
// message moves nothing.
func (m *Manager) fill(o *outgoing, next uint64) error {
	f, ok := m.chain.(Filler)
	if !ok {
		return nil
	}
	sender := o.a.ch.Control() // set once
	turn := m.turn(sender)
	select {
	case turn <- struct{}{}: // nothing is between its nonce and its record
	default:
		return nil // looked at again when o is late again
	}
	defer func() { <-turn }()
	if m.underway(sender, next) {
		return nil
	}
	ctx, cancel := m.call(m.ctx)
	defer cancel()
	if err := f.Fill(ctx, sender, next); err != nil {
		return fmt.Errorf("paych: fill nonce %d of %s, which a reorganisation took: %w", next, sender, err)
	}
	m.log.Warn("a reorganisation took a message that was final: an empty one takes its nonce, so that the later ones are mined",
		"sender", sender, "nonce", next, "waits", o.msg.id())
	return nil
}

// underway reports whether a message of ours without a receipt has this nonce.
func (m *Manager) underway(sender address.Address, nonce uint64) bool {
	for _, a := range m.list() {
		a.mu.Lock()
		for _, o := range a.sending {
			if o.msg != nil && !o.msg.state.final() && o.msg.signed.Nonce == nonce && o.msg.signed.From == sender {
				a.mu.Unlock()
				return true
			}
		}
		a.mu.Unlock()
	}
	return false
}
