package locker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/settler"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paystream/lock"
)

// maxWaiting bounds the events that wait for a line. A neighbour has at most a few
// for each of 64 slots.
const maxWaiting = 4096

// line is our side of one channel's slots, with one goroutine that owns them.
type line struct {
	k    *Locker
	ch   address.Address
	peer peer.ID
	role lock.Role
	tag  string

	wake chan struct{} // capacity 1

	// mu guards the fields below.
	mu     sync.Mutex
	inbox  []item
	failed error
	now    int64 // the head's height, of the newest view; 0: none yet
	list   []lock.Lock
	gone   bool
	// submitting are the vouchers on their way, by lane.
	submitting map[uint64]bool
	from, to   address.Address // whose signatures count
	free       tally.Amount    // of the channel, at the last look
	room       int             // locks that still find a slot
	closing    bool            // the channel settles, or is gone
	caught     time.Time       // when a LOCK had us look ahead

	// Of the goroutine.
	slots *lock.Slots
	saved bool // the line's own record is on disk
}

// item is one entry of the inbox.
type item struct {
	ev     lock.Event
	record func(*durable.Batch)
	done   func(error)
	tell   bool // say what we have
	ask    bool // and ask for the same
}

func (k *Locker) newLine(ch address.Address, p peer.ID, role lock.Role, tag string) *line {
	return &line{
		k: k, ch: ch, peer: p, role: role, tag: tag, wake: make(chan struct{}, 1),
		submitting: make(map[uint64]bool), slots: lock.New(role, k.terms),
	}
}

// load reads the slots. The guard is the highest lane, and the rest is checked when
// all is read.
func (l *line) load(ctx context.Context) error {
	l.saved = true
	dir := slotDir(l.ch)
	err := l.k.store.Scan(ctx, dir, "", func(key string, rec []byte) error {
		_, payload, err := durable.Unseal(key, lock.RecordVersion, rec)
		if err != nil {
			return err
		}
		lane, err := durable.ParseKeyUint(key[len(dir):])
		if err != nil {
			return err
		}
		return l.slots.Restore(lane, payload)
	})
	if err == nil {
		err = l.slots.Check()
	}
	if err != nil {
		return fmt.Errorf("locker: slots of channel %s: %w", l.ch, err)
	}
	l.list, l.room = l.slots.Locks(), l.slots.Room()
	return nil
}

// resume does again what a stop may have left out.
func (l *line) resume() {
	for _, e := range l.slots.Resume(nil) {
		if _, err := l.k.paych.PaychVoucherSecret(l.k.ctx, l.ch, e.Preimage); err != nil && l.k.ctx.Err() == nil {
			l.k.log.Error("preimage not with the chain's watcher; the line claims by itself", "channel", l.ch, "err", err)
		}
	}
}

func (l *line) ctx(ctx context.Context) context.Context { return paych.WithTag(ctx, l.tag) }

func (l *line) locks() []lock.Lock {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]lock.Lock(nil), l.list...)
}

// ended reports whether the channel is gone for good.
func (l *line) ended() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gone
}

func (l *line) has(id uint64) bool {
	for _, x := range l.locks() {
		if x.ID == id {
			return true
		}
	}
	return false
}

// put queues an item.
func (l *line) put(it item) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.failed != nil:
		return l.failed
	case l.k.ctx.Err() != nil:
		return ErrClosed
	case len(l.inbox) >= maxWaiting:
		return ErrBusy
	}
	l.inbox = append(l.inbox, it)
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

// ask queues an item and waits until its duties are done. Where ctx ends first it
// goes on, and its outcome is told to the carrier.
func (l *line) ask(ctx context.Context, it item) error {
	got := make(chan error, 1)
	it.done = func(err error) { got <- err }
	if err := l.put(it); err != nil {
		return err
	}
	select {
	case err := <-got:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-l.k.ctx.Done():
		return ErrClosed
	}
}

