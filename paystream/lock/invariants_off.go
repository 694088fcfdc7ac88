//go:build !invariants

package lock

const invariants = false
