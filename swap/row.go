package swap

import (
	"context"
	"sort"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// stats counts since the book was opened.
type stats struct {
	sessions, chequesSent, chequesAcked, chequesRefused       atomic.Uint64
	chequesReceived, chequesDenied, chequesForOthers, refused atomic.Uint64
	blocked                                                   atomic.Uint64
}

// Stats are counts since the book was opened, and sums over all peers now.
type Stats struct {
	Sessions         uint64 // sessions that began
	ChequesSent      uint64 // issued and handed to a session
	ChequesAcked     uint64
	ChequesRefused   uint64 // by the peer
	ChequesReceived  uint64 // credited
	ChequesDenied    uint64 // refused by us
	ChequesForOthers uint64 // of the seed's protocol, for another beneficiary
	ServiceRefused   uint64
	PeersBlocked     uint64
	Holds            int          // live reservations
	Exposure         tally.Amount // of all peers
	StrangersCredit  tally.Amount // of peers that never paid
	Accounts         int          // in memory
}

// Stats returns the counters.
func (b *Book) Stats() Stats {
	st := Stats{
		Sessions: b.stats.sessions.Load(), ChequesSent: b.stats.chequesSent.Load(),
		ChequesAcked: b.stats.chequesAcked.Load(), ChequesRefused: b.stats.chequesRefused.Load(),
		ChequesReceived: b.stats.chequesReceived.Load(), ChequesDenied: b.stats.chequesDenied.Load(),
		ChequesForOthers: b.stats.chequesForOthers.Load(), ServiceRefused: b.stats.refused.Load(),
		PeersBlocked: b.stats.blocked.Load(), Holds: int(b.live.Load()),
		Exposure: tally.Amount(b.pool.total.Load()), StrangersCredit: tally.Amount(b.pool.strangers.Load()),
	}
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		st.Accounts += len(s.accounts)
		s.mu.Unlock()
	}
	return st
}

// ChequeState is where a cheque stands. Values are stable words of the API.
type ChequeState string

// States of a cheque.
const (
	ChequeIntent   ChequeState = "intent"   // decided, not signed yet
	ChequePending  ChequeState = "pending"  // signed and saved, no ack yet
	ChequeRefused  ChequeState = "refused"  // by the peer; sent again with back-off
	ChequeAcked    ChequeState = "acked"    // the peer proved that it credited it
	ChequeSent     ChequeState = "sent"     // to a peer that gives no acks
	ChequeCredited ChequeState = "credited" // received, saved and credited
)

// ChequeMark is a cheque in one line.
type ChequeMark struct {
	Serial     uint64
	Cumulative tally.Amount
	State      ChequeState
}

// ServiceTotals is what one service moved with a peer.
type ServiceTotals struct {
	Service          string
	Served, Consumed tally.Amount
}

// Row is all that an operator sees of one tab. Amounts are units.
type Row struct {
	Peer                                  peer.ID
	Asset                                 string
	Balance                               tally.Balance
	Owed                                  tally.Balance
	PrepaidByPeer, PrepaidToPeer          tally.Amount
	Reserved, Shadow                      tally.Amount
	PaymentThreshold, DisconnectThreshold tally.Amount // ours
	PeerPaymentThreshold                  tally.Amount // announced, clamped; 0: none
	PeerDisconnectThreshold               tally.Amount
	HeadroomServe, HeadroomConsume        tally.Amount
	Exposure                              tally.Amount
	LastChequeSent, LastChequeReceived    *ChequeMark
	Received, Paid                        tally.Amount // cumulative, as credited
	Uncashed                              tally.Amount // 0 for karma, which nobody can cash
	Served, Consumed, Unanswered          tally.Amount
	Skew                                  tally.Balance
	SkewBlocks                            bool
	NextSettlement                        tally.Amount // the debt at which we pay
	SettlementBlockedBy                   string
	Mode, PeerMode                        Mode
	Connected, Native, Stranger           bool
	BlockedFor                            time.Duration
	Services                              []ServiceTotals
	Forgiven                              tally.Amount
}

// Row returns the tab with one peer.
func (b *Book) Row(p peer.ID) (Row, error) {
	var r Row
	var list []serviceTotals
	all := false
	err := b.look(p, func(a *account) {
		r = b.rowLocked(a)
		list, all = append(list, a.services...), a.allServices
	})
	if err != nil {
		return Row{}, err
	}
	if !all {
		stored, err := b.readServices(p)
		if err != nil {
			return Row{}, err
		}
		list = addServices(stored, list)
	}
	for _, t := range list {
		r.Services = append(r.Services, ServiceTotals{Service: t.name, Served: t.served, Consumed: t.consumed})
	}
	return r, nil
}

