package testnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/host/rpc"
)

const (
	// chaosMessages are in each store: a query of all of them passes the payment
	// threshold twice.
	chaosMessages = 220
	// chaosCall bounds one call of the load, so that a peer that is down stops
	// nobody for long.
	chaosCall = 8 * time.Second
	// quietWithin bounds the time in which the books must come to rest after the
	// last kill, and payWithin the time in which the chain must have paid.
	quietWithin = 3 * time.Minute
	payWithin   = 3 * time.Minute
	// devnetShare is one kill of the chain among so many.
	devnetShare = 12
)

// ChaosOptions of Chaos.
type ChaosOptions struct {
	// Kills is how often a process is killed. Default 20.
	Kills int
	// Peers default: 5.
	Peers int
	// Seed chooses who is killed when, and who does what. The processes do the
	// rest: a seed repeats the plan, not the run.
	Seed    uint64
	Cluster ClusterConfig
	// Progress is called after each kill and at each stage. Nil is allowed.
	Progress func(stage string, done, total int)
}

// ChaosReport is what came of it.
type ChaosReport struct {
	Seed        uint64 `json:"seed"`
	Peers       int    `json:"peers"`
	Kills       int    `json:"kills"`
	DevnetKills int    `json:"devnet_kills"`
	// Queries are those that were answered whole or in part; Units what they
	// brought over the RPC; Settles and Cashouts those that were asked for and
	// done.
	Queries  uint64 `json:"queries"`
	Units    uint64 `json:"units"`
	Settles  uint64 `json:"settles"`
	Cashouts uint64 `json:"cashouts"`
	// Served, Paid and Forgiven sum all books at the end; Cheques the last serials.
	Served   uint64 `json:"served"`
	Paid     uint64 `json:"paid"`
	Cheques  uint64 `json:"cheques"`
	Forgiven uint64 `json:"forgiven"`
	Channels int    `json:"channels"`
	// Free are units that reached who asked and are on no book: kills between two
	// writes of counters.
	Free uint64 `json:"free"`
	// Ahead is how often a look found less than the one before: the earlier one
	// saw what a kill kept from the disk.
	Ahead int `json:"ahead"`
	// Resolved are the tabs that needed the operator: a difference over what
	// statements close by themselves.
	Resolved int `json:"resolved"`
	// Lost and Double are the tabs, one way each, on which a payment that was
	// acked is gone, and on which one counts twice.
	Lost      int           `json:"lost"`
	Double    int           `json:"double"`
	Checks    []CheckResult `json:"checks"`
	Passed    int           `json:"passed"`
	Failed    int           `json:"failed"`
	ElapsedMS int64         `json:"elapsed_ms"`
}

// Write prints the report; its last line is "N lost, N double".
func (r *ChaosReport) Write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d kills, %d of them of the chain, among %d peers, seed %d, in %v\n",
		r.Kills, r.DevnetKills, r.Peers, r.Seed, (time.Duration(r.ElapsedMS) * time.Millisecond).Round(time.Second))
	fmt.Fprintf(&b, "%d queries brought %d units; %d settlements and %d cash-outs were asked for\n", r.Queries, r.Units, r.Settles, r.Cashouts)
	fmt.Fprintf(&b, "books: %d units served, %d paid with %d cheques over %d channels, %d forgiven, %d free, %d tabs resolved by hand; %d views were ahead of the disk\n",
		r.Served, r.Paid, r.Cheques, r.Channels, r.Forgiven, r.Free, r.Resolved, r.Ahead)
	for _, c := range r.Checks {
		word := "ok  "
		if !c.Passed {
			word = "FAIL"
		}
		fmt.Fprintf(&b, "%s  %s: %s\n", word, c.Name, c.Detail)
	}
	fmt.Fprintf(&b, "%d passed, %d failed\n%d lost, %d double\n", r.Passed, r.Failed, r.Lost, r.Double)
	_, err := io.WriteString(w, b.String())
	return err
}

// Clean reports whether nothing is lost or doubled and every check passed.
func (r *ChaosReport) Clean() bool { return r.Lost == 0 && r.Double == 0 && r.Failed == 0 }

