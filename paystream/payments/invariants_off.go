//go:build !invariants

package payments

// invariants: see the build tag of the same name.
const invariants = false
