package payments_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream/payments"
)

// A diamond with a payment of 100 in two parts. Goal: wherever payer or payee
// stops, at each commit and each call to its carrier, before or after it, the
// payment is decided by the time that was promised, in the same way on both sides;
// the payee has all of it or nothing, and the payer has paid what arrived and the
// fees. Method: one side is stopped at one point, is away for a while, and starts
// again on what its disk kept; a bubble's clock goes on until everything is
// certain.

type crashPoint struct {
	payee bool
	call  bool // else a commit
	at    int
	after bool
	away  time.Duration
	// sale: a signature is bought, in one part.
	sale bool
}

func (p crashPoint) String() string {
	side, what, when := "payer", "commit", "before"
	if p.payee {
		side = "payee"
	}
	if p.call {
		what = "call"
	}
	if p.after {
		when = "after"
	}
	if p.sale {
		what = "sale's " + what
	}
	return fmt.Sprintf("%s/%s/%s/%d/away=%v", side, when, what, p.at, p.away)
}

// fates counts how runs ended.
type fates struct{ complete, failed int }

// crashRun returns how many commits and calls both sides make in a run without a
// stop, where p is nil.
func crashRun(t *testing.T, sale bool, p *crashPoint, f *fates) (commits, calls [2]int) {
	bubble(t, func(t *testing.T, w *world) {
		sides := [2]*node{w.start("A", nil), w.start("D", nil)}
		names := [2]string{"A", "D"}
		var i payments.Invoice
		amount, fees := tally.Balance(100), tally.Balance(2)
		if sale {
			amount, fees = 50, 1
			i = sides[1].offer(t, sides[0], payments.SaleRequest{Amount: 50})
		} else {
			i = sides[1].invoice(t, payments.InvoiceRequest{Amount: 100})
		}
		var before [2]int
		for k, n := range sides {
			before[k] = n.store.Commits()
		}
		side := 0
		if p != nil {
			if p.payee {
				side = 1
			}
			arm(sides[side], p, before[side])
		}
		paid := make(chan struct{})
		go func() { // ends with the payment, or with its service
			defer close(paid)
			_, _ = sides[0].Pay(t.Context(), payments.PayRequest{Invoice: i, Deadline: 30 * time.Second})
		}()
		if p != nil {
			select {
			case <-sides[side].store.Broken():
			case <-time.After(10 * time.Second): // bubble: this run does not come to the point
			}
			if p.call != sides[side].carrier.Dead() {
				t.Fatal("the run did not come to this point")
			}
			stopped := sides[side].stop()
			time.Sleep(p.away) // bubble: the node is away
			sides[side] = w.start(names[side], stopped)
		}
		<-paid
		// Everything is certain by then.
		time.Sleep(payments.ExpiresAfter(2) + 11*time.Minute) // bubble: late hold and all
		v, parts, err := sides[0].Payment(t.Context(), i.Hash)
		if err != nil {
			if p == nil || p.payee {
				t.Fatal(err)
			}
			v.Status = payments.StatusFailed // it was never saved, so that nothing left
		}
		for _, part := range parts {
			if part.Status.Lives() {
				t.Fatalf("part %d is not decided, and was certain by %v", part.ID, time.UnixMilli(part.CertainBy))
			}
		}
		invoices, err := sides[1].Invoices(t.Context())
		if err != nil || len(invoices) != 1 {
			t.Fatal(invoices, err)
		}
		inv := invoices[0]
		switch v.Status {
		case payments.StatusComplete:
			f.complete++
			if inv.Status != payments.InvoicePaid || inv.Received != tally.Amount(amount) || inv.Lost != 0 {
				t.Fatalf("complete at the payer, and at the payee %+v", inv)
			}
			w.settled(amount, fees)
		case payments.StatusFailed:
			f.failed++
			if inv.Status == payments.InvoicePaid || inv.Received != 0 {
				t.Fatalf("failed at the payer, and at the payee %+v", inv)
			}
			w.settled(0, 0)
		default:
			t.Fatalf("the payment is %v", v.Status)
		}
		if left, err := sides[1].PartialInvoices(t.Context(), nil); err != nil || len(left) != 0 {
			t.Fatal(left, err)
		}
		if _, kept := w.net.InFlight(); kept != 0 {
			t.Fatalf("%d parts are not forgotten", kept)
		}
		for k, n := range sides {
			commits[k], calls[k] = n.store.Commits()-before[k], n.carrier.Calls()
		}
	})
	return commits, calls
}

