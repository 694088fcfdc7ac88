package sim

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/swap"
)

// mailbox takes what the books send, from any of their goroutines.
type mailbox struct {
	world *world

	// mu guards the field below.
	mu   sync.Mutex
	sent []letter
}

// letter is one message on its way.
type letter struct {
	at       time.Duration
	from, to *party
	life     int // of the sender
	epoch    int
	m        swap.Message
	hang     bool // the sender ends the connection
	text     string
}

// courier is the swap.Courier of one life of a party.
type courier struct {
	box  *mailbox
	from *party
	life int
}

var _ swap.Courier = (*courier)(nil)

func (c *courier) Send(_ context.Context, to peer.ID, m swap.Message) error {
	w := c.box.world
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	l, other := w.linkOf(c.from, to)
	// The scheduler changes links only while no book runs, so that this reads
	// what was true when the book's event began.
	if l == nil || !l.up || !l.begun[l.side(c.from)] || c.life != c.from.life {
		return swap.ErrNoSession
	}
	c.box.sent = append(c.box.sent, letter{at: w.now(), from: c.from, to: other, life: c.life, epoch: l.epoch, m: m, text: describe(m)})
	return nil
}

func (c *courier) Disconnect(p peer.ID) error {
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	w := c.box.world
	if _, other := w.linkOf(c.from, p); other != nil {
		c.box.sent = append(c.box.sent, letter{at: w.now(), from: c.from, to: other, life: c.life, hang: true, text: "disconnect"})
	}
	return nil
}

func (w *world) linkOf(p *party, id peer.ID) (*link, *party) {
	other := w.partyOf(id)
	return w.links[[2]int{min(p.index, other.index), max(p.index, other.index)}], other
}

// take returns what was sent since the last time, in an order that does not
// depend on which goroutine came first.
func (b *mailbox) take() []letter {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := b.sent
	b.sent = nil
	slices.SortStableFunc(list, func(x, y letter) int {
		return cmp.Or(cmp.Compare(x.at, y.at), cmp.Compare(x.from.index, y.from.index), cmp.Compare(x.to.index, y.to.index))
	})
	return list
}

// carry puts what the books sent on the wire.
func (w *world) carry() {
	for _, x := range w.mail.take() {
		l, _ := w.linkOf(x.from, x.to.id)
		if x.hang {
			w.logf("%s cuts off %s", x.from.name, x.to.name)
			w.hangUp(l, "cut off")
			w.reconnect(l, w.someTime(10*time.Second))
			continue
		}
		w.note(x)
		if x.epoch != l.epoch || !l.up {
			continue
		}
		switch {
		case w.has(Loss) && w.chance(4):
			w.report.Lost++
			w.logf("lost %s%s %s", x.from.name, x.to.name, x.text)
			continue
		case w.has(Repeat) && w.chance(4):
			w.send(l, x)
		}
		w.send(l, x)
	}
}

// note keeps the truth of what was signed.
func (w *world) note(x letter) {
	w.logf("sent %s%s %s", x.from.name, x.to.name, x.text)
	switch m := x.m.(type) {
	case *swap.Cheque:
		w.noteCheque(m)
	case *swap.Ack:
		w.noteAck(m)
	case *swap.Handshake: // what was saved before a crash, and never sent
		w.noteCheque(m.ChequeSent)
		w.noteAck(m.AckGiven)
	}
}

func (w *world) noteCheque(c *swap.Cheque) {
	if c != nil {
		t := w.truthOf(w.partyOf(c.Issuer), w.partyOf(c.Beneficiary))
		t.promised = max(t.promised, c.Cumulative)
	}
}

func (w *world) noteAck(a *swap.Ack) {
	if a == nil {
		return
	}
	t := w.truthOf(w.partyOf(a.Beneficiary), w.partyOf(a.Issuer))
	if a.Credited > t.acked {
		w.report.Cheques++
	}
	t.acked = max(t.acked, a.Credited)
}

func (w *world) partyOf(id peer.ID) *party {
	for _, p := range w.parties {
		if p.id == id {
			return p
		}
	}
	panic("sim: a peer from outside")
}

// send plans the arrival of one letter.
func (w *world) send(l *link, x letter) {
	side := l.side(x.from)
	at := max(w.now(), x.at) + w.delay()
	if !w.has(Reorder) {
		at = max(at, l.due[side]+1)
		l.due[side] = at
	}
	epoch := l.epoch
	w.planAt(at, "arrival", func() { w.arrive(l, epoch, x) })
}

