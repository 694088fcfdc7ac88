//go:build invariants

package swap

// invariants: the build checks every ledger after every step.
const invariants = true
