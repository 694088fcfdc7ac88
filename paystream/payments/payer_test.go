package payments

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

const start int64 = 1_700_000_000_000

func secretOf(n byte) tally.Preimage { return tally.Preimage{n, 1} }
func hashOf(n byte) tally.Hashlock   { return secretOf(n).Hashlock() }
func idOf(n uint64) PartID           { return PartID{1, byte(n >> 16), byte(n >> 8), byte(n)} }

// payerRig is a payer and its disk.
type payerRig struct {
	t    failer
	core *Payer
	disk map[string][]byte
	now  int64
	ids  uint64
	// restarts: before each step.
	restarts bool
}

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func newPayerRig(t failer) *payerRig {
	return &payerRig{t: t, core: NewPayer(), disk: make(map[string][]byte), now: start}
}

// testOpens has a hash stand for a point.
func testOpens(y [33]byte, secret tally.Preimage) bool {
	return y[0] == 2 && secret.Hashlock() == tally.Hashlock(y[1:])
}

// step steps, saves, and checks the core and that saves come first.
func (r *payerRig) step(ev PayerEvent) ([]Effect, error) {
	r.t.Helper()
	if r.restarts {
		r.restart()
	}
	r.now++
	before := len(r.core.parts)
	fx, err := r.core.Step(r.now, &ev, nil)
	if err != nil && (len(fx) != 0 || len(r.core.parts) != before) {
		r.t.Fatalf("an error with effects: %v", err)
	}
	if e := r.core.Check(); e != nil {
		r.t.Fatalf("after %+v: %v", ev, e)
	}
	saveAll(r.t, r.disk, fx)
	return fx, err
}

// saveAll carries out saves, and looks that nothing comes before them.
func saveAll(t failer, disk map[string][]byte, fx []Effect) {
	t.Helper()
	other := false
	for _, f := range fx {
		switch {
		case f.Kind != FxSave:
			other = true
		case other:
			t.Fatalf("a save comes after a duty that it has to precede: %v", kindsOf(fx))
		case f.Record == nil:
			delete(disk, f.Key)
		default:
			disk[f.Key] = f.Record
		}
	}
}

func without(fx []Effect, kinds ...EffectKind) (rest []Effect) {
	for _, f := range fx {
		if !slices.Contains(kinds, f.Kind) {
			rest = append(rest, f)
		}
	}
	return rest
}

func kindsOf(fx []Effect) (kinds []EffectKind) {
	for _, f := range fx {
		kinds = append(kinds, f.Kind)
	}
	return kinds
}

// base is part 1, 40 of 100.
func (r *payerRig) base() *SendPart {
	r.ids++
	return &SendPart{
		Hash: hashOf(1), Dest: "payee", Secret: Secret{7}, Intended: 100, Number: 1, Amount: 40, Fee: 1,
		Via: []peer.ID{"hop"}, Expires: r.now + 70_000, CertainBy: r.now + 670_000, PartID: idOf(r.ids),
	}
}

func (r *payerRig) send(change func(*SendPart)) (Reply, []Effect, error) {
	r.t.Helper()
	c := r.base()
	if change != nil {
		change(c)
	}
	var reply Reply
	fx, err := r.step(PayerEvent{Kind: PayerSend, Send: c, Reply: &reply})
	return reply, fx, err
}

func (r *payerRig) must(change func(*SendPart)) Reply {
	r.t.Helper()
	reply, _, err := r.send(change)
	if err != nil {
		r.t.Fatalf("%v", err)
	}
	return reply
}

func (r *payerRig) fail(id uint64) []Effect {
	r.t.Helper()
	fx, err := r.step(PayerEvent{Kind: PayerRejected, PartID: r.core.parts[id].PartID, Failure: Failure{Code: FailHop}})
	if err != nil {
		r.t.Fatalf("%v", err)
	}
	return fx
}

func (r *payerRig) fulfil(id uint64) []Effect {
	r.t.Helper()
	part := r.core.parts[id]
	for n := range byte(8) {
		if hashOf(n) == part.Hash {
			fx, err := r.step(PayerEvent{Kind: PayerFulfilled, PartID: part.PartID, Preimage: secretOf(n)})
			if err != nil {
				r.t.Fatalf("%v", err)
			}
			return fx
		}
	}
	r.t.Fatalf("no preimage for part %d", id)
	return nil
}

