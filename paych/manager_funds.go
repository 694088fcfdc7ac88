package paych

import (
	"context"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"
)

// fund queues a request for money and waits until its message is published.
func (m *Manager) fund(ctx context.Context, ch address.Address, amt big.Int, reserve bool) (cid.Cid, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return cid.Undef, err
	}
	if _, err := m.now(ctx); err != nil {
		return cid.Undef, err
	}
	m.mu.Lock()
	m.nextCall++
	call := m.nextCall
	m.mu.Unlock()
	w := make(chan answer, 1)
	a.mu.Lock()
	if a.broken != nil {
		defer a.mu.Unlock()
		return cid.Undef, a.broken
	}
	a.waiting[call] = w
	if amt.Int != nil {
		amt = big.NewFromGo(amt.Int) // the caller's may change
	}
	if _, err := m.step(a, evFunding{Request: call, Amount: amt, Reserve: reserve}); err != nil {
		delete(a.waiting, call)
		a.mu.Unlock()
		return cid.Undef, err
	}
	a.mu.Unlock()
	select {
	case ans := <-w:
		if ans.err == nil {
			ans.err = m.save(a) // a grant counts when it is on disk
		}
		return ans.cid, ans.err
	case <-ctx.Done():
	case <-m.ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case ans := <-w: // the answer came at the same time
		return ans.cid, ans.err
	default:
	}
	delete(a.waiting, call)
	_, _ = m.step(a, evWithdrawn{Request: call}) // never fails
	if ctx.Err() == nil {
		return cid.Undef, ErrClosed
	}
	return cid.Undef, ctx.Err()
}

// PaychAddFunds implements PaymentChannelManagerAPI. A call whose ctx ends while
// it waits behind another top-up is taken back; one whose message is under way
// goes on.
func (m *Manager) PaychAddFunds(ctx context.Context, ch address.Address, amt big.Int) (cid.Cid, error) {
	return m.fund(ctx, ch, amt, false)
}

// PaychReserveFunds implements PaymentChannelManagerAPI. Where a cid is returned
// the reservation holds once that message is final; PaychWaitReady tells.
func (m *Manager) PaychReserveFunds(ctx context.Context, ch address.Address, amt big.Int) (cid.Cid, error) {
	return m.fund(ctx, ch, amt, true)
}

// PaychReleaseFunds implements PaymentChannelManagerAPI. ErrNotReserved where
// more is released than is reserved and not spent.
func (m *Manager) PaychReleaseFunds(ctx context.Context, addr address.Address, amt big.Int) error {
	a, err := m.account(ctx, addr)
	if err != nil {
		return err
	}
	_, err = m.do(a, evRelease{Amount: amt})
	return err
}
