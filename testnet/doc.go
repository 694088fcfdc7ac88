// Package testnet runs whole peers against each other: a demo of two, a network
// of many in one process, and scenarios, which are text files with named checks.
//
//	Demo ──────────────┐
//	                   ▼
//	RunScenario ──▶ Network ──▶ host.Node, one a peer, on 127.0.0.1
//	     │
//	     ├────────▶ live peers, over their RPC
//	     ▼
//	Cluster ──▶ processes: one for each peer, and a devnet
//	     ▲
//	   Chaos
//
// A Network can do to a peer what a machine room does: cut its connections, stop
// it, kill it between a write and a message, and start it again on what its disk
// kept. The peers themselves are the real ones; what is ours is only the disk
// below them and the wire between them.
//
// A Cluster is the program itself, many times: its peers settle for money on a
// chain, and are killed by the system. Chaos does that at random and then counts
// the money.
//
// Package testnet/sim runs the books alone, on a simulated clock, network and
// disk, from a seed.
package testnet
