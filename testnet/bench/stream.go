package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/blake2b"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/host"
	"github.com/tallystick/tally/internal/durable"
	"github.com/tallystick/tally/internal/durable/durabletest"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/forward"
	"github.com/tallystick/tally/protocols/packetnet"
	"github.com/tallystick/tally/swap"
)

// Sizes of the packets that are measured. packetData is that of a small inner
// packet; the frames of the limit are as long as the prepare and the fulfil of
// such a packet are on the wire.
const (
	packetData    = 100
	prepareFrame  = 280
	fulfilFrame   = 46
	streamWindow  = 2048
	packetExpires = time.Minute
)

// fulfilKey makes preimages: what the payee knows of the socket.
var fulfilKey = []byte("bench: the key of both endpoints")

// preimageOf is the keyed hash of what the payee got, as paystream makes it.
func preimageOf(data []byte) tally.Preimage {
	var keyed [128 + packetData]byte // a key and one block, so that nothing is allocated
	n := copy(keyed[:], fulfilKey)
	n += copy(keyed[n:], data)
	return blake2b.Sum256(keyed[:n])
}

// payee gives packets with a token, and all others on a node that pays, to the
// sockets. It fulfils each other packet at once.
type payee struct {
	sockets *host.SocketCarrier
	pays    bool
}

func (p *payee) Packet(d *forward.Delivery) (forward.Decision, bool) {
	if len(d.Token) > 0 || p.pays {
		return p.sockets.Packet(d)
	}
	return forward.Decision{Fulfil: true, Preimage: preimageOf(d.Data)}, true
}

// hopNode is a party with a hop engine and an endpoint.
type hopNode struct {
	*party
	engine   *forward.Engine
	packet   *packetnet.Service
	endpoint *paystream.Endpoint
}

// chain is a row of nodes, each a neighbour of the next.
type chain []*hopNode

func newChain(ctx context.Context, o *Options, hops int, onDisk bool) (c chain, remove func() error, err error) {
	remove = func() error { return nil }
	dir := ""
	if onDisk {
		if dir, remove, err = o.folder(); err != nil {
			return nil, nil, err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close(), remove())
		}
	}()
	for i := range hops + 1 {
		store := durabletest.NewMem() // keeps what it takes: cheques are read again
		if onDisk {
			if store, err = openDisk(filepath.Join(dir, string(rune('a'+i)))); err != nil {
				return c, remove, err
			}
		}
		n, err := newHopNode(ctx, store, onDisk, i == 0)
		if err != nil {
			return c, remove, err
		}
		if c = append(c, n); i > 0 {
			if err := c[i-1].meet(ctx, n.party); err != nil {
				return c, remove, err
			}
			if err := errors.Join(c[i-1].linked(ctx, n), n.linked(ctx, c[i-1])); err != nil {
				return c, remove, err
			}
		}
	}
	return c, remove, nil
}

func newHopNode(ctx context.Context, store *durable.Store, journal, pays bool) (_ *hopNode, err error) {
	n := &hopNode{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if n.party, err = newParty(ctx, partyConfig{transport: overTCP, policy: wide(), store: store}); err != nil {
		return nil, err
	}
	carrier := &host.SocketCarrier{FirstRoom: func(d paystream.Dest) (tally.Amount, bool) {
		first := d.Peer
		if len(d.Via) > 0 {
			first = d.Via[0]
		}
		room, err := n.book.HeadroomPacket(first, swap.Consume)
		return room, err == nil
	}}
	cfg := forward.Config{
		Self: n.id(), Tabs: host.PacketTabs(n.book, journal), Memory: !journal,
		Handler: &payee{carrier, pays}, Orphan: carrier.Answered,
	}
	// Packets of one unit, as small as those of the engine alone.
	sockets := paystream.Config{Self: n.id(), Key: paystream.ServerKey{1}, Memory: !journal, LargestPacket: 1, Logger: slog.New(slog.DiscardHandler)}
	if journal {
		cfg.Store, sockets.Store = store, store
	}
	if n.endpoint, err = paystream.Open(ctx, sockets); err != nil {
		return nil, err
	}
	if n.engine, err = forward.New(ctx, cfg); err != nil {
		return nil, err
	}
	if n.packet, err = packetnet.New(n.host, n.engine, packetnet.Config{}); err != nil {
		return nil, err
	}
	carrier.Engine, carrier.Endpoint = n.engine, n.endpoint
	n.endpoint.Start(carrier)
	n.engine.Start(n.packet)
	return n, errors.Join(n.swap.Start(), n.packet.Start())
}

// linked waits for the packet session with a neighbour.
func (n *hopNode) linked(ctx context.Context, with *hopNode) error {
	ctx, cancel := context.WithTimeout(ctx, sessionWithin)
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		if _, ok := n.packet.Info(with.id()); ok {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("no packet session: %w", ctx.Err())
		}
	}
}

