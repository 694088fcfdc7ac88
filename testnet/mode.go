package testnet

import "github.com/tallystick/tally/swap"

// ParseMode reads the mode of a demo: soft, mock or hard.
func ParseMode(s string) (swap.Mode, error) { return swap.ParseMode(s) }

// Hard reports whether a demo is one with a chain.
func (r *DemoResult) Hard() bool { return r.Mode == swap.ModeHard.String() }
