package bridge

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream"
	"github.com/tallystick/tally/paystream/compat/endpoint"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/compat/psk2"
	"github.com/tallystick/tally/paystream/compat/spsp"
)

const (
	// maxWishes bounds the bearers who are being paid, and maxPulls the sockets over
	// which we are.
	maxWishes = 64
	maxPulls  = 64
	// retryFirst, doubled up to retryMost, is the wait after a packet that may pass
	// later; payTries of them without progress end it.
	retryFirst = 50 * time.Millisecond
	retryMost  = 2 * time.Second
	payTries   = 8
	// pullTick is how often a pull looks at what came, and pullAgain how often it
	// asks again: an opening may be lost.
	pullTick  = 20 * time.Millisecond
	pullAgain = 2 * time.Second
	pullStall = 10 * time.Second
	// ownTokens is how long a token lives under which we pay or pull.
	ownTokens = time.Hour
	// slippage is the part of a hundred that may be lost on the way beyond what was
	// measured.
	slippage = 1
)

// Errors of payments to other implementations.
var (
	// ErrNothing: the pointer has nothing to be paid, or to give.
	ErrNothing = errors.New("bridge: the payment pointer asks for nothing and gives nothing any more")
	// ErrAmount: a pointer that leaves the amount open needs one.
	ErrAmount = errors.New("bridge: the payment pointer does not say how much: give an amount")
	// ErrShort: less moved than was to.
	ErrShort = errors.New("bridge: not all of it moved: no more came through, or the other side took or gave no more")
)

// wish is what a bearer told last, and where it is.
type wish struct {
	to       endpoint.Peer
	grant    paystream.Grant
	expected tally.Amount
	wanted   tally.Amount
}

// request books a PSK2 request and hears what its bearer wants. It answers with what
// we lack and take.
func (b *Bridge) request(ctx context.Context, q endpoint.PSK2Request) ([]byte, error) {
	id, g, err := b.grantOf(q.Token)
	if err != nil {
		return nil, err
	}
	if !q.Probe && q.Amount > 0 {
		err = b.receive(ctx, q.Token, q.Amount, q.ID)
	}
	if m, bad := psk2.DecodeMessage(q.Data); bad == nil && err == nil {
		b.heard(id, &g, q.Token, m)
	}
	return b.state(id, &g, ""), err
}

// state is our message: what a token lacks to its minimum, and takes to its maximum.
func (b *Bridge) state(id TokenID, g *paystream.Grant, at ilp.Address) []byte {
	b.mu.Lock()
	get, _, balance := b.book.Rooms(id, g)
	b.mu.Unlock()
	m := psk2.Message{Wanted: get, Destination: at}
	if n, ok := g.Min.Finite(); ok {
		m.Expected = min(positive(n-balance), get)
	}
	data, err := m.Append(nil)
	if err != nil { // at is our own address
		return nil
	}
	return data
}

// heard starts to pay a bearer who expects something, or is to be pushed to. All that
// it can ask for is within the token's budget.
func (b *Bridge) heard(id TokenID, g *paystream.Grant, segment string, m *psk2.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.wishes[id]
	if m.Close {
		if w != nil {
			w.expected, w.wanted = 0, 0
		}
		return
	}
	if w != nil {
		w.expected, w.wanted = m.Expected, m.Wanted
		if m.Destination != "" {
			w.to.Address = m.Destination
		}
		return
	}
	if m.Destination == "" || b.closed || len(b.wishes) >= maxWishes {
		return
	}
	w = &wish{grant: *g, expected: m.Expected, wanted: m.Wanted}
	if b.due(id, w) == 0 {
		return
	}
	own, err := b.psk2.Own(segment)
	if err != nil {
		return
	}
	w.to = endpoint.Peer{Address: m.Destination, Secret: own.Secret}
	b.wishes[id] = w
	b.wg.Add(1)
	go func() { // ends when nothing is due, nothing comes through, or with Close
		defer b.wg.Done()
		b.pay(id, w)
	}()
}

// due is what is to be sent now. The caller holds mu.
func (b *Bridge) due(id TokenID, w *wish) tally.Amount {
	_, give, balance := b.book.Rooms(id, &w.grant)
	n := min(give, w.expected) // comply
	if high, ok := w.grant.Max.Finite(); ok && balance > high {
		n = max(n, min(positive(balance-high), w.wanted, give)) // push
	}
	return n
}

