package paystream

import (
	"errors"
	"math"
	"time"

	"github.com/tallystick/tally"
)

// Bounds of application data. Those of a stream and of how many there are belong
// to the protocol.
const (
	// maxStreams bounds the streams that one end has opened and that are not over
	// at this end.
	maxStreams = 64
	// streamWindow bounds the bytes of one stream that wait to be read at their
	// reader, and those that wait to be acked at their writer.
	streamWindow = 256 << 10
	// socketData bounds the memory of all streams of one socket, both ways.
	socketData = 4 << 20
	// endpointData bounds that of all sockets of an endpoint.
	endpointData = 64 << 20
	// maxGaps bounds the pieces of a stream that arrived before what lies ahead of
	// them.
	maxGaps = 64
	// smallBuffer is what an empty stream keeps for its next piece.
	smallBuffer = 4 << 10

	// maxPieces and maxCredits bound the frames of streams in one packet;
	// pieceOverhead is what a Data frame is longer than its data.
	maxPieces     = 4
	maxCredits    = 8
	maxShares     = 8
	pieceOverhead = 40

	// Packets with data in flight: firstData at first, one more for each that is
	// acked until the first loss, then one more a round trip, at most maxDataFlight.
	// A loss halves.
	firstData     = 8
	maxDataFlight = 256
	// minDataWait is the least time after which a packet without an answer counts as
	// lost.
	minDataWait = time.Second

	// maxOffset bounds a stream.
	maxOffset = math.MaxInt64
)

// Errors of streams.
var (
	// ErrStreamReset: the session of the socket is over. What the peer had not acked
	// may not have arrived.
	ErrStreamReset = errors.New("paystream: the streams ended, because one end has restarted or forgotten the socket; open new ones")
	// ErrStreamClosed: this end of the stream is closed.
	ErrStreamClosed = errors.New("paystream: stream is closed")
	// ErrReaderGone: the peer reads no more of the stream.
	ErrReaderGone = errors.New("paystream: the peer has closed the stream and reads no more")
	// ErrDataMemory: the streams of this node hold all the memory they may.
	ErrDataMemory = errors.New("paystream: streams hold all the memory they may; read or close some")
)

// Streams are the streams of one socket at one end, for the time of one pair of
// sessions. It is pure: it fills packets and takes what they brought, and knows
// nothing of money but how a packet's amount is shared out.
//
// A piece of data travels in a prepare, with money or without. Any authentic reply
// acks it, fulfil or reject, but for one that says "again"; whatever else becomes of
// the packet, the piece is sent once more. Pieces name their place, so one that
// arrives twice does nothing.
type Streams struct {
	role Role
	all  map[uint64]*stream
	// order is all streams, in the order in which they may fill the next packet.
	order []*stream
	// ownNext is the id of the next stream that we open, peerNext of the next one
	// that the peer does. A stream below them that is not in all is over.
	ownNext, peerNext uint64
	own, peers        int // of all, by who opened them
	accept            []*stream
	// taking: this end takes data, and says so. told: the peer has heard it;
	// telling: a packet that says it is in flight.
	taking, told, telling bool
	news                  bool
	// first is how much of each stream the peer takes before it says more; 0: it
	// takes no data.
	first uint64

	// more asks for n more bytes of the endpoint's memory; below 0 it gives back.
	more func(n int) bool
	held int // Invariant: the capacity of all buffers, <= socketData

	flight   []*load // packets with data, the oldest first
	window   uint32
	acks     uint32
	slow     bool
	cutAt    time.Duration
	failures uint8
	retryAt  time.Duration
	trip     time.Duration // smoothed round trip

	sent, received uint64 // bytes acked, bytes read or ready to be read
}

// stream is both halves of one.
type stream struct {
	id uint64
	// wait is closed when anything that a caller may wait for has changed; nil
	// where nobody waits.
	wait chan struct{}
	err  error // why it is over before its time

	// The half that is written: buf holds [base, base+len).
	out struct {
		buffer
		base, next, limit uint64
		acked, lost       spans // above base
		closed            bool  // no more is written
		finDue, finAcked  bool
		gone              bool // the peer reads no more
	}
	// The half that is read: buf begins at read.
	in struct {
		buffer
		read      uint64
		got       spans // from read on
		end       uint64
		ended     bool   // end is known
		limit     uint64 // what the peer may send
		confirmed uint64 // what of limit it surely knows
		telling   bool   // a packet that tells it is in flight
		gone      bool   // nobody reads it any more
		goneTold  bool
	}
	shares         uint64 // of the money that we send
	sent, received tally.Amount
}

// buffer is bytes with room in front, so that taking from it moves nothing.
type buffer struct {
	b    []byte
	head int
}

func (b *buffer) bytes() []byte { return b.b[b.head:] }

// load is what a packet carries of streams, until it is answered.
type load struct {
	pieces  []piece
	credits []told
	shares  []MoneyFrame
	first   bool // it says that we take data
	late    bool // it counts as lost
	at      time.Duration
}

type piece struct {
	s *stream
	span
	fin bool
}

