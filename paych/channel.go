package paych

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych/actor"
)

// Phase is where a channel stands.
type Phase uint8

// Phases. Nothing but a receipt or the chain's state moves a channel on.
const (
	PhaseCreating  Phase = iota // its message is saved, no receipt yet
	PhaseFailed                 // its message failed
	PhaseOpen                   // on the chain
	PhaseSettling               // Settle is on the chain
	PhaseCollected              // the actor is gone
)

// String returns the phase in one word. The words are part of the API.
func (p Phase) String() string {
	if int(p) < len(phaseNames) {
		return phaseNames[p]
	}
	return fmt.Sprintf("phase %d", uint8(p))
}

var phaseNames = [...]string{"creating", "failed", "open", "settling", "collected"}

// phaseMoves is the one door for a channel's phase. A reorganisation can take
// evSettle and Collect back.
var phaseMoves = [len(phaseNames)][len(phaseNames)]bool{
	PhaseCreating:  {PhaseFailed: true, PhaseOpen: true},
	PhaseOpen:      {PhaseSettling: true, PhaseCollected: true},
	PhaseSettling:  {PhaseOpen: true, PhaseCollected: true},
	PhaseCollected: {PhaseOpen: true, PhaseSettling: true},
}

func (c *Channel) move(to Phase) {
	if c.Phase == to {
		return
	}
	if !phaseMoves[c.Phase][to] {
		panic("paych: a channel that is " + c.Phase.String() + " cannot become " + to.String())
	}
	c.Phase = to
}

// Rules are what a channel has to know of its chain and of our policy. Heights
// are in epochs.
type Rules struct {
	// SettleDelay of the chain.
	SettleDelay abi.ChainEpoch
	// SubmitMargin is how long a message may take to be mined. A voucher whose
	// time lock leaves less is refused.
	SubmitMargin abi.ChainEpoch
	// MaxSettleExtension bounds what a voucher's MinSettleHeight may add to
	// SettleDelay: a payer that set 2^62 would make Collect impossible for ever.
	MaxSettleExtension abi.ChainEpoch
	// SlotLanes is the number of lock slots of an owned channel, N: lane 0 settles
	// the tab, lanes 1..N are slots, lane N+1 is the guard.
	SlotLanes uint64
	// AutoCollect: a channel that has settled is collected without being asked.
	AutoCollect bool
}

func (r *Rules) guardLane() uint64 { return r.SlotLanes + 1 }

// Channel is one payment channel as we know it: what the chain shows, what was
// promised off the chain, and what is reserved. It is pure; Manager saves it and
// talks to the chain.
type Channel struct {
	// ID is our own number for it.
	ID uint64
	// Addr is undefined until the chain gave one.
	Addr address.Address
	// From and To are key addresses.
	From, To  address.Address
	Direction PCHDir
	Phase     Phase
	// Tag names the consumer that the channel was made for; Owned closes the lanes
	// of the tab, of the slots and of the guard to everybody else.
	Tag   string
	Owned bool
	// Amount is what it was created with; 0 where others created it.
	Amount big.Int
	// Created, Settled and Collected are our own messages that did so, or are to.
	Created, Settled, Collected cid.Cid
	// Buried: the actor is gone for good, and there is nothing to look at.
	Buried bool

	// Reserved is R.
	Reserved big.Int
	// TopUp is the one that is under way.
	TopUp *TopUp
	// NextLane is the lowest that AllocateLane may give.
	NextLane uint64
	// Vouchers counts those created and accepted, for the history.
	Vouchers uint64
	Lanes    map[uint64]*Lane

	// Head and Deep are the chain's view of it at the head and at finality.
	Head, Deep View
	// Final is what Collect paid; nil before.
	Final *Final

	rules *Rules
	queue []request

	sumHead, sumDeep, sumWorth big.Int
	firmHead, firmDeep         coverage

	// kept is what of an inbound channel only a voucher that draws on it may take. Who
	// keeps it says so again after a start.
	kept big.Int

	settling, collecting bool // a message is under way
	collectRetry         abi.ChainEpoch
	collectFails         uint8
}

// Final is the result of a collected channel.
type Final struct {
	Height abi.ChainEpoch
	ToSend big.Int // what the payee got
	Rest   big.Int // what the payer got back
	// Lanes are by rising number; their sum is ToSend.
	Lanes []LaneFinal
}

