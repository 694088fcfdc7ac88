//go:build invariants

package paystream

// invariants: the build checks every socket after every step.
const invariants = true
