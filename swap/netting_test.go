package swap

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

// tabEnd is a ledger as far as service and payments move it, with what is on its
// way to it: in order on each stream.
type tabEnd struct {
	Ledger
	work    []func() // services
	cheques []func() // and acks, on a stream of their own
	paying  bool
	partner *tabEnd
}

// serve books n on the serving side, which is first, and sends the service.
func (e *tabEnd) serve(n tally.Amount) {
	e.raiseServed(n)
	e.partner.work = append(e.partner.work, func() { e.partner.raiseConsumed(n) })
}

// pay sends a cheque over the debt: the creditor books it first.
func (e *tabEnd) pay() {
	n := e.owed.Debt()
	if n == 0 || e.paying {
		return
	}
	e.paying = true
	e.partner.cheques = append(e.partner.cheques, func() {
		e.partner.bookFromPeer(n)
		e.cheques = append(e.cheques, func() {
			e.bookToPeer(n)
			e.paying = false
		})
	})
}

// take handles the next message of one stream.
func take(inbox *[]func()) bool {
	if len(*inbox) == 0 {
		return false
	}
	next := (*inbox)[0]
	*inbox = (*inbox)[1:]
	next()
	return true
}

func sound(t *rapid.T, e *tabEnd) {
	if e.prepaidByPeer > 0 && e.owed > 0 || e.prepaidToPeer > 0 && e.owed < 0 {
		t.Fatalf("money ahead beside a debt: %+v", &e.Ledger)
	}
}

// TestCrossingPaymentsLeaveNoDeadTab: whatever crosses on the wire, at rest nobody
// claims a debt that the other side sees as money that was paid ahead, at least
// once the other side was refused: such money is never settled, and the claim would
// refuse packets for ever.
func TestCrossingPaymentsLeaveNoDeadTab(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := DefaultPolicy()
		a, b := &tabEnd{Ledger: NewLedger(&policy)}, &tabEnd{Ledger: NewLedger(&policy)}
		a.partner, b.partner = b, a
		ends := [2]*tabEnd{a, b}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			e := ends[rapid.IntRange(0, 1).Draw(t, "end")]
			switch rapid.IntRange(0, 5).Draw(t, "kind") {
			case 0:
				e.serve(tally.Amount(rapid.Uint64Range(1, 60).Draw(t, "units")))
			case 1:
				e.pay()
			case 2, 3:
				take(&e.work)
			default:
				take(&e.cheques)
			}
			sound(t, a)
			sound(t, b)
		}
		for take(&a.work) || take(&b.work) || take(&a.cheques) || take(&b.cheques) {
		}
		if a.Balance() != -b.Balance() {
			t.Fatalf("balances %d and %d", a.Balance(), b.Balance())
		}
		for i, e := range ends {
			before := e.partner.Balance()
			if _, err := e.partner.Step(0, &Event{Kind: EvPacketRefused}); err != nil || e.partner.Balance() != before {
				t.Fatalf("balance %d became %d: %v", before, e.partner.Balance(), err)
			}
			sound(t, e.partner)
			if e.partner.prepaidByPeer > policy.DisconnectThreshold {
				continue // several crossed, which thresholds do not let happen
			}
			if claim, debt := e.owed.Owed(), e.partner.owed.Debt(); claim > debt {
				t.Fatalf("end %d claims %d, the other one knows of %d", i, claim, debt)
			}
		}
	})
}

// TestRefusedPacketSettlesMoneyAhead is one such crossing, told.
func TestRefusedPacketSettlesMoneyAhead(t *testing.T) {
	policy := DefaultPolicy()
	a, b := &tabEnd{Ledger: NewLedger(&policy)}, &tabEnd{Ledger: NewLedger(&policy)}
	a.partner, b.partner = b, a
	b.serve(100)
	take(&a.work)
	a.pay()
	a.serve(170)
	take(&b.work)
	b.serve(70)      // b's service nets against its debt first,
	take(&b.cheques) // and the cheque is all money ahead
	take(&a.cheques) // a has its ack before the service,
	take(&a.work)    // which draws on that money
	if a.owed != 70 || b.owed != 0 || b.prepaidByPeer != 100 || a.Balance() != -b.Balance() {
		t.Fatalf("a: %s\nb: %s", describe(&a.Ledger), describe(&b.Ledger))
	}
	if _, err := b.Step(0, &Event{Kind: EvPacketRefused}); err != nil || b.owed != -100 || b.prepaidByPeer != 0 {
		t.Fatalf("%v, %s", err, describe(&b.Ledger))
	}
}
