package paych

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"pgregory.net/rapid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych/actor"
)

var (
	testFrom = mustAddr(address.NewSecp256k1Address(append([]byte{4}, make([]byte, 64)...)))
	testTo   = mustAddr(address.NewSecp256k1Address(append([]byte{5}, make([]byte, 64)...)))
	testAddr = mustAddr(address.NewActorAddress([]byte("channel")))
	testSelf = mustAddr(address.NewIDAddress(100))
)

func mustAddr(a address.Address, err error) address.Address {
	if err != nil {
		panic(err)
	}
	return a
}

func testRules() *Rules {
	return &Rules{SettleDelay: 40, SubmitMargin: 5, MaxSettleExtension: 40, SlotLanes: 4, AutoCollect: true}
}

// openChannel is one that the chain shows with this balance at epoch 100.
func openChannel(dir PCHDir, balance int64) *Channel {
	c := NewChannel(1, dir, testFrom, testTo, big.Zero(), testRules())
	c.Addr, c.Phase = testAddr, PhaseOpen
	v := snapshot{View: View{Height: 100, Balance: big.NewInt(balance), ToSend: big.Zero()}}
	mustStep(c, 100, evViewed{Head: v, Deep: v})
	return c
}

func mustStep(c *Channel, now abi.ChainEpoch, ev event) []Effect {
	fx, err := c.Step(now, ev)
	if err != nil {
		panic(err)
	}
	if err := c.Check(); err != nil {
		panic(err)
	}
	return fx
}

// The signature here is the signer's name.
func signedBy(sv *SignedVoucher, who string) *SignedVoucher {
	cp := clone(sv)
	cp.Signature = &crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: []byte(who)}
	return cp
}

func payerVoucher(lane, nonce uint64, amount int64, change ...func(*SignedVoucher)) *SignedVoucher {
	sv := &SignedVoucher{ChannelAddr: testAddr, Lane: lane, Nonce: nonce, Amount: big.NewInt(amount)}
	for _, f := range change {
		f(sv)
	}
	return signedBy(sv, "payer")
}

// make a voucher on either side.
func draw(c *Channel, now abi.ChainEpoch, spec VoucherSpec) (*SignedVoucher, error) {
	fx, err := c.Step(now, evDraft{Spec: spec})
	if err != nil {
		return nil, err
	}
	who := "payer"
	if c.Direction == PCHInbound {
		who = "payee"
	}
	sv := signedBy(fx[0].Voucher, who)
	mustStep(c, now, evSigned{Voucher: sv})
	return sv, nil
}

// picture is all of a channel.
func picture(c *Channel) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%x\n%v %v %v %+v\n", encodeChannel(c), c.sumHead, c.sumDeep, c.sumWorth, c.queue)
	for _, id := range slices.Sorted(maps.Keys(c.Lanes)) {
		version, rec, err := encodeLane(c.Lanes[id])
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(&b, "%d %d %x %d\n", id, version, rec, len(c.Lanes[id].Claims))
	}
	return b.String()
}

