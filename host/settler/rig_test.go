package settler

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paych/paychtest"
	"github.com/tallystick/tally/swap"
)

// The rig: two peers, each a book, a settler and a channel manager on one disk
// that may lose power at any write, a chain in memory that both see, and a wire
// between them that carries their messages in order. All of it lives in a bubble.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const walletFund = 1 << 62

var realm = swap.Realm{Network: "test", Genesis: "genesis", Asset: "FIL"}

// side is one peer, over all its lives.
type side struct {
	rig    *rig
	name   string
	key    crypto.PrivKey
	id     peer.ID
	wallet *paychtest.Wallet
	payout address.Address
	disk   *durabletest.Crash
	cfg    Config
	policy swap.Policy

	// Of the present life.
	*swap.Book
	settler *Settler
	manager *paych.Manager

	// mu guards the fields below.
	mu      sync.Mutex
	remains *durabletest.Crash // what a dead process left on its disk
	notices []swap.Notice
	downs   int
}

// rig joins two sides.
type rig struct {
	t     *testing.T
	chain *paychtest.Chain
	a, b  *side
	// onSend, where set, is asked before a message goes on the wire: false loses
	// it.
	onSend func(from *side, m swap.Message) bool

	// mu guards the fields below.
	mu      sync.Mutex
	queue   map[peer.ID]chan swap.Message // nil while hung up
	readers sync.WaitGroup
}

func testKey(seed byte) crypto.PrivKey {
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed([]byte{31: seed}))
	if err != nil {
		panic(err)
	}
	return key
}

// newRig makes both sides and runs the chain, an epoch a second. Call it in a
// bubble.
func newRig(t *testing.T) *rig {
	r := &rig{t: t, chain: paychtest.NewChain(paychtest.DefaultParams())}
	r.a, r.b = r.side("a", 1), r.side("b", 2)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { r.chain.Run(ctx) })
	t.Cleanup(func() {
		r.hangUp()
		r.a.end()
		r.b.end()
		cancel()
		running.Wait()
	})
	return r
}

func (r *rig) side(name string, seed byte) *side {
	s := &side{rig: r, name: name, key: testKey(seed), wallet: paychtest.NewWallet(name), disk: durabletest.NewMemCrash()}
	s.id, _ = peer.IDFromPrivateKey(s.key)
	s.payout = s.wallet.MustNew()
	r.chain.Fund(s.payout, walletFund)
	s.policy = swap.Policy{Mode: swap.ModeHard}
	s.cfg = Config{Logger: slog.New(slog.DiscardHandler)}
	return s
}

// open starts a life on the side's disk.
func (s *side) open() {
	s.rig.t.Helper()
	if err := s.tryOpen(); err != nil && !s.dead() {
		s.rig.t.Fatalf("open %s: %v", s.name, err)
	}
}

func (s *side) tryOpen() error {
	ctx := context.Background()
	quiet := slog.New(slog.DiscardHandler)
	var mine *Settler
	var ready sync.WaitGroup
	ready.Add(1)
	m, err := paych.Open(ctx, s.disk.Store, s.rig.chain, s.wallet, paych.Config{
		Logger: quiet,
		Notify: func(n paych.Notice) {
			ready.Wait()
			if mine != nil {
				mine.Notify(n)
			}
		},
	})
	if err != nil {
		ready.Done()
		return err
	}
	s.manager = m
	mine, err = Open(ctx, s.disk.Store, m, s.wallet, s.rig.chain, s.payout, s.cfg)
	ready.Done()
	if err != nil {
		return err
	}
	s.settler = mine
	s.Book, err = swap.Open(ctx, s.disk.Store, swap.Config{
		Key: s.key, Realm: realm, Policy: s.policy, Settler: mine, Logger: quiet,
		Notify: func(n swap.Notice) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.notices = append(s.notices, n)
		},
	})
	if err != nil {
		return err
	}
	s.Book.Bind(courier{s.rig, s, s.Book})
	mine.Start(s.Book)
	return nil
}

// close ends the life.
func (s *side) close() {
	var errs []error
	if s.settler != nil {
		errs = append(errs, s.settler.Close())
	}
	if s.Book != nil {
		errs = append(errs, s.Book.Close())
	}
	if s.manager != nil {
		errs = append(errs, s.manager.Close())
	}
	if err := errors.Join(errs...); err != nil && !s.dead() {
		s.rig.t.Errorf("close %s: %v", s.name, err)
	}
	s.settler, s.Book, s.manager = nil, nil, nil
}

func (s *side) end() {
	s.close()
	if err := s.disk.Close(); err != nil && !s.dead() {
		s.rig.t.Errorf("close the disk of %s: %v", s.name, err)
	}
}

// die ends the process now: what is on disk is all that is left. Its ghost goes
// on in memory until mend, and nobody hears it.
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

// revive starts a dead side on what its disk kept.
func (s *side) revive() {
	s.die()
	s.close()
	_ = s.disk.Close() // it failed
	s.mu.Lock()
	s.disk, s.remains = s.remains, nil
	s.downs++
	s.mu.Unlock()
	s.open()
}

// restart is a clean stop and a start; on another disk where one is given.
func (s *side) restart(disk *durabletest.Crash) {
	s.rig.hangUp()
	s.close()
	if disk == nil {
		disk = s.disk.Clone()
	}
	_ = s.disk.Close()
	s.disk = disk
	s.open()
	s.rig.dial()
}

func (r *rig) other(s *side) *side {
	if s == r.a {
		return r.b
	}
	return r.a
}

// courier carries for one life of a side.
type courier struct {
	r    *rig
	from *side
	book *swap.Book
}

