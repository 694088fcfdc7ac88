package testnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/host/rpc"
	"github.com/tallystick/tally/protocols/storenet"
	"github.com/tallystick/tally/protocols/swapnet"
	"github.com/tallystick/tally/swap"
)

// local drives peers in this process.
type local struct {
	net      *Network
	attacker *attackers
	got      map[string]int // messages of the last query, by who asked
	taps     map[string]map[FrameKind]*plan
}

// plan is what becomes of the next frames of one kind.
type plan struct {
	fate Fate
	left int
}

func newLocal(cfg NetworkConfig) (*local, error) {
	n, err := NewNetwork(cfg)
	if err != nil {
		return nil, err
	}
	find := func(name string) (peer.AddrInfo, error) {
		p, err := n.Peer(name)
		if err != nil {
			return peer.AddrInfo{}, err
		}
		node, err := p.Node()
		if err != nil {
			return peer.AddrInfo{}, err
		}
		return peer.AddrInfo{ID: p.ID, Addrs: node.Host().Addrs()}, nil
	}
	return &local{
		net: n, attacker: newAttackers(find, n.cfg.Host, n.cfg.Realm), got: make(map[string]int), taps: make(map[string]map[FrameKind]*plan),
	}, nil
}

func (l *local) close() error { return errors.Join(l.attacker.close(), l.net.Close()) }

func (l *local) socket(context.Context, string, string) (rpc.SocketRow, error) {
	return rpc.SocketRow{}, errNoSockets
}

func (l *local) why(context.Context) string { return "" }

func (l *local) changed() <-chan struct{} { return l.net.Changed() }

func (l *local) do(ctx context.Context, st *statement) error {
	switch st.verb {
	case "peers":
		return l.start(ctx, st)
	case "connect":
		return l.connect(ctx, st.args[0], st.args[1])
	case "disconnect":
		return l.net.Disconnect(ctx, st.args[0], st.args[1])
	case "hostile":
		return l.attacker.hostile(ctx, st.args[0], st.args[1], st.args[2], st.args[3])
	case "flood":
		n, _ := strconv.Atoi(st.args[2]) // checked by the parser
		return l.attacker.flood(ctx, st.args[0], st.args[1], n)
	}
	p, err := l.net.Peer(st.args[0])
	if err != nil {
		return err
	}
	switch st.verb {
	case "stop":
		return p.Stop(ctx)
	case "start":
		return p.Start(ctx)
	case "kill":
		seed, _ := strconv.ParseUint(st.keys["torn"], 10, 64) // checked by the parser
		return p.KillTorn(ctx, seed)
	case "erase":
		return p.Erase()
	case "policy":
		p.SetPolicy(policyOf(p.Policy(), st.keys))
		return nil
	case "clock":
		d, _ := time.ParseDuration(st.args[2]) // checked by the parser
		if st.args[1] == "back" {
			d = -d
		}
		return p.ShiftClock(d)
	case "drop", "twice", "cut":
		l.tap(p, st)
		return nil
	}
	node, err := p.Node()
	if err != nil {
		return err
	}
	switch st.verb {
	case "import":
		file, err := messagesOf(st.args[1])
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		_, err = node.Import(ctx, file, nil)
		return err
	case "query":
		return l.query(ctx, p, st)
	case "settle":
		other, err := l.net.Peer(st.args[1])
		if err != nil {
			return err
		}
		_, err = node.Book().SettleAndWait(ctx, other.ID)
		return err
	}
	return fmt.Errorf("testnet: no statement %q", st.verb) // the parser knows more than we do
}

func (l *local) start(ctx context.Context, st *statement) error {
	cfg := PeerConfig{Policy: policyOf(swap.Policy{}, st.keys), Store: StoreKind(st.keys["store"])}
	if cfg.Store == "" {
		cfg.Store = StoreCrash
	}
	for _, name := range st.args {
		if _, err := l.net.Add(ctx, name, cfg); err != nil {
			return err
		}
	}
	return nil
}

func (l *local) connect(ctx context.Context, a, b string) error {
	if l.attacker.has(a) {
		return l.attacker.connect(ctx, a, b)
	}
	return l.net.Connect(ctx, a, b)
}

func (l *local) query(ctx context.Context, p *Peer, st *statement) error {
	node, err := p.Node()
	if err != nil {
		return err
	}
	other, err := l.net.Peer(st.args[1])
	if err != nil {
		return err
	}
	limit, _ := strconv.Atoi(st.keys["limit"]) // checked by the parser
	page, _ := strconv.Atoi(st.keys["page"])
	l.got[p.Name] = 0
	// A full tab is waited for; where nothing moves it, not for ever.
	ctx, cancel := context.WithTimeout(ctx, fullTabWithin)
	defer cancel()
	_, err = node.Query(ctx, other.ID, storenet.Query{Limit: limit, PageSize: page}, func(*storenet.Message) error {
		l.got[p.Name]++
		return nil
	})
	return err
}

// fullTabWithin is how long a query of a scenario waits for a full tab. A cheque
// that was lost is sent again after five seconds.
const fullTabWithin = 12 * time.Second

func (l *local) tap(p *Peer, st *statement) {
	n, _ := strconv.Atoi(st.args[2]) // checked by the parser
	fate := map[string]Fate{"drop": Drop, "twice": Twice, "cut": Cut}[st.verb]
	plans := l.taps[p.Name]
	if plans == nil {
		plans = make(map[FrameKind]*plan)
		l.taps[p.Name] = plans
	}
	var mu sync.Mutex // one wire, several streams
	plans[FrameKind(st.args[1])] = &plan{fate: fate, left: n}
	current := make(map[FrameKind]*plan, len(plans))
	for kind, pl := range plans {
		current[kind] = pl
	}
	p.Tap(func(f Frame) Fate {
		mu.Lock()
		defer mu.Unlock()
		pl := current[f.Kind]
		if pl == nil || pl.left == 0 {
			return Pass
		}
		pl.left--
		return pl.fate
	})
}