// NewChannel returns a channel that is being created.
func NewChannel(id uint64, dir PCHDir, from, to address.Address, amount big.Int, rules *Rules) *Channel {
	zero := big.Zero()
	return &Channel{
		ID: id, From: from, To: to, Direction: dir, Amount: value(amount),
		Reserved: zero, Lanes: make(map[uint64]*Lane),
		Head: emptyView(), Deep: emptyView(), rules: rules,
		sumHead: zero, sumDeep: zero, sumWorth: zero,
		firmHead: coverage{zero}, firmDeep: coverage{zero},
	}
}

// Control is our side of the channel.
func (c *Channel) Control() address.Address {
	if c.Direction == PCHInbound {
		return c.To
	}
	return c.From
}

// EffectKind says what the shell has to do.
type EffectKind uint8

// Effects. The shell carries them out in their order, and does not go on to the
// next before a save is on disk.
const (
	FxSave     EffectKind = iota + 1 // the channel's record
	FxSaveLane                       // Lane's record
	FxRecord                         // Voucher into the history
	FxSign                           // sign Voucher, then evSigned or evUnsigned
	FxTopUp                          // send Amount for Requests, then evTopUp…
	FxGrant                          // the reservations Requests are granted
	FxSubmit                         // send Voucher with Secret, then evSubmit…
	FxSettle                         // send Settle, then evSettle…
	FxCollect                        // send Collect, then evCollect…
	FxArchive                        // find out what Collect paid, then evFinished
	FxAnswer                         // the answer to the caller is Amount
)

// Effect is one thing to do.
type Effect struct {
	Kind     EffectKind
	Lane     uint64
	Amount   big.Int
	Voucher  *SignedVoucher
	Under    *PointLock // of FxAnswer: what evDraft asked for, given before
	Secret   *tally.Preimage
	Requests []uint64
}

// event is one thing that happened.
type event interface {
	step(c *Channel, now abi.ChainEpoch) ([]Effect, error)
}

// Step takes one event at the epoch now of the chain's head. On an error nothing
// has changed.
func (c *Channel) Step(now abi.ChainEpoch, ev event) ([]Effect, error) {
	fx, err := ev.step(c, now)
	if err != nil {
		return nil, err
	}
	if invariants {
		if err := c.Check(); err != nil {
			panic(err)
		}
	}
	return fx, nil
}

func (c *Channel) lane(id uint64) *Lane {
	l := c.Lanes[id]
	if l == nil {
		l = newLane(id)
		c.Lanes[id] = l
	}
	return l
}

// peek is lane without keeping a new one.
func (c *Channel) peek(id uint64) *Lane {
	if l := c.Lanes[id]; l != nil {
		return l
	}
	return newLane(id)
}

// live reports in an error why the channel takes no vouchers or funds any more.
func (c *Channel) live() error {
	switch c.Phase {
	case PhaseCreating:
		return ErrCreating
	case PhaseFailed:
		return ErrCreateFailed
	case PhaseSettling:
		return fmt.Errorf("%w at %d", ErrSettling, c.Head.SettlingAt)
	case PhaseCollected:
		return ErrCollected
	default:
		return nil
	}
}

// evOpened is the receipt of the message that created the channel.
type evOpened struct {
	OK   bool
	Addr address.Address
}

func (ev evOpened) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	if c.Phase != PhaseCreating {
		return nil, fmt.Errorf("paych: opened while %v", c.Phase)
	}
	if !ev.OK {
		c.move(PhaseFailed)
		return []Effect{{Kind: FxSave}}, nil
	}
	c.Addr = ev.Addr
	c.move(PhaseOpen)
	return []Effect{{Kind: FxSave}}, nil
}

// evFunding asks for money: for the channel, or for a reservation.
type evFunding struct {
	Request uint64 // the caller's number for the call
	Amount  big.Int
	Reserve bool
}

