package paystream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// ErrIncompatible: the limits of the two sides cannot meet.
var ErrIncompatible = errors.New("paystream: limits cannot meet")

const (
	// maxProposals bounds the proposals of a peer whose answers are remembered;
	// older ones are decided anew if they come again.
	maxProposals = 64
	// newsDelay is how long a change of state that nobody waits for may wait for
	// a packet to travel in.
	newsDelay = 200 * time.Millisecond
)

// Proposal is a peer's wish that we move our limits by these deltas.
type Proposal struct {
	ID                 [16]byte
	MinDelta, MaxDelta int64
	Memo               string
}

// outKind says what a packet of ours is for.
type outKind uint8

const (
	outOpen outKind = iota + 1
	outProbe
	outNews
	outMoney
)

// outgoing is what we know of a packet in flight.
type outgoing struct {
	kind    outKind
	old     bool // from before a restart: its reply cannot be read
	request uint64
	seq     uint64 // the state that it told
	amount  tally.Amount
	arrived tally.Amount // what we had counted as arrived when it left
}

// Conn is one end of a live socket. Its methods may be called from any goroutine.
type Conn struct {
	e     *Endpoint
	ident identity
	from  peer.ID // the neighbour it came through
	grant Grant   // of a server

	// mu guards the fields below. It is not held over disk or carrier, and no
	// other lock is wanted under it but the budgets'.
	mu      sync.Mutex
	sess    *Session
	sock    *Socket
	ctl     *Control
	out     map[PacketID]outgoing
	decided []PacketID // holds that are decided, on disk still
	nextVia []peer.ID  // the way back of an Open that is not confirmed
	nextTo  peer.ID

	told       uint64 // the state of the newest news
	tellAt     time.Duration
	tellTries  uint8
	openAt     time.Duration
	openTries  uint8
	usedAt     time.Duration
	stopped    error // why nothing is sent
	closed     error
	peerClosed bool
	changed    chan struct{} // closed and replaced at each change
	timer      *time.Timer

	proposals map[[16]byte]bool // of the peer, with our answers
	answers   []ProposalReplyFrame
	asked     map[[16]byte]*proposalState // ours
	requests  [][16]byte                  // receipts that the peer asks for
	wanted    map[[16]byte]*Receipt       // receipts that we ask for
	closing   bool
	opened    bool // Config.Opened was told

	in, pkt Packet // scratch
	plain   []byte
	inner   []byte
}

type proposalState struct {
	frame    ProposalFrame
	decided  bool
	accepted bool
}

func (e *Endpoint) newConn(i identity, s *Socket) (*Conn, error) {
	sess, err := NewSession(i.psk, i.kdf, i.id, i.role, e.entropy.id())
	if err != nil {
		return nil, err
	}
	c := &Conn{
		e: e, ident: i, sess: sess, sock: s, ctl: NewControl(0), out: make(map[PacketID]outgoing),
		changed: make(chan struct{}), proposals: make(map[[16]byte]bool),
		asked: make(map[[16]byte]*proposalState), wanted: make(map[[16]byte]*Receipt), usedAt: e.now(),
	}
	return c, nil
}

func (e *Endpoint) now() time.Duration { return time.Since(e.began) + 1 }

// ID returns the socket's id, and Role which end this is.
func (c *Conn) ID() SocketID { return c.ident.id }

// Role returns whether this end opened the socket.
func (c *Conn) Role() Role { return c.ident.role }

// Grant returns what the socket's token gives its bearer; of a server's end only.
func (c *Conn) Grant() Grant { return c.grant }

// Report returns the socket's figures.
func (c *Conn) Report() Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sock.Report()
}

// Err returns why the socket has stopped sending, or nil.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed != nil {
		return c.closed
	}
	return c.stopped
}

// SetLimits sets both limits, also over what "no refund" has raised.
func (c *Conn) SetLimits(low, high Limit) error {
	return c.limits(func() (Limit, Limit, error) { return low, high, nil })
}