func (r *payerRig) status() Status {
	v, _ := r.core.Payment(hashOf(1))
	return v.Status
}

func (r *payerRig) restart() {
	r.t.Helper()
	core, _, err := restoreAll(r.disk)
	if err != nil {
		r.t.Fatalf("%v", err)
	}
	r.core = core
}

// restoreAll is what the shell does at the start.
func restoreAll(disk map[string][]byte) (*Payer, *Payee, error) {
	payer, payee := NewPayer(), NewPayee()
	payer.curve, payee.curve = testOpens, testOpens
	for _, prefix := range restoreOrder {
		for _, key := range slices.Sorted(maps.Keys(disk)) {
			if len(key) >= len(prefix) && key[:len(prefix)] == prefix {
				_, payload, err := durable.Unseal(key, recordVersion, disk[key])
				if err == nil {
					err = restoreRecord(payer, payee, prefix, key, payload)
				}
				if err != nil {
					return nil, nil, err
				}
			}
		}
	}
	return payer, payee, errors.Join(payer.Check(), payee.Check())
}

// TestSendPartTable has a test for each row of the table of sendpartialpay.
func TestSendPartTable(t *testing.T) {
	part := func(n uint64, amount tally.Amount) func(*SendPart) {
		return func(c *SendPart) { c.Number, c.Amount = n, amount }
	}
	wants := func(t *testing.T, r *payerRig, change func(*SendPart), want Reply) {
		t.Helper()
		before := maps.Clone(r.disk)
		got, fx, err := r.send(change)
		if err != nil || got != want {
			t.Fatalf("got %+v, %v; want %+v", got, err, want)
		}
		sent := len(without(fx, FxSave)) > 0
		if sent != (want.Outcome == OutcomeSent) {
			t.Fatalf("effects %v", kindsOf(fx))
		}
		if !sent && !maps.EqualFunc(before, r.disk, slices.Equal[[]byte]) {
			t.Fatal("nothing was sent, and the tables have changed")
		}
	}
	conflict := func(t *testing.T, r *payerRig, change func(*SendPart)) {
		t.Helper()
		before := maps.Clone(r.disk)
		_, _, err := r.send(change)
		if !errors.Is(err, ErrConflict) {
			t.Fatalf("got %v, want error 201", err)
		}
		if !maps.EqualFunc(before, r.disk, slices.Equal[[]byte]) {
			t.Fatal("an error has changed the tables")
		}
	}
	rows := []struct {
		name string
		run  func(*testing.T, *payerRig)
	}{
		{"none: create and send", func(t *testing.T, r *payerRig) {
			reply, fx, err := r.send(nil)
			if err != nil || reply != (Reply{Outcome: OutcomeSent, ID: 1}) {
				t.Fatal(reply, err)
			}
			if got := kindsOf(fx); !slices.Equal(got, []EffectKind{FxSave, FxSave, FxSave, FxSend}) {
				t.Fatal(got)
			}
			s := fx[3]
			if d, err := OpenPart(&Secret{7}, hashOf(1), s.PartID, s.Data); err != nil || d != (PartData{Total: 100, Amount: 40, Number: 1}) {
				t.Fatal(d, err)
			}
			v, _ := r.core.Payment(hashOf(1))
			if v.Status != StatusPending || v.Group != 1 || v.Total != 100 || s.Part.Sent() != 41 || s.Dest != "payee" {
				t.Fatalf("%+v", v)
			}
		}},
		{"any: destination differs", func(t *testing.T, r *payerRig) {
			r.must(nil)
			conflict(t, r, func(c *SendPart) { c.Dest, c.Number = "other", 2 })
			r.fail(1)
			conflict(t, r, func(c *SendPart) { c.Dest = "other" })
			r.must(nil)
			r.fulfil(2)
			conflict(t, r, func(c *SendPart) { c.Dest = "other" })
		}},
		{"any: secret differs", func(t *testing.T, r *payerRig) {
			r.must(nil)
			conflict(t, r, func(c *SendPart) { c.Secret, c.Number = Secret{8}, 2 })
			r.fail(1)
			conflict(t, r, func(c *SendPart) { c.Secret = Secret{8} })
		}},
		{"pending: intended differs from total", func(t *testing.T, r *payerRig) {
			r.must(nil)
			conflict(t, r, func(c *SendPart) { c.Intended, c.Number = 101, 2 })
		}},
		{"pending: same part live, same content", func(t *testing.T, r *payerRig) {
			r.must(nil)
			wants(t, r, nil, Reply{Outcome: OutcomeLive, ID: 1})
		}},
		{"pending: same part live, other amount", func(t *testing.T, r *payerRig) {
			r.must(nil)
			conflict(t, r, part(1, 41))
		}},
		{"pending: same part live, other fee", func(t *testing.T, r *payerRig) {
			r.must(nil)
			conflict(t, r, func(c *SendPart) { c.Fee++ })
		}},
		{"pending: same part live, other route", func(t *testing.T, r *payerRig) {
			r.must(nil)
			conflict(t, r, func(c *SendPart) { c.Via = []peer.ID{"bypass"} })
		}},
		{"pending: same part, earlier row failed", func(t *testing.T, r *payerRig) {
			r.must(nil)
			r.must(part(2, 60))
			r.fail(1)
			wants(t, r, func(c *SendPart) { c.Via = []peer.ID{"bypass"} }, Reply{Outcome: OutcomeSent, ID: 3})
			if p, _ := r.core.Part(3); p.Group != 1 || p.Number != 1 {
				t.Fatalf("%+v", p)
			}
		}},
		{"pending: parts cover the total", func(t *testing.T, r *payerRig) {
			r.must(nil)
			r.must(part(2, 60))
			wants(t, r, part(3, 1), Reply{Outcome: OutcomeInProgress})
		}},
		{"pending: a failed part whose place others took", func(t *testing.T, r *payerRig) {
			r.must(nil)
			r.must(part(2, 60))
			r.fail(1)
			r.must(part(3, 40))
			wants(t, r, nil, Reply{Outcome: OutcomeInProgress})
		}},
		{"pending: otherwise, a new part", func(t *testing.T, r *payerRig) {
			r.must(nil)
			wants(t, r, part(2, 30), Reply{Outcome: OutcomeSent, ID: 2})
		}},
		{"complete: intended = total", func(t *testing.T, r *payerRig) {
			r.must(nil)
			r.must(part(2, 60))
			r.fulfil(2)
			wants(t, r, part(3, 5), Reply{Outcome: OutcomeComplete, ID: 2, Preimage: secretOf(1)})
		}},
		{"complete: intended differs", func(t *testing.T, r *payerRig) {
			r.must(nil)
			r.fulfil(1)
			conflict(t, r, func(c *SendPart) { c.Intended = 99 })
		}},
		{"failed: next group, total anew", func(t *testing.T, r *payerRig) {
			r.must(nil)
			r.fail(1)
			if r.status() != StatusFailed {
				t.Fatal(r.status())
			}
			wants(t, r, func(c *SendPart) { c.Intended, c.Amount = 80, 80 }, Reply{Outcome: OutcomeSent, ID: 2})
			v, _ := r.core.Payment(hashOf(1))
			if v.Group != 2 || v.Total != 80 || v.Status != StatusPending || v.Decided != 0 {
				t.Fatalf("%+v", v)
			}
		}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			row.run(t, newPayerRig(t))
		})
		// The table holds over a restart between any two commands as well.
		t.Run(row.name+" (restarted)", func(t *testing.T) {
			r := newPayerRig(t)
			r.restarts = true
			row.run(t, r)
		})
	}
}