// Each refusal has its error, and leaves everything as it was.
func TestRefusals(t *testing.T) {
	lock := tally.Preimage{1}.Hashlock()
	amount := func(n int64) big.Int { return big.NewInt(n) }
	receive := func(sv *SignedVoucher) event { return evReceive{Voucher: sv, MinDelta: big.Zero()} }
	type sv = SignedVoucher

	outbound := func() *Channel {
		c := openChannel(PCHOutbound, 100)
		if _, err := draw(c, 100, VoucherSpec{Lane: 1, Amount: amount(40)}); err != nil {
			panic(err)
		}
		mustStep(c, 100, evFunding{Request: 1, Amount: amount(20), Reserve: true})
		return c
	}
	inbound := func() *Channel {
		c := openChannel(PCHInbound, 100)
		mustStep(c, 100, receive(payerVoucher(1, 5, 40)))
		return c
	}
	settling := func(c *Channel) *Channel {
		v := snapshot{View: c.Head}
		v.SettlingAt = 140
		mustStep(c, 100, evViewed{Head: v, Deep: v})
		return c
	}
	collected := func(c *Channel) *Channel {
		mustStep(c, 100, evViewed{Gone: true})
		return c
	}
	owned := func(c *Channel) *Channel {
		mustStep(c, 100, evOwn{Tag: "swap"})
		return c
	}
	full := func(c *Channel) *Channel {
		for i := range maxClaims {
			spec := VoucherSpec{Lane: 9, Amount: amount(50), Lock: &lock, TimeLockMax: abi.ChainEpoch(120 + i)}
			if _, err := draw(c, 100, spec); err != nil {
				panic(err)
			}
		}
		return c
	}
	freshZero := func(c *Channel) *Channel {
		mustStep(c, 100, receive(payerVoucher(6, 0, 5)))
		return c
	}
	crowded := func(c *Channel) *Channel {
		for i := range uint64(maxLanes) {
			c.lane(1000 + i)
		}
		return c
	}

	for _, x := range []struct {
		name string
		c    *Channel
		ev   event
		want error
	}{
		{"draft over funds", outbound(), evDraft{Spec: VoucherSpec{Lane: 1, Amount: amount(101)}}, ErrShortfall},
		{"draft zero", outbound(), evDraft{Spec: VoucherSpec{Lane: 1, Amount: amount(0)}}, ErrZeroAmount},
		{"draft nil", outbound(), evDraft{Spec: VoucherSpec{Lane: 1}}, ErrZeroAmount},
		{"draft negative", outbound(), evDraft{Spec: VoucherSpec{Lane: 1, Amount: amount(-1)}}, ErrZeroAmount},
		{"draft equal", outbound(), evDraft{Spec: VoucherSpec{Lane: 1, Amount: amount(40)}}, ErrAmount},
		{"draft lower", outbound(), evDraft{Spec: VoucherSpec{Lane: 1, Amount: amount(39)}}, ErrAmount},
		{"draft lane", outbound(), evDraft{Spec: VoucherSpec{Lane: actor.MaxLane + 1, Amount: amount(50)}}, ErrLane},
		{"draft expired lock", outbound(), evDraft{Spec: VoucherSpec{Lane: 1, Amount: amount(50), Lock: &lock, TimeLockMax: 100}}, ErrTimeLock},
		{"draft far settling", outbound(), evDraft{Spec: VoucherSpec{Lane: 1, Amount: amount(50), MinSettleHeight: 1 << 62}}, ErrMinSettleHeight},
		{"draft on a full lane", full(outbound()), evDraft{Spec: VoucherSpec{Lane: 9, Amount: amount(51), Lock: &lock}}, ErrTooMany},
		{"draft on one lane too many", crowded(outbound()), evDraft{Spec: VoucherSpec{Lane: 2, Amount: amount(1)}}, ErrTooMany},
		{"draft settling", settling(outbound()), evDraft{Spec: VoucherSpec{Lane: 1, Amount: amount(50)}}, ErrSettling},
		{"draft collected", collected(outbound()), evDraft{Spec: VoucherSpec{Lane: 1, Amount: amount(50)}}, ErrCollected},
		{"draft on an owned lane", owned(outbound()), evDraft{Spec: VoucherSpec{Lane: 5, Amount: amount(50)}}, ErrOwned},
		{"draft a lock on the tab", owned(outbound()), evDraft{Spec: VoucherSpec{Lane: 0, Amount: amount(50), Lock: &lock}, Owner: true}, ErrLock},
		{"draft while creating", NewChannel(1, PCHOutbound, testFrom, testTo, amount(1), testRules()), evDraft{Spec: VoucherSpec{Lane: 1, Amount: amount(1)}}, ErrCreating},

		{"fund zero", outbound(), evFunding{Amount: amount(0)}, ErrZeroAmount},
		{"fund inbound", inbound(), evFunding{Amount: amount(1)}, ErrInbound},
		{"reserve inbound", inbound(), evFunding{Amount: amount(1), Reserve: true}, ErrInbound},
		{"fund settling", settling(outbound()), evFunding{Amount: amount(1)}, ErrSettling},
		{"reserve collected", collected(outbound()), evFunding{Amount: amount(1), Reserve: true}, ErrCollected},
		{"release too much", outbound(), evRelease{Amount: amount(21)}, ErrNotReserved},
		{"release zero", outbound(), evRelease{Amount: amount(0)}, ErrZeroAmount},
		{"release inbound", inbound(), evRelease{Amount: amount(1)}, ErrInbound},
		{"lane inbound", inbound(), evAllocateLane{}, ErrInbound},
		{"lane settling", settling(outbound()), evAllocateLane{}, ErrSettling},
		{"own another's", owned(outbound()), evOwn{Tag: "payments"}, ErrOwned},
		{"own without a name", outbound(), evOwn{}, ErrOwned},

		{"second settle", settling(outbound()), evSettle{}, ErrSettling},
		{"settle collected", collected(outbound()), evSettle{}, ErrCollected},
		{"collect open", outbound(), evCollect{}, ErrNotSettling},
		{"collect early", settling(outbound()), evCollect{}, ErrTooEarly},
		{"collect collected", collected(outbound()), evCollect{}, ErrCollected},

		{"other channel", inbound(), receive(payerVoucher(1, 6, 50, func(v *sv) { v.ChannelAddr = testSelf })), ErrChannel},
		{"extra", inbound(), receive(payerVoucher(1, 6, 50, func(v *sv) { v.Extra = &ModVerifyParams{Actor: testSelf} })), ErrExtra},
		{"merges", inbound(), evReceive{Voucher: &SignedVoucher{ChannelAddr: testAddr, Lane: 1, Nonce: 6, Amount: amount(50), Merges: []Merge{{Lane: 2, Nonce: 1}}}}, ErrMerges},
		{"lane over the maximum", inbound(), receive(payerVoucher(math.MaxUint64, 6, 50)), ErrLane},
		{"zero amount", inbound(), receive(payerVoucher(2, 1, 0)), ErrZeroAmount},
		{"short lock", inbound(), receive(payerVoucher(1, 6, 50, func(v *sv) { v.SecretHash = make([]byte, 31) })), ErrLock},
		{"nonce as before", inbound(), receive(payerVoucher(1, 5, 50)), ErrNonce},
		{"nonce below", inbound(), receive(payerVoucher(1, 4, 50)), ErrNonce},
		{"amount as before", inbound(), receive(payerVoucher(1, 6, 40)), ErrAmount},
		{"amount below", inbound(), receive(payerVoucher(1, 6, 39)), ErrAmount},
		{"over balance", inbound(), receive(payerVoucher(1, 6, 101)), ErrOverBalance},
		{"over balance with another lane", inbound(), receive(payerVoucher(2, 1, 61)), ErrOverBalance},
		{"lock over balance", inbound(), receive(payerVoucher(2, 1, 61, func(v *sv) { v.SecretHash = lock[:] })), ErrOverBalance},
		{"time lock opens too late", inbound(), receive(payerVoucher(1, 6, 50, func(v *sv) { v.TimeLockMin = 136 })), ErrTimeLock},
		{"time lock ends too soon", inbound(), receive(payerVoucher(1, 6, 50, func(v *sv) { v.TimeLockMax = 104 })), ErrTimeLock},
		{"time lock ends before it opens", inbound(), receive(payerVoucher(1, 6, 50, func(v *sv) { v.TimeLockMin, v.TimeLockMax = 120, 119 })), ErrTimeLock},
		{"settles too late", inbound(), receive(payerVoucher(1, 6, 50, func(v *sv) { v.MinSettleHeight = 181 })), ErrMinSettleHeight},
		{"settles before time", inbound(), receive(payerVoucher(1, 6, 50, func(v *sv) { v.MinSettleHeight = -1 })), ErrMinSettleHeight},
		{"voucher settling", settling(inbound()), receive(payerVoucher(1, 6, 50)), ErrSettling},
		{"voucher collected", collected(inbound()), receive(payerVoucher(1, 6, 50)), ErrCollected},
		{"lock on the tab", owned(inbound()), receive(payerVoucher(0, 6, 50, func(v *sv) { v.SecretHash = lock[:] })), ErrLock},
		{"guard on the tab", owned(inbound()), receive(payerVoucher(0, 6, 50, func(v *sv) { v.MinSettleHeight = 150 })), ErrLock},
		{"second nonce 0", freshZero(inbound()), receive(payerVoucher(6, 0, 6)), ErrNonce},
		{"less than asked", inbound(), evReceive{Voucher: payerVoucher(1, 6, 50), MinDelta: amount(11)}, ErrDelta},
		{"lock that counts for nothing yet", inbound(), evReceive{Voucher: payerVoucher(1, 6, 50, func(v *sv) { v.SecretHash = lock[:] }), MinDelta: amount(1)}, ErrDelta},
		{"wrong secret", inbound(), evReceive{Voucher: payerVoucher(1, 6, 50, func(v *sv) { v.SecretHash = lock[:] }), Secret: &tally.Preimage{2}}, ErrSecret},
		{"one lane too many", crowded(inbound()), receive(payerVoucher(2, 1, 1)), ErrTooMany},

		{"refund that gives nothing", inbound(), evDraft{Spec: VoucherSpec{Lane: 1, Amount: amount(40)}}, ErrAmount},
		{"refund on an empty lane", inbound(), evDraft{Spec: VoucherSpec{Lane: 2, Amount: amount(0)}}, ErrAmount},
		{"refund with a lock", inbound(), evDraft{Spec: VoucherSpec{Lane: 1, Amount: amount(30), Lock: &lock}}, ErrLock},
		{"refund on an owned lane", owned(inbound()), evDraft{Spec: VoucherSpec{Lane: 1, Amount: amount(30)}}, ErrOwned},
		{"refund that takes", outbound(), receive(signedBy(payerVoucher(1, 2, 40), "payee")), ErrAmount},
		{"refund with a time lock", outbound(), receive(signedBy(payerVoucher(1, 2, 30, func(v *sv) { v.TimeLockMin = 1 }), "payee")), ErrLock},
		{"refund of nothing", outbound(), receive(signedBy(payerVoucher(3, 2, 0), "payee")), ErrAmount},
	} {
		t.Run(x.name, func(t *testing.T) {
			before := picture(x.c)
			fx, err := x.c.Step(100, x.ev)
			if !errors.Is(err, x.want) || len(fx) != 0 {
				t.Errorf("got %v %v, want %v", fx, err, x.want)
			}
			if after := picture(x.c); after != before {
				t.Errorf("a refusal changed\n%s to\n%s", before, after)
			}
		})
	}
}

