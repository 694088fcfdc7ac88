//go:build !invariants

package swap

// invariants: see the build tag of the same name.
const invariants = false
