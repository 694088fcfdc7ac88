package paych

import (
	"context"
	"errors"
	"fmt"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/ipfs/go-cid"
)

type tagKey struct{}

// WithTag names the consumer that a call is for. PaychCreate with a tag makes one
// channel however often it is called; calls on an owned channel's lanes need its
// tag.
func WithTag(ctx context.Context, tag string) context.Context {
	return context.WithValue(ctx, tagKey{}, tag)
}

func tagOf(ctx context.Context) string {
	tag, _ := ctx.Value(tagKey{}).(string)
	return tag
}

// CreateSpec is a channel to be created.
type CreateSpec struct {
	From, To address.Address
	Amount   big.Int
	// Tag makes the call idempotent: there is one channel for a tag, until that is
	// collected for good. Owned closes
	// the channel's lanes of tab, slots and guard to calls without the tag.
	Tag   string
	Owned bool
	// Reserve: the amount is reserved from the beginning, as PaychReserveFunds
	// would once the channel is there.
	Reserve bool
}

// PaychCreate implements PaymentChannelManagerAPI.
func (m *Manager) PaychCreate(ctx context.Context, from, to address.Address, amt big.Int) (cid.Cid, error) {
	return m.PaychCreateSpec(ctx, CreateSpec{From: from, To: to, Amount: amt, Tag: tagOf(ctx)})
}

// PaychCreateSpec is PaychCreate with all that can be said about a channel.
func (m *Manager) PaychCreateSpec(ctx context.Context, s CreateSpec) (cid.Cid, error) {
	if s.Amount.Int == nil || s.Amount.Sign() <= 0 {
		return cid.Undef, ErrZeroAmount
	}
	if s.Owned && s.Tag == "" {
		return cid.Undef, fmt.Errorf("%w: by nobody: a tag is missing", ErrOwned)
	}
	from, err := m.resolve(ctx, s.From)
	if err != nil {
		return cid.Undef, err
	}
	to, err := m.resolve(ctx, s.To)
	if err != nil {
		return cid.Undef, err
	}
	if from.Protocol() != address.SECP256K1 {
		return cid.Undef, fmt.Errorf("%w: vouchers need a secp256k1 payer, not %s", ErrAddress, from)
	}
	if ok, err := m.wallet.Has(ctx, from); err != nil || !ok {
		return cid.Undef, errors.Join(fmt.Errorf("%w: %s", ErrNoKey, from), err)
	}
	// The message is under way before anybody finds the account by its tag.
	amount := big.NewFromGo(s.Amount.Int) // the caller's may change
	c := NewChannel(0, PCHOutbound, from, to, amount, &m.rules)
	c.Tag, c.Owned = s.Tag, s.Owned
	if s.Reserve {
		c.Reserved = amount
	}
	a := newAccount(c)
	o := &outgoing{key: sendKey{kind: messageCreate}, value: amount}
	a.mu.Lock()
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		a.mu.Unlock()
		return cid.Undef, ErrClosed
	}
	other := m.byTag[s.Tag]
	if s.Tag == "" || other == nil {
		c.ID = m.nextID
		m.nextID++
		if s.Tag != "" {
			m.byTag[s.Tag] = a
		}
		m.mu.Unlock()
		m.start(a, o)
		a.mu.Unlock()
		return o.wait(ctx)
	}
	m.mu.Unlock()
	a.mu.Unlock()
	if id, stands, err := other.created(ctx, from, to); stands {
		return id, err
	}
	m.untag(other)
	return m.PaychCreateSpec(ctx, s)
}

// created returns the message that made a channel, or how that went; stands is false
// where the channel is collected for good, or was never created. What a create that
// fails meanwhile changes is read at one time: else it would neither be under way, nor
// leave a message.
func (a *account) created(ctx context.Context, from, to address.Address) (id cid.Cid, stands bool, err error) {
	a.mu.Lock()
	c, o := a.ch, a.sending[sendKey{kind: messageCreate}]
	id = c.Created
	gone := c.Buried || c.Phase == PhaseFailed || c.Phase == PhaseCreating && !id.Defined() && o == nil
	same := c.From == from && c.To == to
	a.mu.Unlock()
	switch {
	case gone:
		return cid.Undef, false, nil
	case !same:
		return cid.Undef, true, fmt.Errorf("%w: tag %q has a channel from %s to %s", ErrOwned, c.Tag, c.From, c.To)
	case o != nil:
		id, err = o.wait(ctx)
	}
	return id, true, err
}

// resolve returns the key address of an account.
func (m *Manager) resolve(ctx context.Context, a address.Address) (address.Address, error) {
	switch a.Protocol() {
	case address.SECP256K1, address.BLS:
		return a, nil
	case address.ID:
		ctx, cancel := m.call(ctx)
		defer cancel()
		key, err := m.chain.ResolveKey(ctx, a)
		if err != nil {
			return address.Undef, fmt.Errorf("paych: key of %s: %w", a, err)
		}
		return key, nil
	default:
		return address.Undef, fmt.Errorf("%w: %s is no account", ErrAddress, a)
	}
}

// PaychTagged returns the message that created a tag's channel, or is about to;
// the tag of a collected channel has none.
func (m *Manager) PaychTagged(tag string) (cid.Cid, bool) {
	m.mu.Lock()
	a := m.byTag[tag]
	m.mu.Unlock()
	if a == nil || tag == "" {
		return cid.Undef, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ch.Created, a.ch.Created.Defined()
}

// PaychTaggedInfo is PaychInfo of a tag's channel, which may have no address yet.
func (m *Manager) PaychTaggedInfo(tag string) (ChannelInfo, bool) {
	m.mu.Lock()
	a := m.byTag[tag]
	m.mu.Unlock()
	if a == nil || tag == "" {
		return ChannelInfo{}, false
	}
	return m.info(a), true
}

// PaychOwn makes tag the owner of a channel that another created: its lanes of
// tab, slots and guard are closed to calls without the tag.
func (m *Manager) PaychOwn(ctx context.Context, ch address.Address, tag string) error {
	a, err := m.account(ctx, ch)
	if err != nil {
		return err
	}
	if tag == "" {
		return fmt.Errorf("%w: by nobody: a tag is missing", ErrOwned)
	}
	m.mu.Lock()
	if other := m.byTag[tag]; other != nil && other != a {
		m.mu.Unlock()
		return fmt.Errorf("%w: tag %q has another channel", ErrOwned, tag)
	}
	m.byTag[tag] = a
	m.mu.Unlock()
	_, err = m.do(a, evOwn{Tag: tag})
	if err != nil {
		m.mu.Lock()
		if a.tag() != tag {
			delete(m.byTag, tag)
		}
		m.mu.Unlock()
	}
	return err
}

// untag lets the tag of a channel that was not created be used again.
func (m *Manager) untag(a *account) {
	tag := a.tag()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byTag[tag] == a {
		delete(m.byTag, tag)
	}
}