// TestWakeOrder: payment waiters first, then part waiters, both after the save.
func TestWakeOrder(t *testing.T) {
	r := newPayerRig(t)
	r.must(nil)
	r.must(func(c *SendPart) { c.Number = 2 })
	if got := kindsOf(r.fail(1)); !slices.Equal(got, []EffectKind{FxSave, FxForget, FxWakePart}) {
		t.Fatalf("one of two parts failed: %v", got)
	}
	if r.status() != StatusPending {
		t.Fatal("a payment is reported failed while a part lives")
	}
	if got := kindsOf(r.fail(2)); !slices.Equal(got, []EffectKind{FxSave, FxSave, FxForget, FxWakePayment, FxWakePart}) {
		t.Fatalf("the last part failed: %v", got)
	}
	r.must(nil)
	if got := kindsOf(r.fulfil(3)); !slices.Equal(got, []EffectKind{FxSave, FxSave, FxForget, FxWakePayment, FxWakePart}) {
		t.Fatalf("complete: %v", got)
	}
}

// TestSuccessAlwaysWins: a preimage that comes after the failure was booked makes
// the payment complete, and a later failure of another part changes nothing.
func TestSuccessAlwaysWins(t *testing.T) {
	r := newPayerRig(t)
	r.must(nil)
	r.must(func(c *SendPart) { c.Number, c.Amount = 2, 60 })
	r.fail(1)
	r.fail(2)
	r.must(func(c *SendPart) { c.Intended, c.Amount = 100, 100 }) // group 2
	r.fulfil(1)
	r.fail(3)
	if r.status() != StatusComplete {
		t.Fatal(r.status())
	}
	r.restart()
	if r.status() != StatusComplete {
		t.Fatal("forgotten by a restart")
	}
}