// Chaos lets peers serve and pay each other, each a process of its own on one
// devnet, kills them (SIGKILL) at random moments, and starts them again. At the
// end all is brought to rest, every channel is settled and collected, and the
// books, what was acked on the way and what the chain paid are compared. An error
// says that it could not run; what it found is in the report.
func Chaos(ctx context.Context, opt ChaosOptions) (report ChaosReport, err error) {
	if opt.Kills == 0 {
		opt.Kills = 20
	}
	if opt.Peers == 0 {
		opt.Peers = 5
	}
	if opt.Peers < 2 || opt.Peers > MaxMembers {
		return report, fmt.Errorf("testnet: chaos among %d peers: want 2 to %d", opt.Peers, MaxMembers)
	}
	if opt.Progress == nil {
		opt.Progress = func(string, int, int) {}
	}
	if opt.Cluster.BlockTime == 0 {
		opt.Cluster.BlockTime = 100 * time.Millisecond
	}
	if opt.Cluster.Finality == 0 {
		opt.Cluster.Finality = 3
	}
	begin := time.Now()
	c := &chaos{opt: opt, acked: make(map[way]uint64), credited: make(map[way]uint64), delivered: make(map[way]uint64), report: ChaosReport{Seed: opt.Seed, Peers: opt.Peers}}
	if c.Cluster, err = StartCluster(ctx, opt.Cluster); err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.run(ctx); err != nil {
		return report, err
	}
	c.report.ElapsedMS = time.Since(begin).Milliseconds()
	return c.report, nil
}

// way is one direction of a tab: who pays whom, by number.
type way struct{ from, to int }

type chaos struct {
	*Cluster
	opt    ChaosOptions
	report ChaosReport
	peers  []*Member
	had    []*big.Int // in each wallet before the first channel

	queries, units, settles, cashouts atomic.Uint64

	// mu guards the fields below: the highest cumulative that was seen acked by
	// the payer, and credited by the payee; what was seen to go back.
	mu              sync.Mutex
	acked, credited map[way]uint64
	delivered       map[way]uint64 // units that reached who asked
	back            []string
	unsettled       map[way]error // how the last try to settle ended
}

func (c *chaos) run(ctx context.Context) error {
	c.opt.Progress("starting", 0, c.opt.Peers)
	names := make([]string, c.opt.Peers)
	for i := range names {
		names[i] = "p" + strconv.Itoa(i+1)
	}
	// Low thresholds and small channels: many cheques and top-ups between kills.
	err := c.AddMany(ctx, names, "payment_threshold = 40", "disconnect_threshold = 60", "initial_deposit = 150", "top_up = 100", "max_locked = 1000000")
	if err != nil {
		return err
	}
	for _, name := range names {
		m, err := c.Member(name)
		if err != nil {
			return err
		}
		had, err := m.Wallet(ctx)
		if err != nil {
			return err
		}
		if err := m.Import(ctx, chaosMessages); err != nil {
			return err
		}
		c.peers, c.had = append(c.peers, m), append(c.had, had)
	}
	c.meetAll(ctx)
	if err := c.storm(ctx); err != nil {
		return err
	}
	c.report.Queries, c.report.Units = c.queries.Load(), c.units.Load()
	c.report.Settles, c.report.Cashouts = c.settles.Load(), c.cashouts.Load()
	rest, err := c.quiesce(ctx)
	if err != nil {
		return err
	}
	c.compareBooks(rest)
	if err := c.collectAll(ctx, rest); err != nil {
		return err
	}
	return c.compareChain(ctx, rest)
}

