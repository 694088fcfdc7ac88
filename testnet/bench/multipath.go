package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream/payments"
	"github.com/tallystick/tally/swap"
)

const (
	// payWindow is how many payments are under way at a time: as many as a hub has
	// of a busy evening, and below what one node splits at once.
	payWindow = 64
	// diamondParts is the parts of one payment over a diamond, on its two ways by
	// turns.
	diamondParts = 4
	// payEvery is how often adverts are pulled: soon enough that a chain of five
	// nodes knows its ways within a second or two.
	payEvery = 250 * time.Millisecond
)

// payNode is a node as a daemon makes it, that pays and is paid.
type payNode struct {
	*party
	node *host.Node
	pays *payments.Service
}

func newPayNode(ctx context.Context, dir string) (_ *payNode, err error) {
	n := &payNode{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if n.party, err = newParty(ctx, partyConfig{transport: overTCP}); err != nil {
		return nil, err
	}
	cfg := host.Config{
		Dir: dir, Realm: swap.Realm{Network: "bench"}, Policy: wide(), Logger: slog.New(slog.DiscardHandler),
		Payments: &host.PaymentsConfig{PullEvery: payEvery},
	}
	if dir == "" {
		cfg.Datastore = durabletest.NewMemDatastore()
	}
	if n.node, err = host.New(n.party.host, cfg); err != nil {
		return nil, err
	}
	n.pays, err = n.node.Payments()
	return n, err
}

func (n *payNode) close() error {
	var errs []error
	if n.node != nil {
		errs = append(errs, n.node.Close())
	}
	return errors.Join(append(errs, n.party.close())...)
}

// payNet are nodes and the ways from the first to the last.
//
//	a row        payer ── hop ── … ── payee        one way
//	a diamond    payer ─┬─ left ──┬─ payee         two ways
//	                    └─ right ─┘
type payNet struct {
	nodes []*payNode
	ways  [][]peer.ID
}

func (n *payNet) payer() *payNode { return n.nodes[0] }
func (n *payNet) payee() *payNode { return n.nodes[len(n.nodes)-1] }

func (n *payNet) close() error {
	var errs []error
	for _, p := range n.nodes {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}

// newPayNet starts nodes and joins them along the edges. dir is empty for nodes in
// memory.
func newPayNet(ctx context.Context, dir string, nodes int, edges [][2]int) (_ *payNet, err error) {
	ctx, cancel := context.WithTimeout(ctx, sessionWithin)
	defer cancel()
	n := new(payNet)
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	for i := range nodes {
		at := ""
		if dir != "" {
			at = filepath.Join(dir, "node-"+string(rune('a'+i)))
		}
		p, err := newPayNode(ctx, at)
		if err != nil {
			return nil, err
		}
		n.nodes = append(n.nodes, p)
	}
	for _, e := range edges {
		a, b := n.nodes[e[0]], n.nodes[e[1]]
		if err := a.dial(ctx, b.party); err != nil {
			return nil, err
		}
		if err := errors.Join(a.node.WaitNeighbour(ctx, b.id()), b.node.WaitNeighbour(ctx, a.id())); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func newPayRow(ctx context.Context, dir string, hops int) (*payNet, error) {
	var edges [][2]int
	for i := range hops {
		edges = append(edges, [2]int{i, i + 1})
	}
	return newPayNet(ctx, dir, hops+1, edges)
}

func newPayDiamond(ctx context.Context, dir string) (*payNet, error) {
	n, err := newPayNet(ctx, dir, 4, [][2]int{{0, 1}, {0, 2}, {1, 3}, {2, 3}})
	if err == nil {
		n.ways = [][]peer.ID{{n.nodes[1].id()}, {n.nodes[2].id()}}
	}
	return n, err
}

// found waits until the payer knows a way: the adverts of the hops have come to it.
func (n *payNet) found(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sessionWithin)
	defer cancel()
	return firstPayment(ctx, n.pay, func(err error) bool { return errors.Is(err, payments.ErrNoRoute) })
}

// firstPayment pays until it succeeds, or fails in a way that trying again does not mend.
func firstPayment(ctx context.Context, pay func(context.Context) (time.Duration, error), again func(error) bool) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		_, err := pay(ctx)
		if err == nil || !again(err) {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return err
		}
	}
}

func (n *payNet) pay(ctx context.Context) (time.Duration, error) {
	return payInvoice(ctx, n.payer().pays, n.payee().pays, 1)
}

// payInvoice is the command pay, of an invoice of its own. It returns the time from the
// call to the proof of payment.
func payInvoice(ctx context.Context, payer, payee *payments.Service, amount tally.Amount) (time.Duration, error) {
	i, err := payee.NewInvoice(ctx, payments.InvoiceRequest{Amount: amount})
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	_, err = payer.Pay(ctx, payments.PayRequest{Invoice: i})
	return time.Since(begun), err
}

// payParts sends an invoice's parts at once, by the command sendpartialpay, one unit
// each, and waits for the proof of payment.
func (n *payNet) payParts(ctx context.Context) (time.Duration, error) {
	i, err := n.payee().pays.NewInvoice(ctx, payments.InvoiceRequest{Amount: diamondParts})
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	err = each(diamondParts, diamondParts, func(k int) error {
		_, err := n.payer().pays.SendPart(ctx, payments.SendPart{
			Hash: i.Hash, Dest: i.Payee, Secret: i.Secret, Intended: diamondParts, Number: uint64(k + 1), Amount: 1,
			Via: n.ways[k%len(n.ways)],
		})
		return err
	})
	if err != nil {
		return 0, err
	}
	v, err := n.payer().pays.WaitPayment(ctx, i.Hash)
	if err == nil && v.Status != payments.StatusComplete {
		err = fmt.Errorf("a payment is %s", v.Status)
	}
	return time.Since(begun), err
}

// payRuns pays with a window.
type payRuns struct {
	once   func(context.Context) (time.Duration, error)
	window int
	paid   *atomic.Uint64
	took   []time.Duration
}

// run pays for d and returns the payments in a second.
func (r *payRuns) run(ctx context.Context, d time.Duration) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, d+time.Minute)
	defer cancel()
	r.took = r.took[:0]
	var mu sync.Mutex
	begin := time.Now()
	err := each(r.window, r.window, func(int) error {
		for { // once at least
			took, err := r.once(ctx)
			if err != nil {
				return err
			}
			mu.Lock()
			r.took = append(r.took, took)
			mu.Unlock()
			if time.Since(begin) >= d {
				return nil
			}
		}
	})
	r.paid.Add(uint64(len(r.took)))
	return float64(len(r.took)) / time.Since(begin).Seconds(), err
}