// TestIDsAreNeverReused also not after a restart, and not a part id, whose key
// and nonce would seal a second plaintext.
func TestIDsAreNeverReused(t *testing.T) {
	r := newPayerRig(t)
	for i := range uint64(5) {
		if got := r.must(nil); got.ID != i+1 {
			t.Fatalf("id %d, want %d", got.ID, i+1)
		}
		r.fail(i + 1)
		r.restart()
	}
	_, _, err := r.send(func(c *SendPart) { c.PartID = idOf(1) })
	if !errors.Is(err, ErrInvalid) {
		t.Fatalf("a part id twice: %v", err)
	}
}

func TestSendPartBounds(t *testing.T) {
	r := newPayerRig(t)
	tests := map[string]func(*SendPart){
		"no payee":       func(c *SendPart) { c.Dest = "" },
		"zero":           func(c *SendPart) { c.Amount = 0 },
		"part > total":   func(c *SendPart) { c.Amount = 101 },
		"2^62":           func(c *SendPart) { c.Intended = MaxTotal },
		"fee overflow":   func(c *SendPart) { c.Fee = tally.MaxAmount },
		"expired":        func(c *SendPart) { c.Expires = r.now },
		"certain before": func(c *SendPart) { c.CertainBy = c.Expires - 1 },
		"long route":     func(c *SendPart) { c.Via = slices.Repeat([]peer.ID{"p"}, MaxVia+1) },
		"no part id":     func(c *SendPart) { c.PartID = PartID{} },
	}
	for name, change := range tests {
		if _, _, err := r.send(change); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.must(nil)
	if _, err := r.step(PayerEvent{Kind: PayerFulfilled, PartID: r.core.parts[1].PartID}); err == nil {
		t.Error("a wrong preimage was taken")
	}
}

// Test33rdPartIsNotSent by the payer while 32 live; when one has failed, there is
// room again.
func Test33rdPartIsNotSent(t *testing.T) {
	r := newPayerRig(t)
	small := func(n uint64) func(*SendPart) {
		return func(c *SendPart) { c.Intended, c.Number, c.Amount = 1000, n, 1 }
	}
	for n := range uint64(32) {
		r.must(small(n))
	}
	if _, _, err := r.send(small(32)); !errors.Is(err, ErrBound) {
		t.Fatal(err)
	}
	r.fail(1)
	r.must(small(32))
}

// TestAttemptsAreBounded: a group leaves a bounded number of rows behind.
func TestAttemptsAreBounded(t *testing.T) {
	r := newPayerRig(t)
	r.must(nil) // lives throughout, so that the group goes on
	for id := uint64(2); id <= MaxAttempts; id++ {
		r.must(func(c *SendPart) { c.Number = 2 })
		r.fail(id)
	}
	if _, _, err := r.send(func(c *SendPart) { c.Number = 2 }); !errors.Is(err, ErrBound) {
		t.Fatal(err)
	}
}

// modelPart is a part of the reference: nothing but its facts.
type modelPart struct {
	id, group, number uint64
	amount            tally.Amount
	state             PartStatus
}

// TestPayerModel compares the payer, restarted at random, with a reference that
// recounts everything.
func TestPayerModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newPayerRig(t)
		var parts []modelPart
		var group, next uint64 = 0, 1
		var total tally.Amount
		status := func() (s Status, covered tally.Amount) {
			s = StatusFailed
			for _, p := range parts {
				if p.state == PartComplete {
					return StatusComplete, 0
				}
				if p.group == group && p.state == PartCreated {
					s = StatusPending
					covered += p.amount
				}
			}
			return s, covered
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0, 1:
				intended := rapid.SampledFrom([]tally.Amount{100, 100, 100, 80}).Draw(t, "intended")
				number := rapid.Uint64Range(1, 3).Draw(t, "number")
				amount := rapid.SampledFrom([]tally.Amount{20, 40, 80}).Draw(t, "amount")
				reply, _, err := r.send(func(c *SendPart) { c.Intended, c.Number, c.Amount = intended, number, amount })
				s, covered := status()
				want, wantErr := Reply{Outcome: OutcomeSent, ID: next}, false
				i := slices.IndexFunc(parts, func(p modelPart) bool { return p.number == number && p.state == PartCreated })
				switch {
				case s == StatusFailed:
					group++
					total = intended
				case intended != total:
					wantErr = true
				case s == StatusComplete:
					j := slices.IndexFunc(parts, func(p modelPart) bool { return p.state == PartComplete })
					want = Reply{Outcome: OutcomeComplete, ID: parts[j].id, Preimage: secretOf(1)}
				case i >= 0 && parts[i].amount != amount:
					wantErr = true
				case i >= 0:
					want = Reply{Outcome: OutcomeLive, ID: parts[i].id}
				case covered >= total:
					want = Reply{Outcome: OutcomeInProgress}
				}
				if (err != nil) != wantErr || err == nil && reply != want {
					t.Fatalf("part %d of %d, %d: got %+v, %v; want %+v, error %t", number, intended, amount, reply, err, want, wantErr)
				}
				if err == nil && want.Outcome == OutcomeSent {
					parts = append(parts, modelPart{next, group, number, amount, PartCreated})
					next++
				}
			case 2:
				if len(parts) == 0 {
					continue
				}
				p := &parts[rapid.IntRange(0, len(parts)-1).Draw(t, "part")]
				if rapid.IntRange(0, 3).Draw(t, "end") == 0 {
					r.fulfil(p.id)
					p.state = PartComplete
				} else {
					r.fail(p.id)
					if p.state == PartCreated {
						p.state = PartFailed
					}
				}
			case 3:
				r.restart()
			}
			if s, _ := status(); len(parts) > 0 && r.status() != s {
				t.Fatalf("status %v, want %v", r.status(), s)
			}
			for _, p := range parts {
				if got, _ := r.core.Part(p.id); got.Status != p.state || got.Amount != p.amount || got.Group != p.group {
					t.Fatalf("%+v, want %+v", got, p)
				}
			}
		}
	})
}

