package paych

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych/actor"
	"github.com/tallystick/tally/paych/adaptor"
)

// VoucherSpec is what a voucher is to say.
type VoucherSpec struct {
	Lane uint64
	// Amount is the lane's new total.
	Amount big.Int
	// Lock is the hash lock; nil for none.
	Lock *tally.Hashlock
	// TimeLockMin and TimeLockMax bound the epochs in which it can be submitted; 0
	// for no bound.
	TimeLockMin, TimeLockMax abi.ChainEpoch
	// MinSettleHeight keeps the channel from settling before.
	MinSettleHeight abi.ChainEpoch
	// Nonce is the voucher's; 0 takes the lane's next. A lock slot counts some nonces
	// as used that no voucher of ours has. On an inbound channel a nonce makes the
	// refund a cancel, which may also stand at what the lane has: of a lock that was
	// shown to us and that we never took.
	Nonce uint64
	// Beside takes the money from the free funds alone, not from what is reserved:
	// that is for other vouchers.
	Beside bool
	// Again makes the call idempotent: where we gave a voucher that says this and
	// no later agreement overrode it, that one is returned, the same bytes, instead
	// of ErrAmount. It is for a caller who may have stopped before it wrote down
	// what it was given.
	Again bool
}

// says reports whether sv is what s asks for, its nonce aside. Not of a lock under a
// point, which is no voucher until it is completed.
func (s *VoucherSpec) says(sv *SignedVoucher) bool {
	var lock []byte
	if s.Lock != nil {
		lock = s.Lock[:]
	}
	return sv.Signature != nil && sv.Lane == s.Lane && (s.Nonce == 0 || sv.Nonce == s.Nonce) && sv.Amount.Equals(s.Amount) && bytes.Equal(sv.SecretHash, lock) &&
		sv.TimeLockMin == s.TimeLockMin && sv.TimeLockMax == s.TimeLockMax && sv.MinSettleHeight == s.MinSettleHeight
}

// plain reports whether the voucher says nothing but its amount.
func (s *VoucherSpec) plain() bool {
	return s.Lock == nil && s.TimeLockMin == 0 && s.TimeLockMax == 0 && s.MinSettleHeight == 0
}

// bare is plain for a voucher.
func bare(sv *SignedVoucher) bool {
	return len(sv.SecretHash) == 0 && sv.TimeLockMin == 0 && sv.TimeLockMax == 0 && sv.MinSettleHeight == 0
}

func (s *VoucherSpec) voucher(c *Channel, nonce uint64) *SignedVoucher {
	sv := &SignedVoucher{
		ChannelAddr: c.Addr, TimeLockMin: s.TimeLockMin, TimeLockMax: s.TimeLockMax,
		Lane: s.Lane, Nonce: nonce, Amount: s.Amount, MinSettleHeight: s.MinSettleHeight,
	}
	if s.Lock != nil {
		sv.SecretHash = s.Lock[:]
	}
	return sv
}

// maxAmountBits bounds an amount before anything is reckoned with it. All the
// money of Filecoin, in attoFIL, has 91 bits.
const maxAmountBits = 256

// claimOf is the claim of a voucher, or of the lock under a point that it is of.
func claimOf(sv *SignedVoucher, under *PointLock) Claim {
	cl := Claim{Nonce: sv.Nonce, Amount: sv.Amount, Expires: sv.TimeLockMax, Locked: under != nil, Under: under, drawn: big.Zero()}
	if len(sv.SecretHash) == tally.HashlockSize {
		cl.Locked, cl.Lock = true, tally.Hashlock(sv.SecretHash)
	}
	return cl
}

// evDraft takes a nonce and the funds for a voucher, which FxSign then has in it.
// On an inbound channel it is a refund: the payee's word that the lane is worth
// less than its vouchers say.
type evDraft struct {
	Spec VoucherSpec
	// Point: it is to be signed under this point, and by no plain signature, ever.
	Point adaptor.Point
	// Owner: the caller owns the channel.
	Owner bool
}

