package paych

import (
	"bytes"
	"crypto/rand"
	"errors"
	"flag"
	"os"
	"testing"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"gitlab.com/yawning/secp256k1-voi/secec"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych/adaptor"
)

// testPoints are points with their secrets, and testAdaptor a signature that is one by
// its form alone: whose it is and of what, the core does not look.
var (
	testPoints  = [2]testPoint{newTestPoint(5), newTestPoint(6)}
	testAdaptor = func() adaptor.Signature {
		key, err := secec.NewPrivateKey(bytes.Repeat([]byte{0x42}, 32))
		if err != nil {
			panic(err)
		}
		sig, err := adaptor.Encrypt(bytes.NewReader(make([]byte, 32)), key, [32]byte{1}, testPoints[0].point)
		if err != nil {
			panic(err)
		}
		return sig
	}()
)

type testPoint struct {
	secret tally.Preimage
	point  adaptor.Point
}

func newTestPoint(n byte) testPoint {
	y := adaptor.Secret{31: n}
	p, err := y.Point()
	if err != nil {
		panic(err)
	}
	return testPoint{tally.Preimage(y), p}
}

func testLock(nonce uint64, amount int64, until abi.ChainEpoch) *PointLock {
	y := &testPoints[0]
	return &PointLock{
		Voucher: SignedVoucher{ChannelAddr: testAddr, Lane: 1, Nonce: nonce, Amount: big.NewInt(amount), TimeLockMax: until},
		Payer:   testPoints[1].point, Point: y.point, Adaptor: testAdaptor,
	}
}

