package bridge

import (
	"errors"
	"fmt"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/compat/btp"
	"github.com/tallystick/tally/paystream/compat/envelope"
)

// Bounds of a book.
const (
	// MaxIncoming bounds the packets on their way to one client. It is btpws's own
	// bound.
	MaxIncoming = 64
	// MaxTokens bounds the tokens of which money is remembered.
	MaxTokens = 1 << 14
	// seenPackets is how many packets of a token are known again. One from further
	// back counts as new; whoever replays it pays for it.
	seenPackets = 64
	// maxTotal bounds every total, so that no sum overflows.
	maxTotal tally.Amount = 1 << 60
	// keepToken is how long the figures of a token outlive it.
	keepToken = time.Hour
)

// Errors of a book.
var (
	// ErrClient: no client of this name.
	ErrClient = errors.New("bridge: no client of this name")
	// ErrClientExists: the name is taken.
	ErrClientExists = errors.New("bridge: there is a client of this name")
	// ErrNotEven: a client that owes, or is owed, or has packets on the way cannot
	// be removed.
	ErrNotEven = errors.New("bridge: the client's account is not even, or packets are on the way")
	// ErrTotals: an amount for which no ledger has room.
	ErrTotals = errors.New("bridge: amount too large for an account")
	// ErrSeen: the packet was booked before.
	ErrSeen = errors.New("bridge: this packet was booked before")
	// ErrFull: as many tokens, or as many packets, as there may be.
	ErrFull = errors.New("bridge: too many tokens with money, or packets on the way")
	// ErrRefused: the token does not allow it.
	ErrRefused = errors.New("bridge: the token does not take or give this")
)

// RoomError says that an account has no room for a packet, and for how much it has.
type RoomError struct{ Room tally.Amount }

func (e *RoomError) Error() string {
	return fmt.Sprintf("bridge: room for %d on the account; settle it, or raise its limit", e.Room)
}

// TokenID names a token of our ILP endpoints.
type TokenID = paystream.TokenID

// Limits bound a client's account.
type Limits struct {
	Credit tally.Amount // the most that the client may owe us
	Debt   tally.Amount // the most that we may owe the client
}

// Client is the account of one client. Totals only rise.
type Client struct {
	Name   string
	Token  btp.TokenHash
	Limits Limits

	Sent, Received tally.Amount // by packets, fulfilled
	PaidIn         tally.Amount // by the client, outside of the bridge
	PaidOut        tally.Amount // to the client
	// Late is the part of Sent whose fulfilment came after the packet's time, or
	// after a restart: the payee has it, and the client was told that it failed.
	Late tally.Amount

	sending, getting tally.Amount // on the way
	incoming         int          // packets in getting
}

// Balance is what the client owes us; below zero we owe it.
func (c *Client) Balance() tally.Balance {
	return tally.Balance(c.Sent+c.PaidOut) - tally.Balance(c.Received+c.PaidIn) // each ≤ 2^61
}

// InFlight is what is on the way from the client and to it.
func (c *Client) InFlight() (sending, getting tally.Amount) { return c.sending, c.getting }

// roomTo returns how far value may rise to limit: limit − value, at least 0. value
// is at most 2^62 either way and limit at most 2^60.
func roomTo(limit tally.Amount, value tally.Balance) tally.Amount {
	room := tally.Balance(limit) - value
	return tally.Amount(max(room, 0))
}

func (c *Client) roomToSend() tally.Amount {
	return min(roomTo(c.Limits.Credit, c.Balance()+tally.Balance(c.sending)), maxTotal.SaturatingSub(c.Sent+c.sending))
}

func (c *Client) roomToGet() tally.Amount {
	return min(roomTo(c.Limits.Debt, tally.Balance(c.getting)-c.Balance()), maxTotal.SaturatingSub(c.Received+c.getting))
}

// token is what the bearers of a token have moved, all together.
type token struct {
	expires          int64 // in Unix seconds; 0: never
	received, sent   tally.Amount
	getting, sending tally.Amount
	booked           uint64 // packets
	seen             [][16]byte
}

