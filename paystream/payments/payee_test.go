package payments

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/tallystick/tally"
)

// payeeRig is a payee and its disk.
type payeeRig struct {
	t    failer
	core *Payee
	disk map[string][]byte
	now  int64
	ids  uint64
}

func newPayeeRig(t failer) *payeeRig {
	return &payeeRig{t: t, core: NewPayee(), disk: make(map[string][]byte), now: start}
}

func (r *payeeRig) step(ev PayeeEvent) ([]Effect, error) {
	r.t.Helper()
	fx, err := r.core.Step(r.now, &ev, nil)
	if err != nil && len(fx) != 0 {
		r.t.Fatalf("an error with effects: %v", err)
	}
	if e := r.core.Check(); e != nil {
		r.t.Fatalf("after %+v: %v", ev, e)
	}
	saveAll(r.t, r.disk, fx)
	return fx, err
}

func (r *payeeRig) must(ev PayeeEvent) []Effect {
	r.t.Helper()
	fx, err := r.step(ev)
	if err != nil {
		r.t.Fatalf("%v", err)
	}
	return fx
}

func (r *payeeRig) restart() {
	r.t.Helper()
	_, core, err := restoreAll(r.disk)
	if err != nil {
		r.t.Fatalf("%v", err)
	}
	r.core = core
}

// invoice hands out invoice n for 100.
func (r *payeeRig) invoice(n byte, change func(*Receivable)) {
	r.t.Helper()
	inv := &Receivable{
		Hash: hashOf(n), Secret: Secret{n}, Amount: 100, Expires: r.now + 3_600_000, Known: true, Preimage: secretOf(n),
	}
	if change != nil {
		change(inv)
	}
	r.must(PayeeEvent{Kind: PayeeAdd, Invoice: inv})
}

// arrival is a part of invoice n as an honest payer sends it.
func (r *payeeRig) arrival(n byte, amount tally.Amount, d PartData) *Arrival {
	r.ids++
	id := idOf(r.ids)
	if d.Total == 0 {
		d.Total = 100
	}
	if d.Amount == 0 {
		d.Amount = amount
	}
	return &Arrival{
		PartID: id, Hash: hashOf(n), From: "hop", Amount: amount, Expires: r.now + ExpiresAfter(0).Milliseconds(),
		Data: SealPart(&Secret{n}, hashOf(n), id, d),
	}
}

// part brings one and returns its id and what follows, without the saves.
func (r *payeeRig) part(n byte, amount tally.Amount, change func(*Arrival)) (PartID, []Effect) {
	r.t.Helper()
	a := r.arrival(n, amount, PartData{})
	if change != nil {
		change(a)
	}
	return a.PartID, without(r.must(PayeeEvent{Kind: PayeePart, Arrival: a}), FxSave)
}

func (r *payeeRig) tick() []Effect {
	r.t.Helper()
	return without(r.must(PayeeEvent{Kind: PayeeTick}), FxSave)
}

func (r *payeeRig) view(n byte) InvoiceView {
	v, _ := r.core.Invoice(r.now, hashOf(n))
	return v
}

func rejects(fx []Effect, code FailCode, ids ...PartID) bool {
	if len(fx) != len(ids) {
		return false
	}
	for i, id := range ids {
		if fx[i].Kind != FxReject || fx[i].PartID != id || fx[i].Code != code {
			return false
		}
	}
	return true
}

func claims(fx []Effect, preimage tally.Preimage, ids ...PartID) bool {
	if len(fx) != len(ids)+1 || fx[len(ids)].Kind != FxWakeInvoice {
		return false
	}
	for i, id := range ids {
		if fx[i].Kind != FxFulfil || fx[i].PartID != id || fx[i].Preimage != preimage {
			return false
		}
	}
	return true
}

