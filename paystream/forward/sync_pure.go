package forward

// begin starts a session: what is in flight is compared, and what we fulfilled
// is told again.
func (h *Hop) begin(now int64, ev *Event, fx []Effect) []Effect {
	l := h.link(ev.Peer)
	l.up, l.window, l.lastIn = true, min(ev.Window, MaxInFlight), 0
	l.asks, l.askAt, l.acks = askBurst, now, nil
	l.laneSyncs, l.laneSyncAt = laneSyncBurst, now
	fx = h.ask(l, fx)
	for id, c := range l.in.All() {
		if c.fulfilled {
			m := h.message(MsgFulfil, id)
			m.Preimage = c.preimage
			fx = append(fx, Effect{Kind: FxSend, Peer: l.peer, Msg: m})
		}
	}
	return fx
}

func (h *Hop) ask(l *link, fx []Effect) []Effect {
	l.asked++
	l.known, l.knownIDs = nil, 0
	m := h.message(MsgSyncAsk, 0)
	m.Round = l.asked
	return append(fx, Effect{Kind: FxSend, Peer: l.peer, Msg: m})
}

// answerSync lists what is here of the asker's packets.
func (h *Hop) answerSync(now int64, l *link, m *Msg, fx []Effect) ([]Effect, error) {
	if more := (now - l.askAt) / askEvery; more > 0 {
		l.asks = int(min(askBurst, int64(l.asks)+more))
		l.askAt = now
	}
	if l.asks == 0 {
		return fx, errAsks
	}
	l.asks--
	reply := h.message(MsgSync, 0)
	reply.Round = m.Round
	for id, c := range l.in.All() {
		if len(reply.Live)+len(reply.Fulfilled) == MaxSyncIDs {
			reply.More = true
			fx = append(fx, Effect{Kind: FxSend, Peer: l.peer, Msg: reply})
			reply = h.message(MsgSync, 0)
			reply.Round = m.Round
		}
		if c.fulfilled {
			reply.Fulfilled = append(reply.Fulfilled, id)
		} else {
			reply.Live = append(reply.Live, id)
		}
	}
	return append(fx, Effect{Kind: FxSend, Peer: l.peer, Msg: reply}), nil
}

// sync compares what the neighbour has of ours. What it does not list never
// arrived or was rejected: the stream is in order, so that nothing about it is
// on its way any more.
func (h *Hop) sync(l *link, m *Msg, fx []Effect) ([]Effect, error) {
	if m.Round != l.asked || l.answered == l.asked {
		return fx, nil // of an ask that a later one replaced
	}
	if l.knownIDs+len(m.Live)+len(m.Fulfilled) > 2*MaxInFlight {
		return fx, errSync
	}
	if l.known == nil {
		l.known = make(map[uint64]struct{}, len(m.Live)+len(m.Fulfilled))
	}
	for _, list := range [...][]uint64{m.Live, m.Fulfilled} {
		l.knownIDs += len(list)
		for _, id := range list {
			l.known[id] = struct{}{}
		}
	}
	if m.More {
		return fx, nil
	}
	known := l.known
	l.known, l.answered = nil, l.asked
	for _, id := range l.out.IDs() {
		c := l.out.at(id)
		if _, ok := known[id]; ok || c.mark >= l.asked {
			continue
		}
		r := h.message(MsgReject, 0)
		r.Code, r.Hop = CodeLinkLost, hopIn
		fx = h.undo(c, r, fx)
	}
	return fx, nil
}