func (n *hopNode) close() error {
	var errs []error
	if n.packet != nil {
		errs = append(errs, n.packet.Close())
	}
	if n.engine != nil {
		errs = append(errs, n.engine.Close())
	}
	if n.endpoint != nil {
		errs = append(errs, n.endpoint.Close())
	}
	return errors.Join(append(errs, n.party.close())...)
}

func (c chain) close() error {
	var errs []error
	for _, n := range c {
		errs = append(errs, n.close())
	}
	return errors.Join(errs...)
}

// check compares the books: each hop carried what was paid, and each tab is the
// negative of its other side once the ack of a cheque has come.
func (c chain) check(ctx context.Context, paid uint64) error {
	ctx, cancel := context.WithTimeout(ctx, sessionWithin)
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for i := 0; i < len(c)-1; {
		a, err := c[i].book.Row(c[i+1].id())
		if err != nil {
			return err
		}
		b, err := c[i+1].book.Row(c[i].id())
		if err != nil {
			return err
		}
		if uint64(a.Consumed) != paid || uint64(b.Served) != paid {
			return fmt.Errorf("hop %d carried %d units, counted as %d, of %d", i+1, a.Consumed, b.Served, paid)
		}
		if a.Balance == -b.Balance {
			i++
			continue
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("books of hop %d differ: %d and %d", i+1, a.Balance, b.Balance)
		}
	}
	return nil
}

// payer sends packets over a chain with a window.
type payer struct {
	chain  chain
	via    []peer.ID
	window int
	seq    uint64
	paid   uint64 // fulfilled
	took   []time.Duration
}

func newPayer(c chain, window int) *payer {
	p := &payer{chain: c, window: window}
	for _, n := range c[1 : len(c)-1] {
		p.via = append(p.via, n.id())
	}
	return p
}

// slot is one packet in flight at a time.
type slot struct {
	packet forward.Packet
	begun  time.Time
}

// series of one run. All of it belongs to the engine's goroutine, which sends
// the next packet of a slot when the last one is decided.
type payRun struct {
	*payer
	until time.Time
	count int
	busy  int
	err   error
	ended bool
	over  chan struct{} // closed when ended
}

// run sends for d and returns the fulfilled packets in a second.
func (p *payer) run(ctx context.Context, d time.Duration) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, d+time.Minute)
	defer cancel()
	p.took = p.took[:0]
	begin := time.Now()
	r := &payRun{payer: p, until: begin.Add(d), over: make(chan struct{})}
	begun := r.chain[0].engine.Look(func(*forward.Hop) {
		dest := p.chain[len(p.chain)-1].id()
		for range p.window {
			r.send(&slot{packet: forward.Packet{Dest: dest, Via: p.via, Amount: 1, Data: make([]byte, packetData)}})
		}
	})
	if begun != nil {
		return 0, begun
	}
	select {
	case <-r.over:
		return float64(r.count) / time.Since(begin).Seconds(), r.err
	case <-ctx.Done():
		return 0, fmt.Errorf("no answer to a packet: %w", ctx.Err())
	}
}

func (r *payRun) send(s *slot) {
	s.begun = time.Now()
	if s.begun.After(r.until) || r.err != nil {
		r.end()
		return
	}
	r.seq++
	binary.BigEndian.PutUint64(s.packet.Data, r.seq)
	s.packet.Preimage = preimageOf(s.packet.Data)
	s.packet.Condition = forward.Blake2b(s.packet.Preimage.Hashlock())
	binary.BigEndian.PutUint64(s.packet.Part[:], r.seq)
	s.packet.Part[15] = 1
	s.packet.Expires = s.begun.Add(packetExpires)
	r.busy++
	err := r.chain[0].engine.Send(&s.packet, func(res *forward.Result) { r.decided(s, res) })
	if err != nil {
		r.busy--
		r.err = err
		r.end()
	}
}

// end ends the run when nothing is in flight.
func (r *payRun) end() {
	if r.busy == 0 && !r.ended {
		r.ended = true
		close(r.over)
	}
}