// TestClaim: nothing is claimed before the sum is here, then all at once, and the
// payee's table of partial invoices is empty again.
func TestClaim(t *testing.T) {
	r := newPayeeRig(t)
	r.invoice(1, nil)
	a, fx := r.part(1, 40, nil)
	if len(fx) != 0 {
		t.Fatal(fx)
	}
	r.now += 10
	lines := r.core.Partial(nil)
	if len(lines) != 1 || lines[0].Total != 100 || lines[0].Amount != 40 || lines[0].From != "hop" ||
		lines[0].Received != start || lines[0].Deadline != start+60_000 {
		t.Fatalf("%+v", lines)
	}
	b, fx := r.part(1, 60, nil)
	if !claims(fx, secretOf(1), a, b) {
		t.Fatal(fx)
	}
	if v := r.view(1); v.Status != InvoicePaid || v.Received != 100 || v.PaidAt != r.now || len(r.core.Partial(nil)) != 0 {
		t.Fatalf("%+v", v)
	}
	for _, id := range []PartID{a, b} {
		r.must(PayeeEvent{Kind: PayeeDone, PartID: id})
	}
	if len(r.core.Arrived()) != 0 || len(r.disk) != 1 {
		t.Fatal("rows are left")
	}
}

// TestAssemblyDeadline: 60 s from the first part, to the millisecond, and not
// prolonged by a later one nor by a restart.
func TestAssemblyDeadline(t *testing.T) {
	for _, restart := range []bool{false, true} {
		when := ""
		if restart {
			when = ", restarted"
		}
		begin := func() (r *payeeRig, a, b PartID) {
			r = newPayeeRig(t)
			r.invoice(1, nil)
			long := func(x *Arrival) { x.Expires += 60_000 }
			a, _ = r.part(1, 40, long)
			r.now = start + 30_000
			b, _ = r.part(1, 30, long)
			if restart {
				r.restart()
			}
			return r, a, b
		}
		t.Run("-1 ms claims"+when, func(t *testing.T) {
			r, a, b := begin()
			r.now = start + 59_999
			if fx := r.tick(); len(fx) != 0 {
				t.Fatal(fx)
			}
			c, fx := r.part(1, 30, nil)
			if !claims(fx, secretOf(1), a, b, c) {
				t.Fatal(fx)
			}
			r.now += 2
			if fx := r.tick(); len(fx) != 0 || r.view(1).Status != InvoicePaid {
				t.Fatal("timed out after the claim")
			}
		})
		t.Run("+1 ms gives back"+when, func(t *testing.T) {
			r, a, b := begin()
			if next, ok := r.core.Next(); !ok || next != start+60_000 {
				t.Fatal(next, ok)
			}
			r.now = start + 60_001
			if fx := r.tick(); !rejects(fx, FailTimeout, a, b) {
				t.Fatal(fx)
			}
			// What comes now begins anew, and does not complete what is gone.
			if _, fx := r.part(1, 30, nil); len(fx) != 0 || r.view(1).Waiting != 30 || r.view(1).First != r.now {
				t.Fatal(fx, r.view(1))
			}
		})
		t.Run("+0 ms gives back, also before the tick"+when, func(t *testing.T) {
			r, a, b := begin()
			r.now = start + 60_000
			_, fx := r.part(1, 30, nil)
			if !rejects(fx, FailTimeout, a, b) || r.view(1).Status != InvoiceOpen {
				t.Fatal(fx)
			}
		})
	}
}

// TestClaimAndTimeoutExcludeEachOther at every moment around the deadline, in
// either order of the last part and the tick: all parts claimed, or none.
func TestClaimAndTimeoutExcludeEachOther(t *testing.T) {
	for at := start + 59_990; at <= start+60_010; at++ {
		for _, tickFirst := range []bool{false, true} {
			r := newPayeeRig(t)
			r.invoice(1, nil)
			r.part(1, 40, nil)
			r.now = at
			var fx []Effect
			if tickFirst {
				fx = r.tick()
			}
			_, more := r.part(1, 60, nil)
			fx = append(append(fx, more...), r.tick()...)
			fulfils, rejected := 0, 0
			for _, f := range fx {
				switch f.Kind {
				case FxFulfil:
					fulfils++
				case FxReject:
					rejected++
				}
			}
			if before := at < start+60_000; before && (fulfils != 2 || rejected != 0) || !before && (fulfils != 0 || rejected != 1) {
				t.Fatalf("at %d: %d fulfilled, %d rejected", at-start, fulfils, rejected)
			}
		}
	}
}