// see takes the chain's view, and what preimages it shows, before it.
func (l *line) see(ctx context.Context) error {
	head, final, err := l.k.paych.PaychViews(ctx, l.ch)
	if err != nil {
		return fmt.Errorf("locker: channel %s: %w", l.ch, err)
	}
	l.k.saw(int64(head.Height))
	l.count(ctx)
	l.mu.Lock()
	same, list, known := l.now == int64(head.Height), l.list, l.from != address.Undef
	from, to := l.from, l.to
	l.mu.Unlock()
	if same && known {
		return nil
	}
	if !known {
		info, err := l.k.paych.PaychInfo(ctx, l.ch)
		if err != nil {
			return fmt.Errorf("locker: channel %s: %w", l.ch, err)
		}
		from, to = info.From, info.To
	}
	if l.role == lock.Payer {
		for _, x := range list {
			secret, err := l.shown(ctx, &x)
			if err != nil {
				return err
			}
			if secret != nil && x.Phase == lock.Locked {
				if err := l.put(item{ev: lock.Event{Kind: lock.EvPreimage, ID: x.ID, Preimage: *secret, OnChain: true}}); err != nil {
					return err
				}
			}
		}
	}
	err = l.ask(ctx, item{ev: lock.Event{
		Kind: lock.EvChain, Head: viewOf(&head, l.k.terms.Slots), Final: viewOf(&final, l.k.terms.Slots),
	}})
	if err == nil && !known && !l.ended() {
		l.mu.Lock()
		l.from, l.to = from, to
		l.mu.Unlock()
		err = l.put(item{tell: true, ask: true}) // what came before was not heard
	}
	return err
}

// seeAhead is see of the head that the chain has now, which we may not have been told of.
func (l *line) seeAhead(ctx context.Context) error {
	if err := l.k.paych.PaychLook(ctx, l.ch); err != nil {
		return fmt.Errorf("locker: channel %s: %w", l.ch, err)
	}
	return l.see(ctx)
}

// seeUpTo sees ahead where the view is older than a height that was seen of another
// channel: carriers reckon with the newest.
func (l *line) seeUpTo(ctx context.Context, height int64) error {
	if err := l.see(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	behind := l.now < height
	l.mu.Unlock()
	if behind {
		return l.seeAhead(ctx)
	}
	return nil
}

// catchUp sees ahead where a LOCK ends beyond the horizon: its payer may have heard of
// heads that we were not told of yet, and what we give up for that fails a payment. A
// neighbour can send many, so that one look an epoch has to do.
func (l *line) catchUp(expires int64) {
	l.mu.Lock()
	due := expires > l.k.terms.Horizon(l.now) && time.Since(l.caught) >= time.Duration(l.k.epochMS)*time.Millisecond
	if due {
		l.caught = time.Now()
	}
	l.mu.Unlock()
	if !due {
		return
	}
	if err := l.seeAhead(l.k.ctx); err != nil && l.k.ctx.Err() == nil {
		l.k.log.Debug("chain not looked at for a lock", "channel", l.ch, "err", err)
	}
}

// shown is what opens a lock of ours, where the chain has shown it.
func (l *line) shown(ctx context.Context, x *lock.Lock) (*tally.Preimage, error) {
	if x.Point != 0 {
		return l.k.paych.PaychSecretOfPoint(ctx, l.ch, pointOf(x.Point, x.Hash))
	}
	return l.k.paych.PaychSecretOf(ctx, l.ch, x.Hash)
}

// ready makes sure that the chain was seen.
func (l *line) ready(ctx context.Context) error {
	l.mu.Lock()
	seen := l.from != address.Undef
	l.mu.Unlock()
	if seen {
		return nil
	}
	return l.see(ctx)
}

// count looks at what the channel has left.
func (l *line) count(ctx context.Context) {
	info, err := l.k.paych.PaychInfo(ctx, l.ch)
	if err != nil {
		return // the last figures stand, and an offer looks again
	}
	free := tally.Amount(0)
	if f := info.Funds.Free(); f.Sign() > 0 {
		free = floor(f)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free = free
}

// floor is an amount of attoFIL in whole units.
func floor(x big.Int) tally.Amount {
	n := big.Div(x, big.NewInt(settler.AttoPerUnit))
	if !n.IsUint64() {
		return ^tally.Amount(0)
	}
	return tally.Amount(n.Uint64())
}