func arm(n *node, p *crashPoint, before int) {
	lose := func(s *durabletest.Crash) func() {
		return func() { s.CrashBefore(s.Commits() + 1) }
	}
	switch {
	case p.call:
		n.carrier.KillAt(p.at, p.after, lose(n.store))
	case p.after:
		n.store.CrashAfter(before + p.at)
	default:
		n.store.CrashBefore(before + p.at)
	}
}

func TestCrashMatrix(t *testing.T) {
	t.Run("invoice", func(t *testing.T) { crashMatrix(t, false) })
	t.Run("sale", func(t *testing.T) { crashMatrix(t, true) })
}

func crashMatrix(t *testing.T, sale bool) {
	commits, calls := crashRun(t, sale, nil, new(fates))
	if min(commits[0], commits[1], calls[0], calls[1]+1) < 2 {
		t.Fatalf("a run has only %v commits and %v calls", commits, calls)
	}
	var f fates
	for side := range 2 {
		for _, call := range []bool{false, true} {
			n := commits[side]
			if call {
				n = calls[side]
			}
			for at := 1; at <= n; at++ {
				for _, after := range []bool{false, true} {
					// Shorter than a part's time, and longer.
					for _, away := range []time.Duration{time.Second, 2 * time.Minute} {
						p := crashPoint{payee: side == 1, call: call, at: at, after: after, away: away, sale: sale}
						t.Run(p.String(), func(t *testing.T) { crashRun(t, sale, &p, &f) })
					}
				}
			}
		}
	}
	if f.complete == 0 || f.failed == 0 {
		t.Fatalf("%+v: both have to come up", f)
	}
	t.Logf("%+v", f)
}

// TestCrashAgainAndAgain stops both sides several times in one payment, at points
// drawn from a seed. Afterwards the two tables agree and the sums are right.
func TestCrashAgainAndAgain(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				rng := rand.New(rand.NewPCG(seed, 1))
				names := [2]string{"A", "D"}
				sides := [2]*node{w.start("A", nil), w.start("D", nil)}
				i := sides[1].invoice(t, payments.InvoiceRequest{Amount: 100})
				for range 1 + rng.IntN(6) {
					side := rng.IntN(2)
					n := sides[side]
					arm(n, &crashPoint{call: rng.IntN(2) == 0, at: n.carrier.Calls() + 1 + rng.IntN(3), after: rng.IntN(2) == 0}, n.store.Commits())
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.IntN(40_000))*time.Millisecond)
					go func() { // ends with the round
						select {
						case <-n.store.Broken():
							n.carrier.Stop() // its disk is the same: it decides nothing more
						case <-ctx.Done():
						}
					}()
					_, _ = sides[0].Pay(ctx, payments.PayRequest{Invoice: i, Deadline: 30 * time.Second})
					cancel()
					stopped := n.stop()
					time.Sleep(time.Duration(rng.IntN(90_000)) * time.Millisecond) // bubble: the node is away
					sides[side] = w.start(names[side], stopped)
				}
				time.Sleep(payments.ExpiresAfter(2) + 12*time.Minute) // bubble: everything is certain
				v, parts, err := sides[0].Payment(t.Context(), i.Hash)
				for _, part := range parts {
					if part.Status.Lives() {
						t.Fatalf("part %d is not decided", part.ID)
					}
				}
				invoices, err2 := sides[1].Invoices(t.Context())
				if err2 != nil || len(invoices) != 1 || invoices[0].Lost != 0 {
					t.Fatal(invoices, err2)
				}
				complete := err == nil && v.Status == payments.StatusComplete
				if paid := invoices[0].Status == payments.InvoicePaid; paid != complete {
					t.Fatalf("paid %t at the payee, complete %t at the payer: %+v", paid, complete, parts)
				}
				if complete {
					w.settled(tally.Balance(v.Claimed), tally.Balance(v.Fees))
				} else {
					w.settled(0, 0)
				}
				if invoices[0].Received != v.Claimed {
					t.Fatalf("received %d, claimed %d", invoices[0].Received, v.Claimed)
				}
			})
		})
	}
}
