package lock

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych/actor"
)

// Goal: an honest side loses nothing, whatever its neighbour does. Method: every
// state that can be reached is visited, with the real core, the
// chain's real rules (paych/actor) and a neighbour that may do at any moment
// whatever its keys, and what it has heard, let it do: say anything, submit any
// voucher, settle. It may also place a message in the newest block after the honest
// side has seen that block, which is a reorganisation of depth R = 1. The honest
// side is stopped before any of its effects and goes on from its disk. Its own
// messages to the chain take any time up to S.
//
// The same search runs on weakened variants, each without one guard, and has to
// find a loss in every one.

// scope is how much of the world is searched.
type scope struct {
	locks uint64 // one after the other in the slot
	long  bool   // also locks that end late, and under a guard
	end   int64  // where nobody settles, the channel is settled here
	most  int    // states; 0: all
	// points are the ids of locks under a point. hollow: their encrypted signatures are
	// of nothing, as where a payee does not check them.
	points [modelLocks + 1]bool
	hollow bool
}

// The scopes that a search can be through with.
var (
	oneLock  = scope{locks: 1, long: true, end: 2}
	twoLocks = scope{locks: 2, end: 3}
)

const modelLocks = 2

var (
	modelPayer, modelPayee, modelSelf = idAddress(101), idAddress(102), idAddress(103)
	modelAmounts                      = [modelLocks + 1]tally.Amount{0, 5, 3}
	modelBalance                      = big.NewInt(20)
)

func idAddress(n uint64) address.Address {
	a, err := address.NewIDAddress(n)
	if err != nil {
		panic(err)
	}
	return a
}

// first is a lock's kind: 2 of a point, of which x is the preimage's hash here.
func (sc *scope) first(id uint64) byte {
	if sc.points[id] {
		return 2
	}
	return 0
}

func modelOpens(y [33]byte, secret tally.Preimage) bool {
	return y[0] == 2 && secret.Opens(tally.Hashlock(y[1:]))
}

// sealed reports whether a voucher is worth something only with a secret.
func (v *Voucher) sealed() bool { return v.Locked || v.Point != 0 }

func modelPreimage(id uint64) tally.Preimage { return tally.Preimage{byte(id)} }

// modelTerms are small, with every time above 0 and different enough to be told
// apart.
func modelTerms() Terms {
	return Terms{Finality: 1, Inclusion: 1, Grace: 1, SettleDelay: 7, Margin: 3, Extension: 5, Slots: 1, OpensPoint: modelOpens}
}

var modelEnv = actor.Env{
	Self:    modelSelf,
	Resolve: func(a address.Address) (address.Address, bool) { return a, true },
	Verify: func(signer address.Address, sig crypto.Signature, _ []byte) error {
		if signer.String() != string(sig.Data) {
			return fmt.Errorf("signed by %s", sig.Data)
		}
		return nil
	},
}

// modelVoucher is v as the chain takes it.
func modelVoucher(v Voucher, signer address.Address) actor.SignedVoucher {
	sv := actor.SignedVoucher{
		ChannelAddr: modelSelf, Lane: v.Lane, Nonce: v.Nonce, Amount: big.NewIntUnsigned(uint64(v.Amount)),
		TimeLockMax: abi.ChainEpoch(v.Expires), MinSettleHeight: abi.ChainEpoch(v.MinSettle),
		Signature: &crypto.Signature{Type: crypto.SigTypeSecp256k1, Data: []byte(signer.String())},
	}
	if v.Locked {
		sv.SecretHash = v.Hash[:]
	}
	return sv
}

// signed is what an account holds: a voucher and who signed it.
type signed struct {
	v     Voucher
	payer bool
}

func (x signed) String() string {
	return fmt.Sprintf("%v%d.%d/%d/%d/%d/%d/%x", x.payer, x.v.Lane, x.v.Nonce, x.v.Amount, x.v.Expires, x.v.MinSettle, x.v.Point, x.v.Hash[:2])
}

