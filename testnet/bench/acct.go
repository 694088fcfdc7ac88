package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/swap"
)

// peerIDLen is the length of an Ed25519 peer id, idPrefix what all begin with:
// identity multihash of a protobuf with the key.
const (
	peerIDLen = 38
	idPrefix  = "\x00\x24\x08\x01\x12\x20"
)

// newPeers makes the ids of n peers that nobody has the key of. The same seed
// makes the same peers.
func newPeers(n int, seed uint64) []peer.ID {
	rng := rand.New(rand.NewPCG(seed, 0))
	list := make([]peer.ID, n)
	for i := range list {
		var b strings.Builder
		b.Grow(peerIDLen)
		b.WriteString(idPrefix)
		for range 4 {
			v := rng.Uint64()
			for range 8 {
				b.WriteByte(byte(v))
				v >>= 8
			}
		}
		list[i] = peer.ID(b.String())
	}
	return list
}

// shuffled returns the ids in another order, laid out in a row in that order: to
// walk the list costs no cache misses, so that what is measured is the ledger's.
func shuffled(list []peer.ID, seed uint64) []peer.ID {
	order := rand.New(rand.NewPCG(seed, 1)).Perm(len(list))
	var b strings.Builder
	b.Grow(len(list) * peerIDLen)
	for _, i := range order {
		b.WriteString(string(list[i]))
	}
	row := b.String()
	out := make([]peer.ID, len(list))
	for i := range out {
		out[i] = peer.ID(row[i*peerIDLen : (i+1)*peerIDLen])
	}
	return out
}

// bareEntry is as large as the goal for a hot record.
type bareEntry struct {
	owed, served int64
	_            [240]byte
}

// bareLedger is the least that a ledger of many peers needs: find the entry by
// a key of fixed width, and add.
type bareLedger struct {
	index   map[[32]byte]uint32
	entries []bareEntry
}

func newBareLedger(peers []peer.ID) *bareLedger {
	l := &bareLedger{index: make(map[[32]byte]uint32, len(peers)), entries: make([]bareEntry, len(peers))}
	for i, p := range peers {
		l.index[bareKey(p)] = uint32(i)
	}
	return l
}

func bareKey(p peer.ID) (k [32]byte) {
	copy(k[:], p[len(p)-len(k):])
	return k
}

func (l *bareLedger) debit(p peer.ID, units int64) {
	e := &l.entries[l.index[bareKey(p)]]
	e.owed += units
	e.served += units
}

// gate holds the commits of a store while it is closed.
type gate struct{ mu sync.RWMutex }

func (g *gate) hook(func() error) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return nil
}

// walker goes round a list of peers.
type walker struct {
	peers []peer.ID
	at    int
}

func (w *walker) next() peer.ID {
	p := w.peers[w.at]
	if w.at++; w.at == len(w.peers) {
		w.at = 0
	}
	return p
}

// benchAcct measures one step through the book. The write-behind is held back
// meanwhile, because acct-durable has it; beside it stands the step with the
// write-behind at work.
func benchAcct(ctx context.Context, o *Options) (figures []Figure, err error) {
	for _, size := range []struct {
		name  string
		peers int
		goal  float64
	}{
		{"100k", scale(o, 100_000, 1000), 120},
		{"1M", scale(o, 1_000_000, 5000), 250},
	} {
		o.say("acct: %d peers", size.peers)
		list, err := acctOf(ctx, o, size.name, size.peers, size.goal)
		if err != nil {
			return nil, err
		}
		figures = append(figures, list...)
	}
	return figures, nil
}

