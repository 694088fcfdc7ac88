package paych

import (
	"context"
	"fmt"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
)

// A payee may promise that a part of an inbound channel stays free for vouchers that
// reach it later, by other ways than from the channel's payer.

// Promised is what an inbound channel is worth to its payee. Amounts are attoFIL.
type Promised struct {
	// Balance is what the channel holds, at the head and at finality.
	Balance big.Int
	// Total is what all lanes may still come to by vouchers that we hold, what is
	// redeemed included, and Kept what is kept beside.
	Total, Kept big.Int
}

// PaychKeep sets what of an inbound channel's balance no voucher may take but those of
// PaychVoucherAddKept. Others are then refused with ErrOverBalance, as if the channel
// held less. It is not saved: who keeps it says so again after each Open. ErrOutbound,
// ErrZeroAmount for one below 0.
func (m *Manager) PaychKeep(ctx context.Context, ch address.Address, amt big.Int) (Promised, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return Promised{}, err
	}
	if amt.Int == nil || amt.Sign() < 0 {
		return Promised{}, fmt.Errorf("%w: keep %v", ErrZeroAmount, amt)
	}
	if a.ch.Direction != PCHInbound {
		return Promised{}, ErrOutbound
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return Promised{}, a.broken
	}
	a.ch.kept = value(amt)
	return Promised{Balance: a.ch.confirmed(), Total: a.ch.redeemed(), Kept: value(amt)}, nil
}

// PaychVoucherAddKept is PaychVoucherAdd for a voucher that may take draws of what
// PaychKeep keeps, which is less by that afterwards. It is taken also while the channel
// settles, as long as it can still be submitted.
func (m *Manager) PaychVoucherAddKept(ctx context.Context, ch address.Address, sv *SignedVoucher, proof []byte, draws big.Int) (big.Int, error) {
	if draws.Int == nil || draws.Sign() < 0 {
		return big.Zero(), fmt.Errorf("%w: draw %v", ErrZeroAmount, draws)
	}
	return m.addVoucher(ctx, ch, sv, proof, big.Zero(), draws)
}
