package paych_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	filbig "github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/actor"
	"github.com/tallystick/tally/paych/adaptor"
	"github.com/tallystick/tally/paych/wallet"
)

var _ paych.PointWallet = (*wallet.Mem)(nil)

func pointTerms(t testing.TB) (*paych.PointTerms, adaptor.Secret) {
	t.Helper()
	secret, err := adaptor.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	y, err := secret.Point()
	if err != nil {
		t.Fatal(err)
	}
	return &paych.PointTerms{
		Channel: channel(t), From: keyAddress(t, testKey), Lane: 3, Nonce: 8,
		Base: filbig.NewInt(500), Amount: filbig.NewInt(70), Until: 1000, Point: y,
	}, secret
}

func pointLock(t testing.TB, terms *paych.PointTerms) *paych.PointLock {
	t.Helper()
	l, err := paych.SignPointLock(context.Background(), wallet.NewMem(testKey), terms)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestPointLock: the payee completes the lock, the chain's own rules take the
// voucher, and the payer finds the secret in what the chain saw.
func TestPointLock(t *testing.T) {
	terms, secret := pointTerms(t)
	l := pointLock(t, terms)
	if err := l.Check(terms); err != nil {
		t.Fatal(err)
	}
	sv, err := l.Complete(&secret)
	if err != nil {
		t.Fatal(err)
	}
	if err := paych.Verify(sv, terms.From); err != nil {
		t.Fatal(err)
	}
	if l.Voucher.Signature != nil {
		t.Fatal("the lock itself was changed")
	}

	payee, err := address.NewIDAddress(101)
	if err != nil {
		t.Fatal(err)
	}
	payer, err := address.NewIDAddress(100)
	if err != nil {
		t.Fatal(err)
	}
	env := actor.Env{
		Self: terms.Channel,
		Resolve: func(a address.Address) (address.Address, bool) {
			if a == terms.From {
				return payer, true
			}
			return a, a == terms.Channel
		},
		Verify: func(signer address.Address, sig crypto.Signature, msg []byte) error {
			if signer != payer {
				return errors.New("another signer")
			}
			return paych.VerifySignature(&sig, terms.From, msg)
		},
	}
	st := actor.Construct(payer, payee, env).State
	apply := func(epoch abi.ChainEpoch) actor.Result {
		return actor.Apply(st, filbig.NewInt(1000), epoch, 100, payee,
			actor.Msg{Method: actor.MethodUpdateChannelState, Update: &actor.UpdateChannelState{Sv: *sv}}, env)
	}
	if r := apply(terms.Until); r.ExitCode != 0 || !r.State.ToSend.Equals(filbig.NewInt(570)) {
		t.Fatalf("at its last epoch: %v, %v", r.ExitCode, r.Err)
	}
	if r := apply(terms.Until + 1); r.ExitCode == 0 {
		t.Fatal("taken after its expiry")
	}
	if got, err := l.Recover(sv); err != nil || got != secret {
		t.Fatalf("recovered another secret: %v", err)
	}
}

// TestPointLockRule: every field that the rule does not name is empty, and every
// one that it names is as agreed.
func TestPointLockRule(t *testing.T) {
	terms, _ := pointTerms(t)
	other, otherSecret := pointTerms(t)
	// resigned is a lock whose signature is good for whatever it says.
	resigned := func(change func(*paych.SignedVoucher)) *paych.PointLock {
		l := *pointLock(t, terms)
		change(&l.Voucher)
		msg, err := paych.SigningBytes(&l.Voucher)
		if err != nil {
			t.Fatal(err)
		}
		l.Adaptor, l.Payer, err = wallet.NewMem(testKey).SignUnder(t.Context(), terms.From, msg, terms.Point)
		if err != nil {
			t.Fatal(err)
		}
		return &l
	}
	voucher := func(change func(*paych.SignedVoucher)) func() error {
		return func() error { return resigned(change).Check(terms) }
	}
	if err := voucher(func(*paych.SignedVoucher) {})(); err != nil {
		t.Fatal(err)
	}
	for name, check := range map[string]func() error{
		"channel":       voucher(func(sv *paych.SignedVoucher) { sv.ChannelAddr = terms.From }),
		"lane":          voucher(func(sv *paych.SignedVoucher) { sv.Lane++ }),
		"nonce below":   voucher(func(sv *paych.SignedVoucher) { sv.Nonce-- }),
		"nonce above":   voucher(func(sv *paych.SignedVoucher) { sv.Nonce++ }),
		"amount below":  voucher(func(sv *paych.SignedVoucher) { sv.Amount = filbig.NewInt(569) }),
		"amount above":  voucher(func(sv *paych.SignedVoucher) { sv.Amount = filbig.NewInt(571) }),
		"too late":      voucher(func(sv *paych.SignedVoucher) { sv.TimeLockMax++ }),
		"too early":     voucher(func(sv *paych.SignedVoucher) { sv.TimeLockMax-- }),
		"not yet":       voucher(func(sv *paych.SignedVoucher) { sv.TimeLockMin = 1 }),
		"hash lock":     voucher(func(sv *paych.SignedVoucher) { sv.SecretHash = bytes.Repeat([]byte{1}, 32) }),
		"settle height": voucher(func(sv *paych.SignedVoucher) { sv.MinSettleHeight = 1 }),
		"merge":         voucher(func(sv *paych.SignedVoucher) { sv.Merges = []paych.Merge{{Lane: 1, Nonce: 1}} }),
		"extra":         voucher(func(sv *paych.SignedVoucher) { sv.Extra = &paych.ModVerifyParams{Actor: terms.From, Method: 2} }),
		"in the open": func() error {
			l := *pointLock(t, terms)
			l.Voucher.Signature = &crypto.Signature{}
			return l.Check(terms)
		},
		"another point":  func() error { l := *pointLock(t, other); return l.Check(terms) },
		"foreign key":    func() error { l := *pointLock(t, terms); l.Payer = terms.Point; return l.Check(terms) },
		"no key":         func() error { l := *pointLock(t, terms); l.Payer = adaptor.Point{}; return l.Check(terms) },
		"another payer":  func() error { w := *terms; w.From = channel(t); return pointLock(t, terms).Check(&w) },
		"no amount":      func() error { w := *terms; w.Amount = filbig.Zero(); return pointLock(t, terms).Check(&w) },
		"negative base":  func() error { w := *terms; w.Base = filbig.NewInt(-1); return pointLock(t, terms).Check(&w) },
		"no expiry":      func() error { w := *terms; w.Until = 0; return pointLock(t, terms).Check(&w) },
		"terms of nonce": func() error { w := *terms; w.Nonce = 0; return pointLock(t, terms).Check(&w) },
	} {
		if err := check(); !errors.Is(err, paych.ErrPointLock) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range adaptor.Size {
		l := *pointLock(t, terms)
		l.Adaptor[i] ^= 1
		if l.Check(terms) == nil {
			t.Fatalf("byte %d of the signature may change", i)
		}
	}

	l := pointLock(t, terms)
	if _, err := l.Complete(&otherSecret); !errors.Is(err, adaptor.ErrWrongSecret) {
		t.Errorf("completed with another secret: %v", err)
	}
	if _, err := l.Recover(signed(t)); !errors.Is(err, paych.ErrPointLock) {
		t.Errorf("recovered from another voucher: %v", err)
	}
	// The payer's own signature of the same voucher in the open tells nothing.
	open, err := paych.Sign(t.Context(), wallet.NewMem(testKey), terms.From, &l.Voucher)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Recover(open); !errors.Is(err, adaptor.ErrWrongSecret) {
		t.Errorf("recovered from another signature: %v", err)
	}
	if _, err := l.Recover(&l.Voucher); !errors.Is(err, paych.ErrSignature) {
		t.Errorf("recovered from no signature: %v", err)
	}
}

// A point lock has one form in bytes, which is told from a voucher's by its first.
func TestPointLockBytes(t *testing.T) {
	terms, _ := pointTerms(t)
	l := pointLock(t, terms)
	raw, err := paych.EncodePointLock(l)
	if err != nil || !paych.IsPointLock(raw) || len(raw) > 330 {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	again, err := paych.DecodePointLock(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Check(terms); err != nil {
		t.Fatal(err)
	}
	sv, err := paych.EncodeVoucher(signed(t))
	if err != nil || paych.IsPointLock(sv) || paych.IsPointLock(nil) {
		t.Fatal(err)
	}
	open, err := paych.Sign(t.Context(), wallet.NewMem(testKey), terms.From, &l.Voucher)
	if err != nil {
		t.Fatal(err)
	}
	inTheOpen, err := paych.EncodeVoucher(open)
	if err != nil {
		t.Fatal(err)
	}
	const head = 1 + 2*35 + 164
	changed := func(i int, b byte) []byte {
		c := bytes.Clone(raw)
		c[i] = b
		return c
	}
	for name, bad := range map[string][]byte{
		"empty":          nil,
		"a voucher":      sv,
		"the head alone": raw[:head],
		"cut off":        raw[:len(raw)-1],
		"trailing":       append(bytes.Clone(raw), 0),
		"too long":       append(bytes.Clone(raw), make([]byte, paych.MaxPointLockSize)...),
		"no point":       changed(3, 4),
		"no key":         changed(38, 5),
		"a long length":  changed(1, 0x59),
		"another length": changed(2, 32),
		"no number":      append(append(bytes.Clone(raw[:73+66]), bytes.Repeat([]byte{0xff}, 32)...), raw[73+98:]...),
		"signed":         append(bytes.Clone(raw[:head]), inTheOpen...),
	} {
		if _, err := paych.DecodePointLock(bad); !errors.Is(err, paych.ErrVoucherFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	l.Voucher.Signature = open.Signature
	if _, err := paych.EncodePointLock(l); !errors.Is(err, paych.ErrPointLock) {
		t.Errorf("encoded with a signature: %v", err)
	}
	if _, err := paych.EncodePointLock(nil); !errors.Is(err, paych.ErrPointLock) {
		t.Errorf("encoded nothing: %v", err)
	}
}

func FuzzDecodePointLock(f *testing.F) {
	terms, _ := pointTerms(f)
	raw, err := paych.EncodePointLock(pointLock(f, terms))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:len(raw)-1])
	f.Add([]byte{0x84, 0x58, 33})
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := paych.DecodePointLock(raw)
		if err != nil {
			return
		}
		again, err := paych.EncodePointLock(l)
		if err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("%x\nis written as\n%x %v", raw, again, err)
		}
	})
}
