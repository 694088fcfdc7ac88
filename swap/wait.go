package swap

import (
	"context"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// WaitSession returns when a session with p is ready: both handshakes were read.
// It ends with ctx, or with ErrTooManyHolds where too many wait for p already.
func (b *Book) WaitSession(ctx context.Context, p peer.ID) error {
	_, err := b.await(ctx, p, func(a *account) (bool, error) {
		return a.ledger.flags&flagReady != 0, nil
	})
	return err
}

// Settled is what SettleAndWait did.
type Settled struct {
	Serial     uint64
	Paid       tally.Amount // what the peer credited for it
	Cumulative tally.Amount // what the peer credited of all cheques
	State      ChequeState
	Balance    tally.Balance
}

// SettleAndWait settles the exact debt to p and waits for the peer's answer, or,
// where the peer gives none, for the cheque to be handed over. Besides the
// errors of Settle it returns ErrPaymentRefused, and ctx's error where ctx ends
// first: the settlement goes on then.
func (b *Book) SettleAndWait(ctx context.Context, p peer.ID) (Settled, error) {
	return b.payAndWait(ctx, p, 0)
}

// PrepayAndWait is SettleAndWait with units paid ahead of service, for a peer
// that gives newcomers no credit. A peer credits at the most one payment
// threshold of karma ahead.
func (b *Book) PrepayAndWait(ctx context.Context, p peer.ID, units tally.Amount) (Settled, error) {
	return b.payAndWait(ctx, p, units)
}

func (b *Book) payAndWait(ctx context.Context, p peer.ID, ahead tally.Amount) (Settled, error) {
	s, a, err := b.lock(p)
	if err != nil {
		return Settled{}, err
	}
	before := a.ledger.paid
	s.mu.Unlock()
	if err := b.pay(p, ahead); err != nil {
		return Settled{}, err
	}
	l, err := b.await(ctx, p, func(a *account) (bool, error) {
		switch a.ledger.settle {
		case settleIdle:
			return true, nil
		case settleRefused:
			if a.session != nil && a.session.reason != "" {
				return false, fmt.Errorf("%w: %s", ErrPaymentRefused, a.session.reason)
			}
			return false, ErrPaymentRefused
		default:
			return false, nil
		}
	})
	if err != nil {
		return Settled{}, err
	}
	return Settled{
		Serial: l.sentSerial, Paid: l.paid - before, Cumulative: l.paid,
		State: l.sentState(), Balance: l.Balance(),
	}, nil
}

// await looks at an account each time its callers are woken, until done says
// yes or fails. It returns the ledger as it was then.
func (b *Book) await(ctx context.Context, p peer.ID, done func(*account) (bool, error)) (Ledger, error) {
	for {
		wake, err := b.wait(p)
		if err != nil {
			return Ledger{}, err
		}
		s, a, err := b.lock(p)
		if err != nil {
			b.unwait(p)
			return Ledger{}, err
		}
		ok, err := done(a)
		l := a.ledger
		s.mu.Unlock()
		if ok || err != nil {
			b.unwait(p)
			return l, err
		}
		select {
		case <-wake:
			b.unwait(p)
		case <-ctx.Done():
			b.unwait(p)
			return Ledger{}, ctx.Err()
		case <-b.ctx.Done():
			b.unwait(p)
			return Ledger{}, ErrClosed
		}
	}
}
