// Package tally holds the words that every part of tallystick shares: Amount
// and Balance, the units of a tab between two peers, and Hashlock and Preimage,
// the lock of a conditional payment.
//
// The parts themselves stand beside it:
//
//	swap       a tab with each neighbour: ledger, thresholds, cheques
//	protocols  the libp2p stream handlers
//	host       the parts joined on one libp2p host
//	cmd/tally  the daemon and its command line
//
// It imports only the standard library and golang.org/x/crypto, so that a core
// may use it without gaining anything else.
package tally