// rooms returns what may still be got and given under a grant. Without refunds they are budgets: what came stays, and what went is gone.
func (t *token) rooms(g *paystream.Grant) (get, give tally.Amount) {
	high, low, floor := maxTotal, maxTotal, tally.Balance(0)
	if n, ok := g.Max.Finite(); ok {
		high = positive(n)
	}
	if n, ok := g.Min.Finite(); ok {
		low, floor = positive(-n), n
	}
	if !g.Refunds {
		return high.SaturatingSub(t.received + t.getting), low.SaturatingSub(t.sent + t.sending)
	}
	balance := tally.Balance(t.received) - tally.Balance(t.sent)
	get = min(roomTo(high, balance+tally.Balance(t.getting)), maxTotal.SaturatingSub(t.received+t.getting))
	if floor > 0 {
		return get, 0
	}
	return get, min(roomTo(low, tally.Balance(t.sending)-balance), maxTotal.SaturatingSub(t.sent+t.sending))
}

func positive(b tally.Balance) tally.Amount {
	return min(tally.Amount(max(b, 0)), maxTotal)
}

// packet is one of a party's on its way over a hop.
type packet struct {
	from   Party
	amount tally.Amount
	mark   envelope.Mark
	saved  bool // its row is in a batch
	late   bool // whoever sent it has been told that it failed
}

// PacketID names a packet along its way: the part id of the hops.
type PacketID [16]byte

// Book is the state of a bridge. It is pure and not safe for use at the same time.
type Book struct {
	clients map[string]*Client
	tokens  map[TokenID]*token
	packets map[PacketID]*packet
	// pointers are by path; their budgets are tokens that no time ends.
	pointers map[string]Pointer
	// marks counts the envelopes on their way out: one of them that comes in is
	// a hop's reflection, and never fulfilled.
	marks map[envelope.Mark]int
}

// NewBook returns an empty book.
func NewBook() *Book {
	return &Book{
		clients: make(map[string]*Client), tokens: make(map[TokenID]*token),
		packets: make(map[PacketID]*packet), marks: make(map[envelope.Mark]int),
		pointers: make(map[string]Pointer),
	}
}

// Add enters a client.
func (b *Book) Add(name string, hash btp.TokenHash, l Limits) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if b.clients[name] != nil {
		return ErrClientExists
	}
	if l.Credit > maxTotal || l.Debt > maxTotal {
		return ErrTotals
	}
	b.clients[name] = &Client{Name: name, Token: hash, Limits: l}
	return nil
}

// Remove forgets a client whose account is even.
func (b *Book) Remove(name string) error {
	c := b.clients[name]
	if c == nil {
		return ErrClient
	}
	if c.Balance() != 0 || c.sending+c.getting != 0 || c.incoming != 0 || b.sends(Party{Client: name}) {
		return ErrNotEven
	}
	delete(b.clients, name)
	return nil
}

func (b *Book) sends(p Party) bool {
	for _, k := range b.packets {
		if k.from == p {
			return true
		}
	}
	return false
}

// Client returns a copy of a client's account.
func (b *Book) Client(name string) (Client, error) {
	c := b.clients[name]
	if c == nil {
		return Client{}, ErrClient
	}
	return *c, nil
}

// Paid books what a client paid us, and we it, outside of the bridge.
func (b *Book) Paid(name string, in, out tally.Amount) error {
	c := b.clients[name]
	if c == nil {
		return ErrClient
	}
	if in > maxTotal-c.PaidIn || out > maxTotal-c.PaidOut {
		return ErrTotals
	}
	c.PaidIn += in
	c.PaidOut += out
	return nil
}

// SetLimits changes what a client's account may reach. What is beyond stays.
func (b *Book) SetLimits(name string, l Limits) error {
	c := b.clients[name]
	if c == nil {
		return ErrClient
	}
	if l.Credit > maxTotal || l.Debt > maxTotal {
		return ErrTotals
	}
	c.Limits = l
	return nil
}

