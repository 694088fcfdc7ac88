package paych

import (
	"errors"
	"fmt"
	"slices"

	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"

	"github.com/tallystick/tally"
)

const (
	// maxClaims bounds the vouchers of one lane that can still be submitted each
	// for itself. A lane that only rises has one, a lock slot two or three.
	maxClaims = 64
	// maxLanes bounds the lanes of a channel: each costs the payee one message
	// when the channel settles, and all of them have to be mined before SettlingAt.
	maxLanes = 1024
)

// Claim is what one voucher can bring its payee. Of several claims on a lane the
// one that is submitted last with the highest nonce counts, so that a claim
// matters as long as its nonce is above the chain's.
type Claim struct {
	Nonce uint64
	// Amount is the lane's total that the claim is worth. It is below the
	// voucher's where a later refund was agreed and the voucher is the way to what
	// was left.
	Amount big.Int
	// Expires is the last epoch of its time lock; 0: never.
	Expires abi.ChainEpoch
	// Locked says that the voucher has a hash lock, Lock; Secret opens it where it
	// is known.
	Locked bool
	Lock   tally.Hashlock
	Secret *tally.Preimage
	// Under is the lock of a claim under a point, which is Locked too, by no Lock, and
	// whose Secret is the point's; nil while it is being signed.
	Under *PointLock
	// Voucher is nil while it is being signed. Under a point it has no signature, but
	// at the payee that of the completed lock, as soon as the secret is known.
	Voucher *SignedVoucher

	// drawn is what an unsigned voucher took from the reservations.
	drawn big.Int
	// refused counts how often the chain would not take it.
	refused uint8
}

// maxRefused is how often a claim is tried before another of its lane is: the
// chain may refuse it for what another voucher did, and that passes.
const maxRefused = 3

// open reports whether the payee could submit the claim, time aside.
func (cl *Claim) open() bool { return !cl.Locked || cl.Secret != nil }

// proof is what the chain has to be shown with the voucher: nothing of a lock under a
// point, whose secret is in the signature.
func (cl *Claim) proof() *tally.Preimage {
	if cl.Under != nil {
		return nil
	}
	return cl.Secret
}

// alive reports whether the claim can still be redeemed on the lane as v shows it.
func (cl *Claim) alive(v *LaneView, at abi.ChainEpoch) bool {
	return (!v.Known || cl.Nonce > v.Nonce) && (cl.Expires == 0 || at <= cl.Expires)
}

// outlives reports whether cl can be redeemed for as long as other.
func (cl *Claim) outlives(other *Claim) bool {
	return cl.Expires == 0 || other.Expires != 0 && other.Expires <= cl.Expires
}

// LaneView is a lane as the chain shows it.
type LaneView struct {
	Known    bool // some voucher was submitted on it
	Nonce    uint64
	Redeemed big.Int
}

func (v *LaneView) same(o *LaneView) bool {
	return v.Known == o.Known && v.Nonce == o.Nonce && v.Redeemed.Equals(o.Redeemed)
}

// Lane is one lane of a channel.
type Lane struct {
	ID uint64
	// Nonce is the highest that any voucher of the lane took, ours, received or
	// seen on the chain.
	Nonce uint64
	// Agreed is the lane's total as both sides have it: of the last voucher
	// without a hash lock, or of a refund after it.
	Agreed big.Int
	// Claims by rising nonce: the vouchers of the payer that may still be
	// submitted and that no later one makes worthless. A payer may have two of one
	// nonce, where it lost the first with its store and was shown it later.
	Claims []Claim
	// Refund is the newest voucher that the payee signed; nil where there is none.
	Refund *SignedVoucher
	// Head and Deep are the lane at the chain's head and at its finality.
	Head, Deep LaneView

	// reachHead and reachDeep are how much more than redeemed the claims can
	// bring at the most; worth is how much more they bring now.
	reachHead, reachDeep, worth big.Int
	// firmHead and firmDeep are the same for the cover, at either view.
	firmHead, firmDeep big.Int
	// sending is the nonce of a voucher on its way to the chain; retry says from
	// which epoch a failed one may be tried again.
	sending *uint64
	retry   abi.ChainEpoch
	fails   uint8
}