type told struct {
	s     *stream
	limit uint64
	gone  bool
}

func newStreams(role Role, more func(int) bool) Streams {
	s := Streams{role: role, more: more}
	s.restart()
	return s
}

// Reset ends all streams, and begins again in a new pair of sessions. What has
// arrived in order can still be read by who holds the stream, and is no longer
// counted.
func (s *Streams) Reset(why error) {
	for _, st := range s.order {
		kept := st.in.buffer
		s.free(&st.in.buffer)
		s.free(&st.out.buffer)
		st.in.buffer, st.err = kept, why
		st.wake()
	}
	s.restart()
}

// End is Reset for good: what the peer had opened can still be accepted.
func (s *Streams) End(why error) {
	waiting := s.accept
	s.Reset(why)
	s.accept, s.taking = waiting, false
}

func (s *Streams) restart() {
	*s = Streams{
		role: s.role, more: s.more, taking: s.taking, held: s.held, sent: s.sent, received: s.received,
		window: firstData, slow: true, ownNext: uint64(s.role), peerNext: uint64(s.role.other()),
	}
}

// Take says that this end takes data.
func (s *Streams) Take() { s.taking = true }

// Takes reports whether the peer takes data and one more stream fits.
func (s *Streams) Takes() bool { return s.first > 0 && s.own < maxStreams }

// Live reports whether any stream is not over.
func (s *Streams) Live() bool { return len(s.order) > 0 }

// Open begins a stream; Takes has to hold.
func (s *Streams) Open() *stream {
	st := s.add(s.ownNext)
	s.ownNext += 2
	s.own++
	return st
}

func (s *Streams) add(id uint64) *stream {
	st := &stream{id: id}
	st.out.limit = s.first
	st.in.limit, st.in.confirmed = streamWindow, streamWindow
	if s.all == nil {
		s.all = make(map[uint64]*stream)
	}
	s.all[id] = st
	s.order = append(s.order, st)
	return st
}

// Accept returns the next stream that the peer has opened, or nil.
func (s *Streams) Accept() *stream {
	if len(s.accept) == 0 {
		return nil
	}
	st := s.accept[0]
	s.accept = s.accept[1:]
	return st
}

// find returns the stream of a frame of the peer. It opens those that the peer may
// open. With over the frame is of a stream that has ended; without it and without a
// stream the peer may not open it, or not yet.
func (s *Streams) find(id uint64) (st *stream, over bool) {
	if st := s.all[id]; st != nil {
		return st, false
	}
	switch {
	case id == 0 || !s.taking:
		return nil, false
	case id%2 == uint64(s.role)%2:
		return nil, id < s.ownNext
	case id < s.peerNext:
		return nil, true
	case (id-s.peerNext)/2 >= uint64(maxStreams-s.peers):
		return nil, false
	}
	for s.peerNext <= id {
		st = s.add(s.peerNext)
		s.accept, s.news = append(s.accept, st), true
		s.peerNext += 2
		s.peers++
	}
	return st, false
}

// DataReport is what streams have moved.
type DataReport struct {
	// Streams are those that are not over, Waiting those of them that were not
	// accepted.
	Streams, Waiting int
	// Sent is bytes that the peer acked, Received those that arrived in order.
	Sent, Received uint64
	// Held is the memory that they take.
	Held int
}

// Report returns the figures.
func (s *Streams) Report() DataReport {
	return DataReport{Streams: len(s.order), Waiting: len(s.accept), Sent: s.sent, Received: s.received, Held: s.held}
}

// Check returns the first invariant that is broken.
func (s *Streams) Check() error {
	held, own := 0, 0
	for _, st := range s.order {
		in, o := &st.in, &st.out
		held += cap(in.b) + cap(o.b)
		if st.id%2 == uint64(s.role)%2 {
			own++
		}
		end := o.base + uint64(len(o.bytes()))
		switch {
		case s.all[st.id] != st:
			return errors.Join(ErrInvariant, errors.New("stream that is not found"))
		case len(in.bytes()) > streamWindow, len(o.bytes()) > streamWindow:
			return errors.Join(ErrInvariant, errors.New("stream-window"))
		case len(in.got) > maxGaps+1, len(o.lost) > maxDataFlight*maxPieces:
			return errors.Join(ErrInvariant, errors.New("gaps"))
		case !o.gone && (o.next < o.base || o.next > end), in.confirmed > in.limit:
			return errors.Join(ErrInvariant, errors.New("stream-order"))
		case !in.gone && len(in.got) > 0 && (in.got[0].from < in.read || in.got[len(in.got)-1].to > in.limit):
			return errors.Join(ErrInvariant, errors.New("credit"))
		}
	}
	switch {
	case held != s.held, s.held > socketData:
		return errors.Join(ErrInvariant, errors.New("data-memory"))
	case len(s.all) != len(s.order), own != s.own, len(s.order)-own != s.peers, s.own > maxStreams, s.peers > maxStreams:
		return errors.Join(ErrInvariant, errors.New("streams"))
	}
	return nil
}