// HoldSend takes room for a packet that a party sends.
func (b *Book) HoldSend(from Party, amount tally.Amount, g *paystream.Grant) error {
	if from.Client == "" {
		t, err := b.token(from.Token, g)
		if err != nil {
			return err
		}
		if _, give := t.rooms(g); amount > give {
			return &RoomError{give}
		}
		t.sending += amount
		return nil
	}
	c := b.clients[from.Client]
	if c == nil {
		return ErrClient
	}
	if room := c.roomToSend(); amount > room {
		return &RoomError{room}
	}
	c.sending += amount
	return nil
}

// EndSend gives the room back, and books where the packet was fulfilled.
func (b *Book) EndSend(from Party, amount tally.Amount, fulfilled, late bool) {
	if from.Client == "" {
		if t := b.tokens[from.Token]; t != nil {
			t.sending -= amount
			if fulfilled {
				t.sent += amount
			}
		}
		return
	}
	if c := b.clients[from.Client]; c != nil {
		c.sending -= amount
		if fulfilled {
			c.Sent += amount
			if late {
				c.Late += amount
			}
		}
	}
}

// Leave is HoldSend for a packet that goes over a hop, whose outcome End tells,
// after a restart too.
func (b *Book) Leave(id PacketID, from Party, amount tally.Amount, mark envelope.Mark, g *paystream.Grant) error {
	if err := b.HoldSend(from, amount, g); err != nil {
		return err
	}
	b.enter(id, &packet{from: from, amount: amount, mark: mark})
	return nil
}

func (b *Book) enter(id PacketID, p *packet) {
	b.packets[id] = p
	b.marks[p.mark]++
}

// End ends a packet that left. It returns whose it was and whether there is a row
// of it to be deleted; ok is false where it is none of ours.
func (b *Book) End(id PacketID, fulfilled bool) (from Party, saved, ok bool) {
	p := b.packets[id]
	if p == nil {
		return from, false, false
	}
	delete(b.packets, id)
	if b.marks[p.mark]--; b.marks[p.mark] == 0 {
		delete(b.marks, p.mark)
	}
	b.EndSend(p.from, p.amount, fulfilled, p.late)
	return p.from, p.saved, true
}

// Lost notes that the sender of a packet is told that it failed, and reports whether
// it is still undecided.
func (b *Book) Lost(id PacketID) bool {
	p := b.packets[id]
	if p != nil {
		p.late = true
	}
	return p != nil
}

// Reflected reports whether an envelope is one of our own that is on its way.
func (b *Book) Reflected(m envelope.Mark) bool { return b.marks[m] > 0 }

// HoldGet takes room for a packet that a party gets. mark names it where it is for
// a token.
func (b *Book) HoldGet(to Party, amount tally.Amount, mark envelope.Mark, g *paystream.Grant) error {
	if to.Client == "" {
		t, err := b.token(to.Token, g)
		if err != nil {
			return err
		}
		if t.knows(mark) {
			return ErrSeen
		}
		if get, _ := t.rooms(g); amount > get {
			return &RoomError{get}
		}
		t.getting += amount
		t.remember(mark)
		return nil
	}
	c := b.clients[to.Client]
	if c == nil {
		return ErrClient
	}
	if c.incoming >= MaxIncoming {
		return ErrFull
	}
	if room := c.roomToGet(); amount > room {
		return &RoomError{room}
	}
	c.getting += amount
	c.incoming++
	return nil
}

// EndGet gives the room back, and books where the packet was fulfilled.
func (b *Book) EndGet(to Party, amount tally.Amount, fulfilled bool) {
	if to.Client == "" {
		if t := b.tokens[to.Token]; t != nil {
			t.getting -= amount
			if fulfilled {
				t.received += amount
			}
		}
		return
	}
	if c := b.clients[to.Client]; c != nil {
		c.getting -= amount
		c.incoming--
		if fulfilled {
			c.Received += amount
		}
	}
}

