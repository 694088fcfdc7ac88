package host

import (
	"context"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/paych"
)

const (
	// lookWithin bounds what one look at the chain may take.
	lookWithin = 3 * time.Second
	// settlesSoon is the part of the settle delay that is left when the operator
	// is told that a channel settles.
	settlesSoon = 4
)

// addressText is empty for an address that is not there yet.
func addressText(a address.Address) string {
	if a == address.Undef {
		return ""
	}
	return a.String()
}

// chainLook is one look at the chain and the channels.
type chainLook struct {
	height     abi.ChainEpoch
	balance    *big.Int // attoFIL; nil where it is not known
	err        error    // of the chain
	infos      []paych.ChannelInfo
	byPhase    map[paych.Phase]int
	vouchers   uint64
	pending    int
	late       int
	lateSample string
}

func (c *chain) look(ctx context.Context) chainLook {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	l := chainLook{byPhase: make(map[paych.Phase]int)}
	if l.height, l.err = c.link.Head(ctx); l.err == nil {
		balance, err := c.link.Balance(ctx, c.facts.Payout)
		if l.err = err; err == nil {
			l.balance = balance.Int
		}
	}
	// From memory; it never fails.
	l.infos, _ = c.manager.PaychInfos(ctx)
	now := time.Now()
	for i := range l.infos {
		info := &l.infos[i]
		l.byPhase[info.Phase]++
		l.vouchers += info.Vouchers
		l.pending += len(info.Pending)
		for _, m := range info.Pending {
			if now.After(m.Late) {
				l.late++
				l.lateSample = fmt.Sprintf("%s of %s since %s", m.Kind, m.Cid, m.Since.UTC().Format(time.RFC3339))
			}
		}
	}
	return l
}

// checks are those of status. A peer without a chain has none.
func (c *chain) checks(ctx context.Context) []rpc.Check {
	if c == nil {
		return nil
	}
	l := c.look(ctx)
	return []rpc.Check{c.nodeCheck(&l), c.walletCheck(ctx, &l), c.messageCheck(&l), c.channelCheck(&l)}
}

func (c *chain) nodeCheck(l *chainLook) rpc.Check {
	k := rpc.Check{Name: "chain", State: rpc.CheckOK, Detail: fmt.Sprintf("%s at height %d", c.facts.Network, l.height)}
	if l.err == nil {
		return k
	}
	k.State, k.Detail = rpc.CheckFail, fmt.Sprintf("the node of %s does not answer: %v", c.facts.Network, l.err)
	if since, _ := c.link.trouble(); !since.IsZero() {
		k.Detail = fmt.Sprintf("the node of %s does not answer since %s: %v", c.facts.Network, since.UTC().Format(time.RFC3339), l.err)
	}
	k.Next = "start the node that " + c.node.From + " names; vouchers must reach the chain before a channel settles"
	return k
}

func (c *chain) walletCheck(ctx context.Context, l *chainLook) rpc.Check {
	payout := c.facts.Payout
	k := rpc.Check{Name: "wallet", State: rpc.CheckOK}
	if has, err := c.wallet.Has(ctx, payout); err == nil && !has {
		k.State, k.Detail = rpc.CheckFail, "the key of "+payout.String()+" is gone"
		k.Next = "restore keystore/wallet from a backup"
		return k
	}
	if l.balance == nil {
		k.State, k.Detail = rpc.CheckSkip, payout.String()+", balance unknown"
		return k
	}
	k.Detail = payout.String() + " has " + rpc.FormatFIL(l.balance.String())
	if l.balance.Sign() == 0 {
		k.State, k.Next = rpc.CheckWarn, "send FIL to "+payout.String()
		if c.facts.Devnet {
			k.Next = "tally devnet faucet " + payout.String() + " 100FIL"
		}
	}
	return k
}

func (c *chain) messageCheck(l *chainLook) rpc.Check {
	k := rpc.Check{Name: "messages", State: rpc.CheckOK, Detail: fmt.Sprintf("%d to the chain are under way", l.pending)}
	if l.late > 0 {
		k.State, k.Detail = rpc.CheckWarn, fmt.Sprintf("%d of %d take longer than they may, such as %s", l.late, l.pending, l.lateSample)
		k.Next = "see why: tally channel ls"
	}
	return k
}

func (c *chain) channelCheck(l *chainLook) rpc.Check {
	k := rpc.Check{Name: "channels", State: rpc.CheckOK}
	var counts []string
	for p := paych.PhaseCreating; p <= paych.PhaseCollected; p++ {
		if n := l.byPhase[p]; n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", n, p))
		}
	}
	k.Detail = strings.Join(counts, ", ")
	if k.Detail == "" {
		k.Detail = "none"
	}
	for i := range l.infos {
		info := &l.infos[i]
		left := info.SettlingAt - l.height
		if l.err != nil || info.Phase != paych.PhaseSettling || left < 0 || left > c.facts.SettleDelay/settlesSoon {
			continue
		}
		k.State = rpc.CheckWarn
		k.Detail += fmt.Sprintf("; %s settles in %d epochs (%v)", info.Channel, left, (time.Duration(left) * c.link.params.Epoch).Round(time.Second))
		k.Next = "keep peer and chain running: vouchers are submitted by themselves; see tally channel status " + info.Channel.String()
		break
	}
	return k
}

// chainCollector answers a scrape. No label names a peer, a channel or an
// address.
type chainCollector struct {
	chain                                                     *chain
	channels, pending, late, balance, vouchers, height, calls *prometheus.Desc
}

func newChainCollector(c *chain) *chainCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tally_"+name, help, labels, nil)
	}
	return &chainCollector{
		chain:    c,
		channels: desc("channels", "Payment channels by phase.", "phase"),
		pending:  desc("chain_messages_pending", "Our messages to the chain without a receipt."),
		late:     desc("chain_messages_late", "Those of them that take longer than they may."),
		balance:  desc("wallet_balance_fil", "FIL of the payout address; absent while the chain does not answer."),
		vouchers: desc("vouchers", "Vouchers given and accepted on the channels that are known."),
		height:   desc("chain_height", "Height of the chain's head; absent while the chain does not answer."),
		calls:    desc("chain_errors_total", "Calls to the node of the chain that failed."),
	}
}

// Describe implements prometheus.Collector.
func (c *chainCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.channels, c.pending, c.late, c.balance, c.vouchers, c.height, c.calls} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *chainCollector) Collect(ch chan<- prometheus.Metric) {
	l := c.chain.look(context.Background())
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for p := paych.PhaseCreating; p <= paych.PhaseCollected; p++ {
		gauge(c.channels, float64(l.byPhase[p]), p.String())
	}
	gauge(c.pending, float64(l.pending))
	gauge(c.late, float64(l.late))
	gauge(c.vouchers, float64(l.vouchers))
	ch <- prometheus.MustNewConstMetric(c.calls, prometheus.CounterValue, float64(c.chain.link.failed.Load()))
	if l.err != nil {
		return
	}
	gauge(c.height, float64(l.height))
	fil, _ := new(big.Rat).SetFrac(l.balance, big.NewInt(1e18)).Float64()
	gauge(c.balance, fil)
}
