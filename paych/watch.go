package paych

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/crypto"

	"github.com/tallystick/tally"
	"github.com/tallystick/tally/paych/actor"
)

// watch follows the head of the chain and looks at the channels that are due.
func (m *Manager) watch() {
	for try := 0; m.ctx.Err() == nil; try++ {
		heads, err := m.chain.Heads(m.ctx)
		if err != nil {
			m.log.Warn("chain gives no heads, will be tried again", "err", err)
		} else {
			for h := range heads {
				try = 0
				m.onHead(h)
			}
		}
		if !m.pause(nil, try) {
			return
		}
	}
}

func (m *Manager) onHead(h Head) {
	height := h.Height
	if h.Reverted {
		height--
	}
	m.head.Store(int64(height))
	m.told.Store(time.Now().UnixNano())
	for _, a := range m.list() {
		a.mu.Lock()
		if h.Reverted {
			a.lookedAt = -1 << 40 // what was seen may be gone
		}
		every := m.cfg.WatchEvery
		if a.ch.Restless() {
			every = 1
		}
		due := !a.looking && a.broken == nil && a.ch.Addr != address.Undef && !a.ch.over() && height >= a.lookedAt+every
		if due {
			a.looking = true
		}
		a.mu.Unlock()
		if due {
			m.spawn(func() { // ends with the look, or with Close
				err := m.lookAt(m.ctx, a)
				a.mu.Lock()
				a.looking = false
				a.mu.Unlock()
				if err != nil && m.ctx.Err() == nil {
					m.log.Warn("channel not seen", "channel", a.addr(), "err", err)
				}
			})
		}
	}
}

// peek looks at a channel whose view is older than the head that we were told of.
func (m *Manager) peek(ctx context.Context, a *account) error {
	now, err := m.now(ctx)
	if err != nil {
		return err
	}
	return m.lookFrom(ctx, a, now)
}

// peekAhead looks at a channel whose view is older than the head that the chain has
// now. Heads come to us later than to others: the other side may act on one that we
// were not told of.
func (m *Manager) peekAhead(ctx context.Context, a *account) error {
	head, err := m.askHead(ctx)
	if err != nil {
		return err
	}
	return m.lookFrom(ctx, a, head)
}

// lookFrom looks at a channel whose view is older than a height, and may still change.
func (m *Manager) lookFrom(ctx context.Context, a *account, height abi.ChainEpoch) error {
	a.mu.Lock()
	fresh := a.lookedAt >= height || a.ch.Addr == address.Undef || a.ch.over()
	a.mu.Unlock()
	if fresh {
		return nil
	}
	return m.lookAt(ctx, a)
}

// PaychLook brings the view of a channel up to the head of the chain.
func (m *Manager) PaychLook(ctx context.Context, ch address.Address) error {
	a, err := m.account(ctx, ch)
	if err != nil {
		return err
	}
	return m.peekAhead(ctx, a)
}

// bearable reports whether the last look at a channel may stand while the chain is
// away. What settles after it cannot be over before half a settle delay is, and
// until then our vouchers still get there.
func (m *Manager) bearable(a *account, now abi.ChainEpoch) bool {
	half := m.params.SettleDelay / 2
	a.mu.Lock()
	recent := a.lookedAt+half >= now
	a.mu.Unlock()
	silent := time.Since(time.Unix(0, m.told.Load()))
	return recent && silent < time.Duration(half)*m.params.Epoch && m.ctx.Err() == nil
}

// PaychCover tells what our best voucher of a lane of an inbound channel would
// pay, on the chain's state at its finality and at its head. It answers from
// memory, and asks the chain where the last look is older than the watcher lets it
// become; while the chain is away the last look stands for half a settle delay.
// ErrOutbound.
func (m *Manager) PaychCover(ctx context.Context, ch address.Address, lane uint64) (Cover, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return Cover{}, err
	}
	if a.ch.Direction != PCHInbound {
		return Cover{}, ErrOutbound
	}
	now, err := m.now(ctx)
	if err != nil {
		return Cover{}, err
	}
	a.mu.Lock()
	fresh := a.ch.Buried || a.lookedAt+m.cfg.WatchEvery >= now
	a.mu.Unlock()
	if !fresh {
		if err := m.lookAt(ctx, a); err != nil && !m.bearable(a, now) {
			return Cover{}, err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return Cover{}, a.broken
	}
	cov := a.ch.cover(lane)
	cov.HeadAge = time.Since(time.Unix(0, m.told.Load()))
	return cov, nil
}