// pending is a message of the honest side on its way to the chain.
type pending struct {
	x      signed
	secret uint64 // id of the preimage
	by     int64
}

// model is one state of the world.
type model struct {
	role Role
	s    *Slots
	disk map[uint64]string
	// account of the honest side: what it kept, or signed; dead: a CANCEL that it
	// signed as the payee, below which it submits nothing. Known secrets by id.
	account map[string]signed
	dead    uint64
	secrets map[uint64]bool
	// heard is what the neighbour holds, and the preimages that it knows.
	heard map[string]signed
	knows map[uint64]bool

	now  int64
	st   actor.State
	last []actor.Lane // of the epoch before: final
	used map[uint64]bool
	pool []pending

	// Ghosts. up: what the way in of a lock of ours came to; owed: what we have to
	// get as the payee.
	offered uint64
	up      [modelLocks + 1]string
	owed    [modelLocks + 1]tally.Amount
	arrived [modelLocks + 1]bool // paid for on the way out, and known on disk
	crashes int
	trace   []string
	scope   *scope
}

// weakness is a guard taken out.
type weakness struct {
	name string
	role Role
	// saveLast: a step's saves come after what it sends and signs.
	saveLast bool
	// failOnReject: a reject without a CANCEL fails the way in.
	failOnReject bool
	// unfinal: the head counts as final.
	unfinal bool
	// silent: what is due on the chain is not sent; of the guard alone, or all.
	silentSlots, silentGuard bool
	// terms changes what the honest side reckons with.
	terms func(*Terms)
	// tamper changes the core before it takes an event.
	tamper func(*Slots, *Event)
	// owedAlways: preimages are shown however late it is.
	owedAlways bool
}

func newModel(role Role, w *weakness, sc *scope) *model {
	t := modelTerms()
	if w.terms != nil {
		w.terms(&t)
	}
	return &model{
		scope: sc, role: role, s: New(role, t), disk: map[uint64]string{}, account: map[string]signed{}, secrets: map[uint64]bool{},
		heard: map[string]signed{}, knows: map[uint64]bool{}, used: map[uint64]bool{},
		st: actor.State{From: modelPayer, To: modelPayee, ToSend: big.Zero()}, crashes: 1,
	}
}

func (m *model) clone() *model {
	c := *m
	s := *m.s
	s.slots = slices.Clone(m.s.slots)
	c.s = &s
	c.disk, c.account, c.secrets = maps.Clone(m.disk), maps.Clone(m.account), maps.Clone(m.secrets)
	c.heard, c.knows, c.used = maps.Clone(m.heard), maps.Clone(m.knows), maps.Clone(m.used)
	c.st = *m.st.Clone()
	c.last, c.pool = slices.Clone(m.last), slices.Clone(m.pool)
	c.trace = slices.Clip(m.trace)
	return &c
}

func (m *model) key() [16]byte {
	var b bytes.Buffer
	s := m.s
	fmt.Fprintf(&b, "%v %d %v %v|", s.slots, s.guardNonce, s.guardHeight, s.guardRaw)
	fmt.Fprintf(&b, "%v|%d|%v|%v|%v|", m.disk, m.dead, m.secrets, m.knows, m.used)
	for _, set := range [...]map[string]signed{m.account, m.heard} {
		keys := slices.Collect(maps.Keys(set))
		sort.Strings(keys)
		fmt.Fprintf(&b, "%v|", keys)
	}
	fmt.Fprintf(&b, "%d %v %v %v %v %v|%v|", m.now, m.st.ToSend, m.st.SettlingAt, m.st.MinSettleHeight, m.st.Lanes, m.last, m.pool)
	fmt.Fprintf(&b, "%d %v %v %v %d", m.offered, m.up, m.owed, m.arrived, m.crashes)
	sum := blake2b.Sum256(b.Bytes())
	return [16]byte(sum[:])
}

func (m *model) note(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf(format, args...))
}

