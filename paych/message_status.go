package paych

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/filecoin-project/go-address"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/filecoin-project/go-state-types/big"
	"github.com/filecoin-project/go-state-types/exitcode"
	"github.com/ipfs/go-cid"
)

// MessageStatus is one message of ours to the chain.
type MessageStatus struct {
	Cid  cid.Cid
	Kind string // create, add-funds, submit, settle, collect
	// State is saved, published, done, failed or lost.
	State string
	From  address.Address
	Nonce uint64
	Value big.Int
	// Since is when it was signed; after Late it takes longer than a message should.
	Since, Late time.Time
	// Error is why it failed, or why the last try did; empty where all is well.
	Error string
	// Cids are all under which it may be mined, the newest first: a message that
	// nobody mines is replaced by one for a higher fee.
	Cids []cid.Cid
	// Mined is the cid under which it was mined, where that is another.
	Mined    *cid.Cid
	Height   abi.ChainEpoch
	ExitCode exitcode.ExitCode
	// Channel has no address yet while it is being created.
	Channel PaychStatus
	Phase   Phase
}

// messageStatus is called with the account's mu held.
func (m *Manager) messageStatus(o *outgoing) *MessageStatus {
	msg := o.msg
	since := time.Unix(msg.since, 0)
	s := &MessageStatus{
		Cid: msg.id(), Cids: msg.cids(), Kind: msg.kind.String(), State: msg.state.String(), From: msg.signed.From,
		Nonce: msg.signed.Nonce, Value: msg.value, Since: since, Late: since.Add(m.grace()), Mined: cidOf(msg.mined),
		Height: msg.height, ExitCode: msg.exit, Channel: *o.a.status(), Phase: o.a.ch.Phase,
	}
	if o.err != nil {
		s.Error = o.err.Error()
	}
	return s
}

// PaychStatusByMsg tells of a message, and of the channel that it is for, by any
// cid that a call returned. ErrNotFound where we sent none such, or long ago.
func (m *Manager) PaychStatusByMsg(_ context.Context, id cid.Cid) (*MessageStatus, error) {
	o, err := m.message(id)
	if err != nil {
		return nil, err
	}
	o.a.mu.Lock()
	defer o.a.mu.Unlock()
	return m.messageStatus(o), nil
}

// PaychPending lists the messages without a receipt.
func (m *Manager) PaychPending(context.Context) ([]MessageStatus, error) {
	var all []MessageStatus
	for _, a := range m.list() {
		a.mu.Lock()
		for _, o := range a.sending {
			if o.msg != nil {
				all = append(all, *m.messageStatus(o))
			}
		}
		a.mu.Unlock()
	}
	slices.SortFunc(all, byNonce)
	return all, nil
}

// byNonce orders the messages of each sender.
func byNonce(x, y MessageStatus) int {
	return cmp.Or(bytes.Compare(x.From.Bytes(), y.From.Bytes()), cmp.Compare(x.Nonce, y.Nonce))
}

func (m *Manager) message(id cid.Cid) (*outgoing, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.byCid[id]; o != nil {
		return o, nil
	}
	return nil, fmt.Errorf("%w: message %s", ErrNotFound, id)
}

// PaychWaitReady waits for the receipt of a message that a call returned, and
// returns the address of its channel. A MessageError where it failed.
func (m *Manager) PaychWaitReady(ctx context.Context, id cid.Cid) (address.Address, error) {
	o, err := m.message(id)
	if err != nil {
		return address.Undef, err
	}
	select {
	case <-o.done:
	case <-ctx.Done():
		return address.Undef, ctx.Err()
	}
	o.a.mu.Lock()
	defer o.a.mu.Unlock()
	if !o.msg.state.final() {
		return address.Undef, errors.Join(ErrClosed, o.err)
	}
	return o.a.ch.Addr, o.err
}
