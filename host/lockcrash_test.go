package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/settler"
	"github.com/tallystick/tally/host/signer"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/adaptor"
	"github.com/tallystick/tally/paych/paychtest"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/paystream/lock"
	"github.com/tallystick/tally/protocols/packetnet"
)

// The crash matrix of a hop between two channels. Goal: no power loss of payer, hop or
// payee, at any write and at any message, costs anybody honest a unit. Method: three
// nodes, each the hop engine, its locks and its channel manager on one disk that may lose
// power, a chain in memory, tabs that carry nothing, and wires that keep their order. A
// run through parts that are fulfilled and given up, to the end of both channels, is
// made once to count commits and messages, and then again for each of them with a
// crash there. At the end what the payer believes is what its channel paid, the hop has
// its fees and no loss, and what the payee claimed it got.

// lockStation is one node, over all its lives.
type lockStation struct {
	row    *lockRow
	at     int
	id     peer.ID
	wallet *paychtest.Wallet
	key    address.Address
	disk   *durabletest.Crash

	manager *paych.Manager
	engine  *forward.Engine
	locks   *Locks
	wire    *stationWire

	// mu guards the fields below. What was decided is on the disk of an application.
	mu      sync.Mutex
	remains *durabletest.Crash
	results map[forward.PartID]bool // of the payer: fulfilled
	claimed map[forward.PartID]bool // of the payee: saved
	placed  map[forward.PartID]bool
}

type lockRow struct {
	t     *testing.T
	chain *paychtest.Chain
	all   []*lockStation
	chans []address.Address // from node i to the next

	// mu guards the fields below.
	mu     sync.Mutex
	up     bool
	sent   int
	onSend func(from, n int, m *forward.Msg) (dies, carried bool)
	pipes  map[[2]int]chan func()
	tasks  sync.WaitGroup
}

func stationTag(from, to int) string { return fmt.Sprintf("tab/%d/%d", from, to) }

func inLockRow(t *testing.T, fn func(r *lockRow)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &lockRow{t: t, chain: paychtest.NewChain(paychtest.DefaultParams())}
		for i := range 3 {
			s := &lockStation{
				row: r, at: i, id: peer.ID(fmt.Sprintf("node-%d", i)), wallet: paychtest.NewWallet(fmt.Sprint(i)), disk: durabletest.NewMemCrash(),
				results: make(map[forward.PartID]bool), claimed: make(map[forward.PartID]bool), placed: make(map[forward.PartID]bool),
			}
			s.key = s.wallet.MustNew()
			r.chain.Fund(s.key, 1<<62)
			r.all = append(r.all, s)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { r.chain.Run(ctx) })
		defer func() {
			r.hangUp()
			for _, s := range r.all {
				s.close()
				_ = s.disk.Close()
			}
			cancel()
			running.Wait()
		}()
		for _, s := range r.all {
			s.open()
		}
		for i := range 2 {
			from, to := r.all[i], r.all[i+1]
			id, err := from.manager.PaychCreateSpec(ctx, paych.CreateSpec{
				From: from.key, To: to.key, Amount: big.Mul(big.NewInt(10_000), big.NewInt(settler.AttoPerUnit)), Tag: stationTag(i, i+1), Owned: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			ch, err := from.manager.PaychWaitReady(ctx, id)
			if err == nil {
				err = to.manager.PaychOwn(ctx, ch, stationTag(i, i+1))
			}
			if err != nil {
				t.Fatal(err)
			}
			r.mu.Lock()
			r.chans = append(r.chans, ch)
			r.mu.Unlock()
		}
		r.dial()
		r.pass(3) // the channels are seen
		fn(r)
	})
}