func (ev evDraft) step(c *Channel, now abi.ChainEpoch) ([]Effect, error) {
	s := &ev.Spec
	switch {
	case s.Lane > actor.MaxLane:
		return nil, fmt.Errorf("%w: %d", ErrLane, s.Lane)
	case c.Owned && !ev.Owner && s.Lane <= c.rules.guardLane():
		return nil, fmt.Errorf("%w: lane %d by %q", ErrOwned, s.Lane, c.Tag)
	case s.Amount.Int == nil || s.Amount.Sign() < 0:
		return nil, ErrZeroAmount
	}
	pointed := ev.Point != adaptor.Point{}
	switch {
	case pointed && c.Direction == PCHInbound:
		return nil, ErrInbound
	case pointed && s.Nonce == 0:
		return nil, fmt.Errorf("%w: nonce 0", ErrPointLock)
	}
	if pointed {
		if l, err := c.peek(s.Lane).given(s, ev.Point); l != nil || err != nil {
			return []Effect{{Kind: FxAnswer, Under: l}}, err
		}
	} else if s.Again {
		if sv, err := c.peek(s.Lane).issued(c.Direction, s); sv != nil || err != nil {
			return []Effect{{Kind: FxAnswer, Voucher: sv}}, err
		}
	}
	nonce := s.Nonce
	switch last := c.peek(s.Lane).Nonce; {
	case last == math.MaxUint64:
		return nil, fmt.Errorf("%w: lane %d has used all", ErrNonce, s.Lane)
	case nonce == 0:
		nonce = last + 1
	case nonce <= last:
		return nil, fmt.Errorf("%w: %d, lane %d has %d", ErrNonce, nonce, s.Lane, last)
	}
	if c.Direction == PCHInbound {
		return c.draftRefund(s, nonce)
	}
	if err := c.live(); err != nil {
		return nil, err
	}
	if s.Amount.Sign() == 0 && s.MinSettleHeight == 0 {
		return nil, ErrZeroAmount
	}
	if c.Owned && s.Lane == 0 && !s.plain() {
		return nil, fmt.Errorf("%w: lane 0 of an owned channel settles the tab", ErrLock)
	}
	if s.TimeLockMax != 0 && (s.TimeLockMax <= now || s.TimeLockMax < s.TimeLockMin) {
		return nil, fmt.Errorf("%w: until %d, epoch is %d", ErrTimeLock, s.TimeLockMax, now)
	}
	if err := c.boundSettle(now, s.MinSettleHeight); err != nil {
		return nil, err
	}
	l := c.peek(s.Lane)
	if !rises(l, s.Amount, s.MinSettleHeight != 0) {
		return nil, fmt.Errorf("%w: %v, lane %d has %v", ErrAmount, s.Amount, s.Lane, l.Agreed)
	}
	sv := s.voucher(c, nonce)
	cl := claimOf(sv, nil)
	cl.Locked = cl.Locked || pointed
	if err := c.room(l, &cl); err != nil {
		return nil, err
	}
	need := big.Sub(c.redeemedWith(l, &cl), c.redeemed())
	funds := c.Funds()
	spendable, reserved := funds.spendable(), c.Reserved
	if s.Beside {
		spendable, reserved = funds.Free(), big.Zero()
	}
	if need.GreaterThan(spendable) {
		return nil, &ShortfallError{Shortfall: big.Sub(need, spendable)}
	}
	cl.drawn = big.Min(reserved, need)
	c.Reserved = big.Sub(c.Reserved, cl.drawn)
	l = c.lane(s.Lane)
	l.Nonce = sv.Nonce
	if !cl.Locked {
		l.Agreed = sv.Amount
	}
	l.push(cl)
	c.touch(l)
	return []Effect{{Kind: FxSign, Lane: s.Lane, Voucher: sv}}, nil
}

// issued returns the newest voucher of ours on the lane that says what s asks for,
// or nil. ErrUnderWay where one over this amount is being signed.
func (l *Lane) issued(dir PCHDir, s *VoucherSpec) (*SignedVoucher, error) {
	if dir == PCHInbound {
		if l.Refund != nil && s.says(l.Refund) {
			return l.Refund, nil
		}
		return nil, nil
	}
	for i := len(l.Claims) - 1; i >= 0; i-- {
		switch cl := &l.Claims[i]; {
		case cl.Voucher == nil && cl.Amount.Equals(s.Amount):
			return nil, fmt.Errorf("%w: it is being signed", ErrUnderWay)
		case cl.Voucher != nil && l.stands(cl.Voucher) && s.says(cl.Voucher):
			return cl.Voucher, nil
		}
	}
	return nil, nil
}

