// Package forward is the hop engine: it carries hash-locked packets between
// neighbours, takes those that are for us and sends our own. It follows
// docs/protocol/packet.md.
//
//	payer                    hop                     payee
//	  │ hold                  │                        │
//	  ├── prepare 7, 100 ────▶│ hold both              │
//	  │                       ├── prepare 31, 99 ─────▶│ hold, ask the endpoint
//	  │                       │                        │ book +99, save
//	  │                       │◀──── fulfil 31 ────────┤
//	  │                       │ book −99 and +100, save│
//	  │◀──── fulfil 7 ────────┤──── fulfil_ack 31 ────▶│ forget
//	  │ book −100, save       │                        │
//	  ├── fulfil_ack 7 ──────▶│ forget                 │
//
// Each node holds the amount on both tabs before it sends, books both when the
// preimage comes, and releases both on a reject. Who becomes debtor by a fulfil
// saves that before it passes the preimage on. So at every moment each node has
// on disk what it needs to be paid for what it owes:
//
//	before it …                                has on disk, synced
//	payer or hop   offers a packet             the packet, with both sides
//	payee          tells who keeps a packet    the packet
//	payee          shows the preimage          preimage, and its tab
//	hop            passes the preimage on      preimage, and both tabs
//	payer          acks                        its tab; where it keeps it, the result
//
// Every packet is decided. A fulfil is repeated in each session until it is
// acked. A reject is not: after each reconnect, and when a packet's time is over,
// the debtor asks which of its packets the neighbour has, and what is not listed
// was rejected or never arrived. While a link is down the hold stays, at most
// LateHold beyond the packet's expiry.
//
// The files named _pure.go are the core, a state machine without time, disk or
// network; engine.go is the one goroutine around it, which takes from inbox.go, steps
// in work.go and saves and sends in effects.go. Tabs and carriers come in as
// interfaces; package host joins them to swap and packetnet.
//
// Each side of a packet is on credit or under a lock of a channel: locked_pure.go
// says when. A side under a lock touches no tab, and its end comes from whoever keeps
// the channels, a LockCarrier. What a packet on credit pays for that is one test of a
// pointer. What is under a point of a curve has a lock on every hop, or is refused.
package forward