func TestPartsWithoutTimeAreNotClaimed(t *testing.T) {
	r := newPayeeRig(t)
	r.invoice(1, nil)
	short, _ := r.part(1, 40, func(a *Arrival) { a.Expires = r.now + 10_000 })
	r.now += 5_001
	// The other part would complete the sum, but nobody honours the first for sure.
	other, fx := r.part(1, 60, nil)
	if !rejects(fx, FailTimeout, short) || r.view(1).Waiting != 60 {
		t.Fatal(fx)
	}
	if id, fx := r.part(1, 40, func(a *Arrival) { a.Expires = r.now + marginMS - 1 }); !rejects(fx, FailRefused, id) {
		t.Fatal(fx)
	}
	third, fx := r.part(1, 40, func(a *Arrival) { a.Expires = r.now + marginMS })
	if !claims(fx, secretOf(1), other, third) {
		t.Fatal(fx)
	}
}

// TestOneAnswer: whatever is wrong, the payer learns the same and nothing is kept.
func TestOneAnswer(t *testing.T) {
	arrives := func(f func(*Arrival)) func(*payeeRig) func(*Arrival) {
		return func(*payeeRig) func(*Arrival) { return f }
	}
	says := func(d PartData) func(*payeeRig) func(*Arrival) {
		return arrives(func(a *Arrival) { a.Data = SealPart(&Secret{1}, a.Hash, a.PartID, d) })
	}
	tests := map[string]func(*payeeRig) func(*Arrival){
		"unknown hash":   arrives(func(a *Arrival) { a.Hash = hashOf(9) }),
		"wrong secret":   arrives(func(a *Arrival) { a.Data = SealPart(&Secret{2}, a.Hash, a.PartID, PartData{100, 40, 1}) }),
		"no data":        arrives(func(a *Arrival) { a.Data = nil }),
		"long data":      arrives(func(a *Arrival) { a.Data = make([]byte, 32<<10) }),
		"other part's":   arrives(func(a *Arrival) { a.PartID[15]++ }),
		"zero of part":   says(PartData{100, 0, 1}),
		"zero total":     says(PartData{0, 40, 1}),
		"total below":    says(PartData{99, 40, 1}),
		"total above 2x": says(PartData{201, 40, 1}),
		"total 2^62":     says(PartData{MaxTotal, 40, 1}),
		"amount 2^62":    arrives(func(a *Arrival) { a.Amount = MaxTotal }),
		"2^64-1":         arrives(func(a *Arrival) { a.Amount = tally.MaxAmount }),
		"expired part":   arrives(func(a *Arrival) { a.Expires = start }),
		"expired invoice": func(r *payeeRig) func(*Arrival) {
			r.now = r.view(1).Expires
			return func(a *Arrival) { a.Expires = r.now + 65_000 }
		},
		"cancelled": func(r *payeeRig) func(*Arrival) {
			r.must(PayeeEvent{Kind: PayeeCancel, Hash: hashOf(1)})
			return nil
		},
		"paid": func(r *payeeRig) func(*Arrival) { r.part(1, 100, nil); return nil },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			r := newPayeeRig(t)
			r.invoice(1, nil)
			f := change(r)
			parts, disk := len(r.core.Arrived()), maps.Clone(r.disk)
			id, fx := r.part(1, 40, f)
			if !rejects(fx, FailRefused, id) {
				t.Fatalf("%v", kindsOf(fx))
			}
			if len(r.core.Arrived()) != parts || !maps.EqualFunc(disk, r.disk, slices.Equal[[]byte]) {
				t.Fatal("something was kept")
			}
		})
	}
}