// stands reports whether no refund was agreed after sv.
func (l *Lane) stands(sv *SignedVoucher) bool { return l.Refund == nil || sv.Nonce > l.Refund.Nonce }

func (c *Channel) draftRefund(s *VoucherSpec, nonce uint64) ([]Effect, error) {
	if c.Phase != PhaseOpen && c.Phase != PhaseSettling {
		return nil, c.live()
	}
	l := c.peek(s.Lane)
	if !s.plain() {
		return nil, fmt.Errorf("%w: a refund says an amount and nothing else", ErrLock)
	}
	most := big.Add(l.Head.Redeemed, l.reachHead)
	if atRest := s.Nonce != 0 && s.Amount.Equals(most); !s.Amount.LessThan(most) && !atRest {
		return nil, fmt.Errorf("%w: refund to %v, lane %d has %v", ErrAmount, s.Amount, s.Lane, most)
	}
	if s.Nonce != 0 && s.Amount.LessThan(l.Agreed) {
		return nil, fmt.Errorf("%w: cancel to %v, lane %d was agreed at %v", ErrAmount, s.Amount, s.Lane, l.Agreed)
	}
	if c.Lanes[s.Lane] == nil && len(c.Lanes) >= maxLanes {
		return nil, fmt.Errorf("%w: %d lanes", ErrTooMany, len(c.Lanes))
	}
	l = c.lane(s.Lane)
	l.Nonce = nonce
	return []Effect{{Kind: FxSign, Lane: s.Lane, Voucher: s.voucher(c, nonce)}}, nil
}

// rises reports whether amount adds to the lane. A guard, which asks for a later
// settling, need not.
func rises(l *Lane, amount big.Int, guard bool) bool {
	if guard {
		return amount.GreaterThanEqual(l.Agreed)
	}
	return amount.GreaterThan(l.Agreed)
}

// room reports whether the claim finds a place in what we keep.
func (c *Channel) room(l *Lane, cl *Claim) error {
	if c.Lanes[l.ID] == nil && len(c.Lanes) >= maxLanes {
		return fmt.Errorf("%w: %d lanes", ErrTooMany, len(c.Lanes))
	}
	if l.crowded(cl) {
		return fmt.Errorf("%w: %d open vouchers on lane %d", ErrTooMany, len(l.Claims), l.ID)
	}
	return nil
}

// boundSettle refuses a MinSettleHeight that would keep the money locked.
func (c *Channel) boundSettle(now, height abi.ChainEpoch) error {
	if most := now + c.rules.SettleDelay + c.rules.MaxSettleExtension; height < 0 || height > most {
		return fmt.Errorf("%w: %d, at most %d", ErrMinSettleHeight, height, most)
	}
	return nil
}

// evSigned completes an evDraft. Effects: the voucher is saved before it leaves. Under
// is the lock of one that was signed under a point, and the voucher is unsigned then.
type evSigned struct {
	Voucher *SignedVoucher
	Under   *PointLock
}

func (ev evSigned) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	sv := ev.Voucher
	l := c.lane(sv.Lane)
	if c.Direction == PCHInbound {
		l.give(sv)
	} else if cl := l.unsigned(sv.Nonce); cl != nil {
		cl.Voucher, cl.Under = sv, ev.Under
		l.tidy()
	}
	c.touch(l)
	return c.enter(sv), nil
}

// enter has a voucher saved.
func (c *Channel) enter(sv *SignedVoucher) []Effect {
	c.Vouchers++
	return []Effect{
		{Kind: FxSave},
		{Kind: FxSaveLane, Lane: sv.Lane},
		{Kind: FxRecord, Lane: sv.Lane, Voucher: sv},
	}
}

// evUnsigned takes an evDraft back that could not be signed. Its nonce stays used.
type evUnsigned struct{ Lane, Nonce uint64 }

func (ev evUnsigned) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	l := c.lane(ev.Lane)
	cl := l.unsigned(ev.Nonce)
	if cl == nil {
		return nil, nil
	}
	before, drawn := c.redeemed(), cl.drawn
	l.drop(ev.Nonce)
	c.touch(l)
	c.Reserved = big.Add(c.Reserved, big.Min(drawn, big.Sub(before, c.redeemed())))
	if l.Nonce == ev.Nonce {
		l.Agreed = l.plain()
	}
	return nil, nil
}

