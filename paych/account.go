package paych

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"

	"github.com/tallystick/tally/internal/durable"
)

// maxTracked bounds the channels that are in memory because somebody named them,
// and of which nothing is worth a record: each costs whoever made it a message, but
// us as well, memory and looks at the chain. The oldest makes room.
const maxTracked = 1024

// account is one channel with what is needed to save and send.
type account struct {
	// look is the turn to look at the chain, so that views are taken in order.
	look chan struct{}
	// again is the turn of calls that give a voucher once however often they come.
	again chan struct{}

	// mu guards the fields below.
	mu     sync.Mutex
	ch     *Channel
	dirt   dirt
	gen    uint64 // changes made
	saved  uint64 // changes on disk
	saving bool
	batch  durable.Batch // of the save under way, whose memory is used again
	gate   chan struct{} // closed when the save under way is done
	broken error         // the save failed; so has the store
	// waiting are the calls that wait for a top-up.
	waiting map[uint64]chan answer
	// sending are the messages under way.
	sending map[sendKey]*outgoing
	// finished are the keys of messages with a receipt, oldest first.
	finished []*outgoing

	lookedAt  abi.ChainEpoch
	looking   bool // a look is queued
	archiving bool
	forgotten bool // by forget: another account may have the channel by now
}

// sendKey names what a message is for; there is one at a time.
type sendKey struct {
	kind messageKind
	lane uint64
}

type answer struct {
	cid cid.Cid
	err error
}

func newAccount(c *Channel) *account {
	return &account{
		look: make(chan struct{}, 1), again: make(chan struct{}, 1), ch: c, gate: make(chan struct{}), lookedAt: -1 << 40,
		waiting: make(map[uint64]chan answer), sending: make(map[sendKey]*outgoing),
		dirt: dirt{lanes: make(map[uint64]struct{}), messages: make(map[string]*message)},
	}
}

func (a *account) tag() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ch.Tag
}

// idle reports whether nothing of an inbound channel is worth a record. Outbound
// ones only we can make. Called with a.mu held.
func (a *account) idle() bool {
	c := a.ch
	return c.Direction == PCHInbound && a.saved == 0 && !a.saving && a.broken == nil &&
		len(a.sending) == 0 && c.Vouchers == 0 && !c.Owned
}

// account returns the channel at addr. One that we do not track yet is looked up
// on the chain, and tracked where one side of it is ours.
func (m *Manager) account(ctx context.Context, addr address.Address) (*account, error) {
	m.mu.Lock()
	a, closed := m.byAddr[addr], m.closed
	m.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	if a != nil {
		return a, nil
	}
	// A channel has a short address too, which a reorganisation can give to
	// another; and two names for one channel would be two channels to us.
	if addr.Protocol() != address.Actor {
		return nil, fmt.Errorf("%w: channel %s", ErrAddress, addr)
	}
	return m.track(ctx, addr)
}

// forget takes the oldest account without a record out of memory where there are
// too many.
func (m *Manager) forget() {
	for {
		m.mu.Lock()
		if len(m.tracked) <= maxTracked {
			m.mu.Unlock()
			return
		}
		a := m.tracked[0]
		m.tracked = slices.Delete(m.tracked, 0, 1)
		m.mu.Unlock()
		a.mu.Lock()
		if a.idle() {
			a.forgotten = true
			m.mu.Lock()
			delete(m.accounts, a.ch.ID)
			delete(m.byAddr, a.ch.Addr)
			m.mu.Unlock()
		}
		a.mu.Unlock()
	}
}

// track takes a channel up that somebody else created, or that a lost store knew.
func (m *Manager) track(ctx context.Context, addr address.Address) (*account, error) {
	v, st, err := m.fetch(ctx, addr)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, fmt.Errorf("%w: %s", ErrNoChannel, addr)
	case err != nil:
		return nil, err
	case v.Gone:
		return nil, ErrCollected
	}
	cctx, cancel := m.call(ctx)
	defer cancel()
	from, err := m.chain.ResolveKey(cctx, st.From)
	if err != nil {
		return nil, fmt.Errorf("paych: key of payer %s: %w", st.From, err)
	}
	to, err := m.chain.ResolveKey(cctx, st.To)
	if err != nil {
		return nil, fmt.Errorf("paych: key of payee %s: %w", st.To, err)
	}
	dir := PCHInbound
	ours, err := m.wallet.Has(ctx, to)
	if err == nil && !ours {
		dir = PCHOutbound
		ours, err = m.wallet.Has(ctx, from)
	}
	if err != nil {
		return nil, fmt.Errorf("paych: wallet: %w", err)
	}
	if !ours {
		return nil, fmt.Errorf("%w: %s is between others", ErrNoChannel, addr)
	}
	defer m.forget()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if a := m.byAddr[addr]; a != nil {
		return a, nil
	}
	c := NewChannel(m.nextID, dir, from, to, big.Zero(), &m.rules)
	c.Addr, c.Phase = addr, PhaseOpen
	a := newAccount(c) // nobody else has it yet
	// Its record waits for the first thing worth saving, so that nobody fills our
	// disk by naming channels.
	fx, err := c.Step(m.lastHead(), v)
	if err != nil {
		return nil, err
	}
	a.lookedAt = v.Head.Height
	m.nextID++
	m.accounts[c.ID], m.byAddr[addr] = a, a
	m.tracked = append(m.tracked, a)
	for _, f := range fx {
		switch f.Kind {
		case FxSave:
			a.dirt.channel = true
		case FxSaveLane:
			a.dirt.lanes[f.Lane] = struct{}{}
		}
	}
	return a, nil
}

func (a *account) addr() address.Address {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ch.Addr
}

// saw reports whether the channel was looked at with this height as the head, or a
// later one.
func (a *account) saw(height abi.ChainEpoch) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lookedAt >= height
}
