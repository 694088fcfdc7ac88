package host

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/tallystick/tally/host/settler"
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
	// Adverts that name a channel cost a look at the chain each: so many a second of one
	// neighbour that brings them, so that none takes the looks of the others.
	channelLooks     = 1
	channelLookBurst = 16
)

// Advertise is what a node tells others of its neighbours.
type Advertise uint8

// What is told. Who is not told of an edge learns it from the payee's invoice.
const (
	// AdvertiseTabs: whom we carry to, and how much.
	AdvertiseTabs Advertise = iota
	// AdvertiseChannels: and the channel that settles the tab, where there is one. The
	// chain then shows how much is behind it, and whose its addresses are.
	AdvertiseChannels
	// AdvertiseNothing: our edges are private.
	AdvertiseNothing
)

// adverts are the adverts of a node, under a lock that is held over memory alone.
type adverts struct {
	realm string
	// ledger is the realm as payout addresses are bound to it, and look what the chain
	// shows of a channel; nil without a chain.
	ledger swap.Realm
	look   func(ctx context.Context, channel string) (channelView, error)
	tell   Advertise
	// backing has our channels; nil where none settles tabs.
	backing *settler.Settler

	// mu guards the fields below.
	mu    sync.Mutex
	table *route.Adverts
	looks map[peer.ID]*rate.Limiter // by who brings; of neighbours alone
}

var _ packetnet.AdvertTable = (*adverts)(nil)

func newAdverts(realm swap.Realm, cfg PaymentsConfig) *adverts {
	a := &adverts{
		realm: realmText(realm), ledger: realm, tell: cfg.Advertise,
		table: route.NewAdverts(realmText(realm)), looks: make(map[peer.ID]*rate.Limiter),
	}
	if cfg.chain != nil {
		a.look, a.backing = cfg.chain.channel, cfg.chain.settler
	}
	return a
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
	if err := a.checkChannel(ctx, &ad, from); err != nil {
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

// spread keeps our own adverts fresh and pulls those of our neighbours, until ctx
// ends.
func (n *Node) spread(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(min(spreadTick, every))
	defer tick.Stop()
	var last time.Time
	var met, locked []peer.ID
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now, neighbours := time.Now(), n.packets.Neighbours()
		ways := n.lockWays(neighbours)
		if now.Sub(last) < every && slices.Equal(met, neighbours) && slices.Equal(locked, ways) {
			continue
		}
		last, met, locked = now, neighbours, ways
		n.adverts.tidy(now, neighbours)
		for _, p := range neighbours {
			if err := n.advertise(ctx, now, p); err != nil {
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

// tidy forgets adverts that are not good any more, and the looks of neighbours that left.
func (a *adverts) tidy(now time.Time, neighbours []peer.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.table.Expire(now)
	for p := range a.looks {
		if !slices.Contains(neighbours, p) {
			delete(a.looks, p)
		}
	}
}

// advertise says what we carry to a neighbour: what fits the tab when it is even, not
// what fits it now, which is the business of the two.
func (n *Node) advertise(ctx context.Context, now time.Time, p peer.ID) error {
	if n.adverts.tell == AdvertiseNothing {
		return nil
	}
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
	if n.locks != nil {
		n.locks.advertise(&ad)
	}
	if ad.Capacity == 0 {
		return nil // nobody would use it
	}
	if n.adverts.tell == AdvertiseChannels {
		n.adverts.nameChannel(ctx, now, &ad)
	}
	if old, ok := n.adverts.own(now, &ad); ok && old.Edge == ad.Edge && old.Modes == ad.Modes {
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

// lockDelta is what a node says of its hop delta under locks.
func (a *adverts) lockDelta(from, to peer.ID) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Duration(a.table.LockDelta(from, to)) * time.Millisecond
}

// own returns the advert of the same edge that is in the table, while it need not be made
// anew.
func (a *adverts) own(now time.Time, ad *route.Advert) (old route.Advert, fresh bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old, ok := a.table.Find(ad)
	return old, ok && old.Expires-now.UnixMilli() > advertLife.Milliseconds()/2
}