func (w *world) arrive(l *link, epoch int, x letter) {
	if l.epoch != epoch || !l.up || !x.to.up() {
		return
	}
	if h, ok := x.m.(*swap.Handshake); ok {
		w.greet(l, x, h)
		return
	}
	if !l.begun[l.side(x.to)] {
		return // a message before the handshake, as only reordering brings it
	}
	if x.to.liar != nil {
		x.to.liar.receive(x.from, x.m)
		return
	}
	err := x.to.book.Receive(w.ctx, x.from.id, x.m)
	w.logf("come %s%s %s: %s", x.from.name, x.to.name, x.text, cause(err))
	if c, ok := x.m.(*swap.Cheque); ok && err != nil && x.to.disk.Failed() == nil {
		// swapnet tells the sender.
		w.post(x.to, x.from, &swap.Refusal{Serial: c.Serial, Code: swap.RefusalFor(err)})
	}
}

// post sends a message in a party's name.
func (w *world) post(from, to *party, m swap.Message) {
	l, _ := w.linkOf(from, to.id)
	w.mail.mu.Lock()
	defer w.mail.mu.Unlock()
	w.mail.sent = append(w.mail.sent, letter{at: w.now(), from: from, to: to, life: from.life, epoch: l.epoch, m: m, text: describe(m)})
}

// greet hands the handshake of one side to the other.
func (w *world) greet(l *link, x letter, h *swap.Handshake) {
	side := l.side(x.to)
	if l.begun[side] {
		return // repeated; a stream has one
	}
	l.begun[side] = true
	if x.to.liar != nil {
		x.to.liar.begin(x.from, h)
		return
	}
	err := x.to.book.BeginSession(w.ctx, x.from.id, h, true)
	w.logf("session %s%s: %s", x.to.name, x.from.name, cause(err))
	if err != nil {
		l.begun[side] = false
		w.hangUp(l, "no session")
		w.reconnect(l, w.someTime(5*time.Second))
		return
	}
	w.report.Sessions++
}

// connect begins a session: both handshakes go on their way.
func (w *world) connect(a, b *party) {
	l, _ := w.linkOf(a, b.id)
	if l.up {
		return
	}
	if !a.up() || !b.up() || w.now() < l.until {
		w.reconnect(l, w.someTime(5*time.Second))
		return
	}
	l.epoch++
	l.up, l.begun, l.due = true, [2]bool{}, [2]time.Duration{}
	w.logf("connect %s%s", a.name, b.name)
	for _, way := range [...][2]*party{{a, b}, {b, a}} {
		from, to := way[0], way[1]
		var h *swap.Handshake
		if from.liar != nil {
			h = from.liar.hello(to)
		} else {
			var err error
			if h, err = from.book.Hello(w.ctx, to.id); err != nil {
				w.logf("hello %s%s: %s", from.name, to.name, cause(err))
				w.hangUp(l, "no hello")
				w.reconnect(l, w.someTime(5*time.Second))
				return
			}
		}
		x := letter{at: w.now(), from: from, to: to, life: from.life, epoch: l.epoch, m: h, text: describe(h)}
		w.note(x)
		w.send(l, x)
	}
}

// hangUp ends a session: what is on the way is lost, and requests have no answer
// any more.
func (w *world) hangUp(l *link, why string) {
	if !l.up {
		return
	}
	w.logf("hang up %s%s: %s", l.a.name, l.b.name, why)
	l.up = false
	l.epoch++
	for _, p := range [...]*party{l.a, l.b} {
		if l.begun[l.side(p)] && p.book != nil {
			other := l.a
			if p == l.a {
				other = l.b
			}
			p.book.EndSession(other.id)
		}
	}
	l.begun = [2]bool{}
	numbers := make([]int, 0, len(l.open))
	for n := range l.open {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		w.giveUp(l, l.open[n], why)
	}
}

func (w *world) reconnect(l *link, in time.Duration) {
	w.plan(in, "connect", func() { w.connect(l.a, l.b) })
}

// describe is a message in one line, the same in every run.
func describe(m swap.Message) string {
	switch m := m.(type) {
	case *swap.Handshake:
		return fmt.Sprintf("handshake threshold %d totals %+v cheques %s %s acks %s %s",
			m.PaymentThreshold, m.Totals, chequeText(m.ChequeSent), chequeText(m.ChequeReceived), ackText(m.AckGiven), ackText(m.AckReceived))
	case *swap.Cheque:
		return "cheque " + chequeText(m)
	case *swap.Ack:
		return "ack " + ackText(m)
	case *swap.Statement:
		return fmt.Sprintf("statement %+v", m.Totals)
	case *swap.Refusal:
		return fmt.Sprintf("refusal %d %v", m.Serial, m.Code)
	default:
		return fmt.Sprintf("%T", m)
	}
}

func chequeText(c *swap.Cheque) string {
	if c == nil {
		return "-"
	}
	return fmt.Sprintf("%d/%d (%d %d %d) %x", c.Serial, c.Cumulative, c.Served, c.Consumed, c.Balance, c.Signature[:min(4, len(c.Signature))])
}

func ackText(a *swap.Ack) string {
	if a == nil {
		return "-"
	}
	return fmt.Sprintf("%d/%d (%d %d %d) %x", a.Serial, a.Credited, a.Served, a.Consumed, a.Balance, a.Signature[:min(4, len(a.Signature))])
}