func (ev evFunding) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	if c.Direction != PCHOutbound {
		return nil, ErrInbound
	}
	if err := c.live(); err != nil {
		return nil, err
	}
	if ev.Amount.Int == nil || ev.Amount.Sign() <= 0 {
		return nil, ErrZeroAmount
	}
	if ev.Reserve && c.Funds().Free().GreaterThanEqual(ev.Amount) {
		c.Reserved = big.Add(c.Reserved, ev.Amount)
		return []Effect{{Kind: FxSave}, {Kind: FxGrant, Requests: []uint64{ev.Request}}}, nil
	}
	if len(c.queue) >= maxQueued {
		return nil, fmt.Errorf("%w: %d calls wait for a top-up", ErrTooMany, len(c.queue))
	}
	c.queue = append(c.queue, request{id: ev.Request, amount: ev.Amount, reserve: ev.Reserve})
	return c.startTopUp(), nil
}

// evWithdrawn takes back an evFunding that still waits; one whose message is under
// way stays.
type evWithdrawn struct{ Request uint64 }

func (ev evWithdrawn) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	c.queue = slices.DeleteFunc(c.queue, func(r request) bool { return r.id == ev.Request })
	return nil, nil
}

// evTopUpSent: its message is signed. It is saved with the channel's record, and
// only then published.
type evTopUpSent struct{}

func (evTopUpSent) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	if c.TopUp == nil || c.TopUp.Sent {
		return nil, errors.New("paych: no top-up to send")
	}
	c.TopUp.Sent = true
	c.TopUp.requests = nil
	return []Effect{{Kind: FxSave}}, nil
}

// evTopUpDone ends the top-up: by its receipt, or because no message could be
// made. A failed one fails the reservations that waited for it.
type evTopUpDone struct{ OK bool }

func (ev evTopUpDone) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	t := c.TopUp
	if t == nil {
		return nil, errors.New("paych: no top-up is under way")
	}
	c.TopUp = nil
	if ev.OK {
		c.Reserved = big.Add(c.Reserved, t.Reserve)
	}
	var fx []Effect
	if t.Sent {
		fx = append(fx, Effect{Kind: FxSave})
	}
	if c.live() != nil {
		return fx, nil // those who wait are told by Stranded
	}
	return append(fx, c.startTopUp()...), nil
}

// Stranded returns, once, the requests that wait for a top-up that will never be
// made, because the channel settles.
func (c *Channel) Stranded() []uint64 {
	if c.live() == nil || len(c.queue) == 0 {
		return nil
	}
	var ids []uint64
	for _, r := range c.queue {
		ids = append(ids, r.id)
	}
	c.queue = nil
	return ids
}

// evRelease gives reserved funds back.
type evRelease struct{ Amount big.Int }

func (ev evRelease) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	switch {
	case c.Direction != PCHOutbound:
		return nil, ErrInbound
	case ev.Amount.Int == nil || ev.Amount.Sign() <= 0:
		return nil, ErrZeroAmount
	case ev.Amount.GreaterThan(c.Reserved):
		return nil, fmt.Errorf("%w: release %v of %v", ErrNotReserved, ev.Amount, c.Reserved)
	}
	c.Reserved = big.Sub(c.Reserved, ev.Amount)
	return []Effect{{Kind: FxSave}}, nil
}

// evAllocateLane takes a lane that nobody used. The answer is in Lane of FxAnswer.
type evAllocateLane struct{}

func (evAllocateLane) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	if c.Direction != PCHOutbound {
		return nil, ErrInbound
	}
	if err := c.live(); err != nil {
		return nil, err
	}
	id := c.NextLane
	if c.Owned {
		id = max(id, c.rules.guardLane()+1)
	}
	for ; c.Lanes[id] != nil; id++ {
		if id == actor.MaxLane {
			return nil, ErrLane
		}
	}
	if id > actor.MaxLane {
		return nil, ErrLane
	}
	c.NextLane = id + 1
	return []Effect{{Kind: FxSave}, {Kind: FxAnswer, Lane: id}}, nil
}

// evOwn marks the channel as owned by the consumer tag.
type evOwn struct{ Tag string }

func (ev evOwn) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	if c.Owned && c.Tag != ev.Tag || ev.Tag == "" {
		return nil, fmt.Errorf("%w: by %q", ErrOwned, c.Tag)
	}
	c.Tag, c.Owned = ev.Tag, true
	return []Effect{{Kind: FxSave}}, nil
}

// evSecret opens the locks that it is the preimage of. FxAnswer has in Amount what
// the vouchers we hold are worth more by it, and in Lane how many locks it opened.
type evSecret struct {
	Preimage tally.Preimage
	// Under are the locks that it is the secret of the point of, at a payee each with
	// its completed voucher.
	Under map[*PointLock]*SignedVoucher
}