// lookAt brings a channel up to date with the chain: its state, the secrets that
// became public, and what there is to do about it.
func (m *Manager) lookAt(ctx context.Context, a *account) error {
	for _, turn := range [...]chan struct{}{m.looks, a.look} {
		select {
		case turn <- struct{}{}:
			defer func() { <-turn }()
		case <-ctx.Done():
			return ctx.Err()
		case <-m.ctx.Done():
			return ErrClosed
		}
	}
	a.mu.Lock()
	addr, since, curious := a.ch.Addr, a.ch.Deep.Height, a.ch.curious()
	var under []*PointLock
	if a.ch.Direction == PCHOutbound {
		under = a.ch.closed()
	}
	a.mu.Unlock()
	v, _, err := m.fetch(ctx, addr)
	if err != nil {
		return err
	}
	var secrets []evSecret
	if curious {
		// Before the view, which forgets the locks that are done with.
		if secrets, err = m.secrets(ctx, addr, since, v.Head.Height, under); err != nil {
			return err
		}
	}
	a.mu.Lock()
	if a.broken != nil {
		defer a.mu.Unlock()
		return a.broken
	}
	for _, s := range secrets {
		fx, err := m.step(a, s)
		if err == nil && fx.Lane > 0 {
			m.notify(Notice{Kind: NoticeSecret, Channel: addr, Secret: &s.Preimage})
		}
	}
	_, err = m.step(a, v)
	a.lookedAt = max(a.lookedAt, v.Head.Height)
	idle := a.saved == 0 // tracked, but nothing worth a record came yet
	a.mu.Unlock()
	if err != nil || idle {
		return err
	}
	return m.save(a)
}

// fetch reads a channel at the head and at finality.
func (m *Manager) fetch(ctx context.Context, addr address.Address) (evViewed, *actor.State, error) {
	ctx, cancel := m.call(ctx)
	defer cancel()
	// The height is asked first: a view that is a little newer than it says only
	// makes time locks live longer.
	head, err := m.askHead(ctx)
	if err != nil {
		return evViewed{}, nil, err
	}
	finality := m.params.Finality
	st, balance, err := m.chain.Channel(ctx, addr, 0)
	if errors.Is(err, ErrCollected) {
		_, _, err := m.chain.Channel(ctx, addr, finality)
		v := evViewed{Gone: true, Buried: errors.Is(err, ErrCollected)}
		v.Head.Height = head
		return v, nil, nil
	}
	if err != nil {
		return evViewed{}, nil, fmt.Errorf("paych: channel %s: %w", addr, err)
	}
	v := evViewed{Head: snapshotOf(head, st, balance)}
	deep, deepBalance, err := m.chain.Channel(ctx, addr, finality)
	switch {
	case errors.Is(err, ErrNotFound): // younger than that
		v.Deep = snapshot{View: emptyView()}
		v.Deep.Height = head - finality
	case err != nil:
		return evViewed{}, nil, fmt.Errorf("paych: channel %s at finality: %w", addr, err)
	default:
		v.Deep = snapshotOf(head-finality, deep, deepBalance)
	}
	return v, st, nil
}

func snapshotOf(height abi.ChainEpoch, st *actor.State, balance big.Int) snapshot {
	return snapshot{
		View: View{
			Height: height, Balance: value(balance), ToSend: value(st.ToSend),
			SettlingAt: st.SettlingAt, MinSettling: st.MinSettleHeight,
		},
		Lanes: st.Lanes,
	}
}

// secrets reads the preimages that were used on a channel, and from the signatures the
// secrets of our locks under points.
func (m *Manager) secrets(ctx context.Context, addr address.Address, from, to abi.ChainEpoch, under []*PointLock) ([]evSecret, error) {
	ctx, cancel := m.call(ctx)
	defer cancel()
	calls, err := m.chain.Calls(ctx, addr, max(from, 0), to)
	if err != nil {
		return nil, fmt.Errorf("paych: calls of %s: %w", addr, err)
	}
	var found []evSecret
	for i := range calls {
		if calls[i].Method != actor.MethodUpdateChannelState || !calls[i].ExitCode.IsSuccess() {
			continue
		}
		msg, code := actor.DecodeMsg(calls[i].Method, calls[i].Params)
		if !code.IsSuccess() || msg.Update == nil {
			continue
		}
		if len(msg.Update.Secret) == tally.HashlockSize {
			found = append(found, evSecret{Preimage: tally.Preimage(msg.Update.Secret)})
		}
		if ev, ok := recovered(&msg.Update.Sv, under); ok {
			found = append(found, ev)
		}
	}
	return found, nil
}

