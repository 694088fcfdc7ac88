package lock

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/tallystick/tally"
)

// pointTerms are those of shells that know points. The curve does not matter here: a
// point is 2 or 3, and the hash of its secret.
func pointTerms() Terms {
	t := filecoin()
	t.OpensPoint = func(y [33]byte, secret tally.Preimage) bool { return secret.Opens(tally.Hashlock(y[1:])) }
	return t
}

func pointOffer(id uint64, amount tally.Amount) Event {
	return Event{Kind: EvOffer, ID: id, Amount: amount, Hash: pre(byte(id)).Hashlock(), Point: 2 + byte(id%2), Expires: 200}
}

// A point lock lives as a hash lock does; its LOCK has no hash, and the same bytes go
// out again.
func TestPointLockLives(t *testing.T) {
	amounts := map[uint64]tally.Amount{1: 50, 2: 70}
	payer, payee := newEnd(t, Payer, pointTerms()), newEnd(t, Payee, pointTerms())
	payer.must(pointOffer(1, 50))
	first := slices.Clone(payer.out)
	if v := first[0].Voucher; v.Locked || v.Point != 3 || v.Nonce != 1 || v.Amount != 50 || v.Expires != 200 || v.Raw == "" {
		t.Fatalf("%+v", v)
	}
	payer.must(Event{Kind: EvSync})
	if again := payer.out[len(payer.out)-1]; again != first[0] {
		t.Fatalf("%+v\nagain %+v", first[0], again)
	}
	payer.out = first
	talk(t, payer, payee, amounts)
	if list := payee.s.Locks(); len(list) != 1 || list[0].Point != 3 || list[0].Hash != pre(1).Hashlock() || payee.told(FxTaken) != 1 {
		t.Fatal(list)
	}
	if !slices.Equal(payer.s.States(), payee.s.States()) {
		t.Fatal("the two do not have the same of the lane")
	}
	payer.restart()
	payee.restart()
	if err := payee.step(Event{Kind: EvFulfil, ID: 1, Preimage: pre(2)}); !errors.Is(err, ErrPreimage) {
		t.Fatal(err)
	}
	payee.must(Event{Kind: EvFulfil, ID: 1, Preimage: pre(1)})
	if err := payer.step(Event{Kind: EvPreimage, ID: 1, Preimage: pre(2)}); !errors.Is(err, ErrPreimage) {
		t.Fatal(err)
	}
	talk(t, payer, payee, amounts)
	if payer.told(FxFulfilled) != 1 || payee.told(FxEnded) != 1 || payee.told(FxSecret) != 1 {
		t.Fatal(payer.said, payee.said)
	}
	// And it is given up as one.
	payer.must(pointOffer(2, 70))
	talk(t, payer, payee, amounts)
	payee.must(Event{Kind: EvGive, ID: 2})
	talk(t, payer, payee, amounts)
	if paid, pending := payer.s.Totals(); paid != 50 || pending != 0 || payer.told(FxFailed) != 1 {
		t.Fatal(paid, pending)
	}
	// A hash lock finds the slot empty of it.
	payer.must(Event{Kind: EvOffer, ID: 3, Amount: 1, Hash: pre(3).Hashlock(), Expires: 200})
	if l := payer.s.Locks(); len(l) != 1 || l[0].Point != 0 {
		t.Fatal(l)
	}
}

// The chain shows the secret of a point lock by a signature, which the shell has
// recovered it from.
func TestPointOnTheChain(t *testing.T) {
	payer, payee := newEnd(t, Payer, pointTerms()), newEnd(t, Payee, pointTerms())
	payer.must(pointOffer(1, 50))
	talk(t, payer, payee, map[uint64]tally.Amount{1: 50})
	payee.must(Event{Kind: EvFulfil, ID: 1, Preimage: pre(1)})
	payee.now = 180 // nobody answers: T − S
	payee.must(Event{Kind: EvChain, Head: View{Height: 180}, Final: View{Height: 175}})
	i := slices.IndexFunc(payee.said, func(f Effect) bool { return f.Kind == FxSubmit })
	if i < 0 || payee.said[i].Voucher.Point != 3 || payee.said[i].Preimage != pre(1) {
		t.Fatalf("%+v", payee.said)
	}
	secret := pre(1)
	id, ok := payer.s.Open(&secret)
	if other := pre(2); !ok || id != 1 {
		t.Fatal(id, ok)
	} else if _, ok := payer.s.Open(&other); ok {
		t.Fatal("opened by another secret")
	}
	payer.now = 190
	payer.must(Event{Kind: EvPreimage, ID: 1, Preimage: secret, OnChain: true})
	if payer.told(FxFulfilled) != 1 {
		t.Fatal(payer.said)
	}
}

