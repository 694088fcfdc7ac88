package sim

import (
	"fmt"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/swap"
)

func (w *world) violation(format string, args ...any) error {
	return &Violation{Seed: w.seed, At: w.now(), Event: w.last, Broken: fmt.Sprintf(format, args...)}
}

// check looks at what has to hold after every step.
func (w *world) check() error {
	for _, p := range w.parties {
		if p.book == nil {
			continue
		}
		if err := p.book.Check(w.ctx); err != nil {
			return w.violation("book %s: %v", p.name, err)
		}
	}
	for i, a := range w.parties {
		for _, b := range w.parties[i+1:] {
			if w.links[[2]int{i, b.index}] == nil {
				continue
			}
			if err := w.checkPair(a, b); err != nil {
				return err
			}
			if err := w.checkPair(b, a); err != nil {
				return err
			}
		}
	}
	return nil
}

// row is one side's tab, and whether there is one now.
func (w *world) row(p, with *party) (swap.Row, bool, error) {
	if p.book == nil {
		return swap.Row{}, false, nil
	}
	r, err := p.book.Row(with.id)
	if err != nil {
		return swap.Row{}, false, w.violation("row of %s with %s: %v", p.name, with.name, err)
	}
	return r, true, nil
}

// checkPair looks at the money that client paid server.
func (w *world) checkPair(client, server *party) error {
	rc, upC, err := w.row(client, server)
	if err != nil {
		return err
	}
	rs, upS, err := w.row(server, client)
	if err != nil {
		return err
	}
	t := w.truthOf(client, server)
	if upS {
		// An acked cheque is never lost: the ack left after the save, and a
		// crash keeps what was saved.
		if rs.Received < t.acked {
			return w.violation("%s acked %d of %s and has %d", server.name, t.acked, client.name, rs.Received)
		}
		// No money from nowhere.
		if rs.Received > t.promised {
			return w.violation("%s has %d from %s, whose cheques name %d", server.name, rs.Received, client.name, t.promised)
		}
		if w.policy.Mode != swap.ModeSoft && rs.Exposure > w.policy.MaxExposure {
			return w.violation("the exposure of %s to %s is %d, over %d", server.name, client.name, rs.Exposure, w.policy.MaxExposure)
		}
		if rs.Forgiven > w.allowance(rs.Received) {
			return w.violation("%s forgave %s %d, allowed are %d", server.name, client.name, rs.Forgiven, w.allowance(rs.Received))
		}
		if err := w.checkLoss(client, server, &rs); err != nil {
			return err
		}
		// Nothing is charged that was not served.
		if client.liar == nil && rs.Served > t.tried {
			return w.violation("%s charges %s for %d, %d were served", server.name, client.name, rs.Served, t.tried)
		}
	}
	if upC {
		// Nobody counts as paid what the other side has not credited.
		if rc.Paid > t.acked {
			return w.violation("%s counts %d as paid to %s, which acked %d", client.name, rc.Paid, server.name, t.acked)
		}
	}
	if upC && upS && rc.Paid > rs.Received {
		return w.violation("%s paid %d, %s received %d", client.name, rc.Paid, server.name, rs.Received)
	}
	if upC && upS {
		return w.conserved(client, server, &rc, &rs)
	}
	return nil
}

// conserved: two balances sum to what is on the way between the books, in both
// directions, of service and of money. Each part has a sign that only a defect
// can turn: a payment is credited before it counts as paid.
func (w *world) conserved(a, b *party, ra, rb *swap.Row) error {
	service := int64(rb.Served) - int64(ra.Consumed) + int64(ra.Served) - int64(rb.Consumed)
	money := int64(rb.Received) - int64(ra.Paid) + int64(ra.Received) - int64(rb.Paid)
	if sum := int64(ra.Balance) + int64(rb.Balance); sum != service-money {
		return w.violation("the balances of %s and %s sum to %d, on the way are %d of service and %d of money", a.name, b.name, sum, service, money)
	}
	return nil
}

// checkLoss: what a hostile peer took and did not pay is within the exposure
// that the policy allows it, W, and 1 % of what it paid; a crash of the victim
// costs W at most, each.
func (w *world) checkLoss(client, server *party, rs *swap.Row) error {
	if client.liar == nil {
		return nil
	}
	t := w.truthOf(client, server)
	loss := t.answered - min(t.answered, rs.Received)
	w.report.Lossy = max(w.report.Lossy, loss)
	bound := w.policy.MaxExposure + w.allowance(rs.Received) + tally.Amount(server.crashes)*w.policy.Slack()
	if loss > bound {
		return w.violation("%s lost %d to %s, over %d", server.name, loss, client.name, bound)
	}
	return nil
}

// checkEnd looks at the books of honest peers when all has come to rest.
func (w *world) checkEnd() error {
	for i, a := range w.parties {
		for _, b := range w.parties[i+1:] {
			if a.book == nil || b.book == nil {
				if a.liar == nil && b.liar == nil {
					return w.violation("%s or %s is down at the end", a.name, b.name)
				}
				continue
			}
			ra, _, err := w.row(a, b)
			if err != nil {
				return err
			}
			rb, _, err := w.row(b, a)
			if err != nil {
				return err
			}
			w.report.Forgiven += ra.Forgiven + rb.Forgiven
			w.logf("end %s%s: %d %d, served %d %d, consumed %d %d, paid %d %d, received %d %d", a.name, b.name,
				ra.Balance, rb.Balance, ra.Served, rb.Served, ra.Consumed, rb.Consumed, ra.Paid, rb.Paid, ra.Received, rb.Received)
			if err := w.agreed(a, b, &ra, &rb); err != nil {
				return err
			}
		}
	}
	return nil
}

// agreed: the books are each other's negatives. Where they are not, the creditor
// has forgiven all it may, and both say so.
func (w *world) agreed(a, b *party, ra, rb *swap.Row) error {
	if !ra.Connected || !rb.Connected {
		return w.violation("%s and %s are not connected at the end", a.name, b.name)
	}
	if ra.Paid != rb.Received || ra.Received != rb.Paid {
		return w.violation("payments of %s and %s differ at the end: %d %d, %d %d", a.name, b.name, ra.Paid, rb.Received, ra.Received, rb.Paid)
	}
	if ra.Balance == -rb.Balance && ra.Served == rb.Consumed && ra.Consumed == rb.Served {
		if ra.SkewBlocks || rb.SkewBlocks {
			return w.violation("%s and %s agree and still refuse each other", a.name, b.name)
		}
		return nil
	}
	open := false
	for _, side := range [...]struct{ r, o *swap.Row }{{ra, rb}, {rb, ra}} {
		over := side.r.Served - min(side.r.Served, side.o.Consumed)
		if over == 0 {
			continue
		}
		open = true
		if !side.r.SkewBlocks {
			return w.violation("books of %s and %s differ by %d and nobody says so", a.name, b.name, over)
		}
		if over <= w.policy.Slack() && side.r.Forgiven+over <= w.allowance(side.r.Received) {
			return w.violation("books of %s and %s differ by %d, and %d were forgiven of %d allowed", a.name, b.name, over, side.r.Forgiven, w.allowance(side.r.Received))
		}
	}
	if !open {
		return w.violation("books of %s and %s differ at the end: %+v %+v", a.name, b.name, ra, rb)
	}
	w.report.Unresolved++
	return nil
}
