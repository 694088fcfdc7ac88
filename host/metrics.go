package host

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/protocols/packetnet"
	"github.com/tallystick/tally/swap"
)

// metric is one figure that is read from the book when somebody looks.
type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*reading) float64
}

// reading is one look at the node.
type reading struct {
	stats        swap.Stats
	sessions     int
	storeFailure float64
	packets      packetnet.Stats
	hops         forward.Stats
	sockets      paystream.Stats
	locks        lockStats
}

// collector answers a scrape. No metric has a peer as label: peers come and go
// without end, and who deals with whom is nobody's business.
type collector struct {
	node    *Node
	metrics []metric
}

func newMetrics(n *Node) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	counter := func(name, help string, value func(*reading) float64) metric {
		return metric{prometheus.NewDesc("tally_"+name+"_total", help, nil, nil), prometheus.CounterValue, value}
	}
	gauge := func(name, help string, value func(*reading) float64) metric {
		return metric{prometheus.NewDesc("tally_"+name, help, nil, nil), prometheus.GaugeValue, value}
	}
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&collector{node: n, metrics: []metric{
			gauge("exposure_units", "What all peers together could make us lose, in units.", func(r *reading) float64 { return float64(r.stats.Exposure) }),
			gauge("strangers_credit_units", "The part of it given to peers that never paid.", func(r *reading) float64 { return float64(r.stats.StrangersCredit) }),
			gauge("accounts", "Accounts in memory.", func(r *reading) float64 { return float64(r.stats.Accounts) }),
			gauge("holds", "Reservations in flight.", func(r *reading) float64 { return float64(r.stats.Holds) }),
			gauge("sessions", "Peers with a swap session.", func(r *reading) float64 { return float64(r.sessions) }),
			gauge("store_failed", "1 once the disk failed and nothing is served any more.", func(r *reading) float64 { return r.storeFailure }),
			counter("cheques_sent", "Cheques issued.", func(r *reading) float64 { return float64(r.stats.ChequesSent) }),
			counter("cheques_acked", "Our cheques that peers credited.", func(r *reading) float64 { return float64(r.stats.ChequesAcked) }),
			counter("cheques_refused", "Our cheques that peers refused.", func(r *reading) float64 { return float64(r.stats.ChequesRefused) }),
			counter("cheques_received", "Cheques credited.", func(r *reading) float64 { return float64(r.stats.ChequesReceived) }),
			counter("cheques_denied", "Cheques of peers that we refused.", func(r *reading) float64 { return float64(r.stats.ChequesDenied) }),
			counter("service_refused", "Uses of a service refused for want of headroom.", func(r *reading) float64 { return float64(r.stats.ServiceRefused) }),
			counter("peers_blocked", "Peers disconnected for a debt they did not pay.", func(r *reading) float64 { return float64(r.stats.PeersBlocked) }),
		}},
	)
	if n.engine != nil {
		reg.MustRegister(&collector{node: n, metrics: []metric{
			gauge("packet_sessions", "Peers with a packet session.", func(r *reading) float64 { return float64(r.packets.Sessions) }),
			counter("packet_messages", "Messages of neighbours about packets.", func(r *reading) float64 { return float64(r.hops.Messages) }),
			counter("packet_faults", "Sessions reset because the peer broke the protocol.", func(r *reading) float64 { return float64(r.hops.Faults) }),
			counter("packets_delivered", "Packets that were for us.", func(r *reading) float64 { return float64(r.hops.Delivered) }),
			counter("packet_data_dropped", "Replies that lost their data to a peer that reads slowly.", func(r *reading) float64 { return float64(r.packets.DataDropped) }),
			counter("packet_fees_units", "Fees of packets that passed here, in units, of all time.", func(r *reading) float64 { return float64(r.hops.Earned) }),
		}})
	}
	if n.locks != nil {
		reg.MustRegister(&collector{node: n, metrics: []metric{
			gauge("locks", "Locks of ours and of peers that are not over.", func(r *reading) float64 { return float64(r.locks.ours + r.locks.theirs) }),
			gauge("locks_out_units", "What our locks to peers are over, in units.", func(r *reading) float64 { return float64(r.locks.out) }),
			gauge("locks_in_units", "What locks of peers to us are over, in units.", func(r *reading) float64 { return float64(r.locks.in) }),
			counter("locks_paid_out", "Our locks that were paid.", func(r *reading) float64 { return float64(r.locks.paidOut) }),
			counter("locks_failed_out", "Our locks that came back.", func(r *reading) float64 { return float64(r.locks.failedOut) }),
			counter("locks_lost", "Locks that we claimed and the chain did not pay.", func(r *reading) float64 { return float64(r.locks.lost) }),
		}})
	}
	if n.sockets != nil {
		reg.MustRegister(&collector{node: n, metrics: []metric{
			gauge("sockets", "Payment sockets in memory.", func(r *reading) float64 { return float64(r.sockets.Sockets) }),
			gauge("sockets_stored", "Records of payment sockets that are not in memory.", func(r *reading) float64 { return float64(r.sockets.Stored) }),
			counter("socket_sent_units", "What sockets paid, in units.", func(r *reading) float64 { return float64(r.sockets.Sent) }),
			counter("socket_received_units", "What sockets were paid, in units.", func(r *reading) float64 { return float64(r.sockets.Received) }),
			counter("socket_packets_fulfilled", "Packets of our sockets that were fulfilled.", func(r *reading) float64 { return float64(r.sockets.Fulfilled) }),
			counter("socket_packets_rejected", "Packets of our sockets that were rejected.", func(r *reading) float64 { return float64(r.sockets.Rejected) }),
			counter("socket_packets_taken", "Packets of peers that our sockets took.", func(r *reading) float64 { return float64(r.sockets.Taken) }),
			counter("socket_packets_refused", "Packets of peers that our sockets refused.", func(r *reading) float64 { return float64(r.sockets.Refused) }),
		}})
	}
	return reg
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range c.metrics {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	r := reading{stats: c.node.book.Stats(), sessions: c.node.swap.Stats().Sessions}
	if c.node.store.Failed() != nil {
		r.storeFailure = 1
	}
	if c.node.packets != nil {
		r.packets, r.hops = c.node.packets.Stats(), c.node.engine.Stats()
	}
	if c.node.locks != nil {
		r.locks = c.node.locks.stats()
	}
	if c.node.sockets != nil {
		r.sockets = c.node.sockets.Stats()
	}
	for _, m := range c.metrics {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&r))
	}
}