// storm is the load and the kills.
func (c *chaos) storm(ctx context.Context) error {
	work, stop := context.WithCancel(ctx)
	var load sync.WaitGroup
	defer load.Wait()
	defer stop()
	for i := range c.peers {
		for k := range 2 {
			rng := rand.New(rand.NewPCG(c.opt.Seed, uint64(2*i+k+1)))
			load.Go(func() { c.spend(work, i, rng) }) // ends with stop
		}
		load.Go(func() { c.observe(work, i) }) // ends with stop
	}
	rng := rand.New(rand.NewPCG(c.opt.Seed, 0))
	lives := make([]sync.Mutex, len(c.peers)) // one who is down is not killed
	var back sync.WaitGroup
	defer back.Wait()
	failed := make(chan error, c.opt.Kills)
	for n := range c.opt.Kills {
		timer := time.NewTimer(time.Duration(50+rng.IntN(500)) * time.Millisecond)
		select {
		case <-timer.C:
		case err := <-failed:
			timer.Stop()
			return err
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		away := time.Duration(rng.IntN(400)) * time.Millisecond
		c.report.Kills++
		c.opt.Progress("kills", n+1, c.opt.Kills)
		if rng.IntN(devnetShare) == 0 {
			c.report.DevnetKills++
			if err := c.strike(ctx, c.Devnet.Kill, c.Devnet.Start, away); err != nil {
				return err
			}
			continue
		}
		i := rng.IntN(len(c.peers))
		for !lives[i].TryLock() { // another one: at least one is up
			i = (i + 1) % len(c.peers)
			if i == 0 {
				sleep(ctx, 20*time.Millisecond)
			}
		}
		back.Go(func() { // ends when the peer is up again
			defer lives[i].Unlock()
			m := c.peers[i]
			if err := c.strike(ctx, m.Kill, m.Start, away); err != nil {
				failed <- err
				return
			}
			c.meet(ctx, i)
		})
	}
	back.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return ctx.Err()
	}
}

