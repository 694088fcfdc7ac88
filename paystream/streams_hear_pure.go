package paystream

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
