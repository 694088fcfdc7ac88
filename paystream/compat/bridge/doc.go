// Package bridge joins Interledger to the hops: packets of bridged clients and of
// our own ILP endpoints go to each other, and over forward.Engine to those of other
// nodes.
//
//	client ── BTP ─▶ From(client) ─┐                      ┌─▶ client, over BTP
//	endpoint ──────▶ From(token) ──┤─ here? ─ yes ────────┤
//	                               │                      └─▶ endpoint
//	                               └─ no ─▶ Engine.Send ─▶ hops ─▶ Packet of a node
//
// An address is base.kind.rest, where base is the node's, kind c, s or p, and rest a
// client's name with what the client adds, or a token of a STREAM or PSK2 endpoint.
// The peer id is in the base, so that no table of addresses is needed. Over the hops
// a packet keeps its SHA-256 condition and its data; the token of the hop's packet
// is what follows the base. A reject comes back whole where an end made it, and as
// the code that says the same where a hop did.
//
// Book is the state, pure: what clients owe, what tokens have moved, and which
// packets of theirs are on the way. The order that keeps money whole:
//
//	before …                              is on disk, in one batch
//	a packet of theirs leaves over a hop   its row, with the hop's
//	a fulfilment is passed back to them    what they owe now, with our tab
//	a preimage of theirs is shown a hop    what we owe them now, with its tab
//
// A packet between two parties of this node has no row: a crash gives it up, and
// its payee may have shown a preimage for nothing. So may one whose fulfilment does
// not get through in the last second of a packet. Both lose at most what was on the
// way to them, MaxIncoming packets within the account's limit.
package bridge
