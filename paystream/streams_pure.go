package paystream

import (
	"errors"
	"math"
	"slices"
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

// grow makes room for n bytes in all, or reports that there is none.
func (s *Streams) grow(b *buffer, n int) bool {
	if b.head+n <= cap(b.b) {
		return true
	}
	if n <= cap(b.b) { // what was taken in front makes the room
		b.b = b.b[:copy(b.b[:cap(b.b)], b.bytes())]
		b.head = 0
		return true
	}
	size := min(max(n, 2*cap(b.b)), streamWindow)
	by := size - cap(b.b)
	if s.held+by > socketData || !s.more(by) {
		return false
	}
	s.held += by
	next := make([]byte, len(b.bytes()), size)
	copy(next, b.bytes())
	b.b, b.head = next, 0
	return true
}

func (s *Streams) free(b *buffer) {
	s.held -= cap(b.b)
	if n := cap(b.b); n > 0 {
		s.more(-n)
	}
	*b = buffer{}
}

// drop takes n bytes off the front.
func (s *Streams) drop(b *buffer, n int) {
	b.head += n
	if b.head < len(b.b) {
		return
	}
	b.b, b.head = b.b[:0], 0
	if cap(b.b) > smallBuffer {
		s.free(b)
	}
}

// Write takes what fits of p into st; 0 where that is nothing now.
func (s *Streams) Write(st *stream, p []byte) (n int, err error) {
	switch {
	case st.err != nil:
		return 0, st.err
	case st.out.gone:
		return 0, ErrReaderGone
	case st.out.closed:
		return 0, ErrStreamClosed
	}
	have := len(st.out.bytes())
	n = min(len(p), streamWindow-have)
	if uint64(n) > maxOffset-st.out.base-uint64(have) {
		return 0, ErrStreamClosed
	}
	if n == 0 {
		return 0, nil
	}
	if !s.grow(&st.out.buffer, have+n) {
		return 0, ErrDataMemory
	}
	st.out.b = append(st.out.b, p[:n]...)
	return n, nil
}

// CloseWrite ends the half that is written once all of it has arrived.
func (s *Streams) CloseWrite(st *stream) {
	if !st.out.closed && !st.out.gone && st.err == nil {
		st.out.closed, st.out.finDue = true, true
	}
}

// CloseRead throws away what is there and what comes, and tells the peer.
func (s *Streams) CloseRead(st *stream) {
	if st.in.gone || st.err != nil {
		return
	}
	st.in.gone = true
	s.free(&st.in.buffer)
	st.in.got = nil
	s.settle(st)
}

// Flushed reports whether all that was written, and the end where there is one, has
// been acked.
func (s *Streams) Flushed(st *stream) bool {
	return st.out.gone || len(st.out.bytes()) == 0 && (!st.out.closed || st.out.finAcked)
}

// Read moves what is ready into p; eof after the last byte.
func (s *Streams) Read(st *stream, p []byte) (n int, eof bool, err error) {
	if st.in.gone {
		return 0, false, ErrStreamClosed
	}
	n = copy(p, st.in.bytes()[:st.in.got.reach(st.in.read)-st.in.read])
	st.in.read += uint64(n)
	st.in.got = st.in.got.cut(span{0, st.in.read})
	if st.err != nil { // its memory is no longer counted
		st.in.head += n
		if eof = st.in.ended && st.in.read == st.in.end; n > 0 || eof {
			return n, eof, nil
		}
		return 0, false, st.err
	}
	s.drop(&st.in.buffer, n)
	if !st.in.ended {
		st.in.limit = max(st.in.limit, min(st.in.read+streamWindow, maxOffset))
	}
	eof = st.in.ended && st.in.read == st.in.end
	s.settle(st)
	return n, eof, nil
}

// settle forgets a stream of which both halves are over.
func (s *Streams) settle(st *stream) {
	in := st.in.ended && st.in.read == st.in.end || st.in.gone && (st.in.goneTold || st.in.ended)
	out := st.out.finAcked && len(st.out.bytes()) == 0 || st.out.gone
	if !in || !out || s.all[st.id] != st {
		return
	}
	s.free(&st.in.buffer)
	s.free(&st.out.buffer)
	delete(s.all, st.id)
	s.order = slices.DeleteFunc(s.order, func(o *stream) bool { return o == st })
	if st.id%2 == uint64(s.role)%2 {
		s.own--
		s.news = true
	} else {
		s.peers--
	}
}

func (st *stream) wake() {
	if st.wait != nil {
		close(st.wait)
		st.wait = nil
	}
}

// Hear takes what a fresh packet of the peer carries of streams. It reports whether
// not all of the data of a request was taken.
func (s *Streams) Hear(p *Packet, request bool) (again bool) {
	for _, f := range p.Credits {
		s.hearCredit(f)
	}
	if request {
		for i := range p.Data {
			if !s.hearData(&p.Data[i]) {
				again = true
			}
		}
	}
	return again
}

// News reports, once, whether there is something for those who wait to open or to
// accept a stream.
func (s *Streams) News() bool {
	news := s.news
	s.news = false
	return news
}

func (s *Streams) hearCredit(f CreditFrame) {
	if f.Stream == 0 {
		if s.first == 0 && f.Limit > 0 {
			s.first, s.news = min(f.Limit, maxOffset), true
			for _, st := range s.order {
				st.out.limit = max(st.out.limit, s.first)
			}
		}
		return
	}
	st := s.all[f.Stream]
	if st == nil {
		return
	}
	if f.End {
		st.out.gone = true
		s.free(&st.out.buffer)
		st.out.lost, st.out.acked = nil, nil
		s.settle(st)
	} else if f.Limit > st.out.limit {
		st.out.limit = min(f.Limit, maxOffset)
	}
	st.wake()
}

// hearData takes a piece; false where it has to be sent again.
func (s *Streams) hearData(f *DataFrame) bool {
	st, over := s.find(f.Stream)
	if st == nil {
		return over
	}
	in := &st.in
	end := f.Offset + uint64(len(f.Data)) // below 2^63 + 16 KiB
	switch {
	case in.gone:
		if f.Fin {
			in.ended = true
			s.settle(st)
		}
		return true
	case end > in.limit, in.ended && (end > in.end || f.Fin && end != in.end):
		return false
	}
	if n := len(in.got); f.Fin && n > 0 && in.got[n-1].to > end || f.Fin && in.read > end {
		return false
	}
	if end > in.read {
		from := max(f.Offset, in.read)
		if len(in.got) >= maxGaps && in.got.reach(in.read) < from {
			return false
		}
		need := int(end - in.read)
		if !s.grow(&in.buffer, need) {
			return false
		}
		if need > len(in.bytes()) {
			in.b = in.b[:in.head+need]
		}
		copy(in.bytes()[from-in.read:], f.Data[from-f.Offset:])
		ready := in.got.reach(in.read)
		in.got = in.got.add(span{from, end})
		s.received += in.got.reach(in.read) - ready
	}
	in.confirmed = max(in.confirmed, end) // what it sent, it knew it may
	if f.Fin {
		in.ended, in.end = true, end
	}
	st.wake()
	s.settle(st)
	return true
}

// creditDue reports whether the peer has to hear of more room.
func (st *stream) creditDue() bool {
	if st.in.telling {
		return false
	}
	if st.in.gone {
		return !st.in.goneTold && !st.in.ended
	}
	return !st.in.ended && st.in.limit-st.in.confirmed >= streamWindow/4
}

// dataDue reports whether st has something to send.
func (st *stream) dataDue() bool {
	o := &st.out
	if o.gone {
		return false
	}
	end := o.base + uint64(len(o.bytes()))
	return len(o.lost) > 0 || o.next < min(end, o.limit) || o.finDue && o.next == end
}

// Due reports whether a packet has to leave for what the streams have to say now.
func (s *Streams) Due(now time.Duration) bool {
	if s.taking && !s.told && !s.telling {
		return now >= s.retryAt
	}
	if len(s.order) == 0 || now < s.retryAt {
		return false
	}
	free := s.unanswered() < s.window
	for _, st := range s.order {
		if st.creditDue() || free && st.dataDue() {
			return true
		}
	}
	return false
}

// Fill adds to p what fits into room bytes, and returns what the packet carries of
// streams, or nil. money says that the packet pays, and is shared out.
func (s *Streams) Fill(p *Packet, now time.Duration, room int, money bool) *load {
	if len(s.order) == 0 && (!s.taking || s.told || s.telling) {
		return nil
	}
	var l load
	if s.taking && !s.told && !s.telling {
		s.telling, l.first = true, true
		p.Credits = append(p.Credits, CreditFrame{Limit: streamWindow})
	}
	room -= maxCredits * pieceOverhead
	free := s.unanswered() < s.window && now >= s.retryAt
	for range len(s.order) {
		st := s.order[0]
		copy(s.order, s.order[1:])
		s.order[len(s.order)-1] = st
		if st.creditDue() && len(l.credits) < maxCredits {
			st.in.telling = true
			l.credits = append(l.credits, told{st, st.in.limit, st.in.gone})
			p.Credits = append(p.Credits, st.credit())
		}
		if money && st.shares > 0 && len(l.shares) < maxShares {
			l.shares = append(l.shares, MoneyFrame{Stream: st.id, Shares: st.shares})
		}
		for free && len(l.pieces) < maxPieces && st.dataDue() && room > pieceOverhead {
			pc := st.next(room - pieceOverhead)
			at := pc.from - st.out.base
			p.Data = append(p.Data, DataFrame{Stream: st.id, Offset: pc.from, Data: st.out.bytes()[at : at+pc.to-pc.from], Fin: pc.fin})
			l.pieces = append(l.pieces, pc)
			room -= pieceOverhead + int(pc.to-pc.from)
		}
	}
	p.Money = append(p.Money, l.shares...)
	if !l.first && len(l.pieces)+len(l.credits)+len(l.shares) == 0 {
		return nil
	}
	l.at = now
	if l.first || len(l.pieces)+len(l.credits) > 0 { // shares alone come to nothing if they are lost
		s.flight = append(s.flight, &l)
	}
	return &l
}

func (st *stream) credit() CreditFrame {
	if st.in.gone {
		return CreditFrame{Stream: st.id, End: true}
	}
	return CreditFrame{Stream: st.id, Limit: st.in.limit}
}

// next takes the next piece to send: first what was lost.
func (st *stream) next(room int) piece {
	o := &st.out
	end := o.base + uint64(len(o.bytes()))
	most := uint64(min(room, MaxData))
	pc := piece{s: st}
	switch {
	case len(o.lost) > 0:
		pc.span = span{o.lost[0].from, min(o.lost[0].to, o.lost[0].from+most)}
		o.lost = o.lost.cut(pc.span)
	default:
		pc.span = span{o.next, max(o.next, min(end, o.limit, o.next+most))}
		o.next = pc.to
	}
	if o.finDue && pc.to == end {
		pc.fin, o.finDue = true, false
	}
	return pc
}

// Answer adds to a reply what the peer may send of the streams of its request.
func (s *Streams) Answer(reply, request *Packet) {
	for i := range request.Data {
		st := s.all[request.Data[i].Stream]
		if st == nil || i > 0 && request.Data[i-1].Stream == st.id || len(reply.Credits) == maxCredits {
			continue
		}
		if !st.in.ended {
			reply.Credits = append(reply.Credits, st.credit())
		}
	}
}

// Landed takes the end of a packet with data: ok where an authentic reply took it.
func (s *Streams) Landed(l *load, now time.Duration, ok bool, jitter uint32) {
	if i := slices.Index(s.flight, l); i >= 0 {
		s.flight = slices.Delete(s.flight, i, i+1)
	}
	if ok && !l.late {
		s.tripTook(now - l.at)
	}
	if ok {
		s.failures, s.retryAt = 0, 0
		if len(l.pieces) > 0 {
			s.widen()
		}
	} else if !l.late {
		s.narrow(now, jitter)
	}
	if l.first {
		s.telling, s.told = false, s.told || ok
	}
	for _, c := range l.credits {
		st := c.s
		st.in.telling = false
		if ok {
			st.in.confirmed = max(st.in.confirmed, c.limit)
			st.in.goneTold = st.in.goneTold || c.gone
			s.settle(st)
		}
	}
	for _, pc := range l.pieces {
		if ok {
			s.acked(pc)
		} else if !l.late {
			pc.s.lose(pc)
		}
	}
}

func (s *Streams) acked(pc piece) {
	st := pc.s
	o := &st.out
	if o.gone || st.err != nil {
		return
	}
	if pc.fin {
		o.finAcked, o.finDue = true, false
	}
	o.lost = o.lost.cut(pc.span)
	o.acked = o.acked.add(pc.span).cut(span{0, o.base})
	if to := o.acked.reach(o.base); to > o.base {
		s.sent += to - o.base
		s.drop(&o.buffer, int(to-o.base))
		o.base = to
		o.acked = o.acked.cut(span{0, to})
	}
	st.wake()
	s.settle(st)
}

// lose gives back a piece that has to be sent again.
func (st *stream) lose(pc piece) {
	o := &st.out
	if o.gone || st.err != nil {
		return
	}
	if pc.to > o.base {
		o.lost = o.lost.add(span{max(pc.from, o.base), pc.to})
		for _, a := range o.acked {
			o.lost = o.lost.cut(a)
		}
	}
	if pc.fin && !o.finAcked {
		o.finDue = true
	}
}

// Late takes packets that were not answered in time as lost, and returns when the
// next one is; 0: none is in flight. What comes of them later still counts.
func (s *Streams) Late(now time.Duration, jitter uint32) (next time.Duration) {
	wait := max(minDataWait, 3*s.trip)
	for _, l := range s.flight {
		if l.late {
			continue
		}
		if now-l.at < wait {
			return l.at + wait
		}
		l.late = true
		if l.first {
			s.telling = false
		}
		for _, c := range l.credits {
			c.s.in.telling = false
		}
		for _, pc := range l.pieces {
			pc.s.lose(pc)
		}
		s.narrow(now, jitter)
	}
	return 0
}

// RetryAt is when a packet may leave again after a loss; 0: at any time.
func (s *Streams) RetryAt() time.Duration { return s.retryAt }

// unanswered is the packets in flight that do not count as lost.
func (s *Streams) unanswered() (n uint32) {
	for _, l := range s.flight {
		if !l.late && len(l.pieces) > 0 {
			n++
		}
	}
	return n
}

func (s *Streams) tripTook(d time.Duration) {
	if s.trip == 0 {
		s.trip = d
	}
	s.trip += (d - s.trip) / 8
}

func (s *Streams) widen() {
	s.acks++
	if s.slow || s.acks >= s.window {
		s.window, s.acks = min(s.window+1, maxDataFlight), 0
	}
}

// narrow is one cut a round trip: the packets of one window are lost together.
func (s *Streams) narrow(now time.Duration, jitter uint32) {
	if now < s.cutAt {
		s.retryAt = max(s.retryAt, s.cutAt)
		return
	}
	s.window, s.slow, s.acks = max(s.window/2, 1), false, 0
	s.failures = min(s.failures+1, 20)
	s.cutAt = now + max(s.trip, minRetry)
	if s.failures > 1 { // a single loss is made good at once
		s.retryAt = now + Backoff(s.failures-1, jitter)
	}
}

// Share divides n among the streams that frames name, in the ratio of their
// shares: all of it, to the unit, if all of them are here. It is called with what
// was fulfilled: of the peer's for received, else of ours.
func (s *Streams) Share(frames []MoneyFrame, n tally.Amount, received bool) {
	var total, upTo uint64
	for _, f := range frames {
		total += min(f.Shares, math.MaxUint32) // of at most maxFrames
	}
	if total == 0 {
		return
	}
	var given tally.Amount
	for _, f := range frames {
		upTo += min(f.Shares, math.MaxUint32)
		part := Ratio{Num: upTo, Den: total}.floorSat(n) - given
		given += part
		var st *stream
		if received {
			st, _ = s.find(f.Stream)
		} else {
			st = s.all[f.Stream]
		}
		switch {
		case st == nil:
		case received:
			st.received = st.received.SaturatingAdd(part)
			st.wake()
		default:
			st.sent = st.sent.SaturatingAdd(part)
		}
	}
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
