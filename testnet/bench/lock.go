package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host"
)

const (
	// lockWindow is how many payments are under way at a time: half of a channel's
	// slots, so that none waits for one.
	lockWindow = 32
	// lockThreshold is where a tab of these nodes is settled, and lockAmount more than
	// a tab may ever carry: each payment goes under locks.
	lockThreshold = 100
	lockAmount    = 2*lockThreshold + 1
	// lockSettleDelay, in epochs, leaves each hop room for the chain.
	lockSettleDelay = 3000
)

// lockNet is a row of nodes with a channel from each to the next.
type lockNet struct {
	*hardNet
	row []*host.Node
}

func newLockNet(ctx context.Context, dir string, hops int) (_ *lockNet, err error) {
	hard, err := newHardNet(ctx, dir, lockSettleDelay)
	if err != nil {
		return nil, err
	}
	n := &lockNet{hardNet: hard}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	n.policy.PaymentThreshold, n.policy.DisconnectThreshold = lockThreshold, 2*lockThreshold
	for i := range hops + 1 {
		name := string(rune('a' + i))
		node, err := n.add(ctx, name, host.Config{
			Dir: filepath.Join(dir, name), Payments: &host.PaymentsConfig{PullEvery: payEvery}, Locks: &host.LocksConfig{},
		})
		if err != nil {
			return nil, err
		}
		n.row = append(n.row, node)
	}
	return n, n.whileMining(ctx, n.join)
}

// join opens a channel from each node to the next, and waits until it takes locks and
// a payment finds its way.
func (n *lockNet) join(ctx context.Context) error {
	for i, next := range n.row[1:] {
		payer := n.row[i]
		if err := n.open(ctx, payer, next); err != nil {
			return err
		}
		if err := errors.Join(payer.WaitNeighbour(ctx, next.Host().ID()), next.WaitNeighbour(ctx, payer.Host().ID())); err != nil {
			return err
		}
	}
	// Adverts have to come, and channels to be seen.
	for _, pay := range []func(context.Context) (time.Duration, error){n.onCredit, n.locked} {
		if err := firstPayment(ctx, pay, func(error) bool { return ctx.Err() == nil }); err != nil {
			return fmt.Errorf("no first payment: %w", err)
		}
	}
	return nil
}

// pay pays over the whole row.
func (n *lockNet) pay(ctx context.Context, amount tally.Amount) (time.Duration, error) {
	payer, err := n.row[0].Payments()
	if err != nil {
		return 0, err
	}
	payee, err := n.row[len(n.row)-1].Payments()
	if err != nil {
		return 0, err
	}
	return payInvoice(ctx, payer, payee, amount)
}

func (n *lockNet) locked(ctx context.Context) (time.Duration, error)   { return n.pay(ctx, lockAmount) }
func (n *lockNet) onCredit(ctx context.Context) (time.Duration, error) { return n.pay(ctx, 1) }

// check sees that it was locks that carried the payments: no tab moved by them, and
// every lock is over.
func (n *lockNet) check(ctx context.Context, onCredit uint64) error {
	ctx, cancel := context.WithTimeout(ctx, sessionWithin)
	defer cancel()
	for i, next := range n.row[1:] {
		row, err := n.row[i].Book().Row(next.Host().ID())
		if err != nil {
			return err
		}
		// One unit opened the channel, and one looked for the way.
		if carried := uint64(row.Consumed); carried != onCredit+2 {
			return fmt.Errorf("tab %d carried %d units, of %d on credit", i+1, carried, onCredit+2)
		}
		locks, err := n.row[i].Locks()
		if err != nil {
			return err
		}
		for len(locks.List()) > 0 {
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("%d locks of hop %d are not over", len(locks.List()), i+1)
			}
		}
	}
	return nil
}

// lockVouchers is what one hop's lock costs in crypto: LOCK and UNLOCK are each signed
// by the one end and recovered by the other.
const lockVouchers = 2

// lockLimit is the rate of payments that are nothing but the crypto of their locks, on
// all cores.
func lockLimit(o *Options, hops int) probe {
	return func(ctx context.Context, d time.Duration) (float64, error) {
		each, err := parts(o).voucherCrypto(ctx, d, runtime.GOMAXPROCS(0))
		return 1 / (each * lockVouchers * float64(hops)), err
	}
}

// benchLock measures payments that no tab can carry, so that each hop locks money of its
// channel. Beside them the crypto of as many vouchers, synced records, and payments of
// one unit on the tabs of the same nodes.
func benchLock(ctx context.Context, o *Options) (figures []Figure, err error) {
	for _, hops := range scale(o, []int{1, 2, 4}, []int{1}) {
		list, err := lockOver(ctx, o, hops)
		if err != nil {
			return nil, fmt.Errorf("%d hops: %w", hops, err)
		}
		figures = append(figures, list...)
	}
	return figures, nil
}

func lockOver(ctx context.Context, o *Options, hops int) (_ []Figure, err error) {
	name := fmt.Sprintf("lock/hops-%d", hops)
	o.say("%s", name)
	dir, remove, err := o.folder()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	net, err := newLockNet(ctx, dir, hops)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, net.close()) }()
	records, end, err := syncedRecords(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	var locked, credit atomic.Uint64
	many := &payRuns{once: net.locked, window: lockWindow, paid: &locked}
	one := &payRuns{once: net.locked, window: 1, paid: &locked}
	tab := &payRuns{once: net.onCredit, window: 1, paid: &credit}
	var p50, tabP50 []float64
	all, err := rounds(ctx, o, many.run, lockLimit(o, hops), timed(&p50, &one.took, one.run), timed(&tabP50, &tab.took, tab.run), records)
	if err != nil {
		return nil, err
	}
	if err := net.check(ctx, credit.Load()); err != nil {
		return nil, err
	}
	return []Figure{
		rate(name, "payments/s", all[0], all[1], fmt.Sprintf("%d vouchers for each hop, signed and checked, on all cores", lockVouchers), 0).
			note("payments of %d units by pay, a lock in each channel, durable on every node; Lightning's nodes were published with 33 to 89 payments/s", lockAmount).
			withCPU(all[0], all[1]).with("window", lockWindow).with("synced_records_per_s", all[4].median()),
		cost(name+"/p50", "µs", once(p50...), once(tabP50...), "one payment of 1 unit on the tabs of the same nodes", 0).
			note("one payment at a time, from the call to the proof of payment"),
	}, nil
}