// Pay pushes n more.
func (c *Conn) Pay(n tally.Amount) error {
	return c.limits(func() (Limit, Limit, error) { return c.sock.AfterPay(n) })
}

// Charge asks for n more.
func (c *Conn) Charge(n tally.Amount) error {
	return c.limits(func() (Limit, Limit, error) { return c.sock.AfterCharge(n) })
}

// PayUpTo gives up to n more when it is asked for.
func (c *Conn) PayUpTo(n tally.Amount) error {
	return c.limits(func() (Limit, Limit, error) { return c.sock.AfterPayUpTo(n) })
}

// ChargeUpTo takes up to n more when it comes.
func (c *Conn) ChargeUpTo(n tally.Amount) error {
	return c.limits(func() (Limit, Limit, error) { return c.sock.AfterChargeUpTo(n) })
}

func (c *Conn) limits(after func() (Limit, Limit, error)) error {
	c.mu.Lock()
	if c.closed != nil {
		defer c.mu.Unlock()
		return c.closed
	}
	low, high, err := after()
	if err == nil {
		_, err = c.sock.Step(&Event{Kind: EvLimits, Min: low, Max: high})
	}
	if err != nil {
		c.mu.Unlock()
		return err
	}
	c.resume()
	c.tellAt = 0
	c.notify()
	c.mu.Unlock()
	c.e.save(c.record)
	c.kick()
	return nil
}

// resume lets a sender that had stopped try again. Called with mu held.
func (c *Conn) resume() {
	c.stopped = nil
	c.ctl.Resume(c.e.now())
}

// Settled reports whether no money is going to move.
func (c *Conn) Settled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.settled()
}

func (c *Conn) settled() bool { return c.sock.Settled() && !c.sock.Untold() && !c.sock.Unsure() }

// WaitSettled returns nil once the socket is settled, or why it cannot be: it
// stopped sending, was closed, or ctx ended.
func (c *Conn) WaitSettled(ctx context.Context) error { return c.wait(ctx, c.settled) }

// WaitBalance returns nil once the balance is b.
func (c *Conn) WaitBalance(ctx context.Context, b tally.Balance) error {
	return c.wait(ctx, func() bool { return c.sock.Balance() == b })
}

