package settler

import (
	"context"
	"errors"
	"fmt"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/swap"
)

// Issue implements swap.Settler: the voucher of lane 0 that brings it to the
// cumulative. The first cheque opens a channel; until that is on the chain the
// error is ErrOpening, and Book.Retry ends the wait.
func (s *Settler) Issue(ctx context.Context, p peer.ID, c swap.Claim) (swap.Backing, error) {
	r := s.relation(p)
	if err := r.take(ctx); err != nil {
		return nil, err
	}
	defer r.give()
	if err := s.ensureChannel(ctx, r, c); err != nil {
		return nil, err
	}
	amount, err := r.out.atto(c.Cumulative)
	if err != nil {
		return nil, err
	}
	ctx = paych.WithTag(ctx, tag(p, r.out.number))
	res, err := s.paych.PaychVoucherCreateSpec(ctx, r.out.channel, paych.VoucherSpec{Lane: laneTab, Amount: amount, Again: true})
	switch {
	case errors.Is(err, paych.ErrSettling), errors.Is(err, paych.ErrCollected):
		s.lookSoon()
		return nil, fmt.Errorf("%w (%w)", ErrClosing, err)
	case err != nil:
		return nil, err
	case res.Voucher == nil:
		s.fillSoon(r, res.Shortfall)
		return nil, fmt.Errorf("%w: %v attoFIL more are needed", ErrFunding, res.Shortfall)
	}
	s.fillSoon(r, big.Zero())
	b := backing{origin: r.out.origin, base: r.out.base, voucher: res.Voucher}
	return b.encode()
}

// ensureChannel brings the link to bound. What it decides is saved before the
// chain is asked, so that a crash never opens two channels.
func (s *Settler) ensureChannel(ctx context.Context, r *relation, c swap.Claim) error {
	if r.out.state == linkBound {
		return nil
	}
	if r.address == address.Undef {
		return ErrNoPayout
	}
	if r.out.state == linkNone {
		next := r.numbers + 1
		err := s.save(r, func(r *relation) {
			r.numbers = next
			r.out = link{state: linkOpening, origin: c.Credited, base: big.Zero(), number: next}
		})
		if err != nil {
			return err
		}
	}
	need, err := r.out.atto(max(c.Cumulative, r.out.origin))
	if err != nil {
		return err
	}
	deposit := big.Max(toAtto(s.cfg.InitialDeposit), big.Add(need, toAtto(s.cfg.Ahead)))
	id, err := s.create(ctx, r, deposit)
	if err != nil {
		return err
	}
	st, err := s.paych.PaychStatusByMsg(ctx, id)
	if err != nil {
		return fmt.Errorf("%w: message %s: %w", ErrOpening, id, err)
	}
	switch st.Phase {
	case paych.PhaseCreating:
		reason := ""
		if st.Error != "" {
			reason = ": " + st.Error
		}
		return fmt.Errorf("%w: message %s is %s%s", ErrOpening, id, st.State, reason)
	case paych.PhaseFailed:
		// Its tag is free again; a new number keeps old and new apart.
		if err := s.save(r, func(r *relation) { r.out = link{base: big.Zero()} }); err != nil {
			return err
		}
		return fmt.Errorf("settler: the chain refused to create the channel: %s", st.Error)
	default:
		return s.save(r, func(r *relation) { r.out.state, r.out.channel = linkBound, st.Channel.Channel })
	}
}

// create asks for the channel of the link, which is one however often it is asked
// for.
func (s *Settler) create(ctx context.Context, r *relation, deposit big.Int) (cid.Cid, error) {
	if err := s.mayLock(ctx, r, deposit); err != nil {
		return cid.Undef, err
	}
	return s.paych.PaychCreateSpec(ctx, paych.CreateSpec{
		From: s.self, To: r.address, Amount: deposit, Tag: tag(r.peer, r.out.number), Owned: true,
	})
}

// mayLock holds the caps on what is locked in channels. A channel that is being
// created is not counted twice: asking for it again is no new money.
func (s *Settler) mayLock(ctx context.Context, r *relation, more big.Int) error {
	own, total, err := s.locked(ctx, r.peer)
	if err != nil {
		return err
	}
	if r.out.state == linkOpening && own.Sign() > 0 {
		return nil
	}
	for _, limit := range [...]struct {
		name      string
		have, max big.Int
	}{
		{"for one peer (max_locked)", own, toAtto(s.cfg.MaxLocked)},
		{"in all (max_locked_total)", total, toAtto(s.cfg.MaxLockedTotal)},
	} {
		if big.Add(limit.have, more).GreaterThan(limit.max) {
			return fmt.Errorf("%w: %v and %v more are over the %v attoFIL allowed %s", ErrLocked, limit.have, more, limit.max, limit.name)
		}
	}
	return nil
}

// locked sums what our channels hold and are about to hold: with p, and in all.
func (s *Settler) locked(ctx context.Context, p peer.ID) (own, total big.Int, err error) {
	own, total = big.Zero(), big.Zero()
	add := func(q peer.ID, amount big.Int) {
		total = big.Add(total, amount)
		if q == p {
			own = big.Add(own, amount)
		}
	}
	for q, l := range s.outgoing() {
		if l.state == linkOpening {
			id, ok := s.paych.PaychTagged(tag(q, l.number))
			if !ok {
				continue
			}
			if st, err := s.paych.PaychStatusByMsg(ctx, id); err == nil {
				add(q, big.Add(st.Channel.ConfirmedAmt, st.Channel.PendingAmt))
			}
			continue
		}
		st, err := s.paych.PaychStatus(ctx, l.channel)
		if err != nil {
			return own, total, fmt.Errorf("settler: funds of channel %s: %w", l.channel, err)
		}
		add(q, big.Sum(st.ConfirmedAmt, st.PendingAmt, st.QueuedAmt))
	}
	return own, total, nil
}

