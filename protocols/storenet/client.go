package storenet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/protocols/internal/wire"
)

const (
	// maxAnswerBytes bounds one response that we read: what js-waku takes, too.
	// A server of ours sends no more than 1 MiB.
	maxAnswerBytes = 4 << 20

	// maxEmptyPages bounds the pages in a row that hold nothing and yet promise
	// more. A server that filters after its limit may send a few.
	maxEmptyPages = 16

	// maxWait and minWait bound the back-off after a 402 or 429.
	minWait = 200 * time.Millisecond
	maxWait = 5 * time.Second
)

var (
	// ErrUnsupported: the peer speaks neither store protocol, or not the one
	// that this query needs.
	ErrUnsupported = errors.New("storenet: peer does not serve this query")

	// ErrAnswer: the peer's answer does not fit the query. The text says how.
	// Stop asking it.
	ErrAnswer = errors.New("storenet: peer's answer does not fit the query")

	// ErrTooMany is an ErrAnswer: more messages than were asked for. Only what
	// was asked for is booked.
	ErrTooMany = fmt.Errorf("%w: more messages than asked for", ErrAnswer)

	// ErrNoProgress is an ErrAnswer: page after page that promises more and
	// brings nothing.
	ErrNoProgress = fmt.Errorf("%w: no progress", ErrAnswer)

	// ErrLost: the request left and no whole answer came. The other side may
	// have booked it; the next statement of the ledger tells.
	ErrLost = errors.New("storenet: no answer")
)

// RefusedError is what the peer said instead of a page.
type RefusedError struct {
	Remote peer.ID
	Status Status
	Desc   string // theirs, cut to 512 bytes; empty on 2.0.0-beta4
}

func (e *RefusedError) Error() string {
	text := fmt.Sprintf("storenet: %s refused: %d", e.Remote, e.Status)
	if e.Desc != "" {
		text += fmt.Sprintf(" (%q)", e.Desc)
	}
	switch e.Status {
	case StatusPaymentRequired:
		text += fmt.Sprintf("; settle with it (tally settle %s) and ask again", e.Remote)
	case StatusTooManyRequests:
		text += fmt.Sprintf("; it is busy, or our tab is full: settle with it (tally settle %s) or ask again later", e.Remote)
	}
	return text
}

// again tells whether asking again later can help.
func (e *RefusedError) again() bool {
	return e.Status == StatusPaymentRequired || e.Status == StatusTooManyRequests
}

// CreditError: our own ledger does not let us take more from this peer, and did
// not for as long as ctx allowed.
type CreditError struct {
	Remote peer.ID
	Units  tally.Amount
	Err    error
}

func (e *CreditError) Error() string {
	return fmt.Sprintf("storenet: no credit for %d units of %s: %v; settle with it (tally settle %s) or ask for smaller pages", e.Units, e.Remote, e.Err, e.Remote)
}

// Unwrap returns the ledger's error.
func (e *CreditError) Unwrap() error { return e.Err }

// Query asks for messages of a store, page by page.
type Query struct {
	Filter
	Backward bool // newest first
	PageSize int  // messages a request; 0: 20, the usual default
	Limit    int  // messages in all; 0: no limit
	NoData   bool // hashes only, 3.0.0 only

	// OnPage is called after each page, before the next is asked for. Nil is
	// allowed.
	OnPage func(messages int)
}

// Result is what a query did, also where it ended with an error.
type Result struct {
	Protocol protocol.ID
	Messages int          // handed out
	Pages    int          // answers with messages
	Units    tally.Amount // booked
}

// ClientConfig of a Client. The zero value asks without a tab.
type ClientConfig struct {
	// Meter is the tab that consumption is booked on. Nil books nothing.
	Meter Meter

	// MinWait and MaxWait bound the back-off after a refusal for payment or
	// load; it doubles from one to the other. Defaults 200 ms and 5 s.
	MinWait, MaxWait time.Duration

	// AnswerTimeout bounds the wait for the first byte of an answer, and the
	// time of the rest. Default 30 s each.
	AnswerTimeout time.Duration
}

// Client queries the stores of peers. Its methods may be called at the same
// time.
type Client struct {
	host host.Host
	cfg  ClientConfig
}

// NewClient returns a client on h, which it does not own.
func NewClient(h host.Host, cfg ClientConfig) *Client {
	if cfg.MinWait <= 0 {
		cfg.MinWait = minWait
	}
	if cfg.MaxWait <= 0 {
		cfg.MaxWait = maxWait
	}
	if cfg.AnswerTimeout <= 0 {
		cfg.AnswerTimeout = 30 * time.Second
	}
	return &Client{host: h, cfg: cfg}
}