func newLane(id uint64) *Lane {
	zero := big.Zero()
	return &Lane{
		ID: id, Agreed: zero, Head: LaneView{Redeemed: zero}, Deep: LaneView{Redeemed: zero},
		reachHead: zero, reachDeep: zero, worth: zero, firmHead: zero, firmDeep: zero,
	}
}

// reach is how much more than v has the lane can bring, with extra beside its
// claims where that is not nil. All claims count, also those whose secret is
// unknown to us: their payee may know it.
func (l *Lane) reach(v *LaneView, at abi.ChainEpoch, extra *Claim) big.Int {
	most := v.Redeemed
	for i := range l.Claims {
		if cl := &l.Claims[i]; cl.alive(v, at) && cl.Amount.GreaterThan(most) {
			most = cl.Amount
		}
	}
	if extra != nil && extra.alive(v, at) && extra.Amount.GreaterThan(most) {
		most = extra.Amount
	}
	return big.Sub(most, v.Redeemed)
}

// best is the claim that brings the payee most now: the highest amount, and of
// equal ones the highest nonce. Nil where none brings more than is redeemed.
// Claims that the chain refuses come last.
func (l *Lane) best(v *LaneView, at abi.ChainEpoch) *Claim {
	var best, last *Claim
	for i := range l.Claims {
		cl := &l.Claims[i]
		if cl.Voucher == nil || !cl.open() || !cl.alive(v, at) || !cl.Amount.GreaterThan(v.Redeemed) {
			continue
		}
		pick := &best
		if cl.refused >= maxRefused {
			pick = &last
		}
		if *pick == nil || cl.Amount.GreaterThanEqual((*pick).Amount) {
			*pick = cl
		}
	}
	if best == nil {
		return last
	}
	return best
}

// used reports whether any voucher took a nonce of the lane.
func (l *Lane) used() bool {
	return l.Nonce > 0 || l.Head.Known || l.Refund != nil || len(l.Claims) > 0
}

// find returns the claim with this nonce, or nil.
func (l *Lane) find(nonce uint64) *Claim {
	for i := range l.Claims {
		if l.Claims[i].Nonce == nonce {
			return &l.Claims[i]
		}
	}
	return nil
}

// displaces reports whether cl makes e worthless: it brings as much, for as long,
// on no more conditions, and redeeming e first takes nothing from it.
func (cl *Claim) displaces(e *Claim) bool {
	return e.Nonce < cl.Nonce && e.Amount.LessThanEqual(cl.Amount) && cl.open() && cl.outlives(e)
}

// crowded reports whether cl finds no place on the lane.
func (l *Lane) crowded(cl *Claim) bool {
	if len(l.Claims) < maxClaims {
		return false
	}
	return !slices.ContainsFunc(l.Claims, func(e Claim) bool { return cl.displaces(&e) })
}

// push adds a claim above all others. Those that it makes worthless go once it is
// signed, for until then it may be taken back.
func (l *Lane) push(cl Claim) {
	l.Claims = append(l.Claims, cl)
	l.tidy()
}

// tidy drops the claims that a signed one makes worthless.
func (l *Lane) tidy() {
	all := slices.Clone(l.Claims)
	l.Claims = slices.DeleteFunc(l.Claims, func(e Claim) bool {
		return e.Voucher != nil && slices.ContainsFunc(all, func(cl Claim) bool { return cl.Voucher != nil && cl.displaces(&e) })
	})
}

// insert adds a signed claim at its nonce's place.
func (l *Lane) insert(cl Claim) {
	i := len(l.Claims)
	for i > 0 && l.Claims[i-1].Nonce > cl.Nonce {
		i--
	}
	l.Claims = slices.Insert(l.Claims, i, cl)
	l.tidy()
}

// unsigned returns the claim with this nonce that waits for its signature, or nil.
func (l *Lane) unsigned(nonce uint64) *Claim {
	for i := range l.Claims {
		if cl := &l.Claims[i]; cl.Nonce == nonce && cl.Voucher == nil {
			return cl
		}
	}
	return nil
}

