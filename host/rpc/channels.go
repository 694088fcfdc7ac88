package rpc

import "github.com/tallystick/tally/paych"

// Channels is the payment channel part of a peer: the manager, the keys that it
// signs with, and the chain that it speaks to.
type Channels struct {
	Manager *paych.Manager
	Wallet  paych.Wallet
	Chain   paych.Chain
}