// wait returns nil once cond, which is called with mu held, is true.
func (c *Conn) wait(ctx context.Context, cond func() bool) error {
	for {
		c.mu.Lock()
		ok, err, changed := cond(), c.closed, c.changed
		if err == nil {
			err = c.stopped
		}
		c.mu.Unlock()
		switch {
		case ok:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// notify wakes those who wait. Called with mu held.
func (c *Conn) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Propose asks the peer to move its limits, and returns whether it accepted.
func (c *Conn) Propose(ctx context.Context, p Proposal) (accepted bool, err error) {
	if len(p.Memo) > MaxMemo {
		return false, fmt.Errorf("paystream: memo of %d bytes, want at most %d", len(p.Memo), MaxMemo)
	}
	if p.ID == [16]byte{} {
		p.ID = c.e.entropy.id()
	}
	st := &proposalState{frame: ProposalFrame{ID: p.ID, MinDelta: p.MinDelta, MaxDelta: p.MaxDelta, Memo: []byte(p.Memo)}}
	c.mu.Lock()
	if len(c.asked) >= maxProposals {
		c.mu.Unlock()
		return false, ErrBusy
	}
	c.asked[p.ID] = st
	c.tellAt, c.told = 0, 0
	c.mu.Unlock()
	c.kick()
	err = c.wait(ctx, func() bool { return st.decided })
	c.mu.Lock()
	delete(c.asked, p.ID)
	c.mu.Unlock()
	return st.accepted, err
}

// Receipt asks the payee for its signed statement of what it has received. The
// peer id that signs is that of the socket's other end.
func (c *Conn) Receipt(ctx context.Context) (Receipt, error) {
	nonce := c.e.entropy.id()
	r := &Receipt{}
	c.mu.Lock()
	if len(c.wanted) >= maxProposals {
		c.mu.Unlock()
		return Receipt{}, ErrBusy
	}
	c.wanted[nonce] = r
	c.tellAt, c.told = 0, 0
	c.mu.Unlock()
	c.kick()
	err := c.wait(ctx, func() bool { return r.Signature != nil })
	c.mu.Lock()
	delete(c.wanted, nonce)
	c.mu.Unlock()
	if err != nil {
		return Receipt{}, err
	}
	return *r, r.Verify()
}

// Close tells the peer, and ends the socket at this end. What is in flight is
// still booked when it is answered.
func (c *Conn) Close() {
	c.mu.Lock()
	if c.closed != nil {
		c.mu.Unlock()
		return
	}
	c.closing = true
	list := c.news(nil)
	c.mu.Unlock()
	c.e.enqueue(list)
	c.drop(ErrClosed)
}

// end stops the socket; drop takes it out of memory as well.
func (c *Conn) end(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed == nil {
		c.closed = why
		if c.timer != nil {
			c.timer.Stop()
		}
		c.notify()
	}
}

func (c *Conn) drop(why error) {
	c.end(why)
	e := c.e
	if c.ident.role == RoleServer {
		e.leave(c.ident.token.ID(), c.ident.id)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conns[c.ident.id] != c {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// A socket with holds stays until they are decided.
	for id, o := range c.out {
		if o.kind == outMoney {
			return
		}
		e.packetMu.Lock()
		delete(e.packets, id)
		e.packetMu.Unlock()
	}
	delete(e.conns, c.ident.id)
	if e.perPeer[c.from]--; e.perPeer[c.from] <= 0 {
		delete(e.perPeer, c.from)
	}
	if c.sock.sent|c.sock.received != 0 {
		e.stored[c.ident.id] = appendConn(nil, &c.ident, c.sock)
	}
}

// kick does what is due: opens, probes, pays, tells.
func (c *Conn) kick() {
	c.mu.Lock()
	list := c.due(nil)
	idle := c.arm()
	c.mu.Unlock()
	c.e.enqueue(list)
	if idle {
		c.drop(fmt.Errorf("%w: idle for %v", ErrClosed, IdleTime))
	}
}

// due collects what is to be sent. Called with mu held.
func (c *Conn) due(list []*Outgoing) []*Outgoing {
	now := c.e.now()
	if c.closed != nil {
		return list
	}
	if !c.sess.Confirmed() {
		if c.ident.role == RoleClient && now >= c.openAt {
			c.openTries++
			c.openAt = now + Backoff(c.openTries+3, jitter(c.e))
			c.pkt.Reset()
			c.pkt.Has |= HasOpen
			c.pkt.Open = OpenFrame{Suite: SuiteNative, Idle: uint32(IdleTime / time.Second)}
			c.wayBack(&c.pkt.Open.ViaFrame)
			list = c.seal(list, outOpen, 1, PacketID(c.e.entropy.id()))
		}
		return list
	}
	for {
		n, ok := c.ctl.Probe(now)
		if !ok {
			break
		}
		c.pkt.Reset()
		list = c.seal(list, outProbe, n, PacketID(c.e.entropy.id()))
	}
	if !c.sock.rate.Known() {
		switch r, done, err := c.ctl.ProbesDone(now); {
		case err != nil:
			c.stop(err)
		case done:
			if _, err := c.sock.Step(&Event{Kind: EvRate, Rate: r, Slip: defaultSlippage}); err != nil {
				c.stop(err)
			}
			c.notify()
		}
	}
	if c.stopped == nil {
		list = c.pump(list, now)
	}
	if c.mustTell() && now >= c.tellAt {
		list = c.news(list)
	}
	return list
}

// jitter spreads retries.
func jitter(e *Endpoint) uint32 {
	id := e.entropy.id()
	return uint32(id[0])<<24 | uint32(id[1])<<16 | uint32(id[2])<<8
}

func (c *Conn) stop(err error) {
	c.stopped = err
	c.notify()
}

// pump sends money as long as some is due and the windows are open.
func (c *Conn) pump(list []*Outgoing, now time.Duration) []*Outgoing {
	due := c.sock.Due()
	if due == 0 {
		if len(c.sock.holds) == 0 {
			c.ctl.Idle()
		}
		return list
	}
	c.ctl.Due(now)
	for {
		if err := c.ctl.Stopped(now); err != nil {
			c.stop(err)
			return list
		}
		room := c.ctl.Room(now)
		if room == 0 || c.sock.Due() == 0 {
			return list
		}
		id := PacketID(c.e.entropy.id())
		fx, err := c.sock.Step(&Event{Kind: EvPump, ID: id, Amount: room})
		if err != nil {
			return list
		}
		send := fx[1]
		if err := c.budgetHold(send.Amount); err != nil {
			// Another socket of this token was faster.
			if _, err := c.sock.Step(&Event{Kind: EvRejected, ID: id}); err != nil {
				c.stop(err)
			}
			c.stop(err)
			return list
		}
		c.ctl.Sent(now, send.Amount)
		c.pkt.Reset()
		c.pkt.Amount = send.Least
		list = c.seal(list, outMoney, send.Amount, id)
	}
}

func (c *Conn) budgetHold(n tally.Amount) error {
	if c.ident.role != RoleServer {
		return nil
	}
	c.e.budgetMu.Lock()
	defer c.e.budgetMu.Unlock()
	if b := c.e.budgets[c.ident.token.ID()]; b != nil {
		return b.Hold(time.Now(), c.ident.id, n)
	}
	return ErrSpent
}

func (c *Conn) budgetSettle(n tally.Amount, ok bool) {
	if c.ident.role != RoleServer {
		return
	}
	c.e.budgetMu.Lock()
	defer c.e.budgetMu.Unlock()
	if b := c.e.budgets[c.ident.token.ID()]; b != nil {
		b.Settle(n, ok)
	}
}

func (c *Conn) budgetReceive(n, tolerance tally.Amount) error {
	if c.ident.role != RoleServer {
		return nil
	}
	c.e.budgetMu.Lock()
	defer c.e.budgetMu.Unlock()
	if b := c.e.budgets[c.ident.token.ID()]; b != nil {
		return b.Receive(time.Now(), c.ident.id, n, tolerance)
	}
	return ErrSpent
}

// mustTell reports whether the peer has to hear something that no packet in
// flight tells.
func (c *Conn) mustTell() bool {
	if !c.sess.Confirmed() {
		return false
	}
	if len(c.asked) > 0 || len(c.wanted) > 0 || len(c.answers) > 0 || len(c.requests) > 0 {
		return true
	}
	unsure := c.sock.Unsure()
	if !c.sock.Untold() && !unsure {
		c.tellTries = 0
		return false
	}
	seq, _, _ := c.sock.State()
	for _, o := range c.out {
		if !o.old && o.seq == seq && (!unsure || o.arrived == c.sock.arrived) {
			return false
		}
	}
	return true
}

// news sends a packet without money that carries the state, and what else there
// is to say.
func (c *Conn) news(list []*Outgoing) []*Outgoing {
	if !c.sess.Confirmed() {
		return list
	}
	c.tellTries = min(c.tellTries+1, 20)
	c.tellAt = c.e.now() + Backoff(c.tellTries, jitter(c.e))
	c.pkt.Reset()
	for _, st := range c.asked {
		if !st.decided {
			c.pkt.Proposals = append(c.pkt.Proposals, st.frame)
		}
	}
	for nonce, r := range c.wanted {
		if r.Signature == nil {
			c.pkt.Requests = append(c.pkt.Requests, ReceiptRequestFrame{Nonce: nonce})
		}
	}
	if c.closing {
		c.pkt.Has |= HasClose
		c.pkt.Close = CloseFrame{Sent: c.sock.sent, Received: c.sock.received}
	}
	return c.seal(list, outNews, 0, PacketID(c.e.entropy.id()))
}

// wayBack writes where packets for us go.
func (c *Conn) wayBack(v *ViaFrame) {
	for i := len(c.ident.via) - 1; i >= 0; i-- {
		v.Add([]byte(c.ident.via[i]))
	}
	v.Add([]byte(c.e.cfg.Self))
}

// seal finishes c.pkt as a prepare and adds it to the list.
func (c *Conn) seal(list []*Outgoing, kind outKind, n tally.Amount, id PacketID) []*Outgoing {
	p := &c.pkt
	p.Kind, p.RequestID, p.Sent = KindPrepare, c.sess.NextCounter(), n
	var seq uint64
	if c.sess.Confirmed() {
		seq = c.state(p)
	}
	p.Replies = append(p.Replies, c.answers...)
	c.answers = c.answers[:0]
	c.inner = p.Append(c.inner[:0])
	env, err := c.sess.Seal(nil, KindPrepare, c.inner)
	if err != nil {
		c.stop(err)
		return list
	}
	o := &Outgoing{
		ID: id, Dest: Dest{Peer: c.ident.dest, Via: c.ident.via}, Amount: n,
		Expires: time.Now().Add(PacketTime), Data: env,
	}
	if c.ident.role == RoleClient {
		o.Dest.Token = c.ident.token[:]
	}
	if kind == outMoney {
		o.Condition = c.sess.Condition(env)
		h := c.sock.holds[id]
		o.Record = func(b *durable.Batch) { c.recordHold(b, id, h) }
	} else {
		a, b := c.e.entropy.id(), c.e.entropy.id()
		copy(o.Condition[:16], a[:])
		copy(o.Condition[16:], b[:])
	}
	c.out[id] = outgoing{kind: kind, request: p.RequestID, seq: seq, amount: n, arrived: c.sock.arrived}
	c.e.packetMu.Lock()
	c.e.packets[id] = c
	c.e.packetMu.Unlock()
	return append(list, o)
}

// state writes our totals into p.
func (c *Conn) state(p *Packet) (seq uint64) {
	p.Has |= HasState
	p.State.Seq, p.State.Seen, p.State.Totals = c.sock.State()
	p.State.Received = c.sock.received
	return p.State.Seq
}

// record adds the socket, its budget, and the end of decided holds to a batch.
func (c *Conn) record(b *durable.Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recordLocked(b)
}

func (c *Conn) recordLocked(b *durable.Batch) {
	if c.e.cfg.Store == nil {
		return
	}
	key := connKey(c.ident.id)
	b.Put(key, durable.Seal(nil, key, connVersion, appendConn(nil, &c.ident, c.sock)))
	for _, id := range c.decided {
		b.Delete(holdKey(id))
	}
	c.decided = c.decided[:0]
	if c.ident.role != RoleServer {
		return
	}
	tok := c.ident.token.ID()
	c.e.budgetMu.Lock()
	defer c.e.budgetMu.Unlock()
	if bud := c.e.budgets[tok]; bud != nil {
		key := budgetKey(tok)
		b.Put(key, durable.Seal(nil, key, budgetVersion, bud.AppendRecord(nil)))
	}
}

// recordHold is record with a new hold. One that is decided already, because the
// carrier refused it, is not written.
func (c *Conn) recordHold(b *durable.Batch, id PacketID, h hold) {
	if c.e.cfg.Store == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recordLocked(b)
	if _, ok := c.out[id]; !ok {
		return
	}
	key := holdKey(id)
	b.Put(key, durable.Seal(nil, key, holdVersion, appendHold(nil, heldPacket{socket: c.ident.id, amount: h.amount, least: h.least, high: h.high})))
}

// arm sets the timer to the next moment at which something is due by time alone,
// and reports whether the socket has been idle for too long. Called with mu held.
func (c *Conn) arm() (idle bool) {
	if c.closed != nil {
		return false
	}
	now := c.e.now()
	next := c.usedAt + IdleTime
	if now >= next && len(c.out) == 0 {
		return true
	}
	sooner := func(at time.Duration) {
		if at > now {
			next = min(next, at)
		}
	}
	if !c.sess.Confirmed() {
		sooner(c.openAt)
	}
	sooner(c.ctl.RetryAt())
	if c.mustTell() {
		sooner(c.tellAt)
	}
	if c.sock.Due() > 0 || !c.sock.rate.Known() {
		sooner(now + time.Second) // the control's clocks: probes, progress
	}
	d := max(next-now, time.Millisecond)
	if c.timer == nil {
		c.timer = time.AfterFunc(d, c.kick)
	} else {
		c.timer.Reset(d)
	}
	return false
}

// packet is a prepare for this socket.
func (c *Conn) packet(in *Incoming) Decision {
	c.mu.Lock()
	d := c.handle(in)
	tell := c.ident.role == RoleServer && !c.opened && c.sess.Confirmed()
	c.opened = c.opened || tell
	list := c.due(nil)
	c.arm()
	c.mu.Unlock()
	if tell && c.e.cfg.Opened != nil {
		c.e.cfg.Opened(c)
	}
	c.e.enqueue(list)
	return d
}

// handle answers a prepare. Called with mu held; the reply is sealed before
// another packet can change the pair.
func (c *Conn) handle(in *Incoming) Decision {
	o, err := c.sess.Open(c.plain[:0], in.Data, c.e.entropy.id())
	if err != nil && !errors.Is(err, ErrReopen) {
		return Decision{}
	}
	c.plain = o.Inner
	p := &c.in
	if bad := p.Decode(o.Inner); bad != nil {
		return Decision{}
	}
	reply := Packet{Kind: KindReject, Code: CodeRead, RequestID: o.Header.Counter, Amount: in.Amount}
	if err != nil {
		reply.Code = CodeReopen
		data, err := c.sess.SealReopen(nil, &o, c.e.entropy.id(), reply.Append(nil))
		if err != nil {
			return Decision{}
		}
		return Decision{Data: data}
	}
	c.usedAt = c.e.now()
	if p.Has&HasOpen != 0 && c.ident.role == RoleServer && !o.Seen {
		// The way back counts once the client has echoed us: an old Open that is
		// played again moves nothing.
		c.nextTo, c.nextVia = lastOf(&p.Open.ViaFrame)
	}
	if o.Began {
		c.began()
		if c.nextTo != "" {
			c.ident.dest, c.ident.via = c.nextTo, c.nextVia
		}
	}
	if o.Fresh {
		c.hear(p, nil)
	}
	d := Decision{}
	if c.closed != nil {
		reply.Code = CodeClosed
	} else if in.Amount > 0 && o.Fresh && p.Amount > 0 {
		reply.Code = c.receive(in, p, &o, &d)
		if d.Fulfil {
			reply.Kind = KindFulfil
		}
	}
	if o.Fresh {
		c.state(&reply)
		reply.Replies = append(reply.Replies, c.answers...)
		c.answers = c.answers[:0]
		c.sign(&reply)
	}
	if d.Data, err = c.sess.SealReply(nil, &o, reply.Kind, reply.Append(nil)); err != nil && !d.Fulfil {
		return Decision{}
	}
	return d
}

func lastOf(v *ViaFrame) (to peer.ID, via []peer.ID) {
	for _, id := range v.Via() {
		via = append(via, peer.ID(id))
	}
	if n := len(via); n > 0 {
		return via[n-1], via[:n-1]
	}
	return "", nil
}

// began starts a session whose pair is confirmed.
func (c *Conn) began() {
	if _, err := c.sock.Step(&Event{Kind: EvSession}); err != nil {
		c.stop(err)
	}
	c.told, c.tellAt, c.tellTries = 0, 0, 0
	c.resume()
	c.notify()
}

// receive is R5, first the socket's and then the token's.
func (c *Conn) receive(in *Incoming, p *Packet, o *Opened, d *Decision) Code {
	fx, err := c.sock.Step(&Event{
		Kind: EvArrive, ID: in.ID, Amount: in.Amount, Least: p.Amount, Sent: p.Sent,
		Seen: o.Seen, Expired: !time.Now().Before(in.Expires), Opens: o.Preimage.Opens(in.Condition),
	})
	if err == nil && len(fx) > 0 {
		err = fx[0].Err
	} else if err == nil {
		if err = c.budgetReceive(in.Amount, c.sock.tolerance(in.Amount)); err != nil {
			if _, err := c.sock.Step(&Event{Kind: EvDrop, ID: in.ID}); err != nil {
				c.stop(err)
			}
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, ErrTooLittle):
		return CodeTooLittle
	case errors.Is(err, ErrFull), errors.Is(err, ErrSpent):
		return CodeFull
	case errors.Is(err, ErrThin):
		return CodeThin
	case errors.Is(err, ErrBusy):
		return CodeBusy
	default:
		return CodeRefused
	}
	if _, err := c.sock.Step(&Event{Kind: EvTake, ID: in.ID}); err != nil {
		return CodeRefused
	}
	c.tellAt = max(c.tellAt, c.e.now()+newsDelay)
	d.Fulfil, d.Preimage, d.Record = true, o.Preimage, c.record
	c.notify()
	return CodeUnset
}

// hear takes what a packet of a confirmed session tells; o is the packet of ours
// that it answers, if any.
func (c *Conn) hear(p *Packet, o *outgoing) {
	if p.Has&HasState != 0 {
		ev := Event{Kind: EvState, Seq: p.State.Seq, SeenSeq: p.State.Seen, Totals: p.State.Totals}
		if o != nil {
			ev.Known, ev.Amount, ev.Arrived = true, p.State.Received, o.arrived
		}
		_, err := c.sock.Step(&ev)
		if err == nil {
			if c.stopped != nil {
				c.resume() // the peer spoke
			}
			c.notify()
		}
	}
	for i := range p.Proposals {
		f := &p.Proposals[i]
		ok, known := c.proposals[f.ID]
		if !known {
			if len(c.proposals) >= maxProposals {
				clear(c.proposals)
			}
			if c.e.cfg.Proposed != nil {
				ok = c.e.cfg.Proposed(c, Proposal{ID: f.ID, MinDelta: f.MinDelta, MaxDelta: f.MaxDelta, Memo: string(f.Memo)})
			}
			c.proposals[f.ID] = ok
		}
		if len(c.answers) < maxProposals/2 {
			c.answers = append(c.answers, ProposalReplyFrame{ID: f.ID, Accepted: ok})
		}
	}
	for _, f := range p.Replies {
		if st := c.asked[f.ID]; st != nil && !st.decided {
			st.decided, st.accepted = true, f.Accepted
			c.notify()
		}
	}
	for _, f := range p.Requests {
		if len(c.requests) < 4 { // a signature costs more than a packet
			c.requests = append(c.requests, f.Nonce)
		}
	}
	for i := range p.Receipts {
		f := &p.Receipts[i]
		if r := c.wanted[f.Nonce]; r != nil && r.Signature == nil && len(f.Signature) > 0 {
			*r = Receipt{Payee: c.ident.dest, Socket: c.ident.id, Nonce: f.Nonce, Total: f.Total, Time: int64(f.Time), Signature: append([]byte(nil), f.Signature...)}
			c.notify()
		}
	}
	if p.Has&HasClose != 0 {
		c.peerClosed = true
		c.notify()
	}
}

// sign answers requests for receipts.
func (c *Conn) sign(p *Packet) {
	for _, nonce := range c.requests {
		if c.e.cfg.Sign == nil {
			break
		}
		r := Receipt{Payee: c.e.cfg.Self, Socket: c.ident.id, Nonce: nonce, Total: c.sock.received, Time: time.Now().Unix()}
		sig, err := c.e.cfg.Sign(r.Message())
		if err != nil || len(sig) > maxSignature {
			break
		}
		p.Receipts = append(p.Receipts, ReceiptFrame{Nonce: nonce, Total: r.Total, Time: uint64(r.Time), Signature: sig})
	}
	c.requests = c.requests[:0]
}

// answer is the end of a packet of ours.
func (c *Conn) answer(a *Answer) Record {
	c.mu.Lock()
	o, ok := c.out[a.ID]
	if !ok {
		c.mu.Unlock()
		return nil
	}
	delete(c.out, a.ID)
	p, known := c.readReply(a, &o)
	c.finish(a, &o, p, known)
	if c.sess.Confirmed() && o.kind == outOpen {
		c.tellAt = 0
	}
	list := c.due(nil)
	c.arm()
	gone := c.closed != nil && !errors.Is(c.closed, ErrClosed)
	c.mu.Unlock()
	c.e.enqueue(list)
	if gone {
		c.drop(ErrClosed)
	}
	if o.kind == outMoney {
		return c.record
	}
	return nil
}

// readReply authenticates the payee's part of an answer.
func (c *Conn) readReply(a *Answer, o *outgoing) (p *Packet, known bool) {
	if len(a.Data) == 0 || o.old {
		return nil, false
	}
	want := KindReject
	if a.Fulfilled {
		want = KindFulfil
	}
	p = &c.in
	op, err := c.sess.Open(c.plain[:0], a.Data, c.e.entropy.id())
	if err != nil {
		inner, err := c.sess.OpenReopen(c.plain[:0], a.Data)
		if err != nil || p.Decode(inner) != nil || p.RequestID != o.request {
			return nil, false
		}
		c.turnedAway(p.Code)
		return p, false
	}
	c.plain = op.Inner
	if op.Header.Kind != want || p.Decode(op.Inner) != nil || p.Kind != want || p.RequestID != o.request {
		return nil, false
	}
	if o.kind == outOpen && c.turnedAway(p.Code) {
		return p, false
	}
	c.usedAt = c.e.now()
	if op.Began {
		c.began()
	}
	if op.Fresh {
		c.hear(p, o)
	}
	return p, op.Fresh
}

// turnedAway handles an answer of a server that keeps no session for it: the one
// it was sealed in is gone already, so the client begins anew, or not at all.
func (c *Conn) turnedAway(code Code) bool {
	switch {
	case c.ident.role != RoleClient:
		return false
	case code == CodeClosed:
		c.closed = fmt.Errorf("%w: the peer refused the socket", ErrSpent)
		c.notify()
	case code == CodeReopen, code == CodeBusy:
		if err := c.sess.Renew(c.e.entropy.id()); err != nil {
			c.stop(err)
		}
		if code == CodeReopen {
			c.openAt = 0
		}
	default:
		return false
	}
	return true
}

// finish books the end of a packet and tells the control.
func (c *Conn) finish(a *Answer, o *outgoing, p *Packet, known bool) {
	now := c.e.now()
	var arrived tally.Amount
	if known {
		arrived = p.Amount
	}
	switch o.kind {
	case outProbe:
		c.ctl.Probed(o.amount, arrived, known, a.Most)
		return
	case outMoney:
	default:
		return
	}
	c.decided = append(c.decided, a.ID)
	ev := Event{Kind: EvRejected, ID: a.ID}
	if a.Fulfilled {
		ev = Event{Kind: EvFulfilled, ID: a.ID, Arrived: arrived, Known: known}
	}
	if _, err := c.sock.Step(&ev); err != nil {
		c.stop(err)
		return
	}
	c.budgetSettle(o.amount, a.Fulfilled)
	c.notify()
	if o.old {
		return
	}
	if a.Fulfilled {
		c.ctl.Fulfilled(now, o.amount, arrived, known)
		c.tellAt = max(c.tellAt, now+newsDelay)
		if r := c.ctl.Rate(); known && r.Known() {
			if _, err := c.sock.Step(&Event{Kind: EvRate, Rate: r}); err != nil {
				c.stop(err)
			}
		}
		return
	}
	kind := a.Kind
	if known {
		kind = RejectLimit
	}
	c.ctl.Rejected(now, o.amount, kind, a.Most, jitter(c.e))
}

// Resume lets a socket that has stopped, or was read from disk, go on.
func (c *Conn) Resume() {
	c.mu.Lock()
	c.resume()
	c.usedAt = c.e.now()
	c.openAt = 0
	c.mu.Unlock()
	c.kick()
}