// drop removes the unsigned claim with this nonce.
func (l *Lane) drop(nonce uint64) {
	l.Claims = slices.DeleteFunc(l.Claims, func(e Claim) bool { return e.Nonce == nonce && e.Voucher == nil })
}

// prune drops the claims that the final chain made worthless, and says whether
// there were any. secrets keeps those of locks that the chain has opened, until the
// voucher that follows: whoever gave the lock has to learn the preimage, and may
// have been away.
func (l *Lane) prune(final abi.ChainEpoch, secrets bool) bool {
	n := len(l.Claims)
	l.Claims = slices.DeleteFunc(l.Claims, func(e Claim) bool {
		learnt := secrets && e.Locked && e.Secret != nil && (l.Refund == nil || l.Refund.Nonce < e.Nonce)
		return e.Voucher != nil && !e.alive(&l.Deep, final) && !learnt
	})
	return len(l.Claims) != n
}

// give books a refund that we, the payee, sign: what stays of the lane is its
// amount. Locks below it are never submitted; a plain voucher stays as the way to
// what is left.
func (l *Lane) give(refund *SignedVoucher) {
	l.Refund = refund
	kept := l.Claims[:0]
	var spare *Claim // the lowest that reaches the amount
	for _, cl := range l.Claims {
		if cl.Nonce > refund.Nonce || cl.Amount.LessThanEqual(refund.Amount) && !cl.Locked {
			kept = append(kept, cl)
			continue
		}
		if !cl.Locked && (spare == nil || cl.Amount.LessThan(spare.Amount)) {
			spare = &cl
		}
	}
	l.Claims = kept
	enough := slices.ContainsFunc(kept, func(cl Claim) bool {
		return cl.Nonce < refund.Nonce && cl.Amount.Equals(refund.Amount)
	})
	if spare != nil && !enough {
		cl := *spare
		cl.Amount = refund.Amount
		l.Claims = append(l.Claims, cl)
		slices.SortFunc(l.Claims, func(a, b Claim) int {
			if a.Nonce < b.Nonce {
				return -1
			}
			return 1
		})
	}
	l.Agreed = refund.Amount
}

// View is a channel as the chain shows it at one height.
type View struct {
	Height      abi.ChainEpoch
	Balance     big.Int
	ToSend      big.Int
	SettlingAt  abi.ChainEpoch
	MinSettling abi.ChainEpoch
}

// same reports whether two views differ in nothing but their height.
func (v *View) same(o *View) bool {
	return v.Balance.Equals(o.Balance) && v.ToSend.Equals(o.ToSend) && v.SettlingAt == o.SettlingAt && v.MinSettling == o.MinSettling
}

func emptyView() View { return View{Balance: big.Zero(), ToSend: big.Zero()} }

// Funds is the account of a channel, in attoFIL. Free = C − V − R − H − A.
type Funds struct {
	Confirmed big.Int // C: what the chain holds, at its finality
	Redeemed  big.Int // V: what vouchers have taken, on the chain or not
	Reserved  big.Int // R: promised to consumers and not yet spent
	Held      big.Int // H: of the free funds, for reservations that wait for a top-up
	Arrived   big.Int // A: came with the top-up that is under way, and belongs to it
}

// Free is what nobody has a claim on. Below 0 after a reorganisation of the
// chain took money back.
func (f Funds) Free() big.Int {
	return big.Sub(f.spendable(), f.Reserved)
}

// spendable is what a voucher may take: R + Free.
func (f Funds) spendable() big.Int {
	return big.Sub(big.Sub(big.Sub(f.Confirmed, f.Redeemed), f.Held), f.Arrived)
}

// Funds returns the account.
func (c *Channel) Funds() Funds {
	f := Funds{
		Confirmed: c.confirmed(), Redeemed: c.redeemed(),
		Reserved: c.Reserved, Held: big.Zero(), Arrived: big.Zero(),
	}
	if t := c.TopUp; t != nil {
		f.Held = t.Held
		f.Arrived = clamp(big.Sub(f.Confirmed, t.Before), t.claimed())
	}
	return f
}