// Linked implements locker.Links.
func (s *lockStation) Linked(p peer.ID, out bool) (address.Address, string, bool) {
	s.row.mu.Lock()
	defer s.row.mu.Unlock()
	from := s.at
	if !out {
		from--
	}
	other := s.at + 1
	if !out {
		other = s.at - 1
	}
	if from < 0 || from >= len(s.row.chans) || p != peer.ID(fmt.Sprintf("node-%d", other)) {
		return address.Undef, "", false
	}
	return s.row.chans[from], stationTag(from, from+1), true
}

// noTabs carry nothing.
type noTabs struct{}

func (noTabs) Hold(peer.ID, uint64, forward.Dir, tally.Amount) error {
	return &forward.HeadroomError{Code: forward.CodeHeadroom, Cause: errors.New("no tab")}
}
func (noTabs) Commit(peer.ID, uint64, forward.Dir) error  { return errors.New("no tab") }
func (noTabs) Release(peer.ID, uint64, forward.Dir) error { return errors.New("no tab") }
func (noTabs) Restore([]forward.Held) error               { return nil }
func (noTabs) Save(*durable.Batch)                        {}
func (noTabs) Done(error)                                 {}

// stationWire is the sessions of one life.
type stationWire struct{ s *lockStation }

func (w *stationWire) Flush()                              {}
func (w *stationWire) Reset(peer.ID, error)                {}
func (w *stationWire) Post(p peer.ID, m *forward.Msg) bool { w.Send(p, m); return true }
func (w *stationWire) Info(peer.ID) (packetnet.Info, bool) {
	return packetnet.Info{LockDelta: 1, PointLocks: true}, w.s.row.isUp()
}

func (w *stationWire) Neighbours() (list []peer.ID) {
	for _, o := range w.s.row.all {
		if o.at == w.s.at-1 || o.at == w.s.at+1 {
			list = append(list, o.id)
		}
	}
	return list
}

func (r *lockRow) isUp() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.up
}

func (w *stationWire) Send(p peer.ID, m *forward.Msg) {
	s, r := w.s, w.s.row
	if s.dead() || s.wire != w {
		return // a ghost speaks
	}
	to := r.all[int(p[len(p)-1]-'0')]
	cp := *m
	cp.Data, cp.Token, cp.Via = bytes.Clone(m.Data), bytes.Clone(m.Token), append([]peer.ID(nil), m.Via...)
	cp.Live, cp.Fulfilled = append([]uint64(nil), m.Live...), append([]uint64(nil), m.Fulfilled...)
	if m.Lock != nil {
		l := *m.Lock
		l.Voucher, l.Guard, l.Lanes = bytes.Clone(l.Voucher), bytes.Clone(l.Guard), append([]lock.LaneState(nil), l.Lanes...)
		cp.Lock = &l
	}
	r.mu.Lock()
	if !r.up {
		r.mu.Unlock()
		return
	}
	r.sent++
	n, hook, pipe := r.sent, r.onSend, r.pipes[[2]int{s.at, to.at}]
	r.mu.Unlock()
	if hook != nil {
		dies, carried := hook(s.at, n, &cp)
		if dies {
			s.die()
		}
		if !carried {
			return
		}
	}
	e := to.engine
	pipe <- func() {
		if !to.dead() && to.engine == e && e != nil {
			e.Receive(&forward.Batch{Peer: s.id, Msgs: []forward.Msg{cp}, Recycle: func(*forward.Batch) {}})
		}
	}
}

// Packet implements forward.Handler: even parts are fulfilled, odd ones given back.
func (s *lockStation) Packet(d *forward.Delivery) (forward.Decision, bool) {
	from, id, part, e := d.From, d.ID, d.Part, s.engine
	return forward.Decision{Kept: func() {
		dec := &forward.Decision{Code: forward.CodeApplication}
		if part[0]%2 == 0 {
			dec = &forward.Decision{Fulfil: true, Preimage: stationSecret(part)}
		}
		_ = e.Decide(from, id, dec, func(err error) {
			if err == nil && dec.Fulfil && !s.dead() {
				s.mu.Lock()
				s.claimed[part] = true
				s.mu.Unlock()
			}
		})
	}}, false
}

