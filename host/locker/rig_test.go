package locker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/adaptor"
	"github.com/tallystick/tally/paych/paychtest"
	"github.com/tallystick/tally/paystream/lock"
)

// The rig: a payer and a payee with one channel, each a locker and a channel manager
// on one disk that may lose power at any write, a chain in memory, and a wire that
// carries their messages in order. All of it lives in a bubble.

func TestMain(m *testing.M) {
	// A worker of a library of go-jsonrpc runs for ever.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

const deposit = 10_000 // units

// side is one peer, over all its lives. It is its own carrier: outcomes lie on its
// disk, in the batches of the locks.
type side struct {
	rig    *rig
	name   string
	id     peer.ID
	wallet *paychtest.Wallet
	key    address.Address
	disk   *durabletest.Crash
	tag    string
	link   paych.Chain // how it reaches the chain
	every  time.Duration
	plain  bool // its wallet cannot sign under points

	// Of the present life.
	manager *paych.Manager
	locker  *Locker

	// mu guards the fields below.
	mu      sync.Mutex
	remains *durabletest.Crash
	taken   []lock.Lock
	// decide is what a payee does with what it takes; nil: nothing.
	decide func(s *side, l lock.Lock)
}

type rig struct {
	t            *testing.T
	chain        *paychtest.Chain
	payer, payee *side
	ch           address.Address
	points       bool // locks are under points

	// mu guards the fields below.
	mu     sync.Mutex
	given  map[[2]uint64]string // LOCKs that left, by lane and nonce
	up     bool
	sent   int
	onSend func(from *side, n int) (dies, carried bool)
	tasks  sync.WaitGroup
	wires  []chan func()
}

// inRig runs fn in a bubble with a channel that both know.
func inRig(t *testing.T, fn func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, chain: paychtest.NewChain(paychtest.DefaultParams())}
		r.payer, r.payee = r.side("payer"), r.side("payee")
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { r.chain.Run(ctx) })
		defer func() {
			r.hangUp()
			r.payer.end()
			r.payee.end()
			cancel()
			running.Wait()
		}()
		r.begin(ctx)
		fn(r)
	})
}

// begin opens both sides, and a channel that both know.
func (r *rig) begin(ctx context.Context) {
	r.t.Helper()
	r.payer.open()
	r.payee.open()
	id, err := r.payer.manager.PaychCreateSpec(ctx, paych.CreateSpec{
		From: r.payer.key, To: r.payee.key, Amount: atto(deposit), Tag: r.payer.tag, Owned: true,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if r.ch, err = r.payer.manager.PaychWaitReady(ctx, id); err != nil {
		r.t.Fatal(err)
	}
	if err := r.payee.manager.PaychOwn(ctx, r.ch, r.payee.tag); err != nil {
		r.t.Fatal(err)
	}
	r.dial()
}

func (r *rig) side(name string) *side {
	s := &side{rig: r, name: name, id: peer.ID(name), wallet: paychtest.NewWallet(name), disk: durabletest.NewMemCrash(), tag: "tab/" + name}
	s.key = s.wallet.MustNew()
	if r.chain != nil {
		s.link = r.chain
		r.chain.Fund(s.key, 1<<62)
	}
	return s
}

func (s *side) open() {
	s.rig.t.Helper()
	ctx := context.Background()
	quiet := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		quiet = slog.New(slog.NewTextHandler(s.rig.t.Output(), nil)).With("side", s.name)
	}
	var keys paych.Wallet = s.wallet
	if s.plain {
		keys = paychtest.Plain{Wallet: s.wallet}
	}
	m, err := paych.Open(ctx, s.disk.Store, s.link, keys, paych.Config{Logger: quiet})
	if err != nil {
		s.failed("open", err)
		return
	}
	s.manager = m
	k, err := Open(ctx, s.disk.Store, m, s.link.Params(), links{s}, Config{Logger: quiet, Every: s.every})
	if err != nil {
		s.failed("open", err)
		return
	}
	s.locker = k
	k.Start(&wire{from: s, locker: k}, s)
}

func (s *side) failed(what string, err error) {
	if !s.dead() {
		s.rig.t.Errorf("%s %s: %v", what, s.name, err)
	}
}

func (s *side) close() {
	if s.locker != nil {
		_ = s.locker.Close()
	}
	if s.manager != nil {
		if err := s.manager.Close(); err != nil {
			s.failed("close", err)
		}
	}
	s.locker, s.manager = nil, nil
}

func (s *side) end() {
	s.close()
	if err := s.disk.Close(); err != nil {
		s.failed("close the disk of", err)
	}
}

// die ends the process now: what is on disk is all that is left.
func (s *side) die() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.remains == nil {
		s.remains = s.disk.Clone()
	}
}