func (l *local) tab(_ context.Context, at, with string) (Tab, error) {
	p, err := l.net.Peer(at)
	if err != nil {
		return Tab{}, err
	}
	node, err := p.Node()
	if err != nil {
		return Tab{}, err
	}
	id, ok := l.attacker.id(with)
	if !ok {
		other, err := l.net.Peer(with)
		if err != nil {
			return Tab{}, err
		}
		id = other.ID
	}
	r, err := node.Book().Row(id)
	if err != nil {
		return Tab{}, err
	}
	t := Tab{
		Connected: r.Connected, Balance: int64(r.Balance), Served: r.Served, Consumed: r.Consumed,
		Paid: r.Paid, Received: r.Received, Reserved: r.Reserved, Shadow: r.Shadow, Exposure: r.Exposure,
		RoomServe: r.HeadroomServe, RoomConsume: r.HeadroomConsume, PeerThreshold: r.PeerPaymentThreshold,
		Skew: int64(r.Skew), Blocked: r.BlockedFor, Forgiven: r.Forgiven, Unanswered: r.Unanswered,
	}
	if c := r.LastChequeSent; c != nil {
		t.SentSerial, t.Pending = c.Serial, c.State != swap.ChequeAcked && c.State != swap.ChequeSent
	}
	if c := r.LastChequeReceived; c != nil {
		t.ReceivedSerial = c.Serial
	}
	return t, nil
}

func (l *local) stats(_ context.Context, at string) (Stats, error) {
	p, err := l.net.Peer(at)
	if err != nil {
		return Stats{}, err
	}
	node, err := p.Node()
	if err != nil {
		return Stats{}, err
	}
	s := node.Book().Stats()
	out := Stats{
		Sessions: s.Sessions, Sent: s.ChequesSent, Acked: s.ChequesAcked, Received: s.ChequesReceived,
		Refused: s.ChequesRefused, Denied: s.ChequesDenied, ServiceRefused: s.ServiceRefused, Blocked: s.PeersBlocked,
		Accounts: s.Accounts, Holds: s.Holds, Strangers: s.StrangersCredit, Exposure: s.Exposure, Got: l.got[at],
	}
	for _, c := range node.Host().Network().Conns() {
		for _, st := range c.GetStreams() {
			switch st.Protocol() {
			case swapnet.ProtocolNative, swapnet.ProtocolAlpha1, swapnet.ProtocolBeta1:
				out.SwapStreams++
			}
		}
	}
	return out, nil
}

func (l *local) arm(_ context.Context, name string, at crashPoint) error {
	p, err := l.net.Peer(name)
	if err != nil {
		return err
	}
	if at.at == "sends" {
		return p.CrashAtSend(at.n, at.after)
	}
	return p.CrashAtSave(at.n, at.after)
}

// recover kills the peer where the armed crash struck, or else disarms it.
func (l *local) recover(ctx context.Context, name string) (bool, error) {
	p, err := l.net.Peer(name)
	if err != nil {
		return false, err
	}
	select {
	case <-p.Killed():
	default:
		p.disarm()
		return false, nil
	}
	if err := p.Kill(ctx); err != nil {
		return true, err
	}
	return true, p.Start(ctx)
}

// messagesOf opens a file, or makes a number of messages.
func messagesOf(arg string) (io.ReadSeekCloser, error) {
	n, err := strconv.Atoi(arg)
	if err != nil {
		f, err := os.Open(arg)
		if err != nil {
			return nil, fmt.Errorf("testnet: messages: %w", err)
		}
		return f, nil
	}
	if n < 1 || n > maxCount {
		return nil, fmt.Errorf("testnet: %d messages: want 1 to %d", n, maxCount)
	}
	return nopCloser{bytes.NewReader(madeMessages(n))}, nil
}

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

// madeMessages is a file of n messages.
func madeMessages(n int) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for i := range n {
		_ = enc.Encode(madeMessage(i)) // a bytes.Buffer takes everything
	}
	return b.Bytes()
}

func madeMessage(i int) rpc.Message {
	return rpc.Message{
		ContentTopic: "/tally-testnet/1/notes/proto", Payload: []byte("message " + strconv.Itoa(i)),
		Timestamp: 1_700_000_000_000_000_000 + int64(i),
	}
}

// parseThreshold reads what a hostile peer announces: a number, 0x and bytes, or
// the word empty.
func parseThreshold(s string) ([]byte, error) {
	if s == "empty" {
		return nil, nil
	}
	if text, ok := strings.CutPrefix(s, "0x"); ok {
		if len(text) > 128 || len(text)%2 != 0 {
			return nil, fmt.Errorf("%q: want up to 64 bytes of two hex digits", s)
		}
		b := make([]byte, len(text)/2)
		for i := range b {
			n, err := strconv.ParseUint(text[2*i:2*i+2], 16, 8)
			if err != nil {
				return nil, fmt.Errorf("%q is no hex", s)
			}
			b[i] = byte(n)
		}
		return b, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("threshold %q is no number", s)
	}
	var b []byte
	for shift := 56; shift >= 0; shift -= 8 {
		if x := byte(n >> shift); x != 0 || len(b) > 0 {
			b = append(b, x)
		}
	}
	return b, nil
}