// pay sends to a bearer until nothing is due.
func (b *Bridge) pay(id TokenID, w *wish) {
	ctx := context.WithValue(b.ctx, senderKey{}, sender{id, w.grant})
	most, delay := tally.Amount(math.MaxInt64), retryFirst
	extra := tally.Amount(0) // of the last bit of what is due, which is less than the fees
	for tries := 0; tries < payTries && ctx.Err() == nil; {
		b.mu.Lock()
		n := b.due(id, w)
		if n > 0 {
			_, give, _ := b.book.Rooms(id, &w.grant)
			n = min(n.SaturatingAdd(extra), give, most)
		}
		to := w.to
		if n == 0 {
			delete(b.wishes, id)
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		got, code, data, err := b.sendOnce(ctx, to, n, b.state(id, &w.grant, ""))
		switch {
		case err != nil:
			tries = payTries
		case code == "":
			b.mu.Lock()
			w.expected, w.wanted = w.expected.SaturatingSub(got), w.wanted.SaturatingSub(got)
			b.mu.Unlock()
			tries, delay, extra = 0, retryFirst, 0
		case code == ilp.CodeInsufficientSource:
			tries++
			extra = 2*extra + 1
		case code == ilp.CodeAmountTooLarge:
			most = n / 2
			if l, err := ilp.DecodeTooLarge(data); err == nil && l.Maximum > 0 && l.Maximum < n {
				most = l.Maximum
			}
			tries++
			if most == 0 {
				tries = payTries
			}
		default:
			tries++
			if tries < payTries && !sleep(ctx, delay) {
				tries = payTries
			}
			delay = min(2*delay, retryMost)
		}
	}
	b.mu.Lock()
	delete(b.wishes, id)
	b.mu.Unlock()
}

// sendOnce probes what arrives of n and sends it, with a floor below. code is empty
// where it was fulfilled.
func (b *Bridge) sendOnce(ctx context.Context, to endpoint.Peer, n tally.Amount, data []byte) (got tally.Amount, code ilp.Code, rejected []byte, err error) {
	probe, err := b.psk2.Probe(ctx, to, n, data)
	if err != nil {
		return 0, "", nil, err
	}
	if !probe.Authentic {
		return 0, probe.Code, probe.Data, nil
	}
	least := scale(probe.Delivered, 100-slippage, 100)
	res, err := b.psk2.Request(ctx, to, n, least, data)
	if err != nil || !res.Fulfilled {
		return 0, res.Code, res.Data, err
	}
	return max(res.Delivered, least), "", nil, nil
}

// scale returns a·num/den rounded down, at most the largest Amount, for den > 0.
func scale(a tally.Amount, num, den uint64) tally.Amount {
	hi, lo := bits.Mul64(uint64(a), num)
	if hi >= den {
		return tally.MaxAmount
	}
	q, _ := bits.Div64(hi, lo, den)
	return tally.Amount(q)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Moved is what became of a payment: in our units what left and what came, in the
// other side's what it got.
type Moved struct {
	Kind                      spsp.Kind
	Sent, Delivered, Received tally.Amount
}

// Follow does what the document of a payment pointer is for: a push is sent the
// amount, an invoice is paid up to the amount or, where that is 0, whole, and a
// voucher is taken up to it. What moved is told also beside an error.
func (b *Bridge) Follow(ctx context.Context, d *spsp.Document, amount tally.Amount) (Moved, error) {
	m := Moved{Kind: d.Kind()}
	open := tally.Amount(0)
	switch m.Kind {
	case spsp.Push:
		if d.Balance != nil {
			return m, ErrNothing
		}
		if amount == 0 {
			return m, ErrAmount
		}
	case spsp.Invoice:
		open = positive(tally.Balance(*d.Balance.Maximum - d.Balance.Current))
	case spsp.Voucher:
		open = positive(tally.Balance(d.Balance.Current - *d.Balance.Minimum))
	default:
		return m, ErrAmount
	}
	if amount > maxTotal {
		return m, ErrTotals
	}
	to := endpoint.Peer{Address: d.Destination, Secret: d.SharedSecret}
	if m.Kind == spsp.Voucher {
		if amount == 0 || amount > open {
			amount = open
		}
		var err error
		m.Received, err = b.pull(ctx, to, amount)
		return m, err
	}
	return b.push(ctx, m, to, amount, open)
}

// own makes a token under which we pay or pull, and a context whose packets are its.
func (b *Bridge) own(ctx context.Context, g paystream.Grant) (context.Context, endpoint.Peer, TokenID, string, error) {
	g.Expires = time.Now().Add(ownTokens).Unix()
	at, err := b.Issue(KindPSK2, g)
	if err != nil {
		return ctx, at, TokenID{}, "", err
	}
	rest, _ := at.Address.Under(b.address)
	_, segment := kindOf(rest)
	id, _, err := b.grantOf(segment)
	return context.WithValue(ctx, senderKey{}, sender{id, g}), at, id, segment, err
}

// push sends over STREAM: the amount, or as much as makes want arrive, at most the
// amount where one is given.
func (b *Bridge) push(ctx context.Context, m Moved, to endpoint.Peer, amount, want tally.Amount) (Moved, error) {
	most := amount
	if most == 0 {
		most = want.SaturatingAdd(want / 50).SaturatingAdd(100) // fees of the way, 2 % and some units
	}
	// Probes may be larger than what is sent: the bound on that is Send's.
	ctx, _, _, _, err := b.own(ctx, paystream.Grant{Use: paystream.UsePush, Min: paystream.NoMin, Max: paystream.At(0)})
	if err != nil {
		return m, err
	}
	conn, err := b.stream.Dial(to)
	if err != nil {
		return m, err
	}
	defer conn.Close(ctx)
	sent, err := conn.Send(ctx, most, endpoint.SendOptions{UntilFull: want > 0})
	m.Sent, m.Delivered = sent.Sent, sent.Delivered
	if err == nil && m.Delivered < want && amount == 0 {
		err = ErrShort
	}
	return m, err
}

// pull opens a PSK2 socket to a voucher and takes what comes, until it is the amount
// or nothing came for 10 s.
func (b *Bridge) pull(ctx context.Context, from endpoint.Peer, amount tally.Amount) (tally.Amount, error) {
	if amount == 0 {
		return 0, ErrNothing
	}
	g := paystream.Grant{Use: paystream.UseVoucher, Min: paystream.At(tally.Balance(amount)), Max: paystream.At(tally.Balance(amount))}
	ctx, at, id, segment, err := b.own(ctx, g)
	if err != nil {
		return 0, err
	}
	b.mu.Lock()
	full := b.closed || len(b.pulls) >= maxPulls
	if !full {
		b.pulls[segment] = from.Secret
	}
	b.mu.Unlock()
	if full {
		return 0, ErrFull
	}
	defer func() {
		b.mu.Lock()
		delete(b.pulls, segment)
		b.mu.Unlock()
	}()
	received := func() tally.Amount {
		b.mu.Lock()
		defer b.mu.Unlock()
		_, _, balance := b.book.Rooms(id, &g)
		return positive(balance)
	}
	var asked, progress time.Time
	for last := tally.Amount(0); ; {
		now, got := time.Now(), received()
		if got > last || progress.IsZero() {
			last, progress = got, now
		}
		switch {
		case got >= amount:
			return got, nil
		case now.Sub(progress) >= pullStall:
			return got, ErrShort
		case now.Sub(asked) >= pullAgain:
			asked = now
			res, err := b.psk2.Probe(ctx, from, 0, b.state(id, &g, at.Address))
			if err != nil {
				return received(), err
			}
			if !res.Authentic && !res.Code.Temporary() && res.Code != ilp.CodeTransferTimedOut {
				return received(), fmt.Errorf("%w: rejected with %s", ErrShort, res.Code)
			}
		}
		if !sleep(ctx, pullTick) {
			return received(), ErrShort
		}
	}
}

// pullSecret gives the secret of an address over which we pull.
func (b *Bridge) pullSecret(segment string) (envelope.Secret, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	secret, ok := b.pulls[segment]
	return secret, ok
}
