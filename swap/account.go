package swap

import (
	"context"
	"errors"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/internal/durable"
)

// shardCount spreads the peers over locks. It is a power of two; 64 keeps two
// busy cores from meeting, and costs 64 maps.
const shardCount = 64

// account is one peer in memory. All fields are guarded by the mu of its shard.
type account struct {
	ledger Ledger
	peer   peer.ID
	// session is nil while the peer has none.
	session *session
	// wake is closed when headroom may have grown; nil while nobody waits.
	wake chan struct{}
	// gate is closed when the account's save is done; nil while nobody waits.
	gate chan struct{}
	// services are the counts per service: all of them once allServices is set,
	// before that those since the account was read.
	services []serviceTotals
	// ack is the last that we got, until it is on disk.
	ack *Ack
	// packets are the packets in flight; nil while there never were any.
	packets *packetTable
	// usedAt is when the account was read or last saved.
	usedAt Instant
	// serving and consuming count the live holds.
	serving, consuming uint8
	waiters            uint8
	// saving: a record is on its way to disk. Saves of one account are one at a
	// time, so that an older record never replaces a newer one.
	saving  bool
	listed  bool // in the dirty list of the shard
	stored  bool // there is a record on disk
	issuing bool // a goroutine takes the intent to the settler
	ticking bool // a goroutine carries out what the last tick asked for

	allServices, newServices bool // newServices: they are not on disk yet
}

// session is what only a connected peer needs.
type session struct {
	native bool
	// told are the peer's last totals; heard is set once there are any. said are
	// the last that we told.
	told, said Totals
	heard      bool
	// telling: a statement is being sent; tellAgain: totals changed meanwhile.
	// One at a time, so that an older statement never comes after a newer one.
	telling, tellAgain bool
	// payout and reason are for the operator.
	payout string
	reason string
}

// shard is a part of the book's peers with its own lock.
type shard struct {
	// mu guards the fields below and all accounts in them. It is held for one
	// step of a ledger, never over disk, network, signing or a settler.
	mu       sync.Mutex
	accounts map[peer.ID]*account
	// watched are the accounts that time matters for: those with a session, at
	// the disconnect threshold, or blocked.
	watched map[peer.ID]*account
	dirty   []*account
	holds   holdList
	spare   *holdState
	// closed: nothing is booked any more.
	closed bool
	// evictions counts the accounts that left memory, so that a record read
	// before one left is not taken for the present state.
	evictions uint64
}

// shardIndex picks by the end of the id, which is key or hash.
func shardIndex(p peer.ID) uint8 {
	if len(p) == 0 {
		return 0
	}
	return p[len(p)-1] % shardCount
}

func (b *Book) shardOf(p peer.ID) *shard { return &b.shards[shardIndex(p)] }

// lock returns the peer's account with its shard locked, reading it from the
// store where it is not in memory.
func (b *Book) lock(p peer.ID) (*shard, *account, error) {
	s := b.shardOf(p)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, nil, ErrClosed
	}
	if a := s.accounts[p]; a != nil {
		return s, a, nil
	}
	s.mu.Unlock()
	return b.load(s, p)
}

func (b *Book) load(s *shard, p peer.ID) (*shard, *account, error) {
	if err := p.Validate(); err != nil {
		return nil, nil, err
	}
	for range loadTries {
		s.mu.Lock()
		before := s.evictions
		s.mu.Unlock()
		fresh, err := b.read(p)
		if err != nil {
			return nil, nil, err
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, nil, ErrClosed
		}
		if a := s.accounts[p]; a != nil {
			return s, a, nil
		}
		if s.evictions == before {
			s.accounts[p] = fresh
			if fresh.timeMatters() {
				s.watched[p] = fresh
			}
			return s, fresh, nil
		}
		s.mu.Unlock() // something left meanwhile, perhaps this peer in a newer state
	}
	return nil, nil, errBusy
}

// look calls fn with the account of p, its shard locked, or with what the store
// has of it, which stays out of memory: a list of all tabs must not bring them
// all in.
func (b *Book) look(p peer.ID, fn func(a *account)) error {
	s := b.shardOf(p)
	s.mu.Lock()
	a := s.accounts[p]
	if a != nil {
		fn(a)
	}
	closed := s.closed
	s.mu.Unlock()
	if a != nil {
		return nil
	}
	if closed {
		return ErrClosed
	}
	if err := p.Validate(); err != nil {
		return err
	}
	a, err := b.read(p)
	if err != nil {
		return err
	}
	fn(a)
	return nil
}

