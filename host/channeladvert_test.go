package host

import (
	"context"
	"crypto/ed25519"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/host/repo"
	"github.com/tallystick/tally/paystream/payments/route"
	"github.com/tallystick/tally/swap"
)

// advertised is a peer with a channel to another on a devnet, that may tell of it.
type advertised struct {
	chain    *testChain
	from, to *Daemon
	channel  address.Address
}

// mined mines a block now and then until what is waited for is there. The peers have to
// keep up with the blocks.
func (n *testChain) mined(what string, fn func() bool) {
	n.t.Helper()
	looks := 0
	eventually(n.t, what, func() bool {
		if fn() {
			return true
		}
		if looks++; looks%8 == 0 {
			if err := n.dev.chain.Mine(n.t.Context(), 1); err != nil {
				n.t.Fatal(err)
			}
		}
		return false
	})
}

func newAdvertised(t *testing.T) *advertised {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	a := &advertised{chain: startNet(t, filepath.Join(t.TempDir(), "net"))}
	t.Cleanup(a.chain.stop)
	for _, d := range []**Daemon{&a.from, &a.to} {
		made, stop, err := on(t, newRepo(t), a.chain.node(), func(c *repo.Config) { c.Advertise = repo.AdvertiseChannels })
		if err != nil {
			t.Fatal(err)
		}
		*d = made
		t.Cleanup(stop)
		if _, err := a.chain.dev.chain.Faucet(ctx, made.chain.facts.Payout, big.NewInt(5e18)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.chain.dev.chain.Mine(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := a.from.PeerConnect(ctx, addrInfo(t, a.to)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.from.node.WaitNeighbour(ctx, a.to.host.ID()), a.to.node.WaitNeighbour(ctx, a.from.host.ID())); err != nil {
		t.Fatal(err)
	}
	// A debt of the whole threshold opens the channel.
	if err := a.from.node.book.Credit(a.to.host.ID(), "test", 100); err != nil && !errors.Is(err, swap.ErrOverThreshold) {
		t.Fatal(err)
	}
	if err := a.to.node.book.Debit(a.from.host.ID(), "test", 100); err != nil && !errors.Is(err, swap.ErrOverThreshold) {
		t.Fatal(err)
	}
	a.chain.mined("a channel that settles the tab", func() bool {
		var ok bool
		a.channel, _, ok = a.from.chain.settler.Linked(a.to.host.ID(), true)
		if !ok {
			return false
		}
		_, err := a.from.chain.channel(ctx, a.channel.String())
		return err == nil // at finality
	})
	return a
}

// told is the advert that the node itself makes of its neighbour.
func (a *advertised) told(t *testing.T) route.Advert {
	t.Helper()
	var ad route.Advert
	a.chain.mined("an advert that names the channel", func() bool {
		if err := a.from.node.advertise(t.Context(), time.Now(), a.to.host.ID()); err != nil {
			t.Fatal(err)
		}
		var ok bool
		ad, ok = a.from.node.adverts.own(time.Now(), &route.Advert{
			Edge: route.Edge{From: a.from.host.ID(), To: a.to.host.ID()}, Channel: a.channel.String(),
		})
		return ok
	})
	return ad
}

// offer gives an advert, signed by key, to a node that has never heard of any, and
// returns whether it keeps it.
func (a *advertised) offer(t *testing.T, key crypto.PrivKey, ad route.Advert, chain *chain) bool {
	t.Helper()
	table := newAdverts(a.from.node.book.Realm(), PaymentsConfig{chain: chain})
	var err error
	if ad.Signature, err = key.Sign(ad.SigningBytes(table.realm)); err != nil {
		t.Fatal(err)
	}
	kept, err := table.Offer(t.Context(), "neighbour", ad.Bytes())
	if err != nil {
		t.Fatalf("the neighbour is blamed: %v", err)
	}
	if kept != (table.table.Len() == 1) {
		t.Fatalf("said %t, %d adverts are kept", kept, table.table.Len())
	}
	return kept
}

// TestChannelAdverts: a node names the channel that settles its tab, and the chain
// decides at whoever hears of it: one that is false, of other parties, too small,
// settling or collected is not kept.
func TestChannelAdverts(t *testing.T) {
	a := newAdvertised(t)
	good := a.told(t)
	view, err := a.from.chain.channel(t.Context(), a.channel.String())
	if err != nil || view.settling || view.free < 10_000 || view.from != a.from.chain.facts.Payout || view.to != a.to.chain.facts.Payout {
		t.Fatalf("%+v, %v", view, err)
	}
	if good.Capacity == 0 || good.Capacity > view.free || len(good.Bytes()) > route.MaxAdvert {
		t.Fatalf("%+v, of a channel with %d", good.Edge, view.free)
	}
	keyOf := func(d *Daemon) crypto.PrivKey { return d.host.Peerstore().PrivKey(d.host.ID()) }
	key, chain := keyOf(a.from), a.to.chain
	if !a.offer(t, key, good, chain) {
		t.Fatal("the node's own advert is refused")
	}
	stranger, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(make([]byte, 32)))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := peer.IDFromPrivateKey(stranger)
	if err != nil {
		t.Fatal(err)
	}
	for name, lie := range map[string]struct {
		key    crypto.PrivKey
		change func(*route.Advert)
	}{
		"more than the channel holds": {key, func(ad *route.Advert) { ad.Capacity = view.free + 1 }},
		"an address of no channel":    {key, func(ad *route.Advert) { ad.Channel = a.from.chain.facts.Payout.String() }},
		"no address":                  {key, func(ad *route.Advert) { ad.Channel = "channel" }},
		"a stranger's node":           {stranger, func(ad *route.Advert) { ad.From = foreign }},
		"to a stranger":               {key, func(ad *route.Advert) { ad.To = foreign }},
		"the way back": {keyOf(a.to), func(ad *route.Advert) {
			ad.From, ad.To, ad.FromProof, ad.ToProof = ad.To, ad.From, ad.ToProof, ad.FromProof
		}},
		"proofs of nothing": {key, func(ad *route.Advert) { ad.FromProof = []byte{1} }},
	} {
		t.Run(name, func(t *testing.T) {
			ad := good
			lie.change(&ad)
			if a.offer(t, lie.key, ad, chain) {
				t.Fatal("it is kept")
			}
		})
	}
	t.Run("where there is no chain", func(t *testing.T) {
		if a.offer(t, key, good, nil) {
			t.Fatal("kept, and nobody has looked")
		}
	})
	// What was redeemed is the payee's, though the channel holds it still.
	cashed := false
	a.chain.mined("a voucher is redeemed", func() bool {
		if !cashed { // the cheque may be on its way
			_, err := a.to.settler.Cashout(t.Context(), a.from.host.ID(), 0)
			cashed = err == nil
		}
		v, err := chain.channel(t.Context(), a.channel.String())
		return err == nil && v.free < view.free
	})
	whole := good
	whole.Capacity = view.free
	if a.offer(t, key, whole, chain) {
		t.Fatal("kept, and part of it was redeemed")
	}
	heard := func(channel string) (ad route.Advert, ok bool) {
		return a.to.node.adverts.own(time.Now(), &route.Advert{Edge: good.Edge, Channel: channel})
	}
	a.chain.mined("the neighbour hears of the channel", func() bool {
		_, err := a.to.node.pulls.Pull(t.Context(), a.from.host.ID(), false)
		_, ok := heard(good.Channel)
		return err == nil && ok
	})
	if _, err := a.from.chain.manager.PaychSettle(t.Context(), a.channel); err != nil {
		t.Fatal(err)
	}
	a.chain.mined("the channel settles", func() bool {
		v, err := chain.channel(t.Context(), a.channel.String())
		return err == nil && v.settling
	})
	if a.offer(t, key, good, chain) {
		t.Fatal("kept, and its channel is settling")
	}
	eventually(t, "the neighbour hears that nothing is said of it any more", func() bool {
		named, _ := heard(good.Channel)
		plain, ok := heard("")
		return ok && plain.Seq > named.Seq
	})
	a.chain.mined("the channel is collected", func() bool { // by the watcher of either side
		_, err := chain.channel(t.Context(), a.channel.String())
		return err != nil
	})
	if a.offer(t, key, good, chain) {
		t.Fatal("kept, and its channel is gone")
	}
}

// TestLooksAreOfANeighbour: who brings many adverts with channels uses up its own looks
// at the chain, and nobody else's.
func TestLooksAreOfANeighbour(t *testing.T) {
	a := newAdverts(swap.Realm{Network: "test"}, PaymentsConfig{})
	looks := 0
	a.look = func(context.Context, string) (channelView, error) { looks++; return channelView{}, errChannelEnds }
	ad := &route.Advert{Channel: "f2abc"}
	for range 100 * channelLookBurst {
		if err := a.checkChannel(t.Context(), ad, "greedy"); err == nil {
			t.Fatal("kept")
		}
	}
	if looks < channelLookBurst || looks > 10*channelLookBurst {
		t.Fatalf("%d looks", looks)
	}
	before := looks
	if err := a.checkChannel(t.Context(), ad, "modest"); !errors.Is(err, errChannelEnds) || looks != before+1 {
		t.Fatalf("%v, %d looks", err, looks-before)
	}
	a.tidy(time.Now(), []peer.ID{"modest"})
	if len(a.looks) != 1 {
		t.Fatalf("%d neighbours are remembered", len(a.looks))
	}
}

// TestNewsOfANeighbour: who always tells of news is asked for it a few times, and then
// as often as everybody; nobody else waits for that.
func TestNewsOfANeighbour(t *testing.T) {
	a := newAdverts(swap.Realm{Network: "test"}, PaymentsConfig{})
	both := []peer.ID{"greedy", "modest"}
	now, asked := time.Now(), 0
	for range 100 * newsBurst {
		now = now.Add(time.Millisecond)
		a.Told("greedy")
		a.Told("stranger")
		asked += len(a.toAsk(now, both))
	}
	if asked != newsBurst {
		t.Fatalf("asked %d times", asked)
	}
	a.Told("modest")
	if list := a.toAsk(now, both); !slices.Equal(list, both[1:]) || len(a.toAsk(now, both)) != 0 {
		t.Fatalf("asked %v", list)
	}
	for i := range 2 * maxTold {
		a.Told(peer.ID(strconv.Itoa(i)))
	}
	if len(a.told) > maxTold || len(a.asks) != 2 {
		t.Fatalf("%d and %d are remembered", len(a.told), len(a.asks))
	}
	if a.tidy(now, both[:1]); len(a.asks) != 1 {
		t.Fatal("who left is remembered")
	}
}

// TestPrivateEdges: a node that is told to says nothing of its neighbours.
func TestPrivateEdges(t *testing.T) {
	for word, adverts := range map[string]int{repo.AdvertiseTabs: 1, repo.AdvertiseChannels: 1, repo.AdvertiseNothing: 0} {
		t.Run(word, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			a, stopA := startDaemon(t, newRepo(t), func(c *repo.Config) { c.Advertise = word })
			defer stopA()
			b, stopB := startDaemon(t, newRepo(t), func(c *repo.Config) { c.Advertise = repo.AdvertiseNothing })
			defer stopB()
			if _, err := a.PeerConnect(ctx, addrInfo(t, b)); err != nil {
				t.Fatal(err)
			}
			if err := a.node.WaitNeighbour(ctx, b.host.ID()); err != nil {
				t.Fatal(err)
			}
			if err := a.node.advertise(ctx, time.Now(), b.host.ID()); err != nil {
				t.Fatal(err)
			}
			if got := with(a.node.adverts, (*route.Adverts).Len); got != adverts {
				t.Fatalf("%d adverts, want %d", got, adverts)
			}
		})
	}
	bad := repo.DefaultConfig()
	bad.Advertise = "all"
	if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), "advertise") {
		t.Fatalf("any word is taken: %v", err)
	}
}