// apply runs a voucher on the chain, now.
func (m *model) apply(x signed, secret uint64) bool {
	signer, caller := modelPayer, modelPayee
	if !x.payer {
		signer, caller = modelPayee, modelPayer
	}
	var raw []byte
	if p := modelPreimage(secret); x.v.Locked {
		raw = p[:]
	} else if x.v.Point != 0 && (p.Hashlock() != x.v.Hash || m.scope.hollow) {
		return false // its signature cannot be completed
	}
	r := actor.Apply(&m.st, modelBalance, abi.ChainEpoch(m.now), abi.ChainEpoch(modelTerms().SettleDelay), caller,
		actor.Redeem(modelVoucher(x.v, signer), raw), modelEnv)
	if !r.ExitCode.IsSuccess() {
		return false
	}
	m.st = *r.State
	if x.v.sealed() {
		m.used[secret] = true
		m.knows[secret] = true
	}
	return true
}

func (m *model) settle() {
	caller := modelPayer
	r := actor.Apply(&m.st, modelBalance, abi.ChainEpoch(m.now), abi.ChainEpoch(modelTerms().SettleDelay), caller, actor.Settle(), modelEnv)
	if r.ExitCode.IsSuccess() {
		m.st = *r.State
	}
}

func (m *model) over() bool { return m.st.SettlingAt != 0 && abi.ChainEpoch(m.now) >= m.st.SettlingAt }

func viewOf(height int64, st *actor.State, lanes []actor.Lane) View {
	v := View{Height: height, SettlingAt: int64(st.SettlingAt), MinSettle: int64(st.MinSettleHeight)}
	for _, l := range lanes {
		v.Lanes = append(v.Lanes, LaneView{Lane: l.Lane, Nonce: l.Nonce, Redeemed: tally.Amount(l.Redeemed.Int.Uint64())})
	}
	return v
}

// do steps the core and carries the effects out; the node stops before the
// crash-th of them. It reports false where the core refused.
func (m *model) do(w *weakness, ev Event, crash int) bool {
	if w.tamper != nil {
		w.tamper(m.s, &ev)
	}
	if w.owedAlways {
		ev.Owed = true
	}
	fx, err := m.s.Step(m.now, &ev, nil)
	if err != nil {
		return false
	}
	if err := m.s.Check(); err != nil {
		panic(err)
	}
	if w.saveLast {
		sort.SliceStable(fx, func(i, j int) bool { return !isSave(fx[i].Kind) && isSave(fx[j].Kind) })
	}
	for n := 0; len(fx) > 0; n++ {
		if n == crash {
			m.restart(w)
			return true
		}
		for { // what follows a save is one batch
			e := fx[0]
			fx = append(m.carryOut(w, &e), fx[1:]...)
			if !isBatch(e.Kind) || len(fx) == 0 || !isBatch(fx[0].Kind) {
				break
			}
		}
	}
	return true
}

func isBatch(k EffectKind) bool {
	return k == FxSave || k == FxFulfilled || k == FxFailed || k == FxEnded || k == FxLost
}

func isSave(k EffectKind) bool {
	return k == FxSave || k == FxKeep || k == FxFulfilled || k == FxFailed || k == FxSecret
}

func (m *model) carryOut(w *weakness, e *Effect) []Effect {
	switch e.Kind {
	case FxSave, FxForget:
		m.disk[e.Lane] = string(m.s.Record(e.Lane))
	case FxKeep:
		x := signed{v: e.Voucher, payer: m.role == Payee}
		m.account[x.String()] = x
	case FxFulfilled:
		if m.up[e.ID] == "" { // what failed cannot be fulfilled any more
			m.up[e.ID] = "fulfilled"
		}
	case FxFailed:
		if m.up[e.ID] == "" {
			m.up[e.ID] = "failed"
		}
	case FxSecret:
		m.secrets[e.ID] = true
	case FxSign:
		v := e.Voucher
		x := signed{v: v, payer: m.role == Payer}
		if m.role == Payee {
			m.dead = max(m.dead, v.Nonce)
			m.account[x.String()] = x
		}
		v.Raw = "signed"
		fx, err := m.s.Step(m.now, &Event{Kind: EvSigned, ID: e.ID, Voucher: v}, nil)
		if err != nil {
			panic(err)
		}
		return fx
	case FxSend:
		m.hear(e)
	case FxSubmit:
		m.submit(w, e)
	}
	return nil
}