// Query asks p for the messages of q and calls fn with each, oldest first or,
// backward, newest first. It follows the cursor to the end. fn runs on the
// caller's goroutine; its error ends the query and is returned. m is nil where
// only hashes were asked for, and is fn's to keep. Memory is bounded by one page.
//
// Every message is held against the query before fn sees it: topic, time, order,
// count, hash (where the protocol carries one).
//
// A full tab is waited for as long as ctx allows: at our side in Meter.Consume,
// at theirs (402, 429) with a back-off. Errors: CreditError, RefusedError (joined
// with ctx's where the wait was in vain), ErrAnswer, ErrLost, ErrUnsupported, or
// what the network says. What was handed out before stays booked.
func (c *Client) Query(ctx context.Context, p peer.ID, q Query, fn func(h Hash, m *Message) error) (Result, error) {
	if q.PageSize <= 0 {
		q.PageSize = DefaultLimits().DefaultPage
	}
	w := &walker{client: c, peer: p, query: q, size: q.PageSize, check: newChecker(&q)}
	err := w.run(ctx, fn)
	return w.result, err
}

// walker is one query under way.
type walker struct {
	client *Client
	peer   peer.ID
	query  Query
	size   int // page to ask for; shrinks where the tab is small
	check  *checker
	cursor cursor
	next   cursor // behind the last page
	single bool   // end after one page with messages
	result Result
}

func (w *walker) run(ctx context.Context, fn func(Hash, *Message) error) error {
	wait := w.client.cfg.MinWait
	empty := 0
	var refused *RefusedError // why the last request brought nothing
	for {
		ask := w.size
		if w.query.Limit > 0 {
			ask = min(ask, w.query.Limit-w.result.Messages)
		}
		page, err := w.page(ctx, ask)
		if said, ok := errors.AsType[*RefusedError](err); ok && said.again() && w.client.cfg.Meter != nil {
			refused = said
			if err := sleep(ctx, wait); err != nil {
				return fmt.Errorf("%w: %w", refused, err)
			}
			wait = min(2*wait, w.client.cfg.MaxWait)
			continue
		}
		if err != nil && refused != nil && ctx.Err() != nil {
			return fmt.Errorf("%w: %w", refused, err) // ctx ended one more try: the refusal is why
		}
		if err != nil {
			return err
		}
		refused, wait = nil, w.client.cfg.MinWait
		w.next = page.next
		if err := w.hand(page, fn); err != nil {
			return err
		}
		if len(page.entries) > 0 {
			w.result.Pages++
			empty = 0
			if w.query.OnPage != nil {
				w.query.OnPage(len(page.entries))
			}
		} else if empty++; page.next.set() && empty > maxEmptyPages {
			return fmt.Errorf("%w: %d empty pages with a cursor", ErrNoProgress, empty)
		}
		done := w.query.Limit > 0 && w.result.Messages >= w.query.Limit || w.single && len(page.entries) > 0
		if done || !page.next.set() {
			return nil
		}
		w.cursor = page.next
	}
}

// hand gives a page to fn, in the direction of the query.
func (w *walker) hand(page answer, fn func(Hash, *Message) error) error {
	if w.query.Backward {
		slices.Reverse(page.entries)
	}
	for _, e := range page.entries {
		if err := fn(e.Hash, e.Message); err != nil {
			return err
		}
		w.result.Messages++
	}
	return nil
}

// page asks for one page and books it. Whatever happens the reservation ends in
// exactly one of Commit, Release and Lost.
func (w *walker) page(ctx context.Context, ask int) (answer, error) {
	hold, ask, err := w.consume(ctx, ask)
	if err != nil {
		return answer{}, err
	}
	page, left, err := w.exchange(ctx, ask)
	var refused *RefusedError
	switch {
	case err == nil && len(page.entries) == 0:
		return page, hold.Release()
	case err == nil:
		return page, w.commit(hold, len(page.entries))
	case errors.Is(err, ErrLost): // an answer that could not be read
		return answer{}, errors.Join(err, hold.Lost())
	case errors.Is(err, ErrAnswer):
		// They count what they sent. We owe what we asked for, and no more.
		return answer{}, errors.Join(err, w.commit(hold, min(page.received, ask)))
	case errors.As(err, &refused), errors.Is(err, ErrUnsupported), !left:
		return answer{}, errors.Join(err, hold.Release())
	default:
		return answer{}, errors.Join(fmt.Errorf("%w: %w", ErrLost, err), hold.Lost())
	}
}

func (w *walker) commit(hold Hold, n int) error {
	if n == 0 {
		return hold.Release()
	}
	if err := hold.Commit(tally.Amount(n)); err != nil {
		return fmt.Errorf("book %d units from %s: %w", n, w.peer, err)
	}
	if w.client.cfg.Meter != nil {
		w.result.Units += tally.Amount(n)
	}
	return nil
}

