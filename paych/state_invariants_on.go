//go:build invariants

package paych

// invariants makes each Step check the channel.
const invariants = true
