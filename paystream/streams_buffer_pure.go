package paystream

import (
	"slices"
)

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
