package paystream

import (
	"math"
	"slices"
	"time"

	"github.com/tallystick/tally"
)

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
