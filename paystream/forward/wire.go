package forward

import "github.com/libp2p/go-libp2p/core/peer"

// Wire carries messages to neighbours. All calls come from the engine.
type Wire interface {
	// Send hands m to the session with p, which takes a copy at once and never
	// waits. Without a session m is lost: the next sync tells.
	Send(p peer.ID, m *Msg)
	// Flush lets leave what was sent since the last Flush.
	Flush()
	// Reset ends the session with p, which broke the protocol.
	Reset(p peer.ID, cause error)
}

// Batch is what one session read at once. Its messages and all that they point
// to belong to the engine until Recycle.
type Batch struct {
	Peer    peer.ID
	Msgs    []Msg
	Recycle func(*Batch)
}
