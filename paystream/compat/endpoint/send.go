package endpoint

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
	"github.com/tallystick/tally/paystream/compat/stream1"
)

const (
	retryFirst = 50 * time.Millisecond
	retryMost  = 5 * time.Second
	stallAfter = 10 * time.Second

	maxProbe = 1_000_000_000 // the largest amount that a probe names
)

var (
	// ErrStalled: nothing has arrived for ten seconds. What was sent until then is
	// in the result.
	ErrStalled = errors.New("endpoint: no progress for 10 s: the peer takes no more, or the path is blocked")
	// ErrClosed: the peer has closed the connection or the stream.
	ErrClosed = errors.New("endpoint: closed by the peer")
	// ErrNoRate: no probe told what arrives.
	ErrNoRate = errors.New("endpoint: no probe came back: the peer cannot be reached, or has another secret")
	// ErrSealed: as many packets as may be sealed under one secret. Open another
	// connection.
	ErrSealed = errors.New("endpoint: connection has sent as many packets as it may: open another")
)

// Rate is what arrives of what is sent, as measured: Delivered of Sent.
type Rate struct{ Delivered, Sent tally.Amount }

// times returns a at the rate, rounded down and at most the largest Amount.
func (r Rate) times(a tally.Amount) tally.Amount { return mulDivMost(a, r.Delivered, r.Sent) }

// inverse returns what has to be sent for a to arrive, rounded down.
func (r Rate) inverse(a tally.Amount) tally.Amount { return mulDivMost(a, r.Sent, r.Delivered) }

func mulDivMost(a, b, c tally.Amount) tally.Amount {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi >= uint64(c) {
		return tally.MaxAmount
	}
	q, _ := bits.Div64(hi, lo, uint64(c))
	return tally.Amount(q)
}

// Dial returns a connection to a peer. Nothing is sent yet. Close ends it.
func (e *Stream) Dial(to Peer) (*Conn, error) {
	if err := to.Address.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if e.cfg.Via == nil {
		return nil, fmt.Errorf("%w: this endpoint only receives", ErrConfig)
	}
	c := newConn(e, segmentOf(newToken()), stream1.NewKeys(to.Secret))
	c.peer = to.Address
	return e.enter(c)
}

// Close tells the peer, and forgets the connection.
func (c *Conn) Close(ctx context.Context) {
	c.mu.Lock()
	c.closed = true // a Send at work ends at its next packet
	c.mu.Unlock()
	// The answer does not matter: the peer forgets an idle connection.
	_, _, _ = c.exchange(ctx, 0, 0, true, stream1.ConnectionClose{Code: stream1.CodeNoError})
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	delete(c.e.conns, c.segment)
}

// SendOptions bound what Send does. The zero value takes the measured rate less
// 1 %.
type SendOptions struct {
	// Least is the worst rate to accept; zero: the measured one less 1 %. It is
	// fixed when Send begins.
	Least Rate
	// MaxPacket is the most that one packet may carry; zero: no bound of ours.
	MaxPacket tally.Amount
	// UntilFull ends Send, without an error, where the peer takes no more: the amount
	// is then the most to send.
	UntilFull bool
}

// Sent is what became of a Send.
type Sent struct {
	Sent      tally.Amount // taken by the next hop for good
	Delivered tally.Amount // what the peer says it got; at least the floor of each packet
	Packets   uint64
}

// Send sends an amount on the connection's one stream, and returns what was sent
// also where it returns an error.
func (c *Conn) Send(ctx context.Context, amount tally.Amount, o SendOptions) (Sent, error) {
	var res Sent
	select {
	case c.sending <- struct{}{}:
		defer func() { <-c.sending }()
	case <-ctx.Done():
		return res, ctx.Err()
	}
	if _, err := amount.Balance(); err != nil {
		return res, ErrAmount
	}
	rate, most, err := c.probe(ctx, amount)
	if err != nil {
		return res, err
	}
	if o.MaxPacket > 0 {
		most = min(most, o.MaxPacket)
	}
	least := o.Least
	if least.Sent == 0 {
		// 99 in a hundred, exact up to the largest probe.
		least = Rate{Delivered: rate.Delivered * 99, Sent: rate.Sent * 100}
	}
	delay, progress := retryFirst, time.Now()
	// What arrives of n is not always in proportion: limit and extra follow what the
	// last packet told, where its amount was too much for the peer, or less than the
	// fees.
	limit, extra := tally.MaxAmount, tally.Amount(1)
	for res.Sent < amount {
		room, open := c.room()
		if !open {
			return res, ErrClosed
		}
		if room == 0 && o.UntilFull {
			return res, nil
		}
		n := min(amount-res.Sent, most)
		if room == 0 {
			n = 0
		} else {
			n = min(n, limit, rate.inverse(room).SaturatingAdd(extra))
		}
		floor := least.times(n)
		var frames []stream1.Frame
		if n > 0 {
			frames = []stream1.Frame{stream1.StreamMoney{ID: sendStream, Shares: uint64(n)}}
		}
		reply, answer, err := c.exchange(ctx, n, floor, false, frames...)
		if err != nil {
			return res, err
		}
		res.Packets++
		if _, ok := reply.(*ilp.Fulfil); ok && n > 0 {
			res.Sent += n
			got := floor // sealed: the peer fulfils no less
			if answer != nil {
				got = max(got, answer.Amount)
			}
			res.Delivered = res.Delivered.SaturatingAdd(got)
			delay, progress = retryFirst, time.Now()
			limit, extra = tally.MaxAmount, 1
			continue
		}
		if time.Since(progress) < stallAfter {
			if now, _ := c.room(); answer != nil && answer.Amount > now && now > 0 && n > 1 {
				limit = max(n.SaturatingSub(answer.Amount-now), 1)
				continue
			}
			if j, ok := reply.(*ilp.Reject); ok && j.Code == ilp.CodeInsufficientSource && answer == nil && n < min(amount-res.Sent, most, limit) {
				extra = extra.SaturatingAdd(extra)
				continue
			}
		}
		if j, ok := reply.(*ilp.Reject); ok {
			if most, err = smaller(j, answer, n, most); err != nil {
				return res, err
			}
		}
		if time.Since(progress) >= stallAfter {
			return res, ErrStalled
		}
		if err := wait(ctx, delay); err != nil {
			return res, err
		}
		delay = min(2*delay, retryMost)
	}
	return res, nil
}