// consume reserves ask units, or fewer where the tab can never hold as many.
func (w *walker) consume(ctx context.Context, ask int) (Hold, int, error) {
	if w.client.cfg.Meter == nil {
		return noHold{}, ask, nil
	}
	for {
		hold, err := w.client.cfg.Meter.Consume(ctx, w.peer, tally.Amount(ask))
		if err == nil {
			return hold, ask, nil
		}
		if !errors.Is(err, ErrHoldTooLarge) || ask == 1 {
			return nil, 0, &CreditError{Remote: w.peer, Units: tally.Amount(ask), Err: err}
		}
		ask /= 2
		w.size = ask
	}
}

// noHold is the reservation of a client without a tab.
type noHold struct{}

func (noHold) Commit(tally.Amount) error { return nil }
func (noHold) Release() error            { return nil }
func (noHold) Lost() error               { return nil }

// exchange is one stream: request out, response in, checked. left tells whether
// bytes of the request may have reached the peer.
func (w *walker) exchange(ctx context.Context, ask int) (page answer, left bool, err error) {
	ids := []protocol.ID{QueryID, HistoryID}
	if w.query.NoData || len(w.query.Hashes) > 0 {
		ids = ids[:1]
	}
	if w.result.Protocol != "" {
		ids = []protocol.ID{w.result.Protocol} // a cursor is good for one protocol
	}
	s, err := w.client.host.NewStream(ctx, w.peer, ids...)
	if err != nil {
		return answer{}, false, fmt.Errorf("open stream: %w", spoken(err))
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	defer func() {
		if err != nil {
			_ = s.Reset()
		} else {
			_ = s.Close()
		}
	}()
	if err := s.Scope().SetService(ServiceName); err != nil {
		return answer{}, false, fmt.Errorf("attach to service: %w", err)
	}
	if err := s.Scope().ReserveMemory(maxAnswerBytes, network.ReservationPriorityMedium); err != nil {
		return answer{}, false, fmt.Errorf("reserve %d bytes for an answer: %w", maxAnswerBytes, err)
	}
	defer s.Scope().ReleaseMemory(maxAnswerBytes)

	id := rand.Text()
	codec := codecs[s.Protocol()]
	out := wire.NewWriter(s, maxAnswerBytes)
	if err := out.WriteMsg(codec.request(id, &w.query, ask, w.cursor)); err != nil {
		return answer{}, false, err
	}
	if err := out.Flush(); err != nil {
		return answer{}, out.Written() > 0, w.ended(ctx, err)
	}
	_ = s.CloseWrite() // fails where the peer was quicker: what it answered counts
	in := wire.NewReader(s, maxAnswerBytes)
	in.SetTimeout(w.client.cfg.AnswerTimeout, w.client.cfg.AnswerTimeout)
	frame, err := in.ReadFrame()
	if errors.Is(err, wire.ErrFrameTooLarge) || errors.Is(err, wire.ErrGarbage) {
		return answer{}, true, fmt.Errorf("%w: %w: %w", ErrLost, ErrAnswer, err)
	}
	if err != nil {
		return answer{}, true, w.ended(ctx, err)
	}
	page, err = w.decode(codec, frame, id, ask)
	if err != nil {
		return page, true, err
	}
	w.result.Protocol = s.Protocol()
	return page, true, nil
}

// ended puts ctx's error first where it is why the stream was reset.
func (w *walker) ended(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return spoken(err)
}

// spoken adds ErrUnsupported to the errors with which go-libp2p says that the peer
// speaks none of the protocols. Where identify told that it does, the protocol is not
// agreed before the request leaves, and a peer that has stopped serving it says so
// only in place of the answer: with multistream's error, or by a reset.
func spoken(err error) error {
	_, none := errors.AsType[multistream.ErrNotSupported[protocol.ID]](err)
	if none || errors.Is(err, &network.StreamError{ErrorCode: network.StreamProtocolNegotiationFailed, Remote: true}) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// decode reads a response. The messages are counted before memory is taken for
// them: two bytes of an answer can be an empty message.
func (w *walker) decode(codec codec, frame []byte, id string, ask int) (answer, error) {
	received := codec.count(frame)
	if received > ask {
		return answer{received: received}, fmt.Errorf("%w: %d, asked %d", ErrTooMany, received, ask)
	}
	page, err := codec.response(frame, id, w.peer, &w.query)
	page.received = received
	if err == nil {
		err = w.check.page(page.entries, codec.hashes)
	}
	return page, err
}

// sleep waits d, or until ctx ends, which is its error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