// confirmed is C. A balance only grows while a channel lives, so that the lower
// of the two views is the one that no reorganisation takes back.
func (c *Channel) confirmed() big.Int { return big.Min(c.Head.Balance, c.Deep.Balance) }

// redeemed is V, the higher of the two views: what falls, by a refund, counts
// once it is final.
func (c *Channel) redeemed() big.Int {
	return big.Max(big.Add(c.Head.ToSend, c.sumHead), big.Add(c.Deep.ToSend, c.sumDeep))
}

// redeemedWith is V with one more claim on l.
func (c *Channel) redeemedWith(l *Lane, cl *Claim) big.Int {
	head := big.Add(big.Sub(big.Add(c.Head.ToSend, c.sumHead), l.reachHead), l.reach(&l.Head, c.Deep.Height, cl))
	deep := big.Add(big.Sub(big.Add(c.Deep.ToSend, c.sumDeep), l.reachDeep), l.reach(&l.Deep, c.Deep.Height, cl))
	return big.Max(head, deep)
}

// worth is what the payee gets if it submits its best vouchers now. A view at
// the head, for there is where it would submit them.
func (c *Channel) worth() big.Int { return big.Add(c.Head.ToSend, c.sumWorth) }

// touch brings the sums up to date after l changed.
func (c *Channel) touch(l *Lane) {
	head, deep := l.reach(&l.Head, c.Deep.Height, nil), l.reach(&l.Deep, c.Deep.Height, nil)
	worth := big.Zero()
	if b := l.best(&l.Head, c.Head.Height+1); b != nil {
		worth = big.Sub(b.Amount, l.Head.Redeemed)
	}
	c.sumHead = big.Add(c.sumHead, big.Sub(head, l.reachHead))
	c.sumDeep = big.Add(c.sumDeep, big.Sub(deep, l.reachDeep))
	c.sumWorth = big.Add(c.sumWorth, big.Sub(worth, l.worth))
	l.reachHead, l.reachDeep, l.worth = head, deep, worth
	if c.Direction != PCHInbound {
		return // only a payee has cover
	}
	firmHead, firmDeep := l.firm(&l.Head, c.Head.Height+1), l.firm(&l.Deep, c.Head.Height+1)
	c.firmHead.sum = big.Add(c.firmHead.sum, big.Sub(firmHead, l.firmHead))
	c.firmDeep.sum = big.Add(c.firmDeep.sum, big.Sub(firmDeep, l.firmDeep))
	l.firmHead, l.firmDeep = firmHead, firmDeep
}

// TopUp is a message that brings money to the channel.
type TopUp struct {
	// Amount is what the message carries; Before is C when it was decided.
	Amount, Before big.Int
	// Reserve becomes R when it arrives. Held is the part of it that was free
	// already.
	Reserve, Held big.Int
	// Sent: the message is saved.
	Sent bool

	requests []uint64
}

// claimed is the part of the amount that the reservations wait for.
func (t *TopUp) claimed() big.Int { return clamp(big.Sub(t.Reserve, t.Held), t.Amount) }

// request is a call that waits for a top-up.
type request struct {
	id      uint64
	amount  big.Int
	reserve bool
}

// maxQueued bounds the calls that wait for the next top-up of one channel.
const maxQueued = 4096

// startTopUp merges what is queued into one message. Reservations that fit by
// now are granted without one.
func (c *Channel) startTopUp() []Effect {
	if c.TopUp != nil || len(c.queue) == 0 {
		return nil
	}
	free := c.Funds().Free()
	t := &TopUp{Amount: big.Zero(), Before: c.confirmed(), Reserve: big.Zero(), Held: big.Zero()}
	var granted, waiting []uint64
	for _, r := range c.queue {
		switch {
		case !r.reserve:
			t.Amount = big.Add(t.Amount, r.amount)
			waiting = append(waiting, r.id)
		case free.GreaterThanEqual(r.amount):
			c.Reserved = big.Add(c.Reserved, r.amount)
			free = big.Sub(free, r.amount)
			granted = append(granted, r.id)
		default:
			// free may be below 0; the message makes good for that too.
			t.Held = big.Add(t.Held, big.Max(free, big.Zero()))
			t.Amount = big.Add(t.Amount, big.Sub(r.amount, free))
			t.Reserve = big.Add(t.Reserve, r.amount)
			free = big.Zero()
			waiting = append(waiting, r.id)
		}
	}
	c.queue = nil
	var fx []Effect
	if len(granted) > 0 {
		fx = append(fx, Effect{Kind: FxSave}, Effect{Kind: FxGrant, Requests: granted})
	}
	if len(waiting) > 0 {
		t.requests = waiting
		c.TopUp = t
		fx = append(fx, Effect{Kind: FxTopUp, Amount: t.Amount, Requests: waiting})
	}
	return fx
}