// TestOtherTotalRejectsTheNewcomerOnly: nobody ends a payment by a part of its own.
func TestOtherTotalRejectsTheNewcomerOnly(t *testing.T) {
	r := newPayeeRig(t)
	r.invoice(1, nil)
	a, _ := r.part(1, 40, nil)
	odd := r.arrival(1, 60, PartData{Total: 120})
	if fx := without(r.must(PayeeEvent{Kind: PayeePart, Arrival: odd}), FxSave); !rejects(fx, FailRefused, odd.PartID) {
		t.Fatal(fx)
	}
	b, fx := r.part(1, 60, nil)
	if !claims(fx, secretOf(1), a, b) {
		t.Fatal(fx)
	}
}

// TestOverpayment: up to twice the total is taken, more is not.
func TestOverpayment(t *testing.T) {
	r := newPayeeRig(t)
	r.invoice(1, nil)
	a, _ := r.part(1, 99, nil)
	if id, fx := r.part(1, 102, nil); !rejects(fx, FailRefused, id) {
		t.Fatal(fx)
	}
	b, fx := r.part(1, 101, nil)
	if !claims(fx, secretOf(1), a, b) || r.view(1).Received != 200 {
		t.Fatal(fx)
	}
}

// Test33rdPartIsRefused at the payee, and the 32 before it go on waiting.
func Test33rdPartIsRefused(t *testing.T) {
	r := newPayeeRig(t)
	r.invoice(1, nil)
	for range 32 {
		if _, fx := r.part(1, 1, nil); len(fx) != 0 {
			t.Fatal(fx)
		}
	}
	if id, fx := r.part(1, 1, nil); !rejects(fx, FailRefused, id) || r.view(1).Parts != 32 {
		t.Fatal(fx)
	}
}

// TestPartBelowItsAmount: of a part that says that 40 are to arrive, 39 are refused,
// because a hop kept more than its fee; 41 are taken, and count as 41.
func TestPartBelowItsAmount(t *testing.T) {
	r := newPayeeRig(t)
	r.invoice(1, nil)
	bring := func(arrived tally.Amount) (PartID, []Effect) {
		a := r.arrival(1, arrived, PartData{Amount: 40})
		return a.PartID, without(r.must(PayeeEvent{Kind: PayeePart, Arrival: a}), FxSave)
	}
	if id, fx := bring(39); !rejects(fx, FailRefused, id) || r.view(1).Parts != 0 {
		t.Fatal(fx)
	}
	if _, fx := bring(41); len(fx) != 0 || r.view(1).Waiting != 41 {
		t.Fatal(fx, r.view(1))
	}
}

// TestDuplicateParts: a part that its carrier tells again counts once; of one that
// is decided the decision is told again.
func TestDuplicateParts(t *testing.T) {
	r := newPayeeRig(t)
	r.invoice(1, nil)
	a := r.arrival(1, 60, PartData{})
	for range 3 {
		if fx := without(r.must(PayeeEvent{Kind: PayeePart, Arrival: a}), FxSave); len(fx) != 0 || r.view(1).Waiting != 60 {
			t.Fatal(fx)
		}
		r.restart()
	}
	b := r.arrival(1, 40, PartData{})
	r.must(PayeeEvent{Kind: PayeePart, Arrival: b})
	r.restart()
	fx := without(r.must(PayeeEvent{Kind: PayeePart, Arrival: b}), FxSave)
	if len(fx) != 1 || fx[0].Kind != FxFulfil || fx[0].PartID != b.PartID {
		t.Fatal(fx)
	}
	// The same number of the payer's under another part id is another part.
	r.invoice(2, nil)
	r.part(2, 50, nil)
	if _, fx := r.part(2, 50, nil); len(fx) != 3 {
		t.Fatal(fx)
	}
}