func (c courier) Send(_ context.Context, p peer.ID, m swap.Message) error {
	if c.from.Book != c.book || c.from.dead() {
		return swap.ErrNoSession // a ghost speaks
	}
	if c.r.onSend != nil && !c.r.onSend(c.from, m) {
		return nil
	}
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	q := c.r.queue[p]
	if q == nil {
		return swap.ErrNoSession
	}
	q <- m
	return nil
}

func (c courier) Disconnect(peer.ID) error { return nil }

// dial shakes hands both ways.
func (r *rig) dial() {
	ctx := context.Background()
	if r.a.dead() || r.b.dead() {
		return // mend dials again
	}
	r.mu.Lock()
	r.queue = map[peer.ID]chan swap.Message{r.a.id: make(chan swap.Message, 4096), r.b.id: make(chan swap.Message, 4096)}
	r.mu.Unlock()
	hello := make(map[*side]*swap.Handshake)
	for _, s := range [...]*side{r.a, r.b} {
		h, err := s.Hello(ctx, r.other(s).id)
		if err != nil {
			if !s.dead() {
				r.t.Fatalf("%s says no hello: %v", s.name, err)
			}
			return
		}
		hello[s] = h
	}
	for _, s := range [...]*side{r.a, r.b} {
		o := r.other(s)
		if err := s.BeginSession(ctx, o.id, hello[o], true); err != nil && !s.dead() {
			r.t.Fatalf("%s begins no session: %v", s.name, err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range [...]*side{r.a, r.b} {
		in, book, from := r.queue[s.id], s.Book, r.other(s).id
		r.readers.Go(func() {
			for m := range in {
				if s.dead() || s.Book != book {
					continue
				}
				err := book.Receive(ctx, from, m)
				if c, ok := m.(*swap.Cheque); ok && err != nil && !s.dead() {
					_ = courier{r, s, book}.Send(ctx, from, &swap.Refusal{Serial: c.Serial, Code: swap.RefusalFor(err), Detail: err.Error()})
				}
			}
		})
	}
}

func (r *rig) hangUp() {
	r.mu.Lock()
	queue := r.queue
	r.queue = nil
	r.mu.Unlock()
	if queue == nil {
		return
	}
	for _, q := range queue {
		close(q)
	}
	r.readers.Wait()
	for _, s := range [...]*side{r.a, r.b} {
		if s.Book != nil {
			s.EndSession(r.other(s).id)
		}
	}
}

// begin opens both sides and shakes hands.
func (r *rig) begin() {
	r.a.open()
	r.b.open()
	r.dial()
	r.mend()
}

// mend starts who died and shakes hands again.
func (r *rig) mend() {
	synctest.Wait()
	for r.a.dead() || r.b.dead() {
		r.hangUp()
		for _, s := range [...]*side{r.a, r.b} {
			for s.dead() {
				s.revive()
			}
		}
		r.dial()
		synctest.Wait()
	}
}

// pass lets time go by.
func (r *rig) pass(d time.Duration) {
	for range int(d / time.Second) {
		time.Sleep(time.Second) // bubble
		r.mend()
	}
}

// serve has client take units from server, waiting for a settlement at most for
// within.
func (r *rig) serve(client, server *side, units tally.Amount, within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	mine, err := client.Reserve(ctx, server.id, "test", swap.Consume, units)
	if err != nil {
		return err
	}
	theirs, err := server.TryReserve(ctx, client.id, "test", swap.Serve, units)
	if err != nil {
		return errors.Join(err, mine.Release())
	}
	return errors.Join(theirs.Commit(units), mine.Commit(units))
}

func (s *side) row(with *side) swap.Row {
	s.rig.t.Helper()
	r, err := s.Row(with.id)
	if err != nil {
		s.rig.t.Fatalf("row of %s: %v", s.name, err)
	}
	return r
}

// agree fails the test where the books differ.
func (r *rig) agree() {
	r.t.Helper()
	a, b := r.a.row(r.b), r.b.row(r.a)
	if a.Balance != -b.Balance || a.Served != b.Consumed || a.Consumed != b.Served || a.Paid != b.Received || a.Received != b.Paid {
		r.t.Errorf("the books differ:\na %+v\nb %+v", a, b)
	}
}

// balance of an account on the chain.
func (r *rig) balance(s *side) big.Int {
	r.t.Helper()
	v, err := r.chain.Balance(context.Background(), s.payout)
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

// closeChannel settles the channel of a direction and waits until both books have
// its final sum.
func (r *rig) closeChannel(payer *side) {
	r.t.Helper()
	l := payer.settler.linkOf(r.other(payer).id, swap.Consume)
	if l.state != linkBound {
		r.t.Fatalf("%s has no channel", payer.name)
	}
	for try := 0; ; try++ {
		_, err := payer.manager.PaychSettle(context.Background(), l.channel)
		if err == nil || errors.Is(err, paych.ErrSettling) {
			break
		}
		if !payer.dead() || try > 3 {
			r.t.Fatal(err)
		}
		r.mend()
	}
	for range 400 {
		r.pass(time.Second)
		if payer.settler.linkOf(r.other(payer).id, swap.Consume).channel != l.channel &&
			r.other(payer).settler.linkOf(payer.id, swap.Serve).channel != l.channel {
			return
		}
	}
	r.t.Fatalf("channel %s did not end", l.channel)
}

// linkOf is the link of one direction as it is now.
func (s *Settler) linkOf(p peer.ID, dir swap.Direction) link {
	r := s.relation(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	return *r.link(dir)
}