// Rooms returns what a token may get and give now, and what it has got less given.
func (b *Book) Rooms(id TokenID, g *paystream.Grant) (get, give tally.Amount, balance tally.Balance) {
	t := b.tokens[id]
	if t == nil {
		t = new(token)
	}
	get, give = t.rooms(g)
	return get, give, tally.Balance(t.received) - tally.Balance(t.sent)
}

func (b *Book) token(id TokenID, g *paystream.Grant) (*token, error) {
	if g == nil {
		return nil, ErrRefused
	}
	if t := b.tokens[id]; t != nil {
		if t.expires != 0 && (g.Expires == 0 || g.Expires > t.expires) {
			t.expires = g.Expires // tokens of one budget: until the last ends
		}
		return t, nil
	}
	if len(b.tokens) >= MaxTokens {
		return nil, ErrFull
	}
	t := &token{expires: g.Expires}
	b.tokens[id] = t
	return t, nil
}

func short(m envelope.Mark) [16]byte { return [16]byte(m[:16]) }

func (t *token) knows(m envelope.Mark) bool {
	s := short(m)
	for _, k := range t.seen {
		if k == s {
			return true
		}
	}
	return false
}

// remember keeps the mark in place of the oldest.
func (t *token) remember(m envelope.Mark) {
	if len(t.seen) < seenPackets {
		t.seen = append(t.seen, short(m))
	} else {
		t.seen[t.booked%seenPackets] = short(m)
	}
	t.booked++
}

// Forget drops the tokens that ended an hour ago, at most so many, and returns them.
func (b *Book) Forget(now time.Time, most int) (gone []TokenID) {
	kept := make(map[TokenID]bool, len(b.pointers))
	for _, p := range b.pointers {
		kept[p.Budget] = true
	}
	for id, t := range b.tokens {
		if len(gone) == most {
			break
		}
		over := t.expires != 0 && now.Unix() >= t.expires+int64(keepToken/time.Second)
		unused := t.booked == 0 && t.sent+t.sending == 0
		if (over && !kept[id] || unused) && t.getting+t.sending == 0 && !b.sends(Party{Token: id}) {
			delete(b.tokens, id)
			gone = append(gone, id)
		}
	}
	return gone
}

// Check returns the first invariant that is broken.
//
//	holds           what a party has on the way is at least the sum of its packets
//	bounded-totals  every total ≤ 2^60
//	marks           the envelopes on their way are those of the packets
func (b *Book) Check() error {
	sums, marks := make(map[Party]tally.Amount), make(map[envelope.Mark]int)
	for _, p := range b.packets {
		sums[p.from] += p.amount
		marks[p.mark]++
	}
	for name, c := range b.clients {
		if c.sending < sums[Party{Client: name}] || c.incoming < 0 {
			return fmt.Errorf("bridge: holds: client %s sends %d, packets have %d", name, c.sending, sums[Party{Client: name}])
		}
		for _, n := range [...]tally.Amount{c.Sent + c.sending, c.Received + c.getting, c.PaidIn, c.PaidOut, c.Late} {
			if n > maxTotal {
				return fmt.Errorf("bridge: bounded-totals: client %s has %d", name, n)
			}
		}
	}
	for id, t := range b.tokens {
		if t.sending < sums[Party{Token: id}] {
			return fmt.Errorf("bridge: holds: token %s sends %d, packets have %d", id, t.sending, sums[Party{Token: id}])
		}
		if t.received+t.getting > maxTotal || t.sent+t.sending > maxTotal {
			return fmt.Errorf("bridge: bounded-totals: token %s", id)
		}
	}
	if len(marks) != len(b.marks) {
		return fmt.Errorf("bridge: marks: %d, packets have %d", len(b.marks), len(marks))
	}
	for m, n := range marks {
		if b.marks[m] != n {
			return fmt.Errorf("bridge: marks: %d of one envelope, packets have %d", b.marks[m], n)
		}
	}
	return nil
}
