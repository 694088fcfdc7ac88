package host

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/filecoin-project/go-address"
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
	// newsBurst and newsEvery bound how often news make us ask besides: in all for ours
	// and what we heard, and of each neighbour for what it tells of. Where many are
	// known, some are always new.
	newsBurst = 4
	newsEvery = pullEvery
	// maxTold bounds those that told of news and were not asked yet.
	maxTold = 1024
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
	// ends reports whether a channel of ours settles, as we know it; nil without a chain.
	ends func(ctx context.Context, channel address.Address) bool
	tell Advertise
	// backing has our channels; nil where none settles tabs.
	backing *settler.Settler

	// mu guards the fields below.
	mu    sync.Mutex
	table *route.Adverts
	looks map[peer.ID]*rate.Limiter // by who brings; of neighbours alone
	told  map[peer.ID]bool          // who has news
	asks  map[peer.ID]*rate.Limiter // of news, by who told; of neighbours alone
	said  map[peer.ID]route.Advert  // our last of each neighbour
}

var _ packetnet.AdvertTable = (*adverts)(nil)

func newAdverts(realm swap.Realm, cfg PaymentsConfig) *adverts {
	a := &adverts{
		realm: realmText(realm), ledger: realm, tell: cfg.Advertise,
		table: route.NewAdverts(realmText(realm)), looks: make(map[peer.ID]*rate.Limiter),
		told: make(map[peer.ID]bool), asks: make(map[peer.ID]*rate.Limiter), said: make(map[peer.ID]route.Advert),
	}
	if cfg.chain != nil {
		a.look, a.ends, a.backing = cfg.chain.channel, cfg.chain.ends, cfg.chain.settler
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

// Told implements packetnet.AdvertTable.
func (a *adverts) Told(from peer.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.told) < maxTold {
		a.told[from] = true
	}
}

// toAsk are the neighbours that told of news and may be asked for them now. The others
// have to wait for their turn.
func (a *adverts) toAsk(now time.Time, neighbours []peer.ID) (list []peer.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range neighbours {
		if a.told[p] && allow(a.asks, p, now, newsRate(), newsBurst) {
			list = append(list, p)
		}
	}
	clear(a.told)
	return list
}

func newsRate() rate.Limit { return rate.Every(newsEvery) }

// allow takes one of what a peer may cost us.
func allow(of map[peer.ID]*rate.Limiter, p peer.ID, now time.Time, limit rate.Limit, burst int) bool {
	l := of[p]
	if l == nil {
		l = rate.NewLimiter(limit, burst)
		of[p] = l
	}
	return l.AllowN(now, 1)
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

// edge is what decides how we carry to a neighbour.
type edge struct {
	to peer.ID
	// locks are carried to it; channel is the one behind its tab, while that lasts.
	locks   bool
	channel address.Address
}

// edges are those to our neighbours: where they change there is more to say, or to take
// back, and to hear.
func (n *Node) edges(ctx context.Context, neighbours []peer.ID) []edge {
	list := make([]edge, 0, len(neighbours))
	for _, p := range neighbours {
		e := edge{to: p}
		if n.locks != nil {
			_, e.locks = n.locks.Way(p)
		}
		if n.adverts.tell == AdvertiseChannels {
			e.channel = n.adverts.channelTo(ctx, p)
		}
		list = append(list, e)
	}
	return list
}

// spread keeps our own adverts fresh and pulls those of our neighbours, until ctx
// ends. All of them are asked every so often; besides, who told that it has news, and,
// to tell that we have, all of them where we made or heard something new.
func (n *Node) spread(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(min(spreadTick, every))
	defer tick.Stop()
	gossip := rate.NewLimiter(newsRate(), newsBurst)
	var last time.Time
	var told []edge
	news := false // that our neighbours were not told of
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now, neighbours := time.Now(), n.packets.Neighbours()
		edges := n.edges(ctx, neighbours)
		changed := !slices.Equal(told, edges)
		whom, tell := n.adverts.toAsk(now, neighbours), false
		if changed || now.Sub(last) >= every {
			last, told = now, edges
			n.adverts.tidy(now, neighbours)
			for _, p := range neighbours {
				if err := n.advertise(ctx, now, p); err != nil {
					n.log.Warn("own advert not made", "peer", p, "err", err)
				}
			}
			whom, tell, news = neighbours, changed || news, false
		} else if news && gossip.AllowN(now, 1) {
			whom, tell, news = neighbours, true, false
		}
		for _, p := range whom {
			if ctx.Err() != nil {
				return
			}
			if got, err := n.pulls.Pull(ctx, p, tell); err != nil {
				n.log.Debug("adverts not pulled", "peer", p, "err", err)
			} else if got > 0 {
				news = true
				n.log.Debug("adverts pulled", "peer", p, "news", got)
			}
		}
	}
}

// tidy forgets adverts that are not good any more, and what was kept of neighbours that
// left.
func (a *adverts) tidy(now time.Time, neighbours []peer.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.table.Expire(now)
	gone := func(p peer.ID) bool { return !slices.Contains(neighbours, p) }
	maps.DeleteFunc(a.looks, func(p peer.ID, _ *rate.Limiter) bool { return gone(p) })
	maps.DeleteFunc(a.asks, func(p peer.ID, _ *rate.Limiter) bool { return gone(p) })
	maps.DeleteFunc(a.said, func(p peer.ID, _ route.Advert) bool { return gone(p) })
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
	if n.adverts.stands(now, &ad) {
		return nil
	}
	if ad.Signature, err = n.host.Peerstore().PrivKey(n.host.ID()).Sign(ad.SigningBytes(n.adverts.realm)); err != nil {
		return err
	}
	n.adverts.mu.Lock()
	defer n.adverts.mu.Unlock()
	if _, err = n.adverts.table.Add(now, ad, n.host.ID()); err == nil {
		n.adverts.said[p] = ad
	}
	return err
}

// stands reports whether our last advert of a neighbour says the same, and need not be
// made anew. One of another channel does not: of all that name one way the latest counts,
// and so takes back what was said of a channel that settles.
func (a *adverts) stands(now time.Time, ad *route.Advert) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	old, ok := a.said[ad.To]
	return ok && fresh(now, &old) && old.Edge == ad.Edge && old.Modes == ad.Modes && old.Channel == ad.Channel
}

func fresh(now time.Time, ad *route.Advert) bool {
	return ad.Expires-now.UnixMilli() > advertLife.Milliseconds()/2
}

// lockDelta is what a node says of its hop delta under locks.
func (a *adverts) lockDelta(from, to peer.ID) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Duration(a.table.LockDelta(from, to)) * time.Millisecond
}

// own returns the advert of the same edge that is in the table, while it need not be made
// anew.
func (a *adverts) own(now time.Time, ad *route.Advert) (old route.Advert, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old, ok = a.table.Find(ad)
	return old, ok && fresh(now, &old)
}
