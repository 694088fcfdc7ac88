package hold

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/internal/durable"
)

// Chain shows any channel.
type Chain interface {
	Times() ChainTimes
	// View looks at a channel and one of its lanes. ErrChannel where there is none.
	View(ctx context.Context, channel string, lane uint64) (ChannelView, error)
	// Read decodes a voucher and says who signed it: ErrVoucher.
	Read(raw []byte) (Voucher, error)
}

// Channels is what the second form needs of payment channels.
type Channels interface {
	Chain
	// Linked is the channel that settles the tab with p: ours to p (out), or p's to us.
	// ErrChannel where there is none yet.
	Linked(p peer.ID, out bool) (string, error)
	// Sign signs v on a channel of ours, saved before it returns, and the same bytes
	// each time; nonce 0 is the lane's next. ErrLaneRoom.
	Sign(ctx context.Context, v *Voucher) ([]byte, error)
	// Submit keeps a guard of a channel to us, and sends it to the chain.
	Submit(ctx context.Context, channel string, guard []byte) error
	// Keep refuses what would take room of a channel to us, until the next call or
	// the end of the process, and says what the channel holds and what its vouchers
	// come to.
	Keep(ctx context.Context, channel string, room tally.Amount) (balance, total tally.Amount, err error)
	// Take keeps a voucher of a channel to us with its preimage, on disk, so that it
	// is submitted in time. It may take draws of what is kept.
	Take(ctx context.Context, channel string, voucher []byte, preimage tally.Preimage, draws tally.Amount) error
}

// guardLane is where the guards of statements are. The locks' own is another.
const guardLane = mailLane - 1

// Times of a purchase.
const (
	// BuyTime is how long our part under the voucher's hash lasts.
	BuyTime = time.Minute
	// statementSlack is how much longer than its last epoch, and the channel's margin,
	// the room of a statement is kept on the wall clock.
	statementSlack = 10 * time.Minute
)

// epochMS is how long an epoch of the chain lasts; without a chain nothing asks.
func (c *Config) epochMS() int64 {
	if c.Channels == nil {
		return 0
	}
	return c.Channels.Times().EpochMS
}

func (s *Service) channels() (Channels, error) {
	if s.cfg.Channels == nil {
		return nil, ErrNoChannels
	}
	return s.cfg.Channels, nil
}

