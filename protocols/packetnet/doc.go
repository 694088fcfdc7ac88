// Package packetnet carries packets between two neighbours: the stream handler
// of /tally/packet/1.0.0. It speaks docs/protocol/packet.md.
//
//	             Up, Receive, Down
//	  libp2p    ┌──────────────────▶ forward.Engine
//	  streams   │                        │
//	──────────▶ Service ◀────────────────┘
//	                      Send, Flush, Reset
//
// One long-lived stream carries a session, both ways; the lower peer id opens
// it, so that two never meet. The life of one:
//
//	opened ──▶ hello, hello_ack each way ──▶ older one ended ──▶ live ──▶ ended
//
// What the engine sends is encoded at once into the session's buffer, and leaves
// in one Write with all that came meanwhile. What is read is handed over a batch
// at a time; a session has few batches, so that a peer who floods waits for the
// engine and nobody else does.
//
// The package converts wire messages to the types of package forward, once, and
// checks every length and number before the engine sees it. It decides nothing
// about packets.
package packetnet
