package paych

import (
	"context"

	"github.com/filecoin-project/go-address"
	"github.com/ipfs/go-cid"
)

// PaychSettle implements PaymentChannelManagerAPI. Called again it returns the
// same message; ErrSettling where the other side settled.
func (m *Manager) PaychSettle(ctx context.Context, ch address.Address) (cid.Cid, error) {
	return m.once(ctx, ch, messageSettle, evSettle{})
}

// PaychCollect implements PaymentChannelManagerAPI. Called again it returns the
// same message; ErrNotSettling, ErrTooEarly, ErrCollected.
func (m *Manager) PaychCollect(ctx context.Context, ch address.Address) (cid.Cid, error) {
	return m.once(ctx, ch, messageCollect, evCollect{})
}

// once sends a message that is of use once in the life of a channel.
func (m *Manager) once(ctx context.Context, ch address.Address, kind messageKind, ev event) (cid.Cid, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return cid.Undef, err
	}
	if err := m.peek(ctx, a); err != nil {
		return cid.Undef, err
	}
	key := sendKey{kind: kind}
	a.mu.Lock()
	id := a.ch.Settled
	if kind == messageCollect {
		id = a.ch.Collected
	}
	o := a.sending[key]
	switch {
	case a.broken != nil:
		defer a.mu.Unlock()
		return cid.Undef, a.broken
	case o == nil && id.Defined():
		a.mu.Unlock()
		return id, nil // done
	case o == nil:
		if _, err := m.step(a, ev); err != nil {
			a.mu.Unlock()
			return cid.Undef, err
		}
		o = a.sending[key]
	}
	a.mu.Unlock()
	if o == nil {
		return cid.Undef, ErrClosed
	}
	return o.wait(ctx)
}