func acctOf(ctx context.Context, o *Options, name string, n int, goal float64) (figures []Figure, err error) {
	peers := newPeers(n, 1)
	var commits gate
	store := durabletest.NewMem(durable.WithCommitHook(commits.hook))
	book, err := loadedBook(ctx, store, peers)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	defer func() { err = errors.Join(err, book.Close(), store.Close()) }()
	bare := newBareLedger(peers)
	w := &walker{peers: shuffled(peers, 2)}

	debit := func(n int) {
		for range n {
			_ = book.Debit(w.next(), service, 1) // books whatever it returns
		}
	}
	const block = 256
	var failed error
	hold := func(n int) {
		for range n {
			h, err := book.TryReserve(ctx, w.next(), service, swap.Serve, 1)
			if err == nil {
				err = h.Commit(1)
			}
			if err != nil {
				failed = err
			}
		}
	}
	// The ctx of the caller could end; that one of a service can too, but ours
	// must not measure a watch on it.
	ctx = context.WithoutCancel(ctx)
	var allocs [2]float64
	held := func(which int, step func(int)) probe {
		return func(_ context.Context, d time.Duration) (float64, error) {
			commits.mu.Lock()
			defer commits.mu.Unlock()
			step(len(peers)) // what the next save needs is in place
			before, blocks := mallocs(), 0
			ns := stepsFor(d, block, func(n int) { blocks++; step(n) })
			allocs[which] = float64(mallocs()-before) / float64(blocks*block)
			return ns, failed
		}
	}
	live := func(step func(int)) probe {
		return func(_ context.Context, d time.Duration) (float64, error) {
			return meanFor(d, block, step), failed
		}
	}
	m, err := rounds(ctx, o,
		held(0, debit), held(1, hold), live(debit),
		func(_ context.Context, d time.Duration) (float64, error) {
			return stepsFor(d, block, func(n int) {
				for range n {
					bare.debit(w.next(), 1)
				}
			}), nil
		},
		func(_ context.Context, d time.Duration) (float64, error) {
			at, sum := uint64(1), int64(0)
			ns := stepsFor(d, block, func(n int) {
				for range n {
					at = at*6364136223846793005 + 1442695040888963407
					e := &bare.entries[(at>>33)%uint64(len(bare.entries))]
					e.owed++
					sum += e.owed
				}
			})
			runtime.KeepAlive(sum)
			return ns, nil
		},
	)
	if err != nil {
		return nil, err
	}
	const limit = "bare map of fixed-width keys to 256-byte entries, same peers in the same order"
	step := cost("acct/debit/"+name, "ns", m[0], m[3], limit, goal).with("slice_ns", m[4].median())
	step.Allocs = allocs[0]
	step.GoalMet = step.GoalMet && allocs[0] < 0.01
	two := cost("acct/reserve-commit/"+name, "ns", m[1], m[3], limit, 2*goal).note("two steps of the ledger, so twice the goal of one")
	two.Allocs = allocs[1]
	two.GoalMet = two.GoalMet && allocs[1] < 0.01
	behind := cost("acct/debit-behind/"+name, "ns", m[2], m[3], limit, 0).
		note("the write-behind encodes on the other core meanwhile, every peer dirty, and nothing takes the records")
	figures = []Figure{step, two, behind}
	for i := range figures {
		figures[i] = figures[i].note("one goroutine").with("peers", n)
	}
	return figures, nil
}

// loadedBook opens a book and has it know the peers.
func loadedBook(ctx context.Context, store *durable.Store, peers []peer.ID) (*swap.Book, error) {
	key, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		return nil, err
	}
	book, err := newBook(ctx, store, key, wide())
	if err != nil {
		return nil, err
	}
	if err := debitAll(book, peers); err != nil {
		return nil, errors.Join(err, book.Close())
	}
	return book, nil
}

// debitAll debits each peer one unit, on all cores.
func debitAll(book *swap.Book, peers []peer.ID) error {
	parts := runtime.GOMAXPROCS(0)
	return each(parts, parts, func(part int) error {
		for i := part; i < len(peers); i += parts {
			if err := book.Debit(peers[i], service, 1); err != nil && !errors.Is(err, swap.ErrOverThreshold) {
				return fmt.Errorf("debit: %w", err)
			}
		}
		return nil
	})
}

// benchAcctDurable measures steps of all cores together, with the book on disk
// and without.
func benchAcctDurable(ctx context.Context, o *Options) (figures []Figure, err error) {
	for _, size := range []struct {
		name   string
		peers  int
		policy swap.Policy
		goal   float64
	}{
		{"1k", scale(o, 1000, 100), wide(), 1e6},
		{"100k", scale(o, 100_000, 1000), wide(), 1e6},
		{"1k/default-thresholds", scale(o, 1000, 100), uncapped(swap.Policy{}), 0},
	} {
		o.say("acct-durable: %s peers", size.name)
		f, err := acctDurableOf(ctx, o, size.peers, size.policy, size.goal)
		if err != nil {
			return nil, err
		}
		f.Name = "acct-durable/" + size.name
		figures = append(figures, f)
	}
	return figures, nil
}