func TestVouchersAreTaken(t *testing.T) {
	lock := tally.Preimage{1}.Hashlock()
	locked := func(v *SignedVoucher) { v.SecretHash = lock[:] }
	c := openChannel(PCHInbound, 100)
	for _, x := range []struct {
		name   string
		sv     *SignedVoucher
		secret *tally.Preimage
		delta  int64
		worth  int64
	}{
		{"first", payerVoucher(1, 1, 10), nil, 10, 10},
		{"rise", payerVoucher(1, 2, 25), nil, 15, 25},
		{"again", payerVoucher(1, 2, 25), nil, 0, 25},
		{"lock", payerVoucher(1, 3, 40, locked), nil, 0, 25},
		{"lock again, with its secret", payerVoucher(1, 3, 40, locked), &tally.Preimage{1}, 15, 40},
		{"unlock", payerVoucher(1, 4, 40), nil, 0, 40},
		{"lock with its secret", payerVoucher(2, 1, 5, locked), &tally.Preimage{1}, 5, 45},
		{"guard of no amount", payerVoucher(5, 1, 0, func(v *SignedVoucher) { v.MinSettleHeight = 180 }), nil, 0, 45},
		{"nonce 0 on a fresh lane", payerVoucher(6, 0, 5), nil, 5, 50},
		{"all there is", payerVoucher(7, 1, 50), nil, 50, 100},
	} {
		fx, err := c.Step(100, evReceive{Voucher: x.sv, Secret: x.secret, MinDelta: big.Zero()})
		if err != nil {
			t.Fatalf("%s: %v", x.name, err)
		}
		if got := fx[len(fx)-1]; got.Kind != FxAnswer || got.Amount.Int64() != x.delta {
			t.Errorf("%s: %+v, want %d", x.name, got, x.delta)
		}
		if got := c.worth().Int64(); got != x.worth {
			t.Errorf("%s: worth %d, want %d", x.name, got, x.worth)
		}
	}
}

