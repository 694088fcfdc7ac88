package locker

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/filecoin-project/go-address"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/adaptor"
	"github.com/tallystick/tally/paych/paychtest"
	"github.com/tallystick/tally/paystream/lock"
)

var update = flag.Bool("update", false, "write the vectors")

// The vectors of docs/protocol/lock.md: the four vouchers of one slot, and the digest
// of a lane before, under and after a lock.
func TestLockVectors(t *testing.T) {
	ctx := context.Background()
	payer, payee := paychtest.NewWallet("payer"), paychtest.NewWallet("payee")
	from, to := payer.MustNew(), payee.MustNew()
	ch, err := address.NewActorAddress([]byte("a channel of the vectors"))
	if err != nil {
		t.Fatal(err)
	}
	preimage := tally.Preimage{31: 1}
	var b strings.Builder
	line := func(name, value string) { fmt.Fprintf(&b, "%-16s %s\n", name, value) }
	line("channel", ch.String())
	line("payer", from.String())
	line("payee", to.String())
	line("preimage", preimage.Hex())
	line("hash", preimage.Hashlock().String())

	terms := lock.Terms{Finality: 5, Inclusion: 20, Grace: 10, SettleDelay: 1440, Margin: 480, Extension: 1440, Slots: 64}
	vouchers := []struct {
		name   string
		v      lock.Voucher
		kind   lock.Kind
		wallet *paychtest.Wallet
		signer address.Address
	}{
		{"lock", lock.Voucher{Lane: 1, Nonce: 1, Amount: 700, Locked: true, Hash: preimage.Hashlock(), Expires: 5000}, lock.KindLock, payer, from},
		{"unlock", lock.Voucher{Lane: 1, Nonce: 2, Amount: 700}, lock.KindPlain, payer, from},
		{"cancel", lock.Voucher{Lane: 1, Nonce: 2, Amount: 0}, lock.KindPlain, payee, to},
		{"guard", lock.Voucher{Lane: 65, Nonce: 1, MinSettle: 5480}, lock.KindGuard, payer, from},
	}
	for _, x := range vouchers {
		s := spec(&x.v)
		sv := &paych.SignedVoucher{
			ChannelAddr: ch, Lane: s.Lane, Nonce: s.Nonce, Amount: s.Amount, TimeLockMax: s.TimeLockMax, MinSettleHeight: s.MinSettleHeight,
		}
		if s.Lock != nil {
			sv.SecretHash = s.Lock[:]
		}
		signed, err := paych.Sign(ctx, x.wallet, x.signer, sv)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := paych.EncodeVoucher(signed)
		if err != nil {
			t.Fatal(err)
		}
		_, got, err := decode(raw)
		got.Raw = ""
		if err != nil || got != x.v || terms.KindOf(&got) != x.kind {
			t.Errorf("%s reads as %+v: %v", x.name, got, err)
		}
		line(x.name, hex.EncodeToString(raw))
	}

	side := lock.New(lock.Payer, terms)
	step := func(ev lock.Event) {
		t.Helper()
		if _, err := side.Step(4000, &ev, nil); err != nil {
			t.Fatal(err)
		}
	}
	digest := func(name string) {
		st := side.States()[0]
		line("nonce "+name, fmt.Sprint(st.Nonce))
		line("digest "+name, hex.EncodeToString(st.Digest[:]))
	}
	step(lock.Event{Kind: lock.EvChain, Head: lock.View{Height: 4000}, Final: lock.View{Height: 3995}})
	step(lock.Event{Kind: lock.EvOffer, ID: 9, Amount: 700, Hash: preimage.Hashlock(), Expires: 4900})
	digest("locked")
	line("record locked", hex.EncodeToString(side.Record(1)))
	v := vouchers[0].v
	v.Expires, v.Raw = 4900, "signed"
	step(lock.Event{Kind: lock.EvSigned, ID: 9, Voucher: v})
	step(lock.Event{Kind: lock.EvPreimage, ID: 9, Preimage: preimage})
	v = vouchers[1].v
	v.Raw = "signed"
	step(lock.Event{Kind: lock.EvSigned, ID: 9, Voucher: v})
	step(lock.Event{Kind: lock.EvUnlockAcked, ID: 9})
	digest("paid")
	pointVectors(t, payer, ch, from, terms, line)

	const file = "testdata/vectors.txt"
	if *update {
		if err := os.MkdirAll("testdata", 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(b.String()), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != b.String() {
		t.Errorf("the vectors changed; run with -update and say so in docs/protocol/lock.md:\n%s", b.String())
	}
}

// pointVectors are those of a lock under a point: the LOCK as it travels, the voucher that
// it is completed to, and the digest of its lane.
func pointVectors(t *testing.T, payer *paychtest.Wallet, ch, from address.Address, terms lock.Terms, line func(name, value string)) {
	t.Helper()
	secret := adaptor.Secret{31: 2}
	y, err := secret.Point()
	if err != nil {
		t.Fatal(err)
	}
	first, x, err := lock.PointOf(y)
	if err != nil {
		t.Fatal(err)
	}
	want := lock.Voucher{Lane: 1, Nonce: 1, Amount: 700, Hash: x, Point: first, Expires: 4900}
	pt := pointTerms(&want)
	pt.Channel, pt.From = ch, from
	l, err := paych.SignPointLock(t.Context(), payer, &pt)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := paych.EncodePointLock(l)
	if err != nil {
		t.Fatal(err)
	}
	terms.OpensPoint = opensPoint
	_, got, err := decodePoint(raw)
	got.Raw = ""
	if err != nil || got != want || terms.KindOf(&got) != lock.KindPoint {
		t.Errorf("reads as %+v: %v", got, err)
	}
	done, err := l.Complete(&secret)
	if err != nil {
		t.Fatal(err)
	}
	completed, err := paych.EncodeVoucher(done)
	if err != nil {
		t.Fatal(err)
	}
	line("secret", secret.Hex())
	line("point", y.String())
	line("point lock", hex.EncodeToString(raw))
	line("completed", hex.EncodeToString(completed))
	side := lock.New(lock.Payer, terms)
	for _, ev := range []lock.Event{
		{Kind: lock.EvChain, Head: lock.View{Height: 4000}, Final: lock.View{Height: 3995}},
		{Kind: lock.EvOffer, ID: 9, Amount: 700, Hash: x, Point: first, Expires: 4900},
	} {
		if _, err := side.Step(4000, &ev, nil); err != nil {
			t.Fatal(err)
		}
	}
	digest := side.States()[0].Digest
	line("digest point", hex.EncodeToString(digest[:]))
	line("record point", hex.EncodeToString(side.Record(1)))
}

// Amounts that are no whole units, and forms that no slot knows, are refused.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{0x8b})
	if all, err := os.ReadFile("testdata/vectors.txt"); err == nil {
		for text := range strings.FieldsSeq(string(all)) {
			if raw, err := hex.DecodeString(text); err == nil {
				f.Add(raw)
			}
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if p, v, err := decodePoint(raw); err == nil &&
			(!atto(v.Amount).Equals(p.Voucher.Amount) || v.Raw != string(raw) || v.Locked || pointOf(v.Point, v.Hash) != p.Point) {
			t.Fatalf("a lock under %s reads as %+v", p.Point, v)
		}
		sv, v, err := decode(raw)
		if err != nil {
			return
		}
		if !atto(v.Amount).Equals(sv.Amount) || v.Raw != string(raw) {
			t.Fatalf("%v attoFIL read as %d units", sv.Amount, v.Amount)
		}
	})
}
