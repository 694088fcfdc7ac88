package endpoint

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/compat"
	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
)

const (
	// packetTime is how long a packet of ours may take.
	packetTime = 30 * time.Second
	// minTime is what a packet must have left when it arrives: booking takes time,
	// and the hop before us refuses a fulfilment that comes too late.
	minTime = time.Second
	// tokenSize is the length of a token that we draw.
	tokenSize = 18
	// maxToken bounds the token of an address that is asked for, in base64: no
	// implementation comes near.
	maxToken = 256
)

var (
	// ErrConfig: a configuration that cannot work.
	ErrConfig = errors.New("endpoint: configuration")
	// ErrWrongFulfilment: the packet was answered with a fulfilment that does not
	// open its condition. The handler it was given to is faulty; nothing was paid.
	ErrWrongFulfilment = errors.New("endpoint: wrong fulfilment: the handler is faulty")
	// ErrAmount: an amount of 2^63 or more.
	ErrAmount = errors.New("endpoint: amount of 2^63 or more")
)

// RejectError says that a packet was rejected for good.
type RejectError struct {
	Reject *ilp.Reject
	// Authentic: the peer says so, not a hop on the way.
	Authentic bool
}

// Error says who rejected, and why.
func (e *RejectError) Error() string {
	return fmt.Sprintf("endpoint: rejected with %s by %q: %s", e.Reject.Code, e.Reject.TriggeredBy, e.Reject.Message)
}

// Journal keeps, over restarts, which envelopes of ours are undecided. A node that
// forgets one could be paid with its own packet; see envelope.Guard.
type Journal interface {
	// Sent has saved the mark when it returns. On an error nothing is sent.
	Sent(envelope.Mark) error
	// Decided may forget the mark.
	Decided(envelope.Mark)
}

// Peer is where to send, and the secret shared with it.
type Peer struct {
	Address ilp.Address
	Secret  envelope.Secret
}

// link sends sealed packets and knows its own when they come back.
type link struct {
	via     compat.Handler
	journal Journal // may be nil

	mu    sync.Mutex // guards guard
	guard *envelope.Guard
}

func newLink(via compat.Handler, journal Journal, undecided iter.Seq[envelope.Mark]) *link {
	l := &link{via: via, journal: journal, guard: envelope.NewGuard(envelope.MaxUndecided)}
	if undecided != nil {
		l.guard.Restore(undecided)
	}
	return l
}

// inTime reports whether p leaves time to be booked and fulfilled.
func inTime(p *ilp.Prepare) bool { return time.Until(p.ExpiresAt) >= minTime }

// reflected reports whether an incoming envelope is an undecided one of ours.
func (l *link) reflected(env []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.guard.Reflected(env)
}

// send seals plain for a packet of the amount and returns the reply with its plain
// text, which is nil where the reply carries none that opens. A probe has a random
// condition, which nobody can fulfil.
func (l *link) send(ctx context.Context, keys *envelope.Keys, to ilp.Address, amount tally.Amount, plain []byte, probe bool) (ilp.Reply, []byte, error) {
	if _, err := amount.Balance(); err != nil {
		return nil, nil, ErrAmount
	}
	var iv [envelope.IVSize]byte
	_, _ = rand.Read(iv[:]) // never fails
	env, err := keys.Seal(make([]byte, 0, envelope.Overhead+len(plain)+16), iv, plain)
	if err != nil {
		return nil, nil, err
	}
	p := &ilp.Prepare{Amount: amount, ExpiresAt: time.Now().Add(packetTime), Destination: to, Data: env}
	if probe {
		_, _ = rand.Read(p.Condition[:])
	} else {
		p.Condition = keys.Fulfilment(env).Condition()
	}
	l.mu.Lock()
	mark, err := l.guard.Add(env)
	l.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	defer l.decided(mark)
	if l.journal != nil {
		if err := l.journal.Sent(mark); err != nil {
			return nil, nil, fmt.Errorf("journal a packet: %w", err)
		}
		defer l.journal.Decided(mark)
	}
	// A packet on the way is decided whatever becomes of the caller: one that is
	// given up could be fulfilled all the same.
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), p.ExpiresAt)
	defer cancel()
	reply := l.via.Prepare(ctx, p)
	var data []byte
	switch r := reply.(type) {
	case *ilp.Fulfil:
		if !r.Fulfilment.Opens(p.Condition) {
			return nil, nil, ErrWrongFulfilment
		}
		data = r.Data
	case *ilp.Reject:
		data = r.Data
	}
	opened, err := keys.Open(data)
	if err != nil {
		return reply, nil, nil // a hop's reject, or one without data
	}
	return reply, opened, nil
}

func (l *link) decided(m envelope.Mark) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.guard.Remove(m)
}

// seal seals the plain text of a reply. It cannot be too long: a reply has a few
// frames.
func seal(keys *envelope.Keys, plain []byte) ([]byte, error) {
	var iv [envelope.IVSize]byte
	_, _ = rand.Read(iv[:]) // never fails
	return keys.Seal(nil, iv, plain)
}

func newToken() []byte {
	token := make([]byte, tokenSize)
	_, _ = rand.Read(token) // never fails
	return token
}

// tokenOf returns the first segment of to under base, and the bytes that it is
// base64 of.
func tokenOf(to, base ilp.Address) (segment string, token []byte, ok bool) {
	rest, ok := to.Under(base)
	if !ok {
		return "", nil, false
	}
	for i := range len(rest) {
		if rest[i] == '.' {
			rest = rest[:i]
			break
		}
	}
	if rest == "" || len(rest) > maxToken {
		return "", nil, false
	}
	token, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	return rest, token, err == nil
}

func segmentOf(token []byte) string { return base64.RawURLEncoding.EncodeToString(token) }