func stationSecret(part forward.PartID) (p tally.Preimage) {
	copy(p[:], part[:])
	p[31] = 1
	return p
}

// stationCondition is a hash for some parts, and a point for others.
func stationCondition(t *testing.T, part forward.PartID) forward.Condition {
	secret := stationSecret(part)
	if part[0] == 4 || part[0] == 5 {
		return forward.Blake2b(secret.Hashlock())
	}
	y := adaptor.Secret(secret)
	p, err := y.Point()
	if err != nil {
		t.Fatal(err)
	}
	return forward.PointCondition(p)
}

// kept is told what became of a part of ours.
func (s *lockStation) kept(r *forward.Result) {
	if s.dead() {
		return
	}
	s.mu.Lock()
	if old, known := s.results[r.Part]; known && old != r.Fulfilled {
		s.row.t.Errorf("part %x was %v and is %v", r.Part, old, r.Fulfilled)
	}
	s.results[r.Part] = r.Fulfilled
	e := s.engine
	s.mu.Unlock()
	_ = e.Forget(r.Part)
}

func (s *lockStation) open() {
	ctx, quiet := context.Background(), slog.New(slog.DiscardHandler)
	if testing.Verbose() && os.Getenv("TALLY_LONG") == "" {
		quiet = slog.New(slog.NewTextHandler(s.row.t.Output(), nil)).With("node", s.at)
	}
	fail := func(err error) bool {
		if err != nil && !s.dead() {
			s.row.t.Errorf("open node %d: %v", s.at, err)
		}
		return err != nil
	}
	var err error
	if s.manager, err = paych.Open(ctx, s.disk.Store, s.row.chain, s.wallet, paych.Config{Logger: quiet}); fail(err) {
		return
	}
	s.locks, _, err = openLocks(ctx, s.disk.Store, &lockGround{manager: s.manager, params: s.row.chain.Params(), links: s, wallet: s.wallet}, &LocksConfig{}, quiet)
	if fail(err) {
		return
	}
	s.engine, err = forward.New(ctx, forward.Config{
		Self: s.id, Rules: forward.Rules{FeeBase: 1}, Tabs: noTabs{}, Store: s.disk.Store, Handler: s, Locks: s.locks, OpensPoint: signer.Opens, Kept: s.kept, Logger: quiet,
	})
	if fail(err) {
		return
	}
	s.wire = &stationWire{s}
	s.locks.begin(s.engine)
	if s.at == 0 { // what is neither in flight nor decided never left
		sent := make(map[forward.PartID]bool)
		for _, p := range s.engine.Sent() {
			sent[p] = true
		}
		s.mu.Lock()
		for p := range s.placed {
			if _, known := s.results[p]; !known && !sent[p] {
				s.results[p] = false
			}
		}
		s.mu.Unlock()
	}
	s.locks.start(s.wire)
	s.engine.Start(s.wire)
}

func (s *lockStation) close() {
	if s.engine != nil {
		_ = s.engine.Close()
	}
	if s.locks != nil {
		_ = s.locks.close()
	}
	if s.manager != nil {
		_ = s.manager.Close()
	}
	s.engine, s.locks, s.manager = nil, nil, nil
}

// die ends the process now: what is on disk is all that is left.
func (s *lockStation) die() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.remains == nil {
		s.remains = s.disk.Clone()
	}
}

func (s *lockStation) dead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remains != nil || s.disk.Failed() != nil
}

func (s *lockStation) revive() {
	s.die()
	s.close()
	_ = s.disk.Close()
	s.mu.Lock()
	s.disk, s.remains = s.remains, nil
	s.mu.Unlock()
	s.open()
}