// outgoing copies the links of our own channels.
func (s *Settler) outgoing() map[peer.ID]link {
	s.mu.Lock()
	defer s.mu.Unlock()
	links := make(map[peer.ID]link)
	for p, r := range s.relations {
		if r.out.state != linkNone {
			links[p] = r.out
		}
	}
	return links
}

// fillSoon keeps the channel's reserve, beside the cheques: what lacks, and Ahead
// for the next ones. One top-up of a channel is made at a time.
func (s *Settler) fillSoon(r *relation, lack big.Int) {
	s.mu.Lock()
	busy, l := r.filling, r.out
	r.filling = true
	s.mu.Unlock()
	if busy {
		return
	}
	s.spawn(func() { // ends when the message is published, or with Close
		err := s.fill(r, l, lack)
		s.mu.Lock()
		r.filling = false
		s.mu.Unlock()
		if err != nil && s.ctx.Err() == nil {
			s.log.Warn("channel not topped up; it will be tried again with the next cheque", "peer", r.peer, "channel", l.channel, "err", err)
		}
	})
}

func (s *Settler) fill(r *relation, l link, lack big.Int) error {
	ctx := paych.WithTag(s.ctx, tag(r.peer, l.number))
	info, err := s.paych.PaychInfo(ctx, l.channel)
	if err != nil {
		return err
	}
	coming := big.Add(info.PendingAmt, info.QueuedAmt)
	ahead := toAtto(s.cfg.Ahead)
	// What vouchers took beyond the balance is missing too: the chain may have
	// taken money back.
	free := big.Add(info.Funds.Free(), info.Funds.Reserved)
	if lack.Sign() > 0 || big.Add(free, coming).LessThan(ahead) {
		want := big.Sub(big.Add(lack, ahead), big.Add(free, coming))
		if want.Sign() > 0 {
			want = big.Max(want, toAtto(s.cfg.TopUp))
			if err := s.mayLock(ctx, r, want); err != nil {
				return err
			}
			if _, err := s.paych.PaychAddFunds(ctx, l.channel, want); err != nil {
				return err
			}
		}
	}
	if more := big.Sub(ahead, info.Funds.Reserved); more.Sign() > 0 && info.Funds.Free().GreaterThanEqual(more) {
		_, err = s.paych.PaychReserveFunds(ctx, l.channel, more)
	}
	return err
}

// TopUp implements swap.PayoutSettler. How much is missing our own figures say: a
// peer cannot make us lock more than we owe.
func (s *Settler) TopUp(ctx context.Context, p peer.ID) {
	r := s.relation(p)
	s.mu.Lock()
	bound := r.out.state == linkBound
	s.mu.Unlock()
	if bound && ctx.Err() == nil {
		s.fillSoon(r, big.Zero())
	}
}

// Restore implements swap.PayoutSettler: a voucher that we signed, and the link
// that it belongs to.
func (s *Settler) Restore(ctx context.Context, p peer.ID, c swap.Claim, raw swap.Backing) error {
	b, err := decodeBacking(raw)
	if err != nil {
		return err
	}
	r := s.relation(p)
	if err := r.take(ctx); err != nil {
		return err
	}
	defer r.give()
	ch := b.voucher.ChannelAddr
	if w, taken := s.owner(ch); taken && w != (way{p, swap.Consume}) {
		return fmt.Errorf("channel %s belongs to another relation", ch)
	}
	lost := link{state: linkBound, channel: ch, origin: b.origin, base: b.base}
	if amount, err := lost.atto(c.Cumulative); err != nil || !amount.Equals(b.voucher.Amount) {
		return fmt.Errorf("voucher over %v does not name the cumulative %d", b.voucher.Amount, c.Cumulative)
	}
	if r.out.state != linkBound || r.out.channel != ch {
		if err := s.rebind(ctx, r, lost); err != nil {
			return err
		}
	}
	return s.paych.PaychVoucherImport(paych.WithTag(ctx, tag(p, r.out.number)), ch, b.voucher)
}

// rebind takes over a link that our store has lost. The voucher is verified by
// the import that follows; without a valid one nothing is issued on the channel.
func (s *Settler) rebind(ctx context.Context, r *relation, lost link) error {
	info, err := s.paych.PaychInfo(ctx, lost.channel)
	if err != nil {
		return err
	}
	if info.Direction != paych.PCHOutbound || info.From != s.self || r.address == address.Undef || info.To != r.address {
		return fmt.Errorf("channel %s is not ours to %s", lost.channel, r.address)
	}
	lost.number = r.numbers + 1
	if err := s.paych.PaychOwn(ctx, lost.channel, tag(r.peer, lost.number)); err != nil {
		return err
	}
	s.log.Warn("peer proved a channel of ours that this store has lost; taken over", "peer", r.peer, "channel", lost.channel)
	return s.save(r, func(r *relation) { r.numbers, r.out = lost.number, lost })
}