// archive finds out what Collect paid. The actor is gone; the epoch before shows
// it, or else what we saw last.
func (m *Manager) archive(a *account) {
	a.mu.Lock()
	addr, last := a.ch.Addr, a.ch.lastSeen()
	a.mu.Unlock()
	for try := 0; ; try++ {
		f, err := m.final(addr, last)
		if m.ctx.Err() != nil {
			return
		}
		if err != nil {
			m.log.Warn("result of a collected channel not read, will be tried again", "channel", addr, "err", err)
			if !m.pause(nil, try) {
				return
			}
			continue
		}
		a.mu.Lock()
		a.archiving = false
		_, err = m.step(a, evFinished{Final: f})
		a.mu.Unlock()
		if err != nil {
			return // a reorganisation brought it back
		}
		if err := m.save(a); err != nil {
			return
		}
		m.log.Info("channel collected", "channel", addr, "to_send", f.ToSend, "rest", f.Rest)
		told := f.clone()
		m.notify(Notice{Kind: NoticeCollected, Channel: addr, Final: &told})
		return
	}
}

func (m *Manager) final(addr address.Address, last snapshot) (Final, error) {
	ctx, cancel := m.call(m.ctx)
	defer cancel()
	head, err := m.chain.Head(ctx)
	if err != nil {
		return Final{}, err
	}
	calls, err := m.chain.Calls(ctx, addr, max(last.Height, 0), head)
	if err != nil {
		return Final{}, err
	}
	f := last.final(head)
	for i := range calls {
		if calls[i].Method != actor.MethodCollect || !calls[i].ExitCode.IsSuccess() {
			continue
		}
		collected := calls[i].Height
		f.Height = collected
		// The head may move between the calls, and a tipset be missing.
		for back := abi.ChainEpoch(1); back <= 4; back++ {
			st, balance, err := m.chain.Channel(ctx, addr, head-collected+back)
			if errors.Is(err, ErrCollected) {
				continue
			}
			if err != nil {
				return Final{}, err
			}
			seen := snapshotOf(collected-back, st, balance)
			f = seen.final(collected)
			break
		}
	}
	return f, nil
}

// evaluate runs a voucher on the channel's latest state as the chain would run
// it in the next epoch.
func (m *Manager) evaluate(ctx context.Context, a *account, sv *SignedVoucher, secret []byte) error {
	ctx, cancel := m.call(ctx)
	defer cancel()
	a.mu.Lock()
	addr, from, to, control := a.ch.Addr, a.ch.From, a.ch.To, a.ch.Control()
	a.mu.Unlock()
	head, err := m.askHead(ctx)
	if err != nil {
		return err
	}
	st, balance, err := m.chain.Channel(ctx, addr, 0)
	if err != nil {
		return fmt.Errorf("paych: channel %s: %w", addr, err)
	}
	ids := map[address.Address]address.Address{addr: selfID, from: st.From, to: st.To}
	keys := map[address.Address]address.Address{st.From: from, st.To: to}
	env := actor.Env{
		Self:    selfID,
		Resolve: func(a address.Address) (address.Address, bool) { id, ok := ids[a]; return id, ok },
		Verify: func(signer address.Address, sig crypto.Signature, msg []byte) error {
			if key, ok := keys[signer]; ok {
				signer = key
			}
			return VerifySignature(&sig, signer, msg)
		},
	}
	caller := st.From
	if control == to {
		caller = st.To
	}
	r := actor.Apply(st, balance, head+1, m.params.SettleDelay, caller, actor.Redeem(*sv, secret), env)
	if r.ExitCode.IsSuccess() {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrNotSpendable, r.Err)
}

// selfID stands for the channel's own id address in evaluate, where only its
// being one matters.
var selfID = func() address.Address {
	a, err := address.NewIDAddress(math.MaxInt64)
	if err != nil {
		panic("paych: " + err.Error())
	}
	return a
}()

// notify tells of something, in order and with no lock held: who is told may call
// back.
func (m *Manager) notify(n Notice) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.news = append(m.news, n)
	if !m.telling {
		m.telling = true
		m.tasks.Go(m.tellAll) // ends when all is told
	}
}

func (m *Manager) tellAll() {
	for {
		m.mu.Lock()
		news := m.news
		m.news = nil
		m.telling = len(news) > 0 && !m.closed
		more := m.telling
		m.mu.Unlock()
		if !more {
			return
		}
		for _, n := range news {
			m.cfg.Notify(n)
		}
	}
}
