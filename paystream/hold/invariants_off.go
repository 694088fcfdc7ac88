//go:build !invariants

package hold

// invariants: see the other file of this name.
const invariants = false