// Rows returns all tabs, connected or not, by peer id. It reads the store; what
// is newer in memory counts.
func (b *Book) Rows(ctx context.Context) ([]Row, error) {
	peers := make(map[peer.ID]struct{})
	prefix := b.keys.prefix(shelfLedger)
	err := b.store.Scan(ctx, prefix, "", func(key string, _ []byte) error {
		p, err := b.keys.peerOf(key)
		if err != nil {
			return err
		}
		peers[p] = struct{}{}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		for p, a := range s.accounts {
			if a.session != nil || !a.ledger.Empty() {
				peers[p] = struct{}{}
			}
		}
		s.mu.Unlock()
	}
	rows := make([]Row, 0, len(peers))
	for p := range peers {
		r, err := b.Row(p)
		if err != nil {
			return nil, err
		}
		rows = append(rows, r)
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].Peer < rows[j].Peer })
	return rows, nil
}

func (b *Book) rowLocked(a *account) Row {
	l, now := &a.ledger, b.now()
	r := Row{
		Peer: a.peer, Asset: b.cfg.Realm.Asset,
		Balance: l.Balance(), Owed: l.owed, PrepaidByPeer: l.prepaidByPeer, PrepaidToPeer: l.prepaidToPeer,
		Reserved: l.reserved, Shadow: l.shadow,
		PaymentThreshold: b.policy.PaymentThreshold, DisconnectThreshold: b.policy.DisconnectThreshold,
		PeerPaymentThreshold: l.peerPayment, PeerDisconnectThreshold: l.peerDisconnect,
		HeadroomServe: b.headroomServe(a, now), HeadroomConsume: l.HeadroomConsume(),
		Exposure: l.Exposure(), Received: l.received, Paid: l.paid,
		Served: l.served, Consumed: l.consumed, Unanswered: l.unanswered,
		Skew: l.skew, SkewBlocks: l.flags&flagSkewed != 0, Forgiven: l.forgiven,
		SettlementBlockedBy: l.BlockedBy(now),
		Mode:                b.policy.Mode, PeerMode: l.peerMode, Stranger: l.Stranger(),
		BlockedFor: l.blockedUntil.Sub(now),
	}
	if l.peerPayment > 0 {
		r.NextSettlement = l.trigger()
	}
	if l.sentSerial > 0 {
		r.LastChequeSent = &ChequeMark{Serial: l.sentSerial, Cumulative: l.issued, State: l.sentState()}
	}
	if l.receivedSerial > 0 || l.accepted > 0 {
		r.LastChequeReceived = &ChequeMark{Serial: l.receivedSerial, Cumulative: l.accepted, State: ChequeAcked}
		if l.receivedSerial == 0 {
			r.LastChequeReceived.State = ChequeCredited // of the seed's protocol, which has no acks
		}
	}
	if a.session != nil {
		r.Connected, r.Native = true, a.session.native
		if r.SettlementBlockedBy != "" && a.session.reason != "" {
			r.SettlementBlockedBy += ": " + a.session.reason
		}
	}
	return r
}

func (l *Ledger) sentState() ChequeState {
	switch {
	case l.settle == settleIntent:
		return ChequeIntent
	case l.settle == settlePending:
		return ChequePending
	case l.settle == settleRefused:
		return ChequeRefused
	case l.flags&flagKarmaSent != 0:
		return ChequeSent
	default:
		return ChequeAcked
	}
}

// ChequeRow is one stored cheque in full.
type ChequeRow struct {
	Peer     peer.ID
	Sent     bool
	Cheque   Cheque
	State    ChequeState
	Credited tally.Amount // what its ack says; 0 without one
}

// Cheques returns the last cheque each way with p, as stored.
func (b *Book) Cheques(p peer.ID) ([]ChequeRow, error) {
	row, err := b.Row(p)
	if err != nil {
		return nil, err
	}
	var rows []ChequeRow
	for _, way := range [...]struct {
		cheque shelf
		ack    func(peer.ID) (*Ack, error)
		mark   *ChequeMark
		sent   bool
	}{
		{shelfChequeSent, b.lastAck, row.LastChequeSent, true},
		{shelfChequeReceived, func(p peer.ID) (*Ack, error) { return b.getAck(shelfAckGiven, p) }, row.LastChequeReceived, false},
	} {
		c, err := b.getCheque(way.cheque, p)
		if err != nil {
			return nil, err
		}
		if c == nil || way.mark == nil {
			continue
		}
		r := ChequeRow{Peer: p, Sent: way.sent, Cheque: *c, State: way.mark.State}
		a, err := way.ack(p)
		if err != nil {
			return nil, err
		}
		if a != nil && a.Serial == c.Serial {
			r.Credited = a.Credited
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// Evidence returns the cheques kept because the peer signed two with one serial.
func (b *Book) Evidence(ctx context.Context, p peer.ID) ([]Cheque, error) {
	var list []Cheque
	err := b.store.Scan(ctx, b.keys.of(shelfEvidence, p)+"/", "", func(key string, rec []byte) error {
		_, payload, err := durable.Unseal(key, chequeVersion, rec)
		if err != nil {
			return err
		}
		c, err := decodeCheque(payload)
		if err != nil {
			return err
		}
		list = append(list, *c)
		return nil
	})
	return list, err
}

// Known reports whether there is an account with p: a record, or a session.
func (b *Book) Known(p peer.ID) (bool, error) {
	known := false
	err := b.look(p, func(a *account) { known = a.stored || a.session != nil || !a.ledger.Empty() })
	return known, err
}
