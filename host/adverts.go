package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paystream/payments"
	"github.com/tallystick/tally/paystream/payments/route"
	"github.com/tallystick/tally/protocols/packetnet"
	"github.com/tallystick/tally/swap"
)

const (
	// advertLife is how long an advert of ours is good; it is made anew at half.
	advertLife = 30 * time.Minute
	// pullEvery is how often each neighbour is asked for adverts.
	pullEvery = 30 * time.Second
	// spreadTick is how soon a new neighbour is seen.
	spreadTick = time.Second
	// Adverts that name a channel cost a look at the chain each.
	channelLooks     = 1 // a second
	channelLookBurst = 16
)

// errChannelAdvert: an advert that names a channel which does not hold as much.
var errChannelAdvert = errors.New("host: the chain does not show what the advert says of its channel")

// adverts are the adverts of a node, under a lock that is held over memory alone.
type adverts struct {
	realm string
	// funds returns what a channel holds, in units; nil without a chain.
	funds func(ctx context.Context, channel string) (tally.Amount, error)
	looks *rate.Limiter

	// mu guards the field below.
	mu    sync.Mutex
	table *route.Adverts
}

var _ packetnet.AdvertTable = (*adverts)(nil)

func newAdverts(realm string, funds func(context.Context, string) (tally.Amount, error)) *adverts {
	return &adverts{realm: realm, funds: funds, looks: rate.NewLimiter(channelLooks, channelLookBurst), table: route.NewAdverts(realm)}
}

// with runs f on the table.
func with[T any](a *adverts, f func(*route.Adverts) T) T {
	a.mu.Lock()
	defer a.mu.Unlock()
	return f(a.table)
}

// Digest implements packetnet.AdvertTable.
func (a *adverts) Digest() []byte { return with(a, (*route.Adverts).Digest) }

// Differ implements packetnet.AdvertTable.
func (a *adverts) Differ(words []byte) (list []byte, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.table.Differ(words)
}

// Have implements packetnet.AdvertTable.
func (a *adverts) Have(bucket byte) []byte {
	return with(a, func(t *route.Adverts) []byte { return t.Have(bucket) })
}

// Missing implements packetnet.AdvertTable.
func (a *adverts) Missing(bucket byte, have []byte, size int) [][]byte {
	return with(a, func(t *route.Adverts) [][]byte { return t.Missing(bucket, have, size) })
}

// Offer implements packetnet.AdvertTable. What is not signed as it should be is the
// peer's fault; what is old, or finds no room, is nobody's.
func (a *adverts) Offer(ctx context.Context, from peer.ID, raw []byte) (bool, error) {
	ad, err := route.ParseAdvert(raw)
	if err != nil {
		return false, err
	}
	now := time.Now()
	if !with(a, func(t *route.Adverts) bool { return t.News(&ad) }) || now.UnixMilli() >= ad.Expires {
		return false, nil
	}
	if err := ad.Verify(now, a.realm); err != nil { // not under the lock
		return false, err
	}
	if err := a.checkChannel(ctx, &ad); err != nil {
		return false, nil //nolint:nilerr // the chain may be away, or the channel be newer there: not kept, and no fault
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	news, err := a.table.AddVerified(now, ad, from)
	if errors.Is(err, route.ErrAdvertsFull) {
		return false, nil
	}
	return news, err
}

// checkChannel compares an advert with the chain, where it names a channel.
func (a *adverts) checkChannel(ctx context.Context, ad *route.Advert) error {
	if ad.Channel == "" {
		return nil
	}
	if a.funds == nil || !a.looks.Allow() {
		return errChannelAdvert
	}
	has, err := a.funds(ctx, ad.Channel)
	if err != nil {
		return err
	}
	if ad.Capacity > has {
		return fmt.Errorf("%w: %d, it holds %d", errChannelAdvert, ad.Capacity, has)
	}
	return nil
}

// spread keeps our own adverts fresh and pulls those of our neighbours, until ctx
// ends.
func (n *Node) spread(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(min(spreadTick, every))
	defer tick.Stop()
	var last time.Time
	var met []peer.ID
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now, neighbours := time.Now(), n.packets.Neighbours()
		if now.Sub(last) < every && slices.Equal(met, neighbours) {
			continue
		}
		last, met = now, neighbours
		with(n.adverts, func(t *route.Adverts) any { t.Expire(now); return nil })
		for _, p := range neighbours {
			if err := n.advertise(now, p); err != nil {
				n.log.Warn("own advert not made", "peer", p, "err", err)
			}
		}
		for _, p := range neighbours {
			if ctx.Err() != nil {
				return
			}
			if news, err := n.pulls.Pull(ctx, p); err != nil {
				n.log.Debug("adverts not pulled", "peer", p, "err", err)
			} else if news > 0 {
				n.log.Debug("adverts pulled", "peer", p, "news", news)
			}
		}
	}
}

// advertise says what we carry to a neighbour: what fits the tab when it is even, not
// what fits it now, which is the business of the two.
func (n *Node) advertise(now time.Time, p peer.ID) error {
	room, err := n.book.HeadroomPacket(p, swap.Consume)
	if err != nil {
		return err
	}
	row, err := n.book.Row(p)
	if err != nil {
		return err
	}
	rules := n.rules
	ad := route.Advert{
		Edge: route.Edge{
			From: n.host.ID(), To: p, Capacity: min(room.SaturatingAdd(row.Balance.Debt()), payments.MaxTotal-1),
			FeeBase: rules.FeeBase, FeePPM: rules.FeePPM,
		},
		HopDelta: uint32(rules.HopDelta.Milliseconds()), Modes: route.ModeCredit,
		Seq: uint64(now.UnixMilli()), Expires: now.Add(advertLife).UnixMilli(),
	}
	if ad.Capacity == 0 {
		return nil // nobody would use it
	}
	if old, ok := n.adverts.own(&ad); ok && old.Edge == ad.Edge && old.Expires-now.UnixMilli() > advertLife.Milliseconds()/2 {
		return nil
	}
	if ad.Signature, err = n.host.Peerstore().PrivKey(n.host.ID()).Sign(ad.SigningBytes(n.adverts.realm)); err != nil {
		return err
	}
	n.adverts.mu.Lock()
	defer n.adverts.mu.Unlock()
	_, err = n.adverts.table.Add(now, ad, n.host.ID())
	return err
}

// own returns the advert of the same edge that is in the table.
func (a *adverts) own(ad *route.Advert) (old route.Advert, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.table.Find(ad)
}
