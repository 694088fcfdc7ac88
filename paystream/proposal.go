package paystream

import (
	"context"
	"fmt"
)

// maxProposals bounds the proposals of a peer whose answers are remembered;
// older ones are decided anew if they come again.
const maxProposals = 64

// Proposal is a peer's wish that we move our limits by these deltas.
type Proposal struct {
	ID                 [16]byte
	MinDelta, MaxDelta int64
	Memo               string
}

type proposalState struct {
	frame    ProposalFrame
	decided  bool
	accepted bool
}

// Propose asks the peer to move its limits, and returns whether it accepted.
func (c *Conn) Propose(ctx context.Context, p Proposal) (accepted bool, err error) {
	if len(p.Memo) > MaxMemo {
		return false, fmt.Errorf("paystream: memo of %d bytes, want at most %d", len(p.Memo), MaxMemo)
	}
	if p.ID == [16]byte{} {
		p.ID = c.e.entropy.id()
	}
	st := &proposalState{frame: ProposalFrame{ID: p.ID, MinDelta: p.MinDelta, MaxDelta: p.MaxDelta, Memo: []byte(p.Memo)}}
	c.mu.Lock()
	if len(c.asked) >= maxProposals {
		c.mu.Unlock()
		return false, ErrBusy
	}
	c.asked[p.ID] = st
	c.tellAt, c.told = 0, 0
	c.mu.Unlock()
	c.kick()
	err = c.wait(ctx, func() bool { return st.decided })
	c.mu.Lock()
	delete(c.asked, p.ID)
	c.mu.Unlock()
	return st.accepted, err
}
