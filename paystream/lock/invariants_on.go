//go:build invariants

package lock

// invariants: Check runs after every step.
const invariants = true
