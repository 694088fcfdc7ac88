// Package swapnet carries swap between two peers: the stream handlers of
// /tally/swap/1.0.0, of the seed's /vac/waku/swap/2.0.0-alpha1, and (inbound
// only) of /vac/waku/swap/2.0.0-beta1. It speaks docs/protocol/swap.md.
//
//	             Hello, BeginSession, Receive, EndSession
//	  libp2p    ┌──────────────────────────────────────▶ Book
//	  streams   │                                          │
//	──────────▶ Service ◀──────────────────────────────────┘
//	                      Send, Disconnect
//
// One long-lived stream carries a session. The life of one:
//
//	opened ──▶ admitted ──▶ handshakes read ──▶ live ──▶ ended
//	  │            │               │              │
//	  └ refused    └ refused       └ failed       └ replaced by a newer one
//
// The package converts wire messages to the types of package swap, once, and
// checks every length and number before the book sees it. It decides nothing
// about money: balances, signatures and thresholds are the book's.
package swapnet