func (s *side) dead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remains != nil || s.disk.Failed() != nil
}

func (s *side) revive() {
	s.die()
	s.close()
	_ = s.disk.Close()
	s.mu.Lock()
	s.disk, s.remains = s.remains, nil
	s.mu.Unlock()
	s.open()
}

// links has the one channel.
type links struct{ s *side }

func (l links) Linked(_ peer.ID, out bool) (address.Address, string, bool) {
	return l.s.rig.ch, l.s.tag, out == (l.s == l.s.rig.payer) && l.s.rig.ch != address.Undef
}

// wire is that of one life of a side.
type wire struct {
	from   *side
	locker *Locker
}

func (w *wire) Send(_ peer.ID, m *Msg) {
	r, s := w.from.rig, w.from
	if s.dead() || s.locker != w.locker {
		return // a ghost speaks
	}
	if s == r.payer && !m.Sync && m.Send == lock.SendUnlock && m.ID != 0 && s.outcome(m.ID) != "paid" {
		r.t.Errorf("the UNLOCK of %d left before it was on disk that the lock is paid", m.ID)
	}
	r.mu.Lock()
	if m.Send == lock.SendLock && !m.Sync {
		r.once(m.Voucher)
	}
	if !r.up {
		r.mu.Unlock()
		return
	}
	r.sent++
	n, hook := r.sent, r.onSend
	to, pipe := r.payee, r.wires[1]
	if s == r.payee {
		to, pipe = r.payer, r.wires[0]
	}
	r.mu.Unlock()
	if hook != nil {
		dies, carried := hook(s, n)
		if dies {
			s.die()
		}
		if !carried {
			return
		}
	}
	k := to.locker
	pipe <- func() {
		if !to.dead() && to.locker == k && k != nil {
			if err := k.Receive(s.id, m); err != nil && !to.dead() && !errors.Is(err, ErrClosed) {
				r.t.Logf("%s does not take %d: %v", to.name, m.Send, err)
			}
		}
	}
}

// once sees to it that under one nonce one LOCK leaves, the same bytes each time: two
// encrypted signatures of one voucher are one bad nonce away from the key. Called with mu
// held.
func (r *rig) once(raw []byte) {
	_, v, err := decode(raw)
	if paych.IsPointLock(raw) {
		_, v, err = decodePoint(raw)
	}
	if err != nil || (v.Point != 0) != r.points {
		r.t.Errorf("a LOCK that is none, or of another kind: %+v %v", v, err)
		return
	}
	if r.given == nil {
		r.given = make(map[[2]uint64]string)
	}
	at := [2]uint64{v.Lane, v.Nonce}
	if had, ok := r.given[at]; ok && had != string(raw) {
		r.t.Errorf("two LOCKs left under nonce %d of lane %d", v.Nonce, v.Lane)
	}
	r.given[at] = string(raw)
}

func (r *rig) dial() {
	r.mu.Lock()
	r.up = true
	r.wires = []chan func(){make(chan func(), 4096), make(chan func(), 4096)}
	for _, pipe := range r.wires {
		r.tasks.Go(func() {
			for f := range pipe {
				f()
			}
		})
	}
	r.mu.Unlock()
	for _, s := range [...]*side{r.payer, r.payee} {
		if s.locker != nil {
			s.locker.Up(r.other(s).id)
		}
	}
}

func (r *rig) hangUp() {
	r.mu.Lock()
	was := r.up
	r.up = false
	wires := r.wires
	r.wires = nil
	r.mu.Unlock()
	if !was {
		return
	}
	synctest.Wait() // nobody is in Send any more
	for _, pipe := range wires {
		close(pipe)
	}
	r.tasks.Wait()
}

func (r *rig) other(s *side) *side {
	if s == r.payer {
		return r.payee
	}
	return r.payer
}

// mend starts who died and dials again.
func (r *rig) mend() {
	synctest.Wait()
	for r.payer.dead() || r.payee.dead() {
		r.hangUp()
		for _, s := range [...]*side{r.payer, r.payee} {
			for s.dead() {
				s.revive()
			}
		}
		r.dial()
		synctest.Wait()
	}
}

// pass lets epochs go by.
func (r *rig) pass(epochs int) {
	for range epochs {
		time.Sleep(time.Second) // bubble
		r.mend()
	}
}

