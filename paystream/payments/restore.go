package payments

import (
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