// plain is the lane's agreed total as its claims have it.
func (l *Lane) plain() big.Int {
	nonce, amount := l.Head.Nonce, l.Head.Redeemed
	if l.Refund != nil && l.Refund.Nonce > nonce {
		nonce, amount = l.Refund.Nonce, l.Refund.Amount
	}
	for i := range l.Claims {
		if cl := &l.Claims[i]; !cl.Locked && cl.Nonce > nonce {
			amount = big.Max(amount, cl.Amount)
		}
	}
	return amount
}

// evReceive takes a voucher whose signature is verified: on an inbound channel one
// of the payer, on an outbound channel a refund of the payee. FxAnswer has what
// the lane is worth more by it. Secret opens its lock, where it is known.
type evReceive struct {
	Voucher *SignedVoucher
	// Under: the voucher is unsigned, and this its lock under a point, which is checked.
	Under    *PointLock
	Secret   *tally.Preimage
	MinDelta big.Int
	// Owner: the caller owns the channel.
	Owner bool
	// Draws is what it may take of what is kept.
	Draws big.Int
}

func (ev evReceive) step(c *Channel, now abi.ChainEpoch) ([]Effect, error) {
	if sv := ev.Voucher; sv != nil && c.Owned && !ev.Owner && sv.Lane >= 1 && sv.Lane <= c.rules.guardLane() {
		// What is on a slot has to be in the slot's own books too.
		return nil, fmt.Errorf("%w: lane %d by %q", ErrOwned, sv.Lane, c.Tag)
	}
	if ev.Under != nil && c.Direction == PCHOutbound {
		return nil, ErrOutbound
	}
	err := c.checkDraw(now, ev.Voucher, ev.Under, ev.Draws)
	if errors.Is(err, errHeld) {
		return ev.again(c, now)
	}
	if err != nil {
		return nil, err
	}
	sv := ev.Voucher
	l := c.peek(sv.Lane)
	if c.Direction == PCHOutbound {
		if sv.Nonce > l.Nonce {
			l.Agreed = sv.Amount
		}
		l.Refund = sv
		l.Nonce = max(l.Nonce, sv.Nonce)
		return ev.saved(c, big.Zero()), nil
	}
	cl := claimOf(sv, ev.Under)
	cl.Voucher, cl.Secret = sv, ev.Secret
	if cl.Locked && cl.Secret != nil && !cl.Secret.Opens(cl.Lock) {
		return nil, ErrSecret
	}
	delta := big.Zero()
	if cl.open() {
		most := big.Add(l.Head.Redeemed, l.worth)
		delta = big.Sub(big.Max(most, cl.Amount), most)
	}
	if min := value(ev.MinDelta); delta.LessThan(min) {
		return nil, &DeltaError{Delta: delta, Min: min}
	}
	before := c.redeemed()
	l = c.lane(sv.Lane)
	l.Nonce = sv.Nonce
	if !cl.Locked {
		l.Agreed = sv.Amount
	}
	l.push(cl)
	c.touch(l)
	took := big.Sub(c.redeemed(), before)
	c.kept = clamp(value(c.kept), big.Sub(value(c.kept), big.Min(took, value(ev.Draws))))
	return ev.saved(c, delta), nil
}

func (ev evReceive) saved(c *Channel, delta big.Int) []Effect {
	return append(c.enter(ev.Voucher), Effect{Kind: FxAnswer, Amount: delta})
}

// again is a voucher that we hold: worth nothing more, unless the secret is new.
func (ev evReceive) again(c *Channel, now abi.ChainEpoch) ([]Effect, error) {
	if ev.Secret == nil || c.Direction == PCHOutbound {
		return []Effect{{Kind: FxAnswer, Amount: big.Zero()}}, nil
	}
	return evSecret{Preimage: *ev.Secret}.step(c, now)
}

// CheckVoucher is what can be known of a voucher before it is submitted, its signature
// aside. errHeld: it is one that we hold, and as good as it was.
func (c *Channel) CheckVoucher(now abi.ChainEpoch, sv *SignedVoucher) error {
	return c.checkDraw(now, sv, nil, big.Zero())
}