// stepper books on the peers from all cores.
type stepper struct {
	book    *swap.Book
	walkers []*walker
}

func newStepper(ctx context.Context, store *durable.Store, policy swap.Policy, peers []peer.ID) (*stepper, error) {
	key, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		return nil, err
	}
	book, err := newBook(ctx, store, key, policy)
	if err != nil {
		return nil, err
	}
	s := &stepper{book: book}
	for i := range runtime.GOMAXPROCS(0) {
		s.walkers = append(s.walkers, &walker{peers: shuffled(peers, uint64(i))})
	}
	return s, debitAll(book, peers)
}

// run books for d, as much out as in, and returns the steps in a second.
func (s *stepper) run(_ context.Context, d time.Duration) (float64, error) {
	var steps atomic.Int64
	begin := time.Now()
	err := each(len(s.walkers), len(s.walkers), func(i int) error {
		w, n := s.walkers[i], int64(0)
		for time.Since(begin) < d {
			for range 64 {
				p := w.next()
				for _, err := range [...]error{s.book.Debit(p, service, 1), s.book.Credit(p, service, 1)} {
					if err != nil && !errors.Is(err, swap.ErrOverThreshold) {
						return err
					}
				}
				n += 2
			}
		}
		steps.Add(n)
		return nil
	})
	return float64(steps.Load()) / time.Since(begin).Seconds(), err
}

func acctDurableOf(ctx context.Context, o *Options, n int, policy swap.Policy, goal float64) (_ Figure, err error) {
	peers := newPeers(n, 1)
	var steppers [2]*stepper
	dir, err := os.MkdirTemp(o.Dir, "store-")
	if err != nil {
		return Figure{}, err
	}
	var commits atomic.Int64
	disk, err := openDisk(dir, durable.WithCommitHook(func(commit func() error) error {
		defer commits.Add(1)
		return commit()
	}))
	if err != nil {
		return Figure{}, err
	}
	for i, store := range [...]*durable.Store{disk, noDisk()} {
		defer func() { err = errors.Join(err, store.Close()) }()
		if steppers[i], err = newStepper(ctx, store, policy, peers); err != nil {
			return Figure{}, err
		}
	}
	var behind []float64
	onDisk := func(ctx context.Context, d time.Duration) (float64, error) {
		v, err := steppers[0].run(ctx, d)
		// What is still dirty must not fall on the limit's turn.
		behind = append(behind, untilQuiet(&commits).Seconds()*1000)
		return v, err
	}
	m, err := rounds(ctx, o, onDisk, steppers[1].run)
	if err != nil {
		return Figure{}, err
	}
	policy = steppers[0].book.Policy()
	f := rate("", "steps/s", m[0], m[1], "the same without a disk below the book", goal).
		with("peers", n).with("goroutines", len(steppers[0].walkers)).
		with("loss_units_per_peer", uint64(policy.Slack()/2)).with("loss_ms", 100).with("behind_ms", median(behind)).
		note("a crash loses at most W/2 = %d units of a peer, or the steps of 100 ms and of the write under way; behind_ms is how long that took after the last step, and over 200 ms no goal is met", policy.Slack()/2)
	f.GoalMet = f.GoalMet && median(behind) <= 200
	return f, errors.Join(steppers[0].book.Close(), steppers[1].book.Close())
}

// untilQuiet waits until the write-behind has left two of its periods out, and
// returns how long after the call its last commit was.
func untilQuiet(commits *atomic.Int64) time.Duration {
	begin := time.Now()
	last, n := begin, commits.Load()
	for time.Since(last) < 220*time.Millisecond {
		time.Sleep(5 * time.Millisecond)
		if now := commits.Load(); now != n {
			last, n = time.Now(), now
		}
	}
	return last.Sub(begin)
}