func (r *lockRow) dial() {
	r.mu.Lock()
	r.up = true
	r.pipes = make(map[[2]int]chan func())
	for _, way := range [...][2]int{{0, 1}, {1, 0}, {1, 2}, {2, 1}} {
		pipe := make(chan func(), 4096)
		r.pipes[way] = pipe
		r.tasks.Go(func() {
			for f := range pipe {
				f()
			}
		})
	}
	r.mu.Unlock()
	for _, way := range [...][2]int{{0, 1}, {1, 0}, {1, 2}, {2, 1}} {
		if s := r.all[way[0]]; s.engine != nil {
			s.engine.Up(r.all[way[1]].id, 100)
			s.locks.up(r.all[way[1]].id)
		}
	}
}

func (r *lockRow) hangUp() {
	r.mu.Lock()
	was, pipes := r.up, r.pipes
	r.up, r.pipes = false, nil
	r.mu.Unlock()
	if !was {
		return
	}
	synctest.Wait() // nobody is in Send any more
	for _, pipe := range pipes {
		close(pipe)
	}
	r.tasks.Wait()
	for _, way := range [...][2]int{{0, 1}, {1, 0}, {1, 2}, {2, 1}} {
		if s := r.all[way[0]]; s.engine != nil {
			s.engine.Down(r.all[way[1]].id)
		}
	}
}

func (r *lockRow) mend() {
	for range 20 {
		synctest.Wait()
		died := false
		for _, s := range r.all {
			died = died || s.dead()
		}
		if !died {
			return
		}
		r.hangUp()
		for _, s := range r.all {
			for range 5 {
				if s.dead() {
					s.revive()
				}
			}
		}
		r.dial()
	}
}

// pass lets epochs go by.
func (r *lockRow) pass(epochs int) {
	for range epochs {
		time.Sleep(time.Second) // bubble
		r.mend()
	}
}

var stationParts = map[forward.PartID]tally.Amount{{2}: 500, {3}: 300, {4}: 50, {5}: 20, {6}: 7}

func (r *lockRow) play() {
	payer := r.all[0]
	terms := payer.locks.Terms()
	for k := byte(2); k <= 6; k++ {
		part := forward.PartID{k}
		payer.mu.Lock()
		payer.placed[part] = true
		payer.mu.Unlock()
		if e := payer.engine; e != nil {
			_ = e.Send(&forward.Packet{
				Dest: r.all[2].id, Via: []peer.ID{r.all[1].id}, Amount: stationParts[part] + 1, Part: part, Keep: true, MayLock: true,
				Condition: stationCondition(r.t, part),
				Expires:   time.Now().Add(time.Duration(terms.Delta()+4) * time.Second),
			}, nil)
		}
		if k%2 == 0 { // some wait for each other, some are beside each other
			r.pass(1)
		}
	}
	r.pass(int(2*terms.Delta() + terms.Least() + terms.Finality + 12))
	paid := make([]tally.Amount, 2)
	for i := range paid {
		paid[i] = r.finish(i)
	}
	var cost, claims tally.Amount
	count := 0
	for part, amount := range stationParts {
		fulfilled, known := payer.results[part]
		if !known {
			r.t.Errorf("part %x is not decided", part[:1])
		}
		if fulfilled {
			cost += amount + 1
			count++
		}
		if fulfilled && part[0]%2 != 0 {
			r.t.Errorf("part %x was given back, and is fulfilled", part[:1])
		}
		if r.all[2].claimed[part] {
			claims += amount
		}
	}
	if paid[0] != cost {
		r.t.Errorf("the payer thinks that it paid %d, its channel paid %d", cost, paid[0])
	}
	if paid[0] < paid[1] || paid[0]-paid[1] != tally.Amount(count) {
		r.t.Errorf("the hop got %d and paid %d for %d parts", paid[0], paid[1], count)
	}
	if paid[1] < claims {
		r.t.Errorf("the payee claimed %d and got %d", claims, paid[1])
	}
	for _, s := range r.all {
		if list := s.locks.List(); len(list) != 0 {
			r.t.Errorf("node %d has locks left: %+v", s.at, list)
		}
		if recs, err := durabletest.Records(context.Background(), s.disk.Store); err == nil {
			for key := range recs {
				if len(key) > 12 && (key[:12] == "/packet/hop/" && key != "/packet/hop/"+durable.KeyUint(0) || key[:12] == "/packet/lock") {
					r.t.Errorf("node %d keeps %s", s.at, key)
				}
			}
		}
	}
}

