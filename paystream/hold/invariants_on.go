//go:build invariants

package hold

// invariants: the build checks the cores after every step.
const invariants = true