// hear gives the neighbour what was sent.
func (m *model) hear(e *Effect) {
	for _, v := range [...]Voucher{e.Voucher, e.Guard} {
		if v.Raw == "signed" {
			v.Raw = ""
			x := signed{v: v, payer: m.role == Payer}
			m.heard[x.String()] = x
		}
	}
	if e.Send == SendFulfil {
		m.knows[e.ID] = true
		m.owed[e.ID] = modelAmounts[e.ID]
	}
}

// submit puts what is due among the messages on their way, once.
func (m *model) submit(w *weakness, e *Effect) {
	if w.silentGuard && e.Lane == m.s.terms.Guard() || w.silentSlots && e.Lane != m.s.terms.Guard() {
		return
	}
	for _, x := range m.account {
		if x.v.Lane == e.Voucher.Lane && x.v.Nonce == e.Voucher.Nonce && x.payer == (m.role == Payee) {
			m.send(x, e.ID)
		}
	}
}

func (m *model) send(x signed, secret uint64) {
	if slices.ContainsFunc(m.pool, func(p pending) bool { return p.x == x }) {
		return
	}
	m.pool = append(m.pool, pending{x: x, secret: secret, by: m.now + modelTerms().Inclusion})
	sort.Slice(m.pool, func(i, j int) bool { return m.pool[i].x.String() < m.pool[j].x.String() })
}

// restart is a crash: what is not on disk is gone, and so is what was on its way to
// the chain and not there yet.
func (m *model) restart(w *weakness) {
	m.s = New(m.role, m.s.terms)
	for _, lane := range [...]uint64{m.s.terms.Guard(), 1} {
		if rec, ok := m.disk[lane]; ok {
			if err := m.s.Restore(lane, []byte(rec)); err != nil {
				panic(err)
			}
		}
	}
	m.note("restart")
	m.look(w)
}

// tick is one epoch: what is on its way arrives, the honest side looks.
func (m *model) tick(w *weakness) {
	m.last = slices.Clone(m.st.Lanes)
	m.now++
	pool := m.pool
	m.pool = nil
	for _, p := range pool {
		if !m.over() {
			m.apply(p.x, p.secret)
		}
	}
	m.look(w)
}

func (m *model) look(w *weakness) {
	if m.role == Payer {
		for id := uint64(1); id <= modelLocks; id++ {
			p := modelPreimage(id)
			if lock, ok := m.s.Open(&p); ok && m.used[id] {
				m.do(w, Event{Kind: EvPreimage, ID: lock, Preimage: p, OnChain: true}, -1)
			}
		}
	}
	head := viewOf(m.now, &m.st, m.st.Lanes)
	final := viewOf(m.now-1, &m.st, m.last)
	if w.unfinal {
		final = head
	}
	m.do(w, Event{Kind: EvChain, Head: head, Final: final}, -1)
	if m.role == Payee && m.st.SettlingAt != 0 && !w.silentSlots {
		// The account's own watcher: the best voucher without a lock.
		var best *signed
		for _, x := range m.account {
			if x.payer && !x.v.sealed() && x.v.Lane == 1 && (best == nil || x.v.Nonce > best.v.Nonce) {
				best = &x
			}
		}
		if best != nil {
			m.send(*best, 0)
		}
	}
	// What was paid for on the way out is shown again after a restart.
	for id, owes := range m.arrived {
		if l := m.s.of(uint64(id)); owes && l != nil && l.phase == Locked {
			m.do(w, Event{Kind: EvFulfil, ID: l.id, Preimage: modelPreimage(l.id), Owed: true}, -1)
		}
	}
}

