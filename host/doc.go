// Package host runs tallystick on a libp2p host: the tabs of package swap, their
// wire protocol, and the metered message store, joined.
//
//	    your go-libp2p host                       your code
//	          │                                       │ Reserve, Query, Rows
//	          ▼                                       ▼
//	┌──────── Node ─────────────────────────────────────────────┐
//	│ swapnet.Service ◀──▶ swap.Book ◀── adapters ── storenet    │
//	│                         │                         │        │
//	│                         └──── durable.Store ──────┘        │
//	└────────────────────────────────────────────────────────────┘
//
// Three ways in, each on top of the one before:
//
//	New(h, cfg)      embedded: an existing host, a folder for the books
//	Listen(cfg)      builds the host as the daemon has it: limits, block list
//	Start(repo)      the daemon: host, node, RPC, metrics
//
// adapters.go is the only file that joins the cores.
package host