// take begins what keeps and takes room, one at a time; the returned function ends it.
func (s *Service) take(ctx context.Context) (give func(), err error) {
	select {
	case s.rooms <- struct{}{}:
		return func() { <-s.rooms }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// epochs is d in epochs, rounded up.
func (t *ChainTimes) epochs(d time.Duration) int64 {
	ms := max(1, t.EpochMS)
	return (max(0, d.Milliseconds()) + ms - 1) / ms
}

// wall is an epoch on the wall clock, seen from height at now.
func (t *ChainTimes) wall(now, height, epoch int64) int64 {
	return now + min((epoch-height)*max(1, t.EpochMS), maxTime/2)
}

// Of a payee.

// RoomRequest is what a lane statement is made of.
type RoomRequest struct {
	Holder peer.ID
	// Payer is whom the room is for; empty: for whoever comes, whom the holder may sell
	// it to twice.
	Payer peer.ID
	Room  tally.Amount
	// Time is how long the room is kept. Zero: DefaultTime, or as long as the chain
	// allows.
	Time time.Duration
}

// Roomed is a statement that was handed out.
type Roomed struct {
	LaneStatement
	// Guard is the settle height that the channel needs for it, and MinSettle what the
	// chain shows, final. Until it shows as much, payers refuse the statement.
	Guard, MinSettle int64
	// Ends is the statement's end on the wall clock, in milliseconds since 1970.
	Ends int64
	// Given: the holder has it, for payers that ask.
	Given bool
}

// Room keeps room of a holder's channel to us, and says so in a lane statement: for
// payers that buy vouchers of the holder while we are away. It asks the holder for a
// guard where the channel could end too soon, and submits that.
func (s *Service) Room(ctx context.Context, q RoomRequest) (Roomed, error) {
	ch, err := s.channels()
	if err != nil {
		return Roomed{}, err
	}
	if s.cfg.Sign == nil || q.Time < 0 || q.Time > 365*24*time.Hour {
		return Roomed{}, wrapTerms("no key to sign with, or no time")
	}
	channel, err := ch.Linked(q.Holder, false)
	if err != nil {
		return Roomed{}, err
	}
	view, err := ch.View(ctx, channel, guardLane)
	switch {
	case err != nil:
		return Roomed{}, err
	case view.Gone || view.Settling:
		return Roomed{}, fmt.Errorf("%w: channel %s settles, or is gone", ErrChannel, channel)
	}
	times := ch.Times()
	epochs, most := times.epochs(q.Time), times.longest()
	switch {
	case q.Time == 0:
		epochs = min(times.epochs(DefaultTime), most)
	case epochs > most:
		return Roomed{}, wrapTerms(fmt.Sprintf("room is kept for %v at most: no guard keeps the channel open for longer",
			time.Duration(most*times.EpochMS)*time.Millisecond))
	}
	r := Roomed{MinSettle: view.MinSettle, LaneStatement: LaneStatement{
		Realm: s.cfg.Realm, Payee: s.cfg.Self, Holder: q.Holder, Payer: q.Payer, Channel: channel, Room: q.Room,
		Until: view.Height + epochs,
	}}
	r.Guard = r.Until + times.Margin
	r.Ends = times.wall(s.Now(), view.Height, r.Guard) + statementSlack.Milliseconds()
	if view.MinSettle < r.Guard {
		if err := s.guard(ctx, ch, &view, channel, q.Holder, r.Guard); err != nil {
			return Roomed{}, err
		}
	}
	if err := s.state(ctx, ch, &r); err != nil {
		return Roomed{}, err
	}
	err = s.cfg.Wire.Deposit(ctx, q.Holder, &r.LaneStatement)
	if r.Given = err == nil; !r.Given {
		s.log.Info("holder does not have our lane statement", "peer", q.Holder, "err", err)
	}
	return r, nil
}

// guard has the channel kept open up to a height. What the holder signed on a lane of
// guards, over nothing, can only do that.
func (s *Service) guard(ctx context.Context, ch Channels, view *ChannelView, channel string, holder peer.ID, height int64) error {
	raw, err := s.cfg.Wire.Guard(ctx, holder, height)
	if err != nil {
		return err
	}
	v, err := ch.Read(raw)
	switch {
	case err != nil:
		return err
	case v.Channel != channel || v.Lane != guardLane || v.Amount != 0 || v.Locked || v.Expires != 0 || v.MinSettle < height || v.Signer != view.From:
		return fmt.Errorf("%w: not a guard of channel %s up to %d", ErrVoucher, channel, height)
	}
	return ch.Submit(ctx, channel, raw)
}

// state keeps the room before anything is said of it, and what is kept is kept before
// the lanes are counted: no voucher comes in between.
func (s *Service) state(ctx context.Context, ch Channels, r *Roomed) error {
	give, err := s.take(ctx)
	if err != nil {
		return err
	}
	defer give()
	var kept tally.Amount
	if err := s.look(ctx, func() { kept, r.Serial = s.taker.Kept(r.Channel), s.taker.Next() }); err != nil {
		return err
	}
	balance, total, err := ch.Keep(ctx, r.Channel, kept.SaturatingAdd(r.Room))
	if err != nil {
		return err
	}
	r.Total = total
	if free := balance.SaturatingSub(total).SaturatingSub(kept); r.Room > free {
		err = fmt.Errorf("%w: %d units are free; ask for less, or ask the holder to top the channel up", ErrLaneRoom, free)
	}
	if err == nil {
		r.Signature, err = s.cfg.Sign(r.SigningBytes())
	}
	if err == nil {
		err = s.do(ctx, func(now int64, fx []Effect) ([]Effect, error) {
			return s.taker.Step(now, &TakeEvent{Kind: TakeState, Stated: &Stated{LaneStatement: r.LaneStatement, Ends: r.Ends}}, fx)
		})
	}
	if err != nil {
		_, _, kerr := ch.Keep(context.WithoutCancel(ctx), r.Channel, kept)
		return errors.Join(err, kerr)
	}
	return nil
}

// keep brings what is kept of a channel up to date.
func (s *Service) keep(ctx context.Context, channel string) error {
	ch, err := s.channels()
	if err != nil {
		return err
	}
	give, err := s.take(ctx)
	if err != nil {
		return err
	}
	defer give()
	var kept tally.Amount
	if err := s.look(ctx, func() { kept = s.taker.Kept(channel) }); err != nil {
		return err
	}
	_, _, err = ch.Keep(ctx, channel, kept)
	return err
}

// KeepRoom keeps again the room that the statements of self in store have promised. What
// is kept is not on disk where vouchers are taken: whoever takes some of the channels
// calls it before the first can come.
func KeepRoom(ctx context.Context, store *durable.Store, self peer.ID, ch Channels, log *slog.Logger) error {
	t := NewTaker(self)
	if err := t.load(ctx, store); err != nil {
		return err
	}
	t.keep(ctx, ch, log)
	return nil
}

// load reads the statements.
func (t *Taker) load(ctx context.Context, store *durable.Store) error {
	err := store.Scan(ctx, roomPrefix, "", func(key string, rec []byte) error {
		_, payload, err := durable.Unseal(key, recordVersion, rec)
		if err != nil {
			return err
		}
		serial, err := durable.ParseKeyUint(key[len(roomPrefix):])
		if err != nil {
			return err
		}
		return t.RestoreStated(serial, payload)
	})
	if err != nil {
		return fmt.Errorf("hold: read the lane statements: %w", err)
	}
	return nil
}

// keep has the channels keep what is promised. One that is gone keeps nothing.
func (t *Taker) keep(ctx context.Context, ch Channels, log *slog.Logger) {
	for _, channel := range t.Channels() {
		if _, _, err := ch.Keep(ctx, channel, t.Kept(channel)); err != nil {
			log.Warn("room that was promised is not kept", "channel", channel, "err", err)
		}
	}
}

// TakeMail takes what a payer bought for us. Coming again it changes nothing.
func (s *Service) TakeMail(ctx context.Context, m *Mail) (Taken, error) {
	bad := func(what string) error { return fmt.Errorf("%w: %s", ErrMail, what) }
	ch, err := s.channels()
	switch {
	case err != nil:
		return Taken{}, err
	case m.Realm != s.cfg.Realm:
		return Taken{}, bad(fmt.Sprintf("it is for %q, we are on %q", m.Realm, s.cfg.Realm))
	}
	v, err := ch.Read(m.Voucher)
	if err != nil {
		return Taken{}, err
	}
	give, err := s.take(ctx)
	if err != nil {
		return Taken{}, err
	}
	defer give()
	var have Taken
	var known, again bool
	r := &Taken{Serial: m.Serial, Voucher: m.Voucher, Purchase: Purchase{
		ID: m.ID, Payer: m.Payer, Payee: s.cfg.Self, Channel: v.Channel, Amount: v.Amount, Deadline: v.Expires,
	}}
	if err := s.look(ctx, func() {
		have, again = s.taker.Get(m.ID)
		if st := s.taker.stated[m.Serial]; st != nil && st.Channel == v.Channel && (st.Payer == "" || st.Payer == m.Payer) {
			known, r.Holder = true, st.Holder
		}
		r.Drew = s.taker.Draw(m.Serial, v.Channel, m.Payer, v.Amount)
	}); err != nil {
		return Taken{}, err
	}
	switch {
	case again && have.Payer == m.Payer && have.Channel == v.Channel && have.Amount == v.Amount && have.Deadline == v.Expires:
		return have, nil
	case again:
		return Taken{}, ErrConflict
	case !known:
		return Taken{}, bad("it is over a lane statement that we did not give its payer, or that is over; the voucher may be kept by hand: tally voucher add")
	case !v.Locked || !m.Preimage.Opens(v.Hash):
		return Taken{}, bad("the preimage is another voucher's")
	}
	if err := r.checkVoucher(&v, v.Hash); err != nil {
		return Taken{}, err
	}
	view, err := ch.View(ctx, v.Channel, v.Lane)
	switch {
	case err != nil:
		return Taken{}, err
	case view.From != v.Signer:
		return Taken{}, bad("the voucher is not signed by its channel's payer")
	}
	times := ch.Times()
	r.Until = max(0, times.wall(s.Now(), view.Height, r.Deadline))
	if err := ch.Take(ctx, v.Channel, m.Voucher, m.Preimage, r.Drew); err != nil {
		return Taken{}, err
	}
	if err := s.do(context.WithoutCancel(ctx), func(now int64, fx []Effect) ([]Effect, error) {
		fx, err := s.taker.Step(now, &TakeEvent{Kind: TakeMail, Taken: r}, fx)
		have, _ = s.taker.Get(m.ID)
		return fx, err
	}); err != nil {
		return Taken{}, err
	}
	s.log.Info("mail was taken", "purchase", r.ID, "peer", r.Payer, "channel", r.Channel, "amount", r.Amount)
	return have, nil
}

// Mails lists what was mailed to us.
func (s *Service) Mails(ctx context.Context) (list []Taken, err error) {
	err = s.look(ctx, func() { list = s.taker.List() })
	return list, err
}

// Of a holder. From is who asks, as the connection has it.

// SoldReply is what a holder says to a payer that buys.
type SoldReply struct {
	// Price of the sale. Charged: it is booked by this very answer.
	Price   tally.Amount
	Charged bool
	Hash    tally.Hashlock
	Voucher []byte
}

// GiveGuard signs a payee a guard of our channel to it, up to a height.
func (s *Service) GiveGuard(ctx context.Context, from peer.ID, height int64) ([]byte, error) {
	ch, err := s.channels()
	switch {
	case err != nil:
		return nil, err
	case !s.cfg.Policy.Offer:
		return nil, wrapTerms("we sell nothing")
	}
	channel, err := ch.Linked(from, true)
	if err != nil {
		return nil, err
	}
	view, err := ch.View(ctx, channel, guardLane)
	if err != nil {
		return nil, err
	}
	times := ch.Times()
	if most := view.Height + times.epochs(s.cfg.Policy.MaxTime) + times.Margin; height <= 0 || height > most {
		return nil, wrapTerms(fmt.Sprintf("a settle height of %d, at most %d", height, most))
	}
	return ch.Sign(ctx, &Voucher{Channel: channel, Lane: guardLane, MinSettle: height})
}

// TakeStatement keeps a payee's statement for payers that ask.
func (s *Service) TakeStatement(ctx context.Context, from peer.ID, st *LaneStatement) error {
	ch, err := s.channels()
	switch {
	case err != nil:
		return err
	case !s.cfg.Policy.Offer:
		return wrapTerms("we sell nothing")
	}
	if err := st.Verify(s.cfg.Realm); err != nil {
		return err
	}
	if st.Payee != from || st.Holder != s.cfg.Self {
		return fmt.Errorf("%w: of another payee, or about another holder", ErrStatement)
	}
	channel, err := ch.Linked(from, true)
	switch {
	case err != nil:
		return err
	case channel != st.Channel:
		return fmt.Errorf("%w: channel %s is ours to the payee", ErrStatement, channel)
	}
	view, err := ch.View(ctx, channel, guardLane)
	if err != nil {
		return err
	}
	times := ch.Times()
	ends := times.wall(s.Now(), view.Height, st.Until)
	return s.do(ctx, func(now int64, fx []Effect) ([]Effect, error) {
		return s.seller.Step(now, &SaleEvent{Kind: SaleStatement, Statement: st, Ends: max(0, ends)}, fx)
	})
}

// GiveStatement returns the newest that a payee gave us for a payer.
func (s *Service) GiveStatement(ctx context.Context, from, payee peer.ID) (st LaneStatement, err error) {
	found := false
	if err := s.look(ctx, func() { st, found = s.seller.Statement(payee, from) }); err != nil {
		return st, err
	}
	if !found {
		return st, fmt.Errorf("%w: the payee gave none", ErrNoHold)
	}
	return st, nil
}

// Sell signs a voucher of ours for a payer, for a price of at most limit on its tab, or
// tells the price. Without the preimage, which the payer buys, it is worth nothing.
func (s *Service) Sell(ctx context.Context, from peer.ID, p *Purchase, limit tally.Amount, quote bool) (SoldReply, error) {
	ch, err := s.channels()
	if err != nil {
		return SoldReply{}, err
	}
	if p.Payer != from || p.Holder != s.cfg.Self {
		return SoldReply{}, ErrNoHold
	}
	row := &Sale{Purchase: *p}
	if err := s.vetSale(ctx, ch, row); err != nil {
		return SoldReply{}, err
	}
	rand.Read(row.Preimage[:]) // never fails
	reply := SoldReply{Price: row.Price}
	var have Sale
	known := false
	if err := s.look(ctx, func() { have, known = s.seller.Get(p.ID) }); err != nil {
		return SoldReply{}, err
	}
	switch {
	case known && have.Purchase != *p:
		return SoldReply{}, ErrConflict
	case known:
		reply.Price = have.Price
	}
	switch {
	case quote:
		return reply, nil
	case !known && row.Price > limit:
		return reply, ErrPrice
	}
	var booking Booking
	if !known && row.Price > 0 {
		if booking, err = s.cfg.Meter.Serve(ctx, from, row.Price); err != nil {
			return reply, fmt.Errorf("%w: %w", ErrNoCredit, err)
		}
	}
	ev := &SaleEvent{Kind: SaleOffer, Row: row}
	err = s.do(ctx, func(now int64, fx []Effect) ([]Effect, error) {
		fx, err := s.seller.Step(now, ev, fx)
		have, _ = s.seller.Get(p.ID)
		return fx, err
	})
	if err == nil {
		reply.Hash = have.Hash()
		v := p.voucher(reply.Hash)
		if reply.Voucher, err = ch.Sign(ctx, &v); err != nil && ev.New {
			_ = s.put(item{step: func(now int64, fx []Effect) ([]Effect, error) { // closed: it waits for its deadline
				return s.seller.Step(now, &SaleEvent{Kind: SaleUnsigned, ID: p.ID}, fx)
			}}, false)
		}
	}
	if booking != nil {
		if err == nil && ev.New {
			reply.Charged = true
			err = booking.Commit(row.Price)
		} else {
			booking.Release()
		}
	}
	return reply, err
}

// vetSale checks what the policy says about a sale, and fills in what it costs.
func (s *Service) vetSale(ctx context.Context, ch Channels, row *Sale) error {
	p := &row.Purchase
	switch err := p.Validate(); {
	case err != nil:
		return err
	case !s.cfg.Policy.Offer:
		return wrapTerms("we sell nothing")
	case p.Amount > s.cfg.Policy.MaxAmount:
		return wrapTerms("amount is above what we sell")
	}
	channel, err := ch.Linked(p.Payee, true)
	switch {
	case err != nil:
		return err
	case channel != p.Channel:
		return fmt.Errorf("%w: our channel to the payee is %s", ErrChannel, channel)
	}
	view, err := ch.View(ctx, channel, p.Lane())
	times := ch.Times()
	switch {
	case err != nil:
		return err
	case view.Gone || view.Settling:
		return fmt.Errorf("%w: channel %s settles, or is gone", ErrChannel, channel)
	case p.Deadline < view.Height+times.Least():
		return wrapTerms("too little time")
	case p.Deadline > view.Height+times.epochs(s.cfg.Policy.MaxTime):
		return wrapTerms("too long: at most " + s.cfg.Policy.MaxTime.String())
	}
	now := s.Now()
	row.Until = times.wall(now, view.Height, p.Deadline)
	row.Price = s.cfg.Policy.Price(p.Amount, time.Duration(row.Until-now)*time.Millisecond)
	return nil
}

// Sales lists the vouchers that we sell.
func (s *Service) Sales(ctx context.Context) (list []Sale, err error) {
	err = s.look(ctx, func() { list = s.seller.List() })
	return list, err
}

// Of a payer.

// BuyRequest is what a purchase is made of.
type BuyRequest struct {
	Holder, Payee peer.ID
	Amount        tally.Amount
	// Time is how long the payee may take to come. Zero: as long as it keeps the room.
	Time     time.Duration
	MaxPrice tally.Amount
	// Statement is the payee's, where it gave us one; else the holder is asked.
	Statement *LaneStatement
	// Shared allows a statement that is for whoever comes: the holder is trusted not
	// to sell its room twice.
	Shared bool
}

// Buy buys a voucher of the holder's own channel to the payee, and mails it where the
// payee is connected. It returns when the money has changed hands, or is back. What
// the chain does not show, or the payee did not say, is refused before anything is paid.
func (s *Service) Buy(ctx context.Context, q BuyRequest) (Bought, error) {
	ch, err := s.channels()
	if err != nil {
		return Bought{}, err
	}
	st, err := s.statement(ctx, &q)
	if err != nil {
		return Bought{}, err
	}
	row := &Bought{Purchase: Purchase{ID: newID(), Payer: s.cfg.Self, Holder: q.Holder, Payee: q.Payee, Channel: st.Channel, Amount: q.Amount}}
	row.Serial, row.Room = st.Serial, st.Room
	view, err := ch.View(ctx, row.Channel, row.Lane())
	if err != nil {
		return Bought{}, err
	}
	times := ch.Times()
	if row.Deadline = view.Height + times.epochs(q.Time); q.Time == 0 {
		row.Deadline = st.Until
	}
	if err := row.Validate(); err != nil {
		return Bought{}, err
	}
	fits := func(view *ChannelView) error {
		var spent tally.Amount
		if err := s.look(ctx, func() { spent = s.buyer.Spent(&st) }); err != nil {
			return err
		}
		return row.Fits(&times, &st, view, spent)
	}
	if err := fits(&view); err != nil {
		return Bought{}, err
	}
	if err := s.order(ctx, ch, row, &q, view.From); err != nil {
		return Bought{}, err
	}
	// What was true before the holder answered has to be so still.
	if view, err = ch.View(ctx, row.Channel, row.Lane()); err == nil {
		err = fits(&view)
	}
	if err != nil {
		return Bought{}, err
	}
	row.Until = times.wall(s.Now(), view.Height, row.Deadline)
	row.Ends = min(s.Now()+BuyTime.Milliseconds(), row.Until-1)
	if err := s.do(ctx, func(now int64, fx []Effect) ([]Effect, error) {
		return s.buyer.Step(now, &BuyEvent{Kind: BuyPay, Row: row}, fx)
	}); err != nil {
		return Bought{}, err
	}
	got, err := s.bought(ctx, row.ID, func(r *Bought) bool { return r.Status != BuyPaying })
	if err == nil && got.Status == BuyRefunded {
		err = fmt.Errorf("hold: given back: %s", got.Failure)
	}
	return got, err
}

// statement finds the payee's word, and looks whose it is.
func (s *Service) statement(ctx context.Context, q *BuyRequest) (st LaneStatement, err error) {
	switch {
	case q.Time < 0 || q.Time > 365*24*time.Hour:
		return st, wrapTerms("no time")
	case q.Statement != nil:
		st = *q.Statement
	default:
		if st, err = s.cfg.Wire.Statement(ctx, q.Holder, q.Payee); err != nil {
			return st, err
		}
	}
	if err := st.Verify(s.cfg.Realm); err != nil {
		return st, err
	}
	if q.Payee == "" {
		q.Payee = st.Payee
	}
	if st.Payee != q.Payee || st.Holder != q.Holder {
		return st, fmt.Errorf("%w: it is about another payee or holder", ErrStatement)
	}
	return st, st.For(s.cfg.Self, q.Shared)
}

// order asks the holder for the voucher, pays its price, and checks what came. from is
// whose signature counts.
func (s *Service) order(ctx context.Context, ch Channels, row *Bought, q *BuyRequest, from string) error {
	reply, err := s.cfg.Wire.Buy(ctx, &row.Purchase, q.MaxPrice, true)
	switch {
	case err != nil:
		return err
	case reply.Price > q.MaxPrice:
		return fmt.Errorf("%w: %d, and at most %d is allowed", ErrPrice, reply.Price, q.MaxPrice)
	}
	row.Price = reply.Price
	var booking Booking
	if row.Price > 0 {
		if booking, err = s.cfg.Meter.Consume(ctx, q.Holder, row.Price); err != nil {
			return fmt.Errorf("%w: %w", ErrNoCredit, err)
		}
	}
	room, err := s.cfg.Meter.Room(q.Holder)
	if now := s.Now(); err == nil {
		err = room.fits(now, row.Amount, now+BuyTime.Milliseconds())
	}
	if err == nil {
		reply, err = s.cfg.Wire.Buy(ctx, &row.Purchase, row.Price, false)
	}
	if booking != nil {
		if err == nil && reply.Charged {
			err = booking.Commit(min(reply.Price, row.Price))
		} else {
			booking.Release()
		}
	}
	if err != nil {
		return err
	}
	v, err := ch.Read(reply.Voucher)
	switch {
	case err != nil:
		return err
	case v.Signer != from:
		return fmt.Errorf("%w: it is not signed by the channel's payer", ErrVoucher)
	}
	row.Hash, row.Voucher = reply.Hash, reply.Voucher
	return row.checkVoucher(&v, reply.Hash)
}

// bought returns when f, on the owner's goroutine, takes the purchase.
func (s *Service) bought(ctx context.Context, id ID, f func(*Bought) bool) (row Bought, err error) {
	err = s.until(ctx, id, func() (bool, error) {
		r, ok := s.buyer.Get(id)
		if !ok {
			return false, ErrNoHold
		}
		row = r
		return f(&row), nil
	})
	return row, err
}

// Bought lists our purchases.
func (s *Service) Bought(ctx context.Context) (list []Bought, err error) {
	err = s.look(ctx, func() { list = s.buyer.List() })
	return list, err
}

// MailOf returns the mail of a purchase that is paid.
func (s *Service) MailOf(r *Bought) (*Mail, bool) {
	if !r.Status.paid() {
		return nil, false
	}
	return r.mail(s.cfg.Realm), true
}

// deliver sends a mail, and books that it has arrived.
func (s *Service) deliver(ctx context.Context, id ID) {
	var row Bought
	if err := s.look(ctx, func() { row, _ = s.buyer.Get(id) }); err != nil || row.Status != BuyBought {
		return
	}
	if err := s.cfg.Wire.Mail(ctx, row.Payee, row.mail(s.cfg.Realm)); err != nil {
		s.log.Debug("mail was not delivered; it goes when the payee connects, or by hand", "purchase", id, "peer", row.Payee, "err", err)
		return
	}
	_ = s.put(item{step: func(now int64, fx []Effect) ([]Effect, error) { // closed: it is sent again
		return s.buyer.Step(now, &BuyEvent{Kind: BuyArrived, ID: id}, fx)
	}}, false)
}

// inspect looks what the chain did with a voucher that we bought.
func (s *Service) inspect(ctx context.Context, id ID) {
	ch, err := s.channels()
	if err != nil {
		return
	}
	var row Bought
	if err := s.look(ctx, func() { row, _ = s.buyer.Get(id) }); err != nil || !row.Status.Open() {
		return
	}
	view, err := ch.View(ctx, row.Channel, row.Lane())
	if err != nil {
		s.log.Debug("channel was not seen", "channel", row.Channel, "err", err)
		return
	}
	_ = s.put(item{step: func(now int64, fx []Effect) ([]Effect, error) { // closed: asked again
		return s.buyer.Step(now, &BuyEvent{Kind: BuySeen, ID: id, View: &view}, fx)
	}}, false)
}