func (ev evSecret) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	before := c.worth()
	lock := ev.Preimage.Hashlock()
	opened := uint64(0)
	var fx []Effect
	for _, id := range slices.Sorted(maps.Keys(c.Lanes)) {
		l := c.Lanes[id]
		learnt := false
		for i := range l.Claims {
			if cl := &l.Claims[i]; cl.Locked && cl.Secret == nil && ev.opens(cl, lock) {
				if cl.Under != nil && c.Direction == PCHInbound {
					cl.Voucher = ev.Under[cl.Under]
				}
				secret := ev.Preimage
				cl.Secret = &secret
				learnt = true
				opened++
			}
		}
		if learnt {
			c.touch(l)
			fx = append(fx, Effect{Kind: FxSaveLane, Lane: id})
		}
	}
	return append(fx, Effect{Kind: FxAnswer, Lane: opened, Amount: big.Sub(c.worth(), before)}), nil
}

// opens reports whether a claim is one of those that the secret opens; lock is its
// hash.
func (ev *evSecret) opens(cl *Claim, lock tally.Hashlock) bool {
	if cl.Under == nil {
		return cl.Lock == lock
	}
	_, ok := ev.Under[cl.Under]
	return ok
}

// evSettle asks for settling.
type evSettle struct{}

func (evSettle) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	if err := c.live(); err != nil {
		return nil, err
	}
	if c.settling {
		return nil, ErrUnderWay
	}
	c.settling = true
	return []Effect{{Kind: FxSettle}}, nil
}

// evSettleDone ends the message, however it went: what it did, the chain's state
// shows.
type evSettleDone struct{}

func (evSettleDone) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	c.settling = false
	return nil, nil
}

// evCollect asks for the channel's money to be paid out.
type evCollect struct{}

func (evCollect) step(c *Channel, now abi.ChainEpoch) ([]Effect, error) {
	switch {
	case c.Phase == PhaseOpen:
		return nil, ErrNotSettling
	case c.Phase != PhaseSettling:
		return nil, c.live()
	case now < c.Head.SettlingAt:
		return nil, &TooEarlyError{Now: now, SettlingAt: c.Head.SettlingAt}
	case c.collecting:
		return nil, ErrUnderWay
	}
	c.collecting = true
	return []Effect{{Kind: FxCollect}}, nil
}

// evCollectDone ends the message.
type evCollectDone struct{ OK bool }

func (ev evCollectDone) step(c *Channel, now abi.ChainEpoch) ([]Effect, error) {
	c.collecting = false
	if ev.OK {
		c.collectFails = 0
	} else {
		c.collectRetry = now + wait(c.collectFails)
		c.collectFails++
	}
	return nil, nil
}

// wait is how many epochs pass before the next try after n failed ones.
func wait(n uint8) abi.ChainEpoch { return 1 << min(n, 6) }

// evSubmit marks a voucher as on its way to the chain.
type evSubmit struct {
	Lane, Nonce uint64
}

func (ev evSubmit) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	l := c.peek(ev.Lane)
	if l.sending != nil {
		return nil, ErrUnderWay
	}
	c.lane(ev.Lane).sending = &ev.Nonce
	return nil, nil
}

// evSubmitDone ends it.
type evSubmitDone struct {
	Lane, Nonce uint64
	OK          bool
	Refused     bool // the chain does not take the voucher
}

func (ev evSubmitDone) step(c *Channel, now abi.ChainEpoch) ([]Effect, error) {
	l := c.lane(ev.Lane)
	l.sending = nil
	if ev.OK {
		l.fails = 0
	} else {
		l.retry = now + wait(l.fails)
		l.fails = min(l.fails+1, 100)
		if cl := l.find(ev.Nonce); cl != nil && ev.Refused && cl.refused < maxRefused {
			cl.refused++
			c.touch(l)
		}
	}
	return nil, nil
}

// snapshot is what the chain shows of a channel at one height.
type snapshot struct {
	View
	Lanes []actor.Lane
}

