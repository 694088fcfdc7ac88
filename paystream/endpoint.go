package paystream

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

const (
	// maxSockets bounds the sockets that are kept, in memory or as records,
	// defaultPerPeer those that came through one neighbour. One in memory takes
	// about 4 KiB, a record half of one.
	maxSockets     = 65_536
	defaultPerPeer = 4096
	// maxBudgets bounds the tokens that have moved money and are kept; a further
	// one is refused until others expire.
	maxBudgets = 1 << 20
)

// Errors of endpoints.
var (
	// ErrClosed: the endpoint, or the socket, is closed.
	ErrClosed = errors.New("paystream: closed")
	// ErrPeerClosed: the peer has closed the socket. It wraps ErrClosed.
	ErrPeerClosed = fmt.Errorf("%w by the peer", ErrClosed)
	// ErrForgotten: the peer knows of less than it once said it had received. It
	// runs without a store, has lost it, or made room; both sides' books of what
	// was paid stand.
	ErrForgotten = errors.New("paystream: the peer has forgotten the socket; open a new one")
	// ErrNoSocket: no socket of that id is kept here.
	ErrNoSocket = errors.New("paystream: no such socket")
	// ErrMemory: an endpoint without a store has to say so.
	ErrMemory = errors.New("paystream: no store: set Memory to keep nothing over a restart")
	// ErrTooMany: a bound on sockets or tokens is reached.
	ErrTooMany = errors.New("paystream: too many sockets or tokens")
)

// Config is what an endpoint needs.
type Config struct {
	// Self is our peer id: where packets for us go.
	Self peer.ID
	// Key makes tokens and their secrets. Whoever has it can spend every token.
	Key ServerKey
	// Asset is what amounts here are in; the other end of a socket is told. Empty:
	// it is not.
	Asset Asset
	// Store keeps sockets, holds and budgets. The carrier fills batches for the
	// same store. Nil only with Memory.
	Store *durable.Store
	// Memory keeps nothing over a restart: for benchmarks, and where the operator
	// wants it.
	Memory bool
	// Accept, where set, is asked before a token opens a socket; an error refuses
	// it. It must not wait.
	Accept func(Grant, SocketID) error
	// Opened, where set, is told of each socket that a peer opened. It must not
	// wait.
	Opened func(*Conn)
	// Proposed, where set, decides on proposals of peers; nil declines all. It
	// must not wait; SetLimits may be called later.
	Proposed func(*Conn, Proposal) bool
	// Sign signs receipts with the key of Self; nil gives none.
	Sign func([]byte) ([]byte, error)
	// LargestPacket bounds what one packet of ours gives, and with it what is lost
	// sight of when one hangs. 0: what the way carries.
	LargestPacket tally.Amount
	// PerPeer bounds the sockets that came through one neighbour. 0: 4096.
	PerPeer int
	// Logger takes what the endpoint has to say. Nil: slog.Default().
	Logger *slog.Logger
}

// Endpoint owns the sockets of one node. It is the Handler of its carrier.
type Endpoint struct {
	cfg     Config
	carrier Carrier
	roomer  atomic.Pointer[Roomer] // the carrier, where it is one
	log     *slog.Logger
	began   time.Time

	// mu guards the fields below. It comes before the lock of a Conn.
	mu      sync.Mutex
	conns   map[SocketID]*Conn
	stored  map[SocketID]storedConn
	perPeer map[peer.ID]int    // conns and stored
	damaged map[SocketID]error // records that do not read
	strays  map[PacketID]heldPacket
	pruner  *time.Timer
	closed  bool

	// oldMu guards the packets in flight of before the start; it is taken last.
	oldMu sync.Mutex
	old   map[PacketID]*Outgoing

	// budgetMu guards the budgets; it is taken last.
	budgetMu sync.Mutex
	budgets  map[TokenID]*Budget

	// queueMu guards what waits for the carrier, and the sockets to look at.
	queueMu sync.Mutex
	queue   []*Outgoing
	saves   []Record
	looks   []*Conn
	wake    chan struct{}
	ended   chan struct{}

	// handing is held by whoever hands packets to the carrier: so they leave in the
	// order of the queue. It is taken first. The slices are its memory.
	handing    sync.Mutex
	spareQueue []*Outgoing
	spareLooks []*Conn

	assetCode []byte       // of Config.Asset
	data      atomic.Int64 // memory of all streams
	count     counters
	entropy   entropy
}