// A lock under a point counts as one under a hash does, at each step of its life.
func TestPointClaimCounts(t *testing.T) {
	p, q := openChannel(PCHOutbound, 100), openChannel(PCHInbound, 100)
	y := &testPoints[0]
	lock := tally.Preimage{1}.Hashlock()
	draft := func(lane uint64, locked bool) (*SignedVoucher, error) {
		ev := evDraft{Spec: VoucherSpec{Lane: lane, Nonce: 5, Amount: big.NewInt(40), TimeLockMax: 150}}
		if locked {
			ev.Spec.Lock = &lock
		} else {
			ev.Point = y.point
		}
		fx, err := p.Step(100, ev)
		if err != nil {
			return nil, err
		}
		return fx[0].Voucher, nil
	}
	hash, err := draft(2, true)
	if err != nil {
		t.Fatal(err)
	}
	mustStep(p, 100, evSigned{Voucher: signedBy(hash, "payer")})
	point, err := draft(1, false)
	if err != nil {
		t.Fatal(err)
	}
	if f := p.Funds(); f.Redeemed.Int64() != 80 {
		t.Errorf("V is %v while it is being signed", f.Redeemed)
	}
	if _, err := p.Step(100, evDraft{Point: y.point, Spec: VoucherSpec{Lane: 1, Nonce: 5, Amount: big.NewInt(40), TimeLockMax: 150}}); !errors.Is(err, ErrUnderWay) {
		t.Errorf("asked for while it is being signed: %v", err)
	}
	l := &PointLock{Voucher: *point, Payer: y.point, Point: y.point, Adaptor: testAdaptor}
	mustStep(p, 100, evSigned{Voucher: point, Under: l})
	if _, err := draft(3, false); !errors.Is(err, ErrShortfall) {
		t.Errorf("beyond the balance: %v", err)
	}
	mustStep(q, 100, evReceive{Voucher: signedBy(hash, "payer"), MinDelta: big.Zero()})
	mustStep(q, 100, evReceive{Voucher: clone(point), Under: l.clone(), MinDelta: big.Zero()})
	for _, c := range []*Channel{p, q} {
		for _, lane := range [...]uint64{1, 2} {
			if x := c.Lanes[lane]; x.Nonce != 5 || x.Agreed.Sign() != 0 || x.reachHead.Int64() != 40 || x.worth.Sign() != 0 || len(x.Claims) != 1 {
				t.Errorf("%s, lane %d: %+v", c.Direction, lane, x)
			}
		}
	}
	// Again: held, to the last bit; with another bit it is another one's nonce.
	fx := mustStep(q, 100, evReceive{Voucher: clone(point), Under: l.clone(), MinDelta: big.Zero()})
	if len(fx) != 1 || fx[0].Amount.Sign() != 0 {
		t.Errorf("%+v", fx)
	}
	for name, change := range map[string]func(*PointLock){
		"signature": func(l *PointLock) { l.Adaptor[0] ^= 1 },
		"point":     func(l *PointLock) { l.Point = testPoints[1].point },
		"amount":    func(l *PointLock) { l.Voucher.Amount = big.NewInt(41) },
	} {
		other := l.clone()
		change(other)
		if _, err := q.Step(100, evReceive{Voucher: clone(&other.Voucher), Under: other, MinDelta: big.Zero()}); !errors.Is(err, ErrNonce) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	// A plain voucher of the same words is no answer to who asks for one.
	if _, err := p.Step(100, evDraft{Spec: VoucherSpec{Lane: 1, Nonce: 5, Amount: big.NewInt(40), TimeLockMax: 150, Again: true}}); !errors.Is(err, ErrNonce) {
		t.Errorf("a plain one: %v", err)
	}
	fx = mustStep(p, 100, evDraft{Point: y.point, Spec: VoucherSpec{Lane: 1, Nonce: 5, Amount: big.NewInt(40), TimeLockMax: 150}})
	if fx[0].Kind != FxAnswer || fx[0].Under != l {
		t.Errorf("%+v", fx)
	}
	for name, change := range map[string]func(*evDraft){
		"amount": func(ev *evDraft) { ev.Spec.Amount = big.NewInt(41) },
		"end":    func(ev *evDraft) { ev.Spec.TimeLockMax++ },
		"point":  func(ev *evDraft) { ev.Point = testPoints[1].point },
	} {
		ev := evDraft{Point: y.point, Spec: VoucherSpec{Lane: 1, Nonce: 5, Amount: big.NewInt(40), TimeLockMax: 150}}
		change(&ev)
		if _, err := p.Step(100, ev); !errors.Is(err, ErrNonce) {
			t.Errorf("another %s under the nonce: %v", name, err)
		}
	}
	// The secret: it is worth its amount, and goes to the chain as the hash lock does,
	// but shows no preimage there.
	done := signedBy(point, "payer")
	mustStep(q, 100, evSecret{Preimage: y.secret, Under: map[*PointLock]*SignedVoucher{q.Lanes[1].Claims[0].Under: done}})
	mustStep(q, 100, evSecret{Preimage: tally.Preimage{1}})
	if q.worth().Int64() != 80 {
		t.Errorf("worth %v", q.worth())
	}
	v := snapshot{View: q.Head}
	v.Height = 146 // at T − S
	fx = mustStep(q, 146, evViewed{Head: v, Deep: v})
	submitted := map[uint64]Effect{}
	for _, f := range fx {
		if f.Kind == FxSubmit {
			submitted[f.Lane] = f
		}
	}
	if f := submitted[1]; f.Voucher != done || f.Secret != nil {
		t.Errorf("%+v", f)
	}
	if f := submitted[2]; f.Voucher == nil || f.Secret == nil {
		t.Errorf("%+v", f)
	}
	if _, err := q.Step(100, evDraft{Point: y.point, Spec: VoucherSpec{Lane: 4, Nonce: 1, Amount: big.NewInt(1), TimeLockMax: 150}}); !errors.Is(err, ErrInbound) {
		t.Errorf("given by the payee: %v", err)
	}
	if _, err := p.Step(100, evReceive{Voucher: clone(point), Under: l.clone()}); !errors.Is(err, ErrOutbound) {
		t.Errorf("taken by the payer: %v", err)
	}
	if _, err := q.Step(100, evImport{Voucher: clone(point), Under: l.clone()}); !errors.Is(err, ErrInbound) {
		t.Errorf("taken back by the payee: %v", err)
	}
	if err := errors.Join(p.Check(), q.Check()); err != nil {
		t.Error(err)
	}
}

// The invariant of a claim under a point sees what would pay for nothing.
func TestPointClaimInvariant(t *testing.T) {
	y := &testPoints[0]
	for name, change := range map[string]func(cl *Claim){
		"opened, not signed": func(cl *Claim) { cl.Secret = &y.secret },
		"signed, not opened": func(cl *Claim) { cl.Voucher = signedBy(cl.Voucher, "payer") },
		"another voucher":    func(cl *Claim) { cl.Voucher = clone(cl.Voucher); cl.Voucher.Nonce++ },
		"no voucher":         func(cl *Claim) { cl.Voucher = nil },
		"not locked":         func(cl *Claim) { cl.Locked = false },
	} {
		c := openChannel(PCHInbound, 100)
		l := testLock(1, 40, 150)
		mustStep(c, 100, evReceive{Voucher: clone(&l.Voucher), Under: l, MinDelta: big.Zero()})
		if err := c.Check(); err != nil {
			t.Fatal(err)
		}
		change(&c.Lanes[1].Claims[0])
		c.touch(c.Lanes[1])
		if c.Check() == nil {
			t.Errorf("%s passes", name)
		}
	}
}

var updateRecord = flag.Bool("update-record", false, "write the golden record of a lane")

// A lane with a lock under a point has one form on disk, version 2; without one it has
// the form that it always had.
func TestPointLaneRecord(t *testing.T) {
	build := func() *Lane {
		c := openChannel(PCHInbound, 100)
		for _, l := range [...]*PointLock{testLock(3, 40, 150), testLock(5, 50, 160)} {
			mustStep(c, 100, evReceive{Voucher: clone(&l.Voucher), Under: l, MinDelta: big.Zero()})
		}
		l := c.Lanes[1]
		first := l.Claims[0].Under
		mustStep(c, 100, evSecret{Preimage: testPoints[0].secret, Under: map[*PointLock]*SignedVoucher{first: signedBy(&first.Voucher, "payer")}})
		return l
	}
	version, rec, err := encodeLane(build())
	if err != nil || version != 2 {
		t.Fatal(version, err)
	}
	const file = "testdata/lane-v2.bin"
	if *updateRecord {
		if err := os.WriteFile(file, rec, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(rec, want) {
		t.Errorf("the record changed, %d bytes: it takes a new version, and this one is read as before: %v", len(rec), err)
	}
	l, err := decodeLane(2, rec)
	if err != nil {
		t.Fatal(err)
	}
	if again, raw, err := encodeLane(l); err != nil || again != 2 || !bytes.Equal(raw, rec) {
		t.Error("not read as it was written", err)
	}
	opened, closed := &l.Claims[0], &l.Claims[1]
	if opened.Secret == nil || *opened.Secret != testPoints[0].secret || opened.Voucher.Signature == nil || !opened.Locked ||
		closed.Secret != nil || closed.Voucher.Signature != nil || !closed.Locked || closed.Under.Point != testPoints[0].point {
		t.Errorf("%+v\n%+v", opened, closed)
	}
	plain := newLane(1)
	plain.Claims = []Claim{{Nonce: 1, Amount: big.NewInt(1), Voucher: payerVoucher(1, 1, 1)}}
	if version, _, err := encodeLane(plain); err != nil || version != 1 {
		t.Error(version, err)
	}
	// A lock of one voucher beside another, and a secret of another point.
	bad := build()
	bad.Claims[1].Voucher = clone(bad.Claims[1].Voucher)
	bad.Claims[1].Voucher.Amount = big.NewInt(51)
	wrong := build()
	wrong.Claims[0].Secret = &testPoints[1].secret
	bare := build()
	bare.Claims[1].Under = nil
	for name, l := range map[string]*Lane{"another voucher": bad, "another secret": wrong, "no signature": bare} {
		version, rec, err := encodeLane(l)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeLane(version, rec); !errors.Is(err, errRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDecodeLane: what reads as a lane is written as it was read.
func FuzzDecodeLane(f *testing.F) {
	for _, version := range [...]byte{1, 2} {
		c := openChannel(PCHInbound, 100)
		if version == 2 {
			l := testLock(3, 40, 150)
			mustStep(c, 100, evReceive{Voucher: clone(&l.Voucher), Under: l, MinDelta: big.Zero()})
		} else {
			mustStep(c, 100, evReceive{Voucher: payerVoucher(1, 1, 10), MinDelta: big.Zero()})
		}
		_, rec, err := encodeLane(c.Lanes[1])
		if err != nil {
			f.Fatal(err)
		}
		f.Add(version, rec)
	}
	f.Fuzz(func(t *testing.T, version byte, rec []byte) {
		version = 1 + version%2
		l, err := decodeLane(version, rec)
		if err != nil {
			return
		}
		version, again, err := encodeLane(l)
		if err != nil {
			t.Fatal(err)
		}
		l2, err := decodeLane(version, again)
		if err != nil {
			t.Fatalf("written as what does not read: %v", err)
		}
		if _, third, err := encodeLane(l2); err != nil || !bytes.Equal(third, again) {
			t.Fatal("read another way", err)
		}
	})
}

// A secret on the chain is found in whatever signature is the lock's: either s of it, and
// of two locks of one voucher, where a store was lost between, the one that it is of.
func TestRecovered(t *testing.T) {
	key, err := secec.NewPrivateKey(bytes.Repeat([]byte{0x42}, 32))
	if err != nil {
		t.Fatal(err)
	}
	from, err := address.NewSecp256k1Address(key.PublicKey().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	y := &testPoints[0]
	terms := PointTerms{Channel: testAddr, From: from, Lane: 1, Nonce: 3, Base: big.Zero(), Amount: big.NewInt(40), Until: 150, Point: y.point}
	sv, err := terms.Voucher()
	if err != nil {
		t.Fatal(err)
	}
	sign := func() *PointLock {
		sig, err := adaptor.Encrypt(rand.Reader, key, digestOf(t, sv), y.point)
		if err != nil {
			t.Fatal(err)
		}
		l := &PointLock{Voucher: *clone(sv), Payer: adaptor.Point(key.PublicKey().CompressedBytes()), Point: y.point, Adaptor: sig}
		if err := l.Check(&terms); err != nil {
			t.Fatal(err)
		}
		return l
	}
	first, second := sign(), sign()
	secret := adaptor.Secret(y.secret)
	for name, l := range map[string]*PointLock{"first": first, "second": second} {
		done, err := l.Complete(&secret)
		if err != nil {
			t.Fatal(err)
		}
		for _, high := range [...]bool{false, true} {
			seen := clone(done)
			if high {
				flipS(t, seen.Signature.Data)
			}
			ev, ok := recovered(seen, []*PointLock{first, second})
			if !ok || ev.Preimage != y.secret || len(ev.Under) != 2 {
				t.Errorf("%s, high %v: %+v", name, high, ok)
			}
		}
		if _, ok := recovered(done, nil); ok {
			t.Error("recovered from nothing")
		}
		other := clone(done)
		other.Nonce++
		if _, ok := recovered(other, []*PointLock{first, second}); ok {
			t.Error("recovered from another voucher")
		}
	}
}

func digestOf(t *testing.T, sv *SignedVoucher) [32]byte {
	t.Helper()
	msg, err := SigningBytes(sv)
	if err != nil {
		t.Fatal(err)
	}
	return blake2b.Sum256(msg)
}

// flipS gives the other s of a signature, and the v that goes with it.
func flipS(t *testing.T, sig []byte) {
	t.Helper()
	var s secp256k1.ModNScalar
	if s.SetByteSlice(sig[32:64]) {
		t.Fatal("s out of range")
	}
	s.Negate().PutBytesUnchecked(sig[32:64])
	sig[64] ^= 1
}