// checkDraw is CheckVoucher of one that may take draws of what is kept, or that is of a
// lock under a point.
func (c *Channel) checkDraw(now abi.ChainEpoch, sv *SignedVoucher, under *PointLock, draws big.Int) error {
	if err := c.checkForm(sv); err != nil {
		return err
	}
	l := c.peek(sv.Lane)
	if l.holds(sv) || l.holdsUnder(under) {
		return errHeld
	}
	if c.Direction == PCHOutbound {
		return c.checkRefund(l, sv)
	}
	return c.checkVoucher(now, l, sv, under, value(draws))
}

// checkForm is what can be said without the lane.
func (c *Channel) checkForm(sv *SignedVoucher) error {
	switch {
	case sv == nil || sv.ChannelAddr != c.Addr:
		return ErrChannel
	case sv.Extra != nil:
		return ErrExtra
	case len(sv.Merges) != 0:
		return ErrMerges
	case sv.Lane > actor.MaxLane:
		return fmt.Errorf("%w: %d", ErrLane, sv.Lane)
	case sv.Amount.Int == nil || sv.Amount.Sign() < 0:
		return ErrZeroAmount
	case sv.Amount.BitLen() > maxAmountBits:
		return fmt.Errorf("%w: an amount of %d bits", ErrOverBalance, sv.Amount.BitLen())
	case len(sv.SecretHash) != 0 && len(sv.SecretHash) != tally.HashlockSize:
		return fmt.Errorf("%w: a hash of %d bytes", ErrLock, len(sv.SecretHash))
	}
	if c.Phase != PhaseOpen && c.Phase != PhaseSettling {
		return c.live()
	}
	return nil
}

// holds reports whether sv is one of the lane's vouchers, to the last bit.
func (l *Lane) holds(sv *SignedVoucher) bool {
	for i := range l.Claims {
		if cl := &l.Claims[i]; cl.Nonce == sv.Nonce && cl.Voucher != nil && sameVoucher(cl.Voucher, sv) {
			return true
		}
	}
	return l.Refund != nil && sameVoucher(l.Refund, sv)
}

// sameVoucher compares vouchers without Extra and Merges.
func sameVoucher(a, b *SignedVoucher) bool {
	if a.Signature == nil || b.Signature == nil {
		return false
	}
	return sameBody(a, b) && a.Signature.Type == b.Signature.Type && bytes.Equal(a.Signature.Data, b.Signature.Data)
}

// sameBody is sameVoucher without the signatures.
func sameBody(a, b *SignedVoucher) bool {
	return a.ChannelAddr == b.ChannelAddr && a.Lane == b.Lane && a.Nonce == b.Nonce && a.Amount.Equals(b.Amount) &&
		a.TimeLockMin == b.TimeLockMin && a.TimeLockMax == b.TimeLockMax && a.MinSettleHeight == b.MinSettleHeight &&
		bytes.Equal(a.SecretHash, b.SecretHash)
}

// evImport takes a voucher of ours back that we lost, with a store or in a crash:
// the other side shows it, and our signature on it is verified. It obliges us, so
// it counts whatever else we hold. Under is the lock of one that we signed under a
// point.
type evImport struct {
	Voucher *SignedVoucher
	Under   *PointLock
}

func (ev evImport) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	sv := ev.Voucher
	if err := c.checkForm(sv); err != nil {
		return nil, err
	}
	if ev.Under != nil && c.Direction == PCHInbound {
		return nil, ErrInbound
	}
	l := c.peek(sv.Lane)
	if l.holds(sv) || l.holdsUnder(ev.Under) {
		return nil, nil
	}
	if c.Direction == PCHInbound {
		return ev.refund(c, l)
	}
	cl := claimOf(sv, ev.Under)
	cl.Voucher = sv
	worthless := !cl.alive(&l.Deep, c.Deep.Height) ||
		slices.ContainsFunc(l.Claims, func(e Claim) bool { return e.Voucher != nil && e.displaces(&cl) })
	if worthless && sv.Nonce <= l.Nonce {
		return nil, nil
	}
	if err := c.room(l, &cl); err != nil {
		return nil, err
	}
	l = c.lane(sv.Lane)
	l.Nonce = max(l.Nonce, sv.Nonce)
	if !cl.Locked && l.stands(sv) {
		l.Agreed = big.Max(l.Agreed, sv.Amount)
	}
	if !worthless {
		l.insert(cl)
	}
	c.touch(l)
	return c.enter(sv), nil
}