// loadTries bounds the reads of load; each is repeated only where an account of
// the same shard left memory during the read.
const loadTries = 1000

var errBusy = errors.New("swap: account is busy; try again")

// read takes an account from the store, or makes a new one.
func (b *Book) read(p peer.ID) (*account, error) {
	a := &account{peer: p, ledger: NewLedger(&b.policy), usedAt: b.now()}
	key := b.keys.of(shelfLedger, p)
	rec, err := b.store.Get(b.ctx, key)
	if errors.Is(err, durable.ErrNotFound) {
		return a, nil
	}
	if err != nil {
		return nil, err
	}
	l, st, err := b.unsealLedger(key, rec)
	if err != nil {
		return nil, err
	}
	if st.run < b.run.lastUnclean {
		l.flags |= flagUnclean
	}
	a.ledger, a.stored = l, true
	return a, nil
}

func (b *Book) unsealLedger(key string, rec []byte) (Ledger, stamp, error) {
	_, payload, err := durable.Unseal(key, ledgerVersion, rec)
	if err != nil {
		return Ledger{}, stamp{}, err
	}
	return parseLedger(payload, &b.policy, b.now(), b.unix())
}

// apply steps the ledger of an account whose shard is locked, and keeps the sums
// that all peers share.
func (b *Book) apply(s *shard, a *account, now Instant, ev *Event) ([]Effect, error) {
	exposure, stranger := a.ledger.Exposure(), a.ledger.Stranger()
	dirty := a.ledger.dirty
	fx, err := a.ledger.Step(now, ev)
	if err != nil {
		return nil, err
	}
	if after := a.ledger.Exposure(); after != exposure || stranger != a.ledger.Stranger() {
		b.pool.move(exposure, after, stranger, a.ledger.Stranger())
	}
	if stranger && a.stored && !a.ledger.Stranger() {
		b.records.Add(-1) // it paid, and leaves the pool for ever
	}
	if a.ledger.dirty != dirty {
		b.markDirty(s, a)
	}
	if invariants {
		mustHold(&a.ledger)
	}
	return fx, nil
}

// markDirty puts the account on the list of the write-behind.
func (b *Book) markDirty(s *shard, a *account) {
	if !a.listed {
		a.listed = true
		s.dirty = append(s.dirty, a)
	}
}

// wakeAll tells waiting callers to try again.
func (a *account) wakeAll() {
	if a.wake != nil {
		close(a.wake)
		a.wake = nil
	}
}

// acquire takes the account's right to save, with the shard locked on return.
// It is a queue of one for saves, not a lock of the message path: reserving and
// booking go on meanwhile.
func (b *Book) acquire(ctx context.Context, p peer.ID) (*shard, *account, error) {
	for {
		s, a, err := b.lock(p)
		if err != nil {
			return nil, nil, err
		}
		if !a.saving {
			a.saving = true
			return s, a, nil
		}
		gate := a.gateLocked()
		s.mu.Unlock()
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// gateLocked returns a channel that is closed when the right to save is free.
func (a *account) gateLocked() chan struct{} {
	if a.gate == nil {
		a.gate = make(chan struct{})
	}
	return a.gate
}

// releaseLocked gives the right to save back.
func (a *account) releaseLocked() {
	a.saving = false
	if a.gate != nil {
		close(a.gate)
		a.gate = nil
	}
}

// owesAnswer reports whether the books differ at rest and the peer has not heard
// ours in knowledge of its own: where two statements cross, neither is final.
func (a *account) owesAnswer() bool {
	x, l := a.session, &a.ledger
	return x != nil && x.native && x.heard && x.told.AtRest && l.AtRest() &&
		(x.told.Served != l.consumed || x.told.Consumed != l.served) &&
		(x.said.SeenServed != x.told.Served || x.said.SeenConsumed != x.told.Consumed)
}

// timeMatters reports whether ticks move the account.
func (a *account) timeMatters() bool {
	return a.session != nil || a.ledger.refusedAt|a.ledger.blockedUntil != 0
}

// idle reports whether the account may leave memory: everything of it is on
// disk and nobody uses it.
func (a *account) idle() bool {
	return a.session == nil && !a.saving && !a.listed && !a.issuing && !a.ticking &&
		a.waiters == 0 && !a.newServices &&
		a.serving == 0 && a.consuming == 0 && a.ledger.AtRest() && a.ledger.refusedAt|a.ledger.blockedUntil == 0
}