// strike is one death, the time away, and the next life.
func (c *chaos) strike(ctx context.Context, kill func() error, start func(context.Context) error, away time.Duration) error {
	if err := kill(); err != nil {
		return err
	}
	sleep(ctx, away)
	return start(ctx)
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// meet connects one peer with all others, as far as they are up.
func (c *chaos) meet(ctx context.Context, i int) {
	ctx, cancel := context.WithTimeout(ctx, chaosCall)
	defer cancel()
	for j, other := range c.peers {
		if j != i {
			_ = c.peers[i].Connect(ctx, other) // whoever is down dials when it comes back
		}
	}
}

func (c *chaos) meetAll(ctx context.Context) {
	for i := range c.peers {
		c.meet(ctx, i)
	}
}

// spend is the load that one peer makes. Whatever fails is tried another time:
// half of the others are dead.
func (c *chaos) spend(ctx context.Context, i int, rng *rand.Rand) {
	for ctx.Err() == nil {
		j := rng.IntN(len(c.peers) - 1)
		if j >= i {
			j++
		}
		call, cancel := context.WithTimeout(ctx, chaosCall)
		var err error
		switch rng.IntN(20) {
		case 0:
			_, err = callOf(c.peers[i], func(r *rpc.Client) (rpc.SettleResult, error) { return r.Settle(call, c.peers[j].ID) })
			count1(&c.settles, err)
		case 1:
			_, err = callOf(c.peers[i], func(r *rpc.Client) ([]rpc.CashoutRow, error) { return r.Cashout(call, c.peers[j].ID, 0) })
			count1(&c.cashouts, err)
		default:
			err = c.query(call, i, j, 1+rng.IntN(25), 1+rng.IntN(4))
		}
		cancel()
		if err != nil {
			sleep(ctx, time.Duration(20+rng.IntN(60))*time.Millisecond)
		}
	}
}

func count1(n *atomic.Uint64, err error) {
	if err == nil {
		n.Add(1)
	}
}

// query asks for a few pages.
func (c *chaos) query(ctx context.Context, i, j, size, pages int) error {
	q := rpc.StoreQuery{PageSize: size}
	for range pages {
		page, err := callOf(c.peers[i], func(r *rpc.Client) (rpc.StorePage, error) { return r.StoreQuery(ctx, c.peers[j].ID, q) })
		if err != nil {
			return err
		}
		c.units.Add(page.Cost)
		c.mu.Lock()
		c.delivered[way{i, j}] += page.Cost
		c.mu.Unlock()
		if page.Cursor == "" {
			break
		}
		q.Cursor = page.Cursor
	}
	c.queries.Add(1)
	return nil
}

// observe looks at one peer again and again.
func (c *chaos) observe(ctx context.Context, i int) {
	for ctx.Err() == nil {
		c.look(ctx, i)
		sleep(ctx, 40*time.Millisecond)
	}
}

// look reads the book of one peer. What a payer ever saw acked its payee has had
// on disk before, and shows in every life from then on. A peer's view of its own
// tab may run ahead of its disk by the save that is under way: after a kill that
// is gone, and the handshake brings it back.
func (c *chaos) look(ctx context.Context, i int) {
	c.mu.Lock()
	before := maps.Clone(c.acked)
	c.mu.Unlock()
	call, cancel := context.WithTimeout(ctx, chaosCall)
	defer cancel()
	rows, err := callOf(c.peers[i], func(r *rpc.Client) ([]rpc.BalanceRow, error) { return r.Balances(call, "") })
	if err != nil {
		return // it is down
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range rows {
		j := c.number(rows[k].Peer)
		out, in := way{i, j}, way{j, i}
		if acked := before[in]; rows[k].Received < acked {
			c.back = append(c.back, fmt.Sprintf("%s to %s: acked %d, and the payee has %d", c.peers[j].Name, c.peers[i].Name, acked, rows[k].Received))
		}
		if rows[k].Paid < c.acked[out] || rows[k].Received < c.credited[in] {
			c.report.Ahead++
		}
		c.acked[out] = max(c.acked[out], rows[k].Paid)
		c.credited[in] = max(c.credited[in], rows[k].Received)
	}
}

func (c *chaos) number(id string) int {
	return slices.IndexFunc(c.peers, func(m *Member) bool { return m.ID == id })
}

// rested is what the books say when nothing moves any more.
type rested map[way]rpc.BalanceRow // by whose book it is, and with whom

// quiesce connects all, has every debt paid and waits until the books agree. What
// statements do not close is resolved by hand, once, and counted.
func (c *chaos) quiesce(ctx context.Context) (rested, error) {
	c.opt.Progress("coming to rest", 0, 0)
	begin := time.Now()
	patience := quietWithin / 3
	for {
		rest, open, err := c.rest(ctx)
		if err != nil {
			return nil, err
		}
		if open == "" {
			return rest, nil
		}
		c.opt.Progress("coming to rest: "+open, 0, 0)
		switch past := time.Since(begin); {
		case past > quietWithin:
			return rest, nil // the comparison says what is open
		case past > patience:
			patience = quietWithin // once
			c.resolveAll(ctx, rest)
		}
		c.meetAll(ctx)
		c.settleAll(ctx, rest)
		sleep(ctx, 250*time.Millisecond)
	}
}

// rest reads all books. open names the first tab that is not at rest.
func (c *chaos) rest(ctx context.Context) (all rested, open string, err error) {
	all = make(rested)
	for i := range c.peers {
		c.look(ctx, i)
		for j := range c.peers {
			if i == j {
				continue
			}
			if all[way{i, j}], err = c.peers[i].Tab(ctx, c.peers[j].ID); err != nil {
				return nil, "", err
			}
		}
	}
	for w, mine := range all {
		theirs := all[way{w.to, w.from}]
		a, b := tabOf(&mine), tabOf(&theirs)
		if mine.Peer == "" && theirs.Peer == "" {
			continue
		}
		if !a.mirrors(&b) || mine.Owed != 0 || a.Pending || b.Pending || a.Reserved|a.Shadow != 0 {
			open = fmt.Sprintf("%s with %s: %s; %s", c.peers[w.from].Name, c.peers[w.to].Name, tabText(&mine), tabText(&theirs))
			break
		}
	}
	return all, open, nil
}

func tabText(r *rpc.BalanceRow) string {
	text := fmt.Sprintf("balance %d, owed %d, served %d, consumed %d, paid %d, received %d, skew %d", r.Balance, r.Owed, r.Served, r.Consumed, r.Paid, r.Received, r.Skew)
	if r.SettlementBlockedBy != "" {
		text += " (" + r.SettlementBlockedBy + ")"
	}
	return text
}

// settleAll has every debtor pay.
func (c *chaos) settleAll(ctx context.Context, rest rested) {
	var debts sync.WaitGroup
	for w, row := range rest {
		if row.Owed >= 0 {
			continue
		}
		debts.Go(func() { // ends with the call
			call, cancel := context.WithTimeout(ctx, chaosCall)
			defer cancel()
			_, err := callOf(c.peers[w.from], func(r *rpc.Client) (rpc.SettleResult, error) { return r.Settle(call, c.peers[w.to].ID) })
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.unsettled == nil {
				c.unsettled = make(map[way]error)
			}
			c.unsettled[w] = err
		})
	}
	debts.Wait()
}

// resolveAll is the operator's word where books differ by more than they forgive.
func (c *chaos) resolveAll(ctx context.Context, rest rested) {
	for w, row := range rest {
		if row.Skew == 0 {
			continue
		}
		if _, err := callOf(c.peers[w.from], func(r *rpc.Client) (rpc.BalanceRow, error) { return r.PeerResolve(ctx, c.peers[w.to].ID) }); err == nil {
			c.report.Resolved++
		}
	}
}

// check books one named check.
func (c *chaos) check(name string, bad []string, good string) {
	r := CheckResult{Name: name, Passed: len(bad) == 0, Times: 1, Detail: good}
	if !r.Passed {
		const most = 4
		r.Detail = strings.Join(bad[:min(most, len(bad))], "; ")
		if len(bad) > most {
			r.Detail += fmt.Sprintf("; and %d more", len(bad)-most)
		}
		c.report.Failed++
	} else {
		c.report.Passed++
	}
	c.report.Checks = append(c.report.Checks, r)
}

// compareBooks holds the two books of each tab against each other, and against
// what was seen on the way.
func (c *chaos) compareBooks(rest rested) {
	var differ, unpaid, free, lost, double []string
	for w, mine := range rest {
		theirs := rest[way{w.to, w.from}]
		a, b := tabOf(&mine), tabOf(&theirs)
		tab := c.peers[w.from].Name + " with " + c.peers[w.to].Name
		if !a.mirrors(&b) {
			differ = append(differ, tab+": "+tabText(&mine)+"; "+tabText(&theirs))
		}
		if mine.Owed != 0 || a.Pending { // money paid ahead stays for later service
			text := tab + ": " + tabText(&mine)
			if err := c.unsettled[w]; err != nil && mine.Owed < 0 {
				text += ": " + err.Error()
			}
			unpaid = append(unpaid, text)
		}
		if theirs.Received < max(c.acked[w], c.credited[w]) {
			lost = append(lost, fmt.Sprintf("%s: received %d, and %d was acked, %d credited", tab, theirs.Received, c.acked[w], c.credited[w]))
			c.report.Lost++
		}
		if theirs.Received > mine.Paid {
			double = append(double, fmt.Sprintf("%s: received %d, paid %d", tab, theirs.Received, mine.Paid))
			c.report.Double++
		}
		if had := c.delivered[w]; had > mine.Consumed {
			c.report.Free += had - mine.Consumed
			if slack := mine.DisconnectThreshold - mine.PaymentThreshold; had-mine.Consumed > slack+mine.Paid/100 {
				free = append(free, fmt.Sprintf("%s: %d units reached it, %d are booked", tab, had, mine.Consumed))
			}
		}
		c.report.Served += mine.Served
		c.report.Paid += mine.Paid
		c.report.Forgiven += mine.Forgiven
		if mine.LastChequeSent != nil {
			c.report.Cheques += mine.LastChequeSent.Serial
		}
	}
	c.check("the books are each other's negatives", differ, fmt.Sprintf("%d tabs, both ways", len(rest)/2))
	c.check("every debt is paid", unpaid, fmt.Sprintf("%d units", c.report.Paid))
	c.check("no more service is free than W and 1 % of what was paid", free, fmt.Sprintf("%d of %d units", c.report.Free, c.units.Load()))
	c.check("no acked cumulative went back", c.back, "looked at in every life")
	c.check("no acked payment is lost", lost, fmt.Sprintf("%d ways", len(c.acked)))
	c.check("no payment counts twice", double, fmt.Sprintf("%d cheques", c.report.Cheques))
}

// collectAll settles every channel and passes the time until all are collected.
func (c *chaos) collectAll(ctx context.Context, _ rested) error {
	c.opt.Progress("collecting", 0, 0)
	ctx, cancel := context.WithTimeout(ctx, payWithin)
	defer cancel()
	for mined := false; ; sleep(ctx, 100*time.Millisecond) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("testnet: channels not collected: %w", err)
		}
		states := make(map[string]int)
		for _, m := range c.peers {
			rows, err := callOf(m, func(r *rpc.Client) ([]rpc.ChannelRow, error) { return r.PaychInfo(ctx) })
			if err != nil {
				return err
			}
			for k := range rows {
				state := rows[k].State
				if state == "collected" && rows[k].Result == nil {
					state = "unread"
				}
				if state == "settling" && !cashed(ctx, m, &rows[k]) {
					state = "submitting"
				}
				states[state]++
				if state == "open" && rows[k].Direction == "outbound" && len(rows[k].Operations) == 0 {
					_, _ = callOf(m, func(r *rpc.Client) (rpc.MessageRow, error) { return r.PaychSettle(ctx, rows[k].Channel) })
				}
			}
		}
		if states["creating"]+states["open"]+states["submitting"] > 0 {
			continue
		}
		if states["settling"]+states["unread"] == 0 {
			return nil
		}
		if !mined && states["settling"] > 0 {
			mined = true
			if err := c.Control(ctx, func(d *host.DevnetClient) error {
				_, err := d.Mine(ctx, int(c.chain.SettleDelay))
				return err
			}); err != nil {
				return err
			}
		}
	}
}

