package settler

import (
	"context"
	"fmt"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/swap"
)

// Notify is what the channel manager calls. It returns soon: the work is done
// beside.
func (s *Settler) Notify(n paych.Notice) {
	switch n.Kind {
	case paych.NoticeOpened, paych.NoticeFunded, paych.NoticeFailed:
		s.spawn(func() { s.funded(n.Channel) }) // ends with its writes to the store
	case paych.NoticeCover, paych.NoticeSettling, paych.NoticeSubmitted:
		s.spawn(func() { s.covered(n.Channel) }) // ends with its writes to the store
	case paych.NoticeCollected:
		s.lookSoon()
	}
}

// funded goes on with the cheques that waited for money. A channel that was just
// created has no link of its address yet: those who wait for one are all told.
func (s *Settler) funded(ch address.Address) {
	book := s.told()
	if book == nil {
		return
	}
	if w, ok := s.owner(ch); ok {
		if w.dir == swap.Serve {
			s.covered(ch)
			return
		}
		s.retry(book, w.peer)
		return
	}
	for p, l := range s.outgoing() {
		if l.state == linkOpening {
			s.retry(book, p)
		}
	}
}

func (s *Settler) retry(book Book, p peer.ID) {
	if err := book.Retry(p); err != nil && s.ctx.Err() == nil {
		s.log.Warn("settlement not taken up", "peer", p, "err", err)
	}
}

// covered tells the book that the chain would pay more or less now.
func (s *Settler) covered(ch address.Address) {
	book := s.told()
	w, ok := s.owner(ch)
	if book == nil || !ok || w.dir != swap.Serve {
		return
	}
	if err := book.Cover(w.peer); err != nil && s.ctx.Err() == nil {
		s.log.Warn("cover not booked", "peer", w.peer, "channel", ch, "err", err)
	}
}

// lookSoon has the watch look at once.
func (s *Settler) lookSoon() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// watch looks after links that end and after what is to be cashed, and makes good
// for notices that a stop in between has lost.
func (s *Settler) watch() {
	ticker := time.NewTicker(s.cfg.Every)
	defer ticker.Stop()
	since := make(map[peer.ID]time.Time)
	for {
		s.look()
		s.cashDue(since)
		select {
		case <-ticker.C:
		case <-s.kick:
		case <-s.ctx.Done():
			return
		}
	}
}

// look brings every link up to date with its channel.
func (s *Settler) look() {
	book := s.told()
	for p, l := range s.incoming() {
		if err := s.lookAt(book, p, swap.Serve, l); err != nil && s.ctx.Err() == nil {
			s.log.Debug("channel of a peer not seen", "peer", p, "channel", l.channel, "err", err)
		}
	}
	for p, l := range s.outgoing() {
		if l.state != linkBound {
			continue
		}
		if err := s.lookAt(book, p, swap.Consume, l); err != nil && s.ctx.Err() == nil {
			s.log.Debug("channel to a peer not seen", "peer", p, "channel", l.channel, "err", err)
		}
	}
}

func (s *Settler) lookAt(book Book, p peer.ID, dir swap.Direction, l link) error {
	info, err := s.paych.PaychInfo(s.ctx, l.channel)
	if err != nil {
		return err
	}
	if info.Phase == paych.PhaseCollected && info.Buried && info.Final != nil {
		return s.end(book, p, dir, l, info.Final)
	}
	if dir == swap.Serve {
		return book.Cover(p) // no write where nothing changed
	}
	if info.Phase == paych.PhaseOpen && info.Funds.Free().Sign() < 0 {
		// The chain took money back that vouchers were given on. The peer may have
		// said so before we saw it.
		s.fillSoon(s.relation(p), big.Zero())
	}
	return nil
}

// end closes a link: first the books take what the chain paid, then the link
// goes, so that a stop in between repeats the first, which changes nothing.
func (s *Settler) end(book Book, p peer.ID, dir swap.Direction, l link, f *paych.Final) error {
	r := s.relation(p)
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	if err := r.take(ctx); err != nil {
		return err
	}
	defer r.give()
	if r.link(dir).channel != l.channel || r.link(dir).state != linkBound {
		return nil // another look was first
	}
	paid := big.Zero()
	for i := range f.Lanes {
		if f.Lanes[i].Lane == laneTab {
			paid = f.Lanes[i].Redeemed
		}
	}
	if err := book.Final(p, dir, l.units(paid)); err != nil {
		return fmt.Errorf("settler: final sum of channel %s: %w", l.channel, err)
	}
	if err := s.save(r, func(r *relation) { *r.link(dir) = link{base: big.Zero()} }); err != nil {
		return err
	}
	// Not in the turn of the relation: the book may ask for a new channel.
	if dir == swap.Consume {
		s.spawn(func() { s.retry(book, p) }) // ends with its writes to the store
	}
	return nil
}
