package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/swap"
)

// counting says how the messages of a flow get into the books.
type counting int

const (
	countNothing counting = iota // the limit
	countEach                    // one Debit and one Credit a message
	countBursts                  // one Debit for what is there, one Credit a Write
)

// perBatch is the number of messages in one Write of the batched flows.
const perBatch = 32

// burst bounds what the receiver of countBursts takes before it books.
const burst = 64

// flow is one stream from a consumer of messages' work to the one who does it:
// the sender is served, so it credits, and the receiver debits. It carries
// rounds; the receiver reports each.
type flow struct {
	from, to *party
	stream   network.Stream
	count    counting
	buf      []byte
	perWrite int
	rounds   chan flowRound
}

type flowRound struct {
	messages int
	took     time.Duration
	err      error
}

func newFlow(ctx context.Context, from, to *party, count counting, perWrite int) (*flow, error) {
	f := &flow{from: from, to: to, count: count, buf: frames(perWrite), perWrite: perWrite, rounds: make(chan flowRound, 1)}
	var err error
	f.stream, err = from.newStream(ctx, to, f.receive)
	return f, err
}

func (f *flow) close() error { return f.stream.Close() }

// receive counts until the stream ends.
func (f *flow) receive(s network.Stream) {
	defer s.Close()
	r := newReader(s, readBuffer)
	for {
		round := f.receiveRound(r)
		if errors.Is(round.err, io.EOF) {
			return
		}
		f.rounds <- round
		if round.err != nil {
			return
		}
	}
}

func (f *flow) receiveRound(r reader) (round flowRound) {
	var begin time.Time
	unbooked := tally.Amount(0)
	for {
		mark, err := r.next()
		if err != nil {
			round.err = err
			return round
		}
		if round.messages == 0 {
			begin = time.Now()
		}
		round.messages++
		unbooked++
		if f.count == countEach || f.count == countBursts && (unbooked == burst || mark == bodyLast || !r.buffered()) {
			// Delivered is booked even where the tab is full; the sender stops
			// at the same figure.
			if err := f.to.book.Debit(f.from.id(), service, unbooked); err != nil && !errors.Is(err, swap.ErrOverThreshold) {
				round.err = err
				return round
			}
			unbooked = 0
		}
		if mark == bodyLast {
			round.took = time.Since(begin)
			return round
		}
	}
}

// run sends for d and returns the messages in a second, as the receiver saw it.
func (f *flow) run(ctx context.Context, d time.Duration) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, d+time.Minute)
	defer cancel()
	for begin := time.Now(); ; {
		last := time.Since(begin) >= d
		setLast(f.buf, last)
		if err := f.write(ctx); err != nil {
			return 0, err
		}
		if last {
			break
		}
	}
	select {
	case round := <-f.rounds:
		return float64(round.messages) / round.took.Seconds(), round.err
	case <-ctx.Done():
		return 0, fmt.Errorf("no report from the receiver: %w", ctx.Err())
	}
}

// write sends one batch, in pieces where the tab is full in between.
func (f *flow) write(ctx context.Context) error {
	for rest := f.buf; len(rest) > 0; {
		n, full, err := f.credit(ctx, len(rest)/frameSize)
		if err != nil {
			return err
		}
		if _, err := f.stream.Write(rest[:n*frameSize]); err != nil {
			return err
		}
		rest = rest[n*frameSize:]
		if full {
			if err := awaitRoom(ctx, f.from.book, f.to.id()); err != nil {
				return err
			}
		}
	}
	return nil
}

// credit books up to n messages and says how many, and whether the tab is full.
func (f *flow) credit(ctx context.Context, n int) (booked int, full bool, err error) {
	switch f.count {
	case countEach:
		for i := range n {
			err := f.from.book.Credit(f.to.id(), service, 1)
			if errors.Is(err, swap.ErrOverThreshold) {
				return i + 1, true, nil
			}
			if err != nil {
				return i, false, err
			}
		}
	case countBursts:
		h, err := f.from.book.Reserve(context.WithoutCancel(ctx), f.to.id(), service, swap.Consume, tally.Amount(n))
		if err != nil {
			return 0, false, err
		}
		return n, false, h.Commit(tally.Amount(n))
	}
	return n, false, nil
}

// awaitRoom waits for the settlement that makes headroom.
func awaitRoom(ctx context.Context, book *swap.Book, p peer.ID) error {
	h, err := book.Reserve(ctx, p, service, swap.Consume, 1)
	if err != nil {
		return err
	}
	return h.Release()
}

// benchPair measures messages from one host to another.
func benchPair(ctx context.Context, o *Options) (figures []Figure, err error) {
	o.say("pair: thresholds 10^6 and 1.25·10^6")
	m, cheques, err := pairOf(ctx, o, wide(), []flowKind{
		{countNothing, perBatch},
		{countEach, perBatch},
		{countBursts, perBatch},
		{countNothing, 1},
		{countEach, 1},
	})
	if err != nil {
		return nil, err
	}
	const (
		bare     = "the same stream, 32 messages a Write, nobody counts"
		bareEach = "the same stream, one message a Write, nobody counts"
	)
	figures = []Figure{
		rate("pair/batched", "messages/s", m[1], m[0], bare, 1.2e6).note("32 messages a Write; one Credit and one Debit for each message").withCPU(m[1], m[0]),
		rate("pair/batched-bursts", "messages/s", m[2], m[0], bare, 1.2e6).wantRatio(0.9).
			note("32 messages a Write; one Reserve and Commit for a Write, one Debit for what arrived together").withCPU(m[2], m[0]),
		rate("pair/single", "messages/s", m[4], m[3], bareEach, 165e3).wantRatio(0.9).
			note("one message a Write; one Credit and one Debit for each message").withCPU(m[4], m[3]),
	}
	for i := range figures {
		figures[i] = figures[i].with("payment_threshold", 1_000_000).with("cheques", cheques)
	}
	o.say("pair: default thresholds")
	m, cheques, err = pairOf(ctx, o, swap.Policy{}, []flowKind{
		{countNothing, perBatch}, {countEach, perBatch}, {countNothing, 1}, {countEach, 1},
	})
	if err != nil {
		return nil, err
	}
	for _, f := range []Figure{
		rate("pair/batched/default-thresholds", "messages/s", m[1], m[0], bare, 0).withCPU(m[1], m[0]),
		rate("pair/single/default-thresholds", "messages/s", m[3], m[2], bareEach, 0).withCPU(m[3], m[2]),
	} {
		figures = append(figures, f.with("payment_threshold", 100).with("cheques", cheques).
			note("a cheque every 100 messages, and nothing is sent until it is acked"))
	}
	return figures, nil
}

type flowKind struct {
	count    counting
	perWrite int
}

func pairOf(ctx context.Context, o *Options, policy swap.Policy, kinds []flowKind) (all []series, cheques uint64, err error) {
	dir, remove, err := o.folder()
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	a, b, err := newPair(ctx, dir, policy)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, a.close(), b.close()) }()
	probes := make([]probe, len(kinds))
	for i, k := range kinds {
		f, err := newFlow(ctx, a, b, k.count, k.perWrite)
		if err != nil {
			return nil, 0, err
		}
		defer f.close()
		// The first bytes open the stream at the other end, before the next flow
		// takes the protocol's handler.
		if _, err := f.run(ctx, 0); err != nil {
			return nil, 0, err
		}
		probes[i] = f.run
	}
	all, err = rounds(ctx, o, probes...)
	return all, a.book.Stats().ChequesAcked, err
}
