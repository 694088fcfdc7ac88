package swap

import (
	"context"
	"fmt"
	"strings"

	"github.com/tallystick/tally/internal/durable"
)

// CheckStore reads every record of every book in a store that nobody uses, and
// returns the first that is damaged, newer than this program, or breaks an
// invariant. It changes nothing.
func CheckStore(ctx context.Context, store *durable.Store) error {
	policy := DefaultPolicy()
	return store.Scan(ctx, "/swap", "", func(key string, rec []byte) error {
		parts := strings.Split(key, "/") // "", swap, asset, shelf, peer, …
		if len(parts) < 4 {
			return fmt.Errorf("%w: key %q", errRecord, key)
		}
		if err := checkRecord(key, parts[3], rec, &policy); err != nil {
			return fmt.Errorf("record %s: %w", key, err)
		}
		return nil
	})
}

func checkRecord(key, kind string, rec []byte, policy *Policy) error {
	_, payload, err := durable.Unseal(key, ledgerVersion, rec)
	if err != nil {
		return err
	}
	switch shelf(kind[0]) {
	case shelfLedger:
		_, _, err = parseLedger(payload, policy, 1, 0)
	case shelfChequeSent, shelfChequeReceived, shelfEvidence:
		_, err = decodeCheque(payload)
	case shelfAckGiven, shelfAckReceived:
		_, err = decodeAck(payload)
	case shelfServices:
		_, err = decodeServices(payload)
	default:
		if kind == "run" {
			_, err = parseRun(payload)
		}
	}
	return err
}