// lost says what the honest side lost when the channel is over.
func (m *model) lost() string {
	paid := tally.Amount(m.st.ToSend.Int.Uint64())
	due := tally.Amount(0)
	if m.role == Payer {
		for id := range m.up {
			if m.up[id] == "fulfilled" {
				due += modelAmounts[id]
			}
		}
		if paid > due {
			return fmt.Sprintf("the chain paid %d, the ways in %d", paid, due)
		}
		return ""
	}
	for id := range m.owed {
		due += m.owed[id]
	}
	if paid < due {
		return fmt.Sprintf("the chain paid %d of %d", paid, due)
	}
	return ""
}

// next returns every state that one move leads to.
func (m *model) next(w *weakness) []*model {
	var all []*model
	move := func(name string, f func(c *model) bool) {
		c := m.clone()
		c.note("%d: %s", m.now, name)
		if f(c) {
			all = append(all, c)
		}
	}
	// An event of the honest side, with a stop before each of its effects.
	event := func(name string, before func(*model), ev Event) {
		for crash := -1; crash < 8; crash++ {
			if crash >= 0 && m.crashes == 0 {
				return
			}
			stopped := false
			move(name, func(c *model) bool {
				if crash >= 0 {
					c.crashes--
				}
				if before != nil {
					before(c)
				}
				steps := len(c.trace)
				ok := c.do(w, ev, crash)
				stopped = len(c.trace) > steps
				return ok && (crash < 0 || stopped)
			})
			if crash >= 0 && !stopped {
				return
			}
		}
	}
	move("tick", func(c *model) bool { c.tick(w); return true })
	if m.st.SettlingAt == 0 {
		move("settle", func(c *model) bool { c.settle(); return true })
	}
	// The neighbour submits what it has, also into the block that we have seen.
	if !m.over() {
		for _, k := range slices.Sorted(maps.Keys(m.heard)) {
			x := m.heard[k]
			if m.role == Payer { // it knows every preimage
				for id := uint64(1); id <= modelLocks; id++ {
					if x.v.sealed() && modelPreimage(id).Hashlock() == x.v.Hash {
						move("neighbour submits "+k, func(c *model) bool { return c.apply(x, id) })
					}
				}
			}
			if !x.v.sealed() && x.payer == (m.role == Payer) {
				move("neighbour submits "+k, func(c *model) bool { return c.apply(x, 0) })
			}
		}
	}
	if m.crashes > 0 {
		move("sync after a stop", func(c *model) bool {
			c.crashes--
			c.restart(w)
			return c.do(w, Event{Kind: EvSync}, -1)
		})
	}
	if m.role == Payer {
		m.nextPayer(w, move, event)
	} else {
		m.nextPayee(event)
	}
	return all
}

type (
	mover  = func(string, func(*model) bool)
	evener = func(string, func(*model), Event)
)

func (m *model) nextPayer(w *weakness, move mover, event evener) {
	t := modelTerms()
	if id := m.offered + 1; id <= m.scope.locks && m.now < m.scope.end {
		untils := []int64{m.now + t.Least()}
		if m.scope.long {
			untils = append(untils, t.Furthest(m.now))
		}
		for _, until := range untils {
			event("offer", func(c *model) { c.offered++ }, Event{
				Kind: EvOffer, ID: id, Amount: modelAmounts[id], Hash: modelPreimage(id).Hashlock(), Point: m.scope.first(id), Expires: until, Long: true,
			})
		}
	}
	l := &m.s.slots[0]
	if l.phase == Free {
		return
	}
	id := l.id
	event("fulfil", nil, Event{Kind: EvPreimage, ID: id, Preimage: modelPreimage(id)})
	event("cancel", nil, Event{Kind: EvCancel, ID: id, Voucher: l.cancel()})
	event("unlock ack", nil, Event{Kind: EvUnlockAcked, ID: id})
	event("sync", nil, Event{Kind: EvSync})
	if w.failOnReject && m.up[id] == "" {
		move("reject without cancel", func(c *model) bool { c.up[id] = "failed"; return true })
	}
}