// FuzzPayerStep feeds any bytes as commands and answers.
func FuzzPayerStep(f *testing.F) {
	f.Add([]byte{0, 40, 1, 0, 60, 2, 1, 1, 0, 2, 2, 0})
	f.Add([]byte{0, 100, 1, 2, 1, 0, 0, 100, 1, 3, 0, 0, 1, 2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newPayerRig(t)
		for ; len(b) >= 3; b = b[3:] {
			switch b[0] % 5 {
			case 0:
				_, _, _ = r.send(func(c *SendPart) {
					c.Amount, c.Number, c.Hash = tally.Amount(b[1]), uint64(b[2]%4), hashOf(b[2]%2)
					if b[2] > 200 {
						c.Intended = tally.Amount(b[2]) << (b[1] % 60)
					}
				})
			case 1:
				_, _ = r.step(PayerEvent{Kind: PayerFulfilled, PartID: idOf(uint64(b[1])), Preimage: secretOf(b[2] % 2)})
			case 2:
				_, _ = r.step(PayerEvent{Kind: PayerRejected, PartID: idOf(uint64(b[1])), Failure: Failure{Code: FailCode(b[2]), Hop: -1}})
			case 3:
				_, _ = r.step(PayerEvent{Kind: PayerLeft, PartID: idOf(uint64(b[1]))})
			case 4:
				r.restart()
			}
		}
	})
}

func ExampleError() {
	var err error = &Error{Code: CodeConflict, Reason: "the payment is pending, with total 100", Remedy: "use that total"}
	fmt.Println(err, errors.Is(err, ErrConflict))
	// Output: payments: the payment is pending, with total 100; use that total true
}