// cashed reports whether the chain has the best voucher of a channel of the
// peer's: before that its time must not be passed in one leap.
func cashed(ctx context.Context, m *Member, ch *rpc.ChannelRow) bool {
	if ch.Direction == "outbound" {
		return true
	}
	list, err := callOf(m, func(r *rpc.Client) ([]rpc.VoucherRow, error) { return r.PaychVoucherRecords(ctx, ch.Channel) })
	if err != nil {
		return false
	}
	done := len(list) == 0
	for i := range list {
		done = done || list[i].Redeemed && list[i].Live
		if list[i].Live && !list[i].Redeemed {
			return false
		}
	}
	return done || !slices.ContainsFunc(list, func(v rpc.VoucherRow) bool { return v.Live })
}

// compareChain holds what the chain paid against the books, to the attoFIL.
func (c *chaos) compareChain(ctx context.Context, rest rested) error {
	paid := make(map[way]*big.Int)
	for i, m := range c.peers {
		rows, err := callOf(m, func(r *rpc.Client) ([]rpc.ChannelRow, error) { return r.PaychInfo(ctx) })
		if err != nil {
			return err
		}
		for k := range rows {
			if rows[k].Direction != "outbound" || rows[k].Result == nil {
				continue
			}
			c.report.Channels++
			j := slices.IndexFunc(c.peers, func(m *Member) bool { return m.Payout == rows[k].To })
			sum := paid[way{i, j}]
			if sum == nil {
				sum = new(big.Int)
				paid[way{i, j}] = sum
			}
			n, ok := new(big.Int).SetString(rows[k].Result.Paid, 10)
			if !ok {
				return fmt.Errorf("testnet: the chain paid %q", rows[k].Result.Paid)
			}
			sum.Add(sum, n)
		}
	}
	var wrong, purses []string
	want := make([]*big.Int, len(c.peers))
	for i := range want {
		want[i] = new(big.Int).Set(c.had[i])
	}
	for w, row := range rest {
		due := new(big.Int).Mul(new(big.Int).SetUint64(row.Paid), big.NewInt(1_000_000_000))
		want[w.from].Sub(want[w.from], due)
		want[w.to].Add(want[w.to], due)
		got := paid[w]
		if got == nil {
			got = new(big.Int)
		}
		switch got.Cmp(due) {
		case -1:
			c.report.Lost++
		case 1:
			c.report.Double++
		default:
			continue
		}
		wrong = append(wrong, fmt.Sprintf("%s to %s: %v attoFIL, the books say %v", c.peers[w.from].Name, c.peers[w.to].Name, got, due))
	}
	for i, m := range c.peers {
		have, err := m.Wallet(ctx)
		if err != nil {
			return err
		}
		if have.Cmp(want[i]) != 0 {
			purses = append(purses, fmt.Sprintf("%s has %v attoFIL, the books say %v", m.Name, have, want[i]))
		}
	}
	c.check("the chain paid what the books say", wrong, fmt.Sprintf("%d channels", c.report.Channels))
	c.check("every wallet holds what the books say", purses, fmt.Sprintf("%d wallets, to the attoFIL", len(c.peers)))
	after, _, err := c.rest(ctx)
	if err != nil {
		return err
	}
	var changed []string
	for w, row := range after {
		if was := rest[w]; row.Paid != was.Paid || row.Received != was.Received || row.Balance != was.Balance {
			changed = append(changed, fmt.Sprintf("%s with %s: %s; before: %s", c.peers[w.from].Name, c.peers[w.to].Name, tabText(&row), tabText(&was)))
		}
	}
	c.check("collecting changed no book", changed, fmt.Sprintf("%d tabs", len(after)/2))
	return nil
}