// finish settles the channel from node i and returns what it paid.
func (r *lockRow) finish(i int) tally.Amount {
	s := r.all[i+1]
	for range 3 {
		if s.manager == nil {
			r.mend()
			continue
		}
		if _, err := s.manager.PaychSettle(context.Background(), r.chans[i]); err == nil || errors.Is(err, paych.ErrSettling) || errors.Is(err, paych.ErrCollected) {
			break
		}
		r.mend()
	}
	for range 200 {
		r.pass(1)
		info, err := s.manager.PaychInfo(context.Background(), r.chans[i])
		if err == nil && info.Buried && info.Final != nil {
			r.pass(3)
			return tally.Amount(big.Div(info.Final.ToSend, big.NewInt(settler.AttoPerUnit)).Uint64())
		}
	}
	r.t.Errorf("channel %d did not end", i)
	return 0
}

func (r *lockRow) commits() (n [3]int) {
	for i, s := range r.all {
		n[i] = s.disk.Commits()
	}
	return n
}

// The hop never hears the payee's secrets, and the payee takes its money from the chain:
// from the signatures there the hop learns what it paid for, and is paid.
func TestHopLearnsFromTheChain(t *testing.T) {
	inLockRow(t, func(r *lockRow) {
		lost := 0
		r.mu.Lock()
		r.onSend = func(from, _ int, m *forward.Msg) (bool, bool) {
			if from == 2 && m.Kind == forward.MsgFulfil {
				lost++
				return false, false
			}
			return false, true
		}
		r.mu.Unlock()
		r.play()
		for part := range stationParts {
			if r.all[0].results[part] != (part[0]%2 == 0) {
				t.Errorf("part %x: %v", part[:1], r.all[0].results)
			}
		}
		if lost == 0 {
			t.Error("nothing was lost")
		}
	})
}

func TestLockedHopCrashMatrix(t *testing.T) {
	step := 16
	if os.Getenv("TALLY_LONG") != "" {
		step = 1
	}
	var from, upto [3]int
	var sent [2]int
	inLockRow(t, func(r *lockRow) {
		from, sent[0] = r.commits(), r.sent
		r.play()
		upto, sent[1] = r.commits(), r.sent
		for part := range stationParts {
			if r.all[0].results[part] != (part[0]%2 == 0) {
				t.Errorf("part %x: %v", part[:1], r.all[0].results)
			}
		}
	})
	t.Logf("commits %v to %v, messages %v", from, upto, sent)
	if t.Failed() || upto[1] == from[1] || sent[1] == sent[0] {
		t.Fatal("nothing to crash")
	}
	for who := range from {
		for i := from[who] + 1 + who; i <= upto[who]; i += step {
			for _, after := range [...]bool{false, true} {
				t.Run(fmt.Sprintf("node %d commit %d after %v", who, i, after), func(t *testing.T) {
					inLockRow(t, func(r *lockRow) {
						if disk := r.all[who].disk; after {
							disk.CrashAfter(i)
						} else {
							disk.CrashBefore(i)
						}
						r.play()
					})
				})
			}
		}
	}
	for i := sent[0] + 1; i <= sent[1]; i += step {
		for _, carried := range [...]bool{false, true} {
			t.Run(fmt.Sprintf("message %d carried %v", i, carried), func(t *testing.T) {
				inLockRow(t, func(r *lockRow) {
					r.mu.Lock()
					r.onSend = func(_, n int, _ *forward.Msg) (bool, bool) { return n == i, carried || n != i }
					r.mu.Unlock()
					r.play()
				})
			})
		}
	}
}