func (m *model) nextPayee(event evener) {
	t := modelTerms()
	l := &m.s.slots[0]
	if id := m.offered + 1; id <= m.scope.locks && m.now < m.scope.end {
		nonces := []uint64{l.nonce + 1}
		if l.phase != Free {
			nonces = append(nonces, l.nonce+3)
		}
		for _, nonce := range nonces {
			untils := []int64{m.now + 1, m.now + t.Least()}
			if m.scope.long {
				untils = append(untils, t.Furthest(m.now))
			}
			for _, until := range untils {
				for _, total := range [...]tally.Amount{l.base + modelAmounts[id], l.base + modelAmounts[id] - 2} {
					ev := Event{Kind: EvLock, ID: id, Amount: modelAmounts[id], Voucher: Voucher{
						Lane: 1, Nonce: nonce, Amount: total, Locked: !m.scope.points[id], Hash: modelPreimage(id).Hashlock(), Point: m.scope.first(id), Expires: until,
					}}
					event("lock", func(c *model) { c.offered++ }, ev)
					if until > t.Horizon(m.now) {
						ev.Guard = Voucher{Lane: t.Guard(), Nonce: m.s.guardNonce + 1, MinSettle: t.Hold(until)}
						event("lock with guard", func(c *model) { c.offered++ }, ev)
					}
				}
			}
		}
	}
	if l.phase == Free {
		return
	}
	id := l.id
	if !m.arrived[id] && l.phase == Locked && m.now <= l.expires-t.Least() {
		// The way out is paid, as late as its own rules allow. It is on disk there.
		event("paid on the way out", func(c *model) { c.arrived[id], c.owed[id] = true, modelAmounts[id] },
			Event{Kind: EvFulfil, ID: id, Preimage: modelPreimage(id)})
	}
	event("fulfil", nil, Event{Kind: EvFulfil, ID: id, Preimage: modelPreimage(id)})
	if !m.arrived[id] {
		event("give up", nil, Event{Kind: EvGive, ID: id})
	}
	event("unlock", nil, Event{Kind: EvUnlock, ID: id, Voucher: l.unlock()})
	event("sync", nil, Event{Kind: EvSync})
}

// explore visits every state and returns the first loss, with what led to it.
func explore(role Role, w *weakness, sc *scope) (visited int, loss string) {
	start := newModel(role, w, sc)
	start.look(w)
	seen := map[[16]byte]struct{}{start.key(): {}}
	queue := []*model{start}
	for len(queue) > 0 && (sc.most == 0 || len(seen) < sc.most) {
		// A loss shows at the end of the channel: depth first finds one sooner.
		m := queue[len(queue)-1]
		queue[len(queue)-1] = nil
		queue = queue[:len(queue)-1]
		if m.over() {
			if l := m.lost(); l != "" {
				return len(seen), l + "\n  " + strings.Join(m.trace, "\n  ")
			}
			continue
		}
		if m.now >= sc.end && m.st.SettlingAt == 0 {
			m.settle()
		}
		for _, n := range m.next(w) {
			k := n.key()
			if _, ok := seen[k]; ok {
				continue
			}
			seen[k] = struct{}{}
			queue = append(queue, n)
		}
	}
	return len(seen), ""
}

func TestNoLosingState(t *testing.T) {
	two := twoLocks
	if os.Getenv("TALLY_LONG") == "" {
		two.end = 1
	}
	for _, role := range [...]Role{Payer, Payee} {
		scopes := map[string]scope{"one lock": oneLock, "two locks": two}
		// Under a point all is the same but who can submit what. Where there is time both
		// kinds follow each other.
		point, both := scope{locks: 1, end: 1}, two
		point.points[1], both.points[2] = true, true
		scopes["a point lock"] = point
		if os.Getenv("TALLY_LONG") != "" {
			scopes["hash and point"] = both
			long := oneLock
			long.points[1] = true
			scopes["a long point lock"] = long
		}
		for name, sc := range scopes {
			t.Run(role.String()+", "+name, func(t *testing.T) {
				visited, loss := explore(role, &weakness{}, &sc)
				t.Logf("%d states", visited)
				if loss != "" {
					t.Fatal(loss)
				}
			})
		}
	}
}

