package settler

import (
	"bytes"
	"testing"

	"github.com/filecoin-project/go-state-types/big"
	"pgregory.net/rapid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/paychtest"
	"github.com/tallystick/tally/swap"
)

func someBacking(t testing.TB) backing {
	t.Helper()
	w := paychtest.NewWallet("a")
	key := w.MustNew()
	sv, err := paych.Sign(t.Context(), w, key, &paych.SignedVoucher{ChannelAddr: key, Nonce: 3, Amount: units(345)})
	if err != nil {
		t.Fatal(err)
	}
	return backing{origin: 45, base: units(300), voucher: sv}
}

// A backing has one form: what decodes is written again byte for byte, and nothing
// that a peer sends panics us.
func FuzzDecodeBacking(f *testing.F) {
	good := someBacking(f)
	raw, err := good.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(raw))
	f.Add([]byte(raw[:len(raw)-1]))
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0})
	f.Add(bytes.Repeat([]byte{1}, swap.MaxBacking+1))
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := decodeBacking(in)
		if err != nil {
			return
		}
		out, err := b.encode()
		if err != nil || !bytes.Equal(out, in) {
			t.Errorf("%x was read and written as %x, %v", in, out, err)
		}
	})
}

// Records are read back as they were written, and a cut one is refused.
func TestRelationRecord(t *testing.T) {
	r := newRelation("peer")
	r.numbers = 7
	r.address = paychtest.NewWallet("p").MustNew()
	r.out = link{state: linkOpening, origin: 5, base: big.Zero(), number: 7}
	r.in = link{state: linkBound, channel: r.address, origin: 9, base: units(3)}
	raw := r.encode()
	got, err := decodeRelation("peer", raw)
	if err != nil || got.numbers != 7 || got.address != r.address || got.out.state != linkOpening || got.in.channel != r.address ||
		got.in.origin != 9 || !got.in.base.Equals(r.in.base) || got.out.number != 7 {
		t.Errorf("%+v, %v", got, err)
	}
	for n := range raw {
		if _, err := decodeRelation("peer", raw[:n]); err == nil {
			t.Errorf("%d of %d bytes are taken", n, len(raw))
		}
	}
}

// The conversion is exact for every cumulative, and the floor the other way.
func TestUnitsAreExact(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := link{
			origin: tally.Amount(rapid.Uint64Range(0, 1<<60).Draw(rt, "origin")),
			base:   big.NewIntUnsigned(rapid.Uint64().Draw(rt, "base")),
		}
		n := tally.Amount(rapid.Uint64Range(0, 1<<60).Draw(rt, "units"))
		atto, err := l.atto(l.origin + n)
		if err != nil {
			rt.Fatal(err)
		}
		if got := l.units(atto); got != l.origin+n {
			rt.Fatalf("%d became %v became %d", l.origin+n, atto, got)
		}
		dust := rapid.Uint64Range(0, AttoPerUnit-1).Draw(rt, "dust")
		if got := l.units(big.Add(atto, big.NewIntUnsigned(dust))); got != l.origin+n {
			rt.Fatalf("%d attoFIL over became a unit", dust)
		}
		if l.origin > 0 {
			if _, err := l.atto(l.origin - 1); err == nil {
				rt.Fatal("a cumulative below the origin has a voucher")
			}
		}
	})
}