func (r *payRun) decided(s *slot, res *forward.Result) {
	r.busy--
	switch {
	case res.Fulfilled:
		r.count++
		r.paid++
		if r.window == 1 {
			r.took = append(r.took, time.Since(s.begun))
		}
	case res.Code != forward.CodeHeadroom: // a settlement is under way; the next one may pass
		r.err = res.Err()
	}
	r.send(s)
}

// socketRun pays over a socket of the two ends of a chain.
type socketRun struct {
	conn *paystream.Conn
	took []time.Duration
}

func newSocketRun(ctx context.Context, c chain, via []peer.ID) (*socketRun, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionWithin)
	defer cancel()
	u, err := c[len(c)-1].endpoint.Issue(paystream.Grant{Use: paystream.UsePush, Min: paystream.At(0), Max: paystream.NoMax})
	if err != nil {
		return nil, err
	}
	conn, err := c[0].endpoint.Dial(ctx, u, via, paystream.Terms{Min: paystream.NoMin, Max: paystream.NoMax})
	return &socketRun{conn: conn}, err
}

// run pushes for d and returns the fulfilled packets in a second.
func (s *socketRun) run(ctx context.Context, d time.Duration) (float64, error) {
	const all = -(1 << 58)
	before, begin := s.conn.Report().Sent, time.Now()
	if err := s.conn.SetLimits(paystream.NoMin, paystream.At(all)); err != nil {
		return 0, err
	}
	end := time.NewTimer(d)
	defer end.Stop()
	select {
	case <-end.C:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	done := float64(s.conn.Report().Sent-before) / time.Since(begin).Seconds()
	if err := s.conn.Err(); err != nil {
		return 0, err
	}
	return done, s.rest(ctx)
}

// rest stops pushing, and waits until nothing is in flight.
func (s *socketRun) rest(ctx context.Context) error {
	if err := s.conn.SetLimits(paystream.NoMin, paystream.NoMax); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sessionWithin)
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for s.conn.Report().HoldOut > 0 {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("packets of a socket are not decided: %w", ctx.Err())
		}
	}
	return nil
}

// single pays one unit after the other for d.
func (s *socketRun) single(ctx context.Context, d time.Duration) (float64, error) {
	s.took = s.took[:0]
	begin := time.Now()
	for now := begin; now.Sub(begin) < d; now = time.Now() {
		balance := s.conn.Report().Balance
		if err := s.conn.Pay(1); err != nil {
			return 0, err
		}
		if err := s.conn.WaitBalance(ctx, balance-1); err != nil {
			return 0, err
		}
		s.took = append(s.took, time.Since(now))
	}
	return float64(len(s.took)) / time.Since(begin).Seconds(), s.rest(ctx)
}

// bareChain is the limit: the same streams carry frames of the same length there
// and back, and nobody looks at them.
type bareChain struct {
	out     network.Stream
	window  int
	answers chan int
	took    []time.Duration
	streams []network.Stream
}

func newBareChain(ctx context.Context, c chain, window int) (*bareChain, error) {
	b := &bareChain{window: window, answers: make(chan int, 1024)}
	next := func(s network.Stream) { answerFrames(s) }
	for i := len(c) - 2; i >= 0; i-- {
		out, err := c[i].newStream(ctx, c[i+1].party, next)
		if err != nil {
			return nil, err
		}
		b.streams = append(b.streams, out)
		b.out = out
		next = func(in network.Stream) { relay(in, out) }
	}
	go b.read() // ends with the streams
	return b, nil
}

func (b *bareChain) close() {
	for _, s := range b.streams {
		_ = s.Reset()
	}
}

// relay copies both ways until a stream ends.
func relay(in, out network.Stream) {
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(out, in) })
	_, _ = io.Copy(in, out)
	_ = in.Reset()
	both.Wait()
}

// answerFrames writes an answer for each frame, all that is there at once.
func answerFrames(s network.Stream) {
	buf := make([]byte, 64<<10)
	answer := make([]byte, (len(buf)/prepareFrame+1)*fulfilFrame)
	rest := 0
	for {
		n, err := s.Read(buf)
		if err != nil {
			return
		}
		rest += n
		frames := rest / prepareFrame
		rest %= prepareFrame
		if _, err := s.Write(answer[:frames*fulfilFrame]); err != nil {
			return
		}
	}
}

func (b *bareChain) read() {
	buf := make([]byte, 64<<10)
	rest := 0
	defer close(b.answers)
	for {
		n, err := b.out.Read(buf)
		if err != nil {
			return
		}
		rest += n
		if rest >= fulfilFrame {
			b.answers <- rest / fulfilFrame
			rest %= fulfilFrame
		}
	}
}

