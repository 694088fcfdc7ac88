package storenet

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/tallystick/tally"
)

// fakeMeter is a tab in memory, the same limit for every peer. It panics where
// the contract of Hold is broken.
type fakeMeter struct {
	limit    tally.Amount
	tooLarge tally.Amount // Consume refuses more at once; 0: no such limit

	// mu guards the fields below.
	mu       sync.Mutex
	booked   map[peer.ID]tally.Amount // committed
	held     map[peer.ID]tally.Amount // reserved and not ended
	free     chan struct{}            // closed and replaced when something is given back
	waits    int                      // Consume calls that had to wait
	commits  []tally.Amount
	released int
	lost     int
	// steal is called by HeadroomServe after the look, outside mu; onWait by Consume
	// before it waits.
	steal     func()
	onWait    func(peer.ID)
	commitErr error
}

func newMeter(limit tally.Amount) *fakeMeter {
	return &fakeMeter{limit: limit, booked: map[peer.ID]tally.Amount{}, held: map[peer.ID]tally.Amount{}, free: make(chan struct{})}
}

type fakeHold struct {
	m     *fakeMeter
	p     peer.ID
	units tally.Amount
	ended bool
}

func (m *fakeMeter) reserve(p peer.ID, units tally.Amount) (Hold, error) {
	if m.booked[p]+m.held[p]+units > m.limit {
		return nil, fmt.Errorf("owes %d of %d units", m.booked[p], m.limit)
	}
	m.held[p] += units
	return &fakeHold{m: m, p: p, units: units}, nil
}

func (m *fakeMeter) Serve(_ context.Context, p peer.ID, units tally.Amount) (Hold, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reserve(p, units)
}

func (m *fakeMeter) Consume(ctx context.Context, p peer.ID, units tally.Amount) (Hold, error) {
	waited := false
	for {
		m.mu.Lock()
		if m.tooLarge > 0 && units > m.tooLarge {
			m.mu.Unlock()
			return nil, fmt.Errorf("%d units: %w", units, ErrHoldTooLarge)
		}
		h, err := m.reserve(p, units)
		begins := err != nil && !waited
		if begins {
			waited = true
			m.waits++
		}
		free, onWait := m.free, m.onWait
		m.mu.Unlock()
		if err == nil {
			return h, nil
		}
		if begins && onWait != nil {
			onWait(p)
		}
		select {
		case <-free:
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (m *fakeMeter) HeadroomServe(p peer.ID) tally.Amount {
	m.mu.Lock()
	head := m.limit.SaturatingSub(m.booked[p] + m.held[p])
	steal := m.steal
	m.mu.Unlock()
	if steal != nil {
		steal()
	}
	return head
}

// settle takes up to units off the tab, as a cheque does.
func (m *fakeMeter) settle(p peer.ID, units tally.Amount) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.booked[p] = m.booked[p].SaturatingSub(units)
	m.wake()
}

func (m *fakeMeter) book(p peer.ID, units tally.Amount) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.booked[p] += units
}

// wake lets the waiters look again. The caller holds mu.
func (m *fakeMeter) wake() {
	close(m.free)
	m.free = make(chan struct{})
}

func (m *fakeMeter) tab(p peer.ID) (booked, held tally.Amount) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.booked[p], m.held[p]
}

func (m *fakeMeter) want(t *testing.T, p peer.ID, booked, held tally.Amount) {
	t.Helper()
	if b, h := m.tab(p); b != booked || h != held {
		t.Errorf("booked %d and held %d, want %d and %d", b, h, booked, held)
	}
}

func (h *fakeHold) end() {
	if h.ended {
		panic("hold ended twice")
	}
	h.ended = true
}

func (h *fakeHold) Commit(units tally.Amount) error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	h.end()
	if units == 0 || units > h.units {
		panic(fmt.Sprintf("commit %d of %d", units, h.units))
	}
	h.m.held[h.p] -= h.units
	defer h.m.wake()
	if h.m.commitErr != nil {
		return h.m.commitErr
	}
	h.m.booked[h.p] += units
	h.m.commits = append(h.m.commits, units)
	return nil
}

func (h *fakeHold) Release() error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	h.end()
	h.m.held[h.p] -= h.units
	h.m.released++
	h.m.wake()
	return nil
}

// Lost keeps the reservation.
func (h *fakeHold) Lost() error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	h.end()
	h.m.lost++
	return nil
}
