package bench

import (
	"context"
	"errors"
	"time"

	"github.com/tallystick/tally/internal/durable"
)

// diallers is how many peers dial at once.
const diallers = 8

// benchDial measures how fast peers that the node never saw connect to it, with
// and without the handshake of swap. The hosts are there before.
func benchDial(ctx context.Context, o *Options) (_ []Figure, err error) {
	perRound := scale(o, 128, 3)
	dir, remove, err := o.folder()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	store, err := openDisk(dir)
	if err != nil {
		return nil, err
	}
	hub, err := newParty(ctx, partyConfig{transport: overTCP, policy: uncapped(wide()), store: store})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, hub.close()) }()
	if err := hub.swap.Start(); err != nil {
		return nil, err
	}
	dialled := func(withSwap bool) probe {
		return func(ctx context.Context, _ time.Duration) (_ float64, err error) {
			o.say("dial: %d new peers, swap %v", perRound, withSwap)
			newStore := func(int) *durable.Store { return noDisk() }
			if !withSwap {
				newStore = nil
			}
			clients, err := crowd(ctx, perRound, partyConfig{transport: overTCP, policy: wide()}, newStore)
			if err != nil {
				return 0, err
			}
			defer func() { err = errors.Join(err, disperse(clients)) }()
			for _, c := range clients {
				if !withSwap {
					continue
				}
				if err := c.swap.Start(); err != nil {
					return 0, err
				}
			}
			begin := time.Now()
			err = each(perRound, diallers, func(i int) error {
				if withSwap {
					return clients[i].meet(ctx, hub)
				}
				return clients[i].dial(ctx, hub)
			})
			return float64(perRound) / time.Since(begin).Seconds(), err
		}
	}
	m, err := rounds(ctx, o, dialled(true), dialled(false))
	if err != nil {
		return nil, err
	}
	return []Figure{
		rate("dial", "peers/s", m[0], m[1], "the same dials, up to identify, without swap", 350).
			note("to the session in both books; both ends share the machine").with("peers_per_round", perRound).with("at_once", diallers),
	}, nil
}