// final is what Collect pays on this state.
func (s *snapshot) final(height abi.ChainEpoch) Final {
	f := Final{Height: height, ToSend: s.ToSend, Rest: big.Sub(s.Balance, s.ToSend)}
	for _, l := range s.Lanes {
		f.Lanes = append(f.Lanes, LaneFinal{Lane: l.Lane, Redeemed: value(l.Redeemed), Nonce: l.Nonce})
	}
	slices.SortFunc(f.Lanes, func(a, b LaneFinal) int { return cmp.Compare(a.Lane, b.Lane) })
	return f
}

// lastSeen is the newest state of the channel that we saw.
func (c *Channel) lastSeen() snapshot {
	s := snapshot{View: c.Head}
	for id, l := range c.Lanes {
		if l.Head.Known {
			s.Lanes = append(s.Lanes, actor.Lane{Lane: id, Nonce: l.Head.Nonce, Redeemed: l.Head.Redeemed})
		}
	}
	return s
}

// evViewed is a look at the chain. Gone says that the actor is no more, Buried
// that it is gone at finality too.
type evViewed struct {
	Head, Deep   snapshot
	Gone, Buried bool
}

func (ev evViewed) step(c *Channel, now abi.ChainEpoch) ([]Effect, error) {
	if c.Phase == PhaseCreating || c.Phase == PhaseFailed {
		return nil, fmt.Errorf("paych: viewed while %v", c.Phase)
	}
	if ev.Gone {
		if c.Phase == PhaseCollected && c.Final != nil && c.Buried == ev.Buried {
			return nil, nil
		}
		c.move(PhaseCollected)
		c.Buried = ev.Buried
		fx := []Effect{{Kind: FxSave}}
		if c.Final == nil {
			fx = append(fx, Effect{Kind: FxArchive})
		}
		return fx, nil
	}
	changed := c.Phase == PhaseCollected || !c.Head.same(&ev.Head.View) || !c.Deep.same(&ev.Deep.View)
	c.Head, c.Deep = ev.Head.View, ev.Deep.View
	switch {
	case c.Head.SettlingAt != 0:
		c.move(PhaseSettling)
	default:
		c.move(PhaseOpen)
	}
	c.Final, c.Buried = nil, false
	old := make(map[uint64][2]LaneView, len(c.Lanes))
	for id, l := range c.Lanes {
		old[id] = [2]LaneView{l.Head, l.Deep}
		l.Head, l.Deep = LaneView{Redeemed: big.Zero()}, LaneView{Redeemed: big.Zero()}
	}
	see := func(s *snapshot, pick func(*Lane) *LaneView) {
		for _, x := range s.Lanes {
			l := c.lane(x.Lane)
			*pick(l) = LaneView{Known: true, Nonce: x.Nonce, Redeemed: value(x.Redeemed)}
			if x.Nonce > l.Nonce {
				// A voucher that we do not know, perhaps one that a lost store knew.
				l.Nonce, l.Agreed = x.Nonce, value(x.Redeemed)
			}
		}
	}
	see(&ev.Head, func(l *Lane) *LaneView { return &l.Head })
	see(&ev.Deep, func(l *Lane) *LaneView { return &l.Deep })
	// Heights alone are not worth a write in every epoch.
	var fx []Effect
	if changed {
		fx = append(fx, Effect{Kind: FxSave})
	}
	for _, id := range slices.Sorted(maps.Keys(c.Lanes)) {
		l := c.Lanes[id]
		was, known := old[id]
		slot := c.Owned && c.Direction == PCHOutbound && id >= 1 && id <= c.rules.SlotLanes
		if l.prune(c.Deep.Height, slot) || !known || !was[0].same(&l.Head) || !was[1].same(&l.Deep) {
			fx = append(fx, Effect{Kind: FxSaveLane, Lane: id})
		}
		c.touch(l)
	}
	return append(fx, c.watch(now)...), nil
}

// over reports whether there is nothing to look at any more. A stop may come after
// a collect was seen for good and before its result was read.
func (c *Channel) over() bool { return c.Buried && c.Final != nil }

// evFinished tells what Collect paid.
type evFinished struct{ Final Final }

func (ev evFinished) step(c *Channel, _ abi.ChainEpoch) ([]Effect, error) {
	if c.Phase != PhaseCollected {
		return nil, fmt.Errorf("paych: final result while %v", c.Phase)
	}
	f := ev.Final
	c.Final = &f
	return []Effect{{Kind: FxSave}}, nil
}

