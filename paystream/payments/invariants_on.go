//go:build invariants

package payments

// invariants: the build checks both cores after every step.
const invariants = true