// A payee that does not check an encrypted signature before it takes the lock shows the
// secret for nothing.
func TestHollowPointLockLoses(t *testing.T) {
	sc := scope{locks: 1, end: 1, hollow: true, most: 40_000}
	sc.points[1] = true
	visited, loss := explore(Payee, &weakness{}, &sc)
	if loss == "" {
		t.Fatalf("%d states, and no loss", visited)
	}
}

// Each guard has a variant without it, which the same search finds to lose.
var weaknesses = []weakness{
	{name: "sends before it saves", role: Payer, saveLast: true},
	{name: "fails the way in on a reject without a CANCEL", role: Payer, failOnReject: true},
	{name: "fails the way in before the chain is final", role: Payer, unfinal: true},
	{name: "does not answer a stale LOCK", role: Payer, silentSlots: true},
	{name: "takes a CANCEL that cannot reach the chain any more", role: Payer, tamper: func(s *Slots, ev *Event) {
		if ev.Kind == EvCancel {
			s.head.SettlingAt = 0
		}
	}},

	{name: "shows the preimage before it saves", role: Payee, saveLast: true},
	{name: "does not claim on the chain", role: Payee, silentSlots: true},
	{name: "claims later than S before the end", role: Payee, terms: func(t *Terms) { t.Inclusion, t.Grace = 0, 2 }},
	{name: "shows the preimage too late to claim", role: Payee, owedAlways: true},
	{name: "shows the preimage of a lock it gave up", role: Payee, tamper: func(s *Slots, ev *Event) {
		if l := s.of(ev.ID); ev.Kind == EvFulfil && l != nil && l.phase == Given {
			l.phase = Locked
		}
	}},
	{name: "gives up a lock whose preimage it showed", role: Payee, tamper: func(s *Slots, ev *Event) {
		if l := s.of(ev.ID); ev.Kind == EvGive && l != nil && l.phase == Opened {
			l.phase, l.preimage = Locked, tally.Preimage{}
		}
	}},
	{name: "forgets that it gave a lock up", role: Payee, tamper: func(s *Slots, ev *Event) {
		if ev.Kind == EvFulfil {
			// As if "given" had not been saved before the CANCEL was signed.
			if l := &s.slots[0]; l.phase == Given {
				l.phase, l.raw = Locked, ""
			}
		}
	}},
	{name: "takes a lock under the nonce of a CANCEL", role: Payee, tamper: func(s *Slots, ev *Event) {
		if l := &s.slots[0]; ev.Kind == EvLock && l.phase == Given {
			l.phase, l.id, l.amount, l.hash, l.expires, l.raw = Free, 0, 0, tally.Hashlock{}, 0, ""
		}
	}},
	{name: "takes a lock whose total is too low", role: Payee, tamper: func(s *Slots, ev *Event) {
		if ev.Kind == EvLock && ev.Voucher.Amount > s.slots[0].base {
			ev.Amount = ev.Voucher.Amount - s.slots[0].base
		}
	}},
	{name: "takes a lock beyond the horizon without a guard", role: Payee, terms: func(t *Terms) { t.Margin = -3 }},
	{name: "keeps the guard to itself", role: Payee, silentGuard: true},
}

func TestWeakenedVariantsLose(t *testing.T) {
	for _, w := range weaknesses {
		t.Run(w.role.String()+" "+w.name, func(t *testing.T) {
			t.Parallel()
			one, two := oneLock, twoLocks
			one.most, two.most = 40_000, 40_000
			visited, loss := explore(w.role, &w, &one)
			if loss == "" {
				visited, loss = explore(w.role, &w, &two)
			}
			if loss == "" {
				t.Fatalf("%d states, and no loss", visited)
			}
			t.Logf("after %d states: %s", visited, loss)
		})
	}
}
