package paych

import (
	"context"
	"fmt"
	"slices"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"
)

// PaychStatus implements PaymentChannelManagerAPI.
func (m *Manager) PaychStatus(ctx context.Context, ch address.Address) (*PaychStatus, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status(), nil
}

// status is called with a.mu held.
func (a *account) status() *PaychStatus {
	c, f := a.ch, a.ch.Funds()
	st := &PaychStatus{
		Direction: c.Direction, ControlAddr: c.Control(), Channel: c.Addr, From: c.From, To: c.To,
		ConfirmedAmt: f.Confirmed, PendingAmt: big.Zero(), QueuedAmt: big.Zero(),
		VoucherReedeemedAmt: f.Redeemed, ReservedAmt: big.Add(f.Reserved, f.Held),
	}
	if c.Direction == PCHInbound {
		st.VoucherReedeemedAmt = c.worth()
	}
	if c.Final != nil {
		st.ConfirmedAmt, st.VoucherReedeemedAmt = big.Add(c.Final.ToSend, c.Final.Rest), c.Final.ToSend
	}
	kind := messageTopUp
	switch {
	case c.Phase == PhaseCreating:
		kind, st.PendingAmt = messageCreate, c.Amount
	case c.TopUp != nil:
		st.PendingAmt = c.TopUp.Amount
	}
	if o := a.sending[sendKey{kind: kind}]; o != nil && o.msg != nil {
		id := o.msg.id()
		st.PendingChainMessage = &id
	}
	for _, r := range c.queue {
		st.QueuedAmt = big.Add(st.QueuedAmt, r.amount)
	}
	return st
}

// ChannelInfo is what PaychStatus has no place for.
type ChannelInfo struct {
	PaychStatus
	Phase      Phase
	Tag        string
	Owned      bool
	SettlingAt abi.ChainEpoch
	Funds      Funds
	// PendingFree is the part of PendingAmt that no reservation waits for.
	PendingFree big.Int
	Lanes       int
	Vouchers    uint64
	Final       *Final
	// Buried: the channel was collected, and no reorganisation brings it back.
	Buried bool
	// Created, Settled and Collected are our own messages, or nil.
	Created, Settled, Collected *cid.Cid
	// Pending are our messages without a receipt, by nonce. LastError is why the
	// newest message failed, or why its last try did; empty where all is well.
	Pending   []MessageStatus
	LastError string
}

// PaychInfo returns all that is known of a channel.
func (m *Manager) PaychInfo(ctx context.Context, ch address.Address) (*ChannelInfo, error) {
	a, err := m.account(ctx, ch)
	if err != nil {
		return nil, err
	}
	info := m.info(a)
	return &info, nil
}

// PaychInfos is PaychInfo of every channel, in the order in which they were taken
// up: also of those that have no address, because they are being created or
// failed to be.
func (m *Manager) PaychInfos(context.Context) ([]ChannelInfo, error) {
	var all []ChannelInfo
	for _, a := range m.list() {
		all = append(all, m.info(a))
	}
	return all, nil
}

func (m *Manager) info(a *account) ChannelInfo {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.ch
	info := ChannelInfo{
		PaychStatus: *a.status(), Phase: c.Phase, Tag: c.Tag, Owned: c.Owned, SettlingAt: c.Head.SettlingAt, Buried: c.Buried,
		Funds: c.Funds(), Lanes: len(c.Lanes), Vouchers: c.Vouchers,
		Created: cidOf(c.Created), Settled: cidOf(c.Settled), Collected: cidOf(c.Collected),
	}
	info.PendingFree = info.PendingAmt
	switch {
	case c.Phase == PhaseCreating:
		info.PendingFree = big.Sub(info.PendingAmt, c.Reserved)
	case c.TopUp != nil:
		info.PendingFree = big.Sub(info.PendingAmt, c.TopUp.claimed())
	}
	if c.Final != nil {
		f := c.Final.clone()
		info.Final = &f
	}
	if n := len(a.finished); n > 0 && a.finished[n-1].err != nil {
		info.LastError = a.finished[n-1].err.Error()
	}
	for _, o := range a.sending {
		if o.msg != nil {
			info.Pending = append(info.Pending, *m.messageStatus(o))
		}
	}
	slices.SortFunc(info.Pending, byNonce)
	for i := range info.Pending {
		if e := info.Pending[i].Error; e != "" {
			info.LastError = e
		}
	}
	return info
}

// PaychLookup implements PaymentChannelManagerAPI: an outbound channel that does
// not settle; of several the one with most free funds.
func (m *Manager) PaychLookup(ctx context.Context, from, to address.Address) (address.Address, error) {
	from, err := m.resolve(ctx, from)
	if err != nil {
		return address.Undef, err
	}
	if to, err = m.resolve(ctx, to); err != nil {
		return address.Undef, err
	}
	best, most := address.Undef, big.Zero()
	for _, a := range m.list() {
		a.mu.Lock()
		c := a.ch
		if c.Direction == PCHOutbound && c.From == from && c.To == to && c.Phase == PhaseOpen && !c.settling {
			if free := c.Funds().Free(); best == address.Undef || free.GreaterThan(most) {
				best, most = c.Addr, free
			}
		}
		a.mu.Unlock()
	}
	if best == address.Undef {
		return address.Undef, fmt.Errorf("%w: from %s to %s", ErrNoChannel, from, to)
	}
	return best, nil
}

// PaychList implements PaymentChannelManagerAPI, in the order in which the
// channels were taken up. One that is being created has no address yet.
func (m *Manager) PaychList(context.Context) ([]address.Address, error) {
	var addrs []address.Address
	for _, a := range m.list() {
		a.mu.Lock()
		if a.ch.Addr != address.Undef {
			addrs = append(addrs, a.ch.Addr)
		}
		a.mu.Unlock()
	}
	return addrs, nil
}