// TestClaimingIsToldAgain: after a restart claimed parts are fulfilled again and
// rejected ones rejected, until the carrier has saved it; the time is over for
// neither.
func TestClaimingIsToldAgain(t *testing.T) {
	r := newPayeeRig(t)
	r.invoice(1, nil)
	a, _ := r.part(1, 100, nil)
	r.invoice(2, nil)
	b, _ := r.part(2, 10, nil)
	r.now += 60_000
	r.tick()
	for range 2 {
		r.restart()
		fx := r.must(PayeeEvent{Kind: PayeeRestart})
		if len(fx) != 2 || fx[0].Kind != FxFulfil || fx[0].PartID != a || fx[0].Preimage != secretOf(1) ||
			fx[1].Kind != FxReject || fx[1].PartID != b || fx[1].Code != FailTimeout {
			t.Fatalf("%+v", fx)
		}
		r.now += 3_600_000
		if fx := r.tick(); len(fx) != 0 {
			t.Fatal(fx)
		}
	}
	r.must(PayeeEvent{Kind: PayeeDone, PartID: a})
	r.must(PayeeEvent{Kind: PayeeDone, PartID: b})
	r.restart()
	if fx := r.must(PayeeEvent{Kind: PayeeRestart}); len(fx) != 0 {
		t.Fatal(fx)
	}
}

// TestTwoPayersOneHash: parts of both count, the invoice is claimed once, and
// nobody pays more than it sent.
func TestTwoPayersOneHash(t *testing.T) {
	r := newPayeeRig(t)
	r.invoice(1, nil)
	a, _ := r.part(1, 60, func(a *Arrival) { a.From = "one" })
	b, fx := r.part(1, 60, func(a *Arrival) { a.From = "two" })
	if !claims(fx, secretOf(1), a, b) || r.view(1).Received != 120 {
		t.Fatal(fx)
	}
	for _, from := range []peer.ID{"one", "two"} {
		if id, fx := r.part(1, 40, func(a *Arrival) { a.From = from }); !rejects(fx, FailRefused, id) {
			t.Fatal(fx)
		}
	}
}

// TestSameHashPaidTwice: the second payment is rejected whole, and a second
// invoice with the hash is not made.
func TestSameHashPaidTwice(t *testing.T) {
	r := newPayeeRig(t)
	r.invoice(1, nil)
	r.part(1, 100, nil)
	if id, fx := r.part(1, 100, nil); !rejects(fx, FailRefused, id) || r.view(1).Received != 100 {
		t.Fatal(fx)
	}
	_, err := r.step(PayeeEvent{Kind: PayeeAdd, Invoice: &Receivable{Hash: hashOf(1), Expires: r.now + 1, Known: true, Preimage: secretOf(1)}})
	if !errors.Is(err, ErrConflict) {
		t.Fatal(err)
	}
}

func TestAnyAmount(t *testing.T) {
	r := newPayeeRig(t)
	r.invoice(1, func(i *Receivable) { i.Amount = 0 })
	a := r.arrival(1, 300, PartData{Total: 700})
	r.must(PayeeEvent{Kind: PayeePart, Arrival: a})
	b := r.arrival(1, 400, PartData{Total: 700})
	if fx := without(r.must(PayeeEvent{Kind: PayeePart, Arrival: b}), FxSave); !claims(fx, secretOf(1), a.PartID, b.PartID) {
		t.Fatal(fx)
	}
}

// TestStartedBeforeExpiry: an invoice that expires while its parts come is still
// paid by them.
func TestStartedBeforeExpiry(t *testing.T) {
	r := newPayeeRig(t)
	r.invoice(1, func(i *Receivable) { i.Expires = r.now + 1000 })
	a, _ := r.part(1, 40, nil)
	r.now += 2000
	b, fx := r.part(1, 60, nil)
	if !claims(fx, secretOf(1), a, b) {
		t.Fatal(fx)
	}
	if r.invoice(2, func(i *Receivable) { i.Expires = r.now + 1000 }); r.view(2).Status != InvoiceOpen {
		t.Fatal(r.view(2))
	}
	if r.now += 1000; r.view(2).Status != InvoiceExpired {
		t.Fatal(r.view(2))
	}
}

