//go:build !invariants

package paystream

// invariants: see the build tag of the same name.
const invariants = false