// clamp returns x within 0 and most.
func clamp(x, most big.Int) big.Int { return big.Max(big.Zero(), big.Min(x, most)) }

// value returns x, or 0 where it is nil.
func value(x big.Int) big.Int {
	if x.Int == nil {
		return big.Zero()
	}
	return x
}

// Check returns the first invariant that is broken: a bug of ours.
func (c *Channel) Check() error {
	head, deep, worth := big.Zero(), big.Zero(), big.Zero()
	firmHead, firmDeep := big.Zero(), big.Zero()
	for id, l := range c.Lanes {
		if l.ID != id {
			return fmt.Errorf("paych: lane %d is filed as %d", l.ID, id)
		}
		last := uint64(0)
		for i := range l.Claims {
			cl := &l.Claims[i]
			if cl.Nonce < last || cl.Nonce == last && i > 0 && c.Direction == PCHInbound || cl.Nonce > l.Nonce {
				return fmt.Errorf("paych: lane %d claim nonce %d after %d, highest %d", id, cl.Nonce, last, l.Nonce)
			}
			if cl.Amount.Int == nil || cl.Amount.Sign() < 0 {
				return fmt.Errorf("paych: lane %d claim %d over %v", id, cl.Nonce, cl.Amount)
			}
			if err := c.checkUnder(cl); err != nil {
				return fmt.Errorf("paych: lane %d claim %d: %w", id, cl.Nonce, err)
			}
			last = cl.Nonce
		}
		head, deep, worth = big.Add(head, l.reachHead), big.Add(deep, l.reachDeep), big.Add(worth, l.worth)
		firmHead, firmDeep = big.Add(firmHead, l.firmHead), big.Add(firmDeep, l.firmDeep)
		if got := l.reach(&l.Head, c.Deep.Height, nil); !got.Equals(l.reachHead) {
			return fmt.Errorf("paych: lane %d reaches %v, counted %v", id, got, l.reachHead)
		}
		if got := l.reach(&l.Deep, c.Deep.Height, nil); !got.Equals(l.reachDeep) {
			return fmt.Errorf("paych: lane %d reaches %v at finality, counted %v", id, got, l.reachDeep)
		}
	}
	if !head.Equals(c.sumHead) || !deep.Equals(c.sumDeep) || !worth.Equals(c.sumWorth) {
		return fmt.Errorf("paych: sums %v %v %v, counted %v %v %v", head, deep, worth, c.sumHead, c.sumDeep, c.sumWorth)
	}
	if !firmHead.Equals(c.firmHead.sum) || !firmDeep.Equals(c.firmDeep.sum) {
		return fmt.Errorf("paych: cover %v %v, counted %v %v", firmHead, firmDeep, c.firmHead.sum, c.firmDeep.sum)
	}
	if c.Reserved.Sign() < 0 {
		return fmt.Errorf("paych: %v reserved", c.Reserved)
	}
	if c.Direction == PCHInbound && (c.Reserved.Sign() != 0 || c.TopUp != nil) {
		return errors.New("paych: funds of an inbound channel are managed")
	}
	if t := c.TopUp; t != nil && (t.Held.GreaterThan(t.Reserve) || t.Amount.Sign() <= 0) {
		return fmt.Errorf("paych: top-up of %v for %v, of it held %v", t.Amount, t.Reserve, t.Held)
	}
	return nil
}