// Open reads the store and returns the endpoint. Bind gives it its carrier.
func Open(ctx context.Context, cfg Config) (*Endpoint, error) {
	if cfg.Store == nil && !cfg.Memory {
		return nil, ErrMemory
	}
	if err := cfg.Asset.Validate(); err != nil {
		return nil, err
	}
	if cfg.PerPeer == 0 {
		cfg.PerPeer = defaultPerPeer
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	e := &Endpoint{
		cfg: cfg, log: cfg.Logger, began: time.Now(), assetCode: []byte(cfg.Asset.Code),
		conns: make(map[SocketID]*Conn), stored: make(map[SocketID]storedConn), old: make(map[PacketID]*Outgoing),
		perPeer: make(map[peer.ID]int), budgets: make(map[TokenID]*Budget),
		damaged: make(map[SocketID]error), strays: make(map[PacketID]heldPacket),
		wake: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	if cfg.Store == nil {
		return e, nil
	}
	return e, e.load(ctx)
}

// Start binds the carrier and begins to send.
func (e *Endpoint) Start(c Carrier) {
	e.carrier = c
	if r, ok := c.(Roomer); ok {
		e.roomer.Store(&r)
	}
	go e.run() // ends with Close
	e.mu.Lock()
	e.pruner = time.AfterFunc(pruneEvery, e.prune)
	e.mu.Unlock()
	for _, c := range e.Sockets() {
		c.kick()
	}
}

// busyRetry is the wait for room in the carrier, which a round of its work makes.
const busyRetry = time.Millisecond

// run hands packets to the carrier that nobody else did.
func (e *Endpoint) run() {
	defer close(e.ended)
	for range e.wake {
		for {
			e.handing.Lock()
			done := e.hand()
			e.handing.Unlock()
			if done {
				break
			}
			<-time.After(busyRetry)
		}
		e.mu.Lock()
		closed := e.closed
		e.mu.Unlock()
		if closed {
			return
		}
	}
}

// hand does what waits, and returns false where the carrier has no room for it.
// Called with handing held.
func (e *Endpoint) hand() bool {
	for {
		e.queueMu.Lock()
		looks := e.looks
		e.looks = e.spareLooks[:0]
		e.queueMu.Unlock()
		var found []*Outgoing
		for i, c := range looks {
			found = c.look(found)
			looks[i] = nil
		}
		e.spareLooks = looks
		e.queueMu.Lock()
		e.queue = append(e.queue, found...)
		batch, saves := e.queue, e.saves
		e.queue, e.saves = e.spareQueue[:0], nil
		e.queueMu.Unlock()
		if len(batch)+len(saves) == 0 {
			e.spareQueue = batch // the two change places all the same
			return true
		}
		for _, r := range saves {
			e.save(r)
		}
		for i, p := range batch {
			err := e.carrier.Send(p)
			if errors.Is(err, ErrNoRoom) {
				e.queueMu.Lock()
				e.queue = append(batch[i:len(batch):len(batch)], e.queue...)
				e.queueMu.Unlock()
				e.spareQueue = nil
				return false
			}
			if err != nil {
				e.log.Debug("packet not taken", "packet", p.ID.String(), "err", err)
				if record := e.Answer(&Answer{ID: p.ID, Sent: p}); record != nil {
					e.save(record)
				}
			}
		}
		clear(batch)
		e.spareQueue = batch
	}
}

// send gives packets to the carrier at once, or, where somebody else is doing that, or
// there is no room, leaves them to run.
func (e *Endpoint) send(list []*Outgoing) {
	if len(list) == 0 {
		return
	}
	e.queueMu.Lock()
	e.queue = append(e.queue, list...)
	e.queueMu.Unlock()
	if e.carrier == nil || !e.handing.TryLock() {
		e.signal()
		return
	}
	done := e.hand()
	e.handing.Unlock()
	if !done {
		e.signal()
	}
}

// lookAt lets run look what c has to send.
func (e *Endpoint) lookAt(c *Conn) {
	e.queueMu.Lock()
	e.looks = append(e.looks, c)
	e.queueMu.Unlock()
	e.signal()
}

// saveLater is save for those who must not call the carrier.
func (e *Endpoint) saveLater(r Record) {
	if e.cfg.Store == nil {
		return
	}
	e.queueMu.Lock()
	e.saves = append(e.saves, r)
	e.queueMu.Unlock()
	e.signal()
}

// enqueue gives packets to run.
func (e *Endpoint) enqueue(list []*Outgoing) {
	if len(list) == 0 {
		return
	}
	e.queueMu.Lock()
	e.queue = append(e.queue, list...)
	e.queueMu.Unlock()
	e.signal()
}

func (e *Endpoint) signal() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Issue makes a URI that gives its bearer a grant.
func (e *Endpoint) Issue(g Grant) (URI, error) {
	var random [32]byte
	rand.Read(random[:])
	token, err := e.cfg.Key.Issue(random, g)
	if err != nil {
		return URI{}, err
	}
	secret, err := e.cfg.Key.Secret(&token)
	if err != nil {
		return URI{}, err
	}
	u := URI{Peer: e.cfg.Self, Token: token, Secret: secret, Use: g.Use}
	if at, ok := g.Min.Finite(); ok && at < 0 {
		u.Amount = at.Debt()
	} else if at, ok := g.Max.Finite(); ok {
		u.Amount = at.Owed()
	}
	return u, nil
}

// Dial opens a socket to whoever made a URI. It returns once the rate and the
// other side's limits are known, so that Verdict can tell whether they meet; with
// AllOrNothing it fails where they do not. via is the way, where no route is
// known.
func (e *Endpoint) Dial(ctx context.Context, u URI, via []peer.ID, t Terms) (*Conn, error) {
	sock, err := NewSocket(t)
	if err != nil {
		return nil, err
	}
	c, err := e.newConn(identity{
		id: SocketID(e.entropy.id()), role: RoleClient, kdf: KDFShared, psk: u.Secret, token: u.Token,
		dest: u.Peer, from: u.Peer, via: via, used: time.Now().Unix(),
	}, sock)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	err = e.admit(c)
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	c.kick()
	if err := c.wait(ctx, func() bool { return c.sock.peerSeq != 0 && c.sock.rate.Known() }); err != nil {
		c.abandon(err)
		return nil, fmt.Errorf("open socket to %s: %w", u.Peer, err)
	}
	if v := c.Report().Verdict; t.AllOrNothing && v.Kind != Compatible {
		c.Close()
		return nil, fmt.Errorf("%w: %s by %d", ErrIncompatible, v.Kind, v.Short)
	}
	return c, nil
}

// admit adds a socket. Called with mu held.
func (e *Endpoint) admit(c *Conn) error {
	from := c.ident.from
	switch {
	case e.closed:
		return ErrClosed
	case e.perPeer[from] >= e.cfg.PerPeer && !e.makeRoom(from),
		len(e.conns)+len(e.stored) >= maxSockets && !e.makeRoom(""):
		return ErrTooMany
	}
	e.conns[c.ident.id] = c
	e.perPeer[from]++
	return nil
}

// uncount takes a socket out of its neighbour's count. Called with mu held.
func (e *Endpoint) uncount(from peer.ID) {
	if e.perPeer[from]--; e.perPeer[from] <= 0 {
		delete(e.perPeer, from)
	}
}

// Conn returns a socket by its id, also one that is not in memory.
func (e *Endpoint) Conn(id SocketID) (*Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.revive(id)
}

// Packet implements Handler.
func (e *Endpoint) Packet(in *Incoming) Decision {
	h, err := ParseHeader(in.Data)
	if err != nil || h.Kind != KindPrepare {
		return Decision{}
	}
	e.mu.Lock()
	c := e.conns[h.Socket]
	if c == nil {
		if _, ok := e.stored[h.Socket]; ok {
			c, _ = e.revive(h.Socket)
		}
	}
	bad := e.damaged[h.Socket]
	e.mu.Unlock()
	if bad != nil {
		return Decision{} // a new socket in its place would write over what is left of it
	}
	if c == nil {
		var d Decision
		if c, d = e.welcome(in, &h); c == nil {
			return d
		}
	}
	return c.packet(in)
}

// welcome is the first packet of a socket that we do not know. Nothing is kept
// until it authenticates, which the token makes possible without memory.
func (e *Endpoint) welcome(in *Incoming, h *Header) (*Conn, Decision) {
	if len(in.Token) != TokenSize {
		return nil, Decision{}
	}
	token := Token(in.Token)
	g, err := e.cfg.Key.Grant(&token, time.Now())
	if err != nil {
		return nil, Decision{}
	}
	psk, err := e.cfg.Key.Secret(&token)
	if err != nil {
		return nil, Decision{}
	}
	_, inner, err := Authentic(nil, in.Data, &psk, RoleServer)
	if err != nil {
		return nil, Decision{}
	}
	var p Packet
	if err := p.Decode(inner); err != nil {
		return nil, Decision{}
	}
	refuse := func(code Code) Decision {
		reply := Packet{Kind: KindReject, Code: code, RequestID: h.Counter, Amount: in.Amount}
		data, err := Reopen(nil, &psk, h.KDF, h, RoleServer, e.entropy.id(), reply.Append(nil))
		if err != nil {
			return Decision{}
		}
		return Decision{Data: data}
	}
	if p.Has&HasOpen == 0 || h.Receiver != (SessionID{}) {
		return nil, refuse(CodeReopen)
	}
	if e.cfg.Accept != nil && e.cfg.Accept(g, h.Socket) != nil {
		return nil, refuse(CodeClosed)
	}
	low, high, err := e.join(token.ID(), g, h.Socket)
	if err != nil {
		return nil, refuse(CodeClosed)
	}
	sock, err := NewSocket(Terms{Min: low, Max: high, Refunds: g.Refunds})
	if err != nil {
		return nil, refuse(CodeClosed)
	}
	c, err := e.newConn(identity{id: h.Socket, role: RoleServer, kdf: h.KDF, psk: psk, token: token, from: in.From, used: time.Now().Unix()}, sock)
	if err != nil {
		return nil, refuse(CodeClosed)
	}
	c.grant = g
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.admit(c); err != nil {
		e.leave(token.ID(), h.Socket)
		return nil, refuse(CodeBusy)
	}
	return c, Decision{}
}

// Answer implements Handler.
func (e *Endpoint) Answer(a *Answer) Record {
	o := a.Sent
	if o == nil {
		e.oldMu.Lock()
		o = e.old[a.ID]
		delete(e.old, a.ID)
		e.oldMu.Unlock()
	}
	if o == nil {
		return e.stray(a)
	}
	return o.conn.answer(a, o)
}

// Sockets returns the sockets in memory.
func (e *Endpoint) Sockets() []*Conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]*Conn, 0, len(e.conns))
	for _, c := range e.conns {
		all = append(all, c)
	}
	return all
}

// Close ends the endpoint. Packets in flight are the carrier's, and are answered
// after the next start.
func (e *Endpoint) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	if e.pruner != nil {
		e.pruner.Stop()
	}
	e.mu.Unlock()
	for _, c := range e.Sockets() {
		c.end(ErrClosed)
	}
	e.signal()
	if e.carrier != nil {
		<-e.ended
	}
	return nil
}