// TestHoldInvoice: all parts are here and wait for the operator, beyond 60 s, but
// not beyond their time.
func TestHoldInvoice(t *testing.T) {
	begin := func() (r *payeeRig, a, b PartID) {
		r = newPayeeRig(t)
		r.invoice(1, func(i *Receivable) { i.Hold, i.Known, i.Preimage = true, false, tally.Preimage{} })
		a, _ = r.part(1, 40, func(a *Arrival) { a.Expires = start + 300_000 })
		b, fx := r.part(1, 60, func(a *Arrival) { a.Expires = start + 310_000 })
		if len(fx) != 1 || fx[0].Kind != FxWakeInvoice || r.view(1).Status != InvoiceHeld {
			t.Fatal(fx)
		}
		r.restart()
		r.now = start + 120_000
		if fx := r.tick(); len(fx) != 0 {
			t.Fatal(fx)
		}
		return r, a, b
	}
	t.Run("settle", func(t *testing.T) {
		r, a, b := begin()
		if _, err := r.step(PayeeEvent{Kind: PayeeSettle, Hash: hashOf(1), Preimage: secretOf(2)}); !errors.Is(err, ErrInvalid) {
			t.Fatal(err)
		}
		if id, fx := r.part(1, 1, nil); !rejects(fx, FailRefused, id) {
			t.Fatal(fx)
		}
		fx := without(r.must(PayeeEvent{Kind: PayeeSettle, Hash: hashOf(1), Preimage: secretOf(1)}), FxSave)
		if !claims(fx, secretOf(1), a, b) {
			t.Fatal(fx)
		}
		if _, err := r.step(PayeeEvent{Kind: PayeeCancel, Hash: hashOf(1)}); !errors.Is(err, ErrConflict) {
			t.Fatal(err)
		}
		r.restart()
		if r.view(1).Preimage != secretOf(1) {
			t.Fatal("the preimage is lost")
		}
	})
	t.Run("cancel", func(t *testing.T) {
		r, a, b := begin()
		fx := without(r.must(PayeeEvent{Kind: PayeeCancel, Hash: hashOf(1)}), FxSave, FxWakeInvoice)
		if !rejects(fx, FailRefused, a, b) {
			t.Fatal(fx)
		}
		if _, err := r.step(PayeeEvent{Kind: PayeeSettle, Hash: hashOf(1), Preimage: secretOf(1)}); !errors.Is(err, ErrConflict) {
			t.Fatal(err)
		}
	})
	t.Run("fails whole by itself when one part has no time left", func(t *testing.T) {
		r, a, b := begin()
		next, _ := r.core.Next()
		if r.now = next - 1; len(r.tick()) != 0 {
			t.Fatal("too early")
		}
		r.now = next
		if _, err := r.step(PayeeEvent{Kind: PayeeSettle, Hash: hashOf(1), Preimage: secretOf(1)}); !errors.Is(err, ErrConflict) {
			t.Fatal(err)
		}
		if fx := without(r.tick(), FxWakeInvoice); !rejects(fx, FailTimeout, a, b) || next != start+300_000-marginMS+1 {
			t.Fatal(fx, next-start)
		}
		if r.view(1).Status != InvoiceOpen {
			t.Fatal(r.view(1))
		}
	})
}

// TestCarrierLosesAPart: what waited is not counted any more; what was claimed and
// cannot be collected is told, and stays on the invoice.
func TestCarrierLosesAPart(t *testing.T) {
	r := newPayeeRig(t)
	r.invoice(1, nil)
	a, _ := r.part(1, 40, nil)
	if fx := without(r.must(PayeeEvent{Kind: PayeeGone, PartID: a}), FxSave); len(fx) != 0 || r.view(1).Waiting != 0 {
		t.Fatal(fx)
	}
	if _, fx := r.part(1, 60, nil); len(fx) != 0 {
		t.Fatal("a part that is gone was counted")
	}
	b, fx := r.part(1, 40, nil)
	if len(fx) != 3 {
		t.Fatal(fx)
	}
	fx = without(r.must(PayeeEvent{Kind: PayeeGone, PartID: b}), FxSave)
	if len(fx) != 1 || fx[0].Kind != FxLost || fx[0].Amount != 40 || r.view(1).Lost != 40 {
		t.Fatal(fx)
	}
	r.restart()
	if r.view(1).Lost != 40 {
		t.Fatal("forgotten")
	}
}

