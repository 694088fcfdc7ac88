package hold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// ledger is a chain with the holder's channel to the payee, in memory: one epoch a
// second. Vouchers are JSON; who signed them they say themselves.
type ledger struct {
	begun time.Time
	times ChainTimes

	// mu guards the fields below.
	mu              sync.Mutex
	balance, toSend tally.Amount
	minSettle       int64
	settling, gone  bool
	mute            bool // nothing can be seen
	redeemed        map[uint64]tally.Amount
	signed          map[uint64][]byte // by lane, of the holder
	used            tally.Amount      // what it signed away
	kept, total     tally.Amount      // at the payee
	taken           map[uint64]bool
	forge           func(v *Voucher) // what a holder signs instead
}

func newLedger() *ledger {
	return &ledger{
		begun: time.Now(), times: ChainTimes{Inclusion: 5, Margin: 20, Furthest: 100_000, EpochMS: 1000}, balance: 1000,
		redeemed: make(map[uint64]tally.Amount), signed: make(map[uint64][]byte), taken: make(map[uint64]bool),
	}
}

const theChannel = "t2channel"

func (l *ledger) height() int64 { return 100 + int64(time.Since(l.begun)/time.Second) }

// channelsOf is the ledger as one node has it.
type channelsOf struct {
	*ledger
	w    *town
	self peer.ID
}

var _ Channels = channelsOf{}

func (c channelsOf) Times() ChainTimes { return c.times }

func (c channelsOf) View(_ context.Context, channel string, lane uint64) (ChannelView, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if channel != theChannel {
		return ChannelView{}, ErrChannel
	}
	if c.mute {
		return ChannelView{}, errors.New("no answer")
	}
	paid, used := c.redeemed[lane]
	return ChannelView{
		Height: c.height(), Final: c.height(), From: "holder", Balance: c.balance, ToSend: c.toSend, MinSettle: c.minSettle,
		Settling: c.settling, Gone: c.gone, Used: used, Redeemed: paid,
	}, nil
}

func (c channelsOf) Read(raw []byte) (v Voucher, err error) {
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, fmt.Errorf("%w: %w", ErrVoucher, err)
	}
	v.Raw = raw
	return v, nil
}

func (c channelsOf) Linked(p peer.ID, out bool) (string, error) {
	holder, payee := c.w.who["holder"].id, c.w.who["payee"].id
	if out && c.self == holder && p == payee || !out && c.self == payee && p == holder {
		return theChannel, nil
	}
	return "", ErrChannel
}

func (c channelsOf) Sign(_ context.Context, want *Voucher) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if raw := c.signed[want.Lane]; raw != nil && want.Lane != guardLane {
		return raw, nil
	}
	if want.Amount > c.balance-c.used {
		return nil, ErrLaneRoom
	}
	v := *want
	v.Signer = "holder"
	if c.forge != nil {
		c.forge(&v)
	}
	raw, err := json.Marshal(&v)
	c.used += v.Amount
	c.signed[want.Lane] = raw
	return raw, err
}

func (c channelsOf) Submit(_ context.Context, _ string, guard []byte) error {
	v, err := c.Read(guard)
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.minSettle = max(c.minSettle, v.MinSettle)
	}
	return err
}

func (c channelsOf) Keep(_ context.Context, channel string, room tally.Amount) (balance, total tally.Amount, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if channel != theChannel {
		return 0, 0, ErrChannel
	}
	c.kept = room
	return c.balance, c.total, nil
}

func (c channelsOf) Take(_ context.Context, _ string, raw []byte, preimage tally.Preimage, draws tally.Amount) error {
	v, err := c.Read(raw)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.taken[v.Lane]:
		return nil
	case !preimage.Opens(v.Hash) || c.height() > v.Expires:
		return ErrMail
	case c.total+v.Amount > c.balance-(c.kept-min(c.kept, draws)):
		return ErrLaneRoom
	}
	c.taken[v.Lane] = true
	c.total += v.Amount
	c.kept -= min(c.kept, draws)
	return nil
}

// redeem is the payee's watcher.
func (l *ledger) redeem(lane uint64, amount tally.Amount) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.redeemed[lane] = amount
	l.toSend += amount
}

func (l *ledger) down(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mute = down
}

// The wire of the second form.

func (x wireOf) Statement(ctx context.Context, holder, payee peer.ID) (LaneStatement, error) {
	l, err := x.w.at(holder)
	if err != nil {
		return LaneStatement{}, err
	}
	return l.GiveStatement(ctx, x.self, payee)
}

func (x wireOf) Deposit(ctx context.Context, holder peer.ID, st *LaneStatement) error {
	l, err := x.w.at(holder)
	if err != nil {
		return err
	}
	return l.TakeStatement(ctx, x.self, st)
}

func (x wireOf) Guard(ctx context.Context, holder peer.ID, height int64) ([]byte, error) {
	l, err := x.w.at(holder)
	if err != nil {
		return nil, err
	}
	return l.GiveGuard(ctx, x.self, height)
}

func (x wireOf) Buy(ctx context.Context, p *Purchase, price tally.Amount, quote bool) (SoldReply, error) {
	l, err := x.w.at(p.Holder)
	if err != nil {
		return SoldReply{}, err
	}
	return l.Sell(ctx, x.self, p, price, quote)
}

func (x wireOf) Mail(ctx context.Context, payee peer.ID, m *Mail) error {
	l, err := x.w.at(payee)
	if err != nil {
		return err
	}
	_, err = l.TakeMail(ctx, m)
	return err
}