// book is the chain's side of the model.
type book struct {
	st      *actor.State
	balance big.Int
	now     abi.ChainEpoch
	past    []snapshot // by epoch from 100
}

func (b *book) snapshot() snapshot { return snapshotOf(b.now, b.st, b.balance) }

func (b *book) apply(caller address.Address, msg actor.Msg) bool {
	r := actor.Apply(b.st, b.balance, b.now, 40, caller, msg, actor.Env{
		Self:    testSelf,
		Resolve: func(a address.Address) (address.Address, bool) { return testSelf, a == testAddr },
		Verify: func(signer address.Address, sig crypto.Signature, _ []byte) error {
			if signer == testFrom && string(sig.Data) == "payer" || signer == testTo && string(sig.Data) == "payee" {
				return nil
			}
			return errors.New("another's signature")
		},
	})
	if r.ExitCode == 0 {
		b.st = r.State
	}
	return r.ExitCode == 0
}

// TestChannelModel drives a payer's and a payee's channel over a chain at random.
// The payee also cheats: it submits any voucher that it was ever given. What has
// to hold: the payer's V is never below what any payee can still take, so that
// nothing is free twice; what the payee counts it gets, if it submits its best;
// a refusal changes nothing; and a record reads back as it was written.
func TestChannelModel(t *testing.T) { rapid.Check(t, channelModel) }