// TestPayeeModel compares the payee, restarted at random, with sums that are
// counted anew: per invoice what was fulfilled is 0 or at least the amount and at
// most twice, and every part has one end.
func TestPayeeModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newPayeeRig(t)
		r.invoice(1, nil)
		r.invoice(2, func(i *Receivable) { i.Hold = true })
		type fate struct {
			n      byte
			amount tally.Amount
			end    EffectKind
		}
		fates := make(map[PartID]*fate)
		note := func(fx []Effect) {
			for _, f := range fx {
				if f.Kind != FxFulfil && f.Kind != FxReject {
					continue
				}
				x := fates[f.PartID]
				if x.end != 0 && x.end != f.Kind {
					t.Fatalf("part %s ended twice, in two ways", f.PartID)
				}
				x.end = f.Kind
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			n := byte(rapid.IntRange(1, 2).Draw(t, "invoice"))
			switch rapid.IntRange(0, 7).Draw(t, "what") {
			case 0, 1, 2:
				amount := rapid.SampledFrom([]tally.Amount{10, 35, 50, 120}).Draw(t, "amount")
				total := rapid.SampledFrom([]tally.Amount{100, 100, 150}).Draw(t, "total")
				a := r.arrival(n, amount, PartData{Total: total})
				a.Expires = r.now + rapid.Int64Range(1000, 120_000).Draw(t, "expires")
				fates[a.PartID] = &fate{n: n, amount: amount}
				note(r.must(PayeeEvent{Kind: PayeePart, Arrival: a}))
			case 3:
				r.now += rapid.Int64Range(0, 70_000).Draw(t, "wait")
				note(r.must(PayeeEvent{Kind: PayeeTick}))
				if next, ok := r.core.Next(); ok && next <= r.now {
					t.Fatalf("due at %d, ticked at %d", next-start, r.now-start)
				}
			case 4:
				fx, _ := r.step(PayeeEvent{Kind: PayeeSettle, Hash: hashOf(n)})
				note(fx)
			case 5:
				if rapid.IntRange(0, 5).Draw(t, "really") == 0 {
					fx, _ := r.step(PayeeEvent{Kind: PayeeCancel, Hash: hashOf(n)})
					note(fx)
				}
			case 6:
				r.restart()
				note(r.must(PayeeEvent{Kind: PayeeRestart}))
			case 7:
				for _, id := range r.core.Arrived() {
					if fates[id].end != 0 {
						r.must(PayeeEvent{Kind: PayeeDone, PartID: id})
					}
				}
			}
		}
		for n := range byte(3) {
			var sum tally.Amount
			for _, f := range fates {
				if f.n == n && f.end == FxFulfil {
					sum += f.amount
				}
			}
			if v := r.view(n); sum != v.Received || sum > 0 && sum < 100 || sum > 300 {
				t.Fatalf("invoice %d: fulfilled %d, received %d", n, sum, v.Received)
			}
		}
	})
}

// FuzzPayeeStep feeds any bytes as parts and commands.
func FuzzPayeeStep(f *testing.F) {
	f.Add([]byte{0, 40, 1, 0, 60, 1, 1, 0, 0, 2, 60, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newPayeeRig(t)
		r.invoice(1, nil)
		r.invoice(2, func(i *Receivable) { i.Hold = true })
		for ; len(b) >= 3; b = b[3:] {
			n := b[2] % 3
			switch b[0] % 8 {
			case 0:
				r.part(n, tally.Amount(b[1]), nil)
			case 1:
				r.part(n, tally.Amount(b[1])<<(b[2]%64), func(a *Arrival) { a.Expires = r.now + int64(b[1])*500 })
			case 2:
				r.now += int64(b[1]) * 1000
				r.tick()
			case 3:
				_, _ = r.step(PayeeEvent{Kind: PayeeSettle, Hash: hashOf(n), Preimage: secretOf(b[1])})
			case 4:
				_, _ = r.step(PayeeEvent{Kind: PayeeCancel, Hash: hashOf(n)})
			case 5:
				r.must(PayeeEvent{Kind: PayeeDone, PartID: idOf(uint64(b[1]))})
			case 6:
				r.must(PayeeEvent{Kind: PayeeGone, PartID: idOf(uint64(b[1]))})
			case 7:
				r.restart()
			}
		}
	})
}