// check compares the payee's invoices and the first tabs with what was paid, once
// the last part is decided.
func (n *payNet) check(ctx context.Context, paid tally.Amount) error {
	ctx, cancel := context.WithTimeout(ctx, sessionWithin)
	defer cancel()
	invoices, err := n.payee().pays.Invoices(ctx)
	if err != nil {
		return err
	}
	var took tally.Amount
	for i := range invoices {
		took += invoices[i].Received
	}
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		rows, err := n.payer().node.Book().Rows(ctx)
		if err != nil {
			return err
		}
		var gave tally.Amount
		for i := range rows {
			gave += rows[i].Consumed
		}
		if gave == paid && took == paid {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%d units were paid, the payer's tabs say %d and the payee's invoices %d", paid, gave, took)
		}
	}
}

// syncedRecords is what the disk gives the same number of writers, each of which
// waits for one record after the other.
func syncedRecords(dir string) (run func(context.Context, time.Duration) (float64, error), end func() error, err error) {
	store, err := openDisk(filepath.Join(dir, "records"))
	if err != nil {
		return nil, nil, err
	}
	record := make([]byte, 200)
	run = func(ctx context.Context, d time.Duration) (float64, error) {
		var count atomic.Uint64
		begin := time.Now()
		err := each(payWindow, payWindow, func(i int) error {
			var b durable.Batch
			for { // once at least
				b.Reset()
				b.Put("/bench/"+durable.KeyUint(uint64(i)), record)
				if err := store.Commit(ctx, &b); err != nil {
					return err
				}
				count.Add(1)
				if time.Since(begin) >= d {
					return nil
				}
			}
		})
		return float64(count.Load()) / time.Since(begin).Seconds(), err
	}
	return run, store.Close, nil
}