// watch is what either side has to do by itself, with the chain at now.
func (c *Channel) watch(now abi.ChainEpoch) []Effect {
	var fx []Effect
	at := c.Head.SettlingAt
	// A message that is sent now is mined at now + 1 at the earliest.
	if at == 0 || now+1 < at {
		for _, id := range slices.Sorted(maps.Keys(c.Lanes)) {
			l := c.Lanes[id]
			if l.sending != nil || now < l.retry {
				continue
			}
			var sv *SignedVoucher
			var secret *tally.Preimage
			if c.Direction == PCHOutbound {
				sv = c.dueRefund(l, now)
			} else {
				sv, secret = c.dueClaim(l, now)
			}
			if sv == nil {
				continue
			}
			nonce := sv.Nonce
			l.sending = &nonce
			fx = append(fx, Effect{Kind: FxSubmit, Lane: id, Voucher: sv, Secret: secret})
		}
	}
	if c.dueCollect(now) {
		c.collecting = true
		fx = append(fx, Effect{Kind: FxCollect})
	}
	return fx
}

// dueRefund is the payer's duty: a voucher that the payee signed stands for what
// both agreed, and whatever is on the chain against it, or may still come there
// before the channel is settled, is put right.
func (c *Channel) dueRefund(l *Lane, now abi.ChainEpoch) *SignedVoucher {
	r := l.Refund
	if r == nil || l.Head.Known && l.Head.Nonce >= r.Nonce {
		return nil
	}
	if l.Head.Known && l.Head.Redeemed.GreaterThan(r.Amount) {
		return r
	}
	if c.Head.SettlingAt == 0 {
		return nil
	}
	for i := range l.Claims {
		cl := &l.Claims[i]
		if cl.Nonce <= r.Nonce && cl.alive(&l.Head, now+1) && cl.Amount.GreaterThan(r.Amount) {
			return r
		}
	}
	return nil
}

// dueClaim is the payee's: when the channel settles, the best voucher of the
// lane; and before that, one that would expire unused, locked or not.
func (c *Channel) dueClaim(l *Lane, now abi.ChainEpoch) (*SignedVoucher, *tally.Preimage) {
	next := now + 1
	best := l.best(&l.Head, next)
	if c.Head.SettlingAt != 0 {
		for i := range l.Claims {
			cl := &l.Claims[i]
			if cl.Voucher != nil && cl.open() && cl.alive(&l.Head, next) &&
				cl.Voucher.MinSettleHeight > c.Head.MinSettling && (best == nil || cl == best) {
				return cl.Voucher, cl.proof() // the guard: it moves SettlingAt
			}
		}
		if best == nil || best.Voucher.TimeLockMin > next {
			return nil, nil
		}
		return best.Voucher, best.proof()
	}
	if best != nil && best.Expires != 0 && now >= best.Expires-c.rules.SubmitMargin &&
		best.Voucher.TimeLockMin <= next {
		return best.Voucher, best.proof()
	}
	return nil, nil
}

// dueCollect: the payee collects as soon as it can, the payer where the payee
// does not.
func (c *Channel) dueCollect(now abi.ChainEpoch) bool {
	if !c.rules.AutoCollect || c.Phase != PhaseSettling || c.collecting || now < c.collectRetry {
		return false
	}
	if c.Direction == PCHInbound {
		return now >= c.Head.SettlingAt && c.Head.ToSend.Sign() > 0
	}
	return now >= c.Head.SettlingAt+c.rules.SubmitMargin && c.Head.Balance.GreaterThan(c.Head.ToSend)
}

// Restless reports whether the channel has to be looked at in each epoch.
func (c *Channel) Restless() bool {
	if c.Phase == PhaseSettling {
		return true
	}
	if c.Phase != PhaseOpen {
		return false
	}
	for _, l := range c.Lanes {
		for i := range l.Claims {
			if l.Claims[i].Expires != 0 {
				return true
			}
		}
	}
	return false
}

// curious reports whether a secret that the chain shows would be news.
func (c *Channel) curious() bool {
	for _, l := range c.Lanes {
		for i := range l.Claims {
			if cl := &l.Claims[i]; cl.Locked && cl.Secret == nil {
				return true
			}
		}
	}
	return false
}