// smaller returns the largest packet to try after a reject, or why to stop.
func smaller(j *ilp.Reject, answer *stream1.Packet, n, most tally.Amount) (tally.Amount, error) {
	switch {
	case answer != nil: // the peer's limits, which exchange has taken
		return most, nil
	case j.Code == ilp.CodeAmountTooLarge:
		// A hop's word is not authentic: it lowers what we try, never raises it.
		next := n / 2
		if l, err := ilp.DecodeTooLarge(j.Data); err == nil && l.Received > l.Maximum {
			next = min(mulDivMost(n, l.Maximum, l.Received), n-1)
		}
		if n == 0 || next == 0 {
			return 0, &RejectError{Reject: j}
		}
		return next, nil
	case j.Code == ilp.CodeInsufficientLiquidity:
		return max(min(most, n)/2, 1), nil
	case j.Code.Temporary(), j.Code == ilp.CodeTransferTimedOut:
		return most, nil
	}
	return 0, &RejectError{Reject: j}
}

// room returns what the peer still takes, in its units, and whether the stream is
// open.
func (c *Conn) room() (tally.Amount, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.remote.max.SaturatingSub(c.remote.received), !c.remote.closed && !c.closed
}

// probe measures the rate with packets that nobody can fulfil, each a thousand
// times the one before, up to about the amount to send.
func (c *Conn) probe(ctx context.Context, amount tally.Amount) (Rate, tally.Amount, error) {
	var best Rate
	most := tally.Amount(1<<63 - 1)
	var last *ilp.Reject
	for n := tally.Amount(1); n <= maxProbe; n *= 1000 {
		reply, answer, err := c.exchange(ctx, n, 0, true)
		if err != nil {
			return Rate{}, 0, err
		}
		j, ok := reply.(*ilp.Reject)
		if !ok {
			return Rate{}, 0, ErrWrongFulfilment
		}
		switch {
		case answer != nil:
			if answer.Amount > 0 && answer.Amount <= tally.MaxAmount/100 {
				best = Rate{Delivered: answer.Amount, Sent: n}
			}
		case j.Code == ilp.CodeAmountTooLarge || j.Code.Temporary():
			last = j
			if n > 1 {
				if most, err = smaller(j, nil, n, most); err != nil {
					return Rate{}, 0, err
				}
			}
		case j.Code == ilp.CodeInsufficientSource && n < amount: // less than the fees: a larger one tells
		default:
			return Rate{}, 0, &RejectError{Reject: j}
		}
		if n >= amount && n >= 1000 || last != nil {
			break
		}
	}
	if best.Sent == 0 && last != nil && most > 1 && most < maxProbe {
		// The small ones were less than the fees, and the next too large: as much as
		// a hop said that it lets through.
		_, answer, err := c.exchange(ctx, most, 0, true)
		if err != nil {
			return Rate{}, 0, err
		}
		if answer != nil && answer.Amount > 0 {
			best = Rate{Delivered: answer.Amount, Sent: most}
		}
	}
	if best.Sent == 0 {
		if last != nil {
			return Rate{}, 0, &RejectError{Reject: last}
		}
		return Rate{}, 0, ErrNoRate
	}
	return best, most, nil
}

// exchange sends one packet and takes what the answer tells. answer is nil where
// the reply is a hop's, or answers another packet.
func (c *Conn) exchange(ctx context.Context, n, floor tally.Amount, probe bool, frames ...stream1.Frame) (ilp.Reply, *stream1.Packet, error) {
	c.mu.Lock()
	if c.sealed >= envelope.MaxSealed {
		c.mu.Unlock()
		return nil, nil, ErrSealed
	}
	c.sealed++
	q := stream1.Packet{Type: ilp.TypePrepare, Sequence: c.sealed, Amount: floor}
	if !c.told {
		if own, err := c.e.cfg.Address.Join(c.segment); err == nil {
			q.Frames = append(q.Frames, stream1.NewAddress{Address: own},
				stream1.AssetDetails{Code: c.e.cfg.AssetCode, Scale: c.e.cfg.AssetScale})
		}
	}
	c.used = time.Now()
	c.mu.Unlock()
	q.Frames = append(q.Frames, frames...)
	plain, err := q.Append(nil)
	if err != nil {
		return nil, nil, err
	}
	reply, opened, err := c.e.link.send(ctx, c.keys, c.peer, n, plain, probe)
	if err != nil {
		return nil, nil, err
	}
	want := ilp.TypeReject
	if _, ok := reply.(*ilp.Fulfil); ok {
		want = ilp.TypeFulfil
	}
	answer, err := stream1.DecodePacket(opened)
	if err != nil || answer.Sequence != q.Sequence || answer.Type != want {
		return reply, nil, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told = true
	c.control(answer.Frames)
	return reply, answer, nil
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