// benchMultipath measures whole payments: invoice, ways, parts, proof. Beside them
// packets of the hop engine alone over as many hops, and synced records.
func benchMultipath(ctx context.Context, o *Options) (figures []Figure, err error) {
	for _, onDisk := range []bool{false, true} {
		for _, hops := range scale(o, []int{1, 2, 4}, []int{1}) {
			list, err := payOver(ctx, o, hops, onDisk, false)
			if err != nil {
				return nil, fmt.Errorf("%d hops, %s: %w", hops, where(onDisk), err)
			}
			figures = append(figures, list...)
		}
		list, err := payOver(ctx, o, 2, onDisk, true)
		if err != nil {
			return nil, fmt.Errorf("diamond, %s: %w", where(onDisk), err)
		}
		figures = append(figures, list...)
	}
	return figures, nil
}

func payOver(ctx context.Context, o *Options, hops int, onDisk, diamond bool) (_ []Figure, err error) {
	name, parts := fmt.Sprintf("multipath/%s/hops-%d", where(onDisk), hops), 1
	if diamond {
		name, parts = fmt.Sprintf("multipath/%s/diamond-%d-parts", where(onDisk), diamondParts), diamondParts
	}
	o.say("%s", name)
	dir := ""
	if onDisk {
		var remove func() error
		if dir, remove, err = o.folder(); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, remove()) }()
	}
	var net *payNet
	if diamond {
		net, err = newPayDiamond(ctx, dir)
	} else {
		net, err = newPayRow(ctx, dir, hops)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, net.close()) }()
	var paid atomic.Uint64
	many := &payRuns{once: net.pay, window: payWindow, paid: &paid}
	one := &payRuns{once: net.pay, window: 1, paid: &paid}
	if diamond {
		many.once, one.once = net.payParts, net.payParts
	} else {
		if err := net.found(ctx); err != nil {
			return nil, err
		}
		paid.Add(1)
	}

	c, remove, err := newChain(ctx, o, hops, onDisk)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close(), remove()) }()
	packets, packet := newPayer(c, payWindow*parts), newPayer(c, 1)
	packet.seq = 1 << 62 // part ids of its own
	perPayment := func(ctx context.Context, d time.Duration) (float64, error) {
		v, err := packets.run(ctx, d)
		return v / float64(parts), err
	}
	probes := []probe{many.run, perPayment}
	var p50, packetP50 []float64
	probes = append(probes, timed(&p50, &one.took, one.run), timed(&packetP50, &packet.took, packet.run))
	if onDisk {
		records, end, err := syncedRecords(dir)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, end()) }()
		probes = append(probes, records)
	}
	all, err := rounds(ctx, o, probes...)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(net.check(ctx, tally.Amount(paid.Load())*tally.Amount(parts)), c.check(ctx, packets.paid+packet.paid)); err != nil {
		return nil, err
	}
	limit := fmt.Sprintf("packets of the hop engine alone over %d hops, with the same store", hops)
	note := "payments of 1 unit by pay, each with an invoice of its own, signed, checked and routed"
	if diamond {
		limit += fmt.Sprintf(", %d for one", parts)
		note = fmt.Sprintf("payments of %d parts by sendpartialpay, each with an invoice of its own, on two ways of 2 hops", parts)
	}
	whole := rate(name, "payments/s", all[0], all[1], limit, 0).
		note("%s; %d under way; Lightning's nodes were published with 33 to 89 payments/s", note, payWindow).
		withCPU(all[0], all[1]).with("window", payWindow).with("parts", parts)
	single := cost(name+"/p50", "µs", once(p50...), once(packetP50...), limit, 0).
		note("one payment at a time, from the call to the proof of payment; the limit is one packet").with("parts", parts)
	if onDisk {
		whole = whole.with("synced_records_per_s", all[4].median()).with("synced_records_best", slices.Max(all[4].values))
	}
	return []Figure{whole, single}, nil
}
