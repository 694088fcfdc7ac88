package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally/paych"
	"github.com/tallystick/tally/paystream/payments/route"
	"github.com/tallystick/tally/swap"
)

// What keeps an advert that names a channel from being kept.
var (
	errNoLook       = errors.New("host: there is no chain to look at, or too many adverts name channels; the next exchange brings it again")
	errChannelEnds  = errors.New("host: the channel of the advert is settling")
	errChannelFunds = errors.New("host: the channel of the advert holds less than it says")
	errChannelParty = errors.New("host: the channel of the advert is not from its node to its neighbour")
)

// checkChannel compares an advert with the chain, where it names a channel:
//
//	the chain, at finality          the advert
//	  from ─────────────────────────── FromProof: signed by from, names From
//	  to ───────────────────────────── ToProof: signed by to, names To
//	  balance − redeemed, not settling ≥ Capacity
//
// The proofs are those of the handshakes that opened the channel, so that nobody names
// the channel of another, nor one to itself as one to a neighbour.
func (a *adverts) checkChannel(ctx context.Context, ad *route.Advert, by peer.ID) error {
	if ad.Channel == "" {
		return nil
	}
	if a.look == nil || !a.mayLook(by) {
		return errNoLook
	}
	v, err := a.look(ctx, ad.Channel)
	switch {
	case err != nil:
		return err
	case v.settling:
		return errChannelEnds
	case ad.Capacity > v.free:
		return fmt.Errorf("%w: %d of %d", errChannelFunds, v.free, ad.Capacity)
	}
	if err := a.proves(ad.FromProof, v.from, ad.From); err != nil {
		return err
	}
	return a.proves(ad.ToProof, v.to, ad.To)
}

// proves reports whether a proof ties an address to a peer.
func (a *adverts) proves(proof []byte, addr address.Address, p peer.ID) error {
	var sig crypto.Signature
	err := sig.UnmarshalBinary(proof)
	if err == nil {
		err = paych.VerifySignature(&sig, addr, swap.PayoutText(a.ledger, p, addr.String()))
	}
	if err != nil {
		return fmt.Errorf("%w: %s and %s: %w", errChannelParty, p, addr, err)
	}
	return nil
}

// mayLook takes one of a neighbour's looks at the chain.
func (a *adverts) mayLook(by peer.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return allow(a.looks, by, time.Now(), channelLooks, channelLookBurst)
}

// channelTo is our channel to a neighbour, while it does not settle.
func (a *adverts) channelTo(ctx context.Context, p peer.ID) address.Address {
	if a.backing == nil {
		return address.Undef
	}
	ch, _, ok := a.backing.Linked(p, true)
	if !ok || a.ends(ctx, ch) {
		return address.Undef
	}
	return ch
}

// nameChannel puts our channel to the neighbour into an advert of ours, and bounds what
// it says to what the channel holds. Where others would refuse it, it stays out. The
// chain is looked at when the advert is made anew.
func (a *adverts) nameChannel(ctx context.Context, now time.Time, ad *route.Advert) {
	if a.channelTo(ctx, ad.To) == address.Undef {
		return // what settles is not said any more
	}
	o, err := a.backing.Payout(ctx, ad.To, func(addr string) []byte { return swap.PayoutText(a.ledger, ad.From, addr) })
	if err != nil || o.Channel == "" {
		return
	}
	named := *ad
	named.Channel, named.FromProof, named.ToProof = o.Channel, o.Proof, a.backing.Proof(ad.To)
	if old, fresh := a.own(now, &named); fresh && old.Capacity <= ad.Capacity {
		named.Capacity = old.Capacity
		*ad = named
		return
	}
	v, err := a.look(ctx, o.Channel)
	if err != nil || v.free == 0 || v.settling {
		return
	}
	named.Capacity = min(named.Capacity, v.free)
	if a.proves(named.FromProof, v.from, named.From) == nil && a.proves(named.ToProof, v.to, named.To) == nil {
		*ad = named
	}
}
