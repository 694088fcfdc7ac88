package swapnet

import (
	"fmt"

	"github.com/tallystick/tally/pb/swappb"
	"github.com/tallystick/tally/protocols/internal/wire"
	"github.com/tallystick/tally/swap"
)

// This file is the seed's protocol to the byte. A handshake and a cheque look
// alike on the wire, so that the role of a frame follows from its position: the
// first each way is a handshake, every later one a cheque.

func decodeAlpha1Handshake(b []byte) (*swap.Handshake, error) {
	var h swappb.Alpha1Handshake
	if err := wire.Unmarshal(b, &h); err != nil {
		return nil, err
	}
	threshold, err := swap.ClampThreshold(h.GetPaymentThreshhold())
	if err != nil {
		return nil, fmt.Errorf("alpha1 handshake: %w", err)
	}
	return &swap.Handshake{Terms: swap.Terms{PaymentThreshold: threshold}}, nil
}

func encodeAlpha1Handshake(h *swap.Handshake) ([]byte, error) {
	return marshal(&swappb.Alpha1Handshake{PaymentThreshhold: swap.ThresholdBytes(h.PaymentThreshold)}, MaxAlpha1Frame)
}

func decodeAlpha1Cheque(b []byte) (*swap.KarmaCheque, error) {
	var c swappb.Alpha1Cheque
	if err := wire.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	if n := len(c.GetBeneficiary()); n > MaxBeneficiary {
		return nil, malformed("alpha1 cheque: beneficiary of %d bytes", n)
	}
	return &swap.KarmaCheque{Beneficiary: nonEmpty(c.GetBeneficiary()), Date: c.GetDate(), Amount: c.GetAmount()}, nil
}

func encodeAlpha1Cheque(m swap.Message) ([]byte, error) {
	c, ok := m.(*swap.KarmaCheque)
	if !ok {
		return nil, fmt.Errorf("%w: %T on %s", ErrUnsupported, m, ProtocolAlpha1)
	}
	if len(c.Beneficiary) > MaxBeneficiary {
		return nil, malformed("alpha1 cheque: beneficiary of %d bytes", len(c.Beneficiary))
	}
	return marshal(&swappb.Alpha1Cheque{Beneficiary: c.Beneficiary, Date: c.Date, Amount: c.Amount}, MaxAlpha1Frame)
}
