package testnet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/host/rpc"
)

// live drives running peers over their RPC.
type live struct {
	peers map[string]*livePeer
}

type livePeer struct {
	client *rpc.Client
	end    func()
	id     rpc.Identity
	got    int
}

// newLive returns a driver of the peers whose repos are given. It does no IO but
// reading the repos.
func newLive(repos map[string]string) (*live, error) {
	l := &live{peers: make(map[string]*livePeer)}
	for name, dir := range repos {
		addr, token, err := repo.Endpoint(dir)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("testnet: peer %s: %w", name, err), l.close())
		}
		client, end, err := rpc.NewClient(addr, token)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("testnet: peer %s: %w", name, err), l.close())
		}
		l.peers[name] = &livePeer{client: client, end: end}
	}
	return l, nil
}

func (l *live) close() error {
	for _, p := range l.peers {
		p.end()
	}
	return nil
}

func (l *live) changed() <-chan struct{} { return nil }

func (l *live) why(context.Context) string { return "" }

func (l *live) peer(name string) (*livePeer, error) {
	if p := l.peers[name]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrNoPeer, name)
}

func (l *live) pair(a, b string) (*livePeer, *livePeer, error) {
	from, err := l.peer(a)
	if err != nil {
		return nil, nil, err
	}
	to, err := l.peer(b)
	if err != nil {
		return nil, nil, err
	}
	return from, to, nil
}

func (l *live) do(ctx context.Context, st *statement) error {
	switch st.verb {
	case "peers": // they run already; policies are their operators'
		for _, name := range st.args {
			p, err := l.peer(name)
			if err != nil {
				return err
			}
			if p.id, err = p.client.ID(ctx); err != nil {
				return rpc.Explain(err)
			}
		}
		return nil
	case "import":
		p, err := l.peer(st.args[0])
		if err != nil {
			return err
		}
		return p.load(ctx, st.args[1])
	}
	from, to, err := l.pair(st.args[0], st.args[1])
	if err != nil {
		return err
	}
	switch st.verb {
	case "connect":
		return from.connect(ctx, to)
	case "query":
		return from.query(ctx, to, st)
	case "settle":
		if _, err := from.client.Settle(ctx, to.id.PeerID); err != nil {
			return rpc.Explain(err)
		}
		return nil
	}
	return fmt.Errorf("testnet: %s cannot be done to live peers", st.verb)
}

func (p *livePeer) load(ctx context.Context, arg string) error {
	file, err := messagesOf(arg)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	var messages []rpc.Message
	lines := bufio.NewScanner(io.Reader(file))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		m, err := rpc.ParseMessage(lines.Bytes())
		if err != nil {
			return fmt.Errorf("testnet: messages, line %d: %w", n, err)
		}
		messages = append(messages, m)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("testnet: messages: %w", err)
	}
	if _, err := p.client.Import(ctx, messages, nil); err != nil {
		return rpc.Explain(err)
	}
	return nil
}

func (p *livePeer) connect(ctx context.Context, to *livePeer) error {
	last := errors.New("testnet: the peer listens nowhere")
	for _, addr := range to.id.Addrs {
		if _, last = p.client.PeerConnect(ctx, addr); last == nil {
			return nil
		}
	}
	return rpc.Explain(last)
}

func (p *livePeer) query(ctx context.Context, to *livePeer, st *statement) error {
	limit, _ := strconv.Atoi(st.keys["limit"]) // checked by the parser
	page, _ := strconv.Atoi(st.keys["page"])
	if page == 0 {
		page = defaultPage
	}
	p.got = 0
	q := rpc.StoreQuery{PageSize: page}
	for {
		if limit > 0 {
			q.PageSize = min(page, limit-p.got)
		}
		got, err := p.client.StoreQuery(ctx, to.id.PeerID, q)
		if err != nil {
			return rpc.Explain(err)
		}
		p.got += len(got.Messages)
		if got.Cursor == "" || limit > 0 && p.got >= limit {
			return nil
		}
		q.Cursor = got.Cursor
	}
}

func (l *live) tab(ctx context.Context, at, with string) (Tab, error) {
	p, other, err := l.pair(at, with)
	if err != nil {
		return Tab{}, err
	}
	list, err := p.client.Balances(ctx, other.id.PeerID)
	if err != nil {
		e := rpc.Explain(err)
		if e.Code == rpc.CodeUnknownPeer {
			return Tab{}, nil // no account is an empty one
		}
		return Tab{}, e
	}
	if len(list) != 1 {
		return Tab{}, fmt.Errorf("testnet: %d rows for one peer", len(list))
	}
	return tabOf(&list[0]), nil
}

// tabOf is a row of an operator's view as a tab.
func tabOf(r *rpc.BalanceRow) Tab {
	t := Tab{
		Connected: r.Connected, Balance: r.Balance, Served: tally.Amount(r.Served), Consumed: tally.Amount(r.Consumed),
		Paid: tally.Amount(r.Paid), Received: tally.Amount(r.Received),
		Reserved: tally.Amount(r.Reserved), Shadow: tally.Amount(r.Shadow), Exposure: tally.Amount(r.Exposure),
		RoomServe: tally.Amount(r.HeadroomServe), RoomConsume: tally.Amount(r.HeadroomConsume),
		PeerThreshold: tally.Amount(r.PeerPaymentThreshold), Skew: r.Skew,
		Forgiven: tally.Amount(r.Forgiven), Unanswered: tally.Amount(r.Unanswered),
	}
	if r.BlockedUntil != nil {
		t.Blocked = max(0, time.Until(*r.BlockedUntil))
	}
	if c := r.LastChequeSent; c != nil {
		t.SentSerial, t.Pending = c.Serial, c.State != rpc.ChequeAcked && c.State != "sent"
	}
	if c := r.LastChequeReceived; c != nil {
		t.ReceivedSerial = c.Serial
	}
	t.Why = r.SettlementBlockedBy
	for _, l := range r.Links {
		if l.Direction == rpc.ChequeReceived && l.Covered != nil && l.Redeemed != nil && l.Uncashed != nil {
			t.Covered, t.Redeemed, t.Uncashed = int64(*l.Covered), int64(*l.Redeemed), int64(*l.Uncashed)
		}
	}
	return t
}

func (l *live) stats(ctx context.Context, at string) (Stats, error) {
	p, err := l.peer(at)
	if err != nil {
		return Stats{}, err
	}
	s, err := p.client.Status(ctx)
	if err != nil {
		return Stats{}, rpc.Explain(err)
	}
	return Stats{Accounts: s.Accounts, Exposure: tally.Amount(s.Exposure), Got: p.got}, nil
}

func (l *live) socket(context.Context, string, string) (rpc.SocketRow, error) {
	return rpc.SocketRow{}, errNoSockets
}

func (l *live) arm(context.Context, string, crashPoint) error {
	return errors.New("testnet: a live peer cannot be crashed")
}

func (l *live) recover(context.Context, string) (bool, error) {
	return false, errors.New("testnet: a live peer cannot be crashed")
}