func (b *bareChain) run(ctx context.Context, d time.Duration) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, d+time.Minute)
	defer cancel()
	buf := make([]byte, prepareFrame*b.window)
	b.took = b.took[:0]
	begin := time.Now()
	done := 0
	for free, busy := b.window, 0; ; {
		begun := time.Now()
		if begun.Sub(begin) < d && free > 0 {
			if _, err := b.out.Write(buf[:free*prepareFrame]); err != nil {
				return 0, err
			}
			busy += free
			free = 0
		}
		if busy == 0 {
			return float64(done) / time.Since(begin).Seconds(), nil
		}
		select {
		case n, ok := <-b.answers:
			if !ok {
				return 0, io.ErrUnexpectedEOF
			}
			free, busy, done = free+n, busy-n, done+n
			if b.window == 1 {
				b.took = append(b.took, time.Since(begun))
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// benchStream measures packets over several hops: those of a socket, and beside them
// those of the engine alone, whose payer and payee are this file's, with the hashes
// that a socket makes for each packet and without its sealing.
func benchStream(ctx context.Context, o *Options) (figures []Figure, err error) {
	goals := map[int]struct{ rate, p50 float64 }{1: {300e3, 60}, 2: {150e3, 120}, 4: {80e3, 220}}
	for _, hops := range scale(o, []int{1, 2, 4}, []int{1, 2}) {
		list, err := streamOver(ctx, o, hops, false, goals[hops].rate, goals[hops].p50)
		if err != nil {
			return nil, fmt.Errorf("%d hops in memory: %w", hops, err)
		}
		figures = append(figures, list...)
	}
	for _, hops := range scale(o, []int{1, 2, 4}, []int{1}) {
		list, err := streamOver(ctx, o, hops, true, 0, 0)
		if err != nil {
			return nil, fmt.Errorf("%d hops on disk: %w", hops, err)
		}
		figures = append(figures, list...)
	}
	return figures, nil
}

// where names the kind of store in the name of a figure.
func where(onDisk bool) string {
	if onDisk {
		return "durable"
	}
	return "memory"
}

func streamOver(ctx context.Context, o *Options, hops int, onDisk bool, goal, goalP50 float64) (_ []Figure, err error) {
	o.say("stream: %d hops, %s", hops, where(onDisk))
	c, remove, err := newChain(ctx, o, hops, onDisk)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close(), remove()) }()
	many, one := newPayer(c, streamWindow), newPayer(c, 1)
	one.seq = 1 << 62 // part ids of its own
	bare, err := newBareChain(ctx, c, streamWindow)
	if err != nil {
		return nil, err
	}
	defer bare.close()
	if _, err := bare.run(ctx, 0); err != nil {
		return nil, err
	}
	single, err := newBareChain(ctx, c, 1)
	if err != nil {
		return nil, err
	}
	defer single.close()
	socket, err := newSocketRun(ctx, c, many.via)
	if err != nil {
		return nil, err
	}
	var p50, engineP50, bareP50 []float64
	all, err := rounds(ctx, o, socket.run, many.run, bare.run,
		timed(&p50, &socket.took, socket.single), timed(&engineP50, &one.took, one.run), timed(&bareP50, &single.took, single.run))
	if err != nil {
		return nil, err
	}
	if err := c.check(ctx, many.paid+one.paid+uint64(socket.conn.Report().Sent)); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("stream/%s/hops-%d", where(onDisk), hops)
	engine := fmt.Sprintf("stream/engine/%s/hops-%d", where(onDisk), hops)
	note := "packets of 1 unit with 100 bytes, hash-locked, on the tabs of every hop; two hashes at each end and one at each hop"
	sealed := "packets of 1 unit of a socket, sealed both ways, on the tabs of every hop; at most 1024 in flight"
	limit := "the same streams, frames as long there and back, nobody looks"
	return []Figure{
		rate(name, "packets/s", all[0], all[2], limit, goal).note("%s", sealed).withCPU(all[0], all[2]).with("payment_threshold", 1_000_000),
		cost(name+"/p50", "µs", once(p50...), once(bareP50...), limit, goalP50).note("one unit at a time, from Pay to the balance"),
		rate(engine, "packets/s", all[1], all[2], limit, 0).note("%s; %d in flight", note, streamWindow).withCPU(all[1], all[2]).
			with("payment_threshold", 1_000_000).with("window", streamWindow),
		cost(engine+"/p50", "µs", once(engineP50...), once(bareP50...), limit, 0).note("one packet at a time, from Send to its result"),
	}, nil
}