func (r *rig) head() int64 {
	h, err := r.chain.Head(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	return int64(h)
}

func pre(id uint64) tally.Preimage { return tally.Preimage{byte(id), byte(id >> 8), 7} }

// condition is what pre(id) opens.
func (r *rig) condition(id uint64) (first byte, x tally.Hashlock) {
	if !r.points {
		return 0, pre(id).Hashlock()
	}
	y := adaptor.Secret(pre(id))
	p, err := y.Point()
	if err == nil {
		first, x, err = lock.PointOf(p)
	}
	if err != nil {
		r.t.Error(err)
	}
	return first, x
}

func (r *rig) offerOf(id uint64, amount tally.Amount, until int64) Offer {
	first, x := r.condition(id)
	return Offer{ID: id, Amount: amount, Hash: x, Point: first, Expires: until, Long: true}
}

// bothKinds runs fn with locks under hashes, and with locks under points.
func bothKinds(t *testing.T, fn func(t *testing.T, points bool)) {
	t.Helper()
	for _, points := range [...]bool{false, true} {
		t.Run(map[bool]string{false: "hash", true: "point"}[points], func(t *testing.T) { fn(t, points) })
	}
}

// inRigs is inRig for both kinds of lock.
func inRigs(t *testing.T, fn func(t *testing.T, r *rig)) {
	t.Helper()
	bothKinds(t, func(t *testing.T, points bool) {
		inRig(t, func(r *rig) {
			r.points = points
			fn(r.t, r)
		})
	})
}

// offer makes lock id over amount until the epoch, again after a crash.
func (r *rig) offer(id uint64, amount tally.Amount, until int64) error {
	for {
		err := r.payer.locker.Offer(context.Background(), r.payee.id, r.offerOf(id, amount, until))
		if err == nil || !r.payer.dead() {
			return err
		}
		r.mend()
		// The packet's own journal tells whether it left.
		if got := r.payer.outcome(id); got != "" {
			return nil
		}
	}
}

// Taken implements Carrier.
func (s *side) Taken(_ peer.ID, l lock.Lock) {
	s.mu.Lock()
	s.taken = append(s.taken, l)
	decide := s.decide
	s.mu.Unlock()
	if decide != nil {
		s.rig.tasks.Go(func() { decide(s, l) })
	}
}

func outcomeKey(id uint64) string { return "/test/" + durable.KeyUint(id) }

func (s *side) note(id uint64, what string) (func(*durable.Batch), func()) {
	return func(b *durable.Batch) { b.Put(outcomeKey(id), []byte(what)) }, nil
}

// Decided implements Carrier.
func (s *side) Decided(_ peer.ID, id uint64, preimage *tally.Preimage, _ error) (func(*durable.Batch), func()) {
	if preimage != nil {
		return s.note(id, "paid")
	}
	return s.note(id, "failed")
}

// Ended implements Carrier.
func (s *side) Ended(_ peer.ID, id uint64, preimage *tally.Preimage, err error) (func(*durable.Batch), func()) {
	switch {
	case errors.Is(err, ErrLost):
		return s.note(id, "lost")
	case preimage != nil:
		return s.note(id, "paid")
	}
	return s.note(id, "failed")
}

func (s *side) outcome(id uint64) string {
	rec, err := s.disk.Get(context.Background(), outcomeKey(id))
	if err != nil {
		return ""
	}
	return string(rec)
}

// fulfils shows the preimage of every lock.
func fulfils(s *side, l lock.Lock) {
	k := s.locker
	if k != nil {
		_ = k.Fulfil(context.Background(), s.rig.payer.id, l.ID, pre(l.ID), false, nil)
	}
}

func gives(s *side, l lock.Lock) {
	k := s.locker
	if k != nil {
		_ = k.Give(context.Background(), s.rig.payer.id, l.ID, nil)
	}
}

// finish settles the channel where nobody has and returns what it paid, in units.
func (r *rig) finish(s *side) tally.Amount {
	r.t.Helper()
	for range 3 {
		if _, err := s.manager.PaychSettle(context.Background(), r.ch); err == nil || errors.Is(err, paych.ErrSettling) || errors.Is(err, paych.ErrCollected) {
			break
		}
		r.mend()
	}
	for range 200 {
		r.pass(1)
		info, err := s.manager.PaychInfo(context.Background(), r.ch)
		if err == nil && info.Buried && info.Final != nil {
			r.pass(3)
			return floor(info.Final.ToSend)
		}
	}
	r.t.Fatal("the channel did not end")
	return 0
}

func (r *rig) expect(s *side, want map[uint64]string) {
	r.t.Helper()
	for id, w := range want {
		if got := s.outcome(id); got != w {
			r.t.Errorf("lock %d at the %s: %q, want %q", id, s.name, got, w)
		}
	}
}

func (s *side) balance() big.Int {
	b, err := s.rig.chain.Balance(context.Background(), s.key)
	if err != nil {
		s.rig.t.Fatal(err)
	}
	return b
}