// refund is the payee's: it gave the lane's money back, and lost the memory of it.
func (ev evImport) refund(c *Channel, l *Lane) ([]Effect, error) {
	sv := ev.Voucher
	if !bare(sv) {
		return nil, fmt.Errorf("%w: a refund says an amount and nothing else", ErrLock)
	}
	if l.Refund != nil && sv.Nonce <= l.Refund.Nonce || l.Deep.Known && sv.Nonce <= l.Deep.Nonce {
		return nil, nil
	}
	if c.Lanes[l.ID] == nil && len(c.Lanes) >= maxLanes {
		return nil, fmt.Errorf("%w: %d lanes", ErrTooMany, len(c.Lanes))
	}
	l = c.lane(sv.Lane)
	l.Nonce = max(l.Nonce, sv.Nonce)
	l.give(sv)
	l.Agreed = l.plain()
	c.touch(l)
	return c.enter(sv), nil
}

func (c *Channel) checkRefund(l *Lane, sv *SignedVoucher) error {
	if !bare(sv) {
		return fmt.Errorf("%w: a refund says an amount and nothing else", ErrLock)
	}
	if l.Head.Known && sv.Nonce <= l.Head.Nonce || l.Refund != nil && sv.Nonce <= l.Refund.Nonce {
		return fmt.Errorf("%w: refund %d on lane %d", ErrNonce, sv.Nonce, l.ID)
	}
	if most := big.Add(l.Head.Redeemed, l.reachHead); !sv.Amount.LessThan(most) {
		return fmt.Errorf("%w: refund to %v, lane %d has %v", ErrAmount, sv.Amount, l.ID, most)
	}
	return nil
}

func (c *Channel) checkVoucher(now abi.ChainEpoch, l *Lane, sv *SignedVoucher, under *PointLock, draws big.Int) error {
	r := c.rules
	if c.Owned && sv.Lane == 0 && !bare(sv) {
		return fmt.Errorf("%w: lane 0 of an owned channel settles the tab", ErrLock)
	}
	if sv.Amount.Sign() == 0 && sv.MinSettleHeight == 0 {
		return ErrZeroAmount
	}
	if err := c.boundSettle(now, sv.MinSettleHeight); err != nil {
		return err
	}
	settledAt := c.Head.SettlingAt // the earliest epoch at which vouchers end
	if settledAt == 0 {
		settledAt = max(now+r.SettleDelay, c.Head.MinSettling)
	}
	if sv.TimeLockMin > 0 && sv.TimeLockMin > settledAt-r.SubmitMargin {
		return fmt.Errorf("%w: from %d, the channel may settle at %d", ErrTimeLock, sv.TimeLockMin, settledAt)
	}
	if sv.TimeLockMax != 0 && (sv.TimeLockMax < sv.TimeLockMin || sv.TimeLockMax < now+r.SubmitMargin) {
		return fmt.Errorf("%w: until %d, epoch is %d", ErrTimeLock, sv.TimeLockMax, now)
	}
	if sv.Nonce <= l.Nonce && l.used() { // a fresh lane takes nonce 0
		return fmt.Errorf("%w: %d, lane %d has %d", ErrNonce, sv.Nonce, l.ID, l.Nonce)
	}
	if !rises(l, sv.Amount, sv.MinSettleHeight != 0) {
		return fmt.Errorf("%w: %v, lane %d has %v", ErrAmount, sv.Amount, l.ID, l.Agreed)
	}
	cl := claimOf(sv, under)
	total := c.redeemedWith(l, &cl)
	more := big.Sub(total, c.redeemed())
	if c.Phase == PhaseSettling && more.Sign() > 0 && (more.GreaterThan(draws) || now+r.SubmitMargin >= c.Head.SettlingAt) {
		// What only unlocks a lock that we hold is welcome, and what was kept room for
		// while there is time to submit it.
		return c.live()
	}
	if balance := big.Sub(c.confirmed(), big.Max(big.Zero(), big.Sub(value(c.kept), draws))); total.GreaterThan(balance) {
		return &OverBalanceError{Total: total, Balance: balance}
	}
	return c.room(l, &cl)
}