func channelModel(t *rapid.T) {
	const finality = 3
	start := int64(rapid.IntRange(1, 60).Draw(t, "balance"))
	p, q := openChannel(PCHOutbound, start), openChannel(PCHInbound, start)
	b := &book{st: &actor.State{From: testFrom, To: testTo, ToSend: big.Zero()}, balance: big.NewInt(start), now: 100}
	b.past = []snapshot{b.snapshot()}
	var given []*SignedVoucher // all there ever were
	secrets := make(map[tally.Hashlock]tally.Preimage)
	var under []*PointLock // all there ever were
	pending := big.Zero()  // of the top-up on its way
	calls := uint64(0)

	look := func(c *Channel) []Effect {
		deep := b.past[max(0, len(b.past)-1-finality)]
		return mustStep(c, b.now, evViewed{Head: b.past[len(b.past)-1], Deep: deep})
	}
	// idle is a side whose messages do not get through.
	idle := func(c *Channel, fx []Effect) {
		for _, f := range fx {
			if f.Kind == FxSubmit {
				mustStep(c, c.lane(f.Lane).retry, evSubmitDone{Lane: f.Lane, Nonce: f.Voucher.Nonce, OK: true})
			}
		}
	}
	try := func(c *Channel, ev event) ([]Effect, error) {
		before := picture(c)
		fx, err := c.Step(b.now, ev)
		if err != nil {
			if after := picture(c); after != before {
				t.Fatalf("%T refused with %v changed\n%s to\n%s", ev, err, before, after)
			}
		}
		if err := c.Check(); err != nil {
			t.Fatal(err)
		}
		return fx, err
	}
	topUp := func(fx []Effect) {
		for _, f := range fx {
			if f.Kind == FxTopUp {
				if rapid.Bool().Draw(t, "unprepared") {
					fx2, _ := try(p, evTopUpDone{})
					_ = fx2 // what is queued starts another; the model lets it wait
					return
				}
				mustStep(p, b.now, evTopUpSent{})
				pending = f.Amount
			}
		}
	}
	secretOf := func(sv *SignedVoucher) []byte {
		if len(sv.SecretHash) == 0 {
			return nil
		}
		s := secrets[tally.Hashlock(sv.SecretHash)]
		return s[:]
	}
	// most is what a payee that knows all secrets could still take.
	most := func() big.Int {
		sum := b.st.ToSend
		for lane := range uint64(3) {
			on, known := b.st.Lane(lane)
			have := value(on.Redeemed)
			top := have
			for _, sv := range given {
				if sv.Lane == lane && (!known || sv.Nonce > on.Nonce) && (sv.TimeLockMax == 0 || b.now <= sv.TimeLockMax) {
					top = big.Max(top, sv.Amount)
				}
			}
			sum = big.Add(sum, big.Sub(top, have))
		}
		return sum
	}

	t.Repeat(map[string]func(*rapid.T){
		"": func(t *rapid.T) {
			if v := p.redeemed(); most().GreaterThan(v) {
				t.Fatalf("a payee can take %v, V is %v", most(), v)
			}
			if f := p.Funds(); f.Free().Sign() < 0 {
				t.Fatalf("free is %v of %+v", f.Free(), f)
			}
			for _, c := range []*Channel{p, q} {
				again, err := decodeChannel(channelVersion, encodeChannel(c), c.rules)
				if err != nil {
					t.Fatal(err)
				}
				for id, l := range c.Lanes {
					version, rec, err := encodeLane(l)
					if err != nil {
						t.Fatal(err)
					}
					l2, err := decodeLane(version, rec)
					if err != nil {
						t.Fatal(err)
					}
					again.Lanes[id] = l2
					again.touch(l2)
				}
				again.queue = c.queue
				if got, want := picture(again), picture(c); got != want && (c.TopUp == nil || c.TopUp.Sent) {
					t.Fatalf("read back\n%s, written\n%s", got, want)
				}
			}
		},
		"voucher": func(t *rapid.T) {
			spec := VoucherSpec{
				Lane:   rapid.Uint64Range(0, 2).Draw(t, "lane"),
				Amount: big.NewInt(int64(rapid.IntRange(1, 70).Draw(t, "amount"))),
			}
			if rapid.IntRange(0, 2).Draw(t, "kind") == 0 {
				secret := tally.Preimage{byte(len(secrets)), byte(len(secrets) >> 8)}
				lock := secret.Hashlock()
				spec.Lock = &lock
				secrets[lock] = secret
				spec.TimeLockMax = b.now + abi.ChainEpoch(rapid.IntRange(1, 12).Draw(t, "expires"))
			}
			fx, err := try(p, evDraft{Spec: spec})
			if err != nil {
				return
			}
			sv := signedBy(fx[0].Voucher, "payer")
			if rapid.IntRange(0, 5).Draw(t, "unsigned") == 0 {
				mustStep(p, b.now, evUnsigned{Lane: sv.Lane, Nonce: sv.Nonce})
				return
			}
			mustStep(p, b.now, evSigned{Voucher: sv})
			given = append(given, sv)
			var known *tally.Preimage
			if len(sv.SecretHash) != 0 && rapid.Bool().Draw(t, "known") {
				s := tally.Preimage(secretOf(sv))
				known = &s
			}
			_, _ = try(q, evReceive{Voucher: sv, Secret: known, MinDelta: big.Zero()})
		},
		"point lock": func(t *rapid.T) {
			y := &testPoints[rapid.IntRange(0, len(testPoints)-1).Draw(t, "point")]
			spec := VoucherSpec{
				Lane: rapid.Uint64Range(0, 2).Draw(t, "lane"), Amount: big.NewInt(int64(rapid.IntRange(1, 70).Draw(t, "amount"))),
				TimeLockMax: b.now + abi.ChainEpoch(rapid.IntRange(1, 12).Draw(t, "expires")),
			}
			spec.Nonce = p.peek(spec.Lane).Nonce + uint64(rapid.IntRange(0, 2).Draw(t, "nonce"))
			fx, err := try(p, evDraft{Spec: spec, Point: y.point})
			if err != nil {
				return
			}
			if l := fx[0].Under; l != nil { // asked for again
				if !slices.Contains(under, l) {
					t.Fatal("another lock than was given")
				}
				return
			}
			sv := fx[0].Voucher
			if rapid.IntRange(0, 5).Draw(t, "unsigned") == 0 {
				mustStep(p, b.now, evUnsigned{Lane: sv.Lane, Nonce: sv.Nonce})
				return
			}
			l := &PointLock{Voucher: *sv, Payer: y.point, Point: y.point, Adaptor: testAdaptor}
			mustStep(p, b.now, evSigned{Voucher: sv, Under: l})
			under = append(under, l)
			given = append(given, signedBy(sv, "payer")) // a payee may know the secret already
			_, _ = try(q, evReceive{Voucher: clone(sv), Under: l, MinDelta: big.Zero()})
			if _, err := try(p, evDraft{Spec: spec}); err == nil && p.Direction == PCHOutbound {
				t.Fatal("a plain voucher under the nonce of a point lock")
			}
		},
		"secret of a point": func(t *rapid.T) {
			y := &testPoints[rapid.IntRange(0, len(testPoints)-1).Draw(t, "point")]
			for _, c := range []*Channel{p, q} {
				ev := evSecret{Preimage: y.secret, Under: make(map[*PointLock]*SignedVoucher)}
				for _, l := range c.closed() {
					if l.Point == y.point {
						ev.Under[l] = signedBy(&l.Voucher, "payer")
					}
				}
				if _, err := try(c, ev); err != nil {
					t.Fatal(err)
				}
				for _, l := range c.closed() {
					if l.Point == y.point {
						t.Fatal("still closed")
					}
				}
			}
		},
		"refund": func(t *rapid.T) {
			fx, err := try(q, evDraft{Spec: VoucherSpec{
				Lane:   rapid.Uint64Range(0, 2).Draw(t, "lane"),
				Amount: big.NewInt(int64(rapid.IntRange(0, 40).Draw(t, "amount"))),
			}})
			if err != nil {
				return
			}
			sv := signedBy(fx[0].Voucher, "payee")
			mustStep(q, b.now, evSigned{Voucher: sv})
			_, _ = try(p, evReceive{Voucher: sv})
		},
		"secret": func(t *rapid.T) {
			if len(given) == 0 {
				return
			}
			sv := given[rapid.IntRange(0, len(given)-1).Draw(t, "which")]
			if s := secretOf(sv); s != nil {
				_, _ = try(q, evSecret{Preimage: tally.Preimage(s)})
			}
		},
		"fund": func(t *rapid.T) {
			calls++
			fx, err := try(p, evFunding{
				Request: calls, Amount: big.NewInt(int64(rapid.IntRange(1, 30).Draw(t, "amount"))),
				Reserve: rapid.Bool().Draw(t, "reserve"),
			})
			if err == nil {
				topUp(fx)
			}
		},
		"release": func(t *rapid.T) {
			_, _ = try(p, evRelease{Amount: big.NewInt(int64(rapid.IntRange(1, 30).Draw(t, "amount")))})
		},
		"money arrives": func(t *rapid.T) {
			if pending.Sign() == 0 {
				return
			}
			ok := rapid.IntRange(0, 3).Draw(t, "fails") != 0
			if ok {
				b.balance = big.Add(b.balance, pending)
				for range finality + 1 {
					b.now++
					b.past = append(b.past, b.snapshot())
					if rapid.Bool().Draw(t, "looks") {
						idle(p, look(p))
						if f := p.Funds(); f.Free().Sign() < 0 {
							t.Fatalf("free is %v of %+v", f.Free(), f)
						}
					}
				}
			}
			pending = big.Zero()
			idle(p, look(p))
			topUp(mustStep(p, b.now, evTopUpDone{OK: ok}))
		},
		"cheat": func(t *rapid.T) {
			if len(given) == 0 {
				return
			}
			sv := given[rapid.IntRange(0, len(given)-1).Draw(t, "which")]
			b.apply(testTo, actor.Redeem(*sv, secretOf(sv)))
		},
		"answer": func(t *rapid.T) {
			// The payer's own watch; also at a view that is no longer true.
			fx := p.watch(b.now)
			if rapid.Bool().Draw(t, "looks") {
				fx = look(p)
			}
			for _, f := range fx {
				if f.Kind == FxSubmit {
					b.apply(testFrom, actor.Redeem(*f.Voucher, nil))
					mustStep(p, b.now, evSubmitDone{Lane: f.Lane, Nonce: f.Voucher.Nonce, OK: true})
				}
			}
		},
		"epochs": func(t *rapid.T) {
			for range rapid.IntRange(1, 4).Draw(t, "epochs") {
				b.now++
				b.past = append(b.past, b.snapshot())
			}
		},
		"payer looks": func(*rapid.T) { idle(p, look(p)) },
		"payee looks": func(*rapid.T) { idle(q, look(q)) },
		"payee could settle": func(t *rapid.T) {
			// On a copy of the chain, right now.
			b.now++
			b.past = append(b.past, b.snapshot())
			idle(q, look(q))
			was := *b
			settled := b.snapshot()
			settled.SettlingAt = b.now + 40
			c, err := decodeChannel(channelVersion, encodeChannel(q), q.rules)
			if err != nil {
				t.Fatal(err)
			}
			for id, l := range q.Lanes {
				version, rec, err := encodeLane(l)
				if err != nil {
					t.Fatal(err)
				}
				if c.Lanes[id], err = decodeLane(version, rec); err != nil {
					t.Fatal(err)
				}
				c.touch(c.Lanes[id])
			}
			worth := c.worth()
			b.now++
			for _, f := range mustStep(c, b.now-1, evViewed{Head: settled, Deep: settled}) {
				if f.Kind == FxSubmit {
					var secret []byte
					if f.Secret != nil {
						secret = f.Secret[:]
					}
					b.apply(testTo, actor.Redeem(*f.Voucher, secret))
				}
			}
			if b.st.ToSend.LessThan(worth) {
				t.Fatalf("payee counts %v and gets %v", worth, b.st.ToSend)
			}
			*b = was
		},
	})
}
