package payments

import (
	"context"
	"fmt"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// restoreOrder is the order in which the tables are read: rows before what points
// to them.
var restoreOrder = [...]string{counterKey, paymentPrefix, partPrefix, invoicePrefix, inPrefix}

// restoreRecord hands one record to the core that wrote it.
func restoreRecord(payer *Payer, payee *Payee, prefix, key string, payload []byte) error {
	rest := key[len(prefix):]
	switch prefix {
	case counterKey:
		return payer.RestoreCounter(payload)
	case partPrefix:
		id, err := durable.ParseKeyUint(rest)
		if err != nil {
			return err
		}
		return payer.RestorePart(id, payload)
	}
	raw, err := durable.ParseKeyID(rest)
	if err != nil {
		return err
	}
	switch {
	case prefix == paymentPrefix && len(raw) == tally.HashlockSize:
		return payer.RestorePayment(tally.Hashlock(raw), payload)
	case prefix == invoicePrefix && len(raw) == tally.HashlockSize:
		return payee.RestoreInvoice(tally.Hashlock(raw), payload)
	case prefix == inPrefix && len(raw) == len(PartID{}):
		return payee.RestorePart(PartID(raw), payload)
	default:
		return fmt.Errorf("%w: key %q", ErrRecord, key)
	}
}

// load reads both tables of an earlier run.
func load(ctx context.Context, s *durable.Store, curve opener) (*Payer, *Payee, error) {
	payer, payee := NewPayer(), NewPayee()
	payer.curve, payee.curve = curve, curve
	for _, prefix := range restoreOrder {
		err := s.Scan(ctx, prefix, "", func(key string, rec []byte) error {
			_, payload, err := durable.Unseal(key, recordVersion, rec)
			if err != nil {
				return err
			}
			return restoreRecord(payer, payee, prefix, key, payload)
		})
		if err != nil {
			return nil, nil, fmt.Errorf("payments: read %s: %w", prefix, err)
		}
	}
	if err := payer.Check(); err != nil {
		return nil, nil, err
	}
	return payer, payee, payee.Check()
}