func TestPointRefused(t *testing.T) {
	lock := func(point byte, locked bool) Event {
		return Event{Kind: EvLock, ID: 1, Amount: 5, Voucher: Voucher{
			Lane: 2, Nonce: 1, Amount: 5, Locked: locked, Hash: pre(1).Hashlock(), Point: point, Expires: 200,
		}}
	}
	for name, c := range map[string]struct {
		role  Role
		terms Terms
		ev    Event
		want  error
	}{
		"no curve, offered":   {Payer, filecoin(), pointOffer(1, 5), ErrPoint},
		"no curve, taken":     {Payee, filecoin(), lock(2, false), ErrPoint},
		"no point":            {Payee, pointTerms(), lock(0, false), ErrPoint},
		"infinity":            {Payee, pointTerms(), lock(1, false), ErrPoint},
		"uncompressed":        {Payee, pointTerms(), lock(4, false), ErrPoint},
		"hash and point":      {Payee, pointTerms(), lock(2, true), ErrPoint},
		"uncompressed, offer": {Payer, pointTerms(), Event{Kind: EvOffer, ID: 1, Amount: 5, Point: 4, Expires: 200}, ErrPoint},
	} {
		e := newEnd(t, c.role, c.terms)
		if err := e.step(c.ev); !errors.Is(err, c.want) || len(e.s.Locks()) != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The other point of one x is another lock.
	payer, payee := newEnd(t, Payer, pointTerms()), newEnd(t, Payee, pointTerms())
	ev := pointOffer(1, 5)
	payer.must(ev)
	ev.Point ^= 1
	if err := payer.step(ev); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
	payee.must(lock(2, false))
	if err := payee.step(lock(3, false)); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
	if err := payee.step(lock(0, true)); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
}

// A record says which kind it is; a run without the curve does not read a point's.
func TestPointRecord(t *testing.T) {
	s := newEnd(t, Payer, pointTerms())
	s.must(pointOffer(1, 5))
	rec := s.s.Record(1)
	again := New(Payer, pointTerms())
	if err := again.Restore(1, rec); err != nil || !bytes.Equal(again.Record(1), rec) || again.slots[0].point != 3 {
		t.Fatal(err)
	}
	if err := New(Payer, filecoin()).Restore(1, rec); !errors.Is(err, ErrRecord) {
		t.Error(err)
	}
	for _, kind := range [...]byte{1, 4} {
		bad := slices.Clone(rec)
		bad[87] = kind
		if err := New(Payer, pointTerms()).Restore(1, bad); !errors.Is(err, ErrRecord) {
			t.Error(kind, err)
		}
	}
	other := slices.Clone(rec)
	other[87] = 2
	if err := again.Restore(1, other); err != nil || again.slots[0].digest() == s.s.slots[0].digest() {
		t.Error("the digest does not tell the point's sign", err)
	}
	hash := slices.Clone(rec)
	hash[87] = 0
	if err := again.Restore(1, hash); err != nil || again.slots[0].digest() == s.s.slots[0].digest() {
		t.Error("the digest does not tell a point from a hash", err)
	}
}

func TestPointOf(t *testing.T) {
	y := [33]byte{3, 7, 32: 9}
	first, x, err := PointOf(y)
	if err != nil || first != 3 || x[0] != 7 || x[31] != 9 {
		t.Error(first, x, err)
	}
	for _, b := range [...]byte{0, 1, 4} {
		if _, _, err := PointOf([33]byte{b}); !errors.Is(err, ErrForm) {
			t.Error(b, err)
		}
	}
}
